//! The change log's table: its layout, reading it from a position, registered readers, trimming.
//!
//! A row holds the documents of one record without stamps: they follow from the row's own, so that documents are packed
//! before the lane's counter is locked. Source: architecture D4, D5.

use std::{sync::Arc, time::Duration};

use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{DocId, DomainId},
    port::SourceError,
    position::{LaneId, Position, Sequence, Stamp},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_postgres::{Client, Row, types::Type};

use crate::{error::DatabaseError, store::compress};

/// Layout of packed documents that this release writes and reads.
pub(crate) const FORMAT: i16 = 1;
/// Rows that one round of trimming deletes at most.
const TRIM_BATCH: i64 = 20_000;

/// Why the outbox could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Trimmed, or not the log this position is of.
    #[error("lane {lane}: record {} is gone, the log begins at {}", wanted.0, earliest.0)]
    Gap {
        /// The lane.
        lane: LaneId,
        /// The record asked for.
        wanted: Sequence,
        /// The first one left.
        earliest: Sequence,
    },
}

impl From<tokio_postgres::Error> for OutboxError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<OutboxError> for SourceError {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Gap { lane, wanted, earliest } => Self::Gap { lane, wanted, earliest },
            OutboxError::Database(error) => Self::Unavailable(error.to_string()),
        }
    }
}

/// A document inside a row: everything but the stamp.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    kind: DocKind,
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    document_type: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subtype: Option<String>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// The documents of one record as its row holds them; their stamps are left out.
///
/// # Errors
/// [`DatabaseError::Damaged`] only when memory is exhausted.
pub(crate) fn pack(documents: &[ChangedDocument]) -> Result<Vec<u8>, DatabaseError> {
    let stored: Vec<Stored<'_>> = documents
        .iter()
        .map(|document| Stored {
            kind: document.kind,
            id: document.id.as_str().into(),
            document_type: document.document_type.as_str().into(),
            subtype: document.subtype.clone(),
            body: document.body.as_deref(),
        })
        .collect();
    let json = serde_json::to_vec(&stored).map_err(|error| DatabaseError::damaged("change_log", error))?;
    compress::pack(&json).map_err(|error| DatabaseError::damaged("change_log", error))
}

fn unpack(packed: &[u8], first: i64) -> Result<Vec<ChangedDocument>, String> {
    let json = compress::unpack_text(packed).map_err(|error| error.to_string())?;
    let stored: Vec<Stored<'_>> = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let stamped = stored.into_iter().zip(first..);
    stamped
        .map(|(document, stamp)| {
            Ok(ChangedDocument {
                kind: document.kind,
                id: DocId::new(&document.id).map_err(|error| error.to_string())?,
                stamp: Stamp(stamp),
                document_type: document.document_type.into_owned(),
                subtype: document.subtype,
                body: document.body.map(|body| Arc::from(body.to_owned())),
            })
        })
        .collect()
}

/// One statement, so that the counter and the rows are of one moment: an empty answer behind the counter is a gap, never a
/// race.
const READ: &str = "SELECT l.sequence, c.sequence, c.stamp, c.domain, c.format, c.documents_zstd \
     FROM lanes l LEFT JOIN LATERAL ( \
         SELECT * FROM change_log WHERE lane = l.lane AND sequence > $2 ORDER BY sequence LIMIT $3 \
     ) c ON true WHERE l.lane = $1 ORDER BY c.sequence";

