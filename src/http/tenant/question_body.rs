//! Bodies of questions, which may hold megabytes of images.
//!
//! What is admitted is bounded by plans. But a body is read before that, and whoever has a token may send one, visitors included. So all
//! large bodies share a room, from their first byte until their question is stored: whoever finds it full waits a moment, and is then
//! told to come again. A body that takes too long to arrive loses its room. Questions of ordinary length need none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::app::AppState;
use crate::http::error::ApiError;
use crate::http::extract::Body;

/// The largest body: 10 MiB of images in Base64, and the text.
pub(super) const LARGEST: usize = 14 * 1024 * 1024;
/// The longest text of a question, in bytes, of which no settings allow even the half. A body of no more needs no room.
pub(super) const LONGEST_TEXT: usize = 256 * 1024;
/// All large bodies at once, in bytes. Each is there some four times over for a moment: as it came, in its parts, as bytes of images and in
/// the statement that stores them.
const ROOM: usize = 128 * 1024 * 1024;
const KIB: usize = 1024;

/// Room for large bodies. Cheap to clone.
#[derive(Clone)]
pub struct QuestionRoom {
    free: Arc<Semaphore>,
    all: usize,
    /// How long somebody waits for room.
    wait: Duration,
    /// How long a body may take to arrive.
    patience: Duration,
}

impl fmt::Debug for QuestionRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuestionRoom").field("free_kib", &self.free.available_permits()).finish_non_exhaustive()
    }
}

impl Default for QuestionRoom {
    fn default() -> Self {
        Self::new(ROOM, Duration::from_secs(5), Duration::from_secs(90))
    }
}

impl QuestionRoom {
    fn new(all: usize, wait: Duration, patience: Duration) -> Self {
        let all = all / KIB;
        Self { free: Arc::new(Semaphore::new(all)), all, wait, patience }
    }

    /// Room for a body, of which nobody knows how large it is if its length is not given.
    async fn enter(&self, length: Option<usize>) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let length = length.unwrap_or(LARGEST).min(LARGEST);
        if length <= LONGEST_TEXT {
            return Ok(None);
        }
        let needed = u32::try_from(length.div_ceil(KIB).min(self.all)).unwrap_or(u32::MAX);
        match timeout(self.wait, Arc::clone(&self.free).acquire_many_owned(needed)).await {
            Ok(Ok(room)) => Ok(Some(room)),
            _ => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many images are being sent at once")
                .retry_after(self.wait)),
        }
    }
}

impl FromRef<AppState> for QuestionRoom {
    fn from_ref(state: &AppState) -> Self {
        state.question_room.clone()
    }
}

/// A question, and the room that its body takes until this is dropped.
#[derive(Debug)]
pub struct QuestionBody<T> {
    /// What was sent.
    pub body: T,
    /// None if it is small.
    pub room: Option<OwnedSemaphorePermit>,
}

impl<T, S> FromRequest<S> for QuestionBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
    QuestionRoom: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        let room_for_all = QuestionRoom::from_ref(state);
        let room = room_for_all.enter(length).await?;
        let read = Body::from_request(request, state);
        let Body(body) = match room {
            None => read.await?,
            Some(_) => timeout(room_for_all.patience, read).await.map_err(|_| {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The body took too long to arrive")
            })??,
        };
        Ok(Self { body, room })
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::DefaultBodyLimit;
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn room(patience: u64) -> QuestionRoom {
        QuestionRoom::new(2 * MIB, Duration::from_millis(50), Duration::from_millis(patience))
    }

    fn request(body: axum::body::Body, length: Option<usize>) -> Request {
        let request = Request::builder().method("POST").header(header::CONTENT_TYPE, "application/json");
        let request = match length {
            Some(length) => request.header(header::CONTENT_LENGTH, length),
            None => request,
        };
        let mut request = request.body(body).unwrap();
        DefaultBodyLimit::max(LARGEST).apply(&mut request);
        request
    }

    async fn read(room: &QuestionRoom, size: usize, told: bool) -> Result<QuestionBody<Value>, ApiError> {
        let text = format!("\"{}\"", "x".repeat(size - 2));
        let request = request(text.into(), told.then_some(size));
        QuestionBody::from_request(request, room).await
    }

    #[tokio::test]
    async fn large_bodies_share_a_room_and_small_ones_need_none() {
        let room = room(10_000);
        let first = read(&room, MIB, true).await.unwrap();
        assert_eq!(first.body.as_str().map(str::len), Some(MIB - 2));
        let second = read(&room, MIB, true).await.unwrap();
        let refused = read(&room, MIB / 2, true).await.unwrap_err();
        assert_eq!((refused.status(), refused.code()), (StatusCode::SERVICE_UNAVAILABLE, "busy"));
        assert!(read(&room, LONGEST_TEXT, true).await.unwrap().room.is_none());
        // What is given back is used by the next.
        drop(second);
        drop(read(&room, MIB, true).await.unwrap());
        // One that does not say how large it is counts as the largest, and waits for all there is.
        assert!(read(&room, 10, false).await.is_err());
        drop(first);
        assert!(read(&room, 10, false).await.unwrap().room.is_some());
        assert_eq!(room.free.available_permits(), 2 * MIB / KIB);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_loses_its_room() {
        let room = room(50);
        let never = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        let request = request(axum::body::Body::from_stream(never), Some(MIB));
        let refused = QuestionBody::<Value>::from_request(request, &room).await.unwrap_err();
        assert_eq!((refused.status(), refused.code()), (StatusCode::REQUEST_TIMEOUT, "body_too_slow"));
        assert_eq!(room.free.available_permits(), 2 * MIB / KIB);
    }
}
