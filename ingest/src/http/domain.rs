//! Settings of a domain that decide how submissions are taken and what they do.

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use schemas::port::Permission;
use serde_json::json;

use super::{
    HttpState, both,
    caller::{self, Asked},
    refusal,
    room::Sent,
};
use crate::{
    error::WriteError,
    store::domains::{Domain, FLAGS, Settings},
};

/// Adds the routes.
pub(super) fn routes(router: Router<HttpState>) -> Router<HttpState> {
    both(router, "/a/{domain}/settings", get(read).put(change))
}

fn shown(domain: &Domain) -> Response {
    let flags = domain.rules.flags();
    Json(json!({"secure_submissions": domain.secure_submissions, "flags": flags, "known_flags": FLAGS})).into_response()
}

async fn read(state: State<HttpState>, domain: Path<String>, asked: Asked) -> Response {
    match caller::authorized(&state, &domain, &asked, Permission::EditDomain).await {
        Ok((_, domain, _)) => shown(&domain),
        Err(response) => response,
    }
}

/// Changes the settings that are in the body; others stay.
async fn change(state: State<HttpState>, domain: Path<String>, asked: Asked, body: Sent) -> Response {
    let domain = match caller::authorized(&state, &domain, &asked, Permission::EditDomain).await {
        Ok((domain, _, _)) => domain,
        Err(response) => return response,
    };
    let changed = async {
        let settings: Settings = serde_json::from_slice(&body.bytes)
            .map_err(|error| WriteError::Invalid(format!("the body is not a settings object: {error}")))?;
        if let Some(unknown) = settings.unknown_flag() {
            let known = FLAGS.join(", ");
            return Err(WriteError::Invalid(format!("there is no flag `{unknown}`; known are {known}")));
        }
        state.ingest.domains.change(&domain, &settings).await?;
        state.ingest.domains.get(&domain).await
    };
    match changed.await {
        Ok(domain) => shown(&domain),
        Err(error) => refusal::json_error(&error),
    }
}
