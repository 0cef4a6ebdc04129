//! Starts and stops everything, in one order written once.
//!
//! Start: data directory lock, listeners (so that a taken port is said before anything is touched), object store,
//! Postgres, ingest, dataflow, accounts, HTTP, Postgres wire. Stop is the reverse: no new requests, the ones under way
//! finish, the lanes drain, the dataflow ends, Postgres flushes and ends.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::serve::ListenerExt;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    assemble::{self, Parts},
    config::{Config, Role},
    credentials::{self, Admin},
    health,
    postgres::{Postgres, PostgresState},
    status, telemetry,
};

/// How long requests under way may take to finish once the server stops.
const DRAIN: Duration = Duration::from_secs(15);

/// How long a process that was killed may hold its lock and its ports before they count as taken.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// A running server.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where HTTP is served.
    pub(crate) http_addr: SocketAddr,
    /// Where the Postgres protocol is served, if the `query` role runs.
    pub(crate) postgres_addr: Option<SocketAddr>,
    /// Where everything is kept, absolute.
    pub(crate) data_dir: PathBuf,
    /// The administrator of the configured domain, when its password is known.
    pub(crate) admin: Option<Admin>,
    parts: Parts,
    stop: CancellationToken,
    http: JoinHandle<std::io::Result<()>>,
    wire: Option<JoinHandle<std::io::Result<()>>>,
    sampler: JoinHandle<()>,
    _lock: File,
}

/// Starts every configured role and returns once requests are served.
///
/// # Errors
/// What could not be started and why; whatever had been started is stopped again.
pub(crate) async fn start(mut config: Config) -> anyhow::Result<Running> {
    let metrics = telemetry::metrics()?;
    config.data_dir = prepare_data_dir(&config.data_dir)?;
    let lock = lock(&config.data_dir).await?;
    let http = listen(config.listen.http, "listen.http", "HTTP").await?;
    let http_addr = http.local_addr()?;
    let wire = match config.roles.has(Role::Query) {
        true => Some(listen(config.listen.postgres, "listen.postgres", "the Postgres protocol").await?),
        false => None,
    };
    let postgres_addr = wire.as_ref().map(TcpListener::local_addr).transpose()?;

    let parts = assemble::build(&config).await?;
    let admin = match credentials::first_start(&config, &parts.ingest).await {
        Ok(admin) => admin,
        Err(error) => {
            parts.stop().await;
            return Err(error);
        }
    };

    let stop = CancellationToken::new();
    let sampler = tokio::spawn(telemetry::sample(metrics.clone(), stop.clone()));
    let health = health::HealthState {
        views: Arc::clone(&parts.views),
        postgres: parts.postgres.as_ref().map(Postgres::watch),
        metrics: metrics.clone(),
        roles: config.roles.clone(),
        stop: stop.clone(),
    };
    let router = parts.routes(&config.roles).merge(health::routes(Arc::new(health)));
    let router = router.merge(status::routes(Arc::clone(&parts.views), metrics.clone(), config.listen.audience()));
    let http = tokio::spawn(serve_http(http, router, stop.clone()));
    let wire = wire.map(|listener| {
        let stop = stop.clone();
        let state = Arc::clone(&parts.query);
        tokio::spawn(async move { query::serve_postgres(listener, state, stop.cancelled_owned()).await })
    });
    tracing::info!(http = %http_addr, postgres = ?postgres_addr, data_dir = %config.data_dir.display(), "serving");
    Ok(Running {
        http_addr,
        postgres_addr,
        data_dir: config.data_dir,
        admin,
        parts,
        stop,
        http,
        wire,
        sampler,
        _lock: lock,
    })
}

impl Running {
    /// Process id of the private Postgres, if there is one and it is up.
    pub(crate) fn postgres_pid(&self) -> Option<u32> {
        match *self.parts.postgres.as_ref()?.watch().borrow() {
            PostgresState::Up { pid } => Some(pid),
            PostgresState::Down { .. } => None,
        }
    }

