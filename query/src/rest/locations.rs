//! Locations and their types (rest-api.md §9.4), versions 1 and 2.
//!
//! Clients join locations with types and parents on `resource_uri`, so a reference is always the address under which its
//! object is listed. A location may name its type by id, code or name; a type that nobody defined, but locations have, is
//! listed with their word for it as id, name and code.

use std::collections::BTreeMap;

use axum::Router;
use hashbrown::HashMap;
use serde_json::{Value, json};

use super::{
    Read,
    filter::{instant_v1, range_v2},
    page::{Page, last},
    resource::{MAX, Resource, flag, naive, object, property, referenced, resource_uri, text},
    scan::{Condition, Documents, Order, Row, Sort},
};
use crate::{QueryError, front::Doors};

/// Most locations of a page in version 2.
const MAX_V2: usize = 5000;

pub(super) fn routes() -> Router<Doors> {
    let types = &["/a/{domain}/api/v0.5/location_type", "/a/{domain}/api/location_type/v1"];
    let v1 = &["/a/{domain}/api/v0.5/location", "/a/{domain}/api/location/v1"];
    let v2 = &["/a/{domain}/api/v0.6/location", "/a/{domain}/api/location/v2"];
    Resource { paths: types, list: list_types, detail: type_detail }
        .routes()
        .merge(Resource { paths: v1, list: list_v1, detail: detail_v1 }.routes())
        .merge(Resource { paths: v2, list: list_v2, detail: detail_v2 }.routes())
}

fn documents(read: &Read) -> Documents {
    Documents::of(read, "location_documents")
}

/// A location that is not archived.
fn find(read: &Read, id: &str) -> Result<Option<Row>, QueryError> {
    Ok(documents(read).get(id)?.filter(|row| !flag(&row.doc, "is_archived")))
}

/// The integer that version 1 shows as `id`: made from the text that is the id here, the same for good, and small enough for
/// a JSON number.
fn number(id: &str) -> u64 {
    // FNV-1a, 64 bits, of which 53 are kept.
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash >> 11
}

/// A kind of place.
#[derive(Clone, Debug)]
struct LocationType {
    id: String,
    doc: Value,
}

impl LocationType {
    fn name(&self) -> &str {
        text(&self.doc, "name").unwrap_or(&self.id)
    }

    fn code(&self) -> &str {
        text(&self.doc, "code").unwrap_or(&self.id)
    }

    /// What it calls the type above it.
    fn parent(&self) -> Option<&str> {
        ["parent", "parent_type"].into_iter().find_map(|name| text(&self.doc, name)).filter(|parent| !parent.is_empty())
    }
}

/// All types of a domain.
struct Types {
    by_id: BTreeMap<String, LocationType>,
    /// Ids by code and by name.
    ids: HashMap<String, String>,
}

impl Types {
    fn of(read: &Read) -> Result<Self, QueryError> {
        let mut types = Self { by_id: BTreeMap::new(), ids: HashMap::new() };
        for Row { id, doc, .. } in Documents::of(read, "location_type_documents").all()? {
            types.by_id.insert(id.clone(), LocationType { id, doc });
        }
        for name in [LocationType::code, LocationType::name] {
            for of in types.by_id.values() {
                types.ids.entry_ref(name(of)).or_insert_with(|| of.id.clone());
            }
        }
        for word in documents(read).distinct("location_type")? {
            if !word.is_empty() && types.find(&word).is_none() {
                types.by_id.insert(word.clone(), LocationType { id: word, doc: Value::Null });
            }
        }
        Ok(types)
    }

    /// The type that a reference means: its address, id, code or name.
    fn find(&self, reference: &str) -> Option<&LocationType> {
        let reference = referenced(reference);
        self.by_id.get(reference).or_else(|| self.by_id.get(self.ids.get(reference)?))
    }

    fn of_location(&self, doc: &Value) -> Option<&LocationType> {
        self.find(text(doc, "location_type")?)
    }

    fn object(&self, read: &Read, of: &LocationType) -> Value {
        let parent = of.parent().and_then(|parent| self.find(parent));
        json!({
            "id": number(&of.id),
            "domain": read.principal.domain.as_str(),
            "name": of.name(),
            "code": of.code(),
            "parent": parent.map(|parent| resource_uri(read, "location_type", &parent.id)),
            "administrative": flag(&of.doc, "administrative"),
            "shares_cases": flag(&of.doc, "shares_cases"),
            "view_descendants": flag(&of.doc, "view_descendants"),
            "resource_uri": resource_uri(read, "location_type", &of.id),
        })
    }
}

