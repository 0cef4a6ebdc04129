//! A form that takes another's place in the history: edits, and error forms that are tried again.
//!
//! Cases and ledgers are recomputed from their transactions, with the new body's blocks at the old form's date (§12.3,
//! §15.3). The form pushed aside keeps its document under a fresh id. Pure memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, DomainId, FormId},
    time::format_micros,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{
    Outcome, Submission,
    apply::{CaseState, CaseTouch, CaseWork, FormContext, TransactionKind, apply_blocks, check_indices},
    dedupe::{StoredForm, fresh_id},
    document::{self, FormState, operation},
    extension,
    ledger::{self, LedgerRow, LedgerValue},
    process::{Fate, case_work, failed, put_cases, put_form, stored_touch},
    rebuild::{Rebuild, StoredTransaction, replay},
    world::{FormChange, FormMove, LedgerRowWrite, Place, RecordDraft, World},
};
use crate::{
    casexml::{CaseError, ledger::LedgerKey},
    error::DatabaseError,
    xform::ParsedForm,
};

/// Why a stored form leaves its id.
#[derive(Debug)]
pub(super) struct Aside {
    state: FormState,
    at: i64,
    edited_by: Option<String>,
    domain: DomainId,
}

impl Aside {
    /// An error form that was never applied makes room; it stays an error form.
    pub(super) fn unprocessed(submission: &Submission, at: i64) -> Self {
        Self { state: FormState::Error, at, edited_by: None, domain: submission.domain.clone() }
    }

    fn deprecated(submission: &Submission, form: &ParsedForm, at: i64) -> Self {
        let author = submission.envelope.author.clone().or_else(|| form.user_id.clone());
        let edited_by = Some(author.unwrap_or_else(|| "unknown".to_owned()));
        Self { state: FormState::Deprecated, at, edited_by, domain: submission.domain.clone() }
    }
}

/// Gives the form stored under `from` the id `to`: its row, document, history and attachments.
///
/// # Errors
/// [`DatabaseError::Damaged`] if its document was not loaded or cannot be written.
pub(super) fn set_aside(
    world: &mut World,
    draft: &mut RecordDraft,
    from: &FormId,
    to: &FormId,
    aside: &Aside,
) -> Result<(), DatabaseError> {
    let mut document =
        world.form_documents.remove(from).ok_or_else(|| DatabaseError::damaged("forms", format!("{from} is gone")))?;
    let subtype = document.get("xmlns").and_then(Value::as_str).map(str::to_owned);
    let mut set = |name: &str, value: Value| {
        document.insert(name.to_owned(), value);
    };
    set("_id", to.as_str().into());
    set("doc_type", aside.state.doc_type(false).into());
    set("state", aside.state.bits().into());
    set("orig_id", from.as_str().into());
    set("server_modified_on", format_micros(aside.at).into());
    if aside.edited_by.is_some() {
        set("edited_on", format_micros(aside.at).into());
    }
    let body = to_raw_value(&document).map_err(|error| DatabaseError::damaged("forms", error))?;
    let body: Arc<RawValue> = body.into();
    let place = draft.push(
        DocKind::Form,
        DocId::from(to),
        aside.state.doc_type(false),
        subtype.as_deref(),
        Some(Arc::clone(&body)),
    );
    world.changes.moves.push(FormMove {
        from: from.clone(),
        to: to.clone(),
        state: aside.state,
        at: aside.at,
        document: body,
        place,
        edited_by: aside.edited_by.clone(),
        domain: aside.domain.clone(),
    });
    Ok(())
}

