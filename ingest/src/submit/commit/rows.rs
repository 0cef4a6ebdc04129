//! The statements of a commit, and the rows that go into them: one multi-row statement per table and kind of change.

use std::sync::Arc;

use schemas::{
    change::{ChangeRecord, DocKind},
    id::{CaseId, DocId, FormId},
};
use tokio_postgres::types::ToSql;

use super::{Prepared, Ticket};
use crate::{
    casexml::ledger::LedgerKey,
    changelog::{
        lane::{self, Numbers},
        outbox,
    },
    shard::document_shard,
    store::directory,
    submit::{
        apply::{CaseIndexState, CaseState},
        document::FormState,
        world::{Changes, FormChange, World},
    },
};

const MOVE_FORMS: &str = "UPDATE forms f SET id = u.new_id, orig_id = u.old_id, state = u.state, \
     edited_on = coalesce(u.edited_on, f.edited_on), server_modified_on = u.at, document_zstd = u.document, stamp = u.stamp \
     FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[], \
     $8::smallint[]) AS u(old_id, new_id, state, edited_on, at, document, stamp, shard) \
     WHERE f.shard = u.shard AND f.id = u.old_id";

const MOVE_ATTACHMENTS: &str = "UPDATE attachments a SET form_id = u.new_id \
     FROM unnest($1::text[], $2::text[], $3::smallint[]) AS u(old_id, new_id, shard) \
     WHERE a.shard = u.shard AND a.form_id = u.old_id";

/// Attachments of a form pushed aside whose names the new form does not bring: of the same bytes, which never change.
const CARRY_ATTACHMENTS: &str = "INSERT INTO attachments (form_id, domain, name, key, content_type, content_length, shard) \
     SELECT u.form_id, a.domain, a.name, a.key, a.content_type, a.content_length, u.shard \
     FROM unnest($1::text[], $2::text[], $3::smallint[]) AS u(form_id, aside_id, shard) \
     JOIN attachments a ON a.shard = u.shard AND a.form_id = u.aside_id ON CONFLICT DO NOTHING";

const COPY_OPERATIONS: &str = "INSERT INTO form_operations (form_id, domain, operation, user_id, at, shard) \
     SELECT u.aside_id, o.domain, o.operation, o.user_id, o.at, u.shard \
     FROM unnest($1::text[], $2::text[], $3::smallint[]) AS u(form_id, aside_id, shard) \
     JOIN form_operations o ON o.shard = u.shard AND o.form_id = u.form_id";

const ADD_EDITS: &str = "INSERT INTO form_operations (form_id, domain, operation, user_id, at, shard) \
     SELECT form_id, domain, 'edit', user_id, at, shard \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::smallint[]) \
     AS u(form_id, domain, user_id, at, shard)";

const PUT_FORMS: &str = "INSERT INTO forms (id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, \
     edited_on, orig_id, deprecated_form_id, problem, processed, xml_md5, xml_key, case_ids, document_zstd, stamp, shard) \
     SELECT id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, edited_on, orig_id, \
     deprecated_form_id, problem, processed, xml_md5, xml_key::uuid, case_ids, document, stamp, shard \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::bigint[], $8::bigint[], \
     $9::bigint[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::bytea[], $15::text[], $16::text[], \
     $17::bytea[], $18::bigint[], $19::smallint[]) AS u(id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, \
     edited_on, orig_id, deprecated_form_id, problem, processed, xml_md5, xml_key, case_ids, document, stamp, shard) \
     ON CONFLICT (shard, id) DO UPDATE SET xmlns = excluded.xmlns, app_id = excluded.app_id, user_id = excluded.user_id, \
     state = excluded.state, received_on = excluded.received_on, server_modified_on = excluded.server_modified_on, \
     edited_on = excluded.edited_on, orig_id = excluded.orig_id, deprecated_form_id = excluded.deprecated_form_id, \
     problem = excluded.problem, processed = excluded.processed, xml_md5 = excluded.xml_md5, xml_key = excluded.xml_key, \
     case_ids = excluded.case_ids, document_zstd = excluded.document_zstd, stamp = excluded.stamp";

