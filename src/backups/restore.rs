//! The operation `restore_tenant`: from a sealed file to a tenant in service.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `verify_archive` | reads the file to its end; whether `pg_restore` and the server suit | - |
//! | `prepare_keys` | the archive's data keys wrapped by the present master key; a new password, a new signing key | forgotten |
//! | `create_roles` | owner and login role of a database beside the one in service | dropped |
//! | `restore_data` | an empty database, and `pg_restore` into it as the tenant, in one transaction | dropped |
//! | `check_data` | every table's checksum is the manifest's; isolation | - |
//! | `bring_up_to_date` | an older schema migrated; sessions, invites, API keys of back then ended; no marker in a client's own | - |
//!
//! Everything that is made has names of this operation alone, and lies in `restores` until the transaction that settles
//! the operation puts it in force. Until then the registry, and a tenant that is in service, are as they were.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use zeroize::Zeroizing;

use super::backup::{boxed, mebibytes, nothing};
use super::{BackupError, BackupServices, files, replaced, restore_key_location, store};
use crate::access;
use crate::backup_archive::ArchiveKey;
use crate::ids::{ClusterId, SigningKeyId, TenantId};
use crate::operations::store::note_progress;
use crate::operations::{Definition, OperationError, Outcome, SettleFuture, Step, StepContext};
use crate::provisioning::{self, Cluster, DatabaseNames, MigrateLimits, ProvisioningError, checksums};
use crate::secrets::{DataKey, DatabaseUrl, Sealed, connect, generate_password};
use crate::tenant_db::{database_url_location, signing_key_location};
use crate::tenants::{TenantError, own_database};

/// How long one migration of a restored database may take: of a large one, an index takes its time.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(3600);

