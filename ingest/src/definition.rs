//! Definitions of live tables: checked, stored, and announced in the change log like any other document.
//!
//! The id in the request names the definition and its table: it replaces `table_id` of a data source and `view_id` of an
//! aggregate view, and the request's domain replaces `domain`, so that a definition can neither take another one's table
//! nor read another domain.

use std::{collections::HashMap, sync::Arc};

use schemas::{
    change::DocKind,
    definition::Control,
    error::{Classify, ErrorClass},
    id::{DocId, DomainId, ViewName},
    position::Position,
    row::TableSchema,
};
use serde_json::Value;
use tokio_postgres::types::Type;
use udf::{DataSource, NameKind, SpecErrors, SpecProblem, aggregate_view::AggregateView};

use crate::{
    Ingest,
    error::{DatabaseError, WriteError},
    submit::{Action, DirectoryChange, DirectoryWrite, directory::doc_type},
};

/// Most definitions of one kind in a domain.
pub(crate) const MAX_DEFINITIONS: usize = 2000;

/// Why a definition was not stored.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Everything that is wrong with it.
    #[error(transparent)]
    Invalid(#[from] SpecErrors),
    /// Not a JSON object, or not a kind of document that defines a table or a name.
    #[error(
        "a definition must be a JSON object of a data source, an aggregate view, a named expression or a named filter"
    )]
    NotADefinition,
    /// The domain has too many.
    #[error("the domain has {MAX_DEFINITIONS} definitions of this kind, which is the most; delete one first")]
    TooMany,
    /// A preview compares with what is there.
    #[error("there is no definition under this id to compare with; put it without `preview`")]
    NothingToCompare,
    /// There is no preview to discard.
    #[error("there is no preview under this id")]
    NoPreview,
    /// It could not be stored.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<DatabaseError> for DefinitionError {
    fn from(error: DatabaseError) -> Self {
        Self::Write(error.into())
    }
}

impl From<tokio_postgres::Error> for DefinitionError {
    fn from(error: tokio_postgres::Error) -> Self {
        DatabaseError::from(error).into()
    }
}

impl Classify for DefinitionError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) | Self::NotADefinition => ErrorClass::BadRequest,
            Self::TooMany | Self::NothingToCompare => ErrorClass::Conflict,
            Self::NoPreview => ErrorClass::NotFound,
            Self::Write(error) => error.class(),
        }
    }
}

/// A stored definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its id.
    pub id: String,
    /// Its document.
    pub document: Value,
}

impl Ingest {
    /// Checks and stores the definition of a live table; returns where the change is in the log. Putting what is already
    /// stored is a change like any other. With `"preview": true` the stored definition stays, and this one is stored
    /// inside it, to be built beside and compared.
    ///
    /// # Errors
    /// [`DefinitionError`]; nothing was stored then.
    pub async fn put_definition(
        &self,
        domain: &DomainId,
        kind: DocKind,
        id: &ViewName,
        json: Value,
    ) -> Result<Position, DefinitionError> {
        let Value::Object(mut document) = json else { return Err(DefinitionError::NotADefinition) };
        let settings = self.domains.get(domain).await?;
        let name = match kind {
            DocKind::DataSource => "table_id",
            DocKind::AggregateView => "view_id",
            _ => return Err(DefinitionError::NotADefinition),
        };
        document.insert(name.to_owned(), id.as_str().into());
        document.insert("domain".to_owned(), domain.as_str().into());
        let known = self.definitions(domain, kind).await?;
        if let Some(Value::Bool(wanted)) = document.get("preview") {
            let wanted = *wanted;
            document.remove("preview");
            if wanted {
                document.remove("paused");
                let stored = known.into_iter().find(|definition| definition.id == id.as_str());
                let Some(Definition { document: Value::Object(mut stored), .. }) = stored else {
                    return Err(DefinitionError::NothingToCompare);
                };
                self.check(domain, kind, Value::Object(document.clone())).await?;
                stored.insert("preview".to_owned(), Value::Object(document));
                return self.write_definition(domain, settings.lane, kind, id, Action::Put(stored)).await;
            }
        }
        if known.len() >= MAX_DEFINITIONS && !known.iter().any(|definition| definition.id == id.as_str()) {
            return Err(DefinitionError::TooMany);
        }
        let mut checked = Value::Object(document.clone());
        let control = Control::take(&mut checked).map_err(|error| {
            let pointer = format!("/{}", error.key);
            SpecErrors::from(vec![SpecProblem { pointer, message: error.to_string() }])
        })?;
        for document in [Some(checked), control.preview].into_iter().flatten() {
            self.check(domain, kind, document).await?;
        }
        self.write_definition(domain, settings.lane, kind, id, Action::Put(document)).await
    }

