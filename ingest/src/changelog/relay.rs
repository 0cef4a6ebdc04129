//! The outbox carried to Kafka: every committed record, in the order of its lane, at least once (architecture D5).
//!
//! One task per database reads its lanes like any other reader and writes whole records to `millrace.changes` and their metadata to
//! CommCare's feeds. Its place moves on only when the brokers have everything, so after any failure it sends again from
//! there and readers recognise what they have by position. The producer is idempotent and gapless: a message that
//! cannot be delivered ends it rather than letting the next one pass. While brokers are away the outbox keeps what is
//! due to them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use metrics::Counter;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
};
use schemas::{
    change::{ChangeError, ChangeRecord},
    kafka::{CHANGES_TOPIC, HEARTBEAT_EVERY, PART_BYTES, PART_HEADER, POSITION_HEADER, Part, partition_of},
    port::{ChangeSource, Clock, SourceError, SourceEvent},
    position::{Frontier, LaneId, Position, Sequence},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    brokers::Brokers,
    handover::Handover,
    outbox::{self, OutboxError},
    tail::Tail,
    topics::{self, ChangeMeta, TopicError},
};
use crate::{error::DatabaseError, store::databases::Database};

/// Name under which the relay's place is kept.
const NAME: &str = "relay";
/// How long the outbox waits for a relay that has gone.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// How often the relay's place is written while records flow.
const SAVE_EVERY: Duration = Duration::from_millis(500);
/// First and longest pause before a failed relay begins anew.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Why one attempt to relay ended.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Topics(#[from] TopicError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("could not write to Kafka at {brokers}: {source}")]
    Produce { brokers: String, source: KafkaError },
    #[error("could not write the record at {at} as text: {source}")]
    Text { at: Position, source: ChangeError },
}

impl From<DatabaseError> for RelayError {
    fn from(error: DatabaseError) -> Self {
        Self::Outbox(error.into())
    }
}

/// What the relay reads from.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) database: Database,
    pub(crate) handover: Arc<Handover>,
    /// Groups that wait in memory.
    pub(crate) capacity: usize,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts to carry the logs of databases to `brokers` (`host:port`, separated by commas). They need not be reachable
    /// yet; no database waits for another.
    pub(crate) fn start(logs: impl Iterator<Item = Log>, brokers: &str, clock: &Arc<dyn Clock>) -> Self {
        let stop = CancellationToken::new();
        let run = |log| {
            let worker = Worker {
                log,
                brokers: brokers.to_owned(),
                clock: Arc::clone(clock),
                relayed: metrics::counter!("millrace_ingest_relayed_records_total"),
            };
            let stopped = stop.clone();
            tokio::spawn(async move { worker.run(&stopped).await })
        };
        let tasks = logs.map(run).collect();
        Self { stop, tasks }
    }

    /// Stops; what was not acknowledged by the brokers is sent again at the next start.
    pub async fn shutdown(self) {
        self.stop.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "the relay panicked");
            }
        }
    }
}

struct Worker {
    log: Log,
    brokers: String,
    clock: Arc<dyn Clock>,
    relayed: Counter,
}

