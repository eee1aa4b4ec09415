//! Bodies of questions, which may hold megabytes of images.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use crate::api::limits::VISION;
use crate::app::AppState;
use crate::chat::Held;
use crate::http::error::ApiError;
use crate::http::extract::{Body, Sender};
use crate::http::large_body::{self, Bounds, PATIENCE, Unread};
use crate::http::limits;

/// The largest body: 10 MiB of images in Base64, and the text.
pub(super) const LARGEST: usize = 14 * 1024 * 1024;
/// The longest text of a question, in bytes, of which no settings allow even the half. A body of no more needs no room.
pub(super) const LONGEST_TEXT: usize = crate::chat::ROOM_SMALL;

/// A question, and the room that it takes as long as anybody holds it.
#[derive(Debug)]
pub struct QuestionBody<T> {
    /// What was sent.
    pub body: T,
    /// None if it is small.
    pub room: Option<Arc<Held>>,
}

impl<T: DeserializeOwned> FromRequest<AppState> for QuestionBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let Sender(db) = Sender::of(&request).ok_or_else(ApiError::unauthenticated)?;
        let record = db.record();
        let bounds = Bounds { room: state.chat.room(), tenant: record.id, most: LARGEST, patience: PATIENCE };
        // Nothing but images makes a question so large.
        let allowed = || limits::terms(state, record).require(VISION);
        let (parts, bytes, room) = large_body::read(request, bounds, allowed).await.map_err(|unread| match unread {
            Unread::TooLarge => ApiError::body_too_large(),
            Unread::Broken => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "The body broke off"),
            Unread::TooSlow => {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The body took too long to arrive")
            }
            Unread::Full(full) => crate::chat::ChatError::from(full).into(),
            Unread::Refused(refused) => refused.into(),
        })?;
        let Body(body) = Body::from_request(Request::from_parts(parts, bytes.into()), state).await?;
        Ok(Self { body, room })
    }
}
