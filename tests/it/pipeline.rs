//! The whole way of the maternal-health workload: forms over HTTP in, tables over SQL out, compared with the oracle at
//! random moments while forms arrive, workers and villages move, and views are changed and added. Once with the embedded change
//! log, once over Kafka, once with tables that two threads keep together.

use std::{cell::Cell, time::Instant};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Method;
use schemas::{position::Position, sample};
use serde_json::{Value, json};

use crate::{
    broker::Broker,
    oracle::{Answer, Row, Table, World},
    server::{DEADLINE, DOMAIN, Options, Server},
    workload::{CHECKS, Check, Committed, Event, Workload, happen, set_up, view_is_live},
};

const FORMS: usize = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_right_at_every_moment_embedded() {
    follow(&Options::default(), 11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_right_at_every_moment_over_kafka() {
    let broker = Broker::start().await;
    follow(&Options { kafka: Some(broker.brokers.clone()), split: true, ..Options::default() }, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_right_at_every_moment_with_two_workers() {
    follow(&Options { settings: vec!["dataflow.workers = 2".to_owned()], ..Options::default() }, 13).await;
}

async fn follow(options: &Options, seed: u64) {
    let workload = Workload::generate(FORMS, seed);
    let server = Server::start(options).await;
    set_up(&server, &workload).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut committed = Committed::default();
    let mut cuts: Vec<usize> = (0..5).map(|_| random.random_range(1..workload.events.len())).collect();
    cuts.sort_unstable();
    cuts.push(workload.events.len());
    let mut from = 0;
    for (number, cut) in cuts.into_iter().enumerate() {
        let load = Load { server: &server, events: &workload.events[from..cut], done: Cell::new(false) };
        let meanwhile = async {
            match number {
                1 => replace(&server, &mut committed).await,
                3 => add(&server, &mut committed).await,
                _ => {}
            }
            while !load.done.get() {
                let check = CHECKS.choose(&mut random).unwrap();
                committed.compare(&server, check, None).await;
            }
        };
        let (last, ()) = tokio::join!(load.run(), meanwhile);
        let rows = committed.compare_all(&server, last).await;
        println!("after {cut} events: rows {rows:?}");
        from = cut;
    }
    every_table_holds_rows(&server, &mut committed).await;
    the_wire_says_the_same(&server, &committed).await;
}

/// Forms and moves, one after the other.
struct Load<'a> {
    server: &'a Server,
    events: &'a [Event],
    done: Cell<bool>,
}

impl Load<'_> {
    /// Returns the receipt of the last one.
    async fn run(&self) -> Option<Position> {
        let mut last = None;
        for event in self.events {
            last = Some(happen(self.server, event).await);
        }
        self.done.set(true);
        last
    }
}

async fn every_table_holds_rows(server: &Server, committed: &mut Committed) {
    let rows = committed.compare_all(server, None).await;
    assert!(rows.iter().all(|rows| *rows > 0), "{rows:?}");
    let errors = server.sql("SELECT * FROM system.view_errors", None).await.rows;
    assert_eq!(errors, Vec::<Value>::new());
}

async fn the_wire_says_the_same(server: &Server, committed: &Committed) {
    let wire = server.wire().await;
    let messages = wire.simple_query("SELECT doc_id, name FROM ucr.pregnancies ORDER BY doc_id").await.unwrap();
    let got: Vec<(String, String)> = messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())),
            _ => None,
        })
        .collect();
    let expected: Vec<(String, String)> = committed
        .world
        .pregnancies()
        .into_iter()
        .map(|(key, row)| match &row["name"] {
            Answer::Text(name) => (key[0].clone(), name.clone()),
            other => panic!("a name that is {other:?}"),
        })
        .collect();
    assert_eq!(got, expected);
}

fn with_blood_group(world: &World) -> Table {
    let mut table = world.pregnancies();
    for (key, row) in &mut table {
        row.remove("bmi");
        let group = world.cases[&key[0]]["blood_group"].as_str();
        row.insert("blood_group", group.map_or(Answer::Null, |group| Answer::Text(group.to_owned())));
    }
    table
}

