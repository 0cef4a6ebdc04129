//! One freshness scenario: changes in order, and the rows to reach.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use schemas::{change::DocKind, doc::Doc, position::Stamp, row::Row};
use serde_json::Value as Json;
use udf::DataSource;

use super::{
    live::Live,
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

/// Runs a scenario: its last state computed from scratch and its changes one by one through the dataflow must both give
/// the expected rows. The inner result is what is different.
///
/// # Errors
/// The scenario is not of the format, or the dataflow cannot be read.
pub(crate) async fn run(scenario: &Json, definition: &Json, live: &mut Live) -> anyhow::Result<Result<(), String>> {
    let source = match DataSource::compile(definition) {
        Ok(source) => source,
        Err(errors) => return Ok(Err(errors.to_string())),
    };
    let events = scenario["events"].as_array().context("`events` must be a list")?;
    let events: Vec<Event<'_>> = events.iter().map(Event::read).collect::<anyhow::Result<_>>()?;
    let mut documents: BTreeMap<String, Json> = BTreeMap::new();
    for event in &events {
        match event {
            Event::Put { id, document } => drop(documents.insert((*id).to_owned(), (*document).clone())),
            Event::Delete { id } => drop(documents.remove(*id)),
        }
    }
    let mut store = Store::of_documents(documents, source.domain());
    let expected = scenario["expected_rows"].as_object().context("`expected_rows` must be a mapping")?;
    let rebuilt = rebuild(&source, &mut store, live.now());
    let ids: BTreeSet<&String> = rebuilt.keys().chain(expected.keys()).collect();
    for id in ids {
        let wanted = expected.get(id).filter(|rows| can_be_saved(&source, rows));
        let wanted = wanted.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let rows = rebuilt.get(id).map_or(&[][..], Vec::as_slice);
        if let Err(difference) = compare(&source, rows, wanted, live.now())? {
            return Ok(Err(format!("{id}: {difference}")));
        }
    }
    let mut installed = live.install(definition).await?;
    let mut present: BTreeMap<&str, Vec<DocKind>> = BTreeMap::new();
    for event in events {
        let (id, document) = match event {
            Event::Put { id, document } => (id, Some(document)),
            Event::Delete { id } => (id, None),
        };
        let now = document.map(kinds).unwrap_or_default();
        let before = present.insert(id, now.clone()).unwrap_or_default();
        let gone = before.into_iter().filter(|kind| !now.contains(kind)).map(|kind| (kind, id.to_owned(), None));
        let put = document.into_iter().flat_map(|document| carried(id, document));
        let changes = gone.chain(put.map(|put| (put.kind, put.id, Some(put.body)))).collect();
        live.change(&mut installed, changes).await?;
    }
    let rebuilt = rebuilt.into_values().flatten().collect();
    Ok(live.difference(&installed, &source, None, rebuilt).await?.map_or(Ok(()), Err))
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
