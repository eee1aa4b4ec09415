//! SQL of settings and AI keys.

use chrono::{DateTime, Utc};
use tokio_postgres::types::Json;
use tokio_postgres::{Error, Row};

use super::ConfigurationError;
use crate::api::tenant::Settings;
use crate::ids::{ApiConfigurationId, UserId};
use crate::tenant_db::{Client, GenericClient};

const CURRENT_SETTINGS: &str = "\
    SELECT version, settings, created_at FROM live_configurations ORDER BY version DESC LIMIT 1";

/// Of two changes made from the same version, one gets a row.
const INSERT_SETTINGS: &str = "\
    INSERT INTO live_configurations (version, settings, created_by, created_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (version) DO NOTHING";

const LIST_AI_KEYS: &str = "\
    SELECT id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, updated_at
    FROM api_configurations ORDER BY created_at, id";

const FIND_AI_KEY: &str = "\
    SELECT id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, updated_at
    FROM api_configurations WHERE name = $1";

/// The sealed key opens only in the row it was sealed for, so a row of this name but another id is left alone.
const PUT_AI_KEY: &str = "\
    INSERT INTO api_configurations AS k
        (id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
    ON CONFLICT (name) DO UPDATE
    SET provider = EXCLUDED.provider, base_url = EXCLUDED.base_url, api_key_sealed = EXCLUDED.api_key_sealed,
        api_key_hint = EXCLUDED.api_key_hint, models = EXCLUDED.models, default_model = EXCLUDED.default_model,
        updated_at = EXCLUDED.updated_at
    WHERE k.id = EXCLUDED.id";

const DELETE_AI_KEY: &str = "DELETE FROM api_configurations WHERE name = $1";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] =
    &[CURRENT_SETTINGS, INSERT_SETTINGS, LIST_AI_KEYS, FIND_AI_KEY, PUT_AI_KEY, DELETE_AI_KEY];

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

/// All AI keys, in the order in which they were first set.
pub async fn list_ai_keys(client: &Client) -> Result<Vec<AiKeyRow>, Error> {
    let statement = client.prepare_cached(LIST_AI_KEYS).await?;
    client.query(&statement, &[]).await?.iter().map(AiKeyRow::from_row).collect()
}

/// The AI key of a name.
pub(super) async fn find_ai_key(client: &Client, name: &str) -> Result<Option<AiKeyRow>, Error> {
    let statement = client.prepare_cached(FIND_AI_KEY).await?;
    client.query_opt(&statement, &[&name]).await?.as_ref().map(AiKeyRow::from_row).transpose()
}

/// Inserts or replaces an AI key; `false` if another row has its name by now.
pub(super) async fn put_ai_key(client: &Client, key: &AiKeyRow) -> Result<bool, Error> {
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
