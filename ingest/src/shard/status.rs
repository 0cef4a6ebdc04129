//! How the databases stand: what `millrace shards` shows.

use schemas::position::{LaneId, Position, Sequence};
use serde::Serialize;
use tokio_postgres::types::Type;

use super::ShardRange;
use crate::{
    error::DatabaseError,
    store::databases::{Database, Databases},
};

/// A database: what it holds and how far its lanes are.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseStatus {
    /// Its number in the configuration.
    pub number: u16,
    /// Shards whose new domains go there.
    pub shards: Vec<ShardRange>,
    /// Where it is, or why it cannot be asked.
    #[serde(flatten)]
    pub state: DatabaseState,
}

/// What a database says of itself.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DatabaseState {
    /// It answers.
    Up {
        /// Domains that live there.
        domains: u64,
        /// Its size on disk, bytes.
        bytes: u64,
        /// Its lanes in order.
        lanes: Vec<LaneStatus>,
    },
    /// It does not answer.
    Down {
        /// Why.
        problem: String,
    },
}

/// A lane: how far it is, and how far its readers are.
#[derive(Clone, Debug, Serialize)]
pub struct LaneStatus {
    /// Its last committed record.
    pub position: Position,
    /// Records still in the outbox.
    pub kept: u64,
    /// Registered readers in order of their names.
    pub readers: Vec<ReaderStatus>,
}

/// A registered reader of a lane.
#[derive(Clone, Debug, Serialize)]
pub struct ReaderStatus {
    /// Its name.
    pub name: String,
    /// Records that it has not read.
    pub behind: u64,
    /// True if it has to bootstrap: some of those are gone.
    pub must_bootstrap: bool,
}

/// Asks every database, all at the same time.
pub(crate) async fn status(databases: &Databases) -> Vec<DatabaseStatus> {
    let ask = |database: &Database| {
        let (database, shards) = (database.clone(), databases.map().shards_of(database.number));
        async move {
            let state = match state(&database).await {
                Ok(state) => state,
                Err(error) => DatabaseState::Down { problem: error.to_string() },
            };
            DatabaseStatus { number: database.number, shards, state }
        }
    };
    futures::future::join_all(databases.all().map(ask)).await
}

async fn state(database: &Database) -> Result<DatabaseState, DatabaseError> {
    let client = database.pool.get().await?;
    let row = client
        .query_typed_one("SELECT (SELECT count(*) FROM domains), pg_database_size(current_database())", &[])
        .await?;
    let (domains, bytes) = (count(row.try_get(0)?), count(row.try_get(1)?));
    let rows = client
        .query_typed(
            "SELECT l.lane, l.sequence, l.sequence - coalesce((SELECT min(sequence) - 1 FROM change_log c \
             WHERE c.lane = l.lane), l.sequence) FROM lanes l ORDER BY l.lane",
            &[],
        )
        .await?;
    let mut lanes = Vec::with_capacity(rows.len());
    for row in &rows {
        let (number, last): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
        let position = Position { lane: LaneId::from_i32(number), sequence: Sequence(count(last)) };
        let sql = "SELECT name, sequence, must_bootstrap FROM consumers WHERE lane = $1 ORDER BY name";
        let mut readers = Vec::new();
        for reader in client.query_typed(sql, &[(&number, Type::INT4)]).await? {
            readers.push(ReaderStatus {
                name: reader.try_get(0)?,
                behind: count(last - reader.try_get::<_, i64>(1)?),
                must_bootstrap: reader.try_get(2)?,
            });
        }
        lanes.push(LaneStatus { position, kept: count(row.try_get(2)?), readers });
    }
    Ok(DatabaseState::Up { domains, bytes, lanes })
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
