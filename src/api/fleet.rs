//! The part of the platform API that works on all tenants at once: migrating and verifying their databases.

use chrono::{DateTime, Utc};
use garde::Validate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::platform::Operation;

/// `POST /platform/v1/fleet/migrations`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateFleetMigrationRequest {
    /// The slugs of the tenants to migrate; all when left out.
    #[garde(inner(length(max = 20_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// How many tenants go first; if one of them fails, no other is touched. One when left out.
    #[garde(dive)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// How many tenants are migrated at once, which is also the number of connections. 8 when left out.
    #[garde(inner(range(min = 1, max = 64)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// What a failure after the canaries means: `stop` when left out.
    #[garde(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// Stop after so many failures.
    #[garde(inner(range(min = 1)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// The version to migrate to; the server's newest when left out.
    #[garde(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_version: Option<i64>,
    /// Look at every selected tenant, also at those that the registry says are up to date.
    #[garde(skip)]
    pub recheck: bool,
    /// How long a statement waits for a lock, in milliseconds: 2,000 when left out.
    #[garde(inner(range(min = 10, max = 600_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_timeout_ms: Option<u64>,
    /// How long a statement may run, in milliseconds: 60,000 when left out.
    #[garde(inner(range(min = 10, max = 86_400_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout_ms: Option<u64>,
    /// How long a statement outside a transaction (`CREATE INDEX CONCURRENTLY`) may run, in milliseconds: an hour when
    /// left out.
    #[garde(inner(range(min = 10, max = 86_400_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_timeout_ms: Option<u64>,
    /// Only say what would be done.
    #[garde(skip)]
    pub plan_only: bool,
}

/// `POST /platform/v1/fleet/verifications`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateFleetVerificationRequest {
    /// The slugs of the tenants to verify; all when left out.
    #[garde(inner(length(max = 20_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// How many tenants are looked at at once, which is also the number of connections. 8 when left out.
    #[garde(inner(range(min = 1, max = 64)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

/// How many tenants go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Canary {
    /// So many; 0 for none.
    Count(#[garde(range(max = 10_000))] u32),
    /// So many of a hundred, rounded up.
    Percent(#[garde(range(max = 100))] u32),
}

/// What a failure means for those that have not been touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// They stay untouched.
    #[default]
    Stop,
    /// They are migrated nevertheless.
    Continue,
}

/// What became of a request to migrate the fleet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FleetMigration {
    /// Every selected tenant in service is up to date: nothing was begun.
    pub nothing_to_do: bool,
    /// The version that was asked for.
    pub target_version: i64,
    /// The operation that migrates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// What would be done, if that was all that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<FleetPlan>,
}

/// What a migration would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetPlan {
    /// How many tenants would be migrated.
    pub tenants: i64,
    /// The first of them, canaries before the others.
    pub first: Vec<PlannedTenant>,
    /// The migrations that some of them lack.
    pub migrations: Vec<PlannedMigration>,
    /// Tenants that would be skipped, the first of them.
    pub skipped: Vec<PlannedSkip>,
}

/// A tenant that would be migrated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedTenant {
    /// Its slug.
    pub tenant: String,
    /// Whether it goes first.
    pub wave: Wave,
    /// The version it has.
    pub from_version: Option<i64>,
}

/// A tenant that would not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedSkip {
    /// Its slug.
    pub tenant: String,
    /// Why.
    pub code: String,
}

/// A migration that would be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedMigration {
    /// Its version.
    pub version: i64,
    /// What it does, from its file's name.
    pub description: String,
    /// Whether it runs in a transaction.
    pub transaction: bool,
}

/// When a tenant's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wave {
    /// First.
    Canary,
    /// After all canaries have succeeded.
    Fleet,
}

/// How far a run is with one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FleetTenantState {
    /// Not begun.
    Pending,
    /// In hand.
    Running,
    /// It is at the version that was asked for; in a verification: nothing was found.
    Done,
    /// It failed; in a verification: something was found.
    Failed,
    /// Left alone, for the reason given.
    Skipped,
}

/// What became of one tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FleetTenant {
    /// The tenant's id.
    pub tenant_id: Uuid,
    /// Its slug.
    pub tenant: String,
    /// When its turn was.
    pub wave: Wave,
    /// How far the run is with it.
    pub state: FleetTenantState,
    /// The version it had.
    pub from_version: Option<i64>,
    /// The version it has.
    pub to_version: Option<i64>,
    /// Why it failed or was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FleetTenantError>,
    /// What a verification found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<FleetFinding>,
    /// When it was begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Why a tenant failed or was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetTenantError {
    /// A stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Something a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetFinding {
    /// `missing_migration`, `altered_migration`, `unknown_migration`, `schema_drift`, `registry_differs` or `unreachable`.
    pub code: String,
    /// What is otherwise than it has to be, with names.
    pub message: String,
}

/// A page of tenants of a run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FleetTenantPage {
    /// In the order they were taken.
    pub items: Vec<FleetTenant>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
