//! One freshness scenario: changes in order, and the rows to reach.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use schemas::{doc::Doc, position::Stamp, row::Row};
use serde_json::Value as Json;
use udf::DataSource;

use super::{
    live::{Change, Live},
    rows::{can_be_saved, compare},
    store::{Store, carried, kinds},
    typed::stored,
    vector::text,
};

/// A change of a scenario.
enum Event<'s> {
    Put { id: &'s str, document: &'s Json },
    Delete { id: &'s str },
}

impl<'s> Event<'s> {
    fn read(event: &'s Json) -> anyhow::Result<Self> {
        match text(event, "op")? {
            "put" => Ok(Self::Put { id: text(&event["doc"], "_id")?, document: &event["doc"] }),
            "delete" => Ok(Self::Delete { id: text(event, "id")? }),
            other => anyhow::bail!("`{other}` is not an operation of scenarios"),
        }
    }
}

/// Runs a scenario: after each of its changes the live table must equal the rows computed from scratch, and after the last
/// one these must be the expected rows. The inner result is the first difference.
///
/// # Errors
/// The scenario is not of the format, or the dataflow cannot be read.
pub(crate) async fn run(scenario: &Json, definition: &Json, live: &mut Live) -> anyhow::Result<Result<(), String>> {
    let source = match DataSource::compile(definition) {
        Ok(source) => source,
        Err(errors) => return Ok(Err(errors.to_string())),
    };
    let events = scenario["events"].as_array().context("`events` must be a list")?;
    let expected = scenario["expected_rows"].as_object().context("`expected_rows` must be a mapping")?;
    let mut installed = live.install(definition).await?;
    let mut documents: BTreeMap<String, Json> = BTreeMap::new();
    let mut rebuilt = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        let changes = apply(&Event::read(event)?, &mut documents);
        live.change(&mut installed, changes).await?;
        rebuilt = rebuild(&source, &mut Store::of_documents(documents.clone(), source.domain()), live.now());
        let rows = rebuilt.values().flatten().cloned().collect();
        if let Some(difference) = live.difference(&installed, &source, None, rows).await? {
            return Ok(Err(format!("after event {}: {difference}", number + 1)));
        }
    }
    let ids: BTreeSet<&String> = rebuilt.keys().chain(expected.keys()).collect();
    for id in ids {
        let wanted = expected.get(id).filter(|rows| can_be_saved(&source, rows));
        let wanted = wanted.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let rows = rebuilt.get(id).map_or(&[][..], Vec::as_slice);
        if let Err(difference) = compare(&source, rows, wanted, live.now())? {
            return Ok(Err(format!("{id}: {difference}")));
        }
    }
    Ok(Ok(()))
}

/// Applies an event to the documents and returns it as a change of the log. A document that becomes one of another type is
/// gone under the kinds that it had.
fn apply(event: &Event<'_>, documents: &mut BTreeMap<String, Json>) -> Vec<Change> {
    let (id, put, before) = match event {
        Event::Put { id, document } => {
            (*id, carried(id, document), documents.insert((*id).to_owned(), (*document).clone()))
        }
        Event::Delete { id } => (*id, Vec::new(), documents.remove(*id)),
    };
    let before = before.as_ref().map(kinds).unwrap_or_default().into_iter();
    let gone = before.filter(|kind| put.iter().all(|put| put.kind != *kind)).map(|kind| (kind, id.to_owned(), None));
    let gone: Vec<Change> = gone.collect();
    gone.into_iter().chain(put.into_iter().map(|put| (put.kind, put.id, Some(put.body)))).collect()
}

/// The rows of every document, computed from scratch; a document that fails has none.
pub(crate) fn rebuild(source: &DataSource, store: &mut Store, now: i64) -> BTreeMap<String, Vec<Row>> {
    let mut rebuilt = BTreeMap::new();
    let documents = store.documents().clone();
    for (id, json) in documents.iter().filter(|(_, json)| kinds(json).contains(&source.kind())) {
        let Ok(doc) = Doc::from_value(&stored(json)) else { continue };
        let rows = source.evaluate(&doc, Stamp(now), now, store).unwrap_or_default();
        rebuilt.insert(id.clone(), rows);
    }
    rebuilt
}
