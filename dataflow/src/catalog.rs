//! Which views there are: from definitions in the change log to instances, and which of them readers see.
//!
//! In:  definition documents (put and deleted), and reports of builds that ended. Out: [`Command`]s for the workers, and
//! the names under which finished tables are published.
//!
//! A changed definition is a new instance beside the published one; so is a data source whose domain has changed a named
//! expression or filter that it uses. Aggregate views over a data source that is being
//! replaced are built again on its new instance, and all of them take the old ones' place in one tick.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    id::DomainId,
    row::TableSchema,
    table::{DomainTables, Moment, NamedTables, Table, TableName, ViewState, ViewStatus},
};
use serde_json::Value;
use udf::{
    DataSource, NameKind, Registry,
    aggregate_view::{AggregateView, UPDATED_AT},
};

use crate::{
    checkpoint::{Definitions, KeptTable, State, ViewKey},
    config::Workers,
    table::{TableWriter, union},
    view::{Command, DOCUMENT_TABLES, Instance, Logic, RowLogic, ViewNo, documents, view_errors},
    worker::Report,
};

mod published;

pub(crate) use published::table_of;

/// A `system.view_errors` without rows.
fn no_errors() -> Table {
    Table { index: None, ..TableWriter::new(Arc::new(view_errors()), Some(3)).publish() }
}

/// A definition and its instances.
#[derive(Default)]
struct Definition {
    document: Value,
    live: Option<ViewNo>,
    building: Option<ViewNo>,
    failed: Option<String>,
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
    started: Instant,
    /// By worker.
    parts: Vec<Part>,
    /// The parts' tables as one.
    table: Option<Arc<Table>>,
    /// Where the table is in its domain's published map, once it is there.
    place: Option<usize>,
}

impl Installed {
    fn complete(&self) -> bool {
        self.parts.iter().all(|part| part.complete)
    }

    /// Documents or rows walked to build it, and how many there are to walk.
    fn progress(&self) -> (usize, usize) {
        self.parts.iter().fold((0, 0), |(done, total), part| (done + part.done, total + part.total))
    }
}

/// A domain's table of errors.
struct Errors {
    /// By worker.
    parts: Vec<Option<Arc<Table>>>,
    /// The parts' tables as one.
    table: Arc<Table>,
    place: Option<usize>,
}

impl Errors {
    fn none(workers: Workers) -> Self {
        Self { parts: vec![None; workers.count()], table: Arc::new(no_errors()), place: None }
    }
}

/// All definitions and instances of all domains.
pub(crate) struct Catalog {
    workers: Workers,
    definitions: BTreeMap<ViewKey, Definition>,
    /// Named expressions and filters of each domain.
    registries: HashMap<DomainId, Registry>,
    instances: HashMap<ViewNo, Installed>,
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
    held: BTreeSet<DomainId>,
    /// Definitions, named expressions and filters as they were put, for a checkpoint.
    texts: BTreeMap<ViewKey, Arc<str>>,
    /// Tables of a checkpoint that wait for their definitions.
    kept: HashMap<ViewKey, KeptTable>,
}

impl Catalog {
    /// A catalog without domains, for so many workers.
    pub(crate) fn new(workers: Workers) -> Self {
        Self {
            workers,
            definitions: BTreeMap::new(),
            registries: HashMap::new(),
            instances: HashMap::new(),
            errors: HashMap::new(),
            leaving: BTreeMap::new(),
            last: 0,
            dirty: BTreeSet::new(),
            newer: BTreeMap::new(),
            published: HashMap::new(),
            held: BTreeSet::new(),
            texts: BTreeMap::new(),
            kept: HashMap::new(),
        }
    }

