//! A table of a snapshot as a DataFusion table.
//!
//! Rows come newest segment first in slices of at most 8,192; a slice without dead rows is handed out without a copy.
//! `key = constant` and `key in (…)` are answered by the table's index; comparisons with the stamp column skip segments
//! (dataflow.md §1).

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};
use schemas::{row::ColumnType, table::Table};

use super::{
    pushdown::{Columns, StampRange, as_keys, is_key_filter},
    scan::{Rows, SegmentScan},
};

/// One version of a live table.
#[derive(Debug)]
pub struct LiveTable {
    table: Arc<Table>,
}

impl LiveTable {
    /// Wraps a table of a snapshot.
    #[must_use]
    pub const fn new(table: Arc<Table>) -> Self {
        Self { table }
    }

    /// The wrapped table.
    #[must_use]
    pub const fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn columns(&self) -> Columns<'_> {
        let schema = &self.table.schema;
        let name = |at: usize| schema.columns.get(at).map(|column| column.name.as_str());
        let key = schema.key.first().copied().filter(|at| {
            self.table.index.is_some()
                && schema.columns.get(*at).is_some_and(|column| column.column_type == ColumnType::Text)
        });
        Columns { key: key.and_then(name), stamp: self.table.stamp_column.and_then(name) }
    }
}

#[async_trait]
impl TableProvider for LiveTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.table.arrow)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let columns = self.columns();
        Ok(filters
            .iter()
            .map(|filter| {
                if columns.key.is_some_and(|key| is_key_filter(filter, key)) {
                    TableProviderFilterPushDown::Exact
                } else if columns.stamp.is_some_and(|stamp| StampRange::default().narrow(filter, stamp)) {
                    TableProviderFilterPushDown::Inexact
                } else {
                    TableProviderFilterPushDown::Unsupported
                }
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = self.columns();
        let mut keys: Option<Vec<String>> = None;
        let mut stamps = StampRange::default();
        // A limit may only be applied here if every filter is.
        let mut exact = true;
        for filter in filters {
            if let Some(found) = columns.key.and_then(|key| as_keys(filter, key)) {
                match &mut keys {
                    Some(keys) => keys.retain(|key| found.contains(key)),
                    None => keys = Some(found),
                }
            } else {
                exact = false;
                if let Some(stamp) = columns.stamp {
                    stamps.narrow(filter, stamp);
                }
            }
        }
        let table = Arc::clone(&self.table);
        let rows = match keys {
            Some(keys) => Rows::of_keys(&table, keys),
            None => Rows::slices(&table, stamps, state.config().target_partitions()),
        };
        Ok(Arc::new(SegmentScan::new(table, projection.cloned(), rows, exact, limit.filter(|_| exact))?))
    }
}
