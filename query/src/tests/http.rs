//! SQL over HTTP: who may, formats, headers, limits.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use base64::Engine as _;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::world::{self, FakeViews, visits};
use crate::QueryConfig;

pub(super) fn basic(user: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {text}")
}

fn app(config: QueryConfig) -> (Router, Arc<FakeViews>) {
    let views = FakeViews::new(world::snapshot(visits(false).0, vec![]));
    (crate::routes(world::state(&views, config)), views)
}

struct Post<'a> {
    path: &'a str,
    auth: Option<String>,
    accept: &'a str,
    kind: &'a str,
    body: String,
}

impl Default for Post<'_> {
    fn default() -> Self {
        Self {
            path: "/a/demo/sql",
            auth: Some(basic(world::USER, world::PASSWORD)),
            accept: "*/*",
            kind: "text/plain",
            body: "select doc_id, age from visits order by doc_id limit 2".to_owned(),
        }
    }
}

async fn send(app: &Router, post: Post<'_>) -> Response<Body> {
    let mut request =
        Request::post(post.path).header(header::ACCEPT, post.accept).header(header::CONTENT_TYPE, post.kind);
    if let Some(auth) = post.auth {
        request = request.header(header::AUTHORIZATION, auth);
    }
    app.clone().oneshot(request.body(Body::from(post.body)).unwrap()).await.unwrap()
}

async fn bytes(response: Response<Body>) -> Vec<u8> {
    axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
}

async fn value(response: Response<Body>) -> Value {
    serde_json::from_slice(&bytes(response).await).unwrap()
}

#[tokio::test]
async fn callers_are_checked() {
    let (app, _) = app(world::quick());
    for (path, auth, status) in [
        ("/a/demo/sql", None, 401),
        ("/a/demo/sql", Some(basic(world::USER, "wrong")), 401),
        ("/a/demo/sql", Some("Bearer x".to_owned()), 401),
        ("/a/other/sql", Some(basic(world::USER, world::PASSWORD)), 401),
        ("/a/Demo/sql", Some(basic(world::USER, world::PASSWORD)), 404),
        ("/a/demo/sql", Some(basic("phone@demo", world::PASSWORD)), 403),
        ("/a/demo/sql/", Some(basic(world::USER, world::PASSWORD)), 200),
        ("/a/demo/sql", Some(format!("ApiKey {}:k1", world::USER)), 200),
    ] {
        let response = send(&app, Post { path, auth: auth.clone(), ..Post::default() }).await;
        assert_eq!(response.status().as_u16(), status, "{path} {auth:?}");
        assert_eq!(response.headers().contains_key(header::WWW_AUTHENTICATE), status == 401);
    }
}

#[tokio::test]
async fn answers_come_in_the_format_asked_for() {
    let (app, _) = app(world::quick());
    let response = send(&app, Post::default()).await;
    for (name, text) in [
        ("x-millrace-snapshot", "41"),
        ("x-millrace-as-of", "2024-03-01T10:00:00.000000Z"),
        ("x-millrace-complete-through", "m1.0-0.41"),
        ("x-millrace-errors", "3"),
        ("content-type", "application/json; charset=utf-8"),
    ] {
        assert_eq!(response.headers()[name], text, "{name}");
    }
    assert_eq!(value(response).await, json!([{"doc_id": "a", "age": 20}, {"doc_id": "b", "age": 31}]));

    let table = send(&app, Post { path: "/a/demo/sql?shape=table", ..Post::default() }).await;
    assert_eq!(
        value(table).await,
        json!({"columns": [{"name": "doc_id", "type": "Utf8View"}, {"name": "age", "type": "Int32"}],
               "rows": [["a", 20], ["b", 31]]})
    );

    let body = "select doc_id, inserted_at, tags, weight from visits where doc_id = 'a'".to_owned();
    let csv = send(&app, Post { accept: "text/csv", body, ..Post::default() }).await;
    assert_eq!(
        String::from_utf8(bytes(csv).await).unwrap(),
        "doc_id,inserted_at,tags,weight\na,2024-01-01T00:00:00.000000Z,\"[x, Ada]\",2.0000000000000000\n"
    );

    let arrow = send(&app, Post { accept: "application/vnd.apache.arrow.stream", ..Post::default() }).await;
    let reader = arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes(arrow).await), None).unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2);

    for (accept, empty) in [("*/*", "[]"), ("text/csv", "doc_id,age\n")] {
        let body = "select doc_id, age from visits where false".to_owned();
        let response = send(&app, Post { accept, body, ..Post::default() }).await;
        assert_eq!(String::from_utf8(bytes(response).await).unwrap(), empty);
    }
}

