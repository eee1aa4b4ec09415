//! Handler arguments: a caller with an API key, and the bytes of a body.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::BODY_LIMIT;
use super::error::OpenAiError;
use crate::access::VerifiedApiKey;
use crate::api::api_keys::ApiKeyScope;
use crate::app::AppState;
use crate::chat::{ChatError, Held};
use crate::http::error::ApiError;
use crate::http::extract::{Sender, bearer};
use crate::http::large_body::{self, Bounds, PATIENCE, Unread};

/// A scope that a handler can ask for by type.
pub trait Scope: Send + Sync + 'static {
    /// The scope.
    const SCOPE: ApiKeyScope;
}

/// Answers of models.
#[derive(Debug, Clone, Copy)]
pub struct ChatScope;

/// Embeddings.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingsScope;

/// The list of models.
#[derive(Debug, Clone, Copy)]
pub struct ModelsScope;

impl Scope for ChatScope {
    const SCOPE: ApiKeyScope = ApiKeyScope::Chat;
}

impl Scope for EmbeddingsScope {
    const SCOPE: ApiKeyScope = ApiKeyScope::Embeddings;
}

impl Scope for ModelsScope {
    const SCOPE: ApiKeyScope = ApiKeyScope::Models;
}

/// Whoever has an API key that is in force and has the scope `S`. Access tokens of users prove nothing here, as API
/// keys prove nothing anywhere else.
#[derive(Debug)]
pub struct ApiKeyCaller<S> {
    /// The key, and its tenant's database.
    pub key: VerifiedApiKey,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<AppState> for ApiKeyCaller<S> {
    type Rejection = OpenAiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, OpenAiError> {
        let key = state.api_keys.verify(bearer(parts)?).await?;
        tracing::Span::current().record("tenant", key.db.record().slug.as_str());
        if !key.allows(S::SCOPE) {
            return Err(OpenAiError::scope_missing(S::SCOPE));
        }
        parts.extensions.insert(Sender(key.db.clone()));
        Ok(Self { key, scope: PhantomData })
    }
}

/// A body as it came, within its limit, and the room that it takes as long as anybody holds it; none if it is small. Its content
/// type is not looked at: there is only one.
#[derive(Debug)]
pub struct RawBody(pub Bytes, pub Option<Arc<Held>>);

impl FromRequest<AppState> for RawBody {
    type Rejection = OpenAiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, OpenAiError> {
        let Sender(db) = Sender::of(&request).ok_or_else(ApiError::unauthenticated)?;
        let room = state.chat.room();
        let bounds = Bounds { room, tenant: db.record().id, most: BODY_LIMIT, patience: PATIENCE };
        let read = large_body::read(request, bounds, || Ok::<(), Infallible>(())).await;
        let (_, body, held) = read.map_err(|unread| match unread {
            Unread::TooLarge => OpenAiError::body_too_large(),
            Unread::Broken => OpenAiError::body_broken(),
            Unread::TooSlow => {
                OpenAiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The body took too long to arrive.")
            }
            Unread::Full(full) => ApiError::from(ChatError::from(full)).into(),
            Unread::Refused(never) => match never {},
        })?;
        Ok(Self(body, held))
    }
}
