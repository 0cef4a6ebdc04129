//! Cases, version 2: list, detail, several at once, by external id (rest-api.md §5).

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, Uri, header},
    response::Response,
    routing::{get, post},
};
use base64::Engine as _;
use schemas::time::{format_micros, parse_micros};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Read, Wording,
    filter::{equals, instant, range_v2, scalars, truth},
    json,
    page::query_string,
    read,
    scan::{Condition, Documents, Row, Sort},
};
use crate::{
    QueryError,
    front::{Doors, http::Asked},
};

/// Most cases of one answer.
const MAX: usize = 5000;

/// Parameters of a cursor that no client sends by itself.
const AFTER: &str = "cursor.after";
const LAST_ID: &str = "cursor.last_case_id";

pub(super) fn routes() -> Router<Doors> {
    let mut router = Router::new();
    for base in ["/a/{domain}/api/case/v2", "/a/{domain}/api/v0.6/case"] {
        for slash in ["", "/"] {
            router = router
                .route(&format!("{base}{slash}"), get(list))
                .route(&format!("{base}/{{id}}{slash}"), get(detail))
                .route(&format!("{base}/ext/{{external_id}}{slash}"), get(by_external_id))
                .route(&format!("{base}/bulk-fetch{slash}"), post(bulk_fetch));
        }
    }
    router
}

async fn list(State(doors): State<Doors>, Path(domain): Path<String>, asked: Asked) -> Response {
    let here = format!("{}{}", origin(&asked.headers), asked.uri.path());
    read(&doors, &domain, &asked, Wording::Spoken, move |read| list_cases(read, &here)).await
}

async fn detail(State(doors): State<Doors>, Path((domain, id)): Path<(String, String)>, asked: Asked) -> Response {
    read(&doors, &domain, &asked, Wording::Spoken, move |read| {
        let shape = Shape::read(&mut read.parameters.clone())?;
        if id.contains(',') {
            return several(read, id.split(','), &[], &shape);
        }
        match find(read, &id)? {
            Some(row) => json(&shape.apply(object(&row, read))),
            None => Err(missing(&id)),
        }
    })
    .await
}

async fn by_external_id(
    State(doors): State<Doors>,
    Path((domain, external_id)): Path<(String, String)>,
    asked: Asked,
) -> Response {
    read(&doors, &domain, &asked, Wording::Spoken, move |read| {
        let shape = Shape::read(&mut read.parameters.clone())?;
        let found = find_external(read, &external_id)?;
        match found.as_slice() {
            [] => Err(missing(&external_id)),
            [row] => json(&shape.apply(object(row, read))),
            several => {
                let ids: Vec<&str> = several.iter().map(|row| row.id.as_str()).collect();
                Err(QueryError::Parameter(format!(
                    "Multiple cases found with external_id '{external_id}': {}",
                    ids.join(", ")
                )))
            }
        }
    })
    .await
}

/// Body of a bulk fetch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    case_ids: Vec<String>,
    external_ids: Vec<String>,
}

async fn bulk_fetch(State(doors): State<Doors>, Path(domain): Path<String>, asked: Asked, body: Bytes) -> Response {
    read(&doors, &domain, &asked, Wording::Spoken, move |read| {
        let wanted: Wanted = serde_json::from_slice(&body)
            .map_err(|_| QueryError::Parameter("Payload must be valid JSON".to_owned()))?;
        if wanted.case_ids.is_empty() && wanted.external_ids.is_empty() {
            return Err(QueryError::Parameter("Must specify case_ids or external_ids".to_owned()));
        }
        let shape = Shape::read(&mut read.parameters.clone())?;
        several(read, wanted.case_ids.iter().map(String::as_str), &wanted.external_ids, &shape)
    })
    .await
}

fn missing(id: &str) -> QueryError {
    QueryError::NotFound(format!("Case '{id}' not found"))
}

fn documents(read: &Read) -> Documents {
    Documents::of(read, "case_documents")
}

/// A case that is not deleted.
fn find(read: &Read, id: &str) -> Result<Option<Row>, QueryError> {
    let row = documents(read).get(id)?;
    Ok(row.filter(|row| row.doc.get("doc_type").and_then(Value::as_str) == Some("CommCareCase")))
}

