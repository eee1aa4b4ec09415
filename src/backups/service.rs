//! Asking for backups and restores, and looking after the files.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use futures::{Stream, StreamExt};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{
    BackupError, BackupRecord, BackupServices, Filter, backup, backup_key_location, files, restore,
    restore_key_location, store, summary,
};
use crate::api::platform::TenantLimits;
use crate::audit::{self, Actor, Event};
use crate::backup_archive::{ArchiveKey, ArchiveSecret, Derivation, Summary};
use crate::ids::{BackupId, ClusterId, OperationId, Slug, SuperAdminId, TenantId};
use crate::operations::{self, NewOperation, OperationError};
use crate::provisioning::DatabaseNames;
use crate::tenants::TenantError;

/// How many keys are derived at once: each takes 64 MiB, or what the header of a file asks for.
const DERIVATIONS: usize = 2;
/// How long somebody waits for their turn.
const WAIT: Duration = Duration::from_secs(10);
/// How long an uploaded file is kept.
const UPLOADS_LAST: TimeDelta = TimeDelta::days(1);

/// How long a drop of a replaced database that failed is left alone: its cluster is away.
const PAUSE_AFTER_FAILURE: TimeDelta = TimeDelta::minutes(10);
/// How many of them are asked for again at once.
const DROPS_AT_ONCE: i64 = 20;

/// A passphrase or the content of a key file, as it came.
#[derive(Debug, Default)]
pub struct Secret {
    /// A passphrase.
    pub passphrase: Option<SecretString>,
    /// Base64 of 32 bytes.
    pub key: Option<SecretString>,
}

/// How a tenant is to be brought back.
#[derive(Debug, Default)]
pub struct RestoreOrder {
    /// Opens the archive.
    pub secret: Secret,
    /// Another slug than that of back then.
    pub slug: Option<Slug>,
    /// The slug of the tenant in service that is to be replaced.
    pub replace: Option<String>,
    /// The cluster's name.
    pub cluster: Option<String>,
}

/// A restore that was accepted.
#[derive(Debug)]
pub struct Restoring {
    /// The operation.
    pub operation_id: OperationId,
    /// What the archive says about itself.
    pub about: Summary,
}

/// Backups of tenants.
#[derive(Debug, Clone)]
pub struct Backups {
    services: Arc<BackupServices>,
    derivations: Arc<Semaphore>,
    upload_limit_gib: u64,
}

impl Secret {
    /// `sealing` also asks whether a passphrase is good enough; one that opens is taken as it is.
    fn take(self, sealing: bool) -> Result<ArchiveSecret, BackupError> {
        match (self.passphrase, self.key) {
            (Some(passphrase), None) if sealing => Ok(ArchiveSecret::new_passphrase(passphrase)?),
            (Some(passphrase), None) => Ok(ArchiveSecret::Passphrase(passphrase)),
            (None, Some(key)) => Ok(ArchiveSecret::key(&key)?),
            _ => Err(BackupError::OneSecret),
        }
    }
}

impl Backups {
    /// Backups in the services' directory; an upload may have so many gibibytes.
    pub fn new(services: Arc<BackupServices>, upload_limit_gib: u64) -> Self {
        Self { services, derivations: Arc::new(Semaphore::new(DERIVATIONS)), upload_limit_gib }
    }

    async fn derive(&self, secret: ArchiveSecret, derivation: Derivation) -> Result<ArchiveKey, BackupError> {
        let permit = timeout(WAIT, Arc::clone(&self.derivations).acquire_owned())
            .await
            .map_err(|_elapsed| BackupError::Busy)?
            .map_err(|_closed| BackupError::Busy)?;
        let key = spawn_blocking(move || {
            let _permit = permit;
            secret.derive(&derivation)
        });
        Ok(key.await??)
    }

    /// Asks for a backup of a tenant.
    pub async fn request(&self, slug: &str, secret: Secret, admin: SuperAdminId) -> Result<BackupRecord, BackupError> {
        self.services.directory()?;
        let secret = secret.take(true)?;
        self.services.programs()?.check_present().await?;
        let derivation = Derivation::new(secret.kind());
        let key = self.derive(secret, derivation.clone()).await?;
        match self.store_request(slug, &derivation, &key, admin).await {
            // Once more: whoever went first is done by now, and is found.
            Err(error) if OperationError::is_deadlock(&error) => {
                self.store_request(slug, &derivation, &key, admin).await
            }
            other => other,
        }
    }

