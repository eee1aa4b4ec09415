//! SQL of what a master key wraps or seals. A sealed value carries its key's version in its second to fifth byte.

use sqlx::PgPool;
use uuid::Uuid;

pub(super) struct DataKeyRow {
    pub(super) tenant_id: Uuid,
    pub(super) version: i32,
    pub(super) wrapped_key: Vec<u8>,
}

/// Data keys that are not under a version, in the order of their primary key.
pub(super) async fn data_keys_not_under(
    pool: &PgPool,
    version: i32,
    after: (Uuid, i32),
    limit: i64,
) -> Result<Vec<DataKeyRow>, sqlx::Error> {
    sqlx::query_as!(
        DataKeyRow,
        "SELECT tenant_id, version, wrapped_key FROM wrapped_keys
         WHERE substring(wrapped_key FROM 2 FOR 4) <> int4send($1) AND (tenant_id, version) > ($2, $3)
         ORDER BY tenant_id, version LIMIT $4",
        version,
        after.0,
        after.1,
        limit
    )
    .fetch_all(pool)
    .await
}

pub(super) async fn count_data_keys(pool: &PgPool, version: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM wrapped_keys WHERE substring(wrapped_key FROM 2 FOR 4) <> int4send($1)"#,
        version
    )
    .fetch_one(pool)
    .await
}

/// Data keys wrapped again, column by column.
#[derive(Default)]
pub(super) struct Rewrapped {
    pub(super) tenants: Vec<Uuid>,
    pub(super) versions: Vec<i32>,
    pub(super) old: Vec<Vec<u8>>,
    pub(super) new: Vec<Vec<u8>>,
}

/// Stores each that is still the one that was read.
pub(super) async fn rewrap(pool: &PgPool, batch: &Rewrapped, master_key_version: i32) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE wrapped_keys k SET wrapped_key = batch.new, master_key_version = $5
         FROM unnest($1::uuid[], $2::int4[], $3::bytea[], $4::bytea[]) AS batch (tenant_id, version, old, new)
         WHERE k.tenant_id = batch.tenant_id AND k.version = batch.version AND k.wrapped_key = batch.old",
        &batch.tenants,
        &batch.versions,
        &batch.old,
        &batch.new,
        master_key_version
    )
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn cluster_urls_not_under(pool: &PgPool, version: i32) -> Result<Vec<(Uuid, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT id, admin_url_sealed FROM clusters WHERE substring(admin_url_sealed FROM 2 FOR 4) <> int4send($1)",
        version
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.admin_url_sealed)).collect())
}

pub(super) async fn reseal_cluster_url(pool: &PgPool, id: Uuid, old: &[u8], new: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE clusters SET admin_url_sealed = $3 WHERE id = $1 AND admin_url_sealed = $2", id, old, new)
        .execute(pool)
        .await?;
    Ok(())
}

pub(super) async fn shared_models_not_under(pool: &PgPool, version: i32) -> Result<Vec<(Uuid, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT id, api_key_sealed FROM shared_models WHERE substring(api_key_sealed FROM 2 FOR 4) <> int4send($1)",
        version
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.api_key_sealed)).collect())
}

pub(super) async fn reseal_shared_model(pool: &PgPool, id: Uuid, old: &[u8], new: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE shared_models SET api_key_sealed = $3 WHERE id = $1 AND api_key_sealed = $2", id, old, new)
        .execute(pool)
        .await?;
    Ok(())
}

pub(super) struct AnswerRow {
    pub(super) super_admin_id: Uuid,
    pub(super) key: String,
    pub(super) response_sealed: Vec<u8>,
}

pub(super) async fn answers_not_under(
    pool: &PgPool,
    version: i32,
    after: &(Uuid, String),
    limit: i64,
) -> Result<Vec<AnswerRow>, sqlx::Error> {
    sqlx::query_as!(
        AnswerRow,
        "SELECT super_admin_id, key, response_sealed FROM idempotency_keys
         WHERE substring(response_sealed FROM 2 FOR 4) <> int4send($1) AND (super_admin_id, key) > ($2, $3)
         ORDER BY super_admin_id, key LIMIT $4",
        version,
        after.0,
        after.1,
        limit
    )
    .fetch_all(pool)
    .await
}

pub(super) async fn count_answers(pool: &PgPool, version: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM idempotency_keys
           WHERE substring(response_sealed FROM 2 FOR 4) <> int4send($1)"#,
        version
    )
    .fetch_one(pool)
    .await
}

