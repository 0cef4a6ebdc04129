//! Bench of the dataflow alone: backfill of a program's change records into the sample views, single changes, and a
//! thousand data sources over a hundred thousand documents. Prints one Markdown table of medians.
//!
//! A latency counts from the hand-over of an event to the snapshot that shows it, as a reader of another thread sees it:
//! the tick, its publication, and the wake-ups between.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

mod workload;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use schemas::{
    change::{ChangeRecord, DocKind},
    port::{SourceEvent, ViewReader},
    table::TableName,
};
use serde_json::{Value, json};

pub(crate) use self::workload::load;
use self::workload::{Log, Sorted, documents, live::Live};

/// Runs of everything that takes seconds.
const RUNS: usize = 3;
/// Forms of the backfill.
const FORMS: u64 = 100_000;
/// Records at the end of the log that come one by one.
const SINGLE: usize = 2_000;
/// Data sources installed at once.
const SOURCES: usize = 1_000;
/// Of these, sources whose rows show one document.
const TOUCHED: usize = 20;
/// Documents below them.
const DOCUMENTS: usize = 100_000;
/// Events of each kind that are timed on them.
const EVENTS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` starts benches too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("| dataflow, one worker thread | measured | goal |\n| --- | --- | --- |");
    // `cargo bench --bench dataflow -- thousand` runs one part.
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| part.as_ref().is_none_or(|part| name.contains(part.as_str()));
    runtime.block_on(async {
        if wanted("backfill") {
            let (log, begun) = Log::generate(FORMS)?;
            backfill(&log, begun).await?;
        }
        if wanted("thousand by type") {
            thousand(&Filters::ByType).await?;
        }
        if wanted("thousand by property") {
            thousand(&Filters::ByProperty).await?;
        }
        Ok(())
    })
}

fn line(what: &str, measured: &str, goal: &str) {
    println!("| {what} | {measured} | {goal} |");
}

fn per_second(count: usize, runs: &Sorted) -> f64 {
    count as f64 / runs.percentile(50) * 1000.0
}

/// The log of a program, as records that come in as fast as they are taken, as documents found at start, and below views
/// that are put afterwards.
async fn backfill(log: &Log, begun: usize) -> anyhow::Result<()> {
    let (before, forms) = log.records.split_at(begun);
    let (bulk, single) = forms.split_at(forms.len().saturating_sub(SINGLE));
    let changed = documents(bulk);
    let (mut replayed, mut followed) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let live = Live::start(Vec::new(), 0)?;
        live.follow(before).await?;
        live.settled().await?;
        let started = Instant::now();
        live.follow(bulk).await?;
        replayed.push(started.elapsed());
        for record in single {
            followed.push(timed(&live, record).await?);
        }
        check(&live, log)?;
        live.dataflow.shutdown().await;
    }
    let replayed: Sorted = replayed.into_iter().collect();
    let rate = per_second(changed, &replayed);
    line(
        &format!(
            "backfill of the change log into W1-W5: {changed} change records (documents) of {} transactions",
            bulk.len()
        ),
        &format!("{rate:.0} change records/s ({:.1} s)", replayed.percentile(50) / 1000.0),
        "≥ 20,000/s",
    );
    let present = log.present();
    let (definitions, stored): (Vec<_>, Vec<_>) = present
        .iter()
        .cloned()
        .partition(|document| matches!(document.kind, DocKind::DataSource | DocKind::AggregateView));
    let mut scanned = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        let live = Live::start(present.clone(), log.records.len())?;
        live.settled().await?;
        scanned.push(started.elapsed());
        check(&live, log)?;
        live.dataflow.shutdown().await;
    }
    let scanned: Sorted = scanned.into_iter().collect();
    let rate = per_second(stored.len(), &scanned);
    line(
        &format!("start over a store of {} documents", stored.len()),
        &format!("{rate:.0} documents/s ({:.1} s)", scanned.percentile(50) / 1000.0),
        "",
    );
    let mut put = Vec::new();
    for _ in 0..RUNS {
        let live = Live::start(stored.clone(), 0)?;
        live.settled().await?;
        let started = Instant::now();
        live.follow(before.get(..definitions.len()).unwrap_or_default()).await?;
        live.settled().await?;
        put.push(started.elapsed());
        check(&live, log)?;
        live.dataflow.shutdown().await;
    }
    let put: Sorted = put.into_iter().collect();
    let views = definitions.len();
    line(
        &format!("{views} views put over them, until all are live"),
        &format!("{:.1} s", put.percentile(50) / 1000.0),
        "",
    );
    let followed: Sorted = followed.into_iter().collect();
    line(
        "one form's record: handed over → visible in all its tables",
        &format!("p50 {:.2} ms, p99 {:.2} ms", followed.percentile(50), followed.percentile(99)),
        "",
    );
    Ok(())
}

/// Fails unless the tables hold what was put in: a bench of wrong answers is worth nothing.
fn check(live: &Live, log: &Log) -> anyhow::Result<()> {
    let snapshot = live.dataflow.snapshot();
    let tables = snapshot.domains.values().next().map(|domain| &domain.tables);
    let rows = |schema, name| {
        tables.and_then(|tables| tables.get(&TableName::new(schema, name))).map_or(0, |table| table.live_rows)
    };
    let (cases, pregnancies, children) =
        (rows("system", "case_documents"), rows("ucr", "pregnancies"), rows("ucr", "children"));
    let known = log.cases.is_empty() || cases == log.cases.len();
    anyhow::ensure!(
        known && cases > 0 && cases == pregnancies + children,
        "{cases} cases, {pregnancies} and {children} of them in views"
    );
    anyhow::ensure!(
        rows("views", "districts") > 0 && rows("views", "visits_by_month") > 0,
        "aggregate views are empty"
    );
    anyhow::ensure!(rows("system", "view_errors") == 0, "documents failed to evaluate");
    Ok(())
}

/// How long a record takes to become visible.
async fn timed(live: &Live, record: &Arc<ChangeRecord>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    live.say(SourceEvent::Records(vec![Arc::clone(record)])).await?;
    live.visible(&record.domain, record.position).await?;
    Ok(started.elapsed())
}

/// What tells the thousand data sources apart.
enum Filters {
    /// The case type, by which the evaluator finds them, and a condition of their own.
    ByType,
    /// A property of cases of one type: each has to be asked.
    ByProperty,
}

/// The case of that number; it passes the filters of [`TOUCHED`] sources.
fn case(filters: &Filters, number: usize, version: usize) -> Value {
    let group = number % (SOURCES / TOUCHED);
    let case_type = match filters {
        Filters::ByType => format!("kind_{group}"),
        Filters::ByProperty => "kind".to_owned(),
    };
    json!({"_id": format!("case-{number}"), "domain": schemas::sample::DOMAIN, "doc_type": "CommCareCase", "type": case_type,
        "name": format!("Case {number}"), "owner_id": format!("worker-{}", number % 500), "group": format!("g{group}"),
        "opened_on": "2024-01-01T00:00:00.000000Z", "modified_on": "2024-01-01T00:00:00.000000Z", "closed": false,
        "indices": [], "weight": format!("{}.5", number % 90), "visits": version.to_string(), "status": "open"})
}

fn source(filters: &Filters, number: usize) -> Value {
    let compare = |operator: &str, property: &str, value: String| {
        json!({"type": "boolean_expression", "operator": operator, "property_value": value,
            "expression": {"type": "property_name", "property_name": property}})
    };
    let group = number % (SOURCES / TOUCHED);
    let filter = match filters {
        Filters::ByType => json!({"type": "and", "filters":
            [compare("eq", "type", format!("kind_{group}")), compare("not_eq", "status", format!("without-{number}"))]}),
        Filters::ByProperty => json!({"type": "and", "filters":
            [compare("eq", "group", format!("g{group}")), compare("not_eq", "status", format!("without-{number}"))]}),
    };
    let raw = |name: &str, datatype: &str| json!({"type": "raw", "column_id": name, "datatype": datatype, "property_name": name});
    json!({"doc_type": "DataSourceConfiguration", "domain": schemas::sample::DOMAIN, "table_id": format!("source_{number}"),
        "referenced_doc_type": "CommCareCase", "configured_filter": filter, "configured_indicators": [
            raw("name", "string"), raw("owner_id", "string"), raw("weight", "decimal"), raw("visits", "integer"),
            raw("opened_on", "date")]})
}

/// A thousand data sources over a hundred thousand cases.
async fn thousand(filters: &Filters) -> anyhow::Result<()> {
    let mut log = Log::new()?;
    for number in 0..SOURCES {
        log.put(DocKind::DataSource, &format!("source_{number}"), source(filters, number).to_string())?;
    }
    for number in 0..DOCUMENTS {
        log.case(&case(filters, number, 0))?;
    }
    let begun = log.records.len();
    for event in 0..EVENTS {
        log.case(&case(filters, event * 37 % DOCUMENTS, event + 1))?;
    }
    for event in 0..EVENTS {
        log.put(DocKind::User, &format!("worker-{event}"), json!({"_id": format!("worker-{event}")}).to_string())?;
    }
    let (stored, events) = log.records.split_at(begun);
    let stored = stored.iter().flat_map(|record| record.documents.clone()).collect();
    let started = Instant::now();
    let live = Live::start(stored, begun)?;
    live.settled().await?;
    let start = started.elapsed();
    let mut idle = Vec::new();
    for _ in 0..EVENTS {
        idle.push(live.idle_tick().await?);
    }
    let (touching, others) = events.split_at(EVENTS);
    let (mut touched, mut untouched) = (Vec::new(), Vec::new());
    for record in touching {
        touched.push(timed(&live, record).await?);
    }
    for record in others {
        untouched.push(timed(&live, record).await?);
    }
    let rows = rows_of_sources(&live, events.last().map(|record| &**record)).await?;
    anyhow::ensure!(rows == DOCUMENTS * TOUCHED, "{rows} rows in the tables of the sources");
    live.dataflow.shutdown().await;
    let name = match filters {
        Filters::ByType => "1,000 data sources (filters on 50 case types and a property)",
        Filters::ByProperty => "1,000 data sources (filters on properties of one case type)",
    };
    let shown = |ticks: Vec<Duration>| {
        let ticks: Sorted = ticks.into_iter().collect();
        format!("p50 {:.3} ms, p99 {:.3} ms", ticks.percentile(50), ticks.percentile(99))
    };
    line(&format!("{name}: start over 100,000 documents"), &format!("{:.1} s", start.as_secs_f64()), "");
    line("· idle tick", &shown(idle), "≤ 0.1 ms");
    line("· changed document that 20 of them show", &shown(touched), "≤ 0.5 ms");
    line("· changed document that none of them shows", &shown(untouched), "");
    Ok(())
}

async fn rows_of_sources(live: &Live, last: Option<&ChangeRecord>) -> anyhow::Result<usize> {
    let snapshot = match last {
        Some(last) => live.visible(&last.domain, last.position).await?,
        None => live.dataflow.snapshot(),
    };
    let tables = snapshot.domains.values().flat_map(|domain| domain.tables.iter());
    let rows = tables.filter(|(name, _)| &*name.schema == "ucr" && name.name.starts_with("source_"));
    Ok(rows.map(|(_, table)| table.live_rows).sum())
}
