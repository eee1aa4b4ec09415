//! Answers in this server's memory, within a bound in bytes that counts what each costs beyond its text.
//!
//! When it is full, answers go in the order in which they came, but for those that somebody was given since their turn came
//! last: they go to the end once more. So a flood of questions that are asked once does not wash out what is asked again
//! and again. An answer whose time is over is given to nobody; it goes when its turn comes, which two at a time are
//! looked at whenever one is added.
//!
//! It is no library's cache because the bound holds to the byte at every moment, a tenant's answers are gone when
//! [`Memory::forget`] returns, and whoever tests it says what time it is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use super::{AnswerKey, KeptAnswer};
use crate::ids::TenantId;

/// What an entry costs beyond its text: its place in the map (72 bytes, in a map that may be half empty) and in the queue
/// (48, likewise), three allocations with their headers. Measured at a million of them, it is rather less.
const OVERHEAD: usize = 400;
/// The part of all that one answer may have.
const LARGEST: usize = 8;
/// How many are looked at when one is added.
const LOOKED_AT: usize = 2;

type Place = (TenantId, AnswerKey);

/// The answers.
pub(super) struct Memory {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Place, Entry>,
    /// Every entry's place, once.
    queue: VecDeque<Place>,
    bytes: usize,
}

struct Entry {
    answer: Arc<KeptAnswer>,
    expires_at: DateTime<Utc>,
    /// Whether somebody was given it since its turn came last.
    used: bool,
}

impl Entry {
    fn bytes(&self) -> usize {
        weight(&self.answer)
    }
}

fn weight(answer: &KeptAnswer) -> usize {
    answer.content.capacity() + answer.delta_lengths.capacity() + OVERHEAD
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, bytes) = self.size();
        f.debug_struct("Memory").field("entries", &entries).field("bytes", &bytes).finish_non_exhaustive()
    }
}

impl Memory {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, tenant: TenantId, key: AnswerKey, now: DateTime<Utc>) -> Option<Arc<KeptAnswer>> {
        let mut state = self.state();
        let entry = state.entries.get_mut(&(tenant, key)).filter(|entry| entry.expires_at > now)?;
        entry.used = true;
        Some(Arc::clone(&entry.answer))
    }

    /// Whether an answer is not too large.
    pub(super) fn takes(&self, answer: &KeptAnswer) -> bool {
        weight(answer) <= self.capacity / LARGEST
    }

    /// Keeps an answer, in the place of an earlier one with this key.
    pub(super) fn put(
        &self,
        tenant: TenantId,
        key: AnswerKey,
        answer: Arc<KeptAnswer>,
        expires_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) {
        if !self.takes(&answer) {
            return;
        }
        let place = (tenant, key);
        let entry = Entry { answer, expires_at, used: false };
        let mut state = self.state();
        state.bytes += entry.bytes();
        match state.entries.insert(place, entry) {
            Some(before) => state.bytes = state.bytes.saturating_sub(before.bytes()),
            None => state.queue.push_back(place),
        }
        for _ in 0..LOOKED_AT {
            let first = state.queue.front().and_then(|place| state.entries.get(place));
            if first.is_some_and(|entry| entry.expires_at <= now) {
                state.drop_first();
            }
        }
        while state.bytes > self.capacity && state.next_turn(now) {}
    }

    pub(super) fn forget(&self, tenant: TenantId) {
        let mut state = self.state();
        let state = &mut *state;
        let bytes = &mut state.bytes;
        state.entries.retain(|(of, _), entry| {
            let stays = *of != tenant;
            if !stays {
                *bytes = bytes.saturating_sub(entry.bytes());
            }
            stays
        });
        state.queue.retain(|(of, _)| *of != tenant);
    }

    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.entries.len(), state.bytes)
    }
}

impl State {
    /// The first in the queue goes, or to its end if it was used. `false` if there is none.
    fn next_turn(&mut self, now: DateTime<Utc>) -> bool {
        let Some(place) = self.queue.front().copied() else { return false };
        match self.entries.get_mut(&place) {
            Some(entry) if entry.used && entry.expires_at > now => {
                entry.used = false;
                self.queue.rotate_left(1);
            }
            _ => self.drop_first(),
        }
        true
    }

