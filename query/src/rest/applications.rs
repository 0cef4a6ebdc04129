//! Applications (rest-api.md §9.5).
//!
//! The list holds the applications themselves; builds made of one, which name it in `copy_of`, are its versions.

use axum::Router;
use serde_json::{Map, Value, json};

use super::{
    Read,
    filter::instant,
    resource::{Resource, asked_for, list, property, resource_uri, text},
    scan::{Documents, Row, Sort},
};
use crate::{QueryError, front::Doors};

pub(super) fn routes() -> Router<Doors> {
    let paths = &["/a/{domain}/api/v0.5/application", "/a/{domain}/api/application/v1"];
    Resource { paths, list: list_applications, detail }.routes()
}

fn documents(read: &Read) -> Result<Vec<Row>, QueryError> {
    Ok(Documents::of(read, "application_documents").page(&[], Sort::text("name"), 0, usize::MAX)?.rows)
}

/// All of them: this resource has no pages.
fn list_applications(read: &Read) -> Result<Value, QueryError> {
    let all = documents(read)?;
    let originals = all.iter().filter(|row| copy_of(&row.doc).is_none());
    let objects: Vec<Value> = originals.map(|row| application(read, row, &all)).collect();
    Ok(json!({
        "meta": { "limit": null, "offset": 0, "total_count": objects.len(), "next": null, "previous": null },
        "objects": objects,
    }))
}

fn detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let all = documents(read)?;
    Ok(all.iter().find(|row| row.id == id).map(|row| application(read, row, &all)))
}

/// The application that a build was made of.
fn copy_of(doc: &Value) -> Option<&str> {
    ["copy_of", "built_from_app_id"].into_iter().find_map(|name| text(doc, name)).filter(|id| !id.is_empty())
}

fn application(read: &Read, row: &Row, all: &[Row]) -> Value {
    let doc = &row.doc;
    let built_on = match instant(doc.get("built_on")) {
        Value::String(text) => text.trim_end_matches('Z').into(),
        other => other,
    };
    let fields = json!({
        "id": row.id,
        "name": text(doc, "name"),
        "version": version(doc),
        "is_released": property(doc, "is_released"),
        "built_on": built_on,
        "build_comment": property(doc, "build_comment"),
        "built_from_app_id": copy_of(doc),
        "modules": list(doc, "modules").iter().map(module).collect::<Vec<_>>(),
        "versions": versions(row, all),
        "resource_uri": resource_uri(read, "application", &row.id),
    });
    if !asked_for(read, "extras") {
        return fields;
    }
    let mut whole = doc.as_object().cloned().unwrap_or_default();
    if let Value::Object(fields) = fields {
        whole.extend(fields);
    }
    whole.into()
}

fn version(doc: &Value) -> Value {
    doc.get("version").filter(|version| version.is_number()).cloned().unwrap_or_else(|| json!(1))
}

/// The builds of an application, newest first.
fn versions(row: &Row, all: &[Row]) -> Vec<Value> {
    let mut builds: Vec<&Row> = all.iter().filter(|other| copy_of(&other.doc) == Some(&row.id)).collect();
    builds.sort_by_key(|build| std::cmp::Reverse((version(&build.doc).as_i64(), build.stamp)));
    let of_builds = builds.iter().map(|build| of_build(&build.id, &build.doc));
    if builds.is_empty() { list(&row.doc, "versions").to_vec() } else { of_builds.collect() }
}

fn of_build(id: &str, doc: &Value) -> Value {
    json!({
        "id": id,
        "built_on": instant(doc.get("built_on")),
        "build_comment": text(doc, "build_comment").unwrap_or_default(),
        "is_released": doc.get("is_released").and_then(Value::as_bool).unwrap_or(false),
        "version": version(doc),
    })
}

fn module(doc: &Value) -> Value {
    json!({
        "name": property(doc, "name"),
        "case_type": text(doc, "case_type").unwrap_or_default(),
        "case_properties": list(doc, "case_properties"),
        "unique_id": text(doc, "unique_id").unwrap_or_default(),
        "forms": list(doc, "forms").iter().map(form).collect::<Vec<_>>(),
    })
}

/// A form, whose name is one text per language.
fn form(doc: &Value) -> Value {
    let name = match doc.get("name") {
        Some(Value::Object(names)) => names.clone(),
        Some(name @ Value::String(_)) => Map::from_iter([("en".to_owned(), name.clone())]),
        _ => Map::new(),
    };
    json!({
        "xmlns": text(doc, "xmlns"),
        "name": name,
        "questions": list(doc, "questions"),
        "unique_id": text(doc, "unique_id").unwrap_or_default(),
    })
}
