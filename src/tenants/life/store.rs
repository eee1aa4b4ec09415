//! SQL of tenants' lives: `chat_instances`, and what a purge forgets.
//!
//! Every change of state names the states it may start from, so that an operation that is retried when the world has
//! moved on finds nothing to change, instead of bringing a state back that somebody left.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::ids::{OperationId, TenantId};

/// What an operation on a tenant's life has to know of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) slug: String,
    pub(super) state: String,
    pub(super) database_mode: String,
    pub(super) deleted_from: Option<String>,
    pub(super) suspended_by: Option<Uuid>,
    pub(super) suspended_at: Option<DateTime<Utc>>,
    pub(super) suspend_reason: Option<String>,
    pub(super) delete_after: Option<DateTime<Utc>>,
    pub(super) cluster_id: Option<Uuid>,
    pub(super) database_name: Option<String>,
    pub(super) owner_role: Option<String>,
    pub(super) login_role: Option<String>,
    pub(super) next_login_role: Option<String>,
    pub(super) retiring_login_role: Option<String>,
}

/// Finds a tenant that is not gone by its slug, or any by its id.
pub(super) async fn find(
    connection: &mut PgConnection,
    slug: Option<&str>,
    id: Option<TenantId>,
) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT t.id, t.slug, t.state, t.database_mode, t.deleted_from, t.suspended_by, t.suspended_at,
                t.suspend_reason, t.delete_after, COALESCE(d.cluster_id, t.cluster_id) AS cluster_id,
                d.database_name AS "database_name?", d.owner_role, d.login_role AS "login_role?", d.next_login_role,
                d.retiring_login_role
         FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         WHERE (t.slug = $1 AND t.state <> 'deleted') OR t.id = $2"#,
        slug,
        id.map(|id| id.as_uuid())
    )
    .fetch_optional(connection)
    .await
}

/// The unsettled operation of a tenant, and its kind.
pub(super) async fn unsettled(
    connection: &mut PgConnection,
    id: TenantId,
) -> Result<Option<(OperationId, String)>, sqlx::Error> {
    let found = sqlx::query!(
        "SELECT id, kind FROM operations
         WHERE tenant_id = $1 AND state IN ('queued', 'running', 'undoing', 'needs_operator')",
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|row| (OperationId::from_uuid(row.id), row.kind)))
}

