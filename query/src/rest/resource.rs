//! What the version 1 resources of a domain's documents share: their addresses, references between them, and the reading of
//! their fields (rest-api.md §2, §9).

use axum::{
    Router,
    extract::{Path, State},
    response::Response,
    routing::get,
};
use schemas::time::format_micros;
use serde_json::{Map, Value};

use super::{
    Read, Wording, json,
    page::{encode, last},
    read,
};
use crate::{
    QueryError,
    front::{Doors, http::Asked},
};

/// Most objects of one page.
pub(super) const MAX: usize = 1000;

/// A resource that is listed and read one by one.
#[derive(Clone, Copy)]
pub(super) struct Resource {
    /// Where it is, without the final slash.
    pub(super) paths: &'static [&'static str],
    pub(super) list: fn(&Read) -> Result<Value, QueryError>,
    /// The object of an id, if there is one.
    pub(super) detail: fn(&Read, &str) -> Result<Option<Value>, QueryError>,
}

impl Resource {
    /// Its routes, each with and without the final slash.
    pub(super) fn routes(self) -> Router<Doors> {
        let list = move |State(doors): State<Doors>, Path(domain): Path<String>, asked: Asked| async move {
            read(&doors, &domain, &asked, Wording::Silent, move |read| json(&(self.list)(read)?)).await
        };
        let detail = move |State(doors): State<Doors>, Path(place): Path<(String, String)>, asked: Asked| async move {
            let (domain, id) = place;
            let answer = move |read: &Read| -> Result<Response, QueryError> {
                let found = (self.detail)(read, &id)?;
                json(&found.ok_or_else(|| QueryError::NotFound(format!("`{id}` does not exist")))?)
            };
            read(&doors, &domain, &asked, Wording::Silent, answer).await
        };
        let mut router = Router::new();
        for path in self.paths {
            for slash in ["", "/"] {
                router = router
                    .route(&format!("{path}{slash}"), get(list))
                    .route(&format!("{path}/{{id}}{slash}"), get(detail));
            }
        }
        router
    }
}

/// The address of an object. It is the same in every list and reference, whichever spelling of the path was asked: clients
/// join on it.
pub(super) fn resource_uri(read: &Read, resource: &str, id: &str) -> String {
    let mut uri = format!("/a/{}/api/v0.5/{resource}/", read.principal.domain);
    encode(&mut uri, id);
    uri.push('/');
    uri
}

/// The id in a reference: an address of ours, or the id itself.
pub(super) fn referenced(reference: &str) -> &str {
    match reference.starts_with('/') {
        true => reference.trim_end_matches('/').rsplit('/').next().unwrap_or_default(),
        false => reference,
    }
}

/// A boolean parameter of version 1; what is none counts as false.
pub(super) fn asked_for(read: &Read, name: &str) -> bool {
    last(&read.parameters, name)
        .is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "t" | "yes" | "y" | "1"))
}

/// A text property.
pub(super) fn text<'a>(doc: &'a Value, name: &str) -> Option<&'a str> {
    doc.get(name).and_then(Value::as_str)
}

/// A property as it is, or null.
pub(super) fn property(doc: &Value, name: &str) -> Value {
    doc.get(name).cloned().unwrap_or(Value::Null)
}

/// A property that is true or false; false if it is neither.
pub(super) fn flag(doc: &Value, name: &str) -> bool {
    doc.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// A list property; empty if it is none.
pub(super) fn list<'a>(doc: &'a Value, name: &str) -> &'a [Value] {
    doc.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// An object property; empty if it is none.
pub(super) fn object(doc: &Value, name: &str) -> Map<String, Value> {
    doc.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// An instant without zone, as these resources write them (rest-api.md §2.4).
pub(super) fn naive(micros: i64) -> String {
    format_micros(micros).trim_end_matches('Z').to_owned()
}
