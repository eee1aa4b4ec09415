//! What the hosted chat page sends to its own session address, and hears from it.

use garde::Validate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::tenant::Role;

/// `POST /c/{slug}/session`: an account's address and password, or `visitor`.
#[derive(Debug, Deserialize, Validate)]
#[serde(deny_unknown_fields)]
pub struct PageSessionRequest {
    /// The user's e-mail address.
    #[garde(inner(length(max = 254)))]
    #[serde(default)]
    pub email: Option<String>,
    /// The password.
    #[garde(skip)]
    #[serde(default)]
    pub password: Option<SecretString>,
    /// Whether somebody wants to chat without an account.
    #[garde(skip)]
    #[serde(default)]
    pub visitor: bool,
}

/// A session of the page. Its refresh token is in a cookie that no script can read.
#[derive(Serialize)]
pub struct PageSession {
    /// A JWT for the `Authorization: Bearer` header.
    pub access_token: String,
    /// Seconds until it expires.
    pub expires_in: i64,
    /// Whose it is. Tabs share the cookie: by this one finds out that another signed somebody else in.
    pub user_id: Uuid,
    /// What that user is.
    pub role: Role,
}
