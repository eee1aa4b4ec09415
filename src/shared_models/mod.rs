//! Models that the owner lends: AI keys of the platform's own, which tenants use in the place of theirs or behind them.
//!
//! The keys are sealed in the platform's database and kept opened by every server, which reads them again when it is
//! told of a change: no request waits for that database. Which tenant may use them is in its registry record. An
//! address may be anywhere, for it is the owner's word, unlike a client's.

mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::PgPool;
use sqlx::types::Json;
use thiserror::Error;

use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::configuration::{self, ConfigurationError, KeyTest};
use crate::ids::SharedModelId;
use crate::providers::{self, ModelProvider, ProviderClient, ProviderKind, ProviderSpec};
use crate::secrets::{Location, MasterKeyring, Sealed};
use store::Row;

/// The most of them: every server keeps all.
const MOST: usize = 50;

/// Why shared models could not be read or changed.
#[derive(Debug, Error)]
pub enum SharedModelError {
    /// What was given was refused.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// There is none of this name.
    #[error("no such shared model")]
    NotFound,
    /// A stored key did not open, or is of a kind that this version of the server does not know.
    #[error("a shared model's key cannot be used")]
    Unusable,
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

/// A shared model, without its key.
#[derive(Debug, Clone)]
pub struct SharedModel {
    /// Its name.
    pub name: String,
    /// The provider's kind.
    pub provider: String,
    /// The server's address.
    pub base_url: String,
    /// The key's last four characters, `…abcd`, or less.
    pub hint: String,
    /// The models it is lent for.
    pub models: Vec<String>,
    /// Further names for them.
    pub model_aliases: BTreeMap<String, String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Its place: the lowest answers first.
    pub position: i32,
    /// Whether it is lent at present.
    pub enabled: bool,
    /// When it was last set.
    pub updated_at: DateTime<Utc>,
}

/// A shared model to set.
#[derive(Debug)]
pub struct NewSharedModel {
    /// The provider's kind.
    pub provider: String,
    /// The server's address; where it is, or the provider's own, if `None`.
    pub base_url: Option<String>,
    /// The key; the one that is there if `None`.
    pub api_key: Option<SecretString>,
    /// The models it is lent for.
    pub models: Vec<String>,
    /// Further names for them.
    pub model_aliases: BTreeMap<String, String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Its place; where it is, or last, if `None`.
    pub position: Option<i32>,
    /// Whether it is lent; as it is, or yes, if `None`.
    pub enabled: Option<bool>,
}

/// A shared model ready for calls.
pub struct LentModel {
    /// Its name.
    pub name: Arc<str>,
    /// The provider's kind.
    pub kind: ProviderKind,
    /// The models it is lent for.
    pub models: Vec<String>,
    /// Further names for them.
    pub aliases: BTreeMap<String, String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Answers.
    pub provider: Arc<dyn ModelProvider>,
    /// When it was last set.
    pub since: DateTime<Utc>,
    /// What it was made from.
    row: Row,
}

impl fmt::Debug for LentModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentModel").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Those that are lent at present, in the order in which they answer.
pub type Lent = Arc<[Arc<LentModel>]>;

/// The shared models. Cheap to clone.
#[derive(Clone)]
pub struct SharedModels {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    providers: ProviderClient,
    clock: SharedClock,
    lent: Arc<RwLock<Lent>>,
    /// Held while they are read again, so that what was read last is what is kept.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for SharedModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedModels").field("lent", &self.lent().len()).finish_non_exhaustive()
    }
}

