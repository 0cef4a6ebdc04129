//! What a group locks, and in which order.
//!
//! Advisory locks that last until the transaction ends, taken in one statement in ascending order of their numbers before
//! anything is read: two groups can wait for one another but never in a circle. A case that a form only refers to is locked
//! shared, so that siblings do not queue behind their common parent. Source: architecture D13, forms-and-cases.md §13.2.

use std::{collections::BTreeMap, hash::Hasher};

use schemas::id::{CaseId, DomainId, FormId};
use siphasher::sip::SipHasher24;

/// Takes the locks `$1`, shared where `$2` says so, in the order given.
pub(crate) const TAKE: &str = "SELECT CASE WHEN want.shared THEN pg_advisory_xact_lock_shared(want.key)::text \
     ELSE pg_advisory_xact_lock(want.key)::text END FROM unnest($1::bigint[], $2::boolean[]) AS want(key, shared)";

/// Takes the locks `$1` if all of them are free; false for each that is not.
pub(crate) const TRY: &str = "SELECT pg_try_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key";

/// Keys that tell Millrace's locks from each other on every process of an installation.
const HASH_KEYS: (u64, u64) = (0x6d69_6c6c, 0x7261_6365);

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

/// Locks to take, each once, in the only order in which they may be taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockSet(BTreeMap<i64, Mode>);

fn number(kind: u8, parts: &[&str]) -> i64 {
    let mut hasher = SipHasher24::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
    hasher.write_u8(kind);
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    i64::from_ne_bytes(hasher.finish().to_ne_bytes())
}

/// The lock number of a form.
pub(crate) fn form_key(id: &FormId) -> i64 {
    number(1, &[id.as_str()])
}

impl LockSet {
    /// A form id, over all domains.
    pub(crate) fn form(&mut self, id: &FormId) {
        self.0.insert(form_key(id), Mode::Exclusive);
    }

    /// A case that is going to change.
    pub(crate) fn case(&mut self, id: &CaseId) {
        self.0.insert(number(2, &[id.as_str()]), Mode::Exclusive);
    }

    /// A case that has to stay while another refers to it.
    pub(crate) fn referenced(&mut self, id: &CaseId) {
        self.0.entry(number(2, &[id.as_str()])).or_insert(Mode::Shared);
    }

    /// Users, locations and definitions of a domain, all at once: they are few and bulk imports name thousands.
    pub(crate) fn directory(&mut self, domain: &DomainId) {
        self.0.insert(number(3, &[domain.as_str()]), Mode::Exclusive);
    }

    /// The accounts of web users, all at once: they enter many domains, and their writes are rare.
    pub(crate) fn web_users(&mut self) {
        self.0.insert(number(4, &[]), Mode::Exclusive);
    }

    /// True if the case is locked for a change.
    pub(crate) fn holds_case(&self, id: &CaseId) -> bool {
        self.0.get(&number(2, &[id.as_str()])) == Some(&Mode::Exclusive)
    }

    /// Number of locks.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The locks' numbers in order, and which of them are shared: the parameters of [`TAKE`].
    pub(crate) fn parameters(&self) -> (Vec<i64>, Vec<bool>) {
        self.0.iter().map(|(key, mode)| (*key, *mode == Mode::Shared)).unzip()
    }

    /// The lock numbers of forms, for [`TRY`].
    pub(crate) fn form_keys<'a>(ids: impl Iterator<Item = &'a FormId>) -> Vec<i64> {
        ids.map(form_key).collect()
    }

    /// The lock numbers of cases, for [`TRY`].
    pub(crate) fn case_keys<'a>(ids: impl Iterator<Item = &'a CaseId>) -> Vec<i64> {
        ids.map(|id| number(2, &[id.as_str()])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_come_sorted_once_and_exclusive_wins() {
        let case = |id| CaseId::new(id).unwrap();
        let mut locks = LockSet::default();
        locks.referenced(&case("a"));
        locks.case(&case("a"));
        locks.case(&case("b"));
        locks.referenced(&case("b"));
        locks.referenced(&case("c"));
        locks.form(&FormId::new("a").unwrap());
        let (keys, shared) = locks.parameters();
        assert_eq!(keys.len(), 4);
        assert!(keys.is_sorted());
        assert_eq!(shared.iter().filter(|shared| **shared).count(), 1);
        assert!(locks.holds_case(&case("b")) && !locks.holds_case(&case("c")));
    }
}
