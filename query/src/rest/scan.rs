//! One pass over a document table: counts the rows that match and finds those of a page.
//!
//! Columns decide first; a row's document is read only if a condition asks for it and the columns agree.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Int64Array, StringViewArray, TimestampMicrosecondArray},
    buffer::{NullBuffer, ScalarBuffer},
};
use schemas::table::{Segment, Table, TableName};
use serde_json::Value;

use super::Read;
use crate::QueryError;

/// Rows between two looks at the clock.
const CHECKED_ROWS: usize = 1024;

/// What a row has to satisfy.
pub(super) enum Condition {
    /// The text column is one of these.
    Text { column: &'static str, any: Vec<String> },
    /// The text column is none of these.
    NotText { column: &'static str, none: Vec<String> },
    /// The boolean column has this value; null counts as false.
    Flag { column: &'static str, is: bool },
    /// The instant lies between these, both inclusive, microseconds.
    Instant { column: &'static str, low: i64, high: i64 },
    /// The document satisfies this.
    Document(Box<dyn Fn(&Value) -> bool + Send + Sync>),
}

/// An order by a column of instants or whole numbers, rising or falling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) column: &'static str,
    pub(super) falling: bool,
}

/// An order of rows: by a text column, then by others; rows that are still equal stand in the order of their last change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sort<'a> {
    pub(super) text: Option<&'static str>,
    pub(super) then: &'a [Order],
}

impl<'a> Sort<'a> {
    /// By a text column.
    pub(super) const fn text(column: &'static str) -> Self {
        Self { text: Some(column), then: &[] }
    }

    /// By at most two other columns.
    pub(super) const fn by(orders: &'a [Order]) -> Self {
        Self { text: None, then: orders }
    }
}

/// A row of a document table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    /// The row's stamp, microseconds since 1970 UTC.
    pub(super) stamp: i64,
    pub(super) doc: Value,
}

/// Rows of a page, and how many there are in all.
pub(super) struct Found {
    pub(super) total: usize,
    pub(super) rows: Vec<Row>,
}

/// A row that matches, in the order of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hit<'a> {
    text: Option<&'a str>,
    keys: [i64; 3],
    segment: usize,
    row: usize,
}

/// The table of all documents of a kind in one snapshot.
pub(super) struct Documents {
    table: Option<Arc<Table>>,
    name: &'static str,
    until: Instant,
    timeout: Duration,
}

const ID: &str = "doc_id";
const STAMP: &str = "indexed_on";

impl Documents {
    /// The table of that name in schema `system`; without one there are no documents.
    pub(super) fn of(read: &Read, name: &'static str) -> Self {
        let table = read.tables.tables.get(&TableName::new("system", name)).cloned();
        Self { table, name, until: read.until, timeout: read.timeout }
    }

    fn column(&self, table: &Table, name: &str) -> Result<usize, QueryError> {
        let missing = || QueryError::Internal(format!("table system.{} has no column {name}", self.name));
        table.schema.position(name).ok_or_else(missing)
    }

    /// The document with this id.
    ///
    /// # Errors
    /// [`QueryError::Internal`] if the table has another shape than agreed.
    pub(super) fn get(&self, id: &str) -> Result<Option<Row>, QueryError> {
        let Some(table) = &self.table else { return Ok(None) };
        let found = table.index.as_ref().and_then(|index| index.find(table, id));
        if let Some(places) = found {
            return places.first().map(|(segment, row)| self.row(table, *segment, *row)).transpose();
        }
        let wanted = Condition::Text { column: ID, any: vec![id.to_owned()] };
        Ok(self.page(&[wanted], Sort::default(), 0, 1)?.rows.pop())
    }

