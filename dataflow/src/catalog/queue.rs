//! Which builds go on, and which wait for them.

use std::collections::{BTreeMap, BTreeSet};

use schemas::id::DomainId;

use crate::{config::DataflowConfig, view::ViewNo};

/// Builds in the order in which they were asked for. A few of them go on at once, so that live changes are not
/// evaluated for all that wait; of one domain even fewer, unless no other domain's wait.
#[derive(Debug)]
pub(super) struct Queue {
    at_once: usize,
    per_domain: usize,
    /// Nobody reads yet, so all may go on at once.
    starting: bool,
    waiting: BTreeSet<ViewNo>,
    running: BTreeMap<ViewNo, DomainId>,
}

impl Queue {
    pub(super) fn new(config: &DataflowConfig) -> Self {
        Self {
            at_once: config.builds_at_once.get(),
            per_domain: config.builds_per_domain.get(),
            starting: true,
            waiting: BTreeSet::new(),
            running: BTreeMap::new(),
        }
    }

    /// Keeps to the limits from now on.
    pub(super) const fn started(&mut self) {
        self.starting = false;
    }

    /// Lets a build wait for its turn.
    pub(super) fn enter(&mut self, no: ViewNo) {
        self.waiting.insert(no);
    }

    /// Forgets a build, which is complete, held or given up.
    pub(super) fn leave(&mut self, no: ViewNo) {
        self.waiting.remove(&no);
        self.running.remove(&no);
    }

    pub(super) fn waits(&self, no: ViewNo) -> bool {
        self.waiting.contains(&no)
    }

    /// The next build to begin, if one may: the first of a domain that does not have its share yet, else the first.
    /// Aggregate views come after what they read (`reads`).
    pub(super) fn next<'d, R: Iterator<Item = ViewNo>>(
        &mut self,
        domain: impl Fn(ViewNo) -> Option<&'d DomainId>,
        reads: impl Fn(ViewNo) -> R,
    ) -> Option<ViewNo> {
        if self.running.len() >= self.at_once && !self.starting {
            return None;
        }
        let can = || self.waiting.iter().copied().filter(|no| !reads(*no).any(|input| self.waits(input)));
        let running = |of: &DomainId| self.running.values().filter(|domain| *domain == of).count();
        let entitled = |no: &ViewNo| domain(*no).is_some_and(|of| running(of) < self.per_domain);
        let no = can().find(entitled).or_else(|| can().next())?;
        self.waiting.remove(&no);
        self.running.insert(no, domain(no)?.clone());
        Some(no)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn builds_begin_in_order_and_each_domain_has_its_share() {
        let (a, b) = (DomainId::new("a").unwrap(), DomainId::new("b").unwrap());
        let limit = |n| NonZeroUsize::new(n).unwrap();
        let config =
            DataflowConfig { builds_at_once: limit(3), builds_per_domain: limit(2), ..DataflowConfig::default() };
        let mut queue = Queue::new(&config);
        queue.started();
        (1..=7).for_each(|no| queue.enter(ViewNo(no)));
        // The sixth and seventh are the other domain's; the third reads the fourth.
        let domain = |no: ViewNo| Some(if no.0 > 5 { &b } else { &a });
        let reads = |no: ViewNo| (no.0 == 3).then_some(ViewNo(4)).into_iter();
        let begun = |queue: &mut Queue| std::iter::from_fn(|| Some(queue.next(domain, reads)?.0)).collect::<Vec<_>>();
        assert_eq!(begun(&mut queue), [1, 2, 6]);
        queue.leave(ViewNo(6));
        assert_eq!(begun(&mut queue), [7]);
        queue.leave(ViewNo(7));
        assert_eq!(begun(&mut queue), [4], "no other domain waits");
        queue.leave(ViewNo(5));
        queue.leave(ViewNo(1));
        assert_eq!(begun(&mut queue), [3]);
        queue.leave(ViewNo(2));
        assert!(begun(&mut queue).is_empty());
    }
}
