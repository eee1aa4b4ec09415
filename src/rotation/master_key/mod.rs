//! The operation `rotate_master_key`: whatever an older master key wraps or seals is wrapped or sealed again under the
//! newest, so that the older one is needed no more.
//!
//! | step | does |
//! |---|---|
//! | `rewrap_data_keys` | tenants' data keys: only their wrapping, in batches; what they seal stays as it is |
//! | `reseal_cluster_urls` | the clusters' admin URLs, and the keys of shared models |
//! | `reseal_answers` | answers kept for repeated requests |
//! | `reseal_archive_keys` | what backups and restores under way keep |
//! | `verify_unused` | looks at everything once more, and proves that no older key is in use |
//!
//! Each value carries the version of its key, so a pass that was killed goes on with what is left, and doing it again
//! does nothing. A value is replaced only if it is still the one that was read. Nothing is ever taken back, since
//! every server holds both keys as long as this runs; so there is nothing to undo.

mod store;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{RotationError, Rotations, Rotator, permanent, platform_failed, record_success};
use crate::api::rotation::{MasterKey, MasterKeyList, RotationKind};
use crate::backups;
use crate::idempotency;
use crate::ids::{ClusterId, OperationId, SharedModelId, SuperAdminId, TenantId};
use crate::operations::{
    self, Definition, OperationProgress, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture,
};
use crate::secrets::{OpenError, Sealed};
use crate::shared_models;
use crate::tenants::clusters::admin_url_location;

/// Values replaced in one statement.
const BATCH: i64 = 500;
/// How often everything is looked at before a value under an older key means that some server still makes them.
const PASSES: usize = 3;

/// What was asked for: the version that is to be the only one in use.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) version: u32,
}

