//! Lays file and environment over the defaults, key by key, so that one bad key does not hide the next.
//!
//! Each given value is tried alone against the default configuration: what fails is a problem with that key's name
//! and origin; what remains makes the configuration.

use std::path::Path;

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use serde_json::Value;

use super::{Config, Problem};

/// True if a variable (without the prefix) is meant as a setting: it names a section or a key at the top, or nearly so.
/// Others with the prefix are arguments of commands and switches of the test suite.
fn is_setting(key: &str, known: &[&str]) -> bool {
    let key = key.to_ascii_lowercase();
    key.contains("__") || nearest(&key, known).is_some()
}

/// Returns the configuration made of every key that could be used, and the problems of those that could not.
pub(super) fn merge(file: Option<&Path>) -> (Config, Vec<Problem>) {
    let mut problems = Vec::new();
    let whole = |message: String, origin: String| Problem { key: String::new(), origin, message };
    let mut figment = Figment::new();
    if let Some(file) = file {
        match std::fs::read_to_string(file) {
            Err(error) => problems.push(whole(format!("could not read the file: {error}"), file.display().to_string())),
            Ok(text) => match toml::from_str::<toml::Table>(&text) {
                // figment says less about where a syntax error is.
                Err(error) => problems.push(whole(syntax(&text, &error), file.display().to_string())),
                Ok(_) => figment = figment.merge(Toml::file_exact(file)),
            },
        }
    }

    let defaults = match serde_json::to_value(Config::default()) {
        Ok(defaults) => defaults,
        Err(error) => {
            problems.push(whole(format!("could not write out the defaults: {error}"), String::new()));
            return (Config::default(), problems);
        }
    };
    let known: Vec<String> = defaults.as_object().map(|keys| keys.keys().cloned().collect()).unwrap_or_default();
    let variables = Env::prefixed("MILLRACE_").filter(move |key| {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        is_setting(key.as_str(), &known)
    });
    let figment = figment.merge(variables.split("__"));
    let given = match figment.extract::<Value>() {
        Ok(given) => given,
        Err(errors) => {
            problems.extend(errors.into_iter().map(|error| whole(error.to_string(), String::new())));
            return (Config::default(), problems);
        }
    };

    let mut walk = Walk { defaults: &defaults, figment: &figment, merged: defaults.clone(), problems };
    walk.visit(&mut Vec::new(), &given, &defaults);
    let Walk { merged, mut problems, .. } = walk;
    match serde_json::from_value(merged) {
        Ok(config) => (config, problems),
        Err(error) => {
            problems.push(whole(error.to_string(), String::new()));
            (Config::default(), problems)
        }
    }
}

/// Says where the text stops being TOML. The line itself, which the error would show, may hold a secret.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("is not TOML: line {line}: {}", error.message())
}

struct Walk<'a> {
    defaults: &'a Value,
    figment: &'a Figment,
    merged: Value,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &mut Vec<String>, given: &Value, default: &Value) {
        match (given, default) {
            (Value::Object(given), Value::Object(known)) if !known.is_empty() || path.is_empty() => {
                for (key, value) in given {
                    path.push(key.clone());
                    match known.get(key) {
                        Some(default) => self.visit(path, value, default),
                        None => {
                            let names: Vec<&str> = known.keys().map(String::as_str).collect();
                            self.report(path, unknown(key, &names));
                        }
                    }
                    path.pop();
                }
            }
            _ => self.leaf(path, given),
        }
    }

    fn leaf(&mut self, path: &[String], given: &Value) {
        let mut alone = self.defaults.clone();
        set(&mut alone, path, given);
        match serde_json::from_value::<Config>(alone) {
            Ok(_) => set(&mut self.merged, path, given),
            Err(error) => self.report(path, error.to_string()),
        }
    }

    fn report(&mut self, path: &[String], message: String) {
        let key = path.join(".");
        let metadata = self.figment.find_metadata(&key);
        let origin = match metadata.and_then(|metadata| metadata.source.as_ref()) {
            Some(source) => source.to_string(),
            None if metadata.is_some() => format!("MILLRACE_{}", path.join("__").to_ascii_uppercase()),
            None => String::new(),
        };
        self.problems.push(Problem { key, origin, message });
    }
}

fn set(tree: &mut Value, path: &[String], value: &Value) {
    let mut at = tree;
    for key in path {
        let Value::Object(map) = at else { return };
        at = map.entry(key.as_str()).or_insert(Value::Null);
    }
    at.clone_from(value);
}

fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key (expected one of {})", known.join(", ")),
    }
}

/// The known name that the key is, or probably was meant to be.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().min_by_key(|name| distance(key, name))?;
    (distance(key, near) <= key.len().max(near.len()) / 3).then_some(near)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let change = row.get(j).copied().unwrap_or_default() + usize::from(from != *to);
            let insert = next.get(j).copied().unwrap_or_default() + 1;
            let delete = row.get(j + 1).copied().unwrap_or_default() + 1;
            next.push(change.min(insert).min(delete));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_suggested() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(unknown("lissten", &["listen", "log"]), "unknown key; did you mean `listen`?");
        assert_eq!(unknown("zebra", &["listen", "log"]), "unknown key (expected one of listen, log)");
    }

    #[test]
    fn variables_that_are_no_settings_are_skipped() {
        let known = ["data_dir", "domain", "log"];
        for (key, setting) in [
            ("DATA_DIR", true),
            ("DATADIR", true),
            ("log__filter", true),
            ("LOGG__FILTER", true),
            ("CONFIG", false),
            ("PASSWORD", false),
            ("test_require_kafka", false),
        ] {
            assert_eq!(is_setting(key, &known), setting, "{key}");
        }
    }
}
