//! The clock: binds what arrives to ticks, runs one tick after the other, and publishes (architecture D5a, D11).
//!
//! At once when idle, with growing batches under load: whatever has arrived when a tick ends is the next tick. Beside
//! live changes each tick walks a slice of what is being built; the slice shrinks while changes wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use schemas::{
    id::DomainId,
    port::Clock,
    position::{Frontier, LaneId, Tick},
    table::Snapshot,
};
use tokio::sync::mpsc;

use crate::{
    catalog::Catalog,
    document::{Arriving, Content, Record},
    error::DataflowError,
    metrics::Metrics,
    snapshot::Publisher,
    worker::{Report, TickBatch},
};

/// What the sources tell the clock.
#[derive(Debug)]
pub(crate) enum Event {
    /// Documents of the scan of the primary store, and which database they come from.
    Documents(Vec<Arriving>, Option<u16>),
    /// The scan is complete and stands at this frontier.
    ScanDone(Frontier),
    /// Records of the change log.
    Records(Vec<Record>),
    /// No lane has anything newer.
    Idle,
    /// These lanes have nothing newer.
    IdleIn(Vec<LaneId>),
}

/// A tick that holds so many documents takes no further events. More would not pay: what a tick costs by itself is little
/// beside them, and all that is made on the way to the tables is held until its end.
const MAX_BATCH: usize = 8192;
/// How long a tick may last because of walks: while changes come in, and while none do.
const WALK_BESIDE_LIVE: Duration = Duration::from_millis(3);
const WALK_ALONE: Duration = Duration::from_millis(20);
/// Live changes count as coming in for this long after the last one.
const LIVE_FOR: Duration = Duration::from_millis(250);
/// Least and most documents walked per tick.
const WALK_LIMITS: (usize, usize) = (64, 32_768);

/// Runs ticks. `run_tick` hands a batch to every worker and collects their reports.
pub(crate) struct TickClock<R> {
    pub(crate) run_tick: R,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) wall: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    catalog: Catalog,
    tick: Tick,
    frontier: Frontier,
    stamp: i64,
    day: i64,
    scanned: bool,
    walk: usize,
    walking: bool,
    last_live: Instant,
    seen: Seen,
    /// Databases that each domain's documents come from.
    databases: Arc<HashMap<DomainId, BTreeSet<u16>>>,
}

/// When lanes last proved that nothing newer was missing, microseconds since 1970 UTC.
#[derive(Debug)]
struct Seen {
    all: i64,
    /// Of those that did so after `all`.
    later: BTreeMap<LaneId, i64>,
}

impl Seen {
    fn all(&mut self, now: i64) {
        self.all = now;
        self.later.clear();
    }

    fn lane(&mut self, lane: LaneId, now: i64) {
        self.later.insert(lane, now);
    }

    /// The earliest of the lanes of a frontier, and those that are later than it.
    fn of(&self, frontier: &Frontier) -> (i64, BTreeMap<LaneId, i64>) {
        let at = |lane: LaneId| self.later.get(&lane).copied().unwrap_or(self.all);
        let lanes = || frontier.positions().map(|position| (position.lane, at(position.lane)));
        let earliest = lanes().map(|(_, at)| at).min().unwrap_or(self.all);
        (earliest, lanes().filter(|(_, at)| *at > earliest).collect())
    }
}

impl<R: FnMut(TickBatch) -> Result<Report, DataflowError>> TickClock<R> {
    pub(crate) fn new(run_tick: R, publisher: Arc<Publisher>, wall: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let now = wall.now_micros();
        // A new engine goes on counting where the last one of this process stopped, so that snapshots keep their order.
        let tick = publisher.snapshot().tick;
        Self {
            run_tick,
            publisher,
            wall,
            metrics,
            catalog: Catalog::default(),
            tick,
            frontier: Frontier::default(),
            stamp: 0,
            day: day(now),
            scanned: false,
            walk: WALK_LIMITS.0,
            walking: false,
            last_live: Instant::now(),
            seen: Seen { all: now, later: BTreeMap::new() },
            databases: Arc::default(),
        }
    }

    /// Runs until the events end.
    ///
    /// # Errors
    /// [`DataflowError`] if a worker fails.
    pub(crate) fn follow(mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), DataflowError> {
        loop {
            let first = if self.walking {
                match events.try_recv() {
                    Ok(event) => Some(event),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                }
            } else {
                match events.blocking_recv() {
                    Some(event) => Some(event),
                    None => return Ok(()),
                }
            };
            self.step(first, events)?;
        }
    }

