//! Which filters a live table can answer itself: look-ups by key, and bounds of the stamp column.

use datafusion::{
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
};

/// Names of the columns that filters are recognised on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    /// First key column, if look-ups by it are possible.
    pub(super) key: Option<&'a str>,
    /// Stamp column.
    pub(super) stamp: Option<&'a str>,
}

/// True if the filter has the form of a look-up by key. Parameters count as constants: they are filled in before
/// the scan is planned.
pub(super) fn is_key_filter(filter: &Expr, key: &str) -> bool {
    walk_keys(filter, key, &mut |constant| is_constant_text(constant))
}

/// The keys that a look-up asks for, each once; `None` if the filter is not a look-up.
pub(super) fn as_keys(filter: &Expr, key: &str) -> Option<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    let known = walk_keys(filter, key, &mut |constant| match constant_text(constant) {
        // Nothing equals null.
        Some(None) => true,
        Some(Some(text)) => {
            if !keys.contains(&text) {
                keys.push(text);
            }
            true
        }
        None => false,
    });
    known.then_some(keys)
}

fn walk_keys(filter: &Expr, key: &str, constant: &mut dyn FnMut(&Expr) -> bool) -> bool {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            (is_column(left, key) && constant(right)) || (is_column(right, key) && constant(left))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            walk_keys(left, key, constant) && walk_keys(right, key, constant)
        }
        Expr::InList(InList { expr, list, negated: false }) => is_column(expr, key) && list.iter().all(constant),
        _ => false,
    }
}

fn is_column(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Column(column) if column.name == name)
}

fn is_constant_text(expr: &Expr) -> bool {
    match expr {
        Expr::Placeholder(_) => true,
        Expr::Cast(cast) => cast.field.data_type().is_string() && matches!(*cast.expr, Expr::Placeholder(_)),
        _ => constant_text(expr).is_some(),
    }
}

/// The text of a constant; the inner `None` is SQL's null.
fn constant_text(expr: &Expr) -> Option<Option<String>> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text), _) => {
            Some(text.clone())
        }
        Expr::Literal(ScalarValue::Null, _) => Some(None),
        Expr::Cast(cast) if cast.field.data_type().is_string() => constant_text(&cast.expr),
        _ => None,
    }
}

/// Bounds on the stamp column, in nanoseconds so that every unit of a constant fits; both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StampRange {
    low: i128,
    high: i128,
}

impl Default for StampRange {
    fn default() -> Self {
        Self { low: i128::MIN, high: i128::MAX }
    }
}

