//! `pg_catalog` for tools that ask Postgres what there is (`\d`, drivers, report builders).
//!
//! The tables come from `datafusion-pg-catalog`; this file tells it what the domain has. Unlike everything else it reads
//! the newest snapshot rather than the statement's, because object ids have to stay the same from one catalogue query of a
//! connection to the next.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::SchemaProvider,
    common::{DataFusionError, Result},
    logical_expr::TableType,
};
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{
    PgCatalogSchemaProvider, PgCatalogStaticTables, catalog_info::CatalogInfo, context::EmptyContextProvider,
};
use schemas::{id::DomainId, port::ViewReader};

use super::Scope;

/// What a domain has, read when asked.
#[derive(Clone, Debug)]
pub(crate) struct DomainCatalog {
    pub(crate) views: Arc<dyn ViewReader>,
    pub(crate) domain: DomainId,
}

impl DomainCatalog {
    fn scope(&self) -> Arc<Scope> {
        let snapshot = self.views.snapshot();
        let tables = snapshot.domains.get(&self.domain).cloned().unwrap_or_default();
        Arc::new(Scope {
            snapshot,
            reader: Arc::clone(&self.views),
            domain: self.domain.clone(),
            user: Arc::from(""),
            tables,
            now: 0,
            stalled_after: 0,
            pg_catalog: None,
        })
    }

    fn mine(&self, catalog: &str) -> bool {
        catalog == self.domain.as_str()
    }
}

#[async_trait]
impl CatalogInfo for DomainCatalog {
    async fn catalog_names(&self) -> Result<Vec<String>, DataFusionError> {
        Ok(vec![self.domain.to_string()])
    }

    async fn schema_names(&self, catalog: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        let names = || self.scope().schemas().iter().map(|schema| schema.to_string()).collect();
        Ok(self.mine(catalog).then(names))
    }

    async fn table_names(&self, catalog: &str, schema: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        let names = || self.scope().tables_of(schema).map(|name| name.name.to_string()).collect();
        Ok(self.mine(catalog).then(names))
    }

    async fn table_schema(&self, catalog: &str, schema: &str, table: &str) -> Result<Option<SchemaRef>> {
        if !self.mine(catalog) {
            return Ok(None);
        }
        Ok(self.scope().table(schema, table).map(|table| table.schema()))
    }

    async fn table_type(&self, catalog: &str, schema: &str, table: &str) -> Result<Option<TableType>> {
        Ok(self.table_schema(catalog, schema, table).await?.map(|_| TableType::Base))
    }
}

/// The `pg_catalog` schema of one connection.
///
/// # Errors
/// The library's error if its tables cannot be made.
pub(crate) fn schema(tables: Arc<PgCatalogStaticTables>, catalog: DomainCatalog) -> Result<Arc<dyn SchemaProvider>> {
    Ok(Arc::new(PgCatalogSchemaProvider::try_new(catalog, tables, EmptyContextProvider)?))
}
