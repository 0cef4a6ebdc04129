//! The load generator, `millrace load`: posts forms over HTTP like phones do, at a steady rate, and measures how long
//! they take to be acknowledged and to become visible to SQL.
//!
//! [`program`] makes the sample program's forms, [`replay`] reads recorded ones; [`drive`] sends either; [`visible`]
//! watches the tables; [`tally`] counts. `millrace demo` runs the same session beside a server of its own.

pub(crate) mod display;
mod drive;
mod phone;
mod population;
mod postgres;
mod program;
mod random;
mod replay;
mod setup;
mod tally;
mod visible;
mod words;
mod work;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use parking_lot::RwLock;
use schemas::port::Secret;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    drive::{Driver, Pace, Source},
    phone::Server,
    population::Population,
    postgres::Target,
    program::Program,
    replay::Replay,
    tally::Tally,
    visible::Unseen,
};
use crate::cli::serve::StopSignals;

/// Acknowledged forms that may wait for the prober.
const PROBER_QUEUE: usize = 262_144;
/// Unseen forms that the result names.
const NAMED: usize = 10;
/// How long the tables may take to show the last moves.
const MOVES_SETTLE: Duration = Duration::from_secs(10);
/// Time beyond the asked duration in which a slow server may still be sent what was due.
const OVERTIME: Duration = Duration::from_secs(30);

/// Arguments of `load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Domain to load
    #[arg(long, default_value = "demo")]
    domain: String,
    /// Administrator of the domain, for setting it up and reading [default: admin@<domain>]
    #[arg(long)]
    user: Option<String>,
    /// The administrator's password
    #[arg(long, env = "MILLRACE_PASSWORD", hide_env_values = true)]
    password: String,
    /// Where the Postgres protocol is served, host:port [default: the server's host, port 5433]
    #[arg(long, value_name = "HOST:PORT")]
    pg: Option<String>,
    /// Do not watch the tables
    #[arg(long)]
    no_visibility: bool,
    /// Neither put definitions nor import places and workers
    #[arg(long)]
    no_setup: bool,
    #[command(flatten)]
    shape: Shape,
    /// Send a recorded workload (submissions.jsonl, with changes.jsonl beside it) instead of generating one
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Number of the run: the same seed and run give the same forms [default: from the clock]
    #[arg(long)]
    run: Option<u64>,
}

/// What to send and for how long; shared with `demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Shape {
    /// Forms a second
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub(crate) rate: f64,
    /// Stop after so many forms
    #[arg(long)]
    pub(crate) forms: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) duration: Option<f64>,
    /// Decides everything that is drawn at random
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Workers with a phone [default: as many as forms a second, at least 100, at most 2000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) workers: Option<u32>,
    /// Most requests at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,
    /// Print one JSON object at the end and nothing else on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("expected a number above 0 and up to 1000000".to_owned()),
    }
}

impl Shape {
    /// Workers with a phone.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.map_or_else(|| (self.rate.ceil() as usize).clamp(100, 2_000), |workers| workers as usize)
    }

    /// Forms of a run that is to end by itself.
    fn limit(&self) -> Option<u64> {
        let by_time = self.duration.map(|seconds| (seconds * self.rate).ceil() as u64);
        match (self.forms, by_time) {
            (Some(forms), Some(by_time)) => Some(forms.min(by_time)),
            (forms, by_time) => forms.or(by_time),
        }
    }

    fn pace(&self) -> Pace {
        Pace {
            rate: self.rate,
            connections: self.concurrency as usize,
            no_longer_than: self.duration.map(|seconds| Duration::from_secs_f64(seconds) + OVERTIME),
        }
    }
}

/// A server to put under load, and how.
#[derive(Debug)]
pub(crate) struct Session {
    /// Base URL of its HTTP side.
    pub(crate) url: String,
    /// Host and port of its Postgres side, if visibility is to be measured.
    pub(crate) postgres: Option<(String, u16)>,
    /// The domain.
    pub(crate) domain: String,
    /// Its administrator.
    pub(crate) username: String,
    /// The administrator's password.
    pub(crate) password: Secret,
    /// What to send.
    pub(crate) shape: Shape,
    /// Number of this run.
    pub(crate) run: u64,
    /// Recorded forms to send instead of generated ones.
    pub(crate) from: Option<PathBuf>,
    /// Whether to put definitions and import people first.
    pub(crate) set_up: bool,
}

