//! Rows of cases, their indices and transactions: statements and mapping.

use std::collections::{BTreeMap, HashMap};

use schemas::id::{CaseId, DomainId, FormId};
use serde::de::DeserializeOwned;
use tokio_postgres::{Client, Row, Statement, types::Type};

use crate::{
    casexml::Relationship,
    error::DatabaseError,
    shard::document_shard,
    store::keys::{Keys, wanted},
    submit::{
        apply::{CaseIndexState, CaseState, TransactionKind},
        document::FormState,
        rebuild::StoredTransaction,
    },
};

/// Columns of [`case`] in its order, of the table `cases` as `c`.
macro_rules! case_columns {
    () => {
        "c.id, domain, type, name, owner_id, external_id, location_id, opened_on, opened_by, modified_on, modified_by, \
         server_modified_on, closed, closed_on, closed_by, deleted, deleted_on, deletion_id, properties, xform_ids, stamp, \
         attachments"
    };
}
pub(crate) use case_columns;

/// Cases by id, in any domain.
pub(crate) const SELECT: &str =
    concat!("SELECT ", case_columns!(), " FROM ", wanted!(), " JOIN cases c ON c.shard = w.shard AND c.id = w.id");

/// Indices of cases, in the order the cases got them.
pub(crate) const SELECT_INDICES: &str = concat!(
    "SELECT case_id, identifier, referenced_type, referenced_id, relationship FROM ",
    wanted!(),
    " JOIN case_indices i ON i.shard = w.shard AND i.case_id = w.id ORDER BY case_id, place"
);

/// Domains of the cases `$1` and of those that the cases `$3` refer to.
pub(crate) const SELECT_TARGETS: &str = concat!(
    "SELECT c.id, domain FROM ",
    wanted!(),
    " JOIN cases c ON c.shard = w.shard AND c.id = w.id \
     UNION SELECT c.id, c.domain FROM unnest($3::text[], $4::smallint[]) AS r(id, shard) \
     JOIN case_indices i ON i.shard = r.shard AND i.case_id = r.id \
     JOIN cases c ON c.shard = i.referenced_shard AND c.id = i.referenced_id"
);

/// Other cases that refer to the case `$1`.
pub(crate) const SELECT_REFERRING: &str =
    "SELECT case_id FROM case_indices WHERE referenced_id = $1 AND case_id <> $1 ORDER BY case_id LIMIT 3";

/// Open extensions of the closed ones among the cases `$1`, of the cases `$3`, and of those extensions in turn.
pub(crate) const SELECT_EXTENSIONS: &str = concat!(
    "WITH RECURSIVE chain (id) AS ((SELECT unnest($3::text[]) UNION SELECT c.id FROM ",
    wanted!(),
    " JOIN cases c ON c.shard = w.shard AND c.id = w.id AND c.closed) \
     UNION SELECT i.case_id FROM chain JOIN case_indices i ON i.referenced_id = chain.id AND i.relationship = 'extension' \
     JOIN cases c ON c.shard = i.shard AND c.id = i.case_id AND NOT c.closed AND NOT c.deleted) SELECT id FROM chain"
);

/// Transactions of cases with the state of their forms, in the order they were written.
pub(crate) const SELECT_TRANSACTIONS: &str = concat!(
    "SELECT t.case_id, t.form_id, t.type, t.server_date, t.client_date, t.sync_log_id, t.revoked, f.state, t.blocks, f.user_id FROM ",
    wanted!(),
    " JOIN case_transactions t ON t.shard = w.shard AND t.case_id = w.id \
     LEFT JOIN forms f ON f.shard = t.form_shard AND f.id = t.form_id ORDER BY t.case_id, t.server_date, t.written"
);

