//! One error for everything a reader can do wrong or run into, and how each protocol says it.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use schemas::{
    error::{Classify, ErrorClass},
    inside::ProvenanceError,
    port::{AuthError, WaitError},
    position::PositionError,
};

use crate::closest::closest;

/// Why a read was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueryError {
    /// No `Authorization` header, or one of a scheme that is not known.
    #[error("credentials are needed to read domain `{domain}`; send Basic, Digest, ApiKey or Bearer authorization")]
    NoCredentials {
        /// The domain asked for.
        domain: String,
        /// A challenge for clients that answer digests, where there is one.
        digest: Option<String>,
    },
    /// The credentials were not accepted.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The caller is known, but not in this domain or not for reading.
    #[error("user `{username}` may not read data of domain `{domain}`; ask an administrator of the domain")]
    Forbidden {
        /// Who asked.
        username: String,
        /// The domain asked for.
        domain: String,
    },
    /// The first complete snapshot is still being computed.
    #[error("tables are still being loaded after a start; try again in a moment")]
    Starting,
    /// The receipt is not visible in time.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Where something comes from cannot be said.
    #[error(transparent)]
    Provenance(#[from] ProvenanceError),
    /// The receipt is not one.
    #[error(transparent)]
    Receipt(#[from] PositionError),
    /// The text is not SQL.
    #[error("could not parse statement: {0}")]
    Syntax(String),
    /// A table that the domain does not have.
    #[error(
        "table `{name}` does not exist in domain `{domain}`{}",
        hint(close, "select * from system.tables lists them")
    )]
    UnknownTable {
        /// As written.
        name: String,
        /// Where it was looked for.
        domain: String,
        /// Known names that look like it.
        close: Vec<String>,
    },
    /// A view without rows to read: it is being built for the first time, or its definition cannot be maintained.
    #[error("table `{name}` cannot be read yet: {why}")]
    NotReady {
        /// As written.
        name: String,
        /// How far the build is, or what is wrong with the definition.
        why: String,
    },
    /// A column that the tables of the statement do not have.
    #[error("column `{name}` does not exist{}", hint(close, "select * shows the columns"))]
    UnknownColumn {
        /// As written.
        name: String,
        /// Known names that look like it.
        close: Vec<String>,
    },
    /// A function that does not exist or not for these arguments.
    #[error("{0}")]
    UnknownFunction(String),
    /// The statement would change something.
    #[error(
        "{what} is not possible here: tables are read-only and kept current by the server; only queries are accepted"
    )]
    ReadOnly {
        /// The kind of statement.
        what: String,
    },
    /// The statement or request makes no sense for another reason.
    #[error("{0}")]
    Invalid(String),
    /// A value in the data or in the statement does not fit.
    #[error("{message}")]
    Data {
        /// What happened.
        message: String,
        /// Its SQLSTATE.
        state: &'static str,
    },
    /// A request parameter that cannot be read.
    #[error("{0}")]
    Parameter(String),
    /// More rows than a statement may return.
    #[error("the result has more than {limit} rows; add a limit, or read it in parts by key or stamp")]
    TooManyRows {
        /// The limit.
        limit: usize,
    },
    /// A statement text that is too long.
    #[error("the statement is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// The statement ran too long.
    #[error("the statement was stopped after {after:?}; make it smaller or raise statement_timeout")]
    Timeout {
        /// How long it ran.
        after: Duration,
    },
    /// Everyone is busy.
    #[error("{limit} statements are running already; try again in a second")]
    Busy {
        /// How many may run at a time.
        limit: usize,
    },
    /// The statement needs more memory than there is.
    #[error("the statement needs more memory than it may use: {0}")]
    Resources(String),
    /// A prepared statement whose result has another shape by now.
    #[error("the tables of this prepared statement have changed their columns; prepare it again")]
    ResultChanged,
    /// Valid SQL that is not supported.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A document that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A fault of ours.
    #[error("could not answer: {0}")]
    Internal(String),
}

fn hint(close: &[String], otherwise: &str) -> String {
    if close.is_empty() { format!("; {otherwise}") } else { format!("; did you mean {}?", close.join(", ")) }
}

impl Classify for QueryError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NoCredentials { .. } => ErrorClass::Unauthenticated,
            Self::Auth(error) => error.class(),
            Self::Forbidden { .. } | Self::ReadOnly { .. } => ErrorClass::Forbidden,
            Self::Starting => ErrorClass::Unavailable,
            Self::Wait(error) => error.class(),
            Self::Provenance(error) => error.class(),
            Self::UnknownTable { .. } | Self::NotFound(_) => ErrorClass::NotFound,
            Self::NotReady { .. } => ErrorClass::Conflict,
            Self::Receipt(_)
            | Self::Syntax(_)
            | Self::UnknownColumn { .. }
            | Self::UnknownFunction(_)
            | Self::Invalid(_)
            | Self::Data { .. }
            | Self::Parameter(_)
            | Self::Unsupported(_) => ErrorClass::BadRequest,
            Self::TooManyRows { .. } | Self::TooLong { .. } | Self::Resources(_) => ErrorClass::TooLarge,
            Self::Timeout { .. } => ErrorClass::Timeout,
            Self::Busy { .. } => ErrorClass::RateLimited,
            Self::ResultChanged => ErrorClass::Conflict,
            Self::Internal(_) => ErrorClass::Internal,
        }
    }
}