fn find_external(read: &Read, external_id: &str) -> Result<Vec<Row>, QueryError> {
    let wanted = [
        Condition::Flag { column: "deleted", is: false },
        Condition::Text { column: "external_id", any: vec![external_id.to_owned()] },
    ];
    Ok(documents(read).page(&wanted, Sort::default(), 0, MAX)?.rows)
}

fn several<'a>(
    read: &Read,
    ids: impl Iterator<Item = &'a str>,
    external_ids: &[String],
    shape: &Shape,
) -> Result<Response, QueryError> {
    let ids: Vec<&str> = ids.collect();
    if ids.len() + external_ids.len() > MAX {
        return Err(QueryError::Parameter(format!("You cannot request more than {MAX} cases per request.")));
    }
    let mut cases = Vec::new();
    let mut lost = 0;
    for id in ids {
        match find(read, id)? {
            Some(row) => cases.push(shape.apply(object(&row, read))),
            None => {
                lost += 1;
                cases.push(json!({ "case_id": id, "error": "not found" }));
            }
        }
    }
    for external_id in external_ids {
        let found = find_external(read, external_id)?;
        if found.is_empty() {
            lost += 1;
            cases.push(json!({ "external_id": external_id, "error": "not found" }));
        }
        cases.extend(found.iter().map(|row| shape.apply(object(row, read))));
    }
    let matching = cases.len() - lost;
    json(&json!({ "cases": cases, "matching_records": matching, "missing_records": lost }))
}

/// One page; `here` is the address of the list.
fn list_cases(read: &Read, here: &str) -> Result<Response, QueryError> {
    let mut parameters = read.parameters.clone();
    if let Some((_, cursor)) = parameters.iter().rev().find(|(name, _)| name == "cursor") {
        parameters = open_cursor(cursor)?;
    }
    let kept: Vec<(String, String)> =
        parameters.iter().filter(|(name, _)| name != AFTER && name != LAST_ID).cloned().collect();
    let shape = Shape::read(&mut parameters)?;
    let (conditions, limit) = conditions(&parameters)?;
    let found = documents(read).page(&conditions, Sort::default(), 0, limit)?;
    let mut answer = Map::new();
    answer.insert("matching_records".to_owned(), found.total.into());
    if found.total > found.rows.len()
        && let Some(last) = found.rows.last()
    {
        let mut pairs = kept;
        pairs.push((AFTER.to_owned(), format_micros(last.stamp)));
        pairs.push((LAST_ID.to_owned(), last.id.clone()));
        let cursor = base64::engine::general_purpose::STANDARD.encode(query_string(&pairs));
        let query = query_string(&[("cursor".to_owned(), cursor)]);
        answer.insert("next".to_owned(), format!("{here}?{query}").into());
    }
    let cases: Vec<Value> = found.rows.iter().map(|row| shape.apply(object(row, read))).collect();
    answer.insert("cases".to_owned(), cases.into());
    json(&answer)
}

fn origin(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = text("x-forwarded-proto").unwrap_or("http");
    format!("{scheme}://{}", text(header::HOST.as_str()).unwrap_or("localhost"))
}

fn open_cursor(cursor: &str) -> Result<Vec<(String, String)>, QueryError> {
    let bad = || QueryError::Parameter("Bad cursor".to_owned());
    let bytes = base64::engine::general_purpose::STANDARD.decode(cursor).map_err(|_| bad())?;
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    let uri: Uri = format!("/?{text}").parse().map_err(|_| bad())?;
    crate::front::http::parameters(&uri)
}

