//! Conditions on joined rows: `{"column", "operator", "value"}`, combined with `and`, `or`, `not`.
//!
//! Comparisons follow SQL: null compares to nothing, so a comparison with null is false (and its `not` is true).

use schemas::row::{Cell, ColumnType, DECIMAL_SCALE, Real, Row};
use serde::Deserialize;
use serde_json::Value;

use super::{AggregateView, ColumnRef};
use crate::SpecProblem;

/// A condition with every column resolved and every value converted.
#[derive(Clone, Debug)]
pub enum Predicate {
    /// All hold.
    And(Vec<Predicate>),
    /// One holds.
    Or(Vec<Predicate>),
    /// It does not hold.
    Not(Box<Predicate>),
    /// The column is null.
    IsNull(ColumnRef),
    /// The column equals one of the values.
    In(ColumnRef, Vec<Cell>),
    /// The column compares to the value in one of these ways.
    Compare(ColumnRef, Cell, &'static [std::cmp::Ordering]),
}

impl Predicate {
    /// Shows every column that is compared.
    pub(super) fn columns(&mut self, show: &mut impl FnMut(&mut ColumnRef)) {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter_mut().for_each(|part| part.columns(show)),
            Self::Not(inner) => inner.columns(show),
            Self::IsNull(column) | Self::In(column, _) | Self::Compare(column, ..) => show(column),
        }
    }

