//! Current documents: what every view is computed from.
//!
//! In:  post-images from change records, each with its stamp. Out: the present version of any document by key, and
//! walks over all documents of a kind that stay valid while documents change (a document keeps its slot for life).
//!
//! The store is a slab with a hash index: an upsert costs one hash look-up (differential's upsert arrangement costs
//! 3-18 µs), and since a backfill evaluates the *current* version of each slot it needs no older ones.

use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::IndexMap;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    doc::Doc,
    id::{DocId, DomainId},
    position::{Position, Stamp},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    checkpoint::KeptDocument,
    config::Workers,
    meter::{Gauge, Meters, Part},
    provenance::Look,
};

/// Which document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct DocKey {
    pub(crate) domain: DomainId,
    pub(crate) kind: DocKind,
    pub(crate) id: DocId,
}

impl DocKey {
    /// The number by which workers share documents out.
    pub(crate) fn partition(&self) -> u64 {
        partition(&self.domain, self.kind, self.id.as_str())
    }
}

impl Workers {
    /// The worker that a document belongs to: the one to which the graph's exchanges send what has the same partition.
    pub(crate) fn home(self, key: &DocKey) -> usize {
        match u64::from(u8::from(self)) {
            1 => 0,
            workers => usize::try_from(key.partition() % workers).unwrap_or_default(),
        }
    }
}

/// The number that a document's home among the workers follows from.
pub(crate) fn partition(domain: &DomainId, kind: DocKind, id: &str) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = siphasher::sip::SipHasher13::new();
    (domain, kind, id).hash(&mut hasher);
    hasher.finish()
}

/// A document as it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) stamp: Stamp,
    pub(crate) doc: Doc,
    /// A form's xmlns, a case's type.
    pub(crate) subtype: Option<Arc<str>>,
}

/// A change record whose documents have been read. That is done where the source is awaited: the clock's thread is
/// the one that cannot be doubled.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) position: Position,
    pub(crate) domain: DomainId,
    pub(crate) documents: Vec<Arriving>,
}

/// A document as it arrives.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) key: DocKey,
    /// The worker that it belongs to.
    pub(crate) home: usize,
    pub(crate) stamp: Stamp,
    pub(crate) content: Content,
}

/// A worker's share of what a tick brings.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Documents of a checkpoint, which are put back before anything else.
    pub(crate) kept: Vec<KeptDocument>,
    pub(crate) documents: Vec<Arriving>,
    /// Documents that somebody asked about, as they stand at the end of the tick.
    pub(crate) looks: Vec<Look>,
}

/// What arrives under a key; nothing if it is gone for good.
#[derive(Debug)]
pub(crate) enum Content {
    /// What views are computed from.
    Document(Option<Version>),
    /// What a view is, or what views share.
    Definition(Option<Arc<RawValue>>),
}

impl Record {
    /// Reads the documents of a change record.
    pub(crate) fn read(record: &ChangeRecord, workers: Workers) -> Self {
        let domain = record.domain.clone();
        let documents = record.documents.iter().map(|document| Arriving::read(&domain, document, workers)).collect();
        Self { position: record.position, domain, documents }
    }
}

impl Arriving {
    /// Reads one document.
    pub(crate) fn read(domain: &DomainId, document: &ChangedDocument, workers: Workers) -> Self {
        let key = DocKey { domain: domain.clone(), kind: document.kind, id: document.id.clone() };
        let stamp = document.stamp;
        let content = if document.kind.is_definition() {
            Content::Definition(document.body.clone())
        } else {
            Content::Document(document.body.as_ref().and_then(|body| match Doc::from_json(body.get()) {
                Ok(doc) => Some(Version { stamp, doc, subtype: document.subtype.as_deref().map(Into::into) }),
                Err(error) => {
                    tracing::error!(document = %document.id, %domain, %error, "a change record holds a document that cannot be read; it is left out");
                    None
                }
            }))
        };
        Self { home: workers.home(&key), key, stamp, content }
    }
}

