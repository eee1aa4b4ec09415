//! Who did what: an append-only record in the platform's database.
//!
//! An event is written in the transaction of the change it tells of, so that there is never one without the other.
//! It holds ids and names; never a secret, and nothing of a tenant's content.

mod store;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::ids::{SuperAdminId, TenantId, UserId};

/// Who acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A super admin.
    SuperAdmin(SuperAdminId),
    /// A user of the tenant it was done to.
    TenantUser(UserId),
    /// Whoever held the token by which a client gives its database.
    DatabaseToken,
    /// Freehold itself.
    System,
    /// Somebody without a credential, for example at a sign-in that failed.
    Anonymous,
}

/// One event.
#[derive(Debug)]
pub struct Event<'a> {
    /// Who acted.
    pub actor: Actor,
    /// What was done, as `noun.verb`, for example `tenant.create`.
    pub action: &'a str,
    /// The tenant it was done to.
    pub tenant_id: Option<TenantId>,
    /// What else helps to understand it.
    pub detail: serde_json::Value,
}

/// Writes an event, in the caller's transaction.
pub async fn record(
    connection: &mut PgConnection,
    event: &Event<'_>,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<(), sqlx::Error> {
    let (kind, actor): (&str, Option<Uuid>) = match event.actor {
        Actor::SuperAdmin(id) => ("super_admin", Some(id.as_uuid())),
        Actor::TenantUser(id) => ("tenant_user", Some(id.as_uuid())),
        Actor::DatabaseToken => ("database_token", None),
        Actor::System => ("system", None),
        Actor::Anonymous => ("anonymous", None),
    };
    store::insert(connection, Uuid::now_v7(), kind, actor, event, now).await
}