impl Worker {
    async fn run(self, stop: &CancellationToken) {
        let mut pause = RETRY.0;
        loop {
            let begun = Instant::now();
            let error = tokio::select! {
                ended = self.relay() => match ended {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                () = stop.cancelled() => return,
            };
            if begun.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            tracing::warn!(%error, retry_in = ?pause, "the relay to Kafka was interrupted; the outbox keeps what is due");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Relays until something fails.
    async fn relay(&self) -> Result<std::convert::Infallible, RelayError> {
        let config = config(&self.brokers);
        let partitions = topics::create_missing(&config, &self.brokers).await?;
        let producer = config.create_with_context(Brokers::default()).map_err(|source| self.failed(source))?;
        let mut producer = Producer { client: Some(producer), partitions, pending: Vec::new() };
        let (mut tail, mut place) = self.open().await?;
        let mut said: HashMap<LaneId, Instant> = HashMap::new();
        let mut saved = (place.clone(), Instant::now());
        loop {
            let event = tail.next().await?;
            if let SourceEvent::Stalled(lane) = event {
                // Heartbeats must not say that the lane is complete.
                return Err(SourceError::Unavailable(format!("lane {lane} cannot be read")).into());
            }
            let idle = matches!(event, SourceEvent::Idle | SourceEvent::IdleIn(_));
            if let SourceEvent::Records(records) = event {
                for record in &records {
                    self.send(&mut producer, record).await?;
                }
                producer.acknowledged().await.map_err(|source| self.failed(source))?;
                self.relayed.increment(u64::try_from(records.len()).unwrap_or_default());
                for record in &records {
                    place.advance(record.position);
                    said.insert(record.position.lane, Instant::now());
                }
            }
            for at in place.positions() {
                if said.get(&at.lane).is_none_or(|last| last.elapsed() >= HEARTBEAT_EVERY) {
                    producer
                        .send(&heartbeat(at, partitions, self.clock.now_micros()))
                        .await
                        .map_err(|e| self.failed(e))?;
                    said.insert(at.lane, Instant::now());
                }
            }
            producer.acknowledged().await.map_err(|source| self.failed(source))?;
            if place != saved.0 && (idle || saved.1.elapsed() >= SAVE_EVERY) {
                self.save(&place).await?;
                saved = (place.clone(), Instant::now());
            }
        }
    }

    fn failed(&self, source: KafkaError) -> RelayError {
        RelayError::Produce { brokers: self.brokers.clone(), source }
    }

    /// Opens the log at the relay's place, or where it begins if that is gone.
    async fn open(&self) -> Result<(Tail, Frontier), RelayError> {
        loop {
            let place = self.register().await?;
            let database = std::iter::once(&self.log.database);
            match Tail::open(database, &self.log.handover, self.log.capacity, &place).await {
                Ok(tail) => return Ok((tail, place)),
                Err(SourceError::Gap { lane, wanted, earliest }) => {
                    tracing::error!(
                        %lane, wanted = wanted.0, earliest = earliest.0,
                        "the outbox was trimmed before the relay had read it; readers of Kafka will bootstrap"
                    );
                    let at = Position { lane, sequence: Sequence(earliest.0.saturating_sub(1)) };
                    let client = self.log.database.pool.get().await?;
                    outbox::restart(&client, NAME, at, self.clock.now_micros(), LEASE).await?;
                }
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// Registers for every lane and returns how far each was relayed.
    async fn register(&self) -> Result<Frontier, RelayError> {
        let client = self.log.database.pool.get().await?;
        let rows =
            client.query_typed("SELECT lane FROM lanes ORDER BY lane", &[]).await.map_err(DatabaseError::from)?;
        let mut place = Frontier::default();
        for row in rows {
            let lane = LaneId::from_i32(row.try_get(0).map_err(DatabaseError::from)?);
            let start = Position { lane, sequence: Sequence::ORIGIN };
            let known = outbox::register(&client, NAME, start, self.clock.now_micros(), LEASE).await?;
            place.advance(known.position);
        }
        Ok(place)
    }

    async fn save(&self, place: &Frontier) -> Result<(), RelayError> {
        let client = self.log.database.pool.get().await?;
        for at in place.positions() {
            outbox::advance(&client, NAME, at, self.clock.now_micros(), LEASE).await?;
        }
        Ok(())
    }

    /// Hands everything that a record says to the producer.
    async fn send(&self, producer: &mut Producer, record: &ChangeRecord) -> Result<(), RelayError> {
        let at = record.position;
        let text = record.to_wire().map_err(|source| RelayError::Text { at, source })?;
        for message in parts(record, &text, producer.partitions) {
            producer.send(&message).await.map_err(|source| self.failed(source))?;
        }
        let now = self.clock.now_micros();
        for document in &record.documents {
            let Some((feed, meta)) = ChangeMeta::of(record, document, now) else { continue };
            let text = serde_json::to_string(&meta).map_err(|e| RelayError::Text { at, source: e.into() })?;
            let message = Message {
                topic: feed,
                partition: None,
                key: document.id.as_str().to_owned(),
                value: Some(text.as_bytes()),
                headers: None,
                millis: document.stamp.0 / 1000,
            };
            producer.send(&message).await.map_err(|source| self.failed(source))?;
        }
        Ok(())
    }
}

/// One message for the producer.
#[derive(Debug)]
struct Message<'a> {
    topic: &'static str,
    /// None: by the key's hash.
    partition: Option<i32>,
    key: String,
    value: Option<&'a [u8]>,
    headers: Option<OwnedHeaders>,
    millis: i64,
}

/// The messages of a record on `millrace.changes`: one, or several pieces in order.
fn parts<'a>(record: &ChangeRecord, text: &'a str, partitions: i32) -> impl Iterator<Item = Message<'a>> {
    let at = record.position;
    let millis = record.documents.last().map_or(0, |document| document.stamp.0 / 1000);
    let of = u32::try_from(text.len().div_ceil(PART_BYTES)).unwrap_or(u32::MAX);
    text.as_bytes().chunks(PART_BYTES).zip(1..).map(move |(value, number)| {
        let mut headers = position_header(at);
        if of > 1 {
            headers = headers.insert(Header { key: PART_HEADER, value: Some(&Part { number, of }.to_string()) });
        }
        Message {
            topic: CHANGES_TOPIC,
            partition: Some(partition_of(at.lane, partitions)),
            key: at.lane.to_string(),
            value: Some(value),
            headers: Some(headers),
            millis,
        }
    })
}

fn heartbeat(at: Position, partitions: i32, now_micros: i64) -> Message<'static> {
    Message {
        topic: CHANGES_TOPIC,
        partition: Some(partition_of(at.lane, partitions)),
        key: at.lane.to_string(),
        value: None,
        headers: Some(position_header(at)),
        millis: now_micros / 1000,
    }
}

fn position_header(at: Position) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: POSITION_HEADER, value: Some(&at.to_string()) })
}