/// The operation.
pub static DEFINITION: Definition<BackupServices> = Definition {
    kind: "restore_tenant",
    steps: &[
        Step { name: "verify_archive", run: |s, c| boxed(verify_archive(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "prepare_keys", run: |s, c| boxed(prepare_keys(s, c)), undo: |s, c| boxed(forget_keys(s, c)) },
        Step { name: "create_roles", run: |s, c| boxed(create_roles(s, c)), undo: |s, c| boxed(drop_roles(s, c)) },
        Step { name: "restore_data", run: |s, c| boxed(restore_data(s, c)), undo: |s, c| boxed(drop_database(s, c)) },
        // What these do lies in the database, which goes as a whole.
        Step { name: "check_data", run: |s, c| boxed(check_data(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "bring_up_to_date", run: |s, c| boxed(bring_up_to_date(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

struct Task {
    tenant: TenantId,
    row: store::Restoring,
    names: DatabaseNames,
}

async fn task(services: &BackupServices, context: &StepContext) -> Result<Task, BackupError> {
    let row = store::restoring(&services.pool, context.operation_id).await?.ok_or(BackupError::Unreadable)?;
    let names = DatabaseNames {
        database: row.database_name.clone(),
        owner_role: row.owner_role.clone(),
        login_role: row.login_role.clone(),
    };
    Ok(Task { tenant: context.tenant_id.ok_or(BackupError::Unreadable)?, row, names })
}

impl Task {
    /// The file and the key that opens it.
    fn archive(&self, services: &BackupServices, context: &StepContext) -> Result<(PathBuf, ArchiveKey), BackupError> {
        let key = services
            .open_archive_key(&restore_key_location(context.operation_id), self.row.archive_key_sealed.clone())?;
        let name = self.row.file_name.as_ref().ok_or(BackupError::FileMissing)?;
        Ok((services.directory()?.join(name), key))
    }

    async fn cluster(&self, services: &BackupServices) -> Result<Cluster, BackupError> {
        Ok(services.clusters.open(ClusterId::from_uuid(self.row.cluster_id)).await?)
    }

    /// The credentials that `prepare_keys` wrote down.
    fn url(&self, services: &BackupServices) -> Result<DatabaseUrl, BackupError> {
        let open = || -> Option<DatabaseUrl> {
            let wrapped = Sealed::from_bytes(self.row.wrapped_key.clone()?).ok()?;
            let version = u32::try_from(self.row.key_version?).ok()?;
            let key = services.master_keys.unwrap(self.tenant, version, &wrapped).ok()?;
            let url = Sealed::from_bytes(self.row.url_sealed.clone()?).ok()?;
            DatabaseUrl::parse(&key.open_str(&database_url_location(self.tenant), &url).ok()?).ok()
        };
        open().ok_or_else(|| TenantError::Sealed.into())
    }
}

async fn verify_archive(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let (path, key) = task.archive(&services, &context)?;
    let server = task.cluster(&services).await?.server_version().await?;
    services.programs()?.check_restore(server).await?;
    let (manifest, _) = files::verify(path, key).await?;
    // The request looked at the same; the file may have been exchanged since.
    if manifest.about.tenant_id != task.tenant.as_uuid() {
        return Err(BackupError::OtherTenant(manifest.about.slug));
    }
    Ok(())
}

async fn prepare_keys(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let (path, key) = task.archive(&services, &context)?;
    let manifest = files::manifest(path, key).await?;
    let mut keys: Vec<DataKey> =
        manifest.data_keys.iter().map(|key| DataKey::import(key.version, key.key.expose())).collect();
    keys.sort_by_key(DataKey::version);
    let newest = keys.last().ok_or(BackupError::Unreadable)?;
    let url = task.cluster(&services).await?.tenant_url(&task.names, generate_password());
    let url_sealed = newest.seal_str(&database_url_location(task.tenant), &url.expose());
    // A new signing key: access tokens of whenever the backup was made, or of now, are worth nothing afterwards.
    let signing_key = SigningKeyId::new();
    let secret = Zeroizing::new(rand::random::<[u8; 32]>());
    let signing_secret = newest.seal(&signing_key_location(task.tenant, signing_key), secret.as_slice());
    let wrapped: Vec<Sealed> = keys.iter().map(|key| services.master_keys.wrap(task.tenant, key)).collect();
    let new = store::NewSecrets {
        operation: context.operation_id,
        versions: &keys.iter().map(|key| key.version().cast_signed()).collect::<Vec<_>>(),
        wrapped_keys: &wrapped.into_iter().map(Sealed::into_bytes).collect::<Vec<_>>(),
        master_key_version: services.master_keys.primary_version().cast_signed(),
        url_sealed: url_sealed.as_bytes(),
        signing_key: signing_key.as_uuid(),
        signing_secret_sealed: signing_secret.as_bytes(),
    };
    Ok(store::insert_secrets(&services.pool, &new).await?)
}

async fn forget_keys(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let mut connection = services.pool.acquire().await?;
    Ok(store::delete_secrets(&mut connection, context.operation_id).await?)
}

async fn create_roles(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let password = task.url(&services)?.password().cloned().ok_or(TenantError::Sealed)?;
    let verifier = tokio::task::spawn_blocking(move || provisioning::hash_password(&password)).await?;
    Ok(task.cluster(&services).await?.create_roles(&task.names, &verifier).await?)
}

async fn drop_roles(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    refuse_in_force(&task)?;
    Ok(task.cluster(&services).await?.drop_roles(&task.names).await?)
}

/// Whatever went wrong, a database that serves is not taken away by an undo.
fn refuse_in_force(task: &Task) -> Result<(), BackupError> {
    if task.row.in_force { Err(BackupError::Unreadable) } else { Ok(()) }
}

async fn restore_data(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    refuse_in_force(&task)?;
    let (path, key) = task.archive(&services, &context)?;
    let url = task.url(&services)?.with_application_name("freehold restore");
    // From an empty database each time: a worker that died may have left some of it, or a pg_restore that still goes on.
    task.cluster(&services).await?.recreate_empty_database(&task.names).await?;
    let total = std::fs::metadata(&path).map_or(0, |file| file.len());
    let mut restore = services.programs()?.restore(&url, &task.names.owner_role)?;
    let mut pieces = files::dump(path, key);
    let (mut done, mut told) = (0_u64, 0);
    while let Some(piece) = pieces.recv().await {
        // Damaged after all: pg_restore is dropped, and its transaction with it.
        let piece = piece?;
        done += piece.len() as u64;
        if !restore.write(&piece).await {
            break;
        }
        if done >> 23 > told {
            told = done >> 23;
            note_progress(&services.pool, context.operation_id, &mebibytes(done, total)).await?;
        }
    }
    Ok(restore.finish().await?)
}

async fn drop_database(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    refuse_in_force(&task)?;
    Ok(task.cluster(&services).await?.drop_database(&task.names).await?)
}

async fn check_data(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let (path, key) = task.archive(&services, &context)?;
    let expected = files::manifest(path, key).await?.about.tables;
    // Signing in as the tenant is the proof that its new credentials work.
    let client = sign_in(&task.url(&services)?).await?;
    let found = checksums(&client).await?;
    let missing = expected.iter().filter(|table| !found.contains(table)).map(|table| table.table.as_str());
    let strangers = found
        .iter()
        .filter(|table| !expected.iter().any(|other| other.table == table.table))
        .map(|table| &*table.table);
    let differing: Vec<&str> = missing.chain(strangers).collect();
    if !differing.is_empty() {
        return Err(BackupError::Differs(differing.join(", ")));
    }
    Ok(task.cluster(&services).await?.check_isolation(&task.names).await?)
}

async fn bring_up_to_date(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let task = task(&services, &context).await?;
    let url = task.url(&services)?;
    let migrations = services.clusters.migrations();
    let target = migrations.current_version();
    // Nobody uses it yet, so nothing needs protection but ourselves.
    let limits = MigrateLimits {
        lock_timeout: MIGRATION_PATIENCE,
        statement_timeout: MIGRATION_PATIENCE,
        concurrent_timeout: MIGRATION_PATIENCE,
        tries: 1,
    };
    provisioning::migrate_database(&url, migrations, target, &limits)
        .await
        .map_err(|failure| BackupError::Migration(failure.error))?;
    store::note_schema(&services.pool, context.operation_id, target, migrations.compatible_from(target)).await?;
    // A session, an invite or an API key that ended after the backup was made would be alive again: all of them end.
    let client = sign_in(&url).await?;
    access::end_credentials(&client, services.clock.now()).await.map_err(ProvisioningError::Statement)?;
    leave_to_client(&services, task.tenant).await
}

/// A tenant with a database of the client's own is about to be on a cluster: that database is left to the client, with
/// its data and without our marker. Last of all, for only the registry's turn is to come and the address goes with it;
/// and as well as can be, for whatever the client's database answers must not keep the tenant from coming back.
async fn leave_to_client(services: &BackupServices, tenant: TenantId) -> Result<(), BackupError> {
    match own_database::release(&services.pool, &services.master_keys, tenant).await {
        Ok(()) => Ok(()),
        Err(TenantError::Sealed) => {
            tracing::warn!(tenant_id = %tenant, "take the marker out of a client's database: its address does not open");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn sign_in(url: &DatabaseUrl) -> Result<tokio_postgres::Client, BackupError> {
    let connected = connect(url).await;
    Ok(connected.map_err(|error| ProvisioningError::Unreachable(anyhow!(error)))?.0)
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(async move {
        let id = context.operation_id;
        match outcome {
            Outcome::Started => return store::move_tenant(connection, id, "provisioning", now).await,
            Outcome::Succeeded => {
                if let Some(old) = store::replaced(connection, id).await? {
                    replaced::request(connection, old, id, now).await.map_err(|error| match error {
                        OperationError::Database(error) => error,
                        other => sqlx::Error::Encode(Box::new(other)),
                    })?;
                }
                store::switch(connection, id, now).await?;
            }
            Outcome::Failed => store::give_up(connection, id, now).await?,
            Outcome::NeedsOperator => store::move_tenant(connection, id, "failed", now).await?,
        }
        store::forget_archive_key(connection, id).await
    })
}
