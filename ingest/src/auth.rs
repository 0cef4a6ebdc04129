//! Who is calling: passwords, API keys, and a short memory of what was verified.
//!
//! A password costs some milliseconds of processor time, on purpose; so verified credentials are remembered for a minute
//! under a keyed hash, and forgotten at once when the account changes. Source: architecture D15, forms-and-cases.md §2.

mod cache;
pub(crate) mod digest;
mod lockout;
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
use tokio_postgres::{Row, types::Type};

use self::{
    cache::{Key, VerifiedCache},
    digest::{Challenge, Digests},
    lockout::Lockout,
};
use crate::{
    config::IngestConfig,
    domain::Domains,
    error::DatabaseError,
    store::{databases::Databases, pool::Pool},
    submit::directory::{WORKER_SUFFIX, worker_login},
};

/// Passwords verified at the same time; more would only take processors from everything else.
const VERIFIERS: usize = 2;

/// Checks credentials against the account tables.
#[derive(Debug)]
pub(crate) struct AccountAuthenticator {
    databases: Databases,
    domains: Arc<Domains>,
    cache: VerifiedCache,
    lockout: Lockout,
    digests: Digests,
    /// Whether what digest authentication needs of new passwords is kept.
    pub(crate) keeps_digests: bool,
    verifiers: Semaphore,
    clock: Arc<dyn Clock>,
}

/// An account that a name may mean.
struct Candidate {
    id: String,
    username: String,
    password_hash: Option<String>,
    digest_hash: Option<String>,
    permissions: Vec<String>,
    is_active: bool,
}

impl Candidate {
    /// The active account, of a row of id, name and permissions, that a random secret belongs to.
    fn holder(row: &Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: row.try_get(0)?,
            username: row.try_get(1)?,
            password_hash: None,
            digest_hash: None,
            permissions: row.try_get(2)?,
            is_active: true,
        })
    }

    fn is_inactive_worker(&self) -> bool {
        !self.is_active && self.username.ends_with(WORKER_SUFFIX)
    }
}

/// What came of a verification.
enum Verified {
    /// The credentials are right.
    Now(Candidate),
    /// Another caller's verification of the same credentials came first.
    Before(Principal),
    /// They are not.
    Wrong,
    /// They are of a mobile worker who is switched off.
    Inactive(String),
    /// They answer a challenge that is too old.
    Stale,
}

impl AccountAuthenticator {
    /// Over the account tables.
    ///
    /// # Errors
    /// [`DatabaseError`] if the installation's secret cannot be read.
    pub(crate) async fn open(
        databases: Databases,
        domains: Arc<Domains>,
        clock: Arc<dyn Clock>,
        config: &IngestConfig,
    ) -> Result<Self, DatabaseError> {
        let client = databases.control().get().await?;
        let row = client.query_typed_one("SELECT value FROM secrets WHERE name = 'digest'", &[]).await?;
        let digests = Digests::new(row.try_get(0)?);
        drop(client);
        let (cache, verifiers) = (VerifiedCache::new(config.credential_seconds), Semaphore::new(VERIFIERS));
        let (lockout, keeps_digests) = (Lockout::default(), config.digest);
        Ok(Self { databases, domains, cache, lockout, digests, keeps_digests, verifiers, clock })
    }

