//! What `/status.json` says about a snapshot.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{
    sample,
    table::{DomainTables, Snapshot, Table, TableName},
    time::format_micros,
};
use serde_json::{Map, Value, json};

use super::sampler::{History, newest_stamp};

/// Most tables and views listed.
const LISTED: usize = 200;
/// Counters and gauges shown, by the name the page gives them.
const METRICS: &[(&str, &str)] = &[
    ("forms_stored", "millrace_ingest_forms_total{outcome=\"normal\"}"),
    ("forms_edited", "millrace_ingest_forms_total{outcome=\"edited\"}"),
    ("forms_duplicate", "millrace_ingest_forms_total{outcome=\"duplicate\"}"),
    ("forms_failed", "millrace_ingest_forms_total{outcome=\"failed\"}"),
    ("refused_busy", "millrace_ingest_refused_busy_total"),
    ("resident_bytes", "millrace_process_resident_bytes"),
];

/// The JSON of a moment. `metrics` is the Prometheus text; `now` is microseconds since 1970 UTC.
pub(super) fn report(snapshot: &Snapshot, ready: bool, history: &History, metrics: &str, now: i64) -> Value {
    let domain = snapshot.domains.iter().find(|(domain, _)| domain.as_str() == sample::DOMAIN);
    let seen_at = domain.map_or(snapshot.sources_seen_at, |(domain, _)| snapshot.seen_at(domain));
    let domain = domain.map(|(_, tables)| tables);
    let (tables, views) = domain.map_or((Vec::new(), Vec::new()), |domain| (tables(snapshot, domain), views(domain)));
    json!({
        "now": now / 1000,
        "ready": ready,
        "tick": snapshot.tick,
        "as_of": format_micros(snapshot.as_of),
        "published_ms_ago": milliseconds(now - snapshot.as_of),
        "sources_seen_ms_ago": milliseconds(now - seen_at),
        "complete_through": snapshot.complete_through.to_string(),
        "domain": sample::DOMAIN,
        "domains": snapshot.domains.len(),
        "errors": errors(snapshot),
        "tables": tables,
        "views": views,
        "metrics": shown(metrics),
        "history": history.points(),
    })
}

const fn milliseconds(micros: i64) -> i64 {
    if micros < 0 { 0 } else { micros / 1000 }
}

fn errors(snapshot: &Snapshot) -> usize {
    snapshot.domains.values().flat_map(|domain| distinct(domain).into_values()).map(|(_, table)| table.errors).sum()
}

/// Each table once, under its shortest name.
fn distinct(domain: &DomainTables) -> BTreeMap<usize, (&TableName, &Table)> {
    let mut found: BTreeMap<usize, (&TableName, &Table)> = BTreeMap::new();
    for (name, table) in domain.tables.iter() {
        let entry = found.entry(Arc::as_ptr(table).addr()).or_insert((name, table));
        if name.name.len() < entry.0.name.len() {
            entry.0 = name;
        }
    }
    found
}

fn tables(snapshot: &Snapshot, domain: &DomainTables) -> Vec<Value> {
    let mut tables: Vec<_> = distinct(domain).into_values().collect();
    // The program's own tables first, those of the system behind them.
    tables.sort_by_key(|(name, _)| (&*name.schema == "system", *name));
    let object = |(name, table): (&TableName, &Table)| {
        json!({
            "name": name.to_string(),
            "rows": table.live_rows,
            "as_of": format_micros(snapshot.as_of),
            "newest": newest_stamp(table).map(format_micros),
            "errors": table.errors,
        })
    };
    tables.into_iter().take(LISTED).map(object).collect()
}

fn views(domain: &DomainTables) -> Vec<Value> {
    domain.views.iter().take(LISTED).map(|view| json!(view)).collect()
}

/// The chosen values of the Prometheus text; absent ones are left out.
fn shown(metrics: &str) -> Map<String, Value> {
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse::<f64>().ok().map(Value::from)
    };
    METRICS.iter().filter_map(|(shown, name)| Some(((*shown).to_owned(), value(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sampler::tests::snapshot;

    #[test]
    fn tables_are_listed_once_under_their_short_name() {
        let text =
            "# TYPE x counter\nmillrace_ingest_forms_total{outcome=\"normal\"} 42\nmillrace_ingest_forms_total_x 9\n";
        let report = report(&snapshot(5, 2_000_000, 9, 1_500_000), true, &History::default(), text, 2_250_000);
        assert_eq!(
            report["tables"],
            json!([{
                "name": "ucr.pregnancies", "rows": 7, "as_of": "1970-01-01T00:00:02.000000Z",
                "newest": "1970-01-01T00:00:01.500000Z", "errors": 2,
            }])
        );
        assert_eq!((&report["errors"], &report["published_ms_ago"]), (&json!(2), &json!(250)));
        assert_eq!(report["complete_through"], "m1.0-0.9");
        assert_eq!(report["metrics"], json!({"forms_stored": 42.0}));
    }
}
