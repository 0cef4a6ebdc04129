//! Who connects: the start-up database is the domain, user and password go to the authenticator.

use std::{fmt::Debug, sync::Arc};

use ::pgwire::{
    api::{
        ClientInfo, ConnectionGuard, ConnectionHandle, METADATA_DATABASE, METADATA_USER, PgWireConnectionState,
        PidSecretKeyGenerator,
        auth::{
            DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
            save_startup_parameters_to_metadata,
        },
    },
    error::{PgWireError, PgWireResult},
    messages::{PgWireBackendMessage, PgWireFrontendMessage, startup::Authentication},
};
use async_trait::async_trait;
use futures::{Sink, SinkExt};
use schemas::{
    id::DomainId,
    port::{AuthError, Authenticator, Credentials, Permission, Principal, Secret},
};

use super::{describe, session::Session};
use crate::{QueryError, catalog::SEARCH_PATH, session::SERVER_VERSION};

/// Lets a connection in.
pub(super) struct Startup {
    session: Arc<Session>,
}

impl Startup {
    pub(super) const fn new(session: Arc<Session>) -> Self {
        Self { session }
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(ref startup) => {
                protocol_negotiation(client, startup).await?;
                save_startup_parameters_to_metadata(client, startup);
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                client.send(PgWireBackendMessage::Authentication(Authentication::CleartextPassword)).await?;
            }
            PgWireFrontendMessage::PasswordMessageFamily(message) => {
                let password = Secret(message.into_password()?.password);
                let user = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
                let database = client.metadata().get(METADATA_DATABASE).cloned().unwrap_or_else(|| user.clone());
                let auth = &*self.session.shared().state.auth;
                let fatal = |error: &QueryError| PgWireError::UserError(describe(error, "FATAL"));
                let principal = log_in(auth, &user, &database, password).await.map_err(|error| fatal(&error))?;
                self.session.begin(principal).map_err(|error| fatal(&error))?;
                self.register(client);
                finish_authentication(client, &parameters(&user)).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Startup {
    /// Makes the connection known to cancel requests.
    fn register<C: ClientInfo>(&self, client: &mut C) {
        let shared = self.session.shared();
        let (pid, key) = shared.keys.generate(client);
        client.set_pid_and_secret_key(pid, key.clone());
        let (handle, guard) = shared.connections.register(pid, key);
        client.session_extensions().insert::<Arc<ConnectionHandle>>(handle);
        client.session_extensions().insert::<ConnectionGuard>(guard);
    }
}

/// Asks the authenticator; what is sent as a password may also be an API key.
async fn log_in(
    auth: &dyn Authenticator,
    user: &str,
    database: &str,
    password: Secret,
) -> Result<Principal, QueryError> {
    let refused = || AuthError::Refused { domain: database.to_owned() };
    let domain = DomainId::new(database).map_err(|_| refused())?;
    let username = user.to_owned();
    let credentials = Credentials::Password { username: username.clone(), password: password.clone() };
    let principal = match auth.authenticate(&domain, &credentials).await {
        Err(AuthError::Refused { .. }) => {
            auth.authenticate(&domain, &Credentials::ApiKey { username, key: password }).await?
        }
        other => other?,
    };
    if principal.domain != domain || !principal.may(Permission::ReadData) {
        return Err(QueryError::Forbidden { username: principal.username, domain: domain.to_string() });
    }
    Ok(principal)
}

fn parameters(user: &str) -> DefaultServerParameterProvider {
    let mut parameters = DefaultServerParameterProvider::default();
    parameters.server_version = SERVER_VERSION.to_owned();
    parameters.search_path = SEARCH_PATH.join(", ");
    parameters.is_superuser = false;
    parameters.default_transaction_read_only = true;
    parameters.time_zone = "UTC".to_owned();
    parameters.session_authorization = Some(user.to_owned());
    parameters
}
