//! A form that takes another's place in the history: edits, and error forms that are tried again.
//!
//! The cases are recomputed from their transactions, with the new body's blocks at the old form's date (§12.3, §15.3). The
//! form pushed aside keeps its document under a fresh id. Pure memory.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, FormId},
    time::format_micros,
};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    Outcome, Submission,
    apply::{CaseState, CaseTouch, FormContext, TransactionKind, apply_blocks, check_indices},
    dedupe::{StoredForm, fresh_id},
    document::FormState,
    process::{Fate, failed, put_cases, put_form, stored_touch},
    rebuild::{Rebuild, StoredTransaction, replay},
    world::{FormMove, Place, RecordDraft, TransactionWrite, World},
};
use crate::{
    casexml::{CaseError, touched_case_ids},
    error::DatabaseError,
    xform::ParsedForm,
};

/// Why a stored form leaves its id.
#[derive(Debug)]
pub(super) struct Aside {
    state: FormState,
    at: i64,
    edited_by: Option<String>,
    domain: schemas::id::DomainId,
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
    let body: std::sync::Arc<serde_json::value::RawValue> = body.into();
    let place = draft.push(
        DocKind::Form,
        DocId::from(to),
        aside.state.doc_type(false),
        subtype.as_deref(),
        Some(std::sync::Arc::clone(&body)),
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
    let fate = Fate {
        edited_on: Some(now),
        server_modified_on: now,
        deprecated_form_id: Some(fresh.clone()),
        ..Fate::new(form.form_id.clone(), FormState::Normal, old.received_on)
    };
    let old_cases = if old.state == FormState::Error { Vec::new() } else { old.case_ids };
    let details = json!({"reason": "form edited", "form_id": form.form_id, "deprecated_form_id": fresh}).to_string();
    let done = match replace(world, submission, form, old.received_on, &old_cases, now) {
        Ok(replaced) => {
            put_replaced(world, draft, submission, form, fate, replaced, &details)?;
            (form.form_id.clone(), Outcome::Edited)
        }
        Err(error) => failed(world, draft, submission, form, fate, &error)?,
    };
    set_aside(world, draft, &form.form_id, &fresh, &Aside::deprecated(submission, form, now))?;
    Ok(done)
}

/// Applies an error form again, at its place in the history. [`Outcome::Normal`] if it now can be applied.
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
    let fate = Fate { server_modified_on: now, ..Fate::new(form.form_id.clone(), FormState::Normal, old.received_on) };
    let details = json!({"reason": "form processed again", "form_id": form.form_id}).to_string();
    match replace(world, submission, form, old.received_on, &[], now) {
        Ok(replaced) => {
            put_replaced(world, draft, submission, form, fate, replaced, &details)?;
            Ok(Outcome::Normal)
        }
        Err(error) => Ok(failed(world, draft, submission, form, fate, &error)?.1),
    }
}

fn stored(world: &World, id: &FormId) -> Result<StoredForm, DatabaseError> {
    world.forms.get(id).cloned().ok_or_else(|| DatabaseError::damaged("forms", format!("{id} is gone")))
}

/// The cases of the old and the new body after the new one took the old one's place.
struct Replaced {
    states: BTreeMap<CaseId, CaseState>,
    touches: Vec<CaseTouch>,
    at: i64,
}

fn replace(
    world: &World,
    submission: &Submission,
    form: &ParsedForm,
    received_on: i64,
    old_cases: &[CaseId],
    at: i64,
) -> Result<Replaced, CaseError> {
    let domain = &submission.domain;
    let context = FormContext { form_id: &form.form_id, domain, received_on, server_modified_on: at };
    let blocks = form.case_blocks.clone()?;
    let touched = touched_case_ids(&blocks);
    // What the blocks do to each case is read off a scratch copy; the states themselves come from the replay.
    let mut scratch: BTreeMap<CaseId, CaseState> =
        touched.iter().filter_map(|id| Some((id.clone(), world.cases.get(id)?.clone()))).collect();
    let touches = apply_blocks(&mut scratch, blocks, &context)?;

    let all: BTreeSet<&CaseId> = old_cases.iter().chain(&touched).collect();
    let mut states = BTreeMap::new();
    for id in all {
        let known = world.transactions.get(id).map(Vec::as_slice).unwrap_or_default();
        let others = known.iter().filter(|row| row.form_id.as_ref() != Some(&form.form_id));
        let mut rows: Vec<StoredTransaction> = others.cloned().collect();
        if let Some(touch) = touches.iter().find(|touch| touch.case_id == *id) {
            rows.push(stored_touch(submission, &form.form_id, received_on, touch.clone()));
        }
        let rebuild = Rebuild { domain, at, unarchiving: None };
        states.insert(id.clone(), replay(id, world.cases.get(id), &rows, &rebuild));
    }
    check_indices(&states, &touches, &|id| world.case_domain(id) == Some(domain))?;
    Ok(Replaced { states, touches, at })
}

fn put_replaced(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    fate: Fate,
    replaced: Replaced,
    details: &str,
) -> Result<(), DatabaseError> {
    let received_on = fate.received_on;
    let case_ids = replaced.touches.iter().map(|touch| touch.case_id.clone()).collect();
    let place = put_form(world, draft, submission, Some(form), Fate { case_ids, ..fate })?;
    for id in replaced.states.keys() {
        world.changes.removed.push((id.clone(), form.form_id.clone()));
        if let Some(rows) = world.transactions.get_mut(id) {
            rows.retain(|row| row.form_id.as_ref() != Some(&form.form_id));
        }
        world.changes.transactions.push(rebuilt(submission, id, replaced.at, details, place));
    }
    put_cases(world, draft, replaced.states)?;
    for touch in replaced.touches {
        let case_id = touch.case_id.clone();
        let row = stored_touch(submission, &form.form_id, received_on, touch);
        world.put_transaction(&submission.domain, &case_id, row, place)?;
    }
    Ok(())
}

/// The row that says why a case was recomputed.
fn rebuilt(submission: &Submission, case_id: &CaseId, at: i64, details: &str, place: Place) -> TransactionWrite {
    TransactionWrite {
        case_id: case_id.clone(),
        domain: submission.domain.clone(),
        form_id: None,
        kind: TransactionKind::FORM_EDITED,
        server_date: at,
        client_date: None,
        sync_log_id: None,
        details: Some(details.to_owned()),
        blocks: None,
        place,
    }
}
