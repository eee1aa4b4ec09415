//! From an access token to a caller whose tenant's database may be used.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use sqlx::PgPool;
use tokio_postgres::Row;

use super::access_token::{self, Claims, Grant, InvalidToken};
use super::lookups::Lookups;
use super::roles::Permissions;
use super::{AccessError, tenant_store};
use crate::api::tenant::Role;
use crate::clock::SharedClock;
use crate::ids::{RefreshFamilyId, Slug, TenantId, UserId};
use crate::secrets::PasswordHasher;
use crate::tenant_db::{Directory, TenantDatabases, TenantDb, TenantDbError, TenantRecord};

/// Signs tenants' users in and checks their tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    pub(super) pool: PgPool,
    directory: Arc<Directory>,
    databases: Arc<TenantDatabases>,
    pub(super) passwords: PasswordHasher,
    pub(super) clock: SharedClock,
    pub(super) access_lifetime: TimeDelta,
    pub(super) refresh_lifetime: TimeDelta,
    lookups: Lookups,
}

/// A tenant's user, proved by an access token in force, and the database of that tenant.
#[derive(Debug, Clone)]
pub struct TenantCaller {
    /// The tenant's database.
    pub db: TenantDb,
    /// The user.
    pub user_id: UserId,
    /// The user's role when the token was signed.
    pub role: Role,
    /// What the token allows.
    pub permissions: Permissions,
    /// The chain of refresh tokens that the token belongs to.
    pub family_id: RefreshFamilyId,
}

/// A user who was found in force just now.
#[derive(Debug, Clone)]
pub struct ActiveUser {
    /// The user's address.
    pub email: String,
    /// The user's name.
    pub name: String,
    /// The user's role.
    pub role: Role,
}

impl ActiveUser {
    /// Reads a row of [`tenant_store::ACTIVE_USER`], for features that send that statement together with their own.
    ///
    /// # Errors
    /// If the row is of another statement.
    pub fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self { email: row.try_get("email")?, name: row.try_get("name")?, role: Role::parse(row.try_get("role")?) })
    }
}

impl From<InvalidToken> for AccessError {
    fn from(_: InvalidToken) -> Self {
        Self::Unauthenticated
    }
}

impl Tokens {
    /// Sign-in to the tenants of this directory.
    pub fn new(
        pool: PgPool,
        directory: Arc<Directory>,
        databases: Arc<TenantDatabases>,
        passwords: PasswordHasher,
        clock: SharedClock,
        access_lifetime: TimeDelta,
        refresh_lifetime: TimeDelta,
    ) -> Self {
        let lookups = Lookups::default();
        Self { pool, directory, databases, passwords, clock, access_lifetime, refresh_lifetime, lookups }
    }

    /// Who presents this access token. Asks no database if the tenant is known.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] if the token proves nothing, [`AccessError::TenantNotActive`] if it is a good
    /// one of a tenant that is out of service, or a failure.
    pub async fn verify(&self, token: &str) -> Result<TenantCaller, AccessError> {
        let key_id = access_token::key_id(token)?;
        let known = self.directory.knows_signing_key(key_id);
        let record = self.lookups.run(known, self.directory.by_signing_key(key_id)).await?;
        let record = record.ok_or(AccessError::Unauthenticated)?;
        let key = record.signing_key_by_id(key_id).ok_or(AccessError::Unauthenticated)?;
        let claims = access_token::verify(token, key, record.id, self.clock.now())?;
        // Only now: whether a tenant is in service is told to nobody but its own users.
        let db = self.databases.open(record)?;
        let Claims { sub: user_id, fam: family_id, role, permissions, .. } = claims;
        Ok(TenantCaller { db, user_id, role, permissions, family_id })
    }

    /// Asks the tenant's database whether the caller was disabled or signed out since the token was signed.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] if so, or a failure.
    pub async fn confirm_active(&self, caller: &TenantCaller) -> Result<ActiveUser, AccessError> {
        let client = caller.db.client().await?;
        let user = tenant_store::active_user(&client, caller.user_id, caller.family_id).await?;
        user.ok_or(AccessError::Unauthenticated)
    }

    /// Signs an access token of a tenant.
    pub(super) fn sign(
        &self,
        record: &TenantRecord,
        user_id: UserId,
        role: Role,
        family_id: RefreshFamilyId,
        now: DateTime<Utc>,
    ) -> Result<SecretString, AccessError> {
        let key = record.signing_key().ok_or(AccessError::NoSigningKey)?;
        let grant = Grant { user_id, tenant_id: record.id, family_id, role };
        let claims = Claims::new(&grant, now, now + self.access_lifetime);
        access_token::sign(&claims, key).map(SecretString::from).map_err(AccessError::Signing)
    }

    /// The database of a tenant that somebody names who has proved nothing yet. Nothing if there is no such tenant,
    /// or it is out of service: nobody is told which.
    pub(super) async fn database_of_slug(&self, slug: &str) -> Result<Option<TenantDb>, AccessError> {
        let Ok(slug) = slug.parse::<Slug>() else { return Ok(None) };
        let record = self.lookups.run(self.directory.knows_slug(&slug), self.directory.by_slug(&slug)).await?;
        self.open(record)
    }

    /// The database of a tenant that a refresh token names, as [`Tokens::database_of_slug`]: whether the token is one is
    /// known to that database alone.
    pub(super) async fn database_of_tenant(&self, id: TenantId) -> Result<Option<TenantDb>, AccessError> {
        let record = self.lookups.run(self.directory.knows_tenant(id), self.directory.by_id(id)).await?;
        self.open(record)
    }

    fn open(&self, record: Option<Arc<TenantRecord>>) -> Result<Option<TenantDb>, AccessError> {
        match record.map(|record| self.databases.open(record)) {
            None | Some(Err(TenantDbError::NotActive | TenantDbError::Suspended | TenantDbError::Deleting)) => Ok(None),
            Some(Ok(db)) => Ok(Some(db)),
            Some(Err(error)) => Err(error.into()),
        }
    }
}