/// Puts `pregnancies` with another column and without one, and then as it was. Every answer meanwhile is one version or the
/// other, and right.
async fn replace(server: &Server, committed: &mut Committed) {
    let text = sample::DATA_SOURCES.iter().find(|(id, _)| *id == "pregnancies").unwrap().1;
    let original: Value = serde_json::from_str(text).unwrap();
    let mut changed = original.clone();
    let indicators = changed["configured_indicators"].as_array_mut().unwrap();
    indicators.retain(|indicator| indicator["column_id"] != "bmi");
    indicators.push(json!({
        "type": "raw", "column_id": "blood_group", "datatype": "string", "property_name": "blood_group",
    }));
    for (definition, column) in [(&changed, "blood_group"), (&original, "bmi")] {
        let receipt = server.write(Method::PUT, "ucr/data-sources/pregnancies", definition).await;
        let begun = Instant::now();
        loop {
            let answer = server.sql("SELECT * FROM ucr.pregnancies", Some(receipt)).await;
            let has = |column: &str| answer.rows[0].get(column).is_some();
            let right = if has("blood_group") { with_blood_group } else { World::pregnancies };
            assert_ne!(has("blood_group"), has("bmi"), "{}", answer.rows[0]);
            committed.verify(server, &Check { right, ..CHECKS[0] }, &answer).await;
            if has(column) {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "the new version of pregnancies did not come");
        }
        view_is_live(server, "pregnancies").await;
        for check in CHECKS.iter().skip(1) {
            committed.compare(server, check, None).await;
        }
    }
}

/// What a referral's row says: its own reason, its child's name, and two steps away the mother's name and risk.
fn referrals(world: &World) -> Table {
    let text = |case: Option<&Value>, name: &str| {
        case.and_then(|case| case.get(name)?.as_str()).map_or(Answer::Null, |text| Answer::Text(text.to_owned()))
    };
    let first_index = |case: Option<&Value>| {
        let id = case?.get("indices")?.get(0)?.get("referenced_id")?.as_str()?;
        world.cases.get(id)
    };
    world
        .cases
        .iter()
        .filter(|(_, case)| case["type"] == "referral")
        .map(|(id, case)| {
            let child = first_index(Some(case));
            let mother = first_index(child);
            let cost: i64 = case["cost"].as_str().unwrap().parse().unwrap();
            let row = Row::from([
                ("reason", text(Some(case), "reason")),
                ("cost", Answer::Int(cost)),
                ("child_name", text(child, "name")),
                ("mother_name", text(mother, "name")),
                ("mother_risk", text(mother, "risk_level")),
            ]);
            (vec![id.clone()], row)
        })
        .collect()
}

/// Referrals by the risk of the mother two steps away.
fn referrals_by_risk(world: &World) -> Table {
    let mut sums = std::collections::BTreeMap::<String, (i64, i64)>::new();
    for row in referrals(world).into_values() {
        let (Answer::Text(risk), Answer::Int(cost)) = (&row["mother_risk"], &row["cost"]) else { continue };
        let sum = sums.entry(risk.clone()).or_default();
        *sum = (sum.0 + 1, sum.1 + cost);
    }
    sums.into_iter()
        .map(|(risk, (count, cost))| {
            (vec![risk], Row::from([("n_referrals", Answer::Int(count)), ("sum_cost", Answer::Int(cost))]))
        })
        .collect()
}

const REFERRALS: Check = Check { from: "ucr.referrals", key: &["doc_id"], right: referrals };
const REFERRALS_BY_RISK: Check =
    Check { from: "views.view_referrals_by_risk", key: &["mother_risk"], right: referrals_by_risk };

/// Cases of a type that no view knows, then a data source and an aggregate view over them, then changes at every step.
async fn add(server: &Server, committed: &mut Committed) {
    committed.compare(server, &CHECKS[3], None).await;
    let children: Vec<String> = committed
        .world
        .cases
        .iter()
        .filter(|(_, case)| case["type"] == "child")
        .map(|(id, _)| id.clone())
        .take(30)
        .collect();
    assert!(!children.is_empty());
    for (number, child) in children.iter().enumerate().take(20) {
        refer(server, number, child, "fever").await;
    }
    let step = |inner: Value, index: &str| json!({"type": "indexed_case", "case_expression": inner, "index": index});
    let child = step(json!({"type": "identity"}), "patient");
    let property = |of: &Value, name: &str| json!({"type": "nested", "argument_expression": of, "value_expression": {"type": "property_name", "property_name": name}});
    let mother = step(child.clone(), "mother");
    let column = |id: &str, expression: Value| json!({"type": "expression", "column_id": id, "datatype": "string", "expression": expression});
    let source = json!({
        "doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "referrals", "display_name": "Referrals",
        "referenced_doc_type": "CommCareCase",
        "configured_filter": {
            "type": "boolean_expression", "operator": "eq",
            "expression": {"type": "property_name", "property_name": "type"}, "property_value": "referral",
        },
        "configured_indicators": [
            {"type": "raw", "column_id": "reason", "datatype": "string", "property_name": "reason"},
            {"type": "raw", "column_id": "cost", "datatype": "integer", "property_name": "cost"},
            column("child_name", property(&child, "name")),
            column("mother_name", property(&mother, "name")),
            column("mother_risk", property(&mother, "risk_level")),
        ],
    });
    server.write(Method::PUT, "ucr/data-sources/referrals", &source).await;
    let view = json!({
        "doc_type": "AggregateView", "domain": DOMAIN, "view_id": "view_referrals_by_risk", "display_name": "By risk",
        "from": {"table": "referrals"}, "group_by": [{"column": "mother_risk"}],
        "aggregates": [{"function": "count", "as": "n_referrals"}, {"function": "sum", "column": "cost", "as": "sum_cost"}],
    });
    let receipt = server.write(Method::PUT, "views/view_referrals_by_risk", &view).await;
    server.sql("SELECT 1 AS one", Some(receipt)).await;
    view_is_live(server, "referrals").await;
    view_is_live(server, "view_referrals_by_risk").await;
    assert_eq!(committed.compare(server, &REFERRALS, None).await.rows.len(), children.len().min(20));

    // A change of each document on the way reaches the row by itself.
    for (number, child) in children.iter().enumerate().skip(20) {
        refer(server, number, child, "cough").await;
    }
    let child = &children[0];
    let mother = committed.world.cases[child]["indices"][0]["referenced_id"].as_str().unwrap().to_owned();
    update(server, "rename-child", child, &[("case_name", "Renamed child")]).await;
    let raised =
        update(server, "raise-risk", &mother, &[("case_name", "Renamed mother"), ("risk_level", "extreme")]).await;
    let last = update(server, "change-cost", "referral-0", &[("cost", "1000")]).await;
    let rows = committed.compare(server, &REFERRALS, Some(last)).await.rows;
    let row = rows.iter().find(|row| row["doc_id"] == "referral-0").unwrap();
    assert_eq!((&row["child_name"], &row["mother_name"]), (&json!("Renamed child"), &json!("Renamed mother")));
    let groups = committed.compare(server, &REFERRALS_BY_RISK, Some(last)).await.rows;
    assert!(groups.iter().any(|row| row["mother_risk"] == "extreme"), "{groups:?}");
    the_row_names_what_made_it(server, last, &mother, raised).await;
}

