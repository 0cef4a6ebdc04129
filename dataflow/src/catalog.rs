//! Which views there are: from definitions in the change log to instances, and which of them readers see.
//!
//! In:  definition documents (put and deleted), and reports of builds that ended. Out: [`Command`]s for the workers, and
//! the names under which finished tables are published.
//!
//! A changed definition is a new instance beside the published one; so is a data source whose domain has changed a
//! named expression or filter that it uses. Aggregate views over a data source that is being replaced are built again
//! on its new instance, and all of them take the old ones' place in one tick. Whatever is there already is not built
//! again: putting the published definition gives a build up, putting the one that was previewed takes the preview over.
//!
//! Rows that change with the day are those of one day in all tables of a domain. Before midnight, each live instance
//! whose rows do gets a *successor*, the same for the next day; it is built like any other instance. In the first tick
//! of the new day the domain *turns*: its successors take their places, all at once. If they are not complete by then,
//! the domain stays at the old day until they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    definition::Control,
    id::DomainId,
    row::TableSchema,
    table::{DomainTables, Moment, Table},
};
use serde_json::Value;
use udf::{DataSource, NameKind, Registry, aggregate_view::AggregateView};

use crate::{
    checkpoint::{Definitions, KeptTable, State, ViewKey},
    config::{DataflowConfig, Workers},
    table::union,
    view::{Command, DOCUMENT_TABLES, Day, Instance, Logic, RowLogic, ViewNo, documents},
    worker::Report,
};

mod days;
mod published;
mod queue;
mod status;

pub(crate) use published::table_of;
use queue::Queue;

/// What an instance was compiled from.
#[derive(Clone, Debug, Default, PartialEq)]
struct Origin {
    document: Arc<Value>,
    /// Counts the changes of names that the document uses.
    names: u64,
}

/// Why a view is not maintained for now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pause {
    /// Its definition says so.
    Own,
    /// A data source that it reads is paused.
    Source(String),
}

/// A definition and its instances.
#[derive(Default)]
struct Definition {
    origin: Origin,
    /// True if the definition says that it is not to be maintained.
    paused: bool,
    /// Another document, to be built beside and compared.
    proposed: Option<Arc<Value>>,
    live: Option<ViewNo>,
    building: Option<ViewNo>,
    /// What takes the place of `live` when the domain turns to another day.
    successor: Option<ViewNo>,
    /// Of `proposed`.
    preview: Option<ViewNo>,
    pause: Option<Pause>,
    failed: Option<String>,
    preview_failed: Option<String>,
}

impl Definition {
    fn instances(&self) -> impl Iterator<Item = ViewNo> {
        self.live.into_iter().chain(self.building).chain(self.successor).chain(self.preview)
    }
}

/// How far an instance has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Workers do not have it yet.
    Waiting,
    /// Workers are filling its table.
    Building,
    /// Its table has all rows.
    Complete,
    /// Workers have forgotten it; its table stays as it was.
    Frozen,
}

/// What one worker has of an instance.
#[derive(Clone, Default)]
struct Part {
    table: Option<Arc<Table>>,
    done: usize,
    total: usize,
    complete: bool,
}

struct Installed {
    instance: Arc<Instance>,
    origin: Origin,
    phase: Phase,
    /// Since when its build does not go on, because the definition is paused.
    held: Option<Instant>,
    /// When its build began, or would have begun without pauses.
    started: Instant,
    /// When its build began, microseconds since 1970 UTC.
    started_at: i64,
    /// By worker.
    parts: Vec<Part>,
    /// The parts' tables as one.
    table: Option<Arc<Table>>,
    /// Where the table is in its domain's published map, once it is there.
    place: Option<usize>,
}

impl Installed {
    /// Documents or rows walked to build it, and how many there are to walk.
    fn progress(&self) -> (usize, usize) {
        self.parts.iter().fold((0, 0), |(done, total), part| (done + part.done, total + part.total))
    }
}

/// A compiled definition.
struct Made {
    logic: Logic,
    schema: Arc<TableSchema>,
    day: Option<Day>,
}

/// Why a definition makes no view.
enum Unmade {
    Deactivated,
    /// Everything that is wrong with it.
    Invalid(String),
}

/// A domain's table of errors.
struct Errors {
    /// By worker.
    parts: Vec<Option<Arc<Table>>>,
    /// The parts as one.
    table: Arc<Table>,
    place: Option<usize>,
}

