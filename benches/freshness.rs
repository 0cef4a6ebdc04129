//! Bench of the whole system: forms at a steady rate over HTTP, and how long until a SQL statement shows each in every
//! table it belongs to. Prints one Markdown table, a row a rate.
//!
//! Each rate runs `millrace demo` with a data directory of its own. CPU time is that of the whole process tree while the
//! forms come, the generator of the load and the prober included. The machine's own flush is measured right before.
//!
//! `MILLRACE_BENCH_SECONDS` is how long each rate lasts (default 20; three times that for the highest), `TMPDIR` where the
//! data lie.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

mod machine;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;

use self::machine::{TICKS_PER_SECOND, flushes, tree_ticks};

/// Forms a second, and how many times the usual length they run.
const RATES: [(u32, f64); 5] = [(50, 1.0), (100, 1.0), (200, 1.0), (400, 3.0), (1000, 1.0)];
/// Workers with a phone.
const WORKERS: u32 = 600;
/// What `demo` says right before the first form.
const BEGINNING: &str = "signed in:";
/// Pause between two readings of CPU time.
const LOOK: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` starts benches too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let seconds = match std::env::var("MILLRACE_BENCH_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("MILLRACE_BENCH_SECONDS: `{text}` is not a number"))?,
        Err(_) => 20.0,
    };
    println!(
        "| asked | for | achieved | sent → acknowledged p50 / p99 | acknowledged → visible p50 / p99 / max | due → visible p99 / max | CPU a form | flush p50 / p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut verdicts = Vec::new();
    for (rate, times) in RATES {
        let run = Run::take(rate, seconds * times)?;
        println!("{}", run.row()?);
        verdicts.extend(run.verdicts()?);
    }
    println!("\n| goal | measured | met |\n| --- | --- | --- |");
    for (goal, measured, met) in verdicts {
        println!("| {goal} | {measured} | {} |", if met { "yes" } else { "**no**" });
    }
    Ok(())
}

/// One rate's run.
struct Run {
    rate: u32,
    seconds: f64,
    result: Value,
    /// Seconds of CPU while forms came, if the system tells.
    cpu: Option<f64>,
    /// Milliseconds that a flush takes: p50 and p99.
    flush: (f64, f64),
}

impl Run {
    fn take(rate: u32, seconds: f64) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        // The private Postgres may run as another user, who has to pass through.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        let flush = flushes(directory.path())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        let mut child = command
            .args(["demo", "--json", "--http", "127.0.0.1:0", "--pg", "127.0.0.1:0", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--rate", &rate.to_string(), "--duration", &seconds.to_string(), "--workers", &WORKERS.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not start millrace")?;
        let (begin, begun) = mpsc::channel();
        let said = child.stderr.take().context("no standard error")?;
        let listener = std::thread::spawn(move || {
            let mut said_last = String::new();
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if line.starts_with(BEGINNING) && begin.send(Instant::now()).is_err() {
                    break;
                }
                said_last = line;
            }
            said_last
        });
        let mut readings = Vec::new();
        if let Ok(started) = begun.recv() {
            while child.try_wait()?.is_none() {
                readings.extend(tree_ticks(child.id()).map(|ticks| (started.elapsed(), ticks)));
                std::thread::sleep(LOOK);
            }
        }
        let status = child.wait()?;
        let mut text = String::new();
        child.stdout.take().context("no standard output")?.read_to_string(&mut text)?;
        let said_last = listener.join().unwrap_or_default();
        let result: Value = serde_json::from_str(&text)
            .with_context(|| format!("millrace demo: {status}; it said last: {said_last}"))?;
        let lasted = Duration::from_secs_f64(result.get("seconds").and_then(Value::as_f64).unwrap_or(seconds));
        let cpu = readings.iter().find(|(at, _)| *at >= lasted).or(readings.last()).zip(readings.first());
        let cpu = cpu.map(|((_, last), (_, first))| (last - first) as f64 / TICKS_PER_SECOND);
        Ok(Self { rate, seconds, result, cpu, flush })
    }

    fn number(&self, pointer: &str) -> anyhow::Result<f64> {
        self.result
            .pointer(pointer)
            .and_then(Value::as_f64)
            .with_context(|| format!("no number {pointer} in the result"))
    }

    fn latency(&self, which: &str, field: &str) -> anyhow::Result<f64> {
        self.number(&format!("/latency_ms/{which}/{field}"))
    }

    fn row(&self) -> anyhow::Result<String> {
        let all = |which: &str, fields: &[&str]| -> anyhow::Result<String> {
            let shown = fields.iter().map(|field| Ok(format!("{:.1}", self.latency(which, field)?)));
            Ok(shown.collect::<anyhow::Result<Vec<_>>>()?.join(" / ") + " ms")
        };
        let forms = self.number("/forms/acknowledged")?;
        let cpu = self.cpu.map_or_else(|| "?".to_owned(), |cpu| format!("{:.2} ms", cpu / forms * 1000.0));
        let (rate, seconds, achieved) = (self.rate, self.seconds, self.number("/rate/achieved")?);
        let (ack, visible) = (all("ack", &["p50", "p99"])?, all("acknowledged_to_visible", &["p50", "p99", "max"])?);
        let (due, (p50, p99)) = (all("due_to_visible", &["p99", "max"])?, self.flush);
        Ok(format!(
            "| {rate} forms/s | {seconds} s | {achieved}/s | {ack} | {visible} | {due} | {cpu} | {p50:.1} / {p99:.1} ms |"
        ))
    }

    /// The goals for this rate: what is asked, what was measured, whether it is met.
    fn verdicts(&self) -> anyhow::Result<Vec<(String, String, bool)>> {
        let rate = self.rate;
        let good = self.result.get("good") == Some(&Value::Bool(true));
        let mut verdicts = Vec::new();
        if rate == 100 {
            for (field, most) in [("p50", 6.0), ("p99", 60.0)] {
                let measured = self.latency("acknowledged_to_visible", field)?;
                let goal = format!("{rate} forms/s: acknowledged → visible {field} ≤ {most} ms");
                verdicts.push((goal, format!("{measured:.1} ms"), good && measured <= most));
            }
            let (measured, most) = (self.latency("ack", "p99")?, (12.0 * self.flush.1).max(15.0));
            let goal = format!(
                "{rate} forms/s: sent → acknowledged p99 ≤ 15 ms or 12 × the p99 of a flush (now {most:.0} ms)"
            );
            verdicts.push((goal, format!("{measured:.1} ms"), measured <= most));
        }
        if rate >= 400 {
            let (achieved, slowest) = (self.number("/rate/achieved")?, self.latency("due_to_visible", "max")?);
            let goal = format!(
                "{rate} forms/s for {} s by {WORKERS} workers, each visible within 1 s of when it was due",
                self.seconds
            );
            let met = good && achieved >= f64::from(rate) * 0.995 && slowest <= 1000.0;
            verdicts.push((goal, format!("{achieved:.1} forms/s, slowest {slowest:.0} ms"), met));
        }
        let (sent, visible) = (self.number("/forms/sent")?, self.number("/visibility/visible")?);
        let goal = format!("{rate} forms/s: every form acknowledged and visible");
        verdicts.push((goal, format!("{visible} of {sent}"), good && visible >= sent));
        Ok(verdicts)
    }
}
