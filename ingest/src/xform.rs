//! An XForm submission: bytes in, typed form out.
//!
//! In: the bytes a device posted. Out: [`ParsedForm`]: identity, the form's JSON as reports and expressions read it,
//! metadata, and the case blocks.
//! Never: expands entities, reads a DTD, recurses over the input, reads a clock. Size, depth and number of nodes are
//! limited here, once.
//!
//! Source: forms-and-cases.md §6-§8.

mod datetime;
mod encoding;
mod meta;
mod tree;

use schemas::{
    error::{Classify, ErrorClass},
    id::{FormId, IdError},
};
use serde_json::{Map, Value};

use crate::casexml::{
    CaseBlock, CaseError, find_case_blocks,
    ledger::{LedgerChange, find_ledger_changes},
};

pub use meta::FormMeta;

/// Namespace of device reports, which are stored as logs and never touch cases.
pub const DEVICE_REPORT: &str = "http://code.javarosa.org/devicereport";

/// How much a form may ask of the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLimits {
    /// Bytes of the body, after decompression.
    pub max_bytes: usize,
    /// Levels of nesting of the form's JSON, its root being the first; a repeat counts as a level of its own. Documents embed
    /// the form one level deeper, and readers of JSON commonly stop at 128.
    pub max_depth: usize,
    /// Elements and attributes.
    pub max_nodes: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { max_bytes: 10_000_000, max_depth: 120, max_nodes: 500_000 }
    }
}

/// Why a body is not a form.
///
/// The text is upstream's `problem`: it begins with `Invalid XML: ` unless only the namespace is missing (§5).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not well-formed.
    #[error("Invalid XML: {message}, at byte {position}")]
    NotXml {
        /// What the parser found.
        message: String,
        /// Where, in the body decoded to UTF-8.
        position: u64,
    },
    /// More bytes than allowed.
    #[error("Invalid XML: the form is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Nested deeper than allowed.
    #[error("Invalid XML: the form is nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More elements and attributes than allowed.
    #[error("Invalid XML: the form has more than {limit} elements and attributes")]
    TooManyNodes {
        /// The limit.
        limit: usize,
    },
    /// The declared encoding is unknown, or the bytes are not in it.
    #[error("Invalid XML: the form is not valid {encoding} text; send UTF-8, ISO-8859-1 or US-ASCII and declare it")]
    BadEncoding {
        /// The encoding that was declared or assumed.
        encoding: String,
    },
    /// A reference to an entity that XML does not define itself.
    #[error("Invalid XML: entity '&{name};' is not defined, and custom entities are not accepted")]
    Entity {
        /// Its name.
        name: String,
    },
    /// A document type declaration.
    #[error("Invalid XML: document type declarations are not accepted")]
    Doctype,
    /// The root has no namespace.
    #[error("Form is missing a required field: XMLNS")]
    MissingXmlns,
    /// The instance id cannot identify anything.
    #[error("Form has an unusable instance id: {0}")]
    FormId(#[from] IdError),
}

impl Classify for ParseError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::TooLarge { .. } => ErrorClass::TooLarge,
            _ => ErrorClass::BadRequest,
        }
    }
}

/// A form as it was read.
#[derive(Clone, Debug)]
pub struct ParsedForm {
    /// The instance id, or the fallback where the form has none.
    pub form_id: FormId,
    /// Namespace of the root, never empty.
    pub xmlns: String,
    /// The user in the form's metadata.
    pub user_id: Option<String>,
    /// The form's JSON, dates normalised and meta cleaned up, `#type` first.
    pub json: Map<String, Value>,
    /// Metadata.
    pub meta: FormMeta,
    /// The case blocks in the order in which they take effect, or why the form is an error form.
    pub case_blocks: Result<Vec<CaseBlock>, CaseError>,
    /// The ledger changes in document order, empty where [`Self::case_blocks`] is an error.
    pub ledger_changes: Vec<LedgerChange>,
    /// True for a device report: logs, not a form.
    pub is_device_log: bool,
}

/// The JSON of an XML document by rules 1 to 9 of §6 alone: dates as they were sent.
///
/// # Errors
/// [`ParseError`] if the body is not acceptable XML.
pub fn read_json(body: &[u8], limits: &ParseLimits) -> Result<Map<String, Value>, ParseError> {
    tree::read(&encoding::decode(body)?, limits, tree::as_sent)
}

/// A datetime as documents hold it; `None` for a text that is none (§6 rule 10).
#[must_use]
pub fn normalised(text: &str) -> Option<String> {
    datetime::normalise(text)
}

/// Parses a submission. `fallback_id` makes the id of a form that brings none.
///
/// # Errors
/// [`ParseError`] if the body is not an acceptable form. Bad case blocks are not an error of the form's own: they are in
/// [`ParsedForm::case_blocks`].
pub fn parse(body: &[u8], limits: &ParseLimits, fallback_id: &dyn Fn() -> String) -> Result<ParsedForm, ParseError> {
    if body.len() > limits.max_bytes {
        return Err(ParseError::TooLarge { limit: limits.max_bytes });
    }
    let text = encoding::decode(body)?;
    let mut json = tree::read(&text, limits, tree::normalised)?;
    let xmlns = match json.get("@xmlns").and_then(Value::as_str) {
        Some(xmlns) if !xmlns.is_empty() => xmlns.to_owned(),
        _ => return Err(ParseError::MissingXmlns),
    };
    let form_id = match meta::instance_id(&json) {
        Some(id) => FormId::new(id)?,
        None => FormId::new(&fallback_id())?,
    };
    let user_id = meta::user_id(&json).map(str::to_owned);
    meta::clean_up(&mut json);
    let is_device_log = xmlns == DEVICE_REPORT;
    let found = find_case_blocks(&json, user_id.as_deref())
        .and_then(|blocks| find_ledger_changes(&json).map(|changes| (blocks, changes)));
    let (case_blocks, ledger_changes) = match found {
        Ok((blocks, changes)) => (Ok(blocks), changes),
        Err(error) => (Err(error), Vec::new()),
    };
    let meta = FormMeta::of(&json);
    Ok(ParsedForm { form_id, xmlns, user_id, json, meta, case_blocks, ledger_changes, is_device_log })
}

#[cfg(test)]
pub(crate) mod tests;
