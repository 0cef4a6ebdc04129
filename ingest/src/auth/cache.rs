//! What was verified lately: by keyed hash, bounded, dropped when the account changes.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::{
    id::DomainId,
    port::{Credentials, Principal},
};
use sha2::{Digest, Sha256};

/// Most credentials remembered.
const CAPACITY: usize = 20_000;

/// Identifies credentials without holding them.
pub(super) type Key = [u8; 32];

#[derive(Debug)]
struct Verified {
    account_id: String,
    principal: Principal,
    /// Microseconds since 1970 UTC.
    until: i64,
}

#[derive(Debug, Default)]
struct State {
    verified: HashMap<Key, Verified>,
    /// Grows with every forgetting: what was looked up before is not remembered afterwards.
    generation: u64,
}

/// Remembers verified credentials for a while.
pub(super) struct VerifiedCache {
    /// Random for each process: the keys are useless elsewhere.
    secret: [u8; 32],
    /// Microseconds.
    lifetime: i64,
    /// A lock because every request looks once and few write; never held over an await.
    state: Mutex<State>,
}

impl std::fmt::Debug for VerifiedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifiedCache").field("entries", &self.state.lock().verified.len()).finish_non_exhaustive()
    }
}

impl VerifiedCache {
    /// Remembers for `seconds`.
    pub(super) fn new(seconds: u64) -> Self {
        let lifetime = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        Self { secret: rand::random(), lifetime, state: Mutex::default() }
    }

    /// The key of credentials in a domain.
    pub(super) fn key(&self, domain: &DomainId, credentials: &Credentials) -> Key {
        let (kind, name, secret) = match credentials {
            Credentials::Password { username, password } => (0_u8, username.as_str(), &password.0),
            Credentials::ApiKey { username, key } => (1, username.as_str(), &key.0),
            Credentials::Token(token) => (2, "", &token.0),
            Credentials::Digest(answer) => (3, answer.nonce.as_str(), &answer.response.0),
        };
        let mut hash = Sha256::new_with_prefix(self.secret);
        hash.update([kind]);
        for part in [domain.as_str(), name, secret.as_str()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().into()
    }

    /// Who these credentials were verified for, if that is recent. `now` is in microseconds since 1970 UTC.
    pub(super) fn get(&self, key: &Key, now: i64) -> Option<Principal> {
        let state = self.state.lock();
        state.verified.get(key).filter(|verified| now < verified.until).map(|verified| verified.principal.clone())
    }

    /// To be passed to [`Self::put`]: taken before the account is read.
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Remembers, unless some account changed since `generation`.
    pub(super) fn put(&self, key: Key, account_id: String, principal: Principal, now: i64, generation: u64) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        if state.verified.len() >= CAPACITY {
            state.verified.retain(|_, verified| now < verified.until);
        }
        if state.verified.len() >= CAPACITY {
            state.verified.clear();
        }
        let until = now.saturating_add(self.lifetime);
        state.verified.insert(key, Verified { account_id, principal, until });
    }

    /// Forgets an account.
    pub(super) fn forget(&self, account_id: &str) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.verified.retain(|_, verified| verified.account_id != account_id);
    }
}

#[cfg(test)]
mod tests {
    use schemas::{id::UserId, port::Secret};

    use super::*;

    fn password(text: &str) -> Credentials {
        Credentials::Password { username: "u".to_owned(), password: Secret(text.to_owned()) }
    }

    #[test]
    fn remembers_briefly_and_forgets_on_change() {
        let cache = VerifiedCache::new(60);
        let domain = DomainId::new("demo").unwrap();
        let principal = Principal {
            domain: domain.clone(),
            user_id: UserId::new("id").unwrap(),
            username: "u".to_owned(),
            permissions: Vec::new(),
        };
        let key = cache.key(&domain, &password("right"));
        assert_ne!(key, cache.key(&domain, &password("wrong")));
        assert_ne!(key, cache.key(&DomainId::new("other").unwrap(), &password("right")));
        cache.put(key, "id".to_owned(), principal.clone(), 0, cache.generation());
        assert!(cache.get(&key, 59_999_999).is_some());
        assert!(cache.get(&key, 60_000_000).is_none());
        let before = cache.generation();
        cache.forget("id");
        assert!(cache.get(&key, 1).is_none());
        cache.put(key, "id".to_owned(), principal, 0, before);
        assert!(cache.get(&key, 1).is_none(), "a verification from before the change is not remembered");
    }
}
