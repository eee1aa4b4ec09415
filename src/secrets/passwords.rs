//! Passwords: hashing with bounded memory, a policy, and generated ones.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error as HashError, PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Memory of one hash in KiB. This and the two below are OWASP's recommendation for Argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const PASSES: u32 = 2;
/// Lanes of that memory.
const LANES: u32 = 1;

/// The most a stored hash may ask for: room to raise the parameters above, and no more.
const MOST_MEMORY_KIB: u32 = 64 * 1024;
const MOST_PASSES: u32 = 4;
const MOST_LANES: u32 = 4;

/// A hash with the parameters above that no password is known to have: its output is all zeros. Checking a password
/// against it takes as long as against a real one.
const ABSENT_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$ZnJlZWhvbGQtYWJzZW50IQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Fewest characters of a password.
const SHORTEST: usize = 10;
/// Most characters of a password.
const LONGEST: usize = 200;
/// Characters of a generated password: about 190 bits.
const GENERATED: usize = 32;

/// The most common passwords that are long enough to pass the length check, in lower case.
const COMMON: &[&str] = &[
    "0000000000",
    "0123456789",
    "0987654321",
    "1111111111",
    "1122334455",
    "123123123123",
    "1234512345",
    "1234554321",
    "12345678910",
    "123456789a",
    "123456789q",
    "1234567890",
    "123456789012",
    "1q2w3e4r5t",
    "1q2w3e4r5t6y",
    "1qaz2wsx3edc",
    "9876543210",
    "abc123456789",
    "abcd123456",
    "abcd1234abcd",
    "abcdefghij",
    "aaaaaaaaaa",
    "administrator",
    "admin12345",
    "admin123456",
    "adminadmin",
    "asdfghjkl;",
    "asdfghjkl1",
    "asdfasdfasdf",
    "baseball123",
    "basketball",
    "changeme123",
    "changeme1234",
    "changemenow",
    "charlie123",
    "chocolate1",
    "computer123",
    "correcthorsebatterystaple",
    "football123",
    "iloveyou12",
    "iloveyou123",
    "iloveyou1234",
    "letmein123",
    "letmein1234",
    "letmeinnow",
    "liverpool1",
    "manchester",
    "michael123",
    "minecraft1",
    "mypassword",
    "mypassword1",
    "p@ssw0rd123",
    "p@ssword123",
    "pa55word123",
    "passw0rd123",
    "passw0rd1234",
    "password01",
    "password10",
    "password11",
    "password12",
    "password123",
    "password123!",
    "password1234",
    "password12345",
    "password123456",
    "password2024",
    "password2025",
    "password99",
    "passwordpassword",
    "princess123",
    "q1w2e3r4t5",
    "q1w2e3r4t5y6",
    "qazwsxedcrfv",
    "qwerty1234",
    "qwerty12345",
    "qwerty123456",
    "qwertyqwerty",
    "qwertyuiop",
    "qwertyuiop1",
    "qwertyuiop123",
    "secret1234",
    "sunshine123",
    "superman123",
    "test123456",
    "testpassword",
    "testtest123",
    "unknown123",
    "welcome123",
    "welcome1234",
    "whatever123",
    "zaq12wsxcde3",
    "zxcvbnm123",
    "zxcvbnm1234",
];