impl QueryError {
    /// The SQLSTATE that Postgres clients see.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::NoCredentials { .. }
            | Self::Auth(AuthError::Refused { .. } | AuthError::Stale | AuthError::LockedOut { .. }) => "28P01",
            Self::Auth(AuthError::Inactive { .. }) => "28000",
            Self::Auth(AuthError::Unavailable(_)) | Self::Starting | Self::Wait(WaitError::Stopping) => "57P03",
            Self::Forbidden { .. } => "42501",
            Self::Wait(WaitError::Timeout { .. }) | Self::Timeout { .. } => "57014",
            Self::Receipt(_) | Self::Parameter(_) => "22023",
            Self::Syntax(_) => "42601",
            Self::UnknownTable { .. } => "42P01",
            Self::NotReady { .. } => "55000",
            Self::UnknownColumn { .. } => "42703",
            Self::UnknownFunction(_) => "42883",
            Self::ReadOnly { .. } => "25006",
            Self::Invalid(_) => "42000",
            Self::Data { state, .. } => state,
            Self::TooManyRows { .. } | Self::TooLong { .. } => "54000",
            Self::Busy { .. } => "53300",
            Self::Resources(_) => "53200",
            Self::ResultChanged | Self::Unsupported(_) => "0A000",
            Self::NotFound(_) | Self::Provenance(_) => "02000",
            Self::Internal(_) => "XX000",
        }
    }
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> Self {
        let state = match &error {
            ArrowError::DivideByZero => "22012",
            ArrowError::CastError(_) | ArrowError::ParseError(_) => "22P02",
            ArrowError::ArithmeticOverflow(_) => "22003",
            ArrowError::ComputeError(_) | ArrowError::InvalidArgumentError(_) => "22000",
            ArrowError::ExternalError(inner) => {
                return match inner.downcast_ref::<DataFusionError>() {
                    Some(error) => Self::of(error),
                    None => Self::Internal(inner.to_string()),
                };
            }
            _ => return Self::Internal(error.to_string()),
        };
        Self::Data { message: error.to_string(), state }
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        Self::of(&error)
    }
}

impl QueryError {
    /// Reads the engine's error: what the caller did wrong keeps its meaning, everything else is a fault of ours.
    fn of(error: &DataFusionError) -> Self {
        let root = error.find_root();
        let message = || clean(&root.message());
        match root {
            DataFusionError::External(inner) => match inner.downcast_ref::<Self>() {
                Some(error) => error.clone(),
                None => Self::Internal(inner.to_string()),
            },
            DataFusionError::SQL(error, _) => Self::Syntax(clean(&error.to_string())),
            DataFusionError::SchemaError(error, _) => match error.as_ref() {
                SchemaError::FieldNotFound { field, valid_fields } => Self::UnknownColumn {
                    name: field.flat_name(),
                    close: closest(&field.name, valid_fields.iter().map(|field| field.name.as_str())),
                },
                error => Self::Invalid(clean(&error.to_string())),
            },
            DataFusionError::Plan(_) | DataFusionError::Configuration(_) => {
                let message = message();
                if message.starts_with("Invalid function") || message.contains("does not support") {
                    Self::UnknownFunction(message)
                } else {
                    Self::Invalid(message)
                }
            }
            DataFusionError::NotImplemented(_) => Self::Unsupported(message()),
            DataFusionError::Execution(_) => Self::Data { message: message(), state: "22000" },
            DataFusionError::ResourcesExhausted(_) => Self::Resources(message()),
            DataFusionError::ArrowError(error, _) => match error.as_ref() {
                ArrowError::DivideByZero => Self::Data { message: "division by zero".to_owned(), state: "22012" },
                ArrowError::CastError(text) | ArrowError::ParseError(text) => {
                    Self::Data { message: clean(text), state: "22P02" }
                }
                ArrowError::ArithmeticOverflow(text) => Self::Data { message: clean(text), state: "22003" },
                error => Self::Data { message: clean(&error.to_string()), state: "22000" },
            },
            _ => Self::Internal(message()),
        }
    }
}

/// One line, without the engine's asides to its own developers.
fn clean(message: &str) -> String {
    let message = message.split("\n\nbacktrace").next().unwrap_or(message);
    let message = message.split(".\nThis issue was likely caused").next().unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ")
}
