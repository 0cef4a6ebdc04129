//! Which views there are: from definitions in the change log to instances, and which of them readers see.
//!
//! In:  definition documents (put and deleted), and reports of builds that ended. Out: [`Command`]s for the workers, and
//! the names under which finished tables are published.
//!
//! A changed definition is a new instance beside the published one; so is a data source whose domain has changed a named
//! expression or filter that it uses. Aggregate views over a data source that is being
//! replaced are built again on its new instance, and all of them take the old ones' place in one tick.
//!
//! Rows that change with the day are those of one day in all tables of a domain. Before midnight, each live
//! instance whose rows do gets a *successor*, the same for the next day; it is built like any other instance. In the first tick of
//! the new day the domain *turns*: its successors take their places, all at once. If they are not complete by then, the
//! domain stays at the old day until they are.

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
    table::{DomainTables, NamedTables, Progress, Table, TableName, ViewState, ViewStatus},
};
use serde_json::Value;
use udf::{DataSource, NameKind, Registry, aggregate_view::AggregateView};

use crate::{
    config::DataflowConfig,
    table::TableWriter,
    view::{Command, DOCUMENT_TABLES, Day, Instance, Logic, RowLogic, ViewNo, documents, view_errors},
};

/// A `system.view_errors` without rows.
fn no_errors() -> Table {
    Table { index: None, ..TableWriter::new(Arc::new(view_errors()), Some(3)).publish() }
}

type DefinitionKey = (DomainId, DocKind, String);

/// A definition and its instances.
#[derive(Default)]
struct Definition {
    document: Value,
    live: Option<ViewNo>,
    building: Option<ViewNo>,
    /// What takes the place of `live` when the domain turns to another day.
    successor: Option<ViewNo>,
    failed: Option<String>,
}

impl Definition {
    fn instances(&self) -> impl Iterator<Item = ViewNo> {
        self.live.into_iter().chain(self.building).chain(self.successor)
    }
}

struct Installed {
    instance: Arc<Instance>,
    complete: bool,
    started: Instant,
    /// The same on the wall clock, microseconds since 1970 UTC.
    started_at: i64,
    done: usize,
    total: usize,
    table: Option<Arc<Table>>,
    /// Where the table is in its domain's published map, once it is there.
    place: Option<usize>,
}

/// A domain's table of errors.
struct Errors {
    table: Arc<Table>,
    place: Option<usize>,
}

/// All definitions and instances of all domains.
pub(crate) struct Catalog {
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
    definitions: BTreeMap<DefinitionKey, Definition>,
    /// Named expressions and filters of each domain.
    registries: HashMap<DomainId, Registry>,
    instances: HashMap<ViewNo, Installed>,
    errors: HashMap<DomainId, Errors>,
    last: u32,
    /// Domains of which more has changed than the contents of published tables.
    dirty: BTreeSet<DomainId>,
    /// Newer versions of published tables, by their place.
    newer: BTreeMap<DomainId, Vec<(usize, Arc<Table>)>>,
    published: HashMap<DomainId, Arc<DomainTables>>,
}

impl Catalog {
    pub(crate) fn new(config: &DataflowConfig) -> Self {
        Self {
            lead: i64::from(config.next_day_lead_s) * 1_000_000,
            now: 0,
            days: BTreeMap::new(),
            unprepared: false,
            unsettled: false,
            definitions: BTreeMap::new(),
            registries: HashMap::new(),
            instances: HashMap::new(),
            errors: HashMap::new(),
            last: 0,
            dirty: BTreeSet::new(),
            newer: BTreeMap::new(),
            published: HashMap::new(),
        }
    }

    /// Today, and the day that successors are built for: the next one, once it is near.
    const fn today_and_next(&self) -> (Day, Day) {
        (Day::of(self.now), Day::of(self.now.saturating_add(self.lead)))
    }

    /// The day that a domain has to turn to, if its rows are of `day`.
    fn due(&self, day: Day) -> Option<Day> {
        let (today, next) = self.today_and_next();
        let due = if day == today { next } else { today };
        // A clock that is set back a little takes nobody back to yesterday.
        (day != next).then_some(due)
    }

