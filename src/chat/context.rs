//! What a tenant's settings and AI keys are, ready for calls, and at most a second old.

use std::sync::Arc;
use std::time::Duration;

use futures::future;

use super::assistants::Assistants;
use super::candidates::{Candidate, ModelEntry, Models};
use super::{Chat, ChatError};
use crate::api::tenant::{AssistantSettings, Settings};
use crate::configuration::ConfigurationError;
use crate::configuration::tenant_store as configuration_store;
use crate::content_filter::{ContentFilter, Masking};
use crate::ids::TenantId;
use crate::limits::Terms;
use crate::tenant_db::{Client, TenantDb, TenantRecord};

/// How old what is used without being read again may be.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// A tenant's settings and the models that its keys offer.
pub struct ChatContext {
    /// The settings.
    pub settings: Arc<Settings>,
    models: Models,
    pub(super) assistants: Arc<Assistants>,
    /// What its answers go through, if anything is to be masked in them.
    pub(super) filter: Option<Arc<ContentFilter>>,
    /// Differs as soon as any of it, or a key, was changed.
    pub(super) version: [u8; 32],
}

impl std::fmt::Debug for ChatContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatContext").finish_non_exhaustive()
    }
}

impl ChatContext {
    pub(super) fn new(
        settings: Arc<Settings>,
        models: Models,
        assistants: Arc<Assistants>,
        filter: Option<Arc<ContentFilter>>,
        version: [u8; 32],
    ) -> Self {
        Self { settings, models, assistants, filter, version }
    }

    /// For one answer, from its beginning on.
    pub(super) fn masking(&self) -> Option<Masking> {
        self.filter.clone().map(Masking::new)
    }

    /// The models that may be asked for, by name, in order.
    pub fn models(&self) -> impl Iterator<Item = &ModelEntry> {
        self.models.entries()
    }

    /// One of them.
    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models.entry(name)
    }

    /// The assistants that a tenant with these terms may ask, in order.
    pub fn assistants<'a>(&'a self, terms: &'a Terms<'_>) -> impl Iterator<Item = &'a AssistantSettings> {
        self.assistants.allowed(terms)
    }

    /// Whether there is an assistant of this name.
    pub fn has_assistant(&self, name: &str) -> bool {
        self.assistants.find(name).is_some()
    }

    /// Whether a model may be asked for.
    pub fn offers(&self, name: &str) -> bool {
        self.model(name).is_some()
    }

    /// The name and the keys for a question: those of the model that is asked for, or the assistant's, or the default ones.
    pub(super) fn choose_for(
        &self,
        requested: Option<&str>,
        assistant: Option<&AssistantSettings>,
    ) -> Result<(Arc<str>, Arc<[Candidate]>), ChatError> {
        let own = assistant.and_then(|assistant| assistant.model.as_deref());
        match (requested, own) {
            (None, Some(own)) => self.choose(Some(own)).map_err(|error| match error {
                // Whoever asks has chosen nothing that they could choose otherwise.
                ChatError::ModelNotAllowed => ChatError::NoModel,
                error => error,
            }),
            (requested, _) => self.choose(requested),
        }
    }

    /// The name and the keys for a question; the default ones if no model is asked for.
    pub(super) fn choose(&self, requested: Option<&str>) -> Result<(Arc<str>, Arc<[Candidate]>), ChatError> {
        self.models.choose(requested)
    }
}

impl Chat {
    /// What a tenant's settings and AI keys are, at most a second old: for whoever does not read from the tenant's
    /// database anyway. Of many who need it at once, one reads it.
    ///
    /// # Errors
    /// If the tenant's database fails, or what it holds cannot be used.
    pub async fn context(&self, db: &TenantDb) -> Result<Arc<ChatContext>, ChatError> {
        let tenant = db.record().id;
        if let Some(context) = self.cache.fresh(db.record()) {
            return Ok(context);
        }
        let flight = self.cache.flight(tenant);
        let read = match flight.try_lock() {
            Ok(_reading) => self.read_context(db).await,
            Err(_) => {
                drop(flight.lock().await);
                match self.cache.fresh(db.record()) {
                    Some(context) => Ok(context),
                    // Whoever read for all has failed. One after another they would wait far too long.
                    None => self.read_context(db).await,
                }
            }
        };
        self.cache.landed(tenant, flight);
        read
    }

    async fn read_context(&self, db: &TenantDb) -> Result<Arc<ChatContext>, ChatError> {
        let client = db.client().await?;
        self.read_context_on(&client, db.record()).await
    }

    /// The same for whoever has a connection anyway: what is not fresh is read on it, together with what else is.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn context_on(
        &self,
        client: &Client,
        record: &TenantRecord,
    ) -> Result<Arc<ChatContext>, ChatError> {
        match self.cache.fresh(record) {
            Some(context) => Ok(context),
            None => self.read_context_on(client, record).await,
        }
    }

    async fn read_context_on(&self, client: &Client, record: &TenantRecord) -> Result<Arc<ChatContext>, ChatError> {
        let (stored, keys) =
            future::try_join(configuration_store::current_settings(client), configuration_store::list_ai_keys(client))
                .await?;
        self.cache.context(record, &stored.ok_or(ConfigurationError::Unreadable)?, keys)
    }

    /// A tenant's settings or AI keys were just changed by this server: they are read again when they are needed next.
    /// Other servers do so within a second.
    pub fn configuration_changed(&self, tenant: TenantId) {
        self.cache.expire(tenant);
    }
}
