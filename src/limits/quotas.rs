//! Quotas of calendar months: reservations out of what this server was given, settled once they were answered.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::timeout;

use super::members::Membership;
use super::quota_account::QuotaAccount;
use super::quota_state::{QuotaState, QuotaStatus, Verdict};
use super::rounds::Rounds;
use super::store::{self, Written};
use super::{LimitsError, QuotaKey};
use crate::ids::TenantId;
use crate::telemetry::causes;

/// How long a request waits at most for a part of the quota.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long whoever has an answer to tell waits until its use is on record.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the platform's database may take.
const STORE: Duration = Duration::from_secs(2);
/// How often it is looked whether all is on record.
const RECORDING: Duration = Duration::from_millis(20);
/// How long an account is read each time that another server has written as well, in milliseconds.
const SHARED: u64 = 1_000;
/// When to come back if the platform's database does not answer.
const COME_BACK: Duration = Duration::from_secs(2);

/// The quotas that are in use on this server.
#[derive(Debug)]
pub(super) struct Quotas {
    started: Instant,
    pool: PgPool,
    members: Arc<Membership>,
    keys: DashMap<QuotaKey, Arc<Quota>>,
    rounds: Rounds<QuotaKey>,
}

#[derive(Debug)]
struct Quota {
    state: Mutex<QuotaState>,
    account: Mutex<Account>,
    round_ended: Notify,
}

/// What rounds know of the account.
#[derive(Debug, Default)]
struct Account {
    /// As it was written, unless another server may have written it since.
    written: Option<Written<QuotaAccount>>,
    /// Until when it is taken that others write it.
    shared_until: u64,
}

