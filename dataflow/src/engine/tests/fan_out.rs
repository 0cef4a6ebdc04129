//! One change that very many rows follow: its domain's tables wait until all have, and no other domain's do.

use super::*;

/// Two domains in one store, each with workers at places.
#[derive(Clone, Debug, Default)]
struct Both(Arc<PlainMutex<Vec<Arc<ChangeRecord>>>>);

struct Tail(Both, usize);

#[async_trait]
impl schemas::port::ChangeSource for Tail {
    async fn next(&mut self) -> Result<SourceEvent, SourceError> {
        let next: Vec<_> = self.0.0.lock().iter().skip(self.1).take(50).cloned().collect();
        if next.is_empty() {
            tokio::time::sleep(Duration::from_micros(100)).await;
            return Ok(SourceEvent::Idle);
        }
        self.1 += next.len();
        Ok(SourceEvent::Records(next))
    }
}

#[async_trait]
impl Bootstrap for Both {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        Ok(Box::new(Scan(Frontier::default(), VecDeque::new())))
    }
    async fn changes(&self, _: Frontier) -> Result<Box<dyn schemas::port::ChangeSource>, SourceError> {
        Ok(Box::new(Tail(self.clone(), 0)))
    }
    async fn identity(&self) -> Result<String, SourceError> {
        Ok(String::new())
    }
    async fn kept(&self, _: &str, _: &Frontier) -> Result<(), SourceError> {
        Ok(())
    }
}

impl Both {
    fn commit(&self, domain: &DomainId, changes: &[(DocKind, String, Option<Value>)]) -> Position {
        let mut log = self.0.lock();
        let sequence = log.len() as u64 + 1;
        let position = Position { lane: LaneId::FIRST, sequence: Sequence(sequence) };
        let documents =
            changes.iter().map(|(kind, id, body)| changed(*kind, id, sequence as i64, body.as_ref())).collect();
        log.push(Arc::new(ChangeRecord { position, domain: domain.clone(), documents }));
        position
    }
}

fn place(name: &str) -> (DocKind, String, Option<Value>) {
    let body = json!({"_id": "p", "domain": DOMAIN, "doc_type": "Location", "name": name});
    (DocKind::Location, "p".to_owned(), Some(body))
}

fn worker(number: usize) -> (DocKind, String, Option<Value>) {
    let id = format!("w{number}");
    let body = json!({"_id": id, "domain": DOMAIN, "doc_type": "CommCareUser", "location_id": "p", "number": number});
    (DocKind::User, id, Some(body))
}

/// Workers with the name of their place, and how many there are of each name.
fn definitions() -> [(DocKind, String, Option<Value>); 2] {
    let name = related(&property("location_id"), "Location", "name");
    let source = json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "at",
        "referenced_doc_type": "CommCareUser", "configured_filter": {},
        "configured_indicators": [column("place", "string", &name), column("number", "integer", &property("number"))]});
    let groups = json!({"from": {"table": "at"}, "group_by": [{"column": "place"}],
        "aggregates": [{"function": "count", "as": "n"}]});
    [
        (DocKind::DataSource, "at".to_owned(), Some(source)),
        (DocKind::AggregateView, "by_place".to_owned(), Some(groups)),
    ]
}

/// Names of places and how many workers have them, by the rows and by the groups.
fn places(snapshot: &Snapshot, domain: &DomainId) -> [BTreeMap<String, usize>; 2] {
    let tables = &snapshot.domains[domain].tables;
    let text = |cell: &Cell| match cell {
        Cell::Text(text) => text.to_string(),
        other => format!("{other:?}"),
    };
    let rows = tables.get(&TableName::new("ucr", "at")).unwrap();
    let at = rows.schema.position("place").unwrap();
    let mut by_row: BTreeMap<String, usize> = BTreeMap::new();
    for row in walk(rows, 0, usize::MAX) {
        *by_row.entry(text(&row[at])).or_default() += 1;
    }
    let groups = tables.get(&TableName::new("views", "by_place")).unwrap();
    let by_group = walk(groups, 0, usize::MAX).into_iter().map(|row| match row.last() {
        Some(Cell::Int(n)) => (text(&row[0]), *n as usize),
        other => panic!("{other:?}"),
    });
    [by_row, by_group.collect()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_waits_until_all_rows_have_followed_and_others_go_on() {
    const WORKERS: usize = 3000;
    for workers in 1..=2 {
        let store = Both::default();
        let [many, few] = ["many", "few"].map(|name| DomainId::new(name).unwrap());
        for domain in [&many, &few] {
            store.commit(domain, &definitions());
            store.commit(domain, &[place("old")]);
        }
        store.commit(&many, &(0..WORKERS).map(worker).collect::<Vec<_>>());
        let last = store.commit(&few, &[worker(0)]);
        let clock = Arc::new(SetClock(AtomicI64::new(1_000_000)));
        let dataflow = Dataflow::start(config(workers), Arc::new(store.clone()), None, clock);
        let long = Duration::from_secs(30);
        dataflow.wait_for(&many, last, long).await.unwrap();
        while !dataflow.snapshot().domains[&many].views.iter().all(|view| view.state == ViewState::Live) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = dataflow.snapshot().moment.clone();

        // While the many follow, the few change, and a worker of the many does.
        let renamed = store.commit(&many, &[place("new")]);
        let mut seen_behind = 0;
        for number in 1..20 {
            let position = store.commit(&few, &[worker(number)]);
            let snapshot = dataflow.wait_for(&few, position, long).await.unwrap();
            assert_eq!(places(&snapshot, &few)[0].values().sum::<usize>(), number + 1);
            let [rows, groups] = places(&snapshot, &many);
            assert_eq!(rows, groups);
            assert_eq!(rows.len(), 1, "all at once: {rows:?}");
            if snapshot.moment_of(&many).complete_through.covers(renamed) {
                assert!(rows.contains_key("new"));
            } else {
                assert!(rows.contains_key("old"));
                assert!(snapshot.moment_of(&many).tick >= before.tick);
                seen_behind += 1;
            }
            if number == 3 {
                store.commit(&many, &[worker(WORKERS)]);
                store.commit(&many, &[(DocKind::User, "w7".to_owned(), None)]);
            }
        }
        assert!(seen_behind > 0, "the few never saw the many behind");
        // Named anew before all have followed the last name.
        store.commit(&many, &[place("newer")]);
        let last = store.commit(&many, &[place("newest")]);
        let snapshot = dataflow.wait_for(&many, last, long).await.unwrap();
        let expected = BTreeMap::from([("newest".to_owned(), WORKERS)]);
        assert_eq!(places(&snapshot, &many), [expected.clone(), expected]);
        dataflow.shutdown().await;
    }
}