/// All definitions and instances of all domains.
pub(crate) struct Catalog {
    workers: Workers,
    /// How long before midnight successors are installed, microseconds.
    lead: i64,
    /// Wall clock of the step, microseconds since 1970 UTC.
    now: i64,
    /// The day of each domain's rows.
    days: BTreeMap<DomainId, Day>,
    /// Something happened after which successors may be missing or too many.
    unprepared: bool,
    /// Something happened after which a build may take its place.
    unsettled: bool,
    definitions: BTreeMap<ViewKey, Definition>,
    /// Named expressions and filters of each domain.
    registries: HashMap<DomainId, Registry>,
    instances: HashMap<ViewNo, Installed>,
    queue: Queue,
    errors: HashMap<DomainId, Errors>,
    /// Retired aggregate views, each with the number of workers that have yet to take back what it was given.
    leaving: BTreeMap<ViewNo, usize>,
    last: u32,
    /// Domains of which more has changed than the contents of published tables.
    dirty: BTreeSet<DomainId>,
    /// Newer versions of published tables, by their place.
    newer: BTreeMap<DomainId, Vec<(usize, Arc<Table>)>>,
    published: HashMap<DomainId, Arc<DomainTables>>,
    /// Domains whose published tables stay as they are.
    behind: BTreeSet<DomainId>,
    /// Definitions, named expressions and filters as they were put, for a checkpoint.
    texts: BTreeMap<ViewKey, Arc<str>>,
    /// Tables of a checkpoint that wait for their definitions.
    kept: Kept,
}

/// Tables of a checkpoint.
#[derive(Default)]
struct Kept {
    /// Of rows that change with it.
    day: Option<Day>,
    tables: HashMap<ViewKey, KeptTable>,
}

impl Kept {
    /// The table of an instance, where only the document itself decides a row. A table whose rows read other documents is
    /// built anew, for who asked for what is not kept, and so is one of another day.
    fn take(&mut self, instance: &Instance) -> Option<KeptTable> {
        let Logic::Rows(rows) = &instance.logic else { return None };
        let key = (instance.domain.clone(), rows.definition(), instance.id.clone());
        let table = self.tables.remove(&key)?;
        let is_of_day = instance.day.is_none() || instance.day == self.day;
        (is_of_day && rows.relations().is_empty()).then_some(table)
    }
}

impl Catalog {
    /// A catalog without domains.
    pub(crate) fn new(config: &DataflowConfig) -> Self {
        Self {
            workers: config.workers,
            lead: i64::from(config.next_day_lead_s) * 1_000_000,
            now: 0,
            days: BTreeMap::new(),
            unprepared: false,
            unsettled: false,
            definitions: BTreeMap::new(),
            registries: HashMap::new(),
            instances: HashMap::new(),
            queue: Queue::new(config),
            errors: HashMap::new(),
            leaving: BTreeMap::new(),
            last: 0,
            dirty: BTreeSet::new(),
            newer: BTreeMap::new(),
            published: HashMap::new(),
            behind: BTreeSet::new(),
            texts: BTreeMap::new(),
            kept: Kept::default(),
        }
    }

    /// Installs the built-in views of a domain that is seen for the first time. They have no definition document and cannot be
    /// dropped.
    pub(crate) fn domain(&mut self, domain: &DomainId) -> Vec<Command> {
        if self.published.contains_key(domain) {
            return Vec::new();
        }
        self.published.insert(domain.clone(), Arc::default());
        self.days.insert(domain.clone(), Day::of(self.now));
        let mut commands = Vec::new();
        for (id, kind) in DOCUMENT_TABLES {
            let logic = Logic::Rows(RowLogic::Documents(kind));
            let made = Made { logic, schema: Arc::new(documents(kind)), day: None };
            let key = (domain.clone(), kind, id.to_owned());
            let no = self.install(&key, made, Origin::default());
            self.begin(no, &mut commands);
            self.definitions.insert(key, Definition { building: Some(no), ..Definition::default() });
        }
        commands
    }

    /// Adds an instance, whose build has yet to begin.
    fn install(&mut self, key: &ViewKey, made: Made, origin: Origin) -> ViewNo {
        let (domain, _, id) = key;
        let Made { logic, schema, day } = made;
        self.last += 1;
        let no = ViewNo(self.last);
        let stamp_column = schema.position(logic.stamp_column());
        let instance =
            Arc::new(Instance { no, domain: domain.clone(), id: id.clone(), logic, schema, stamp_column, day });
        let installed = Installed {
            instance,
            origin,
            phase: Phase::Waiting,
            held: None,
            started: Instant::now(),
            started_at: self.now,
            parts: vec![Part::default(); self.workers.count()],
            table: None,
            place: None,
        };
        self.instances.insert(no, installed);
        self.dirty.insert(domain.clone());
        (self.unprepared, self.unsettled) = (true, true);
        no
    }

