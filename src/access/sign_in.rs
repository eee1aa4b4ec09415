//! How a tenant's user comes by tokens, renews them and gives them up.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret as _, SecretString};

use super::accounts::{display_name, is_plausible_email, normalize_email};
use super::sign_in_throttle::{self, Subject};
use super::tenant_store::{self, NewFamily, StoredUser};
use super::{AccessError, Tokens};
use crate::api::tenant::Role;
use crate::ids::{RefreshFamilyId, UserId};
use crate::secrets::{PlainToken, TokenPrefix, check_password_policy};
use crate::tenant_db::{Client, TenantDb, TenantDbError};

/// An access token, and whose it is.
#[derive(Debug)]
pub struct Access {
    /// For requests.
    pub token: SecretString,
    /// How long it lasts.
    pub expires_in: TimeDelta,
    /// The user.
    pub user_id: UserId,
    /// What the user is.
    pub role: Role,
}

/// The tokens of a user who has signed in.
#[derive(Debug)]
pub struct SignedIn {
    /// For requests.
    pub access: Access,
    /// For new tokens, once.
    pub refresh_token: PlainToken,
}

impl Tokens {
    /// Signs a user in.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] whichever of tenant, address and password is wrong, and if the tenant is out
    /// of service or the user disabled; [`AccessError::TooManyAttempts`] whether or not there is such an account or
    /// tenant; or a failure.
    pub async fn login(&self, tenant: &str, email: &str, password: &SecretString) -> Result<SignedIn, AccessError> {
        let email = normalize_email(email);
        if !is_plausible_email(&email) {
            return self.refuse(password).await;
        }
        let Some(db) = self.database_of_slug(tenant).await? else {
            let subject = Subject::account_elsewhere(tenant, &email);
            sign_in_throttle::admit(&self.pool, subject, self.clock.now()).await?;
            return self.refuse(password).await;
        };
        let subject = Subject::account(&email);
        let found = {
            let client = client(&db).await?;
            sign_in_throttle::admit_in_tenant(&client, subject, self.clock.now()).await?;
            // The connection goes back before the password is checked, which takes many times as long.
            tenant_store::find_user_by_email(&client, &email).await?
        };
        let Some(user) = found else { return self.refuse(password).await };
        // A disabled user's password is checked like any other, so that the time taken does not tell.
        if !self.passwords.verify(password, &user.password_hash).await? || user.disabled_at.is_some() {
            return Err(AccessError::Unauthenticated);
        }
        let session = self.begin(&db, &user)?;
        let mut client = client(&db).await?;
        let transaction = client.transaction().await?;
        if !tenant_store::start_family(&transaction, &user, &session.family).await? {
            return Err(AccessError::Unauthenticated);
        }
        tenant_store::forget_attempts(&transaction, subject).await?;
        transaction.commit().await?;
        Ok(session.tokens)
    }

    /// Accepts an invite and signs its user in. A token works once.
    ///
    /// If there is no user of the invite's address, one is made. If there is, the invite is how the owner lets them in
    /// again: it sets the password, enables the account, raises its role to the invite's if that is higher (an invite
    /// never takes a role away), and ends all their sessions. Either way, other open invites for the address end.
    ///
    /// # Errors
    /// [`AccessError::InvalidInvite`] if the token is not one in force of this tenant, or the tenant is not one in
    /// service; [`AccessError::WeakPassword`]; or a failure.
    pub async fn accept_invite(
        &self,
        tenant: &str,
        token: &SecretString,
        password: &SecretString,
        name: Option<&str>,
    ) -> Result<SignedIn, AccessError> {
        let token = PlainToken::parse(TokenPrefix::Invite, token.expose_secret());
        let token = token.map_err(|_| AccessError::InvalidInvite)?.hash();
        let db = self.database_of_slug(tenant).await?.ok_or(AccessError::InvalidInvite)?;
        let email = tenant_store::find_invite(&client(&db).await?, &token, self.clock.now()).await?;
        check_password_policy(password, &email.ok_or(AccessError::InvalidInvite)?)?;
        let password_hash = self.passwords.hash(password).await?;

        let now = self.clock.now();
        let mut client = client(&db).await?;
        let transaction = client.transaction().await?;
        tenant_store::lock_accounts(&transaction).await?;
        let accepted = tenant_store::accept_invite(&transaction, &token, now).await?;
        let (email, role) = accepted.ok_or(AccessError::InvalidInvite)?;
        let user = match tenant_store::find_user_by_email(&transaction, &email).await? {
            Some(user) => {
                let raised = role.permissions().cover(&user.role.permissions());
                let user = StoredUser {
                    name: name.map_or_else(|| user.name.clone(), |name| display_name(Some(name), &email)),
                    role: if raised { role } else { user.role },
                    password_hash,
                    disabled_at: None,
                    ..user
                };
                tenant_store::update_user(&transaction, &user, now).await?;
                tenant_store::revoke_families_of_user(&transaction, user.id, now).await?;
                user
            }
            None => {
                let user = StoredUser {
                    id: UserId::new(),
                    name: display_name(name, &email),
                    email,
                    role,
                    password_hash,
                    disabled_at: None,
                    created_at: now,
                };
                tenant_store::insert_user(&transaction, &user).await?;
                user
            }
        };
        tenant_store::void_invites(&transaction, &user.email, &Role::ALL, now).await?;
        tenant_store::forget_attempts(&transaction, Subject::account(&user.email)).await?;
        let session = self.begin(&db, &user)?;
        if !tenant_store::start_family(&transaction, &user, &session.family).await? {
            return Err(AccessError::InvalidInvite);
        }
        transaction.commit().await?;
        Ok(session.tokens)
    }

