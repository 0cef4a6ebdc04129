//! The traits through which `ingest`, `dataflow` and `query` meet. Each is implemented by one of them, used by another,
//! and joined in the binary.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use crate::credentials::{Credentials, DigestAnswer, Secret};
use crate::{
    change::{ChangeRecord, ChangedDocument},
    error::{Classify, ErrorClass},
    id::{DomainId, UserId},
    inside::{Explained, Measured, ProvenanceError, ProvenanceQuestion},
    position::{Frontier, LaneId, Position, Sequence},
    table::Snapshot,
};

/// What a change source says.
#[derive(Debug)]
pub enum SourceEvent {
    /// Records, in lane order, without gaps against what this source said before.
    Records(Vec<Arc<ChangeRecord>>),
    /// Nothing newer than what was said existed just now, in any lane.
    Idle,
    /// The same of these lanes alone, while others are busy or cannot be read.
    IdleIn(Vec<LaneId>),
    /// A lane cannot be read for now; the others go on. Something of it may be missing until it is idle or a record of it
    /// comes.
    Stalled(LaneId),
}

/// Why a change source stopped.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The log no longer holds the record that follows; the reader has to bootstrap.
    #[error("lane {lane}: record {} is gone, the log begins at {}; bootstrap from the primary store", wanted.0, earliest.0)]
    Gap {
        /// The lane.
        lane: LaneId,
        /// The record asked for.
        wanted: Sequence,
        /// The first one left.
        earliest: Sequence,
    },
    /// The log cannot be reached; try again.
    #[error("could not read the change log: {0}")]
    Unavailable(String),
}

/// The change log, read from a frontier on.
#[async_trait]
pub trait ChangeSource: Send {
    /// Waits for the next event. A lane that can be read and has nothing new is said to be idle at least every 100 ms, also
    /// while others are busy.
    ///
    /// # Errors
    /// [`SourceError`]; after `Unavailable` the call may be repeated and nothing is skipped.
    async fn next(&mut self) -> Result<SourceEvent, SourceError>;
}

/// A document read at bootstrap, with the domain it belongs to.
#[derive(Clone, Debug)]
pub struct BootstrapDocument {
    /// Its domain.
    pub domain: DomainId,
    /// Its present state.
    pub document: ChangedDocument,
}

/// One consistent reading of the primary store.
#[async_trait]
pub trait BootstrapScan: Send {
    /// The frontier that the documents stand at: records up to it are in them, later ones are not.
    fn frontier(&self) -> Frontier;

    /// Documents to come, as far as known.
    fn expected(&self) -> u64;

    /// Number of the database that the last documents came from, if there are several.
    fn database(&self) -> Option<u16> {
        None
    }

    /// The next documents in any order, each document once; `None` at the end.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`]; the scan is then void.
    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError>;
}

/// Opens bootstrap scans and the log behind them.
#[async_trait]
pub trait Bootstrap: Send + Sync {
    /// Opens a scan of all current documents under one database snapshot.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] if the store cannot be reached.
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError>;

    /// Opens the change log behind `from`.
    ///
    /// # Errors
    /// [`SourceError`] if the store cannot be reached or no longer holds what follows `from`.
    async fn changes(&self, from: Frontier) -> Result<Box<dyn ChangeSource>, SourceError>;

    /// What tells this primary store from every other: a checkpoint of another one is of no use.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] if the store cannot be reached.
    async fn identity(&self) -> Result<String, SourceError>;

    /// The reader of that name has kept everything up to `frontier`, and starts again there: the log should hold what
    /// follows. Without effect where the log is kept for a time anyway.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] if the store cannot be reached; the log then holds what followed the last time.
    async fn kept(&self, reader: &str, frontier: &Frontier) -> Result<(), SourceError>;
}

/// A checkpoint store failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{name}`: {problem}")]
pub struct CheckpointStoreError {
    /// `read`, `write`, `list` or `delete`.
    pub doing: &'static str,
    /// The blob.
    pub name: String,
    /// What the store said.
    pub problem: String,
}

/// Where the dataflow keeps its checkpoints: named blobs that one process writes.
#[async_trait]
pub trait CheckpointStore: Send + Sync + fmt::Debug {
    /// Writes a blob; it is durable, and replaces one of that name as a whole, when this returns.
    ///
    /// # Errors
    /// [`CheckpointStoreError`]; a blob of that name is then the one before, or none.
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointStoreError>;

    /// Reads a blob; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointStoreError`].
    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointStoreError>;

    /// Names of all blobs.
    ///
    /// # Errors
    /// [`CheckpointStoreError`].
    async fn list(&self) -> Result<Vec<String>, CheckpointStoreError>;