impl StampRange {
    /// Narrows the range by a filter; false if the filter says nothing about the stamp column.
    pub(super) fn narrow(&mut self, filter: &Expr, stamp: &str) -> bool {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                let left = self.narrow(left, stamp);
                self.narrow(right, stamp) || left
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (op, constant) = if is_instant(left, stamp) {
                    (Some(*op), right)
                } else if is_instant(right, stamp) {
                    (op.swap(), left)
                } else {
                    return false;
                };
                if matches!(**constant, Expr::Placeholder(_)) {
                    return matches!(
                        op,
                        Some(Operator::Eq | Operator::Gt | Operator::GtEq | Operator::Lt | Operator::LtEq)
                    );
                }
                let Some(at) = nanoseconds(constant) else { return false };
                match op {
                    Some(Operator::Eq) => {
                        self.low = self.low.max(at);
                        self.high = self.high.min(at);
                    }
                    Some(Operator::Gt | Operator::GtEq) => self.low = self.low.max(at),
                    Some(Operator::Lt | Operator::LtEq) => self.high = self.high.min(at),
                    _ => return false,
                }
                true
            }
            Expr::Between(between) if !between.negated && is_instant(&between.expr, stamp) => {
                match (nanoseconds(&between.low), nanoseconds(&between.high)) {
                    (Some(low), Some(high)) => {
                        self.low = self.low.max(low);
                        self.high = self.high.min(high);
                        true
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// True if a segment with these bounds (microseconds) may hold rows of the range.
    pub(super) fn meets(&self, bounds: Option<(i64, i64)>) -> bool {
        bounds.is_none_or(|(least, greatest)| {
            i128::from(greatest) * 1000 >= self.low && i128::from(least) * 1000 <= self.high
        })
    }
}

/// The stamp column itself, or cast to another unit of time (which keeps the order).
fn is_instant(expr: &Expr, stamp: &str) -> bool {
    match expr {
        Expr::Cast(cast) => {
            matches!(cast.field.data_type(), arrow::datatypes::DataType::Timestamp(_, _))
                && is_column(&cast.expr, stamp)
        }
        expr => is_column(expr, stamp),
    }
}

fn nanoseconds(expr: &Expr) -> Option<i128> {
    let Expr::Literal(value, _) = expr else { return None };
    match value {
        ScalarValue::TimestampSecond(Some(at), _) => Some(i128::from(*at) * 1_000_000_000),
        ScalarValue::TimestampMillisecond(Some(at), _) => Some(i128::from(*at) * 1_000_000),
        ScalarValue::TimestampMicrosecond(Some(at), _) | ScalarValue::Int64(Some(at)) => Some(i128::from(*at) * 1000),
        ScalarValue::TimestampNanosecond(Some(at), _) => Some(i128::from(*at)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    #[test]
    fn look_ups_are_recognised() {
        let text = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let placeholder =
            Expr::Placeholder(datafusion::logical_expr::expr::Placeholder::new_with_field("$1".to_owned(), None));
        for (filter, keys) in [
            (col("doc_id").eq(lit("a")), text(&["a"])),
            (lit("a").eq(col("doc_id")), text(&["a"])),
            (col("doc_id").in_list(vec![lit("a"), lit("b"), lit("a")], false), text(&["a", "b"])),
            (col("doc_id").eq(lit("a")).or(col("doc_id").eq(lit("b"))), text(&["a", "b"])),
            (col("doc_id").eq(lit(ScalarValue::Utf8(None))), text(&[])),
            (col("doc_id").in_list(vec![lit("a")], true), None),
            (col("doc_id").not_eq(lit("a")), None),
            (col("other").eq(lit("a")), None),
            (col("doc_id").eq(lit("a")).or(col("other").eq(lit("b"))), None),
            (col("doc_id").eq(lit(1_i64)), None),
        ] {
            assert_eq!(as_keys(&filter, "doc_id"), keys, "{filter}");
            assert_eq!(is_key_filter(&filter, "doc_id"), keys.is_some(), "{filter}");
        }
        assert!(is_key_filter(&col("doc_id").eq(placeholder.clone()), "doc_id"));
        assert_eq!(as_keys(&col("doc_id").eq(placeholder), "doc_id"), None);
    }

    #[test]
    fn stamp_bounds_narrow_to_segments() {
        let at = |micros: i64| lit(ScalarValue::TimestampMicrosecond(Some(micros), None));
        let narrowed = |filter: Expr| {
            let mut range = StampRange::default();
            range.narrow(&filter, "at").then_some(range)
        };
        let after = narrowed(col("at").gt(at(100))).unwrap();
        assert!(after.meets(Some((0, 150))) && !after.meets(Some((0, 99))) && after.meets(None));
        let before = narrowed(at(100).gt_eq(col("at"))).unwrap();
        assert!(before.meets(Some((100, 200))) && !before.meets(Some((101, 200))));
        let both = narrowed(col("at").between(at(10), at(20))).unwrap();
        assert!(both.meets(Some((20, 30))) && !both.meets(Some((21, 30))));
        let nanos = narrowed(col("at").gt(lit(ScalarValue::TimestampNanosecond(Some(100_000), None)))).unwrap();
        assert!(nanos.meets(Some((0, 100))) && !nanos.meets(Some((0, 99))));
        assert!(narrowed(col("other").gt(at(100))).is_none());
    }
}