/// Number of a document's place, fixed for life.
pub(crate) type Slot = usize;

struct Entry {
    key: DocKey,
    /// `None` once the document is gone for good; the stamp of its end keeps late repeats out.
    version: Option<Version>,
    stamp: Stamp,
    /// It has changed since it was last taken for a checkpoint.
    is_new: bool,
    /// Place of its domain and kind among [`Documents::kinds`].
    kind: u32,
}

/// The documents of a kind in a domain.
struct Kind {
    slots: Vec<Slot>,
    held: Arc<Gauge>,
}

impl Kind {
    /// Counts a version in place of another.
    fn count(&self, before: Option<&Version>, now: Option<&Version>) {
        let there = |version: Option<&Version>| isize::from(version.is_some());
        let size = |version: Option<&Version>| signed(version.map_or(0, |version| version.doc.size()));
        self.held.add(there(now) - there(before), size(now) - size(before));
    }
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or_default()
}

/// The documents of one worker.
#[derive(Default)]
pub(crate) struct Documents {
    entries: Vec<Entry>,
    slots: HashMap<DocKey, Slot>,
    kinds: IndexMap<(DomainId, DocKind), Kind>,
    meters: Meters,
    /// Those that have changed since they were last taken for a checkpoint.
    new: Vec<Slot>,
}

impl Documents {
    /// No documents; what will be held is counted by `meters`.
    pub(crate) fn new(meters: &Meters) -> Self {
        Self { meters: meters.clone(), ..Self::default() }
    }

    /// The stamp of a document and its present version, if it is not gone.
    pub(crate) fn found(&self, key: &DocKey) -> Option<(Stamp, Option<&Version>)> {
        let entry = self.entries.get(*self.slots.get(key)?)?;
        Some((entry.stamp, entry.version.as_ref()))
    }

    /// The present version.
    pub(crate) fn get(&self, key: &DocKey) -> Option<&Version> {
        self.entries.get(*self.slots.get(key)?)?.version.as_ref()
    }

    /// Replaces a document and returns the version before, or `None` if what is held is as new (a repeated record).
    pub(crate) fn upsert(&mut self, key: &DocKey, stamp: Stamp, version: Option<Version>) -> Option<Option<Version>> {
        if let Some(slot) = self.slots.get(key)
            && let Some(entry) = self.entries.get_mut(*slot)
        {
            if entry.stamp >= stamp {
                return None;
            }
            entry.stamp = stamp;
            if !std::mem::replace(&mut entry.is_new, true) {
                self.new.push(*slot);
            }
            if let Some((_, kind)) = self.kinds.get_index(place(entry.kind)) {
                kind.count(entry.version.as_ref(), version.as_ref());
            }
            return Some(std::mem::replace(&mut entry.version, version));
        }
        self.new.push(self.entries.len());
        self.add(key.clone(), stamp, version, true);
        Some(None)
    }

    fn add(&mut self, key: DocKey, stamp: Stamp, version: Option<Version>, is_new: bool) {
        let slot = self.entries.len();
        let entry = self.kinds.entry((key.domain.clone(), key.kind));
        let number = u32::try_from(entry.index()).unwrap_or(u32::MAX);
        let kind = entry.or_insert_with_key(|(domain, kind)| Kind {
            slots: Vec::new(),
            held: self.meters.gauge(domain, Part::Documents(*kind)),
        });
        kind.slots.push(slot);
        kind.count(None, version.as_ref());
        kind.held.add(0, signed(size_of::<Entry>() + size_of::<(DocKey, Slot)>() + size_of::<Slot>()));
        self.slots.insert(key.clone(), slot);
        self.entries.push(Entry { key, version, stamp, is_new, kind: number });
    }

