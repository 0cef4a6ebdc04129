//! One table out of the parts that the workers have of it.
//!
//! Every row is on one worker. Segments are shared, not copied: a union costs two pointers per segment.

use std::{fmt, sync::Arc};

use schemas::table::{KeyIndex, Segment, Table};

/// The table that these parts are together, `None` if there are none. Segments keep the order of their newest rows.
pub(crate) fn union(parts: Vec<Arc<Table>>) -> Option<Arc<Table>> {
    let [first, others @ ..] = parts.as_slice() else { return None };
    if others.is_empty() {
        return Some(Arc::clone(first));
    }
    let mut segments: Vec<(usize, usize, &Arc<Segment>)> = Vec::new();
    for (part, table) in parts.iter().enumerate() {
        segments.extend(table.segments.iter().enumerate().map(|(at, segment)| (part, at, segment)));
    }
    segments.sort_by_key(|(_, _, segment)| segment.stamps.map(|(_, newest)| newest));
    let mut places: Vec<Vec<usize>> = parts.iter().map(|table| vec![0; table.segments.len()]).collect();
    for (place, (part, at, _)) in segments.iter().enumerate() {
        if let Some(slot) = places.get_mut(*part).and_then(|places| places.get_mut(*at)) {
            *slot = place;
        }
    }
    let table = Table {
        schema: Arc::clone(&first.schema),
        arrow: Arc::clone(&first.arrow),
        segments: segments.into_iter().map(|(_, _, segment)| Arc::clone(segment)).collect(),
        live_rows: parts.iter().map(|table| table.live_rows).sum(),
        stamp_column: first.stamp_column,
        index: None,
        changed_at: parts.iter().map(|table| table.changed_at).fold(first.changed_at, Ord::max),
        errors: parts.iter().map(|table| table.errors).sum(),
    };
    let indexed = parts.iter().all(|table| table.index.is_some());
    let index = indexed.then(|| Arc::new(UnionIndex { parts: parts.into_iter().zip(places).collect() }) as _);
    Some(Arc::new(Table { index, ..table }))
}

/// The indexes of all parts, each with the places of its segments in the union.
struct UnionIndex {
    parts: Vec<(Arc<Table>, Vec<usize>)>,
}

impl fmt::Debug for UnionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnionIndex").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

impl KeyIndex for UnionIndex {
    fn find(&self, _table: &Table, key: &str) -> Option<Vec<(usize, usize)>> {
        let mut found = Vec::new();
        for (part, places) in &self.parts {
            for (segment, row) in part.index.as_ref()?.find(part, key)? {
                found.push((*places.get(segment)?, row));
            }
        }
        Some(found)
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|(part, _)| part.index_bytes()).sum()
    }
}
