//! The worker threads of the process, and how a tick reaches all of them.
//!
//! The first worker leads: the clock runs on its thread, so that with one worker a tick costs no wake-up. [`Lead::tick`] hands
//! the others their shares, takes part itself, and collects the reports. The others sleep until their next share comes.
//!
//! All workers are told the same commands in the same order. A worker reports a tick when its probe has passed it,
//! which is when no worker has anything left to do in it; so the tables of all reports stand at the same tick.
//!
//! Workers end together. Whoever leaves, by an error or a panic, sets [`Ended`]; the others give up the tick they are in
//! or find their channels closed, and abandon their graphs, which without one of them would never come to an end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, Sender, channel},
};

use parking_lot::Mutex;
use timely::worker::Worker;

use crate::{
    config::Workers,
    document::Share,
    error::DataflowError,
    meter::Meters,
    worker::{Engine, Report, TickBatch},
};

/// True once a worker has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended(Arc<AtomicBool>);

impl Ended {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Sets [`Ended`] when the worker that holds it ends, however it does.
struct Leaving(Ended);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// Another worker, as the leading one sees it.
struct Peer {
    shares: Sender<(TickBatch, Share)>,
    reports: Receiver<Report>,
}

/// A worker that does not lead.
struct Seat {
    shares: Receiver<(TickBatch, Share)>,
    reports: Sender<Report>,
}

fn seat() -> (Peer, Seat) {
    let (share, shares) = channel();
    let (report, reports) = channel();
    (Peer { shares: share, reports }, Seat { shares, reports: report })
}

/// The leading worker, and through it all others.
pub(crate) struct Lead<'w> {
    engine: Engine,
    worker: &'w mut Worker,
    peers: Vec<Peer>,
}

impl Lead<'_> {
    /// Runs one tick to its end on all workers, with the share of each. Returns their reports, in their order.
    ///
    /// # Errors
    /// A worker failed.
    pub(crate) fn tick(&mut self, batch: &TickBatch, shares: Vec<Share>) -> Result<Vec<Report>, DataflowError> {
        let mut shares = shares.into_iter();
        let own = shares.next().unwrap_or_default();
        for (peer, theirs) in self.peers.iter().zip(shares) {
            peer.shares.send((batch.clone(), theirs)).map_err(|_| DataflowError::Peer)?;
        }
        let mut reports = Vec::with_capacity(1 + self.peers.len());
        reports.push(self.engine.tick(self.worker, batch, own)?);
        for peer in &self.peers {
            reports.push(peer.reports.recv().map_err(|_| DataflowError::Peer)?);
        }
        Ok(reports)
    }
}

/// Takes part in ticks until no more come.
fn follow(mut engine: Engine, worker: &mut Worker, seat: &Seat) -> Result<(), DataflowError> {
    while let Ok((batch, share)) = seat.shares.recv() {
        let report = engine.tick(worker, &batch, share)?;
        if seat.reports.send(report).is_err() {
            break;
        }
    }
    Ok(())
}

/// What a worker that does not lead does.
type Follow = fn(Engine, &mut Worker, &Seat) -> Result<(), DataflowError>;

/// What a thread is started for.
enum Part<L> {
    Lead(L, Vec<Peer>),
    Follow(Seat),
}

