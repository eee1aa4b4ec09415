//! One rate limit on this server: what it decides at which instant. Pure, in milliseconds of a clock that only goes
//! forward; what calls it brings time and store.

use std::time::Duration;

use uuid::Uuid;

use super::rate_account::{Ask, Settled};
use super::window::{Use, Window};
use super::{Rate, RateRefusal};

/// How long requests are refused without asking the store, after it had nothing: longer than it takes until it is
/// asked again in nobody's way.
pub(super) const REFUSE: u64 = 350;
/// How long others are waited for who are said to have some free.
const IN_VAIN: u64 = 1_000;
/// How long permits are held that nobody uses.
const IDLE: u64 = 10 * 60 * 1000;
/// How long permits are used without a word. A store may forget an account that nobody has written for a day, and one that
/// has lost its memory learns in this time what is held.
const UNCONFIRMED: u64 = 60 * 1000;
/// How long nobody asks a store again that has not answered.
const STORE_AWAY: u64 = 500;
/// When to come back if nothing better is known.
pub(super) const COME_BACK: Duration = Duration::from_secs(1);

/// A limit as this server has it.
#[derive(Debug, Default)]
pub(super) struct RateState {
    /// Under which id the permits are held.
    holder: Uuid,
    limit: u32,
    /// The limit that the store was last asked with.
    agreed: u32,
    window: Window,
    /// Requests that wait.
    pub(super) waiting: u32,
    /// Until when requests are refused at once.
    refuse_until: u64,
    /// When one was refused last.
    refused_at: Option<u64>,
    /// When it was used last.
    used_at: u64,
    /// What is free is to be offered in the next round.
    pub(super) offer: bool,
    /// The store did not answer then.
    away_at: Option<u64>,
    /// When it last confirmed what is held.
    confirmed_at: u64,
    /// What the last round has told.
    last: Settled,
    /// When another server has one free, as far as it is known.
    frees_elsewhere_at: Option<u64>,
    /// What this server last said to have free.
    said_spare: u32,
    /// Since when it has wanted some and got none.
    unmet_since: Option<u64>,
    /// Forgotten, so that nobody may use it any more.
    pub(super) removed: bool,
}

/// What one limit says to a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A permit is used.
    Taken(Rate, Use),
    /// None is free, and the store is to be asked.
    Ask,
    /// There is none.
    Refused(RateRefusal),
    /// Nobody can say.
    Unknown,
}

impl RateState {
    pub(super) fn new(now: u64) -> Self {
        // Not idle before it was ever used.
        Self { used_at: now, ..Self::default() }
    }

    fn held_by(&mut self, holder: Uuid) {
        if self.holder != holder {
            // Others have taken this server for stopped, and what it held for free.
            self.window.void();
            self.last = Settled::default();
            self.holder = holder;
        }
    }

    /// Uses a permit, if there is one.
    pub(super) fn take(&mut self, now: u64, limit: u32, holder: Uuid, in_contact: bool) -> Verdict {
        if self.removed {
            return Verdict::Ask;
        }
        self.used_at = now;
        self.held_by(holder);
        self.window.advance(now);
        if self.limit != limit {
            self.limit = limit;
            self.refuse_until = 0;
        }
        if !in_contact {
            return Verdict::Unknown;
        }
        let all_used = self.window.cooling() >= limit;
        if !all_used
            && !self.is_lowered()
            && let Some(used) = self.window.take(now)
        {
            return Verdict::Taken(self.rate(now), used);
        }
        // If all that the limit allows cool here, nobody else has one.
        if all_used || now < self.refuse_until {
            self.refused_at = Some(now);
            return Verdict::Refused(self.refusal(now));
        }
        if self.is_away(now) {
            // What this server holds is its share; whoever has none cannot be told apart from one too many.
            return match self.window.cooling() {
                0 => Verdict::Unknown,
                _ => Verdict::Refused(self.refusal(now)),
            };
        }
        Verdict::Ask
    }

    /// Whether more is held, here or elsewhere, than the limit allows by now: then nobody uses any until that has been
    /// given back.
    fn is_lowered(&self) -> bool {
        self.limit < self.agreed || self.last.over > 0
    }

    /// A permit that was taken was not used.
    pub(super) fn put_back(&mut self, used: Use) {
        self.window.put_back(used);
    }

    /// Whether the store has not answered just now.
    pub(super) fn is_away(&self, now: u64) -> bool {
        self.away_at.is_some_and(|at| now < at + STORE_AWAY)
    }

    /// Whether a request that found nothing after a round had better wait for what others may give.
    pub(super) fn may_come(&self, now: u64) -> bool {
        self.window.free() == 0 && now >= self.refuse_until && !self.is_away(now)
    }

    /// Whether any of it is in use here.
    pub(super) fn is_shared(&self) -> bool {
        self.window.cooling() > 0
    }

