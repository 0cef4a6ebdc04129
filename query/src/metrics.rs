//! What this crate counts. Labels are bounded: protocol and outcome.

use std::time::Instant;

/// One running statement; recorded when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct Running {
    protocol: &'static str,
    started: Instant,
    outcome: &'static str,
    rows: u64,
}

impl Running {
    /// A statement begins.
    pub(crate) fn start(protocol: &'static str) -> Self {
        Self { protocol, started: Instant::now(), outcome: "cancelled", rows: 0 }
    }

    /// Rows went out.
    pub(crate) fn rows(&mut self, rows: usize) {
        self.rows += u64::try_from(rows).unwrap_or_default();
    }

    /// It ended well.
    pub(crate) fn succeeded(&mut self) {
        self.outcome = "ok";
    }

    /// It ended with an error.
    pub(crate) fn failed(&mut self) {
        self.outcome = "error";
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { protocol, outcome, .. } = *self;
        metrics::counter!("millrace_query_statements_total", "protocol" => protocol, "outcome" => outcome).increment(1);
        metrics::counter!("millrace_query_rows_total", "protocol" => protocol).increment(self.rows);
        metrics::histogram!("millrace_query_statement_seconds", "protocol" => protocol)
            .record(self.started.elapsed().as_secs_f64());
    }
}

/// A connection opened (+1) or closed (-1).
pub(crate) fn connections(change: f64) {
    metrics::gauge!("millrace_query_postgres_connections").increment(change);
}