    /// Installs the built-in views of a domain that is seen for the first time. They have no definition document and cannot be
    /// dropped.
    pub(crate) fn domain(&mut self, domain: &DomainId) -> Vec<Command> {
        if self.published.contains_key(domain) {
            return Vec::new();
        }
        self.published.insert(domain.clone(), Arc::default());
        let mut commands = Vec::new();
        for (id, kind) in DOCUMENT_TABLES {
            let schema = documents(kind);
            let stamp_column = schema.position("indexed_on");
            let logic = Logic::Rows(RowLogic::Documents(kind));
            let no = self.install(domain, id, logic, Arc::new(schema), stamp_column, &mut commands);
            let definition = Definition { building: Some(no), ..Definition::default() };
            self.definitions.insert((domain.clone(), kind, id.to_owned()), definition);
        }
        commands
    }

    fn install(
        &mut self,
        domain: &DomainId,
        id: &str,
        logic: Logic,
        schema: Arc<TableSchema>,
        stamp_column: Option<usize>,
        commands: &mut Vec<Command>,
    ) -> ViewNo {
        self.last += 1;
        let no = ViewNo(self.last);
        let kept = match &logic {
            Logic::Rows(rows) => self.kept.remove(&(domain.clone(), rows.definition(), id.to_owned())),
            Logic::Groups { .. } => None,
        };
        let instance =
            Arc::new(Instance { no, domain: domain.clone(), id: id.to_owned(), logic, schema, stamp_column });
        commands.push(match kept {
            Some(kept) => Command::Restore(Arc::clone(&instance), Arc::new(kept)),
            None => Command::Install(Arc::clone(&instance)),
        });
        let installed = Installed {
            instance,
            started: Instant::now(),
            parts: vec![Part::default(); self.workers.count()],
            table: None,
            place: None,
        };
        self.instances.insert(no, installed);
        self.dirty.insert(domain.clone());
        no
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
        self.dirty.insert(domain.clone());
        let document = serde_json::from_str(text).unwrap_or(Value::Null);
        self.definitions.entry(key.clone()).or_default().document = document;
        if kind == DocKind::DataSource {
            self.build_source(&key, &mut commands)
        } else {
            self.build_groups(&key, &mut commands)
        }
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
            of == domain && *kind == DocKind::DataSource && (definition.failed.is_some() || newest.is_some_and(uses))
        });
        let concerned: Vec<ViewKey> = concerned.map(|(key, _)| key.clone()).collect();
        for key in concerned {
            self.dirty.insert(domain.clone());
            self.build_source(&key, commands);
        }
    }

    fn build_source(&mut self, key: &ViewKey, commands: &mut Vec<Command>) {
        let (domain, _, id) = key;
        let Some(document) = self.definitions.get(key).map(|definition| definition.document.clone()) else { return };
        let named = self.registries.entry(domain.clone()).or_default();
        let built = match DataSource::compile_in(&document, named) {
            Ok(source) if source.is_deactivated() => {
                self.drop_instances(key, "it is deactivated", commands);
                return;
            }
            Ok(source) => {
                let schema = Arc::new(source.schema().clone());
                let stamp_column = schema.position("inserted_at");
                Ok(self.install(
                    domain,
                    id,
                    Logic::Rows(RowLogic::Source(Box::new(source))),
                    schema,
                    stamp_column,
                    commands,
                ))
            }
            Err(errors) => Err(errors.to_string()),
        };
        let table = table_id(&document);
        self.set_building(key, built, commands);
        // Whatever reads this table is built again on its new rows; what waited for it is tried again.
        let readers: Vec<ViewKey> = self
            .definitions
            .iter()
            .filter(|((of, kind, _), definition)| {
                of == domain
                    && *kind == DocKind::AggregateView
                    && AggregateView::tables_of(&definition.document)
                        .iter()
                        .any(|name| Some(name.as_str()) == table.as_deref())
            })
            .map(|(key, _)| key.clone())
            .collect();
        for reader in readers {
            self.build_groups(&reader, commands);
        }
    }

    fn build_groups(&mut self, key: &ViewKey, commands: &mut Vec<Command>) {
        let (domain, _, id) = key;
        let Some(document) = self.definitions.get(key).map(|definition| definition.document.clone()) else { return };
        let schema_of = |table: &str| {
            let no = self.source(domain, table)?;
            Some(Arc::clone(&self.instances.get(&no)?.instance.schema))
        };
        let built = match AggregateView::compile(&document, &schema_of) {
            Ok(view) => {
                let (view, read) = view.narrowed();
                let inputs = view.sources.iter().zip(read);
                let inputs =
                    inputs.filter_map(|(source, read)| Some((self.source(domain, &source.table)?, read.into())));
                let inputs = inputs.collect();
                let schema = Arc::clone(&view.schema);
                let stamp_column = schema.position(UPDATED_AT);
                Ok(self.install(
                    domain,
                    id,
                    Logic::Groups { view: Box::new(view), inputs },
                    schema,
                    stamp_column,
                    commands,
                ))
            }
            Err(errors) => Err(errors.to_string()),
        };
        self.set_building(key, built, commands);
    }

    /// Makes a new instance the one being built, in place of one that was.
    fn set_building(&mut self, key: &ViewKey, built: Result<ViewNo, String>, commands: &mut Vec<Command>) {
        let definition = self.definitions.entry(key.clone()).or_default();
        let (building, failed) = match built {
            Ok(no) => (Some(no), None),
            Err(message) => {
                tracing::warn!(domain = %key.0, view = key.2, message, "a view definition cannot be maintained");
                (None, Some(message))
            }
        };
        let before = std::mem::replace(&mut definition.building, building);
        definition.failed = failed;
        if let Some(before) = before {
            self.retire(before, commands);
        }
    }

    /// The newest instance of a domain's data source with that `table_id`.
    fn source(&self, domain: &DomainId, table: &str) -> Option<ViewNo> {
        self.definitions
            .iter()
            .filter(|((of, kind, _), definition)| {
                of == domain && *kind == DocKind::DataSource && table_id(&definition.document).as_deref() == Some(table)
            })
            .find_map(|(_, definition)| definition.building.or(definition.live))
    }

    fn drop_view(&mut self, key: &ViewKey, commands: &mut Vec<Command>) {
        self.drop_instances(key, "it has been deleted", commands);
        self.definitions.remove(key);
    }

    /// Takes a view's tables away, and those of the aggregate views that read them.
    fn drop_instances(&mut self, key: &ViewKey, why: &str, commands: &mut Vec<Command>) {
        let Some(definition) = self.definitions.get_mut(key) else { return };
        let gone: Vec<ViewNo> = definition.live.take().into_iter().chain(definition.building.take()).collect();
        definition.failed = Some(why.to_owned());
        self.dirty.insert(key.0.clone());
        // Aggregate views over it go first: their rows are taken back from tables that still exist.
        let reads = |instance: &Instance| matches!(&instance.logic, Logic::Groups { inputs, .. } if inputs.iter().any(|(input, _)| gone.contains(input)));
        let mut readers = Vec::new();
        for (reader, held) in &mut self.definitions {
            let reading = |no: &ViewNo| self.instances.get(no).is_some_and(|installed| reads(&installed.instance));
            let building = held.building.take_if(|no| reading(no));
            let live = held.live.take_if(|no| reading(no));
            if building.is_some() || live.is_some() {
                held.failed = Some(format!("it reads the data source `{}`, which is gone: {why}", key.2));
                tracing::warn!(domain = %reader.0, view = reader.2, source = key.2, "an aggregate view lost its source");
            }
            readers.extend(building.into_iter().chain(live));
        }
        for no in readers.into_iter().chain(gone) {
            self.retire(no, commands);
        }
    }

    fn retire(&mut self, no: ViewNo, commands: &mut Vec<Command>) {
        if let Some(installed) = self.instances.remove(&no) {
            self.dirty.insert(installed.instance.domain.clone());
            commands.push(Command::Retire(no));
            if matches!(installed.instance.logic, Logic::Groups { .. }) {
                self.leaving.insert(no, self.workers.count());
            }
        }
    }

    /// Takes in the views of a checkpoint. Tables are used as they are where only the document itself decides a row: a table
    /// whose rows read other documents is built anew, for who asked for what is not kept, and so is one that reads a clock
    /// that stands at another day.
    pub(crate) fn restore(&mut self, state: State, today: i64) -> Vec<Command> {
        let mut commands = Vec::new();
        self.kept = state.tables.into_iter().collect();
        let day_differs = state.day != today;
        let names = state.definitions.iter().filter(|((_, kind, _), _)| NameKind::of(*kind).is_some());
        let views = state.definitions.iter().filter(|((_, kind, _), _)| NameKind::of(*kind).is_none());
        for ((domain, kind, id), text) in names.chain(views) {
            let key = (domain.clone(), *kind, id.clone());
            if self.kept.contains_key(&key) {
                let named = self.registries.entry(domain.clone()).or_default();
                let source = DataSource::compile_in(&serde_json::from_str(text).unwrap_or(Value::Null), named);
                let needs_more =
                    |source: DataSource| !source.demands().is_empty() || (day_differs && source.reads_clock());
                if source.map_or(true, needs_more) {
                    self.kept.remove(&key);
                }
            }
            commands.extend(self.define(domain, *kind, id, Some(text)));
        }
        let domains: BTreeSet<DomainId> = self.kept.keys().map(|(domain, ..)| domain.clone()).collect();
        for domain in domains {
            commands.extend(self.domain(&domain));
        }
        self.kept.clear();
        commands
    }

    /// Definitions as they were put, and the key of each view whose table is as its definition says.
    pub(crate) fn keep(&self) -> (Definitions, HashMap<ViewNo, ViewKey>) {
        let texts = self.texts.iter().map(|(key, text)| (key.clone(), Arc::clone(text))).collect();
        let settled = self.definitions.iter().filter(|(_, d)| d.building.is_none() && d.failed.is_none());
        (texts, settled.filter_map(|(key, definition)| Some((definition.live?, key.clone()))).collect())
    }

    /// Commands that evaluate every view that reads the clock once more.
    pub(crate) fn revisit(&self) -> Vec<Command> {
        let reads_clock = |installed: &&Installed| matches!(&installed.instance.logic, Logic::Rows(RowLogic::Source(source)) if source.reads_clock());
        self.instances.values().filter(reads_clock).map(|i| Command::Revisit(Arc::clone(&i.instance))).collect()
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

    /// Puts finished builds in the place of what they replace; returns commands that retire the replaced ones.
    fn swap(&mut self) -> Vec<Command> {
        let building: BTreeSet<ViewNo> = self.definitions.values().filter_map(|d| d.building).collect();
        let mut ready: BTreeSet<ViewNo> =
            building.iter().copied().filter(|no| self.instances.get(no).is_some_and(Installed::complete)).collect();
        // A source and the aggregate views built on it change together, or neither does.
        loop {
            let waits = |no: &ViewNo| {
                let inputs_wait = self.inputs(*no).any(|input| building.contains(input) && !ready.contains(input));
                let readers_wait = building
                    .iter()
                    .any(|reader| !ready.contains(reader) && self.inputs(*reader).any(|input| input == no));
                inputs_wait || readers_wait
            };
            let Some(waiting) = ready.iter().copied().find(waits) else { break };
            ready.remove(&waiting);
        }
        let mut replaced = Vec::new();
        for definition in self.definitions.values_mut() {
            if let Some(no) = definition.building.take_if(|no| ready.contains(no)) {
                replaced.extend(definition.live.replace(no));
            }
        }
        // Aggregate views first, for the same reason as when a source is dropped.
        replaced.sort_by_key(|no| self.inputs(*no).next().is_none());
        let mut commands = Vec::new();
        for no in replaced {
            self.retire(no, &mut commands);
        }
        for no in ready {
            if let Some(installed) = self.instances.get(&no) {
                self.dirty.insert(installed.instance.domain.clone());
                tracing::info!(
                    domain = %installed.instance.domain, view = installed.instance.id,
                    documents = installed.progress().1, took = ?installed.started.elapsed(), "view is live"
                );
            }
        }
        commands
    }

    fn inputs(&self, no: ViewNo) -> impl Iterator<Item = &ViewNo> {
        let inputs = match self.instances.get(&no).map(|installed| &installed.instance.logic) {
            Some(Logic::Groups { inputs, .. }) => inputs.as_slice(),
            _ => &[],
        };
        inputs.iter().map(|(input, _)| input)
    }

    /// True while anything is being built.
    pub(crate) fn building(&self) -> bool {
        self.definitions.values().any(|definition| definition.building.is_some())
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
        for domain in behind.difference(&self.held) {
            if let Some(published) = self.published.get_mut(domain) {
                Arc::make_mut(published).behind = Some(last.clone());
            }
        }
        self.dirty.extend(self.held.difference(behind).cloned());
        self.held.clone_from(behind);
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

    fn domain_tables(&mut self, domain: &DomainId) -> DomainTables {
        let Self { workers, definitions, instances, errors, .. } = self;
        let mut tables = NamedTables::default();
        let mut views = Vec::new();
        let first = (domain.clone(), DocKind::Form, String::new());
        for ((of, kind, id), definition) in definitions.range(first..) {
            if of != domain {
                break;
            }
            let newest = definition.live.or(definition.building).and_then(|no| instances.get(&no));
            let names = newest.map(|installed| names(&installed.instance)).unwrap_or_default();
            if let Some(installed) = definition.live.and_then(|no| instances.get_mut(&no)) {
                installed.place = installed.table.clone().map(|table| tables.add(names.iter().cloned(), table));
            }
            if matches!(kind, DocKind::DataSource | DocKind::AggregateView) {
                let state = state(definition, instances);
                views.push(ViewStatus { id: id.clone(), kind: kind.name(), tables: names, state });
            }
        }
        // Readers find the table also while nothing has failed.
        let errors = errors.entry(domain.clone()).or_insert_with(|| Errors::none(*workers));
        errors.place = Some(tables.add([TableName::new("system", "view_errors")], Arc::clone(&errors.table)));
        DomainTables { tables, views: views.into(), behind: None }
    }
}

/// How a definition is doing.
fn state(definition: &Definition, instances: &HashMap<ViewNo, Installed>) -> ViewState {
    if let Some(message) = &definition.failed {
        return ViewState::Failed { message: message.clone() };
    }
    match definition.building.and_then(|no| instances.get(&no)) {
        Some(installed) => {
            let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            let millis = installed.started.elapsed().as_millis().max(1);
            let (done, total) = installed.progress();
            let rate = u64::try_from(u128::from(count(done)) * 1000 / millis).unwrap_or(u64::MAX);
            ViewState::Building { done: count(done), total: count(total), rate }
        }
        None => ViewState::Live,
    }
}

/// `table_id` of a data source document.
fn table_id(document: &Value) -> Option<String> {
    // A document may come in upstream's static form, with the source itself below `config`.
    let own = document.get("table_id").or_else(|| document.get("config")?.get("table_id"));
    own.and_then(Value::as_str).map(str::to_owned)
}

/// Every name of an instance's table.
fn names(instance: &Instance) -> Vec<TableName> {
    match &instance.logic {
        Logic::Rows(RowLogic::Source(source)) => {
            let mut names = vec![TableName::new("ucr", source.readable_name())];
            if source.table_name() != source.readable_name() {
                names.push(TableName::new("ucr", source.table_name()));
            }
            names
        }
        Logic::Rows(RowLogic::Documents(_)) => vec![TableName::new("system", &instance.id)],
        Logic::Groups { .. } => vec![TableName::new("views", &instance.id)],
    }
}
