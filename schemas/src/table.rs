//! What readers see: published snapshots of columnar tables (architecture D7).
//!
//! A snapshot is one pointer. It holds every table of every domain at one tick; whoever holds it sees nothing move.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use serde::Serialize;

use crate::{
    doc::Doc,
    id::DomainId,
    position::{Frontier, LaneId, Tick},
    row::{Cell, Row, TableSchema},
};

/// Rows per chunk of a [`DeadRows`] bitmap: marking a row dead copies at most one chunk.
const CHUNK_ROWS: usize = 4096;
const CHUNK_WORDS: usize = CHUNK_ROWS / 64;

/// Which rows of a segment have been replaced or deleted. Copy-on-write by chunks.
#[derive(Clone, Debug, Default)]
pub struct DeadRows {
    chunks: Vec<Option<Arc<[u64; CHUNK_WORDS]>>>,
    count: usize,
}

impl DeadRows {
    /// Number of dead rows.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// True if the row is dead.
    #[must_use]
    pub fn is_dead(&self, row: usize) -> bool {
        self.chunks
            .get(row / CHUNK_ROWS)
            .and_then(Option::as_ref)
            .and_then(|chunk| chunk.get(row % CHUNK_ROWS / 64))
            .is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Marks a row dead; marking twice counts once.
    pub fn mark(&mut self, row: usize) {
        let chunk = row / CHUNK_ROWS;
        if self.chunks.len() <= chunk {
            self.chunks.resize(chunk + 1, None);
        }
        let Some(slot) = self.chunks.get_mut(chunk) else { return };
        let words = Arc::make_mut(slot.get_or_insert_with(|| Arc::new([0; CHUNK_WORDS])));
        let Some(word) = words.get_mut(row % CHUNK_ROWS / 64) else { return };
        let bit = 1 << (row % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.count += 1;
        }
    }

    /// The dead rows, ascending.
    pub fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        let chunks = self.chunks.iter().zip((0..).step_by(CHUNK_ROWS));
        chunks.flat_map(|(words, start)| {
            let words = words.iter().flat_map(|words| words.iter()).zip((start..).step_by(64));
            words.flat_map(|(word, start)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| start + bit))
        })
    }

    /// A filter that keeps the live rows of `start..start + len`, or `None` if all of them live.
    #[must_use]
    pub fn live(&self, start: usize, len: usize) -> Option<BooleanArray> {
        let touched = (start / CHUNK_ROWS..=(start + len.max(1) - 1) / CHUNK_ROWS)
            .any(|chunk| self.chunks.get(chunk).is_some_and(Option::is_some));
        if !touched {
            return None;
        }
        Some((start..start + len).map(|row| Some(!self.is_dead(row))).collect())
    }
}

impl FromIterator<usize> for DeadRows {
    fn from_iter<I: IntoIterator<Item = usize>>(rows: I) -> Self {
        let mut dead = Self::default();
        rows.into_iter().for_each(|row| dead.mark(row));
        dead
    }
}

/// A run of rows that never change; only which of them are dead does.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The rows, without their documents.
    pub batch: RecordBatch,
    /// The document of each row, if the table has a column of documents; else empty.
    pub documents: Arc<[Doc]>,
    /// Those that no longer count.
    pub dead: Arc<DeadRows>,
    /// Smallest and greatest value of the table's stamp column in this segment, dead rows included.
    pub stamps: Option<(i64, i64)>,
}

impl Segment {
    /// The row at `row`, decoded by its schema.
    #[must_use]
    pub fn row(&self, schema: &TableSchema, row: usize) -> Row {
        let stored = schema.stored().iter().zip(self.batch.columns());
        let cells = stored.map(|(column, array)| column.column_type.cell(array, row));
        cells.chain(self.documents.get(row).map(|doc| Cell::Document(doc.clone()))).collect()
    }

    /// Number of rows that count.
    #[must_use]
    pub fn live_rows(&self) -> usize {
        self.batch.num_rows().saturating_sub(self.dead.count())
    }
}

