//! The arrows between crates: which member may depend on what, and which libraries may exist once only.
//!
//! The first keeps the edit-and-test loop short and the siblings separable; the second keeps one set of Arrow,
//! object store and Postgres wire types in the program.

use std::{collections::BTreeSet, fs, path::Path};

/// What a member may depend on inside the workspace, and what it must never depend on outside.
struct Rule {
    folder: &'static str,
    may: &'static [&'static str],
    never: &'static [&'static str],
}

const TIMELY: [&str; 2] = ["timely", "differential-dataflow"];
const DATAFUSION: [&str; 3] = ["datafusion", "datafusion-postgres", "pgwire"];

const RULES: &[Rule] = &[
    Rule {
        folder: "schemas",
        may: &[],
        never: &["tokio", "axum", "tokio-postgres", "rdkafka", "object_store", "reqwest", "arrow", "parquet"],
    },
    Rule {
        folder: "udf",
        may: &["schemas"],
        never: &["tokio", "rand", "uuid", "axum", "tokio-postgres", "rdkafka", "object_store", "reqwest", "futures"],
    },
    Rule { folder: "ingest", may: &["schemas", "udf"], never: &["arrow", "parquet"] },
    Rule { folder: "dataflow", may: &["schemas", "udf"], never: &["axum", "tokio-postgres", "reqwest"] },
    Rule { folder: "query", may: &["schemas", "udf"], never: &["tokio-postgres", "rdkafka"] },
    Rule { folder: ".", may: &["schemas", "udf", "ingest", "dataflow", "query"], never: &[] },
];

/// Members that may use timely, and those that may use DataFusion; nobody else does.
const MAY_TIMELY: &[&str] = &["dataflow"];
const MAY_DATAFUSION: &[&str] = &["query"];

/// Libraries whose types cross crates.
const ONCE: &[&str] = &[
    "arrow-array",
    "arrow-schema",
    "arrow-buffer",
    "arrow",
    "parquet",
    "pgwire",
    "datafusion",
    "timely",
    "object_store",
];

const MEMBERS: [&str; 5] = ["schemas", "udf", "ingest", "dataflow", "query"];

fn read(path: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names in the dependency tables of a manifest that end up in the library or program.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut collect = |table: Option<&toml::Value>| {
        names.extend(table.and_then(toml::Value::as_table).into_iter().flat_map(|table| table.keys().cloned()));
    };
    for table in ["dependencies", "build-dependencies"] {
        collect(manifest.get(table));
        let targets = manifest.get("target").and_then(toml::Value::as_table);
        for target in targets.into_iter().flat_map(|targets| targets.values()) {
            collect(target.get(table));
        }
    }
    names
}

/// Every arrow of a manifest that the rules refuse.
fn refused(rule: &Rule, manifest: &toml::Table) -> Vec<String> {
    let mut found = Vec::new();
    for name in dependencies(manifest) {
        let short = name.strip_prefix("millrace-").unwrap_or(&name);
        let inside = MEMBERS.contains(&short) && !rule.may.contains(&short);
        let timely = TIMELY.contains(&short) && !MAY_TIMELY.contains(&rule.folder);
        let datafusion =
            DATAFUSION.iter().any(|start| short.starts_with(start)) && !MAY_DATAFUSION.contains(&rule.folder);
        if inside || timely || datafusion || rule.never.contains(&short) {
            found.push(format!("`{}` must not depend on `{name}`", rule.folder));
        }
    }
    found
}

#[test]
fn every_arrow_between_crates_is_allowed() {
    let found: Vec<String> =
        RULES.iter().flat_map(|rule| refused(rule, &read(&format!("{}/Cargo.toml", rule.folder)))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_member_has_a_rule() {
    let root = read("Cargo.toml");
    let members = root["workspace"]["members"].as_array().unwrap();
    for member in members {
        let folder = member.as_str().unwrap();
        assert!(RULES.iter().any(|rule| rule.folder == folder), "`{folder}` has no rule in tests/it/manifests.rs");
    }
}

#[test]
fn a_forbidden_arrow_is_refused() {
    let manifest =
        |name: &str| format!("[target.'cfg(unix)'.dependencies]\n{name} = \"1\"\n").parse::<toml::Table>().unwrap();
    for (folder, name) in [
        ("schemas", "tokio"),
        ("udf", "millrace-ingest"),
        ("ingest", "timely"),
        ("ingest", "query"),
        ("dataflow", "datafusion-common"),
        ("dataflow", "axum"),
        ("query", "dataflow"),
        (".", "pgwire"),
    ] {
        let rule = RULES.iter().find(|rule| rule.folder == folder).unwrap();
        assert_eq!(refused(rule, &manifest(name)).len(), 1, "{folder} -> {name}");
        assert_eq!(refused(rule, &manifest("serde")), Vec::<String>::new());
    }
}

#[test]
fn libraries_whose_types_cross_crates_exist_once() {
    let lock = read("Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    for name in ONCE {
        let versions: Vec<&str> = packages
            .iter()
            .filter(|package| package["name"].as_str() == Some(name))
            .filter_map(|package| package["version"].as_str())
            .collect();
        assert_eq!(versions.len(), 1, "{name} is in Cargo.lock in versions {}", versions.join(", "));
    }
}
