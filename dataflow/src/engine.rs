//! The running dataflow: its threads, the pump that feeds them, and the port through which it is read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{
    id::DomainId,
    inside::{Explained, Measured, ProvenanceError, ProvenanceQuestion},
    port::{Bootstrap, CheckpointStore, Clock, SourceError, SourceEvent, ViewReader, WaitError},
    position::{Frontier, Position},
    table::Snapshot,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    checkpoint::{CheckpointError, Keeper, Reader, Writer},
    clock::{Event, TickClock},
    config::{DataflowConfig, Workers},
    document::{Arriving, Record},
    error::DataflowError,
    meter::Meters,
    metrics::{Metrics, WorkerRecords},
    peers::{self, Lead},
    provenance::{Ask, Found},
    snapshot::Publisher,
};

/// First and longest pause before a failed source is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A running dataflow.
#[derive(Debug)]
pub struct Dataflow {
    publisher: Arc<Publisher>,
    records: WorkerRecords,
    meters: Meters,
    clock: ToClock,
    stop: watch::Sender<bool>,
    running: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Dataflow {
    /// Starts reading: the newest checkpoint, or else a scan of the primary store, then the change log behind it. Returns at
    /// once; [`ViewReader::ready`] tells when the first complete snapshot is published. Without `checkpoints` none are read or
    /// written.
    ///
    /// Must be called inside a tokio runtime, whose threads wait for the sources; ticks run on threads of their own.
    #[must_use]
    pub fn start(
        config: DataflowConfig,
        bootstrap: Arc<dyn Bootstrap>,
        checkpoints: Option<Arc<dyn CheckpointStore>>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let publisher = Arc::new(Publisher::new());
        let records = WorkerRecords::new(config.workers);
        let (meters, to_clock) = (Meters::default(), ToClock::default());
        let (stop, stopped) = watch::channel(false);
        let checkpoints = checkpoints.filter(|_| config.checkpoint_interval_ms > 0);
        let supervisor = Supervisor {
            config,
            bootstrap,
            checkpoints,
            usable: true,
            clock,
            publisher: Arc::clone(&publisher),
            records: records.clone(),
            meters: meters.clone(),
            to_clock: Arc::clone(&to_clock),
            stopped,
        };
        let running = tokio::spawn(supervisor.run());
        let running = tokio::sync::Mutex::new(Some(running));
        Arc::new(Self { publisher, records, meters, clock: to_clock, stop, running })
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

    async fn wait_for(
        &self,
        domain: &DomainId,
        position: Position,
        timeout: Duration,
    ) -> Result<Arc<Snapshot>, WaitError> {
        self.publisher.wait_for(domain, position, timeout).await
    }

    fn measured(&self, domain: &DomainId) -> Measured {
        self.meters.measured(domain)
    }

    async fn provenance(&self, question: ProvenanceQuestion, timeout: Duration) -> Result<Explained, ProvenanceError> {
        let until = Instant::now() + timeout;
        let answered = async {
            let events = self.clock.lock().as_ref().and_then(mpsc::WeakSender::upgrade);
            let events = events.ok_or(ProvenanceError::Unavailable)?;
            let key = question.key.clone();
            let (reply, answer) = oneshot::channel();
            let sent = events.send(Event::Ask(Ask { question, reply })).await;
            drop(events);
            sent.map_err(|_| ProvenanceError::Unavailable)?;
            match answer.await.map_err(|_| ProvenanceError::Unavailable)?? {
                Found::Explained(explained) => Ok(explained),
                // A pass over many rows must not hold up the threads that serve connections.
                Found::Groups(trail) => tokio::task::spawn_blocking(move || trail.follow(key.as_deref(), until))
                    .await
                    .map_err(|_| ProvenanceError::Unavailable)?,
            }
        };
        let answered = tokio::time::timeout(timeout, answered).await;
        answered.unwrap_or(Err(ProvenanceError::Timeout { after: timeout }))
    }
}

/// The way to the clock of the engine that runs. It does not keep an engine running that is to end.
type ToClock = Arc<Mutex<Option<mpsc::WeakSender<Event>>>>;

/// Keeps an engine running; after a failure that only a new bootstrap repairs, builds a new one while readers keep the
/// last snapshot.
struct Supervisor {
    config: DataflowConfig,
    bootstrap: Arc<dyn Bootstrap>,
    checkpoints: Option<Arc<dyn CheckpointStore>>,
    /// False once an engine that started from the checkpoint failed: the next one starts from the primary store.
    usable: bool,
    clock: Arc<dyn Clock>,
    publisher: Arc<Publisher>,
    records: WorkerRecords,
    meters: Meters,
    to_clock: ToClock,
    stopped: watch::Receiver<bool>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = RETRY.0;
        while !*self.stopped.borrow() {
            let mut stopped = self.stopped.clone();
            let opened = tokio::select! {
                opened = self.open_checkpoint() => opened,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let Opened { reader, keeper, writing } = opened;
            let (events, receiver) = mpsc::channel(self.config.queue.max(1));
            *self.to_clock.lock() = Some(events.downgrade());
            let threads = self.threads(receiver, keeper);
            let ended = tokio::select! {
                ended = self.pump(&events, reader) => ended,
                _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
            };
            drop(events);
            let ran = match threads.await {
                Ok(ran) => ran,
                Err(error) => Err(DataflowError::Worker(error.to_string())),
            };
            // The next engine's checkpoints go to the same place.
            if let Some(writing) = writing
                && tokio::task::spawn_blocking(move || writing.join()).await.is_err()
            {
                tracing::error!("the writer of checkpoints did not end cleanly");
            }
            if let Err(error) = &ran {
                tracing::error!(%error, "the dataflow engine failed and is built anew");
            }
            if let Err(error) = &ended {
                tracing::error!(%error, "the dataflow starts again from the primary store");
            }
            self.usable = ran.is_ok() && ended.is_ok();
            let wait = tokio::time::timeout(pause, self.stopped.wait_for(|stopped| *stopped)).await;
            if wait.is_ok() {
                return;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Opens the newest checkpoint, if it can be used, and starts the writer of the next ones.
    async fn open_checkpoint(&self) -> Opened {
        let Some(store) = &self.checkpoints else { return Opened::default() };
        let identity = loop {
            match self.bootstrap.identity().await {
                Ok(identity) => break identity,
                Err(error) => {
                    tracing::warn!(%error, "could not reach the primary store; trying again");
                    tokio::time::sleep(RETRY.1).await;
                }
            }
        };
        let reader = match Reader::open(Arc::clone(store), &identity).await {
            Ok(reader) => reader.filter(|_| self.usable),
            Err(error) => {
                tracing::error!(%error, "starting from the primary store");
                None
            }
        };
        let before = reader.as_ref().map(|reader| reader.manifest().clone());
        let writer = Writer::start(Arc::clone(store), Arc::clone(&self.bootstrap), identity, before);
        let every = Duration::from_millis(self.config.checkpoint_interval_ms);
        match writer {
            Ok((writer, thread)) => Opened { reader, keeper: Some(Keeper::new(writer, every)), writing: Some(thread) },
            Err(error) => {
                tracing::error!(%error, "checkpoints cannot be written");
                Opened { reader, ..Opened::default() }
            }
        }
    }

    const fn workers(&self) -> Workers {
        self.config.workers
    }

    /// Starts the workers on threads of their own; the clock runs on the first one's.
    fn threads(
        &self,
        mut events: mpsc::Receiver<Event>,
        keeper: Option<Keeper>,
    ) -> JoinHandle<Result<(), DataflowError>> {
        let (publisher, wall, config) = (Arc::clone(&self.publisher), Arc::clone(&self.clock), self.config.clone());
        let (workers, meters) = (config.workers, self.meters.clone());
        let metrics = Metrics::new(self.records.clone());
        let lead = move |mut lead: Lead<'_>| {
            let run_tick = |batch: &_, shares| lead.tick(batch, shares);
            TickClock::new(&config, run_tick, publisher, wall, metrics, keeper).follow(&mut events)
        };
        tokio::task::spawn_blocking(move || peers::run(workers, meters, lead))
    }

    /// Moves a checkpoint or a scan, and then the change log, into the engine. Ends only with an error, or when the engine is
    /// gone.
    async fn pump(&self, events: &mpsc::Sender<Event>, reader: Option<Reader>) -> Result<(), PumpError> {
        let frontier = match reader {
            Some(reader) => match self.restore(events, reader).await? {
                Some(frontier) => frontier,
                None => return Ok(()),
            },
            None => match self.scan_until_done(events).await? {
                Some(frontier) => frontier,
                None => return Ok(()),
            },
        };
        let mut pause = RETRY.0;
        let mut source = loop {
            match self.bootstrap.changes(frontier.clone()).await {
                Ok(source) => break source,
                Err(error @ SourceError::Gap { .. }) => return Err(error.into()),
                Err(error @ SourceError::Unavailable(_)) => {
                    tracing::warn!(%error, "the change log cannot be opened; trying again");
                    tokio::time::sleep(RETRY.1).await;
                }
            }
        };
        loop {
            let event = match source.next().await {
                Ok(SourceEvent::Records(records)) => {
                    Event::Records(records.iter().map(|record| Record::read(record, self.workers())).collect())
                }
                Ok(SourceEvent::Idle) => Event::Idle,
                Ok(SourceEvent::IdleIn(lanes)) => Event::IdleIn(lanes),
                // It has not been seen since the last time that it was; the source has said why.
                Ok(SourceEvent::Stalled(_)) => continue,
                Err(error @ SourceError::Gap { .. }) => return Err(error.into()),
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

    /// Moves a checkpoint into the engine; returns the positions at which it stands, or nothing if the engine is gone.
    async fn restore(&self, events: &mpsc::Sender<Event>, mut reader: Reader) -> Result<Option<Frontier>, PumpError> {
        let frontier = reader.frontier();
        tracing::info!(expected = reader.expected(), %frontier, "reading the checkpoint");
        while let Some(documents) = reader.next().await? {
            if events.send(Event::Kept(documents)).await.is_err() {
                return Ok(None);
            }
        }
        let state = Event::Restored(Box::new(reader.state().await?));
        for event in [state, Event::ScanDone(frontier.clone())] {
            if events.send(event).await.is_err() {
                return Ok(None);
            }
        }
        Ok(Some(frontier))
    }

    /// Moves a scan into the engine; tries again until a store that cannot be reached can be. Returns the positions at which the
    /// scan stands, or nothing if the engine is gone.
    async fn scan_until_done(&self, events: &mpsc::Sender<Event>) -> Result<Option<Frontier>, SourceError> {
        loop {
            match self.scan(events).await {
                Ok(frontier) => return Ok(Some(frontier)),
                Err(Pumped::Gone) => return Ok(None),
                Err(Pumped::Failed { error, sent: false }) => {
                    tracing::warn!(%error, "could not scan the primary store; trying again");
                    tokio::time::sleep(RETRY.1).await;
                }
                Err(Pumped::Failed { error, sent: true }) => return Err(error),
            }
        }
    }

    async fn scan(&self, events: &mpsc::Sender<Event>) -> Result<Frontier, Pumped> {
        let failed = |sent| move |error| Pumped::Failed { error, sent };
        let mut scan = self.bootstrap.scan().await.map_err(failed(false))?;
        let frontier = scan.frontier();
        tracing::info!(expected = scan.expected(), %frontier, "reading documents from the primary store");
        while let Some(documents) = scan.next().await.map_err(failed(true))? {
            let read = documents.iter().map(|found| Arriving::read(&found.domain, &found.document, self.workers()));
            let read = read.collect();
            events.send(Event::Documents(read, scan.database())).await.map_err(|_| Pumped::Gone)?;
        }
        events.send(Event::ScanDone(frontier.clone())).await.map_err(|_| Pumped::Gone)?;
        Ok(frontier)
    }
}

/// What an engine starts with: a checkpoint to start from, and the way to the next ones.
#[derive(Default)]
struct Opened {
    reader: Option<Reader>,
    keeper: Option<Keeper>,
    writing: Option<std::thread::JoinHandle<()>>,
}

/// Why the engine got no more.
#[derive(Debug, thiserror::Error)]
enum PumpError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
