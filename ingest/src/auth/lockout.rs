//! Repeated failures close a name for a while: a guesser gets some tries in each window, not thousands.
//!
//! What was verified lately is not looked at here, so nobody can lock a phone out that signed in before.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::id::DomainId;

/// Failures in a window after which a name is closed.
const FAILURES: u32 = 10;
/// How long failures are counted together, and how long a name stays closed, in microseconds.
const WINDOW: i64 = 300_000_000;
/// Most names remembered, and characters of each.
const CAPACITY: usize = 20_000;
const NAME_CHARS: usize = 255;

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: i64,
    count: u32,
}

/// Counts failures by domain and name.
#[derive(Debug, Default)]
pub(super) struct Lockout {
    /// A lock because failures are rare; never held over an await.
    failures: Mutex<HashMap<(DomainId, String), Failures>>,
}

fn key(domain: &DomainId, username: &str) -> (DomainId, String) {
    (domain.clone(), username.chars().take(NAME_CHARS).collect())
}

impl Lockout {
    /// Seconds until the next attempt of a name is looked at; none if it may be now. `now` is in microseconds since 1970 UTC.
    pub(super) fn closed(&self, domain: &DomainId, username: &str, now: i64) -> Option<u64> {
        let failures = self.failures.lock();
        let failed = failures.get(&key(domain, username))?;
        let left = failed.since.saturating_add(WINDOW).saturating_sub(now);
        (failed.count >= FAILURES && left > 0).then(|| u64::try_from(left / 1_000_000 + 1).unwrap_or(1))
    }

    /// Counts a failure.
    pub(super) fn failed(&self, domain: &DomainId, username: &str, now: i64) {
        let mut failures = self.failures.lock();
        if failures.len() >= CAPACITY {
            failures.retain(|_, failed| now.saturating_sub(failed.since) < WINDOW);
        }
        if failures.len() >= CAPACITY {
            failures.clear();
        }
        let failed = failures.entry(key(domain, username)).or_insert(Failures { since: now, count: 0 });
        if now.saturating_sub(failed.since) >= WINDOW {
            *failed = Failures { since: now, count: 0 };
        }
        failed.count += 1;
    }

    /// Forgets the failures of a name after it succeeded.
    pub(super) fn succeeded(&self, domain: &DomainId, username: &str) {
        self.failures.lock().remove(&key(domain, username));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_closes_after_failures_and_opens_again() {
        let (lockout, domain) = (Lockout::default(), DomainId::new("demo").unwrap());
        for at in 0..10 {
            assert_eq!(lockout.closed(&domain, "u", at), None);
            lockout.failed(&domain, "u", at);
        }
        assert_eq!(lockout.closed(&domain, "u", 1_000_000), Some(300));
        assert_eq!(lockout.closed(&domain, "other", 1_000_000), None);
        assert_eq!(lockout.closed(&domain, "u", WINDOW), None);
        lockout.succeeded(&domain, "u");
        assert_eq!(lockout.closed(&domain, "u", 1_000_000), None);
    }
}
