//! Bodies of `GET /platform/v1/connections`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The connections to tenants' databases, as the server that answers sees them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    /// The server that answers.
    pub server_id: Uuid,
    /// Each database server that it has a budget of.
    pub database_servers: Vec<DatabaseServerConnections>,
    /// Tenants whose database is left alone for a moment, for it failed repeatedly.
    pub breakers: Vec<OpenBreaker>,
}

/// The connections to one database server.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DatabaseServerConnections {
    /// Its name: `cluster:<id>`, or `own:<host>:<port>` for one of a client's own.
    pub name: String,
    /// The cluster's name, if it is one.
    pub cluster: Option<String>,
    /// Connections that all Freehold servers together may have.
    pub budget: usize,
    /// How many of them are this server's.
    pub granted: usize,
    /// How many it has: being opened, idle, in use, or being closed.
    pub open: usize,
    /// How many of those are idle.
    pub idle: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// The tenants with the most, at most ten.
    pub tenants: Vec<TenantConnections>,
    /// How the budget is divided over the Freehold servers.
    pub shares: Vec<ConnectionShare>,
}

/// One tenant's connections.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantConnections {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Its slug, if this server knows it.
    pub slug: Option<String>,
    /// Connections it has.
    pub open: usize,
    /// How many of those are idle.
    pub idle: usize,
    /// Its requests that wait for one.
    pub waiting: usize,
}

/// A Freehold server's part of a budget.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ConnectionShare {
    /// The server.
    pub server_id: Uuid,
    /// What it may have.
    pub granted: usize,
    /// What it had when it said so last.
    pub open: usize,
    /// When that was.
    pub beat_at: DateTime<Utc>,
}

/// A tenant whose database is not asked for the moment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OpenBreaker {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Its slug.
    pub slug: String,
    /// The database server.
    pub database_server: String,
    /// What failed.
    pub reason: BreakerReason,
    /// Milliseconds until it is tried again.
    pub retry_after_ms: u64,
}

/// What failed repeatedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerReason {
    /// The database does not answer, or refuses connections.
    Connect,
    /// It refuses the credentials.
    Authentication,
}
