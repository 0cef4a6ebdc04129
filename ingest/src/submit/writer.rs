//! A lane's writers: tasks that take what is queued, one group after the other, each with a connection of its own.
//!
//! There is no timer: a lone form pays one flush, and under load groups grow by themselves. A group that the database
//! refuses is run again one by one; after a lost connection the writer finds out what became of the commit before it
//! answers. Source: architecture D4.

use std::{collections::BTreeSet, sync::Arc};

use schemas::{change::ChangeRecord, id::CaseId, port::Clock, position::LaneId};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use super::{
    DirectoryReceipt, Job, Outcome, Receipt, Written,
    commit::{self, CommitError, Ticket},
    directory,
    load::{Loaded, Wanted, load},
    lock,
    operation::{OperationError, operate},
    process::{Done, process},
    world::World,
};
use crate::{
    changelog::handover::{Group, Handover},
    error::{DatabaseError, WriteError},
    metrics::IngestMetrics,
    store::{
        cases, forms,
        pool::{Address, Connection, Use},
    },
};

/// Locks in one transaction; more jobs than that are run in several groups. Postgres keeps room for some thousands over all
/// connections.
const MAX_LOCKS: usize = 1500;
/// Attempts to lock everything that edits touch from the start.
const LOCK_ATTEMPTS: usize = 4;
/// First and longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long to try to learn what became of a commit.
const FIND_OUT: Duration = Duration::from_secs(10);

/// What all writers of a lane share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The lane.
    pub lane: LaneId,
    /// Jobs to take. A lock because two writers take turns; the one that waits for jobs holds it.
    pub queue: Mutex<mpsc::Receiver<Job>>,
    /// Most jobs in a group.
    pub max_group: usize,
    /// Where to connect.
    pub address: Address,
    /// Longest wait for a lock.
    pub lock_wait: Duration,
    /// Readers in this process.
    pub handover: Arc<Handover>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: IngestMetrics,
}

/// One writer.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    backoff: Duration,
    retry_at: Instant,
}

/// What to answer to a job of a committed group.
#[derive(Debug)]
enum Answer {
    Form(super::FormId, Outcome, usize),
    Directory(Vec<Result<Written, WriteError>>, Option<usize>),
    Operation(usize),
    Refused(WriteError),
    /// Into the next group.
    Deferred,
}

/// A committed group.
#[derive(Debug)]
struct Committed {
    records: Vec<Arc<ChangeRecord>>,
    answers: Vec<Answer>,
}

