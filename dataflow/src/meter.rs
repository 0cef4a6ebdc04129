//! What is held and what views cost, counted where it changes.
//!
//! Every worker has counters of its own, so that none waits for another; who reads adds them up. A counter counts for as
//! long as the part that it belongs to keeps it, and is forgotten with that part.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use parking_lot::Mutex;
use schemas::{
    change::DocKind,
    id::DomainId,
    inside::{Held, Measured, ViewCost},
};

use crate::relation::RelationKind;

/// So many evaluations of a view are all timed; of those that follow, every so manieth.
const TIMED: u64 = 64;

/// What a [`Gauge`] counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Present documents of a kind.
    Documents(DocKind),
    /// Who asked which question of a kind.
    Questions(RelationKind),
    /// Documents in answers to questions of a kind.
    Answers(RelationKind),
    /// Rows of a data source, by the columns that a view joins it by.
    Index(Arc<str>),
    /// Rows of an aggregate view that wait to meet those of a joined table.
    Joins(Arc<str>),
    /// Groups of an aggregate view.
    Groups(Arc<str>),
}

impl Part {
    fn held(&self, count: i64, bytes: i64) -> Held {
        let (part, name, has_bytes) = match self {
            Self::Documents(kind) => ("documents", kind.name(), true),
            Self::Questions(kind) => ("questions", kind.name(), true),
            Self::Answers(kind) => ("answers", kind.name(), true),
            Self::Index(source) => ("index", &**source, false),
            Self::Joins(view) => ("joins", &**view, false),
            Self::Groups(view) => ("groups", &**view, false),
        };
        let positive = |number| u64::try_from(number).unwrap_or_default();
        Held { part, name: name.to_owned(), count: positive(count), bytes: has_bytes.then(|| positive(bytes)) }
    }
}

/// A number of things and their bytes. One thread writes it.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    count: AtomicI64,
    bytes: AtomicI64,
}

impl Gauge {
    /// So many more, or fewer, with so many bytes in all.
    pub(crate) fn add(&self, count: isize, bytes: isize) {
        add(&self.count, count);
        add(&self.bytes, bytes);
    }

    /// The number is this now.
    pub(crate) fn set(&self, count: usize) {
        self.count.store(i64::try_from(count).unwrap_or_default(), Relaxed);
    }
}

fn add(to: &AtomicI64, more: isize) {
    to.store(to.load(Relaxed) + i64::try_from(more).unwrap_or_default(), Relaxed);
}

/// How often a view was evaluated, and the time that took. One thread writes it.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    changes: AtomicU64,
    timed: AtomicU64,
    nanos: AtomicU64,
}

impl Cost {
    /// Counts an evaluation and times it, if it is among those that are.
    ///
    /// To look at the clock twice costs a tenth of what a simple view does; done once in 64 times, it does not show.
    pub(crate) fn evaluation<T>(&self, run: impl FnOnce() -> T) -> T {
        let before = self.changes.load(Relaxed);
        self.changes.store(before + 1, Relaxed);
        if before >= TIMED && !before.is_multiple_of(TIMED) {
            return run();
        }
        let started = Instant::now();
        let done = run();
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or_default();
        self.nanos.store(self.nanos.load(Relaxed) + took, Relaxed);
        self.timed.store(self.timed.load(Relaxed) + 1, Relaxed);
        done
    }

    /// Evaluations, and the time of all of them in nanoseconds, as those that were timed suggest.
    fn so_far(&self) -> (u64, u64) {
        let (changes, timed, nanos) = (self.changes.load(Relaxed), self.timed.load(Relaxed), self.nanos.load(Relaxed));
        let all = u128::from(nanos) * u128::from(changes) / u128::from(timed.max(1));
        (changes, u64::try_from(all).unwrap_or(u64::MAX))
    }
}

/// The counters of each domain.
type Counters<K, T> = BTreeMap<DomainId, BTreeMap<K, Vec<Weak<T>>>>;

