//! All current documents under one database snapshot, and the log behind it (architecture D5).
//!
//! A scan is one repeatable-read transaction per database: the counters it sees say exactly which records the documents
//! include. Every row has kept the stamp of its last change, so a bootstrapped table shows the same `indexed_on` as one fed by the log.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use schemas::{
    change::{ChangedDocument, DocKind},
    id::{DocId, DomainId},
    port::{Bootstrap, BootstrapDocument, BootstrapScan, ChangeSource, Clock, SourceError},
    position::{Frontier, LaneId, Position, Sequence, Stamp},
};
use serde_json::value::RawValue;
use tokio_postgres::Row;

use crate::{
    changelog::{handover::Handover, outbox, tail::Tail},
    error::DatabaseError,
    store::{
        cases::{self, case_columns},
        compress,
        databases::{Database, Databases},
        directory, ledgers,
        pool::{Connection, Use},
    },
    submit::{
        directory::doc_type,
        document::{FormState, case_doc_type, case_document},
        ledger::{self, ledger_document},
    },
};

/// Rows fetched at a time.
const FETCH: &str = "FETCH FORWARD 2000 FROM bootstrap";

/// Opens scans and the log.
#[derive(Clone, Debug)]
pub(crate) struct PrimaryStore {
    /// What is scanned, and whose log is read.
    pub databases: Databases,
    /// Committed records in memory.
    pub handover: Arc<Handover>,
    /// Groups a reader's channel holds.
    pub capacity: usize,
    /// For the leases of readers that start again from what they have kept.
    pub clock: Arc<dyn Clock>,
}

/// How long the log is held for a reader that is not heard of.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// What a scan reads, in order: small things first.
#[derive(Clone, Copy, Debug)]
enum Part {
    Directory(DocKind),
    Ledgers,
    Cases,
    Forms,
}

impl Part {
    const ALL: [Self; 15] = [
        Self::Directory(DocKind::Location),
        Self::Directory(DocKind::User),
        Self::Directory(DocKind::WebUser),
        Self::Directory(DocKind::LocationType),
        Self::Directory(DocKind::Group),
        Self::Directory(DocKind::LookupTable),
        Self::Directory(DocKind::LookupRow),
        Self::Directory(DocKind::Application),
        Self::Directory(DocKind::NamedExpression),
        Self::Directory(DocKind::NamedFilter),
        Self::Directory(DocKind::DataSource),
        Self::Directory(DocKind::AggregateView),
        Self::Ledgers,
        Self::Cases,
        Self::Forms,
    ];

    const fn query(self) -> &'static str {
        match self {
            Self::Directory(DocKind::Location) => "SELECT domain, id, document, stamp FROM locations",
            Self::Directory(DocKind::User) => "SELECT domain, id, document, stamp FROM users",
            Self::Directory(DocKind::DataSource) => {
                "SELECT domain, id, document, stamp FROM definitions WHERE kind = 'data_source'"
            }
            Self::Directory(kind) => match directory::scan(kind) {
                Some(scan) => scan,
                None => "SELECT domain, id, document, stamp FROM definitions WHERE kind = 'aggregate_view'",
            },
            Self::Ledgers => {
                "SELECT case_id, section_id, entry_id, balance, last_modified, last_form_id, domain, stamp FROM ledger_values"
            }
            Self::Cases => concat!(
                "SELECT ",
                case_columns!(),
                ", i.indices FROM cases c LEFT JOIN (SELECT case_id, json_agg(json_build_object('identifier', identifier, \
                 'referenced_type', referenced_type, 'referenced_id', referenced_id, 'relationship', relationship) \
                 ORDER BY place)::text AS indices FROM case_indices GROUP BY case_id) i ON i.case_id = c.id"
            ),
            Self::Forms => "SELECT domain, id, state, xmlns, document_zstd, stamp FROM forms",
        }
    }
}