/// Reads the records of a lane behind `after`, in order and without gaps, at most `limit`. An empty answer means that
/// nothing newer is committed.
///
/// # Errors
/// [`OutboxError::Gap`] if the record behind `after` was trimmed, or if the lane never came as far as `after`.
pub async fn read(
    client: &Client,
    lane: LaneId,
    after: Sequence,
    limit: usize,
) -> Result<Vec<ChangeRecord>, OutboxError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let from = i64::try_from(after.0).unwrap_or(i64::MAX);
    let rows =
        client.query_typed(READ, &[(&lane.to_i32(), Type::INT4), (&from, Type::INT8), (&limit, Type::INT8)]).await?;
    let mut records = Vec::with_capacity(rows.len());
    let mut last = after;
    for row in &rows {
        let head = sequence(row, 0)?.unwrap_or_default();
        let gap = |earliest| OutboxError::Gap { lane, wanted: last.next(), earliest };
        match sequence(row, 1)? {
            Some(at) if at == last.next() => {
                records.push(record(row, Position { lane, sequence: at })?);
                last = at;
            }
            Some(at) => return Err(gap(at)),
            None if head == last => {}
            None => return Err(gap(head.next())),
        }
    }
    if rows.is_empty() && after > Sequence::ORIGIN {
        return Err(OutboxError::Gap { lane, wanted: after.next(), earliest: Sequence(1) });
    }
    Ok(records)
}

fn sequence(row: &Row, column: usize) -> Result<Option<Sequence>, OutboxError> {
    let number: Option<i64> = row.try_get(column)?;
    let number = number
        .map(|number| u64::try_from(number).map(Sequence).map_err(|error| DatabaseError::damaged("change_log", error)));
    Ok(number.transpose()?)
}

fn record(row: &Row, position: Position) -> Result<ChangeRecord, OutboxError> {
    let damaged =
        |problem: String| OutboxError::Database(DatabaseError::damaged("change_log", format!("{position}: {problem}")));
    let format: i16 = row.try_get(4)?;
    if format != FORMAT {
        return Err(damaged(format!("format {format}, this release reads {FORMAT}; upgrade the reader first")));
    }
    let domain = DomainId::new(row.try_get(3)?).map_err(|error| damaged(error.to_string()))?;
    let documents = unpack(row.try_get(5)?, row.try_get(2)?).map_err(damaged)?;
    Ok(ChangeRecord { position, domain, documents })
}

/// A registered reader of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name, unique per lane.
    pub name: String,
    /// How far it has come.
    pub position: Position,
    /// True if records that it needs were trimmed: it has to bootstrap.
    pub must_bootstrap: bool,
}

/// Registers a reader, or renews the lease of one that is known; a known one keeps its place. Records behind it are kept
/// until the lease runs out. `now` is in microseconds since 1970 UTC.
///
/// # Errors
/// [`OutboxError::Database`].
pub async fn register(
    client: &Client,
    name: &str,
    start: Position,
    now: i64,
    lease: Duration,
) -> Result<Consumer, OutboxError> {
    let row = client
        .query_typed_one(
            "INSERT INTO consumers (name, lane, sequence, lease_until) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name, lane) DO UPDATE SET lease_until = excluded.lease_until \
             RETURNING sequence, must_bootstrap",
            &[
                (&name, Type::TEXT),
                (&start.lane.to_i32(), Type::INT4),
                (&place(start.sequence), Type::INT8),
                (&until(now, lease), Type::INT8),
            ],
        )
        .await?;
    let at = sequence(&row, 0)?.unwrap_or_default();
    Ok(Consumer {
        name: name.to_owned(),
        position: Position { lane: start.lane, sequence: at },
        must_bootstrap: row.try_get(1)?,
    })
}

