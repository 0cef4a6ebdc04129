//! The way into the lanes: a bounded queue each, and the writers behind it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use schemas::{
    port::Clock,
    position::{LaneId, Position},
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    DirectoryReceipt, DirectoryWrite, Job, Operation, Receipt, Submission,
    writer::{Shared, Writer},
};
use crate::{
    changelog::handover::Handover, config::IngestConfig, error::WriteError, metrics::IngestMetrics,
    store::databases::Databases,
};

/// The queues of all lanes of this process.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Sending ends; emptied at shutdown, so that writers drain their queue and end. A lock because that happens once while
    /// requests read; never held over an await.
    queues: RwLock<HashMap<LaneId, mpsc::Sender<Job>>>,
    metrics: IngestMetrics,
}

impl Lanes {
    /// Starts the writers of every lane; they belong to `tasks`.
    pub(crate) fn start(
        config: &IngestConfig,
        databases: &Databases,
        handover: &Arc<Handover>,
        clock: &Arc<dyn Clock>,
        metrics: &IngestMetrics,
        tasks: &TaskTracker,
    ) -> Self {
        let mut queues = HashMap::new();
        let lanes = databases.all().flat_map(|database| database.lanes(config.lanes).map(move |lane| (database, lane)));
        for (database, lane) in lanes {
            let (sender, receiver) = mpsc::channel(config.queue);
            let shared = Arc::new(Shared {
                lane,
                queue: Mutex::new(receiver),
                max_group: config.max_group,
                address: database.pool.address().clone(),
                lock_wait: Duration::from_millis(config.lock_wait_ms),
                handover: Arc::clone(handover),
                clock: Arc::clone(clock),
                metrics: metrics.clone(),
            });
            for _ in 0..config.connections_per_lane {
                tasks.spawn(Writer::new(Arc::clone(&shared)).run());
            }
            queues.insert(lane, sender);
        }
        Self { queues: RwLock::new(queues), metrics: metrics.clone() }
    }

    /// Stores a form; returns once it is durable.
    ///
    /// # Errors
    /// [`WriteError`]; nothing of the form was stored then.
    pub(crate) async fn submit(&self, lane: LaneId, submission: Submission) -> Result<Receipt, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.send(lane, Job::Form { submission: Box::new(submission), reply })?;
        answer.await.map_err(|_| WriteError::Internal)?
    }

    /// Does something to a stored form or case; returns the record's position once it is durable.
    ///
    /// # Errors
    /// [`WriteError`]; nothing changed then.
    pub(crate) async fn operate(&self, lane: LaneId, operation: Operation) -> Result<Position, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.send(lane, Job::Operation { operation, reply })?;
        answer.await.map_err(|_| WriteError::Internal)?
    }

    /// Stores users, locations or definitions; returns once they are durable.
    ///
    /// # Errors
    /// [`WriteError`]; nothing was stored then.
    pub(crate) async fn write(&self, lane: LaneId, write: DirectoryWrite) -> Result<DirectoryReceipt, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.send(lane, Job::Directory { write, reply })?;
        answer.await.map_err(|_| WriteError::Internal)?
    }

    /// True if a lane's queue has no room now.
    pub(crate) fn is_full(&self, lane: LaneId) -> bool {
        self.queues.read().get(&lane).is_some_and(|queue| queue.capacity() == 0)
    }

    fn send(&self, lane: LaneId, job: Job) -> Result<(), WriteError> {
        let queues = self.queues.read();
        if queues.is_empty() {
            return Err(WriteError::Stopping);
        }
        let Some(queue) = queues.get(&lane) else {
            tracing::error!(%lane, "a domain belongs to a lane that this process does not have; raise `ingest.lanes`");
            return Err(WriteError::Unavailable);
        };
        queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                self.metrics.busy.increment(1);
                WriteError::Busy
            }
            mpsc::error::TrySendError::Closed(_) => WriteError::Stopping,
        })
    }

    /// Takes no more jobs; writers end when what is queued is stored.
    pub(crate) fn close(&self) {
        self.queues.write().clear();
    }
}
