//! Groups of mobile workers (rest-api.md §9.3).

use axum::Router;
use serde_json::{Value, json};

use super::{
    Read,
    page::Page,
    resource::{MAX, Resource, flag, list, object, resource_uri, text},
    scan::{Documents, Row, Sort},
    users,
};
use crate::{QueryError, front::Doors};

pub(super) fn routes() -> Router<Doors> {
    let paths = &["/a/{domain}/api/v0.5/group", "/a/{domain}/api/group/v1"];
    Resource { paths, list: list_groups, detail }.routes()
}

fn documents(read: &Read) -> Documents {
    Documents::of(read, "group_documents")
}

fn list_groups(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let found = documents(read).page(&[], Sort::text("name"), page.offset, page.limit)?;
    let workers = users::documents(read);
    let objects = found.rows.iter().map(|row| group(read, row, &workers)).collect::<Result<Vec<_>, _>>()?;
    Ok(page.envelope(&read.parameters, found.total, &objects))
}

fn detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let row = documents(read).get(id)?;
    row.map(|row| group(read, &row, &users::documents(read))).transpose()
}

/// A group with those of its members who are active.
fn group(read: &Read, row: &Row, workers: &Documents) -> Result<Value, QueryError> {
    let mut members = Vec::new();
    for id in list(&row.doc, "users").iter().filter_map(Value::as_str) {
        if workers.get(id)?.is_some_and(|worker| users::is_active(&worker.doc)) {
            members.push(id);
        }
    }
    Ok(json!({
        "id": row.id,
        "name": text(&row.doc, "name"),
        "domain": read.principal.domain.as_str(),
        "case_sharing": flag(&row.doc, "case_sharing"),
        "reporting": flag(&row.doc, "reporting"),
        "metadata": object(&row.doc, "metadata"),
        "users": members,
        "resource_uri": resource_uri(read, "group", &row.id),
    }))
}
