//! Replays a file of the shared workload: `submissions.jsonl`, with `changes.jsonl` beside it for people and their moves.
//!
//! Order is kept wherever it matters and nowhere else: forms of one worker, of one case and of one form id go one after
//! the other, and so do writes of one user or place; all else may overlap. Moves come where the change records have them.
//! Source of the formats: the shared workload's description.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::{
    population::Population,
    program::form::FormKind,
    work::{Effects, Move, Moved, Next, Novelty, Submission},
};

/// Records read ahead, so that one slow worker does not hold up the others.
const WINDOW: usize = 4_096;
/// Longest line accepted, in bytes.
const MAX_LINE: u64 = 16 << 20;

/// A recorded workload that is being sent.
#[derive(Debug)]
pub(crate) struct Replay {
    submissions: Lines,
    changes: Lines,
    population: Population,
    limit: Option<u64>,
    read: u64,
    tickets: u64,
    ended: bool,
    /// What waits or is under way, by ticket.
    window: HashMap<u64, Slot>,
    /// Tickets that nothing holds back, in order.
    ready: BTreeMap<u64, ()>,
    /// For each key, the tickets that share it, in order; the first may go.
    queues: HashMap<Arc<str>, VecDeque<u64>>,
}

#[derive(Debug)]
struct Slot {
    work: Option<Work>,
    keys: Vec<Arc<str>>,
    blocked_by: usize,
}

#[derive(Debug)]
enum Work {
    Form(Submission),
    Move(Move),
}

#[derive(Debug, Deserialize)]
struct Recorded {
    n: u64,
    form_id: String,
    user_id: String,
    kind: String,
    xml: String,
}

#[derive(Debug, Deserialize)]
struct Change {
    topic: String,
    doc_id: String,
    doc: Value,
}

impl Replay {
    /// Opens the file and reads the population. `limit` ends the replay after so many forms.
    ///
    /// # Errors
    /// A file is missing or does not have the shared workload's form.
    pub(crate) fn open(path: &Path, domain: &str, secret: &str, limit: Option<u64>) -> anyhow::Result<Self> {
        let submissions = Lines::open(path.to_owned())?;
        let mut changes = Lines::open(path.with_file_name("changes.jsonl"))
            .context("people, places and their moves are read from `changes.jsonl` beside the submissions")?;
        let mut population = Population::new(secret);
        for (what, change) in moves_before_form(&mut changes)? {
            let document = in_domain(change.doc, domain);
            match what {
                Moved::Place => population.add_place(document),
                Moved::Worker => population.add_worker(document),
            }
        }
        anyhow::ensure!(
            !population.workers.is_empty(),
            "{} names no workers before the first form",
            changes.path.display()
        );
        Ok(Self {
            submissions,
            changes,
            population,
            limit,
            read: 0,
            tickets: 0,
            ended: false,
            window: HashMap::new(),
            ready: BTreeMap::new(),
            queues: HashMap::new(),
        })
    }

    /// Places and workers as they are before the first form.
    pub(crate) fn population(&self) -> &Population {
        &self.population
    }

    /// The next thing to do. The files are read a line at a time from the page cache, which costs microseconds.
    ///
    /// # Errors
    /// A line cannot be read.
    pub(crate) fn next(&mut self) -> anyhow::Result<Next> {
        while !self.ended && self.window.len() < WINDOW {
            self.admit()?;
        }
        let Some((ticket, ())) = self.ready.pop_first() else {
            return Ok(if self.window.is_empty() { Next::End } else { Next::Busy });
        };
        match self.window.get_mut(&ticket).and_then(|slot| slot.work.take()) {
            Some(Work::Form(form)) => Ok(Next::Form(form)),
            Some(Work::Move(next)) => Ok(Next::Move(next)),
            None => Ok(Next::Busy),
        }
    }

