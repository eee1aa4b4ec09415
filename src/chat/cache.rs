//! Settings and AI keys parsed, opened and ready for calls.
//!
//! What a tenant's database holds is read once a second while it is used, and at once after this server has changed it.
//! The work of parsing, decrypting and setting up providers is saved while what was read is the same to the byte. What
//! the owner lends is known here anyway.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use chrono::{DateTime, Utc};
use dashmap::DashMap;

use super::ChatError;
use super::assistants::Assistants;
use super::breaker::Breaker;
use super::candidates::{Models, OpenKey};
use super::context::{ChatContext, FRESH};
use super::fingerprint::Fingerprint;
use crate::api::platform::AiMode;
use crate::configuration::tenant_store::{AiKeyRow, StoredSettings};
use crate::configuration::{ConfigurationError, content_filter, open_key};
use crate::ids::TenantId;
use crate::metering::BilledTo;
use crate::providers::{self, ProviderClient};
use crate::shared_models::{Lent, LentModel, SharedModels};
use crate::tenant_db::TenantRecord;

/// In the place of the time when something was read: it is to be read again.
const NEVER: u64 = u64::MAX;
/// Tenants remembered at most.
const CAPACITY: usize = 4_096;

/// What is known of a tenant.
struct Known {
    /// The settings' version and when it was made.
    version: (i64, DateTime<Utc>),
    rows: Vec<AiKeyRow>,
    /// As many as rows that are switched on, in their order; none if the tenant does not use its own.
    keys: Vec<OpenKey>,
    /// What the owner lends, if the tenant uses it, each with what was made of it.
    lent: Option<Lent>,
    lent_keys: Vec<OpenKey>,
    mode: AiMode,
    context: Arc<ChatContext>,
    /// When it was last read, in milliseconds since the cache was made.
    read_at: AtomicU64,
}

type Flight = Arc<tokio::sync::Mutex<()>>;

pub(super) struct Cache {
    providers: ProviderClient,
    shared: SharedModels,
    made: Instant,
    tenants: DashMap<TenantId, Arc<Known>>,
    /// Who reads what is not fresh any more.
    flights: DashMap<TenantId, Flight>,
}

impl Cache {
    pub(super) fn new(providers: ProviderClient, shared: SharedModels) -> Self {
        Self { providers, shared, made: Instant::now(), tenants: DashMap::new(), flights: DashMap::new() }
    }

    /// Forgets a tenant, and with it the keys that were opened.
    pub(super) fn forget(&self, tenant: TenantId) {
        self.tenants.remove(&tenant);
    }

