//! What readers are told: the tables of a domain by their names, and how its views are doing.

use std::sync::Arc;

use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    id::DomainId,
    table::{
        DomainTables, NamedTables, PREVIEW_SCHEMAS, PreviewState, Progress, Table, TableName, ViewState, ViewStatus,
    },
};

use super::{Catalog, Definition, Errors, Installed, Pause, Phase};
use crate::{
    config::Workers,
    table::TableWriter,
    view::{Instance, Logic, RowLogic, ViewNo, view_errors},
};

/// A `system.view_errors` without rows.
fn no_errors() -> Table {
    Table { index: None, ..TableWriter::new(Arc::new(view_errors()), Some(3)).publish() }
}

impl Errors {
    pub(super) fn none(workers: Workers) -> Self {
        Self { parts: vec![None; workers.count()], table: Arc::new(no_errors()), place: None }
    }
}

impl Catalog {
    pub(super) fn domain_tables(&mut self, domain: &DomainId) -> DomainTables {
        let Self { workers, definitions, instances, errors, .. } = self;
        let mut tables = NamedTables::default();
        let mut views = Vec::new();
        let first = (domain.clone(), DocKind::Form, String::new());
        for ((of, kind, id), definition) in definitions.range(first..) {
            if of != domain {
                break;
            }
            for no in definition.instances() {
                if let Some(installed) = instances.get_mut(&no) {
                    installed.place = None;
                }
            }
            let newest = definition.live.or(definition.building).and_then(|no| instances.get(&no));
            let names = newest.map(|installed| names(&installed.instance)).unwrap_or_default();
            if let Some(installed) = definition.live.and_then(|no| instances.get_mut(&no)) {
                installed.place = installed.table.clone().map(|table| tables.add(names.iter().cloned(), table));
            }
            if matches!(kind, DocKind::DataSource | DocKind::AggregateView) {
                let state = state(definition, instances);
                let live = definition.live.and_then(|no| instances.get(&no));
                let published = live.map(|installed| Arc::clone(&installed.origin.document));
                let preview = preview_state(definition, *kind, id, instances);
                if let Some(PreviewState::Complete { table: name }) = &preview
                    && let Some(installed) = definition.preview.and_then(|no| instances.get_mut(&no))
                {
                    installed.place = installed.table.clone().map(|table| tables.add([name.clone()], table));
                }
                views.push(ViewStatus { id: id.clone(), kind: kind.name(), tables: names, state, preview, published });
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
    match &definition.pause {
        Some(Pause::Own) => return ViewState::Paused { source: None },
        Some(Pause::Source(source)) => return ViewState::Paused { source: Some(source.clone()) },
        None => {}
    }
    if let Some(message) = &definition.failed {
        return ViewState::Failed { message: message.clone() };
    }
    match definition.building.and_then(|no| instances.get(&no)) {
        Some(installed) if installed.phase == Phase::Waiting => ViewState::Waiting,
        Some(installed) => ViewState::Building(progress(installed)),
        None => ViewState::Live,
    }
}

/// How a definition's preview is doing.
fn preview_state(
    definition: &Definition,
    kind: DocKind,
    id: &str,
    instances: &HashMap<ViewNo, Installed>,
) -> Option<PreviewState> {
    if let Some(message) = &definition.preview_failed {
        return Some(PreviewState::Failed { message: message.clone() });
    }
    let installed = instances.get(&definition.preview?)?;
    Some(match installed.phase {
        Phase::Waiting => PreviewState::Waiting,
        Phase::Building => PreviewState::Building(progress(installed)),
        Phase::Complete | Phase::Frozen => {
            let [of_sources, of_views] = PREVIEW_SCHEMAS;
            let schema = if kind == DocKind::DataSource { of_sources } else { of_views };
            PreviewState::Complete { table: TableName::new(schema, id) }
        }
    })
}

/// How far a build is.
fn progress(installed: &Installed) -> Progress {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let (done, total) = installed.progress();
    let (done, total) = (count(done), count(total));
    let millis = installed.started.elapsed().as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let millis_left = (u128::from(total.saturating_sub(done)) * millis).checked_div(done.into());
    let seconds_left = millis_left.and_then(|millis| u64::try_from(millis.div_ceil(1000)).ok());
    Progress { done, total, rate, seconds_left, started_at: installed.started_at }
}

/// Every name of an instance's table.
pub(super) fn names(instance: &Instance) -> Vec<TableName> {
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
