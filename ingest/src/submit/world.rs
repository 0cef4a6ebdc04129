//! What a group of submissions has loaded, and what it is going to write.
//!
//! Forms of a group are applied one after the other to the same loaded rows, so that the second form on a case sees the
//! first one's result and the case is written once. Pure memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use schemas::{
    change::{ChangedDocument, DocKind},
    id::{CaseId, DocId, DomainId, FormId},
    position::Stamp,
};
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use super::{
    Attachment,
    apply::{CaseState, TransactionKind},
    dedupe::StoredForm,
    document::{FormState, case_doc_type, case_document},
    ledger::{self, LedgerRow, LedgerValue, ledger_document},
    rebuild::StoredTransaction,
};
use crate::{
    casexml::{CaseBlock, ledger::LedgerKey},
    error::DatabaseError,
};

/// An account that holds a name or an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// The account.
    pub account_id: String,
    /// Its name, a mobile worker's in full.
    pub username: String,
    /// Its domains.
    pub domains: Vec<String>,
}

/// Everything a group has loaded, kept up to date while its jobs are applied.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// What is stored under the submitted form ids.
    pub forms: HashMap<FormId, StoredForm>,
    /// Documents of stored forms that are going to change.
    pub form_documents: HashMap<FormId, Map<String, Value>>,
    /// Files of stored forms that an edit pushes aside.
    pub form_files: HashMap<FormId, Vec<Attachment>>,
    /// Cases that are named by blocks.
    pub cases: BTreeMap<CaseId, CaseState>,
    /// Domains of cases that are only referred to.
    pub targets: HashMap<CaseId, DomainId>,
    /// All transactions of the cases that are replayed, or may be.
    pub transactions: HashMap<CaseId, Vec<StoredTransaction>>,
    /// Values of the ledgers of all cases that ledger changes are about.
    pub ledgers: BTreeMap<LedgerKey, LedgerValue>,
    /// All ledger transactions of the cases that are replayed.
    pub ledger_rows: HashMap<CaseId, Vec<LedgerRow>>,
    /// What stands in the way of deleting a case for good: cases that refer to it, and forms that touch others as well.
    pub holders: HashMap<CaseId, Vec<String>>,
    /// Users, locations and definitions by domain, kind and id; absent ones are not in it.
    pub directory: HashMap<(DomainId, DocKind, DocId), Map<String, Value>>,
    /// Accounts by name.
    pub names: HashMap<String, Login>,
    /// Accounts by id.
    pub accounts: HashMap<String, Login>,
    /// What is going to be written.
    pub changes: Changes,
}

/// Index of a document among all documents of the group; its stamp follows from it.
pub(crate) type Place = usize;

/// A row that is going to be written, stamped by its document.
#[derive(Debug)]
pub(crate) struct FormWrite {
    /// Id it is stored under.
    pub id: FormId,
    /// Domain.
    pub domain: DomainId,
    /// Namespace.
    pub xmlns: String,
    /// App.
    pub app_id: Option<String>,
    /// User in the form.
    pub user_id: Option<String>,
    /// What became of it.
    pub state: FormState,
    /// Microseconds since 1970 UTC.
    pub received_on: i64,
    /// Microseconds since 1970 UTC.
    pub server_modified_on: i64,
    /// Microseconds since 1970 UTC.
    pub edited_on: Option<i64>,
    /// Id it was sent under.
    pub orig_id: Option<FormId>,
    /// What it replaced.
    pub deprecated_form_id: Option<FormId>,
    /// Why it is an error.
    pub problem: Option<String>,
    /// True if its case changes are applied.
    pub processed: bool,
    /// Of the received bytes.
    pub xml_md5: [u8; 16],
    /// Where the bytes are.
    pub xml_key: Uuid,
    /// Cases it touched.
    pub case_ids: Vec<CaseId>,
    /// Its document.
    pub document: Arc<RawValue>,
    /// Its stamp.
    pub place: Place,
}

