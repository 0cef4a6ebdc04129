//! Runs the server process: started, watched, started again when it dies, stopped when we stop.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{process::Child, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{NAME, PostgresError, PostgresOptions, cluster::Cluster, cluster::existing_socket_dir};

/// A crash recovery replays at most `max_wal_size`; slow disks need minutes for it.
const READY_WITHIN: Duration = Duration::from_secs(600);
/// First and longest pause before a server that died is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Longest pause between two attempts to connect to a server that is starting.
const LONGEST_POLL: Duration = Duration::from_millis(250);
/// A log file larger than this is begun anew at the next start.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// Whether the private Postgres takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PostgresState {
    /// It does.
    Up {
        /// The server process.
        pid: u32,
    },
    /// It does not.
    Down {
        /// Why.
        reason: String,
    },
}

/// A running private Postgres. Dropping it without [`Self::stop`] stops the server without waiting.
#[derive(Debug)]
pub(crate) struct Postgres {
    cluster: Arc<Cluster>,
    state: watch::Receiver<PostgresState>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// Ends the server process at once.
#[derive(Debug)]
pub(crate) struct Killer(Arc<Cluster>);

impl Killer {
    /// Stops the server without checkpoint; what was committed is recovered at the next start.
    pub(crate) fn kill(&self) {
        let mut command = self.0.account.command(&self.0.binaries.program("pg_ctl"));
        command.args(["stop", "-W", "-m", "immediate", "-s", "-D"]).arg(&self.0.pgdata);
        let status = command.as_std_mut().stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !status.as_ref().is_ok_and(ExitStatus::success) {
            tracing::debug!(?status, "there was no Postgres to stop");
        }
    }
}

impl Postgres {
    /// Makes the database if there is none, starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// [`PostgresError`] says what is missing and what to do.
    pub(crate) async fn start(options: &PostgresOptions) -> Result<Self, PostgresError> {
        let cluster = Arc::new(Cluster::open(options).await?);
        cluster.stop_survivor().await?;
        // From here on a failure must not leave the server running.
        let killer = KillOnDrop(Some(Killer(Arc::clone(&cluster))));
        let child = launch(&cluster, options).await?;
        ensure_database(&cluster).await?;
        killer.disarm();

        let pid = child.id().unwrap_or_default();
        let (sender, state) = watch::channel(PostgresState::Up { pid });
        let stop = CancellationToken::new();
        let supervisor = Supervisor { cluster: Arc::clone(&cluster), options: options.clone(), state: sender };
        let task = tokio::spawn(supervisor.run(child, stop.clone()));
        Ok(Self { cluster, state, stop, task: Some(task) })
    }

    /// The connection string.
    pub(crate) fn url(&self) -> String {
        self.cluster.url(NAME)
    }

    /// The connection string of a server that another process keeps in the data directory.
    pub(crate) fn url_of_running(data_dir: &std::path::Path) -> Option<String> {
        let directory = existing_socket_dir(data_dir)?;
        let host = directory.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
        Some(format!("host='{host}' port={} user={NAME} dbname={NAME}", super::SOCKET_PORT))
    }

    /// Whether it is up, now and later.
    pub(crate) fn watch(&self) -> watch::Receiver<PostgresState> {
        self.state.clone()
    }

    /// What ends the server at once.
    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.cluster))
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "watching Postgres failed");
            self.killer().kill();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            self.killer().kill();
        }
    }
}

struct KillOnDrop(Option<Killer>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(killer) = &self.0 {
            killer.kill();
        }
    }
}

struct Supervisor {
    cluster: Arc<Cluster>,
    options: PostgresOptions,
    state: watch::Sender<PostgresState>,
}

impl Supervisor {
    async fn run(self, mut child: Child, stop: CancellationToken) {
        loop {
            tokio::select! {
                status = child.wait() => {
                    let reason = format!("the server process ended: {}", outcome(status));
                    tracing::error!(log = %self.cluster.log.display(), "Postgres: {reason}; starting it again");
                    self.state.send_replace(PostgresState::Down { reason });
                }
                () = stop.cancelled() => return self.end(child).await,
            }
            tokio::select! {
                again = self.restart() => child = again,
                () = stop.cancelled() => return self.end_half_started().await,
            }
            let pid = child.id().unwrap_or_default();
            tracing::info!(pid, "Postgres is back");
            self.state.send_replace(PostgresState::Up { pid });
        }
    }

