//! Brings a database to the schema of this release, forward only.

use schemas::sql::MIGRATIONS;
use tokio_postgres::Client;

use crate::error::StartError;

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