    /// What is kept of a new password for digest authentication, if anything is.
    pub(crate) fn digest_hash(&self, username: &str, password: &str) -> Option<String> {
        self.keeps_digests.then(|| digest::stored_hash(username, password))
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
        let found = |candidate: Option<Candidate>| match candidate {
            Some(candidate) if candidate.is_active => Verified::Now(candidate),
            Some(candidate) if candidate.is_inactive_worker() => Verified::Inactive(candidate.username),
            _ => Verified::Wrong,
        };
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
                // A phone shows why its worker is turned away, whichever password it still has (§2).
                let inactive = candidates.iter().find(|candidate| candidate.is_inactive_worker());
                let inactive = inactive.map(|candidate| candidate.username.clone());
                Ok(match (right.and_then(|at| candidates.into_iter().nth(at)), inactive) {
                    (None, Some(username)) => Verified::Inactive(username),
                    (candidate, _) => found(candidate),
                })
            }
            Credentials::ApiKey { username, key } => Ok(found(self.by_key(domain, username, &key.0).await?)),
            Credentials::Token(token) => Ok(found(self.by_token(domain, &token.0, now).await?)),
            Credentials::Digest(answer) => match self.digests.check(answer, now) {
                Challenge::Foreign => Ok(Verified::Wrong),
                Challenge::Stale => Ok(Verified::Stale),
                Challenge::Fresh => {
                    let candidates = self.by_name(domain, &answer.username).await?;
                    let proven = |candidate: &Candidate| {
                        candidate.digest_hash.as_ref().is_some_and(|hash| digest::proves(answer, hash))
                    };
                    Ok(found(candidates.into_iter().find(proven)))
                }
            },
        }
    }

    /// The databases that may hold an account: mobile workers are where their domain is, everyone else in the control
    /// database.
    async fn holders(&self, domain: &DomainId, workers: bool, others: bool) -> Result<Vec<Pool>, DatabaseError> {
        let mut holders = Vec::new();
        if workers {
            holders.extend(self.domains.home(domain).await?);
        }
        let control = self.databases.control();
        if others && !holders.iter().any(|home| home.is(control)) {
            holders.push(control.clone());
        }
        Ok(holders)
    }

    /// The databases that may hold an account of one of these names.
    async fn holders_of(&self, domain: &DomainId, names: &[String]) -> Result<Vec<Pool>, DatabaseError> {
        let is_worker = |name: &String| name.ends_with(WORKER_SUFFIX);
        self.holders(domain, names.iter().any(is_worker), !names.iter().all(is_worker)).await
    }

    async fn by_name(&self, domain: &DomainId, username: &str) -> Result<Vec<Candidate>, DatabaseError> {
        let names = names(username, domain);
        let mut rows = Vec::new();
        for holder in self.holders_of(domain, &names).await? {
            let found = holder
                .get()
                .await?
                .query_typed(
                    "SELECT a.id, a.username, a.password_hash, m.permissions, a.digest_hash, a.is_active FROM accounts a \
                     JOIN memberships m ON m.account_id = a.id AND m.domain = $1 \
                     WHERE a.username = ANY($2) ORDER BY a.username",
                    &[(&domain.as_str(), Type::TEXT), (&names, Type::TEXT_ARRAY)],
                )
                .await?;
            rows.extend(found);
        }
        rows.iter()
            .map(|row| {
                Ok(Candidate {
                    id: row.try_get(0)?,
                    username: row.try_get(1)?,
                    password_hash: row.try_get(2)?,
                    permissions: row.try_get(3)?,
                    digest_hash: row.try_get(4)?,
                    is_active: row.try_get(5)?,
                })
            })
            .collect()
    }

    async fn by_token(&self, domain: &DomainId, token: &str, now: i64) -> Result<Option<Candidate>, DatabaseError> {
        for holder in self.holders(domain, true, true).await? {
            let row = holder
                .get()
                .await?
                .query_typed_opt(
                    "SELECT a.id, a.username, m.permissions FROM access_tokens t JOIN accounts a ON a.id = t.account_id \
                     JOIN memberships m ON m.account_id = a.id AND m.domain = $1 \
                     WHERE t.token_hash = $2 AND (t.expires_at IS NULL OR t.expires_at > $3) AND 'sync' = ANY(t.scopes) \
                     AND a.is_active",
                    &[(&domain.as_str(), Type::TEXT), (&key_hash(token).as_slice(), Type::BYTEA), (&now, Type::INT8)],
                )
                .await?;
            if let Some(row) = row {
                return Ok(Some(Candidate::holder(&row)?));
            }
        }
        Ok(None)
    }

    async fn by_key(&self, domain: &DomainId, username: &str, key: &str) -> Result<Option<Candidate>, DatabaseError> {
        let wanted = key_hash(key);
        let names = names(username, domain);
        for holder in self.holders_of(domain, &names).await? {
            let row = holder
                .get()
                .await?
                .query_typed_opt(
                    "SELECT a.id, a.username, m.permissions, k.key_hash FROM api_keys k \
                     JOIN accounts a ON a.id = k.account_id \
                     JOIN memberships m ON m.account_id = a.id AND m.domain = $1 \
                     WHERE k.key_hash = $2 AND (k.domain IS NULL OR k.domain = $1) AND a.username = ANY($3) \
                     AND a.is_active",
                    &[(&domain.as_str(), Type::TEXT), (&wanted.as_slice(), Type::BYTEA), (&names, Type::TEXT_ARRAY)],
                )
                .await?;
            let Some(row) = row else { continue };
            let stored: &[u8] = row.try_get(3)?;
            if bool::from(stored.ct_eq(&wanted)) {
                return Ok(Some(Candidate::holder(&row)?));
            }
        }
        Ok(None)
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
pub(crate) const PERMISSIONS: [(Permission, &str); 6] = [
    (Permission::Submit, "submit"),
    (Permission::ReadData, "read_data"),
    (Permission::EditReports, "edit_reports"),
    (Permission::EditUsers, "edit_users"),
    (Permission::EditData, "edit_data"),
    (Permission::EditDomain, "edit_domain"),
];

#[async_trait]
impl Authenticator for AccountAuthenticator {
    async fn authenticate(&self, domain: &DomainId, credentials: &Credentials) -> Result<Principal, AuthError> {
        let key = self.cache.key(domain, credentials);
        let now = self.clock.now_micros();
        if let Some(principal) = self.cache.get(&key, now) {
            return Ok(principal);
        }
        let name = name_of(credentials);
        if let Some(seconds) = name.and_then(|name| self.lockout.closed(domain, name, now)) {
            return Err(AuthError::LockedOut { username: name.unwrap_or_default().to_owned(), seconds });
        }
        let generation = self.cache.generation();
        let refused = || AuthError::Refused { domain: domain.to_string() };
        let verified = self.verify(domain, credentials, &key, now).await;
        let account = match verified.map_err(|error| AuthError::Unavailable(error.to_string()))? {
            Verified::Now(account) => account,
            Verified::Before(principal) => return Ok(principal),
            Verified::Inactive(username) => return Err(AuthError::Inactive { username }),
            Verified::Stale => return Err(AuthError::Stale),
            Verified::Wrong => {
                if let Some(name) = name {
                    self.lockout.failed(domain, name, now);
                }
                return Err(refused());
            }
        };
        if let Some(name) = name {
            self.lockout.succeeded(domain, name);
        }
        let named =
            |name: &String| PERMISSIONS.iter().find(|(_, known)| known == name).map(|(permission, _)| *permission);
        let principal = Principal {
            domain: domain.clone(),
            user_id: UserId::new(&account.id).map_err(|_| refused())?,
            username: account.username,
            permissions: account.permissions.iter().filter_map(named).collect(),
        };
        // An answer to a challenge is good for one request.
        if !matches!(credentials, Credentials::Digest(_)) {
            self.cache.put(key, account.id, principal.clone(), now, generation);
        }
        Ok(principal)
    }

    fn digest_challenge(&self, stale: bool) -> String {
        self.digests.challenge(self.clock.now_micros(), stale)
    }
}

/// The name that failures count for; a token names nobody, and nobody can guess one.
fn name_of(credentials: &Credentials) -> Option<&str> {
    match credentials {
        Credentials::Password { username, .. } | Credentials::ApiKey { username, .. } => Some(username),
        Credentials::Digest(answer) => Some(&answer.username),
        Credentials::Token(_) => None,
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
