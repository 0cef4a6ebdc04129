//! Several databases: where domains live, and that none of them waits for another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use ingest::{DatabaseConfig, DatabaseState, Ingest, IngestConfig};
use object_store::{ObjectStore, memory::InMemory};
use schemas::{
    id::{DomainId, FormId},
    port::{Credentials, Permission, Secret, SourceEvent, SystemClock},
    position::{Frontier, LaneId, Position},
};

use crate::{
    postgres::{self, Server},
    service::{Answer, Service, basic, case, create, demo, form, no_views, until},
};

/// A service over three databases; `demo` is pinned to the first and `pinned` to the third.
struct World {
    service: Service,
    addresses: [String; 3],
}

fn config(addresses: &[String; 3]) -> IngestConfig {
    let further = |number: u16, shards: &str| DatabaseConfig {
        number,
        url: addresses[usize::from(number)].clone(),
        shards: shards.parse().unwrap(),
    };
    IngestConfig {
        database_url: addresses[0].clone(),
        databases: vec![further(1, "341-682"), further(2, "683-1023")],
        pins: BTreeMap::from([(demo(), 0), (domain("pinned"), 2)]),
        mover_delay_ms: 0,
        ..IngestConfig::default()
    }
}

fn domain(name: &str) -> DomainId {
    DomainId::new(name).unwrap()
}

impl World {
    async fn open(addresses: [String; 3], objects: Arc<dyn ObjectStore>) -> Self {
        let ingest = Ingest::open(config(&addresses), objects, Arc::new(SystemClock)).await.unwrap();
        let accounts = ingest.accounts();
        accounts.create_domain(&demo()).await.unwrap();
        let Secret(password) = accounts.ensure_admin(&demo()).await.unwrap().unwrap();
        let routes = ingest.routes(no_views());
        let service = Service { ingest, routes, address: addresses[0].clone(), password };
        Self { service, addresses }
    }

    async fn create(&self, name: &str) -> Secret {
        let accounts = self.service.ingest.accounts();
        accounts.create_domain(&domain(name)).await.unwrap();
        accounts.ensure_admin(&domain(name)).await.unwrap().unwrap()
    }

    async fn send(&self, method: &str, path: &str, authorization: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("authorization", authorization);
        self.service.send(request.body(body.into()).unwrap()).await
    }

    async fn post(&self, domain: &str, password: &Secret, xml: String) -> Answer {
        let who = basic(&format!("admin@{domain}"), &password.0);
        self.send("POST", &format!("/a/{domain}/receiver/"), &who, xml).await
    }

    /// One number from each database.
    async fn numbers(&self, sql: &str) -> [i64; 3] {
        let mut numbers = [0; 3];
        for (number, address) in numbers.iter_mut().zip(&self.addresses) {
            *number = postgres::connect(address).await.query_one(sql, &[]).await.unwrap().get(0);
        }
        numbers
    }
}

async fn three_databases() -> [String; 3] {
    [postgres::database().await, postgres::database().await, postgres::database().await]
}