    /// Lets the build of an instance begin, or go on.
    fn begin(&mut self, no: ViewNo, commands: &mut Vec<Command>) {
        let Some(installed) = self.instances.get_mut(&no) else { return };
        self.dirty.insert(installed.instance.domain.clone());
        match installed.held.take() {
            Some(since) if installed.phase == Phase::Building => {
                installed.started += since.elapsed();
                commands.push(Command::Resume(no));
            }
            _ => {
                installed.phase = Phase::Building;
                (installed.started, installed.started_at) = (Instant::now(), self.now);
                let instance = Arc::clone(&installed.instance);
                commands.push(match self.kept.take(&instance) {
                    Some(kept) => Command::Restore(instance, Arc::new(kept)),
                    None => Command::Install(instance),
                });
            }
        }
    }

    /// Takes in a definition document; `None` drops the view or the name.
    pub(crate) fn define(
        &mut self,
        domain: &DomainId,
        kind: DocKind,
        id: &str,
        document: Option<&str>,
    ) -> Vec<Command> {
        let mut commands = self.domain(domain);
        let key = (domain.clone(), kind, id.to_owned());
        match document {
            Some(text) => self.texts.insert(key.clone(), text.into()),
            None => self.texts.remove(&key),
        };
        if let Some(kind) = NameKind::of(kind) {
            self.name(domain, kind, id, document, &mut commands);
            return commands;
        }
        let Some(text) = document else {
            self.drop_view(&key, &mut commands);
            return commands;
        };
        let mut document = serde_json::from_str(text).unwrap_or(Value::Null);
        // What is stored has been checked.
        let control = Control::take(&mut document).unwrap_or_default();
        let definition = self.definitions.entry(key.clone()).or_default();
        definition.origin.document = Arc::new(document);
        definition.paused = control.paused;
        definition.proposed = control.preview.map(Arc::new);
        self.build(&key, &mut commands);
        commands
    }

    /// Takes in a named expression or filter. The data sources that use it are built again, and those that could not be
    /// compiled are tried again.
    fn name(
        &mut self,
        domain: &DomainId,
        kind: NameKind,
        name: &str,
        document: Option<&str>,
        commands: &mut Vec<Command>,
    ) {
        let registry = self.registries.entry(domain.clone()).or_default();
        let changed = match document {
            Some(text) => registry.put(kind, name, &serde_json::from_str(text).unwrap_or_default()),
            None => registry.remove(kind, name),
        };
        if !changed {
            return;
        }
        let uses = |no: ViewNo| {
            let logic = self.instances.get(&no).map(|installed| &installed.instance.logic);
            matches!(logic, Some(Logic::Rows(RowLogic::Source(source))) if source.uses(kind, name))
        };
        let concerned = self.definitions.iter().filter(|((of, kind, _), definition)| {
            let newest = definition.building.or(definition.live);
            let failed = definition.failed.is_some() || definition.preview_failed.is_some();
            let uses = newest.is_some_and(uses) || definition.preview.is_some_and(uses);
            of == domain && *kind == DocKind::DataSource && (failed || uses)
        });
        let concerned: Vec<ViewKey> = concerned.map(|(key, _)| key.clone()).collect();
        for key in concerned {
            if let Some(definition) = self.definitions.get_mut(&key) {
                definition.origin.names += 1;
            }
            self.build(&key, commands);
        }
    }

    /// Builds what a definition says now, unless it is there already; then, on a data source's new rows, whatever reads
    /// it.
    fn build(&mut self, key: &ViewKey, commands: &mut Vec<Command>) {
        self.dirty.insert(key.0.clone());
        let Some(definition) = self.definitions.get(key) else { return };
        let readers = if key.1 == DocKind::DataSource { self.readers(key) } else { Vec::new() };
        let gone = if definition.paused {
            // Those who read it stop first.
            readers.iter().for_each(|reader| self.build(reader, commands));
            let mut gone = self.pause(key, Pause::Own, commands);
            gone.extend(self.build_preview(key));
            gone
        } else {
            let Some(mut gone) = self.build_own(key, commands) else { return };
            gone.extend(self.build_preview(key));
            readers.iter().for_each(|reader| self.build(reader, commands));
            gone
        };
        self.retire(gone, commands);
    }

