//! From rows to Arrow columns.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, RecordBatch, StringViewArray, TimestampMicrosecondArray,
    builder::{
        BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder,
        ListBuilder, StringBuilder, StringViewBuilder, TimestampMicrosecondBuilder,
    },
};
use arrow_schema::{ArrowError, SchemaRef};
use arrow_select::{concat::concat_batches, filter::filter_record_batch};
use schemas::{
    doc::Doc,
    row::{Cell, ColumnType, DECIMAL_PRECISION, DECIMAL_SCALE, Real, TableSchema},
    table::Segment,
};

/// Longest text that lies in the view itself, in bytes.
const INLINE: usize = 12;
/// Merged batches of up to so many rows get one buffer for the texts of a column.
const COPIED_ROWS: usize = 8192;
/// And so do larger ones when one row in so many is dead.
const COPIED_DEAD: usize = 8;

/// Builds the record batch of some rows, and their documents. A cell of another type than its column becomes null.
pub(super) fn batch<'r>(
    schema: &TableSchema,
    arrow: &SchemaRef,
    rows: &(impl ExactSizeIterator<Item = &'r [Cell]> + Clone),
) -> Result<Content, ArrowError> {
    let columns = schema
        .stored()
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.clone().map(|row| row.get(at).unwrap_or(&Cell::Null));
            array(column.column_type, rows.len(), cells)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let documents = rows.clone().filter_map(|row| match row.last() {
        Some(Cell::Document(doc)) => Some(doc.clone()),
        _ => None,
    });
    Ok(Content { batch: RecordBatch::try_new(Arc::clone(arrow), columns)?, documents: documents.collect() })
}

/// What a segment holds: rows, and the document of each if the table has a column of documents.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) batch: RecordBatch,
    pub(super) documents: Arc<[Doc]>,
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
fn array<'r>(
    column: ColumnType,
    rows: usize,
    cells: impl Iterator<Item = &'r Cell> + Clone,
) -> Result<ArrayRef, ArrowError> {
    Ok(match column {
        ColumnType::Text => {
            // One buffer of just the size: by default blocks grow to megabytes, and the last one stays half empty.
            let long = cells.clone().filter_map(text).map(str::len).filter(|length| *length > INLINE).sum::<usize>();
            let mut builder = StringViewBuilder::with_capacity(rows);
            if let Ok(long) = u32::try_from(long)
                && long > 0
            {
                builder = builder.with_fixed_block_size(long);
            }
            for cell in cells {
                builder.append_option(text(cell));
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
                    builder.values().append_option(text(item));
                }
                builder.append(true);
            }
            Arc::new(builder.finish())
        }
        ColumnType::Document => return Err(ArrowError::SchemaError("documents are the last column".to_owned())),
    })
}

fn text(cell: &Cell) -> Option<&str> {
    match cell {
        Cell::Text(text) => Some(text),
        _ => None,
    }
}

/// One content with the live rows of several segments, in order. Texts are copied together, without those of dead rows, while
/// batches are small; in large ones that have few dead rows they stay where they are.
pub(super) fn compact<'s>(
    arrow: &SchemaRef,
    segments: impl Iterator<Item = &'s Segment>,
) -> Result<Content, ArrowError> {
    let mut live = Vec::new();
    let mut documents = Vec::new();
    let (mut rows, mut dead) = (0, 0);
    for segment in segments {
        rows += segment.batch.num_rows();
        dead += segment.dead.count();
        live.push(match segment.dead.live(0, segment.batch.num_rows()) {
            Some(filter) => filter_record_batch(&segment.batch, &filter)?,
            None => segment.batch.clone(),
        });
        let with_rows = segment.documents.iter().enumerate();
        documents.extend(with_rows.filter(|(row, _)| !segment.dead.is_dead(*row)).map(|(_, doc)| doc.clone()));
    }
    let documents = documents.into();
    let merged = concat_batches(arrow, &live)?;
    if rows > COPIED_ROWS && dead * COPIED_DEAD < rows {
        return Ok(Content { batch: merged, documents });
    }
    let columns = merged
        .columns()
        .iter()
        .map(|column| match column.as_any().downcast_ref::<StringViewArray>() {
            Some(texts) => Arc::new(texts.gc()) as ArrayRef,
            None => Arc::clone(column),
        })
        .collect();
    Ok(Content { batch: RecordBatch::try_new(Arc::clone(arrow), columns)?, documents })
}

/// Least and greatest instant of a column.
pub(super) fn stamp_bounds(batch: &RecordBatch, column: usize) -> Option<(i64, i64)> {
    let stamps = batch.columns().get(column)?.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
    let present = || stamps.iter().flatten();
    Some((present().min()?, present().max()?))
}
