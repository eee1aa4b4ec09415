//! Who holds the permits of one limit, as the store keeps it: pure.
//!
//! The sum of what is held never passes the limit, but for what a limit that was lowered, or a store that lost its
//! memory, leaves cooling; then nothing is given out until it has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::members::Members;

/// How long what a server wanted counts, in milliseconds.
const WANT_LASTS: i64 = 2_000;

/// The servers that hold permits of a limit, or want some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RateAccount {
    pub(super) holdings: BTreeMap<Uuid, Holding>,
}

/// What one server holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holding {
    /// Its permits, whether they cool or are free.
    pub(super) held: u32,
    /// Those that were free when it last said so. A hint only: it uses them without a word.
    pub(super) spare: u32,
    /// What it wanted and did not get.
    #[serde(default)]
    pub(super) wants: u32,
    /// When it last said so, in milliseconds.
    at: i64,
    /// When the first of those that cooled then would be free.
    frees_at: i64,
}

/// What a server says and asks of one limit in a round.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ask {
    /// The limit.
    pub(super) limit: u32,
    /// Permits used within the last minute.
    pub(super) cooling: u32,
    /// Free permits that nobody uses during the round, so that they can be given away.
    pub(super) aside: u32,
    /// How many requests wait for one.
    pub(super) wants: u32,
    /// Whether all that is aside is to be given back.
    pub(super) leaves: bool,
    /// In how many milliseconds the first that cools is free.
    pub(super) frees_in: i64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// What the server holds from now on,
    pub(super) held: u32,
    /// after it gave these away,
    pub(super) given: u32,
    /// and got these.
    pub(super) granted: u32,
    /// What nobody holds.
    pub(super) pool: u32,
    /// What others had free when they last said so.
    pub(super) spare_elsewhere: u32,
    /// How many more are held than the limit allows, for it was lowered.
    pub(super) over: u32,
    /// What is to be given away once it has cooled, for others have less than their part and want more.
    pub(super) owed: u32,
    /// What was wanted and is not there.
    pub(super) missing: u32,
    /// In how many milliseconds another server has a permit free, as far as it is known.
    pub(super) frees_elsewhere_in: Option<i64>,
}

impl RateAccount {
    /// One server's round. Safe to repeat with the same account.
    pub(super) fn settle(&mut self, me: Uuid, ask: &Ask, members: &Members, now: i64) -> Settled {
        let stored = self.holdings.remove(&me).map_or(0, |holding| holding.held);
        self.holdings.retain(|id, _| members.may_hold(*id, now));
        // What cools here was used and counts, whatever the store remembers.
        let mut held = stored.max(ask.cooling);
        let others = || self.holdings.values().filter(|holding| holding.wants > 0 && now - holding.at < WANT_LASTS);
        let elsewhere: i64 = self.holdings.values().map(|holding| i64::from(holding.held)).sum();
        let mut pool = i64::from(ask.limit) - elsewhere - i64::from(held);
        let wanted: i64 = others().map(|holding| i64::from(holding.wants)).sum();
        let aside = ask.aside.min(held.saturating_sub(ask.cooling));
        let given = if ask.leaves {
            aside
        } else if pool < 0 {
            aside.min(count(-pool))
        } else if wanted > pool {
            aside.min(count(wanted - pool).max(aside / 2))
        } else {
            0
        };
        held -= given;
        pool += i64::from(given);
        let fair = ask.limit.checked_div(members.live()).unwrap_or(ask.limit).max(1);
        let granted = if ask.leaves || given > 0 { 0 } else { grant(ask.wants, count(pool), held, fair, wanted > 0) };
        held += granted;
        pool -= i64::from(granted);
        let missing = ask.wants.saturating_sub(granted);
        let poor: u32 = others().map(|holding| holding.wants.min(fair.saturating_sub(holding.held))).sum();
        let owed = if pool > 0 || ask.leaves { 0 } else { poor.min(held.saturating_sub(fair)) };
        // Nobody gives who is not there.
        let spare = self.holdings.iter().filter(|(id, _)| members.is_live(**id));
        let settled = Settled {
            held,
            given,
            granted,
            pool: count(pool),
            over: count(-pool),
            spare_elsewhere: spare.map(|(_, holding)| holding.spare).sum(),
            owed,
            missing,
            frees_elsewhere_in: self.frees_in(now),
        };
        if held > 0 || missing > 0 {
            let (spare, frees_at) = (held.saturating_sub(ask.cooling), now + ask.frees_in);
            self.holdings.insert(me, Holding { held, spare, wants: missing, at: now, frees_at });
        }
        settled
    }

