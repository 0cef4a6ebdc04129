//! Amounts that move between cases, one form a move, in two domains on two databases. Whoever reads, over whatever
//! protocol and however late one of the lanes comes in, sees the same total, never goes back, and finds what was
//! acknowledged to them.
//!
//! Between the databases and whoever reads their logs (the dataflow itself, or the relay that carries them to Kafka) stand
//! proxies that hold up one lane or the other at random.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::{Client, Method};
use schemas::position::Position;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::watch,
};
use tokio_postgres::SimpleQueryMessage;

use crate::{
    broker::Broker,
    postgres,
    server::{DEADLINE, Options, Process, configure, directory, eventually, reply, turn},
    shards::run,
};

/// A domain pinned to each database.
const DOMAINS: [&str; 2] = ["first", "second"];
/// Phones of each domain; each has accounts of its own, so that it knows what is in them.
const PHONES: usize = 3;
/// Accounts of a phone.
const ACCOUNTS: usize = 4;
/// What is in an account at first.
const EACH: i64 = 1000;
/// Transfers of a phone.
const TRANSFERS: usize = 40;
/// Everything that a domain's accounts hold, for good.
const ALL: i64 = EACH * (ACCOUNTS * PHONES) as i64;

#[tokio::test(flavor = "multi_thread")]
async fn no_read_sees_half_a_transfer_while_databases_answer_late() {
    follow(None, 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_sees_half_a_transfer_while_partitions_come_in_late() {
    let broker = Broker::start().await;
    follow(Some(&broker), 22).await;
}

/// Stands between a process and a database; while it is held, nothing that the database says passes. Returns its port.
async fn proxy(socket: PathBuf, held: watch::Receiver<bool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut asks, mut hears) = client.into_split();
            let (mut says, mut takes) = UnixStream::connect(&socket).await.unwrap().into_split();
            let mut held = held.clone();
            tokio::spawn(async move {
                drop(tokio::io::copy(&mut asks, &mut takes).await);
                drop(takes.shutdown().await);
            });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(read @ 1..) = says.read(&mut buffer).await {
                    if held.wait_for(|held| !held).await.is_err() || hears.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Holds a lane up, lets it go, and so on, until there is enough of it.
async fn hold(held: watch::Sender<bool>, field: Arc<Field>, seed: u64) -> watch::Sender<bool> {
    let mut random = StdRng::seed_from_u64(seed);
    while !field.enough.load(Ordering::Relaxed) {
        held.send_replace(true);
        tokio::time::sleep(Duration::from_millis(random.random_range(5..400))).await;
        held.send_replace(false);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
    }
    held
}

/// What phones and readers share.
struct Field {
    client: Client,
    /// Base URL of what takes forms in.
    ingest: String,
    reader: Process,
    passwords: [String; 2],
    /// Most transfers that somebody has seen, twice, by domain.
    seen: [AtomicI64; 2],
    enough: AtomicBool,
}

/// What one statement says of a domain: the total over both views, and the changes of accounts that are in it.
struct Seen {
    total: i64,
    changes: i64,
}

const STATEMENT: &str = "SELECT sum(total) AS total, sum(changes) AS changes FROM \
    (SELECT total, changes FROM views.even_by_owner UNION ALL SELECT total, changes FROM views.odd_by_owner) AS both";

impl Field {
    async fn over_http(&self, domain: usize, sql: &str, wait_for: Option<Position>) -> Value {
        let wait = wait_for.map(|position| format!("?wait_for={position}")).unwrap_or_default();
        let url = format!("{}/a/{}/sql{wait}", self.reader.url, DOMAINS[domain]);
        let request = self.client.post(url).basic_auth(admin(domain), Some(&self.passwords[domain]));
        let answer = request.body(sql.to_owned()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{sql}: {text}\n{}", self.reader.log());
        serde_json::from_str(&text).unwrap()
    }

    /// Both sides of every transfer are there or neither is, and nothing that anybody has seen is gone.
    fn check(&self, domain: usize, before: i64, seen: &Seen) {
        assert_eq!(seen.total, ALL, "{}: {} changes", DOMAINS[domain], seen.changes);
        assert_eq!(seen.changes % 2, 0, "{}: half a transfer", DOMAINS[domain]);
        assert!(seen.changes >= before, "{}: {} after {before}", DOMAINS[domain], seen.changes);
        self.seen[domain].fetch_max(seen.changes, Ordering::SeqCst);
    }

    /// Waits until the domains say that they are stalled, or that they are not.
    async fn stalled(&self, expected: [bool; 2]) {
        eventually("a lane that stalls or goes on", async || {
            let mut said = Vec::new();
            for domain in domains() {
                let rows = self.over_http(domain, "SELECT stalled FROM system.snapshot", None).await;
                said.push(rows[0]["stalled"].as_bool().unwrap());
            }
            if said == expected { Ok(()) } else { Err(format!("{said:?} instead of {expected:?}")) }
        })
        .await;
    }

    async fn read_http(self: Arc<Self>, domain: usize) -> usize {
        let mut reads = 0;
        while !self.enough.load(Ordering::Relaxed) {
            let before = self.seen[domain].load(Ordering::SeqCst);
            let rows = self.over_http(domain, STATEMENT, None).await;
            let number = |name: &str| rows[0][name].as_i64().unwrap_or_else(|| panic!("{rows}"));
            self.check(domain, before, &Seen { total: number("total"), changes: number("changes") });
            reads += 1;
        }
        reads
    }

    async fn read_wire(self: Arc<Self>, domain: usize) -> usize {
        let wire = self.reader.wire(DOMAINS[domain], &self.passwords[domain]).await;
        let mut reads = 0;
        while !self.enough.load(Ordering::Relaxed) {
            let before = self.seen[domain].load(Ordering::SeqCst);
            let row = first_row(&wire, STATEMENT).await;
            self.check(domain, before, &Seen { total: row[0].parse().unwrap(), changes: row[1].parse().unwrap() });
            reads += 1;
        }
        reads
    }
}

fn admin(domain: usize) -> String {
    format!("admin@{}", DOMAINS[domain])
}

async fn first_row(wire: &tokio_postgres::Client, sql: &str) -> Vec<String> {
    let messages = wire.simple_query(sql).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).unwrap().to_owned()).collect()),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{sql}: no row"))
}

fn account(phone: usize, number: usize) -> String {
    format!("account-{phone}-{number}")
}

/// A form that writes some accounts of a phone: number, amount, changes. They are made where they are not there.
fn form(id: &str, phone: usize, accounts: &[(usize, i64, i64)]) -> String {
    let blocks = accounts.iter().map(|(number, amount, changes)| {
        let kind = if number.is_multiple_of(2) { "even" } else { "odd" };
        format!(
            "<n><case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"{}\" user_id=\"u\" \
             date_modified=\"2025-06-30T10:00:00Z\"><create><case_type>{kind}</case_type><case_name>n</case_name>\
             <owner_id>owner-{}</owner_id></create><update><amount>{amount}</amount><changes>{changes}</changes></update>\
             </case></n>",
            account(phone, *number),
            number / 2,
        )
    });
    format!(
        "<data xmlns=\"http://example.org/transfer\" name=\"Transfer\">{}<meta><instanceID>{id}</instanceID>\
         <userID>u</userID><timeEnd>2025-06-30T10:00:00Z</timeEnd></meta></data>",
        blocks.collect::<String>()
    )
}

async fn send(field: &Field, domain: usize, xml: String) -> Position {
    let url = format!("{}/a/{}/receiver/", field.ingest, DOMAINS[domain]);
    let answer = reply(field.client.post(url).body(xml)).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.position.unwrap()
}

/// Moves amounts between accounts, and reads now and then what it has just written, over one protocol or the other.
async fn phone(field: Arc<Field>, domain: usize, phone: usize) {
    let mut random = StdRng::seed_from_u64((domain * PHONES + phone) as u64);
    let wire = field.reader.wire(DOMAINS[domain], &field.passwords[domain]).await;
    let (mut amounts, mut changes) = ([EACH; ACCOUNTS], [0; ACCOUNTS]);
    for number in 0..TRANSFERS {
        let from = random.random_range(0..ACCOUNTS);
        let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = random.random_range(1..50);
        amounts[from] -= amount;
        amounts[to] += amount;
        let written = [from, to].map(|at| {
            changes[at] += 1;
            (at, amounts[at], changes[at])
        });
        let id = format!("{}-{phone}-{number}", DOMAINS[domain]);
        let receipt = send(&field, domain, form(&id, phone, &written)).await;
        if number % 5 != 0 {
            continue;
        }
        let table = if to.is_multiple_of(2) { "even" } else { "odd" };
        let sql = format!("SELECT amount FROM ucr.{table} WHERE doc_id = '{}'", account(phone, to));
        let got = if number % 10 == 0 {
            field.over_http(domain, &sql, Some(receipt)).await[0]["amount"].as_i64().unwrap()
        } else {
            wire.simple_query(&format!("SET millrace.wait_for = '{receipt}'")).await.unwrap();
            first_row(&wire, &sql).await[0].parse().unwrap()
        };
        assert_eq!(got, amounts[to], "{id} was acknowledged at {receipt}");
    }
}

fn settings(urls: &[String; 2], objects: &Path) -> Vec<String> {
    vec![
        format!("objects.url = \"file://{}\"", objects.display()),
        format!("ingest.database_url = {:?}", urls[0]),
        format!("ingest.databases = [{{ number = 1, url = {:?}, shards = \"512-1023\" }}]", urls[1]),
        "ingest.pins = { demo = 0, first = 0, second = 1 }".to_owned(),
        "query.default_wait_ms = 60000".to_owned(),
        "query.stalled_after_ms = 1000".to_owned(),
    ]
}

/// Starts a process that is configured in a directory of its own.
async fn start(home: &Path, roles: &'static str, options: &Options) -> Process {
    std::fs::create_dir(home).unwrap();
    configure(home, options);
    let mut process = Process::spawn(home, roles);
    process.ready(&Client::new()).await;
    process
}

/// Two data sources that share a domain's accounts between them, and a sum over each.
async fn put_views(client: &Client, ingest: &str, domain: usize, password: &str) -> Position {
    let property = |name: &str| json!({"type": "property_name", "property_name": name});
    let mut last = None;
    for table in ["even", "odd"] {
        let column = |name: &str, datatype: &str| json!({"type": "expression", "column_id": name, "datatype": datatype, "expression": property(name)});
        let source = json!({
            "doc_type": "DataSourceConfiguration", "domain": DOMAINS[domain], "table_id": table, "display_name": table,
            "referenced_doc_type": "CommCareCase",
            "configured_filter": {
                "type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": table,
            },
            "configured_indicators": [column("owner_id", "string"), column("amount", "integer"), column("changes", "integer")],
        });
        let sum = |name: &str, column: &str| json!({"function": "sum", "column": column, "as": name});
        let view = json!({
            "from": {"table": table}, "group_by": [{"column": "owner_id"}],
            "aggregates": [sum("total", "amount"), sum("changes", "changes")],
        });
        for (path, json) in [(format!("ucr/data-sources/{table}"), source), (format!("views/{table}_by_owner"), view)] {
            let url = format!("{ingest}/a/{}/{path}", DOMAINS[domain]);
            let request = client.request(Method::PUT, url).basic_auth(admin(domain), Some(password)).json(&json);
            let answer = reply(request).await.unwrap();
            assert!(answer.status.is_success(), "{path}: {}", answer.text);
            last = answer.position;
        }
    }
    last.unwrap()
}

/// Gives a domain's accounts what they hold at first, and puts its views.
async fn open(field: &Field, domain: usize) {
    for phone in 0..PHONES {
        let accounts: Vec<_> = (0..ACCOUNTS).map(|number| (number, EACH, 0)).collect();
        send(field, domain, form(&format!("open-{}-{phone}", DOMAINS[domain]), phone, &accounts)).await;
    }
    let last = put_views(&field.client, &field.ingest, domain, &field.passwords[domain]).await;
    field.over_http(domain, "SELECT 1 AS one", Some(last)).await;
    eventually("the views", async || {
        let live = "SELECT count(*) AS n FROM system.views WHERE state = 'live'";
        let views = field.over_http(domain, live, None).await;
        if views[0]["n"] == 4 { Ok(()) } else { Err(views.to_string()) }
    })
    .await;
}

fn domains() -> std::ops::Range<usize> {
    0..DOMAINS.len()
}

async fn follow(broker: Option<&Broker>, seed: u64) {
    let _turn = turn().await;
    let home = directory();
    let servers = [postgres::Server::start(), postgres::Server::start()];
    let direct = [servers[0].database().await, servers[1].database().await];
    let mut late = Vec::new();
    let mut held = Vec::new();
    for (server, address) in servers.iter().zip(&direct) {
        let (holds, is_held) = watch::channel(false);
        let port = proxy(server.socket(), is_held).await;
        let (_, name) = address.rsplit_once('=').unwrap();
        late.push(format!("host=127.0.0.1 port={port} user=postgres dbname={name}"));
        held.push(holds);
    }
    let late: [String; 2] = late.try_into().unwrap();
    let options = |urls: &[String; 2]| Options {
        kafka: broker.map(|broker| broker.brokers.clone()),
        settings: settings(urls, &home.path().join("objects")),
        ..Options::default()
    };
    let directly = options(&direct);
    let made = home.path().join("made");
    std::fs::create_dir(&made).unwrap();
    let file = configure(&made, &directly);
    let passwords = DOMAINS.map(|domain| {
        let said = run(&["domain", "create", domain], &file);
        run(&["domain", "set", domain, "--secure-submissions", "false"], &file);
        said.lines().find_map(|line| line.strip_prefix("password")).unwrap().trim().to_owned()
    });
    let ingest = start(&home.path().join("ingest"), "ingest", &directly).await;
    let through_kafka = broker.is_some();
    let relay =
        if through_kafka { Some(start(&home.path().join("relay"), "relay", &options(&late)).await) } else { None };
    let read_options = if through_kafka { directly } else { options(&late) };
    let reader = start(&home.path().join("reader"), "dataflow,query", &read_options).await;
    let client = Client::builder().timeout(DEADLINE).build().unwrap();
    let field = Arc::new(Field {
        ingest: ingest.url.clone(),
        client,
        reader,
        passwords,
        seen: Default::default(),
        enough: AtomicBool::new(false),
    });
    for domain in domains() {
        open(&field, domain).await;
    }

    let holding: Vec<_> =
        (seed..).zip(held).map(|(seed, held)| tokio::spawn(hold(held, Arc::clone(&field), seed))).collect();
    let over_http = domains().map(|domain| tokio::spawn(Arc::clone(&field).read_http(domain)));
    let over_wire = domains().map(|domain| tokio::spawn(Arc::clone(&field).read_wire(domain)));
    let reading: Vec<_> = over_http.chain(over_wire).collect();
    let phones = domains().flat_map(|domain| (0..PHONES).map(move |number| (domain, number)));
    let sending: Vec<_> =
        phones.map(|(domain, number)| tokio::spawn(phone(Arc::clone(&field), domain, number))).collect();
    for sent in sending {
        sent.await.unwrap();
    }
    field.enough.store(true, Ordering::Relaxed);
    let mut reads = Vec::new();
    for reader in reading {
        reads.push(reader.await.unwrap());
    }
    // Lanes that nobody holds up any more.
    let mut let_go = Vec::new();
    for holding in holding {
        let_go.push(holding.await.unwrap());
    }
    let transfers = (TRANSFERS * PHONES) as i64;
    for domain in domains() {
        let last = send(&field, domain, form(&format!("last-{}", DOMAINS[domain]), PHONES, &[])).await;
        let rows = field.over_http(domain, STATEMENT, Some(last)).await;
        assert_eq!((&rows[0]["total"], &rows[0]["changes"]), (&json!(ALL), &json!(2 * transfers)));
    }
    println!("{} transfers; reads of one domain and the other, over HTTP and over the wire: {reads:?}", 2 * transfers);
    assert!(reads.iter().all(|reads| *reads > 0));

    // A lane that stays away is missed in its own domain, and there alone.
    let away = &let_go[1];
    away.send_replace(true);
    field.stalled([false, true]).await;
    away.send_replace(false);
    field.stalled([false, false]).await;
    drop(relay);
}
