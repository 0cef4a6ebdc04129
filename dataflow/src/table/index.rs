//! The key index of a table: document to row ids, for any published version that is not too old.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;
use schemas::{
    position::Tick,
    table::{KeyIndex, Table},
};
use smallvec::SmallVec;

/// Ticks for which deleted keys are remembered; a reader of an older version scans instead of asking the index.
const REMEMBERED_TICKS: u64 = 4096;

/// Row ids of a segment, ascending.
#[derive(Clone, Debug)]
pub(super) enum RowIds {
    Run { first: u64, len: usize },
    List(Arc<[u64]>),
}

impl RowIds {
    pub(super) fn new(ids: impl Iterator<Item = u64>) -> Self {
        let ids: Vec<u64> = ids.collect();
        match (ids.first(), ids.last()) {
            (Some(first), Some(last)) if usize::try_from(last - first).is_ok_and(|span| span + 1 == ids.len()) => {
                Self::Run { first: *first, len: ids.len() }
            }
            (None, _) | (_, None) => Self::Run { first: 0, len: 0 },
            _ => Self::List(ids.into()),
        }
    }

    pub(super) const fn run(first: u64, len: usize) -> Self {
        Self::Run { first, len }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        let (run, list) = match self {
            Self::Run { first, len } => (Some((*first..).take(*len)), None),
            Self::List(ids) => (None, Some(ids.iter().copied())),
        };
        run.into_iter().flatten().chain(list.into_iter().flatten())
    }

    pub(super) fn first(&self) -> u64 {
        match self {
            Self::Run { first, .. } => *first,
            Self::List(ids) => ids.first().copied().unwrap_or_default(),
        }
    }

    pub(super) fn position(&self, id: u64) -> Option<usize> {
        match self {
            Self::Run { first, len } => usize::try_from(id.checked_sub(*first)?).ok().filter(|offset| offset < len),
            Self::List(ids) => ids.binary_search(&id).ok(),
        }
    }
}

struct Entry {
    ids: SmallVec<[u64; 1]>,
    changed_at: Tick,
}

#[derive(Default)]
struct Keys {
    entries: HashMap<Arc<str>, Entry>,
    /// Keys without rows, kept until no reader can hold a version in which they had some.
    gone: std::collections::VecDeque<(Tick, Arc<str>)>,
    /// Versions older than this may miss keys.
    swept: Tick,
    /// Bytes of lists of row ids that lie outside their entries.
    spilled: usize,
}

/// The index that the writer and all readers share. A lock because readers look up while the writer works; it is
/// held for one look-up or one replacement.
#[derive(Default)]
pub(super) struct Index(RwLock<Keys>);

impl Index {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.read().entries.get(key).is_some_and(|entry| !entry.ids.is_empty())
    }

    pub(super) fn row_ids(&self, key: &str) -> SmallVec<[u64; 1]> {
        self.0.read().entries.get(key).map(|entry| entry.ids.clone()).unwrap_or_default()
    }

    /// Adds rows of a checkpoint to those of their keys.
    pub(super) fn load(&self, rows: Vec<(Arc<str>, u64)>, tick: Tick) {
        let mut keys = self.0.write();
        keys.entries.reserve(rows.len());
        for (key, id) in rows {
            let entry = keys.entries.entry(key).or_insert_with(|| Entry { ids: SmallVec::new(), changed_at: tick });
            let before = spilled(&entry.ids);
            entry.ids.push(id);
            let after = spilled(&entry.ids);
            keys.spilled += after - before;
        }
    }

    /// Sets the row ids of a key and returns those it had.
    pub(super) fn replace(&self, key: &Arc<str>, ids: SmallVec<[u64; 1]>, tick: Tick) -> SmallVec<[u64; 1]> {
        let mut keys = self.0.write();
        let keys = &mut *keys;
        if ids.is_empty() {
            let Some(entry) = keys.entries.get_mut(key) else { return SmallVec::new() };
            entry.changed_at = tick;
            let old = std::mem::take(&mut entry.ids);
            keys.spilled -= spilled(&old);
            keys.gone.push_back((tick, Arc::clone(key)));
            return old;
        }
        keys.spilled += spilled(&ids);
        match keys.entries.get_mut(key) {
            Some(entry) => {
                keys.spilled -= spilled(&entry.ids);
                entry.changed_at = tick;
                std::mem::replace(&mut entry.ids, ids)
            }
            None => {
                keys.entries.insert(Arc::clone(key), Entry { ids, changed_at: tick });
                SmallVec::new()
            }
        }
    }

    /// Forgets keys that have been without rows for long.
    pub(super) fn sweep(&self, now: Tick) {
        let mut keys = self.0.write();
        while keys.gone.front().is_some_and(|(tick, _)| tick.0 + REMEMBERED_TICKS < now.0) {
            let Some((tick, key)) = keys.gone.pop_front() else { break };
            if keys.entries.get(&key).is_some_and(|entry| entry.ids.is_empty() && entry.changed_at == tick) {
                keys.entries.remove(&key);
                keys.swept = tick;
            }
        }
    }
}

/// Bytes of a list of row ids that does not fit into its entry.
fn spilled(ids: &SmallVec<[u64; 1]>) -> usize {
    if ids.spilled() { ids.capacity() * size_of::<u64>() } else { 0 }
}

/// The index as one published version sees it.
pub(super) struct VersionIndex {
    index: Arc<Index>,
    parts: Arc<[RowIds]>,
    version: Tick,
}

impl VersionIndex {
    pub(super) const fn new(index: Arc<Index>, parts: Arc<[RowIds]>, version: Tick) -> Self {
        Self { index, parts, version }
    }
}

impl std::fmt::Debug for VersionIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VersionIndex").field("version", &self.version).finish_non_exhaustive()
    }
}

impl KeyIndex for VersionIndex {
    fn find(&self, _table: &Table, key: &str) -> Option<Vec<(usize, usize)>> {
        let ids = {
            let keys = self.index.0.read();
            match keys.entries.get(key) {
                Some(entry) if entry.changed_at > self.version => return None,
                Some(entry) => entry.ids.clone(),
                None if keys.swept > self.version => return None,
                None => SmallVec::new(),
            }
        };
        let place = |id: u64| {
            let part = self.parts.partition_point(|ids| ids.first() <= id).checked_sub(1)?;
            Some((part, self.parts.get(part)?.position(id)?))
        };
        ids.iter().map(|id| place(*id)).collect()
    }

    fn bytes(&self) -> usize {
        let keys = self.index.0.read();
        keys.entries.allocation_size() + keys.spilled
    }
}
