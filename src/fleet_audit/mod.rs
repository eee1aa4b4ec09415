//! The standing audit: compares what the registry says with what the clusters have, and whether the keys open what
//! they have to. It reports orphans and strangers, and changes nothing: what to do about them is for a person.
//!
//! The registry is read before and after the clusters are looked at. What was registered at either time is no orphan,
//! and a tenant that an operation is at, or whose state changed meanwhile, is left for the next time: so nothing is
//! reported that was merely under way. A cluster is asked a fixed number of statements, however many tenants it has.
//!
//! It knows the registry and the catalogs' names. It never connects to a tenant's database.

mod catalogs;
mod keys;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use thiserror::Error;
use uuid::Uuid;

pub use crate::api::fleet_audit::Severity;
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::ids::{ClusterId, OperationId, SuperAdminId, TenantId};
use crate::operations::{self, Definition, NewOperation, OperationError, Step, StepContext, StepError};
use crate::provisioning::Inventory;
use crate::secrets::MasterKeyring;
use crate::tenants::TenantError;
use crate::tenants::clusters::ClusterRegistry;
use store::TenantEntry;

/// An operation that takes longer is reported.
const LONG: TimeDelta = TimeDelta::hours(1);
/// How long a replaced database may wait for its drop, on a cluster that comes and goes, before it is reported.
const DROPS_MAY_TAKE: TimeDelta = TimeDelta::days(1);
/// How long resolved findings are kept.
const KEPT: TimeDelta = TimeDelta::days(90);

/// Why the audit could not be begun or its findings not be read.
#[derive(Debug, Error)]
pub enum FleetAuditError {
    /// About the operation.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

/// What is wrong with something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    code: &'static str,
    severity: Severity,
    subject: String,
    tenant: Option<TenantId>,
    cluster: Option<ClusterId>,
    detail: String,
}

/// A finding as it is kept.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its id.
    pub id: Uuid,
    /// A stable code.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// The tenant's slug.
    pub tenant: Option<String>,
    /// The cluster's name.
    pub cluster: Option<String>,
    /// What is wrong, and what to do.
    pub detail: String,
    /// When it was first seen.
    pub first_seen: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen: DateTime<Utc>,
    /// When it was seen no more.
    pub resolved_at: Option<DateTime<Utc>>,
}

/// Which findings to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those that are resolved, too.
    pub resolved: bool,
    /// Only after this one.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: i64,
}

/// The audit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FleetAudit {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    clusters: ClusterRegistry,
    clock: SharedClock,
}

/// The operation. It has nothing to undo, for it does nothing but look.
pub static DEFINITION: Definition<FleetAudit> = Definition {
    kind: "audit_fleet",
    steps: &[Step {
        name: "compare",
        run: |audit, context| Box::pin(compare(audit, context)),
        undo: |_, _| Box::pin(async { Ok(()) }),
    }],
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

impl FleetAudit {
    /// Over the platform's database and its clusters.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, clusters: ClusterRegistry, clock: SharedClock) -> Self {
        Self { pool, master_keys, clusters, clock }
    }

    /// Begins an audit, for a super admin or, without one, because it is time. If one is under way, that is it.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn begin(&self, admin: Option<SuperAdminId>) -> Result<OperationId, FleetAuditError> {
        if let Some(under_way) = store::under_way(&self.pool, DEFINITION.kind).await? {
            return Ok(under_way);
        }
        let now = self.clock.now();
        let operation = NewOperation {
            id: OperationId::new(),
            kind: DEFINITION.kind,
            tenant_id: None,
            input: serde_json::json!({}),
            steps: &DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: admin.map(|admin| admin.as_uuid()),
            group_id: None,
        };
        let mut transaction = self.pool.begin().await?;
        operations::store::create(&mut transaction, &operation, now).await?;
        if let Some(admin) = admin {
            let detail = serde_json::json!({ "operation_id": operation.id });
            let event = Event { actor: Actor::SuperAdmin(admin), action: "fleet.audit", tenant_id: None, detail };
            audit::record(&mut transaction, &event, now).await?;
        }
        transaction.commit().await?;
        Ok(operation.id)
    }

    /// What was found, oldest first.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn findings(&self, filter: &Filter) -> Result<Vec<Stored>, FleetAuditError> {
        Ok(store::list(&self.pool, filter).await?)
    }
}

/// What can be known of a cluster.
struct Seen {
    name: String,
    /// What Postgres calls its server's data directory, as far as it was ever told.
    system_identifier: Option<String>,
    inventory: Result<Inventory, TenantError>,
}