fn damaged(problem: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::damaged("cases", problem)
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, DatabaseError> {
    serde_json::from_str(text).map_err(damaged)
}

fn case_id(row: &Row, column: usize) -> Result<CaseId, DatabaseError> {
    CaseId::new(row.try_get(column)?).map_err(damaged)
}

/// A case of a row of `case_columns!`, without its indices.
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn case(row: &Row) -> Result<CaseState, DatabaseError> {
    let id = case_id(row, 0)?;
    let domain = DomainId::new(row.try_get(1)?).map_err(damaged)?;
    Ok(CaseState {
        case_type: row.try_get(2)?,
        name: row.try_get(3)?,
        owner_id: row.try_get(4)?,
        external_id: row.try_get(5)?,
        location_id: row.try_get(6)?,
        opened_on: row.try_get(7)?,
        opened_by: row.try_get(8)?,
        modified_on: row.try_get(9)?,
        modified_by: row.try_get(10)?,
        server_modified_on: row.try_get(11)?,
        closed: row.try_get(12)?,
        closed_on: row.try_get(13)?,
        closed_by: row.try_get(14)?,
        deleted: row.try_get(15)?,
        deleted_on: row.try_get(16)?,
        deletion_id: row.try_get(17)?,
        properties: json(row.try_get(18)?)?,
        xform_ids: json(row.try_get(19)?)?,
        attachments: json(row.try_get(21)?)?,
        ..CaseState::new(id, domain)
    })
}

/// The case and index of a row of [`SELECT_INDICES`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn index(row: &Row) -> Result<(CaseId, CaseIndexState), DatabaseError> {
    let relationship: &str = row.try_get(4)?;
    let index = CaseIndexState {
        identifier: row.try_get(1)?,
        referenced_type: row.try_get(2)?,
        referenced_id: row.try_get(3)?,
        relationship: Relationship::from_name(relationship).ok_or_else(|| damaged(relationship))?,
    };
    Ok((case_id(row, 0)?, index))
}

/// Prepared statements of this file, and reading with them.
#[derive(Clone)]
pub(crate) struct Read {
    /// [`SELECT`].
    pub cases: Statement,
    /// [`SELECT_INDICES`].
    pub indices: Statement,
    /// [`SELECT_TARGETS`].
    pub targets: Statement,
}

impl Read {
    /// Cases with their indices.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn cases(
        &self,
        client: &Client,
        wanted: &Keys<'_>,
    ) -> Result<BTreeMap<CaseId, CaseState>, DatabaseError> {
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let parameters = wanted.parameters();
        let (rows, indices) =
            futures::try_join!(client.query(&self.cases, &parameters), client.query(&self.indices, &parameters))?;
        let mut cases = BTreeMap::new();
        for row in &rows {
            let case = case(row)?;
            cases.insert(case.case_id.clone(), case);
        }
        for row in &indices {
            let (id, index) = index(row)?;
            if let Some(case) = cases.get_mut(&id) {
                case.indices.push(index);
            }
        }
        Ok(cases)
    }

    /// Domains of cases, and of the cases that `referring` ones refer to.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn targets(
        &self,
        client: &Client,
        wanted: &Keys<'_>,
        referring: &Keys<'_>,
    ) -> Result<HashMap<CaseId, DomainId>, DatabaseError> {
        if wanted.is_empty() && referring.is_empty() {
            return Ok(HashMap::new());
        }
        let ([ids, shards], [referring, their_shards]) = (wanted.parameters(), referring.parameters());
        let rows = client.query(&self.targets, &[ids, shards, referring, their_shards]).await?;
        rows.iter().map(|row| Ok((case_id(row, 0)?, DomainId::new(row.try_get(1)?).map_err(damaged)?))).collect()
    }
}

/// Ids of a domain's cases behind `after`, in the order of their shards.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn ids(
    client: &Client,
    domain: &DomainId,
    after: Option<&CaseId>,
    limit: u32,
) -> Result<Vec<CaseId>, DatabaseError> {
    let sql = "SELECT id FROM cases WHERE domain = $1 AND (shard, id) > ($2, $3) ORDER BY shard, id LIMIT $4";
    let (shard, after) = after.map_or((-1, ""), |id| (document_shard(id.as_str()), id.as_str()));
    let rows = client
        .query_typed(
            sql,
            &[
                (&domain.as_str(), Type::TEXT),
                (&shard, Type::INT2),
                (&after, Type::TEXT),
                (&i64::from(limit), Type::INT8),
            ],
        )
        .await?;
    rows.iter().map(|row| case_id(row, 0)).collect()
}

/// The case and transaction of a row of [`SELECT_TRANSACTIONS`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn transaction(row: &Row) -> Result<(CaseId, StoredTransaction), DatabaseError> {
    let form_id: Option<&str> = row.try_get(1)?;
    let state: Option<i16> = row.try_get(7)?;
    let blocks: Option<&str> = row.try_get(8)?;
    let transaction = StoredTransaction {
        form_id: form_id.map(FormId::new).transpose().map_err(damaged)?,
        user_id: row.try_get(9)?,
        kind: TransactionKind(row.try_get(2)?),
        server_date: row.try_get(3)?,
        client_date: row.try_get(4)?,
        sync_log_id: row.try_get(5)?,
        revoked: row.try_get(6)?,
        form_normal: state.is_some_and(|state| i32::from(state) == FormState::Normal.bits()),
        blocks: blocks.map(json).transpose()?.unwrap_or_default(),
    };
    Ok((case_id(row, 0)?, transaction))
}
