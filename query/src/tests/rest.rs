//! Case and form reads as clients make them.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Request, header},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{
    http::basic,
    world::{self, FakeViews, visits},
};

fn case(id: &str, kind: &str, extra: &Value) -> Value {
    let mut doc = json!({
        "_id": id, "domain": "demo", "doc_type": "CommCareCase", "type": kind, "name": format!("Case {id}"),
        "owner_id": "u1", "user_id": "u1", "opened_by": "u1", "opened_on": "2024-01-01T08:00:00.000000Z",
        "modified_on": "2024-01-02T08:00:00.000000Z", "server_modified_on": "2024-01-02T08:00:05.000000Z",
        "closed": false, "closed_on": null, "external_id": null, "indices": [], "xform_ids": ["f1"], "actions": [],
        "edd": "2024-06-01",
    });
    doc.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    doc
}

pub(super) fn form(id: &str, xmlns: &str, doc_type: &str, received: &str) -> Value {
    json!({
        "_id": id, "domain": "demo", "doc_type": doc_type, "xmlns": xmlns, "app_id": "app1", "build_id": "b1",
        "user_id": "u1", "received_on": received, "server_modified_on": received,
        "form": {"#type": "data", "@xmlns": xmlns, "@version": "12", "@uiVersion": "1", "@name": "Visit",
                 "case": [{"@case_id": "c1"}, {"@case_id": format!("case-of-{id}")}],
                 "item": [{"n": "1"}, {"n": "2"}],
                 "meta": {"@xmlns": "http://openrosa.org/jr/xforms", "userID": "U1", "deviceID": "d1", "instanceID": id,
                          "timeStart": "2024-01-01T08:00:00Z", "appVersion": {"#text": "CommCare 2.27"}}},
    })
}

fn app() -> Router {
    let index = json!([{"identifier": "mother", "referenced_id": "c1", "referenced_type": "pregnancy", "relationship": "child"}]);
    let cases = world::cases(&[
        (case("c1", "pregnancy", &json!({"external_id": "x/1", "risk": "high"})), "2024-02-01T00:00:00.000001"),
        (
            case("c2", "pregnancy", &json!({"owner_id": "u2", "closed": true, "closed_on": "2024-03-01T00:00:00Z"})),
            "2024-02-01T00:00:00.000002",
        ),
        (case("c3", "child", &json!({"indices": index, "risk": ""})), "2024-02-02"),
        (case("gone", "child", &json!({"doc_type": "CommCareCase-Deleted"})), "2024-02-03"),
        (case("c4", "child", &json!({"external_id": "twice"})), "2024-02-04"),
        (case("c5", "child", &json!({"external_id": "twice"})), "2024-02-05"),
    ]);
    let forms = world::forms(&[
        (form("f1", "http://x/1", "XFormInstance", "2024-02-01T10:00:00.000000Z"), "2024-02-01T10:00:01"),
        (form("f2", "http://x/2", "XFormInstance", "2024-02-02T10:00:00.000000Z"), "2024-02-02T10:00:01"),
        (form("f3", "http://x/1", "XFormArchived", "2024-02-03T10:00:00.000000Z"), "2024-02-03T10:00:01"),
        (form("f4", "http://x/1", "XFormError", "2024-02-04T10:00:00.000000Z"), "2024-02-04T10:00:01"),
        (
            form("log", "http://code.javarosa.org/devicereport", "XFormInstance", "2024-02-05T10:00:00.000000Z"),
            "2024-02-05T10:00:01",
        ),
        (form("f5", "http://x/1", "XFormInstance", "2024-01-05T10:00:00.000000Z"), "2024-02-06T10:00:01"),
    ]);
    let others = vec![("case_documents", cases), ("form_documents", forms)];
    let views = FakeViews::new(world::snapshot(visits(false).0, others));
    crate::routes(world::state(&views, world::quick()))
}

pub(super) async fn get(app: &Router, path: &str) -> (u16, Value) {
    let request = Request::get(path)
        .header(header::AUTHORIZATION, basic(world::USER, world::PASSWORD))
        .header(header::HOST, "hq.example.org");
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-millrace-snapshot"], "41", "{path}");
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
}

pub(super) fn ids<'a>(list: &'a Value, name: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|object| object[name].as_str().unwrap()).collect()
}

