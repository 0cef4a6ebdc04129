//! The data source document (ucr.md §3): one JSON document to one table, and a changed document to its rows.

use schemas::{
    change::DocKind,
    doc::{Doc, Symbol},
    position::Stamp,
    row::{Cell, Column, Row, TableSchema},
};
use serde_json::Value as Json;

use crate::{
    context::{Context, Memory, Related},
    error::{EvalError, SpecErrors},
    expr::{self, Expr},
    filter::{self, Filter},
    indicator::{self, Indicator, IndicatorColumn},
    names,
    registry::{NameKind, Registry},
    spec::{Compiler, Facts, Named, Spec, join, json_kind},
    value::{List, Value},
};

/// A check of documents (ucr.md §3.5).
#[derive(Debug)]
struct Validation {
    name: Box<str>,
    message: Box<str>,
    filter: Filter,
}

/// A compiled data source.
#[derive(Debug)]
pub struct DataSource {
    domain: Box<str>,
    table_id: Box<str>,
    table_name: String,
    kind: DocKind,
    subtypes: Option<Vec<String>>,
    gate: Option<Gate>,
    deactivated: bool,
    facts: Facts,
    filter: Option<Filter>,
    validations: Vec<Validation>,
    base_items: Option<Expr>,
    indicators: Vec<Indicator>,
    columns: Vec<IndicatorColumn>,
    schema: TableSchema,
    names: DocNames,
}

/// What a document's own property has to be for a data source's filter to pass; found without evaluating anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The property, at the top of the document.
    pub property: Symbol,
    /// The texts it must be one of.
    pub texts: Vec<String>,
}

/// Names that every document is asked for.
#[derive(Debug)]
struct DocNames {
    id: Symbol,
    domain: Symbol,
    doc_type: Symbol,
}

/// `doc_type` of current documents of a kind.
fn current_types(kind: DocKind) -> &'static [&'static str] {
    match kind {
        DocKind::Case => &["CommCareCase"],
        DocKind::Form => &["XFormInstance"],
        DocKind::User => &["CommCareUser"],
        DocKind::WebUser => &["WebUser"],
        // Change records name the class of the store.
        DocKind::Location => &["Location", "SQLLocation"],
        DocKind::LocationType => &["LocationType"],
        DocKind::Group => &["Group"],
        DocKind::LookupTable => &["FixtureDataType"],
        DocKind::LookupRow => &["FixtureDataItem"],
        DocKind::Application => &["Application"],
        DocKind::Ledger
        | DocKind::DataSource
        | DocKind::AggregateView
        | DocKind::NamedExpression
        | DocKind::NamedFilter => &[],
    }
}

/// `doc_type` of deleted documents of a kind.
fn deleted_types(kind: DocKind) -> &'static [&'static str] {
    match kind {
        DocKind::Case => &["CommCareCase-Deleted"],
        DocKind::Form => &["XFormInstance-Deleted", "XFormArchived"],
        _ => &[],
    }
}

impl DataSource {
    /// Compiles a data source document that uses no names but its own.
    ///
    /// # Errors
    /// Every problem of the document, each with its place.
    pub fn compile(json: &Json) -> Result<Self, SpecErrors> {
        Self::compile_in(json, &Registry::default())
    }

    /// Compiles a data source document of a domain that has these named expressions and filters.
    ///
    /// # Errors
    /// Every problem of the document, each with its place.
    pub fn compile_in(json: &Json, domain: &Registry) -> Result<Self, SpecErrors> {
        let empty = serde_json::Map::new();
        let fields = json.as_object().unwrap_or(&empty);
        let mapping = |key: &str| fields.get(key).and_then(Json::as_object);
        let named = Named {
            expressions: mapping("named_expressions"),
            filters: mapping("named_filters"),
            domain: Some(domain),
        };
        let mut compiler = Compiler::new(named);
        if !json.is_object() {
            compiler.problem("", format!("a data source must be a mapping, not {}", json_kind(json)));
        }
        let source = compile(&Spec::new(fields, ""), &mut compiler);
        let (source, facts) = compiler.finish(source)?;
        Ok(Self { facts, ..source })
    }

    /// The table's columns and key.
    #[must_use]
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// The table's full name, `ucr_<domain>_<table_id>_<hash>`.
    #[must_use]
    pub fn table_name(&self) -> &str {
        &self.table_name
    }