/// Starts the workers, each on a thread of its own, and waits until all have ended, which they do when `lead` returns. What
/// they hold is counted by `meters`.
///
/// # Errors
/// Why the first of them failed.
pub(crate) fn run<L>(workers: Workers, meters: Meters, lead: L) -> Result<(), DataflowError>
where
    L: FnOnce(Lead<'_>) -> Result<(), DataflowError> + Send + 'static,
{
    threads(workers, meters, lead, follow)
}

fn threads<L>(workers: Workers, meters: Meters, lead: L, follow: Follow) -> Result<(), DataflowError>
where
    L: FnOnce(Lead<'_>) -> Result<(), DataflowError> + Send + 'static,
{
    let (peers, seats): (Vec<Peer>, Vec<Seat>) = (1..workers.count()).map(|_| seat()).unzip();
    let parts = [Part::Lead(lead, peers)].into_iter().chain(seats.into_iter().map(Part::Follow));
    // Timely wants a closure that every worker could share; each takes what is its own.
    let parts: Mutex<Vec<Option<Part<L>>>> = Mutex::new(parts.map(Some).collect());
    let ended = Ended::default();
    let config = match workers.count() {
        1 => timely::Config::thread(),
        several => timely::Config::process(several),
    };
    let guards = timely::execute(config, move |worker| {
        let _leaving = Leaving(ended.clone());
        let part = parts.lock().get_mut(worker.index()).and_then(Option::take);
        let engine = Engine::new(worker, ended.clone(), &meters);
        let done = match part {
            Some(Part::Lead(lead, peers)) => lead(Lead { engine, worker, peers }),
            Some(Part::Follow(seat)) => follow(engine, worker, &seat),
            None => Ok(()),
        };
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        done
    })
    .map_err(DataflowError::Worker)?;
    let ended = guards.join().into_iter().map(|ended| ended.map_err(DataflowError::Worker).flatten());
    // Who waited for one that failed says less than that one.
    let (waited, failed): (Vec<_>, Vec<_>) = ended.partition(|ended| matches!(ended, Err(DataflowError::Peer)));
    failed.into_iter().chain(waited).collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::LazyLock, time::Duration};

    use schemas::{
        change::{ChangedDocument, DocKind},
        id::{DocId, DomainId},
        position::{Stamp, Tick},
        row::{Column, ColumnType, TableSchema},
    };
    use serde_json::value::RawValue;

    use super::*;
    use crate::{
        document::Arriving,
        view::{Command, Instance, Logic, RowLogic, ViewNo},
    };

    static THREE: LazyLock<Workers> = LazyLock::new(|| 3.try_into().unwrap());

    /// What three workers come to, of which the first leads through these ticks. They end, however long that takes a slow
    /// machine; that they never do is what this guards against.
    fn outcome(
        ticks: impl IntoIterator<Item = (TickBatch, Vec<Arriving>)>,
        follow: Follow,
    ) -> Result<u64, DataflowError> {
        let ticks: Vec<_> = ticks.into_iter().collect();
        let (said, outcome) = channel();
        std::thread::spawn(move || {
            let (count, counted) = channel::<u64>();
            let led = threads(
                *THREE,
                Meters::default(),
                move |mut lead| {
                    for (batch, documents) in ticks {
                        let mut shares: Vec<Share> = (0..3).map(|_| Share::default()).collect();
                        for document in documents {
                            shares[document.home].documents.push(document);
                        }
                        let reports = lead.tick(&batch, shares)?;
                        let rows = reports.iter().flat_map(|report| &report.published.tables);
                        count.send(rows.map(|(_, table)| table.live_rows as u64).sum()).unwrap();
                    }
                    Ok(())
                },
                follow,
            );
            said.send(led.map(|()| counted.try_iter().sum())).unwrap();
        });
        outcome.recv_timeout(Duration::from_secs(60)).expect("the workers did not end")
    }

    /// A view that shows the name of every mobile worker.
    fn named(required: bool) -> Command {
        let name = if required { Column::required } else { Column::new };
        let columns = vec![Column::required("doc_id", ColumnType::Text), name("username", ColumnType::Text)];
        Command::Install(Arc::new(Instance {
            no: ViewNo(1),
            domain: DomainId::new("demo").unwrap(),
            id: "named".to_owned(),
            logic: Logic::Rows(RowLogic::Documents(DocKind::User)),
            schema: Arc::new(TableSchema { columns, key: vec![0] }),
            stamp_column: None,
            day: None,
        }))
    }

    /// Installs the view, and puts mobile workers at home with each worker; those of one of them have no name.
    fn ticks(required: bool, nameless: usize) -> [(TickBatch, Vec<Arriving>); 3] {
        let domain = DomainId::new("demo").unwrap();
        let user = |number: i64| {
            let read = |body: &str| {
                let document = ChangedDocument {
                    kind: DocKind::User,
                    id: DocId::new(&format!("u{number}")).unwrap(),
                    stamp: Stamp(number),
                    document_type: String::new(),
                    subtype: None,
                    body: Some(Arc::from(RawValue::from_string(body.to_owned()).unwrap())),
                };
                Arriving::read(&domain, &document, *THREE)
            };
            let found = read(r#"{"username": "asha"}"#);
            if found.home == nameless { read("{}") } else { found }
        };
        let batch = |tick, commands| TickBatch { tick: Tick(tick), commands, ..TickBatch::default() };
        [
            (batch(1, vec![named(required)]), Vec::new()),
            (batch(2, Vec::new()), (1..=30).map(user).collect()),
            (batch(3, Vec::new()), Vec::new()),
        ]
    }

    #[test]
    fn each_worker_has_the_rows_of_its_documents() {
        assert_eq!(outcome(ticks(false, 1), follow).unwrap(), 30);
    }

    #[test]
    fn a_table_that_cannot_be_built_ends_all_workers() {
        for worker in 0..3 {
            let failed = outcome(ticks(true, worker), follow).unwrap_err();
            assert!(matches!(failed, DataflowError::Table(_)), "worker {worker}: {failed}");
        }
    }

    #[test]
    fn a_worker_that_panics_ends_all_workers() {
        fn before(_: Engine, worker: &mut Worker, seat: &Seat) -> Result<(), DataflowError> {
            assert!(worker.index() != 1, "this worker does not take part");
            while seat.shares.recv().is_ok() {}
            Ok(())
        }
        fn amid(mut engine: Engine, worker: &mut Worker, seat: &Seat) -> Result<(), DataflowError> {
            let (batch, documents) = seat.shares.recv().unwrap();
            seat.reports.send(engine.tick(worker, &batch, documents)?).unwrap();
            let (batch, documents) = seat.shares.recv().unwrap();
            assert!(worker.index() != 2, "this worker leaves others waiting in a tick");
            engine.tick(worker, &batch, documents).map(|_| ())
        }
        for follow in [before as Follow, amid] {
            let failed = outcome(ticks(false, 1), follow).unwrap_err();
            assert!(matches!(failed, DataflowError::Worker(_)), "{failed}");
        }
    }

    #[test]
    fn a_lead_that_leaves_ends_all_workers() {
        let early = outcome(ticks(false, 1).into_iter().take(1), follow);
        assert_eq!(early.unwrap(), 0);
    }
}
