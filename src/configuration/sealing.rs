//! Sealing a tenant's AI keys again, under a new data key.
//!
//! Whoever stores an AI key holds a lock of the tenant's database, shared with others who do, from before it reads
//! which key seals until the row is stored. A pass holds the lock alone. So a pass sees every row that was sealed with
//! an older key, and none comes after it: however late a server hears of the new key, it asks under the lock.

use tokio_postgres::{Client, Transaction};

use super::ai_keys::location;
use super::{ConfigurationError, tenant_store};
use crate::ids::TenantId;
use crate::secrets::Location;

/// Rows sealed again at a time.
const BATCH: i64 = 500;

/// Gives the same value under another key; nothing if it is under that key already.
pub type Reseal<'a> = &'a (dyn Fn(&Location, &[u8]) -> Result<Option<Vec<u8>>, ConfigurationError> + Sync);

/// The lock, held alone: nobody stores an AI key meanwhile.
pub struct SealingFence<'a>(Transaction<'a>);

/// Takes the lock alone. It goes with the connection.
///
/// # Errors
/// If the database fails.
pub async fn hold_sealing(client: &mut Client) -> Result<SealingFence<'_>, ConfigurationError> {
    let transaction = client.transaction().await?;
    tenant_store::lock_sealing_alone(&transaction).await?;
    Ok(SealingFence(transaction))
}

impl SealingFence<'_> {
    /// How many AI keys are under another data key than that of a version.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn not_sealed_with(&self, version: u32) -> Result<i64, ConfigurationError> {
        Ok(tenant_store::count_ai_keys_not_under(&self.0, version).await?)
    }

    /// Seals every AI key again that is not under the data key of a version. Returns how many.
    ///
    /// # Errors
    /// [`ConfigurationError::UnusableKey`] if one does not open, or a failure.
    pub async fn reseal(&self, tenant: TenantId, version: u32, reseal: Reseal<'_>) -> Result<u64, ConfigurationError> {
        let mut count = 0;
        loop {
            let rows = tenant_store::ai_keys_not_under(&self.0, version, BATCH).await?;
            if rows.is_empty() {
                return Ok(count);
            }
            for (id, sealed) in rows {
                let new = reseal(&location(tenant, id), &sealed)?.ok_or(ConfigurationError::UnusableKey)?;
                tenant_store::reseal_ai_key(&self.0, id, &new).await?;
                count += 1;
            }
        }
    }

    /// Stores what was sealed, and lets others go on.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn release(self) -> Result<(), ConfigurationError> {
        Ok(self.0.commit().await?)
    }
}
