//! `millrace rebuild`: cases computed again from their stored transactions, beside a running server or without one.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use ingest::{Ingest, WriteError};
use schemas::id::{CaseId, DomainId};

use super::{ConfigArgs, account::Store, say};

/// Cases listed at a time, and rebuilt at the same time.
const LISTED: u32 = 1000;
const AT_ONCE: usize = 64;
/// Who the rebuild is ascribed to.
const BY: &str = "system";

/// Arguments of `rebuild`.
#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// The domain
    #[arg(long)]
    domain: DomainId,
    /// One case; without, all of the domain's cases
    #[arg(long, value_name = "ID")]
    case: Option<CaseId>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Rebuilds.
///
/// # Errors
/// The store cannot be reached, or a case cannot be rebuilt.
pub(crate) async fn run(args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&args.config).await?;
    let done = match &args.case {
        Some(case) => one(&store.ingest, &args.domain, case).await.map(|()| 1),
        None => all(&store.ingest, &args.domain).await,
    };
    let rebuilt = store.close_with(done).await?;
    say(format_args!("rebuilt   {rebuilt} cases of {}", args.domain));
    Ok(ExitCode::SUCCESS)
}

async fn one(ingest: &Ingest, domain: &DomainId, case: &CaseId) -> anyhow::Result<()> {
    ingest.rebuild_case(domain, case, BY).await.with_context(|| format!("could not rebuild case `{case}`"))?;
    Ok(())
}

async fn all(ingest: &Ingest, domain: &DomainId) -> anyhow::Result<u64> {
    let style = ProgressStyle::with_template("{pos} cases  {per_sec}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let progress = ProgressBar::new_spinner().with_style(style);
    let mut after: Option<CaseId> = None;
    loop {
        let ids = ingest.case_ids(domain, after.as_ref(), LISTED).await.context("could not list the cases")?;
        let Some(last) = ids.last().cloned() else { break };
        after = Some(last);
        let rebuilding = stream::iter(ids).map(|id| {
            let progress = &progress;
            async move {
                let rebuilt = ingest.rebuild_case(domain, &id, BY).await;
                progress.inc(1);
                match rebuilt {
                    // One that was deleted for good meanwhile is no failure.
                    Ok(_) | Err(WriteError::NotFound(_)) => Ok(()),
                    Err(error) => Err(error).with_context(|| format!("could not rebuild case `{id}`")),
                }
            }
        });
        rebuilding.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    progress.finish_and_clear();
    Ok(progress.position())
}
