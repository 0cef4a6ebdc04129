//! The clock: binds what arrives to ticks, runs one tick after the other, and publishes (architecture D5a, D11).
//!
//! At once when idle, with growing batches under load: whatever has arrived when a tick ends is the next tick. Beside
//! live changes each tick walks a slice of what is being built; the slice shrinks while changes wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use schemas::{
    port::Clock,
    position::{Frontier, Tick},
    table::Snapshot,
};
use tokio::sync::mpsc;

use crate::{
    catalog::Catalog,
    config::DataflowConfig,
    document::{Arriving, Content, Record},
    error::DataflowError,
    metrics::Metrics,
    snapshot::Publisher,
    worker::{Report, TickBatch},
};

/// What the sources tell the clock.
#[derive(Debug)]
pub(crate) enum Event {
    /// Documents of the scan of the primary store.
    Documents(Vec<Arriving>),
    /// The scan is complete and stands at this frontier.
    ScanDone(Frontier),
    /// Records of the change log.
    Records(Vec<Record>),
    /// The source has nothing newer.
    Idle,
    /// The source cannot read everything for now.
    Stalled,
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
    scanned: bool,
    /// Documents or rows walked per tick.
    pub(crate) walk: usize,
    /// True while something is walked for views being built, or to take back what they were given.
    pub(crate) walking: bool,
    last_live: Instant,
    sources_seen_at: i64,
    /// True from when a lane could not be read until all could.
    stalled: bool,
}

impl<R: FnMut(TickBatch) -> Result<Report, DataflowError>> TickClock<R> {
    pub(crate) fn new(
        config: &DataflowConfig,
        run_tick: R,
        publisher: Arc<Publisher>,
        wall: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let now = wall.now_micros();
        // A new engine goes on counting where the last one of this process stopped, so that snapshots keep their order.
        let tick = publisher.snapshot().tick;
        Self {
            run_tick,
            publisher,
            wall,
            metrics,
            catalog: Catalog::new(config),
            tick,
            frontier: Frontier::default(),
            stamp: 0,
            scanned: false,
            walk: WALK_LIMITS.0,
            walking: false,
            last_live: Instant::now(),
            sources_seen_at: now,
            stalled: false,
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
    pub(crate) fn step(
        &mut self,
        first: Option<Event>,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<(), DataflowError> {
        let now = self.wall.now_micros();
        let mut batch = TickBatch { now, commands: self.catalog.prepare(now), ..TickBatch::default() };
        let mut records = 0;
        let mut next = first;
        let mut scan_done = None;
        while let Some(event) = next.take() {
            match event {
                Event::Documents(documents) => {
                    records += documents.len();
                    for document in documents {
                        batch.commands.extend(self.catalog.domain(&document.key.domain));
                        self.take(document, &mut batch);
                    }
                }
                Event::ScanDone(frontier) => scan_done = Some(frontier),
                Event::Records(read) => {
                    if !self.stalled {
                        self.sources_seen_at = batch.now;
                    }
                    records += read.len();
                    for record in read {
                        self.frontier.advance(record.position);
                        batch.commands.extend(self.catalog.domain(&record.domain));
                        for document in record.documents {
                            self.take(document, &mut batch);
                        }
                    }
                }
                Event::Idle => {
                    self.stalled = false;
                    self.sources_seen_at = batch.now;
                }
                Event::Stalled => self.stalled = true,
            }
            if scan_done.is_none() && batch.documents.len() < MAX_BATCH {
                next = events.try_recv().ok();
            }
        }
        if records > 0 || !batch.commands.is_empty() || self.walking {
            self.run_batch(batch, records)?;
        }
        self.settle(now)?;
        if let Some(frontier) = scan_done {
            for position in frontier.positions() {
                self.frontier.advance(position);
            }
            self.scanned = true;
        }
        self.publish();
        Ok(())
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

    /// Runs a batch of so many records as one tick.
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
        Ok(())
    }

    /// Puts complete builds in their places. What they replace leaves in ticks of their own, before anything is
    /// published.
    fn settle(&mut self, now: i64) -> Result<(), DataflowError> {
        loop {
            let commands = self.catalog.swap();
            if commands.is_empty() {
                return Ok(());
            }
            self.run(TickBatch { now, commands, ..TickBatch::default() })?;
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
        let snapshot = Snapshot {
            tick: self.tick,
            as_of,
            complete_through: self.frontier.clone(),
            sources_seen_at: self.sources_seen_at,
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
