//! The sample program as its workers use it: registrations, visits, deliveries, closings, edits and repeats.
//!
//! In: a seed, a run number and the population. Out: forms in the shares of the shared workload, one at a time for each
//! worker (a phone's queue is serial), so that nothing is sent before what it builds on was acknowledged. The same seed,
//! run and order of acknowledgements give the same forms. Ids differ between runs: a second run adds to what is there.

pub(crate) mod answers;
pub(crate) mod form;

use std::{collections::HashMap, sync::Arc};

use self::{
    answers::Interview,
    form::{Author, Form, FormKind},
};
use super::{
    population::{Activity, Population},
    random::{Ids, Stream},
    work::{Effects, Ended, Move, Moved, Next, Novelty, Submission},
};

/// 2024-01-01, in microseconds since 1970 UTC: the program's first day.
const FIRST_DAY: i64 = 1_704_067_200_000_000;
/// Days that a run of known length spreads over.
const SPAN_DAYS: i64 = 540;
/// Length assumed for an open-ended run.
const OPEN_ENDED: u64 = 100_000;
/// Acknowledged forms kept as candidates for edits and repeats.
const REMEMBERED: usize = 2_000;
/// Draws before any idle worker is taken in turn.
const DRAWS: usize = 24;

/// Micros in a day.
pub(crate) const DAY: i64 = 86_400_000_000;

/// A pregnancy in a worker's care.
#[derive(Clone, Debug)]
struct Mother {
    case: Arc<str>,
    name: String,
    owner: String,
    visits: u32,
    children: Vec<Arc<str>>,
}

#[derive(Debug, Default)]
struct Desk {
    pregnant: Vec<Mother>,
    delivered: Vec<Mother>,
    busy: bool,
    retired: bool,
}

impl Desk {
    fn idle(&self) -> bool {
        !self.busy && !self.retired
    }
}

#[derive(Debug)]
struct UnderWay {
    form: Arc<Form>,
    novelty: Novelty,
    handed_over: Option<(usize, Mother)>,
}

#[derive(Debug)]
enum Pending {
    Form(Box<UnderWay>),
    Move,
}

/// The generator.
#[derive(Debug)]
pub(crate) struct Program {
    population: Population,
    stream: Stream,
    activity: Activity,
    desks: Vec<Desk>,
    forms: Ids,
    cases: Ids,
    recent: Vec<Arc<Form>>,
    under_way: HashMap<u64, Pending>,
    moves_due: Vec<Moved>,
    villages: Vec<String>,
    blocks: Vec<String>,
    made: u64,
    tickets: u64,
    limit: Option<u64>,
    step: i64,
}

impl Program {
    /// Begins a run. `expected` is the number of forms it will have, if that is known; `limit` ends it there.
    pub(crate) fn new(population: Population, seed: u64, run: u64, expected: Option<u64>, limit: Option<u64>) -> Self {
        let mut stream = Stream::new(seed ^ run.rotate_left(32));
        let workers = population.workers.len();
        // Who is busy belongs to the population, not to the run.
        let activity = Activity::new(workers, &mut Stream::new(seed));
        let forms = i64::try_from(expected.unwrap_or(OPEN_ENDED).max(1)).unwrap_or(i64::MAX);
        stream.bits();
        Self {
            villages: population.level("village"),
            blocks: population.level("block"),
            desks: (0..workers).map(|_| Desk::default()).collect(),
            population,
            stream,
            activity,
            forms: Ids::new(seed, run, "form"),
            cases: Ids::new(seed, run, "case"),
            recent: Vec::new(),
            under_way: HashMap::new(),
            moves_due: Vec::new(),
            made: 0,
            tickets: 0,
            limit,
            step: (SPAN_DAYS * DAY / forms).max(1),
        }
    }

    /// The next thing to do. Every form and move handed out has to be ended with [`Self::ended`].
    pub(crate) fn next(&mut self) -> Next {
        if let Some(what) = self.moves_due.pop()
            && let Some(next) = self.move_of(what)
        {
            return Next::Move(next);
        }
        if self.limit.is_some_and(|limit| self.made >= limit) || self.desks.iter().all(|desk| desk.retired) {
            return Next::End;
        }
        let Some(submission) = self.again().or_else(|| self.fresh()) else { return Next::Busy };
        self.made += 1;
        // The shared workload's rhythm of moves.
        if self.made % 2_000 == 1_000 {
            self.moves_due.push(Moved::Worker);
        }
        if self.made % 25_000 == 6_000 {
            self.moves_due.push(Moved::Place);
        }
        Next::Form(submission)
    }

