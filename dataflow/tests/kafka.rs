//! The change log read from a Kafka broker: each record once, in order, from the right place, whatever happens to the
//! broker. The messages are written here as the relay writes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../tests/kafka/broker.rs"]
mod broker;

use std::time::{Duration, Instant};

use dataflow::source::kafka::KafkaSource;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use schemas::{
    change::ChangeRecord,
    id::DomainId,
    port::{ChangeSource, SourceError, SourceEvent},
    position::{Frontier, LaneId, Position, Sequence},
};

use broker::Broker;

/// Longest wait for anything here.
const DEADLINE: Duration = Duration::from_secs(60);

fn at(writer: u16, sequence: u64) -> Position {
    Position { lane: LaneId { database: 0, writer }, sequence: Sequence(sequence) }
}

fn frontier(positions: &[Position]) -> Frontier {
    let mut frontier = Frontier::default();
    positions.iter().for_each(|position| frontier.advance(*position));
    frontier
}

fn wire(position: Position) -> String {
    ChangeRecord { position, domain: DomainId::new("demo").unwrap(), documents: Vec::new() }.to_wire().unwrap()
}

struct Writer {
    producer: FutureProducer,
    partitions: i32,
}

impl Writer {
    fn new(broker: &Broker, partitions: i32) -> Self {
        Self { producer: broker::config(&broker.brokers).set("linger.ms", "0").create().unwrap(), partitions }
    }

    async fn message(&self, position: Position, part: Option<&str>, value: Option<&[u8]>) {
        let text = position.to_string();
        let mut headers = OwnedHeaders::new().insert(Header { key: "position", value: Some(&text) });
        if let Some(part) = part {
            headers = headers.insert(Header { key: "part", value: Some(part) });
        }
        let key = position.lane.to_string();
        let record = FutureRecord {
            topic: "millrace.changes",
            partition: Some(i32::from(position.lane.writer) % self.partitions),
            payload: value,
            key: Some(key.as_str()),
            timestamp: None,
            headers: Some(headers),
        };
        self.producer.send(record, Timeout::Never).await.unwrap();
    }

    async fn records(&self, writer: u16, sequences: impl IntoIterator<Item = u64>) {
        let texts: Vec<_> =
            sequences.into_iter().map(|sequence| (at(writer, sequence), wire(at(writer, sequence)))).collect();
        let sends = texts.iter().map(|(position, text)| self.message(*position, None, Some(text.as_bytes())));
        // Queued in order, since each future queues its message when it is first polled.
        futures_in_order(sends.collect()).await;
    }
}

/// Polls the futures in order once, then waits for all.
async fn futures_in_order<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

fn open(broker: &Broker, from: &[Position]) -> KafkaSource {
    KafkaSource::open(&broker.brokers, frontier(from)).unwrap()
}

/// Positions in the order in which they come, until `count` have come. Brokers that are away are waited for.
async fn read(source: &mut KafkaSource, count: usize) -> Vec<Position> {
    let begun = Instant::now();
    let mut read = Vec::new();
    while read.len() < count {
        assert!(begun.elapsed() < DEADLINE, "{} of {count} records came: {read:?}", read.len());
        match source.next().await {
            Ok(SourceEvent::Records(records)) => read.extend(records.iter().map(|record| record.position)),
            Ok(SourceEvent::Idle | SourceEvent::IdleIn(_) | SourceEvent::Stalled(_))
            | Err(SourceError::Unavailable(_)) => {}
            Err(gap) => panic!("{gap}"),
        }
    }
    read
}

async fn until(source: &mut KafkaSource, what: &str, wanted: impl Fn(&Result<SourceEvent, SourceError>) -> bool) {
    let begun = Instant::now();
    loop {
        let event = source.next().await;
        if wanted(&event) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "waited for {what}, got {event:?}");
    }
}