    /// Notes that a form or move ended; what waited for it may go.
    pub(crate) fn ended(&mut self, ticket: u64) {
        let Some(slot) = self.window.remove(&ticket) else { return };
        for key in slot.keys {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            queue.retain(|waiting| *waiting != ticket);
            match queue.front() {
                None => {
                    self.queues.remove(&key);
                }
                Some(first) => {
                    if let Some(slot) = self.window.get_mut(first) {
                        slot.blocked_by = slot.blocked_by.saturating_sub(1);
                        if slot.blocked_by == 0 && slot.work.is_some() {
                            self.ready.insert(*first, ());
                        }
                    }
                }
            }
        }
    }

    fn admit(&mut self) -> anyhow::Result<()> {
        let line = match self.limit.is_some_and(|limit| self.read >= limit) {
            true => None,
            false => self.submissions.next()?,
        };
        let Some(line) = line else {
            self.ended = true;
            return Ok(());
        };
        let (path, number) = (self.submissions.path.clone(), self.submissions.number);
        let place = || format!("{} line {number}", path.display());
        let recorded: Recorded = serde_json::from_str(&line).with_context(|| format!("could not read {}", place()))?;
        self.read += 1;
        self.tickets += 1;
        let worker = self
            .population
            .worker_number(&recorded.user_id)
            .with_context(|| format!("{}: nobody has user id `{}`", place(), recorded.user_id))?;
        let novelty = Novelty::from_name(&recorded.kind)
            .with_context(|| format!("{}: `{}` is not new, edit or duplicate", place(), recorded.kind))?;
        let effects = effects(&recorded.xml, &recorded.form_id, &recorded.user_id, novelty)
            .with_context(|| format!("{}: form {} is none of the workload's five", place(), recorded.n))?;
        let mut keys: Vec<Arc<str>> =
            vec![Arc::from(recorded.user_id), Arc::clone(&effects.form), Arc::clone(&effects.mother)];
        keys.extend(effects.children.iter().map(Arc::clone));
        let xml = Arc::from(recorded.xml);
        self.queue(keys, Work::Form(Submission { ticket: self.tickets, worker, novelty, xml, effects }));

        for (what, change) in moves_before_form(&mut self.changes)? {
            let field = if what == Moved::Worker { "location_id" } else { "parent_id" };
            let Some(inside) = change.doc.get(field).and_then(Value::as_str).map(str::to_owned) else { continue };
            let document = match what {
                Moved::Worker => self
                    .population
                    .worker_number(&change.doc_id)
                    .and_then(|at| self.population.moved_worker(at, &inside)),
                Moved::Place => self.population.moved_place(&change.doc_id, &inside),
            };
            let document = document.with_context(|| {
                format!(
                    "{} line {}: `{}` is not known",
                    self.changes.path.display(),
                    self.changes.number,
                    change.doc_id
                )
            })?;
            self.tickets += 1;
            let ticket = self.tickets;
            let key = Arc::from(change.doc_id.as_str());
            self.queue(vec![key], Work::Move(Move { ticket, what, id: change.doc_id, inside, document }));
        }
        Ok(())
    }

    fn queue(&mut self, mut keys: Vec<Arc<str>>, work: Work) {
        keys.sort_unstable();
        keys.dedup();
        let ticket = self.tickets;
        let mut blocked_by = 0;
        for key in &keys {
            let queue = self.queues.entry(Arc::clone(key)).or_default();
            blocked_by += usize::from(!queue.is_empty());
            queue.push_back(ticket);
        }
        if blocked_by == 0 {
            self.ready.insert(ticket, ());
        }
        self.window.insert(ticket, Slot { work: Some(work), keys, blocked_by });
    }
}

/// Reads change records up to and including the next one of a form; returns those of users and places before it.
fn moves_before_form(changes: &mut Lines) -> anyhow::Result<Vec<(Moved, Change)>> {
    let mut found = Vec::new();
    while let Some(line) = changes.next()? {
        if line.starts_with(r#"{"topic":"form-sql""#) {
            break;
        }
        if line.starts_with(r#"{"topic":"case-sql""#) {
            continue;
        }
        let change: Change = serde_json::from_str(&line)
            .with_context(|| format!("could not read {} line {}", changes.path.display(), changes.number))?;
        match change.topic.as_str() {
            "form-sql" => break,
            "commcare-user" => found.push((Moved::Worker, change)),
            "location" => found.push((Moved::Place, change)),
            _ => {}
        }
    }
    Ok(found)
}

