//! The freshness prober: when does a SQL statement of another connection return what a form changed?
//!
//! Over and over, the oldest acknowledged forms that were not seen yet are looked for with **one** statement, which reads
//! one published snapshot. The session waits for their newest receipt first (`millrace.wait_for`), so the answer comes as
//! soon as a snapshot holds them all; then the rows themselves are checked. The form's own stamp is read in the same
//! statement (`system.form_documents`), and every row that the form touches must be there with a stamp that is not
//! older: the pregnancy, its children, the form's items, the worker's month, and the district that counts the pregnancy
//! now. Stamps grow along the lane, so an older row cannot pass. A group gets a new stamp only when a column that it
//! reads changed; for forms that need not change one (a delivery, an edit), its being there in that snapshot has to do.
//! Visible is the moment the answer arrived.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use schemas::{position::Position, time::parse_micros};
use tokio::{sync::mpsc, time::Instant};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::{
    population::Population,
    postgres::{self, Target},
    tally::Tally,
    work::Effects,
};

/// Forms looked for by one statement.
const BATCH: usize = 64;
/// How long to go on looking once nothing more is sent.
const SETTLE: Duration = Duration::from_secs(30);
/// Pause after a failed statement, or one that showed nothing new.
const PAUSE: Duration = Duration::from_millis(20);
/// When a form is not seen for so long, where people are is read again: somebody else may have moved them.
const DOUBT: Duration = Duration::from_secs(1);
/// Longest a statement may take before the connection is given up.
const STATEMENT: Duration = Duration::from_secs(20);

/// An acknowledged form that has not been seen yet.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    /// What must be seen.
    pub(crate) effects: Effects,
    /// Its receipt.
    pub(crate) position: Option<Position>,
    /// When it was due.
    pub(crate) due: Instant,
    /// When the acknowledgement arrived.
    pub(crate) at: Instant,
    /// False for repeats: they change nothing, so there is nothing to wait for, but all must still be there.
    pub(crate) timed: bool,
}

/// A form that was acknowledged and never seen whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// The form.
    pub(crate) form: Arc<str>,
    /// What was missing when it was last looked for.
    pub(crate) missing: String,
}

