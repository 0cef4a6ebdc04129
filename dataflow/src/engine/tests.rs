//! Random histories through the real engine, compared with a batch recomputation at every cut.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicI64, Ordering},
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
    table::{Table, TableName, ViewState},
};
use serde_json::{Value, json, value::RawValue};
use udf::{DataSource, NameKind, Registry, Related, Relation, aggregate_view::AggregateView};

use super::*;
use crate::table::walk;

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

/// A primary store and log in memory.
#[derive(Debug, Default)]
struct World {
    sequence: u64,
    stamp: i64,
    /// Present documents: kind and id to stamp and body.
    documents: BTreeMap<(DocKind, String), (i64, Value)>,
    log: VecDeque<Arc<ChangeRecord>>,
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
    fn commit(&mut self, changes: Vec<(DocKind, String, Option<Value>)>) -> Position {
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
        let world = self.0.lock();
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
}

/// The related documents of a batch recomputation.
struct All<'a>(&'a BTreeMap<(DocKind, String), (i64, Value)>, i64);

impl All<'_> {
    fn take(&mut self, found: &(i64, Value)) -> Doc {
        self.1 = self.1.max(found.0);
        Doc::from_value(&found.1).unwrap()
    }
}

impl Related for All<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        let documents = self.0;
        match relation {
            Relation::Document(kind) => {
                documents.get(&(*kind, key.to_owned())).into_iter().map(|found| self.take(found)).collect()
            }
            Relation::Subcases => documents
                .iter()
                .filter(|((kind, _), (_, body))| {
                    *kind == DocKind::Case
                        && body["indices"].as_array().into_iter().flatten().any(|index| index["referenced_id"] == key)
                })
                .map(|(_, found)| self.take(found))
                .collect(),
            Relation::CaseSharingGroups => documents
                .iter()
                .filter(|((kind, _), (_, body))| {
                    *kind == DocKind::Group
                        && body["case_sharing"] == true
                        && body["users"].as_array().into_iter().flatten().any(|user| user == key)
                })
                .map(|(_, found)| self.take(found))
                .collect(),
            Relation::Ledgers => documents
                .iter()
                .filter(|((kind, _), (_, body))| *kind == DocKind::Ledger && body["case_id"] == key)
                .map(|(_, found)| self.take(found))
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn rows_of(source: &DataSource, world: &World) -> Vec<Row> {
    rows_at(source, world, 0)
}

/// The rows of a data source, computed from scratch at an instant; documents that fail have none.
fn rows_at(source: &DataSource, world: &World, now: i64) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((kind, _), (stamp, body)) in &world.documents {
        if *kind != source.kind() {
            continue;
        }
        let doc = Doc::from_value(body).unwrap();
        let mut all = All(&world.documents, *stamp);
        let made = source.evaluate(&doc, Stamp(*stamp), now, &mut all).unwrap_or_default();
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
                       {"function": "min", "column": "kg", "as": "least"}]})
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
        Step::Cut => return None,
    };
    Some(world.commit(changes))
}

fn compare(world: &World, snapshot: &Snapshot) {
    let domain = DomainId::new(DOMAIN).unwrap();
    let tables = &snapshot.domains[&domain].tables;
    let definition = |kind, id: &str| world.documents.get(&(kind, id.to_owned())).map(|(_, body)| body.clone());
    let mut names = Registry::default();
    for ((kind, id), (_, body)) in &world.documents {
        if let Some(kind) = NameKind::of(*kind) {
            names.put(kind, id, body);
        }
    }
    let compiled = |id: &str| DataSource::compile_in(&definition(DocKind::DataSource, id)?, &names).ok();
    let sources: BTreeMap<String, DataSource> = ["children", "mothers", "at_risk", "workers", "places", "watch"]
        .into_iter()
        .filter_map(|id| Some((id.to_owned(), compiled(id)?)))
        .collect();
    for (id, source) in &sources {
        let table = tables.get(&TableName::new("ucr", id)).unwrap();
        assert_eq!(content(table), rows_of(source, world), "{id}");
        assert!(tables.get(&TableName::new("ucr", source.table_name())).is_some(), "{id} has its full name too");
    }
    for id in ["by_place", "kilos", "watched_by_address"] {
        let name = TableName::new("views", id);
        let Some(document) = definition(DocKind::AggregateView, id) else {
            assert!(tables.get(&name).is_none(), "{id} was dropped");
            continue;
        };
        let schemas = |table: &str| sources.get(table).map(|source| Arc::new(TableSchema::clone(source.schema())));
        let view = AggregateView::compile(&document, &schemas).unwrap();
        let expected = groups_of(&view, &|table| rows_of(&sources[table], world));
        let mut expected: Vec<Row> = expected;
        expected.sort();
        assert_eq!(without(content(tables.get(&name).unwrap()), view.group_by.len()), expected, "{id}");
    }
    let cases = world.documents.keys().filter(|(kind, _)| *kind == DocKind::Case).count();
    assert_eq!(tables.get(&TableName::new("system", "case_documents")).unwrap().live_rows, cases);
}

async fn settled(dataflow: &Dataflow, position: Position) -> Arc<Snapshot> {
    let deadline = std::time::Instant::now() + Duration::from_secs(3);
    loop {
        let snapshot = dataflow.wait_for(position, Duration::from_secs(3)).await.unwrap();
        let domain = DomainId::new(DOMAIN).unwrap();
        let views = &snapshot.domains[&domain].views;
        if views.iter().all(|view| view.state == ViewState::Live) {
            return snapshot;
        }
        assert!(std::time::Instant::now() < deadline, "views did not become live: {views:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn history(steps: &[Step]) {
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
        let dataflow =
            Dataflow::start(DataflowConfig { queue: 4, ..DataflowConfig::default() }, Arc::new(store.clone()), clock);
        for step in rest {
            let committed = commit(&mut store.0.lock(), step);
            match committed {
                Some(position) => last = position,
                None => {
                    let world = store.0.clone();
                    let snapshot = settled(&dataflow, last).await;
                    compare(&world.lock(), &snapshot);
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
    let dataflow =
        Dataflow::start(DataflowConfig { queue: 4, ..DataflowConfig::default() }, Arc::new(store.clone()), clock);
    let failed = |position| {
        let dataflow = Arc::clone(&dataflow);
        async move {
            let snapshot = dataflow.wait_for(position, Duration::from_secs(3)).await.unwrap();
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
