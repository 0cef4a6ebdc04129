//! Rows of a data source against those that a file expects.

use schemas::row::{Cell, Row};
use serde_json::Value as Json;
use udf::{DataSource, names::column_name};

use super::typed::value;

/// False if an expected row has a null where the table has none: the original computes the row and fails to save it
/// (ucr.md §3.9), so that the document has no rows.
pub(crate) fn can_be_saved(source: &DataSource, expected: &Json) -> bool {
    let holds = |row: &Json| source.columns().iter().all(|column| !column.is_required() || !row[&column.id].is_null());
    expected.as_array().is_none_or(|rows| rows.iter().all(holds))
}

/// Compares rows with expected ones, column by column; the inner result is the first difference.
///
/// # Errors
/// An expected value is not of the format.
pub(crate) fn compare(
    source: &DataSource,
    rows: &[Row],
    expected: &[Json],
    now: i64,
) -> anyhow::Result<Result<(), String>> {
    if rows.len() != expected.len() {
        return Ok(Err(format!("expected {} rows, got {}", expected.len(), rows.len())));
    }
    for (row, expected) in rows.iter().zip(expected) {
        let columns = expected.as_object().map_or(0, serde_json::Map::len);
        if columns != source.columns().len() {
            return Ok(Err(format!("expected {columns} columns, got {}", source.columns().len())));
        }
        for (column, cell) in source.columns().iter().zip(row.iter()) {
            let Some(wanted) = expected.get(&column.id) else {
                return Ok(Err(format!("unexpected column {}", column.id)));
            };
            let wanted = match wanted.as_str() {
                Some("$now") => Cell::Datetime(now),
                _ => column.datatype.cell(value(wanted)?)?,
            };
            if wanted != *cell {
                return Ok(Err(format!("{}: expected {wanted:?}, got {cell:?}", column.id)));
            }
        }
    }
    let names: Vec<_> = source.columns().iter().map(|column| column_name(&column.id)).collect();
    let schema: Vec<_> = source.schema().columns.iter().map(|column| column.name.clone()).collect();
    Ok(if names == schema { Ok(()) } else { Err(format!("columns {schema:?} are not named {names:?}")) })
}
