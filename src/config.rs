//! Everything that can be set: one TOML file, overridden by environment variables.
//!
//! A variable is `MILLRACE_` and the key in capitals, with two underscores for a dot: `MILLRACE_LISTEN__HTTP`. Unknown keys
//! are refused. All problems are found in one go and each says which key, from where, and what was expected.
//! [`example`] writes the commented file from the documentation comments of these structs.

pub(crate) mod example;
mod merge;
mod secret;

use std::{fmt, net::SocketAddr, path::Path, path::PathBuf};

use schemas::{id::DomainId, port::Secret};
use serde::{Deserialize, Serialize};

use crate::{objects::Place, status::Audience};

/// Settings of the whole program.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Directory for everything that is kept: the private Postgres, raw forms, the lock. Relative to where the program starts.
    pub(crate) data_dir: PathBuf,
    /// What this process does: any of "ingest" (receive forms), "relay" (publish the change log to Kafka),
    /// "dataflow" (keep the tables live), "query" (SQL and REST). "query" needs "dataflow" in the same process.
    pub(crate) roles: Roles,
    /// Domain to create at the first start, with an administrator whose password is printed once. Empty: none.
    pub(crate) domain: String,
    /// Where to listen. Both protocols carry passwords in the clear: leave them on this machine, or put TLS in front.
    pub(crate) listen: ListenConfig,
    /// The private Postgres, which is used while `ingest.database_url` is empty.
    pub(crate) postgres: PostgresConfig,
    /// Where raw forms and attachments are kept.
    pub(crate) objects: ObjectsConfig,
    /// Apache Kafka, for the change feeds.
    pub(crate) kafka: KafkaConfig,
    /// What the program says about itself.
    pub(crate) log: LogConfig,
    /// Receiving forms and applying them.
    pub(crate) ingest: ingest::IngestConfig,
    /// Keeping tables live.
    pub(crate) dataflow: dataflow::DataflowConfig,
    /// Answering questions.
    pub(crate) query: query::QueryConfig,
    /// Keep the administrator's password in the data directory, readable by its owner alone. For demonstrations.
    #[serde(skip)]
    pub(crate) keep_credentials: bool,
}

/// Where to listen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ListenConfig {
    /// HTTP: form receiver, SQL, REST, status. Port 0 takes any free one.
    pub(crate) http: SocketAddr,
    /// The Postgres protocol, for psql and BI tools.
    pub(crate) postgres: SocketAddr,
    /// Show the status page, which needs no login, to everyone who reaches the HTTP listener, not to this machine alone.
    pub(crate) status_public: bool,
}

impl ListenConfig {
    /// Who may see the status page.
    pub(crate) const fn audience(&self) -> Audience {
        if self.status_public { Audience::Everyone } else { Audience::Local }
    }
}

/// The private Postgres.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PostgresConfig {
    /// Directory of the programs `initdb` and `postgres`. Empty: look in the usual places.
    pub(crate) binaries: PathBuf,
    /// Memory for its page cache, in MB.
    pub(crate) shared_buffers_mb: PositiveMb<256>,
    /// Log kept between checkpoints, in MB: more means fewer checkpoints and a longer crash recovery.
    pub(crate) max_wal_mb: PositiveMb<2048>,
}

/// Where raw forms and attachments are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ObjectsConfig {
    /// `file:///absolute/path` for a directory; `s3://bucket/prefix` for a bucket of Amazon S3 or of a store that speaks its
    /// protocol. Empty: `objects` in the data directory.
    pub(crate) url: String,
    /// Where the dataflow keeps its checkpoints; a place of this process alone. As `url`. Empty: `checkpoints` in the data
    /// directory.
    pub(crate) checkpoints_url: String,
    /// Reaching the bucket. What is empty comes from the variables AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on;
    /// without any access key, from the role of this machine.
    pub(crate) s3: S3Config,
}

/// Reaching a bucket.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct S3Config {
    /// URL of the store, if it is not Amazon's: `https://objects.example.org`.
    pub(crate) endpoint: String,
    /// Region of the bucket.
    pub(crate) region: String,
    /// Allow an endpoint without TLS. Forms and attachments then cross the network in the clear.
    pub(crate) allow_http: bool,
    /// Access key.
    pub(crate) access_key_id: String,
    /// Secret of the access key. A file that holds it must not be readable by others; the environment may be better.
    #[serde(with = "secret")]
    pub(crate) secret_access_key: Secret,
}

/// Apache Kafka.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KafkaConfig {
    /// Brokers as "host:port". None: the change log stays in Postgres and no feeds are published.
    pub(crate) brokers: Vec<String>,
}

/// What the program says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// "human" or "json" (one object a line), on standard error.
    pub(crate) format: LogFormat,
    /// Least severe level that is written, by module if need be: "info", "warn,ingest=debug".
    pub(crate) filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For a person at a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// A part of the program that can run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Receive forms.
    Ingest,
    /// Publish the change log to Kafka.
    Relay,
    /// Keep the tables live.
    Dataflow,
    /// Answer SQL and REST.
    Query,
}

