//! CommCare's REST reads (rest-api.md §2, §3, §5, §9), answered from the snapshot without planning a statement; and where
//! a row comes from.
//!
//! Every path is served with and without its final slash.

mod applications;
mod cases;
mod filter;
mod forms;
mod groups;
mod locations;
mod lookups;
mod page;
mod provenance;
mod resource;
mod scan;
mod users;
mod web_users;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::Uri,
    response::{IntoResponse, Response},
};
use schemas::{
    error::{Classify, ErrorClass},
    port::Principal,
    table::{DomainTables, Snapshot},
};

use crate::{
    QueryError,
    front::{
        Doors, Freshness,
        http::{self, Asked},
    },
};

pub(crate) fn routes() -> Router<Doors> {
    cases::routes()
        .merge(forms::routes())
        .merge(users::routes())
        .merge(web_users::routes())
        .merge(groups::routes())
        .merge(locations::routes())
        .merge(applications::routes())
        .merge(lookups::routes())
        .merge(provenance::routes())
}

/// One authenticated read.
struct Read {
    principal: Principal,
    snapshot: Arc<Snapshot>,
    tables: Arc<DomainTables>,
    /// The request's parameters without `wait_for`.
    parameters: Vec<(String, String)>,
    /// When the answer has to be found.
    until: Instant,
    timeout: Duration,
}

/// How a resource words its failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wording {
    /// Version 1 resources: nothing but 400 and 401 has a body.
    Silent,
    /// Case version 2: always `{"error": …}`.
    Spoken,
}

/// Checks the caller, takes the snapshot, answers, and writes the headers that every answer has.
async fn read(
    doors: &Doors,
    domain: &str,
    asked: &Asked,
    wording: Wording,
    answer: impl FnOnce(&Read) -> Result<Response, QueryError> + Send + 'static,
) -> Response {
    let principal = match http::caller(&doors.state, domain, asked).await {
        Ok(principal) => principal,
        Err(error) => return refuse(&error, wording),
    };
    let domain = principal.domain.clone();
    let (mut response, freshness) = match take(doors, principal, &asked.uri).await {
        Ok(read) => {
            let freshness = Freshness::of(&read.snapshot, &read.tables);
            // A pass over many documents must not hold up the threads that serve connections.
            let answered = tokio::task::spawn_blocking(move || answer(&read)).await;
            let answered = answered.unwrap_or_else(|error| Err(QueryError::Internal(error.to_string())));
            (answered.unwrap_or_else(|error| refuse(&error, wording)), freshness)
        }
        Err(error) => (refuse(&error, wording), Freshness::now(&doors.state, &domain)),
    };
    http::stamp(&mut response, &freshness);
    response
}

async fn take(doors: &Doors, principal: Principal, uri: &Uri) -> Result<Read, QueryError> {
    let parameters = http::parameters(uri)?;
    let receipt = http::receipt(&parameters)?;
    if !doors.state.views.ready() {
        return Err(QueryError::Starting);
    }
    let snapshot = match receipt {
        Some(receipt) => {
            let wait = doors.state.config.default_wait();
            doors.state.views.wait_for(&principal.domain, receipt, wait).await?
        }
        None => doors.state.views.snapshot(),
    };
    let tables = snapshot.domains.get(&principal.domain).cloned().unwrap_or_default();
    let parameters = parameters.into_iter().filter(|(name, _)| name != "wait_for").collect();
    let timeout = doors.state.config.statement_timeout();
    Ok(Read { principal, snapshot, tables, parameters, until: Instant::now() + timeout, timeout })
}

fn refuse(error: &QueryError, wording: Wording) -> Response {
    match (error.class(), wording) {
        (ErrorClass::Unauthenticated, _) => {
            http::refuse(error, axum::Json(serde_json::json!({ "error": "not authorized" })))
        }
        (ErrorClass::Forbidden | ErrorClass::NotFound | ErrorClass::RateLimited, Wording::Silent) => {
            http::refuse(error, ())
        }
        (ErrorClass::Internal, _) => {
            let text = "Sorry, this request could not be processed. Please try again later.";
            http::refuse(error, axum::Json(serde_json::json!({ "error_message": text })))
        }
        _ => http::refuse_json(error),
    }
}

/// A JSON answer with the content type that clients compare.
fn json(value: &impl serde::Serialize) -> Result<Response, QueryError> {
    let body = serde_json::to_vec(value).map_err(|error| QueryError::Internal(error.to_string()))?;
    Ok(([(axum::http::header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response())
}
