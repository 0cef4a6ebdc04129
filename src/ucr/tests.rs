//! Real data sources, fed with documents that fit them: their live tables equal their rows computed from scratch.

mod generate;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use schemas::{change::DocKind, doc::Doc, position::Stamp, row::Cell};
use serde_json::{Value as Json, json};
use udf::{DataSource, Related, Relation};

use self::generate::{Ids, Shape};
use super::{
    explain::Explanation,
    live::{Change, Installed, Live},
    scenario::rebuild,
    store::{Store, carried, kinds},
    vector::{NOW, config},
};

/// Documents that have to pass the filter.
const PASSING: usize = 50;
/// Columns that have to take two values or more, percent.
const VARIED: usize = 90;
/// Documents of the data source's kind are generated in rounds of so many, until enough columns vary.
const ROUND: usize = 80;
const ROUNDS: usize = 8;
/// Documents drawn for one that has rows.
const DRAWS: usize = 20;
/// Documents of each other kind.
const OTHERS: usize = 60;

fn configs() -> PathBuf {
    match std::env::var_os("MILLRACE_UCR_VECTORS") {
        Some(path) => PathBuf::from(path).with_file_name("configs"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/ucr/configs"),
    }
}

/// The data sources among the configurations, by file.
fn data_sources() -> BTreeMap<String, Json> {
    let directory = configs();
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if file.ends_with(".json") {
            let definition = config(&directory, &file).unwrap();
            if definition.get("referenced_doc_type").is_some() {
                found.insert(file, definition);
            }
        }
    }
    found
}

/// What a config was fed and gave.
struct Coverage {
    passing: usize,
    rows: usize,
    varied: usize,
    columns: usize,
    constant: Vec<String>,
}

fn put(documents: &mut BTreeMap<String, Json>, id: &str, document: Json) -> Vec<Change> {
    let changes = carried(id, &document).into_iter().map(|put| (put.kind, put.id, Some(put.body))).collect();
    documents.insert(id.to_owned(), document);
    changes
}

/// Feeds documents in a random order, then changes and deletes some, so that rows are made, made again and taken back.
async fn feed(
    live: &mut Live,
    installed: &mut Installed,
    shape: &mut Shape<'_>,
    ids: &Ids,
    documents: &mut BTreeMap<String, Json>,
    new: Vec<(String, Json)>,
    rng: &mut StdRng,
) {
    let mut new = new;
    new.shuffle(rng);
    for some in new.chunks(7) {
        let mut changes = Vec::new();
        for (id, document) in some {
            changes.extend(put(documents, id, document.clone()));
        }
        live.change(installed, changes).await.unwrap();
    }
    let present: Vec<String> = documents.keys().cloned().collect();
    for id in present.iter().filter(|_| rng.random_bool(0.1)).cloned().collect::<Vec<_>>() {
        let kind = kinds(&documents[&id])[0];
        let changes = if rng.random_bool(0.2) {
            documents.remove(&id);
            vec![(kind, id, None)]
        } else if kind == shape.own_kind() {
            let document = shape.own(&id, ids, rng);
            put(documents, &id, document)
        } else {
            let document = shape.document(kind, &id, ids, rng);
            put(documents, &id, document)
        };
        live.change(installed, changes).await.unwrap();
    }
}

/// Answers from a store and notes what it was asked for.
struct Noting<'s> {
    store: &'s mut Store,
    asked: BTreeSet<Relation>,
}

impl Related for Noting<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        self.asked.insert(relation.clone());
        self.store.get(relation, key)
    }
}

/// A document that has rows, if one is drawn soon.
fn fitting(
    source: &DataSource,
    shape: &mut Shape<'_>,
    id: &str,
    ids: &Ids,
    store: &mut Store,
    rng: &mut StdRng,
) -> Json {
    let mut document = shape.own(id, ids, rng);
    for _ in 0..DRAWS {
        let doc = Doc::from_value(&document).unwrap();
        if source.evaluate(&doc, Stamp(NOW), NOW, store).is_ok_and(|rows| !rows.is_empty()) {
            break;
        }
        document = shape.own(id, ids, rng);
    }
    document
}

