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
        Bootstrap, BootstrapDocument, BootstrapScan, ChangeSource, SourceError, SourceEvent, SystemClock, ViewReader,
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

impl Live {
    /// Starts a dataflow whose store holds `documents`, and whose log has come to `through`.
    pub(crate) fn start(documents: Vec<ChangedDocument>, through: usize) -> anyhow::Result<Self> {
        let domain = DomainId::new(sample::DOMAIN)?;
        let stored =
            documents.into_iter().map(|document| BootstrapDocument { domain: domain.clone(), document }).collect();
        let mut frontier = Frontier::default();
        frontier.advance(position(through));
        let (log, tail) = mpsc::channel(64);
        let store = Store { frontier, left: Mutex::new(Some((stored, tail))) };
        let dataflow = Dataflow::start(DataflowConfig::default(), Arc::new(store), None, Arc::new(SystemClock));
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

type Left = (Vec<BootstrapDocument>, mpsc::Receiver<SourceEvent>);

/// What is there before the dataflow starts, to be taken once.
struct Store {
    frontier: Frontier,
    left: Mutex<Option<Left>>,
}

struct Scan(Frontier, std::vec::IntoIter<BootstrapDocument>);

struct Tail(mpsc::Receiver<SourceEvent>);

#[async_trait]
impl Bootstrap for Store {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        let documents = self.left.lock().as_mut().map(|(documents, _)| std::mem::take(documents));
        Ok(Box::new(Scan(self.frontier.clone(), documents.unwrap_or_default().into_iter())))
    }

    async fn changes(&self, _: Frontier) -> Result<Box<dyn ChangeSource>, SourceError> {
        let (_, tail) = self.left.lock().take().ok_or_else(gone)?;
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
        u64::try_from(self.1.len()).unwrap_or(u64::MAX)
    }

    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        let batch: Vec<_> = self.1.by_ref().take(BATCH).collect();
        Ok((!batch.is_empty()).then_some(batch))
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
