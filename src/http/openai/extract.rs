//! Handler arguments: a caller with an API key, and the bytes of a body.

use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::error::OpenAiError;
use crate::access::VerifiedApiKey;
use crate::api::api_keys::ApiKeyScope;
use crate::app::AppState;
use crate::http::extract::bearer;

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
        Ok(Self { key, scope: PhantomData })
    }
}

/// A body as it came, within its limit. Its content type is not looked at: there is only one.
#[derive(Debug)]
pub struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = OpenAiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, OpenAiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                OpenAiError::body_too_large()
            } else {
                OpenAiError::body_broken()
            }
        })
    }
}
