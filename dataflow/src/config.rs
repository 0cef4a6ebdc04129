//! Settings of the dataflow.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// Settings of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataflowConfig {
    /// Batches of changes that may wait in memory before the reader of the change log pauses.
    pub queue: usize,
    /// Seconds before midnight UTC at which the next day's rows of data sources that read the clock begin to be
    /// computed, beside those of today; at midnight they take their place at once.
    pub next_day_lead_s: u32,
    /// Views that are built at once; further ones wait.
    pub builds_at_once: NonZeroUsize,
    /// Views of one domain that are built at once while others wait.
    pub builds_per_domain: NonZeroUsize,
}

impl Default for DataflowConfig {
    fn default() -> Self {
        let limit = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Self { queue: 64, next_day_lead_s: 1800, builds_at_once: limit(4), builds_per_domain: limit(2) }
    }
}