    async fn restart(&self) -> Child {
        let mut pause = BACKOFF.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
            match launch(&self.cluster, &self.options).await {
                Ok(child) => return child,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?pause, "could not start Postgres again");
                    self.state.send_replace(PostgresState::Down { reason: error.to_string() });
                }
            }
        }
    }

    /// Stops a server whose start was given up, if it got as far as running.
    async fn end_half_started(&self) {
        if let Err(error) = self.cluster.pg_ctl(&["stop", "-w", "-m", "immediate", "-t", "30"]).await {
            tracing::debug!(%error, "there was no Postgres to stop");
        }
    }

    async fn end(&self, mut child: Child) {
        if let Err(error) = self.cluster.pg_ctl(&["stop", "-w", "-m", "fast", "-t", "60"]).await {
            tracing::warn!(%error, "Postgres did not stop in time; stopping it without a checkpoint");
            Killer(Arc::clone(&self.cluster)).kill();
        }
        let status = child.wait().await;
        tracing::debug!(status = outcome(status), "Postgres stopped");
        self.state.send_replace(PostgresState::Down { reason: "the server is stopping".to_owned() });
    }
}

fn outcome(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// Starts the server process and waits until it takes connections.
async fn launch(cluster: &Cluster, options: &PostgresOptions) -> Result<Child, PostgresError> {
    let log = open_log(cluster)?;
    let begun_at = log.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let again = log.try_clone().map_err(PostgresError::file("write", &cluster.log))?;
    let mut command = cluster.account.command(&cluster.binaries.program("postgres"));
    command.arg("-D").arg(&cluster.pgdata).arg("-k").arg(&cluster.socket_dir);
    for (name, value) in settings(options) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.stdout(again).stderr(log);
    let mut child = command
        .spawn()
        .map_err(|error| PostgresError::Program { program: "postgres".to_owned(), message: error.to_string() })?;
    match ready(cluster, &mut child, begun_at).await {
        Ok(()) => Ok(child),
        Err(error) => {
            if child.id().is_some() {
                Killer(Arc::new(cluster.clone())).kill();
                let status = outcome(child.wait().await);
                tracing::debug!(status, "Postgres did not become ready");
            }
            Err(error)
        }
    }
}

/// What differs from Postgres's defaults.
fn settings(options: &PostgresOptions) -> Vec<(&'static str, String)> {
    let fixed = [
        // Reached over the socket alone.
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        // An acknowledged form is on disk.
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("max_connections", "100"),
        ("checkpoint_timeout", "15min"),
        // Statements are short and many: parallel plans and compilation cost more than they give, and shared memory
        // for them is scarce in containers.
        ("max_parallel_workers_per_gather", "0"),
        ("jit", "off"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("lc_messages", "C"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_min_messages", "warning"),
        ("log_checkpoints", "off"),
        // Statements and their values may hold what patients said.
        ("log_min_error_statement", "panic"),
        ("log_error_verbosity", "terse"),
        ("cluster_name", NAME),
    ];
    let mut all: Vec<(&str, String)> = fixed.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    all.push(("shared_buffers", format!("{}MB", options.shared_buffers_mb)));
    all.push(("max_wal_size", format!("{}MB", options.max_wal_mb)));
    all
}

fn open_log(cluster: &Cluster) -> Result<File, PostgresError> {
    let path = &cluster.log;
    let full = path.metadata().is_ok_and(|metadata| metadata.len() > MAX_LOG_BYTES);
    if full {
        std::fs::remove_file(path).map_err(PostgresError::file("begin anew", path))?;
    }
    File::options().create(true).append(true).mode(0o600).open(path).map_err(PostgresError::file("open", path))
}

/// Waits until the server takes connections, dies, or takes too long.
async fn ready(cluster: &Cluster, child: &mut Child, log_from: u64) -> Result<(), PostgresError> {
    let begun = Instant::now();
    let mut said = begun;
    let mut pause = Duration::from_millis(20);
    let url = cluster.url("postgres");
    loop {
        if let Some(status) = child.try_wait().map_err(PostgresError::file("watch", &cluster.pgdata))? {
            let tail = log_tail(cluster, log_from);
            return Err(PostgresError::Ended { status: status.to_string(), log: cluster.log.clone(), tail });
        }
        let message = match tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                drop(client);
                return connection.await.map_err(|error| PostgresError::NotReady {
                    waited: begun.elapsed(),
                    message: error.to_string(),
                    log: cluster.log.clone(),
                });
            }
            Err(error) => error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()),
        };
        if begun.elapsed() > READY_WITHIN {
            return Err(PostgresError::NotReady { waited: begun.elapsed(), message, log: cluster.log.clone() });
        }
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            tracing::info!(seconds = begun.elapsed().as_secs(), "waiting for Postgres: {message}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_POLL);
    }
}

fn log_tail(cluster: &Cluster, from: u64) -> String {
    let mut text = String::new();
    let read = File::open(&cluster.log).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.take(64 << 10).read_to_string(&mut text)
    });
    if let Err(error) = read {
        return format!("(could not read it: {error})");
    }
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n")
}

