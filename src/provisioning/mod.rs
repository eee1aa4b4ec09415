//! Makes and removes tenants' databases and roles on clusters that the owner runs.
//!
//! It knows clusters and the SQL of roles and databases. It knows nothing of the registry, of operations or of what a
//! tenant's tables mean. Everything here is safe to repeat: `create` finds what is there, `drop` accepts what is not.
//!
//! What keeps tenants apart on one server: each database belongs to a NOLOGIN role of its own, one of two LOGIN roles,
//! which take turns, acts for it, and PUBLIC may connect to nothing, so that no tenant's role gets even as far as another database's login.

mod admin;
mod catalog;
mod contents;
mod inventory;
mod lockout;
mod logins;
mod migrate;
mod migrations;
pub mod own;
mod template;

use std::sync::Arc;

use dashmap::DashMap;
use deadpool_postgres::Pool;
use secrecy::SecretString;
use thiserror::Error;

pub use admin::{DatabaseNames, hash_password};
pub use catalog::{AppliedMigration, Catalog, Differences, Inspection, SchemaObject, inspect, read as read_catalog};
pub use contents::{Snapshot, checksums, server_version};
pub use inventory::{DatabaseEntry, Inventory, RoleEntry};
pub use lockout::TenantRoles;
pub use logins::check_login;
pub use migrate::{MigrateError, MigrateFailure, MigrateLimits, Migrated, found_schema_version, migrate_database};
pub use migrations::{OLDEST_SPOKEN_SCHEMA, TENANT_MIGRATOR, TenantMigrations};
pub use own::{INSTANCE_TABLE, OwnDatabaseError, tenant_tables};

use crate::ids::ClusterId;
use crate::postgres_pool;
use crate::secrets::{DatabaseUrl, connect_as_administrator};

/// Where the migrator notes in each tenant's database what it has applied.
const MIGRATIONS_TABLE: &str = "public._sqlx_migrations";

