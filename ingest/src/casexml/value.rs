//! Reading the JSON that XML became, where one element and several of them look different.

use serde_json::{Map, Value};

/// The items of a list, or the value itself.
pub(crate) fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list,
        single => std::slice::from_ref(single),
    }
}

/// The last of the elements.
pub(crate) fn last(value: &Value) -> &Value {
    match value {
        Value::Array(list) => list.last().unwrap_or(&Value::Null),
        single => single,
    }
}

/// The text of the last of the elements, whether or not it has attributes.
pub(crate) fn text(value: &Value) -> &str {
    match last(value) {
        Value::String(text) => text,
        Value::Object(members) => members.get("#text").and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    }
}

/// The child elements of all elements of a name, in document order as far as JSON keeps it. Elements that hold only text
/// have none.
pub(crate) fn children(element: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    let elements = element.map(items).unwrap_or_default();
    elements.iter().filter_map(Value::as_object).flat_map(Map::iter).filter(|(name, _)| !name.starts_with(['@', '#']))
}
