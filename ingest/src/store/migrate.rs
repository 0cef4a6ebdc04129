//! Brings a database to the schema of this release, forward only.

use schemas::sql::MIGRATIONS;
use tokio_postgres::Client;

use crate::{error::StartError, shard::document_shard};

/// Held while migrating, so that processes that start together do it once.
const LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// Applies the migrations that are missing, each in a transaction of its own.
///
/// # Errors
/// [`StartError::NewerSchema`] if the database was migrated by a newer release; [`StartError::Migration`] if one fails.
pub(crate) async fn migrate(client: &Client) -> Result<(), StartError> {
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
    let result = migrate_locked(client).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    result
}

/// The migration that partitions tables by shard.
const PARTITIONS: &str = "partitions";

/// Tables, the columns of their shards, and the ids these are of.
const SHARDED: &[(&str, &str, &str)] = &[
    ("forms", "shard", "id"),
    ("form_operations", "shard", "form_id"),
    ("attachments", "shard", "form_id"),
    ("cases", "shard", "id"),
    ("case_indices", "shard", "case_id"),
    ("case_indices", "referenced_shard", "referenced_id"),
    ("case_transactions", "shard", "case_id"),
    ("case_transactions", "form_shard", "form_id"),
    ("ledger_values", "shard", "case_id"),
    ("ledger_transactions", "shard", "case_id"),
];

/// Fetches the ids whose shards are filled in next.
const FETCH: &str = "FETCH FORWARD 100000 FROM unsharded";

/// Fills in the shards of rows that were written before there were any. Begun again, it goes on where it ended.
async fn fill_shards(client: &Client) -> Result<(), tokio_postgres::Error> {
    for (table, column, id) in SHARDED {
        // Kept beside the updates, so that the table is searched once.
        let missing = format!(
            "DECLARE unsharded CURSOR WITH HOLD FOR \
             SELECT DISTINCT {id} FROM {table} WHERE {column} IS NULL AND {id} IS NOT NULL"
        );
        let fill = format!(
            "UPDATE {table} t SET {column} = u.shard FROM unnest($1::text[], $2::smallint[]) AS u(id, shard) \
             WHERE t.{id} = u.id AND t.{column} IS NULL"
        );
        client.batch_execute(&missing).await?;
        loop {
            let rows = client.query(FETCH, &[]).await?;
            let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
            if ids.is_empty() {
                break;
            }
            let shards: Vec<i16> = ids.iter().map(|id| document_shard(id)).collect();
            client.execute(&fill, &[&ids, &shards]).await?;
        }
        client.batch_execute("CLOSE unsharded").await?;
    }
    Ok(())
}

async fn migrate_locked(client: &Client) -> Result<(), StartError> {
    let present: bool = client.query_one("SELECT to_regclass('schema_migrations') IS NOT NULL", &[]).await?.get(0);
    let at: i32 = if present {
        client.query_one("SELECT coalesce(max(number), 0) FROM schema_migrations", &[]).await?.get(0)
    } else {
        0
    };
    let newest = MIGRATIONS.last().map_or(0, |migration| migration.number);
    if at > newest {
        return Err(StartError::NewerSchema { found: at, known: newest });
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.number > at) {
        let failed = |source| StartError::Migration { name: migration.name, source };
        if migration.name == PARTITIONS {
            fill_shards(client).await.map_err(failed)?;
        }
        client
            .batch_execute(&format!(
                "BEGIN; {}; INSERT INTO schema_migrations (number, name) VALUES ({}, '{}'); COMMIT",
                migration.statements, migration.number, migration.name
            ))
            .await
            .map_err(failed)?;
        tracing::info!(number = migration.number, name = migration.name, "migrated the database");
    }
    Ok(())
}
