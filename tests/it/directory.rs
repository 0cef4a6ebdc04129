//! Users, groups, locations, applications and lookup tables: written through the API and read back over REST.

use reqwest::{Method, StatusCode};
use schemas::position::Position;
use serde_json::{Value, json};

use crate::server::{Options, Server, reply};

/// A read that includes a write.
async fn read(server: &Server, path: &str, after: Position) -> (StatusCode, Value) {
    let mark = if path.contains('?') { '&' } else { '?' };
    let request = server.request(Method::GET, &format!("api/{path}{mark}wait_for={after}"));
    let answer = request.send().await.unwrap();
    assert!(answer.headers().contains_key("x-millrace-snapshot"), "{path}");
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// The values of a field in a list.
async fn listed(server: &Server, path: &str, field: &str, after: Position) -> Vec<String> {
    let (status, body) = read(server, path, after).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    let objects = body["objects"].as_array().unwrap();
    objects
        .iter()
        .map(|object| object[field].as_str().unwrap_or_else(|| panic!("{path}: {object}")).to_owned())
        .collect()
}

async fn delete(server: &Server, path: &str) -> Position {
    let reply = reply(server.request(Method::DELETE, &format!("api/v0.5/{path}"))).await.unwrap();
    assert_eq!(reply.status, StatusCode::NO_CONTENT, "{path}: {}", reply.text);
    reply.position.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_back() {
    let mut server = Server::start(&Options::default()).await;
    let made = [
        ("location_type", json!({"_id": "state", "name": "State", "code": "st"})),
        ("location_type", json!({"_id": "village", "name": "Village", "code": "vi", "parent": "state"})),
        ("location", json!({"_id": "l1", "name": "North", "location_type": "state"})),
        (
            "location",
            json!({"_id": "l2", "name": "Hill", "location_type": "Village", "parent": "/a/demo/api/v0.5/location/l1/",
            "location_data": {"pin": "7"}}),
        ),
        ("user", json!({"_id": "u1", "username": "asha", "password": "secret-1", "primary_location": "l2"})),
        ("user", json!({"_id": "u2", "username": "bela"})),
        ("group", json!({"_id": "g1", "name": "All", "users": ["u1", "u2"]})),
        ("lookup_table", json!({"_id": "t1", "tag": "fruit", "fields": ["name"]})),
        ("lookup_table_item", json!({"_id": "r1", "data_type_id": "t1", "fields": {"name": "fig"}})),
        (
            "application",
            json!({"_id": "a1", "name": "App", "modules": [
            {"name": {"en": "M"}, "forms": [{"xmlns": "http://x/1", "name": {"en": "F"}}]}]}),
        ),
    ];
    let mut last = None;
    for (resource, document) in &made {
        last = Some(server.write(Method::POST, &format!("api/v0.5/{resource}/"), document).await);
    }
    let last = last.unwrap();
    // What a write calls the address of its document is where it is read.
    for (resource, document) in &made {
        let id = document["_id"].as_str().unwrap();
        let (status, object) = read(&server, &format!("v0.5/{resource}/{id}/"), last).await;
        assert_eq!(status, StatusCode::OK, "{resource}");
        assert_eq!(object["resource_uri"], format!("/a/demo/api/v0.5/{resource}/{id}/"));
    }
    let (_, user) = read(&server, "user/v1/u1/", last).await;
    assert_eq!((&user["username"], &user["groups"]), (&json!("asha@demo.commcarehq.org"), &json!(["g1"])));
    assert!(!user.to_string().contains("secret"), "{user}");
    assert_eq!(user["user_data"]["commcare_location_id"], "l2");
    let (_, place) = read(&server, "location/v2/l2/", last).await;
    let kind = (&place["location_type_code"], &place["location_type_name"]);
    assert_eq!((kind, &place["parent_location_id"]), ((&json!("vi"), &json!("Village")), &json!("l1")));
    assert_eq!(place["location_data"], json!({"pin": "7"}));
    assert_eq!(listed(&server, "v0.5/fixture?fixture_type=fruit", "id", last).await, ["r1"]);
    let (_, app) = read(&server, "v0.5/application/a1/?format=json&extras=true", last).await;
    assert_eq!(app.pointer("/modules/0/forms/0/name/en"), Some(&json!("F")));

    // A change is seen, and only where it applies.
    server.write(Method::PUT, "api/v0.5/user/u2/", &json!({"is_active": false})).await;
    server.write(Method::PUT, "api/v0.5/location/l1/", &json!({"name": "South"})).await;
    let changed = server.write(Method::PUT, "api/v0.5/lookup_table/t1/", &json!({"tag": "berry"})).await;
    assert_eq!(listed(&server, "v0.5/user/", "id", changed).await, ["u1"]);
    assert_eq!(listed(&server, "v0.5/user/?archived=true", "id", changed).await, ["u2"]);
    assert_eq!(read(&server, "v0.5/group/g1/", changed).await.1["users"], json!(["u1"]));
    assert_eq!(read(&server, "v0.5/location/l1/", changed).await.1["name"], "South");
    assert_eq!(listed(&server, "v0.5/fixture/?fixture_type=berry", "id", changed).await, ["r1"]);
    assert!(listed(&server, "v0.5/fixture/?fixture_type=fruit", "id", changed).await.is_empty());

    // Pages of an import, in one order.
    let rows: Vec<Value> = (0..45)
        .map(|n| json!({"_id": format!("row-{n}"), "data_type_id": "t1", "sort_key": n, "fields": {"n": n}}))
        .collect();
    let imported = server.write(Method::POST, "import/lookup-table-items", &rows.into()).await;
    let mut all = Vec::new();
    let mut path = "lookup_table_item/v2/".to_owned();
    loop {
        let (_, body) = read(&server, &path, imported).await;
        assert_eq!(body["meta"]["total_count"], 46);
        all.extend(body["objects"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        let Some(next) = body["meta"]["next"].as_str() else { break };
        path = format!("lookup_table_item/v2/{next}");
    }
    assert_eq!(all[1..], (0..45).map(|n| format!("row-{n}")).collect::<Vec<_>>());
    assert_eq!(listed(&server, "v0.5/fixture/", "id", imported).await.len(), 46, "no pages unless asked for");

    // What is deleted is gone, also after the views are computed anew.
    delete(&server, "lookup_table_item/r1/").await;
    delete(&server, "user/u1/").await;
    let gone = delete(&server, "group/g1/").await;
    for path in ["v0.5/lookup_table_item/r1/", "v0.5/user/u1/", "v0.5/group/g1/"] {
        assert_eq!(read(&server, path, gone).await, (StatusCode::NOT_FOUND, Value::Null), "{path}");
    }
    let before = read(&server, "v0.5/location/", gone).await;
    server.stop().await;
    server.restart().await;
    assert_eq!(read(&server, "v0.5/location/", gone).await, before, "also the times of the last change");
    let rows = server.sql("SELECT doc_id FROM system.lookup_row_documents", Some(gone)).await.rows;
    assert_eq!(rows.len(), 45);
    let stranger = server.anonymous(Method::GET, "demo", "api/v0.5/user/").send().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_reads_its_own_documents_only() {
    let server = Server::start(&Options::default()).await;
    server.create_domain("other");
    let position = server.write(Method::POST, "api/v0.5/user/", &json!({"_id": "u1", "username": "asha"})).await;
    assert_eq!(listed(&server, "v0.5/user/", "id", position).await, ["u1"]);
    let path = format!("api/v0.5/user/?wait_for={position}");
    let answer = server.request_in(Method::GET, "other", &path).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["meta"]["total_count"], 0);
    let answer = server.request_in(Method::GET, "other", "api/v0.5/user/u1/").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}