/// Looks for forms until `acknowledged` is closed and all were seen, or 30 seconds after it was closed. Returns those
/// that were not.
pub(crate) async fn probe(
    target: Target,
    mut acknowledged: mpsc::Receiver<Acknowledged>,
    population: Arc<RwLock<Population>>,
    tally: Arc<Tally>,
) -> Vec<Unseen> {
    let mut pending: VecDeque<(Acknowledged, String)> = VecDeque::new();
    let mut client: Option<Client> = None;
    let mut give_up_at: Option<Instant> = None;
    let mut refreshed = Instant::now();
    loop {
        if pending.is_empty() {
            match acknowledged.recv().await {
                Some(next) => pending.push_back((next, String::new())),
                None => return Vec::new(),
            }
        }
        loop {
            match acknowledged.try_recv() {
                Ok(next) => pending.push_back((next, String::new())),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    give_up_at.get_or_insert_with(|| Instant::now() + SETTLE);
                    break;
                }
            }
        }
        tally.with(|counts| counts.waiting = pending.len() as u64);
        if give_up_at.is_some_and(|at| at < Instant::now()) {
            let unseen = |(form, missing): (Acknowledged, String)| Unseen { form: form.effects.form, missing };
            return pending.into_iter().map(unseen).collect();
        }
        let batch: Vec<_> = pending.drain(..pending.len().min(BATCH)).collect();
        let looked = tokio::time::timeout(STATEMENT, look(&target, &mut client, &batch)).await;
        let answered = Instant::now();
        let failed = match looked {
            Ok(Ok(found)) => {
                let left = settle(batch, &found, &population.read(), answered, &tally);
                let stuck = left.len() == found.asked;
                let doubtful = left.iter().any(|(form, _)| form.at.elapsed() > DOUBT);
                pending.extend(left);
                if doubtful
                    && refreshed.elapsed() > DOUBT
                    && let Some(client) = &client
                {
                    if let Ok(whereabouts) = postgres::whereabouts(client).await {
                        let mut population = population.write();
                        whereabouts.iter().for_each(|(id, inside)| population.note(id, inside));
                    }
                    refreshed = Instant::now();
                } else if stuck {
                    tokio::time::sleep(PAUSE).await;
                }
                None
            }
            Ok(Err(error)) => Some((batch, format!("{error:#}"))),
            Err(_) => Some((batch, format!("no answer within {STATEMENT:?}"))),
        };
        tally.with(|counts| counts.probes[0] += 1);
        if let Some((batch, message)) = failed {
            tracing::debug!(%message, "a freshness statement failed");
            tally.with(|counts| {
                counts.probes[1] += 1;
                counts.error(format!("freshness statement: {message}"));
            });
            client = None;
            pending.extend(batch.into_iter().map(|(form, _)| (form, message.clone())));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Records what was seen and returns the rest with what was missing.
fn settle(
    batch: Vec<(Acknowledged, String)>,
    found: &Found,
    population: &Population,
    answered: Instant,
    tally: &Tally,
) -> Vec<(Acknowledged, String)> {
    let mut left = Vec::new();
    for (form, _) in batch {
        match found.missing(&form.effects, population) {
            Some(missing) => left.push((form, missing)),
            None => tally.with(|counts| {
                counts.visible += 1;
                if form.timed {
                    let fresh = answered.saturating_duration_since(form.at);
                    counts.fresh.record(fresh);
                    counts.recent.record(fresh);
                    counts.fresh_from_due.record(answered.saturating_duration_since(form.due));
                }
            }),
        }
    }
    left
}

async fn look(target: &Target, client: &mut Option<Client>, batch: &[(Acknowledged, String)]) -> anyhow::Result<Found> {
    let client = match client {
        Some(client) if !client.is_closed() => client,
        _ => client.insert(target.connect().await?),
    };
    let newest = batch.iter().filter_map(|(form, _)| form.position).max_by_key(|position| position.sequence);
    if let Some(position) = newest {
        client.batch_execute(&format!("SET millrace.wait_for = '{position}'")).await?;
    }
    let effects: Vec<&Effects> = batch.iter().map(|(form, _)| &form.effects).collect();
    let mut found = Found { asked: batch.len(), ..Found::default() };
    for message in client.simple_query(&statement(&effects)).await? {
        if let SimpleQueryMessage::Row(row) = message {
            found.add(&row);
        }
    }
    Ok(found)
}

/// The statement that reads every row the forms touch.
fn statement(forms: &[&Effects]) -> String {
    let mut sql = String::with_capacity(8_192);
    let mut part = |what: &str, key: &str, detail: &str, stamp: &str, table: &str, filters: &[(&str, Vec<&str>)]| {
        if filters.iter().any(|(_, values)| values.is_empty()) {
            return;
        }
        let union = if sql.is_empty() { "" } else { " UNION ALL " };
        // Writing to a String cannot fail.
        let written = write!(
            sql,
            "{union}SELECT '{what}' AS what, {key} AS key, {detail} AS detail, {stamp} AS stamp FROM {table}"
        );
        debug_assert!(written.is_ok());
        for (i, (column, values)) in filters.iter().enumerate() {
            sql.push_str(if i == 0 { " WHERE " } else { " AND " });
            sql.push_str(column);
            sql.push_str(" IN (");
            for (i, value) in distinct(values).into_iter().enumerate() {
                if i > 0 {
                    sql.push(',');
                }
                sql.push('\'');
                sql.push_str(&value.replace('\'', "''"));
                sql.push('\'');
            }
            sql.push(')');
        }
    };
    let ids = forms.iter().map(|form| &*form.form).collect();
    let mothers = forms.iter().map(|form| &*form.mother).collect();
    let children = forms.iter().flat_map(|form| form.children.iter().map(|child| &**child)).collect();
    let with_items = forms.iter().filter(|form| form.items > 0).map(|form| &*form.form).collect();
    let visits: Vec<_> = forms.iter().filter_map(|form| form.visit.as_ref()).collect();
    let workers = visits.iter().map(|(worker, _)| &**worker).collect();
    let months = visits.iter().map(|(_, month)| month.as_str()).collect();
    part("form", "doc_id", "''", "indexed_on", "system.form_documents", &[("doc_id", ids)]);
    part("mother", "doc_id", "owner_id", "inserted_at", "ucr.pregnancies", &[("doc_id", mothers)]);
    part("child", "doc_id", "''", "inserted_at", "ucr.children", &[("doc_id", children)]);
    part("item", "doc_id", "''", "inserted_at", "ucr.visit_items", &[("doc_id", with_items)]);
    part(
        "month",
        "owner_id",
        "month",
        "updated_at",
        "views.visits_by_month",
        &[("owner_id", workers), ("month", months)],
    );
    part("district", "district_id", "''", "updated_at", "views.districts", &[]);
    sql
}

fn distinct<'a>(values: &[&'a str]) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    values.iter().copied().filter(|value| seen.insert(*value)).collect()
}

