//! What people do to stored forms and cases, and what follows: ledgers, extensions, files.

use axum::http::StatusCode;
use schemas::{change::DocKind, id::DomainId, position::Frontier};
use serde_json::{Value, json};

use crate::service::{Service, case, create, demo, documents, form, start, update};

fn balance(case: &str, quantity: i64, date: &str) -> String {
    format!(
        "<balance xmlns=\"http://commcarehq.org/ledger/v1\" entity-id=\"{case}\" section-id=\"stock\" date=\"{date}\">\
         <entry id=\"p\" quantity=\"{quantity}\"/></balance>"
    )
}

async fn done(service: &Service, path: &str) -> Vec<(String, Value)> {
    let answer = service.call("POST", &format!("/a/demo/{path}"), "").await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
    let record = service.record(answer.position()).await;
    let kinds = [DocKind::Form, DocKind::Case, DocKind::Ledger];
    kinds.into_iter().flat_map(|kind| documents(&record, kind)).map(|(id, _, body)| (id, body)).collect()
}

#[tokio::test]
async fn operations_that_cannot_be_are_refused_and_change_nothing() {
    let service = start().await;
    let other = DomainId::new("other").unwrap();
    service.ingest.accounts().create_domain(&other).await.unwrap();
    service.stored(&form("f1", "1", &format!("{}{}", case("c1", &create("A")), case("c2", &create("B"))))).await;
    service
        .stored(&form("f2", "1", &case("c3", &format!("{}<index><p case_type=\"child\">c1</p></index>", create("C")))))
        .await;
    let before = service.number("SELECT sequence FROM lanes WHERE lane = 0").await;
    for (path, status, says) in [
        ("forms/none/archive", 404, "there is no form none"),
        ("forms/f1/unarchive", 409, "only XFormArchived can be unarchived"),
        ("forms/f1/undelete", 409, "not deleted"),
        ("forms/f1/reprocess", 409, "not an error form"),
        ("forms/f1/explode", 404, "known are archive"),
        ("cases/none/rebuild", 404, "there is no case none"),
        ("cases/c1/undelete", 409, "nobody deleted"),
        ("cases/c1/purge", 409, "case c3 refers to it"),
        ("cases/c2/purge", 409, "form f1 also touches other cases"),
    ] {
        let answer = service.call("POST", &format!("/a/demo/{path}"), "").await;
        assert_eq!(answer.status.as_u16(), status, "{path} {answer:?}");
        assert!(answer.body.contains(says), "{path} {answer:?}");
    }
    assert_eq!(service.number("SELECT sequence FROM lanes WHERE lane = 0").await, before);
    assert!(service.ingest.rebuild_case(&other, &schemas::id::CaseId::new("c1").unwrap(), "u").await.is_err());
}

#[tokio::test]
async fn deleted_forms_and_cases_come_back() {
    let service = start().await;
    service.stored(&form("f1", "1", &case("c1", &create("A")))).await;
    for (what, gone, back) in
        [("forms/f1", "XFormInstance-Deleted", "XFormInstance"), ("cases/c1", "CommCareCase-Deleted", "CommCareCase")]
    {
        assert_eq!(done(&service, &format!("{what}/delete")).await[0].1["doc_type"], gone);
        let again = service.call("POST", &format!("/a/demo/{what}/delete"), "").await;
        assert_eq!(again.status, StatusCode::CONFLICT);
        assert_eq!(done(&service, &format!("{what}/undelete")).await[0].1["doc_type"], back);
    }
}

#[tokio::test]
async fn archiving_takes_ledgers_back_and_a_rebuild_changes_nothing() {
    let service = start().await;
    service.stored(&form("f1", "1", &case("c1", &create("A")))).await;
    service.stored(&form("f2", "1", &balance("c1", 100, "2024-01-01"))).await;
    let transfer = "<transfer xmlns=\"http://commcarehq.org/ledger/v1\" src=\"c1\" section-id=\"stock\" date=\"2024-01-02\">\
         <entry id=\"p\" quantity=\"30\"/></transfer>";
    let sent = service.stored(&form("f3", "1", transfer)).await;
    let record = service.record(sent.position()).await;
    let ledgers = documents(&record, DocKind::Ledger);
    assert_eq!((ledgers[0].0.as_str(), &ledgers[0].2["balance"]), ("c1/stock/p", &json!(70)));
    assert_eq!(documents(&record, DocKind::Case)[0].2["xform_ids"], json!(["f1", "f2", "f3"]));

    let balance_of = |changed: &[(String, Value)]| {
        changed.iter().find(|(id, _)| id == "c1/stock/p").map(|(_, body)| body["balance"].clone())
    };
    assert_eq!(balance_of(&done(&service, "forms/f2/archive").await), Some(json!(-30)));
    assert_eq!(balance_of(&done(&service, "forms/f2/unarchive").await), Some(json!(70)));
    assert_eq!(balance_of(&done(&service, "cases/c1/rebuild").await), Some(json!(70)));
    let rows = service.number("SELECT count(*) FROM ledger_transactions WHERE updated_balance IN (100, 70)").await;
    assert_eq!(rows, 2);
    // Both gone: so is the value.
    done(&service, "forms/f2/archive").await;
    let answer = service.call("POST", "/a/demo/forms/f3/archive", "").await;
    let record = service.record(answer.position()).await;
    let gone = record.documents.iter().find(|document| document.kind == DocKind::Ledger).unwrap();
    assert!(gone.body.is_none());
    assert_eq!(service.number("SELECT count(*) FROM ledger_values").await, 0);
}

