//! Domains, web users, passwords and API keys: what the command line and the demo set up.

use std::sync::Arc;

use schemas::{
    change::DocKind,
    error::{Classify, ErrorClass},
    id::{DocId, DomainId, UserId},
    port::{Permission, Secret},
};
use serde_json::{Map, Value};
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    auth::{
        AccountAuthenticator, PERMISSIONS, key_hash,
        password::{self, PasswordError},
    },
    domain::Domains,
    error::{DatabaseError, WriteError},
    store::domains::{FLAGS, Settings},
    store::{databases::Databases, pool::Pool},
    submit::{Action, DirectoryChange, DirectoryWrite, Presence, directory::WORKER_SUFFIX, lanes::Lanes},
};

/// Bytes of randomness in passwords and API keys that are made here.
const SECRET_BYTES: usize = 18;

/// Why an account was not changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The lane of web users.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The password cannot be kept.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// Somebody has the name.
    #[error("user name `{0}` is taken")]
    Taken(String),
    /// No such account.
    #[error("no account with user name `{0}`")]
    Unknown(String),
    /// No such setting.
    #[error("there is no flag `{0}`; known are {flags}", flags = FLAGS.join(", "))]
    UnknownFlag(String),
    /// No such domain.
    #[error("no domain with name `{0}`; create it first")]
    UnknownDomain(DomainId),
}

impl From<tokio_postgres::Error> for AccountError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Classify for AccountError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Database(error) => error.class(),
            Self::Write(error) => error.class(),
            Self::Password(_) | Self::UnknownFlag(_) => ErrorClass::BadRequest,
            Self::Taken(_) => ErrorClass::Conflict,
            Self::Unknown(_) | Self::UnknownDomain(_) => ErrorClass::NotFound,
        }
    }
}

/// Sets up domains and accounts.
#[derive(Clone, Debug)]
pub struct Accounts {
    pub(crate) databases: Databases,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) domains: Arc<Domains>,
    pub(crate) auth: Arc<AccountAuthenticator>,
}

impl Accounts {
    /// Makes a domain unless it is there; true if it is new.
    ///
    /// # Errors
    /// [`AccountError::Database`].
    pub async fn create_domain(&self, domain: &DomainId) -> Result<bool, AccountError> {
        Ok(self.domains.create(domain).await?)
    }

