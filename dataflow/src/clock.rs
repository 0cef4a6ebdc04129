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
    position::{Frontier, LaneId, Stamp, Tick},
    table::{Moment, Snapshot},
};
use tokio::sync::mpsc;

use crate::{
    catalog::Catalog,
    checkpoint::{Keeper, KeptDocument, KeptTable, Slice, State, ViewKey},
    config::{DataflowConfig, Workers},
    document::{Arriving, Content, Record, Share},
    error::DataflowError,
    metrics::Metrics,
    provenance::{Ask, Window},
    snapshot::Publisher,
    view::Command,
    worker::{Kept, Report, TickBatch},
};

mod ask;

use ask::LookedUp;

/// What the sources tell the clock.
#[derive(Debug)]
pub(crate) enum Event {
    /// Documents of a checkpoint.
    Kept(Vec<KeptDocument>),
    /// Everything else of a checkpoint, behind its documents.
    Restored(Box<State>),
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
    /// Somebody wants to know where a row comes from.
    Ask(Ask),
}

/// A tick that holds so many documents takes no further events. More would not pay: what a tick costs by itself is little
/// beside them, and all that is made on the way to the tables is held until its end.
const MAX_BATCH: usize = 8192;
/// How long a tick may last because of walks: while changes come in, and while none do.
const WALK_BESIDE_LIVE: Duration = Duration::from_micros(1500);
const WALK_ALONE: Duration = Duration::from_millis(20);
/// Live changes count as coming in for this long after the last one.
const LIVE_FOR: Duration = Duration::from_millis(250);
/// Least and most documents that each worker walks per tick. Few in tests, whose short histories then take several slices.
const WALK_LIMITS: (usize, usize) = if cfg!(test) { (2, 8) } else { (64, 32_768) };

/// What has arrived for a tick.
struct Gathered {
    now: i64,
    commands: Vec<Command>,
    /// By worker.
    shares: Vec<Share>,
    /// Documents in all of them.
    count: usize,
    slice: Option<Slice>,
}

/// What came of a tick.
struct Ran {
    /// How much each worker has walked.
    walked: Vec<usize>,
    /// What each worker has looked up.
    looked: LookedUp,
}

/// Runs ticks. `run_tick` hands a batch and each worker's documents to the workers, and collects their reports.
pub(crate) struct TickClock<R> {
    pub(crate) run_tick: R,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) wall: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    workers: Workers,
    catalog: Catalog,
    tick: Tick,
    frontier: Frontier,
    stamp: i64,
    scanned: bool,
    /// Documents or rows walked per tick.
    pub(crate) walk: usize,
    /// True while something is walked for views being built, or to take back what they were given.
    pub(crate) walking: bool,
    last_live: Instant,
    keeper: Option<Keeper>,
    /// Domains in which not everything has followed a change yet.
    behind: BTreeSet<DomainId>,
    seen: Seen,
    /// Databases that each domain's documents come from.
    databases: Arc<HashMap<DomainId, BTreeSet<u16>>>,
    window: Window,
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

impl<R: FnMut(&TickBatch, Vec<Share>) -> Result<Vec<Report>, DataflowError>> TickClock<R> {
    pub(crate) fn new(
        config: &DataflowConfig,
        run_tick: R,
        publisher: Arc<Publisher>,
        wall: Arc<dyn Clock>,
        metrics: Metrics,
        keeper: Option<Keeper>,
    ) -> Self {
        let now = wall.now_micros();
        // A new engine goes on counting where the last one of this process stopped, so that snapshots keep their order.
        let tick = publisher.snapshot().moment.tick;
        Self {
            run_tick,
            publisher,
            wall,
            metrics,
            workers: config.workers,
            catalog: Catalog::new(config),
            tick,
            frontier: Frontier::default(),
            stamp: 0,
            scanned: false,
            walk: WALK_LIMITS.0,
            walking: false,
            last_live: Instant::now(),
            keeper,
            behind: BTreeSet::new(),
            seen: Seen { all: now, later: BTreeMap::new() },
            databases: Arc::default(),
            window: Window::new(config.provenance_window, now),
        }
    }

