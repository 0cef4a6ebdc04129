//! The text form of values: Python's `str` and `repr` (ucr.md §1.2, `string`).

use std::fmt::Write;

use super::{Text, Value};
use crate::date;

/// A float as Python writes it: shortest digits that read back, exponent form below 1e-4 and from 1e16 on.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let power: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&power) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}

impl<'a> Value<'a> {
    /// Python's `str`; text stays as it is.
    #[must_use]
    pub fn into_text(self) -> Text<'a> {
        match self {
            Value::Text(text) => text,
            Value::Bool(true) => Text::Borrowed("True"),
            Value::Bool(false) => Text::Borrowed("False"),
            other => {
                let mut out = String::new();
                other.write_str(&mut out);
                Text::Owned(out.into())
            }
        }
    }

    fn write_str(&self, out: &mut String) {
        match self {
            Value::Text(text) => out.push_str(text),
            Value::Decimal(value) => append(out, value),
            Value::Date(day) => out.push_str(&date::show_date(*day)),
            Value::Datetime(at) => out.push_str(&date::show_datetime(*at, ' ')),
            Value::Time(micros) => out.push_str(&date::show_time(*micros)),
            Value::Duration(micros) => out.push_str(&date::show_duration(*micros)),
            other => other.write_repr(out),
        }
    }

    /// Python's `repr`.
    pub(crate) fn write_repr(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("None"),
            Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
            Value::Integer(value) => append(out, value),
            Value::Float(value) => out.push_str(&float(*value)),
            Value::Decimal(value) => append(out, &format_args!("Decimal('{value}')")),
            Value::Text(text) => quote(text, out),
            Value::Date(day) => out.push_str(&date::repr_date(*day)),
            Value::Datetime(at) => out.push_str(&date::repr_datetime(*at)),
            Value::Time(micros) => append(out, &format_args!("datetime.time({})", date::show_time(*micros))),
            Value::Duration(micros) => {
                append(out, &format_args!("datetime.timedelta({})", date::show_duration(*micros)));
            }
            Value::List(list) => between(out, "[", "]", list.iter(), |value, out| value.write_repr(out)),
            Value::Tuple(values) => {
                let close = if values.len() == 1 { ",)" } else { ")" };
                between(out, "(", close, values.iter(), |value, out| value.write_repr(out));
            }
            Value::Set(values) if values.is_empty() => out.push_str("set()"),
            Value::Set(values) => between(out, "{", "}", values.iter(), |value, out| value.write_repr(out)),
            Value::Map(map) => between(out, "{", "}", map.entries(), |(key, value), out| {
                key.write_repr(out);
                out.push_str(": ");
                value.write_repr(out);
            }),
        }
    }
}

fn append(out: &mut String, value: &impl std::fmt::Display) {
    // Writing to a string cannot fail.
    if write!(out, "{value}").is_err() {
        out.clear();
    }
}

fn between<T>(
    out: &mut String,
    open: &str,
    close: &str,
    items: impl Iterator<Item = T>,
    write: impl Fn(T, &mut String),
) {
    out.push_str(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write(item, out);
    }
    out.push_str(close);
}

fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => append(out, &format_args!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use schemas::doc::Doc;

    use super::*;

    #[test]
    fn floats_read_like_python() {
        for (value, text) in [
            (3.99, "3.99"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn containers_read_like_python() {
        let doc = Doc::from_json(r#"{"a":[1,2.5,"x","it's",null,true],"b":{"k":"\n"},"c":[]}"#).unwrap();
        let text = Value::from_node(doc.root()).into_text();
        assert_eq!(&*text, r#"{'a': [1, 2.5, 'x', "it's", None, True], 'b': {'k': '\n'}, 'c': []}"#);
        assert_eq!(&*Value::Date(18_321).into_text(), "2020-02-29");
        assert_eq!(&*Value::list(vec![Value::Date(18_321)]).into_text(), "[datetime.date(2020, 2, 29)]");
    }
}
