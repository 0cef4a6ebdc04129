//! Puts a case's forms into the order in which the phone made them, where they arrived in another.
//!
//! In: all transactions of a case. Out: whether, and in what order, they are to be replayed; [`repair`] does it within the
//! record of the form that arrived late. Only for domains that ask for it. Never: reads the database.
//!
//! Source: forms-and-cases.md §15.4.

use std::{cmp::Ordering, collections::BTreeMap};

use schemas::id::{CaseId, DomainId};
use serde_json::json;

use super::{
    apply::TransactionKind,
    process::put_cases,
    rebuild::{Rebuild, StoredTransaction, replay_in_order},
    world::{Place, RecordDraft, World},
};
use crate::error::DatabaseError;

/// Server dates that are further apart say more than any phone's clock: 12 hours, in microseconds.
const APART: u64 = 12 * 3600 * 1_000_000;

/// What the order of a case's transactions asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Order<'a> {
    /// Nothing: they arrived as they were made.
    Kept,
    /// Nothing can be done: the first would not be the one that makes the case.
    NoCreate,
    /// A replay in this order.
    Replay(Vec<&'a StoredTransaction>),
}

/// Compares the order of arrival with the phone's, from the newest transaction on that makes or recomputes the case.
/// `rows` are all transactions of the case, `xform_ids` its forms in the order in which they were applied.
#[must_use]
pub fn order<'a>(rows: &'a [StoredTransaction], xform_ids: &[String]) -> Order<'a> {
    let mut arrived: Vec<&StoredTransaction> = rows.iter().collect();
    arrived.sort_by_key(|row| row.server_date);
    let begins = |row: &&StoredTransaction| {
        !row.kind.contains(TransactionKind::FORM) || row.kind.contains(TransactionKind::CASE_CREATE)
    };
    let newest = arrived.iter().rposition(begins).unwrap_or_default();
    if arrived.get(newest..).unwrap_or_default().is_sorted_by_key(|row| client_date(row)) {
        return Order::Kept;
    }
    // Rebuilds are nobody's: by the server's dates they would keep apart the forms before and behind them.
    arrived.retain(|row| row.form_id.is_some());
    let sorted = sorted(arrived, &|a, b| compare(a, b, xform_ids));
    match sorted.first() {
        Some(first) if first.kind.contains(TransactionKind::CASE_CREATE) => Order::Replay(sorted),
        _ => Order::NoCreate,
    }
}

fn client_date(row: &StoredTransaction) -> i64 {
    row.client_date.unwrap_or(row.server_date)
}

/// The contract's comparison of two forms' rows. It is no total order: whether two rows go by the phone's dates depends on their distance.
fn compare(a: &StoredTransaction, b: &StoredTransaction, xform_ids: &[String]) -> Ordering {
    if a.user_id != b.user_id {
        return a.server_date.cmp(&b.server_date);
    }
    if a.form_id == b.form_id {
        return rank(a.kind).cmp(&rank(b.kind));
    }
    if a.server_date.abs_diff(b.server_date) > APART {
        return a.server_date.cmp(&b.server_date);
    }
    let place = |row: &StoredTransaction| {
        let known = |id: &String| row.form_id.as_ref().is_some_and(|form| form.as_str() == id);
        xform_ids.iter().position(known).unwrap_or(usize::MAX)
    };
    let key = |row: &StoredTransaction| (client_date(row), place(row), rank(row.kind));
    key(a).cmp(&key(b))
}

/// Order of the types: create, index, close, attachment, ledger, then the others.
fn rank(kind: TransactionKind) -> usize {
    const TYPES: [TransactionKind; 5] = [
        TransactionKind::CASE_CREATE,
        TransactionKind::CASE_INDEX,
        TransactionKind::CASE_CLOSE,
        TransactionKind::CASE_ATTACHMENT,
        TransactionKind::LEDGER,
    ];
    TYPES.iter().position(|bit| kind.contains(*bit)).unwrap_or(TYPES.len())
}

/// Stable binary insertion, for a comparison that the library's sort may panic on. What is in order already is not looked
/// at again.
fn sorted<T: Copy>(mut rows: Vec<T>, compare: &dyn Fn(T, T) -> Ordering) -> Vec<T> {
    let in_order = rows.windows(2).take_while(|pair| !matches!(pair, [a, b] if compare(*b, *a).is_lt())).count();
    for at in in_order + 1..rows.len() {
        let row = rows.remove(at);
        let (before, _) = rows.split_at(at);
        let to = before.partition_point(|other| compare(row, *other).is_ge());
        rows.insert(to, row);
    }
    rows
}

/// Replays those of a form's cases whose forms arrived out of order. `at` is when the form was received, `place` its
/// document's.
///
/// # Errors
/// [`DatabaseError::Damaged`] if a case cannot be written as JSON, which does not happen.
pub(super) fn repair(
    world: &mut World,
    draft: &mut RecordDraft,
    domain: &DomainId,
    cases: &[CaseId],
    at: i64,
    place: Place,
) -> Result<(), DatabaseError> {
    let mut states = BTreeMap::new();
    for id in cases {
        let (Some(rows), Some(case)) = (world.transactions.get(id), world.cases.get(id)) else { continue };
        match order(rows, &case.xform_ids) {
            Order::Kept => {}
            Order::NoCreate => {
                tracing::warn!(%domain, case_id = %id, "forms arrived out of order and stay so: none of the first makes the case");
            }
            Order::Replay(rows) => {
                let rebuild = Rebuild { domain, at, unarchiving: None };
                states.insert(id.clone(), replay_in_order(id, Some(case), &rows, &rebuild));
            }
        }
    }
    let details = json!({"reason": "client_date_reconciliation"}).to_string();
    for id in states.keys() {
        world.put_rebuild(domain, id, TransactionKind::REBUILD_WITH_REASON, at, &details, place);
    }
    put_cases(world, draft, states)
}

#[cfg(test)]
mod tests;
