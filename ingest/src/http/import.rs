//! Many forms in one request: recorded submissions, moved from elsewhere or written by a script.
//!
//! `POST /a/{domain}/import/forms` takes JSON lines or an array of `{"xml": …, "received_on": …}`. Each form is stored as if
//! it had been posted alone, except that one that is stored already, byte for byte, is left as it is: an import can be
//! repeated after it broke off. Forms that share a case are stored in the order they come in. The answer lists the rows
//! that were not stored.

use std::collections::{BTreeMap, HashSet};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use schemas::{
    id::DomainId,
    port::{Permission, Principal},
    position::Position,
    time::parse_micros,
};
use serde_json::{Map, Value, json};
use tokio::time::Duration;

use super::{
    HttpState, both,
    caller::{self, Asked},
    receiver, refusal,
    room::Sent,
    with_position,
};
use crate::{
    error::WriteError,
    store::domains::Domain,
    submit::{Content, Outcome, Receipt, Submission},
};

/// Rows in one import.
const MAX_ROWS: usize = 100_000;
/// Forms on their way into the lane at the same time.
const AT_ONCE: usize = 256;
/// Pause before a form is offered again to a lane that is full.
const FULL: Duration = Duration::from_millis(20);

/// Adds the routes.
pub(super) fn routes(router: Router<HttpState>) -> Router<HttpState> {
    both(router, "/a/{domain}/import/forms", post(forms))
}

/// A row of an import, or what is wrong with it.
pub(super) type ImportRow = Result<Map<String, Value>, WriteError>;

/// Rows of a JSON array, or of JSON lines.
///
/// # Errors
/// [`WriteError::Invalid`] if the body is neither, or has more than 100,000 rows.
pub(super) fn rows(body: &[u8]) -> Result<Vec<ImportRow>, WriteError> {
    let invalid = |error: &dyn std::fmt::Display| WriteError::Invalid(error.to_string());
    let text = std::str::from_utf8(body).map_err(|error| invalid(&error))?;
    let row = |value: Value| match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(WriteError::Invalid("a row must be a JSON object".to_owned())),
    };
    let rows: Vec<_> = if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|error| invalid(&error))?;
        values.into_iter().map(row).collect()
    } else {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).map_err(|error| invalid(&error)).and_then(row)).collect()
    };
    if rows.len() > MAX_ROWS {
        return Err(WriteError::Invalid(format!("an import has at most {MAX_ROWS} rows, this one has {}", rows.len())));
    }
    Ok(rows)
}

async fn forms(state: State<HttpState>, domain: Path<String>, asked: Asked, body: Sent) -> Response {
    let (domain, settings, caller) = match caller::authorized(&state, &domain, &asked, Permission::EditData).await {
        Ok(authorized) => authorized,
        Err(response) => return response,
    };
    match rows(&body.bytes) {
        Ok(rows) => import(&state, &domain, settings, &caller, rows).await.response(),
        Err(error) => refusal::json_error(&error),
    }
}

/// Ids that a form needs for itself while it is on its way.
fn ids(submission: &Submission) -> Vec<String> {
    let Content::Form(form) = &submission.content else { return Vec::new() };
    let cases = form.case_blocks.iter().flatten();
    let touched = cases.clone().map(|block| block.case_id.as_str());
    let named = cases.flat_map(|block| block.indices.iter().map(|index| index.referenced_id.as_str()));
    let stocked = form.ledger_changes.iter().map(|change| change.key.case_id.as_str());
    let all = touched.chain(named).chain(stocked).map(|id| format!("c{id}"));
    all.chain([format!("f{}", form.form_id)]).collect()
}

