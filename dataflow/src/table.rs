//! The columnar, versioned table of one view (`TableWriter`): where row changes become what SQL reads.
//!
//! In:  per tick, the new rows of some documents (or groups). Out: a [`schemas::table::Table`], cheap to take at any
//! time and never changing afterwards.
//!
//! A row gets a monotone *row id*; the index maps a document to its row ids, never to places. Segments are ordered by
//! row id and only neighbours merge, so a merge never touches the index. An update marks the old row dead in a
//! copy-on-write bitmap and appends the new one; eight neighbours of one size class merge into the next.

mod build;
mod index;
mod union;

use std::sync::Arc;

use arrow_array::StringViewArray;
use arrow_schema::{ArrowError, SchemaRef};
use schemas::{
    doc::Doc,
    position::Tick,
    row::{Cell, Row, TableSchema},
    table::{KeyIndex, Segment, Table},
};

use build::{Content, batch, compact};
use index::{Index, RowIds, VersionIndex};

use crate::checkpoint::{KeptSegment, SegmentNo};
pub(crate) use union::union;

/// Neighbouring segments of one size class that are merged into one.
const FAN: usize = 8;
/// Merges stop growing segments beyond this many rows: a tick that rewrites one copies all its texts, and whatever
/// changes meanwhile waits for it.
const MAX_ROWS: usize = 16_384;
/// A segment with this share of dead rows is rewritten (in tenths).
const DEAD_TENTHS: usize = 3;

struct Part {
    no: SegmentNo,
    segment: Arc<Segment>,
    ids: RowIds,
}

/// All rows of a key (a document's id, a group's values as text) from now on.
pub(crate) type KeyedRows = (Arc<str>, Vec<Row>);

/// Writes one table.
pub(crate) struct TableWriter {
    schema: Arc<TableSchema>,
    arrow: SchemaRef,
    /// Of what lies in segments.
    stored: SchemaRef,
    stamp_column: Option<usize>,
    parts: Vec<Part>,
    index: Arc<Index>,
    next_row_id: u64,
    live_rows: usize,
    changed_at: Tick,
    /// Documents without rows because evaluating them failed.
    pub(crate) errors: usize,
}

impl TableWriter {
    /// An empty table. `stamp_column` names the column that grows with every change.
    pub(crate) fn new(schema: Arc<TableSchema>, stamp_column: Option<usize>) -> Self {
        let (arrow, stored) = (schema.arrow(), schema.stored_arrow());
        Self {
            schema,
            arrow,
            stored,
            stamp_column,
            parts: Vec::new(),
            index: Arc::default(),
            next_row_id: 0,
            live_rows: 0,
            changed_at: Tick(0),
            errors: 0,
        }
    }

