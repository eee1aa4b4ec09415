//! Every kind of durable operation, one list. What is listed here is carried out by every server with a worker, and
//! goes through the crash tests.

use std::sync::Arc;

use sqlx::PgPool;

use crate::backups::{self, BackupServices};
use crate::clock::SharedClock;
use crate::fleet::{self, Fleet};
use crate::operations::Engine;
use crate::rotation::{self, Rotator};
use crate::tenants::own_database;
use crate::tenants::provision::{self, Provisioning};

/// An engine that knows every operation.
pub fn engine(
    pool: PgPool,
    clock: SharedClock,
    provisioning: Arc<Provisioning>,
    fleet: Arc<Fleet>,
    backups: Arc<BackupServices>,
    rotator: &Arc<Rotator>,
) -> Engine {
    Engine::new(pool, clock)
        .register(&provision::DEFINITION, Arc::clone(&provisioning))
        .register(&own_database::provision::DEFINITION, provisioning)
        .register(&fleet::migrate::DEFINITION, Arc::clone(&fleet))
        .register(&fleet::verify::DEFINITION, fleet)
        .register(&backups::BACKUP_TENANT, Arc::clone(&backups))
        .register(&backups::RESTORE_TENANT, Arc::clone(&backups))
        .register(&backups::DROP_REPLACED_DATABASE, backups)
        .register(&rotation::database::DEFINITION, Arc::clone(rotator))
        .register(&rotation::signing_key::DEFINITION, Arc::clone(rotator))
        .register(&rotation::data_key::DEFINITION, Arc::clone(rotator))
        .register(&rotation::master_key::DEFINITION, Arc::clone(rotator))
}
