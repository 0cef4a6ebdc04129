//! CommCare's per-model feeds as their present consumers read them (forms-and-cases.md §14): a plain consumer, the contract's
//! fields and types, one document in one partition in order, and every document to be read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{Headers, Message},
};
use reqwest::{Method, StatusCode};
use schemas::position::Position;
use serde_json::{Value, json};

use crate::{
    broker::{self, Broker},
    relay::relayed,
    server::{DEADLINE, DOMAIN, Options, Server, reply},
};

/// Every feed.
const FEEDS: [&str; 9] =
    ["form-sql", "case-sql", "ledger", "commcare-user", "web-user", "location", "group", "app", "meta"];

/// What a feed said of a document: its type, and whether it is gone.
type Said = (&'static str, bool);

#[tokio::test(flavor = "multi_thread")]
async fn the_feeds_say_what_their_consumers_expect() {
    let broker = Broker::own();
    let options = Options { kafka: Some(broker.brokers.clone()), ..Options::default() };
    let server = Server::start(&options).await;
    let mut expected = Expected::default();
    forms_and_cases(&server, &mut expected).await;
    deletions(&server, &mut expected).await;
    let duplicate = not_normal(&server, &mut expected).await;
    let last = directory(&server, &mut expected).await;
    let left = web_user(&server, &mut expected).await;

    relayed(&server, last).await;
    relayed(&server, left).await;
    let brokers = broker.brokers.clone();
    let messages = tokio::task::spawn_blocking(move || consume(&brokers)).await.unwrap();
    every_message_keeps_the_contract(&messages);
    let mut said: BTreeMap<(&str, &str), Vec<(&str, bool)>> = BTreeMap::new();
    for message in &messages {
        said.entry((message.feed.as_str(), message.key.as_str())).or_default().push(message.said());
    }
    for ((feed, id), expected) in &expected.0 {
        assert_eq!(said.remove(&(feed, id.as_str())).as_deref(), Some(expected.as_slice()), "{feed} {id}");
    }
    // What is left are the broken form, the duplicate and the administrator, whose ids the server chose.
    assert_eq!(
        said.into_values().flatten().collect::<BTreeSet<_>>(),
        BTreeSet::from([("XFormDuplicate", false), ("SubmissionErrorLog", false), ("WebUser", false)])
    );

    causes_are_named(&messages);
    read_back(&server, &messages, &duplicate, last).await;
}

/// What each document's feed is to say, in order.
#[derive(Default)]
struct Expected(BTreeMap<(&'static str, String), Vec<Said>>);

impl Expected {
    fn add(&mut self, feed: &'static str, id: &str, said: Said) {
        self.0.entry((feed, id.to_owned())).or_default().push(said);
    }

    /// A form, the cases it touches, and the ledgers.
    fn form(&mut self, form: (&str, Said), cases: &[(&str, bool)], ledgers: &[(&str, bool)]) {
        self.add("form-sql", form.0, form.1);
        for (id, deleted) in cases {
            self.add("case-sql", id, ("CommCareCase", *deleted));
        }
        for (id, gone) in ledgers {
            self.add("ledger", id, ("ledger", *gone));
        }
    }
}

const NORMAL: Said = ("XFormInstance", false);
const ARCHIVED: Said = ("XFormArchived", false);
const DELETED: Said = ("XFormInstance-Deleted", true);

/// A form with content of its own and a note that tells its versions apart.
fn form(id: &str, content: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><data xmlns=\"http://openrosa.org/formdesigner/millrace/feeds\" name=\"Feeds\">{content}\
         <n0:meta xmlns:n0=\"http://openrosa.org/jsr-261\"><n0:timeStart>2025-06-30T09:55:00.000Z</n0:timeStart>\
         <n0:timeEnd>2025-06-30T10:00:00.000Z</n0:timeEnd><n0:username>nobody</n0:username><n0:userID>nobody</n0:userID>\
         <n0:instanceID>{id}</n0:instanceID></n0:meta></data>"
    )
}

fn case(id: &str, actions: &str) -> String {
    format!(
        "<case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"{id}\" \
         date_modified=\"2025-06-30T10:00:00.000000Z\" user_id=\"nobody\">{actions}</case>"
    )
}

const CREATE: &str =
    "<create><case_type>thing</case_type><case_name>Thing</case_name><owner_id>nobody</owner_id></create>";

fn update(note: &str) -> String {
    format!("<update><note>{note}</note></update>")
}

fn balance(id: &str, quantity: u32) -> String {
    format!(
        "<balance xmlns=\"http://commcarehq.org/ledger/v1\" entity-id=\"{id}\" section-id=\"stock\" date=\"2025-06-30\">\
         <entry id=\"p\" quantity=\"{quantity}\"/></balance>"
    )
}

async fn stored(server: &Server, xml: &str) -> Position {
    let reply = server.submit(xml).await.unwrap();
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.position.unwrap()
}

/// Does something to a stored form or case.
async fn done(server: &Server, path: &str) {
    let reply = reply(server.request(Method::POST, path)).await.unwrap();
    assert_eq!(reply.status, 200, "{path}: {}", reply.text);
}

/// New forms, an edit, and an archived form and back: with cases and ledgers computed again.
async fn forms_and_cases(server: &Server, expected: &mut Expected) {
    stored(server, &form("f1", &format!("{}{}", case("c1", CREATE), balance("c1", 100)))).await;
    expected.form(("f1", NORMAL), &[("c1", false)], &[("c1/stock/p", false)]);
    stored(server, &form("f2", &format!("{}{}", case("c1", &update("one")), balance("c1", 70)))).await;
    expected.form(("f2", NORMAL), &[("c1", false)], &[("c1/stock/p", false)]);
    // An edit: the new form alone, not what it replaces.
    stored(server, &form("f2", &format!("{}{}", case("c1", &update("two")), balance("c1", 60)))).await;
    expected.form(("f2", NORMAL), &[("c1", false)], &[("c1/stock/p", false)]);
    done(server, "forms/f2/archive").await;
    expected.form(("f2", ARCHIVED), &[("c1", false)], &[("c1/stock/p", false)]);
    done(server, "forms/f2/unarchive").await;
    expected.form(("f2", NORMAL), &[("c1", false)], &[("c1/stock/p", false)]);
    done(server, "cases/c1/rebuild").await;
    expected.add("case-sql", "c1", ("CommCareCase", false));
    expected.add("ledger", "c1/stock/p", ("ledger", false));
    // A case and a ledger without any form left.
    stored(server, &form("f3", &format!("{}{}", case("c3", CREATE), balance("c3", 5)))).await;
    expected.form(("f3", NORMAL), &[("c3", false)], &[("c3/stock/p", false)]);
    done(server, "forms/f3/archive").await;
    expected.form(("f3", ARCHIVED), &[("c3", true)], &[("c3/stock/p", true)]);
}

/// Deleted and back, and deleted for good.
async fn deletions(server: &Server, expected: &mut Expected) {
    stored(server, &form("f4", &case("c4", CREATE))).await;
    expected.form(("f4", NORMAL), &[("c4", false)], &[]);
    done(server, "forms/f4/delete").await;
    expected.add("form-sql", "f4", DELETED);
    done(server, "forms/f4/undelete").await;
    expected.add("form-sql", "f4", NORMAL);
    done(server, "cases/c4/delete").await;
    expected.add("case-sql", "c4", ("CommCareCase", true));
    done(server, "cases/c4/undelete").await;
    expected.add("case-sql", "c4", ("CommCareCase", false));
    stored(server, &form("f5", &case("c5", CREATE))).await;
    expected.form(("f5", NORMAL), &[("c5", false)], &[]);
    done(server, "cases/c5/purge").await;
    expected.add("form-sql", "f5", DELETED);
    expected.add("case-sql", "c5", ("CommCareCase-Deleted", true));
}

/// Forms that change no case. Returns the duplicate's original.
async fn not_normal(server: &Server, expected: &mut Expected) -> String {
    let again = form("f1", &format!("{}{}", case("c1", CREATE), balance("c1", 100)));
    stored(server, &again).await;
    let orphan = format!("{CREATE}<index><parent case_type=\"thing\">nowhere</parent></index>");
    let refused = server.submit(&form("f6", &case("c6", &orphan))).await.unwrap();
    assert!(refused.position.is_some(), "{}", refused.text);
    expected.add("form-sql", "f6", ("XFormError", false));
    let broken = server.submit("<data xmlns=\"http://x\"><").await.unwrap();
    assert!(broken.position.is_some(), "{}", broken.text);
    "f1".to_owned()
}

/// A domain's other documents, each made, changed and deleted as far as that can be.
async fn directory(server: &Server, expected: &mut Expected) -> Position {
    let mut last = None;
    for (resource, id, feed, document_type, gone, fields) in [
        (
            "user",
            "u1",
            "commcare-user",
            "CommCareUser",
            "CommCareUser-Deleted",
            json!({"username": "asha", "password": "pw1"}),
        ),
        (
            "location_type",
            "state",
            "meta",
            "LocationType",
            "LocationType-Deleted",
            json!({"name": "State", "code": "state"}),
        ),
        ("location", "l1", "location", "Location", "", json!({"name": "Bihar", "location_type": "state"})),
        ("group", "g1", "group", "Group", "Group-Deleted", json!({"name": "Midwives", "users": []})),
        ("application", "a1", "app", "Application", "Application-Deleted", json!({"name": "Births", "modules": []})),
        ("lookup_table", "t1", "meta", "FixtureDataType", "FixtureDataType-Deleted", json!({"tag": "villages"})),
    ] {
        let mut document = fields.clone();
        document["_id"] = id.into();
        let plural = match resource {
            "location_type" => "location-types".to_owned(),
            "lookup_table" => "lookup-tables".to_owned(),
            other => format!("{other}s"),
        };
        let path = format!("api/v0.5/{resource}/{id}/");
        server.write(Method::POST, &format!("import/{plural}"), &json!([document])).await;
        server.write(Method::PUT, &path, &json!({"note": "changed"})).await;
        expected.add(feed, id, (document_type, false));
        expected.add(feed, id, (document_type, false));
        if gone.is_empty() {
            last = Some(server.write(Method::PUT, &path, &json!({"is_archived": true})).await);
            expected.add(feed, id, (document_type, false));
        } else {
            let reply = reply(server.request(Method::DELETE, &path)).await.unwrap();
            assert_eq!(reply.status, StatusCode::NO_CONTENT, "{}", reply.text);
            last = reply.position;
            expected.add(feed, id, (gone, true));
        }
    }
    last.unwrap()
}

/// Somebody joins the domain, and leaves it: the account stays. The administrator has joined it at the start.
async fn web_user(server: &Server, expected: &mut Expected) -> Position {
    let sent = json!({"username": "chief@example.org", "password": "pw", "permissions": ["read_data"]});
    let made = server.request(Method::POST, "api/v0.5/web-user/").json(&sent).send().await.unwrap();
    assert_eq!(made.status(), StatusCode::CREATED);
    let made: Value = made.json().await.unwrap();
    let id = made["id"].as_str().unwrap();
    let left = reply(server.request(Method::DELETE, &format!("api/v0.5/web-user/{id}/"))).await.unwrap();
    assert_eq!(left.status, StatusCode::NO_CONTENT, "{}", left.text);
    expected.add("web-user", id, ("WebUser", false));
    expected.add("web-user", id, ("WebUser", false));
    left.position.unwrap()
}

/// A message as a consumer sees it.
struct Announced {
    feed: String,
    partition: i32,
    offset: i64,
    key: String,
    headers: usize,
    meta: Value,
}

impl Announced {
    fn text(&self, field: &str) -> &str {
        self.meta[field].as_str().unwrap_or_default()
    }

    fn said(&self) -> (&str, bool) {
        (self.text("document_type"), self.meta["is_deletion"].as_bool().unwrap())
    }
}

/// Reads all feeds to their present ends, as one member of a consumer group.
fn consume(brokers: &str) -> Vec<Announced> {
    let mut config = broker::config(brokers);
    config.set("group.id", "pillow").set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let partitions: usize = FEEDS
        .iter()
        .map(|feed| {
            let metadata = consumer.fetch_metadata(Some(feed), Duration::from_secs(20)).unwrap();
            metadata.topics()[0].partitions().len()
        })
        .sum();
    consumer.subscribe(&FEEDS).unwrap();
    let (mut messages, mut ended) = (Vec::new(), 0);
    let begun = Instant::now();
    while ended < partitions {
        assert!(begun.elapsed() < DEADLINE, "{ended} of {partitions} partitions were read to their ends");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(Announced {
                feed: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
                key: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                headers: message.headers().map_or(0, Headers::count),
                meta: serde_json::from_slice(message.payload().unwrap()).unwrap(),
            }),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    // Partitions are read side by side; within one, offsets are the order.
    messages.sort_by(|a, b| (&a.feed, a.partition, a.offset).cmp(&(&b.feed, b.partition, b.offset)));
    messages
}

fn every_message_keeps_the_contract(messages: &[Announced]) {
    let fields = BTreeSet::from([
        "document_id",
        "document_rev",
        "data_source_type",
        "data_source_name",
        "document_type",
        "document_subtype",
        "domain",
        "is_deletion",
        "publish_timestamp",
        "attempts",
        "original_publication_datetime",
        "associated_document_id",
    ]);
    let mut partitions = BTreeMap::new();
    for message in messages {
        let meta = message.meta.as_object().unwrap();
        assert_eq!(meta.keys().map(String::as_str).collect::<BTreeSet<_>>(), fields);
        assert_eq!((message.text("document_id"), message.headers), (message.key.as_str(), 0));
        let (source_type, source) = match message.feed.as_str() {
            "commcare-user" | "web-user" | "group" => ("couch", "commcarehq__users"),
            "app" => ("couch", "commcarehq__apps"),
            "meta" if message.key == "t1" => ("couch", "commcarehq__fixtures"),
            "meta" => ("couch", "commcarehq__meta"),
            "ledger" => ("sql", "ledger-v2"),
            feed => ("sql", feed),
        };
        assert_eq!((message.text("data_source_type"), message.text("data_source_name")), (source_type, source));
        assert_eq!(
            (message.text("domain"), &meta["attempts"], &meta["document_rev"]),
            (DOMAIN, &json!(0), &Value::Null)
        );
        let subtype = match (message.feed.as_str(), message.text("document_type")) {
            (_, "SubmissionErrorLog") => json!(""),
            // No form is left that says what it is.
            ("case-sql", _) if message.key == "c3" && message.said().1 => json!(""),
            ("form-sql", _) => json!("http://openrosa.org/formdesigner/millrace/feeds"),
            ("case-sql", _) => json!("thing"),
            _ => Value::Null,
        };
        assert_eq!(meta["document_subtype"], subtype, "{:?}", message.meta);
        for field in ["publish_timestamp", "original_publication_datetime"] {
            let text = message.text(field);
            assert!(text.len() == 27 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(), "{text}");
        }
        let home = partitions.entry((&message.feed, &message.key)).or_insert(message.partition);
        assert_eq!(*home, message.partition, "{} is in one partition", message.key);
        assert_eq!(message.partition, java_partition(&message.key, 8), "{}", message.key);
    }
}

/// The partition that the default partitioner of Kafka's Java client, and of the Python client, chooses for a key.
fn java_partition(key: &str, partitions: i32) -> i32 {
    const M: i32 = 0x5bd1_e995;
    let bytes = key.as_bytes();
    let mut hash: i32 = 0x9747_b28c_u32.cast_signed() ^ i32::try_from(bytes.len()).unwrap();
    let unsigned_shift = |value: i32, by: u32| (value.cast_unsigned() >> by).cast_signed();
    let chunks = bytes.chunks_exact(4);
    let rest = chunks.remainder();
    for chunk in chunks {
        let mut k = i32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= unsigned_shift(k, 24);
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= i32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= unsigned_shift(hash, 13);
    hash = hash.wrapping_mul(M);
    hash ^= unsigned_shift(hash, 15);
    (hash & 0x7fff_ffff) % partitions
}

/// A case names the form that changed it; nothing else does.
fn causes_are_named(messages: &[Announced]) {
    let causes = |feed: &str, id: &str| -> Vec<Value> {
        let of = messages.iter().filter(|message| message.feed == feed && message.key == id);
        of.map(|message| message.meta["associated_document_id"].clone()).collect()
    };
    assert_eq!(
        causes("case-sql", "c1"),
        [json!("f1"), json!("f2"), json!("f2"), json!("f2"), json!("f2"), Value::Null],
        "new, new, edit, archive, unarchive, rebuild"
    );
    assert_eq!(causes("case-sql", "c5"), [json!("f5"), Value::Null], "new, purge");
    let others = messages.iter().filter(|message| message.feed != "case-sql");
    assert!(others.into_iter().all(|message| message.meta["associated_document_id"].is_null()));
}

/// Reads each announced document as a consumer does who was told that it changed.
async fn read_back(server: &Server, messages: &[Announced], original: &str, last: Position) {
    let store = server.store().await;
    let latest: BTreeMap<_, _> = messages.iter().map(|message| ((&message.feed, &message.key), message)).collect();
    for ((feed, id), message) in latest {
        let (document_type, gone) = message.said();
        let address = match (feed.as_str(), document_type) {
            ("form-sql", "XFormInstance" | "XFormArchived") => Some("api/form/v1"),
            ("case-sql", _) => Some("api/case/v2"),
            _ => None,
        };
        if let Some(address) = address {
            let path = format!("{address}/{id}/?include_archived=true&wait_for={last}");
            let answer = server.request(Method::GET, &path).send().await.unwrap();
            let expected = if gone { StatusCode::NOT_FOUND } else { StatusCode::OK };
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert_eq!(status, expected, "{feed} {id} {document_type}: {text}");
            assert!(gone || text.contains(id.as_str()), "{text}");
            continue;
        }
        if document_type == "XFormDuplicate" {
            let row = store.query_one("SELECT orig_id FROM forms WHERE id = $1", &[id]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), original);
        }
        let (table, key) = match feed.as_str() {
            "form-sql" => ("forms", "id"),
            "ledger" => ("ledger_values", "concat_ws('/', case_id, section_id, entry_id)"),
            // The account; its documents are its domains'.
            "web-user" => ("accounts", "id"),
            "commcare-user" => ("users", "id"),
            "location" => ("locations", "id"),
            _ => ("documents", "id"),
        };
        let sql = format!("SELECT count(*) FROM {table} WHERE {key} = $1");
        let found: i64 = store.query_one(&sql, &[id]).await.unwrap().get(0);
        assert_eq!(found, i64::from(!gone), "{feed} {id} {document_type}");
    }
}
