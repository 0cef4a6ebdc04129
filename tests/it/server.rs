//! A real server for tests: the binary with a data directory of its own, which can be killed and started again.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use schemas::{
    change::ChangeRecord,
    position::{Frontier, LaneId, Position, Sequence},
};
use serde_json::Value;

/// Longest wait for a start, a stop, or anything that a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The domain that every test server has.
pub(crate) const DOMAIN: &str = "demo";

/// How to run a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Kafka brokers, none for the embedded change log.
    pub(crate) kafka: Option<String>,
    /// True: one process takes forms in and another, which has the change log from Kafka alone, answers questions.
    pub(crate) split: bool,
    /// Megabytes of a file system of its own for the data directory, where this process may mount one.
    pub(crate) disk_mb: Option<u32>,
    /// Roles of the one process, if not all of them.
    pub(crate) roles: Option<&'static str>,
    /// Further lines of the configuration file: `ingest.max_form_bytes = 1000`.
    pub(crate) settings: Vec<String>,
}

/// Held by the one server that runs: the machine's cores are few, and each test's deadlines are its own.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Waits for this test's turn; it is over when the guard is dropped.
pub(crate) async fn turn() -> tokio::sync::MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A running server and its data.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// Password of the domain's administrator.
    pub(crate) password: String,
    /// Passwords of the administrators of further domains.
    others: Mutex<BTreeMap<String, String>>,
    client: Client,
    /// Takes forms in; answers questions too unless there is a reader.
    front: Process,
    reader: Option<Process>,
    /// The data directory's own file system.
    pub(crate) disk: Option<Tmpfs>,
    /// Kept for its drop.
    _directory: tempfile::TempDir,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

/// One process of a server, with its configuration and what it says in a directory of its own.
#[derive(Debug)]
pub(crate) struct Process {
    home: PathBuf,
    roles: &'static str,
    child: Child,
    /// Base URL.
    pub(crate) url: String,
    /// Host and port of the Postgres protocol.
    wire: String,
}

/// An acknowledged or refused submission.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) position: Option<Position>,
    pub(crate) text: String,
}

/// The rows of a statement, and which records they are computed from.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Value>,
    pub(crate) complete_through: Frontier,
}

/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
///
/// Panics at the deadline, naming what was waited for and the last reason against.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(reason) => assert!(begun.elapsed() < DEADLINE, "waited for {what} in vain: {reason}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A directory that the user of the private Postgres may pass through.
pub(crate) fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    directory
}

