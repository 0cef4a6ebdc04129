//! The tables of one worker, and what their changes feed.
//!
//! In:  row changes of a tick. Out: for views that aggregate views read, the difference of each changed row. The table
//! itself is the memory of what was there before, so the evaluator never evaluates an old version.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;
use schemas::{
    doc::Doc,
    id::DomainId,
    inside::Outcome,
    position::{Stamp, Tick},
    row::{Cell, Row},
    table::Table,
};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Failure, KeptTable},
    error::TableError,
    evaluate::RowChange,
    table::{KeyedRows, TableWriter},
    view::{Instance, Logic, ViewNo, view_errors},
};

/// Number of an index over the rows of a table, by some of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct IndexNo(pub(crate) u32);

/// Who reads the differences of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) reader: Reader,
    /// Columns that are read; the others do not travel, and a change of them alone is no difference.
    pub(crate) columns: Arc<[usize]>,
}

/// The place where a feed's rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Reader {
    /// First source of an aggregate view.
    Base(ViewNo),
    /// Joined source, shared by all views that join by the same columns.
    Index(IndexNo),
}

/// A row that enters (+1) or leaves (-1) what a reader reads.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) reader: Reader,
    pub(crate) row: Row,
    pub(crate) diff: isize,
}

impl Feed {
    fn project(&self, row: &Row) -> Row {
        self.columns.iter().map(|at| row.get(*at).cloned().unwrap_or(Cell::Null)).collect()
    }

    /// Some rows, as differences of one sign.
    pub(crate) fn give(&self, rows: &[Row], diff: isize, give: &mut impl FnMut(Difference)) {
        for row in rows {
            give(Difference { reader: self.reader, row: self.project(row), diff });
        }
    }

    fn change(&self, old: &[Row], new: &[Row], give: &mut impl FnMut(Difference)) {
        let mut diffs: HashMap<Row, isize> = HashMap::new();
        for row in new {
            *diffs.entry(self.project(row)).or_default() += 1;
        }
        for row in old {
            *diffs.entry(self.project(row)).or_default() -= 1;
        }
        for (row, diff) in diffs.into_iter().filter(|(_, diff)| *diff != 0) {
            give(Difference { reader: self.reader, row, diff });
        }
    }
}

struct Held {
    writer: TableWriter,
    domain: DomainId,
    id: String,
    feeds: Vec<Feed>,
    /// Documents that failed to evaluate: why, and the stamp of the newest document that was read.
    failed: HashMap<Arc<str>, (Arc<str>, Stamp)>,
    /// True once the table is published: readers see errors of what they can read.
    is_published: bool,
    /// True of rows of documents, false of groups.
    is_rows: bool,
}

/// Tables by view, and the error table of each domain.
#[derive(Default)]
pub(crate) struct Tables {
    held: HashMap<ViewNo, Held>,
    errors: HashMap<DomainId, TableWriter>,
    dirty: BTreeSet<ViewNo>,
    dirty_errors: BTreeSet<DomainId>,
}

/// Changed tables of a tick, ready to be read.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) tables: Vec<(ViewNo, Arc<Table>)>,
    pub(crate) errors: Vec<(DomainId, Arc<Table>)>,
}

impl Tables {
    /// Adds an empty table.
    pub(crate) fn install(&mut self, instance: &Instance) {
        let writer = TableWriter::new(Arc::clone(&instance.schema), instance.stamp_column);
        let held = Held {
            writer,
            domain: instance.domain.clone(),
            id: instance.id.clone(),
            feeds: Vec::new(),
            failed: HashMap::new(),
            is_published: false,
            is_rows: matches!(instance.logic, Logic::Rows(_)),
        };
        self.held.insert(instance.no, held);
        self.dirty.insert(instance.no);
    }

