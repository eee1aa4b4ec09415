//! Which Freehold servers there are, and of which it is certain that they use nothing any more.
//!
//! Each server says every two seconds that it is there, in the platform's database and by its clock. It uses what it
//! holds only for [`LEASE`] after it last did, counted from before it said so; so whoever has been silent for longer has
//! stopped. A server that serves where another one did has taken its place, and that one is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::time::timeout;
use uuid::Uuid;

use super::LimitsError;
use super::store;
use super::window::COOLING;

/// How often a server says that it is there.
pub(super) const BEAT: Duration = Duration::from_secs(2);
/// How long a server uses what it holds after it last said that it is there.
pub(super) const LEASE: Duration = Duration::from_secs(5 * 60);
/// How much longer it has to be silent before others rely on that.
pub(super) const MARGIN: Duration = Duration::from_secs(2);
/// Who said something this long ago counts when a limit is divided.
const LIVELY: i64 = 10_000;
/// What a server used last has cooled so long after it stopped.
const COOLED: i64 = COOLING as i64 + 1_000;
/// The longest that an answer takes, and some more: after that a server that stopped settles nothing.
const LONGEST_ANSWER: i64 = 31 * 60 * 1000;
/// How long the platform's database may take.
const PLATFORM: Duration = Duration::from_secs(2);

/// A server as stored. Instants are milliseconds of the database's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) id: Uuid,
    pub(super) seen_at: i64,
    pub(super) stopped_at: Option<i64>,
    pub(super) is_gone: bool,
}

/// All servers as they were when that was last read.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// When it was read, in milliseconds of the database's clock.
    now: i64,
    known: HashMap<Uuid, Member>,
    /// Servers that are not listed, though they were seen before the list was read: gone long ago.
    dead: HashSet<Uuid>,
}

impl Members {
    /// Whether permits that a server held may be in use, or cooling, now.
    pub(super) fn may_hold(&self, id: Uuid, now: i64) -> bool {
        match self.known.get(&id) {
            Some(member) => member.stopped_at.is_none_or(|at| now < at + COOLED),
            None => !self.dead.contains(&id),
        }
    }

    /// Whether a server may yet tell an answer that it reserved something for.
    pub(super) fn may_answer(&self, id: Uuid, now: i64) -> bool {
        match self.known.get(&id) {
            Some(member) => !member.is_gone && member.stopped_at.is_none_or(|at| now < at + LONGEST_ANSWER),
            None => !self.dead.contains(&id),
        }
    }

    /// How many servers a limit is divided by: a matter of fairness, not of exactness.
    pub(super) fn live(&self) -> u32 {
        let live = self.known.keys().filter(|id| self.is_live(**id)).count();
        u32::try_from(live).unwrap_or(u32::MAX).max(1)
    }

    /// Whether a server has said lately that it is there, or has only just come.
    pub(super) fn is_live(&self, id: Uuid) -> bool {
        match self.known.get(&id) {
            Some(member) => member.stopped_at.is_none() && member.seen_at.saturating_add(LIVELY) > self.now,
            None => !self.dead.contains(&id),
        }
    }

    /// Whether nothing is known of a server.
    pub(super) fn is_unknown(&self, id: Uuid) -> bool {
        !self.known.contains_key(&id) && !self.dead.contains(&id)
    }

    #[cfg(test)]
    pub(super) fn of(ids: &[Uuid]) -> Self {
        let member = |id: &Uuid| (*id, Member { id: *id, seen_at: 0, stopped_at: None, is_gone: false });
        Self { now: 0, known: ids.iter().map(member).collect(), dead: HashSet::new() }
    }

    #[cfg(test)]
    pub(super) fn with_known(mut self, id: Uuid) -> Self {
        self.known.insert(id, Member { id, seen_at: i64::MIN / 2, stopped_at: None, is_gone: false });
        self
    }

    #[cfg(test)]
    pub(super) fn with_gone(self, id: Uuid) -> Self {
        self.with_stopped(id, 0, true)
    }

    #[cfg(test)]
    pub(super) fn with_stopped(mut self, id: Uuid, at: i64, is_gone: bool) -> Self {
        self.known.insert(id, Member { id, seen_at: 0, stopped_at: Some(at), is_gone });
        self
    }
}

/// This server among the others.
#[derive(Debug)]
pub(super) struct Membership {
    pool: PgPool,
    state: Mutex<State>,
    /// One beat at a time.
    beating: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    id: Uuid,
    name: String,
    members: Arc<Members>,
    /// When what the database said was received.
    received: Instant,
    /// When this server last said that it is there: just before it did.
    contact: Option<Instant>,
    suspects: HashSet<Uuid>,
}

