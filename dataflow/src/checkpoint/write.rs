//! Writes checkpoints, on a thread of its own.
//!
//! In:  slices of documents as the workers give them, then the rest of the tick's state. Out: files, the manifest, and the
//! word to the change log that everything up to the manifest's positions is kept.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use hashbrown::HashMap;
use schemas::{
    doc::Symbols,
    port::{Bootstrap, CheckpointStore},
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{
    CheckpointError, FORMAT, File, KeptDocument, KeptSegment, MANIFEST, Manifest, PROGRAM, SegmentNo, State,
    encode::{Out, write_batch},
};
use crate::metrics::CheckpointMetrics;

/// Slices that may wait to be written.
const QUEUE: usize = 4;
/// Content of a block of documents.
const BLOCK: usize = 1 << 20;
/// A file that has grown beyond this is written.
const FILE: usize = 32 << 20;
/// Documents are written anew as a whole when so many times as many as there are have been written...
const REWRITE: usize = 2;
/// ... and so many more.
const REWRITE_FROM: usize = 10_000;

/// What the writer is given.
#[derive(Debug)]
pub(super) enum Part {
    /// A checkpoint begins. A whole one holds every document; others those that have changed since the last one.
    Begin {
        whole: bool,
    },
    Documents(Vec<KeptDocument>),
    /// The rest of the tick at which the last documents were taken.
    End(Box<State>),
}

/// How the last checkpoint ended, for who gives the next one.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// A checkpoint has been begun and not ended.
    pub(super) busy: AtomicBool,
    /// The next one has to be a whole one.
    pub(super) whole_next: AtomicBool,
}

/// The giving end.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) parts: mpsc::Sender<Part>,
    pub(super) outcome: Arc<Outcome>,
}

impl Writer {
    /// Starts the thread, which ends when the giving end is dropped. `before` is the checkpoint that this engine started from.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(
        store: Arc<dyn CheckpointStore>,
        log: Arc<dyn Bootstrap>,
        identity: String,
        before: Option<Manifest>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (parts, mut given) = mpsc::channel(QUEUE);
        let outcome = Arc::new(Outcome::default());
        outcome.whole_next.store(before.is_none(), Ordering::Release);
        let mut files = Files {
            store,
            log,
            identity,
            reader: before.as_ref().map_or_else(reader_name, |manifest| manifest.reader.clone()),
            runtime: Handle::current(),
            number: before.as_ref().map_or(0, |manifest| manifest.number),
            documents: before.as_ref().map(|manifest| manifest.documents.clone()).unwrap_or_default(),
            segments: before.map(|manifest| manifest.segments).unwrap_or_default(),
            round: None,
            metrics: CheckpointMetrics::new(),
        };
        let told = Arc::clone(&outcome);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || {
            while let Some(part) = given.blocking_recv() {
                files.take(part, &told);
            }
        })?;
        Ok((Self { parts, outcome }, thread))
    }
}

/// A checkpoint being written.
struct Round {
    begun: Instant,
    /// Documents' files of this round.
    documents: Vec<File>,
    /// Records that fill a block.
    block: Out,
    in_block: u64,
    /// Blocks that fill a file.
    file: Out,
    in_file: u64,
    written: u64,
}

struct Files {
    store: Arc<dyn CheckpointStore>,
    log: Arc<dyn Bootstrap>,
    identity: String,
    reader: String,
    runtime: Handle,
    /// Of the last checkpoint.
    number: u64,
    /// What the last checkpoint consists of.
    documents: Vec<File>,
    segments: Vec<File>,
    round: Option<Round>,
    metrics: CheckpointMetrics,
}

