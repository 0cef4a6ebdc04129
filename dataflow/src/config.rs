//! Settings of the dataflow.

use serde::{Deserialize, Serialize};

/// Settings of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataflowConfig {
    /// Batches of changes that may wait in memory before the reader of the change log pauses.
    pub queue: usize,
}

impl Default for DataflowConfig {
    fn default() -> Self {
        Self { queue: 64 }
    }
}
