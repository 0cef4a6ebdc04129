//! `datatype`: the original's type conversions (ucr.md §1.2), and from there into cells (§3.9).

use schemas::row::{Cell, ColumnType};

use crate::{
    date,
    error::{EvalError, excerpt},
    value::{Decimal, Text, Value, decimal::float_to_column},
};

const INTEGER: EvalError = EvalError::OutOfRange { what: "integer" };

/// The names a `datatype` may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// A calendar day.
    Date,
    /// An instant.
    Datetime,
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A whole number; the difference is in the column.
    SmallInteger,
    /// An exact decimal.
    Decimal,
    /// A list.
    Array,
}

impl DataType {
    /// Every type.
    pub const ALL: [Self; 7] =
        [Self::Date, Self::Datetime, Self::String, Self::Integer, Self::SmallInteger, Self::Decimal, Self::Array];

    /// The name in specifications.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Date => "date",
            Self::Datetime => "datetime",
            Self::String => "string",
            Self::Integer => "integer",
            Self::SmallInteger => "small_integer",
            Self::Decimal => "decimal",
            Self::Array => "array",
        }
    }

    /// The type of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// The column that holds such values.
    #[must_use]
    pub const fn column_type(self) -> ColumnType {
        match self {
            Self::Date => ColumnType::Date,
            Self::Datetime => ColumnType::Datetime,
            Self::String => ColumnType::Text,
            Self::Integer => ColumnType::Integer,
            Self::SmallInteger => ColumnType::SmallInteger,
            Self::Decimal => ColumnType::Decimal,
            Self::Array => ColumnType::TextList,
        }
    }

    /// Converts a value.
    ///
    /// # Errors
    /// Where the original raises: a text that is no instant, an infinite integer, a number too long to hold.
    pub fn coerce<'a>(self, value: Value<'a>) -> Result<Value<'a>, EvalError> {
        match self {
            Self::Date => Ok(to_date(&value).map_or(Value::Null, Value::Date)),
            Self::Datetime => Ok(to_datetime(&value)?.map_or(Value::Null, Value::Datetime)),
            Self::String => Ok(if value.is_null() { value } else { Value::Text(value.into_text()) }),
            Self::Integer | Self::SmallInteger => Ok(to_integer(&value)?.map_or(Value::Null, Value::Integer)),
            Self::Decimal => Ok(to_decimal(&value)?.map_or(Value::Null, Value::Decimal)),
            Self::Array => Ok(match value {
                Value::List(_) => value,
                other => Value::list(vec![other]),
            }),
        }
    }

    /// Converts a value into a cell of the column of this type.
    ///
    /// # Errors
    /// As [`DataType::coerce`], and if the column cannot hold the value.
    pub fn cell(self, value: Value<'_>) -> Result<Cell, EvalError> {
        match self {
            Self::String => Ok(match value {
                Value::Null => Cell::Null,
                other => Cell::Text(other.into_text().into_compact()),
            }),
            Self::Date => Ok(to_date(&value).map_or(Cell::Null, Cell::Date)),
            Self::Datetime => Ok(to_datetime(&value)?.map_or(Cell::Null, Cell::Datetime)),
            Self::Integer => integer_cell(&value, i128::from(i32::MIN)..=i128::from(i32::MAX)),
            Self::SmallInteger => integer_cell(&value, i128::from(i16::MIN)..=i128::from(i16::MAX)),
            Self::Decimal => decimal_cell(&value),
            Self::Array => array_cell(self.coerce(value)?),
        }
    }
}

fn integer_cell(value: &Value<'_>, range: std::ops::RangeInclusive<i128>) -> Result<Cell, EvalError> {
    match to_integer(value)? {
        None => Ok(Cell::Null),
        Some(value) if range.contains(&value) => i64::try_from(value).map(Cell::Int).map_err(|_| INTEGER),
        Some(_) => Err(INTEGER),
    }
}

fn decimal_cell(value: &Value<'_>) -> Result<Cell, EvalError> {
    let held = match value {
        Value::Float(value) => float_to_column(*value),
        other => match to_decimal(other)? {
            None => return Ok(Cell::Null),
            Some(decimal) => decimal.to_column(),
        },
    };
    held.map(Cell::Decimal).ok_or(EvalError::OutOfRange { what: "decimal" })
}

