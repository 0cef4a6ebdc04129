//! Bench of ingest: how many forms a second a server takes over HTTP, and how many plain Postgres takes of the same rows.
//!
//! A server (`millrace serve`) with a private Postgres gets forms of 600 workers as fast as it answers them; CPU time is
//! measured of server, Postgres and generator apart, in the middle of the run. Then `pgbench` writes rows of the same kind
//! and size into the same tables, one form a transaction as one statement (`ingest/form.sql`), with several numbers of
//! clients. At last two servers take forms for three domains in three databases, each a Postgres of its own, and share all
//! lanes. All of it shares this machine's cores.
//!
//! `MILLRACE_BENCH_SECONDS` is how long each run lasts (default 12).
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

mod machine;
#[allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "shared with the tests, which use all of it")]
#[path = "../tests/postgres/postgres.rs"]
mod postgres;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;

use self::machine::{TICKS_PER_SECOND, flushes, tree_ticks};

/// Workers with a phone, requests at a time, and a rate that nothing reaches.
const WORKERS: &str = "600";
const CONCURRENCY: &str = "256";
const RATE: u32 = 20_000;
/// Clients of pgbench; the best number counts.
const CLIENTS: [u32; 4] = [4, 8, 16, 32];
/// Longest wait for a start.
const START: Duration = Duration::from_secs(60);
/// How long after its address a server may show its administrator.
const ADMINISTRATOR: Duration = Duration::from_secs(1);
/// Idle connections, photos sent at the same time, and megabytes of each.
const IDLE: u32 = 10_000;
const UPLOADS: u32 = 50;
const PHOTO: u32 = 15;
/// The statement for pgbench.
const FORM_SQL: &str = include_str!("ingest/form.sql");

fn main() -> anyhow::Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let seconds = match std::env::var("MILLRACE_BENCH_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("MILLRACE_BENCH_SECONDS: `{text}` is not a number"))?,
        Err(_) => 12.0,
    };
    let directory = tempfile::tempdir()?;
    // The private Postgres may run as another user, who has to pass through.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
    let flush = flushes(directory.path())?;
    println!("| ingest alone, two cores for everything | measured |\n| --- | --- |");
    println!("| flush p50 / p99 | {:.2} / {:.2} ms |", flush.0, flush.1);
    let server = Server::start(directory.path())?;
    let taken = server.load(seconds)?;
    println!("| forms over HTTP, closed loop of {CONCURRENCY} requests | {:.0} forms/s |", taken.per_second);
    for (who, cpu) in [("server", taken.cpu.0), ("Postgres", taken.cpu.1), ("generator", taken.cpu.2)] {
        println!("| · CPU a form, {who} | {:.0} µs |", cpu * 1e6);
    }
    let plain = server.pgbench(seconds / 2.0)?;
    println!("| pgbench, same rows, one form a transaction, {} clients | {:.0} forms/s |", plain.1, plain.0);
    drop(server);
    let second = tempfile::tempdir()?;
    fs::set_permissions(second.path(), fs::Permissions::from_mode(0o711))?;
    let server = Server::start(second.path())?;
    let (open, accepted, peak) = server.crowd()?;
    drop(server);
    let spread = spread(seconds)?;
    println!("| forms over HTTP, two servers, three databases with a Postgres each | {spread:.0} forms/s |");
    println!("| memory with {open} idle connections and {accepted} uploads of {PHOTO} MB at once | {peak:.0} MB |");
    let crowd = open == IDLE && accepted == UPLOADS && peak <= 600.0;

    println!("\n| goal | measured | met |\n| --- | --- | --- |");
    for (goal, measured, met) in [
        ("10,000 idle connections and 50 uploads of 15 MB ≤ 600 MB", format!("{peak:.0} MB"), crowd),
        ("≥ 1,500 forms/s", format!("{:.0}", taken.per_second), taken.per_second >= 1500.0),
        ("≥ 0.5 × pgbench", format!("{:.2} ×", taken.per_second / plain.0), taken.per_second >= plain.0 / 2.0),
        ("CPU a form in ingest ≤ 300 µs", format!("{:.0} µs", taken.cpu.0 * 1e6), taken.cpu.0 <= 300e-6),
    ] {
        println!("| {goal} | {measured} | {} |", if met { "yes" } else { "**no**" });
    }
    Ok(())
}

