//! The vectors' tagged JSON (`{"$date": …}` and so on) as values, and comparison that tells kinds apart.

use std::sync::Arc;

use schemas::time::parse_micros;
use serde_json::Value as Json;
use udf::value::{Decimal, List, Map, Text, Value};

pub(crate) const DAY: i64 = 86_400_000_000;

fn text(text: &str) -> Value<'static> {
    Value::Text(Text::Owned(text.into()))
}

fn days(date: &str) -> i32 {
    i32::try_from(parse_micros(date).unwrap() / DAY - i64::from(parse_micros(date).unwrap() % DAY < 0)).unwrap()
}

fn values(items: &Json) -> Arc<[Value<'static>]> {
    items.as_array().unwrap().iter().map(value).collect()
}

/// The value of a tagged JSON.
pub(crate) fn value(json: &Json) -> Value<'static> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number.into()),
            None => Value::Float(number.as_f64().unwrap()),
        },
        Json::String(string) => text(string),
        Json::Array(_) => Value::List(List::Values(values(json))),
        Json::Object(fields) => match fields.iter().next() {
            Some((tag, date)) if tag == "$date" => Value::Date(days(date.as_str().unwrap())),
            Some((tag, at)) if tag == "$datetime" => Value::Datetime(parse_micros(at.as_str().unwrap()).unwrap()),
            Some((tag, number)) if tag == "$decimal" => {
                Value::Decimal(Decimal::parse(number.as_str().unwrap()).unwrap().unwrap())
            }
            Some((tag, time)) if tag == "$time" => {
                Value::Time(parse_micros(&format!("1970-01-01T{}", time.as_str().unwrap())).unwrap())
            }
            Some((tag, items)) if tag == "$set" => Value::Set(values(items)),
            Some((tag, pairs)) if tag == "$pairs" => Value::Map(Map::Values(
                pairs.as_array().unwrap().iter().map(|pair| (value(&pair[0]), value(&pair[1]))).collect(),
            )),
            Some((tag, _)) if tag.starts_with('$') => panic!("unknown tag {tag}"),
            _ => Value::Map(Map::Values(fields.iter().map(|(name, json)| (text(name), value(json))).collect())),
        },
    }
}

/// Equal, and of the same kinds all the way down; floats within `tolerance`.
pub(crate) fn same(a: &Value<'_>, b: &Value<'_>, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => (a - b).abs() <= tolerance || (a.is_nan() && b.is_nan()),
        (Value::Decimal(Decimal::NaN), Value::Decimal(Decimal::NaN)) => true,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(&a, &b, tolerance))
        }
        (Value::Map(a), Value::Map(b)) => {
            let b: Vec<_> = b.entries().collect();
            a.len() == b.len()
                && a.entries()
                    .all(|(key, value)| b.iter().any(|(k, v)| same(&key, k, tolerance) && same(&value, v, tolerance)))
        }
        _ => a.kind() == b.kind() && a.equals(b),
    }
}