async fn cover(definition: &Json, source: &DataSource, live: &mut Live) -> Coverage {
    let mut rng = StdRng::seed_from_u64(7);
    let mut shape = Shape::read(definition);
    let own = shape.own_kind();
    // What is looked up is among the first documents of each kind, so that it is looked up often.
    let first = |kind: DocKind| (0..OTHERS).map(move |number| format!("{}-{number}", kind.name()));
    let ids: Ids = shape.kinds().into_iter().map(|kind| (kind, first(kind).collect())).collect();
    let mut installed = live.install(definition).await.unwrap();
    let mut documents = BTreeMap::new();
    let mut others = Vec::new();
    for kind in shape.kinds().into_iter().filter(|kind| *kind != own) {
        for id in &ids[&kind] {
            others.push((id.clone(), shape.document(kind, id, &ids, &mut rng)));
        }
    }
    let mut coverage =
        Coverage { passing: 0, rows: 0, varied: 0, columns: source.columns().len(), constant: Vec::new() };
    for round in 0..ROUNDS {
        let mut new = std::mem::take(&mut others);
        let known = documents.clone().into_iter().chain(new.iter().cloned()).collect();
        let mut store = Store::of_documents(known, source.domain());
        for number in round * ROUND..(round + 1) * ROUND {
            let id = format!("{}-{number}", own.name());
            // One in four is any document of the kind: what others point at, and what does not pass.
            let document = match rng.random_bool(0.25) {
                true => shape.document(own, &id, &ids, &mut rng),
                false => fitting(source, &mut shape, &id, &ids, &mut store, &mut rng),
            };
            new.push((id, document));
        }
        feed(live, &mut installed, &mut shape, &ids, &mut documents, new, &mut rng).await;
        let mut store = Store::of_documents(documents.clone(), source.domain());
        let rebuilt: Vec<_> = rebuild(source, &mut store, NOW).into_values().flatten().collect();
        let difference = live.difference(&installed, source, None, rebuilt).await.unwrap();
        assert_eq!(difference, None, "{}", source.readable_name());
        let rows = live.rows(&installed, source, None).await.unwrap();
        let varies = |at: &usize| rows.iter().filter_map(|row| row.get(*at)).collect::<BTreeSet<&Cell>>().len() > 1;
        let (varied, constant): (Vec<usize>, Vec<usize>) = (0..coverage.columns).partition(varies);
        coverage.varied = varied.len();
        coverage.constant = constant.iter().map(|at| source.columns()[*at].id.clone()).collect();
        coverage.rows = rows.len();
        let mut noting = Noting { store: &mut store, asked: BTreeSet::new() };
        coverage.passing = 0;
        for document in documents.values() {
            let doc = Doc::from_value(document).unwrap();
            coverage.passing += usize::from(source.filter(&doc, NOW, &mut noting).unwrap_or(false));
            // A document that fails has asked all the same.
            drop(source.evaluate(&doc, Stamp(NOW), NOW, &mut noting));
        }
        let explained: BTreeSet<Relation> = source.demands().iter().map(|demand| demand.relation.clone()).collect();
        assert!(noting.asked.is_subset(&explained), "{:?} are asked for, {explained:?} explained", noting.asked);
        if coverage.passing >= PASSING && coverage.varied == coverage.columns {
            break;
        }
    }
    coverage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_data_sources_are_live() {
    let mut live = Live::start(NOW);
    let mut below = Vec::new();
    for (file, definition) in data_sources() {
        let source = match Explanation::of(&definition) {
            Explanation::Valid(_) => DataSource::compile(&definition).unwrap(),
            Explanation::Invalid(found) => {
                let others =
                    found.problems.iter().filter(|problem| !problem.message.ends_with("is not an expression type"));
                assert_eq!(others.count(), 0, "{file}: {found}");
                println!("{file}: not maintained, needs {:?}", found.unknown_types);
                continue;
            }
        };
        let Coverage { passing, rows, varied, columns, constant } = cover(&definition, &source, &mut live).await;
        println!(
            "{file}: {passing} documents pass, {rows} rows, {varied} of {columns} columns vary; constant: {constant:?}"
        );
        if passing < PASSING || varied * 100 < columns * VARIED {
            below.push(file);
        }
    }
    live.stop().await;
    assert_eq!(below, [""; 0]);
}

/// A table that were wrong would be noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_seen() {
    let definition = json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase", "configured_filter": {},
        "configured_indicators": [{"type": "raw", "column_id": "name", "datatype": "string", "property_name": "name"}]});
    let source = DataSource::compile(&definition).unwrap();
    let case = |name: &str| json!({"_id": "c", "doc_type": "CommCareCase", "domain": "demo", "name": name});
    let rebuilt = |documents: &[Json]| {
        let documents = documents.iter().map(|document| ("c".to_owned(), document.clone())).collect();
        rebuild(&source, &mut Store::of_documents(documents, "demo"), NOW).into_values().flatten().collect()
    };
    let mut live = Live::start(NOW);
    let mut installed = live.install(&definition).await.unwrap();
    live.change(&mut installed, put(&mut BTreeMap::new(), "c", case("a"))).await.unwrap();
    let mut differences = Vec::new();
    for documents in [&[case("a")][..], &[case("b")], &[]] {
        differences.push(live.difference(&installed, &source, None, rebuilt(documents)).await.unwrap());
    }
    assert_eq!(differences[0], None);
    assert!(differences[1].as_ref().unwrap().starts_with("name of "), "{differences:?}");
    assert!(differences[2].as_ref().unwrap().contains("has 1 rows"), "{differences:?}");
    live.stop().await;
}
