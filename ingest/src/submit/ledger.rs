//! Ledger values and the transactions that made them.
//!
//! In: present values and a form's [`LedgerChange`]s. Out: the values afterwards and one [`LedgerRow`] per change; or, after
//! an edit or an archived form, the values as the rows that are left make them. Pure.
//! Source: forms-and-cases.md §11.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{
    id::{DomainId, FormId},
    time::format_micros,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::casexml::ledger::{LedgerChange, LedgerKey, LedgerKind};

/// `document_type` of a ledger value in change metadata.
pub const DOC_TYPE: &str = "ledger";

/// What there is of an entry. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerValue {
    /// Stock on hand.
    pub balance: i64,
    /// When the server received the last form that changed it.
    pub last_modified: i64,
    /// That form.
    pub last_form_id: Option<FormId>,
}

/// One transaction of a ledger. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// The ledger.
    pub key: LedgerKey,
    /// The form.
    pub form_id: FormId,
    /// Counted or moved.
    pub kind: LedgerKind,
    /// The form's `received_on`.
    pub server_date: i64,
    /// The block's date.
    pub report_date: i64,
    /// As the form says it.
    pub quantity: i64,
    /// What it changed.
    pub delta: i64,
    /// The value afterwards.
    pub updated_balance: i64,
    /// The form's own name for the kind of transfer.
    pub user_defined_type: Option<String>,
    /// Place among the form's ledger changes.
    pub number: i32,
}

impl LedgerRow {
    /// Applies the row to a balance.
    fn apply(&mut self, balance: i64) -> i64 {
        self.delta = match self.kind {
            LedgerKind::Balance => self.quantity.saturating_sub(balance),
            LedgerKind::Transfer => self.quantity,
        };
        self.updated_balance = balance.saturating_add(self.delta);
        self.updated_balance
    }
}

/// The rows of a form's changes, not applied yet.
#[must_use]
pub fn rows(changes: &[LedgerChange], form_id: &FormId, received_on: i64) -> Vec<LedgerRow> {
    let row = |(number, change): (i32, &LedgerChange)| LedgerRow {
        key: change.key.clone(),
        form_id: form_id.clone(),
        kind: change.kind,
        server_date: received_on,
        report_date: change.date.unwrap_or(received_on),
        quantity: change.quantity,
        delta: 0,
        updated_balance: 0,
        user_defined_type: change.user_defined_type.clone(),
        number,
    };
    (0..).zip(changes).map(row).collect()
}

/// Applies a form's rows in order to the values, which must hold every value that exists.
pub fn apply(values: &mut BTreeMap<LedgerKey, LedgerValue>, rows: &mut [LedgerRow]) {
    for row in rows {
        let balance = row.apply(values.get(&row.key).map_or(0, |value| value.balance));
        let value = LedgerValue { balance, last_modified: row.server_date, last_form_id: Some(row.form_id.clone()) };
        values.insert(row.key.clone(), value);
    }
}

/// Recomputes one ledger from all its rows, by report date; ties keep their order. `None` if no row is left.
pub fn replay(rows: &mut [LedgerRow]) -> Option<LedgerValue> {
    rows.sort_by_key(|row| row.report_date);
    let balance = rows.iter_mut().fold(0, |balance, row| row.apply(balance));
    let last = rows.last()?;
    Some(LedgerValue { balance, last_modified: last.server_date, last_form_id: Some(last.form_id.clone()) })
}

/// The document of a ledger value.
///
/// # Errors
/// None in practice: every value can be written as JSON.
pub fn ledger_document(
    key: &LedgerKey,
    value: &LedgerValue,
    domain: &DomainId,
) -> Result<Arc<RawValue>, serde_json::Error> {
    #[derive(Serialize)]
    struct Document<'a> {
        _id: String,
        domain: &'a DomainId,
        doc_type: &'static str,
        case_id: &'a str,
        section_id: &'a str,
        entry_id: &'a str,
        product_code: &'a str,
        balance: i64,
        last_modified: String,
        last_modified_form_id: Option<&'a FormId>,
    }
    let case_id = key.case_id.as_str();
    Ok(Arc::from(serde_json::value::to_raw_value(&Document {
        _id: format!("{case_id}/{}/{}", key.section_id, key.entry_id),
        domain,
        doc_type: "LedgerValue",
        case_id,
        section_id: &key.section_id,
        entry_id: &key.entry_id,
        product_code: &key.entry_id,
        balance: value.balance,
        last_modified: format_micros(value.last_modified),
        last_modified_form_id: value.last_form_id.as_ref(),
    })?))
}

#[cfg(test)]
mod tests {
    use schemas::id::CaseId;

    use super::*;

    fn change(kind: LedgerKind, quantity: i64, date: i64) -> LedgerChange {
        let key =
            LedgerKey { case_id: CaseId::new("c").unwrap(), section_id: "stock".to_owned(), entry_id: "p".to_owned() };
        LedgerChange { key, kind, quantity, date: Some(date), user_defined_type: None }
    }

    fn form(id: &str) -> FormId {
        FormId::new(id).unwrap()
    }

    #[test]
    fn balances_set_and_transfers_add() {
        let mut values = BTreeMap::new();
        let changes = [
            change(LedgerKind::Balance, 100, 1),
            change(LedgerKind::Transfer, -30, 2),
            change(LedgerKind::Balance, 50, 3),
        ];
        let mut rows = rows(&changes, &form("f"), 9);
        apply(&mut values, &mut rows);
        let seen: Vec<_> = rows.iter().map(|row| (row.delta, row.updated_balance)).collect();
        assert_eq!(seen, [(100, 100), (-30, 70), (-20, 50)]);
        assert_eq!(values.values().next().unwrap().balance, 50);
    }

    #[test]
    fn a_replay_goes_by_report_date() {
        let mut all = rows(&[change(LedgerKind::Transfer, 5, 20)], &form("late"), 1);
        all.extend(rows(&[change(LedgerKind::Balance, 10, 10)], &form("early"), 2));
        let value = replay(&mut all).unwrap();
        assert_eq!((value.balance, value.last_form_id), (15, Some(form("late"))));
        assert_eq!(all.iter().map(|row| row.updated_balance).collect::<Vec<_>>(), [10, 15]);
        assert_eq!(replay(&mut []), None);
    }
}
