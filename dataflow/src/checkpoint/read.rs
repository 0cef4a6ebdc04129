//! Reads a checkpoint.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use arrow_array::RecordBatch;
use hashbrown::HashMap;
use schemas::{
    change::DocKind,
    doc::Symbols,
    id::DomainId,
    port::CheckpointStore,
    position::{Frontier, Stamp, Tick},
};
use tokio::task::JoinHandle;

use super::{
    CheckpointError, FORMAT, Failure, File, KeptDocument, KeptSegment, KeptTable, MANIFEST, Manifest, PROGRAM,
    SegmentNo, State, ViewKey,
    encode::{self, In, Malformed, read_batch},
};

/// Files of documents that are read ahead.
const AHEAD: usize = 2;

type Loading = JoinHandle<Result<Vec<KeptDocument>, CheckpointError>>;

/// A checkpoint being read: first its documents, in the order of their files, then everything else.
pub(crate) struct Reader {
    store: Arc<dyn CheckpointStore>,
    manifest: Manifest,
    decoded: Decoded,
    left: VecDeque<File>,
    loading: VecDeque<Loading>,
}

/// A table without the contents of its segments.
struct Outline {
    segments: Vec<(SegmentNo, Vec<usize>)>,
    failed: Vec<Failure>,
}

impl Reader {
    /// Opens the newest checkpoint; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Foreign`] if it is not of the primary store of that identity, or of another layout;
    /// [`CheckpointError::Damaged`]; [`CheckpointError::Store`].
    pub(crate) async fn open(store: Arc<dyn CheckpointStore>, identity: &str) -> Result<Option<Self>, CheckpointError> {
        let Some(text) = store.get(MANIFEST).await? else { return Ok(None) };
        let damaged = |problem: String| CheckpointError::Damaged { file: MANIFEST.to_owned(), problem };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("is not JSON: {error}")))?;
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(CheckpointError::Foreign(format!("it is of another layout than {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
        if manifest.store != identity {
            return Err(CheckpointError::Foreign("it was made from another primary store".to_owned()));
        }
        let bytes = load(&*store, &manifest.state).await?;
        let decoded = decode(&bytes).map_err(malformed(&manifest.state.name))?;
        let left = manifest.documents.iter().cloned().collect();
        Ok(Some(Self { store, manifest, decoded, left, loading: VecDeque::new() }))
    }

    /// What it consists of.
    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The positions at which it stands.
    pub(crate) fn frontier(&self) -> Frontier {
        let mut frontier = Frontier::default();
        self.manifest.frontier.iter().for_each(|position| frontier.advance(*position));
        frontier
    }

    /// Number of documents that will come, older versions included.
    pub(crate) fn expected(&self) -> u64 {
        self.manifest.documents.iter().map(|file| file.documents).sum()
    }

    /// The next documents; of one that comes several times the version with the greatest stamp counts.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`], [`CheckpointError::Store`].
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<KeptDocument>>, CheckpointError> {
        while self.loading.len() < AHEAD
            && let Some(file) = self.left.pop_front()
        {
            let (store, symbols) = (Arc::clone(&self.store), Arc::clone(&self.decoded.symbols));
            self.loading.push_back(tokio::spawn(async move {
                let bytes = load(&*store, &file).await?;
                let name = file.name.clone();
                let read = move || encode::documents(&bytes, &symbols).map_err(malformed(&name));
                tokio::task::spawn_blocking(read).await.map_err(ended(&file.name))?
            }));
        }
        match self.loading.pop_front() {
            Some(loading) => Ok(Some(loading.await.map_err(ended("documents"))??)),
            None => Ok(None),
        }
    }

    /// Everything but the documents. Tables that another release computed are left out: its rules may have been others.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`], [`CheckpointError::Store`].
    pub(crate) async fn state(self) -> Result<State, CheckpointError> {
        let frontier = self.frontier();
        let documents = usize::try_from(self.expected()).unwrap_or(usize::MAX);
        let mut batches: HashMap<SegmentNo, RecordBatch> = HashMap::new();
        let Decoded { databases, definitions, tables, .. } = self.decoded;
        let tables = if self.manifest.program == PROGRAM { tables } else { Vec::new() };
        for file in self.manifest.segments.iter().filter(|_| !tables.is_empty()) {
            let bytes = load(&*self.store, file).await?;
            let name = file.name.clone();
            let read = move || segments(&bytes).map_err(malformed(&name));
            batches.extend(tokio::task::spawn_blocking(read).await.map_err(ended(&file.name))??);
        }
        let missing = |no: SegmentNo| CheckpointError::Damaged {
            file: self.manifest.state.name.clone(),
            problem: format!("names segment {}, which no file holds", no.0),
        };
        let mut kept = Vec::with_capacity(tables.len());
        for (key, outline) in tables {
            let mut segments = Vec::with_capacity(outline.segments.len());
            for (no, dead) in outline.segments {
                no.taken();
                let batch = batches.get(&no).cloned().ok_or_else(|| missing(no))?;
                segments.push(KeptSegment { no, batch, dead: Arc::new(dead.into_iter().collect()) });
            }
            kept.push((key, KeptTable { segments, failed: outline.failed }));
        }
        Ok(State {
            tick: Tick(self.manifest.tick),
            stamp: Stamp(self.manifest.stamp),
            day: self.manifest.day,
            frontier,
            databases,
            documents,
            definitions,
            tables: kept,
        })
    }
}

fn malformed(file: &str) -> impl Fn(Malformed) -> CheckpointError {
    let file = file.to_owned();
    move |problem| CheckpointError::Damaged { file: file.clone(), problem: problem.to_string() }
}

fn ended(file: &str) -> impl Fn(tokio::task::JoinError) -> CheckpointError {
    let file = file.to_owned();
    move |error| CheckpointError::Damaged { file: file.clone(), problem: format!("could not be read: {error}") }
}

/// A file's content, checked.
async fn load(store: &dyn CheckpointStore, file: &File) -> Result<Vec<u8>, CheckpointError> {
    let damaged = |problem: &str| CheckpointError::Damaged { file: file.name.clone(), problem: problem.to_owned() };
    let bytes = store.get(&file.name).await?.ok_or_else(|| damaged("is missing"))?;
    if u64::try_from(bytes.len()).ok() != Some(file.bytes) || crc32fast::hash(&bytes) != file.crc32 {
        return Err(damaged("is not what was written (its length or checksum differs)"));
    }
    Ok(bytes)
}

fn segments(file: &[u8]) -> Result<Vec<(SegmentNo, RecordBatch)>, Malformed> {
    let mut found = Vec::new();
    let mut blocks = In::new(file);
    while !blocks.is_empty() {
        let (number, content) = blocks.block()?;
        found.push((SegmentNo(number), read_batch(&content)?));
    }
    Ok(found)
}

/// What the file of the state holds.
struct Decoded {
    symbols: Arc<Symbols>,
    databases: Vec<(DomainId, BTreeSet<u16>)>,
    definitions: Vec<(ViewKey, Arc<str>)>,
    tables: Vec<(ViewKey, Outline)>,
}

fn decode(file: &[u8]) -> Result<Decoded, Malformed> {
    let (_, content) = In::new(file).block()?;
    let mut read = In::new(&content);
    let mut names = Vec::new();
    for _ in 0..read.count()? {
        names.push(read.text()?);
    }
    let symbols = Arc::new(Symbols::of(names));
    let mut databases = Vec::new();
    for _ in 0..read.count()? {
        let domain = DomainId::new(read.text()?)?;
        let numbers = (0..read.count()?).map(|_| Ok(u16::try_from(read.number()?).unwrap_or_default()));
        databases.push((domain, numbers.collect::<Result<_, Malformed>>()?));
    }
    let view = |read: &mut In<'_>| -> Result<ViewKey, Malformed> {
        let domain = DomainId::new(read.text()?)?;
        let kind = read.text()?;
        let kind = DocKind::from_name(kind).ok_or_else(|| Malformed::Kind(kind.to_owned()))?;
        Ok((domain, kind, read.text()?.to_owned()))
    };
    let mut definitions = Vec::new();
    for _ in 0..read.count()? {
        definitions.push((view(&mut read)?, read.text()?.into()));
    }
    let mut tables = Vec::new();
    for _ in 0..read.count()? {
        let key = view(&mut read)?;
        let mut segments = Vec::new();
        for _ in 0..read.count()? {
            let no = SegmentNo(read.number()?);
            let dead = (0..read.count()?).map(|_| read.count()).collect::<Result<_, _>>()?;
            segments.push((no, dead));
        }
        let mut failed = Vec::new();
        for _ in 0..read.count()? {
            let (document, message) = (read.text()?.into(), read.text()?.into());
            failed.push(Failure { document, message, at: Stamp(read.signed()?) });
        }
        tables.push((key, Outline { segments, failed }));
    }
    Ok(Decoded { symbols, databases, definitions, tables })
}
