//! Where in the change log: lanes, sequences, receipts and stamps (architecture D3-D5a).

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One totally ordered history of changes: a writer number inside a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// Number of the database in the configuration.
    pub database: u16,
    /// Number of the lane inside that database.
    pub writer: u16,
}

impl LaneId {
    /// The only lane that domains of a single-database installation have.
    pub const FIRST: Self = Self { database: 0, writer: 0 };

    /// The lane of accounts that are in no domain's database: web users, who may enter many domains (architecture D3).
    #[must_use]
    pub const fn control(database: u16) -> Self {
        Self { database, writer: u16::MAX }
    }

    /// The number under which the lane's row is stored in its database.
    #[must_use]
    pub fn to_i32(self) -> i32 {
        i32::from(self.database) << 16 | i32::from(self.writer)
    }

    /// The lane of a stored number.
    #[must_use]
    pub fn from_i32(number: i32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self { database: u16::from_be_bytes([a, b]), writer: u16::from_be_bytes([c, d]) }
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.database, self.writer)
    }
}

/// Position in one lane, dense from 1; 0 is "nothing yet". Comparable only inside one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before the first record.
    pub const ORIGIN: Self = Self(0);

    /// The following sequence.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A place in the change log. Its text form `m1.<database>-<writer>.<sequence>` is the receipt clients hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The lane.
    pub lane: LaneId,
    /// The record in it.
    pub sequence: Sequence,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m1.{}.{}", self.lane, self.sequence.0)
    }
}

/// The text is not a receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a receipt (expected the text of an X-Millrace-Position header, such as `m1.0-0.42`)")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let parse = || {
            let mut parts = text.trim().split('.');
            if parts.next()? != "m1" {
                return None;
            }
            let (database, writer) = parts.next()?.split_once('-')?;
            let sequence = parts.next()?.parse().ok()?;
            if parts.next().is_some() {
                return None;
            }
            let lane = LaneId { database: database.parse().ok()?, writer: writer.parse().ok()? };
            Some(Self { lane, sequence: Sequence(sequence) })
        };
        parse().ok_or_else(|| PositionError(text.to_owned()))
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How far each lane has come: the last sequence that is included. A lane that is absent stands at the origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier(BTreeMap<LaneId, Sequence>);

impl Frontier {
    /// True if the record at `position` is included.
    #[must_use]
    pub fn covers(&self, position: Position) -> bool {
        self.at(position.lane) >= position.sequence
    }

    /// The last included sequence of a lane.
    #[must_use]
    pub fn at(&self, lane: LaneId) -> Sequence {
        self.0.get(&lane).copied().unwrap_or_default()
    }

    /// Moves a lane forward; a lane never goes back.
    pub fn advance(&mut self, position: Position) {
        let at = self.0.entry(position.lane).or_default();
        *at = position.sequence.max(*at);
    }

    /// The lanes and how far they have come, in lane order.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.0.iter().map(|(lane, sequence)| Position { lane: *lane, sequence: *sequence })
    }
}

impl fmt::Display for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, position) in self.positions().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{position}")?;
        }
        Ok(())
    }
}

/// Commit time in microseconds since 1970 UTC, made unique and increasing within its lane (architecture D5).
/// `indexed_on`, `inserted_at` and cursors are this number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub i64);

/// Logical time of the dataflow: dense, private to a process group (architecture D5a).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_round_trip() {
        let position = Position { lane: LaneId { database: 3, writer: 1 }, sequence: Sequence(42) };
        assert_eq!(position.to_string(), "m1.3-1.42");
        assert_eq!("m1.3-1.42".parse(), Ok(position));
        for bad in ["", "m1", "m1.0.4", "m2.0-0.4", "m1.0-0.x", "m1.0-0.4.5", "42"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
        assert_eq!(LaneId::from_i32(position.lane.to_i32()), position.lane);
    }

    #[test]
    fn frontier_covers_per_lane() {
        let mut frontier = Frontier::default();
        let at = |writer, sequence| Position { lane: LaneId { database: 0, writer }, sequence: Sequence(sequence) };
        frontier.advance(at(0, 5));
        frontier.advance(at(0, 3));
        assert!(frontier.covers(at(0, 5)) && !frontier.covers(at(0, 6)) && !frontier.covers(at(1, 1)));
        assert_eq!(frontier.to_string(), "m1.0-0.5");
    }
}
