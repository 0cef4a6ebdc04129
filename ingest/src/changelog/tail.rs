//! A reader of the change log in this process: memory first, the outbox for whatever did not come that way.
//!
//! Numbers of a lane are dense, so a missing one is seen at once. Two writers may hand over out of order; a missing number
//! is waited for briefly and then read from the table. Source: architecture D4, dataflow §4.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
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
use crate::store::{databases::Database, pool::Pool};

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
    pool: Pool,
    last: Sequence,
    /// Records that came before their turn.
    held: BTreeMap<Sequence, Arc<ChangeRecord>>,
    /// When to ask the table.
    poll_at: Instant,
    /// True while an answer of the table is under way.
    asking: bool,
    /// True if the table held more than was read.
    behind: bool,
    /// True once the table held nothing more, until the reader is told.
    quiet: bool,
    /// True while the table cannot be read.
    failing: bool,
}

impl Lane {
    fn new(id: LaneId, pool: Pool, last: Sequence) -> Self {
        let poll_at = Instant::now();
        Self {
            id,
            pool,
            last,
            held: BTreeMap::new(),
            poll_at,
            asking: false,
            behind: false,
            quiet: false,
            failing: false,
        }
    }

    /// True if nothing is known of it that the reader does not have.
    fn is_quiet(&self) -> bool {
        self.quiet && self.held.is_empty()
    }

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

    /// Takes an answer of the table to a question for `limit` records. True if the lane fails from now on.
    fn answered(&mut self, answer: Result<Vec<ChangeRecord>, OutboxError>, limit: usize) -> Result<bool, SourceError> {
        self.asking = false;
        match answer {
            Ok(records) => {
                self.behind = records.len() == limit;
                self.quiet = records.is_empty();
                self.failing = false;
                self.poll_at = Instant::now() + if self.behind { Duration::ZERO } else { POLL };
                for record in records {
                    self.hold(Arc::new(record));
                }
                Ok(false)
            }
            Err(OutboxError::Database(error)) => {
                tracing::debug!(%error, lane = %self.id, "the outbox could not be read");
                self.quiet = false;
                self.poll_at = Instant::now() + RETRY;
                Ok(!std::mem::replace(&mut self.failing, true))
            }
            Err(gap) => Err(gap.into()),
        }
    }
}

/// An answer of the table: the index of the lane, and what it holds.
type Asked = BoxFuture<'static, (usize, Result<Vec<ChangeRecord>, OutboxError>)>;

/// Reads every lane of some databases from a frontier on; none waits for another.
pub(crate) struct Tail {
    lanes: Vec<Lane>,
    asked: FuturesUnordered<Asked>,
    /// When the reader was last told of lanes that are quiet.
    told_at: Instant,
    memory: mpsc::Receiver<Group>,
    /// Keeps the channel's sending end alive while this reader lives.
    _handover: Arc<Handover>,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Tail {
    /// Opens the log behind `from`.
    ///
    /// # Errors
    /// [`SourceError::Gap`] if the log no longer holds what follows; [`SourceError::Unavailable`].
    pub(crate) async fn open(
        databases: impl Iterator<Item = &Database>,
        handover: &Arc<Handover>,
        capacity: usize,
        from: &Frontier,
    ) -> Result<Self, SourceError> {
        let memory = handover.subscribe(capacity);
        let mut lanes = Vec::new();
        for database in databases {
            for id in lanes_of(&database.pool).await? {
                let mut lane = Lane::new(id, database.pool.clone(), from.at(id));
                // Asked for one record, to learn of a gap now.
                let answer = read(&lane.pool, id, lane.last, 1).await?;
                lane.answered(Ok(answer), 1)?;
                lanes.push(lane);
            }
        }
        let told_at = Instant::now();
        Ok(Self { lanes, asked: FuturesUnordered::new(), told_at, memory, _handover: Arc::clone(handover) })
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

    /// Asks the tables of all lanes whose time has come. Returns when the next one's comes.
    fn ask(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + POLL;
        for (at, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.asking) {
            if lane.poll_at > now {
                next = next.min(lane.poll_at);
                continue;
            }
            lane.asking = true;
            let (pool, id, last) = (lane.pool.clone(), lane.id, lane.last);
            self.asked.push(Box::pin(async move { (at, read(&pool, id, last, READ).await) }));
        }
        next
    }

    /// Says so once every lane had nothing more since the last time; and of those that had not now and then, while others
    /// are busy or cannot be read.
    fn quiet(&mut self) -> Option<SourceEvent> {
        let all = self.lanes.iter().all(Lane::is_quiet);
        if !self.memory.is_empty() || !all && self.told_at.elapsed() < POLL {
            return None;
        }
        let mut lanes = Vec::new();
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_quiet()) {
            lane.quiet = false;
            lanes.push(lane.id);
        }
        if lanes.is_empty() && !all {
            return None;
        }
        self.told_at = Instant::now();
        Some(if all { SourceEvent::Idle } else { SourceEvent::IdleIn(lanes) })
    }
}

async fn read(pool: &Pool, lane: LaneId, after: Sequence, limit: usize) -> Result<Vec<ChangeRecord>, OutboxError> {
    let client = pool.get().await?;
    outbox::read(&client, lane, after, limit).await
}

async fn lanes_of(pool: &Pool) -> Result<Vec<LaneId>, SourceError> {
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
            // First, because lanes that are busy always have something.
            if let Some(quiet) = self.quiet() {
                return Ok(quiet);
            }
            let ready = self.release();
            if !ready.is_empty() {
                return Ok(SourceEvent::Records(ready));
            }
            let next = self.ask();
            tokio::select! {
                Some(group) = self.memory.recv() => self.hold(&group),
                Some((at, answer)) = self.asked.next() => {
                    let Some(lane) = self.lanes.get_mut(at) else { continue };
                    if lane.answered(answer, READ)? {
                        tracing::warn!(lane = %lane.id, "a lane of the change log cannot be read; trying again");
                        return Ok(SourceEvent::Stalled(lane.id));
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{id::DomainId, position::Position};

    use super::*;
    use crate::store::pool::Address;

    fn record(sequence: u64) -> Arc<ChangeRecord> {
        Arc::new(ChangeRecord {
            position: Position { lane: LaneId::FIRST, sequence: Sequence(sequence) },
            domain: DomainId::new("demo").unwrap(),
            documents: Vec::new(),
        })
    }

    fn lane(last: u64) -> Lane {
        let pool = Pool::new(Address::parse("postgres://localhost/none").unwrap(), 1, POLL);
        Lane { poll_at: Instant::now() + POLL, ..Lane::new(LaneId::FIRST, pool, Sequence(last)) }
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