/// A scan of all databases, one after the other; their snapshots are of the same moment, nearly.
#[derive(Debug)]
struct Scans {
    frontier: Frontier,
    expected: u64,
    left: VecDeque<Scan>,
}

/// The scan of one database.
#[derive(Debug)]
struct Scan {
    /// Number of the database.
    database: u16,
    connection: Connection,
    left: VecDeque<Part>,
    current: Option<Part>,
}

#[async_trait]
impl Bootstrap for PrimaryStore {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        let mut scans = Scans { frontier: Frontier::default(), expected: 0, left: VecDeque::new() };
        for database in self.databases.all() {
            scans.open(database).await.map_err(unavailable)?;
        }
        Ok(Box::new(scans))
    }

    async fn changes(&self, from: Frontier) -> Result<Box<dyn ChangeSource>, SourceError> {
        let tail = Tail::open(self.databases.all(), &self.handover, self.capacity, &from).await?;
        Ok(Box::new(tail))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        let read = async {
            let client = self.databases.control().get().await?;
            let row = client.query_typed_one("SELECT value FROM secrets WHERE name = 'installation'", &[]).await?;
            Ok::<String, DatabaseError>(row.try_get(0)?)
        };
        read.await.map_err(unavailable)
    }

    async fn kept(&self, reader: &str, frontier: &Frontier) -> Result<(), SourceError> {
        for position in frontier.positions() {
            let pool = self.databases.get(position.lane.database).map_err(unavailable)?;
            let client = pool.get().await.map_err(unavailable)?;
            outbox::restart(&client, reader, position, self.clock.now_micros(), LEASE).await?;
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a conversion in `map_err`")]
fn unavailable(error: DatabaseError) -> SourceError {
    SourceError::Unavailable(error.to_string())
}

impl Scans {
    async fn open(&mut self, database: &Database) -> Result<(), DatabaseError> {
        let connection = database.pool.address().connect(Use::Long).await?;
        connection.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        for row in connection.query_typed("SELECT lane, sequence FROM lanes", &[]).await? {
            let sequence: i64 = row.try_get(1)?;
            let sequence = u64::try_from(sequence).map_err(|error| DatabaseError::damaged("lanes", error))?;
            self.frontier.advance(Position { lane: LaneId::from_i32(row.try_get(0)?), sequence: Sequence(sequence) });
        }
        let count = connection
            .query_typed_one(
                "SELECT (SELECT count(*) FROM forms) + (SELECT count(*) FROM cases) + (SELECT count(*) FROM users) \
                 + (SELECT count(*) FROM locations) + (SELECT count(*) FROM definitions) \
                 + (SELECT count(*) FROM ledger_values) + (SELECT count(*) FROM documents)",
                &[],
            )
            .await?;
        let count: i64 = count.try_get(0)?;
        self.expected += u64::try_from(count).unwrap_or_default();
        self.left.push_back(Scan { database: database.number, connection, left: Part::ALL.into(), current: None });
        Ok(())
    }
}

#[async_trait]
impl BootstrapScan for Scans {
    fn frontier(&self) -> Frontier {
        self.frontier.clone()
    }

    fn expected(&self) -> u64 {
        self.expected
    }

    fn database(&self) -> Option<u16> {
        self.left.front().map(|scan| scan.database)
    }

    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        while let Some(scan) = self.left.front_mut() {
            match scan.fetch().await.map_err(unavailable)? {
                Some(documents) => return Ok(Some(documents)),
                None => drop(self.left.pop_front()),
            }
        }
        Ok(None)
    }
}

impl Scan {
    async fn fetch(&mut self) -> Result<Option<Vec<BootstrapDocument>>, DatabaseError> {
        loop {
            let part = match self.current {
                Some(part) => part,
                None => {
                    let Some(part) = self.left.pop_front() else {
                        self.connection.batch_execute("COMMIT").await?;
                        return Ok(None);
                    };
                    let declare = format!("DECLARE bootstrap NO SCROLL CURSOR FOR {}", part.query());
                    self.connection.batch_execute(&declare).await?;
                    self.current = Some(part);
                    part
                }
            };
            let rows = self.connection.query_typed(FETCH, &[]).await?;
            if rows.is_empty() {
                self.connection.batch_execute("CLOSE bootstrap").await?;
                self.current = None;
                continue;
            }
            return rows.iter().map(|row| document(part, row)).collect::<Result<_, _>>().map(Some);
        }
    }
}

fn document(part: Part, row: &Row) -> Result<BootstrapDocument, DatabaseError> {
    match part {
        Part::Directory(kind) => directory_document(kind, row),
        Part::Ledgers => ledger_row(row),
        Part::Cases => case_row(row),
        Part::Forms => form_row(row),
    }
}

fn damaged(problem: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::damaged("documents", problem)
}

fn raw(text: String) -> Result<Arc<RawValue>, DatabaseError> {
    Ok(Arc::from(RawValue::from_string(text).map_err(damaged)?))
}

fn directory_document(kind: DocKind, row: &Row) -> Result<BootstrapDocument, DatabaseError> {
    Ok(BootstrapDocument {
        domain: DomainId::new(row.try_get(0)?).map_err(damaged)?,
        document: ChangedDocument {
            kind,
            id: DocId::new(row.try_get(1)?).map_err(damaged)?,
            stamp: Stamp(row.try_get(3)?),
            document_type: doc_type(kind).to_owned(),
            subtype: None,
            body: Some(raw(row.try_get(2)?)?),
        },
    })
}

fn ledger_row(row: &Row) -> Result<BootstrapDocument, DatabaseError> {
    let (key, value) = ledgers::value(row)?;
    let domain = DomainId::new(row.try_get(6)?).map_err(damaged)?;
    let body = ledger_document(&key, &value, &domain).map_err(damaged)?;
    Ok(BootstrapDocument {
        document: ChangedDocument {
            kind: DocKind::Ledger,
            id: key.doc_id().map_err(damaged)?,
            stamp: Stamp(row.try_get(7)?),
            document_type: ledger::DOC_TYPE.to_owned(),
            subtype: None,
            body: Some(body),
        },
        domain,
    })
}

fn case_row(row: &Row) -> Result<BootstrapDocument, DatabaseError> {
    let mut case = cases::case(row)?;
    let stamp: i64 = row.try_get(20)?;
    let indices: Option<&str> = row.try_get(22)?;
    if let Some(indices) = indices {
        case.indices = serde_json::from_str(indices).map_err(damaged)?;
    }
    Ok(BootstrapDocument {
        domain: case.domain.clone(),
        document: ChangedDocument {
            kind: DocKind::Case,
            id: DocId::from(&case.case_id),
            stamp: Stamp(stamp),
            document_type: case_doc_type(case.deleted).to_owned(),
            subtype: Some(case.case_type.clone()),
            body: Some(case_document(&case, None).map_err(damaged)?),
        },
    })
}

fn form_row(row: &Row) -> Result<BootstrapDocument, DatabaseError> {
    let bits: i16 = row.try_get(2)?;
    let (state, deleted) =
        FormState::from_bits(i32::from(bits)).ok_or_else(|| damaged(format!("form state {bits}")))?;
    Ok(BootstrapDocument {
        domain: DomainId::new(row.try_get(0)?).map_err(damaged)?,
        document: ChangedDocument {
            kind: DocKind::Form,
            id: DocId::new(row.try_get(1)?).map_err(damaged)?,
            stamp: Stamp(row.try_get(5)?),
            document_type: state.doc_type(deleted).to_owned(),
            subtype: Some(row.try_get(3)?),
            body: Some(raw(compress::unpack_text(row.try_get(4)?).map_err(damaged)?)?),
        },
    })
}
