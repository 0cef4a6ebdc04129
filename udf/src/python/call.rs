//! The functions that statements may call.

use smallvec::SmallVec;

use super::{
    MAX_ITEMS, MAX_RANGE, Stop,
    arithmetic::float_of,
    parse::{Arguments, Function},
    run::{Outcome, Run, elements},
};
use crate::{
    coerce::{float_to_integer, parse_float, parse_integer},
    date::{self, DAY},
    error::{EvalError, excerpt},
    value::{Decimal, Value},
};

fn value_error<'a>(message: String) -> Outcome<'a> {
    Err(Stop::Raise(EvalError::raised(message)))
}

/// Evaluates the arguments and calls.
pub(super) fn call<'a>(run: &mut Run<'a, '_, '_>, function: Function, arguments: &'a Arguments) -> Outcome<'a> {
    let mut values = SmallVec::<[Value<'a>; 3]>::new();
    for argument in &arguments.positional {
        values.push(run.eval(argument)?);
    }
    let mut named = Vec::with_capacity(arguments.named.len());
    for (name, argument) in &arguments.named {
        named.push((&**name, run.eval(argument)?));
    }
    match (function, values.as_slice(), named.as_slice()) {
        (Function::Context, [], []) => Ok(run.names()),
        (Function::RootContext, [], []) => Ok(run.context.root.clone().unwrap_or(Value::Null)),
        (Function::Today, [], []) => Ok(Value::Date(date::day_of(run.context.now))),
        (Function::Int, [value], []) => int(value),
        (Function::Float, [value], []) => float(value),
        (Function::Str, [], []) => Ok(Value::text("")),
        (Function::Str, [value], []) => Ok(Value::Text(value.clone().into_text())),
        (Function::Round, [value], []) => round(value, None),
        (Function::Round, [value, Value::Null], []) => round(value, None),
        (Function::Round, [value, Value::Integer(digits)], [])
        | (Function::Round, [value], [("ndigits", Value::Integer(digits))]) => round(value, Some(*digits)),
        (Function::List, [], []) => Ok(Value::list(Vec::new())),
        (Function::List, [value], []) => Ok(Value::list(elements(value)?)),
        (Function::Tuple, [], []) => Ok(Value::Tuple([].into())),
        (Function::Tuple, [value], []) => Ok(Value::Tuple(elements(value)?.into())),
        (Function::Set, [], []) => Ok(set(Vec::new())),
        (Function::Set, [value], []) => Ok(set(elements(value)?)),
        (Function::Dict, values, _) => dict(values, named),
        (Function::Range, [Value::Integer(end)], []) => range(0, *end, 1),
        (Function::Range, [Value::Integer(start), Value::Integer(end)], []) => range(*start, *end, 1),
        (Function::Range, [Value::Integer(start), Value::Integer(end), Value::Integer(step)], []) => {
            range(*start, *end, *step)
        }
        (Function::Days, [Value::Duration(micros)], []) => Ok(Value::Integer(micros.div_euclid(DAY).into())),
        (Function::TimedeltaToSeconds, [Value::Duration(micros)], []) => {
            Ok(Value::Float(float_of((*micros).into()) / 1e6))
        }
        (Function::TimedeltaToSeconds, [_], []) => Ok(Value::Null),
        (Function::Date, [value], []) => to_date(value, None),
        (Function::Date, [value, format], []) | (Function::Date, [value], [("fmt", format)]) => {
            to_date(value, Some(format))
        }
        _ => Err(Stop::Null),
    }
}

fn int<'a>(value: &Value<'_>) -> Outcome<'a> {
    let number = match value {
        Value::Integer(value) => Some(*value),
        Value::Bool(value) => Some((*value).into()),
        Value::Float(value) => float_to_integer(*value)?,
        Value::Decimal(value) => value.truncate()?,
        Value::Text(text) => parse_integer(text)?,
        _ => return Err(Stop::Null),
    };
    match number {
        Some(number) => Ok(Value::Integer(number)),
        None => value_error(format!("int() cannot read `{}`", excerpt(&value.clone().into_text()))),
    }
}

fn float<'a>(value: &Value<'_>) -> Outcome<'a> {
    match value {
        Value::Integer(value) => Ok(Value::Float(float_of(*value))),
        Value::Bool(value) => Ok(Value::Float(f64::from(u8::from(*value)))),
        Value::Float(value) => Ok(Value::Float(*value)),
        Value::Decimal(value) => Ok(Value::Float(value.to_f64())),
        Value::Text(text) => match parse_float(text) {
            Some(value) => Ok(Value::Float(value)),
            None => value_error(format!("float() cannot read `{}`", excerpt(text))),
        },
        _ => Err(Stop::Null),
    }
}

