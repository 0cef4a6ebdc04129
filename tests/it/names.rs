//! Named expressions and filters of a domain: put over HTTP, used by data sources, seen over SQL.

use reqwest::{Method, StatusCode};
use schemas::position::Position;
use serde_json::{Value, json};

use crate::{
    pipeline::form_with_case,
    server::{DOMAIN, Options, Server, eventually, reply},
    workload::view_is_live,
};

fn property(name: &str) -> Value {
    json!({"type": "property_name", "property_name": name})
}

fn named(name: &str) -> Value {
    json!({"type": "named", "name": name})
}

fn is(expression: &Value, value: &str) -> Value {
    json!({"type": "boolean_expression", "operator": "eq", "expression": expression, "property_value": value})
}

fn source(table: &str, filter: &Value, label: &Value, own: &Value) -> Value {
    json!({
        "doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": table, "referenced_doc_type": "CommCareCase",
        "configured_filter": filter, "named_expressions": own,
        "configured_indicators": [
            {"type": "expression", "column_id": "label", "datatype": "string", "expression": label}],
    })
}

async fn put_name(server: &Server, path: &str, definition: &Value) -> Position {
    let body = json!({"definition": definition, "description": "for tests"});
    server.write(Method::PUT, &format!("ucr/{path}"), &body).await
}

/// Waits until a table has these values in column `label`.
async fn shows(server: &Server, table: &str, expected: &[&str]) {
    let statement = format!("SELECT label FROM ucr.{table} ORDER BY label");
    eventually(&format!("{table} to show {expected:?}"), async || {
        let rows = server.try_sql(&statement, None).await?.rows;
        let labels: Vec<&str> = rows.iter().filter_map(|row| row["label"].as_str()).collect();
        if labels == expected { Ok(()) } else { Err(format!("{labels:?}")) }
    })
    .await;
}

/// Sends what must be refused, and returns the problems.
async fn refused(server: &Server, path: &str, body: &Value) -> Vec<(String, String)> {
    let got = reply(server.request(Method::PUT, path).json(body)).await.unwrap();
    assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path}: {}", got.text);
    let answer: Value = serde_json::from_str(&got.text).unwrap();
    let text = |problem: &Value, name: &str| problem[name].as_str().unwrap().to_owned();
    let problems = answer["problems"].as_array().unwrap_or_else(|| panic!("{answer}"));
    problems.iter().map(|problem| (text(problem, "pointer"), text(problem, "message"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_sources_follow_the_names_of_their_domain() {
    let mut server = Server::start(&Options::default()).await;
    for (number, kind) in ["red", "blue"].into_iter().enumerate() {
        let block = format!(
            "<create><case_type>thing</case_type><case_name>Thing {number}</case_name><owner_id>o</owner_id></create>\
             <update><color>{kind}</color><size>L{number}</size></update>"
        );
        let reply =
            server.submit(&form_with_case(&format!("f{number}"), &format!("thing-{number}"), &block)).await.unwrap();
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
    }

    // What is not valid is refused with its place, and nothing is stored.
    let problems = refused(&server, "ucr/expressions/label", &json!({"definition": {"type": "crystal_ball"}})).await;
    assert_eq!(problems[0].0, "/definition/type");
    assert_eq!(refused(&server, "ucr/expressions/label", &json!({"type": "x"})).await[0].1, "`definition` is required");
    let problems = refused(&server, "ucr/filters/wanted", &json!({"definition": is(&named("none"), "a")})).await;
    assert_eq!(problems[0].0, "/definition/expression/name");
    assert!(problems[0].1.contains("there is no named expression `none`"));
    let using = source("things", &named("wanted"), &named("label"), &json!({}));
    let problems = refused(&server, "ucr/data-sources/things", &using).await;
    assert_eq!(problems[0].0, "/configured_filter/name");

    put_name(&server, "expressions/the color", &property("color")).await;
    put_name(&server, "expressions/label", &named("the color")).await;
    put_name(&server, "filters/wanted", &is(&property("type"), "thing")).await;
    let problems = refused(&server, "ucr/expressions/the%20color", &json!({"definition": named("label")})).await;
    assert!(problems[0].1.contains("refers to itself"), "{problems:?}");
    server.write(Method::PUT, "ucr/data-sources/things", &using).await;
    let own = source("own", &named("wanted"), &named("label"), &json!({"label": property("size")}));
    server.write(Method::PUT, "ucr/data-sources/own", &own).await;
    let view = json!({"view_id": "by_label", "from": {"table": "things"}, "group_by": [{"column": "label"}],
        "aggregates": [{"function": "count", "as": "n"}]});
    server.write(Method::PUT, "views/by_label", &view).await;
    for id in ["things", "own", "by_label"] {
        view_is_live(&server, id).await;
    }
    shows(&server, "things", &["blue", "red"]).await;
    shows(&server, "own", &["L0", "L1"]).await;

    // A change reaches whoever uses the name, through whatever names.
    put_name(&server, "expressions/the color", &property("size")).await;
    shows(&server, "things", &["L0", "L1"]).await;
    put_name(&server, "filters/wanted", &is(&property("color"), "red")).await;
    shows(&server, "things", &["L0"]).await;
    shows(&server, "own", &["L0"]).await;
    view_is_live(&server, "by_label").await;
    assert_eq!(server.sql("SELECT label, n FROM views.by_label", None).await.rows, [json!({"label": "L0", "n": 1})]);

    // Many at once, in any order; each row is answered.
    let rows = json!([
        {"name": "first", "definition": named("second")},
        {"name": "second", "definition": property("color")},
        {"name": "third", "definition": named("nobody")},
        {"name": "second", "definition": 1},
        {"definition": 1},
        {"name": "the color", "definition": named("first")},
    ]);
    let got = reply(server.request(Method::POST, "import/expressions").json(&rows)).await.unwrap();
    let report: Value = serde_json::from_str(&got.text).unwrap();
    assert_eq!(
        (&report["created"], &report["updated"], &report["failed"]),
        (&json!(2), &json!(1), &json!(3)),
        "{report}"
    );
    assert!(got.position.is_some() && got.text.contains("/definition/name: there is no named expression `nobody`"));
    shows(&server, "things", &["red"]).await;

    // All of it is there after a restart.
    server.stop().await;
    server.restart().await;
    shows(&server, "things", &["red"]).await;
    let answer = server.request(Method::GET, "ucr/expressions/first").send().await.unwrap();
    let first: Value = answer.json().await.unwrap();
    assert_eq!(
        first["definition"],
        json!({"doc_type": "UCRExpression", "domain": DOMAIN, "name": "first", "expression_type": "named_expression",
            "description": "", "definition": named("second")})
    );
    let answer = server.request(Method::GET, "ucr/filters/").send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["objects"][0]["id"], "wanted");

    // Without a name, the table stays as it was and the view says why; with it, all is well again.
    let gone = reply(server.request(Method::DELETE, "ucr/expressions/first")).await.unwrap();
    server.sql("SELECT 1 AS one", gone.position).await;
    let rows = server.sql("SELECT state, message FROM system.views WHERE id = 'things'", None).await.rows;
    assert_eq!(rows[0]["state"], "failed");
    assert!(rows[0]["message"].as_str().unwrap().contains("`first`"), "{rows:?}");
    shows(&server, "things", &["red"]).await;
    let again = reply(server.request(Method::DELETE, "ucr/expressions/first")).await.unwrap();
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    put_name(&server, "expressions/first", &property("size")).await;
    shows(&server, "things", &["L0"]).await;
    view_is_live(&server, "things").await;
}
