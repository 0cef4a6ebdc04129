//! Random histories through the real engine, compared with a batch recomputation at every cut.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use parking_lot::Mutex as PlainMutex;
use proptest::prelude::*;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    doc::Doc,
    id::{DocId, DomainId},
    port::{BootstrapDocument, BootstrapScan},
    position::{Frontier, LaneId, Sequence, Stamp, Tick},
    row::{Cell, Row, TableSchema},
    table::{DomainTables, Table, TableName, ViewState},
};
use serde_json::{Value, json, value::RawValue};
use udf::{
    DataSource, NameKind, Registry, Related, Relation,
    aggregate_view::{Aggregate, AggregateView, ColumnRef},
};

use super::*;
use crate::{table::walk, view::DOCUMENT_TABLES};

mod lanes;
mod never_stale;

mod fan_out;
mod inside;
mod restart;

use restart::Blobs;

mod builds;
mod days;
mod driven;

const DOMAIN: &str = "demo";

/// A clock that tests set.
#[derive(Debug)]
struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Present documents of a domain: kind and id to stamp and body.
type Present = BTreeMap<(DocKind, String), (i64, Value)>;

/// What a transaction does to a document.
type Written = (DocKind, String, Option<Value>);

/// A primary store and log in memory.
#[derive(Debug, Default)]
struct World {
    sequence: u64,
    stamp: i64,
    documents: Present,
    log: VecDeque<Arc<ChangeRecord>>,
    /// How often the documents have been read.
    scans: usize,
    /// What tells this store from others.
    identity: String,
    /// How far a checkpoint has told that everything is kept.
    kept: u64,
}

fn subtype(kind: DocKind, body: &Value) -> Option<String> {
    let name = match kind {
        DocKind::Case => "type",
        DocKind::Form => "xmlns",
        _ => return None,
    };
    Some(body[name].as_str()?.to_owned())
}

fn changed(kind: DocKind, id: &str, stamp: i64, body: Option<&Value>) -> ChangedDocument {
    ChangedDocument {
        kind,
        id: DocId::new(id).unwrap(),
        stamp: Stamp(stamp),
        document_type: String::new(),
        subtype: body.and_then(|body| subtype(kind, body)),
        body: body.map(|body| Arc::from(RawValue::from_string(body.to_string()).unwrap())),
    }
}

impl World {
    /// One transaction.
    fn commit(&mut self, changes: Vec<Written>) -> Position {
        self.sequence += 1;
        let mut documents = Vec::new();
        for (kind, id, body) in changes {
            self.stamp += 1;
            documents.push(changed(kind, &id, self.stamp, body.as_ref()));
            match body {
                Some(body) => self.documents.insert((kind, id), (self.stamp, body)),
                None => self.documents.remove(&(kind, id)),
            };
        }
        let position = Position { lane: LaneId::FIRST, sequence: Sequence(self.sequence) };
        self.log.push_back(Arc::new(ChangeRecord { position, domain: DomainId::new(DOMAIN).unwrap(), documents }));
        position
    }
}

#[derive(Clone, Debug, Default)]
struct Store(Arc<PlainMutex<World>>);

struct Scan(Frontier, VecDeque<Vec<BootstrapDocument>>);

#[async_trait]
impl BootstrapScan for Scan {
    fn frontier(&self) -> Frontier {
        self.0.clone()
    }
    fn expected(&self) -> u64 {
        0
    }
    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        Ok(self.1.pop_front())
    }
}

struct Tail(Store, u64);

#[async_trait]
impl schemas::port::ChangeSource for Tail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        let next: Vec<_> = {
            let world = self.0.0.lock();
            world.log.iter().filter(|record| record.position.sequence.0 > self.1).take(3).cloned().collect()
        };
        match next.last() {
            Some(last) => {
                let first = next.first().map_or(0, |record| record.position.sequence.0);
                if first != self.1 + 1 {
                    let (wanted, earliest) = (Sequence(self.1 + 1), Sequence(first));
                    return Err(SourceError::Gap { lane: LaneId::FIRST, wanted, earliest });
                }
                self.1 = last.position.sequence.0;
                Ok(SourceEvent::Records(next))
            }
            None => {
                tokio::time::sleep(Duration::from_micros(200)).await;
                Ok(SourceEvent::Idle)
            }
        }
    }
}

#[async_trait]
impl Bootstrap for Store {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        let mut world = self.0.lock();
        world.scans += 1;
        let mut frontier = Frontier::default();
        frontier.advance(Position { lane: LaneId::FIRST, sequence: Sequence(world.sequence) });
        let domain = DomainId::new(DOMAIN).unwrap();
        let documents: Vec<BootstrapDocument> = world
            .documents
            .iter()
            .map(|((kind, id), (stamp, body))| BootstrapDocument {
                domain: domain.clone(),
                document: changed(*kind, id, *stamp, Some(body)),
            })
            .collect();
        Ok(Box::new(Scan(frontier, documents.chunks(7).map(<[_]>::to_vec).collect())))
    }
    async fn changes(&self, from: Frontier) -> Result<Box<dyn schemas::port::ChangeSource>, SourceError> {
        Ok(Box::new(Tail(self.clone(), from.at(LaneId::FIRST).0)))
    }
    async fn identity(&self) -> Result<String, SourceError> {
        Ok(self.0.lock().identity.clone())
    }
    async fn kept(&self, _: &str, frontier: &Frontier) -> Result<(), SourceError> {
        self.0.lock().kept = frontier.at(LaneId::FIRST).0;
        Ok(())
    }
}