    /// One tick with everything that has arrived.
    fn step(&mut self, first: Option<Event>, events: &mut mpsc::Receiver<Event>) -> Result<(), DataflowError> {
        let mut batch = TickBatch { now: self.wall.now_micros(), ..TickBatch::default() };
        let mut records = 0;
        let mut next = first;
        let mut scan_done = None;
        while let Some(event) = next.take() {
            match event {
                Event::Documents(documents, database) => {
                    records += documents.len();
                    for document in documents {
                        if let Some(database) = database {
                            self.comes_from(&document.key.domain, database);
                        }
                        batch.commands.extend(self.catalog.domain(&document.key.domain));
                        self.take(document, &mut batch);
                    }
                }
                Event::ScanDone(frontier) => scan_done = Some(frontier),
                Event::Records(read) => {
                    records += read.len();
                    for record in read {
                        let lane = record.position.lane;
                        self.frontier.advance(record.position);
                        self.seen.lane(lane, batch.now);
                        self.comes_from(&record.domain, lane.database);
                        batch.commands.extend(self.catalog.domain(&record.domain));
                        for document in record.documents {
                            self.take(document, &mut batch);
                        }
                    }
                }
                Event::Idle => self.seen.all(batch.now),
                Event::IdleIn(lanes) => lanes.into_iter().for_each(|lane| self.seen.lane(lane, batch.now)),
            }
            if scan_done.is_none() && batch.documents.len() < MAX_BATCH {
                next = events.try_recv().ok();
            }
        }
        if self.day != day(batch.now) {
            self.day = day(batch.now);
            batch.commands.extend(self.catalog.revisit());
        }
        if records > 0 || !batch.commands.is_empty() || self.walking {
            self.run_batch(batch, records)?;
        }
        if let Some(frontier) = scan_done {
            for position in frontier.positions() {
                self.frontier.advance(position);
            }
            self.scanned = true;
        }
        self.publish();
        Ok(())
    }

    fn comes_from(&mut self, domain: &DomainId, database: u16) {
        if !self.databases.get(domain).is_some_and(|known| known.contains(&database)) {
            Arc::make_mut(&mut self.databases).entry(domain.clone()).or_default().insert(database);
        }
    }

    /// Notes the stamp of a document, and turns a definition into commands.
    fn take(&mut self, document: Arriving, batch: &mut TickBatch) {
        self.stamp = self.stamp.max(document.stamp.0);
        match &document.content {
            Content::Document(_) => batch.documents.push(document),
            Content::Definition(body) => {
                let key = &document.key;
                let body = body.as_ref().map(|body| body.get());
                batch.commands.extend(self.catalog.define(&key.domain, key.kind, key.id.as_str(), body));
            }
        }
    }

    /// Runs a batch of so many records as one tick, and what it replaces leaves in ticks of their own right behind.
    fn run_batch(&mut self, mut batch: TickBatch, live: usize) -> Result<(), DataflowError> {
        if live > 0 {
            self.last_live = Instant::now();
        }
        batch.walk = self.walk;
        let started = Instant::now();
        let walked = self.run(batch)?;
        let took = started.elapsed();
        self.metrics.tick(took, live, walked);
        self.adapt(took, walked);
        loop {
            let commands = self.catalog.swap();
            if commands.is_empty() {
                return Ok(());
            }
            self.run(TickBatch { now: self.wall.now_micros(), commands, ..TickBatch::default() })?;
        }
    }

    /// One tick: hands the batch to the worker and takes its report in. Returns how much was walked.
    fn run(&mut self, mut batch: TickBatch) -> Result<usize, DataflowError> {
        self.tick = Tick(self.tick.0 + 1);
        batch.tick = self.tick;
        batch.stamp = self.stamp;
        let report = (self.run_tick)(batch)?;
        self.walking = report.walking;
        self.catalog.tables(report.published.tables, report.published.errors);
        self.catalog.progress(&report.progress, &report.completed);
        Ok(report.walked)
    }

    /// Sizes the next slice so that a tick's walk stays within its time.
    fn adapt(&mut self, took: Duration, walked: usize) {
        let allowed = if self.last_live.elapsed() < LIVE_FOR { WALK_BESIDE_LIVE } else { WALK_ALONE };
        if walked < self.walk {
            return;
        }
        self.walk = if took > allowed { self.walk / 2 } else { self.walk * 2 }.clamp(WALK_LIMITS.0, WALK_LIMITS.1);
    }

    fn publish(&mut self) {
        if !self.scanned {
            return;
        }
        let as_of = self.wall.now_micros();
        let (sources_seen_at, lanes_seen_at) = self.seen.of(&self.frontier);
        let snapshot = Snapshot {
            tick: self.tick,
            as_of,
            complete_through: self.frontier.clone(),
            sources_seen_at,
            lanes_seen_at,
            databases: Arc::clone(&self.databases),
            domains: self.catalog.publish(),
        };
        self.metrics.published(as_of, self.stamp, self.catalog.failed_documents());
        let ready = self.publisher.ready();
        if !ready && self.catalog.building() {
            // The first snapshot that readers see holds every view that was there before.
            return;
        }
        self.publisher.publish(snapshot);
        if !ready {
            self.publisher.set_ready();
        }
    }
}

/// Days since 1970 UTC: UCR's "today" (architecture, names fixed once).
const fn day(micros: i64) -> i64 {
    micros.div_euclid(86_400_000_000)
}
