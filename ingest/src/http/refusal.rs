//! Refusals in JSON, as the writing API answers them (rest-api.md §1.3).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemas::error::{Classify, ErrorClass};
use serde_json::json;

use crate::error::WriteError;

/// Status of a class of failure.
pub(super) fn status(class: ErrorClass) -> StatusCode {
    StatusCode::from_u16(class.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Adds what a client needs to know besides the status: `Retry-After` with 429 and with nothing else (rest-api.md §1.5).
pub(super) fn with_advice(mut response: Response) -> Response {
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// `{"error": text}` with the status of the error's class.
pub(super) fn json_error(error: &(impl Classify + std::fmt::Display)) -> Response {
    message(status(error.class()), &error.to_string())
}

/// `{"error": text}`.
pub(super) fn message(status: StatusCode, text: &str) -> Response {
    with_advice((status, Json(json!({"error": text}))).into_response())
}

impl IntoResponse for WriteError {
    fn into_response(self) -> Response {
        json_error(&self)
    }
}
