//! The private Postgres: made, started, watched and stopped by this process, in its data directory.
//!
//! In: the data directory and where the system's Postgres programs are. Out: a connection string over a Unix socket
//! that only its owner can reach. It never listens on TCP. Durability is Postgres's own: `fsync` and
//! `synchronous_commit` stay on. One that survived a crash of this program is stopped first, never used by two.

mod account;
mod binaries;
mod cluster;
mod supervise;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use binaries::Binaries;
pub(crate) use supervise::{Postgres, PostgresState};

/// Name of the socket file's port part; no TCP port is opened.
const SOCKET_PORT: u16 = 5432;
/// Superuser and database of the private Postgres.
const NAME: &str = "millrace";

/// What a private Postgres is made of.
#[derive(Clone, Debug)]
pub(crate) struct PostgresOptions {
    /// The program's data directory, absolute.
    pub(crate) data_dir: PathBuf,
    /// Directory of the Postgres programs, if it was configured.
    pub(crate) binaries: Option<PathBuf>,
    /// Page cache in MB.
    pub(crate) shared_buffers_mb: u32,
    /// Log between checkpoints in MB.
    pub(crate) max_wal_mb: u32,
}

/// Why there is no private Postgres.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostgresError {
    /// No `initdb` and `postgres` anywhere.
    #[error(
        "could not find the Postgres programs (`initdb`, `postgres`, `pg_ctl`; version {} or later); looked in: {looked}. \
         Install them (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; macOS: `brew \
         install postgresql`), set `postgres.binaries` to their directory, or set `ingest.database_url` to a server of yours",
        binaries::OLDEST
    )]
    Missing {
        /// The directories that were looked in.
        looked: String,
    },
    /// Programs of another version than the data.
    #[error(
        "the database in {} was made by Postgres {made_by}, and only version {found} is installed; install Postgres {made_by}",
        pgdata.display()
    )]
    Version {
        /// Directory of the database.
        pgdata: PathBuf,
        /// Version that made it.
        made_by: u32,
        /// Versions found.
        found: String,
    },
    /// Too little room to begin.
    #[error("only {free_mb} MB are free at {}, and Postgres needs {needed_mb} MB to start; free some space or choose another --data-dir", path.display())]
    Space {
        /// Where.
        path: PathBuf,
        /// What is free.
        free_mb: u64,
        /// What is needed.
        needed_mb: u64,
    },
    /// Root runs us, and there is nobody to run Postgres as.
    #[error(
        "Postgres refuses to run as root, and this system has neither a user `postgres` nor `nobody`; create one, or run millrace as an ordinary user"
    )]
    NoAccount,
    /// The database belongs to someone else.
    #[error("the database in {} belongs to user id {owner}, but this process would run Postgres as user id {wanted}; start it as the same user as before, or choose another --data-dir", pgdata.display())]
    Owner {
        /// Directory of the database.
        pgdata: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who would use it.
        wanted: u32,
    },
    /// A program could not be run, or failed.
    #[error("`{program}` failed: {message}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        message: String,
    },
    /// A file could not be made or changed.
    #[error("could not {what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The server process ended before it took connections.
    #[error("Postgres ended while it was starting ({status}); its log {} ends with:\n{tail}", log.display())]
    Ended {
        /// How it ended.
        status: String,
        /// The log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server process runs and takes no connections.
    #[error("Postgres took no connections within {waited:?}: {message}; see its log {}", log.display())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// The last refusal.
        message: String,
        /// The log file.
        log: PathBuf,
    },
}

impl PostgresError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// Says with which programs, and as whom, a private Postgres would run. Changes nothing.
///
/// # Errors
/// What would keep it from starting.
pub(crate) async fn look(options: &PostgresOptions) -> Result<String, PostgresError> {
    let account = account::Account::choose().await?;
    let existing = cluster::existing(&options.data_dir);
    let made = existing.as_ref().map(|(pgdata, version)| (pgdata.as_path(), *version));
    let binaries = Binaries::find(options.binaries.as_deref(), made).await?;
    if let Some((pgdata, _)) = &existing {
        account.check_owner(pgdata)?;
    }
    Ok(format!("version {} in {}, to run as user id {}", binaries.major, binaries.directory.display(), account.uid))
}

/// Free space at `path` in MB, if the system can tell.
pub(crate) async fn free_mb(path: &Path) -> Option<u64> {
    let output = tokio::process::Command::new("df").arg("-Pk").arg(path).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let free_kb: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(free_kb / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn free_space_is_known() {
        assert!(free_mb(Path::new("/")).await.is_some());
        assert!(free_mb(Path::new("/no/such/directory")).await.is_none());
    }
}
