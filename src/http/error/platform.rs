//! The errors that requests of the owner's people meet.

use axum::http::StatusCode;

use super::{ApiError, log};
use crate::backup_archive::ArchiveError;
use crate::backups::BackupError;
use crate::fleet::FleetError;
use crate::fleet_audit::FleetAuditError;
use crate::idempotency::IdempotencyError;
use crate::operations::OperationError;
use crate::postgres_programs::ProgramError;
use crate::rotation::RotationError;
use crate::shared_models::SharedModelError;
use crate::tenants::TenantError;

impl From<SharedModelError> for ApiError {
    fn from(error: SharedModelError) -> Self {
        match error {
            SharedModelError::Configuration(error) => error.into(),
            SharedModelError::NotFound => Self::not_found("shared model"),
            SharedModelError::Unusable => {
                log("shared_model_unusable", &error);
                Self::conflict("shared_model_unusable", "The stored key cannot be used").detail("set it again")
            }
            SharedModelError::Database(error) => error.into(),
        }
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let text = error.to_string();
        let refused = |code| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, "The backup cannot be used");
        match error {
            BackupError::NoDirectory => Self::conflict("backup_dir_missing", "Backups are not set up").detail(text),
            BackupError::OneSecret => Self::invalid("passphrase", text),
            BackupError::Passphrase(_) => Self::invalid("passphrase", text),
            BackupError::KeyFile(_) => Self::invalid("key", text),
            BackupError::NotFound => Self::not_found("backup"),
            BackupError::NotComplete => Self::conflict("backup_not_complete", "The backup is not complete"),
            BackupError::FileMissing => Self::conflict("backup_file_missing", "The backup's file is not here").detail(
                "it was removed, or the backup directory is not shared by all servers: ask the one that has the file",
            ),
            BackupError::InUse(operation) => {
                let mut conflict = Self::conflict("backup_in_use", "An operation works on the backup").detail(text);
                conflict.more.operation_id = Some(operation);
                conflict
            }
            BackupError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The file is too large")
                    .detail(format!("{text}; the setting is FREEHOLD_BACKUP_UPLOAD_GIB"))
            }
            BackupError::BrokenOff => Self::new(StatusCode::BAD_REQUEST, "upload_broken_off", "The upload broke off"),
            BackupError::Archive(ArchiveError::Io(_)) | BackupError::Io(_) => {
                Self::unavailable("backup_dir_unusable", "The backup directory cannot be used", &error)
            }
            BackupError::Archive(archive) => refused(archive.code()).detail(text),
            BackupError::SchemaNewer { .. } => {
                refused("backup_schema_newer").detail(format!("{text}; restore it with a newer version of Freehold"))
            }
            BackupError::NoDatabase { .. } => {
                Self::conflict("tenant_without_database", "There is nothing to back up").detail(text)
            }
            BackupError::TenantExists { .. } => Self::conflict("tenant_exists", "The tenant is there").detail(format!(
                "{text}; one in service is replaced if `replace` names it, one that is suspended has to be resumed first, one \
                 being deleted to be undeleted"
            )),
            BackupError::OtherTenant(_) => refused("backup_of_another_tenant").detail(text),
            BackupError::OwnDatabase => refused("backup_of_own_database").detail(text),
            BackupError::Busy => Self::unavailable("busy", "Too many backups are asked for at once", &error),
            BackupError::Program(ProgramError::Missing { .. } | ProgramError::Unsuitable { .. }) => {
                log("postgres_client_missing", &error);
                Self::conflict("postgres_client_missing", "The PostgreSQL client programs are missing").detail(text)
            }
            BackupError::Provisioning(error) => TenantError::from(error).into(),
            BackupError::Tenant(error) => error.into(),
            BackupError::Operation(error) => error.into(),
            BackupError::Database(error) => error.into(),
            BackupError::KeyGone
            | BackupError::Unreadable
            | BackupError::Program(_)
            | BackupError::Differs(_)
            | BackupError::Migration(_)
            | BackupError::Task(_) => Self::internal(&error),
        }
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Conflict { holder, kind } => {
                let mut conflict = Self::conflict("operation_in_progress", "Another operation holds the tenant")
                    .detail(format!("operation {holder} ({kind}) has to be settled first"));
                conflict.more.operation_id = Some(holder);
                conflict
            }
            OperationError::NotFound => Self::not_found("operation"),
            OperationError::TenantGone => Self::conflict("tenant_gone", "The tenant was deleted for good")
                .detail("nothing is done to it any more"),
            OperationError::NotRetryable => {
                Self::conflict("operation_not_failed", "Only an operation that failed can be retried")
            }
            OperationError::Database(error) => error.into(),
            OperationError::Queue(error) => Self::internal(error.as_ref()),
        }
    }
}

impl From<FleetError> for ApiError {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::UnknownTenants { slugs } => {
                Self::invalid("tenants", format!("there is no tenant {}", slugs.join(", ")))
            }
            FleetError::UnknownVersion { .. } => Self::invalid("target_version", error.to_string()),
            FleetError::Operation(error) => error.into(),
            FleetError::Database(error) => error.into(),
        }
    }
}

