//! The rows of a running statement, within its limits of time and number.

use std::fmt;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::Ask;
use crate::{error::QueryError, metrics::Running};

/// What starting a statement yields: its rows, its turn, and when it has to be done.
pub(super) type Started = (SendableRecordBatchStream, OwnedSemaphorePermit, Instant);

/// A running statement. Dropping it stops the statement.
pub(crate) struct Answer {
    stream: SendableRecordBatchStream,
    _turn: OwnedSemaphorePermit,
    running: Running,
    deadline: Instant,
    ask: Ask,
    rows: usize,
    ended: bool,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("ask", &self.ask).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Answer {
    pub(super) fn new((stream, turn, deadline): Started, running: Running, ask: Ask) -> Self {
        Self { stream, _turn: turn, running, deadline, ask, rows: 0, ended: false }
    }

    /// Columns of the result.
    pub(crate) fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// [`QueryError::Timeout`], [`QueryError::TooManyRows`], and what goes wrong while computing. Nothing follows an
    /// error.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        if self.ended {
            return Ok(None);
        }
        let next = tokio::time::timeout_at(self.deadline, self.stream.next()).await;
        let result = match next {
            Err(_) => Err(QueryError::Timeout { after: self.ask.timeout }),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(QueryError::from(error)),
            Ok(Some(Ok(batch))) => {
                self.rows += batch.num_rows();
                if self.rows > self.ask.max_rows {
                    Err(QueryError::TooManyRows { limit: self.ask.max_rows })
                } else {
                    Ok(Some(batch))
                }
            }
        };
        match &result {
            Ok(Some(batch)) => self.running.rows(batch.num_rows()),
            Ok(None) => {
                self.ended = true;
                self.running.succeeded();
            }
            Err(_) => {
                self.ended = true;
                self.running.failed();
            }
        }
        result
    }

    /// Every row.
    ///
    /// # Errors
    /// As [`Self::next`].
    #[cfg(test)]
    pub(crate) async fn collect(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}
