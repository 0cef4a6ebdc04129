//! Bench of the dataflow at scale: ten thousand views, one change that very many rows follow, a new data source over a
//! million documents beside live changes, the cost of a change by the number of documents, memory, and a restart from a
//! checkpoint. Prints one Markdown table.
//!
//! `cargo bench --bench scale -- restart` runs one part. A restart is a process of its own, so that its memory is its own.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

mod workload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_trait::async_trait;
use dataflow::DataflowConfig;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{DocId, DomainId},
    port::{BootstrapDocument, CheckpointStore, CheckpointStoreError, SourceEvent, ViewReader},
    position::{Position, Stamp},
    sample,
    table::{Snapshot, TableName},
};
use serde_json::{Value, json, value::RawValue};

pub(crate) use self::workload::load;
use self::workload::{
    Log, Sorted,
    live::{Live, Start},
    position,
};

/// Single changes that are timed.
const EVENTS: usize = 500;
/// Documents handed over at a time.
const BATCH: usize = 512;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` starts benches too, without this argument.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut plain = arguments.iter().filter(|argument| !argument.starts_with('-'));
    let part = plain.next().cloned();
    if part.as_deref() == Some("restarted") {
        let directory = PathBuf::from(plain.next().context("restarted: give the directory of the checkpoint")?);
        return runtime.block_on(restarted(&directory));
    }
    println!("| dataflow at scale, one worker thread | measured | goal |\n| --- | --- | --- |");
    let wanted = |name: &str| part.as_ref().is_none_or(|part| name.contains(part.as_str()));
    runtime.block_on(async {
        if wanted("views") {
            views(10_000).await?;
        }
        if wanted("place") {
            place(10_000, 20).await?;
        }
        if wanted("fan-out") {
            fan_out(500_000).await?;
        }
        if wanted("flat") {
            let mut first = None;
            for documents in [10_000, 100_000, 1_000_000] {
                let cost = change_cost(documents).await?;
                let times = cost / *first.get_or_insert(cost);
                line(
                    &format!("cost of a change over {documents} documents, in batches of 500"),
                    &format!("{:.1} µs of CPU ({times:.2} ×)", cost * 1e6),
                    "≤ 1.3 ×",
                );
            }
        }
        if wanted("source") {
            new_source(1_000_000).await?;
        }
        if wanted("restart") {
            restart().await?;
        }
        Ok(())
    })
}

fn line(what: &str, measured: &str, goal: &str) {
    println!("| {what} | {measured} | {goal} |");
}

fn shown(durations: Vec<Duration>) -> String {
    let durations: Sorted = durations.into_iter().collect();
    format!("p50 {:.2} ms, p99 {:.2} ms", durations.percentile(50), durations.percentile(99))
}

fn domain(name: &str) -> anyhow::Result<DomainId> {
    Ok(DomainId::new(name)?)
}

fn changed(
    kind: DocKind,
    id: &str,
    subtype: Option<&str>,
    stamp: i64,
    body: &Value,
) -> anyhow::Result<ChangedDocument> {
    Ok(ChangedDocument {
        kind,
        id: DocId::new(id)?,
        stamp: Stamp(stamp),
        document_type: String::new(),
        subtype: subtype.map(str::to_owned),
        body: Some(Arc::from(RawValue::from_string(body.to_string())?)),
    })
}

/// Records with consecutive places in the log.
struct Changes {
    last: usize,
}

impl Changes {
    fn record(&mut self, domain: &DomainId, documents: Vec<ChangedDocument>) -> Arc<ChangeRecord> {
        self.last += 1;
        Arc::new(ChangeRecord { position: self.position(), domain: domain.clone(), documents })
    }

    fn position(&self) -> Position {
        position(self.last)
    }

    /// Stamps are those of the places in the log, behind all that was stored.
    fn stamp(&self) -> i64 {
        i64::try_from(self.last).unwrap_or(i64::MAX) + 2_000_000_000
    }
}

async fn timed(live: &Live, record: &Arc<ChangeRecord>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    live.say(SourceEvent::Records(vec![Arc::clone(record)])).await?;
    live.visible(&record.domain, record.position).await?;
    Ok(started.elapsed())
}

/// A case of 2 kB and 40 properties.
fn case(domain: &DomainId, number: usize, version: usize) -> Value {
    let mut body = json!({"_id": format!("case-{number:08}"), "domain": domain.as_str(), "doc_type": "CommCareCase", "type": "kind",
        "name": format!("Case number {number}"), "owner_id": format!("worker-{}", number % 500), "closed": false,
        "opened_on": "2024-01-01T00:00:00.000000Z", "modified_on": "2024-01-01T00:00:00.000000Z", "indices": [],
        "weight": format!("{}.5", number % 90), "visits": version.to_string(), "status": "open"});
    if let Some(fields) = body.as_object_mut() {
        for property in 0..28 {
            let text = format!("value {} of property {property}, a little text", (number * 31 + property) % 9973);
            fields.insert(format!("property_{property:02}"), Value::from(text));
        }
    }
    body
}

/// A data source over such cases with twenty indicators.
fn twenty(domain: &DomainId, table: &str) -> Value {
    let raw = |name: String, datatype: &str| json!({"type": "raw", "column_id": name, "datatype": datatype, "property_name": name});
    let mut indicators: Vec<Value> = (0..15).map(|number| raw(format!("property_{number:02}"), "string")).collect();
    indicators.push(raw("weight".to_owned(), "decimal"));
    indicators.push(raw("visits".to_owned(), "integer"));
    indicators.push(raw("opened_on".to_owned(), "date"));
    for status in ["open", "closed"] {
        indicators.push(json!({"type": "boolean", "column_id": format!("is_{status}"), "filter":
            {"type": "boolean_expression", "operator": "eq", "property_value": status,
             "expression": {"type": "property_name", "property_name": "status"}}}));
    }
    json!({"doc_type": "DataSourceConfiguration", "domain": domain.as_str(), "table_id": table,
        "referenced_doc_type": "CommCareCase", "configured_indicators": indicators,
        "configured_filter": {"type": "boolean_expression", "operator": "eq", "property_value": "kind",
            "expression": {"type": "property_name", "property_name": "type"}}})
}

/// A scan of so many such cases, made as they are read.
fn cases(domain: &DomainId, count: usize) -> impl Iterator<Item = Vec<BootstrapDocument>> + Send + 'static {
    let domain = domain.clone();
    (0..count.div_ceil(BATCH)).map(move |batch| {
        let numbers = batch * BATCH..count.min((batch + 1) * BATCH);
        let documents = numbers.filter_map(|number| {
            let id = format!("case-{number:08}");
            let document = changed(DocKind::Case, &id, Some("kind"), 1_000_000, &case(&domain, number, 0)).ok()?;
            Some(BootstrapDocument { domain: domain.clone(), document })
        });
        documents.collect()
    })
}

fn rows(snapshot: &Snapshot, domain: &DomainId, schema: &str, name: &str) -> usize {
    let tables = snapshot.domains.get(domain).map(|domain| &domain.tables);
    tables.and_then(|tables| tables.get(&TableName::new(schema, name))).map_or(0, |table| table.live_rows)
}

/// A number of `/proc/self/status`, in MB.
fn memory(name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(found.context("/proc/self/status says nothing of memory")? / 1024.0)
}

/// CPU time of this process, in seconds.
fn cpu() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/schedstat")?;
    let tasks = std::fs::read_dir("/proc/self/task")?;
    let own = |text: String| text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0);
    let of_tasks = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    let total: f64 = of_tasks.map(own).sum();
    Ok(if total > 0.0 { total } else { own(stat) } / 1e9)
}

/// So many views over a hundred thousand documents, one of which changes that twenty of them show.
async fn views(count: usize) -> anyhow::Result<()> {
    const SHOWN_BY: usize = 20;
    const DOCUMENTS: usize = 100_000;
    let domain = domain(sample::DOMAIN)?;
    let groups = count / SHOWN_BY;
    let document = |number: usize, version: usize| {
        json!({"_id": format!("case-{number}"), "domain": domain.as_str(), "doc_type": "CommCareCase", "type": "kind",
            "name": format!("Case {number}"), "group": format!("g{}", number % groups), "visits": version.to_string(),
            "status": "open", "indices": []})
    };
    let compare = |operator: &str, property: &str, value: String| {
        json!({"type": "boolean_expression", "operator": operator, "property_value": value,
            "expression": {"type": "property_name", "property_name": property}})
    };
    let source = |number: usize| {
        let raw = |name: &str| json!({"type": "raw", "column_id": name, "datatype": "string", "property_name": name});
        json!({"doc_type": "DataSourceConfiguration", "domain": domain.as_str(), "table_id": format!("source_{number}"),
            "referenced_doc_type": "CommCareCase", "configured_indicators": [raw("name"), raw("visits"), raw("status")],
            "configured_filter": {"type": "and", "filters": [
                compare("eq", "group", format!("g{}", number % groups)),
                compare("not_eq", "status", format!("without-{number}"))]}})
    };
    let empty = memory("VmRSS:")?;
    let mut stored = Vec::new();
    for number in 0..count {
        stored.push(changed(DocKind::DataSource, &format!("source_{number}"), None, 1, &source(number))?);
    }
    let idle = Live::start(stored.clone(), 0)?;
    idle.settled().await?;
    let each = (memory("VmRSS:")? - empty) * 1024.0 / count as f64;
    idle.dataflow.shutdown().await;
    for number in 0..DOCUMENTS {
        stored.push(changed(DocKind::Case, &format!("case-{number}"), Some("kind"), 1, &document(number, 0))?);
    }
    let started = Instant::now();
    let live = Live::start(stored, 0)?;
    live.settled().await?;
    let installed = started.elapsed();
    let mut log = Changes { last: 0 };
    let mut touched = Vec::new();
    for event in 0..EVENTS {
        let number = event * 37 % DOCUMENTS;
        let document =
            changed(DocKind::Case, &format!("case-{number}"), Some("kind"), log.stamp(), &document(number, event + 1))?;
        touched.push(timed(&live, &log.record(&domain, vec![document])).await?);
    }
    let mut idle = Vec::new();
    for _ in 0..EVENTS {
        idle.push(live.idle_tick().await?);
    }
    live.dataflow.shutdown().await;
    line(
        &format!("start over {count} views and {DOCUMENTS} documents"),
        &format!("{:.1} s; {each:.1} kB each while empty", installed.as_secs_f64()),
        "≤ 10 kB",
    );
    line("· changed document that 20 of them show", &shown(touched), "≤ 0.3 ms");
    line("· idle tick", &shown(idle), "≤ 0.05 ms");
    Ok(())
}

/// Workers at a place, in a data source that shows the place's name.
fn at_place(domain: &DomainId, workers: usize) -> anyhow::Result<Vec<ChangedDocument>> {
    let name = json!({"type": "related_doc", "related_doc_type": "Location",
        "doc_id_expression": {"type": "property_name", "property_name": "location_id"},
        "value_expression": {"type": "property_name", "property_name": "name"}});
    let source = json!({"doc_type": "DataSourceConfiguration", "domain": domain.as_str(), "table_id": "at",
        "referenced_doc_type": "CommCareUser", "configured_filter": {}, "configured_indicators": [
            {"type": "expression", "column_id": "place", "datatype": "string", "expression": name},
            {"type": "raw", "column_id": "username", "datatype": "string", "property_name": "username"}]});
    let mut stored = vec![changed(DocKind::DataSource, "at", None, 1, &source)?, named(domain, 0, 1)?];
    for number in 0..workers {
        stored.push(worker(domain, number, 1)?);
    }
    Ok(stored)
}

fn worker(domain: &DomainId, number: usize, stamp: i64) -> anyhow::Result<ChangedDocument> {
    let id = format!("worker-{number}");
    let body = json!({"_id": id, "domain": domain.as_str(), "doc_type": "CommCareUser", "username": id, "location_id": "place"});
    changed(DocKind::User, &id, None, stamp, &body)
}

fn named(domain: &DomainId, version: usize, stamp: i64) -> anyhow::Result<ChangedDocument> {
    let body =
        json!({"_id": "place", "domain": domain.as_str(), "doc_type": "Location", "name": format!("Place {version}")});
    changed(DocKind::Location, "place", None, stamp, &body)
}

/// A location whose name so many rows show is named anew.
async fn place(workers: usize, times: usize) -> anyhow::Result<()> {
    let domain = domain(sample::DOMAIN)?;
    let live = Live::start(at_place(&domain, workers)?, 0)?;
    live.settled().await?;
    let mut log = Changes { last: 0 };
    let mut took = Vec::new();
    for version in 1..=times {
        let document = named(&domain, version, log.stamp())?;
        took.push(timed(&live, &log.record(&domain, vec![document])).await?);
    }
    anyhow::ensure!(rows(&live.dataflow.snapshot(), &domain, "ucr", "at") == workers, "rows are missing");
    live.dataflow.shutdown().await;
    line(&format!("a location is named anew that {workers} rows show: all are published"), &shown(took), "≤ 40 ms");
    Ok(())
}

/// The same with very many rows, while another domain's changes go on.
async fn fan_out(workers: usize) -> anyhow::Result<()> {
    let (many, few) = (domain(sample::DOMAIN)?, domain("few")?);
    let stored = at_place(&many, workers)?.into_iter().map(|document| (many.clone(), document));
    let stored = stored.chain(at_place(&few, 100)?.into_iter().map(|document| (few.clone(), document)));
    let stored: Vec<_> = stored.map(|(domain, document)| vec![BootstrapDocument { domain, document }]).collect();
    let live = Live::open(Start { scan: Box::new(stored.into_iter()), ..Start::default() })?;
    live.settled().await?;
    let mut log = Changes { last: 0 };
    let mut alone = Vec::new();
    for number in 0..EVENTS {
        let document = worker(&few, number % 100, log.stamp())?;
        alone.push(timed(&live, &log.record(&few, vec![document])).await?);
    }
    let document = named(&many, 1, log.stamp())?;
    let renamed = log.record(&many, vec![document]);
    let started = Instant::now();
    live.say(SourceEvent::Records(vec![Arc::clone(&renamed)])).await?;
    let mut beside = Vec::new();
    while !live.dataflow.snapshot().moment_of(&many).complete_through.covers(renamed.position) {
        let document = worker(&few, beside.len() % 100, log.stamp())?;
        beside.push(timed(&live, &log.record(&few, vec![document])).await?);
    }
    let took = started.elapsed();
    live.dataflow.shutdown().await;
    line(&format!("the same with {workers} rows"), &format!("{:.1} s", took.as_secs_f64()), "");
    line("· a change in another domain, before", &shown(alone), "");
    line("· and meanwhile", &shown(beside), "p99 ≤ 2 × before");
    Ok(())
}

/// CPU seconds of a change over so many documents.
async fn change_cost(documents: usize) -> anyhow::Result<f64> {
    const CHANGES: usize = 50_000;
    let domain = domain(sample::DOMAIN)?;
    let source = changed(DocKind::DataSource, "twenty", None, 1, &twenty(&domain, "twenty"))?;
    let definition = vec![BootstrapDocument { domain: domain.clone(), document: source }];
    let scan = std::iter::once(definition).chain(cases(&domain, documents));
    let live = Live::open(Start { scan: Box::new(scan), ..Start::default() })?;
    live.settled().await?;
    let mut log = Changes { last: 0 };
    let mut batches = Vec::new();
    for batch in 0..CHANGES / 500 {
        let mut records = Vec::new();
        for at in 0..500 {
            let number = (batch * 500 + at).wrapping_mul(7919) % documents;
            let body = case(&domain, number, batch + 1);
            let document = changed(DocKind::Case, &format!("case-{number:08}"), Some("kind"), log.stamp(), &body)?;
            records.push(log.record(&domain, vec![document]));
        }
        batches.push(records);
    }
    let before = cpu()?;
    for records in batches {
        live.follow(&records).await?;
    }
    let used = cpu()? - before;
    anyhow::ensure!(rows(&live.dataflow.snapshot(), &domain, "ucr", "twenty") == documents, "rows are missing");
    live.dataflow.shutdown().await;
    Ok(used / CHANGES as f64)
}

/// A new data source over so many documents, while 500 changes come in each second.
async fn new_source(documents: usize) -> anyhow::Result<()> {
    let domain = domain(sample::DOMAIN)?;
    let empty = memory("VmRSS:")?;
    let live = Live::open(Start { scan: Box::new(cases(&domain, documents)), ..Start::default() })?;
    live.settled().await?;
    let with_documents = memory("VmRSS:")?;
    let mut log = Changes { last: 0 };
    let before = paced(&live, &domain, &mut log, documents, |_, since| since > Duration::from_secs(5)).await?;
    let source = changed(DocKind::DataSource, "twenty", None, log.stamp(), &twenty(&domain, "twenty"))?;
    let record = log.record(&domain, vec![source]);
    let started = Instant::now();
    live.say(SourceEvent::Records(vec![record])).await?;
    let complete = |snapshot: &Snapshot, _| rows(snapshot, &domain, "ucr", "twenty") == documents;
    let meanwhile = paced(&live, &domain, &mut log, documents, complete).await?;
    let took = started.elapsed();
    let with_table = memory("VmRSS:")?;
    live.dataflow.shutdown().await;
    let each = |mb: f64| mb * 1024.0 * 1024.0 / documents as f64;
    line(
        &format!("{documents} case documents of 2 kB JSON in memory, with their built-in table"),
        &format!("{:.0} bytes each", each(with_documents - empty)),
        "≤ 1,200",
    );
    line(
        "a new data source with 20 indicators over them, beside 500 changes/s: complete",
        &format!("{:.1} s; {:.0} bytes a row", took.as_secs_f64(), each(with_table - with_documents)),
        "≤ 10 s",
    );
    line("· changes before", &shown(before), "");
    line("· changes meanwhile", &shown(meanwhile), "p99 ≤ 2 × before");
    Ok(())
}

/// Sends 500 changes a second until `done`; how long each took from when it was due.
async fn paced(
    live: &Live,
    domain: &DomainId,
    log: &mut Changes,
    documents: usize,
    done: impl Fn(&Snapshot, Duration) -> bool,
) -> anyhow::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut took = Vec::new();
    while !done(&live.dataflow.snapshot(), began.elapsed()) {
        anyhow::ensure!(began.elapsed() < Duration::from_secs(300), "it does not end");
        let due = |number: usize| Ok::<_, anyhow::Error>(began + Duration::from_millis(2) * u32::try_from(number)?);
        tokio::time::sleep_until(due(took.len())?.into()).await;
        // Whatever is due by now, however long the last ones took.
        let mut records = Vec::new();
        while due(took.len() + records.len())? <= Instant::now() {
            let change = took.len() + records.len();
            let number = change.wrapping_mul(7919) % documents;
            let body = case(domain, number, change + 1);
            let document = changed(DocKind::Case, &format!("case-{number:08}"), Some("kind"), log.stamp(), &body)?;
            records.push(log.record(domain, vec![document]));
        }
        live.follow(&records).await?;
        for change in took.len()..took.len() + records.len() {
            took.push(due(change)?.elapsed());
        }
    }
    Ok(took)
}

/// Blobs as files.
#[derive(Debug)]
struct Files(PathBuf);

#[async_trait]
impl CheckpointStore for Files {
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointStoreError> {
        let (part, path) = (self.0.join(format!("{name}.part")), self.0.join(name));
        std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path)).map_err(failed("write", name))
    }
    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointStoreError> {
        match std::fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", name)(error)),
        }
    }
    async fn list(&self) -> Result<Vec<String>, CheckpointStoreError> {
        let entries = std::fs::read_dir(&self.0).map_err(failed("list", "."))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
    async fn delete(&self, name: &str) -> Result<(), CheckpointStoreError> {
        std::fs::remove_file(self.0.join(name)).map_err(failed("delete", name))
    }
}

fn failed(doing: &'static str, name: &str) -> impl Fn(std::io::Error) -> CheckpointStoreError {
    move |error| CheckpointStoreError { doing, name: name.to_owned(), problem: error.to_string() }
}

/// Forms of each domain of the restart, and how many such domains there are: 1.7 million forms and a million cases.
const FORMS: u64 = 100_000;
const DOMAINS: usize = 17;

/// The sample program in so many domains, as it stands after its forms.
fn programs() -> anyhow::Result<impl Iterator<Item = Vec<BootstrapDocument>> + Send + 'static> {
    let (log, _) = Log::generate(FORMS)?;
    let present: Arc<[ChangedDocument]> = log.present().into();
    Ok((0..DOMAINS).flat_map(move |number| {
        let present = Arc::clone(&present);
        let batches = present.len().div_ceil(BATCH);
        (0..batches).map(move |batch| {
            let documents = present.iter().skip(batch * BATCH).take(BATCH);
            documents.filter_map(|document| in_domain(document, &format!("demo-{number}"))).collect()
        })
    }))
}

fn in_domain(document: &ChangedDocument, name: &str) -> Option<BootstrapDocument> {
    let domain = DomainId::new(name).ok()?;
    let own = |body: &Arc<RawValue>| {
        let text = body.get().replacen(&format!("\"{}\"", sample::DOMAIN), &format!("\"{name}\""), 1);
        RawValue::from_string(text).ok().map(Arc::from)
    };
    let body = document.body.as_ref().and_then(own);
    Some(BootstrapDocument { domain, document: ChangedDocument { body, ..document.clone() } })
}

/// Counts of what is shown, over all domains.
fn counts(snapshot: &Snapshot) -> anyhow::Result<[usize; 5]> {
    let mut counts = [0; 5];
    for number in 0..DOMAINS {
        let domain = domain(&format!("demo-{number}"))?;
        let of = |schema, name| rows(snapshot, &domain, schema, name);
        let own = [
            of("system", "form_documents"),
            of("system", "case_documents"),
            of("ucr", "pregnancies"),
            of("ucr", "children"),
            of("views", "districts"),
        ];
        counts.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    Ok(counts)
}

/// Writes a checkpoint, and lets a process of its own start from it.
async fn restart() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let files: Arc<dyn CheckpointStore> = Arc::new(Files(directory.path().to_owned()));
    let config = DataflowConfig { checkpoint_interval_ms: 1_000, ..DataflowConfig::default() };
    let started = Instant::now();
    let live = Live::open(Start {
        scan: Box::new(programs()?),
        config,
        checkpoints: Some(Arc::clone(&files)),
        ..Start::default()
    })?;
    live.settled().await?;
    let scanned = started.elapsed();
    let started = Instant::now();
    while files.get("manifest.json").await?.is_none() {
        anyhow::ensure!(started.elapsed() < Duration::from_secs(600), "no checkpoint is written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let written = started.elapsed();
    let steady = memory("VmRSS:")?;
    let [forms, cases, pregnancies, children, districts] = counts(&live.dataflow.snapshot())?;
    live.dataflow.shutdown().await;
    let bytes: u64 =
        std::fs::read_dir(directory.path())?.flatten().filter_map(|f| Some(f.metadata().ok()?.len())).sum();
    line(
        &format!("start over {cases} cases and {forms} forms of {DOMAINS} domains with W1-W5, without a checkpoint"),
        &format!("{:.1} s", scanned.as_secs_f64()),
        "",
    );
    line("· first checkpoint", &format!("{:.1} s, {} MB", written.as_secs_f64(), bytes / 1_000_000), "");
    let own = std::env::current_exe()?;
    let output = std::process::Command::new(own).args(["--bench", "restarted"]).arg(directory.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_str(&said)?;
    let expected = json!([forms, cases, pregnancies, children, districts]);
    anyhow::ensure!(figures["counts"] == expected, "{} instead of {expected}", figures["counts"]);
    let figure = |name: &str| figures[name].as_f64().unwrap_or(f64::NAN);
    line("· restart from it: answers are right", &format!("{:.1} s", figure("seconds")), "≤ 10 s");
    line(
        "· memory while restarting, and of the engine that read everything",
        &format!("{:.0} MB; {steady:.0} MB", figure("peak_mb")),
        "≤ 1.3 ×",
    );
    Ok(())
}

/// Starts from the checkpoint in a directory and says how long it took.
async fn restarted(directory: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let files: Arc<dyn CheckpointStore> = Arc::new(Files(directory.to_owned()));
    let live = Live::open(Start { checkpoints: Some(files), ..Start::default() })?;
    live.settled().await?;
    let seconds = started.elapsed().as_secs_f64();
    let counts = counts(&live.dataflow.snapshot())?;
    println!(
        "{}",
        json!({"seconds": seconds, "peak_mb": memory("VmHWM:")?, "rss_mb": memory("VmRSS:")?, "counts": counts})
    );
    live.dataflow.shutdown().await;
    Ok(())
}