    fn known(&self, tenant: TenantId) -> Option<Arc<Known>> {
        self.tenants.get(&tenant).map(|known| Arc::clone(&known))
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What was read within the last second, if it was made for the mode that the tenant is in.
    pub(super) fn fresh(&self, record: &TenantRecord) -> Option<Arc<ChatContext>> {
        let known = self.tenants.get(&record.id).filter(|known| known.mode == record.ai_mode)?;
        let read_at = known.read_at.load(Ordering::Relaxed);
        let age = self.milliseconds().saturating_sub(read_at);
        (read_at != NEVER && u128::from(age) < FRESH.as_millis()).then(|| Arc::clone(&known.context))
    }

    /// What was read is not fresh any more. What was made of it stays: the keys, and what their breakers know.
    pub(super) fn expire(&self, tenant: TenantId) {
        if let Some(known) = self.tenants.get(&tenant) {
            known.read_at.store(NEVER, Ordering::Relaxed);
        }
    }

    /// Whoever holds its lock reads for all.
    pub(super) fn flight(&self, tenant: TenantId) -> Flight {
        Arc::clone(&self.flights.entry(tenant).or_default())
    }

    /// Forgets it once nobody else waits.
    pub(super) fn landed(&self, tenant: TenantId, flight: Flight) {
        drop(flight);
        self.flights.remove_if(&tenant, |_, flight| Arc::strong_count(flight) == 1);
    }

    /// The tenant's settings and keys, as they were just read from its database.
    pub(super) fn context(
        &self,
        record: &TenantRecord,
        stored: &StoredSettings,
        rows: Vec<AiKeyRow>,
    ) -> Result<Arc<ChatContext>, ChatError> {
        let version = (stored.version, stored.created_at);
        let before = self.known(record.id);
        let mode = record.ai_mode;
        let lent = (mode != AiMode::Own).then(|| self.shared.lent());
        if let Some(known) = &before
            && known.version == version
            && known.mode == mode
            && known.lent.as_ref().map(Arc::as_ptr) == lent.as_ref().map(Arc::as_ptr)
            && known.rows == rows
        {
            known.read_at.store(self.milliseconds(), Ordering::Relaxed);
            return Ok(Arc::clone(&known.context));
        }
        let (settings, assistants, filter) = match &before {
            Some(known) if known.version == version => {
                let context = &known.context;
                (Arc::clone(&context.settings), Arc::clone(&context.assistants), context.filter.clone())
            }
            _ => {
                let settings = Arc::new(stored.parse()?);
                // One that cannot be made is no reason to go without.
                let filter = content_filter(&settings.content_filter).map_err(|_| ConfigurationError::Unreadable)?;
                (Arc::clone(&settings), Arc::new(Assistants::new(settings)), filter)
            }
        };
        let keys = match mode {
            AiMode::Own | AiMode::OwnThenShared => self.keys(record, &rows, before.as_deref())?,
            AiMode::Shared => Vec::new(),
        };
        let lent_keys = lent.as_deref().map_or_else(Vec::new, |lent| lent_keys(lent, before.as_deref()));
        let models = match lent_keys.is_empty() {
            true => Models::new(&settings.models, &keys),
            false => Models::new(&settings.models, &[keys.as_slice(), lent_keys.as_slice()].concat()),
        };
        let version_of_all = version_of(version, &rows, lent.as_deref());
        let context = Arc::new(ChatContext::new(settings, models, assistants, filter, version_of_all));
        let read_at = AtomicU64::new(self.milliseconds());
        let known = Known { version, rows, keys, lent, lent_keys, mode, context: Arc::clone(&context), read_at };
        insert(&self.tenants, record.id, Arc::new(known));
        Ok(context)
    }

    /// The keys that are switched on, opened. One that has not changed stays as it is, its breaker included.
    fn keys(
        &self,
        record: &TenantRecord,
        rows: &[AiKeyRow],
        before: Option<&Known>,
    ) -> Result<Vec<OpenKey>, ConfigurationError> {
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows.iter().filter(|row| row.enabled) {
            let known = before.and_then(|known| {
                let mut pairs = known.rows.iter().filter(|row| row.enabled).zip(&known.keys);
                pairs.find(|(before, _)| *before == row).map(|(_, key)| key.clone())
            });
            keys.push(match known {
                Some(key) => key,
                None => self.open(record, row)?,
            });
        }
        Ok(keys)
    }

    fn open(&self, record: &TenantRecord, row: &AiKeyRow) -> Result<OpenKey, ConfigurationError> {
        let spec = open_key(record, row)?;
        Ok(OpenKey {
            name: row.name.as_str().into(),
            billed_to: BilledTo::Own,
            kind: spec.provider.as_str(),
            models: row.models.clone(),
            aliases: row.model_aliases.clone(),
            default_model: row.default_model.clone(),
            provider: providers::build(&spec, &self.providers),
            breaker: Arc::new(Breaker::default()),
            since: row.updated_at,
        })
    }
}

/// What tells these settings and keys from all others. A key that was set again was sealed again, which gives other bytes.
fn version_of(settings: (i64, DateTime<Utc>), rows: &[AiKeyRow], lent: Option<&[Arc<LentModel>]>) -> [u8; 32] {
    let mut version = Fingerprint::new("freehold configuration");
    version.add(&settings.0.to_be_bytes());
    version.add(&settings.1.timestamp_micros().to_be_bytes());
    version.add_count(rows.len());
    for row in rows {
        version.add(row.id.as_uuid().as_bytes());
        version.add(&row.sealed);
        version.add(&row.updated_at.timestamp_micros().to_be_bytes());
        version.add(&[u8::from(row.enabled)]);
        version.add(&row.position.to_be_bytes());
        for part in [&row.name, &row.provider, &row.base_url, &row.default_model] {
            version.add(part.as_bytes());
        }
        add_names(&mut version, &row.models, &row.model_aliases);
    }
    let lent = lent.unwrap_or_default();
    version.add_count(lent.len());
    for model in lent {
        version.add(model.name.as_bytes());
        version.add(model.kind.as_str().as_bytes());
        version.add(model.default_model.as_bytes());
        version.add(&model.since.timestamp_micros().to_be_bytes());
        add_names(&mut version, &model.models, &model.aliases);
    }
    version.hash()
}

fn add_names(version: &mut Fingerprint, models: &[String], aliases: &BTreeMap<String, String>) {
    version.add_count(models.len());
    models.iter().for_each(|model| version.add(model.as_bytes()));
    version.add_count(aliases.len());
    for (alias, model) in aliases {
        version.add(alias.as_bytes());
        version.add(model.as_bytes());
    }
}

/// What is lent, ready for this tenant's calls. Each tenant has breakers of its own, so that what one asks for does not
/// cost the others an answer. One that has not changed stays as it is.
fn lent_keys(lent: &[Arc<LentModel>], before: Option<&Known>) -> Vec<OpenKey> {
    let known = |model: &Arc<LentModel>| {
        let before = before?;
        let mut pairs = before.lent.iter().flat_map(|lent| lent.iter()).zip(&before.lent_keys);
        pairs.find(|(before, _)| Arc::ptr_eq(before, model)).map(|(_, key)| key.clone())
    };
    let open = |model: &Arc<LentModel>| OpenKey {
        name: Arc::clone(&model.name),
        billed_to: BilledTo::Shared,
        kind: model.kind.as_str(),
        models: model.models.clone(),
        aliases: model.aliases.clone(),
        default_model: model.default_model.clone(),
        provider: Arc::clone(&model.provider),
        breaker: Arc::new(Breaker::default()),
        since: model.since,
    };
    lent.iter().map(|model| known(model).unwrap_or_else(|| open(model))).collect()
}

/// Inserts, and makes room first if there is none: any entry may go, since it costs little to make again.
fn insert<K: Copy + Eq + Hash, V>(map: &DashMap<K, V>, key: K, value: V) {
    if map.len() >= CAPACITY && !map.contains_key(&key) {
        let victim = map.iter().next().map(|entry| *entry.key());
        if let Some(victim) = victim {
            map.remove(&victim);
        }
    }
    map.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bound() {
        let map = DashMap::new();
        for key in 0..CAPACITY + 10 {
            insert(&map, key, ());
        }
        insert(&map, CAPACITY + 9, ());
        assert_eq!(map.len(), CAPACITY);
        assert!(map.contains_key(&(CAPACITY + 9)));
    }
}
