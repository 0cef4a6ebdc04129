//! Rows of ledger values and ledger transactions: statements and mapping.

use schemas::id::{CaseId, FormId};
use tokio_postgres::Row;

use crate::{
    casexml::ledger::{LedgerKey, LedgerKind},
    error::DatabaseError,
    store::keys::wanted,
    submit::ledger::{LedgerRow, LedgerValue},
};

/// Values of the ledgers of cases.
pub(crate) const SELECT: &str = concat!(
    "SELECT case_id, section_id, entry_id, balance, last_modified, last_form_id FROM ",
    wanted!(),
    " JOIN ledger_values v ON v.shard = w.shard AND v.case_id = w.id"
);

/// Transactions of the ledgers of cases, in the order they were written.
pub(crate) const SELECT_ROWS: &str = concat!(
    "SELECT case_id, section_id, entry_id, form_id, type, server_date, report_date, quantity, delta, updated_balance, \
     user_defined_type, number FROM ",
    wanted!(),
    " JOIN ledger_transactions t ON t.shard = w.shard AND t.case_id = w.id ORDER BY case_id, written, number"
);

fn damaged(problem: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::damaged("ledger_values", problem)
}

fn key(row: &Row) -> Result<LedgerKey, DatabaseError> {
    Ok(LedgerKey {
        case_id: CaseId::new(row.try_get(0)?).map_err(damaged)?,
        section_id: row.try_get(1)?,
        entry_id: row.try_get(2)?,
    })
}

/// The ledger of a row of [`SELECT`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn value(row: &Row) -> Result<(LedgerKey, LedgerValue), DatabaseError> {
    let form_id: Option<&str> = row.try_get(5)?;
    let value = LedgerValue {
        balance: row.try_get(3)?,
        last_modified: row.try_get(4)?,
        last_form_id: form_id.map(FormId::new).transpose().map_err(damaged)?,
    };
    Ok((key(row)?, value))
}

/// The transaction of a row of [`SELECT_ROWS`].
///
/// # Errors
/// [`DatabaseError::Damaged`] if the row does not hold what this release writes.
pub(crate) fn transaction(row: &Row) -> Result<LedgerRow, DatabaseError> {
    let kind: i16 = row.try_get(4)?;
    Ok(LedgerRow {
        key: key(row)?,
        form_id: FormId::new(row.try_get(3)?).map_err(damaged)?,
        kind: LedgerKind::from_bits(kind).ok_or_else(|| damaged(format!("transaction type {kind}")))?,
        server_date: row.try_get(5)?,
        report_date: row.try_get(6)?,
        quantity: row.try_get(7)?,
        delta: row.try_get(8)?,
        updated_balance: row.try_get(9)?,
        user_defined_type: row.try_get(10)?,
        number: row.try_get(11)?,
    })
}
