//! Work on all tenants at once: bringing their databases up to date, and comparing them with what they have to be.
//!
//! A run over the fleet is one durable operation of the platform, with a row for each tenant that says what became of
//! it. It knows the registry and how to connect as a tenant; what a migration does, and what a schema looks like, is
//! `provisioning`'s. It never looks at a row of a tenant's.

mod credentials;
pub mod migrate;
mod store;
pub mod verify;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use sqlx::PgPool;
use thiserror::Error;

pub use crate::api::fleet::{Canary, FleetFinding, FleetPlan, FleetTenantState, OnError, Wave};
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::ids::{OperationId, SuperAdminId};
use crate::operations::{self, Definition, NewOperation, OperationError, StepError, StepFuture};
use crate::provisioning::TenantMigrations;
use crate::secrets::MasterKeyring;
use crate::tenants::clusters::ClusterRegistry;
use migrate::{MigrateInput, Migration};
pub use store::{TenantFilter, TenantOutcome};
use verify::VerifyInput;

/// Why a run over the fleet could not be begun.
#[derive(Debug, Error)]
pub enum FleetError {
    /// There are no tenants of these slugs.
    #[error("no such tenants: {}", slugs.join(", "))]
    UnknownTenants {
        /// The slugs.
        slugs: Vec<String>,
    },
    /// The server has no migration of that version.
    #[error("there is no such version; the newest is {newest}")]
    UnknownVersion {
        /// The newest there is.
        newest: i64,
    },
    /// About the operation.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

/// What is needed to work on the fleet.
#[derive(Clone)]
pub struct Fleet {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    clusters: ClusterRegistry,
    clock: SharedClock,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

/// What became of a request to migrate.
#[derive(Debug)]
pub enum Requested {
    /// Every selected tenant is up to date.
    NothingToDo,
    /// An operation was begun.
    Operation(OperationId),
}

impl Fleet {
    /// The fleet over the platform's database. The migrations are those of the clusters' templates.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, clusters: ClusterRegistry, clock: SharedClock) -> Self {
        Self { pool, master_keys, clusters, clock }
    }

    /// The migrations of the tenants' databases.
    pub fn migrations(&self) -> &Arc<TenantMigrations> {
        self.clusters.migrations()
    }

    /// The version that a migration leads to.
    pub fn target(&self, wanted: Option<i64>) -> Result<i64, FleetError> {
        let newest = self.migrations().current_version();
        match wanted {
            None => Ok(newest),
            Some(version) if self.migrations().get(version).is_some() => Ok(version),
            Some(_) => Err(FleetError::UnknownVersion { newest }),
        }
    }

    /// Whether there is anything to migrate: one query, however many tenants there are.
    async fn is_behind(&self, wanted: &Migration, target: i64) -> Result<bool, FleetError> {
        let Some(slugs) = &wanted.tenants else {
            let newest = self.migrations().current_version();
            return Ok(wanted.recheck || store::anything_behind(&self.pool, target, newest).await?);
        };
        let found = store::find_selected(&self.pool, slugs, target).await?;
        if !found.unknown.is_empty() {
            return Err(FleetError::UnknownTenants { slugs: found.unknown });
        }
        Ok(wanted.recheck || found.behind)
    }

    /// Says what [`Fleet::migrate`] would do.
    pub async fn plan(&self, wanted: &Migration) -> Result<Option<FleetPlan>, FleetError> {
        let target = self.target(wanted.target_version)?;
        if !self.is_behind(wanted, target).await? {
            return Ok(None);
        }
        let mut plan = store::preview(&self.pool, wanted, target).await?;
        let from = plan.first.iter().map(|tenant| tenant.from_version.unwrap_or(0)).min().unwrap_or(target);
        let lacking = self.migrations().iter().filter(|migration| (from + 1..=target).contains(&migration.version));
        plan.migrations = lacking
            .map(|migration| crate::api::fleet::PlannedMigration {
                version: migration.version,
                description: migration.description.to_string(),
                transaction: !migration.no_tx,
            })
            .collect();
        Ok(Some(plan))
    }

