//! A view as a value: one installed version of a definition, and everything that follows from it.
//!
//! Installing, replacing and dropping a view is data that travels with a tick (architecture D6): the graph never
//! changes. A replaced definition is a second instance that is built beside the first.

use std::{collections::BTreeSet, sync::Arc};

use schemas::{
    change::DocKind,
    id::DomainId,
    row::{Cell, Column, ColumnType, Row, TableSchema},
};
use udf::{
    DataSource, Gate,
    aggregate_view::{AggregateView, UPDATED_AT},
};

use crate::{checkpoint::KeptTable, document::Version, relation::RelationKind};

/// Number of an installed instance; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct ViewNo(pub(crate) u32);

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// A UTC day, which is UCR's "today" (architecture, names fixed once).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Day(i64);

impl Day {
    /// The day of an instant, microseconds since 1970 UTC.
    pub(crate) const fn of(micros: i64) -> Self {
        Self(micros.div_euclid(DAY_MICROS))
    }

    /// The instant of this day that is nearest to `micros`.
    pub(crate) fn nearest(self, micros: i64) -> i64 {
        let start = self.0.saturating_mul(DAY_MICROS);
        micros.clamp(start, start.saturating_add(DAY_MICROS - 1))
    }
}

/// How an instance makes its rows.
#[derive(Clone, Debug)]
pub(crate) enum Logic {
    /// Rows of one document (and those it reads).
    Rows(RowLogic),
    /// Groups over the rows of other instances.
    Groups {
        /// The compiled definition, over the columns that it reads.
        view: Arc<AggregateView>,
        /// The instance behind each of its sources, and the columns that are read of it.
        inputs: Vec<(ViewNo, Arc<[usize]>)>,
    },
}

impl Logic {
    /// Name of the column that grows with every change of a row.
    pub(crate) const fn stamp_column(&self) -> &'static str {
        match self {
            Self::Rows(RowLogic::Source(_)) => "inserted_at",
            Self::Rows(RowLogic::Documents(_)) => "indexed_on",
            Self::Groups { .. } => UPDATED_AT,
        }
    }
}

/// What turns a document into rows.
#[derive(Clone, Debug)]
pub(crate) enum RowLogic {
    /// A UCR data source.
    Source(Arc<DataSource>),
    /// The built-in table of all documents of a kind.
    Documents(DocKind),
}

impl RowLogic {
    /// Kind of the documents it reads.
    pub(crate) fn kind(&self) -> DocKind {
        match self {
            Self::Source(source) => source.kind(),
            Self::Documents(kind) => *kind,
        }
    }

    /// Kind under which it is defined; a built-in table goes by the kind of its documents.
    pub(crate) const fn definition(&self) -> DocKind {
        match self {
            Self::Source(_) => DocKind::DataSource,
            Self::Documents(kind) => *kind,
        }
    }

    /// Kinds of question that its rows may ask about other documents.
    pub(crate) fn relations(&self) -> BTreeSet<RelationKind> {
        match self {
            Self::Source(source) => {
                source.demands().iter().filter_map(|demand| RelationKind::of(&demand.relation)).collect()
            }
            Self::Documents(_) => BTreeSet::new(),
        }
    }

    /// A property that decides whether a document can pass its filter, if one does.
    pub(crate) fn gate(&self) -> Option<&Gate> {
        match self {
            Self::Source(source) => source.gate(),
            Self::Documents(_) => None,
        }
    }

    /// Case types or xmlns values that can pass its filter, if they are known.
    pub(crate) fn subtypes(&self) -> Option<&[String]> {
        match self {
            Self::Source(source) => source.subtypes(),
            Self::Documents(_) => None,
        }
    }
}

/// One installed version of a view.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) no: ViewNo,
    pub(crate) domain: DomainId,
    /// Id of the definition, for error rows.
    pub(crate) id: String,
    pub(crate) logic: Logic,
    pub(crate) schema: Arc<TableSchema>,
    /// Column that grows with every change of a row.
    pub(crate) stamp_column: Option<usize>,
    /// The day that its rows are of, if they change with the day.
    pub(crate) day: Option<Day>,
}

/// What workers are told at the beginning of a tick.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Start building an instance.
    Install(Arc<Instance>),
    /// Take an instance's table from a checkpoint.
    Restore(Arc<Instance>, Arc<KeptTable>),
    /// Forget an instance and its table. What an aggregate view was given is taken back.
    Retire(ViewNo),
    /// All workers have taken back what a retired aggregate view was given: nothing of it comes any more.
    Forget(ViewNo),
    /// Stop walking documents for an instance; it follows live changes all the same.
    Hold(ViewNo),
    /// Go on walking.
    Resume(ViewNo),
    /// The table of an instance is published from this tick on.
    Publish(ViewNo),
}

