//! The arithmetic of aggregates: what a group keeps, so that a difference can be added to it.
//!
//! Linear aggregates are numbers. `min`, `max` and `count_distinct` keep their values counted and sorted, `first`, `last`
//! and `top` keep them sorted by what rows are ordered by: every change costs the logarithm of a group's size and never
//! a recomputation.
//!
//! While a view is being built its differences come in any order: a row may be taken back before it is given, and counts
//! are below zero for a while. All of this is sums of differences, so nothing of it is left when the build is complete.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    iter,
};

use compact_str::{CompactString, ToCompactString, format_compact};
use schemas::{
    row::{Cell, ColumnType, DECIMAL_PRECISION, DECIMAL_SCALE, Real, Row},
    time::format_micros,
};
use udf::aggregate_view::{Aggregate, AggregateView, Function};

/// What a group knows for one of its aggregates.
pub(super) enum Accumulator {
    Sum {
        total: Total,
        values: i64,
    },
    /// How many rows have each value.
    Values(BTreeMap<Cell, i64>),
    /// How many rows have each pair of what they are ordered by and value.
    Ordered(BTreeMap<(Cell, Cell), i64>),
}

/// A sum of numbers of up to 38 digits. It is kept in two halves of which neither overflows, whatever is added and taken
/// away in whatever order: there are fewer than 2^60 rows.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Total {
    /// In units of [`HALF`].
    high: i128,
    low: i128,
}

const HALF_BITS: u32 = 64;
const HALF: i128 = 1 << HALF_BITS;

impl Total {
    fn add(&mut self, value: i128, times: i64) {
        self.high += (value >> HALF_BITS) * i128::from(times);
        self.low += (value & (HALF - 1)) * i128::from(times);
    }

    /// The sum, if a decimal column can hold it.
    fn get(&self) -> Option<i128> {
        let total = self.high.checked_mul(HALF)?.checked_add(self.low)?;
        (total.unsigned_abs() < 10_u128.pow(DECIMAL_PRECISION.into())).then_some(total)
    }
}

impl Accumulator {
    /// Of a group without rows.
    pub(super) fn new(aggregate: &Aggregate) -> Self {
        match aggregate.function {
            Function::Count | Function::Sum | Function::Avg => Self::Sum { total: Total::default(), values: 0 },
            Function::CountDistinct | Function::Min | Function::Max => Self::Values(BTreeMap::new()),
            Function::First { .. } | Function::Last { .. } | Function::Top { .. } => Self::Ordered(BTreeMap::new()),
        }
    }