/// The conditions of a list, and its limit.
fn conditions(parameters: &[(String, String)]) -> Result<(Vec<Condition>, usize), QueryError> {
    let mut conditions = vec![Condition::Flag { column: "deleted", is: false }];
    let mut limit = 20;
    let mut texts: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut paths: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in parameters {
        let column = match name.as_str() {
            "case_type" => Some("type"),
            "case_name" => Some("name"),
            "external_id" => Some("external_id"),
            "owner_id" => Some("owner_id"),
            _ => None,
        };
        if let Some(column) = column {
            match texts.iter_mut().find(|(known, _)| *known == column) {
                Some((_, any)) => any.push(value.clone()),
                None => texts.push((column, vec![value.clone()])),
            }
            continue;
        }
        match name.as_str() {
            "limit" => {
                limit = value
                    .parse()
                    .map_err(|_| QueryError::Parameter(format!("'limit' must be a number, not '{value}'")))?;
                if limit > MAX {
                    let text = format!("You cannot request more than {MAX} cases per request.");
                    return Err(QueryError::Parameter(text));
                }
                limit = limit.max(1);
            }
            "closed" => conditions.push(Condition::Flag { column: "closed", is: truth(value) }),
            AFTER => {
                let after = parse_micros(value).ok_or_else(|| QueryError::Parameter("Bad cursor".to_owned()))?;
                // Stamps are unique, so everything behind the last one is new.
                let low = after.saturating_add(1);
                conditions.push(Condition::Instant { column: "indexed_on", low, high: i64::MAX });
            }
            LAST_ID | "include_deprecated" | "format" | "api_key" | "username" => {}
            "query" => {
                return Err(QueryError::Parameter(
                    "Bad query: search expressions are not supported here yet".to_owned(),
                ));
            }
            name => {
                if let Some(path) = name.strip_prefix("properties.").or(name.strip_prefix("indices.").and(Some(name))) {
                    match paths.iter_mut().find(|(known, _)| known == path) {
                        Some((_, any)) => any.push(value.clone()),
                        None => paths.push((path.to_owned(), vec![value.clone()])),
                    }
                    continue;
                }
                conditions.push(instants(name, value)?);
            }
        }
    }
    conditions.extend(texts.into_iter().map(|(column, any)| Condition::Text { column, any }));
    for (path, any) in paths {
        conditions.push(match path.strip_prefix("indices.") {
            Some(identifier) => {
                let identifier = identifier.to_owned();
                Condition::Document(Box::new(move |doc| {
                    let indices = indices(doc);
                    let parent = indices.get(&identifier).and_then(|index| index.get("case_id"));
                    parent.and_then(Value::as_str).is_some_and(|parent| any.iter().any(|id| id == parent))
                }))
            }
            None => Condition::Document(Box::new(move |doc| {
                let found = if COLUMNS.contains(&path.as_str()) { Vec::new() } else { scalars(doc, &path) };
                let unset = found.iter().all(|value| value.is_null() || value.as_str() == Some(""));
                any.iter().any(|wanted| {
                    if wanted.is_empty() { unset } else { found.iter().any(|value| equals(value, wanted, false)) }
                })
            })),
        });
    }
    Ok((conditions, limit))
}

/// `last_modified.gte` and the like.
fn instants(name: &str, value: &str) -> Result<Condition, QueryError> {
    let unknown = || QueryError::Parameter(format!("'{name}' is not a valid parameter."));
    let (field, comparison) = name.rsplit_once('.').ok_or_else(unknown)?;
    let column = match field {
        "last_modified" => "modified_on",
        "server_last_modified" => "server_modified_on",
        "date_opened" => "opened_on",
        "date_closed" => "closed_on",
        "indexed_on" => "indexed_on",
        _ => return Err(unknown()),
    };
    let (low, high) = range_v2(comparison, value)?.ok_or_else(unknown)?;
    Ok(Condition::Instant { column, low, high })
}

/// Top-level names of a case document that are not dynamic properties (forms-and-cases.md §9.3).
const COLUMNS: [&str; 31] = [
    "_id",
    "_rev",
    "actions",
    "backend_id",
    "case_attachments",
    "case_id",
    "case_json",
    "closed",
    "closed_by",
    "closed_on",
    "deleted",
    "deleted_on",
    "deletion_id",
    "doc_type",
    "domain",
    "external_id",
    "indexed_on",
    "indices",
    "location_id",
    "modified_by",
    "modified_on",
    "name",
    "opened_by",
    "opened_on",
    "owner_id",
    "server_modified_on",
    "type",
    "user_id",
    "version",
    "xform_id",
    "xform_ids",
];