impl SharedModels {
    /// None until they are read. `providers` connects to wherever the owner says.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, providers: ProviderClient, clock: SharedClock) -> Self {
        let lent: Lent = Arc::from(Vec::new());
        Self { pool, master_keys, providers, clock, lent: Arc::new(RwLock::new(lent)), reading: Arc::default() }
    }

    /// Those that are lent at present, in the order in which they answer. The same object as long as nothing changes.
    pub fn lent(&self) -> Lent {
        Arc::clone(&self.lent.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads them again. One that has not changed stays as it is; one that does not open is left out, and the log says
    /// so.
    ///
    /// # Errors
    /// If the platform's database fails; then they stay as they are.
    pub async fn read_again(&self) -> Result<(), SharedModelError> {
        let _reading = self.reading.lock().await;
        let rows = store::list(&self.pool).await?;
        let before = self.lent();
        let mut now = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(|row| row.enabled) {
            if let Some(known) = before.iter().find(|known| known.row == row) {
                now.push(Arc::clone(known));
                continue;
            }
            match self.open(row) {
                Ok(model) => now.push(Arc::new(model)),
                Err((name, error)) => tracing::error!(shared_model = name, %error, "open a shared model"),
            }
        }
        let same = before.len() == now.len() && before.iter().zip(&now).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            *self.lent.write().unwrap_or_else(PoisonError::into_inner) = now.into();
        }
        Ok(())
    }

    fn open(&self, row: Row) -> Result<LentModel, (String, SharedModelError)> {
        let spec = match self.spec(&row) {
            Ok(spec) => spec,
            Err(error) => return Err((row.name, error)),
        };
        Ok(LentModel {
            name: row.name.as_str().into(),
            kind: spec.provider,
            models: row.models.clone(),
            aliases: row.model_aliases.0.clone(),
            default_model: row.default_model.clone(),
            provider: providers::build(&spec, &self.providers),
            since: row.updated_at,
            row,
        })
    }

    fn spec(&self, row: &Row) -> Result<ProviderSpec, SharedModelError> {
        let unusable = || SharedModelError::Unusable;
        let sealed = Sealed::from_bytes(row.api_key_sealed.as_slice()).map_err(|_| unusable())?;
        let location = api_key_location(SharedModelId::from_uuid(row.id));
        Ok(ProviderSpec {
            provider: ProviderKind::from_name(&row.provider).ok_or_else(unusable)?,
            base_url: row.base_url.parse().map_err(|_| unusable())?,
            api_key: self.master_keys.open_platform(&location, &sealed).map_err(|_| unusable())?,
        })
    }

    /// All of them, in the order in which they answer.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn list(&self) -> Result<Vec<SharedModel>, SharedModelError> {
        Ok(store::list(&self.pool).await?.into_iter().map(SharedModel::from).collect())
    }

    /// Sets one. One that replaces another takes its row, and so its place.
    ///
    /// # Errors
    /// [`SharedModelError::Configuration`] with the field at fault, or a failure.
    pub async fn put(&self, name: &str, new: NewSharedModel, actor: Actor) -> Result<SharedModel, SharedModelError> {
        let kind =
            configuration::check_ai_key(name, &new.provider, &new.models, &new.model_aliases, &new.default_model)?;
        let mut transaction = self.pool.begin().await?;
        store::lock(&mut transaction).await?;
        let rows = store::list(&mut *transaction).await?;
        let found = rows.iter().find(|row| row.name == name);
        if found.is_none() && rows.len() >= MOST {
            return Err(refused("name", format!("there are {MOST} shared models already; remove one first")));
        }
        let given = match (&new.api_key, found) {
            (Some(key), _) => key.clone(),
            (None, Some(found)) => self.spec(found)?.api_key,
            (None, None) => return Err(refused("api_key", "a new shared model needs its key")),
        };
        let same_kind = found.filter(|row| row.provider == kind.as_str());
        let base_url = new.base_url.as_deref().or(same_kind.map(|row| row.base_url.as_str()));
        let spec = self.providers.check_spec(kind, base_url, &given).map_err(ConfigurationError::from)?;
        // Whoever does not know the key must not have it sent to a place of their choice.
        let moved = same_kind.is_none_or(|row| row.base_url != spec.base_url.as_str());
        if new.api_key.is_none() && moved {
            return Err(refused("api_key", "has to be given with another provider or address"));
        }
        let id = found.map_or_else(SharedModelId::new, |row| SharedModelId::from_uuid(row.id));
        let last = rows.iter().map(|row| row.position).max().map_or(0, |last| last.saturating_add(1));
        let row = Row {
            id: id.as_uuid(),
            name: name.to_owned(),
            provider: kind.as_str().to_owned(),
            base_url: spec.base_url.to_string(),
            api_key_sealed: self.master_keys.seal_platform(&api_key_location(id), &spec.api_key).into_bytes(),
            api_key_hint: spec.hint(),
            models: new.models,
            model_aliases: Json(new.model_aliases),
            default_model: new.default_model,
            position: new.position.or(found.map(|row| row.position)).unwrap_or(last),
            enabled: new.enabled.or(found.map(|row| row.enabled)).unwrap_or(true),
            updated_at: self.clock.now(),
        };
        store::put(&mut transaction, &row).await?;
        let detail = serde_json::json!({
            "shared_model": name, "provider": row.provider, "models": row.models, "enabled": row.enabled,
            "key_replaced": new.api_key.is_some()
        });
        let event = Event { actor, action: "shared_model.set", tenant_id: None, detail };
        audit::record(&mut transaction, &event, row.updated_at).await?;
        transaction.commit().await?;
        self.read_own_change().await;
        Ok(row.into())
    }

    /// Removes one.
    ///
    /// # Errors
    /// [`SharedModelError::NotFound`] or a failure.
    pub async fn remove(&self, name: &str, actor: Actor) -> Result<(), SharedModelError> {
        let mut transaction = self.pool.begin().await?;
        if !store::delete(&mut transaction, name).await? {
            return Err(SharedModelError::NotFound);
        }
        let detail = serde_json::json!({ "shared_model": name });
        let event = Event { actor, action: "shared_model.remove", tenant_id: None, detail };
        audit::record(&mut transaction, &event, self.clock.now()).await?;
        transaction.commit().await?;
        self.read_own_change().await;
        Ok(())
    }

    /// Whoever made a change finds it in force here. The notification says it to all, so nothing is lost if this fails.
    async fn read_own_change(&self) {
        if let Err(error) = self.read_again().await {
            tracing::warn!(%error, "read shared models");
        }
    }

    /// Tries one with the cheapest real call. A failing one is a result, not an error.
    ///
    /// # Errors
    /// [`SharedModelError::NotFound`] or a failure.
    pub async fn test(&self, name: &str) -> Result<KeyTest, SharedModelError> {
        let rows = store::list(&self.pool).await?;
        let row = rows.into_iter().find(|row| row.name == name).ok_or(SharedModelError::NotFound)?;
        let provider = providers::build(&self.spec(&row)?, &self.providers);
        Ok(configuration::try_key(&*provider, &row.model_aliases, row.default_model).await)
    }
}

impl From<Row> for SharedModel {
    fn from(row: Row) -> Self {
        Self {
            name: row.name,
            provider: row.provider,
            base_url: row.base_url,
            hint: row.api_key_hint,
            models: row.models,
            model_aliases: row.model_aliases.0,
            default_model: row.default_model,
            position: row.position,
            enabled: row.enabled,
            updated_at: row.updated_at,
        }
    }
}

fn refused(field: &'static str, message: impl Into<String>) -> SharedModelError {
    ConfigurationError::Refused { field, message: message.into() }.into()
}

/// Where a shared model's key is sealed.
pub fn api_key_location(id: SharedModelId) -> Location {
    Location::platform("shared_models", "api_key_sealed", id)
}