/// The operation.
pub static DEFINITION: Definition<Rotator> = Definition {
    kind: "rotate_master_key",
    steps: &[
        Step { name: "rewrap_data_keys", run: |s, c| boxed(rewrap_data_keys(s, c)), undo: |_, _| boxed(nothing()) },
        Step {
            name: "reseal_cluster_urls",
            run: |s, c| boxed(reseal_cluster_urls(s, c)),
            undo: |_, _| boxed(nothing()),
        },
        Step { name: "reseal_answers", run: |s, c| boxed(reseal_answers(s, c)), undo: |_, _| boxed(nothing()) },
        Step {
            name: "reseal_archive_keys",
            run: |s, c| boxed(reseal_archive_keys(s, c)),
            undo: |_, _| boxed(nothing()),
        },
        Step { name: "verify_unused", run: |s, c| boxed(verify_unused(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

fn boxed(work: impl Future<Output = Result<(), StepError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(work)
}

async fn nothing() -> Result<(), StepError> {
    Ok(())
}

/// The version everything is brought to: this server's newest. One that does not hold what was asked for must not
/// begin, for it would bring everything to an older one.
fn target(services: &Rotator, context: &StepContext) -> Result<u32, StepError> {
    let input: Input = serde_json::from_value(context.input.clone())
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read"))?;
    let primary = services.master_keys.primary_version();
    if primary < input.version {
        let message = format!(
            "this server does not hold master key {}; give every server the same FREEHOLD_MASTER_KEYS, and restart them",
            input.version
        );
        return Err(permanent("master_key_missing", message));
    }
    Ok(primary)
}

/// One pass over one kind of values: what was read, and how many of it could not be opened.
struct Pass<'a> {
    services: &'a Rotator,
    context: &'a StepContext,
    progress: OperationProgress,
}

impl<'a> Pass<'a> {
    fn new(services: &'a Rotator, context: &'a StepContext, left: i64) -> Self {
        let progress = OperationProgress { done: 0, failed: 0, total: left.cast_unsigned() };
        Self { services, context, progress }
    }

    /// Notes a batch of which so many values did not open. Another server may look after some of them.
    async fn note(&mut self, read: usize, unreadable: usize) -> Result<(), StepError> {
        self.progress.done += read as u64;
        self.progress.failed += unreadable as u64;
        self.progress.total = self.progress.total.max(self.progress.done);
        operations::store::note_progress(&self.services.pool, self.context.operation_id, &self.progress)
            .await
            .map_err(platform_failed)
    }

    fn finish(&self, what: &str) -> Result<(), StepError> {
        if self.progress.failed == 0 {
            return Ok(());
        }
        let message = format!(
            "{} {what} do not open with any master key this server holds; `freehold-server doctor` says which versions \
             are in use",
            self.progress.failed
        );
        Err(permanent("unreadable_values", message))
    }
}

async fn rewrap_data_keys(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let target = target(&services, &context)?;
    data_keys_pass(&services, &context, target).await
}

async fn data_keys_pass(services: &Rotator, context: &StepContext, target: u32) -> Result<(), StepError> {
    let version = target.cast_signed();
    let left = store::count_data_keys(&services.pool, version).await.map_err(platform_failed)?;
    let mut pass = Pass::new(services, context, left);
    let mut after = (Uuid::nil(), 0);
    loop {
        let rows = store::data_keys_not_under(&services.pool, version, after, BATCH).await.map_err(platform_failed)?;
        let Some(last) = rows.last() else { return pass.finish("tenants' data keys") };
        after = (last.tenant_id, last.version);
        let mut batch = store::Rewrapped::default();
        for row in &rows {
            let rewrap = || -> Result<Sealed, OpenError> {
                let tenant = TenantId::from_uuid(row.tenant_id);
                let wrapped = Sealed::from_bytes(row.wrapped_key.as_slice())?;
                let key = services.master_keys.unwrap(tenant, row.version.cast_unsigned(), &wrapped)?;
                Ok(services.master_keys.wrap(tenant, &key))
            };
            if let Ok(new) = rewrap() {
                batch.tenants.push(row.tenant_id);
                batch.versions.push(row.version);
                batch.old.push(row.wrapped_key.clone());
                batch.new.push(new.into_bytes());
            }
        }
        let unreadable = rows.len() - batch.tenants.len();
        store::rewrap(&services.pool, &batch, version).await.map_err(platform_failed)?;
        pass.note(rows.len(), unreadable).await?;
    }
}

async fn reseal_cluster_urls(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let target = target(&services, &context)?;
    cluster_urls_pass(&services, &context, target).await?;
    // Not a step of its own: operations that are stored know the steps that there were.
    shared_models_pass(&services, &context, target).await
}

async fn cluster_urls_pass(services: &Rotator, context: &StepContext, target: u32) -> Result<(), StepError> {
    let rows = store::cluster_urls_not_under(&services.pool, target.cast_signed()).await.map_err(platform_failed)?;
    let mut pass = Pass::new(services, context, i64::try_from(rows.len()).unwrap_or(i64::MAX));
    for (id, old) in rows {
        let location = admin_url_location(ClusterId::from_uuid(id));
        let opened = Sealed::from_bytes(old.as_slice())
            .and_then(|sealed| services.master_keys.open_platform(&location, &sealed));
        if let Ok(url) = &opened {
            let new = services.master_keys.seal_platform(&location, url);
            store::reseal_cluster_url(&services.pool, id, &old, new.as_bytes()).await.map_err(platform_failed)?;
        }
        pass.note(1, usize::from(opened.is_err())).await?;
    }
    pass.finish("clusters' URLs")
}

async fn shared_models_pass(services: &Rotator, context: &StepContext, target: u32) -> Result<(), StepError> {
    let rows = store::shared_models_not_under(&services.pool, target.cast_signed()).await.map_err(platform_failed)?;
    let mut pass = Pass::new(services, context, i64::try_from(rows.len()).unwrap_or(i64::MAX));
    for (id, old) in rows {
        let location = shared_models::api_key_location(SharedModelId::from_uuid(id));
        let opened = Sealed::from_bytes(old.as_slice())
            .and_then(|sealed| services.master_keys.open_platform(&location, &sealed));
        if let Ok(key) = &opened {
            let new = services.master_keys.seal_platform(&location, key);
            store::reseal_shared_model(&services.pool, id, &old, new.as_bytes()).await.map_err(platform_failed)?;
        }
        pass.note(1, usize::from(opened.is_err())).await?;
    }
    pass.finish("keys of shared models")
}

async fn reseal_answers(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let target = target(&services, &context)?;
    answers_pass(&services, &context, target).await
}

async fn answers_pass(services: &Rotator, context: &StepContext, target: u32) -> Result<(), StepError> {
    let version = target.cast_signed();
    let left = store::count_answers(&services.pool, version).await.map_err(platform_failed)?;
    let mut pass = Pass::new(services, context, left);
    let mut after = (Uuid::nil(), String::new());
    loop {
        let rows = store::answers_not_under(&services.pool, version, &after, BATCH).await.map_err(platform_failed)?;
        let Some(last) = rows.last() else { return pass.finish("kept answers") };
        after = (last.super_admin_id, last.key.clone());
        let mut batch = store::Answers::default();
        for row in &rows {
            let location = idempotency::response_location(SuperAdminId::from_uuid(row.super_admin_id), &row.key);
            let opened = Sealed::from_bytes(row.response_sealed.as_slice())
                .and_then(|sealed| services.master_keys.open_platform(&location, &sealed));
            if let Ok(answer) = opened {
                batch.admins.push(row.super_admin_id);
                batch.keys.push(row.key.clone());
                batch.old.push(row.response_sealed.clone());
                batch.new.push(services.master_keys.seal_platform(&location, &answer).into_bytes());
            }
        }
        let unreadable = rows.len() - batch.admins.len();
        store::reseal_answers(&services.pool, &batch).await.map_err(platform_failed)?;
        pass.note(rows.len(), unreadable).await?;
    }
}

async fn reseal_archive_keys(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let target = target(&services, &context)?;
    archive_keys_pass(&services, &context, target).await
}

/// There are as many as operations under way. One that has ended meanwhile has deleted its own.
async fn archive_keys_pass(services: &Rotator, context: &StepContext, target: u32) -> Result<(), StepError> {
    let version = target.cast_signed();
    let rows = store::archive_keys_not_under(&services.pool, version).await.map_err(platform_failed)?;
    let mut pass = Pass::new(services, context, i64::try_from(rows.len()).unwrap_or(i64::MAX));
    for row in rows {
        let location = match row.is_backup {
            true => backups::backup_key_location(row.id),
            false => backups::restore_key_location(OperationId::from_uuid(row.id)),
        };
        let opened = Sealed::from_bytes(row.sealed.as_slice())
            .and_then(|sealed| services.master_keys.open_platform(&location, &sealed));
        if let Ok(key) = &opened {
            let new = services.master_keys.seal_platform(&location, key);
            store::reseal_archive_key(&services.pool, &row, new.as_bytes()).await.map_err(platform_failed)?;
        }
        pass.note(1, usize::from(opened.is_err())).await?;
    }
    for row in store::restore_keys_not_under(&services.pool, version).await.map_err(platform_failed)? {
        let tenant = TenantId::from_uuid(row.tenant_id);
        let opened = Sealed::from_bytes(row.wrapped_key.as_slice())
            .and_then(|wrapped| services.master_keys.unwrap(tenant, row.version.cast_unsigned(), &wrapped));
        if let Ok(key) = &opened {
            let new = services.master_keys.wrap(tenant, key);
            store::rewrap_restore_key(&services.pool, &row, new.as_bytes(), version).await.map_err(platform_failed)?;
        }
        pass.note(1, usize::from(opened.is_err())).await?;
    }
    pass.finish("keys of backups and restores")
}

async fn verify_unused(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let target = target(&services, &context)?;
    for _ in 0..PASSES {
        let in_use = store::versions_in_use(&services.pool).await.map_err(platform_failed)?;
        if in_use.iter().all(|(version, _)| *version == target.cast_signed()) {
            tracing::info!(
                version = target,
                "no older master key is in use; it may be dropped from FREEHOLD_MASTER_KEYS"
            );
            return Ok(());
        }
        // Made by a server that had not been given the new key when it began.
        data_keys_pass(&services, &context, target).await?;
        cluster_urls_pass(&services, &context, target).await?;
        shared_models_pass(&services, &context, target).await?;
        answers_pass(&services, &context, target).await?;
        archive_keys_pass(&services, &context, target).await?;
    }
    let in_use = store::versions_in_use(&services.pool).await.map_err(platform_failed)?;
    let older: Vec<String> = in_use
        .iter()
        .filter(|(version, _)| *version != target.cast_signed())
        .map(|(version, values)| format!("{values} under version {version}"))
        .collect();
    if older.is_empty() {
        return Ok(());
    }
    let message = format!(
        "values under another master key than {target} keep appearing ({}): a server does not hold it yet; give every \
         server the same FREEHOLD_MASTER_KEYS, and restart them",
        older.join(", ")
    );
    Err(permanent("older_master_key_in_use", message))
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(record_success(connection, RotationKind::MasterKey, context, outcome, now))
}

impl Rotations {
    /// Every version of a master key that something is under, with how many values, lowest first.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn master_keys_in_use(&self) -> Result<Vec<(u32, u64)>, RotationError> {
        let rows = store::versions_in_use(&self.pool).await?;
        Ok(rows.into_iter().map(|(version, values)| (version.cast_unsigned(), values.cast_unsigned())).collect())
    }

    /// The master keys this server holds and those in use.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn master_keys(&self) -> Result<MasterKeyList, RotationError> {
        let in_use = self.master_keys_in_use().await?;
        let held: Vec<u32> = self.master_keys.versions().collect();
        let mut versions: Vec<u32> = in_use.iter().map(|(version, _)| *version).chain(held.iter().copied()).collect();
        versions.sort_unstable();
        versions.dedup();
        let items = versions
            .into_iter()
            .map(|version| MasterKey {
                version,
                held: held.contains(&version),
                values: in_use.iter().find(|(used, _)| *used == version).map_or(0, |(_, values)| *values),
            })
            .collect();
        Ok(MasterKeyList { primary: self.master_keys.primary_version(), items })
    }
}
