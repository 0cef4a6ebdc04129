//! What documents show.

use schemas::id::CaseId;
use serde_json::json;

use super::*;
use crate::{
    casexml::CaseFile,
    xform::tests::{fixture, parse_text},
};

#[test]
fn states_round_trip_and_name_their_documents() {
    for state in FormState::ALL {
        assert_eq!(FormState::from_bits(state.bits()), Some((state, false)));
        assert_eq!(FormState::from_bits(state.bits() | FormState::DELETED_BIT), Some((state, true)));
        assert_eq!(state.doc_type(true), "XFormInstance-Deleted");
    }
    assert_eq!(FormState::from_bits(0), None);
    assert_eq!(FormState::from_bits(3), None);
    assert_eq!(FormState::Archived.doc_type(false), "XFormArchived");
}

#[test]
fn form_documents_show_upstreams_fields() {
    let expected: Value = serde_json::from_str(&fixture("form/posts/meta_dict_appversion-sql.json")).unwrap();
    let form = parse_text(&fixture("form/posts/meta_dict_appversion.xml")).unwrap();
    let domain = DomainId::new("test-domain").unwrap();
    let auth = json!({"doc_type": "DefaultAuthContext"});
    let headers = json!({});
    let row = FormRow {
        form_id: &form.form_id,
        domain: &domain,
        state: FormState::Normal,
        deleted: false,
        xmlns: &form.xmlns,
        app_id: None,
        build_id: None,
        user_id: form.user_id.as_deref(),
        received_on: 1_379_736_378_000_000,
        server_modified_on: 1_379_736_378_000_000,
        edited_on: None,
        deprecated_form_id: None,
        orig_id: None,
        problem: None,
        initial_processing_complete: true,
        auth_context: Some(&auth),
        openrosa_headers: Some(&headers),
        last_sync_token: None,
        date_header: None,
        submit_ip: None,
        history: &[],
        form: &form.json,
        meta: Some(&form.meta),
    };
    let document: Value = serde_json::from_str(form_document(&row).unwrap().get()).unwrap();
    // `history` is a relation of its own; the time has six fraction digits here
    for (name, value) in
        expected.as_object().unwrap().iter().filter(|(name, _)| *name != "history" && *name != "received_on")
    {
        assert_eq!(document[name], *value, "{name}");
    }
    assert_eq!(document["received_on"], "2013-09-21T04:06:18.000000Z");
    assert_eq!(document["metadata"]["username"], "some_username@test.commcarehq.org");
    let deleted = FormRow { deleted: true, state: FormState::Archived, ..row };
    let document: Value = serde_json::from_str(form_document(&deleted).unwrap().get()).unwrap();
    assert_eq!((&document["state"], &document["doc_type"]), (&json!(66), &json!("XFormInstance-Deleted")));
}

#[test]
fn dynamic_properties_do_not_hide_columns_or_repeat_keys() {
    let mut case = CaseState::new(CaseId::new("c").unwrap(), DomainId::new("demo").unwrap());
    case.name = "n".into();
    let Value::Object(properties) = json!({"name": "x", "doc_type": "x", "user_id": "x", "actions": "x", "backend_id": "x", "p": {"@a": "1"}, "q": ""})
    else {
        panic!("not an object")
    };
    let count = |text: &str, key: &str| text.matches(&format!("\"{key}\":")).count();
    case.properties = properties;
    let text = case_document(&case, None).unwrap().get().to_owned();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["name"], &document["doc_type"]), (&json!("n"), &json!("CommCareCase")));
    assert_eq!((&document["p"], &document["q"], &document["user_id"]), (&json!({"@a": "1"}), &json!(""), &json!("")));
    for key in document.as_object().unwrap().keys() {
        assert_eq!(count(&text, key), 1, "{key}");
    }
    assert!(document.get("actions").is_none());
    let action = CaseAction { xform_id: Some("f"), server_date: 0, date: None, sync_log_id: None };
    let document: Value = serde_json::from_str(case_document(&case, Some(&[action])).unwrap().get()).unwrap();
    assert_eq!(
        document["actions"],
        json!([{"xform_id": "f", "server_date": "1970-01-01T00:00:00.000000Z", "date": null, "sync_log_id": null}])
    );
}

#[test]
fn every_key_of_a_case_document_is_taken() {
    let mut case = CaseState::new(CaseId::new("c").unwrap(), DomainId::new("demo").unwrap());
    let file = CaseFile { key: uuid::Uuid::nil(), content_type: None, content_length: 3 };
    case.attachments.insert("photo".to_owned(), file);
    let document: Value = serde_json::from_str(case_document(&case, Some(&[])).unwrap().get()).unwrap();
    assert_eq!(document["case_attachments"], json!({"photo": {"content_type": null, "content_length": 3}}));
    let mut keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    let mut taken = TAKEN.to_vec();
    keys.sort_unstable();
    taken.sort_unstable();
    assert_eq!(keys, taken);
}