/// Why a cluster did not do what was asked.
#[derive(Debug, Error)]
pub enum ProvisioningError {
    /// No connection could be had.
    #[error("the cluster cannot be reached")]
    Unreachable(#[source] anyhow::Error),
    /// A statement failed.
    #[error("the cluster refused a statement")]
    Statement(#[from] tokio_postgres::Error),
    /// The template database could not be migrated.
    #[error("the template database could not be migrated")]
    Migration(#[source] anyhow::Error),
    /// Sessions that were told to end are still there.
    #[error("sessions of the tenant's roles do not end")]
    SessionsLeft,
    /// A tenant's role can connect where it must not.
    #[error("the tenant's role may connect to other databases: {0}")]
    NotIsolated(String),
    /// The role in the admin URL lacks a right, or the server is too old.
    #[error("{0}")]
    Unsuitable(String),
}

/// Connections to clusters as their administrators.
#[derive(Debug, Default)]
pub struct Clusters {
    /// Each with the URL that it was made from: a cluster that got another one is opened by that.
    pools: DashMap<ClusterId, (DatabaseUrl, Pool)>,
    migrations: Arc<TenantMigrations>,
}

/// A cluster's administration.
#[derive(Debug, Clone)]
pub struct Cluster {
    pool: Pool,
    url: DatabaseUrl,
    migrations: Arc<TenantMigrations>,
}

impl Clusters {
    /// Connections to each cluster's maintenance database, at most. Creating databases is serial work for the server.
    const CONNECTIONS: usize = 4;

    /// Clusters whose template databases hold the schema of these migrations.
    pub fn new(migrations: Arc<TenantMigrations>) -> Self {
        Self { pools: DashMap::new(), migrations }
    }

    /// The migrations of the tenants' databases.
    pub fn migrations(&self) -> &Arc<TenantMigrations> {
        &self.migrations
    }

    /// Forgets a cluster that was only tried out; its connections close.
    pub fn forget(&self, id: ClusterId) {
        self.pools.remove(&id);
    }

    /// The administration of a cluster. Opens nothing yet.
    pub fn open(&self, id: ClusterId, url: &DatabaseUrl) -> Result<Cluster, ProvisioningError> {
        let pool = match self.pools.entry(id) {
            dashmap::Entry::Occupied(entry) if entry.get().0 == *url => entry.get().1.clone(),
            entry => {
                // What is under way with a former pool goes on; its connections close with the last that uses it.
                let pool = postgres_pool::build(url, Self::CONNECTIONS).map_err(ProvisioningError::Unreachable)?;
                entry.insert((url.clone(), pool.clone()));
                pool
            }
        };
        Ok(Cluster { pool, url: url.clone(), migrations: Arc::clone(&self.migrations) })
    }
}

impl Cluster {
    async fn admin(&self) -> Result<deadpool_postgres::Object, ProvisioningError> {
        self.pool.get().await.map_err(|error| ProvisioningError::Unreachable(error.into()))
    }

    /// The URL by which the tenant signs in to its own database.
    pub fn tenant_url(&self, names: &DatabaseNames, password: SecretString) -> DatabaseUrl {
        self.url.with_database(&names.database).with_credentials(&names.login_role, password)
    }

    /// Makes sure that the template database holds the current schema; returns its version.
    pub async fn ensure_template(&self) -> Result<i64, ProvisioningError> {
        let admin = self.admin().await?;
        template::ensure(&admin, &self.url, &self.migrations).await
    }

    /// What the template database's catalog holds; builds it first if it is not there.
    pub async fn template_catalog(&self) -> Result<Catalog, ProvisioningError> {
        let admin = self.admin().await?;
        template::catalog(&admin, &self.url, &self.migrations).await
    }

    /// What Postgres calls the server's data directory; a managed service may keep it to itself.
    pub async fn system_identifier(&self) -> Result<Option<String>, ProvisioningError> {
        Ok(crate::database_check::system_identifier(&**self.admin().await?).await?)
    }

    /// Checks that the administrator may act for every role of a tenant that is there, which another may have made.
    pub async fn check_acts_for_tenants(&self) -> Result<(), ProvisioningError> {
        admin::check_acts_for_tenants(&*self.admin().await?).await
    }

    /// Which of the databases every server has let PUBLIC in, and so every tenant's role.
    pub async fn open_to_public(&self) -> Result<Vec<String>, ProvisioningError> {
        admin::open_to_public(&*self.admin().await?).await
    }

    /// Shuts PUBLIC out of the databases every server has.
    pub async fn shut_public_out(&self) -> Result<(), ProvisioningError> {
        admin::shut_public_out(&*self.admin().await?).await
    }

    /// Makes the owner role and the login role. `verifier` is the password's SCRAM verifier: the password itself
    /// never travels, and so cannot end up in the server's log.
    pub async fn create_roles(&self, names: &DatabaseNames, verifier: &str) -> Result<(), ProvisioningError> {
        admin::create_roles(&*self.admin().await?, names, verifier).await
    }

    /// Lets the names' login role sign in with a password, of which `verifier` is the SCRAM verifier. The other login
    /// role stays as it is.
    pub async fn enable_login(&self, names: &DatabaseNames, verifier: &str) -> Result<(), ProvisioningError> {
        logins::enable(&*self.admin().await?, names, verifier).await
    }

    /// Shuts the names' login role out and ends its sessions.
    pub async fn disable_login(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        logins::disable(&*self.admin().await?, names).await
    }

    /// Removes the owner role and whichever login roles there are.
    pub async fn drop_roles(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::drop_roles(&*self.admin().await?, names).await
    }

    /// Removes one login role.
    pub async fn drop_login_role(&self, role: &str) -> Result<(), ProvisioningError> {
        admin::drop_role(&*self.admin().await?, role).await
    }

    /// Clones the template into the tenant's database and lets in only the tenant's login role.
    pub async fn create_database(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::create_database(&*self.admin().await?, names, &self.migrations.template_name()).await
    }

    /// Makes an empty database for the tenant and lets in only its login role. One of that name is removed first.
    pub async fn recreate_empty_database(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::recreate_empty_database(&*self.admin().await?, names).await?;
        admin::reserve_schema(&self.inside_new(names).await?, names).await
    }

    /// Checks that the tenant's login role may connect to no other tenant's database.
    pub async fn check_isolation(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::check_isolation(&*self.admin().await?, names).await
    }

    /// The server's version, for example 180006.
    pub async fn server_version(&self) -> Result<i32, ProvisioningError> {
        contents::server_version(&*self.admin().await?).await
    }

    /// A connection to a tenant's new database as the administrator, before anything of the tenant's is in it. One that
    /// has contents is never entered but by the tenant's own roles.
    async fn inside_new(&self, names: &DatabaseNames) -> Result<tokio_postgres::Client, ProvisioningError> {
        let url = self.url.with_database(&names.database);
        let (database, _) =
            connect_as_administrator(&url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
        Ok(database)
    }

    /// Removes the tenant's database, whoever is connected.
    pub async fn drop_database(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::drop_database(&*self.admin().await?, names).await
    }

    /// Lets none of a tenant's roles sign in any more and ends their sessions: not even a server that has not heard of
    /// it goes on.
    pub async fn lock_logins(&self, roles: &TenantRoles) -> Result<(), ProvisioningError> {
        lockout::lock(&*self.admin().await?, &roles.logins).await
    }

    /// Lets a login role sign in again, with the password it had.
    pub async fn unlock_login(&self, login: &str) -> Result<(), ProvisioningError> {
        lockout::unlock(&*self.admin().await?, login).await
    }

    /// Removes every role of a tenant that is there.
    pub async fn drop_all_roles(&self, roles: &TenantRoles) -> Result<(), ProvisioningError> {
        lockout::drop_all(&*self.admin().await?, roles).await
    }

    /// What the cluster has of ours.
    pub async fn inventory(&self) -> Result<Inventory, ProvisioningError> {
        inventory::take(&*self.admin().await?, self.migrations.template_name()).await
    }

    /// Gives everything in the tenant's new database to its owner role, and checks that it is isolated.
    pub async fn assign_ownership(&self, names: &DatabaseNames) -> Result<(), ProvisioningError> {
        admin::assign_ownership(&self.inside_new(names).await?, names).await?;
        self.check_isolation(names).await
    }
}

/// Shared by everything that provisions.
pub type SharedClusters = Arc<Clusters>;
