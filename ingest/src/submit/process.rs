//! One form, in memory: what becomes of it, and everything that follows from that.
//!
//! In: the loaded [`World`] and a [`Submission`]. Out: the world after it, and what to answer.
//! Never: reads the database or a clock. Source: forms-and-cases.md §9-§12.

use std::collections::BTreeMap;

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, FormId},
};
use serde_json::{Map, Value};

use super::{
    Attachment, Content, Outcome, Purpose, Rules, Submission,
    apply::{CaseState, CaseTouch, CaseWork, FormContext, TransactionKind, apply_blocks, check_indices},
    dedupe::{Decision, StoredForm, decide, fresh_id},
    document::{FormRow, FormState, form_document},
    edit, extension,
    ledger::{self, LedgerRow, LedgerValue},
    rebuild::StoredTransaction,
    reorder,
    world::{AttachmentWrite, FormWrite, LedgerRowWrite, Place, RecordDraft, World},
};
use crate::{
    casexml::{CaseError, CaseFile, ledger::LedgerKey},
    error::{DatabaseError, WriteError},
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
    /// It changes what the same group has not written yet: it goes into the next group.
    Deferred,
    /// It is not going to be stored.
    Refused(WriteError),
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
    pub(super) history: Vec<Value>,
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
            history: Vec::new(),
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
    if submission.rules.close_extensions && !world.changes.is_empty() && extension::may_close(world, form) {
        return Ok(Done::Deferred);
    }
    if submission.purpose == Purpose::Reprocess && decision != Decision::Reprocess {
        let text = format!("form {} is not an error form that could be processed again", form.form_id);
        return Ok(Done::Refused(WriteError::Conflict(text)));
    }
    if submission.purpose == Purpose::Import && decision == Decision::Duplicate {
        return Ok(Done::Refused(WriteError::Present));
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
pub(super) fn apply_into(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form: &ParsedForm,
    id: FormId,
) -> Result<(FormId, Outcome), DatabaseError> {
    let received_on = submission.envelope.received_on;
    let context =
        FormContext { form_id: &id, domain: &submission.domain, received_on, server_modified_on: received_on };
    let work = case_work(form, submission.rules, &submission.attachments);
    let applied = match work.and_then(|work| applied(world, work, &context)) {
        Ok(applied) => applied,
        Err(error) => {
            return failed(world, draft, submission, form, Fate::new(id, FormState::Error, received_on), &error);
        }
    };
    let case_ids: Vec<CaseId> = applied.touches.iter().map(|touch| touch.case_id.clone()).collect();
    let fate = Fate { case_ids: case_ids.clone(), ..Fate::new(id.clone(), FormState::Normal, received_on) };
    let place = put_form(world, draft, submission, Some(form), fate)?;
    put_cases(world, draft, applied.states)?;
    for touch in applied.touches {
        let case_id = touch.case_id.clone();
        let row = stored_touch(submission, form, &id, received_on, touch);
        world.put_transaction(&submission.domain, &case_id, row, place)?;
    }
    put_ledgers(world, draft, submission, applied.ledgers, applied.ledger_rows, place)?;
    if submission.rules.sort_out_of_order {
        reorder::repair(world, draft, &submission.domain, &case_ids, received_on, place)?;
    }
    extension::close(world, draft, submission, &id, &case_ids)?;
    Ok((id, Outcome::Normal))
}

/// What a form does to cases, with the files that its blocks name. The domain's rules may leave attachments out.
///
/// # Errors
/// The form's own [`CaseError`], or a block that names a file which is not among `files`.
pub(super) fn case_work<'a>(
    form: &ParsedForm,
    rules: Rules,
    files: impl IntoIterator<Item = &'a Attachment> + Copy,
) -> Result<CaseWork, CaseError> {
    let mut blocks = form.case_blocks.clone()?;
    for block in blocks.iter_mut().filter(|block| !block.attachments.is_empty()) {
        if !rules.case_attachments {
            block.attachments.clear();
        }
        for change in &mut block.attachments {
            let Some(src) = &change.src else { continue };
            let file = files.into_iter().find(|file| file.name == *src);
            let missing = || CaseError::MissingAttachment { case_id: block.case_id.clone(), src: src.clone() };
            let file = file.ok_or_else(missing)?;
            change.file = Some(CaseFile {
                key: file.key,
                content_type: file.content_type.clone(),
                content_length: u64::try_from(file.length).unwrap_or(u64::MAX),
            });
        }
    }
    Ok(CaseWork { blocks, ledgers: form.ledger_changes.clone() })
}

/// What a form makes of the cases and ledgers it touches.
struct Applied {
    states: BTreeMap<CaseId, CaseState>,
    touches: Vec<CaseTouch>,
    ledgers: BTreeMap<LedgerKey, LedgerValue>,
    ledger_rows: Vec<LedgerRow>,
}

/// Applies on copies: a form that fails leaves the world as it was.
fn applied(world: &World, work: CaseWork, context: &FormContext<'_>) -> Result<Applied, CaseError> {
    let mut states: BTreeMap<CaseId, CaseState> =
        work.case_ids().into_iter().filter_map(|id| Some((id.clone(), world.cases.get(&id)?.clone()))).collect();
    let mut ledger_rows = ledger::rows(&work.ledgers, context.form_id, context.received_on);
    let touches = apply_blocks(&mut states, work, context)?;
    check_indices(&states, &touches, &|id| world.case_domain(id) == Some(context.domain))?;
    let keys = ledger_rows.iter().map(|row| &row.key);
    let mut ledgers = keys.filter_map(|key| Some((key.clone(), world.ledgers.get(key)?.clone()))).collect();
    ledger::apply(&mut ledgers, &mut ledger_rows);
    Ok(Applied { states, touches, ledgers, ledger_rows })
}

fn put_ledgers(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    values: BTreeMap<LedgerKey, LedgerValue>,
    rows: Vec<LedgerRow>,
    place: Place,
) -> Result<(), DatabaseError> {
    for (key, value) in values {
        world.put_ledger(draft, &submission.domain, key, Some(value))?;
    }
    for row in rows {
        if let Some(known) = world.ledger_rows.get_mut(&row.key.case_id) {
            known.push(row.clone());
        }
        world.changes.ledger_rows.push(LedgerRowWrite { domain: submission.domain.clone(), row, place });
    }
    Ok(())
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
        Outcome::Normal if submission.purpose == Purpose::Store => duplicate(world, &mut draft, submission, form)?,
        outcome => (form.form_id.clone(), outcome),
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

/// The stored form of what a form did to a case. A phone is always told about ledgers, so their transactions name no sync
/// (§11).
pub(super) fn stored_touch(
    submission: &Submission,
    form: &ParsedForm,
    form_id: &FormId,
    received_on: i64,
    touch: CaseTouch,
) -> StoredTransaction {
    let sync_token = submission.envelope.last_sync_token.as_ref();
    let sync_token = sync_token.filter(|_| !touch.kind.contains(TransactionKind::LEDGER));
    StoredTransaction {
        form_id: Some(form_id.clone()),
        user_id: form.user_id.clone(),
        kind: touch.kind,
        server_date: received_on,
        client_date: touch.client_date,
        sync_log_id: sync_token.cloned(),
        revoked: false,
        form_normal: true,
        blocks: touch.blocks,
    }
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
        history: &fate.history,
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
            problem: fate.problem.clone(),
            deleted: None,
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
