//! Everything that readers talk to: SQL over Postgres wire and HTTP, and CommCare's REST reads, over published snapshots.
//!
//! A statement takes one snapshot through [`schemas::port::ViewReader`] and one caller through
//! [`schemas::port::Authenticator`], and sees nothing else: the caller's domain is its catalog ([`catalog`]), the
//! snapshot's segments are its tables ([`table`]). [`routes`] and [`serve_postgres`] are what the binary starts.
//!
//! Never here: timely, writes to Postgres, rules of forms and cases.

mod catalog;
mod closest;
mod config;
mod engine;
mod error;
mod front;
mod metrics;
mod rest;
mod session;
pub mod table;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc};

use schemas::port::{Authenticator, ViewReader};

pub use crate::{config::QueryConfig, error::QueryError};

/// What the reading side is made of.
#[derive(Debug)]
pub struct QueryState {
    /// Published snapshots.
    pub views: Arc<dyn ViewReader>,
    /// Who a caller is.
    pub auth: Arc<dyn Authenticator>,
    /// Limits.
    pub config: QueryConfig,
}

/// The HTTP side: `POST /a/{domain}/sql` and the REST reads.
pub fn routes(state: Arc<QueryState>) -> axum::Router {
    front::sql_http::routes().merge(rest::routes()).with_state(front::Doors::new(state))
}

/// Serves the Postgres protocol on `listener` until `stop` resolves, then ends the connections that are left.
///
/// # Errors
/// If the engine cannot be set up. Failures of single connections are logged.
pub async fn serve_postgres(
    listener: tokio::net::TcpListener,
    state: Arc<QueryState>,
    stop: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    front::pgwire::serve(listener, state, stop).await
}