fn array_cell(value: Value<'_>) -> Result<Cell, EvalError> {
    let Value::List(list) = value else { return Ok(Cell::Null) };
    let cells = list.iter().map(|value| match value {
        Value::Null => Ok(Cell::Null),
        Value::List(_) | Value::Map(_) | Value::Tuple(_) | Value::Set(_) => {
            Err(EvalError::raised(format!("{} cannot be held in a list of texts", value.kind())))
        }
        other => Ok(Cell::Text(other.into_text().into_compact())),
    });
    Ok(Cell::List(cells.collect::<Result<Box<[Cell]>, EvalError>>()?))
}

/// `datatype: date`; days since 1970.
pub(crate) fn to_date(value: &Value<'_>) -> Option<i32> {
    match value {
        Value::Text(text) => date::parse_date(text).or_else(|| date::parse_instant(text).map(date::day_of)),
        Value::Date(day) => Some(*day),
        Value::Datetime(at) => Some(date::day_of(*at)),
        _ => None,
    }
}

/// `datatype: datetime`; microseconds since 1970.
pub(crate) fn to_datetime(value: &Value<'_>) -> Result<Option<i64>, EvalError> {
    match value {
        Value::Text(text) if text.is_empty() => Ok(None),
        Value::Text(text) => match date::parse_lenient(text) {
            Some(at) => Ok(Some(at)),
            None => Err(EvalError::Datetime { text: excerpt(text) }),
        },
        Value::Date(day) => Ok(Some(date::midnight(*day))),
        Value::Datetime(at) => Ok(Some(*at)),
        _ => Ok(None),
    }
}

/// `datatype: integer`.
pub(crate) fn to_integer(value: &Value<'_>) -> Result<Option<i128>, EvalError> {
    match value {
        Value::Integer(value) => Ok(Some(*value)),
        Value::Bool(value) => Ok(Some((*value).into())),
        Value::Float(value) => float_to_integer(*value),
        Value::Decimal(value) => value.truncate(),
        Value::Text(text) => match parse_integer(text)? {
            Some(value) => Ok(Some(value)),
            None => parse_float(text).map_or(Ok(None), float_to_integer),
        },
        _ => Ok(None),
    }
}

/// Python's `int(float)`, with value errors as `None`.
pub(crate) fn float_to_integer(value: f64) -> Result<Option<i128>, EvalError> {
    if value.is_nan() {
        return Ok(None);
    }
    if value.is_infinite() || value.abs() >= 1.7e38 {
        return Err(INTEGER);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
    Ok(Some(value.trunc() as i128))
}

/// Digits with underscores only between digits, as Python's number literals in text.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        if *byte == b'_' && !(digit(i.checked_sub(1)) && digit(Some(i + 1))) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Python's `int(text)`, with value errors as `None`.
pub(crate) fn parse_integer(text: &str) -> Result<Option<i128>, EvalError> {
    let text = text.trim();
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned.is_empty() {
        return Ok(None);
    }
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Some).map_err(|_| INTEGER);
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit()) || !unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'_')
    {
        return Ok(None);
    }
    match without_underscores(text) {
        Some(digits) => digits.parse().map(Some).map_err(|_| INTEGER),
        None => Ok(None),
    }
}

/// Python's `float(text)`.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.contains('_') { without_underscores(text)?.parse().ok() } else { text.parse().ok() }
}

/// `datatype: decimal`.
pub(crate) fn to_decimal(value: &Value<'_>) -> Result<Option<Decimal>, EvalError> {
    match value {
        Value::Text(text) => Decimal::parse(text),
        Value::Decimal(value) => Ok(Some(value.clone())),
        Value::Integer(value) => Ok(Some(Decimal::from_integer(*value))),
        Value::Bool(value) => Ok(Some(Decimal::from_integer((*value).into()))),
        Value::Float(value) => Ok(Some(Decimal::from_f64(*value))),
        _ => Ok(None),
    }
}

