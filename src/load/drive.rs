//! Sends work at a steady rate whether or not answers come (open loop): form i is due at start + i / rate.
//!
//! A form that cannot leave at its time (its worker's phone waits for an answer, or all connections are in use) leaves
//! as soon as it can, and its latency still counts from when it was due. One task owns the source, so what was
//! acknowledged is known before the next form is chosen.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use schemas::position::Position;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    phone::{Server, WriteError},
    population::Population,
    program::Program,
    replay::Replay,
    tally::Tally,
    visible::Acknowledged,
    work::{Effects, Ended, Move, Moved, Next, Novelty, Submission},
};

/// How long answers are awaited once nothing more is sent.
const DRAIN: Duration = Duration::from_secs(15);

/// Where work comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The sample program's generator.
    Program(Box<Program>),
    /// A recorded workload.
    Replay(Box<Replay>),
}

impl Source {
    fn next(&mut self) -> anyhow::Result<Next> {
        match self {
            Self::Program(program) => Ok(program.next()),
            Self::Replay(replay) => replay.next(),
        }
    }

    fn ended(&mut self, ticket: u64, how: Ended) {
        match self {
            Self::Program(program) => program.ended(ticket, how),
            Self::Replay(replay) => replay.ended(ticket),
        }
    }
}

/// When forms are due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    rate: f64,
    /// Forms sent so far.
    sent: u64,
}

impl Schedule {
    /// Forms at `rate` a second from `start` on.
    pub(crate) const fn new(start: Instant, rate: f64) -> Self {
        Self { start, rate, sent: 0 }
    }

    /// When the next form is due.
    pub(crate) fn due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.sent as f64 / self.rate)
    }

    /// Notes that the next form left.
    pub(crate) const fn left(&mut self) {
        self.sent += 1;
    }
}

/// How to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Forms a second.
    pub(crate) rate: f64,
    /// Most requests at a time.
    pub(crate) connections: usize,
    /// When to stop sending although work is left.
    pub(crate) no_longer_than: Option<Duration>,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driven {
    /// First due time to last answer.
    pub(crate) lasted: Duration,
}

/// What a run needs.
#[derive(Debug)]
pub(crate) struct Driver {
    /// The server under load.
    pub(crate) server: Arc<Server>,
    /// People and places as the prober sees them; moves are noted here once acknowledged.
    pub(crate) population: Arc<RwLock<Population>>,
    /// Counters.
    pub(crate) tally: Arc<Tally>,
    /// Where acknowledged forms go, if visibility is checked.
    pub(crate) acknowledged: Option<mpsc::Sender<Acknowledged>>,
    /// Fires when no more is to be sent.
    pub(crate) stop: CancellationToken,
}

enum Answer {
    Form {
        ticket: u64,
        effects: Effects,
        novelty: Novelty,
        due: Instant,
        began: Instant,
        result: Result<Option<Position>, WriteError>,
    },
    Move {
        ticket: u64,
        id: String,
        inside: String,
        result: Result<Option<Position>, WriteError>,
    },
}

