//! Amounts that move between cases: their total is the same in every snapshot, in every view.

use super::*;

const ACCOUNTS: u8 = 6;
const EACH: i64 = 100;

fn account(domain: &DomainId, id: u8, amount: i64) -> Written {
    let body = json!({"_id": format!("a{id}"), "domain": domain.as_str(), "doc_type": "CommCareCase",
        "type": if id.is_multiple_of(2) { "even" } else { "odd" }, "owner_id": format!("w{}", id % 3), "amount": amount,
        "indices": []});
    (DocKind::Case, format!("a{id}"), Some(body))
}

/// Two data sources that share the accounts between them, and a sum over each, so that every transfer changes both.
fn views(domain: &DomainId) -> Vec<Written> {
    let columns =
        [column("owner_id", "string", &property("owner_id")), column("amount", "integer", &property("amount"))];
    let sum = |id: &str, table: &str| {
        let body = json!({"from": {"table": table}, "group_by": [{"column": "owner_id"}],
            "aggregates": [{"function": "sum", "column": "amount", "as": "total"}]});
        (DocKind::AggregateView, id.to_owned(), Some(body))
    };
    vec![
        source("even", domain, "CommCareCase", Some("even"), &columns),
        source("odd", domain, "CommCareCase", Some("odd"), &columns),
        sum("even_by_owner", "even"),
        sum("odd_by_owner", "odd"),
    ]
}

/// The sum of a column over tables of one snapshot.
fn total(snapshot: &Snapshot, domain: &DomainId, schema: &str, tables: [&str; 2], of: &str) -> i64 {
    let rows = tables.into_iter().flat_map(|name| {
        let table = snapshot.domains[domain].tables.get(&TableName::new(schema, name)).unwrap();
        let at = table.schema.position(of).unwrap();
        walk(table, 0, usize::MAX).into_iter().map(move |row| row[at].clone())
    });
    rows.map(|cell| if let Cell::Int(amount) = cell { amount } else { panic!("{cell:?}") }).sum()
}

fn constant(snapshot: &Snapshot) {
    for domain in domains() {
        let all = EACH * i64::from(ACCOUNTS);
        assert_eq!(total(snapshot, &domain, "ucr", ["even", "odd"], "amount"), all, "{domain}: rows");
        assert_eq!(
            total(snapshot, &domain, "views", ["even_by_owner", "odd_by_owner"], "total"),
            all,
            "{domain}: groups"
        );
    }
}

/// A transfer: in which domain, from where to where, how much.
type Transfer = (usize, u8, u8, i64);

fn transfers(moves: &[Transfer], schedule: &Schedule, workers: i64) {
    runtime().block_on(async {
        let mut log = Log::default();
        let mut amounts = [[EACH; ACCOUNTS as usize]; 2];
        for (at, domain) in domains().iter().enumerate() {
            log.commit(lanes(at)[0], domain, &views(domain));
            let accounts: Vec<Written> = (0..ACCOUNTS).map(|id| account(domain, id, EACH)).collect();
            log.commit(lanes(at)[0], domain, &accounts);
        }
        let scanned = log.end();
        for (domain, from, to, amount) in moves {
            let held = &mut amounts[*domain];
            held[usize::from(*from)] -= amount;
            held[usize::from(*to)] += amount;
            let ids: BTreeSet<u8> = [*from, *to].into();
            let touched = ids.into_iter().map(|id| account(&domains()[*domain], id, held[usize::from(id)]));
            let touched: Vec<Written> = touched.collect();
            log.commit(lanes(*domain)[0], &domains()[*domain], &touched);
            // A lane of the same domain that has nothing to do with it, ahead of it or behind.
            let other = Shape { kind: DocKind::WebUser, id: *from, a: *to, b: 0, flag: true };
            log.commit(
                lanes(*domain)[2],
                &domains()[*domain],
                &[(other.kind, other.id(), Some(other.body(&domains()[*domain])))],
            );
        }
        let mut driven = Driven::start(log, scanned, workers).await;
        constant(&driven.seen);
        // Somebody reads all the time, whatever is under way.
        let reader = tokio::spawn({
            let dataflow = Arc::clone(&driven.dataflow);
            async move {
                let mut seen = dataflow.snapshot();
                loop {
                    let snapshot = dataflow.snapshot();
                    constant(&snapshot);
                    for domain in domains() {
                        let (before, now) = (seen.moment_of(&domain), snapshot.moment_of(&domain));
                        assert!(now.tick >= before.tick);
                        let covered = |before| now.complete_through.covers(before);
                        assert!(before.complete_through.positions().all(covered));
                    }
                    seen = snapshot;
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
            }
        });
        let mut last = None;
        for (lane, count, look) in schedule.iter().cycle() {
            let Some(position) = driven.let_through(*lane, *count) else { break };
            last = Some(position);
            if *look {
                constant(driven.see(position).await);
            }
        }
        if let Some(last) = last {
            constant(driven.see(last).await);
        }
        reader.abort();
        assert!(reader.await.unwrap_err().is_cancelled(), "the reader saw another total");
        driven.dataflow.shutdown().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_transfer_never_changes_the_total(
        moves in prop::collection::vec((0usize..2, 0..ACCOUNTS, 0..ACCOUNTS, 1i64..50), 1..16),
        schedule in schedule(),
        workers in 1i64..4,
    ) {
        transfers(&moves, &schedule, workers);
    }
}
