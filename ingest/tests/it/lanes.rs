//! Numbers, groups and readers: nothing skipped, nothing half-stored, nobody kept waiting for ever.

use std::time::Duration;

use axum::http::StatusCode;
use ingest::IngestConfig;
use schemas::{
    port::{SourceError, SourceEvent},
    position::{Frontier, LaneId, Position, Sequence},
};

use crate::{
    postgres,
    service::{DEADLINE, case, create, form, is_control, start, start_with, until, update},
};

/// What another process's writer does: takes a number and holds its transaction open.
const TAKE: &str = "WITH taken AS (UPDATE lanes SET sequence = sequence + 1, stamp = stamp + 1 WHERE lane = 0 \
     RETURNING sequence, stamp) INSERT INTO change_log (lane, sequence, stamp, domain, token, format, documents_zstd) \
     SELECT 0, sequence, stamp, 'demo', 0, 1, $1 FROM taken";

/// `[]`, compressed.
fn no_documents() -> Vec<u8> {
    zstd::bulk::compress(b"[]", 1).unwrap()
}

#[tokio::test]
async fn a_tail_never_skips_a_writer_that_commits_late() {
    let service = start().await;
    let slow = service.client().await;
    slow.batch_execute("BEGIN").await.unwrap();
    slow.execute(TAKE, &[&no_documents()]).await.unwrap();
    let posts = tokio::spawn({
        let service = service.clone();
        async move {
            let posts = (0..30).map(|n| {
                let service = service.clone();
                async move { service.stored(&form(&format!("f{n}"), "1", "")).await.position() }
            });
            futures::future::join_all(posts).await
        }
    });
    let mut tail = service.ingest.bootstrap().changes(Frontier::default()).await.unwrap();
    // Writers are at the counter now; whatever a reader sees meanwhile, it is not a later record.
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until(|| async { service.number(waiting).await > 0 }).await;
    for _ in 0..3 {
        match tail.next().await.unwrap() {
            SourceEvent::Records(records) => assert!(records.iter().all(|record| is_control(record.position))),
            event => assert!(matches!(event, SourceEvent::Idle | SourceEvent::IdleIn(_))),
        }
    }
    slow.batch_execute("COMMIT").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 31 {
        if let SourceEvent::Records(records) = tokio::time::timeout(DEADLINE, tail.next()).await.unwrap().unwrap() {
            let of_domains = records.iter().filter(|record| !is_control(record.position));
            seen.extend(of_domains.map(|record| record.position.sequence.0));
        }
    }
    assert_eq!(seen, (1..=31).collect::<Vec<_>>());
    assert_eq!(posts.await.unwrap().len(), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_of_two_processes_are_seen_dense_and_in_order() {
    let service = start().await;
    let config = IngestConfig { database_url: service.address.clone(), ..IngestConfig::default() };
    let store = std::sync::Arc::new(object_store::memory::InMemory::new());
    let clock = std::sync::Arc::new(schemas::port::SystemClock);
    let other = ingest::Ingest::open(config, store, clock).await.unwrap();
    let second = crate::service::Service {
        ingest: other.clone(),
        routes: other.routes(crate::service::no_views()),
        ..service.clone()
    };
    let reader = tokio::spawn({
        let service = service.clone();
        async move { service.records(Frontier::default(), 400).await }
    });
    let posts = (0..400).map(|n| {
        let service = if n % 2 == 0 { service.clone() } else { second.clone() };
        async move {
            let block = case(&format!("c{}", n % 7), &format!("{}{}", create("X"), update("n", &n.to_string())));
            service.stored(&form(&format!("f{n}"), "1", &block)).await.position().sequence.0
        }
    });
    let mut positions = futures::future::join_all(posts).await;
    positions.sort_unstable();
    assert_eq!(positions, (1..=400).collect::<Vec<_>>());
    let records = reader.await.unwrap();
    let seen: Vec<u64> = records.iter().map(|record| record.position.sequence.0).collect();
    assert_eq!(seen, positions);
    let stamps: Vec<i64> =
        records.iter().flat_map(|record| &record.documents).map(|document| document.stamp.0).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b), "stamps are unique and increasing");
    assert_eq!(
        service.number("SELECT count(*) FROM case_transactions").await,
        400,
        "no update of a shared case is lost"
    );
}

#[tokio::test]
async fn what_the_database_refuses_fails_alone_and_wholly() {
    let service = start().await;
    service
        .client()
        .await
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN IF NEW.xmlns LIKE '%poison%' THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON forms FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let posts = (0..20).map(|n| {
        let service = service.clone();
        async move {
            let mut xml = form(&format!("f{n}"), "1", &case(&format!("c{n}"), &create("X")));
            if n == 7 {
                xml = xml.replace("http://example.org/visit", "http://example.org/poison");
            }
            (n, service.post(&xml).await)
        }
    });
    for (n, answer) in futures::future::join_all(posts).await {
        let expected = if n == 7 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED };
        assert_eq!(answer.status, expected, "{n}: {answer:?}");
    }
    for (sql, count) in [
        ("SELECT count(*) FROM forms", 19),
        ("SELECT count(*) FROM cases", 19),
        ("SELECT count(*) FROM case_transactions", 19),
        ("SELECT count(*) FROM xml_pending", 19),
        ("SELECT count(*) FROM change_log WHERE lane = 0", 19),
        ("SELECT sequence FROM lanes WHERE lane = 0", 19),
    ] {
        assert_eq!(service.number(sql).await, count, "{sql}");
    }
}

