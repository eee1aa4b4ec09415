//! The life of a tenant after it was made: suspended, resumed, deleted, taken back, and purged for good.
//!
//! Asking changes the registry at once, in the transaction that stores the operation: every server hears of it and
//! answers 403, however long the queue is. The operation then makes it hold where nobody listens: the database's
//! login roles are locked and their sessions ended, so that not even a server that has missed the news goes on.
//!
//! | state | `suspend` | `resume` | `delete` | `undelete` |
//! |---|---|---|---|---|
//! | `active` | → `suspended` | nothing to do | → `deleting` | nothing to do |
//! | `suspended` | nothing to do | → `active` | → `deleting` | nothing to do |
//! | `deleting` | refused | refused | nothing to do; with no grace, purged | → what it was |
//! | `failed`, `waiting_for_client` | refused | refused | `failed` is purged, the other → `deleting` | refused |

pub mod delete;
pub mod purge;
pub mod resume;
mod store;
pub mod suspend;
pub mod undelete;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

use self::store::{Row, Suspension};
use super::TenantError;
use super::clusters::ClusterRegistry;
use super::provision::permanent;
use crate::api::platform::{DatabaseMode, TenantState};
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::ids::{ClusterId, OperationId, Slug, SuperAdminId, TenantId};
use crate::operations::{self, Definition, NewOperation, OperationError, StepContext, StepError};
use crate::provisioning::{DatabaseNames, TenantRoles};
use crate::secrets::MasterKeyring;

/// How often a request looks again whose tenant changed under its hands.
const LOOKS: usize = 5;
/// How long the scheduled purge leaves a tenant alone of which one failed.
const PAUSE_AFTER_FAILURE: TimeDelta = TimeDelta::hours(1);
/// How many purges are begun at once: each drops a database, which is work for the server.
const PURGES_AT_ONCE: i64 = 20;

/// The operations that move a tenant from one of these states to another.
const KINDS: [&str; 5] = [
    suspend::DEFINITION.kind,
    resume::DEFINITION.kind,
    delete::DEFINITION.kind,
    undelete::DEFINITION.kind,
    purge::DEFINITION.kind,
];

/// What the operations on tenants' lives need, and how they are asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Life {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    clusters: ClusterRegistry,
    clock: SharedClock,
}

/// What asking gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// This operation does it.
    Operation(OperationId),
    /// It is so already.
    AlreadySo,
}

/// What somebody may ask for.
#[derive(Debug, Clone)]
enum Wish<'a> {
    Suspend { reason: Option<&'a str> },
    Resume,
    Delete { grace: TimeDelta },
    Undelete,
}

