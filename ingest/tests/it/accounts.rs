//! Who may do what, users and locations, definitions.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use schemas::{
    change::DocKind,
    id::{DomainId, ViewName},
    port::{AuthError, Credentials, Permission, Secret},
    position::LaneId,
};
use serde_json::json;

use crate::service::{Service, basic, demo, documents, form, start};

fn password(name: &str, password: &str) -> Credentials {
    Credentials::Password { username: name.to_owned(), password: Secret(password.to_owned()) }
}

async fn post_as(service: &Service, authorization: Option<String>, path: &str) -> StatusCode {
    let mut request = Request::post(path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    service.send(request.body(Body::from(form("f1", "1", ""))).unwrap()).await.status
}

#[tokio::test]
async fn strangers_are_challenged_and_the_domains_setting_opens_the_door() {
    let service = start().await;
    for authorization in [
        None,
        Some(basic("admin@demo", "wrong")),
        Some(basic("nobody@demo", &service.password)),
        Some("Bearer abc".to_owned()),
    ] {
        let status = post_as(&service, authorization.clone(), "/a/demo/receiver/").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{authorization:?}");
    }
    let refused = service.send(Request::post("/a/demo/receiver/").body(Body::from("x")).unwrap()).await;
    assert!(refused.headers["www-authenticate"].to_str().unwrap().starts_with("Basic "));
    assert_eq!(service.number("SELECT count(*) FROM forms").await, 0);
    service.ingest.accounts().set_domain(&demo(), Some(false), None).await.unwrap();
    assert_eq!(post_as(&service, None, "/a/demo/receiver/").await, StatusCode::CREATED);
    assert_eq!(post_as(&service, None, "/a/demo/receiver/secure/").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn credentials_are_of_a_domain_and_forgotten_when_the_account_changes() {
    let service = start().await;
    let (auth, accounts) = (service.ingest.authenticator(), service.ingest.accounts());
    let other = DomainId::new("other").unwrap();
    accounts.create_domain(&other).await.unwrap();
    let admin = password("admin@demo", &service.password);
    let principal = auth.authenticate(&demo(), &admin).await.unwrap();
    assert!(principal.may(Permission::EditUsers) && principal.domain == demo());
    assert!(matches!(auth.authenticate(&other, &admin).await, Err(AuthError::Refused { .. })));

    // Remembered: the account table is not asked again.
    let client = service.client().await;
    client.execute("UPDATE accounts SET password_hash = 'x' WHERE username = 'admin@demo'", &[]).await.unwrap();
    auth.authenticate(&demo(), &admin).await.unwrap();
    accounts.set_password("admin@demo", &Secret("new".to_owned())).await.unwrap();
    assert!(auth.authenticate(&demo(), &admin).await.is_err());
    auth.authenticate(&demo(), &password("admin@demo", "new")).await.unwrap();
    assert!(accounts.ensure_admin(&demo()).await.unwrap().is_none(), "made once");

    let Secret(key) = accounts.create_api_key("admin@demo", Some(&demo()), "script").await.unwrap();
    let with = |key: &str| Credentials::ApiKey { username: "admin@demo".to_owned(), key: Secret(key.to_owned()) };
    auth.authenticate(&demo(), &with(&key)).await.unwrap();
    assert!(auth.authenticate(&demo(), &with("guess")).await.is_err());
    let wrong_name = Credentials::ApiKey { username: "someone".to_owned(), key: Secret(key.clone()) };
    assert!(auth.authenticate(&demo(), &wrong_name).await.is_err());
    assert_eq!(
        post_as(&service, Some(format!("ApiKey admin@demo:{key}")), "/a/demo/receiver/secure/").await,
        StatusCode::CREATED
    );
    let stored: Vec<u8> = client.query_one("SELECT key_hash FROM api_keys", &[]).await.unwrap().get(0);
    assert!(!String::from_utf8_lossy(&stored).contains(&key));
}

#[tokio::test]
async fn workers_submit_under_either_name_and_nothing_else() {
    let service = start().await;
    let made = service
        .call("POST", "/a/demo/api/v0.5/user/", r#"{"username": "asha", "password": "pw1", "first_name": "Asha"}"#)
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let record = service.record(made.position()).await;
    let (user, kind, body) = documents(&record, DocKind::User).remove(0);
    assert_eq!((user.as_str(), kind.as_str(), &body["first_name"]), (id.as_str(), "CommCareUser", &"Asha".into()));
    assert!(body.get("password").is_none());
    for name in ["asha@demo", "asha@demo.commcarehq.org"] {
        let status = post_as(&service, Some(basic(name, "pw1")), "/a/demo/receiver/secure/").await;
        assert_eq!(status, StatusCode::CREATED, "{name}");
    }
    let request = Request::post("/a/demo/api/v0.5/user/").header("authorization", basic("asha@demo", "pw1"));
    let forbidden = service.send(request.body(Body::from(r#"{"username": "b"}"#)).unwrap()).await;
    assert_eq!(forbidden.status, StatusCode::FORBIDDEN);

    let path = format!("/a/demo/api/v0.5/user/{id}/");
    let changed = service.call("PUT", &path, r#"{"password": "pw2", "is_active": true}"#).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(post_as(&service, Some(basic("asha@demo", "pw1")), "/a/demo/receiver/").await, StatusCode::UNAUTHORIZED);
    assert_eq!(post_as(&service, Some(basic("asha@demo", "pw2")), "/a/demo/receiver/").await, StatusCode::CREATED);
    service.call("PUT", &path, r#"{"is_active": false}"#).await;
    assert_eq!(
        post_as(&service, Some(basic("asha@demo", "pw2")), "/a/demo/receiver/").await,
        StatusCode::NOT_ACCEPTABLE
    );
    assert_eq!(service.call("PUT", "/a/demo/api/v0.5/user/nobody/", "{}").await.status, StatusCode::NOT_FOUND);
    let taken = service.call("POST", "/a/demo/api/v0.5/user/", r#"{"username": "asha"}"#).await;
    assert_eq!(taken.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn web_users_are_documents_of_each_of_their_domains_in_a_lane_of_their_own() {
    let service = start().await;
    let accounts = service.ingest.accounts();
    let other = DomainId::new("other").unwrap();
    accounts.create_domain(&other).await.unwrap();
    let Secret(password_of_other) = accounts.ensure_admin(&other).await.unwrap().unwrap();
    let path = "/a/demo/api/v0.5/web-user/";
    let sent =
        json!({"username": "chief@example.org", "password": "pw", "first_name": "C", "permissions": ["read_data"]});
    let made = service.call("POST", path, sent.to_string()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.position().lane, LaneId::control(0));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let record = service.record(made.position()).await;
    let (_, kind, body) = documents(&record, DocKind::WebUser).remove(0);
    assert_eq!(
        (kind.as_str(), &body["domain"], &body["permissions"]),
        ("WebUser", &"demo".into(), &json!(["read_data"]))
    );
    assert!(body.get("password").is_none());
    let auth = service.ingest.authenticator();
    let chief = password("chief@example.org", "pw");
    assert_eq!(auth.authenticate(&demo(), &chief).await.unwrap().permissions, [Permission::ReadData]);
    assert!(auth.authenticate(&other, &chief).await.is_err());

    // Another domain's administrator may let them in, but neither takes their account over nor gives what they lack.
    let ask = |body: serde_json::Value| {
        let request = Request::post("/a/other/api/v0.5/web-user/");
        let request = request.header("authorization", basic("admin@other", &password_of_other));
        request.body(Body::from(body.to_string())).unwrap()
    };
    let stolen = service.send(ask(json!({"username": "chief@example.org", "password": "mine"}))).await;
    assert_eq!(stolen.status, StatusCode::BAD_REQUEST, "{stolen:?}");
    let joined = service.send(ask(json!({"username": "chief@example.org", "permissions": ["submit"]}))).await;
    assert_eq!((joined.status, &joined.json()["id"]), (StatusCode::CREATED, &json!(id)), "{joined:?}");
    assert_eq!(auth.authenticate(&other, &chief).await.unwrap().permissions, [Permission::Submit]);
    let editor = [Permission::EditUsers];
    accounts.create_web_user("editor", &Secret("pw".to_owned()), &demo(), &editor).await.unwrap();
    let request = Request::put(format!("{path}{id}/")).header("authorization", basic("editor", "pw"));
    let raised = service.send(request.body(Body::from(r#"{"permissions": ["edit_domain"]}"#)).unwrap()).await;
    assert_eq!(raised.status, StatusCode::BAD_REQUEST, "{raised:?}");
    assert!(raised.body.contains("edit_domain"), "{raised:?}");
    for (field, value) in
        [("permissions", json!(["everything"])), ("permissions", json!("submit")), ("username", json!("x"))]
    {
        let refused = service.call("PUT", &format!("{path}{id}/"), json!({field: value}).to_string()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{field} {refused:?}");
    }
    let changed = service.call("PUT", &format!("{path}{id}/"), r#"{"last_name": "D"}"#).await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");

    // Nor does their account become a mobile worker's, which would open their other domains to whoever sets its password.
    let worker = json!({"id": id, "username": "x", "password": "mine"}).to_string();
    let taken = service.call("POST", "/a/demo/api/v0.5/user/", worker).await;
    assert_eq!(taken.status, StatusCode::CONFLICT, "{taken:?}");
    assert!(auth.authenticate(&other, &chief).await.is_ok());

    let gone = service.call("DELETE", &format!("{path}{id}/"), "").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{gone:?}");
    assert!(auth.authenticate(&demo(), &chief).await.is_err());
    assert!(auth.authenticate(&other, &chief).await.is_ok());
    accounts.join("chief@example.org", &demo(), &[Permission::Submit]).await.unwrap();
    assert!(auth.authenticate(&demo(), &chief).await.is_ok());
    accounts.leave("chief@example.org", &demo()).await.unwrap();
    assert!(auth.authenticate(&demo(), &chief).await.is_err());
    let documents = "SELECT count(*) FROM documents WHERE kind = 'web_user'";
    assert_eq!(service.number(documents).await, 4, "two administrators, the editor, and the chief in one domain");
}

#[tokio::test]
async fn one_of_many_gets_a_name_that_all_ask_for_at_once() {
    let service = start().await;
    let accounts = service.ingest.accounts();
    let domains: Vec<DomainId> = (0..8).map(|n| DomainId::new(&format!("d{n}")).unwrap()).collect();
    for domain in &domains {
        accounts.create_domain(domain).await.unwrap();
    }
    let secret = Secret("pw".to_owned());
    let made = domains.iter().map(|domain| accounts.create_web_user("chief", &secret, domain, &[Permission::Submit]));
    let made = futures::future::join_all(made).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1, "{made:?}");
    let joined = domains.iter().map(|domain| accounts.join("chief", domain, &[Permission::Submit]));
    for joined in futures::future::join_all(joined).await {
        joined.unwrap();
    }
    let sql = "SELECT count(*) FROM memberships m JOIN accounts a ON a.id = m.account_id WHERE a.username = 'chief'";
    assert_eq!(service.number(sql).await, 8);
}

#[tokio::test]
async fn an_import_reports_every_row_and_updates_what_exists() {
    let service = start().await;
    let places = "{\"location_id\":\"s\",\"name\":\"S\",\"location_type\":\"state\"}\n\
                  {\"location_id\":\"d\",\"name\":\"D\",\"location_type\":\"district\",\"parent_id\":\"s\"}\n\
                  {\"location_id\":\"x\",\"name\":\"X\",\"parent_id\":\"nowhere\"}\nnonsense\n";
    let answer = service.call("POST", "/a/demo/import/locations", places).await;
    assert_eq!(answer.status, StatusCode::OK);
    let report = answer.json();
    assert_eq!((&report["created"], &report["failed"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(documents(&service.record(answer.position()).await, DocKind::Location).len(), 2);
    let users: Vec<_> = (0..450)
        .map(|n| {
            json!({"_id": format!("u{n}"), "domain": "demo", "doc_type": "CommCareUser", "username": format!("w{n}"),
            "location_id": "d", "is_active": true})
        })
        .collect();
    let first = service.call("POST", "/a/demo/import/users/", json!(users).to_string()).await.json();
    assert_eq!((&first["created"], &first["updated"], &first["failed"]), (&450.into(), &0.into(), &0.into()));
    assert_eq!(first["rows"][449]["row"], 450);
    let second = service.call("POST", "/a/demo/import/users/", json!(users).to_string()).await.json();
    assert_eq!((&second["created"], &second["updated"]), (&0.into(), &450.into()));
    assert_eq!(service.number("SELECT count(*) FROM users").await, 450);
}

#[tokio::test]
async fn definitions_are_put_listed_and_deleted() {
    let service = start().await;
    let (_, source) = schemas::sample::DATA_SOURCES.iter().find(|(id, _)| *id == "visits").unwrap();
    let put = service.call("PUT", "/a/demo/ucr/data-sources/visits/", *source).await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    let (id, _, body) = documents(&service.record(put.position()).await, DocKind::DataSource).remove(0);
    assert_eq!((id.as_str(), &body["table_id"], &body["domain"]), ("visits", &"visits".into(), &"demo".into()));
    let renamed = service.call("PUT", "/a/demo/ucr/data-sources/again", *source).await;
    assert_eq!(renamed.status, StatusCode::OK);
    let listed = service.call("GET", "/a/demo/ucr/data-sources", "").await.json();
    assert_eq!(listed["objects"].as_array().unwrap().len(), 2);
    let one = service.call("GET", "/a/demo/ucr/data-sources/again/", "").await.json();
    assert_eq!((&one["definition"]["table_id"], &one["status"]), (&"again".into(), &json!(null)));

    let mut paused: serde_json::Value = serde_json::from_str(source).unwrap();
    paused["paused"] = json!(true);
    let put = service.call("PUT", "/a/demo/ucr/data-sources/again", paused.to_string()).await;
    let (_, _, body) = documents(&service.record(put.position()).await, DocKind::DataSource).remove(0);
    assert_eq!(body["paused"], true);
    paused["paused"] = json!("please");
    let bad = service.call("PUT", "/a/demo/ucr/data-sources/again", paused.to_string()).await;
    assert_eq!((bad.status, &bad.json()["problems"][0]["pointer"]), (StatusCode::BAD_REQUEST, &"/paused".into()));
    let cancelled = service.call("POST", "/a/demo/ucr/data-sources/again/cancel", "").await;
    assert_eq!(cancelled.status, StatusCode::NOT_FOUND, "nothing builds views in this process");

    // A preview is stored inside the definition that it may replace.
    let path = "/a/demo/ucr/data-sources/again";
    assert_eq!(service.call("PUT", &format!("{path}er?preview=true"), *source).await.status, StatusCode::CONFLICT);
    let put = service.call("PUT", &format!("{path}?preview=true"), *source).await;
    let (_, _, body) = documents(&service.record(put.position()).await, DocKind::DataSource).remove(0);
    assert_eq!((&body["paused"], &body["preview"]["table_id"]), (&json!(true), &json!("again")));
    let mut bad: serde_json::Value = serde_json::from_str(source).unwrap();
    (bad["preview"], bad["referenced_doc_type"]) = (json!(true), json!("Nonsense"));
    assert_eq!(service.call("PUT", path, bad.to_string()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(service.call("GET", &format!("{path}/preview"), "").await.status, StatusCode::NOT_FOUND);
    let gone = service.call("DELETE", &format!("{path}/preview"), "").await;
    let (_, _, body) = documents(&service.record(gone.position()).await, DocKind::DataSource).remove(0);
    assert_eq!((&body["paused"], &body["preview"]), (&json!(true), &json!(null)));
    assert_eq!(service.call("DELETE", &format!("{path}/preview"), "").await.status, StatusCode::NOT_FOUND);

    let bad = service.call("PUT", "/a/demo/ucr/data-sources/bad", r#"{"referenced_doc_type": "Nonsense"}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(bad.json()["problems"][0]["pointer"].is_string(), "{bad:?}");
    let (_, view) = schemas::sample::AGGREGATE_VIEWS.iter().find(|(id, _)| *id == "visits_by_month").unwrap();
    let view = service.call("PUT", "/a/demo/views/visits_by_month", *view).await;
    assert_eq!(view.status, StatusCode::OK, "{view:?}");

    let gone = service.call("DELETE", "/a/demo/ucr/data-sources/again/", "").await;
    let record = service.record(gone.position()).await;
    assert!(record.documents[0].body.is_none() && record.documents[0].kind == DocKind::DataSource);
    assert_eq!(service.call("DELETE", "/a/demo/ucr/data-sources/again/", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(service.call("GET", "/a/demo/ucr/data-sources/again/", "").await.status, StatusCode::NOT_FOUND);
    let name = ViewName::new("visits_by_month").unwrap();
    service.ingest.delete_definition(&demo(), DocKind::AggregateView, &name).await.unwrap();
}

#[tokio::test]
async fn the_other_documents_of_a_domain_are_made_changed_and_deleted() {
    let service = start().await;
    for (resource, made, change, bad, kind, doc_type) in [
        (
            "group",
            json!({"_id": "d1", "name": "North", "users": ["u1"], "case_sharing": true}),
            json!({"reporting": true}),
            json!({"users": "u1"}),
            DocKind::Group,
            "Group",
        ),
        (
            "lookup_table",
            json!({"_id": "d2", "tag": "fruit"}),
            json!({"is_global": true}),
            json!({"tag": ""}),
            DocKind::LookupTable,
            "FixtureDataType",
        ),
        (
            "lookup_table_item",
            json!({"_id": "d3", "data_type_id": "d2", "fields": {"name": "pear"}}),
            json!({"fields": {"name": "fig"}}),
            json!({"data_type_id": "none"}),
            DocKind::LookupRow,
            "FixtureDataItem",
        ),
        (
            "location_type",
            json!({"_id": "d4", "name": "Village", "code": "village"}),
            json!({"shares_cases": true}),
            json!({"name": 5}),
            DocKind::LocationType,
            "LocationType",
        ),
        (
            "application",
            json!({"_id": "d5", "name": "App"}),
            json!({"version": 3}),
            json!({"modules": {}}),
            DocKind::Application,
            "Application",
        ),
    ] {
        let path = format!("/a/demo/api/v0.5/{resource}/");
        let answer = service.call("POST", &path, made.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{resource} {answer:?}");
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let again = service.call("POST", &path, made.to_string()).await;
        assert_eq!(again.status, StatusCode::CONFLICT);
        let one = format!("{path}{id}/");
        let refused = service.call("PUT", &one, bad.to_string()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{resource} {refused:?}");
        let changed = service.call("PUT", &one, change.to_string()).await;
        assert_eq!(changed.status, StatusCode::OK, "{resource} {changed:?}");
        let (found, found_type, body) = documents(&service.record(changed.position()).await, kind).remove(0);
        assert_eq!((found.as_str(), found_type.as_str(), &body["doc_type"]), (id.as_str(), doc_type, &json!(doc_type)));
        let (name, value) = change.as_object().unwrap().iter().next().unwrap();
        assert_eq!(&body[name], value);
    }
    let gone = service.call("DELETE", "/a/demo/api/v0.5/group/d1/", "").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert!(service.record(gone.position()).await.documents[0].body.is_none());
    assert_eq!(service.call("DELETE", "/a/demo/api/v0.5/group/d1/", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        service.call("DELETE", "/a/demo/api/v0.5/location/d1/", "").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let rows = service.call("POST", "/a/demo/import/groups/", r#"[{"_id": "g1", "name": "A"}, {"_id": "g2"}]"#).await;
    assert_eq!((&rows.json()["created"], &rows.json()["failed"]), (&json!(1), &json!(1)));

    let worker = json!({"username": "asha", "password": "pw1"}).to_string();
    let id = service.call("POST", "/a/demo/api/v0.5/user/", worker).await.json()["id"].as_str().unwrap().to_owned();
    let right = || Some(basic("asha@demo", "pw1"));
    assert_eq!(post_as(&service, right(), "/a/demo/receiver/").await, StatusCode::CREATED);
    service.call("DELETE", &format!("/a/demo/api/v0.5/user/{id}/"), "").await;
    assert_eq!(post_as(&service, right(), "/a/demo/receiver/").await, StatusCode::NOT_ACCEPTABLE);
    let mut scan = service.ingest.bootstrap().scan().await.unwrap();
    let mut kinds = Vec::new();
    while let Some(found) = scan.next().await.unwrap() {
        kinds.extend(found.into_iter().map(|found| found.document.kind).filter(|kind| *kind != DocKind::Form));
    }
    kinds.sort_unstable();
    let expected = [
        DocKind::WebUser,
        DocKind::LocationType,
        DocKind::Group,
        DocKind::LookupTable,
        DocKind::LookupRow,
        DocKind::Application,
    ];
    assert_eq!(kinds, expected);
}
