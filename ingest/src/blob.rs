//! Raw XML and attachments: in Postgres with the commit, in packs of the object store seconds later.
//!
//! The mover ships the oldest rows in one object and writes down where each lies, then deletes them; readers look in both
//! places. Attachments above a size go to the object store before the commit. Objects never change, and the store must keep
//! one before it acknowledges it. Source: architecture D5b.

mod sweep;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use schemas::{
    id::{CaseId, DomainId, FormId},
    port::Clock,
    time::format_micros,
};
use tokio::time::Duration;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::Domains,
    error::DatabaseError,
    metrics::IngestMetrics,
    shard::document_shard,
    store::{
        compress,
        databases::Databases,
        pool::{Connection, Pool, Use},
    },
};

/// Where attachments and packs lie.
const ATTACHMENTS: &str = "attachments";
const PACKS: &str = "xml";
/// Only one mover works on a database at a time.
const MOVER_LOCK: i64 = 0x6d6f_7665_7200;
/// Rows in a pack at most.
const PACK_ROWS: i64 = 2000;
/// Compressed bytes in a pack at most, give or take one row.
const PACK_BYTES: usize = 8 * 1024 * 1024;
/// Pause between looks when there is little to move.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause after a failed look.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why bytes could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Their row.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object store.
    #[error("could not reach the object store: {0}")]
    Store(#[from] object_store::Error),
    /// Not what was written.
    #[error("stored bytes are damaged: {0}")]
    Damaged(#[source] std::io::Error),
}

impl From<tokio_postgres::Error> for BlobError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Raw XML and attachments, wherever they are.
#[derive(Clone)]
pub(crate) struct Blobs {
    store: Arc<dyn ObjectStore>,
    databases: Databases,
    domains: Arc<Domains>,
    clock: Arc<dyn Clock>,
    metrics: IngestMetrics,
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("store", &self.store.to_string()).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Over an object store and the tables that point into it.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        databases: Databases,
        domains: Arc<Domains>,
        clock: Arc<dyn Clock>,
        metrics: IngestMetrics,
    ) -> Self {
        Self { store, databases, domains, clock, metrics }
    }

    /// Puts a large attachment into the object store, before the row that points to it.
    ///
    /// # Errors
    /// [`BlobError`].
    pub(crate) async fn put_attachment(&self, domain: &DomainId, key: Uuid, bytes: Bytes) -> Result<(), BlobError> {
        self.store.put(&attachment_path(domain, key), bytes.into()).await?;
        Ok(())
    }

    /// The bytes of a form as it was received; `None` if the domain has no such form.
    ///
    /// # Errors
    /// [`BlobError`].
    pub(crate) async fn form_xml(&self, domain: &DomainId, form_id: &FormId) -> Result<Option<Bytes>, BlobError> {
        let found = self
            .find(
                domain,
                "SELECT xml_key::text, 'text/xml' FROM forms WHERE domain = $1 AND id = $2 AND shard = $3",
                &[
                    (&domain.as_str(), Type::TEXT),
                    (&form_id.as_str(), Type::TEXT),
                    (&document_shard(form_id.as_str()), Type::INT2),
                ],
            )
            .await?;
        Ok(found.map(|(bytes, _)| bytes))
    }

    /// The bytes and media type of a form's attachment; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`BlobError`].
    pub(crate) async fn attachment(
        &self,
        domain: &DomainId,
        form_id: &FormId,
        name: &str,
    ) -> Result<Option<(Bytes, Option<String>)>, BlobError> {
        self.find(
            domain,
            "SELECT key::text, content_type FROM attachments \
             WHERE domain = $1 AND form_id = $2 AND name = $3 AND shard = $4",
            &[
                (&domain.as_str(), Type::TEXT),
                (&form_id.as_str(), Type::TEXT),
                (&name, Type::TEXT),
                (&document_shard(form_id.as_str()), Type::INT2),
            ],
        )
        .await
    }

    /// The bytes and media type of a file that is attached to a case; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`BlobError`].
    pub(crate) async fn case_attachment(
        &self,
        domain: &DomainId,
        case_id: &CaseId,
        name: &str,
    ) -> Result<Option<(Bytes, Option<String>)>, BlobError> {
        self.find(
            domain,
            "SELECT f.file->>'key', f.file->>'content_type' FROM (SELECT attachments::json->$3 AS file FROM cases \
             WHERE domain = $1 AND id = $2 AND shard = $4) f WHERE f.file IS NOT NULL",
            &[
                (&domain.as_str(), Type::TEXT),
                (&case_id.as_str(), Type::TEXT),
                (&name, Type::TEXT),
                (&document_shard(case_id.as_str()), Type::INT2),
            ],
        )
        .await
    }

    /// Finds bytes by a statement that returns their key and media type.
    async fn find(
        &self,
        domain: &DomainId,
        sql: &str,
        parameters: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)],
    ) -> Result<Option<(Bytes, Option<String>)>, BlobError> {
        let Some(home) = self.domains.home(domain).await? else { return Ok(None) };
        let client = home.get().await?;
        let Some(row) = client.query_typed_opt(sql, parameters).await? else { return Ok(None) };
        let (key, content_type): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        // One statement: the mover takes bytes from one table and enters them in the other in one transaction.
        let place = client
            .query_typed_one(
                "SELECT (SELECT bytes_zstd FROM xml_pending WHERE key = $1::uuid), p.pack, p.start, p.bytes \
                 FROM (SELECT 1) AS one LEFT JOIN xml_packs p ON p.key = $1::uuid",
                &[(&key, Type::TEXT)],
            )
            .await?;
        drop(client);
        let pending: Option<Vec<u8>> = place.try_get(0)?;
        let pack: Option<String> = place.try_get(1)?;
        let packed = match (pending, pack) {
            (Some(bytes), _) => Bytes::from(bytes),
            (None, Some(pack)) => {
                let damaged = |error| DatabaseError::damaged("xml_packs", error);
                let start = u64::try_from(place.try_get::<_, i64>(2)?).map_err(damaged)?;
                let length = u64::try_from(place.try_get::<_, i64>(3)?).map_err(damaged)?;
                self.store.get_range(&Path::from(pack), start..start + length).await?
            }
            (None, None) => {
                let key = Uuid::parse_str(&key).map_err(|error| DatabaseError::damaged("attachments", error))?;
                let bytes = self.store.get(&attachment_path(domain, key)).await?.bytes().await?;
                return Ok(Some((bytes, content_type)));
            }
        };
        Ok(Some((compress::unpack(&packed).map_err(BlobError::Damaged)?.into(), content_type)))
    }

    /// Ships rows of a database older than `delay` until `stop`.
    pub(crate) async fn run_mover(self, database: Pool, delay: Duration, stop: CancellationToken) {
        let mut connection = None;
        loop {
            // A store that does not answer must not hold up the end: what is cut off is rolled back, and its pack swept.
            let moved = stop.run_until_cancelled(self.move_once(&database, &mut connection, delay)).await;
            let Some(moved) = moved else { return };
            let pause = match moved {
                Ok(full) => {
                    if full {
                        Duration::ZERO
                    } else {
                        LOOK_EVERY
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "raw XML could not be moved to the object store");
                    connection = None;
                    RETRY_AFTER
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Ships one pack; true if there may be more.
    async fn move_once(
        &self,
        database: &Pool,
        slot: &mut Option<Connection>,
        delay: Duration,
    ) -> Result<bool, BlobError> {
        let connection = match slot.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => database.address().connect(Use::Long).await?,
        };
        connection.batch_execute("BEGIN").await?;
        let moved = self.move_locked(&connection, delay).await;
        let end = if moved.is_ok() { "COMMIT" } else { "ROLLBACK" };
        connection.batch_execute(end).await?;
        *slot = Some(connection);
        moved
    }

    async fn move_locked(&self, connection: &Connection, delay: Duration) -> Result<bool, BlobError> {
        let lock =
            connection.query_typed_one("SELECT pg_try_advisory_xact_lock($1)", &[(&MOVER_LOCK, Type::INT8)]).await?;
        if !lock.try_get::<_, bool>(0)? {
            return Ok(false);
        }
        let now = self.clock.now_micros();
        let before = now.saturating_sub(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX));
        let rows = connection
            .query_typed(
                "SELECT key::text, bytes_zstd FROM xml_pending WHERE written <= $1 ORDER BY written LIMIT $2",
                &[(&before, Type::INT8), (&PACK_ROWS, Type::INT8)],
            )
            .await?;
        let mut pack = BytesMut::new();
        let (mut keys, mut starts, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            if pack.len() >= PACK_BYTES {
                break;
            }
            let bytes: &[u8] = row.try_get(1)?;
            keys.push(row.try_get::<_, &str>(0)?);
            starts.push(i64::try_from(pack.len()).unwrap_or(i64::MAX));
            lengths.push(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            pack.extend_from_slice(bytes);
        }
        self.metrics.pending_rows.set(f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX)));
        if keys.is_empty() {
            return Ok(false);
        }
        let name = pack_name(now);
        self.store.put(&Path::from(name.as_str()), pack.freeze().into()).await?;
        connection
            .execute_typed(
                "INSERT INTO xml_packs (key, pack, start, bytes) \
                 SELECT key::uuid, $1, start, bytes FROM unnest($2::text[], $3::bigint[], $4::bigint[]) \
                 AS u(key, start, bytes)",
                &[
                    (&name, Type::TEXT),
                    (&keys, Type::TEXT_ARRAY),
                    (&starts, Type::INT8_ARRAY),
                    (&lengths, Type::INT8_ARRAY),
                ],
            )
            .await?;
        connection
            .execute_typed(
                "DELETE FROM xml_pending WHERE key = ANY (SELECT key::uuid FROM unnest($1::text[]) AS u(key))",
                &[(&keys, Type::TEXT_ARRAY)],
            )
            .await?;
        self.metrics.packs.increment(1);
        Ok(keys.len() < rows.len() || i64::try_from(rows.len()).unwrap_or_default() == PACK_ROWS)
    }
}

fn attachment_path(domain: &DomainId, key: Uuid) -> Path {
    Path::from(format!("{ATTACHMENTS}/{domain}/{}", key.simple()))
}

/// `xml/2026-01-31/<random>.pack`
fn pack_name(now: i64) -> String {
    let at = format_micros(now);
    let day = at.split('T').next().unwrap_or_default();
    format!("{PACKS}/{day}/{}.pack", Uuid::new_v4().simple())
}
