//! Aggregate views: differences of rows in, groups out (architecture D6).
//!
//! Joins are differential joins shared by all views: one arrangement holds every joined table's rows by (index, key),
//! and each of the [`MAX_JOINS`] levels joins the rows that have come that far. What comes out is grouped here; the
//! arithmetic is that of [`Accumulator`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    id::DomainId,
    row::{Cell, Row},
};
use udf::aggregate_view::AggregateView;

use crate::{
    meter::{Cost, Gauge, Meters, Part},
    rows::IndexNo,
    table::KeyedRows,
    view::{Instance, Logic, ViewNo},
};

mod accumulator;

use accumulator::Accumulator;

/// One row of each source joined so far.
pub(crate) type Joined = Vec<Row>;

/// Key of a join: which index, and the values of its columns.
pub(crate) type JoinKey = (IndexNo, Vec<Cell>);

struct Installed {
    instance: Arc<Instance>,
    /// The index behind each join.
    indexes: Vec<IndexNo>,
    groups: HashMap<Vec<Cell>, Group>,
    /// Once its table is gone and what it was given is being taken back: the indexes that go with it.
    retired: Option<Vec<IndexNo>>,
    cost: Arc<Cost>,
    /// Rows that wait to meet those of a joined table.
    joining: Arc<Gauge>,
    /// Number of groups.
    grouped: Arc<Gauge>,
}

/// The rows of a joined table by some of its columns.
struct Index {
    columns: Vec<usize>,
    held: Arc<Gauge>,
}

struct Group {
    rows: i64,
    accumulators: Vec<Accumulator>,
}

/// Aggregate views of one worker.
#[derive(Default)]
pub(crate) struct Aggregates {
    views: HashMap<ViewNo, Installed>,
    touched: BTreeSet<(ViewNo, Vec<Cell>)>,
    indexes: HashMap<IndexNo, Index>,
    meters: Meters,
}

/// What to do with a row that has been joined to some depth.
pub(crate) enum Next {
    /// Join it by this key.
    Join(JoinKey),
    /// All sources are joined.
    Done,
    /// It meets nothing: a key is null, or the view is gone.
    Drop,
}

impl Aggregates {
    /// No views; what they will hold and cost is counted by `meters`.
    pub(crate) fn new(meters: &Meters) -> Self {
        Self { meters: meters.clone(), ..Self::default() }
    }

    /// Adds a view whose joins use these indexes.
    pub(crate) fn install(&mut self, instance: &Arc<Instance>, indexes: Vec<IndexNo>) {
        let (domain, id) = (&instance.domain, instance.id.as_str());
        let installed = Installed {
            instance: Arc::clone(instance),
            indexes,
            groups: HashMap::new(),
            retired: None,
            cost: self.meters.cost(domain, DocKind::AggregateView, id),
            joining: self.meters.gauge(domain, Part::Joins(id.into())),
            grouped: self.meters.gauge(domain, Part::Groups(id.into())),
        };
        self.views.insert(instance.no, installed);
    }

    /// Marks a view retired and returns the indexes that no other view uses; `None` if it is not an aggregate view.
    pub(crate) fn retire(&mut self, no: ViewNo) -> Option<Vec<IndexNo>> {
        let mut unused: BTreeSet<IndexNo> = self.views.get(&no)?.indexes.iter().copied().collect();
        let others = self.views.iter().filter(|(other, view)| **other != no && view.retired.is_none());
        for index in others.flat_map(|(_, view)| &view.indexes) {
            unused.remove(index);
        }
        let unused: Vec<IndexNo> = unused.into_iter().collect();
        self.views.get_mut(&no)?.retired = Some(unused.clone());
        Some(unused)
    }

    /// Forgets a retired view and the indexes that went with it.
    pub(crate) fn forget(&mut self, no: ViewNo) {
        let gone = self.views.remove(&no);
        self.touched.retain(|(view, _)| *view != no);
        for index in gone.and_then(|view| view.retired).unwrap_or_default() {
            self.indexes.remove(&index);
        }
    }

    /// Registers an index over the table of a data source, by these of its columns.
    pub(crate) fn index(&mut self, no: IndexNo, columns: Vec<usize>, domain: &DomainId, source: &str) {
        let held = self.meters.gauge(domain, Part::Index(source.into()));
        self.indexes.insert(no, Index { columns, held });
    }