    /// Makes the instance that a definition asks for the one being built; returns those that are to be retired when
    /// nobody reads them any more, or nothing if all are gone, with those who read them.
    fn build_own(&mut self, key: &ViewKey, commands: &mut Vec<Command>) -> Option<Vec<ViewNo>> {
        let origin = self.definitions.get(key)?.origin.clone();
        if let Some(source) = self.paused_source(key, &origin.document) {
            return Some(self.pause(key, Pause::Source(source), commands));
        }
        let made = match self.make(key, &origin.document) {
            Ok(made) => made,
            Err(Unmade::Deactivated) => {
                self.drop_instances(key, "it is deactivated", commands);
                return None;
            }
            Err(Unmade::Invalid(message)) => {
                tracing::warn!(domain = %key.0, view = key.2, message, "a view definition cannot be maintained");
                let definition = self.definitions.get_mut(key)?;
                (definition.failed, definition.pause) = (Some(message), None);
                return Some(definition.building.take().into_iter().collect());
            }
        };
        let is_it = |no: &ViewNo| self.is_made_of(*no, &origin, &made);
        let definition = self.definitions.get(key)?;
        let (live, building) = (definition.live.filter(is_it), definition.building.filter(is_it));
        let previewed = definition.preview.filter(is_it);
        let building = match (live, building, previewed) {
            (Some(_), ..) => None,
            (None, Some(no), _) => {
                self.release(no);
                Some(no)
            }
            (None, None, Some(no)) => {
                // What was a preview is wanted now, and need not be built again.
                self.definitions.get_mut(key)?.preview = None;
                self.unsettled = true;
                Some(no)
            }
            (None, None, None) => {
                let no = self.install(key, made, origin);
                if self.kept.tables.contains_key(key) {
                    self.begin(no, commands);
                } else {
                    self.queue.enter(no);
                }
                Some(no)
            }
        };
        let definition = self.definitions.get_mut(key)?;
        (definition.failed, definition.pause) = (None, None);
        let before = std::mem::replace(&mut definition.building, building);
        Some(before.into_iter().filter(|before| Some(*before) != building).collect())
    }

    /// Makes the instance of the document that a definition proposes the preview; returns the one that is to be
    /// retired.
    fn build_preview(&mut self, key: &ViewKey) -> Option<ViewNo> {
        let definition = self.definitions.get(key)?;
        let names = definition.origin.names;
        let origin = definition.proposed.clone().map(|document| Origin { document, names });
        let made = origin.as_ref().map(|origin| match self.paused_source(key, &origin.document) {
            Some(source) => Err(format!("it reads `{source}`, which is paused")),
            None => self.make(key, &origin.document).map_err(|unmade| match unmade {
                Unmade::Deactivated => "it is deactivated".to_owned(),
                Unmade::Invalid(message) => message,
            }),
        });
        let (preview, failed) = match (origin, made) {
            (Some(origin), Some(Ok(made))) => {
                let there = self.definitions.get(key)?.preview.filter(|no| self.is_made_of(*no, &origin, &made));
                let no = there.unwrap_or_else(|| {
                    let no = self.install(key, made, origin);
                    self.queue.enter(no);
                    no
                });
                (Some(no), None)
            }
            (_, Some(Err(message))) => (None, Some(message)),
            (_, None) | (None, _) => (None, None),
        };
        let definition = self.definitions.get_mut(key)?;
        definition.preview_failed = failed;
        std::mem::replace(&mut definition.preview, preview).filter(|before| Some(*before) != preview)
    }

    /// True if an instance is maintained and is what `origin` was made into.
    fn is_made_of(&self, no: ViewNo, origin: &Origin, made: &Made) -> bool {
        let read = match &made.logic {
            Logic::Groups { inputs, .. } => inputs.as_slice(),
            Logic::Rows(_) => &[],
        };
        self.instances.get(&no).is_some_and(|installed| {
            installed.phase != Phase::Frozen
                && installed.origin == *origin
                && installed.instance.day == made.day
                && self.reads(no).eq(read.iter().map(|(input, _)| *input))
        })
    }

