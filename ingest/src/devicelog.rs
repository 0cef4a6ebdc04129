//! Device reports: what phones log about themselves (forms-and-cases.md §12.7).
//!
//! In: a report's JSON. Out: its entries, numbered by kind in document order. Reports are not forms: they take no lock, touch
//! no case and have no change record.

use schemas::{
    id::{DomainId, FormId},
    time::{format_micros, parse_micros},
};
use serde_json::{Map, Value};
use tokio_postgres::{Client, types::Type};

use crate::{casexml::value, error::DatabaseError};

/// Kinds of entry: name, the element that groups them, the element of one.
const KINDS: [(&str, &str, &str); 4] = [
    ("log", "log_subreport", "log"),
    ("user", "user_subreport", "user"),
    ("user_error", "user_error_subreport", "user_error"),
    ("force_close", "force_close_subreport", "force_close"),
];

/// Fields of entries that are called otherwise in rows.
const RENAMED: [(&str, &str); 3] = [("@date", "date"), ("version", "version_number"), ("app_build", "version_number")];

/// One entry of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceLogEntry {
    /// `log`, `user`, `user_error` or `force_close`.
    pub kind: &'static str,
    /// From 0, by kind.
    pub number: i32,
    /// What it says.
    pub fields: Map<String, Value>,
}

/// The elements of one kind in all subreports of a name, single or repeated; empty ones are left out.
#[must_use]
pub fn subreport<'a>(report: &'a Map<String, Value>, group: &str, element: &str) -> Vec<&'a Map<String, Value>> {
    let groups = report.get(group).map(value::items).unwrap_or_default();
    let elements = groups.iter().filter_map(|group| group.get(element)).flat_map(value::items);
    elements.filter_map(Value::as_object).collect()
}

/// The entries of a report.
#[must_use]
pub fn entries(report: &Map<String, Value>) -> Vec<DeviceLogEntry> {
    let text = |name: &str| report.get(name).map(value::text).filter(|text| !text.is_empty());
    let about: Vec<(&str, Value)> =
        ["device_id", "app_version"].into_iter().filter_map(|name| Some((name, text(name)?.into()))).collect();
    let mut entries = Vec::new();
    for (kind, group, element) in KINDS {
        for (number, said) in (0..).zip(subreport(report, group, element)) {
            let mut fields: Map<String, Value> =
                about.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            fields.extend(said.iter().map(|(name, value)| field(name, value)));
            if let Some((name, id)) = signed_in(&fields) {
                fields.insert("username".to_owned(), name.into());
                fields.insert("user_id".to_owned(), id.into());
            }
            fields.insert("i".to_owned(), number.into());
            entries.push(DeviceLogEntry { kind, number, fields });
        }
    }
    entries
}

fn field(name: &str, said: &Value) -> (String, Value) {
    let known = RENAMED.iter().find(|(from, _)| *from == name).map(|(_, to)| *to);
    let text = value::text(said);
    let value = match known.unwrap_or(name) {
        "date" => parse_micros(text).map_or_else(|| text.into(), |at| format_micros(at).into()),
        name if name.ends_with("_number") => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
        _ => text.into(),
    };
    (known.unwrap_or(name).to_owned(), value)
}

/// Who signed in, where an entry says so: `login|name|id`.
fn signed_in(fields: &Map<String, Value>) -> Option<(String, String)> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if text("type")? != "user" {
        return None;
    }
    let mut parts = text("msg")?.splitn(3, '|');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("login"), Some(name), Some(id)) => Some((name.to_owned(), id.to_owned())),
        _ => None,
    }
}

/// Stores the entries of a report; one that is there already adds nothing. Returns once they are durable.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn store(
    client: &Client,
    domain: &DomainId,
    form_id: &FormId,
    received_on: i64,
    entries: &[DeviceLogEntry],
) -> Result<(), DatabaseError> {
    let kinds: Vec<&str> = entries.iter().map(|entry| entry.kind).collect();
    let numbers: Vec<i32> = entries.iter().map(|entry| entry.number).collect();
    let texts: Vec<String> = entries.iter().map(|entry| Value::Object(entry.fields.clone()).to_string()).collect();
    client
        .execute_typed(
            "INSERT INTO device_logs (domain, form_id, kind, number, received_on, entry) \
             SELECT $1, $2, kind, number, $3, entry \
             FROM unnest($4::text[], $5::integer[], $6::text[]) AS u(kind, number, entry) ON CONFLICT DO NOTHING",
            &[
                (&domain.as_str(), Type::TEXT),
                (&form_id.as_str(), Type::TEXT),
                (&received_on, Type::INT8),
                (&kinds, Type::TEXT_ARRAY),
                (&numbers, Type::INT4_ARRAY),
                (&texts, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subreports_may_be_repeated_and_entries_know_who_signed_in() {
        let report = json!({
            "device_id": "d",
            "log_subreport": [
                {"log": [{"@date": "2014-10-08T10:43:38.793+02", "type": "resources", "msg": "m"}, ""]},
                {"log": {"type": "user", "msg": "login|ada|u1"}},
                "",
            ],
            "force_close_subreport": {"force_close": {"version": "15", "type": "forceclose"}},
        });
        let entries = entries(report.as_object().unwrap());
        let seen: Vec<_> = entries.iter().map(|entry| (entry.kind, entry.number)).collect();
        assert_eq!(seen, [("log", 0), ("log", 1), ("force_close", 0)]);
        assert_eq!(entries[0].fields["date"], "2014-10-08T08:43:38.793000Z");
        assert_eq!((&entries[1].fields["username"], &entries[1].fields["user_id"]), (&"ada".into(), &"u1".into()));
        assert_eq!((&entries[2].fields["version_number"], &entries[2].fields["device_id"]), (&15.into(), &"d".into()));
    }
}
