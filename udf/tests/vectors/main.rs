//! Runs the UCR conformance vectors and the freshness scenarios against this crate.
//!
//! The files lie outside the repository: `MILLRACE_UCR_VECTORS` names `vectors.jsonl`, whose folder also holds
//! `freshness.jsonl` and `configs/`. Their format is described in the README beside them. Kinds this crate does not
//! implement (reports) are counted and skipped.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may stop")]

mod run;
mod store;
mod typed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use schemas::{doc::Doc, position::Stamp};
use serde_json::Value as Json;
use udf::DataSource;

/// Vectors that passed when this was last raised; it only goes up.
const PASSING: usize = 1057;
/// Scenarios that passed when this was last raised.
const SCENARIOS_PASSING: usize = 25;

fn vectors_file() -> PathBuf {
    match std::env::var_os("MILLRACE_UCR_VECTORS") {
        Some(path) => path.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/ucr/vectors.jsonl"),
    }
}

fn lines(name: &str) -> Option<Vec<Json>> {
    let path = vectors_file().with_file_name(name);
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: {} is not there", path.display());
        return None;
    };
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A configuration of the set, with its domain forced to `demo`.
fn config(file: &str) -> Json {
    let path = vectors_file().with_file_name("configs").join(file);
    let mut json: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut config = json.get_mut("config").map(Json::take).unwrap_or(json);
    config["domain"] = "demo".into();
    config
}

#[test]
fn conformance_vectors() {
    let name = vectors_file().file_name().unwrap().to_string_lossy().into_owned();
    let Some(vectors) = lines(&name) else { return };
    let mut passed: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    for vector in &vectors {
        let kind = vector["kind"].as_str().unwrap();
        let Some(outcome) = run::run(vector) else {
            *skipped.entry(kind.to_owned()).or_default() += 1;
            continue;
        };
        let (good, all) = passed.entry(kind.to_owned()).or_default();
        *all += 1;
        match outcome {
            Ok(()) => *good += 1,
            Err(difference) => println!("FAILED {}: {difference}", vector["id"].as_str().unwrap()),
        }
    }
    println!("passed of run: {passed:?}; not implemented: {skipped:?}");
    let good: usize = passed.values().map(|(good, _)| good).sum();
    assert!(good >= PASSING, "{good} vectors pass, {PASSING} did before");
}

#[test]
fn full_rebuild_reaches_the_expected_rows_of_every_scenario() {
    let Some(scenarios) = lines("freshness.jsonl") else { return };
    let mut good = 0;
    for scenario in &scenarios {
        let source = DataSource::compile(&config(scenario["config"].as_str().unwrap())).unwrap();
        let mut documents: BTreeMap<String, Json> = BTreeMap::new();
        for event in scenario["events"].as_array().unwrap() {
            match event["op"].as_str().unwrap() {
                "put" => {
                    documents.insert(event["doc"]["_id"].as_str().unwrap().to_owned(), event["doc"].clone());
                }
                "delete" => {
                    documents.remove(event["id"].as_str().unwrap());
                }
                other => panic!("unknown operation {other}"),
            }
        }
        let mut store = store::Store::of_documents(&documents);
        let (mut differences, mut failures) = (Vec::new(), Vec::new());
        let expected = scenario["expected_rows"].as_object().unwrap();
        let ids: BTreeSet<&String> = documents.keys().chain(expected.keys()).collect();
        for id in ids {
            let rows = match documents.get(id) {
                // A document that fails has no rows.
                Some(json) => {
                    let doc = Doc::from_value(json).unwrap();
                    source.evaluate(&doc, Stamp(run::NOW), run::NOW, &mut store).unwrap_or_else(|error| {
                        failures.push(format!("{id} raised {error}"));
                        Vec::new()
                    })
                }
                None => Vec::new(),
            };
            let wanted = expected.get(id).filter(|rows| run::can_be_saved(&source, rows));
            let wanted = wanted.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            if let Err(difference) = run::compare_rows(&source, &rows, wanted) {
                differences.push(format!("{id}: {difference}"));
            }
        }
        if differences.is_empty() {
            good += 1;
        } else {
            println!("FAILED {}: {} ({})", scenario["id"], differences.join("; "), failures.join("; "));
        }
    }
    println!("{good} of {} scenarios pass", scenarios.len());
    assert!(good >= SCENARIOS_PASSING, "{good} scenarios pass, {SCENARIOS_PASSING} did before");
}
