//! Reads the rows of a live table: the physical plan behind [`super::LiveTable`].

use std::{fmt, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringViewArray, StringViewBuilder, UInt32Array,
    },
    compute::{filter, take},
    datatypes::{Schema, SchemaRef},
};
use datafusion::{
    common::{DataFusionError, Result, Statistics, stats::Precision, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
        StatisticsArgs,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use hashbrown::HashSet;
use schemas::{
    doc::Doc,
    table::{Segment, Table},
};

use super::pushdown::StampRange;

/// Most rows of a batch.
const SLICE_ROWS: usize = 8192;

/// A run of rows inside a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    segment: usize,
    start: usize,
    len: usize,
}

/// Which rows a scan reads.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    /// Every live row of these slices; if keys are given, only rows whose key is among them.
    Slices {
        /// Slices per partition, newest first.
        partitions: Vec<Arc<[Slice]>>,
        /// Live rows of the slices' segments.
        live: usize,
        /// Wanted keys and the key column, when the index could not answer.
        keys: Option<(usize, Arc<HashSet<String>>)>,
    },
    /// Rows found by the index, as (segment, row).
    Places(Arc<[(usize, usize)]>),
}

impl Rows {
    /// The slices of all segments that may hold rows of `stamps`, newest first, dealt to `partitions` in turn.
    pub(super) fn slices(table: &Table, stamps: StampRange, partitions: usize) -> Self {
        let mut live = 0;
        let mut slices = Vec::new();
        for (at, segment) in table.segments.iter().enumerate().rev() {
            let rows = segment.live_rows();
            if rows == 0 || !stamps.meets(segment.stamps) {
                continue;
            }
            live += rows;
            let end = segment.batch.num_rows();
            // From the back, so that the newest rows of a segment come first too.
            let mut until = end;
            while until > 0 {
                let start = until.saturating_sub(SLICE_ROWS);
                slices.push(Slice { segment: at, start, len: until - start });
                until = start;
            }
        }
        let partitions = if live <= SLICE_ROWS { 1 } else { partitions.clamp(1, slices.len().max(1)) };
        let deal = |partition: usize| slices.iter().skip(partition).step_by(partitions).copied().collect();
        Self::Slices { partitions: (0..partitions).map(deal).collect(), live, keys: None }
    }

    /// The live rows with one of these keys.
    pub(super) fn of_keys(table: &Table, keys: Vec<String>) -> Self {
        let mut places = Vec::with_capacity(keys.len());
        for key in &keys {
            match table.index.as_ref().and_then(|index| index.find(table, key)) {
                Some(found) => places.extend(found),
                None => return Self::scan_for(table, keys),
            }
        }
        places.retain(|(segment, row)| {
            table
                .segments
                .get(*segment)
                .is_some_and(|segment| *row < segment.batch.num_rows() && !segment.dead.is_dead(*row))
        });
        places.sort_unstable_by(|a, b| b.cmp(a));
        Self::Places(places.into())
    }

    fn scan_for(table: &Table, keys: Vec<String>) -> Self {
        let rows = Self::slices(table, StampRange::default(), 1);
        match (rows, table.schema.key.first()) {
            (Self::Slices { partitions, live, .. }, Some(column)) => {
                Self::Slices { partitions, live, keys: Some((*column, Arc::new(keys.into_iter().collect()))) }
            }
            (rows, _) => rows,
        }
    }

    fn partitions(&self) -> usize {
        match self {
            Self::Slices { partitions, .. } => partitions.len(),
            Self::Places(_) => 1,
        }
    }

    /// Number of rows, if it is known without reading.
    fn count(&self) -> Precision<usize> {
        match self {
            Self::Slices { live, keys: None, .. } => Precision::Exact(*live),
            Self::Slices { live, keys: Some(_), .. } => Precision::Inexact(*live),
            Self::Places(places) => Precision::Exact(places.len()),
        }
    }
}

