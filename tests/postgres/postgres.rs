//! A private Postgres server per test run, and databases in it.
//!
//! The server runs as an unprivileged user when the tests run as root, listens on a socket in a temporary directory, and is
//! stopped when the test process ends, however it ends: a watching shell reads the other end of a pipe.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_postgres::{Client, NoTls};

/// Where distributions put the server's programs.
const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/17/bin",
    "/usr/lib/postgresql/16/bin",
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postgresql/14/bin",
    "/usr/bin",
];
/// `nobody` on common systems.
const UNPRIVILEGED: u32 = 65534;

/// Stops the server when its input ends; removes the directory unless it is to be started again.
const WATCH: &str = r#""$0/postgres" -D "$1/data" -k "$1" -c listen_addresses='' -c max_connections=200 >"$1/log" 2>&1 &
pid=$!; cat >/dev/null; kill -QUIT $pid; wait $pid; [ -e "$1/keep" ] || rm -rf "$1""#;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    directory: PathBuf,
    running: Option<(Child, ChildStdin)>,
}

static SHARED: OnceLock<Server> = OnceLock::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

fn programs() -> PathBuf {
    let place = PLACES.iter().map(Path::new).find(|place| place.join("initdb").exists());
    place.expect("Postgres's programs are installed").to_owned()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

impl Server {
    /// Makes a cluster and starts it.
    pub(crate) fn start() -> Self {
        let name = format!("millrace-it-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&directory, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
        }
        let made = command(programs().join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(directory.join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { directory, running: None };
        server.resume();
        server
    }

    /// Starts the server again after [`Self::crash`].
    pub(crate) fn resume(&mut self) {
        let keep = self.directory.join("keep");
        if keep.exists() {
            fs::remove_file(keep).unwrap();
        }
        let mut child = command("/bin/sh")
            .arg("-c")
            .arg(WATCH)
            .arg(programs())
            .arg(&self.directory)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        self.running = Some((child, input));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let ready = Command::new(programs().join("pg_isready")).arg("-q").arg("-h").arg(&self.directory).status();
            if ready.unwrap().success() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(self.directory.join("log")).unwrap());
            std::thread::yield_now();
        }
    }

    /// Kills the server at once, as if the power had failed for it alone.
    pub(crate) fn crash(&mut self) {
        fs::write(self.directory.join("keep"), "").unwrap();
        let (mut child, input) = self.running.take().unwrap();
        drop(input);
        child.wait().unwrap();
    }

    /// The server's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join(".s.PGSQL.5432")
    }

    /// Makes an empty database and returns its address.
    pub(crate) async fn database(&self) -> String {
        let name = format!("db{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = |name: &str| format!("host={} user=postgres dbname={name}", self.directory.display());
        connect(&address("postgres")).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        address(&name)
    }
}

/// An empty database in the server that all tests share.
pub(crate) async fn database() -> String {
    SHARED.get_or_init(Server::start).database().await
}

/// Connects to a database.
pub(crate) async fn connect(address: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await.unwrap();
    tokio::spawn(async move {
        // Ends with the client, or with the server that a test kills.
        drop(connection.await);
    });
    client
}
