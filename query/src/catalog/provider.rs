//! A scope in the form in which `information_schema` reads it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    common::{DataFusionError, Result},
    logical_expr::TableType,
};

use super::Scope;

/// The domain as the only catalog.
pub(super) struct SnapshotCatalog(Arc<Scope>);

impl SnapshotCatalog {
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self(scope)
    }
}

impl fmt::Debug for SnapshotCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotCatalog({})", self.0.domain)
    }
}

impl CatalogProviderList for SnapshotCatalog {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![self.0.domain.to_string()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == self.0.domain.as_str()).then(|| Arc::new(Self(Arc::clone(&self.0))) as _)
    }
}

impl CatalogProvider for SnapshotCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.0.schemas().iter().map(|schema| schema.to_string()).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let schema = self.0.schemas().get(name).cloned()?;
        Some(Arc::new(SnapshotSchema { scope: Arc::clone(&self.0), schema }))
    }
}

struct SnapshotSchema {
    scope: Arc<Scope>,
    schema: Arc<str>,
}

impl fmt::Debug for SnapshotSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotSchema({})", self.schema)
    }
}

#[async_trait]
impl SchemaProvider for SnapshotSchema {
    fn table_names(&self) -> Vec<String> {
        self.scope.tables_of(&self.schema).map(|name| name.name.to_string()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.scope.table(&self.schema, name))
    }

    async fn table_type(&self, _name: &str) -> Result<Option<TableType>> {
        Ok(Some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.scope.tables_of(&self.schema).any(|table| &*table.name == name)
    }
}
