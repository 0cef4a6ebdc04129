//! Web users, as a domain sees them (rest-api.md §9.2).

use axum::Router;
use serde_json::{Map, Value, json};

use super::{
    Read,
    page::{Page, last},
    resource::{MAX, Resource, list, property, resource_uri, text},
    scan::{Condition, Documents, Row, Sort},
};
use crate::{QueryError, front::Doors};

/// Who has it may do everything in the domain.
const ADMIN: &str = "edit_domain";

pub(super) fn routes() -> Router<Doors> {
    let paths = &["/a/{domain}/api/v0.5/web-user", "/a/{domain}/api/web-user/v1"];
    Resource { paths, list: list_users, detail }.routes()
}

fn documents(read: &Read) -> Documents {
    Documents::of(read, "web_user_documents")
}

fn list_users(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let named = last(&read.parameters, "web_username").filter(|name| !name.is_empty());
    let wanted = named.map(|name| Condition::Text { column: "username", any: vec![name.to_owned()] });
    let found = documents(read).page(wanted.as_slice(), Sort::text("username"), page.offset, page.limit)?;
    let objects: Vec<Value> = found.rows.iter().map(|row| web_user(read, row)).collect();
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(documents(read).get(id)?.map(|row| web_user(read, &row)))
}

fn web_user(read: &Read, row: &Row) -> Value {
    let doc = &row.doc;
    let text_or_empty = |name: &str| text(doc, name).unwrap_or_default();
    let permissions: Map<String, Value> =
        list(doc, "permissions").iter().filter_map(|name| Some((name.as_str()?.to_owned(), true.into()))).collect();
    json!({
        "id": row.id,
        "username": text_or_empty("username"),
        "first_name": text_or_empty("first_name"),
        "last_name": text_or_empty("last_name"),
        "default_phone_number": property(doc, "default_phone_number"),
        "email": text(doc, "email").unwrap_or_else(|| text_or_empty("username")),
        "phone_numbers": list(doc, "phone_numbers"),
        "role": text_or_empty("role"),
        "is_admin": permissions.contains_key(ADMIN),
        "permissions": permissions,
        "primary_location_id": property(doc, "primary_location_id"),
        "assigned_location_ids": list(doc, "assigned_location_ids"),
        "profile": property(doc, "profile"),
        "is_active_in_domain": true,
        "tableau_role": property(doc, "tableau_role"),
        "resource_uri": resource_uri(read, "web-user", &row.id),
    })
}