    /// Fills the empty table of a view with what a checkpoint held, as far as this worker is at home of it.
    pub(crate) fn restore(
        &mut self,
        tick: Tick,
        no: ViewNo,
        kept: &KeptTable,
        is_ours: impl Fn(&str) -> bool,
        document: impl Fn(&str) -> Option<Doc>,
    ) -> Result<(), TableError> {
        let Some(held) = self.held.get_mut(&no) else { return Ok(()) };
        held.writer.restore(tick, &kept.segments, &is_ours, document)?;
        for Failure { document, message, at } in kept.failed.iter().filter(|failure| is_ours(&failure.document)) {
            held.failed.insert(Arc::clone(document), (Arc::clone(message), *at));
        }
        held.writer.errors = held.failed.len();
        Ok(())
    }

    /// The tables of row views as they stand, for a checkpoint.
    pub(crate) fn kept(&self) -> Vec<(ViewNo, KeptTable)> {
        let rows = self.held.iter().filter(|(_, held)| held.is_rows);
        let kept = |held: &Held| KeptTable {
            segments: held.writer.kept(),
            failed: (held.failed.iter())
                .map(|(document, (message, at))| Failure {
                    document: Arc::clone(document),
                    message: Arc::clone(message),
                    at: *at,
                })
                .collect(),
        };
        rows.map(|(no, held)| (*no, kept(held))).collect()
    }

    fn write_errors(&mut self, tick: Tick, domain: DomainId, errors: &[KeyedRows]) -> Result<(), TableError> {
        if errors.is_empty() {
            return Ok(());
        }
        let table = self.errors.entry(domain.clone());
        table.or_insert_with(|| TableWriter::new(Arc::new(view_errors()), Some(3))).apply(tick, errors)?;
        self.dirty_errors.insert(domain);
        Ok(())
    }

    /// Forgets a table and its errors.
    pub(crate) fn retire(&mut self, no: ViewNo, tick: Tick) -> Result<(), TableError> {
        let Some(held) = self.held.remove(&no) else { return Ok(()) };
        self.dirty.remove(&no);
        if !held.is_published {
            return Ok(());
        }
        let withdrawn: Vec<_> = held.failed.keys().map(|document| (error_key(no, document), Vec::new())).collect();
        self.write_errors(tick, held.domain, &withdrawn)
    }

    /// What a document comes to in a view.
    pub(crate) fn outcome(&self, no: ViewNo, document: &str) -> Outcome {
        let Some(held) = self.held.get(&no) else { return Outcome::Rows(0) };
        match held.failed.get(document) {
            Some((message, _)) => Outcome::Failed(message.to_string()),
            None => Outcome::Rows(held.writer.rows(document).len()),
        }
    }

    /// Id of a view.
    pub(crate) fn id(&self, no: ViewNo) -> Option<&str> {
        self.held.get(&no).map(|held| held.id.as_str())
    }

    /// Lets readers see the errors of a view, from the tick on in which its table is published.
    pub(crate) fn reveal(&mut self, no: ViewNo, tick: Tick) -> Result<(), TableError> {
        let Some(held) = self.held.get_mut(&no) else { return Ok(()) };
        held.is_published = true;
        let row = |(document, (message, at)): (&Arc<str>, &(Arc<str>, Stamp))| {
            (error_key(no, document), vec![error_row(&held.id, document, message, at.0)])
        };
        let errors: Vec<KeyedRows> = held.failed.iter().map(row).collect();
        let domain = held.domain.clone();
        self.write_errors(tick, domain, &errors)
    }

    /// True if the document has rows, or an error, in the view.
    pub(crate) fn holds(&self, no: ViewNo, document: &str) -> bool {
        self.held.get(&no).is_some_and(|held| held.writer.contains(document) || held.failed.contains_key(document))
    }

    /// Adds a reader and returns the table as it stands, whose rows the reader has to be given.
    pub(crate) fn feed(&mut self, no: ViewNo, feed: Feed) -> Option<Arc<Table>> {
        let held = self.held.get_mut(&no)?;
        held.feeds.push(feed);
        Some(Arc::new(held.writer.publish()))
    }