    /// True if the joined row passes.
    #[must_use]
    pub fn passes(&self, rows: &[Row]) -> bool {
        match self {
            Self::And(all) => all.iter().all(|p| p.passes(rows)),
            Self::Or(any) => any.iter().any(|p| p.passes(rows)),
            Self::Not(inner) => !inner.passes(rows),
            Self::IsNull(column) => *AggregateView::cell(rows, *column) == Cell::Null,
            Self::In(column, values) => {
                let cell = AggregateView::cell(rows, *column);
                *cell != Cell::Null && values.contains(cell)
            }
            Self::Compare(column, value, accepted) => {
                let cell = AggregateView::cell(rows, *column);
                *cell != Cell::Null && accepted.contains(&cell.cmp(value))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Spec {
    And(All),
    Or(Any),
    Not(Not),
    Compare(Comparison),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct All {
    and: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Any {
    or: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Not {
    not: Box<Spec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Comparison {
    column: String,
    operator: String,
    #[serde(default)]
    value: Value,
}

type Resolve<'a> = dyn FnMut(&str, &str) -> Option<(ColumnRef, ColumnType)> + 'a;

/// Compiles a condition; `resolve` reports unknown columns itself.
pub(super) fn compile(spec: &Spec, pointer: &str, resolve: &mut Resolve<'_>) -> Result<Predicate, Vec<SpecProblem>> {
    match spec {
        Spec::And(All { and }) => Ok(Predicate::And(several(and, &format!("{pointer}/and"), resolve)?)),
        Spec::Or(Any { or }) => Ok(Predicate::Or(several(or, &format!("{pointer}/or"), resolve)?)),
        Spec::Not(Not { not }) => Ok(Predicate::Not(Box::new(compile(not, &format!("{pointer}/not"), resolve)?))),
        Spec::Compare(comparison) => compare(comparison, pointer, resolve),
    }
}

fn several(specs: &[Spec], pointer: &str, resolve: &mut Resolve<'_>) -> Result<Vec<Predicate>, Vec<SpecProblem>> {
    let mut compiled = Vec::new();
    let mut problems = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        match compile(spec, &format!("{pointer}/{i}"), resolve) {
            Ok(predicate) => compiled.push(predicate),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(compiled) } else { Err(problems) }
}

fn compare(spec: &Comparison, pointer: &str, resolve: &mut Resolve<'_>) -> Result<Predicate, Vec<SpecProblem>> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let Some((column, of)) = resolve(&format!("{pointer}/column"), &spec.column) else { return Err(Vec::new()) };
    let fail = |at: &str, message: String| Err(vec![SpecProblem { pointer: format!("{pointer}{at}"), message }]);
    let accepted: &'static [std::cmp::Ordering] = match spec.operator.as_str() {
        "=" => &[Equal],
        "!=" => &[Less, Greater],
        "<" => &[Less],
        "<=" => &[Less, Equal],
        ">" => &[Greater],
        ">=" => &[Greater, Equal],
        "is_null" => return Ok(Predicate::IsNull(column)),
        "in" => {
            let Some(values) = spec.value.as_array() else {
                return fail("/value", "`in` needs a list of values".to_owned());
            };
            return match values.iter().map(|value| cell(value, of)).collect() {
                Some(cells) => Ok(Predicate::In(column, cells)),
                None => fail("/value", format!("a value is not of the column's type {of:?}")),
            };
        }
        other => {
            return fail(
                "/operator",
                format!("unknown operator `{other}` (expected =, !=, <, <=, >, >=, in, is_null)"),
            );
        }
    };
    match cell(&spec.value, of) {
        Some(value) => Ok(Predicate::Compare(column, value, accepted)),
        None => fail("/value", format!("{} is not of the column's type {of:?}", spec.value)),
    }
}

/// Converts a JSON value to a cell of a column's type.
fn cell(value: &Value, of: ColumnType) -> Option<Cell> {
    Some(match of {
        ColumnType::Text => Cell::Text(value.as_str()?.into()),
        ColumnType::Integer | ColumnType::SmallInteger | ColumnType::BigInteger => Cell::Int(value.as_i64()?),
        ColumnType::Decimal => Cell::Decimal(decimal(&value.to_string())?),
        ColumnType::Float => Cell::Float(Real(value.as_f64()?)),
        ColumnType::Boolean => Cell::Bool(value.as_bool()?),
        ColumnType::Date => {
            let date: jiff::civil::Date = value.as_str()?.parse().ok()?;
            let days = (date - jiff::civil::date(1970, 1, 1)).get_days();
            Cell::Date(days)
        }
        ColumnType::Datetime => Cell::Datetime(schemas::time::parse_micros(value.as_str()?)?),
        ColumnType::TextList | ColumnType::Document => return None,
    })
}

/// A plain decimal number, scaled by 10^[`DECIMAL_SCALE`].
fn decimal(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = usize::try_from(DECIMAL_SCALE).ok()?;
    if fraction.len() > scale || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scaled: i128 = format!("{whole}{fraction:0<scale$}").parse().ok()?;
    Some(if negative { -scaled } else { scaled })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn comparisons_follow_sql() {
        let column = ColumnRef { source: 0, column: 0 };
        let check = |json: &str, cell: Cell, of: ColumnType| {
            let spec: Spec = serde_json::from_str(json).unwrap();
            let row: Row = Arc::new([cell]);
            compile(&spec, "", &mut |_, _| Some((column, of))).unwrap().passes(&[row])
        };
        let kg = decimal("11.5").unwrap();
        assert_eq!(kg, 115_000_000_000_000_000);
        assert!(check(r#"{"column":"a","operator":"<","value":12}"#, Cell::Decimal(kg), ColumnType::Decimal));
        assert!(!check(r#"{"column":"a","operator":"<","value":11.5}"#, Cell::Decimal(kg), ColumnType::Decimal));
        assert!(!check(r#"{"column":"a","operator":"!=","value":1}"#, Cell::Null, ColumnType::Integer));
        assert!(check(r#"{"column":"a","operator":"in","value":["x","y"]}"#, Cell::Text("y".into()), ColumnType::Text));
        assert!(check(r#"{"not":{"column":"a","operator":"is_null"}}"#, Cell::Int(1), ColumnType::Integer));
        assert!(check(
            r#"{"or":[{"column":"a","operator":"=","value":1},{"column":"a","operator":"=","value":2}]}"#,
            Cell::Int(2),
            ColumnType::Integer
        ));
        assert!(check(r#"{"column":"a","operator":">=","value":"2025-05-01"}"#, Cell::Date(20209), ColumnType::Date));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        let spec: Spec = serde_json::from_str(r#"{"column":"a","operator":"=","value":"x"}"#).unwrap();
        let column = ColumnRef { source: 0, column: 0 };
        assert_eq!(
            compile(&spec, "/where", &mut |_, _| Some((column, ColumnType::Integer))).unwrap_err()[0].pointer,
            "/where/value"
        );
    }
}
