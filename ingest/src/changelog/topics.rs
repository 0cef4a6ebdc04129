//! The topics that the relay writes: their names, how they are made, and what CommCare's feeds say.
//!
//! `millrace.changes` carries whole records ([`schemas::kafka`]). The feeds of [`schemas::change::DocKind::feed`] carry
//! [`ChangeMeta`] alone, keyed by document id, as forms-and-cases.md §14 has it.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::MetadataTopic,
};
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    kafka::CHANGES_TOPIC,
    time::format_micros,
};
use serde::Serialize;

/// Partitions of `millrace.changes`: lanes are few, and each keeps to one.
const CHANGES_PARTITIONS: i32 = 4;

/// Partitions of each feed, where documents spread by id.
const FEED_PARTITIONS: i32 = 8;

/// The broker's default, set by whoever runs the cluster.
const REPLICATION: TopicReplication<'static> = TopicReplication::Fixed(-1);

/// How long `millrace.changes` keeps records: longer than any reader's checkpoint may be old. 30 days.
const CHANGES_RETENTION_MS: &str = "2592000000";

/// How long the broker may take to make a topic.
const REQUEST: Duration = Duration::from_secs(20);

/// Name that the source system gives its database of mobile workers in change metadata.
const WORKER_DATABASE: &str = "commcarehq__users";

/// Names that it gives those of applications, of lookup tables, and of what has no other.
const APPLICATION_DATABASE: &str = "commcarehq__apps";
const LOOKUP_DATABASE: &str = "commcarehq__fixtures";
const OTHER_DATABASE: &str = "commcarehq__meta";

/// Name that the source system gives its ledger values in change metadata; their topic is called otherwise.
const LEDGER_SOURCE: &str = "ledger-v2";

/// What its feed calls a location, whatever the document says of itself.
const LOCATION_TYPE: &str = "Location";

/// Document types that are not announced: the superseded version of an edited form (forms-and-cases.md §14).
const UNANNOUNCED: &str = "XFormDeprecated";

/// End of the types of deleted documents.
const DELETED: &str = "-Deleted";

/// Why the topics could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopicError {
    /// The brokers cannot be asked.
    #[error("could not ask Kafka at {brokers} to make topics: {source}")]
    Unreachable {
        /// The broker list.
        brokers: String,
        /// What the client library says.
        source: KafkaError,
    },
    /// The brokers refuse.
    #[error("could not make Kafka topic {topic} at {brokers}: {code}; make it by hand or allow this client to")]
    Refused {
        /// The topic.
        topic: String,
        /// The broker list.
        brokers: String,
        /// The broker's answer.
        code: RDKafkaErrorCode,
    },
}

/// Makes every topic that is missing and returns the number of partitions of `millrace.changes`. Topics that exist are
/// left as they are, whatever their settings.
///
/// # Errors
/// [`TopicError`] if the brokers cannot be reached or refuse.
pub(crate) async fn create_missing(config: &ClientConfig, brokers: &str) -> Result<i32, TopicError> {
    let unreachable = |source| TopicError::Unreachable { brokers: brokers.to_owned(), source };
    let existing = existing(config).await.map_err(unreachable)?;
    let mut missing = Vec::new();
    if !existing.contains_key(CHANGES_TOPIC) {
        missing.push(
            NewTopic::new(CHANGES_TOPIC, CHANGES_PARTITIONS, REPLICATION)
                .set("cleanup.policy", "delete")
                .set("retention.ms", CHANGES_RETENTION_MS),
        );
    }
    let feeds: BTreeSet<&str> = DocKind::ALL.iter().filter_map(|kind| kind.feed()).collect();
    let feeds = feeds.into_iter().filter(|feed| !existing.contains_key(*feed));
    missing.extend(feeds.map(|feed| NewTopic::new(feed, FEED_PARTITIONS, REPLICATION)));
    if !missing.is_empty() {
        let admin: AdminClient<DefaultClientContext> = config.create().map_err(unreachable)?;
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        for outcome in admin.create_topics(&missing, &options).await.map_err(unreachable)? {
            match outcome {
                Ok(topic) => tracing::info!(topic, "made Kafka topic"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(TopicError::Refused { topic, brokers: brokers.to_owned(), code }),
            }
        }
    }
    Ok(existing.get(CHANGES_TOPIC).copied().unwrap_or(CHANGES_PARTITIONS))
}

/// The topics that exist and their numbers of partitions.
async fn existing(config: &ClientConfig) -> Result<HashMap<String, i32>, KafkaError> {
    let client: BaseConsumer = config.create()?;
    let asked = tokio::task::spawn_blocking(move || {
        let metadata = client.fetch_metadata(None, REQUEST)?;
        let count = |topic: &MetadataTopic| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
        Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), count(topic))).collect())
    });
    asked.await.map_err(|_| KafkaError::Canceled)?
}