impl Membership {
    pub(super) fn new(pool: PgPool) -> Self {
        let id = Uuid::now_v7();
        let state = State {
            id,
            name: id.to_string(),
            members: Arc::default(),
            received: Instant::now(),
            contact: None,
            suspects: HashSet::new(),
        };
        Self { pool, state: Mutex::new(state), beating: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where this server serves. Only one can be there, so whoever was there before is gone.
    pub(super) fn serve_at(&self, name: String) {
        self.state().name = name;
    }

    /// This server, and whether what it holds may be used.
    pub(super) fn standing(&self) -> (Uuid, bool) {
        let state = self.state();
        (state.id, state.contact.is_some_and(|contact| contact.elapsed() < LEASE))
    }

    /// This server. It has another id once others have taken it for stopped; what it held is then not its own any more.
    pub(super) fn id(&self) -> Uuid {
        self.state().id
    }

    /// Whether what this server holds may be used.
    pub(super) fn in_contact(&self) -> bool {
        self.state().contact.is_some_and(|contact| contact.elapsed() < LEASE)
    }

    /// The servers as far as they are known, and the time by the database's clock, which may be a little later.
    pub(super) fn members(&self) -> (Arc<Members>, i64) {
        let state = self.state();
        let elapsed = i64::try_from(state.received.elapsed().as_millis()).unwrap_or(i64::MAX);
        (Arc::clone(&state.members), state.members.now.saturating_add(elapsed))
    }

    /// Somebody unknown holds something: the next list says whether they are there.
    pub(super) fn suspect(&self, ids: Vec<Uuid>) {
        if !ids.is_empty() {
            self.state().suspects.extend(ids);
        }
    }

    /// Says that this server is there, and learns which others are.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub(super) async fn beat(&self) -> Result<(), LimitsError> {
        let _turn = self.beating.lock().await;
        let mut tries = 0;
        loop {
            let (id, name, suspects, is_new) = {
                let state = self.state();
                (state.id, state.name.clone(), state.suspects.clone(), state.contact.is_none())
            };
            let said = Instant::now();
            let beat = timeout(PLATFORM, store::beat(&self.pool, id, &name, LEASE + MARGIN, is_new));
            let beat = beat.await.map_err(|_| LimitsError::Timeout)??;
            let mut state = self.state();
            let Some((now, members)) = beat else {
                tries += 1;
                if tries > 1 {
                    return Err(LimitsError::Timeout);
                }
                tracing::warn!(server_id = %id, "this server was taken for stopped; it holds nothing any more");
                state.id = Uuid::now_v7();
                state.contact = None;
                continue;
            };
            let known: HashMap<_, _> = members.into_iter().map(|member| (member.id, member)).collect();
            // What was suspected before the list was read, and is not in it.
            let mut dead = state.members.dead.clone();
            dead.extend(suspects.iter().filter(|id| !known.contains_key(id)));
            state.suspects.retain(|id| !suspects.contains(id));
            state.members = Arc::new(Members { now, known, dead });
            state.received = Instant::now();
            state.contact = Some(said);
            return Ok(());
        }
    }

    /// This server stops: whoever serves at its place from now on has not taken it, for answers are still being told.
    pub(super) async fn leaving(&self) {
        {
            let mut state = self.state();
            state.name = state.id.to_string();
        }
        if let Err(error) = self.beat().await {
            tracing::debug!(%error, "say that the server stops");
        }
    }

    /// This server has stopped.
    pub(super) async fn leave(&self) {
        let id = {
            let mut state = self.state();
            state.contact = None;
            state.id
        };
        match timeout(PLATFORM, store::leave(&self.pool, id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "say that the server has stopped"),
            Err(_) => tracing::warn!("say that the server has stopped; the platform's database did not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stopped_server_held_cools_and_what_it_reserved_may_yet_be_answered() {
        let [a, b] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let stopped = Members::of(&[b]).with_stopped(a, 1_000, false);
        assert!(stopped.may_hold(a, 1_000 + COOLED - 1) && !stopped.may_hold(a, 1_000 + COOLED));
        assert!(stopped.may_answer(a, 1_000 + COOLED) && !stopped.may_answer(a, 1_000 + LONGEST_ANSWER));
        assert_eq!(stopped.live(), 1);
        let gone = Members::of(&[b]).with_gone(a);
        assert!(gone.may_hold(a, 0) && !gone.may_answer(a, 0));
        // Whoever is unknown may have come since the list was read.
        assert!(stopped.may_hold(Uuid::from_u128(3), i64::MAX) && stopped.is_unknown(Uuid::from_u128(3)));
    }
}
