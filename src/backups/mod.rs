//! Backups of one tenant, and bringing a tenant back from one.
//!
//! A backup is a sealed file (`backup_archive`) in the backup directory, and holds the tenant's data keys: with the
//! passphrase or key file it was sealed with, and with nothing else, a tenant that was deleted for good comes back. The
//! archive's key is derived when somebody asks, kept sealed for as long as the operation needs it, and forgotten in the
//! transaction that settles the operation. So an operation of this kind cannot be retried once it has failed: it is
//! asked for again.
//!
//! Restoring never touches a database that serves: it makes one beside it, checks it, and the registry turns to it in
//! the transaction that settles the operation. It knows tables only by their checksums.

mod backup;
mod files;
mod replaced;
mod restore;
mod service;
mod store;
mod summary;

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use thiserror::Error;
use uuid::Uuid;

pub use backup::DEFINITION as BACKUP_TENANT;
pub use replaced::DEFINITION as DROP_REPLACED_DATABASE;
pub use restore::DEFINITION as RESTORE_TENANT;
pub use service::{Backups, RestoreOrder, Restoring, Secret};

use crate::backup_archive::{ArchiveError, ArchiveKey, KeyFileError, PassphraseError};
use crate::clock::SharedClock;
use crate::ids::{BackupId, OperationId};
use crate::operations::{OperationError, StepError};
use crate::postgres_programs::{PostgresPrograms, ProgramError};
use crate::provisioning::{MigrateError, ProvisioningError};
use crate::secrets::{Location, MasterKeyring, Sealed};
use crate::tenants::TenantError;
use crate::tenants::clusters::ClusterRegistry;

/// What the steps need.
#[derive(Debug)]
pub struct BackupServices {
    /// The platform's database.
    pub pool: PgPool,
    /// Opens the tenants' data keys, and seals archives' keys meanwhile.
    pub master_keys: Arc<MasterKeyring>,
    /// Where databases are made.
    pub clusters: ClusterRegistry,
    /// The time.
    pub clock: SharedClock,
    /// Where the files lie; without one there are no backups.
    pub directory: Option<PathBuf>,
    /// Where `pg_dump` and `pg_restore` are; in the PATH without one.
    pub postgres_client_dir: Option<PathBuf>,
}

/// A backup as it stands.
#[derive(Debug, Clone)]
pub struct BackupRecord {
    /// Its id.
    pub id: Uuid,
    /// Whose it is; unknown for an upload.
    pub tenant_id: Option<Uuid>,
    /// That tenant's slug.
    pub slug: Option<String>,
    /// `backup` or `upload`.
    pub origin: String,
    /// The operation that made it.
    pub operation_id: Option<Uuid>,
    /// `pending`, `complete` or `failed`.
    pub state: String,
    /// The file in the backup directory.
    pub file_name: String,
    /// What it is sealed with.
    pub key_kind: String,
    /// Its length in bytes.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the file.
    pub sha256: Option<Vec<u8>>,
    /// The version of the tenant schema in it.
    pub schema_version: Option<i64>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was settled.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Which backups to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this one.
    pub id: Option<BackupId>,
    /// Only of this tenant.
    pub tenant_slug: Option<String>,
    /// Only older than this one.
    pub before: Option<BackupId>,
    /// At most so many.
    pub limit: i64,
}

