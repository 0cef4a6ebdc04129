//! A reader of the change log in this process: memory first, the outbox for whatever did not come that way.
//!
//! Numbers of a lane are dense, so a missing one is seen at once. Two writers may hand over out of order; a missing number
//! is waited for briefly and then read from the table. Source: architecture D4, dataflow §4.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use schemas::{
    change::ChangeRecord,
    port::{ChangeSource, SourceError, SourceEvent},
    position::{Frontier, LaneId, Sequence},
};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    handover::{Group, Handover},
    outbox::{self, OutboxError},
};
use crate::store::pool::Pool;

/// How long a number may be missing before the table is asked.
const REORDER: Duration = Duration::from_millis(5);
/// How often the table is asked when nothing comes.
const POLL: Duration = Duration::from_millis(50);
/// Pause after the table could not be read.
const RETRY: Duration = Duration::from_millis(250);
/// Records per question to the table.
const READ: usize = 1000;
/// Records held out of order per lane; beyond it they are forgotten and read from the table.
const HELD: usize = 20_000;

/// A lane's part of a [`Tail`].
#[derive(Debug)]
struct Lane {
    id: LaneId,
    last: Sequence,
    /// Records that came before their turn.
    held: BTreeMap<Sequence, Arc<ChangeRecord>>,
    /// When to ask the table.
    poll_at: Instant,
    /// True if the table held more than was read.
    behind: bool,
}

impl Lane {
    fn hold(&mut self, record: Arc<ChangeRecord>) {
        if record.position.sequence <= self.last {
            return;
        }
        if self.held.is_empty() && record.position.sequence != self.last.next() {
            self.poll_at = self.poll_at.min(Instant::now() + REORDER);
        }
        self.held.insert(record.position.sequence, record);
        if self.held.len() > HELD {
            self.held.clear();
        }
    }

    /// Moves what is next in order to `out`.
    fn release(&mut self, out: &mut Vec<Arc<ChangeRecord>>) {
        let before = out.len();
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() > self.last.next() {
                break;
            }
            let (sequence, record) = entry.remove_entry();
            if sequence == self.last.next() {
                self.last = sequence;
                out.push(record);
            }
        }
        if out.len() > before {
            let wait = if self.held.is_empty() { POLL } else { REORDER };
            self.poll_at = Instant::now() + wait;
        }
    }
}

/// Reads every lane of a database from a frontier on.
#[derive(Debug)]
pub(crate) struct Tail {
    pool: Pool,
    lanes: Vec<Lane>,
    memory: mpsc::Receiver<Group>,
    /// Keeps the channel's sending end alive while this reader lives.
    _handover: Arc<Handover>,
}

impl Tail {
    /// Opens the log behind `from`.
    ///
    /// # Errors
    /// [`SourceError::Gap`] if the log no longer holds what follows; [`SourceError::Unavailable`].
    pub(crate) async fn open(
        pool: Pool,
        handover: Arc<Handover>,
        capacity: usize,
        from: &Frontier,
    ) -> Result<Self, SourceError> {
        let memory = handover.subscribe(capacity);
        let ids = lanes(&pool).await?;
        let now = Instant::now();
        let lanes = ids
            .into_iter()
            .map(|id| Lane { id, last: from.at(id), held: BTreeMap::new(), poll_at: now, behind: false })
            .collect();
        let mut tail = Self { pool, lanes, memory, _handover: handover };
        for at in 0..tail.lanes.len() {
            // Asked for one record, to learn of a gap now.
            tail.ask(at, 1).await?;
        }
        Ok(tail)
    }

