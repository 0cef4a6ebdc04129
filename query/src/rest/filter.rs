//! Reading filters: instants, booleans, paths into documents (rest-api.md §2.3, §2.4).

use schemas::time::{format_micros, parse_micros};
use serde_json::Value;

use crate::QueryError;

const DAY: i64 = 86_400_000_000;

/// True if the text is a day without a time.
fn is_day(text: &str) -> bool {
    text.len() == 10 && !text.contains(['T', ' '])
}

/// A bound of version 1, microseconds: `2.4` lists the forms that are accepted.
///
/// # Errors
/// [`QueryError::Parameter`].
pub(super) fn instant_v1(text: &str) -> Result<i64, QueryError> {
    parse_micros(text)
        .ok_or_else(|| QueryError::Parameter(format!("Bad query parameter: cannot parse `{text}` as a date")))
}

/// The bounds that `comparison` with `text` puts on an instant in version 2, both inclusive, microseconds.
///
/// # Errors
/// [`QueryError::Parameter`] if it is not an instant.
pub(super) fn range_v2(comparison: &str, text: &str) -> Result<Option<(i64, i64)>, QueryError> {
    let at = parse_micros(text).ok_or_else(|| QueryError::Parameter(format!("Cannot parse datetime '{text}'")))?;
    Ok(Some(match comparison {
        "gt" => (at.saturating_add(1), i64::MAX),
        "gte" => (at, i64::MAX),
        "lt" => (i64::MIN, at.saturating_sub(1)),
        // A day as the last one includes all of it.
        "lte" if is_day(text) => (i64::MIN, at.saturating_add(DAY - 1)),
        "lte" => (i64::MIN, at),
        _ => return Ok(None),
    }))
}

/// A boolean of version 2.
pub(super) fn truth(text: &str) -> bool {
    !matches!(text.to_lowercase().as_str(), "" | "false" | "f" | "no" | "n" | "0")
}

/// The scalars found along a dotted path; lists on the way are searched through.
pub(super) fn scalars<'a>(doc: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![doc];
    for step in path.split('.') {
        let inside = found.into_iter().flat_map(spread).filter_map(|value| value.get(step));
        found = inside.collect();
    }
    found.into_iter().flat_map(spread).filter(|value| !value.is_object()).collect()
}

fn spread(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().flat_map(spread).collect(),
        value => vec![value],
    }
}

/// True if the value, written as text, equals the wanted text.
pub(super) fn equals(value: &Value, wanted: &str, any_case: bool) -> bool {
    let same = |text: &str| if any_case { text.to_lowercase() == wanted.to_lowercase() } else { text == wanted };
    match value {
        Value::String(text) => same(text),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
        other => same(&other.to_string()),
    }
}

/// An instant as stored, in the one form that answers use; what is not one stays as it is.
pub(super) fn instant(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(text)) if !text.is_empty() => match parse_micros(text) {
            Some(at) => Value::String(format_micros(at)),
            None => Value::String(text.clone()),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bounds_follow_their_comparison() {
        let at = parse_micros("2024-01-02").unwrap();
        assert_eq!(range_v2("gt", "2024-01-02").unwrap(), Some((at + 1, i64::MAX)));
        assert_eq!(range_v2("gte", "2024-01-02T00:00:00Z").unwrap(), Some((at, i64::MAX)));
        assert_eq!(range_v2("lt", "2024-01-02").unwrap(), Some((i64::MIN, at - 1)));
        assert_eq!(range_v2("lte", "2024-01-02").unwrap(), Some((i64::MIN, at + DAY - 1)));
        assert_eq!(range_v2("lte", "2024-01-02T00:00:00").unwrap(), Some((i64::MIN, at)));
        assert_eq!(range_v2("eq", "2024-01-02").unwrap(), None);
        assert_eq!(range_v2("lt", "soon").unwrap_err().to_string(), "Cannot parse datetime 'soon'");
    }

    #[test]
    fn paths_go_through_lists() {
        let doc = json!({"form": {"item": [{"n": "1"}, {"n": "2"}], "meta": {"userID": "U"}}});
        assert_eq!(scalars(&doc, "form.item.n"), [&json!("1"), &json!("2")]);
        assert_eq!(scalars(&doc, "form.meta.userID"), [&json!("U")]);
        assert!(scalars(&doc, "form.meta").is_empty() && scalars(&doc, "form.none.n").is_empty());
        assert!(
            equals(&json!("U"), "u", true) && !equals(&json!("U"), "u", false) && equals(&json!(true), "true", false)
        );
    }
}
