//! Looking inside: where a row comes from over HTTP, and what the tables of schema `system` say.

use axum::http::{Request, header};
use schemas::{id::DomainId, table::Moment, time::parse_micros};
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt;

use super::{
    http::basic,
    rest::get,
    sql::Sql,
    world::{self, FakeViews, visits},
};

const PATH: &str = "/a/demo/api/millrace/v1/provenance";

fn app() -> axum::Router {
    let views = FakeViews::new(world::snapshot(visits(false).0, vec![]));
    crate::routes(world::state(&views, world::quick()))
}

#[tokio::test]
async fn a_row_is_explained() {
    let app = app();
    let (status, told) = get(&app, &format!("{PATH}?view=visits&key=a&wait_for=m1.0-0.41")).await;
    let stamp = "2024-01-01T00:00:00.000000Z";
    let document = |key: &str| json!({"kind": "case", "id": key, "stamp": stamp});
    let mut expected = json!({"view": "visits", "key": "a", "rows": 2, "document": document("a"), "related": [
        {"relation": "case", "id": "m", "documents": [document("m"), document("n")]},
        {"relation": "case", "id": "nobody", "documents": []}]});
    expected["document"]["form"] = json!("f1");
    expected["document"]["before"] = json!("2023-01-01T00:00:00.000000Z");
    let mother = &mut expected["related"][0]["documents"][0];
    mother["form"] = json!("f9");
    mother["position"] = json!("m1.0-0.41");
    mother["visible_at"] = json!("2024-02-01T00:00:00.000000Z");
    expected["related"][0]["documents"][1]["position"] = json!("m1.0-0.41");
    assert_eq!((status, told), (200, expected));

    let (_, told) = get(&app, &format!("{PATH}/?view=visits&key=failed")).await;
    assert_eq!((&told["rows"], &told["error"], &told["note"]), (&json!(0), &json!("too long"), &Value::Null));
    for (key, says) in [("filtered", "filter"), ("gone", "gone for good")] {
        let (_, told) = get(&app, &format!("{PATH}?view=visits&key={key}")).await;
        assert!(told["note"].as_str().unwrap().contains(says), "{told}");
    }
}

#[tokio::test]
async fn a_group_is_explained() {
    let app = app();
    let month = format!("{PATH}?view=visits_by_month");
    let (_, told) = get(&app, &format!("{month}&key=%5B%222024-01%22%5D")).await;
    let expected = json!({"view": "visits_by_month", "key": "[\"2024-01\"]", "sources": ["ucr.visits"], "base_rows": 3,
        "base_documents": ["a"]});
    assert_eq!(told, expected);
    for (key, says) in [("&key=%5B%22joined%22%5D", "not traced through joins"), ("", "as `key`")] {
        let (_, told) = get(&app, &format!("{month}{key}")).await;
        assert_eq!((&told["sources"], &told["base_rows"]), (&json!(["ucr.visits"]), &Value::Null));
        assert!(told["note"].as_str().unwrap().contains(says), "{told}");
    }
}

#[tokio::test]
async fn what_cannot_be_explained_is_told_why() {
    let app = app();
    for (query, status, says) in [
        ("", 400, "`view` is its id"),
        ("?view=visits", 400, "`key` is the id of a document"),
        ("?view=nothing&key=a", 404, "no view `nothing`"),
        ("?view=slow&key=a", 409, "no rows yet"),
        ("?view=visits&key=a&wait_for=m1.0-0.99", 504, "not visible yet"),
        ("?view=visits&key=a&wait_for=x", 400, "not a receipt"),
    ] {
        let (got, told) = get(&app, &format!("{PATH}{query}")).await;
        assert_eq!(got, status, "{query}: {told}");
        assert!(told["error"].as_str().unwrap().contains(says), "{query}: {told}");
    }
    for (domain, user, status) in [("demo", "phone@demo", 403), ("other", world::USER, 401), ("demo", "nobody", 401)] {
        let request = Request::get(PATH.replace("demo", domain) + "?view=visits&key=a")
            .header(header::AUTHORIZATION, basic(user, world::PASSWORD));
        let response = app.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{domain} {user}");
    }
}

#[tokio::test]
async fn what_is_held_and_what_it_costs_is_in_sql() {
    let sql = Sql::new(false);
    let columns = "part, name, count, dead, bytes > 0 as bytes, cpu_us, cpu_us_per_change";
    assert_eq!(
        sql.rows(&format!("select {columns} from system.arrangements")).await,
        [
            "table|ucr.visits|5|2|true||",
            "table|views.visits_by_month|2|0|true||",
            "documents|case|4||true||",
            "groups|visits_by_month|2||||",
            "evaluation|visits|8|||20.0|2.5",
            "evaluation|slow|0|||0.0|",
        ]
    );
    let of_columns: usize = visits(false).0.segments.iter().map(|part| part.batch.get_array_memory_size()).sum();
    let bytes = "select bytes, index_bytes from system.arrangements where name = 'ucr.visits'";
    assert_eq!(sql.rows(bytes).await, [format!("{of_columns}|7")]);
    assert_eq!(
        sql.rows("select id, cpu_us_per_change, bytes from system.views order by id").await,
        ["bad||".to_owned(), "slow||".to_owned(), format!("visits|2.5|{}", of_columns + 7)]
    );
}

#[tokio::test]
async fn what_is_behind_is_in_sql() {
    let sql = Sql::new(false);
    let rows = "select kind, name, position, seen_at, stalled, seconds_behind > 1000 as late from system.lag";
    let lane = "lane|0-0|m1.0-0.41|2024-03-01T10:00:00|true|true";
    assert_eq!(sql.rows(rows).await, [lane]);
    let mut snapshot = world::snapshot(visits(false).0, vec![]);
    let domain = DomainId::new(world::DOMAIN).unwrap();
    let as_of = parse_micros("2024-03-01T09:00:00").unwrap();
    let tables = Arc::make_mut(snapshot.domains.get_mut(&domain).unwrap());
    tables.behind = Some(Moment { as_of, ..snapshot.moment.clone() });
    let other = Arc::make_mut(snapshot.domains.get_mut(&DomainId::new("other").unwrap()).unwrap());
    other.behind = Some(Moment::default());
    sql.views.publish(snapshot);
    assert_eq!(sql.rows(rows).await, [lane, "domain|demo|m1.0-0.41|2024-03-01T09:00:00||true"]);
}