    /// The table's short name, `table_id`.
    #[must_use]
    pub fn readable_name(&self) -> &str {
        &self.table_id
    }

    /// The domain the data source belongs to.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The kind of documents it reads.
    #[must_use]
    pub fn kind(&self) -> DocKind {
        self.kind
    }

    /// The case types or xmlns its filter is limited to, as far as they can be inferred (ucr.md §3.3); `None` means that
    /// any may pass.
    #[must_use]
    pub fn subtypes(&self) -> Option<&[String]> {
        self.subtypes.as_deref()
    }

    /// A property besides case type or xmlns that decides whether a document can pass the filter, if one does. Documents that
    /// do not have it right have no rows and no errors.
    #[must_use]
    pub fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    /// False if no document of that case type or xmlns can pass the filter.
    #[must_use]
    pub fn accepts_subtype(&self, subtype: &str) -> bool {
        self.subtypes.as_ref().is_none_or(|known| known.iter().any(|known| known == subtype))
    }

    /// True if rows change as time passes.
    #[must_use]
    pub fn reads_clock(&self) -> bool {
        self.facts.reads_clock
    }

    /// True if rows are made with that named expression or filter of the domain, be it through another one.
    #[must_use]
    pub fn uses(&self, kind: NameKind, name: &str) -> bool {
        self.facts.uses.iter().any(|(of, used)| *of == kind && used == name)
    }

    /// True if the document asks for no table (`is_deactivated`).
    #[must_use]
    pub fn is_deactivated(&self) -> bool {
        self.deactivated
    }

    /// The columns with their datatypes, system columns included.
    #[must_use]
    pub fn columns(&self) -> &[IndicatorColumn] {
        &self.columns
    }

    /// Whether the document is one the table is made of: domain, type and configured filter (ucr.md §3.2).
    ///
    /// # Errors
    /// Where evaluating the filter raises.
    pub fn filter(&self, doc: &Doc, now_micros: i64, related: &mut dyn Related) -> Result<bool, EvalError> {
        if !self.is_of(doc, current_types(self.kind)) {
            return Ok(false);
        }
        let Some(filter) = &self.filter else { return Ok(true) };
        let root = Value::from_node(doc.root());
        filter.test(&root, &mut Context::new(Some(root.clone()), Stamp::default(), now_micros, related))
    }

    /// Whether the document is a deleted one of the kind (ucr.md §3.2).
    #[must_use]
    pub fn deleted_filter(&self, doc: &Doc) -> bool {
        self.is_of(doc, deleted_types(self.kind))
    }

    fn is_of(&self, doc: &Doc, types: &[&str]) -> bool {
        let text = |name: Symbol| doc.get(name).and_then(|node| node.as_text());
        text(self.names.domain) == Some(&self.domain)
            && text(self.names.doc_type).is_some_and(|doc_type| types.contains(&doc_type))
    }

    /// Runs the checks of the data source (ucr.md §3.5).
    ///
    /// # Errors
    /// [`EvalError::Invalid`] naming the checks that refuse the document, or where evaluating one raises.
    pub fn validate(&self, doc: &Doc, now_micros: i64, related: &mut dyn Related) -> Result<(), EvalError> {
        if self.validations.is_empty() {
            return Ok(());
        }
        let root = Value::from_node(doc.root());
        let mut context = Context::new(Some(root.clone()), Stamp::default(), now_micros, related);
        let mut failed = String::new();
        for validation in &self.validations {
            if !validation.filter.test(&root, &mut context)? {
                let separator = if failed.is_empty() { "" } else { "; " };
                failed.push_str(&format!("{separator}{} ({})", validation.name, validation.message));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(EvalError::Invalid { names: failed.into() }) }
    }

    /// The rows of a document: none if it does not pass the filter, else one per base item (ucr.md §3.6).
    ///
    /// `stamp` becomes `inserted_at`; `now_micros` is what the clock expressions read.
    ///
    /// # Errors
    /// If evaluation raises, a check refuses the document, or a column cannot hold a value: the document then has no rows.
    pub fn evaluate(
        &self,
        doc: &Doc,
        stamp: Stamp,
        now_micros: i64,
        related: &mut dyn Related,
    ) -> Result<Vec<Row>, EvalError> {
        let mut related = Memory::new(related);
        if !self.filter(doc, now_micros, &mut related)? {
            return Ok(Vec::new());
        }
        self.validate(doc, now_micros, &mut related)?;
        let root = Value::from_node(doc.root());
        let mut context = Context::new(Some(root.clone()), stamp, now_micros, &mut related);
        let id = match doc.get(self.names.id).map(Value::from_node) {
            Some(Value::Text(id)) => Cell::Text(id.into_compact()),
            _ => return Err(EvalError::raised("the document has no `_id`").in_column("doc_id")),
        };
        let mut cells = Vec::with_capacity(self.schema.columns.len());
        let Some(base_items) = &self.base_items else {
            cells.extend([id, Cell::Datetime(stamp.0)]);
            return Ok(vec![self.row(&root, &mut context, &mut cells)?]);
        };
        let items = items(base_items.eval(&root, &mut context)?);
        let mut rows = Vec::with_capacity(items.len());
        for (item, iteration) in items.iter().zip(0..) {
            context.start_iteration(iteration);
            cells.extend([id.clone(), Cell::Datetime(stamp.0), Cell::Int(iteration)]);
            rows.push(self.row(&item, &mut context, &mut cells)?);
        }
        Ok(rows)
    }

    fn row<'a>(
        &'a self,
        item: &Value<'a>,
        context: &mut Context<'a, '_>,
        cells: &mut Vec<Cell>,
    ) -> Result<Row, EvalError> {
        for indicator in &self.indicators {
            indicator.cells(item, context, cells)?;
        }
        Ok(cells.drain(..).collect())
    }
}

