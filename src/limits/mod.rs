//! Limits: how many requests a minute, and how many a month, over all servers.
//!
//! It knows limits, plans, windows and counters. It never knows who asks, or why: whoever does names what the limits
//! are of, and says when a request was answered.
//!
//! # Rates
//!
//! A limit of *L* requests a minute is *L* **permits**. Each is at one place at a time: in the pool, or held by one
//! server. A server uses only permits that it holds; one that was used **cools** for [`window::COOLING`] (60.3 s) by that
//! server's own monotonic clock before it may be used again, or given away. The store keeps an **account** of each limit:
//! which server holds how many. Permits are moved in **rounds**, of which a server has one under way at a time, for
//! all its limits together: it says what it has and wants, and the account is settled ([`rate_account`]).
//!
//! **Why no sliding minute passes the limit.** Take any minute. Each request in it used a permit. No permit was used
//! twice: between two uses at one server it cooled for longer than a minute, and it goes to another server only when it
//! has cooled. The account never gives out more than *L*, so there are *L* permits. Hence at most *L* requests. For this
//! it has to hold that:
//!
//! - *The account is changed by one server at a time.* In Postgres its row is locked from reading to writing, or written only if
//!   nobody has since this server did. In Redis a script writes it only if it is what was read.
//! - *A server never thinks that it holds more than its account says.* What it gives is put aside before the round and
//!   not used during it; what it gets is used once the store has confirmed. **An answer that is late or lost** changes
//!   neither: what may have been given stays unused, what may have been got is found in the account in the next round.
//!   That one's success proves that nothing older can come after it: in Postgres it waited for the older
//!   transaction's end, or that finds another version of the row and does nothing, as an older one in Redis finds another mark.
//! - *What a server holds is given out again only when it has stopped using it* ([`members`]). **A server that died** is one
//!   whose place another serves at, or that has been silent for its lease of 5 minutes: it uses what it holds for no
//!   longer than that after it last said that it is there, counted from before it said so. Then its permits cool once
//!   more. One that was taken for stopped and comes back has a new id and holds nothing. **A server that starts** says that
//!   it is there before it asks for anything, and whoever is unknown is taken to live until a later list proves otherwise.
//! - **Clocks need not agree.** Cooling and lease are durations on one server's monotonic clock, and what the store compares
//!   are instants of the platform database's clock alone. If that is set forward by more than two seconds at once, a server
//!   that lives may be taken for stopped that much too early. A machine that sleeps as a whole, its monotonic clock with
//!   it, must not go on serving when it wakes.
//! - *The store remembers.* Postgres does, and accounts are forgotten only once nobody has written them for a day: whoever
//!   holds something says so once a minute. A Redis that was emptied learns in that minute what is held and what cools, and
//!   until then may give out once more what others hold: a Redis that keeps its data is the one to run.
//! - *A server that dies or freezes within a round keeps nobody else waiting.* The platform's database breaks off its
//!   transaction, and with it the locks, after a second in which nothing happened ([`store`]).
//!
//! **Why at least 99 % is usable.** Where demand goes on at the server that holds a permit, it is used again after
//! 60.3 s, or 60.35 s with the rounding: 99.4 %. Where it goes on elsewhere, a server that wants and gets nothing says
//! so in the account, and others are told; they give what is free within the next round, and what has cooled within
//! [`rates::TICK`]. So a permit loses some tenths of a second each time it moves, and moves only when demand does.
//! Servers that have less than their part and want more are owed by those that have more than theirs.
//!
//! **What a request costs.** With a permit at hand: a lock and an addition. Permits are fetched ahead of need, up to the
//! server's part of the limit, all of them by a server that is alone. A refusal asks nobody: the server knows that
//! nothing is left; while requests are refused, a task asks again in nobody's way.
//!
//! **While the store is down** a server uses what it holds: its share. Nobody else can be given that, so the sum stays
//! within the limit. For a limit that it holds nothing of it answers that it cannot know. If the platform's database is
//! down as well, that ends with the lease.
//!
//! # Quotas
//!
//! A month's quota is an account in the platform's database, always: what was used, and what each server was given of
//! the rest ([`quota_account`]). A server is given what waits, and a thousandth of the limit ahead at most, and none ahead
//! near the end. A request **reserves** one of those before the model is called. It is **settled** when the answer is
//! whole or broke off after something had been delivered, and otherwise given back. The end of an answer is told when its
//! settling is on record. So, where used + given ≤ limit, at most the limit is answered.
//!
//! *Dying at any point.* Before it is settled, nobody was told the answer's end: what a server that is gone had reserved
//! is free again, as soon as another serves at its place, or 31 minutes after its lease, when no answer of its can be under
//! way any more. After it is settled it counts, whether or not the client heard it. *Twice:* a server says how many it has
//! settled in all, so what was said before changes nothing. *The platform's database is away:* what is at hand is used and
//! settled later; nothing is given out. A server that dies before it could say so leaves answers that were told and do
//! not count: as many as were at hand.

