//! What has been said of each lane, what follows, and who has fallen silent. No I/O, no clock of its own.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use schemas::{
    kafka::Part,
    position::{Frontier, LaneId, Position, Sequence},
};

/// How a message's position relates to what was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Said before: a producer that lost an answer sends again.
    Seen,
    /// The next of its lane.
    Next,
    /// The record wanted next is not here any more.
    Gap(Sequence),
}

/// The pieces of a record that have arrived.
#[derive(Debug)]
struct Pieces {
    position: Position,
    next: u32,
    text: Vec<u8>,
}

/// The reader's memory.
#[derive(Debug)]
pub(super) struct Order {
    seen: Frontier,
    pieces: HashMap<LaneId, Pieces>,
    last_sign: HashMap<LaneId, Instant>,
    silence: Duration,
}

impl Order {
    /// Everything up to `from` counts as said; a lane is silent after `silence`.
    pub(super) fn new(from: Frontier, silence: Duration) -> Self {
        Self { seen: from, pieces: HashMap::new(), last_sign: HashMap::new(), silence }
    }

    /// What was said so far.
    pub(super) const fn seen(&self) -> &Frontier {
        &self.seen
    }

    /// Begins anew with an open connection: half a record is forgotten, every known lane has time to give a sign.
    pub(super) fn connected(&mut self, now: Instant) {
        self.pieces.clear();
        for position in self.seen.positions() {
            self.last_sign.insert(position.lane, now);
        }
    }

    /// Notes a sign of life.
    pub(super) fn alive(&mut self, lane: LaneId, now: Instant) {
        self.last_sign.insert(lane, now);
    }

    /// The known lanes: those that live, and those that have been silent for too long.
    pub(super) fn lanes(&self, now: Instant) -> (BTreeSet<LaneId>, BTreeSet<LaneId>) {
        let lives = |lane: &LaneId| {
            self.last_sign.get(lane).is_some_and(|last| now.saturating_duration_since(*last) <= self.silence)
        };
        self.last_sign.keys().copied().partition(lives)
    }

    /// How `position` relates to what was said.
    pub(super) fn verdict(&self, position: Position) -> Verdict {
        let wanted = self.seen.at(position.lane).next();
        match position.sequence.cmp(&wanted) {
            std::cmp::Ordering::Less => Verdict::Seen,
            std::cmp::Ordering::Equal => Verdict::Next,
            std::cmp::Ordering::Greater => Verdict::Gap(wanted),
        }
    }

    /// Notes that the record at `position` was said.
    pub(super) fn advance(&mut self, position: Position) {
        self.seen.advance(position);
        self.pieces.remove(&position.lane);
    }

    /// Adds a piece of the record at `position` and returns the whole when it is the last one. A first piece begins
    /// anew (the producer sends a record again as a whole); a piece that does not follow is dropped.
    pub(super) fn part(&mut self, position: Position, part: Part, text: &[u8]) -> Option<Vec<u8>> {
        if part.number == 1 {
            self.pieces.insert(position.lane, Pieces { position, next: 1, text: Vec::new() });
        }
        let pieces = self.pieces.get_mut(&position.lane)?;
        if pieces.position != position || pieces.next != part.number {
            return None;
        }
        pieces.text.extend_from_slice(text);
        pieces.next += 1;
        if part.number < part.of {
            return None;
        }
        self.pieces.remove(&position.lane).map(|pieces| pieces.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(writer: u16, sequence: u64) -> Position {
        Position { lane: LaneId { database: 0, writer }, sequence: Sequence(sequence) }
    }

    fn order(from: &[Position]) -> Order {
        let mut frontier = Frontier::default();
        from.iter().for_each(|position| frontier.advance(*position));
        Order::new(frontier, Duration::from_secs(5))
    }

    #[test]
    fn each_record_is_said_once_and_in_order() {
        let mut order = order(&[at(0, 5)]);
        assert_eq!(order.verdict(at(0, 5)), Verdict::Seen);
        assert_eq!(order.verdict(at(0, 7)), Verdict::Gap(Sequence(6)));
        assert_eq!(order.verdict(at(0, 6)), Verdict::Next);
        order.advance(at(0, 6));
        assert_eq!(order.verdict(at(0, 6)), Verdict::Seen);
        assert_eq!(order.verdict(at(1, 1)), Verdict::Next, "a lane never heard of begins at 1");
        assert_eq!(order.verdict(at(1, 2)), Verdict::Gap(Sequence(1)));
    }

    #[test]
    fn pieces_join_even_when_they_are_sent_again() {
        let mut order = order(&[]);
        let part = |number| Part { number, of: 3 };
        assert_eq!(order.part(at(0, 1), part(2), b"b"), None, "the first piece is missing");
        assert_eq!(order.part(at(0, 1), part(1), b"a"), None);
        assert_eq!(order.part(at(0, 1), part(2), b"b"), None);
        assert_eq!(order.part(at(0, 1), part(1), b"a"), None, "sent again");
        assert_eq!(order.part(at(0, 1), part(2), b"b"), None);
        assert_eq!(order.part(at(0, 1), part(2), b"b"), None, "does not follow");
        assert_eq!(order.part(at(0, 1), part(3), b"c"), Some(b"abc".to_vec()));
        assert_eq!(order.part(at(0, 1), part(3), b"c"), None);
    }

    #[test]
    fn a_lane_without_signs_is_silent() {
        let mut order = order(&[at(0, 5), at(1, 1)]);
        let start = Instant::now();
        order.connected(start);
        let later = start + Duration::from_secs(6);
        order.alive(at(0, 5).lane, later);
        let set = |lanes: &[u16]| lanes.iter().map(|writer| at(*writer, 0).lane).collect();
        assert_eq!(order.lanes(start), (set(&[0, 1]), set(&[])));
        assert_eq!(order.lanes(later), (set(&[0]), set(&[1])));
        order.alive(at(1, 1).lane, later);
        assert_eq!(order.lanes(later), (set(&[0, 1]), set(&[])));
    }
}
