//! Control of builds over HTTP: previews of changed definitions, pausing, giving up.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    pipeline::form_with_case,
    server::{DOMAIN, Options, Reply, Server, eventually, reply},
    workload::view_is_live,
};

fn things(column: &str, only: Option<&str>) -> Value {
    let property = |name: &str| json!({"type": "property_name", "property_name": name});
    let is = |name: &str, value: &str| json!({"type": "boolean_expression", "operator": "eq", "expression": property(name), "property_value": value});
    let mut filters = vec![is("type", "thing")];
    filters.extend(only.map(|color| is("color", color)));
    json!({
        "doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "things", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "and", "filters": filters},
        "configured_indicators": [
            {"type": "expression", "column_id": "label", "datatype": "string", "expression": property(column)}],
    })
}

async fn thing(server: &Server, number: usize, color: &str) {
    let block = format!(
        "<create><case_type>thing</case_type><case_name>Thing {number}</case_name><owner_id>o</owner_id></create>\
         <update><color>{color}</color><size>L{number}</size></update>"
    );
    let sent = server.submit(&form_with_case(&format!("f{number}"), &format!("thing-{number}"), &block)).await.unwrap();
    assert_eq!(sent.status, StatusCode::CREATED, "{}", sent.text);
    server.sql("SELECT 1 AS one", sent.position).await;
}

async fn ask(server: &Server, method: Method, path: &str) -> (Reply, Value) {
    let got = reply(server.request(method, path)).await.unwrap();
    let json = serde_json::from_str(&got.text).unwrap();
    (got, json)
}

async fn labels(server: &Server, table: &str) -> Vec<String> {
    let rows = server.sql(&format!("SELECT label FROM {table} ORDER BY label"), None).await.rows;
    rows.iter().map(|row| row["label"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_is_previewed_paused_and_given_up() {
    let server = Server::start(&Options::default()).await;
    thing(&server, 0, "red").await;
    thing(&server, 1, "blue").await;
    let path = "ucr/data-sources/things";

    // There is nothing to compare with yet.
    let got =
        reply(server.request(Method::PUT, &format!("{path}?preview=true")).json(&things("color", None))).await.unwrap();
    assert_eq!(got.status, StatusCode::CONFLICT, "{}", got.text);
    server.write(Method::PUT, path, &things("color", None)).await;
    view_is_live(&server, "things").await;
    let (got, _) = ask(&server, Method::GET, &format!("{path}/preview")).await;
    assert_eq!(got.status, StatusCode::NOT_FOUND);

    server.write(Method::PUT, &format!("{path}?preview=true"), &things("size", Some("red"))).await;
    let (_, shown) = eventually("the preview to be complete", async || {
        let (got, shown) = ask(&server, Method::GET, &format!("{path}/preview")).await;
        if shown["preview"]["state"] == "complete" { Ok((got, shown)) } else { Err(got.text) }
    })
    .await;
    let count = |name: &str| shown["difference"][name].as_u64().unwrap();
    assert_eq!(["appearing", "vanishing", "changing", "unchanged"].map(count), [0, 1, 1, 0]);
    let change = &shown["difference"]["samples"]["changing"][0];
    assert_eq!((&change["before"]["label"], &change["after"]["label"]), (&json!("red"), &json!("L0")));
    let rows = server.sql("SELECT id, vanishing, changing FROM system.view_previews", None).await.rows;
    assert_eq!(rows, [json!({"id": "things", "vanishing": 1, "changing": 1})]);
    assert_eq!(labels(&server, "ucr.things").await, ["blue", "red"]);
    thing(&server, 2, "red").await;
    assert_eq!(labels(&server, "ucr_preview.things").await, ["L0", "L2"]);

    // Discarded, it is gone; taken over, it is what is published.
    let (got, _) = ask(&server, Method::DELETE, &format!("{path}/preview")).await;
    server.sql("SELECT 1 AS one", got.position).await;
    assert!(server.try_sql("SELECT label FROM ucr_preview.things", None).await.is_err());
    let (got, _) = ask(&server, Method::DELETE, &format!("{path}/preview")).await;
    assert_eq!(got.status, StatusCode::NOT_FOUND);
    server.write(Method::PUT, &format!("{path}?preview=true"), &things("size", Some("red"))).await;
    let taken = server.write(Method::PUT, path, &things("size", Some("red"))).await;
    server.sql("SELECT 1 AS one", Some(taken)).await;
    view_is_live(&server, "things").await;
    assert_eq!(labels(&server, "ucr.things").await, ["L0", "L2"]);
    let (got, _) = ask(&server, Method::POST, &format!("{path}/cancel")).await;
    assert_eq!(got.status, StatusCode::CONFLICT, "nothing is being built: {}", got.text);

    // Paused, it stays as it was, and says so.
    let mut paused = things("size", Some("red"));
    paused["paused"] = json!(true);
    let receipt = server.write(Method::PUT, path, &paused).await;
    server.sql("SELECT 1 AS one", Some(receipt)).await;
    thing(&server, 3, "red").await;
    assert_eq!(labels(&server, "ucr.things").await, ["L0", "L2"]);
    let (_, shown) = ask(&server, Method::GET, path).await;
    assert_eq!(shown["status"]["state"], "paused", "{shown}");
    let receipt = server.write(Method::PUT, path, &things("size", Some("red"))).await;
    server.sql("SELECT 1 AS one", Some(receipt)).await;
    view_is_live(&server, "things").await;
    assert_eq!(labels(&server, "ucr.things").await, ["L0", "L2", "L3"]);
}
