//! SQL of rotations: credentials, data keys, signing keys, schedules. That of the master key is in `master_key`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::ids::{ClusterId, SigningKeyId, TenantId};

/// A tenant's credential as registered, sealed.
pub(super) struct Credential {
    pub(super) cluster_id: Option<ClusterId>,
    pub(super) database_name: String,
    pub(super) owner_role: Option<String>,
    pub(super) login_role: String,
    pub(super) url_sealed: Vec<u8>,
    pub(super) next_login_role: Option<String>,
    pub(super) next_url_sealed: Option<Vec<u8>>,
    pub(super) retiring_login_role: Option<String>,
    pub(super) rotated_at: Option<DateTime<Utc>>,
    /// The tenant's state.
    pub(super) state: String,
}

pub(super) async fn credential(pool: &PgPool, tenant: TenantId) -> Result<Option<Credential>, sqlx::Error> {
    sqlx::query_as!(
        Credential,
        r#"SELECT d.cluster_id AS "cluster_id: ClusterId", d.database_name, d.owner_role, d.login_role, d.url_sealed,
                d.next_login_role, d.next_url_sealed, d.retiring_login_role, d.rotated_at, t.state
         FROM tenant_databases d JOIN chat_instances t ON t.id = d.tenant_id WHERE d.tenant_id = $1"#,
        tenant.as_uuid()
    )
    .fetch_optional(pool)
    .await
}

/// Puts the credential that is being brought in on record, unless there is one.
pub(super) async fn write_next_credential(
    pool: &PgPool,
    tenant: TenantId,
    login_role: &str,
    url_sealed: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE tenant_databases SET next_login_role = $2, next_url_sealed = $3
         WHERE tenant_id = $1 AND next_url_sealed IS NULL",
        tenant.as_uuid(),
        login_role,
        url_sealed
    )
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn forget_next_credential(pool: &PgPool, tenant: TenantId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE tenant_databases SET next_login_role = NULL, next_url_sealed = NULL
         WHERE tenant_id = $1 AND next_url_sealed IS NOT NULL",
        tenant.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Puts the new credential in the place of the one in use, if it is still the one that was proved.
pub(super) async fn switch_credential(
    pool: &PgPool,
    tenant: TenantId,
    next_url_sealed: &[u8],
    url_sealed: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let switched = sqlx::query!(
        "UPDATE tenant_databases SET url_sealed = $3, login_role = next_login_role, retiring_login_role = login_role,
                next_login_role = NULL, next_url_sealed = NULL, rotated_at = $4
         WHERE tenant_id = $1 AND next_login_role IS NOT NULL AND next_url_sealed = $2",
        tenant.as_uuid(),
        next_url_sealed,
        url_sealed,
        now
    )
    .execute(pool)
    .await?;
    Ok(switched.rows_affected() == 1)
}

pub(super) async fn credential_retired(pool: &PgPool, tenant: TenantId, role: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE tenant_databases SET retiring_login_role = NULL WHERE tenant_id = $1 AND retiring_login_role = $2",
        tenant.as_uuid(),
        role
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Stores a credential sealed again. Returns whether it was still the one that was read.
pub(super) async fn reseal_credential(
    pool: &PgPool,
    tenant: TenantId,
    read: &Credential,
    url_sealed: Option<Vec<u8>>,
    next_url_sealed: Option<Vec<u8>>,
) -> Result<bool, sqlx::Error> {
    let resealed = sqlx::query!(
        "UPDATE tenant_databases
         SET url_sealed = COALESCE($4, url_sealed), next_url_sealed = COALESCE($5, next_url_sealed)
         WHERE tenant_id = $1 AND url_sealed = $2 AND next_url_sealed IS NOT DISTINCT FROM $3",
        tenant.as_uuid(),
        read.url_sealed,
        read.next_url_sealed,
        url_sealed,
        next_url_sealed
    )
    .execute(pool)
    .await?;
    Ok(resealed.rows_affected() == 1)
}

/// A data key as stored.
pub(super) struct DataKeyRow {
    pub(super) version: i32,
    pub(super) wrapped_key: Vec<u8>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) activated_at: Option<DateTime<Utc>>,
    pub(super) retired_at: Option<DateTime<Utc>>,
}

/// Lowest version first.
pub(super) async fn data_keys(pool: &PgPool, tenant: TenantId) -> Result<Vec<DataKeyRow>, sqlx::Error> {
    sqlx::query_as!(
        DataKeyRow,
        "SELECT version, wrapped_key, created_at, activated_at, retired_at FROM wrapped_keys
         WHERE tenant_id = $1 ORDER BY version",
        tenant.as_uuid()
    )
    .fetch_all(pool)
    .await
}

/// Inserts a data key that does not seal yet, unless there is one of this version.
pub(super) async fn insert_data_key(
    pool: &PgPool,
    tenant: TenantId,
    version: i32,
    wrapped_key: &[u8],
    master_key_version: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO wrapped_keys (tenant_id, version, wrapped_key, master_key_version, created_at, activated_at)
         VALUES ($1, $2, $3, $4, $5, NULL) ON CONFLICT DO NOTHING",
        tenant.as_uuid(),
        version,
        wrapped_key,
        master_key_version,
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Deletes a data key that never sealed anything.
pub(super) async fn delete_inactive_data_key(pool: &PgPool, tenant: TenantId, version: i32) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM wrapped_keys WHERE tenant_id = $1 AND version = $2 AND activated_at IS NULL",
        tenant.as_uuid(),
        version
    )
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn activate_data_key(
    pool: &PgPool,
    tenant: TenantId,
    version: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE wrapped_keys SET activated_at = $3 WHERE tenant_id = $1 AND version = $2 AND activated_at IS NULL",
        tenant.as_uuid(),
        version,
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes that nothing is under the data keys before a version any more.
pub(super) async fn retire_data_keys(
    pool: &PgPool,
    tenant: TenantId,
    version: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE wrapped_keys SET retired_at = $3 WHERE tenant_id = $1 AND version < $2 AND retired_at IS NULL",
        tenant.as_uuid(),
        version,
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Deletes the data keys before a version, if nothing on the platform is under any of them. A sealed value carries its
/// key's version in its second to fifth byte.
pub(super) async fn delete_data_keys_before(
    pool: &PgPool,
    tenant: TenantId,
    version: i32,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"WITH needed AS (
             SELECT EXISTS (
                 SELECT FROM tenant_databases WHERE tenant_id = $1
                   AND (substring(url_sealed FROM 2 FOR 4) <> int4send($2)
                        OR substring(next_url_sealed FROM 2 FOR 4) <> int4send($2))
             ) OR EXISTS (
                 SELECT FROM signing_keys WHERE tenant_id = $1
                   AND substring(secret_sealed FROM 2 FOR 4) <> int4send($2)
             ) AS still
         ), deleted AS (
             DELETE FROM wrapped_keys USING needed WHERE tenant_id = $1 AND version < $2 AND NOT needed.still
         )
         SELECT NOT still AS "deleted!" FROM needed"#,
        tenant.as_uuid(),
        version
    )
    .fetch_one(pool)
    .await
}

/// A tenant's signing keys, sealed.
pub(super) async fn signing_keys(pool: &PgPool, tenant: TenantId) -> Result<Vec<(Uuid, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query!("SELECT id, secret_sealed FROM signing_keys WHERE tenant_id = $1", tenant.as_uuid())
        .fetch_all(pool)
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.secret_sealed)).collect())
}

