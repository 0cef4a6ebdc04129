//! Rows on the wire: column descriptions, values, and decimals of any scale.
//!
//! Values are encoded by `arrow-pg`, except decimals: its decimal type ends at 28 digits, a product of two decimal columns
//! has a scale of 32. They are written here, as text or in Postgres' base-10,000 form.

use std::sync::Arc;

use ::pgwire::{
    api::{
        Type,
        portal::Format,
        results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse},
    },
    error::{PgWireError, PgWireResult},
    messages::data::DataRow,
    types::format::FormatOptions,
};
use arrow::{
    array::{Array, ArrayRef, BinaryArray, Decimal128Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use datafusion_postgres::arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch};
use futures::StreamExt;

use super::failed;
use crate::{QueryError, engine::Answer};

/// Describes the columns of a result.
///
/// # Errors
/// [`QueryError::Parameter`] if the client's formats do not fit, [`QueryError::Unsupported`] for a type that Postgres
/// has no name for.
pub(super) fn fields(
    schema: &Schema,
    format: &Format,
    options: Option<Arc<FormatOptions>>,
) -> Result<Vec<FieldInfo>, QueryError> {
    if let Format::Individual(formats) = format
        && formats.len() != schema.fields().len()
    {
        return Err(QueryError::Parameter(format!(
            "{} result formats were given for {} columns",
            formats.len(),
            schema.fields().len()
        )));
    }
    arrow_schema_to_pg_fields(schema, format, options).map_err(|error| QueryError::Unsupported(error.to_string()))
}

/// A running statement as a response.
///
/// # Errors
/// As [`fields`].
pub(super) fn respond(
    answer: Answer,
    format: &Format,
    options: Arc<FormatOptions>,
) -> Result<QueryResponse, QueryError> {
    let fields = Arc::new(fields(&answer.schema(), format, Some(options))?);
    let described = Arc::clone(&fields);
    let batches = futures::stream::try_unfold(answer, |mut answer| async move {
        Ok::<_, PgWireError>(answer.next().await.map_err(failed)?.map(|batch| (batch, answer)))
    });
    let rows = batches.flat_map(move |batch| {
        let rows: Vec<PgWireResult<DataRow>> = match batch.and_then(|batch| encode(&batch, &fields)) {
            Ok(rows) => rows,
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(rows)
    });
    Ok(QueryResponse::new(described, rows))
}

fn encode(batch: &RecordBatch, fields: &Arc<Vec<FieldInfo>>) -> PgWireResult<Vec<PgWireResult<DataRow>>> {
    let batch = write_decimals(batch, fields).map_err(failed)?;
    Ok(encode_recordbatch(Arc::clone(fields), batch).collect())
}

/// A single row with a single text.
///
/// # Errors
/// As [`fields`].
pub(super) fn one_text(name: &str, value: &str, format: &Format) -> Result<QueryResponse, QueryError> {
    let fields = Arc::new(vec![text_field(name, format)?]);
    let mut row = DataRowEncoder::new(Arc::clone(&fields));
    row.encode_field(&value).map_err(|error| QueryError::Internal(error.to_string()))?;
    let row = Ok(row.take_row());
    Ok(QueryResponse::new(fields, futures::stream::iter([row])))
}

/// Describes a column of text.
///
/// # Errors
/// As [`fields`].
pub(super) fn text_field(name: &str, format: &Format) -> Result<FieldInfo, QueryError> {
    let schema = Schema::new(vec![Field::new(name, DataType::Utf8, false)]);
    let field = fields(&schema, format, None)?.pop();
    Ok(field.unwrap_or_else(|| FieldInfo::new(name.to_owned(), None, None, Type::TEXT, FieldFormat::Text)))
}

/// Replaces decimal columns by what goes onto the wire.
fn write_decimals(batch: &RecordBatch, fields: &[FieldInfo]) -> Result<RecordBatch, QueryError> {
    if !batch.columns().iter().any(|column| matches!(column.data_type(), DataType::Decimal128(_, _))) {
        return Ok(batch.clone());
    }
    let schema = batch.schema();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    let mut written = Vec::with_capacity(batch.num_columns());
    for ((field, column), description) in schema.fields().iter().zip(batch.columns()).zip(fields) {
        match column.as_any().downcast_ref::<Decimal128Array>() {
            Some(decimals) if description.format() == FieldFormat::Text => {
                let text = |row| (!decimals.is_null(row)).then(|| decimals.value_as_string(row));
                columns.push(Arc::new((0..decimals.len()).map(text).collect::<StringArray>()));
                written.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            }
            Some(decimals) => {
                let scale = u32::try_from(decimals.scale()).unwrap_or_default();
                let bytes = decimals.iter().map(|value| value.map(|value| numeric(value, scale)));
                columns.push(Arc::new(bytes.collect::<BinaryArray>()));
                written.push(Arc::new(Field::new(field.name(), DataType::Binary, true)));
            }
            None => {
                columns.push(Arc::clone(column));
                written.push(Arc::clone(field));
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(written)), columns)?)
}

/// Postgres' binary numeric: count of base-10,000 digits, weight of the first, sign, digits behind the point, digits.
fn numeric(value: i128, scale: u32) -> Vec<u8> {
    let magnitude = value.unsigned_abs();
    // Digits behind the point come in groups of four; pad the last group.
    let padding = (4 - scale % 4) % 4;
    let groups_behind = i16::try_from((scale + padding) / 4).unwrap_or(i16::MAX);
    let mut digits: Vec<u16> = Vec::with_capacity(11);
    let low = 10_u128.pow(padding);
    let mut rest = magnitude;
    if padding > 0 {
        let part = 10_u128.pow(4 - padding);
        digits.push(u16::try_from(rest % part * low).unwrap_or_default());
        rest /= part;
    }
    while rest > 0 {
        digits.push(u16::try_from(rest % 10_000).unwrap_or_default());
        rest /= 10_000;
    }
    // Highest group first, without zeros at either end.
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let weight = i16::try_from(digits.len()).unwrap_or(i16::MAX) - groups_behind - 1;
    let trailing = digits.iter().take_while(|digit| **digit == 0).count();
    let digits: Vec<u16> = digits.into_iter().skip(trailing).rev().collect();
    let mut bytes = Vec::with_capacity(8 + digits.len() * 2);
    bytes.extend(u16::try_from(digits.len()).unwrap_or_default().to_be_bytes());
    bytes.extend((if digits.is_empty() { 0 } else { weight }).to_be_bytes());
    bytes.extend((if value < 0 { 0x4000_u16 } else { 0 }).to_be_bytes());
    bytes.extend(u16::try_from(scale).unwrap_or_default().to_be_bytes());
    bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_in_base_ten_thousand() {
        let header = |digits: &[u16], weight: i16, sign: u16, scale: u16| {
            let count = u16::try_from(digits.len()).unwrap();
            let mut bytes = Vec::new();
            bytes.extend(count.to_be_bytes());
            bytes.extend(weight.to_be_bytes());
            bytes.extend(sign.to_be_bytes());
            bytes.extend(scale.to_be_bytes());
            bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
            bytes
        };
        for (value, scale, expected) in [
            (0, 16, header(&[], 0, 0, 16)),
            (1, 0, header(&[1], 0, 0, 0)),
            (12_345, 0, header(&[1, 2345], 1, 0, 0)),
            (125, 1, header(&[12, 5000], 0, 0, 1)),
            (-125, 1, header(&[12, 5000], 0, 0x4000, 1)),
            (123_456, 5, header(&[1, 2345, 6000], 0, 0, 5)),
            (5, 3, header(&[50], -1, 0, 3)),
            (100_000_000, 0, header(&[1], 2, 0, 0)),
            (10_i128.pow(37), 32, header(&[10], 1, 0, 32)),
        ] {
            assert_eq!(numeric(value, scale), expected, "{value} with scale {scale}");
        }
    }
}
