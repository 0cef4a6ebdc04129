//! Two domains, a few tables with dead rows, one user each: what the tests read.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array, Int64Array,
        ListBuilder, RecordBatch, StringBuilder, StringViewArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field},
};
use async_trait::async_trait;
use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    doc::Doc,
    id::{DocId, DomainId, UserId},
    inside::{
        Arrival, Asked, Explained, Held, Measured, Members, Origin, Outcome, Provenance, ProvenanceError,
        ProvenanceQuestion, ViewCost,
    },
    port::{AuthError, Authenticator, Credentials, Permission, Principal, ViewReader, WaitError},
    position::{Frontier, LaneId, Position, Sequence, Stamp, Tick},
    row::{Cell, Column, ColumnType, DECIMAL_PRECISION, DECIMAL_SCALE, TableSchema},
    table::{
        DeadRows, DomainTables, KeyIndex, Moment, Progress, Segment, Snapshot, Table, TableName, ViewState, ViewStatus,
    },
    time::parse_micros,
};
use tokio::sync::watch;

use crate::{QueryConfig, QueryState};

pub(super) const DOMAIN: &str = "demo";
pub(super) const USER: &str = "admin@demo";
pub(super) const PASSWORD: &str = "right";

pub(super) fn text(value: &str) -> Cell {
    Cell::Text(value.into())
}

pub(super) fn at(text: &str) -> Cell {
    Cell::Datetime(parse_micros(text).unwrap())
}

fn array(kind: ColumnType, cells: &[Cell]) -> ArrayRef {
    let int = |cell: &Cell| match cell {
        Cell::Int(number) => Some(*number),
        _ => None,
    };
    let ints = || cells.iter().map(int);
    match kind {
        ColumnType::Text => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Text(text) => Some(text.to_string()),
                    _ => None,
                })
                .collect::<StringViewArray>(),
        ),
        ColumnType::Integer => Arc::new(ints().map(|n| n.map(|n| n as i32)).collect::<Int32Array>()),
        ColumnType::SmallInteger => Arc::new(ints().map(|n| n.map(|n| n as i16)).collect::<Int16Array>()),
        ColumnType::BigInteger => Arc::new(ints().collect::<Int64Array>()),
        ColumnType::Decimal => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Decimal(value) => Some(*value),
                    _ => None,
                })
                .collect::<Decimal128Array>()
                .with_precision_and_scale(DECIMAL_PRECISION, DECIMAL_SCALE)
                .unwrap(),
        ),
        ColumnType::Float => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Float(value) => Some(value.0),
                    _ => None,
                })
                .collect::<Float64Array>(),
        ),
        ColumnType::Date => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Date(days) => Some(*days),
                    _ => None,
                })
                .collect::<Date32Array>(),
        ),
        ColumnType::Datetime => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Datetime(micros) => Some(*micros),
                    _ => None,
                })
                .collect::<TimestampMicrosecondArray>(),
        ),
        ColumnType::Boolean => Arc::new(
            cells
                .iter()
                .map(|cell| match cell {
                    Cell::Bool(value) => Some(*value),
                    _ => None,
                })
                .collect::<BooleanArray>(),
        ),
        ColumnType::Document => panic!("documents lie in no array"),
        ColumnType::TextList => {
            let mut builder =
                ListBuilder::new(StringBuilder::new()).with_field(Field::new("item", DataType::Utf8, true));
            for cell in cells {
                match cell {
                    Cell::List(items) => {
                        for item in items {
                            match item {
                                Cell::Text(text) => builder.values().append_value(text),
                                _ => builder.values().append_null(),
                            }
                        }
                        builder.append(true);
                    }
                    _ => builder.append(false),
                }
            }
            Arc::new(builder.finish())
        }
    }
}

/// Answers look-ups, and counts them; `moved` stands for an index that is ahead of the table's version.
#[derive(Debug, Default)]
pub(super) struct MapIndex {
    places: HashMap<String, Vec<(usize, usize)>>,
    pub(super) asked: AtomicUsize,
    pub(super) moved: bool,
}

impl KeyIndex for MapIndex {
    fn find(&self, _table: &Table, key: &str) -> Option<Vec<(usize, usize)>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        (!self.moved).then(|| self.places.get(key).cloned().unwrap_or_default())
    }

    fn bytes(&self) -> usize {
        7
    }
}

