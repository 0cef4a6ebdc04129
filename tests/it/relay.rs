//! The change log on Kafka as other programs see it: whole records in order, CommCare's feeds beside them, and nothing lost
//! or held up while the broker is away.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers, Message},
};
use schemas::{change::ChangeRecord, position::Sequence};
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
    eventually("the relay", async || {
        let row = store.query_one("SELECT sequence FROM consumers WHERE name = 'relay'", &[]).await;
        let place: i64 = row.map_err(|error| error.to_string())?.get(0);
        if u64::try_from(place) == Ok(last.sequence.0) { Ok(()) } else { Err(format!("it is at {place}")) }
    })
    .await;
    let log = tokio::task::spawn_blocking({
        let brokers = broker.brokers.clone();
        move || Log::read(&brokers)
    })
    .await
    .unwrap();
    let expected: Vec<String> = committed.iter().map(|record| record.to_wire().unwrap()).collect();
    assert!(log.records == expected, "{} records on Kafka, {} committed", log.records.len(), expected.len());
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

/// Posts a form with a case for each number; its note is that long.
async fn submit(server: &Server, numbers: std::ops::Range<u32>, note: usize) -> schemas::position::Position {
    let mut last = None;
    for number in numbers {
        let block = format!(
            "<create><case_type>thing</case_type><case_name>Thing {number}</case_name><owner_id>nobody</owner_id></create>\
             <update><note>{}</note></update>",
            "x".repeat(note)
        );
        let reply =
            server.submit(&form_with_case(&format!("form-{number}"), &format!("case-{number}"), &block)).await.unwrap();
        assert_eq!(reply.status, 201, "{}", reply.text);
        last = reply.position;
    }
    last.unwrap()
}

/// What the topics hold.
struct Log {
    /// Texts of the records, each once, in the order in which they stand in the log.
    records: Vec<String>,
    /// Feed, document id, last metadata.
    feeds: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Log {
    /// Reads all topics to their present ends.
    fn read(brokers: &str) -> Self {
        let mut log = Self { records: Vec::new(), feeds: BTreeMap::new() };
        let mut parts = Vec::new();
        let mut last = Sequence::ORIGIN;
        for_each_message(brokers, "millrace.changes", |message| {
            let Some(payload) = message.payload() else { return };
            if header(message, "part").is_some_and(|part| part.starts_with("1/")) {
                parts.clear();
            }
            parts.extend_from_slice(payload);
            if header(message, "part").is_none_or(|part| part.split_once('/').is_some_and(|(number, of)| number == of))
            {
                let text = String::from_utf8(std::mem::take(&mut parts)).unwrap();
                let at = ChangeRecord::from_wire(&text).unwrap().position;
                assert_eq!(header(message, "position").unwrap(), at.to_string());
                assert!(at.sequence <= last.next(), "record {} follows {}", at.sequence.0, last.0);
                if at.sequence == last.next() {
                    last = at.sequence;
                    log.records.push(text);
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
