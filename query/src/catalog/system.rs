//! The tables of schema `system` that are made for each statement: how fresh the snapshot is, which views there are and
//! how they are doing, which tables there are, what the dataflow holds.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use datafusion::{catalog::TableProvider, datasource::MemTable};
use schemas::table::{Table, ViewState, ViewStatus};

use super::Scope;

mod inside;
mod previews;

use previews::Previews;

/// Where they are.
pub(super) const SCHEMA: &str = "system";

/// What they are called.
pub(super) const NAMES: [&str; 6] = ["arrangements", "lag", "snapshot", "tables", "view_previews", "views"];

/// Makes one of them, unless the snapshot has a table of that name.
pub(super) fn table(scope: &Scope, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
    if schema != SCHEMA {
        return None;
    }
    let (schema, columns) = match name {
        "snapshot" => snapshot(scope),
        "views" => views(scope),
        "tables" => tables(scope),
        "arrangements" => inside::arrangements(scope),
        "lag" => inside::lag(scope),
        "view_previews" => return Some(Arc::new(Previews::new(&scope.tables))),
        _ => return None,
    };
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).ok()?;
    Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]]).ok()?))
}

/// Columns under construction.
#[derive(Default)]
struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    fn add(mut self, name: &str, kind: DataType, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name, kind, true));
        self.arrays.push(array);
        self
    }

    fn texts<T: AsRef<str>>(self, name: &str, values: impl Iterator<Item = Option<T>>) -> Self {
        self.add(name, DataType::Utf8, Arc::new(values.collect::<StringArray>()))
    }

    fn numbers(self, name: &str, values: impl Iterator<Item = Option<u64>>) -> Self {
        let values = values.map(|value| value.and_then(|value| i64::try_from(value).ok()));
        self.add(name, DataType::Int64, Arc::new(values.collect::<Int64Array>()))
    }

    fn instants(self, name: &str, micros: impl Iterator<Item = Option<i64>>) -> Self {
        let array = micros.collect::<TimestampMicrosecondArray>();
        self.add(name, DataType::Timestamp(TimeUnit::Microsecond, None), Arc::new(array))
    }

    fn done(self) -> (SchemaRef, Vec<ArrayRef>) {
        (Arc::new(Schema::new(self.fields)), self.arrays)
    }
}

fn count(number: usize) -> Option<u64> {
    u64::try_from(number).ok()
}

/// One row: what the `X-Millrace-*` headers say, and how far behind the sources of the domain are.
fn snapshot(scope: &Scope) -> (SchemaRef, Vec<ArrayRef>) {
    let snapshot = &scope.snapshot;
    let seen_at = snapshot.seen_at(&scope.domain);
    let behind = scope.now.saturating_sub(seen_at).max(0);
    let moment = snapshot.moment_of(&scope.domain);
    Columns::default()
        .numbers("tick", [Some(moment.tick.0)].into_iter())
        .instants("as_of", [Some(moment.as_of)].into_iter())
        .texts("complete_through", [Some(moment.complete_through.to_string())].into_iter())
        .numbers("view_errors", [count(scope.view_errors())].into_iter())
        .instants("sources_seen_at", [Some(seen_at)].into_iter())
        .numbers("sources_behind_ms", [u64::try_from(behind / 1000).ok()].into_iter())
        .add("stalled", DataType::Boolean, Arc::new(BooleanArray::from(vec![behind > scope.stalled_after])))
        .done()
}

/// One row per installed view.
fn views(scope: &Scope) -> (SchemaRef, Vec<ArrayRef>) {
    let views = || scope.tables.views.iter();
    let table = |view: &ViewStatus| -> Option<&Arc<Table>> {
        view.tables.iter().find_map(|name| scope.tables.tables.get(name))
    };
    let progress = || {
        views().map(|view| match &view.state {
            ViewState::Building(progress) => Some(progress),
            _ => None,
        })
    };
    let columns = Columns::default()
        .texts("id", views().map(|view| Some(&view.id)))
        .texts("kind", views().map(|view| Some(view.kind)))
        .texts("table", views().map(|view| view.tables.first().map(ToString::to_string)))
        .texts(
            "state",
            views().map(|view| {
                Some(match view.state {
                    ViewState::Waiting => "waiting",
                    ViewState::Building(_) => "building",
                    ViewState::Paused { .. } => "paused",
                    ViewState::Live => "live",
                    ViewState::Failed { .. } => "failed",
                })
            }),
        )
        .numbers("done", progress().map(|progress| Some(progress?.done)))
        .numbers("total", progress().map(|progress| Some(progress?.total)))
        .numbers("rate", progress().map(|progress| Some(progress?.rate)))
        .numbers("seconds_left", progress().map(|progress| progress?.seconds_left))
        .instants("started_at", progress().map(|progress| Some(progress?.started_at)))
        .texts(
            "message",
            views().map(|view| match &view.state {
                ViewState::Failed { message } => Some(message.clone()),
                ViewState::Paused { source: Some(source) } => Some(format!("it reads `{source}`, which is paused")),
                _ => None,
            }),
        )
        .numbers("rows", views().map(|view| table(view).and_then(|table| count(table.live_rows))))
        .numbers("errors", views().map(|view| table(view).and_then(|table| count(table.errors))))
        .numbers("changed_at_tick", views().map(|view| table(view).map(|table| table.changed_at.0)));
    inside::of_views(scope, columns).done()
}

/// One row per name of a live table.
fn tables(scope: &Scope) -> (SchemaRef, Vec<ArrayRef>) {
    let tables = || scope.tables.tables.iter();
    let key = |table: &Table| {
        let names = table.schema.key.iter().filter_map(|at| table.schema.columns.get(*at));
        names.map(|column| column.name.as_str()).collect::<Vec<_>>().join(",")
    };
    Columns::default()
        .texts("table_schema", tables().map(|(name, _)| Some(&name.schema)))
        .texts("table_name", tables().map(|(name, _)| Some(&name.name)))
        .texts("key", tables().map(|(_, table)| Some(key(table))))
        .numbers("columns", tables().map(|(_, table)| count(table.schema.columns.len())))
        .numbers("rows", tables().map(|(_, table)| count(table.live_rows)))
        .numbers("dead_rows", tables().map(|(_, table)| count(table.dead_rows())))
        .numbers("segments", tables().map(|(_, table)| count(table.segments.len())))
        .numbers("errors", tables().map(|(_, table)| count(table.errors)))
        .numbers("changed_at_tick", tables().map(|(_, table)| Some(table.changed_at.0)))
        .done()
}
