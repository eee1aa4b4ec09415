//! Tenants as the owner sees them: the registry, how a tenant comes into being, and the clusters they live on.
//!
//! It writes the platform's database and asks `provisioning` for databases. What lies in a tenant's database it knows
//! only as far as setting it up: the first configuration and the first invite, each written by its own feature.

pub mod clusters;
pub mod database_checks;
mod first_rows;
pub mod life;
pub mod own_database;
pub mod provision;
pub mod registry;
mod store;
pub mod templates;

use thiserror::Error;

use crate::api::platform::TenantState;
use crate::idempotency::IdempotencyError;
use crate::operations::OperationError;
use crate::provisioning::ProvisioningError;

/// Why something about a tenant could not be done.
#[derive(Debug, Error)]
pub enum TenantError {
    /// The slug is not well formed.
    #[error(transparent)]
    Slug(#[from] crate::ids::SlugError),
    /// Another tenant has the slug.
    #[error("the slug is taken")]
    SlugTaken,
    /// There is no such plan.
    #[error("there is no such plan")]
    UnknownPlan {
        /// The plans there are.
        known: Vec<String>,
    },
    /// There is no such template.
    #[error("there is no such template")]
    UnknownTemplate {
        /// The templates there are.
        known: Vec<String>,
    },
    /// There is no such cluster.
    #[error("there is no such cluster")]
    UnknownCluster,
    /// No cluster is registered, or several are and none was named.
    #[error("name one of the registered clusters")]
    ClusterNeeded {
        /// The clusters there are.
        known: Vec<String>,
    },
    /// A cluster of that name is registered.
    #[error("a cluster of that name is registered")]
    ClusterNameTaken,
    /// The server is a registered cluster already.
    #[error("the server is registered as cluster {0}")]
    ClusterRegisteredAs(String),
    /// There is no cluster of the name that was asked for.
    #[error("no such cluster")]
    ClusterNotFound,
    /// The admin URL leads to another server than the cluster's.
    #[error("the admin URL leads to another server than the cluster's")]
    OtherServer,
    /// The cluster cannot be used; the text is safe to show.
    #[error("the cluster cannot be used: {0}")]
    UnsuitableCluster(String),
    /// The database cannot be used; each finding says why and what to do.
    #[error("the database cannot be used")]
    UnsuitableDatabase(Box<crate::database_check::Report>),
    /// The tenant's database is one that the platform manages.
    #[error("the platform manages the tenant's database")]
    NotOwnDatabase,
    /// The tenant is in a state in which its database cannot be given.
    #[error("the tenant is not in service and does not wait for its database")]
    NotWaiting,
    /// There is no such tenant.
    #[error("no such tenant")]
    NotFound,
    /// What was asked for cannot be done in the state the tenant is in.
    #[error("the tenant is `{}`: {needed}", state.as_str())]
    WrongState {
        /// Its state.
        state: TenantState,
        /// In which it could be done, in words.
        needed: &'static str,
    },
    /// The tenant is being removed for good.
    #[error("the tenant is being removed for good")]
    PurgeBegun,
    /// The tenant kept changing while it was asked for.
    #[error("the tenant kept changing")]
    Contended,
    /// About the tenant's operation.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// About the idempotency key.
    #[error(transparent)]
    Idempotency(#[from] IdempotencyError),
    /// The cluster did not do what was asked.
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
    /// A sealed value did not open.
    #[error("a sealed value did not open")]
    Sealed,
    /// The operating system gave no random bytes.
    #[error("no random bytes")]
    Random,
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}
