//! The JSON documents of forms and cases, as change records carry them and every consumer reads them.
//!
//! In: a form's or case's state. Out: JSON text, made once.
//! Never: reads the database; what a document shows is in its arguments.
//!
//! Source: forms-and-cases.md §7.2, §7.3, §9.3.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{
    id::{DomainId, FormId},
    time::format_micros,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, value::RawValue};

use super::apply::{CaseIndexState, CaseState};
use crate::{casexml::CaseFile, xform::FormMeta};

/// What became of a form. A soft-deleted form keeps its state and has [`FormState::DELETED_BIT`] set besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormState {
    /// Applied.
    Normal,
    /// Taken out by a user; its case transactions are revoked.
    Archived,
    /// Replaced by an edit.
    Deprecated,
    /// The same bytes again.
    Duplicate,
    /// Could not be applied.
    Error,
    /// Not a form at all.
    SubmissionErrorLog,
}

impl FormState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Normal, Self::Archived, Self::Deprecated, Self::Duplicate, Self::Error, Self::SubmissionErrorLog];

    /// Or-ed onto the bits of a soft-deleted form.
    pub const DELETED_BIT: i32 = 64;

    /// The stored bit (§7.3).
    #[must_use]
    pub const fn bits(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Archived => 2,
            Self::Deprecated => 4,
            Self::Duplicate => 8,
            Self::Error => 16,
            Self::SubmissionErrorLog => 32,
        }
    }

    /// The state of stored bits, and whether the form is deleted.
    #[must_use]
    pub fn from_bits(bits: i32) -> Option<(Self, bool)> {
        let state = Self::ALL.into_iter().find(|state| state.bits() == bits & !Self::DELETED_BIT)?;
        Some((state, bits & Self::DELETED_BIT != 0))
    }

    /// The document type of a form in this state.
    #[must_use]
    pub const fn doc_type(self, deleted: bool) -> &'static str {
        if deleted {
            return "XFormInstance-Deleted";
        }
        match self {
            Self::Normal => "XFormInstance",
            Self::Archived => "XFormArchived",
            Self::Deprecated => "XFormDeprecated",
            Self::Duplicate => "XFormDuplicate",
            Self::Error => "XFormError",
            Self::SubmissionErrorLog => "SubmissionErrorLog",
        }
    }
}

/// A form with all that its document shows. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug)]
pub struct FormRow<'a> {
    /// Its id.
    pub form_id: &'a FormId,
    /// The domain it belongs to.
    pub domain: &'a DomainId,
    /// What became of it.
    pub state: FormState,
    /// True if soft-deleted.
    pub deleted: bool,
    /// Namespace; empty for a submission error log.
    pub xmlns: &'a str,
    /// The app it was sent for.
    pub app_id: Option<&'a str>,
    /// The build of that app.
    pub build_id: Option<&'a str>,
    /// The user in its metadata.
    pub user_id: Option<&'a str>,
    /// When the server received it; an edit keeps the first.
    pub received_on: i64,
    /// When its state last changed.
    pub server_modified_on: i64,
    /// When it was edited, or pushed aside by an edit.
    pub edited_on: Option<i64>,
    /// The form that this one replaced.
    pub deprecated_form_id: Option<&'a str>,
    /// The id it was sent under, where it is stored under another.
    pub orig_id: Option<&'a str>,
    /// Why it is an error.
    pub problem: Option<&'a str>,
    /// True once processed and saved.
    pub initial_processing_complete: bool,
    /// Who authenticated, as JSON.
    pub auth_context: Option<&'a Value>,
    /// Headers kept, as JSON.
    pub openrosa_headers: Option<&'a Value>,
    /// Sync token of the phone.
    pub last_sync_token: Option<&'a str>,
    /// The phone's clock, from the `Date` header.
    pub date_header: Option<i64>,
    /// Address it came from.
    pub submit_ip: Option<&'a str>,
    /// What was done to it, oldest first; each as [`operation`] makes it.
    pub history: &'a [Value],
    /// The form's JSON.
    pub form: &'a Map<String, Value>,
    /// Its metadata; absent for a submission error log.
    pub meta: Option<&'a FormMeta>,
}

/// A form's document.
///
/// # Errors
/// None in practice: every value in a row can be written as JSON.
pub fn form_document(row: &FormRow<'_>) -> Result<Arc<RawValue>, serde_json::Error> {
    Ok(Arc::from(serde_json::value::to_raw_value(row)?))
}

/// A line of a form's history. `at` is in microseconds since 1970 UTC.
#[must_use]
pub fn operation(name: &str, user: &str, at: i64) -> Value {
    serde_json::json!({"operation": name, "user": user, "date": format_micros(at)})
}

impl Serialize for FormRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        out.serialize_entry("_id", self.form_id)?;
        out.serialize_entry("domain", self.domain)?;
        out.serialize_entry("doc_type", self.state.doc_type(self.deleted))?;
        out.serialize_entry("xmlns", self.xmlns)?;
        out.serialize_entry("app_id", &self.app_id)?;
        out.serialize_entry("build_id", &self.build_id)?;
        out.serialize_entry("user_id", &self.user_id)?;
        out.serialize_entry("received_on", &format_micros(self.received_on))?;
        out.serialize_entry("server_modified_on", &format_micros(self.server_modified_on))?;
        out.serialize_entry("edited_on", &self.edited_on.map(format_micros))?;
        out.serialize_entry("deprecated_form_id", &self.deprecated_form_id)?;
        out.serialize_entry("orig_id", &self.orig_id)?;
        out.serialize_entry("state", &(self.state.bits() | if self.deleted { FormState::DELETED_BIT } else { 0 }))?;
        out.serialize_entry("problem", &self.problem)?;
        out.serialize_entry("initial_processing_complete", &self.initial_processing_complete)?;
        out.serialize_entry("partial_submission", &false)?;
        out.serialize_entry("auth_context", &self.auth_context)?;
        out.serialize_entry("openrosa_headers", &self.openrosa_headers)?;
        out.serialize_entry("last_sync_token", &self.last_sync_token)?;
        out.serialize_entry("date_header", &self.date_header.map(format_micros))?;
        out.serialize_entry("submit_ip", &self.submit_ip)?;
        out.serialize_entry("backend_id", "sql")?;
        out.serialize_entry("history", self.history)?;
        out.serialize_entry("metadata", &self.meta)?;
        out.serialize_entry("form", self.form)?;
        out.end()
    }
}

