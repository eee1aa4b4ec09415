//! Every kind of durable operation, one list. What is listed here is carried out by every server with a worker, and
//! goes through the crash tests.

use std::sync::Arc;

use sqlx::PgPool;

use crate::backups::{self, BackupServices};
use crate::clock::SharedClock;
use crate::fleet::{self, Fleet};
use crate::fleet_audit::{self, FleetAudit};
use crate::operations::Engine;
use crate::rotation::{self, Rotator};
use crate::tenants::life::{Life, delete, purge, resume, suspend, undelete};
use crate::tenants::own_database;
use crate::tenants::provision::{self, Provisioning};

/// What the operations are carried out with.
pub struct Services {
    /// Makes tenants.
    pub provisioning: Arc<Provisioning>,
    /// Migrates and verifies all of them.
    pub fleet: Arc<Fleet>,
    /// Compares the registry with the clusters.
    pub fleet_audit: Arc<FleetAudit>,
    /// Backs tenants up and brings them back.
    pub backups: Arc<BackupServices>,
    /// Replaces credentials and keys.
    pub rotator: Arc<Rotator>,
    /// Suspends, resumes and deletes tenants.
    pub life: Arc<Life>,
}

/// An engine that knows every operation.
pub fn engine(pool: PgPool, clock: SharedClock, services: &Services) -> Engine {
    let Services { provisioning, fleet, fleet_audit, backups, rotator, life } = services;
    Engine::new(pool, clock)
        .register(&provision::DEFINITION, Arc::clone(provisioning))
        .register(&own_database::provision::DEFINITION, Arc::clone(provisioning))
        .register(&fleet::migrate::DEFINITION, Arc::clone(fleet))
        .register(&fleet::verify::DEFINITION, Arc::clone(fleet))
        .register(&backups::BACKUP_TENANT, Arc::clone(backups))
        .register(&backups::RESTORE_TENANT, Arc::clone(backups))
        .register(&backups::DROP_REPLACED_DATABASE, Arc::clone(backups))
        .register(&fleet_audit::DEFINITION, Arc::clone(fleet_audit))
        .register(&suspend::DEFINITION, Arc::clone(life))
        .register(&resume::DEFINITION, Arc::clone(life))
        .register(&delete::DEFINITION, Arc::clone(life))
        .register(&undelete::DEFINITION, Arc::clone(life))
        .register(&purge::DEFINITION, Arc::clone(life))
        .register(&rotation::database::DEFINITION, Arc::clone(rotator))
        .register(&rotation::signing_key::DEFINITION, Arc::clone(rotator))
        .register(&rotation::data_key::DEFINITION, Arc::clone(rotator))
        .register(&rotation::master_key::DEFINITION, Arc::clone(rotator))
}
