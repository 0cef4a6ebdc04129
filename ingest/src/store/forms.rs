//! Rows of forms: statements and mapping.

use schemas::id::{DomainId, FormId};
use tokio_postgres::Row;

use crate::{
    error::DatabaseError,
    submit::{dedupe::StoredForm, document::FormState},
};

/// Forms by id, in any domain.
pub(crate) const SELECT: &str =
    "SELECT id, domain, xmlns, state, xml_md5, processed, received_on, case_ids FROM forms WHERE id = ANY($1)";

/// Documents of forms by id.
pub(crate) const SELECT_DOCUMENTS: &str = "SELECT id, document_zstd FROM forms WHERE id = ANY($1)";

fn damaged(problem: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::damaged("forms", problem)
}

/// The form of a row of [`SELECT`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn stored(row: &Row) -> Result<(FormId, StoredForm), DatabaseError> {
    let id = FormId::new(row.try_get(0)?).map_err(damaged)?;
    let bits: i16 = row.try_get(3)?;
    let (state, _deleted) =
        FormState::from_bits(i32::from(bits)).ok_or_else(|| damaged(format!("{id} has state {bits}")))?;
    let md5: &[u8] = row.try_get(4)?;
    let case_ids: &str = row.try_get(7)?;
    let form = StoredForm {
        domain: DomainId::new(row.try_get(1)?).map_err(damaged)?,
        xmlns: row.try_get(2)?,
        state,
        xml_md5: md5.try_into().map_err(damaged)?,
        processed: row.try_get(5)?,
        received_on: row.try_get(6)?,
        case_ids: serde_json::from_str(case_ids).map_err(damaged)?,
        in_group: false,
    };
    Ok((id, form))
}
