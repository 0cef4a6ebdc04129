//! Who is calling: passwords, API keys, and a short memory of what was verified.
//!
//! A password costs some milliseconds of processor time, on purpose; so verified credentials are remembered for a minute
//! under a keyed hash, and forgotten at once when the account changes. Source: architecture D15, forms-and-cases.md §2.

mod cache;
pub(crate) mod password;

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{
    id::{DomainId, UserId},
    port::{AuthError, Authenticator, Clock, Credentials, Permission, Principal},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio_postgres::types::Type;

use self::cache::{Key, VerifiedCache};
use crate::{
    error::DatabaseError,
    store::pool::Pool,
    submit::directory::{WORKER_SUFFIX, worker_login},
};

/// Passwords verified at the same time; more would only take processors from everything else.
const VERIFIERS: usize = 2;

/// Checks credentials against the account tables.
#[derive(Debug)]
pub(crate) struct AccountAuthenticator {
    pool: Pool,
    cache: VerifiedCache,
    verifiers: Semaphore,
    clock: Arc<dyn Clock>,
}

/// An account that a name may mean.
struct Candidate {
    id: String,
    username: String,
    password_hash: Option<String>,
    permissions: Vec<String>,
}

/// What came of a verification.
enum Verified {
    /// The credentials are right.
    Now(Candidate),
    /// Another caller's verification of the same credentials came first.
    Before(Principal),
    /// They are not.
    Wrong,
}

impl AccountAuthenticator {
    /// Over the account tables, remembering verified credentials for `seconds`.
    pub(crate) fn new(pool: Pool, clock: Arc<dyn Clock>, seconds: u64) -> Self {
        Self { pool, cache: VerifiedCache::new(seconds), verifiers: Semaphore::new(VERIFIERS), clock }
    }

    /// Forgets what was verified for an account, after it changed.
    pub(crate) fn forget(&self, account_id: &str) {
        self.cache.forget(account_id);
    }

    /// The account that the credentials belong to, if they are right.
    async fn verify(
        &self,
        domain: &DomainId,
        credentials: &Credentials,
        key: &Key,
        now: i64,
    ) -> Result<Verified, DatabaseError> {
        let found = |candidate: Option<Candidate>| candidate.map_or(Verified::Wrong, Verified::Now);
        match credentials {
            Credentials::Password { username, password } => {
                let candidates = self.by_name(domain, username).await?;
                let stopping = |_| DatabaseError::Unavailable("the service is stopping".to_owned());
                let _permit = self.verifiers.acquire().await.map_err(stopping)?;
                // Callers that came together with the same credentials need one verification.
                if let Some(principal) = self.cache.get(key, now) {
                    return Ok(Verified::Before(principal));
                }
                let hashes = candidates.iter().map(|candidate| candidate.password_hash.clone()).collect();
                let right = password::matching(hashes, password.0.clone()).await;
                Ok(found(right.and_then(|at| candidates.into_iter().nth(at))))
            }
            Credentials::ApiKey { username, key } => Ok(found(self.by_key(domain, username, &key.0).await?)),
        }
    }

    async fn by_name(&self, domain: &DomainId, username: &str) -> Result<Vec<Candidate>, DatabaseError> {
        let client = self.pool.get().await?;
        let rows = client
            .query_typed(
                "SELECT a.id, a.username, a.password_hash, m.permissions FROM accounts a \
                 JOIN memberships m ON m.account_id = a.id AND m.domain = $1 \
                 WHERE a.username = ANY($2) AND a.is_active ORDER BY a.username",
                &[(&domain.as_str(), Type::TEXT), (&names(username, domain), Type::TEXT_ARRAY)],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Candidate {
                    id: row.try_get(0)?,
                    username: row.try_get(1)?,
                    password_hash: row.try_get(2)?,
                    permissions: row.try_get(3)?,
                })
            })
            .collect()
    }

    async fn by_key(&self, domain: &DomainId, username: &str, key: &str) -> Result<Option<Candidate>, DatabaseError> {
        let wanted = key_hash(key);
        let client = self.pool.get().await?;
        let row = client
            .query_typed_opt(
                "SELECT a.id, a.username, m.permissions, k.key_hash FROM api_keys k \
                 JOIN accounts a ON a.id = k.account_id \
                 JOIN memberships m ON m.account_id = a.id AND m.domain = $1 \
                 WHERE k.key_hash = $2 AND (k.domain IS NULL OR k.domain = $1) AND a.username = ANY($3) AND a.is_active",
                &[
                    (&domain.as_str(), Type::TEXT),
                    (&wanted.as_slice(), Type::BYTEA),
                    (&names(username, domain), Type::TEXT_ARRAY),
                ],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let stored: &[u8] = row.try_get(3)?;
        if !bool::from(stored.ct_eq(&wanted)) {
            return Ok(None);
        }
        Ok(Some(Candidate {
            id: row.try_get(0)?,
            username: row.try_get(1)?,
            password_hash: None,
            permissions: row.try_get(2)?,
        }))
    }
}

/// SHA-256 of an API key, as it is stored.
pub(crate) fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The account names that a caller's name may mean: itself, and a mobile worker's name with its domain.
fn names(username: &str, domain: &DomainId) -> Vec<String> {
    let mut names = vec![username.to_owned()];
    let at_home = |rest: &str| rest == domain.as_str() || rest.strip_suffix(WORKER_SUFFIX) == Some(domain.as_str());
    if username.split_once('@').is_some_and(|(_, rest)| at_home(rest)) {
        names.push(worker_login(username, domain));
    }
    names.dedup();
    names
}

/// Names of permissions in the account tables.
pub(crate) const PERMISSIONS: [(Permission, &str); 4] = [
    (Permission::Submit, "submit"),
    (Permission::ReadData, "read_data"),
    (Permission::EditReports, "edit_reports"),
    (Permission::EditUsers, "edit_users"),
];

#[async_trait]
impl Authenticator for AccountAuthenticator {
    async fn authenticate(&self, domain: &DomainId, credentials: &Credentials) -> Result<Principal, AuthError> {
        let key = self.cache.key(domain, credentials);
        let now = self.clock.now_micros();
        if let Some(principal) = self.cache.get(&key, now) {
            return Ok(principal);
        }
        let generation = self.cache.generation();
        let refused = || AuthError::Refused { domain: domain.to_string() };
        let verified = self.verify(domain, credentials, &key, now).await;
        let account = match verified.map_err(|error| AuthError::Unavailable(error.to_string()))? {
            Verified::Now(account) => account,
            Verified::Before(principal) => return Ok(principal),
            Verified::Wrong => return Err(refused()),
        };
        let named =
            |name: &String| PERMISSIONS.iter().find(|(_, known)| known == name).map(|(permission, _)| *permission);
        let principal = Principal {
            domain: domain.clone(),
            user_id: UserId::new(&account.id).map_err(|_| refused())?,
            username: account.username,
            permissions: account.permissions.iter().filter_map(named).collect(),
        };
        self.cache.put(key, account.id, principal.clone(), now, generation);
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_name_may_be_short_and_only_of_this_domain() {
        let domain = DomainId::new("demo").unwrap();
        for (name, expected) in [
            ("admin@demo", vec!["admin@demo", "admin@demo.commcarehq.org"]),
            ("w@demo.commcarehq.org", vec!["w@demo.commcarehq.org"]),
            ("w@other.commcarehq.org", vec!["w@other.commcarehq.org"]),
            ("someone@example.org", vec!["someone@example.org"]),
        ] {
            assert_eq!(names(name, &domain), expected);
        }
    }
}
