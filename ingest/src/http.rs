//! The writing endpoints: routes, limits, and who is calling.
//!
//! Every path exists with and without its final slash. Bodies may be gzipped; limits count inflated bytes.

mod caller;
mod definitions;
mod directory;
mod domain;
mod envelope;
mod import;
mod names;
mod operations;
mod receiver;
mod refusal;
mod room;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue},
    response::Response,
    routing::MethodRouter,
};
use schemas::{port::ViewReader, position::Position};
use tower_http::decompression::RequestDecompressionLayer;

use self::room::BodyRoom;
use crate::Ingest;

/// Names the position of a write in answers.
const POSITION_HEADER: &str = "x-millrace-position";

/// What every handler gets.
#[derive(Clone, Debug)]
pub(crate) struct HttpState {
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) views: Arc<dyn ViewReader>,
    pub(crate) room: BodyRoom,
}

/// All routes of this crate.
pub(crate) fn routes(ingest: Arc<Ingest>, views: Arc<dyn ViewReader>) -> Router {
    let limit = ingest.config.max_request_bytes;
    let room = BodyRoom::new(&ingest.config);
    let state = HttpState { ingest, views, room };
    let router = Router::new();
    let router = receiver::routes(router);
    let router = directory::routes(router);
    let router = definitions::routes(router);
    let router = names::routes(router);
    let router = operations::routes(router);
    let router = import::routes(router);
    let router = domain::routes(router);
    // Inflating is the outer layer, so that the limit counts what comes out of it.
    router
        .layer(DefaultBodyLimit::max(limit))
        .layer(RequestDecompressionLayer::new().gzip(true).pass_through_unaccepted(false))
        .with_state(state)
}

/// Adds the position of a write to its answer; a write that changed nothing has none.
fn with_position(mut response: Response, position: impl Into<Option<Position>>) -> Response {
    let value = position.into().and_then(|position| HeaderValue::from_str(&position.to_string()).ok());
    if let Some(value) = value {
        response.headers_mut().insert(HeaderName::from_static(POSITION_HEADER), value);
    }
    response
}

/// A path with and without its final slash.
fn both(router: Router<HttpState>, path: &str, methods: MethodRouter<HttpState>) -> Router<HttpState> {
    router.route(path, methods.clone()).route(&format!("{path}/"), methods)
}