/// A stored form that gets another id.
#[derive(Debug)]
pub(crate) struct FormMove {
    /// Id it had.
    pub from: FormId,
    /// Id it gets.
    pub to: FormId,
    /// What becomes of it.
    pub state: FormState,
    /// Microseconds since 1970 UTC.
    pub at: i64,
    /// Its document under the new id.
    pub document: Arc<RawValue>,
    /// Its stamp.
    pub place: Place,
    /// Set if an edit pushed it aside: who edited. Its history and attachments are then carried over to the new form.
    pub edited_by: Option<String>,
    /// Domain.
    pub domain: DomainId,
}

/// A stored form that changes under its id.
#[derive(Debug)]
pub(crate) struct FormChange {
    /// Its id.
    pub id: FormId,
    /// Domain.
    pub domain: DomainId,
    /// What it is now.
    pub form: StoredForm,
    /// Microseconds since 1970 UTC.
    pub at: i64,
    /// Its document.
    pub document: Arc<RawValue>,
    /// Its stamp.
    pub place: Place,
    /// What was done, and by whom, for its history.
    pub operation: Option<(&'static str, String)>,
}

/// A ledger value that is going to be written.
#[derive(Debug)]
pub(crate) struct LedgerWrite {
    /// Domain.
    pub domain: DomainId,
    /// The value; none if it is gone.
    pub value: Option<LedgerValue>,
    /// Its stamp.
    pub place: Place,
}

/// A ledger transaction that is going to be written.
#[derive(Debug)]
pub(crate) struct LedgerRowWrite {
    /// Domain.
    pub domain: DomainId,
    /// The transaction.
    pub row: LedgerRow,
    /// Stamp of the document that caused it to be written.
    pub place: Place,
}

/// Documents that are deleted for good.
#[derive(Debug)]
pub(crate) struct Purge {
    /// Domain.
    pub domain: DomainId,
    /// The case.
    pub case_id: CaseId,
    /// All forms that touched it.
    pub forms: Vec<FormId>,
    /// Microseconds since 1970 UTC.
    pub at: i64,
}

/// A case transaction that is going to be written.
#[derive(Debug)]
pub(crate) struct TransactionWrite {
    /// The case.
    pub case_id: CaseId,
    /// Domain.
    pub domain: DomainId,
    /// The form; none for a rebuild.
    pub form_id: Option<FormId>,
    /// Type bits.
    pub kind: TransactionKind,
    /// Microseconds since 1970 UTC.
    pub server_date: i64,
    /// Microseconds since 1970 UTC.
    pub client_date: Option<i64>,
    /// Sync token of the submission.
    pub sync_log_id: Option<String>,
    /// Why a rebuild happened, JSON.
    pub details: Option<String>,
    /// The blocks, JSON.
    pub blocks: Option<String>,
    /// Stamp of the form.
    pub place: Place,
}

/// An attachment row.
#[derive(Debug)]
pub(crate) struct AttachmentWrite {
    /// The form.
    pub form_id: FormId,
    /// Domain.
    pub domain: DomainId,
    /// The file.
    pub attachment: Attachment,
}

/// A user, location or definition as it is going to be stored.
#[derive(Debug)]
pub(crate) struct DirectoryRow {
    /// Its JSON; none if it is gone.
    pub document: Option<Arc<RawValue>>,
    /// Its stamp.
    pub place: Place,
}

/// Sign-in of a mobile worker.
#[derive(Debug)]
pub(crate) struct AccountWrite {
    /// Name, a mobile worker's in full.
    pub username: String,
    /// A new password's hash.
    pub password_hash: Option<String>,
    /// What digest authentication needs of it.
    pub digest_hash: Option<String>,
    /// Whether they may sign in.
    pub is_active: bool,
}

/// A change record without its number.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Domain.
    pub domain: DomainId,
    /// Documents; stamps are set when numbers are taken.
    pub documents: Vec<ChangedDocument>,
}

