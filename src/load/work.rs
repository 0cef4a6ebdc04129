//! What a source of load hands out: forms to post and moves to write, with what each must change in the tables.

use std::sync::Arc;

use serde_json::Value;

/// Whether a form is new to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Novelty {
    /// Never sent before.
    New,
    /// The id of an earlier form with other answers.
    Edit,
    /// The very bytes of an earlier form.
    Duplicate,
}

impl Novelty {
    /// The word of the shared workload's files.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "new" => Some(Self::New),
            "edit" => Some(Self::Edit),
            "duplicate" => Some(Self::Duplicate),
            _ => None,
        }
    }
}

/// The rows that show a form. A row of a document that the form changed must have a stamp not older than the form's own;
/// a group has one if the form changed what it counts, and must at least be there otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effects {
    /// The form.
    pub(crate) form: Arc<str>,
    /// The pregnancy: its row, and the group of the district that counts it.
    pub(crate) mother: Arc<str>,
    /// Children whose rows changed.
    pub(crate) children: Vec<Arc<str>>,
    /// Rows of the form in the table of items.
    pub(crate) items: usize,
    /// The worker and month whose group counts the form, for visits.
    pub(crate) visit: Option<(Arc<str>, String)>,
    /// Whether the form changes that group: new visits do, edits may not.
    pub(crate) changes_month: bool,
    /// Whether the form changes the district's group: a new pregnancy, one more visit, a closed case.
    pub(crate) changes_district: bool,
}

/// A form to post.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    /// The source's number for it.
    pub(crate) ticket: u64,
    /// Number of the worker whose phone posts it.
    pub(crate) worker: usize,
    /// New, edit or duplicate.
    pub(crate) novelty: Novelty,
    /// The body.
    pub(crate) xml: Arc<str>,
    /// What it changes.
    pub(crate) effects: Effects,
}

/// Which REST resource a move is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Moved {
    /// A worker, to another village.
    Worker,
    /// A place, into another one.
    Place,
}

/// A move to write.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    /// The source's number for it.
    pub(crate) ticket: u64,
    /// What moves.
    pub(crate) what: Moved,
    /// Its id.
    pub(crate) id: String,
    /// Id of the place it is in afterwards.
    pub(crate) inside: String,
    /// The whole document afterwards.
    pub(crate) document: Value,
}

/// What there is to do.
#[derive(Debug)]
pub(crate) enum Next {
    /// Post a form.
    Form(Submission),
    /// Write a move; it does not count against the rate.
    Move(Move),
    /// Nothing until something under way has ended.
    Busy,
    /// Nothing any more.
    End,
}

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Acknowledged.
    Acknowledged,
    /// Refused for good, or given up.
    Failed,
}
