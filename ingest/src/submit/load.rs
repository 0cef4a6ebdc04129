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
    Act, Content, Job, Submission,
    dedupe::decide,
    directory::{needed, worker_login},
    lock::{self, LockSet},
    world::{Login, World},
};
use crate::{
    casexml::{referenced_case_ids, touched_case_ids},
    error::DatabaseError,
    store::{cases, compress, directory, forms, keys::Keys, ledgers, pool::Connection},
    submit::document::FormState,
    xform::ParsedForm,
};

/// What a group names.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Locks to take before reading.
    pub locks: LockSet,
    forms: Vec<FormId>,
    cases: BTreeSet<CaseId>,
    /// Cases that are only referred to.
    targets: BTreeSet<CaseId>,
    /// Cases whose indices change: what they refer to already has to be checked again.
    referring: BTreeSet<CaseId>,
    /// Cases whose ledgers change.
    stocked: BTreeSet<CaseId>,
    /// Cases that are going to be closed, whose extensions close with them.
    closing: BTreeSet<CaseId>,
    /// Cases whose extensions close if they are closed already.
    closed: BTreeSet<CaseId>,
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
                        if submission.rules.close_extensions {
                            wanted.extensions(form);
                        }
                    }
                }
                Job::Operation { operation, .. } => match &operation.act {
                    Act::Archive(id) | Act::Unarchive(id) | Act::DeleteForm(id) | Act::UndeleteForm(id) => {
                        wanted.locks.form(id);
                        wanted.forms.push(id.clone());
                    }
                    Act::DeleteCase(id) | Act::UndeleteCase(id) | Act::PurgeCase(id) | Act::Rebuild(id) => {
                        wanted.locks.case(id);
                        wanted.cases.insert(id.clone());
                    }
                },
                Job::Directory { write, .. } => {
                    wanted.locks.directory(&write.domain);
                    if write.changes.iter().any(|change| change.kind == DocKind::WebUser) {
                        wanted.locks.web_users();
                    }
                }
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
        self.forms.push(form.form_id.clone());
        let Ok(blocks) = &form.case_blocks else { return };
        let stocked = form.ledger_changes.iter().map(|change| change.key.case_id.clone());
        self.stocked.extend(stocked.clone());
        for id in touched_case_ids(blocks).into_iter().chain(stocked) {
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

    fn extensions(&mut self, form: &ParsedForm) {
        for block in form.case_blocks.iter().flatten() {
            let set = if block.close { &mut self.closing } else { &mut self.closed };
            set.insert(block.case_id.clone());
        }
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
    let (locks, shared) = wanted.locks.parameters();
    let form_ids: Keys<'_> = wanted.forms.iter().map(FormId::as_str).collect();
    let (ids, targets, referring) = (keys(&wanted.cases), keys(&wanted.targets), keys(&wanted.referring));
    let client = &**connection;
    let (_, _, stored, found, targets) = futures::try_join!(
        async { Ok::<_, DatabaseError>(client.batch_execute("BEGIN").await?) },
        async { Ok(client.query(&lock, &[&locks, &shared]).await?) },
        async {
            if wanted.forms.is_empty() {
                return Ok(Vec::new());
            }
            Ok(client.query(&select_forms, &form_ids.parameters()).await?)
        },
        read.cases(client, &ids),
        read.targets(client, &targets, &referring),
    )?;
    let mut world = World { cases: found, targets, ..World::default() };
    for row in &stored {
        let (id, form) = forms::stored(row)?;
        world.forms.insert(id, form);
    }
    let mut history = History::of(jobs, &world);
    history.extensions = load_extensions(connection, wanted).await?;
    if !history.is_empty()
        && let Some(missing) = load_history(connection, wanted, &history, &read, &mut world).await?
    {
        connection.batch_execute("ROLLBACK").await?;
        return Ok(Loaded::Again(missing));
    }
    if !wanted.stocked.is_empty() || !history.cases.is_empty() {
        load_ledgers(connection, &wanted.stocked, &history.cases, &mut world).await?;
    }
    for id in &history.purged {
        load_purge(connection, id, &mut world).await?;
    }
    load_directory(connection, jobs, &mut world).await?;
    Ok(Loaded::World(Box::new(world)))
}

fn keys(ids: &BTreeSet<CaseId>) -> Keys<'_> {
    ids.iter().map(CaseId::as_str).collect()
}

