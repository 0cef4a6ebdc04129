//! `millrace shards`: which database holds which shards, how large it is, how fast its lanes move and who reads them.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use ingest::{DatabaseState, DatabaseStatus, LaneStatus};
use serde_json::{Value, json};

use super::{ConfigArgs, account::Databases, say};

/// Arguments of `shards`.
#[derive(Debug, Args)]
pub(crate) struct ShardsArgs {
    /// Seconds over which the rate of each lane is measured
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Shows the databases. The exit code is a failure if one of them does not answer.
///
/// # Errors
/// The configuration cannot work.
pub(crate) async fn run(args: ShardsArgs) -> anyhow::Result<ExitCode> {
    let databases = Databases::reach(&args.config).await?;
    let shown = show(&args, &databases.config.ingest).await;
    databases.leave().await;
    Ok(if shown? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// True if every database answers.
async fn show(args: &ShardsArgs, config: &ingest::IngestConfig) -> anyhow::Result<bool> {
    let before = ingest::databases(config).await?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let after = ingest::databases(config).await?;
    let rate = |lane: &LaneStatus| {
        let was = before.iter().flat_map(lanes).find(|was| was.position.lane == lane.position.lane)?;
        let records = lane.position.sequence.0.saturating_sub(was.position.sequence.0);
        Some(f64::from(u32::try_from(records).unwrap_or(u32::MAX)) / f64::from(u32::try_from(args.seconds).ok()?))
    };
    if args.json {
        say(serde_json::to_string_pretty(&report(&after, rate)?)?);
    } else {
        say(table(&after, rate));
    }
    Ok(after.iter().all(|database| matches!(database.state, DatabaseState::Up { .. })))
}

fn lanes(database: &DatabaseStatus) -> &[LaneStatus] {
    match &database.state {
        DatabaseState::Up { lanes, .. } => lanes,
        DatabaseState::Down { .. } => &[],
    }
}

fn report(databases: &[DatabaseStatus], rate: impl Fn(&LaneStatus) -> Option<f64>) -> anyhow::Result<Value> {
    let mut report = serde_json::to_value(databases)?;
    for (database, shown) in databases.iter().zip(report.as_array_mut().into_iter().flatten()) {
        let shown = shown.get_mut("lanes").and_then(Value::as_array_mut);
        for (lane, shown) in lanes(database).iter().zip(shown.into_iter().flatten()) {
            if let Some(shown) = shown.as_object_mut() {
                shown.insert("records_per_second".to_owned(), json!(rate(lane)));
            }
        }
    }
    Ok(report)
}

fn table(databases: &[DatabaseStatus], rate: impl Fn(&LaneStatus) -> Option<f64>) -> String {
    let mut lines = vec![format!(
        "{:<9}{:<24}{:>8}{:>11}  {:<18}{:>10}{:>10}  readers (records behind)",
        "database", "shards", "domains", "size", "lane at", "records/s", "in outbox"
    )];
    for database in databases {
        let shards: Vec<String> = database.shards.iter().map(ToString::to_string).collect();
        let shards = if shards.is_empty() { "none".to_owned() } else { shards.join(" ") };
        let head = format!("{:<9}{shards:<24}", database.number);
        match &database.state {
            DatabaseState::Down { problem } => lines.push(format!("{head}  does not answer: {problem}")),
            DatabaseState::Up { domains, bytes, lanes } => {
                let head = format!("{head}{domains:>8}{:>11}", indicatif::HumanBytes(*bytes).to_string());
                let again = " ".repeat(head.chars().count());
                for (n, lane) in lanes.iter().enumerate() {
                    let head = if n == 0 { &head } else { &again };
                    let rate = rate(lane).map_or_else(|| "?".to_owned(), |rate| format!("{rate:.1}"));
                    let position = lane.position.to_string();
                    let readers = readers(lane);
                    lines.push(format!("{head}  {position:<18}{rate:>10}{:>10}  {readers}", lane.kept));
                }
            }
        }
    }
    lines.join("\n")
}

fn readers(lane: &LaneStatus) -> String {
    let shown = lane.readers.iter().map(|reader| match reader.must_bootstrap {
        true => format!("{} (must bootstrap)", reader.name),
        false => format!("{} ({})", reader.name, reader.behind),
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "none registered".to_owned() } else { shown.join(", ") }
}