const CHANGE_FORMS: &str = "UPDATE forms f SET state = u.state, problem = u.problem, processed = u.processed, \
     case_ids = u.case_ids, deleted_on = u.deleted_on, deletion_id = u.deletion_id, server_modified_on = u.at, \
     document_zstd = u.document, stamp = u.stamp \
     FROM unnest($1::text[], $2::smallint[], $3::text[], $4::boolean[], $5::text[], $6::bigint[], $7::text[], \
     $8::bigint[], $9::bytea[], $10::bigint[], $11::smallint[]) \
     AS u(id, state, problem, processed, case_ids, deleted_on, deletion_id, at, document, stamp, shard) \
     WHERE f.shard = u.shard AND f.id = u.id";

const ADD_OPERATIONS: &str = "INSERT INTO form_operations (form_id, domain, operation, user_id, at, shard) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::smallint[])";

const PUT_ATTACHMENTS: &str = "INSERT INTO attachments (form_id, domain, name, key, content_type, content_length, shard) \
     SELECT form_id, domain, name, key::uuid, content_type, content_length, shard \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::smallint[]) \
     AS u(form_id, domain, name, key, content_type, content_length, shard) ON CONFLICT DO NOTHING";

const PUT_BYTES: &str = "INSERT INTO xml_pending (key, domain, bytes_zstd, written) \
     SELECT key::uuid, domain, bytes, $4 FROM unnest($1::text[], $2::text[], $3::bytea[]) AS u(key, domain, bytes)";

const PUT_CASES: &str = "INSERT INTO cases (id, domain, type, name, owner_id, external_id, location_id, opened_on, \
     opened_by, modified_on, modified_by, server_modified_on, closed, closed_on, closed_by, deleted, deleted_on, \
     deletion_id, properties, xform_ids, stamp, attachments, shard) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
     $8::bigint[], $9::text[], $10::bigint[], $11::text[], $12::bigint[], $13::boolean[], $14::bigint[], $15::text[], \
     $16::boolean[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::bigint[], $22::text[], \
     $23::smallint[]) \
     ON CONFLICT (shard, id) DO UPDATE SET type = excluded.type, name = excluded.name, owner_id = excluded.owner_id, \
     external_id = excluded.external_id, location_id = excluded.location_id, opened_on = excluded.opened_on, \
     opened_by = excluded.opened_by, modified_on = excluded.modified_on, modified_by = excluded.modified_by, \
     server_modified_on = excluded.server_modified_on, closed = excluded.closed, closed_on = excluded.closed_on, \
     closed_by = excluded.closed_by, deleted = excluded.deleted, deleted_on = excluded.deleted_on, \
     deletion_id = excluded.deletion_id, properties = excluded.properties, xform_ids = excluded.xform_ids, \
     stamp = excluded.stamp, attachments = excluded.attachments";

/// Deletes the rows of a table that belong to ids; the columns are the ids and their shards.
macro_rules! delete_of {
    ($table:literal, $id:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " t USING unnest($1::text[], $2::smallint[]) AS u(id, shard) WHERE t.shard = u.shard AND t.",
            $id,
            " = u.id"
        )
    };
}

const CLEAR_INDICES: &str = delete_of!("case_indices", "case_id");

const PUT_INDICES: &str = "INSERT INTO case_indices (case_id, identifier, domain, place, referenced_id, referenced_type, \
     relationship, shard, referenced_shard) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::text[], \
     $8::smallint[], $9::smallint[])";

const REMOVE_TRANSACTIONS: &str = "DELETE FROM case_transactions t \
     USING unnest($1::text[], $2::text[], $3::smallint[]) AS u(case_id, form_id, shard) \
     WHERE t.shard = u.shard AND t.case_id = u.case_id AND t.form_id = u.form_id";

