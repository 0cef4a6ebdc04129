//! The one place where a group is written and committed, with its change records in the same transaction.
//!
//! Everything that costs time (documents, compression) is done before the lane's counter is locked; then numbers are taken,
//! and all rows and the `COMMIT` go out in one pipeline. Source: architecture D4.

use std::sync::Arc;

use futures::future::{BoxFuture, try_join_all};
use schemas::{
    change::{ChangeRecord, DocKind},
    id::{CaseId, DocId, FormId},
    position::LaneId,
};
use tokio_postgres::types::ToSql;

use super::{
    apply::{CaseIndexState, CaseState},
    document::FormState,
    world::{Changes, Draft, Place, World},
};
use crate::{
    changelog::{
        lane::{self, Numbers, take_numbers},
        outbox,
    },
    error::DatabaseError,
    store::{compress, directory, pool::Connection},
};

const MOVE_FORMS: &str = "UPDATE forms f SET id = u.new_id, orig_id = u.old_id, state = u.state, \
     edited_on = coalesce(u.edited_on, f.edited_on), server_modified_on = u.at, document_zstd = u.document, stamp = u.stamp \
     FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[]) \
     AS u(old_id, new_id, state, edited_on, at, document, stamp) WHERE f.id = u.old_id";

const MOVE_ATTACHMENTS: &str = "UPDATE attachments a SET form_id = u.new_id \
     FROM unnest($1::text[], $2::text[]) AS u(old_id, new_id) WHERE a.form_id = u.old_id";

/// Attachments of a form pushed aside whose names the new form does not bring: of the same bytes, which never change.
const CARRY_ATTACHMENTS: &str = "INSERT INTO attachments (form_id, domain, name, key, content_type, content_length) \
     SELECT u.form_id, a.domain, a.name, a.key, a.content_type, a.content_length \
     FROM unnest($1::text[], $2::text[]) AS u(form_id, aside_id) JOIN attachments a ON a.form_id = u.aside_id \
     ON CONFLICT DO NOTHING";

const COPY_OPERATIONS: &str = "INSERT INTO form_operations (form_id, domain, operation, user_id, at) \
     SELECT u.aside_id, o.domain, o.operation, o.user_id, o.at \
     FROM unnest($1::text[], $2::text[]) AS u(form_id, aside_id) JOIN form_operations o ON o.form_id = u.form_id";

const ADD_EDITS: &str = "INSERT INTO form_operations (form_id, domain, operation, user_id, at) \
     SELECT form_id, domain, 'edit', user_id, at \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u(form_id, domain, user_id, at)";

const PUT_FORMS: &str = "INSERT INTO forms (id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, \
     edited_on, orig_id, deprecated_form_id, problem, processed, xml_md5, xml_key, case_ids, document_zstd, stamp) \
     SELECT id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, edited_on, orig_id, \
     deprecated_form_id, problem, processed, xml_md5, xml_key::uuid, case_ids, document, stamp \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::bigint[], $8::bigint[], \
     $9::bigint[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::bytea[], $15::text[], $16::text[], \
     $17::bytea[], $18::bigint[]) AS u(id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, \
     edited_on, orig_id, deprecated_form_id, problem, processed, xml_md5, xml_key, case_ids, document, stamp) \
     ON CONFLICT (id) DO UPDATE SET xmlns = excluded.xmlns, app_id = excluded.app_id, user_id = excluded.user_id, \
     state = excluded.state, received_on = excluded.received_on, server_modified_on = excluded.server_modified_on, \
     edited_on = excluded.edited_on, orig_id = excluded.orig_id, deprecated_form_id = excluded.deprecated_form_id, \
     problem = excluded.problem, processed = excluded.processed, xml_md5 = excluded.xml_md5, xml_key = excluded.xml_key, \
     case_ids = excluded.case_ids, document_zstd = excluded.document_zstd, stamp = excluded.stamp";

