//! One form, in memory: what becomes of it, and everything that follows from that.
//!
//! In: the loaded [`World`] and a [`Submission`]. Out: the world after it, and what to answer.
//! Never: reads the database or a clock. Source: forms-and-cases.md §9-§12.

use std::collections::BTreeMap;

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, FormId},
};
use serde_json::Map;

use super::{
    Content, Outcome, Submission,
    apply::{CaseState, CaseTouch, FormContext, apply_blocks, check_indices},
    dedupe::{Decision, StoredForm, decide, fresh_id},
    document::{FormRow, FormState, form_document},
    edit,
    rebuild::StoredTransaction,
    world::{AttachmentWrite, FormWrite, Place, RecordDraft, World},
};
use crate::{
    casexml::{CaseError, touched_case_ids},
    error::DatabaseError,
    xform::ParsedForm,
};

/// What became of a form in its group.
#[derive(Debug)]
pub(crate) enum Done {
    /// It is going to be stored.
    Stored {
        /// Id it is stored under.
        form_id: FormId,
        /// What to answer.
        outcome: Outcome,
        /// Index of its record among the group's.
        record: usize,
    },
    /// It changes a form of the same group whose row is not written yet: it goes into the next group.
    Deferred,
}

/// How a form is going to be stored.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) id: FormId,
    pub(super) state: FormState,
    pub(super) received_on: i64,
    pub(super) server_modified_on: i64,
    pub(super) edited_on: Option<i64>,
    pub(super) orig_id: Option<FormId>,
    pub(super) deprecated_form_id: Option<FormId>,
    pub(super) problem: Option<String>,
    pub(super) processed: bool,
    pub(super) case_ids: Vec<CaseId>,
}

impl Fate {
    pub(super) fn new(id: FormId, state: FormState, received_on: i64) -> Self {
        Self {
            id,
            state,
            received_on,
            server_modified_on: received_on,
            edited_on: None,
            orig_id: None,
            deprecated_form_id: None,
            problem: None,
            processed: true,
            case_ids: Vec::new(),
        }
    }
}

/// Applies one submission to the world. `now` is in microseconds since 1970 UTC.
///
/// # Errors
/// [`DatabaseError::Damaged`] if something loaded does not hold what it should.
pub(crate) fn process(world: &mut World, submission: &Submission, now: i64) -> Result<Done, DatabaseError> {
    let form = match &submission.content {
        Content::Form(form) => form,
        Content::Broken { id, problem } => return broken(world, submission, id, problem),
    };
    let stored = world.forms.get(&form.form_id);
    let decision = decide(stored, &submission.domain, &form.xmlns, &submission.xml_md5);
    if decision.changes_stored_form() && stored.is_some_and(|old| old.in_group) {
        return Ok(Done::Deferred);
    }
    match decision {
        Decision::New => apply_new(world, submission, form, form.form_id.clone()),
        Decision::FreshId => {
            let id = fresh_id(&form.form_id);
            tracing::warn!(domain = %submission.domain, form_id = %form.form_id, fresh_id = %id, "form id is taken");
            apply_new(world, submission, form, id)
        }
        Decision::Duplicate => {
            let mut draft = world.record(&submission.domain);
            let done = duplicate(world, &mut draft, submission, form)?;
            Ok(finish(world, draft, done))
        }
        Decision::Reprocess => reprocess(world, submission, form, now),
        Decision::Replace => {
            let mut draft = world.record(&submission.domain);
            let fresh = fresh_id(&form.form_id);
            let done = apply_into(world, &mut draft, submission, form, form.form_id.clone())?;
            edit::set_aside(world, &mut draft, &form.form_id, &fresh, &edit::Aside::unprocessed(submission, now))?;
            Ok(finish(world, draft, done))
        }
        Decision::Edit => {
            let mut draft = world.record(&submission.domain);
            let done = edit::edit(world, &mut draft, submission, form, now)?;
            Ok(finish(world, draft, done))
        }
    }
}

fn finish(world: &mut World, draft: RecordDraft, (form_id, outcome): (FormId, Outcome)) -> Done {
    let record = world.close_record(draft);
    Done::Stored { form_id, outcome, record }
}

