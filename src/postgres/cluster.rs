//! The database directory and the socket directory: where they lie, made once, freed of a survivor.

use std::{
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use schemas::id::document_hash;

use super::{Binaries, NAME, PostgresError, PostgresOptions, SOCKET_PORT, account::Account, free_mb};

/// Longest path of a Unix socket that every system takes.
const MAX_SOCKET_PATH: usize = 103;
/// A new database is some 40 MB, and its log grows from there.
const SPACE_TO_START_MB: u64 = 256;
/// Where databases go when the user of Postgres cannot reach the data directory.
const ELSEWHERE: &str = "/var/lib/millrace";

/// A database that can be started.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// As whom.
    pub(super) account: Account,
    /// With which programs.
    pub(super) binaries: Binaries,
    /// Postgres's data directory.
    pub(super) pgdata: PathBuf,
    /// Directory of the socket.
    pub(super) socket_dir: PathBuf,
    /// What the server process writes.
    pub(super) log: PathBuf,
}

impl Cluster {
    /// Finds the database of the data directory, or makes it.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub(super) async fn open(options: &PostgresOptions) -> Result<Self, PostgresError> {
        let account = Account::choose().await?;
        let pgdata = place(&options.data_dir, &account).await?;
        let made_by = made_by(&pgdata);
        let existing = made_by.map(|version| (pgdata.as_path(), version));
        let binaries = Binaries::find(options.binaries.as_deref(), existing).await?;
        let parent = pgdata.parent().unwrap_or(&options.data_dir).to_owned();
        if let Some(free_mb) = free_mb(&parent).await
            && free_mb < SPACE_TO_START_MB
        {
            return Err(PostgresError::Space { path: parent, free_mb, needed_mb: SPACE_TO_START_MB });
        }
        let socket_dir = socket_dir(&options.data_dir, &account).await?;
        let log = options.data_dir.join("postgres.log");
        let cluster = Self { account, binaries, pgdata, socket_dir, log };
        if made_by.is_none() {
            cluster.create().await?;
        }
        cluster.account.check_owner(&cluster.pgdata)?;
        Ok(cluster)
    }

    /// Runs `initdb` beside the final place and moves the result there, so that a half-made database is never found.
    async fn create(&self) -> Result<(), PostgresError> {
        tracing::info!(directory = %self.pgdata.display(), version = self.binaries.major, "making a private Postgres");
        let unfinished = self.pgdata.with_extension("new");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).map_err(PostgresError::file("remove", &unfinished))?;
        }
        private_dir(&unfinished, &self.account)?;
        let program = self.binaries.program("initdb");
        let mut command = self.account.command(&program);
        command.arg("-D").arg(&unfinished).args(["-U", NAME, "--encoding=UTF8", "--locale=C", "--data-checksums"]);
        // Only the owner of the socket's directory gets as far as authentication.
        command.args(["--auth-local=trust", "--auth-host=reject", "--no-instructions"]);
        run(command, "initdb").await?;
        // An empty directory may be there from before; anything else in it makes the move fail.
        if self.pgdata.exists() {
            std::fs::remove_dir(&self.pgdata).map_err(PostgresError::file("replace", &self.pgdata))?;
        }
        std::fs::rename(&unfinished, &self.pgdata).map_err(PostgresError::file("put in place", &self.pgdata))
    }

    /// Stops a server that still runs in the directory, which a crash of this program leaves behind, and removes what a
    /// killed one leaves: the number in its lock files may belong to another process by now, or to a dead one that nobody
    /// has waited for yet, and Postgres would take either for a running server.
    pub(super) async fn stop_survivor(&self) -> Result<(), PostgresError> {
        let pid_file = self.pgdata.join("postmaster.pid");
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let pid = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
        let alive = match pid {
            Some(pid) => is_postgres_in(pid, &self.pgdata).await,
            None => false,
        };
        if alive {
            tracing::info!(?pid, "stopping a private Postgres that outlived its millrace process");
            if let Err(error) = self.pg_ctl(&["stop", "-w", "-m", "fast", "-t", "30"]).await {
                tracing::warn!(%error, "it did not stop in time; stopping it the hard way");
                self.pg_ctl(&["stop", "-w", "-m", "immediate", "-t", "30"]).await?;
            }
        }
        for stale in [pid_file, self.socket_dir.join(format!(".s.PGSQL.{SOCKET_PORT}.lock"))] {
            match std::fs::remove_file(&stale) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PostgresError::file("remove the stale", &stale)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs `pg_ctl` on the database.
    pub(super) async fn pg_ctl(&self, arguments: &[&str]) -> Result<(), PostgresError> {
        let mut command = self.account.command(&self.binaries.program("pg_ctl"));
        command.args(arguments).arg("-D").arg(&self.pgdata);
        run(command, "pg_ctl").await
    }

    /// The connection string of a database of this server.
    pub(super) fn url(&self, database: &str) -> String {
        let host = self.socket_dir.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
        format!("host='{host}' port={SOCKET_PORT} user={NAME} dbname={database}")
    }
}

/// Where the server socket of a data directory would be found by another process of the same user.
pub(super) fn existing_socket_dir(data_dir: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(data_dir.join("postgres-socket")).ok()
}

async fn run(mut command: tokio::process::Command, program: &str) -> Result<(), PostgresError> {
    let failed = |message: String| PostgresError::Program { program: program.to_owned(), message };
    let output = command.output().await.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim())))
}