/// Says that a reader has everything up to `at` and renews its lease. A reader never goes back.
///
/// # Errors
/// [`OutboxError::Database`].
pub async fn advance(client: &Client, name: &str, at: Position, now: i64, lease: Duration) -> Result<(), OutboxError> {
    client
        .execute_typed(
            "UPDATE consumers SET sequence = greatest(sequence, $3), lease_until = $4 WHERE name = $1 AND lane = $2",
            &[
                (&name, Type::TEXT),
                (&at.lane.to_i32(), Type::INT4),
                (&place(at.sequence), Type::INT8),
                (&until(now, lease), Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// Starts a reader anew at `at`, after it bootstrapped.
///
/// # Errors
/// [`OutboxError::Database`].
pub async fn restart(client: &Client, name: &str, at: Position, now: i64, lease: Duration) -> Result<(), OutboxError> {
    client
        .execute_typed(
            "INSERT INTO consumers (name, lane, sequence, lease_until) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name, lane) DO UPDATE \
             SET sequence = excluded.sequence, lease_until = excluded.lease_until, must_bootstrap = false",
            &[
                (&name, Type::TEXT),
                (&at.lane.to_i32(), Type::INT4),
                (&place(at.sequence), Type::INT8),
                (&until(now, lease), Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// How much of the outbox stays.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Newest records that are always kept.
    pub keep: u64,
    /// Records beyond which nobody is waited for.
    pub limit: u64,
}

/// Deletes the oldest records that every reader with a running lease has passed, a batch at a time; returns how many. A
/// reader whose records are deleted all the same is marked and has to bootstrap.
///
/// # Errors
/// [`OutboxError::Database`].
pub async fn trim(client: &Client, lane: LaneId, retention: Retention, now: i64) -> Result<u64, OutboxError> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let row = client
        .query_typed_opt(
            "SELECT greatest(least(l.sequence - $2, coalesce(min(c.sequence), l.sequence)), l.sequence - $3) \
             FROM lanes l LEFT JOIN consumers c ON c.lane = l.lane AND c.lease_until > $4 AND NOT c.must_bootstrap \
             WHERE l.lane = $1 GROUP BY l.sequence",
            &[
                (&lane.to_i32(), Type::INT4),
                (&count(retention.keep), Type::INT8),
                (&count(retention.limit), Type::INT8),
                (&now, Type::INT8),
            ],
        )
        .await?;
    let cut: i64 = row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
    if cut <= 0 {
        return Ok(0);
    }
    let left_behind = client
        .execute_typed(
            "UPDATE consumers SET must_bootstrap = true WHERE lane = $1 AND sequence < $2 AND NOT must_bootstrap",
            &[(&lane.to_i32(), Type::INT4), (&cut, Type::INT8)],
        )
        .await?;
    if left_behind > 0 {
        tracing::error!(%lane, readers = left_behind, "the outbox was trimmed before some readers had read it");
    }
    let deleted = client
        .execute_typed(
            "DELETE FROM change_log WHERE lane = $1 AND sequence <= $2 \
             AND sequence < (SELECT min(sequence) + $3 FROM change_log WHERE lane = $1)",
            &[(&lane.to_i32(), Type::INT4), (&cut, Type::INT8), (&TRIM_BATCH, Type::INT8)],
        )
        .await?;
    Ok(deleted)
}

fn place(sequence: Sequence) -> i64 {
    i64::try_from(sequence.0).unwrap_or(i64::MAX)
}

fn until(now: i64, lease: Duration) -> i64 {
    now.saturating_add(i64::try_from(lease.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_documents_come_back_with_consecutive_stamps() {
        let document = |id: &str, body: Option<&str>| ChangedDocument {
            kind: DocKind::Case,
            id: DocId::new(id).unwrap(),
            stamp: Stamp(0),
            document_type: "CommCareCase".to_owned(),
            subtype: Some("ch\"ild".to_owned()),
            body: body.map(|body| Arc::from(RawValue::from_string(body.to_owned()).unwrap())),
        };
        let packed = pack(&[document("a\\b", Some(r#"{"x":[1,"é"]}"#)), document("b", None)]).unwrap();
        let back = unpack(&packed, 40).unwrap();
        assert_eq!(back.iter().map(|d| (d.id.as_str(), d.stamp.0)).collect::<Vec<_>>(), [("a\\b", 40), ("b", 41)]);
        assert_eq!(back[0].body.as_ref().unwrap().get(), r#"{"x":[1,"é"]}"#);
        assert_eq!(back[0].subtype.as_deref(), Some("ch\"ild"));
        assert!(back[1].body.is_none());
    }
}
