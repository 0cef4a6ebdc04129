//! Who and where: the places and workers of the sample program, and the moves they make.
//!
//! In: a seed and the number of workers; or the documents of a recorded workload. Out: the JSON documents to import,
//! each worker's credentials, and for any worker the district that counts their cases. The shape (two states, districts,
//! blocks, villages; one village a worker; Zipf-distributed activity) is the shared workload's.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    random::{Ids, Stream},
    words,
};

/// Exponent of the Zipf law by which workers submit.
const ZIPF: f64 = 0.9;

/// A place of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its id.
    pub(crate) id: String,
    /// The place it lies in.
    pub(crate) parent: Option<String>,
    /// Its document as it is imported.
    pub(crate) document: Value,
}

/// A mobile worker.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    /// User id.
    pub(crate) id: String,
    /// User name without the domain.
    pub(crate) username: String,
    /// Password, for Basic credentials.
    pub(crate) password: String,
    /// Id of the phone.
    pub(crate) device: String,
    /// Id of the village.
    pub(crate) village: String,
    /// The document as it is imported, without the password.
    pub(crate) document: Value,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).field("username", &self.username).finish_non_exhaustive()
    }
}

/// All places and workers, as they stand now.
#[derive(Clone, Default)]
pub(crate) struct Population {
    /// Places, parents before children.
    pub(crate) places: Vec<Place>,
    /// Workers.
    pub(crate) workers: Vec<Worker>,
    place_by_id: HashMap<String, usize>,
    worker_by_id: HashMap<String, usize>,
    /// Who and what this run has moved, and where to.
    pub(crate) moves: BTreeMap<String, String>,
    secret: String,
}

impl fmt::Debug for Population {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Population({} places, {} workers)", self.places.len(), self.workers.len())
    }
}

impl Population {
    /// Nobody yet. Passwords of workers are derived from `secret`, so that a later run knows them without storing any.
    pub(crate) fn new(secret: &str) -> Self {
        Self { secret: secret.to_owned(), ..Self::default() }
    }

    /// Makes the population of a seed: the same for the same arguments.
    pub(crate) fn generate(seed: u64, workers: usize, domain: &str, secret: &str) -> Self {
        let mut population = Self::new(secret);
        let villages = (workers / 2).max(20);
        let blocks = (villages / 10).max(8);
        let districts = (blocks / 5).max(4);
        // Names that have to be unique in a domain hold the seed, so that populations of several seeds fit into one.
        let mut ids = Ids::new(seed, 0, "place");
        let mut parents: Vec<String> = Vec::new();
        for (kind, title, count) in [
            ("state", "State", 2),
            ("district", "District", districts),
            ("block", "Block", blocks),
            ("village", "Village", villages),
        ] {
            let level: Vec<String> = (0..count).map(|_| ids.next()).collect();
            for (i, id) in level.iter().enumerate() {
                let parent = if parents.is_empty() { None } else { parents.get(i % parents.len()).cloned() };
                population.add_place(json!({
                    "_id": id, "location_id": id, "domain": domain, "doc_type": "SQLLocation",
                    "name": format!("{title} {i:03}"), "site_code": format!("{kind}_{seed}_{i:03}"), "location_type": kind,
                    "parent_id": parent, "parent_location_id": parent, "is_archived": false,
                }));
            }
            parents = level;
        }
        let mut stream = Stream::new(seed ^ 0x0077_6f72_6b65_7273);
        let mut ids = Ids::new(seed, 0, "worker");
        for i in 0..workers {
            let id = ids.next();
            let [first, last] = [words::FIRST, words::LAST].map(|of| of[stream.index(of.len())]);
            let village = parents.get(i % parents.len().max(1)).cloned().unwrap_or_default();
            let document = json!({
                "_id": id, "domain": domain, "doc_type": "CommCareUser", "username": format!("chw{seed}-{i:05}"),
                "first_name": first, "last_name": last, "location_id": village, "is_active": true,
            });
            population.add_worker(document);
        }
        population
    }

    /// Adds a place, or replaces the one of the same id.
    pub(crate) fn add_place(&mut self, document: Value) {
        let id = text(&document, "_id");
        let parent = document.get("parent_id").and_then(Value::as_str).map(str::to_owned);
        let place = Place { id: id.clone(), parent, document };
        match self.place_by_id.get(&id).and_then(|at| self.places.get_mut(*at)) {
            Some(known) => *known = place,
            None => {
                self.place_by_id.insert(id, self.places.len());
                self.places.push(place);
            }
        }
    }

    /// Adds a worker, or replaces the one of the same id.
    pub(crate) fn add_worker(&mut self, document: Value) {
        let id = text(&document, "_id");
        let number = self.worker_by_id.get(&id).copied().unwrap_or(self.workers.len());
        let worker = Worker {
            id: id.clone(),
            username: text(&document, "username"),
            password: self.password(&id),
            device: format!("dev{number:06}"),
            village: text(&document, "location_id"),
            document,
        };
        match self.workers.get_mut(number) {
            Some(known) => *known = worker,
            None => {
                self.worker_by_id.insert(id, number);
                self.workers.push(worker);
            }
        }
    }

