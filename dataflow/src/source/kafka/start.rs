//! Where to start reading each partition, so that nothing behind a frontier is missed and little before it is read.
//!
//! A partition that one lane alone is written to holds that lane's positions in rising order, apart from stretches that
//! a producer sent again; so the first offset behind the frontier is found by bisection, with one small fetch a step.
//! Every place where a covered message is followed by one that is not is right to start at: what follows it is the
//! next record. A partition of several lanes is read from its beginning.

use std::time::Instant;

use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::Message,
    topic_partition_list::Offset,
};
use schemas::{
    kafka::{CHANGES_TOPIC, partition_of},
    position::{Frontier, Position, Sequence},
};

use super::{REQUEST, position_of};

/// The offsets to start from, one for each of `partitions`, so that everything behind `seen` is read.
pub(super) fn offsets(mut config: ClientConfig, partitions: &[i32], seen: &Frontier) -> KafkaResult<Vec<i64>> {
    config.set("fetch.message.max.bytes", "65536").set("queued.max.messages.kbytes", "1024");
    let probe = Probe { consumer: config.create()?, seen };
    partitions.iter().map(|partition| probe.offset(*partition, partitions.len())).collect()
}

struct Probe<'a> {
    consumer: BaseConsumer,
    seen: &'a Frontier,
}

impl Probe<'_> {
    fn offset(&self, partition: i32, partitions: usize) -> KafkaResult<i64> {
        let (low, high) = self.consumer.fetch_watermarks(CHANGES_TOPIC, partition, REQUEST)?;
        if !has_one_lane(self.seen, partition, partitions) {
            return Ok(low);
        }
        let (mut covered, mut open) = (low, high);
        while covered < open {
            let middle = covered + (open - covered) / 2;
            if self.position_at(partition, middle)?.is_some_and(|position| self.seen.covers(position)) {
                covered = middle + 1;
            } else {
                open = middle;
            }
        }
        Ok(open)
    }

    /// The position of the first of our messages at or behind `offset`; none at the end of the partition.
    fn position_at(&self, partition: i32, offset: i64) -> KafkaResult<Option<Position>> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(CHANGES_TOPIC, partition, Offset::Offset(offset))?;
        self.consumer.assign(&assignment)?;
        let deadline = Instant::now() + REQUEST;
        loop {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) if message.offset() >= offset => {
                    if let Some(position) = position_of(&message) {
                        return Ok(Some(position));
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) => return Err(error),
                None => return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)),
            }
        }
    }
}

/// True if exactly one lane writes to the partition: all lanes are of one database and no two of them share it.
fn has_one_lane(seen: &Frontier, partition: i32, partitions: usize) -> bool {
    let one_database = seen.positions().all(|position| position.lane.database == 0);
    let count = i32::try_from(partitions).unwrap_or(i32::MAX);
    let mut here = seen.positions().filter(|position| partition_of(position.lane, count) == partition);
    one_database && here.next().is_some_and(|position| position.sequence > Sequence::ORIGIN) && here.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::position::LaneId;

    #[test]
    fn only_a_partition_with_one_lane_is_searched() {
        let frontier = |lanes: &[(u16, u16, u64)]| {
            let mut frontier = Frontier::default();
            for (database, writer, sequence) in lanes {
                let lane = LaneId { database: *database, writer: *writer };
                frontier.advance(Position { lane, sequence: Sequence(*sequence) });
            }
            frontier
        };
        for (lanes, partition, expected) in [
            (vec![(0, 0, 9)], 0, true),
            (vec![(0, 0, 9)], 1, false),
            (vec![(0, 0, 0)], 0, false),
            (vec![(0, 0, 9), (0, 1, 9)], 1, true),
            (vec![(0, 0, 9), (0, 2, 9)], 0, false),
            (vec![(0, 0, 9), (1, 1, 9)], 0, false),
            (vec![], 0, false),
        ] {
            assert_eq!(has_one_lane(&frontier(&lanes), partition, 2), expected, "{lanes:?} {partition}");
        }
    }
}