    /// True if `key` has rows.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.index.contains(key)
    }

    /// The present rows of `key`, decoded.
    pub(crate) fn rows(&self, key: &str) -> Vec<Row> {
        self.index
            .row_ids(key)
            .into_iter()
            .filter_map(|id| {
                let (part, at) = self.place(id)?;
                Some(self.parts.get(part)?.segment.row(&self.schema, at))
            })
            .collect()
    }

    /// Replaces the rows of each key: those given are all it has from now on.
    ///
    /// # Errors
    /// An [`ArrowError`] if a cell is not of its column's type, which checked rows never are.
    pub(crate) fn apply(&mut self, tick: Tick, changes: &[KeyedRows]) -> Result<(), ArrowError> {
        self.changed_at = tick;
        let first = self.next_row_id;
        let mut rows: Vec<&Row> = Vec::new();
        for (key, new) in changes {
            let ids = (self.next_row_id..).take(new.len()).collect();
            self.next_row_id += u64::try_from(new.len()).unwrap_or_default();
            rows.extend(new);
            for old in self.index.replace(key, ids, tick) {
                // A key that comes twice in one tick: its earlier rows are among those not yet in a segment.
                match self.place(old) {
                    Some((part, at)) => self.kill(part, at),
                    None => {
                        if let Ok(at) = usize::try_from(old - first)
                            && let Some(slot) = rows.get_mut(at)
                        {
                            *slot = &EMPTY;
                        }
                    }
                }
            }
        }
        self.index.sweep(tick);
        let kept: Vec<(u64, &Row)> = (first..).zip(rows).filter(|(_, row)| !row.is_empty()).collect();
        if !kept.is_empty() {
            let content = batch(&self.schema, &self.stored, &kept.iter().map(|(_, row)| row.as_ref()))?;
            let ids = RowIds::new(kept.iter().map(|(id, _)| *id));
            self.live_rows += kept.len();
            self.push(content, ids);
        }
        self.merge()
    }

    fn push(&mut self, content: Content, ids: RowIds) {
        let Content { batch, documents } = content;
        let stamps = self.stamp_column.and_then(|column| build::stamp_bounds(&batch, column));
        let segment = Segment { batch, documents, dead: Arc::default(), stamps };
        self.parts.push(Part { no: SegmentNo::next(), segment: Arc::new(segment), ids });
    }

    /// Its segments, for a checkpoint.
    pub(crate) fn kept(&self) -> Vec<KeptSegment> {
        let kept = |part: &Part| KeptSegment {
            no: part.no,
            batch: part.segment.batch.clone(),
            dead: Arc::clone(&part.segment.dead),
        };
        self.parts.iter().map(kept).collect()
    }

    /// Puts segments of a checkpoint into an empty table. Rows whose key `is_ours` refuses are dead. `document` finds the
    /// document of a row by its key, for a table with a column of documents.
    ///
    /// # Errors
    /// An [`ArrowError`] if the segments are not of this table's schema, or a document is missing.
    pub(crate) fn restore(
        &mut self,
        tick: Tick,
        segments: &[KeptSegment],
        is_ours: impl Fn(&str) -> bool,
        document: impl Fn(&str) -> Option<Doc>,
    ) -> Result<(), ArrowError> {
        self.changed_at = tick;
        let with_documents = self.schema.stored().len() < self.schema.columns.len();
        for KeptSegment { no, batch, dead } in segments {
            let refused = || ArrowError::SchemaError("the rows of a checkpoint are of another shape".to_owned());
            if batch.schema_ref().fields() != self.stored.fields() {
                return Err(refused());
            }
            let batch = batch.clone().with_schema(Arc::clone(&self.stored))?;
            let keys = batch.columns().first().and_then(|keys| keys.as_any().downcast_ref::<StringViewArray>());
            let keys = keys.ok_or_else(refused)?;
            let mut dead = Arc::clone(dead);
            let mut documents = Vec::with_capacity(if with_documents { batch.num_rows() } else { 0 });
            let first = self.next_row_id;
            self.next_row_id += u64::try_from(batch.num_rows()).unwrap_or_default();
            let mut live: Vec<(Arc<str>, u64)> = Vec::with_capacity(batch.num_rows());
            for (row, (key, id)) in keys.iter().zip(first..).enumerate() {
                let key = key.unwrap_or_default();
                if !dead.is_dead(row) && !is_ours(key) {
                    Arc::make_mut(&mut dead).mark(row);
                }
                let is_dead = dead.is_dead(row);
                if with_documents {
                    documents.push(match document(key) {
                        Some(document) => document,
                        // Nobody reads the document of a dead row.
                        None if is_dead => Doc::null(),
                        None => return Err(refused()),
                    });
                }
                if !is_dead {
                    live.push((key.into(), id));
                }
            }
            self.live_rows += live.len();
            self.index.load(live, tick);
            let stamps = self.stamp_column.and_then(|column| build::stamp_bounds(&batch, column));
            let segment = Segment { documents: documents.into(), dead, stamps, batch };
            if segment.live_rows() > 0 {
                let ids = RowIds::run(first, segment.batch.num_rows());
                self.parts.push(Part { no: *no, segment: Arc::new(segment), ids });
            }
        }
        Ok(())
    }

    fn place(&self, id: u64) -> Option<(usize, usize)> {
        let after = self.parts.partition_point(|part| part.ids.first() <= id);
        let part = after.checked_sub(1)?;
        Some((part, self.parts.get(part)?.ids.position(id)?))
    }

    fn kill(&mut self, part: usize, row: usize) {
        let Some(part) = self.parts.get_mut(part) else { return };
        let before = part.segment.dead.count();
        Arc::make_mut(&mut Arc::make_mut(&mut part.segment).dead).mark(row);
        self.live_rows -= part.segment.dead.count() - before;
    }

    /// Merges from the young end: while the last `FAN` segments are of one size class, they become one.
    fn merge(&mut self) -> Result<(), ArrowError> {
        loop {
            let Some(last) = self.parts.last() else { return Ok(()) };
            let class = class(&last.segment);
            let same = self.parts.iter().rev().take_while(|part| class_le(&part.segment, class)).count();
            if same < FAN || self.parts.iter().rev().take(same).map(|p| p.segment.live_rows()).sum::<usize>() > MAX_ROWS
            {
                break;
            }
            let from = self.parts.len() - same;
            self.rewrite(from, self.parts.len())?;
        }
        // One old segment with many dead rows per tick, so that no tick pays for several.
        let wasteful = self.parts.iter().position(|part| {
            let (rows, dead) = (part.segment.batch.num_rows(), part.segment.dead.count());
            dead * 10 >= rows * DEAD_TENTHS && dead > 256 || dead == rows
        });
        match wasteful {
            Some(at) => self.rewrite(at, at + 1),
            None => Ok(()),
        }
    }

    /// Replaces the segments `from..to` by one with their live rows.
    fn rewrite(&mut self, from: usize, to: usize) -> Result<(), ArrowError> {
        let old: Vec<Part> = self.parts.drain(from..to).collect();
        let young = self.parts.split_off(from);
        let ids = RowIds::new(old.iter().flat_map(|part| {
            let dead = &part.segment.dead;
            part.ids.iter().enumerate().filter(|(row, _)| !dead.is_dead(*row)).map(|(_, id)| id)
        }));
        let content = compact(&self.stored, old.iter().map(|part| &*part.segment))?;
        if content.batch.num_rows() > 0 {
            self.push(content, ids);
        }
        self.parts.extend(young);
        Ok(())
    }

    /// The table as it stands.
    pub(crate) fn publish(&self) -> Table {
        let segments: Arc<[Arc<Segment>]> = self.parts.iter().map(|part| Arc::clone(&part.segment)).collect();
        let ids: Arc<[RowIds]> = self.parts.iter().map(|part| part.ids.clone()).collect();
        let index: Arc<dyn KeyIndex> = Arc::new(VersionIndex::new(Arc::clone(&self.index), ids, self.changed_at));
        Table {
            schema: Arc::clone(&self.schema),
            arrow: Arc::clone(&self.arrow),
            segments,
            live_rows: self.live_rows,
            stamp_column: self.stamp_column,
            index: Some(index),
            changed_at: self.changed_at,
            errors: self.errors,
        }
    }
}

/// Decodes live rows `start..end` (counted over all segments, dead rows included) of a published table.
pub(crate) fn walk(table: &Table, start: usize, end: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut offset = 0;
    for segment in table.segments.iter() {
        let len = segment.batch.num_rows();
        for row in start.max(offset)..end.min(offset + len) {
            if !segment.dead.is_dead(row - offset) {
                rows.push(segment.row(&table.schema, row - offset));
            }
        }
        offset += len;
    }
    rows
}

/// Rows of a published table, dead ones included: the length of its [`walk`].
pub(crate) fn walk_length(table: &Table) -> usize {
    table.segments.iter().map(|segment| segment.batch.num_rows()).sum()
}

static EMPTY: std::sync::LazyLock<Row> = std::sync::LazyLock::new(|| Row::from(Vec::<Cell>::new()));

/// Size class: how many times [`FAN`] goes into the number of rows.
fn class(segment: &Segment) -> u32 {
    u32::try_from(segment.batch.num_rows()).unwrap_or(u32::MAX).max(1).ilog2() / 3
}

fn class_le(segment: &Segment, limit: u32) -> bool {
    class(segment) <= limit
}

#[cfg(test)]
mod tests;
