//! A form's identity and metadata, and the clean-up of old spellings.
//!
//! Source: forms-and-cases.md §6 rule 11, §7.1, §7.2.

use schemas::time::{format_micros, parse_micros};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

/// Metadata of a form, derived from its `meta` block. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FormMeta {
    /// When the user opened the form.
    pub time_start: Option<i64>,
    /// When the user finished it.
    pub time_end: Option<i64>,
    /// The form's id as the form states it.
    pub instance_id: Option<String>,
    /// The device.
    pub device_id: Option<String>,
    /// The user.
    pub user_id: Option<String>,
    /// The user's name.
    pub username: Option<String>,
    /// The app's own description of its version.
    pub app_version: Option<String>,
    /// Version of the mobile app, from [`FormMeta::app_version`].
    pub commcare_version: Option<String>,
    /// Number of the build, from [`FormMeta::app_version`] or the form's `version`. Where the build is known, its
    /// own number goes before this one.
    pub app_build_version: Option<i64>,
    /// Place, `lat lon alt accuracy`.
    pub location: Option<String>,
    /// Everything else in the block.
    pub other: Map<String, Value>,
}

impl FormMeta {
    /// Reads the metadata of a form's cleaned-up JSON.
    #[must_use]
    pub fn of(form: &Map<String, Value>) -> Self {
        let mut meta = Self::default();
        for (name, value) in form.get("meta").and_then(first_object).into_iter().flatten() {
            match name.as_str() {
                "timeStart" => meta.time_start = text_of(value).and_then(parse_micros),
                "timeEnd" => meta.time_end = text_of(value).and_then(parse_micros),
                "instanceID" => meta.instance_id = Some(flatten(value)),
                "deviceID" => meta.device_id = Some(flatten(value)),
                "userID" => meta.user_id = Some(flatten(value)),
                "username" => meta.username = Some(flatten(value)),
                "appVersion" => meta.app_version = text_of(value).map(str::to_owned),
                "location" => meta.location = text_of(value).filter(|text| is_location(text)).map(str::to_owned),
                name if name.starts_with('@') => {}
                name => {
                    meta.other.insert(name.to_owned(), value.clone());
                }
            }
        }
        let described = meta.app_version.as_deref().unwrap_or_default();
        meta.commcare_version = commcare_version(described).map(str::to_owned);
        meta.app_build_version = build_in_text(described)
            .or_else(|| form.get("@version").and_then(Value::as_str).filter(|version| *version != "1")?.parse().ok());
        meta
    }
}

impl Serialize for FormMeta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        out.serialize_entry("doc_type", "Metadata")?;
        for (name, time) in [("timeStart", self.time_start), ("timeEnd", self.time_end)] {
            if let Some(time) = time {
                out.serialize_entry(name, &format_micros(time))?;
            }
        }
        out.serialize_entry("instanceID", &self.instance_id)?;
        out.serialize_entry("deviceID", &self.device_id)?;
        out.serialize_entry("userID", &self.user_id)?;
        out.serialize_entry("username", &self.username)?;
        out.serialize_entry("appVersion", &self.app_version)?;
        out.serialize_entry("commcare_version", &self.commcare_version)?;
        out.serialize_entry("app_build_version", &self.app_build_version)?;
        out.serialize_entry("location", &self.location)?;
        let own = ["doc_type", "commcare_version", "app_build_version"];
        for (name, value) in self.other.iter().filter(|(name, _)| !own.contains(&name.as_str())) {
            out.serialize_entry(name, value)?;
        }
        out.end()
    }
}

/// The form's own id, before the clean-up (§7.1). Empty text is none.
pub(super) fn instance_id(form: &Map<String, Value>) -> Option<&str> {
    let meta = form.get("Meta").or_else(|| form.get("meta")).and_then(first_object)?;
    ["uid", "instanceID"].into_iter().find_map(|name| meta.get(name).and_then(text_of).filter(|id| !id.is_empty()))
}

/// The form's user, before the clean-up (§7.1). Empty text is none.
pub(super) fn user_id(form: &Map<String, Value>) -> Option<&str> {
    [("meta", "userID"), ("Meta", "user_id")].into_iter().find_map(|(block, name)| {
        form.get(block).and_then(first_object)?.get(name).and_then(text_of).filter(|id| !id.is_empty())
    })
}

/// Gives the metadata block and its members their present names (§6 rule 11).
pub(super) fn clean_up(form: &mut Map<String, Value>) {
    if let Some(meta) = form.shift_remove("Meta") {
        form.insert("meta".to_owned(), meta);
    }
    let Some(meta) = form.get_mut("meta") else { return };
    if let Value::Array(list) = meta
        && list.first().is_some_and(Value::is_object)
    {
        *meta = list.swap_remove(0);
    }
    let Value::Object(meta) = meta else { return };
    for (old, new) in [
        ("TimeStart", "timeStart"),
        ("TimeEnd", "timeEnd"),
        ("chw_id", "userID"),
        ("DeviceID", "deviceID"),
        ("uid", "instanceID"),
    ] {
        if !meta.contains_key(new)
            && let Some(value) = meta.shift_remove(old)
        {
            meta.insert(new.to_owned(), value);
        }
    }
}

fn first_object(value: &Value) -> Option<&Map<String, Value>> {
    match value {
        Value::Object(members) => Some(members),
        Value::Array(list) => list.first().and_then(Value::as_object),
        _ => None,
    }
}

/// The text of a node, with or without attributes; the first one's if it is repeated.
fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(members) => members.get("#text").and_then(Value::as_str),
        Value::Array(list) => list.first().filter(|first| !first.is_array()).and_then(text_of),
        _ => None,
    }
}

