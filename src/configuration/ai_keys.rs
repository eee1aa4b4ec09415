//! A tenant's AI keys: set, shown masked, tried and opened for a call.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};

use super::ConfigurationError;
use super::aliases;
use super::tenant_store::{self, AiKeyRow};
use crate::clock::SharedClock;
use crate::ids::{ApiConfigurationId, TenantId};
use crate::providers::{self, ProviderClient, ProviderError, ProviderKind, ProviderSpec, SpecError};
use crate::secrets::{Location, Sealed};
use crate::tenant_db::{Directory, TenantDb, TenantRecord};

/// The most keys of a tenant.
const MOST_KEYS: usize = 20;
/// How often setting a key is tried when others set or delete the same one meanwhile.
const PUT_ATTEMPTS: usize = 5;

/// Administers tenants' AI keys. Cheap to clone.
#[derive(Clone)]
pub struct AiKeys {
    providers: ProviderClient,
    clock: SharedClock,
    directory: Arc<Directory>,
}

impl fmt::Debug for AiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AiKeys").finish_non_exhaustive()
    }
}

/// An AI key, without the key.
#[derive(Debug, Clone)]
pub struct AiKey {
    /// Its name.
    pub name: String,
    /// The provider's kind.
    pub provider: String,
    /// The server's address.
    pub base_url: String,
    /// The key's last four characters, `…abcd`, or less.
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

impl From<AiKeyRow> for AiKey {
    fn from(row: AiKeyRow) -> Self {
        Self {
            name: row.name,
            provider: row.provider,
            base_url: row.base_url,
            hint: row.hint,
            models: row.models,
            default_model: row.default_model,
            model_aliases: row.model_aliases,
            position: row.position,
            enabled: row.enabled,
            updated_at: row.updated_at,
        }
    }
}

/// An AI key to set.
#[derive(Debug)]
pub struct NewAiKey {
    /// The provider's kind.
    pub provider: String,
    /// The server's address; the provider's own if `None`, where it has one for everybody.
    pub base_url: Option<String>,
    /// The key itself, which may be the file of a service account. An empty one is for servers that ask for none.
    pub api_key: SecretString,
    /// The models it may be used for.
    pub models: Vec<String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Further names for these models.
    pub model_aliases: BTreeMap<String, String>,
    /// Its place in the order; where it is, or last, if `None`.
    pub position: Option<i32>,
    /// Whether it is used; as it is, or yes, if `None`.
    pub enabled: Option<bool>,
}

/// How trying a key went.
#[derive(Debug, Clone)]
pub struct KeyTest {
    /// Whether a real call succeeded.
    pub ok: bool,
    /// `ok`, or the kind of failure.
    pub code: &'static str,
    /// The verdict for people.
    pub message: String,
    /// The model that was asked.
    pub model: String,
    /// How long the call took, in milliseconds.
    pub latency_ms: u64,
}

impl AiKeys {
    /// Keys are tried, and their addresses judged, with this client. The directory tells which data key seals.
    pub fn new(providers: ProviderClient, clock: SharedClock, directory: Arc<Directory>) -> Self {
        Self { providers, clock, directory }
    }

    /// All keys, in their order.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn list(&self, db: &TenantDb) -> Result<Vec<AiKey>, ConfigurationError> {
        let client = db.client().await?;
        Ok(tenant_store::list_ai_keys(&client).await?.into_iter().map(AiKey::from).collect())
    }

