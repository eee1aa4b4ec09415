//! What a check of a database found, and the bodies about a client's own database.

use chrono::{DateTime, Utc};
use garde::Validate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How serious a finding about a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingSeverity {
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, and should be looked at.
    Warning,
    /// The database cannot be used like this.
    Problem,
}

/// One thing that a check of a database found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DatabaseFinding {
    /// A stable code, for example `password_wrong`.
    pub code: String,
    /// How serious it is.
    pub severity: FindingSeverity,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// What a check found. Where nothing is a problem, the database can be used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DatabaseCheck {
    /// Whether the database can be used.
    pub suitable: bool,
    /// The version of the server, for example `17.5`, if it got that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Problems first, then warnings, then notes.
    pub findings: Vec<DatabaseFinding>,
}

/// `POST /platform/v1/database-checks` and `POST /api/v1/database/check`: a database to look at. Nothing is stored.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckDatabaseRequest {
    /// `postgres://user:password@host:port/database`.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub url: SecretString,
    /// Certificates of authorities that are trusted besides the public ones, in PEM format.
    #[garde(inner(length(max = 65536)))]
    #[serde(default)]
    pub ca: Option<String>,
}

/// `PUT /api/v1/database`: the client's own database.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutDatabaseRequest {
    /// `postgres://user:password@host:port/database`. It is stored sealed and never shown again.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub url: SecretString,
    /// Certificates of authorities that are trusted besides the public ones, in PEM format.
    #[garde(inner(length(max = 65536)))]
    #[serde(default)]
    pub ca: Option<String>,
}

/// The client's own database as it is registered. Never holds a credential.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OwnDatabase {
    /// Whether the tenant is in service with it, being set up, or still waiting for it.
    pub state: super::platform::TenantState,
    /// The host, once one was given.
    pub host: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The database's name.
    pub name: Option<String>,
    /// The role that signs in.
    pub role: Option<String>,
    /// How the connection is encrypted, as `sslmode` says it.
    pub sslmode: Option<String>,
    /// Whether an authority was given that is trusted besides the public ones.
    pub has_ca: bool,
    /// What the last check found.
    pub last_check: Option<DatabaseCheck>,
    /// When that was.
    pub checked_at: Option<DateTime<Utc>>,
}

/// The answer to `PUT /api/v1/database`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PutDatabaseResponse {
    /// The database as it is registered now.
    pub database: OwnDatabase,
    /// What the check found; no problem, or nothing would have been stored.
    pub check: DatabaseCheck,
    /// The operation that sets the database up, unless only its credentials changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<uuid::Uuid>,
}
