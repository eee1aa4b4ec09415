//! Why something was refused, or could not be done.

use std::time::Duration;

use rand::rngs::SysError;
use thiserror::Error;

use crate::secrets::{PasswordError, PasswordPolicyError};
use crate::tenant_db::TenantDbError;

/// Why something was refused, or could not be done.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The credential proves nothing. One answer for every reason.
    #[error("no valid credential")]
    Unauthenticated,
    /// The invite does not exist, was used, replaced or has expired, or its tenant is not in service. One answer for
    /// every reason.
    #[error("the invite is not valid")]
    InvalidInvite,
    /// The credential is good, and its tenant is out of service.
    #[error("the tenant is not active")]
    TenantNotActive,
    /// The credential does not allow this.
    #[error("the permission {permission} is needed")]
    Forbidden {
        /// What would be needed.
        permission: &'static str,
    },
    /// The role to be given, or that of the user to be changed, is not below the caller's own.
    #[error("the role is not the caller's to govern")]
    RoleNotGoverned,
    /// Nobody disables or deletes the account that they are signed in with.
    #[error("nobody may disable or delete their own account")]
    OwnAccount,
    /// The last admin who can sign in would be gone.
    #[error("the tenant's last admin cannot be removed, disabled or given another role")]
    LastAdmin,
    /// The last super admin would be gone.
    #[error("the last super admin cannot be removed")]
    LastSuperAdmin,
    /// Too many guesses at this account.
    #[error("too many attempts to sign in")]
    TooManyAttempts {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Nobody may chat here without an account, or there is no such tenant. One answer for both.
    #[error("visitors are not allowed")]
    VisitorsNotAllowed,
    /// Visitors have asked as much as they may, or there are too many new ones.
    #[error("the limit for visitors is reached")]
    VisitorLimit {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Another user of the tenant has this address.
    #[error("another user has this e-mail address")]
    EmailTaken,
    /// The text is no e-mail address.
    #[error("this is not an e-mail address")]
    InvalidEmail,
    /// The chosen password is not accepted.
    #[error("the password is not accepted")]
    WeakPassword(#[from] PasswordPolicyError),
    /// The tenant has as many API keys in force as it may have.
    #[error("there are {limit} API keys in force already")]
    TooManyApiKeys {
        /// The most there may be.
        limit: i64,
    },
    /// An API key that would have expired before it was made.
    #[error("an API key must expire in the future")]
    ExpiryPast,
    /// There is nothing of this id that the caller may know of.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The tenant's database could not be had.
    #[error("reach the tenant's database")]
    TenantDb(#[source] TenantDbError),
    /// The tenant's database refused a statement.
    #[error("query the tenant's database")]
    TenantDatabase(#[from] tokio_postgres::Error),
    /// The platform's database failed.
    #[error("query the platform's database")]
    PlatformDatabase(#[from] sqlx::Error),
    /// A password could not be hashed or checked.
    #[error("hash or check a password")]
    Password(#[from] PasswordError),
    /// The operating system supplied no random bytes.
    #[error("make a random token")]
    Random(#[from] SysError),
    /// The tenant has no key to sign with.
    #[error("the tenant has no signing key")]
    NoSigningKey,
    /// A token could not be signed.
    #[error("sign an access token")]
    Signing(#[source] jsonwebtoken::errors::Error),
}

impl From<TenantDbError> for AccessError {
    fn from(error: TenantDbError) -> Self {
        match error {
            TenantDbError::NotActive => Self::TenantNotActive,
            other => Self::TenantDb(other),
        }
    }
}
