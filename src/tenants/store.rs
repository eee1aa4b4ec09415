//! SQL of the registry: `chat_instances`, `clusters`, `tenant_databases`, `wrapped_keys` and `signing_keys`.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::clusters::ClusterRecord;
use super::registry::{Changes, Filter, NewTenant, TenantRow};
use crate::api::platform::{AiMode, TenantLimits, TenantLimitsChange};
use crate::ids::{ClusterId, TenantId};

pub(super) async fn insert_tenant(
    connection: &mut PgConnection,
    id: TenantId,
    cluster: ClusterId,
    tenant: &NewTenant,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "INSERT INTO chat_instances (id, slug, name, plan, template, admin_email, database_mode, cluster_id, state,
                                     created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'managed', $7, 'requested', $8, $8)
         ON CONFLICT (slug) WHERE state <> 'deleted' DO NOTHING",
        id.as_uuid(),
        tenant.slug.as_str(),
        tenant.name,
        tenant.plan,
        tenant.template,
        tenant.admin_email,
        cluster.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

pub(super) async fn list_tenants(
    connection: &mut PgConnection,
    filter: &Filter,
) -> Result<Vec<TenantRow>, sqlx::Error> {
    sqlx::query_as!(
        TenantRow,
        r#"SELECT t.id, t.slug, t.name, t.plan, t.template, t.admin_email, t.state, t.schema_version, t.created_at,
                t.updated_at, t.activated_at, t.suspended_at, t.suspend_reason, t.delete_after, t.deleted_at,
                t.database_mode, t.limits AS "limits: Json<TenantLimits>", t.ai_mode,
                c.name AS "cluster?", d.database_name AS "database_name?"
         FROM chat_instances t LEFT JOIN clusters c ON c.id = t.cluster_id
         LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         WHERE ($1::text IS NULL OR (t.slug = $1 AND t.state <> 'deleted')) AND ($2::text IS NULL OR t.state = $2)
           AND ($3::uuid IS NULL OR t.id > $3)
         ORDER BY t.id LIMIT $4"#,
        filter.slug,
        filter.state,
        filter.after,
        filter.limit
    )
    .fetch_all(connection)
    .await
}

pub(super) async fn update_tenant(
    connection: &mut PgConnection,
    slug: &str,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "UPDATE chat_instances SET name = COALESCE($2, name), plan = COALESCE($3, plan),
                admin_email = COALESCE($4, admin_email), updated_at = $5,
                limits = jsonb_strip_nulls(limits || COALESCE($6::jsonb, '{}') || jsonb_build_object('features',
                    COALESCE(limits -> 'features', '{}') || COALESCE($6::jsonb -> 'features', '{}'))),
                ai_mode = COALESCE($7, ai_mode)
         WHERE slug = $1 AND state <> 'deleted' RETURNING id",
        slug,
        changes.name,
        changes.plan,
        changes.admin_email,
        now,
        changes.limits.as_ref().map(Json) as Option<Json<&TenantLimitsChange>>,
        changes.ai_mode.map(AiMode::as_str)
    )
    .fetch_optional(connection)
    .await
}

/// Whether a tenant is being deleted, or gone.
pub(super) async fn is_ending(pool: &PgPool, id: TenantId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM chat_instances WHERE id = $1 AND state IN ('deleting', 'deleted')
         ) AS "ending!""#,
        id.as_uuid()
    )
    .fetch_one(pool)
    .await
}

/// Notes the version of a tenant's schema, and the oldest program that can speak it.
pub(super) async fn set_schema(pool: &PgPool, id: TenantId, schema: Option<(i64, i64)>) -> Result<(), sqlx::Error> {
    let (version, compatible_from) = schema.unzip();
    sqlx::query!(
        "UPDATE chat_instances SET schema_version = $2, schema_compatible_from = $3
         WHERE id = $1 AND (schema_version, schema_compatible_from) IS DISTINCT FROM ($2, $3)",
        id.as_uuid(),
        version,
        compatible_from
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Moves a tenant to a state, unless it is being deleted or gone; `active` also notes since when.
pub(super) async fn set_state(
    connection: &mut PgConnection,
    id: TenantId,
    state: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances SET state = $2, updated_at = $3,
                activated_at = CASE WHEN $2 = 'active' THEN COALESCE(activated_at, $3) ELSE activated_at END
         WHERE id = $1 AND state NOT IN ('deleting', 'deleted')",
        id.as_uuid(),
        state,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn insert_cluster(
    connection: &mut PgConnection,
    cluster: &ClusterRecord,
    admin_url_sealed: &[u8],
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "INSERT INTO clusters (id, name, host, port, admin_url_sealed, template_schema_version, system_identifier,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO NOTHING",
        cluster.id.as_uuid(),
        cluster.name,
        cluster.host,
        cluster.port,
        admin_url_sealed,
        cluster.template_schema_version,
        cluster.system_identifier,
        cluster.created_at
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Lets nobody else register or change a cluster before the transaction ends.
pub(super) async fn lock_clusters(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("LOCK TABLE clusters IN SHARE ROW EXCLUSIVE MODE").execute(connection).await?;
    Ok(())
}

/// The name of the cluster that this one's server is registered as already.
pub(super) async fn cluster_on_server(
    connection: &mut PgConnection,
    cluster: &ClusterRecord,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "SELECT name FROM clusters WHERE id <> $1 AND (system_identifier = $2 OR (host = $3 AND port = $4))
         ORDER BY name LIMIT 1",
        cluster.id.as_uuid(),
        cluster.system_identifier,
        cluster.host,
        cluster.port
    )
    .fetch_optional(connection)
    .await
}

/// Stores another admin URL of a cluster, and what the server behind it is.
pub(super) async fn set_admin_url(
    connection: &mut PgConnection,
    cluster: &ClusterRecord,
    admin_url_sealed: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE clusters SET host = $2, port = $3, admin_url_sealed = $4, template_schema_version = $5,
                system_identifier = $6
         WHERE id = $1",
        cluster.id.as_uuid(),
        cluster.host,
        cluster.port,
        admin_url_sealed,
        cluster.template_schema_version,
        cluster.system_identifier
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn list_clusters(pool: &PgPool) -> Result<Vec<ClusterRecord>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT c.id, c.name, c.host, c.port, c.template_schema_version, c.system_identifier, c.created_at,
                (SELECT count(*) FROM tenant_databases d WHERE d.cluster_id = c.id) AS "tenants!"
         FROM clusters c ORDER BY c.name"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ClusterRecord {
            id: ClusterId::from_uuid(row.id),
            name: row.name,
            host: row.host,
            port: row.port,
            tenants: row.tenants,
            template_schema_version: row.template_schema_version,
            system_identifier: row.system_identifier,
            created_at: row.created_at,
        })
        .collect())
}

