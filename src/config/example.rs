//! Writes the commented example file: every setting with its documentation comment and its default.
//!
//! The comments are read from the source text of the structs, so that there is one place to change; the values are
//! the defaults as they serialise. A test compares the result with `docs/millrace.example.toml`.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::Config;

/// The files that define configuration structs.
const SOURCES: &[&str] = &[
    include_str!("../config.rs"),
    include_str!("../../ingest/src/config.rs"),
    include_str!("../../dataflow/src/config.rs"),
    include_str!("../../query/src/config.rs"),
];

const HEAD: &str = "\
# Millrace: every setting with its default. Delete what you do not change.
# Environment variables win over this file: MILLRACE_LISTEN__HTTP=0.0.0.0:8080 sets `http` in [listen].
";

struct Setting {
    name: String,
    of_type: String,
    comment: Vec<String>,
}

/// The text of the example file.
pub(crate) fn example() -> String {
    let mut out = HEAD.to_owned();
    if let Ok(Value::Object(defaults)) = serde_json::to_value(Config::default()) {
        section(&mut out, "", "Config", &defaults);
    }
    out
}

fn section(out: &mut String, path: &str, of_type: &str, values: &Map<String, Value>) {
    let settings = settings(of_type);
    let mut tables = Vec::new();
    for (name, value) in values {
        let setting = settings.iter().find(|setting| setting.name == *name);
        let comment = setting.map(|setting| setting.comment.as_slice()).unwrap_or_default();
        match (value, setting) {
            (Value::Object(inner), Some(setting)) if !inner.is_empty() => tables.push((name, setting, inner)),
            _ => {
                out.push('\n');
                comment_lines(out, comment);
                let line = match literal(value) {
                    Some(literal) => format!("{name} = {literal}\n"),
                    None => format!("# {name} =\n"),
                };
                out.push_str(&line);
            }
        }
    }
    for (name, setting, inner) in tables {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        out.push('\n');
        comment_lines(out, &setting.comment);
        if writeln!(out, "[{path}]").is_err() {
            return;
        }
        section(out, &path, &setting.of_type, inner);
    }
}

fn comment_lines(out: &mut String, comment: &[String]) {
    for line in comment {
        out.push_str(if line.is_empty() { "#" } else { "# " });
        out.push_str(line);
        out.push('\n');
    }
}

fn literal(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        // TOML's basic strings escape what JSON escapes.
        Value::String(_) | Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => Some(format!("[{}]", items.iter().filter_map(literal).collect::<Vec<_>>().join(", "))),
        Value::Object(_) => Some("{}".to_owned()),
    }
}

/// The fields of a configuration struct, in order, as its source text has them.
fn settings(of_type: &str) -> Vec<Setting> {
    let head = format!("struct {of_type} {{");
    let lines = SOURCES.iter().find_map(|source| {
        let mut lines = source.lines();
        lines.by_ref().find(|line| line.ends_with(&head))?;
        Some(lines)
    });
    let mut found = Vec::new();
    let mut comment = Vec::new();
    for line in lines.into_iter().flatten().map(str::trim).take_while(|line| *line != "}") {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim().to_owned());
        } else if let Some((name, of_type)) = line.strip_suffix(',').and_then(|line| line.split_once(": ")) {
            let name = name.rsplit(' ').next().unwrap_or(name).to_owned();
            let of_type = of_type.rsplit("::").next().unwrap_or(of_type).to_owned();
            found.push(Setting { name, of_type, comment: std::mem::take(&mut comment) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/millrace.example.toml");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == example(),
            "docs/millrace.example.toml is out of date; run `cargo run -- config example > docs/millrace.example.toml`"
        );
    }

    #[test]
    fn the_example_is_the_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), example()).unwrap();
        let config = super::super::load(Some(file.path())).unwrap();
        let written = |config: &Config| serde_json::to_value(config).unwrap();
        assert_eq!(written(&config), written(&Config::default()));
    }

    #[test]
    fn every_setting_is_explained() {
        let mut lines = example().lines().map(str::to_owned).collect::<Vec<_>>();
        lines.insert(0, String::new());
        for pair in lines.windows(2) {
            let [above, line] = pair else { continue };
            let is_setting = !line.starts_with('#') && !line.is_empty();
            assert!(!is_setting || above.starts_with('#'), "`{line}` has no comment");
        }
    }
}