    /// Compiles a document.
    fn make(&mut self, key: &ViewKey, document: &Value) -> Result<Made, Unmade> {
        let (domain, kind, _) = key;
        if *kind == DocKind::DataSource {
            let named = self.registries.entry(domain.clone()).or_default();
            let source =
                DataSource::compile_in(document, named).map_err(|errors| Unmade::Invalid(errors.to_string()))?;
            if source.is_deactivated() {
                return Err(Unmade::Deactivated);
            }
            let schema = Arc::new(source.schema().clone());
            let day = self.days.get(domain).copied().filter(|_| source.reads_clock());
            return Ok(Made { logic: Logic::Rows(RowLogic::Source(Arc::new(source))), schema, day });
        }
        let schema_of = |table: &str| {
            let no = self.source(domain, table)?;
            Some(Arc::clone(&self.instances.get(&no)?.instance.schema))
        };
        let view = AggregateView::compile(document, &schema_of);
        let (view, read) = view.map_err(|errors| Unmade::Invalid(errors.to_string()))?.narrowed();
        let inputs = view.sources.iter().zip(read);
        let inputs = inputs.filter_map(|(source, read)| Some((self.source(domain, &source.table)?, read.into())));
        let inputs: Vec<(ViewNo, Arc<[usize]>)> = inputs.collect();
        let schema = Arc::clone(&view.schema);
        let day = inputs.iter().find_map(|(input, _)| self.instances.get(input)?.instance.day);
        Ok(Made { logic: Logic::Groups { view: Arc::new(view), inputs }, schema, day })
    }

    /// Stops maintaining a view. Its published table stays; a data source's build stays as far as it has come. Returns
    /// what is to be retired.
    fn pause(&mut self, key: &ViewKey, pause: Pause, commands: &mut Vec<Command>) -> Vec<ViewNo> {
        let Some(definition) = self.definitions.get_mut(key) else { return Vec::new() };
        (definition.pause, definition.failed) = (Some(pause), None);
        let mut gone: Vec<ViewNo> = definition.successor.take().into_iter().collect();
        if let Some(live) = definition.live
            && let Some(installed) = self.instances.get_mut(&live)
            && installed.phase != Phase::Frozen
        {
            installed.phase = Phase::Frozen;
            commands.push(Command::Retire(live));
            if matches!(installed.instance.logic, Logic::Groups { .. }) {
                self.leaving.insert(live, self.workers.count());
            }
        }
        if let Some(building) = definition.building
            && let Some(installed) = self.instances.get_mut(&building)
        {
            if key.1 == DocKind::DataSource && installed.origin == definition.origin {
                self.queue.leave(building);
                if installed.held.is_none() && installed.phase == Phase::Building {
                    commands.push(Command::Hold(building));
                }
                installed.held.get_or_insert_with(Instant::now);
            } else {
                definition.building = None;
                gone.push(building);
            }
        }
        (self.unprepared, self.unsettled) = (true, true);
        gone
    }

    /// Lets a build that was held wait for its turn again.
    fn release(&mut self, no: ViewNo) {
        let Some(installed) = self.instances.get_mut(&no).filter(|installed| installed.held.is_some()) else { return };
        if installed.phase == Phase::Complete {
            installed.held = None;
        } else {
            self.queue.enter(no);
        }
        self.unsettled = true;
    }

    /// The definitions that read a data source's table, or wait for it.
    fn readers(&self, key: &ViewKey) -> Vec<ViewKey> {
        let Some(table) = self.definitions.get(key).and_then(|definition| table_id(&definition.origin.document)) else {
            return Vec::new();
        };
        let reads = |((of, kind, _), definition): &(&ViewKey, &Definition)| {
            *of == key.0
                && *kind == DocKind::AggregateView
                && [Some(&definition.origin.document), definition.proposed.as_ref()]
                    .into_iter()
                    .flatten()
                    .any(|document| AggregateView::tables_of(document).contains(&table))
        };
        self.definitions.iter().filter(reads).map(|(key, _)| key.clone()).collect()
    }

    /// The definitions of a domain's data sources with that `table_id`.
    fn sources(&self, domain: &DomainId, table: &str) -> impl Iterator<Item = &Definition> {
        let is_it = move |((of, kind, _), definition): &(&ViewKey, &Definition)| {
            of == domain
                && *kind == DocKind::DataSource
                && table_id(&definition.origin.document).as_deref() == Some(table)
        };
        self.definitions.iter().filter(is_it).map(|(_, definition)| definition)
    }

    /// The newest instance of a domain's data source with that `table_id`.
    fn source(&self, domain: &DomainId, table: &str) -> Option<ViewNo> {
        self.sources(domain, table).find_map(|definition| definition.building.or(definition.live))
    }

    /// A paused data source that a definition reads.
    fn paused_source(&self, key: &ViewKey, document: &Value) -> Option<String> {
        if key.1 != DocKind::AggregateView {
            return None;
        }
        let is_paused = |table: &String| self.sources(&key.0, table).any(|definition| definition.paused);
        AggregateView::tables_of(document).into_iter().find(is_paused)
    }

    fn drop_view(&mut self, key: &ViewKey, commands: &mut Vec<Command>) {
        self.drop_instances(key, "it has been deleted", commands);
        self.definitions.remove(key);
    }

