//! `/platform/v1/backups`, and asking for a tenant's backup.

use chrono::{DateTime, Utc};
use garde::Validate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::platform::Operation;

/// `POST /platform/v1/tenants/{slug}/backups`. Exactly one of the two: whoever has it, and a copy of the file, has all
/// of the tenant.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBackupRequest {
    /// A passphrase of at least 12 characters.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub passphrase: Option<SecretString>,
    /// 32 random bytes in base64, as in a key file.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub key: Option<SecretString>,
}

/// `POST /platform/v1/backups/{id}/restore`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBackupRequest {
    /// The passphrase that the backup was sealed with.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub passphrase: Option<SecretString>,
    /// The key that it was sealed with.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub key: Option<SecretString>,
    /// Another slug than the tenant had.
    #[garde(skip)]
    #[serde(default)]
    pub slug: Option<String>,
    /// The slug of the tenant that is there and is to be replaced, which confirms it: its present data is lost.
    #[garde(skip)]
    #[serde(default)]
    pub replace: Option<String>,
    /// The cluster for its database; the one it was on when left out.
    #[garde(skip)]
    #[serde(default)]
    pub cluster: Option<String>,
}

/// Where a backup comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupOrigin {
    /// Made here.
    Backup,
    /// Uploaded, to be restored. It is removed after a day.
    Upload,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// Being made.
    Pending,
    /// Whole, and read back once.
    Complete,
    /// It came to nothing; there is no file.
    Failed,
}

/// What a backup is sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupKeyKind {
    /// A passphrase.
    Passphrase,
    /// The content of a key file.
    KeyFile,
}

/// A sealed backup of one tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Its id.
    pub id: Uuid,
    /// The tenant's slug. Of an uploaded file it is not known: what it says of itself is sealed.
    pub tenant: Option<String>,
    /// The tenant's id.
    pub tenant_id: Option<Uuid>,
    /// Where it comes from.
    pub origin: BackupOrigin,
    /// How far it is.
    pub state: BackupState,
    /// The operation that made it.
    pub operation_id: Option<Uuid>,
    /// The file's name in the backup directory.
    pub file_name: String,
    /// What it is sealed with.
    pub key_kind: BackupKeyKind,
    /// The file's length in bytes.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: Option<String>,
    /// The version of the tenant schema in it.
    pub schema_version: Option<i64>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was complete, or had failed.
    pub finished_at: Option<DateTime<Utc>>,
}

/// The answer to `POST /platform/v1/tenants/{slug}/backups`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateBackupResponse {
    /// The backup.
    pub backup: Backup,
    /// The operation that makes it.
    pub operation: Operation,
}

/// The answer to `POST /platform/v1/backups/{id}/restore`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RestoreBackupResponse {
    /// The tenant's id, the same as ever.
    pub tenant_id: Uuid,
    /// When the backup was asked for: what happened since is not in it.
    pub backup_of: DateTime<Utc>,
    /// The operation that brings the tenant back.
    pub operation: Operation,
}

/// A page of backups.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupPage {
    /// Newest first.
    pub items: Vec<Backup>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
