//! The conformance scenarios of the forms-and-cases contract, driven through a real server over HTTP.
//!
//! `MILLRACE_FORMS_CONTRACT` names another directory of the same format (a `cases.jsonl` and the files it refers to). One
//! line is printed per scenario. An operation or an expectation that this runner does not know is a failure.

mod drive;
mod judge;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::server::{Options, Server};
use drive::Run;

/// Operations that belong to phone sync.
const SYNC: [&str; 4] = ["restore", "build_graph", "device_parses_restore", "render_casedb"];

/// Scenarios whose expectation Millrace does not share on purpose (docs/deviations.md), and what is expected instead: the
/// name of a part of `expect_from_code`, or nothing.
const DEVIATIONS: [(&str, Option<&str>); 3] = [("s008", Some("sql_backend")), ("s109", None), ("s110", None)];

fn directory() -> PathBuf {
    match std::env::var_os("MILLRACE_FORMS_CONTRACT") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/forms"),
    }
}

fn scenarios(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("cases.jsonl")).unwrap();
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn steps(scenario: &Value) -> &[Value] {
    scenario["sequence"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_sync(scenario: &Value) -> bool {
    steps(scenario).iter().any(|step| SYNC.contains(&text(step, "op")))
}

async fn server() -> Server {
    let settings = vec!["ingest.trust_submit_time = true".to_owned(), "ingest.lock_wait_ms = 300".to_owned()];
    Server::start(&Options { settings, roles: Some("ingest"), ..Options::default() }).await
}

/// What came of one scenario.
enum Outcome {
    Passed,
    Failed(Vec<String>),
    /// The deviation is as documented.
    Deviates,
}

async fn run(server: &Server, directory: &Path, scenario: &Value) -> Outcome {
    let id = text(scenario, "id");
    let deviation = DEVIATIONS.iter().find(|(deviating, _)| *deviating == id);
    let expect = match deviation {
        Some((_, None)) => return Outcome::Deviates,
        Some((_, Some(part))) => &scenario["expect_from_code"][*part],
        None => &scenario["expect"],
    };
    let mut run = Run::start(server, directory, scenario).await;
    let mut failures = Vec::new();
    for step in steps(scenario) {
        if text(step, "op") == "checkpoint" {
            failures.extend(judge::judge(&run, &step["expect"]).await);
        } else if let Err(failure) = run.step(step).await {
            failures.push(failure);
        }
    }
    failures.extend(judge::judge(&run, expect).await);
    if deviation.is_none() {
        for difference in judge::judge(&run, &scenario["expect_from_code"]).await {
            println!("  {id}: differs from what the code of the original does: {difference}");
        }
    }
    match failures.is_empty() {
        true if deviation.is_some() => Outcome::Deviates,
        true => Outcome::Passed,
        false => Outcome::Failed(failures),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_contract() {
    let directory = directory();
    let all = scenarios(&directory);
    let (left, driven): (Vec<_>, Vec<_>) = all.iter().partition(|scenario| is_sync(scenario));
    let server = server().await;
    let (mut passed, mut failed) = (0, Vec::new());
    for scenario in driven {
        let name = format!("{} {}: {}", text(scenario, "id"), text(scenario, "family"), text(scenario, "scenario"));
        match run(&server, &directory, scenario).await {
            Outcome::Passed => {
                passed += 1;
                println!("pass {name}");
            }
            Outcome::Deviates => {
                passed += 1;
                println!("pass {name} (as documented in docs/deviations.md)");
            }
            Outcome::Failed(reasons) => {
                println!("FAIL {name}");
                reasons.iter().for_each(|reason| println!("     {reason}"));
                failed.push(name);
            }
        }
    }
    let ids: Vec<&str> = left.iter().map(|scenario| text(scenario, "id")).collect();
    println!("left to phone sync: {} scenarios: {}", ids.len(), ids.join(" "));
    println!("{passed} passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{} scenarios failed: {failed:#?}\n{}", failed.len(), server.log());
}

/// Every expected value, made wrong, is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupted_expectations_are_noticed() {
    let directory = directory();
    let server = server().await;
    let (mut corrupted, mut unnoticed) = (0, Vec::new());
    for scenario in scenarios(&directory).iter().filter(|scenario| !is_sync(scenario)) {
        let id = text(scenario, "id");
        if DEVIATIONS.iter().any(|(deviating, _)| *deviating == id) {
            continue;
        }
        let mut run = Run::start(&server, &directory, scenario).await;
        for step in steps(scenario) {
            if text(step, "op") == "checkpoint" {
                continue;
            }
            run.step(step).await.unwrap();
        }
        for (place, wrong) in judge::corruptions(&scenario["expect"]) {
            corrupted += 1;
            if judge::judge(&run, &wrong).await.is_empty() {
                unnoticed.push(format!("{id} {place}"));
            }
        }
    }
    println!("{corrupted} corrupted values, {} not noticed", unnoticed.len());
    assert!(corrupted > 200 && unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}