    /// Changes a domain's settings; `None` leaves one as it is. `flags` are all settings that are on, under CommCare's names.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn set_domain(
        &self,
        domain: &DomainId,
        secure_submissions: Option<bool>,
        flags: Option<Vec<String>>,
    ) -> Result<(), AccountError> {
        let settings = Settings { secure_submissions, flags };
        if let Some(flag) = settings.unknown_flag() {
            return Err(AccountError::UnknownFlag(flag.to_owned()));
        }
        if self.domains.change(domain, &settings).await? {
            Ok(())
        } else {
            Err(AccountError::UnknownDomain(domain.clone()))
        }
    }

    /// Makes sure that the domain has its web user `admin@<domain>`. Returns the random password of a new one; it is shown
    /// nowhere else.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn ensure_admin(&self, domain: &DomainId) -> Result<Option<Secret>, AccountError> {
        let username = format!("admin@{domain}");
        let password = random_secret();
        let all: Vec<Permission> = PERMISSIONS.iter().map(|(permission, _)| *permission).collect();
        match self.create_web_user(&username, &password, domain, &all).await {
            Ok(_) => Ok(Some(password)),
            Err(AccountError::Taken(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a web user and lets them into a domain.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_web_user(
        &self,
        username: &str,
        password: &Secret,
        domain: &DomainId,
        permissions: &[Permission],
    ) -> Result<UserId, AccountError> {
        if self.web_user_id(username).await?.is_some() {
            return Err(AccountError::Taken(username.to_owned()));
        }
        let password_hash = Some(password::hash(password.0.clone()).await?);
        let mut fields = membership(username, permissions);
        fields.insert("password".to_owned(), password.0.as_str().into());
        let action = Action::Merge { fields, presence: Presence::New };
        self.write_web_user(domain, &Uuid::new_v4().simple().to_string(), action, password_hash).await
    }

    /// Lets a web user into a domain, or changes what they may do there.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn join(
        &self,
        username: &str,
        domain: &DomainId,
        permissions: &[Permission],
    ) -> Result<(), AccountError> {
        let id = self.web_user_id(username).await?.ok_or_else(|| AccountError::Unknown(username.to_owned()))?;
        let action = Action::Merge { fields: membership(username, permissions), presence: Presence::Any };
        self.write_web_user(domain, &id, action, None).await?;
        Ok(())
    }

    /// Takes a web user out of a domain; what they signed in with is refused there at once.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn leave(&self, username: &str, domain: &DomainId) -> Result<(), AccountError> {
        let id = self.web_user_id(username).await?.ok_or_else(|| AccountError::Unknown(username.to_owned()))?;
        self.write_web_user(domain, &id, Action::Delete, None).await?;
        Ok(())
    }

    /// The id of a web user.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn web_user_id(&self, username: &str) -> Result<Option<String>, DatabaseError> {
        let client = self.databases.control().get().await?;
        let sql = "SELECT id FROM accounts WHERE username = $1";
        let row = client.query_typed_opt(sql, &[(&username, Type::TEXT)]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    async fn write_web_user(
        &self,
        domain: &DomainId,
        id: &str,
        action: Action,
        password_hash: Option<String>,
    ) -> Result<UserId, AccountError> {
        if self.domains.find(domain).await?.is_none() {
            return Err(AccountError::UnknownDomain(domain.clone()));
        }
        let damaged = |error| AccountError::Database(DatabaseError::damaged("accounts", error));
        let user_id = UserId::new(id).map_err(damaged)?;
        let (id, kind) = (DocId::from(&user_id), DocKind::WebUser);
        let change = DirectoryChange { kind, id, action, password_hash, keeps_digest: self.auth.keeps_digests };
        let write = DirectoryWrite { domain: domain.clone(), changes: vec![change] };
        let receipt = self.lanes.write(self.databases.control_lane(), write).await?;
        for result in receipt.results {
            result?;
        }
        self.auth.forget(user_id.as_str());
        Ok(user_id)
    }

    /// The database that holds an account: a mobile worker's is its domain's.
    async fn holder(&self, username: &str) -> Result<Pool, AccountError> {
        let worker = username.strip_suffix(WORKER_SUFFIX).and_then(|name| name.rsplit_once('@'));
        let Some((_, domain)) = worker else { return Ok(self.databases.control().clone()) };
        let unknown = || AccountError::Unknown(username.to_owned());
        let domain = DomainId::new(domain).map_err(|_| unknown())?;
        self.domains.home(&domain).await?.ok_or_else(unknown)
    }

    /// Sets an account's password; whoever is signed in with the old one is out at once.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn set_password(&self, username: &str, password: &Secret) -> Result<(), AccountError> {
        let hash = password::hash(password.0.clone()).await?;
        let digest = self.auth.digest_hash(username, &password.0);
        let id = self
            .holder(username)
            .await?
            .get()
            .await?
            .query_typed_opt(
                "UPDATE accounts SET password_hash = $2, digest_hash = $3 WHERE username = $1 RETURNING id",
                &[(&username, Type::TEXT), (&hash, Type::TEXT), (&digest, Type::TEXT)],
            )
            .await?;
        let id = id.ok_or_else(|| AccountError::Unknown(username.to_owned()))?;
        self.auth.forget(id.try_get(0)?);
        Ok(())
    }

    /// Makes an API key of an account, for one domain or all of its domains. The key is shown nowhere else.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_api_key(
        &self,
        username: &str,
        domain: Option<&DomainId>,
        name: &str,
    ) -> Result<Secret, AccountError> {
        let key = random_secret();
        let made = self
            .holder(username)
            .await?
            .get()
            .await?
            .execute_typed(
                "INSERT INTO api_keys (key_hash, account_id, domain, name) \
                 SELECT $1, id, $2, $3 FROM accounts WHERE username = $4",
                &[
                    (&key_hash(&key.0).as_slice(), Type::BYTEA),
                    (&domain.map(DomainId::as_str), Type::TEXT),
                    (&name, Type::TEXT),
                    (&username, Type::TEXT),
                ],
            )
            .await?;
        if made == 1 { Ok(key) } else { Err(AccountError::Unknown(username.to_owned())) }
    }

    /// Makes a bearer token that stands for an account, for a number of days or until it is deleted. It is shown nowhere
    /// else.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_token(&self, username: &str, name: &str, days: Option<u32>) -> Result<Secret, AccountError> {
        let token = random_secret();
        let made = self
            .holder(username)
            .await?
            .get()
            .await?
            .execute_typed(
                "INSERT INTO access_tokens (token_hash, account_id, scopes, name, expires_at) \
                 SELECT $1, id, ARRAY['sync'], $2, \
                 (extract(epoch FROM now() + $3 * interval '1 day') * 1000000)::bigint FROM accounts WHERE username = $4",
                &[
                    (&key_hash(&token.0).as_slice(), Type::BYTEA),
                    (&name, Type::TEXT),
                    (&days.map(f64::from), Type::FLOAT8),
                    (&username, Type::TEXT),
                ],
            )
            .await?;
        if made == 1 { Ok(token) } else { Err(AccountError::Unknown(username.to_owned())) }
    }
}

/// The fields of a web user's document in a domain.
fn membership(username: &str, permissions: &[Permission]) -> Map<String, Value> {
    let named = |permission: &Permission| PERMISSIONS.iter().find(|(known, _)| known == permission);
    let names: Vec<&str> = permissions.iter().filter_map(named).map(|(_, name)| *name).collect();
    Map::from_iter([("username".to_owned(), username.into()), ("permissions".to_owned(), names.into())])
}

/// A secret of letters and digits that nobody can guess.
fn random_secret() -> Secret {
    use base64::Engine;
    let bytes: [u8; SECRET_BYTES] = rand::random();
    Secret(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}
