//! What a statement can name: the tables of one domain in one snapshot.
//!
//! A domain is a catalog (architecture D15): nobody names another domain's tables. Names without a schema are looked for
//! in `ucr`, then `views`, then `system`.

pub(crate) mod pg;
mod provider;
pub(crate) mod system;

use std::{collections::BTreeSet, sync::Arc};

use datafusion::{
    catalog::{SchemaProvider, TableProvider, information_schema::InformationSchemaProvider},
    common::TableReference,
};
use futures::FutureExt;
use schemas::{
    id::DomainId,
    port::ViewReader,
    table::{DomainTables, PREVIEW_SCHEMAS, Progress, Snapshot, TableName, ViewState},
};

use crate::{closest::closest, error::QueryError, table::LiveTable};

/// Schemas that names without a schema are looked for in, in order.
pub(crate) const SEARCH_PATH: [&str; 3] = ["ucr", "views", "system"];

const INFORMATION_SCHEMA: &str = "information_schema";
const PG_CATALOG: &str = "pg_catalog";

/// Everything one statement sees: one snapshot, one domain, one user.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) snapshot: Arc<Snapshot>,
    /// Whom to ask what is not in a snapshot.
    pub(crate) reader: Arc<dyn ViewReader>,
    pub(crate) domain: DomainId,
    /// Name of the user, for `current_user`.
    pub(crate) user: Arc<str>,
    /// The domain's tables in the snapshot; empty if it has none yet.
    pub(crate) tables: Arc<DomainTables>,
    /// Microseconds since 1970 UTC when the statement began.
    pub(crate) now: i64,
    /// Sources silent for longer than this are stalled, microseconds.
    pub(crate) stalled_after: i64,
    /// Postgres' own catalogue, where the protocol needs it.
    pub(crate) pg_catalog: Option<Arc<dyn SchemaProvider>>,
}

impl Scope {
    /// Finds the table a reference of the statement names.
    ///
    /// # Errors
    /// [`QueryError::UnknownTable`].
    pub(crate) fn find(self: &Arc<Self>, reference: &TableReference) -> Result<Arc<dyn TableProvider>, QueryError> {
        let found = match reference {
            TableReference::Bare { table } => SEARCH_PATH.iter().find_map(|schema| self.table(schema, table)),
            TableReference::Partial { schema, table } => self.table(schema, table),
            TableReference::Full { catalog, schema, table } => {
                (**catalog == *self.domain.as_str()).then(|| self.table(schema, table)).flatten()
            }
        };
        found.ok_or_else(|| {
            if let Some(why) = self.why_not(reference) {
                return QueryError::NotReady { name: reference.to_string(), why };
            }
            let names: Vec<String> = self.names().map(|name| name.to_string()).collect();
            QueryError::UnknownTable {
                name: reference.to_string(),
                domain: self.domain.to_string(),
                close: closest(reference.table(), names.iter().map(String::as_str)),
            }
        })
    }

    /// Why a view of that name has no rows to read.
    fn why_not(&self, reference: &TableReference) -> Option<String> {
        let named = |name: &TableName| {
            *name.name == *reference.table() && reference.schema().is_none_or(|schema| *name.schema == *schema)
        };
        let view =
            self.tables.views.iter().find(|view| view.tables.iter().any(named) || view.id == reference.table())?;
        Some(match &view.state {
            ViewState::Waiting => "it will be built when others are complete".to_owned(),
            ViewState::Paused { source: None } => "it is paused; put its definition without `paused`".to_owned(),
            ViewState::Paused { source: Some(source) } => format!("it reads `{source}`, which is paused"),
            ViewState::Building(Progress { done, total, .. }) => {
                format!("it is being built, {done} of {total} documents so far")
            }
            ViewState::Failed { message } => message.clone(),
            ViewState::Live => return None,
        })
    }

    /// The table of that schema and name.
    pub(crate) fn table(self: &Arc<Self>, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        if schema == INFORMATION_SCHEMA {
            let list = Arc::new(provider::SnapshotCatalog::new(Arc::clone(self)));
            return ready(&InformationSchemaProvider::new(list), name);
        }
        if schema == PG_CATALOG {
            return ready(self.pg_catalog.as_ref()?.as_ref(), name);
        }
        if let Some(table) = system::table(self, schema, name) {
            return Some(table);
        }
        let table = Arc::clone(self.tables.tables.get(&TableName::new(schema, name))?);
        Some(Arc::new(LiveTable::new(table)))
    }

    /// Every table of the domain, the ones made per statement included.
    pub(crate) fn names(&self) -> impl Iterator<Item = TableName> + '_ {
        let made = system::NAMES.iter().map(|name| TableName::new(system::SCHEMA, name));
        self.tables.tables.names().cloned().chain(made)
    }

    /// Schemas that hold tables, and those that always exist.
    pub(crate) fn schemas(&self) -> BTreeSet<Arc<str>> {
        let known = self.tables.tables.names().map(|name| Arc::clone(&name.schema));
        known.chain(SEARCH_PATH.iter().map(|schema| Arc::from(*schema))).collect()
    }

    /// Names of the tables of a schema.
    pub(crate) fn tables_of<'a>(&'a self, schema: &'a str) -> impl Iterator<Item = TableName> + 'a {
        self.names().filter(move |name| &*name.schema == schema)
    }

    /// Documents that some table of the domain could not evaluate.
    pub(crate) fn view_errors(&self) -> usize {
        view_errors(&self.tables)
    }
}

/// Documents that some table of a domain could not evaluate; a table with several names counts once, a preview does
/// not.
pub(crate) fn view_errors(tables: &DomainTables) -> usize {
    let mut seen = hashbrown::HashSet::new();
    let published = tables.tables.iter().filter(|(name, _)| !PREVIEW_SCHEMAS.contains(&&*name.schema));
    let failed = published.map(|(_, table)| table).filter(|table| table.errors > 0);
    failed.filter(|table| seen.insert(Arc::as_ptr(table))).map(|table| table.errors).sum()
}

/// Asks a schema that answers at once, as the generated ones do.
fn ready(schema: &dyn SchemaProvider, name: &str) -> Option<Arc<dyn TableProvider>> {
    schema.table(name).now_or_never().and_then(Result::ok).flatten()
}