/// Forms a second that two servers take for three domains, each in a database of its own.
fn spread(seconds: f64) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Runtime::new()?;
    let clusters = [postgres::Server::start(), postgres::Server::start(), postgres::Server::start()];
    let urls: Vec<String> = clusters.iter().map(|cluster| runtime.block_on(cluster.database())).collect();
    let home = tempfile::tempdir()?;
    let settings = [
        ("MILLRACE_OBJECTS__URL", format!("file://{}", home.path().join("objects").display())),
        ("MILLRACE_INGEST__DATABASE_URL", urls[0].clone()),
        (
            "MILLRACE_INGEST__DATABASES",
            format!(
                "[{{number = 1, url = {:?}, shards = \"341-682\"}}, {{number = 2, url = {:?}, shards = \"683-1023\"}}]",
                urls[1], urls[2]
            ),
        ),
        ("MILLRACE_INGEST__PINS", "{demo = 0, second = 1, third = 2}".to_owned()),
    ];
    let servers = [
        Server::start_with(&home.path().join("a"), &settings)?,
        Server::start_with(&home.path().join("b"), &settings)?,
    ];
    let mut loads = Vec::new();
    for (number, domain) in ["demo", "second", "third"].into_iter().enumerate() {
        let password = match domain {
            "demo" => servers[0].password.clone(),
            _ => {
                let made = millrace()
                    .args(["domain", "create", domain, "--data-dir"])
                    .arg(home.path().join("command"))
                    .envs(settings.iter().map(|(name, value)| (*name, value)))
                    .output()?;
                let said = String::from_utf8_lossy(&made.stdout).into_owned();
                let password = said.lines().find_map(|line| line.strip_prefix("password")).map(str::trim);
                password.with_context(|| String::from_utf8_lossy(&made.stderr).into_owned())?.to_owned()
            }
        };
        let forms = (f64::from(RATE) * seconds).to_string();
        let load = millrace()
            .args(["load", "--url", &servers[number % 2].url, "--domain", domain, "--no-visibility", "--json"])
            .args(["--rate", &RATE.to_string(), "--forms", &forms, "--workers", "200", "--concurrency", "96"])
            .env("MILLRACE_PASSWORD", password)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start the load")?;
        loads.push(load);
    }
    let stored = || Ok::<f64, anyhow::Error>(servers[0].stored()? + servers[1].stored()?);
    let began = Instant::now();
    while stored()? < 3000.0 {
        anyhow::ensure!(began.elapsed() < START, "no forms came");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (first, began) = (stored()?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let per_second = (stored()? - first) / began.elapsed().as_secs_f64();
    for mut load in loads {
        drop(load.kill());
        drop(load.wait());
    }
    Ok(per_second)
}

/// A running server; stopped when dropped.
struct Server {
    child: Child,
    data: PathBuf,
    url: String,
    password: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        drop(self.child.wait());
    }
}

/// What a load came to.
struct Taken {
    per_second: f64,
    /// Seconds of CPU a form: server, Postgres, generator.
    cpu: (f64, f64, f64),
}

fn millrace() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_millrace")))
}

