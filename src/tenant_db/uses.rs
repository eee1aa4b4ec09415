//! Which tenants the servers make calls for, so that only their databases are swept for what dead servers left.
//!
//! A server says so in the platform's database when it begins to, and again while it goes on. Nobody waits for that: it
//! is written beside whatever is going on, together for all tenants that came to it meanwhile, until it succeeds. A
//! server that dies in the instant before leaves a tenant that is swept when somebody uses it, or within a week.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::timeout;

use super::{TenantDatabases, TenantDbError, store};
use crate::ids::TenantId;

/// How long a note of a tenant's use holds.
const NOTED: Duration = Duration::from_secs(30 * 60);
/// How long after its last note a tenant is swept. Longer than the note holds and a call goes on that was begun under
/// it, until it may be settled by another server.
const SWEPT_AFTER: Duration = Duration::from_secs(2 * 60 * 60);
/// A tenant that nobody uses is swept this often all the same: a note may have been lost with its server, or be older
/// than the table.
const SWEPT_ANYWAY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long the platform's database may take.
const PLATFORM: Duration = Duration::from_secs(5);
/// Waits before it is asked again; the last one repeats.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// What this server has said of its tenants, and has yet to say.
#[derive(Clone)]
pub(super) struct Uses {
    pool: PgPool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    noted: HashMap<TenantId, Instant>,
    waiting: HashSet<TenantId>,
    /// Whether a task is at work, which takes whatever waits.
    writing: bool,
}

impl State {
    /// Whether a task has to be started for what waits.
    fn wait(&mut self, tenant: TenantId, now: Instant) -> bool {
        if self.noted.get(&tenant).is_some_and(|noted| now.duration_since(*noted) < NOTED) {
            return false;
        }
        self.waiting.insert(tenant) && !std::mem::replace(&mut self.writing, true)
    }

    /// What the task has to write, and nothing if it may end.
    fn take(&mut self) -> Vec<TenantId> {
        let waiting: Vec<_> = self.waiting.drain().collect();
        self.writing = !waiting.is_empty();
        waiting
    }
}

impl Uses {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, tenant: TenantId) {
        if self.state().wait(tenant, Instant::now()) {
            tokio::spawn(self.clone().write());
        }
    }

    async fn write(self) {
        let mut failures = 0;
        loop {
            let tenants = self.state().take();
            if tenants.is_empty() {
                return;
            }
            // As of before it was written: the note holds from then on.
            let now = Instant::now();
            let ids: Vec<_> = tenants.iter().map(|tenant| tenant.as_uuid()).collect();
            let error = match timeout(PLATFORM, store::note_uses(&self.pool, &ids)).await {
                Ok(Ok(())) => {
                    self.state().noted.extend(tenants.into_iter().map(|tenant| (tenant, now)));
                    failures = 0;
                    continue;
                }
                Ok(Err(error)) => anyhow::Error::from(error),
                Err(elapsed) => elapsed.into(),
            };
            tracing::warn!(tenants = ids.len(), error = format!("{error:#}"), "note which tenants are used");
            self.state().waiting.extend(tenants);
            tokio::time::sleep(WAITS.get(failures).or(WAITS.last()).copied().unwrap_or_default()).await;
            failures += 1;
        }
    }
}

impl TenantDatabases {
    /// This server makes calls of models for a tenant. Cheap, and waits for nothing.
    pub fn note_use(&self, tenant: TenantId) {
        self.uses().note(tenant);
    }

    /// A tenant is gone.
    pub fn forget_use(&self, tenant: TenantId) {
        self.uses().state().noted.remove(&tenant);
    }

    /// At most `limit` tenants in service behind one in whose databases dead servers may have left something, and the
    /// time: [`Self::swept`] wants it.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn to_sweep(
        &self,
        after: Option<TenantId>,
        limit: i64,
    ) -> Result<Vec<(TenantId, DateTime<Utc>)>, TenantDbError> {
        let found =
            store::to_sweep(&self.uses().pool, after.map(|id| id.as_uuid()), limit, SWEPT_AFTER, SWEPT_ANYWAY).await?;
        Ok(found.into_iter().map(|(id, now)| (TenantId::from_uuid(id), now)).collect())
    }

    /// What dead servers had left in these tenants' databases at a time is settled.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn swept(&self, tenants: &[(TenantId, DateTime<Utc>)]) -> Result<(), TenantDbError> {
        let (ids, times): (Vec<_>, Vec<_>) = tenants.iter().map(|(tenant, at)| (tenant.as_uuid(), *at)).unzip();
        Ok(store::note_swept(&self.uses().pool, &ids, &times).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_noted_once_in_a_while_by_one_task() {
        let (mut state, tenant, now) = (State::default(), TenantId::new(), Instant::now());
        assert!(state.wait(tenant, now), "somebody has to write it");
        assert!(!state.wait(tenant, now) && !state.wait(TenantId::new(), now), "and one is enough");
        assert_eq!(state.take().len(), 2);
        state.noted.insert(tenant, now);
        assert!(!state.wait(tenant, now + Duration::from_secs(29 * 60)));
        assert!(state.take().is_empty() && !state.writing);
        assert!(state.wait(tenant, now + NOTED), "the note holds no longer");
        assert_eq!(state.take(), [tenant]);
    }
}
