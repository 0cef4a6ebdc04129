//! Makes a domain ready for load: the sample program's definitions, its places and workers, and workers signed in.
//!
//! Everything is written over HTTP as an administrator's script would, and what is there already stays: a second run
//! finds its population, learns where people have moved meanwhile, and goes on.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{TryStreamExt, stream};
use parking_lot::RwLock;
use reqwest::Method;
use schemas::sample;
use serde_json::Value;
use tokio_postgres::Client;

use super::{phone::Server, population::Population, postgres};

/// Documents per import request.
const IMPORT: usize = 200;
/// Workers that sign in at the same time. Checking a password is meant to be expensive; more would only queue.
const SIGNING_IN: usize = 2;
/// How long tables may take to appear.
const TABLES: Duration = Duration::from_secs(120);
const TABLES_PAUSE: Duration = Duration::from_millis(50);

/// Receives what is happening, a line at a time.
pub(crate) type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Puts the sample program's data sources and aggregate views, unless they are there and the same.
///
/// # Errors
/// A definition is refused.
pub(crate) async fn definitions(server: &Server, say: Say<'_>) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut changed = 0;
    let sources = sample::DATA_SOURCES.iter().map(|(id, text)| (format!("ucr/data-sources/{id}"), *text));
    let views = sample::AGGREGATE_VIEWS.iter().map(|(id, text)| (format!("views/{id}"), *text));
    for (path, text) in sources.chain(views) {
        let wanted: Value =
            serde_json::from_str(text).with_context(|| format!("the sample document {path} is not JSON"))?;
        let present = server.read(&path).await?;
        if present.is_none_or(|present| !same_definition(&present, &wanted)) {
            server.write(Method::PUT, &path, &wanted).await?;
            changed += 1;
        }
    }
    let all = sample::DATA_SOURCES.len() + sample::AGGREGATE_VIEWS.len();
    say(&format!("definitions: {all} tables, {changed} of them new or changed ({})", seconds(began)));
    Ok(())
}

/// True if the answer of the definition resource holds this definition, bare or in an envelope.
fn same_definition(present: &Value, wanted: &Value) -> bool {
    present == wanted || ["definition", "document", "body"].iter().any(|key| present.get(key) == Some(wanted))
}

/// Waits until every sample table can be read.
///
/// # Errors
/// One still cannot be after two minutes; the message is the statement's.
pub(crate) async fn tables(client: &Client, say: Say<'_>) -> anyhow::Result<BTreeMap<String, u64>> {
    let began = Instant::now();
    loop {
        match postgres::count_rows(client).await {
            Ok(rows) => {
                let listed: Vec<String> = rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
                say(&format!("tables: {} ({})", listed.join(", "), seconds(began)));
                return Ok(rows);
            }
            Err(error) if began.elapsed() > TABLES || client.is_closed() => {
                return Err(error.context("the sample tables did not become readable"));
            }
            Err(_) => tokio::time::sleep(TABLES_PAUSE).await,
        }
    }
}

/// Imports places and workers that are missing; those present keep the place they have moved to.
///
/// `client` reads what is there; without it everything is imported again.
///
/// # Errors
/// An import is refused, or what is there cannot be read.
pub(crate) async fn population(
    server: &Server,
    client: Option<&Client>,
    population: &mut Population,
    say: Say<'_>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let present = match client {
        Some(client) => postgres::whereabouts(client).await?,
        None => BTreeMap::new(),
    };
    let missing = |id: &str| !present.contains_key(id);
    let places: Vec<Value> =
        population.places.iter().filter(|place| missing(&place.id)).map(|place| place.document.clone()).collect();
    let workers: Vec<Value> = population
        .workers
        .iter()
        .filter(|worker| missing(&worker.id))
        .map(|worker| {
            let mut document = worker.document.clone();
            if let Some(fields) = document.as_object_mut() {
                fields.insert("password".to_owned(), Value::from(worker.password.clone()));
            }
            document
        })
        .collect();
    for (id, inside) in &present {
        population.note(id, inside);
    }
    for (path, documents) in [("import/locations", &places), ("import/users", &workers)] {
        for chunk in documents.chunks(IMPORT) {
            let report = server.write(Method::POST, path, &Value::from(chunk.to_vec())).await?;
            let failed = report.get("failed").and_then(Value::as_u64).unwrap_or_default();
            anyhow::ensure!(
                failed == 0,
                "{path}: {failed} of {} rows were refused; {}",
                chunk.len(),
                first_refusal(&report)
            );
        }
    }
    say(&format!(
        "population: {} places and {} workers, of them new {} and {} ({})",
        population.places.len(),
        population.workers.len(),
        places.len(),
        workers.len(),
        seconds(began)
    ));
    Ok(())
}

fn first_refusal(report: &Value) -> String {
    let rows = report.get("rows").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rows.iter().find(|row| row.get("error").is_some()).map(|row| format!("the first: {row}")).unwrap_or_default()
}

/// Signs every worker in, a few at a time, so that checking passwords is not what gets measured.
///
/// # Errors
/// A worker cannot sign in.
pub(crate) async fn sign_in(
    server: &Arc<Server>,
    population: &Arc<RwLock<Population>>,
    say: Say<'_>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let workers = population.read().workers.clone();
    let count = workers.len();
    stream::iter(workers.into_iter().map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(SIGNING_IN, |worker| async move { server.sign_in(&worker).await })
        .await?;
    say(&format!("signed in: {count} workers ({})", seconds(began)));
    Ok(())
}

/// Workers and places that the tables do not show where this run moved them to.
///
/// # Errors
/// The tables cannot be read.
pub(crate) async fn misplaced(client: &Client, population: &Population) -> anyhow::Result<Vec<String>> {
    let present = postgres::whereabouts(client).await?;
    let wrong = population.moves.iter().filter(|(id, inside)| present.get(*id) != Some(*inside));
    Ok(wrong.map(|(id, _)| id.clone()).take(100).collect())
}

/// How long ago, for people.
pub(crate) fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
