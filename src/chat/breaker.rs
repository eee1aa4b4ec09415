//! Whether an AI key is called at all. One that has failed again and again is left alone for a while; then one call a
//! period finds out whether it works again, and all others go to the next key.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::providers::ProviderError;

/// Failures in a row after which a key is left alone.
const FAILURES: u32 = 5;
/// How long, at first. It doubles with every trial that fails.
const FIRST_PERIOD: Duration = Duration::from_secs(2);
/// And at last.
const LONGEST_PERIOD: Duration = Duration::from_secs(60);

/// The breaker of one key of one tenant.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when the key is left alone, and for how long that was meant to be.
    open: Option<(Instant, Duration)>,
    /// Whether a call finds out just now.
    trial: bool,
}

/// Leave to make one call. Dropped without a word it says nothing about the key.
#[derive(Debug)]
pub(super) struct Leave {
    breaker: Arc<Breaker>,
    trial: bool,
}

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to call, or how long to wait.
    pub(super) fn admit(self: &Arc<Self>, now: Instant) -> Result<Leave, Duration> {
        let mut state = self.lock();
        let trial = match state.open {
            None => false,
            Some((until, _)) if now < until => return Err(until.duration_since(now)),
            Some((_, period)) if state.trial => return Err(period),
            Some(_) => true,
        };
        state.trial |= trial;
        drop(state);
        Ok(Leave { breaker: Arc::clone(self), trial })
    }
}

impl Leave {
    /// The key answers.
    pub(super) fn works(mut self) {
        self.trial = false;
        let mut state = self.breaker.lock();
        if state.failures > 0 || state.open.is_some() {
            *state = State::default();
        }
    }

    /// The call failed.
    pub(super) fn fails(mut self, error: &ProviderError, now: Instant) {
        if !is_the_keys_fault(error) {
            return;
        }
        let trial = std::mem::take(&mut self.trial);
        let mut state = self.breaker.lock();
        state.failures = state.failures.saturating_add(1);
        if trial || (state.open.is_none() && state.failures >= FAILURES) {
            let period = match state.open {
                Some((_, period)) => (period * 2).min(LONGEST_PERIOD),
                None => FIRST_PERIOD,
            };
            state.open = now.checked_add(period).map(|until| (until, period));
        }
        if trial {
            state.trial = false;
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.trial {
            self.breaker.lock().trial = false;
        }
    }
}

/// Whether the next call with this key is likely to fail the same way. What is wrong with a request or a model's name
/// says nothing of the next.
fn is_the_keys_fault(error: &ProviderError) -> bool {
    match error {
        ProviderError::InvalidKey(_)
        | ProviderError::RateLimited { .. }
        | ProviderError::Unavailable(_)
        | ProviderError::Timeout(_)
        | ProviderError::Interrupted(_) => true,
        ProviderError::ModelNotFound(_)
        | ProviderError::BadRequest(_)
        | ProviderError::RefusedAddress(_)
        | ProviderError::Unsupported(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> ProviderError {
        ProviderError::Unavailable("down".into())
    }

    fn opened(now: Instant) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::default());
        for _ in 0..FAILURES {
            breaker.admit(now).unwrap().fails(&down(), now);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_forgets_them() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..3 {
            for _ in 1..FAILURES {
                breaker.admit(now).unwrap().fails(&down(), now);
            }
            breaker.admit(now).unwrap().works();
        }
        assert_eq!(opened(now).admit(now).unwrap_err(), FIRST_PERIOD);
    }

    #[test]
    fn one_trial_a_period_finds_out() {
        let mut now = Instant::now();
        let breaker = opened(now);
        now += FIRST_PERIOD;
        let trial = breaker.admit(now).unwrap();
        assert!(breaker.admit(now).is_err(), "a second call while the first finds out");
        trial.fails(&down(), now);
        assert_eq!(breaker.admit(now).unwrap_err(), FIRST_PERIOD * 2);
        now += FIRST_PERIOD * 2;
        // A trial that was given up says nothing, and the next call is one.
        drop(breaker.admit(now).unwrap());
        breaker.admit(now).unwrap().works();
        breaker.admit(now).unwrap();
        breaker.admit(now).unwrap();
    }

    #[test]
    fn the_period_has_an_end() {
        let mut now = Instant::now();
        let breaker = opened(now);
        for _ in 0..20 {
            now += LONGEST_PERIOD;
            breaker.admit(now).unwrap().fails(&down(), now);
        }
        assert_eq!(breaker.admit(now).unwrap_err(), LONGEST_PERIOD);
    }

    #[test]
    fn a_bad_request_is_not_the_keys_fault() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..20 {
            breaker.admit(now).unwrap().fails(&ProviderError::BadRequest("no".into()), now);
        }
        assert!(breaker.admit(now).is_ok());
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_do_not_lengthen_the_period() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        let leaves: Vec<_> = (0..20).map(|_| breaker.admit(now).unwrap()).collect();
        leaves.into_iter().for_each(|leave| leave.fails(&down(), now));
        assert_eq!(breaker.admit(now).unwrap_err(), FIRST_PERIOD);
    }
}
