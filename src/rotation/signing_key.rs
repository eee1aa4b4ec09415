//! The operation `rotate_signing_key`: a tenant's access tokens are signed with a new key.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `insert_key` | the new key signs from now on, the old one only verifies, in one statement | - |
//! | `delete_old_keys` | once the last token of an old key has expired | - |
//!
//! A token under the new key may be out the moment it is inserted, so the key is never taken away again: undoing
//! leaves both, and each goes on verifying what it signed.
//!
//! A server that has not heard of the new key signs with the old one a little longer. That is what the leeway is for:
//! servers notice within some ten seconds that they hear nothing, and read everything again. One that is cut off from
//! the platform's database for longer than that, and nevertheless serves sign-ins, hands out tokens that the others
//! refuse once the old key is gone; their users' refresh tokens work everywhere all the while.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use zeroize::Zeroizing;

use super::keys::DataKeys;
use super::store;
use super::{Rotator, permanent, platform_failed, record_success, tenant_of};
use crate::api::rotation::RotationKind;
use crate::ids::SigningKeyId;
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture};
use crate::tenant_db::signing_key_location;

/// Added to a token's life before the key that signed it is deleted: for servers that heard late, and clocks that
/// differ.
const LEEWAY: TimeDelta = TimeDelta::minutes(2);

/// What was asked for: the id of the new key, so that a repeated step finds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) signing_key_id: SigningKeyId,
}

/// The operation.
pub static DEFINITION: Definition<Rotator> = Definition {
    kind: "rotate_signing_key",
    steps: &[
        Step { name: "insert_key", run: |s, c| boxed(insert_key(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "delete_old_keys", run: |s, c| boxed(delete_old_keys(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

fn boxed(work: impl Future<Output = Result<(), StepError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(work)
}

async fn nothing() -> Result<(), StepError> {
    Ok(())
}

/// How long a key that signs no more still verifies.
pub(super) fn verifies_for(services: &Rotator) -> TimeDelta {
    services.token_lifetime + LEEWAY
}

async fn insert_key(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let tenant = tenant_of(&context)?;
    let input: Input = serde_json::from_value(context.input)
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read"))?;
    let keys = DataKeys::open(&services, tenant).await?;
    // 256 random bits, as RFC 7518 asks of an HS256 key.
    let secret = Zeroizing::new(rand::random::<[u8; 32]>());
    let location = signing_key_location(tenant, input.signing_key_id);
    let sealed = keys.sealing()?.seal(&location, secret.as_slice());
    let now = services.clock.now();
    store::insert_signing_key(&services.pool, tenant, input.signing_key_id, sealed.as_bytes(), now)
        .await
        .map_err(platform_failed)
}

async fn delete_old_keys(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let tenant = tenant_of(&context)?;
    let retired = store::last_retired_signing_key(&services.pool, tenant).await.map_err(platform_failed)?;
    let Some(retired) = retired else { return Ok(()) };
    let lifetime = verifies_for(&services);
    services.wait_until(retired + lifetime)?;
    store::delete_retired_signing_keys(&services.pool, Some(tenant), services.clock.now() - lifetime)
        .await
        .map_err(platform_failed)?;
    Ok(())
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(record_success(connection, RotationKind::SigningKey, context, outcome, now))
}
