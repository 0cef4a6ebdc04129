//! Aggregate views: joins, groups and aggregates over other live tables, as a small JSON document.
//!
//! ```json
//! {
//!   "doc_type": "AggregateView", "domain": "demo", "view_id": "districts", "display_name": "Districts",
//!   "from":  {"table": "pregnancies", "as": "p"},
//!   "joins": [{"table": "workers", "as": "w", "on": {"p.owner_id": "w.user_id"}}],
//!   "where": {"column": "p.closed", "operator": "=", "value": 0},
//!   "group_by": [{"column": "w.location_id", "as": "village_id"}],
//!   "aggregates": [
//!     {"function": "count", "as": "n_cases"},
//!     {"function": "count", "as": "n_high", "where": {"column": "p.risk_high", "operator": "=", "value": 1}},
//!     {"function": "sum", "column": "p.anc_count", "as": "sum_anc"}
//!   ]
//! }
//! ```
//!
//! Tables are the domain's data sources by their `table_id`. Joins are inner and by equality; a row without a partner
//! is left out, null keys never meet. `count` counts rows, `count` with a column counts its non-null values; a `sum`
//! over nothing is 0, a `min`, `max` or `avg` over nothing is null. `first` and `last` take a column's value from the row
//! that comes first or last by another one, `top` lists the values of the rows that lead. A group without rows has no row.
//!
//! In: the document and the schemas of the tables it may name. Out: an [`AggregateView`] with every column resolved to a
//! (source, index) pair, or every problem of the document at once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use schemas::row::{Cell, Column, ColumnType, Row, TableSchema};
use serde::Deserialize;
use serde_json::Value;

use crate::{SpecErrors, SpecProblem};

mod predicate;

pub use predicate::Predicate;

/// Most joins of one view.
pub const MAX_JOINS: usize = 8;

/// System column of every aggregate view: stamp of the last change that contributed to the row.
pub const UPDATED_AT: &str = "updated_at";

/// A column of one of the view's sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnRef {
    /// 0 is `from`, 1.. are the joins in order.
    pub source: usize,
    /// Index in that table's schema.
    pub column: usize,
}

/// One table that the view reads.
#[derive(Clone, Debug)]
pub struct Source {
    /// `table_id` of a data source.
    pub table: String,
    /// Its schema when the view was compiled.
    pub schema: Arc<TableSchema>,
}

/// How source number `index + 1` meets those before it.
#[derive(Clone, Debug)]
pub struct Join {
    /// Columns of earlier sources.
    pub left: Vec<ColumnRef>,
    /// Columns of the joined table, parallel to `left`.
    pub right: Vec<usize>,
}

/// Most values that `top` lists.
pub const MAX_TOP: usize = 100;

/// Names of the functions, for messages.
const FUNCTIONS: &str = "count, count_distinct, sum, avg, min, max, first, last, top";

/// What an aggregate computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// Rows, or non-null values of the column.
    Count,
    /// Different non-null values.
    CountDistinct,
    /// Total of the non-null values, 0 without any.
    Sum,
    /// Mean of the non-null values.
    Avg,
    /// Least non-null value.
    Min,
    /// Greatest non-null value.
    Max,
    /// Value, null too, of the row with the least `order_by`. Of several such rows the least non-null value counts.
    First {
        /// Rows where it is null are left out.
        order_by: ColumnRef,
    },
    /// Value, null too, of the row with the greatest `order_by`. Of several such rows the greatest value counts.
    Last {
        /// Rows where it is null are left out.
        order_by: ColumnRef,
    },
    /// Non-null values of the rows that lead by `order_by` and then by value, as a list of texts.
    Top {
        /// Rows where it is null are left out.
        order_by: ColumnRef,
        /// Length of the list, 1 to [`MAX_TOP`].
        n: usize,
        /// The greatest lead, rather than the least.
        descending: bool,
    },
}

