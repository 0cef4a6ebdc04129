//! Rows of live tables: cells, column types and table schemas.

use std::{cmp::Ordering, hash::Hash, sync::Arc};

use arrow_array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array, Int64Array,
    ListArray, StringArray, StringViewArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};
use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use crate::doc::Doc;

/// Digits behind the point in decimal columns (architecture, names fixed once).
pub const DECIMAL_SCALE: i8 = 16;
/// Digits in all of decimal columns.
pub const DECIMAL_PRECISION: u8 = 38;

/// A float that is equal to itself and totally ordered, so that rows can be compared and hashed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Real {}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// One value of a row. Cells of one column are all of its [`ColumnType`] or null.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cell {
    /// No value.
    Null,
    /// Of a [`ColumnType::Boolean`].
    Bool(bool),
    /// Of any integer column.
    Int(i64),
    /// Of a decimal column, times 10^[`DECIMAL_SCALE`].
    Decimal(i128),
    /// Of a [`ColumnType::Float`].
    Float(Real),
    /// Of a text column.
    Text(CompactString),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970 UTC.
    Datetime(i64),
    /// Of a [`ColumnType::TextList`].
    List(Box<[Cell]>),
    /// Of a [`ColumnType::Document`].
    Document(Doc),
}

/// The cells of a row, in the order of its schema's columns.
pub type Row = Arc<[Cell]>;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// Unbounded text.
    Text,
    /// 32 bits.
    Integer,
    /// 16 bits.
    SmallInteger,
    /// 64 bits; counts and sums of integers.
    BigInteger,
    /// 38 digits, 16 of them behind the point.
    Decimal,
    /// 64-bit float.
    Float,
    /// A calendar day.
    Date,
    /// An instant, UTC, microseconds.
    Datetime,
    /// A list of texts.
    TextList,
    /// True or false.
    Boolean,
    /// A whole document, which readers see as JSON text. It is kept as the dataflow has it, once, and written out for whoever
    /// reads it. At most the last column of a table.
    Document,
}

impl ColumnType {
    /// The Arrow type of such a column.
    #[must_use]
    pub fn arrow(self) -> DataType {
        match self {
            Self::Text | Self::Document => DataType::Utf8View,
            Self::Integer => DataType::Int32,
            Self::SmallInteger => DataType::Int16,
            Self::BigInteger => DataType::Int64,
            Self::Decimal => DataType::Decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
            Self::Float => DataType::Float64,
            Self::Date => DataType::Date32,
            Self::Datetime => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TextList => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            Self::Boolean => DataType::Boolean,
        }
    }

    /// The cell at `row` of an array of that type; null if the array is of another type. Documents lie in no array.
    #[must_use]
    pub fn cell(self, array: &ArrayRef, row: usize) -> Cell {
        fn of<T: 'static>(array: &ArrayRef) -> Option<&T> {
            array.as_any().downcast_ref()
        }
        if array.is_null(row) {
            return Cell::Null;
        }
        let value = match self {
            Self::Text => of::<StringViewArray>(array).map(|a| Cell::Text(a.value(row).into())),
            Self::Integer => of::<Int32Array>(array).map(|a| Cell::Int(a.value(row).into())),
            Self::SmallInteger => of::<Int16Array>(array).map(|a| Cell::Int(a.value(row).into())),
            Self::BigInteger => of::<Int64Array>(array).map(|a| Cell::Int(a.value(row))),
            Self::Decimal => of::<Decimal128Array>(array).map(|a| Cell::Decimal(a.value(row))),
            Self::Float => of::<Float64Array>(array).map(|a| Cell::Float(Real(a.value(row)))),
            Self::Date => of::<Date32Array>(array).map(|a| Cell::Date(a.value(row))),
            Self::Datetime => of::<TimestampMicrosecondArray>(array).map(|a| Cell::Datetime(a.value(row))),
            Self::Boolean => of::<BooleanArray>(array).map(|a| Cell::Bool(a.value(row))),
            Self::TextList => of::<ListArray>(array).and_then(|a| {
                let items = a.value(row);
                let items = items.as_any().downcast_ref::<StringArray>()?;
                let texts = items.iter().map(|item| item.map_or(Cell::Null, |text| Cell::Text(text.into())));
                Some(Cell::List(texts.collect()))
            }),
            Self::Document => None,
        };
        value.unwrap_or(Cell::Null)
    }
}

/// A column of a live table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name in SQL.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// False: a null fails the document (ucr.md §3.9).
    pub nullable: bool,
}

impl Column {
    /// A column that may be null.
    #[must_use]
    pub fn new(name: &str, column_type: ColumnType) -> Self {
        Self { name: name.to_owned(), column_type, nullable: true }
    }

    /// A column that is never null.
    #[must_use]
    pub fn required(name: &str, column_type: ColumnType) -> Self {
        Self { nullable: false, ..Self::new(name, column_type) }
    }
}

/// The shape of a live table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Indexes of the columns that identify a row.
    pub key: Vec<usize>,
}

impl TableSchema {
    /// Index of the column of that name.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The Arrow schema that readers see, fields in column order.
    #[must_use]
    pub fn arrow(&self) -> SchemaRef {
        Self::fields(&self.columns)
    }

    /// The columns that lie in Arrow arrays: all but the one of documents.
    #[must_use]
    pub fn stored(&self) -> &[Column] {
        match self.columns.split_last() {
            Some((last, others)) if last.column_type == ColumnType::Document => others,
            _ => &self.columns,
        }
    }

    /// The Arrow schema of [`Self::stored`].
    #[must_use]
    pub fn stored_arrow(&self) -> SchemaRef {
        Self::fields(self.stored())
    }

    fn fields(columns: &[Column]) -> SchemaRef {
        let fields: Vec<Field> =
            columns.iter().map(|c| Field::new(&c.name, c.column_type.arrow(), c.nullable)).collect();
        Arc::new(arrow_schema::Schema::new(fields))
    }
}
