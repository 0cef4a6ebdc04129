//! When a checkpoint is taken, and what the workers are asked for it.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    KeptDocument, State,
    write::{Part, Writer},
};

/// Documents that each worker gives at most in a tick.
const SLICE: usize = 4_096;

/// What workers are asked for in a tick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// Documents to give at most, of those that have changed since they were given last.
    pub(crate) most: usize,
    /// Give every document again.
    pub(crate) whole: bool,
}

/// Decides when a checkpoint is taken and hands it to the writer.
#[derive(Debug)]
pub(crate) struct Keeper {
    writer: Writer,
    every: Duration,
    /// When the last one was begun.
    last: Option<Instant>,
    /// Something has changed since the last one.
    changed: bool,
    open: bool,
    /// The writer is gone, and so are checkpoints until the next start.
    ended: bool,
}

impl Keeper {
    /// Checkpoints at most so often, and only when something has changed.
    pub(crate) fn new(writer: Writer, every: Duration) -> Self {
        let changed = writer.outcome.whole_next.load(Ordering::Acquire);
        // Who starts from a checkpoint has time until the next one; who has none has not.
        let last = (!changed).then(Instant::now);
        Self { writer, every, last, changed, open: false, ended: false }
    }

    /// Notes that the state has changed.
    pub(crate) const fn changed(&mut self) {
        self.changed = true;
    }

    /// True while documents are left to give and the writer takes them: ticks need not wait for changes.
    pub(crate) fn waits(&self) -> bool {
        self.open && !self.ended && self.writer.parts.capacity() > 1
    }

    /// What the next tick is asked for.
    pub(crate) fn ask(&mut self) -> Option<Slice> {
        if self.open || self.ended {
            return self.waits().then_some(Slice { most: SLICE, whole: false });
        }
        let outcome = &self.writer.outcome;
        let whole = outcome.whole_next.load(Ordering::Acquire);
        let due = self.last.is_none_or(|last| last.elapsed() >= self.every);
        if !self.changed || !due || outcome.busy.load(Ordering::Acquire) {
            return None;
        }
        self.writer.parts.try_send(Part::Begin { whole }).ok()?;
        outcome.busy.store(true, Ordering::Release);
        (self.open, self.changed, self.last) = (true, false, Some(Instant::now()));
        Some(Slice { most: SLICE, whole })
    }

    /// Takes the documents of a slice.
    pub(crate) fn documents(&mut self, documents: Vec<KeptDocument>) {
        if !documents.is_empty() {
            self.give(Part::Documents(documents));
        }
    }

    /// Takes the rest of the tick whose slice was the last one.
    pub(crate) fn end(&mut self, state: State) {
        self.open = false;
        self.give(Part::End(Box::new(state)));
    }

    fn give(&mut self, part: Part) {
        // There is room: a slice is asked for only then, and nobody else gives.
        if self.writer.parts.try_send(part).is_err() {
            tracing::error!("the writer of checkpoints has ended; there will be no more until the next start");
            self.ended = true;
        }
    }
}
