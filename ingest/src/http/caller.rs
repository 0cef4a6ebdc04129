//! Who is calling: credentials of a request, and the principal they belong to.
//!
//! Device libraries wait for a Basic challenge, so that is the one sent (forms-and-cases.md §2).

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::Engine;
use schemas::{
    id::DomainId,
    port::{AuthError, Authenticator, Credentials, Permission, Principal, Secret},
};

use super::{HttpState, refusal};
use crate::store::domains::Domain;

/// Sent with every 401.
const CHALLENGE: &str = "Basic realm=\"millrace\"";

/// The credentials of a request: `Authorization: Basic` or `ApiKey`, scheme names in any case. `None` if there are none
/// that can be read.
pub(super) fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Credentials::Password { username: username.to_owned(), password: Secret(password.to_owned()) })
    } else if scheme.eq_ignore_ascii_case("apikey") {
        let (username, key) = rest.rsplit_once(':')?;
        Some(Credentials::ApiKey { username: username.to_owned(), key: Secret(key.to_owned()) })
    } else {
        None
    }
}

/// 401 with a challenge.
pub(super) fn challenge() -> Response {
    let mut response = refusal::message(StatusCode::UNAUTHORIZED, "not authorized");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
    response
}

/// Authenticates a request to a domain and checks a permission.
///
/// # Errors
/// The response to send: 401 with a challenge, 403, or 503.
pub(super) async fn principal(
    state: &HttpState,
    domain: &DomainId,
    headers: &HeaderMap,
    permission: Permission,
) -> Result<Principal, Response> {
    let credentials = credentials(headers).ok_or_else(challenge)?;
    match state.ingest.auth.authenticate(domain, &credentials).await {
        Ok(principal) if principal.may(permission) => Ok(principal),
        Ok(_) => Err(refusal::message(StatusCode::FORBIDDEN, "your account lacks the permission for this")),
        Err(AuthError::Refused { .. }) => Err(challenge()),
        Err(error @ AuthError::Unavailable(_)) => {
            tracing::warn!(%error, "credentials could not be checked");
            Err(refusal::message(StatusCode::SERVICE_UNAVAILABLE, "credentials cannot be checked now; try again"))
        }
    }
}

/// The domain in a path of the writing API, after authenticating the caller: strangers learn nothing about which domains
/// exist.
///
/// # Errors
/// The response to send.
pub(super) async fn authorized(
    state: &HttpState,
    domain: &str,
    headers: &HeaderMap,
    permission: Permission,
) -> Result<(DomainId, Domain, Principal), Response> {
    let domain = DomainId::new(domain).map_err(|_| challenge())?;
    let principal = principal(state, &domain, headers, permission).await?;
    let found = state.ingest.domains.get(&domain).await.map_err(IntoResponse::into_response)?;
    Ok((domain, found, principal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<(bool, String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        Some(match credentials(&headers)? {
            Credentials::Password { username, password } => (true, username, password.0),
            Credentials::ApiKey { username, key } => (false, username, key.0),
        })
    }

    #[test]
    fn schemes_are_read_in_any_case() {
        let basic = |name: &str, secret: &str| Some((true, name.to_owned(), secret.to_owned()));
        assert_eq!(read("Basic YTpiOmM="), basic("a", "b:c"));
        assert_eq!(read("bAsIc YTpiOmM="), basic("a", "b:c"));
        assert_eq!(read("ApiKey u@x:k"), Some((false, "u@x".to_owned(), "k".to_owned())));
        for bad in ["Basic ???", "Basic", "Bearer abc", "apikey no-colon"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
