//! Several domains over several lanes that come in at different speeds. Whatever the order, every published snapshot is
//! the batch recomputation over exactly the records that it covers.

use std::collections::BTreeSet;

use super::*;

mod transfers;

/// The log of a primary store, by lane.
#[derive(Debug, Default)]
struct Log {
    stamp: i64,
    lanes: BTreeMap<LaneId, Vec<Arc<ChangeRecord>>>,
}

impl Log {
    fn append(&mut self, lane: LaneId, domain: &DomainId, documents: Vec<ChangedDocument>) -> Position {
        let records = self.lanes.entry(lane).or_default();
        let position = Position { lane, sequence: Sequence(records.len() as u64 + 1) };
        records.push(Arc::new(ChangeRecord { position, domain: domain.clone(), documents }));
        position
    }

    /// One transaction.
    fn commit(&mut self, lane: LaneId, domain: &DomainId, changes: &[Written]) -> Position {
        let documents = changes.iter().map(|(kind, id, body)| {
            self.stamp += 1;
            changed(*kind, id, self.stamp, body.as_ref())
        });
        let documents = documents.collect();
        self.append(lane, domain, documents)
    }

    /// What the records up to a frontier make of each domain: of each document its newest version, whatever the order.
    fn until(&self, frontier: &Frontier) -> BTreeMap<DomainId, Present> {
        let records = self.lanes.iter().flat_map(|(lane, records)| records.iter().take(frontier.at(*lane).0 as usize));
        let mut newest: BTreeMap<(&DomainId, DocKind, &str), &ChangedDocument> = BTreeMap::new();
        for record in records {
            for document in &record.documents {
                let held = newest.entry((&record.domain, document.kind, document.id.as_str())).or_insert(document);
                if document.stamp > held.stamp {
                    *held = document;
                }
            }
        }
        let mut domains: BTreeMap<DomainId, Present> = BTreeMap::new();
        for ((domain, kind, id), document) in newest {
            let present = domains.entry(domain.clone()).or_default();
            if let Some(body) = &document.body {
                let body = serde_json::from_str(body.get()).unwrap();
                present.insert((kind, id.to_owned()), (document.stamp.0, body));
            }
        }
        domains
    }

    /// The records behind a frontier, by lane.
    fn behind(&self, frontier: &Frontier) -> BTreeMap<LaneId, VecDeque<Arc<ChangeRecord>>> {
        let lanes = self.lanes.iter().map(|(lane, records)| {
            let behind = records.iter().skip(frontier.at(*lane).0 as usize).cloned().collect();
            (*lane, behind)
        });
        lanes.collect()
    }

    fn end(&self) -> Frontier {
        let mut frontier = Frontier::default();
        self.lanes.values().filter_map(|records| records.last()).for_each(|last| frontier.advance(last.position));
        frontier
    }
}

/// A store whose scan stands at a frontier, and whose log brings what a test lets through.
struct Gated {
    documents: BTreeMap<DomainId, Present>,
    frontier: Frontier,
    let_through: PlainMutex<Option<mpsc::UnboundedReceiver<SourceEvent>>>,
}

struct Gate(mpsc::UnboundedReceiver<SourceEvent>);

#[async_trait]
impl schemas::port::ChangeSource for Gate {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        match self.0.recv().await {
            Some(event) => Ok(event),
            None => std::future::pending().await,
        }
    }
}

/// A scan of one database after the other.
struct DatabaseScan {
    frontier: Frontier,
    left: VecDeque<(u16, Vec<BootstrapDocument>)>,
    database: Option<u16>,
}

#[async_trait]
impl BootstrapScan for DatabaseScan {
    fn frontier(&self) -> Frontier {
        self.frontier.clone()
    }
    fn expected(&self) -> u64 {
        0
    }
    fn database(&self) -> Option<u16> {
        self.database
    }
    async fn next(&mut self) -> Result<Option<Vec<BootstrapDocument>>, SourceError> {
        let Some((database, documents)) = self.left.pop_front() else { return Ok(None) };
        self.database = Some(database);
        Ok(Some(documents))
    }
}