/// What a base item expression's value stands for: null for nothing, a list for its elements, anything else for itself.
fn items(value: Value<'_>) -> List<'_> {
    match value {
        Value::Null => List::Values([].into()),
        Value::List(list) => list,
        other => List::Values([other].into()),
    }
}

fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> DataSource {
    let domain = spec.text("domain", compiler).unwrap_or_default();
    let table_id = spec.text("table_id", compiler).unwrap_or_default();
    if spec.raw("registry_slug").is_some_and(|json| !json.is_null())
        || spec.raw("doc_type").and_then(Json::as_str) == Some("RegistryDataSourceConfiguration")
    {
        compiler.problem("", "data sources over a registry of several domains are not supported");
    }
    for key in ["named_expressions", "named_filters"] {
        spec.optional_mapping(key, compiler);
    }
    let kind = kind(spec, compiler);
    let filter =
        spec.optional("configured_filter").map(|json| filter::compile(json, &spec.at("configured_filter"), compiler));
    let base_items = spec
        .optional_mapping("base_item_expression", compiler)
        .map(|fields| expr::compile_fields(fields, &spec.at("base_item_expression"), compiler));
    let mut indicators = Vec::new();
    for (i, json) in spec.optional_list("configured_indicators", compiler).iter().enumerate() {
        let pointer = join(&spec.at("configured_indicators"), &i.to_string());
        indicators.push((pointer.clone(), indicator::compile(json, &pointer, compiler)));
    }
    let validations = validations(spec, compiler);
    let mut columns = system_columns(base_items.is_some());
    for (pointer, indicator) in &indicators {
        for column in indicator.columns() {
            if columns.iter().any(|known| known.id == column.id) {
                compiler.problem(pointer, format!("there is already a column `{}`", column.id));
            }
            columns.push(column.clone());
        }
    }
    check_indexes(spec, &columns, compiler);
    let key = key(spec, &columns, compiler);
    let subtype = match kind {
        DocKind::Case => Some("type"),
        DocKind::Form => Some("xmlns"),
        _ => None,
    };
    let subtypes = subtype.zip(filter.as_ref()).and_then(|(property, filter)| filter.values_of(property));
    let gate = filter.as_ref().and_then(|filter| filter.gate(subtype));
    let gate = gate.map(|(property, texts)| Gate { property: Symbol::intern(&property), texts });
    DataSource {
        domain: domain.into(),
        table_id: table_id.into(),
        table_name: names::table_name(domain, table_id),
        kind,
        subtypes,
        gate,
        deactivated: spec.flag("is_deactivated", false, compiler),
        facts: Facts::default(),
        filter,
        validations,
        base_items,
        indicators: indicators.into_iter().map(|(_, indicator)| indicator).collect(),
        schema: TableSchema { columns: columns.iter().map(sql_column).collect(), key },
        columns,
        names: DocNames {
            id: Symbol::intern("_id"),
            domain: Symbol::intern("domain"),
            doc_type: Symbol::intern("doc_type"),
        },
    }
}

fn sql_column(column: &IndicatorColumn) -> Column {
    Column {
        name: names::column_name(&column.id),
        column_type: column.datatype.column_type(),
        nullable: !column.is_required(),
    }
}

fn kind(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> DocKind {
    match spec.text("referenced_doc_type", compiler) {
        Some("CommCareCase") | None => DocKind::Case,
        Some("XFormInstance") => DocKind::Form,
        Some("CommCareUser") => DocKind::User,
        Some("Location") => DocKind::Location,
        Some(other) => {
            let known = "CommCareCase, CommCareUser, Location, XFormInstance";
            let message = format!("`{other}` cannot be read by a data source (known: {known})");
            compiler.problem(&spec.at("referenced_doc_type"), message);
            DocKind::Case
        }
    }
}

/// The columns every table has (ucr.md §3.7).
fn system_columns(repeats: bool) -> Vec<IndicatorColumn> {
    use crate::coerce::DataType;
    let column =
        |id: &str, datatype, primary_key| IndicatorColumn { id: id.to_owned(), datatype, nullable: false, primary_key };
    let mut columns = vec![column("doc_id", DataType::String, true), column("inserted_at", DataType::Datetime, false)];
    if repeats {
        columns.push(column("repeat_iteration", DataType::Integer, true));
    }
    columns
}

fn validations(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Vec<Validation> {
    let mut validations = Vec::new();
    for (i, json) in spec.optional_list("validations", compiler).iter().enumerate() {
        let pointer = join(&spec.at("validations"), &i.to_string());
        let Some(fields) = json.as_object() else {
            compiler.problem(&pointer, format!("a validation must be a mapping, not {}", json_kind(json)));
            continue;
        };
        let validation = Spec::new(fields, &pointer);
        validations.push(Validation {
            name: validation.text("name", compiler).unwrap_or_default().into(),
            message: validation.text("error_message", compiler).unwrap_or_default().into(),
            filter: validation.filter("expression", compiler),
        });
    }
    validations
}

fn check_indexes(spec: &Spec<'_>, columns: &[IndicatorColumn], compiler: &mut Compiler<'_>) {
    for (i, json) in spec.optional_list("sql_column_indexes", compiler).iter().enumerate() {
        let pointer = join(&spec.at("sql_column_indexes"), &i.to_string());
        let Some(fields) = json.as_object() else {
            compiler.problem(&pointer, format!("an index must be a mapping, not {}", json_kind(json)));
            continue;
        };
        let index = Spec::new(fields, &pointer);
        for (j, id) in index.optional_texts("column_ids", compiler).into_iter().enumerate() {
            if !columns.iter().any(|column| column.id == id) {
                let pointer = join(&index.at("column_ids"), &j.to_string());
                compiler.problem(&pointer, format!("there is no column `{id}` to index"));
            }
        }
    }
}

/// The key's columns; `sql_settings.primary_key` may give their order.
fn key(spec: &Spec<'_>, columns: &[IndicatorColumn], compiler: &mut Compiler<'_>) -> Vec<usize> {
    let flagged: Vec<usize> =
        columns.iter().enumerate().filter(|(_, column)| column.primary_key).map(|(i, _)| i).collect();
    let Some(fields) = spec.optional_mapping("sql_settings", compiler) else { return flagged };
    let settings = Spec::new(fields, &spec.at("sql_settings"));
    let wanted = settings.optional_texts("primary_key", compiler);
    if wanted.is_empty() {
        return flagged;
    }
    let ordered: Vec<usize> =
        wanted.iter().filter_map(|id| columns.iter().position(|column| column.id == *id)).collect();
    let same = ordered.len() == wanted.len()
        && ordered.len() == flagged.len()
        && flagged.iter().all(|column| ordered.contains(column));
    if !same {
        let flagged: Vec<&str> = columns.iter().filter(|c| c.primary_key).map(|c| c.id.as_str()).collect();
        let message = format!("must name exactly the columns of the key, in any order: {}", flagged.join(", "));
        compiler.problem(&settings.at("primary_key"), message);
        return flagged_positions(columns);
    }
    ordered
}

fn flagged_positions(columns: &[IndicatorColumn]) -> Vec<usize> {
    columns.iter().enumerate().filter(|(_, column)| column.primary_key).map(|(i, _)| i).collect()
}
