//! Equality and order by Python's rules (ucr.md §1.1).

use std::cmp::Ordering;

use super::{Decimal, Map, Value};

/// The operands have no order: text against number, null against anything, date against date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TypeError;

enum Number<'v> {
    Integer(i128),
    Float(f64),
    Decimal(&'v Decimal),
}

fn number<'v>(value: &'v Value<'_>) -> Option<Number<'v>> {
    match value {
        Value::Bool(value) => Some(Number::Integer((*value).into())),
        Value::Integer(value) => Some(Number::Integer(*value)),
        Value::Float(value) => Some(Number::Float(*value)),
        Value::Decimal(value) => Some(Number::Decimal(value)),
        _ => None,
    }
}

/// Integers up to here are floats without loss.
const EXACT: i128 = 1 << 53;

/// Order of two numbers; `None` if one is NaN.
fn compare_numbers(a: &Number<'_>, b: &Number<'_>) -> Option<Ordering> {
    match (a, b) {
        (Number::Integer(a), Number::Integer(b)) => Some(a.cmp(b)),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(b),
        (Number::Integer(a), Number::Float(b)) => compare_integer(*a, *b),
        (Number::Float(a), Number::Integer(b)) => compare_integer(*b, *a).map(Ordering::reverse),
        (Number::Decimal(a), Number::Decimal(b)) => a.compare(b),
        (Number::Decimal(a), Number::Integer(b)) => a.compare(&Decimal::from_integer(*b)),
        (Number::Integer(a), Number::Decimal(b)) => Decimal::from_integer(*a).compare(b),
        (Number::Decimal(a), Number::Float(b)) => a.compare(&Decimal::from_f64(*b)),
        (Number::Float(a), Number::Decimal(b)) => Decimal::from_f64(*a).compare(b),
    }
}

fn compare_integer(a: i128, b: f64) -> Option<Ordering> {
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    if a.abs() <= EXACT { (a as f64).partial_cmp(&b) } else { Decimal::from_integer(a).compare(&Decimal::from_f64(b)) }
}

impl Value<'_> {
    /// Python's `==`.
    #[must_use]
    pub fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Text(a), Value::Text(b)) => **a == **b,
            (Value::Null, Value::Null) => true,
            (Value::Date(a), Value::Date(b)) => a == b,
            (Value::Datetime(a), Value::Datetime(b))
            | (Value::Time(a), Value::Time(b))
            | (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(&b)),
            (Value::Tuple(a), Value::Tuple(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Value::Set(a), Value::Set(b)) => a.len() == b.len() && a.iter().all(|a| b.iter().any(|b| a.equals(b))),
            (Value::Map(a), Value::Map(b)) => maps_equal(a, b),
            _ => match (number(self), number(other)) {
                (Some(a), Some(b)) => compare_numbers(&a, &b) == Some(Ordering::Equal),
                _ => false,
            },
        }
    }

    /// Python's order. `Ok(None)` if one side is NaN: every comparison is then false.
    pub(crate) fn compare(&self, other: &Value<'_>) -> Result<Option<Ordering>, TypeError> {
        match (self, other) {
            (Value::Text(a), Value::Text(b)) => Ok(Some((**a).cmp(&**b))),
            (Value::Date(a), Value::Date(b)) => Ok(Some(a.cmp(b))),
            (Value::Datetime(a), Value::Datetime(b))
            | (Value::Time(a), Value::Time(b))
            | (Value::Duration(a), Value::Duration(b)) => Ok(Some(a.cmp(b))),
            (Value::List(a), Value::List(b)) => compare_sequences(a.iter(), b.iter()),
            (Value::Tuple(a), Value::Tuple(b)) => compare_sequences(a.iter().cloned(), b.iter().cloned()),
            _ => match (number(self), number(other)) {
                (Some(a), Some(b)) => Ok(compare_numbers(&a, &b)),
                _ => Err(TypeError),
            },
        }
    }
}

fn maps_equal(a: &Map<'_>, b: &Map<'_>) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let b: Vec<_> = b.entries().collect();
    a.entries().all(|(key, value)| b.iter().any(|(k, v)| key.equals(k) && value.equals(v)))
}

fn compare_sequences<'a, 'b>(
    mut a: impl Iterator<Item = Value<'a>>,
    mut b: impl Iterator<Item = Value<'b>>,
) -> Result<Option<Ordering>, TypeError> {
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ok(Some(Ordering::Equal)),
            (None, Some(_)) => return Ok(Some(Ordering::Less)),
            (Some(_), None) => return Ok(Some(Ordering::Greater)),
            (Some(a), Some(b)) if a.equals(&b) => {}
            (Some(a), Some(b)) => return a.compare(&b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Value<'static> {
        Value::Decimal(Decimal::parse(text).unwrap().unwrap())
    }

    #[test]
    fn numbers_are_equal_across_types_and_nothing_else_is() {
        let list = |values: Vec<Value<'static>>| Value::list(values);
        for (a, b, equal) in [
            (Value::Integer(1), Value::Float(1.0), true),
            (Value::Integer(1), Value::Bool(true), true),
            (Value::Float(0.0), Value::Bool(false), true),
            (Value::text("1"), Value::Integer(1), false),
            (decimal("1.1"), Value::Float(1.1), false),
            (decimal("1.5"), Value::Float(1.5), true),
            (decimal("1.50"), decimal("1.5"), true),
            (Value::Date(0), Value::Datetime(0), false),
            (Value::Date(0), Value::text("1970-01-01"), false),
            (Value::Null, Value::Null, true),
            (Value::Null, Value::Bool(false), false),
            (Value::Integer((1 << 53) + 1), Value::Float(9_007_199_254_740_992.0), false),
            (list(vec![Value::Integer(1)]), list(vec![Value::Float(1.0)]), true),
        ] {
            assert_eq!(a.equals(&b), equal, "{a:?} {b:?}");
            assert_eq!(b.equals(&a), equal, "{b:?} {a:?}");
        }
    }

    #[test]
    fn order_is_an_error_between_kinds() {
        assert_eq!(Value::text("10").compare(&Value::text("9")), Ok(Some(Ordering::Less)));
        assert_eq!(Value::Bool(true).compare(&Value::Float(0.5)), Ok(Some(Ordering::Greater)));
        assert_eq!(Value::Float(f64::NAN).compare(&Value::Integer(0)), Ok(None));
        for (a, b) in [
            (Value::text("1"), Value::Integer(1)),
            (Value::Null, Value::Null),
            (Value::Date(0), Value::Datetime(0)),
            (Value::list(vec![]), Value::Integer(1)),
        ] {
            assert_eq!(a.compare(&b), Err(TypeError), "{a:?} {b:?}");
        }
    }
}