    /// Sets a key. One that replaces another takes its row, and so its place in the order.
    ///
    /// # Errors
    /// [`ConfigurationError::Refused`] with the field at fault, or a failure.
    pub async fn put(&self, db: &TenantDb, name: &str, new: NewAiKey) -> Result<AiKey, ConfigurationError> {
        check_name(name)?;
        let provider = parse_provider(&new.provider)?;
        let spec = self.providers.check_spec(provider, new.base_url.as_deref(), &new.api_key)?;
        check_models(&new.models)?;
        aliases::check(&new.models, &new.model_aliases, &new.default_model)?;
        for _ in 0..PUT_ATTEMPTS {
            // Which key seals is asked under the lock and not taken from the cache: a key that is being replaced must
            // not seal anything once everything else was sealed again.
            let mut client = db.client().await?;
            let client = client.transaction().await?;
            tenant_store::share_sealing_lock(&client).await?;
            let record = self.directory.read_again(db.record().id).await?;
            let found = tenant_store::find_ai_key(&client, name).await?;
            let all = tenant_store::list_ai_keys(&client).await?;
            // Every chat turn reads all keys, and servers keep them: without a bound one tenant could fill the memory.
            if found.is_none() && all.len() >= MOST_KEYS {
                return Err(refused("name", format!("there are {MOST_KEYS} keys already; delete one first")));
            }
            let place = found.as_ref().or(all.last()).map_or(0, |row| row.position);
            let enabled = found.as_ref().is_none_or(|row| row.enabled);
            let id = found.map_or_else(ApiConfigurationId::new, |row| row.id);
            let row = AiKeyRow {
                id,
                name: name.to_owned(),
                provider: provider.as_str().to_owned(),
                base_url: spec.base_url.to_string(),
                sealed: record
                    .data_key()?
                    .seal(&location(record.id, id), spec.api_key.expose_secret().as_bytes())
                    .into_bytes(),
                hint: spec.hint(),
                models: new.models.clone(),
                default_model: new.default_model.clone(),
                model_aliases: new.model_aliases.clone(),
                position: new.position.unwrap_or(place),
                enabled: new.enabled.unwrap_or(enabled),
                updated_at: self.clock.now(),
            };
            if tenant_store::put_ai_key(&client, &row).await? {
                client.commit().await?;
                return Ok(row.into());
            }
        }
        Err(ConfigurationError::Contended)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// [`ConfigurationError::NotFound`] or a failure.
    pub async fn delete(&self, db: &TenantDb, name: &str) -> Result<(), ConfigurationError> {
        let client = db.client().await?;
        if tenant_store::delete_ai_key(&client, name).await? { Ok(()) } else { Err(ConfigurationError::NotFound) }
    }

    /// Tries a key with the cheapest real call. A failing key is a result, not an error.
    ///
    /// # Errors
    /// [`ConfigurationError::NotFound`] or a failure.
    pub async fn test(&self, db: &TenantDb, name: &str) -> Result<KeyTest, ConfigurationError> {
        // The connection goes back before the provider is asked, which may take half a minute.
        let row = {
            let client = db.client().await?;
            tenant_store::find_ai_key(&client, name).await?.ok_or(ConfigurationError::NotFound)?
        };
        let provider = providers::build(&open_key(db.record(), &row)?, &self.providers);
        let started = Instant::now();
        let model = row.model_aliases.get(&row.default_model).cloned().unwrap_or(row.default_model);
        let result = providers::test(&*provider, &model).await;
        let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(match result {
            Ok(verdict) => KeyTest {
                ok: true,
                code: "ok",
                message: format!("The key works: `{model}` answered."),
                model,
                latency_ms: verdict.latency_ms,
            },
            Err(error) => {
                let (code, message) = verdict(&error, &model);
                tracing::info!(tenant = %db.record().slug, code, %error, "an AI key was tried and failed");
                KeyTest { ok: false, code, message, model, latency_ms }
            }
        })
    }
}

/// Opens a stored key, for a provider to be built with.
///
/// # Errors
/// [`ConfigurationError::UnusableKey`] if it does not open in this tenant and row.
pub fn open_key(record: &TenantRecord, row: &AiKeyRow) -> Result<ProviderSpec, ConfigurationError> {
    let unusable = ConfigurationError::UnusableKey;
    let sealed = Sealed::from_bytes(row.sealed.as_slice()).map_err(|_| ConfigurationError::UnusableKey)?;
    let data_key = record.data_key_for(&sealed).map_err(|_| ConfigurationError::UnusableKey)?;
    let api_key =
        data_key.open_str(&location(record.id, row.id), &sealed).map_err(|_| ConfigurationError::UnusableKey)?;
    let provider = ProviderKind::from_name(&row.provider).ok_or(unusable)?;
    let base_url = row.base_url.parse().map_err(|_| ConfigurationError::UnusableKey)?;
    Ok(ProviderSpec { provider, base_url, api_key })
}

pub(super) fn location(tenant: TenantId, id: ApiConfigurationId) -> Location {
    Location::tenant(tenant, "api_configurations", "api_key_sealed", id)
}

pub(super) fn refused(field: &'static str, message: impl fmt::Display) -> ConfigurationError {
    ConfigurationError::Refused { field, message: message.to_string() }
}

impl From<SpecError> for ConfigurationError {
    fn from(error: SpecError) -> Self {
        refused(error.field, error)
    }
}

fn parse_provider(name: &str) -> Result<ProviderKind, ConfigurationError> {
    ProviderKind::from_name(name).ok_or_else(|| {
        let kinds = ProviderKind::ALL.map(|kind| format!("`{}`", kind.as_str()));
        refused("provider", format_args!("must be one of {}", kinds.join(", ")))
    })
}

fn check_name(name: &str) -> Result<(), ConfigurationError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if (1..=50).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(refused("name", "an AI key's name is 1 to 50 of a-z, 0-9, `-` and `_`"))
}

