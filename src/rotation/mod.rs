//! Replacing credentials and keys by new ones while everybody goes on working.
//!
//! | operation | replaces | while it runs |
//! |---|---|---|
//! | `rotate_database_credential` | the password of a tenant's database | two login roles work; the platform knows both |
//! | `rotate_signing_key` | the key of a tenant's access tokens | old tokens stay good until they expire |
//! | `rotate_data_key` | the key of a tenant's sealed secrets | both keys open; the new one seals once all servers know it |
//! | `rotate_master_key` | the wrapping of everything under a master key | both master keys open |
//!
//! All follow one pattern: bring the new one in beside the old, make it known, use it, and give the old one up only
//! when nothing can still need it. So none of them is taken back once the new one is in use: undoing then finishes
//! what was begun or leaves both in force, and a retry goes on from there.
//!
//! It knows where secrets are sealed, on the platform and (through `configuration`) in a tenant's database. It knows
//! nothing of what they are for. Whoever adds a sealed column adds it to [`SEALED_COLUMNS`] and to the pass that seals
//! again; a test compares the list with the schema.

pub mod data_key;
pub mod database;
mod keys;
pub mod master_key;
pub mod requests;
pub mod schedules;
pub mod signing_key;
mod store;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use thiserror::Error;

use crate::api::rotation::RotationKind;
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::ids::{OperationId, TenantId};
use crate::operations::{OperationError, Outcome, StepContext, StepError};
use crate::secrets::MasterKeyring;
use crate::tenants::clusters::ClusterRegistry;

/// Every column with sealed values, and what seals it. The platform's are followed by the tenants'.
pub const SEALED_COLUMNS: &[(&str, &str, RotationKind)] = &[
    ("wrapped_keys", "wrapped_key", RotationKind::MasterKey),
    ("clusters", "admin_url_sealed", RotationKind::MasterKey),
    ("shared_models", "api_key_sealed", RotationKind::MasterKey),
    ("idempotency_keys", "response_sealed", RotationKind::MasterKey),
    ("backups", "archive_key_sealed", RotationKind::MasterKey),
    ("restores", "archive_key_sealed", RotationKind::MasterKey),
    ("restore_keys", "wrapped_key", RotationKind::MasterKey),
    ("tenant_databases", "url_sealed", RotationKind::DataKey),
    ("tenant_databases", "next_url_sealed", RotationKind::DataKey),
    ("signing_keys", "secret_sealed", RotationKind::DataKey),
    // Made, used and deleted by one operation, which holds the tenant: no rotation of its data key comes in between.
    ("restores", "url_sealed", RotationKind::DataKey),
    ("restores", "signing_secret_sealed", RotationKind::DataKey),
    ("api_configurations", "api_key_sealed", RotationKind::DataKey),
];

/// What the steps of all rotations need.
#[derive(Debug)]
pub struct Rotator {
    /// The platform's database.
    pub pool: PgPool,
    /// The master keys this server holds.
    pub master_keys: Arc<MasterKeyring>,
    /// Where managed databases are.
    pub clusters: ClusterRegistry,
    /// The time.
    pub clock: SharedClock,
    /// How long every server has to hear of a change, and requests under way have to end.
    pub grace: TimeDelta,
    /// How long an access token is good.
    pub token_lifetime: TimeDelta,
}

/// Why a rotation could not be asked for.
#[derive(Debug, Error)]
pub enum RotationError {
    /// A tenant was named that there is not.
    #[error("no such tenant: {0}")]
    UnknownTenant(String),
    /// Neither tenants nor all of them were named, or both, or some for the platform's key.
    #[error("{0}")]
    Targets(&'static str),
    /// The one tenant that was named is not in service.
    #[error("the tenant is not in service")]
    NotActive,
    /// The one tenant that was named keeps its database itself.
    #[error("the tenant's database is not managed by the platform")]
    NotManaged,
    /// The period of a schedule is too short or too long.
    #[error("a period has 1 to 3650 days")]
    Period,
    /// Something is under a master key that this server does not hold.
    #[error("this server does not hold master key {0}")]
    MasterKeyMissing(u32),
    /// Everything is under the newest master key that this server holds.
    #[error("no value is under another master key than version {0}")]
    NothingToRotate(u32),
    /// About the operation.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

impl Rotator {
    /// A step's answer when it has to wait until some time after an instant; nothing when that has passed.
    fn wait_until(&self, at: DateTime<Utc>) -> Result<(), StepError> {
        if self.clock.now() < at { Err(StepError::NotBefore(at)) } else { Ok(()) }
    }
}

/// The platform's database failed a step; a moment later it may not.
fn platform_failed(error: sqlx::Error) -> StepError {
    StepError::Transient("the platform database failed", error.into())
}

fn permanent(code: &'static str, message: impl Into<String>) -> StepError {
    StepError::Permanent { code, message: message.into() }
}

fn sealed_value() -> StepError {
    permanent("sealed_value", "a sealed value did not open; check that FREEHOLD_MASTER_KEYS holds every key in use")
}

fn tenant_of(context: &StepContext) -> Result<TenantId, StepError> {
    context.tenant_id.ok_or_else(|| permanent("input_unreadable", "the operation's input cannot be read"))
}

/// Records that something was replaced, in the transaction that settles the operation.
async fn record_success(
    connection: &mut PgConnection,
    kind: RotationKind,
    context: &StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    if outcome != Outcome::Succeeded {
        return Ok(());
    }
    let event = Event {
        actor: Actor::System,
        action: "rotation.done",
        tenant_id: context.tenant_id,
        detail: serde_json::json!({ "kind": kind, "operation_id": context.operation_id }),
    };
    audit::record(connection, &event, now).await
}

/// Asks for rotations and keeps their schedules.
#[derive(Debug, Clone)]
pub struct Rotations {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    clock: SharedClock,
}

impl Rotations {
    /// Rotations over the platform's database.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, clock: SharedClock) -> Self {
        Self { pool, master_keys, clock }
    }
}

/// Operations that were asked for together.
#[derive(Debug, Clone)]
pub struct Requested {
    /// Their group.
    pub group_id: uuid::Uuid,
    /// The operations.
    pub operations: Vec<OperationId>,
    /// Tenants that were left out.
    pub skipped: Vec<Skipped>,
}

/// A tenant that was left out.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// Its slug.
    pub slug: String,
    /// Why.
    pub reason: SkipReason,
}

/// Why a tenant was left out.
#[derive(Debug, Clone)]
pub enum SkipReason {
    /// It is not in service.
    NotActive,
    /// It keeps its database itself.
    NotManaged,
    /// It has an operation that is not settled.
    Held {
        /// The operation.
        holder: OperationId,
        /// Its kind.
        kind: String,
    },
}