/// A table of rows in segments; each segment lists its dead rows.
pub(super) fn table(
    columns: Vec<Column>,
    stamp: Option<usize>,
    segments: Vec<(Vec<Vec<Cell>>, &[usize])>,
    index: Option<bool>,
) -> (Arc<Table>, Option<Arc<MapIndex>>) {
    let schema = Arc::new(TableSchema { columns, key: vec![0] });
    let arrow = schema.arrow();
    let mut places: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
    let mut built = Vec::new();
    for (at, (rows, dead_rows)) in segments.into_iter().enumerate() {
        let mut dead = DeadRows::default();
        dead_rows.iter().for_each(|row| dead.mark(*row));
        for (row, cells) in rows.iter().enumerate() {
            if let Cell::Text(key) = &cells[0]
                && !dead.is_dead(row)
            {
                places.entry(key.to_string()).or_default().push((at, row));
            }
        }
        let stamps = stamp.and_then(|stamp| {
            let stamps = rows.iter().filter_map(|cells| match cells[stamp] {
                Cell::Datetime(micros) => Some(micros),
                _ => None,
            });
            Some((stamps.clone().min()?, stamps.max()?))
        });
        let arrays = schema.stored().iter().enumerate().map(|(column, about)| {
            array(about.column_type, &rows.iter().map(|cells| cells[column].clone()).collect::<Vec<_>>())
        });
        let batch = RecordBatch::try_new(schema.stored_arrow(), arrays.collect()).unwrap();
        let documents = rows.iter().filter_map(|cells| match cells.last() {
            Some(Cell::Document(doc)) => Some(doc.clone()),
            _ => None,
        });
        let documents = documents.collect();
        built.push(Arc::new(Segment { batch, documents, dead: Arc::new(dead), stamps }));
    }
    let index = index.map(|moved| Arc::new(MapIndex { places, asked: AtomicUsize::new(0), moved }));
    let live_rows = built.iter().map(|segment| segment.live_rows()).sum();
    let table = Table {
        schema,
        arrow,
        segments: built.into(),
        live_rows,
        stamp_column: stamp,
        index: index.clone().map(|index| index as Arc<dyn KeyIndex>),
        changed_at: Tick(7),
        errors: 0,
    };
    (Arc::new(table), index)
}

pub(super) fn visit_columns() -> Vec<Column> {
    vec![
        Column::required("doc_id", ColumnType::Text),
        Column::new("inserted_at", ColumnType::Datetime),
        Column::new("name", ColumnType::Text),
        Column::new("age", ColumnType::Integer),
        Column::new("weight", ColumnType::Decimal),
        Column::new("seen", ColumnType::Date),
        Column::new("tags", ColumnType::TextList),
        Column::new("closed", ColumnType::Boolean),
    ]
}

pub(super) fn visit(id: &str, stamp: &str, name: &str, age: i64) -> Vec<Cell> {
    vec![
        text(id),
        at(stamp),
        text(name),
        Cell::Int(age),
        Cell::Decimal(i128::from(age) * 10_i128.pow(15)),
        Cell::Date(19_000 + age as i32),
        Cell::List([text("x"), text(name)].into()),
        Cell::Bool(age > 30),
    ]
}

/// Three segments: `b` was replaced, `d` deleted.
pub(super) fn visits(moved: bool) -> (Arc<Table>, Arc<MapIndex>) {
    let segments: Vec<(Vec<Vec<Cell>>, &[usize])> = vec![
        (
            vec![
                visit("a", "2024-01-01", "Ada", 20),
                visit("b", "2024-01-02", "Bea (old)", 30),
                visit("c", "2024-01-03", "Cleo", 40),
                visit("d", "2024-01-04", "Dora (deleted)", 50),
            ],
            &[1, 3],
        ),
        (vec![visit("b", "2024-02-01", "Bea", 31), visit("e", "2024-02-02", "Eve", 25)], &[]),
        (vec![visit("f", "2024-03-01", "Fay", 35)], &[]),
    ];
    let (table, index) = table(visit_columns(), Some(1), segments, Some(moved));
    (table, index.unwrap())
}