const PUT_TRANSACTIONS: &str = "INSERT INTO case_transactions (case_id, domain, form_id, type, server_date, client_date, \
     sync_log_id, revoked, details, blocks, written, shard, form_shard) \
     SELECT case_id, domain, form_id, type, server_date, client_date, sync_log_id, false, details, blocks, written, shard, \
     form_shard \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], \
     $9::text[], $10::bigint[], $11::smallint[], $12::smallint[]) \
     AS u(case_id, domain, form_id, type, server_date, client_date, sync_log_id, details, blocks, written, shard, \
     form_shard) \
     ON CONFLICT (shard, case_id, form_id, type) DO UPDATE SET server_date = excluded.server_date, \
     client_date = excluded.client_date, sync_log_id = excluded.sync_log_id, revoked = false, \
     details = excluded.details, blocks = excluded.blocks, written = excluded.written";

const REVOKE_TRANSACTIONS: &str = "UPDATE case_transactions t SET revoked = u.revoked \
     FROM unnest($1::text[], $2::text[], $3::boolean[], $4::smallint[]) AS u(case_id, form_id, revoked, shard) \
     WHERE t.shard = u.shard AND t.case_id = u.case_id AND t.form_id = u.form_id";

const PUT_LEDGERS: &str = "INSERT INTO ledger_values (case_id, section_id, entry_id, domain, balance, last_modified, \
     last_form_id, stamp, shard) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], \
     $8::bigint[], $9::smallint[]) \
     ON CONFLICT (shard, case_id, section_id, entry_id) DO UPDATE SET balance = excluded.balance, \
     last_modified = excluded.last_modified, last_form_id = excluded.last_form_id, stamp = excluded.stamp";

const DELETE_LEDGERS: &str = "DELETE FROM ledger_values v \
     USING unnest($1::text[], $2::text[], $3::text[], $4::smallint[]) AS u(case_id, section_id, entry_id, shard) \
     WHERE v.shard = u.shard AND v.case_id = u.case_id AND v.section_id = u.section_id AND v.entry_id = u.entry_id";

const CLEAR_LEDGER_ROWS: &str = "DELETE FROM ledger_transactions v \
     USING unnest($1::text[], $2::text[], $3::text[], $4::smallint[]) AS u(case_id, section_id, entry_id, shard) \
     WHERE v.shard = u.shard AND v.case_id = u.case_id AND v.section_id = u.section_id AND v.entry_id = u.entry_id";

const PUT_LEDGER_ROWS: &str = "INSERT INTO ledger_transactions (case_id, section_id, entry_id, domain, form_id, type, \
     server_date, report_date, quantity, delta, updated_balance, user_defined_type, written, number, shard) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::bigint[], \
     $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::bigint[], $14::integer[], \
     $15::smallint[])";

/// Deletes forms for good; columns are their ids and shards. The bytes in packs stay where they are, and nothing points to
/// them.
const PURGE_FORMS: &[&str] = &[
    "DELETE FROM xml_pending p USING unnest($1::text[], $2::smallint[]) AS u(id, shard), forms f \
     WHERE f.shard = u.shard AND f.id = u.id AND p.key = f.xml_key",
    "DELETE FROM xml_packs p USING unnest($1::text[], $2::smallint[]) AS u(id, shard), forms f \
     WHERE f.shard = u.shard AND f.id = u.id AND p.key = f.xml_key",
    "DELETE FROM xml_pending p USING unnest($1::text[], $2::smallint[]) AS u(id, shard), attachments a \
     WHERE a.shard = u.shard AND a.form_id = u.id AND p.key = a.key",
    "DELETE FROM xml_packs p USING unnest($1::text[], $2::smallint[]) AS u(id, shard), attachments a \
     WHERE a.shard = u.shard AND a.form_id = u.id AND p.key = a.key",
    delete_of!("attachments", "form_id"),
    delete_of!("form_operations", "form_id"),
    delete_of!("forms", "id"),
];

