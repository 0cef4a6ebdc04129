//! Publication: one pointer for everything readers see, and those who wait for a position (architecture D5a, D7).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use schemas::{id::DomainId, port::WaitError, position::Position, table::Snapshot};
use tokio::sync::watch;

/// Holds the newest snapshot.
#[derive(Debug)]
pub(crate) struct Publisher {
    current: ArcSwap<Snapshot>,
    ready: AtomicBool,
    /// Ticks when a snapshot is published; closed when the dataflow stops.
    published: watch::Sender<u64>,
}

impl Publisher {
    pub(crate) fn new() -> Self {
        Self { current: ArcSwap::default(), ready: AtomicBool::new(false), published: watch::Sender::new(0) }
    }

    /// Makes a snapshot the one that new statements read.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        let tick = snapshot.moment.tick.0;
        self.current.store(Arc::new(snapshot));
        self.published.send_replace(tick);
    }

    /// Says that the published snapshot holds everything found at start.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(crate) fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits until a snapshot's tables of the domain cover the position.
    pub(crate) async fn wait_for(
        &self,
        domain: &DomainId,
        wanted: Position,
        timeout: Duration,
    ) -> Result<Arc<Snapshot>, WaitError> {
        let started = Instant::now();
        let mut published = self.published.subscribe();
        loop {
            let snapshot = self.snapshot();
            if snapshot.moment_of(domain).complete_through.covers(wanted) {
                return Ok(snapshot);
            }
            let left = timeout.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, published.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(WaitError::Stopping),
                Err(_) => {
                    let visible = self.snapshot().moment_of(domain).complete_through.to_string();
                    return Err(WaitError::Timeout { wanted, waited: timeout, visible });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::position::{LaneId, Sequence, Tick};

    use super::*;

    #[tokio::test]
    async fn a_reader_waits_for_its_receipt_or_is_told() {
        let publisher = Arc::new(Publisher::new());
        let domain = DomainId::new("demo").unwrap();
        let at = |sequence| Position { lane: LaneId::FIRST, sequence: Sequence(sequence) };
        let waiting = tokio::spawn({
            let publisher = Arc::clone(&publisher);
            let domain = domain.clone();
            async move { publisher.wait_for(&domain, at(2), Duration::from_secs(10)).await }
        });
        for sequence in 1..=2 {
            let mut snapshot = Snapshot::default();
            snapshot.moment.tick = Tick(sequence);
            snapshot.moment.complete_through.advance(at(sequence));
            publisher.publish(snapshot);
        }
        assert_eq!(waiting.await.unwrap().unwrap().moment.tick, Tick(2));
        let refused = publisher.wait_for(&domain, at(3), Duration::from_millis(5)).await.unwrap_err();
        assert!(matches!(refused, WaitError::Timeout { .. }));
        assert!(refused.to_string().contains("m1.0-0.3") && refused.to_string().contains("m1.0-0.2"), "{refused}");
    }
}
