//! Settings of the dataflow.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A number of worker threads, from 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "u8")]
pub struct Workers(NonZeroU8);

/// Not a [`Workers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give a number of threads from 1 to 255")]
pub struct WorkersError;

impl Workers {
    /// One.
    pub const ONE: Self = Self(NonZeroU8::MIN);

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.get().into()
    }
}

impl TryFrom<i64> for Workers {
    type Error = WorkersError;

    fn try_from(count: i64) -> Result<Self, WorkersError> {
        u8::try_from(count).ok().and_then(NonZeroU8::new).map(Self).ok_or(WorkersError)
    }
}

impl FromStr for Workers {
    type Err = WorkersError;

    fn from_str(text: &str) -> Result<Self, WorkersError> {
        text.parse().map(Self).map_err(|_| WorkersError)
    }
}

impl From<Workers> for u8 {
    fn from(workers: Workers) -> Self {
        workers.0.get()
    }
}

/// Settings of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataflowConfig {
    /// Batches of changes that may wait in memory before the reader of the change log pauses.
    pub queue: usize,
    /// Milliseconds from one checkpoint to the next, if anything has changed. A restart reads the newest one and what the
    /// change log holds behind it; without any it reads every document from the primary store. 0: none are written.
    pub checkpoint_interval_ms: u64,
    /// Threads that share the documents out and keep the tables together, at most 255. A tick of several costs their
    /// agreement on top: more than one pays where one is busy most of the time, and each wants a core of its own.
    pub workers: Workers,
    /// Change records of which is remembered when readers could see them first: so far back it can be said with which record a
    /// version of a document came in. Some 80 bytes each.
    pub provenance_window: usize,
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
        Self {
            queue: 16,
            checkpoint_interval_ms: 60_000,
            workers: Workers::ONE,
            next_day_lead_s: 1800,
            builds_at_once: limit(4),
            builds_per_domain: limit(2),
            provenance_window: 100_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_workers_is_one_that_can_run() {
        let read = |text| serde_json::from_str::<DataflowConfig>(text).map(|config| config.workers.count());
        assert_eq!(read("{}").unwrap(), 1);
        assert_eq!(read(r#"{"workers": 255}"#).unwrap(), 255);
        for wrong in [r#"{"workers": 0}"#, r#"{"workers": 256}"#, r#"{"workers": -1}"#] {
            assert!(read(wrong).unwrap_err().to_string().contains("from 1 to 255"), "{wrong}");
        }
        assert_eq!("3".parse::<Workers>().unwrap().count(), 3);
        assert_eq!("0".parse::<Workers>(), Err(WorkersError));
    }
}