/// A session whose server is ready for load.
#[derive(Debug)]
pub(crate) struct Ready {
    session: Session,
    server: Arc<Server>,
    target: Option<Target>,
    population: Arc<RwLock<Population>>,
    source: Source,
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The JSON object to print.
    pub(crate) json: Value,
    /// True if everything acknowledged was seen and nothing failed for good.
    pub(crate) good: bool,
}

impl Session {
    /// Sets the server up: definitions, people, tables readable, workers signed in.
    ///
    /// # Errors
    /// Whatever is refused or cannot be reached.
    pub(crate) async fn prepare(self, say: setup::Say<'_>) -> anyhow::Result<Ready> {
        let server = Arc::new(Server::new(
            &self.url,
            &self.domain,
            &self.username,
            self.password.clone(),
            self.shape.concurrency as usize,
        )?);
        let target = self.postgres.clone().map(|(host, port)| Target {
            host,
            port,
            domain: self.domain.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
        });
        let secret = self.password.0.as_str();
        let (limit, seed) = (self.shape.limit(), self.shape.seed);
        let replay = match &self.from {
            Some(file) => Some(Replay::open(file, &self.domain, secret, limit)?),
            None => None,
        };
        let mut population = match &replay {
            Some(replay) => replay.population().clone(),
            None => Population::generate(seed, self.shape.worker_count(), &self.domain, secret),
        };
        if self.set_up {
            setup::definitions(&server, say).await?;
        }
        let client = match &target {
            Some(target) => Some(target.connect().await?),
            None => None,
        };
        if let Some(client) = &client {
            setup::tables(client, say).await?;
        }
        if self.set_up {
            setup::population(&server, client.as_ref(), &mut population, say).await?;
        }
        let source = match replay {
            Some(replay) => Source::Replay(Box::new(replay)),
            None => Source::Program(Box::new(Program::new(population.clone(), seed, self.run, limit, limit))),
        };
        let population = Arc::new(RwLock::new(population));
        setup::sign_in(&server, &population, say).await?;
        Ok(Ready { session: self, server, target, population, source })
    }
}

impl Ready {
    /// Sends, measures, and waits until all that was acknowledged is visible. `stop` ends the sending early.
    ///
    /// # Errors
    /// Recorded forms cannot be read, or the tables cannot at the end.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<Outcome> {
        let Self { session, server, target, population, source } = self;
        let tally = Arc::new(Tally::default());
        let (sender, prober) = match &target {
            Some(target) => {
                let (sender, receiver) = mpsc::channel(PROBER_QUEUE);
                let (population, tally) = (Arc::clone(&population), Arc::clone(&tally));
                (Some(sender), Some(tokio::spawn(visible::probe(target.clone(), receiver, population, tally))))
            }
            None => (None, None),
        };
        let shown = CancellationToken::new();
        let display = (!session.shape.json)
            .then(|| tokio::spawn(display::show(Arc::clone(&tally), target.clone(), shown.clone())));
        let driver = Driver {
            server,
            population: Arc::clone(&population),
            tally: Arc::clone(&tally),
            acknowledged: sender,
            stop,
        };
        let driven = driver.run(source, session.shape.pace()).await;
        let unseen = match prober {
            Some(prober) => prober.await.context("the freshness prober failed")?,
            None => Vec::new(),
        };
        shown.cancel();
        if let Some(display) = display {
            display.await.context("the display failed")?;
        }
        let lasted = driven?.lasted;
        let mut tables = Tables::default();
        if let Some(target) = &target {
            tables = Tables::read(target, &population).await?;
        }
        Ok(outcome(&session, &tally, lasted, &unseen, &tables, target.is_some()))
    }
}

#[derive(Debug, Default)]
struct Tables {
    rows: Value,
    view_errors: u64,
    misplaced: Vec<String>,
}

