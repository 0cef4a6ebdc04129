//! Computes a case from its transactions: after an edit, an archived form, or a request to rebuild.
//!
//! In: what is left of the case and all its transactions with their stored blocks. Out: the case as those forms make it.
//! Never: reads XML or the database; the caller writes the rebuild transaction itself.
//!
//! Source: forms-and-cases.md §15.2, §15.3.

use schemas::id::{CaseId, DomainId, FormId};

use super::apply::{CaseState, TransactionKind, apply_block};
use crate::casexml::CaseBlock;

/// One stored transaction of a case. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTransaction {
    /// The form; none for rebuilds.
    pub form_id: Option<FormId>,
    /// The form's user.
    pub user_id: Option<String>,
    /// Type bits.
    pub kind: TransactionKind,
    /// The form's `received_on`, or when the rebuild happened: the order of replay.
    pub server_date: i64,
    /// The phone's date.
    pub client_date: Option<i64>,
    /// Sync token of the submission.
    pub sync_log_id: Option<String>,
    /// True when the form was archived.
    pub revoked: bool,
    /// True when the form's state is normal.
    pub form_normal: bool,
    /// The blocks that the form applied to this case, in order.
    pub blocks: Vec<CaseBlock>,
}

impl StoredTransaction {
    /// True if the row counts in a replay (§15.2).
    #[must_use]
    pub const fn counts(&self) -> bool {
        self.kind.contains(TransactionKind::FORM) && !self.revoked && self.form_normal
    }
}

/// Why and when a case is rebuilt.
#[derive(Clone, Copy, Debug)]
pub struct Rebuild<'a> {
    /// Domain of the case.
    pub domain: &'a DomainId,
    /// Date of the rebuild transaction, microseconds since 1970 UTC; an edit's `edited_on`.
    pub at: i64,
    /// The form that is being unarchived, if that is the reason: its transaction does not prove that the case was
    /// deleted by someone.
    pub unarchiving: Option<&'a FormId>,
}

/// Replays a case. `transactions` may come in any order; ties of the server date keep theirs. For an edit the caller
/// leaves out the old body's row and adds one for the new body with the old `server_date`.
///
/// A case that a person deleted stays deleted: recognised, as upstream does, by effective transactions of a deleted case, and besides
/// by its deletion mark, so that archiving and unarchiving the only form of such a case does not revive it.
#[must_use]
pub fn replay(
    case_id: &CaseId,
    previous: Option<&CaseState>,
    transactions: &[StoredTransaction],
    rebuild: &Rebuild<'_>,
) -> CaseState {
    let mut rows: Vec<&StoredTransaction> = transactions.iter().collect();
    rows.sort_by_key(|row| row.server_date);
    replay_in_order(case_id, previous, &rows, rebuild)
}

/// Replays a case in the order of `rows`, among which those that do not count are passed over.
#[must_use]
pub(super) fn replay_in_order(
    case_id: &CaseId,
    previous: Option<&CaseState>,
    rows: &[&StoredTransaction],
    rebuild: &Rebuild<'_>,
) -> CaseState {
    let counting: Vec<&StoredTransaction> = rows.iter().copied().filter(|row| row.counts()).collect();
    let proves_deletion =
        |row: &&StoredTransaction| row.form_id.is_none() || row.form_id.as_ref() != rebuild.unarchiving;
    let deleted_by_someone = previous.is_some_and(|case| {
        case.deleted
            && (case.deleted_on.is_some() || case.deletion_id.is_some() || counting.iter().any(proves_deletion))
    });

    let mut case = reset(case_id, previous, rebuild.domain);
    for row in &counting {
        for block in &row.blocks {
            apply_block(&mut case, block, row.server_date);
        }
        if let Some(form_id) = &row.form_id {
            case.add_form(form_id);
        }
    }
    case.deleted = deleted_by_someone || counting.is_empty();
    case.modified_on = case.modified_on.or(Some(rebuild.at));
    case.server_modified_on = rebuild.at;
    case
}

/// The case before its first form: what replay does not recompute is kept, everything else starts empty.
fn reset(case_id: &CaseId, previous: Option<&CaseState>, domain: &DomainId) -> CaseState {
    CaseState {
        opened_by: Some(String::new()),
        closed_by: Some(String::new()),
        external_id: Some(String::new()),
        location_id: previous.and_then(|case| case.location_id.clone()),
        deleted_on: previous.and_then(|case| case.deleted_on),
        deletion_id: previous.and_then(|case| case.deletion_id.clone()),
        ..CaseState::new(case_id.clone(), domain.clone())
    }
}

#[cfg(test)]
mod tests;