impl Quota {
    fn state(&self) -> MutexGuard<'_, QuotaState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a quota that one request has reserved. Dropped, it is given back; settled, it is used.
#[derive(Debug)]
pub(super) struct Reservation {
    quotas: Arc<Quotas>,
    key: QuotaKey,
    quota: Arc<Quota>,
    /// What was left after it.
    pub(super) remaining: u64,
    settled: bool,
}

impl Reservation {
    /// Counts it as used. The future ends when that is on record, or may take a while; it need not be awaited.
    pub(super) fn settle(mut self) -> impl Future<Output = ()> + Send + use<> {
        let number = self.quota.state().settle();
        self.settled = true;
        let quota = Arc::clone(&self.quota);
        self.quotas.ask([self.key]);
        async move {
            let recorded = async {
                loop {
                    let ended = quota.round_ended.notified();
                    tokio::pin!(ended);
                    ended.as_mut().enable();
                    if quota.state().is_recorded(number) {
                        return;
                    }
                    ended.await;
                }
            };
            let _ = timeout(SETTLE, recorded).await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.settled {
            self.quota.state().give_back();
        }
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a Quota);

impl<'a> Waiting<'a> {
    fn new(quota: &'a Quota) -> Self {
        quota.state().waiting += 1;
        Self(quota)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

impl Quotas {
    pub(super) fn new(pool: PgPool, members: Arc<Membership>) -> Self {
        let (keys, rounds) = (DashMap::new(), Rounds::default());
        Self { started: Instant::now(), pool, members, keys, rounds }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn quota(&self, key: QuotaKey) -> Arc<Quota> {
        if let Some(quota) = self.keys.get(&key) {
            return Arc::clone(&quota);
        }
        let new = || {
            let state = Mutex::new(QuotaState::new(self.now()));
            Arc::new(Quota { state, account: Mutex::default(), round_ended: Notify::new() })
        };
        Arc::clone(&self.keys.entry(key).or_insert_with(new))
    }

    /// Reserves one.
    ///
    /// # Errors
    /// [`LimitsError::QuotaExceeded`], or [`LimitsError::Unavailable`] if nobody knows.
    pub(super) async fn reserve(self: &Arc<Self>, key: QuotaKey, limit: u64) -> Result<Reservation, LimitsError> {
        let since = Instant::now();
        loop {
            let quota = self.quota(key);
            let ended = quota.round_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let (holder, in_contact) = self.members.standing();
            let verdict = quota.state().reserve(self.now(), limit, holder, in_contact);
            match verdict {
                Verdict::Known(reserved) => {
                    if reserved.ask_ahead {
                        self.ask([key]);
                    }
                    let (quotas, remaining) = (Arc::clone(self), reserved.remaining);
                    return Ok(Reservation { quotas, key, quota: Arc::clone(&quota), remaining, settled: false });
                }
                Verdict::Exceeded => return Err(LimitsError::QuotaExceeded { limit }),
                Verdict::Unknown => return Err(LimitsError::Unavailable { retry_after: COME_BACK }),
                Verdict::Ask => {}
            }
            let _waiting = Waiting::new(&quota);
            self.wait(key, since, ended).await?;
        }
    }

    /// How a month stands, at most a second old.
    ///
    /// # Errors
    /// [`LimitsError::Unavailable`] if the platform's database does not say.
    pub(super) async fn status(self: &Arc<Self>, key: QuotaKey, limit: u64) -> Result<QuotaStatus, LimitsError> {
        let since = Instant::now();
        loop {
            let quota = self.quota(key);
            let ended = quota.round_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let verdict = quota.state().status(self.now(), limit);
            match verdict {
                Verdict::Known(status) => return Ok(status),
                Verdict::Exceeded | Verdict::Unknown => {
                    return Err(LimitsError::Unavailable { retry_after: COME_BACK });
                }
                Verdict::Ask => {}
            }
            self.wait(key, since, ended).await?;
        }
    }

    /// Has a round be about this, and waits for its end as long as whoever asks since then has patience.
    async fn wait(
        self: &Arc<Self>,
        key: QuotaKey,
        since: Instant,
        ended: Pin<&mut Notified<'_>>,
    ) -> Result<(), LimitsError> {
        let left = PATIENCE.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(LimitsError::Unavailable { retry_after: COME_BACK });
        }
        self.ask([key]);
        let _ = timeout(left, ended).await;
        Ok(())
    }

    fn ask(self: &Arc<Self>, keys: impl IntoIterator<Item = QuotaKey>) {
        if self.rounds.ask(keys) {
            let quotas = Arc::clone(self);
            tokio::spawn(async move {
                let round = |keys: Vec<QuotaKey>| {
                    let quotas = &quotas;
                    async move { quotas.round(&keys).await }
                };
                quotas.rounds.work(round).await;
            });
        }
    }

    async fn round(&self, keys: &[QuotaKey]) {
        let holder = self.members.id();
        let (mut names, mut asks, mut places, mut known) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            let Some(quota) = self.keys.get(key).map(|quota| Arc::clone(&quota)) else { continue };
            asks.push(quota.state().prepare(self.now(), holder));
            // Taken: if no answer comes, nobody knows what is there.
            known.push(quota.account().written.take());
            names.push((key.to_string(), key.tenant.as_uuid()));
            places.push((*key, quota));
        }
        let (members, now) = self.members.members();
        let unknown = Mutex::new(Vec::new());
        let settle = |index: usize, account: &mut QuotaAccount| {
            let ask = asks.get(index).copied().unwrap_or_default();
            let settled = account.settle(holder, &ask, &members, now);
            let strangers = account.leases.keys().filter(|id| **id != holder && members.is_unknown(**id)).copied();
            unknown.lock().unwrap_or_else(PoisonError::into_inner).extend(strangers);
            settled
        };
        let result = match self.members.in_contact() {
            true => {
                let exchange = store::exchange(&self.pool, &names, known, &settle);
                timeout(STORE, exchange).await.unwrap_or(Err(LimitsError::Timeout))
            }
            false => Err(LimitsError::Unavailable { retry_after: COME_BACK }),
        };
        self.members.suspect(unknown.into_inner().unwrap_or_else(PoisonError::into_inner));
        let same = self.members.id() == holder;
        if let Err(error) = &result {
            tracing::warn!(error = causes(error), quotas = places.len(), "exchange parts of quotas");
        }
        let mut results = result.map(Vec::into_iter);
        for ((_, quota), ask) in places.iter().zip(&asks) {
            let exchanged = results.as_mut().ok().and_then(Iterator::next);
            let now = self.now();
            match exchanged {
                Some(exchanged) if same => {
                    quota.state().adopt(now, ask, &exchanged.result);
                    let mut account = quota.account();
                    if exchanged.is_shared {
                        account.shared_until = now + SHARED;
                    }
                    account.written = (now >= account.shared_until).then_some(exchanged.written);
                }
                Some(_) => quota.state().disown(),
                None => quota.state().lost(now),
            }
            quota.round_ended.notify_waiters();
        }
    }

    /// Looks after what is in use, and forgets what is not; see [`QuotaState::is_due`].
    pub(super) fn tick(self: &Arc<Self>) {
        let now = self.now();
        self.keys.retain(|_, quota| {
            let mut state = quota.state();
            state.removed = state.is_forgettable(now);
            !state.removed
        });
        let due: Vec<_> =
            self.keys.iter().filter(|entry| entry.state().is_due(now)).map(|entry| *entry.key()).collect();
        self.ask(due);
    }

    /// Ends when all that was settled is on record.
    pub(super) async fn record_all(self: &Arc<Self>) {
        loop {
            let open = self.keys.iter().filter(|entry| entry.state().is_unrecorded());
            let keys: Vec<_> = open.map(|entry| *entry.key()).collect();
            if keys.is_empty() {
                return;
            }
            self.ask(keys);
            tokio::time::sleep(RECORDING).await;
        }
    }

    /// Forgets the quotas of a tenant that is gone.
    pub(super) fn forget_tenant(&self, tenant: TenantId) {
        self.keys.retain(|key, _| key.tenant != tenant);
    }
}