    /// Runs until the events end.
    ///
    /// # Errors
    /// [`DataflowError`] if a worker fails.
    pub(crate) fn follow(mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), DataflowError> {
        loop {
            let first = if self.walking || self.keeper.as_ref().is_some_and(Keeper::waits) {
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
    pub(crate) fn step(
        &mut self,
        first: Option<Event>,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<(), DataflowError> {
        let mut batch = self.gather();
        let now = batch.now;
        batch.commands = self.catalog.prepare(now);
        let mut records = 0;
        let mut next = first;
        let mut scan_done = None;
        let mut asks = Vec::new();
        while let Some(event) = next.take() {
            match event {
                Event::Kept(documents) => {
                    records += documents.len();
                    batch.count += documents.len();
                    for document in documents {
                        if let Some(share) = batch.shares.get_mut(self.workers.home(&document.key)) {
                            share.kept.push(document);
                        }
                    }
                }
                Event::Restored(mut state) => {
                    self.tick = self.tick.max(state.tick);
                    self.stamp = self.stamp.max(state.stamp.0);
                    self.databases = Arc::new(state.databases.drain(..).collect());
                    batch.commands.extend(self.catalog.restore(*state));
                }
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
                        self.window.take(&record, batch.now);
                        batch.commands.extend(self.catalog.domain(&record.domain));
                        for document in record.documents {
                            self.take(document, &mut batch);
                        }
                    }
                }
                Event::Idle => self.seen.all(batch.now),
                Event::Ask(ask) => asks.push(ask),
                Event::IdleIn(lanes) => lanes.into_iter().for_each(|lane| self.seen.lane(lane, batch.now)),
            }
            if scan_done.is_none() && batch.count < MAX_BATCH {
                next = events.try_recv().ok();
            }
        }
        let asked = self.route(asks, &mut batch.shares);
        let changes = records > 0 || !batch.commands.is_empty();
        if let Some(keeper) = self.keeper.as_mut().filter(|_| self.scanned) {
            if changes {
                keeper.changed();
            }
            batch.slice = if self.publisher.ready() { keeper.ask() } else { None };
        }
        let looked = if changes || self.walking || batch.slice.is_some() || asked.looks_up() {
            self.run_batch(batch, records)?
        } else {
            LookedUp::new()
        };
        self.settle(now)?;
        if let Some(frontier) = scan_done {
            for position in frontier.positions() {
                self.frontier.advance(position);
            }
            self.scanned = true;
        }
        self.publish();
        self.answer(asked, looked);
        Ok(())
    }

    fn gather(&self) -> Gathered {
        let shares = (0..self.workers.count()).map(|_| Share::default()).collect();
        Gathered { now: self.wall.now_micros(), commands: Vec::new(), shares, count: 0, slice: None }
    }

    fn comes_from(&mut self, domain: &DomainId, database: u16) {
        if !self.databases.get(domain).is_some_and(|known| known.contains(&database)) {
            Arc::make_mut(&mut self.databases).entry(domain.clone()).or_default().insert(database);
        }
    }

    /// Notes the stamp of a document, and turns a definition into commands.
    fn take(&mut self, document: Arriving, batch: &mut Gathered) {
        self.stamp = self.stamp.max(document.stamp.0);
        match &document.content {
            Content::Document(_) => {
                if let Some(share) = batch.shares.get_mut(document.home) {
                    share.documents.push(document);
                    batch.count += 1;
                }
            }
            Content::Definition(body) => {
                let key = &document.key;
                let body = body.as_ref().map(|body| body.get());
                batch.commands.extend(self.catalog.define(&key.domain, key.kind, key.id.as_str(), body));
            }
        }
    }

    /// Runs a batch of so many records as one tick. Returns what each worker has looked up.
    fn run_batch(&mut self, batch: Gathered, live: usize) -> Result<LookedUp, DataflowError> {
        if live > 0 {
            self.last_live = Instant::now();
        }
        for (worker, share) in batch.shares.iter().enumerate() {
            self.metrics.taken(worker, share.documents.len());
        }
        let started = Instant::now();
        let Ran { walked, looked } = self.run(batch, self.walk)?;
        let took = started.elapsed();
        self.metrics.tick(took, live, walked.iter().sum());
        self.adapt(took, walked.into_iter().max().unwrap_or_default());
        Ok(looked)
    }

    /// Puts complete builds in their places. What they replace leaves in ticks of their own, before anything is
    /// published.
    fn settle(&mut self, now: i64) -> Result<(), DataflowError> {
        loop {
            let commands = self.catalog.leave();
            if commands.is_empty() {
                return Ok(());
            }
            self.run(Gathered { commands, now, ..self.gather() }, 0)?;
        }
    }

    /// One tick: hands the batch to the workers and takes their reports in. Each walks at most `walk`.
    fn run(&mut self, batch: Gathered, walk: usize) -> Result<Ran, DataflowError> {
        self.tick = Tick(self.tick.0 + 1);
        let Gathered { now, commands, shares, slice, .. } = batch;
        let mut reports =
            (self.run_tick)(&TickBatch { tick: self.tick, now, stamp: self.stamp, commands, walk, slice }, shares)?;
        self.walking = reports.iter().any(|report| report.walking);
        self.behind = reports.iter_mut().flat_map(|report| std::mem::take(&mut report.behind)).collect();
        let walked = reports.iter().map(|report| report.walked).collect();
        let kept = reports.iter_mut().filter_map(|report| report.kept.take()).collect();
        let looked = reports.iter_mut().map(|report| std::mem::take(&mut report.looked).into()).collect();
        self.catalog.take(reports);
        if slice.is_some() {
            self.keep(kept);
        }
        Ok(Ran { walked, looked })
    }

    /// Gives a checkpoint the slices of all workers and, if they were the last ones, the rest of this tick.
    fn keep(&mut self, slices: Vec<Kept>) {
        let Some(keeper) = &mut self.keeper else { return };
        let documents = slices.iter().map(|slice| slice.held).sum();
        let mut tables: Option<Vec<_>> = Some(Vec::new());
        let mut taken = Vec::new();
        for slice in slices {
            taken.extend(slice.documents);
            tables = tables.zip(slice.tables).map(|(all, its)| [all, its].concat());
        }
        keeper.documents(taken);
        let Some(parts) = tables else { return };
        let (definitions, day, keys) = self.catalog.keep();
        let mut tables: BTreeMap<ViewKey, KeptTable> = BTreeMap::new();
        for (no, part) in parts {
            let Some(key) = keys.get(&no) else { continue };
            let table = tables.entry(key.clone()).or_default();
            table.segments.extend(part.segments);
            table.failed.extend(part.failed);
        }
        keeper.end(State {
            tick: self.tick,
            stamp: Stamp(self.stamp),
            day,
            frontier: self.frontier.clone(),
            databases: self.databases.iter().map(|(domain, numbers)| (domain.clone(), numbers.clone())).collect(),
            documents,
            definitions,
            tables: tables.into_iter().collect(),
        });
    }

    /// Sizes the next slice so that a tick's walk, `walked` by the worker that walked most, stays within its time.
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
        let last = self.publisher.snapshot();
        let snapshot = Snapshot {
            moment: Moment { tick: self.tick, as_of, complete_through: self.frontier.clone() },
            sources_seen_at,
            lanes_seen_at,
            databases: Arc::clone(&self.databases),
            domains: self.catalog.publish(&self.behind, &last.moment),
        };
        self.metrics.published(as_of, self.stamp, self.catalog.failed_documents());
        let ready = self.publisher.ready();
        if !ready && (self.catalog.building() || !self.behind.is_empty()) {
            // The first snapshot that readers see holds every view that was there before.
            return;
        }
        self.publisher.publish(snapshot);
        self.window.published(as_of, &self.behind);
        self.catalog.started();
        if !ready {
            self.publisher.set_ready();
        }
    }
}
