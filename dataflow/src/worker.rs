//! A timely worker: the fixed graph, and the loop that runs one tick at a time (architecture D6, D7).
//!
//! ```text
//! arrivals ─▶ documents ─▶ changed ─────────▶ evaluate ─▶ rows ─▶ tables ─▶ base ──▶ join × 8 ─▶ group ─▶ probe
//!                 │                            ▲   │                 └────▶ index ──▶ (arranged)
//!                 └──────▶ related ─▶ relate ──┘◀──┘ demands
//! ```
//!
//! The graph is built once, the same on every worker. Views come and go as [`Command`]s between ticks. The clock starts tick
//! `t + 1` only when the probe of every worker has passed `t`, so every operator may keep "the present" as plain state:
//! nothing of `t + 1` is in it. A document, the rows made of it and the questions for its id are on its home worker;
//! joins and groups are exchanged by their keys.
//!
//! A tick has rounds: an answer to a demand comes back one round later. Both live in one totally ordered `u64`
//! ([`round_zero`]), which spares the graph a nested scope and differential's joins a partial order.

use std::{
    cell::{Cell as StdCell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    id::{DocId, DomainId},
    position::{Stamp, Tick},
    table::Table,
};
use serde::{Deserialize, Serialize};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandle, ProbeHandle,
        operators::{Input, Probe},
    },
    worker::Worker,
};

use crate::{
    aggregate::Aggregates,
    checkpoint::{KeptDocument, KeptTable, Slice},
    document::{Arriving, Content, DocKey, Documents, Share, Version, partition},
    error::{DataflowError, TableError},
    evaluate::Evaluator,
    meter::Meters,
    peers::Ended,
    provenance::{Looked, look},
    relation::{RelationKind, Relations},
    rows::{Feed, IndexNo, Published, Reader, Tables},
    table::walk_length,
    view::{Command, Instance, Logic, ViewNo},
};

mod graph;

type Handle<D> = InputHandle<u64, CapacityContainerBuilder<Vec<D>>>;

/// Bits of a timestamp that count the rounds of a tick.
const ROUND_BITS: u32 = 20;

/// A worker that waits for others looks this often whether they are still there; what they send wakes it at once.
const PEER_CHECK: Duration = Duration::from_millis(100);

/// The timestamp at which a tick begins.
const fn round_zero(tick: Tick) -> u64 {
    tick.0 << ROUND_BITS
}

/// The tick of a timestamp.
const fn tick_of(time: u64) -> Tick {
    Tick(time >> ROUND_BITS)
}

/// What all workers are told of a tick. Documents come beside it, to each worker its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct TickBatch {
    pub(crate) tick: Tick,
    /// Wall clock, microseconds since 1970 UTC.
    pub(crate) now: i64,
    /// Newest stamp among the documents so far.
    pub(crate) stamp: i64,
    pub(crate) commands: Vec<Command>,
    /// Documents or rows that each may walk for views being built.
    pub(crate) walk: usize,
    /// What a checkpoint is given of this tick.
    pub(crate) slice: Option<Slice>,
}

/// What a worker did in a tick.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) published: Published,
    /// Views being built: done, total.
    pub(crate) progress: Vec<(ViewNo, usize, usize)>,
    /// Views whose walks ended in this tick.
    pub(crate) completed: Vec<ViewNo>,
    /// Retired aggregate views that in this tick were taken back the last of what they had been given.
    pub(crate) withdrawn: Vec<ViewNo>,
    /// True while walks go on.
    pub(crate) walking: bool,
    /// Documents or rows walked.
    pub(crate) walked: usize,
    /// Domains in which not everything has followed a change yet; their tables are not to be shown.
    pub(crate) behind: BTreeSet<DomainId>,
    /// What the checkpoint was given, if it asked.
    pub(crate) kept: Option<Kept>,
    /// What was looked up, in the order in which it was asked for.
    pub(crate) looked: Vec<Option<Looked>>,
}

/// A worker's part of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) documents: Vec<KeptDocument>,
    /// Number of documents that the worker holds.
    pub(crate) held: usize,
    /// The tables, unless documents are left to give.
    pub(crate) tables: Option<Vec<(ViewNo, KeptTable)>>,
}