/// The related documents of a batch recomputation.
struct All<'a>(&'a Present, i64);

impl All<'_> {
    fn take(&mut self, found: &(i64, Value)) -> Doc {
        self.1 = self.1.max(found.0);
        Doc::from_value(&found.1).unwrap()
    }
}

impl Related for All<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        let list = |body: &Value, name: &str| body[name].as_array().cloned().unwrap_or_default();
        let group = |body: &Value, flag: &str| body[flag] == true && list(body, "users").iter().any(|user| user == key);
        let by_id = |kind| (kind, true);
        let (kind, is_id) = match relation {
            Relation::Document(kind) => by_id(*kind),
            Relation::OtherDocument(doc_type) => by_id(match &**doc_type {
                "Group" => DocKind::Group,
                "WebUser" => DocKind::WebUser,
                "FixtureDataItem" => DocKind::LookupRow,
                "FixtureDataType" => DocKind::LookupTable,
                "Application" => DocKind::Application,
                _ => return Vec::new(),
            }),
            Relation::Subcases => (DocKind::Case, false),
            Relation::FormsOfCase => (DocKind::Form, false),
            Relation::CaseSharingGroups | Relation::ReportingGroups => (DocKind::Group, false),
            Relation::Ledgers => (DocKind::Ledger, false),
        };
        let belongs = |id: &str, body: &Value| match relation {
            _ if is_id => id == key,
            Relation::Subcases => list(body, "indices").iter().any(|index| index["referenced_id"] == key),
            Relation::FormsOfCase => touches(&body["form"], key),
            Relation::CaseSharingGroups => group(body, "case_sharing"),
            Relation::ReportingGroups => group(body, "reporting"),
            _ => body["case_id"] == key,
        };
        let documents = self.0;
        let of_kind = documents.iter().filter(|((of, _), _)| *of == kind);
        let found = of_kind.filter(|((_, id), (_, body))| belongs(id, body));
        found.map(|(_, found)| self.take(found)).collect()
    }
}

/// True if a form has a case block of that id.
fn touches(form: &Value, case_id: &str) -> bool {
    match form {
        Value::Array(items) => items.iter().any(|item| touches(item, case_id)),
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            let blocks = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            if name == "case" {
                blocks.iter().any(|block| block["@case_id"] == case_id)
            } else {
                touches(value, case_id)
            }
        }),
        _ => false,
    }
}

/// The rows of a data source; a document that fails has none.
fn rows_of(source: &DataSource, documents: &Present) -> Vec<Row> {
    rows_at(source, documents, 0)
}

/// The same at an instant.
fn rows_at(source: &DataSource, documents: &Present, now: i64) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((kind, _), (stamp, body)) in documents {
        if *kind != source.kind() {
            continue;
        }
        let doc = Doc::from_value(body).unwrap();
        let mut all = All(documents, *stamp);
        let Ok(made) = source.evaluate(&doc, Stamp(*stamp), now, &mut all) else { continue };
        let column = source.schema().position("inserted_at").unwrap();
        rows.extend(made.into_iter().map(|row| {
            let mut cells = row.to_vec();
            cells[column] = Cell::Datetime(all.1);
            Row::from(cells)
        }));
    }
    rows.sort();
    rows
}

/// What an aggregate's rows are ordered by, where it is not null, and their values.
fn ordered(members: &[Vec<Row>], aggregate: &Aggregate, order_by: ColumnRef) -> Vec<(Cell, Cell)> {
    members
        .iter()
        .filter(|rows| aggregate.filter.as_ref().is_none_or(|filter| filter.passes(rows)))
        .map(|rows| {
            let cell = |column| AggregateView::cell(rows, column).clone();
            (cell(order_by), cell(aggregate.column.unwrap()))
        })
        .filter(|(order, _)| *order != Cell::Null)
        .collect()
}

