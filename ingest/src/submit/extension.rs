//! Closing a case closes its extensions, theirs, and so on, with a form that the system makes.
//!
//! It rides in the record of the form that closed the case, so that no reader sees one without the other. Child indices are
//! not followed. Source: forms-and-cases.md §10.2, architecture D5.

use std::{collections::BTreeSet, fmt::Write};

use quick_xml::escape::escape;
use schemas::{
    id::{CaseId, FormId},
    time::format_micros,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    Content, Envelope, Purpose, Rules, Submission,
    process::apply_into,
    world::{RecordDraft, World},
};
use crate::{
    casexml::{CASE_V2, Relationship},
    error::DatabaseError,
    store::compress,
    xform::{self, ParseLimits, ParsedForm},
};

/// User id of forms that the system makes.
const SYSTEM: &str = "system";
/// Namespace of such forms.
const XMLNS: &str = "http://commcarehq.org/case";

/// True if a form closes a case or is about a closed one: then the extensions of those are loaded, and the form goes first
/// in its group so that they are loaded as they are.
pub(crate) fn may_close(world: &World, form: &ParsedForm) -> bool {
    form.case_blocks
        .iter()
        .flatten()
        .any(|block| block.close || world.cases.get(&block.case_id).is_some_and(|case| case.closed))
}

/// Closes the open extensions of those of the cases `touched` that are closed.
///
/// # Errors
/// [`DatabaseError::Damaged`] if the system's own form cannot be made, which does not happen.
pub(super) fn close(
    world: &mut World,
    draft: &mut RecordDraft,
    submission: &Submission,
    form_id: &FormId,
    touched: &[CaseId],
) -> Result<(), DatabaseError> {
    if !submission.rules.close_extensions {
        return Ok(());
    }
    let open = open_extensions(world, touched);
    if open.is_empty() {
        return Ok(());
    }
    let damaged = |error: &dyn std::fmt::Display| DatabaseError::damaged("forms", error);
    let xml = closing_form(&open, form_id, submission.envelope.received_on);
    let form = xform::parse(xml.as_bytes(), &ParseLimits::default(), &|| Uuid::new_v4().to_string())
        .map_err(|error| damaged(&error))?;
    let closing = Submission {
        domain: submission.domain.clone(),
        xml_md5: md5::Digest::finalize(md5::Digest::chain_update(md5::Md5::default(), &xml)).into(),
        xml_key: Uuid::new_v4(),
        xml_zstd: compress::pack(xml.as_bytes()).map_err(|error| damaged(&error))?,
        content: Content::Form(Box::new(form.clone())),
        envelope: Envelope {
            app_id: None,
            received_on: submission.envelope.received_on,
            auth_context: json!({
                "doc_type": "AuthContext", "domain": submission.domain, "user_id": SYSTEM, "authenticated": true,
            }),
            openrosa_headers: json!({}),
            last_sync_token: None,
            date_header: None,
            submit_ip: None,
            author: Some(SYSTEM.to_owned()),
        },
        attachments: Vec::new(),
        rules: Rules::default(),
        purpose: Purpose::Store,
    };
    apply_into(world, draft, &closing, &form, form.form_id.clone())?;
    Ok(())
}

/// The open extensions of the closed cases among `touched`, and of those extensions in turn, each once. Every walk ends:
/// a case is entered once, whatever circles the indices make.
fn open_extensions(world: &World, touched: &[CaseId]) -> BTreeSet<CaseId> {
    let closed = |id: &&CaseId| world.cases.get(*id).is_some_and(|case| case.closed);
    let mut hosts: Vec<CaseId> = touched.iter().filter(closed).cloned().collect();
    let mut open = BTreeSet::new();
    while let Some(host) = hosts.pop() {
        let extends = |case: &super::apply::CaseState| {
            case.live_indices()
                .any(|index| index.relationship == Relationship::Extension && index.referenced_id == host.as_str())
        };
        for (id, case) in &world.cases {
            if !case.closed && !case.deleted && extends(case) && open.insert(id.clone()) {
                hosts.push(id.clone());
            }
        }
    }
    open
}

fn closing_form(cases: &BTreeSet<CaseId>, form_id: &FormId, at: i64) -> String {
    let at = format_micros(at);
    let device = escape(format!("SubmissionPost-{form_id}-close_extensions")).into_owned();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <system version=\"1\" uiVersion=\"1\" xmlns=\"{XMLNS}\" xmlns:orx=\"http://openrosa.org/jr/xforms\">\
         <orx:meta><orx:deviceID>{device}</orx:deviceID><orx:timeStart>{at}</orx:timeStart><orx:timeEnd>{at}</orx:timeEnd>\
         <orx:username>{SYSTEM}</orx:username><orx:userID>{SYSTEM}</orx:userID><orx:instanceID>{}</orx:instanceID></orx:meta>",
        Uuid::new_v4()
    );
    for id in cases {
        let id = escape(id.as_str());
        // Writing to a String cannot fail.
        let written = write!(
            xml,
            "<case case_id=\"{id}\" user_id=\"{SYSTEM}\" date_modified=\"{at}\" xmlns=\"{CASE_V2}\"><close/></case>"
        );
        debug_assert!(written.is_ok());
    }
    xml.push_str("</system>");
    xml
}
