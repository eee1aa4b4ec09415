//! Settings and AI keys parsed, opened and ready for calls.
//!
//! What the database holds is read at every question, in the round trip that is needed anyway; only the work of
//! parsing, decrypting and setting up a provider is saved, and only while what was read is the same to the byte. So
//! nothing here can be out of date, and an entry is found by its tenant alone.

use std::hash::Hash;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dashmap::DashMap;

use super::ChatError;
use super::models::OpenKey;
use crate::api::tenant::Settings;
use crate::configuration::tenant_store::{AiKeyRow, StoredSettings};
use crate::configuration::{ConfigurationError, open_key};
use crate::ids::TenantId;
use crate::providers::{self, ProviderClient};
use crate::tenant_db::TenantRecord;

/// Tenants remembered at most.
const CAPACITY: usize = 4_096;

type Parsed = (i64, DateTime<Utc>, Arc<Settings>);
type Opened = (Vec<AiKeyRow>, Arc<[OpenKey]>);

pub(super) struct Cache {
    providers: ProviderClient,
    settings: DashMap<TenantId, Parsed>,
    keys: DashMap<TenantId, Opened>,
}

impl Cache {
    pub(super) fn new(providers: ProviderClient) -> Self {
        Self { providers, settings: DashMap::new(), keys: DashMap::new() }
    }

    /// Forgets a tenant, and with it the keys that were opened.
    pub(super) fn forget(&self, tenant: TenantId) {
        self.settings.remove(&tenant);
        self.keys.remove(&tenant);
    }

    /// The tenant's settings, as they were just read from its database.
    pub(super) fn settings(&self, tenant: TenantId, stored: &StoredSettings) -> Result<Arc<Settings>, ChatError> {
        if let Some(entry) = self.settings.get(&tenant) {
            let (version, created_at, settings) = &*entry;
            if (*version, *created_at) == (stored.version, stored.created_at) {
                return Ok(Arc::clone(settings));
            }
        }
        let settings = Arc::new(stored.parse()?);
        insert(&self.settings, tenant, (stored.version, stored.created_at, Arc::clone(&settings)));
        Ok(settings)
    }

    /// The tenant's keys, as they were just read from its database.
    pub(super) fn keys(&self, record: &TenantRecord, rows: Vec<AiKeyRow>) -> Result<Arc<[OpenKey]>, ChatError> {
        if let Some(entry) = self.keys.get(&record.id) {
            let (known, keys) = &*entry;
            if *known == rows {
                return Ok(Arc::clone(keys));
            }
        }
        let open = |row: &AiKeyRow| {
            let spec = open_key(record, row)?;
            let provider = providers::build(&spec, &self.providers);
            Ok(OpenKey { models: row.models.clone(), default_model: row.default_model.clone(), provider })
        };
        let keys: Arc<[OpenKey]> = rows.iter().map(open).collect::<Result<_, ConfigurationError>>()?;
        insert(&self.keys, record.id, (rows, Arc::clone(&keys)));
        Ok(keys)
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
