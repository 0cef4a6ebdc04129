//! `POST /a/{domain}/sql`: a statement in, its rows out as JSON, CSV or an Arrow stream.
//!
//! The body is the statement, or `{"sql": …, "params": […]}`. `Accept` chooses the format; JSON comes as an array of
//! objects, or with `?shape=table` as `{"columns": […], "rows": [[…]]}`. What fits into the first megabyte is checked to the
//! end before the answer begins, so that errors have their status; a failure after that breaks the transfer off, and is
//! never a short but well-formed answer.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Request, header, request::Parts},
    response::Response,
    routing::post,
};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use schemas::port::Principal;
use serde::Deserialize;

use super::{
    Doors, Freshness,
    encode::{Encoder, Format},
    http::{self, Asked},
};
use crate::{
    QueryError,
    engine::{Answer, Ask, Prepared},
};

/// Bytes that are encoded before the answer begins.
const CHECKED_BYTES: usize = 1 << 20;

pub(crate) fn routes() -> Router<Doors> {
    Router::new().route("/a/{domain}/sql", post(sql)).route("/a/{domain}/sql/", post(sql))
}

/// The body in its JSON form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    sql: String,
    #[serde(default)]
    params: Vec<serde_json::Value>,
}

async fn sql(State(doors): State<Doors>, Path(domain): Path<String>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let principal = match http::caller(&doors.state, &domain, &Asked::of(&parts)).await {
        Ok(principal) => principal,
        Err(error) => return http::refuse_json(&error),
    };
    match answer(&doors, &principal, parts, body).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = http::refuse_json(&error);
            http::stamp(&mut response, &Freshness::now(&doors.state, &principal.domain));
            response
        }
    }
}

async fn answer(doors: &Doors, principal: &Principal, parts: Parts, body: Body) -> Result<Response, QueryError> {
    let engine = doors.engine()?;
    let config = engine.config();
    let parameters = http::parameters(&parts.uri)?;
    let receipt = http::receipt(&parameters)?;
    let format = format(&parts.headers, &parameters);
    let limit = config.max_statement_bytes;
    let body = axum::body::to_bytes(body, limit.saturating_mul(2)).await.map_err(|_| QueryError::TooLong { limit })?;
    let Statement { sql, params } = statement(&parts.headers, &body)?;
    let mut statements = engine.parse(&sql)?;
    let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(QueryError::Invalid("send one statement per request".to_owned()));
    };
    let scope = engine.scope(&principal.domain, &principal.username.as_str().into(), receipt, None).await?;
    let ask = Ask { protocol: "http", timeout: config.statement_timeout(), max_rows: config.max_result_rows };
    let answer = if params.is_empty() {
        let plan = engine.plan(&scope, &statement)?;
        engine.run(&scope, plan, ask).await?
    } else {
        let values = params.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
        let prepared = Prepared::new(engine, &scope, statement)?;
        engine.run_prepared(&scope, &prepared, values, ask).await?
    };
    let mut response = respond(answer, format).await?;
    http::stamp(&mut response, &Freshness::of(&scope.snapshot, &scope.tables));
    Ok(response)
}

fn statement(headers: &HeaderMap, body: &Bytes) -> Result<Statement, QueryError> {
    let text = std::str::from_utf8(body).map_err(|_| QueryError::Syntax("the statement is not UTF-8".to_owned()))?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/json") || text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| {
            QueryError::Parameter(format!(
                "could not read request: {error}; send the statement, or an object with `sql`"
            ))
        });
    }
    Ok(Statement { sql: text.to_owned(), params: Vec::new() })
}

fn scalar(value: &serde_json::Value) -> Result<ScalarValue, QueryError> {
    use serde_json::Value;
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => ScalarValue::Int64(Some(number)),
            (None, Some(number)) => ScalarValue::Float64(Some(number)),
            (None, None) => return Err(QueryError::Parameter(format!("number {number} is out of range"))),
        },
        Value::String(text) => ScalarValue::Utf8(Some(text.clone())),
        Value::Array(_) | Value::Object(_) => {
            return Err(QueryError::Parameter("params may hold texts, numbers, booleans and null".to_owned()));
        }
    })
}

fn format(headers: &HeaderMap, parameters: &[(String, String)]) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("application/vnd.apache.arrow.stream") {
        Format::Arrow
    } else if accept.contains("text/csv") {
        Format::Csv
    } else if parameters.iter().any(|(name, value)| name == "shape" && value == "table") {
        Format::Table
    } else {
        Format::Objects
    }
}

async fn respond(mut answer: Answer, format: Format) -> Result<Response, QueryError> {
    let mut encoder = Encoder::new(format, &answer.schema())?;
    let mut first: Vec<u8> = Vec::new();
    let mut ended = false;
    while first.len() < CHECKED_BYTES {
        match answer.next().await? {
            Some(batch) => encoder.write(&batch)?,
            None => {
                encoder.finish()?;
                ended = true;
            }
        }
        first.append(&mut encoder.take());
        if ended {
            break;
        }
    }
    let body = if ended {
        Body::from(first)
    } else {
        let rest = futures::stream::try_unfold(Some((answer, encoder)), |running| async move {
            let Some((mut answer, mut encoder)) = running else { return Ok(None) };
            let step = async {
                let ended = match answer.next().await? {
                    Some(batch) => {
                        encoder.write(&batch)?;
                        false
                    }
                    None => {
                        encoder.finish()?;
                        true
                    }
                };
                Ok::<_, QueryError>(ended)
            };
            match step.await {
                Ok(ended) => {
                    let bytes = Bytes::from(encoder.take());
                    Ok(Some((bytes, (!ended).then_some((answer, encoder)))))
                }
                Err(error) => {
                    tracing::warn!(%error, "broke off an answer");
                    Err(std::io::Error::other(error))
                }
            }
        });
        let first = futures::stream::once(async move { Ok::<_, std::io::Error>(Bytes::from(first)) });
        Body::from_stream(futures::StreamExt::chain(first, rest))
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    Ok(response)
}
