//! What becomes of forms: normal, duplicate, edit, clash, error, broken; and what the log says about each.

use axum::http::StatusCode;
use schemas::{change::DocKind, id::FormId, position::Frontier};

use crate::service::{case, create, demo, documents, form, start, update};

#[tokio::test]
async fn a_form_and_its_cases_are_one_record() {
    let service = start().await;
    let blocks = format!(
        "{}{}",
        case("c1", &format!("{}{}", create("Asha"), update("hb", "11"))),
        case("c2", &format!("{}<index><mother case_type=\"child\">c1</mother></index>", create("Ravi")))
    );
    let answer = service.stored(&form("f1", "yes", &blocks)).await;
    assert!(answer.body.contains("submit_success") && answer.body.contains('√'));
    assert_eq!(answer.form_id(), "f1");
    let record = service.record(answer.position()).await;
    let forms = documents(&record, DocKind::Form);
    assert_eq!((forms[0].0.as_str(), forms[0].1.as_str()), ("f1", "XFormInstance"));
    assert_eq!(forms[0].2["form"]["answer"], "yes");
    assert_eq!(forms[0].2["auth_context"]["authenticated"], true);
    let cases = documents(&record, DocKind::Case);
    assert_eq!(cases[0].2["hb"], "11");
    assert_eq!(cases[1].2["indices"][0]["referenced_id"], "c1");
    assert_eq!(cases[1].2["xform_ids"][0], "f1");
    let stamps: Vec<i64> = record.documents.iter().map(|document| document.stamp.0).collect();
    assert_eq!(stamps, [stamps[0], stamps[0] + 1, stamps[0] + 2]);
    let stored = service.number("SELECT stamp FROM cases WHERE id = 'c2'").await;
    assert_eq!(stored, stamps[2]);
}

#[tokio::test]
async fn the_same_bytes_again_are_a_duplicate() {
    let service = start().await;
    let xml = form("f1", "yes", &case("c1", &create("Asha")));
    service.stored(&xml).await;
    let again = service.stored(&xml).await;
    assert!(again.body.contains("submit_error") && again.body.contains("Form is a duplicate of another! (f1)"));
    assert_ne!(again.form_id(), "f1");
    let record = service.record(again.position()).await;
    assert_eq!(record.documents.len(), 1, "no case is touched");
    let (_, kind, body) = documents(&record, DocKind::Form).remove(0);
    assert_eq!((kind.as_str(), &body["orig_id"]), ("XFormDuplicate", &"f1".into()));
    let request = axum::http::Request::post("/a/demo/receiver/submission")
        .header("authorization", crate::service::basic("admin@demo", &service.password))
        .header("x-openrosa-version", "3.0")
        .body(xml.into())
        .unwrap();
    let third = service.send(request).await;
    assert_eq!(third.status, StatusCode::CREATED);
    assert!(third.body.contains("submit_success"), "version 3 calls a duplicate a success");
}

#[tokio::test]
async fn two_posts_at_once_are_one_form_and_one_duplicate() {
    let service = start().await;
    for round in 0..10 {
        let xml = form(&format!("f{round}"), "yes", &case(&format!("c{round}"), &create("Asha")));
        let (one, two) = tokio::join!(service.stored(&xml), service.stored(&xml));
        let duplicates = [&one, &two].iter().filter(|answer| answer.body.contains("duplicate")).count();
        assert_eq!(duplicates, 1, "{one:?} {two:?}");
    }
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE state = 1").await, 10);
    assert_eq!(service.number("SELECT count(*) FROM case_transactions").await, 10);
}

