//! Forms, version 1: list and detail (rest-api.md §3).

use axum::{
    Router,
    extract::{Path, State},
    http::Uri,
    response::Response,
    routing::get,
};
use schemas::time::format_micros;
use serde_json::{Map, Value, json};

use super::{
    Read, Wording,
    filter::{equals, instant, instant_v1, scalars},
    json,
    page::{Page, last},
    read,
    scan::{Condition, Documents, Order, Row, Sort},
};
use crate::{
    QueryError,
    front::{Doors, http::Asked},
};

/// Most forms of one page.
const MAX: usize = 1000;

/// Device logs arrive as forms and are not shown as such.
const DEVICE_REPORT: &str = "http://code.javarosa.org/devicereport";

pub(super) fn routes() -> Router<Doors> {
    let mut router = Router::new();
    for base in [
        "/a/{domain}/api/v0.5/form",
        "/a/{domain}/api/v0.4/form",
        "/a/{domain}/api/v0.3/form",
        "/a/{domain}/api/form/v1",
    ] {
        for slash in ["", "/"] {
            router =
                router.route(&format!("{base}{slash}"), get(list)).route(&format!("{base}/{{id}}{slash}"), get(detail));
        }
    }
    router
}

async fn list(State(doors): State<Doors>, Path(domain): Path<String>, asked: Asked) -> Response {
    let zone = has_zone(&asked.uri);
    read(&doors, &domain, &asked, Wording::Silent, move |read| {
        let page = Page::read(&read.parameters, MAX)?;
        let (conditions, order) = (conditions(&read.parameters)?, order(&read.parameters)?);
        let found = documents(read).page(&conditions, Sort::by(&order), page.offset, page.limit)?;
        let objects: Vec<_> = found.rows.iter().map(|row| object(row, read, zone)).collect();
        json(&page.envelope(&read.parameters, found.total, &objects))
    })
    .await
}

async fn detail(State(doors): State<Doors>, Path((domain, id)): Path<(String, String)>, asked: Asked) -> Response {
    let zone = has_zone(&asked.uri);
    read(&doors, &domain, &asked, Wording::Silent, move |read| {
        let shown = |row: &Row| matches!(doc_type(row), "XFormInstance" | "XFormArchived");
        match documents(read).get(&id)?.filter(shown) {
            Some(row) => json(&object(&row, read, zone)),
            None => Err(QueryError::NotFound(format!("form `{id}` does not exist"))),
        }
    })
    .await
}

fn documents(read: &Read) -> Documents {
    Documents::of(read, "form_documents")
}

fn doc_type(row: &Row) -> &str {
    row.doc.get("doc_type").and_then(Value::as_str).unwrap_or_default()
}

/// The older spelling of the path writes `indexed_on` without a zone: a released connector parses it so (§2.4).
fn has_zone(uri: &Uri) -> bool {
    uri.path().contains("/api/form/")
}

fn order(parameters: &[(String, String)]) -> Result<Vec<Order>, QueryError> {
    let mut orders = Vec::new();
    for (_, value) in parameters.iter().filter(|(name, value)| name == "order_by" && !value.is_empty()) {
        let (field, falling) = value.strip_prefix('-').map_or((value.as_str(), false), |field| (field, true));
        let column = match field {
            "indexed_on" => "indexed_on",
            "server_modified_on" => "server_modified_on",
            "received_on" => "received_on",
            _ => return Err(QueryError::Parameter(format!("No matching '{field}' field for ordering on."))),
        };
        orders.push(Order { column, falling });
    }
    if orders.is_empty() {
        orders.push(Order { column: "received_on", falling: true });
    }
    orders.truncate(2);
    Ok(orders)
}

fn conditions(parameters: &[(String, String)]) -> Result<Vec<Condition>, QueryError> {
    let mut states = vec!["XFormInstance".to_owned()];
    if last(parameters, "include_archived").is_some() {
        states.push("XFormArchived".to_owned());
    }
    let mut conditions = vec![
        Condition::Text { column: "doc_type", any: states },
        Condition::NotText { column: "xmlns", none: vec![DEVICE_REPORT.to_owned()] },
    ];
    let mut seen: Vec<&str> = Vec::new();
    for (name, _) in parameters {
        // The last value of a repeated parameter counts.
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        let value = last(parameters, name).unwrap_or_default();
        let text = |column| Condition::Text { column, any: vec![value.to_owned()] };
        let path = |path: &'static str| on_path(path.to_owned(), value.to_owned());
        match name.as_str() {
            "limit" | "offset" | "order_by" | "q" | "format" | "api_key" | "username" | "include_archived" => {}
            name if name.ends_with("__full") => {}
            "_search" => {
                return Err(QueryError::Parameter(
                    "_search is not supported here; use the *_start and *_end filters".to_owned(),
                ));
            }
            "xmlns" | "xmlns.exact" => conditions.push(text("xmlns")),
            "app_id" => conditions.push(path("app_id")),
            "build_id" => conditions.push(path("build_id")),
            "version" => conditions.push(path("form.@version")),
            "appVersion" => conditions.push(path("form.meta.appVersion")),
            "case_id" => {
                let id = value.to_owned();
                conditions.push(Condition::Document(Box::new(move |doc| {
                    doc.get("form").is_some_and(|form| touches(form, &id))
                })));
            }
            name => conditions.push(match bound(name, value)? {
                Some(condition) => condition,
                None => on_path(name.to_owned(), value.to_owned()),
            }),
        }
    }
    Ok(conditions)
}