/// What edits and operations need besides: documents of the forms that change, transactions of all cases involved, and
/// further cases.
#[derive(Debug, Default)]
struct History {
    documents: Vec<FormId>,
    /// Cases that are replayed.
    cases: BTreeSet<CaseId>,
    /// Cases whose forms may have arrived out of order; locked already.
    ordered: BTreeSet<CaseId>,
    /// Cases that close with another.
    extensions: BTreeSet<CaseId>,
    /// Cases that are deleted for good.
    purged: Vec<CaseId>,
}

impl History {
    fn of(jobs: &[Job], world: &World) -> Self {
        let mut history = Self::default();
        for job in jobs {
            let submission = match job {
                Job::Form { submission, .. } => submission,
                Job::Operation { operation, .. } => {
                    history.operation(&operation.act, world);
                    continue;
                }
                Job::Directory { .. } => continue,
            };
            let Some(form) = parsed(submission) else { continue };
            let blocks = form.case_blocks.iter().flatten().map(|block| &block.case_id);
            let touched = blocks.chain(form.ledger_changes.iter().map(|change| &change.key.case_id));
            if submission.rules.sort_out_of_order {
                history.ordered.extend(touched.clone().cloned());
            }
            let Some(old) = world.forms.get(&form.form_id) else { continue };
            let decision = decide(Some(old), &submission.domain, &form.xmlns, &submission.xml_md5);
            if decision.changes_stored_form() {
                history.documents.push(form.form_id.clone());
            }
            if decision.replays() {
                if old.state != FormState::Error {
                    history.cases.extend(old.case_ids.iter().cloned());
                }
                history.cases.extend(touched.cloned());
            }
        }
        history
    }

    fn operation(&mut self, act: &Act, world: &World) {
        match act {
            Act::Archive(id) | Act::Unarchive(id) => {
                self.documents.push(id.clone());
                self.cases.extend(world.forms.get(id).iter().flat_map(|form| form.case_ids.iter().cloned()));
            }
            Act::DeleteForm(id) | Act::UndeleteForm(id) => self.documents.push(id.clone()),
            Act::DeleteCase(_) | Act::UndeleteCase(_) => {}
            Act::PurgeCase(id) => {
                self.cases.insert(id.clone());
                self.purged.push(id.clone());
            }
            Act::Rebuild(id) => drop(self.cases.insert(id.clone())),
        }
    }

    fn is_empty(&self) -> bool {
        self.documents.is_empty() && self.cases.is_empty() && self.ordered.is_empty() && self.extensions.is_empty()
    }
}

/// The open extensions of cases that are closed or going to be, theirs included.
async fn load_extensions(connection: &mut Connection, wanted: &Wanted) -> Result<BTreeSet<CaseId>, DatabaseError> {
    if wanted.closing.is_empty() && wanted.closed.is_empty() {
        return Ok(BTreeSet::new());
    }
    let select = connection.statement(cases::SELECT_EXTENSIONS).await?;
    let closed = keys(&wanted.closed);
    let ([ids, shards], closing) = (closed.parameters(), wanted.closing.iter().map(CaseId::as_str));
    let rows = connection.query(&select, &[ids, shards, &closing.collect::<Vec<_>>()]).await?;
    rows.iter()
        .map(|row| CaseId::new(row.try_get(0)?).map_err(|error| DatabaseError::damaged("case_indices", error)))
        .collect()
}