/// The built-in tables: each is called after a kind of document and has all documents of that kind.
pub(crate) const DOCUMENT_TABLES: [(&str, DocKind); 10] = [
    ("case_documents", DocKind::Case),
    ("form_documents", DocKind::Form),
    ("user_documents", DocKind::User),
    ("web_user_documents", DocKind::WebUser),
    ("location_documents", DocKind::Location),
    ("location_type_documents", DocKind::LocationType),
    ("group_documents", DocKind::Group),
    ("lookup_table_documents", DocKind::LookupTable),
    ("lookup_row_documents", DocKind::LookupRow),
    ("application_documents", DocKind::Application),
];

/// Schema of a kind's built-in table: the document's id, properties that readers filter and order by, the stamp of its last
/// change, and the whole document.
pub(crate) fn documents(kind: DocKind) -> TableSchema {
    let text = |name| Column::new(name, ColumnType::Text);
    let at = |name| Column::new(name, ColumnType::Datetime);
    let flag = |name| Column::new(name, ColumnType::Boolean);
    let number = |name| Column::new(name, ColumnType::BigInteger);
    let properties = match kind {
        DocKind::Case => vec![
            text("type"),
            text("name"),
            text("owner_id"),
            text("external_id"),
            flag("closed"),
            flag("deleted"),
            at("opened_on"),
            at("closed_on"),
            at("modified_on"),
            at("server_modified_on"),
        ],
        DocKind::Form => vec![
            text("xmlns"),
            text("app_id"),
            text("user_id"),
            text("doc_type"),
            at("received_on"),
            at("server_modified_on"),
        ],
        DocKind::User => vec![text("username"), text("location_id"), flag("is_active")],
        DocKind::WebUser => vec![text("username")],
        DocKind::Location => vec![
            text("name"),
            text("site_code"),
            text("external_id"),
            text("location_type"),
            text("parent_id"),
            flag("is_archived"),
        ],
        DocKind::LocationType => vec![text("name"), text("code")],
        DocKind::Group | DocKind::Application => vec![text("name")],
        DocKind::LookupTable => vec![text("tag")],
        DocKind::LookupRow => vec![text("data_type_id"), number("sort_key")],
        DocKind::Ledger
        | DocKind::DataSource
        | DocKind::AggregateView
        | DocKind::NamedExpression
        | DocKind::NamedFilter => Vec::new(),
    };
    let mut columns = vec![Column::required("doc_id", ColumnType::Text)];
    columns.extend(properties);
    columns.push(Column::required("indexed_on", ColumnType::Datetime));
    columns.push(Column::required("document", ColumnType::Document));
    TableSchema { columns, key: vec![0] }
}

/// Schema of `system.view_errors`.
pub(crate) fn view_errors() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::required("view", ColumnType::Text),
            Column::required("doc_id", ColumnType::Text),
            Column::required("message", ColumnType::Text),
            Column::required("at", ColumnType::Datetime),
        ],
        key: vec![0, 1],
    }
}

/// The row of a document in the built-in table whose columns are `schema`: each column is the property of that name,
/// but for the document's id, stamp, state and text.
pub(crate) fn document_row(schema: &TableSchema, id: &str, version: &Version) -> Row {
    use schemas::doc::{Node, Symbol, View};
    let property = |name: &str| version.doc.get(Symbol::intern(name));
    let cell = |column: &Column| match (column.name.as_str(), column.column_type) {
        ("doc_id", _) => Cell::Text(id.into()),
        ("indexed_on", _) => Cell::Datetime(version.stamp.0),
        ("document", _) => Cell::Document(version.doc.clone()),
        ("deleted", _) => {
            let doc_type = property("doc_type").and_then(Node::as_text);
            Cell::Bool(doc_type.is_some_and(|doc_type| doc_type.ends_with("-Deleted")))
        }
        (name, ColumnType::Boolean) => match property(name).map(Node::view) {
            Some(View::Bool(value)) => Cell::Bool(value),
            _ => Cell::Null,
        },
        (name, ColumnType::BigInteger) => match property(name).map(Node::view) {
            Some(View::Integer(value)) => Cell::Int(value),
            _ => Cell::Null,
        },
        (name, ColumnType::Datetime) => {
            let text = property(name).and_then(Node::as_text);
            text.and_then(schemas::time::parse_micros).map_or(Cell::Null, Cell::Datetime)
        }
        (name, _) => property(name).and_then(Node::as_text).map_or(Cell::Null, |text| Cell::Text(text.into())),
    };
    schema.columns.iter().map(cell).collect()
}
