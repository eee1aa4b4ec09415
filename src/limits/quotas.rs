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
use uuid::Uuid;

use super::members::Membership;
use super::quota_account::{self, Ask, QuotaAccount, Settled};
use super::rounds::Rounds;
use super::store::{self, Written};
use super::{LimitsError, QuotaKey};
use crate::ids::TenantId;
use crate::telemetry::causes;

/// How long a request waits at most for a part of the quota.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long whoever has an answer to tell waits until its use is on record.
const SETTLE: Duration = Duration::from_secs(2);
/// How long requests are refused without asking again, after nothing was left, in milliseconds.
const REFUSE: u64 = 1_000;
/// How long the platform's database may take.
const STORE: Duration = Duration::from_secs(2);
/// How long nobody asks it again after it has not answered, in milliseconds.
const STORE_AWAY: u64 = 500;
/// How long what is not in use is held, in milliseconds.
const IDLE: u64 = 10 * 60 * 1000;
/// How often it is looked whether all is on record.
const RECORDING: Duration = Duration::from_millis(20);
/// How long an account is read each time that another server has written as well, in milliseconds.
const SHARED: u64 = 1_000;
/// How old what is shown of a month may be, in milliseconds.
const FRESH: u64 = 1_000;
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
    state: Mutex<State>,
    round_ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Under which id it is held.
    holder: Uuid,
    limit: u64,
    /// What this server was given in all, settled in all, and how much of that is on record.
    granted: u64,
    settled: u64,
    recorded: u64,
    reserved: u64,
    /// Being given back.
    aside: u64,
    waiting: u64,
    refuse_until: u64,
    used_at: u64,
    away_at: Option<u64>,
    /// When what is known was learned, and what.
    learned_at: Option<u64>,
    last: Settled,
    /// The account, unless another server may have written it since.
    written: Option<Written<QuotaAccount>>,
    /// Until when it is taken that others write it.
    shared_until: u64,
    removed: bool,
}

impl State {
    /// What was given and is neither settled nor reserved.
    fn stock(&self) -> u64 {
        self.granted.saturating_sub(self.settled).saturating_sub(self.reserved).saturating_sub(self.aside)
    }

    /// What is left for this server's requests, as far as it knows.
    fn remaining(&self) -> u64 {
        self.last.left.saturating_add(self.stock()).min(self.limit)
    }

    /// Others have taken this server for stopped: what it has reserved will be answered nevertheless, and is said anew.
    fn start_over(&mut self, holder: Uuid) {
        self.settled -= self.recorded.min(self.settled);
        self.recorded = 0;
        self.granted = self.settled + self.reserved;
        self.holder = holder;
    }
}

