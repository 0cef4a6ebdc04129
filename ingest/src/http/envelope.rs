//! OpenRosa answers: what a phone reads after a submission (forms-and-cases.md §5).

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use quick_xml::escape::escape;

use super::{refusal, with_position};
use crate::{
    error::WriteError,
    submit::{Outcome, Receipt},
};

/// Version of the protocol that the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Anything but 3.
    Two,
    /// Header `X-OpenRosa-Version: 3.0`.
    Three,
}

const SUCCESS: &str = "   √   ";

fn body(nature: &str, message: &str) -> String {
    format!(
        "<OpenRosaResponse xmlns=\"http://openrosa.org/http/response\"><message nature=\"{nature}\">{}</message>\
         </OpenRosaResponse>",
        escape(message)
    )
}

fn answer(status: StatusCode, nature: &str, message: &str) -> Response {
    let mut response = (status, Body::from(body(nature, message))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
    headers.insert(HeaderName::from_static("x-openrosa-version"), HeaderValue::from_static("1.0"));
    response
}

/// What was sent was accepted.
pub(super) fn accepted() -> Response {
    answer(StatusCode::CREATED, "submit_success", SUCCESS)
}

/// A demo's form was accepted and is not going to be stored.
pub(super) fn ignored() -> Response {
    answer(StatusCode::CREATED, "submit_success", "The form was ignored: it is not of the demo user.")
}

/// The request cannot be a form, and nothing was stored.
pub(super) fn unacceptable(problem: &str) -> Response {
    answer(StatusCode::UNPROCESSABLE_ENTITY, "processing_failure", problem)
}

/// The answer to a stored form.
pub(super) fn stored(receipt: &Receipt, version: Version) -> Response {
    let mut response = match (&receipt.outcome, version) {
        (Outcome::Normal | Outcome::Edited, _) | (Outcome::Duplicate { .. }, Version::Three) => accepted(),
        (Outcome::Duplicate { problem } | Outcome::Failed { problem, known: true }, Version::Two) => {
            answer(StatusCode::CREATED, "submit_error", problem)
        }
        (Outcome::Failed { problem, known: true }, Version::Three) => unacceptable(problem),
        (Outcome::Failed { problem, known: false }, _) => {
            answer(StatusCode::INTERNAL_SERVER_ERROR, "submit_error", problem)
        }
        (Outcome::Broken { problem }, _) => unacceptable(&format!("There was an error processing the form: {problem}")),
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(receipt.form_id.as_str()) {
        headers.insert(HeaderName::from_static("x-commcarehq-formid"), id);
    }
    headers.insert(header::LOCATION, HeaderValue::from_static("/"));
    with_position(response, receipt.position)
}

/// The answer when nothing was stored: plain text; the phone keeps the form and tries again.
pub(super) fn refused(error: &WriteError) -> Response {
    use schemas::error::Classify;
    let status = match error {
        WriteError::Locked => StatusCode::LOCKED,
        WriteError::UnknownDomain(_) => StatusCode::BAD_REQUEST,
        error => refusal::status(error.class()),
    };
    refusal::with_advice((status, error.to_string()).into_response())
}

#[cfg(test)]
mod tests {
    use schemas::{
        id::FormId,
        position::{LaneId, Position, Sequence},
    };

    use super::*;
    use crate::http::POSITION_HEADER;

    #[test]
    fn the_table_of_section_5() {
        let problem = || "a < b".to_owned();
        let failed = |known| Outcome::Failed { problem: problem(), known };
        for (outcome, two, three) in [
            (Outcome::Normal, 201, 201),
            (Outcome::Edited, 201, 201),
            (Outcome::Duplicate { problem: problem() }, 201, 201),
            (failed(true), 201, 422),
            (failed(false), 500, 500),
            (Outcome::Broken { problem: problem() }, 422, 422),
        ] {
            let position = Position { lane: LaneId::FIRST, sequence: Sequence(7) };
            let receipt = Receipt { form_id: FormId::new("f").unwrap(), outcome, position };
            for (version, expected) in [(Version::Two, two), (Version::Three, three)] {
                let response = stored(&receipt, version);
                assert_eq!(response.status().as_u16(), expected, "{receipt:?} {version:?}");
                assert_eq!(response.headers()[POSITION_HEADER], "m1.0-0.7");
                assert_eq!(response.headers()["x-commcarehq-formid"], "f");
            }
        }
    }

    #[test]
    fn bodies_are_the_contracts_and_escaped() {
        assert_eq!(
            body("submit_success", SUCCESS),
            "<OpenRosaResponse xmlns=\"http://openrosa.org/http/response\"><message nature=\"submit_success\">   √   \
             </message></OpenRosaResponse>"
        );
        assert!(body("submit_error", "a < b").contains("a &lt; b"));
    }

    #[test]
    fn only_overload_says_when_to_retry() {
        for (error, status, retry) in [
            (WriteError::Busy, 429, true),
            (WriteError::Locked, 423, false),
            (WriteError::Unavailable, 503, false),
            (WriteError::Stopping, 503, false),
            (WriteError::Internal, 500, false),
        ] {
            let response = refused(&error);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retry);
        }
    }
}