    /// Takes a view's tables away, and those of the aggregate views that read them.
    fn drop_instances(&mut self, key: &ViewKey, why: &str, commands: &mut Vec<Command>) {
        let Some(definition) = self.definitions.get_mut(key) else { return };
        let mut gone: BTreeSet<ViewNo> = definition.instances().collect();
        (definition.live, definition.building, definition.successor, definition.preview) = (None, None, None, None);
        (definition.pause, definition.failed) = (None, Some(why.to_owned()));
        self.dirty.insert(key.0.clone());
        let Self { definitions, instances, .. } = &mut *self;
        let mut reading = Vec::new();
        for (reader, held) in definitions {
            let reads = |no: &ViewNo| inputs(instances, *no).any(|input| gone.contains(&input));
            let (live, building) = (held.live.take_if(|no| reads(no)), held.building.take_if(|no| reads(no)));
            if live.is_some() || building.is_some() {
                held.pause = None;
                held.failed = Some(format!("it reads the data source `{}`, which is gone: {why}", key.2));
                tracing::warn!(domain = %reader.0, view = reader.2, source = key.2, "an aggregate view lost its source");
            }
            let successor = held.successor.take_if(|no| live.is_some() || reads(no));
            let preview = held.preview.take_if(|no| reads(no));
            if preview.is_some() {
                held.preview_failed = Some(format!("it reads the data source `{}`, which is gone: {why}", key.2));
            }
            reading.extend([live, building, successor, preview].into_iter().flatten());
        }
        gone.extend(reading);
        self.retire(gone, commands);
    }

    /// Retires instances, aggregate views first: their rows are taken back from tables that still exist.
    fn retire(&mut self, gone: impl IntoIterator<Item = ViewNo>, commands: &mut Vec<Command>) {
        let mut gone: Vec<ViewNo> = gone.into_iter().collect();
        gone.sort_by_key(|no| self.reads(*no).next().is_none());
        for no in gone {
            self.queue.leave(no);
            if let Some(installed) = self.instances.remove(&no) {
                self.dirty.insert(installed.instance.domain.clone());
                (self.unprepared, self.unsettled) = (true, true);
                if matches!(installed.phase, Phase::Building | Phase::Complete) {
                    commands.push(Command::Retire(no));
                    if matches!(installed.instance.logic, Logic::Groups { .. }) {
                        self.leaving.insert(no, self.workers.count());
                    }
                }
            }
        }
    }

    /// Takes in the views of a checkpoint.
    pub(crate) fn restore(&mut self, state: State) -> Vec<Command> {
        let mut commands = Vec::new();
        self.kept = Kept { day: Some(state.day), tables: state.tables.into_iter().collect() };
        let names = state.definitions.iter().filter(|((_, kind, _), _)| NameKind::of(*kind).is_some());
        let views = state.definitions.iter().filter(|((_, kind, _), _)| NameKind::of(*kind).is_none());
        for ((domain, kind, id), text) in names.chain(views) {
            commands.extend(self.define(domain, *kind, id, Some(text)));
        }
        let domains: BTreeSet<DomainId> = self.kept.tables.keys().map(|(domain, ..)| domain.clone()).collect();
        for domain in domains {
            commands.extend(self.domain(&domain));
        }
        self.kept = Kept::default();
        commands
    }

    /// Definitions as they were put, the day of rows that change with it, and the key of each view whose table is as its
    /// definition says, on that day.
    pub(crate) fn keep(&self) -> (Definitions, Day, HashMap<ViewNo, ViewKey>) {
        let texts = self.texts.iter().map(|(key, text)| (key.clone(), Arc::clone(text))).collect();
        let (today, _) = self.today_and_next();
        let of_today = |no: &ViewNo| {
            let day = self.instances.get(no).and_then(|installed| installed.instance.day);
            day.is_none_or(|day| day == today)
        };
        let settled = |definition: &Definition| {
            definition.building.is_none() && definition.failed.is_none() && definition.pause.is_none()
        };
        let settled = self.definitions.iter().filter(|(_, definition)| settled(definition));
        let live = settled.filter_map(|(key, definition)| Some((definition.live.filter(of_today)?, key.clone())));
        (texts, today, live.collect())
    }

