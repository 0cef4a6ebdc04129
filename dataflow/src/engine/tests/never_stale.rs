//! Never stale: for each way in which a row depends on a document, a change of that document is in the row in the very
//! snapshot that covers the change.
//!
//! Nothing else happens after a change, so a row that has not followed then never will.

use super::*;

/// A dataflow over a few documents, changed one transaction at a time.
struct Live {
    store: Store,
    dataflow: Arc<Dataflow>,
    snapshot: Arc<Snapshot>,
}

impl Live {
    async fn start(definitions: Vec<Written>, documents: Vec<Written>) -> Self {
        let store = Store::default();
        store.0.lock().commit(definitions);
        let position = store.0.lock().commit(documents);
        let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
        let dataflow = Dataflow::start(config(2), Arc::new(store.clone()), None, clock);
        let snapshot = settled(&dataflow, position).await;
        compare(&store.0.lock(), &snapshot);
        Self { store, dataflow, snapshot }
    }

    /// One transaction; from now on the first snapshot that covers it is looked at.
    async fn change(&mut self, documents: impl IntoIterator<Item = Written>) {
        let position = self.store.0.lock().commit(documents.into_iter().collect());
        self.snapshot = self.dataflow.wait_for(position, Duration::from_secs(10)).await.unwrap();
        compare(&self.store.0.lock(), &self.snapshot);
    }

    /// One transaction of definitions; from now on the snapshot is looked at in which every view is live again.
    async fn define(&mut self, definitions: impl IntoIterator<Item = Written>) {
        let position = self.store.0.lock().commit(definitions.into_iter().collect());
        self.snapshot = settled(&self.dataflow, position).await;
        compare(&self.store.0.lock(), &self.snapshot);
    }

    fn table(&self, schema: &str, name: &str) -> &Arc<Table> {
        let domain = &self.snapshot.domains[&DomainId::new(DOMAIN).unwrap()];
        domain.tables.get(&TableName::new(schema, name)).unwrap()
    }

    /// The table's rows: those columns, without what only the engine knows.
    fn rows(&self, schema: &str, name: &str, columns: &[&str]) -> Vec<String> {
        let table = self.table(schema, name);
        let at: Vec<usize> = columns.iter().map(|column| table.schema.position(column).unwrap()).collect();
        let mut rows: Vec<String> = walk(table, 0, usize::MAX)
            .iter()
            .map(|row| at.iter().map(|column| shown(&row[*column])).collect::<Vec<_>>().join(" "))
            .collect();
        rows.sort();
        rows
    }

    /// Says which rows a data source has: the document's id, then a column.
    fn shows(&self, table: &str, column: &str, expected: &[&str]) {
        assert_eq!(self.rows("ucr", table, &["doc_id", column]), expected, "{table}.{column}");
    }

    fn groups(&self, view: &str, columns: &[&str], expected: &[&str]) {
        assert_eq!(self.rows("views", view, columns), expected, "{view}");
    }
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Null => "-".to_owned(),
        Cell::Text(text) => text.to_string(),
        Cell::Int(number) => number.to_string(),
        Cell::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(",")),
        other => format!("{other:?}"),
    }
}

fn doc(kind: DocKind, id: &str, body: &Value) -> Written {
    let doc_type = match kind {
        DocKind::Case => "CommCareCase",
        DocKind::Form => "XFormInstance",
        DocKind::User => "CommCareUser",
        DocKind::WebUser => "WebUser",
        DocKind::Location => "Location",
        DocKind::Group => "Group",
        DocKind::LookupTable => "FixtureDataType",
        DocKind::LookupRow => "FixtureDataItem",
        DocKind::Application => "Application",
        _ => "LedgerValue",
    };
    let mut whole = json!({"_id": id, "domain": DOMAIN, "doc_type": doc_type});
    for (name, value) in body.as_object().unwrap() {
        whole[name] = value.clone();
    }
    (kind, id.to_owned(), Some(whole))
}

fn case(id: &str, case_type: &str, body: Value) -> Written {
    let mut body = body;
    body["type"] = json!(case_type);
    doc(DocKind::Case, id, &body)
}

fn gone(kind: DocKind, id: &str) -> Written {
    (kind, id.to_owned(), None)
}

