//! Starting again: from a checkpoint where there is one that can be trusted, from the primary store where there is none.

use schemas::port::{CheckpointStore, CheckpointStoreError};

use super::*;

/// A checkpoint store in memory, which may die.
#[derive(Clone, Debug, Default)]
pub(super) struct Blobs(Arc<PlainMutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Bytes written so far.
    written: usize,
    /// Calls that may still change something; without a number, all.
    left: Option<usize>,
}

impl Held {
    fn change(&mut self, doing: &'static str, name: &str) -> Result<(), CheckpointStoreError> {
        match &mut self.left {
            Some(0) => Err(CheckpointStoreError { doing, name: name.to_owned(), problem: "it is gone".to_owned() }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl CheckpointStore for Blobs {
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointStoreError> {
        let mut held = self.0.lock();
        held.change("write", name)?;
        held.written += bytes.len();
        held.blobs.insert(name.to_owned(), bytes);
        Ok(())
    }
    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointStoreError> {
        Ok(self.0.lock().blobs.get(name).cloned())
    }
    async fn list(&self) -> Result<Vec<String>, CheckpointStoreError> {
        Ok(self.0.lock().blobs.keys().cloned().collect())
    }
    async fn delete(&self, name: &str) -> Result<(), CheckpointStoreError> {
        let mut held = self.0.lock();
        held.change("delete", name)?;
        held.blobs.remove(name);
        Ok(())
    }
}

impl Blobs {
    fn names(&self) -> Vec<String> {
        self.0.lock().blobs.keys().cloned().collect()
    }

    fn manifest(&self) -> Option<Value> {
        serde_json::from_slice(self.0.lock().blobs.get("manifest.json")?).ok()
    }
}

/// A store with some mothers, children and views.
fn filled(mothers_and_children: u32) -> Store {
    let store = Store::default();
    let mut world = store.0.lock();
    world.identity = "one".to_owned();
    let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
    world.commit(vec![
        source("mothers", mothers()),
        source("children", children(false)),
        source("workers", simple("workers", "CommCareUser", &[("user_id", "_id"), ("location_id", "location_id")])),
        source(
            "places",
            simple("places", "Location", &[("place_id", "_id"), ("name", "name"), ("parent", "parent_id")]),
        ),
        (DocKind::AggregateView, "by_place".to_owned(), Some(by_place(true))),
        (DocKind::AggregateView, "kilos".to_owned(), Some(kilos())),
    ]);
    for id in 0..4 {
        commit(&mut world, &Step::MoveWorker { id, place: id });
        commit(&mut world, &Step::MovePlace { id, parent: id / 2 });
    }
    for id in 0..mothers_and_children {
        world.commit(pair(id, "low"));
    }
    drop(world);
    store
}

/// What is said about a mother, and is like nothing else.
fn note(id: u32) -> String {
    (1..30).map(|word| format!("{:x} ", (u64::from(id) * 31 + word).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

/// A mother and her child, as one form leaves them.
fn pair(id: u32, risk: &str) -> Vec<(DocKind, String, Option<Value>)> {
    let mother = json!({"_id": format!("m{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother",
        "owner_id": format!("w{}", id % 4), "risk": risk, "indices": [],
        "note": note(id)});
    let child = json!({"_id": format!("c{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "child",
        "owner_id": format!("w{}", id % 4), "mother_ref": format!("m{id}"), "kg": "3.5", "indices": []});
    vec![(DocKind::Case, format!("m{id}"), Some(mother)), (DocKind::Case, format!("c{id}"), Some(child))]
}

fn start(store: &Store, blobs: &Blobs, config: DataflowConfig) -> Arc<Dataflow> {
    let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
    Dataflow::start(config, Arc::new(store.clone()), Some(Arc::new(blobs.clone())), clock)
}

fn head(store: &Store) -> Position {
    Position { lane: LaneId::FIRST, sequence: Sequence(store.0.lock().sequence) }
}

/// Waits until everything is visible, and compares.
async fn check(store: &Store, dataflow: &Dataflow) {
    let snapshot = settled(dataflow, head(store)).await;
    compare(&store.0.lock(), &snapshot);
}

/// Waits for a checkpoint that holds everything, of which the log knows, and beside which nothing is left.
async fn checkpointed(store: &Store, blobs: &Blobs) {
    let (last, head) = (head(store).sequence.0, head(store).to_string());
    let deadline = Instant::now() + Duration::from_secs(10);
    let named = |manifest: Value| -> Vec<String> {
        let files = ["documents", "segments"].into_iter().flat_map(|kind| manifest[kind].as_array().unwrap().clone());
        let mut names: Vec<String> =
            files.chain([manifest["state"].clone()]).map(|file| file["name"].as_str().unwrap().to_owned()).collect();
        names.push("manifest.json".to_owned());
        names.sort();
        names
    };
    loop {
        let done = blobs.manifest().is_some_and(|manifest| manifest["frontier"] == json!([head]));
        // What the manifest does not name is deleted behind it.
        let kept = store.0.lock().kept;
        if done && kept == last && blobs.manifest().map(named) == Some(blobs.names()) {
            return;
        }
        assert!(Instant::now() < deadline, "no checkpoint of {head}: {:?}", blobs.manifest());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_restart_reads_the_checkpoint_and_the_log_behind_it() {
    // Also when there are more workers than before, or fewer.
    for [first, second, third] in [[1, 1, 1], [2, 2, 2], [1, 3, 2]] {
        let (store, blobs) = (filled(50), Blobs::default());
        let dataflow = start(&store, &blobs, config(first));
        check(&store, &dataflow).await;
        checkpointed(&store, &blobs).await;
        dataflow.shutdown().await;
        // The log before the checkpoint is gone, and there is more behind it.
        store.0.lock().log.clear();
        for id in 0..5 {
            store.0.lock().commit(pair(id, "high"));
        }
        commit(&mut store.0.lock(), &Step::MovePlace { id: 0, parent: 3 });
        commit(&mut store.0.lock(), &Step::Delete { mother: false, id: 9 });
        let dataflow = start(&store, &blobs, config(second));
        check(&store, &dataflow).await;
        assert_eq!(store.0.lock().scans, 1, "only the first start reads the primary store");
        checkpointed(&store, &blobs).await;
        dataflow.shutdown().await;
        // Nothing at all is new.
        let dataflow = start(&store, &blobs, config(third));
        check(&store, &dataflow).await;
        assert_eq!(store.0.lock().scans, 1);
        dataflow.shutdown().await;
    }
}

/// Changes what a checkpoint store holds.
type Spoil<'a> = &'a dyn Fn(&mut BTreeMap<String, Vec<u8>>);

#[tokio::test]
async fn a_checkpoint_that_cannot_be_trusted_is_not() {
    let (store, blobs) = (filled(20), Blobs::default());
    let dataflow = start(&store, &blobs, config(2));
    check(&store, &dataflow).await;
    checkpointed(&store, &blobs).await;
    dataflow.shutdown().await;
    let whole = blobs.0.lock().blobs.clone();
    let mut scans = 1;
    let mut again = async |spoil: Spoil<'_>| {
        blobs.0.lock().blobs.clone_from(&whole);
        spoil(&mut blobs.0.lock().blobs);
        let dataflow = start(&store, &blobs, config(2));
        check(&store, &dataflow).await;
        scans += 1;
        assert_eq!(store.0.lock().scans, scans, "the primary store is read instead");
        checkpointed(&store, &blobs).await;
        dataflow.shutdown().await;
    };
    for name in whole.keys() {
        again(&|blobs| drop(blobs.remove(name).filter(|_| name != "manifest.json"))).await;
        again(&|blobs| blobs.get_mut(name).unwrap().truncate(7)).await;
        again(&|blobs| {
            let bytes = blobs.get_mut(name).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
        })
        .await;
    }
    // Another primary store; another history of the same one; a log that begins behind the checkpoint.
    store.0.lock().identity = "two".to_owned();
    again(&|_| ()).await;
}

#[tokio::test]
async fn a_log_that_begins_behind_the_checkpoint_means_the_primary_store() {
    let (store, blobs) = (filled(20), Blobs::default());
    let dataflow = start(&store, &blobs, config(1));
    check(&store, &dataflow).await;
    checkpointed(&store, &blobs).await;
    dataflow.shutdown().await;
    for id in 0..5 {
        store.0.lock().commit(pair(id, "high"));
    }
    let last = store.0.lock().log.pop_back().unwrap();
    store.0.lock().log = [last].into();
    let dataflow = start(&store, &blobs, config(1));
    check(&store, &dataflow).await;
    assert_eq!(store.0.lock().scans, 2);
    dataflow.shutdown().await;
}

#[tokio::test]
async fn a_checkpoint_writes_what_has_changed() {
    let (store, blobs) = (filled(4000), Blobs::default());
    let dataflow = start(&store, &blobs, DataflowConfig { checkpoint_interval_ms: 500, ..config(1) });
    settled(&dataflow, head(&store)).await;
    checkpointed(&store, &blobs).await;
    let whole = std::mem::take(&mut blobs.0.lock().written);
    // One in a hundred documents, wherever they lie.
    let changed = (0..40).flat_map(|n| pair(n * 97, "high")).collect();
    store.0.lock().commit(changed);
    settled(&dataflow, head(&store)).await;
    checkpointed(&store, &blobs).await;
    let part = blobs.0.lock().written;
    assert!(part * 20 <= whole, "{part} bytes for one in a hundred of {whole}");
    dataflow.shutdown().await;
}

#[tokio::test]
async fn a_store_that_dies_at_any_step_leaves_the_checkpoint_before() {
    let (store, blobs) = (filled(30), Blobs::default());
    for step in 0..40 {
        blobs.0.lock().left = Some(step % 8);
        let dataflow = start(&store, &blobs, config(step as i64 % 2 + 1));
        for id in 0..3 {
            store.0.lock().commit(pair((step as u32 * 7 + id) % 40, "high"));
        }
        check(&store, &dataflow).await;
        if step % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        dataflow.shutdown().await;
    }
    assert!(store.0.lock().scans < 20, "most starts found a checkpoint");
    blobs.0.lock().left = None;
    store.0.lock().commit(pair(0, "low"));
    let dataflow = start(&store, &blobs, config(1));
    check(&store, &dataflow).await;
    checkpointed(&store, &blobs).await;
    dataflow.shutdown().await;
}
