//! What HTTP answers share: who is calling, the freshness headers, errors (rest-api.md §1).

use std::convert::Infallible;

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use schemas::{
    error::{Classify, ErrorClass},
    id::DomainId,
    port::{AuthError, Credentials, Permission, Principal},
    position::Position,
};

use super::Freshness;
use crate::{QueryError, QueryState};

const SNAPSHOT: HeaderName = HeaderName::from_static("x-millrace-snapshot");
const AS_OF: HeaderName = HeaderName::from_static("x-millrace-as-of");
const COMPLETE_THROUGH: HeaderName = HeaderName::from_static("x-millrace-complete-through");
const ERRORS: HeaderName = HeaderName::from_static("x-millrace-errors");

/// What of a request says who sends it and what for.
#[derive(Debug)]
pub(crate) struct Asked {
    method: Method,
    /// Path and parameters.
    pub(crate) uri: Uri,
    /// Headers.
    pub(crate) headers: HeaderMap,
}

impl Asked {
    /// Of a request's head.
    pub(crate) fn of(parts: &Parts) -> Self {
        Self { method: parts.method.clone(), uri: parts.uri.clone(), headers: parts.headers.clone() }
    }
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// Checks who calls, and that they may read the domain of the path.
///
/// # Errors
/// [`QueryError::NoCredentials`], [`QueryError::Auth`], [`QueryError::Forbidden`], [`QueryError::NotFound`] for a text that
/// cannot be a domain.
pub(crate) async fn caller(state: &QueryState, domain: &str, asked: &Asked) -> Result<Principal, QueryError> {
    let domain = DomainId::new(domain).map_err(|error| QueryError::NotFound(error.to_string()))?;
    let target = asked.uri.path_and_query().map_or("", |target| target.as_str());
    let header = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credentials = header.and_then(|value| Credentials::of_header(value, asked.method.as_str(), target));
    let Some(credentials) = credentials else {
        return Err(asks(state, &domain, false));
    };
    let principal = match state.auth.authenticate(&domain, &credentials).await {
        Err(AuthError::Stale) => return Err(asks(state, &domain, true)),
        answered => answered?,
    };
    if principal.domain != domain || !principal.may(Permission::ReadData) {
        return Err(QueryError::Forbidden { username: principal.username, domain: domain.to_string() });
    }
    Ok(principal)
}

fn asks(state: &QueryState, domain: &DomainId, stale: bool) -> QueryError {
    QueryError::NoCredentials { domain: domain.to_string(), digest: Some(state.auth.digest_challenge(stale)) }
}

/// The parameters of a request, in order.
///
/// # Errors
/// [`QueryError::Parameter`] if they are not form-encoded text.
pub(crate) fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, QueryError> {
    let parameters = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    Ok(parameters.map_err(|error| QueryError::Parameter(error.body_text()))?.0)
}

/// The receipt in `wait_for`, if there is one.
///
/// # Errors
/// [`QueryError::Receipt`].
pub(crate) fn receipt(parameters: &[(String, String)]) -> Result<Option<Position>, QueryError> {
    let text = parameters.iter().rev().find(|(name, _)| name == "wait_for").map(|(_, value)| value.trim());
    match text {
        None | Some("") => Ok(None),
        Some(text) => Ok(Some(text.parse()?)),
    }
}

/// Writes the freshness headers.
pub(crate) fn stamp(response: &mut Response, freshness: &Freshness) {
    let headers = response.headers_mut();
    headers.insert(SNAPSHOT, freshness.snapshot.into());
    headers.insert(ERRORS, freshness.errors.into());
    if let Ok(value) = HeaderValue::from_str(&freshness.as_of) {
        headers.insert(AS_OF, value);
    }
    if let Ok(value) = HeaderValue::from_str(&freshness.complete_through) {
        headers.insert(COMPLETE_THROUGH, value);
    }
}

/// An error with this status and body, and the headers its status calls for.
pub(crate) fn refuse(error: &QueryError, body: impl IntoResponse) -> Response {
    let status = StatusCode::from_u16(error.class().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_server_error() {
        // A receipt that never becomes visible is the caller's mistake more often than ours.
        if error.class() == ErrorClass::Timeout {
            tracing::info!(%error, "could not answer in time");
        } else {
            tracing::warn!(%error, "could not answer");
        }
    } else {
        tracing::debug!(%error, "refused request");
    }
    let mut response = (status, body).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"millrace\", charset=\"UTF-8\""));
        if let QueryError::NoCredentials { digest: Some(digest), .. } = error
            && let Ok(digest) = HeaderValue::from_str(digest)
        {
            response.headers_mut().append(header::WWW_AUTHENTICATE, digest);
        }
    }
    // Clients take Retry-After as a promise; it goes with this status and no other.
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = if let QueryError::Auth(AuthError::LockedOut { seconds, .. }) = error { *seconds } else { 1 };
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// An error as `{"error": …}`.
pub(crate) fn refuse_json(error: &QueryError) -> Response {
    refuse(error, Json(serde_json::json!({ "error": error.to_string() })))
}
