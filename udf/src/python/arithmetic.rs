//! Operators on values, with Python's rules about which kinds go together.

use compact_str::CompactString;

use super::{MAX_ITEMS, MAX_TEXT, format};
use crate::{
    date::{self, DAY},
    error::EvalError,
    value::{Decimal, List, Value},
};

const OUT_OF_RANGE: EvalError = EvalError::OutOfRange { what: "result" };

/// A binary operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
}

/// A number of one of the kinds that are computed with.
enum Number {
    Integer(i128),
    Float(f64),
    Decimal(Decimal),
}

fn number(value: &Value<'_>) -> Option<Number> {
    match value {
        Value::Bool(value) => Some(Number::Integer((*value).into())),
        Value::Integer(value) => Some(Number::Integer(*value)),
        Value::Float(value) => Some(Number::Float(*value)),
        Value::Decimal(value) => Some(Number::Decimal(value.clone())),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "Python rounds large integers too")]
pub(crate) fn float_of(value: i128) -> f64 {
    value as f64
}

impl Arithmetic {
    /// The result; `None` if the kinds do not go together or a division is by zero.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`] for results that cannot be held.
    pub(crate) fn apply<'a>(self, a: &Value<'a>, b: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        match (number(a), number(b)) {
            (Some(Number::Integer(a)), Some(Number::Integer(b))) => self.integers(a, b),
            (Some(Number::Float(a)), Some(Number::Float(b))) => Ok(self.floats(a, b)),
            (Some(Number::Integer(a)), Some(Number::Float(b))) => Ok(self.floats(float_of(a), b)),
            (Some(Number::Float(a)), Some(Number::Integer(b))) => Ok(self.floats(a, float_of(b))),
            (Some(Number::Decimal(a)), Some(Number::Decimal(b))) => self.decimals(&a, &b),
            (Some(Number::Decimal(a)), Some(Number::Integer(b))) => self.decimals(&a, &Decimal::from_integer(b)),
            (Some(Number::Integer(a)), Some(Number::Decimal(b))) => self.decimals(&Decimal::from_integer(a), &b),
            _ => self.others(a, b),
        }
    }

    fn integers<'a>(self, a: i128, b: i128) -> Result<Option<Value<'a>>, EvalError> {
        let result = match self {
            Self::Add => a.checked_add(b),
            Self::Subtract => a.checked_sub(b),
            Self::Multiply => a.checked_mul(b),
            Self::Divide | Self::FloorDivide | Self::Modulo if b == 0 => return Ok(None),
            Self::Divide => return Ok(Some(Value::Float(float_of(a) / float_of(b)))),
            Self::FloorDivide => a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q }),
            Self::Modulo => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        };
        result.map(|value| Some(Value::Integer(value))).ok_or(OUT_OF_RANGE)
    }

    fn floats<'a>(self, a: f64, b: f64) -> Option<Value<'a>> {
        Some(Value::Float(match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide | Self::FloorDivide | Self::Modulo if b == 0.0 => return None,
            Self::Divide => a / b,
            Self::FloorDivide => (a / b).floor(),
            Self::Modulo => {
                let rest = a % b;
                if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
            }
        }))
    }

    fn decimals<'a>(self, a: &Decimal, b: &Decimal) -> Result<Option<Value<'a>>, EvalError> {
        let result = match self {
            Self::Add => Some(a.add(b)?),
            Self::Subtract => Some(a.add(&b.negated())?),
            Self::Multiply => Some(a.multiply(b)?),
            Self::Divide => a.divide(b)?,
            Self::FloorDivide => a.divide_whole(b)?.map(|(whole, _)| whole),
            Self::Modulo => a.divide_whole(b)?.map(|(_, rest)| rest),
        };
        Ok(result.map(Value::Decimal))
    }

    fn others<'a>(self, a: &Value<'a>, b: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        Ok(match (self, a, b) {
            (Self::Add, Value::Text(a), Value::Text(b)) if a.len() + b.len() <= MAX_TEXT => {
                let mut text = CompactString::with_capacity(a.len() + b.len());
                text.push_str(a);
                text.push_str(b);
                Some(Value::text(text))
            }
            (Self::Add, Value::List(a), Value::List(b)) if a.len() + b.len() <= MAX_ITEMS => {
                Some(Value::list(a.iter().chain(b.iter()).collect()))
            }
            (Self::Add, Value::Tuple(a), Value::Tuple(b)) if a.len() + b.len() <= MAX_ITEMS => {
                Some(Value::Tuple(a.iter().chain(b.iter()).cloned().collect()))
            }
            (Self::Multiply, Value::Text(text), Value::Integer(count))
            | (Self::Multiply, Value::Integer(count), Value::Text(text)) => {
                repeat(text.len(), *count, MAX_TEXT).map(|count| Value::text(text.repeat(count)))
            }
            (Self::Multiply, Value::List(list), Value::Integer(count))
            | (Self::Multiply, Value::Integer(count), Value::List(list)) => {
                repeat(list.len(), *count, MAX_ITEMS).map(|count| repeated(list, count))
            }
            (Self::Modulo, Value::Text(template), value) => format::percent(template, value)?.map(Value::text),
            _ => return self.dates(a, b),
        })
    }

    fn dates<'a>(self, a: &Value<'a>, b: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        let shifted = |micros: i64| {
            let micros = i128::from(micros);
            if self == Self::Add { micros } else { -micros }
        };
        let found = match (self, a, b) {
            (Self::Subtract, Value::Date(a), Value::Date(b)) => {
                return Ok(Some(Value::Duration((i64::from(*a) - i64::from(*b)) * DAY)));
            }
            (Self::Subtract, Value::Datetime(a), Value::Datetime(b)) => a.checked_sub(*b).map(Value::Duration),
            (Self::Add | Self::Subtract, Value::Date(day), Value::Duration(micros)) => {
                date::add_days(*day, shifted(*micros).div_euclid(i128::from(DAY))).map(Value::Date)
            }
            (Self::Add, Value::Duration(micros), Value::Date(day)) => {
                date::add_days(*day, i128::from(*micros).div_euclid(i128::from(DAY))).map(Value::Date)
            }
            (Self::Add | Self::Subtract, Value::Datetime(at), Value::Duration(micros)) => {
                date::add_micros(*at, shifted(*micros)).map(Value::Datetime)
            }
            (Self::Add, Value::Duration(micros), Value::Datetime(at)) => {
                date::add_micros(*at, i128::from(*micros)).map(Value::Datetime)
            }
            (Self::Add, Value::Duration(a), Value::Duration(b)) => a.checked_add(*b).map(Value::Duration),
            (Self::Subtract, Value::Duration(a), Value::Duration(b)) => a.checked_sub(*b).map(Value::Duration),
            _ => return Ok(None),
        };
        found.map(Some).ok_or(OUT_OF_RANGE)
    }
}

/// How often something of that length is repeated; `None` if that is too long.
fn repeat(length: usize, count: i128, limit: usize) -> Option<usize> {
    let count = usize::try_from(count.max(0)).ok()?;
    length.checked_mul(count).is_some_and(|total| total <= limit).then_some(count)
}

fn repeated<'a>(list: &List<'a>, count: usize) -> Value<'a> {
    Value::list((0..count).flat_map(|_| list.iter()).collect())
}