/// Stores a signing key sealed again, if it is still the one that was read.
pub(super) async fn reseal_signing_key(pool: &PgPool, id: Uuid, read: &[u8], new: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE signing_keys SET secret_sealed = $3 WHERE id = $1 AND secret_sealed = $2", id, read, new)
        .execute(pool)
        .await?;
    Ok(())
}

/// Inserts a signing key and retires those before it, all in one statement; a key that is there stays as it is.
pub(super) async fn insert_signing_key(
    pool: &PgPool,
    tenant: TenantId,
    id: SigningKeyId,
    secret_sealed: &[u8],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH inserted AS (
             INSERT INTO signing_keys (id, tenant_id, secret_sealed, created_at) VALUES ($2, $1, $3, $4)
             ON CONFLICT DO NOTHING RETURNING id
         )
         UPDATE signing_keys k SET retired_at = $4 FROM inserted
         WHERE k.tenant_id = $1 AND k.id <> inserted.id AND k.retired_at IS NULL",
        tenant.as_uuid(),
        id.as_uuid(),
        secret_sealed,
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn last_retired_signing_key(
    pool: &PgPool,
    tenant: TenantId,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar!("SELECT max(retired_at) FROM signing_keys WHERE tenant_id = $1", tenant.as_uuid())
        .fetch_one(pool)
        .await
}

/// Deletes signing keys that were retired before an instant, of one tenant or of all.
pub(super) async fn delete_retired_signing_keys(
    pool: &PgPool,
    tenant: Option<TenantId>,
    retired_before: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "DELETE FROM signing_keys WHERE ($1::uuid IS NULL OR tenant_id = $1) AND retired_at <= $2",
        tenant.map(|tenant| tenant.as_uuid()),
        retired_before
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

/// A tenant for which a rotation may be asked.
pub(super) struct Candidate {
    pub(super) id: TenantId,
    pub(super) slug: String,
    pub(super) state: String,
    pub(super) database_mode: String,
    pub(super) data_key_version: Option<i32>,
    pub(super) holder: Option<Uuid>,
    pub(super) holder_kind: Option<String>,
}

/// Tenants by slug, or all; with whatever operation holds them.
pub(super) async fn candidates(
    connection: &mut PgConnection,
    slugs: Option<&[String]>,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as!(
        Candidate,
        r#"SELECT t.id AS "id: TenantId", t.slug, t.state, t.database_mode,
                (SELECT max(version) FROM wrapped_keys w WHERE w.tenant_id = t.id) AS data_key_version,
                o.id AS "holder?", o.kind AS "holder_kind?"
         FROM chat_instances t
         LEFT JOIN operations o ON o.tenant_id = t.id AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')
         WHERE t.state <> 'deleted' AND ($1::text[] IS NULL OR t.slug = ANY ($1)) ORDER BY t.id"#,
        slugs
    )
    .fetch_all(connection)
    .await
}

/// The tenants whose turn it is, most overdue first. A suspended tenant's database is locked: what cannot be done must not take
/// the place of what can.
pub(super) async fn due(
    connection: &mut PgConnection,
    kind: &str,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "SELECT t.slug FROM rotation_plan p JOIN chat_instances t ON t.id = p.tenant_id
         WHERE p.kind = $1 AND p.next_at <= $2 AND (t.state = 'active' OR p.kind = 'signing_key')
           AND NOT EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                           AND o.state IN ('queued', 'running', 'undoing', 'needs_operator'))
         ORDER BY p.next_at LIMIT $3",
        kind,
        now,
        limit
    )
    .fetch_all(connection)
    .await
}