/// CommCare's change metadata: that a document changed, not what it is now.
#[derive(Debug, Serialize)]
pub(crate) struct ChangeMeta<'a> {
    document_id: &'a str,
    document_rev: Option<&'a str>,
    data_source_type: &'static str,
    data_source_name: &'static str,
    document_type: Cow<'a, str>,
    document_subtype: Option<&'a str>,
    domain: &'a str,
    is_deletion: bool,
    publish_timestamp: String,
    attempts: u32,
    original_publication_datetime: String,
    associated_document_id: Option<&'a str>,
}

impl<'a> ChangeMeta<'a> {
    /// The feed that announces the document and what it says, or nothing if documents of this kind have no feed.
    pub(crate) fn of(
        record: &'a ChangeRecord,
        document: &'a ChangedDocument,
        now_micros: i64,
    ) -> Option<(&'static str, Self)> {
        let feed = document.kind.feed()?;
        if document.document_type == UNANNOUNCED {
            return None;
        }
        let (data_source_type, data_source_name) = match document.kind {
            DocKind::User | DocKind::WebUser | DocKind::Group => ("couch", WORKER_DATABASE),
            DocKind::Application => ("couch", APPLICATION_DATABASE),
            DocKind::LookupTable | DocKind::LookupRow => ("couch", LOOKUP_DATABASE),
            DocKind::LocationType => ("couch", OTHER_DATABASE),
            DocKind::Ledger => ("sql", LEDGER_SOURCE),
            DocKind::Form
            | DocKind::Case
            | DocKind::Location
            | DocKind::DataSource
            | DocKind::AggregateView
            | DocKind::NamedExpression
            | DocKind::NamedFilter => ("sql", feed),
        };
        let meta = Self {
            document_id: document.id.as_str(),
            document_rev: None,
            data_source_type,
            data_source_name,
            document_type: document_type(document, data_source_type),
            document_subtype: document.subtype.as_deref(),
            domain: record.domain.as_str(),
            is_deletion: is_deletion(document),
            publish_timestamp: format_micros(now_micros),
            attempts: 0,
            original_publication_datetime: format_micros(document.stamp.0),
            associated_document_id: cause(record, document),
        };
        Some((feed, meta))
    }
}

/// Whether the feed calls the document deleted. A web user whose document of one domain is gone has left that domain; the
/// account stays.
fn is_deletion(document: &ChangedDocument) -> bool {
    document.kind != DocKind::WebUser && (document.body.is_none() || document.document_type.ends_with(DELETED))
}

/// What the feed calls the document. A case that somebody deleted keeps its type until it is gone for good; a document of
/// CouchDB that is gone is called after what it was.
fn document_type<'a>(document: &'a ChangedDocument, data_source_type: &str) -> Cow<'a, str> {
    let stored = document.document_type.as_str();
    match (document.kind, &document.body) {
        (DocKind::Case, Some(_)) => Cow::Borrowed(stored.strip_suffix(DELETED).unwrap_or(stored)),
        (DocKind::Location, _) => Cow::Borrowed(LOCATION_TYPE),
        (_, None) if data_source_type == "couch" && is_deletion(document) => Cow::Owned(format!("{stored}{DELETED}")),
        _ => Cow::Borrowed(stored),
    }
}

