//! Committed records on their way to readers in the same process.
//!
//! Writers never wait for a reader: a full channel drops the group, and the reader finds the missing numbers in the outbox.

use std::sync::Arc;

use metrics::Counter;
use parking_lot::Mutex;
use schemas::change::ChangeRecord;
use tokio::sync::mpsc::{self, error::TrySendError};

/// The records of one commit.
pub(crate) type Group = Arc<[Arc<ChangeRecord>]>;

/// Passes committed groups to every reader.
pub(crate) struct Handover {
    /// One channel per reader. A lock because readers come and go; held for a few pushes, never over an await.
    readers: Mutex<Vec<mpsc::Sender<Group>>>,
    missed: Counter,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").field("readers", &self.readers.lock().len()).finish_non_exhaustive()
    }
}

impl Handover {
    /// Without readers.
    pub(crate) fn new(missed: Counter) -> Self {
        Self { readers: Mutex::default(), missed }
    }

    /// A reader's end, which holds at most `capacity` groups.
    pub(crate) fn subscribe(&self, capacity: usize) -> mpsc::Receiver<Group> {
        let (sender, receiver) = mpsc::channel(capacity);
        self.readers.lock().push(sender);
        receiver
    }

    /// Gives a committed group to every reader that has room.
    pub(crate) fn publish(&self, group: &Group) {
        self.readers.lock().retain(|reader| match reader.try_send(Arc::clone(group)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed.increment(u64::try_from(group.len()).unwrap_or_default());
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }
}