/// One transaction as a case document lists it. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug)]
pub struct CaseAction<'a> {
    /// The form.
    pub xform_id: Option<&'a str>,
    /// When the server received it.
    pub server_date: i64,
    /// The phone's date.
    pub date: Option<i64>,
    /// Sync token of the submission.
    pub sync_log_id: Option<&'a str>,
}

impl Serialize for CaseAction<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(Some(4))?;
        out.serialize_entry("xform_id", &self.xform_id)?;
        out.serialize_entry("server_date", &format_micros(self.server_date))?;
        out.serialize_entry("date", &self.date.map(format_micros))?;
        out.serialize_entry("sync_log_id", &self.sync_log_id)?;
        out.end()
    }
}

/// `CommCareCase`, or that of a deleted case.
#[must_use]
pub const fn case_doc_type(deleted: bool) -> &'static str {
    if deleted { "CommCareCase-Deleted" } else { "CommCareCase" }
}

/// A case's document. `actions` are its transactions that are not revoked; without them the document has no such key:
/// change records leave them out, because they grow with every form that touches the case.
///
/// # Errors
/// None in practice: every value of a case can be written as JSON.
pub fn case_document(case: &CaseState, actions: Option<&[CaseAction<'_>]>) -> Result<Arc<RawValue>, serde_json::Error> {
    Ok(Arc::from(serde_json::value::to_raw_value(&CaseDocument { case, actions })?))
}

struct CaseDocument<'a> {
    case: &'a CaseState,
    actions: Option<&'a [CaseAction<'a>]>,
}

/// A case's files as its document shows them: what they are, not where they lie.
struct CaseFiles<'a>(&'a BTreeMap<String, CaseFile>);

impl Serialize for CaseFiles<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            content_type: Option<&'a str>,
            content_length: u64,
        }
        let mut out = serializer.serialize_map(Some(self.0.len()))?;
        for (name, file) in self.0 {
            out.serialize_entry(
                name,
                &Shown { content_type: file.content_type.as_deref(), content_length: file.content_length },
            )?;
        }
        out.end()
    }
}

/// Keys that no dynamic property can take over.
const TAKEN: [&str; 26] = [
    "_id",
    "case_id",
    "domain",
    "doc_type",
    "type",
    "name",
    "owner_id",
    "user_id",
    "opened_by",
    "opened_on",
    "modified_by",
    "modified_on",
    "server_modified_on",
    "closed",
    "closed_on",
    "closed_by",
    "deleted",
    "deleted_on",
    "deletion_id",
    "external_id",
    "location_id",
    "indices",
    "actions",
    "xform_ids",
    "case_attachments",
    "backend_id",
];

impl Serialize for CaseDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let case = self.case;
        let mut out = serializer.serialize_map(None)?;
        out.serialize_entry("_id", &case.case_id)?;
        out.serialize_entry("domain", &case.domain)?;
        out.serialize_entry("doc_type", case_doc_type(case.deleted))?;
        out.serialize_entry("type", &case.case_type)?;
        out.serialize_entry("name", &case.name)?;
        out.serialize_entry("owner_id", &case.owner_id)?;
        out.serialize_entry("user_id", &case.modified_by)?;
        out.serialize_entry("opened_by", &case.opened_by)?;
        out.serialize_entry("opened_on", &case.opened_on.map(format_micros))?;
        out.serialize_entry("modified_by", &case.modified_by)?;
        out.serialize_entry("modified_on", &case.modified_on.map(format_micros))?;
        out.serialize_entry("server_modified_on", &format_micros(case.server_modified_on))?;
        out.serialize_entry("closed", &case.closed)?;
        out.serialize_entry("closed_on", &case.closed_on.map(format_micros))?;
        out.serialize_entry("closed_by", &case.closed_by)?;
        out.serialize_entry("deleted", &case.deleted)?;
        out.serialize_entry("deleted_on", &case.deleted_on.map(format_micros))?;
        out.serialize_entry("deletion_id", &case.deletion_id)?;
        out.serialize_entry("external_id", &case.external_id)?;
        out.serialize_entry("location_id", &case.location_id)?;
        let live: Vec<&CaseIndexState> = case.live_indices().collect();
        out.serialize_entry("indices", &live)?;
        if let Some(actions) = self.actions {
            out.serialize_entry("actions", actions)?;
        }
        out.serialize_entry("xform_ids", &case.xform_ids)?;
        if !case.attachments.is_empty() {
            out.serialize_entry("case_attachments", &CaseFiles(&case.attachments))?;
        }
        out.serialize_entry("case_id", &case.case_id)?;
        out.serialize_entry("backend_id", "sql")?;
        for (name, value) in &case.properties {
            if !TAKEN.contains(&name.as_str()) {
                out.serialize_entry(name, value)?;
            }
        }
        out.end()
    }
}

#[cfg(test)]
mod tests;