    /// Takes in what the workers report of a tick, one after the other.
    pub(crate) fn take(&mut self, reports: Vec<Report>) {
        let (mut tables, mut errors) = (Vec::new(), Vec::new());
        for (worker, report) in reports.into_iter().enumerate() {
            for (no, mut table) in report.published.tables {
                let Some(installed) = self.instances.get_mut(&no) else { continue };
                if let (Logic::Groups { .. }, Some(own)) = (&installed.instance.logic, Arc::get_mut(&mut table)) {
                    // Groups are indexed by their whole key, not by its first column.
                    own.index = None;
                }
                if let Some(part) = installed.parts.get_mut(worker) {
                    part.table = Some(table);
                    tables.push(no);
                }
            }
            for (domain, table) in report.published.errors {
                let held = self.errors.entry(domain.clone()).or_insert_with(|| Errors::none(self.workers));
                if let Some(part) = held.parts.get_mut(worker) {
                    *part = Some(table);
                    errors.push(domain);
                }
            }
            for (no, done, total) in report.progress {
                self.progress(no, worker, |part| (part.done, part.total) = (done, total));
            }
            for no in report.completed {
                self.progress(no, worker, |part| (part.done, part.complete) = (part.total, true));
                self.complete(no);
            }
            for no in report.withdrawn {
                if let Some(left) = self.leaving.get_mut(&no) {
                    *left = left.saturating_sub(1);
                }
            }
        }
        if self.workers.count() > 1 {
            tables.sort_unstable();
            tables.dedup();
            errors.sort_unstable();
            errors.dedup();
        }
        tables.into_iter().for_each(|no| self.unite(no));
        errors.into_iter().for_each(|domain| self.unite_errors(domain));
    }

    /// Takes in how far a worker is with an instance.
    fn progress(&mut self, no: ViewNo, worker: usize, set: impl FnOnce(&mut Part)) {
        let Some(installed) = self.instances.get_mut(&no) else { return };
        if let Some(part) = installed.parts.get_mut(worker) {
            set(part);
            self.dirty.insert(installed.instance.domain.clone());
        }
    }

    /// Notes that an instance is complete, if it is so on all workers.
    fn complete(&mut self, no: ViewNo) {
        if let Some(installed) = self.instances.get_mut(&no)
            && installed.parts.iter().all(|part| part.complete)
        {
            installed.phase = Phase::Complete;
            self.queue.leave(no);
            self.unsettled = true;
        }
    }

    /// Makes one table of an instance's parts, and publishes it where the one before is published.
    fn unite(&mut self, no: ViewNo) {
        let Some(installed) = self.instances.get_mut(&no) else { return };
        let parts = installed.parts.iter().filter_map(|part| part.table.clone()).collect();
        let Some(table) = union(parts) else { return };
        if let Some(place) = installed.place {
            let domain = installed.instance.domain.clone();
            self.newer.entry(domain).or_default().push((place, Arc::clone(&table)));
        }
        installed.table = Some(table);
    }

    /// The same for a domain's errors.
    fn unite_errors(&mut self, domain: DomainId) {
        let Some(held) = self.errors.get_mut(&domain) else { return };
        let Some(table) = union(held.parts.iter().flatten().cloned().collect()) else { return };
        held.table = Arc::clone(&table);
        match held.place {
            Some(place) => self.newer.entry(domain).or_default().push((place, table)),
            None => {
                self.dirty.insert(domain);
            }
        }
    }

    /// Commands for what goes at the end of a tick: what finished builds replace, and retired views of which nothing is left.
    pub(crate) fn leave(&mut self) -> Vec<Command> {
        let mut commands = self.swap();
        commands.extend(self.leaving.extract_if(.., |_, left| *left == 0).map(|(no, _)| Command::Forget(no)));
        commands
    }