/// The database of a data directory and the major version that made it, if there is one.
pub(super) fn existing(data_dir: &Path) -> Option<(PathBuf, u32)> {
    let usual = data_dir.join("postgres");
    let pgdata = std::fs::read_link(&usual).unwrap_or(usual);
    made_by(&pgdata).map(|version| (pgdata, version))
}

/// Major version that made the database, if there is one.
fn made_by(pgdata: &Path) -> Option<u32> {
    std::fs::read_to_string(pgdata.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// `<data-dir>/postgres`, or what a link of that name leads to. The link is made when the user of Postgres cannot
/// reach the data directory (it lies in root's home, say).
async fn place(data_dir: &Path, account: &Account) -> Result<PathBuf, PostgresError> {
    let usual = data_dir.join("postgres");
    if let Ok(target) = std::fs::read_link(&usual) {
        return Ok(target);
    }
    if usual.exists() || account.reaches(data_dir).await {
        return Ok(usual);
    }
    let elsewhere = Path::new(ELSEWHERE);
    std::fs::create_dir_all(elsewhere).map_err(PostgresError::file("make", elsewhere))?;
    // A new name each time: a data directory that was deleted must not come back with an old database.
    let target = elsewhere.join(format!("postgres-{}", uuid::Uuid::new_v4().simple()));
    tracing::warn!(
        "the user that Postgres runs as cannot reach {}; the database is kept in {} (a link named `postgres` leads there)",
        data_dir.display(),
        target.display()
    );
    symlink(&target, &usual).map_err(PostgresError::file("make the link", &usual))?;
    Ok(target)
}

/// `<data-dir>/postgres-socket`, or a short directory of ours that a link of that name leads to.
async fn socket_dir(data_dir: &Path, account: &Account) -> Result<PathBuf, PostgresError> {
    let usual = data_dir.join("postgres-socket");
    let is_link = usual.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let short = socket_path_fits(&usual);
    if !is_link && short && account.reaches(data_dir).await {
        private_dir(&usual, account)?;
        return Ok(usual);
    }
    let parent = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if account.reaches(&directory).await && directory.is_dir() => directory,
        _ => PathBuf::from("/tmp"),
    };
    let name = format!("millrace-{}-{:08x}", account.uid, document_hash(data_dir.as_os_str().as_encoded_bytes()));
    let target = parent.join(name);
    private_dir(&target, account)?;
    if is_link {
        std::fs::remove_file(&usual).map_err(PostgresError::file("replace", &usual))?;
    }
    symlink(&target, &usual).map_err(PostgresError::file("make the link", &usual))?;
    tracing::info!(directory = %target.display(), "the socket of Postgres lies outside the data directory");
    Ok(target)
}

fn socket_path_fits(directory: &Path) -> bool {
    directory.join(format!(".s.PGSQL.{SOCKET_PORT}")).as_os_str().len() <= MAX_SOCKET_PATH
}

/// Makes a directory that only the account can enter. One that is there must be the account's own and no link, or
/// someone else could listen in its place.
fn private_dir(path: &Path, account: &Account) -> Result<(), PostgresError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return account.give(path),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(PostgresError::file("make", path)(error)),
    }
    let metadata = path.symlink_metadata().map_err(PostgresError::file("look at", path))?;
    if !metadata.is_dir() || metadata.uid() != account.uid {
        return Err(PostgresError::Owner { pgdata: path.to_owned(), owner: metadata.uid(), wanted: account.uid });
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(PostgresError::file("protect", path))
}

/// True if the process is a Postgres server working in the directory; a recycled process number is not.
async fn is_postgres_in(pid: u32, pgdata: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if Path::new("/proc/self").exists() {
        let working_in = std::fs::read_link(process.join("cwd")).ok();
        return working_in.is_some() && working_in == pgdata.canonicalize().ok();
    }
    let output = tokio::process::Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output().await;
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_do_not_hold_a_socket() {
        assert!(socket_path_fits(Path::new("/var/lib/millrace/postgres-socket")));
        assert!(!socket_path_fits(&Path::new("/").join("x".repeat(100))));
    }

    #[tokio::test]
    async fn a_recycled_process_number_is_not_a_survivor() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_postgres_in(std::process::id(), directory.path()).await);
    }
}
