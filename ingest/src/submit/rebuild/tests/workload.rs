//! The generated maternal-health workload: every submission against the documents that its generator expects.

use std::{collections::HashMap, io::BufRead, path::Path, process::Command};

use schemas::{id::DomainId, time::parse_micros};
use serde_json::{Value, json};

use super::world::World;
use crate::{
    submit::document::{FormRow, FormState, form_document},
    xform::tests::parse_text,
};

/// Writes the workload into a fresh folder; none without the generator or Python.
fn generate(folder: &Path) -> Option<()> {
    let generator = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/workload/generate.py"));
    if !generator.exists() {
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(generator).args(["--forms", "2000", "--seed", "1", "--out"]).arg(folder);
    command.output().ok().filter(|output| output.status.success()).map(|_| ())
}

fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let file = std::fs::File::open(folder.join(name)).unwrap();
    std::io::BufReader::new(file).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn documents_are_those_the_generator_expects() {
    let folder = std::env::temp_dir().join(format!("millrace-workload-{}", std::process::id()));
    if generate(&folder).is_none() {
        return;
    }
    let mut changes = lines(&folder, "changes.jsonl")
        .into_iter()
        .filter(|change| change["topic"] == "form-sql" || change["topic"] == "case-sql")
        .peekable();
    let submissions = lines(&folder, "submissions.jsonl");
    std::fs::remove_dir_all(&folder).unwrap();
    let mut world = World::default();
    let mut latest: HashMap<String, String> = HashMap::new();
    let (mut forms, mut cases) = (0, 0);
    for submission in &submissions {
        let kind = submission["kind"].as_str().unwrap();
        let xml = submission["xml"].as_str().unwrap();
        world.submit("maternal-bench", xml, parse_micros(submission["received_on"].as_str().unwrap()).unwrap());
        assert_eq!(world.last_error, None);
        let form = changes.next().unwrap();
        assert_eq!(form["doc_id"], submission["form_id"]);
        if kind != "duplicate" {
            check_form(submission, &form["doc"], kind);
            forms += 1;
        }
        let mut touched = Vec::new();
        while let Some(change) = changes.next_if(|change| change["topic"] == "case-sql") {
            check_case(&world, &change["doc"], &mut latest, kind == "new");
            touched.push(change["doc_id"].as_str().unwrap().to_owned());
            cases += 1;
        }
        if kind != "duplicate" {
            touched.sort_unstable();
            let ours: Vec<&str> = world.last_touched.iter().map(schemas::id::CaseId::as_str).collect();
            assert_eq!(ours, touched);
        }
    }
    assert!(changes.next().is_none());
    assert_eq!((submissions.len(), forms, cases), (2000, 1954, 2478));
}

/// All fields of the generator's document, except: `edited` is no field of CommCare's; an edit keeps `received_on` (§12.3); the
/// namespaces of the metadata block, which rule 4 of §6 puts into the JSON, are taken out of ours.
fn check_form(submission: &Value, expected: &Value, kind: &str) {
    let form = parse_text(submission["xml"].as_str().unwrap()).unwrap();
    let domain = DomainId::new("maternal-bench").unwrap();
    let received_on = parse_micros(submission["received_on"].as_str().unwrap()).unwrap();
    let row = FormRow {
        form_id: &form.form_id,
        domain: &domain,
        state: FormState::Normal,
        deleted: false,
        xmlns: &form.xmlns,
        app_id: expected["app_id"].as_str(),
        build_id: expected["build_id"].as_str(),
        user_id: form.user_id.as_deref(),
        received_on,
        server_modified_on: received_on,
        edited_on: None,
        deprecated_form_id: None,
        orig_id: None,
        problem: None,
        initial_processing_complete: true,
        auth_context: None,
        openrosa_headers: None,
        last_sync_token: None,
        date_header: None,
        submit_ip: None,
        history: &[],
        form: &form.json,
        meta: Some(&form.meta),
    };
    let mut document: Value = serde_json::from_str(form_document(&row).unwrap().get()).unwrap();
    let meta = document["form"]["meta"].as_object_mut().unwrap();
    assert_eq!(meta.shift_remove("@xmlns").unwrap(), "http://openrosa.org/jsr-261");
    assert_eq!(meta["appVersion"]["@xmlns"], "http://commcarehq.org/xforms");
    meta["appVersion"] = meta["appVersion"]["#text"].take();
    for (name, value) in expected.as_object().unwrap() {
        if name != "edited" && !(kind == "edit" && (name == "received_on" || name == "server_modified_on")) {
            assert_eq!(document[name], *value, "{} {name}", expected["_id"]);
        }
    }
}

/// All fields, except that `modified_on` never goes back (§9.3) while the generator's does: a new form's time is compared with
/// the latest so far.
fn check_case(world: &World, expected: &Value, latest: &mut HashMap<String, String>, is_new: bool) {
    let id = expected["_id"].as_str().unwrap();
    let document = world.document(id);
    let modified_on = expected["modified_on"].as_str().unwrap().to_owned();
    let latest = latest.entry(id.to_owned()).or_default();
    if is_new && modified_on > *latest {
        *latest = modified_on;
    }
    for (name, value) in expected.as_object().unwrap() {
        if name == "modified_on" {
            assert_eq!(document[name], json!(latest), "{id} {name}");
        } else if name == "closed_by" && value.is_null() {
            // empty after a replay
            assert!(document[name].is_null() || document[name] == "", "{id} {name}");
        } else {
            assert_eq!(document[name], *value, "{id} {name}");
        }
    }
}
