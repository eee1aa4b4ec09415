//! A month's quota on this server: what it decides at which instant. Pure, in milliseconds of a clock that only goes forward;
//! what calls it brings time and store.

use uuid::Uuid;

use super::quota_account::{self, Ask, Settled};

/// How long requests are refused without asking again, after nothing was left.
const REFUSE: u64 = 1_000;
/// How long nobody asks the platform's database again after it has not answered.
const STORE_AWAY: u64 = 500;
/// How long what is not in use is held.
pub(super) const IDLE: u64 = 10 * 60 * 1000;
/// How old what is shown of a month may be.
const FRESH: u64 = 1_000;

/// A quota as this server has it.
#[derive(Debug, Default)]
pub(super) struct QuotaState {
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
    /// Requests that wait.
    pub(super) waiting: u64,
    /// Whether a request has ever asked for one: whoever only looks needs none ahead.
    is_asked_for: bool,
    refuse_until: u64,
    used_at: u64,
    away_at: Option<u64>,
    /// When what is known was learned, and what.
    learned_at: Option<u64>,
    last: Settled,
    /// Forgotten, so that nobody may use it any more.
    pub(super) removed: bool,
}

/// How a month stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuotaStatus {
    pub(super) used: u64,
    pub(super) remaining: u64,
}

/// What a look at a quota says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// This.
    Known(T),
    /// The store is to be asked.
    Ask,
    /// Nothing is left.
    Exceeded,
    /// Nobody can say.
    Unknown,
}

/// One that was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reserved {
    /// What was left after it.
    pub(super) remaining: u64,
    /// Whether more had better be fetched before they are needed.
    pub(super) ask_ahead: bool,
}

impl QuotaState {
    pub(super) fn new(now: u64) -> Self {
        // Not idle before it was ever used.
        Self { used_at: now, ..Self::default() }
    }

    /// What was given and is neither settled nor reserved.
    fn stock(&self) -> u64 {
        self.granted.saturating_sub(self.settled).saturating_sub(self.reserved).saturating_sub(self.aside)
    }

    /// What is left for this server's requests, as far as it knows.
    fn remaining(&self) -> u64 {
        self.last.left.saturating_add(self.stock()).min(self.limit)
    }

    /// Others have taken this server for stopped: what it has reserved will be answered nevertheless, and is said anew.
    fn held_by(&mut self, holder: Uuid) {
        if self.holder != holder {
            self.settled -= self.recorded.min(self.settled);
            self.recorded = 0;
            self.granted = self.settled + self.reserved;
            self.holder = holder;
        }
    }

    /// Reserves one.
    pub(super) fn reserve(&mut self, now: u64, limit: u64, holder: Uuid, in_contact: bool) -> Verdict<Reserved> {
        if self.removed {
            // Forgotten a moment ago: the next look finds a new one.
            return Verdict::Ask;
        }
        self.used_at = now;
        self.is_asked_for = true;
        self.held_by(holder);
        if self.limit != limit {
            self.limit = limit;
            self.refuse_until = 0;
        }
        if !in_contact {
            return Verdict::Unknown;
        }
        // A limit that was lowered holds at once, as far as this server knows.
        let within = self.last.used.saturating_add(self.reserved) < limit;
        if within && self.stock() > 0 {
            self.reserved += 1;
            let ask_ahead = self.stock() < quota_account::block(limit).div_ceil(2) && self.last.left > 0;
            return Verdict::Known(Reserved { remaining: self.remaining(), ask_ahead });
        }
        if now < self.refuse_until {
            return Verdict::Exceeded;
        }
        if self.is_away(now) { Verdict::Unknown } else { Verdict::Ask }
    }

    /// One that was reserved was used. Returns under which id, and the number of it: see [`Self::is_recorded`].
    pub(super) fn settle(&mut self) -> (Uuid, u64) {
        self.reserved = self.reserved.saturating_sub(1);
        self.settled += 1;
        (self.holder, self.settled)
    }