/// Deletes cases for good; columns are their ids and shards.
const PURGE_CASES: &[&str] = &[
    delete_of!("ledger_transactions", "case_id"),
    delete_of!("case_transactions", "case_id"),
    delete_of!("case_indices", "case_id"),
    delete_of!("cases", "id"),
];

const PUT_TOMBSTONES: &str = "INSERT INTO tombstones (kind, id, domain, deleted_on) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) \
     ON CONFLICT (kind, id) DO UPDATE SET domain = excluded.domain, deleted_on = excluded.deleted_on";

const PUT_RECORDS: &str = "INSERT INTO change_log (lane, sequence, stamp, domain, token, format, documents_zstd) \
     SELECT $1, sequence, stamp, domain, $2, $3, documents \
     FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::bytea[]) AS u(sequence, stamp, domain, documents)";

/// Whether a record was committed by the transaction of a token.
pub(crate) const COMMITTED: &str =
    "SELECT EXISTS (SELECT 1 FROM change_log WHERE lane = $1 AND sequence = $2 AND token = $3)";

type Parameter<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// One multi-row statement and its columns.
pub(super) type Rows<'a> = (&'static str, Vec<Parameter<'a>>);

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

/// [`FormState::DELETED_BIT`] as it is stored.
const DELETED_BIT: i16 = 64;

fn state_bits(state: FormState) -> i16 {
    i16::try_from(state.bits()).unwrap_or_default()
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(super) fn form_rows<'a>(
    rows: &mut Vec<Rows<'a>>,
    changes: &'a Changes,
    prepared: &'a Prepared<'a>,
    ticket: Ticket,
    first: Numbers,
) {
    let moves = &changes.moves;
    if !moves.is_empty() {
        let (from, to) = (|| column(moves, |m| m.from.as_str()), || column(moves, |m| m.to.as_str()));
        // The new id is of the same shard.
        let shard = || column(moves, |m| document_shard(m.from.as_str()));
        rows.push((COPY_OPERATIONS, vec![from(), to(), shard()]));
        rows.push((MOVE_ATTACHMENTS, vec![from(), to(), shard()]));
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
                shard(),
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
                column(forms, |f| document_shard(f.id.as_str())),
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
                column(files, |f| document_shard(f.form_id.as_str())),
            ],
        ));
    }
    let edits = || moves.iter().filter(|m| m.edited_by.is_some());
    if edits().next().is_some() {
        let shard = || column(edits(), |m| document_shard(m.from.as_str()));
        let carried = vec![column(edits(), |m| m.from.as_str()), column(edits(), |m| m.to.as_str()), shard()];
        rows.push((CARRY_ATTACHMENTS, carried));
        rows.push((
            ADD_EDITS,
            vec![
                column(edits(), |m| m.from.as_str()),
                column(edits(), |m| m.domain.as_str()),
                column(edits(), |m| m.edited_by.as_deref()),
                column(edits(), |m| m.at),
                shard(),
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

pub(super) fn case_rows<'a>(rows: &mut Vec<Rows<'a>>, world: &'a World, prepared: &'a Prepared<'a>, first: Numbers) {
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
                column(cases, |c| c.attachments.as_str()),
                column(cases, |c| document_shard(c.case.case_id.as_str())),
            ],
        ));
    }
    index_rows(rows, world);
    let removed = &world.changes.removed;
    if !removed.is_empty() {
        let columns = vec![
            column(removed, |(case, _)| case.as_str()),
            column(removed, |(_, form)| form.as_str()),
            column(removed, |(case, _)| document_shard(case.as_str())),
        ];
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
                column(transactions, |t| document_shard(t.case_id.as_str())),
                column(transactions, |t| t.form_id.as_ref().map(|id| document_shard(id.as_str()))),
            ],
        ));
    }
    let revoked = &world.changes.revoked;
    if !revoked.is_empty() {
        rows.push((
            REVOKE_TRANSACTIONS,
            vec![
                column(revoked, |(case, _, _)| case.as_str()),
                column(revoked, |(_, form, _)| form.as_str()),
                column(revoked, |(_, _, revoked)| *revoked),
                column(revoked, |(case, _, _)| document_shard(case.as_str())),
            ],
        ));
    }
}