fn in_domain(mut document: Value, domain: &str) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.insert("domain".to_owned(), Value::from(domain));
    }
    document
}

/// What a recorded form changes. The files are the workload's own, so its fixed spelling is enough to find it.
fn effects(xml: &str, form_id: &str, user_id: &str, novelty: Novelty) -> Option<Effects> {
    let after = |text: &'_ str, mark: &str, end: char| -> Option<String> {
        Some(text.split_once(mark)?.1.split_once(end)?.0.to_owned())
    };
    let kind = FormKind::from_xmlns(&after(xml, "<data xmlns=\"", '"')?)?;
    let mut cases = xml
        .match_indices(" case_id=\"")
        .filter_map(|(at, mark)| xml.get(at + mark.len()..)?.split_once('"').map(|(id, _)| Arc::<str>::from(id)));
    let month = || Some(after(xml, "<visit_date>", '<')?.get(..7)?.to_owned());
    Some(Effects {
        form: Arc::from(form_id),
        mother: cases.next()?,
        children: cases.collect(),
        items: if kind.is_visit() { xml.matches("<items>").count() } else { 0 },
        visit: if kind.is_visit() { Some((Arc::from(user_id), month()?)) } else { None },
        changes_month: novelty == Novelty::New && kind.is_visit(),
        changes_district: novelty == Novelty::New && kind.changes_district(),
    })
}

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
}

