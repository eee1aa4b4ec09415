//! One-time invitations. Whoever holds an invite's token may choose the password of the account that it names.

use chrono::{DateTime, Utc};

use super::accounts::{is_plausible_email, normalize_email};
use super::users::Users;
use super::{AccessError, api_keys, tenant_store};
use crate::api::tenant::Role;
use crate::ids::InviteId;
use crate::secrets::{HashedToken, PlainToken, TokenPrefix};
use crate::tenant_db::{GenericClient, TenantDb};

/// Whom to invite.
#[derive(Debug, Clone)]
pub struct InviteRequest {
    /// The address.
    pub email: String,
    /// The role.
    pub role: Role,
}

/// An invite that was just made. The token is shown this once.
#[derive(Debug)]
pub struct Invite {
    /// The secret that accepts it.
    pub token: PlainToken,
    /// When it stops working.
    pub expires_at: DateTime<Utc>,
}

/// An invite to be stored.
#[derive(Debug)]
pub struct NewInvite<'a> {
    /// Its id.
    pub id: InviteId,
    /// The address, in lower case.
    pub email: &'a str,
    /// The role.
    pub role: Role,
    /// The hash of its token.
    pub token_hash: HashedToken,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: DateTime<Utc>,
}

/// Stores an invite. Storing it again changes nothing.
///
/// # Errors
/// If the tenant's database refuses.
pub async fn insert_invite(client: &impl GenericClient, invite: &NewInvite<'_>) -> Result<(), tokio_postgres::Error> {
    tenant_store::insert_invite(client, invite).await
}

/// Ends every session, every open invite and every API key of a tenant that is not in service yet: in a database brought
/// back from a backup, those that were ended since would be alive again.
///
/// # Errors
/// If the tenant's database refuses.
pub async fn end_credentials(
    client: &impl tokio_postgres::GenericClient,
    now: DateTime<Utc>,
) -> Result<(), tokio_postgres::Error> {
    tenant_store::end_sessions_and_invites(client, now).await?;
    api_keys::tenant_store::revoke_all(client, now).await
}

impl Users {
    /// Makes an invite, which replaces open ones for the same address.
    ///
    /// # Errors
    /// [`AccessError::InvalidEmail`], or a failure.
    pub async fn invite(&self, db: &TenantDb, request: &InviteRequest) -> Result<Invite, AccessError> {
        let email = normalize_email(&request.email);
        if !is_plausible_email(&email) {
            return Err(AccessError::InvalidEmail);
        }
        let token = PlainToken::generate(TokenPrefix::Invite)?;
        let now = self.clock.now();
        let expires_at = now + self.invite_lifetime;
        let invite = NewInvite {
            id: InviteId::new(),
            email: &email,
            role: request.role,
            token_hash: token.hash(),
            created_at: now,
            expires_at,
        };
        let mut client = db.client().await?;
        let transaction = client.transaction().await?;
        tenant_store::void_invites(&transaction, &email, &Role::ALL, now).await?;
        tenant_store::insert_invite(&transaction, &invite).await?;
        transaction.commit().await?;
        Ok(Invite { token, expires_at })
    }
}
