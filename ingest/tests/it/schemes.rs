//! The ways to authenticate that phones and scripts use, each with its refusals.

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use md5::{Digest, Md5};
use schemas::port::{Permission, Secret};
use serde_json::json;

use crate::service::{Answer, Service, basic, demo, form, start};

const NAME: &str = "asha@demo.commcarehq.org";

async fn worker(service: &Service) {
    let made = json!({"username": "asha", "password": "pw1"}).to_string();
    assert_eq!(service.call("POST", "/a/demo/api/v0.5/user/", made).await.status, StatusCode::CREATED);
}

async fn post(service: &Service, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    service.send(request.body(Body::from(form("f1", "1", ""))).unwrap()).await
}

fn hex(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn challenge(headers: &HeaderMap) -> &str {
    headers["www-authenticate"].to_str().unwrap()
}

/// What a digest client answers to a challenge.
fn digest(challenge: &str, path: &str, password: &str) -> String {
    let field = |name: &str| challenge.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap();
    let (realm, nonce) = (field("realm"), field("nonce"));
    let account = hex(&format!("{NAME}:{realm}:{password}"));
    let request = hex(&format!("POST:{path}"));
    let response = hex(&format!("{account}:{nonce}:00000001:abc:auth:{request}"));
    format!(
        "Digest username=\"{NAME}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{path}\", qop=auth, nc=00000001, \
         cnonce=\"abc\", response=\"{response}\""
    )
}

#[tokio::test]
async fn a_digest_is_asked_for_and_answered() {
    let service = start().await;
    worker(&service).await;
    let path = "/a/demo/receiver/secure/?authtype=digest";
    let asked = post(&service, path, &[]).await;
    assert_eq!(asked.status, StatusCode::UNAUTHORIZED);
    assert!(challenge(&asked.headers).starts_with("Digest realm=\"millrace\""));
    let old_phone = post(&service, "/a/demo/receiver/", &[("user-agent", "Nokia6120c/3.70 CLDC-1.1")]).await;
    assert!(challenge(&old_phone.headers).starts_with("Digest "));

    let right = digest(challenge(&asked.headers), path, "pw1");
    assert_eq!(post(&service, path, &[("authorization", &right)]).await.status, StatusCode::CREATED);
    for wrong in [
        digest(challenge(&asked.headers), path, "pw2"),
        digest(challenge(&asked.headers), "/a/demo/receiver/", "pw1"),
        right.replace("nonce=\"0", "nonce=\"1"),
        basic(NAME, "pw1"),
    ] {
        assert_eq!(
            post(&service, path, &[("authorization", &wrong)]).await.status,
            StatusCode::UNAUTHORIZED,
            "{wrong}"
        );
    }
    // A new password changes what is kept for digests too.
    let id = service.client().await.query_one("SELECT id FROM accounts WHERE username = $1", &[&NAME]).await.unwrap();
    let id: String = id.get(0);
    service.call("PUT", &format!("/a/demo/api/v0.5/user/{id}/"), r#"{"password": "pw2"}"#).await;
    assert_eq!(post(&service, path, &[("authorization", &right)]).await.status, StatusCode::UNAUTHORIZED);
    let right = digest(challenge(&asked.headers), path, "pw2");
    assert_eq!(post(&service, path, &[("authorization", &right)]).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_token_stands_for_its_user_until_it_ends() {
    let service = start().await;
    worker(&service).await;
    let accounts = service.ingest.accounts();
    let Secret(token) = accounts.create_token(NAME, "test", None).await.unwrap();
    let Secret(ended) = accounts.create_token(NAME, "test", Some(0)).await.unwrap();
    let bearer = |token: &str| format!("Bearer {token}");
    let path = "/a/demo/receiver/secure/";
    assert_eq!(post(&service, path, &[("authorization", &bearer(&token))]).await.status, StatusCode::CREATED);
    for wrong in [ended, "guess".to_owned()] {
        let refused = post(&service, path, &[("authorization", &bearer(&wrong))]).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert!(challenge(&refused.headers).starts_with("Bearer "));
    }
    let forced = "/a/demo/receiver/secure/?authtype=oauth2";
    assert_eq!(post(&service, forced, &[("authorization", &bearer(&token))]).await.status, StatusCode::CREATED);
    assert_eq!(post(&service, forced, &[]).await.status, StatusCode::UNAUTHORIZED);
    let unknown = "/a/demo/receiver/secure/?authtype=magic";
    assert_eq!(post(&service, unknown, &[]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_api_key_needs_the_permission_to_edit_data() {
    let service = start().await;
    let accounts = service.ingest.accounts();
    for (name, permissions, status) in [
        ("clerk@example.org", vec![Permission::Submit, Permission::EditData], StatusCode::CREATED),
        ("guest@example.org", vec![Permission::Submit], StatusCode::FORBIDDEN),
    ] {
        accounts.create_web_user(name, &Secret("pw".to_owned()), &demo(), &permissions).await.unwrap();
        let Secret(key) = accounts.create_api_key(name, Some(&demo()), "test").await.unwrap();
        for path in ["/a/demo/receiver/secure/", "/a/demo/receiver/api/"] {
            let sent = post(&service, path, &[("authorization", &format!("ApiKey {name}:{key}"))]).await;
            assert_eq!(sent.status, status, "{name} {path}");
        }
        let wrong = post(&service, "/a/demo/receiver/", &[("authorization", &format!("ApiKey {name}:x"))]).await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_name_closes_after_failures_but_not_for_who_was_verified() {
    let service = start().await;
    worker(&service).await;
    let path = "/a/demo/receiver/secure/";
    let right = basic(NAME, "pw1");
    assert_eq!(post(&service, path, &[("authorization", &right)]).await.status, StatusCode::CREATED);
    for number in 0..10 {
        let guess = basic(NAME, &format!("guess{number}"));
        assert_eq!(post(&service, path, &[("authorization", &guess)]).await.status, StatusCode::UNAUTHORIZED);
    }
    let closed = post(&service, path, &[("authorization", &basic(NAME, "guess"))]).await;
    assert_eq!(closed.status, StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = closed.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=300).contains(&seconds));
    assert_eq!(post(&service, path, &[("authorization", &right)]).await.status, StatusCode::CREATED);
}