fn of_lane(positions: &[Position], writer: u16) -> Vec<u64> {
    positions.iter().filter(|position| position.lane.writer == writer).map(|position| position.sequence.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_from_kafka() {
    let mut broker = Broker::start().await;
    each_lane_comes_once_and_in_order(&mut broker).await;
    the_start_is_found_in_a_long_log(&mut broker).await;
    a_missing_record_is_a_gap(&mut broker).await;
    pieces_become_one_record(&mut broker).await;
    a_lane_that_is_silent_is_stalled_and_the_others_are_not(&mut broker).await;
    a_topic_that_is_missing_is_waited_for(&mut broker).await;
    drop(broker);
    a_lost_broker_loses_and_doubles_nothing(&mut Broker::own()).await;
}

async fn each_lane_comes_once_and_in_order(broker: &mut Broker) {
    broker.reset(Some(2)).await;
    let writer = Writer::new(broker, 2);
    // Lanes 0 and 2 share a partition; a stretch of lane 0 was sent again.
    writer.records(0, [1, 2, 3, 4, 3, 4, 5]).await;
    writer.records(1, 1..=3).await;
    writer.records(2, 1..=2).await;
    writer.records(0, 4..=6).await;
    let mut source = open(broker, &[at(0, 2)]);
    let positions = read(&mut source, 9).await;
    assert_eq!(of_lane(&positions, 0), [3, 4, 5, 6]);
    assert_eq!(of_lane(&positions, 1), [1, 2, 3]);
    assert_eq!(of_lane(&positions, 2), [1, 2]);
    until(&mut source, "idle", |event| matches!(event, Ok(SourceEvent::Idle))).await;
    let begun = Instant::now();
    assert!(matches!(source.next().await, Ok(SourceEvent::Idle)));
    assert!(begun.elapsed() < Duration::from_secs(5), "idle is said while nothing happens");
    writer.records(1, [4]).await;
    assert_eq!(read(&mut source, 1).await, [at(1, 4)]);
}

async fn the_start_is_found_in_a_long_log(broker: &mut Broker) {
    broker.reset(Some(4)).await;
    let writer = Writer::new(broker, 4);
    writer.records(1, (1..=3000).chain(2500..=6000)).await;
    for from in [1, 2499, 2750, 2999, 3000, 3001, 5999] {
        let mut source = open(broker, &[at(1, from)]);
        let positions = read(&mut source, usize::try_from(6000 - from).unwrap()).await;
        assert_eq!(of_lane(&positions, 1), (from + 1..=6000).collect::<Vec<_>>(), "from {from}");
    }
    let mut source = open(broker, &[at(1, 6000)]);
    until(&mut source, "idle", |event| matches!(event, Ok(SourceEvent::Idle))).await;
    writer.records(1, [6001]).await;
    assert_eq!(read(&mut source, 1).await, [at(1, 6001)]);
    // A scan may stand further than the relay has come.
    let mut source = open(broker, &[at(1, 6003)]);
    until(&mut source, "idle", |event| matches!(event, Ok(SourceEvent::Idle))).await;
    writer.records(1, 6002..=6005).await;
    assert_eq!(read(&mut source, 2).await, [at(1, 6004), at(1, 6005)]);
}

async fn a_missing_record_is_a_gap(broker: &mut Broker) {
    let is_gap = |wanted: u64, earliest: u64| move |event: &Result<SourceEvent, SourceError>| matches!(event, Err(SourceError::Gap { wanted: w, earliest: e, .. }) if w.0 == wanted && e.0 == earliest);
    broker.reset(Some(2)).await;
    let writer = Writer::new(broker, 2);
    writer.records(0, 10..=12).await;
    let mut source = open(broker, &[at(0, 5)]);
    until(&mut source, "a gap", is_gap(6, 10)).await;
    assert!(is_gap(6, 10)(&source.next().await), "it stays one");

    let mut source = open(broker, &[at(0, 11)]);
    assert_eq!(read(&mut source, 1).await, [at(0, 12)]);
    writer.records(0, [14]).await;
    until(&mut source, "a gap", is_gap(13, 14)).await;

    // Records that have expired behind a sign of life.
    broker.reset(Some(2)).await;
    let writer = Writer::new(broker, 2);
    writer.message(at(0, 9), None, None).await;
    let mut source = open(broker, &[at(0, 5)]);
    until(&mut source, "a gap", is_gap(6, 9)).await;
}

async fn pieces_become_one_record(broker: &mut Broker) {
    broker.reset(Some(1)).await;
    let writer = Writer::new(broker, 1);
    let text = wire(at(0, 2));
    let (head, tail) = text.as_bytes().split_at(30);
    writer.records(0, [1]).await;
    writer.message(at(0, 2), Some("1/2"), Some(head)).await;
    writer.message(at(0, 2), Some("1/2"), Some(head)).await;
    writer.message(at(0, 2), Some("2/2"), Some(tail)).await;
    writer.records(0, [3]).await;
    for from in 0..=2 {
        let mut source = open(broker, &[at(0, from)]);
        let expected: Vec<_> = (from + 1..=3).map(|sequence| at(0, sequence)).collect();
        assert_eq!(read(&mut source, expected.len()).await, expected);
    }
}

async fn a_lane_that_is_silent_is_stalled_and_the_others_are_not(broker: &mut Broker) {
    let [living, silent] = [at(0, 1).lane, at(1, 1).lane];
    broker.reset(Some(2)).await;
    let writer = Writer::new(broker, 2);
    writer.records(0, [1]).await;
    writer.records(1, [1]).await;
    let mut source = open(broker, &[]);
    assert_eq!(read(&mut source, 2).await.len(), 2);
    let signs = async {
        loop {
            writer.message(at(0, 1), None, None).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let told = async {
        let is_stalled = |event: &_| matches!(event, Ok(SourceEvent::Stalled(lane)) if *lane == silent);
        until(&mut source, "word of the silence", is_stalled).await;
        let is_idle = |event: &_| matches!(event, Ok(SourceEvent::IdleIn(lanes)) if *lanes == [living]);
        until(&mut source, "word of the other", is_idle).await;
    };
    tokio::select! {
        () = told => {}
        () = signs => {}
    }
    writer.records(1, [2]).await;
    assert_eq!(read(&mut source, 1).await, [at(1, 2)]);
    until(&mut source, "idle", |event| matches!(event, Ok(SourceEvent::Idle))).await;
}

async fn a_topic_that_is_missing_is_waited_for(broker: &mut Broker) {
    if broker.is_mock() {
        eprintln!("NOTE: the mock cluster makes every topic it is asked for, so a missing one was not tried");
        return;
    }
    broker.reset(None).await;
    let mut source = open(broker, &[]);
    until(
        &mut source,
        "word of the topic",
        |event| matches!(event, Err(SourceError::Unavailable(reason)) if reason.contains("millrace.changes")),
    )
    .await;
    broker.reset(Some(2)).await;
    let writer = Writer::new(broker, 2);
    writer.records(1, 1..=2).await;
    assert_eq!(read(&mut source, 2).await, [at(1, 1), at(1, 2)]);
}

async fn a_lost_broker_loses_and_doubles_nothing(broker: &mut Broker) {
    broker.reset(Some(1)).await;
    let writer = Writer::new(broker, 1);
    writer.records(0, 1..=5).await;
    let mut source = open(broker, &[]);
    assert_eq!(read(&mut source, 5).await.len(), 5);
    broker.kill();
    until(&mut source, "word of the silence", |event| matches!(event, Err(SourceError::Unavailable(_)))).await;
    broker.revive();
    writer.records(0, 6..=8).await;
    assert_eq!(read(&mut source, 3).await, [at(0, 6), at(0, 7), at(0, 8)]);
    until(&mut source, "idle", |event| matches!(event, Ok(SourceEvent::Idle))).await;
}
