//! What a dataflow says of itself when it is asked: what it holds, what views cost, and where a row comes from.

use std::{sync::Arc, time::Duration};

use crate::{
    change::DocKind,
    error::{Classify, ErrorClass},
    id::{DocId, DomainId},
    position::{Position, Stamp},
    table::{Snapshot, TableName},
};

/// Something that the dataflow holds of a domain beside the published tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `documents`, `questions`, `answers`, `index`, `joins` or `groups`.
    pub part: &'static str,
    /// A kind of document or of question, or the id of a view.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Bytes, estimated, where they are known.
    pub bytes: Option<u64>,
}

/// What keeping a view current has cost since its definition was installed, that of a version being built included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewCost {
    /// `data_source` or `aggregate_view`.
    pub kind: &'static str,
    /// Id of the view.
    pub view: String,
    /// Documents evaluated, or rows that entered and left groups.
    pub changes: u64,
    /// Processor time of that, nanoseconds, estimated from samples.
    pub nanos: u64,
}

/// Everything that is measured of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// What is held, in the order of parts and names.
    pub held: Vec<Held>,
    /// What views cost, in the order of kinds and ids.
    pub costs: Vec<ViewCost>,
}

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenanceQuestion {
    /// Domain of the view.
    pub domain: DomainId,
    /// Id of the view.
    pub view: String,
    /// Id of a document; of an aggregate view the values of a group as a JSON list, or nothing for the sources alone.
    pub key: Option<String>,
}

/// When a version of a document came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// With this record.
    Record {
        /// The record.
        position: Position,
        /// When readers could see it first, microseconds since 1970 UTC; nothing if they cannot yet.
        visible_at: Option<i64>,
    },
    /// Before the oldest record that is remembered was, at this time, microseconds since 1970 UTC.
    Before(i64),
}

/// A version of a document from which a row was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Kind of document.
    pub kind: DocKind,
    /// Its id.
    pub id: DocId,
    /// Commit time of the version.
    pub stamp: Stamp,
    /// The last form that touched it, where the document says so.
    pub form: Option<String>,
    /// When the version came in.
    pub arrival: Arrival,
}

/// A question that the evaluation of a row asked, and the documents that answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What was asked for: a kind of document by its id, or `subcases`, `forms_of_case` and the like of a document.
    pub relation: &'static str,
    /// The id that was asked for.
    pub id: String,
    /// The documents.
    pub documents: Vec<Origin>,
}

/// What a document comes to in a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many rows.
    Rows(usize),
    /// Its evaluation failed: why.
    Failed(String),
}

/// The base rows of an aggregate view that fall into a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Number of rows.
    pub rows: usize,
    /// Ids of the documents of the first ones.
    pub documents: Vec<String>,
}

/// Where something in a view comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Rows of one document.
    Rows {
        /// The document; nothing of its version if it is gone for good.
        document: Origin,
        /// False if the document is gone for good.
        is_there: bool,
        /// What it comes to.
        outcome: Outcome,
        /// What its evaluation asked for.
        asked: Vec<Asked>,
    },
    /// A group, or an aggregate view as a whole.
    Groups {
        /// The tables that it reads, the base table first.
        sources: Vec<TableName>,
        /// The base rows of the group, if one was asked for and rows can be traced: not through joins.
        members: Option<Members>,
    },
}

/// An explanation, and the published snapshot that it is of.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The explanation.
    pub provenance: Provenance,
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
}

/// Why something could not be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    /// The domain has no such view.
    #[error("there is no view `{view}`; select id from system.views lists them")]
    UnknownView {
        /// As asked for.
        view: String,
    },
    /// The view has no published table.
    #[error("view `{view}` has no rows yet: its state is in system.views")]
    NotReady {
        /// The view.
        view: String,
    },
    /// The dataflow has never had such a document.
    #[error("there is no {} `{id}`", kind.name())]
    UnknownDocument {
        /// The kind of document that the view is over.
        kind: DocKind,
        /// As asked for.
        id: String,
    },
    /// The view has no such group.
    #[error("view `{view}` has no group {key}; give the values of its {columns} as a JSON list")]
    UnknownGroup {
        /// The view.
        view: String,
        /// As asked for.
        key: String,
        /// The columns of the group.
        columns: String,
    },
    /// Row views are explained row by row.
    #[error("say which row: `key` is the id of a document")]
    NoKey,
    /// The workers were busy for too long.
    #[error("there was no answer within {after:?}, because changes wait; try again")]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// No dataflow runs here, or it is stopping or being built anew.
    #[error("the dataflow does not answer now; try again in a moment")]
    Unavailable,
}

impl Classify for ProvenanceError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownView { .. } | Self::UnknownDocument { .. } | Self::UnknownGroup { .. } => ErrorClass::NotFound,
            Self::NotReady { .. } => ErrorClass::Conflict,
            Self::NoKey => ErrorClass::BadRequest,
            Self::Timeout { .. } => ErrorClass::Timeout,
            Self::Unavailable => ErrorClass::Unavailable,
        }
    }
}
