//! The clock, passed in wherever time matters, so that expiry, rotation and invoices are tested without sleeping.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// A clock as it is handed around: one for the whole process.
pub type SharedClock = Arc<dyn Clock>;

/// Tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant in UTC, in whole microseconds.
    fn now(&self) -> DateTime<Utc>;
}

/// The computer's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The system clock in the shape the rest of the program takes it.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the wall clock enters the program")]
    fn now(&self) -> DateTime<Utc> {
        // Postgres keeps microseconds. An instant with nanoseconds would differ from itself once stored.
        Utc::now().trunc_subsecs(6)
    }
}

/// A clock that stands still until it is moved, for tests. Share it as an `Arc` and keep one handle to move it.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<DateTime<Utc>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: DateTime<Utc>) -> Self {
        Self { now: Mutex::new(now.trunc_subsecs(6)) }
    }

    /// Shows `now` from here on, which may be earlier than before.
    pub fn set(&self, now: DateTime<Utc>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now.trunc_subsecs(6);
    }

    /// Moves the clock by `step`, which may be negative. At the end of representable time it stands still.
    pub fn advance(&self, step: TimeDelta) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(moved) = now.checked_add_signed(step) {
            *now = moved.trunc_subsecs(6);
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_clock_moves_only_when_told() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let shared: SharedClock = clock.clone();
        assert_eq!(shared.now(), DateTime::UNIX_EPOCH);
        clock.advance(TimeDelta::hours(3));
        assert_eq!(shared.now().timestamp(), 3 * 3600);
        clock.set(DateTime::UNIX_EPOCH);
        clock.advance(TimeDelta::MAX);
        assert_eq!(shared.now(), DateTime::UNIX_EPOCH);
    }

    #[test]
    fn the_system_clock_has_whole_microseconds() {
        assert_eq!(SystemClock::shared().now().timestamp_subsec_nanos() % 1000, 0);
    }
}
