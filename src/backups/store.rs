//! SQL of `backups`, `restores` and `restore_keys`, and of the registry as far as bringing a tenant back changes it.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{BackupRecord, Filter};
use crate::ids::{BackupId, ClusterId, OperationId, TenantId};
use crate::provisioning::DatabaseNames;

/// A backup about to be made, or a file about to be taken in.
pub(super) struct NewBackup<'a> {
    pub(super) id: BackupId,
    pub(super) tenant: Option<TenantId>,
    pub(super) origin: &'a str,
    pub(super) operation: Option<OperationId>,
    pub(super) state: &'a str,
    pub(super) file_name: &'a str,
    pub(super) key_kind: &'a str,
    pub(super) key_derivation: &'a [u8],
    pub(super) archive_key_sealed: Option<&'a [u8]>,
    pub(super) size: Option<i64>,
    pub(super) sha256: Option<&'a [u8]>,
    pub(super) now: DateTime<Utc>,
}

pub(super) async fn insert_backup(connection: &mut PgConnection, new: &NewBackup<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO backups (id, tenant_id, origin, operation_id, state, file_name, key_kind, key_derivation,
                              archive_key_sealed, size_bytes, sha256, created_at, finished_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, CASE $5 WHEN 'complete' THEN $12::timestamptz END)",
        new.id.as_uuid(),
        new.tenant.map(|id| id.as_uuid()),
        new.origin,
        new.operation.map(|id| id.as_uuid()),
        new.state,
        new.file_name,
        new.key_kind,
        new.key_derivation,
        new.archive_key_sealed,
        new.size,
        new.sha256,
        new.now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn list(connection: &mut PgConnection, filter: &Filter) -> Result<Vec<BackupRecord>, sqlx::Error> {
    sqlx::query_as!(
        BackupRecord,
        r#"SELECT b.id, b.tenant_id, t.slug AS "slug?", b.origin, b.operation_id, b.state, b.file_name, b.key_kind,
                b.size_bytes, b.sha256, b.schema_version, b.created_at, b.finished_at
         FROM backups b LEFT JOIN chat_instances t ON t.id = b.tenant_id
         WHERE ($1::uuid IS NULL OR b.id = $1) AND ($2::text IS NULL OR t.slug = $2)
           AND ($3::uuid IS NULL OR b.id < $3)
         ORDER BY b.id DESC LIMIT $4"#,
        filter.id.map(|id| id.as_uuid()),
        filter.tenant_slug,
        filter.before.map(|id| id.as_uuid()),
        filter.limit
    )
    .fetch_all(connection)
    .await
}

/// The operation that is at work on a backup's file, if there is one.
pub(super) async fn user_of(connection: &mut PgConnection, id: BackupId) -> Result<Option<OperationId>, sqlx::Error> {
    let operation = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM operations
         WHERE state IN ('queued', 'running', 'undoing', 'needs_operator')
           AND (id = (SELECT operation_id FROM backups WHERE id = $1)
                OR id IN (SELECT operation_id FROM restores WHERE backup_id = $1))
         LIMIT 1"#,
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(operation.map(OperationId::from_uuid))
}

/// Locks a backup's row, so that it is neither deleted nor restored from twice at once.
pub(super) async fn lock(connection: &mut PgConnection, id: BackupId) -> Result<bool, sqlx::Error> {
    let found = sqlx::query_scalar!("SELECT id FROM backups WHERE id = $1 FOR UPDATE", id.as_uuid())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

pub(super) async fn delete(connection: &mut PgConnection, id: BackupId) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM backups WHERE id = $1", id.as_uuid()).execute(connection).await?;
    Ok(())
}

/// What the worker needs to write a backup.
pub(super) struct Pending {
    pub(super) id: Uuid,
    pub(super) file_name: String,
    pub(super) key_derivation: Vec<u8>,
    pub(super) archive_key_sealed: Option<Vec<u8>>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) async fn pending(pool: &PgPool, operation: OperationId) -> Result<Option<Pending>, sqlx::Error> {
    sqlx::query_as!(
        Pending,
        "SELECT id, file_name, key_derivation, archive_key_sealed, created_at FROM backups WHERE operation_id = $1",
        operation.as_uuid()
    )
    .fetch_optional(pool)
    .await
}

pub(super) async fn note_written(
    pool: &PgPool,
    id: Uuid,
    size: i64,
    sha256: &[u8],
    schema_version: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE backups SET size_bytes = $2, sha256 = $3, schema_version = $4 WHERE id = $1",
        id,
        size,
        sha256,
        schema_version
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes how a backup ended. Its key goes in the same statement.
pub(super) async fn settle_backup(
    connection: &mut PgConnection,
    operation: OperationId,
    state: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE backups SET state = $2, finished_at = $3, archive_key_sealed = NULL WHERE operation_id = $1",
        operation.as_uuid(),
        state,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Uploads that nobody restored from for long, to be removed.
pub(super) async fn old_uploads(pool: &PgPool, before: DateTime<Utc>) -> Result<Vec<BackupId>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM backups WHERE origin = 'upload' AND created_at < $1 ORDER BY id LIMIT 100",
        before
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(BackupId::from_uuid).collect())
}

/// All of a tenant that goes into a manifest, its keys and address still sealed.
pub(super) struct SealedTenant {
    pub(super) slug: String,
    pub(super) name: String,
    pub(super) plan: String,
    pub(super) template: String,
    pub(super) admin_email: String,
    pub(super) limits: serde_json::Value,
    pub(super) database_mode: String,
    pub(super) state: String,
    pub(super) cluster_id: Option<Uuid>,
    pub(super) owner_role: Option<String>,
    pub(super) url_sealed: Vec<u8>,
    pub(super) key_versions: Vec<i32>,
    pub(super) wrapped_keys: Vec<Vec<u8>>,
}

pub(super) async fn sealed_tenant(pool: &PgPool, id: TenantId) -> Result<Option<SealedTenant>, sqlx::Error> {
    sqlx::query_as!(
        SealedTenant,
        r#"SELECT t.slug, t.name, t.plan, t.template, t.admin_email, t.limits, t.database_mode, t.state,
                d.cluster_id, d.owner_role, d.url_sealed,
                ARRAY(SELECT version FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version) AS "key_versions!",
                ARRAY(SELECT wrapped_key FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "wrapped_keys!"
         FROM chat_instances t JOIN tenant_databases d ON d.tenant_id = t.id WHERE t.id = $1"#,
        id.as_uuid()
    )
    .fetch_optional(pool)
    .await
}

/// A tenant's row, as far as it decides what may be done.
pub(super) struct TenantNow {
    pub(super) id: Uuid,
    pub(super) slug: String,
    pub(super) state: String,
    pub(super) database_mode: String,
    pub(super) cluster_id: Option<Uuid>,
}

/// Finds and locks a tenant's row, by id or, among those that are not deleted, by slug.
pub(super) async fn tenant_now(
    connection: &mut PgConnection,
    id: Option<Uuid>,
    slug: Option<&str>,
) -> Result<Option<TenantNow>, sqlx::Error> {
    sqlx::query_as!(
        TenantNow,
        "SELECT id, slug, state, database_mode, cluster_id FROM chat_instances
         WHERE id = $1 OR (slug = $2 AND state <> 'deleted') FOR UPDATE",
        id,
        slug
    )
    .fetch_optional(connection)
    .await
}

pub(super) async fn clusters(connection: &mut PgConnection) -> Result<Vec<(ClusterId, String)>, sqlx::Error> {
    let rows = sqlx::query!("SELECT id, name FROM clusters ORDER BY name").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (ClusterId::from_uuid(row.id), row.name)).collect())
}