/// When something of a tenant was replaced last and will be next.
pub(super) struct PlanRow {
    pub(super) kind: String,
    pub(super) last_at: Option<DateTime<Utc>>,
    pub(super) next_at: Option<DateTime<Utc>>,
    pub(super) every_days: Option<i32>,
}

pub(super) async fn plan(pool: &PgPool, tenant: Uuid) -> Result<Vec<PlanRow>, sqlx::Error> {
    sqlx::query_as!(
        PlanRow,
        r#"SELECT kind AS "kind!", last_at, next_at, every_days FROM rotation_plan WHERE tenant_id = $1 ORDER BY kind"#,
        tenant
    )
    .fetch_all(pool)
    .await
}

/// Sets the schedule of some tenants, or that of all when there are none. Returns how many were set.
pub(super) async fn set_schedules(
    connection: &mut PgConnection,
    kind: &str,
    tenants: Option<&[Uuid]>,
    every_days: Option<i32>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    delete_schedules(&mut *connection, kind, tenants).await?;
    match tenants {
        Some(tenants) => {
            sqlx::query!(
                "INSERT INTO rotation_schedules (kind, tenant_id, every_days, set_at)
                 SELECT $1, tenant, $3, $4 FROM unnest($2::uuid[]) AS tenant",
                kind,
                tenants,
                every_days,
                now
            )
            .execute(connection)
            .await?;
        }
        None => {
            sqlx::query!(
                "INSERT INTO rotation_schedules (kind, every_days, set_at) VALUES ($1, $2, $3)",
                kind,
                every_days,
                now
            )
            .execute(connection)
            .await?;
        }
    }
    Ok(())
}

/// Takes the schedules of some tenants away, or the one for all.
pub(super) async fn delete_schedules(
    connection: &mut PgConnection,
    kind: &str,
    tenants: Option<&[Uuid]>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM rotation_schedules
         WHERE kind = $1 AND (tenant_id = ANY ($2) OR ($2::uuid[] IS NULL AND tenant_id IS NULL))",
        kind,
        tenants
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A schedule as stored.
pub(super) struct ScheduleRow {
    pub(super) kind: String,
    pub(super) slug: Option<String>,
    pub(super) every_days: Option<i32>,
    pub(super) set_at: DateTime<Utc>,
}

pub(super) async fn schedules(pool: &PgPool) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    sqlx::query_as!(
        ScheduleRow,
        r#"SELECT s.kind, t.slug AS "slug?", s.every_days, s.set_at
         FROM rotation_schedules s LEFT JOIN chat_instances t ON t.id = s.tenant_id
         WHERE t.state IS DISTINCT FROM 'deleted' ORDER BY s.tenant_id NULLS FIRST, s.kind"#
    )
    .fetch_all(pool)
    .await
}
