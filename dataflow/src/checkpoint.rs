//! Checkpoints: the state that is dear to compute, kept so that a restart is a load and a short replay (architecture D12).
//!
//! Kept are the documents, the tables of row views, and the definitions of all views, at one tick. Groups and joins are not:
//! they are fed from the tables again. What is written is what has changed: documents since the last checkpoint, and
//! segments of tables that are new since then, for segments never change. A manifest is written last and names every file with its
//! checksum; whatever it does not name is deleted behind it, so a crash at any point leaves the checkpoint before.
//!
//! The documents of a checkpoint are collected in slices between live changes. The tick whose slice is the last one is the
//! tick of the checkpoint: a document that changed meanwhile comes once more, and the newer version counts.

mod encode;
mod keep;
mod read;
mod write;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow_array::RecordBatch;
use schemas::{
    change::DocKind,
    id::DomainId,
    port::{CheckpointStoreError, SourceError},
    position::{Frontier, Position, Stamp, Tick},
    table::DeadRows,
};
use serde::{Deserialize, Serialize};

use crate::{
    document::{DocKey, Version},
    view::Day,
};

pub(crate) use keep::{Keeper, Slice};
pub(crate) use read::Reader;
pub(crate) use write::Writer;

/// Layout of what is written; another one cannot be read.
const FORMAT: u32 = 1;
/// Tables that another release computed are computed again from the documents: its rules may have been others.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");
/// Name of the manifest.
const MANIFEST: &str = "manifest.json";

/// Number of a table's segment, by which it is found in a checkpoint; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SegmentNo(pub(crate) u64);

static NEXT_SEGMENT: AtomicU64 = AtomicU64::new(0);

impl SegmentNo {
    /// The next number.
    pub(crate) fn next() -> Self {
        Self(NEXT_SEGMENT.fetch_add(1, Ordering::Relaxed))
    }

    /// Numbers up to this one are taken.
    fn taken(self) {
        NEXT_SEGMENT.fetch_max(self.0 + 1, Ordering::Relaxed);
    }
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Store(#[from] CheckpointStoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Something else than what was written lies there.
    #[error("the checkpoint is damaged: `{file}` {problem}")]
    Damaged { file: String, problem: String },
    /// It is of another primary store, or of another layout.
    #[error("the checkpoint is of no use: {0}")]
    Foreign(String),
    #[error("a table could not be written: {0}")]
    Table(#[from] arrow_schema::ArrowError),
}

/// A definition, or a built-in table, by its domain, kind and id.
pub(crate) type ViewKey = (DomainId, DocKind, String);

/// Definitions as they were put.
pub(crate) type Definitions = Vec<(ViewKey, Arc<str>)>;

/// A document as it stands, also one that is gone.
#[derive(Clone, Debug)]
pub(crate) struct KeptDocument {
    pub(crate) key: DocKey,
    pub(crate) stamp: Stamp,
    pub(crate) version: Option<Version>,
}

/// A table of a row view as it stands. Documents of its rows are left out; they are found by the rows' key.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptTable {
    pub(crate) segments: Vec<KeptSegment>,
    /// Documents that could not be evaluated.
    pub(crate) failed: Vec<Failure>,
}

/// A segment as it stands. Several workers that were given it by a checkpoint have different rows of it.
#[derive(Clone, Debug)]
pub(crate) struct KeptSegment {
    pub(crate) no: SegmentNo,
    pub(crate) batch: RecordBatch,
    pub(crate) dead: Arc<DeadRows>,
}

/// A document without rows because evaluating it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) document: Arc<str>,
    pub(crate) message: Arc<str>,
    pub(crate) at: Stamp,
}

/// Everything of a tick but the documents.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) tick: Tick,
    /// Newest stamp among the documents.
    pub(crate) stamp: Stamp,
    /// The day of rows that change with it.
    pub(crate) day: Day,
    pub(crate) frontier: Frontier,
    /// Databases that each domain's documents come from.
    pub(crate) databases: Vec<(DomainId, BTreeSet<u16>)>,
    /// Number of documents, those that are gone included.
    pub(crate) documents: usize,
    /// Those of views, with the rest of the domain's registry.
    pub(crate) definitions: Definitions,
    pub(crate) tables: Vec<(ViewKey, KeptTable)>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    name: String,
    bytes: u64,
    crc32: u32,
    /// Documents in it.
    #[serde(default, skip_serializing_if = "is_zero")]
    documents: u64,
    /// Segments in it, each with its size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    segments: Vec<(SegmentNo, u64)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    program: String,
    /// Of the checkpoint; files are called after the one that they were written for.
    number: u64,
    /// The primary store.
    store: String,
    /// The name under which the change log knows who starts from here.
    reader: String,
    tick: u64,
    stamp: i64,
    day: Day,
    frontier: Vec<Position>,
    state: File,
    /// Documents, oldest first.
    documents: Vec<File>,
    segments: Vec<File>,
}