#[tokio::test]
async fn stock_at_a_case_that_does_not_exist_is_an_error_form() {
    let service = start().await;
    let answer = service.post(&form("f1", "1", &balance("nobody", 1, "2024-01-01"))).await;
    assert!(answer.body.contains("submit_error") && answer.body.contains("IllegalCaseId"), "{answer:?}");
    assert_eq!(service.number("SELECT count(*) FROM ledger_values").await, 0);
    // Applied once the case is there; the stored form stays as it was sent.
    service.stored(&form("f0", "1", &case("nobody", &create("A")))).await;
    let changed = done(&service, "forms/f1/reprocess").await;
    assert!(changed.iter().any(|(id, body)| id == "nobody/stock/p" && body["balance"] == 1), "{changed:?}");
    assert_eq!(service.number("SELECT count(*) FROM forms").await, 2, "no duplicate is kept");
}

#[tokio::test]
async fn extensions_close_in_the_record_that_closes_their_host() {
    let service = start().await;
    let settings = r#"{"flags": ["EXTENSION_CASES_SYNC_ENABLED"]}"#;
    assert_eq!(service.call("PUT", "/a/demo/settings", settings).await.status, StatusCode::OK);
    let extends = |host: &str| {
        format!("{}<index><h case_type=\"child\" relationship=\"extension\">{host}</h></index>", create("E"))
    };
    service.stored(&form("f1", "1", &case("host", &create("H")))).await;
    service.stored(&form("f2", "1", &case("e1", &extends("host")))).await;
    service.stored(&form("f3", "1", &case("e2", &extends("e1")))).await;
    // Circles end.
    service
        .stored(&form(
            "f4",
            "1",
            &case("host", "<index><x case_type=\"child\" relationship=\"extension\">e2</x></index>"),
        ))
        .await;
    let closed = service.stored(&form("f5", "1", &case("host", "<close/>"))).await;
    let record = service.record(closed.position()).await;
    let forms = documents(&record, DocKind::Form);
    assert_eq!(forms.len(), 2);
    assert_eq!(forms[1].2["form"]["meta"]["deviceID"], "SubmissionPost-f5-close_extensions");
    let states: Vec<(String, bool)> = documents(&record, DocKind::Case)
        .into_iter()
        .map(|(id, _, body)| (id, body["closed"].as_bool().unwrap()))
        .collect();
    assert_eq!(states, [("host".to_owned(), true), ("e1".to_owned(), true), ("e2".to_owned(), true)]);
    let unknown = service.call("PUT", "/a/demo/settings", r#"{"flags": ["NOPE"]}"#).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_edit_racing_an_archive_ends_in_one_of_the_two_orders() {
    let service = start().await;
    for round in 0..12 {
        let (form_id, case_id) = (format!("f{round}"), format!("c{round}"));
        service.stored(&form(&form_id, "1", &case(&case_id, &format!("{}{}", create("A"), update("p", "old"))))).await;
        let edited = form(&form_id, "2", &case(&case_id, &format!("{}{}", create("A"), update("p", "new"))));
        let path = format!("/a/demo/forms/{form_id}/archive");
        let (archived, posted) = tokio::join!(service.call("POST", &path, ""), service.post(&edited));
        assert!(posted.status.is_success(), "{posted:?}");
        assert_eq!(archived.status, StatusCode::OK, "{archived:?}");
        let row = service.client().await;
        let row = row
            .query_one(
                "SELECT f.state::integer, c.deleted, c.properties, (SELECT count(*) FROM forms o WHERE o.orig_id = f.id) \
                 FROM forms f, cases c WHERE f.id = $1 AND c.id = $2",
                &[&form_id, &case_id],
            )
            .await
            .unwrap();
        let (state, deleted, properties): (i32, bool, String) = (row.get(0), row.get(1), row.get(2));
        // The edit first: its form is archived, and the case is gone. The archive first: the edit replaces it and counts.
        let seen = (state, deleted, properties.contains("new"));
        assert!(seen == (2, true, false) || seen == (1, false, true), "round {round}: {seen:?}");
        assert_eq!(row.get::<_, i64>(3), 1);
    }
}

#[tokio::test]
async fn what_operations_leave_behind_equals_the_log() {
    let service = start().await;
    service.stored(&form("f1", "1", &format!("{}{}", case("c1", &create("A")), balance("c1", 5, "2024-01-01")))).await;
    service.stored(&form("f2", "1", &case("c2", &create("B")))).await;
    done(&service, "forms/f1/archive").await;
    done(&service, "cases/c2/delete").await;
    let purged = service.call("POST", "/a/demo/cases/c2/purge", "").await;
    assert_eq!(purged.status, StatusCode::OK, "{purged:?}");
    done(&service, "forms/f1/unarchive").await;
    let mut by_log = std::collections::BTreeMap::new();
    for record in service.records(Frontier::default(), 6).await {
        assert_eq!(record.domain, demo());
        for document in &record.documents {
            let key = (document.kind, document.id.clone());
            match &document.body {
                Some(body) => drop(by_log.insert(key, serde_json::from_str::<Value>(body.get()).unwrap())),
                None => drop(by_log.remove(&key)),
            }
        }
    }
    let mut scan = service.ingest.bootstrap().scan().await.unwrap();
    let mut by_scan = std::collections::BTreeMap::new();
    while let Some(found) = scan.next().await.unwrap() {
        for found in found.into_iter().filter(|found| found.document.kind != DocKind::WebUser) {
            let body = serde_json::from_str::<Value>(found.document.body.unwrap().get()).unwrap();
            by_scan.insert((found.document.kind, found.document.id), body);
        }
    }
    assert_eq!(by_log, by_scan);
    assert_eq!(service.number("SELECT count(*) FROM tombstones").await, 2);
}
