//! What the relay writes to Kafka and the dataflow reads back: topic, partition, headers, parts (architecture D5).
//!
//! Every message of [`CHANGES_TOPIC`] has the lane as key and its place in the log in [`POSITION_HEADER`]. Its value is
//! the text of [`crate::change::ChangeRecord::to_wire`], or a piece of it when that is longer than [`PART_BYTES`]: brokers refuse
//! messages above 1 MB unless told otherwise, and one large form must not hold up its lane. A message without a value
//! is a sign of life: the lane's relay is running and has written everything up to that position.

use std::{fmt, str::FromStr, time::Duration};

use crate::position::LaneId;

/// The topic that carries whole change records.
pub const CHANGES_TOPIC: &str = "millrace.changes";

/// Header: the record's position, as the text of a receipt.
pub const POSITION_HEADER: &str = "position";

/// Header: which piece of the record this is, as the text of a [`Part`]; absent when the record is in one piece.
pub const PART_HEADER: &str = "part";

/// Longest value of one message, in bytes.
pub const PART_BYTES: usize = 512 * 1024;

/// How often a relay with nothing to say gives a sign of life.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// The partition that a lane's records go to, of `partitions` in all.
#[must_use]
pub fn partition_of(lane: LaneId, partitions: i32) -> i32 {
    i32::from(lane.writer.wrapping_add(lane.database)).checked_rem(partitions).unwrap_or_default()
}

/// A piece of a record: `2/3` is the second of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// The text is not a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the number of a part (expected a text such as `2/3`)")]
pub struct PartError(String);

impl FromStr for Part {
    type Err = PartError;
    fn from_str(text: &str) -> Result<Self, PartError> {
        let parse = || {
            let (number, of) = text.split_once('/')?;
            let part = Self { number: number.parse().ok()?, of: of.parse().ok()? };
            (part.number >= 1 && part.number <= part.of).then_some(part)
        };
        parse().ok_or_else(|| PartError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip() {
        assert_eq!("2/3".parse(), Ok(Part { number: 2, of: 3 }));
        assert_eq!(Part { number: 2, of: 3 }.to_string(), "2/3");
        for bad in ["", "2", "0/3", "4/3", "a/b", "1/2/3"] {
            assert!(bad.parse::<Part>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lanes_spread_over_partitions() {
        let lane = |writer| LaneId { database: 0, writer };
        assert_eq!([0, 1, 2, 3].map(|writer| partition_of(lane(writer), 2)), [0, 1, 0, 1]);
        assert_eq!(partition_of(lane(5), 0), 0);
    }
}