    /// Begins to migrate, if there is anything to migrate.
    pub async fn migrate(&self, wanted: &Migration, admin: SuperAdminId) -> Result<Requested, FleetError> {
        let target = self.target(wanted.target_version)?;
        if !self.is_behind(wanted, target).await? {
            return Ok(Requested::NothingToDo);
        }
        let input = MigrateInput { migration: wanted.clone(), target_version: target };
        let id = self.begin(&migrate::DEFINITION, "fleet.migrate", &input, admin).await?;
        Ok(Requested::Operation(id))
    }

    /// Begins to verify.
    pub async fn verify(&self, wanted: &VerifyInput, admin: SuperAdminId) -> Result<OperationId, FleetError> {
        if let Some(slugs) = &wanted.tenants {
            let found = store::find_selected(&self.pool, slugs, 0).await?;
            if !found.unknown.is_empty() {
                return Err(FleetError::UnknownTenants { slugs: found.unknown });
            }
        }
        self.begin(&verify::DEFINITION, "fleet.verify", wanted, admin).await
    }

    async fn begin(
        &self,
        definition: &'static Definition<Self>,
        action: &str,
        input: &impl Serialize,
        admin: SuperAdminId,
    ) -> Result<OperationId, FleetError> {
        let now = self.clock.now();
        let input = serde_json::to_value(input).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let operation = NewOperation {
            id: OperationId::new(),
            kind: definition.kind,
            tenant_id: None,
            input: input.clone(),
            steps: &definition.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: Some(admin.as_uuid()),
            group_id: None,
        };
        let mut transaction = self.pool.begin().await?;
        operations::store::create(&mut transaction, &operation, now).await?;
        let event = Event { actor: Actor::SuperAdmin(admin), action, tenant_id: None, detail: input };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(operation.id)
    }

    /// What became of the tenants of a run, in the order they were taken.
    pub async fn tenants(&self, filter: &TenantFilter) -> Result<Vec<TenantOutcome>, FleetError> {
        Ok(store::list(&self.pool, filter).await?)
    }
}

/// What to do about a tenant that failed or was skipped.
pub fn hint(code: &str) -> &'static str {
    match code {
        "lock_timeout" => {
            "something of the tenant's own holds a lock: run it again at a quieter time, or allow more time"
        }
        "statement_timeout" => "run it again with a longer statement timeout",
        "altered_migration" => {
            "its database was migrated by a program with another text of that migration: compare them"
        }
        "unknown_migration" => "its database is newer than this server: use a newer server",
        "migration_refused" => "see the message; put the tenant's database right, then run it again",
        "connection_lost" => "run it again",
        "unreachable" => "see that the database answers, then run it again",
        "access_denied" => "the stored credential does not work any more: see `freehold rotate database`",
        "migration_in_progress" => "run it again when the other migrator is done",
        "operation_in_progress" => "run it again when that operation is settled",
        "being_provisioned" => "run it again when the tenant is active, if it is behind then",
        "provisioning_failed" => "retry its provisioning; it ends up to date",
        "waiting_for_client" => "nothing: its client has not given a database yet",
        "tenant_suspended" => "freehold tenant resume SLUG, then run it again",
        "tenant_deleting" => "nothing, unless it is undeleted",
        "sealed_value" => "FREEHOLD_MASTER_KEYS must hold every key in use",
        "missing_migration" => "freehold migrate SLUG --recheck",
        "schema_drift" => "put the schema right by hand: a migration would not",
        "registry_differs" => "freehold migrate SLUG --recheck",
        _ => "see `freehold operation show` and the server's log",
    }
}

fn boxed(work: impl Future<Output = Result<(), StepError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(work)
}

/// Migrations only go forward: what was done stays, and is noted for each tenant.
async fn nothing() -> Result<(), StepError> {
    Ok(())
}

fn platform(error: sqlx::Error) -> StepError {
    StepError::Transient("the platform database failed", error.into())
}

fn permanent(code: &'static str, message: String) -> StepError {
    StepError::Permanent { code, message }
}