/// `active` → `suspended`; one that is suspended stays as it is. Returns whether it is suspended now.
pub(super) async fn suspend(
    connection: &mut PgConnection,
    id: TenantId,
    operation: OperationId,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        "UPDATE chat_instances SET
             suspended_by = CASE state WHEN 'active' THEN $2 ELSE suspended_by END,
             suspended_at = CASE state WHEN 'active' THEN $4 ELSE suspended_at END,
             suspend_reason = CASE state WHEN 'active' THEN $3 ELSE suspend_reason END,
             updated_at = CASE state WHEN 'active' THEN $4 ELSE updated_at END,
             state = 'suspended'
         WHERE id = $1 AND state IN ('active', 'suspended')",
        id.as_uuid(),
        operation.as_uuid(),
        reason,
        now
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Takes a suspension back, if this operation made it.
pub(super) async fn take_suspension_back(
    connection: &mut PgConnection,
    id: TenantId,
    operation: OperationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances SET state = 'active', suspended_by = NULL, suspended_at = NULL, suspend_reason = NULL,
                updated_at = $3
         WHERE id = $1 AND state = 'suspended' AND suspended_by = $2",
        id.as_uuid(),
        operation.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// `suspended` → `active`. Returns whether it is active now.
pub(super) async fn resume(
    connection: &mut PgConnection,
    id: TenantId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        "UPDATE chat_instances SET state = 'active', suspended_by = NULL, suspended_at = NULL, suspend_reason = NULL,
                updated_at = $2
         WHERE id = $1 AND state IN ('active', 'suspended')",
        id.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// What a suspension was, for putting it back.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Suspension {
    pub(super) by: Option<Uuid>,
    pub(super) at: Option<DateTime<Utc>>,
    pub(super) reason: Option<String>,
}

/// Puts a suspension back that was lifted.
pub(super) async fn put_suspension_back(
    connection: &mut PgConnection,
    id: TenantId,
    was: &Suspension,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances SET state = 'suspended', suspended_by = $2, suspended_at = $3, suspend_reason = $4,
                updated_at = $5
         WHERE id = $1 AND state = 'active'",
        id.as_uuid(),
        was.by,
        was.at,
        was.reason,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Into `deleting`, to be purged after an instant; one that is there stays as it is. A tenant that never came to be
/// has nothing to go back to. Returns whether it is `deleting` now.
pub(super) async fn delete(
    connection: &mut PgConnection,
    id: TenantId,
    after: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        "UPDATE chat_instances SET
             deleted_from = CASE state WHEN 'deleting' THEN deleted_from WHEN 'failed' THEN NULL ELSE state END,
             delete_after = CASE state WHEN 'deleting' THEN delete_after ELSE $2 END,
             updated_at = CASE state WHEN 'deleting' THEN updated_at ELSE $3 END,
             state = 'deleting'
         WHERE id = $1 AND state IN ('active', 'suspended', 'waiting_for_client', 'failed', 'deleting')",
        id.as_uuid(),
        after,
        now
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Out of `deleting`, to what it was before; a tenant that is out of it stays as it is. Returns whether it is.
pub(super) async fn undelete(
    connection: &mut PgConnection,
    id: TenantId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        "UPDATE chat_instances SET
             state = CASE state WHEN 'deleting' THEN deleted_from ELSE state END,
             deleted_from = NULL, delete_after = NULL, updated_at = $2
         WHERE id = $1 AND (state IN ('active', 'suspended', 'waiting_for_client')
                            OR (state = 'deleting' AND deleted_from IS NOT NULL))",
        id.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Back into `deleting`, from where it had been taken.
pub(super) async fn put_deletion_back(
    connection: &mut PgConnection,
    id: TenantId,
    after: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances SET deleted_from = state, state = 'deleting', delete_after = $2, updated_at = $3
         WHERE id = $1 AND state IN ('active', 'suspended', 'waiting_for_client')",
        id.as_uuid(),
        after,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// From here on there is no way back. Returns whether the tenant is there to be purged.
pub(super) async fn begin_purge(
    connection: &mut PgConnection,
    id: TenantId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query!(
        "UPDATE chat_instances SET state = 'deleting', deleted_from = NULL, delete_after = COALESCE(delete_after, $2),
                updated_at = $2
         WHERE id = $1 AND state IN ('deleting', 'failed')",
        id.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// What is left is the record of what was.
pub(super) async fn note_gone(
    connection: &mut PgConnection,
    id: TenantId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances SET state = 'deleted', deleted_at = $2, updated_at = $2, suspended_by = NULL,
                suspended_at = NULL, suspend_reason = NULL
         WHERE id = $1 AND state = 'deleting' AND deleted_from IS NULL",
        id.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A database beside a tenant's own, which a restore has made or replaced and nobody has dropped yet.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) cluster_id: Uuid,
    pub(super) database_name: String,
    pub(super) owner_role: String,
    pub(super) login_roles: Vec<String>,
}

/// Databases that only the records of restores and of drops that did not succeed still name. None of them serves: what
/// the registry names is left out, whoever's it is.
pub(super) async fn leftovers(pool: &PgPool, id: TenantId) -> Result<Vec<Leftover>, sqlx::Error> {
    sqlx::query_as!(
        Leftover,
        r#"WITH named (cluster_id, database_name, owner_role, login_roles) AS (
             SELECT (input ->> 'cluster_id')::uuid, input ->> 'database', input ->> 'owner_role',
                    ARRAY(SELECT jsonb_array_elements_text(input -> 'login_roles'))
             FROM operations
             WHERE tenant_id = $1 AND kind = 'drop_replaced_database' AND state <> 'succeeded' AND input ? 'database'
             UNION ALL
             SELECT cluster_id, database_name, owner_role, ARRAY[login_role] FROM restores
             WHERE tenant_id = $1 AND settled_at IS NULL
         )
         SELECT cluster_id AS "cluster_id!", database_name AS "database_name!", owner_role AS "owner_role!",
                login_roles AS "login_roles!"
         FROM named n
         WHERE NOT EXISTS (SELECT FROM tenant_databases d
                           WHERE d.cluster_id = n.cluster_id AND d.database_name = n.database_name)"#,
        id.as_uuid()
    )
    .fetch_all(pool)
    .await
}

/// Forgets what operations were told or were to be told of a tenant: addresses, hashes of invites and tokens. What they
/// did stays.
pub(super) async fn forget_inputs(pool: &PgPool, id: TenantId) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM own_database_requests WHERE tenant_id = $1", id.as_uuid()).execute(pool).await?;
    sqlx::query!(
        "UPDATE operations SET input = '{}'
         WHERE tenant_id = $1 AND state IN ('succeeded', 'failed') AND input <> '{}'",
        id.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Tenants whose time has come, and of which no purge failed since `not_since`: what keeps failing is not hammered.
pub(super) async fn due(
    pool: &PgPool,
    now: DateTime<Utc>,
    not_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<TenantId>, sqlx::Error> {
    let due = sqlx::query_scalar!(
        "SELECT id FROM chat_instances t
         WHERE state = 'deleting' AND delete_after <= $1
           AND NOT EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                             AND (o.state IN ('queued', 'running', 'undoing', 'needs_operator')
                                  OR (o.kind = 'purge_tenant' AND o.finished_at > $2)))
         ORDER BY delete_after LIMIT $3",
        now,
        not_since,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(due.into_iter().map(TenantId::from_uuid).collect())
}
