//! The operation `rotate_data_key`: everything sealed for a tenant is sealed again, under a new key.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `add_key` | the new key, wrapped: servers learn to open with it, and none seals with it yet | deleted, unless in force |
//! | `activate_key` | once every server knows it, it seals | - |
//! | `reseal` | what is under an older key, on the platform and in the tenant's database, is sealed again | - |
//! | `delete_old_keys` | once more over everything; with proof that nothing is left, the older keys are deleted | - |
//!
//! Both keys open from the first step to the last, so readers notice nothing. Writers of the platform's sealed values
//! are operations, and a tenant has one of those at a time. Writers in the tenant's database read the record again,
//! under a lock that they share (`configuration`), before they seal; a pass takes the lock alone, so whoever seals
//! after it seals with the new key. Nothing sealed with the old one can come after the proof.
//!
//! Once the new key seals it stays: undoing then leaves both in force, and a retry goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::keys::DataKeys;
use super::store;
use super::{Rotator, permanent, platform_failed, record_success, sealed_value, tenant_of};
use crate::api::rotation::RotationKind;
use crate::configuration::{self, ConfigurationError};
use crate::ids::{SigningKeyId, TenantId};
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture};
use crate::secrets::{DataKey, DatabaseUrl, connect};
use crate::tenant_db::{database_url_location, next_database_url_location, signing_key_location};

/// How often a pass over the platform's values begins again when another writer came between.
const PASSES: usize = 5;
/// How long one piece of work in a tenant's database may take: a live one waits for writers, and seals key by key.
const TENANT_LIMIT: Duration = Duration::from_secs(300);

/// What was asked for: the new key's version, so that a repeated step finds it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) version: u32,
}

