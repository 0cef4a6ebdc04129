//! Rows of forms: statements and mapping.

use schemas::id::{DomainId, FormId};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{
    error::DatabaseError,
    store::keys::wanted,
    submit::{Attachment, dedupe::StoredForm, document::FormState},
};

/// Forms by id, in any domain.
pub(crate) const SELECT: &str = concat!(
    "SELECT f.id, domain, xmlns, state, xml_md5, processed, received_on, case_ids, problem, deleted_on, deletion_id FROM ",
    wanted!(),
    " JOIN forms f ON f.shard = w.shard AND f.id = w.id"
);

/// Files of forms by id.
pub(crate) const SELECT_FILES: &str = concat!(
    "SELECT form_id, name, key::text, content_type, content_length FROM ",
    wanted!(),
    " JOIN attachments a ON a.shard = w.shard AND a.form_id = w.id"
);

/// Documents of forms by id.
pub(crate) const SELECT_DOCUMENTS: &str =
    concat!("SELECT f.id, document_zstd FROM ", wanted!(), " JOIN forms f ON f.shard = w.shard AND f.id = w.id");

fn damaged(problem: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::damaged("forms", problem)
}

/// The form and file of a row of [`SELECT_FILES`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn file(row: &Row) -> Result<(FormId, Attachment), DatabaseError> {
    let length: i64 = row.try_get(4)?;
    let file = Attachment {
        name: row.try_get(1)?,
        content_type: row.try_get(3)?,
        length: usize::try_from(length).map_err(damaged)?,
        key: Uuid::parse_str(row.try_get(2)?).map_err(damaged)?,
        inline_zstd: None,
    };
    Ok((FormId::new(row.try_get(0)?).map_err(damaged)?, file))
}

/// The form of a row of [`SELECT`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn stored(row: &Row) -> Result<(FormId, StoredForm), DatabaseError> {
    let id = FormId::new(row.try_get(0)?).map_err(damaged)?;
    let bits: i16 = row.try_get(3)?;
    let (state, deleted) =
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
        problem: row.try_get(8)?,
        deleted: match deleted {
            true => Some((
                row.try_get::<_, Option<i64>>(9)?.unwrap_or_default(),
                row.try_get::<_, Option<String>>(10)?.unwrap_or_default(),
            )),
            false => None,
        },
        case_ids: serde_json::from_str(case_ids).map_err(damaged)?,
        in_group: false,
    };
    Ok((id, form))
}