/// The rows of one answer.
#[derive(Debug, Default)]
struct Found {
    asked: usize,
    forms: HashMap<String, i64>,
    /// Owner and stamp.
    mothers: HashMap<String, (String, i64)>,
    children: HashMap<String, i64>,
    /// Number of rows and their oldest stamp.
    items: HashMap<String, (usize, i64)>,
    months: HashMap<(String, String), i64>,
    districts: HashMap<String, i64>,
}

impl Found {
    fn add(&mut self, row: &SimpleQueryRow) {
        let text = |column| row.get(column).unwrap_or_default();
        self.add_row(text(0), text(1), text(2), text(3));
    }

    fn add_row(&mut self, what: &str, key: &str, detail: &str, stamp: &str) {
        let Some(stamp) = parse_micros(&stamp.replacen(' ', "T", 1)) else { return };
        let key = key.to_owned();
        match what {
            "form" => drop(self.forms.insert(key, stamp)),
            "mother" => drop(self.mothers.insert(key, (detail.to_owned(), stamp))),
            "child" => drop(self.children.insert(key, stamp)),
            "item" => {
                let (rows, oldest) = self.items.entry(key).or_insert((0, stamp));
                *rows += 1;
                *oldest = stamp.min(*oldest);
            }
            "month" => drop(self.months.insert((key, detail.to_owned()), stamp)),
            "district" => drop(self.districts.insert(key, stamp)),
            _ => {}
        }
    }