#[tokio::test]
async fn a_full_queue_is_answered_429() {
    let database_url = postgres::database().await;
    let config =
        IngestConfig { database_url, queue: 2, max_group: 1, connections_per_lane: 1, ..IngestConfig::default() };
    let service = start_with(config).await;
    let blocker = service.client().await;
    blocker.batch_execute("BEGIN; SELECT * FROM lanes FOR UPDATE").await.unwrap();
    let posts: Vec<_> = (0..12)
        .map(|n| {
            let service = service.clone();
            tokio::spawn(async move { service.post(&form(&format!("f{n}"), "1", "")).await })
        })
        .collect();
    // Two wait, at most one is being stored; all others are turned away while the lane stands still.
    until(|| async { posts.iter().filter(|post| post.is_finished()).count() >= 9 }).await;
    blocker.batch_execute("COMMIT").await.unwrap();
    let mut statuses = Vec::new();
    for post in posts {
        let answer = post.await.unwrap();
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.headers["retry-after"], "1");
        }
        statuses.push(answer.status.as_u16());
    }
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused >= 9, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 12 - refused, "{statuses:?}");
}

#[tokio::test]
async fn a_lock_that_does_not_come_is_answered_423() {
    let database_url = postgres::database().await;
    let service = start_with(IngestConfig { database_url, lock_wait_ms: 200, ..IngestConfig::default() }).await;
    let blocker = service.client().await;
    blocker.batch_execute("BEGIN; SELECT * FROM lanes FOR UPDATE").await.unwrap();
    let answer = service.post(&form("f1", "1", "")).await;
    assert_eq!(answer.status, StatusCode::LOCKED);
    blocker.batch_execute("COMMIT").await.unwrap();
    service.stored(&form("f1", "1", "")).await;
}

#[tokio::test]
async fn a_trimmed_log_is_a_gap_and_its_reader_must_bootstrap() {
    use ingest::changelog::outbox::{self, Retention};
    let service = start().await;
    for n in 0..6 {
        service.stored(&form(&format!("f{n}"), "1", "")).await;
    }
    let client = service.client().await;
    let at = |sequence| Position { lane: LaneId::FIRST, sequence: Sequence(sequence) };
    let lease = Duration::from_secs(60);
    outbox::register(&client, "slow", at(0), 0, lease).await.unwrap();
    outbox::register(&client, "fast", at(0), 0, lease).await.unwrap();
    outbox::advance(&client, "fast", at(6), 0, lease).await.unwrap();
    let keep = Retention { keep: 1, limit: 1000 };
    assert_eq!(outbox::trim(&client, LaneId::FIRST, keep, 1).await.unwrap(), 0, "a reader with a lease is waited for");
    outbox::advance(&client, "slow", at(2), 0, lease).await.unwrap();
    assert_eq!(outbox::trim(&client, LaneId::FIRST, keep, 1).await.unwrap(), 2);
    let late = lease.as_micros() as i64 + 1;
    assert_eq!(outbox::trim(&client, LaneId::FIRST, keep, late).await.unwrap(), 3, "nobody waits for a lost reader");
    assert!(outbox::register(&client, "slow", at(0), late, lease).await.unwrap().must_bootstrap);
    let mut from = Frontier::default();
    from.advance(at(2));
    let gap = service.ingest.bootstrap().changes(from).await.err().unwrap();
    assert!(matches!(gap, SourceError::Gap { wanted: Sequence(3), earliest: Sequence(6), .. }), "{gap}");
    let mut ahead = Frontier::default();
    ahead.advance(at(99));
    assert!(matches!(service.ingest.bootstrap().changes(ahead).await.err().unwrap(), SourceError::Gap { .. }));
}

#[tokio::test]
async fn shutdown_stores_what_is_queued_and_refuses_the_rest() {
    let service = start().await;
    let posts: Vec<_> = (0..50)
        .map(|n| {
            let service = service.clone();
            tokio::spawn(async move { service.post(&form(&format!("f{n}"), "1", "")).await })
        })
        .collect();
    until(|| async { service.number("SELECT count(*) FROM forms").await > 0 }).await;
    service.ingest.shutdown().await;
    let mut stored = 0;
    for post in posts {
        match post.await.unwrap().status {
            StatusCode::CREATED => stored += 1,
            other => assert_eq!(other, StatusCode::SERVICE_UNAVAILABLE),
        }
    }
    assert_eq!(service.number("SELECT count(*) FROM forms").await, stored);
    assert_eq!(service.post(&form("late", "1", "")).await.status, StatusCode::SERVICE_UNAVAILABLE);
}
