//! One submission from parsed form to committed rows, and the order of work for it.
//!
//! A lane's writer takes what is queued ([`writer`]), locks and loads everything the group names ([`load`]), and then, in
//! memory and in order, decides ([`dedupe`]) and applies ([`apply`], [`edit`]) each form. What changed is collected in
//! [`world::Changes`] and written in one transaction ([`commit`]). A form that the rules refuse becomes an error form;
//! nothing of it reaches a case. Source: architecture D4, forms-and-cases.md §12, §13.

pub mod apply;
pub(crate) mod commit;
pub(crate) mod dedupe;
pub(crate) mod directory;
pub mod document;
pub(crate) mod edit;
pub(crate) mod extension;
pub(crate) mod lanes;
pub mod ledger;
pub(crate) mod load;
pub(crate) mod lock;
pub(crate) mod operation;
pub(crate) mod process;
pub mod rebuild;
pub mod reorder;
pub(crate) mod world;
pub(crate) mod writer;

use schemas::{
    change::DocKind,
    id::{CaseId, DocId, DomainId, FormId},
    position::Position,
};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{error::WriteError, xform::ParsedForm};

/// Number of the advisory lock that a form's writer holds until its transaction ends.
#[must_use]
pub fn form_lock(id: &FormId) -> i64 {
    lock::form_key(id)
}

/// A form as it came in, ready to be applied.
#[derive(Debug)]
pub(crate) struct Submission {
    /// The domain it was sent to.
    pub domain: DomainId,
    /// The form, or what is wrong with the bytes.
    pub content: Content,
    /// MD5 of exactly the received bytes: equal means duplicate.
    pub xml_md5: [u8; 16],
    /// Under which the bytes are found.
    pub xml_key: Uuid,
    /// The bytes, compressed.
    pub xml_zstd: Vec<u8>,
    /// What the request said besides.
    pub envelope: Envelope,
    /// Files that came with it.
    pub attachments: Vec<Attachment>,
    /// What the domain asks for besides.
    pub rules: Rules,
    /// Why it is sent.
    pub purpose: Purpose,
}

/// Settings of a domain that decide what a form does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Closing a case closes its extensions (§10.2).
    pub close_extensions: bool,
    /// Case blocks may attach files to cases (§10.3).
    pub case_attachments: bool,
    /// A case whose forms arrive out of order is replayed in the order of the phone's dates (§15.4).
    pub sort_out_of_order: bool,
}

/// Why a form is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be stored.
    #[default]
    Store,
    /// To be stored unless it is, byte for byte.
    Import,
    /// It is stored as an error form, and is to be applied again (§12.6).
    Reprocess,
}

/// What the bytes were.
#[derive(Debug)]
pub(crate) enum Content {
    /// A form.
    Form(Box<ParsedForm>),
    /// Not a form; kept as a submission error log (§12.2).
    Broken {
        /// Random id for the log.
        id: FormId,
        /// Why it is none.
        problem: String,
    },
}

/// What the request said besides the form.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    /// App in the URL.
    pub app_id: Option<String>,
    /// Microseconds since 1970 UTC.
    pub received_on: i64,
    /// Who authenticated, as the form's document shows it.
    pub auth_context: Value,
    /// Headers kept in the form's document.
    pub openrosa_headers: Value,
    /// Header `X-CommCareHQ-LastSyncToken`.
    pub last_sync_token: Option<String>,
    /// Header `Date`, microseconds since 1970 UTC.
    pub date_header: Option<i64>,
    /// Address of the sender.
    pub submit_ip: Option<String>,
    /// User id of the authenticated user: the author of an edit.
    pub author: Option<String>,
}

/// A file that came with a form.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// Name of its part, which case blocks refer to.
    pub name: String,
    /// Media type of its part.
    pub content_type: Option<String>,
    /// Bytes.
    pub length: usize,
    /// Under which the bytes are found.
    pub key: Uuid,
    /// The bytes, compressed; absent if they are in the object store already.
    pub inline_zstd: Option<Vec<u8>>,
}

/// What became of a stored form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Applied.
    Normal,
    /// Kept as an exact duplicate.
    Duplicate {
        /// The form's problem text.
        problem: String,
    },
    /// Applied in place of an earlier one.
    Edited,
    /// Kept as an error form.
    Failed {
        /// The form's problem text.
        problem: String,
        /// False for faults that are no known processing error (§12.6): answered 500.
        known: bool,
    },
    /// Kept as a submission error log.
    Broken {
        /// The form's problem text.
        problem: String,
    },
}

/// The proof that a form is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The id it is stored under.
    pub form_id: FormId,
    /// What became of it.
    pub outcome: Outcome,
    /// Where its change record is.
    pub position: Position,
}

/// A change of users, locations or definitions.
#[derive(Debug)]
pub(crate) struct DirectoryWrite {
    /// The domain.
    pub domain: DomainId,
    /// Applied in order; each is accepted or refused by itself.
    pub changes: Vec<DirectoryChange>,
}

/// One changed document.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryChange {
    /// What it is.
    pub kind: DocKind,
    /// Its id.
    pub id: DocId,
    /// What happens to it.
    pub action: Action,
    /// Argon2 hash of a mobile worker's new password.
    pub password_hash: Option<String>,
    /// Whether to keep what digest authentication needs of that password.
    pub keeps_digest: bool,
}

/// What happens to a document.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Fields to set; others stay. The document is made if `create` says so.
    Merge {
        /// The fields.
        fields: Map<String, Value>,
        /// Whether the document has to be new, has to exist, or either.
        presence: Presence,
    },
    /// The whole document.
    Put(Map<String, Value>),
    /// It is gone.
    Delete,
}

/// What a merge expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nothing under the id.
    New,
    /// A document.
    Existing,
    /// Either.
    Any,
}

/// What became of a [`DirectoryWrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryReceipt {
    /// One per change: whether the document was new, or why it was refused.
    pub results: Vec<Result<Written, WriteError>>,
    /// Where the change record is; none if every change was refused.
    pub position: Option<Position>,
}

/// What became of one accepted change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The document is new.
    Created,
    /// It was there before.
    Updated,
}

/// What a person or a script does to a stored form or case.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// The domain.
    pub domain: DomainId,
    /// User id of who does it.
    pub by: String,
    /// What is done.
    pub act: Act,
}

/// What is done to a stored form or case (§12.4, §12.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Its effects on cases and ledgers are taken back.
    Archive(FormId),
    /// They count again.
    Unarchive(FormId),
    /// Marked as deleted; cases stay as they are.
    DeleteForm(FormId),
    /// No longer marked.
    UndeleteForm(FormId),
    /// Marked as deleted.
    DeleteCase(CaseId),
    /// No longer marked.
    UndeleteCase(CaseId),
    /// Deleted for good, together with all its forms.
    PurgeCase(CaseId),
    /// Computed again from its transactions.
    Rebuild(CaseId),
}

/// Something for a lane to store.
#[derive(Debug)]
pub(crate) enum Job {
    /// A form.
    Form {
        /// The form.
        submission: Box<Submission>,
        /// Takes the answer once it is durable.
        reply: oneshot::Sender<Result<Receipt, WriteError>>,
    },
    /// Something is done to a stored form or case.
    Operation {
        /// What.
        operation: Operation,
        /// Takes the record's position once it is durable.
        reply: oneshot::Sender<Result<Position, WriteError>>,
    },
    /// Users, locations or definitions.
    Directory {
        /// The change.
        write: DirectoryWrite,
        /// Takes the answer once it is durable.
        reply: oneshot::Sender<Result<DirectoryReceipt, WriteError>>,
    },
}