/// Why a password could not be hashed or checked. A wrong password is no error.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The stored hash is unreadable or asks for too much, or hashing failed.
    #[error("hash the password")]
    Hash(#[source] HashError),
    /// The thread that hashed was lost.
    #[error("wait for the password hash")]
    Task(#[source] JoinError),
    /// Too many others wait for their hash.
    #[error("too many passwords wait to be checked")]
    Busy,
    /// The hasher was closed. Nothing closes it, so this is not seen.
    #[error("the password hasher is closed")]
    Closed,
}

/// How long a sign-in waits for its turn. A flood of them must not make everybody wait without end.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Hashes and checks passwords with Argon2id, on blocking threads and only a few at a time: each hash takes 19 MiB,
/// and a flood of sign-ins must wait rather than exhaust the memory. Clones share the limit.
#[derive(Clone, Debug)]
pub struct PasswordHasher {
    permits: Arc<Semaphore>,
}

impl PasswordHasher {
    /// A hasher that uses as many threads as there are cores.
    #[must_use]
    pub fn new() -> Self {
        Self::with_parallelism(available_parallelism().map_or(1, usize::from))
    }

    /// A hasher that uses `threads` threads, at least one. It needs 19 MiB of memory for each.
    #[must_use]
    pub fn with_parallelism(threads: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(threads.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// The hash to store, as a text in PHC format with a random salt.
    ///
    /// # Errors
    /// [`PasswordError`] if the operating system supplies no random bytes or the thread is lost.
    pub async fn hash(&self, password: &SecretString) -> Result<String, PasswordError> {
        let password = password.clone();
        self.run(move || {
            let hash: PasswordHash = argon2()?.hash_password(password.expose_secret().as_bytes())?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Whether `password` is the one of which `hash` was stored. Parameters are taken from the stored hash.
    ///
    /// # Errors
    /// [`PasswordError`] if the stored hash is unreadable or asks for too much memory or time, or the thread is lost.
    pub async fn verify(&self, password: &SecretString, hash: &str) -> Result<bool, PasswordError> {
        let password = password.clone();
        let hash = hash.to_owned();
        self.run(move || {
            let hash = readable_hash(&hash)?;
            match argon2()?.verify_password(password.expose_secret().as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(HashError::PasswordInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Does the work of [`PasswordHasher::verify`] for an account that does not exist, so that the time taken does
    /// not tell whether it does.
    ///
    /// # Errors
    /// [`PasswordError`] if the thread is lost.
    pub async fn verify_absent(&self, password: &SecretString) -> Result<(), PasswordError> {
        self.verify(password, ABSENT_HASH).await.map(|_always_false| ())
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let permit = timeout(LONGEST_WAIT, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_elapsed| PasswordError::Busy)?
            .map_err(|_| PasswordError::Closed)?;
        // The permit goes with the work: a caller that hangs up does not stop the hash, which keeps its memory.
        spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(PasswordError::Task)?
        .map_err(PasswordError::Hash)
    }
}

impl Default for PasswordHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Parses a stored hash. A tenant's hashes lie in a database that the tenant may own, so a hash whose parameters would
/// take the platform's memory or time is refused, and so is one without a salt or an output, which costs nothing to
/// check and matches nothing.
fn readable_hash(text: &str) -> Result<PasswordHash, HashError> {
    let hash = PasswordHash::new(text)?;
    let params = Params::try_from(&hash)?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(HashError::EncodingInvalid);
    }
    if params.m_cost() > MOST_MEMORY_KIB || params.t_cost() > MOST_PASSES || params.p_cost() > MOST_LANES {
        return Err(HashError::ParamsInvalid);
    }
    Ok(hash)
}

fn argon2() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Why a password is not accepted. The messages are meant for the person who chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordPolicyError {
    /// Fewer than ten characters.
    #[error("a password has at least 10 characters")]
    TooShort,
    /// More than two hundred characters.
    #[error("a password has at most 200 characters")]
    TooLong,
    /// One of the passwords that are tried first.
    #[error("this password is one of the most common ones; please choose another")]
    Common,
    /// The same as the account's e-mail address.
    #[error("the password must not be the e-mail address")]
    SameAsEmail,
}

/// Checks a newly chosen password. Length counts characters, not bytes; there are no rules about their kinds, which
/// only make passwords worse.
///
/// # Errors
/// [`PasswordPolicyError`] with the first rule it breaks.
pub fn check_password_policy(password: &SecretString, email: &str) -> Result<(), PasswordPolicyError> {
    let text = password.expose_secret();
    let length = text.chars().take(LONGEST + 1).count();
    if length < SHORTEST {
        return Err(PasswordPolicyError::TooShort);
    }
    if length > LONGEST {
        return Err(PasswordPolicyError::TooLong);
    }
    let lower = Zeroizing::new(text.to_lowercase());
    if COMMON.contains(&lower.as_str()) {
        return Err(PasswordPolicyError::Common);
    }
    if lower.trim() == email.trim().to_lowercase() {
        return Err(PasswordPolicyError::SameAsEmail);
    }
    Ok(())
}

/// A random password of 32 letters and digits, which needs no escaping in addresses, shells or SQL.
///
/// # Panics
/// If the operating system cannot supply random bytes.
#[must_use]
pub fn generate_password() -> SecretString {
    let mut text = Zeroizing::new(String::with_capacity(GENERATED));
    text.extend(UnwrapErr(SysRng).sample_iter(Alphanumeric).take(GENERATED).map(char::from));
    SecretString::from(text.as_str())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[tokio::test]
    async fn a_hash_accepts_its_password_only() {
        let hasher = PasswordHasher::new();
        let hash = hasher.hash(&secret("correct horse")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(hasher.verify(&secret("correct horse"), &hash).await.unwrap());
        assert!(!hasher.verify(&secret("correct horsf"), &hash).await.unwrap());
        assert!(!hasher.verify(&secret(""), &hash).await.unwrap());
        assert_ne!(hasher.hash(&secret("correct horse")).await.unwrap(), hash);
    }

    #[tokio::test]
    async fn an_unreadable_hash_is_an_error() {
        let hasher = PasswordHasher::new();
        for hash in [
            "",
            "plain text",
            "$argon2id$v=19$m=19456",
            "$argon2id$v=19$m=19456,t=2,p=1$ZnJlZWhvbGQtYWJzZW50IQ",
            "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E",
        ] {
            let checked = hasher.verify(&secret("x"), hash).await;
            assert!(matches!(checked, Err(PasswordError::Hash(_))), "{hash}");
        }
    }

    #[tokio::test]
    async fn a_hash_that_would_take_too_much_is_refused() {
        let hasher = PasswordHasher::new();
        for (cost, greedy) in [("m=19456", "m=4194304"), ("t=2", "t=4000000"), ("p=1", "p=4096")] {
            let hash = ABSENT_HASH.replace(cost, greedy);
            let checked = hasher.verify(&secret("x"), &hash).await;
            assert!(matches!(checked, Err(PasswordError::Hash(_))), "{hash}");
        }
    }

    #[tokio::test]
    async fn an_absent_account_costs_what_a_present_one_does() {
        let hasher = PasswordHasher::with_parallelism(1);
        let absent = PasswordHash::new(ABSENT_HASH).unwrap();
        let real = PasswordHash::new(&hasher.hash(&secret("x")).await.unwrap()).unwrap();
        assert_eq!(absent.params, real.params);
        assert_eq!(absent.version, real.version);
        assert_eq!(absent.algorithm, real.algorithm);
        assert_eq!(absent.hash.map(|h| h.len()), real.hash.map(|h| h.len()));
        assert_eq!(absent.salt.map(|s| s.len()), real.salt.map(|s| s.len()));
        let start = Instant::now();
        hasher.verify_absent(&secret("x")).await.unwrap();
        assert!(start.elapsed() > Duration::from_millis(1));
    }

    #[tokio::test]
    async fn a_full_hasher_makes_others_wait() {
        let hasher = PasswordHasher::with_parallelism(1);
        let held = hasher.permits.acquire().await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), hasher.hash(&secret("x"))).await;
        assert!(waiting.is_err());
        drop(held);
        hasher.hash(&secret("x")).await.unwrap();
    }

    #[test]
    fn the_policy_says_why() {
        let check = |password: &str| check_password_policy(&secret(password), "Ann@Example.com");
        assert_eq!(check("123456789"), Err(PasswordPolicyError::TooShort));
        assert_eq!(check("äöüäöüäöü"), Err(PasswordPolicyError::TooShort));
        assert_eq!(check(&"x".repeat(201)), Err(PasswordPolicyError::TooLong));
        assert_eq!(check("Password123"), Err(PasswordPolicyError::Common));
        assert_eq!(check("ann@example.COM"), Err(PasswordPolicyError::SameAsEmail));
        assert_eq!(check(&"é".repeat(200)), Ok(()));
        assert_eq!(check("a quiet orchard"), Ok(()));
    }

    #[test]
    fn common_passwords_are_listed_as_they_are_compared() {
        for word in COMMON {
            assert!(word.chars().count() >= SHORTEST, "{word} is refused for its length anyway");
            assert_eq!(*word, word.to_lowercase());
        }
    }

    #[test]
    fn generated_passwords_need_no_escaping_and_differ() {
        let (one, other) = (generate_password(), generate_password());
        assert_eq!(one.expose_secret().len(), 32);
        assert!(one.expose_secret().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(one.expose_secret(), other.expose_secret());
        check_password_policy(&one, "").unwrap();
    }
}