    /// Stops everything: requests under way finish (at most [`DRAIN`]), acknowledged forms are already durable.
    pub(crate) async fn stop(self) {
        tracing::info!("stopping");
        self.stop.cancel();
        let doors = async {
            ended("HTTP", self.http).await;
            if let Some(wire) = self.wire {
                ended("Postgres protocol", wire).await;
            }
        };
        if tokio::time::timeout(DRAIN, doors).await.is_err() {
            tracing::warn!(seconds = DRAIN.as_secs(), "some requests did not finish in time and were cut off");
        }
        self.parts.stop().await;
        if let Err(error) = self.sampler.await {
            tracing::warn!(%error, "the sampler failed");
        }
        tracing::info!("stopped");
    }

    /// Returns what ends the private Postgres at once, for a stop that must not wait. Committed work survives.
    pub(crate) fn postgres_killer(&self) -> impl FnOnce() + use<> {
        let killer = self.parts.postgres.as_ref().map(Postgres::killer);
        move || {
            if let Some(killer) = killer {
                killer.kill();
            }
        }
    }
}

async fn ended(what: &'static str, mut task: JoinHandle<std::io::Result<()>>) {
    // Aborting on drop makes the caller's deadline end the task as well.
    let guard = AbortOnDrop(task.abort_handle());
    match (&mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "serving {what} failed"),
        Err(error) => tracing::error!(%error, "serving {what} panicked"),
    }
    drop(guard);
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve_http(listener: TcpListener, router: axum::Router, stop: CancellationToken) -> std::io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not switch off delayed sends");
        }
    });
    // The status page asks where a request comes from.
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Binds a listener, naming the setting to change when that fails.
///
/// # Errors
/// The address is taken or not this machine's.
pub(crate) async fn listen(addr: SocketAddr, setting: &str, what: &str) -> anyhow::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + LOCK_WITHIN;
    loop {
        match TcpListener::bind(addr).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            outcome => {
                return outcome.with_context(|| {
                    format!(
                        "could not listen on {addr} for {what}; stop what uses that port, or set `{setting}` to another \
                         address"
                    )
                });
            }
        }
    }
}

/// Makes the data directory if it is missing and returns its absolute path.
///
/// # Errors
/// It cannot be made or resolved.
pub(crate) fn prepare_data_dir(path: &Path) -> anyhow::Result<PathBuf> {
    let made = !path.exists();
    std::fs::create_dir_all(path).with_context(|| {
        format!("could not make the data directory {}; choose another with --data-dir", path.display())
    })?;
    let path =
        path.canonicalize().with_context(|| format!("could not resolve the data directory {}", path.display()))?;
    if made {
        // Others may pass through (the private Postgres may run as another user) but not look around.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711))
            .with_context(|| format!("could not protect the data directory {}", path.display()))?;
    }
    Ok(path)
}

/// Takes the data directory for this process, until the file is dropped. A process that was killed may need a moment
/// to be gone.
///
/// # Errors
/// Another process has it.
pub(crate) async fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("could not open {} (owner uid {})", path.display(), owner(data_dir)))?;
    let deadline = tokio::time::Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another millrace process is using {}; stop it, or choose another directory with --data-dir",
                data_dir.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("could not lock {}", path.display()));
            }
        }
    }
}

/// True if a millrace process holds the data directory.
pub(crate) fn in_use(data_dir: &Path) -> bool {
    let Ok(file) = File::open(data_dir.join("lock")) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn owner(path: &Path) -> String {
    path.metadata().map_or_else(|_| "unknown".to_owned(), |metadata| metadata.uid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_data_directory_has_one_user_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!in_use(directory.path()));
        let first = lock(directory.path()).await.unwrap();
        assert!(in_use(directory.path()));
        let message = format!("{:#}", lock(directory.path()).await.unwrap_err());
        assert!(message.contains("another millrace process"), "{message}");
        drop(first);
        assert!(!in_use(directory.path()));
        assert!(lock(directory.path()).await.is_ok());
    }

    #[tokio::test]
    async fn a_taken_port_names_the_setting() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = listen(taken.local_addr().unwrap(), "listen.http", "HTTP").await.unwrap_err();
        assert!(error.to_string().contains("`listen.http`"), "{error}");
    }
}
