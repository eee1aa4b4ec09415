//! Settings and AI keys parsed, opened and ready for calls.
//!
//! What a tenant's database holds is read at every question of a conversation, in the round trip that is needed anyway;
//! only the work of parsing, decrypting and setting up providers is saved, and only while what was read is the same to
//! the byte. Calls that read nothing otherwise may use what was read within the last second.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use chrono::{DateTime, Utc};
use dashmap::DashMap;

use super::ChatError;
use super::breaker::Breaker;
use super::candidates::{Models, OpenKey};
use super::context::{ChatContext, FRESH};
use crate::configuration::tenant_store::{AiKeyRow, StoredSettings};
use crate::configuration::{ConfigurationError, open_key};
use crate::ids::TenantId;
use crate::metering::BilledTo;
use crate::providers::{self, ProviderClient};
use crate::tenant_db::TenantRecord;

/// Tenants remembered at most.
const CAPACITY: usize = 4_096;

/// What is known of a tenant.
struct Known {
    /// The settings' version and when it was made.
    version: (i64, DateTime<Utc>),
    rows: Vec<AiKeyRow>,
    /// As many as rows that are switched on, in their order.
    keys: Vec<OpenKey>,
    context: Arc<ChatContext>,
    /// When it was last read, in milliseconds since the cache was made.
    read_at: AtomicU64,
}

type Flight = Arc<tokio::sync::Mutex<()>>;

pub(super) struct Cache {
    providers: ProviderClient,
    made: Instant,
    tenants: DashMap<TenantId, Arc<Known>>,
    /// Who reads what is not fresh any more.
    flights: DashMap<TenantId, Flight>,
}

impl Cache {
    pub(super) fn new(providers: ProviderClient) -> Self {
        Self { providers, made: Instant::now(), tenants: DashMap::new(), flights: DashMap::new() }
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

    /// What was read within the last second.
    pub(super) fn fresh(&self, tenant: TenantId) -> Option<Arc<ChatContext>> {
        let known = self.tenants.get(&tenant)?;
        let age = self.milliseconds().saturating_sub(known.read_at.load(Ordering::Relaxed));
        (u128::from(age) < FRESH.as_millis()).then(|| Arc::clone(&known.context))
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
        if let Some(known) = &before
            && known.version == version
            && known.rows == rows
        {
            known.read_at.store(self.milliseconds(), Ordering::Relaxed);
            return Ok(Arc::clone(&known.context));
        }
        let settings = match &before {
            Some(known) if known.version == version => Arc::clone(&known.context.settings),
            _ => Arc::new(stored.parse()?),
        };
        let keys = self.keys(record, &rows, before.as_deref())?;
        let models = Models::new(&settings.models, &keys);
        let context = Arc::new(ChatContext::new(settings, models));
        let read_at = AtomicU64::new(self.milliseconds());
        let known = Known { version, rows, keys, context: Arc::clone(&context), read_at };
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
