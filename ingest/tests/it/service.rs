//! A running ingest service with one domain, and short ways to post to it and read its log.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use base64::Engine;
use ingest::{Ingest, IngestConfig};
use object_store::memory::InMemory;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::DomainId,
    port::{Secret, SourceEvent, SystemClock, ViewReader, WaitError},
    position::{Frontier, LaneId, Position},
    table::Snapshot,
};
use serde_json::Value;
use tokio_postgres::Client;
use tower::ServiceExt;

use crate::postgres;

/// How long anything may take before a test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A view reader without views.
#[derive(Debug)]
struct NoViews;

#[async_trait]
impl ViewReader for NoViews {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::default()
    }
    fn ready(&self) -> bool {
        true
    }
    async fn wait_for(&self, _: &DomainId, _: Position, _: Duration) -> Result<Arc<Snapshot>, WaitError> {
        Err(WaitError::Stopping)
    }
}

/// A view reader for routes that show no views.
pub(crate) fn no_views() -> Arc<dyn ViewReader> {
    Arc::new(NoViews)
}

/// A service, its routes, and its admin's password.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) routes: Router,
    pub(crate) address: String,
    pub(crate) password: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn position(&self) -> Position {
        self.headers["x-millrace-position"].to_str().unwrap().parse().unwrap()
    }

    pub(crate) fn form_id(&self) -> &str {
        self.headers["x-commcarehq-formid"].to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The domain of every service.
pub(crate) fn demo() -> DomainId {
    DomainId::new("demo").unwrap()
}

/// Opens a service over a new database.
pub(crate) async fn start() -> Service {
    start_with(IngestConfig { database_url: postgres::database().await, ..IngestConfig::default() }).await
}

/// Opens a service with these settings.
pub(crate) async fn start_with(config: IngestConfig) -> Service {
    let address = config.database_url.clone();
    let ingest = Ingest::open(config, Arc::new(InMemory::new()), Arc::new(SystemClock)).await.unwrap();
    let accounts = ingest.accounts();
    accounts.create_domain(&demo()).await.unwrap();
    let Secret(password) = accounts.ensure_admin(&demo()).await.unwrap().unwrap();
    let routes = ingest.routes(no_views());
    Service { ingest, routes, address, password }
}

/// `Authorization` for a name and a password.
pub(crate) fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
}

impl Service {
    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// Sends a request as the admin.
    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", basic("admin@demo", &self.password))
            .body(body.into())
            .unwrap();
        self.send(request).await
    }

    /// Posts a form as the admin.
    pub(crate) async fn post(&self, xml: &str) -> Answer {
        self.call("POST", "/a/demo/receiver/", xml.to_owned()).await
    }

    /// Posts a form that has to be stored.
    pub(crate) async fn stored(&self, xml: &str) -> Answer {
        let answer = self.post(xml).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer
    }

    /// A connection of its own to the service's database.
    pub(crate) async fn client(&self) -> Client {
        postgres::connect(&self.address).await
    }

    /// One number from the database.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// The record at a position, from the table.
    pub(crate) async fn record(&self, position: Position) -> ChangeRecord {
        let before = schemas::position::Sequence(position.sequence.0 - 1);
        let client = self.client().await;
        ingest::changelog::outbox::read(&client, position.lane, before, 1).await.unwrap().remove(0)
    }

    /// Reads the log from a frontier until it holds `count` records of domains' lanes.
    pub(crate) async fn records(&self, from: Frontier, count: usize) -> Vec<Arc<ChangeRecord>> {
        let mut source = self.ingest.bootstrap().changes(from).await.unwrap();
        let mut records = Vec::new();
        while records.len() < count {
            let event = tokio::time::timeout(DEADLINE, source.next()).await.unwrap().unwrap();
            if let SourceEvent::Records(more) = event {
                records.extend(more.into_iter().filter(|record| !is_control(record.position)));
            }
        }
        records
    }
}

/// True of the lane of web users, where the making of an administrator is recorded.
pub(crate) fn is_control(position: Position) -> bool {
    position.lane == LaneId::control(position.lane.database)
}

/// The body of a document as JSON.
pub(crate) fn body(document: &ChangedDocument) -> Value {
    serde_json::from_str(document.body.as_ref().unwrap().get()).unwrap()
}

/// The record's documents of a kind that are there, as (id, document type, body).
pub(crate) fn documents(record: &ChangeRecord, kind: DocKind) -> Vec<(String, String, Value)> {
    let of_kind = record.documents.iter().filter(|document| document.kind == kind && document.body.is_some());
    of_kind.map(|document| (document.id.to_string(), document.document_type.clone(), body(document))).collect()
}

/// A form with one answer and some case blocks.
pub(crate) fn form(id: &str, answer: &str, blocks: &str) -> String {
    format!(
        "<data xmlns=\"http://example.org/visit\" name=\"Visit\"><answer>{answer}</answer>{blocks}\
         <meta><instanceID>{id}</instanceID><userID>u1</userID><timeEnd>2024-01-01T10:00:00Z</timeEnd></meta></data>"
    )
}

/// A case block that creates or updates.
pub(crate) fn case(id: &str, content: &str) -> String {
    format!(
        "<case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"{id}\" user_id=\"u1\" \
         date_modified=\"2024-01-01T10:00:00Z\">{content}</case>"
    )
}

/// The content of a block that creates a child case.
pub(crate) fn create(name: &str) -> String {
    format!("<create><case_type>child</case_type><case_name>{name}</case_name><owner_id>u1</owner_id></create>")
}

/// The content of a block that sets a property.
pub(crate) fn update(name: &str, value: &str) -> String {
    format!("<update><{name}>{value}</{name}></update>")
}

/// Waits until `done` says so.
pub(crate) async fn until(mut done: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "the condition did not come true in time");
        tokio::task::yield_now().await;
    }
}