fn check_models(models: &[String]) -> Result<(), ConfigurationError> {
    if models.is_empty() {
        return Err(refused("models", "at least one model is needed"));
    }
    if models.iter().any(|model| model.trim() != model || model.is_empty() || model.contains(char::is_control)) {
        return Err(refused("models", "a model's name neither is empty nor starts or ends with a space"));
    }
    if models.iter().collect::<HashSet<_>>().len() != models.len() {
        return Err(refused("models", "a model is named twice"));
    }
    Ok(())
}

/// What to tell an admin whose key failed, by the kind of failure alone: an upstream's own words may repeat the key.
fn verdict(error: &ProviderError, model: &str) -> (&'static str, String) {
    match error {
        ProviderError::InvalidKey(_) => {
            ("invalid_key", "The provider refused the key. Check that it is complete and still valid.".to_owned())
        }
        ProviderError::RateLimited { .. } => (
            "rate_limited",
            "The provider is limiting requests, or the account's credit is used up. Check it, or try again later."
                .to_owned(),
        ),
        ProviderError::ModelNotFound(_) => (
            "model_not_found",
            format!("The provider does not know the model `{model}`. Check its name, and the base URL."),
        ),
        ProviderError::BadRequest(_) => {
            ("bad_request", format!("The provider refused a minimal question to `{model}`. Is it a chat model?"))
        }
        ProviderError::Unavailable(_) => (
            "unavailable",
            "The provider cannot be reached, or fails. Check the base URL, or try again later.".to_owned(),
        ),
        ProviderError::Timeout(_) => ("timeout", "The provider did not answer in time.".to_owned()),
        ProviderError::Interrupted(_) => ("interrupted", "The provider's answer broke off.".to_owned()),
        ProviderError::RefusedAddress(_) => {
            ("address_refused", "The base URL leads to an address that this server does not connect to.".to_owned())
        }
        ProviderError::Unsupported(_) => {
            ("unsupported", format!("The provider cannot answer questions with the model `{model}`."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        assert!(check_name("main_2-b").is_ok());
        for name in ["", "Main", "a b", "ä", &"a".repeat(51)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn models_are_distinct() {
        let check = |models: &[&str]| {
            let models: Vec<_> = models.iter().map(|&model| model.to_owned()).collect();
            check_models(&models).map_err(|error| match error {
                ConfigurationError::Refused { field, .. } => field,
                _ => "",
            })
        };
        assert_eq!(check(&["a", "b"]), Ok(()));
        assert_eq!(check(&["a", "a"]), Err("models"));
        assert_eq!(check(&["a", "b\0"]), Err("models"));
        assert_eq!(check(&[]), Err("models"));
    }

    #[test]
    fn verdicts_never_repeat_the_upstream() {
        let cause = || -> providers::Cause { "sk-secret was refused".into() };
        for error in [
            ProviderError::InvalidKey(cause()),
            ProviderError::RateLimited { retry_after: None, source: cause() },
            ProviderError::ModelNotFound(cause()),
            ProviderError::BadRequest(cause()),
            ProviderError::Unavailable(cause()),
            ProviderError::Timeout(cause()),
            ProviderError::Interrupted(cause()),
            ProviderError::RefusedAddress(cause()),
            ProviderError::Unsupported(cause()),
        ] {
            assert!(!verdict(&error, "m").1.contains("secret"));
            assert!(!error.to_string().contains("secret"));
        }
    }
}