/// How a table is named in SQL: `schema.name` inside the domain's catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableName {
    /// `ucr`, `views`, `cases`, `forms` or `system`.
    pub schema: Arc<str>,
    /// Name in that schema.
    pub name: Arc<str>,
}

impl TableName {
    /// Names a table.
    #[must_use]
    pub fn new(schema: &str, name: &str) -> Self {
        Self { schema: Arc::from(schema), name: Arc::from(name) }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Finds the live rows of a document by its key without a scan.
pub trait KeyIndex: fmt::Debug + Send + Sync {
    /// Places of the live rows whose first key column equals `key`, as (segment, row), valid for this version of the
    /// table only; `None` if the index has moved on and the caller has to scan.
    fn find(&self, table: &Table, key: &str) -> Option<Vec<(usize, usize)>>;

    /// Bytes that it holds, estimated; without the texts of keys, which documents share. The versions of a table share one
    /// index.
    fn bytes(&self) -> usize {
        0
    }
}

/// One table of a snapshot.
#[derive(Clone, Debug)]
pub struct Table {
    /// Columns and key.
    pub schema: Arc<TableSchema>,
    /// The same as an Arrow schema.
    pub arrow: SchemaRef,
    /// Oldest rows first.
    pub segments: Arc<[Arc<Segment>]>,
    /// Rows that count, over all segments.
    pub live_rows: usize,
    /// Column that grows with every change of a row (`inserted_at`, `updated_at`); [`Segment::stamps`] are its bounds.
    pub stamp_column: Option<usize>,
    /// Point look-ups by the first key column, if the table has an index.
    pub index: Option<Arc<dyn KeyIndex>>,
    /// Tick of the last change.
    pub changed_at: Tick,
    /// Documents that this table could not evaluate.
    pub errors: usize,
}

impl Table {
    /// Rows that are still held and no longer count.
    #[must_use]
    pub fn dead_rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.dead.count()).sum()
    }

    /// Bytes of its columns. Documents are held elsewhere.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.batch.get_array_memory_size()).sum()
    }

    /// Bytes of its index, estimated.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.index.as_ref().map_or(0, |index| index.bytes())
    }
}

/// How far a build is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Documents evaluated so far.
    pub done: u64,
    /// Documents to evaluate.
    pub total: u64,
    /// Documents per second so far.
    pub rate: u64,
    /// How long the rest takes at that rate; not known before the first document.
    pub seconds_left: Option<u64>,
    /// When it began, microseconds since 1970 UTC.
    #[serde(serialize_with = "instant")]
    pub started_at: i64,
}

/// An instant as people read it.
fn instant<S: serde::Serializer>(micros: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::time::format_micros(*micros))
}

/// What became of a view definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ViewState {
    /// Its build begins when others are complete.
    Waiting,
    /// Rows are being computed beside the published version.
    Building(Progress),
    /// The published table is this definition's.
    Live,
    /// Its last table stays as it is until the definition says otherwise.
    Paused {
        /// The data source that is paused, if the view itself is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// The definition cannot be maintained; what to do is in the message.
    Failed {
        /// The reason.
        message: String,
    },
}

/// How the build of a preview is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PreviewState {
    /// It begins when others are complete.
    Waiting,
    /// Rows are being computed.
    Building(Progress),
    /// All rows are there, and follow every change.
    Complete {
        /// Where they are read.
        table: TableName,
    },
    /// The definition cannot be maintained.
    Failed {
        /// The reason.
        message: String,
    },
}

/// Schemas of previews: of data sources, and of aggregate views.
pub const PREVIEW_SCHEMAS: [&str; 2] = ["ucr_preview", "views_preview"];

/// One installed view and how it is doing.
#[derive(Clone, Debug, Serialize)]
pub struct ViewStatus {
    /// Id under which the definition was put.
    pub id: String,
    /// `data_source` or `aggregate_view`.
    pub kind: &'static str,
    /// Where its rows are read, all names.
    pub tables: Vec<TableName>,
    /// Progress.
    #[serde(flatten)]
    pub state: ViewState,
    /// Another definition that is built to be compared, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<PreviewState>,
    /// The definition of the published table, if there is one.
    #[serde(skip)]
    pub published: Option<Arc<serde_json::Value>>,
}