/// Nested loops over whole tables.
fn groups_of(view: &AggregateView, tables: &dyn Fn(&str) -> Vec<Row>) -> Vec<Row> {
    let mut joined: Vec<Vec<Row>> = tables(&view.sources[0].table).into_iter().map(|row| vec![row]).collect();
    for (join, source) in view.joins.iter().zip(&view.sources[1..]) {
        let right = tables(&source.table);
        let mut next = Vec::new();
        for rows in &joined {
            for row in &right {
                let meets = join.left.iter().zip(&join.right).all(|(left, right)| {
                    let cell = AggregateView::cell(rows, *left);
                    *cell != Cell::Null && *cell == row[*right]
                });
                if meets {
                    next.push(rows.iter().cloned().chain([row.clone()]).collect());
                }
            }
        }
        joined = next;
    }
    joined.retain(|rows| view.filter.as_ref().is_none_or(|filter| filter.passes(rows)));
    let mut groups: BTreeMap<Vec<Cell>, Vec<Vec<Row>>> = BTreeMap::new();
    for rows in joined {
        let key = view.group_by.iter().map(|column| AggregateView::cell(&rows, *column).clone()).collect();
        groups.entry(key).or_default().push(rows);
    }
    groups
        .into_iter()
        .map(|(key, members)| {
            let aggregates = view.aggregates.iter().map(|aggregate| {
                use udf::aggregate_view::Function;
                let values: Vec<Cell> = members
                    .iter()
                    .filter(|rows| aggregate.filter.as_ref().is_none_or(|filter| filter.passes(rows)))
                    .map(|rows| {
                        aggregate.column.map_or(Cell::Bool(true), |column| AggregateView::cell(rows, column).clone())
                    })
                    .filter(|cell| *cell != Cell::Null)
                    .collect();
                let integers = || {
                    values.iter().map(|cell| match cell {
                        Cell::Int(n) => i128::from(*n),
                        Cell::Decimal(n) => *n,
                        _ => 0,
                    })
                };
                match aggregate.function {
                    Function::Count => Cell::Int(values.len() as i64),
                    Function::CountDistinct => {
                        Cell::Int(values.iter().collect::<std::collections::BTreeSet<_>>().len() as i64)
                    }
                    Function::Sum if aggregate.over_integers => Cell::Int(integers().sum::<i128>() as i64),
                    Function::Sum => Cell::Decimal(integers().sum()),
                    Function::Avg if values.is_empty() => Cell::Null,
                    Function::Avg => Cell::Decimal(
                        integers().sum::<i128>() * if aggregate.over_integers { 10i128.pow(16) } else { 1 }
                            / values.len() as i128,
                    ),
                    Function::Min => values.iter().min().cloned().unwrap_or(Cell::Null),
                    Function::Max => values.iter().max().cloned().unwrap_or(Cell::Null),
                    Function::First { order_by } => {
                        let pairs = ordered(&members, aggregate, order_by);
                        let first = pairs.iter().map(|(order, _)| order).min();
                        let together = pairs.iter().filter(|(order, _)| Some(order) == first).map(|(_, value)| value);
                        together.filter(|value| **value != Cell::Null).min().cloned().unwrap_or(Cell::Null)
                    }
                    Function::Last { order_by } => {
                        ordered(&members, aggregate, order_by).into_iter().max().map_or(Cell::Null, |(_, value)| value)
                    }
                    Function::Top { order_by, n, descending } => {
                        let mut pairs = ordered(&members, aggregate, order_by);
                        pairs.retain(|(_, value)| *value != Cell::Null);
                        pairs.sort();
                        if descending {
                            pairs.reverse();
                        }
                        let text = |(_, value)| match value {
                            Cell::Decimal(value) => Cell::Text((value as f64 / 1e16).to_string().into()),
                            Cell::Int(value) => Cell::Text(value.to_string().into()),
                            other => other,
                        };
                        Cell::List(pairs.into_iter().take(n).map(text).collect())
                    }
                }
            });
            key.into_iter().chain(aggregates).collect()
        })
        .collect()
}

fn without(rows: Vec<Row>, column: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = rows
        .into_iter()
        .map(|row| row.iter().enumerate().filter(|(at, _)| *at != column).map(|(_, cell)| cell.clone()).collect())
        .collect();
    rows.sort();
    rows
}

fn content(table: &Table) -> Vec<Row> {
    let mut rows = walk(table, 0, usize::MAX);
    rows.sort();
    rows
}

fn related(id: &Value, of: &str, property: &str) -> Value {
    json!({"type": "related_doc", "related_doc_type": of, "doc_id_expression": id,
        "value_expression": {"type": "property_name", "property_name": property}})
}

fn column(id: &str, datatype: &str, expression: &Value) -> Value {
    json!({"type": "expression", "column_id": id, "datatype": datatype, "expression": expression})
}

fn property(name: &str) -> Value {
    json!({"type": "property_name", "property_name": name})
}

/// Children with their mother's risk and, over two hops, the name of the place of their mother's owner; `extra` makes
/// another version of the definition.
fn children(extra: bool) -> Value {
    let mother = json!({"type": "property_path", "property_path": ["mother_ref"]});
    let owner = related(&mother, "CommCareCase", "owner_id");
    let place = related(&owner, "CommCareUser", "location_id");
    let mut indicators = vec![
        column("mother_risk", "string", &related(&mother, "CommCareCase", "risk")),
        column("place_name", "string", &related(&place, "Location", "name")),
        column("kg", "decimal", &property("kg")),
    ];
    if extra {
        indicators.push(column("owner", "string", &property("owner_id")));
    }
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "children", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": "child"},
        "configured_indicators": indicators})
}

fn mothers() -> Value {
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "mothers", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": "mother"},
        "configured_indicators": [
            column("owner_id", "string", &property("owner_id")),
            column("risk", "string", &property("risk")),
            column("n_groups", "integer", &json!({"type": "reduce_items", "aggregation_fn": "count",
                "items_expression": {"type": "get_case_sharing_groups", "user_id_expression": property("owner_id")}})),
            column("n_children", "integer", &json!({"type": "reduce_items", "aggregation_fn": "count",
                "items_expression": {"type": "get_subcases", "case_id_expression": property("_id")}}))]})
}