/// The client library's producer and what it has not confirmed yet.
struct Producer {
    /// Taken on drop only.
    client: Option<FutureProducer<Brokers>>,
    partitions: i32,
    pending: Vec<DeliveryFuture>,
}

impl Producer {
    /// Queues a message; when the queue is full, waits for what is in it.
    async fn send(&mut self, message: &Message<'_>) -> Result<(), KafkaError> {
        loop {
            let Some(client) = &self.client else { return Err(KafkaError::Canceled) };
            let record: FutureRecord<'_, str, [u8]> = FutureRecord {
                topic: message.topic,
                partition: message.partition,
                payload: message.value,
                key: Some(message.key.as_str()),
                timestamp: Some(message.millis),
                headers: message.headers.clone(),
            };
            match client.send_result(record) {
                Ok(delivery) => {
                    self.pending.push(delivery);
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if !self.pending.is_empty() => {
                    self.acknowledged().await?;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits until the brokers have everything that was sent.
    async fn acknowledged(&mut self) -> Result<(), KafkaError> {
        for delivery in self.pending.drain(..) {
            delivery.await.map_err(|_| KafkaError::Canceled)?.map_err(|(error, _)| error)?;
        }
        Ok(())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            // Ending the client waits for its threads.
            tokio::task::spawn_blocking(move || drop(client));
        }
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "millrace-relay")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        // Where the producers of Java and Python put a key, so that a document stays in its partition whoever writes.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        // A message waits for its broker however long that takes: the outbox is the buffer, and order is kept.
        .set("message.timeout.ms", "0")
        .set("queue.buffering.max.kbytes", "131072")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.nagle.disable", "true");
    config
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;
    use schemas::id::DomainId;

    use super::*;

    #[test]
    fn a_long_record_travels_in_pieces_that_fit_any_broker() {
        let record = ChangeRecord {
            position: Position { lane: LaneId { database: 0, writer: 5 }, sequence: Sequence(7) },
            domain: DomainId::new("demo").unwrap(),
            documents: Vec::new(),
        };
        let header = |message: &Message<'_>, name: &str| {
            let headers = message.headers.as_ref().unwrap();
            headers.iter().find(|h| h.key == name).map(|h| String::from_utf8(h.value.unwrap().to_vec()).unwrap())
        };
        for (length, expected) in
            [(10, vec![None]), (PART_BYTES, vec![None]), (PART_BYTES + 1, vec![Some("1/2"), Some("2/2")])]
        {
            let text = "é".repeat(length.div_ceil(2)).get(..length & !1).unwrap().to_owned()
                + if length % 2 == 1 { "x" } else { "" };
            let messages: Vec<_> = parts(&record, &text, 4).collect();
            let got: Vec<_> = messages.iter().map(|m| header(m, PART_HEADER)).collect();
            assert_eq!(got.iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{length}");
            let joined: Vec<u8> = messages.iter().flat_map(|m| m.value.unwrap().iter().copied()).collect();
            assert_eq!(joined, text.as_bytes());
            assert!(
                messages.iter().all(|m| m.partition == Some(1) && header(m, POSITION_HEADER).unwrap() == "m1.0-5.7")
            );
        }
    }
}
