//! A dataflow over a primary store and a change log in memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_trait::async_trait;
use dataflow::{Dataflow, DataflowConfig};
use parking_lot::Mutex;
use schemas::{
    change::{ChangeRecord, ChangedDocument},
    id::DomainId,
    port::{
        Bootstrap, BootstrapDocument, BootstrapScan, ChangeSource, CheckpointStore, SourceError, SourceEvent,
        SystemClock, ViewReader,
    },
    position::{Frontier, Position},
    sample,
    table::{Snapshot, ViewState},
};
use tokio::sync::mpsc;

use super::position;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(600);
/// Records or documents handed over at a time.
const BATCH: usize = 256;

/// A running dataflow and the end of the log that it reads.
pub(crate) struct Live {
    pub(crate) dataflow: Arc<Dataflow>,
    log: mpsc::Sender<SourceEvent>,
}

/// What a dataflow starts with.
pub(crate) struct Start {
    /// What the store holds, in batches.
    pub(crate) scan: Box<dyn Iterator<Item = Vec<BootstrapDocument>> + Send>,
    /// How far the log has come.
    pub(crate) through: usize,
    pub(crate) config: DataflowConfig,
    pub(crate) checkpoints: Option<Arc<dyn CheckpointStore>>,
}

impl Default for Start {
    fn default() -> Self {
        Self { scan: Box::new(std::iter::empty()), through: 0, config: DataflowConfig::default(), checkpoints: None }
    }
}

impl Live {
    /// Starts a dataflow whose store holds `documents`, and whose log has come to `through`.
    pub(crate) fn start(documents: Vec<ChangedDocument>, through: usize) -> anyhow::Result<Self> {
        let domain = DomainId::new(sample::DOMAIN)?;
        let mut stored = documents.into_iter();
        let scan = std::iter::from_fn(move || {
            let batch = stored.by_ref().take(BATCH);
            let batch: Vec<_> = batch.map(|document| BootstrapDocument { domain: domain.clone(), document }).collect();
            (!batch.is_empty()).then_some(batch)
        });
        Self::open(Start { scan: Box::new(scan), through, ..Start::default() })
    }

    /// Starts a dataflow.
    pub(crate) fn open(start: Start) -> anyhow::Result<Self> {
        let Start { scan, through, config, checkpoints } = start;
        let mut frontier = Frontier::default();
        frontier.advance(position(through));
        let (log, tail) = mpsc::channel(64);
        let store = Store { frontier, left: Mutex::new((Some(scan), Some(tail))) };
        let dataflow = Dataflow::start(config, Arc::new(store), checkpoints, Arc::new(SystemClock));
        Ok(Self { dataflow, log })
    }

    /// Adds something to the log.
    pub(crate) async fn say(&self, event: SourceEvent) -> anyhow::Result<()> {
        self.log.send(event).await.ok().context("the dataflow has stopped reading")
    }

    /// Adds records to the log and waits until the last is visible.
    pub(crate) async fn follow(&self, records: &[Arc<ChangeRecord>]) -> anyhow::Result<()> {
        for batch in records.chunks(BATCH) {
            self.say(SourceEvent::Records(batch.to_vec())).await?;
        }
        match records.last() {
            Some(last) => self.visible(&last.domain, last.position).await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits until a record is visible.
    pub(crate) async fn visible(&self, domain: &DomainId, position: Position) -> anyhow::Result<Arc<Snapshot>> {
        Ok(self.dataflow.wait_for(domain, position, DEADLINE).await?)
    }

    /// How long the dataflow takes to say that nothing newer was missing.
    pub(crate) async fn idle_tick(&self) -> anyhow::Result<Duration> {
        let before = self.dataflow.snapshot().sources_seen_at;
        let started = Instant::now();
        self.say(SourceEvent::Idle).await?;
        while self.dataflow.snapshot().sources_seen_at <= before {
            anyhow::ensure!(started.elapsed() < Duration::from_secs(10), "an idle tick was not published");
            std::thread::yield_now();
        }
        Ok(started.elapsed())
    }

    /// Waits until there is a snapshot and all its views are live.
    pub(crate) async fn settled(&self) -> anyhow::Result<Arc<Snapshot>> {
        let begun = Instant::now();
        loop {
            let snapshot = self.dataflow.snapshot();
            let mut views = snapshot.domains.values().flat_map(|domain| domain.views.iter());
            if self.dataflow.ready() && views.all(|view| view.state == ViewState::Live) {
                return Ok(snapshot);
            }
            anyhow::ensure!(begun.elapsed() < DEADLINE, "the views have not become live in {DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

type Stored = Box<dyn Iterator<Item = Vec<BootstrapDocument>> + Send>;

/// What is there before the dataflow starts, to be taken once.
struct Store {
    frontier: Frontier,
    left: Mutex<(Option<Stored>, Option<mpsc::Receiver<SourceEvent>>)>,
}

struct Scan(Frontier, Stored);

struct Tail(mpsc::Receiver<SourceEvent>);

#[async_trait]
impl Bootstrap for Store {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        let stored = self.left.lock().0.take().ok_or_else(gone)?;
        Ok(Box::new(Scan(self.frontier.clone(), stored)))
    }

    async fn changes(&self, _: Frontier) -> Result<Box<dyn ChangeSource>, SourceError> {
        let tail = self.left.lock().1.take().ok_or_else(gone)?;
        Ok(Box::new(Tail(tail)))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Ok(String::new())
    }

    async fn kept(&self, _: &str, _: &Frontier) -> Result<(), SourceError> {
        Ok(())
    }
}

fn gone() -> SourceError {
    SourceError::Unavailable("the log is read once".to_owned())
}

#[async_trait]
impl BootstrapScan for Scan {
    fn frontier(&self) -> Frontier {
        self.0.clone()
    }

    fn expected(&self) -> u64 {
        0
    }

    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        Ok(self.1.next())
    }
}

#[async_trait]
impl ChangeSource for Tail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        match tokio::time::timeout(Duration::from_millis(100), self.0.recv()).await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(gone()),
            Err(_) => Ok(SourceEvent::Idle),
        }
    }
}