    /// Removes a reader wherever it reads; returns the tables it read, as they stand, with the feeds it read them by.
    pub(crate) fn unfeed(&mut self, reader: Reader) -> Vec<(Arc<Table>, Feed)> {
        let mut read = Vec::new();
        for held in self.held.values_mut() {
            let (own, others) = std::mem::take(&mut held.feeds).into_iter().partition(|feed| feed.reader == reader);
            held.feeds = others;
            read.extend(own.into_iter().map(|feed: Feed| (Arc::new(held.writer.publish()), feed)));
        }
        read
    }

    /// Applies all row changes of a tick; for a document that comes several times the last one counts.
    pub(crate) fn apply(
        &mut self,
        tick: Tick,
        changes: Vec<RowChange>,
        give: &mut impl FnMut(Difference),
    ) -> Result<(), TableError> {
        let mut by_view: HashMap<ViewNo, Vec<RowChange>> = HashMap::new();
        for change in changes {
            by_view.entry(change.view).or_default().push(change);
        }
        for (no, changes) in by_view {
            let Some(held) = self.held.get_mut(&no) else { continue };
            let mut last: HashMap<Arc<str>, RowChange> = HashMap::with_capacity(changes.len());
            let mut order: Vec<Arc<str>> = Vec::with_capacity(changes.len());
            for change in changes {
                let document = Arc::clone(change.document.shared());
                if last.insert(Arc::clone(&document), change).is_none() {
                    order.push(document);
                }
            }
            let mut rows: Vec<KeyedRows> = Vec::with_capacity(order.len());
            let mut errors: Vec<KeyedRows> = Vec::new();
            for document in order {
                let Some(change) = last.remove(&document) else { continue };
                let new = match change.outcome {
                    Ok(new) => {
                        if held.failed.remove(&document).is_some() && held.is_published {
                            errors.push((error_key(no, &document), Vec::new()));
                        }
                        new
                    }
                    Err(message) => {
                        held.failed.insert(Arc::clone(&document), (message.as_str().into(), change.stamp));
                        if held.is_published {
                            let row = error_row(&held.id, &document, &message, change.stamp.0);
                            errors.push((error_key(no, &document), vec![row]));
                        }
                        Vec::new()
                    }
                };
                if !held.feeds.is_empty() {
                    let old = held.writer.rows(&document);
                    for feed in &held.feeds {
                        feed.change(&old, &new, give);
                    }
                }
                rows.push((document, new));
            }
            held.writer.errors = held.failed.len();
            held.writer.apply(tick, &rows)?;
            self.dirty.insert(no);
            let domain = held.domain.clone();
            self.write_errors(tick, domain, &errors)?;
        }
        Ok(())
    }

    /// Replaces rows of an aggregate view's table by group.
    pub(crate) fn replace(&mut self, tick: Tick, no: ViewNo, groups: &[KeyedRows]) -> Result<(), TableError> {
        let Some(held) = self.held.get_mut(&no) else { return Ok(()) };
        held.writer.apply(tick, groups)?;
        self.dirty.insert(no);
        Ok(())
    }

    /// Takes the tables that changed since the last call.
    pub(crate) fn publish(&mut self) -> Published {
        let tables = std::mem::take(&mut self.dirty);
        let errors = std::mem::take(&mut self.dirty_errors);
        Published {
            tables: tables
                .into_iter()
                .filter_map(|no| Some((no, Arc::new(self.held.get(&no)?.writer.publish()))))
                .collect(),
            errors: errors
                .into_iter()
                .filter_map(|domain| {
                    // The key of an error row is made of two columns, so there is no look-up by the first one.
                    let table = Table { index: None, ..self.errors.get(&domain)?.publish() };
                    Some((domain, Arc::new(table)))
                })
                .collect(),
        }
    }
}

fn error_key(no: ViewNo, document: &str) -> Arc<str> {
    format!("{}/{document}", no.0).into()
}

fn error_row(view: &str, document: &str, message: &str, stamp: i64) -> Row {
    let cells =
        [Cell::Text(view.into()), Cell::Text(document.into()), Cell::Text(message.into()), Cell::Datetime(stamp)];
    Row::from(cells.to_vec())
}
