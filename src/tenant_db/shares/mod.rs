//! How a budget is divided over the Freehold servers that run.
//!
//! Each writes a row into the platform's database, again and again: how many connections to a database server it may
//! hold, and how many it has. Rows are changed under one lock, so that at no moment the shares add up to more than the
//! budget. Whoever is new takes what is free. Whoever has more than a fair part stops opening at once, closes what is
//! idle, and gives the rest free as it comes back. A server that stops gives its share back; one that died loses it
//! when it has been silent for long enough, or when another one serves at the same place, where it cannot be any more.
//!
//! While the platform's database does not answer, everybody keeps the share they have, and silence proves nothing. Nor
//! does it to a server that has just started: it cannot know whether the others could have spoken before. So nobody's
//! silence counts but what this server was there to hear.

mod division;
mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::division::divide;
use self::store::NewShare;
pub use self::store::Share;
use super::TenantDatabases;
use super::pools::Common;
use super::server::Server;

/// How often a server says that it is there.
const BEAT: Duration = Duration::from_secs(3);
/// How often, while it has less than its part.
const IMPATIENT_BEAT: Duration = Duration::from_millis(250);
/// How often at most, whoever asks.
const SHORTEST_BEAT: Duration = Duration::from_millis(100);
/// How often the others are asked to hurry.
const REMINDER: Duration = Duration::from_secs(1);
/// How long nobody asks again who waits for a share, after the platform's database did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a server may be silent before its share is free.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// How long the platform's database may take.
const PLATFORM: Duration = Duration::from_secs(2);
/// How long what a beat has seen of the other servers holds.
const SIGHT: Duration = Duration::from_secs(10);
/// How long the connections may take to end when the server stops.
const LAST_CONNECTIONS: Duration = Duration::from_secs(4);

/// This server's part of every budget.
pub struct Shares {
    pool: PgPool,
    id: Uuid,
    name: Mutex<String>,
    wake: Notify,
    /// Whether the last beat failed.
    away: AtomicBool,
    /// The other servers that run, and when they were seen.
    others: Mutex<Option<(Instant, Arc<[Uuid]>)>>,
    /// One beat at a time.
    beating: tokio::sync::Mutex<Watch>,
}

/// What is known of the platform's database.
#[derive(Debug, Default)]
struct Watch {
    last: Option<Instant>,
    /// When it last did not answer.
    failed: Option<Instant>,
    /// Since when it answers: for the first time, or again after it had not for longer than silence is allowed.
    heard_since: Option<Instant>,
    /// Whether others of the same name have been looked for.
    took_over: bool,
    /// When the others were asked to hurry.
    reminded: Option<Instant>,
}

impl Watch {
    /// Whether somebody who has said nothing for long enough may be taken for gone, now that the platform's database
    /// answers. After it was away, and to whoever has just started, all have been silent: they are given the time to say
    /// that they are there.
    fn may_judge(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.duration_since(last) > SILENCE) {
            self.heard_since = Some(now);
        }
        self.heard_since.is_some_and(|since| now.duration_since(since) > SILENCE)
    }
}