/// The tables of a domain by every name they have; real names and aliases share a table.
///
/// Every tick publishes a new map in which few tables differ: names and places are shared, so a copy with one table
/// replaced costs a copy of pointers, whatever the number of names.
#[derive(Clone, Debug, Default)]
pub struct NamedTables {
    names: Arc<BTreeMap<TableName, usize>>,
    places: Vec<Arc<Table>>,
}

impl NamedTables {
    /// Adds a table under all its names and returns its place. A name that was there means this table from now on.
    pub fn add(&mut self, names: impl IntoIterator<Item = TableName>, table: Arc<Table>) -> usize {
        let place = self.places.len();
        Arc::make_mut(&mut self.names).extend(names.into_iter().map(|name| (name, place)));
        self.places.push(table);
        place
    }

    /// Puts a newer version of a table in its place.
    pub fn replace(&mut self, place: usize, table: Arc<Table>) {
        if let Some(held) = self.places.get_mut(place) {
            *held = table;
        }
    }

    /// The table of that name.
    #[must_use]
    pub fn get(&self, name: &TableName) -> Option<&Arc<Table>> {
        self.places.get(*self.names.get(name)?)
    }

    /// Every name with its table, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&TableName, &Arc<Table>)> {
        self.names.iter().filter_map(|(name, place)| Some((name, self.places.get(*place)?)))
    }

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &TableName> {
        self.names.keys()
    }
}

impl FromIterator<(TableName, Arc<Table>)> for NamedTables {
    fn from_iter<I: IntoIterator<Item = (TableName, Arc<Table>)>>(tables: I) -> Self {
        let mut named = Self::default();
        for (name, table) in tables {
            named.add([name], table);
        }
        named
    }
}

/// Everything of one domain.
#[derive(Clone, Debug, Default)]
pub struct DomainTables {
    /// Its tables.
    pub tables: NamedTables,
    /// Installed views.
    pub views: Arc<[ViewStatus]>,
    /// Where the tables stand while so much of the domain follows one change that it takes many ticks; elsewhere they stand
    /// where the snapshot does.
    pub behind: Option<Moment>,
}

impl DomainTables {
    /// The published table of a view, and that of its preview when all rows are there.
    #[must_use]
    pub fn previewed(&self, view: &ViewStatus) -> Option<(&Arc<Table>, &Arc<Table>)> {
        let Some(PreviewState::Complete { table }) = &view.preview else { return None };
        Some((view.tables.iter().find_map(|name| self.tables.get(name))?, self.tables.get(table)?))
    }
}

/// A point in the history of all domains.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Logical time.
    pub tick: Tick,
    /// Wall-clock time of publication, microseconds since 1970 UTC.
    pub as_of: i64,
    /// How far each lane is included.
    pub complete_through: Frontier,
}

/// A consistent state of all tables: exactly the records up to `moment` are in them, or, in a domain that is
/// [behind](DomainTables::behind), those up to its own.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was published, and how far each lane is included.
    pub moment: Moment,
    /// When all lanes had last proved that nothing newer was missing, microseconds since 1970 UTC. Far behind now means
    /// that one of them is stalled.
    pub sources_seen_at: i64,
    /// When those lanes last did that have since done so again.
    pub lanes_seen_at: BTreeMap<LaneId, i64>,
    /// Numbers of the databases that each domain's documents come from, where that is known.
    pub databases: Arc<hashbrown::HashMap<DomainId, BTreeSet<u16>>>,
    /// Tables per domain.
    pub domains: hashbrown::HashMap<DomainId, Arc<DomainTables>>,
}

impl Snapshot {
    /// Where the tables of a domain stand.
    #[must_use]
    pub fn moment_of(&self, domain: &DomainId) -> &Moment {
        self.domains.get(domain).and_then(|tables| tables.behind.as_ref()).unwrap_or(&self.moment)
    }