mod members;
mod plans;
mod quota_account;
#[cfg(test)]
mod quota_simulation;
mod quota_state;
mod quotas;
mod rate_account;
mod rate_state;
mod rates;
mod redis_store;
mod rounds;
#[cfg(test)]
mod simulation;
mod store;
mod window;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use secrecy::SecretString;
use sqlx::PgPool;
use thiserror::Error;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::members::{BEAT, Membership};
use self::quotas::{Quotas, Reservation};
use self::rates::{Rates, TICK};
pub use self::redis_store::RedisFault;
use self::redis_store::RedisStore;
use crate::clock::SharedClock;
use crate::ids::{ApiKeyId, TenantId, UserId};
use crate::platform_db::Notification;
use crate::secrets::DatabaseUrl;
use crate::telemetry::causes;

pub use plans::{Plan, Plans, Terms};

/// How long a server that stops waits until what it has settled is on record.
const LAST_ROUNDS: Duration = Duration::from_secs(2);
/// How many months are kept.
const MONTHS_KEPT: i32 = 13;

/// What a rate limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LimitKey {
    tenant: TenantId,
    scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scope {
    Tenant,
    User(Uuid),
    ApiKey(Uuid),
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.as_uuid();
        match self.scope {
            Scope::Tenant => write!(f, "rate:{tenant}"),
            Scope::User(id) => write!(f, "rate:{tenant}:user:{id}"),
            Scope::ApiKey(id) => write!(f, "rate:{tenant}:api_key:{id}"),
        }
    }
}

impl FromStr for LimitKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.strip_prefix("rate:").ok_or(())?.split(':');
        let uuid = |text: Option<&str>| text.and_then(|text| text.parse::<Uuid>().ok()).ok_or(());
        let tenant = TenantId::from_uuid(uuid(parts.next())?);
        let scope = match parts.next() {
            None => Scope::Tenant,
            Some("user") => Scope::User(uuid(parts.next())?),
            Some("api_key") => Scope::ApiKey(uuid(parts.next())?),
            Some(_) => return Err(()),
        };
        Ok(Self { tenant, scope })
    }
}

/// Whose quota of which month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct QuotaKey {
    tenant: TenantId,
    year: i32,
    month: u32,
}

impl fmt::Display for QuotaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quota:{}:{:04}-{:02}", self.tenant.as_uuid(), self.year, self.month)
    }
}

/// How a rate limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests in any minute.
    pub limit: u32,
    /// How many are left now, as far as this server knows.
    pub remaining: u32,
    /// When none of those that were admitted here counts any more.
    pub resets_in: Duration,
}

/// A request that is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateRefusal {
    /// The limit.
    pub rate: Rate,
    /// When the next one may be admitted.
    pub retry_after: Duration,
}

/// How a month stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests in the month; none if there is no limit.
    pub limit: Option<u64>,
    /// How many were answered; not counted where there is no limit.
    pub used: Option<u64>,
    /// How many are left.
    pub remaining: Option<u64>,
    /// When the next month begins, in UTC.
    pub resets_at: DateTime<Utc>,
}