pub(super) async fn cluster_names(connection: &mut PgConnection) -> Result<Vec<(ClusterId, String)>, sqlx::Error> {
    let rows = sqlx::query!("SELECT id, name FROM clusters ORDER BY name").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (ClusterId::from_uuid(row.id), row.name)).collect())
}

pub(super) async fn cluster_admin_url(pool: &PgPool, id: ClusterId) -> Result<Option<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar!("SELECT admin_url_sealed FROM clusters WHERE id = $1", id.as_uuid()).fetch_optional(pool).await
}

pub(super) async fn set_template_version(pool: &PgPool, id: ClusterId, version: i64) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE clusters SET template_schema_version = $2
         WHERE id = $1 AND template_schema_version IS DISTINCT FROM $2",
        id.as_uuid(),
        version
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What Postgres calls the platform's own server; a managed service may keep it to itself.
pub(super) async fn platform_system_identifier(pool: &PgPool) -> Result<Option<String>, sqlx::Error> {
    let asked = sqlx::query_scalar!(r#"SELECT system_identifier::text FROM pg_control_system()"#).fetch_one(pool).await;
    match asked {
        Err(sqlx::Error::Database(_)) => Ok(None),
        other => other,
    }
}

pub(super) async fn set_system_identifier(pool: &PgPool, id: ClusterId, identifier: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE clusters SET system_identifier = $2 WHERE id = $1", id.as_uuid(), identifier)
        .execute(pool)
        .await?;
    Ok(())
}

/// A tenant's keys and credentials, all sealed.
pub(super) struct SealedCredentials {
    pub(super) key_version: i32,
    pub(super) wrapped_key: Vec<u8>,
    pub(super) url_sealed: Vec<u8>,
}

pub(super) async fn find_credentials(pool: &PgPool, id: TenantId) -> Result<Option<SealedCredentials>, sqlx::Error> {
    sqlx::query_as!(
        SealedCredentials,
        "SELECT w.version AS key_version, w.wrapped_key, d.url_sealed
         FROM tenant_databases d JOIN wrapped_keys w ON w.tenant_id = d.tenant_id
         WHERE d.tenant_id = $1 ORDER BY w.version DESC LIMIT 1",
        id.as_uuid()
    )
    .fetch_optional(pool)
    .await
}

/// What the first step of provisioning stores, all in one statement.
pub(super) struct NewCredentials<'a> {
    pub(super) tenant: TenantId,
    pub(super) cluster: ClusterId,
    pub(super) master_key_version: i32,
    pub(super) wrapped_key: &'a [u8],
    pub(super) names: &'a crate::provisioning::DatabaseNames,
    pub(super) url_sealed: &'a [u8],
    pub(super) signing_key: Uuid,
    pub(super) signing_secret_sealed: &'a [u8],
    pub(super) now: DateTime<Utc>,
}

/// Stores keys and credentials unless the tenant has them: a repeated step must not replace a password in use.
pub(super) async fn insert_credentials(pool: &PgPool, new: &NewCredentials<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH key AS (
             INSERT INTO wrapped_keys (tenant_id, version, wrapped_key, master_key_version, created_at)
             VALUES ($1, 1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING tenant_id
         ), database AS (
             INSERT INTO tenant_databases
                 (tenant_id, cluster_id, database_name, owner_role, login_role, url_sealed, created_at)
             SELECT tenant_id, $5, $6, $7, $8, $9, $4 FROM key
         )
         INSERT INTO signing_keys (id, tenant_id, secret_sealed, created_at)
         SELECT $10, tenant_id, $11, $4 FROM key",
        new.tenant.as_uuid(),
        new.wrapped_key,
        new.master_key_version,
        new.now,
        new.cluster.as_uuid(),
        new.names.database,
        new.names.owner_role,
        new.names.login_role,
        new.url_sealed,
        new.signing_key,
        new.signing_secret_sealed
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets keys and credentials. Without its data key, whatever was sealed for the tenant can never be opened again.
pub(super) async fn delete_credentials(pool: &PgPool, id: TenantId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH keys AS (DELETE FROM signing_keys WHERE tenant_id = $1),
              api_keys AS (DELETE FROM api_key_hashes WHERE tenant_id = $1),
              uses AS (DELETE FROM tenant_uses WHERE tenant_id = $1),
              databases AS (DELETE FROM tenant_databases WHERE tenant_id = $1)
         DELETE FROM wrapped_keys WHERE tenant_id = $1",
        id.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}
