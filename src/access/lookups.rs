//! Looking up tenants that are not known yet, for somebody who has proved nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::AccessError;
use crate::tenant_db::{TenantDbError, TenantRecord};

/// How many are looked up at once. Anybody can invent key ids, slugs and keys; they must not take the platform's
/// connections from those that are known.
const LOOKUPS: usize = 4;
/// How long such a lookup waits for its turn.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// The turns of one kind of lookups. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS)))
    }
}

impl Lookups {
    /// Carries a lookup out: at once if it is `known` to need no database, and in its turn otherwise.
    ///
    /// # Errors
    /// If its turn does not come in time, or the lookup fails.
    pub async fn run(
        &self,
        known: bool,
        lookup: impl Future<Output = Result<Option<Arc<TenantRecord>>, TenantDbError>>,
    ) -> Result<Option<Arc<TenantRecord>>, AccessError> {
        if known {
            return Ok(lookup.await?);
        }
        let Ok(Ok(_permit)) = tokio::time::timeout(LOOKUP_WAIT, self.0.acquire()).await else {
            return Err(AccessError::TenantDb(TenantDbError::NoConnectionFree { retry_after: Duration::from_secs(1) }));
        };
        Ok(lookup.await?)
    }
}
