//! Accounts of rates in Redis or Valkey: read, settled here, and written if they are still what was read.
//!
//! Both are one script each, so that nothing comes in between. Each account carries a mark of its own that no other
//! writing has; one that was given up on and arrives late finds another mark, and changes nothing.

use std::time::Duration;

use redis::Script;
use redis::aio::ConnectionManager;
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::LimitsError;
use crate::redis_client;

/// How long an answer may take. One that comes later is not waited for.
const ANSWER: Duration = Duration::from_secs(1);
/// How long an account is kept that nobody writes, in seconds: longer than any server holds something without a word.
const KEPT: u64 = 24 * 3600;
/// How often the same round is tried when others write at the same time.
const TRIES: u32 = 20;
/// The length of a mark.
const MARK: usize = 32;
/// In braces, so that a cluster keeps all accounts together: one script may write several.
const PREFIX: &str = "{freehold}:";

const SWAP: &str = "
for index, key in ipairs(KEYS) do
  local current = redis.call('GET', key)
  local mark = ''
  if current then mark = string.sub(current, 1, 32) end
  if mark ~= ARGV[1 + 2 * index - 1] then return 0 end
end
for index, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1 + 2 * index], 'EX', ARGV[1])
end
return 1";

/// The accounts in Redis.
pub(super) struct RedisStore {
    connection: ConnectionManager,
    swap: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

/// Why Redis cannot keep accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedisFault {
    /// Nobody answers, or not in time.
    #[error("nobody answers at its address")]
    Unreachable,
    /// The user or password is refused, or one is missing.
    #[error("it refuses the user or password")]
    Unauthenticated,
    /// The user may not run scripts or read the keys.
    #[error("its user may not run scripts on the keys `{{freehold}}:…`")]
    NotPermitted,
    /// It copies another one, and takes no writes.
    #[error("it is a replica, which takes no writes")]
    Copy,
    /// Anything else.
    #[error("it answered with an error")]
    Refused,
}

impl RedisFault {
    fn of(error: &redis::RedisError) -> Self {
        match error.code() {
            Some("NOAUTH" | "WRONGPASS") => return Self::Unauthenticated,
            Some("NOPERM") => return Self::NotPermitted,
            _ => {}
        }
        match error.kind() {
            redis::ErrorKind::AuthenticationFailed => Self::Unauthenticated,
            redis::ErrorKind::Io => Self::Unreachable,
            _ if error.is_timeout() || error.is_connection_dropped() => Self::Unreachable,
            _ => Self::Refused,
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Unreachable => {
                "check that it runs, the host and port in REDIS_URL, firewalls, and `rediss://` if it wants TLS"
            }
            Self::Unauthenticated => "check user and password in REDIS_URL, as in redis://USER:PASSWORD@HOST",
            Self::NotPermitted => {
                "let its user run: ACL SETUSER <user> ~{freehold}:* ~freehold:answer:* +mget +get +set +eval +evalsha +script +ping"
            }
            Self::Copy => "let REDIS_URL lead to the primary",
            Self::Refused => "see its log; any Redis from version 5 on, or Valkey, will do",
        }
    }
}

impl RedisStore {
    /// Opens no connection yet.
    pub(super) fn new(url: &SecretString) -> anyhow::Result<Self> {
        Ok(Self { connection: redis_client::connection(url, ANSWER)?, swap: Script::new(SWAP) })
    }

    /// Whether it answers and runs scripts, and that it is no copy, which takes no writes.
    ///
    /// # Errors
    /// What is wrong. It may quote the address, never the password.
    pub(super) async fn examine(&self) -> Result<(), RedisFault> {
        let mut connection = self.connection.clone();
        let script = Script::new("return redis.call('GET', KEYS[1])");
        let key = format!("{PREFIX}doctor");
        let got: Result<Option<String>, _> = script.key(key).invoke_async(&mut connection).await;
        got.map_err(|error| RedisFault::of(&error))?;
        // An account may be barred from asking; then nothing is known of it.
        let asked: Result<String, _> = redis::cmd("INFO").arg("replication").query_async(&mut connection).await;
        match asked {
            Ok(text) if text.lines().any(|line| line.trim() == "role:slave") => Err(RedisFault::Copy),
            _ => Ok(()),
        }
    }

    /// As [`super::store::exchange`]: `settle` may be called several times, and what it said last counts.
    pub(super) async fn exchange<A, R>(
        &self,
        keys: &[(String, Uuid)],
        settle: &(impl Fn(usize, &mut A) -> R + Sync),
    ) -> Result<Vec<R>, LimitsError>
    where
        A: Serialize + DeserializeOwned + Default + Send,
        R: Send,
    {
        let names: Vec<String> = keys.iter().map(|(key, _)| format!("{PREFIX}{key}")).collect();
        let mut connection = self.connection.clone();
        for attempt in 0..TRIES {
            let stored: Vec<Option<String>> = redis::cmd("MGET").arg(&names).query_async(&mut connection).await?;
            let mut invocation = self.swap.prepare_invoke();
            invocation.arg(KEPT);
            let mut results = Vec::with_capacity(keys.len());
            for (index, (name, stored)) in names.iter().zip(stored).enumerate() {
                let (mark, text) = match &stored {
                    Some(stored) => stored.split_at_checked(MARK).ok_or(LimitsError::Unreadable)?,
                    None => ("", ""),
                };
                let mut account = match text {
                    "" => A::default(),
                    text => serde_json::from_str(text).map_err(|_| LimitsError::Unreadable)?,
                };
                results.push(settle(index, &mut account));
                let account = serde_json::to_string(&account).map_err(|_| LimitsError::Unreadable)?;
                invocation.key(name).arg(mark).arg(format!("{}{account}", Uuid::new_v4().simple()));
            }
            let swapped: i64 = invocation.invoke_async(&mut connection).await?;
            if swapped == 1 {
                return Ok(results);
            }
            // Others write the same accounts. Not all of them try again at the same moment.
            let pause = Duration::from_micros(200 * u64::from(attempt + 1) + u64::from(rand::random::<u8>()) * 8);
            tokio::time::sleep(pause).await;
        }
        Err(LimitsError::Contended)
    }
}