#[tokio::test]
async fn a_domain_and_its_workers_live_in_one_database_and_web_users_in_the_first() {
    let world = World::open(three_databases().await, Arc::new(InMemory::new())).await;
    let names = ["north", "south", "east", "west", "delta", "coast", "pinned"];
    let mut homes = BTreeMap::new();
    for name in names {
        let password = world.create(name).await;
        let xml = form(&format!("f-{name}"), "1", &case(&format!("c-{name}"), &create("A")));
        let answer = world.post(name, &password, xml).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        homes.insert(name, answer.position().lane.database);
    }
    assert_eq!(homes["pinned"], 2);
    let count = |number| i64::try_from(homes.values().filter(|home| **home == number).count()).unwrap();
    let expected = [count(0), count(1), count(2)];
    assert!(expected.iter().all(|domains| *domains > 0), "the names are spread: {expected:?}");
    for table in ["forms", "cases", "case_transactions", "change_log WHERE lane <> 65535"] {
        assert_eq!(world.numbers(&format!("SELECT count(*) FROM {table}")).await, expected, "{table}");
    }
    assert_eq!(world.numbers("SELECT count(*) FROM accounts").await, [8, 0, 0], "web users are in the first");

    // A worker's account lies with the domain, and every way to sign in finds it.
    let accounts = world.service.ingest.accounts();
    let secret = Secret("pw".to_owned());
    accounts.create_web_user("chief", &secret, &domain("pinned"), &[Permission::EditUsers]).await.unwrap();
    let path = "/a/pinned/api/v0.5/user/";
    let made = world.send("POST", path, &basic("chief", "pw"), r#"{"username": "asha", "password": "pw1"}"#).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(world.numbers("SELECT count(*) FROM accounts").await, [9, 0, 1]);
    let auth = world.service.ingest.authenticator();
    let full = "asha@pinned.commcarehq.org";
    let password =
        |username: &str| Credentials::Password { username: username.to_owned(), password: Secret("pw1".to_owned()) };
    let key = accounts.create_api_key(full, None, "script").await.unwrap();
    let token = accounts.create_token(full, "phone", None).await.unwrap();
    for credentials in [
        password("asha@pinned"),
        password(full),
        Credentials::ApiKey { username: full.to_owned(), key },
        Credentials::Token(token),
    ] {
        let principal = auth.authenticate(&domain("pinned"), &credentials).await.unwrap();
        assert_eq!(principal.username, full);
        assert!(auth.authenticate(&domain("north"), &credentials).await.is_err(), "of one domain alone");
    }
    accounts.set_password(full, &Secret("pw2".to_owned())).await.unwrap();
    assert!(auth.authenticate(&domain("pinned"), &password(full)).await.is_err());

    // Where a domain lives was settled once: with other ranges and no pins it stays.
    let moved = IngestConfig {
        databases: config(&world.addresses).databases,
        pins: BTreeMap::from([(domain("pinned"), 0)]),
        ..config(&world.addresses)
    };
    let again = Ingest::open(moved, Arc::new(InMemory::new()), Arc::new(SystemClock)).await.unwrap();
    assert!(!again.accounts().create_domain(&domain("pinned")).await.unwrap());
    assert_eq!(world.numbers("SELECT count(*) FROM domains WHERE name = 'pinned'").await, [0, 0, 1]);
    again.shutdown().await;
    world.service.ingest.shutdown().await;
}

#[tokio::test]
async fn a_scan_and_the_log_hold_every_database() {
    let world = World::open(three_databases().await, Arc::new(InMemory::new())).await;
    let names = ["north", "south", "east", "west", "delta", "coast", "pinned"];
    let mut positions: Vec<Position> = Vec::new();
    for name in names {
        let password = world.create(name).await;
        for n in 0..3 {
            let answer = world.post(name, &password, form(&format!("f-{name}-{n}"), "1", "")).await;
            positions.push(answer.position());
        }
    }
    let mut scan = world.service.ingest.bootstrap().scan().await.unwrap();
    let frontier = scan.frontier();
    assert!(positions.iter().all(|position| frontier.covers(*position)), "{frontier}");
    assert_eq!(frontier.positions().count(), 4, "a lane of each database, and the one of web users");
    assert_eq!(scan.expected(), 21 + 8);
    let mut found = 0;
    while let Some(documents) = scan.next().await.unwrap() {
        found += documents.len();
    }
    assert_eq!(found, 21 + 8, "forms, and the administrators");
    let seen = world.service.records(Frontier::default(), 21).await;
    let mut seen: Vec<Position> = seen.iter().map(|record| record.position).collect();
    seen.sort();
    positions.sort();
    assert_eq!(seen, positions);
    world.service.ingest.shutdown().await;
}

#[tokio::test]
async fn a_database_that_is_away_holds_nobody_else_up() {
    let (first, mut third) = (Server::start(), Server::start());
    let addresses = [first.database().await, first.database().await, third.database().await];
    let world = World::open(addresses, Arc::new(InMemory::new())).await;
    let (north, pinned) = (demo(), domain("pinned"));
    let password = world.create("pinned").await;
    assert_eq!(world.post("pinned", &password, form("f1", "1", "")).await.position().lane.database, 2);
    let mut tail = world.service.ingest.bootstrap().changes(Frontier::default()).await.unwrap();

    third.crash();
    let answer = world.post("pinned", &password, form("f2", "1", "")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let third_lane = LaneId { database: 2, writer: 0 };
    let mut stalled = false;
    let mut seen = Vec::new();
    for n in 0..20 {
        let answer = world.service.stored(&form(&format!("n{n}"), "1", "")).await;
        while !seen.contains(&answer.position()) {
            match tail.next().await.unwrap() {
                SourceEvent::Records(records) => seen.extend(records.iter().map(|record| record.position)),
                SourceEvent::Stalled(lane) => stalled |= lane == third_lane,
                SourceEvent::Idle | SourceEvent::IdleIn(_) => {}
            }
        }
    }
    until(async || {
        match tail.next().await.unwrap() {
            SourceEvent::Stalled(lane) => stalled |= lane == third_lane,
            SourceEvent::Idle => assert!(!stalled, "idle would say that nothing is missing"),
            SourceEvent::IdleIn(_) | SourceEvent::Records(_) => {}
        }
        stalled
    })
    .await;
    // The others are known to have nothing newer, and it is known of them alone.
    let mut idle = BTreeSet::new();
    until(async || {
        match tail.next().await.unwrap() {
            SourceEvent::IdleIn(lanes) => idle.extend(lanes),
            SourceEvent::Stalled(_) | SourceEvent::Records(_) => {}
            SourceEvent::Idle => panic!("idle would say that nothing is missing"),
        }
        [0, 1].iter().all(|database| idle.contains(&LaneId { database: *database, writer: 0 }))
    })
    .await;
    assert!(!idle.contains(&third_lane));
    let states = ingest::databases(&config(&world.addresses)).await.unwrap();
    let up: Vec<bool> = states.iter().map(|state| matches!(state.state, DatabaseState::Up { .. })).collect();
    assert_eq!(up, [true, true, false]);

    third.resume();
    until(async || world.post("pinned", &password, form("f3", "1", "")).await.status == StatusCode::CREATED).await;
    until(async || matches!(tail.next().await.unwrap(), SourceEvent::Idle)).await;
    let auth = world.service.ingest.authenticator();
    let admin = Credentials::Password { username: "admin@pinned".to_owned(), password };
    assert!(auth.authenticate(&pinned, &admin).await.is_ok());
    assert!(auth.authenticate(&north, &admin).await.is_err());
    world.service.ingest.shutdown().await;
}

#[tokio::test]
async fn objects_of_every_database_are_read_and_kept() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let world = World::open(three_databases().await, Arc::clone(&objects)).await;
    for name in ["pinned", "north", "south", "east"] {
        let password = world.create(name).await;
        world.post(name, &password, form(&format!("f-{name}"), name, "")).await;
    }
    until(async || world.numbers("SELECT count(*) FROM xml_pending").await == [0, 0, 0]).await;
    let ingest = &world.service.ingest;
    assert_eq!(ingest.sweep_orphans(std::time::Duration::ZERO).await.unwrap(), 0);
    for name in ["pinned", "north", "south", "east"] {
        let id = FormId::new(&format!("f-{name}")).unwrap();
        let xml = ingest.form_xml(&domain(name), &id).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&xml).contains(name));
        assert!(ingest.form_xml(&demo(), &id).await.unwrap().is_none());
    }

    // A process that does not know every database takes no object for an orphan.
    let partial = IngestConfig { databases: Vec::new(), pins: BTreeMap::new(), ..config(&world.addresses) };
    let partial = Ingest::open(partial, objects, Arc::new(SystemClock)).await.unwrap();
    let refused = partial.sweep_orphans(std::time::Duration::ZERO).await.unwrap_err().to_string();
    assert!(refused.contains("ingest.databases"), "{refused}");
    partial.shutdown().await;
    assert_eq!(ingest.sweep_orphans(std::time::Duration::ZERO).await.unwrap(), 0);
    world.service.ingest.shutdown().await;
}
