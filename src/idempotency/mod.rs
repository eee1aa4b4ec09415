//! Answers kept for requests that carried an `Idempotency-Key`, so that a request sent again gets the first answer.
//!
//! The answer is stored in the transaction of the work, sealed with a master key because it may hold a one-time
//! secret. It knows nothing of what the requests do.

mod store;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use thiserror::Error;
use uuid::Uuid;

use crate::ids::SuperAdminId;
use crate::secrets::{Location, MasterKeyring, Sealed};

/// How long an answer is kept.
const KEPT_HOURS: i32 = 48;

/// A request that may come twice.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who sent it; two admins' keys never meet.
    pub super_admin: SuperAdminId,
    /// The key, as the client chose it.
    pub key: &'a str,
    /// SHA-256 of what was asked.
    pub hash: [u8; 32],
}

/// Why an answer could not be looked up or kept.
#[derive(Debug, Error)]
pub enum IdempotencyError {
    /// The key was used for another request.
    #[error("the idempotency key was used for another request")]
    Reused,
    /// The kept answer does not open or is no longer understood.
    #[error("the kept answer cannot be read")]
    Unreadable,
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

impl<'a> Request<'a> {
    /// A request by its key and what it asked for.
    pub fn new(super_admin: SuperAdminId, key: &'a str, asked: &impl Serialize) -> Result<Self, IdempotencyError> {
        let asked = serde_json::to_vec(asked).map_err(|_| IdempotencyError::Unreadable)?;
        Ok(Self { super_admin, key, hash: Sha256::digest(asked).into() })
    }

    fn location(&self) -> Location {
        response_location(self.super_admin, self.key)
    }

    /// The answer that was given to this request, if any. Until the caller's transaction ends, other requests with
    /// the same key wait, so of two at once the second finds the first's answer.
    pub async fn find<T: DeserializeOwned>(
        &self,
        connection: &mut PgConnection,
        keys: &MasterKeyring,
    ) -> Result<Option<T>, IdempotencyError> {
        store::lock(connection, self.super_admin, self.key).await?;
        let Some((hash, sealed)) = store::find(connection, self.super_admin, self.key).await? else {
            return Ok(None);
        };
        if hash != self.hash {
            return Err(IdempotencyError::Reused);
        }
        let sealed = Sealed::from_bytes(sealed).map_err(|_| IdempotencyError::Unreadable)?;
        let text = keys.open_platform(&self.location(), &sealed).map_err(|_| IdempotencyError::Unreadable)?;
        serde_json::from_str(text.expose_secret()).map(Some).map_err(|_| IdempotencyError::Unreadable)
    }

    /// Keeps the answer, in the transaction of the work. `about` is the id of what it is about.
    pub async fn keep(
        &self,
        connection: &mut PgConnection,
        keys: &MasterKeyring,
        answer: &impl Serialize,
        about: Uuid,
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<(), IdempotencyError> {
        let text = serde_json::to_string(answer).map_err(|_| IdempotencyError::Unreadable)?;
        let sealed = keys.seal_platform(&self.location(), &SecretString::from(text));
        store::insert(connection, self.super_admin, self.key, &self.hash, sealed.as_bytes(), about, now).await?;
        Ok(())
    }
}

/// Drops the answers about something that is gone: they may hold what it was entered by.
pub async fn forget_about(pool: &PgPool, about: Uuid) -> Result<(), sqlx::Error> {
    store::delete_about(pool, about).await
}

/// Where an answer is sealed.
pub fn response_location(admin: SuperAdminId, key: &str) -> Location {
    Location::platform("idempotency_keys", "response_sealed", format!("{admin}/{key}"))
}

/// Drops answers that are too old to be asked for again.
pub async fn prune(pool: &PgPool, now: chrono::DateTime<chrono::Utc>) -> Result<(), sqlx::Error> {
    store::delete_older(pool, now - chrono::TimeDelta::hours(i64::from(KEPT_HOURS))).await
}
