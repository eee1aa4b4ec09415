//! Slowing and locking of guessed passwords, by the account that is guessed.
//!
//! An attempt is counted before its password is checked, in one statement that also decides whether it is admitted:
//! guesses made at the same time cannot slip through together. Success forgets the count. Accounts that do not exist
//! are counted just the same, so being locked tells nothing. A refused attempt changes nothing: whoever waits as long
//! as was asked gets in, however often somebody else tries meanwhile.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;

use super::{AccessError, store, tenant_store};
use crate::tenant_db::GenericClient;

/// Attempts after which the next is made to wait.
const FREE_ATTEMPTS: usize = 5;
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// A count that nothing was added to for so long is forgotten: a person's slips over months are not an attack.
pub(super) const FORGOTTEN_AFTER: TimeDelta = TimeDelta::days(1);

/// Seconds to wait after each number of failures, the first entry for one failure. The last holds for all beyond.
pub(super) const WAITS: [i32; 15] = waits();

const fn waits() -> [i32; 15] {
    let mut waits = [0; 15];
    let mut failures = FREE_ATTEMPTS;
    while failures <= waits.len() {
        let seconds = 1u64 << (failures - FREE_ATTEMPTS);
        let seconds = if seconds > LONGEST_WAIT.as_secs() { LONGEST_WAIT.as_secs() } else { seconds };
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which checks the bounds")]
        {
            waits[failures - 1] = seconds as i32;
        }
        failures += 1;
    }
    waits
}

/// How long the next attempt has to wait after so many failures in a row.
fn wait_after(failures: i32) -> Duration {
    let index = usize::try_from(failures).unwrap_or(0).min(WAITS.len());
    let seconds = index.checked_sub(1).and_then(|index| WAITS.get(index)).copied().unwrap_or(0);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// What is left of the wait.
fn remaining(failures: i32, last_attempt: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    let wait = wait_after(failures);
    // A clock that is behind that of the server which counted must not make the wait longer.
    let passed = (now - last_attempt).to_std().unwrap_or(Duration::ZERO);
    wait.saturating_sub(passed)
}

/// What is counted, as the hash that is stored: addresses typed by mistake are not kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject([u8; 32]);

impl Subject {
    /// An account, by its address in lower case.
    pub(super) fn account(email: &str) -> Self {
        Self(Sha256::digest(email).into())
    }

    /// An account of a tenant that does not exist or is not in service, counted in the platform's database instead.
    pub(super) fn account_elsewhere(tenant: &str, email: &str) -> Self {
        // The NUL keeps these apart from super admins' addresses, which hold none.
        Self(Sha256::digest(format!("{tenant}\0{email}")).into())
    }

    /// The hash.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An attempt as a store is asked to count it.
pub(super) struct Attempt {
    pub(super) subject: Subject,
    pub(super) now: DateTime<Utc>,
    /// Counts older than this start again.
    pub(super) forget_before: DateTime<Utc>,
}

impl Attempt {
    fn new(subject: Subject, now: DateTime<Utc>) -> Self {
        Self { subject, now, forget_before: now - FORGOTTEN_AFTER }
    }

    /// The refusal, from the count that stands against the subject.
    fn refused(&self, standing: Option<(i32, DateTime<Utc>)>) -> AccessError {
        // Without a count, a success has just forgotten it; the next attempt is admitted.
        let wait = standing.map_or(Duration::ZERO, |(failures, last)| remaining(failures, last, self.now));
        AccessError::TooManyAttempts { retry_after: wait }
    }
}

/// Counts an attempt in the platform's database, or refuses it. Returns how many have failed in a row if this one
/// does.
pub(super) async fn admit(pool: &PgPool, subject: Subject, now: DateTime<Utc>) -> Result<i32, AccessError> {
    let attempt = Attempt::new(subject, now);
    if let Some(failures) = store::count_attempt(pool, &attempt).await? {
        return Ok(failures);
    }
    Err(attempt.refused(store::find_attempts(pool, subject).await?))
}

/// Whether so many failures in a row make the next attempt wait: from then on they are worth a record.
pub(super) fn is_engaged(failures: i32) -> bool {
    !wait_after(failures).is_zero()
}

/// Counts an attempt in a tenant's database, or refuses it.
pub(super) async fn admit_in_tenant(
    client: &impl GenericClient,
    subject: Subject,
    now: DateTime<Utc>,
) -> Result<(), AccessError> {
    let attempt = Attempt::new(subject, now);
    if tenant_store::count_attempt(client, &attempt).await? {
        return Ok(());
    }
    Err(attempt.refused(tenant_store::find_attempts(client, subject).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_quarter_of_an_hour() {
        let seconds: Vec<u64> = (0..=20).map(|failures| wait_after(failures).as_secs()).collect();
        assert_eq!(seconds[..6], [0, 0, 0, 0, 0, 1]);
        assert_eq!(seconds[6..15], [2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert!(seconds[15..].iter().all(|wait| *wait == 900));
        assert_eq!(wait_after(i32::MAX), LONGEST_WAIT);
        assert_eq!(wait_after(-1), Duration::ZERO);
    }

    #[test]
    fn it_engages_when_the_next_attempt_has_to_wait() {
        assert_eq!([0, 1, 4, 5, 6, i32::MAX].map(is_engaged), [false, false, false, true, true, true]);
    }

    #[test]
    fn what_remains_shrinks_and_never_exceeds_the_wait() {
        let last = DateTime::UNIX_EPOCH;
        assert_eq!(remaining(8, last, last), Duration::from_secs(8));
        assert_eq!(remaining(8, last, last + TimeDelta::milliseconds(2500)), Duration::from_millis(5500));
        assert_eq!(remaining(8, last, last + TimeDelta::seconds(9)), Duration::ZERO);
        assert_eq!(remaining(8, last, last - TimeDelta::hours(1)), Duration::from_secs(8));
    }

    #[test]
    fn subjects_differ_by_tenant_and_from_the_plain_address() {
        let subjects = [
            Subject::account("ann@example.com"),
            Subject::account_elsewhere("acme", "ann@example.com"),
            Subject::account_elsewhere("other", "ann@example.com"),
        ];
        assert_ne!(subjects[0].as_bytes(), subjects[1].as_bytes());
        assert_ne!(subjects[1].as_bytes(), subjects[2].as_bytes());
    }
}
