//! How one table differs from another: what a changed definition would do to the rows that are there.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    row::{Cell, DECIMAL_SCALE, Row},
    table::Table,
    time::format_micros,
};

/// Most rows shown of each sort.
const SAMPLES: usize = 10;

/// Rows by what becomes of them, told apart by their keys. Columns that only one of the tables has, and those that grow
/// with every change, make no row a changing one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Rows that are not there yet.
    pub appearing: u64,
    /// Rows that are there no more.
    pub vanishing: u64,
    /// Rows that are there in another way.
    pub changing: u64,
    /// Rows that stay as they are.
    pub unchanged: u64,
    /// Columns that are not there yet.
    pub columns_added: Vec<String>,
    /// Columns that are there no more.
    pub columns_removed: Vec<String>,
    /// Some rows of each sort.
    pub samples: Samples,
}

/// Up to ten rows of each sort, as objects by column.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// Rows that are not there yet.
    pub appearing: Vec<Value>,
    /// Rows that are there no more.
    pub vanishing: Vec<Value>,
    /// Rows that are there in another way.
    pub changing: Vec<Change>,
}

/// A row before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// As it is.
    pub before: Value,
    /// As it would be.
    pub after: Value,
}

impl Difference {
    /// Compares two tables. Reads every row of both once, and holds the keys of one in memory: not for a thread that
    /// others wait for.
    #[must_use]
    pub fn between(before: &Table, after: &Table) -> Self {
        let missing = |table: &Table, other: &Table| {
            let names = table.schema.columns.iter().map(|column| column.name.clone());
            names.filter(|name| other.schema.position(name).is_none()).collect()
        };
        let mut difference =
            Self { columns_added: missing(after, before), columns_removed: missing(before, after), ..Self::default() };
        let mut old: HashMap<Vec<Cell>, (usize, usize)> = HashMap::with_capacity(before.live_rows);
        let key = keys(before, after);
        for place in places(before) {
            let (Some(row), Some(key)) = (row(before, place), &key) else { continue };
            old.insert(cells(&row, key.iter().map(|(before, _)| *before)), place);
        }
        let compared = compared(before, after);
        for place in places(after) {
            let Some(new) = row(after, place) else { continue };
            let place = key.as_ref().and_then(|key| old.remove(&cells(&new, key.iter().map(|(_, after)| *after))));
            let Some(was) = place.and_then(|place| row(before, place)) else {
                difference.appearing += 1;
                sample(&mut difference.samples.appearing, || shown(after, &new));
                continue;
            };
            if compared.iter().all(|(before, after)| was.get(*before) == new.get(*after)) {
                difference.unchanged += 1;
                continue;
            }
            difference.changing += 1;
            let change = || Change { before: shown(before, &was), after: shown(after, &new) };
            sample(&mut difference.samples.changing, change);
        }
        let mut left: Vec<(usize, usize)> = match key {
            Some(_) => old.into_values().collect(),
            None => places(before).collect(),
        };
        left.sort_unstable();
        difference.vanishing = left.len().try_into().unwrap_or(u64::MAX);
        for was in left.into_iter().take(SAMPLES).filter_map(|place| row(before, place)) {
            sample(&mut difference.samples.vanishing, || shown(before, &was));
        }
        difference
    }
}

fn sample<T>(samples: &mut Vec<T>, make: impl FnOnce() -> T) {
    if samples.len() < SAMPLES {
        samples.push(make());
    }
}

/// Segment and row of every live row.
fn places(table: &Table) -> impl Iterator<Item = (usize, usize)> {
    table.segments.iter().enumerate().flat_map(|(at, segment)| {
        let live = (0..segment.batch.num_rows()).filter(|row| !segment.dead.is_dead(*row));
        live.map(move |row| (at, row))
    })
}

fn row(table: &Table, (segment, row): (usize, usize)) -> Option<Row> {
    Some(table.segments.get(segment)?.row(&table.schema, row))
}

fn cells(row: &Row, columns: impl Iterator<Item = usize>) -> Vec<Cell> {
    columns.map(|column| row.get(column).cloned().unwrap_or(Cell::Null)).collect()
}

/// The key columns of `after` in both tables; nothing if they are not the key of `before`.
fn keys(before: &Table, after: &Table) -> Option<Vec<(usize, usize)>> {
    let places =
        after.schema.key.iter().map(|at| Some((before.schema.position(&after.schema.columns.get(*at)?.name)?, *at)));
    let keys: Vec<(usize, usize)> = places.collect::<Option<_>>()?;
    let same = keys.len() == before.schema.key.len() && keys.iter().all(|(at, _)| before.schema.key.contains(at));
    same.then_some(keys)
}

/// Places of the columns that are compared.
fn compared(before: &Table, after: &Table) -> Vec<(usize, usize)> {
    let columns = after.schema.columns.iter().enumerate();
    let both = columns.filter_map(|(at, column)| Some((before.schema.position(&column.name)?, at)));
    both.filter(|(was, at)| before.stamp_column != Some(*was) && after.stamp_column != Some(*at)).collect()
}

fn shown(table: &Table, row: &Row) -> Value {
    let columns = table.schema.columns.iter().zip(row.iter());
    Value::Object(columns.map(|(column, cell)| (column.name.clone(), json(cell))).collect::<Map<_, _>>())
}

fn json(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Bool(value) => (*value).into(),
        Cell::Int(value) => (*value).into(),
        Cell::Decimal(value) => decimal(*value).into(),
        Cell::Float(value) => value.0.into(),
        Cell::Text(text) => text.as_str().into(),
        Cell::Date(day) => {
            let instant = format_micros(i64::from(*day).saturating_mul(86_400_000_000));
            instant.split('T').next().unwrap_or_default().into()
        }
        Cell::Datetime(at) => format_micros(*at).into(),
        Cell::List(items) => items.iter().map(json).collect(),
        Cell::Document(doc) => serde_json::to_value(doc).unwrap_or_default(),
    }
}

/// A decimal as text, without zeros at its end.
fn decimal(value: i128) -> String {
    let one = 10i128.pow(DECIMAL_SCALE.unsigned_abs().into());
    let sign = if value < 0 { "-" } else { "" };
    let (whole, part) = ((value / one).unsigned_abs(), (value % one).unsigned_abs());
    let digits = format!("{part:0width$}", width = usize::from(DECIMAL_SCALE.unsigned_abs()));
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{digits}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_shown_without_zeros() {
        let one = 10i128.pow(16);
        let shown = [0, one, -one / 2, 12 * one + one / 4, -1].map(decimal);
        assert_eq!(shown, ["0", "1", "-0.5", "12.25", "-0.0000000000000001"]);
    }
}
