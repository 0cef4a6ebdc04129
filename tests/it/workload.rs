//! The maternal-health workload: its events in order, the definitions of its tables, and the comparison with the oracle.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::Method;
use schemas::{
    change::ChangeRecord,
    position::{LaneId, Position, Sequence},
    sample,
};
use serde_json::{Value, json};

use crate::{
    oracle::{self, Table, World},
    server::{DOMAIN, Rows, Server, eventually, records},
};

/// Something that happens to the program, in order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A worker's document is now this.
    Worker(Value),
    /// A place's document is now this.
    Place(Value),
    /// A phone posts this form.
    Form { id: String, xml: String },
}

/// The program before its first form, and what happens then.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) places: Vec<Value>,
    pub(crate) workers: Vec<Value>,
    pub(crate) events: Vec<Event>,
}

/// How often, in forms, a worker or a village moves besides what the generator has.
const MOVE_EVERY: usize = 150;

impl Workload {
    /// Generates `forms` submissions. Small runs hold few moves, so further ones are drawn from the same seed.
    pub(crate) fn generate(forms: usize, seed: u64) -> Self {
        let out = generated(forms, seed);
        let mut submissions: VecDeque<Value> = lines(&out.path().join("submissions.jsonl")).into();
        let mut workload = Self { places: Vec::new(), workers: Vec::new(), events: Vec::new() };
        for change in lines(&out.path().join("changes.jsonl")) {
            let document = change["doc"].clone();
            let begun = !workload.events.is_empty();
            match change["topic"].as_str().unwrap() {
                "location" if begun => workload.events.push(Event::Place(document)),
                "location" => workload.places.push(document),
                "commcare-user" if begun => workload.events.push(Event::Worker(document)),
                "commcare-user" => workload.workers.push(document),
                "form-sql" => {
                    let submission = submissions.pop_front().unwrap();
                    assert_eq!(submission["form_id"], change["doc_id"]);
                    let text = |name: &str| submission[name].as_str().unwrap().to_owned();
                    workload.events.push(Event::Form { id: text("form_id"), xml: text("xml") });
                }
                _ => {}
            }
        }
        workload.add_moves(&mut StdRng::seed_from_u64(seed));
        workload
    }

    fn add_moves(&mut self, random: &mut StdRng) {
        let of_kind = |places: &[Value], kind: &str| -> Vec<Value> {
            places.iter().filter(|place| place["location_type"] == kind).cloned().collect()
        };
        let (villages, blocks) = (of_kind(&self.places, "village"), of_kind(&self.places, "block"));
        let mut at = MOVE_EVERY;
        while at < self.events.len() {
            let event = if random.random_bool(0.5) {
                let mut worker = self.workers[random.random_range(0..self.workers.len())].clone();
                worker["location_id"] = villages[random.random_range(0..villages.len())]["_id"].clone();
                Event::Worker(worker)
            } else {
                let mut village = villages[random.random_range(0..villages.len())].clone();
                village["parent_id"] = blocks[random.random_range(0..blocks.len())]["_id"].clone();
                Event::Place(village)
            };
            self.events.insert(at, event);
            at += MOVE_EVERY;
        }
    }
}

/// A directory with the files of `forms` submissions, as the shared generator writes them.
pub(crate) fn generated(forms: usize, seed: u64) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let generator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/workload/generate.py");
    let status = Command::new("python3")
        .arg(&generator)
        .args(["--forms", &forms.to_string(), "--seed", &seed.to_string(), "--out"])
        .arg(out.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{} failed: {status}", generator.display());
    out
}

/// The JSON values of a file, one a line.
pub(crate) fn lines(path: &PathBuf) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Puts the sample program's definitions, its places and its workers, and waits until its tables are there.
pub(crate) async fn set_up(server: &Server, workload: &Workload) {
    let definitions = sample::DATA_SOURCES.iter().map(|(id, text)| (format!("ucr/data-sources/{id}"), text));
    let definitions = definitions.chain(sample::AGGREGATE_VIEWS.iter().map(|(id, text)| (format!("views/{id}"), text)));
    let mut last = None;
    for (path, text) in definitions {
        last = Some(server.write(Method::PUT, &path, &serde_json::from_str(text).unwrap()).await);
    }
    for (path, documents) in [("import/locations", &workload.places), ("import/users", &workload.workers)] {
        last = Some(server.write(Method::POST, path, &documents.clone().into()).await);
    }
    server.sql("SELECT 1 AS one", last).await;
    for (id, _) in sample::DATA_SOURCES.iter().chain(sample::AGGREGATE_VIEWS) {
        view_is_live(server, id).await;
    }
}