/// Why something about a backup could not be done.
#[derive(Debug, Error)]
pub enum BackupError {
    /// No directory is set.
    #[error("no backup directory is set; set FREEHOLD_BACKUP_DIR to one that every server of the platform shares")]
    NoDirectory,
    /// Neither a passphrase nor a key was given, or both.
    #[error("give either a passphrase or a key")]
    OneSecret,
    /// The passphrase is too weak.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The key is none.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// There is no such backup.
    #[error("no such backup")]
    NotFound,
    /// It is not finished, or failed.
    #[error("the backup is not complete")]
    NotComplete,
    /// The file is not in this server's directory.
    #[error("the backup's file is not in this server's backup directory")]
    FileMissing,
    /// An operation works on it.
    #[error("operation {0} works on the backup")]
    InUse(OperationId),
    /// The file is larger than the setting allows.
    #[error("the file is larger than {limit_gib} GiB")]
    TooLarge {
        /// The setting.
        limit_gib: u64,
    },
    /// The upload broke off.
    #[error("the upload broke off")]
    BrokenOff,
    /// About the archive itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Its schema is newer than this server's.
    #[error("the backup's schema has version {archive}, and this server speaks {ours}")]
    SchemaNewer {
        /// The archive's.
        archive: i64,
        /// The server's.
        ours: i64,
    },
    /// The tenant has no database, or is on its way out.
    #[error("the tenant is {state}")]
    NoDatabase {
        /// Its state.
        state: String,
    },
    /// The tenant is there.
    #[error("the tenant `{slug}` is {state}")]
    TenantExists {
        /// Its slug.
        slug: String,
        /// Its state.
        state: String,
    },
    /// The tenant to be replaced is not the archive's.
    #[error("the backup is not one of the tenant `{0}`")]
    OtherTenant(String),
    /// A database of the client's own is not restored into.
    #[error("the tenant had a database of its own; name a cluster to restore it to")]
    OwnDatabase,
    /// Too many keys are being derived.
    #[error("too many keys are being derived")]
    Busy,
    /// The operation's key was forgotten when it was settled.
    #[error("the archive's key is not kept after an operation has failed; ask for it again")]
    KeyGone,
    /// The operation's row is gone or unreadable.
    #[error("the operation's record cannot be read")]
    Unreadable,
    /// A program did not do its work.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A tenant's database could not be reached or refused something.
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
    /// The restored database could not be brought to the present schema.
    #[error(transparent)]
    Migration(MigrateError),
    /// The data is not what the manifest says.
    #[error("the restored tables differ from the backup's: {0}")]
    Differs(String),
    /// A blocking thread was lost.
    #[error("a thread was lost")]
    Task(#[from] tokio::task::JoinError),
    /// A file could not be read or written.
    #[error("the backup directory cannot be used")]
    Io(#[from] std::io::Error),
    /// About tenants and clusters.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// About the operation.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

impl From<BackupError> for StepError {
    fn from(error: BackupError) -> Self {
        let permanent = |code, error: BackupError| Self::Permanent { code, message: format!("{error}") };
        match error {
            BackupError::Tenant(error) => error.into(),
            BackupError::Provisioning(error) => error.into(),
            BackupError::Archive(ArchiveError::Io(error)) => {
                Self::Transient("the backup's file cannot be read or written", error.into())
            }
            BackupError::Archive(archive) => Self::Permanent { code: archive.code(), message: archive.to_string() },
            BackupError::Program(ref program) => match program {
                ProgramError::Missing { .. } => permanent("postgres_client_missing", error),
                ProgramError::Unsuitable { .. } => permanent("postgres_client_unsuitable", error),
                ProgramError::Failed { program: name, .. } | ProgramError::Io { program: name, .. } => {
                    Self::Transient(name, error.into())
                }
            },
            BackupError::NoDirectory => permanent("backup_dir_missing", error),
            BackupError::FileMissing => permanent("backup_file_missing", error),
            BackupError::KeyGone => permanent("archive_key_gone", error),
            BackupError::Unreadable => permanent("input_unreadable", error),
            BackupError::Differs(_) => permanent("checksum_mismatch", error),
            BackupError::SchemaNewer { .. } => permanent("backup_schema_newer", error),
            BackupError::NoDatabase { .. } => permanent("tenant_without_database", error),
            BackupError::Migration(MigrateError::Unknown { .. }) => permanent("backup_schema_newer", error),
            BackupError::Migration(MigrateError::Altered { .. } | MigrateError::Refused { .. }) => {
                permanent("migration_failed", error)
            }
            BackupError::Migration(error) => {
                Self::Transient("the restored database could not be brought up to date", error.into())
            }
            BackupError::Io(error) => Self::Transient("the backup directory cannot be used", error.into()),
            other => Self::Transient("the platform database failed", other.into()),
        }
    }
}

impl BackupServices {
    fn directory(&self) -> Result<&PathBuf, BackupError> {
        self.directory.as_ref().ok_or(BackupError::NoDirectory)
    }

    fn programs(&self) -> Result<PostgresPrograms, BackupError> {
        Ok(PostgresPrograms::new(self.postgres_client_dir.clone(), self.directory()?))
    }

    fn seal_archive_key(&self, location: &Location, key: &ArchiveKey) -> Vec<u8> {
        self.master_keys.seal_platform(location, &key.expose()).into_bytes()
    }

    fn open_archive_key(&self, location: &Location, sealed: Option<Vec<u8>>) -> Result<ArchiveKey, BackupError> {
        let sealed = Sealed::from_bytes(sealed.ok_or(BackupError::KeyGone)?).map_err(|_| TenantError::Sealed)?;
        let text = self.master_keys.open_platform(location, &sealed).map_err(|_| TenantError::Sealed)?;
        Ok(ArchiveKey::parse(&text).ok_or(TenantError::Sealed)?)
    }
}

/// Where the key of a backup under way is sealed.
pub fn backup_key_location(backup: Uuid) -> Location {
    Location::platform("backups", "archive_key_sealed", backup)
}

/// Where the key of a restore under way is sealed.
pub fn restore_key_location(operation: OperationId) -> Location {
    Location::platform("restores", "archive_key_sealed", operation)
}