/// Everything that a group is going to write.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Change records, one per accepted job.
    pub records: Vec<Draft>,
    /// Documents in all records.
    pub documents: usize,
    /// Stored forms that move to another id.
    pub moves: Vec<FormMove>,
    /// New rows, and rows replaced under their id.
    pub forms: Vec<FormWrite>,
    /// Stored forms that change under their id.
    pub form_changes: Vec<FormChange>,
    /// Cases that changed, with the place of their last document.
    pub cases: BTreeMap<CaseId, Place>,
    /// Cases whose indices changed.
    pub indices: BTreeSet<CaseId>,
    /// Transactions to remove before new ones are written: those of an edited form.
    pub removed: Vec<(CaseId, FormId)>,
    /// Transactions to write.
    pub transactions: Vec<TransactionWrite>,
    /// Transactions that no longer count, or count again.
    pub revoked: Vec<(CaseId, FormId, bool)>,
    /// Ledger values.
    pub ledgers: BTreeMap<LedgerKey, LedgerWrite>,
    /// Ledgers whose transactions are all removed before new ones are written.
    pub ledgers_rewritten: BTreeSet<LedgerKey>,
    /// Ledger transactions to write.
    pub ledger_rows: Vec<LedgerRowWrite>,
    /// Cases that are deleted for good, with their forms.
    pub purged: Vec<Purge>,
    /// Compressed bytes to keep, by key, with their domain. A form and its duplicate share them.
    pub bytes: BTreeMap<Uuid, (DomainId, Vec<u8>)>,
    /// Attachment rows.
    pub attachments: Vec<AttachmentWrite>,
    /// Users, locations and definitions.
    pub directory: BTreeMap<(DomainId, DocKind, DocId), DirectoryRow>,
    /// Accounts by id.
    pub accounts: BTreeMap<DocId, AccountWrite>,
    /// Names of what accounts may do in a domain; none: they leave it.
    pub memberships: BTreeMap<(DocId, DomainId), Option<Vec<&'static str>>>,
}

impl Changes {
    /// True if there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Collects the documents of one record.
#[derive(Debug)]
pub(crate) struct RecordDraft {
    domain: DomainId,
    first: Place,
    documents: Vec<ChangedDocument>,
}

impl RecordDraft {
    /// Adds a document and returns its place. A document that is in the record already is replaced.
    pub(crate) fn push(
        &mut self,
        kind: DocKind,
        id: DocId,
        document_type: &str,
        subtype: Option<&str>,
        body: Option<Arc<RawValue>>,
    ) -> Place {
        let document = ChangedDocument {
            kind,
            id,
            stamp: Stamp(0),
            document_type: document_type.to_owned(),
            subtype: subtype.map(str::to_owned),
            body,
        };
        let known = self.documents.iter().position(|other| other.kind == kind && other.id == document.id);
        let at = known.unwrap_or(self.documents.len());
        match self.documents.get_mut(at) {
            Some(slot) => *slot = document,
            None => self.documents.push(document),
        }
        self.first + at
    }

    /// Number of documents.
    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }
}

impl World {
    /// Starts a record.
    pub(crate) fn record(&self, domain: &DomainId) -> RecordDraft {
        RecordDraft { domain: domain.clone(), first: self.changes.documents, documents: Vec::new() }
    }

    /// Finishes a record and returns its index among the group's.
    pub(crate) fn close_record(&mut self, draft: RecordDraft) -> usize {
        self.changes.documents += draft.documents.len();
        self.changes.records.push(Draft { domain: draft.domain, documents: draft.documents });
        self.changes.records.len() - 1
    }

    /// The domain of a case, if it exists.
    pub(crate) fn case_domain(&self, id: &CaseId) -> Option<&DomainId> {
        self.cases.get(id).map(|case| &case.domain).or_else(|| self.targets.get(id))
    }

