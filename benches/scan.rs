//! Bench of reading: statements over a snapshot with more than 100,000 rows, asked by a Postgres client as people do.
//!
//! The tables are the sample program's after 80,000 forms, with the dead rows and small segments that live tables have.
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up ends")]

mod workload;

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use divan::Bencher;
use query::{QueryConfig, QueryState};
use schemas::{
    id::{DomainId, UserId},
    port::{AuthError, Authenticator, Credentials, Permission, Principal, ViewReader},
    sample,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};

pub(crate) use self::workload::load;
use self::workload::{Log, live::Live};

const FORMS: u64 = 80_000;
/// Rows that the table of items must have for the figures to mean something.
const ROWS: i64 = 100_000;

/// Lets everyone in.
#[derive(Debug)]
struct Open;

#[async_trait]
impl Authenticator for Open {
    async fn authenticate(&self, domain: &DomainId, _: &Credentials) -> Result<Principal, AuthError> {
        let refused = |_| AuthError::Refused { domain: domain.to_string() };
        let user_id = UserId::new("reader").map_err(refused)?;
        let permissions = vec![Permission::ReadData];
        Ok(Principal { domain: domain.clone(), user_id, username: "reader".to_owned(), permissions })
    }

    fn digest_challenge(&self, _: bool) -> String {
        "Digest".to_owned()
    }
}

struct World {
    runtime: Runtime,
    client: Client,
    /// Kept running.
    _live: Live,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (client, live) = runtime.block_on(async {
        let (log, begun) = Log::generate(FORMS).unwrap();
        let live = Live::start(Vec::new(), 0).unwrap();
        let (before, forms) = log.records.split_at(begun);
        live.follow(before).await.unwrap();
        live.settled().await.unwrap();
        live.follow(forms).await.unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let views = Arc::clone(&live.dataflow) as Arc<dyn ViewReader>;
        let state = QueryState { views, auth: Arc::new(Open), config: QueryConfig::default() };
        tokio::spawn(query::serve_postgres(listener, Arc::new(state), std::future::pending()));
        let address = format!("host=127.0.0.1 port={port} user=reader password=- dbname={}", sample::DOMAIN);
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await.unwrap();
        tokio::spawn(connection);
        let items: i64 = client.query_one("SELECT count(*) FROM ucr.visit_items", &[]).await.unwrap().get(0);
        assert!(items >= ROWS, "only {items} rows");
        (client, live)
    });
    World { runtime, client, _live: live }
});

fn main() {
    divan::main();
}

/// Prepares a statement once and times its runs.
fn run(bencher: Bencher<'_, '_>, sql: &str, parameters: &[&(dyn ToSql + Sync)]) {
    let World { runtime, client, .. } = &*WORLD;
    let statement: Statement = runtime.block_on(client.prepare(sql)).unwrap();
    bencher.bench_local(|| {
        let rows = runtime.block_on(client.query(&statement, parameters)).unwrap();
        assert!(!rows.is_empty());
    });
}

#[divan::bench]
fn count(bencher: Bencher<'_, '_>) {
    run(bencher, "SELECT count(*) FROM ucr.visit_items", &[]);
}

#[divan::bench]
fn scan_one_column(bencher: Bencher<'_, '_>) {
    run(bencher, "SELECT sum(qty) FROM ucr.visit_items", &[]);
}

#[divan::bench]
fn filter_and_group(bencher: Bencher<'_, '_>) {
    let sql =
        "SELECT item_code, count(*), sum(qty) FROM ucr.visit_items WHERE visit_date >= '2024-06-01' GROUP BY item_code";
    run(bencher, sql, &[]);
}

#[divan::bench]
fn latest_hundred(bencher: Bencher<'_, '_>) {
    run(bencher, "SELECT * FROM ucr.visit_items ORDER BY inserted_at DESC LIMIT 100", &[]);
}

#[divan::bench]
fn key_look_up(bencher: Bencher<'_, '_>) {
    let World { runtime, client, .. } = &*WORLD;
    let key = runtime.block_on(client.query_one("SELECT doc_id FROM ucr.visit_items LIMIT 1", &[])).unwrap();
    let key: String = key.get(0);
    run(bencher, "SELECT * FROM ucr.visit_items WHERE doc_id = $1", &[&key]);
}

#[divan::bench]
fn aggregate_view(bencher: Bencher<'_, '_>) {
    run(bencher, "SELECT * FROM views.districts", &[]);
}