/// Makes our database if this is the first start.
async fn ensure_database(cluster: &Cluster) -> Result<(), PostgresError> {
    let failed = |error: tokio_postgres::Error| PostgresError::Program {
        program: format!("create database {NAME}"),
        message: error.to_string(),
    };
    let (client, connection) =
        tokio_postgres::connect(&cluster.url("postgres"), tokio_postgres::NoTls).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let known = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&NAME]).await.map_err(failed)?;
    if known.is_none() {
        client.batch_execute(&format!("CREATE DATABASE {NAME}")).await.map_err(failed)?;
    }
    drop(client);
    match connection.await {
        Ok(ended) => ended.map_err(failed),
        Err(error) => Err(PostgresError::Program { program: "create database".to_owned(), message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(120);

    /// A data directory that the user of Postgres may pass through.
    fn directory() -> (tempfile::TempDir, PostgresOptions) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let data_dir = directory.path().canonicalize().unwrap();
        (directory, PostgresOptions { data_dir, binaries: None, shared_buffers_mb: 16, max_wal_mb: 64 })
    }

    async fn client(url: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn query(url: &str, statement: &str) -> String {
        client(url).await.query_one(statement, &[]).await.unwrap().get(0)
    }

    fn kill(pid: u32) {
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }

    async fn up(watch: &mut watch::Receiver<PostgresState>) -> u32 {
        let state = tokio::time::timeout(DEADLINE, watch.wait_for(|state| matches!(state, PostgresState::Up { .. })));
        match &*state.await.unwrap().unwrap() {
            PostgresState::Up { pid } => *pid,
            PostgresState::Down { reason } => panic!("{reason}"),
        }
    }

    #[tokio::test]
    async fn a_server_that_dies_comes_back_with_its_data_and_a_survivor_is_replaced() {
        let (_directory, options) = directory();
        let postgres = Postgres::start(&options).await.unwrap();
        assert_eq!(query(&postgres.url(), "SHOW fsync").await, "on");
        assert_eq!(query(&postgres.url(), "SHOW listen_addresses").await, "");
        assert_eq!(Postgres::url_of_running(&options.data_dir), Some(postgres.url()));
        let create = "CREATE TABLE kept AS SELECT 'here'::text AS what";
        client(&postgres.url()).await.batch_execute(create).await.unwrap();

        let mut watch = postgres.watch();
        let first = up(&mut watch).await;
        kill(first);
        let down = watch.wait_for(|state| matches!(state, PostgresState::Down { .. }));
        assert!(tokio::time::timeout(DEADLINE, down).await.unwrap().is_ok());
        let second = up(&mut watch).await;
        assert_ne!(first, second);
        assert_eq!(query(&postgres.url(), "SELECT what FROM kept").await, "here");

        // As if this process had been killed: the server goes on, and the next start takes over.
        let mut abandoned = postgres;
        abandoned.task.take().unwrap().abort();
        let next = Postgres::start(&options).await.unwrap();
        assert_eq!(query(&next.url(), "SELECT what FROM kept").await, "here");
        let third = up(&mut next.watch()).await;
        assert_ne!(second, third);
        next.stop().await;
        assert!(!options.data_dir.join("postgres/postmaster.pid").exists());
    }
}