impl Life {
    /// Over the platform's database.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, clusters: ClusterRegistry, clock: SharedClock) -> Self {
        Self { pool, master_keys, clusters, clock }
    }

    /// Takes a tenant out of service.
    pub async fn suspend(&self, slug: &str, reason: Option<&str>, admin: SuperAdminId) -> Result<Asked, TenantError> {
        self.ask(slug, &Wish::Suspend { reason }, admin).await
    }

    /// Puts a suspended tenant back into service.
    pub async fn resume(&self, slug: &str, admin: SuperAdminId) -> Result<Asked, TenantError> {
        self.ask(slug, &Wish::Resume, admin).await
    }

    /// Takes a tenant out of service, to be purged when `grace` is over; at once without any, and if it never came to
    /// be.
    pub async fn delete(&self, slug: &str, grace: TimeDelta, admin: SuperAdminId) -> Result<Asked, TenantError> {
        self.ask(slug, &Wish::Delete { grace }, admin).await
    }

    /// Takes a deletion back, as long as the purge has not begun.
    pub async fn undelete(&self, slug: &str, admin: SuperAdminId) -> Result<Asked, TenantError> {
        self.ask(slug, &Wish::Undelete, admin).await
    }

    async fn ask(&self, slug: &str, wish: &Wish<'_>, admin: SuperAdminId) -> Result<Asked, TenantError> {
        for _ in 0..LOOKS {
            match self.try_to_ask(slug, wish, admin).await {
                Ok(Some(asked)) => return Ok(asked),
                // It changed under our hands, or its holder was settled while we asked who that was; below, somebody who
                // locked the same the other way round went first.
                Ok(None) | Err(TenantError::Operation(OperationError::Database(sqlx::Error::RowNotFound))) => {}
                // Somebody has asked for the same already.
                Err(TenantError::Operation(OperationError::Conflict { holder, kind })) if wish.is_done_by(&kind) => {
                    return Ok(Asked::Operation(holder));
                }
                Err(error) if OperationError::is_deadlock(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(TenantError::Contended)
    }

    /// Nothing if the tenant changed between the look at it and the change.
    async fn try_to_ask(&self, slug: &str, wish: &Wish<'_>, admin: SuperAdminId) -> Result<Option<Asked>, TenantError> {
        use TenantState::{Active, Deleting, Failed, Suspended, WaitingForClient};
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let row = store::find(&mut transaction, Some(slug), None).await?.ok_or(TenantError::NotFound)?;
        let tenant = TenantId::from_uuid(row.id);
        let state = TenantState::parse(&row.state);
        if wish.holds_in(state) {
            let under_way = store::unsettled(&mut transaction, tenant).await?;
            return match under_way {
                Some((holder, kind)) if KINDS.contains(&kind.as_str()) => {
                    // It holds now, and may not when that one is done.
                    Err(OperationError::Conflict { holder, kind }.into())
                }
                _ => Ok(Some(Asked::AlreadySo)),
            };
        }
        let new = New { id: OperationId::new(), tenant, admin: Some(admin), now };
        // The operation is stored before the tenant's row is touched: whoever settles one locks them in that order.
        let changed = match (wish, state) {
            (Wish::Suspend { reason }, Active) => {
                let input = suspend::Input { reason: reason.map(str::to_owned) };
                new.store(&mut transaction, &suspend::DEFINITION, &input).await?;
                store::suspend(&mut transaction, tenant, new.id, *reason, now).await?
            }
            (Wish::Resume, Suspended) => {
                let was = Suspension { by: row.suspended_by, at: row.suspended_at, reason: row.suspend_reason };
                new.store(&mut transaction, &resume::DEFINITION, &was).await?;
                true
            }
            (Wish::Delete { grace }, Active | Suspended | WaitingForClient) if !grace.is_zero() => {
                let input = delete::Input { grace_seconds: grace.num_seconds() };
                new.store(&mut transaction, &delete::DEFINITION, &input).await?;
                store::delete(&mut transaction, tenant, now + *grace, now).await?
            }
            (Wish::Delete { .. }, Active | Suspended | WaitingForClient | Failed | Deleting) => {
                new.store(&mut transaction, &purge::DEFINITION, &serde_json::json!({})).await?;
                store::delete(&mut transaction, tenant, now, now).await?
            }
            (Wish::Undelete, Deleting) => {
                let (Some(_), Some(delete_after)) = (&row.deleted_from, row.delete_after) else {
                    return Err(TenantError::PurgeBegun);
                };
                new.store(&mut transaction, &undelete::DEFINITION, &undelete::Input { delete_after }).await?;
                true
            }
            (wish, state) => {
                // An operation that is making it what it will be explains the state better than the state itself.
                return Err(match store::unsettled(&mut transaction, tenant).await? {
                    Some((holder, kind)) => OperationError::Conflict { holder, kind }.into(),
                    None => TenantError::WrongState { state, needed: wish.needed() },
                });
            }
        };
        if !changed {
            return Ok(None);
        }
        let (action, detail) = wish.event(&row.slug, state, new.id);
        let event = Event { actor: Actor::SuperAdmin(admin), action, tenant_id: Some(tenant), detail };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(Some(Asked::Operation(new.id)))
    }

    /// Begins the purge of every tenant whose grace is over. Returns how many.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn purge_due(&self) -> Result<usize, TenantError> {
        let now = self.clock.now();
        let due = store::due(&self.pool, now, now - PAUSE_AFTER_FAILURE, PURGES_AT_ONCE).await?;
        for tenant in &due {
            let mut transaction = self.pool.begin().await?;
            let new = New { id: OperationId::new(), tenant: *tenant, admin: None, now };
            match new.store(&mut transaction, &purge::DEFINITION, &serde_json::json!({})).await {
                Ok(()) => {}
                // Somebody was faster, be it to purge it or to take it back.
                Err(TenantError::Operation(OperationError::Conflict { .. })) => continue,
                Err(error) => return Err(error),
            }
            // Looked at again now that no other operation can move it.
            let row = store::find(&mut transaction, None, Some(*tenant)).await?;
            let is_due = row.is_some_and(|row| row.state == "deleting" && row.delete_after.is_some_and(|at| at <= now));
            if is_due {
                let detail = serde_json::json!({ "operation_id": new.id });
                let event = Event { actor: Actor::System, action: "tenant.purge", tenant_id: Some(*tenant), detail };
                audit::record(&mut transaction, &event, now).await?;
                transaction.commit().await?;
            }
        }
        Ok(due.len())
    }

    /// The tenant of a step, as it is now.
    async fn tenant(&self, context: &StepContext) -> Result<(TenantId, Row), StepError> {
        let id = context.tenant_id.ok_or_else(|| permanent("input_unreadable", "the operation names no tenant"))?;
        let mut connection = self.pool.acquire().await.map_err(TenantError::from)?;
        let row = store::find(&mut connection, None, Some(id)).await.map_err(TenantError::from)?;
        Ok((id, row.ok_or(TenantError::NotFound)?))
    }

    /// Locks the database of a tenant, if it is on a cluster of the owner's. A client's own is left alone: what keeps
    /// people out there is the registry.
    async fn lock(&self, row: &Row) -> Result<(), StepError> {
        let Some(place) = Place::of(row)? else { return Ok(()) };
        let cluster = self.clusters.open(place.cluster).await?;
        Ok(cluster.lock_logins(&place.roles).await?)
    }

    /// Lets the login role in use sign in again.
    async fn unlock(&self, row: &Row) -> Result<(), StepError> {
        let Some(place) = Place::of(row)? else { return Ok(()) };
        let Some(login) = &row.login_role else { return Ok(()) };
        let cluster = self.clusters.open(place.cluster).await?;
        Ok(cluster.unlock_login(login).await?)
    }
}

/// Where a managed tenant's database is.
struct Place {
    cluster: ClusterId,
    names: DatabaseNames,
    roles: TenantRoles,
}

impl Place {
    /// Nothing for a database of the client's own.
    fn of(row: &Row) -> Result<Option<Self>, StepError> {
        if DatabaseMode::parse(&row.database_mode) == DatabaseMode::Own {
            return Ok(None);
        }
        let Some(cluster) = row.cluster_id.map(ClusterId::from_uuid) else { return Ok(None) };
        let slug: Slug = row.slug.parse().map_err(TenantError::from)?;
        // A provisioning that was undone has taken the names with it; what it may have left goes by the same ones.
        let usual = DatabaseNames::new(&slug, TenantId::from_uuid(row.id));
        let names = DatabaseNames {
            database: row.database_name.clone().unwrap_or(usual.database),
            owner_role: row.owner_role.clone().unwrap_or(usual.owner_role),
            login_role: row.login_role.clone().unwrap_or(usual.login_role),
        };
        let others = [&row.next_login_role, &row.retiring_login_role].into_iter().flatten().cloned();
        let logins = others.chain([names.login_role.clone()]);
        let roles = TenantRoles::of_owner(&names.owner_role, logins);
        Ok(Some(Self { cluster, names, roles }))
    }
}

/// An operation to be stored.
struct New {
    id: OperationId,
    tenant: TenantId,
    admin: Option<SuperAdminId>,
    now: DateTime<Utc>,
}

impl New {
    async fn store(
        &self,
        connection: &mut PgConnection,
        definition: &'static Definition<Life>,
        input: &impl Serialize,
    ) -> Result<(), TenantError> {
        let operation = NewOperation {
            id: self.id,
            kind: definition.kind,
            tenant_id: Some(self.tenant),
            input: serde_json::to_value(input).map_err(|_| TenantError::Sealed)?,
            steps: &definition.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: self.admin.map(|admin| admin.as_uuid()),
            group_id: None,
        };
        Ok(operations::store::create(connection, &operation, self.now).await?)
    }
}

impl Wish<'_> {
    /// Whether it is so in this state.
    fn holds_in(&self, state: TenantState) -> bool {
        match self {
            Self::Suspend { .. } => state == TenantState::Suspended,
            Self::Resume => state == TenantState::Active,
            Self::Delete { grace } => state == TenantState::Deleting && !grace.is_zero(),
            Self::Undelete => matches!(state, TenantState::Active | TenantState::Suspended),
        }
    }

    /// Whether an operation of this kind does what is wished.
    fn is_done_by(&self, kind: &str) -> bool {
        match self {
            Self::Suspend { .. } => kind == suspend::DEFINITION.kind,
            Self::Resume => kind == resume::DEFINITION.kind,
            Self::Delete { grace } => {
                kind == purge::DEFINITION.kind || (kind == delete::DEFINITION.kind && !grace.is_zero())
            }
            Self::Undelete => kind == undelete::DEFINITION.kind,
        }
    }

    fn needed(&self) -> &'static str {
        match self {
            Self::Suspend { .. } => "only an active tenant can be suspended",
            Self::Resume => "only a suspended tenant can be resumed",
            Self::Delete { .. } => "its provisioning has to be settled first",
            Self::Undelete => "only a tenant that is being deleted can be taken back",
        }
    }

    fn event(&self, slug: &str, from: TenantState, operation: OperationId) -> (&'static str, serde_json::Value) {
        let mut detail = serde_json::json!({ "slug": slug, "from": from, "operation_id": operation });
        let (action, more) = match self {
            Self::Suspend { reason } => ("tenant.suspend", ("reason", serde_json::json!(reason))),
            Self::Resume => ("tenant.resume", ("reason", serde_json::Value::Null)),
            Self::Delete { grace } => ("tenant.delete", ("grace_days", serde_json::json!(grace.num_days()))),
            Self::Undelete => ("tenant.undelete", ("reason", serde_json::Value::Null)),
        };
        if let (serde_json::Value::Object(fields), (name, value)) = (&mut detail, more)
            && !value.is_null()
        {
            fields.insert(name.to_owned(), value);
        }
        (action, detail)
    }
}

/// A step found the tenant in a state that it must not move it out of.
fn moved_on(row: &Row) -> StepError {
    permanent("wrong_tenant_state", &format!("the tenant is `{}` by now; ask for what you want anew", row.state))
}

/// The input of an operation, as it was stored.
fn input<T: serde::de::DeserializeOwned>(context: &StepContext) -> Result<T, StepError> {
    serde_json::from_value(context.input.clone())
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read"))
}
