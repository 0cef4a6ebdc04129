//! The files' tagged JSON (`{"$date": …}` and so on) as values, and comparison that tells kinds apart.

use std::sync::Arc;

use anyhow::Context;
use schemas::time::parse_micros;
use serde_json::Value as Json;
use udf::value::{Decimal, List, Map, Text, Value};

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

fn text(text: &str) -> Value<'static> {
    Value::Text(Text::Owned(text.into()))
}

fn micros(text: &str) -> anyhow::Result<i64> {
    parse_micros(text).with_context(|| format!("`{text}` is no date or time"))
}

fn values(items: &Json) -> anyhow::Result<Arc<[Value<'static>]>> {
    items.as_array().context("a list is expected")?.iter().map(value).collect()
}

/// The value of a tagged JSON.
///
/// # Errors
/// A tag that is not known, or whose content is not what it says.
pub(crate) fn value(json: &Json) -> anyhow::Result<Value<'static>> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number.into()),
            None => Value::Float(number.as_f64().context("a number is out of range")?),
        },
        Json::String(string) => text(string),
        Json::Array(_) => Value::List(List::Values(values(json)?)),
        Json::Object(fields) => match fields.iter().next() {
            Some((tag, content)) if tag.starts_with('$') => tagged(tag, content)?,
            _ => {
                let entries = fields.iter().map(|(name, json)| Ok((text(name), value(json)?)));
                Value::Map(Map::Values(entries.collect::<anyhow::Result<_>>()?))
            }
        },
    })
}

fn tagged(tag: &str, content: &Json) -> anyhow::Result<Value<'static>> {
    let text = || content.as_str().with_context(|| format!("`{tag}` needs text"));
    Ok(match tag {
        "$date" => Value::Date(i32::try_from(micros(text()?)?.div_euclid(DAY))?),
        "$datetime" => Value::Datetime(micros(text()?)?),
        "$time" => Value::Time(micros(&format!("1970-01-01T{}", text()?))?),
        "$timedelta_seconds" => {
            let seconds = content.as_f64().with_context(|| format!("`{tag}` needs a number"))?;
            Value::Duration((seconds * 1e6).round() as i64)
        }
        "$decimal" => {
            let decimal = Decimal::parse(text()?)?;
            Value::Decimal(decimal.with_context(|| format!("`{content}` is no decimal"))?)
        }
        "$set" => Value::Set(values(content)?),
        "$pairs" => {
            let pairs = content.as_array().context("`$pairs` needs a list")?.iter().map(|pair| {
                let [key, of_key] = pair.as_array().map(Vec::as_slice).unwrap_or_default() else {
                    anyhow::bail!("`$pairs` needs pairs")
                };
                Ok((value(key)?, value(of_key)?))
            });
            Value::Map(Map::Values(pairs.collect::<anyhow::Result<_>>()?))
        }
        _ => anyhow::bail!("the tag `{tag}` is not known"),
    })
}

/// A document as it is stored: instants are texts.
pub(crate) fn stored(json: &Json) -> Json {
    match json {
        Json::Array(items) => items.iter().map(stored).collect(),
        Json::Object(fields) => match fields.get("$datetime").and_then(Json::as_str) {
            Some(at) => format!("{at}Z").into(),
            None => fields.iter().map(|(name, json)| (name.clone(), stored(json))).collect(),
        },
        other => other.clone(),
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