/// Without settings from this process's environment.
fn quiet(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

impl Server {
    fn start(home: &Path) -> anyhow::Result<Self> {
        Self::start_with(home, &[])
    }

    /// With further settings from the environment. The password is empty if the domain had its administrator already.
    fn start_with(home: &Path, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        fs::create_dir_all(home)?;
        let data = home.join("data");
        let said = home.join("said");
        // Each connection is a file; the usual limit of a shell is 1024.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_millrace")]);
        let child = quiet(command)
            .args(["serve", "--role", "ingest", "--data-dir"])
            .arg(&data)
            .envs([("MILLRACE_DOMAIN", "demo"), ("MILLRACE_LISTEN__HTTP", "127.0.0.1:0")])
            .envs(settings.iter().map(|(name, value)| (*name, value)))
            .stdout(File::create(&said)?)
            .stderr(File::create(home.join("log"))?)
            .spawn()
            .context("could not start millrace")?;
        let mut server = Self { child, data, url: String::new(), password: String::new() };
        let began = Instant::now();
        // The administrator is shown behind the address, once.
        let mut said_address = None;
        while server.password.is_empty() && said_address.is_none_or(|at: Instant| at.elapsed() < ADMINISTRATOR) {
            anyhow::ensure!(began.elapsed() < START, "the server did not say its address");
            std::thread::sleep(Duration::from_millis(50));
            let text = fs::read_to_string(&said)?;
            let after = |word: &str| {
                text.lines()
                    .find_map(|line| Some(line.trim().strip_prefix(word)?.trim().to_owned()))
                    .unwrap_or_default()
            };
            (server.url, server.password) = (after("HTTP"), after("password"));
            if !server.url.is_empty() {
                said_address.get_or_insert_with(Instant::now);
            }
        }
        Ok(server)
    }

    fn postgres(&self) -> anyhow::Result<u32> {
        let text = fs::read_to_string(self.data.join("postgres/postmaster.pid"))?;
        text.lines().next().unwrap_or_default().trim().parse().context("no process id of Postgres")
    }

    fn load(&self, seconds: f64) -> anyhow::Result<Taken> {
        let forms = (f64::from(RATE) * seconds).to_string();
        let child = millrace()
            .args(["load", "--url", &self.url, "--domain", "demo", "--no-visibility", "--json"])
            .args(["--rate", &RATE.to_string(), "--forms", &forms, "--workers", WORKERS, "--concurrency", CONCURRENCY])
            .env("MILLRACE_PASSWORD", &self.password)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start the load")?;
        let (generator, postgres) = (child.id(), self.postgres()?);
        // Forms are counted by the server, between two moments in the middle.
        let read = || -> anyhow::Result<(Instant, f64, [u64; 3])> {
            let ticks = |pid| tree_ticks(pid).unwrap_or_default();
            let own = ticks(self.child.id()).saturating_sub(ticks(postgres));
            Ok((Instant::now(), self.stored()?, [own, ticks(postgres), ticks(generator)]))
        };
        let began = Instant::now();
        while self.stored()? < 1000.0 {
            anyhow::ensure!(began.elapsed() < START, "no forms came");
            std::thread::sleep(Duration::from_millis(100));
        }
        let first = read()?;
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let last = read()?;
        drop(Command::new("kill").args(["-TERM", &generator.to_string()]).status());
        drop(child.wait_with_output()?);
        let forms = last.1 - first.1;
        let cpu = |at: usize| {
            let used = last.2.get(at).zip(first.2.get(at)).map_or(0, |(last, first)| last.saturating_sub(*first));
            used as f64 / TICKS_PER_SECOND / forms
        };
        Ok(Taken { per_second: forms / last.0.duration_since(first.0).as_secs_f64(), cpu: (cpu(0), cpu(1), cpu(2)) })
    }

    /// Forms stored, as the server's metrics say.
    fn stored(&self) -> anyhow::Result<f64> {
        let output = Command::new("curl").args(["-sf", &format!("{}/metrics", self.url)]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let counted = text.lines().filter(|line| line.starts_with("millrace_ingest_forms_total"));
        Ok(counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Idle connections that were open, uploads that were accepted, and the most memory of the server in megabytes.
    fn crowd(&self) -> anyhow::Result<(u32, u32, f64)> {
        let address = self.url.trim_start_matches("http://");
        let (host, port) = address.rsplit_once(':').context("the server said no port")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/ingest/clients.py");
        let mut child = Command::new("python3")
            .args([script, host, port, "demo", &format!("admin@demo:{}", self.password)])
            .args([IDLE, UPLOADS, PHOTO].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start python3")?;
        let mut said = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let mut number = || -> anyhow::Result<u32> {
            said.next().context("the clients ended early")??.trim().parse().context("the clients said no number")
        };
        let open = number()?;
        child.stdin.take().context("no standard input")?.write_all(b"go\n")?;
        let accepted = number()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        child.wait()?;
        Ok((open, accepted, peak.map_or(f64::INFINITY, |kilobytes: f64| kilobytes / 1024.0)))
    }

    /// Forms a second of plain Postgres at its best number of clients, and that number.
    fn pgbench(&self, seconds: f64) -> anyhow::Result<(f64, u32)> {
        let program = newest_pgbench().context("pgbench is missing; it comes with the Postgres server packages")?;
        let script = self.data.join("form.sql");
        fs::write(&script, FORM_SQL)?;
        fs::set_permissions(&self.data, fs::Permissions::from_mode(0o711))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644))?;
        let sizes = self.sizes()?;
        let mut best = (0.0, 0);
        for clients in CLIENTS {
            let mut command = self.as_postgres(&program);
            command.args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--client", &clients.to_string()]);
            command.args(["--time", &format!("{:.0}", seconds.max(1.0)), "--define", "cases=20000"]);
            for (name, bytes) in &sizes {
                command.args(["--define", &format!("{name}={bytes}")]);
            }
            let output = command.arg("--file").arg(&script).output().context("could not run pgbench")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().find(|line| line.starts_with("tps = "));
            let rate = line.and_then(|line| line.split_whitespace().nth(2)?.parse::<f64>().ok());
            let rate = rate.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            if rate > best.0 {
                best = (rate, clients);
            }
        }
        Ok(best)
    }

    /// Mean sizes of what the server wrote.
    fn sizes(&self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let psql = newest_pgbench().context("pgbench is missing")?.with_file_name("psql");
        let sql = "SELECT (SELECT avg(length(document_zstd))::int FROM forms), \
             (SELECT coalesce(avg(length(bytes_zstd)), 1100)::int FROM xml_pending), \
             (SELECT avg(length(properties))::int FROM cases), \
             (SELECT avg(length(blocks))::int FROM case_transactions), \
             (SELECT avg(length(documents_zstd))::int FROM change_log)";
        let output = self.as_postgres(&psql).args(["--no-align", "--tuples-only", "--command", sql]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<u64> = text.trim().split('|').filter_map(|number| number.parse().ok()).collect();
        anyhow::ensure!(
            numbers.len() == 5,
            "sizes could not be read: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(["form", "xml", "properties", "blocks", "record"].into_iter().zip(numbers).collect())
    }

    /// A client program of Postgres, as the user that owns the private one.
    fn as_postgres(&self, program: &Path) -> Command {
        use std::os::unix::fs::MetadataExt;
        let mut command = Command::new(program);
        let socket = self.data.join("postgres-socket");
        let socket = fs::canonicalize(&socket).unwrap_or(socket);
        command.env("PGHOST", socket).envs([("PGUSER", "millrace"), ("PGDATABASE", "millrace")]);
        if let Ok(owner) = fs::metadata(self.data.join("postgres/postmaster.pid")) {
            command.uid(owner.uid()).gid(owner.gid());
        }
        command
    }
}

/// The newest installed pgbench.
fn newest_pgbench() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|version| version.path().join("bin/pgbench"))
        .filter(|program| program.exists())
        .collect();
    found.sort();
    found.pop()
}