/// A data source over the documents of a type (and, of cases, of a case type).
fn source(id: &str, doc_type: &str, case_type: Option<&str>, columns: Vec<Value>) -> Written {
    let filter = case_type.map(|case_type| {
        json!({"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": case_type})
    });
    let mut body = json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": id,
        "referenced_doc_type": doc_type, "configured_filter": filter.unwrap_or_else(|| json!({}))});
    body["configured_indicators"] = columns.into();
    (DocKind::DataSource, id.to_owned(), Some(body))
}

fn view(id: &str, body: Value) -> Written {
    (DocKind::AggregateView, id.to_owned(), Some(body))
}

fn indexed(index: &str) -> Value {
    json!({"type": "indexed_case", "case_expression": {"type": "identity"}, "index": index})
}

/// An expression on what another one gives.
fn of(argument: Value, value: Value) -> Value {
    let mut nested = json!({"type": "nested"});
    (nested["argument_expression"], nested["value_expression"]) = (argument, value);
    nested
}

/// A property of each item of a list.
fn each(items: Value, name: &str) -> Value {
    let mut mapped = json!({"type": "map_items", "map_expression": property(name)});
    mapped["items_expression"] = items;
    mapped
}

fn index(identifier: &str, to: &str, relationship: &str) -> Value {
    json!([{"identifier": identifier, "referenced_type": "x", "referenced_id": to, "relationship": relationship}])
}

fn place(id: &str, name: &str, place_type: &str, parent: &str) -> Written {
    doc(DocKind::Location, id, &json!({"name": name, "location_type": place_type, "parent_location_id": parent}))
}

fn worker(id: &str, place: &str) -> Written {
    doc(DocKind::User, id, &json!({"location_id": place, "name": id}))
}