    /// The first thing about a form that this answer does not show, or nothing if it shows all of it.
    fn missing(&self, form: &Effects, population: &Population) -> Option<String> {
        let Some(since) = self.forms.get(&*form.form) else { return Some("the form".to_owned()) };
        let old = |stamp: Option<&i64>, dated: bool| stamp.is_none_or(|stamp| dated && stamp < since);
        let Some((owner, stamp)) = self.mothers.get(&*form.mother).filter(|(_, stamp)| stamp >= since) else {
            return Some(format!("ucr.pregnancies: {}", form.mother));
        };
        debug_assert!(stamp >= since);
        if let Some(child) = form.children.iter().find(|child| old(self.children.get(&***child), true)) {
            return Some(format!("ucr.children: {child}"));
        }
        if form.items > 0
            && self.items.get(&*form.form).is_none_or(|(rows, oldest)| *rows != form.items || oldest < since)
        {
            return Some(format!("ucr.visit_items: {} rows of the form", form.items));
        }
        if let Some((worker, month)) = &form.visit
            && old(self.months.get(&(worker.to_string(), month.clone())), form.changes_month)
        {
            return Some(format!("views.visits_by_month: {worker} {month}"));
        }
        let district = population.district_of(owner);
        if district.is_none_or(|district| old(self.districts.get(district), form.changes_district)) {
            return Some(format!("views.districts: {}", district.unwrap_or("unknown owner")));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit() -> Effects {
        Effects {
            form: Arc::from("f"),
            mother: Arc::from("m"),
            children: vec![Arc::from("c")],
            items: 2,
            visit: Some((Arc::from("w"), "2024-03".to_owned())),
            changes_month: true,
            changes_district: true,
        }
    }

    const ROWS: [(&str, &str, &str); 7] = [
        ("form", "f", ""),
        ("mother", "m", "OWNER"),
        ("child", "c", ""),
        ("item", "f", ""),
        ("item", "f", ""),
        ("month", "w", "2024-03"),
        ("district", "DISTRICT", ""),
    ];

    fn missing(population: &Population, dated: bool, stamps: [&str; 7]) -> Option<String> {
        let owner = &population.workers[0].id;
        let district = population.district_of(owner).unwrap();
        let mut found = Found::default();
        for ((what, key, detail), stamp) in ROWS.into_iter().zip(stamps).filter(|(_, stamp)| !stamp.is_empty()) {
            found.add_row(what, &key.replace("DISTRICT", district), &detail.replace("OWNER", owner), stamp);
        }
        found.missing(&Effects { changes_month: dated, changes_district: dated, ..visit() }, population)
    }

    #[test]
    fn a_form_is_visible_when_every_table_shows_it() {
        let population = Population::generate(1, 40, "demo", "secret");
        let [at, later, before] = ["2024-01-01 00:00:00.5", "2024-01-01 00:00:00.500001", "2024-01-01 00:00:00.499999"];
        let all = [at, later, later, at, at, at, later];
        assert_eq!(missing(&population, true, all), None);
        for (row, table) in
            ["the form", "pregnancies", "children", "visit_items", "visit_items", "visits_by_month", "districts"]
                .iter()
                .enumerate()
        {
            let mut stamps = all;
            stamps[row] = "";
            assert!(missing(&population, false, stamps).unwrap().contains(table), "without row {row}");
            if row > 0 {
                stamps[row] = before;
                assert!(missing(&population, true, stamps).unwrap().contains(table), "with an old row {row}");
                let group = row >= 5;
                assert_eq!(missing(&population, false, stamps).is_none(), group, "with an old row {row} that may be");
            }
        }
    }

    #[test]
    fn a_district_follows_its_workers() {
        let mut population = Population::generate(1, 40, "demo", "secret");
        let owner = population.workers[0].id.clone();
        let here = population.district_of(&owner).unwrap().to_owned();
        let village = population.level("village").into_iter().find(|village| {
            let mut moved = population.clone();
            moved.note(&owner, village);
            moved.district_of(&owner) != Some(&here)
        });
        let stamps = ["2024-01-01 00:00:00"; 7];
        let mut found = Found::default();
        for ((what, key, detail), stamp) in ROWS.into_iter().zip(stamps) {
            found.add_row(what, &key.replace("DISTRICT", &here), &detail.replace("OWNER", &owner), stamp);
        }
        assert_eq!(found.missing(&visit(), &population), None);
        population.note(&owner, &village.unwrap());
        assert!(found.missing(&visit(), &population).unwrap().contains("districts"));
    }

    #[test]
    fn one_statement_asks_for_all_and_each_once() {
        let (one, mut other) = (visit(), visit());
        other.form = Arc::from("it's");
        other.children.clear();
        let sql = statement(&[&one, &other]);
        assert_eq!(sql.matches("UNION ALL").count(), 5);
        assert!(sql.contains("FROM system.form_documents WHERE doc_id IN ('f','it''s')"), "{sql}");
        assert!(sql.contains("owner_id IN ('w') AND month IN ('2024-03')"), "{sql}");
        let mut registration = visit();
        (registration.visit, registration.items) = (None, 0);
        registration.children.clear();
        let sql = statement(&[&registration]);
        assert!(!sql.contains("children") && !sql.contains("visit") && sql.contains("districts"), "{sql}");
    }
}