/// Half to even; without digits the result is an integer.
fn round<'a>(value: &Value<'_>, digits: Option<i128>) -> Outcome<'a> {
    let Some(digits) = digits else {
        return match value {
            Value::Integer(value) => Ok(Value::Integer(*value)),
            Value::Bool(value) => Ok(Value::Integer((*value).into())),
            Value::Float(value) => match float_to_integer(value.round_ties_even())? {
                Some(value) => Ok(Value::Integer(value)),
                None => value_error("cannot round a number that is none".to_owned()),
            },
            Value::Decimal(value) => match value.rounded_to(0)?.truncate()? {
                Some(value) => Ok(Value::Integer(value)),
                None => value_error("cannot round a number that is none".to_owned()),
            },
            _ => Err(Stop::Null),
        };
    };
    let digits = i64::try_from(digits).unwrap_or(i64::MAX);
    match value {
        Value::Integer(_) | Value::Bool(_) => {
            let Value::Integer(value) = int(value)? else { return Err(Stop::Null) };
            if digits >= 0 {
                return Ok(Value::Integer(value));
            }
            let rounded = Decimal::from_integer(value).rounded_to(digits.max(-100))?;
            rounded.truncate()?.map(Value::Integer).ok_or(Stop::Null)
        }
        Value::Float(value) if !value.is_finite() => Ok(Value::Float(*value)),
        Value::Float(value) => {
            // Beyond the exponent range of floats, rounding changes nothing or leaves nothing.
            let rounded = Decimal::from_f64(*value).rounded_to(digits.clamp(-400, 400))?;
            Ok(Value::Float(rounded.to_f64()))
        }
        Value::Decimal(value) => Ok(Value::Decimal(value.rounded_to(digits)?)),
        _ => Err(Stop::Null),
    }
}

/// Elements without repetition, in order of appearance.
pub(super) fn set(values: Vec<Value<'_>>) -> Value<'_> {
    let mut unique: Vec<Value<'_>> = Vec::new();
    for value in values {
        if !unique.iter().any(|known| known.equals(&value)) {
            unique.push(value);
        }
    }
    Value::Set(unique.into())
}

fn dict<'a>(values: &[Value<'a>], named: Vec<(&'a str, Value<'a>)>) -> Outcome<'a> {
    let mut entries = match values {
        [] => Vec::new(),
        [Value::Map(map)] => map.entries().collect(),
        [pairs] => {
            let mut entries = Vec::new();
            for pair in elements(pairs)? {
                let Ok([key, value]) = <[Value<'a>; 2]>::try_from(elements(&pair)?) else {
                    return value_error("dict() needs pairs".to_owned());
                };
                entries.push((key, value));
            }
            entries
        }
        _ => return Err(Stop::Null),
    };
    entries.extend(named.into_iter().map(|(name, value)| (Value::text(name), value)));
    if entries.len() > MAX_ITEMS { Err(Stop::Null) } else { Ok(Value::map(entries)) }
}

fn range<'a>(start: i128, end: i128, step: i128) -> Outcome<'a> {
    if step == 0 {
        return value_error("range() step must not be zero".to_owned());
    }
    let mut values = Vec::new();
    let mut at = start;
    while (step > 0 && at < end) || (step < 0 && at > end) {
        if values.len() + 1 >= MAX_RANGE {
            return Err(Stop::Null);
        }
        values.push(Value::Integer(at));
        at = at.checked_add(step).ok_or(Stop::Null)?;
    }
    Ok(Value::list(values))
}

/// `date(x, fmt?)`: text becomes an instant, dates pass.
fn to_date<'a>(value: &Value<'a>, format: Option<&Value<'_>>) -> Outcome<'a> {
    let text = match value {
        Value::Date(_) | Value::Datetime(_) => return Ok(value.clone()),
        Value::Text(text) => text,
        _ => return value_error(format!("date() cannot read {}", value.kind())),
    };
    let parsed = match format {
        Some(Value::Text(format)) => date::format::strptime(text, format),
        _ => date::parse_lenient(text),
    };
    match parsed {
        Some(at) => Ok(Value::Datetime(at)),
        None => value_error(format!("date() cannot read `{}`", excerpt(text))),
    }
}
