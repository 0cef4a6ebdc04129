//! `millrace bench`: parts of the pipeline measured alone.
//!
//! `bench views` is the dataflow without Postgres and HTTP: recorded change records go through the same change type,
//! source port, plan and view documents as in `serve`. [`log`] reads the records, [`pace`] sends at a rate and watches a
//! table, [`dump`] writes the tables.

mod dump;
mod log;
mod pace;
mod usage;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use dataflow::{DataflowConfig, Workers};
use hdrhistogram::Histogram;
use schemas::port::SystemClock;
use serde::Serialize;
use tokio::sync::mpsc;

use self::{
    log::{Reader, Transaction},
    pace::Fresh,
    usage::Usage,
};
use crate::{
    cli::say,
    pipeline::{self, Pipeline},
};

/// Transactions read ahead of the one that is due.
const READ_AHEAD: usize = 512;
/// Transactions handed over at a time while no rate is kept.
const BATCH: usize = 64;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure the views alone, without Postgres and HTTP, on recorded change records
    Views(ViewsArgs),
}

/// Arguments of `bench views`.
#[derive(Debug, Args)]
pub(crate) struct ViewsArgs {
    /// Change records, one JSON object a line
    #[arg(long, value_name = "FILE")]
    changes: PathBuf,
    /// Feed all records as fast as they are taken
    #[arg(long, conflicts_with_all = ["preload", "rate", "seconds"], required_unless_present = "rate")]
    backfill: bool,
    /// Records fed as fast as they are taken before the measured ones
    #[arg(long, value_name = "RECORDS", default_value_t = 0)]
    preload: u64,
    /// Records a second, each due at its time whether or not the views have kept up
    #[arg(long, value_name = "RECORDS", requires = "seconds", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How long to send at that rate
    #[arg(long, value_name = "SECONDS", requires = "rate", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,
    /// Threads that keep the tables
    #[arg(long, value_name = "THREADS", default_value = "1")]
    workers: Workers,
    /// Directory for the final tables
    #[arg(long, value_name = "DIR")]
    dump: PathBuf,
}

/// The line that is printed. Freshness is null in a backfill, where no record has a time at which it is due. How the changes
/// were shared out is said of several workers.
#[derive(Debug, Serialize)]
struct Figures {
    changes: u64,
    changes_per_s: f64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    kept_up: Option<bool>,
    cpu_s: f64,
    peak_rss_mb: f64,
    #[serde(flatten)]
    shares: Option<Shares>,
}

/// How the measured changes were shared out among the workers.
#[derive(Debug, Serialize)]
struct Shares {
    worker_records: Vec<u64>,
    /// The greatest share as a multiple of an even one.
    skew: f64,
}

/// Runs the subcommand.
///
/// # Errors
/// The records cannot be read, a view cannot be built, or the tables cannot be written.
pub(crate) async fn run(command: BenchCommand) -> anyhow::Result<ExitCode> {
    let BenchCommand::Views(args) = command;
    let reader = Reader::open(&args.changes)?;
    std::fs::create_dir_all(&args.dump).with_context(|| format!("could not make {}", args.dump.display()))?;
    let domain = reader.domain().clone();
    let config = DataflowConfig { workers: args.workers, ..DataflowConfig::default() };
    let pipeline = Pipeline::start(config, pipeline::sample_program(&domain)?, Arc::new(SystemClock));
    pipeline.live(&domain).await?;
    let figures = match args.rate.zip(args.seconds) {
        None => backfill(reader, &pipeline).await?,
        Some((rate, seconds)) => paced(reader, &pipeline, args.preload, rate, seconds).await?,
    };
    dump::tables(&pipeline.snapshot(), &domain, &args.dump)?;
    pipeline.stop().await;
    say(serde_json::to_string(&figures)?);
    Ok(ExitCode::SUCCESS)
}

/// All records, from the first line read to the snapshot that shows the last one.
async fn backfill(reader: Reader, pipeline: &Pipeline) -> anyhow::Result<Figures> {
    let (usage, started) = (Usage::now()?, Instant::now());
    let mut transactions = read_ahead(reader);
    let changes = feed(pipeline, &mut transactions, u64::MAX).await?;
    let mut figures = Figures::new(changes, started.elapsed(), &usage)?;
    figures.shares = Shares::since(&[], pipeline);
    Ok(figures)
}

