//! Request and response bodies of every HTTP interface, shared by the server and the CLI.
//!
//! These are plain data: serde and OpenAPI, and the limits on each field. They know nothing of how a request is
//! answered, and no feature or service may take or return them: a handler translates.

pub mod answer_cache;
pub mod api_keys;
pub mod assistants;
pub mod backup;
pub mod connections;
pub mod content_filter;
pub mod database;
pub mod doctor;
pub mod fleet;
pub mod fleet_audit;
pub mod images;
pub mod limits;
pub mod openai;
pub mod page;
pub mod platform;
pub mod rotation;
pub mod settings;
pub mod shared_models;
pub mod tenant;
pub mod usage;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// An error as problem JSON (RFC 9457). Programs read `code`; people read `title` and `detail`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the kind of problem is its `code`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened, in a few words that do not vary between occurrences.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable, machine-readable code such as `slug_taken`.
    pub code: String,
    /// What happened this time, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The fields that were refused, if the request was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
    /// What a check of a database found, if that is why the request was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<database::DatabaseFinding>,
    /// The operation that holds the tenant, if that is why the request was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<uuid::Uuid>,
    /// Names this request in the server's log.
    pub request_id: String,
}

/// For `Option<Option<T>>` in a change: tells `null`, which clears, from a field that is left out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Postgres stores no NUL in a text.
fn without_nul(text: &str, _: &()) -> garde::Result {
    if text.contains('\0') { Err(garde::Error::new("must not hold a NUL character")) } else { Ok(()) }
}

/// One refused field.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// The path of the field in the request body.
    pub field: String,
    /// Why it was refused.
    pub message: String,
}

/// The answer of `GET /api/health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`; `degraded` if tenants are served and something else fails; `failing` if they are not.
    pub status: HealthStatus,
    /// The server's version.
    pub version: String,
    /// Each check by itself.
    pub checks: Vec<HealthCheck>,
}

/// Whether something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// It works.
    Ok,
    /// It serves tenants, and something else does not work. Never said of a single check.
    Degraded,
    /// It does not.
    Failing,
}

/// One check of `GET /api/health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// What was checked: `platform_database`, `schema`, `worker`, `accepting_requests`.
    pub name: String,
    /// How it went.
    pub status: HealthStatus,
    /// How long the check took, in milliseconds.
    pub latency_ms: f64,
}
