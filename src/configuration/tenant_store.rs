//! SQL of settings and AI keys.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::types::Json;
use tokio_postgres::{Error, Row};

use super::ConfigurationError;
use crate::api::tenant::Settings;
use crate::ids::{ApiConfigurationId, UserId};
use crate::tenant_db::{Client, GenericClient, Transaction};

const CURRENT_SETTINGS: &str = "\
    SELECT version, settings, created_at FROM live_configurations ORDER BY version DESC LIMIT 1";

/// Of two changes made from the same version, one gets a row.
const INSERT_SETTINGS: &str = "\
    INSERT INTO live_configurations (version, settings, created_by, created_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (version) DO NOTHING";

const LIST_AI_KEYS: &str = "\
    SELECT id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, model_aliases, position,
        enabled, updated_at
    FROM api_configurations ORDER BY position, created_at, id";

const FIND_AI_KEY: &str = "\
    SELECT id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, model_aliases, position,
        enabled, updated_at
    FROM api_configurations WHERE name = $1";

/// The sealed key opens only in the row it was sealed for, so a row of this name but another id is left alone.
const PUT_AI_KEY: &str = "\
    INSERT INTO api_configurations AS k
        (id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, model_aliases, position,
         enabled, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
    ON CONFLICT (name) DO UPDATE
    SET provider = EXCLUDED.provider, base_url = EXCLUDED.base_url, api_key_sealed = EXCLUDED.api_key_sealed,
        api_key_hint = EXCLUDED.api_key_hint, models = EXCLUDED.models, default_model = EXCLUDED.default_model,
        model_aliases = EXCLUDED.model_aliases, position = EXCLUDED.position, enabled = EXCLUDED.enabled,
        updated_at = EXCLUDED.updated_at
    WHERE k.id = EXCLUDED.id";

const DELETE_AI_KEY: &str = "DELETE FROM api_configurations WHERE name = $1";

/// Whoever stores a sealed value shares this lock; whoever seals all of them again holds it alone. Any number will do
/// that nothing else in a tenant's database uses.
const SHARE_SEALING_LOCK: &str = "SELECT pg_advisory_xact_lock_shared(7305803941526001)";

const TAKE_SEALING_LOCK: &str = "SELECT pg_advisory_xact_lock(7305803941526001)";

/// A sealed value begins with a byte for its format and four for the version of its key.
const AI_KEYS_NOT_UNDER: &str = "\
    SELECT id, api_key_sealed FROM api_configurations
    WHERE substring(api_key_sealed FROM 2 FOR 4) <> int4send($1::int4) ORDER BY id LIMIT $2";

const COUNT_AI_KEYS_NOT_UNDER: &str = "\
    SELECT count(*) FROM api_configurations WHERE substring(api_key_sealed FROM 2 FOR 4) <> int4send($1::int4)";

const RESEAL_AI_KEY: &str = "UPDATE api_configurations SET api_key_sealed = $2 WHERE id = $1";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[
    CURRENT_SETTINGS,
    INSERT_SETTINGS,
    LIST_AI_KEYS,
    FIND_AI_KEY,
    PUT_AI_KEY,
    DELETE_AI_KEY,
    SHARE_SEALING_LOCK,
    TAKE_SEALING_LOCK,
    AI_KEYS_NOT_UNDER,
    COUNT_AI_KEYS_NOT_UNDER,
    RESEAL_AI_KEY,
];

/// Settings as stored, parsed only when somebody asks: a cache may know the version already.
#[derive(Debug)]
pub struct StoredSettings {
    /// The version.
    pub version: i64,
    /// When it was made. Tells a version from one of the same number in a database restored from a backup.
    pub created_at: DateTime<Utc>,
    row: Row,
}

impl StoredSettings {
    /// The settings themselves.
    ///
    /// # Errors
    /// [`ConfigurationError::Unreadable`] if they are of another shape.
    pub fn parse(&self) -> Result<Settings, ConfigurationError> {
        let settings = self.row.try_get::<_, Json<Settings>>("settings");
        settings.map(|Json(settings)| settings).map_err(|_| ConfigurationError::Unreadable)
    }
}

/// An AI key as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AiKeyRow {
    /// The row's id, for which the key is sealed.
    pub id: ApiConfigurationId,
    /// Its name.
    pub name: String,
    /// The provider's kind.
    pub provider: String,
    /// The server's address.
    pub base_url: String,
    /// The key, sealed.
    pub sealed: Vec<u8>,
    /// What may be shown of the key.
    pub hint: String,
    /// The models it may be used for.
    pub models: Vec<String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Further names for these models.
    pub model_aliases: BTreeMap<String, String>,
    /// Its place in the order.
    pub position: i32,
    /// Whether it is used.
    pub enabled: bool,
    /// When it was last set.
    pub updated_at: DateTime<Utc>,
}

