//! Connections to the tenants' own databases, and the cached records they are made from.
//!
//! The only place that opens a connection to a tenant's database for requests. A [`TenantDb`] is made from a
//! [`TenantRecord`], and a record is handed out only for something a verified credential proves: the key that signed a
//! token, or, for somebody who is about to sign in, the slug. Nothing here takes a tenant's id and returns rows.
//!
//! The records are cached and follow the platform's notifications, so that a request never waits for the platform's
//! database, and goes on when that is down.

mod breaker;
mod budget;
mod client;
mod connection;
mod directory;
mod pool;
mod pools;
mod report;
mod schema;
mod server;
mod shares;
mod store;
mod uses;

use std::time::Duration;

use thiserror::Error;

pub use client::{Client, GenericClient, Session, Transaction, is_outcome_unknown, is_statement_at_fault};
pub use directory::{
    Directory, SigningKey, TenantRecord, database_url_location, next_database_url_location, signing_key_location,
};
pub use pools::{PoolSettings, TenantDatabases, TenantDb};
pub use report::{BreakerReport, Report, ServerReport, TenantReport};
pub use schema::{SchemaMismatch, SpokenSchemas};
pub use server::DatabaseServer;
pub use shares::{Share, Shares};

/// Why a tenant's database could not be had.
#[derive(Debug, Error)]
pub enum TenantDbError {
    /// The tenant is not in service: not yet set up, or gone.
    #[error("the tenant is not active")]
    NotActive,
    /// The tenant is suspended.
    #[error("the tenant is suspended")]
    Suspended,
    /// The tenant is being deleted.
    #[error("the tenant is being deleted")]
    Deleting,
    /// Its database has an older schema than this server speaks.
    #[error("the tenant's database has an older schema than this server speaks")]
    SchemaTooOld,
    /// Its database has a newer schema than this server speaks.
    #[error("the tenant's database has a newer schema than this server speaks")]
    SchemaTooNew,
    /// Its database does not answer.
    #[error("the tenant's database cannot be reached")]
    Unreachable(#[source] anyhow::Error),
    /// No connection was free in time.
    #[error("no connection to the tenant's database was free in time")]
    NoConnectionFree {
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// Its database has failed repeatedly, and is left alone for a moment.
    #[error("the tenant's database has failed repeatedly and is left alone for a moment")]
    CircuitOpen {
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The tenant's record could not be read.
    #[error("the tenant's record could not be read")]
    Platform(#[from] sqlx::Error),
    /// A sealed value did not open: a wrong master key, or data that was tampered with.
    #[error("a sealed value of the tenant's record did not open")]
    Sealed,
}