fn months() -> Arc<Table> {
    let columns = vec![Column::required("month", ColumnType::Text), Column::new("visits", ColumnType::BigInteger)];
    let rows = vec![vec![text("2024-01"), Cell::Int(2)], vec![text("2024-02"), Cell::Int(2)]];
    table(columns, None, vec![(rows, &[])], None).0
}

/// `system.case_documents` over JSON documents with their stamps.
pub(super) fn cases(docs: &[(serde_json::Value, &str)]) -> Arc<Table> {
    let columns = vec![
        Column::required("doc_id", ColumnType::Text),
        Column::new("type", ColumnType::Text),
        Column::new("name", ColumnType::Text),
        Column::new("owner_id", ColumnType::Text),
        Column::new("external_id", ColumnType::Text),
        Column::new("closed", ColumnType::Boolean),
        Column::new("deleted", ColumnType::Boolean),
        Column::new("opened_on", ColumnType::Datetime),
        Column::new("closed_on", ColumnType::Datetime),
        Column::new("modified_on", ColumnType::Datetime),
        Column::new("server_modified_on", ColumnType::Datetime),
        Column::new("indexed_on", ColumnType::Datetime),
        Column::required("document", ColumnType::Document),
    ];
    let row = |(doc, stamp): &(serde_json::Value, &str)| {
        let get = |name: &str| doc[name].as_str().map_or(Cell::Null, text);
        let when = |name: &str| doc[name].as_str().map_or(Cell::Null, at);
        vec![
            get("_id"),
            get("type"),
            get("name"),
            get("owner_id"),
            get("external_id"),
            Cell::Bool(doc["closed"] == true),
            Cell::Bool(doc["doc_type"] == "CommCareCase-Deleted"),
            when("opened_on"),
            when("closed_on"),
            when("modified_on"),
            when("server_modified_on"),
            at(stamp),
            Cell::Document(Doc::from_value(doc).unwrap()),
        ]
    };
    documents(columns, 11, &docs.iter().map(row).collect::<Vec<_>>())
}

/// `system.form_documents` over JSON documents with their stamps.
pub(super) fn forms(docs: &[(serde_json::Value, &str)]) -> Arc<Table> {
    let columns = vec![
        Column::required("doc_id", ColumnType::Text),
        Column::new("xmlns", ColumnType::Text),
        Column::new("app_id", ColumnType::Text),
        Column::new("user_id", ColumnType::Text),
        Column::new("doc_type", ColumnType::Text),
        Column::new("received_on", ColumnType::Datetime),
        Column::new("server_modified_on", ColumnType::Datetime),
        Column::new("indexed_on", ColumnType::Datetime),
        Column::required("document", ColumnType::Document),
    ];
    let row = |(doc, stamp): &(serde_json::Value, &str)| {
        let get = |name: &str| doc[name].as_str().map_or(Cell::Null, text);
        let when = |name: &str| doc[name].as_str().map_or(Cell::Null, at);
        vec![
            get("_id"),
            get("xmlns"),
            get("app_id"),
            get("user_id"),
            get("doc_type"),
            when("received_on"),
            when("server_modified_on"),
            at(stamp),
            Cell::Document(Doc::from_value(doc).unwrap()),
        ]
    };
    documents(columns, 7, &docs.iter().map(row).collect::<Vec<_>>())
}

/// The table of another kind of document, with these properties as columns.
pub(super) fn others(properties: &[(&str, ColumnType)], docs: &[(serde_json::Value, &str)]) -> Arc<Table> {
    let mut columns = vec![Column::required("doc_id", ColumnType::Text)];
    columns.extend(properties.iter().map(|(name, kind)| Column::new(name, *kind)));
    columns.push(Column::required("indexed_on", ColumnType::Datetime));
    columns.push(Column::required("document", ColumnType::Document));
    let row = |(doc, stamp): &(serde_json::Value, &str)| {
        let mut cells = vec![text(doc["_id"].as_str().unwrap())];
        cells.extend(properties.iter().map(|(name, _)| match &doc[name] {
            serde_json::Value::String(value) => text(value),
            serde_json::Value::Bool(value) => Cell::Bool(*value),
            serde_json::Value::Number(value) => Cell::Int(value.as_i64().unwrap()),
            _ => Cell::Null,
        }));
        cells.extend([at(stamp), Cell::Document(Doc::from_value(doc).unwrap())]);
        cells
    };
    documents(columns, properties.len() + 1, &docs.iter().map(row).collect::<Vec<_>>())
}