#[tokio::test]
async fn an_edit_replays_the_cases_of_both_bodies() {
    let service = start().await;
    service.stored(&form("f1", "1", &case("c1", &format!("{}{}", create("Asha"), update("hb", "9"))))).await;
    service
        .stored(&form("f2", "1", &format!("{}{}", case("c1", &update("hb", "10")), case("c2", &create("Mistake")))))
        .await;
    service.stored(&form("f3", "1", &case("c1", &update("weight", "50")))).await;
    let edited = service.stored(&form("f2", "2", &case("c1", &update("bp", "120")))).await;
    assert!(edited.body.contains("submit_success"));
    assert_eq!(edited.form_id(), "f2");
    let record = service.record(edited.position()).await;
    let forms = documents(&record, DocKind::Form);
    let (new, old) = (&forms[0], &forms[1]);
    assert_eq!((new.0.as_str(), new.1.as_str(), old.1.as_str()), ("f2", "XFormInstance", "XFormDeprecated"));
    assert_eq!(new.2["deprecated_form_id"], old.0.as_str());
    assert_eq!(old.2["orig_id"], "f2");
    assert_eq!(old.2["form"]["answer"], "1");
    assert_eq!(new.2["edited_on"], old.2["edited_on"]);
    assert_eq!(new.2["received_on"], old.2["received_on"]);
    let cases = documents(&record, DocKind::Case);
    let c1 = &cases.iter().find(|case| case.0 == "c1").unwrap().2;
    assert_eq!((&c1["hb"], &c1["bp"], &c1["weight"]), (&"9".into(), &"120".into(), &"50".into()));
    let c2 = cases.iter().find(|case| case.0 == "c2").unwrap();
    assert_eq!(c2.1, "CommCareCase-Deleted", "no form is left that made it");
    assert_eq!(service.number("SELECT count(*) FROM case_transactions WHERE type = 32").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM form_operations WHERE form_id = 'f2'").await, 1);
    let old_id = FormId::new(&old.0).unwrap();
    let old_xml = service.ingest.form_xml(&demo(), &old_id).await.unwrap().unwrap();
    assert!(String::from_utf8(old_xml.to_vec()).unwrap().contains("<answer>1</answer>"));
    let new_xml = service.ingest.form_xml(&demo(), &FormId::new("f2").unwrap()).await.unwrap().unwrap();
    assert!(String::from_utf8(new_xml.to_vec()).unwrap().contains("<answer>2</answer>"));
}

#[tokio::test]
async fn forms_and_edits_posted_together_end_as_if_posted_one_by_one() {
    let service = start().await;
    service.stored(&form("f0", "0", &case("c1", &create("Asha")))).await;
    let posts = (0..40).map(|n| {
        let service = &service;
        async move {
            let id = format!("f{}", n % 10);
            service.stored(&form(&id, &format!("{n}"), &case("c1", &update(&format!("p{n}"), "x")))).await
        }
    });
    futures::future::join_all(posts).await;
    // Ten ids are left; each contributed exactly the property of its last body.
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE state = 1").await, 10);
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE state = 4").await, 31);
    let properties: String =
        service.client().await.query_one("SELECT properties FROM cases WHERE id = 'c1'", &[]).await.unwrap().get(0);
    let properties: serde_json::Value = serde_json::from_str(&properties).unwrap();
    assert_eq!(properties.as_object().unwrap().len(), 10, "{properties}");
}

#[tokio::test]
async fn a_taken_id_is_stored_under_a_fresh_one() {
    let service = start().await;
    let other = schemas::id::DomainId::new("other").unwrap();
    service.ingest.accounts().create_domain(&other).await.unwrap();
    service.ingest.accounts().set_domain(&other, Some(false), None).await.unwrap();
    service.stored(&form("f1", "1", &case("c1", &create("Asha")))).await;
    let request = axum::http::Request::post("/a/other/receiver/").body(form("f1", "1", "").into()).unwrap();
    let elsewhere = service.send(request).await;
    assert_eq!(elsewhere.status, StatusCode::CREATED);
    assert_ne!(elsewhere.form_id(), "f1");
    let another_kind = form("f1", "2", "").replace("http://example.org/visit", "http://example.org/other");
    let clash = service.stored(&another_kind).await;
    assert_ne!(clash.form_id(), "f1");
    let request = axum::http::Request::post("/a/other/receiver/")
        .body(form("f9", "1", &case("c1", &update("x", "y"))).into())
        .unwrap();
    let foreign_case = service.send(request).await;
    assert!(foreign_case.body.contains("IllegalCaseId"), "{foreign_case:?}");
}

#[tokio::test]
async fn an_error_form_is_kept_and_a_second_try_applies_it() {
    let service = start().await;
    let child =
        form("f1", "1", &case("kid", &format!("{}<index><mother case_type=\"m\">mum</mother></index>", create("R"))));
    let failed = service.stored(&child).await;
    assert!(failed.body.contains("submit_error") && failed.body.contains("InvalidCaseIndex"));
    let record = service.record(failed.position()).await;
    assert_eq!(record.documents.len(), 1);
    assert_eq!(documents(&record, DocKind::Form)[0].1, "XFormError");
    assert_eq!(service.number("SELECT count(*) FROM cases").await, 0);
    service.stored(&form("f2", "1", &case("mum", &create("M")))).await;
    let again = service.stored(&child).await;
    assert!(again.body.contains("duplicate"), "{again:?}");
    let record = service.record(again.position()).await;
    let kinds: Vec<_> = documents(&record, DocKind::Form).into_iter().map(|form| (form.0 == "f1", form.1)).collect();
    assert_eq!(kinds, [(true, "XFormInstance".to_owned()), (false, "XFormDuplicate".to_owned())]);
    assert_eq!(documents(&record, DocKind::Case)[0].2["name"], "R");
}

#[tokio::test]
async fn other_bytes_in_place_of_an_error_form_are_applied() {
    let service = start().await;
    service.stored(&form("f1", "1", &case("", &create("R")))).await;
    let replaced = service.stored(&form("f1", "2", &case("kid", &create("R")))).await;
    assert!(replaced.body.contains("submit_success"));
    let forms = documents(&service.record(replaced.position()).await, DocKind::Form);
    assert_eq!((forms[0].0.as_str(), forms[0].1.as_str(), forms[1].1.as_str()), ("f1", "XFormInstance", "XFormError"));
    assert_eq!(forms[1].2["orig_id"], "f1");
}

#[tokio::test]
async fn an_edit_that_fails_leaves_the_cases_and_deprecates_the_old_form() {
    let service = start().await;
    service.stored(&form("f1", "1", &case("c1", &format!("{}{}", create("Asha"), update("hb", "9"))))).await;
    let failed = service.stored(&form("f1", "2", &case("", &update("hb", "1")))).await;
    assert!(failed.body.contains("IllegalCaseId"));
    let forms = documents(&service.record(failed.position()).await, DocKind::Form);
    assert_eq!((forms[0].1.as_str(), forms[1].1.as_str()), ("XFormError", "XFormDeprecated"));
    let count = service.number("SELECT count(*) FROM cases WHERE properties LIKE '%9%' AND NOT deleted").await;
    assert_eq!(count, 1);
}

#[tokio::test]
async fn what_is_not_a_form_is_kept_as_a_log_and_answered_422() {
    let service = start().await;
    let broken = service.post("<data><unclosed>").await;
    assert_eq!(broken.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(broken.body.contains("processing_failure") && broken.body.contains("Invalid XML: "), "{broken:?}");
    let record = service.record(broken.position()).await;
    assert_eq!(documents(&record, DocKind::Form)[0].1, "SubmissionErrorLog");
    let nameless = service.post("<data><a/></data>").await;
    assert!(nameless.body.contains("Form is missing a required field: XMLNS"), "{nameless:?}");
    let log =
        service.post("<device_report xmlns=\"http://code.javarosa.org/devicereport\"><log/></device_report>").await;
    assert_eq!(log.status, StatusCode::CREATED);
    assert!(!log.headers.contains_key("x-millrace-position"), "device logs are dropped");
    assert_eq!(service.records(Frontier::default(), 2).await.len(), 2);
}

#[tokio::test]
async fn an_import_keeps_the_order_of_a_cases_forms_and_can_be_repeated() {
    let service = start().await;
    let mut lines = Vec::new();
    for number in 0..60 {
        let blocks = match number % 3 {
            0 => case(&format!("c{}", number / 3), &create("A")),
            _ => case(&format!("c{}", number / 3), &update("step", &number.to_string())),
        };
        lines.push(serde_json::json!({"xml": form(&format!("f{number}"), "1", &blocks)}).to_string());
    }
    lines.push(serde_json::json!({"xml": "<broken"}).to_string());
    lines.push(serde_json::json!({"received_on": "2024-01-01"}).to_string());
    lines.push("nonsense".to_owned());
    let answer = service.call("POST", "/a/demo/import/forms/", lines.join("\n")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let report = answer.json();
    assert_eq!((&report["stored"], &report["failed"]), (&60.into(), &3.into()), "{report}");
    let rows: Vec<u64> = report["rows"].as_array().unwrap().iter().map(|row| row["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, [61, 62, 63]);
    assert_eq!(answer.position().sequence.0, 61);
    let last = service
        .number("SELECT count(*) FROM cases WHERE type = 'child' AND (properties::json->>'step')::int % 3 = 2")
        .await;
    assert_eq!(last, 20, "the last form of each case counts");
    let again = service.call("POST", "/a/demo/import/forms/", lines[..60].join("\n")).await.json();
    assert_eq!((&again["stored"], &again["present"], &again["failed"]), (&0.into(), &60.into(), &0.into()));
    assert_eq!(service.number("SELECT count(*) FROM forms").await, 61);
}
