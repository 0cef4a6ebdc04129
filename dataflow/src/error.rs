//! What can go wrong inside the dataflow.

use schemas::port::SourceError;

/// A table could not take rows in. Rows are checked before they come here, so this is a defect of ours; the engine
/// stops and is built anew from the primary store.
#[derive(Debug, thiserror::Error)]
#[error("could not build table rows: {0}")]
pub struct TableError(#[from] arrow_schema::ArrowError);

/// Why the dataflow stopped.
#[derive(Debug, thiserror::Error)]
pub enum DataflowError {
    /// The sources failed in a way that only a new bootstrap repairs.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A table could not be built.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A thread could not be started or ended early.
    #[error("the dataflow worker could not run: {0}")]
    Worker(String),
    /// A worker waited in vain for another one, whose own error says why.
    #[error("another dataflow worker ended early")]
    Peer,
}
