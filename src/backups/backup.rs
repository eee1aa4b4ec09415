//! The operation `backup_tenant`.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `write_archive` | one snapshot: checksums and `pg_dump`, sealed into a file that gets its name last | file removed |
//! | `verify_archive` | reads the file back from its first byte to its last | - |
//!
//! The tenant stays in service; nothing of it changes.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::files::{self, Writing};
use super::{BackupError, BackupServices, backup_key_location, store};
use crate::backup_archive::{ArchiveKey, Derivation, KeyBytes, Manifest, ManifestKey, Summary};
use crate::ids::{ClusterId, TenantId};
use crate::operations::{
    Definition, OperationProgress, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture,
    store::note_progress,
};
use crate::provisioning::{self, Cluster, DatabaseNames, ProvisioningError, Snapshot};
use crate::secrets::{DataKey, DatabaseUrl, Sealed, connect, generate_password, judge_address};
use crate::tenant_db::database_url_location;
use crate::tenants::TenantError;

/// The operation.
pub static DEFINITION: Definition<BackupServices> = Definition {
    kind: "backup_tenant",
    steps: &[
        Step {
            name: "write_archive",
            run: |s, c| boxed(write_archive(s, c)),
            undo: |s, c| boxed(remove_archive(s, c)),
        },
        Step { name: "verify_archive", run: |s, c| boxed(verify_archive(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

pub(super) fn boxed(work: impl Future<Output = Result<(), BackupError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(async move { work.await.map_err(StepError::from) })
}

pub(super) async fn nothing() -> Result<(), BackupError> {
    Ok(())
}

/// How much of the work is done, in mebibytes.
pub(super) fn mebibytes(done: u64, total: u64) -> OperationProgress {
    OperationProgress { done: done >> 20, failed: 0, total: total.max(done) >> 20 }
}

/// A tenant's data keys, every version, and its database's address.
fn open_tenant(
    services: &BackupServices,
    tenant: TenantId,
    sealed: &store::SealedTenant,
) -> Option<(Vec<DataKey>, DatabaseUrl)> {
    let mut keys = Vec::new();
    for (version, wrapped) in sealed.key_versions.iter().zip(&sealed.wrapped_keys) {
        let wrapped = Sealed::from_bytes(wrapped.clone()).ok()?;
        keys.push(services.master_keys.unwrap(tenant, u32::try_from(*version).ok()?, &wrapped).ok()?);
    }
    let url = Sealed::from_bytes(sealed.url_sealed.clone()).ok()?;
    let key = keys.iter().find(|key| key.version() == url.key_version())?;
    let url = DatabaseUrl::parse(&key.open_str(&database_url_location(tenant), &url).ok()?).ok()?;
    Some((keys, url))
}

struct Task {
    pending: store::Pending,
    path: PathBuf,
    key: ArchiveKey,
}

async fn task(services: &BackupServices, context: &StepContext) -> Result<Task, BackupError> {
    let mut pending = store::pending(&services.pool, context.operation_id).await?.ok_or(BackupError::Unreadable)?;
    let key = services.open_archive_key(&backup_key_location(pending.id), pending.archive_key_sealed.take())?;
    Ok(Task { path: services.directory()?.join(&pending.file_name), pending, key })
}

/// A login role for the backup alone, where the tenant's own is shut out: the one whose turn it is not. Nobody has its
/// password but the step that reads the database, so the tenant stays out of service. The administrator never reads in
/// its stead: what the tenant made in its database, functions and casts, would run with the administrator's rights.
struct SpareLogin {
    cluster: Cluster,
    names: DatabaseNames,
}

impl SpareLogin {
    /// The one that is needed, or nothing for a tenant that signs in itself.
    async fn of(
        services: &BackupServices,
        tenant: &store::SealedTenant,
        url: &DatabaseUrl,
    ) -> Result<Option<Self>, BackupError> {
        let (Some(cluster), Some(owner)) = (tenant.cluster_id, &tenant.owner_role) else { return Ok(None) };
        if tenant.state == "active" {
            return Ok(None);
        }
        let in_use = DatabaseNames {
            database: url.database().to_owned(),
            owner_role: owner.clone(),
            login_role: url.user().to_owned(),
        };
        let cluster = services.clusters.open(ClusterId::from_uuid(cluster)).await?;
        Ok(Some(Self { cluster, names: in_use.alternate() }))
    }

    async fn open(&self) -> Result<DatabaseUrl, BackupError> {
        let password = generate_password();
        let kept = password.clone();
        let verifier = tokio::task::spawn_blocking(move || provisioning::hash_password(&kept)).await?;
        self.cluster.enable_login(&self.names, &verifier).await?;
        Ok(self.cluster.tenant_url(&self.names, password))
    }

    /// Safe to repeat. A step that died is run again or undone, and either comes here.
    async fn shut(&self) -> Result<(), BackupError> {
        Ok(self.cluster.disable_login(&self.names).await?)
    }
}

async fn write_archive(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let tenant = context.tenant_id.ok_or(BackupError::Unreadable)?;
    let sealed = store::sealed_tenant(&services.pool, tenant).await?.ok_or(TenantError::NotFound)?;
    let (keys, url) = open_tenant(&services, tenant, &sealed).ok_or(TenantError::Sealed)?;
    match SpareLogin::of(&services, &sealed, &url).await? {
        None => write(&services, &context, task, sealed, keys, url).await,
        Some(login) => {
            let written = match login.open().await {
                Ok(url) => write(&services, &context, task, sealed, keys, url).await,
                Err(error) => Err(error),
            };
            let shut = login.shut().await;
            written.and(shut)
        }
    }
}

async fn write(
    services: &BackupServices,
    context: &StepContext,
    task: Task,
    sealed: store::SealedTenant,
    keys: Vec<DataKey>,
    url: DatabaseUrl,
) -> Result<(), BackupError> {
    let tenant = context.tenant_id.ok_or(BackupError::Unreadable)?;
    let url = url.with_application_name("freehold backup");
    let (client, _) = connect(&url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    // pg_dump resolves names by itself, so it is told what was judged.
    let address = judge_address(&url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    // The client's transaction keeps the snapshot alive until the dump is finished: manifest and dump see the same.
    let snapshot = Snapshot::take(&client).await?;
    let programs = services.programs()?;
    programs.check_dump(snapshot.server_version).await?;
    let manifest = Manifest {
        about: Summary {
            created_at: task.pending.created_at,
            freehold_version: env!("CARGO_PKG_VERSION").to_owned(),
            tenant_id: tenant.as_uuid(),
            slug: sealed.slug,
            name: sealed.name,
            plan: sealed.plan,
            template: sealed.template,
            admin_email: sealed.admin_email,
            limits: sealed.limits,
            database_mode: sealed.database_mode,
            schema_version: snapshot.schema_version,
            postgres_version: snapshot.server_version,
            tables: snapshot.tables,
        },
        data_keys: keys
            .iter()
            .map(|key| ManifestKey { version: key.version(), key: KeyBytes::new(key.export()) })
            .collect(),
    };
    let derivation = Derivation::from_bytes(&task.pending.key_derivation)?;
    let mut dump =
        programs.dump(&url, address, &snapshot.name, &snapshot.foreign_schemas, provisioning::INSTANCE_TABLE)?;
    let writing = Writing::begin(task.path, derivation, task.key, manifest);
    let (mut done, mut told) = (0_u64, 0);
    while let Some(piece) = dump.next_piece().await? {
        done += piece.len() as u64;
        if !writing.write(piece).await {
            break;
        }
        if done >> 23 > told {
            told = done >> 23;
            note_progress(&services.pool, context.operation_id, &mebibytes(done, 0)).await?;
        }
    }
    // Only what pg_dump calls whole gets an end, and so its name.
    let written = match dump.finish().await {
        Ok(()) => writing.finish().await?,
        Err(error) => return Err(error.into()),
    };
    drop(client);
    let size = i64::try_from(written.size).unwrap_or(i64::MAX);
    store::note_written(&services.pool, task.pending.id, size, &written.sha256, snapshot.schema_version).await?;
    Ok(())
}

async fn verify_archive(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    files::verify(task.path, task.key).await.map(drop)
}

/// Needs no archive key: an operation that is undone may have lost it. Without a row there is no file any more.
async fn remove_archive(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    if let Some(tenant) = context.tenant_id
        && let Some(sealed) = store::sealed_tenant(&services.pool, tenant).await?
        // Without the address no login was opened either.
        && let Some((_, url)) = open_tenant(&services, tenant, &sealed)
        && let Some(login) = SpareLogin::of(&services, &sealed, &url).await?
    {
        login.shut().await?;
    }
    match (&services.directory, store::pending(&services.pool, context.operation_id).await?) {
        (Some(directory), Some(backup)) => files::remove(directory.join(&backup.file_name)).await,
        _ => Ok(()),
    }
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(async move {
        let state = match outcome {
            Outcome::Started => return Ok(()),
            Outcome::Succeeded => "complete",
            Outcome::Failed | Outcome::NeedsOperator => "failed",
        };
        store::settle_backup(connection, context.operation_id, state, now).await
    })
}