    /// All documents, in the order of their ids.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub(super) fn all(&self) -> Result<Vec<Row>, QueryError> {
        Ok(self.page(&[], Sort::text(ID), 0, usize::MAX)?.rows)
    }

    /// The matching rows in order, from `offset` on, at most `limit`; and the number of all that match.
    ///
    /// # Errors
    /// [`QueryError::Internal`] if the table has another shape than agreed, [`QueryError::Timeout`].
    pub(super) fn page(
        &self,
        conditions: &[Condition],
        sort: Sort<'_>,
        offset: usize,
        limit: usize,
    ) -> Result<Found, QueryError> {
        let Some(table) = &self.table else { return Ok(Found { total: 0, rows: Vec::new() }) };
        let stamp = self.column(table, STAMP)?;
        let text = sort.text.map(|column| self.column(table, column)).transpose()?;
        let then = sort.then.iter().map(|order| Ok((self.column(table, order.column)?, order.falling)));
        let then = then.collect::<Result<Vec<_>, QueryError>>()?;
        let mut hits: Vec<Hit<'_>> = Vec::new();
        for (at, segment) in table.segments.iter().enumerate() {
            let stamps = instants(segment, stamp)?;
            let text = text.map(|column| texts(segment, column)).transpose()?;
            let then = then.iter().map(|(column, falling)| Ok((numbers(segment, *column)?, *falling)));
            let then = then.collect::<Result<Vec<_>, QueryError>>()?;
            self.each(table, segment, conditions, &mut |row| {
                let mut keys = [0; 3];
                for (slot, ((values, nulls), falling)) in keys.iter_mut().zip(&then) {
                    let known = nulls.is_none_or(|nulls| nulls.is_valid(row));
                    let value = values.get(row).filter(|_| known).copied().unwrap_or(i64::MIN + 1);
                    *slot = if *falling { value.saturating_neg() } else { value };
                }
                if let Some(last) = keys.last_mut() {
                    *last = stamps.value(row);
                }
                let text = text.filter(|column| !column.is_null(row)).map(|column| column.value(row));
                hits.push(Hit { text, keys, segment: at, row });
                Ok(())
            })?;
        }
        let total = hits.len();
        let end = offset.saturating_add(limit);
        if end < total {
            hits.select_nth_unstable(end);
            hits.truncate(end);
        }
        hits.sort_unstable();
        let page = hits.into_iter().skip(offset);
        let rows = page.map(|hit| self.row(table, hit.segment, hit.row)).collect::<Result<_, _>>()?;
        Ok(Found { total, rows })
    }

    /// Shows every matching document to `show`.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub(super) fn visit(&self, conditions: &[Condition], show: &mut impl FnMut(&Value)) -> Result<(), QueryError> {
        let Some(table) = &self.table else { return Ok(()) };
        for segment in table.segments.iter() {
            self.each(table, segment, conditions, &mut |row| {
                show(&self.document(segment, row)?);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The different texts of a column.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub(super) fn distinct(&self, column: &'static str) -> Result<BTreeSet<String>, QueryError> {
        let mut found = BTreeSet::new();
        let Some(table) = &self.table else { return Ok(found) };
        for segment in table.segments.iter() {
            let column = texts(segment, self.column(table, column)?)?;
            self.each(table, segment, &[], &mut |row| {
                if !column.is_null(row) && !found.contains(column.value(row)) {
                    found.insert(column.value(row).to_owned());
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Calls `hit` with every row of a segment that matches.
    fn each(
        &self,
        table: &Table,
        segment: &Segment,
        conditions: &[Condition],
        hit: &mut impl FnMut(usize) -> Result<(), QueryError>,
    ) -> Result<(), QueryError> {
        if segment.live_rows() == 0 || !may_match(table, segment, conditions) {
            return Ok(());
        }
        let tests = conditions.iter().map(|condition| self.test(table, segment, condition));
        let tests = tests.collect::<Result<Vec<_>, _>>()?;
        let (documents, columns): (Vec<_>, Vec<_>) = tests.iter().partition(|test| test.is_document());
        for row in 0..segment.batch.num_rows() {
            if row % CHECKED_ROWS == 0 && Instant::now() > self.until {
                return Err(QueryError::Timeout { after: self.timeout });
            }
            if segment.dead.is_dead(row) || !columns.iter().all(|test| test.holds(row)) {
                continue;
            }
            if !documents.is_empty() {
                let doc = self.document(segment, row)?;
                if !documents.iter().all(|test| test.holds_for(&doc)) {
                    continue;
                }
            }
            hit(row)?;
        }
        Ok(())
    }

    fn row(&self, table: &Table, segment: usize, row: usize) -> Result<Row, QueryError> {
        let segment = table.segments.get(segment).filter(|segment| row < segment.batch.num_rows());
        let segment = segment.ok_or_else(|| QueryError::Internal(format!("system.{} lost a row", self.name)))?;
        Ok(Row {
            id: texts(segment, self.column(table, ID)?)?.value(row).to_owned(),
            stamp: instants(segment, self.column(table, STAMP)?)?.value(row),
            doc: self.document(segment, row)?,
        })
    }

    fn document(&self, segment: &Segment, row: usize) -> Result<Value, QueryError> {
        let lost = || QueryError::Internal(format!("system.{} lost a document", self.name));
        let doc = segment.documents.get(row).ok_or_else(lost)?;
        serde_json::to_value(doc).map_err(|error| QueryError::Internal(format!("a document is not JSON: {error}")))
    }

    fn test<'a>(&self, table: &Table, segment: &'a Segment, condition: &'a Condition) -> Result<Test<'a>, QueryError> {
        Ok(match condition {
            Condition::Text { column, any } => Test::Text(texts(segment, self.column(table, column)?)?, any, true),
            Condition::NotText { column, none } => {
                Test::Text(texts(segment, self.column(table, column)?)?, none, false)
            }
            Condition::Flag { column, is } => Test::Flag(flags(segment, self.column(table, column)?)?, *is),
            Condition::Instant { column, low, high } => {
                Test::Instant(instants(segment, self.column(table, column)?)?, *low, *high)
            }
            Condition::Document(test) => Test::Document(test.as_ref()),
        })
    }
}

/// False if the segment's stamps rule every row out.
fn may_match(table: &Table, segment: &Segment, conditions: &[Condition]) -> bool {
    let stamp = table.stamp_column.and_then(|at| table.schema.columns.get(at));
    let (Some(stamp), Some((least, greatest))) = (stamp, segment.stamps) else { return true };
    conditions.iter().all(|condition| match condition {
        Condition::Instant { column, low, high } if *column == stamp.name => greatest >= *low && least <= *high,
        _ => true,
    })
}

/// A condition beside the columns of one segment.
enum Test<'a> {
    Text(&'a StringViewArray, &'a [String], bool),
    Flag(&'a BooleanArray, bool),
    Instant(&'a TimestampMicrosecondArray, i64, i64),
    Document(&'a (dyn Fn(&Value) -> bool + Send + Sync)),
}

impl Test<'_> {
    const fn is_document(&self) -> bool {
        matches!(self, Self::Document(_))
    }

    fn holds(&self, row: usize) -> bool {
        match self {
            Self::Text(column, any, wanted) => {
                let among = !column.is_null(row) && any.iter().any(|text| text == column.value(row));
                among == *wanted
            }
            Self::Flag(column, is) => (!column.is_null(row) && column.value(row)) == *is,
            Self::Instant(column, low, high) => {
                !column.is_null(row) && column.value(row) >= *low && column.value(row) <= *high
            }
            Self::Document(_) => true,
        }
    }

    fn holds_for(&self, doc: &Value) -> bool {
        match self {
            Self::Document(test) => test(doc),
            _ => true,
        }
    }
}

fn array(segment: &Segment, column: usize) -> Result<&ArrayRef, QueryError> {
    segment.batch.columns().get(column).ok_or_else(|| QueryError::Internal(format!("segment has no column {column}")))
}

fn typed<T: 'static>(segment: &Segment, column: usize) -> Result<&T, QueryError> {
    let array = array(segment, column)?;
    let other = || QueryError::Internal(format!("column {column} is {}", array.data_type()));
    array.as_any().downcast_ref().ok_or_else(other)
}

fn texts(segment: &Segment, column: usize) -> Result<&StringViewArray, QueryError> {
    typed(segment, column)
}

fn instants(segment: &Segment, column: usize) -> Result<&TimestampMicrosecondArray, QueryError> {
    typed(segment, column)
}

/// Values of a column of instants or whole numbers, and which of them are there.
fn numbers(segment: &Segment, column: usize) -> Result<(&ScalarBuffer<i64>, Option<&NullBuffer>), QueryError> {
    if let Some(column) = array(segment, column)?.as_any().downcast_ref::<Int64Array>() {
        return Ok((column.values(), column.nulls()));
    }
    let column = instants(segment, column)?;
    Ok((column.values(), column.nulls()))
}

fn flags(segment: &Segment, column: usize) -> Result<&BooleanArray, QueryError> {
    typed(segment, column)
}