/// Scans the segments of one version of a live table.
#[derive(Debug)]
pub struct SegmentScan {
    table: Arc<Table>,
    projection: Option<Vec<usize>>,
    schema: SchemaRef,
    rows: Rows,
    /// True if nothing above filters any further.
    exact: bool,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl SegmentScan {
    pub(super) fn new(
        table: Arc<Table>,
        projection: Option<Vec<usize>>,
        rows: Rows,
        exact: bool,
        limit: Option<usize>,
    ) -> Result<Self> {
        let schema = match &projection {
            Some(columns) => Arc::new(table.arrow.project(columns)?),
            None => Arc::clone(&table.arrow),
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(rows.partitions()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(Self { table, projection, schema, rows, exact, limit, properties })
    }
}

impl DisplayAs for SegmentScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rows {
            Rows::Slices { partitions, live, keys } => {
                let slices: usize = partitions.iter().map(|slices| slices.len()).sum();
                write!(f, "SegmentScan: slices={slices}, live_rows={live}")?;
                if let Some((_, keys)) = keys {
                    write!(f, ", keys={}", keys.len())?;
                }
            }
            Rows::Places(places) => write!(f, "SegmentScan: by_key, rows={}", places.len())?,
        }
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for SegmentScan {
    fn name(&self) -> &'static str {
        "SegmentScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let rows = match args.partition() {
            None if self.exact => self.rows.count(),
            None => self.rows.count().to_inexact(),
            Some(_) => self.rows.count().map(|rows| rows / self.rows.partitions().max(1)).to_inexact(),
        };
        let rows = match self.limit {
            Some(limit) => rows.min(&Precision::Exact(limit)),
            None => rows,
        };
        Ok(Arc::new(Statistics::new_unknown(&self.schema).with_num_rows(rows)))
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let reader = Reader {
            table: Arc::clone(&self.table),
            projection: self.projection.clone(),
            schema: Arc::clone(&self.schema),
        };
        let batches: Box<dyn Iterator<Item = Result<RecordBatch>> + Send> = match &self.rows {
            Rows::Slices { partitions, keys, .. } => {
                let slices = partitions.get(partition).cloned().ok_or_else(|| no_partition(partition))?;
                let keys = keys.clone();
                let count = slices.len();
                Box::new((0..count).filter_map(move |at| {
                    let slice = slices.get(at)?;
                    reader.slice(*slice, keys.as_ref()).transpose()
                }))
            }
            Rows::Places(places) => {
                if partition > 0 {
                    return Err(no_partition(partition));
                }
                let runs = runs(places);
                Box::new(runs.into_iter().filter_map(move |(segment, rows)| reader.rows(segment, &rows).transpose()))
            }
        };
        let schema = Arc::clone(&self.schema);
        let batches = Limited { batches, left: self.limit.unwrap_or(usize::MAX) };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))))
    }
}

fn no_partition(partition: usize) -> DataFusionError {
    DataFusionError::Internal(format!("a scan of live rows has no partition {partition}"))
}

/// Groups places, which are sorted, by segment.
fn runs(places: &[(usize, usize)]) -> Vec<(usize, Vec<u32>)> {
    let mut runs: Vec<(usize, Vec<u32>)> = Vec::new();
    for (segment, row) in places {
        let Ok(row) = u32::try_from(*row) else { continue };
        match runs.last_mut() {
            Some((last, rows)) if last == segment => rows.push(row),
            _ => runs.push((*segment, vec![row])),
        }
    }
    runs
}

/// Stops after a number of rows.
struct Limited<I> {
    batches: I,
    left: usize,
}

impl<I: Iterator<Item = Result<RecordBatch>>> Iterator for Limited<I> {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let batch = match self.batches.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let rows = batch.num_rows().min(self.left);
        self.left -= rows;
        Some(Ok(if rows < batch.num_rows() { batch.slice(0, rows) } else { batch }))
    }
}

/// Cuts batches out of segments.
struct Reader {
    table: Arc<Table>,
    projection: Option<Vec<usize>>,
    schema: Arc<Schema>,
}

impl Reader {
    fn segment(&self, at: usize) -> Option<&Segment> {
        self.table.segments.get(at).map(AsRef::as_ref)
    }

