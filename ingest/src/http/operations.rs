//! What people and scripts do to stored forms and cases, and the files of forms (forms-and-cases.md §12, rest-api.md §3.5).

use std::collections::HashMap;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use schemas::{
    id::{CaseId, DomainId, FormId},
    port::Permission,
    position::Position,
};
use serde::Deserialize;
use serde_json::json;

use super::{HttpState, both, caller, caller::Asked, receiver, refusal, with_position};
use crate::{
    blob::BlobError,
    error::WriteError,
    submit::{Act, Operation, Outcome, Rules, Submission},
};

/// Name under which a form's XML is one of its attachments.
const FORM_XML: &str = "form.xml";
/// Its media type.
const XML: &str = "text/xml";

/// Adds the routes.
pub(super) fn routes(router: Router<HttpState>) -> Router<HttpState> {
    let router = both(router, "/a/{domain}/forms/{id}/{act}", post(form));
    let router = both(router, "/a/{domain}/cases/{id}/{act}", post(case));
    let router = both(router, "/a/{domain}/api/form_attachment/v1/{id}/{name}", get(attachment));
    let router = both(router, "/a/{domain}/api/form/attachment/{id}/{name}", get(attachment));
    both(router, "/a/{domain}/api/case/attachment/{id}/{name}", get(case_attachment))
}

fn part<'a>(path: &'a HashMap<String, String>, name: &str) -> &'a str {
    path.get(name).map(String::as_str).unwrap_or_default()
}

fn unknown_act(act: &str, known: &str) -> Response {
    refusal::message(StatusCode::NOT_FOUND, &format!("there is no operation `{act}`; known are {known}"))
}

/// Parameters of an operation.
#[derive(Debug, Deserialize)]
struct By {
    /// Who did it, where a script acts for somebody; only for callers who may write users.
    user_id: Option<String>,
}

async fn form(state: State<HttpState>, path: Path<HashMap<String, String>>, by: Query<By>, asked: Asked) -> Response {
    let act = part(&path, "act");
    let Ok(id) = FormId::new(part(&path, "id")) else {
        return refusal::message(StatusCode::NOT_FOUND, "that is no form id");
    };
    let act = match act {
        "archive" => Act::Archive(id),
        "unarchive" => Act::Unarchive(id),
        "delete" => Act::DeleteForm(id),
        "undelete" => Act::UndeleteForm(id),
        "reprocess" => return reprocess(&state, part(&path, "domain"), &id, &asked).await,
        act => return unknown_act(act, "archive, unarchive, delete, undelete, reprocess"),
    };
    operate(&state, part(&path, "domain"), &asked, act, by.0).await
}

async fn case(state: State<HttpState>, path: Path<HashMap<String, String>>, by: Query<By>, asked: Asked) -> Response {
    let Ok(id) = CaseId::new(part(&path, "id")) else {
        return refusal::message(StatusCode::NOT_FOUND, "that is no case id");
    };
    let act = match part(&path, "act") {
        "delete" => Act::DeleteCase(id),
        "undelete" => Act::UndeleteCase(id),
        "purge" => Act::PurgeCase(id),
        "rebuild" => Act::Rebuild(id),
        act => return unknown_act(act, "delete, undelete, purge, rebuild"),
    };
    operate(&state, part(&path, "domain"), &asked, act, by.0).await
}

async fn operate(state: &HttpState, domain: &str, asked: &Asked, act: Act, by: By) -> Response {
    let (domain, settings, caller) = match caller::authorized(state, domain, asked, Permission::EditData).await {
        Ok(authorized) => authorized,
        Err(response) => return response,
    };
    let by = match by.user_id {
        Some(_) if !caller.may(Permission::EditUsers) => {
            return refusal::message(
                StatusCode::FORBIDDEN,
                "to act for somebody, an account has to be allowed to write users",
            );
        }
        Some(user_id) => user_id,
        None => caller.user_id.as_str().to_owned(),
    };
    let operation = Operation { domain, by, act };
    match state.ingest.lanes.operate(settings.lane, operation).await {
        Ok(position) => done(position),
        Err(error) => refusal::json_error(&error),
    }
}

fn done(position: Position) -> Response {
    with_position(Json(json!({"position": position})).into_response(), position)
}

/// Applies a stored error form again.
async fn reprocess(state: &HttpState, domain: &str, id: &FormId, asked: &Asked) -> Response {
    let (domain, settings, _) = match caller::authorized(state, domain, asked, Permission::EditData).await {
        Ok(authorized) => authorized,
        Err(response) => return response,
    };
    let submission = match stored_submission(state, &domain, settings.rules, id).await {
        Ok(submission) => submission,
        Err(error) => return refusal::json_error(&error),
    };
    match state.ingest.lanes.submit(settings.lane, submission).await {
        Ok(receipt) => {
            let mut response = done(receipt.position);
            if let Outcome::Failed { problem, .. } = receipt.outcome {
                *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
                *response.body_mut() = json!({"error": problem}).to_string().into();
            }
            response
        }
        Err(error) => refusal::json_error(&error),
    }
}

async fn stored_submission(
    state: &HttpState,
    domain: &DomainId,
    rules: Rules,
    id: &FormId,
) -> Result<Submission, WriteError> {
    let found = state.ingest.blobs.form_xml(domain, id).await.map_err(|error| {
        tracing::warn!(%error, form_id = %id, "the bytes of a form could not be read");
        WriteError::Unavailable
    })?;
    let bytes = found.ok_or_else(|| WriteError::NotFound(format!("there is no form {id}")))?;
    receiver::again(state, domain, rules, id, bytes).await
}

/// A file of a form: `form.xml` is the form as it was received.
async fn attachment(state: State<HttpState>, path: Path<HashMap<String, String>>, asked: Asked) -> Response {
    let authorized = caller::authorized(&state, part(&path, "domain"), &asked, Permission::ReadData).await;
    let domain = match authorized {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let Ok(id) = FormId::new(part(&path, "id")) else { return file(Ok(None)) };
    let blobs = &state.ingest.blobs;
    let found = match part(&path, "name") {
        FORM_XML => blobs.form_xml(&domain, &id).await.map(|found| found.map(|bytes| (bytes, Some(XML.to_owned())))),
        name => blobs.attachment(&domain, &id, name).await,
    };
    file(found)
}

/// A file attached to a case.
async fn case_attachment(state: State<HttpState>, path: Path<HashMap<String, String>>, asked: Asked) -> Response {
    let authorized = caller::authorized(&state, part(&path, "domain"), &asked, Permission::ReadData).await;
    let domain = match authorized {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let Ok(id) = CaseId::new(part(&path, "id")) else { return file(Ok(None)) };
    file(state.ingest.blobs.case_attachment(&domain, &id, part(&path, "name")).await)
}

/// The answer with a file.
fn file(found: Result<Option<(Bytes, Option<String>)>, BlobError>) -> Response {
    match found {
        Ok(Some((bytes, content_type))) => {
            let kind = content_type.and_then(|kind| HeaderValue::from_str(&kind).ok());
            let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
            let safe = [
                (header::CONTENT_TYPE, kind),
                // What a phone sent must not run as a page of this server.
                (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
                (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            ];
            (safe, bytes).into_response()
        }
        Ok(None) => refusal::message(StatusCode::NOT_FOUND, "there is no such document, or it has no such attachment"),
        Err(error) => {
            tracing::warn!(%error, "an attachment could not be read");
            refusal::message(StatusCode::SERVICE_UNAVAILABLE, "the file cannot be read now; try again")
        }
    }
}
