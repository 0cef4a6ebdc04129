//! Settings of the dataflow.

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

/// Settings of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataflowConfig {
    /// Batches of changes that may wait in memory before the reader of the change log pauses.
    pub queue: usize,
    /// Threads that share the documents out and keep the tables together, at most 255. A tick of several costs their
    /// agreement on top: more than one pays where one is busy most of the time, and each wants a core of its own.
    pub workers: NonZeroU8,
}

impl Default for DataflowConfig {
    fn default() -> Self {
        Self { queue: 64, workers: NonZeroU8::MIN }
    }
}
