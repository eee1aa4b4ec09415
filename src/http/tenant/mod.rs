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
pub mod me;
pub mod query;
pub mod quota;
pub mod sessions;
pub mod usage;
pub mod users;
