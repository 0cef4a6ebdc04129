//! Memory for bodies: what large requests may hold at the same time.
//!
//! Small requests, which are nearly all, pass freely. A request that grows beyond waits until there is room for all of it;
//! meanwhile the sender is not read from. So fifty phones with photos take turns instead of taking the memory.

use std::sync::Arc;

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Duration,
};

use super::{HttpState, refusal};
use crate::config::IngestConfig;

/// What a request may hold without asking, and the unit in which room is counted.
const MEGABYTE: usize = 1024 * 1024;
/// Longest wait for room.
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for large bodies.
#[derive(Clone, Debug)]
pub(crate) struct BodyRoom {
    megabytes: Arc<Semaphore>,
    all: u32,
    /// What a request of unknown length asks for.
    largest: u32,
}

impl BodyRoom {
    /// As the settings say, and at least for one request of the largest kind.
    pub(crate) fn new(config: &IngestConfig) -> Self {
        let largest = megabytes(config.max_request_bytes);
        let all = config.body_memory_mb.max(largest);
        let room = usize::try_from(all).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self { megabytes: Arc::new(Semaphore::new(room)), all, largest }
    }

    /// For one request.
    pub(super) fn request(&self, headers: &HeaderMap) -> Held {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let wants = length.map_or(self.largest, megabytes).min(self.all);
        Held { room: self.clone(), wants, read: 0, permit: None }
    }
}

fn megabytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(MEGABYTE)).unwrap_or(u32::MAX)
}

/// What one request holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: BodyRoom,
    wants: u32,
    read: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Counts bytes that were read, and waits for room once they are many.
    ///
    /// # Errors
    /// 429 if there is no room for a minute.
    pub(super) async fn count(&mut self, bytes: usize) -> Result<(), Box<Response>> {
        self.read += bytes;
        if self.read <= MEGABYTE || self.permit.is_some() {
            return Ok(());
        }
        let wait = Arc::clone(&self.room.megabytes).acquire_many_owned(self.wants);
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(permit)) => {
                self.permit = Some(permit);
                Ok(())
            }
            _ => {
                let text = "too many large submissions at the same time; try again";
                Err(Box::new(refusal::with_advice((StatusCode::TOO_MANY_REQUESTS, text).into_response())))
            }
        }
    }
}

/// A whole body, in the room that it holds.
#[derive(Debug)]
pub(super) struct Sent {
    /// What was sent.
    pub(super) bytes: Bytes,
    /// Kept until the body is done with.
    _held: Held,
}

impl FromRequest<HttpState> for Sent {
    type Rejection = Response;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, Response> {
        let limit = state.ingest.config.max_request_bytes;
        let mut held = state.room.request(request.headers());
        let mut body = request.into_body().into_data_stream();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            let unreadable =
                |error| refusal::message(StatusCode::BAD_REQUEST, &format!("the body could not be read: {error}"));
            let chunk = chunk.map_err(unreadable)?;
            if bytes.len() + chunk.len() > limit {
                let text = format!("the body is larger than {} MB", limit / MEGABYTE);
                return Err(refusal::message(StatusCode::PAYLOAD_TOO_LARGE, &text));
            }
            held.count(chunk.len()).await.map_err(|refusal| *refusal)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Self { bytes: bytes.freeze(), _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_requests_pass_and_large_ones_take_turns() {
        let config = IngestConfig { max_request_bytes: 4 * MEGABYTE, body_memory_mb: 1, ..IngestConfig::default() };
        let room = BodyRoom::new(&config);
        let mut first = room.request(&HeaderMap::new());
        first.count(2 * MEGABYTE).await.unwrap();
        let mut small = room.request(&HeaderMap::new());
        small.count(MEGABYTE).await.unwrap();
        let mut second = room.request(&HeaderMap::new());
        let waiting = tokio::time::timeout(Duration::from_millis(20), second.count(2 * MEGABYTE)).await;
        assert!(waiting.is_err(), "there is no room for a second one");
        drop(first);
        let mut second = room.request(&HeaderMap::new());
        tokio::time::timeout(PATIENCE, second.count(2 * MEGABYTE)).await.unwrap().unwrap();
    }
}