/// Loads the values of the ledgers of all cases concerned, and the transactions of those that are replayed.
async fn load_ledgers(
    connection: &mut Connection,
    stocked: &BTreeSet<CaseId>,
    replayed: &BTreeSet<CaseId>,
    world: &mut World,
) -> Result<(), DatabaseError> {
    let select = connection.statement(ledgers::SELECT).await?;
    let all: Keys<'_> = stocked.union(replayed).map(CaseId::as_str).collect();
    for row in &connection.query(&select, &all.parameters()).await? {
        let (key, value) = ledgers::value(row)?;
        world.ledgers.insert(key, value);
    }
    if replayed.is_empty() {
        return Ok(());
    }
    let select = connection.statement(ledgers::SELECT_ROWS).await?;
    world.ledger_rows = replayed.iter().map(|id| (id.clone(), Vec::new())).collect();
    for row in &connection.query(&select, &keys(replayed).parameters()).await? {
        let row = ledgers::transaction(row)?;
        world.ledger_rows.entry(row.key.case_id.clone()).or_default().push(row);
    }
    Ok(())
}

/// Loads the forms of a case that is to be deleted for good, and what stands in the way of that. The forms are locked only
/// if free: their ids were not known when the group's locks were taken.
async fn load_purge(connection: &mut Connection, id: &CaseId, world: &mut World) -> Result<(), DatabaseError> {
    let rows = world.transactions.get(id).map(Vec::as_slice).unwrap_or_default();
    let form_ids: BTreeSet<FormId> = rows.iter().filter_map(|row| row.form_id.clone()).collect();
    let attempt = connection.statement(lock::TRY).await?;
    for row in &connection.query(&attempt, &[&LockSet::form_keys(form_ids.iter())]).await? {
        if !row.try_get::<_, bool>(0)? {
            return Err(DatabaseError::Locked(1));
        }
    }
    let mut held = Vec::new();
    let select = connection.statement(forms::SELECT).await?;
    let ids: Keys<'_> = form_ids.iter().map(FormId::as_str).collect();
    for row in &connection.query(&select, &ids.parameters()).await? {
        let (form_id, form) = forms::stored(row)?;
        if form.case_ids.iter().any(|other| other != id) {
            held.push(format!("form {form_id} also touches other cases"));
        }
        world.forms.insert(form_id, form);
    }
    let select = connection.statement(cases::SELECT_REFERRING).await?;
    for row in &connection.query(&select, &[&id.as_str()]).await? {
        held.push(format!("case {} refers to it", row.try_get::<_, &str>(0)?));
    }
    world.holders.insert(id.clone(), held);
    Ok(())
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
    let all = history.cases.iter().chain(&history.extensions);
    let missing: BTreeSet<CaseId> = all.filter(|id| !wanted.locks.holds_case(id)).cloned().collect();
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
    let select_files = connection.statement(forms::SELECT_FILES).await?;
    let select_transactions = connection.statement(cases::SELECT_TRANSACTIONS).await?;
    let client = &**connection;
    let form_ids: Keys<'_> = history.documents.iter().map(FormId::as_str).collect();
    let with_transactions: BTreeSet<CaseId> = history.cases.union(&history.ordered).cloned().collect();
    let (case_ids, missing) = (keys(&with_transactions), keys(&missing));
    let (form_ids, case_ids) = (form_ids.parameters(), case_ids.parameters());
    let (documents, files, transactions, found) = futures::try_join!(
        async { Ok::<_, DatabaseError>(client.query(&select_documents, &form_ids).await?) },
        async { Ok(client.query(&select_files, &form_ids).await?) },
        async { Ok(client.query(&select_transactions, &case_ids).await?) },
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
    for row in &files {
        let (id, file) = forms::file(row)?;
        world.form_files.entry(id).or_default().push(file);
    }
    world.transactions = with_transactions.iter().map(|id| (id.clone(), Vec::new())).collect();
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
        let users = write.changes.iter().filter(|change| matches!(change.kind, DocKind::User | DocKind::WebUser));
        for change in users {
            accounts.insert(change.id.as_str().to_owned());
            if let super::Action::Merge { fields, .. } = &change.action
                && let Some(name) = fields.get("username").and_then(Value::as_str)
            {
                names.insert(match change.kind {
                    DocKind::WebUser => name.to_owned(),
                    _ => worker_login(name, &write.domain),
                });
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
            let login = Login { account_id: id.clone(), username: name.clone(), domains: row.try_get(2)? };
            by_name.insert(name, login.clone());
            world.accounts.insert(id, login);
        }
        world.names = by_name;
    }
    Ok(())
}