impl Tables {
    async fn read(target: &Target, population: &RwLock<Population>) -> anyhow::Result<Self> {
        let client = target.connect().await?;
        let population = population.read().clone();
        // A move's receipt is not waited for; the last ones may need a moment.
        let deadline = tokio::time::Instant::now() + MOVES_SETTLE;
        let misplaced = loop {
            let misplaced = setup::misplaced(&client, &population).await?;
            if misplaced.is_empty() || tokio::time::Instant::now() > deadline {
                break misplaced;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        Ok(Self {
            rows: json!(postgres::count_rows(&client).await?),
            view_errors: postgres::count_view_errors(&client).await?,
            misplaced,
        })
    }
}

fn outcome(
    session: &Session,
    tally: &Tally,
    lasted: Duration,
    unseen: &[Unseen],
    tables: &Tables,
    watched: bool,
) -> Outcome {
    let (acknowledged, visible, failed) =
        tally.with(|counts| (counts.acknowledged, counts.visible, counts.failed + counts.moves[1]));
    let not_visible = if watched { acknowledged.saturating_sub(visible) } else { 0 };
    let good = failed == 0 && not_visible == 0 && tables.misplaced.is_empty() && acknowledged > 0;
    let named: Vec<Value> =
        unseen.iter().take(NAMED).map(|form| json!({"form": &*form.form, "missing": form.missing})).collect();
    let mut json = json!({
        "domain": session.domain,
        "seed": session.shape.seed,
        "run": session.run,
        "seconds": (lasted.as_secs_f64() * 1000.0).round() / 1000.0,
        "rate": {"asked": session.shape.rate, "achieved": (acknowledged as f64 / lasted.as_secs_f64() * 10.0).round() / 10.0},
        "visibility": {
            "watched": watched, "visible": visible, "not_visible": not_visible, "unseen": named,
            "misplaced_after_moves": tables.misplaced,
        },
        "rows": tables.rows,
        "view_errors": tables.view_errors,
        "good": good,
    });
    if let (Some(all), Value::Object(counted)) = (json.as_object_mut(), tally.json()) {
        all.extend(counted);
    }
    Outcome { json, good }
}

/// Loads a running server.
///
/// # Errors
/// The server cannot be reached or refuses what the run needs.
pub(crate) async fn run(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let parsed = reqwest::Url::parse(&args.url).with_context(|| format!("`{}` is not a URL", args.url))?;
    let postgres = match (args.no_visibility, &args.pg) {
        (true, _) => None,
        (false, Some(pg)) => {
            let parts = pg.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
            Some(parts.with_context(|| format!("`{pg}` is not an address (expected host:port)"))?)
        }
        (false, None) => Some((parsed.host_str().unwrap_or("127.0.0.1").to_owned(), 5433)),
    };
    let json = args.shape.json;
    let session = Session {
        url: args.url,
        postgres,
        username: args.user.unwrap_or_else(|| format!("admin@{}", args.domain)),
        domain: args.domain,
        password: Secret(args.password),
        shape: args.shape,
        run: args.run.unwrap_or_else(run_from_clock),
        from: args.from,
        set_up: !args.no_setup,
    };
    let mut signals = StopSignals::listen()?;
    let stop = CancellationToken::new();
    let work = async {
        let ready = tokio::select! {
            ready = session.prepare(&display::say) => ready?,
            () = stop.cancelled() => anyhow::bail!("stopped before the first form was sent"),
        };
        Box::pin(ready.run(stop.clone())).await
    };
    let mut work = Box::pin(work);
    let outcome = tokio::select! {
        outcome = &mut work => outcome?,
        () = signals.next() => {
            stop.cancel();
            tokio::select! {
                outcome = &mut work => outcome?,
                () = signals.next() => anyhow::bail!("told twice: stopped without waiting"),
            }
        }
    };
    report(&outcome, json);
    Ok(if outcome.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the result: one JSON object for programs, a few lines for people.
pub(crate) fn report(outcome: &Outcome, json: bool) {
    if json {
        crate::cli::say(&outcome.json);
    } else {
        crate::cli::say(outcome.summary());
    }
}

impl Outcome {
    /// The result for people.
    fn summary(&self) -> String {
        let at = |pointer: &str| self.json.pointer(pointer).unwrap_or(&Value::Null);
        let latency = |name: &str| {
            let value = |field: &str| display::shown(at(&format!("/latency_ms/{name}/{field}")).as_f64());
            format!("p50 {}, p95 {}, p99 {}, max {}", value("p50"), value("p95"), value("p99"), value("max"))
        };
        let retries: u64 = ["rate_limited", "server_error", "no_answer"]
            .iter()
            .filter_map(|why| at(&format!("/retries/{why}")).as_u64())
            .sum();
        let mut lines = vec![
            format!(
                "\n{} forms sent in {} s ({} a second), {} acknowledged, {} failed, {retries} tried again, {} moves",
                at("/forms/sent"),
                at("/seconds"),
                at("/rate/achieved"),
                at("/forms/acknowledged"),
                at("/forms/failed"),
                at("/moves/acknowledged")
            ),
            format!("acknowledged after      {}", latency("ack")),
        ];
        if at("/visibility/watched") == &Value::Bool(true) {
            lines.push(format!("visible in SQL after    {}", latency("acknowledged_to_visible")));
            lines.push(match at("/visibility/not_visible").as_u64() {
                Some(0) => "everything acknowledged is visible".to_owned(),
                _ => format!(
                    "NOT VISIBLE: {} acknowledged forms, among them {}",
                    at("/visibility/not_visible"),
                    at("/visibility/unseen")
                ),
            });
        }
        if at("/visibility/misplaced_after_moves").as_array().is_some_and(|ids| !ids.is_empty()) {
            lines.push(format!("NOT VISIBLE: moves of {}", at("/visibility/misplaced_after_moves")));
        }
        if let Some(rows) = at("/rows").as_object() {
            let rows: Vec<String> = rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
            lines.push(format!("rows                    {}", rows.join(", ")));
        }
        for (message, times) in at("/errors/messages").as_object().into_iter().flatten() {
            lines.push(format!("error ({times} times)         {message}"));
        }
        lines.join("\n")
    }
}

/// A run number that no earlier run had: microseconds since 1970.
pub(crate) fn run_from_clock() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session {
            url: "http://127.0.0.1:1".to_owned(),
            postgres: None,
            domain: "demo".to_owned(),
            username: "admin@demo".to_owned(),
            password: Secret("pw".to_owned()),
            shape: Shape {
                rate: 100.0,
                forms: None,
                duration: Some(20.0),
                seed: 1,
                workers: None,
                concurrency: 64,
                json: true,
            },
            run: 3,
            from: None,
            set_up: false,
        }
    }

    #[test]
    fn a_run_ends_at_what_comes_first() {
        let mut shape = session().shape;
        for (forms, duration, limit) in [
            (None, Some(20.0), Some(2_000)),
            (Some(10), Some(20.0), Some(10)),
            (Some(9_999), None, Some(9_999)),
            (None, None, None),
        ] {
            (shape.forms, shape.duration) = (forms, duration);
            assert_eq!(shape.limit(), limit);
        }
    }

    #[test]
    fn anything_acknowledged_and_not_visible_makes_the_run_bad() {
        let tally = Tally::default();
        tally.with(|counts| (counts.acknowledged, counts.visible) = (10, 10));
        let second = Duration::from_secs(1);
        let good = outcome(&session(), &tally, second, &[], &Tables::default(), true);
        assert!(good.good);
        assert_eq!(good.json["rate"]["achieved"], 10.0);
        for field in
            ["forms", "latency_ms", "retries", "moves", "rows", "errors", "view_errors", "visibility", "seconds"]
        {
            assert!(good.json.get(field).is_some(), "{field}");
        }
        tally.with(|counts| counts.visible = 9);
        let unseen = [Unseen { form: Arc::from("f"), missing: "ucr.children: c".to_owned() }];
        let bad = outcome(&session(), &tally, second, &unseen, &Tables::default(), true);
        assert!(!bad.good);
        assert_eq!(bad.json["visibility"]["unseen"][0]["form"], "f");
        assert!(bad.summary().contains("NOT VISIBLE: 1 acknowledged forms"), "{}", bad.summary());
        assert!(good.summary().contains("everything acknowledged is visible"), "{}", good.summary());
        assert!(outcome(&session(), &tally, second, &[], &Tables::default(), false).good);
        let misplaced = Tables { misplaced: vec!["u".to_owned()], ..Tables::default() };
        tally.with(|counts| counts.visible = 10);
        assert!(!outcome(&session(), &tally, second, &[], &misplaced, true).good);
    }
}
