//! The tables that look inside the dataflow: what is held and what it costs, and what is behind.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array},
    datatypes::{DataType, SchemaRef},
};
use schemas::{
    inside::ViewCost,
    table::{Table, TableName, ViewStatus},
};

use super::{Columns, count};
use crate::catalog::Scope;

impl Columns {
    fn reals(self, name: &str, values: impl Iterator<Item = Option<f64>>) -> Self {
        self.add(name, DataType::Float64, Arc::new(values.collect::<Float64Array>()))
    }
}

/// Microseconds of so many nanoseconds, to the nearest thousandth.
fn micros(nanos: u64) -> f64 {
    // Exact up to a hundred days of them.
    #[expect(clippy::cast_precision_loss, reason = "a figure of that length is an estimate anyway")]
    let nanos = nanos as f64;
    nanos / 1000.0
}

fn micros_per_change(cost: &ViewCost) -> Option<f64> {
    Some(micros(cost.nanos.checked_div(cost.changes)?))
}

/// One row of `system.arrangements`.
#[derive(Default)]
struct Line {
    part: &'static str,
    name: String,
    count: Option<u64>,
    dead: Option<u64>,
    bytes: Option<u64>,
    index_bytes: Option<u64>,
    cost: Option<ViewCost>,
}

/// One row per thing that is held: documents by kind, tables, questions and answers, joins, groups; and one per view that
/// costs time.
pub(super) fn arrangements(scope: &Scope) -> (SchemaRef, Vec<ArrayRef>) {
    let measured = scope.reader.measured(&scope.domain);
    let tables = distinct(scope).into_iter().map(|(name, table)| Line {
        part: "table",
        name: name.to_string(),
        count: count(table.live_rows),
        dead: count(table.dead_rows()),
        bytes: count(table.bytes()),
        index_bytes: count(table.index_bytes()),
        cost: None,
    });
    let held = measured.held.into_iter().map(|held| Line {
        part: held.part,
        name: held.name,
        count: Some(held.count),
        bytes: held.bytes,
        ..Line::default()
    });
    let costs = measured.costs.into_iter().map(|cost| Line {
        part: if cost.kind == "data_source" { "evaluation" } else { "grouping" },
        name: cost.view.clone(),
        count: Some(cost.changes),
        cost: Some(cost),
        ..Line::default()
    });
    let lines: Vec<Line> = tables.chain(held).chain(costs).collect();
    let lines = || lines.iter();
    Columns::default()
        .texts("part", lines().map(|line| Some(line.part)))
        .texts("name", lines().map(|line| Some(&line.name)))
        .numbers("count", lines().map(|line| line.count))
        .numbers("dead", lines().map(|line| line.dead))
        .numbers("bytes", lines().map(|line| line.bytes))
        .numbers("index_bytes", lines().map(|line| line.index_bytes))
        .reals("cpu_us", lines().map(|line| line.cost.as_ref().map(|cost| micros(cost.nanos))))
        .reals("cpu_us_per_change", lines().map(|line| line.cost.as_ref().and_then(micros_per_change)))
        .done()
}

/// Each table once, under its shortest name, in the order of those.
fn distinct(scope: &Scope) -> BTreeMap<&TableName, &Table> {
    let mut shortest: BTreeMap<*const Table, (&TableName, &Table)> = BTreeMap::new();
    for (name, table) in scope.tables.tables.iter() {
        let held = shortest.entry(Arc::as_ptr(table)).or_insert((name, table));
        if name.name.len() < held.0.name.len() {
            held.0 = name;
        }
    }
    shortest.into_values().collect()
}

/// One row per lane of the change log, and one for the domain while its tables stay behind.
pub(super) fn lag(scope: &Scope) -> (SchemaRef, Vec<ArrayRef>) {
    struct Late {
        kind: &'static str,
        name: String,
        position: String,
        seen_at: i64,
        stalled: Option<bool>,
    }
    let snapshot = &scope.snapshot;
    let since = |at: i64| scope.now.saturating_sub(at).max(0);
    let positions = snapshot.moment.complete_through.positions();
    let lanes = positions.zip(snapshot.lanes()).map(|(position, (lane, seen_at))| Late {
        kind: "lane",
        name: lane.to_string(),
        position: position.to_string(),
        seen_at,
        stalled: Some(since(seen_at) > scope.stalled_after),
    });
    let behind = scope.tables.behind.as_ref().map(|moment| Late {
        kind: "domain",
        name: scope.domain.to_string(),
        position: moment.complete_through.to_string(),
        seen_at: moment.as_of,
        stalled: None,
    });
    let all: Vec<Late> = lanes.chain(behind).collect();
    let rows = || all.iter();
    let seconds = |late: &Late| {
        let nanos = u64::try_from(since(late.seen_at)).unwrap_or_default().saturating_mul(1000);
        micros(nanos) / 1e6
    };
    Columns::default()
        .texts("kind", rows().map(|late| Some(late.kind)))
        .texts("name", rows().map(|late| Some(&late.name)))
        .texts("position", rows().map(|late| Some(&late.position)))
        .instants("seen_at", rows().map(|late| Some(late.seen_at)))
        .reals("seconds_behind", rows().map(|late| Some(seconds(late))))
        .add("stalled", DataType::Boolean, Arc::new(rows().map(|late| late.stalled).collect::<BooleanArray>()))
        .done()
}

/// What views cost and hold, as columns of `system.views`.
pub(super) fn of_views(scope: &Scope, columns: Columns) -> Columns {
    let costs = scope.reader.measured(&scope.domain).costs;
    let costs: HashMap<_, _> = costs.iter().map(|cost| ((cost.kind, cost.view.as_str()), cost)).collect();
    let cost = |view: &ViewStatus| costs.get(&(view.kind, view.id.as_str())).and_then(|cost| micros_per_change(cost));
    let views = || scope.tables.views.iter();
    let table = |view: &ViewStatus| view.tables.iter().find_map(|name| scope.tables.tables.get(name));
    let bytes = |table: &Arc<Table>| count(table.bytes() + table.index_bytes());
    columns
        .reals("cpu_us_per_change", views().map(cost))
        .numbers("bytes", views().map(|view| table(view).and_then(bytes)))
}
