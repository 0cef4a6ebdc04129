//! Settings of the dataflow.

use serde::{Deserialize, Serialize};

/// Settings of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataflowConfig {
    /// Batches of changes that may wait in memory before the reader of the change log pauses.
    pub queue: usize,
    /// Milliseconds from one checkpoint to the next, if anything has changed. A restart reads the newest one and what the change log
    /// holds behind it; without any it reads every document from the primary store. 0: none are written.
    pub checkpoint_interval_ms: u64,
}

impl Default for DataflowConfig {
    fn default() -> Self {
        Self { queue: 64, checkpoint_interval_ms: 60_000 }
    }
}
