//! Settings of the reading side. Every field has a default that suits one small machine.

use serde::{Deserialize, Serialize};

/// Limits and defaults for statements and REST reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryConfig {
    /// Most rows one SQL statement may return. Default 1,000,000.
    pub max_result_rows: usize,
    /// Longest text of a statement, bytes. Default 1 MiB.
    pub max_statement_bytes: usize,
    /// Longest run of a statement, milliseconds; a session may ask for less. Default 60,000.
    pub statement_timeout_ms: u64,
    /// Longest wait for a receipt to become visible, milliseconds. Default 10,000.
    pub default_wait_ms: u64,
    /// Statements that run at the same time, per protocol; others wait up to a second, then are refused. Default 64.
    pub max_concurrent_statements: usize,
    /// Postgres connections open at the same time. Default 500.
    pub max_connections: usize,
    /// Memory that sorts, joins and aggregates may hold together, per protocol, MiB. Default 1,024.
    pub memory_limit_mib: usize,
    /// Parallel streams per statement. Default 2.
    pub partitions: usize,
    /// A source that has not proved for this long that nothing is missing counts as stalled, milliseconds.
    /// Default 5,000.
    pub stalled_after_ms: u64,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            max_result_rows: 1_000_000,
            max_statement_bytes: 1 << 20,
            statement_timeout_ms: 60_000,
            default_wait_ms: 10_000,
            max_concurrent_statements: 64,
            max_connections: 500,
            memory_limit_mib: 1024,
            partitions: 2,
            stalled_after_ms: 5_000,
        }
    }
}

impl QueryConfig {
    /// Longest run of a statement.
    #[must_use]
    pub const fn statement_timeout(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.statement_timeout_ms)
    }

    /// Longest wait for a receipt.
    #[must_use]
    pub const fn default_wait(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.default_wait_ms)
    }
}