    fn frees_in(&self, now: i64) -> Option<i64> {
        let cooling = self.holdings.values().filter(|holding| holding.held > holding.spare && holding.frees_at > now);
        cooling.map(|holding| holding.frees_at - now).min()
    }
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

/// What is wanted, and some ahead of need: up to the fair part, then half of what is left; nothing while others want.
fn grant(wants: u32, pool: u32, held: u32, fair: u32, contended: bool) -> u32 {
    let needed = wants.min(pool);
    if wants == 0 || contended {
        return needed;
    }
    let (left, held) = (pool - needed, held + needed);
    let ahead = if held < fair { left.min(fair - held) } else { (left / 2).min(wants.max(4)) };
    needed + ahead
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(limit: u32, wants: u32) -> Ask {
        Ask { limit, wants, ..Ask::default() }
    }

    fn total(account: &RateAccount) -> u32 {
        account.holdings.values().map(|holding| holding.held).sum()
    }

    #[test]
    fn a_server_that_is_alone_takes_all_and_several_take_their_parts() {
        let [a, b, c] = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];
        let mut account = RateAccount::default();
        assert_eq!(account.settle(a, &ask(600, 1), &Members::of(&[a]), 0).held, 600);
        let (mut account, all) = (RateAccount::default(), Members::of(&[a, b, c]));
        assert_eq!([a, b].map(|id| account.settle(id, &ask(600, 1), &all, 0).held), [200, 200]);
        // Whoever needs more than that gets it while there is some.
        let more = account.settle(a, &Ask { cooling: 200, ..ask(600, 30) }, &all, 0);
        assert_eq!((more.held, more.granted, more.pool), (260, 60, 140));
        assert_eq!(total(&account), 460);
    }

    #[test]
    fn nothing_is_left_then_others_give_what_they_have_free() {
        let [a, b] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let (mut account, both) = (RateAccount::default(), Members::of(&[a, b]));
        account.settle(a, &ask(10, 1), &Members::of(&[a]), 0);
        let none = account.settle(b, &ask(10, 2), &both, 10);
        assert_eq!((none.granted, none.missing, none.spare_elsewhere), (0, 2, 10));
        let gives = account.settle(a, &Ask { limit: 10, cooling: 1, aside: 9, ..Ask::default() }, &both, 20);
        assert_eq!((gives.given, gives.held, gives.pool), (4, 6, 4));
        assert_eq!(account.settle(b, &ask(10, 2), &both, 30).granted, 4);
        assert_eq!(total(&account), 10);
    }

    #[test]
    fn a_limit_that_was_lowered_and_a_store_that_forgot_give_nothing_out_before_it_fits() {
        let [a, b] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let (mut account, both) = (RateAccount::default(), Members::of(&[a, b]));
        account.settle(a, &ask(100, 1), &Members::of(&[a]), 0);
        let lowered = account.settle(a, &Ask { limit: 10, cooling: 50, aside: 50, ..Ask::default() }, &both, 0);
        assert_eq!((lowered.given, lowered.held), (50, 50));
        assert_eq!(account.settle(b, &ask(10, 5), &both, 0).granted, 0);
        let mut forgotten = RateAccount::default();
        assert_eq!(forgotten.settle(a, &Ask { cooling: 50, ..ask(10, 1) }, &both, 0).held, 50);
        assert_eq!(forgotten.settle(b, &ask(10, 1), &both, 0).granted, 0);
    }
}
