//! SQL of the models that the owner lends.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// Serializes those who change the table: a name has one row, and a new row the last place.
const LOCK: i64 = 7_305_803_941_526_038;

/// A shared model as stored: its key sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) provider: String,
    pub(super) base_url: String,
    pub(super) api_key_sealed: Vec<u8>,
    pub(super) api_key_hint: String,
    pub(super) models: Vec<String>,
    pub(super) model_aliases: Json<BTreeMap<String, String>>,
    pub(super) default_model: String,
    pub(super) position: i32,
    pub(super) enabled: bool,
    pub(super) updated_at: DateTime<Utc>,
}

pub(super) async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", LOCK).fetch_one(connection).await?;
    Ok(())
}

/// All of them, in the order in which they answer.
pub(super) async fn list(executor: impl PgExecutor<'_>) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT id, name, provider, base_url, api_key_sealed, api_key_hint, models,
                model_aliases AS "model_aliases: Json<BTreeMap<String, String>>", default_model, position, enabled,
                updated_at
         FROM shared_models ORDER BY position, id"#
    )
    .fetch_all(executor)
    .await
}

pub(super) async fn put(connection: &mut PgConnection, row: &Row) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO shared_models (id, name, provider, base_url, api_key_sealed, api_key_hint, models, model_aliases,
                                    default_model, position, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
         ON CONFLICT (id) DO UPDATE SET provider = excluded.provider, base_url = excluded.base_url,
             api_key_sealed = excluded.api_key_sealed, api_key_hint = excluded.api_key_hint, models = excluded.models,
             model_aliases = excluded.model_aliases, default_model = excluded.default_model,
             position = excluded.position, enabled = excluded.enabled, updated_at = excluded.updated_at",
        row.id,
        row.name,
        row.provider,
        row.base_url,
        row.api_key_sealed,
        row.api_key_hint,
        &row.models,
        Json(&row.model_aliases.0) as Json<&BTreeMap<String, String>>,
        row.default_model,
        row.position,
        row.enabled,
        row.updated_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn delete(connection: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query!("DELETE FROM shared_models WHERE name = $1", name).execute(connection).await?;
    Ok(deleted.rows_affected() == 1)
}
