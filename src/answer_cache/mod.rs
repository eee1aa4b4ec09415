//! Answers that are kept for a while, so that a model need not be asked again.
//!
//! It knows keys, bytes and time. It never knows what was asked, who asks, or when two questions are the same: whoever does
//! makes a key of everything that shaped an answer. What is kept belongs to a tenant, and is found with that tenant's
//! record only.
//!
//! Each server keeps answers in memory, within a bound ([`memory`]). Where servers share a Redis, answers are kept there as
//! well ([`shared`]), sealed with the tenant's data key. Losing any of it costs another call of the model and nothing
//! else: whatever goes wrong here is an answer that is not found.

mod memory;
mod shared;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;

use self::memory::Memory;
use self::shared::Shared;
use crate::clock::SharedClock;
use crate::ids::TenantId;
use crate::tenant_db::TenantRecord;

/// Everything that shaped an answer, as a hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AnswerKey([u8; 32]);

impl AnswerKey {
    /// A key that is this hash.
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl fmt::Debug for AnswerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerKey")
    }
}

/// An answer, as it is told again.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Its text.
    pub content: String,
    /// The lengths of the pieces in which it was told.
    pub delta_lengths: Vec<u8>,
}

impl fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptAnswer").field("length", &self.content.len()).finish_non_exhaustive()
    }
}

/// Answers of all tenants.
pub struct AnswerCache {
    memory: Memory,
    shared: Option<Arc<Shared>>,
    clock: SharedClock,
}

impl fmt::Debug for AnswerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerCache").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl AnswerCache {
    /// A cache that takes so many bytes of this server's memory at most, and shares what it keeps through Redis if there
    /// is one. With no bytes nothing is kept anywhere. Opens no connection.
    ///
    /// # Errors
    /// If the Redis URL is none. What it holds is not quoted.
    pub fn new(bytes: usize, redis_url: Option<&SecretString>, clock: SharedClock) -> anyhow::Result<Self> {
        let shared = redis_url.filter(|_| bytes > 0).map(Shared::new).transpose()?.map(Arc::new);
        Ok(Self { shared, ..Self::in_memory(bytes, clock) })
    }

    /// One that shares nothing.
    pub fn in_memory(bytes: usize, clock: SharedClock) -> Self {
        Self { memory: Memory::new(bytes), shared: None, clock }
    }

    /// What is kept of a tenant's for a key.
    pub async fn get(&self, record: &TenantRecord, key: AnswerKey) -> Option<Arc<KeptAnswer>> {
        if let Some(answer) = self.memory.get(record.id, key, self.clock.now()) {
            return Some(answer);
        }
        let (answer, expires_at) = self.shared.as_ref()?.get(record, key, self.clock.now()).await?;
        let answer = Arc::new(answer);
        self.memory.put(record.id, key, Arc::clone(&answer), expires_at, self.clock.now());
        Some(answer)
    }

    /// Keeps an answer for a while in this server's memory.
    pub fn put_in_memory(&self, tenant: TenantId, key: AnswerKey, answer: Arc<KeptAnswer>, lasts: Duration) {
        let now = self.clock.now();
        if let Some(expires_at) = expiry(now, lasts) {
            self.memory.put(tenant, key, answer, expires_at, now);
        }
    }

    /// Keeps an answer for a while, here at once, and for other servers in a moment. One that is too large for the memory is kept
    /// nowhere.
    pub fn put(&self, record: &TenantRecord, key: AnswerKey, answer: KeptAnswer, lasts: Duration) {
        if !self.memory.takes(&answer) {
            return;
        }
        let answer = Arc::new(answer);
        self.put_in_memory(record.id, key, Arc::clone(&answer), lasts);
        if let (Some(shared), Some(expires_at)) = (&self.shared, expiry(self.clock.now(), lasts)) {
            shared.put(record, key, &answer, expires_at, lasts);
        }
    }

    /// Forgets what this server keeps of a tenant. What Redis has cannot be opened without the tenant's key, is asked for
    /// by nobody whose tenant is out of service, and goes by itself.
    pub fn forget(&self, tenant: TenantId) {
        self.memory.forget(tenant);
    }

    /// How many answers are kept in memory, and how many bytes that is taken to be.
    pub fn size(&self) -> (usize, usize) {
        self.memory.size()
    }
}

fn expiry(now: DateTime<Utc>, lasts: Duration) -> Option<DateTime<Utc>> {
    now.checked_add_signed(TimeDelta::from_std(lasts).ok()?)
}
