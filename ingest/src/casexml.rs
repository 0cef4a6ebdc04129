//! Case blocks: what a form says about cases.
//!
//! In: a form's JSON. Out: its [`CaseBlock`]s, typed, checked and in the order in which they take effect.
//! Blocks are stored beside the case transaction, so that a replay needs neither XML nor the form's JSON; their
//! serde names are short for that reason and must stay readable by every later release.
//! Never: touches case state (that is `submit::apply`), reads a clock.
//!
//! Source: forms-and-cases.md §8-§10, §12.6.

pub mod ledger;
mod parse;
pub(crate) mod value;

use schemas::{
    error::{Classify, ErrorClass},
    id::CaseId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

pub use parse::find_case_blocks;

/// Namespace of version 2 case blocks, the only version that is applied.
pub const CASE_V2: &str = "http://commcarehq.org/case/transaction/v2";

/// Everything one `<case>` element says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseBlock {
    /// The case it is about.
    #[serde(rename = "c")]
    pub case_id: CaseId,
    /// Who acted: the block's `user_id`, or the form's user where the block has none.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// When it happened on the phone, microseconds since 1970 UTC; absent means when the server received it.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub date_modified: Option<i64>,
    /// A `<create>` with content.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub create: Option<CaseColumns>,
    /// An `<update>` with content.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub update: Option<CaseUpdate>,
    /// A `<close>`, empty or not.
    #[serde(rename = "x", default, skip_serializing_if = "is_false")]
    pub close: bool,
    /// Children of `<index>`, in document order.
    #[serde(rename = "i", default, skip_serializing_if = "Vec::is_empty")]
    pub indices: Vec<IndexChange>,
    /// Children of `<attachment>`, in document order.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentChange>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Known properties: those that set columns (§9.1). `None` leaves a column as it is, empty text empties it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseColumns {
    /// `case_type`.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub case_type: Option<String>,
    /// `case_name`, or the older `name` of an update.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `external_id`, or `hq_user_id` of an update.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// `owner_id`.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    /// `date_opened`, microseconds since 1970 UTC. An empty element changes nothing: a time cannot be emptied.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub opened_on: Option<i64>,
    /// `user_id`, which matters only where the block itself names no user.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// `location_id` of an update.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub location_id: Option<String>,
}

/// The content of an `<update>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CaseUpdate {
    /// Known properties.
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub columns: CaseColumns,
    /// Dynamic properties: text, or an object where the element had attributes or children (§9.2).
    #[serde(rename = "p", default, skip_serializing_if = "Map::is_empty")]
    pub properties: Map<String, Value>,
}

fn is_default(columns: &CaseColumns) -> bool {
    *columns == CaseColumns::default()
}

/// How a case depends on the one it refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relationship {
    /// The usual kind.
    #[default]
    Child,
    /// Lives and closes with its host.
    Extension,
}

impl Relationship {
    /// The name in XML, JSON and Postgres.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Child => "child",
            Self::Extension => "extension",
        }
    }

    /// The relationship of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Child, Self::Extension].into_iter().find(|relationship| relationship.name() == name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_child(&self) -> bool {
        *self == Self::Child
    }
}

/// One child of `<index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexChange {
    /// Name of the index, unique per case.
    #[serde(rename = "n")]
    pub identifier: String,
    /// Type of the referenced case, as the form states it.
    #[serde(rename = "t")]
    pub case_type: String,
    /// Kind of reference.
    #[serde(rename = "r", default, skip_serializing_if = "Relationship::is_child")]
    pub relationship: Relationship,
    /// Id of the referenced case; empty removes the index.
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub referenced_id: String,
}

/// One child of `<attachment>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentChange {
    /// Name of the attachment.
    #[serde(rename = "n")]
    pub name: String,
    /// Name of the form's attachment that it becomes. With neither `src` nor `from` it is removed.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// Where the phone says the file is.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The file that `src` names, so that a replay need not look for it; absent where the domain has no attachments of cases.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub file: Option<CaseFile>,
}

/// A file attached to a case: the same bytes as the form's attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseFile {
    /// Under which the bytes are found.
    #[serde(with = "as_text")]
    pub key: Uuid,
    /// Media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Bytes.
    pub content_length: u64,
}

/// A key as its usual text.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(key: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        Uuid::parse_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Why a form's case blocks cannot be applied. The text of the variants that [`CaseError::is_known`] begins with
/// upstream's error type, as stored in a form's `problem`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// The case id is empty, too long, or belongs to another domain.
    #[error("IllegalCaseId: {0}")]
    IllegalCaseId(String),
    /// The block holds a referral.
    #[error("UsesReferrals: case '{0}' has a referral block, and referrals are not supported")]
    UsesReferrals(CaseId),
    /// An entry of a ledger block names no product.
    #[error("MissingProductId: a ledger entry has no id")]
    MissingProductId,
    /// `date_modified` is there and is no date.
    #[error("PhoneDateValueError: '{0}' is not an ISO 8601 date")]
    PhoneDateValue(String),
    /// An index points nowhere.
    #[error("InvalidCaseIndex: Case '{case_id}' references non-existent case '{referenced_id}'")]
    InvalidCaseIndex {
        /// The case with the index.
        case_id: CaseId,
        /// What it refers to.
        referenced_id: String,
    },
    /// A known property holds what its column cannot.
    #[error("CaseValueError: Error processing case update: Field: {field}, Error: {error}")]
    CaseValue {
        /// The column.
        field: &'static str,
        /// What is wrong with the value.
        error: String,
    },
    /// An attachment of a case is no attachment of the form.
    #[error("case '{case_id}' refers to the attachment '{src}', which did not come with the form")]
    MissingAttachment {
        /// The case.
        case_id: CaseId,
        /// Name of the form's attachment.
        src: String,
    },
    /// A block of version 1 or of an unknown version.
    #[error(
        "could not read a case block: its namespace is {}, expected '{CASE_V2}'",
        .0.as_deref().map_or_else(|| "absent".to_owned(), |namespace| format!("'{namespace}'"))
    )]
    UnsupportedVersion(Option<String>),
    /// An index element that says too little or nonsense.
    #[error("could not read index '{identifier}' of case '{case_id}': {problem}")]
    MalformedIndex {
        /// The case with the index.
        case_id: CaseId,
        /// Name of the index.
        identifier: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl CaseError {
    /// True for the errors that store an error form and are answered as a processing failure; all others are 500 as well
    /// as stored (§12.6).
    #[must_use]
    pub const fn is_known(&self) -> bool {
        !matches!(self, Self::UnsupportedVersion(_) | Self::MalformedIndex { .. } | Self::MissingAttachment { .. })
    }
}

impl Classify for CaseError {
    fn class(&self) -> ErrorClass {
        if self.is_known() { ErrorClass::BadRequest } else { ErrorClass::Internal }
    }
}

/// The ids of all cases that blocks are about, sorted, each once: what has to be locked and loaded before applying.
#[must_use]
pub fn touched_case_ids(blocks: &[CaseBlock]) -> Vec<CaseId> {
    let mut ids: Vec<CaseId> = blocks.iter().map(|block| block.case_id.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The ids that the blocks' indices refer to, sorted, each once: what `submit::apply::check_indices` will ask about
/// (besides the indices that the loaded cases already have). Texts that are no case id are left out: no such case exists.
#[must_use]
pub fn referenced_case_ids(blocks: &[CaseBlock]) -> Vec<CaseId> {
    let indices = blocks.iter().flat_map(|block| &block.indices);
    let mut ids: Vec<CaseId> = indices.filter_map(|index| CaseId::new(&index.referenced_id).ok()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
