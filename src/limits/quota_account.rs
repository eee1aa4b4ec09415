//! A month's quota as the store keeps it: what was used, and what servers hold of the rest. Pure.
//!
//! What was used and what is held never pass the limit together, unless the limit was lowered meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::members::Members;

/// A month's quota of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QuotaAccount {
    /// Requests that were answered.
    pub(super) used: u64,
    /// What servers hold.
    pub(super) leases: BTreeMap<Uuid, Lease>,
}

/// What one server was given, and what of that was answered. The rest is reserved or not in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) granted: u64,
    pub(super) settled: u64,
}

impl Lease {
    fn outstanding(self) -> u64 {
        self.granted.saturating_sub(self.settled)
    }
}

/// What a server says and asks in a round.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ask {
    /// The limit.
    pub(super) limit: u64,
    /// How many it has settled in all.
    pub(super) settled: u64,
    /// How many are reserved.
    pub(super) reserved: u64,
    /// How many that are not in use it gives back.
    pub(super) gives: u64,
    /// How many are waited for.
    pub(super) wants: u64,
    /// How many it would like to have beyond, ahead of need.
    pub(super) ahead: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// What the server was given in all.
    pub(super) granted: u64,
    /// What it has settled in all, as far as the account was ever told.
    pub(super) settled: u64,
    /// What was used in all, by all servers.
    pub(super) used: u64,
    /// What nobody used or holds.
    pub(super) left: u64,
    /// How many the server may hold without need.
    pub(super) ahead: u64,
}

/// The most that a server holds without need: a thousandth of the limit.
pub(super) fn block(limit: u64) -> u64 {
    (limit / 1000).max(1)
}

impl QuotaAccount {
    /// One server's round. Safe to repeat with the same account.
    pub(super) fn settle(&mut self, me: Uuid, ask: &Ask, members: &Members, now: i64) -> Settled {
        let known = self.leases.remove(&me).unwrap_or_default();
        // Whatever a server that is gone had reserved was never answered: its answers end after they are settled.
        self.leases.retain(|id, _| members.may_answer(*id, now));
        self.used += ask.settled.saturating_sub(known.settled);
        let settled = ask.settled.max(known.settled);
        // What is reserved here will be answered, and counts, whatever the store remembers.
        let mut granted = known.granted.max(settled + ask.reserved);
        granted -= ask.gives.min(granted - settled - ask.reserved);
        let held: u64 = self.leases.values().map(|lease| lease.outstanding()).sum();
        let mut left = ask.limit.saturating_sub(self.used).saturating_sub(held).saturating_sub(granted - settled);
        let needed = ask.wants.min(left);
        granted += needed;
        left -= needed;
        // Near the end nobody holds what another may need, nor of a limit so small that what all of them hold is more than
        // a hundredth of it.
        let (servers, block) = (u64::from(members.live()), block(ask.limit));
        let is_plenty = left >= (ask.limit / 50).max(10 * servers * block) && servers * block <= ask.limit / 100;
        let ahead = if is_plenty { block } else { 0 };
        let fetched = ask.ahead.min(ahead);
        granted += fetched;
        left -= fetched;
        if granted > settled {
            self.leases.insert(me, Lease { granted, settled });
        } else if granted > 0 {
            // Remembered while it lives, so that what it settled is not counted twice.
            self.leases.insert(me, Lease { granted: settled, settled });
        }
        Settled { granted, settled, used: self.used, left, ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_counts_once_and_what_is_given_back_not_at_all() {
        let a = Uuid::from_u128(1);
        let (mut account, alone) = (QuotaAccount::default(), Members::of(&[a]));
        let first = account.settle(a, &Ask { limit: 100, wants: 3, ahead: 1, ..Ask::default() }, &alone, 0);
        assert_eq!(first, Settled { granted: 4, settled: 0, used: 0, left: 96, ahead: 1 });
        let ask = Ask { limit: 100, settled: 2, reserved: 1, gives: 1, ..Ask::default() };
        assert_eq!(account.settle(a, &ask, &alone, 0), Settled { granted: 3, settled: 2, used: 2, left: 97, ahead: 1 });
        // An answer that was lost: the same again.
        assert_eq!(account.settle(a, &ask, &alone, 0), Settled { granted: 3, settled: 2, used: 2, left: 97, ahead: 1 });
    }

    #[test]
    fn the_last_ones_are_held_by_nobody_without_need() {
        let [a, b] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let (mut account, both) = (QuotaAccount::default(), Members::of(&[a, b]));
        let ask = Ask { limit: 10, wants: 1, ahead: 1, ..Ask::default() };
        assert_eq!(account.settle(a, &ask, &both, 0).granted, 1);
        assert_eq!(account.settle(b, &Ask { wants: 20, ..ask }, &both, 0).granted, 9);
        assert_eq!(account.settle(a, &Ask { reserved: 1, ..ask }, &both, 0).granted, 1);
    }

    #[test]
    fn what_a_server_that_is_gone_had_reserved_is_free_and_what_it_had_settled_is_used() {
        let [a, b] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let mut account = QuotaAccount::default();
        account.settle(a, &Ask { limit: 10, wants: 8, ..Ask::default() }, &Members::of(&[a, b]), 0);
        account.settle(a, &Ask { limit: 10, settled: 3, reserved: 5, ..Ask::default() }, &Members::of(&[a, b]), 0);
        let both = account.settle(b, &Ask { limit: 10, wants: 10, ..Ask::default() }, &Members::of(&[a, b]), 0);
        assert_eq!((both.granted, both.used), (2, 3));
        let gone = Members::of(&[b]).with_gone(a);
        let all = account.settle(b, &Ask { limit: 10, reserved: 2, wants: 10, ..Ask::default() }, &gone, 0);
        assert_eq!((all.granted, all.used, all.left), (7, 3, 0));
    }
}
