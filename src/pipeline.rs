//! The dataflow behind a primary store that holds nothing but definitions of views, and a change log in memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_trait::async_trait;
use dataflow::{Dataflow, DataflowConfig};
use parking_lot::Mutex;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{DocId, DomainId},
    port::{Bootstrap, BootstrapDocument, BootstrapScan, ChangeSource, Clock, SourceError, SourceEvent, ViewReader},
    position::{Frontier, Position, Stamp},
    sample,
    table::{Snapshot, ViewState},
};
use serde_json::{Value, value::RawValue};
use tokio::sync::mpsc;

/// Longest wait for anything to become visible.
const DEADLINE: Duration = Duration::from_secs(600);
/// Batches that the log holds before who adds to it has to wait.
const QUEUE: usize = 16;
/// A source says at least this often that nothing has come.
const IDLE: Duration = Duration::from_millis(100);

/// A running dataflow and the end of the log that it reads.
pub(crate) struct Pipeline {
    dataflow: Arc<Dataflow>,
    log: Log,
}

/// The end of the log.
#[derive(Clone)]
pub(crate) struct Log(mpsc::Sender<SourceEvent>);

impl Log {
    /// Adds records, on a thread that may wait; waits while the log is full.
    ///
    /// # Errors
    /// The dataflow has stopped.
    pub(crate) fn add_blocking(&self, records: Vec<Arc<ChangeRecord>>) -> anyhow::Result<()> {
        self.0.blocking_send(SourceEvent::Records(records)).ok().context("the dataflow has stopped reading")
    }
}

impl Pipeline {
    /// Starts it with these definitions.
    pub(crate) fn start(config: DataflowConfig, definitions: Vec<BootstrapDocument>, clock: Arc<dyn Clock>) -> Self {
        let (log, tail) = mpsc::channel(QUEUE);
        let store = Store { definitions, tail: Mutex::new(Some(tail)) };
        let dataflow = Dataflow::start(config, Arc::new(store), None, clock);
        Self { dataflow, log: Log(log) }
    }

    /// Waits until the views of a domain are live.
    ///
    /// # Errors
    /// A view cannot be maintained.
    pub(crate) async fn live(&self, domain: &DomainId) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.views_are_live(domain)? {
            anyhow::ensure!(begun.elapsed() < DEADLINE, "the views have not become live in {DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn views_are_live(&self, domain: &DomainId) -> anyhow::Result<bool> {
        let snapshot = self.snapshot();
        let Some(tables) = snapshot.domains.get(domain).filter(|_| self.dataflow.ready()) else {
            return Ok(false);
        };
        for view in tables.views.iter() {
            match &view.state {
                ViewState::Live => {}
                ViewState::Waiting | ViewState::Building(_) => return Ok(false),
                ViewState::Paused { .. } => anyhow::bail!("the view {} is paused", view.id),
                ViewState::Failed { message } => anyhow::bail!("the view {} cannot be maintained: {message}", view.id),
            }
        }
        Ok(true)
    }

    /// Who reads what it publishes.
    pub(crate) fn reader(&self) -> Arc<dyn ViewReader> {
        Arc::<Dataflow>::clone(&self.dataflow)
    }

    /// Adds records to the log; waits while it is full.
    ///
    /// # Errors
    /// The dataflow has stopped.
    pub(crate) async fn send(&self, records: Vec<Arc<ChangeRecord>>) -> anyhow::Result<()> {
        self.log.0.send(SourceEvent::Records(records)).await.ok().context("the dataflow has stopped reading")
    }

    /// The end of the log, for a thread of its own.
    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// Documents that each worker has taken in so far.
    pub(crate) fn worker_records(&self) -> Vec<u64> {
        self.dataflow.worker_records()
    }

    /// The newest snapshot.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.dataflow.snapshot()
    }

    /// Waits until a record is visible in the tables of its domain.
    ///
    /// # Errors
    /// It is not in time, or the dataflow has stopped.
    pub(crate) async fn visible(&self, domain: &DomainId, position: Position) -> anyhow::Result<Arc<Snapshot>> {
        Ok(self.dataflow.wait_for(domain, position, DEADLINE).await?)
    }

    /// Stops the dataflow.
    pub(crate) async fn stop(self) {
        self.dataflow.shutdown().await;
    }
}

/// The sample program's definitions, put in that domain.
///
/// # Errors
/// A definition cannot be read; tests read all of them.
pub(crate) fn sample_program(domain: &DomainId) -> anyhow::Result<Vec<BootstrapDocument>> {
    let sources = sample::DATA_SOURCES.iter().map(|definition| (DocKind::DataSource, definition));
    let views = sample::AGGREGATE_VIEWS.iter().map(|definition| (DocKind::AggregateView, definition));
    let mut documents = Vec::new();
    for (kind, (id, text)) in sources.chain(views) {
        let mut definition: Value = serde_json::from_str(text)?;
        if let Some(fields) = definition.as_object_mut() {
            fields.insert("domain".to_owned(), Value::from(domain.as_str()));
        }
        let document = ChangedDocument {
            kind,
            id: DocId::new(id)?,
            stamp: Stamp(0),
            document_type: String::new(),
            subtype: None,
            body: Some(Arc::from(RawValue::from_string(definition.to_string())?)),
        };
        documents.push(BootstrapDocument { domain: domain.clone(), document });
    }
    Ok(documents)
}

struct Store {
    definitions: Vec<BootstrapDocument>,
    /// Taken by who opens the log first: what it has read cannot be read again.
    tail: Mutex<Option<mpsc::Receiver<SourceEvent>>>,
}

struct Scan(Option<Vec<BootstrapDocument>>);

struct Tail(mpsc::Receiver<SourceEvent>);

#[async_trait]
impl Bootstrap for Store {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        Ok(Box::new(Scan(Some(self.definitions.clone()))))
    }

    async fn changes(&self, _: Frontier) -> Result<Box<dyn ChangeSource>, SourceError> {
        Ok(Box::new(Tail(self.tail.lock().take().ok_or_else(gone)?)))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Ok(String::new())
    }

    async fn kept(&self, _: &str, _: &Frontier) -> Result<(), SourceError> {
        Ok(())
    }
}

fn gone() -> SourceError {
    SourceError::Unavailable("the log in memory is read once".to_owned())
}

#[async_trait]
impl BootstrapScan for Scan {
    fn frontier(&self) -> Frontier {
        Frontier::default()
    }

    fn expected(&self) -> u64 {
        self.0.as_ref().map_or(0, |documents| u64::try_from(documents.len()).unwrap_or(u64::MAX))
    }

    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        Ok(self.0.take())
    }
}

#[async_trait]
impl ChangeSource for Tail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        match tokio::time::timeout(IDLE, self.0.recv()).await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(gone()),
            Err(_) => Ok(SourceEvent::Idle),
        }
    }
}
