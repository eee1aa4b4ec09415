//! SQL of a tenant's API keys.

use chrono::{DateTime, Utc};
use tokio_postgres::{Error, Row};

use super::{ApiKey, InForce};
use crate::api::api_keys::ApiKeyScope;
use crate::ids::{ApiKeyId, UserId};
use crate::secrets::HashedToken;
use crate::tenant_db::GenericClient;

const LIST: &str = "\
    SELECT id, name, hint, scopes, created_by, created_at, expires_at, last_used_at, revoked_at FROM client_api_keys
    WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2";

/// Inserts nothing if there are `$9` keys in force already. Two at once may pass it by one, which does no harm.
const INSERT: &str = "\
    INSERT INTO client_api_keys (id, name, token_hash, hint, scopes, created_by, created_at, expires_at)
    SELECT $1::uuid, $2::text, $3::bytea, $4::text, $5::text[], $6::uuid, $7::timestamptz, $8::timestamptz
    WHERE (SELECT count(*) FROM client_api_keys
           WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $7)) < $9::bigint";

/// A key that was revoked stays revoked since then.
const REVOKE: &str = "\
    UPDATE client_api_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1 RETURNING token_hash";

const REVOKE_ALL: &str = "UPDATE client_api_keys SET revoked_at = $1 WHERE revoked_at IS NULL";

const FIND: &str = "\
    SELECT id, scopes, expires_at, last_used_at FROM client_api_keys WHERE token_hash = $1 AND revoked_at IS NULL";

/// Of several servers that come at once, one writes.
const NOTE_USE: &str = "\
    UPDATE client_api_keys SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= $3)";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[LIST, INSERT, REVOKE, REVOKE_ALL, FIND, NOTE_USE];

fn scopes(row: &Row) -> Result<Vec<ApiKeyScope>, Error> {
    let names: Vec<&str> = row.try_get("scopes")?;
    // The column's CHECK knows the same names; one that this program does not know allows nothing.
    Ok(names.into_iter().filter_map(ApiKeyScope::parse).collect())
}

pub(super) async fn list(
    client: &impl GenericClient,
    after: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<ApiKey>, Error> {
    let statement = client.prepare_cached(LIST).await?;
    let rows = client.query(&statement, &[&after, &limit]).await?;
    let read = |row: &Row| {
        Ok(ApiKey {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            hint: row.try_get("hint")?,
            scopes: scopes(row)?,
            created_by: row.try_get("created_by")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            last_used_at: row.try_get("last_used_at")?,
            revoked_at: row.try_get("revoked_at")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Stores a key. Returns whether there was room for it.
pub(super) async fn insert(
    client: &impl GenericClient,
    key: &ApiKey,
    hash: &HashedToken,
    limit: i64,
) -> Result<bool, Error> {
    let statement = client.prepare_cached(INSERT).await?;
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let created_by: Option<UserId> = key.created_by;
    let inserted = client
        .execute(
            &statement,
            &[&key.id, &key.name, hash, &key.hint, &scopes, &created_by, &key.created_at, &key.expires_at, &limit],
        )
        .await?;
    Ok(inserted == 1)
}

/// Revokes a key. Returns its token's hash, or nothing if there is no such key.
pub(super) async fn revoke(
    client: &impl GenericClient,
    id: ApiKeyId,
    now: DateTime<Utc>,
) -> Result<Option<HashedToken>, Error> {
    let statement = client.prepare_cached(REVOKE).await?;
    client.query_opt(&statement, &[&id, &now]).await?.map(|row| row.try_get(0)).transpose()
}

/// Revokes every key.
pub(in crate::access) async fn revoke_all(
    client: &impl tokio_postgres::GenericClient,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    client.execute(REVOKE_ALL, &[&now]).await?;
    Ok(())
}

/// The key of a token, unless it was revoked, and when its use was last noted.
pub(super) async fn find(
    client: &impl GenericClient,
    hash: &HashedToken,
) -> Result<Option<(InForce, Option<DateTime<Utc>>)>, Error> {
    let statement = client.prepare_cached(FIND).await?;
    let Some(row) = client.query_opt(&statement, &[hash]).await? else { return Ok(None) };
    let key = InForce { id: row.try_get("id")?, scopes: scopes(&row)?, expires_at: row.try_get("expires_at")? };
    Ok(Some((key, row.try_get("last_used_at")?)))
}

/// Notes that a key was used, unless that was noted after `before`.
pub(super) async fn note_use(
    client: &impl GenericClient,
    id: ApiKeyId,
    now: DateTime<Utc>,
    before: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = client.prepare_cached(NOTE_USE).await?;
    client.execute(&statement, &[&id, &now, &before]).await?;
    Ok(())
}
