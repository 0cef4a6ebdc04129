//! Definitions of live tables over HTTP: put, read with progress, list, delete; previews of changed ones.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use schemas::{
    change::DocKind,
    difference::Difference,
    id::{DomainId, ViewName},
    port::Permission,
    position::Position,
    table::{DomainTables, ViewState, ViewStatus},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{HttpState, both, caller, caller::Asked, refusal, room::Sent, with_position};
use crate::{
    definition::{Definition, DefinitionError},
    error::WriteError,
};

/// Adds the routes.
pub(super) fn routes(router: Router<HttpState>) -> Router<HttpState> {
    let router = both(router, "/a/{domain}/ucr/data-sources", get(list_sources));
    let router =
        both(router, "/a/{domain}/ucr/data-sources/{id}", get(get_source).put(put_source).delete(delete_source));
    let router = both(router, "/a/{domain}/ucr/data-sources/{id}/cancel", post(cancel_source));
    let previews = get(preview_source).delete(discard_source);
    let router = both(router, "/a/{domain}/ucr/data-sources/{id}/preview", previews);
    let router = both(router, "/a/{domain}/views", get(list_views));
    let router = both(router, "/a/{domain}/views/{id}/cancel", post(cancel_view));
    let router = both(router, "/a/{domain}/views/{id}/preview", get(preview_view).delete(discard_view));
    both(router, "/a/{domain}/views/{id}", get(get_view).put(put_view).delete(delete_view))
}

#[derive(Debug, Deserialize)]
struct Domain {
    domain: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    domain: String,
    id: String,
}

/// How a definition is put.
#[derive(Debug, Deserialize)]
struct How {
    #[serde(default)]
    preview: bool,
}

async fn list_sources(state: State<HttpState>, target: Path<Domain>, asked: Asked) -> Response {
    list(&state, DocKind::DataSource, &target.domain, &asked).await
}

async fn list_views(state: State<HttpState>, target: Path<Domain>, asked: Asked) -> Response {
    list(&state, DocKind::AggregateView, &target.domain, &asked).await
}

async fn get_source(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    read(&state, DocKind::DataSource, &target, &asked).await
}

async fn get_view(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    read(&state, DocKind::AggregateView, &target, &asked).await
}

async fn put_source(
    state: State<HttpState>,
    target: Path<Target>,
    how: Query<How>,
    asked: Asked,
    body: Sent,
) -> Response {
    write(&state, DocKind::DataSource, &target, &asked, Some((&body.bytes, how.preview))).await
}

async fn put_view(
    state: State<HttpState>,
    target: Path<Target>,
    how: Query<How>,
    asked: Asked,
    body: Sent,
) -> Response {
    write(&state, DocKind::AggregateView, &target, &asked, Some((&body.bytes, how.preview))).await
}

async fn delete_source(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    write(&state, DocKind::DataSource, &target, &asked, None).await
}

async fn delete_view(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    write(&state, DocKind::AggregateView, &target, &asked, None).await
}

async fn cancel_source(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    cancel(&state, DocKind::DataSource, &target, &asked).await
}

async fn cancel_view(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    cancel(&state, DocKind::AggregateView, &target, &asked).await
}

async fn preview_source(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    preview(&state, DocKind::DataSource, &target, &asked).await
}

async fn preview_view(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    preview(&state, DocKind::AggregateView, &target, &asked).await
}

async fn discard_source(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    discard(&state, DocKind::DataSource, &target, &asked).await
}

async fn discard_view(state: State<HttpState>, target: Path<Target>, asked: Asked) -> Response {
    discard(&state, DocKind::AggregateView, &target, &asked).await
}

/// How a preview is doing and, when it is complete, what would become of the rows that are published.
async fn preview(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let found = status(state, &domain, kind, &target.id);
    let Some((tables, view)) = found.filter(|(_, view)| view.preview.is_some()) else {
        return refusal::message(StatusCode::NOT_FOUND, "no preview under this id is known to this process");
    };
    let shown = view.preview.clone();
    // It reads every row of both tables.
    let difference = tokio::task::spawn_blocking(move || {
        let (before, after) = tables.previewed(&view)?;
        Some(Difference::between(before, after))
    });
    match difference.await {
        Ok(difference) => Json(json!({"id": target.id, "preview": shown, "difference": difference})).into_response(),
        Err(error) => {
            tracing::error!(%domain, view = target.id, %error, "could not compare a preview with the published table");
            refusal::json_error(&WriteError::Internal)
        }
    }
}

