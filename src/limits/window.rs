//! What this server does with the permits of one limit that it holds: pure, in milliseconds of a clock that only goes
//! forward.
//!
//! A permit that was used cools until it may be used again, never less than [`COOLING`]. Uses are kept in steps of
//! [`STEP`], rounded up, so that memory is bounded by the window and not by the limit.

use std::collections::VecDeque;

/// How long a permit that was used is not used again: the minute, and a little for requests that take longer from
/// here to wherever somebody counts them than the one before them.
pub(super) const COOLING: u64 = 60_300;
/// Uses this close to each other are one entry.
const STEP: u64 = 50;

/// The permits of one limit that this server holds.
#[derive(Debug, Default)]
pub(super) struct Window {
    held: u32,
    cooling: u32,
    /// Put aside while a round may give them away.
    aside: u32,
    /// What is given away as soon as it has cooled.
    owed: u32,
    /// Until when how many cool, earliest first.
    uses: VecDeque<(u64, u32)>,
}

/// A permit that was taken, to put it back if it was not used after all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use(u64);

impl Window {
    /// What has cooled by now is free.
    pub(super) fn advance(&mut self, now: u64) {
        while let Some((until, count)) = self.uses.front().copied()
            && until <= now
        {
            self.cooling = self.cooling.saturating_sub(count);
            self.uses.pop_front();
        }
    }

    /// Permits that may be used now.
    pub(super) fn free(&self) -> u32 {
        self.held.saturating_sub(self.cooling).saturating_sub(self.aside).saturating_sub(self.owed)
    }

    /// Permits that are here, in whatever state.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Permits that were used within the last minute.
    pub(super) fn cooling(&self) -> u32 {
        self.cooling
    }

    /// Permits that are neither cooling nor put aside; some of them may be owed.
    pub(super) fn cool(&self) -> u32 {
        self.held.saturating_sub(self.cooling).saturating_sub(self.aside)
    }

    /// Uses a permit, unless none is free.
    pub(super) fn take(&mut self, now: u64) -> Option<Use> {
        self.advance(now);
        if self.free() == 0 {
            return None;
        }
        let until = (now + COOLING + 1).next_multiple_of(STEP);
        match self.uses.back_mut() {
            Some((last, count)) if *last >= until => *count += 1,
            _ => self.uses.push_back((until, 1)),
        }
        self.cooling += 1;
        Some(Use(self.uses.back().map_or(until, |(last, _)| *last)))
    }

    /// A permit that was taken was not used.
    pub(super) fn put_back(&mut self, taken: Use) {
        if let Some((_, count)) = self.uses.iter_mut().rev().find(|(until, count)| *until == taken.0 && *count > 0) {
            *count -= 1;
            self.cooling = self.cooling.saturating_sub(1);
        }
    }

    /// Puts what is not cooling aside, so that it can be given away, but for so many that are not owed to others. Returns how
    /// many.
    pub(super) fn put_aside(&mut self, keep: u32) -> u32 {
        let free = self.held.saturating_sub(self.cooling);
        self.aside = free.saturating_sub(keep).max(self.owed.min(free));
        self.aside
    }

    /// So many of those put aside may have been given away: they are not used before it is known that they were not.
    pub(super) fn give(&mut self, count: u32) {
        self.held = self.held.saturating_sub(count);
        self.aside = 0;
    }

    /// The store's word on what this server holds, and what others are to get of it.
    pub(super) fn hold(&mut self, held: u32, owed: u32) {
        self.held = held;
        self.owed = owed;
        self.aside = 0;
    }

    /// Nothing is held any more. What was used goes on cooling.
    pub(super) fn void(&mut self) {
        self.hold(0, 0);
    }

    /// When the next permit has cooled.
    pub(super) fn next_free(&self) -> Option<u64> {
        self.uses.iter().find(|(_, count)| *count > 0).map(|(until, _)| *until)
    }

    /// When all have cooled.
    pub(super) fn all_free(&self) -> Option<u64> {
        self.uses.iter().rev().find(|(_, count)| *count > 0).map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(held: u32) -> Window {
        let mut window = Window::default();
        window.hold(held, 0);
        window
    }

    #[test]
    fn a_permit_cools_for_a_minute_at_least_and_not_much_longer() {
        let mut window = holding(2);
        assert!(window.take(1_000).is_some() && window.take(1_001).is_some() && window.take(1_002).is_none());
        assert!(window.take(1_000 + COOLING).is_none());
        assert!(window.take(1_001 + COOLING + STEP).is_some() && window.take(1_001 + COOLING + STEP).is_some());
        assert!(window.take(1_001 + COOLING + STEP).is_none());
    }

    #[test]
    fn what_was_not_used_is_free_again() {
        let mut window = holding(1);
        let taken = window.take(5).unwrap();
        window.put_back(taken);
        assert_eq!((window.cooling(), window.free(), window.next_free()), (0, 1, None));
        assert!(window.take(6).is_some() && window.take(7).is_none());
    }

    #[test]
    fn what_is_put_aside_given_or_owed_is_not_used() {
        let mut window = holding(3);
        window.take(0);
        assert_eq!(window.put_aside(0), 2);
        assert!(window.take(1).is_none());
        window.hold(3, 0);
        assert!(window.take(1).is_some());
        window.put_aside(0);
        window.give(1);
        assert_eq!((window.held, window.free()), (2, 0));
        window.hold(3, 1);
        assert_eq!((window.free(), window.cool()), (0, 1));
        assert_eq!(window.put_aside(5), 1, "what is owed is not kept");
        window.hold(3, 0);
        assert_eq!((window.put_aside(1), window.free()), (0, 1));
        // A store that has lost what it knew: what cools is more than what is held, and nothing is free.
        window.hold(1, 0);
        assert_eq!(window.free(), 0);
    }
}
