//! Named expressions and filters over HTTP: put, read, list, delete, and many at once.

use std::collections::HashSet;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use schemas::{change::DocKind, id::DocId, port::Permission};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    HttpState, both, caller, caller::Asked, definitions::refused, directory::Report, import, refusal, room::Sent,
    with_position,
};
use crate::{
    definition::{Definition, DefinitionError},
    error::WriteError,
};

/// The kinds with their names in addresses.
const RESOURCES: [(DocKind, &str); 2] = [(DocKind::NamedExpression, "expressions"), (DocKind::NamedFilter, "filters")];

/// Adds the routes.
pub(super) fn routes(mut router: Router<HttpState>) -> Router<HttpState> {
    for (kind, resource) in RESOURCES {
        let listed = move |state: State<HttpState>, target: Path<Target>, asked: Asked| async move {
            list(&state, kind, &target, &asked).await
        };
        let shown = move |state: State<HttpState>, target: Path<Target>, asked: Asked| async move {
            read(&state, kind, &target, &asked).await
        };
        let put = move |state: State<HttpState>, target: Path<Target>, asked: Asked, body: Sent| async move {
            put(&state, kind, &target, &asked, &body.bytes).await
        };
        let gone = move |state: State<HttpState>, target: Path<Target>, asked: Asked| async move {
            delete(&state, kind, &target, &asked).await
        };
        let import = move |state: State<HttpState>, target: Path<Target>, asked: Asked, body: Sent| async move {
            import(&state, kind, &target, &asked, &body.bytes).await
        };
        let here = format!("/a/{{domain}}/ucr/{resource}");
        router = both(router, &here, get(listed));
        router = both(router, &format!("{here}/{{name}}"), get(shown).put(put).delete(gone));
        router = both(router, &format!("/a/{{domain}}/import/{resource}"), post(import));
    }
    router
}

#[derive(Debug, Deserialize)]
struct Target {
    domain: String,
    #[serde(default)]
    name: String,
}

impl Target {
    fn name(&self) -> Result<DocId, DefinitionError> {
        name(&self.name)
    }
}

fn name(text: &str) -> Result<DocId, DefinitionError> {
    DocId::new(text).map_err(|error| WriteError::Invalid(format!("not a name: {error}")).into())
}

fn shown(definition: &Definition) -> Value {
    json!({"id": definition.id, "definition": definition.document})
}

async fn list(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    match state.ingest.definitions(&domain, kind).await {
        Ok(all) => Json(json!({"objects": all.iter().map(shown).collect::<Vec<_>>()})).into_response(),
        Err(error) => refused(&error),
    }
}

async fn read(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    match state.ingest.definitions(&domain, kind).await {
        Ok(all) => match all.iter().find(|definition| definition.id == target.name) {
            Some(definition) => Json(shown(definition)).into_response(),
            None => refusal::message(StatusCode::NOT_FOUND, "no definition with this name"),
        },
        Err(error) => refused(&error),
    }
}

async fn put(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked, body: &[u8]) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let result = async {
        let name = target.name()?;
        let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(body) else {
            return Err(DefinitionError::NotADefinition);
        };
        let receipt = state.ingest.put_names(&domain, kind, vec![(name, fields)]).await?;
        receipt.results.into_iter().next().unwrap_or(Err(WriteError::Internal.into()))?;
        Ok(receipt.position)
    };
    match result.await {
        Ok(position) => with_position(Json(json!({"id": target.name, "position": position})).into_response(), position),
        Err(error) => refused(&error),
    }
}

async fn delete(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let result = async { state.ingest.delete_name(&domain, kind, target.name()?).await };
    match result.await {
        Ok(position) => with_position(Json(json!({"id": target.name, "position": position})).into_response(), position),
        Err(error) => refused(&error),
    }
}

/// Stores the rows that are valid, all of them as one change.
async fn import(state: &HttpState, kind: DocKind, target: &Target, asked: &Asked, body: &[u8]) -> Response {
    let domain = match caller::authorized(state, &target.domain, asked, Permission::EditReports).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let rows = match import::rows(body) {
        Ok(rows) => rows,
        Err(error) => return refusal::json_error(&error),
    };
    let mut report = Report::default();
    let mut numbers = Vec::new();
    let mut documents: Vec<(DocId, Map<String, Value>)> = Vec::new();
    let mut seen: HashSet<DocId> = HashSet::new();
    for (number, row) in (1..).zip(rows) {
        let read = row.map_err(DefinitionError::from).and_then(|fields| {
            let name = name(fields.get("name").and_then(Value::as_str).unwrap_or_default())?;
            if !seen.insert(name.clone()) {
                return Err(WriteError::Invalid(format!("name `{name}` is in two rows")).into());
            }
            Ok((name, fields))
        });
        match read {
            Ok(document) => {
                numbers.push((number, document.0.clone()));
                documents.push(document);
            }
            Err(error) => report.refused(number, None, &as_written(error)),
        }
    }
    match state.ingest.put_names(&domain, kind, documents).await {
        Ok(receipt) => {
            report.position = receipt.position;
            for ((number, name), result) in numbers.into_iter().zip(receipt.results) {
                match result {
                    Ok(written) => report.accepted(number, &name, written),
                    Err(error) => report.refused(number, Some(&name), &as_written(error)),
                }
            }
            report.response()
        }
        Err(error) => refused(&error),
    }
}

/// A refusal as imports report it.
fn as_written(error: DefinitionError) -> WriteError {
    match error {
        DefinitionError::Write(error) => error,
        other => WriteError::Invalid(other.to_string()),
    }
}