async fn discard(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    match ViewName::new(&target.id) {
        Ok(id) => written(&id, state.ingest.discard_preview(&domain, kind, &id).await),
        Err(error) => refusal::message(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Gives a build up: puts the definition of the published table again.
async fn cancel(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let status = status(state, &domain, kind, &target.id);
    let published = match status.map(|(_, view)| view) {
        None => return refusal::message(StatusCode::NOT_FOUND, "no view with this id is known to this process"),
        Some(ViewStatus { state: ViewState::Building(_) | ViewState::Waiting, published, .. }) => published,
        Some(_) => return refusal::message(StatusCode::CONFLICT, "nothing is being built under this id"),
    };
    let Some(published) = published else {
        let message = "this is the first definition under this id; delete it to give its build up";
        return refusal::message(StatusCode::CONFLICT, message);
    };
    put(state, &domain, kind, target, Value::clone(&published)).await
}

/// Puts a body, perhaps as a preview, or deletes without one.
async fn write(
    state: &HttpState,
    kind: DocKind,
    target: &Target,
    asked: &Asked,
    body: Option<(&Bytes, bool)>,
) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let preview = body.is_some_and(|(_, preview)| preview);
    match body.map(|(body, _)| serde_json::from_slice::<Value>(body)) {
        Some(Ok(mut json)) => {
            if let (true, Some(fields)) = (preview, json.as_object_mut()) {
                fields.insert("preview".to_owned(), Value::Bool(true));
            }
            put(state, &domain, kind, target, json).await
        }
        Some(Err(error)) => refusal::message(StatusCode::BAD_REQUEST, &format!("the body is not JSON: {error}")),
        None => match ViewName::new(&target.id) {
            Ok(id) => written(&id, state.ingest.delete_definition(&domain, kind, &id).await),
            Err(error) => refusal::message(StatusCode::BAD_REQUEST, &error.to_string()),
        },
    }
}

async fn put(state: &HttpState, domain: &DomainId, kind: DocKind, target: &Target, json: Value) -> Response {
    match ViewName::new(&target.id) {
        Ok(id) => written(&id, state.ingest.put_definition(domain, kind, &id, json).await),
        Err(error) => refusal::message(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn written(id: &ViewName, result: Result<Position, DefinitionError>) -> Response {
    match result {
        Ok(position) => with_position(Json(json!({"id": id, "position": position})).into_response(), position),
        Err(error) => refused(&error),
    }
}

/// Every problem with its place, so that an editor can show all of them at once.
pub(super) fn refused(error: &DefinitionError) -> Response {
    let DefinitionError::Invalid(errors) = error else { return refusal::json_error(error) };
    let problems: Vec<Value> =
        errors.problems.iter().map(|problem| json!({"pointer": problem.pointer, "message": problem.message})).collect();
    let body = json!({"error": "the definition is not valid", "problems": problems});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// A view's status, with the tables of its domain at that moment.
fn status(state: &HttpState, domain: &DomainId, kind: DocKind, id: &str) -> Option<(Arc<DomainTables>, ViewStatus)> {
    let snapshot = state.views.snapshot();
    let tables = snapshot.domains.get(domain)?;
    let view = tables.views.iter().find(|view| view.id == id && view.kind == kind.name())?;
    Some((Arc::clone(tables), view.clone()))
}

/// A definition with how its table is doing; `status` is null until the dataflow has seen it.
fn shown(state: &HttpState, domain: &DomainId, kind: DocKind, definition: &Definition) -> Value {
    let status = status(state, domain, kind, &definition.id).map(|(_, view)| view);
    json!({"id": definition.id, "definition": definition.document, "status": status})
}

async fn list(state: &HttpState, kind: DocKind, domain: &str, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    match state.ingest.definitions(&domain, kind).await {
        Ok(definitions) => {
            let objects: Vec<Value> =
                definitions.iter().map(|definition| shown(state, &domain, kind, definition)).collect();
            Json(json!({"objects": objects})).into_response()
        }
        Err(error) => refused(&error),
    }
}

async fn read(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    match state.ingest.definitions(&domain, kind).await {
        Ok(definitions) => match definitions.iter().find(|definition| definition.id == target.id) {
            Some(definition) => Json(shown(state, &domain, kind, definition)).into_response(),
            None => refusal::message(StatusCode::NOT_FOUND, "no definition with this id"),
        },
        Err(error) => refused(&error),
    }
}
