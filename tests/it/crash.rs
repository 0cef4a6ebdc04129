//! Forms under way while the server or its Postgres is killed, again and again: what was acknowledged is there, every form is
//! whole or absent, nothing counts twice, and the tables are right.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use schemas::position::{LaneId, Position};
use tokio::sync::RwLock;

use crate::{
    server::{Options, Server, eventually, signal},
    whole::Stored,
    workload::{Committed, Event, Workload, set_up},
};

/// Deaths to survive.
const DEATHS: usize = 22;
/// Phones that send at the same time.
const PHONES: usize = 6;

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Server,
    Postgres,
    /// One of the Postgres processes that serve connections; the rest restarts with it.
    Backend,
    Both,
}

const VICTIMS: [Victim; 4] = [Victim::Server, Victim::Postgres, Victim::Backend, Victim::Both];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_halved_by_crashes() {
    // More than the phones can send between the deaths: they must not run out.
    let workload = Workload::generate(10_000, 13);
    // So often that most deaths come while one is being written.
    let settings = vec!["dataflow.checkpoint_interval_ms = 100".to_owned()];
    let server = Server::start(&Options { settings, ..Options::default() }).await;
    set_up(&server, &workload).await;
    let field =
        Arc::new(Field { server: RwLock::new(server), acknowledged: Mutex::default(), enough: AtomicBool::new(false) });
    // Forms of one worker go one after the other, as from a phone.
    let mut phones: Vec<Vec<Event>> = vec![Vec::new(); PHONES];
    for event in workload.events {
        let Event::Form { id, xml } = event else { continue };
        let worker = xml.split_once("userID>").map_or("", |(_, rest)| rest.split('<').next().unwrap());
        let phone = worker.bytes().map(usize::from).sum::<usize>() % PHONES;
        phones[phone].push(Event::Form { id, xml });
    }
    let phones: Vec<_> = phones.into_iter().map(|forms| tokio::spawn(phone(Arc::clone(&field), forms))).collect();

    let mut random = StdRng::seed_from_u64(99);
    let (mut shown, mut stored) = (Committed::default(), Committed::default());
    for number in 0..DEATHS {
        let victim = VICTIMS[number % VICTIMS.len()];
        let before = field.acknowledged.lock().len();
        eventually("more forms", async || {
            let forms = field.acknowledged.lock().len() - before;
            if forms >= 10 || field.enough.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err(format!("{forms} since the last death"))
            }
        })
        .await;
        // The moment of death is random, not waited for.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        die(&field, victim).await;
        let last = field.acknowledged.lock().values().copied().max();
        let server = field.server.read().await;
        let rows = shown.compare_all(&server, last).await;
        let acknowledged = field.acknowledged.lock().clone();
        everything_is_whole(&server, &mut stored, &acknowledged).await;
        println!("death {number} ({victim:?}): {} forms acknowledged, rows {rows:?}", field.acknowledged.lock().len());
    }
    field.enough.store(true, Ordering::Relaxed);
    for phone in phones {
        phone.await.unwrap();
    }
    let mut server = field.server.write().await;
    let last = field.acknowledged.lock().values().copied().max();
    shown.compare_all(&server, last).await;
    assert!(server.stop().await.success());
    let before = server.log();
    server.restart().await;
    assert!(server.data.join("checkpoints/manifest.json").is_file());
    let log = server.log();
    let refused = |line: &&str| !before.contains(line) && line.contains("checkpoint");
    assert_eq!(log.lines().find(refused), None, "a checkpoint was of no use");
    shown.compare_all(&server, last).await;
    let acknowledged = field.acknowledged.lock().clone();
    everything_is_whole(&server, &mut stored, &acknowledged).await;
}

/// What phones and the reaper share.
struct Field {
    /// Written while the server is started again.
    server: RwLock<Server>,
    /// Form ids and their receipts.
    acknowledged: Mutex<BTreeMap<String, Position>>,
    enough: AtomicBool,
}

/// Sends forms in order; each again until it is acknowledged, as phones do.
async fn phone(field: Arc<Field>, forms: Vec<Event>) {
    for event in &forms {
        let Event::Form { id, xml } = event else { continue };
        loop {
            if field.enough.load(Ordering::Relaxed) {
                return;
            }
            let server = field.server.read().await;
            let reply = server.submit(xml).await;
            drop(server);
            match reply {
                // A form whose case was not there yet is stored with its problem: acknowledged, too.
                Ok(reply) if reply.status == 201 || (reply.status == 422 && reply.position.is_some()) => {
                    field.acknowledged.lock().insert(id.clone(), reply.position.unwrap());
                    break;
                }
                Ok(reply) if reply.status.is_server_error() || [423, 429].contains(&reply.status.as_u16()) => {}
                Ok(reply) => panic!("form {id}: {} {}", reply.status, reply.text),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn die(field: &Field, victim: Victim) {
    let (server_pid, postgres_pid, witness) = {
        let server = field.server.read().await;
        (server.pid(), server.postgres_pid().unwrap(), server.store().await)
    };
    match victim {
        Victim::Server => signal("KILL", server_pid),
        Victim::Postgres => signal("KILL", postgres_pid),
        Victim::Backend => {
            let children =
                std::fs::read_to_string(format!("/proc/{postgres_pid}/task/{postgres_pid}/children")).unwrap();
            // The oldest children are the server's own helpers; the youngest serves a connection.
            signal("KILL", children.split_whitespace().last().unwrap().parse().unwrap());
        }
        Victim::Both => {
            signal("KILL", postgres_pid);
            signal("KILL", server_pid);
        }
    }
    if matches!(victim, Victim::Server | Victim::Both) {
        let mut server = field.server.write().await;
        server.kill();
        server.restart().await;
    } else {
        eventually("the death of Postgres", async || {
            if witness.is_closed() { Ok(()) } else { Err("its connections live".to_owned()) }
        })
        .await;
        field.server.read().await.store().await;
        field.server.write().await.useful().await;
    }
}

/// Every acknowledged form is stored; every stored form has its record, its bytes, its cases and their transactions; and the
/// other way round. Record numbers are dense.
async fn everything_is_whole(server: &Server, stored: &mut Committed, acknowledged: &BTreeMap<String, Position>) {
    let store = server.store().await;
    let found = Stored::look(&store).await;
    let head = found.heads.get(&LaneId::FIRST).copied().unwrap_or_default();
    stored.fold(&store, head).await;
    let known = |documents: &BTreeMap<String, serde_json::Value>| documents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(found.forms, known(&stored.world.forms), "forms in the store and in the log");
    assert_eq!(found.cases, known(&stored.world.cases), "cases in the store and in the log");
    for (id, receipt) in acknowledged {
        assert!(stored.forms.contains_key(id), "form {id} was acknowledged at {receipt} and is gone");
    }
}