/// The hidden conversion of constants that look typed (ucr.md §1.3).
pub(crate) fn constant(text: &str) -> Option<Value<'static>> {
    let bytes = text.as_bytes();
    if !bytes.first()?.is_ascii_digit() {
        return None;
    }
    if bytes.len() == 10 && bytes.get(4) == Some(&b'-') && bytes.get(7) == Some(&b'-') {
        return date::parse_date(text).map(Value::Date);
    }
    if text.ends_with('Z') {
        let whole = text.split_once('.').is_none_or(|(_, fraction)| fraction.len() == 7);
        return if whole && bytes.get(10) == Some(&b'T') {
            date::parse_instant(text).map(Value::Datetime)
        } else {
            None
        };
    }
    if bytes.get(2) == Some(&b':') {
        return date::parse_time(text).map(Value::Time);
    }
    let (whole, fraction) = text.split_once('.')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if digits(whole) && digits(fraction) { Decimal::parse(text).ok()?.map(Value::Decimal) } else { None }
}

/// A JSON value as a constant, converted where it looks typed.
pub(crate) fn constant_json(json: &serde_json::Value) -> Value<'static> {
    use serde_json::Value as Json;
    match json {
        Json::String(text) => constant(text).unwrap_or_else(|| Value::Text(Text::Owned(text.as_str().into()))),
        Json::Array(items) => Value::list(items.iter().map(constant_json).collect()),
        Json::Object(fields) => {
            Value::map(fields.iter().map(|(name, value)| (Value::text(name.as_str()), constant_json(value))).collect())
        }
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Integer(value.into()),
            (None, Some(value)) => Value::Integer(value.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn constants_that_look_typed_are() {
        for (text, kind) in [
            ("2015-02-04", "a date"),
            ("2015-02-30", "text"),
            ("10:30:00", "a time of day"),
            ("10:30", "text"),
            ("2015-02-04T11:05:24Z", "a date and time"),
            ("2015-02-04T11:05:24.123456Z", "a date and time"),
            ("2015-02-04T11:05:24.123Z", "text"),
            ("2015-02-04 11:05:24", "text"),
            ("1.5", "a decimal"),
            ("-1.5", "text"),
            ("5", "text"),
            ("1e3", "text"),
            ("1.", "text"),
            ("true", "text"),
            ("", "text"),
        ] {
            assert_eq!(constant_json(&json!(text)).kind(), kind, "{text}");
        }
    }

    #[test]
    fn integers_truncate_and_refuse() {
        for (text, value) in [
            ("5.9", Some(5)),
            ("-3.7", Some(-3)),
            ("1e3", Some(1000)),
            (" 7 ", Some(7)),
            ("1_000", Some(1000)),
            ("1__0", None),
            ("", None),
            ("five", None),
            ("nan", None),
            ("-", None),
        ] {
            assert_eq!(to_integer(&Value::text(text)).unwrap(), value, "{text}");
        }
        assert!(to_integer(&Value::text("inf")).is_err());
        assert!(to_integer(&Value::text("9".repeat(50))).is_err());
        assert_eq!(to_integer(&Value::Bool(true)).unwrap(), Some(1));
        assert_eq!(to_integer(&Value::Null).unwrap(), None);
    }

    #[test]
    fn cells_refuse_what_columns_cannot_hold() {
        let cell = |datatype: DataType, json: serde_json::Value| datatype.cell(constant_json(&json));
        assert_eq!(cell(DataType::Integer, json!("2147483647")).unwrap(), Cell::Int(2_147_483_647));
        assert!(cell(DataType::Integer, json!("2147483648")).is_err());
        assert!(cell(DataType::SmallInteger, json!(40_000)).is_err());
        assert_eq!(cell(DataType::Decimal, json!("2.50")).unwrap(), Cell::Decimal(25_000_000_000_000_000));
        assert!(cell(DataType::Decimal, json!("nan")).is_err());
        assert_eq!(cell(DataType::Decimal, json!("n/a")).unwrap(), Cell::Null);
        assert_eq!(cell(DataType::Date, json!("2020-02-30")).unwrap(), Cell::Null);
        assert!(cell(DataType::Datetime, json!("five")).is_err());
        assert_eq!(
            cell(DataType::Array, json!(["a", 1])).unwrap(),
            Cell::List([Cell::Text("a".into()), Cell::Text("1".into())].into())
        );
        assert!(cell(DataType::Array, json!([["a"]])).is_err());
    }
}