/// The roles of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Roles(pub(crate) Vec<Role>);

impl Roles {
    /// True if the process has the role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self(vec![Role::Ingest, Role::Relay, Role::Dataflow, Role::Query])
    }
}

/// Megabytes, at least 1; `DEFAULT` unless set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PositiveMb<const DEFAULT: u32>(pub(crate) std::num::NonZeroU32);

impl<const DEFAULT: u32> Default for PositiveMb<DEFAULT> {
    fn default() -> Self {
        Self(std::num::NonZeroU32::new(DEFAULT).unwrap_or(std::num::NonZeroU32::MIN))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from(".millrace"),
            roles: Roles::default(),
            domain: String::new(),
            listen: ListenConfig::default(),
            postgres: PostgresConfig::default(),
            objects: ObjectsConfig::default(),
            kafka: KafkaConfig::default(),
            log: LogConfig::default(),
            // Empty here: the private Postgres.
            ingest: ingest::IngestConfig { database_url: String::new(), ..ingest::IngestConfig::default() },
            dataflow: dataflow::DataflowConfig::default(),
            query: query::QueryConfig::default(),
            keep_credentials: false,
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            postgres: SocketAddr::from(([127, 0, 0, 1], 5433)),
            status_public: false,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Human, filter: "info".to_owned() }
    }
}

impl LogConfig {
    /// For commands that talk to a person: warnings only, unless the environment says otherwise.
    ///
    /// # Errors
    /// The environment holds a setting that is wrong.
    pub(crate) fn quiet() -> Result<Self, ConfigError> {
        let mut log = load(None)?.log;
        if log.filter == Self::default().filter {
            "warn".clone_into(&mut log.filter);
        }
        Ok(log)
    }
}

impl Config {
    /// The configuration, if nothing is wrong with it; for settings changed after loading.
    ///
    /// # Errors
    /// Every problem at once.
    pub(crate) fn checked(self) -> Result<Self, ConfigError> {
        let problems = self.problems();
        if problems.is_empty() { Ok(self) } else { Err(ConfigError(problems)) }
    }

    /// True while the database is the private Postgres.
    pub(crate) fn embedded_postgres(&self) -> bool {
        self.ingest.database_url.is_empty()
    }

    /// The brokers as Kafka's own clients write them, if there are any.
    pub(crate) fn kafka_brokers(&self) -> Option<String> {
        (!self.kafka.brokers.is_empty()).then(|| self.kafka.brokers.join(","))
    }

    /// The domain to create at the first start.
    ///
    /// # Errors
    /// The name is not one a domain can have.
    pub(crate) fn first_domain(&self) -> Result<Option<DomainId>, schemas::id::IdError> {
        if self.domain.is_empty() { Ok(None) } else { DomainId::new(&self.domain).map(Some) }
    }

    /// Where raw forms and attachments lie.
    ///
    /// # Errors
    /// The URL is not one of a directory or a bucket; the text says what was expected.
    pub(crate) fn objects_place(&self) -> Result<Place, String> {
        match self.objects.url.as_str() {
            "" => Ok(Place::Directory(self.data_dir.join("objects"))),
            url => Place::parse(url),
        }
    }

    /// Where checkpoints lie.
    ///
    /// # Errors
    /// As for [`Self::objects_place`].
    pub(crate) fn checkpoints_place(&self) -> Result<Place, String> {
        match self.objects.checkpoints_url.as_str() {
            "" => Ok(Place::Directory(self.data_dir.join("checkpoints"))),
            url => Place::parse(url),
        }
    }

    /// Problems that the types cannot exclude.
    fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut add = |key: &str, message: String| {
            found.push(Problem { key: key.to_owned(), origin: String::new(), message });
        };
        if let Err(error) = self.first_domain() {
            add("domain", error.to_string());
        }
        if self.roles.0.is_empty() {
            add("roles", "at least one role is needed".to_owned());
        }
        if self.roles.has(Role::Query) && !self.roles.has(Role::Dataflow) {
            add("roles", "\"query\" needs \"dataflow\" in the same process".to_owned());
        }
        match self.objects_place() {
            Ok(place) => {
                for (key, message) in self.objects.s3.problems(&place) {
                    add(key, message);
                }
            }
            Err(message) => add("objects.url", message),
        }
        if let Err(message) = self.checkpoints_place() {
            add("objects.checkpoints_url", message);
        }
        for broker in &self.kafka.brokers {
            let port = broker.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.and_then(|port| port.parse::<u16>().ok()).is_none() {
                add("kafka.brokers", format!("`{broker}` is not a broker (expected \"host:port\")"));
            }
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            add("log.filter", format!("`{}` is not a log filter: {error}", self.log.filter));
        }
        for message in self.ingest.problems() {
            add("ingest", message);
        }
        if self.listen.http == self.listen.postgres && self.listen.http.port() != 0 {
            add("listen.postgres", format!("{} is already taken by listen.http", self.listen.http));
        }
        found
    }
}