    /// One that was reserved was not used.
    pub(super) fn give_back(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Whether nobody need wait any more for this one to be on record: it is, or nobody knows when it will be.
    pub(super) fn is_recorded(&self, (holder, number): (Uuid, u64)) -> bool {
        self.recorded >= number || self.holder != holder || self.away_at.is_some()
    }

    /// Whether something that was settled is not on record yet.
    pub(super) fn is_unrecorded(&self) -> bool {
        self.settled > self.recorded
    }

    /// How the month stands, at most a second ago.
    pub(super) fn status(&mut self, now: u64, limit: u64) -> Verdict<QuotaStatus> {
        self.limit = limit;
        if !self.removed && self.learned_at.is_some_and(|at| now < at + FRESH) {
            // What is settled here and not on record yet was used as well.
            let used = self.last.used + (self.settled - self.recorded.min(self.settled));
            return Verdict::Known(QuotaStatus { used, remaining: limit.saturating_sub(used) });
        }
        if self.is_away(now) { Verdict::Unknown } else { Verdict::Ask }
    }

    /// Whether the store has not answered just now.
    fn is_away(&self, now: u64) -> bool {
        self.away_at.is_some_and(|at| now < at + STORE_AWAY)
    }

    fn is_idle(&self, now: u64) -> bool {
        self.waiting == 0 && now > self.used_at + IDLE
    }

    /// What is here and not needed: all that nobody uses for long, else what is more than may be held ahead of need, as
    /// after requests that failed.
    fn surplus(&self, now: u64) -> u64 {
        let kept = if self.is_idle(now) { 0 } else { self.last.ahead.saturating_add(self.waiting) };
        self.stock().saturating_sub(kept)
    }

    /// Whether the store is to be asked though no request waits: to put on record what is not there yet, to give back
    /// what is not needed, or to learn what became of a round, which may have given something.
    pub(super) fn is_due(&self, now: u64) -> bool {
        !self.is_away(now) && (self.is_unrecorded() || self.surplus(now) > 0 || self.away_at.is_some())
    }

    /// Whether nothing would be lost if it were forgotten.
    pub(super) fn is_forgettable(&self, now: u64) -> bool {
        let unused = self.reserved == 0 && self.aside == 0 && self.stock() == 0;
        unused && !self.is_unrecorded() && self.away_at.is_none() && self.is_idle(now)
    }

    /// What is said and asked in a round. What is given back in it is not used meanwhile.
    pub(super) fn prepare(&mut self, now: u64, holder: Uuid) -> Ask {
        self.held_by(holder);
        self.aside = 0;
        self.aside = self.surplus(now);
        let stock = self.stock();
        let needs_none_ahead = self.is_idle(now) || !self.is_asked_for;
        let ahead = quota_account::block(self.limit).saturating_sub(stock);
        Ask {
            limit: self.limit,
            settled: self.settled,
            reserved: self.reserved,
            gives: self.aside,
            wants: self.waiting.saturating_sub(stock),
            ahead: if needs_none_ahead { 0 } else { ahead },
        }
    }

    /// The store has confirmed a round.
    pub(super) fn adopt(&mut self, now: u64, ask: &Ask, settled: &Settled) {
        // What the account remembers of this server beyond that, it was told before this was forgotten and used again.
        self.settled += settled.settled.saturating_sub(ask.settled);
        self.recorded = settled.settled;
        self.granted = settled.granted;
        self.aside = 0;
        self.last = *settled;
        self.learned_at = Some(now);
        self.away_at = None;
        let none = settled.left == 0 && self.waiting > 0;
        self.refuse_until = if none { now + REFUSE } else { 0 };
    }

    /// A round was about an id that is not this server's any more: it is said again under the new one.
    pub(super) fn disown(&mut self) {
        self.aside = 0;
    }

    /// Nobody knows what became of a round. What was given back in it may be gone; the next word of the account says so.
    pub(super) fn lost(&mut self, now: u64) {
        self.away_at = Some(now);
        self.granted = self.granted.saturating_sub(self.aside);
        self.aside = 0;
    }
}
