//! One pool a tenant, opened when first needed.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use deadpool_postgres::{Object, Pool, PoolError};

use super::{TenantDbError, TenantRecord};
use crate::ids::TenantId;
use crate::postgres_pool;

struct Entry {
    pool: Pool,
    /// The record the pool was made from: another record may mean other credentials.
    record: Arc<TenantRecord>,
}

/// The pools of all tenants.
pub struct TenantDatabases {
    pools: DashMap<TenantId, Entry>,
    pool_size: usize,
}

impl std::fmt::Debug for TenantDatabases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantDatabases").field("pools", &self.pools.len()).finish_non_exhaustive()
    }
}

/// One tenant's database, proved by a credential. Cheap to copy; holds no connection.
#[derive(Debug, Clone)]
pub struct TenantDb {
    record: Arc<TenantRecord>,
    pool: Pool,
}

impl TenantDatabases {
    /// No pools yet; each will hold at most `pool_size` connections.
    pub fn new(pool_size: usize) -> Self {
        Self { pools: DashMap::new(), pool_size }
    }

    /// The database of a tenant whose credential was verified. Opens no connection. Of several calls at once, one
    /// makes the pool: the map's entry is locked meanwhile, and making a pool waits for nothing.
    pub fn open(&self, record: Arc<TenantRecord>) -> Result<TenantDb, TenantDbError> {
        record.in_service()?;
        let pool = match self.pools.entry(record.id) {
            dashmap::Entry::Occupied(entry) => entry.get().pool.clone(),
            dashmap::Entry::Vacant(entry) => {
                let pool = self.build(&record)?;
                entry.insert(Entry { pool: pool.clone(), record: Arc::clone(&record) });
                pool
            }
        };
        Ok(TenantDb { record, pool })
    }

    fn build(&self, record: &TenantRecord) -> Result<Pool, TenantDbError> {
        let url = record.database_url().ok_or(TenantDbError::NotActive)?;
        postgres_pool::build(url, self.pool_size).map_err(TenantDbError::Unreachable)
    }

    /// Closes a tenant's pool if it no longer fits the record in force: suspended, gone, or with other credentials.
    /// Connections in use close when they come back.
    pub fn follow(&self, id: TenantId, record: Option<&TenantRecord>) {
        let removed = self.pools.remove_if(&id, |_, entry| match record {
            Some(record) => !record.is_active() || record.database_url() != entry.record.database_url(),
            None => true,
        });
        if let Some((_, entry)) = removed {
            entry.pool.close();
        }
    }

    /// Closes connections that nobody has used for `idle`, and forgets pools without any: an idle tenant costs the
    /// database server nothing.
    pub fn close_idle(&self, idle: Duration) {
        self.pools.retain(|_, entry| {
            entry.pool.retain(|_, metrics| metrics.last_used() < idle);
            entry.pool.status().size > 0
        });
    }

    /// The tenants that have a pool.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.pools.iter().map(|entry| *entry.key()).collect()
    }
}

impl TenantDb {
    /// The tenant whose database it is.
    pub fn record(&self) -> &TenantRecord {
        &self.record
    }

    /// A connection. Give it back before anything slow, above all before a model speaks.
    pub async fn client(&self) -> Result<Object, TenantDbError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => {
                TenantDbError::NoConnectionFree { retry_after: Duration::from_secs(1) }
            }
            // Closed between the look at the record and now: the tenant was suspended or its credentials changed.
            PoolError::Closed => TenantDbError::NotActive,
            other => TenantDbError::Unreachable(other.into()),
        })
    }
}