#[tokio::test]
async fn cases_are_listed_in_order_of_change() {
    let app = app();
    for path in ["/a/demo/api/case/v2", "/a/demo/api/case/v2/", "/a/demo/api/v0.6/case", "/a/demo/api/v0.6/case/"] {
        let (status, body) = get(&app, path).await;
        assert_eq!((status, &body["matching_records"]), (200, &json!(5)), "{path}");
        assert_eq!(ids(&body["cases"], "case_id"), ["c1", "c2", "c3", "c4", "c5"], "{path}");
        assert!(body.get("next").is_none(), "{path}");
    }
    for (query, found) in [
        ("case_type=child", &["c3", "c4", "c5"][..]),
        ("case_type=child&case_type=pregnancy", &["c1", "c2", "c3", "c4", "c5"]),
        ("owner_id=u2", &["c2"]),
        ("closed=false&case_type=pregnancy", &["c1"]),
        ("closed=True", &["c2"]),
        ("external_id=x/1", &["c1"]),
        ("properties.risk=high", &["c1"]),
        ("properties.risk=&case_type=child", &["c3", "c4", "c5"]),
        ("properties.edd=2024-06-01&case_type=pregnancy", &["c1", "c2"]),
        ("indices.mother=c1", &["c3"]),
        ("indexed_on.gte=2024-02-02", &["c3", "c4", "c5"]),
        ("indexed_on.gt=2024-02-02&indexed_on.lt=2024-02-05", &["c4"]),
        ("indexed_on.lte=2024-02-01", &["c1", "c2"]),
        ("date_closed.gte=2024-01-01", &["c2"]),
        ("server_last_modified.gt=2025-01-01", &[]),
    ] {
        let (status, body) = get(&app, &format!("/a/demo/api/case/v2?{query}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        assert_eq!(ids(&body["cases"], "case_id"), found, "{query}");
        assert_eq!(body["matching_records"], found.len(), "{query}");
    }
}

#[tokio::test]
async fn case_pages_follow_their_cursor() {
    let app = app();
    let mut path = "/a/demo/api/case/v2/?limit=2&properties.edd=2024-06-01&fields=case_id,properties.edd".to_owned();
    let mut pages = Vec::new();
    loop {
        let (status, body) = get(&app, &path).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["cases"][0].as_object().unwrap().len(), 2, "fields survive the cursor");
        pages.push(ids(&body["cases"], "case_id").join(","));
        let Some(next) = body.get("next") else { break };
        path = next.as_str().unwrap().strip_prefix("http://hq.example.org").unwrap().to_owned();
    }
    assert_eq!(pages, ["c1,c2", "c3,c4", "c5"]);
}

#[tokio::test]
async fn a_case_has_its_contract_fields() {
    let app = app();
    let (status, body) = get(&app, "/a/demo/api/case/v2/c3/").await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({
            "domain": "demo", "case_id": "c3", "case_type": "child", "case_name": "Case c3", "external_id": null,
            "owner_id": "u1", "date_opened": "2024-01-01T08:00:00.000000Z", "last_modified": "2024-01-02T08:00:00.000000Z",
            "server_last_modified": "2024-01-02T08:00:05.000000Z", "indexed_on": "2024-02-02T00:00:00.000000Z",
            "closed": false, "date_closed": null, "properties": {"edd": "2024-06-01", "risk": ""},
            "indices": {"mother": {"case_id": "c1", "case_type": "pregnancy", "relationship": "child"}},
        })
    );
    for (path, status, error) in [
        ("case/v2/nobody", 404, "Case 'nobody' not found"),
        ("case/v2/gone", 404, "Case 'gone' not found"),
        ("case/v2/ext/none/", 404, "Case 'none' not found"),
        ("case/v2/ext/twice/", 400, "Multiple cases found with external_id 'twice': c4, c5"),
        ("case/v2?colour=red", 400, "'colour' is not a valid parameter."),
        ("case/v2?indexed_on.gte=soon", 400, "Cannot parse datetime 'soon'"),
        ("case/v2?limit=5001", 400, "You cannot request more than 5000 cases per request."),
        ("case/v2?wait_for=m1.0-0.99", 504, ""),
        ("case/v2?fields=case_id&exclude=domain", 400, "'fields' and 'exclude' cannot be used together."),
    ] {
        let (got, body) = get(&app, &format!("/a/demo/api/{path}")).await;
        assert_eq!(got, status, "{path}");
        assert!(body["error"].as_str().unwrap().contains(error), "{path}: {body}");
    }
    let (_, body) = get(&app, "/a/demo/api/case/v2/c2,nobody,c1").await;
    assert_eq!((&body["matching_records"], &body["missing_records"]), (&json!(2), &json!(1)));
    assert_eq!(body["cases"][1], json!({"case_id": "nobody", "error": "not found"}));
    assert_eq!(ids(&body["cases"], "case_id"), ["c2", "nobody", "c1"]);
}