/// The row of a referral names its own form, and two steps away the mother with the form that touched her last.
async fn the_row_names_what_made_it(server: &Server, own: Position, mother: &str, raised: Position) {
    let told = server.read(&format!("api/millrace/v1/provenance?view=referrals&key=referral-0&wait_for={own}")).await;
    let document = &told["document"];
    assert_eq!((&document["form"], &document["position"]), (&json!("change-cost"), &json!(own)), "{told}");
    assert!(document["visible_at"].is_string(), "{told}");
    let asked = told["related"].as_array().unwrap();
    let asked = asked.iter().find(|asked| asked["id"] == mother).unwrap_or_else(|| panic!("no mother in {told}"));
    let mother = &asked["documents"][0];
    let position: Position = mother["position"].as_str().unwrap().parse().unwrap();
    // Forms of the workload may have touched her since.
    let is_last = mother["form"] == "raise-risk" && position == raised;
    assert!(is_last || position.sequence > raised.sequence, "{told}");
    let held = "SELECT count FROM system.arrangements WHERE part = 'documents' AND name = 'case'";
    assert!(server.sql(held, None).await.rows[0]["count"].as_u64().unwrap() > 0);
    let lanes = server.sql("SELECT name, stalled FROM system.lag WHERE kind = 'lane'", None).await.rows;
    assert!(lanes.iter().any(|lane| lane["name"] == own.lane.to_string()), "{lanes:?}");
}

async fn refer(server: &Server, number: usize, child: &str, reason: &str) {
    let block = format!(
        "<create><case_type>referral</case_type><case_name>Referral {number}</case_name><owner_id>nobody</owner_id></create>\
         <update><reason>{reason}</reason><cost>{}</cost></update>\
         <index><patient case_type=\"child\" relationship=\"child\">{child}</patient></index>",
        10 + number
    );
    post(server, &format!("refer-{number}"), &format!("referral-{number}"), &block).await;
}

async fn update(server: &Server, form: &str, case: &str, properties: &[(&str, &str)]) -> Position {
    let properties: String = properties.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
    post(server, form, case, &format!("<update>{properties}</update>")).await
}

async fn post(server: &Server, form: &str, case: &str, block: &str) -> Position {
    let xml = form_with_case(form, case, block);
    happen(server, &Event::Form { id: form.to_owned(), xml }).await
}

/// A form with one case block.
pub(crate) fn form_with_case(form: &str, case: &str, block: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><data xmlns=\"http://openrosa.org/formdesigner/millrace/other\" name=\"Other\">\
         <case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"{case}\" \
         date_modified=\"2025-06-30T10:00:00.000000Z\" user_id=\"nobody\">{block}</case>\
         <n0:meta xmlns:n0=\"http://openrosa.org/jsr-261\"><n0:timeStart>2025-06-30T09:55:00.000Z</n0:timeStart>\
         <n0:timeEnd>2025-06-30T10:00:00.000Z</n0:timeEnd><n0:username>nobody</n0:username><n0:userID>nobody</n0:userID>\
         <n0:instanceID>{form}</n0:instanceID></n0:meta></data>"
    )
}