    /// True if everything that was given has been taken back.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Sum { total, values } => *total == Total::default() && *values == 0,
            Self::Values(counted) => counted.is_empty(),
            Self::Ordered(counted) => counted.is_empty(),
        }
    }

    /// Adds a joined row so many times.
    pub(super) fn add(&mut self, aggregate: &Aggregate, rows: &[Row], diff: i64) {
        // Without a column the rows themselves are counted.
        let cell = aggregate.column.map(|column| AggregateView::cell(rows, column));
        match self {
            Self::Sum { .. } | Self::Values(_) if cell == Some(&Cell::Null) => {}
            Self::Sum { total, values } => {
                *values += diff;
                match cell {
                    Some(Cell::Int(value)) => total.add(i128::from(*value), diff),
                    Some(Cell::Decimal(value)) => total.add(*value, diff),
                    _ => {}
                }
            }
            Self::Values(counted) => {
                if let Some(cell) = cell {
                    count(counted, cell.clone(), diff);
                }
            }
            Self::Ordered(counted) => {
                let order = aggregate.function.order_by().map(|column| AggregateView::cell(rows, column));
                let listed = matches!(aggregate.function, Function::Top { .. });
                if let (Some(order), Some(cell)) = (order, cell)
                    && *order != Cell::Null
                    && !(listed && *cell == Cell::Null)
                {
                    count(counted, (order.clone(), cell.clone()), diff);
                }
            }
        }
    }

    /// The cell that readers see.
    pub(super) fn value(&self, aggregate: &Aggregate) -> Cell {
        match (self, aggregate.function) {
            (Self::Sum { values, .. }, Function::Count) => Cell::Int(*values),
            (Self::Sum { total, .. }, Function::Sum) => match (total.get(), aggregate.result) {
                (Some(total), ColumnType::Decimal) => Cell::Decimal(total),
                (Some(total), _) => i64::try_from(total).map_or(Cell::Null, Cell::Int),
                (None, _) => Cell::Null,
            },
            (Self::Sum { total, values }, _) => total.get().map_or(Cell::Null, |total| mean(total, *values, aggregate)),
            (Self::Values(counted), Function::CountDistinct) => {
                Cell::Int(i64::try_from(counted.len()).unwrap_or(i64::MAX))
            }
            (Self::Values(counted), Function::Min) => counted.keys().next().cloned().unwrap_or(Cell::Null),
            (Self::Values(counted), _) => counted.keys().next_back().cloned().unwrap_or(Cell::Null),
            (Self::Ordered(counted), Function::Top { n, descending: true, .. }) => list(counted.iter().rev(), n),
            (Self::Ordered(counted), Function::Top { n, .. }) => list(counted.iter(), n),
            (Self::Ordered(counted), Function::First { .. }) => {
                let mut pairs = counted.keys();
                match (pairs.next(), pairs.next()) {
                    // Null is the least of values, but of rows that come first together those with a value count.
                    (Some((least, Cell::Null)), Some((next, value))) if least == next => value.clone(),
                    (first, _) => first.map_or(Cell::Null, |(_, value)| value.clone()),
                }
            }
            (Self::Ordered(counted), _) => counted.keys().next_back().map_or(Cell::Null, |(_, value)| value.clone()),
        }
    }
}

fn count<K: Ord>(counted: &mut BTreeMap<K, i64>, key: K, diff: i64) {
    match counted.entry(key) {
        Entry::Vacant(place) => {
            place.insert(diff);
        }
        Entry::Occupied(mut place) => {
            *place.get_mut() += diff;
            if *place.get() == 0 {
                place.remove();
            }
        }
    }
}

/// A mean in units of a decimal column, cut off at its last digit.
fn mean(total: i128, values: i64, aggregate: &Aggregate) -> Cell {
    let values = i128::from(values);
    let (Some(whole), Some(rest)) = (total.checked_div(values), total.checked_rem(values)) else { return Cell::Null };
    if !aggregate.over_integers {
        return Cell::Decimal(whole);
    }
    Cell::Decimal(whole * UNIT + rest * UNIT / values)
}

/// The first `n` values, each as often as rows have it, as texts.
fn list<'c>(pairs: impl Iterator<Item = (&'c (Cell, Cell), &'c i64)>, n: usize) -> Cell {
    let repeated =
        pairs.flat_map(|((_, value), rows)| iter::repeat_n(value, usize::try_from(*rows).unwrap_or(0).min(n)));
    Cell::List(repeated.take(n).map(|value| Cell::Text(text(value))).collect())
}

/// A value as readers write it: numbers without needless zeros, dates and instants by ISO 8601.
fn text(value: &Cell) -> CompactString {
    match value {
        Cell::Text(text) => text.clone(),
        Cell::Bool(value) => value.to_compact_string(),
        Cell::Int(value) => value.to_compact_string(),
        Cell::Float(Real(value)) => value.to_compact_string(),
        Cell::Decimal(value) => decimal(*value),
        Cell::Date(days) => {
            let midnight = format_micros(i64::from(*days) * 86_400_000_000);
            midnight.split_once('T').map_or(midnight.as_str(), |(date, _)| date).into()
        }
        Cell::Datetime(micros) => format_micros(*micros).into(),
        Cell::Null | Cell::List(_) | Cell::Document(_) => CompactString::default(),
    }
}

