//! The administration of a tenant's users.
//!
//! Who may change whom is decided by [`Role::governs`] on the roles as the database has them, in the transaction that
//! makes the change: a caller who was demoted, disabled or signed out a moment ago changes nothing any more.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;

use super::accounts::{display_name, is_plausible_email, normalize_email};
use super::roles::{Permission as _, UsersWrite};
use super::tenant_store::{self, StoredUser};
use super::{AccessError, ActiveUser, TenantCaller};
use crate::api::tenant::Role;
use crate::clock::SharedClock;
use crate::ids::UserId;
use crate::secrets::{PasswordHasher, check_password_policy};
use crate::tenant_db::GenericClient;

/// The most users of one page.
const LARGEST_PAGE: usize = 101;

/// Administers tenants' users. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Users {
    passwords: PasswordHasher,
    pub(super) clock: SharedClock,
    pub(super) invite_lifetime: TimeDelta,
}

/// A user of a tenant.
#[derive(Debug, Clone)]
pub struct User {
    /// The user.
    pub id: UserId,
    /// The address, unique within the tenant, in lower case.
    pub email: String,
    /// The name.
    pub name: String,
    /// The role.
    pub role: Role,
    /// Whether the user may not sign in any more.
    pub disabled: bool,
    /// When the user was created.
    pub created_at: DateTime<Utc>,
}

/// A user to be created.
#[derive(Debug)]
pub struct NewUser {
    /// The address.
    pub email: String,
    /// The name; the address if there is none.
    pub name: Option<String>,
    /// The role.
    pub role: Role,
    /// The first password.
    pub password: SecretString,
}

/// What to change of a user.
#[derive(Debug, Default)]
pub struct UserChanges {
    /// The name.
    pub name: Option<String>,
    /// The role. Another one signs the user out everywhere.
    pub role: Option<Role>,
    /// The password. Signs the user out everywhere.
    pub password: Option<SecretString>,
    /// `true` shuts the user out at once.
    pub disabled: Option<bool>,
}

impl Users {
    /// The administration of users, with invites that last so long.
    pub fn new(passwords: PasswordHasher, clock: SharedClock, invite_lifetime: TimeDelta) -> Self {
        Self { passwords, clock, invite_lifetime }
    }