/// A part of the records unmeasured, and those behind it at a rate.
async fn paced(reader: Reader, pipeline: &Pipeline, preload: u64, rate: u32, seconds: u32) -> anyhow::Result<Figures> {
    let domain = reader.domain().clone();
    let mut transactions = read_ahead(reader);
    feed(pipeline, &mut transactions, preload).await?;
    let (usage, limit) = (Usage::now()?, u64::from(rate) * u64::from(seconds));
    let preloaded = pipeline.worker_records();
    let Fresh { changes, took, sending, freshness } = pace::send(pipeline, &domain, transactions, rate, limit).await?;
    let mut figures = Figures::new(changes, took, &usage)?;
    figures.kept_up = Some(took <= sending.mul_f64(1.1) + Duration::from_secs(1));
    figures.show(&freshness);
    figures.shares = Shares::since(&preloaded, pipeline);
    Ok(figures)
}

/// Reads on a thread of its own: what is parsed there costs the dataflow's thread nothing.
fn read_ahead(mut reader: Reader) -> mpsc::Receiver<anyhow::Result<Transaction>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        while let Some(transaction) = reader.next().transpose() {
            let failed = transaction.is_err();
            if sender.blocking_send(transaction).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Feeds transactions until so many changes are fed or none is left, and waits until the last is visible. Returns the
/// number of changes.
async fn feed(
    pipeline: &Pipeline,
    transactions: &mut mpsc::Receiver<anyhow::Result<Transaction>>,
    limit: u64,
) -> anyhow::Result<u64> {
    let mut changes = 0;
    let mut last = None;
    let mut records = Vec::with_capacity(BATCH);
    while changes < limit
        && let Some(transaction) = transactions.recv().await
    {
        let transaction = transaction?;
        changes += transaction.changes();
        last = Some((transaction.record.domain.clone(), transaction.record.position));
        records.push(transaction.record);
        if records.len() == BATCH {
            pipeline.send(std::mem::replace(&mut records, Vec::with_capacity(BATCH))).await?;
        }
    }
    if !records.is_empty() {
        pipeline.send(records).await?;
    }
    if let Some((domain, last)) = last {
        pipeline.visible(&domain, last).await?;
    }
    Ok(changes)
}

impl Figures {
    fn new(changes: u64, took: Duration, since: &Usage) -> anyhow::Result<Self> {
        let usage = Usage::now()?;
        Ok(Self {
            changes,
            changes_per_s: rounded(changes as f64 / took.as_secs_f64()),
            p50_ms: None,
            p95_ms: None,
            p99_ms: None,
            max_ms: None,
            kept_up: None,
            cpu_s: rounded((usage.cpu - since.cpu).as_secs_f64()),
            peak_rss_mb: rounded(usage.peak_bytes as f64 / 1e6),
            shares: None,
        })
    }

    /// Adds the percentiles of a histogram of microseconds.
    fn show(&mut self, freshness: &Histogram<u64>) {
        let millis = |micros: u64| Some(rounded(micros as f64 / 1e3));
        self.p50_ms = millis(freshness.value_at_quantile(0.50));
        self.p95_ms = millis(freshness.value_at_quantile(0.95));
        self.p99_ms = millis(freshness.value_at_quantile(0.99));
        self.max_ms = millis(freshness.max());
    }
}

impl Shares {
    /// What several workers have taken in beyond `before`.
    fn since(before: &[u64], pipeline: &Pipeline) -> Option<Self> {
        let mut worker_records = pipeline.worker_records();
        for (now, before) in worker_records.iter_mut().zip(before) {
            *now -= before;
        }
        let (most, all) = (*worker_records.iter().max()?, worker_records.iter().sum::<u64>().max(1));
        let skew = rounded(most as f64 * worker_records.len() as f64 / all as f64);
        (worker_records.len() > 1).then_some(Self { worker_records, skew })
    }
}

/// Three digits behind the point.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