    async fn store_request(
        &self,
        slug: &str,
        derivation: &Derivation,
        key: &ArchiveKey,
        admin: SuperAdminId,
    ) -> Result<BackupRecord, BackupError> {
        let kind = derivation.kind();
        let (id, operation_id, now) = (BackupId::new(), OperationId::new(), self.services.clock.now());
        let mut transaction = self.services.pool.begin().await?;
        let tenant = store::tenant_now(&mut transaction, None, Some(slug)).await?.ok_or(TenantError::NotFound)?;
        if !["active", "suspended", "deleting"].contains(&tenant.state.as_str()) {
            return Err(BackupError::NoDatabase { state: tenant.state });
        }
        let file_name = format!("{slug}-{}-{}.fhbackup", now.format("%Y%m%dT%H%M%SZ"), id.as_uuid().simple());
        let operation = NewOperation {
            id: operation_id,
            kind: backup::DEFINITION.kind,
            tenant_id: Some(TenantId::from_uuid(tenant.id)),
            input: serde_json::json!({ "backup_id": id }),
            steps: &backup::DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: Some(admin.as_uuid()),
            group_id: None,
        };
        operations::store::create(&mut transaction, &operation, now).await?;
        let new = store::NewBackup {
            id,
            tenant: Some(TenantId::from_uuid(tenant.id)),
            origin: "backup",
            operation: Some(operation_id),
            state: "pending",
            file_name: &file_name,
            key_kind: kind.as_str(),
            key_derivation: &derivation.to_bytes(),
            archive_key_sealed: Some(&self.services.seal_archive_key(&backup_key_location(id.as_uuid()), key)),
            size: None,
            sha256: None,
            now,
        };
        store::insert_backup(&mut transaction, &new).await?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.backup",
            tenant_id: Some(TenantId::from_uuid(tenant.id)),
            detail: serde_json::json!({ "backup_id": id, "key_kind": kind.as_str() }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        self.find(id).await
    }

    /// Backups, newest first.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<BackupRecord>, BackupError> {
        let mut connection = self.services.pool.acquire().await?;
        Ok(store::list(&mut connection, filter).await?)
    }

    /// One backup.
    pub async fn find(&self, id: BackupId) -> Result<BackupRecord, BackupError> {
        let filter = Filter { id: Some(id), limit: 1, ..Filter::default() };
        self.list(&filter).await?.pop().ok_or(BackupError::NotFound)
    }

    async fn complete(&self, id: BackupId) -> Result<(BackupRecord, PathBuf), BackupError> {
        let record = self.find(id).await?;
        if record.state != "complete" {
            return Err(BackupError::NotComplete);
        }
        let path = self.services.directory()?.join(&record.file_name);
        Ok((record, path))
    }

