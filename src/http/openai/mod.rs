//! `/v1`: an endpoint that OpenAI's clients can use unchanged, with a tenant's API key.
//!
//! Requests are told to [`crate::chat`] in no provider's format, and its events to the client in OpenAI's. What breaks
//! real clients is kept in mind here: no `id:` lines, comments as heartbeats, an error event instead of a silent end,
//! usage only for whoever asked for it, `index` on every tool call, `data: [DONE]` after a whole answer and only then.

mod chunks;
pub mod completions;
pub mod embeddings;
pub mod error;
pub mod extract;
pub mod models;
mod request;
mod stream;

use axum::response::IntoResponse as _;
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::AppState;

/// Bodies hold whole conversations, and images in Base64. Nobody's body is read before their key is verified.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// The paths of this endpoint: what is not found below is said in OpenAI's shape too.
pub const PREFIX: &str = "/v1/";

/// The routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /v1/chat/completions
        .routes(routes!(completions::create))
        // /v1/embeddings
        .routes(routes!(embeddings::create))
        // /v1/models, /v1/models/{model}
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .route("/v1/models/{model}/{*rest}", get(models::retrieve_with_slashes))
        .layer(CatchPanicLayer::custom(|panic: Box<dyn std::any::Any + Send>| {
            let place = panic.downcast_ref::<&str>().copied().unwrap_or("a panic");
            tracing::error!(panic = place, "a handler panicked");
            error::OpenAiError::internal().into_response()
        }))
}