/// Two rows to a segment, and in front of each a dead row that must never show.
fn documents(columns: Vec<Column>, stamp: usize, rows: &[Vec<Cell>]) -> Arc<Table> {
    let segments = rows.chunks(2).map(|chunk| {
        let mut rows = vec![chunk[0].clone()];
        rows.extend_from_slice(chunk);
        let dead: &[usize] = &[0];
        (rows, dead)
    });
    table(columns, Some(stamp), segments.collect(), Some(false)).0
}

/// The snapshot that the tests start from.
pub(super) fn snapshot(visits: Arc<Table>, others: Vec<(&str, Arc<Table>)>) -> Snapshot {
    let mut tables = BTreeMap::new();
    tables.insert(TableName::new("ucr", "ucr_demo_visits_abc"), Arc::clone(&visits));
    tables.insert(TableName::new("ucr", "visits"), visits);
    let mut months = Arc::unwrap_or_clone(months());
    months.errors = 3;
    tables.insert(TableName::new("views", "visits_by_month"), Arc::new(months));
    for (name, table) in others {
        tables.insert(TableName::new("system", name), table);
    }
    let view = |id: &str, name: TableName, state| ViewStatus {
        id: id.to_owned(),
        kind: "data_source",
        tables: vec![name],
        state,
        preview: None,
        published: None,
    };
    let views = Arc::from([
        view("visits", TableName::new("ucr", "visits"), ViewState::Live),
        view(
            "slow",
            TableName::new("ucr", "slow"),
            ViewState::Building(Progress { done: 5, total: 10, rate: 2, seconds_left: Some(3), started_at: 1_000_000 }),
        ),
        view("bad", TableName::new("ucr", "bad"), ViewState::Failed { message: "no such column".to_owned() }),
    ]);
    let secret = vec![vec![text("s"), Cell::Int(1)]];
    let columns = vec![Column::required("doc_id", ColumnType::Text), Column::new("n", ColumnType::BigInteger)];
    let secret = table(columns, None, vec![(secret, &[])], None).0;
    let other = DomainTables {
        tables: [(TableName::new("ucr", "secret"), secret)].into_iter().collect(),
        views: Arc::from([]),
        behind: None,
    };
    let mut complete_through = Frontier::default();
    complete_through.advance(position(41));
    Snapshot {
        moment: Moment { tick: Tick(41), as_of: parse_micros("2024-03-01T10:00:00").unwrap(), complete_through },
        sources_seen_at: parse_micros("2024-03-01T10:00:00").unwrap(),
        lanes_seen_at: BTreeMap::new(),
        databases: Arc::default(),
        domains: [
            (
                DomainId::new(DOMAIN).unwrap(),
                Arc::new(DomainTables { tables: tables.into_iter().collect(), views, behind: None }),
            ),
            (DomainId::new("other").unwrap(), Arc::new(other)),
        ]
        .into(),
    }
}

pub(super) fn position(sequence: u64) -> Position {
    Position { lane: LaneId::FIRST, sequence: Sequence(sequence) }
}

/// Publishes snapshots by hand.
#[derive(Debug)]
pub(super) struct FakeViews {
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl FakeViews {
    pub(super) fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self { snapshots: watch::Sender::new(Arc::new(snapshot)) })
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

#[async_trait]
impl ViewReader for FakeViews {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    fn ready(&self) -> bool {
        true
    }

    async fn wait_for(&self, _: &DomainId, position: Position, timeout: Duration) -> Result<Arc<Snapshot>, WaitError> {
        let mut receiver = self.snapshots.subscribe();
        let covered = receiver.wait_for(|snapshot| snapshot.moment.complete_through.covers(position));
        match tokio::time::timeout(timeout, covered).await {
            Ok(Ok(snapshot)) => Ok(Arc::clone(&snapshot)),
            Ok(Err(_)) => Err(WaitError::Stopping),
            Err(_) => Err(WaitError::Timeout {
                wanted: position,
                waited: timeout,
                visible: self.snapshot().moment.complete_through.to_string(),
            }),
        }
    }