impl std::fmt::Debug for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shares").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shares {
    /// The shares of a server that has just started, kept in the platform's database.
    pub fn new(pool: PgPool) -> Self {
        let id = Uuid::now_v7();
        let name = Mutex::new(id.to_string());
        let (wake, away, beating) = (Notify::new(), AtomicBool::new(false), tokio::sync::Mutex::default());
        Self { pool, id, name, wake, away, others: Mutex::new(None), beating }
    }

    /// The platform's database.
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// This server.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// The other servers that run, unless nobody has seen them lately. One that was seen may have died since; one that was
    /// not has, or is cut off from the platform's database.
    fn others(&self) -> Option<Arc<[Uuid]>> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        others.filter(|(seen, _)| seen.elapsed() < SIGHT).map(|(_, others)| others)
    }

    /// All shares of all servers.
    pub(super) async fn all(&self) -> Result<Vec<Share>, sqlx::Error> {
        store::all(&mut *self.pool.acquire().await?).await
    }

    /// Says where this server serves. Only one can be there, so the share of whoever was there before is free.
    pub fn serve_at(&self, place: String) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Makes sure that the platform's database was asked for a share once; what it said, the budget knows.
    pub(super) async fn ask_for(&self, common: &Common, server: &Arc<Server>) {
        if server.was_asked_for() {
            return;
        }
        let mut watch = self.beating.lock().await;
        // One after another, many who wait would ask for as long as each of them is patient.
        let asked_in_vain = watch.failed.is_some_and(|failed| failed.elapsed() < ASK_AGAIN);
        if !server.was_asked_for()
            && !asked_in_vain
            && let Err(error) = self.beat(common, &mut watch).await
        {
            tracing::warn!(error = format!("{error:#}"), "ask for a share of the connections");
        }
    }

    /// Says what this server has, and takes or leaves what is fair. Returns whether it has less than that.
    async fn beat(&self, common: &Common, watch: &mut Watch) -> anyhow::Result<bool> {
        let result = match timeout(PLATFORM, self.beat_once(common, watch)).await {
            Ok(result) => result,
            Err(elapsed) => Err(elapsed.into()),
        };
        watch.failed = result.is_err().then(Instant::now);
        self.away.store(result.is_err(), Ordering::Release);
        result
    }

    /// Whether the platform's database did not answer when it was last asked.
    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    async fn beat_once(&self, common: &Common, watch: &mut Watch) -> anyhow::Result<bool> {
        let servers: Vec<_> = common.servers.iter().map(|server| Arc::clone(&server)).collect();
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut transaction = self.pool.begin().await?;
        store::lock(&mut transaction).await?;
        if !watch.took_over {
            store::delete_predecessors(&mut transaction, &name, self.id).await?;
        }
        let now = Instant::now();
        if watch.may_judge(now) {
            store::delete_silent(&mut transaction, SILENCE).await?;
        }
        let all = store::all(&mut transaction).await?;
        let mut wants_more = false;
        let (mut shares, mut granted) = (Vec::new(), Vec::new());
        for server in &servers {
            let key = server.name.to_string();
            let others = all.iter().filter(|share| share.server_id != self.id && share.database_server == key);
            let others: Vec<_> = others.map(|share| (share.server_id, share.granted.max(share.open))).collect();
            let (before, _) = server.capacity_and_open();
            let part = divide(common.budget_of(&server.name), self.id, &others);
            if part.granted < before {
                // First stop opening, then count: what is counted can only become less.
                server.set_capacity(part.granted);
            }
            let (_, open) = server.capacity_and_open();
            wants_more |= part.granted < part.fair;
            granted.push((Arc::clone(server), part.granted));
            shares.push(NewShare { database_server: key, granted: part.granted, open });
        }
        store::put(&mut transaction, self.id, &name, &shares).await?;
        if wants_more && watch.reminded.is_none_or(|last| now.duration_since(last) > REMINDER) {
            watch.reminded = Some(now);
            store::notify(&mut transaction).await?;
        }
        transaction.commit().await?;
        let mut others: Vec<_> = all.iter().map(|share| share.server_id).filter(|id| *id != self.id).collect();
        others.dedup();
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, others.into()));
        watch.took_over = true;
        watch.last = Some(Instant::now());
        for (server, granted) in granted {
            server.set_capacity(granted);
        }
        Ok(wants_more)
    }

    /// Lets all connections go, and gives every share back.
    async fn give_back(&self, common: &Common) {
        let servers: Vec<_> = common.servers.iter().map(|server| Arc::clone(&server)).collect();
        for server in &servers {
            server.set_capacity(0);
        }
        let ended = async {
            while servers.iter().any(|server| server.capacity_and_open().1 > 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(LAST_CONNECTIONS, ended).await.is_err() {
            tracing::warn!("connections to tenants' databases did not end in time");
        }
        match timeout(PLATFORM, store::delete(&self.pool, self.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "give the share of the connections back"),
            Err(_) => tracing::warn!("give the share of the connections back; the platform's database did not answer"),
        }
    }
}

impl TenantDatabases {
    /// Keeps this server's part of the budgets until `stop`; it has to go on while answers are still being stored.
    /// Then all connections are closed, and the part is given back.
    pub async fn keep_shares(&self, stop: CancellationToken) {
        let common = self.common();
        let shares = &common.shares;
        // At once, though there are no connections yet: from now on this server hears who else is there.
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = shares.wake.notified() => tokio::time::sleep(SHORTEST_BEAT).await,
                () = tokio::time::sleep(wait) => {}
            }
            let mut watch = shares.beating.lock().await;
            wait = match shares.beat(common, &mut watch).await {
                Ok(true) => IMPATIENT_BEAT,
                Ok(false) => BEAT,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "keep the share of the connections");
                    BEAT
                }
            };
        }
        shares.give_back(common).await;
    }

    /// Another server has less than its part: say at once what this one can spare.
    pub fn look_at_shares(&self) {
        self.common().shares.wake.notify_one();
    }

    /// This server, which has a new id each time it is started.
    pub fn server_id(&self) -> Uuid {
        self.common().shares.id()
    }

    /// The other servers that run, if that is known: of a server that is not among them nothing more will come, unless it
    /// is cut off from the platform's database.
    pub fn other_servers(&self) -> Option<Arc<[Uuid]>> {
        self.common().shares.others()
    }

    /// Says where this server serves.
    pub fn serve_at(&self, place: String) {
        self.common().shares.serve_at(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_where_somebody_was_there_to_hear_it() {
        let start = Instant::now();
        let after = |seconds| start.checked_add(Duration::from_secs(seconds)).unwrap();
        // One beat after the other, as of when the platform's database answers.
        let mut watch = Watch::default();
        let mut beat = |seconds| {
            let may = watch.may_judge(after(seconds));
            watch.last = Some(after(seconds));
            may
        };
        assert!(!beat(100), "the first word that it hears");
        assert!(!beat(103) && !beat(115));
        assert!(beat(116));
        // Away for less than silence is allowed, and for more.
        assert!(beat(130));
        assert!(!beat(146) && !beat(161));
        assert!(beat(162));
    }
}