async fn import(
    state: &HttpState,
    domain: &DomainId,
    settings: Domain,
    caller: &Principal,
    rows: Vec<ImportRow>,
) -> Report {
    let mut report = Report::default();
    let mut under_way = FuturesUnordered::new();
    let mut held: HashSet<String> = HashSet::new();
    for (number, row) in (1..).zip(rows) {
        let submission = match row {
            Ok(fields) => submission(state, domain, settings, caller, fields).await,
            Err(error) => Err(error),
        };
        let submission = match submission {
            Ok(submission) => submission,
            Err(error) => {
                report.take(number, Err(error));
                continue;
            }
        };
        let needs = ids(&submission);
        while under_way.len() >= AT_ONCE || needs.iter().any(|id| held.contains(id)) {
            let Some((number, freed, stored)) = under_way.next().await else { break };
            release(&mut held, freed);
            report.take(number, stored);
        }
        held.extend(needs.iter().cloned());
        let send = async move {
            // A lane that is full is waited for: the caller has nothing better to do.
            while state.ingest.lanes.is_full(settings.lane) {
                tokio::time::sleep(FULL).await;
            }
            (number, needs, state.ingest.lanes.submit(settings.lane, submission).await)
        };
        under_way.push(send);
    }
    while let Some((number, freed, stored)) = under_way.next().await {
        release(&mut held, freed);
        report.take(number, stored);
    }
    report
}

fn release(held: &mut HashSet<String>, freed: Vec<String>) {
    for id in freed {
        held.remove(&id);
    }
}

async fn submission(
    state: &HttpState,
    domain: &DomainId,
    settings: Domain,
    caller: &Principal,
    mut fields: Map<String, Value>,
) -> Result<Submission, WriteError> {
    let Some(Value::String(xml)) = fields.remove("xml") else {
        return Err(WriteError::Invalid("field `xml` must be the form's XML, a text".to_owned()));
    };
    let received_on = match fields.get("received_on") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            let at = parse_micros(text);
            let invalid = || WriteError::Invalid("field `received_on` must be an ISO 8601 time".to_owned());
            Some(at.ok_or_else(invalid)?)
        }
        Some(_) => return Err(WriteError::Invalid("field `received_on` must be a text".to_owned())),
    };
    receiver::recorded(state, domain, settings.rules, caller, Bytes::from(xml), received_on).await
}

/// What became of the rows.
#[derive(Debug, Default)]
struct Report {
    stored: usize,
    present: usize,
    failed: usize,
    /// What was not stored, by its row.
    rows: BTreeMap<usize, Value>,
    position: Option<Position>,
    /// Status of a failure that is not the rows' own.
    overload: Option<StatusCode>,
}

impl Report {
    fn take(&mut self, number: usize, stored: Result<Receipt, WriteError>) {
        let (id, problem) = match stored {
            Ok(Receipt { form_id, outcome, position }) => {
                self.position = self.position.max(Some(position));
                match outcome {
                    Outcome::Normal | Outcome::Edited | Outcome::Duplicate { .. } => {
                        self.stored += 1;
                        return;
                    }
                    Outcome::Failed { problem, .. } | Outcome::Broken { problem } => (Some(form_id), problem),
                }
            }
            Err(WriteError::Present) => {
                self.present += 1;
                return;
            }
            Err(error) => {
                if matches!(error, WriteError::Busy | WriteError::Unavailable | WriteError::Stopping) {
                    use schemas::error::Classify;
                    self.overload = Some(refusal::status(error.class()));
                }
                (None, error.to_string())
            }
        };
        self.failed += 1;
        self.rows.insert(number, json!({"row": number, "form_id": id, "error": problem}));
    }

    /// 200 if the rows were looked at; what was not stored as a form is in the report. An overload is the request's own
    /// failure, so that it is repeated.
    fn response(self) -> Response {
        let status = self.overload.unwrap_or(StatusCode::OK);
        let rows: Vec<Value> = self.rows.into_values().collect();
        let body = json!({"stored": self.stored, "present": self.present, "failed": self.failed, "rows": rows});
        with_position(refusal::with_advice((status, Json(body)).into_response()), self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_arrays_or_lines() {
        for body in ["[{\"a\":1},{\"a\":2}]", "{\"a\":1}\n\n{\"a\":2}\n"] {
            assert_eq!(rows(body.as_bytes()).unwrap().len(), 2);
        }
        let mixed = rows(b"{\"a\":1}\nnonsense\n[1]").unwrap();
        assert_eq!(mixed.iter().filter(|row| row.is_err()).count(), 2);
        assert!(rows(b"[{}").is_err());
    }
}
