//! Five minutes of history, a point a second.
//!
//! Freshness is what the server itself can know: for every publication that brought newer commits, its time minus the
//! stamp of the newest commit in it, that is from commit to readable. Throughput is how far the lanes' positions moved.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use schemas::{
    port::ViewReader,
    position::Tick,
    table::{Snapshot, Table},
};
use serde::Serialize;

/// How often the published snapshot is looked at; an atomic load when nothing changed.
const LOOK: Duration = Duration::from_millis(10);
/// Length of a point.
const POINT_MICROS: i64 = 1_000_000;
/// Points kept.
pub(super) const POINTS: usize = 300;
/// Publications of one point that are kept for its percentiles.
const SAMPLES: usize = 1_000;

/// One second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    /// Its end, milliseconds since 1970 UTC.
    pub(super) at: i64,
    /// Change records a second.
    pub(super) changes: f64,
    /// Median freshness of its publications, milliseconds.
    pub(super) p50: Option<f64>,
    /// 99th percentile of the same.
    pub(super) p99: Option<f64>,
}

/// The points, oldest first. The lock guards the list and is held to copy or push only.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Point>>);

impl History {
    /// All points.
    pub(super) fn points(&self) -> Vec<Point> {
        self.0.lock().iter().cloned().collect()
    }

    fn push(&self, point: Point) {
        let mut points = self.0.lock();
        if points.len() >= POINTS {
            points.pop_front();
        }
        points.push_back(point);
    }
}

/// Samples until nobody holds the history any more.
pub(super) async fn sample(views: Arc<dyn ViewReader>, history: Weak<History>) {
    let mut watch = Watch::new(&views.snapshot(), now());
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(history) = history.upgrade() else { return };
        if let Some(point) = watch.look(&views.snapshot(), now()) {
            history.push(point);
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[derive(Debug)]
struct Watch {
    tick: Tick,
    newest: i64,
    records: u64,
    since: i64,
    fresh: Vec<i64>,
}

impl Watch {
    fn new(snapshot: &Snapshot, now: i64) -> Self {
        let newest = newest(snapshot, |_| true).unwrap_or(i64::MIN);
        Self { tick: snapshot.moment.tick, newest, records: records(snapshot), since: now, fresh: Vec::new() }
    }

    /// Looks at the published snapshot; returns a point when a second is over.
    fn look(&mut self, snapshot: &Snapshot, now: i64) -> Option<Point> {
        if snapshot.moment.tick != self.tick {
            let seen = self.tick;
            self.tick = snapshot.moment.tick;
            // A view being built brings old commits; they say nothing about freshness.
            let newest = newest(snapshot, |table| table.changed_at > seen).filter(|newest| *newest > self.newest);
            if let Some(newest) = newest {
                self.newest = newest;
                if self.fresh.len() < SAMPLES {
                    self.fresh.push((snapshot.moment.as_of - newest).max(0));
                }
            }
        }
        let elapsed = now - self.since;
        if elapsed < POINT_MICROS {
            return None;
        }
        let records = records(snapshot);
        let moved = records.saturating_sub(self.records);
        (self.records, self.since) = (records, now);
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable();
        Some(Point {
            at: now / 1000,
            changes: (moved as f64 * 1e7 / elapsed as f64).round() / 10.0,
            p50: quantile(&fresh, 50),
            p99: quantile(&fresh, 99),
        })
    }
}

/// The value that so many percent do not exceed, in milliseconds.
fn quantile(sorted: &[i64], percent: usize) -> Option<f64> {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map(|micros| *micros as f64 / 1000.0)
}

fn records(snapshot: &Snapshot) -> u64 {
    snapshot.moment.complete_through.positions().map(|position| position.sequence.0).sum()
}

fn newest(snapshot: &Snapshot, which: impl Fn(&Table) -> bool) -> Option<i64> {
    let tables = snapshot.domains.values().flat_map(|domain| domain.tables.iter().map(|(_, table)| table));
    tables.filter(|table| which(table)).filter_map(|table| newest_stamp(table)).max()
}

/// Stamp of the newest row of a table, microseconds since 1970 UTC.
pub(super) fn newest_stamp(table: &Table) -> Option<i64> {
    table.segments.iter().filter_map(|segment| segment.stamps).map(|(_, newest)| newest).max()
}

#[cfg(test)]
pub(super) mod tests {
    use hashbrown::HashMap;
    use schemas::{
        id::DomainId,
        position::{Frontier, LaneId, Position, Sequence},
        row::{Column, ColumnType, TableSchema},
        table::{DomainTables, Moment, Segment, TableName},
    };

    use super::*;

    /// A snapshot of one table that changed at its tick.
    pub(in crate::status) fn snapshot(tick: u64, as_of: i64, sequence: u64, newest: i64) -> Snapshot {
        let schema =
            Arc::new(TableSchema { columns: vec![Column::required("doc_id", ColumnType::Text)], key: vec![0] });
        let arrow = schema.arrow();
        let batch = arrow_array::RecordBatch::new_empty(Arc::clone(&arrow));
        let table = Arc::new(Table {
            schema,
            arrow,
            segments: Arc::new([Arc::new(Segment {
                batch,
                documents: Arc::default(),
                dead: Arc::default(),
                stamps: Some((0, newest)),
            })]),
            live_rows: 7,
            stamp_column: None,
            index: None,
            changed_at: Tick(tick),
            errors: 2,
        });
        let names = [TableName::new("ucr", "ucr_demo_pregnancies_0a1b2c3d"), TableName::new("ucr", "pregnancies")];
        let tables = names.map(|name| (name, Arc::clone(&table))).into_iter().collect();
        let domain = DomainTables { tables, views: Arc::from([]), behind: None };
        let mut complete_through = Frontier::default();
        complete_through.advance(Position { lane: LaneId::FIRST, sequence: Sequence(sequence) });
        Snapshot {
            moment: Moment { tick: Tick(tick), as_of, complete_through },
            sources_seen_at: as_of,
            lanes_seen_at: std::collections::BTreeMap::new(),
            databases: Arc::default(),
            domains: HashMap::from_iter([(DomainId::new("demo").unwrap(), Arc::new(domain))]),
        }
    }

    #[test]
    fn freshness_is_publication_minus_newest_commit() {
        let mut watch = Watch::new(&snapshot(1, 1_000_000, 10, 900_000), 1_000_000);
        assert_eq!(watch.look(&snapshot(2, 1_104_000, 20, 1_100_000), 1_200_000), None);
        // Publishes nothing newer, as while a view is being built.
        assert_eq!(watch.look(&snapshot(3, 1_500_000, 20, 1_100_000), 1_500_000), None);
        assert_eq!(watch.look(&snapshot(4, 1_808_000, 30, 1_800_000), 1_810_000), None);
        let point = watch.look(&snapshot(4, 1_808_000, 30, 1_800_000), 2_000_000).unwrap();
        assert_eq!(point, Point { at: 2_000, changes: 20.0, p50: Some(4.0), p99: Some(8.0) });
        let point = watch.look(&snapshot(4, 1_808_000, 30, 1_800_000), 3_000_000).unwrap();
        assert_eq!(point, Point { at: 3_000, changes: 0.0, p50: None, p99: None });
    }

    #[test]
    fn history_is_five_minutes() {
        let history = History::default();
        for at in 0..400 {
            history.push(Point { at, changes: 0.0, p50: None, p99: None });
        }
        let points = history.points();
        assert_eq!((points.len(), points[0].at, points[299].at), (POINTS, 100, 399));
    }
}