/// Why a request is not admitted, or nobody can say.
#[derive(Debug, Error)]
pub enum LimitsError {
    /// Too many within a minute.
    #[error("too many requests within a minute")]
    RateLimited(RateRefusal),
    /// The month's quota is used up.
    #[error("the month's quota is used up")]
    QuotaExceeded {
        /// The quota.
        limit: u64,
    },
    /// The plan has not got what is asked for.
    #[error("the plan does not have this feature")]
    FeatureNotInPlan {
        /// What is asked for.
        feature: &'static str,
        /// The tenant's plan.
        plan: String,
    },
    /// Nobody can say, for what has to be asked does not answer.
    #[error("the limits cannot be looked at")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The store did not answer in time.
    #[error("the store of the limits did not answer in time")]
    Timeout,
    /// Others changed the same accounts again and again.
    #[error("the accounts of the limits kept changing")]
    Contended,
    /// What the store holds cannot be read.
    #[error("an account of a limit cannot be read")]
    Unreadable,
    /// The platform's database failed.
    #[error("the platform's database failed")]
    Database(#[from] sqlx::Error),
    /// Redis failed.
    #[error("Redis failed")]
    Redis(#[from] redis::RedisError),
}

/// Whom a request is counted for.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// The tenant.
    pub tenant: TenantId,
    /// The user, if one asks.
    pub user: Option<UserId>,
    /// The API key, if the request came with one.
    pub api_key: Option<ApiKeyId>,
}

/// A request that was admitted.
#[derive(Debug)]
pub struct Admission {
    /// The limit that is nearest to its end; none if there is none.
    pub rate: Option<Rate>,
    /// What is left of the month after this request; none if there is no limit.
    pub queries_remaining: Option<u64>,
    /// What it has reserved.
    pub permit: Permit,
}

/// What a request has reserved of its tenant's quota. Dropped, it is given back.
#[derive(Debug, Default)]
pub struct Permit(Option<Reservation>);

impl Permit {
    /// The request was answered, and counts. What is returned ends when that is on record, or may take a while. It need
    /// not be awaited for it to happen.
    pub fn settle(self) -> impl Future<Output = ()> + Send + use<> {
        let settling = self.0.map(Reservation::settle);
        async move {
            if let Some(settling) = settling {
                settling.await;
            }
        }
    }
}

/// A pool for the accounts in the platform's database. Opens its first connection when it is needed.
pub fn pool(platform_database_url: &DatabaseUrl) -> PgPool {
    store::pool(platform_database_url)
}

/// Limits of all tenants. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Limits {
    clock: SharedClock,
    plans: Arc<Plans>,
    members: Arc<Membership>,
    rates: Arc<Rates>,
    quotas: Arc<Quotas>,
}

impl Limits {
    /// Limits with accounts in the platform's database, by a [`pool`] of their own; those of rates in Redis if there is one.
    /// Opens no connection.
    ///
    /// # Errors
    /// If the Redis URL is none. What it holds is not quoted.
    pub fn new(
        pool: PgPool,
        redis_url: Option<&SecretString>,
        plans: Arc<Plans>,
        clock: SharedClock,
    ) -> anyhow::Result<Self> {
        let members = Arc::new(Membership::new(pool.clone()));
        let redis = redis_url.map(RedisStore::new).transpose()?;
        let rates = Arc::new(Rates::new(pool.clone(), Arc::clone(&members), redis));
        let quotas = Arc::new(Quotas::new(pool, Arc::clone(&members)));
        Ok(Self { clock, plans, members, rates, quotas })
    }

    /// What is wrong with the Redis that rates are kept in; none if they are not kept in one.
    pub async fn examine_redis(&self) -> Option<Result<(), RedisFault>> {
        self.rates.examine_redis().await
    }

    /// What clients can be sold.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// Admits a request, or says why not. Nothing is used by one that is refused.
    ///
    /// # Errors
    /// See [`LimitsError`].
    pub async fn admit(&self, subject: &Subject, terms: &Terms<'_>) -> Result<Admission, LimitsError> {
        let tenant = subject.tenant;
        let key = |scope| LimitKey { tenant, scope };
        let user = subject.user.zip(terms.requests_per_minute_per_user());
        let api_key = subject.api_key.zip(terms.requests_per_minute_per_api_key());
        let asked = [
            terms.requests_per_minute().map(|limit| (key(Scope::Tenant), limit)),
            user.map(|(id, limit)| (key(Scope::User(id.as_uuid())), limit)),
            api_key.map(|(id, limit)| (key(Scope::ApiKey(id.as_uuid())), limit)),
        ];
        let asked: Vec<_> = asked.into_iter().flatten().collect();
        let taken = if asked.is_empty() { None } else { Some(self.rates.admit(&asked).await?) };
        let reservation = match terms.requests_per_month() {
            None => None,
            Some(limit) => match self.quotas.reserve(self.this_month(tenant), limit).await {
                Ok(reservation) => Some(reservation),
                Err(error) => {
                    if let Some(taken) = taken {
                        taken.put_back();
                    }
                    return Err(error);
                }
            },
        };
        Ok(Admission {
            rate: taken.map(|taken| taken.rate),
            queries_remaining: reservation.as_ref().map(|reservation| reservation.remaining),
            permit: Permit(reservation),
        })
    }

    fn this_month(&self, tenant: TenantId) -> QuotaKey {
        let now = self.clock.now();
        QuotaKey { tenant, year: now.year(), month: now.month() }
    }