/// The command that runs the binary, without settings from this process's environment.
pub(crate) fn millrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    for (name, _) in std::env::vars_os() {
        if ["MILLRACE_", "AWS_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Writes the configuration of a process, with free ports, into its directory and returns the file.
pub(crate) fn configure(home: &Path, options: &Options) -> PathBuf {
    let data = home.join("data");
    let mut lines = vec![
        format!("data_dir = {:?}", data.display().to_string()),
        format!("domain = \"{DOMAIN}\""),
        "listen.http = \"127.0.0.1:0\"".to_owned(),
        "listen.postgres = \"127.0.0.1:0\"".to_owned(),
        "log.filter = \"warn\"".to_owned(),
        "postgres.shared_buffers_mb = 64".to_owned(),
        "postgres.max_wal_mb = 256".to_owned(),
    ];
    if let Some(brokers) = &options.kafka {
        let listed: Vec<String> = brokers.split(',').map(|broker| format!("{broker:?}")).collect();
        lines.push(format!("kafka.brokers = [{}]", listed.join(", ")));
    }
    lines.extend(options.settings.iter().cloned());
    let file = home.join("millrace.toml");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    file
}

impl Process {
    /// Starts a process that [`configure`] has prepared.
    pub(crate) fn spawn(home: &Path, roles: &'static str) -> Self {
        Self { home: home.to_owned(), roles, child: spawn(home, roles), url: String::new(), wire: String::new() }
    }

    /// Waits until the process has said its addresses and is of use.
    pub(crate) async fn ready(&mut self, client: &Client) {
        let begun = Instant::now();
        loop {
            let reason = match self.said("HTTP") {
                Some(url) => {
                    self.url = url;
                    let wire = self.said("Postgres").unwrap_or_default();
                    self.wire =
                        wire.trim_start_matches("postgresql://").split('/').next().unwrap_or_default().to_owned();
                    match client.get(format!("{}/readyz", self.url)).send().await {
                        Ok(answer) if answer.status() == StatusCode::OK => return,
                        Ok(answer) => answer.text().await.unwrap_or_default(),
                        Err(error) => error.to_string(),
                    }
                }
                None => "it has not said its address".to_owned(),
            };
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended while starting: {status}\n{}", self.log());
            }
            assert!(begun.elapsed() < DEADLINE, "the server did not get ready: {reason}\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What follows a word at the start of a line of standard output.
    pub(crate) fn said(&self, word: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.home.join("stdout")).ok()?;
        // Only whole lines: the last one may still be under way.
        let (whole, _) = text.rsplit_once('\n')?;
        whole.lines().find_map(|line| Some(line.trim().strip_prefix(word)?.trim().to_owned()))
    }

    /// The end of what the process wrote about itself.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(self.home.join("stderr")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }

    /// A connection over the Postgres protocol, as a domain's administrator.
    pub(crate) async fn wire(&self, domain: &str, password: &str) -> tokio_postgres::Client {
        let (host, port) = self.wire.rsplit_once(':').unwrap();
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(port.parse().unwrap()).dbname(domain);
        config.user(format!("admin@{domain}")).password(password);
        connect(&config).await.unwrap()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process without warning.
    pub(crate) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts a new server and waits until it is of use.
    pub(crate) async fn start(options: &Options) -> Self {
        let turn = turn().await;
        let directory = directory();
        configure(directory.path(), options);
        let disk = options.disk_mb.and_then(|megabytes| {
            std::fs::create_dir(directory.path().join("data")).unwrap();
            Tmpfs::mount(&directory.path().join("data"), megabytes)
        });
        let client = Client::builder().timeout(DEADLINE).build().unwrap();
        let mut front = Process::spawn(
            directory.path(),
            options.roles.unwrap_or(if options.split { "ingest,relay" } else { "ingest,relay,dataflow,query" }),
        );
        front.ready(&client).await;
        let password = front.said("password").unwrap();
        let data = directory.path().join("data");
        let mut server = Self {
            data,
            password,
            others: Mutex::default(),
            client,
            front,
            reader: None,
            disk,
            _directory: directory,
            _turn: turn,
        };
        if options.split {
            let home = server.front.home.join("reader");
            std::fs::create_dir(&home).unwrap();
            let mut options = options.clone();
            options.settings.push(format!("ingest.database_url = {:?}", server.database_url()));
            configure(&home, &options);
            let mut reader = Process::spawn(&home, "dataflow,query");
            reader.ready(&server.client).await;
            server.reader = Some(reader);
        }
        server
    }

    /// Starts the server again on the same data, at new ports, and waits until it is of use.
    pub(crate) async fn restart(&mut self) {
        assert!(self.front.child.try_wait().unwrap().is_some(), "a server is started again after it has ended");
        self.front = Process::spawn(&self.front.home, self.front.roles);
        self.useful().await;
    }

    /// Waits until the server says that it is of use.
    pub(crate) async fn useful(&mut self) {
        self.front.ready(&self.client).await;
        if let Some(reader) = &mut self.reader {
            reader.ready(&self.client).await;
        }
    }

    /// The process that answers questions.
    fn answering(&self) -> &Process {
        self.reader.as_ref().unwrap_or(&self.front)
    }

    /// The end of what the server wrote about itself.
    pub(crate) fn log(&self) -> String {
        let reader = self.reader.as_ref().map(|reader| format!("\nreader:\n{}", reader.log()));
        self.front.log() + &reader.unwrap_or_default()
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.front.child.id()
    }

    /// Process id of the private Postgres.
    pub(crate) fn postgres_pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.data.join("postgres/postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
    }

    /// Ends the server without warning. Its Postgres lives on.
    pub(crate) fn kill(&mut self) {
        self.front.kill();
    }

    /// Asks the server to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        signal("TERM", self.pid());
        let child = &mut self.front.child;
        eventually("the server's end", async || child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).await
    }

    /// The private Postgres as other processes name it.
    pub(crate) fn database_url(&self) -> String {
        format!("host='{}' user=millrace dbname=millrace", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        std::fs::canonicalize(self.data.join("postgres-socket")).unwrap()
    }

    /// A request as the domain's administrator. `path` follows `/a/<domain>/`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_to(&self.front, method, path)
    }

    fn request_to(&self, process: &Process, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}/a/{DOMAIN}/{path}", process.url))
            .basic_auth(format!("admin@{DOMAIN}"), Some(&self.password))
    }

    /// Makes a domain beside the running server, unless it is there.
    pub(crate) fn create_domain(&self, domain: &str) {
        let mut others = self.others.lock().unwrap();
        if domain == DOMAIN || others.contains_key(domain) {
            return;
        }
        let mut command = millrace();
        command.args(["domain", "create", domain, "--config"]).arg(self.front.home.join("millrace.toml"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        let password = said.lines().find_map(|line| line.strip_prefix("password")).unwrap_or_else(|| panic!("{said}"));
        others.insert(domain.to_owned(), password.trim().to_owned());
    }

    /// Base URL of what takes forms in.
    pub(crate) fn address(&self) -> &str {
        &self.front.url
    }

    /// A request without credentials. `path` follows `/a/<domain>/`.
    pub(crate) fn anonymous(&self, method: Method, domain: &str, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/a/{domain}/{path}", self.front.url))
    }

    /// A request as the administrator of a domain. `path` follows `/a/<domain>/`.
    pub(crate) fn request_in(&self, method: Method, domain: &str, path: &str) -> RequestBuilder {
        let others = self.others.lock().unwrap();
        let password = others.get(domain).unwrap_or(&self.password);
        self.anonymous(method, domain, path).basic_auth(format!("admin@{domain}"), Some(password))
    }

    /// Posts a form; an error if there was no answer.
    pub(crate) async fn submit(&self, xml: &str) -> Result<Reply, reqwest::Error> {
        reply(self.request(Method::POST, "receiver/").header("content-type", "text/xml").body(xml.to_owned())).await
    }

    /// Writes JSON and returns the receipt; refusals are failures.
    pub(crate) async fn write(&self, method: Method, path: &str, json: &Value) -> Position {
        let reply = reply(self.request(method, path).json(json)).await.unwrap();
        assert!(reply.status.is_success(), "{path}: {} {}", reply.status, reply.text);
        reply.position.unwrap_or_else(|| panic!("{path}: no receipt; {}", reply.text))
    }

    /// Runs a statement that may fail.
    pub(crate) async fn try_sql(&self, sql: &str, wait_for: Option<Position>) -> Result<Rows, String> {
        let path = wait_for.map_or_else(|| "sql".to_owned(), |position| format!("sql?wait_for={position}"));
        let request = self.request_to(self.answering(), Method::POST, &path).body(sql.to_owned());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if status != StatusCode::OK {
            return Err(format!("{status} {text}"));
        }
        let mut complete_through = Frontier::default();
        let through = headers["x-millrace-complete-through"].to_str().unwrap();
        for position in through.split(',').filter(|text| !text.is_empty()) {
            complete_through.advance(position.parse().unwrap());
        }
        let rows = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        Ok(Rows { rows, complete_through })
    }

    /// Runs a statement.
    pub(crate) async fn sql(&self, sql: &str, wait_for: Option<Position>) -> Rows {
        self.try_sql(sql, wait_for).await.unwrap_or_else(|error| panic!("{sql}: {error}\n{}", self.log()))
    }

    /// Reads JSON from the process that answers; refusals are failures.
    pub(crate) async fn read(&self, path: &str) -> Value {
        let reply = reply(self.request_to(self.answering(), Method::GET, path)).await.unwrap();
        assert!(reply.status.is_success(), "{path}: {} {}", reply.status, reply.text);
        serde_json::from_str(&reply.text).unwrap()
    }

    /// A connection over the Postgres protocol, as the domain's administrator.
    pub(crate) async fn wire(&self) -> tokio_postgres::Client {
        self.answering().wire(DOMAIN, &self.password).await
    }

    /// A connection to the private Postgres behind the server.
    pub(crate) async fn store(&self) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket()).user("millrace").dbname("millrace");
        eventually("the store", async || connect(&config).await.map_err(|error| error.to_string())).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log ends with:\n{}", self.log());
        }
        let postgres = self.postgres_pid();
        self.front.kill();
        if let Some(reader) = &mut self.reader {
            reader.kill();
        }
        if let Some(pid) = postgres {
            signal("QUIT", pid);
            // The directory is removed next; a Postgres that still writes would make that fail.
            let begun = Instant::now();
            while Path::new(&format!("/proc/{pid}")).exists() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn spawn(home: &Path, roles: &str) -> Child {
    let output = File::create(home.join("stdout")).unwrap();
    let errors = File::options().create(true).append(true).open(home.join("stderr")).unwrap();
    let mut command = millrace();
    command.args(["serve", "--role", roles, "--config"]).arg(home.join("millrace.toml"));
    command.stdout(output).stderr(errors).spawn().unwrap()
}

/// A small file system of its own, taken away when dropped.
#[derive(Debug)]
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None where this process may not mount.
    pub(crate) fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m,mode=0711");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Sends a signal; a process that has ended already is no error.
pub(crate) fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
    status.unwrap();
}

async fn connect(config: &tokio_postgres::Config) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Sends a request and reads the receipt of its answer.
pub(crate) async fn reply(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
    let answer = request.send().await?;
    let status = answer.status();
    let position = answer.headers().get("x-millrace-position").map(|value| value.to_str().unwrap().parse().unwrap());
    Ok(Reply { status, position, text: answer.text().await? })
}

/// Records of the log behind `after`, read from the store's outbox.
pub(crate) async fn records(store: &tokio_postgres::Client, after: Sequence) -> Vec<ChangeRecord> {
    let mut all = Vec::new();
    let mut last = after;
    loop {
        let read = ingest::changelog::outbox::read(store, LaneId::FIRST, last, 1000).await.unwrap();
        let Some(newest) = read.last() else { return all };
        last = newest.position.sequence;
        all.extend(read);
    }
}
