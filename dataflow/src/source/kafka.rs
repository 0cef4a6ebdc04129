//! The change log read from Kafka: records of `millrace.changes` behind a frontier, each once and without gaps.
//!
//! A thread owns the consumer and hands [`SourceEvent`]s over a bounded channel; a reader that falls behind stops the
//! thread, not the broker. All partitions are assigned by hand and nothing is committed: where to start follows from
//! the frontier alone ([`start`]), and what was said before is recognised by position ([`order`]).

mod order;
mod start;

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers, Message},
    topic_partition_list::Offset,
};
use schemas::{
    change::ChangeRecord,
    kafka::{CHANGES_TOPIC, HEARTBEAT_EVERY, PART_HEADER, POSITION_HEADER, Part, partition_of},
    port::{ChangeSource, SourceError, SourceEvent},
    position::{Frontier, LaneId, Position, Sequence},
};
use tokio::sync::mpsc;

use order::{Order, Verdict};

/// How long the thread waits for a message before it says that there is none.
const IDLE_AFTER: Duration = Duration::from_millis(50);

/// A lane whose relay has been silent for longer is stalled, not idle.
const SILENCE: Duration = Duration::from_secs(HEARTBEAT_EVERY.as_secs() * 5);

/// How long one question to the broker may take.
const REQUEST: Duration = Duration::from_secs(5);

/// Pause before the broker is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// Most records in one event.
const MAX_BATCH: usize = 1024;

/// Most bytes of record text in one event.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Events that wait for the reader before the thread stops reading.
const EVENTS_AHEAD: usize = 8;

type Event = Result<SourceEvent, SourceError>;

/// `millrace.changes` behind a frontier.
#[derive(Debug)]
pub struct KafkaSource {
    events: mpsc::Receiver<Event>,
}

impl KafkaSource {
    /// Starts reading behind `from`. The brokers need not be reachable yet: [`ChangeSource::next`] says so until they are.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] if the client library refuses the broker list or no thread can be started.
    pub fn open(brokers: &str, from: Frontier) -> Result<Self, SourceError> {
        let consumer: BaseConsumer = config(brokers)
            .create()
            .map_err(|e| SourceError::Unavailable(format!("could not make a consumer for Kafka at {brokers}: {e}")))?;
        let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
        let reader = Reader {
            consumer,
            brokers: brokers.to_owned(),
            order: Order::new(from, SILENCE),
            silent: BTreeSet::new(),
            told_at: Instant::now(),
            events,
        };
        thread::Builder::new()
            .name("kafka-source".to_owned())
            .spawn(move || reader.run())
            .map_err(|e| SourceError::Unavailable(format!("could not start the thread that reads Kafka: {e}")))?;
        Ok(Self { events: receiver })
    }
}

#[async_trait]
impl ChangeSource for KafkaSource {
    async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => Err(SourceError::Unavailable("the thread that reads Kafka has ended".to_owned())),
        }
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "millrace-dataflow")
        // The library wants a group even for hand-made assignments; nothing is committed to it.
        .set("group.id", "millrace-dataflow")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "50")
        .set("fetch.message.max.bytes", "4194304")
        .set("queued.max.messages.kbytes", "32768")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.nagle.disable", "true");
    config
}

/// What ends one connection.
#[derive(Debug)]
enum End {
    /// The reader has gone.
    Closed,
    /// Nothing can be read from here on.
    Gap { lane: LaneId, wanted: Sequence, earliest: Sequence },
    /// Try again.
    Lost(String),
}

struct Reader {
    consumer: BaseConsumer,
    brokers: String,
    order: Order,
    /// Lanes whose silence the reader has been told of.
    silent: BTreeSet<LaneId>,
    /// When the reader was last told which lanes have nothing newer.
    told_at: Instant,
    events: mpsc::Sender<Event>,
}

impl Reader {
    fn run(mut self) {
        loop {
            let end = match self.connect() {
                Ok(partitions) => self.read(partitions),
                Err(end) => end,
            };
            match end {
                End::Closed => return,
                // The answer stays the same however often it is asked for.
                End::Gap { lane, wanted, earliest } => {
                    while self.send(Err(SourceError::Gap { lane, wanted, earliest })).is_ok() {}
                    return;
                }
                End::Lost(reason) => {
                    tracing::warn!(reason, "lost the change log, trying again");
                    if self.send(Err(SourceError::Unavailable(reason))).is_err() {
                        return;
                    }
                }
            }
            thread::sleep(RETRY);
        }
    }

    fn send(&self, event: Event) -> Result<(), End> {
        self.events.blocking_send(event).map_err(|_| End::Closed)
    }

    fn lost(&self, doing: &str, error: &KafkaError) -> End {
        End::Lost(format!("could not {doing} of Kafka topic {CHANGES_TOPIC} at {}: {error}", self.brokers))
    }