/// The operation.
pub static DEFINITION: Definition<Rotator> = Definition {
    kind: "rotate_data_key",
    steps: &[
        Step { name: "add_key", run: |s, c| boxed(add_key(s, c)), undo: |s, c| boxed(remove_key(s, c)) },
        Step { name: "activate_key", run: |s, c| boxed(activate_key(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "reseal", run: |s, c| boxed(reseal(s, c)), undo: |_, _| boxed(nothing()) },
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

fn task(context: &StepContext) -> Result<(TenantId, u32), StepError> {
    let input: Input = serde_json::from_value(context.input.clone())
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read"))?;
    Ok((tenant_of(context)?, input.version))
}

fn column(version: u32) -> i32 {
    version.cast_signed()
}

async fn add_key(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let (tenant, version) = task(&context)?;
    let wrapped = services.master_keys.wrap(tenant, &DataKey::generate(version));
    let master = column(wrapped.key_version());
    // A key that is there already may have sealed something: it is kept, and this one forgotten.
    let now = services.clock.now();
    store::insert_data_key(&services.pool, tenant, column(version), wrapped.as_bytes(), master, now)
        .await
        .map_err(platform_failed)
}

async fn remove_key(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let (tenant, version) = task(&context)?;
    store::delete_inactive_data_key(&services.pool, tenant, column(version)).await.map_err(platform_failed)
}

async fn activate_key(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let (tenant, version) = task(&context)?;
    let rows = store::data_keys(&services.pool, tenant).await.map_err(platform_failed)?;
    let key = rows.iter().find(|row| row.version == column(version));
    let key =
        key.ok_or_else(|| permanent("key_missing", "the new key is not there any more; ask for the rotation again"))?;
    if key.activated_at.is_some() {
        return Ok(());
    }
    services.wait_until(key.created_at + services.grace)?;
    let now = services.clock.now();
    store::activate_data_key(&services.pool, tenant, column(version), now).await.map_err(platform_failed)
}

async fn reseal(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let (tenant, version) = task(&context)?;
    reseal_all(&services, tenant, version).await?;
    let now = services.clock.now();
    store::retire_data_keys(&services.pool, tenant, column(version), now).await.map_err(platform_failed)
}

async fn delete_old_keys(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let (tenant, version) = task(&context)?;
    let rows = store::data_keys(&services.pool, tenant).await.map_err(platform_failed)?;
    let Some(retired) = rows.iter().filter(|row| row.version < column(version)).filter_map(|row| row.retired_at).max()
    else {
        return Ok(());
    };
    // Requests that read a value before it was sealed again open it with the record they hold.
    services.wait_until(retired + services.grace)?;
    let mut client = reseal_all(&services, tenant, version).await?;
    // The proof and the deletion under the lock that writers share.
    let fence = in_time(configuration::hold_sealing(&mut client)).await?;
    let left = in_time(fence.not_sealed_with(version)).await?;
    let deleted = if left == 0 {
        store::delete_data_keys_before(&services.pool, tenant, column(version)).await.map_err(platform_failed)?
    } else {
        false
    };
    in_time(fence.release()).await?;
    if deleted {
        Ok(())
    } else {
        Err(StepError::Transient("a value is still under an older key", anyhow!("{left} left")))
    }
}

/// Seals everything of a tenant under the key of a version. Returns the connection to the tenant's database.
async fn reseal_all(services: &Rotator, tenant: TenantId, version: u32) -> Result<tokio_postgres::Client, StepError> {
    let keys = DataKeys::open(services, tenant).await?;
    reseal_platform(services, tenant, &keys, version).await?;
    let credential = store::credential(&services.pool, tenant).await.map_err(platform_failed)?;
    let credential = credential.ok_or_else(|| permanent("tenant_gone", "the tenant has no database any more"))?;
    let url = keys.open_text(&database_url_location(tenant), &credential.url_sealed)?;
    let url = DatabaseUrl::parse(&url).map_err(|_| sealed_value())?;
    let (mut client, _) = connect(&url)
        .await
        .map_err(|error| StepError::Transient("the tenant's database cannot be reached", error.into()))?;
    let fence = in_time(configuration::hold_sealing(&mut client)).await?;
    let resealed = in_time(fence.reseal(tenant, version, &|location, bytes| {
        keys.reseal(location, bytes, version).map_err(|_| ConfigurationError::UnusableKey)
    }))
    .await?;
    in_time(fence.release()).await?;
    tracing::debug!(tenant_id = %tenant, version, resealed, "seal AI keys again");
    Ok(client)
}

/// Work in a tenant's database, which may be on a client's own server: one that never answers must not keep a worker.
async fn in_time<T>(work: impl Future<Output = Result<T, ConfigurationError>>) -> Result<T, StepError> {
    match tokio::time::timeout(TENANT_LIMIT, work).await {
        Ok(done) => done.map_err(tenant_failed),
        Err(elapsed) => Err(StepError::Transient("the tenant's database did not answer in time", elapsed.into())),
    }
}

fn tenant_failed(error: ConfigurationError) -> StepError {
    match error {
        ConfigurationError::UnusableKey => permanent(
            "sealed_value",
            "an AI key in the tenant's database does not open with any of the tenant's keys; have it set again",
        ),
        other => StepError::Transient("the tenant's database refused a statement", other.into()),
    }
}

/// Each value is replaced only if it is still the one that was read.
async fn reseal_platform(services: &Rotator, tenant: TenantId, keys: &DataKeys, version: u32) -> Result<(), StepError> {
    for _ in 0..PASSES {
        let mut met_others = false;
        if let Some(credential) = store::credential(&services.pool, tenant).await.map_err(platform_failed)? {
            let url = keys.reseal(&database_url_location(tenant), &credential.url_sealed, version)?;
            let next = match &credential.next_url_sealed {
                Some(sealed) => keys.reseal(&next_database_url_location(tenant), sealed, version)?,
                None => None,
            };
            if url.is_some() || next.is_some() {
                let replaced = store::reseal_credential(&services.pool, tenant, &credential, url, next).await;
                met_others |= !replaced.map_err(platform_failed)?;
            }
        }
        for (id, sealed) in store::signing_keys(&services.pool, tenant).await.map_err(platform_failed)? {
            let location = signing_key_location(tenant, SigningKeyId::from_uuid(id));
            if let Some(new) = keys.reseal(&location, &sealed, version)? {
                store::reseal_signing_key(&services.pool, id, &sealed, &new).await.map_err(platform_failed)?;
            }
        }
        if !met_others {
            return Ok(());
        }
    }
    Err(StepError::Transient("the tenant's record keeps changing", anyhow!("{PASSES} passes")))
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(record_success(connection, RotationKind::DataKey, context, outcome, now))
}