    /// Takes in the time. Returns commands that install the successors that are due, and retire those of another day.
    pub(crate) fn prepare(&mut self, now: i64) -> Vec<Command> {
        let before = self.today_and_next();
        self.now = now;
        let mut commands = Vec::new();
        if before != self.today_and_next() {
            self.unsettled = true;
        } else if !self.unprepared {
            return commands;
        }
        let due: BTreeMap<DomainId, Option<Day>> =
            self.days.iter().map(|(domain, day)| (domain.clone(), self.due(*day))).collect();
        let Self { definitions, instances, .. } = &mut *self;
        let day_of = |no: ViewNo| instances.get(&no).and_then(|installed| installed.instance.day);
        let mut gone = Vec::new();
        let mut missing = Vec::new();
        for (key, definition) in definitions {
            let due = due.get(&key.0).copied().flatten();
            gone.extend(definition.successor.take_if(|no| day_of(*no) != due));
            if let (Some(live), Some(day), None) = (definition.live, due, definition.successor)
                && turns(instances, live)
            {
                missing.push((key.clone(), live, day));
            }
        }
        self.retire(gone, &mut commands);
        // Aggregate views read the successors of their sources, which are there first.
        missing.sort_by_key(|(_, live, _)| self.reads(*live).next().is_some());
        for (key, live, day) in missing {
            self.succeed(&key, live, day, &mut commands);
        }
        self.unprepared = false;
        commands
    }

