//! Data sources in a running dataflow: definitions and documents go in as change records, rows come out over SQL.
//!
//! One dataflow serves any number of data sources: each has a domain of its own in the change log, so that none sees
//! another's documents.

use std::{io::Cursor, sync::Arc};

use arrow::ipc::reader::StreamReader;
use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use dataflow::DataflowConfig;
use query::{QueryConfig, QueryState};
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{DocId, DomainId, UserId},
    port::{AuthError, Authenticator, Clock, Credentials, Permission, Principal},
    position::{LaneId, Position, Sequence, Stamp},
    row::{Cell, Row},
};
use serde_json::{Value as Json, value::RawValue};
use tower::ServiceExt;
use udf::DataSource;

use crate::pipeline::Pipeline;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// A running dataflow whose clock stands.
pub(crate) struct Live {
    pipeline: Pipeline,
    sql: Router,
    now: i64,
    domains: u64,
    sequence: u64,
    stamp: i64,
}

/// A data source installed in one.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    domain: DomainId,
    last: Position,
}

/// A document that is put, or deleted: its kind, its id, what it is now.
pub(crate) type Change = (DocKind, String, Option<Json>);

/// A clock that stands.
#[derive(Debug)]
struct Standing(i64);

impl Clock for Standing {
    fn now_micros(&self) -> i64 {
        self.0
    }
}

/// Lets everyone read: there is nobody but the runner.
#[derive(Debug)]
struct Everyone;

#[async_trait]
impl Authenticator for Everyone {
    async fn authenticate(&self, domain: &DomainId, _: &Credentials) -> Result<Principal, AuthError> {
        let user_id = UserId::new("runner").map_err(|error| AuthError::Unavailable(error.to_string()))?;
        let permissions = vec![Permission::ReadData];
        Ok(Principal { domain: domain.clone(), user_id, username: "runner".to_owned(), permissions })
    }

    fn digest_challenge(&self, _: bool) -> String {
        "Digest".to_owned()
    }
}

impl Live {
    /// Starts one whose clock stands at `now`, microseconds since 1970 UTC.
    pub(crate) fn start(now: i64) -> Self {
        let pipeline = Pipeline::start(DataflowConfig::default(), Vec::new(), Arc::new(Standing(now)));
        let state = QueryState { views: pipeline.reader(), auth: Arc::new(Everyone), config: QueryConfig::default() };
        Self { sql: query::routes(Arc::new(state)), pipeline, now, domains: 0, sequence: 0, stamp: now }
    }

    /// Where its clock stands.
    pub(crate) const fn now(&self) -> i64 {
        self.now
    }

    /// Installs a data source and waits until it is live.
    ///
    /// # Errors
    /// It cannot be maintained.
    pub(crate) async fn install(&mut self, definition: &Json) -> anyhow::Result<Installed> {
        self.domains += 1;
        let domain = DomainId::new(&format!("source-{}", self.domains))?;
        let change = (DocKind::DataSource, "source".to_owned(), Some(definition.clone()));
        let last = self.commit(&domain, vec![change]).await?;
        self.pipeline.visible(&domain, last).await?;
        self.pipeline.live(&domain).await?;
        Ok(Installed { domain, last })
    }

    /// Puts and deletes documents as one change, and waits until it is visible.
    ///
    /// # Errors
    /// An id that no document can have, or the dataflow has stopped.
    pub(crate) async fn change(&mut self, installed: &mut Installed, changes: Vec<Change>) -> anyhow::Result<()> {
        installed.last = self.commit(&installed.domain, changes).await?;
        self.pipeline.visible(&installed.domain, installed.last).await?;
        Ok(())
    }

