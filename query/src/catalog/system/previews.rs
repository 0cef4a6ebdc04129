//! `system.view_previews`: what changed definitions would do to the rows that are published.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DataFusionError, Result},
    datasource::MemTable,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};
use schemas::{
    difference::Difference,
    table::{DomainTables, PreviewState, ViewStatus},
};

use super::Columns;

/// Columns before the first one that says what a comparison found.
const PLAIN: usize = 8;

/// The previews of one domain in one snapshot. Tables are compared when a statement asks for it, on a thread that may
/// take its time.
#[derive(Debug)]
pub(super) struct Previews {
    tables: Arc<DomainTables>,
    schema: SchemaRef,
}

impl Previews {
    pub(super) fn new(tables: &Arc<DomainTables>) -> Self {
        let (schema, _) = columns(&DomainTables::default(), false);
        Self { tables: Arc::clone(tables), schema }
    }
}

#[async_trait]
impl TableProvider for Previews {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let tables = Arc::clone(&self.tables);
        let compare = projection.is_none_or(|columns| columns.iter().any(|column| *column >= PLAIN));
        let made = tokio::task::spawn_blocking(move || columns(&tables, compare)).await;
        let (schema, arrays) = made.map_err(|error| DataFusionError::External(Box::new(error)))?;
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
        MemTable::try_new(schema, vec![vec![batch]])?.scan(state, projection, filters, limit).await
    }
}

/// One row per preview; with the comparison of its table, if that is asked for and possible.
fn columns(tables: &DomainTables, compare: bool) -> (SchemaRef, Vec<ArrayRef>) {
    let previews: Vec<(&ViewStatus, &PreviewState)> =
        tables.views.iter().filter_map(|view| Some((view, view.preview.as_ref()?))).collect();
    let differences: Vec<Option<Difference>> = previews
        .iter()
        .map(|(view, _)| {
            let (before, after) = tables.previewed(view).filter(|_| compare)?;
            Some(Difference::between(before, after))
        })
        .collect();
    let states = || previews.iter().map(|(_, preview)| *preview);
    let progress = || {
        states().map(|preview| match preview {
            PreviewState::Building(progress) => Some(progress),
            _ => None,
        })
    };
    let found = |of: fn(&Difference) -> u64| differences.iter().map(move |difference| difference.as_ref().map(of));
    let names = |of: fn(&Difference) -> &[String]| {
        differences.iter().map(move |difference| difference.as_ref().map(|difference| of(difference).join(",")))
    };
    Columns::default()
        .texts("id", previews.iter().map(|(view, _)| Some(&view.id)))
        .texts("kind", previews.iter().map(|(view, _)| Some(view.kind)))
        .texts(
            "state",
            states().map(|preview| {
                Some(match preview {
                    PreviewState::Waiting => "waiting",
                    PreviewState::Building(_) => "building",
                    PreviewState::Complete { .. } => "complete",
                    PreviewState::Failed { .. } => "failed",
                })
            }),
        )
        .texts(
            "table",
            states().map(|preview| match preview {
                PreviewState::Complete { table } => Some(table.to_string()),
                _ => None,
            }),
        )
        .numbers("done", progress().map(|progress| Some(progress?.done)))
        .numbers("total", progress().map(|progress| Some(progress?.total)))
        .numbers("seconds_left", progress().map(|progress| progress?.seconds_left))
        .texts(
            "message",
            states().map(|preview| match preview {
                PreviewState::Failed { message } => Some(message),
                _ => None,
            }),
        )
        .numbers("appearing", found(|difference| difference.appearing))
        .numbers("vanishing", found(|difference| difference.vanishing))
        .numbers("changing", found(|difference| difference.changing))
        .numbers("unchanged", found(|difference| difference.unchanged))
        .texts("columns_added", names(|difference| &difference.columns_added))
        .texts("columns_removed", names(|difference| &difference.columns_removed))
        .texts(
            "samples",
            differences.iter().map(|difference| serde_json::to_string(&difference.as_ref()?.samples).ok()),
        )
        .done()
}