    /// Exchanges a refresh token for new tokens. It works once: when it comes back, somebody holds a copy, and since
    /// nobody can tell who is the rightful one, all tokens that came from the same sign-in are revoked.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] if it is not in force, [`AccessError::TenantNotActive`] if nobody can say while its
    /// tenant is out of service, or a failure.
    pub async fn refresh(&self, token: &SecretString) -> Result<SignedIn, AccessError> {
        let (tenant, token) = parse_refresh_token(token)?;
        let db = self.database_of_tenant(tenant).await?.ok_or(AccessError::TenantNotActive)?;
        let now = self.clock.now();
        let mut client = client_of_holder(&db).await?;
        let transaction = client.transaction().await?;
        let Some(used) = tenant_store::use_refresh_token(&transaction, &token.hash(), now).await? else {
            if tenant_store::revoke_family_of_used_token(&transaction, &token.hash(), now).await? {
                tracing::warn!(tenant_id = %tenant, "a used refresh token came back; its family is revoked");
            }
            transaction.commit().await?;
            return Err(AccessError::Unauthenticated);
        };
        let access = self.access(&db, used.user_id, used.role, used.family_id, now)?;
        let (refresh_token, family) = self.refresh_token(&db, used.family_id, now)?;
        tenant_store::continue_family(&transaction, &family).await?;
        transaction.commit().await?;
        Ok(SignedIn { access, refresh_token })
    }

    /// A new access token for a refresh token that stays as it is: for one that no script can read, in a browser's cookie.
    /// The refresh token ends when its time is over, or with the sign-out.
    ///
    /// # Errors
    /// As [`Tokens::refresh`].
    pub async fn renew(&self, token: &SecretString) -> Result<Access, AccessError> {
        let (tenant, token) = parse_refresh_token(token)?;
        let db = self.database_of_tenant(tenant).await?.ok_or(AccessError::TenantNotActive)?;
        let now = self.clock.now();
        let found = {
            let client = client_of_holder(&db).await?;
            tenant_store::find_refresh_token(&client, &token.hash(), now).await?
        };
        let found = found.ok_or(AccessError::Unauthenticated)?;
        self.access(&db, found.user_id, found.role, found.family_id, now)
    }

    /// Signs out: revokes all tokens that came from the same sign-in. A token that means nothing is no error, for
    /// what was asked for holds already.
    ///
    /// # Errors
    /// A failure.
    pub async fn logout(&self, token: &SecretString) -> Result<(), AccessError> {
        let Ok((tenant, token)) = parse_refresh_token(token) else { return Ok(()) };
        let Some(db) = self.database_of_tenant(tenant).await? else { return Ok(()) };
        let client = db.client().await?;
        Ok(tenant_store::revoke_family_of_token(&client, &token.hash(), self.clock.now()).await?)
    }

    /// Refuses after as much work as a wrong password takes.
    async fn refuse(&self, password: &SecretString) -> Result<SignedIn, AccessError> {
        self.passwords.verify_absent(password).await?;
        Err(AccessError::Unauthenticated)
    }

    /// Makes the tokens of a sign-in, which count once its family is stored.
    pub(super) fn begin(&self, db: &TenantDb, user: &StoredUser) -> Result<Begun, AccessError> {
        let now = self.clock.now();
        let family_id = RefreshFamilyId::new();
        let (refresh_token, family) = self.refresh_token(db, family_id, now)?;
        let access = self.access(db, user.id, user.role, family_id, now)?;
        Ok(Begun { tokens: SignedIn { access, refresh_token }, family })
    }

    fn access(
        &self,
        db: &TenantDb,
        user_id: UserId,
        role: Role,
        family_id: RefreshFamilyId,
        now: DateTime<Utc>,
    ) -> Result<Access, AccessError> {
        let token = self.sign(db.record(), user_id, role, family_id, now)?;
        Ok(Access { token, expires_in: self.access_lifetime, user_id, role })
    }

    fn refresh_token(
        &self,
        db: &TenantDb,
        family_id: RefreshFamilyId,
        now: DateTime<Utc>,
    ) -> Result<(PlainToken, NewFamily), AccessError> {
        let token = PlainToken::generate_for_tenant(TokenPrefix::Refresh, db.record().id)?;
        let family = NewFamily {
            id: family_id,
            token_hash: token.hash(),
            created_at: now,
            expires_at: now + self.refresh_lifetime,
        };
        Ok((token, family))
    }
}

/// A sign-in that is made but not stored.
pub(super) struct Begun {
    pub(super) tokens: SignedIn,
    pub(super) family: NewFamily,
}

fn parse_refresh_token(token: &SecretString) -> Result<(crate::ids::TenantId, PlainToken), AccessError> {
    PlainToken::parse_for_tenant(TokenPrefix::Refresh, token.expose_secret()).map_err(|_| AccessError::Unauthenticated)
}

/// A connection for somebody who has proved nothing yet. A tenant that went out of service this very moment is, to
/// them, one that does not exist.
pub(super) async fn client(db: &TenantDb) -> Result<Client, AccessError> {
    db.client().await.map_err(|error| match error {
        TenantDbError::NotActive | TenantDbError::Suspended | TenantDbError::Deleting => AccessError::Unauthenticated,
        other => AccessError::TenantDb(other),
    })
}

/// A connection for somebody who holds a token of the tenant's. One that went out of service this very moment may come back,
/// and the token is as good as before then: nobody is to throw it away.
async fn client_of_holder(db: &TenantDb) -> Result<Client, AccessError> {
    client(db).await.map_err(|error| match error {
        AccessError::Unauthenticated => AccessError::TenantNotActive,
        other => other,
    })
}
