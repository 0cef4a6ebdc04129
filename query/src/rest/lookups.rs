//! Lookup tables, their items, and the older view of the items called `fixture` (rest-api.md §9.6).
//!
//! A field of an item has a list of values with properties each. Documents may hold a single text instead, which is a list
//! of one value without properties.

use axum::Router;
use hashbrown::HashMap;
use serde_json::{Map, Value, json};

use super::{
    Read,
    page::{Page, last},
    resource::{MAX, Resource, flag, list, object, resource_uri, text},
    scan::{Condition, Documents, Found, Order, Row, Sort},
};
use crate::{QueryError, front::Doors};

/// Most rows of a `fixture` list, which by default has no pages.
const MAX_FIXTURES: usize = 100_000;

/// Items come in the order of their tables.
const ORDER: Sort<'_> = Sort { text: Some("data_type_id"), then: &[Order { column: "sort_key", falling: false }] };

pub(super) fn routes() -> Router<Doors> {
    let tables = &["/a/{domain}/api/v0.5/lookup_table", "/a/{domain}/api/lookup_table/v1"];
    let items = &[
        "/a/{domain}/api/v0.5/lookup_table_item",
        "/a/{domain}/api/v0.6/lookup_table_item",
        "/a/{domain}/api/lookup_table_item/v1",
        "/a/{domain}/api/lookup_table_item/v2",
    ];
    let fixtures = &["/a/{domain}/api/v0.5/fixture", "/a/{domain}/api/fixture/v1"];
    Resource { paths: tables, list: list_tables, detail: table_detail }
        .routes()
        .merge(Resource { paths: items, list: list_items, detail: item_detail }.routes())
        .merge(Resource { paths: fixtures, list: list_fixtures, detail: fixture_detail }.routes())
}

fn tables(read: &Read) -> Documents {
    Documents::of(read, "lookup_table_documents")
}

fn items(read: &Read) -> Documents {
    Documents::of(read, "lookup_row_documents")
}

fn list_tables(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let found = tables(read).page(&[], Sort::text("tag"), page.offset, page.limit)?;
    let objects: Vec<Value> = found.rows.iter().map(|row| table(read, row)).collect();
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn table_detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(tables(read).get(id)?.map(|row| table(read, &row)))
}

fn table(read: &Read, row: &Row) -> Value {
    let field = |field: &Value| match field {
        Value::String(name) => json!({ "field_name": name, "properties": [] }),
        field => json!({
            "field_name": text(field, "field_name").or_else(|| text(field, "name")),
            "properties": list(field, "properties"),
        }),
    };
    json!({
        "id": row.id,
        "tag": text(&row.doc, "tag"),
        "is_global": flag(&row.doc, "is_global"),
        "fields": list(&row.doc, "fields").iter().map(field).collect::<Vec<_>>(),
        "item_attributes": list(&row.doc, "item_attributes"),
        "resource_uri": resource_uri(read, "lookup_table", &row.id),
    })
}

fn list_items(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let found = items(read).page(&[], ORDER, page.offset, page.limit)?;
    let objects: Vec<Value> = found.rows.iter().map(|row| item(read, row)).collect();
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn item_detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(items(read).get(id)?.map(|row| item(read, &row)))
}

fn item(read: &Read, row: &Row) -> Value {
    let fields = object(&row.doc, "fields").into_iter().map(|(name, field)| {
        let values =
            values(&field).map(|(value, properties)| json!({ "field_value": value, "properties": properties }));
        let field = json!({ "field_list": values.collect::<Vec<_>>() });
        (name, field)
    });
    json!({
        "id": row.id,
        "data_type_id": text(&row.doc, "data_type_id"),
        "fields": fields.collect::<Map<String, Value>>(),
        "item_attributes": object(&row.doc, "item_attributes"),
        "sort_key": row.doc.get("sort_key").and_then(Value::as_i64).unwrap_or_default(),
        "resource_uri": resource_uri(read, "lookup_table_item", &row.id),
    })
}

/// The values of a field, each with its properties.
fn values(field: &Value) -> impl Iterator<Item = (Value, Map<String, Value>)> {
    let listed = match field {
        Value::Object(_) => list(field, "field_list"),
        Value::Array(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    listed.iter().map(|value| match value {
        Value::Object(parts) => {
            let properties = object(value, "properties");
            (parts.get("field_value").cloned().unwrap_or(Value::Null), properties)
        }
        value => (value.clone(), Map::new()),
    })
}

fn list_fixtures(read: &Read) -> Result<Value, QueryError> {
    let page = match last(&read.parameters, "limit") {
        None => Page { limit: MAX_FIXTURES, ..Page::read(&read.parameters, MAX_FIXTURES)? },
        Some(_) => Page::read(&read.parameters, MAX_FIXTURES)?,
    };
    let tags = tags(read)?;
    let Found { total, rows } = items(read).page(&of_table(read, &tags), ORDER, page.offset, page.limit)?;
    let objects: Vec<Value> = rows.iter().map(|row| fixture(row, &tags)).collect();
    Ok(page.envelope(&read.parameters, total, &objects))
}

fn fixture_detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let Some(row) = items(read).get(id)? else { return Ok(None) };
    Ok(Some(fixture(&row, &tags(read)?)))
}

/// Tags of the tables by their ids.
fn tags(read: &Read) -> Result<HashMap<String, String>, QueryError> {
    let tables = tables(read).all()?;
    let tag = |row: Row| Some((text(&row.doc, "tag")?.to_owned(), row.id));
    Ok(tables.into_iter().filter_map(tag).map(|(tag, id)| (id, tag)).collect())
}

/// Filters by `fixture_type_id` or by `fixture_type`, the table's tag.
fn of_table(read: &Read, tags: &HashMap<String, String>) -> Vec<Condition> {
    let given = |name| last(&read.parameters, name).filter(|value| !value.is_empty());
    let ids: Vec<String> = match (given("fixture_type_id"), given("fixture_type")) {
        (Some(id), _) => vec![id.to_owned()],
        (None, Some(tag)) => tags.iter().filter(|(_, of)| *of == tag).map(|(id, _)| id.clone()).collect(),
        (None, None) => return Vec::new(),
    };
    vec![Condition::Text { column: "data_type_id", any: ids }]
}

/// A row whose fields are plain texts where each has one value without properties.
fn fixture(row: &Row, tags: &HashMap<String, String>) -> Value {
    let fields = object(&row.doc, "fields").into_iter().map(|(name, field)| {
        let all: Vec<(Value, Map<String, Value>)> = values(&field).collect();
        let shown = match all.as_slice() {
            [(value, properties)] if properties.is_empty() => value.clone(),
            _ => {
                let values =
                    all.iter().map(|(value, properties)| json!({ "field_value": value, "properties": properties }));
                json!({ "field_list": values.collect::<Vec<_>>() })
            }
        };
        (name, shown)
    });
    json!({
        "id": row.id,
        "fixture_type": text(&row.doc, "data_type_id").and_then(|table| tags.get(table)),
        "fields": fields.collect::<Map<String, Value>>(),
        "resource_uri": "",
    })
}
