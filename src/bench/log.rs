//! Reads `changes.jsonl` of the shared workload: one document a line, as the records of a change log.
//!
//! A form's record and those of its cases behind it are one transaction, as `ingest` commits them.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{DocId, DomainId},
    position::{LaneId, Position, Sequence, Stamp},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest line accepted, in bytes.
const MAX_LINE: u64 = 16 << 20;
/// Stamp of a change of number 0: 2024-01-01, microseconds since 1970 UTC.
const FIRST_STAMP: i64 = 1_704_067_200_000_000;

/// A transaction of the file.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// What the change log says of it. Stamps count the file's changes: a later change has a greater one.
    pub(crate) record: Arc<ChangeRecord>,
}

impl Transaction {
    /// Number of changes.
    pub(crate) fn changes(&self) -> u64 {
        u64::try_from(self.record.documents.len()).unwrap_or(u64::MAX)
    }
}

/// Reads a file's transactions in order.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    line: String,
    number: i64,
    domain: DomainId,
    /// Documents of the transaction that is being read: the last of them was one line too many for the one before.
    begun: Vec<ChangedDocument>,
    transactions: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    topic: &'a str,
    #[serde(borrow)]
    doc_id: &'a str,
    #[serde(borrow)]
    doc: &'a RawValue,
}

/// What a change record says of its document beside the document.
#[derive(Deserialize)]
struct About<'a> {
    #[serde(borrow)]
    domain: &'a str,
    #[serde(borrow)]
    doc_type: &'a str,
    #[serde(borrow, alias = "type")]
    xmlns: Option<&'a str>,
}

impl Reader {
    /// Opens a file; its first document says which domain all are of.
    ///
    /// # Errors
    /// The file is missing, empty, or does not have the shared workload's form.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        let mut reader = Self {
            path: path.to_owned(),
            lines: BufReader::with_capacity(1 << 20, file),
            line: String::new(),
            number: 0,
            domain: DomainId::new("none")?,
            begun: Vec::new(),
            transactions: 0,
        };
        let (domain, first) = reader.document()?.with_context(|| format!("{} is empty", path.display()))?;
        reader.domain = domain;
        reader.begun.push(first);
        Ok(reader)
    }

    /// The domain of every document.
    pub(crate) const fn domain(&self) -> &DomainId {
        &self.domain
    }

    /// The next transaction.
    ///
    /// # Errors
    /// A line cannot be read, or is of another domain.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Transaction>> {
        loop {
            let read = self.document()?;
            let Some((domain, document)) = read else {
                let documents = std::mem::take(&mut self.begun);
                return Ok((!documents.is_empty()).then(|| self.transaction(documents)));
            };
            anyhow::ensure!(domain == self.domain, "{} is of the domain {domain}", self.place());
            if document.kind == DocKind::Case {
                self.begun.push(document);
                continue;
            }
            let documents = std::mem::replace(&mut self.begun, vec![document]);
            return Ok(Some(self.transaction(documents)));
        }
    }

    fn transaction(&mut self, documents: Vec<ChangedDocument>) -> Transaction {
        self.transactions += 1;
        let position = Position { lane: LaneId::FIRST, sequence: Sequence(self.transactions) };
        Transaction { record: Arc::new(ChangeRecord { position, domain: self.domain.clone(), documents }) }
    }

    fn place(&self) -> String {
        format!("{} line {}", self.path.display(), self.number)
    }

    fn document(&mut self) -> anyhow::Result<Option<(DomainId, ChangedDocument)>> {
        self.line.clear();
        self.number += 1;
        let read = (&mut self.lines).take(MAX_LINE).read_line(&mut self.line);
        if read.with_context(|| format!("could not read {}", self.place()))? == 0 {
            return Ok(None);
        }
        let document = changed(&self.line, Stamp(FIRST_STAMP + self.number));
        document.map(Some).with_context(|| format!("could not read {}", self.place()))
    }
}

fn changed(line: &str, stamp: Stamp) -> anyhow::Result<(DomainId, ChangedDocument)> {
    let Line { topic, doc_id, doc } = serde_json::from_str(line)?;
    let About { domain, doc_type, xmlns } = serde_json::from_str(doc.get())?;
    let kind = DocKind::ALL.into_iter().find(|kind| kind.feed() == Some(topic));
    let document = ChangedDocument {
        kind: kind.with_context(|| format!("`{topic}` is not a topic of the change log"))?,
        id: DocId::new(doc_id)?,
        stamp,
        document_type: doc_type.to_owned(),
        subtype: xmlns.map(str::to_owned),
        body: Some(Arc::from(doc.to_owned())),
    };
    Ok((DomainId::new(domain)?, document))
}