#[tokio::test]
async fn parameters_are_bound() {
    let (app, _) = app(world::quick());
    let ask = |body: Value| send(&app, Post { kind: "application/json", body: body.to_string(), ..Post::default() });
    let found =
        ask(json!({"sql": "select name from visits where doc_id = $1 and age > $2", "params": ["b", 30]})).await;
    assert_eq!(value(found).await, json!([{"name": "Bea"}]));
    let dated =
        ask(json!({"sql": "select count(*) n from visits where inserted_at >= $1", "params": ["2024-02-02"]})).await;
    assert_eq!(value(dated).await, json!([{"n": 2}]));
    for (body, says) in [
        (json!({"sql": "select $1", "params": []}), "parameter"),
        (json!({"sql": "select name from visits where age = $1", "params": ["x"]}), "$1"),
        (json!({"sql": "select 1", "parms": []}), "parms"),
        (json!({"sql": "select name from visits where age = $1", "params": [[1]]}), "params"),
    ] {
        let response = ask(body.clone()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        let error = value(response).await;
        assert!(error["error"].as_str().unwrap().contains(says), "{body}: {error}");
    }
}

#[tokio::test]
async fn failures_have_their_status_and_still_say_how_fresh() {
    let (app, _) = app(QueryConfig { max_result_rows: 3, max_statement_bytes: 200, ..world::quick() });
    for (path, body, status) in [
        ("/a/demo/sql", "select * from vists", 404),
        ("/a/demo/sql", "select nix from visits", 400),
        ("/a/demo/sql", "drop table visits", 403),
        ("/a/demo/sql", "select 1; select 2", 400),
        ("/a/demo/sql", "", 400),
        ("/a/demo/sql", "select * from visits", 413),
        ("/a/demo/sql", "select doc_id from visits where age > 0", 413),
        ("/a/demo/sql?wait_for=m1.0-0.42", "select 1", 504),
        ("/a/demo/sql?wait_for=nonsense", "select 1", 400),
        ("/a/demo/sql?wait_for=m1.0-0.41", "select 1", 200),
    ] {
        let response = send(&app, Post { path, body: body.to_owned(), ..Post::default() }).await;
        assert_eq!(response.status().as_u16(), status, "{path} {body}");
        assert_eq!(response.headers()["x-millrace-snapshot"], "41", "{path} {body}");
        if status != 200 {
            assert!(value(response).await["error"].as_str().is_some_and(|text| !text.is_empty()));
        }
    }
    let long = send(&app, Post { body: format!("select '{}'", "x".repeat(300)), ..Post::default() }).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_receipt_is_waited_for() {
    let (app, views) = app(QueryConfig { default_wait_ms: 20_000, ..QueryConfig::default() });
    let path = "/a/demo/sql?wait_for=m1.0-0.42";
    let body = "select tick from system.snapshot".to_owned();
    let answer = send(&app, Post { path, body, ..Post::default() });
    let publish = async {
        let mut next = world::snapshot(visits(false).0, vec![]);
        next.moment.tick.0 = 42;
        next.moment.complete_through.advance(world::position(42));
        views.publish(next);
    };
    let (response, ()) = tokio::join!(answer, publish);
    assert_eq!(value(response).await, json!([{"tick": 42}]));
}

#[tokio::test]
async fn a_failure_behind_the_first_megabyte_breaks_the_transfer_off() {
    let (app, _) = app(QueryConfig { max_result_rows: 100_000, ..world::quick() });
    let body = "select n, repeat('x', 100) t from generate_series(1, 200000) g(n) where n > 0".to_owned();
    let response = send(&app, Post { body, ..Post::default() }).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(axum::body::to_bytes(response.into_body(), usize::MAX).await.is_err());
}
