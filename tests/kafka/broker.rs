//! A Kafka broker for tests, included by path where one is needed.
//!
//! `MILLRACE_TEST_KAFKA=host:port` names one that runs already; without it `kafka.sh` starts a real one of our own. Only
//! where its artifacts cannot be had, librdkafka's mock cluster stands in, and says so; with
//! `MILLRACE_TEST_REQUIRE_KAFKA=1` that is a failure instead.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    mocking::MockCluster,
};

/// Topics that the relay writes, with the partitions that tests give them.
const TOPICS: [(&str, i32); 5] =
    [("millrace.changes", 4), ("form-sql", 2), ("case-sql", 2), ("commcare-user", 2), ("location", 2)];

/// A broker, stopped when dropped unless it was running already.
pub(crate) struct Broker {
    pub(crate) brokers: String,
    kind: Kind,
}

enum Kind {
    Given,
    Started { state: PathBuf },
    Mock { commands: mpsc::Sender<Up>, thread: Option<JoinHandle<()>> },
}

struct Up(bool);

impl Broker {
    /// The broker that the environment names, emptied of our topics, or one of our own.
    pub(crate) async fn start() -> Self {
        match std::env::var("MILLRACE_TEST_KAFKA") {
            Ok(brokers) if !brokers.is_empty() => {
                delete_topics(&brokers).await;
                Self { brokers, kind: Kind::Given }
            }
            _ => Self::own(),
        }
    }

    /// A broker of our own, which may be taken down.
    pub(crate) fn own() -> Self {
        let state = std::env::temp_dir().join(format!("millrace-kafka-{}", unique()));
        match script("start", &state) {
            Ok(brokers) => Self { brokers, kind: Kind::Started { state } },
            Err(reason) => {
                assert_ne!(
                    std::env::var("MILLRACE_TEST_REQUIRE_KAFKA").as_deref(),
                    Ok("1"),
                    "a real Kafka is required and could not be started: {reason}"
                );
                eprintln!(
                    "NOTE: no real Kafka could be started ({reason}); librdkafka's mock cluster stands in for it"
                );
                Self::mock()
            }
        }
    }

    fn mock() -> Self {
        let (commands, todo) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let cluster = MockCluster::new(1).unwrap();
            for (topic, partitions) in TOPICS {
                cluster.create_topic(topic, partitions, 1).unwrap();
            }
            tell.send(cluster.bootstrap_servers()).unwrap();
            while let Ok(Up(up)) = todo.recv() {
                if up { cluster.broker_up(1).unwrap() } else { cluster.broker_down(1).unwrap() }
            }
        });
        Self { brokers: told.recv().unwrap(), kind: Kind::Mock { commands, thread: Some(thread) } }
    }

    /// True for librdkafka's stand-in.
    pub(crate) fn is_mock(&self) -> bool {
        matches!(self.kind, Kind::Mock { .. })
    }

    /// Takes the broker down without warning; a broker of [`Self::own`] only.
    pub(crate) fn kill(&self) {
        match &self.kind {
            Kind::Given => panic!("a broker that was given is not ours to kill"),
            Kind::Started { state } => {
                script("kill", state).unwrap();
            }
            Kind::Mock { commands, .. } => commands.send(Up(false)).unwrap(),
        }
    }

    /// Brings it back, at the same address and with what it held.
    pub(crate) fn revive(&self) {
        match &self.kind {
            Kind::Given => {}
            Kind::Started { state } => assert_eq!(script("start", state).unwrap(), self.brokers),
            Kind::Mock { commands, .. } => commands.send(Up(true)).unwrap(),
        }
    }

    /// Empties it: our topics are gone, and `millrace.changes` is there again with so many partitions if any.
    pub(crate) async fn reset(&mut self, changes_partitions: Option<i32>) {
        if self.is_mock() {
            *self = Self::mock();
            return;
        }
        delete_topics(&self.brokers).await;
        if let Some(partitions) = changes_partitions {
            let admin: AdminClient<DefaultClientContext> = config(&self.brokers).create().unwrap();
            let topic = NewTopic::new("millrace.changes", partitions, TopicReplication::Fixed(1));
            let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
            assert!(made.iter().all(Result::is_ok), "{made:?}");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Given => {}
            Kind::Started { state } => {
                if let Err(error) = script("kill", state) {
                    eprintln!("{error}");
                }
                drop(std::fs::remove_dir_all(state));
            }
            Kind::Mock { commands, thread } => {
                *commands = mpsc::channel().0;
                if let Some(thread) = thread.take() {
                    drop(thread.join());
                }
            }
        }
    }
}

pub(crate) fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn unique() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{}-{}", std::process::id(), since.as_nanos())
}

fn script(command: &str, state: &Path) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|directory| directory.join("tests/kafka/kafka.sh"))
        .find(|path| path.is_file())
        .ok_or("tests/kafka/kafka.sh is missing")?;
    let output = Command::new(script).arg(command).arg(state).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Deletes our topics from a broker that other runs have used, and waits until they are gone.
async fn delete_topics(brokers: &str) {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create().unwrap();
    let names = TOPICS.map(|(name, _)| name);
    admin.delete_topics(&names, &AdminOptions::new()).await.unwrap();
    let client: BaseConsumer = config(brokers).create().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let metadata = client.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        if !metadata.topics().iter().any(|topic| names.contains(&topic.name())) {
            return;
        }
        assert!(Instant::now() < deadline, "topics of an earlier run are still on {brokers}");
    }
}