/// Mothers at high risk with their stock: told apart by a property of their own, and reading ledgers.
fn at_risk() -> Value {
    let is = |name: &str, value: &str| json!({"type": "boolean_expression", "operator": "eq", "expression": property(name), "property_value": value});
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "at_risk", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "and", "filters": [is("type", "mother"), is("risk", "high")]},
        "configured_indicators": [column("owner_id", "string", &property("owner_id")),
            {"type": "ledger_balances", "column_id": "soh", "display_name": "soh", "ledger_section": "stock",
             "product_codes": ["iron", "folic"], "case_id_expression": property("_id")}]})
}

/// A named expression or filter of the domain.
fn named(definition: &Value) -> Value {
    json!({"doc_type": "UCRExpression", "domain": DOMAIN, "definition": definition})
}

/// Which mothers are watched: those of a risk, or all with an owner.
fn watched(risk: Option<bool>) -> Value {
    let (operator, name, value) = match risk {
        Some(high) => ("eq", "risk", if high { "high" } else { "low" }),
        None => ("not_eq", "owner_id", ""),
    };
    named(
        &json!({"type": "boolean_expression", "operator": operator, "expression": property(name), "property_value": value}),
    )
}

/// How a worker is addressed.
fn address(of: &str) -> Value {
    named(&related(&property("owner_id"), "CommCareUser", of))
}

/// Watched mothers, made with the domain's names at every place; `through` is another name for `address`.
fn watch() -> Value {
    let name = |name: &str| json!({"type": "named", "name": name});
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "watch", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "and", "filters": [
            {"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": "mother"},
            name("watched")]},
        "configured_indicators": [
            column("risk", "string", &property("risk")),
            column("address", "string", &name("through"))]})
}

fn watched_by_address() -> Value {
    json!({"from": {"table": "watch"}, "group_by": [{"column": "address"}],
        "aggregates": [{"function": "count", "as": "n"}, {"function": "max", "column": "risk", "as": "worst"}]})
}

fn simple(table: &str, doc_type: &str, columns: &[(&str, &str)]) -> Value {
    let indicators: Vec<Value> = columns.iter().map(|(id, name)| column(id, "string", &property(name))).collect();
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": table, "referenced_doc_type": doc_type,
        "configured_filter": {}, "configured_indicators": indicators})
}

fn by_place(extra: bool) -> Value {
    let mut aggregates = vec![
        json!({"function": "count", "as": "n"}),
        json!({"function": "count", "as": "n_high", "where": {"column": "m.risk", "operator": "=", "value": "high"}}),
        json!({"function": "sum", "column": "m.n_children", "as": "children"}),
    ];
    if extra {
        aggregates.push(json!({"function": "max", "column": "m.risk", "as": "worst"}));
        aggregates.push(json!({"function": "count_distinct", "column": "m.owner_id", "as": "owners"}));
        aggregates.push(json!({"function": "last", "column": "m.risk", "order_by": "m.owner_id", "as": "last_risk"}));
        aggregates
            .push(json!({"function": "top", "column": "m.doc_id", "order_by": "m.n_children", "n": 2, "as": "most",
            "where": {"column": "m.risk", "operator": "=", "value": "high"}}));
    }
    json!({"from": {"table": "mothers", "as": "m"},
        "joins": [{"table": "workers", "as": "w", "on": {"m.owner_id": "w.user_id"}},
                  {"table": "places", "as": "p", "on": {"w.location_id": "p.place_id"}},
                  {"table": "places", "as": "up", "on": {"p.parent": "up.place_id"}}],
        "group_by": [{"column": "up.name", "as": "place"}], "aggregates": aggregates})
}

