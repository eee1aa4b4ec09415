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
pub mod question_body;
pub mod quota;
pub mod sessions;
pub mod usage;
pub mod users;

use axum::extract::DefaultBodyLimit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::AppState;

/// The routes of questions, whose bodies may be large. Nobody's is read before their token is verified.
pub fn question_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /api/v1/chat
        .routes(routes!(chat::chat))
        // /api/ai/query
        .routes(routes!(query::query))
        .layer(DefaultBodyLimit::max(question_body::LARGEST))
}
