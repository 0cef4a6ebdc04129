//! Record batches as JSON, CSV or an Arrow stream, piece by piece.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::StreamWriter,
    json::{StructMode, Writer, WriterBuilder, writer::JsonArray},
    util::display::array_value_to_string,
};

use crate::QueryError;

/// Every instant is UTC.
const INSTANT: &str = "%Y-%m-%dT%H:%M:%S%.6fZ";

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON array of objects.
    Objects,
    /// `{"columns": [{"name", "type"}], "rows": [[…]]}`.
    Table,
    /// CSV with a header line.
    Csv,
    /// Arrow IPC stream.
    Arrow,
}

impl Format {
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Objects | Self::Table => "application/json; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

/// Writes batches of one schema.
pub(crate) struct Encoder {
    inner: Inner,
    schema: SchemaRef,
    out: Vec<u8>,
    begun: bool,
}

enum Inner {
    Objects(Writer<Vec<u8>, JsonArray>),
    Table(Writer<Vec<u8>, JsonArray>),
    Csv,
    Arrow(StreamWriter<Vec<u8>>),
}

impl Encoder {
    pub(crate) fn new(format: Format, schema: &SchemaRef) -> Result<Self, QueryError> {
        let json = |mode| {
            WriterBuilder::new()
                .with_explicit_nulls(true)
                .with_struct_mode(mode)
                .with_timestamp_format(INSTANT.to_owned())
                .build::<_, JsonArray>(Vec::new())
        };
        let mut out = Vec::new();
        let inner = match format {
            Format::Objects => Inner::Objects(json(StructMode::ObjectOnly)),
            Format::Table => {
                let column = |field: &Arc<Field>| serde_json::json!({ "name": field.name(), "type": field.data_type().to_string() });
                let columns: Vec<_> = schema.fields().iter().map(column).collect();
                out.extend_from_slice(b"{\"columns\":");
                serde_json::to_writer(&mut out, &columns).map_err(|error| QueryError::Internal(error.to_string()))?;
                out.extend_from_slice(b",\"rows\":");
                Inner::Table(json(StructMode::ListOnly))
            }
            Format::Csv => Inner::Csv,
            Format::Arrow => Inner::Arrow(StreamWriter::try_new(Vec::new(), schema)?),
        };
        Ok(Self { inner, schema: Arc::clone(schema), out, begun: false })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        match &mut self.inner {
            Inner::Objects(writer) | Inner::Table(writer) => writer.write(batch)?,
            Inner::Csv => csv(&mut self.out, batch, !self.begun)?,
            Inner::Arrow(writer) => writer.write(batch)?,
        }
        self.begun = true;
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> Result<(), QueryError> {
        match &mut self.inner {
            Inner::Objects(writer) | Inner::Table(writer) => writer.finish()?,
            Inner::Csv if !self.begun => csv(&mut self.out, &RecordBatch::new_empty(Arc::clone(&self.schema)), true)?,
            Inner::Csv => {}
            Inner::Arrow(writer) => writer.finish()?,
        }
        if let Inner::Table(writer) = &mut self.inner {
            writer.get_mut().push(b'}');
        }
        Ok(())
    }

    /// What has been written since the last call.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.out);
        match &mut self.inner {
            Inner::Objects(writer) | Inner::Table(writer) => out.append(writer.get_mut()),
            Inner::Csv => {}
            Inner::Arrow(writer) => out.append(writer.get_mut()),
        }
        out
    }
}

fn csv(out: &mut Vec<u8>, batch: &RecordBatch, header: bool) -> Result<(), ArrowError> {
    let flat = flatten(batch)?;
    let mut writer =
        arrow::csv::WriterBuilder::new().with_header(header).with_timestamp_format(INSTANT.to_owned()).build(&mut *out);
    writer.write(&flat)
}

/// Lists become text; CSV has no place for them.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if !batch.columns().iter().any(|column| column.data_type().is_nested()) {
        return Ok(batch.clone());
    }
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if column.data_type().is_nested() {
            let text = |row| (!column.is_null(row)).then(|| array_value_to_string(column, row)).transpose();
            let texts: StringArray = (0..column.len()).map(text).collect::<Result<_, _>>()?;
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(texts));
        } else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