impl Function {
    /// The column that rows are ordered by, if their order matters.
    #[must_use]
    pub const fn order_by(self) -> Option<ColumnRef> {
        match self {
            Self::First { order_by } | Self::Last { order_by } | Self::Top { order_by, .. } => Some(order_by),
            Self::Count | Self::CountDistinct | Self::Sum | Self::Avg | Self::Min | Self::Max => None,
        }
    }

    fn order_by_mut(&mut self) -> Option<&mut ColumnRef> {
        match self {
            Self::First { order_by } | Self::Last { order_by } | Self::Top { order_by, .. } => Some(order_by),
            Self::Count | Self::CountDistinct | Self::Sum | Self::Avg | Self::Min | Self::Max => None,
        }
    }
}

/// One aggregate column.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// What it computes.
    pub function: Function,
    /// Over which column; `None` counts rows.
    pub column: Option<ColumnRef>,
    /// Only over rows that pass.
    pub filter: Option<Predicate>,
    /// True if the column holds integers.
    pub over_integers: bool,
    /// Type of the result.
    pub result: ColumnType,
}

/// A compiled aggregate view.
#[derive(Clone, Debug)]
pub struct AggregateView {
    /// Sources: `from` first, then the joins.
    pub sources: Vec<Source>,
    /// One per source after the first.
    pub joins: Vec<Join>,
    /// Only joined rows that pass are grouped.
    pub filter: Option<Predicate>,
    /// Group key.
    pub group_by: Vec<ColumnRef>,
    /// Aggregates in column order.
    pub aggregates: Vec<Aggregate>,
    /// Group columns, then [`UPDATED_AT`], then aggregates; the key is the group columns.
    pub schema: Arc<TableSchema>,
}

impl AggregateView {
    /// The cell of a joined row.
    #[must_use]
    pub fn cell(rows: &[Row], column: ColumnRef) -> &Cell {
        rows.get(column.source).and_then(|row| row.get(column.column)).unwrap_or(&Cell::Null)
    }

