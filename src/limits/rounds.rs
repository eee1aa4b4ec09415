//! One exchange with a store at a time: whatever is asked for meanwhile goes together in the next one.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

/// Accounts of one exchange at most.
const BATCH: usize = 256;

/// The keys that the next round is about.
#[derive(Debug)]
pub(super) struct Rounds<K> {
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    asked: HashSet<K>,
    /// Whether a task is at work, which takes whatever is asked for.
    running: bool,
}

impl<K> Default for Rounds<K> {
    fn default() -> Self {
        Self { state: Mutex::new(State { asked: HashSet::new(), running: false }) }
    }
}

impl<K: Copy + Eq + Hash> Rounds<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has these be part of the next round. Whether the caller has to see to it: with [`Self::work`], in a task.
    pub(super) fn ask(&self, keys: impl IntoIterator<Item = K>) -> bool {
        // Something may be dropped when nothing runs any more.
        if Handle::try_current().is_err() {
            return false;
        }
        let mut state = self.state();
        state.asked.extend(keys);
        !state.asked.is_empty() && !std::mem::replace(&mut state.running, true)
    }

    /// Carries out one round after the other, until nothing is asked for any more. If it breaks off, the next who asks
    /// starts another.
    pub(super) async fn work<F: Future<Output = ()>>(&self, round: impl Fn(Vec<K>) -> F) {
        let working = Working { rounds: self, done: false };
        loop {
            let keys = self.next();
            if keys.is_empty() {
                return working.done();
            }
            round(keys).await;
        }
    }

    /// What the next round is about; nothing once all was asked for.
    fn next(&self) -> Vec<K> {
        let mut state = self.state();
        let batch: Vec<K> = state.asked.iter().copied().take(BATCH).collect();
        for key in &batch {
            state.asked.remove(key);
        }
        // Under the same lock: whoever asks from now on finds nobody at work.
        state.running = !batch.is_empty();
        batch
    }
}

/// A task that is at work.
struct Working<'a, K: Copy + Eq + Hash> {
    rounds: &'a Rounds<K>,
    done: bool,
}

impl<K: Copy + Eq + Hash> Working<'_, K> {
    /// There was nothing left to do, and somebody else may be at work by now.
    fn done(mut self) {
        self.done = true;
    }
}

impl<K: Copy + Eq + Hash> Drop for Working<'_, K> {
    fn drop(&mut self) {
        if !self.done {
            self.rounds.state().running = false;
        }
    }
}
