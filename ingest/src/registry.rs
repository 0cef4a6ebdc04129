//! A domain's named expressions and filters: checked, stored, and announced in the change log like any other document.
//!
//! The name is the id. An expression and a filter may have the same name.
//! Source: ucr.md §3.4 (`UCRExpression`).

use std::collections::HashSet;

use schemas::{
    change::DocKind,
    id::{DocId, DomainId},
    position::Position,
};
use serde_json::{Map, Value};
use udf::{NameKind, Registry};

use crate::{
    Ingest,
    definition::{DefinitionError, MAX_DEFINITIONS},
    error::WriteError,
    submit::{Action, DirectoryChange, DirectoryWrite, Written, directory::doc_type},
};

/// What became of named expressions or filters that were put together.
#[derive(Debug)]
pub(crate) struct NamesReceipt {
    /// Of each, in their order.
    pub(crate) results: Vec<Result<Written, DefinitionError>>,
    /// Where the change is in the log, unless all were refused.
    pub(crate) position: Option<Position>,
}

impl Ingest {
    /// Checks and stores named expressions or filters, each with its document. They may use each other in any order.
    ///
    /// # Errors
    /// [`DefinitionError`] if nothing could be stored; a document that is refused is among the results.
    pub(crate) async fn put_names(
        &self,
        domain: &DomainId,
        kind: DocKind,
        documents: Vec<(DocId, Map<String, Value>)>,
    ) -> Result<NamesReceipt, DefinitionError> {
        let of = NameKind::of(kind).ok_or(DefinitionError::NotADefinition)?;
        let mut registry = self.registry(domain).await?;
        let known = self.definitions(domain, kind).await?;
        let mut names: HashSet<String> = known.into_iter().map(|known| known.id).collect();
        names.extend(documents.iter().map(|(name, _)| name.as_str().to_owned()));
        if names.len() > MAX_DEFINITIONS {
            return Err(DefinitionError::TooMany);
        }
        let documents: Vec<(DocId, Map<String, Value>)> =
            documents.into_iter().map(|(name, fields)| (name.clone(), document(domain, kind, &name, fields))).collect();
        for (name, document) in &documents {
            registry.put(of, name.as_str(), &Value::Object(document.clone()));
        }
        let mut changes = Vec::new();
        let mut check = |(name, document): (DocId, Map<String, Value>)| -> Result<(), DefinitionError> {
            registry.check(of, name.as_str())?;
            let action = Action::Put(document);
            changes.push(DirectoryChange { kind, id: name, action, password_hash: None, keeps_digest: false });
            Ok(())
        };
        let checked: Vec<Result<(), DefinitionError>> = documents.into_iter().map(&mut check).collect();
        let (written, position) = match changes.is_empty() {
            true => (Vec::new(), None),
            false => self.write_names(domain, kind, changes).await?,
        };
        let mut written = written.into_iter();
        let mut stored = |()| Ok(written.next().unwrap_or(Err(WriteError::Internal))?);
        let results = checked.into_iter().map(|checked| checked.and_then(&mut stored)).collect();
        Ok(NamesReceipt { results, position })
    }

    /// Deletes a named expression or filter. Data sources that use it keep their tables as they are, and say that they cannot
    /// be maintained; returns where the change is in the log.
    ///
    /// # Errors
    /// [`DefinitionError::Write`], with [`WriteError::NotFound`] if there is none of that name.
    pub(crate) async fn delete_name(
        &self,
        domain: &DomainId,
        kind: DocKind,
        name: DocId,
    ) -> Result<Position, DefinitionError> {
        let change =
            DirectoryChange { kind, id: name, action: Action::Delete, password_hash: None, keeps_digest: false };
        let (written, position) = self.write_names(domain, kind, vec![change]).await?;
        written.into_iter().next().unwrap_or(Err(WriteError::Internal))?;
        Ok(position.ok_or(WriteError::Internal)?)
    }

    /// What the domain's data sources may use by name.
    pub(crate) async fn registry(&self, domain: &DomainId) -> Result<Registry, DefinitionError> {
        let mut registry = Registry::default();
        for kind in [DocKind::NamedExpression, DocKind::NamedFilter] {
            let Some(of) = NameKind::of(kind) else { continue };
            for definition in self.definitions(domain, kind).await? {
                registry.put(of, &definition.id, &definition.document);
            }
        }
        Ok(registry)
    }

    async fn write_names(
        &self,
        domain: &DomainId,
        kind: DocKind,
        changes: Vec<DirectoryChange>,
    ) -> Result<(Vec<Result<Written, WriteError>>, Option<Position>), DefinitionError> {
        let settings = self.domains.get(domain).await?;
        let receipt = self.lanes.write(settings.lane, DirectoryWrite { domain: domain.clone(), changes }).await?;
        tracing::info!(%domain, kind = doc_type(kind), "named definitions changed");
        Ok((receipt.results, receipt.position))
    }
}

/// The document of a name: upstream's fields, whatever was sent for those that follow from the address.
fn document(domain: &DomainId, kind: DocKind, name: &DocId, sent: Map<String, Value>) -> Map<String, Value> {
    let mut document = Map::new();
    for (field, value) in [
        ("doc_type", doc_type(kind)),
        ("domain", domain.as_str()),
        ("name", name.as_str()),
        ("expression_type", kind.name()),
        ("description", ""),
    ] {
        document.insert(field.to_owned(), value.into());
    }
    let derived = ["_id", "id", "doc_type", "domain", "name", "expression_type"];
    document.extend(sent.into_iter().filter(|(field, _)| !derived.contains(&field.as_str())));
    document
}