impl Driver {
    /// Sends everything the source has, at the given pace, and waits for the answers.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) async fn run(self, mut source: Source, pace: Pace) -> anyhow::Result<Driven> {
        let workers = Arc::new(self.population.read().workers.clone());
        let give_up = CancellationToken::new();
        let mut requests: JoinSet<Answer> = JoinSet::new();
        let start = Instant::now();
        let latest = pace.no_longer_than.map(|longest| start + longest);
        let mut schedule = Schedule::new(start, pace.rate);
        let mut failure = None;
        // True while the source has nothing until an answer comes.
        let mut starved = false;
        let mut ended = false;
        while !ended {
            while !starved && requests.len() < pace.connections && schedule.due() <= Instant::now() {
                match source.next() {
                    Ok(Next::Form(form)) => {
                        let due = schedule.due();
                        schedule.left();
                        self.tally.sent(form.novelty);
                        self.post(&mut requests, &workers, form, due, &give_up);
                    }
                    Ok(Next::Move(next)) => self.put(&mut requests, next, &give_up),
                    Ok(Next::Busy) => starved = true,
                    Ok(Next::End) => ended = true,
                    Err(error) => {
                        failure = Some(error);
                        ended = true;
                    }
                }
                if ended {
                    break;
                }
            }
            if ended {
                break;
            }
            let full = requests.len() >= pace.connections;
            if starved && requests.is_empty() {
                failure = Some(anyhow::anyhow!("the source of forms waits for answers, but none are outstanding"));
                break;
            }
            tokio::select! {
                Some(answer) = requests.join_next(), if !requests.is_empty() => {
                    starved = false;
                    self.note(&mut source, answer);
                }
                () = sleep_until(schedule.due()), if !starved && !full => {}
                () = self.stop.cancelled() => ended = true,
                () = sleep_until(latest.unwrap_or(start)), if latest.is_some() => ended = true,
            }
        }
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(answer) = requests.join_next().await {
                self.note(&mut source, answer);
            }
        });
        if drained.await.is_err() {
            give_up.cancel();
            // Requests on the wire end by their own time limit; phones that pause give up now.
            let last = tokio::time::timeout(DRAIN, async {
                while let Some(answer) = requests.join_next().await {
                    self.note(&mut source, answer);
                }
            });
            if last.await.is_err() {
                let lost = requests.len() as u64;
                self.tally.with(|counts| {
                    counts.failed += lost;
                    counts.error(format!("{lost} requests without an answer at the end"));
                });
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(Driven { lasted: start.elapsed() }),
        }
    }

    fn post(
        &self,
        requests: &mut JoinSet<Answer>,
        workers: &Arc<Vec<super::population::Worker>>,
        form: Submission,
        due: Instant,
        give_up: &CancellationToken,
    ) {
        let (server, tally, workers) = (Arc::clone(&self.server), Arc::clone(&self.tally), Arc::clone(workers));
        let give_up = give_up.clone();
        requests.spawn(async move {
            let Submission { ticket, worker, novelty, xml, effects } = form;
            let began = Instant::now();
            let result = match workers.get(worker) {
                Some(worker) => server.post_form(worker, &xml, &tally, &give_up).await,
                None => Err(WriteError::GivenUp { what: "form of an unknown worker" }),
            };
            Answer::Form { ticket, effects, novelty, due, began, result }
        });
    }

    fn put(&self, requests: &mut JoinSet<Answer>, next: Move, give_up: &CancellationToken) {
        let (server, tally, give_up) = (Arc::clone(&self.server), Arc::clone(&self.tally), give_up.clone());
        requests.spawn(async move {
            let Move { ticket, what, id, inside, document } = next;
            let resource = match what {
                Moved::Worker => "user",
                Moved::Place => "location",
            };
            let result = server.put_document(resource, &id, &document, &tally, &give_up).await;
            Answer::Move { ticket, id, inside, result }
        });
    }

    fn note(&self, source: &mut Source, answer: Result<Answer, tokio::task::JoinError>) {
        let at = Instant::now();
        match answer {
            Ok(Answer::Form { ticket, effects, novelty, due, began, result }) => match result {
                Ok(position) => {
                    source.ended(ticket, Ended::Acknowledged);
                    self.tally.with(|counts| {
                        counts.acknowledged += 1;
                        counts.ack.record(at.saturating_duration_since(began));
                        counts.ack_from_due.record(at.saturating_duration_since(due));
                    });
                    let acknowledged =
                        Acknowledged { effects, position, due, at, timed: novelty != Novelty::Duplicate };
                    if let Some(sender) = &self.acknowledged
                        && sender.try_send(acknowledged).is_err()
                    {
                        self.tally.with(|counts| {
                            counts
                                .error("a form was not looked for: the freshness prober is too far behind".to_owned());
                        });
                    }
                }
                Err(error) => {
                    source.ended(ticket, Ended::Failed);
                    self.tally.with(|counts| {
                        counts.failed += 1;
                        counts.error(error.to_string());
                    });
                }
            },
            Ok(Answer::Move { ticket, id, inside, result }) => match result {
                Ok(_) => {
                    source.ended(ticket, Ended::Acknowledged);
                    self.population.write().moved(&id, &inside);
                    self.tally.with(|counts| counts.moves[0] += 1);
                }
                Err(error) => {
                    source.ended(ticket, Ended::Failed);
                    self.tally.with(|counts| {
                        counts.moves[1] += 1;
                        counts.error(error.to_string());
                    });
                }
            },
            Err(error) => self.tally.with(|counts| {
                counts.failed += 1;
                counts.error(format!("a request failed inside the generator: {error}"));
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_due_at_even_times_whatever_happens() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 250.0);
        for _ in 0..1_000_000 {
            schedule.left();
        }
        let off = schedule.due().duration_since(start).abs_diff(Duration::from_secs(4_000));
        assert!(off < Duration::from_micros(1), "off by {off:?} after a million forms");
    }
}