    /// The sealed file of a backup, piece by piece.
    pub async fn content(
        &self,
        id: BackupId,
        admin: SuperAdminId,
    ) -> Result<(BackupRecord, impl Stream<Item = std::io::Result<Bytes>> + Send + use<>), BackupError> {
        let (record, path) = self.complete(id).await?;
        let file = File::open(path).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BackupError::FileMissing,
            _ => error.into(),
        })?;
        self.audit(admin, "backup.download", &record).await?;
        let pieces = futures::stream::try_unfold(file, async |mut file| {
            let mut piece = Vec::with_capacity(64 * 1024);
            let read = file.read_buf(&mut piece).await?;
            Ok((read > 0).then(|| (Bytes::from(piece), file)))
        });
        Ok((record, pieces))
    }

    async fn audit(&self, admin: SuperAdminId, action: &'static str, record: &BackupRecord) -> Result<(), BackupError> {
        let mut connection = self.services.pool.acquire().await?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action,
            tenant_id: record.tenant_id.map(TenantId::from_uuid),
            detail: serde_json::json!({ "backup_id": record.id }),
        };
        Ok(audit::record(&mut connection, &event, self.services.clock.now()).await?)
    }

    /// Removes a backup, file and row. The file goes first: a row without a file can be deleted again, a file without a
    /// row would be found by nobody.
    pub async fn delete(&self, id: BackupId, admin: SuperAdminId) -> Result<(), BackupError> {
        let record = self.find(id).await?;
        let path = self.services.directory()?.join(&record.file_name);
        let mut transaction = self.services.pool.begin().await?;
        if !store::lock(&mut transaction, id).await? {
            return Err(BackupError::NotFound);
        }
        if let Some(operation) = store::user_of(&mut transaction, id).await? {
            return Err(BackupError::InUse(operation));
        }
        files::remove(path).await?;
        store::delete(&mut transaction, id).await?;
        transaction.commit().await?;
        self.audit(admin, "backup.delete", &record).await
    }

    /// Takes a sealed file in, to restore from. Of its content only the header is looked at.
    pub async fn upload<E>(
        &self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
        admin: SuperAdminId,
    ) -> Result<BackupRecord, BackupError> {
        let id = BackupId::new();
        let file_name = format!("upload-{}.fhbackup", id.as_uuid().simple());
        let path = self.services.directory()?.join(&file_name);
        let taken = self.take_in(pieces, &path).await;
        let stored = match taken {
            Ok((size, sha256)) => self.register(id, &file_name, path.clone(), size, &sha256).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            // Half a file, or one that is no backup.
            files::remove(path).await?;
            return Err(error);
        }
        let record = self.find(id).await?;
        self.audit(admin, "backup.upload", &record).await?;
        Ok(record)
    }

    async fn take_in<E>(
        &self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
        path: &std::path::Path,
    ) -> Result<(u64, [u8; 32]), BackupError> {
        let unfinished = files::partial(path);
        let mut file = File::from_std(files::create(&unfinished)?);
        let (mut size, mut hash) = (0_u64, Sha256::new());
        let mut pieces = pin!(pieces);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| BackupError::BrokenOff)?;
            size += piece.len() as u64;
            if size > self.upload_limit_gib << 30 {
                return Err(BackupError::TooLarge { limit_gib: self.upload_limit_gib });
            }
            hash.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        let (file, path) = (file.into_std().await, path.to_owned());
        spawn_blocking(move || files::keep(&file, &unfinished, &path)).await??;
        Ok((size, hash.finalize().into()))
    }

    async fn register(
        &self,
        id: BackupId,
        file_name: &str,
        path: PathBuf,
        size: u64,
        sha256: &[u8],
    ) -> Result<(), BackupError> {
        let header = files::header(path).await?;
        let derivation = header.derivation();
        let new = store::NewBackup {
            id,
            tenant: None,
            origin: "upload",
            operation: None,
            state: "complete",
            file_name,
            key_kind: derivation.kind().as_str(),
            key_derivation: &derivation.to_bytes(),
            archive_key_sealed: None,
            size: i64::try_from(size).ok(),
            sha256: Some(sha256),
            now: self.services.clock.now(),
        };
        let mut connection = self.services.pool.acquire().await?;
        Ok(store::insert_backup(&mut connection, &new).await?)
    }

    /// Removes uploads that nobody restored from for a day, and what uploads that broke off have left.
    pub async fn prune_uploads(&self) -> Result<(), BackupError> {
        let Some(directory) = self.services.directory.clone() else { return Ok(()) };
        let now = self.services.clock.now();
        for id in store::old_uploads(&self.services.pool, now - UPLOADS_LAST).await? {
            let record = self.find(id).await?;
            let mut transaction = self.services.pool.begin().await?;
            if store::lock(&mut transaction, id).await? && store::user_of(&mut transaction, id).await?.is_none() {
                files::remove(directory.join(&record.file_name)).await?;
                store::delete(&mut transaction, id).await?;
                transaction.commit().await?;
            }
        }
        spawn_blocking(move || files::remove_broken_off_uploads(&directory)).await??;
        Ok(())
    }

    /// Asks again for the drop of each replaced database that could not be dropped. Returns how many.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn retry_drops(&self) -> Result<usize, BackupError> {
        let before = self.services.clock.now() - PAUSE_AFTER_FAILURE;
        let failed = store::failed_drops(&self.services.pool, before, DROPS_AT_ONCE).await?;
        let mut asked = 0;
        for operation in failed {
            let mut transaction = self.services.pool.begin().await?;
            match operations::store::retry(&mut transaction, operation).await {
                Ok(_) => {
                    transaction.commit().await?;
                    asked += 1;
                }
                // Somebody was faster, or the tenant is held or gone by now; what is held has its turn later.
                Err(
                    OperationError::Conflict { .. }
                    | OperationError::NotRetryable
                    | OperationError::TenantGone
                    | OperationError::Database(sqlx::Error::RowNotFound),
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(asked)
    }

    /// Asks for a tenant to be brought back.
    pub async fn restore(
        &self,
        id: BackupId,
        mut order: RestoreOrder,
        admin: SuperAdminId,
    ) -> Result<Restoring, BackupError> {
        let (_, path) = self.complete(id).await?;
        let secret = std::mem::take(&mut order.secret).take(false)?;
        self.services.programs()?.check_present().await?;
        let header = files::header(path.clone()).await?;
        let key = self.derive(secret, header.derivation().clone()).await?;
        // Whether the rest is whole is the operation's first step: it may take long.
        let about = files::manifest(path, key.clone()).await?.about;
        let limits = summary::judge(&about)?;
        let ours = self.services.clusters.migrations().current_version();
        if about.schema_version > ours {
            return Err(BackupError::SchemaNewer { archive: about.schema_version, ours });
        }
        let operation_id = match self.store_restore(id, &order, &about, &limits, &key, admin).await {
            Err(error) if OperationError::is_deadlock(&error) => {
                self.store_restore(id, &order, &about, &limits, &key, admin).await?
            }
            other => other?,
        };
        Ok(Restoring { operation_id, about })
    }

    async fn store_restore(
        &self,
        id: BackupId,
        order: &RestoreOrder,
        about: &Summary,
        limits: &TenantLimits,
        key: &ArchiveKey,
        admin: SuperAdminId,
    ) -> Result<OperationId, BackupError> {
        let tenant = TenantId::from_uuid(about.tenant_id);
        let (operation_id, now) = (OperationId::new(), self.services.clock.now());
        let mut transaction = self.services.pool.begin().await?;
        if !store::lock(&mut transaction, id).await? {
            return Err(BackupError::NotFound);
        }
        let there = store::tenant_now(&mut transaction, Some(about.tenant_id), None).await?;
        let replaces = may_restore(there.as_ref(), order.replace.as_deref())?;
        let back_then: Slug = about.slug.parse().map_err(TenantError::from)?;
        let slug = match (&there, &order.slug) {
            // A tenant in service keeps its slug.
            (Some(row), _) if replaces => row.slug.parse().map_err(TenantError::from)?,
            (_, wanted) => wanted.clone().unwrap_or(back_then),
        };
        let clusters = store::clusters(&mut transaction).await?;
        let cluster = choose_cluster(&clusters, order.cluster.as_deref(), there.as_ref(), about)?;
        let registry = serde_json::json!({
            "name": about.name, "plan": about.plan, "template": about.template,
            "admin_email": about.admin_email, "limits": limits,
        });
        let new = store::NewRestore {
            operation: operation_id,
            backup: id,
            tenant,
            slug: slug.as_str(),
            replaces,
            state_before: there.as_ref().map_or("deleted", |row| &row.state),
            slug_before: there.as_ref().map_or(slug.as_str(), |row| &row.slug),
            registry: &registry,
            cluster,
            names: &DatabaseNames::beside(&slug, tenant, operation_id),
            archive_key_sealed: &self.services.seal_archive_key(&restore_key_location(operation_id), key),
            now,
        };
        store::insert_restore(&mut transaction, &new).await.map_err(|error| match &error {
            sqlx::Error::Database(refused) if refused.is_unique_violation() => TenantError::SlugTaken.into(),
            _ => BackupError::Database(error),
        })?;
        let operation = NewOperation {
            id: operation_id,
            kind: restore::DEFINITION.kind,
            tenant_id: Some(tenant),
            input: serde_json::json!({ "backup_id": id }),
            steps: &restore::DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: Some(admin.as_uuid()),
            group_id: None,
        };
        operations::store::create(&mut transaction, &operation, now).await?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.restore",
            tenant_id: Some(tenant),
            detail: serde_json::json!({ "backup_id": id, "slug": slug, "replaces": replaces }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(operation_id)
    }
}

/// Whether the tenant stays in service meanwhile and is replaced, or an error that says what is in the way.
fn may_restore(there: Option<&store::TenantNow>, replace: Option<&str>) -> Result<bool, BackupError> {
    match (there, replace) {
        (Some(row), Some(slug)) if row.slug == slug && row.state == "active" => Ok(true),
        // Its logins are shut out, and those of a new database would have to be too.
        (Some(row), Some(slug)) if row.slug == slug && row.state != "deleted" => {
            Err(BackupError::TenantExists { slug: row.slug.clone(), state: row.state.clone() })
        }
        (_, Some(slug)) => Err(BackupError::OtherTenant(slug.to_owned())),
        (None, None) => Ok(false),
        (Some(row), None) if ["deleted", "failed"].contains(&row.state.as_str()) => Ok(false),
        (Some(row), None) => Err(BackupError::TenantExists { slug: row.slug.clone(), state: row.state.clone() }),
    }
}

/// The cluster that was named; else the one the tenant is or was on; else the only one.
fn choose_cluster(
    clusters: &[(ClusterId, String)],
    named: Option<&str>,
    there: Option<&store::TenantNow>,
    about: &Summary,
) -> Result<ClusterId, BackupError> {
    if let Some(named) = named {
        let found = clusters.iter().find(|(_, name)| name == named);
        return Ok(found.ok_or(TenantError::UnknownCluster)?.0);
    }
    if about.database_mode != "managed" || there.is_some_and(|row| row.database_mode != "managed") {
        return Err(BackupError::OwnDatabase);
    }
    if let Some(cluster) = there.and_then(|row| row.cluster_id) {
        return Ok(ClusterId::from_uuid(cluster));
    }
    match clusters {
        [(only, _)] => Ok(*only),
        _ => Err(TenantError::ClusterNeeded { known: clusters.iter().map(|(_, name)| name.clone()).collect() }.into()),
    }
}