fn kilos() -> Value {
    json!({"from": {"table": "children"}, "group_by": [{"column": "mother_risk"}],
        "aggregates": [{"function": "sum", "column": "kg", "as": "kg"}, {"function": "avg", "column": "kg", "as": "mean"},
                       {"function": "min", "column": "kg", "as": "least"},
                       {"function": "first", "column": "kg", "order_by": "place_name", "as": "first_kg"},
                       {"function": "last", "column": "place_name", "order_by": "kg", "as": "heaviest_place"},
                       {"function": "top", "column": "kg", "n": 2, "as": "heaviest"},
                       {"function": "top", "column": "place_name", "order_by": "kg", "n": 3, "descending": false, "as": "light"}]})
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Mother {
        id: u8,
        owner: u8,
        high: bool,
    },
    Child {
        id: u8,
        mother: u8,
        kg: Option<u16>,
    },
    /// A form that changes a mother and a child at once.
    Both {
        mother: u8,
        child: u8,
        high: bool,
    },
    Delete {
        mother: bool,
        id: u8,
    },
    /// What a mother has of iron, or of folic acid; nothing any more.
    Stock {
        mother: u8,
        iron: bool,
        balance: Option<u8>,
    },
    Group {
        id: u8,
        users: Vec<u8>,
        sharing: bool,
    },
    MoveWorker {
        id: u8,
        place: u8,
    },
    MovePlace {
        id: u8,
        parent: u8,
    },
    Children {
        extra: bool,
    },
    ByPlace {
        extra: bool,
    },
    DropKilos,
    PutKilos,
    /// Another meaning of the filter `watched`.
    Watched {
        risk: Option<bool>,
    },
    /// Another meaning of the expression `address`.
    Address {
        id: bool,
    },
    /// Stop, and start again from the newest checkpoint.
    Restart,
    /// Compare with the oracle here.
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..8, 0u8..4, any::<bool>()).prop_map(|(id, owner, high)| Step::Mother { id, owner, high }),
        6 => (0u8..12, 0u8..9, prop::option::of(0u16..50)).prop_map(|(id, mother, kg)| Step::Child { id, mother, kg }),
        4 => (0u8..8, 0u8..12, any::<bool>()).prop_map(|(mother, child, high)| Step::Both { mother, child, high }),
        2 => (any::<bool>(), 0u8..12).prop_map(|(mother, id)| Step::Delete { mother, id }),
        3 => (0u8..8, any::<bool>(), prop::option::of(0u8..9))
            .prop_map(|(mother, iron, balance)| Step::Stock { mother, iron, balance }),
        2 => (0u8..3, prop::collection::vec(0u8..4, 0..3), any::<bool>())
            .prop_map(|(id, users, sharing)| Step::Group { id, users, sharing }),
        2 => (0u8..5, 0u8..6).prop_map(|(id, place)| Step::MoveWorker { id, place }),
        2 => (0u8..6, 0u8..6).prop_map(|(id, parent)| Step::MovePlace { id, parent }),
        1 => any::<bool>().prop_map(|extra| Step::Children { extra }),
        1 => any::<bool>().prop_map(|extra| Step::ByPlace { extra }),
        1 => Just(Step::DropKilos),
        1 => Just(Step::PutKilos),
        1 => prop::option::of(any::<bool>()).prop_map(|risk| Step::Watched { risk }),
        1 => any::<bool>().prop_map(|id| Step::Address { id }),
        1 => Just(Step::Restart),
        3 => Just(Step::Cut),
    ]
}