impl Quota {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (holder, number) = {
            let mut state = self.quota.state();
            state.reserved = state.reserved.saturating_sub(1);
            state.settled += 1;
            (state.holder, state.settled)
        };
        self.settled = true;
        let quota = Arc::clone(&self.quota);
        self.quotas.ask([self.key]);
        async move {
            let recorded = async {
                loop {
                    let ended = quota.round_ended.notified();
                    tokio::pin!(ended);
                    ended.as_mut().enable();
                    {
                        let state = quota.state();
                        if state.recorded >= number || state.holder != holder || state.away_at.is_some() {
                            return;
                        }
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
            let mut state = self.quota.state();
            state.reserved = state.reserved.saturating_sub(1);
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

/// How a month stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuotaStatus {
    pub(super) used: u64,
    pub(super) remaining: u64,
}

/// What a look at a quota says.
enum Verdict {
    Reserved { remaining: u64, ask_ahead: bool },
    Ask,
    Exceeded,
    Unknown,
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
            let state = State { used_at: self.now(), ..State::default() };
            Arc::new(Quota { state: Mutex::new(state), round_ended: Notify::new() })
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
            match self.look(&quota, limit) {
                Verdict::Reserved { remaining, ask_ahead } => {
                    if ask_ahead {
                        self.ask([key]);
                    }
                    return Ok(Reservation {
                        quotas: Arc::clone(self),
                        key,
                        quota: Arc::clone(&quota),
                        remaining,
                        settled: false,
                    });
                }
                Verdict::Exceeded => return Err(LimitsError::QuotaExceeded { limit }),
                Verdict::Unknown => return Err(LimitsError::Unavailable { retry_after: COME_BACK }),
                Verdict::Ask => {}
            }
            let _waiting = Waiting::new(&quota);
            self.wait(key, since, ended).await?;
        }
    }

    fn look(&self, quota: &Quota, limit: u64) -> Verdict {
        let (now, (holder, in_contact)) = (self.now(), self.members.standing());
        let mut state = quota.state();
        if state.removed {
            // Forgotten a moment ago: the next look finds a new one.
            return Verdict::Ask;
        }
        state.used_at = now;
        if state.holder != holder {
            state.start_over(holder);
        }
        if state.limit != limit {
            state.limit = limit;
            state.refuse_until = 0;
        }
        if !in_contact {
            return Verdict::Unknown;
        }
        // A limit that was lowered holds at once, as far as this server knows.
        let within = state.last.used.saturating_add(state.reserved) < limit;
        if within && state.stock() > 0 {
            state.reserved += 1;
            let ask_ahead = state.stock() < quota_account::block(limit).div_ceil(2) && state.last.left > 0;
            return Verdict::Reserved { remaining: state.remaining(), ask_ahead };
        }
        if now < state.refuse_until {
            return Verdict::Exceeded;
        }
        match state.away_at {
            Some(at) if now < at + STORE_AWAY => Verdict::Unknown,
            _ => Verdict::Ask,
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
            {
                let (mut state, now) = (quota.state(), self.now());
                state.limit = limit;
                if !state.removed && state.learned_at.is_some_and(|at| now < at + FRESH) {
                    // What is settled here and not on record yet was used as well.
                    let used = state.last.used + (state.settled - state.recorded.min(state.settled));
                    return Ok(QuotaStatus { used, remaining: limit.saturating_sub(used) });
                }
                if state.away_at.is_some_and(|at| now < at + STORE_AWAY) {
                    return Err(LimitsError::Unavailable { retry_after: COME_BACK });
                }
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
            {
                let mut state = quota.state();
                asks.push(self.prepare(&mut state, holder));
                // Taken: if no answer comes, nobody knows what is there.
                known.push(state.written.take());
            }
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
        for ((key, quota), ask) in places.iter().zip(&asks) {
            let exchanged = results.as_mut().ok().and_then(Iterator::next);
            let now = self.now();
            let mut state = quota.state();
            match exchanged {
                Some(exchanged) if same => {
                    let settled = exchanged.result;
                    if exchanged.is_shared {
                        state.shared_until = now + SHARED;
                    }
                    state.written = (now >= state.shared_until).then_some(exchanged.written);
                    state.granted = settled.granted;
                    state.recorded = ask.settled;
                    state.last = settled;
                    state.learned_at = Some(now);
                    state.away_at = None;
                    let none = settled.left == 0 && state.waiting > 0;
                    state.refuse_until = if none { now + REFUSE } else { 0 };
                }
                // Said again under the new id.
                Some(_) => {}
                None => {
                    state.away_at = Some(now);
                    // It may have been given back, or not; the next word of the account says so.
                    state.granted = state.granted.saturating_sub(state.aside);
                }
            }
            state.aside = 0;
            let unused = state.waiting == 0 && state.reserved == 0 && state.settled == state.recorded;
            state.removed = same && unused && state.stock() == 0 && now > state.used_at + IDLE;
            let removed = state.removed;
            drop(state);
            if removed {
                self.keys.remove(key);
            }
            quota.round_ended.notify_waiters();
        }
    }

    fn prepare(&self, state: &mut State, holder: Uuid) -> Ask {
        if state.holder != holder {
            state.start_over(holder);
        }
        let idle = state.waiting == 0 && self.now() > state.used_at + IDLE;
        let stock = state.stock();
        state.aside = if idle { stock } else { 0 };
        let block = quota_account::block(state.limit);
        Ask {
            limit: state.limit,
            settled: state.settled,
            reserved: state.reserved,
            gives: state.aside,
            wants: state.waiting.saturating_sub(stock),
            // Whoever was never asked for one needs none ahead.
            ahead: if idle || (state.granted == 0 && state.waiting == 0) { 0 } else { block.saturating_sub(stock) },
        }
    }

    /// Looks after what is in use: puts on record what is not there yet, and gives back what nobody uses.
    pub(super) fn tick(self: &Arc<Self>) {
        let now = self.now();
        let mut keys = Vec::new();
        for entry in &self.keys {
            let state = entry.state();
            if state.away_at.is_some_and(|at| now < at + STORE_AWAY) {
                continue;
            }
            if state.settled > state.recorded || now > state.used_at + IDLE {
                keys.push(*entry.key());
            }
        }
        self.ask(keys);
    }

    /// Ends when all that was settled is on record.
    pub(super) async fn record_all(self: &Arc<Self>) {
        loop {
            let open = |quota: &Quota| {
                let state = quota.state();
                state.settled > state.recorded
            };
            let keys: Vec<_> = self.keys.iter().filter(|entry| open(entry)).map(|entry| *entry.key()).collect();
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