/// The form that changed a case: the nearest one before it in the record, which may hold a system form with its own cases
/// behind the one that was sent.
fn cause<'a>(record: &'a ChangeRecord, document: &ChangedDocument) -> Option<&'a str> {
    if document.kind != DocKind::Case {
        return None;
    }
    let is_cause = |other: &&ChangedDocument| {
        other.kind == DocKind::Form && other.body.is_some() && other.document_type != UNANNOUNCED
    };
    let at = record.documents.iter().position(|other| other.kind == document.kind && other.id == document.id)?;
    let (before, behind) = record.documents.split_at(at);
    let form = before.iter().rfind(is_cause).or_else(|| behind.iter().find(is_cause))?;
    Some(form.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_what_the_feeds_of_the_source_system_say() {
        let record = ChangeRecord::from_wire(
            r#"{"version":1,"position":"m1.0-0.7","domain":"demo","documents":[
                {"kind":"form","id":"f1","stamp":1614589501000000,"document_type":"XFormInstance","subtype":"http://x","body":{}},
                {"kind":"form","id":"f0","stamp":1614589501000001,"document_type":"XFormDeprecated","body":{}},
                {"kind":"case","id":"basic-1","stamp":1614589501000002,"document_type":"CommCareCase","subtype":"demo","body":{}},
                {"kind":"case","id":"c2","stamp":1614589501000003,"document_type":"CommCareCase-Deleted","body":null},
                {"kind":"user","id":"u1","stamp":1614589501000004,"document_type":"CommCareUser","body":{}},
                {"kind":"data_source","id":"d1","stamp":1614589501000005,"document_type":"DataSource","body":{}},
                {"kind":"form","id":"f2","stamp":1614589501000006,"document_type":"XFormInstance","subtype":"http://y","body":{}},
                {"kind":"case","id":"c3","stamp":1614589501000007,"document_type":"CommCareCase-Deleted","body":{}},
                {"kind":"user","id":"u2","stamp":1614589501000008,"document_type":"CommCareUser","body":null},
                {"kind":"location","id":"l1","stamp":1614589501000009,"document_type":"SQLLocation","body":{}},
                {"kind":"location_type","id":"t1","stamp":1614589501000010,"document_type":"LocationType","body":{}},
                {"kind":"web_user","id":"w1","stamp":1614589501000011,"document_type":"WebUser","body":null}]}"#,
        )
        .unwrap();
        let said: Vec<_> = record
            .documents
            .iter()
            .map(|document| ChangeMeta::of(&record, document, 1_614_589_502_000_000))
            .map(|said| said.map(|(feed, meta)| (feed, serde_json::to_value(meta).unwrap())))
            .collect();
        assert_eq!(
            said[2],
            Some((
                "case-sql",
                serde_json::json!({
                    "document_id": "basic-1", "document_rev": null, "data_source_type": "sql",
                    "data_source_name": "case-sql", "document_type": "CommCareCase", "document_subtype": "demo",
                    "domain": "demo", "is_deletion": false, "publish_timestamp": "2021-03-01T09:05:02.000000Z",
                    "attempts": 0, "original_publication_datetime": "2021-03-01T09:05:01.000002Z",
                    "associated_document_id": "f1",
                })
            ))
        );
        let field = |at: usize, name: &str| said[at].as_ref().unwrap().1[name].clone();
        assert_eq!(
            (said[0].as_ref().unwrap().0, field(0, "associated_document_id")),
            ("form-sql", serde_json::Value::Null)
        );
        assert_eq!(
            (said[1].is_none(), said[5].is_none()),
            (true, true),
            "superseded forms and definitions have no feed"
        );
        for (at, document_type, is_deletion) in [
            (3, "CommCareCase-Deleted", true),
            (7, "CommCareCase", true),
            (8, "CommCareUser-Deleted", true),
            (9, "Location", false),
            (11, "WebUser", false),
        ] {
            assert_eq!(
                (field(at, "document_type"), field(at, "is_deletion")),
                (document_type.into(), is_deletion.into())
            );
        }
        for (at, source_type, name) in
            [(4, "couch", "commcarehq__users"), (9, "sql", "location"), (10, "couch", "commcarehq__meta")]
        {
            assert_eq!(
                (field(at, "data_source_type"), field(at, "data_source_name")),
                (source_type.into(), name.into())
            );
        }
        assert_eq!(field(7, "associated_document_id"), "f2", "the nearest form before the case");
    }
}