fn list_types(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let types = Types::of(read)?;
    let shown = types.by_id.values().skip(page.offset).take(page.limit);
    let objects: Vec<Value> = shown.map(|of| types.object(read, of)).collect();
    Ok(page.envelope(&read.parameters, types.by_id.len(), &objects))
}

fn type_detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let types = Types::of(read)?;
    let found = types.by_id.get(id).or_else(|| types.by_id.values().find(|of| number(&of.id).to_string() == id));
    Ok(found.map(|of| types.object(read, of)))
}

fn list_v1(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let found = documents(read).page(&conditions_v1(read)?, Sort::text("doc_id"), page.offset, page.limit)?;
    let types = Types::of(read)?;
    let objects: Vec<Value> = found.rows.iter().map(|row| object_v1(read, row, &types)).collect();
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn detail_v1(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let Some(row) = find(read, id)? else { return Ok(None) };
    Ok(Some(object_v1(read, &row, &Types::of(read)?)))
}

/// Fields of version 1 that cannot be filtered by; other unknown names are ignored, as upstream.
const NO_FILTER: [&str; 6] = ["id", "name", "location_id", "location_data", "location_type", "parent"];

fn conditions_v1(read: &Read) -> Result<Vec<Condition>, QueryError> {
    let mut conditions = vec![Condition::Flag { column: "is_archived", is: false }];
    for (name, _) in &read.parameters {
        let value = last(&read.parameters, name).unwrap_or_default();
        let (field, comparison) = name.split_once("__").unwrap_or((name, "exact"));
        match field {
            "site_code" | "external_id" if comparison == "exact" => {
                let column = if field == "site_code" { "site_code" } else { "external_id" };
                conditions.push(Condition::Text { column, any: vec![value.to_owned()] });
            }
            "last_modified" => {
                let (low, high) = range(name, comparison, value)?;
                conditions.push(Condition::Instant { column: "indexed_on", low, high });
            }
            "created_at" => {
                let (low, high) = range(name, comparison, value)?;
                conditions.push(Condition::Document(Box::new(move |doc| {
                    created_at(doc).is_some_and(|at| low <= at && at <= high)
                })));
            }
            "latitude" | "longitude" => {
                let holds = decimal(name, comparison, value)?;
                let field = field.to_owned();
                conditions.push(Condition::Document(Box::new(move |doc| degrees(doc, &field).is_some_and(&holds))));
            }
            "site_code" | "external_id" => return Err(no_filter(name)),
            field if NO_FILTER.contains(&field) => {
                return Err(QueryError::Parameter(format!("The '{field}' field does not allow filtering.")));
            }
            _ => {}
        }
    }
    Ok(conditions)
}

fn no_filter(name: &str) -> QueryError {
    let (field, comparison) = name.split_once("__").unwrap_or((name, "exact"));
    QueryError::Parameter(format!("'{comparison}' is not an allowed filter on the '{field}' field."))
}

/// The instants that satisfy a comparison, both ends inclusive.
fn range(name: &str, comparison: &str, value: &str) -> Result<(i64, i64), QueryError> {
    let at = instant_v1(value)?;
    Ok(match comparison {
        "exact" => (at, at),
        "gt" => (at.saturating_add(1), i64::MAX),
        "gte" => (at, i64::MAX),
        "lt" => (i64::MIN, at.saturating_sub(1)),
        "lte" => (i64::MIN, at),
        _ => return Err(no_filter(name)),
    })
}

/// A test of degrees.
fn decimal(
    name: &str,
    comparison: &str,
    value: &str,
) -> Result<impl Fn(f64) -> bool + Send + Sync + use<>, QueryError> {
    let wanted: f64 = value
        .trim()
        .parse()
        .map_err(|_| QueryError::Parameter(format!("Bad query parameter: `{value}` is not a number")))?;
    let holds: fn(f64, f64) -> bool = match comparison {
        "exact" => |value, wanted| value.total_cmp(&wanted).is_eq(),
        "gt" => |value, wanted| value > wanted,
        "gte" => |value, wanted| value >= wanted,
        "lt" => |value, wanted| value < wanted,
        "lte" => |value, wanted| value <= wanted,
        _ => return Err(no_filter(name)),
    };
    Ok(move |value| holds(value, wanted))
}

/// A latitude or longitude as a number.
fn degrees(doc: &Value, name: &str) -> Option<f64> {
    let value = doc.get(name)?;
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A latitude or longitude as answers show it: decimal text, or null.
fn degrees_text(doc: &Value, name: &str) -> Option<String> {
    match doc.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn created_at(doc: &Value) -> Option<i64> {
    text(doc, "created_at").and_then(schemas::time::parse_micros)
}

fn location_data(doc: &Value) -> Value {
    object(doc, "metadata").into()
}

fn parent_id(doc: &Value) -> Option<&str> {
    text(doc, "parent_id").filter(|parent| !parent.is_empty())
}

fn object_v1(read: &Read, row: &Row, types: &Types) -> Value {
    let doc = &row.doc;
    json!({
        "id": number(&row.id),
        "name": text(doc, "name"),
        "domain": read.principal.domain.as_str(),
        "location_id": row.id,
        "site_code": text(doc, "site_code"),
        "external_id": property(doc, "external_id"),
        "created_at": naive(created_at(doc).unwrap_or(row.stamp)),
        "last_modified": naive(row.stamp),
        "latitude": degrees_text(doc, "latitude"),
        "longitude": degrees_text(doc, "longitude"),
        "location_data": location_data(doc),
        "location_type": types.of_location(doc).map(|of| resource_uri(read, "location_type", &of.id)),
        "parent": parent_id(doc).map(|parent| resource_uri(read, "location", parent)),
        "resource_uri": resource_uri(read, "location", &row.id),
    })
}

fn list_v2(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX_V2)?;
    let types = Types::of(read)?;
    let order = match last(&read.parameters, "order_by") {
        None | Some("") => None,
        Some("last_modified") => Some(false),
        Some("-last_modified") => Some(true),
        Some(field) => {
            return Err(QueryError::Parameter(format!("No matching '{field}' field for ordering on.")));
        }
    };
    let order = order.map(|falling| [Order { column: "indexed_on", falling }]);
    let sort = order.as_ref().map_or(Sort::text("doc_id"), |order| Sort::by(order));
    let found = documents(read).page(&conditions_v2(read, &types)?, sort, page.offset, page.limit)?;
    let objects: Vec<Value> = found.rows.iter().map(|row| object_v2(read, row, &types)).collect();
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn detail_v2(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let Some(row) = find(read, id)? else { return Ok(None) };
    Ok(Some(object_v2(read, &row, &Types::of(read)?)))
}

fn conditions_v2(read: &Read, types: &Types) -> Result<Vec<Condition>, QueryError> {
    let mut conditions = vec![Condition::Flag { column: "is_archived", is: false }];
    for (name, _) in &read.parameters {
        let value = last(&read.parameters, name).unwrap_or_default();
        let text = |column| Condition::Text { column, any: vec![value.to_owned()] };
        match name.as_str() {
            "site_code" => conditions.push(text("site_code")),
            "name" => conditions.push(text("name")),
            "parent_location_id" => conditions.push(text("parent_id")),
            "location_type_code" => {
                let words = documents(read).distinct("location_type")?;
                let has_code = |word: &String| types.find(word).is_some_and(|of| of.code() == value);
                let any = words.into_iter().filter(has_code).collect();
                conditions.push(Condition::Text { column: "location_type", any });
            }
            name => {
                let Some(comparison) = name.strip_prefix("last_modified.") else { continue };
                let (low, high) = range_v2(comparison, value)?
                    .ok_or_else(|| QueryError::Parameter(format!("'{name}' is not a valid parameter.")))?;
                conditions.push(Condition::Instant { column: "indexed_on", low, high });
            }
        }
    }
    Ok(conditions)
}

fn object_v2(read: &Read, row: &Row, types: &Types) -> Value {
    let doc = &row.doc;
    let of = types.of_location(doc);
    json!({
        "domain": read.principal.domain.as_str(),
        "location_id": row.id,
        "name": text(doc, "name"),
        "site_code": text(doc, "site_code"),
        "last_modified": naive(row.stamp),
        "latitude": degrees_text(doc, "latitude"),
        "longitude": degrees_text(doc, "longitude"),
        "location_data": location_data(doc),
        "location_type_code": of.map_or("", LocationType::code),
        "location_type_name": of.map_or("", LocationType::name),
        "parent_location_id": parent_id(doc).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_small() {
        assert_eq!(number("d1"), number("d1"));
        assert_ne!(number("d1"), number("d2"));
        assert!(number("d1") < 1 << 53);
    }
}
