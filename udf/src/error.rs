//! What can go wrong: a document that cannot be evaluated, and a specification that cannot be compiled.

use std::{collections::BTreeSet, fmt};

use schemas::error::{Classify, ErrorClass};

/// Why one document has no rows in a view: evaluating it raised (ucr.md §1.2, §2.4, §3.9).
///
/// The whole document fails; the message is shown in `system.view_errors`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A text that has to be an instant is none (ucr.md §1.2, `datetime`).
    #[error("could not read `{text}` as a date and time")]
    Datetime {
        /// The text, shortened.
        text: Box<str>,
    },
    /// A number or date beyond what can be held.
    #[error("{what} is out of range")]
    OutOfRange {
        /// What was being computed.
        what: &'static str,
    },
    /// A multiple-choice operator was given something that is not text (ucr.md §4.2).
    #[error("operator `{operator}` needs text, found {found}")]
    NotText {
        /// The operator.
        operator: &'static str,
        /// Kind of the value found.
        found: &'static str,
    },
    /// Evaluation raised in a way that the original lets through.
    #[error("{0}")]
    Raised(Box<str>),
    /// A value does not fit its column, or an indicator raised.
    #[error("column `{column}`: {problem}")]
    Column {
        /// The column.
        column: Box<str>,
        /// What is wrong.
        problem: Box<str>,
    },
    /// Checks of the data source refuse the document (ucr.md §3.5).
    #[error("refused by {names}")]
    Invalid {
        /// The checks that failed, with their messages.
        names: Box<str>,
    },
}

impl EvalError {
    pub(crate) fn raised(message: impl Into<Box<str>>) -> Self {
        Self::Raised(message.into())
    }

    pub(crate) fn in_column(self, column: &str) -> Self {
        match self {
            Self::Column { .. } => self,
            other => Self::Column { column: column.into(), problem: other.to_string().into() },
        }
    }
}

/// The first characters of a text, for messages.
pub(crate) fn excerpt(text: &str) -> Box<str> {
    text.chars().take(60).collect::<String>().into()
}

/// One thing wrong with a specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecProblem {
    /// Where, as a JSON pointer into the document (RFC 6901); empty for the document itself.
    pub pointer: String,
    /// What, and what would be right.
    pub message: String,
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.pointer.is_empty() { "/" } else { &self.pointer }, self.message)
    }
}

/// Most problems reported at once.
pub const MAX_PROBLEMS: usize = 100;

/// Everything wrong with a specification, in document order; at most [`MAX_PROBLEMS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors {
    /// The problems; never empty.
    pub problems: Vec<SpecProblem>,
    /// Names of types that are not known, of all places, also those beyond [`MAX_PROBLEMS`].
    pub unknown_types: BTreeSet<String>,
}

impl From<Vec<SpecProblem>> for SpecErrors {
    fn from(problems: Vec<SpecProblem>) -> Self {
        Self { problems, unknown_types: BTreeSet::new() }
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the definition is not valid")?;
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{} {problem}", if i == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

impl Classify for SpecErrors {
    fn class(&self) -> ErrorClass {
        ErrorClass::BadRequest
    }
}