    /// Finds the partitions and where to start in each, begins to fetch, and returns the partitions.
    fn connect(&mut self) -> Result<Vec<i32>, End> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(CHANGES_TOPIC), REQUEST)
            .map_err(|e| self.lost("list the partitions", &e))?;
        let partitions: Vec<i32> =
            metadata.topics().iter().flat_map(|topic| topic.partitions().iter().map(|p| p.id())).collect();
        if partitions.is_empty() {
            return Err(End::Lost(format!(
                "Kafka topic {CHANGES_TOPIC} does not exist at {}; the relay role makes it, is one running?",
                self.brokers
            )));
        }
        let offsets = start::offsets(config(&self.brokers), &partitions, self.order.seen())
            .map_err(|e| self.lost("find the start", &e))?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in partitions.iter().zip(offsets) {
            assignment
                .add_partition_offset(CHANGES_TOPIC, *partition, Offset::Offset(offset))
                .map_err(|e| self.lost("assign the partitions", &e))?;
        }
        self.consumer.assign(&assignment).map_err(|e| self.lost("assign the partitions", &e))?;
        self.order.connected(Instant::now());
        Ok(partitions)
    }

    /// Hands messages on until the connection or the reader is gone. `unread` are the partitions that may hold more.
    fn read(&mut self, mut unread: Vec<i32>) -> End {
        let partitions = i32::try_from(unread.len()).unwrap_or(i32::MAX);
        loop {
            let (records, end) = self.gather(&mut unread);
            let nothing = records.is_empty();
            let said = if nothing { Ok(()) } else { self.send(Ok(SourceEvent::Records(records))) };
            // Also while some lanes are busy; the others would seem to be stalled.
            let told = match &end {
                None if nothing || self.told_at.elapsed() >= IDLE_AFTER => self.say_nothing_new(&unread, partitions),
                _ => Ok(()),
            };
            if let Some(end) = said.and(told).err().or(end) {
                return end;
            }
        }
    }

    /// The records that are there, waiting for the first one only.
    fn gather(&mut self, unread: &mut Vec<i32>) -> (Vec<Arc<ChangeRecord>>, Option<End>) {
        let started = Instant::now();
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
            let wait = if records.is_empty() { IDLE_AFTER.saturating_sub(started.elapsed()) } else { Duration::ZERO };
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    if !unread.contains(&message.partition()) {
                        unread.push(message.partition());
                    }
                    bytes += message.payload_len();
                    match take(&mut self.order, &message) {
                        Ok(Some(record)) => records.push(Arc::new(record)),
                        Ok(None) => {}
                        Err(end) => return (records, Some(end)),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => unread.retain(|p| *p != partition),
                Some(Err(error)) => {
                    let end = match &error {
                        KafkaError::MessageConsumption(code) if passes_by_itself(*code) => None,
                        _ => Some(self.lost("read on", &error)),
                    };
                    if end.is_none() {
                        tracing::debug!(%error, "the consumer reports");
                    }
                    return (records, end);
                }
            }
        }
        (records, None)
    }

    /// Says which lanes have nothing newer, since their relays live and their partitions were read to the end; and of
    /// which nobody knows, because their relays have fallen silent.
    fn say_nothing_new(&mut self, unread: &[i32], partitions: i32) -> Result<(), End> {
        let (mut alive, silent) = self.order.lanes(Instant::now());
        for lane in silent.difference(&self.silent) {
            tracing::warn!(%lane, "no sign of life of a lane in Kafka for {} s", SILENCE.as_secs());
            self.send(Ok(SourceEvent::Stalled(*lane)))?;
        }
        self.silent = silent;
        self.told_at = Instant::now();
        if let (true, Some(lane)) = (alive.is_empty(), self.silent.first()) {
            return self.send(Err(SourceError::Unavailable(format!(
                "no sign of life of lane {lane} in Kafka topic {CHANGES_TOPIC} at {} for {} s; are the broker and the \
                 relay role running?",
                self.brokers,
                SILENCE.as_secs()
            ))));
        }
        if unread.is_empty() && self.silent.is_empty() {
            return self.send(Ok(SourceEvent::Idle));
        }
        alive.retain(|lane| !unread.contains(&partition_of(*lane, partitions)));
        if !alive.is_empty() {
            return self.send(Ok(SourceEvent::IdleIn(alive.into_iter().collect())));
        }
        if self.events.is_closed() { Err(End::Closed) } else { Ok(()) }
    }
}

/// Faults that the client library mends without losing its place.
fn passes_by_itself(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
    )
}

/// The record that a message completes, if it is the next one of its lane.
fn take(order: &mut Order, message: &BorrowedMessage<'_>) -> Result<Option<ChangeRecord>, End> {
    let Some(position) = position_of(message) else {
        tracing::warn!(partition = message.partition(), offset = message.offset(), "passed over a foreign message");
        return Ok(None);
    };
    let Some(payload) = message.payload() else {
        order.alive(position.lane, Instant::now());
        return match order.verdict(position) {
            Verdict::Seen => Ok(None),
            Verdict::Next => Err(gap(position, position.sequence)),
            Verdict::Gap(wanted) => Err(gap(position, wanted)),
        };
    };
    order.alive(position.lane, Instant::now());
    match order.verdict(position) {
        Verdict::Seen => return Ok(None),
        Verdict::Gap(wanted) => return Err(gap(position, wanted)),
        Verdict::Next => {}
    }
    let part = header(message, PART_HEADER).and_then(|text| text.parse::<Part>().ok());
    let assembled;
    let text = match part {
        None => payload,
        Some(part) => match order.part(position, part, payload) {
            Some(whole) => {
                assembled = whole;
                &assembled
            }
            None => return Ok(None),
        },
    };
    let unreadable = |reason: String| End::Lost(format!("could not read the record at {position}: {reason}"));
    let text = std::str::from_utf8(text).map_err(|e| unreadable(e.to_string()))?;
    let record = ChangeRecord::from_wire(text).map_err(|e| unreadable(e.to_string()))?;
    if record.position != position {
        return Err(unreadable(format!("it says that it is {}", record.position)));
    }
    order.advance(position);
    Ok(Some(record))
}

fn gap(found: Position, wanted: Sequence) -> End {
    End::Gap { lane: found.lane, wanted, earliest: found.sequence }
}

/// The position that a message claims, if it is one of ours.
fn position_of(message: &BorrowedMessage<'_>) -> Option<Position> {
    header(message, POSITION_HEADER)?.parse().ok()
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
