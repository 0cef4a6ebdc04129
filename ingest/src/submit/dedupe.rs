//! The same form id again: what becomes of the new form and of the stored one.
//!
//! Pure, but for [`fresh_id`], which draws random numbers. Source: forms-and-cases.md §12.

use schemas::id::{DomainId, FormId};
use uuid::Uuid;

use super::document::FormState;
use crate::shard::shard_of;

/// What is stored under a form id.
#[derive(Clone, Debug)]
pub(crate) struct StoredForm {
    /// Its domain.
    pub domain: DomainId,
    /// Its namespace.
    pub xmlns: String,
    /// What became of it.
    pub state: FormState,
    /// Of the received bytes.
    pub xml_md5: [u8; 16],
    /// True once its case changes were applied.
    pub processed: bool,
    /// Microseconds since 1970 UTC.
    pub received_on: i64,
    /// Why it is an error.
    pub problem: Option<String>,
    /// When and under which deletion it was deleted; microseconds since 1970 UTC.
    pub deleted: Option<(i64, String)>,
    /// Cases it touched.
    pub case_ids: Vec<schemas::id::CaseId>,
    /// True if it is being stored by the same group, so that its row is not in the database yet.
    pub in_group: bool,
}

/// What to do with a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The id is new: apply.
    New,
    /// The id is taken by another domain or another kind of form: apply under a fresh id.
    FreshId,
    /// The same bytes again.
    Duplicate,
    /// The same bytes of a form that was never applied: apply the stored one now, then keep this one as its duplicate.
    Reprocess,
    /// Other bytes in place of a form that was never applied: that one moves to a fresh id, this one is applied.
    Replace,
    /// Other bytes in place of a form that was applied.
    Edit,
}

impl Decision {
    /// True if the stored form's own row changes, and its present document is needed for it.
    pub(crate) const fn changes_stored_form(self) -> bool {
        matches!(self, Self::Reprocess | Self::Replace | Self::Edit)
    }

    /// True if cases are recomputed from their transactions.
    pub(crate) const fn replays(self) -> bool {
        matches!(self, Self::Reprocess | Self::Edit)
    }
}

/// Decides by what is stored under the form's id.
pub(crate) fn decide(stored: Option<&StoredForm>, domain: &DomainId, xmlns: &str, xml_md5: &[u8; 16]) -> Decision {
    let Some(old) = stored else { return Decision::New };
    let unprocessed = old.state == FormState::Error && !old.processed;
    if old.domain != *domain {
        Decision::FreshId
    } else if old.xml_md5 == *xml_md5 {
        if unprocessed { Decision::Reprocess } else { Decision::Duplicate }
    } else if old.xmlns != xmlns {
        Decision::FreshId
    } else if unprocessed {
        Decision::Replace
    } else {
        Decision::Edit
    }
}

/// A random id of the same shard as `id`, so that a form never moves between servers. Draws about a thousand times, which
/// takes a fraction of a millisecond.
pub(crate) fn fresh_id(id: &FormId) -> FormId {
    let shard = shard_of(id.as_str());
    let mut text = Uuid::encode_buffer();
    loop {
        let drawn = Uuid::new_v4();
        let candidate = drawn.hyphenated().encode_lower(&mut text);
        if shard_of(candidate) == shard
            && let Ok(fresh) = FormId::new(candidate)
        {
            return fresh;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_section_12() {
        let stored = |domain: &str, xmlns: &str, md5: u8, state, processed| StoredForm {
            domain: DomainId::new(domain).unwrap(),
            xmlns: xmlns.to_owned(),
            state,
            xml_md5: [md5; 16],
            processed,
            received_on: 0,
            problem: None,
            deleted: None,
            case_ids: Vec::new(),
            in_group: false,
        };
        use FormState::{Archived, Error, Normal};
        for (old, decision) in [
            (None, Decision::New),
            (Some(stored("other", "x", 1, Normal, true)), Decision::FreshId),
            (Some(stored("demo", "x", 1, Normal, true)), Decision::Duplicate),
            (Some(stored("demo", "x", 1, Archived, true)), Decision::Duplicate),
            (Some(stored("demo", "x", 1, Error, false)), Decision::Reprocess),
            (Some(stored("demo", "y", 2, Normal, true)), Decision::FreshId),
            (Some(stored("demo", "x", 2, Error, false)), Decision::Replace),
            (Some(stored("demo", "x", 2, Normal, true)), Decision::Edit),
        ] {
            let found = decide(old.as_ref(), &DomainId::new("demo").unwrap(), "x", &[1; 16]);
            assert_eq!(found, decision, "{old:?}");
        }
    }

    #[test]
    fn fresh_ids_stay_in_the_shard() {
        let id = FormId::new("3f0c").unwrap();
        let fresh = fresh_id(&id);
        assert_ne!(fresh, id);
        assert_eq!(shard_of(fresh.as_str()), shard_of("3f0c"));
    }
}