    /// Notes how a form or move ended. A worker whose form was refused stops: what follows may build on it.
    pub(crate) fn ended(&mut self, ticket: u64, how: Ended) {
        let Some(Pending::Form(under_way)) = self.under_way.remove(&ticket) else { return };
        let UnderWay { form, novelty, handed_over } = *under_way;
        let Some(desk) = self.desks.get_mut(form.worker) else { return };
        desk.busy = false;
        if how == Ended::Failed {
            desk.retired = true;
            return;
        }
        if let Some((to, mother)) = handed_over
            && let Some(desk) = self.desks.get_mut(to)
        {
            desk.pregnant.push(mother);
        }
        if novelty == Novelty::New {
            self.recent.push(form);
            if self.recent.len() > REMEMBERED {
                self.recent.drain(..REMEMBERED / 2);
            }
        }
    }

    fn move_of(&mut self, what: Moved) -> Option<Move> {
        self.tickets += 1;
        let next = match what {
            Moved::Worker => {
                let number = self.activity.draw(&mut self.stream);
                let inside = pick(&mut self.stream, &self.villages)?.clone();
                let document = self.population.moved_worker(number, &inside)?;
                Move {
                    ticket: self.tickets,
                    what,
                    id: self.population.workers.get(number)?.id.clone(),
                    inside,
                    document,
                }
            }
            Moved::Place => {
                let id = pick(&mut self.stream, &self.villages)?.clone();
                let inside = pick(&mut self.stream, &self.blocks)?.clone();
                let document = self.population.moved_place(&id, &inside)?;
                Move { ticket: self.tickets, what, id, inside, document }
            }
        };
        self.population.note(&next.id, &next.inside);
        self.under_way.insert(next.ticket, Pending::Move);
        Some(next)
    }

    /// A worker who is not waiting for an answer, by Zipf's law as far as that goes.
    fn idle_worker(&mut self) -> Option<usize> {
        for _ in 0..DRAWS {
            let number = self.activity.draw(&mut self.stream);
            if self.desks.get(number).is_some_and(Desk::idle) {
                return Some(number);
            }
        }
        let first = self.stream.index(self.desks.len());
        let (before, from) = self.desks.split_at_checked(first)?;
        let later = from.iter().position(Desk::idle).map(|at| first + at);
        later.or_else(|| before.iter().position(Desk::idle))
    }

    /// An edit (3 %) or a repeat (2 %) of an earlier form, when one is due.
    fn again(&mut self) -> Option<Submission> {
        let draw = self.stream.unit();
        if draw >= 0.05 || self.recent.len() <= 50 {
            return None;
        }
        let at = self.stream.index(self.recent.len());
        let mut form = Arc::clone(self.recent.get(at)?);
        if !self.desks.get(form.worker)?.idle() {
            return None;
        }
        let novelty = if draw < 0.03 { Novelty::Edit } else { Novelty::Duplicate };
        if novelty == Novelty::Edit {
            let mut edited = Form::clone(&form);
            let mut interview = Interview { stream: &mut self.stream };
            edited.set_text("notes", &interview.notes(10, 90));
            if edited.text("hb").is_some() {
                let hb = interview.measured(7.0, 14.5);
                edited.set_text("hb", &hb);
                if let Some((_, value)) =
                    edited.blocks.first_mut().and_then(|block| block.update.iter_mut().find(|(name, _)| *name == "hb"))
                {
                    *value = hb;
                }
            }
            form = Arc::new(edited);
            if let Some(slot) = self.recent.get_mut(at) {
                *slot = Arc::clone(&form);
            }
        }
        self.submit(form, novelty, None)
    }

