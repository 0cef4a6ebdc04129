//! `millrace ucr`: the conformance files of the language, and explained definitions, through the program itself.
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
    let configs = directory.path().join("elsewhere");
    std::fs::create_dir(&configs).unwrap();
    std::fs::write(configs.join("mothers.json"), definition.to_string()).unwrap();
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
    let output = ucr(&[Path::new("test"), Path::new("--configs"), &configs, &file]);
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

fn explained(definition: &Value) -> (bool, Value, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("definition.json");
    std::fs::write(&file, definition.to_string()).unwrap();
    let (json, text) = (ucr(&[Path::new("explain"), Path::new("--json"), &file]), ucr(&[Path::new("explain"), &file]));
    assert_eq!(json.status.success(), text.status.success());
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    (json.status.success(), serde_json::from_slice(&json.stdout).unwrap(), text)
}

fn property(name: &str) -> Value {
    json!({"type": "property_name", "property_name": name})
}

fn related(id: &Value, of: &str, value: &Value) -> Value {
    json!({"type": "related_doc", "related_doc_type": of, "doc_id_expression": id, "value_expression": value})
}

fn column(id: &str, expression: &Value) -> Value {
    json!({"type": "expression", "column_id": id, "datatype": "string", "expression": expression})
}

#[test]
fn a_definition_is_explained() {
    let is = |name: &str, value: &str| json!({"type": "boolean_expression", "operator": "eq", "expression": property(name), "property_value": value});
    let village = related(
        &property("owner_id"),
        "CommCareUser",
        &related(&property("location_id"), "Location", &property("name")),
    );
    let mother = json!({"type": "indexed_case", "case_expression": {"type": "identity"}});
    let of_mother = |value: &Value| json!({"type": "nested", "argument_expression": mother, "value_expression": value});
    let ages = json!({"type": "map_items", "map_expression": property("age"), "items_expression": {"type": "sort_items",
        "sort_expression": property("dob"), "items_expression": {"type": "get_subcases", "case_id_expression": property("_id")}}});
    let (valid, json, text) = explained(
        &json!({"domains": ["demo"], "config": {"table_id": "children", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "and", "filters": [is("type", "child"), is("status", "alive")]},
        "sql_column_indexes": [{"column_ids": ["village"]}],
        "configured_indicators": [
            column("village", &village), column("again", &village),
            column("mother", &of_mother(&property("name"))), column("risk", &of_mother(&property("risk"))), column("ages", &ages)]}}),
    );
    assert!(valid, "{text}");
    assert_eq!((&json["documents"], &json["subtypes"]), (&json!("case"), &json!(["child"])));
    assert_eq!(json["gate"], json!({"property": "status", "texts": ["alive"]}));
    assert_eq!(json["columns"][0], json!({"name": "doc_id", "datatype": "string", "required": true, "key": true}));
    assert_eq!(json["indexes"], json!([["village"]]));
    let related: Vec<(&Value, &Value, &Value)> = json["related"]
        .as_array()
        .unwrap()
        .iter()
        .map(|related| (&related["documents"], &related["through"], &related["reads"]))
        .collect();
    assert_eq!(
        related,
        [
            (&json!("user"), &json!(null), &json!(["location_id"])),
            (&json!("location"), &json!(1), &json!(["name"])),
            (&json!("case"), &json!(null), &json!(["name", "risk"])),
            (&json!("cases that point at the case"), &json!(null), &json!(["age", "dob"])),
        ]
    );
    assert_eq!(json["related"][0]["pointers"].as_array().unwrap().len(), 2, "the same question is one look-up");
    for part in [
        "ucr.children and ucr.ucr_demo_children_",
        "2. location by location_id of 1; reads name",
        "status is one of: alive",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn every_problem_of_a_definition_is_said_at_once() {
    let own = |i: usize| column(&format!("c{i}"), &json!({"type": format!("own_{}", i % 3)}));
    let indicators: Vec<Value> = (0..120).map(own).chain([json!({"type": "late"})]).collect();
    let (valid, json, text) =
        explained(&json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "named", "name": "none"}, "configured_indicators": indicators}));
    assert!(!valid);
    assert_eq!(
        json["unknown_types"],
        json!(["late", "own_0", "own_1", "own_2"]),
        "also beyond the problems that are listed"
    );
    let pointers: Vec<&str> =
        json["problems"].as_array().unwrap().iter().map(|p| p["pointer"].as_str().unwrap()).collect();
    assert_eq!(&pointers[..2], ["/configured_filter/name", "/configured_indicators/0/expression/type"]);
    assert!(text.ends_with("unknown types: late, own_0, own_1, own_2\n"), "{text}");
}