    /// Every lane, and when it last proved that nothing newer was missing.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneId, i64)> + '_ {
        self.moment.complete_through.positions().map(|position| {
            let seen_at = self.lanes_seen_at.get(&position.lane).copied();
            (position.lane, seen_at.unwrap_or(self.sources_seen_at))
        })
    }

    /// When the lanes of the databases that a domain's documents come from last proved that nothing newer was missing.
    /// As long as those are not known, all lanes count.
    #[must_use]
    pub fn seen_at(&self, domain: &DomainId) -> i64 {
        let databases = self.databases.get(domain);
        let own = self.lanes().filter(|(lane, _)| databases.is_none_or(|own| own.contains(&lane.database)));
        own.map(|(_, seen_at)| seen_at).min().unwrap_or(self.sources_seen_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_as_fresh_as_the_lanes_of_its_own_databases() {
        use crate::position::{Position, Sequence};
        let lane = |database, writer| LaneId { database, writer };
        let domain = |name| DomainId::new(name).unwrap();
        let mut snapshot = Snapshot { sources_seen_at: 10, ..Snapshot::default() };
        assert_eq!(snapshot.seen_at(&domain("first")), 10, "nothing is known of any lane");
        for lane in [lane(0, 0), lane(1, 0), lane(1, 1)] {
            snapshot.moment.complete_through.advance(Position { lane, sequence: Sequence(0) });
        }
        snapshot.lanes_seen_at = BTreeMap::from([(lane(0, 0), 50), (lane(1, 1), 40)]);
        snapshot.databases = Arc::new(hashbrown::HashMap::from([
            (domain("first"), BTreeSet::from([0])),
            (domain("second"), BTreeSet::from([1])),
            (domain("both"), BTreeSet::from([0, 1])),
        ]));
        let seen_at = ["first", "second", "both", "unknown"].map(|name| snapshot.seen_at(&domain(name)));
        assert_eq!(seen_at, [50, 10, 10, 10]);
        assert_eq!(snapshot.lanes().collect::<Vec<_>>(), [(lane(0, 0), 50), (lane(1, 0), 10), (lane(1, 1), 40)]);
    }

    #[test]
    fn a_replaced_table_is_seen_under_all_its_names_by_the_newer_map_alone() {
        let table = |rows| {
            let schema = Arc::new(TableSchema { columns: Vec::new(), key: Vec::new() });
            Arc::new(Table {
                arrow: schema.arrow(),
                schema,
                segments: Arc::from([]),
                live_rows: rows,
                stamp_column: None,
                index: None,
                changed_at: Tick(0),
                errors: 0,
            })
        };
        let mut named = NamedTables::default();
        let place = named.add([TableName::new("ucr", "a"), TableName::new("ucr", "b")], table(1));
        let before = named.clone();
        named.replace(place, table(2));
        let rows = |named: &NamedTables| {
            named.iter().map(|(name, table)| (name.to_string(), table.live_rows)).collect::<Vec<_>>()
        };
        assert_eq!(rows(&named), [("ucr.a".to_owned(), 2), ("ucr.b".to_owned(), 2)]);
        assert_eq!(rows(&before), [("ucr.a".to_owned(), 1), ("ucr.b".to_owned(), 1)]);
        assert!(named.get(&TableName::new("ucr", "c")).is_none());
    }

    #[test]
    fn dead_rows_are_copied_by_chunk() {
        let mut dead = DeadRows::default();
        assert!(dead.live(0, 10).is_none());
        dead.mark(5000);
        let before = dead.clone();
        dead.mark(5000);
        dead.mark(3);
        assert_eq!((dead.count(), before.count()), (2, 1));
        assert_eq!(dead.rows().collect::<Vec<_>>(), [3, 5000]);
        assert_eq!(dead.rows().collect::<DeadRows>().rows().collect::<Vec<_>>(), [3, 5000]);
        assert!(dead.is_dead(3) && dead.is_dead(5000) && !dead.is_dead(4) && !before.is_dead(3));
        assert!(before.live(0, 4096).is_none());
        let live = dead.live(0, 5).unwrap();
        assert_eq!(live.iter().map(Option::unwrap).collect::<Vec<_>>(), [true, true, true, false, true]);
    }
}