    async fn commit(&mut self, domain: &DomainId, changes: Vec<Change>) -> anyhow::Result<Position> {
        let mut documents = Vec::with_capacity(changes.len());
        for (kind, id, body) in changes {
            self.stamp += 1;
            let property = |name: &str| body.as_ref().and_then(|body| body[name].as_str()).map(str::to_owned);
            documents.push(ChangedDocument {
                kind,
                id: DocId::new(&id)?,
                stamp: Stamp(self.stamp),
                document_type: property("doc_type").unwrap_or_default(),
                subtype: match kind {
                    DocKind::Case => property("type"),
                    DocKind::Form => property("xmlns"),
                    _ => None,
                },
                body: match body {
                    Some(body) => Some(Arc::from(RawValue::from_string(body.to_string())?)),
                    None => None,
                },
            });
        }
        self.sequence += 1;
        let position = Position { lane: LaneId::FIRST, sequence: Sequence(self.sequence) };
        self.pipeline.send(vec![Arc::new(ChangeRecord { position, domain: domain.clone(), documents })]).await?;
        Ok(position)
    }

    /// The table's rows, those of one document or all, sorted by key.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn rows(
        &self,
        installed: &Installed,
        source: &DataSource,
        document: Option<&str>,
    ) -> anyhow::Result<Vec<Row>> {
        let quoted =
            |text: &str, quote: char| format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")));
        let mut sql = format!("SELECT * FROM ucr.{}", quoted(source.table_name(), '"'));
        if let Some(id) = document {
            sql.push_str(&format!(" WHERE doc_id = {}", quoted(id, '\'')));
        }
        let request = Request::post(format!("/a/{}/sql?wait_for={}", installed.domain, installed.last))
            .header(header::AUTHORIZATION, "Basic cnVubmVyOg==")
            .header(header::ACCEPT, "application/vnd.apache.arrow.stream")
            .body(Body::from(sql))?;
        let response = self.sql.clone().oneshot(request).await?;
        let status = response.status();
        let body = to_bytes(response.into_body(), MAX_ANSWER).await?;
        anyhow::ensure!(status == StatusCode::OK, "the table cannot be read: {}", String::from_utf8_lossy(&body));
        let mut rows: Vec<Row> = Vec::new();
        for batch in StreamReader::try_new(Cursor::new(body), None)? {
            let batch = batch?;
            let columns = || source.schema().columns.iter().zip(batch.columns());
            let cells = |row| columns().map(|(column, array)| column.column_type.cell(array, row)).collect();
            rows.extend((0..batch.num_rows()).map(cells));
        }
        sort(source, &mut rows);
        Ok(rows)
    }

    /// Compares the table with rows computed from scratch, whose stamps are all `now`: the dataflow's are later.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn difference(
        &self,
        installed: &Installed,
        source: &DataSource,
        document: Option<&str>,
        mut computed: Vec<Row>,
    ) -> anyhow::Result<Option<String>> {
        let rows = self.rows(installed, source, document).await?;
        sort(source, &mut computed);
        if rows.len() != computed.len() {
            return Ok(Some(format!(
                "the live table has {} rows, from scratch there are {}",
                rows.len(),
                computed.len()
            )));
        }
        for (row, computed) in rows.iter().zip(&computed) {
            for ((column, live), computed) in source.columns().iter().zip(row.iter()).zip(computed.iter()) {
                let later =
                    *computed == Cell::Datetime(self.now) && matches!(live, Cell::Datetime(at) if *at > self.now);
                if live != computed && !later {
                    let message = format!("the live table has {live:?}, from scratch it is {computed:?}");
                    return Ok(Some(format!("{} of {:?}: {message}", column.id, key(source, row))));
                }
            }
        }
        Ok(None)
    }

    /// Stops the dataflow.
    pub(crate) async fn stop(self) {
        self.pipeline.stop().await;
    }
}

/// The cells that identify a row.
fn key<'r>(source: &DataSource, row: &'r Row) -> Vec<&'r Cell> {
    source.schema().key.iter().filter_map(|column| row.get(*column)).collect()
}

fn sort(source: &DataSource, rows: &mut [Row]) {
    rows.sort_by(|a, b| key(source, a).cmp(&key(source, b)));
}
