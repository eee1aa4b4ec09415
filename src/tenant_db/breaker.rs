//! Whether it is worth trying to connect to a tenant's database.
//!
//! Pure: it is told the time and the chance. After several failures in a row the breaker is **open**: requests are
//! answered at once. Once a period one request may try (**half-open**); if it fails the next period is twice as long,
//! if it succeeds the breaker is closed. A refused sign-in is counted apart, opens sooner and stays open longer: a
//! wrong password does not become right by trying, and each try is a line in the client's log.

use std::time::{Duration, Instant};

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The database did not answer, or refused the connection.
    Connect,
    /// It refused the credentials.
    Authentication,
}

impl Trouble {
    /// Failures in a row until the breaker opens.
    fn threshold(self) -> u32 {
        match self {
            Self::Connect => 3,
            Self::Authentication => 2,
        }
    }

    fn first_period(self) -> Duration {
        match self {
            Self::Connect => Duration::from_secs(1),
            Self::Authentication => Duration::from_secs(30),
        }
    }

    fn longest_period(self) -> Duration {
        match self {
            Self::Connect => Duration::from_secs(30),
            Self::Authentication => Duration::from_secs(300),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        trouble: Trouble,
        until: Instant,
        period: Duration,
    },
    /// One request tries.
    HalfOpen {
        trouble: Trouble,
        period: Duration,
    },
}

/// What a breaker answers to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Pass,
    /// Go on, as the only one: whoever gets this says how it went.
    Probe,
    /// Not now.
    Refuse {
        /// When it is worth coming back.
        retry_after: Duration,
    },
}

/// A tenant's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    connect_failures: u32,
    authentication_failures: u32,
}

/// How long somebody should wait while another one tries.
const WHILE_PROBING: Duration = Duration::from_secs(1);

impl Breaker {
    /// A closed breaker.
    pub(super) fn new() -> Self {
        Self { state: State::Closed, connect_failures: 0, authentication_failures: 0 }
    }

    /// Whether a request may try.
    pub(super) fn admit(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::HalfOpen { .. } => Verdict::Refuse { retry_after: WHILE_PROBING },
            State::Open { until, .. } if now < until => Verdict::Refuse { retry_after: until - now },
            State::Open { trouble, period, .. } => {
                self.state = State::HalfOpen { trouble, period };
                Verdict::Probe
            }
        }
    }

    /// Whoever was to try has not: the next request may.
    pub(super) fn abandoned(&mut self, now: Instant) {
        if let State::HalfOpen { trouble, period } = self.state {
            self.state = State::Open { trouble, until: now, period };
        }
    }

    /// A connection came about, or another record holds: all is forgotten.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// An attempt failed. `chance`, from 0 to 1, spreads the periods of many tenants and servers.
    pub(super) fn failed(&mut self, trouble: Trouble, now: Instant, chance: f64) {
        let failures = match trouble {
            Trouble::Connect => &mut self.connect_failures,
            Trouble::Authentication => &mut self.authentication_failures,
        };
        *failures = failures.saturating_add(1);
        let period = match self.state {
            State::Closed if *failures < trouble.threshold() => return,
            State::HalfOpen { trouble: before, period } if before == trouble => {
                (period * 2).min(trouble.longest_period())
            }
            // An attempt that began before the breaker opened says nothing new.
            State::Open { trouble: before, .. } if before == trouble => return,
            _ => trouble.first_period(),
        };
        let spread = period.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0));
        self.state = State::Open { trouble, until: now + spread, period };
    }

    /// Whether the last attempt failed.
    pub(super) fn is_suspicious(&self) -> bool {
        self.connect_failures + self.authentication_failures > 0
    }

    /// Why it is open, if it is.
    pub(super) fn open(&self) -> Option<Trouble> {
        match self.state {
            State::Closed => None,
            State::Open { trouble, .. } | State::HalfOpen { trouble, .. } => Some(trouble),
        }
    }

    /// How long until the next attempt, if it is open.
    pub(super) fn retry_after(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::HalfOpen { .. } => Some(WHILE_PROBING),
            State::Open { until, .. } => Some(until.saturating_duration_since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn it_opens_after_three_failures_and_lets_one_probe_a_period() {
        let mut breaker = Breaker::new();
        let start = Instant::now();
        for _ in 0..2 {
            breaker.failed(Trouble::Connect, start, MIDDLE);
            assert_eq!(breaker.admit(start), Verdict::Pass);
        }
        breaker.failed(Trouble::Connect, start, MIDDLE);
        assert_eq!(breaker.admit(start), Verdict::Refuse { retry_after: Duration::from_secs(1) });
        let later = start + Duration::from_millis(1001);
        assert_eq!(breaker.admit(later), Verdict::Probe);
        assert!(matches!(breaker.admit(later), Verdict::Refuse { .. }));
        breaker.failed(Trouble::Connect, later, MIDDLE);
        assert_eq!(breaker.retry_after(later), Some(Duration::from_secs(2)));
        breaker.reset();
        assert_eq!(breaker.admit(later), Verdict::Pass);
    }

    #[test]
    fn periods_double_up_to_a_limit_and_are_spread() {
        let mut breaker = Breaker::new();
        let mut now = Instant::now();
        for _ in 0..3 {
            breaker.failed(Trouble::Connect, now, 0.0);
        }
        let mut longest = Duration::ZERO;
        for chance in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0] {
            now += breaker.retry_after(now).unwrap();
            assert_eq!(breaker.admit(now), Verdict::Probe);
            breaker.failed(Trouble::Connect, now, chance);
            longest = breaker.retry_after(now).unwrap();
        }
        assert_eq!(longest, Duration::from_secs(36));
    }

    #[test]
    fn refused_credentials_open_sooner_and_for_longer() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        breaker.failed(Trouble::Authentication, now, MIDDLE);
        assert_eq!(breaker.admit(now), Verdict::Pass);
        breaker.failed(Trouble::Authentication, now, MIDDLE);
        assert_eq!(breaker.admit(now), Verdict::Refuse { retry_after: Duration::from_secs(30) });
        assert_eq!(breaker.open(), Some(Trouble::Authentication));
    }

    #[test]
    fn a_probe_that_never_happened_leaves_its_place() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        for _ in 0..3 {
            breaker.failed(Trouble::Connect, now, MIDDLE);
        }
        let later = now + Duration::from_secs(2);
        assert_eq!(breaker.admit(later), Verdict::Probe);
        breaker.abandoned(later);
        assert_eq!(breaker.admit(later), Verdict::Probe);
    }

    #[test]
    fn a_late_failure_does_not_prolong_the_period() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        for _ in 0..8 {
            breaker.failed(Trouble::Connect, now, MIDDLE);
        }
        assert_eq!(breaker.retry_after(now), Some(Duration::from_secs(1)));
    }
}
