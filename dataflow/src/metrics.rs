//! What operators watch: ticks, records, freshness.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::config::Workers;

/// Documents that each worker has taken in; how evenly the work is shared out.
#[derive(Clone, Debug)]
pub(crate) struct WorkerRecords(Arc<[AtomicU64]>);

impl WorkerRecords {
    pub(crate) fn new(workers: Workers) -> Self {
        Self((0..workers.count()).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

/// Handles, made once.
#[derive(Clone)]
pub(crate) struct Metrics {
    ticks: Counter,
    documents: Counter,
    records: WorkerRecords,
    worker_records: Vec<Counter>,
    walked: Counter,
    tick_seconds: Histogram,
    freshness: Gauge,
    errors: Gauge,
}

impl Metrics {
    pub(crate) fn new(records: WorkerRecords) -> Self {
        describe_counter!("millrace_dataflow_ticks_total", "Ticks run.");
        describe_counter!("millrace_dataflow_records_total", "Change records and scanned documents taken in.");
        describe_counter!("millrace_dataflow_worker_records_total", "Documents taken in by each worker.");
        describe_counter!("millrace_dataflow_walked_total", "Documents and rows walked for views being built.");
        describe_histogram!("millrace_dataflow_tick_seconds", "Time of one tick, from batch to published tables.");
        describe_gauge!(
            "millrace_dataflow_freshness_seconds",
            "Publication time minus the newest published commit time, at the last publication that brought changes."
        );
        describe_gauge!("millrace_dataflow_view_errors", "Documents that a view could not evaluate.");
        Self {
            ticks: counter!("millrace_dataflow_ticks_total"),
            documents: counter!("millrace_dataflow_records_total"),
            worker_records: (0..records.0.len())
                .map(|worker| counter!("millrace_dataflow_worker_records_total", "worker" => worker.to_string()))
                .collect(),
            records,
            walked: counter!("millrace_dataflow_walked_total"),
            tick_seconds: histogram!("millrace_dataflow_tick_seconds"),
            freshness: gauge!("millrace_dataflow_freshness_seconds"),
            errors: gauge!("millrace_dataflow_view_errors"),
        }
    }

    pub(crate) fn tick(&self, took: Duration, live: usize, walked: usize) {
        self.ticks.increment(1);
        self.documents.increment(u64::try_from(live).unwrap_or_default());
        self.walked.increment(u64::try_from(walked).unwrap_or_default());
        self.tick_seconds.record(took);
    }

    /// Counts documents on their way to a worker.
    pub(crate) fn taken(&self, worker: usize, documents: usize) {
        let documents = u64::try_from(documents).unwrap_or_default();
        if let Some((counter, count)) = self.worker_records.get(worker).zip(self.records.0.get(worker)) {
            counter.increment(documents);
            count.fetch_add(documents, Ordering::Relaxed);
        }
    }

    pub(crate) fn published(&self, as_of: i64, newest: i64, errors: usize) {
        let behind = u64::try_from(as_of - newest).unwrap_or_default();
        self.freshness.set(Duration::from_micros(behind).as_secs_f64());
        self.errors.set(f64::from(u32::try_from(errors).unwrap_or(u32::MAX)));
    }
}

/// What is told of checkpoints.
#[derive(Clone)]
pub(crate) struct CheckpointMetrics {
    seconds: Histogram,
    bytes: Counter,
    failures: Counter,
    newest: Gauge,
}

impl CheckpointMetrics {
    pub(crate) fn new() -> Self {
        describe_histogram!("millrace_dataflow_checkpoint_seconds", "Time from a checkpoint's begin to its manifest.");
        describe_counter!("millrace_dataflow_checkpoint_bytes_total", "Bytes written for checkpoints.");
        describe_counter!("millrace_dataflow_checkpoint_failures_total", "Checkpoints that could not be written.");
        describe_gauge!("millrace_dataflow_checkpoint_timestamp_seconds", "When the newest checkpoint was written.");
        Self {
            seconds: histogram!("millrace_dataflow_checkpoint_seconds"),
            bytes: counter!("millrace_dataflow_checkpoint_bytes_total"),
            failures: counter!("millrace_dataflow_checkpoint_failures_total"),
            newest: gauge!("millrace_dataflow_checkpoint_timestamp_seconds"),
        }
    }

    pub(crate) fn written(&self, took: Duration, bytes: u64) {
        self.seconds.record(took);
        self.bytes.increment(bytes);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.newest.set(now.unwrap_or_default().as_secs_f64());
    }

    pub(crate) fn failed(&self) {
        self.failures.increment(1);
    }
}