    /// Refuses a request, and those that come in the next moments.
    pub(super) fn refuse(&mut self, now: u64) -> RateRefusal {
        self.refused_at = Some(now);
        self.refuse_until = self.refuse_until.max(now + REFUSE);
        self.refusal(now)
    }

    /// What is said and asked in a round. What may be given away in it is not used meanwhile.
    pub(super) fn prepare(&mut self, now: u64, holder: Uuid) -> Ask {
        self.held_by(holder);
        self.window.advance(now);
        let leaves = self.waiting == 0 && self.is_idle(now);
        let aside = if leaves || self.is_lowered() {
            self.window.put_aside(0)
        } else if self.offer {
            // Not what is waited for here. It would be handed on from one server to the next, and nobody would use it.
            self.window.put_aside(self.waiting)
        } else {
            0
        };
        self.offer = false;
        let frees_in = self.window.next_free().map_or(0, |at| i64::try_from(at.saturating_sub(now)).unwrap_or(0));
        let wants = self.waiting.max(u32::from(self.is_hungry(now)));
        // Requests that wait take what is free here first.
        let wants = wants.saturating_sub(self.window.free());
        Ask { limit: self.limit, cooling: self.window.cooling(), aside, wants, leaves, frees_in }
    }

    /// The store has confirmed a round.
    pub(super) fn adopt(&mut self, now: u64, ask: &Ask, settled: &Settled) {
        self.window.hold(settled.held, settled.owed);
        self.window.advance(now);
        self.agreed = ask.limit;
        self.away_at = None;
        self.confirmed_at = now;
        self.said_spare = settled.held.saturating_sub(ask.cooling);
        self.frees_elsewhere_at = settled.frees_elsewhere_in.and_then(|ms| u64::try_from(ms).ok()).map(|ms| now + ms);
        let unmet = settled.missing > 0 && settled.granted == 0;
        self.unmet_since = unmet.then(|| self.unmet_since.unwrap_or(now));
        // Whoever has been asked for so long and gives nothing has nothing, or is not there.
        let in_vain = settled.spare_elsewhere == 0 || self.unmet_since.is_some_and(|since| now > since + IN_VAIN);
        self.refuse_until = if settled.missing > 0 && in_vain { now + REFUSE } else { 0 };
        self.last = *settled;
    }

    /// Nobody knows what became of a round: what was put aside for it may have been given away.
    pub(super) fn lost(&mut self, now: u64, ask: &Ask) {
        self.away_at = Some(now);
        self.window.give(ask.aside);
    }

    /// Whether the store is to be asked though no request waits: for those that were refused a moment ago, to say what
    /// has become free where others were told that nothing is, to give back what nobody uses, or to say what is still held.
    pub(super) fn is_due(&mut self, now: u64, alone: bool) -> bool {
        self.window.advance(now);
        if self.is_away(now) {
            return false;
        }
        let all_here = self.window.held() >= self.limit;
        let hungry = self.is_hungry(now) && self.waiting == 0 && !all_here;
        let unsaid = !alone && self.last.pool == 0 && self.said_spare == 0 && self.window.cool() > 0;
        self.offer |= unsaid;
        let unconfirmed = self.window.held() > 0 && now > self.confirmed_at + UNCONFIRMED;
        hungry || unsaid || (self.is_lowered() && self.window.cool() > 0) || self.is_idle(now) || unconfirmed
    }

    fn is_hungry(&self, now: u64) -> bool {
        self.refused_at.is_some_and(|at| now < at + REFUSE)
    }

    fn is_idle(&self, now: u64) -> bool {
        now > self.used_at + IDLE
    }

    /// Whether nothing would be lost if it were forgotten.
    pub(super) fn is_forgettable(&self, now: u64) -> bool {
        self.waiting == 0 && self.window.held() == 0 && self.window.cooling() == 0 && self.is_idle(now)
    }

    /// How it stands, as far as this server knows.
    pub(super) fn look(&mut self, now: u64, limit: u32) -> Rate {
        self.window.advance(now);
        let rate = self.rate(now);
        Rate { limit, remaining: rate.remaining.min(limit), ..rate }
    }

    fn rate(&self, now: u64) -> Rate {
        let known = self.last.pool.saturating_add(self.last.spare_elsewhere);
        let left = self.limit.saturating_sub(self.window.cooling());
        let resets_in = Duration::from_millis(self.window.all_free().map_or(0, |at| at.saturating_sub(now)));
        Rate { limit: self.limit, remaining: self.window.cool().saturating_add(known).min(left), resets_in }
    }

    fn refusal(&self, now: u64) -> RateRefusal {
        let soonest = self.window.next_free().into_iter().chain(self.frees_elsewhere_at).filter(|at| *at > now).min();
        let retry_after = soonest.map_or(COME_BACK, |at| Duration::from_millis(at - now));
        RateRefusal { rate: Rate { remaining: 0, ..self.rate(now) }, retry_after }
    }
}
