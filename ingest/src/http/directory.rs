//! Writing a domain's documents (mobile workers, web users, locations and their types, groups, lookup tables,
//! applications): one at a time, or many at once (rest-api.md §9).
//!
//! `POST` makes, `PUT` changes the fields sent; a bulk import does either by id and reports on every row. All of them are
//! change records of the domain's lane (web users: of the control lane), and the answer carries the position.

use std::pin::pin;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{post, put},
};
use bytes::Bytes;
use futures::StreamExt;
use schemas::{
    change::DocKind,
    id::{DocId, DomainId},
    port::{Permission, Principal},
    position::Position,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{HttpState, both, caller, caller::Asked, import, refusal, room::Sent, with_position};
use crate::{
    auth::{PERMISSIONS, password},
    error::WriteError,
    store::domains::Domain,
    submit::{Action, DirectoryChange, DirectoryReceipt, DirectoryWrite, Presence, Written, directory::granted},
};

/// Rows that go into one change record.
const CHUNK: usize = 200;
/// Passwords of an import that are hashed at the same time.
const HASHERS: usize = 4;

/// Kinds of document with their names in addresses, alone and in imports.
const RESOURCES: [(DocKind, &str, &str); 8] = [
    (DocKind::User, "user", "users"),
    (DocKind::WebUser, "web-user", "web-users"),
    (DocKind::Location, "location", "locations"),
    (DocKind::LocationType, "location_type", "location-types"),
    (DocKind::Group, "group", "groups"),
    (DocKind::LookupTable, "lookup_table", "lookup-tables"),
    (DocKind::LookupRow, "lookup_table_item", "lookup-table-items"),
    (DocKind::Application, "application", "applications"),
];

/// Adds the routes.
pub(super) fn routes(mut router: Router<HttpState>) -> Router<HttpState> {
    let write = |kind, presence| {
        move |state: State<HttpState>, target: Path<Target>, asked: Asked, body: Sent| async move {
            one(&state, kind, presence, &target, &asked, &body.bytes).await
        }
    };
    for (kind, resource, imports) in RESOURCES {
        let here = format!("/a/{{domain}}/api/v0.5/{resource}");
        router = both(router, &here, post(write(kind, Presence::New)));
        let mut methods = put(write(kind, Presence::Existing));
        // Places hold others, and people; they are archived.
        if kind != DocKind::Location {
            methods = methods.delete(move |state: State<HttpState>, target: Path<Target>, asked: Asked| async move {
                delete(&state, kind, &target, &asked).await
            });
        }
        router = both(router, &format!("{here}/{{id}}"), methods);
        let bulk = move |state: State<HttpState>, target: Path<Target>, asked: Asked, body: Sent| async move {
            import(&state, kind, &target, &asked, &body.bytes).await
        };
        router = both(router, &format!("/a/{{domain}}/import/{imports}"), post(bulk));
    }
    router
}

#[derive(Debug, Deserialize)]
struct Target {
    domain: String,
    id: Option<String>,
}

/// Deletes a document; a mobile worker can no longer sign in.
async fn delete(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let (domain, settings) = match caller::authorized(state, &target.domain, asked, Permission::EditUsers).await {
        Ok((domain, settings, _)) => (domain, settings),
        Err(response) => return response,
    };
    let result = async {
        let id = DocId::new(target.id.as_deref().unwrap_or_default());
        let id = id.map_err(|error| WriteError::Invalid(error.to_string()))?;
        let change = DirectoryChange { kind, id, action: Action::Delete, password_hash: None, keeps_digest: false };
        let receipt = write(state, &domain, settings, kind, vec![change]).await?;
        receipt.results.into_iter().next().unwrap_or(Err(WriteError::Internal))?;
        Ok::<_, WriteError>(receipt.position)
    };
    match result.await {
        Ok(position) => with_position(StatusCode::NO_CONTENT.into_response(), position),
        Err(error) => refusal::json_error(&error),
    }
}

async fn one(
    state: &HttpState,
    kind: DocKind,
    presence: Presence,
    target: &Target,
    asked: &Asked,
    body: &Bytes,
) -> Response {
    let (domain, settings, caller) = match caller::authorized(state, &target.domain, asked, Permission::EditUsers).await
    {
        Ok(found) => found,
        Err(response) => return response,
    };
    let result = async {
        let fields = object(body)?;
        let change = change(state, &caller, kind, presence, target.id.as_deref(), fields).await?;
        let id = change.id.clone();
        let receipt = write(state, &domain, settings, kind, vec![change]).await?;
        let written = receipt.results.into_iter().next().unwrap_or(Err(WriteError::Internal))?;
        Ok::<_, WriteError>((id, written, receipt.position))
    };
    match result.await {
        Ok((id, written, position)) => {
            let status = match written {
                Written::Created => StatusCode::CREATED,
                Written::Updated => StatusCode::OK,
            };
            let resource = RESOURCES.iter().find(|(of, _, _)| *of == kind).map_or(kind.name(), |(_, name, _)| *name);
            let uri = format!("/a/{domain}/api/v0.5/{resource}/{id}/");
            let mut response = (status, Json(json!({"id": id, "resource_uri": uri}))).into_response();
            if let Ok(uri) = HeaderValue::from_str(&uri) {
                response.headers_mut().insert(header::LOCATION, uri);
            }
            with_position(response, position)
        }
        Err(error) => refusal::json_error(&error),
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, WriteError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(WriteError::Invalid("the body must be a JSON object".to_owned())),
        Err(error) => Err(WriteError::Invalid(format!("the body is not JSON: {error}"))),
    }
}

/// The change that a row asks for. Its id is in the path, in the row, that of the web user of this name, or random.
async fn change(
    state: &HttpState,
    caller: &Principal,
    kind: DocKind,
    presence: Presence,
    id: Option<&str>,
    fields: Map<String, Value>,
) -> Result<DirectoryChange, WriteError> {
    let mut known = None;
    if kind == DocKind::WebUser {
        may_grant(caller, &fields)?;
        if let Some(username) = fields.get("username").and_then(Value::as_str) {
            known = state.ingest.accounts().web_user_id(username).await?;
        }
    }
    let id = document_id(kind, presence, id.or(known.as_deref()), &fields)?;
    let password_hash = match fields.get("password") {
        Some(Value::String(password)) if has_password(kind) && !password.is_empty() => {
            let hash = password::hash(password.clone()).await;
            Some(hash.map_err(|error| WriteError::Invalid(error.to_string()))?)
        }
        None | Some(Value::Null) => None,
        Some(_) => return Err(WriteError::Invalid("field `password` must be a text that is not empty".to_owned())),
    };
    let keeps_digest = state.ingest.config.digest;
    Ok(DirectoryChange { kind, id, action: Action::Merge { fields, presence }, password_hash, keeps_digest })
}

const fn has_password(kind: DocKind) -> bool {
    matches!(kind, DocKind::User | DocKind::WebUser)
}

/// Nobody gives what they do not have.
fn may_grant(caller: &Principal, fields: &Map<String, Value>) -> Result<(), WriteError> {
    for name in granted(fields).unwrap_or_default() {
        if PERMISSIONS.iter().any(|(permission, known)| *known == name && !caller.may(*permission)) {
            return Err(WriteError::Invalid(format!("you cannot give the permission `{name}`, which you do not have")));
        }
    }
    Ok(())
}

fn document_id(
    kind: DocKind,
    presence: Presence,
    id: Option<&str>,
    fields: &Map<String, Value>,
) -> Result<DocId, WriteError> {
    let named = ["_id", "id", "location_id", "user_id"];
    // A user's location_id says where they work.
    let own = named.iter().filter(|name| kind == DocKind::Location || **name != "location_id");
    let given = id.or_else(|| own.filter_map(|name| fields.get(*name)?.as_str()).next());
    let id = match given {
        Some(id) => DocId::new(id),
        None if presence == Presence::Existing => return Err(WriteError::Invalid("the row has no id".to_owned())),
        None => DocId::new(&Uuid::new_v4().simple().to_string()),
    };
    id.map_err(|error| WriteError::Invalid(error.to_string()))
}

/// Stores changes; accounts that they may concern have to sign in again.
async fn write(
    state: &HttpState,
    domain: &DomainId,
    settings: Domain,
    kind: DocKind,
    changes: Vec<DirectoryChange>,
) -> Result<DirectoryReceipt, WriteError> {
    let users = changes.iter().filter(|_| has_password(kind));
    let users: Vec<DocId> = users.map(|change| change.id.clone()).collect();
    let write = DirectoryWrite { domain: domain.clone(), changes };
    let lane = match kind {
        DocKind::WebUser => state.ingest.databases.control_lane(),
        _ => settings.lane,
    };
    let receipt = state.ingest.lanes.write(lane, write).await?;
    for id in &users {
        state.ingest.auth.forget(id.as_str());
    }
    Ok(receipt)
}

async fn import(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked, body: &Bytes) -> Response {
    let (domain, settings, caller) = match caller::authorized(state, &target.domain, asked, Permission::EditUsers).await
    {
        Ok(found) => found,
        Err(response) => return response,
    };
    let caller = &caller;
    let rows = match import::rows(body) {
        Ok(rows) => rows,
        Err(error) => return refusal::json_error(&error),
    };
    let mut report = Report::default();
    let mut chunk = Vec::new();
    // Passwords are hashed on other threads; a few at a time keep those busy.
    let mut changes = pin!(
        futures::stream::iter((1..).zip(rows))
            .map(|(number, row)| async move {
                match row {
                    Ok(fields) => (number, change(state, caller, kind, Presence::Any, None, fields).await),
                    Err(error) => (number, Err(error)),
                }
            })
            .buffered(HASHERS)
    );
    while let Some((number, made)) = changes.next().await {
        match made {
            Ok(change) => chunk.push((number, change)),
            Err(error) => report.refused(number, None, &error),
        }
        if chunk.len() == CHUNK {
            store(state, &domain, settings, kind, std::mem::take(&mut chunk), &mut report).await;
        }
    }
    if !chunk.is_empty() {
        store(state, &domain, settings, kind, chunk, &mut report).await;
    }
    report.response()
}

async fn store(
    state: &HttpState,
    domain: &DomainId,
    settings: Domain,
    kind: DocKind,
    chunk: Vec<(usize, DirectoryChange)>,
    report: &mut Report,
) {
    let (numbers, changes): (Vec<usize>, Vec<DirectoryChange>) = chunk.into_iter().unzip();
    let ids: Vec<DocId> = changes.iter().map(|change| change.id.clone()).collect();
    match write(state, domain, settings, kind, changes).await {
        Ok(receipt) => {
            report.position = receipt.position.or(report.position);
            for ((number, id), result) in numbers.into_iter().zip(ids).zip(receipt.results) {
                match result {
                    Ok(written) => report.accepted(number, &id, written),
                    Err(error) => report.refused(number, Some(&id), &error),
                }
            }
        }
        Err(error) => {
            for (number, id) in numbers.into_iter().zip(ids) {
                report.refused(number, Some(&id), &error);
            }
        }
    }
}

/// What became of every row of an import.
#[derive(Debug, Default)]
pub(super) struct Report {
    created: usize,
    updated: usize,
    failed: usize,
    rows: Vec<Value>,
    /// Where what was taken is in the log.
    pub(super) position: Option<Position>,
    /// Status of a failure that is not the rows' own.
    overload: Option<StatusCode>,
}

impl Report {
    pub(super) fn accepted(&mut self, number: usize, id: &DocId, written: Written) {
        let status = match written {
            Written::Created => {
                self.created += 1;
                "created"
            }
            Written::Updated => {
                self.updated += 1;
                "updated"
            }
        };
        self.rows.push(json!({"row": number, "id": id, "status": status}));
    }

    pub(super) fn refused(&mut self, number: usize, id: Option<&DocId>, error: &WriteError) {
        self.failed += 1;
        if matches!(error, WriteError::Busy | WriteError::Unavailable | WriteError::Stopping) {
            use schemas::error::Classify;
            self.overload = Some(refusal::status(error.class()));
        }
        self.rows.push(json!({"row": number, "id": id, "status": "failed", "error": error.to_string()}));
    }

    /// 200 if any row was taken; what failed is in the report.
    pub(super) fn response(self) -> Response {
        let taken = self.created + self.updated;
        let status = match self.overload {
            Some(status) if taken == 0 => status,
            _ if taken == 0 && self.failed > 0 => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        };
        let body = json!({
            "created": self.created, "updated": self.updated, "failed": self.failed, "rows": self.rows,
        });
        with_position(refusal::with_advice((status, Json(body)).into_response()), self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_place_is_not_their_id() {
        let fields = |value: Value| value.as_object().unwrap().clone();
        let user = document_id(DocKind::User, Presence::Any, None, &fields(json!({"_id": "u", "location_id": "l"})));
        assert_eq!(user.unwrap().as_str(), "u");
        let place = document_id(DocKind::Location, Presence::Any, None, &fields(json!({"location_id": "l"})));
        assert_eq!(place.unwrap().as_str(), "l");
        let missing = document_id(DocKind::User, Presence::Existing, None, &fields(json!({"location_id": "l"})));
        assert!(missing.is_err());
    }
}
