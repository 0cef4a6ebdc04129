//! `millrace ucr test`: the language and the dataflow held against files of vectors and scenarios.
//!
//! A line is one vector or one scenario, told apart by their keys. Their format is described beside them; configurations
//! that they name lie in `configs/` beside the file, or where `--configs` says.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use serde_json::Value as Json;

use super::{
    live::Live,
    scenario,
    vector::{self, NOW, Rebuilt, Verdict},
};
use crate::cli::say;

/// What the original does and Millrace does not on purpose: an id and the reason a line.
const DEVIATIONS: &str = include_str!("deviations.txt");

/// Arguments of `ucr test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Files of vectors or freshness scenarios, one JSON object a line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Directory of the configurations that they name [default: `configs` beside each file]
    #[arg(long, value_name = "DIR")]
    configs: Option<PathBuf>,
}

/// What came of a line.
enum Outcome {
    Passed,
    Failed(String),
    /// It differs as the list of deviations says.
    Deviates(&'static str),
    /// This release does not run that kind.
    NotRun(String),
}

/// Running dataflows by where their clocks stand, and what has come out so far.
#[derive(Default)]
struct Suite {
    live: BTreeMap<i64, Live>,
    passed: usize,
    failed: usize,
    deviating: usize,
    not_run: BTreeMap<String, usize>,
}

/// Runs the files, printing each failure; fails if there was one.
///
/// # Errors
/// A file cannot be read.
pub(crate) async fn run(args: TestArgs) -> anyhow::Result<ExitCode> {
    let mut suite = Suite::default();
    for file in &args.files {
        let configs = args.configs.clone().unwrap_or_else(|| file.with_file_name("configs"));
        suite.file(file, &configs).await.with_context(|| format!("could not read {}", file.display()))?;
    }
    for live in std::mem::take(&mut suite.live).into_values() {
        live.stop().await;
    }
    for (kind, count) in &suite.not_run {
        say(format_args!("{count} of kind `{kind}` not run: this release does not have it yet"));
    }
    if suite.deviating > 0 {
        say(format_args!("{} differ from the original on purpose", suite.deviating));
    }
    say(format_args!("{} passed, {} failed", suite.passed, suite.failed));
    Ok(if suite.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Suite {
    async fn file(&mut self, path: &Path, configs: &Path) -> anyhow::Result<()> {
        for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let place = || format!("{}:{}", path.display(), number + 1);
            let (id, outcome) = match serde_json::from_str::<Json>(&line) {
                Ok(json) => {
                    let id = json["id"].as_str().map_or_else(place, str::to_owned);
                    let outcome = self.line(&id, &json, configs).await;
                    (id, outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))))
                }
                Err(error) => (place(), Outcome::Failed(format!("not valid JSON: {error}"))),
            };
            self.count(&id, outcome);
        }
        Ok(())
    }

    fn count(&mut self, id: &str, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(difference) => {
                self.failed += 1;
                say(format_args!("FAILED {id}: {difference}"));
            }
            Outcome::Deviates(reason) => {
                self.deviating += 1;
                say(format_args!("differs {id}: {reason}"));
            }
            Outcome::NotRun(kind) => *self.not_run.entry(kind).or_default() += 1,
        }
    }

    async fn line(&mut self, id: &str, json: &Json, configs: &Path) -> anyhow::Result<Outcome> {
        let judged = if json.get("events").is_some() {
            let definition = vector::config(configs, vector::text(json, "config")?)?;
            scenario::run(json, &definition, self.at(NOW)).await?
        } else {
            match vector::run(json, configs)? {
                Verdict::NotRun => return Ok(Outcome::NotRun(vector::text(json, "kind")?.to_owned())),
                Verdict::Judged(judged) => judged,
                Verdict::Rows(rebuilt) => self.maintained(*rebuilt).await?,
            }
        };
        Ok(match (judged, deviation(id)) {
            (Ok(()), None) => Outcome::Passed,
            (Err(_), Some(reason)) => Outcome::Deviates(reason),
            (Err(difference), None) => Outcome::Failed(difference),
            (Ok(()), Some(_)) => Outcome::Failed("it is listed as a deviation and does not deviate".to_owned()),
        })
    }

    /// The dataflow whose clock stands there.
    fn at(&mut self, now: i64) -> &mut Live {
        self.live.entry(now).or_insert_with(|| Live::start(now))
    }

    /// Whether the dataflow has the rows that were computed from scratch. The document comes first, so that what it reads
    /// changes after it. A deactivated data source has no table.
    async fn maintained(&mut self, rebuilt: Rebuilt) -> anyhow::Result<Result<(), String>> {
        let Rebuilt { source, definition, store, id, document, rows, now } = rebuilt;
        if source.is_deactivated() {
            return Ok(Ok(()));
        }
        let live = self.at(now);
        let mut installed = live.install(&definition).await?;
        live.change(&mut installed, vec![(source.kind(), id.clone(), Some(document))]).await?;
        let related = store.carried().into_iter().filter(|related| (related.kind, &related.id) != (source.kind(), &id));
        for related in related {
            live.change(&mut installed, vec![(related.kind, related.id, Some(related.body))]).await?;
        }
        Ok(live.difference(&installed, &source, Some(&id), rows).await?.map_or(Ok(()), Err))
    }
}

/// The deviations with their reasons.
fn deviations() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = DEVIATIONS.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(id, reason)| (id, reason.trim()))
}

/// Why a vector or scenario may differ, if it may.
fn deviation(id: &str) -> Option<&'static str> {
    deviations().find(|(listed, _)| *listed == id).map(|(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_few_and_have_reasons() {
        assert!(deviations().count() <= 10);
        assert!(deviations().all(|(_, reason)| reason.len() > 10));
    }
}