/// A tenant about to be brought back.
pub(super) struct NewRestore<'a> {
    pub(super) operation: OperationId,
    pub(super) backup: BackupId,
    pub(super) tenant: TenantId,
    pub(super) slug: &'a str,
    pub(super) replaces: bool,
    pub(super) state_before: &'a str,
    pub(super) slug_before: &'a str,
    pub(super) registry: &'a serde_json::Value,
    pub(super) cluster: ClusterId,
    pub(super) names: &'a DatabaseNames,
    pub(super) archive_key_sealed: &'a [u8],
    pub(super) now: DateTime<Utc>,
}

/// Stores a restore, and makes or takes up the registry's row unless the tenant stays in service meanwhile. The slug's
/// being taken shows as a violation of its index.
pub(super) async fn insert_restore(connection: &mut PgConnection, new: &NewRestore<'_>) -> Result<(), sqlx::Error> {
    if !new.replaces {
        sqlx::query!(
            "INSERT INTO chat_instances (id, slug, name, plan, template, admin_email, database_mode, cluster_id, state,
                                         created_at, updated_at)
             SELECT $1, $2, r.name, r.plan, r.template, r.admin_email, 'managed', $4, 'requested', $5, $5
             FROM jsonb_to_record($3) AS r (name text, plan text, template text, admin_email text)
             ON CONFLICT (id) DO UPDATE SET slug = $2, state = 'requested', updated_at = $5",
            new.tenant.as_uuid(),
            new.slug,
            new.registry,
            new.cluster.as_uuid(),
            new.now
        )
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query!(
        "INSERT INTO restores (operation_id, backup_id, tenant_id, replaces, state_before, slug_before, registry,
                               cluster_id, database_name, owner_role, login_role, archive_key_sealed, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        new.operation.as_uuid(),
        new.backup.as_uuid(),
        new.tenant.as_uuid(),
        new.replaces,
        new.state_before,
        new.slug_before,
        new.registry,
        new.cluster.as_uuid(),
        new.names.database,
        new.names.owner_role,
        new.names.login_role,
        new.archive_key_sealed,
        new.now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What the worker needs to bring a tenant back.
pub(super) struct Restoring {
    pub(super) file_name: Option<String>,
    pub(super) cluster_id: Uuid,
    pub(super) database_name: String,
    pub(super) owner_role: String,
    pub(super) login_role: String,
    pub(super) archive_key_sealed: Option<Vec<u8>>,
    pub(super) url_sealed: Option<Vec<u8>>,
    pub(super) key_version: Option<i32>,
    pub(super) wrapped_key: Option<Vec<u8>>,
    /// Whether its database is the one in force: then nothing of it may be removed.
    pub(super) in_force: bool,
}

pub(super) async fn restoring(pool: &PgPool, operation: OperationId) -> Result<Option<Restoring>, sqlx::Error> {
    sqlx::query_as!(
        Restoring,
        r#"SELECT b.file_name AS "file_name?", r.cluster_id, r.database_name, r.owner_role, r.login_role,
                r.archive_key_sealed, r.url_sealed, k.version AS "key_version?", k.wrapped_key AS "wrapped_key?",
                EXISTS (SELECT FROM tenant_databases d
                        WHERE d.cluster_id = r.cluster_id AND d.database_name = r.database_name) AS "in_force!"
         FROM restores r LEFT JOIN backups b ON b.id = r.backup_id
         LEFT JOIN restore_keys k ON k.operation_id = r.operation_id
         WHERE r.operation_id = $1 ORDER BY k.version DESC NULLS LAST LIMIT 1"#,
        operation.as_uuid()
    )
    .fetch_optional(pool)
    .await
}

/// The secrets of a tenant being brought back, sealed.
pub(super) struct NewSecrets<'a> {
    pub(super) operation: OperationId,
    pub(super) versions: &'a [i32],
    pub(super) wrapped_keys: &'a [Vec<u8>],
    pub(super) master_key_version: i32,
    pub(super) url_sealed: &'a [u8],
    pub(super) signing_key: Uuid,
    pub(super) signing_secret_sealed: &'a [u8],
}

/// Stores them, unless they are there: a repeated step must not replace a password in use.
pub(super) async fn insert_secrets(pool: &PgPool, new: &NewSecrets<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH restore AS (
             UPDATE restores SET url_sealed = $5, signing_key_id = $6, signing_secret_sealed = $7
             WHERE operation_id = $1 AND url_sealed IS NULL AND settled_at IS NULL RETURNING operation_id
         )
         INSERT INTO restore_keys (operation_id, version, wrapped_key, master_key_version)
         SELECT operation_id, version, wrapped_key, $4
         FROM restore, unnest($2::int[], $3::bytea[]) AS key (version, wrapped_key)",
        new.operation.as_uuid(),
        new.versions,
        new.wrapped_keys,
        new.master_key_version,
        new.url_sealed,
        new.signing_key,
        new.signing_secret_sealed
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes which schema the new database has, and the oldest program that can speak it.
pub(super) async fn note_schema(
    pool: &PgPool,
    operation: OperationId,
    version: i64,
    compatible_from: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE restores SET schema_version = $2, schema_compatible_from = $3 WHERE operation_id = $1",
        operation.as_uuid(),
        version,
        compatible_from
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets them.
pub(super) async fn delete_secrets(connection: &mut PgConnection, operation: OperationId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH keys AS (DELETE FROM restore_keys WHERE operation_id = $1)
         UPDATE restores SET url_sealed = NULL, signing_key_id = NULL, signing_secret_sealed = NULL
         WHERE operation_id = $1",
        operation.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The archive's key goes, however it ends.
pub(super) async fn forget_archive_key(
    connection: &mut PgConnection,
    operation: OperationId,
) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE restores SET archive_key_sealed = NULL WHERE operation_id = $1", operation.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// The tenant of a restore that is not settled moves to a state, unless it is one that stays in service meanwhile.
pub(super) async fn move_tenant(
    connection: &mut PgConnection,
    operation: OperationId,
    state: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances t SET state = $2, updated_at = $3 FROM restores r
         WHERE r.operation_id = $1 AND r.settled_at IS NULL AND NOT r.replaces AND t.id = r.tenant_id",
        operation.as_uuid(),
        state,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The tenant goes back to what it was. Does nothing the second time: the tenant may be another by then.
pub(super) async fn give_up(
    connection: &mut PgConnection,
    operation: OperationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE chat_instances t SET state = r.state_before, slug = r.slug_before, updated_at = $2 FROM restores r
         WHERE r.operation_id = $1 AND r.settled_at IS NULL AND NOT r.replaces AND t.id = r.tenant_id",
        operation.as_uuid(),
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE restores SET settled_at = COALESCE(settled_at, $2) WHERE operation_id = $1",
        operation.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The database that a restore is about to replace, if the platform made it.
pub(super) struct Replaced {
    pub(super) tenant_id: Uuid,
    pub(super) cluster_id: Uuid,
    pub(super) database_name: String,
    pub(super) owner_role: String,
    pub(super) login_roles: Vec<String>,
}

pub(super) async fn replaced(
    connection: &mut PgConnection,
    operation: OperationId,
) -> Result<Option<Replaced>, sqlx::Error> {
    sqlx::query_as!(
        Replaced,
        r#"SELECT d.tenant_id, d.cluster_id AS "cluster_id!", d.database_name, d.owner_role AS "owner_role!",
                array_remove(ARRAY[d.login_role, d.next_login_role, d.retiring_login_role], NULL) AS "login_roles!"
         FROM restores r JOIN tenant_databases d ON d.tenant_id = r.tenant_id
         WHERE r.operation_id = $1 AND d.cluster_id IS NOT NULL AND d.owner_role IS NOT NULL"#,
        operation.as_uuid()
    )
    .fetch_optional(connection)
    .await
}

/// What was restored comes into force: database, keys, and, for a tenant that was not in service, its row.
pub(super) async fn switch(
    connection: &mut PgConnection,
    operation: OperationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let id = operation.as_uuid();
    for statement in [
        sqlx::query!(
            "DELETE FROM signing_keys WHERE tenant_id = (SELECT tenant_id FROM restores WHERE operation_id = $1)",
            id
        ),
        sqlx::query!(
            "DELETE FROM wrapped_keys WHERE tenant_id = (SELECT tenant_id FROM restores WHERE operation_id = $1)",
            id
        ),
        sqlx::query!(
            "DELETE FROM tenant_databases WHERE tenant_id = (SELECT tenant_id FROM restores WHERE operation_id = $1)",
            id
        ),
        // A database of the client's own is not waited for any more, and a token to give one is worth nothing.
        sqlx::query!(
            "DELETE FROM own_database_requests WHERE tenant_id = (SELECT tenant_id FROM restores WHERE operation_id = $1)",
            id
        ),
    ] {
        statement.execute(&mut *connection).await?;
    }
    sqlx::query!(
        "INSERT INTO tenant_databases
             (tenant_id, cluster_id, database_name, owner_role, login_role, url_sealed, created_at)
         SELECT tenant_id, cluster_id, database_name, owner_role, login_role, url_sealed, $2
         FROM restores WHERE operation_id = $1",
        id,
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO wrapped_keys (tenant_id, version, wrapped_key, master_key_version, created_at)
         SELECT r.tenant_id, k.version, k.wrapped_key, k.master_key_version, $2
         FROM restores r JOIN restore_keys k USING (operation_id) WHERE r.operation_id = $1",
        id,
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO signing_keys (id, tenant_id, secret_sealed, created_at)
         SELECT signing_key_id, tenant_id, signing_secret_sealed, $2 FROM restores WHERE operation_id = $1",
        id,
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE chat_instances t SET
             state = CASE WHEN r.replaces THEN t.state ELSE 'active' END,
             name = CASE WHEN r.replaces THEN t.name ELSE r.registry ->> 'name' END,
             plan = CASE WHEN r.replaces THEN t.plan ELSE r.registry ->> 'plan' END,
             template = CASE WHEN r.replaces THEN t.template ELSE r.registry ->> 'template' END,
             admin_email = CASE WHEN r.replaces THEN t.admin_email ELSE r.registry ->> 'admin_email' END,
             limits = CASE WHEN r.replaces THEN t.limits ELSE r.registry -> 'limits' END,
             suspended_at = CASE WHEN r.replaces THEN t.suspended_at END,
             suspended_by = CASE WHEN r.replaces THEN t.suspended_by END,
             suspend_reason = CASE WHEN r.replaces THEN t.suspend_reason END,
             delete_after = CASE WHEN r.replaces THEN t.delete_after END,
             deleted_from = CASE WHEN r.replaces THEN t.deleted_from END,
             deleted_at = CASE WHEN r.replaces THEN t.deleted_at END,
             database_mode = 'managed', cluster_id = r.cluster_id, schema_version = r.schema_version,
             schema_compatible_from = r.schema_compatible_from,
             activated_at = COALESCE(t.activated_at, $2), updated_at = $2
         FROM restores r WHERE r.operation_id = $1 AND t.id = r.tenant_id",
        id,
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("UPDATE restores SET settled_at = $2 WHERE operation_id = $1", id, now)
        .execute(&mut *connection)
        .await?;
    delete_secrets(connection, operation).await
}

/// Whether a tenant is served from this database.
pub(super) async fn in_force(pool: &PgPool, cluster: ClusterId, database: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM tenant_databases WHERE cluster_id = $1 AND database_name = $2) AS "in_force!""#,
        cluster.as_uuid(),
        database
    )
    .fetch_one(pool)
    .await
}

/// Drops that have failed, those that failed longest ago first, of tenants that no operation holds.
pub(super) async fn failed_drops(
    pool: &PgPool,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<OperationId>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        "SELECT o.id FROM operations o JOIN chat_instances t ON t.id = o.tenant_id
         WHERE o.kind = 'drop_replaced_database' AND o.state = 'failed' AND o.finished_at < $1
           AND t.state <> 'deleted' AND o.input ? 'database' AND o.error_code IS DISTINCT FROM 'input_unreadable'
           AND NOT EXISTS (SELECT FROM operations h WHERE h.tenant_id = o.tenant_id
                             AND h.state IN ('queued', 'running', 'undoing', 'needs_operator'))
         ORDER BY o.finished_at LIMIT $2",
        before,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(OperationId::from_uuid).collect())
}