impl S3Config {
    /// Problems with reaching that place.
    fn problems(&self, place: &Place) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let Secret(secret) = &self.secret_access_key;
        if matches!(place, Place::Directory(_)) && !(self.endpoint.is_empty() && self.access_key_id.is_empty()) {
            found.push(("objects.url", "names no bucket, but [objects.s3] is set".to_owned()));
        }
        match self.endpoint.split_once("://") {
            Some(("http", _)) if !self.allow_http => found.push((
                "objects.s3.endpoint",
                format!("`{}` has no TLS (set `objects.s3.allow_http` if that is meant)", self.endpoint),
            )),
            Some(("http" | "https", host)) if !host.is_empty() => {}
            _ if self.endpoint.is_empty() => {}
            _ => found.push((
                "objects.s3.endpoint",
                format!("`{}` is not the URL of a store (expected `https://host:port`)", self.endpoint),
            )),
        }
        if self.access_key_id.is_empty() && !secret.is_empty() {
            found.push(("objects.s3.access_key_id", "is missing beside its secret".to_owned()));
        }
        if !self.access_key_id.is_empty() && secret.is_empty() {
            found.push(("objects.s3.secret_access_key", "is missing beside its access key".to_owned()));
        }
        found
    }
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Dotted key, or nothing if the file as a whole is meant.
    pub(crate) key: String,
    /// The file or variable that says so, if known.
    pub(crate) origin: String,
    /// What is wrong and what was expected.
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if !self.origin.is_empty() {
            write!(f, " (from {})", self.origin)?;
        }
        Ok(())
    }
}

/// Everything wrong with the configuration.
#[derive(Debug)]
pub(crate) struct ConfigError(pub(crate) Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        f.write_str("\n(`millrace config example` prints a file with every setting)")
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file, if one is given, and the environment.
///
/// # Errors
/// Every problem at once.
pub(crate) fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let (config, problems) = inspect(file);
    if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
}

/// Reads the file and the environment: what can be used, and every problem with the rest.
pub(crate) fn inspect(file: Option<&Path>) -> (Config, Vec<Problem>) {
    let (config, mut problems) = merge::merge(file);
    problems.extend(config.problems());
    (config, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load(Some(file.path()))
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::default().problems(), []);
        let config = loaded("").unwrap();
        assert_eq!(config.listen.http.to_string(), "127.0.0.1:8080");
        assert!(config.embedded_postgres());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let error = loaded(
            "domain = \"Not A Domain\"\nspeed = 3\n[listen]\nhttp = \"nowhere\"\n[log]\nformat = \"xml\"\nfiltre = \"info\"\n\
             [kafka]\nbrokers = [\"localhost\"]\n[objects]\nurl = \"gs://bucket\"\n[ingest]\nlanes = \"many\"\n",
        )
        .unwrap_err();
        let text = error.to_string();
        for key in [
            "domain:",
            "speed:",
            "listen.http:",
            "log.format:",
            "log.filtre:",
            "kafka.brokers:",
            "objects.url:",
            "ingest.lanes:",
        ] {
            assert!(text.contains(&format!("\n  {key}")), "{key} is missing from {text}");
        }
        assert!(text.contains("did you mean `filter`?"), "{text}");
    }

    #[test]
    fn text_that_is_no_toml_is_named_with_its_place() {
        let text = loaded("[listen\n").unwrap_err().to_string();
        assert!(text.contains("line 1"), "{text}");
    }

    #[test]
    fn buckets_are_reached_with_whole_keys_and_with_tls() {
        let s3 = "[objects]\nurl = \"s3://forms\"\n[objects.s3]\nendpoint = \"http://store:9000\"\n";
        let text = loaded(&format!("{s3}access_key_id = \"key\"\n")).unwrap_err().to_string();
        for key in ["objects.s3.endpoint:", "objects.s3.secret_access_key:"] {
            assert!(text.contains(&format!("\n  {key}")), "{key} is missing from {text}");
        }
        loaded(&format!("{s3}access_key_id = \"key\"\nsecret_access_key = \"hunter2\"\nallow_http = true\n")).unwrap();
        let text = loaded("[objects.s3]\nendpoint = \"https://store\"\n").unwrap_err().to_string();
        assert!(text.contains("\n  objects.url:"), "{text}");
    }

    #[test]
    fn secrets_are_in_no_message() {
        let s3 = "[objects]\nurl = \"s3://forms\"\n[objects.s3]\naccess_key_id = \"key\"\nsecret_access_key = ";
        let config = loaded(&format!("{s3}\"1234567\"\n")).unwrap();
        assert_eq!(config.objects.s3.secret_access_key, Secret("1234567".to_owned()));
        let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("1234567"), "{shown}");
        for wrong in ["1234567", "\"1234567", "1234567abc"] {
            let text = loaded(&format!("{s3}{wrong}\n")).unwrap_err().to_string();
            assert!(!text.contains("1234567"), "{text}");
        }
    }

    #[test]
    fn query_alone_is_refused() {
        let text = loaded("roles = [\"query\"]").unwrap_err().to_string();
        assert!(text.contains("needs \"dataflow\""), "{text}");
    }
}