#[async_trait]
impl Bootstrap for Gated {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        let mut left = VecDeque::new();
        for (domain, present) in &self.documents {
            let database = domains().iter().position(|of| of == domain).unwrap() as u16;
            let documents = present.iter().map(|((kind, id), (stamp, body))| BootstrapDocument {
                domain: domain.clone(),
                document: changed(*kind, id, *stamp, Some(body)),
            });
            let documents: Vec<BootstrapDocument> = documents.collect();
            left.extend(documents.chunks(5).map(|some| (database, some.to_vec())));
        }
        Ok(Box::new(DatabaseScan { frontier: self.frontier.clone(), left, database: None }))
    }

    async fn changes(&self, _: Frontier) -> Result<Box<dyn schemas::port::ChangeSource>, SourceError> {
        Ok(Box::new(Gate(self.let_through.lock().take().unwrap())))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Ok("gated".to_owned())
    }

    async fn kept(&self, _: &str, _: &Frontier) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A running dataflow, and the end of its log that a test holds in its hand.
struct Driven {
    log: Log,
    dataflow: Arc<Dataflow>,
    clock: Arc<SetClock>,
    gate: mpsc::UnboundedSender<SourceEvent>,
    waiting: BTreeMap<LaneId, VecDeque<Arc<ChangeRecord>>>,
    seen: Arc<Snapshot>,
}

impl Driven {
    /// Starts from the records up to `scanned`; the others wait.
    async fn start(log: Log, scanned: Frontier, workers: i64) -> Self {
        let (gate, let_through) = mpsc::unbounded_channel();
        let waiting = log.behind(&scanned);
        let store = Gated {
            documents: log.until(&scanned),
            frontier: scanned.clone(),
            let_through: PlainMutex::new(Some(let_through)),
        };
        let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
        let dataflow = Dataflow::start(config(workers), Arc::new(store), None, Arc::clone(&clock) as _);
        let last = scanned.positions().last().unwrap();
        let seen = shown(&dataflow, last).await;
        Self { log, dataflow, clock, gate, waiting, seen }
    }

    /// Lets the next `count` records of one of the lanes through, as one event; returns the last of them.
    fn let_through(&mut self, lane: usize, count: usize) -> Option<Position> {
        self.waiting.retain(|_, records| !records.is_empty());
        let lane = *self.waiting.keys().nth(lane % self.waiting.len().max(1))?;
        let records = self.waiting.get_mut(&lane)?;
        let next: Vec<_> = records.drain(..count.min(records.len())).collect();
        let last = next.last()?.position;
        self.gate.send(SourceEvent::Records(next)).unwrap();
        Some(last)
    }

    /// Waits for a record and takes in the snapshot that shows it; none is older than one that was seen before.
    async fn see(&mut self, position: Position) -> &Arc<Snapshot> {
        let snapshot = shown(&self.dataflow, position).await;
        for domain in domains() {
            let (before, now) = (self.seen.moment_of(&domain), snapshot.moment_of(&domain));
            assert!(now.complete_through.covers(position));
            for before in before.complete_through.positions() {
                assert!(now.complete_through.covers(before), "{before} was visible before");
            }
            assert!(now.tick >= before.tick);
        }
        self.seen = snapshot;
        &self.seen
    }
}

/// The first snapshot that shows a record in all domains.
async fn shown(dataflow: &Dataflow, position: Position) -> Arc<Snapshot> {
    for domain in domains() {
        dataflow.wait_for(&domain, position, Duration::from_secs(10)).await.unwrap();
    }
    dataflow.snapshot()
}