#[tokio::test]
async fn forms_are_listed_with_exact_totals() {
    let app = app();
    for path in ["/a/demo/api/v0.5/form", "/a/demo/api/v0.5/form/", "/a/demo/api/form/v1", "/a/demo/api/form/v1/"] {
        let (status, body) = get(&app, path).await;
        assert_eq!(status, 200, "{path}");
        assert_eq!(ids(&body["objects"], "id"), ["f2", "f1", "f5"], "newest received first: {path}");
        assert_eq!(body["meta"], json!({"limit": 20, "offset": 0, "total_count": 3, "next": null, "previous": null}));
    }
    for (query, found) in [
        ("order_by=indexed_on", &["f1", "f2", "f5"][..]),
        ("order_by=-indexed_on", &["f5", "f2", "f1"]),
        ("xmlns.exact=http://x/1&order_by=received_on", &["f5", "f1"]),
        ("xmlns=http://x/2", &["f2"]),
        ("include_archived=false", &["f3", "f2", "f1", "f5"]),
        ("indexed_on_start=2024-02-02T10:00:01&order_by=indexed_on", &["f2", "f5"]),
        ("received_on_start=2024-02-01&received_on_end=2024-02-01T10:00:00.000000", &["f1"]),
        ("app_id=APP1", &["f2", "f1", "f5"]),
        ("case_id=case-of-f2", &["f2"]),
        ("case_id=c1&version=12", &["f2", "f1", "f5"]),
        ("form.meta.userID=u1&form.item.n=2&form.@name=visit", &["f2", "f1", "f5"]),
        ("form.nothing=1", &[]),
        ("user_id=nobody", &[]),
        ("offset=50", &[]),
    ] {
        let (status, body) = get(&app, &format!("/a/demo/api/v0.5/form/?{query}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        assert_eq!(ids(&body["objects"], "id"), found, "{query}");
    }
    let (_, page) = get(&app, "/a/demo/api/v0.5/form/?limit=2&order_by=indexed_on").await;
    assert_eq!(page["meta"]["next"], "?order_by=indexed_on&limit=2&offset=2");
    assert_eq!(page["meta"]["total_count"], 3);
    let (_, page) = get(&app, "/a/demo/api/v0.5/form/?order_by=indexed_on&limit=2&offset=2").await;
    assert_eq!(ids(&page["objects"], "id"), ["f5"]);
    assert_eq!(page["meta"]["previous"], "?order_by=indexed_on&limit=2&offset=0");
}

#[tokio::test]
async fn a_form_has_its_contract_fields() {
    let app = app();
    let (status, body) = get(&app, "/a/demo/api/v0.5/form/f1/").await;
    assert_eq!(status, 200);
    assert_eq!(body["indexed_on"], "2024-02-01T10:00:01.000000");
    assert_eq!(body["received_on"], "2024-02-01T10:00:00.000000Z");
    assert_eq!((&body["type"], &body["version"], &body["uiversion"]), (&json!("data"), &json!("12"), &json!("1")));
    assert_eq!(body["metadata"]["appVersion"], "CommCare 2.27");
    assert_eq!(body["metadata"]["timeStart"], "2024-01-01T08:00:00.000000Z");
    assert_eq!(body["metadata"]["location"], Value::Null);
    assert!(body["metadata"].get("@xmlns").is_none());
    assert_eq!(body["attachments"]["form.xml"]["url"], "/a/demo/api/form_attachment/v1/f1/form.xml");
    assert_eq!((&body["archived"], &body["resource_uri"]), (&json!(false), &json!("")));
    assert_eq!(body["form"]["item"], json!([{"n": "1"}, {"n": "2"}]));
    let (_, newer) = get(&app, "/a/demo/api/form/v1/f1").await;
    assert_eq!(newer["indexed_on"], "2024-02-01T10:00:01.000000Z");
    for (path, status) in [
        ("/a/demo/api/form/v1/nobody/", 404),
        ("/a/demo/api/form/v1/f4", 404),
        ("/a/demo/api/form/v1/?order_by=name", 400),
        ("/a/demo/api/form/v1/?limit=-1", 400),
        ("/a/demo/api/form/v1/?indexed_on_start=soon", 400),
    ] {
        assert_eq!(get(&app, path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn strangers_get_the_contract_refusal() {
    let app = app();
    let request = Request::get("/a/demo/api/v0.5/form/").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    let bytes = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), json!({"error": "not authorized"}));
}

#[tokio::test]
async fn without_documents_lists_are_empty() {
    let views = FakeViews::new(world::snapshot(visits(false).0, vec![]));
    let app = crate::routes(world::state(&views, world::quick()));
    assert_eq!(get(&app, "/a/demo/api/case/v2/").await.1, json!({"matching_records": 0, "cases": []}));
    assert_eq!(get(&app, "/a/demo/api/form/v1/").await.1["meta"]["total_count"], 0);
    drop(Arc::clone(&views));
}