    /// Discards the preview of a definition; returns where the change is in the log.
    ///
    /// # Errors
    /// [`DefinitionError::NoPreview`], [`DefinitionError::Write`].
    pub async fn discard_preview(
        &self,
        domain: &DomainId,
        kind: DocKind,
        id: &ViewName,
    ) -> Result<Position, DefinitionError> {
        let settings = self.domains.get(domain).await?;
        let known = self.definitions(domain, kind).await?;
        let stored = known.into_iter().find(|definition| definition.id == id.as_str());
        let Some(Definition { document: Value::Object(mut stored), .. }) = stored else {
            return Err(DefinitionError::NoPreview);
        };
        stored.remove("preview").ok_or(DefinitionError::NoPreview)?;
        self.write_definition(domain, settings.lane, kind, id, Action::Put(stored)).await
    }

    /// Deletes a definition, and with it its live table; returns where the change is in the log.
    ///
    /// # Errors
    /// [`DefinitionError::Write`], with [`WriteError::NotFound`] if there is none of that id.
    pub async fn delete_definition(
        &self,
        domain: &DomainId,
        kind: DocKind,
        id: &ViewName,
    ) -> Result<Position, DefinitionError> {
        let settings = self.domains.get(domain).await?;
        self.write_definition(domain, settings.lane, kind, id, Action::Delete).await
    }

    /// The stored definitions of a kind, by id; also named expressions and filters.
    ///
    /// # Errors
    /// [`DefinitionError::Write`].
    pub async fn definitions(&self, domain: &DomainId, kind: DocKind) -> Result<Vec<Definition>, DefinitionError> {
        let query = match NameKind::of(kind) {
            Some(_) => "SELECT id, document FROM documents WHERE domain = $1 AND kind = $2 ORDER BY id",
            None => "SELECT id, document FROM definitions WHERE domain = $1 AND kind = $2 ORDER BY id",
        };
        let rows = self
            .domains
            .pool(domain)
            .await?
            .get()
            .await?
            .query_typed(query, &[(&domain.as_str(), Type::TEXT), (&kind.name(), Type::TEXT)])
            .await?;
        let damaged = |error| DatabaseError::damaged("definitions", error);
        rows.iter()
            .map(|row| {
                let document = serde_json::from_str(row.try_get(1)?).map_err(damaged)?;
                Ok(Definition { id: row.try_get(0)?, document })
            })
            .collect()
    }

    async fn write_definition(
        &self,
        domain: &DomainId,
        lane: schemas::position::LaneId,
        kind: DocKind,
        id: &ViewName,
        action: Action,
    ) -> Result<Position, DefinitionError> {
        let id = DocId::new(id.as_str()).map_err(|error| WriteError::Invalid(error.to_string()))?;
        let change = DirectoryChange { kind, id, action, password_hash: None, keeps_digest: false };
        let receipt = self.lanes.write(lane, DirectoryWrite { domain: domain.clone(), changes: vec![change] }).await?;
        receipt.results.into_iter().next().unwrap_or(Err(WriteError::Internal))?;
        tracing::info!(%domain, kind = doc_type(kind), "a definition changed");
        Ok(receipt.position.ok_or(WriteError::Internal)?)
    }

    async fn check(&self, domain: &DomainId, kind: DocKind, document: Value) -> Result<(), DefinitionError> {
        let names = self.registry(domain).await?;
        if kind == DocKind::DataSource {
            DataSource::compile_in(&document, &names)?;
            return Ok(());
        }
        let wanted = AggregateView::tables_of(&document);
        let mut tables: HashMap<String, Arc<TableSchema>> = HashMap::new();
        for source in self.definitions(domain, DocKind::DataSource).await? {
            if wanted.contains(&source.id)
                && let Ok(compiled) = DataSource::compile_in(&source.document, &names)
            {
                tables.insert(source.id, Arc::new(compiled.schema().clone()));
            }
        }
        AggregateView::compile(&document, &|name| tables.get(name).cloned())?;
        Ok(())
    }
}