impl Writer {
    /// A writer that has not connected yet.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, connection: None, backoff: BACKOFF.0, retry_at: Instant::now() }
    }

    /// Works until the queue is closed and empty.
    pub(crate) async fn run(mut self) {
        loop {
            let mut jobs = Vec::new();
            self.shared.queue.lock().await.recv_many(&mut jobs, self.shared.max_group).await;
            if jobs.is_empty() {
                return;
            }
            for group in by_locks(jobs) {
                self.group(group).await;
            }
        }
    }

    /// Stores a group and answers it.
    async fn group(&mut self, mut jobs: Vec<Job>) {
        while !jobs.is_empty() {
            let started = Instant::now();
            match self.store(&jobs).await {
                Ok(committed) => {
                    self.shared.metrics.group_size.record(size(jobs.len()));
                    self.shared.metrics.commit_seconds.record(started.elapsed());
                    jobs = self.answer(jobs, committed);
                }
                Err(error) if jobs.len() > 1 && !matches!(error, DatabaseError::Unavailable(_)) => {
                    tracing::warn!(%error, jobs = jobs.len(), "a group was refused, storing one by one");
                    self.shared.metrics.split.increment(1);
                    for job in jobs {
                        Box::pin(self.group(vec![job])).await;
                    }
                    return;
                }
                Err(error) => {
                    let answer = refusal(error);
                    for job in jobs {
                        refuse(job, answer.clone());
                    }
                    return;
                }
            }
        }
    }

    /// Hands committed records over and answers; returns the jobs that were deferred.
    fn answer(&self, jobs: Vec<Job>, committed: Committed) -> Vec<Job> {
        let Committed { records, answers } = committed;
        let group: Group = records.into();
        if !group.is_empty() {
            self.shared.handover.publish(&group);
        }
        let position = |record: usize| group.get(record).map(|record| record.position);
        let mut deferred = Vec::new();
        for (job, answer) in jobs.into_iter().zip(answers) {
            match (job, answer) {
                (Job::Form { reply, .. }, Answer::Form(form_id, outcome, record)) => {
                    self.count(&outcome);
                    let receipt = position(record).map(|position| Receipt { form_id, outcome, position });
                    // Nobody listens any more if the client has gone; the form is stored all the same.
                    drop(reply.send(receipt.ok_or(WriteError::Internal)));
                }
                (Job::Directory { reply, .. }, Answer::Directory(results, record)) => {
                    self.shared.metrics.documents.increment(u64::try_from(results.len()).unwrap_or_default());
                    drop(reply.send(Ok(DirectoryReceipt { results, position: record.and_then(position) })));
                }
                (Job::Operation { reply, .. }, Answer::Operation(record)) => {
                    self.shared.metrics.operations.increment(1);
                    drop(reply.send(position(record).ok_or(WriteError::Internal)));
                }
                (job, Answer::Refused(error)) => refuse(job, error),
                (job, _) => deferred.push(job),
            }
        }
        deferred
    }

    fn count(&self, outcome: &Outcome) {
        let metrics = &self.shared.metrics;
        match outcome {
            Outcome::Normal => &metrics.normal,
            Outcome::Duplicate { .. } => &metrics.duplicate,
            Outcome::Edited => &metrics.edited,
            Outcome::Failed { .. } | Outcome::Broken { .. } => &metrics.failed,
        }
        .increment(1);
    }

    /// Locks, loads, applies, writes and commits. After a connection was lost it is done once more on a new one; by then it
    /// is known that nothing was committed.
    async fn store(&mut self, jobs: &[Job]) -> Result<Committed, DatabaseError> {
        let connection = self.connect().await?;
        match self.attempt(connection, jobs).await {
            Err(DatabaseError::Unavailable(problem)) => {
                tracing::info!(problem, "the connection to Postgres was lost, trying again");
                let connection = self.connect().await?;
                self.attempt(connection, jobs).await
            }
            result => result,
        }
    }

    async fn attempt(&mut self, mut connection: Connection, jobs: &[Job]) -> Result<Committed, DatabaseError> {
        let result = self.transact(&mut connection, jobs).await;
        // After a failure the transaction may be open; a connection that cannot roll it back is not used again.
        let usable = !connection.is_closed() && (result.is_ok() || connection.batch_execute("ROLLBACK").await.is_ok());
        if usable {
            self.connection = Some(connection);
        }
        result
    }

    async fn connect(&mut self) -> Result<Connection, DatabaseError> {
        if let Some(connection) = self.connection.take().filter(|connection| !connection.is_closed()) {
            return Ok(connection);
        }
        if Instant::now() < self.retry_at {
            return Err(DatabaseError::Unavailable("waiting before the next attempt to connect".to_owned()));
        }
        match self.open().await {
            Ok(connection) => {
                self.backoff = BACKOFF.0;
                Ok(connection)
            }
            Err(error) => {
                self.retry_at = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
                Err(error)
            }
        }
    }

    async fn open(&self) -> Result<Connection, DatabaseError> {
        let mut connection = self.shared.address.connect(Use::ByKey { lock_wait: self.shared.lock_wait }).await?;
        let reading = [lock::TAKE, forms::SELECT, cases::SELECT, cases::SELECT_INDICES, cases::SELECT_TARGETS];
        for sql in reading.iter().chain(commit::USUAL) {
            connection.statement(sql).await?;
        }
        Ok(connection)
    }

    async fn transact(&self, connection: &mut Connection, jobs: &[Job]) -> Result<Committed, DatabaseError> {
        let mut extra = BTreeSet::new();
        for _ in 0..LOCK_ATTEMPTS {
            let wanted = Wanted::of(jobs.iter(), &extra);
            match load(connection, jobs, &wanted).await? {
                Loaded::World(world) => return self.apply_and_commit(connection, jobs, &wanted, world).await,
                Loaded::Again(missing) => extra.extend(missing),
            }
        }
        Err(DatabaseError::Locked(extra.len()))
    }

    async fn apply_and_commit(
        &self,
        connection: &mut Connection,
        jobs: &[Job],
        wanted: &Wanted,
        mut world: Box<World>,
    ) -> Result<Committed, DatabaseError> {
        let now = self.shared.clock.now_micros();
        let answers = apply(&mut world, jobs, now)?;
        if world.changes.is_empty() {
            connection.batch_execute("ROLLBACK").await?;
            return Ok(Committed { records: Vec::new(), answers });
        }
        let ticket = Ticket { lane: self.shared.lane, token: rand::random(), now };
        match commit::commit(connection, &mut world, ticket).await {
            Ok(records) => Ok(Committed { records, answers }),
            Err(CommitError::Failed(error)) => Err(error),
            Err(CommitError::Unknown { error, records }) => {
                tracing::warn!(%error, "the connection was lost during a commit");
                if self.find_out(wanted, &records, ticket).await? {
                    Ok(Committed { records, answers })
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Learns whether a group was committed: waits for its locks, which the lost transaction holds as long as it lives, and
    /// looks for its first record.
    async fn find_out(
        &self,
        wanted: &Wanted,
        records: &[Arc<ChangeRecord>],
        ticket: Ticket,
    ) -> Result<bool, DatabaseError> {
        let sequence = records.first().map_or(0, |record| record.position.sequence.0);
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        let deadline = Instant::now() + FIND_OUT;
        let mut pause = BACKOFF.0;
        loop {
            let asked = async {
                let mut connection = self.open().await?;
                let lock = connection.statement(lock::TAKE).await?;
                let committed = connection.statement(commit::COMMITTED).await?;
                let (keys, shared) = wanted.locks.parameters();
                connection.batch_execute("BEGIN").await?;
                connection.query(&lock, &[&keys, &shared]).await?;
                // The counter's lock as well: a group without locks of its own is held by nothing else.
                connection.query("SELECT 1 FROM lanes WHERE lane = $1 FOR UPDATE", &[&ticket.lane.to_i32()]).await?;
                let row = connection.query_one(&committed, &[&ticket.lane.to_i32(), &sequence, &ticket.token]).await?;
                Ok::<bool, DatabaseError>(row.try_get(0)?)
            };
            match asked.await {
                Ok(committed) => return Ok(committed),
                Err(error) if Instant::now() + pause > deadline => {
                    return Err(DatabaseError::Unavailable(format!("what became of a commit is not known: {error}")));
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}

/// Applies every job in order.
fn apply(world: &mut World, jobs: &[Job], now: i64) -> Result<Vec<Answer>, DatabaseError> {
    jobs.iter()
        .map(|job| match job {
            Job::Form { submission, .. } => Ok(match process(world, submission, now)? {
                Done::Stored { form_id, outcome, record } => Answer::Form(form_id, outcome, record),
                Done::Deferred => Answer::Deferred,
                Done::Refused(error) => Answer::Refused(error),
            }),
            // An operation needs everything as it is stored, so it is the first of its group.
            Job::Operation { .. } if !world.changes.is_empty() => Ok(Answer::Deferred),
            Job::Operation { operation, .. } => match operate(world, operation, now) {
                Ok(record) => Ok(Answer::Operation(record)),
                Err(OperationError::Refused(error)) => Ok(Answer::Refused(error)),
                Err(OperationError::Database(error)) => Err(error),
            },
            Job::Directory { write, .. } => {
                let (results, record) = directory::apply(world, write);
                Ok(Answer::Directory(results, record))
            }
        })
        .collect()
}

/// Splits jobs so that each group stays below [`MAX_LOCKS`]; a job above it goes alone.
fn by_locks(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    let mut locks = usize::MAX;
    let none: BTreeSet<CaseId> = BTreeSet::new();
    for job in jobs {
        let needs = Wanted::of(std::iter::once(&job), &none).locks.len();
        match groups.last_mut() {
            Some(group) if locks.saturating_add(needs) <= MAX_LOCKS => {
                locks += needs;
                group.push(job);
            }
            _ => {
                locks = needs;
                groups.push(vec![job]);
            }
        }
    }
    groups
}

fn refusal(error: DatabaseError) -> WriteError {
    if error.is_lock_wait() { WriteError::Locked } else { error.into() }
}

fn refuse(job: Job, error: WriteError) {
    match job {
        Job::Form { reply, .. } => drop(reply.send(Err(error))),
        Job::Operation { reply, .. } => drop(reply.send(Err(error))),
        Job::Directory { reply, .. } => drop(reply.send(Err(error))),
    }
}

fn size(jobs: usize) -> f64 {
    f64::from(u32::try_from(jobs).unwrap_or(u32::MAX))
}
