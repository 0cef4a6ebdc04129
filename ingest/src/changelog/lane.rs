//! The counter row of a lane: numbers for records, stamps for documents.

use schemas::position::{LaneId, Position, Sequence, Stamp};
use tokio_postgres::{Client, Statement};

use crate::error::DatabaseError;

/// Takes numbers and stamps; the row stays locked until the transaction ends.
pub(crate) const TAKE: &str = "UPDATE lanes \
     SET sequence = sequence + $2, stamp = greatest(stamp + 1, $3) + $4 - 1 \
     WHERE lane = $1 RETURNING sequence, stamp";

/// Numbers of a group of records: dense, in the order of the records and of the documents in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    lane: LaneId,
    next_sequence: u64,
    next_stamp: i64,
}

impl Numbers {
    /// Numbers that start with a sequence and a stamp.
    pub(crate) const fn new(lane: LaneId, first: Sequence, stamp: Stamp) -> Self {
        Self { lane, next_sequence: first.0, next_stamp: stamp.0 }
    }

    /// The stamp of the document at index `place` among those still to be stamped.
    pub(crate) fn stamp_at(&self, place: usize) -> i64 {
        self.next_stamp.saturating_add(i64::try_from(place).unwrap_or(i64::MAX))
    }

    /// The next record's position.
    pub(crate) fn position(&mut self) -> Position {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        Position { lane: self.lane, sequence }
    }

    /// The next document's stamp.
    pub(crate) fn stamp(&mut self) -> Stamp {
        let stamp = Stamp(self.next_stamp);
        self.next_stamp += 1;
        stamp
    }
}

/// Takes numbers for `records` records with `documents` documents in all, at `now` (microseconds since 1970 UTC).
/// `take` is [`TAKE`], prepared.
///
/// # Errors
/// [`DatabaseError`]; a lane without a row is [`DatabaseError::Damaged`].
pub(crate) async fn take_numbers(
    client: &Client,
    take: &Statement,
    lane: LaneId,
    records: usize,
    documents: usize,
    now: i64,
) -> Result<Numbers, DatabaseError> {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (records, documents) = (count(records), count(documents));
    let row = client
        .query_opt(take, &[&lane.to_i32(), &records, &now, &documents])
        .await?
        .ok_or_else(|| DatabaseError::damaged("lanes", format!("lane {lane} has no row")))?;
    let (last, last_stamp): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let first = u64::try_from(last - records + 1)
        .map_err(|_| DatabaseError::damaged("lanes", format!("lane {lane} has the negative sequence {last}")))?;
    Ok(Numbers::new(lane, Sequence(first), Stamp(last_stamp - documents + 1)))
}

/// Makes the lane's counter if it is new.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn ensure(client: &Client, lane: LaneId) -> Result<(), DatabaseError> {
    client.execute("INSERT INTO lanes (lane) VALUES ($1) ON CONFLICT DO NOTHING", &[&lane.to_i32()]).await?;
    Ok(())
}