    /// Deletes a blob; deleting one that is not there is no error.
    ///
    /// # Errors
    /// [`CheckpointStoreError`].
    async fn delete(&self, name: &str) -> Result<(), CheckpointStoreError>;
}

/// Why a wait ended without the record being visible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed first.
    #[error(
        "{wanted} is not visible yet after {waited:?} (visible: {visible}); try again, or check that the receipt is of this installation"
    )]
    Timeout {
        /// The receipt.
        wanted: Position,
        /// How long was waited.
        waited: Duration,
        /// The present frontier, as text.
        visible: String,
    },
    /// The dataflow is stopping.
    #[error("the server is stopping")]
    Stopping,
}

impl Classify for WaitError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Timeout { .. } => ErrorClass::Timeout,
            Self::Stopping => ErrorClass::Unavailable,
        }
    }
}

/// Reads published snapshots.
#[async_trait]
pub trait ViewReader: Send + Sync + fmt::Debug {
    /// The newest published snapshot. Costs an atomic load.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// False until the first snapshot that holds everything found at start.
    fn ready(&self) -> bool;

    /// Waits until the record at `position` is visible in the domain's tables and returns the snapshot that shows it.
    ///
    /// # Errors
    /// [`WaitError`] if it is not visible within `timeout`.
    async fn wait_for(
        &self,
        domain: &DomainId,
        position: Position,
        timeout: Duration,
    ) -> Result<Arc<Snapshot>, WaitError>;

    /// What is held of a domain and what its views cost, as of now. Costs what the answer is long; nothing where no dataflow
    /// runs.
    fn measured(&self, _domain: &DomainId) -> Measured {
        Measured::default()
    }

    /// Which documents made a row or a group. The workers are asked between two ticks; without questions this costs nothing.
    ///
    /// # Errors
    /// [`ProvenanceError`], at the latest after `timeout`.
    async fn provenance(
        &self,
        _question: ProvenanceQuestion,
        _timeout: Duration,
    ) -> Result<Explained, ProvenanceError> {
        Err(ProvenanceError::Unavailable)
    }
}

/// Things a principal may be allowed to do in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Submit forms.
    Submit,
    /// Read data over SQL, REST and reports.
    ReadData,
    /// Change view definitions.
    EditReports,
    /// Write users and locations.
    EditUsers,
    /// Archive, delete and rebuild forms and cases.
    EditData,
    /// Change the domain's settings.
    EditDomain,
}

/// Someone authenticated, in one domain.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The domain that was asked for and that everything this principal does is confined to.
    pub domain: DomainId,
    /// Their user id.
    pub user_id: UserId,
    /// Their user name, for logs and `current_user`.
    pub username: String,
    /// What they may do.
    pub permissions: Vec<Permission>,
}

impl Principal {
    /// True if the principal holds the permission.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(&permission)
    }
}

/// Why credentials were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Unknown user, wrong password or key, wrong domain: deliberately one answer.
    #[error("user name, password or API key is wrong for domain `{domain}`")]
    Refused {
        /// The domain asked for.
        domain: String,
    },
    /// A mobile worker whose account is switched off or deleted.
    #[error("the account `{username}` is not active")]
    Inactive {
        /// Their user name.
        username: String,
    },
    /// Too many wrong secrets for that name lately.
    #[error("too many failed attempts to sign in as `{username}`; try again in {seconds} s")]
    LockedOut {
        /// The user name.
        username: String,
        /// How long until the next attempt is looked at.
        seconds: u64,
    },
    /// The digest answers an old challenge; the client answers the new one by itself.
    #[error("the digest answers a challenge that is too old")]
    Stale,
    /// The account store cannot be reached.
    #[error("could not check credentials: {0}")]
    Unavailable(String),
}

impl Classify for AuthError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Refused { .. } | Self::Inactive { .. } | Self::Stale => ErrorClass::Unauthenticated,
            Self::LockedOut { .. } => ErrorClass::RateLimited,
            Self::Unavailable(_) => ErrorClass::Unavailable,
        }
    }
}

/// Checks credentials.
#[async_trait]
pub trait Authenticator: Send + Sync + fmt::Debug {
    /// Returns who the caller is in `domain`. Verified credentials are cached briefly, so the usual cost is microseconds.
    ///
    /// # Errors
    /// [`AuthError`].
    async fn authenticate(&self, domain: &DomainId, credentials: &Credentials) -> Result<Principal, AuthError>;

    /// The value of a `WWW-Authenticate` header that asks for a digest.
    fn digest_challenge(&self, stale: bool) -> String;
}

/// The wall clock; fixed in tests.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Microseconds since 1970 UTC.
    fn now_micros(&self) -> i64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_micros(&self) -> i64 {
        jiff::Timestamp::now().as_microsecond()
    }
}