/// Stored forms that change under their id.
pub(super) fn form_change_rows<'a>(
    rows: &mut Vec<Rows<'a>>,
    changes: &'a Changes,
    prepared: &'a Prepared<'a>,
    first: Numbers,
) {
    let changed = &changes.form_changes;
    if changed.is_empty() {
        return;
    }
    let bits =
        |change: &FormChange| state_bits(change.form.state) | change.form.deleted.as_ref().map_or(0, |_| DELETED_BIT);
    rows.push((
        CHANGE_FORMS,
        vec![
            column(changed, |c| c.id.as_str()),
            column(changed, bits),
            column(changed, |c| c.form.problem.as_deref()),
            column(changed, |c| c.form.processed),
            column(&prepared.form_changes, |(_, case_ids)| case_ids.as_str()),
            column(changed, |c| c.form.deleted.as_ref().map(|(on, _)| *on)),
            column(changed, |c| c.form.deleted.as_ref().map(|(_, id)| id.as_str())),
            column(changed, |c| c.at),
            column(&prepared.form_changes, |(document, _)| document.as_slice()),
            column(changed, |c| first.stamp_at(c.place)),
            column(changed, |c| document_shard(c.id.as_str())),
        ],
    ));
    let done = || changed.iter().filter_map(|change| Some((change, change.operation.as_ref()?)));
    if done().next().is_some() {
        rows.push((
            ADD_OPERATIONS,
            vec![
                column(done(), |(change, _)| change.id.as_str()),
                column(done(), |(change, _)| change.domain.as_str()),
                column(done(), |(_, (name, _))| *name),
                column(done(), |(_, (_, by))| by.as_str()),
                column(done(), |(change, _)| change.at),
                column(done(), |(change, _)| document_shard(change.id.as_str())),
            ],
        ));
    }
}

/// Documents that are deleted for good.
pub(super) fn purge_rows<'a>(rows: &mut Vec<Rows<'a>>, changes: &'a Changes) {
    let purged = &changes.purged;
    if purged.is_empty() {
        return;
    }
    let forms = || purged.iter().flat_map(|purge| purge.forms.iter().map(move |form| (purge, form)));
    for sql in PURGE_FORMS {
        let shard = column(forms(), |(_, form)| document_shard(form.as_str()));
        rows.push((sql, vec![column(forms(), |(_, form)| form.as_str()), shard]));
    }
    for sql in PURGE_CASES {
        let shard = column(purged, |purge| document_shard(purge.case_id.as_str()));
        rows.push((sql, vec![column(purged, |purge| purge.case_id.as_str()), shard]));
    }
    let all = || {
        let cases = purged.iter().map(|purge| ("case", purge.case_id.as_str(), purge));
        cases.chain(forms().map(|(purge, form)| ("form", form.as_str(), purge)))
    };
    rows.push((
        PUT_TOMBSTONES,
        vec![
            column(all(), |(kind, _, _)| kind),
            column(all(), |(_, id, _)| id),
            column(all(), |(_, _, purge)| purge.domain.as_str()),
            column(all(), |(_, _, purge)| purge.at),
        ],
    ));
}

