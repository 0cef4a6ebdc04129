//! Which instance readers see under a name.

use std::sync::Arc;

use schemas::{change::DocKind, id::DomainId, inside::ProvenanceError, table::TableName};

use super::{Catalog, inputs, status::names};
use crate::view::Instance;

impl Catalog {
    /// The published instance of a view, by its id. If a data source and an aggregate view have one id, the schema of
    /// their tables in front says which.
    ///
    /// # Errors
    /// There is no such view, or nothing of it is published yet.
    pub(crate) fn published(&self, domain: &DomainId, view: &str) -> Result<&Arc<Instance>, ProvenanceError> {
        let kinds = [(DocKind::DataSource, "ucr."), (DocKind::AggregateView, "views.")];
        let ids = kinds.map(|(kind, schema)| (kind, view.strip_prefix(schema)));
        let plain = kinds.map(|(kind, _)| (kind, Some(view)));
        let named = plain.into_iter().chain(ids).filter_map(|(kind, id)| Some((domain.clone(), kind, id?.to_owned())));
        let definition = named.filter_map(|key| self.definitions.get(&key)).next();
        let definition = definition.ok_or_else(|| ProvenanceError::UnknownView { view: view.to_owned() })?;
        let installed = definition.live.and_then(|no| self.instances.get(&no));
        let installed = installed.ok_or_else(|| ProvenanceError::NotReady { view: view.to_owned() })?;
        Ok(&installed.instance)
    }

    /// The tables of the sources of an aggregate view, the base table first.
    pub(crate) fn sources_of(&self, instance: &Instance) -> Vec<TableName> {
        let inputs = inputs(&self.instances, instance.no).filter_map(|input| self.instances.get(&input));
        inputs.filter_map(|installed| table_of(&installed.instance)).collect()
    }
}

/// The table of an instance.
pub(crate) fn table_of(instance: &Instance) -> Option<TableName> {
    names(instance).into_iter().next()
}