    fn password(&self, id: &str) -> String {
        let digest = Sha256::new()
            .chain_update("worker's password\0")
            .chain_update(&self.secret)
            .chain_update([0])
            .chain_update(id);
        digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The number of the worker with that id.
    pub(crate) fn worker_number(&self, id: &str) -> Option<usize> {
        self.worker_by_id.get(id).copied()
    }

    /// Id of the district that a worker's cases count in: village, its block, the block's district.
    pub(crate) fn district_of(&self, worker_id: &str) -> Option<&str> {
        let worker = self.workers.get(self.worker_number(worker_id)?)?;
        let block = self.place(&worker.village)?.parent.as_deref()?;
        self.place(block)?.parent.as_deref()
    }

    /// The place with that id.
    pub(crate) fn place(&self, id: &str) -> Option<&Place> {
        self.places.get(*self.place_by_id.get(id)?)
    }

    /// The worker's document after a move to another village.
    pub(crate) fn moved_worker(&self, number: usize, village: &str) -> Option<Value> {
        let mut document = self.workers.get(number)?.document.clone();
        set(&mut document, "location_id", village);
        Some(document)
    }

    /// The place's document after a move into another one.
    pub(crate) fn moved_place(&self, id: &str, parent: &str) -> Option<Value> {
        let mut document = self.place(id)?.document.clone();
        set(&mut document, "parent_id", parent);
        set(&mut document, "parent_location_id", parent);
        Some(document)
    }

    /// Notes where a worker or place now is, as read from the server. Unknown ids are ignored.
    pub(crate) fn note(&mut self, id: &str, inside: &str) {
        if let Some(number) = self.worker_number(id) {
            let moved = self.moved_worker(number, inside);
            if let (Some(worker), Some(document)) = (self.workers.get_mut(number), moved) {
                inside.clone_into(&mut worker.village);
                worker.document = document;
            }
        } else if let Some(document) = self.moved_place(id, inside) {
            self.add_place(document);
        }
    }

    /// Notes a move that this run made.
    pub(crate) fn moved(&mut self, id: &str, inside: &str) {
        self.note(id, inside);
        self.moves.insert(id.to_owned(), inside.to_owned());
    }

    /// Ids of the places of one level.
    pub(crate) fn level(&self, kind: &str) -> Vec<String> {
        let of_kind = |place: &&Place| place.document.get("location_type").and_then(Value::as_str) == Some(kind);
        self.places.iter().filter(of_kind).map(|place| place.id.clone()).collect()
    }
}

fn set(document: &mut Value, key: &str, value: &str) {
    if let Some(fields) = document.as_object_mut() {
        fields.insert(key.to_owned(), Value::from(value));
    }
}

fn text(document: &Value, key: &str) -> String {
    document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Draws workers by Zipf's law over a shuffled order.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    cumulative: Vec<f64>,
    order: Vec<usize>,
}

impl Activity {
    /// The law for so many workers.
    pub(crate) fn new(workers: usize, stream: &mut Stream) -> Self {
        let mut sum = 0.0;
        let cumulative = (0..workers)
            .map(|rank| {
                sum += ((rank + 1) as f64).powf(-ZIPF);
                sum
            })
            .collect();
        let mut order: Vec<usize> = (0..workers).collect();
        for i in (1..workers).rev() {
            order.swap(i, stream.index(i + 1));
        }
        Self { cumulative, order }
    }

    /// The next worker.
    pub(crate) fn draw(&self, stream: &mut Stream) -> usize {
        let at = stream.unit() * self.cumulative.last().copied().unwrap_or(0.0);
        let rank = self.cumulative.partition_point(|bound| *bound <= at);
        self.order.get(rank).or(self.order.last()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_population_is_decided_by_its_seed() {
        let [a, b, c] = [(1, 500), (1, 500), (2, 500)].map(|(seed, n)| Population::generate(seed, n, "demo", "secret"));
        assert_eq!(a.workers, b.workers);
        assert_eq!(a.places, b.places);
        assert_ne!(a.workers, c.workers);
        assert_eq!((a.workers.len(), a.level("village").len(), a.level("block").len()), (500, 250, 25));
        assert_eq!((a.level("district").len(), a.level("state").len()), (5, 2));
        assert!(a.workers.iter().all(|worker| a.district_of(&worker.id).is_some()));
    }

    #[test]
    fn moves_change_the_district() {
        let mut population = Population::generate(3, 40, "demo", "secret");
        let worker = population.workers[0].clone();
        let block = population.place(&worker.village).unwrap().parent.clone().unwrap();
        let elsewhere = population
            .level("district")
            .into_iter()
            .find(|d| Some(d.as_str()) != population.district_of(&worker.id))
            .unwrap();
        population.note(&block, &elsewhere);
        assert_eq!(population.district_of(&worker.id), Some(elsewhere.as_str()));
        let village = population.level("village")[7].clone();
        population.note(&worker.id, &village);
        assert_eq!(population.workers[0].village, village);
        assert_eq!(population.workers[0].document["location_id"], village.as_str());
        assert_eq!(population.workers[0].password, worker.password);
    }

    #[test]
    fn some_workers_submit_much_more_than_others() {
        let mut stream = Stream::new(5);
        let activity = Activity::new(500, &mut stream);
        let mut counts = vec![0_u32; 500];
        for _ in 0..20_000 {
            counts[activity.draw(&mut stream)] += 1;
        }
        counts.sort_unstable();
        let top: u32 = counts.iter().rev().take(50).sum();
        assert!((8_000..14_000).contains(&top), "{top} of 20000 by the busiest tenth");
        assert!(counts.iter().filter(|n| **n > 0).count() > 450);
    }
}