async fn compare(audit: Arc<FleetAudit>, _: StepContext) -> Result<(), StepError> {
    let before = store::registry(&audit.pool).await.map_err(TenantError::from)?;
    let since = audit.clock.now() - DROPS_MAY_TAKE;
    let mut beside = store::beside(&audit.pool, since).await.map_err(TenantError::from)?;
    let mut clusters = BTreeMap::new();
    for record in audit.clusters.list().await? {
        let inventory: Result<Inventory, TenantError> =
            async { Ok(audit.clusters.open(record.id).await?.inventory().await?) }.await;
        let told = inventory.as_ref().ok().and_then(|inventory| inventory.system_identifier.clone());
        let system_identifier = told.or(record.system_identifier);
        clusters.insert(record.id, Seen { name: record.name, system_identifier, inventory });
    }
    beside.extend(store::beside(&audit.pool, since).await.map_err(TenantError::from)?);
    let after = store::registry(&audit.pool).await.map_err(TenantError::from)?;
    let now = audit.clock.now();
    let mut findings = Vec::new();
    // Those that stood still, as they are by now.
    let earlier: BTreeMap<Uuid, &TenantEntry> = before.iter().map(|entry| (entry.id, entry)).collect();
    let stood_still = |entry: &&TenantEntry| {
        let then = earlier.get(&entry.id);
        !entry.moving && then.is_some_and(|then| !then.moving && then.state == entry.state && then.same_place(entry))
    };
    let (still, moving): (Vec<&TenantEntry>, Vec<&TenantEntry>) = after.iter().partition(stood_still);
    catalogs::compare(&clusters, &still, before.iter().chain(&after), &beside, &mut findings);
    let master_keys = Arc::clone(&audit.master_keys);
    let owned: Vec<TenantEntry> = still.iter().map(|entry| (*entry).clone()).collect();
    // Some milliseconds for thousands of values, which is too long for a thread that others wait for.
    let opened = tokio::task::spawn_blocking(move || keys::compare(&master_keys, &owned)).await;
    findings.extend(opened.map_err(|error| StepError::Transient("sealed values could not be tried", error.into()))?);
    stuck(&audit, &still, now, &mut findings).await.map_err(TenantError::from)?;
    let unseen: Vec<ClusterId> =
        clusters.iter().filter(|(_, seen)| seen.inventory.is_err()).map(|(id, _)| *id).collect();
    let moving: Vec<TenantId> = moving.iter().map(|entry| TenantId::from_uuid(entry.id)).collect();
    let mut transaction = audit.pool.begin().await.map_err(TenantError::from)?;
    store::note(&mut transaction, &findings, &unseen, &moving, now).await.map_err(TenantError::from)?;
    store::prune(&mut transaction, now - KEPT).await.map_err(TenantError::from)?;
    transaction.commit().await.map_err(TenantError::from)?;
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem).count();
    if problems > 0 {
        tracing::warn!(problems, findings = findings.len(), "audit fleet");
    } else {
        tracing::info!(problems, findings = findings.len(), "audit fleet");
    }
    Ok(())
}

/// Operations and tenants that do not get on.
async fn stuck(
    audit: &FleetAudit,
    still: &[&TenantEntry],
    now: DateTime<Utc>,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    for operation in store::stuck_operations(&audit.pool, now - LONG).await? {
        let (severity, detail) = if operation.state == "needs_operator" {
            let todo = "undoing it failed, and it holds what it works on: remove the cause, then retry it";
            (Severity::Problem, todo.to_owned())
        } else {
            (Severity::Warning, format!("it is {} for more than an hour", operation.state))
        };
        findings.push(Finding {
            code: "operation_stuck",
            severity,
            subject: format!("operation {} ({})", operation.id, operation.kind),
            tenant: operation.tenant_id.map(TenantId::from_uuid),
            cluster: None,
            detail,
        });
    }
    for entry in still {
        let detail = match entry.state.as_str() {
            // Nothing is at it, so nothing will bring it out of this state.
            "requested" | "provisioning" => "no operation provisions it: delete it and create it anew",
            "deleting" if entry.delete_after.is_some_and(|due| due < now - LONG) => {
                "its time is over and it is not removed: look at its last operation, and retry it"
            }
            _ => continue,
        };
        findings.push(entry.finding("tenant_stuck", Severity::Problem, detail));
    }
    Ok(())
}

impl TenantEntry {
    fn same_place(&self, other: &Self) -> bool {
        let place = |entry: &Self| {
            let Self {
                cluster_id, database_name, owner_role, login_role, next_login_role, retiring_login_role, ..
            } = entry.clone();
            (cluster_id, database_name, owner_role, login_role, next_login_role, retiring_login_role)
        };
        place(self) == place(other)
    }

    fn finding(&self, code: &'static str, severity: Severity, detail: impl Into<String>) -> Finding {
        Finding {
            code,
            severity,
            subject: format!("tenant {}", self.slug),
            tenant: Some(TenantId::from_uuid(self.id)),
            cluster: self.cluster_id.map(ClusterId::from_uuid),
            detail: detail.into(),
        }
    }
}
