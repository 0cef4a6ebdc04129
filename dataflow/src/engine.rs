//! The running dataflow: its threads, the pump that feeds them, and the port through which it is read.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
    config::DataflowConfig,
    document::{Arriving, Record},
    error::DataflowError,
    metrics::Metrics,
    snapshot::Publisher,
    worker::{Engine, TickBatch},
};

/// First and longest pause before a failed source is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A running dataflow.
#[derive(Debug)]
pub struct Dataflow {
    publisher: Arc<Publisher>,
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
        let (stop, stopped) = watch::channel(false);
        let supervisor = Supervisor { config, bootstrap, clock, publisher: Arc::clone(&publisher), stopped };
        let running = tokio::spawn(supervisor.run());
        Arc::new(Self { publisher, stop, running: tokio::sync::Mutex::new(Some(running)) })
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

    /// Starts the worker on a thread of its own; the clock runs on it, so that a tick costs no wake-up.
    fn threads(&self, events: mpsc::Receiver<Event>) -> JoinHandle<Result<(), DataflowError>> {
        let (publisher, wall, config) = (Arc::clone(&self.publisher), Arc::clone(&self.clock), self.config.clone());
        tokio::task::spawn_blocking(move || {
            // Timely wants a closure that every worker could share; what is in it is taken by the only worker.
            let clock = Mutex::new(Some((events, publisher, wall)));
            let guards = timely::execute(timely::Config::thread(), move |worker| {
                let taken = clock.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some((mut events, publisher, wall)) = taken else { return Ok(()) };
                let mut engine = Engine::new(worker);
                let run_tick = |batch: TickBatch| {
                    let mut report = engine.tick(worker, batch);
                    match report.failed.take() {
                        Some(error) => Err(error.into()),
                        None => Ok(report),
                    }
                };
                TickClock::new(&config, run_tick, publisher, wall, Metrics::new()).follow(&mut events)
            })
            .map_err(DataflowError::Worker)?;
            guards.join().into_iter().try_for_each(|ended| ended.map_err(DataflowError::Worker)?)
        })
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
                    Event::Records(records.iter().map(|record| Record::read(record)).collect())
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
            let read = documents.iter().map(|found| Arriving::read(&found.domain, &found.document)).collect();
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