impl From<FleetAuditError> for ApiError {
    fn from(error: FleetAuditError) -> Self {
        match error {
            FleetAuditError::Operation(error) => error.into(),
            FleetAuditError::Database(error) => error.into(),
        }
    }
}

impl From<IdempotencyError> for ApiError {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::Reused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The Idempotency-Key was used for another request",
            ),
            IdempotencyError::Unreadable => Self::internal(&error),
            IdempotencyError::Database(error) => error.into(),
        }
    }
}

impl From<TenantError> for ApiError {
    fn from(error: TenantError) -> Self {
        let one_of = |known: &[String]| format!("must be one of: {}", known.join(", "));
        match error {
            TenantError::Slug(error) => Self::invalid("slug", error.to_string()),
            TenantError::SlugTaken => Self::conflict("slug_taken", "Another tenant has this slug"),
            TenantError::UnknownPlan { known } => Self::invalid("plan", one_of(&known)),
            TenantError::UnknownTemplate { known } => Self::invalid("template", one_of(&known)),
            TenantError::UnknownCluster => Self::invalid("database.cluster", "no cluster of this name is registered"),
            TenantError::ClusterNeeded { known } if known.is_empty() => {
                Self::conflict("no_cluster", "No cluster is registered")
                    .detail("register one with `freehold cluster add` first")
            }
            TenantError::ClusterNeeded { known } => Self::invalid("database.cluster", one_of(&known)),
            TenantError::ClusterNameTaken => {
                Self::conflict("cluster_name_taken", "A cluster of this name is registered")
            }
            TenantError::ClusterRegisteredAs(other) => {
                Self::conflict("cluster_registered_as", "This server is a registered cluster already").detail(format!(
                    "it is cluster {other}; to change how it is reached, give that one the URL: freehold cluster set {other}"
                ))
            }
            TenantError::ClusterNotFound => Self::not_found("cluster"),
            TenantError::OtherServer => {
                Self::conflict("cluster_is_another_server", "The URL leads to another server than the cluster's").detail(
                    "tenants' databases are on the server that was registered; register another one with `freehold cluster \
                     add`",
                )
            }
            TenantError::UnsuitableCluster(reason) => Self::invalid("admin_url", reason),
            TenantError::UnsuitableDatabase(report) => {
                let mut refused = Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "database_unsuitable",
                    "The database cannot be used like this",
                );
                refused.more.findings = report.findings;
                refused
            }
            TenantError::NotOwnDatabase => {
                Self::conflict("database_managed", "The platform manages this tenant's database")
            }
            TenantError::NotWaiting => Self::conflict("tenant_not_active", "The tenant takes no database now")
                .detail("it is being set up, suspended for good, or removed"),
            TenantError::NotFound => Self::not_found("tenant"),
            TenantError::WrongState { .. } => {
                Self::conflict("wrong_tenant_state", "The tenant is not in a state for this").detail(error.to_string())
            }
            TenantError::PurgeBegun => Self::conflict("purge_begun", "The tenant is being removed for good")
                .detail("its database may be gone already: only a backup of its own brings it back"),
            TenantError::Contended => {
                Self::conflict("tenant_contended", "The tenant kept changing meanwhile").detail("try again")
            }
            TenantError::Operation(error) => error.into(),
            TenantError::Idempotency(error) => error.into(),
            TenantError::Provisioning(error) => {
                Self::unavailable("cluster_unavailable", "The cluster did not do what was asked", &error)
            }
            TenantError::Sealed | TenantError::Random => Self::internal(&error),
            TenantError::Database(error) => error.into(),
        }
    }
}

impl From<RotationError> for ApiError {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::UnknownTenant(_) => Self::invalid("tenants", error.to_string()),
            RotationError::Targets(reason) => Self::invalid("tenants", reason),
            RotationError::Period => Self::invalid("schedule", error.to_string()),
            RotationError::NotActive => Self::conflict("tenant_not_active", "The tenant is not in service"),
            RotationError::NotManaged => {
                Self::conflict("database_not_managed", "The client keeps this database itself")
                    .detail("the client's admin gives new credentials: PUT /api/v1/database")
            }
            RotationError::MasterKeyMissing(version) => {
                Self::conflict("master_key_missing", "This server does not hold a master key that is in use")
                    .detail(format!("give every server version {version} in FREEHOLD_MASTER_KEYS, and restart them"))
            }
            RotationError::NothingToRotate(version) => {
                Self::conflict("nothing_to_rotate", "Everything is under the newest master key that this server holds")
                    .detail(format!(
                        "it is version {version}; add one with a higher version to FREEHOLD_MASTER_KEYS on every \
                         server, and restart them first"
                    ))
            }
            RotationError::Operation(error) => error.into(),
            RotationError::Database(error) => error.into(),
        }
    }
}
