//! Between rows and Arrow columns.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array, Int64Array,
    ListArray, RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray,
    builder::{
        BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder,
        ListBuilder, StringBuilder, StringViewBuilder, TimestampMicrosecondBuilder,
    },
};
use arrow_schema::{ArrowError, SchemaRef};
use arrow_select::{concat::concat_batches, filter::filter_record_batch};
use schemas::{
    row::{Cell, ColumnType, DECIMAL_PRECISION, DECIMAL_SCALE, Real, Row, TableSchema},
    table::Segment,
};

/// Builds one record batch. A cell of another type than its column becomes null.
pub(super) fn batch<'r>(
    schema: &TableSchema,
    arrow: &SchemaRef,
    rows: &(impl ExactSizeIterator<Item = &'r [Cell]> + Clone),
) -> Result<RecordBatch, ArrowError> {
    let columns = schema
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.clone().map(|row| row.get(at).unwrap_or(&Cell::Null));
            array(column.column_type, rows.len(), cells)
        })
        .collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(Arc::clone(arrow), columns)
}

macro_rules! integers {
    ($builder:ty, $rows:expr, $cells:expr) => {{
        let mut builder = <$builder>::with_capacity($rows);
        for cell in $cells {
            builder.append_option(match cell {
                Cell::Int(value) => (*value).try_into().ok(),
                _ => None,
            });
        }
        Arc::new(builder.finish())
    }};
}

macro_rules! values {
    ($builder:expr, $cells:expr, $variant:path) => {{
        let mut builder = $builder;
        for cell in $cells {
            builder.append_option(match cell {
                $variant(value) => Some(*value),
                _ => None,
            });
        }
        Arc::new(builder.finish())
    }};
}

/// One column of `rows` cells. Builders are made for just as many: by default they hold a thousand, and most ticks bring
/// a table a row or two.
fn array<'r>(column: ColumnType, rows: usize, cells: impl Iterator<Item = &'r Cell>) -> Result<ArrayRef, ArrowError> {
    Ok(match column {
        ColumnType::Text => {
            let mut builder = StringViewBuilder::with_capacity(rows);
            for cell in cells {
                builder.append_option(match cell {
                    Cell::Text(text) => Some(text.as_str()),
                    _ => None,
                });
            }
            Arc::new(builder.finish())
        }
        ColumnType::Integer => integers!(Int32Builder, rows, cells),
        ColumnType::SmallInteger => integers!(Int16Builder, rows, cells),
        ColumnType::BigInteger => integers!(Int64Builder, rows, cells),
        ColumnType::Decimal => {
            let builder =
                Decimal128Builder::with_capacity(rows).with_precision_and_scale(DECIMAL_PRECISION, DECIMAL_SCALE)?;
            values!(builder, cells, Cell::Decimal)
        }
        ColumnType::Float => {
            let mut builder = Float64Builder::with_capacity(rows);
            for cell in cells {
                builder.append_option(match cell {
                    Cell::Float(Real(value)) => Some(*value),
                    _ => None,
                });
            }
            Arc::new(builder.finish())
        }
        ColumnType::Date => values!(Date32Builder::with_capacity(rows), cells, Cell::Date),
        ColumnType::Datetime => values!(TimestampMicrosecondBuilder::with_capacity(rows), cells, Cell::Datetime),
        ColumnType::Boolean => values!(BooleanBuilder::with_capacity(rows), cells, Cell::Bool),
        ColumnType::TextList => {
            let mut builder = ListBuilder::with_capacity(StringBuilder::with_capacity(rows, 0), rows);
            for cell in cells {
                let Cell::List(items) = cell else {
                    builder.append(false);
                    continue;
                };
                for item in items {
                    builder.values().append_option(match item {
                        Cell::Text(text) => Some(text.as_str()),
                        _ => None,
                    });
                }
                builder.append(true);
            }
            Arc::new(builder.finish())
        }
    })
}

/// Decodes one row.
pub(super) fn cells(schema: &TableSchema, batch: &RecordBatch, row: usize) -> Row {
    schema.columns.iter().zip(batch.columns()).map(|(column, array)| cell(column.column_type, array, row)).collect()
}

fn cell(column: ColumnType, array: &ArrayRef, row: usize) -> Cell {
    fn of<T: 'static>(array: &ArrayRef) -> Option<&T> {
        array.as_any().downcast_ref()
    }
    if array.is_null(row) {
        return Cell::Null;
    }
    let value = match column {
        ColumnType::Text => of::<StringViewArray>(array).map(|a| Cell::Text(a.value(row).into())),
        ColumnType::Integer => of::<Int32Array>(array).map(|a| Cell::Int(a.value(row).into())),
        ColumnType::SmallInteger => of::<Int16Array>(array).map(|a| Cell::Int(a.value(row).into())),
        ColumnType::BigInteger => of::<Int64Array>(array).map(|a| Cell::Int(a.value(row))),
        ColumnType::Decimal => of::<Decimal128Array>(array).map(|a| Cell::Decimal(a.value(row))),
        ColumnType::Float => of::<Float64Array>(array).map(|a| Cell::Float(Real(a.value(row)))),
        ColumnType::Date => of::<Date32Array>(array).map(|a| Cell::Date(a.value(row))),
        ColumnType::Datetime => of::<TimestampMicrosecondArray>(array).map(|a| Cell::Datetime(a.value(row))),
        ColumnType::Boolean => of::<BooleanArray>(array).map(|a| Cell::Bool(a.value(row))),
        ColumnType::TextList => of::<ListArray>(array).and_then(|a| {
            let items = a.value(row);
            let items = items.as_any().downcast_ref::<StringArray>()?;
            let texts = items.iter().map(|item| item.map_or(Cell::Null, |text| Cell::Text(text.into())));
            Some(Cell::List(texts.collect()))
        }),
    };
    value.unwrap_or(Cell::Null)
}

/// One batch with the live rows of several segments, in order. Text buffers of dead rows are let go.
pub(super) fn compact<'s>(
    arrow: &SchemaRef,
    segments: impl Iterator<Item = &'s Segment>,
) -> Result<RecordBatch, ArrowError> {
    let mut live = Vec::new();
    for segment in segments {
        live.push(match segment.dead.live(0, segment.batch.num_rows()) {
            Some(filter) => filter_record_batch(&segment.batch, &filter)?,
            None => segment.batch.clone(),
        });
    }
    let merged = concat_batches(arrow, &live)?;
    let columns = merged
        .columns()
        .iter()
        .map(|column| match column.as_any().downcast_ref::<StringViewArray>() {
            Some(texts) => Arc::new(texts.gc()) as ArrayRef,
            None => Arc::clone(column),
        })
        .collect();
    RecordBatch::try_new(Arc::clone(arrow), columns)
}

/// Least and greatest instant of a column.
pub(super) fn stamp_bounds(batch: &RecordBatch, column: usize) -> Option<(i64, i64)> {
    let stamps = batch.columns().get(column)?.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
    let present = || stamps.iter().flatten();
    Some((present().min()?, present().max()?))
}