/// Waits until the view of that id is built.
pub(crate) async fn view_is_live(server: &Server, id: &str) {
    let statement = format!("SELECT state, message FROM system.views WHERE id = '{id}'");
    eventually(&format!("view {id}"), async || {
        let rows = server.try_sql(&statement, None).await?.rows;
        let states: Vec<&str> = rows.iter().filter_map(|row| row["state"].as_str()).collect();
        assert!(!states.contains(&"failed"), "view {id} failed: {rows:?}");
        if states == ["live"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
}

/// Makes an event happen and returns its receipt.
pub(crate) async fn happen(server: &Server, event: &Event) -> Position {
    match event {
        Event::Worker(worker) => server.write(Method::POST, "import/users", &json!([worker])).await,
        Event::Place(place) => server.write(Method::POST, "import/locations", &json!([place])).await,
        Event::Form { id, xml } => {
            let reply = server.submit(xml).await.unwrap();
            assert_eq!(reply.status, 201, "form {id}: {}", reply.text);
            reply.position.unwrap()
        }
    }
}

/// A table under comparison: how it is read, what identifies its rows, and its right content.
pub(crate) struct Check {
    pub(crate) from: &'static str,
    pub(crate) key: &'static [&'static str],
    pub(crate) right: fn(&World) -> Table,
}

/// The five tables of the workload.
pub(crate) const CHECKS: [Check; 5] = [
    Check { from: "ucr.pregnancies", key: &["doc_id"], right: World::pregnancies },
    Check { from: "ucr.visit_items", key: &["form_id", "idx"], right: World::visit_items },
    Check { from: "views.visits_by_month", key: &["owner_id", "month"], right: World::visits_by_month },
    Check { from: "ucr.children", key: &["child_id"], right: World::children },
    Check { from: "views.districts", key: &["district_id"], right: World::districts },
];

/// The committed records of a server, folded up to where some answer stood.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    pub(crate) world: World,
    through: Sequence,
    ahead: VecDeque<ChangeRecord>,
    /// Forms and the first record that holds each.
    pub(crate) forms: BTreeMap<String, Position>,
}

impl Committed {
    /// Folds exactly the records up to `through`, which never goes back.
    pub(crate) async fn fold(&mut self, store: &tokio_postgres::Client, through: Sequence) {
        assert!(through >= self.through, "answers went back from record {} to {}", self.through.0, through.0);
        let newest = self.ahead.back().map_or(self.through, |record| record.position.sequence);
        if newest < through {
            self.ahead.extend(records(store, newest).await);
        }
        while let Some(record) = self.ahead.pop_front_if(|record| record.position.sequence <= through) {
            assert_eq!(record.position.sequence, self.through.next(), "the log has a hole");
            self.through = record.position.sequence;
            for document in record.documents {
                let body = document.body.map(|body| serde_json::from_str(body.get()).unwrap());
                if document.kind.name() == "form" {
                    self.forms.entry(document.id.to_string()).or_insert(record.position);
                }
                self.world.apply(document.kind.name(), document.id.as_str(), body);
            }
        }
        assert_eq!(self.through, through, "an answer claims records that were never committed");
    }

    /// Reads a table once `receipt` is visible, and compares it with the right answer over exactly the records that the
    /// answer says it is computed from.
    pub(crate) async fn compare(&mut self, server: &Server, check: &Check, receipt: Option<Position>) -> Rows {
        let answer = server.sql(&format!("SELECT * FROM {}", check.from), receipt).await;
        if let Some(receipt) = receipt {
            assert!(answer.complete_through.covers(receipt), "{} without {receipt}", answer.complete_through);
        }
        self.verify(server, check, &answer).await;
        answer
    }

    /// Compares an answer with the right one.
    pub(crate) async fn verify(&mut self, server: &Server, check: &Check, answer: &Rows) {
        let store = server.store().await;
        self.fold(&store, answer.complete_through.at(LaneId::FIRST)).await;
        let differences = oracle::differences(&(check.right)(&self.world), check.key, &answer.rows);
        assert!(
            differences.is_empty(),
            "{} at {} of domain {DOMAIN} is wrong:\n{}",
            check.from,
            answer.complete_through,
            differences.join("\n")
        );
    }

    /// Compares the five tables; returns their numbers of rows.
    pub(crate) async fn compare_all(&mut self, server: &Server, receipt: Option<Position>) -> Vec<usize> {
        let mut rows = Vec::new();
        for check in &CHECKS {
            rows.push(self.compare(server, check, receipt).await.rows.len());
        }
        rows
    }
}