    /// The key of a row that enters or leaves an index; `None` if a part of it is null.
    pub(crate) fn index_key(&self, no: IndexNo, row: &Row, diff: isize) -> Option<JoinKey> {
        let Index { columns, held } = self.indexes.get(&no)?;
        let key: Vec<Cell> = columns.iter().map(|column| row.get(*column).cloned().unwrap_or(Cell::Null)).collect();
        if key.contains(&Cell::Null) {
            return None;
        }
        held.add(diff, 0);
        Some((no, key))
    }

    /// Where a row that enters or leaves goes after it has met `rows.len() - 1` joins.
    pub(crate) fn next(&self, no: ViewNo, rows: &Joined, diff: isize) -> Next {
        let Some(installed) = self.views.get(&no) else { return Next::Drop };
        let Logic::Groups { view, .. } = &installed.instance.logic else { return Next::Drop };
        let level = rows.len().saturating_sub(1);
        let (Some(join), Some(index)) = (view.joins.get(level), installed.indexes.get(level)) else {
            return Next::Done;
        };
        let key: Vec<Cell> = join.left.iter().map(|column| AggregateView::cell(rows, *column).clone()).collect();
        if key.contains(&Cell::Null) {
            return Next::Drop;
        }
        installed.joining.add(diff, 0);
        Next::Join((*index, key))
    }

    /// Group of a joined row, for sharing groups out among workers.
    pub(crate) fn group(&self, no: ViewNo, rows: &Joined) -> Option<Vec<Cell>> {
        let Logic::Groups { view, .. } = &self.views.get(&no)?.instance.logic else { return None };
        group(view, rows)
    }

    /// Adds a difference to the group of a joined row.
    pub(crate) fn add(&mut self, no: ViewNo, rows: &Joined, diff: isize) {
        let Some(Installed { instance, groups, cost, .. }) = self.views.get_mut(&no) else { return };
        let Logic::Groups { view, .. } = &instance.logic else { return };
        let diff = i64::try_from(diff).unwrap_or_default();
        let touched = cost.evaluation(|| {
            let key = group(view, rows)?;
            let group = groups.entry(key.clone()).or_insert_with(|| Group {
                rows: 0,
                accumulators: view.aggregates.iter().map(Accumulator::new).collect(),
            });
            group.rows += diff;
            for (aggregate, accumulator) in view.aggregates.iter().zip(&mut group.accumulators) {
                if aggregate.filter.as_ref().is_none_or(|filter| filter.passes(rows)) {
                    accumulator.add(aggregate, rows, diff);
                }
            }
            Some(key)
        });
        self.touched.extend(touched.map(|key| (no, key)));
    }

    /// Takes the groups that changed: per view, each group's key text and its row (none if it is empty now).
    pub(crate) fn changed(&mut self, stamp: i64) -> BTreeMap<ViewNo, Vec<KeyedRows>> {
        let mut changed: BTreeMap<ViewNo, Vec<KeyedRows>> = BTreeMap::new();
        for (no, key) in std::mem::take(&mut self.touched) {
            let Some(installed) = self.views.get_mut(&no) else { continue };
            let Logic::Groups { view, .. } = &installed.instance.logic else { continue };
            let text: Arc<str> = serde_json::to_string(&key).unwrap_or_default().into();
            let Some(group) = installed.groups.get(&key) else { continue };
            let rows = if group.rows > 0 {
                let aggregates = view.aggregates.iter().zip(&group.accumulators);
                let values = aggregates.map(|(aggregate, accumulator)| accumulator.value(aggregate));
                vec![key.iter().cloned().chain([Cell::Datetime(stamp)]).chain(values).collect()]
            } else {
                // A group that is empty for good has no values left either; one that is being built may have.
                if group.rows == 0 && group.accumulators.iter().all(Accumulator::is_empty) {
                    installed.groups.remove(&key);
                }
                Vec::new()
            };
            installed.grouped.set(installed.groups.len());
            changed.entry(no).or_default().push((text, rows));
        }
        changed
    }
}

/// The group of a joined row, if it is in any.
pub(crate) fn group(view: &AggregateView, rows: &[Row]) -> Option<Vec<Cell>> {
    if view.filter.as_ref().is_some_and(|filter| !filter.passes(rows)) {
        return None;
    }
    Some(view.group_by.iter().map(|column| AggregateView::cell(rows, *column).clone()).collect())
}
