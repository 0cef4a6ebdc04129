//! Locks and loads everything that a group of jobs names, in one pipeline; edits need a second one.
//!
//! In: the jobs. Out: a [`World`] to apply them to, inside an open transaction. Nothing is read before it is locked, so
//! what was loaded stays true until the commit. Source: forms-and-cases.md §13.2, architecture D4.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, DomainId, FormId},
};
use serde_json::{Map, Value};

use super::{
    Content, Job, Submission,
    dedupe::decide,
    directory::{needed, worker_login},
    lock::{self, LockSet},
    world::{Login, World},
};
use crate::{
    casexml::{referenced_case_ids, touched_case_ids},
    error::DatabaseError,
    store::{cases, compress, directory, forms, pool::Connection},
    submit::document::FormState,
    xform::ParsedForm,
};

/// What a group names.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Locks to take before reading.
    pub locks: LockSet,
    forms: Vec<String>,
    cases: BTreeSet<CaseId>,
    /// Cases that are only referred to.
    targets: BTreeSet<CaseId>,
    /// Cases whose indices change: what they refer to already has to be checked again.
    referring: BTreeSet<CaseId>,
}

impl Wanted {
    /// What the jobs name, and `extra` cases that an earlier attempt found out about.
    pub(crate) fn of<'a>(jobs: impl Iterator<Item = &'a Job>, extra: &BTreeSet<CaseId>) -> Self {
        let mut wanted = Self::default();
        for job in jobs {
            match job {
                Job::Form { submission, .. } => {
                    if let Some(form) = parsed(submission) {
                        wanted.form(form);
                    }
                }
                Job::Directory { write, .. } => wanted.locks.directory(&write.domain),
            }
        }
        for id in extra {
            wanted.locks.case(id);
        }
        wanted.targets.retain(|id| !wanted.cases.contains(id));
        wanted.cases.extend(extra.iter().cloned());
        wanted
    }

    fn form(&mut self, form: &ParsedForm) {
        self.locks.form(&form.form_id);
        self.forms.push(form.form_id.as_str().to_owned());
        let Ok(blocks) = &form.case_blocks else { return };
        for id in touched_case_ids(blocks) {
            self.locks.case(&id);
            self.cases.insert(id);
        }
        for id in referenced_case_ids(blocks) {
            self.locks.referenced(&id);
            self.targets.insert(id);
        }
        let referring = blocks.iter().filter(|block| !block.indices.is_empty());
        self.referring.extend(referring.map(|block| block.case_id.clone()));
    }
}

fn parsed(submission: &Submission) -> Option<&ParsedForm> {
    match &submission.content {
        Content::Form(form) => Some(form),
        Content::Broken { .. } => None,
    }
}

/// What loading came to.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Everything is locked and loaded; the transaction is open.
    World(Box<World>),
    /// An edited form touched cases that another writer holds. Nothing is open; these have to be locked from the start.
    Again(BTreeSet<CaseId>),
}

/// Opens a transaction, locks and loads.
///
/// # Errors
/// [`DatabaseError`]; the transaction may be left open and failed.
pub(crate) async fn load(connection: &mut Connection, jobs: &[Job], wanted: &Wanted) -> Result<Loaded, DatabaseError> {
    let lock = connection.statement(lock::TAKE).await?;
    let select_forms = connection.statement(forms::SELECT).await?;
    let read = cases::Read {
        cases: connection.statement(cases::SELECT).await?,
        indices: connection.statement(cases::SELECT_INDICES).await?,
        targets: connection.statement(cases::SELECT_TARGETS).await?,
    };
    let (keys, shared) = wanted.locks.parameters();
    let ids = texts(&wanted.cases);
    let targets = texts(&wanted.targets);
    let referring = texts(&wanted.referring);
    let client = &**connection;
    let (_, _, stored, found, targets) = futures::try_join!(
        async { Ok::<_, DatabaseError>(client.batch_execute("BEGIN").await?) },
        async { Ok(client.query(&lock, &[&keys, &shared]).await?) },
        async {
            if wanted.forms.is_empty() {
                return Ok(Vec::new());
            }
            Ok(client.query(&select_forms, &[&wanted.forms]).await?)
        },
        read.cases(client, &ids),
        read.targets(client, &targets, &referring),
    )?;
    let mut world = World { cases: found, targets, ..World::default() };
    for row in &stored {
        let (id, form) = forms::stored(row)?;
        world.forms.insert(id, form);
    }
    let history = History::of(jobs, &world);
    if !history.is_empty()
        && let Some(missing) = load_history(connection, wanted, &history, &read, &mut world).await?
    {
        connection.batch_execute("ROLLBACK").await?;
        return Ok(Loaded::Again(missing));
    }
    load_directory(connection, jobs, &mut world).await?;
    Ok(Loaded::World(Box::new(world)))
}

fn texts(ids: &BTreeSet<CaseId>) -> Vec<&str> {
    ids.iter().map(CaseId::as_str).collect()
}

/// What edits need besides: documents of the forms they push aside, and transactions of all cases involved.
#[derive(Debug, Default)]
struct History {
    documents: Vec<FormId>,
    cases: BTreeSet<CaseId>,
}

