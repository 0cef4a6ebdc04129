//! How a checkpoint lies in bytes.
//!
//! A file is a run of blocks. A block is a number (what it means depends on the file), the length of its content, the length
//! as it lies there (u64 each, little endian), and the content as a zstd frame. Texts and byte strings have their length in
//! front (u32).

use std::sync::Arc;

use arrow_array::RecordBatch;
use hashbrown::HashSet;
use schemas::{
    change::DocKind,
    doc::Symbols,
    id::{DocId, DomainId},
    position::Stamp,
};

use super::KeptDocument;
use crate::document::{DocKey, Version};

/// Fast, and some four times smaller than what documents and tables are in memory.
const LEVEL: i32 = 1;
/// Larger contents are not written; a length beyond it is damage.
const MAX_BLOCK: u64 = 1 << 31;

/// What was expected and not found.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("ends early")]
    Short,
    #[error("holds a text that is not UTF-8")]
    Text,
    #[error("holds an unknown kind of document, `{0}`")]
    Kind(String),
    #[error("holds an id that cannot be: {0}")]
    Id(#[from] schemas::id::IdError),
    #[error("holds a block that cannot be unpacked: {0}")]
    Packed(#[from] std::io::Error),
    #[error("holds a table that cannot be read: {0}")]
    Table(#[from] arrow_schema::ArrowError),
}

/// Bytes under construction.
#[derive(Default)]
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn signed(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn count(&mut self, count: usize) {
        self.number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Adds a block with this content.
    pub(super) fn block(&mut self, number: u64, content: &[u8]) -> std::io::Result<()> {
        let packed = zstd::bulk::compress(content, LEVEL)?;
        self.number(number);
        self.count(content.len());
        self.count(packed.len());
        self.0.extend_from_slice(&packed);
        Ok(())
    }

    /// Adds a document.
    pub(super) fn document(&mut self, document: &KeptDocument) {
        let KeptDocument { key, stamp, version } = document;
        self.text(key.domain.as_str());
        self.text(key.kind.name());
        self.text(key.id.as_str());
        self.signed(stamp.0);
        let Some(Version { doc, subtype, .. }) = version else {
            self.0.push(0);
            return;
        };
        self.0.push(if subtype.is_some() { 2 } else { 1 });
        if let Some(subtype) = subtype {
            self.text(subtype);
        }
        self.bytes(doc.as_bytes());
    }
}

/// Bytes being read.
pub(super) struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn eight(&mut self) -> Result<[u8; 8], Malformed> {
        self.take(8)?.try_into().map_err(|_| Malformed::Short)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.eight()?))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.eight()?))
    }

    pub(super) fn count(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).map_err(|_| Malformed::Short)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length: [u8; 4] = self.take(4)?.try_into().map_err(|_| Malformed::Short)?;
        self.take(usize::try_from(u32::from_le_bytes(length)).map_err(|_| Malformed::Short)?)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text)
    }

    /// The next block's number and content.
    pub(super) fn block(&mut self) -> Result<(u64, Vec<u8>), Malformed> {
        let (number, length, packed) = (self.number()?, self.number()?, self.count()?);
        if length > MAX_BLOCK {
            return Err(Malformed::Short);
        }
        let packed = self.take(packed)?;
        let content = zstd::bulk::decompress(packed, usize::try_from(length).map_err(|_| Malformed::Short)?)?;
        Ok((number, content))
    }
}

/// Reads the documents of a file. Domains and subtypes that come again are shared.
pub(super) fn documents(file: &[u8], symbols: &Symbols) -> Result<Vec<KeptDocument>, Malformed> {
    let mut found = Vec::new();
    let mut domain: Option<DomainId> = None;
    let mut subtypes: HashSet<Arc<str>> = HashSet::new();
    let mut blocks = In::new(file);
    while !blocks.is_empty() {
        let (_, content) = blocks.block()?;
        let mut records = In::new(&content);
        while !records.is_empty() {
            let name = records.text()?;
            let domain = match &domain {
                Some(last) if last.as_str() == name => last.clone(),
                _ => domain.insert(DomainId::new(name)?).clone(),
            };
            let kind = records.text()?;
            let kind = DocKind::from_name(kind).ok_or_else(|| Malformed::Kind(kind.to_owned()))?;
            let key = DocKey { domain, kind, id: DocId::new(records.text()?)? };
            let stamp = Stamp(records.signed()?);
            let present = *records.take(1)?.first().ok_or(Malformed::Short)?;
            let subtype = match present {
                2 => {
                    let subtype = records.text()?;
                    Some(Arc::clone(subtypes.get_or_insert_with(subtype, |subtype| Arc::from(subtype))))
                }
                _ => None,
            };
            let version = match present {
                0 => None,
                _ => Some(Version { stamp, doc: symbols.read(records.bytes()?), subtype }),
            };
            found.push(KeptDocument { key, stamp, version });
        }
    }
    Ok(found)
}

/// A batch of rows as an Arrow IPC stream.
pub(super) fn write_batch(batch: &RecordBatch) -> Result<Vec<u8>, arrow_schema::ArrowError> {
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(batch)?;
    writer.into_inner()
}

/// Reads what [`write_batch`] made.
pub(super) fn read_batch(bytes: &[u8]) -> Result<RecordBatch, Malformed> {
    let mut reader = arrow_ipc::reader::StreamReader::try_new(bytes, None)?;
    Ok(reader.next().ok_or(Malformed::Short)??)
}