impl Lines {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::open(&path).with_context(|| format!("could not open {}", path.display()))?;
        Ok(Self { path, reader: BufReader::with_capacity(1 << 20, file), number: 0 })
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        use std::io::Read;
        let mut line = String::new();
        let read = (&mut self.reader).take(MAX_LINE).read_line(&mut line);
        let read =
            read.with_context(|| format!("could not read {} behind line {}", self.path.display(), self.number))?;
        self.number += 1;
        Ok((read > 0).then_some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [(&str, &str, &str, &str); 5] = [
        ("f1", "u1", "registration", r#"<case case_id="m1" x=""/>"#),
        (
            "f2",
            "u1",
            "anc_visit",
            r#"<visit_date>2024-03-05</visit_date><items></items><items></items><case case_id="m1"/>"#,
        ),
        ("f3", "u2", "registration", r#"<case case_id="m2"/>"#),
        ("f4", "u2", "delivery", r#"<case case_id="m2"/><case case_id="c1"/>"#),
        ("f5", "u3", "closing", r#"<case case_id="m2"/><case case_id="c1"/>"#),
    ];

    fn recorded() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let change = |topic: &str, id: &str, field: &str, value: &str| {
            format!(
                r#"{{"topic":"{topic}","doc_id":"{id}","seq":1,"doc":{{"_id":"{id}","domain":"other","username":"n-{id}","{field}":"{value}"}}}}"#
            )
        };
        let mut changes =
            vec![change("location", "block", "name", "x"), change("location", "village", "parent_id", "block")];
        changes.extend(["u1", "u2", "u3"].map(|id| change("commcare-user", id, "location_id", "village")));
        let mut submissions = Vec::new();
        for (n, (form, user, kind, body)) in LINES.iter().enumerate() {
            let xml = format!(r#"<data xmlns="http://openrosa.org/formdesigner/millrace/{kind}">{body}</data>"#);
            submissions.push(serde_json::json!({"n": n + 1, "form_id": form, "user_id": user, "received_on": "", "kind": "new", "xml": xml}).to_string());
            changes.push(change("form-sql", form, "a", "b"));
            changes.push(change("case-sql", "m", "a", "b"));
            if n == 1 {
                changes.push(change("commcare-user", "u2", "location_id", "elsewhere"));
                changes.push(change("location", "village", "parent_id", "far"));
            }
        }
        std::fs::write(directory.path().join("submissions.jsonl"), submissions.join("\n")).unwrap();
        std::fs::write(directory.path().join("changes.jsonl"), changes.join("\n") + "\n").unwrap();
        directory
    }

    fn open(directory: &tempfile::TempDir, limit: Option<u64>) -> anyhow::Result<Replay> {
        Replay::open(&directory.path().join("submissions.jsonl"), "demo", "secret", limit)
    }

    /// What can be taken now: (name, ticket).
    fn takeable(replay: &mut Replay) -> Vec<(String, u64)> {
        let mut taken = Vec::new();
        loop {
            match replay.next().unwrap() {
                Next::Form(form) => taken.push((form.effects.form.to_string(), form.ticket)),
                Next::Move(next) => taken.push((format!("{} to {}", next.id, next.inside), next.ticket)),
                Next::Busy | Next::End => return taken,
            }
        }
    }

    #[test]
    fn what_shares_a_worker_or_a_case_keeps_its_order() {
        let directory = recorded();
        let mut replay = open(&directory, None).unwrap();
        assert_eq!(replay.population().workers.len(), 3);
        assert_eq!(replay.population().workers[0].document["domain"], "demo");
        let names = |taken: &[(String, u64)]| taken.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let first = takeable(&mut replay);
        // A user's move waits for no form, and the form `f3` waits for the move of its user.
        assert_eq!(names(&first), ["f1", "u2 to elsewhere", "village to far"]);
        assert!(matches!(replay.next().unwrap(), Next::Busy));
        replay.ended(first[0].1);
        assert_eq!(names(&takeable(&mut replay)), ["f2"]);
        replay.ended(first[1].1);
        let third = takeable(&mut replay);
        assert_eq!(names(&third), ["f3"]);
        replay.ended(third[0].1);
        let fourth = takeable(&mut replay);
        assert_eq!(names(&fourth), ["f4"]);
        replay.ended(fourth[0].1);
        assert_eq!(names(&takeable(&mut replay)), ["f5"]);
    }

    #[test]
    fn effects_are_read_from_the_form() {
        let directory = recorded();
        let mut replay = open(&directory, None).unwrap();
        let mut found = HashMap::new();
        loop {
            match replay.next().unwrap() {
                Next::Form(form) => {
                    replay.ended(form.ticket);
                    found.insert(form.effects.form.to_string(), form.effects);
                }
                Next::Move(next) => replay.ended(next.ticket),
                Next::Busy => panic!("nothing is under way"),
                Next::End => break,
            }
        }
        assert_eq!(found.len(), LINES.len());
        assert_eq!((found["f2"].items, found["f2"].visit.clone()), (2, Some((Arc::from("u1"), "2024-03".to_owned()))));
        assert_eq!((&*found["f4"].mother, found["f4"].children.len(), found["f4"].visit.is_none()), ("m2", 1, true));
    }

    #[test]
    fn a_limit_ends_the_replay() {
        let directory = recorded();
        let mut replay = open(&directory, Some(1)).unwrap();
        let taken = takeable(&mut replay);
        taken.iter().for_each(|(_, ticket)| replay.ended(*ticket));
        assert_eq!(taken.len(), 1);
        assert!(matches!(replay.next().unwrap(), Next::End));
    }

    #[test]
    fn problems_name_the_file_and_line() {
        let directory = recorded();
        let path = directory.path().join("submissions.jsonl");
        std::fs::write(&path, "{\"n\":1}\n").unwrap();
        let error = format!("{:#}", open(&directory, None).unwrap().next().unwrap_err());
        assert!(error.contains("submissions.jsonl line 1"), "{error}");
        std::fs::remove_file(directory.path().join("changes.jsonl")).unwrap();
        let error = format!("{:#}", open(&directory, None).unwrap_err());
        assert!(error.contains("changes.jsonl"), "{error}");
    }
}
