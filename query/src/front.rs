//! The doors: SQL over HTTP and over Postgres wire, and what all HTTP answers share.

pub(crate) mod encode;
pub(crate) mod http;
pub(crate) mod pgwire;
pub(crate) mod sql_http;

use std::sync::Arc;

use schemas::{id::DomainId, table::DomainTables, time::format_micros};

use crate::{QueryError, QueryState, catalog, engine::Engine};

/// What every handler gets.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) state: Arc<QueryState>,
    engine: Result<Arc<Engine>, QueryError>,
}

impl Doors {
    pub(crate) fn new(state: Arc<QueryState>) -> Self {
        let engine = Engine::new(Arc::clone(&state.views), state.config.clone()).map(Arc::new);
        Self { state, engine }
    }

    /// The engine, or why it could not be made.
    ///
    /// # Errors
    /// [`QueryError::Internal`].
    pub(crate) fn engine(&self) -> Result<&Arc<Engine>, QueryError> {
        self.engine.as_ref().map_err(Clone::clone)
    }
}

/// How fresh and how complete an answer is (architecture, names fixed once).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) snapshot: u64,
    pub(crate) as_of: String,
    pub(crate) complete_through: String,
    pub(crate) errors: usize,
}

impl Freshness {
    /// Of a snapshot, as a domain sees it.
    pub(crate) fn of(snapshot: &schemas::table::Snapshot, tables: &DomainTables) -> Self {
        let moment = tables.behind.as_ref().unwrap_or(&snapshot.moment);
        Self {
            snapshot: moment.tick.0,
            as_of: format_micros(moment.as_of),
            complete_through: moment.complete_through.to_string(),
            errors: catalog::view_errors(tables),
        }
    }

    /// Of the newest snapshot.
    pub(crate) fn now(state: &QueryState, domain: &DomainId) -> Self {
        let snapshot = state.views.snapshot();
        match snapshot.domains.get(domain) {
            Some(tables) => Self::of(&snapshot, tables),
            None => Self::of(&snapshot, &DomainTables::default()),
        }
    }
}
