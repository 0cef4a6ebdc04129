//! `millrace ucr`: the conformance files of the language, through the program itself.
//!
//! `MILLRACE_UCR_VECTORS` names another `vectors.jsonl`, beside which `freshness.jsonl` and `configs/` lie.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

fn vectors() -> PathBuf {
    match std::env::var_os("MILLRACE_UCR_VECTORS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/ucr/vectors.jsonl"),
    }
}

fn ucr(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace")).arg("ucr").args(args).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn vectors_and_scenarios_pass() {
    let (vectors, scenarios) = (vectors(), vectors().with_file_name("freshness.jsonl"));
    let mut expected = 0;
    for file in [&vectors, &scenarios] {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let json = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        expected += json.filter(|line| line["kind"] != "report").count();
    }
    let output = ucr(&[Path::new("test"), &vectors, &scenarios]);
    let lines = lines(&output);
    let differ = lines.iter().filter(|line| line.starts_with("differs ")).count();
    println!("{}", lines.join("\n"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lines.last().unwrap(), &format!("{} passed, 0 failed", expected - differ));
}

/// Lines that are wrong in every way a line can be, and one that is right.
#[test]
fn every_failure_is_named_and_counted() {
    let definition = json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase",
        "configured_filter": {}, "configured_indicators": [
            {"type": "expression", "column_id": "up", "datatype": "string", "expression": {"type": "related_doc",
                "related_doc_type": "CommCareCase", "doc_id_expression": {"type": "property_name", "property_name": "mother"},
                "value_expression": {"type": "property_name", "property_name": "name"}}}]});
    let case = |id: &str, name: &str| json!({"_id": id, "doc_type": "CommCareCase", "domain": "demo", "name": name, "mother": "m"});
    let rows = |id: &str, up: &str| {
        json!({"id": id, "kind": "data_source", "op": "rows", "spec": definition, "doc": case("c", ""),
            "context": {"documents": {"m": case("m", "Asha")}},
            "expected": [{"doc_id": "c", "inserted_at": "$now", "up": up}]})
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("configs")).unwrap();
    std::fs::write(directory.path().join("configs/mothers.json"), definition.to_string()).unwrap();
    let scenario = |id: &str, up: &str| {
        json!({"id": id, "kind": "freshness", "config": "mothers.json", "events": [
                {"op": "put", "doc": case("m", "Asha")}, {"op": "put", "doc": case("c", "")},
                {"op": "delete", "id": "c"}, {"op": "put", "doc": case("m", "Bela")}],
            "expected_rows": {"m": [{"doc_id": "m", "inserted_at": "$now", "up": up}]}})
    };
    let plain = |id: &str, spec: Value, expected: Value| json!({"id": id, "kind": "expression", "spec": spec, "doc": {}, "context": {}, "expected": expected});
    let file = directory.path().join("lines.jsonl");
    let all = [
        rows("right", "Asha").to_string(),
        rows("wrong", "Bela").to_string(),
        scenario("fresh", "Bela").to_string(),
        scenario("stale", "Asha").to_string(),
        plain("plain", json!(1), json!(2)).to_string(),
        plain("tag", json!(1), json!({"$unheard": 1})).to_string(),
        json!({"id": "missing", "kind": "data_source", "op": "validate", "spec": {"$config": "none.json"}}).to_string(),
        json!({"id": "report", "kind": "report", "op": "column"}).to_string(),
        "{".to_owned(),
    ];
    std::fs::write(&file, all.join("\n")).unwrap();
    let output = ucr(&[Path::new("test"), &file]);
    let lines = lines(&output);
    assert!(!output.status.success());
    for (id, part) in [
        ("wrong", "Bela"),
        ("stale", "Asha"),
        ("plain", "expected Integer(2), got Integer(1)"),
        ("tag", "`$unheard` is not known"),
        ("missing", "none.json"),
        ("lines.jsonl:9", "not valid JSON"),
    ] {
        let named = lines.iter().find(|line| line.starts_with("FAILED ") && line.contains(id));
        assert!(named.is_some_and(|line| line.contains(part)), "{id} in {lines:?}");
    }
    assert!(lines.contains(&"1 of kind `report` not run: this release does not have it yet".to_owned()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "2 passed, 6 failed");
}