    /// How the tenant's own rate stands, as far as this server knows; none if it has no limit.
    pub fn rate(&self, tenant: TenantId, terms: &Terms<'_>) -> Option<Rate> {
        let limit = terms.requests_per_minute()?;
        Some(self.rates.look(LimitKey { tenant, scope: Scope::Tenant }, limit))
    }

    /// How the tenant's month stands.
    ///
    /// # Errors
    /// [`LimitsError::Unavailable`] if the platform's database does not say.
    pub async fn quota(&self, tenant: TenantId, terms: &Terms<'_>) -> Result<Quota, LimitsError> {
        let resets_at = next_month(self.clock.now());
        let Some(limit) = terms.requests_per_month() else {
            return Ok(Quota { limit: None, used: None, remaining: None, resets_at });
        };
        let status = self.quotas.status(self.this_month(tenant), limit).await?;
        Ok(Quota { limit: Some(limit), used: Some(status.used), remaining: Some(status.remaining), resets_at })
    }

    /// Forgets a tenant that is gone.
    pub fn forget_tenant(&self, tenant: TenantId) {
        self.rates.forget_tenant(tenant);
        self.quotas.forget_tenant(tenant);
    }

    /// Forgets what nobody holds anything of, and months long gone.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn prune(&self, pool: &PgPool) -> Result<u64, LimitsError> {
        let now = self.clock.now();
        let oldest = now.year() * 12 + i32::try_from(now.month0()).unwrap_or_default() - MONTHS_KEPT;
        let oldest = format!("{:04}-{:02}", oldest.div_euclid(12), oldest.rem_euclid(12) + 1);
        Ok(store::prune(pool, &oldest).await?)
    }

    /// Says where this server serves and that it is there: before that it holds nothing. A platform database that is
    /// away says so later.
    pub async fn begin(&self, place: String) {
        self.members.serve_at(place);
        if let Err(error) = self.members.beat().await {
            tracing::warn!(error = causes(&error), "say that the server is there");
        }
    }

    /// Keeps what this server holds in order until `stop`.
    pub async fn run(&self, mut heard: broadcast::Receiver<Notification>, stop: CancellationToken) {
        let beats = async {
            loop {
                tokio::time::sleep(BEAT).await;
                if let Err(error) = self.members.beat().await {
                    tracing::warn!(error = causes(&error), "say that the server is there");
                }
            }
        };
        let ticks = async {
            loop {
                tokio::time::sleep(TICK).await;
                self.rates.tick();
                self.quotas.tick();
            }
        };
        let recalls = async {
            loop {
                match heard.recv().await {
                    Ok(Notification::Limits(key)) => {
                        if let Ok(key) = key.parse() {
                            self.rates.give(key);
                        }
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = beats => {}
            () = ticks => {}
            () = recalls => {}
        }
    }

    /// This server takes no requests any more, and still tells answers: whoever serves at its place has not taken it.
    pub async fn leaving(&self) {
        self.members.leaving().await;
    }

    /// This server has told its last answer.
    pub async fn leave(&self) {
        if tokio::time::timeout(LAST_ROUNDS, self.quotas.record_all()).await.is_err() {
            tracing::warn!("put the use of quotas on record; the platform's database did not answer");
        }
        self.members.leave().await;
    }
}

/// Forgets the accounts of a tenant that is gone for good.
///
/// # Errors
/// A failure of the platform's database.
pub async fn forget_accounts(pool: &PgPool, tenant: TenantId) -> Result<(), sqlx::Error> {
    store::forget(pool, tenant.as_uuid()).await
}

/// The beginning of the next month, in UTC.
fn next_month(now: DateTime<Utc>) -> DateTime<Utc> {
    let (year, month) = if now.month() == 12 { (now.year() + 1, 1) } else { (now.year(), now.month() + 1) };
    let first = NaiveDate::from_ymd_opt(year, month, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
    first.map_or(now, |first| first.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let tenant = TenantId::new();
        for scope in [Scope::Tenant, Scope::User(Uuid::now_v7()), Scope::ApiKey(Uuid::now_v7())] {
            let key = LimitKey { tenant, scope };
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for text in ["", "rate:", "quota:x", "rate:0:user", &format!("rate:{}:else:1", Uuid::nil())] {
            assert_eq!(text.parse::<LimitKey>(), Err(()), "{text}");
        }
    }

    #[test]
    fn months_follow_each_other() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        assert_eq!(next_month(at("2026-11-30T23:59:59Z")), at("2026-12-01T00:00:00Z"));
        assert_eq!(next_month(at("2026-12-01T00:00:00Z")), at("2027-01-01T00:00:00Z"));
    }
}
