//! The running dataflow: its threads, the pump that feeds them, and the port through which it is read.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use schemas::{
    port::{Bootstrap, Clock, SourceError, SourceEvent, ViewReader, WaitError},
    position::Position,
    table::Snapshot,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    clock::{Event, TickClock},
    config::{DataflowConfig, Workers},
    document::{Arriving, Record},
    error::DataflowError,
    metrics::{Metrics, WorkerRecords},
    peers::{self, Lead},
    snapshot::Publisher,
};

/// First and longest pause before a failed source is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A running dataflow.
#[derive(Debug)]
pub struct Dataflow {
    publisher: Arc<Publisher>,
    records: WorkerRecords,
    stop: watch::Sender<bool>,
    running: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Dataflow {
    /// Starts reading: a scan of the primary store first, then the change log behind it. Returns at once;
    /// [`ViewReader::ready`] tells when the first complete snapshot is published.
    ///
    /// Must be called inside a tokio runtime, whose threads wait for the sources; ticks run on threads of their own.
    #[must_use]
    pub fn start(config: DataflowConfig, bootstrap: Arc<dyn Bootstrap>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let publisher = Arc::new(Publisher::new());
        let records = WorkerRecords::new(config.workers);
        let (stop, stopped) = watch::channel(false);
        let supervisor = Supervisor {
            config,
            bootstrap,
            clock,
            publisher: Arc::clone(&publisher),
            records: records.clone(),
            stopped,
        };
        let running = tokio::spawn(supervisor.run());
        Arc::new(Self { publisher, records, stop, running: tokio::sync::Mutex::new(Some(running)) })
    }

    /// Documents that each worker has taken in so far.
    #[must_use]
    pub fn worker_records(&self) -> Vec<u64> {
        self.records.counts()
    }

    /// Stops reading and ends the threads. The last snapshot stays readable.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        if let Some(running) = self.running.lock().await.take()
            && let Err(error) = running.await
        {
            tracing::error!(%error, "the dataflow's supervisor did not end cleanly");
        }
    }
}

#[async_trait]
impl ViewReader for Dataflow {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.publisher.snapshot()
    }

    fn ready(&self) -> bool {
        self.publisher.ready()
    }

    async fn wait_for(&self, position: Position, timeout: Duration) -> Result<Arc<Snapshot>, WaitError> {
        self.publisher.wait_for(position, timeout).await
    }
}

/// Keeps an engine running; after a failure that only a new bootstrap repairs, builds a new one while readers keep the
/// last snapshot.
struct Supervisor {
    config: DataflowConfig,
    bootstrap: Arc<dyn Bootstrap>,
    clock: Arc<dyn Clock>,
    publisher: Arc<Publisher>,
    records: WorkerRecords,
    stopped: watch::Receiver<bool>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = RETRY.0;
        while !*self.stopped.borrow() {
            let (events, receiver) = mpsc::channel(self.config.queue.max(1));
            let threads = self.threads(receiver);
            let mut stopped = self.stopped.clone();
            let ended = tokio::select! {
                ended = self.pump(&events) => ended,
                _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
            };
            drop(events);
            match threads.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the dataflow engine failed and is built anew"),
                Err(error) => tracing::error!(%error, "the dataflow engine ended early and is built anew"),
            }
            if let Err(error) = ended {
                tracing::warn!(%error, "the dataflow starts again from the primary store");
            }
            let wait = tokio::time::timeout(pause, self.stopped.wait_for(|stopped| *stopped)).await;
            if wait.is_ok() {
                return;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    const fn workers(&self) -> Workers {
        self.config.workers
    }

    /// Starts the workers on threads of their own; the clock runs on the first one's.
    fn threads(&self, mut events: mpsc::Receiver<Event>) -> JoinHandle<Result<(), DataflowError>> {
        let (publisher, wall, workers) = (Arc::clone(&self.publisher), Arc::clone(&self.clock), self.workers());
        let metrics = Metrics::new(self.records.clone());
        let lead = move |mut lead: Lead<'_>| {
            let run_tick = |batch: &_, documents| lead.tick(batch, documents);
            TickClock::new(run_tick, workers, publisher, wall, metrics).follow(&mut events)
        };
        tokio::task::spawn_blocking(move || peers::run(workers, lead))
    }

    /// Moves a scan and then the change log into the engine. Ends only with an error, or when the engine is gone.
    async fn pump(&self, events: &mpsc::Sender<Event>) -> Result<(), SourceError> {
        let frontier = loop {
            match self.scan(events).await {
                Ok(frontier) => break frontier,
                Err(Pumped::Gone) => return Ok(()),
                Err(Pumped::Failed { error, sent: false }) => {
                    tracing::warn!(%error, "could not scan the primary store; trying again");
                    tokio::time::sleep(RETRY.1).await;
                }
                Err(Pumped::Failed { error, sent: true }) => return Err(error),
            }
        };
        let mut source = self.bootstrap.changes(frontier).await?;
        let mut pause = RETRY.0;
        loop {
            let event = match source.next().await {
                Ok(SourceEvent::Records(records)) => {
                    Event::Records(records.iter().map(|record| Record::read(record, self.workers())).collect())
                }
                Ok(SourceEvent::Idle) => Event::Idle,
                Ok(SourceEvent::Stalled(_)) => Event::Stalled,
                Err(error @ SourceError::Gap { .. }) => return Err(error),
                Err(error @ SourceError::Unavailable(_)) => {
                    tracing::warn!(%error, "the change log cannot be read; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    continue;
                }
            };
            pause = RETRY.0;
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn scan(&self, events: &mpsc::Sender<Event>) -> Result<schemas::position::Frontier, Pumped> {
        let failed = |sent| move |error| Pumped::Failed { error, sent };
        let mut scan = self.bootstrap.scan().await.map_err(failed(false))?;
        let frontier = scan.frontier();
        tracing::info!(expected = scan.expected(), %frontier, "reading documents from the primary store");
        while let Some(documents) = scan.next().await.map_err(failed(true))? {
            let read = documents.iter().map(|found| Arriving::read(&found.domain, &found.document, self.workers()));
            let read = read.collect();
            events.send(Event::Documents(read)).await.map_err(|_| Pumped::Gone)?;
        }
        events.send(Event::ScanDone(frontier.clone())).await.map_err(|_| Pumped::Gone)?;
        Ok(frontier)
    }
}

/// Why a scan ended early.
enum Pumped {
    /// The engine takes no more.
    Gone,
    /// The store failed; if documents were sent already, the engine has to be built anew.
    Failed { error: SourceError, sent: bool },
}

#[cfg(test)]
mod tests;
