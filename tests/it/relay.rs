//! The change log on Kafka as other programs see it: whole records in order, CommCare's feeds beside them, and nothing lost
//! or held up while the broker is away.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers, Message},
};
use schemas::{
    change::ChangeRecord,
    position::{LaneId, Position, Sequence},
};
use serde_json::Value;

use crate::{
    broker::{self, Broker},
    pipeline::form_with_case,
    server::{DEADLINE, Options, Server, eventually, records},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_change_reaches_kafka_in_order_also_after_the_broker_was_away() {
    let broker = Broker::own();
    let mut server = Server::start(&Options { kafka: Some(broker.brokers.clone()), ..Options::default() }).await;
    submit(&server, 0..20, 10).await;
    let large = submit(&server, 20..21, 1_500_000).await;
    server.sql("SELECT 1 AS one", Some(large)).await;

    // Neither forms nor answers wait for a broker that is away.
    broker.kill();
    let last = submit(&server, 21..40, 10).await;
    server.sql("SELECT 1 AS one", Some(last)).await;
    broker.revive();
    server.kill();
    server.restart().await;
    let last = submit(&server, 40..50, 10).await;

    let store = server.store().await;
    let committed = records(&store, Sequence::ORIGIN).await;
    assert_eq!(committed.last().unwrap().position, last);
    relayed(&server, last).await;
    let log = tokio::task::spawn_blocking({
        let brokers = broker.brokers.clone();
        move || Log::read(&brokers)
    })
    .await
    .unwrap();
    let expected: Vec<String> = committed.iter().map(|record| record.to_wire().unwrap()).collect();
    let found = &log.records[&LaneId::FIRST];
    assert!(*found == expected, "{} records on Kafka, {} committed", found.len(), expected.len());
    for (feed, kind) in [("form-sql", "form"), ("case-sql", "case")] {
        let changed: Vec<&str> = committed
            .iter()
            .flat_map(|record| &record.documents)
            .filter(|document| document.kind.name() == kind)
            .map(|document| document.id.as_str())
            .collect();
        let announced = &log.feeds[feed];
        assert!(changed.iter().all(|id| announced.contains_key(*id)), "{feed} misses documents: {announced:?}");
        assert_eq!(announced.len(), changed.iter().collect::<std::collections::BTreeSet<_>>().len());
    }
    let case = &log.feeds["case-sql"]["case-7"];
    let field = |name: &str| case[name].as_str().unwrap_or_default();
    assert_eq!((field("document_type"), field("document_subtype")), ("CommCareCase", "thing"));
    assert_eq!((field("data_source_name"), field("associated_document_id")), ("case-sql", "form-7"));
    assert_eq!(case["is_deletion"], false);
}

/// How long the broker stays away, in seconds; `MILLRACE_TEST_OUTAGE_SECONDS` names another time.
const OUTAGE: u64 = 20;
/// Time in which a phone's latencies are taken while the broker is there.
const BASELINE: Duration = Duration::from_secs(5);
/// Longest that a form may take while the broker is away.
const UNAFFECTED: Duration = Duration::from_secs(1);
/// Phones that send at the same time.
const PHONES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn no_form_waits_for_a_broker_that_is_away_and_everything_arrives_later() {
    let broker = Broker::own();
    let server = Server::start(&Options { kafka: Some(broker.brokers.clone()), ..Options::default() }).await;
    let outage = std::env::var("MILLRACE_TEST_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    let outage = Duration::from_secs(outage.unwrap_or(OUTAGE));
    submit(&server, 0..50, 10).await;
    let (_, there) = send_for(&server, "there", BASELINE).await;
    broker.kill();
    let (last, away) = send_for(&server, "away", outage).await;
    server.sql("SELECT 1 AS one", Some(last)).await;
    let behind = relay_place(&server).await;
    broker.revive();
    let back = Instant::now();
    let caught_up = async {
        relayed(&server, last).await;
        back.elapsed()
    };
    let (caught_up, (newest, after)) = tokio::join!(caught_up, send_for(&server, "after", BASELINE));
    println!("forms with the broker there: {there}; away for {outage:?}: {away}; back: {after}");
    println!("{} records were due to Kafka and had arrived {caught_up:.1?} after its return", last.sequence.0 - behind);
    relayed(&server, newest).await;
    assert!(away.slowest < UNAFFECTED, "{away}");
    // A minute's outage is not worth hundreds of lines.
    let lines = server.log().lines().filter(|line| line.contains("Kafka")).count();
    assert!(lines <= 4 + usize::try_from(outage.as_secs() / 60).unwrap(), "{}", server.log());
    check_log(&server, &broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_loses_and_doubles_nothing() {
    const DEATHS: u32 = 8;
    let broker = Broker::own();
    let mut server = Server::start(&Options { kafka: Some(broker.brokers.clone()), ..Options::default() }).await;
    let mut random = StdRng::seed_from_u64(7);
    for death in 0..DEATHS {
        let first = death * 1000;
        // The relay is somewhere behind the forms when the process ends, with messages under way.
        let sending = async {
            let phones = (0..10).map(|phone| submit(&server, first + phone * 20..first + phone * 20 + 20, 2_000));
            futures::future::join_all(phones).await
        };
        let pause = Duration::from_millis(random.random_range(5..600));
        let unfinished = tokio::time::timeout(pause, sending).await.is_err();
        println!("death {death} after {pause:?}, {}", if unfinished { "forms under way" } else { "all forms stored" });
        server.kill();
        server.restart().await;
    }
    let last = submit(&server, 900_000..900_010, 10).await;
    relayed(&server, last).await;
    check_log(&server, &broker).await;
}

/// Latencies of acknowledged forms.
struct Latencies {
    forms: usize,
    median: Duration,
    p99: Duration,
    slowest: Duration,
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { forms, median, p99, slowest } = self;
        write!(f, "{forms} forms, median {median:.1?}, p99 {p99:.1?}, slowest {slowest:.1?}")
    }
}

/// Sends forms from several phones for a while, 20 a second each at most. Every one must be stored.
async fn send_for(server: &Server, name: &str, how_long: Duration) -> (Position, Latencies) {
    const PACE: Duration = Duration::from_millis(50);
    let begun = Instant::now();
    let phones = (0..PHONES).map(|phone| async move {
        let (mut last, mut taken) = (None, Vec::new());
        while begun.elapsed() < how_long {
            let id = format!("{name}-{phone}-{}", taken.len());
            let sent = Instant::now();
            let reply = server.submit(&form_with_case(&id, &format!("case-of-{id}"), &block(&id, 10))).await.unwrap();
            assert_eq!(reply.status, 201, "{}", reply.text);
            last = last.max(reply.position);
            taken.push(sent.elapsed());
            tokio::time::sleep(PACE.saturating_sub(sent.elapsed())).await;
        }
        (last, taken)
    });
    let sent = futures::future::join_all(phones).await;
    let last = sent.iter().filter_map(|(last, _)| *last).max().unwrap();
    let mut taken: Vec<Duration> = sent.into_iter().flat_map(|(_, taken)| taken).collect();
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
    (last, Latencies { forms: taken.len(), median: at(50), p99: at(99), slowest: at(100) })
}

/// Where the relay is in a lane.
const RELAY: &str = "SELECT sequence FROM consumers WHERE name = 'relay' AND lane = $1";

/// Sequence up to which the brokers are known to have everything.
async fn relay_place(server: &Server) -> u64 {
    let store = server.store().await;
    let row = store.query_one(RELAY, &[&LaneId::FIRST.to_i32()]).await.unwrap();
    u64::try_from(row.get::<_, i64>(0)).unwrap()
}

/// Each committed record is on Kafka, whole, in order and without gaps once repeats are left out, and what the feeds said
/// last of each document is what it is.
async fn check_log(server: &Server, broker: &Broker) {
    let committed = records(&server.store().await, Sequence::ORIGIN).await;
    let brokers = broker.brokers.clone();
    let log = tokio::task::spawn_blocking(move || Log::read(&brokers)).await.unwrap();
    println!("{} records on Kafka, {} of them sent again", log.records[&LaneId::FIRST].len(), log.repeats);
    let expected: Vec<String> = committed.iter().map(|record| record.to_wire().unwrap()).collect();
    let found = &log.records[&LaneId::FIRST];
    assert!(*found == expected, "{} records on Kafka, {} committed", found.len(), expected.len());
    let mut latest = BTreeMap::new();
    for document in committed.iter().flat_map(|record| &record.documents) {
        if let Some(feed @ ("form-sql" | "case-sql")) = document.kind.feed() {
            latest.insert((feed, document.id.as_str()), document);
        }
    }
    let announced: usize = log.feeds.values().map(BTreeMap::len).sum();
    assert_eq!(announced, latest.len());
    for ((feed, id), document) in latest {
        let said = &log.feeds[feed][id];
        assert_eq!(said["document_type"], document.document_type.as_str(), "{feed} {id}");
        let micros: jiff::Timestamp = said["original_publication_datetime"].as_str().unwrap().parse().unwrap();
        assert_eq!(micros.as_microsecond(), document.stamp.0, "{feed} {id}: the latest change is announced last");
    }
}

/// Waits until the brokers have everything up to a position.
pub(crate) async fn relayed(server: &Server, last: Position) {
    let store = server.store().await;
    eventually("the relay", async || {
        let row = store.query_one(RELAY, &[&last.lane.to_i32()]).await;
        let place: i64 = row.map_err(|error| error.to_string())?.get(0);
        if u64::try_from(place).is_ok_and(|place| place >= last.sequence.0) {
            Ok(())
        } else {
            Err(format!("it is at {place}"))
        }
    })
    .await;
}

/// Posts a form with a case for each number; its note is that long.
async fn submit(server: &Server, numbers: std::ops::Range<u32>, note: usize) -> Position {
    let mut last = None;
    for number in numbers {
        let block = block(&number.to_string(), note);
        let reply =
            server.submit(&form_with_case(&format!("form-{number}"), &format!("case-{number}"), &block)).await.unwrap();
        assert_eq!(reply.status, 201, "{}", reply.text);
        last = reply.position;
    }
    last.unwrap()
}

/// Makes a case with a note of so many characters.
fn block(name: &str, note: usize) -> String {
    format!(
        "<create><case_type>thing</case_type><case_name>Thing {name}</case_name><owner_id>nobody</owner_id></create>\
         <update><note>{}</note></update>",
        "x".repeat(note)
    )
}

/// What the topics hold.
struct Log {
    /// Texts of each lane's records, each once, in the order in which they stand in the log.
    records: BTreeMap<LaneId, Vec<String>>,
    /// Records that stand in the log again.
    repeats: usize,
    /// Feed, document id, last metadata.
    feeds: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Log {
    /// Reads all topics to their present ends.
    fn read(brokers: &str) -> Self {
        let mut log = Self { records: BTreeMap::new(), repeats: 0, feeds: BTreeMap::new() };
        // Pieces of a record stand in one partition, one after the other.
        let mut parts: BTreeMap<i32, Vec<u8>> = BTreeMap::new();
        for_each_message(brokers, "millrace.changes", |message| {
            let Some(payload) = message.payload() else { return };
            let parts = parts.entry(message.partition()).or_default();
            if header(message, "part").is_some_and(|part| part.starts_with("1/")) {
                parts.clear();
            }
            parts.extend_from_slice(payload);
            if header(message, "part").is_none_or(|part| part.split_once('/').is_some_and(|(number, of)| number == of))
            {
                let text = String::from_utf8(std::mem::take(parts)).unwrap();
                let at = ChangeRecord::from_wire(&text).unwrap().position;
                assert_eq!(header(message, "position").unwrap(), at.to_string());
                let records = log.records.entry(at.lane).or_default();
                // Sequences are dense and begin at 1.
                let next = Sequence(u64::try_from(records.len()).unwrap() + 1);
                assert!(at.sequence <= next, "record {at} where {} was due", next.0);
                if at.sequence == next {
                    records.push(text);
                } else {
                    log.repeats += 1;
                }
            }
        });
        for feed in ["form-sql", "case-sql"] {
            let documents = log.feeds.entry(feed.to_owned()).or_default();
            for_each_message(brokers, feed, |message| {
                let meta: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
                assert_eq!(meta["document_id"], key.as_str());
                documents.insert(key, meta);
            });
        }
        log
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}

fn for_each_message(brokers: &str, topic: &str, mut each: impl FnMut(&BorrowedMessage<'_>)) {
    let consumer: BaseConsumer =
        broker::config(brokers).set("group.id", "test").set("enable.partition.eof", "true").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(20)).unwrap();
    let mut assignment = TopicPartitionList::new();
    let partitions = metadata.topics()[0].partitions();
    for partition in partitions {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut open = partitions.len();
    let begun = Instant::now();
    while open > 0 {
        assert!(begun.elapsed() < DEADLINE, "topic {topic} could not be read to its end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => each(&message),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{topic}: {error}"),
            None => {}
        }
    }
}
