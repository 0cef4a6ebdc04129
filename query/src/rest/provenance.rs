//! Where a row comes from: `GET /a/{domain}/api/millrace/v1/provenance?view=<id>&key=<key>`.
//!
//! The key is the id of a document, for an aggregate view the values of a group as a JSON list. The answer names the documents
//! that made the row, each with the record that brought the version in which it was read.

use axum::{
    Router,
    extract::{Path, State},
    response::Response,
    routing::get,
};
use schemas::{
    id::DomainId,
    inside::{Arrival, Explained, Origin, Outcome, Provenance, ProvenanceQuestion},
    table::DomainTables,
    time::format_micros,
};
use serde_json::{Map, Value, json};

use super::{Read, Wording, json as answer, page::last, refuse, take};
use crate::{
    QueryError,
    front::{
        Doors, Freshness,
        http::{self, Asked},
    },
};

pub(super) fn routes() -> Router<Doors> {
    let path = "/a/{domain}/api/millrace/v1/provenance";
    Router::new().route(path, get(provenance)).route(&format!("{path}/"), get(provenance))
}

async fn provenance(State(doors): State<Doors>, Path(domain): Path<String>, asked: Asked) -> Response {
    let principal = match http::caller(&doors.state, &domain, &asked).await {
        Ok(principal) => principal,
        Err(error) => return refuse(&error, Wording::Spoken),
    };
    let domain = principal.domain.clone();
    let answered = async { explain(&doors, &take(&doors, principal, &asked.uri).await?).await };
    let (mut response, freshness) = match answered.await {
        Ok(answered) => answered,
        Err(error) => (refuse(&error, Wording::Spoken), Freshness::now(&doors.state, &domain)),
    };
    http::stamp(&mut response, &freshness);
    response
}

async fn explain(doors: &Doors, read: &Read) -> Result<(Response, Freshness), QueryError> {
    let domain = &read.principal.domain;
    let view = last(&read.parameters, "view").filter(|view| !view.is_empty());
    let view = view.ok_or_else(|| QueryError::Parameter("say which view: `view` is its id".to_owned()))?;
    let key = last(&read.parameters, "key").filter(|key| !key.is_empty());
    let question = ProvenanceQuestion { domain: domain.clone(), view: view.to_owned(), key: key.map(str::to_owned) };
    let explained = doors.state.views.provenance(question, doors.state.config.default_wait()).await?;
    let freshness = freshness(domain, &explained);
    let mut told = Map::new();
    told.insert("view".to_owned(), view.into());
    told.insert("key".to_owned(), key.into());
    tell(explained.provenance, key.is_some(), &mut told);
    Ok((answer(&told)?, freshness))
}

fn freshness(domain: &DomainId, explained: &Explained) -> Freshness {
    match explained.snapshot.domains.get(domain) {
        Some(tables) => Freshness::of(&explained.snapshot, tables),
        None => Freshness::of(&explained.snapshot, &DomainTables::default()),
    }
}

fn tell(provenance: Provenance, has_key: bool, told: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    match provenance {
        Provenance::Rows { document, is_there, outcome, asked } => {
            let (rows, error) = match outcome {
                Outcome::Rows(rows) => (rows, None),
                Outcome::Failed(message) => (0, Some(message)),
            };
            let why = match (rows, &error) {
                (0, None) if is_there => {
                    Some("the filter of the view does not let the document in, or it has no items")
                }
                (0, None) => Some("the document is gone for good"),
                _ => None,
            };
            put("rows", rows.into());
            if let Some(why) = why {
                put("note", why.into());
            }
            if let Some(error) = error {
                put("error", error.into());
            }
            put("document", origin(&document));
            let asked = asked.into_iter().map(|asked| {
                let documents: Value = asked.documents.iter().map(origin).collect();
                json!({ "relation": asked.relation, "id": asked.id, "documents": documents })
            });
            put("related", asked.collect());
        }
        Provenance::Groups { sources, members } => {
            put("sources", sources.iter().map(ToString::to_string).collect());
            match members {
                Some(members) => {
                    put("base_rows", members.rows.into());
                    put("base_documents", members.documents.into());
                }
                None if has_key => {
                    let note = "rows of a group are not traced through joins; read the sources, and trace their rows";
                    put("note", note.into());
                }
                None => put("note", "give the values of a group as `key`, a JSON list, to trace its base rows".into()),
            }
        }
    }
}

/// A document; what is not known is left out.
fn origin(origin: &Origin) -> Value {
    let mut told = json!({
        "kind": origin.kind,
        "id": origin.id,
        "stamp": format_micros(origin.stamp.0),
    });
    let mut put = |name: &str, value: Value| told[name] = value;
    if let Some(form) = &origin.form {
        put("form", form.as_str().into());
    }
    match origin.arrival {
        Arrival::Record { position, visible_at } => {
            put("position", position.to_string().into());
            if let Some(visible_at) = visible_at {
                put("visible_at", format_micros(visible_at).into());
            }
        }
        Arrival::Before(time) => put("before", format_micros(time).into()),
    }
    told
}