impl AiKeyRow {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            provider: row.try_get("provider")?,
            base_url: row.try_get("base_url")?,
            sealed: row.try_get("api_key_sealed")?,
            hint: row.try_get("api_key_hint")?,
            models: row.try_get("models")?,
            default_model: row.try_get("default_model")?,
            model_aliases: row.try_get::<_, Json<_>>("model_aliases")?.0,
            position: row.try_get("position")?,
            enabled: row.try_get("enabled")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

/// The settings in force; nothing if there are none.
pub async fn current_settings(client: &Client) -> Result<Option<StoredSettings>, Error> {
    let statement = client.prepare_cached(CURRENT_SETTINGS).await?;
    let Some(row) = client.query_opt(&statement, &[]).await? else { return Ok(None) };
    Ok(Some(StoredSettings { version: row.try_get("version")?, created_at: row.try_get("created_at")?, row }))
}

/// Inserts a version; `false` if it is there already.
pub(super) async fn insert_settings(
    client: &impl GenericClient,
    version: i64,
    settings: &Settings,
    by: Option<UserId>,
    now: DateTime<Utc>,
) -> Result<bool, Error> {
    Ok(client.execute(INSERT_SETTINGS, &[&version, &Json(settings), &by, &now]).await? == 1)
}

/// All AI keys, in their order.
pub async fn list_ai_keys(client: &impl GenericClient) -> Result<Vec<AiKeyRow>, Error> {
    let statement = client.prepare_cached(LIST_AI_KEYS).await?;
    client.query(&statement, &[]).await?.iter().map(AiKeyRow::from_row).collect()
}

/// The AI key of a name.
pub(super) async fn find_ai_key(client: &impl GenericClient, name: &str) -> Result<Option<AiKeyRow>, Error> {
    let statement = client.prepare_cached(FIND_AI_KEY).await?;
    client.query_opt(&statement, &[&name]).await?.as_ref().map(AiKeyRow::from_row).transpose()
}

/// Inserts or replaces an AI key; `false` if another row has its name by now.
pub(super) async fn put_ai_key(client: &impl GenericClient, key: &AiKeyRow) -> Result<bool, Error> {
    let statement = client.prepare_cached(PUT_AI_KEY).await?;
    let changed = client
        .execute(
            &statement,
            &[
                &key.id,
                &key.name,
                &key.provider,
                &key.base_url,
                &key.sealed,
                &key.hint,
                &key.models,
                &key.default_model,
                &Json(&key.model_aliases),
                &key.position,
                &key.enabled,
                &key.updated_at,
            ],
        )
        .await?;
    Ok(changed == 1)
}

/// Deletes an AI key; `false` if there is none of this name.
pub(super) async fn delete_ai_key(client: &Client, name: &str) -> Result<bool, Error> {
    let statement = client.prepare_cached(DELETE_AI_KEY).await?;
    Ok(client.execute(&statement, &[&name]).await? == 1)
}

/// Shares the lock of those who store sealed values, until the transaction ends.
pub(super) async fn share_sealing_lock(client: &Transaction<'_>) -> Result<(), Error> {
    client.execute(SHARE_SEALING_LOCK, &[]).await.map(drop)
}

/// Holds that lock alone, until the transaction ends.
pub(super) async fn lock_sealing_alone(client: &impl GenericClient) -> Result<(), Error> {
    client.execute(TAKE_SEALING_LOCK, &[]).await.map(drop)
}

/// Some of the AI keys that are under another data key than that of a version.
pub(super) async fn ai_keys_not_under(
    client: &impl GenericClient,
    version: u32,
    limit: i64,
) -> Result<Vec<(ApiConfigurationId, Vec<u8>)>, Error> {
    let rows = client.query(AI_KEYS_NOT_UNDER, &[&version.cast_signed(), &limit]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// How many there are.
pub(super) async fn count_ai_keys_not_under(client: &impl GenericClient, version: u32) -> Result<i64, Error> {
    client.query_one(COUNT_AI_KEYS_NOT_UNDER, &[&version.cast_signed()]).await?.try_get(0)
}

/// Stores an AI key sealed again.
pub(super) async fn reseal_ai_key(
    client: &impl GenericClient,
    id: ApiConfigurationId,
    sealed: &[u8],
) -> Result<(), Error> {
    client.execute(RESEAL_AI_KEY, &[&id, &sealed]).await.map(drop)
}
