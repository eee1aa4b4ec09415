//! SQL of `idempotency_keys`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::ids::SuperAdminId;

pub(super) async fn lock(connection: &mut PgConnection, admin: SuperAdminId, key: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", format!("idempotency/{admin}/{key}"))
        .fetch_one(connection)
        .await?;
    Ok(())
}

pub(super) async fn find(
    connection: &mut PgConnection,
    admin: SuperAdminId,
    key: &str,
) -> Result<Option<(Vec<u8>, Vec<u8>)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT request_hash, response_sealed FROM idempotency_keys WHERE super_admin_id = $1 AND key = $2",
        admin.as_uuid(),
        key
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (row.request_hash, row.response_sealed)))
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    admin: SuperAdminId,
    key: &str,
    hash: &[u8],
    response: &[u8],
    about: Uuid,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO idempotency_keys (super_admin_id, key, request_hash, response_sealed, about, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        admin.as_uuid(),
        key,
        hash,
        response,
        about,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn delete_about(pool: &PgPool, about: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM idempotency_keys WHERE about = $1", about).execute(pool).await?;
    Ok(())
}

pub(super) async fn delete_older(pool: &PgPool, than: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM idempotency_keys WHERE created_at < $1", than).execute(pool).await?;
    Ok(())
}