    fn drop_first(&mut self) {
        let entry = self.queue.pop_front().and_then(|place| self.entries.remove(&place));
        self.bytes = self.bytes.saturating_sub(entry.map_or(0, |entry| entry.bytes()));
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn key(number: u64) -> AnswerKey {
        let mut hash = [7; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        AnswerKey::new(hash)
    }

    fn answer(length: usize) -> Arc<KeptAnswer> {
        Arc::new(KeptAnswer { content: "a".repeat(length), delta_lengths: vec![] })
    }

    fn keep(memory: &Memory, tenant: TenantId, number: u64, minutes: i64) {
        memory.put(tenant, key(number), answer(30), now() + TimeDelta::minutes(minutes), now());
    }

    #[test]
    fn what_is_kept_is_the_tenants_own_and_ends_in_time() {
        let (memory, tenant) = (Memory::new(100_000), TenantId::new());
        keep(&memory, tenant, 1, 5);
        let at = |seconds| memory.get(tenant, key(1), now() + TimeDelta::seconds(seconds)).is_some();
        assert!(at(0) && at(299) && !at(300));
        assert!(memory.get(TenantId::new(), key(1), now()).is_none());
        assert!(memory.get(tenant, key(2), now()).is_none());
        // One that is kept again is kept from then on, and counted once.
        keep(&memory, tenant, 1, 10);
        assert!(at(300));
        assert_eq!(memory.size(), (1, 30 + OVERHEAD));
    }

    #[test]
    fn a_hundred_thousand_answers_stay_within_the_bound_and_what_is_used_stays() {
        let (memory, tenant) = (Memory::new(100 * (30 + OVERHEAD)), TenantId::new());
        for number in 0..100_000 {
            keep(&memory, tenant, number, 60);
            let (entries, bytes) = memory.size();
            assert!(entries <= 100 && bytes <= 100 * (30 + OVERHEAD), "{entries} answers, {bytes} bytes");
            assert!(memory.get(tenant, key(0), now()).is_some(), "it is asked for all the time");
        }
        let state = memory.state();
        assert_eq!((state.entries.len(), state.queue.len()), (100, 100));
        assert!(state.entries.capacity() < 1_000 && state.queue.capacity() < 1_000);
    }

    #[test]
    fn what_is_over_makes_room_first_and_too_large_a_one_is_not_kept() {
        let (memory, tenant) = (Memory::new(100 * (30 + OVERHEAD)), TenantId::new());
        for number in 0..50 {
            keep(&memory, tenant, number, 1);
        }
        let later = now() + TimeDelta::minutes(1);
        for number in 50..70 {
            memory.put(tenant, key(number), answer(30), later + TimeDelta::minutes(5), later);
        }
        assert_eq!(memory.size().0, 50 - 40 + 20, "two go for each one that comes");
        memory.put(tenant, key(99), answer(100 * (30 + OVERHEAD) / 8), now() + TimeDelta::minutes(1), now());
        assert!(memory.get(tenant, key(99), now()).is_none());
        assert_eq!(Memory::new(0).size(), (0, 0));
        keep(&Memory::new(0), tenant, 1, 5);
    }

    #[test]
    fn a_tenant_is_forgotten_and_the_others_are_not() {
        let (memory, one, other) = (Memory::new(1_000_000), TenantId::new(), TenantId::new());
        for number in 0_u64..100 {
            keep(&memory, if number.is_multiple_of(2) { one } else { other }, number, 5);
        }
        memory.forget(one);
        assert_eq!(memory.size(), (50, 50 * (30 + OVERHEAD)));
        assert!(memory.get(one, key(0), now()).is_none() && memory.get(other, key(1), now()).is_some());
        memory.forget(other);
        assert_eq!(memory.size(), (0, 0));
        assert!(memory.state().queue.is_empty());
    }
}