fn commit(world: &mut World, step: &Step) -> Option<Position> {
    let mother = |id: u8, owner: u8, high: bool| {
        let body = json!({"_id": format!("m{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother",
            "owner_id": format!("w{owner}"), "risk": if high { "high" } else { "low" }, "indices": []});
        (DocKind::Case, format!("m{id}"), Some(body))
    };
    let child = |id: u8, mother: u8, kg: Option<u16>| {
        let body = json!({"_id": format!("c{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "child",
            "owner_id": format!("w{}", id % 4), "mother_ref": format!("m{mother}"), "kg": kg.map(|kg| format!("{}.5", kg)),
            "indices": [{"identifier": "mother", "referenced_type": "mother", "referenced_id": format!("m{mother}"), "relationship": "child"}]});
        (DocKind::Case, format!("c{id}"), Some(body))
    };
    let changes = match step {
        Step::Mother { id, owner, high } => vec![mother(*id, *owner, *high)],
        Step::Child { id, mother, kg } => vec![child(*id, *mother, *kg)],
        Step::Both { mother: m, child: c, high } => vec![mother(*m, c % 4, *high), child(*c, *m, Some(u16::from(*c)))],
        Step::Delete { mother, id } => vec![(DocKind::Case, format!("{}{id}", if *mother { "m" } else { "c" }), None)],
        Step::Stock { mother, iron, balance } => {
            let product = if *iron { "iron" } else { "folic" };
            let id = format!("m{mother}/stock/{product}");
            let body = balance.map(|balance| {
                json!({"_id": id, "domain": DOMAIN, "doc_type": "LedgerValue", "case_id": format!("m{mother}"),
                    "section_id": "stock", "entry_id": product, "product_code": product, "balance": balance})
            });
            vec![(DocKind::Ledger, id, body)]
        }
        Step::Group { id, users, sharing } => {
            let users: Vec<String> = users.iter().map(|id| format!("w{id}")).collect();
            let body = json!({"_id": format!("g{id}"), "domain": DOMAIN, "doc_type": "Group", "name": "G",
                "case_sharing": sharing, "reporting": false, "users": users});
            vec![(DocKind::Group, format!("g{id}"), Some(body))]
        }
        Step::MoveWorker { id, place } => vec![(
            DocKind::User,
            format!("w{id}"),
            Some(json!({"_id": format!("w{id}"),
            "domain": DOMAIN, "doc_type": "CommCareUser", "location_id": format!("p{place}")})),
        )],
        Step::MovePlace { id, parent } => vec![(
            DocKind::Location,
            format!("p{id}"),
            Some(json!({"_id": format!("p{id}"),
            "domain": DOMAIN, "doc_type": "Location", "name": format!("Place {}", id % 4), "parent_id": format!("p{parent}")})),
        )],
        Step::Children { extra } => vec![(DocKind::DataSource, "children".to_owned(), Some(children(*extra)))],
        Step::ByPlace { extra } => vec![(DocKind::AggregateView, "by_place".to_owned(), Some(by_place(*extra)))],
        Step::DropKilos => vec![(DocKind::AggregateView, "kilos".to_owned(), None)],
        Step::PutKilos => vec![(DocKind::AggregateView, "kilos".to_owned(), Some(kilos()))],
        Step::Watched { risk } => vec![(DocKind::NamedFilter, "watched".to_owned(), Some(watched(*risk)))],
        Step::Address { id } => {
            let of = if *id { "_id" } else { "location_id" };
            vec![(DocKind::NamedExpression, "address".to_owned(), Some(address(of)))]
        }
        Step::Cut | Step::Restart => return None,
    };
    Some(world.commit(changes))
}

fn compare(world: &World, snapshot: &Snapshot) {
    compare_domain(&world.documents, &snapshot.domains[&DomainId::new(DOMAIN).unwrap()]);
}

/// Compares every table of a domain with what its documents and definitions make of it.
fn compare_domain(documents: &Present, domain: &DomainTables) {
    let tables = &domain.tables;
    let mut names = Registry::default();
    for ((kind, id), (_, body)) in documents {
        if let Some(kind) = NameKind::of(*kind) {
            names.put(kind, id, body);
        }
    }
    let definitions = |of| {
        let of_kind = documents.iter().filter(move |((kind, _), _)| *kind == of);
        of_kind.map(|((_, id), (_, body))| (id.as_str(), body))
    };
    let sources: BTreeMap<&str, DataSource> = definitions(DocKind::DataSource)
        .filter_map(|(id, body)| Some((id, DataSource::compile_in(body, &names).ok()?)))
        .collect();
    let rows: BTreeMap<&str, Vec<Row>> = sources.iter().map(|(id, source)| (*id, rows_of(source, documents))).collect();
    for (id, source) in &sources {
        let table = tables.get(&TableName::new("ucr", id)).unwrap();
        assert_eq!(content(table), rows[id], "{id}");
        assert!(tables.get(&TableName::new("ucr", source.table_name())).is_some(), "{id} has its full name too");
    }
    for (id, document) in definitions(DocKind::AggregateView) {
        let schemas = |table: &str| sources.get(table).map(|source| Arc::new(TableSchema::clone(source.schema())));
        let view = AggregateView::compile(document, &schemas).unwrap();
        let mut expected = groups_of(&view, &|table| rows[table].clone());
        expected.sort();
        let table = tables.get(&TableName::new("views", id)).unwrap();
        assert_eq!(without(content(table), view.group_by.len()), expected, "{id}");
    }
    for name in tables.names().filter(|name| &*name.schema == "views") {
        let is_defined = documents.contains_key(&(DocKind::AggregateView, name.name.to_string()));
        assert!(is_defined, "{name} was dropped");
    }
    for (table, kind) in DOCUMENT_TABLES {
        let count = documents.keys().filter(|(of, _)| *of == kind).count();
        assert_eq!(tables.get(&TableName::new("system", table)).unwrap().live_rows, count, "{table}");
    }
}

async fn settled(dataflow: &Dataflow, position: Position) -> Arc<Snapshot> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let snapshot =
            dataflow.wait_for(&DomainId::new(DOMAIN).unwrap(), position, Duration::from_secs(30)).await.unwrap();
        let domain = DomainId::new(DOMAIN).unwrap();
        let views = &snapshot.domains[&domain].views;
        if views.iter().all(|view| view.state == ViewState::Live) {
            return snapshot;
        }
        assert!(Instant::now() < deadline, "views did not become live: {views:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// With checkpoints, if there is a place for them, as often as can be.
fn config(workers: i64) -> DataflowConfig {
    DataflowConfig {
        queue: 4,
        workers: workers.try_into().unwrap(),
        checkpoint_interval_ms: 1,
        ..DataflowConfig::default()
    }
}

/// Follows the steps with one worker, with two and with three.
fn history(steps: &[Step]) {
    (1..=3).for_each(|workers| followed(steps, workers));
}

fn followed(steps: &[Step], mut workers: i64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::default();
        let mut last = {
            let mut world = store.0.lock();
            let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
            let name = |id: &str, body| (DocKind::NamedExpression, id.to_owned(), Some(body));
            let place = |id: &str, body| (DocKind::AggregateView, id.to_owned(), Some(body));
            world.commit(vec![
                place("by_place", by_place(false)),
                source("children", children(false)),
                source("mothers", mothers()),
                source("at_risk", at_risk()),
                source(
                    "workers",
                    simple("workers", "CommCareUser", &[("user_id", "_id"), ("location_id", "location_id")]),
                ),
                source(
                    "places",
                    simple("places", "Location", &[("place_id", "_id"), ("name", "name"), ("parent", "parent_id")]),
                ),
                place("kilos", kilos()),
                source("watch", watch()),
                place("watched_by_address", watched_by_address()),
                name("through", named(&json!({"type": "named", "name": "address"}))),
                name("address", address("_id")),
                (DocKind::NamedFilter, "watched".to_owned(), Some(watched(Some(true)))),
            ])
        };
        let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
        let (start, rest) = steps.split_at(steps.len() / 3);
        for step in start {
            last = commit(&mut store.0.lock(), step).unwrap_or(last);
        }
        // The first third is found by the scan, the rest comes through the log.
        let blobs = Blobs::default();
        let start = |workers| {
            let (store, blobs, clock) = (store.clone(), blobs.clone(), Arc::clone(&clock));
            Dataflow::start(config(workers), Arc::new(store), Some(Arc::new(blobs)), clock)
        };
        let mut dataflow = start(workers);
        for step in rest {
            if matches!(step, Step::Restart) {
                // With another number of workers.
                dataflow.shutdown().await;
                workers = workers % 3 + 1;
                dataflow = start(workers);
                continue;
            }
            let committed = commit(&mut store.0.lock(), step);
            match committed {
                Some(position) => last = position,
                None => {
                    let world = store.0.clone();
                    let snapshot = settled(&dataflow, last).await;
                    compare(&world.lock(), &snapshot);
                    let documents = world.lock().documents.clone();
                    inside::compare(&documents, &dataflow).await;
                }
            }
        }
        let snapshot = settled(&dataflow, last).await;
        compare(&store.0.lock(), &snapshot);
        dataflow.shutdown().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 60, ..ProptestConfig::default() })]
    #[test]
    fn live_tables_equal_a_batch_recomputation(steps in prop::collection::vec(step(), 1..60)) {
        history(&steps);
    }
}

