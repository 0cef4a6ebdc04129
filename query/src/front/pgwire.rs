//! Postgres wire: accepts connections and gives each its own session.
//!
//! The protocol itself and the encoding of values are the libraries' (`pgwire`, `arrow-pg`); who may connect, what a
//! statement sees and how errors are named is decided here. Passwords arrive in clear text inside the connection, so the
//! port belongs on a loopback interface or behind a tunnel.

mod command;
mod queries;
mod rows;
mod session;
mod startup;

use std::{future::Future, io, sync::Arc};

use ::pgwire::{
    api::{
        ClientInfo, ConnectionManager, ErrorHandler, PgWireServerHandlers, RandomPidSecretKeyGenerator,
        auth::StartupHandler,
        cancel::{CancelHandler, DefaultCancelHandler},
        query::{ExtendedQueryHandler, SimpleQueryHandler},
    },
    error::{ErrorInfo, PgWireError},
    tokio::process_socket,
};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use self::{queries::Queries, session::Session, startup::Startup};
use crate::{QueryError, QueryState, engine::Engine, metrics};

/// Parts that connections share.
struct Shared {
    state: Arc<QueryState>,
    engine: Arc<Engine>,
    parser: PostgresCompatibilityParser,
    connections: Arc<ConnectionManager>,
    keys: RandomPidSecretKeyGenerator,
}

/// Accepts Postgres clients until `stop`, then ends the connections that are left.
///
/// # Errors
/// If the engine cannot be made. A connection that cannot be accepted or breaks is logged and does not end the others.
pub(crate) async fn serve(
    listener: TcpListener,
    state: Arc<QueryState>,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let engine = Engine::new(Arc::clone(&state.views), state.config.clone()).map_err(io::Error::other)?;
    let places = Arc::new(Semaphore::new(state.config.max_connections.max(1)));
    let shared = Arc::new(Shared {
        state,
        engine: Arc::new(engine),
        parser: PostgresCompatibilityParser::new(),
        connections: Arc::new(ConnectionManager::new()),
        keys: RandomPidSecretKeyGenerator::default(),
    });
    let mut tasks = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a Postgres connection");
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%peer, "refused a Postgres connection, too many are open");
            continue;
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%peer, %error, "could not set TCP_NODELAY");
        }
        let handlers = Arc::new(Handlers::new(&shared));
        tasks.spawn(async move {
            metrics::connections(1.0);
            if let Err(error) = process_socket(socket, None, handlers).await {
                tracing::debug!(%peer, %error, "Postgres connection ended");
            }
            metrics::connections(-1.0);
            drop(place);
        });
    }
    tasks.shutdown().await;
    Ok(())
}

/// What one connection is answered by.
struct Handlers {
    startup: Arc<Startup>,
    queries: Arc<Queries>,
    cancel: Arc<DefaultCancelHandler>,
}

impl Handlers {
    fn new(shared: &Arc<Shared>) -> Self {
        let session = Arc::new(Session::new(Arc::clone(shared)));
        Self {
            startup: Arc::new(Startup::new(Arc::clone(&session))),
            queries: Arc::new(Queries::new(session)),
            cancel: Arc::new(DefaultCancelHandler::new(Arc::clone(&shared.connections))),
        }
    }
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::clone(&self.queries)
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::clone(&self.queries)
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        Arc::clone(&self.startup)
    }

    fn error_handler(&self) -> Arc<impl ErrorHandler> {
        Arc::new(Log)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::clone(&self.cancel)
    }
}

struct Log;

impl ErrorHandler for Log {
    fn on_error<C: ClientInfo>(&self, client: &C, error: &mut PgWireError) {
        tracing::debug!(peer = %client.socket_addr(), %error, "refused Postgres message");
    }
}

/// An error as Postgres clients read it.
fn describe(error: &QueryError, severity: &str) -> Box<ErrorInfo> {
    Box::new(ErrorInfo::new(severity.to_owned(), error.sqlstate().to_owned(), error.to_string()))
}

/// An error that ends the statement.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` hands over")]
fn failed(error: QueryError) -> PgWireError {
    let error = &error;
    PgWireError::UserError(describe(error, "ERROR"))
}