fn broken(world: &mut World, submission: &Submission, id: &FormId, problem: &str) -> Result<Done, DatabaseError> {
    let mut draft = world.record(&submission.domain);
    let fate = Fate {
        problem: Some(problem.to_owned()),
        processed: false,
        ..Fate::new(id.clone(), FormState::SubmissionErrorLog, submission.envelope.received_on)
    };
    put_form(world, &mut draft, submission, None, fate)?;
    Ok(finish(world, draft, (id.clone(), Outcome::Broken { problem: problem.to_owned() })))
}

fn apply_new(world: &mut World, submission: &Submission, form: &ParsedForm, id: FormId) -> Result<Done, DatabaseError> {
    let mut draft = world.record(&submission.domain);
    let done = apply_into(world, &mut draft, submission, form, id)?;
    Ok(finish(world, draft, done))
}

/// Applies a form under `id`, or keeps it as an error form.
fn apply_into(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    id: FormId,
) -> Result<(FormId, Outcome), DatabaseError> {
    let received_on = submission.envelope.received_on;
    let context =
        FormContext { form_id: &id, domain: &submission.domain, received_on, server_modified_on: received_on };
    let (states, touches) = match applied(world, form, &context) {
        Ok(applied) => applied,
        Err(error) => {
            return failed(world, draft, submission, form, Fate::new(id, FormState::Error, received_on), &error);
        }
    };
    let case_ids = touches.iter().map(|touch| touch.case_id.clone()).collect();
    let fate = Fate { case_ids, ..Fate::new(id.clone(), FormState::Normal, received_on) };
    let place = put_form(world, draft, submission, Some(form), fate)?;
    put_cases(world, draft, states)?;
    for touch in touches {
        put_touch(world, submission, &id, received_on, touch, place)?;
    }
    Ok((id, Outcome::Normal))
}

type Applied = (BTreeMap<CaseId, CaseState>, Vec<CaseTouch>);

/// The touched cases after the form, on copies: a form that fails leaves the world as it was.
fn applied(world: &World, form: &ParsedForm, context: &FormContext<'_>) -> Result<Applied, CaseError> {
    let blocks = form.case_blocks.clone()?;
    let ids = touched_case_ids(&blocks);
    let mut states: BTreeMap<CaseId, CaseState> =
        ids.iter().filter_map(|id| Some((id.clone(), world.cases.get(id)?.clone()))).collect();
    let touches = apply_blocks(&mut states, blocks, context)?;
    check_indices(&states, &touches, &|id| world.case_domain(id) == Some(context.domain))?;
    Ok((states, touches))
}

/// Keeps a form that cannot be applied as an error form (§12.2).
pub(super) fn failed(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    fate: Fate,
    error: &CaseError,
) -> Result<(FormId, Outcome), DatabaseError> {
    let problem = error.to_string();
    let id = fate.id.clone();
    let fate = Fate { state: FormState::Error, problem: Some(problem.clone()), processed: false, ..fate };
    put_form(world, draft, submission, Some(form), fate)?;
    Ok((id, Outcome::Failed { problem, known: error.is_known() }))
}

/// Keeps the same bytes under an id of their own (§12.1).
fn duplicate(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
) -> Result<(FormId, Outcome), DatabaseError> {
    let id = fresh_id(&form.form_id);
    let problem = format!("Form is a duplicate of another! ({})", form.form_id);
    let fate = Fate {
        orig_id: Some(form.form_id.clone()),
        problem: Some(problem.clone()),
        ..Fate::new(id.clone(), FormState::Duplicate, submission.envelope.received_on)
    };
    put_form(world, draft, submission, Some(form), fate)?;
    Ok((id, Outcome::Duplicate { problem }))
}

/// The same bytes as a form that could not be applied: tries the stored one again, in its place in the history, and keeps
/// the new one as its duplicate. If it fails again it stays an error form and no duplicate is kept (§12.1, §12.6).
fn reprocess(world: &mut World, submission: &Submission, form: &ParsedForm, now: i64) -> Result<Done, DatabaseError> {
    let mut draft = world.record(&submission.domain);
    let outcome = edit::retry(world, &mut draft, submission, form, now)?;
    let done = match outcome {
        Outcome::Normal => duplicate(world, &mut draft, submission, form)?,
        failed => (form.form_id.clone(), failed),
    };
    Ok(finish(world, draft, done))
}

/// Writes the new states of cases, and their indices where they differ from what was loaded.
pub(super) fn put_cases(
    world: &mut World,
    draft: &mut RecordDraft,
    states: BTreeMap<CaseId, CaseState>,
) -> Result<(), DatabaseError> {
    for (id, state) in states {
        let before = world.cases.get(&id).map(|case| case.indices.as_slice()).unwrap_or_default();
        if before != state.indices {
            world.changes.indices.insert(id);
        }
        world.put_case(draft, state)?;
    }
    Ok(())
}