/// What enters the graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Arrival {
    /// A document's new version.
    Upsert { key: DocKey, version: Option<Version>, stamp: Stamp },
    /// Evaluate the documents in places `start..end` for a view being built.
    Visit { view: ViewNo, domain: DomainId, kind: DocKind, start: usize, end: usize },
    /// Tell so many subjects on that worker of changes of which they have not been told yet.
    Tell { worker: u64, most: usize },
    /// Let the documents in places `start..end` contribute to a kind of question that is asked for the first time.
    Contribute { domain: DomainId, relation: RelationKind, start: usize, end: usize },
}

/// Rows of a table as it stood, for a reader that came later.
#[derive(Clone)]
struct RowWalk {
    table: Arc<Table>,
    feed: Feed,
    diff: isize,
    start: usize,
    end: usize,
}

/// Work that goes on in slices beside live changes, in turns.
enum Walk {
    /// Evaluates every document of a kind for a view.
    Documents { view: ViewNo, domain: DomainId, kind: DocKind, next: usize, total: usize },
    /// Lets every document that can contribute to a kind of question that a view asks for the first time.
    Contributions { view: ViewNo, domain: DomainId, relation: RelationKind, next: usize, total: usize },
    /// Gives a reader the rows of a table as it stood, or takes them back.
    Rows { view: ViewNo, table: Arc<Table>, feed: Feed, diff: isize, next: usize, total: usize },
}

impl Walk {
    const fn view(&self) -> ViewNo {
        match self {
            Self::Documents { view, .. } | Self::Contributions { view, .. } | Self::Rows { view, .. } => *view,
        }
    }

    const fn range(&self) -> (usize, usize) {
        match self {
            Self::Documents { next, total, .. }
            | Self::Contributions { next, total, .. }
            | Self::Rows { next, total, .. } => (*next, *total),
        }
    }
}

/// State that the loop and the operators share; all of it lives on the worker's thread.
#[derive(Clone)]
struct State {
    documents: Rc<RefCell<Documents>>,
    relations: Rc<RefCell<Relations>>,
    evaluator: Rc<RefCell<Evaluator>>,
    tables: Rc<RefCell<Tables>>,
    aggregates: Rc<RefCell<Aggregates>>,
    /// Rows that readers installed in this tick have yet to be given.
    row_walks: Rc<RefCell<Vec<RowWalk>>>,
    failed: Rc<RefCell<Option<TableError>>>,
    stamp: Rc<StdCell<i64>>,
}

/// Which rows by which columns: a table, its key columns, and those that are read.
type IndexKey = (ViewNo, Vec<usize>, Arc<[usize]>);

/// One worker, driven tick by tick.
pub(crate) struct Engine {
    state: State,
    arrivals: Handle<Arrival>,
    /// One nudge per tick in which [`State::row_walks`] holds something.
    nudges: Handle<()>,
    probe: ProbeHandle<u64>,
    walks: VecDeque<Walk>,
    /// Retired aggregate views that are being taken back what they were given.
    withdrawing: BTreeSet<ViewNo>,
    /// Views whose documents are not walked for now.
    held: BTreeSet<ViewNo>,
    /// Indexes by table, key columns and columns read. The same on every worker.
    indexes: HashMap<IndexKey, IndexNo>,
    next_index: u32,
    progress: BTreeMap<ViewNo, (usize, usize)>,
    /// Which worker this is, of how many.
    place: (u64, u64),
    ended: Ended,
}

impl Engine {
    /// Builds the graph. `ended` tells that a worker will not take part in any further tick; `meters` count what is held.
    pub(crate) fn new(worker: &mut Worker, ended: Ended, meters: &Meters) -> Self {
        let documents = Rc::new(RefCell::new(Documents::new(meters)));
        let tables: Rc<RefCell<Tables>> = Rc::default();
        let state = State {
            evaluator: Rc::new(RefCell::new(Evaluator::new(Rc::clone(&documents), Rc::clone(&tables), meters))),
            relations: Rc::new(RefCell::new(Relations::new(Rc::clone(&documents), meters))),
            documents,
            tables,
            aggregates: Rc::new(RefCell::new(Aggregates::new(meters))),
            row_walks: Rc::default(),
            failed: Rc::default(),
            stamp: Rc::default(),
        };
        let mut arrivals: Handle<Arrival> = InputHandle::new();
        let mut nudges: Handle<()> = InputHandle::new();
        let probe = ProbeHandle::new();
        worker.dataflow::<u64, _, _>(|scope| {
            let arriving = scope.input_from(&mut arrivals);
            let nudged = scope.input_from(&mut nudges);
            let rows = graph::evaluation(scope, arriving, &state);
            if let Some(end) = graph::aggregation(rows, nudged, &state) {
                end.probe_with(&probe);
            }
        });
        Self {
            state,
            arrivals,
            nudges,
            probe,
            walks: VecDeque::new(),
            withdrawing: BTreeSet::new(),
            held: BTreeSet::new(),
            indexes: HashMap::new(),
            next_index: 0,
            progress: BTreeMap::new(),
            place: (worker.index() as u64, worker.peers() as u64),
            ended,
        }
    }