    fn measured(&self, domain: &DomainId) -> Measured {
        if domain.as_str() != DOMAIN {
            return Measured::default();
        }
        let held = |part, name: &str, count, bytes| Held { part, name: name.to_owned(), count, bytes };
        let cost = |kind, view: &str, changes, nanos| ViewCost { kind, view: view.to_owned(), changes, nanos };
        Measured {
            held: vec![held("documents", "case", 4, Some(2048)), held("groups", "visits_by_month", 2, None)],
            costs: vec![cost("data_source", "visits", 8, 20_000), cost("data_source", "slow", 0, 0)],
        }
    }

    async fn provenance(&self, question: ProvenanceQuestion, _: Duration) -> Result<Explained, ProvenanceError> {
        let snapshot = self.snapshot();
        let origin = |id: &str, form: Option<&str>, arrival| Origin {
            kind: DocKind::Case,
            id: DocId::new(id).unwrap(),
            stamp: Stamp(parse_micros("2024-01-01").unwrap()),
            form: form.map(str::to_owned),
            arrival,
        };
        let before = || Arrival::Before(parse_micros("2023-01-01").unwrap());
        let row = |is_there, outcome, asked| Provenance::Rows {
            document: origin("a", Some("f1"), before()),
            is_there,
            outcome,
            asked,
        };
        let came = |visible_at| Arrival::Record { position: position(41), visible_at };
        let asked = |id: &str, documents| Asked { relation: "case", id: id.to_owned(), documents };
        let provenance = match (question.view.as_str(), question.key.as_deref()) {
            ("visits", Some("a")) => {
                let mother = origin("m", Some("f9"), came(parse_micros("2024-02-01")));
                let asked = vec![asked("m", vec![mother, origin("n", None, came(None))]), asked("nobody", vec![])];
                row(true, Outcome::Rows(2), asked)
            }
            ("visits", Some("failed")) => row(true, Outcome::Failed("too long".to_owned()), vec![]),
            ("visits", Some("filtered")) => row(true, Outcome::Rows(0), vec![]),
            ("visits", Some("gone")) => row(false, Outcome::Rows(0), vec![]),
            ("visits", None) => return Err(ProvenanceError::NoKey),
            ("slow", _) => return Err(ProvenanceError::NotReady { view: question.view }),
            ("visits_by_month", key) => {
                let joined = key == Some("[\"joined\"]");
                let members = key.filter(|_| !joined).map(|_| Members { rows: 3, documents: vec!["a".to_owned()] });
                Provenance::Groups { sources: vec![TableName::new("ucr", "visits")], members }
            }
            _ => return Err(ProvenanceError::UnknownView { view: question.view }),
        };
        Ok(Explained { provenance, snapshot })
    }
}

/// Knows one administrator, who has a password and a key, and one user who may only submit.
#[derive(Debug)]
pub(super) struct FakeAuth;

#[async_trait]
impl Authenticator for FakeAuth {
    async fn authenticate(&self, domain: &DomainId, credentials: &Credentials) -> Result<Principal, AuthError> {
        let (username, right) = match credentials {
            Credentials::Password { username, password } => (username, password.0 == PASSWORD),
            Credentials::ApiKey { username, key } => (username, key.0 == "k1"),
            Credentials::Token(_) | Credentials::Digest(_) => {
                return Err(AuthError::Refused { domain: domain.to_string() });
            }
        };
        let permissions = match username.as_str() {
            USER => vec![Permission::ReadData],
            "phone@demo" => vec![Permission::Submit],
            _ => vec![],
        };
        if !right || permissions.is_empty() || domain.as_str() != DOMAIN {
            return Err(AuthError::Refused { domain: domain.to_string() });
        }
        Ok(Principal {
            domain: domain.clone(),
            user_id: UserId::new("u1").unwrap(),
            username: username.clone(),
            permissions,
        })
    }

    fn digest_challenge(&self, _stale: bool) -> String {
        "Digest".to_owned()
    }
}

pub(super) fn state(views: &Arc<FakeViews>, config: QueryConfig) -> Arc<QueryState> {
    Arc::new(QueryState { views: Arc::clone(views) as Arc<dyn ViewReader>, auth: Arc::new(FakeAuth), config })
}

pub(super) fn quick() -> QueryConfig {
    QueryConfig { default_wait_ms: 50, ..QueryConfig::default() }
}
