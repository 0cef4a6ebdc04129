//! Sends changes at a rate and measures when W1 shows them.
//!
//! Open loop: change `i` is due at `t0 + i / rate` whether or not the dataflow has kept up, so queueing counts. A
//! transaction goes out when its last change is due. Source of the definitions: the shared workload's description.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use hdrhistogram::Histogram;
use schemas::{
    change::{ChangeRecord, DocKind},
    id::{DocId, DomainId},
    position::{Position, Stamp},
    row::Cell,
    table::{Snapshot, TableName},
};
use tokio::sync::mpsc;

use super::log::Transaction;
use crate::pipeline::Pipeline;

/// Case type of W1's rows.
const PREGNANCY: &str = "pregnancy";
/// Transactions that may wait for the watcher.
const UNSEEN: usize = 65_536;

/// What was measured.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// Changes sent.
    pub(crate) changes: u64,
    /// From the first due time until the last change was visible.
    pub(crate) took: Duration,
    /// From the first due time to the last.
    pub(crate) sending: Duration,
    /// Microseconds from due time to visible, of every change of a pregnancy.
    pub(crate) freshness: Histogram<u64>,
}

/// A transaction on its way.
struct Sent {
    position: Position,
    pregnancies: Vec<Change>,
}

struct Change {
    due: Instant,
    id: DocId,
    stamp: Stamp,
}

/// Due times.
#[derive(Clone, Copy)]
struct Schedule {
    begin: Instant,
    rate: u32,
}

impl Schedule {
    /// When the change of that number, from 0, is due.
    fn due(self, number: u64) -> Instant {
        self.begin + self.until(number)
    }

    fn until(self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / f64::from(self.rate))
    }
}

/// Sends `limit` changes (whole transactions, and no more than there are) and waits until the last is visible.
///
/// # Errors
/// A transaction cannot be read, or does not become visible.
pub(crate) async fn send(
    pipeline: &Pipeline,
    domain: &DomainId,
    transactions: mpsc::Receiver<anyhow::Result<Transaction>>,
    rate: u32,
    limit: u64,
) -> anyhow::Result<Fresh> {
    let schedule = Schedule { begin: Instant::now(), rate };
    let (unseen, mut sent) = mpsc::channel(UNSEEN);
    let log = pipeline.log();
    // A thread of its own, because a timer of the runtime is a millisecond late.
    let sender = tokio::task::spawn_blocking(move || {
        let deliver = |records| log.add_blocking(records);
        Sender { transactions, schedule, limit, number: 0, unseen }.run(deliver)
    });
    let mut freshness = Histogram::new(3)?;
    let mut last = schedule.begin;
    while let Some(Sent { position, pregnancies }) = sent.recv().await {
        let mut snapshot = pipeline.visible(domain, position).await?;
        last = Instant::now();
        for change in pregnancies {
            while !shows(&snapshot, domain, &change)? {
                // Its row has been replaced since: a newer snapshot shows the later change.
                tokio::task::yield_now().await;
                snapshot = pipeline.snapshot();
            }
            let late = Instant::now().saturating_duration_since(change.due);
            freshness.record(u64::try_from(late.as_micros())?)?;
        }
    }
    let changes = sender.await??;
    Ok(Fresh { changes, took: last - schedule.begin, sending: schedule.until(changes), freshness })
}

struct Sender {
    transactions: mpsc::Receiver<anyhow::Result<Transaction>>,
    schedule: Schedule,
    limit: u64,
    number: u64,
    unseen: mpsc::Sender<Sent>,
}

impl Sender {
    /// Hands over every transaction when it is due, together with whatever else is; returns the number of changes.
    fn run(mut self, deliver: impl Fn(Vec<Arc<ChangeRecord>>) -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let mut next = None;
        while self.number < self.limit {
            let Some(first) = next.take().or_else(|| self.transactions.blocking_recv()).transpose()? else { break };
            std::thread::sleep(self.due(&first).saturating_duration_since(Instant::now()));
            let mut batch = vec![first];
            let mut number = self.number + batch.iter().map(Transaction::changes).sum::<u64>();
            while number < self.limit
                && let Ok(read) = self.transactions.try_recv()
            {
                let read = read?;
                number += read.changes();
                if self.schedule.due(number - 1) > Instant::now() {
                    next = Some(Ok(read));
                    break;
                }
                batch.push(read);
            }
            let sent: Vec<Sent> = batch.iter().map(|transaction| self.sent(transaction)).collect();
            deliver(batch.into_iter().map(|transaction| transaction.record).collect())?;
            for sent in sent {
                self.unseen.blocking_send(sent).ok().context("nobody watches the changes any more")?;
            }
        }
        Ok(self.number)
    }

    /// When the last change of the transaction that goes out next is due.
    fn due(&self, transaction: &Transaction) -> Instant {
        self.schedule.due((self.number + transaction.changes()).saturating_sub(1))
    }

    fn sent(&mut self, transaction: &Transaction) -> Sent {
        let record = &transaction.record;
        let mut pregnancies = Vec::new();
        for document in &record.documents {
            if document.kind == DocKind::Case && document.subtype.as_deref() == Some(PREGNANCY) {
                let due = self.schedule.due(self.number);
                pregnancies.push(Change { due, id: document.id.clone(), stamp: document.stamp });
            }
            self.number += 1;
        }
        Sent { position: record.position, pregnancies }
    }
}

/// True if W1 shows that change or a later one of the same case; false if the table's index has moved on and only a newer
/// snapshot can say.
fn shows(snapshot: &Snapshot, domain: &DomainId, change: &Change) -> anyhow::Result<bool> {
    let tables = snapshot.domains.get(domain).map(|domain| &domain.tables);
    let table =
        tables.and_then(|tables| tables.get(&TableName::new("ucr", "pregnancies"))).context("there is no W1")?;
    let index = table.index.as_ref().context("W1 has no index")?;
    let Some(places) = index.find(table, change.id.as_str()) else { return Ok(false) };
    let stamp = places.first().zip(table.stamp_column).and_then(|((segment, row), column)| {
        let array = table.segments.get(*segment)?.batch.columns().get(column)?;
        Some(table.schema.columns.get(column)?.column_type.cell(array, *row))
    });
    match stamp {
        Some(Cell::Datetime(stamp)) if stamp >= change.stamp.0 => Ok(true),
        _ => anyhow::bail!("W1 does not show a change of the case {} in the snapshot that claims it", change.id),
    }
}