    fn fresh(&mut self) -> Option<Submission> {
        let number = self.idle_worker()?;
        let desk = self.desks.get_mut(number)?;
        let author = self.population.workers.get(number)?;
        let draw = self.stream.unit();
        let kind = match (desk.pregnant.is_empty(), desk.delivered.is_empty()) {
            (true, true) => FormKind::Registration,
            _ if draw < 0.232 => FormKind::Registration,
            (no_pregnant, _) if draw < 0.716 => {
                if no_pregnant {
                    FormKind::PncVisit
                } else {
                    FormKind::AncVisit
                }
            }
            (no_pregnant, _) if draw < 0.821 => {
                if no_pregnant {
                    FormKind::PncVisit
                } else {
                    FormKind::Delivery
                }
            }
            (_, no_delivered) if draw < 0.979 => {
                if no_delivered {
                    FormKind::AncVisit
                } else {
                    FormKind::PncVisit
                }
            }
            _ => FormKind::Closing,
        };
        let received = FIRST_DAY + self.step.saturating_mul(i64::try_from(self.made).unwrap_or(i64::MAX));
        let mut interview = Interview { stream: &mut self.stream };
        let end = received - interview.seconds(5, 172_800);
        let start = end - interview.seconds(120, 1_500);
        let day = end.div_euclid(DAY);
        let mut handed_over = None;
        let (answers, blocks) = match kind {
            FormKind::Registration => {
                let case: Arc<str> = Arc::from(self.cases.next());
                let name = interview.name();
                let filled = interview.registration(&case, &name, &author.id, day);
                desk.pregnant.push(Mother { case, name, owner: author.id.clone(), visits: 0, children: Vec::new() });
                filled
            }
            FormKind::AncVisit => {
                let at = interview.stream.index(desk.pregnant.len());
                let mother = desk.pregnant.get_mut(at)?;
                mother.visits += 1;
                let mut filled = interview.anc_visit(&mother.case, mother.visits, day);
                if interview.stream.chance(0.005) {
                    let to = self.activity.draw(interview.stream);
                    if to != number
                        && let Some(receiver) = self.population.workers.get(to)
                    {
                        if let Some(block) = filled.1.first_mut() {
                            block.update.push(("owner_id", receiver.id.clone()));
                        }
                        let mut mother = desk.pregnant.swap_remove(at);
                        mother.owner.clone_from(&receiver.id);
                        handed_over = Some((to, mother));
                    }
                }
                filled
            }
            FormKind::Delivery => {
                let oldest = interview.between(0, desk.pregnant.len() / 4).min(desk.pregnant.len() - 1);
                let mut mother = desk.pregnant.remove(oldest);
                let twins = interview.stream.chance(0.03);
                mother.children = (0..=usize::from(twins)).map(|_| Arc::from(self.cases.next())).collect();
                let filled = interview.delivery(&mother.case, &mother.children, &mother.name, &mother.owner, day);
                desk.delivered.push(mother);
                filled
            }
            FormKind::PncVisit => {
                let mother = desk.delivered.get(interview.stream.index(desk.delivered.len()))?;
                let child = pick(interview.stream, &mother.children)?;
                interview.pnc_visit(&mother.case, child, day)
            }
            FormKind::Closing => {
                let delivered =
                    !desk.delivered.is_empty() && (interview.stream.chance(0.7) || desk.pregnant.is_empty());
                let list = if delivered { &mut desk.delivered } else { &mut desk.pregnant };
                let mother = list.swap_remove(interview.stream.index(list.len()));
                interview.closing(&mother.case, &mother.children, day)
            }
        };
        let form = Form { id: Arc::from(self.forms.next()), kind, worker: number, start, end, answers, blocks };
        self.submit(Arc::new(form), Novelty::New, handed_over)
    }

    fn submit(
        &mut self,
        form: Arc<Form>,
        novelty: Novelty,
        handed_over: Option<(usize, Mother)>,
    ) -> Option<Submission> {
        let worker = self.population.workers.get(form.worker)?;
        let author = Author { id: &worker.id, username: &worker.username, device: &worker.device };
        let mut cases = form.blocks.iter().map(|block| Arc::clone(&block.id));
        let month = form.text("visit_date").and_then(|date| date.get(..7)).unwrap_or_default().to_owned();
        let effects = Effects {
            form: Arc::clone(&form.id),
            mother: cases.next()?,
            children: cases.collect(),
            items: if form.kind.is_visit() { form.items() } else { 0 },
            visit: form.kind.is_visit().then(|| (Arc::from(worker.id.as_str()), month)),
            changes_month: novelty == Novelty::New && form.kind.is_visit(),
            changes_district: novelty == Novelty::New && form.kind.changes_district(),
        };
        let xml = Arc::from(form.xml(author));
        self.tickets += 1;
        let ticket = self.tickets;
        let number = form.worker;
        self.desks.get_mut(number)?.busy = true;
        self.under_way.insert(ticket, Pending::Form(Box::new(UnderWay { form, novelty, handed_over })));
        Some(Submission { ticket, worker: number, novelty, xml, effects })
    }
}

fn pick<'a, T>(stream: &mut Stream, of: &'a [T]) -> Option<&'a T> {
    of.get(stream.index(of.len()))
}

#[cfg(test)]
mod tests;