/// Writes a stored form's new state: its row, its document, and a line of its history.
///
/// # Errors
/// [`DatabaseError::Damaged`] if its document was not loaded or cannot be written.
pub(super) fn change_form(
    world: &mut World,
    draft: &mut RecordDraft,
    id: &FormId,
    form: StoredForm,
    at: i64,
    operation: Option<(&'static str, String)>,
) -> Result<Place, DatabaseError> {
    let damaged = |error: &dyn std::fmt::Display| DatabaseError::damaged("forms", error);
    let document = world.form_documents.get_mut(id).ok_or_else(|| damaged(&format!("{id} is gone")))?;
    let doc_type = form.state.doc_type(form.deleted.is_some());
    let bits = form.state.bits() | if form.deleted.is_some() { FormState::DELETED_BIT } else { 0 };
    for (name, value) in [
        ("doc_type", Value::from(doc_type)),
        ("state", bits.into()),
        ("server_modified_on", format_micros(at).into()),
        ("problem", form.problem.clone().into()),
        ("initial_processing_complete", form.processed.into()),
    ] {
        document.insert(name.to_owned(), value);
    }
    if let Some((name, by)) = &operation {
        let history = document.entry("history").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(history) = history {
            history.push(document::operation(name, by, at));
        }
    }
    let body: Arc<RawValue> = to_raw_value(&document).map_err(|error| damaged(&error))?.into();
    let place = draft.push(DocKind::Form, DocId::from(id), doc_type, Some(&form.xmlns), Some(Arc::clone(&body)));
    // Whatever changes it again has to see it as it will be stored.
    world.forms.insert(id.clone(), StoredForm { in_group: true, ..form.clone() });
    world.changes.form_changes.push(FormChange {
        id: id.clone(),
        domain: form.domain.clone(),
        form,
        at,
        document: body,
        place,
        operation,
    });
    Ok(place)
}

/// Applies a form in place of the stored one of the same id, which becomes its deprecated version (§12.3).
///
/// # Errors
/// [`DatabaseError::Damaged`] if something loaded does not hold what it should.
pub(super) fn edit(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    now: i64,
) -> Result<(FormId, Outcome), DatabaseError> {
    let old = stored(world, &form.form_id)?;
    let fresh = fresh_id(&form.form_id);
    let aside = Aside::deprecated(submission, form, now);
    let mut history = history_of(world, &form.form_id);
    history.extend(aside.edited_by.as_ref().map(|by| operation("edit", by, now)));
    let fate = Fate {
        history,
        edited_on: Some(now),
        server_modified_on: now,
        deprecated_form_id: Some(fresh.clone()),
        ..Fate::new(form.form_id.clone(), FormState::Normal, old.received_on)
    };
    let old_cases = if old.state == FormState::Error { Vec::new() } else { old.case_ids };
    let details = json!({"reason": "form edited", "form_id": form.form_id, "deprecated_form_id": fresh}).to_string();
    // Files that the new form does not bring are carried over from the old one; its blocks may name those too.
    let carried = world.form_files.get(&form.form_id).map(Vec::as_slice).unwrap_or_default();
    let files: Vec<_> = submission.attachments.iter().chain(carried).cloned().collect();
    let replaced = case_work(form, submission.rules, &files)
        .and_then(|work| replace(world, submission, form, work, old.received_on, &old_cases, now));
    let done = match replaced {
        Ok(replaced) => {
            let case_ids: Vec<CaseId> = replaced.touches.iter().map(|touch| touch.case_id.clone()).collect();
            let place = put_form(world, draft, submission, Some(form), Fate { case_ids: case_ids.clone(), ..fate })?;
            put_replaced(world, draft, submission, form, replaced, (TransactionKind::FORM_EDITED, &details), place)?;
            extension::close(world, draft, submission, &form.form_id, &case_ids)?;
            (form.form_id.clone(), Outcome::Edited)
        }
        Err(error) => failed(world, draft, submission, form, fate, &error)?,
    };
    set_aside(world, draft, &form.form_id, &fresh, &aside)?;
    Ok(done)
}

/// Applies the stored error form again, at its place in the history. [`Outcome::Normal`] if it now can be applied; it stays
/// as it was sent.
///
/// # Errors
/// [`DatabaseError::Damaged`] if something loaded does not hold what it should.
pub(super) fn retry(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    now: i64,
) -> Result<Outcome, DatabaseError> {
    let old = stored(world, &form.form_id)?;
    let details = json!({"reason": "form processed again", "form_id": form.form_id}).to_string();
    let files = world.form_files.get(&form.form_id).cloned().unwrap_or_default();
    let replaced = case_work(form, submission.rules, &files)
        .and_then(|work| replace(world, submission, form, work, old.received_on, &[], now));
    match replaced {
        Ok(replaced) => {
            let case_ids: Vec<CaseId> = replaced.touches.iter().map(|touch| touch.case_id.clone()).collect();
            let (problem, state) = (None, FormState::Normal);
            let applied = StoredForm { state, problem, processed: true, case_ids: case_ids.clone(), ..old };
            let place = change_form(world, draft, &form.form_id, applied, now, None)?;
            put_replaced(
                world,
                draft,
                submission,
                form,
                replaced,
                (TransactionKind::FORM_REPROCESSED, &details),
                place,
            )?;
            extension::close(world, draft, submission, &form.form_id, &case_ids)?;
            Ok(Outcome::Normal)
        }
        Err(error) => {
            let problem = error.to_string();
            let failed = StoredForm { problem: Some(problem.clone()), ..old };
            change_form(world, draft, &form.form_id, failed, now, None)?;
            Ok(Outcome::Failed { problem, known: error.is_known() })
        }
    }
}

/// What was done to a stored form.
fn history_of(world: &World, id: &FormId) -> Vec<Value> {
    let document = world.form_documents.get(id);
    document.and_then(|document| document.get("history")?.as_array().cloned()).unwrap_or_default()
}

fn stored(world: &World, id: &FormId) -> Result<StoredForm, DatabaseError> {
    world.forms.get(id).cloned().ok_or_else(|| DatabaseError::damaged("forms", format!("{id} is gone")))
}

/// Ledgers as they are after a replay: value and transactions of each.
pub(super) type Recomputed = BTreeMap<LedgerKey, (Option<LedgerValue>, Vec<LedgerRow>)>;

/// The cases and ledgers of the old and the new body after the new one took the old one's place.
struct Replaced {
    states: BTreeMap<CaseId, CaseState>,
    touches: Vec<CaseTouch>,
    ledgers: Recomputed,
    at: i64,
}

fn replace(
    world: &World,
    submission: &Submission,
    form: &ParsedForm,
    work: CaseWork,
    received_on: i64,
    old_cases: &[CaseId],
    at: i64,
) -> Result<Replaced, CaseError> {
    let domain = &submission.domain;
    let context = FormContext { form_id: &form.form_id, domain, received_on, server_modified_on: at };
    let touched = work.case_ids();
    let all: BTreeSet<&CaseId> = old_cases.iter().chain(&touched).collect();
    let new_rows = ledger::rows(&work.ledgers, &form.form_id, received_on);
    let ledgers = recomputed_ledgers(world, all.iter().copied(), &form.form_id, &new_rows);
    // What the blocks do to each case is read off a scratch copy; the states themselves come from the replay.
    let mut scratch: BTreeMap<CaseId, CaseState> =
        touched.iter().filter_map(|id| Some((id.clone(), world.cases.get(id)?.clone()))).collect();
    let touches = apply_blocks(&mut scratch, work, &context)?;
    let mut states = BTreeMap::new();
    for id in all {
        let known = world.transactions.get(id).map(Vec::as_slice).unwrap_or_default();
        let others = known.iter().filter(|row| row.form_id.as_ref() != Some(&form.form_id));
        let mut rows: Vec<StoredTransaction> = others.cloned().collect();
        if let Some(touch) = touches.iter().find(|touch| touch.case_id == *id) {
            rows.push(stored_touch(submission, form, &form.form_id, received_on, touch.clone()));
        }
        // The edit of an archived form brings its case back as unarchiving it would.
        let rebuild = Rebuild { domain, at, unarchiving: Some(&form.form_id) };
        states.insert(id.clone(), replay(id, world.cases.get(id), &rows, &rebuild));
    }
    check_indices(&states, &touches, &|id| world.case_domain(id) == Some(domain))?;
    Ok(Replaced { states, touches, ledgers, at })
}

/// The ledgers of `cases` that a form's old rows or `new_rows` are about, with the new rows in place of the old ones.
pub(super) fn recomputed_ledgers<'a>(
    world: &World,
    cases: impl Iterator<Item = &'a CaseId>,
    form_id: &FormId,
    new_rows: &[LedgerRow],
) -> Recomputed {
    let known: Vec<&LedgerRow> = cases.filter_map(|id| world.ledger_rows.get(id)).flatten().collect();
    let old = known.iter().filter(|row| row.form_id == *form_id).map(|row| &row.key);
    let keys: BTreeSet<LedgerKey> = old.chain(new_rows.iter().map(|row| &row.key)).cloned().collect();
    let mut recomputed = Recomputed::new();
    for key in keys {
        let others = known.iter().filter(|row| row.key == key && row.form_id != *form_id);
        let mut rows: Vec<LedgerRow> = others.map(|row| (*row).clone()).collect();
        rows.extend(new_rows.iter().filter(|row| row.key == key).cloned());
        let value = ledger::replay(&mut rows);
        recomputed.insert(key, (value, rows));
    }
    recomputed
}

