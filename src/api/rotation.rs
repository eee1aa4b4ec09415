//! The platform API's bodies about the rotation of credentials and keys.

use chrono::{DateTime, Utc};
use garde::Validate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What can be replaced by a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RotationKind {
    /// The password, and with it the login role, of a tenant's database.
    Database,
    /// The key that seals a tenant's secrets.
    DataKey,
    /// The key that signs a tenant's access tokens.
    SigningKey,
    /// The platform's key that wraps all data keys.
    MasterKey,
}

impl RotationKind {
    /// The kinds that belong to one tenant each.
    pub const OF_TENANTS: [Self; 3] = [Self::Database, Self::DataKey, Self::SigningKey];

    /// The name in the database, the same as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::DataKey => "data_key",
            Self::SigningKey => "signing_key",
            Self::MasterKey => "master_key",
        }
    }

    /// Reads the name in the database.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Database, Self::DataKey, Self::SigningKey, Self::MasterKey]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// `POST /platform/v1/rotations`. One of `tenants` and `all` is given, but for the master key, which is the platform's.
#[derive(Debug, Clone, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationRequest {
    /// What is to be replaced.
    #[garde(skip)]
    pub kind: RotationKind,
    /// For these tenants, by slug.
    #[garde(inner(length(min = 1, max = 10_000), inner(length(min = 1, max = 40))))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// For all tenants.
    #[garde(skip)]
    #[serde(default)]
    pub all: bool,
}

/// The answer to a request for rotations: one operation a tenant, in one group.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationResponse {
    /// The group of the operations, to follow them by; there is no such group when there are no operations.
    pub group_id: Uuid,
    /// The operations that were queued.
    pub operations: Vec<Uuid>,
    /// The tenants that were left out.
    pub skipped: Vec<SkippedTenant>,
}

/// A tenant that was left out of something done for many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedTenant {
    /// The tenant's slug.
    pub tenant: String,
    /// Why: `operation_in_progress`, `tenant_not_active` or `database_not_managed`.
    pub code: String,
    /// The operation that holds the tenant, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<Uuid>,
}

/// How often something is replaced by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleSetting {
    /// Every so many days, 1 to 3650.
    EveryDays(u16),
    /// Never.
    Off,
    /// For single tenants: as for all tenants.
    Default,
}

/// `PUT /platform/v1/rotation-schedules`.
#[derive(Debug, Clone, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationScheduleRequest {
    /// What is to be replaced. The master key is made by hand, and has no schedule.
    #[garde(skip)]
    pub kind: RotationKind,
    /// For these tenants, by slug.
    #[garde(inner(length(min = 1, max = 10_000), inner(length(min = 1, max = 40))))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// For all tenants that have no schedule of their own.
    #[garde(skip)]
    #[serde(default)]
    pub all: bool,
    /// How often.
    #[garde(skip)]
    pub schedule: ScheduleSetting,
}

/// One schedule.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationSchedule {
    /// What is replaced.
    pub kind: RotationKind,
    /// The tenant, if it is one tenant's own.
    pub tenant: Option<String>,
    /// Every so many days; none if this tenant is left out.
    pub every_days: Option<i32>,
    /// Since when.
    pub set_at: DateTime<Utc>,
}

/// All schedules.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationScheduleList {
    /// Those for all tenants first.
    pub items: Vec<RotationSchedule>,
}

/// When something of a tenant was replaced last, and when it will be next.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantRotation {
    /// What.
    pub kind: RotationKind,
    /// When it was last; never, if there is none.
    pub last_at: Option<DateTime<Utc>>,
    /// When it will be next, if there is a schedule.
    pub next_at: Option<DateTime<Utc>>,
    /// The schedule.
    pub every_days: Option<i32>,
}

/// The master keys, by version: which this server holds, and which are in use. Never a key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MasterKeyList {
    /// The version that wraps and seals on this server.
    pub primary: u32,
    /// Every version that this server holds or that something is wrapped with, lowest first.
    pub items: Vec<MasterKey>,
}

/// One master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MasterKey {
    /// Its version.
    pub version: u32,
    /// Whether this server holds it.
    pub held: bool,
    /// How many values it wraps or seals. An older one with none may be dropped from `FREEHOLD_MASTER_KEYS`.
    pub values: u64,
}
