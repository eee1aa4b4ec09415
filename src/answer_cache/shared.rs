//! Answers in the Redis or Valkey that servers share, sealed.
//!
//! Its names are hashes, and its values are sealed with the tenant's data key for that tenant and that key: whoever can
//! read or write there learns no word, and a value that was moved elsewhere does not open. Nobody waits for it: if it
//! does not answer in a moment, the model is asked, and it is left alone for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use redis::RedisError;
use redis::aio::ConnectionManager;
use secrecy::SecretString;
use tokio::time::timeout;

use super::{AnswerKey, KeptAnswer};
use crate::redis_client;
use crate::secrets::{Location, Sealed};
use crate::tenant_db::TenantRecord;

/// How long somebody who asks waits for it.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a command may take when nobody waits.
const ANSWER: Duration = Duration::from_secs(1);
/// How long it is left alone after it has not answered.
const AWAY: Duration = Duration::from_secs(5);
/// The only layout of a value so far: this byte, when it ends, how long the text is, the text, the lengths.
const FORMAT: u8 = 1;
const PREFIX: &str = "freehold:answer:";

pub(super) struct Shared {
    connection: ConnectionManager,
    made: Instant,
    /// In milliseconds since it was made.
    away_until: AtomicU64,
}

impl Shared {
    /// Opens no connection yet.
    pub(super) fn new(url: &SecretString) -> anyhow::Result<Self> {
        let connection = redis_client::connection(url, ANSWER)?;
        Ok(Self { connection, made: Instant::now(), away_until: AtomicU64::new(0) })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_away(&self) -> bool {
        self.now() < self.away_until.load(Ordering::Relaxed)
    }

    /// It did not answer, or not in time. Errors are told by their kind: a text may quote what was sent.
    fn leave_alone(&self, why: &str) {
        let until = self.now().saturating_add(u64::try_from(AWAY.as_millis()).unwrap_or(u64::MAX));
        if !self.is_away() {
            tracing::warn!(why, "keep answers in Redis; leave it alone for a moment");
        }
        self.away_until.store(until, Ordering::Relaxed);
    }

    /// What is kept there, and until when.
    pub(super) async fn get(
        self: &Arc<Self>,
        record: &TenantRecord,
        key: AnswerKey,
        now: DateTime<Utc>,
    ) -> Option<(KeptAnswer, DateTime<Utc>)> {
        if self.is_away() {
            return None;
        }
        // A task of its own goes on when nobody waits any more: a connection that takes longer is there for the next.
        let reading = tokio::spawn({
            let (mut connection, name) = (self.connection.clone(), name(key));
            async move {
                let value: Result<Option<Vec<u8>>, RedisError> =
                    redis::cmd("GET").arg(name).query_async(&mut connection).await;
                value
            }
        });
        let value = match timeout(PATIENCE, reading).await {
            Ok(Ok(Ok(value))) => value?,
            Ok(Ok(Err(error))) => {
                self.leave_alone(&format!("{:?}", error.kind()));
                return None;
            }
            Ok(Err(_)) => return None,
            Err(_) => {
                self.leave_alone("no answer in time");
                return None;
            }
        };
        // Sealed with a key that is not in force any more, or changed by somebody: it is as if it were not there.
        let sealed = Sealed::from_bytes(value).ok()?;
        let value = record.data_key_for(&sealed).ok()?.open(&location(record, key), &sealed).ok()?;
        let (answer, expires_at) = decode(&value)?;
        (expires_at > now).then_some((answer, expires_at))
    }

    /// Keeps an answer there, in nobody's way.
    pub(super) fn put(
        self: &Arc<Self>,
        record: &TenantRecord,
        key: AnswerKey,
        answer: &KeptAnswer,
        expires_at: DateTime<Utc>,
        lasts: Duration,
    ) {
        let Ok(data_key) = record.data_key() else { return };
        let milliseconds = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        if self.is_away() || milliseconds == 0 {
            return;
        }
        let Some(value) = encode(answer, expires_at) else { return };
        let sealed = data_key.seal(&location(record, key), &value);
        let (shared, name) = (Arc::clone(self), name(key));
        drop(tokio::spawn(async move {
            let mut connection = shared.connection.clone();
            let mut command = redis::cmd("SET");
            command.arg(name).arg(sealed.as_bytes()).arg("PX").arg(milliseconds);
            let kept: Result<(), RedisError> = command.query_async(&mut connection).await;
            if let Err(error) = kept {
                shared.leave_alone(&format!("{:?}", error.kind()));
            }
        }));
    }
}

fn name(key: AnswerKey) -> String {
    format!("{PREFIX}{}", hex::encode(key.0))
}

fn location(record: &TenantRecord, key: AnswerKey) -> Location {
    Location::tenant(record.id, "answer_cache", "answer", hex::encode(key.0))
}

fn encode(answer: &KeptAnswer, expires_at: DateTime<Utc>) -> Option<Vec<u8>> {
    let length = u32::try_from(answer.content.len()).ok()?;
    let mut value = Vec::with_capacity(13 + answer.content.len() + answer.delta_lengths.len());
    value.push(FORMAT);
    value.extend_from_slice(&expires_at.timestamp_millis().to_be_bytes());
    value.extend_from_slice(&length.to_be_bytes());
    value.extend_from_slice(answer.content.as_bytes());
    value.extend_from_slice(&answer.delta_lengths);
    Some(value)
}

fn decode(value: &[u8]) -> Option<(KeptAnswer, DateTime<Utc>)> {
    let (format, rest) = value.split_first()?;
    let (expires_at, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (content, delta_lengths) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let content = std::str::from_utf8(content).ok().filter(|_| *format == FORMAT)?.to_owned();
    let expires_at = DateTime::from_timestamp_millis(i64::from_be_bytes(*expires_at))?;
    Some((KeptAnswer { content, delta_lengths: delta_lengths.to_vec() }, expires_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_was_written_and_nothing_else_is() {
        let answer = KeptAnswer { content: "zwölf".to_owned(), delta_lengths: vec![2, 4] };
        let until = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        let value = encode(&answer, until).unwrap();
        assert_eq!(decode(&value), Some((answer.clone(), until)));
        for cut in 0..value.len() - answer.delta_lengths.len() {
            assert_eq!(decode(&value[..cut]), None, "{cut}");
        }
        let other = [&[2], &value[1..]].concat();
        assert_eq!(decode(&other), None);
        assert_eq!(decode(&[&value[..9], &[0xff; 4], &value[13..]].concat()), None);
        assert_eq!(decode(&[&value[..13], &[0xff; 5]].concat()), None);
    }
}
