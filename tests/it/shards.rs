//! Three Postgres servers and two processes that take forms in and share all lanes, while each process is killed at every
//! step of a group commit.
//!
//! Between the processes and the servers stand proxies that read the protocol: they know which statement of a writer's
//! transaction is passing and kill the process there, before it reaches the server, or behind a commit whose answer the
//! process never sees.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use reqwest::Client;
use schemas::position::Position;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::RwLock,
};

use crate::{
    postgres,
    server::{DEADLINE, Options, Process, configure, directory, eventually, millrace, signal, turn},
    whole::Stored,
};

/// A domain pinned to each of the servers.
const DOMAINS: [&str; 3] = ["first", "second", "third"];
/// Phones of each domain that send to each process.
const PHONES: usize = 4;
/// How long forms are counted while nobody dies.
const COUNTED: Duration = Duration::from_secs(5);

/// Where the next death is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Before so many statements of a writer's transaction have passed.
    Before(usize),
    /// Behind a commit, before its answer.
    Committed,
}

/// A death that is to come.
#[derive(Clone, Copy, Debug)]
struct Order {
    step: Step,
    pid: u32,
}

/// What came of an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Died,
    /// The transaction ended with so many statements.
    TooShort(usize),
}

/// What the proxies of a process share.
#[derive(Debug, Default)]
struct Reaper {
    order: Mutex<Option<Order>>,
    outcome: Mutex<Option<Outcome>>,
}

/// Stands between a process and one server; returns its port.
async fn proxy(socket: PathBuf, reaper: Arc<Reaper>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(pass(client, server, Arc::clone(&reaper)));
        }
    });
    port
}

/// The messages that a process sends, cut out of the stream. Only the first has no type.
#[derive(Debug, Default)]
struct Messages {
    pending: Vec<u8>,
    started: bool,
}

impl Messages {
    fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = usize::from(self.started);
        let length: [u8; 4] = self.pending.get(head..head + 4)?.try_into().unwrap();
        let end = head + u32::from_be_bytes(length) as usize;
        if self.pending.len() < end {
            return None;
        }
        let rest = self.pending.split_off(end);
        let message = std::mem::replace(&mut self.pending, rest);
        let kind = if self.started { message[0] } else { 0 };
        self.started = true;
        Some((kind, message))
    }
}