    /// Runs one tick to its end, with this worker's share of what it brings.
    ///
    /// # Errors
    /// A table could not be built, or another worker ended.
    pub(crate) fn tick(
        &mut self,
        worker: &mut Worker,
        batch: &TickBatch,
        share: Share,
    ) -> Result<Report, DataflowError> {
        self.arrivals.advance_to(round_zero(batch.tick));
        self.nudges.advance_to(round_zero(batch.tick));
        self.state.stamp.set(batch.stamp);
        self.state.evaluator.borrow_mut().begin(batch.now);
        for document in share.kept {
            self.state.documents.borrow_mut().restore(document);
        }
        for command in &batch.commands {
            self.command(command, batch.tick)?;
        }
        for document in share.documents {
            self.arrive(document);
        }
        let told = self.tell(batch.walk);
        let (walked, ended) = self.walk(batch.walk - told);
        let end = round_zero(Tick(batch.tick.0 + 1));
        self.arrivals.advance_to(end);
        self.nudges.advance_to(end);
        self.finish(worker, end)?;
        if let Some(error) = self.state.failed.borrow_mut().take() {
            return Err(error.into());
        }
        for view in &ended {
            self.progress.remove(view);
        }
        let behind = self.state.relations.borrow().behind();
        let kept = batch.slice.map(|slice| self.keep(slice));
        let looked = match share.looks.as_slice() {
            [] => Vec::new(),
            looks => {
                let State { documents, evaluator, tables, .. } = &self.state;
                let (documents, evaluator, tables) = (documents.borrow(), evaluator.borrow(), tables.borrow());
                looks.iter().map(|of| look(of, &documents, &evaluator, &tables)).collect()
            }
        };
        let walks = &self.walks;
        let withdrawn = self.withdrawing.extract_if(.., |no| !walks.iter().any(|walk| walk.view() == *no)).collect();
        Ok(Report {
            published: self.state.tables.borrow_mut().publish(),
            progress: self.progress.iter().map(|(view, (done, total))| (*view, *done, *total)).collect(),
            completed: ended,
            withdrawn,
            walking: self.next_walk().is_some() || !behind.is_empty(),
            walked: told + walked,
            behind,
            kept,
            looked,
        })
    }

    /// Gives a checkpoint its slice of the documents and, with the last one, the tables.
    fn keep(&self, slice: Slice) -> Kept {
        let mut documents = self.state.documents.borrow_mut();
        if slice.whole {
            documents.all_new();
        }
        let taken = documents.take_new(slice.most);
        let tables = (documents.new_count() == 0).then(|| self.state.tables.borrow().kept());
        Kept { documents: taken, held: documents.len(), tables }
    }