    /// Puts back a document of a checkpoint, unless a newer version is there.
    pub(crate) fn restore(&mut self, document: KeptDocument) {
        let KeptDocument { key, stamp, version } = document;
        match self.slots.get(&key).and_then(|slot| self.entries.get_mut(*slot)) {
            Some(entry) if entry.stamp < stamp => {
                if let Some((_, kind)) = self.kinds.get_index(place(entry.kind)) {
                    kind.count(entry.version.as_ref(), version.as_ref());
                }
                (entry.stamp, entry.version) = (stamp, version);
            }
            Some(_) => {}
            None => self.add(key, stamp, version, false),
        }
    }

    /// Takes at most `most` of the documents that have changed since they were last taken.
    pub(crate) fn take_new(&mut self, most: usize) -> Vec<KeptDocument> {
        let rest = self.new.len().saturating_sub(most);
        let mut taken = Vec::with_capacity(self.new.len() - rest);
        for slot in self.new.drain(rest..) {
            let Some(Entry { key, version, stamp, is_new, .. }) = self.entries.get_mut(slot) else { continue };
            *is_new = false;
            taken.push(KeptDocument { key: key.clone(), stamp: *stamp, version: version.clone() });
        }
        taken
    }

    /// Number of documents that have changed since they were last taken.
    pub(crate) const fn new_count(&self) -> usize {
        self.new.len()
    }

    /// Lets every document count as changed.
    pub(crate) fn all_new(&mut self) {
        self.new = (0..self.entries.len()).collect();
        self.entries.iter_mut().for_each(|entry| entry.is_new = true);
    }

    /// Number of documents, those that are gone included.
    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of slots of a kind in a domain, including those of documents that are gone.
    pub(crate) fn count(&self, domain: &DomainId, kind: DocKind) -> usize {
        self.kinds.get(&(domain.clone(), kind)).map_or(0, |kind| kind.slots.len())
    }

    /// The documents of a kind in places `start..end` of the walk order, with their present versions.
    pub(crate) fn slice(
        &self,
        domain: &DomainId,
        kind: DocKind,
        start: usize,
        end: usize,
    ) -> impl Iterator<Item = (&DocKey, &Version)> {
        let slots = self.kinds.get(&(domain.clone(), kind)).map_or(&[][..], |kind| &kind.slots);
        let end = end.min(slots.len());
        slots.get(start.min(end)..end).unwrap_or_default().iter().filter_map(|slot| {
            let entry = self.entries.get(*slot)?;
            Some((&entry.key, entry.version.as_ref()?))
        })
    }
}

/// A number of a kind as a place among kinds.
fn place(kind: u32) -> usize {
    usize::try_from(kind).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stamp_wins_and_walks_see_the_present() {
        let domain = DomainId::new("demo").unwrap();
        let key = |id: &str| DocKey { domain: domain.clone(), kind: DocKind::Case, id: DocId::new(id).unwrap() };
        let version = |stamp, json: &str| {
            Some(Version { stamp: Stamp(stamp), doc: Doc::from_json(json).unwrap(), subtype: None })
        };
        let mut documents = Documents::default();
        assert_eq!(documents.upsert(&key("a"), Stamp(5), version(5, "1")), Some(None));
        assert_eq!(documents.upsert(&key("a"), Stamp(5), version(5, "1")), None, "a repeated record changes nothing");
        assert_eq!(documents.upsert(&key("a"), Stamp(4), version(4, "0")), None);
        assert!(documents.upsert(&key("b"), Stamp(6), version(6, "2")).is_some());
        assert!(documents.upsert(&key("a"), Stamp(7), None).is_some());
        assert_eq!(
            documents.upsert(&key("a"), Stamp(6), version(6, "9")),
            None,
            "a deletion is not undone by an older record"
        );
        let walked: Vec<_> = documents.slice(&domain, DocKind::Case, 0, 10).map(|(key, _)| key.id.as_str()).collect();
        assert_eq!((walked, documents.count(&domain, DocKind::Case)), (vec!["b"], 2));
    }
}
