//! Rates: permits of each limit, taken from those that this server holds, and rounds that get and give them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::members::Membership;
use super::rate_account::{Ask, RateAccount, Settled};
use super::rate_state::{COME_BACK, RateState, Verdict};
use super::redis_store::{RedisFault, RedisStore};
use super::rounds::Rounds;
use super::window::Use;
use super::{LimitKey, LimitsError, Rate, store};
use crate::ids::TenantId;
use crate::telemetry::causes;

/// How long a request waits for what others may give, once the store has answered.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long it waits for the store's answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long it waits before it looks again for what others may give.
const LOOK: Duration = Duration::from_millis(15);
/// How often what is in use is looked after.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// How long it may take to tell the others that something is wanted.
const NOTIFY: Duration = Duration::from_millis(100);
/// How long a store may take.
const STORE: Duration = Duration::from_secs(2);

/// Where the accounts are.
#[derive(Debug)]
enum Store {
    Postgres,
    Redis(RedisStore),
}

/// The limits that are in use on this server.
#[derive(Debug)]
pub(super) struct Rates {
    started: Instant,
    pool: PgPool,
    store: Store,
    members: Arc<Membership>,
    keys: DashMap<LimitKey, Arc<Limit>>,
    rounds: Rounds<LimitKey>,
}

#[derive(Debug)]
struct Limit {
    state: Mutex<RateState>,
    round_ended: Notify,
}

