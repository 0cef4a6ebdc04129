//! What people and scripts do to stored forms and cases: archive, delete, rebuild, and the ways back.
//!
//! An operation goes first in its group, so that everything it needs is loaded as it is stored. Pure memory.
//! Source: forms-and-cases.md §12.4, §12.5, §15.3.

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, DomainId, FormId},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Act, Operation,
    apply::{CaseState, TransactionKind},
    dedupe::StoredForm,
    document::{FormState, case_doc_type},
    edit::{Recomputed, change_form, put_recomputed, recomputed_ledgers},
    ledger,
    process::put_cases,
    rebuild::{Rebuild, replay},
    world::{Purge, RecordDraft, World},
};
use crate::{
    casexml::ledger::find_ledger_changes,
    error::{DatabaseError, WriteError},
};

/// Why an operation was not done.
#[derive(Debug)]
pub(crate) enum OperationError {
    /// It cannot be; nothing changed.
    Refused(WriteError),
    /// Something loaded does not hold what it should.
    Database(DatabaseError),
}

impl From<DatabaseError> for OperationError {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

fn conflict(text: String) -> OperationError {
    OperationError::Refused(WriteError::Conflict(text))
}

/// Does an operation and returns the index of its record among the group's. `now` is in microseconds since 1970 UTC.
///
/// # Errors
/// [`OperationError`].
pub(crate) fn operate(world: &mut World, operation: &Operation, now: i64) -> Result<usize, OperationError> {
    let domain = &operation.domain;
    let mut draft = world.record(domain);
    match &operation.act {
        Act::Archive(id) => archive(world, &mut draft, operation, id, true, now)?,
        Act::Unarchive(id) => archive(world, &mut draft, operation, id, false, now)?,
        Act::DeleteForm(id) => {
            let form = form(world, domain, id)?;
            if form.deleted.is_some() {
                return Err(conflict(format!("form {id} is deleted already")));
            }
            let deleted = Some((now, deletion_id()));
            change_form(world, &mut draft, id, StoredForm { deleted, ..form }, now, None)?;
        }
        Act::UndeleteForm(id) => {
            let form = form(world, domain, id)?;
            if form.deleted.is_none() {
                return Err(conflict(format!("form {id} is not deleted")));
            }
            change_form(world, &mut draft, id, StoredForm { deleted: None, ..form }, now, None)?;
        }
        Act::DeleteCase(id) => {
            let case = case(world, domain, id)?;
            if case.deleted {
                return Err(conflict(format!("case {id} is deleted already")));
            }
            let (deleted_on, deletion_id) = (Some(now), Some(deletion_id()));
            let case = CaseState { deleted: true, deleted_on, deletion_id, server_modified_on: now, ..case };
            world.put_case(&mut draft, case)?;
        }
        Act::UndeleteCase(id) => {
            let case = case(world, domain, id)?;
            if case.deleted_on.is_none() {
                return Err(conflict(format!("nobody deleted case {id}")));
            }
            let case =
                CaseState { deleted: false, deleted_on: None, deletion_id: None, server_modified_on: now, ..case };
            world.put_case(&mut draft, case)?;
        }
        Act::PurgeCase(id) => purge(world, &mut draft, domain, id, now)?,
        Act::Rebuild(id) => {
            case(world, domain, id)?;
            let details = json!({"reason": "asked for", "user_id": operation.by}).to_string();
            rebuild(world, &mut draft, domain, std::slice::from_ref(id), None, now)?;
            let place = world.changes.cases.get(id).copied().unwrap_or_default();
            world.put_rebuild(domain, id, TransactionKind::REBUILD_BY_USER, now, &details, place);
            let rows = world.ledger_rows.get(id).cloned().unwrap_or_default();
            let mut ledgers = Recomputed::new();
            for row in rows {
                ledgers.entry(row.key.clone()).or_insert_with(|| (None, Vec::new())).1.push(row);
            }
            for (value, rows) in ledgers.values_mut() {
                *value = ledger::replay(rows);
            }
            put_recomputed(world, &mut draft, domain, ledgers, place)?;
        }
    }
    Ok(world.close_record(draft))
}

fn deletion_id() -> String {
    Uuid::new_v4().simple().to_string()
}

fn form(world: &World, domain: &DomainId, id: &FormId) -> Result<StoredForm, OperationError> {
    let found = world.forms.get(id).filter(|form| form.domain == *domain);
    found.cloned().ok_or_else(|| OperationError::Refused(WriteError::NotFound(format!("there is no form {id}"))))
}

fn case(world: &World, domain: &DomainId, id: &CaseId) -> Result<CaseState, OperationError> {
    let found = world.cases.get(id).filter(|case| case.domain == *domain);
    found.cloned().ok_or_else(|| OperationError::Refused(WriteError::NotFound(format!("there is no case {id}"))))
}

/// Takes a form's effects back, or lets them count again.
fn archive(
    world: &mut World,
    draft: &mut RecordDraft,
    operation: &Operation,
    id: &FormId,
    archived: bool,
    now: i64,
) -> Result<(), OperationError> {
    let domain = &operation.domain;
    let stored = form(world, domain, id)?;
    let (name, from, to) = match archived {
        true => ("archive", FormState::Normal, FormState::Archived),
        false => ("unarchive", FormState::Archived, FormState::Normal),
    };
    if stored.state != from || stored.deleted.is_some() {
        let is = stored.state.doc_type(stored.deleted.is_some());
        return Err(conflict(format!("form {id} is {is}; only {} can be {name}d", from.doc_type(false))));
    }
    let cases = stored.case_ids.clone();
    let received_on = stored.received_on;
    let place =
        change_form(world, draft, id, StoredForm { state: to, ..stored }, now, Some((name, operation.by.clone())))?;
    let details = json!({"form_id": id, "archived": archived}).to_string();
    for case_id in &cases {
        for row in world.transactions.get_mut(case_id).into_iter().flatten() {
            if row.form_id.as_ref() == Some(id) {
                row.revoked = archived;
                row.form_normal = !archived;
            }
        }
        world.changes.revoked.push((case_id.clone(), id.clone(), archived));
        world.put_rebuild(domain, case_id, TransactionKind::FORM_ARCHIVED, now, &details, place);
    }
    rebuild(world, draft, domain, &cases, (!archived).then_some(id), now)?;
    let new_rows = if archived { Vec::new() } else { ledger_rows(world, id, received_on)? };
    let ledgers = recomputed_ledgers(world, cases.iter(), id, &new_rows);
    put_recomputed(world, draft, domain, ledgers, place)?;
    Ok(())
}

/// The ledger transactions that a stored form makes, read from its document.
fn ledger_rows(world: &World, id: &FormId, received_on: i64) -> Result<Vec<ledger::LedgerRow>, DatabaseError> {
    let json = world.form_documents.get(id).and_then(|document| document.get("form")).and_then(Value::as_object);
    let json = json.ok_or_else(|| DatabaseError::damaged("forms", format!("{id} has no form")))?;
    // It was applied once, so its ledger blocks are in order.
    let changes = find_ledger_changes(json).map_err(|error| DatabaseError::damaged("forms", error))?;
    Ok(ledger::rows(&changes, id, received_on))
}

/// Replays cases and puts what comes of it.
fn rebuild(
    world: &mut World,
    draft: &mut RecordDraft,
    domain: &DomainId,
    cases: &[CaseId],
    unarchiving: Option<&FormId>,
    at: i64,
) -> Result<(), DatabaseError> {
    let replayed = cases.iter().map(|id| {
        let rows = world.transactions.get(id).map(Vec::as_slice).unwrap_or_default();
        (id.clone(), replay(id, world.cases.get(id), rows, &Rebuild { domain, at, unarchiving }))
    });
    let states = replayed.collect();
    put_cases(world, draft, states)
}

/// Deletes a case and all its forms for good.
fn purge(
    world: &mut World,
    draft: &mut RecordDraft,
    domain: &DomainId,
    id: &CaseId,
    now: i64,
) -> Result<(), OperationError> {
    let state = case(world, domain, id)?;
    if let Some(held) = world.holders.get(id).filter(|held| !held.is_empty()) {
        return Err(conflict(format!("case {id} cannot be deleted for good: {}", held.join("; "))));
    }
    let rows = world.transactions.remove(id).unwrap_or_default();
    let mut forms: Vec<FormId> = rows.into_iter().filter_map(|row| row.form_id).collect();
    forms.sort_unstable();
    forms.dedup();
    for form_id in &forms {
        let Some(form) = world.forms.remove(form_id) else { continue };
        draft.push(DocKind::Form, DocId::from(form_id), form.state.doc_type(true), Some(&form.xmlns), None);
    }
    draft.push(DocKind::Case, DocId::from(id), case_doc_type(true), Some(&state.case_type), None);
    let keys: Vec<_> = world.ledgers.keys().filter(|key| key.case_id == *id).cloned().collect();
    for key in keys {
        world.put_ledger(draft, domain, key, None)?;
    }
    world.cases.remove(id);
    world.changes.purged.push(Purge { domain: domain.clone(), case_id: id.clone(), forms, at: now });
    Ok(())
}