    /// Puts finished builds in the place of what they replace, and lets others begin; returns commands that publish the
    /// former, retire what they replaced and install the latter.
    fn swap(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        if !std::mem::take(&mut self.unsettled) {
            return commands;
        }
        let going_on = self.definitions.values().filter(|definition| definition.pause.is_none());
        let building: BTreeSet<ViewNo> = going_on.filter_map(|definition| definition.building).collect();
        let complete = |no: &ViewNo| self.instances.get(no).is_some_and(|held| held.phase == Phase::Complete);
        let mut ready: BTreeSet<ViewNo> = building.iter().copied().filter(complete).collect();
        // A source and the aggregate views built on it change together, or neither does.
        loop {
            let unready = building.difference(&ready);
            let apart: BTreeSet<ViewNo> = unready.flat_map(|no| self.reads(*no)).collect();
            let waits = |input| building.contains(&input) && !ready.contains(&input);
            let together = |no: &ViewNo| !apart.contains(no) && !self.reads(*no).any(waits);
            let left: BTreeSet<ViewNo> = ready.iter().copied().filter(together).collect();
            if left.len() == ready.len() {
                break;
            }
            ready = left;
        }
        let mut gone = BTreeSet::new();
        for definition in self.definitions.values_mut() {
            if let Some(no) = definition.building.take_if(|no| ready.contains(no)) {
                gone.extend(definition.live.replace(no));
                gone.extend(definition.successor.take());
            }
        }
        // Successors that read what is replaced follow something that is no longer so.
        let Self { definitions, instances, .. } = &mut *self;
        let mut reading = Vec::new();
        for definition in definitions.values_mut() {
            let reads = |no: &mut ViewNo| inputs(instances, *no).any(|input| gone.contains(&input));
            reading.extend(definition.successor.take_if(reads));
        }
        gone.extend(reading);
        self.retire(gone, &mut commands);
        self.unprepared |= !ready.is_empty();
        for no in ready {
            commands.push(Command::Publish(no));
            if let Some(installed) = self.instances.get(&no) {
                self.dirty.insert(installed.instance.domain.clone());
                tracing::info!(
                    domain = %installed.instance.domain, view = installed.instance.id, documents = installed.progress().1,
                    took = ?installed.started.elapsed(), "view is live"
                );
            }
        }
        let (today, _) = self.today_and_next();
        let due: Vec<DomainId> = self
            .days
            .iter()
            .filter(|(_, day)| self.due(**day) == Some(today))
            .map(|(domain, _)| domain.clone())
            .collect();
        for domain in due {
            self.turn(&domain, today, &mut commands);
        }
        self.admit(&mut commands);
        commands
    }

    /// Lets builds begin whose turn it is.
    fn admit(&mut self, commands: &mut Vec<Command>) {
        loop {
            let Self { queue, instances, .. } = &mut *self;
            let domain = |no| instances.get(&no).map(|installed| &installed.instance.domain);
            let Some(no) = queue.next(domain, |no| inputs(instances, no)) else { return };
            self.begin(no, commands);
        }
    }

    /// The instances that an instance reads.
    fn reads(&self, no: ViewNo) -> impl Iterator<Item = ViewNo> {
        inputs(&self.instances, no)
    }

    /// Readers see what was found at the start: from now on builds keep to their limits.
    pub(crate) const fn started(&mut self) {
        self.queue.started();
    }

    /// True while anything is being built.
    pub(crate) fn building(&self) -> bool {
        self.definitions.values().any(|definition| definition.building.is_some() && definition.pause.is_none())
    }

    /// Documents that some published view could not evaluate.
    pub(crate) fn failed_documents(&self) -> usize {
        self.errors.values().map(|errors| errors.table.live_rows).sum()
    }

    /// The tables of all domains as readers shall see them now; those of domains that are `behind` stay as they were at the
    /// moment that was published `last`, or earlier.
    pub(crate) fn publish(
        &mut self,
        behind: &BTreeSet<DomainId>,
        last: &Moment,
    ) -> HashMap<DomainId, Arc<DomainTables>> {
        for domain in behind.difference(&self.behind) {
            if let Some(published) = self.published.get_mut(domain) {
                Arc::make_mut(published).behind = Some(last.clone());
            }
        }
        self.dirty.extend(self.behind.difference(behind).cloned());
        self.behind.clone_from(behind);
        let changed = std::mem::take(&mut self.dirty).into_iter();
        let (later, dirty): (BTreeSet<_>, BTreeSet<_>) = changed.partition(|domain| behind.contains(domain));
        self.dirty = later;
        for (domain, newer) in std::mem::take(&mut self.newer) {
            if behind.contains(&domain) {
                continue;
            }
            if let (false, Some(published)) = (dirty.contains(&domain), self.published.get_mut(&domain)) {
                let published = Arc::make_mut(published);
                newer.into_iter().for_each(|(place, table)| published.tables.replace(place, table));
            }
        }
        for domain in dirty {
            let tables = self.domain_tables(&domain);
            self.published.insert(domain, Arc::new(tables));
        }
        self.published.clone()
    }
}

/// The instances that an instance reads.
fn inputs(instances: &HashMap<ViewNo, Installed>, no: ViewNo) -> impl Iterator<Item = ViewNo> {
    let inputs = match instances.get(&no).map(|installed| &installed.instance.logic) {
        Some(Logic::Groups { inputs, .. }) => inputs.as_slice(),
        _ => &[],
    };
    inputs.iter().map(|(input, _)| *input)
}

/// `table_id` of a data source document.
fn table_id(document: &Value) -> Option<String> {
    // A document may come in upstream's static form, with the source itself below `config`.
    let own = document.get("table_id").or_else(|| document.get("config")?.get("table_id"));
    own.and_then(Value::as_str).map(str::to_owned)
}