    fn hold(&mut self, group: &Group) {
        for record in group.iter() {
            if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == record.position.lane) {
                lane.hold(Arc::clone(record));
            }
        }
    }

    fn release(&mut self) -> Vec<Arc<ChangeRecord>> {
        let mut out = Vec::new();
        for lane in &mut self.lanes {
            lane.release(&mut out);
        }
        out
    }

    /// Asks the table for what follows in the lane at index `at`.
    async fn ask(&mut self, at: usize, limit: usize) -> Result<(), SourceError> {
        let Some(lane) = self.lanes.get(at) else { return Ok(()) };
        let (id, last) = (lane.id, lane.last);
        let answer = read(&self.pool, id, last, limit).await;
        let Some(lane) = self.lanes.get_mut(at) else { return Ok(()) };
        match answer {
            Ok(records) => {
                lane.behind = records.len() == limit;
                lane.poll_at = Instant::now() + POLL;
                for record in records {
                    lane.hold(Arc::new(record));
                }
                Ok(())
            }
            Err(error) => {
                lane.poll_at = Instant::now() + RETRY;
                Err(error.into())
            }
        }
    }
}

async fn read(pool: &Pool, lane: LaneId, after: Sequence, limit: usize) -> Result<Vec<ChangeRecord>, OutboxError> {
    let client = pool.get().await?;
    outbox::read(&client, lane, after, limit).await
}

async fn lanes(pool: &Pool) -> Result<Vec<LaneId>, SourceError> {
    let find = async {
        let client = pool.get().await?;
        let rows = client.query_typed("SELECT lane FROM lanes ORDER BY lane", &[]).await?;
        rows.iter().map(|row| Ok(LaneId::from_i32(row.try_get(0)?))).collect::<Result<Vec<_>, OutboxError>>()
    };
    Ok(find.await?)
}

#[async_trait]
impl ChangeSource for Tail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        loop {
            while let Ok(group) = self.memory.try_recv() {
                self.hold(&group);
            }
            let ready = self.release();
            if !ready.is_empty() {
                return Ok(SourceEvent::Records(ready));
            }
            let now = Instant::now();
            let mut asked = false;
            for at in 0..self.lanes.len() {
                if self.lanes.get(at).is_some_and(|lane| lane.behind || lane.poll_at <= now) {
                    asked = true;
                    self.ask(at, READ).await?;
                }
            }
            let ready = self.release();
            if !ready.is_empty() {
                return Ok(SourceEvent::Records(ready));
            }
            if asked && self.memory.is_empty() {
                return Ok(SourceEvent::Idle);
            }
            let deadline = self.lanes.iter().map(|lane| lane.poll_at).min().unwrap_or(now + POLL);
            if let Ok(Some(group)) = tokio::time::timeout_at(deadline, self.memory.recv()).await {
                self.hold(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{id::DomainId, position::Position};

    use super::*;

    fn record(sequence: u64) -> Arc<ChangeRecord> {
        Arc::new(ChangeRecord {
            position: Position { lane: LaneId::FIRST, sequence: Sequence(sequence) },
            domain: DomainId::new("demo").unwrap(),
            documents: Vec::new(),
        })
    }

    fn lane(last: u64) -> Lane {
        let poll_at = Instant::now() + POLL;
        Lane { id: LaneId::FIRST, last: Sequence(last), held: BTreeMap::new(), poll_at, behind: false }
    }

    fn released(lane: &mut Lane) -> Vec<u64> {
        let mut out = Vec::new();
        lane.release(&mut out);
        out.iter().map(|record| record.position.sequence.0).collect()
    }

    #[tokio::test]
    async fn records_are_released_in_dense_order_each_once() {
        let mut lane = lane(4);
        lane.hold(record(6));
        assert!(lane.poll_at <= Instant::now() + REORDER, "a missing number is asked for soon");
        assert_eq!(released(&mut lane), Vec::<u64>::new());
        lane.hold(record(3));
        lane.hold(record(5));
        lane.hold(record(6));
        lane.hold(record(8));
        assert_eq!(released(&mut lane), [5, 6]);
        lane.hold(record(7));
        assert_eq!(released(&mut lane), [7, 8]);
    }

    #[tokio::test]
    async fn too_many_held_records_are_left_to_the_table() {
        let mut lane = lane(0);
        for sequence in 2..=u64::try_from(HELD).unwrap() + 2 {
            lane.hold(record(sequence));
        }
        assert!(lane.held.is_empty());
    }
}
