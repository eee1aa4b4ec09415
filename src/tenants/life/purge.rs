//! The operation `purge_tenant`: gone for good.
//!
//! | step | does |
//! |---|---|
//! | `close` | the registry says `deleting`, with nothing to go back to; no login role may sign in |
//! | `drop_database` | whoever is connected; a client's own stays, without our marker; what restores left beside it |
//! | `drop_roles` | the owner and every login role, and those of what restores left |
//! | `forget_traces` | kept answers that hold its invite, what operations were told of it |
//! | `destroy_keys` | data keys, signing keys, the sealed URL: what they sealed can never be opened again |
//!
//! It cannot be undone. A step that fails for good leaves the tenant `deleting` and the operation failed; a retry, or
//! the scheduled purge an hour later, goes on with it. The keys go last, but one: a purge that is interrupted can still
//! find everything it has to remove.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Life, Place, Row, moved_on, store};
use crate::ids::{ClusterId, TenantId};
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError};
use crate::provisioning::{Cluster, DatabaseNames, TenantRoles};
use crate::tenants::TenantError;
use crate::tenants::own_database;
use crate::tenants::provision::{boxed, nothing};
use crate::{idempotency, limits, tenants};

/// The operation.
pub static DEFINITION: Definition<Life> = Definition {
    kind: "purge_tenant",
    steps: &[
        Step { name: "close", run: |s, c| boxed(close(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "drop_database", run: |s, c| boxed(drop_database(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "drop_roles", run: |s, c| boxed(drop_roles(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "forget_traces", run: |s, c| boxed(forget_traces(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "destroy_keys", run: |s, c| boxed(destroy_keys(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

async fn close(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = life.tenant(&context).await?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    if !store::begin_purge(&mut connection, id, life.clock.now()).await.map_err(TenantError::from)? {
        return Err(moved_on(&row));
    }
    drop(connection);
    life.lock(&row).await
}

/// The tenant, if it is still one to be purged: nothing is removed of any other.
async fn condemned(life: &Life, context: &StepContext) -> Result<(TenantId, Row), StepError> {
    let (id, row) = life.tenant(context).await?;
    if row.state == "deleting" && row.deleted_from.is_none() { Ok((id, row)) } else { Err(moved_on(&row)) }
}

/// Databases that restores have put out of service and that could not be dropped yet, or that they had begun: only
/// the inputs and rows that `forget_traces` empties know their names, so they go before it.
async fn leftovers(life: &Life, tenant: TenantId) -> Result<Vec<(Cluster, Place)>, StepError> {
    let mut found = Vec::new();
    for left in store::leftovers(&life.pool, tenant).await.map_err(TenantError::from)? {
        let cluster = ClusterId::from_uuid(left.cluster_id);
        let roles = TenantRoles::of_owner(&left.owner_role, left.login_roles);
        let names = DatabaseNames {
            database: left.database_name,
            login_role: roles.logins.first().cloned().unwrap_or_default(),
            owner_role: left.owner_role,
        };
        found.push((life.clusters.open(cluster).await?, Place { cluster, names, roles }));
    }
    Ok(found)
}

async fn drop_database(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = condemned(&life, &context).await?;
    for (cluster, left) in leftovers(&life, id).await? {
        cluster.drop_database(&left.names).await?;
    }
    let Some(place) = Place::of(&row)? else {
        // A database of the client's own is theirs, and stays; only our marker goes.
        return match own_database::release(&life.pool, &life.master_keys, id).await {
            // An address that does not open cannot be visited, and must not keep the tenant from going.
            Err(TenantError::Sealed) => {
                tracing::warn!(tenant_id = %id, "take the marker out of a client's database: its address does not open");
                Ok(())
            }
            other => Ok(other?),
        };
    };
    let cluster = life.clusters.open(place.cluster).await?;
    Ok(cluster.drop_database(&place.names).await?)
}

async fn drop_roles(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = condemned(&life, &context).await?;
    for (cluster, left) in leftovers(&life, id).await? {
        cluster.drop_all_roles(&left.roles).await?;
    }
    let Some(place) = Place::of(&row)? else { return Ok(()) };
    let cluster = life.clusters.open(place.cluster).await?;
    Ok(cluster.drop_all_roles(&place.roles).await?)
}

async fn forget_traces(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, _) = condemned(&life, &context).await?;
    idempotency::forget_about(&life.pool, id.as_uuid()).await.map_err(TenantError::from)?;
    limits::forget_accounts(&life.pool, id).await.map_err(TenantError::from)?;
    Ok(store::forget_inputs(&life.pool, id).await.map_err(TenantError::from)?)
}

async fn destroy_keys(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, _) = condemned(&life, &context).await?;
    Ok(tenants::store::delete_credentials(&life.pool, id).await.map_err(TenantError::from)?)
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(async move {
        match (outcome, context.tenant_id) {
            (Outcome::Succeeded, Some(tenant)) => store::note_gone(connection, tenant, now).await,
            _ => Ok(()),
        }
    })
}