    /// Users in the order of their ids, from after `after`, at most 101: a page and one more that tells of the next.
    ///
    /// # Errors
    /// A failure of the tenant's database.
    pub async fn list(
        &self,
        caller: &TenantCaller,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<User>, AccessError> {
        let client = caller.db.client().await?;
        let limit = i64::try_from(limit.min(LARGEST_PAGE)).unwrap_or_default();
        Ok(tenant_store::list_users(&client, after, limit).await?)
    }

    /// One user.
    ///
    /// # Errors
    /// [`AccessError::NotFound`], or a failure.
    pub async fn find(&self, caller: &TenantCaller, id: UserId) -> Result<User, AccessError> {
        let client = caller.db.client().await?;
        let found = tenant_store::find_user(&client, id).await?;
        found.map(StoredUser::into_user).ok_or(AccessError::NotFound("user"))
    }

    /// Creates a user.
    ///
    /// # Errors
    /// [`AccessError::RoleNotGoverned`], [`AccessError::InvalidEmail`], [`AccessError::EmailTaken`],
    /// [`AccessError::WeakPassword`], [`AccessError::Unauthenticated`] or [`AccessError::Forbidden`] if the caller has
    /// lost its right since its token was signed, or a failure.
    pub async fn create(&self, caller: &TenantCaller, new: NewUser) -> Result<User, AccessError> {
        let email = normalize_email(&new.email);
        if !is_plausible_email(&email) {
            return Err(AccessError::InvalidEmail);
        }
        govern(caller.role, new.role)?;
        check_password_policy(&new.password, &email)?;
        let password_hash = self.passwords.hash(&new.password).await?;

        let mut client = caller.db.client().await?;
        let transaction = client.transaction().await?;
        tenant_store::lock_accounts(&transaction).await?;
        govern(acting(&transaction, caller).await?.role, new.role)?;
        let user = StoredUser {
            id: UserId::new(),
            name: display_name(new.name.as_deref(), &email),
            email,
            role: new.role,
            password_hash,
            disabled_at: None,
            created_at: self.clock.now(),
        };
        if !tenant_store::insert_user(&transaction, &user).await? {
            return Err(AccessError::EmailTaken);
        }
        transaction.commit().await?;
        Ok(user.into_user())
    }

    /// Changes a user. A new password, another role and being disabled end the user's sessions and open invites.
    ///
    /// # Errors
    /// As [`Users::create`], and [`AccessError::NotFound`], [`AccessError::OwnAccount`], [`AccessError::LastAdmin`].
    pub async fn update(&self, caller: &TenantCaller, id: UserId, changes: UserChanges) -> Result<User, AccessError> {
        // Hashing comes before the transaction, and is done for nobody who may not ask for it.
        let password_hash = match &changes.password {
            None => None,
            Some(password) => {
                let user = governed(&caller.db.client().await?, caller, id).await?;
                check_password_policy(password, &user.email)?;
                Some(self.passwords.hash(password).await?)
            }
        };
        let mut client = caller.db.client().await?;
        let transaction = client.transaction().await?;
        tenant_store::lock_accounts(&transaction).await?;
        let Governed { user: old, acting } = governed_by(&transaction, caller, id).await?;
        let role = changes.role.unwrap_or(old.role);
        govern(acting.role, role)?;
        let now = self.clock.now();
        let disabled_at = match changes.disabled {
            Some(true) => old.disabled_at.or(Some(now)),
            Some(false) => None,
            None => old.disabled_at,
        };
        if id == caller.user_id && disabled_at.is_some() {
            return Err(AccessError::OwnAccount);
        }
        if role != Role::Admin || disabled_at.is_some() {
            keep_an_admin(&transaction, &old).await?;
        }
        let shut_out = password_hash.is_some() || role != old.role || disabled_at.is_some();
        let user = StoredUser {
            name: changes.name.map_or(old.name, |name| display_name(Some(&name), &old.email)),
            role,
            password_hash: password_hash.unwrap_or(old.password_hash),
            disabled_at,
            id,
            email: old.email,
            created_at: old.created_at,
        };
        tenant_store::update_user(&transaction, &user, now).await?;
        if shut_out {
            tenant_store::revoke_families_of_user(&transaction, id, now).await?;
            tenant_store::void_invites(&transaction, &user.email, &acting.role.governed(), now).await?;
        }
        transaction.commit().await?;
        Ok(user.into_user())
    }

    /// Deletes a user and everything that is theirs.
    ///
    /// # Errors
    /// As [`Users::update`].
    pub async fn delete(&self, caller: &TenantCaller, id: UserId) -> Result<(), AccessError> {
        let mut client = caller.db.client().await?;
        let transaction = client.transaction().await?;
        tenant_store::lock_accounts(&transaction).await?;
        let Governed { user, acting } = governed_by(&transaction, caller, id).await?;
        if id == caller.user_id {
            return Err(AccessError::OwnAccount);
        }
        keep_an_admin(&transaction, &user).await?;
        // Only invites that the caller could have spoken out: a manager must not undo what is above it.
        tenant_store::void_invites(&transaction, &user.email, &acting.role.governed(), self.clock.now()).await?;
        tenant_store::delete_user(&transaction, id).await?;
        Ok(transaction.commit().await?)
    }
}

fn govern(role: Role, other: Role) -> Result<(), AccessError> {
    if role.governs(other) { Ok(()) } else { Err(AccessError::RoleNotGoverned) }
}

/// The caller as the database has it now, if it may still change users.
async fn acting(client: &impl GenericClient, caller: &TenantCaller) -> Result<ActiveUser, AccessError> {
    let acting = tenant_store::active_user(client, caller.user_id, caller.family_id).await?;
    let acting = acting.ok_or(AccessError::Unauthenticated)?;
    if !acting.role.permissions().allow(UsersWrite::NAME) {
        return Err(AccessError::Forbidden { permission: UsersWrite::NAME });
    }
    Ok(acting)
}

/// A user whom the caller may change, and the caller.
struct Governed {
    user: StoredUser,
    acting: ActiveUser,
}

async fn governed_by(client: &impl GenericClient, caller: &TenantCaller, id: UserId) -> Result<Governed, AccessError> {
    let acting = acting(client, caller).await?;
    let user = tenant_store::find_user(client, id).await?.ok_or(AccessError::NotFound("user"))?;
    govern(acting.role, user.role)?;
    Ok(Governed { user, acting })
}

async fn governed(client: &impl GenericClient, caller: &TenantCaller, id: UserId) -> Result<StoredUser, AccessError> {
    governed_by(client, caller, id).await.map(|governed| governed.user)
}

/// Refuses if the user is the last admin who can sign in. The accounts must be locked.
async fn keep_an_admin(client: &impl GenericClient, user: &StoredUser) -> Result<(), AccessError> {
    let is_admin = user.role == Role::Admin && user.disabled_at.is_none();
    if is_admin && !tenant_store::another_admin(client, user.id).await? {
        return Err(AccessError::LastAdmin);
    }
    Ok(())
}
