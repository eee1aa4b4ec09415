//! SQL of tenants with a database of their own: `own_database_requests`, and their rows in the registry.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::api::platform::{OperationState, TenantState};
use crate::ids::{OperationId, SigningKeyId, TenantId};
use crate::tenants::registry::NewTenant;

pub(super) async fn insert_tenant(
    connection: &mut PgConnection,
    id: TenantId,
    tenant: &NewTenant,
    state: TenantState,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "INSERT INTO chat_instances (id, slug, name, plan, template, admin_email, database_mode, state, created_at,
                                     updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'own', $7, $8, $8)
         ON CONFLICT (slug) WHERE state <> 'deleted' DO NOTHING",
        id.as_uuid(),
        tenant.slug.as_str(),
        tenant.name,
        tenant.plan,
        tenant.template,
        tenant.admin_email,
        state.as_str(),
        now
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

pub(super) async fn insert_request(
    connection: &mut PgConnection,
    tenant: TenantId,
    input: &serde_json::Value,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO own_database_requests (tenant_id, input, created_at) VALUES ($1, $2, $3)",
        tenant.as_uuid(),
        input,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn find_input(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<serde_json::Value>, sqlx::Error> {
    sqlx::query_scalar!("SELECT input FROM own_database_requests WHERE tenant_id = $1", tenant.as_uuid())
        .fetch_optional(connection)
        .await
}

/// Puts a token in force, or with `None` takes the one in force away.
pub(super) async fn set_token(
    connection: &mut PgConnection,
    tenant: TenantId,
    token: Option<(&[u8], DateTime<Utc>)>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE own_database_requests SET token_hash = $2, token_expires_at = $3 WHERE tenant_id = $1",
        tenant.as_uuid(),
        token.map(|(hash, _)| hash),
        token.map(|(_, expires)| expires)
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn find_by_token(
    pool: &PgPool,
    hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<(TenantId, String)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT t.id, t.slug FROM own_database_requests r JOIN chat_instances t ON t.id = r.tenant_id
         WHERE r.token_hash = $1 AND r.token_expires_at > $2 AND t.state NOT IN ('deleting', 'deleted')",
        hash,
        now
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (TenantId::from_uuid(row.id), row.slug)))
}

/// The tenant of a slug, and whether its database is the client's own.
pub(super) async fn find_slug(
    connection: &mut PgConnection,
    slug: &str,
) -> Result<Option<(TenantId, bool)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT id, database_mode = 'own' AS "own!" FROM chat_instances WHERE slug = $1 AND state <> 'deleted'"#,
        slug
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (TenantId::from_uuid(row.id), row.own)))
}

/// Holds the tenant's row until the transaction ends, so that no operation on it can be asked for meanwhile.
pub(super) async fn lock(connection: &mut PgConnection, tenant: TenantId) -> Result<Option<TenantState>, sqlx::Error> {
    let state = sqlx::query_scalar!(
        "SELECT state FROM chat_instances WHERE id = $1 AND database_mode = 'own' FOR UPDATE",
        tenant.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(state.map(|state| TenantState::parse(&state)))
}

/// The operation that holds the tenant.
pub(super) async fn unsettled(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<(OperationId, String)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT id, kind FROM operations
         WHERE tenant_id = $1 AND state IN ('queued', 'running', 'undoing', 'needs_operator')",
        tenant.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (OperationId::from_uuid(row.id), row.kind)))
}

/// The operation that sets the database up, if it was begun.
pub(super) async fn provisioning(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<(OperationId, OperationState)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT id, state FROM operations WHERE tenant_id = $1 AND kind = 'provision_own_database'
         ORDER BY id DESC LIMIT 1",
        tenant.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (OperationId::from_uuid(row.id), OperationState::parse(&row.state))))
}

/// The tenant's data keys, oldest first.
pub(super) async fn wrapped_keys(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Vec<(i32, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT version, wrapped_key FROM wrapped_keys WHERE tenant_id = $1 ORDER BY version",
        tenant.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.version, row.wrapped_key)).collect())
}

pub(super) async fn insert_key(
    connection: &mut PgConnection,
    tenant: TenantId,
    wrapped_key: &[u8],
    master_key_version: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO wrapped_keys (tenant_id, version, wrapped_key, master_key_version, created_at)
         VALUES ($1, 1, $2, $3, $4)",
        tenant.as_uuid(),
        wrapped_key,
        master_key_version,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A client's database as it is to be registered.
pub(super) struct Registered<'a> {
    pub(super) tenant: TenantId,
    pub(super) database_name: &'a str,
    pub(super) login_role: &'a str,
    pub(super) url_sealed: &'a [u8],
    pub(super) check: &'a serde_json::Value,
    pub(super) now: DateTime<Utc>,
}

/// Registers a database, in the place of the one that was registered.
pub(super) async fn register(connection: &mut PgConnection, registered: &Registered<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO tenant_databases (tenant_id, database_name, login_role, url_sealed, last_check, checked_at,
                                       created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)
         ON CONFLICT (tenant_id) DO UPDATE SET database_name = $2, login_role = $3, url_sealed = $4, last_check = $5,
             checked_at = $6, next_login_role = NULL, next_url_sealed = NULL, retiring_login_role = NULL,
             rotated_at = $6",
        registered.tenant.as_uuid(),
        registered.database_name,
        registered.login_role,
        registered.url_sealed,
        registered.check,
        registered.now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What is registered of a client's database.
pub(super) struct Row {
    pub(super) state: TenantState,
    pub(super) url_sealed: Option<Vec<u8>>,
    pub(super) last_check: Option<serde_json::Value>,
    pub(super) checked_at: Option<DateTime<Utc>>,
}

pub(super) async fn find(connection: &mut PgConnection, tenant: TenantId) -> Result<Option<Row>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT t.state, d.url_sealed AS "url_sealed?", d.last_check, d.checked_at
         FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         WHERE t.id = $1 AND t.database_mode = 'own'"#,
        tenant.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Row {
        state: TenantState::parse(&row.state),
        url_sealed: row.url_sealed,
        last_check: row.last_check,
        checked_at: row.checked_at,
    }))
}

/// Stores a signing key unless the tenant has one.
pub(super) async fn insert_signing_key(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: SigningKeyId,
    secret_sealed: &[u8],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO signing_keys (id, tenant_id, secret_sealed, created_at)
         SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM signing_keys WHERE tenant_id = $2)",
        key.as_uuid(),
        tenant.as_uuid(),
        secret_sealed,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn delete_signing_keys(connection: &mut PgConnection, tenant: TenantId) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM signing_keys WHERE tenant_id = $1", tenant.as_uuid()).execute(connection).await?;
    Ok(())
}

/// Every tenant's own database that is in service, for those who look after them.
pub(super) async fn in_service(pool: &PgPool) -> Result<Vec<(TenantId, String)>, sqlx::Error> {
    let rows: Vec<(Uuid, String)> = sqlx::query!(
        "SELECT id, slug FROM chat_instances WHERE database_mode = 'own' AND state = 'active' ORDER BY slug"
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .map(|row| (row.id, row.slug))
    .collect();
    Ok(rows.into_iter().map(|(id, slug)| (TenantId::from_uuid(id), slug)).collect())
}
