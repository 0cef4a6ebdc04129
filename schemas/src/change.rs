//! What one log entry says: every document a transaction touched, as it stands afterwards (architecture D5).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    id::{DocId, DomainId},
    position::{Position, Stamp},
};

/// The kinds of document that change records carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocKind {
    /// A form submission in any state.
    Form,
    /// A case.
    Case,
    /// What there is of something at a case.
    Ledger,
    /// A mobile worker.
    User,
    /// A web user, as one of their domains sees them.
    WebUser,
    /// A place of the location hierarchy.
    Location,
    /// A kind of place.
    LocationType,
    /// Mobile workers who share cases or are reported on together.
    Group,
    /// A lookup table: its name and fields.
    LookupTable,
    /// A row of a lookup table.
    LookupRow,
    /// An application as its build made it: modules, forms, questions.
    Application,
    /// The definition of a UCR data source.
    DataSource,
    /// The definition of an aggregate view.
    AggregateView,
    /// An expression that the data sources of the domain may use by name.
    NamedExpression,
    /// A filter that the data sources of the domain may use by name.
    NamedFilter,
}

impl DocKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Form,
        Self::Case,
        Self::Ledger,
        Self::User,
        Self::WebUser,
        Self::Location,
        Self::LocationType,
        Self::Group,
        Self::LookupTable,
        Self::LookupRow,
        Self::Application,
        Self::DataSource,
        Self::AggregateView,
        Self::NamedExpression,
        Self::NamedFilter,
    ];

    /// The kind's name in the log and in Postgres.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Case => "case",
            Self::Ledger => "ledger",
            Self::User => "user",
            Self::WebUser => "web_user",
            Self::Location => "location",
            Self::LocationType => "location_type",
            Self::Group => "group",
            Self::LookupTable => "lookup_table",
            Self::LookupRow => "lookup_row",
            Self::Application => "application",
            Self::DataSource => "data_source",
            Self::AggregateView => "aggregate_view",
            Self::NamedExpression => "named_expression",
            Self::NamedFilter => "named_filter",
        }
    }

    /// The kind of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// CommCare's topic for documents of this kind (forms-and-cases.md §14), if it has one.
    #[must_use]
    pub const fn feed(self) -> Option<&'static str> {
        match self {
            Self::Form => Some("form-sql"),
            Self::Case => Some("case-sql"),
            Self::Ledger => Some("ledger"),
            Self::User => Some("commcare-user"),
            Self::WebUser => Some("web-user"),
            Self::Location => Some("location"),
            Self::Group => Some("group"),
            Self::Application => Some("app"),
            Self::LocationType | Self::LookupTable | Self::LookupRow => Some("meta"),
            Self::DataSource | Self::AggregateView | Self::NamedExpression | Self::NamedFilter => None,
        }
    }

    /// True of what says how views are made, rather than what they are made of.
    #[must_use]
    pub const fn is_definition(self) -> bool {
        matches!(self, Self::DataSource | Self::AggregateView | Self::NamedExpression | Self::NamedFilter)
    }
}

/// One transaction of one domain: all of it becomes visible at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Where in the log.
    pub position: Position,
    /// The domain that every document of the record belongs to.
    pub domain: DomainId,
    /// The documents, in the order they took effect. Each document at most once.
    pub documents: Vec<ChangedDocument>,
}

/// A document as it stands after the transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangedDocument {
    /// What it is.
    pub kind: DocKind,
    /// Its id.
    pub id: DocId,
    /// Commit time, unique and increasing in the lane.
    pub stamp: Stamp,
    /// CommCare's `document_type`, such as `XFormInstance` or `CommCareCase-Deleted`.
    pub document_type: String,
    /// CommCare's `document_subtype`: a form's xmlns, a case's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtype: Option<String>,
    /// The document's JSON, or nothing when it is gone for good.
    pub body: Option<Arc<RawValue>>,
}

/// Version of the wire form below; readers refuse versions they do not know.
pub const WIRE_VERSION: u32 = 1;

/// A log entry that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Not the JSON of a change record.
    #[error("could not read change record: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a newer release.
    #[error("change record has version {0}, this release reads version {WIRE_VERSION}; upgrade the reader first")]
    Version(u32),
}

impl ChangeRecord {
    /// The record as it is written to the log.
    ///
    /// # Errors
    /// [`ChangeError::Malformed`] if a document body cannot be written, which a [`RawValue`] never causes.
    pub fn to_wire(&self) -> Result<String, ChangeError> {
        #[derive(Serialize)]
        struct Out<'a> {
            version: u32,
            position: Position,
            domain: &'a DomainId,
            documents: &'a [ChangedDocument],
        }
        let out =
            Out { version: WIRE_VERSION, position: self.position, domain: &self.domain, documents: &self.documents };
        Ok(serde_json::to_string(&out)?)
    }

    /// Reads a log entry.
    ///
    /// # Errors
    /// [`ChangeError`] if it is malformed or of a version this release does not know.
    pub fn from_wire(text: &str) -> Result<Self, ChangeError> {
        #[derive(Deserialize)]
        struct In {
            version: u32,
            position: Position,
            domain: DomainId,
            documents: Vec<ChangedDocument>,
        }
        let read: In = serde_json::from_str(text)?;
        if read.version != WIRE_VERSION {
            return Err(ChangeError::Version(read.version));
        }
        Ok(Self { position: read.position, domain: read.domain, documents: read.documents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_form_round_trips() {
        let text = r#"{"version":1,"position":"m1.0-0.7","domain":"demo","documents":[{"kind":"case","id":"c1","stamp":5,"document_type":"CommCareCase","subtype":"child","body":{"a":[1]}},{"kind":"form","id":"f","stamp":6,"document_type":"XFormInstance","body":null}]}"#;
        let record = ChangeRecord::from_wire(text).unwrap();
        assert_eq!(record.to_wire().unwrap(), text);
        assert!(matches!(
            ChangeRecord::from_wire(&text.replace("\"version\":1", "\"version\":9")),
            Err(ChangeError::Version(9))
        ));
    }
}