/// Writes recomputed ledgers: what was stored of each is replaced.
pub(super) fn put_recomputed(
    world: &mut World,
    draft: &mut RecordDraft,
    domain: &DomainId,
    ledgers: Recomputed,
    place: Place,
) -> Result<(), DatabaseError> {
    for (key, (value, rows)) in ledgers {
        if let Some(known) = world.ledger_rows.get_mut(&key.case_id) {
            known.retain(|row| row.key != key);
            known.extend(rows.iter().cloned());
        }
        world.changes.ledgers_rewritten.insert(key.clone());
        let write = |row| LedgerRowWrite { domain: domain.clone(), row, place };
        world.changes.ledger_rows.retain(|write| write.row.key != key);
        world.changes.ledger_rows.extend(rows.into_iter().map(write));
        world.put_ledger(draft, domain, key, value)?;
    }
    Ok(())
}

/// Writes recomputed cases and ledgers; a case that was there before gets a row that says why.
fn put_replaced(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    replaced: Replaced,
    (kind, details): (TransactionKind, &str),
    place: Place,
) -> Result<(), DatabaseError> {
    let domain = &submission.domain;
    let received_on = stored(world, &form.form_id)?.received_on;
    for id in replaced.states.keys() {
        world.changes.removed.push((id.clone(), form.form_id.clone()));
        if let Some(rows) = world.transactions.get_mut(id) {
            rows.retain(|row| row.form_id.as_ref() != Some(&form.form_id));
        }
        if world.cases.contains_key(id) {
            world.put_rebuild(domain, id, kind, replaced.at, details, place);
        }
    }
    put_cases(world, draft, replaced.states)?;
    for touch in replaced.touches {
        let case_id = touch.case_id.clone();
        let row = stored_touch(submission, form, &form.form_id, received_on, touch);
        world.put_transaction(domain, &case_id, row, place)?;
    }
    // The value stays, at what is left, also where no transaction is (§11).
    let ledgers = replaced.ledgers.into_iter().map(|(key, (value, rows))| {
        let nothing =
            || LedgerValue { balance: 0, last_modified: replaced.at, last_form_id: Some(form.form_id.clone()) };
        (key, (Some(value.unwrap_or_else(nothing)), rows))
    });
    put_recomputed(world, draft, domain, ledgers.collect(), place)
}