/// One in units of a decimal column.
const UNIT: i128 = 10_i128.pow(DECIMAL_SCALE.unsigned_abs() as u32);

fn decimal(value: i128) -> CompactString {
    let sign = if value < 0 { "-" } else { "" };
    let (whole, rest) = (value.unsigned_abs() / UNIT.unsigned_abs(), value.unsigned_abs() % UNIT.unsigned_abs());
    if rest == 0 {
        return format_compact!("{sign}{whole}");
    }
    let digits = format_compact!("{rest:0width$}", width = usize::from(DECIMAL_SCALE.unsigned_abs()));
    format_compact!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use udf::aggregate_view::ColumnRef;

    use super::*;

    const VALUE: ColumnRef = ColumnRef { source: 0, column: 0 };
    const ORDER: ColumnRef = ColumnRef { source: 0, column: 1 };

    fn aggregate(function: Function, of: ColumnType) -> Aggregate {
        let over_integers = of == ColumnType::Integer;
        let result = match function {
            Function::Sum | Function::Avg if !over_integers => ColumnType::Decimal,
            Function::Avg => ColumnType::Decimal,
            Function::Top { .. } => ColumnType::TextList,
            _ => of,
        };
        Aggregate { function, column: Some(VALUE), filter: None, over_integers, result }
    }

    fn value_of(function: Function, of: ColumnType, differences: &[(Cell, Cell, i64)]) -> Cell {
        let aggregate = aggregate(function, of);
        let mut accumulator = Accumulator::new(&aggregate);
        for (value, order, diff) in differences {
            accumulator.add(&aggregate, &[Row::from(vec![value.clone(), order.clone()])], *diff);
        }
        accumulator.value(&aggregate)
    }

    fn top(n: usize, descending: bool) -> Function {
        Function::Top { order_by: ORDER, n, descending }
    }

    #[test]
    fn rows_come_first_and_last_by_another_column_and_ties_do_not_depend_on_arrival() {
        let visits: Vec<_> = [
            (Cell::Int(9), Cell::Null),
            (Cell::Null, Cell::Date(1)),
            (Cell::Int(4), Cell::Date(1)),
            (Cell::Int(3), Cell::Date(1)),
            (Cell::Int(1), Cell::Date(2)),
            (Cell::Int(7), Cell::Date(3)),
            (Cell::Int(6), Cell::Date(3)),
            (Cell::Null, Cell::Date(3)),
        ]
        .map(|(value, order)| (value, order, 1))
        .into();
        let (first, last) = (Function::First { order_by: ORDER }, Function::Last { order_by: ORDER });
        assert_eq!(value_of(first, ColumnType::Integer, &visits), Cell::Int(3));
        assert_eq!(value_of(last, ColumnType::Integer, &visits), Cell::Int(7));
        let later = [visits.clone(), vec![(Cell::Null, Cell::Date(4), 1)]].concat();
        assert_eq!(value_of(last, ColumnType::Integer, &later), Cell::Null, "the last row has no value");
        assert_eq!(value_of(first, ColumnType::Integer, &visits[..1]), Cell::Null, "a row without order is left out");
        let texts = |texts: &[&str]| Cell::List(texts.iter().map(|text| Cell::Text((*text).into())).collect());
        assert_eq!(value_of(top(4, true), ColumnType::Integer, &visits), texts(&["7", "6", "1", "4"]));
        assert_eq!(value_of(top(2, false), ColumnType::Integer, &visits), texts(&["3", "4"]));
        assert_eq!(value_of(top(100, true), ColumnType::Integer, &[]), texts(&[]));
        let twice = [(Cell::Int(5), Cell::Int(1), 2), (Cell::Int(2), Cell::Int(0), 1)];
        assert_eq!(value_of(top(3, true), ColumnType::Integer, &twice), texts(&["5", "5", "2"]));
    }

    #[test]
    fn listed_values_read_as_readers_write_them() {
        let read = |cell: Cell| text(&cell).to_string();
        assert_eq!(read(Cell::Decimal(-115 * UNIT / 10)), "-11.5");
        assert_eq!(read(Cell::Decimal(3 * UNIT)), "3");
        assert_eq!(read(Cell::Decimal(1)), "0.0000000000000001");
        assert_eq!(read(Cell::Date(20_209)), "2025-05-01");
        assert_eq!(read(Cell::Datetime(1_500_000)), "1970-01-01T00:00:01.500000Z");
        assert_eq!(read(Cell::Bool(true)), "true");
    }

    #[test]
    fn a_sum_that_no_column_holds_is_null_until_it_fits_again() {
        let large = Cell::Decimal(99_999 * 10_i128.pow(33));
        let mut differences = vec![(large.clone(), Cell::Null, 1), (large.clone(), Cell::Null, 2)];
        assert_eq!(value_of(Function::Sum, ColumnType::Decimal, &differences), Cell::Null);
        assert_eq!(value_of(Function::Avg, ColumnType::Decimal, &differences), Cell::Null);
        differences.push((large.clone(), Cell::Null, -2));
        assert_eq!(value_of(Function::Sum, ColumnType::Decimal, &differences), large);
        let (positive, negative) = (Cell::Decimal(5 * UNIT), Cell::Decimal(-7 * UNIT));
        let mixed = [(positive, Cell::Null, 3), (negative, Cell::Null, 4)];
        assert_eq!(value_of(Function::Sum, ColumnType::Decimal, &mixed), Cell::Decimal(-13 * UNIT));
        assert_eq!(value_of(Function::Avg, ColumnType::Decimal, &mixed), Cell::Decimal(-13 * UNIT / 7));
        let most = (Cell::Int(i64::MAX), Cell::Null, 1_000_000);
        assert_eq!(value_of(Function::Sum, ColumnType::Integer, std::slice::from_ref(&most)), Cell::Null);
        assert_eq!(
            value_of(Function::Avg, ColumnType::Integer, &[most]),
            Cell::Decimal(i128::from(i64::MAX) * UNIT),
            "the mean of large integers is as exact as that of small ones"
        );
    }

    /// A value and what its row is ordered by.
    fn pair() -> impl Strategy<Value = (Cell, Cell)> {
        let cell = || prop_oneof![1 => Just(Cell::Null), 4 => (-3i64..4).prop_map(|n| Cell::Int(n * (i64::MAX / 3)))];
        (cell(), cell())
    }

    proptest! {
        #[test]
        fn the_order_of_differences_does_not_matter(
            kept in prop::collection::vec(pair(), 0..12),
            (passing, order) in prop::collection::vec(pair(), 0..12).prop_flat_map(|passing| {
                let slots: Vec<usize> = (0..24 + passing.len() * 2).collect();
                (Just(passing), Just(slots).prop_shuffle())
            }),
        ) {
            let rows = |rows: &[(Cell, Cell)], diff| {
                rows.iter().map(|(value, order)| (value.clone(), order.clone(), diff)).collect::<Vec<_>>()
            };
            let plain = rows(&kept, 1);
            let all = [plain.clone(), rows(&passing, 1), rows(&passing, -1)].concat();
            let shuffled: Vec<_> = order.iter().filter_map(|at| all.get(*at).cloned()).collect();
            prop_assert!(passing.len() * 2 + kept.len() == all.len());
            let ordered = [Function::First { order_by: ORDER }, Function::Last { order_by: ORDER }, top(3, true), top(2, false)];
            let others = [Function::Count, Function::CountDistinct, Function::Sum, Function::Avg, Function::Min, Function::Max];
            for function in others.into_iter().chain(ordered) {
                let of = ColumnType::Integer;
                prop_assert_eq!(value_of(function, of, &shuffled), value_of(function, of, &plain), "{:?}", function);
            }
        }
    }
}
