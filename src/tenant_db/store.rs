//! SQL of the platform's database: a tenant's record, and which tenants are used.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use crate::api::platform::TenantLimits;

/// How a record is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key<'a> {
    Id(Uuid),
    Slug(&'a str),
    Kid(Uuid),
    TokenHash(&'a [u8]),
}

/// A record as stored: everything secret still sealed.
pub(super) struct SealedRecord {
    pub(super) id: Uuid,
    pub(super) slug: String,
    pub(super) name: String,
    pub(super) plan: String,
    pub(super) state: String,
    pub(super) schema_version: Option<i64>,
    pub(super) schema_compatible_from: Option<i64>,
    pub(super) cluster_id: Option<Uuid>,
    pub(super) limits: TenantLimits,
    pub(super) ai_mode: String,
    pub(super) database_url: Option<Vec<u8>>,
    pub(super) next_database_url: Option<Vec<u8>>,
    /// Each key's version, the key, and whether it seals already.
    pub(super) wrapped_keys: Vec<(i32, Vec<u8>, bool)>,
    pub(super) signing_keys: Vec<(Uuid, Vec<u8>, bool)>,
}

pub(super) async fn find(pool: &PgPool, key: Key<'_>) -> Result<Option<SealedRecord>, sqlx::Error> {
    let (id, slug, signing_key, api_key) = match key {
        Key::Id(id) => (Some(id), None, None, None),
        Key::Slug(slug) => (None, Some(slug), None, None),
        Key::Kid(kid) => (None, None, Some(kid), None),
        Key::TokenHash(hash) => (None, None, None, Some(hash)),
    };
    let row = sqlx::query!(
        r#"SELECT t.id AS "id!", t.slug AS "slug!", t.name AS "name!", t.plan AS "plan!", t.state AS "state!",
                t.schema_version, t.schema_compatible_from, t.limits AS "limits!: Json<TenantLimits>", t.ai_mode AS "ai_mode!", d.cluster_id AS "cluster_id?",
                d.url_sealed AS "url_sealed?", d.next_url_sealed AS "next_url_sealed?",
                ARRAY(SELECT version FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "key_versions!",
                ARRAY(SELECT wrapped_key FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "wrapped_keys!",
                ARRAY(SELECT activated_at IS NOT NULL FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "keys_active!",
                ARRAY(SELECT k.id FROM signing_keys k WHERE k.tenant_id = t.id ORDER BY k.id)
                    AS "signing_key_ids!",
                ARRAY(SELECT k.secret_sealed FROM signing_keys k WHERE k.tenant_id = t.id ORDER BY k.id)
                    AS "signing_secrets!",
                ARRAY(SELECT k.retired_at IS NOT NULL FROM signing_keys k WHERE k.tenant_id = t.id ORDER BY k.id)
                    AS "signing_retired!"
         FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         WHERE t.state <> 'deleted'
           AND (t.id = $1 OR t.slug = $2 OR t.id = (SELECT tenant_id FROM signing_keys WHERE id = $3)
                OR t.id = (SELECT tenant_id FROM api_key_hashes WHERE token_hash = $4))"#,
        id,
        slug,
        signing_key,
        api_key
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| SealedRecord {
        id: row.id,
        slug: row.slug,
        name: row.name,
        plan: row.plan,
        state: row.state,
        schema_version: row.schema_version,
        schema_compatible_from: row.schema_compatible_from,
        cluster_id: row.cluster_id,
        limits: row.limits.0,
        ai_mode: row.ai_mode,
        database_url: row.url_sealed,
        next_database_url: row.next_url_sealed,
        wrapped_keys: row
            .key_versions
            .into_iter()
            .zip(row.wrapped_keys)
            .zip(row.keys_active)
            .map(|((version, key), active)| (version, key, active))
            .collect(),
        signing_keys: row
            .signing_key_ids
            .into_iter()
            .zip(row.signing_secrets)
            .zip(row.signing_retired)
            .map(|((id, secret), retired)| (id, secret, retired))
            .collect(),
    }))
}

/// Those of the tenants that are deleted for good.
pub(super) async fn gone(pool: &PgPool, known: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!("SELECT id FROM chat_instances WHERE id = ANY ($1) AND state = 'deleted'", known)
        .fetch_all(pool)
        .await
}

/// Notes that tenants are used. In one order, so that servers that do so at once do not wait for each other in a circle.
pub(super) async fn note_uses(pool: &PgPool, tenants: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO tenant_uses (tenant_id, used_at)
         SELECT id, now() FROM chat_instances WHERE id = ANY ($1) AND state <> 'deleted' ORDER BY id
         ON CONFLICT (tenant_id) DO UPDATE SET used_at = EXCLUDED.used_at",
        tenants
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Tenants in service behind one that were not swept long enough after their last use, or not for too long, with the
/// time.
pub(super) async fn to_sweep(
    pool: &PgPool,
    after: Option<Uuid>,
    limit: i64,
    after_use: Duration,
    anyway: Duration,
) -> Result<Vec<(Uuid, DateTime<Utc>)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT t.id, now() AS "now!" FROM chat_instances t LEFT JOIN tenant_uses u ON u.tenant_id = t.id
         WHERE t.state = 'active' AND ($1::uuid IS NULL OR t.id > $1)
           AND (u.swept_at IS NULL OR u.swept_at < u.used_at + make_interval(secs => $3)
                OR u.swept_at < now() - make_interval(secs => $4))
         ORDER BY t.id LIMIT $2"#,
        after,
        limit,
        after_use.as_secs_f64(),
        anyway.as_secs_f64()
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.now)).collect())
}

/// Notes when tenants were swept.
pub(super) async fn note_swept(pool: &PgPool, tenants: &[Uuid], times: &[DateTime<Utc>]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO tenant_uses AS u (tenant_id, swept_at)
         SELECT t.id, s.swept_at FROM unnest($1::uuid[], $2::timestamptz[]) s (id, swept_at)
         JOIN chat_instances t ON t.id = s.id WHERE t.state <> 'deleted' ORDER BY t.id
         ON CONFLICT (tenant_id) DO UPDATE SET swept_at = GREATEST(u.swept_at, EXCLUDED.swept_at)",
        tenants,
        times
    )
    .execute(pool)
    .await?;
    Ok(())
}