#[test]
fn a_plain_history_is_followed() {
    history(&[
        Step::Mother { id: 1, owner: 1, high: true },
        Step::Child { id: 1, mother: 1, kg: Some(3) },
        Step::MoveWorker { id: 1, place: 2 },
        Step::MovePlace { id: 2, parent: 3 },
        Step::MovePlace { id: 3, parent: 3 },
        Step::Cut,
        Step::Stock { mother: 1, iron: true, balance: Some(5) },
        Step::Group { id: 0, users: vec![1, 2], sharing: true },
        Step::Cut,
        Step::Group { id: 0, users: vec![2], sharing: true },
        Step::Cut,
        Step::Restart,
        Step::Mother { id: 1, owner: 1, high: false },
        Step::Cut,
        Step::Stock { mother: 1, iron: true, balance: None },
        Step::Mother { id: 1, owner: 2, high: true },
        Step::Cut,
        Step::Both { mother: 1, child: 2, high: true },
        Step::Children { extra: true },
        Step::Cut,
        Step::ByPlace { extra: true },
        Step::DropKilos,
        Step::Delete { mother: true, id: 1 },
        Step::Cut,
        Step::Mother { id: 2, owner: 2, high: false },
        Step::Watched { risk: Some(false) },
        Step::Address { id: false },
        Step::Cut,
    ]);
}

/// The state of a view and the tick in which its table last changed.
fn view(snapshot: &Snapshot, id: &str) -> (ViewState, Option<Tick>) {
    let tables = &snapshot.domains[&DomainId::new(DOMAIN).unwrap()];
    let view = tables.views.iter().find(|view| view.id == id).unwrap();
    (view.state.clone(), tables.tables.get(&TableName::new("ucr", id)).map(|table| table.changed_at))
}

#[tokio::test]
async fn a_changed_name_concerns_those_who_use_it() {
    let store = Store::default();
    let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
    let name = |id: &str, body: Option<Value>| (DocKind::NamedExpression, id.to_owned(), body);
    let filter = |body: Option<Value>| (DocKind::NamedFilter, "watched".to_owned(), body);
    let commit = |changes| store.0.lock().commit(changes);
    commit(vec![source("watch", watch()), source("mothers", mothers())]);
    commit(vec![
        (
            DocKind::Case,
            "m".to_owned(),
            Some(json!({"_id": "m", "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother", "risk": "high",
                "owner_id": "w"})),
        ),
        (
            DocKind::User,
            "w".to_owned(),
            Some(json!({"_id": "w", "domain": DOMAIN, "doc_type": "CommCareUser", "name": "Asha", "code": "A1"})),
        ),
    ]);
    let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
    let dataflow = Dataflow::start(config(1), Arc::new(store.clone()), None, clock);
    let failed = |position| {
        let dataflow = Arc::clone(&dataflow);
        async move {
            let snapshot =
                dataflow.wait_for(&DomainId::new(DOMAIN).unwrap(), position, Duration::from_secs(3)).await.unwrap();
            match view(&snapshot, "watch").0 {
                ViewState::Failed { message } => message,
                other => panic!("{other:?}"),
            }
        }
    };
    // A definition waits for names that are not there.
    let position = commit(vec![name("address", Some(address("name")))]);
    assert!(failed(position).await.contains("there is no named filter `watched`"));
    let position = commit(vec![
        name("through", Some(named(&json!({"type": "named", "name": "address"})))),
        filter(Some(watched(None))),
    ]);
    let snapshot = settled(&dataflow, position).await;
    compare(&store.0.lock(), &snapshot);
    let others = view(&snapshot, "mothers");

    // A change further down is one of all who use it, and of no others.
    let position = commit(vec![name("address", Some(address("code")))]);
    let snapshot = settled(&dataflow, position).await;
    compare(&store.0.lock(), &snapshot);
    let rows =
        content(snapshot.domains[&DomainId::new(DOMAIN).unwrap()].tables.get(&TableName::new("ucr", "watch")).unwrap());
    assert_eq!(rows[0].last(), Some(&Cell::Text("A1".into())));
    assert_eq!(view(&snapshot, "mothers"), others);
    let position = commit(vec![name("unused", Some(address("name")))]);
    let after = settled(&dataflow, position).await;
    assert_eq!(view(&after, "watch"), view(&snapshot, "watch"));

    // A name that goes away leaves the table as it was, and the view says why.
    let position = commit(vec![name("address", None)]);
    let message = failed(position).await;
    assert!(message.contains("named expression `through` of the domain is not valid"), "{message}");
    let left = dataflow.snapshot();
    let table =
        left.domains[&DomainId::new(DOMAIN).unwrap()].tables.get(&TableName::new("ucr", "watch")).unwrap().live_rows;
    assert_eq!(table, 1);
    let position = commit(vec![name("address", Some(address("name")))]);
    let snapshot = settled(&dataflow, position).await;
    compare(&store.0.lock(), &snapshot);
    dataflow.shutdown().await;
}

