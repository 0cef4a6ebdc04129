//! `millrace bench views` on the shared workload: its tables against a batch recomputation, and its line of figures.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{
    oracle::{self, Table, World},
    workload::{generated, lines},
};

const FORMS: usize = 2_000;

/// File, key and right content of each table that is dumped.
type Dumped = (&'static str, &'static [&'static str], fn(&World) -> Table);

const DUMPED: [Dumped; 4] = [
    ("w1.jsonl", &["doc_id"], World::pregnancies),
    ("w3.jsonl", &["owner_id", "month"], World::visits_by_month),
    ("w4.jsonl", &["child_id"], World::children),
    ("w5.jsonl", &["district_id"], World::districts),
];

fn bench(changes: &Path, dump: &Path, how: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace"))
        .args(["bench", "views", "--changes"])
        .arg(changes)
        .arg("--dump")
        .arg(dump)
        .args(how)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The documents as the first `count` changes leave them.
fn world(changes: &[Value], count: usize) -> World {
    let mut world = World::default();
    for change in &changes[..count] {
        let kind = match change["topic"].as_str().unwrap() {
            "form-sql" => "form",
            "case-sql" => "case",
            "commcare-user" => "user",
            other => other,
        };
        world.apply(kind, change["doc_id"].as_str().unwrap(), Some(change["doc"].clone()));
    }
    world
}

fn compare(world: &World, dump: &Path) {
    for (file, key, right) in DUMPED {
        let rows = lines(&dump.join(file));
        let found = oracle::differences(&right(world), key, &rows);
        assert!(found.is_empty(), "{file} is wrong:\n{}", found.join("\n"));
        let keys: Vec<Vec<&str>> =
            rows.iter().map(|row| key.iter().map(|name| row[name].as_str().unwrap()).collect()).collect();
        assert!(!keys.is_empty() && keys.is_sorted(), "{file} is empty or not sorted by its key");
    }
}

#[test]
fn tables_of_the_workload_equal_a_batch_recomputation() {
    let generated = generated(FORMS, 3);
    let changes = generated.path().join("changes.jsonl");
    let all = lines(&changes);

    let dump = generated.path().join("backfill");
    let figures = bench(&changes, &dump, &["--backfill"]);
    assert_eq!(figures["changes"], all.len());
    assert!(figures["p50_ms"].is_null() && figures["peak_rss_mb"].as_f64().unwrap() > 1.0, "{figures}");
    assert!(figures.get("worker_records").is_none(), "{figures}");
    compare(&world(&all, all.len()), &dump);

    let dump = generated.path().join("shared-out");
    let figures = bench(&changes, &dump, &["--backfill", "--workers", "2"]);
    let shares: Vec<usize> = serde_json::from_value(figures["worker_records"].clone()).unwrap();
    assert!(shares.len() == 2 && !shares.contains(&0) && shares.iter().sum::<usize>() == all.len(), "{figures}");
    assert!((1.0..2.0).contains(&figures["skew"].as_f64().unwrap()), "{figures}");
    compare(&world(&all, all.len()), &dump);

    let dump = generated.path().join("paced");
    let figures = bench(&changes, &dump, &["--preload", "1000", "--rate", "1000", "--seconds", "2"]);
    // Transactions are whole, so a form's cases may come on top of either number.
    let whole = |from: usize| (from..).find(|at| all[*at]["topic"] != "case-sql").unwrap();
    let preloaded = whole(1000);
    let end = whole(preloaded + 2000);
    assert_eq!(figures["changes"], end - preloaded);
    assert!(figures["p50_ms"].as_f64().unwrap() <= figures["max_ms"].as_f64().unwrap(), "{figures}");
    compare(&world(&all, end), &dump);
}
