//! The one place where a group is written and committed, with its change records in the same transaction.
//!
//! Everything that costs time (documents, compression) is done before the lane's counter is locked; then numbers are taken,
//! and all rows and the `COMMIT` go out in one pipeline. Source: architecture D4.

mod rows;

use std::sync::Arc;

use futures::future::{BoxFuture, try_join_all};
use schemas::{change::ChangeRecord, position::LaneId};
use tokio_postgres::types::ToSql;

use super::{
    apply::CaseState,
    world::{Draft, Place, World},
};
use crate::{
    changelog::{
        lane::{self, Numbers, take_numbers},
        outbox,
    },
    error::DatabaseError,
    store::{compress, pool::Connection},
};
pub(crate) use rows::{COMMITTED, USUAL};
use rows::{case_rows, directory_rows, form_change_rows, form_rows, ledger_rows, purge_rows, record_rows};

/// Why a group was not written.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// Nothing was written.
    Failed(DatabaseError),
    /// The connection was lost between sending `COMMIT` and its answer. [`COMMITTED`] tells.
    Unknown {
        /// What happened to the connection.
        error: DatabaseError,
        /// The records as they would be.
        records: Vec<Arc<ChangeRecord>>,
    },
}

impl From<DatabaseError> for CommitError {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(error)
    }
}

impl From<tokio_postgres::Error> for CommitError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, DatabaseError> {
    serde_json::to_string(value).map_err(|error| DatabaseError::damaged("cases", error))
}

/// What is made before the counter is locked.
struct Prepared<'w> {
    cases: Vec<PreparedCase<'w>>,
    /// Documents of [`Changes::forms`] and the cases they touched.
    forms: Vec<(Vec<u8>, String)>,
    /// Documents of [`Changes::moves`].
    moves: Vec<Vec<u8>>,
    /// Documents of [`Changes::form_changes`] and the cases they touched.
    form_changes: Vec<(Vec<u8>, String)>,
    records: Vec<Vec<u8>>,
}

struct PreparedCase<'w> {
    case: &'w CaseState,
    place: Place,
    properties: String,
    xform_ids: String,
    attachments: String,
}

impl<'w> Prepared<'w> {
    fn of(world: &'w World, drafts: &[Draft]) -> Result<Self, DatabaseError> {
        let changes = &world.changes;
        let pack = |text: &str| compress::pack(text.as_bytes()).map_err(|error| DatabaseError::damaged("forms", error));
        let changed = changes.cases.iter().filter_map(|(id, place)| Some((world.cases.get(id)?, *place)));
        let cases = changed.map(|(case, place)| {
            let (properties, xform_ids) = (json(&case.properties)?, json(&case.xform_ids)?);
            Ok(PreparedCase { case, place, properties, xform_ids, attachments: json(&case.attachments)? })
        });
        let forms = changes.forms.iter().map(|form| Ok((pack(form.document.get())?, json(&form.case_ids)?)));
        Ok(Self {
            cases: cases.collect::<Result<_, DatabaseError>>()?,
            forms: forms.collect::<Result<_, DatabaseError>>()?,
            moves: changes.moves.iter().map(|form| pack(form.document.get())).collect::<Result<_, _>>()?,
            form_changes: changes
                .form_changes
                .iter()
                .map(|change| Ok((pack(change.document.get())?, json(&change.form.case_ids)?)))
                .collect::<Result<_, DatabaseError>>()?,
            records: drafts.iter().map(|draft| outbox::pack(&draft.documents)).collect::<Result<_, _>>()?,
        })
    }
}

/// What a group is written as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    /// The lane.
    pub lane: LaneId,
    /// This transaction's alone.
    pub token: i64,
    /// Microseconds since 1970 UTC.
    pub now: i64,
}

/// Writes what the group changed and commits the open transaction. Returns the group's records with their numbers, in the
/// order of [`Changes::records`].
///
/// # Errors
/// [`CommitError`].
pub(crate) async fn commit(
    connection: &mut Connection,
    world: &mut World,
    ticket: Ticket,
) -> Result<Vec<Arc<ChangeRecord>>, CommitError> {
    let drafts = std::mem::take(&mut world.changes.records);
    let world = &*world;
    let prepared = Prepared::of(world, &drafts)?;
    let take = connection.statement(lane::TAKE).await?;
    let first = take_numbers(connection, &take, ticket.lane, drafts.len(), world.changes.documents, ticket.now).await?;
    let records = numbered(drafts, first);

    let mut rows = Vec::with_capacity(16);
    purge_rows(&mut rows, &world.changes);
    form_rows(&mut rows, &world.changes, &prepared, ticket, first);
    form_change_rows(&mut rows, &world.changes, &prepared, first);
    ledger_rows(&mut rows, &world.changes, first);
    case_rows(&mut rows, world, &prepared, first);
    directory_rows(&mut rows, &world.changes, first);
    record_rows(&mut rows, &records, &prepared, ticket);
    let mut statements = Vec::with_capacity(rows.len());
    for (sql, _) in &rows {
        statements.push(connection.statement(sql).await?);
    }

    let client = &**connection;
    let mut running: Vec<BoxFuture<'_, Result<(), tokio_postgres::Error>>> = Vec::with_capacity(rows.len() + 1);
    for (statement, (_, columns)) in statements.iter().zip(&rows) {
        running.push(Box::pin(async move {
            let parameters: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as _).collect();
            client.execute(statement, &parameters).await.map(|_| ())
        }));
    }
    running.push(Box::pin(client.batch_execute("COMMIT")));
    // Few futures: each is polled once in order before any is polled again, so all are sent in order without waiting.
    let sent = try_join_all(running).await;
    drop(rows);
    match sent {
        Ok(_) => Ok(records),
        Err(error) => match DatabaseError::from(error) {
            error @ DatabaseError::Unavailable(_) => Err(CommitError::Unknown { error, records }),
            error => Err(CommitError::Failed(error)),
        },
    }
}

fn numbered(drafts: Vec<Draft>, mut numbers: Numbers) -> Vec<Arc<ChangeRecord>> {
    let number = |mut draft: Draft| {
        for document in &mut draft.documents {
            document.stamp = numbers.stamp();
        }
        Arc::new(ChangeRecord { position: numbers.position(), domain: draft.domain, documents: draft.documents })
    };
    drafts.into_iter().map(number).collect()
}