#[tokio::test]
async fn what_changes_while_a_row_stops_reading_it_is_not_remembered() {
    for workers in 1..=3 {
        let store = Store::default();
        store.0.lock().commit(vec![(DocKind::DataSource, "mothers".to_owned(), Some(mothers()))]);
        let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
        let dataflow = Dataflow::start(config(workers), Arc::new(store.clone()), None, clock);
        let mother = |owner: &str| {
            let body =
                json!({"_id": "m", "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother", "owner_id": owner});
            (DocKind::Case, "m".to_owned(), Some(body))
        };
        let group = |users: &[&str]| {
            let body = json!({"_id": "g", "domain": DOMAIN, "doc_type": "Group", "case_sharing": true, "users": users});
            (DocKind::Group, "g".to_owned(), Some(body))
        };
        let transactions = [
            vec![mother("asha")],
            // Asha's groups change in the very tick in which the mother is no longer hers.
            vec![mother("bina"), group(&["asha"])],
            vec![group(&[])],
            vec![mother("asha")],
        ];
        for changes in transactions {
            let position = store.0.lock().commit(changes);
            let snapshot = settled(&dataflow, position).await;
            compare(&store.0.lock(), &snapshot);
        }
        dataflow.shutdown().await;
    }
}

/// A clock that fails once when it is told to, and with it the thread that asks it.
#[derive(Debug, Default)]
struct Fragile(AtomicBool);

impl Clock for Fragile {
    fn now_micros(&self) -> i64 {
        assert!(!self.0.swap(false, Ordering::Relaxed), "the clock fails");
        1_000_000
    }
}

/// A store whose log is cut off once when it is told to.
#[derive(Clone, Debug, Default)]
struct Trimmed {
    store: Store,
    cut: Arc<AtomicBool>,
}

struct TrimmedTail(Box<dyn schemas::port::ChangeSource>, Arc<AtomicBool>);

#[async_trait]
impl schemas::port::ChangeSource for TrimmedTail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        if self.1.swap(false, Ordering::Relaxed) {
            return Err(SourceError::Gap { lane: LaneId::FIRST, wanted: Sequence(1), earliest: Sequence(2) });
        }
        self.0.next().await
    }
}

#[async_trait]
impl Bootstrap for Trimmed {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        self.store.scan().await
    }
    async fn changes(&self, from: Frontier) -> Result<Box<dyn schemas::port::ChangeSource>, SourceError> {
        Ok(Box::new(TrimmedTail(self.store.changes(from).await?, Arc::clone(&self.cut))))
    }
    async fn identity(&self) -> Result<String, SourceError> {
        self.store.identity().await
    }
    async fn kept(&self, reader: &str, frontier: &Frontier) -> Result<(), SourceError> {
        self.store.kept(reader, frontier).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_share_the_documents_fail_together_and_stop() {
    let store = Trimmed::default();
    let clock = Arc::new(Fragile::default());
    let mother = |id| Step::Mother { id, owner: 1, high: true };
    let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
    let put = |step: &Step| commit(&mut store.store.0.lock(), step).unwrap();
    store.store.0.lock().commit(vec![source("mothers", mothers()), source("children", children(false))]);
    let mut last = put(&mother(0));
    let dataflow = Dataflow::start(config(2), Arc::new(store.clone()), None, Arc::<Fragile>::clone(&clock));
    for id in 1..30 {
        last = put(&mother(id));
    }
    let snapshot = settled(&dataflow, last).await;
    compare(&store.store.0.lock(), &snapshot);
    let records = dataflow.worker_records();
    assert!(records.len() == 2 && records.iter().all(|count| *count > 0), "{records:?}");
    assert_eq!(records.iter().sum::<u64>(), 30);

    for (failure, id) in [(&clock.0, 1), (&*store.cut, 2)] {
        let scans = store.store.0.lock().scans;
        failure.store(true, Ordering::Relaxed);
        let built_anew = async {
            while store.store.0.lock().scans == scans {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), built_anew).await.expect("the workers did not end");
        last = put(&Step::Child { id, mother: 1, kg: Some(3) });
        let snapshot = settled(&dataflow, last).await;
        compare(&store.store.0.lock(), &snapshot);
    }
    tokio::time::timeout(Duration::from_secs(60), dataflow.shutdown()).await.expect("the workers did not end");
}