const PUT_ATTACHMENTS: &str = "INSERT INTO attachments (form_id, domain, name, key, content_type, content_length) \
     SELECT form_id, domain, name, key::uuid, content_type, content_length \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[]) \
     AS u(form_id, domain, name, key, content_type, content_length) ON CONFLICT DO NOTHING";

const PUT_BYTES: &str = "INSERT INTO xml_pending (key, domain, bytes_zstd, written) \
     SELECT key::uuid, domain, bytes, $4 FROM unnest($1::text[], $2::text[], $3::bytea[]) AS u(key, domain, bytes)";

const PUT_CASES: &str = "INSERT INTO cases (id, domain, type, name, owner_id, external_id, location_id, opened_on, \
     opened_by, modified_on, modified_by, server_modified_on, closed, closed_on, closed_by, deleted, deleted_on, \
     deletion_id, properties, xform_ids, stamp) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
     $8::bigint[], $9::text[], $10::bigint[], $11::text[], $12::bigint[], $13::boolean[], $14::bigint[], $15::text[], \
     $16::boolean[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::bigint[]) \
     ON CONFLICT (id) DO UPDATE SET type = excluded.type, name = excluded.name, owner_id = excluded.owner_id, \
     external_id = excluded.external_id, location_id = excluded.location_id, opened_on = excluded.opened_on, \
     opened_by = excluded.opened_by, modified_on = excluded.modified_on, modified_by = excluded.modified_by, \
     server_modified_on = excluded.server_modified_on, closed = excluded.closed, closed_on = excluded.closed_on, \
     closed_by = excluded.closed_by, deleted = excluded.deleted, deleted_on = excluded.deleted_on, \
     deletion_id = excluded.deletion_id, properties = excluded.properties, xform_ids = excluded.xform_ids, \
     stamp = excluded.stamp";

const CLEAR_INDICES: &str = "DELETE FROM case_indices WHERE case_id = ANY($1)";

const PUT_INDICES: &str = "INSERT INTO case_indices (case_id, identifier, domain, place, referenced_id, referenced_type, \
     relationship) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::text[])";

const REMOVE_TRANSACTIONS: &str = "DELETE FROM case_transactions t \
     USING unnest($1::text[], $2::text[]) AS u(case_id, form_id) WHERE t.case_id = u.case_id AND t.form_id = u.form_id";

const PUT_TRANSACTIONS: &str = "INSERT INTO case_transactions (case_id, domain, form_id, type, server_date, client_date, \
     sync_log_id, revoked, details, blocks, written) \
     SELECT case_id, domain, form_id, type, server_date, client_date, sync_log_id, false, details, blocks, written \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], \
     $9::text[], $10::bigint[]) \
     AS u(case_id, domain, form_id, type, server_date, client_date, sync_log_id, details, blocks, written) \
     ON CONFLICT (case_id, form_id, type) DO UPDATE SET server_date = excluded.server_date, \
     client_date = excluded.client_date, sync_log_id = excluded.sync_log_id, revoked = false, \
     details = excluded.details, blocks = excluded.blocks, written = excluded.written";

const PUT_RECORDS: &str = "INSERT INTO change_log (lane, sequence, stamp, domain, token, format, documents_zstd) \
     SELECT $1, sequence, stamp, domain, $2, $3, documents \
     FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::bytea[]) AS u(sequence, stamp, domain, documents)";

/// Whether a record was committed by the transaction of a token.
pub(crate) const COMMITTED: &str =
    "SELECT EXISTS (SELECT 1 FROM change_log WHERE lane = $1 AND sequence = $2 AND token = $3)";

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

type Parameter<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// One multi-row statement and its columns.
type Rows<'a> = (&'static str, Vec<Parameter<'a>>);

