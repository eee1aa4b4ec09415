//! SQL of `api_key_hashes`: which tenant a key leads to.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::ids::{ApiKeyId, TenantId};
use crate::secrets::HashedToken;

pub(super) async fn insert(
    pool: &PgPool,
    hash: &HashedToken,
    tenant: TenantId,
    id: ApiKeyId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO api_key_hashes (token_hash, tenant_id, api_key_id, created_at) VALUES ($1, $2, $3, $4)",
        hash.as_bytes(),
        tenant.as_uuid(),
        id.as_uuid(),
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets where a key leads. The tenant is named too: nobody forgets another's.
pub(super) async fn delete(pool: &PgPool, hash: &HashedToken, tenant: TenantId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM api_key_hashes WHERE token_hash = $1 AND tenant_id = $2",
        hash.as_bytes(),
        tenant.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}