/// The stored form of what a form did to a case.
pub(super) fn stored_touch(
    submission: &Submission,
    form_id: &FormId,
    received_on: i64,
    touch: CaseTouch,
) -> StoredTransaction {
    StoredTransaction {
        form_id: Some(form_id.clone()),
        kind: touch.kind,
        server_date: received_on,
        client_date: touch.client_date,
        sync_log_id: submission.envelope.last_sync_token.clone(),
        revoked: false,
        form_normal: true,
        blocks: touch.blocks,
    }
}

fn put_touch(
    world: &mut World,
    submission: &Submission,
    form_id: &FormId,
    received_on: i64,
    touch: CaseTouch,
    place: Place,
) -> Result<(), DatabaseError> {
    let case_id = touch.case_id.clone();
    let row = stored_touch(submission, form_id, received_on, touch);
    world.put_transaction(&submission.domain, &case_id, row, place)
}

/// Adds a form's row, document, bytes and attachments.
pub(super) fn put_form(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: Option<&ParsedForm>,
    fate: Fate,
) -> Result<Place, DatabaseError> {
    let envelope = &submission.envelope;
    let nothing = Map::new();
    let row = FormRow {
        form_id: &fate.id,
        domain: &submission.domain,
        state: fate.state,
        deleted: false,
        xmlns: form.map_or("", |form| &form.xmlns),
        app_id: envelope.app_id.as_deref(),
        build_id: None,
        user_id: form.and_then(|form| form.user_id.as_deref()),
        received_on: fate.received_on,
        server_modified_on: fate.server_modified_on,
        edited_on: fate.edited_on,
        deprecated_form_id: fate.deprecated_form_id.as_ref().map(FormId::as_str),
        orig_id: fate.orig_id.as_ref().map(FormId::as_str),
        problem: fate.problem.as_deref(),
        initial_processing_complete: fate.processed,
        auth_context: Some(&envelope.auth_context),
        openrosa_headers: Some(&envelope.openrosa_headers),
        last_sync_token: envelope.last_sync_token.as_deref(),
        date_header: envelope.date_header,
        submit_ip: envelope.submit_ip.as_deref(),
        form: form.map_or(&nothing, |form| &form.json),
        meta: form.map(|form| &form.meta),
    };
    let document = form_document(&row).map_err(|error| DatabaseError::damaged("forms", error))?;
    let xmlns = row.xmlns.to_owned();
    let user_id = row.user_id.map(str::to_owned);
    let place = draft.push(
        DocKind::Form,
        DocId::from(&fate.id),
        fate.state.doc_type(false),
        Some(&xmlns),
        Some(std::sync::Arc::clone(&document)),
    );
    world.forms.insert(
        fate.id.clone(),
        StoredForm {
            domain: submission.domain.clone(),
            xmlns: xmlns.clone(),
            state: fate.state,
            xml_md5: submission.xml_md5,
            processed: fate.processed,
            received_on: fate.received_on,
            case_ids: fate.case_ids.clone(),
            in_group: true,
        },
    );
    for attachment in &submission.attachments {
        world.changes.attachments.push(AttachmentWrite {
            form_id: fate.id.clone(),
            domain: submission.domain.clone(),
            attachment: attachment.clone(),
        });
        if let Some(bytes) = &attachment.inline_zstd {
            world.changes.bytes.insert(attachment.key, (submission.domain.clone(), bytes.clone()));
        }
    }
    world.changes.bytes.insert(submission.xml_key, (submission.domain.clone(), submission.xml_zstd.clone()));
    world.changes.forms.push(FormWrite {
        id: fate.id,
        domain: submission.domain.clone(),
        xmlns,
        app_id: envelope.app_id.clone(),
        user_id,
        state: fate.state,
        received_on: fate.received_on,
        server_modified_on: fate.server_modified_on,
        edited_on: fate.edited_on,
        orig_id: fate.orig_id,
        deprecated_form_id: fate.deprecated_form_id,
        problem: fate.problem,
        processed: fate.processed,
        xml_md5: submission.xml_md5,
        xml_key: submission.xml_key,
        case_ids: fate.case_ids,
        document,
        place,
    });
    Ok(place)
}
