//! Shows a run while it goes on: a block that is redrawn on a terminal, a line every few seconds elsewhere.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    postgres::{self, Target},
    tally::{Latencies, Tally},
};

const REDRAW: Duration = Duration::from_secs(1);
const LINE: Duration = Duration::from_secs(5);
/// Longest wait for row counts before the last known ones are shown.
const ROWS: Duration = Duration::from_secs(2);

/// What the display shows.
#[derive(Clone, Debug, Default)]
struct View {
    acknowledged: u64,
    failed: u64,
    retries: u64,
    moves: u64,
    rate: f64,
    fresh: [Option<f64>; 2],
    ack: [Option<f64>; 2],
    waiting: u64,
    rows: BTreeMap<String, u64>,
    errors: u64,
    visible: bool,
}

/// Shows the run until `stop` fires. Row counts are read over a connection of their own, if there is a `target`.
pub(crate) async fn show(tally: Arc<Tally>, target: Option<Target>, stop: CancellationToken) {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        bar
    });
    let pause = if bar.is_some() { REDRAW } else { LINE };
    let mut client: Option<Client> = None;
    let mut rows = BTreeMap::new();
    let (mut last, mut last_acknowledged) = (Instant::now(), 0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
        if let Some(target) = &target
            && let Ok(Ok(counted)) = tokio::time::timeout(ROWS, counted(target, &mut client)).await
        {
            rows = counted;
        }
        let elapsed = last.elapsed().as_secs_f64();
        last = Instant::now();
        let view = tally.with(|counts| {
            let recent = std::mem::take(&mut counts.recent);
            let both = |latencies: &Latencies| [latencies.quantile(0.5), latencies.quantile(0.99)];
            View {
                acknowledged: counts.acknowledged,
                failed: counts.failed,
                retries: counts.retries.iter().sum(),
                moves: counts.moves[0],
                rate: (counts.acknowledged - last_acknowledged) as f64 / elapsed,
                fresh: both(&recent),
                ack: both(&counts.ack),
                waiting: counts.waiting,
                rows: rows.clone(),
                errors: counts.errors(),
                visible: target.is_some(),
            }
        });
        last_acknowledged = view.acknowledged;
        match &bar {
            Some(bar) => bar.set_message(view.block()),
            None => say(&view.line()),
        }
    }
    if let Some(bar) = bar {
        bar.finish();
    }
}

async fn counted(target: &Target, client: &mut Option<Client>) -> anyhow::Result<BTreeMap<String, u64>> {
    let client = match client {
        Some(client) if !client.is_closed() => client,
        _ => client.insert(target.connect().await?),
    };
    postgres::count_rows(client).await
}

impl View {
    fn freshness(&self) -> String {
        if !self.visible {
            return "not measured".to_owned();
        }
        format!("p50 {}  p99 {}", shown(self.fresh[0]), shown(self.fresh[1]))
    }

    fn block(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
        format!(
            "\n  forms      {} acknowledged, {:.0}/s   {} failed, {} tried again, {} moves\n  \
             freshness  {}   (acknowledged to visible in SQL, just now)\n  \
             answers    p50 {}  p99 {}   (acknowledgement, so far)\n  \
             lag        {} forms acknowledged and not seen yet\n  \
             rows       {}\n  \
             errors     {}",
            self.acknowledged,
            self.rate,
            self.failed,
            self.retries,
            self.moves,
            self.freshness(),
            shown(self.ack[0]),
            shown(self.ack[1]),
            self.waiting,
            if rows.is_empty() { "-".to_owned() } else { rows.join("\n             ") },
            self.errors
        )
    }

    fn line(&self) -> String {
        let rows: u64 = self.rows.values().sum();
        format!(
            "{} acknowledged ({:.0}/s), freshness {}, answers p50 {} p99 {}, {} not seen yet, {} rows, {} failed, {} tried again, {} errors",
            self.acknowledged,
            self.rate,
            self.freshness(),
            shown(self.ack[0]),
            shown(self.ack[1]),
            self.waiting,
            rows,
            self.failed,
            self.retries,
            self.errors
        )
    }
}

/// A latency for people.
pub(super) fn shown(milliseconds: Option<f64>) -> String {
    match milliseconds {
        Some(ms) if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        Some(ms) if ms >= 100.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{ms:.1} ms"),
        None => "-".to_owned(),
    }
}

/// Writes a line to standard error; a closed one is not an error.
pub(crate) fn say(line: &str) {
    if writeln!(std::io::stderr().lock(), "{line}").is_err() {
        tracing::debug!("standard error is closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_readable() {
        for (ms, text) in [(None, "-"), (Some(3.06), "3.1 ms"), (Some(314.2), "314 ms"), (Some(31_420.0), "31.4 s")] {
            assert_eq!(shown(ms), text);
        }
    }

    #[test]
    fn block_and_line_show_the_same_facts() {
        let view = View {
            acknowledged: 4321,
            waiting: 17,
            errors: 23,
            fresh: [Some(12.5), Some(99.0)],
            rows: [("ucr.children".to_owned(), 77)].into(),
            visible: true,
            ..View::default()
        };
        for text in [view.block(), view.line()] {
            for fact in ["4321", "17", "23", "12.5 ms", "99.0 ms", "77"] {
                assert!(text.contains(fact), "{fact} is missing in {text}");
            }
        }
    }
}