    /// The projected columns of chosen rows; only those are cut, and only their documents written out.
    fn batch(&self, segment: &Segment, chosen: &Chosen) -> Result<RecordBatch> {
        let stored = segment.batch.columns();
        let column = |at: usize| match stored.get(at) {
            Some(column) => Ok(chosen.cut(column)?),
            None if at == stored.len() && !segment.documents.is_empty() => Ok(chosen.write(&segment.documents)),
            None => Err(DataFusionError::Internal(format!("segment has no column {at}"))),
        };
        let columns = match &self.projection {
            Some(projection) => projection.iter().map(|at| column(*at)).collect::<Result<Vec<_>>>()?,
            None => (0..self.table.schema.columns.len()).map(column).collect::<Result<Vec<_>>>()?,
        };
        let rows = chosen.count();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// The live rows of a slice; `None` if there are none.
    fn slice(&self, slice: Slice, keys: Option<&(usize, Arc<HashSet<String>>)>) -> Result<Option<RecordBatch>> {
        let Some(segment) = self.segment(slice.segment) else { return Ok(None) };
        let Slice { start, len, .. } = slice;
        let mut keep = segment.dead.live(start, len);
        if let Some((column, keys)) = keys {
            let wanted = match segment.batch.columns().get(*column).map(|column| column.slice(start, len)) {
                Some(column) => among(&column, keys)?,
                None => return Ok(None),
            };
            keep = Some(match keep {
                Some(live) => arrow::compute::and(&live, &wanted)?,
                None => wanted,
            });
        }
        let chosen = match keep {
            None => Chosen::Run { start, len },
            Some(keep) if keep.true_count() == 0 => return Ok(None),
            Some(keep) => Chosen::Kept { start, keep },
        };
        self.batch(segment, &chosen).map(Some)
    }

    /// These rows of a segment; `None` if there are none.
    fn rows(&self, segment: usize, rows: &[u32]) -> Result<Option<RecordBatch>> {
        let Some(segment) = self.segment(segment) else { return Ok(None) };
        match rows {
            [] => Ok(None),
            [row] => {
                let start = usize::try_from(*row).unwrap_or(usize::MAX);
                self.batch(segment, &Chosen::Run { start, len: 1 }).map(Some)
            }
            rows => self.batch(segment, &Chosen::Places(UInt32Array::from(rows.to_vec()))).map(Some),
        }
    }
}

/// Rows of a segment.
enum Chosen {
    /// Neighbours.
    Run { start: usize, len: usize },
    /// Those of some neighbours that a filter keeps.
    Kept { start: usize, keep: BooleanArray },
    /// Single ones.
    Places(UInt32Array),
}

impl Chosen {
    fn count(&self) -> usize {
        match self {
            Self::Run { len, .. } => *len,
            Self::Kept { keep, .. } => keep.true_count(),
            Self::Places(places) => places.len(),
        }
    }

    /// Their values of a column.
    fn cut(&self, column: &ArrayRef) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
        match self {
            Self::Run { start, len } => Ok(column.slice(*start, *len)),
            Self::Kept { start, keep } => filter(&column.slice(*start, keep.len()), keep),
            Self::Places(places) => take(column, places, None),
        }
    }

    /// Their documents as JSON texts.
    fn write(&self, documents: &[Doc]) -> ArrayRef {
        let mut texts = StringViewBuilder::with_capacity(self.count());
        let mut write = |at: usize| texts.append_option(documents.get(at).map(Doc::to_json));
        match self {
            Self::Run { start, len } => (*start..*start + *len).for_each(write),
            Self::Kept { start, keep } => {
                let kept = (*start..).zip(keep.iter()).filter(|(_, keep)| *keep == Some(true));
                kept.for_each(|(at, _)| write(at));
            }
            Self::Places(places) => {
                places.values().iter().for_each(|at| write(usize::try_from(*at).unwrap_or(usize::MAX)))
            }
        }
        Arc::new(texts.finish())
    }
}

fn among(column: &ArrayRef, keys: &HashSet<String>) -> Result<BooleanArray> {
    let Some(text) = column.as_any().downcast_ref::<StringViewArray>() else {
        return Err(DataFusionError::Internal(format!("key column is {}, not text", column.data_type())));
    };
    Ok(text.iter().map(|key| Some(key.is_some_and(|key| keys.contains(key)))).collect())
}