    /// The same view over rows that hold nothing but the columns it reads; and for each source those columns, in order.
    #[must_use]
    pub fn narrowed(mut self) -> (Self, Vec<Vec<usize>>) {
        let mut read: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.sources.len()];
        self.columns(&mut |column| {
            if let Some(columns) = read.get_mut(column.source) {
                columns.insert(column.column);
            }
        });
        let read: Vec<Vec<usize>> = read.into_iter().map(|columns| columns.into_iter().collect()).collect();
        self.columns(&mut |column| {
            let place = read.get(column.source).and_then(|columns| columns.binary_search(&column.column).ok());
            column.column = place.unwrap_or(column.column);
        });
        (self, read)
    }

    /// Shows every column that the view reads, wherever it reads it.
    fn columns(&mut self, show: &mut impl FnMut(&mut ColumnRef)) {
        for (i, join) in self.joins.iter_mut().enumerate() {
            join.left.iter_mut().for_each(&mut *show);
            for column in &mut join.right {
                let mut joined = ColumnRef { source: i + 1, column: *column };
                show(&mut joined);
                *column = joined.column;
            }
        }
        self.group_by.iter_mut().for_each(&mut *show);
        for aggregate in &mut self.aggregates {
            aggregate.column.iter_mut().for_each(&mut *show);
            aggregate.function.order_by_mut().into_iter().for_each(&mut *show);
            aggregate.filter.iter_mut().for_each(|filter| filter.columns(show));
        }
        self.filter.iter_mut().for_each(|filter| filter.columns(show));
    }

    /// Names of the tables that a document reads, without compiling it.
    #[must_use]
    pub fn tables_of(document: &Value) -> Vec<String> {
        let name = |of: &Value| of.get("table").and_then(Value::as_str).map(str::to_owned);
        let joins = document.get("joins").and_then(Value::as_array);
        document.get("from").and_then(name).into_iter().chain(joins.into_iter().flatten().filter_map(name)).collect()
    }

    /// Checks and resolves a document. `tables` gives the schema of a data source by its `table_id`.
    ///
    /// # Errors
    /// [`SpecErrors`] with every problem found, each with the JSON pointer of its place.
    pub fn compile(document: &Value, tables: &dyn Fn(&str) -> Option<Arc<TableSchema>>) -> Result<Self, SpecErrors> {
        let spec: Spec = serde_json::from_value(document.clone()).map_err(|error| {
            let message = format!("not an aggregate view document: {error}");
            SpecErrors::from(vec![SpecProblem { pointer: String::new(), message }])
        })?;
        let mut compiler = Compiler { tables, problems: Vec::new(), sources: Vec::new(), names: HashMap::new() };
        let view = compiler.view(&spec);
        if compiler.problems.is_empty() { Ok(view) } else { Err(compiler.problems.into()) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default, rename = "doc_type")]
    _doc_type: Option<String>,
    #[serde(default, rename = "domain")]
    _domain: Option<String>,
    #[serde(default, rename = "view_id")]
    _view_id: Option<String>,
    #[serde(default, rename = "display_name")]
    _display_name: Option<String>,
    from: TableSpec,
    #[serde(default)]
    joins: Vec<JoinSpec>,
    #[serde(default, rename = "where")]
    filter: Option<predicate::Spec>,
    #[serde(default)]
    group_by: Vec<GroupSpec>,
    aggregates: Vec<AggregateSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableSpec {
    table: String,
    #[serde(default, rename = "as")]
    alias: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinSpec {
    table: String,
    #[serde(default, rename = "as")]
    alias: Option<String>,
    on: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupSpec {
    column: String,
    #[serde(default, rename = "as")]
    alias: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregateSpec {
    function: String,
    #[serde(default)]
    column: Option<String>,
    #[serde(default)]
    order_by: Option<String>,
    #[serde(default)]
    n: Option<Value>,
    #[serde(default)]
    descending: Option<bool>,
    #[serde(rename = "as")]
    name: String,
    #[serde(default, rename = "where")]
    filter: Option<predicate::Spec>,
}

struct Compiler<'t> {
    tables: &'t dyn Fn(&str) -> Option<Arc<TableSchema>>,
    problems: Vec<SpecProblem>,
    sources: Vec<Source>,
    names: HashMap<String, usize>,
}

impl Compiler<'_> {
    fn problem(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.problems.push(SpecProblem { pointer: pointer.into(), message: message.into() });
    }

    fn view(&mut self, spec: &Spec) -> AggregateView {
        self.source("/from", &spec.from.table, spec.from.alias.as_deref());
        if spec.joins.len() > MAX_JOINS {
            self.problem("/joins", format!("{} joins, at most {MAX_JOINS} are possible", spec.joins.len()));
        }
        let mut joins = Vec::new();
        for (i, join) in spec.joins.iter().enumerate() {
            let pointer = format!("/joins/{i}");
            let joined = self.sources.len();
            self.source(&pointer, &join.table, join.alias.as_deref());
            joins.push(self.join(&pointer, join, joined));
        }
        let filter = spec.filter.as_ref().and_then(|f| self.predicate("/where", f));
        let mut columns = Vec::new();
        let mut group_by = Vec::new();
        for (i, group) in spec.group_by.iter().enumerate() {
            let Some(column) = self.column(&format!("/group_by/{i}/column"), &group.column) else { continue };
            let default = group.column.rsplit('.').next().unwrap_or_default();
            let name = group.alias.as_deref().unwrap_or(default);
            columns.push(Column::new(name, self.column_type(column)));
            group_by.push(column);
        }
        columns.push(Column::required(UPDATED_AT, ColumnType::Datetime));
        if spec.aggregates.is_empty() {
            self.problem("/aggregates", "at least one aggregate is needed");
        }
        let mut aggregates = Vec::new();
        for (i, aggregate) in spec.aggregates.iter().enumerate() {
            if let Some(compiled) = self.aggregate(&format!("/aggregates/{i}"), aggregate) {
                columns.push(Column::new(&aggregate.name, compiled.result));
                aggregates.push(compiled);
            }
        }
        let mut seen = std::collections::HashSet::new();
        for column in &columns {
            if !seen.insert(column.name.clone()) {
                self.problem("", format!("column `{}` is defined twice", column.name));
            }
        }
        let schema = Arc::new(TableSchema { columns, key: (0..group_by.len()).collect() });
        AggregateView { sources: std::mem::take(&mut self.sources), joins, filter, group_by, aggregates, schema }
    }

    fn source(&mut self, pointer: &str, table: &str, alias: Option<&str>) {
        let schema = (self.tables)(table).unwrap_or_else(|| {
            self.problem(format!("{pointer}/table"), format!("no data source with table_id `{table}` in this domain"));
            Arc::new(TableSchema { columns: Vec::new(), key: Vec::new() })
        });
        let name = alias.unwrap_or(table).to_owned();
        if self.names.insert(name.clone(), self.sources.len()).is_some() {
            self.problem(pointer, format!("two tables are called `{name}`; give one of them another `as`"));
        }
        self.sources.push(Source { table: table.to_owned(), schema });
    }

    fn join(&mut self, pointer: &str, join: &JoinSpec, joined: usize) -> Join {
        let mut compiled = Join { left: Vec::new(), right: Vec::new() };
        if join.on.is_empty() {
            self.problem(format!("{pointer}/on"), "a join needs at least one pair of columns");
        }
        for (left, right) in &join.on {
            let Some(right) = right.as_str() else {
                self.problem(format!("{pointer}/on"), format!("`{left}` must be paired with a column name"));
                continue;
            };
            let at = format!("{pointer}/on");
            let (Some(a), Some(b)) = (self.column(&at, left), self.column(&at, right)) else { continue };
            let (earlier, own) = if b.source == joined { (a, b) } else { (b, a) };
            if own.source != joined || earlier.source >= joined {
                self.problem(at, format!("`{left}` = `{right}` must pair an earlier table with the joined one"));
                continue;
            }
            let (x, y) = (self.column_type(earlier), self.column_type(own));
            if x != y && !(integral(x) && integral(y)) {
                self.problem(at, format!("`{left}` is {x:?}, `{right}` is {y:?}: they never compare equal"));
                continue;
            }
            compiled.left.push(earlier);
            compiled.right.push(own.column);
        }
        compiled
    }

    fn aggregate(&mut self, pointer: &str, spec: &AggregateSpec) -> Option<Aggregate> {
        let column = match &spec.column {
            Some(name) => Some(self.column(&format!("{pointer}/column"), name)?),
            None => None,
        };
        let filter = match &spec.filter {
            Some(filter) => Some(self.predicate(&format!("{pointer}/where"), filter)?),
            None => None,
        };
        let of = column.map(|column| self.column_type(column));
        let function = self.function(pointer, spec)?;
        let result = match (function, of) {
            (Function::Count, _) | (Function::CountDistinct, Some(_)) => ColumnType::BigInteger,
            (_, None) => {
                self.problem(pointer, format!("{} needs a `column`", spec.function));
                return None;
            }
            (Function::Sum, Some(of)) if integral(of) => ColumnType::BigInteger,
            (Function::Sum | Function::Avg, Some(of)) if integral(of) || of == ColumnType::Decimal => {
                ColumnType::Decimal
            }
            (Function::Sum | Function::Avg, Some(of)) => {
                self.problem(pointer, format!("cannot add up a column of type {of:?}"));
                return None;
            }
            (Function::Top { .. }, Some(of)) if !ordered(of) => {
                self.problem(format!("{pointer}/column"), format!("cannot list the values of a column of type {of:?}"));
                return None;
            }
            (Function::Top { .. }, Some(_)) => ColumnType::TextList,
            (Function::Min | Function::Max | Function::First { .. } | Function::Last { .. }, Some(of)) => of,
        };
        Some(Aggregate { function, column, filter, over_integers: of.is_some_and(integral), result })
    }

    /// The function of an aggregate with what it needs beside the column.
    fn function(&mut self, pointer: &str, spec: &AggregateSpec) -> Option<Function> {
        let name = spec.function.as_str();
        let (ordering, listing) = (matches!(name, "first" | "last" | "top"), name == "top");
        let keys = [
            ("order_by", spec.order_by.is_some(), ordering, "`first`, `last` and `top` do"),
            ("n", spec.n.is_some(), listing, "`top` does"),
            ("descending", spec.descending.is_some(), listing, "`top` does"),
        ];
        for (key, _, _, others) in keys.into_iter().filter(|(_, given, takes, _)| *given && !takes) {
            self.problem(format!("{pointer}/{key}"), format!("`{name}` takes no `{key}`, only {others}"));
        }
        Some(match name {
            "count" => Function::Count,
            "count_distinct" => Function::CountDistinct,
            "sum" => Function::Sum,
            "avg" => Function::Avg,
            "min" => Function::Min,
            "max" => Function::Max,
            "first" => Function::First { order_by: self.order_by(pointer, spec)? },
            "last" => Function::Last { order_by: self.order_by(pointer, spec)? },
            "top" => {
                let n = spec.n.as_ref().and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
                let Some(n) = n.filter(|n| (1..=MAX_TOP).contains(n)) else {
                    let expected =
                        format!("top needs `n`, how many values to list: a whole number from 1 to {MAX_TOP}");
                    self.problem(format!("{pointer}/n"), expected);
                    return None;
                };
                let order_by = self.order_by(pointer, spec)?;
                Function::Top { order_by, n, descending: spec.descending.unwrap_or(true) }
            }
            other => {
                let message = format!("unknown function `{other}` (expected {FUNCTIONS})");
                self.problem(format!("{pointer}/function"), message);
                return None;
            }
        })
    }

    /// The column that an aggregate orders rows by; `top` orders them by the values themselves if nothing else is named.
    fn order_by(&mut self, pointer: &str, spec: &AggregateSpec) -> Option<ColumnRef> {
        let (at, name) = match (&spec.order_by, &spec.column) {
            (Some(name), _) => (format!("{pointer}/order_by"), name),
            (None, Some(name)) if spec.function == "top" => (format!("{pointer}/column"), name),
            _ => {
                let what = "`order_by`, the column that says which row comes first";
                let what = if spec.function == "top" { "a `column`" } else { what };
                self.problem(pointer, format!("{} needs {what}", spec.function));
                return None;
            }
        };
        let column = self.column(&at, name)?;
        let of = self.column_type(column);
        if !ordered(of) {
            self.problem(at, format!("rows have no order by a column of type {of:?}"));
            return None;
        }
        Some(column)
    }

    fn predicate(&mut self, pointer: &str, spec: &predicate::Spec) -> Option<Predicate> {
        predicate::compile(spec, pointer, &mut |at, name| {
            let column = self.column(at, name)?;
            Some((column, self.column_type(column)))
        })
        .map_err(|problems| self.problems.extend(problems))
        .ok()
    }

    fn column_type(&self, column: ColumnRef) -> ColumnType {
        self.sources
            .get(column.source)
            .and_then(|source| source.schema.columns.get(column.column))
            .map_or(ColumnType::Text, |column| column.column_type)
    }

    /// Resolves `alias.column`, or a bare name that only one source has.
    fn column(&mut self, pointer: &str, name: &str) -> Option<ColumnRef> {
        if let Some((alias, column)) = name.split_once('.') {
            let Some(source) = self.names.get(alias).copied() else {
                self.problem(pointer, format!("no table is called `{alias}` in this view"));
                return None;
            };
            let found = self.sources.get(source).and_then(|s| s.schema.position(column));
            // A table that does not exist was reported already; its columns are not reported again.
            let known = self.sources.get(source).is_some_and(|s| !s.schema.columns.is_empty());
            if found.is_none() && known {
                self.problem(pointer, format!("`{alias}` has no column `{column}`"));
            }
            return Some(ColumnRef { source, column: found? });
        }
        let found: Vec<ColumnRef> = self
            .sources
            .iter()
            .enumerate()
            .filter_map(|(source, s)| Some(ColumnRef { source, column: s.schema.position(name)? }))
            .collect();
        match found.as_slice() {
            [one] => Some(*one),
            [] => {
                if self.sources.iter().all(|s| !s.schema.columns.is_empty()) {
                    self.problem(pointer, format!("no table of this view has a column `{name}`"));
                }
                None
            }
            _ => {
                self.problem(pointer, format!("several tables have a column `{name}`; write `table.{name}`"));
                None
            }
        }
    }
}

const fn integral(of: ColumnType) -> bool {
    matches!(of, ColumnType::Integer | ColumnType::SmallInteger | ColumnType::BigInteger)
}

/// True if values of the type are less or greater than one another.
const fn ordered(of: ColumnType) -> bool {
    !matches!(of, ColumnType::TextList | ColumnType::Document)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tables(name: &str) -> Option<Arc<TableSchema>> {
        let columns = match name {
            "visits" => vec![
                Column::new("doc_id", ColumnType::Text),
                Column::new("owner_id", ColumnType::Text),
                Column::new("qty", ColumnType::Integer),
                Column::new("kg", ColumnType::Decimal),
                Column::new("tags", ColumnType::TextList),
            ],
            "workers" => vec![Column::new("user_id", ColumnType::Text), Column::new("name", ColumnType::Text)],
            _ => return None,
        };
        Some(Arc::new(TableSchema { columns, key: vec![0] }))
    }

    #[test]
    fn resolves_columns_and_types() {
        let view = AggregateView::compile(
            &json!({
                "from": {"table": "visits", "as": "v"},
                "joins": [{"table": "workers", "as": "w", "on": {"v.owner_id": "w.user_id"}}],
                "where": {"and": [{"column": "qty", "operator": ">", "value": 0}, {"not": {"column": "kg", "operator": "is_null"}}]},
                "group_by": [{"column": "w.name", "as": "worker"}],
                "aggregates": [
                    {"function": "count", "as": "n"},
                    {"function": "sum", "column": "qty", "as": "total"},
                    {"function": "avg", "column": "v.kg", "as": "mean"},
                    {"function": "max", "column": "v.doc_id", "as": "greatest"},
                    {"function": "last", "column": "v.kg", "order_by": "v.doc_id", "as": "newest"},
                    {"function": "top", "column": "v.qty", "n": 3, "as": "most"}]
            }),
            &tables,
        )
        .unwrap();
        let names: Vec<_> = view.schema.columns.iter().map(|c| (c.name.as_str(), c.column_type)).collect();
        assert_eq!(
            names,
            [
                ("worker", ColumnType::Text),
                ("updated_at", ColumnType::Datetime),
                ("n", ColumnType::BigInteger),
                ("total", ColumnType::BigInteger),
                ("mean", ColumnType::Decimal),
                ("greatest", ColumnType::Text),
                ("newest", ColumnType::Decimal),
                ("most", ColumnType::TextList)
            ]
        );
        let quantity = ColumnRef { source: 0, column: 2 };
        assert_eq!(view.aggregates[5].function, Function::Top { order_by: quantity, n: 3, descending: true });
        assert_eq!(view.joins[0].left, [ColumnRef { source: 0, column: 1 }]);
        assert_eq!(view.joins[0].right, [0]);
        assert_eq!(view.group_by, [ColumnRef { source: 1, column: 1 }]);
    }

    #[test]
    fn a_narrowed_view_reads_the_same_cells() {
        let view = AggregateView::compile(
            &json!({
                "from": {"table": "visits", "as": "v"},
                "joins": [{"table": "workers", "as": "w", "on": {"v.owner_id": "w.user_id"}}],
                "where": {"not": {"column": "kg", "operator": "is_null"}},
                "group_by": [{"column": "w.user_id"}],
                "aggregates": [{"function": "count", "as": "n", "where": {"column": "v.owner_id", "operator": "=", "value": "a"}},
                    {"function": "first", "column": "w.user_id", "order_by": "v.kg", "as": "lightest"}]
            }),
            &tables,
        )
        .unwrap();
        let (narrow, read) = view.clone().narrowed();
        assert_eq!(read, [vec![1, 3], vec![0]]);
        let wide: [Row; 2] = [
            vec![Cell::Int(0), Cell::Int(1), Cell::Int(2), Cell::Int(3)].into(),
            vec![Cell::Int(4), Cell::Int(5)].into(),
        ];
        let few: Vec<Row> =
            wide.iter().zip(&read).map(|(row, read)| read.iter().map(|at| row[*at].clone()).collect()).collect();
        let cells = |mut view: AggregateView, rows: &[Row]| {
            let mut cells = Vec::new();
            view.columns(&mut |column| cells.push(AggregateView::cell(rows, *column).clone()));
            cells
        };
        assert_eq!(cells(view, &wide), cells(narrow, &few));
    }

    #[test]
    fn reports_every_problem_with_its_place() {
        let errors = AggregateView::compile(
            &json!({
                "from": {"table": "visits"},
                "joins": [{"table": "nowhere", "on": {"owner_id": "nowhere.id"}}, {"table": "workers", "on": {"qty": "workers.name"}}],
                "group_by": [{"column": "visits.colour"}],
                "aggregates": [{"function": "sum", "column": "owner_id", "as": "x"}, {"function": "sum", "as": "y"}]
            }),
            &tables,
        )
        .unwrap_err();
        let places: Vec<_> = errors.problems.iter().map(|p| p.pointer.clone()).collect();
        assert_eq!(places, ["/joins/0/table", "/joins/1/on", "/group_by/0/column", "/aggregates/0", "/aggregates/1"]);
    }

    #[test]
    fn what_an_aggregate_lacks_or_cannot_take_is_said() {
        let problem = |aggregate: Value| {
            let view = json!({"from": {"table": "visits"}, "aggregates": [aggregate]});
            let errors = AggregateView::compile(&view, &tables).unwrap_err();
            let [SpecProblem { pointer, message }] = errors.problems.as_slice() else { panic!("{errors}") };
            format!("{}: {message}", pointer.strip_prefix("/aggregates/0").unwrap())
        };
        let refused = [
            (json!({"function": "median", "as": "x"}), "/function: unknown function `median` (expected count, "),
            (json!({"function": "first", "column": "qty", "as": "x"}), ": first needs `order_by`, the column that"),
            (json!({"function": "last", "order_by": "kg", "as": "x"}), ": last needs a `column`"),
            (
                json!({"function": "last", "column": "qty", "order_by": "colour", "as": "x"}),
                "/order_by: no table of this view has a column `colour`",
            ),
            (
                json!({"function": "first", "column": "qty", "order_by": "tags", "as": "x"}),
                "/order_by: rows have no order by a column of type TextList",
            ),
            (json!({"function": "top", "n": 3, "as": "x"}), ": top needs a `column`"),
            (json!({"function": "top", "column": "qty", "as": "x"}), "/n: top needs `n`, how many values to list: a"),
            (json!({"function": "top", "column": "qty", "n": 101, "as": "x"}), "/n: top needs `n`"),
            (json!({"function": "top", "column": "qty", "n": "3", "as": "x"}), "/n: top needs `n`"),
            (
                json!({"function": "top", "column": "tags", "order_by": "kg", "n": 3, "as": "x"}),
                "/column: cannot list the values of a column of type TextList",
            ),
            (
                json!({"function": "max", "column": "qty", "order_by": "kg", "as": "x"}),
                "/order_by: `max` takes no `order_by`, only `first`, `last` and `top` do",
            ),
            (
                json!({"function": "first", "column": "qty", "order_by": "kg", "descending": true, "as": "x"}),
                "/descending: `first` takes no `descending`, only `top` does",
            ),
        ];
        for (aggregate, expected) in refused {
            let said = problem(aggregate.clone());
            assert!(said.starts_with(expected), "{aggregate}: {said}");
        }
    }
}
