//! The operators of `boolean_expression` (ucr.md §4.2). Type errors are false; other errors go through.

use std::cmp::Ordering;

use crate::{
    error::{EvalError, excerpt},
    pattern,
    value::{List, Value, compare::TypeError},
};

/// What a `boolean_expression` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Equal.
    Eq,
    /// Not equal.
    NotEq,
    /// Element of a list, part of a text, key of a mapping.
    In,
    /// One of the input's space-separated parts.
    InMulti,
    /// Any element is one of the input's parts.
    AnyInMulti,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
    /// The pattern occurs in the text.
    Regex,
}

impl Operator {
    /// Every operator.
    pub const ALL: [Self; 10] = [
        Self::Eq,
        Self::NotEq,
        Self::In,
        Self::InMulti,
        Self::AnyInMulti,
        Self::Lt,
        Self::Lte,
        Self::Gt,
        Self::Gte,
        Self::Regex,
    ];

    /// The name in specifications.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::NotEq => "not_eq",
            Self::In => "in",
            Self::InMulti => "in_multi",
            Self::AnyInMulti => "any_in_multi",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::Regex => "regex",
        }
    }

    /// The operator of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operator| operator.name() == name)
    }

    /// Whether it holds between an input and a reference.
    ///
    /// # Errors
    /// `in_multi` and `any_in_multi` on an input that is neither text nor falsy; `regex` with a pattern that is none.
    pub fn apply(self, input: &Value<'_>, reference: &Value<'_>) -> Result<bool, EvalError> {
        Ok(match self {
            Self::Eq => input.equals(reference),
            Self::NotEq => !input.equals(reference),
            Self::In => contains(reference, input),
            Self::InMulti => {
                let input = parts(input, "in_multi")?;
                matches!(reference, Value::Text(wanted) if input.split(' ').any(|part| *part == **wanted))
            }
            Self::AnyInMulti => any_in_multi(input, reference)?,
            Self::Lt => holds(input.compare(reference), |order| order == Ordering::Less),
            Self::Lte => holds(input.compare(reference), |order| order != Ordering::Greater),
            Self::Gt => greater(input, reference, |order| order == Ordering::Greater),
            Self::Gte => greater(input, reference, |order| order != Ordering::Less),
            Self::Regex => regex(input, reference)?,
        })
    }
}

fn holds(order: Result<Option<Ordering>, TypeError>, wanted: fn(Ordering) -> bool) -> bool {
    matches!(order, Ok(Some(order)) if wanted(order))
}

/// Python 2's order between text and integers survives here: text is greater than every integer.
fn greater(input: &Value<'_>, reference: &Value<'_>, wanted: fn(Ordering) -> bool) -> bool {
    match (input, reference) {
        (Value::Text(_), Value::Integer(_) | Value::Bool(_)) => true,
        (Value::Integer(_) | Value::Bool(_), Value::Text(_)) => false,
        _ => holds(input.compare(reference), wanted),
    }
}

/// `item in container`; a container that is none holds nothing.
pub(crate) fn contains(container: &Value<'_>, item: &Value<'_>) -> bool {
    match container {
        Value::List(List::Values(values)) => values.iter().any(|element| element.equals(item)),
        Value::List(list) => list.iter().any(|element| element.equals(item)),
        Value::Tuple(values) | Value::Set(values) => values.iter().any(|element| element.equals(item)),
        Value::Text(text) => matches!(item, Value::Text(part) if text.contains(&**part)),
        Value::Map(map) => match item {
            Value::Text(key) => map.get_text(key).is_some(),
            other => map.entries().any(|(key, _)| key.equals(other)),
        },
        _ => false,
    }
}

/// The text of a multiple choice; falsy values count as `""`.
fn parts<'v>(input: &'v Value<'_>, operator: &'static str) -> Result<&'v str, EvalError> {
    match input {
        Value::Text(text) => Ok(text),
        other if !other.is_truthy() => Ok(""),
        other => Err(EvalError::NotText { operator, found: other.kind() }),
    }
}

fn any_in_multi(input: &Value<'_>, reference: &Value<'_>) -> Result<bool, EvalError> {
    let is_part = |input: &str, wanted: &Value<'_>| matches!(wanted, Value::Text(wanted) if input.split(' ').any(|part| *part == **wanted));
    match reference {
        Value::List(list) if !list.is_empty() => {
            let input = parts(input, "any_in_multi")?;
            Ok(list.iter().any(|wanted| is_part(input, &wanted)))
        }
        Value::Tuple(values) | Value::Set(values) if !values.is_empty() => {
            let input = parts(input, "any_in_multi")?;
            Ok(values.iter().any(|wanted| is_part(input, wanted)))
        }
        // The original iterates over a text's characters.
        Value::Text(text) if !text.is_empty() => {
            let input = parts(input, "any_in_multi")?;
            let mut buffer = [0; 4];
            Ok(text.chars().any(|c| {
                let wanted = &*c.encode_utf8(&mut buffer);
                input.split(' ').any(|part| part == wanted)
            }))
        }
        Value::Map(map) if !map.is_empty() => {
            let input = parts(input, "any_in_multi")?;
            Ok(map.entries().any(|(wanted, _)| is_part(input, &wanted)))
        }
        _ => Ok(false),
    }
}

fn regex(input: &Value<'_>, reference: &Value<'_>) -> Result<bool, EvalError> {
    let (Value::Text(text), Value::Text(pattern)) = (input, reference) else { return Ok(false) };
    match pattern::compiled(pattern) {
        Some(regex) => Ok(regex.is_match(text)),
        None => Err(EvalError::raised(format!("`{}` is not a regular expression", excerpt(pattern)))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::coerce::constant_json;

    fn apply(operator: Operator, input: &Json, reference: &Json) -> Result<bool, EvalError> {
        operator.apply(&constant_json(input), &constant_json(reference))
    }

    #[test]
    fn quirks_of_the_original() {
        use Operator::{AnyInMulti, Eq, Gt, Gte, In, InMulti, Lt, Lte, Regex};
        for (operator, input, reference, holds) in [
            (Eq, json!(null), json!(null), true),
            (Eq, json!(1), json!(true), true),
            (In, json!(null), json!("abc"), false),
            (In, json!("b"), json!("abc"), true),
            (In, json!("b"), json!(null), false),
            (In, json!("k"), json!({"k": 1}), true),
            (InMulti, json!("a b"), json!("b"), true),
            (InMulti, json!("abc"), json!("b"), false),
            (InMulti, json!(null), json!(""), true),
            (AnyInMulti, json!("a b"), json!("xb"), true),
            (AnyInMulti, json!("a b"), json!(["c", "b"]), true),
            (AnyInMulti, json!(5), json!(null), false),
            (Lt, json!("2"), json!(3), false),
            (Lte, json!(3), json!(3), true),
            (Gt, json!("2"), json!(3), true),
            (Gt, json!("2"), json!(3.5), false),
            (Gte, json!(3), json!("2"), false),
            (Gt, json!("10"), json!("9"), false),
            (Regex, json!("x12"), json!("\\d+"), true),
            (Regex, json!(null), json!("\\d+"), false),
        ] {
            assert_eq!(apply(operator, &input, &reference), Ok(holds), "{operator:?} {input} {reference}");
        }
        for input in [json!(5), json!(["a"]), json!({"a": 1})] {
            assert!(apply(InMulti, &input, &json!("a")).is_err(), "{input}");
        }
        assert!(apply(Regex, &json!("x"), &json!("(")).is_err());
    }
}