impl Files {
    fn take(&mut self, part: Part, outcome: &Outcome) {
        let done = match part {
            Part::Begin { whole } => {
                if whole {
                    self.documents.clear();
                }
                self.round = Some(Round {
                    begun: Instant::now(),
                    documents: Vec::new(),
                    block: Out::default(),
                    in_block: 0,
                    file: Out::default(),
                    in_file: 0,
                    written: 0,
                });
                return;
            }
            Part::Documents(documents) => match self.add(&documents) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Part::End(state) if self.round.is_some() => self.end(&state),
            // The round has failed before.
            Part::End(_) => return outcome.busy.store(false, Ordering::Release),
        };
        match done {
            Ok(whole_next) => outcome.whole_next.store(whole_next, Ordering::Release),
            Err(error) => {
                tracing::warn!(%error, "a checkpoint could not be written; the one before stays, and the next one will be a whole one");
                self.round = None;
                self.metrics.failed();
                outcome.whole_next.store(true, Ordering::Release);
            }
        }
        outcome.busy.store(false, Ordering::Release);
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<File, CheckpointError> {
        let file = File {
            name: name.to_owned(),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            crc32: crc32fast::hash(&bytes),
            documents: 0,
            segments: Vec::new(),
        };
        self.runtime.block_on(self.store.put(name, bytes))?;
        Ok(file)
    }

    fn add(&mut self, documents: &[KeptDocument]) -> Result<(), CheckpointError> {
        let Some(mut round) = self.round.take() else { return Ok(()) };
        for document in documents {
            round.block.document(document);
            round.in_block += 1;
            if round.block.0.len() >= BLOCK {
                round.close_block()?;
            }
            if round.file.0.len() >= FILE {
                self.close_file(&mut round)?;
            }
        }
        self.round = Some(round);
        Ok(())
    }

    fn close_file(&self, round: &mut Round) -> Result<(), CheckpointError> {
        if round.in_file == 0 {
            return Ok(());
        }
        let name = format!("{:08}-{}.documents", self.number + 1, round.documents.len());
        let file = self.put(&name, std::mem::take(&mut round.file.0))?;
        round.written += file.bytes;
        round.documents.push(File { documents: std::mem::take(&mut round.in_file), ..file });
        Ok(())
    }

    /// Writes the rest and the manifest; returns whether the next checkpoint should be a whole one.
    fn end(&mut self, state: &State) -> Result<bool, CheckpointError> {
        let Some(mut round) = self.round.take() else { return Ok(true) };
        round.close_block()?;
        self.close_file(&mut round)?;
        let number = self.number + 1;
        let documents: Vec<File> = self.documents.iter().cloned().chain(round.documents.iter().cloned()).collect();
        let segments = self.segments(state, &mut round)?;
        let kept = self.put(&format!("{number:08}.state"), encode(state)?)?;
        round.written += kept.bytes;
        let manifest = Manifest {
            format: FORMAT,
            program: PROGRAM.to_owned(),
            number,
            store: self.identity.clone(),
            reader: self.reader.clone(),
            tick: state.tick.0,
            stamp: state.stamp.0,
            day: state.day,
            frontier: state.frontier.positions().collect(),
            state: kept,
            documents,
            segments,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::from).map_err(packing)?;
        self.put(MANIFEST, text)?;
        self.number = number;
        let written: u64 = manifest.documents.iter().map(|file| file.documents).sum();
        self.documents.clone_from(&manifest.documents);
        self.segments.clone_from(&manifest.segments);
        if let Err(error) = self.runtime.block_on(self.log.kept(&self.reader, &state.frontier)) {
            tracing::warn!(%error, "the change log could not be told of a checkpoint");
        }
        self.collect(&manifest);
        self.metrics.written(round.begun.elapsed(), round.written);
        tracing::info!(
            number, tick = state.tick.0, frontier = %state.frontier, bytes = round.written, took = ?round.begun.elapsed(),
            "checkpoint written"
        );
        Ok(usize::try_from(written).unwrap_or(usize::MAX) > state.documents * REWRITE + REWRITE_FROM)
    }

    /// Writes the segments that no file holds yet; returns the files that hold those of this tick. A file of which less
    /// than half is still needed is left behind, and what it holds is written again.
    fn segments(&self, state: &State, round: &mut Round) -> Result<Vec<File>, CheckpointError> {
        let needed: HashMap<SegmentNo, &KeptSegment> =
            state.tables.iter().flat_map(|(_, table)| &table.segments).map(|segment| (segment.no, segment)).collect();
        let mut files = Vec::new();
        let mut held: BTreeSet<SegmentNo> = BTreeSet::new();
        for file in &self.segments {
            let live = file.segments.iter().filter(|(no, _)| needed.contains_key(no));
            let live_bytes: u64 = live.clone().map(|(_, bytes)| bytes).sum();
            if live_bytes * 2 >= file.bytes && live_bytes > 0 {
                held.extend(live.map(|(no, _)| no));
                files.push(file.clone());
            }
        }
        let mut missing: Vec<&KeptSegment> =
            needed.into_values().filter(|segment| !held.contains(&segment.no)).collect();
        missing.sort_by_key(|segment| segment.no);
        let mut out = Out::default();
        let mut inside = Vec::new();
        let mut left = missing.into_iter().peekable();
        while let Some(segment) = left.next() {
            let before = out.0.len();
            out.block(segment.no.0, &write_batch(&segment.batch)?).map_err(packing)?;
            inside.push((segment.no, u64::try_from(out.0.len() - before).unwrap_or(u64::MAX)));
            if out.0.len() >= FILE || left.peek().is_none() {
                let name = format!("{:08}-{}.segments", self.number + 1, files.len());
                let file = self.put(&name, std::mem::take(&mut out.0))?;
                round.written += file.bytes;
                files.push(File { segments: std::mem::take(&mut inside), ..file });
            }
        }
        Ok(files)
    }

    /// Deletes everything that the manifest does not name.
    fn collect(&self, manifest: &Manifest) {
        let files = manifest.documents.iter().chain(&manifest.segments).chain([&manifest.state]);
        let named: BTreeSet<&str> = files.map(|file| file.name.as_str()).chain([MANIFEST]).collect();
        let deleted = self.runtime.block_on(async {
            for name in self.store.list().await?.iter().filter(|name| !named.contains(name.as_str())) {
                self.store.delete(name).await?;
            }
            Ok::<(), CheckpointError>(())
        });
        if let Err(error) = deleted {
            tracing::warn!(%error, "files of earlier checkpoints could not be deleted; the next one tries again");
        }
    }
}

impl Round {
    fn close_block(&mut self) -> Result<(), CheckpointError> {
        if self.in_block > 0 {
            self.file.block(self.in_block, &self.block.0).map_err(packing)?;
            self.block.0.clear();
            self.in_file += std::mem::take(&mut self.in_block);
        }
        Ok(())
    }
}

/// A name for a reader of the log that no other has: several processes may each have checkpoints of their own.
fn reader_name() -> String {
    format!("dataflow-{}", uuid::Uuid::new_v4())
}

fn packing(error: std::io::Error) -> CheckpointError {
    CheckpointError::Table(arrow_schema::ArrowError::from(error))
}

/// The state but for the contents of segments; names of properties first, for they are needed to read documents.
fn encode(state: &State) -> Result<Vec<u8>, CheckpointError> {
    let mut out = Out::default();
    let names = Symbols::names();
    out.count(names.len());
    names.iter().for_each(|name| out.text(name));
    let view = |out: &mut Out, (domain, kind, id): &super::ViewKey| {
        out.text(domain.as_str());
        out.text(kind.name());
        out.text(id);
    };
    out.count(state.databases.len());
    for (domain, numbers) in &state.databases {
        out.text(domain.as_str());
        out.count(numbers.len());
        numbers.iter().for_each(|number| out.number(u64::from(*number)));
    }
    out.count(state.definitions.len());
    for (key, text) in &state.definitions {
        view(&mut out, key);
        out.text(text);
    }
    out.count(state.tables.len());
    for (key, table) in &state.tables {
        view(&mut out, key);
        out.count(table.segments.len());
        for segment in &table.segments {
            out.number(segment.no.0);
            out.count(segment.dead.count());
            segment.dead.rows().for_each(|row| out.count(row));
        }
        out.count(table.failed.len());
        for failure in &table.failed {
            out.text(&failure.document);
            out.text(&failure.message);
            out.signed(failure.at.0);
        }
    }
    let mut file = Out::default();
    file.block(0, &out.0).map_err(packing)?;
    Ok(file.0)
}
