//! The tenant's API: for a client's own users.

pub mod ai_keys;
mod answer_stream;
pub mod api_keys;
pub mod assistants;
pub mod auth;
pub mod chat;
pub mod config;
pub mod database;
pub mod feedback;
pub mod images;
pub mod me;
pub mod query;
pub mod quota;
pub mod sessions;
pub mod usage;
pub mod users;

use axum::extract::DefaultBodyLimit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::AppState;

/// Bodies of questions hold images in Base64: 10 MiB of them, and the text. Nobody's body is read before their token is verified, and
/// of a list of images no more is kept than there may be.
const QUESTION_BODY_LIMIT: usize = 14 * 1024 * 1024;

/// The routes of questions.
pub fn question_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /api/v1/chat
        .routes(routes!(chat::chat))
        // /api/ai/query
        .routes(routes!(query::query))
        .layer(DefaultBodyLimit::max(QUESTION_BODY_LIMIT))
}
