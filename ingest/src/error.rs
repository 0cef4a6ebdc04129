//! What can go wrong outside the rules of forms and cases, and which class of failure each is.

use schemas::error::{Classify, ErrorClass};
use tokio_postgres::error::SqlState;

/// Why a statement did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Postgres cannot be reached, is stopping or is full; later it may succeed.
    #[error("could not reach Postgres: {0}")]
    Unavailable(String),
    /// Postgres refused the statement.
    #[error("Postgres refused a statement: {}", describe(.0))]
    Refused(#[source] tokio_postgres::Error),
    /// The domain lives in a database that this process does not know.
    #[error("database {0} is not configured here; add it to `ingest.databases`")]
    NotConfigured(u16),
    /// Cases stay locked by other writers.
    #[error("{0} cases of edited forms stay locked by other writers")]
    Locked(usize),
    /// A row does not hold what this release writes.
    #[error("could not read a row of {table}: {problem}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{} ({})", db.message(), db.code().code()))
}

impl DatabaseError {
    /// A row that does not hold what it should.
    pub(crate) fn damaged(table: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Damaged { table, problem: problem.to_string() }
    }

    /// True if a lock was not granted in time, or only by giving up another transaction.
    pub(crate) fn is_lock_wait(&self) -> bool {
        let Self::Refused(error) = self else { return matches!(self, Self::Locked(_)) };
        error.code().is_some_and(|code| {
            [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::QUERY_CANCELED].contains(code)
        })
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        let away = match error.code() {
            // Connection exceptions, lack of resources, and servers that are starting or stopping.
            Some(code) => {
                code.code().starts_with("08")
                    || code.code().starts_with("53")
                    || [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
            }
            // No answer of the server: the connection itself failed, or the answer could not be decoded.
            None => {
                error.is_closed()
                    || std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>())
            }
        };
        if away { Self::Unavailable(describe(&error)) } else { Self::Refused(error) }
    }
}

impl Classify for DatabaseError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable(_) | Self::NotConfigured(_) => ErrorClass::Unavailable,
            Self::Locked(_) => ErrorClass::Conflict,
            Self::Refused(_) | Self::Damaged { .. } => ErrorClass::Internal,
        }
    }
}

/// Why the ingest service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that cannot work, all of them.
    #[error("ingest settings cannot work: {}", .0.join("; "))]
    Config(Vec<String>),
    /// No database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// One of several databases cannot be used.
    #[error("database {number}: {error}")]
    OneDatabase {
        /// Its number in the configuration.
        number: u16,
        /// The reason.
        error: Box<StartError>,
    },
    /// The database belongs to a newer release.
    #[error(
        "the database has schema {found}, this release knows up to {known}; start a release that is as new as the database"
    )]
    NewerSchema {
        /// Newest migration in the database.
        found: i32,
        /// Newest migration of this release.
        known: i32,
    },
    /// A migration failed; the database is as it was before it.
    #[error("could not apply migration `{name}`: {}", describe(.source))]
    Migration {
        /// Its name.
        name: &'static str,
        /// The reason.
        source: tokio_postgres::Error,
    },
}

impl From<tokio_postgres::Error> for StartError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Why a write was not stored. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No such domain.
    #[error("No domain with name {0}")]
    UnknownDomain(String),
    /// The lane's queue is full.
    #[error("too many submissions are waiting; try again in a second")]
    Busy,
    /// Another writer holds the form or one of its cases.
    #[error("the form or one of its cases is being processed by another request; try again")]
    Locked,
    /// Postgres is away.
    #[error("could not store the submission: the database cannot be reached; try again")]
    Unavailable,
    /// The service is stopping.
    #[error("the server is stopping; try again")]
    Stopping,
    /// The content is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// The content contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
    /// It is stored already, and nothing else was asked for.
    #[error("the form is stored already")]
    Present,
    /// The thing to change is not there.
    #[error("{0}")]
    NotFound(String),
    /// A fault of ours; details are in the log.
    #[error("could not store the submission because of an internal error")]
    Internal,
}

impl Classify for WriteError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownDomain(_) | Self::NotFound(_) => ErrorClass::NotFound,
            Self::Busy => ErrorClass::RateLimited,
            Self::Locked | Self::Conflict(_) | Self::Present => ErrorClass::Conflict,
            Self::Unavailable | Self::Stopping => ErrorClass::Unavailable,
            Self::Invalid(_) => ErrorClass::BadRequest,
            Self::Internal => ErrorClass::Internal,
        }
    }
}

impl From<DatabaseError> for WriteError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Unavailable(_) => Self::Unavailable,
            DatabaseError::NotConfigured(_) => {
                tracing::error!(%error, "a write failed");
                Self::Unavailable
            }
            _ => {
                tracing::error!(%error, "a write failed");
                Self::Internal
            }
        }
    }
}