/// When the two domains' own lanes were last heard of, in seconds, once the first domain's is that.
async fn heard_of(driven: &Driven, first: i64) -> [i64; 2] {
    let begun = Instant::now();
    loop {
        let snapshot = driven.dataflow.snapshot();
        let seconds = domains().map(|domain| snapshot.seen_at(&domain) / 1_000_000);
        if seconds[0] == first {
            return seconds;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{seconds:?} and not {first}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_lane_that_is_away_is_missed_in_its_own_domains_alone() {
    runtime().block_on(async {
        let mut log = Log::default();
        for (at, domain) in domains().iter().enumerate() {
            log.commit(lanes(at)[0], domain, &definitions(domain));
        }
        let scanned = log.end();
        log.commit(lanes(0)[0], &domains()[0], &[(DocKind::User, "w".to_owned(), Some(json!({"_id": "w"})))]);
        let mut driven = Driven::start(log, scanned, 1).await;
        let lanes = [lanes(0)[0], lanes(1)[0]];
        assert_eq!(heard_of(&driven, 1).await, [1, 1]);
        let clock = Arc::clone(&driven.clock);
        let at = |seconds: i64| clock.0.store(seconds * 1_000_000, Ordering::Relaxed);
        at(20);
        driven.gate.send(SourceEvent::Stalled(lanes[1])).unwrap();
        driven.gate.send(SourceEvent::IdleIn(vec![lanes[0]])).unwrap();
        assert_eq!(heard_of(&driven, 20).await, [20, 1]);
        assert_eq!(driven.dataflow.snapshot().sources_seen_at, 1_000_000);
        at(30);
        let position = driven.let_through(0, 1).unwrap();
        driven.see(position).await;
        assert_eq!(heard_of(&driven, 30).await, [30, 1], "records of one lane say nothing of the other");
        at(40);
        driven.gate.send(SourceEvent::Idle).unwrap();
        assert_eq!(heard_of(&driven, 40).await, [40, 40]);
        assert!(driven.dataflow.snapshot().lanes_seen_at.is_empty());
        driven.dataflow.shutdown().await;
    });
}

/// Each step of a schedule: which of the lanes that have something left, how many records as one event, and whether the
/// snapshot is looked at before the next event.
type Schedule = Vec<(usize, usize, bool)>;

fn schedule() -> impl Strategy<Value = Schedule> {
    prop::collection::vec((0usize..8, 1usize..4, prop::bool::weighted(0.7)), 1..12)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn domains() -> [DomainId; 2] {
    ["demo", "other"].map(|name| DomainId::new(name).unwrap())
}

/// The lanes of a domain: two of its database, and that of web users.
fn lanes(domain: usize) -> [LaneId; 3] {
    let database = domain as u16;
    [LaneId { database, writer: 0 }, LaneId { database, writer: 1 }, LaneId::control(database)]
}

/// A document as three small numbers and a flag make it.
#[derive(Clone, Debug)]
struct Shape {
    kind: DocKind,
    id: u8,
    a: u8,
    b: u8,
    flag: bool,
}

const KINDS: [DocKind; 9] = [
    DocKind::Case,
    DocKind::Form,
    DocKind::Ledger,
    DocKind::User,
    DocKind::WebUser,
    DocKind::Location,
    DocKind::Group,
    DocKind::LookupRow,
    DocKind::LookupTable,
];

impl Shape {
    fn id(&self) -> String {
        let letter = match self.kind {
            DocKind::Case => 'c',
            DocKind::Form => 'f',
            DocKind::Ledger => 's',
            DocKind::User => 'w',
            DocKind::WebUser => 'u',
            DocKind::Location => 'p',
            DocKind::Group => 'g',
            DocKind::LookupRow => 'r',
            _ => 't',
        };
        format!("{letter}{}", self.id)
    }

    /// The first cases are mothers, the others their children.
    fn body(&self, domain: &DomainId) -> Value {
        let Self { kind, id, a, b, flag } = self;
        let mut body = match kind {
            DocKind::Case if *id < 3 => {
                json!({"doc_type": if *b == 5 { "CommCareCase-Deleted" } else { "CommCareCase" },
                "type": "mother", "owner_id": format!("w{a}"), "risk": if *flag { "high" } else { "low" }, "indices": []})
            }
            DocKind::Case => {
                json!({"doc_type": "CommCareCase", "type": "child", "owner_id": format!("w{a}"), "kg": a + b,
                "item": format!("r{a}"), "watcher": format!("u{b}"), "indices": if *flag {
                    json!([{"identifier": "mother", "referenced_id": format!("c{}", b % 3), "relationship": "child"}])
                } else {
                    json!([])
                }})
            }
            DocKind::Form => {
                json!({"doc_type": if *a == 5 { "XFormArchived" } else { "XFormInstance" }, "xmlns": "visit",
                "user_id": format!("w{a}"), "form": {"weight": a, "case": if *flag {
                    json!({"@case_id": format!("c{b}")})
                } else {
                    json!([{"@case_id": format!("c{b}")}, {"@case_id": format!("c{a}")}])
                }}})
            }
            DocKind::Ledger => json!({"case_id": format!("c{}", a % 3), "section_id": "stock", "entry_id": "iron",
                "product_code": "iron", "balance": b}),
            DocKind::User => json!({"doc_type": "CommCareUser", "location_id": format!("p{a}")}),
            DocKind::WebUser => json!({"doc_type": "WebUser", "username": format!("name {a}")}),
            DocKind::Location => {
                json!({"doc_type": "Location", "name": format!("Place {b}"), "parent_location_id": format!("p{a}"),
                "location_type": if *flag { "district" } else { "village" }})
            }
            DocKind::Group => json!({"doc_type": "Group", "name": format!("Group {id}"), "case_sharing": flag,
                "reporting": b % 2 == 0, "users": [format!("w{a}"), format!("w{b}")]}),
            DocKind::LookupRow => json!({"doc_type": "FixtureDataItem", "price": a, "table": format!("t{b}")}),
            _ => json!({"doc_type": "FixtureDataType", "tag": format!("tag {a}")}),
        };
        body["_id"] = self.id().into();
        body["domain"] = domain.as_str().into();
        body
    }
}

/// What happens to the log.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction on one of a domain's lanes; a document without a shape's body is deleted.
    Commit { domain: usize, lane: usize, documents: Vec<(Shape, bool)> },
    /// An earlier record comes once more on another of its domain's lanes, with the stamps that it had.
    Repeat { record: usize, lane: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let shape = (0usize..KINDS.len() + 4, 0u8..6, 0u8..6, 0u8..6, any::<bool>()).prop_map(|(kind, id, a, b, flag)| {
        // Cases and forms come more often than the others.
        let kind = KINDS.get(kind).copied().unwrap_or(KINDS[kind % 2]);
        Shape { kind, id, a, b, flag }
    });
    let documents = prop::collection::vec((shape, prop::bool::weighted(0.85)), 1..4);
    prop_oneof![
        8 => (0usize..2, 0usize..3, documents).prop_map(|(domain, lane, documents)| Step::Commit { domain, lane, documents }),
        1 => (any::<prop::sample::Index>(), 0usize..3).prop_map(|(record, lane)| Step::Repeat { record: record.index(1 << 16), lane }),
    ]
}

fn apply(log: &mut Log, done: &mut Vec<(usize, Vec<ChangedDocument>)>, step: &Step) {
    let domains = domains();
    match step {
        Step::Commit { domain, lane, documents } => {
            let mut ids = BTreeSet::new();
            let documents = documents.iter().filter(|(shape, _)| ids.insert((shape.kind, shape.id)));
            let changes: Vec<Written> = documents
                .map(|(shape, present)| (shape.kind, shape.id(), present.then(|| shape.body(&domains[*domain]))))
                .collect();
            let position = log.commit(lanes(*domain)[*lane], &domains[*domain], &changes);
            let record = &log.lanes[&position.lane][position.sequence.0 as usize - 1];
            done.push((*domain, record.documents.clone()));
        }
        Step::Repeat { record, lane } => {
            let Some((domain, documents)) = done.get(record % done.len().max(1)) else { return };
            log.append(lanes(*domain)[*lane], &domains[*domain], documents.clone());
        }
    }
}

fn source(id: &str, domain: &DomainId, doc_type: &str, case_type: Option<&str>, columns: &[Value]) -> Written {
    let filter = case_type.map(|case_type| {
        json!({"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": case_type})
    });
    let body = json!({"doc_type": "DataSourceConfiguration", "domain": domain.as_str(), "table_id": id,
        "referenced_doc_type": doc_type, "configured_filter": filter.unwrap_or_else(|| json!({})),
        "configured_indicators": columns});
    (DocKind::DataSource, id.to_owned(), Some(body))
}

fn count(items: &Value) -> Value {
    json!({"type": "reduce_items", "aggregation_fn": "count", "items_expression": items})
}

/// Data sources that read documents in every way there is, and aggregate views over them.
fn definitions(domain: &DomainId) -> Vec<Written> {
    let place = related(&property("owner_id"), "CommCareUser", "location_id");
    let mother = json!({"type": "nested", "argument_expression": {"type": "indexed_case", "index": "mother",
        "case_expression": {"type": "identity"}}, "value_expression": property("risk")});
    let of_case = |name: &str| json!({"type": name, "case_id_expression": property("_id")});
    let of_owner = |name: &str| {
        json!({"type": "map_items", "map_expression": property("name"),
        "items_expression": {"type": name, "user_id_expression": property("owner_id")}})
    };
    let weights = json!({"type": "map_items", "items_expression": of_case("get_case_forms"),
        "map_expression": {"type": "property_path", "property_path": ["form", "weight"]}});
    let table = related(&related(&property("item"), "FixtureDataItem", "table"), "FixtureDataType", "tag");
    let patients = json!({"type": "property_path", "property_path": ["form", "case", "@case_id"]});
    let view = |id: &str, body: Value| (DocKind::AggregateView, id.to_owned(), Some(body));
    vec![
        source(
            "children",
            domain,
            "CommCareCase",
            Some("child"),
            &[
                column("owner_id", "string", &property("owner_id")),
                column("kg", "integer", &property("kg")),
                column("mother", "string", &mother),
                column("place", "string", &related(&place, "Location", "name")),
                column(
                    "district",
                    "string",
                    &json!({"type": "ancestor_location", "location_id": place,
                "location_type": "district", "location_property": "name"}),
                ),
                column("price", "integer", &related(&property("item"), "FixtureDataItem", "price")),
                column("tag", "string", &table),
                column("watcher", "string", &related(&property("watcher"), "WebUser", "username")),
            ],
        ),
        source(
            "mothers",
            domain,
            "CommCareCase",
            Some("mother"),
            &[
                column("owner_id", "string", &property("owner_id")),
                column("risk", "string", &property("risk")),
                column("n_children", "integer", &count(&of_case("get_subcases"))),
                column("weights", "array", &weights),
                column("sharing", "array", &of_owner("get_case_sharing_groups")),
                column("reporting", "array", &of_owner("get_reporting_groups")),
                json!({"type": "ledger_balances", "column_id": "soh", "display_name": "soh", "ledger_section": "stock",
                "product_codes": ["iron"], "case_id_expression": property("_id")}),
            ],
        ),
        source(
            "visits",
            domain,
            "XFormInstance",
            None,
            &[
                column("worker", "string", &property("user_id")),
                column("patient", "string", &related(&patients, "CommCareCase", "risk")),
                column("weight", "integer", &json!({"type": "property_path", "property_path": ["form", "weight"]})),
            ],
        ),
        source(
            "workers",
            domain,
            "CommCareUser",
            None,
            &[
                column("user_id", "string", &property("_id")),
                column("location_id", "string", &property("location_id")),
                column("place", "string", &related(&property("location_id"), "Location", "name")),
            ],
        ),
        source(
            "places",
            domain,
            "Location",
            None,
            &[
                column("place_id", "string", &property("_id")),
                column("name", "string", &property("name")),
                column("above", "string", &related(&property("parent_location_id"), "Location", "name")),
            ],
        ),
        view(
            "by_place",
            json!({"from": {"table": "mothers", "as": "m"},
            "joins": [{"table": "workers", "as": "w", "on": {"m.owner_id": "w.user_id"}},
                      {"table": "places", "as": "p", "on": {"w.location_id": "p.place_id"}}],
            "group_by": [{"column": "p.name", "as": "place"}, {"column": "p.above", "as": "above"}],
            "aggregates": [{"function": "count", "as": "n"}, {"function": "sum", "column": "m.n_children", "as": "children"},
                {"function": "top", "column": "m.doc_id", "order_by": "m.soh_iron", "n": 2, "as": "most_iron"},
                {"function": "first", "column": "m.risk", "order_by": "m.owner_id", "as": "first_risk"}]}),
        ),
        view(
            "by_worker",
            json!({"from": {"table": "visits", "as": "v"},
            "joins": [{"table": "workers", "as": "w", "on": {"v.worker": "w.user_id"}}],
            "group_by": [{"column": "w.place", "as": "place"}],
            "aggregates": [{"function": "last", "column": "v.patient", "order_by": "v.weight", "as": "heaviest"},
                {"function": "avg", "column": "v.weight", "as": "mean"}, {"function": "min", "column": "v.weight", "as": "least"}]}),
        ),
        view(
            "by_mother",
            json!({"from": {"table": "children"}, "group_by": [{"column": "mother"}],
            "aggregates": [{"function": "count_distinct", "column": "district", "as": "districts"},
                {"function": "max", "column": "price", "as": "dearest"},
                {"function": "top", "column": "kg", "n": 3, "descending": false, "as": "lightest"}]}),
        ),
    ]
}

fn compare_all(log: &Log, snapshot: &Snapshot) {
    for domain in domains() {
        if let Some(present) = log.until(&snapshot.moment_of(&domain).complete_through).get(&domain) {
            compare_domain(present, &snapshot.domains[&domain]);
        }
    }
}

fn history(steps: &[Step], schedule: &Schedule, workers: i64) {
    runtime().block_on(async {
        let mut log = Log::default();
        for (at, domain) in domains().iter().enumerate() {
            log.commit(lanes(at)[0], domain, &definitions(domain));
        }
        let mut done = Vec::new();
        let (start, rest) = steps.split_at(steps.len() / 4);
        start.iter().for_each(|step| apply(&mut log, &mut done, step));
        let scanned = log.end();
        // What comes again was not in the scan: a scan says nothing of documents that are gone, and nobody asks it to.
        done.clear();
        rest.iter().for_each(|step| apply(&mut log, &mut done, step));
        let mut driven = Driven::start(log, scanned, workers).await;
        compare_all(&driven.log, &driven.seen);
        let mut last = None;
        for (lane, count, look) in schedule.iter().cycle() {
            let Some(position) = driven.let_through(*lane, *count) else { break };
            last = Some(position);
            if *look {
                let snapshot = Arc::clone(driven.see(position).await);
                compare_all(&driven.log, &snapshot);
            }
        }
        if let Some(last) = last {
            let snapshot = Arc::clone(driven.see(last).await);
            compare_all(&driven.log, &snapshot);
            for domain in domains() {
                assert_eq!(snapshot.moment_of(&domain).complete_through, driven.log.end());
            }
        }
        driven.dataflow.shutdown().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_snapshot_equals_a_batch_recomputation_over_the_records_it_covers(
        steps in prop::collection::vec(step(), 1..80),
        schedule in schedule(),
        workers in 1i64..4,
    ) {
        history(&steps, &schedule, workers);
    }
}
