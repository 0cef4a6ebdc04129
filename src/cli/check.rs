//! `millrace check`: everything that would keep the server from starting, said at once. Changes nothing.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use tokio::net::{TcpListener, TcpStream};

use super::{ConfigArgs, say};
use crate::{
    assemble,
    config::{self, Config, Role},
    objects::{self, Place},
    postgres, server,
};

/// How long a server elsewhere may take to answer.
const REACH_WITHIN: Duration = Duration::from_secs(5);
/// Free space below which a server soon stops: Postgres's log alone may take 2 GB.
const COMFORTABLE_MB: u64 = 5 * 1024;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// What was looked at and found.
#[derive(Debug, Default)]
struct Findings {
    fine: Vec<String>,
    wrong: Vec<String>,
}

impl Findings {
    fn note(&mut self, what: &str, found: Result<impl fmt::Display, impl fmt::Display>) {
        match found {
            Ok(detail) => self.fine.push(format!("{what}: {detail}")),
            Err(problem) => self.wrong.push(format!("{what}: {problem}")),
        }
    }
}

/// Looks at everything and says what it found; fails if anything is wrong.
///
/// # Errors
/// None; problems are printed.
pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let (mut config, problems) = config::inspect(args.config.config.as_deref());
    if let Some(directory) = args.config.data_dir {
        config.data_dir = directory;
    }
    let mut findings = Findings::default();
    if problems.is_empty() {
        findings.fine.push("configuration: every key and value can be used".to_owned());
    }
    findings.wrong.extend(problems.iter().map(|problem| format!("configuration: {problem}")));
    look(&config, &mut findings).await;
    for line in &findings.fine {
        say(format_args!("ok     {line}"));
    }
    for line in &findings.wrong {
        say(format_args!("WRONG  {line}"));
    }
    Ok(if findings.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn look(config: &Config, findings: &mut Findings) {
    let directory = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let running = server::in_use(&directory);
    findings.note("data directory", writable(&directory));
    findings.note("free space", space(&directory).await);
    if running {
        findings.fine.push(format!("server: one is running in {} and holds its ports", directory.display()));
    } else {
        findings.note("listen.http", free(config.listen.http).await);
        if config.roles.has(Role::Query) {
            findings.note("listen.postgres", free(config.listen.postgres).await);
        }
    }
    if config.embedded_postgres() {
        let options = postgres::PostgresOptions { data_dir: directory, ..assemble::postgres_options(config) };
        findings.note("Postgres programs", postgres::look(&options).await);
    } else {
        findings.note("database", database(&config.ingest.database_url).await);
    }
    if let Ok(place) = config.objects_place() {
        findings.note("object store", store(config, &place).await);
    }
    for broker in &config.kafka.brokers {
        findings.note("Kafka", reach(broker).await);
    }
}

/// Tries to write where the data directory is, or will be.
fn writable(directory: &Path) -> Result<String, String> {
    let nearest = nearest_existing(directory);
    if !nearest.is_dir() {
        return Err(format!("{} is not a directory", nearest.display()));
    }
    let probe = nearest.join(format!(".millrace-check-{}", std::process::id()));
    let tried = std::fs::File::options().write(true).create_new(true).open(&probe);
    match tried.and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) if nearest == directory => Ok(format!("{} can be written", directory.display())),
        Ok(()) => Ok(format!("{} can be made", directory.display())),
        Err(error) => Err(format!("{} cannot be written: {error}; choose another with --data-dir", nearest.display())),
    }
}

fn nearest_existing(directory: &Path) -> PathBuf {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

async fn space(directory: &Path) -> Result<String, String> {
    let nearest = nearest_existing(directory);
    match postgres::free_mb(&nearest).await {
        Some(free) if free < COMFORTABLE_MB => {
            Err(format!("only {free} MB at {}, less than {COMFORTABLE_MB} MB will not last", nearest.display()))
        }
        Some(free) => Ok(format!("{free} MB at {}", nearest.display())),
        None => Ok("unknown".to_owned()),
    }
}

async fn free(addr: std::net::SocketAddr) -> Result<String, String> {
    match TcpListener::bind(addr).await {
        Ok(_) => Ok(format!("{addr} is free")),
        Err(error) => Err(format!("cannot listen on {addr}: {error}")),
    }
}

async fn database(url: &str) -> Result<String, String> {
    let attempt = async {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.map_err(|error| cause(&error))?;
        let connection = tokio::spawn(connection);
        let version = client.query_one("SHOW server_version", &[]).await.map_err(|error| cause(&error))?;
        drop(client);
        if let Ok(Err(error)) = connection.await {
            return Err(cause(&error));
        }
        Ok(version.get::<_, String>(0))
    };
    match tokio::time::timeout(REACH_WITHIN, attempt).await {
        Ok(Ok(version)) => Ok(format!("Postgres {version} answers")),
        Ok(Err(error)) => Err(format!("cannot be used: {error}; check `ingest.database_url`")),
        Err(_) => Err(format!("does not answer within {REACH_WITHIN:?}; check `ingest.database_url`")),
    }
}

/// An error of the database with its cause, which its own text leaves out.
fn cause(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Tries a bucket out; a directory is looked at only.
async fn store(config: &Config, place: &Place) -> Result<String, String> {
    match place {
        Place::Directory(directory) => writable(directory),
        Place::Bucket { name, .. } => match objects::open_tried(config).await {
            Ok(_) => Ok(format!("bucket `{name}` can be written, read, listed and deleted from")),
            Err(error) => Err(format!("{error:#}")),
        },
    }
}

async fn reach(broker: &str) -> Result<String, String> {
    match tokio::time::timeout(REACH_WITHIN, TcpStream::connect(broker)).await {
        Ok(Ok(_)) => Ok(format!("{broker} takes connections")),
        Ok(Err(error)) => Err(format!("cannot reach broker {broker}: {error}")),
        Err(_) => Err(format!("broker {broker} does not answer within {REACH_WITHIN:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_wrong_is_said_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config { data_dir: file.join("data"), ..Config::default() };
        config.listen.http = taken.local_addr().unwrap();
        config.listen.postgres = taken.local_addr().unwrap();
        config.postgres.binaries = directory.path().to_owned();
        config.kafka.brokers = vec!["127.0.0.1:1".to_owned()];
        let mut findings = Findings::default();
        look(&config, &mut findings).await;
        let wrong = findings.wrong.join("\n");
        for subject in ["data directory", "listen.http", "listen.postgres", "Postgres programs", "Kafka"] {
            assert!(wrong.contains(&format!("{subject}: ")), "{subject} is missing from {wrong}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        assert!(writable(&directory.path().join("a/b")).unwrap().contains("can be made"));
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
    }
}
