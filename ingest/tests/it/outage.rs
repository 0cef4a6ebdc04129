//! Postgres goes away: what is answered, and what is left when it comes back.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use axum::http::StatusCode;
use ingest::IngestConfig;
use schemas::{port::SourceEvent, position::Frontier};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

use crate::{
    postgres::Server,
    service::{DEADLINE, case, create, form, is_control, start_with, until},
};

#[tokio::test]
async fn an_outage_is_answered_503_and_ends_by_itself() {
    let mut server = Server::start();
    let database_url = server.database().await;
    let service = start_with(IngestConfig { database_url, ..IngestConfig::default() }).await;
    service.stored(&form("f1", "1", "")).await;
    let mut tail = service.ingest.bootstrap().changes(Frontier::default()).await.unwrap();
    let mut seen = Vec::new();
    let mut read = async |tail: &mut Box<dyn schemas::port::ChangeSource>| match tail.next().await {
        Ok(SourceEvent::Records(records)) => {
            let of_domains = records.iter().filter(|record| !is_control(record.position));
            seen.extend(of_domains.map(|record| record.position.sequence.0));
            Ok(seen.len())
        }
        Ok(SourceEvent::Idle | SourceEvent::IdleIn(_)) => Ok(seen.len()),
        Ok(SourceEvent::Stalled(_)) => Err(()),
        Err(error) => panic!("{error}"),
    };
    while read(&mut tail).await.unwrap() < 1 {}

    server.crash();
    assert_eq!(service.post(&form("f2", "1", "")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    until(async || read(&mut tail).await.is_err()).await;

    server.resume();
    until(async || service.post(&form("f3", "1", "")).await.status == StatusCode::CREATED).await;
    until(async || matches!(read(&mut tail).await, Ok(count) if count >= 2)).await;
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE id = 'f1'").await, 1, "acknowledged means durable");
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE id = 'f2'").await, 0);
    assert_eq!(seen, [1, 2]);
    service.ingest.shutdown().await;
}

/// Where a [`Proxy`] cuts the next commit.
const NOT: u8 = 0;
const BEFORE: u8 = 1;
const AFTER: u8 = 2;

/// Stands between the service and Postgres, and can cut a connection around a `COMMIT`.
struct Proxy {
    port: u16,
    cut: Arc<AtomicU8>,
}

impl Proxy {
    async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicU8::new(NOT));
        tokio::spawn({
            let cut = Arc::clone(&cut);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = UnixStream::connect(&socket).await.unwrap();
                    tokio::spawn(pass(client, server, Arc::clone(&cut)));
                }
            }
        });
        Self { port, cut }
    }
}

fn holds_commit(bytes: &[u8]) -> bool {
    bytes.windows(7).any(|window| window == b"COMMIT\0")
}

/// Copies both ways until an end closes or a commit is to be cut.
async fn pass(mut client: TcpStream, mut server: UnixStream, cut: Arc<AtomicU8>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut committing = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                if holds_commit(&up[..n]) {
                    match cut.load(Ordering::SeqCst) {
                        BEFORE => {
                            cut.store(NOT, Ordering::SeqCst);
                            return;
                        }
                        AFTER => committing = true,
                        _ => {}
                    }
                }
                if server.write_all(&up[..n]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                if committing {
                    if holds_commit(&down[..n]) {
                        cut.store(NOT, Ordering::SeqCst);
                        return;
                    }
                    continue;
                }
                if client.write_all(&down[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_commit_of_unknown_outcome_is_found_out() {
    let server = Server::start();
    let database = server.database().await;
    let proxy = Proxy::start(server.socket()).await;
    let name = database.rsplit_once('=').unwrap().1;
    let database_url = format!("host=127.0.0.1 port={} user=postgres dbname={name}", proxy.port);
    let config = IngestConfig { database_url, connections_per_lane: 1, ..IngestConfig::default() };
    let mut service = start_with(config).await;
    service.address = database;
    let mut expected = 0;
    for cut in [NOT, AFTER, BEFORE, AFTER, NOT] {
        expected += 1;
        proxy.cut.store(cut, Ordering::SeqCst);
        let id = format!("f{expected}");
        let xml = form(&id, "1", &case(&format!("c{expected}"), &create("X")));
        let answer = tokio::time::timeout(DEADLINE, service.post(&xml)).await.unwrap();
        assert_eq!(answer.status, StatusCode::CREATED, "{cut} {answer:?}");
        assert_eq!((answer.form_id(), answer.position().sequence.0), (id.as_str(), expected));
        assert!(answer.body.contains("submit_success"), "stored once, so no duplicate: {answer:?}");
        assert_eq!(proxy.cut.load(Ordering::SeqCst), NOT, "the connection was cut where it should be");
    }
    for sql in [
        "SELECT count(*) FROM forms",
        "SELECT count(*) FROM change_log WHERE lane = 0",
        "SELECT count(*) FROM case_transactions",
    ] {
        assert_eq!(service.number(sql).await, 5, "{sql}");
    }
    let seen = service.records(Frontier::default(), 5).await;
    assert_eq!(seen.iter().map(|record| record.position.sequence.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    service.ingest.shutdown().await;
}