/// Kept answers sealed again, column by column.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) admins: Vec<Uuid>,
    pub(super) keys: Vec<String>,
    pub(super) old: Vec<Vec<u8>>,
    pub(super) new: Vec<Vec<u8>>,
}

/// Stores each that is still the one that was read.
pub(super) async fn reseal_answers(pool: &PgPool, batch: &Answers) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE idempotency_keys k SET response_sealed = batch.new
         FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[]) AS batch (super_admin_id, key, old, new)
         WHERE k.super_admin_id = batch.super_admin_id AND k.key = batch.key AND k.response_sealed = batch.old",
        &batch.admins,
        &batch.keys,
        &batch.old,
        &batch.new
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The key of an archive that is being written or read.
pub(super) struct ArchiveKeyRow {
    pub(super) is_backup: bool,
    /// The backup's id or the restore's operation.
    pub(super) id: Uuid,
    pub(super) sealed: Vec<u8>,
}

pub(super) async fn archive_keys_not_under(pool: &PgPool, version: i32) -> Result<Vec<ArchiveKeyRow>, sqlx::Error> {
    sqlx::query_as!(
        ArchiveKeyRow,
        r#"SELECT true AS "is_backup!", id AS "id!", archive_key_sealed AS "sealed!" FROM backups
           WHERE substring(archive_key_sealed FROM 2 FOR 4) <> int4send($1)
           UNION ALL SELECT false, operation_id, archive_key_sealed FROM restores
           WHERE substring(archive_key_sealed FROM 2 FOR 4) <> int4send($1)"#,
        version
    )
    .fetch_all(pool)
    .await
}

/// Stores it if it is still the one that was read.
pub(super) async fn reseal_archive_key(pool: &PgPool, row: &ArchiveKeyRow, new: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH backup AS (
             UPDATE backups SET archive_key_sealed = $3 WHERE $4 AND id = $1 AND archive_key_sealed = $2
         )
         UPDATE restores SET archive_key_sealed = $3 WHERE NOT $4 AND operation_id = $1 AND archive_key_sealed = $2",
        row.id,
        row.sealed,
        new,
        row.is_backup
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A data key out of a backup, before it is in force.
pub(super) struct RestoreKeyRow {
    pub(super) operation_id: Uuid,
    pub(super) tenant_id: Uuid,
    pub(super) version: i32,
    pub(super) wrapped_key: Vec<u8>,
}

pub(super) async fn restore_keys_not_under(pool: &PgPool, version: i32) -> Result<Vec<RestoreKeyRow>, sqlx::Error> {
    sqlx::query_as!(
        RestoreKeyRow,
        "SELECT k.operation_id, r.tenant_id, k.version, k.wrapped_key
         FROM restore_keys k JOIN restores r USING (operation_id)
         WHERE substring(k.wrapped_key FROM 2 FOR 4) <> int4send($1)",
        version
    )
    .fetch_all(pool)
    .await
}

/// Stores it if it is still the one that was read.
pub(super) async fn rewrap_restore_key(
    pool: &PgPool,
    row: &RestoreKeyRow,
    new: &[u8],
    master_key_version: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE restore_keys SET wrapped_key = $4, master_key_version = $5
         WHERE operation_id = $1 AND version = $2 AND wrapped_key = $3",
        row.operation_id,
        row.version,
        row.wrapped_key,
        new,
        master_key_version
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Every version that something is under, and how many values, lowest first.
pub(super) async fn versions_in_use(pool: &PgPool) -> Result<Vec<(i32, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT ('x' || encode(header, 'hex'))::bit(32)::int AS "version!", count(*) AS "values!"
         FROM (
             SELECT substring(wrapped_key FROM 2 FOR 4) AS header FROM wrapped_keys
             UNION ALL SELECT substring(admin_url_sealed FROM 2 FOR 4) FROM clusters
             UNION ALL SELECT substring(api_key_sealed FROM 2 FOR 4) FROM shared_models
             UNION ALL SELECT substring(response_sealed FROM 2 FOR 4) FROM idempotency_keys
             UNION ALL SELECT substring(archive_key_sealed FROM 2 FOR 4) FROM backups
                 WHERE archive_key_sealed IS NOT NULL
             UNION ALL SELECT substring(archive_key_sealed FROM 2 FOR 4) FROM restores
                 WHERE archive_key_sealed IS NOT NULL
             UNION ALL SELECT substring(wrapped_key FROM 2 FOR 4) FROM restore_keys
         ) AS sealed
         GROUP BY header ORDER BY header"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.version, row.values)).collect())
}