/// Text as it is, an object as `k:v, k:v`.
fn flatten(value: &Value) -> String {
    let Value::Object(members) = value else { return text_of(value).unwrap_or_default().to_owned() };
    let pairs: Vec<String> =
        members.iter().map(|(name, value)| format!("{name}:{}", text_of(value).unwrap_or_default())).collect();
    pairs.join(", ")
}

/// Four decimals separated by spaces.
fn is_location(text: &str) -> bool {
    let is_decimal = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E'))
            && part.parse::<f64>().is_ok()
    };
    text.split_whitespace().count() == 4 && text.split_whitespace().all(is_decimal)
}

/// The first quoted dotted number, as in `version "2.27.8" (414593)`.
fn commcare_version(described: &str) -> Option<&str> {
    described.split('"').skip(1).step_by(2).find(|quoted| {
        quoted.contains('.')
            && quoted.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// The build's number in ` #102 `, `b[99]` or `App v65.`.
fn build_in_text(described: &str) -> Option<i64> {
    if described.chars().count() <= 5 {
        return None;
    }
    [(" #", " "), ("b[", "]"), ("App v", ".")].into_iter().find_map(|(before, after)| {
        described.match_indices(before).find_map(|(at, _)| {
            let rest = described.get(at + before.len()..)?;
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            let (number, rest) = rest.split_at_checked(end)?;
            if rest.starts_with(after) { number.parse().ok() } else { None }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(members) = value else { panic!("not an object") };
        members
    }

    #[test]
    fn versions_are_found_in_the_app_version() {
        for (described, commcare, build) in [
            (
                r#"CommCare ODK, version "2.11.0"(29272). App v65. CommCare Version 2.11. Build 29272, built on: February-14-2014"#,
                Some("2.11.0"),
                Some(65),
            ),
            (r#"CommCare Android, version "2.27.8" (414593). App v10."#, Some("2.27.8"), Some(10)),
            ("v2.0.0alpha (d3b5a3-a9f3b2-2.0-unvers-2.1.0-Nokia/S40-generic) #102 b:2010-Dec-06", None, Some(102)),
            ("@PROPERTY_APP_VERSION@ (30a-b[99]-x)", None, Some(99)),
            ("CommCare Android 2.54, App v17", None, None),
            ("b[9]", None, None),
            (r#"say "hello" and "1.5""#, Some("1.5"), None),
            ("", None, None),
        ] {
            assert_eq!(commcare_version(described), commcare, "{described}");
            assert_eq!(build_in_text(described), build, "{described}");
        }
    }

    #[test]
    fn the_forms_version_stands_in_unless_it_is_one() {
        for (version, build) in [("17", Some(17)), ("1", None), ("x", None)] {
            let form = object(json!({"@version": version, "meta": {"appVersion": "CommCare Android 2.54, App v17"}}));
            assert_eq!(FormMeta::of(&form).app_build_version, build, "{version}");
        }
    }

    #[test]
    fn identity_follows_the_old_spelling_first() {
        for (form, id, user) in [
            (
                json!({"Meta": {"uid": "a", "instanceID": "b", "user_id": "u"}, "meta": {"instanceID": "c"}}),
                Some("a"),
                Some("u"),
            ),
            (json!({"Meta": {"user_id": ""}, "meta": {"instanceID": "c", "userID": "v"}}), None, Some("v")),
            (json!({"meta": {"uid": "d", "instanceID": "e"}}), Some("d"), None),
            (json!({"meta": {"uid": "", "instanceID": {"@x": "y", "#text": "e"}}}), Some("e"), None),
            (json!({"meta": [{"instanceID": "f"}, {"instanceID": "g"}]}), Some("f"), None),
            (json!({"meta": ""}), None, None),
            (json!({}), None, None),
        ] {
            let form = object(form);
            assert_eq!((instance_id(&form), user_id(&form)), (id, user), "{form:?}");
        }
    }

    #[test]
    fn old_spellings_are_renamed_unless_the_new_one_is_there() {
        for (before, after) in [
            (
                json!({"Meta": {"TimeStart": "1", "TimeEnd": "2", "chw_id": "3", "DeviceID": "4", "uid": "5", "user_id": "6"}}),
                json!({"meta": {"timeStart": "1", "timeEnd": "2", "userID": "3", "deviceID": "4", "instanceID": "5", "user_id": "6"}}),
            ),
            (json!({"meta": {"uid": "1", "instanceID": "2"}}), json!({"meta": {"uid": "1", "instanceID": "2"}})),
            (json!({"meta": [{"uid": "1"}, {"uid": "2"}]}), json!({"meta": {"instanceID": "1"}})),
            (json!({"meta": ["x", {"uid": "2"}]}), json!({"meta": ["x", {"uid": "2"}]})),
        ] {
            let mut form = object(before);
            clean_up(&mut form);
            assert_eq!(Value::Object(form), after);
        }
    }

    #[test]
    fn odd_values_are_flattened_or_dropped() {
        let form = object(json!({"meta": {
            "@xmlns": "ns", "timeStart": "", "timeEnd": "2014-07-11", "username": {"a": "1", "b": "2"},
            "appVersion": {"@xmlns": "x"}, "location": "1 2 3", "clinic_id": "7"
        }}));
        let meta = FormMeta::of(&form);
        assert_eq!(
            serde_json::to_value(&meta).unwrap(),
            json!({"doc_type": "Metadata", "timeEnd": "2014-07-11T00:00:00.000000Z", "instanceID": null, "deviceID": null,
                "userID": null, "username": "a:1, b:2", "appVersion": null, "commcare_version": null,
                "app_build_version": null, "location": null, "clinic_id": "7"})
        );
        assert!(
            is_location("42.3739063 -71.1109113 0.0 886.0") && !is_location("a b c d") && !is_location("inf 1 2 3")
        );
    }
}