    /// Puts a case's new state into the world and its document into the record.
    ///
    /// # Errors
    /// [`DatabaseError::Damaged`] if a case cannot be written as JSON, which does not happen.
    pub(crate) fn put_case(&mut self, draft: &mut RecordDraft, case: CaseState) -> Result<(), DatabaseError> {
        let body = case_document(&case, None).map_err(|error| DatabaseError::damaged("cases", error))?;
        let id = case.case_id.clone();
        let place =
            draft.push(DocKind::Case, DocId::from(&id), case_doc_type(case.deleted), Some(&case.case_type), Some(body));
        self.changes.cases.insert(id.clone(), place);
        self.cases.insert(id, case);
        Ok(())
    }

    /// Puts a ledger's new value into the world and its document into the record; none: the ledger is gone.
    ///
    /// # Errors
    /// [`DatabaseError::Damaged`] if the value cannot be written as JSON, which does not happen.
    pub(crate) fn put_ledger(
        &mut self,
        draft: &mut RecordDraft,
        domain: &DomainId,
        key: LedgerKey,
        value: Option<LedgerValue>,
    ) -> Result<(), DatabaseError> {
        let damaged = |error: &dyn std::fmt::Display| DatabaseError::damaged("ledger_values", error);
        let id = key.doc_id().map_err(|error| damaged(&error))?;
        let body = value.as_ref().map(|value| ledger_document(&key, value, domain)).transpose();
        let place = draft.push(DocKind::Ledger, id, ledger::DOC_TYPE, None, body.map_err(|error| damaged(&error))?);
        match &value {
            Some(value) => drop(self.ledgers.insert(key.clone(), value.clone())),
            None => drop(self.ledgers.remove(&key)),
        }
        self.changes.ledgers.insert(key, LedgerWrite { domain: domain.clone(), value, place });
        Ok(())
    }

    /// Adds a form's transaction on a case, to what is written and to what later replays of the group see.
    ///
    /// # Errors
    /// [`DatabaseError::Damaged`] if blocks cannot be written as JSON, which does not happen.
    pub(crate) fn put_transaction(
        &mut self,
        domain: &DomainId,
        case_id: &CaseId,
        row: StoredTransaction,
        place: Place,
    ) -> Result<(), DatabaseError> {
        let blocks = blocks_json(&row.blocks)?;
        self.changes.transactions.push(TransactionWrite {
            case_id: case_id.clone(),
            domain: domain.clone(),
            form_id: row.form_id.clone(),
            kind: row.kind,
            server_date: row.server_date,
            client_date: row.client_date,
            sync_log_id: row.sync_log_id.clone(),
            details: None,
            blocks: Some(blocks),
            place,
        });
        if let Some(rows) = self.transactions.get_mut(case_id) {
            rows.push(row);
        }
        Ok(())
    }
}

impl World {
    /// Adds the row that says why a case was recomputed.
    pub(crate) fn put_rebuild(
        &mut self,
        domain: &DomainId,
        case_id: &CaseId,
        kind: TransactionKind,
        at: i64,
        details: &str,
        place: Place,
    ) {
        self.changes.transactions.push(TransactionWrite {
            case_id: case_id.clone(),
            domain: domain.clone(),
            form_id: None,
            kind,
            server_date: at,
            client_date: None,
            sync_log_id: None,
            details: Some(details.to_owned()),
            blocks: None,
            place,
        });
        if let Some(rows) = self.transactions.get_mut(case_id) {
            rows.push(StoredTransaction {
                form_id: None,
                user_id: None,
                kind,
                server_date: at,
                client_date: None,
                sync_log_id: None,
                revoked: false,
                form_normal: false,
                blocks: Vec::new(),
            });
        }
    }
}

fn blocks_json(blocks: &[CaseBlock]) -> Result<String, DatabaseError> {
    serde_json::to_string(blocks).map_err(|error| DatabaseError::damaged("case_transactions", error))
}
