//! Deletes objects that nothing points to: attachments whose form was never committed, and what was purged.
//!
//! An attachment is put before its form's transaction, so an object without a row is either an orphan or on its way; age tells
//! them apart. A pack goes when its last form is purged. Source: architecture D5b.

use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, path::Path};
use tokio::time::Duration;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::{ATTACHMENTS, BlobError, Blobs, PACKS};
use crate::store::{domains, pool::Use};

/// How often the object store is walked.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Held by the one process that walks.
const SWEEP_LOCK: i64 = 0x7377_6565_7000;
/// Objects asked about at a time.
const ASKED: usize = 500;

/// The names among `$1` that no attachment has: their last part is its key.
const ORPHANED_ATTACHMENTS: &str = "SELECT u.name FROM unnest($1::text[]) AS u(name) WHERE NOT EXISTS \
     (SELECT 1 FROM attachments a WHERE a.key = regexp_replace(u.name, '^.*/', '')::uuid)";
/// The names among `$1` that no form lies in.
const ORPHANED_PACKS: &str = "SELECT u.name FROM unnest($1::text[]) AS u(name) WHERE NOT EXISTS \
     (SELECT 1 FROM xml_packs p WHERE p.pack = u.name)";

impl Blobs {
    /// Sweeps orphans older than `age` until `stop`.
    pub(crate) async fn run_sweep(self, age: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
            match stop.run_until_cancelled(self.sweep_alone(age)).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(swept)) => tracing::info!(swept, "objects that nothing points to were deleted"),
                Some(Err(error)) => tracing::warn!(%error, "the object store could not be swept"),
            }
        }
    }

    /// Sweeps, unless another process does.
    async fn sweep_alone(&self, age: Duration) -> Result<u64, BlobError> {
        // The lock goes with the connection.
        let connection = self.databases.control().address().connect(Use::Long).await?;
        let lock = connection.query_typed_one("SELECT pg_try_advisory_lock($1)", &[(&SWEEP_LOCK, Type::INT8)]).await?;
        if !lock.try_get::<_, bool>(0)? {
            return Ok(0);
        }
        self.sweep(age).await
    }

    /// Deletes orphans older than `age`; returns how many there were.
    ///
    /// # Errors
    /// [`BlobError`]; what was deleted until then stays deleted.
    pub(crate) async fn sweep(&self, age: Duration) -> Result<u64, BlobError> {
        // An object of a database that this process does not ask would look like an orphan.
        let control = self.databases.control().get().await?;
        for number in domains::all_homes(&control).await? {
            self.databases.get(number)?;
        }
        drop(control);
        let attachments = self.sweep_below(ATTACHMENTS, ORPHANED_ATTACHMENTS, age).await?;
        Ok(attachments + self.sweep_below(PACKS, ORPHANED_PACKS, age).await?)
    }

    async fn sweep_below(&self, prefix: &str, orphaned: &str, age: Duration) -> Result<u64, BlobError> {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let before = self.clock.now_micros().saturating_sub(age);
        let prefix = Path::from(prefix);
        let old = self.store.list(Some(&prefix)).try_filter_map(|object| async move {
            Ok((object.last_modified.timestamp_micros() <= before).then(|| object.location.to_string()))
        });
        let mut chunks = old.chunks(ASKED).boxed();
        let mut swept = 0;
        while let Some(names) = chunks.next().await {
            let mut names = names.into_iter().collect::<Result<Vec<String>, _>>()?;
            // An orphan is what no database points to.
            for database in self.databases.all() {
                let client = database.pool.get().await?;
                let rows = client.query_typed(orphaned, &[(&names, Type::TEXT_ARRAY)]).await?;
                names = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            }
            for name in &names {
                self.store.delete(&Path::from(name.as_str())).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}