/// Live indices by identifier.
fn indices(doc: &Value) -> Map<String, Value> {
    let list = doc.get("indices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = |index: &Value| {
        let text = |name: &str| index.get(name).and_then(Value::as_str);
        let case_id = text("referenced_id").filter(|id| !id.is_empty())?;
        let value = json!({
            "case_id": case_id,
            "case_type": text("referenced_type"),
            "relationship": text("relationship").unwrap_or("child"),
        });
        Some((text("identifier")?.to_owned(), value))
    };
    list.iter().filter_map(one).collect()
}

/// The case object of version 2.
fn object(row: &Row, read: &Read) -> Value {
    let doc = &row.doc;
    let text = |name: &str| doc.get(name).filter(|value| value.is_string()).cloned().unwrap_or(Value::Null);
    let dynamic = doc
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !COLUMNS.contains(&name.as_str()) && !value.is_null());
    let properties: Map<String, Value> = dynamic.map(|(name, value)| (name.clone(), value.clone())).collect();
    let or_empty = |value: Value| if value.is_null() { Value::String(String::new()) } else { value };
    json!({
        "domain": read.principal.domain.as_str(),
        "case_id": row.id,
        "case_type": or_empty(text("type")),
        "case_name": or_empty(text("name")),
        "external_id": text("external_id"),
        "owner_id": or_empty(text("owner_id")),
        "date_opened": instant(doc.get("opened_on")),
        "last_modified": instant(doc.get("modified_on")),
        "server_last_modified": instant(doc.get("server_modified_on")),
        "indexed_on": format_micros(row.stamp),
        "closed": doc.get("closed").and_then(Value::as_bool).unwrap_or(false),
        "date_closed": instant(doc.get("closed_on")),
        "properties": properties,
        "indices": indices(doc),
    })
}

/// Which parts of a case are wanted: `fields` or `exclude`, as dotted paths.
#[derive(Debug, Default)]
struct Shape {
    only: Vec<Vec<String>>,
    without: Vec<Vec<String>>,
}

impl Shape {
    /// Takes its parameters out of the list.
    fn read(parameters: &mut Vec<(String, String)>) -> Result<Self, QueryError> {
        let mut shape = Self::default();
        parameters.retain(|(name, value)| {
            let (kind, parent) =
                name.split_once('.').map_or((name.as_str(), None), |(kind, parent)| (kind, Some(parent)));
            let paths = match kind {
                "fields" => &mut shape.only,
                "exclude" => &mut shape.without,
                _ => return true,
            };
            for field in value.split(',').map(str::trim).filter(|field| !field.is_empty()) {
                let whole = parent.into_iter().chain([field]).flat_map(|part| part.split('.'));
                paths.push(whole.map(ToOwned::to_owned).collect());
            }
            false
        });
        if !shape.only.is_empty() && !shape.without.is_empty() {
            return Err(QueryError::Parameter("'fields' and 'exclude' cannot be used together.".to_owned()));
        }
        Ok(shape)
    }

    fn apply(&self, case: Value) -> Value {
        if !self.only.is_empty() {
            let mut kept = Value::Object(Map::new());
            for path in &self.only {
                keep(&case, &mut kept, path);
            }
            return kept;
        }
        let mut case = case;
        for path in &self.without {
            remove(&mut case, path);
        }
        case
    }
}

fn keep(from: &Value, to: &mut Value, path: &[String]) {
    let (Some((step, rest)), Some(to)) = (path.split_first(), to.as_object_mut()) else { return };
    let Some(value) = from.get(step) else { return };
    if rest.is_empty() {
        to.insert(step.clone(), value.clone());
    } else {
        keep(value, to.entry(step.clone()).or_insert_with(|| Value::Object(Map::new())), rest);
    }
}

fn remove(from: &mut Value, path: &[String]) {
    let (Some((step, rest)), Some(object)) = (path.split_first(), from.as_object_mut()) else { return };
    if rest.is_empty() {
        object.shift_remove(step);
    } else if let Some(inner) = object.get_mut(step) {
        remove(inner, rest);
    }
}
