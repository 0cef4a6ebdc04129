//! Who is calling: credentials of a request, and the principal they belong to.
//!
//! Device libraries wait for a Basic challenge, so that is the one sent (forms-and-cases.md §2).

use std::convert::Infallible;

use axum::{
    Json,
    extract::{FromRequestParts, Request},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use schemas::{
    id::DomainId,
    port::{AuthError, Authenticator, Credentials, Permission, Principal},
};
use serde_json::json;

use super::{HttpState, refusal};
use crate::store::domains::Domain;

/// What of a request says who sends it.
#[derive(Debug)]
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Asked {
    /// Of a request that is going to be read.
    pub(super) fn of(request: &Request) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone(), headers: request.headers().clone() }
    }
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self { method: parts.method.clone(), uri: parts.uri.clone(), headers: parts.headers.clone() })
    }
}

/// Ways to authenticate that a request can ask for (forms-and-cases.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Basic,
    Digest,
    ApiKey,
    Token,
}

impl Scheme {
    /// The scheme of an `authtype`; `Some(None)` for `noauth`, `None` for a name that is none.
    pub(super) fn of_authtype(name: &str) -> Option<Option<Self>> {
        match name {
            "basic" => Some(Some(Self::Basic)),
            "digest" => Some(Some(Self::Digest)),
            "api_key" => Some(Some(Self::ApiKey)),
            "oauth2" => Some(Some(Self::Token)),
            "noauth" => Some(None),
            _ => None,
        }
    }

    const fn of(credentials: &Credentials) -> Self {
        match credentials {
            Credentials::Password { .. } => Self::Basic,
            Credentials::ApiKey { .. } => Self::ApiKey,
            Credentials::Token(_) => Self::Token,
            Credentials::Digest(_) => Self::Digest,
        }
    }

    /// What a client that says nothing is asked for: Java ME phones know digest alone, all others wait for Basic.
    fn of_client(headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let old = ["Nokia", "CLDC", "MIDP", "Series40", "Series60", "Symbian", "SymbOS", "Maemo"];
        if old.iter().any(|name| agent.contains(name)) { Self::Digest } else { Self::Basic }
    }
}

/// The credentials of a request. `None` if there are none that can be read.
fn credentials(asked: &Asked) -> Option<Credentials> {
    let value = asked.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let target = asked.uri.path_and_query().map_or("", |target| target.as_str());
    Credentials::of_header(value, asked.method.as_str(), target)
}

/// 401 with the challenge of a scheme.
fn challenge(auth: &dyn Authenticator, scheme: Scheme, stale: bool) -> Response {
    let mut response = refusal::message(StatusCode::UNAUTHORIZED, "not authorized");
    let text = match scheme {
        Scheme::Basic => "Basic realm=\"millrace\"".to_owned(),
        Scheme::Digest => auth.digest_challenge(stale),
        Scheme::ApiKey => "ApiKey realm=\"millrace\"".to_owned(),
        Scheme::Token => "Bearer realm=\"millrace\"".to_owned(),
    };
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// Authenticates a submission, by the scheme that the URL demands or by what the request brings, and checks a permission.
/// An API key needs the permission to edit data besides.
///
/// # Errors
/// The response to send: 401 with a challenge, 403, 406 for a mobile worker who is switched off, 429, or 503.
pub(super) async fn submitter(
    state: &HttpState,
    domain: &DomainId,
    asked: &Asked,
    demanded: Option<Scheme>,
    permission: Permission,
) -> Result<Principal, Response> {
    let credentials = credentials(asked);
    let usual = || credentials.as_ref().map_or_else(|| Scheme::of_client(&asked.headers), Scheme::of);
    let scheme = demanded.unwrap_or_else(usual);
    let auth = &*state.ingest.auth;
    let credentials = credentials.filter(|credentials| Scheme::of(credentials) == scheme);
    let credentials = credentials.ok_or_else(|| challenge(auth, scheme, false))?;
    let principal = authenticate(state, domain, &credentials, permission).await?;
    if scheme == Scheme::ApiKey && !principal.may(Permission::EditData) {
        return Err(forbidden());
    }
    Ok(principal)
}

fn forbidden() -> Response {
    refusal::message(StatusCode::FORBIDDEN, "your account lacks the permission for this")
}

async fn authenticate(
    state: &HttpState,
    domain: &DomainId,
    credentials: &Credentials,
    permission: Permission,
) -> Result<Principal, Response> {
    let auth = &*state.ingest.auth;
    let scheme = Scheme::of(credentials);
    match auth.authenticate(domain, credentials).await {
        Ok(principal) if principal.may(permission) => Ok(principal),
        Ok(_) => Err(forbidden()),
        Err(AuthError::Refused { .. }) => Err(challenge(auth, scheme, false)),
        Err(AuthError::Stale) => Err(challenge(auth, scheme, true)),
        Err(AuthError::Inactive { .. }) if scheme == Scheme::Basic => Err(inactive()),
        Err(AuthError::Inactive { .. }) => Err(challenge(auth, scheme, false)),
        Err(error @ AuthError::LockedOut { seconds, .. }) => {
            let mut response = refusal::message(StatusCode::TOO_MANY_REQUESTS, &error.to_string());
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            Err(response)
        }
        Err(error @ AuthError::Unavailable(_)) => {
            tracing::warn!(%error, "credentials could not be checked");
            Err(refusal::message(StatusCode::SERVICE_UNAVAILABLE, "credentials cannot be checked now; try again"))
        }
    }
}

/// What a phone shows to a worker whose account is switched off.
fn inactive() -> Response {
    let body = json!({
        "error": "user.deactivated",
        "default_response": "Your account is not active. Please contact your supervisor.",
    });
    (StatusCode::NOT_ACCEPTABLE, Json(body)).into_response()
}

/// Authenticates a request to a domain and checks a permission.
///
/// # Errors
/// The response to send: 401 with a challenge, 403, 429, or 503.
async fn principal(
    state: &HttpState,
    domain: &DomainId,
    asked: &Asked,
    permission: Permission,
) -> Result<Principal, Response> {
    let credentials =
        credentials(asked).ok_or_else(|| challenge(&*state.ingest.auth, Scheme::of_client(&asked.headers), false))?;
    authenticate(state, domain, &credentials, permission).await
}

/// The domain in a path of the writing API, after authenticating the caller: strangers learn nothing about which domains
/// exist.
///
/// # Errors
/// The response to send.
pub(super) async fn authorized(
    state: &HttpState,
    domain: &str,
    asked: &Asked,
    permission: Permission,
) -> Result<(DomainId, Domain, Principal), Response> {
    let domain = DomainId::new(domain).map_err(|_| challenge(&*state.ingest.auth, Scheme::Basic, false))?;
    let principal = principal(state, &domain, asked, permission).await?;
    let found = state.ingest.domains.get(&domain).await.map_err(IntoResponse::into_response)?;
    Ok((domain, found, principal))
}