#[tokio::test]
async fn owners_and_every_level_of_the_places_above_them() {
    let village = || related(&property("owner_id"), "CommCareUser", "location_id");
    let above = |place_type: &str| {
        json!({"type": "ancestor_location", "location_id": village(), "location_type": place_type,
            "location_property": "name"})
    };
    let columns = vec![
        column("village", "string", &related(&village(), "Location", "name")),
        column("block", "string", &above("block")),
        column("district", "string", &above("district")),
        column("kind", "string", &json!({"type": "location_type_name", "location_id_expression": village()})),
        column("parent", "string", &json!({"type": "location_parent_id", "location_id_expression": village()})),
    ];
    let names = ["doc_id", "village", "block", "district", "kind", "parent"];
    let mut live = Live::start(
        vec![source("homes", "CommCareCase", Some("home"), columns)],
        vec![
            place("d1", "North", "district", ""),
            place("d2", "South", "district", ""),
            place("b1", "Hill", "block", "d1"),
            place("b2", "Dale", "block", "d2"),
            place("v1", "Oak", "village", "b1"),
            place("v2", "Elm", "village", "b2"),
            worker("w1", "v1"),
            case("h", "home", json!({"owner_id": "w1"})),
        ],
    )
    .await;
    let shows = |live: &Live, expected: &str| assert_eq!(live.rows("ucr", "homes", &names), [expected]);
    shows(&live, "h Oak Hill North village b1");
    live.change([worker("w1", "v2")]).await;
    shows(&live, "h Elm Dale South village b2");
    live.change([place("v2", "Elm", "village", "b1")]).await;
    shows(&live, "h Elm Hill North village b1");
    live.change([place("b1", "Hill", "block", "d2")]).await;
    shows(&live, "h Elm Hill South village b1");
    live.change([place("d2", "Far South", "district", "")]).await;
    shows(&live, "h Elm Hill Far South village b1");
    live.change([place("b1", "Hill", "zone", "d2"), place("v2", "Elm", "hamlet", "b1")]).await;
    shows(&live, "h Elm - Far South hamlet b1");
    live.change([place("b1", "Hill", "block", "x")]).await;
    shows(&live, "h Elm Hill - hamlet b1");
    live.change([place("x", "New", "district", "")]).await;
    shows(&live, "h Elm Hill New hamlet b1");
    live.change([gone(DocKind::Location, "b1")]).await;
    shows(&live, "h Elm - - hamlet b1");
    live.change([case("h", "home", json!({"owner_id": "w2"}))]).await;
    shows(&live, "h - - - - -");
    live.change([worker("w2", "v1"), place("b1", "Hill", "block", "d1")]).await;
    shows(&live, "h Oak Hill North village b1");
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn a_parent_case_that_changes_comes_late_goes_and_comes_back() {
    let mother = |id: &str| json!({"risk": "high", "owner_id": "w", "indices": [], "name": id});
    let child = |to: &str| case("c", "child", json!({"indices": index("mother", to, "child")}));
    let columns = vec![column("risk", "string", &of(indexed("mother"), property("risk")))];
    let mut live =
        Live::start(vec![source("children", "CommCareCase", Some("child"), columns)], vec![child("m1")]).await;
    live.shows("children", "risk", &["c -"]);
    live.change([case("m1", "mother", mother("m1"))]).await;
    live.shows("children", "risk", &["c high"]);
    live.change([case("m1", "mother", json!({"risk": "low"}))]).await;
    live.shows("children", "risk", &["c low"]);
    live.change([gone(DocKind::Case, "m1")]).await;
    live.shows("children", "risk", &["c -"]);
    live.change([case("m1", "mother", json!({"risk": "again"}))]).await;
    live.shows("children", "risk", &["c again"]);
    live.change([case("m2", "mother", json!({"risk": "other"}))]).await;
    live.change([child("m2")]).await;
    live.shows("children", "risk", &["c other"]);
    live.change([case("m1", "mother", json!({"risk": "unread"}))]).await;
    live.shows("children", "risk", &["c other"]);
    live.change([case("c", "child", json!({"indices": []}))]).await;
    live.shows("children", "risk", &["c -"]);
    live.change([child("m1")]).await;
    live.shows("children", "risk", &["c unread"]);
    live.dataflow.shutdown().await;
}

/// A parent that changes in the transaction in which its child leaves it is not asked for any more when it is told about;
/// nothing of it may be left when the child comes back.
#[tokio::test]
async fn a_parent_that_was_left_and_went_away_meanwhile_is_gone() {
    let mother = |id: &str, risk: &str| case(id, "mother", json!({"risk": risk, "indices": []}));
    let child = |to: &str| case("c", "child", json!({"indices": index("mother", to, "child")}));
    let columns = vec![column("risk", "string", &of(indexed("mother"), property("risk")))];
    let mut live = Live::start(
        vec![source("children", "CommCareCase", Some("child"), columns)],
        vec![mother("m1", "one"), mother("m2", "two"), child("m1")],
    )
    .await;
    live.change([mother("m1", "changed"), child("m2")]).await;
    live.shows("children", "risk", &["c two"]);
    live.change([gone(DocKind::Case, "m1")]).await;
    live.change([child("m1")]).await;
    live.shows("children", "risk", &["c -"]);
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn a_subcase_that_was_left_and_went_elsewhere_meanwhile_is_gone() {
    let children = |id: Value| json!({"type": "get_subcases", "case_id_expression": id});
    let columns = vec![column("names", "array", &each(children(property("watches")), "name"))];
    let child =
        |name: &str, to: &str| case("c", "child", json!({"name": name, "indices": index("mother", to, "child")}));
    let watcher = |of: &str| case("w", "watcher", json!({"watches": of, "indices": []}));
    let mut live = Live::start(
        vec![source("watchers", "CommCareCase", Some("watcher"), columns)],
        vec![child("Ana", "m1"), watcher("m1")],
    )
    .await;
    live.shows("watchers", "names", &["w [Ana]"]);
    live.change([child("Bea", "m1"), watcher("m2")]).await;
    live.shows("watchers", "names", &["w []"]);
    live.change([child("Bea", "m3")]).await;
    live.change([watcher("m1")]).await;
    live.shows("watchers", "names", &["w []"]);
    live.change([watcher("m3")]).await;
    live.shows("watchers", "names", &["w [Bea]"]);
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn hosts_and_grandparents_over_two_hops() {
    let columns = vec![
        column("host", "string", &of(indexed("host"), property("status"))),
        column("village", "string", &of(indexed("host"), of(indexed("parent"), property("village")))),
    ];
    let names = ["doc_id", "host", "village"];
    let host = |status: &str, to: &str| {
        case("h", "patient", json!({"status": status, "indices": index("parent", to, "child")}))
    };
    let house = |id: &str, village: &str| case(id, "house", json!({"village": village, "indices": []}));
    let referral = |to: &str| case("r", "referral", json!({"indices": index("host", to, "extension")}));
    let mut live = Live::start(
        vec![source("referrals", "CommCareCase", Some("referral"), columns)],
        vec![referral("h"), host("ill", "g1"), house("g1", "Oak")],
    )
    .await;
    let shows = |live: &Live, expected: &str| assert_eq!(live.rows("ucr", "referrals", &names), [expected]);
    shows(&live, "r ill Oak");
    live.change([host("well", "g1")]).await;
    shows(&live, "r well Oak");
    live.change([house("g1", "Elm")]).await;
    shows(&live, "r well Elm");
    live.change([host("well", "g2")]).await;
    shows(&live, "r well -");
    live.change([house("g2", "Ash")]).await;
    shows(&live, "r well Ash");
    live.change([gone(DocKind::Case, "h")]).await;
    shows(&live, "r - -");
    live.change([house("g2", "Fir"), host("back", "g2")]).await;
    shows(&live, "r back Fir");
    live.change([referral("none")]).await;
    shows(&live, "r - -");
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn subcases_that_come_change_and_leave() {
    let children = || json!({"type": "get_subcases", "case_id_expression": property("_id")});
    let is_open = json!({"type": "boolean_expression", "operator": "eq", "expression": property("closed"), "property_value": false});
    let columns = vec![
        column("names", "array", &each(children(), "name")),
        column(
            "n_open",
            "integer",
            &json!({"type": "reduce_items", "aggregation_fn": "count",
            "items_expression": {"type": "filter_items", "items_expression": children(), "filter_expression": is_open}}),
        ),
    ];
    let names = ["doc_id", "names", "n_open"];
    let child =
        |id: &str, name: &str, to: Value| case(id, "child", json!({"name": name, "closed": false, "indices": to}));
    let of_mother = |id: &str, name: &str| child(id, name, index("mother", "m", "child"));
    let mut live = Live::start(
        vec![source("mothers", "CommCareCase", Some("mother"), columns)],
        vec![case("m", "mother", json!({"indices": []}))],
    )
    .await;
    let shows = |live: &Live, expected: &str| assert_eq!(live.rows("ucr", "mothers", &names), [expected]);
    shows(&live, "m [] 0");
    live.change([of_mother("c1", "Ana"), of_mother("c2", "Bea")]).await;
    shows(&live, "m [Ana,Bea] 2");
    live.change([of_mother("c1", "Anna")]).await;
    shows(&live, "m [Anna,Bea] 2");
    let closed = json!({"name": "Bea", "closed": true, "indices": index("mother", "m", "extension")});
    live.change([case("c2", "child", closed)]).await;
    shows(&live, "m [Anna,Bea] 1");
    live.change([child("c1", "Anna", json!([]))]).await;
    shows(&live, "m [Bea] 0");
    live.change([gone(DocKind::Case, "c2")]).await;
    shows(&live, "m [] 0");
    live.change([of_mother("c2", "Bea"), child("c1", "Anna", index("mother", "other", "child"))]).await;
    shows(&live, "m [Bea] 1");
    live.change([gone(DocKind::Case, "m")]).await;
    assert!(live.rows("ucr", "mothers", &names).is_empty());
    live.change([of_mother("c1", "Anna"), case("m", "mother", json!({"indices": []}))]).await;
    shows(&live, "m [Anna,Bea] 2");
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn forms_of_a_case_that_are_sent_edited_moved_and_archived() {
    let forms = || json!({"type": "get_case_forms", "case_id_expression": property("_id")});
    let weight = json!({"type": "map_items", "items_expression": forms(),
        "map_expression": {"type": "property_path", "property_path": ["form", "weight"]}});
    let visits = json!({"type": "get_case_forms", "case_id_expression": property("_id"), "xmlns": ["visit"]});
    let columns = vec![
        column("weights", "array", &weight),
        column("states", "array", &each(forms(), "doc_type")),
        column(
            "n_visits",
            "integer",
            &json!({"type": "reduce_items", "aggregation_fn": "count", "items_expression": visits}),
        ),
    ];
    let names = ["doc_id", "weights", "states", "n_visits"];
    let form = |id: &str, xmlns: &str, weight: &str, cases: Value| {
        doc(DocKind::Form, id, &json!({"xmlns": xmlns, "form": {"weight": weight, "inner": {"case": cases}}}))
    };
    let touching = |case_id: &str| json!({"@case_id": case_id});
    let mut live = Live::start(
        vec![source("cases", "CommCareCase", Some("child"), columns)],
        vec![case("c", "child", json!({"indices": []}))],
    )
    .await;
    let shows = |live: &Live, expected: &str| assert_eq!(live.rows("ucr", "cases", &names), [expected]);
    shows(&live, "c [] [] 0");
    live.change([form("f1", "visit", "3", touching("c"))]).await;
    shows(&live, "c [3] [XFormInstance] 1");
    live.change([form("f2", "other", "4", json!([touching("d"), touching("c")]))]).await;
    shows(&live, "c [3,4] [XFormInstance,XFormInstance] 1");
    live.change([form("f1", "visit", "5", touching("c"))]).await;
    shows(&live, "c [5,4] [XFormInstance,XFormInstance] 1");
    let archived =
        json!({"doc_type": "XFormArchived", "xmlns": "visit", "form": {"weight": "5", "case": touching("c")}});
    live.change([doc(DocKind::Form, "f1", &archived)]).await;
    shows(&live, "c [5,4] [XFormArchived,XFormInstance] 1");
    live.change([form("f2", "visit", "4", touching("d"))]).await;
    shows(&live, "c [5] [XFormArchived] 1");
    live.change([gone(DocKind::Form, "f1"), form("f2", "visit", "4", touching("c"))]).await;
    shows(&live, "c [4] [XFormInstance] 1");
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn stock_of_a_case_and_memberships_of_its_owner() {
    let groups = |of: &str| each(json!({"type": of, "user_id_expression": property("owner_id")}), "name");
    let columns = vec![
        json!({"type": "ledger_balances", "column_id": "soh", "display_name": "soh", "ledger_section": "stock",
            "product_codes": ["iron", "folic"], "case_id_expression": property("_id")}),
        column("sharing", "array", &groups("get_case_sharing_groups")),
        column("reporting", "array", &groups("get_reporting_groups")),
    ];
    let ledger = |case_id: &str, balance: u8| {
        let body = json!({"case_id": case_id, "section_id": "stock", "entry_id": "iron", "product_code": "iron", "balance": balance});
        doc(DocKind::Ledger, "l", &body)
    };
    let group = |id: &str, name: &str, sharing: bool, reporting: bool, users: Value| {
        doc(DocKind::Group, id, &json!({"name": name, "case_sharing": sharing, "reporting": reporting, "users": users}))
    };
    let names = ["doc_id", "soh_iron", "sharing", "reporting"];
    let mut live = Live::start(
        vec![source("stores", "CommCareCase", Some("store"), columns)],
        vec![worker("w1", "v"), case("s", "store", json!({"owner_id": "w1"}))],
    )
    .await;
    let shows = |live: &Live, expected: &str| assert_eq!(live.rows("ucr", "stores", &names), [expected]);
    shows(&live, "s 0 [] []");
    live.change([ledger("s", 5)]).await;
    shows(&live, "s 5 [] []");
    live.change([ledger("s", 4), group("g1", "Red", true, false, json!(["w1", "w2"]))]).await;
    shows(&live, "s 4 [Red] []");
    live.change([ledger("t", 4), group("g1", "Blue", true, true, json!(["w1"]))]).await;
    shows(&live, "s 0 [Blue] [Blue]");
    live.change([group("g2", "Green", false, true, json!(["w2", "w1"]))]).await;
    shows(&live, "s 0 [Blue] [Blue,Green]");
    live.change([group("g1", "Blue", false, true, json!(["w1"]))]).await;
    shows(&live, "s 0 [] [Blue,Green]");
    live.change([group("g1", "Blue", true, true, json!(["w2"]))]).await;
    shows(&live, "s 0 [] [Green]");
    live.change([case("s", "store", json!({"owner_id": "w2"}))]).await;
    shows(&live, "s 0 [Blue] [Blue,Green]");
    live.change([gone(DocKind::Group, "g2"), ledger("s", 1)]).await;
    shows(&live, "s 1 [Blue] [Blue]");
    live.change([gone(DocKind::Ledger, "l")]).await;
    shows(&live, "s 0 [Blue] [Blue]");
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn any_document_that_is_looked_up_by_its_id() {
    let kinds = [
        (DocKind::Case, "CommCareCase"),
        (DocKind::Form, "XFormInstance"),
        (DocKind::User, "CommCareUser"),
        (DocKind::WebUser, "WebUser"),
        (DocKind::Location, "Location"),
        (DocKind::Group, "Group"),
        (DocKind::LookupTable, "FixtureDataType"),
        (DocKind::LookupRow, "FixtureDataItem"),
        (DocKind::Application, "Application"),
    ];
    let columns =
        kinds.iter().map(|(kind, name)| column(kind.name(), "string", &related(&property("reads"), name, "tag")));
    let mut live = Live::start(
        vec![source("readers", "CommCareCase", Some("reader"), columns.collect())],
        vec![case("r", "reader", json!({"reads": "x"}))],
    )
    .await;
    for (kind, _) in kinds {
        live.shows("readers", kind.name(), &["r -"]);
        live.change([doc(kind, "x", &json!({"tag": "one"}))]).await;
        live.shows("readers", kind.name(), &["r one"]);
        live.change([doc(kind, "x", &json!({"tag": "two"}))]).await;
        live.shows("readers", kind.name(), &["r two"]);
        live.change([doc(kind, "x", &json!({"tag": "two", "domain": "elsewhere"}))]).await;
        live.shows("readers", kind.name(), &["r -"]);
        live.change([doc(kind, "x", &json!({"tag": "three"}))]).await;
        live.change([gone(kind, "x")]).await;
        live.shows("readers", kind.name(), &["r -"]);
        live.change([doc(kind, "x", &json!({"tag": "back"}))]).await;
        live.shows("readers", kind.name(), &["r back"]);
    }
    live.change([case("r", "reader", json!({"reads": "y"}))]).await;
    kinds.iter().for_each(|(kind, _)| live.shows("readers", kind.name(), &["r -"]));
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn rows_of_forms_workers_and_places_follow_what_they_read() {
    let patient = json!({"type": "property_path", "property_path": ["form", "case", "@case_id"]});
    let mut live = Live::start(
        vec![
            source(
                "visits",
                "XFormInstance",
                None,
                vec![column("patient", "string", &related(&patient, "CommCareCase", "name"))],
            ),
            source(
                "workers",
                "CommCareUser",
                None,
                vec![column("place", "string", &related(&property("location_id"), "Location", "name"))],
            ),
            source(
                "places",
                "Location",
                None,
                vec![column("above", "string", &related(&property("parent_location_id"), "Location", "name"))],
            ),
        ],
        vec![
            doc(DocKind::Form, "f", &json!({"form": {"case": {"@case_id": "p"}}})),
            worker("w", "v"),
            place("v", "Oak", "village", "b"),
        ],
    )
    .await;
    live.change([case("p", "patient", json!({"name": "Ana"})), place("b", "Hill", "block", "")]).await;
    live.shows("visits", "patient", &["f Ana"]);
    live.shows("places", "above", &["b -", "v Hill"]);
    live.change([
        case("p", "patient", json!({"name": "Anna"})),
        place("v", "Ash", "village", "b"),
        place("b", "Dale", "block", ""),
    ])
    .await;
    live.shows("visits", "patient", &["f Anna"]);
    live.shows("workers", "place", &["w Ash"]);
    live.shows("places", "above", &["b -", "v Dale"]);
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn a_document_that_is_deleted_restored_retyped_or_fails() {
    let (_, id, Some(mut repeats)) = source(
        "items",
        "XFormInstance",
        None,
        vec![
            column("item", "string", &property("name")),
            column(
                "worker",
                "string",
                &json!({"type": "root_doc", "expression": related(&property("user_id"), "CommCareUser", "name")}),
            ),
            column("n", "small_integer", &property("n")),
        ],
    ) else {
        panic!()
    };
    repeats["base_item_expression"] = json!({"type": "property_path", "property_path": ["form", "items"]});
    let form = |items: Value| doc(DocKind::Form, "f", &json!({"user_id": "w", "form": {"items": items}}));
    let named = |name: &str| doc(DocKind::User, "w", &json!({"name": name}));
    let one = |name: &str, n: i64| json!({"name": name, "n": n});
    let mut live = Live::start(
        vec![
            (DocKind::DataSource, id, Some(repeats)),
            source("children", "CommCareCase", Some("child"), vec![column("name", "string", &property("name"))]),
        ],
        vec![form(json!([one("soap", 1), one("salt", 2)])), named("Asha"), case("c", "child", json!({"name": "Ana"}))],
    )
    .await;
    let names = ["repeat_iteration", "item", "worker"];
    assert_eq!(live.rows("ucr", "items", &names), ["0 soap Asha", "1 salt Asha"]);
    live.change([named("Usha")]).await;
    assert_eq!(live.rows("ucr", "items", &names), ["0 soap Usha", "1 salt Usha"]);
    live.change([form(json!([one("salt", 2)]))]).await;
    assert_eq!(live.rows("ucr", "items", &names), ["0 salt Usha"]);
    live.change([form(json!([]))]).await;
    assert!(live.rows("ucr", "items", &names).is_empty());
    live.change([form(json!([one("rice", 3), one("oil", 100_000)]))]).await;
    assert!(live.rows("ucr", "items", &names).is_empty(), "a number that does not fit fails the document");
    assert_eq!(live.table("system", "view_errors").live_rows, 1);
    live.change([form(json!([one("rice", 3)]))]).await;
    assert_eq!(
        (live.rows("ucr", "items", &names), live.table("system", "view_errors").live_rows),
        (vec!["0 rice Usha".to_owned()], 0)
    );
    live.change([doc(DocKind::Form, "f", &json!({"doc_type": "XFormArchived", "form": {"items": [one("rice", 3)]}}))])
        .await;
    assert!(live.rows("ucr", "items", &names).is_empty());

    live.change([case("c", "adult", json!({"name": "Ana"}))]).await;
    live.shows("children", "name", &[]);
    live.change([case("c", "child", json!({"name": "Ana"}))]).await;
    live.shows("children", "name", &["c Ana"]);
    live.change([case("c", "child", json!({"name": "Ana", "doc_type": "CommCareCase-Deleted"}))]).await;
    live.shows("children", "name", &[]);
    live.change([case("c", "child", json!({"name": "Anna"}))]).await;
    live.shows("children", "name", &["c Anna"]);
    live.change([gone(DocKind::Case, "c")]).await;
    live.shows("children", "name", &[]);
    live.change([case("c", "child", json!({"name": "Ana"}))]).await;
    live.shows("children", "name", &["c Ana"]);
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn groups_follow_their_rows_the_rows_they_join_and_what_those_read() {
    let place_name = related(&property("location_id"), "Location", "name");
    let mut live = Live::start(
        vec![
            source(
                "visits",
                "CommCareCase",
                Some("visit"),
                vec![column("owner", "string", &property("owner_id")), column("kg", "integer", &property("kg"))],
            ),
            source(
                "workers",
                "CommCareUser",
                None,
                vec![
                    column("user_id", "string", &property("_id")),
                    column("place", "string", &place_name),
                    column("team", "string", &property("team")),
                ],
            ),
            view(
                "by_place",
                json!({"from": {"table": "visits", "as": "v"},
                "joins": [{"table": "workers", "as": "w", "on": {"v.owner": "w.user_id"}}],
                "group_by": [{"column": "w.place"}],
                "aggregates": [{"function": "count", "as": "n"}, {"function": "sum", "column": "v.kg", "as": "kg"},
                    {"function": "last", "column": "w.team", "order_by": "v.kg", "as": "team"}]}),
            ),
            view(
                "by_owner",
                json!({"from": {"table": "visits"}, "group_by": [{"column": "owner"}],
                "aggregates": [{"function": "top", "column": "kg", "n": 2, "as": "most"}]}),
            ),
        ],
        vec![case("a", "visit", json!({"owner_id": "w1", "kg": 3}))],
    )
    .await;
    let worker =
        |id: &str, place: &str, team: &str| doc(DocKind::User, id, &json!({"location_id": place, "team": team}));
    let visit = |id: &str, owner: Value, kg: i64| case(id, "visit", json!({"owner_id": owner, "kg": kg}));
    let places = ["place", "n", "kg", "team"];
    live.groups("by_place", &places, &[]);
    // The joined row comes after the base.
    live.change([worker("w1", "v1", "red")]).await;
    live.groups("by_place", &places, &["- 1 3 red"]);
    // What the joined row reads comes later still.
    live.change([place("v1", "Oak", "village", ""), place("v2", "Elm", "village", "")]).await;
    live.groups("by_place", &places, &["Oak 1 3 red"]);
    live.change([visit("b", json!("w1"), 5)]).await;
    live.groups("by_place", &places, &["Oak 2 8 red"]);
    live.groups("by_owner", &["owner", "most"], &["w1 [5,3]"]);
    // The joined row changes: in a column that is shown, and in the one that groups.
    live.change([worker("w1", "v1", "blue")]).await;
    live.groups("by_place", &places, &["Oak 2 8 blue"]);
    live.change([worker("w1", "v2", "blue")]).await;
    live.groups("by_place", &places, &["Elm 2 8 blue"]);
    live.change([place("v2", "Ash", "village", "")]).await;
    live.groups("by_place", &places, &["Ash 2 8 blue"]);
    // The base moves to another group, by its key.
    live.change([worker("w2", "v1", "red"), visit("b", json!("w2"), 5)]).await;
    live.groups("by_place", &places, &["Ash 1 3 blue", "Oak 1 5 red"]);
    live.groups("by_owner", &["owner", "most"], &["w1 [3]", "w2 [5]"]);
    // A key that is null meets nothing, and a joined row that is gone takes its groups along.
    live.change([visit("b", Value::Null, 5)]).await;
    live.groups("by_place", &places, &["Ash 1 3 blue"]);
    live.groups("by_owner", &["owner", "most"], &["- [5]", "w1 [3]"]);
    live.change([gone(DocKind::User, "w1")]).await;
    live.groups("by_place", &places, &[]);
    live.change([worker("w1", "v1", "back"), gone(DocKind::Case, "b")]).await;
    live.groups("by_place", &places, &["Oak 1 3 back"]);
    live.dataflow.shutdown().await;
}

#[tokio::test]
async fn names_of_the_domain_and_the_groups_over_them() {
    let name = |name: &str| json!({"type": "named", "name": name});
    let expression = |id: &str, body: &Value| (DocKind::NamedExpression, id.to_owned(), Some(named(body)));
    let filter = |id: &str, body: &Value| (DocKind::NamedFilter, id.to_owned(), Some(named(body)));
    let is = |name: &str, value: &str| json!({"type": "boolean_expression", "operator": "eq", "expression": property(name), "property_value": value});
    let (_, id, Some(mut watched)) =
        source("watched", "CommCareCase", None, vec![column("label", "string", &name("label"))])
    else {
        panic!()
    };
    watched["configured_filter"] = name("of_interest");
    let by_label = json!({"from": {"table": "watched"}, "group_by": [{"column": "label"}], "aggregates": [{"function": "count", "as": "n"}]});
    let mut live = Live::start(
        vec![
            expression("label", &property("name")),
            filter("of_interest", &is("risk", "high")),
            (DocKind::DataSource, id, Some(watched)),
            view("by_label", by_label),
        ],
        vec![
            case("a", "x", json!({"name": "Ana", "code": "1", "risk": "high"})),
            case("b", "x", json!({"name": "Bea", "code": "1", "risk": "low"})),
        ],
    )
    .await;
    live.groups("by_label", &["label", "n"], &["Ana 1"]);
    live.define([expression("label", &property("code"))]).await;
    live.shows("watched", "label", &["a 1"]);
    live.groups("by_label", &["label", "n"], &["1 1"]);
    live.define([filter("of_interest", &is("code", "1"))]).await;
    live.shows("watched", "label", &["a 1", "b 1"]);
    live.groups("by_label", &["label", "n"], &["1 2"]);
    live.change([case("b", "x", json!({"code": "2"}))]).await;
    live.groups("by_label", &["label", "n"], &["1 1"]);
    live.dataflow.shutdown().await;
}