#[derive(Debug, Default)]
struct Registered {
    gauges: Counters<Part, Gauge>,
    /// By the kind and the id of the view.
    costs: Counters<(&'static str, Arc<str>), Cost>,
}

/// All counters of all workers.
///
/// A lock because workers come to it when a domain or a view is new and readers when somebody asks; it is never held for
/// the counting itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meters(Arc<Mutex<Registered>>);

impl Meters {
    /// A new counter, which counts together with others of the same part.
    pub(crate) fn gauge(&self, domain: &DomainId, part: Part) -> Arc<Gauge> {
        let gauge = Arc::default();
        register(self.0.lock().gauges.entry(domain.clone()).or_default().entry(part).or_default(), &gauge);
        gauge
    }

    /// A new counter of what a view costs. `kind` is that of its definition.
    pub(crate) fn cost(&self, domain: &DomainId, kind: DocKind, view: &str) -> Arc<Cost> {
        let cost = Arc::default();
        let key = (kind.name(), Arc::from(view));
        register(self.0.lock().costs.entry(domain.clone()).or_default().entry(key).or_default(), &cost);
        cost
    }

    /// What is held of a domain and what its views cost.
    pub(crate) fn measured(&self, domain: &DomainId) -> Measured {
        let mut registered = self.0.lock();
        let mut measured = Measured::default();
        if let Some(gauges) = registered.gauges.get_mut(domain) {
            gauges.retain(|part, gauges| {
                let (count, bytes) = present(gauges, |gauge| (gauge.count.load(Relaxed), gauge.bytes.load(Relaxed)))
                    .fold((0, 0), |sum: (i64, i64), gauge| (sum.0 + gauge.0, sum.1 + gauge.1));
                if count > 0 || bytes > 0 {
                    measured.held.push(part.held(count, bytes));
                }
                !gauges.is_empty()
            });
        }
        if let Some(costs) = registered.costs.get_mut(domain) {
            costs.retain(|(kind, view), costs| {
                let (changes, nanos) = present(costs, Cost::so_far)
                    .fold((0, 0), |sum: (u64, u64), cost| (sum.0 + cost.0, sum.1.saturating_add(cost.1)));
                if !costs.is_empty() {
                    measured.costs.push(ViewCost { kind, view: view.to_string(), changes, nanos });
                }
                !costs.is_empty()
            });
        }
        measured
    }
}

/// Adds a counter, in place of those that are gone.
fn register<T>(counters: &mut Vec<Weak<T>>, counter: &Arc<T>) {
    counters.retain(|counter| counter.strong_count() > 0);
    counters.push(Arc::downgrade(counter));
}

/// The values of the counters that are still there; forgets the others.
fn present<T, V>(counters: &mut Vec<Weak<T>>, value: impl Fn(&T) -> V) -> impl Iterator<Item = V> {
    let mut values = Vec::with_capacity(counters.len());
    counters.retain(|counter| counter.upgrade().map(|counter| values.push(value(&counter))).is_some());
    values.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_part_add_up_and_go_with_who_keeps_them() {
        let meters = Meters::default();
        let (domain, other) = (DomainId::new("demo").unwrap(), DomainId::new("other").unwrap());
        let part = || Part::Documents(DocKind::Case);
        let (first, second) = (meters.gauge(&domain, part()), meters.gauge(&domain, part()));
        let elsewhere = meters.gauge(&other, part());
        first.add(3, 300);
        second.add(2, 50);
        second.add(-1, -20);
        elsewhere.add(9, 900);
        let held = |count, bytes| Held { part: "documents", name: "case".to_owned(), count, bytes: Some(bytes) };
        assert_eq!(meters.measured(&domain).held, [held(4, 330)]);
        drop(first);
        assert_eq!(meters.measured(&domain).held, [held(1, 30)]);
        drop(second);
        assert_eq!(meters.measured(&domain), Measured::default());
        assert_eq!(meters.measured(&other).held, [held(9, 900)]);
    }

    #[test]
    fn what_was_timed_speaks_for_all() {
        let cost = Cost::default();
        for _ in 0..TIMED * 3 {
            cost.evaluation(|| ());
        }
        assert_eq!((cost.changes.load(Relaxed), cost.timed.load(Relaxed)), (TIMED * 3, TIMED + 2));
        cost.nanos.store(1000 * (TIMED + 2), Relaxed);
        assert_eq!(cost.so_far(), (TIMED * 3, 1000 * TIMED * 3));
    }
}