/// Statements that nearly every group runs; prepared when a connection is made, so that none is while the counter is locked.
pub(crate) const USUAL: &[&str] =
    &[lane::TAKE, PUT_FORMS, PUT_BYTES, PUT_CASES, CLEAR_INDICES, PUT_INDICES, PUT_TRANSACTIONS, PUT_RECORDS];

/// The values of one column.
fn column<'a, R, T: ToSql + Sync + Send + 'a>(
    rows: impl IntoIterator<Item = R>,
    value: impl Fn(R) -> T,
) -> Parameter<'a> {
    Box::new(rows.into_iter().map(value).collect::<Vec<T>>())
}

fn state_bits(state: FormState) -> i16 {
    i16::try_from(state.bits()).unwrap_or_default()
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
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
    records: Vec<Vec<u8>>,
}

struct PreparedCase<'w> {
    case: &'w CaseState,
    place: Place,
    properties: String,
    xform_ids: String,
}

impl<'w> Prepared<'w> {
    fn of(world: &'w World, drafts: &[Draft]) -> Result<Self, DatabaseError> {
        let changes = &world.changes;
        let pack = |text: &str| compress::pack(text.as_bytes()).map_err(|error| DatabaseError::damaged("forms", error));
        let changed = changes.cases.iter().filter_map(|(id, place)| Some((world.cases.get(id)?, *place)));
        let cases = changed.map(|(case, place)| {
            Ok(PreparedCase { case, place, properties: json(&case.properties)?, xform_ids: json(&case.xform_ids)? })
        });
        let forms = changes.forms.iter().map(|form| Ok((pack(form.document.get())?, json(&form.case_ids)?)));
        Ok(Self {
            cases: cases.collect::<Result<_, DatabaseError>>()?,
            forms: forms.collect::<Result<_, DatabaseError>>()?,
            moves: changes.moves.iter().map(|form| pack(form.document.get())).collect::<Result<_, _>>()?,
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
    form_rows(&mut rows, &world.changes, &prepared, ticket, first);
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

fn form_rows<'a>(
    rows: &mut Vec<Rows<'a>>,
    changes: &'a Changes,
    prepared: &'a Prepared<'a>,
    ticket: Ticket,
    first: Numbers,
) {
    let moves = &changes.moves;
    if !moves.is_empty() {
        let (from, to) = (|| column(moves, |m| m.from.as_str()), || column(moves, |m| m.to.as_str()));
        rows.push((COPY_OPERATIONS, vec![from(), to()]));
        rows.push((MOVE_ATTACHMENTS, vec![from(), to()]));
        rows.push((
            MOVE_FORMS,
            vec![
                from(),
                to(),
                column(moves, |m| state_bits(m.state)),
                column(moves, |m| m.edited_by.as_ref().map(|_| m.at)),
                column(moves, |m| m.at),
                column(&prepared.moves, Vec::as_slice),
                column(moves, |m| first.stamp_at(m.place)),
            ],
        ));
    }
    let forms = &changes.forms;
    if !forms.is_empty() {
        rows.push((
            PUT_FORMS,
            vec![
                column(forms, |f| f.id.as_str()),
                column(forms, |f| f.domain.as_str()),
                column(forms, |f| f.xmlns.as_str()),
                column(forms, |f| f.app_id.as_deref()),
                column(forms, |f| f.user_id.as_deref()),
                column(forms, |f| state_bits(f.state)),
                column(forms, |f| f.received_on),
                column(forms, |f| f.server_modified_on),
                column(forms, |f| f.edited_on),
                column(forms, |f| f.orig_id.as_ref().map(FormId::as_str)),
                column(forms, |f| f.deprecated_form_id.as_ref().map(FormId::as_str)),
                column(forms, |f| f.problem.as_deref()),
                column(forms, |f| f.processed),
                column(forms, |f| f.xml_md5.as_slice()),
                column(forms, |f| f.xml_key.to_string()),
                column(&prepared.forms, |(_, case_ids)| case_ids.as_str()),
                column(&prepared.forms, |(document, _)| document.as_slice()),
                column(forms, |f| first.stamp_at(f.place)),
            ],
        ));
    }
    let files = &changes.attachments;
    if !files.is_empty() {
        rows.push((
            PUT_ATTACHMENTS,
            vec![
                column(files, |f| f.form_id.as_str()),
                column(files, |f| f.domain.as_str()),
                column(files, |f| f.attachment.name.as_str()),
                column(files, |f| f.attachment.key.to_string()),
                column(files, |f| f.attachment.content_type.as_deref()),
                column(files, |f| length(f.attachment.length)),
            ],
        ));
    }
    let edits = || moves.iter().filter(|m| m.edited_by.is_some());
    if edits().next().is_some() {
        rows.push((CARRY_ATTACHMENTS, vec![column(edits(), |m| m.from.as_str()), column(edits(), |m| m.to.as_str())]));
        rows.push((
            ADD_EDITS,
            vec![
                column(edits(), |m| m.from.as_str()),
                column(edits(), |m| m.domain.as_str()),
                column(edits(), |m| m.edited_by.as_deref()),
                column(edits(), |m| m.at),
            ],
        ));
    }
    let bytes = &changes.bytes;
    if !bytes.is_empty() {
        rows.push((
            PUT_BYTES,
            vec![
                column(bytes.keys(), uuid::Uuid::to_string),
                column(bytes.values(), |(domain, _)| domain.as_str()),
                column(bytes.values(), |(_, bytes)| bytes.as_slice()),
                Box::new(ticket.now),
            ],
        ));
    }
}

fn case_rows<'a>(rows: &mut Vec<Rows<'a>>, world: &'a World, prepared: &'a Prepared<'a>, first: Numbers) {
    let cases = &prepared.cases;
    if !cases.is_empty() {
        rows.push((
            PUT_CASES,
            vec![
                column(cases, |c| c.case.case_id.as_str()),
                column(cases, |c| c.case.domain.as_str()),
                column(cases, |c| c.case.case_type.as_str()),
                column(cases, |c| c.case.name.as_str()),
                column(cases, |c| c.case.owner_id.as_str()),
                column(cases, |c| c.case.external_id.as_deref()),
                column(cases, |c| c.case.location_id.as_deref()),
                column(cases, |c| c.case.opened_on),
                column(cases, |c| c.case.opened_by.as_deref()),
                column(cases, |c| c.case.modified_on),
                column(cases, |c| c.case.modified_by.as_str()),
                column(cases, |c| c.case.server_modified_on),
                column(cases, |c| c.case.closed),
                column(cases, |c| c.case.closed_on),
                column(cases, |c| c.case.closed_by.as_deref()),
                column(cases, |c| c.case.deleted),
                column(cases, |c| c.case.deleted_on),
                column(cases, |c| c.case.deletion_id.as_deref()),
                column(cases, |c| c.properties.as_str()),
                column(cases, |c| c.xform_ids.as_str()),
                column(cases, |c| first.stamp_at(c.place)),
            ],
        ));
    }
    index_rows(rows, world);
    let removed = &world.changes.removed;
    if !removed.is_empty() {
        let columns = vec![column(removed, |(case, _)| case.as_str()), column(removed, |(_, form)| form.as_str())];
        rows.push((REMOVE_TRANSACTIONS, columns));
    }
    let transactions = &world.changes.transactions;
    if !transactions.is_empty() {
        rows.push((
            PUT_TRANSACTIONS,
            vec![
                column(transactions, |t| t.case_id.as_str()),
                column(transactions, |t| t.domain.as_str()),
                column(transactions, |t| t.form_id.as_ref().map(FormId::as_str)),
                column(transactions, |t| t.kind.0),
                column(transactions, |t| t.server_date),
                column(transactions, |t| t.client_date),
                column(transactions, |t| t.sync_log_id.as_deref()),
                column(transactions, |t| t.details.as_deref()),
                column(transactions, |t| t.blocks.as_deref()),
                column(transactions, |t| first.stamp_at(t.place)),
            ],
        ));
    }
}

fn index_rows<'a>(rows: &mut Vec<Rows<'a>>, world: &'a World) {
    let changed: Vec<&CaseState> = world.changes.indices.iter().filter_map(|id| world.cases.get(id)).collect();
    if changed.is_empty() {
        return;
    }
    rows.push((CLEAR_INDICES, vec![column(&world.changes.indices, CaseId::as_str)]));
    let all: Vec<(&CaseState, i32, &CaseIndexState)> = changed
        .into_iter()
        .flat_map(|case| (0..).zip(&case.indices).map(move |(place, index)| (case, place, index)))
        .collect();
    rows.push((
        PUT_INDICES,
        vec![
            column(&all, |(case, _, _)| case.case_id.as_str()),
            column(&all, |(_, _, index)| index.identifier.as_str()),
            column(&all, |(case, _, _)| case.domain.as_str()),
            column(&all, |(_, place, _)| *place),
            column(&all, |(_, _, index)| index.referenced_id.as_str()),
            column(&all, |(_, _, index)| index.referenced_type.as_str()),
            column(&all, |(_, _, index)| index.relationship.name()),
        ],
    ));
}

fn directory_rows<'a>(rows: &mut Vec<Rows<'a>>, changes: &'a Changes, first: Numbers) {
    for kind in DocKind::ALL {
        let (Some(upsert), Some(delete)) = (directory::upsert(kind), directory::delete(kind)) else { continue };
        let of_kind = || changes.directory.iter().filter(move |((_, other, _), _)| *other == kind);
        let kept = || of_kind().filter_map(|(key, row)| Some((key, row.document.as_deref()?, row.place)));
        let gone = || of_kind().filter(|(_, row)| row.document.is_none());
        if kept().next().is_some() {
            rows.push((
                upsert,
                vec![
                    column(kept(), |((domain, _, _), _, _)| domain.as_str()),
                    column(kept(), |((_, _, id), _, _)| id.as_str()),
                    column(kept(), |(_, document, _)| document.get()),
                    column(kept(), |(_, _, place)| first.stamp_at(place)),
                ],
            ));
        }
        if gone().next().is_some() {
            let columns = vec![
                column(gone(), |((domain, _, _), _)| domain.as_str()),
                column(gone(), |((_, _, id), _)| id.as_str()),
            ];
            rows.push((delete, columns));
        }
    }
    let accounts = &changes.accounts;
    if !accounts.is_empty() {
        rows.push((
            directory::UPSERT_ACCOUNTS,
            vec![
                column(accounts.keys(), DocId::as_str),
                column(accounts.values(), |account| account.username.as_str()),
                column(accounts.values(), |account| account.password_hash.as_deref()),
                column(accounts.values(), |account| account.is_active),
            ],
        ));
        let columns =
            vec![column(accounts.keys(), DocId::as_str), column(accounts.values(), |account| account.domain.as_str())];
        rows.push((directory::INSERT_MEMBERSHIPS, columns));
    }
}

fn record_rows<'a>(
    rows: &mut Vec<Rows<'a>>,
    records: &'a [Arc<ChangeRecord>],
    prepared: &'a Prepared<'a>,
    ticket: Ticket,
) {
    let stamp = |record: &Arc<ChangeRecord>| record.documents.first().map_or(ticket.now, |document| document.stamp.0);
    rows.push((
        PUT_RECORDS,
        vec![
            Box::new(ticket.lane.to_i32()),
            Box::new(ticket.token),
            Box::new(outbox::FORMAT),
            column(records, |record| i64::try_from(record.position.sequence.0).unwrap_or(i64::MAX)),
            column(records, stamp),
            column(records, |record| record.domain.as_str()),
            column(&prepared.records, Vec::as_slice),
        ],
    ));
}
