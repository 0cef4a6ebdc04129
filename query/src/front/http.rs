//! What HTTP answers share: who is calling, the freshness headers, errors (rest-api.md §1).

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use schemas::{
    error::{Classify, ErrorClass},
    id::DomainId,
    port::{Credentials, Permission, Principal, Secret},
    position::Position,
};

use super::Freshness;
use crate::{QueryError, QueryState};

const SNAPSHOT: HeaderName = HeaderName::from_static("x-millrace-snapshot");
const AS_OF: HeaderName = HeaderName::from_static("x-millrace-as-of");
const COMPLETE_THROUGH: HeaderName = HeaderName::from_static("x-millrace-complete-through");
const ERRORS: HeaderName = HeaderName::from_static("x-millrace-errors");

/// Checks who calls, and that they may read the domain of the path.
///
/// # Errors
/// [`QueryError::NoCredentials`], [`QueryError::Auth`], [`QueryError::Forbidden`], [`QueryError::NotFound`] for a text that
/// cannot be a domain.
pub(crate) async fn caller(state: &QueryState, domain: &str, headers: &HeaderMap) -> Result<Principal, QueryError> {
    let domain = DomainId::new(domain).map_err(|error| QueryError::NotFound(error.to_string()))?;
    let Some(credentials) = credentials(headers) else {
        return Err(QueryError::NoCredentials { domain: domain.to_string() });
    };
    let principal = state.auth.authenticate(&domain, &credentials).await?;
    if principal.domain != domain || !principal.may(Permission::ReadData) {
        return Err(QueryError::Forbidden { username: principal.username, domain: domain.to_string() });
    }
    Ok(principal)
}

/// Reads `Basic …` and `ApiKey user:key`; the scheme's letter case does not matter.
fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        return Some(Credentials::Password { username: username.to_owned(), password: Secret(password.to_owned()) });
    }
    if scheme.eq_ignore_ascii_case("apikey") {
        let (username, key) = rest.split_once(':')?;
        return Some(Credentials::ApiKey { username: username.to_owned(), key: Secret(key.to_owned()) });
    }
    None
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
    }
    // Clients take Retry-After as a promise; it goes with this status and no other.
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// An error as `{"error": …}`.
pub(crate) fn refuse_json(error: &QueryError) -> Response {
    refuse(error, Json(serde_json::json!({ "error": error.to_string() })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_from_both_schemes() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            match credentials(&headers) {
                Some(Credentials::Password { username, password }) => Some(("password", username, password.0)),
                Some(Credentials::ApiKey { username, key }) => Some(("key", username, key.0)),
                None => None,
            }
        };
        let is = |kind, user: &str, secret: &str| Some((kind, user.to_owned(), secret.to_owned()));
        assert_eq!(read("basic YWRtaW5AZGVtbzphOmI="), is("password", "admin@demo", "a:b"));
        assert_eq!(read("ApiKey me@x.org:k1"), is("key", "me@x.org", "k1"));
        assert_eq!(read("apikey me:k:2"), is("key", "me", "k:2"));
        for bad in ["Bearer x", "Basic ???", "ApiKey nokey", "Basic"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