pub(super) fn ledger_rows<'a>(rows: &mut Vec<Rows<'a>>, changes: &'a Changes, first: Numbers) {
    let keys = |ledgers: &[&'a LedgerKey]| -> Vec<Parameter<'a>> {
        vec![
            column(ledgers.to_vec(), |key| key.case_id.as_str()),
            column(ledgers.to_vec(), |key| key.section_id.as_str()),
            column(ledgers.to_vec(), |key| key.entry_id.as_str()),
        ]
    };
    let shard = |ledgers: &[&'a LedgerKey]| column(ledgers.to_vec(), |key| document_shard(key.case_id.as_str()));
    let kept: Vec<_> = changes.ledgers.iter().filter_map(|(key, w)| Some((key, w, w.value.as_ref()?))).collect();
    if !kept.is_empty() {
        let of: Vec<_> = kept.iter().map(|(key, _, _)| *key).collect();
        let mut columns = keys(&of);
        columns.extend([
            column(&kept, |(_, write, _)| write.domain.as_str()),
            column(&kept, |(_, _, value)| value.balance),
            column(&kept, |(_, _, value)| value.last_modified),
            column(&kept, |(_, _, value)| value.last_form_id.as_ref().map(FormId::as_str)),
            column(&kept, |(_, write, _)| first.stamp_at(write.place)),
            shard(&of),
        ]);
        rows.push((PUT_LEDGERS, columns));
    }
    let gone: Vec<_> = changes.ledgers.iter().filter(|(_, write)| write.value.is_none()).map(|(key, _)| key).collect();
    if !gone.is_empty() {
        let mut columns = keys(&gone);
        columns.push(shard(&gone));
        rows.push((DELETE_LEDGERS, columns));
    }
    let rewritten: Vec<_> = changes.ledgers_rewritten.iter().collect();
    if !rewritten.is_empty() {
        let mut columns = keys(&rewritten);
        columns.push(shard(&rewritten));
        rows.push((CLEAR_LEDGER_ROWS, columns));
    }
    let written = &changes.ledger_rows;
    if !written.is_empty() {
        let of: Vec<_> = written.iter().map(|write| &write.row.key).collect();
        let mut columns = keys(&of);
        columns.extend([
            column(written, |w| w.domain.as_str()),
            column(written, |w| w.row.form_id.as_str()),
            column(written, |w| w.row.kind.bits()),
            column(written, |w| w.row.server_date),
            column(written, |w| w.row.report_date),
            column(written, |w| w.row.quantity),
            column(written, |w| w.row.delta),
            column(written, |w| w.row.updated_balance),
            column(written, |w| w.row.user_defined_type.as_deref()),
            column(written, |w| first.stamp_at(w.place)),
            column(written, |w| w.row.number),
            shard(&of),
        ]);
        rows.push((PUT_LEDGER_ROWS, columns));
    }
}

fn index_rows<'a>(rows: &mut Vec<Rows<'a>>, world: &'a World) {
    let changed: Vec<&CaseState> = world.changes.indices.iter().filter_map(|id| world.cases.get(id)).collect();
    if changed.is_empty() {
        return;
    }
    let shard = column(&world.changes.indices, |id| document_shard(id.as_str()));
    rows.push((CLEAR_INDICES, vec![column(&world.changes.indices, CaseId::as_str), shard]));
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
            column(&all, |(case, _, _)| document_shard(case.case_id.as_str())),
            column(&all, |(_, _, index)| document_shard(index.referenced_id.as_str())),
        ],
    ));
}

pub(super) fn directory_rows<'a>(rows: &mut Vec<Rows<'a>>, changes: &'a Changes, first: Numbers) {
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
                column(accounts.values(), |account| account.digest_hash.as_deref()),
            ],
        ));
    }
    let entering = || changes.memberships.iter().filter_map(|(key, permissions)| Some((key, permissions.as_ref()?)));
    if entering().next().is_some() {
        let columns = vec![
            column(entering(), |((id, _), _)| id.as_str()),
            column(entering(), |((_, domain), _)| domain.as_str()),
            column(entering(), |(_, permissions)| permissions.join(",")),
        ];
        rows.push((directory::UPSERT_MEMBERSHIPS, columns));
    }
    let leaving = || changes.memberships.iter().filter(|(_, permissions)| permissions.is_none());
    if leaving().next().is_some() {
        let columns =
            vec![column(leaving(), |((id, _), _)| id.as_str()), column(leaving(), |((_, domain), _)| domain.as_str())];
        rows.push((directory::DELETE_MEMBERSHIPS, columns));
    }
}

pub(super) fn record_rows<'a>(
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