    /// Installs the successor of a live instance.
    fn succeed(&mut self, key: &DefinitionKey, live: ViewNo, day: Day, commands: &mut Vec<Command>) {
        let Some(instance) = self.instances.get(&live).map(|installed| Arc::clone(&installed.instance)) else { return };
        let mut logic = instance.logic.clone();
        if let Logic::Groups { inputs, .. } = &mut logic {
            let of_domain = self.definitions.iter().filter(|((domain, ..), _)| *domain == key.0);
            let successors: HashMap<ViewNo, ViewNo> =
                of_domain.filter_map(|(_, definition)| Some((definition.live?, definition.successor?))).collect();
            for (input, _) in inputs {
                *input = successors.get(input).copied().unwrap_or(*input);
            }
        }
        let no = self.install(&key.0, &key.2, logic, Arc::clone(&instance.schema), Some(day), commands);
        if let Some(definition) = self.definitions.get_mut(key) {
            definition.successor = Some(no);
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
            let no = self.install(domain, id, logic, Arc::new(documents(kind)), None, &mut commands);
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
        day: Option<Day>,
        commands: &mut Vec<Command>,
    ) -> ViewNo {
        self.last += 1;
        let no = ViewNo(self.last);
        let stamp_column = schema.position(logic.stamp_column());
        let instance =
            Arc::new(Instance { no, domain: domain.clone(), id: id.to_owned(), logic, schema, stamp_column, day });
        commands.push(Command::Install(Arc::clone(&instance)));
        let installed = Installed {
            instance,
            complete: false,
            started: Instant::now(),
            started_at: self.now,
            done: 0,
            total: 0,
            table: None,
            place: None,
        };
        self.instances.insert(no, installed);
        self.dirty.insert(domain.clone());
        (self.unprepared, self.unsettled) = (true, true);
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
        if let Some(kind) = NameKind::of(kind) {
            self.name(domain, kind, id, document, &mut commands);
            return commands;
        }
        let key = (domain.clone(), kind, id.to_owned());
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
        let concerned: Vec<DefinitionKey> = concerned.map(|(key, _)| key.clone()).collect();
        for key in concerned {
            self.dirty.insert(domain.clone());
            self.build_source(&key, commands);
        }
    }

    fn build_source(&mut self, key: &DefinitionKey, commands: &mut Vec<Command>) {
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
                let day = self.days.get(domain).copied().filter(|_| source.reads_clock());
                let logic = Logic::Rows(RowLogic::Source(Arc::new(source)));
                Ok(self.install(domain, id, logic, schema, day, commands))
            }
            Err(errors) => Err(errors.to_string()),
        };
        let table = table_id(&document);
        let before = self.set_building(key, built);
        // Whatever reads this table is built again on its new rows; what waited for it is tried again.
        let readers: Vec<DefinitionKey> = self
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
        self.retire(before, commands);
    }

    fn build_groups(&mut self, key: &DefinitionKey, commands: &mut Vec<Command>) {
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
                let inputs: Vec<(ViewNo, Arc<[usize]>)> = inputs.collect();
                let schema = Arc::clone(&view.schema);
                let day = inputs.iter().find_map(|(input, _)| self.instances.get(input)?.instance.day);
                let logic = Logic::Groups { view: Arc::new(view), inputs };
                Ok(self.install(domain, id, logic, schema, day, commands))
            }
            Err(errors) => Err(errors.to_string()),
        };
        let before = self.set_building(key, built);
        self.retire(before, commands);
    }

    /// Makes a new instance the one being built, and returns the one that was, which is to be retired.
    fn set_building(&mut self, key: &DefinitionKey, built: Result<ViewNo, String>) -> Option<ViewNo> {
        let definition = self.definitions.entry(key.clone()).or_default();
        let (building, failed) = match built {
            Ok(no) => (Some(no), None),
            Err(message) => {
                tracing::warn!(domain = %key.0, view = key.2, message, "a view definition cannot be maintained");
                (None, Some(message))
            }
        };
        definition.failed = failed;
        std::mem::replace(&mut definition.building, building)
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

    fn drop_view(&mut self, key: &DefinitionKey, commands: &mut Vec<Command>) {
        self.drop_instances(key, "it has been deleted", commands);
        self.definitions.remove(key);
    }

    /// Takes a view's tables away, and those of the aggregate views that read them.
    fn drop_instances(&mut self, key: &DefinitionKey, why: &str, commands: &mut Vec<Command>) {
        let Some(definition) = self.definitions.get_mut(key) else { return };
        let mut gone: BTreeSet<ViewNo> = definition.instances().collect();
        (definition.live, definition.building, definition.successor) = (None, None, None);
        definition.failed = Some(why.to_owned());
        self.dirty.insert(key.0.clone());
        let Self { definitions, instances, .. } = &mut *self;
        let mut reading = Vec::new();
        for (reader, held) in definitions {
            let reads = |no: &ViewNo| inputs(instances, *no).any(|input| gone.contains(&input));
            let (live, building) = (held.live.take_if(|no| reads(no)), held.building.take_if(|no| reads(no)));
            if live.is_some() || building.is_some() {
                held.failed = Some(format!("it reads the data source `{}`, which is gone: {why}", key.2));
                tracing::warn!(domain = %reader.0, view = reader.2, source = key.2, "an aggregate view lost its source");
            }
            let successor = held.successor.take_if(|no| live.is_some() || reads(no));
            reading.extend(live.into_iter().chain(building).chain(successor));
        }
        gone.extend(reading);
        self.retire(gone, commands);
    }

    /// Retires instances, aggregate views first: their rows are taken back from tables that still exist.
    fn retire(&mut self, gone: impl IntoIterator<Item = ViewNo>, commands: &mut Vec<Command>) {
        let mut gone: Vec<ViewNo> = gone.into_iter().collect();
        gone.sort_by_key(|no| self.reads(*no).next().is_none());
        for no in gone {
            if let Some(installed) = self.instances.remove(&no) {
                self.dirty.insert(installed.instance.domain.clone());
                (self.unprepared, self.unsettled) = (true, true);
                commands.push(Command::Retire(no));
            }
        }
    }

    /// Takes in the tables of a tick.
    pub(crate) fn tables(&mut self, tables: Vec<(ViewNo, Arc<Table>)>, errors: Vec<(DomainId, Arc<Table>)>) {
        for (no, mut table) in tables {
            let Some(installed) = self.instances.get_mut(&no) else { continue };
            if let (Logic::Groups { .. }, Some(own)) = (&installed.instance.logic, Arc::get_mut(&mut table)) {
                // Groups are indexed by their whole key, not by its first column.
                own.index = None;
            }
            if let Some(place) = installed.place {
                let domain = installed.instance.domain.clone();
                self.newer.entry(domain).or_default().push((place, Arc::clone(&table)));
            }
            installed.table = Some(table);
        }
        for (domain, table) in errors {
            let held = self.errors.entry(domain.clone());
            let held = held.or_insert_with(|| Errors { table: Arc::clone(&table), place: None });
            match held.place {
                Some(place) => self.newer.entry(domain).or_default().push((place, Arc::clone(&table))),
                None => {
                    self.dirty.insert(domain);
                }
            }
            held.table = table;
        }
    }

    /// Takes in how far builds are.
    pub(crate) fn progress(&mut self, progress: &[(ViewNo, usize, usize)], completed: &[ViewNo]) {
        for (no, done, total) in progress {
            if let Some(installed) = self.instances.get_mut(no) {
                (installed.done, installed.total) = (*done, *total);
                self.dirty.insert(installed.instance.domain.clone());
            }
        }
        for no in completed {
            if let Some(installed) = self.instances.get_mut(no) {
                installed.complete = true;
                installed.done = installed.total;
                self.unsettled = true;
                self.dirty.insert(installed.instance.domain.clone());
            }
        }
    }

    /// Puts finished builds in the place of what they replace; returns commands that publish them and retire the replaced
    /// ones.
    pub(crate) fn swap(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        if !std::mem::take(&mut self.unsettled) {
            return commands;
        }
        let building: BTreeSet<ViewNo> = self.definitions.values().filter_map(|d| d.building).collect();
        let mut ready: BTreeSet<ViewNo> =
            building.iter().copied().filter(|no| self.instances.get(no).is_some_and(|i| i.complete)).collect();
        // A source and the aggregate views built on it change together, or neither does.
        loop {
            let waits = |no: &ViewNo| {
                let inputs_wait = self.reads(*no).any(|input| building.contains(&input) && !ready.contains(&input));
                let readers_wait = building
                    .iter()
                    .any(|reader| !ready.contains(reader) && self.reads(*reader).any(|input| input == *no));
                inputs_wait || readers_wait
            };
            let Some(waiting) = ready.iter().copied().find(waits) else { break };
            ready.remove(&waiting);
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
                    domain = %installed.instance.domain, view = installed.instance.id, documents = installed.total,
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
        commands
    }

    /// Lets a domain turn to `day`, if all its successors are complete.
    fn turn(&mut self, domain: &DomainId, day: Day, commands: &mut Vec<Command>) {
        let Self { definitions, instances, .. } = &mut *self;
        let complete = |no: ViewNo| {
            instances.get(&no).is_some_and(|installed| installed.complete && installed.instance.day == Some(day))
        };
        let of_domain = || definitions.iter().filter(|((of, ..), _)| of == domain);
        if of_domain()
            .any(|(_, held)| held.live.is_some_and(|no| turns(instances, no)) && !held.successor.is_some_and(complete))
        {
            return;
        }
        // What is being built was begun for the day that is over.
        let building = of_domain().filter(|(_, held)| held.building.is_some_and(|no| turns(instances, no)));
        let again: Vec<DefinitionKey> = building.map(|(key, _)| key.clone()).collect();
        let mut gone = Vec::new();
        for definition in definitions.iter_mut().filter(|((of, ..), _)| of == domain).map(|(_, definition)| definition)
        {
            if let Some(successor) = definition.successor.take() {
                commands.push(Command::Publish(successor));
                gone.extend(definition.live.replace(successor));
            }
        }
        self.days.insert(domain.clone(), day);
        self.dirty.insert(domain.clone());
        self.unprepared = true;
        for key in again {
            let building = self.definitions.get(&key).and_then(|definition| definition.building);
            let day_of = |no| self.instances.get(&no).and_then(|installed: &Installed| installed.instance.day);
            if building.and_then(day_of) == Some(day) {
                // It was begun again together with its source.
                continue;
            }
            match key.1 {
                DocKind::DataSource => self.build_source(&key, commands),
                _ => self.build_groups(&key, commands),
            }
        }
        self.retire(gone, commands);
    }

    /// The instances that an instance reads.
    fn reads(&self, no: ViewNo) -> impl Iterator<Item = ViewNo> {
        inputs(&self.instances, no)
    }

    /// True while anything is being built.
    pub(crate) fn building(&self) -> bool {
        self.definitions.values().any(|definition| definition.building.is_some())
    }

    /// Documents that some published view could not evaluate.
    pub(crate) fn failed_documents(&self) -> usize {
        self.errors.values().map(|errors| errors.table.live_rows).sum()
    }

    /// The tables of all domains as readers shall see them now.
    pub(crate) fn publish(&mut self) -> HashMap<DomainId, Arc<DomainTables>> {
        let dirty = std::mem::take(&mut self.dirty);
        for (domain, newer) in std::mem::take(&mut self.newer) {
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
        let Self { definitions, instances, errors, .. } = self;
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
        let errors =
            errors.entry(domain.clone()).or_insert_with(|| Errors { table: Arc::new(no_errors()), place: None });
        errors.place = Some(tables.add([TableName::new("system", "view_errors")], Arc::clone(&errors.table)));
        DomainTables { tables, views: views.into() }
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

/// True if the rows of an instance change with the day; those of an aggregate view that has lost a source stay as they are.
fn turns(instances: &HashMap<ViewNo, Installed>, no: ViewNo) -> bool {
    instances.get(&no).is_some_and(|installed| installed.instance.day.is_some())
        && inputs(instances, no).all(|input| instances.contains_key(&input))
}

/// How a definition is doing.
fn state(definition: &Definition, instances: &HashMap<ViewNo, Installed>) -> ViewState {
    if let Some(message) = &definition.failed {
        return ViewState::Failed { message: message.clone() };
    }
    match definition.building.and_then(|no| instances.get(&no)) {
        Some(installed) => ViewState::Building(progress(installed)),
        None => ViewState::Live,
    }
}

/// How far a build is.
fn progress(installed: &Installed) -> Progress {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let (done, total) = (count(installed.done), count(installed.total));
    let millis = installed.started.elapsed().as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let millis_left = (u128::from(total.saturating_sub(done)) * millis).checked_div(done.into());
    let seconds_left = millis_left.and_then(|millis| u64::try_from(millis.div_ceil(1000)).ok());
    Progress { done, total, rate, seconds_left, started_at: installed.started_at }
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