impl History {
    fn of(jobs: &[Job], world: &World) -> Self {
        let mut history = Self::default();
        for job in jobs {
            let Job::Form { submission, .. } = job else { continue };
            let Some(form) = parsed(submission) else { continue };
            let Some(old) = world.forms.get(&form.form_id) else { continue };
            let decision = decide(Some(old), &submission.domain, &form.xmlns, &submission.xml_md5);
            if decision.changes_stored_form() {
                history.documents.push(form.form_id.clone());
            }
            if decision.replays() {
                if old.state != FormState::Error {
                    history.cases.extend(old.case_ids.iter().cloned());
                }
                history.cases.extend(form.case_blocks.iter().flatten().map(|block| block.case_id.clone()));
            }
        }
        history
    }

    fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }
}

/// Loads what edits need. Cases that only the old body touched are not locked yet; waiting for them now could be a circle,
/// so they are locked only if free. Returns them if they are not.
async fn load_history(
    connection: &mut Connection,
    wanted: &Wanted,
    history: &History,
    read: &cases::Read,
    world: &mut World,
) -> Result<Option<BTreeSet<CaseId>>, DatabaseError> {
    let missing: BTreeSet<CaseId> = history.cases.iter().filter(|id| !wanted.locks.holds_case(id)).cloned().collect();
    if !missing.is_empty() {
        let attempt = connection.statement(lock::TRY).await?;
        let granted = connection.query(&attempt, &[&LockSet::case_keys(missing.iter())]).await?;
        for row in &granted {
            if !row.try_get::<_, bool>(0)? {
                return Ok(Some(missing));
            }
        }
    }
    let select_documents = connection.statement(forms::SELECT_DOCUMENTS).await?;
    let select_transactions = connection.statement(cases::SELECT_TRANSACTIONS).await?;
    let client = &**connection;
    let form_ids: Vec<&str> = history.documents.iter().map(FormId::as_str).collect();
    let case_ids = texts(&history.cases);
    let missing = texts(&missing);
    let (documents, transactions, found) = futures::try_join!(
        async { Ok::<_, DatabaseError>(client.query(&select_documents, &[&form_ids]).await?) },
        async { Ok(client.query(&select_transactions, &[&case_ids]).await?) },
        read.cases(client, &missing),
    )?;
    world.cases.extend(found);
    for row in &documents {
        let id = FormId::new(row.try_get(0)?).map_err(|error| DatabaseError::damaged("forms", error))?;
        let text = compress::unpack_text(row.try_get(1)?).map_err(|error| DatabaseError::damaged("forms", error))?;
        let document: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| DatabaseError::damaged("forms", error))?;
        world.form_documents.insert(id, document);
    }
    world.transactions = history.cases.iter().map(|id| (id.clone(), Vec::new())).collect();
    for row in &transactions {
        let (id, transaction) = cases::transaction(row)?;
        world.transactions.entry(id).or_default().push(transaction);
    }
    Ok(None)
}

/// Loads the documents that directory writes change or refer to, and the accounts whose names or ids they claim.
async fn load_directory(connection: &mut Connection, jobs: &[Job], world: &mut World) -> Result<(), DatabaseError> {
    let mut ids: BTreeMap<(DomainId, &'static str), (DocKind, Vec<DocId>)> = BTreeMap::new();
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut accounts: BTreeSet<String> = BTreeSet::new();
    for job in jobs {
        let Job::Directory { write, .. } = job else { continue };
        for (kind, wanted) in needed(write) {
            let entry = ids.entry((write.domain.clone(), kind.name())).or_insert_with(|| (kind, Vec::new()));
            entry.1.extend(wanted);
        }
        for change in write.changes.iter().filter(|change| change.kind == DocKind::User) {
            accounts.insert(change.id.as_str().to_owned());
            if let super::Action::Merge { fields, .. } = &change.action
                && let Some(name) = fields.get("username").and_then(Value::as_str)
            {
                names.insert(worker_login(name, &write.domain));
            }
        }
    }
    for ((domain, _), (kind, wanted)) in ids {
        let Some(sql) = directory::select(kind) else { continue };
        let statement = connection.statement(sql).await?;
        let wanted: Vec<&str> = wanted.iter().map(DocId::as_str).collect();
        for row in connection.query(&statement, &[&domain.as_str(), &wanted]).await? {
            let damaged = |error: &dyn std::fmt::Display| DatabaseError::damaged("users or locations", error);
            let id = DocId::new(row.try_get(0)?).map_err(|error| damaged(&error))?;
            let document = serde_json::from_str(row.try_get(1)?).map_err(|error| damaged(&error))?;
            world.directory.insert((domain.clone(), kind, id), document);
        }
    }
    if !accounts.is_empty() {
        let statement = connection.statement(directory::SELECT_ACCOUNTS).await?;
        let names: Vec<String> = names.into_iter().collect();
        let accounts: Vec<String> = accounts.into_iter().collect();
        let rows = connection.query(&statement, &[&accounts, &names]).await?;
        let mut by_name = HashMap::new();
        for row in &rows {
            let (id, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let login = Login { account_id: id.clone(), domains: row.try_get(2)? };
            by_name.insert(name, login.clone());
            world.accounts.insert(id, login);
        }
        world.names = by_name;
    }
    Ok(())
}
