//! An engine that tests drive by hand, step by step: no snapshot escapes them.

use super::*;
use crate::{
    clock::TickClock,
    document::Share,
    metrics::{Metrics, WorkerRecords},
    peers,
    worker::{Report, TickBatch},
};

/// Documents or rows walked per step.
const SLICE: usize = 64;

type RunTick<'w> = Box<dyn FnMut(&TickBatch, Vec<Share>) -> Result<Vec<Report>, DataflowError> + 'w>;

/// An engine, what has been committed so far, and the time.
pub(super) struct Driven<'w> {
    pub(super) world: World,
    clock: TickClock<RunTick<'w>>,
    wall: Arc<SetClock>,
    publisher: Arc<Publisher>,
    /// Nothing arrives but what is given to a step.
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// Looks at every snapshot.
    look: fn(&Snapshot),
    workers: Workers,
}

/// Runs a test against an engine that starts with an empty store.
pub(super) fn drive(
    config: DataflowConfig,
    now: i64,
    look: fn(&Snapshot),
    test: impl Fn(&mut Driven<'_>) + Send + Sync + 'static,
) {
    let workers = config.workers;
    let ran = peers::run(workers, Meters::default(), move |mut lead| {
        let run_tick: RunTick<'_> = Box::new(|batch, shares| lead.tick(batch, shares));
        let wall = Arc::new(SetClock(AtomicI64::new(now)));
        let publisher = Arc::new(Publisher::new());
        let (at, to) = (Arc::clone(&wall), Arc::clone(&publisher));
        let metrics = Metrics::new(WorkerRecords::new(workers));
        let clock = TickClock::new(&config, run_tick, to, at, metrics, None);
        let events = mpsc::channel(1);
        let mut driven = Driven { world: World::default(), clock, wall, publisher, events, look, workers };
        driven.step(Event::ScanDone(Frontier::default()));
        test(&mut driven);
        Ok(())
    });
    ran.unwrap();
}

impl Driven<'_> {
    pub(super) fn now(&self) -> i64 {
        self.wall.now_micros()
    }

    /// Sets the clock; nothing notices before the next step.
    pub(super) fn set(&self, now: i64) {
        self.wall.0.store(now, Ordering::Relaxed);
    }

    fn step(&mut self, event: Event) {
        // Slices of one size, whatever the machine's speed.
        self.clock.walk = SLICE;
        self.clock.step(Some(event), &mut self.events.1).unwrap();
        (self.look)(&self.publisher.snapshot());
    }

    /// A step in which nothing arrives.
    pub(super) fn idle(&mut self) {
        self.step(Event::Idle);
    }

    /// A step with one record, and those that it takes until all rows have followed.
    pub(super) fn commit(&mut self, changes: Vec<(DocKind, String, Option<Value>)>) {
        self.world.commit(changes);
        let record = self.world.log.pop_back().unwrap();
        self.step(Event::Records(vec![Record::read(&record, self.workers)]));
        while self.snapshot().domains.values().any(|tables| tables.behind.is_some()) {
            self.idle();
        }
    }

    pub(super) fn walking(&self) -> bool {
        self.clock.walking
    }

    /// Steps until nothing is left to walk, and once more for what follows from that.
    pub(super) fn settle(&mut self) {
        self.idle();
        self.idle();
        while self.walking() {
            self.idle();
            if !self.walking() {
                self.idle();
            }
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.publisher.snapshot()
    }
}

/// A table of a snapshot.
pub(super) fn table<'s>(snapshot: &'s Snapshot, schema: &str, name: &str) -> Option<&'s Arc<Table>> {
    snapshot.domains.get(&DomainId::new(DOMAIN).unwrap())?.tables.get(&TableName::new(schema, name))
}

/// The values of a column, in no particular order.
pub(super) fn values(table: &Table, name: &str) -> Vec<Cell> {
    let column = table.schema.position(name).unwrap();
    content(table).iter().map(|row| row[column].clone()).collect()
}