impl Limit {
    fn state(&self) -> MutexGuard<'_, RateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a Limit);

impl<'a> Waiting<'a> {
    fn new(limit: &'a Limit) -> Self {
        limit.state().waiting += 1;
        Self(limit)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

/// A permit of each of a request's limits.
#[derive(Debug)]
pub(super) struct Taken {
    /// How the limit stands that is nearest to its end.
    pub(super) rate: Rate,
    uses: Vec<(Arc<Limit>, Use)>,
}

impl Taken {
    /// The request was refused for another reason: nothing was used.
    pub(super) fn put_back(self) {
        for (limit, used) in self.uses {
            limit.state().put_back(used);
        }
    }
}

/// A limit of a request: what of, how many, and its place.
type Asked = (LimitKey, u32, Arc<Limit>);

impl Rates {
    pub(super) fn new(pool: PgPool, members: Arc<Membership>, redis: Option<RedisStore>) -> Self {
        let store = redis.map_or(Store::Postgres, Store::Redis);
        let (keys, rounds) = (DashMap::new(), Rounds::default());
        Self { started: Instant::now(), pool, store, members, keys, rounds }
    }

    /// What Redis says of itself; none if there is none.
    pub(super) async fn examine_redis(&self) -> Option<Result<(), RedisFault>> {
        match &self.store {
            Store::Redis(redis) => Some(redis.examine().await),
            Store::Postgres => None,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn limit(&self, key: LimitKey) -> Arc<Limit> {
        if let Some(limit) = self.keys.get(&key) {
            return Arc::clone(&limit);
        }
        let new = || Arc::new(Limit { state: Mutex::new(RateState::new(self.now())), round_ended: Notify::new() });
        Arc::clone(&self.keys.entry(key).or_insert_with(new))
    }

    /// One permit of each of these limits, or of none of them.
    ///
    /// # Errors
    /// [`LimitsError::RateLimited`], or [`LimitsError::Unavailable`] if nobody knows.
    pub(super) async fn admit(self: &Arc<Self>, asked: &[(LimitKey, u32)]) -> Result<Taken, LimitsError> {
        let mut answered: Option<Instant> = None;
        let unknown = || LimitsError::Unavailable { retry_after: COME_BACK };
        let mut limits: Vec<Asked> = asked.iter().map(|(key, limit)| (*key, *limit, self.limit(*key))).collect();
        loop {
            let (key, limit) = match self.take_all(&limits) {
                Ok(taken) => return Ok(taken),
                Err((_, Verdict::Refused(refusal))) => return Err(LimitsError::RateLimited(refusal)),
                Err((index, Verdict::Ask)) => match limits.get_mut(index) {
                    Some((key, _, limit)) if limit.state().removed => {
                        *limit = self.limit(*key);
                        continue;
                    }
                    Some((key, _, limit)) => (*key, Arc::clone(limit)),
                    None => return Err(unknown()),
                },
                Err(_) => return Err(unknown()),
            };
            if answered.is_some_and(|at| at.elapsed() > PATIENCE) {
                return Err(LimitsError::RateLimited(limit.state().refuse(self.now())));
            }
            let ended = limit.round_ended.notified();
            tokio::pin!(ended);
            // Before asking, so that a round that ends at once is not missed.
            ended.as_mut().enable();
            let _waiting = Waiting::new(&limit);
            self.ask([key]);
            // A store that says nothing for so long: whoever uses nothing of it here cannot be told from one too many.
            if timeout(ANSWER, ended).await.is_err() && !limit.state().is_shared() {
                return Err(unknown());
            }
            answered.get_or_insert_with(Instant::now);
            let may_come = limit.state().may_come(self.now());
            if may_come {
                // Others have been asked to give.
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// A permit of each, or the first verdict that is none, and whose it is.
    fn take_all(&self, limits: &[Asked]) -> Result<Taken, (usize, Verdict)> {
        let (holder, in_contact) = self.members.standing();
        let mut uses = Vec::with_capacity(limits.len());
        let mut tightest: Option<Rate> = None;
        for (index, (_, limit, place)) in limits.iter().enumerate() {
            let verdict = place.state().take(self.now(), *limit, holder, in_contact);
            match verdict {
                Verdict::Taken(rate, used) => {
                    uses.push((Arc::clone(place), used));
                    if tightest.is_none_or(|known| rate.remaining < known.remaining) {
                        tightest = Some(rate);
                    }
                }
                verdict => {
                    // All or none: those that were taken were not used.
                    uses.into_iter().for_each(|(place, used)| place.state().put_back(used));
                    return Err((index, verdict));
                }
            }
        }
        match tightest {
            Some(rate) => Ok(Taken { rate, uses }),
            None => Err((0, Verdict::Unknown)),
        }
    }

    /// How a limit stands, as far as this server knows.
    pub(super) fn look(&self, key: LimitKey, limit: u32) -> Rate {
        let unused = Rate { limit, remaining: limit, resets_in: Duration::ZERO };
        let place = self.keys.get(&key).map(|place| Arc::clone(&place));
        place.map_or(unused, |place| place.state().look(self.now(), limit))
    }

    /// Has the store be asked about these.
    fn ask(self: &Arc<Self>, keys: impl IntoIterator<Item = LimitKey>) {
        if self.rounds.ask(keys) {
            let rates = Arc::clone(self);
            tokio::spawn(async move {
                let round = |keys: Vec<LimitKey>| {
                    let rates = &rates;
                    async move { rates.round(&keys).await }
                };
                rates.rounds.work(round).await;
            });
        }
    }

    /// Somebody wants what others have free of this limit.
    pub(super) fn give(self: &Arc<Self>, key: LimitKey) {
        let Some(place) = self.keys.get(&key).map(|place| Arc::clone(&place)) else { return };
        place.state().offer = true;
        self.ask([key]);
    }

    async fn round(&self, keys: &[LimitKey]) {
        let holder = self.members.id();
        let (mut names, mut asks, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            let Some(place) = self.keys.get(key).map(|place| Arc::clone(&place)) else { continue };
            asks.push(place.state().prepare(self.now(), holder));
            names.push((key.to_string(), key.tenant.as_uuid()));
            places.push((*key, place));
        }
        let (members, now) = self.members.members();
        let unknown = Mutex::new(Vec::new());
        let settle = |index: usize, account: &mut RateAccount| {
            let ask = asks.get(index).copied().unwrap_or_default();
            let settled = account.settle(holder, &ask, &members, now);
            let strangers = account.holdings.keys().filter(|id| **id != holder && members.is_unknown(**id)).copied();
            unknown.lock().unwrap_or_else(PoisonError::into_inner).extend(strangers);
            settled
        };
        let exchange = async {
            // Whoever has not said that it is there must not hold anything: nobody would know when it has stopped.
            if !self.members.in_contact() {
                return Err(LimitsError::Unavailable { retry_after: COME_BACK });
            }
            match &self.store {
                // Rounds are in nobody's way, and a limit that is hot is shared: it is always read.
                Store::Postgres => {
                    let exchanged = store::exchange(&self.pool, &names, Vec::new(), &settle).await?;
                    Ok(exchanged.into_iter().map(|one| one.result).collect())
                }
                Store::Redis(redis) => redis.exchange(&names, &settle).await,
            }
        };
        let result = timeout(STORE, exchange).await.unwrap_or(Err(LimitsError::Timeout));
        self.members.suspect(unknown.into_inner().unwrap_or_else(PoisonError::into_inner));
        match result {
            Ok(settled) => self.adopt(&places, &asks, settled, self.members.id() == holder).await,
            Err(error) => {
                tracing::warn!(error = causes(&error), limits = places.len(), "exchange permits of rate limits");
                for ((_, place), ask) in places.iter().zip(&asks) {
                    place.state().lost(self.now(), ask);
                    place.round_ended.notify_waiters();
                }
            }
        }
    }

    async fn adopt(&self, places: &[(LimitKey, Arc<Limit>)], asks: &[Ask], settled: Vec<Settled>, same: bool) {
        let mut wanted = Vec::new();
        for (((key, place), ask), settled) in places.iter().zip(asks).zip(&settled) {
            if same {
                place.state().adopt(self.now(), ask, settled);
            }
            if ask.leaves {
                self.forget(*key, place);
            }
            if settled.missing > 0 && settled.spare_elsewhere > 0 {
                wanted.push(key.to_string());
            }
            place.round_ended.notify_waiters();
        }
        for key in wanted {
            // The next round waits for this, so not for long: with Redis the platform's database may be away.
            if !matches!(timeout(NOTIFY, store::notify(&self.pool, &key)).await, Ok(Ok(()))) {
                tracing::debug!("ask others for permits of a rate limit");
                break;
            }
        }
    }

    fn forget(&self, key: LimitKey, place: &Limit) {
        self.keys.remove_if(&key, |_, _| {
            let mut state = place.state();
            state.removed = state.is_forgettable(self.now());
            state.removed
        });
    }

    /// Looks after what is in use; see [`RateState::is_due`].
    pub(super) fn tick(self: &Arc<Self>) {
        let (now, alone) = (self.now(), self.members.members().0.live() < 2);
        let due: Vec<_> =
            self.keys.iter().filter(|entry| entry.state().is_due(now, alone)).map(|entry| *entry.key()).collect();
        self.ask(due);
    }

    /// Forgets the limits of a tenant that is gone.
    pub(super) fn forget_tenant(&self, tenant: TenantId) {
        self.keys.retain(|key, _| key.tenant != tenant);
    }
}