/// `received_on_start` and the like; both ends are inclusive.
fn bound(name: &str, value: &str) -> Result<Option<Condition>, QueryError> {
    let (field, start) = match (name.strip_suffix("_start"), name.strip_suffix("_end")) {
        (Some(field), _) => (field, true),
        (None, Some(field)) => (field, false),
        (None, None) => return Ok(None),
    };
    let column = match field {
        "received_on" => "received_on",
        "server_modified_on" => "server_modified_on",
        "indexed_on" => "indexed_on",
        _ => return Ok(None),
    };
    let at = instant_v1(value)?;
    let (low, high) = if start { (at, i64::MAX) } else { (i64::MIN, at) };
    Ok(Some(Condition::Instant { column, low, high }))
}

fn on_path(path: String, wanted: String) -> Condition {
    Condition::Document(Box::new(move |doc| scalars(doc, &path).iter().any(|value| equals(value, &wanted, true))))
}

/// True if the form holds a case block of this case.
fn touches(node: &Value, id: &str) -> bool {
    match node {
        Value::Array(items) => items.iter().any(|item| touches(item, id)),
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            (name == "case" && blocks(value).any(|block| case_id(block) == Some(id))) || touches(value, id)
        }),
        _ => false,
    }
}

fn blocks(value: &Value) -> impl Iterator<Item = &Value> {
    let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    list.iter()
}

fn case_id(block: &Value) -> Option<&str> {
    block.get("@case_id").or_else(|| block.get("case_id")).and_then(Value::as_str)
}

/// Names that the derived metadata always has.
const METADATA: [&str; 13] = [
    "appVersion",
    "app_build_version",
    "commcare_version",
    "deviceID",
    "deprecatedID",
    "drift",
    "geo_point",
    "instanceID",
    "location",
    "timeEnd",
    "timeStart",
    "userID",
    "username",
];

/// The form object of version 1.
fn object(row: &Row, read: &Read, zone: bool) -> Value {
    let doc = &row.doc;
    let form = doc.get("form").cloned().unwrap_or(Value::Null);
    let get = |name: &str| doc.get(name).cloned().unwrap_or(Value::Null);
    let of_form = |name: &str| form.get(name).cloned().unwrap_or(Value::Null);
    let mut indexed_on = format_micros(row.stamp);
    if !zone {
        indexed_on.truncate(indexed_on.trim_end_matches('Z').len());
    }
    let naive = |value: Value| match value {
        Value::String(text) => Value::String(text.trim_end_matches('Z').to_owned()),
        other => other,
    };
    let domain = read.principal.domain.as_str();
    let text_or_empty = |value: Value| if value.is_null() { json!("") } else { value };
    let kind = doc_type(row);
    let meta = form.get("meta").map_or(Value::Null, |meta| metadata(meta, doc));
    json!({
        "id": row.id,
        "domain": domain,
        "app_id": get("app_id"),
        "build_id": get("build_id"),
        "type": text_or_empty(of_form("#type")),
        "version": text_or_empty(of_form("@version")),
        "uiversion": text_or_empty(of_form("@uiVersion")),
        "submit_ip": get("submit_ip"),
        "archived": kind == "XFormArchived",
        "problem": get("problem"),
        "initial_processing_complete": doc.get("initial_processing_complete").and_then(Value::as_bool).unwrap_or(true),
        "is_phone_submission": doc.pointer("/openrosa_headers/HTTP_X_OPENROSA_VERSION").is_some(),
        "received_on": instant(doc.get("received_on")),
        "server_modified_on": instant(doc.get("server_modified_on")),
        "indexed_on": indexed_on,
        "edited_on": naive(instant(doc.get("edited_on"))),
        "edited_by_user_id": get("edited_by_user_id"),
        "metadata": meta,
        "attachments": attachments(doc, domain, &row.id),
        "form": form,
        "resource_uri": "",
    })
}

/// The view of `form.meta` that clients read (forms-and-cases.md §7.2).
fn metadata(meta: &Value, doc: &Value) -> Value {
    let mut out = Map::new();
    for (name, value) in meta.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with('@')) {
        let value = match (name.as_str(), value) {
            ("timeStart" | "timeEnd", value) => instant(Some(value)),
            ("appVersion" | "location", Value::Object(inner)) => inner.get("#text").cloned().unwrap_or(Value::Null),
            (_, value) => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    for name in METADATA {
        let derived = || doc.get(name).cloned().unwrap_or(Value::Null);
        out.entry(name).or_insert_with(derived);
    }
    out.insert("doc_type".to_owned(), json!("Metadata"));
    Value::Object(out)
}

/// Names, types and places of the attachments; the submitted XML is always one.
fn attachments(doc: &Value, domain: &str, id: &str) -> Value {
    let mut out = Map::new();
    let listed = doc.get("external_blobs").or_else(|| doc.get("attachments")).and_then(Value::as_object);
    let place = |name: &str| format!("/a/{domain}/api/form_attachment/v1/{id}/{name}");
    let xml = json!({ "content_type": "text/xml", "length": null, "url": place("form.xml") });
    out.insert("form.xml".to_owned(), xml);
    for (name, about) in listed.into_iter().flatten() {
        let length = about.get("length").or_else(|| about.get("content_length")).cloned();
        let entry = json!({
            "content_type": about.get("content_type").cloned(),
            "length": length,
            "url": place(name),
        });
        out.insert(name.clone(), entry);
    }
    Value::Object(out)
}