    /// Steps until everything before `end` has passed every operator of every worker.
    fn finish(&self, worker: &mut Worker, end: u64) -> Result<(), DataflowError> {
        if worker.peers() == 1 {
            while self.probe.less_than(&end) {
                worker.step();
            }
            return Ok(());
        }
        while self.probe.less_than(&end) {
            worker.step_or_park(Some(PEER_CHECK));
            if self.ended.is_set() {
                return Err(DataflowError::Peer);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, Arriving { key, stamp, content, .. }: Arriving) {
        if let Content::Document(version) = content {
            self.arrivals.send(Arrival::Upsert { key, version, stamp });
        }
    }

    fn command(&mut self, command: &Command, tick: Tick) -> Result<(), TableError> {
        match command {
            Command::Install(instance) => self.install(instance),
            Command::Restore(instance, kept) => self.restore(instance, kept, tick)?,
            Command::Retire(no) => self.retire(*no, tick)?,
            Command::Forget(no) => self.state.aggregates.borrow_mut().forget(*no),
            Command::Hold(no) => drop(self.held.insert(*no)),
            Command::Resume(no) => drop(self.held.remove(no)),
            Command::Publish(no) => self.state.tables.borrow_mut().reveal(*no, tick)?,
        }
        Ok(())
    }

    fn install(&mut self, instance: &Arc<Instance>) {
        self.state.tables.borrow_mut().install(instance);
        self.progress.insert(instance.no, (0, 0));
        match &instance.logic {
            Logic::Rows(logic) => {
                self.state.evaluator.borrow_mut().install(instance);
                for relation in self.state.relations.borrow_mut().want(&instance.domain, &logic.relations()) {
                    let Some(kind) = relation.contributor() else { continue };
                    let (view, domain) = (instance.no, instance.domain.clone());
                    let total = self.state.documents.borrow().count(&domain, kind);
                    self.walks.push_back(Walk::Contributions { view, domain, relation, next: 0, total });
                }
                self.visit_all(instance);
            }
            Logic::Groups { view, inputs } => {
                let feeds = self.feeds(instance, view, inputs);
                for (input, feed, is_new) in feeds {
                    if !is_new {
                        continue;
                    }
                    let table = self.state.tables.borrow_mut().feed(input, feed.clone());
                    let Some(table) = table else { continue };
                    let total = walk_length(&table);
                    self.walks.push_back(Walk::Rows { view: instance.no, table, feed, diff: 1, next: 0, total });
                }
            }
        }
        self.count_progress(instance.no);
    }

    /// Installs a row view whose table a checkpoint held; nothing is left to walk.
    fn restore(&mut self, instance: &Arc<Instance>, kept: &KeptTable, tick: Tick) -> Result<(), TableError> {
        let Logic::Rows(logic) = &instance.logic else { return Ok(()) };
        let (domain, kind) = (&instance.domain, logic.kind());
        let documents = self.state.documents.borrow();
        let document = |id: &str| {
            let key = DocKey { domain: domain.clone(), kind, id: DocId::new(id).ok()? };
            Some(documents.get(&key)?.doc.clone())
        };
        let (own, peers) = self.place;
        let is_ours = |id: &str| peers == 1 || partition(domain, kind, id) % peers == own;
        let mut tables = self.state.tables.borrow_mut();
        tables.install(instance);
        tables.restore(tick, instance.no, kept, is_ours, document)?;
        self.state.evaluator.borrow_mut().install(instance);
        self.progress.insert(instance.no, (0, 0));
        let (view, domain) = (instance.no, domain.clone());
        self.walks.push_back(Walk::Documents { view, domain, kind, next: 0, total: 0 });
        Ok(())
    }

    /// The feeds of an aggregate view, each with the table it reads and whether it has to be filled.
    fn feeds(
        &mut self,
        instance: &Arc<Instance>,
        view: &udf::aggregate_view::AggregateView,
        inputs: &[(ViewNo, Arc<[usize]>)],
    ) -> Vec<(ViewNo, Feed, bool)> {
        let mut feeds = Vec::new();
        let mut indexes = Vec::new();
        let mut read = inputs.iter();
        if let Some((input, columns)) = read.next() {
            let feed = Feed { reader: Reader::Base(instance.no), columns: Arc::clone(columns) };
            feeds.push((*input, feed, true));
        }
        let mut aggregates = self.state.aggregates.borrow_mut();
        for (join, (input, columns)) in view.joins.iter().zip(read) {
            let columns = Arc::clone(columns);
            let key = (*input, join.right.clone(), Arc::clone(&columns));
            let is_new = !self.indexes.contains_key(&key);
            let no = *self.indexes.entry(key).or_insert_with(|| {
                self.next_index += 1;
                IndexNo(self.next_index)
            });
            if is_new {
                let source = self.state.tables.borrow().id(*input).unwrap_or_default().to_owned();
                aggregates.index(no, join.right.clone(), &instance.domain, &source);
            }
            indexes.push(no);
            feeds.push((*input, Feed { reader: Reader::Index(no), columns }, is_new));
        }
        aggregates.install(instance, indexes);
        feeds
    }

    /// Forgets a view. What an aggregate view and its indexes were given is taken back by walks of its own, behind
    /// those that may still be giving it.
    fn retire(&mut self, no: ViewNo, tick: Tick) -> Result<(), TableError> {
        self.walks.retain(|walk| !matches!(walk, Walk::Documents { view, .. } if *view == no));
        self.progress.remove(&no);
        self.held.remove(&no);
        let mut evaluator = self.state.evaluator.borrow_mut();
        if let Some((domain, asked)) = evaluator.retire(no) {
            let gone = self.state.relations.borrow_mut().unwant(&domain, &asked);
            self.walks.retain(|walk| {
                !matches!(walk, Walk::Contributions { domain: of, relation, .. } if *of == domain && gone.contains(relation))
            });
            if !gone.is_empty() {
                evaluator.forget(&domain, &gone);
            }
        }
        drop(evaluator);
        let mut tables = self.state.tables.borrow_mut();
        if let Some(indexes) = self.state.aggregates.borrow_mut().retire(no) {
            let readers = indexes.iter().map(|index| Reader::Index(*index)).chain([Reader::Base(no)]);
            for (table, feed) in readers.flat_map(|reader| tables.unfeed(reader)).collect::<Vec<_>>() {
                let total = walk_length(&table);
                self.walks.push_back(Walk::Rows { view: no, table, feed, diff: -1, next: 0, total });
            }
            self.indexes.retain(|_, held| !indexes.contains(held));
            self.withdrawing.insert(no);
        }
        tables.retire(no, tick)
    }

    fn visit_all(&mut self, instance: &Arc<Instance>) {
        let Logic::Rows(logic) = &instance.logic else { return };
        let kind = logic.kind();
        let total = self.state.documents.borrow().count(&instance.domain, kind);
        let domain = instance.domain.clone();
        self.walks.push_back(Walk::Documents { view: instance.no, domain, kind, next: 0, total });
    }

    /// Adds up how far the walks of a view being built are.
    fn count_progress(&mut self, no: ViewNo) {
        let Some(before) = self.progress.get(&no).copied() else { return };
        let ranges = self.walks.iter().filter(|walk| walk.view() == no).map(Walk::range);
        let (left, total) = ranges.fold((0, 0), |(left, total), (next, end)| (left + end - next, total + end));
        let total = total.max(before.1);
        self.progress.insert(no, (total - left, total));
    }

    /// Lets up to `budget` subjects be told of changes that the tick of the change had no room for; returns how many.
    fn tell(&mut self, budget: usize) -> usize {
        let most = self.state.relations.borrow().untold().min(budget);
        if most > 0 {
            self.arrivals.send(Arrival::Tell { worker: self.place.0, most });
        }
        most
    }

    /// Place of the walk that goes on next. Rows are walked for held views too: others may read the same index; and so are
    /// contributions, for other views may ask the same.
    fn next_walk(&self) -> Option<usize> {
        let is_held = |walk: &Walk| matches!(walk, Walk::Documents { view, .. } if self.held.contains(view));
        self.walks.iter().position(|walk| !is_held(walk))
    }

    /// Walks up to `budget` documents or rows; returns how many, and the views whose walks ended.
    fn walk(&mut self, budget: usize) -> (usize, Vec<ViewNo>) {
        let mut left = budget;
        let mut ended = Vec::new();
        while let Some(place) = self.next_walk()
            && let Some(walk) = self.walks.get_mut(place)
        {
            let (next, total) = walk.range();
            let end = total.min(next + left);
            if end > next {
                match walk {
                    Walk::Documents { view, domain, kind, next, .. } => {
                        let arrival =
                            Arrival::Visit { view: *view, domain: domain.clone(), kind: *kind, start: *next, end };
                        self.arrivals.send(arrival);
                        *next = end;
                    }
                    Walk::Contributions { domain, relation, next, .. } => {
                        let (domain, relation, start) = (domain.clone(), *relation, *next);
                        self.arrivals.send(Arrival::Contribute { domain, relation, start, end });
                        *next = end;
                    }
                    Walk::Rows { table, feed, diff, next, .. } => {
                        let slice =
                            RowWalk { table: Arc::clone(table), feed: feed.clone(), diff: *diff, start: *next, end };
                        if self.state.row_walks.borrow().is_empty() {
                            self.nudges.send(());
                        }
                        self.state.row_walks.borrow_mut().push(slice);
                        *next = end;
                    }
                }
                left -= end - next;
            }
            let view = walk.view();
            if end < total {
                self.count_progress(view);
                // Builds take turns, so that a small one does not wait for a large one. Rows are walked to their end:
                // what is taken back comes behind what was given.
                if end > next && matches!(self.walks.get(place), Some(Walk::Documents { .. })) {
                    let walk = self.walks.remove(place);
                    self.walks.extend(walk);
                }
                break;
            }
            self.walks.remove(place);
            self.count_progress(view);
            if !self.walks.iter().any(|walk| walk.view() == view) && self.progress.contains_key(&view) {
                ended.push(view);
            }
        }
        (budget - left, ended)
    }
}
