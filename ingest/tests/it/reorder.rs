//! Forms that arrive in another order than the phone made them, in domains that ask for their order to be repaired.

use axum::http::StatusCode;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use schemas::{change::DocKind, id::DomainId};
use serde_json::{Value, json};

use crate::service::{Answer, Service, basic, case, create, documents, form, start, update};

const FLAG: &str = "SORT_OUT_OF_ORDER_FORM_SUBMISSIONS_SQL";

async fn sorting() -> Service {
    let service = start().await;
    let settings = json!({"flags": [FLAG]}).to_string();
    assert_eq!(service.call("PUT", "/a/demo/settings", settings).await.status, StatusCode::OK);
    service
}

/// A form whose block the phone made at a minute of an hour.
fn made_at(minute: u32, id: &str, case_id: &str, content: &str) -> String {
    form(id, "1", &case(case_id, content)).replace("date_modified=\"2024-01-01T10:00:00Z\"", &at(minute))
}

fn at(minute: u32) -> String {
    format!("date_modified=\"2024-01-01T10:{minute:02}:00Z\"")
}

async fn case_after(service: &Service, answer: &Answer) -> Value {
    let record = service.record(answer.position()).await;
    let mut cases = documents(&record, DocKind::Case);
    assert_eq!(cases.len(), 1, "the repaired case is in the record once");
    cases.remove(0).2
}

/// Types and details of a case's transactions, as they count.
async fn transactions(service: &Service, case_id: &str) -> Vec<(i32, Option<String>)> {
    let sql = "SELECT type, details FROM case_transactions WHERE case_id = $1 ORDER BY server_date, written";
    let rows = service.client().await.query(sql, &[&case_id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_late_form_takes_its_place_among_the_phones() {
    let service = sorting().await;
    service.stored(&made_at(0, "f1", "c1", &format!("{}{}", create("A"), update("p", "0")))).await;
    service.stored(&made_at(20, "f2", "c1", &update("p", "20"))).await;
    let late = service.stored(&made_at(10, "f3", "c1", "<update><p>10</p><q>10</q></update>")).await;
    let found = case_after(&service, &late).await;
    assert_eq!((&found["p"], &found["q"]), (&json!("20"), &json!("10")));
    assert_eq!(found["xform_ids"], json!(["f1", "f3", "f2"]));
    assert_eq!(found["modified_on"], "2024-01-01T10:20:00.000000Z");
    let reason = Some("{\"reason\":\"client_date_reconciliation\"}".to_owned());
    let expected = [(1 | 128, None), (1, None), (1, None), (2, reason)];
    assert_eq!(transactions(&service, "c1").await, expected);

    let last = service.stored(&made_at(30, "f4", "c1", &update("p", "30"))).await;
    let found = case_after(&service, &last).await;
    assert_eq!((&found["p"], &found["xform_ids"]), (&json!("30"), &json!(["f1", "f3", "f2", "f4"])));
    // What a later replay does, which goes by arrival, is not undone by the form that caused it.
    let edited = service.stored(&made_at(0, "f1", "c1", &format!("{}{}", create("B"), update("r", "1")))).await;
    assert_eq!(case_after(&service, &edited).await["p"], "30");
}

#[tokio::test]
async fn forms_of_a_group_are_sorted_too() {
    let service = sorting().await;
    let mut minutes: Vec<u32> = (1..50).collect();
    minutes.shuffle(&mut StdRng::seed_from_u64(3));
    service.stored(&made_at(0, "f0", "c1", &create("A"))).await;
    let texts: Vec<String> = minutes
        .iter()
        .map(|minute| made_at(*minute, &format!("f{minute}"), "c1", &update("p", &minute.to_string())))
        .collect();
    let answers = futures::future::join_all(texts.iter().map(|text| service.stored(text))).await;
    let last = answers.iter().max_by_key(|answer| answer.position()).unwrap();
    let found = case_after(&service, last).await;
    assert_eq!(found["p"], "49");
    let sorted: Vec<String> = (0..50).map(|minute| format!("f{minute}")).collect();
    assert_eq!(found["xform_ids"], json!(sorted));
    let stored: String =
        service.client().await.query_one("SELECT properties FROM cases WHERE id = 'c1'", &[]).await.unwrap().get(0);
    assert_eq!(serde_json::from_str::<Value>(&stored).unwrap()["p"], "49");
}

#[tokio::test]
async fn what_is_not_to_be_repaired_is_left_as_it_arrived() {
    let service = sorting().await;
    // Another user's form.
    service.stored(&made_at(0, "f1", "c1", &create("A"))).await;
    service.stored(&made_at(20, "f2", "c1", &update("p", "20"))).await;
    let other = made_at(10, "f3", "c1", &update("p", "10")).replace("<userID>u1<", "<userID>u2<");
    let other = service.stored(&other).await;
    assert_eq!(case_after(&service, &other).await["p"], "10");
    // A create that comes last (s008).
    service.stored(&made_at(20, "f4", "c2", &update("p", "20"))).await;
    let made = service.stored(&made_at(10, "f5", "c2", &format!("{}{}", create("A"), update("p", "10")))).await;
    assert_eq!(case_after(&service, &made).await["p"], "10");
    assert_eq!(transactions(&service, "c2").await.len(), 2);
    // No create at all.
    service.stored(&made_at(20, "f6", "c3", &update("p", "20"))).await;
    let second = service.stored(&made_at(10, "f7", "c3", &update("p", "10"))).await;
    assert_eq!(case_after(&service, &second).await["p"], "10");
    assert_eq!(transactions(&service, "c3").await.len(), 2);
}

#[tokio::test]
async fn a_domain_that_does_not_ask_gets_the_order_of_arrival() {
    let service = sorting().await;
    let other = DomainId::new("other").unwrap();
    service.ingest.accounts().create_domain(&other).await.unwrap();
    let password = service.ingest.accounts().ensure_admin(&other).await.unwrap().unwrap();
    for (minute, id) in [(0, "f1"), (20, "f2"), (10, "f3")] {
        let content = if minute == 0 { create("A") } else { update("p", &minute.to_string()) };
        let request = axum::http::Request::post("/a/other/receiver/")
            .header("authorization", basic("admin@other", &password.0))
            .body(made_at(minute, id, "c1", &content).into())
            .unwrap();
        let answer = service.send(request).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        if id == "f3" {
            assert_eq!(case_after(&service, &answer).await["p"], "10");
        }
    }
    assert_eq!(transactions(&service, "c1").await.len(), 3);
}