/// Copies both ways, counts the statements of an ordered transaction, and kills.
async fn pass(mut client: TcpStream, mut server: UnixStream, reaper: Arc<Reaper>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut messages = Messages::default();
    // The statements that have passed of a writer's transaction which an order is for.
    let mut counted: Option<(usize, Order)> = None;
    let mut begun = false;
    let mut dies_on_answer = None;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                messages.pending.extend_from_slice(&up[..n]);
                while let Some((kind, message)) = messages.next() {
                    let text = &message[1..];
                    let is = |statement: &str| kind == b'Q' && text.windows(statement.len()).any(|w| w == statement.as_bytes());
                    // A writer goes on with what it has prepared; nobody else does behind a BEGIN.
                    if begun && kind == b'B' {
                        counted = reaper.order.lock().take().map(|order| (0, order));
                    }
                    begun = is("BEGIN");
                    let ends = is("COMMIT") || is("ROLLBACK");
                    if let Some((passed, order)) = &mut counted
                        && (kind == b'E' || ends)
                    {
                        if order.step == Step::Before(*passed) {
                            return die(&reaper, order.pid);
                        }
                        *passed += 1;
                        if ends {
                            if order.step == Step::Committed && is("COMMIT") {
                                dies_on_answer = Some(order.pid);
                            } else {
                                *reaper.outcome.lock() = Some(Outcome::TooShort(*passed));
                            }
                            counted = None;
                        }
                    }
                    if server.write_all(&message).await.is_err() {
                        return;
                    }
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                if let Some(pid) = dies_on_answer
                    && down[..n].windows(7).any(|w| w == b"COMMIT\0")
                {
                    return die(&reaper, pid);
                }
                if client.write_all(&down[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn die(reaper: &Reaper, pid: u32) {
    signal("KILL", pid);
    *reaper.outcome.lock() = Some(Outcome::Died);
}

/// A process that takes forms in, with a reaper of its own.
struct Member {
    home: PathBuf,
    process: RwLock<Process>,
    reaper: Arc<Reaper>,
}

impl Member {
    async fn start(home: &Path, servers: &[postgres::Server; 3], names: &[String; 3], objects: &Path) -> Self {
        std::fs::create_dir(home).unwrap();
        let reaper = Arc::new(Reaper::default());
        let mut urls = Vec::new();
        for (server, name) in servers.iter().zip(names) {
            let port = proxy(server.socket(), Arc::clone(&reaper)).await;
            urls.push(format!("host=127.0.0.1 port={port} user=postgres dbname={name}"));
        }
        configure(home, &Options { settings: settings(&urls, objects), ..Options::default() });
        let member = Self { home: home.to_owned(), process: RwLock::new(Process::spawn(home, "ingest")), reaper };
        member.process.write().await.ready(&Client::new()).await;
        member
    }

    async fn revive(&self) {
        let mut process = self.process.write().await;
        process.kill();
        *process = Process::spawn(&self.home, "ingest");
        process.ready(&Client::new()).await;
    }
}

fn settings(urls: &[String], objects: &Path) -> Vec<String> {
    vec![
        format!("objects.url = \"file://{}\"", objects.display()),
        format!("ingest.database_url = {:?}", urls[0]),
        format!(
            "ingest.databases = [{{ number = 1, url = {:?}, shards = \"341-682\" }}, \
             {{ number = 2, url = {:?}, shards = \"683-1023\" }}]",
            urls[1], urls[2]
        ),
        "ingest.pins = { demo = 0, first = 0, second = 1, third = 2 }".to_owned(),
    ]
}

/// What phones and the test share.
struct Field {
    members: Vec<Member>,
    /// Receipts by form id.
    acknowledged: Mutex<BTreeMap<String, Position>>,
    /// The last acknowledged number of each phone, by domain and phone.
    last: Mutex<BTreeMap<(usize, usize), u64>>,
    enough: AtomicBool,
}

/// Sends forms that change a case of its own and one that all phones of the domain share; each again until it is
/// acknowledged, to the other process after a failure.
async fn phone(field: Arc<Field>, domain: usize, phone: usize) {
    let client = Client::builder().timeout(DEADLINE).build().unwrap();
    let name = DOMAINS[domain];
    for number in 1.. {
        let mut at = phone % field.members.len();
        let id = format!("{name}-{phone}-{number}");
        let block = |case: &str| {
            format!(
                "<case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"{case}\" user_id=\"u\" \
                 date_modified=\"2024-01-01T10:00:00Z\"><create><case_type>t</case_type><case_name>n</case_name>\
                 <owner_id>u</owner_id></create><update><p{phone}>{number}</p{phone}></update></case>"
            )
        };
        let xml = format!(
            "<data xmlns=\"http://example.org/visit\" name=\"Visit\">{}{}<meta><instanceID>{id}</instanceID>\
             <userID>u</userID><timeEnd>2024-01-01T10:00:00Z</timeEnd></meta></data>",
            block(&format!("{name}-{phone}")),
            block(&format!("{name}-shared"))
        );
        loop {
            if field.enough.load(Ordering::Relaxed) {
                return;
            }
            let url = format!("{}/a/{name}/receiver/", field.members[at].process.read().await.url);
            match client.post(url).body(xml.clone()).send().await {
                Ok(answer) if answer.status() == 201 => {
                    let receipt = answer.headers()["x-millrace-position"].to_str().unwrap().parse().unwrap();
                    field.acknowledged.lock().insert(id, receipt);
                    field.last.lock().insert((domain, phone), number);
                    break;
                }
                Ok(answer) if answer.status().is_server_error() || [423, 429].contains(&answer.status().as_u16()) => {}
                Ok(answer) => panic!("{id}: {} {}", answer.status(), answer.text().await.unwrap_or_default()),
                Err(_) => {}
            }
            at = (at + 1) % field.members.len();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_survive_the_death_of_either_process_at_every_step_of_a_commit() {
    let _turn = turn().await;
    let home = directory();
    let objects = home.path().join("objects");
    let servers = [postgres::Server::start(), postgres::Server::start(), postgres::Server::start()];
    let addresses = [servers[0].database().await, servers[1].database().await, servers[2].database().await];
    let names = addresses.clone().map(|address| address.rsplit_once('=').unwrap().1.to_owned());

    let direct = home.path().join("direct");
    std::fs::create_dir(&direct).unwrap();
    let file = configure(&direct, &Options { settings: settings(&addresses, &objects), ..Options::default() });
    let mut password = String::new();
    for domain in DOMAINS {
        let said = run(&["domain", "create", domain], &file);
        if domain == "third" {
            said.lines().find_map(|line| line.strip_prefix("password")).unwrap().trim().clone_into(&mut password);
        }
        run(&["domain", "set", domain, "--secure-submissions", "false"], &file);
    }
    let members = vec![
        Member::start(&home.path().join("one"), &servers, &names, &objects).await,
        Member::start(&home.path().join("two"), &servers, &names, &objects).await,
    ];
    let enough = AtomicBool::new(false);
    let field = Arc::new(Field { members, acknowledged: Mutex::default(), last: Mutex::default(), enough });
    let all = (0..DOMAINS.len()).flat_map(|domain| (0..PHONES * 2).map(move |number| (domain, number)));
    let phones: Vec<_> = all.map(|(domain, number)| tokio::spawn(phone(Arc::clone(&field), domain, number))).collect();

    let mut deaths = 0;
    for (n, member) in field.members.iter().enumerate() {
        let mut step = 0;
        let steps = loop {
            match order(&field, member, Step::Before(step)).await {
                Outcome::Died => step += 1,
                Outcome::TooShort(statements) => break statements,
            }
            deaths += 1;
        };
        assert!(steps > 10, "a group is more than {steps} statements");
        let committed = order(&field, member, Step::Committed).await;
        assert_eq!(committed, Outcome::Died);
        deaths += 1;
        println!("process {n}: killed before each of {steps} statements of a group, and behind its commit");
    }
    let (before, started) = (field.acknowledged.lock().len(), Instant::now());
    tokio::time::sleep(COUNTED).await;
    let forms = field.acknowledged.lock().len() - before;
    println!(
        "three databases, two processes, built without optimisation: {:.0} forms/s; {deaths} deaths before",
        forms as f64 / started.elapsed().as_secs_f64()
    );
    let shown: Value = serde_json::from_str(&run(&["shards", "--json", "--seconds", "1"], &file)).unwrap();
    for (database, shards) in shown.as_array().unwrap().iter().zip(["0-340", "341-682", "683-1023"]) {
        assert_eq!((&database["shards"][0], &database["state"]), (&shards.into(), &"up".into()), "{shown}");
        assert!(database["lanes"][0]["records_per_second"].as_f64().unwrap() > 0.0, "{shown}");
    }
    field.enough.store(true, Ordering::Relaxed);
    for phone in phones {
        phone.await.unwrap();
    }

    let mut stored = BTreeMap::new();
    for (number, address) in addresses.iter().enumerate() {
        let client = postgres::connect(address).await;
        let found = Stored::look(&client).await;
        let domains = client.query("SELECT DISTINCT domain FROM forms", &[]).await.unwrap();
        let domains: Vec<String> = domains.iter().map(|row| row.get(0)).collect();
        assert_eq!(domains, [DOMAINS[number]], "a domain is in one database");
        for row in client.query("SELECT id, properties FROM cases WHERE id LIKE '%-shared'", &[]).await.unwrap() {
            let properties: Value = serde_json::from_str(row.get(1)).unwrap();
            for phone in 0..PHONES * 2 {
                let last = field.last.lock().get(&(number, phone)).copied().unwrap_or_default();
                let written: u64 = properties[format!("p{phone}")].as_str().map_or(0, |text| text.parse().unwrap());
                assert!(written == last || written == last + 1, "no update was lost: {written} after {last}");
            }
        }
        let all: i64 = client.query_one("SELECT count(*) FROM forms WHERE state = 1", &[]).await.unwrap().get(0);
        let counted = "SELECT json_array_length(xform_ids::json)::bigint FROM cases WHERE id LIKE '%-shared'";
        assert_eq!(client.query_one(counted, &[]).await.unwrap().get::<_, i64>(0), all, "each form counts once");
        stored.insert(number, found);
    }
    for (id, receipt) in &*field.acknowledged.lock() {
        let found = &stored[&usize::from(receipt.lane.database)];
        assert!(found.forms.binary_search(id).is_ok(), "{id} was acknowledged at {receipt} and is gone");
        assert!(found.heads[&receipt.lane] >= receipt.sequence);
    }

    // A reader of all three sees the same.
    let mut reader = Process::spawn(&direct, "dataflow,query");
    let client = Client::new();
    reader.ready(&client).await;
    let sql = "SELECT count(*) AS n FROM system.form_documents";
    let url = format!("{}/a/third/sql", reader.url);
    let expected = stored[&2].forms.len();
    eventually("the forms of the third database", async || {
        let request = client.post(&url).basic_auth("admin@third", Some(&password)).body(sql);
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let rows: Value = answer.json().await.map_err(|error| error.to_string())?;
        if rows[0]["n"] == expected { Ok(()) } else { Err(format!("{rows} instead of {expected}")) }
    })
    .await;
    reader.kill();
    for member in &field.members {
        member.process.write().await.kill();
    }
}

/// Orders a death and waits for it, then starts the process again.
async fn order(field: &Field, member: &Member, step: Step) -> Outcome {
    let before = field.acknowledged.lock().len();
    let pid = member.process.read().await.pid();
    *member.reaper.outcome.lock() = None;
    *member.reaper.order.lock() = Some(Order { step, pid });
    let outcome =
        eventually("a death", async || member.reaper.outcome.lock().ok_or_else(|| format!("{step:?} was not reached")))
            .await;
    if outcome == Outcome::Died {
        member.revive().await;
    }
    eventually("more forms", async || {
        let forms = field.acknowledged.lock().len() - before;
        if forms >= PHONES { Ok(()) } else { Err(format!("{forms} since the last death")) }
    })
    .await;
    outcome
}

/// Runs the binary to its end and returns what it said.
pub(crate) fn run(arguments: &[&str], config: &Path) -> String {
    let output = millrace().args(arguments).arg("--config").arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}
