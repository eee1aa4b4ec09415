//! The operation `migrate_fleet`: every tenant's database brought to one version, a few at a time.
//!
//! | step | does | if we die there |
//! |---|---|---|
//! | `plan` | notes a row for each tenant that is behind, canaries first | repeats; a retry opens what is not done again |
//! | `move_templates` | every cluster's template database holds the new schema | repeats; a half-built one is dropped |
//! | `migrate_canaries` | the first tenants; one that fails ends the run | goes on with what is not done |
//! | `migrate_tenants` | all others, then those that came meanwhile | the same |
//! | `report` | fails if a tenant failed, so that a retry can take it up again | repeats |
//!
//! Undoing is nothing, for migrations only go forward. A tenant's database knows what was applied to it; the registry is
//! corrected by whoever looks next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::{self, Finished};
use super::{Canary, Fleet, OnError, boxed, credentials, nothing, permanent, platform};
use crate::ids::{OperationId, TenantId};
use crate::operations::{self, Definition, Outcome, SettleFuture, Step, StepContext, StepError};
use crate::provisioning::{self, MigrateError, MigrateFailure, MigrateLimits, Migrated};
use crate::secrets::DatabaseUrl;
use crate::telemetry::causes;

/// How many tenants are read from the plan at a time: memory does not grow with the fleet.
const PAGE: i64 = 64;
/// How often the progress is noted.
const PROGRESS: Duration = Duration::from_millis(500);

/// The operation.
pub static DEFINITION: Definition<Fleet> = Definition {
    kind: "migrate_fleet",
    steps: &[
        Step { name: "plan", run: |s, c| boxed(plan(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "move_templates", run: |s, c| boxed(move_templates(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "migrate_canaries", run: |s, c| boxed(migrate_canaries(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "migrate_tenants", run: |s, c| boxed(migrate_tenants(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "report", run: |s, c| boxed(report(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Migration {
    /// The slugs; all tenants without.
    pub tenants: Option<Vec<String>>,
    /// How many go first.
    pub canary: Canary,
    /// How many at once, each with a connection of its own.
    pub parallel: u32,
    /// What a failure means.
    pub on_error: OnError,
    /// Stop after so many.
    pub max_failures: Option<u32>,
    /// The version to migrate to; the newest without.
    pub target_version: Option<i64>,
    /// Look at those that are up to date by the registry as well.
    pub recheck: bool,
    /// How long a statement waits for a lock, in milliseconds.
    pub lock_timeout_ms: u64,
    /// How long a statement may run, in milliseconds.
    pub statement_timeout_ms: u64,
    /// How long a statement outside a transaction may run, in milliseconds.
    pub concurrent_timeout_ms: u64,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            tenants: None,
            canary: Canary::Count(1),
            parallel: 8,
            on_error: OnError::Stop,
            max_failures: None,
            target_version: None,
            recheck: false,
            lock_timeout_ms: 2_000,
            statement_timeout_ms: 60_000,
            concurrent_timeout_ms: 3_600_000,
        }
    }
}

impl Migration {
    fn limits(&self) -> MigrateLimits {
        MigrateLimits {
            lock_timeout: Duration::from_millis(self.lock_timeout_ms),
            statement_timeout: Duration::from_millis(self.statement_timeout_ms),
            concurrent_timeout: Duration::from_millis(self.concurrent_timeout_ms),
            tries: 5,
        }
    }

    /// How many failures end the run.
    fn most_failures(&self) -> u32 {
        match (self.max_failures, self.on_error) {
            (Some(most), _) => most.max(1),
            (None, OnError::Stop) => 1,
            (None, OnError::Continue) => u32::MAX,
        }
    }
}

/// The input as stored: what was asked for, and the version that was the newest then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MigrateInput {
    pub(super) migration: Migration,
    pub(super) target_version: i64,
}

fn input(context: &StepContext) -> Result<MigrateInput, StepError> {
    serde_json::from_value(context.input.clone())
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read".to_owned()))
}

/// Why a tenant is left alone, from how it stands.
pub(super) fn reason_to_skip(state: &str, holder: Option<&str>) -> Option<(&'static str, String)> {
    let reason = match state {
        "active" => None,
        // Its database lets nobody in, us included.
        "suspended" => Some(("tenant_suspended", "it is suspended; resume it, then migrate it".to_owned())),
        "requested" | "provisioning" => Some(("being_provisioned", "it is being provisioned".to_owned())),
        "waiting_for_client" => Some(("waiting_for_client", "it has no database yet".to_owned())),
        "deleting" | "deleted" => Some(("tenant_deleting", "it is being deleted".to_owned())),
        _ => Some(("provisioning_failed", "its provisioning has failed".to_owned())),
    };
    reason.or_else(|| Some(("operation_in_progress", format!("the operation {} holds it", holder?))))
}

async fn plan(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    let MigrateInput { migration, target_version } = input(&context)?;
    if fleet.migrations().get(target_version).is_none() {
        return Err(permanent(
            "unknown_version",
            format!("this server has no tenant migration {target_version}; let a server of the newer version retry"),
        ));
    }
    let id = context.operation_id;
    store::reopen(&fleet.pool, id).await.map_err(platform)?;
    let first_time = store::counts(&fleet.pool, id).await.map_err(platform)?.total == 0;
    store::insert_items(&fleet.pool, id, &migration, target_version, first_time).await.map_err(platform)?;
    note_progress(&fleet, id).await
}

/// Tenants that are provisioned from now on are clones of the new schema. A cluster that does not answer does not keep
/// the others: it builds its template when a tenant is next provisioned there.
async fn move_templates(fleet: Arc<Fleet>, _: StepContext) -> Result<(), StepError> {
    for record in fleet.clusters.list().await? {
        let moved = async {
            let cluster = fleet.clusters.open(record.id).await?;
            fleet.clusters.ensure_template(record.id, &cluster).await
        };
        if let Err(error) = moved.await {
            tracing::warn!(cluster = record.name, causes = causes(&error), "move template database");
        }
    }
    Ok(())
}

async fn migrate_canaries(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    let input = input(&context)?;
    let id = context.operation_id;
    loop {
        // For canaries a single failure is enough.
        run(&fleet, id, &input, true, 1).await?;
        let counts = store::counts(&fleet.pool, id).await.map_err(platform)?;
        if counts.canaries_failed > 0 {
            return Err(permanent(
                "canary_failed",
                format!("{} of the first tenants failed, and no other was touched", counts.canaries_failed),
            ));
        }
        // One that could not be looked at proves nothing: others take its place.
        let wanted = match input.migration.canary {
            Canary::Count(count) => i64::from(count),
            Canary::Percent(percent) => (counts.total * i64::from(percent) + 99) / 100,
        };
        let missing = wanted - counts.canaries_done;
        if missing <= 0 || store::promote(&fleet.pool, id, missing).await.map_err(platform)? == 0 {
            return Ok(());
        }
    }
}

async fn migrate_tenants(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    let MigrateInput { migration, target_version } = input(&context)?;
    let input = MigrateInput { migration: migration.clone(), target_version };
    let id = context.operation_id;
    // What comes to be behind while we are at it, cloned from an old template by an older server, comes last.
    let meanwhile = Migration { recheck: false, canary: Canary::Count(0), ..migration };
    loop {
        let failures = run(&fleet, id, &input, false, input.migration.most_failures()).await?;
        if failures >= input.migration.most_failures() {
            return Err(permanent("tenants_failed", format!("stopped after {failures} tenants had failed")));
        }
        let provisioned = store::reopen_provisioned(&fleet.pool, id, target_version).await.map_err(platform)?;
        let new = store::insert_items(&fleet.pool, id, &meanwhile, target_version, false).await.map_err(platform)?;
        if provisioned == 0 && new == 0 {
            return Ok(());
        }
    }
}

async fn report(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    note_progress(&fleet, context.operation_id).await?;
    let counts = store::counts(&fleet.pool, context.operation_id).await.map_err(platform)?;
    if counts.failed > 0 {
        return Err(permanent("tenants_failed", format!("{} of {} tenants failed", counts.failed, counts.total)));
    }
    Ok(())
}

pub(super) async fn note_progress(fleet: &Fleet, id: OperationId) -> Result<(), StepError> {
    let counts = store::counts(&fleet.pool, id).await.map_err(platform)?;
    operations::store::note_progress(&fleet.pool, id, &counts.progress()).await.map_err(platform)
}

/// Notes the progress every now and then, until it is dropped.
pub(super) struct Ticker(CancellationToken);

impl Ticker {
    pub(super) fn start(fleet: &Arc<Fleet>, id: OperationId) -> Self {
        let (stop, fleet) = (CancellationToken::new(), Arc::clone(fleet));
        let ticker = Self(stop.clone());
        tokio::spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(PROGRESS)).await.is_some() {
                if let Err(error) = note_progress(&fleet, id).await {
                    tracing::debug!(causes = causes(&error), "note progress");
                }
            }
        });
        ticker
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What the tasks of one run share.
struct Wave {
    fleet: Arc<Fleet>,
    operation: OperationId,
    input: MigrateInput,
    limits: MigrateLimits,
    /// Names this run: what another one notes of a tenant that we have in hand is refused.
    run: Uuid,
    failures: AtomicU32,
    most_failures: u32,
}

/// Migrates what is planned and not touched, at most `parallel` at once, until all is done or too much has failed.
/// Returns how many have failed.
async fn run(
    fleet: &Arc<Fleet>,
    operation: OperationId,
    input: &MigrateInput,
    canaries: bool,
    most_failures: u32,
) -> Result<u32, StepError> {
    store::release(&fleet.pool, operation).await.map_err(platform)?;
    let failed = store::counts(&fleet.pool, operation).await.map_err(platform)?.failed;
    let wave = Arc::new(Wave {
        fleet: Arc::clone(fleet),
        operation,
        input: input.clone(),
        limits: input.migration.limits(),
        run: Uuid::now_v7(),
        failures: AtomicU32::new(u32::try_from(failed).unwrap_or(u32::MAX)),
        most_failures,
    });
    let _ticker = Ticker::start(fleet, operation);
    // Dropped with this future, and its tasks with it.
    let mut tasks = JoinSet::new();
    let (mut page, mut after) = (Vec::new().into_iter(), 0);
    loop {
        while tasks.len() < usize::try_from(input.migration.parallel).unwrap_or(1) && !wave.stops() {
            let next = match page.next() {
                Some(item) => Some(item),
                None => {
                    let items = store::next_items(&fleet.pool, operation, canaries, after, PAGE).await;
                    page = items.map_err(platform)?.into_iter();
                    page.next()
                }
            };
            let Some((position, tenant)) = next else { break };
            after = position;
            let wave = Arc::clone(&wave);
            tasks.spawn(async move { wave.take(tenant).await });
        }
        match tasks.join_next().await {
            None => break,
            Some(Ok(noted)) => noted.map_err(platform)?,
            Some(Err(lost)) => return Err(StepError::Transient("a task was lost", lost.into())),
        }
    }
    note_progress(fleet, operation).await?;
    Ok(wave.failures.load(Ordering::Acquire))
}

/// How a tenant's turn ended.
enum Turn {
    Done(Migrated),
    Failed { code: &'static str, message: String, reached: Option<Migrated> },
    Skipped { code: &'static str, message: String },
}

impl Wave {
    fn stops(&self) -> bool {
        self.failures.load(Ordering::Acquire) >= self.most_failures
    }

    /// One tenant's turn: its outcome is noted, whatever it is. An error is the platform's database.
    async fn take(&self, tenant: TenantId) -> Result<(), sqlx::Error> {
        let Fleet { pool, clock, .. } = &*self.fleet;
        let Some(begun) = store::begin(pool, self.operation, tenant, self.run, clock.now()).await? else {
            return Ok(());
        };
        let (slug, database) = (begun.slug.clone(), begun.database.clone());
        let turn = match reason_to_skip(&begun.state, begun.holder.as_deref()) {
            Some((code, message)) => Turn::Skipped { code, message },
            None => self.migrate(tenant, begun.credentials).await,
        };
        let (state, migrated, error) = match &turn {
            Turn::Done(migrated) => ("done", Some(*migrated), None),
            Turn::Failed { code, message, reached } => {
                self.failures.fetch_add(1, Ordering::AcqRel);
                tracing::warn!(tenant_id = %tenant, slug, code, "migrate tenant");
                ("failed", *reached, Some((*code, message.as_str())))
            }
            Turn::Skipped { code, message } => ("skipped", None, Some((*code, message.as_str()))),
        };
        let compatible_from = |version| self.fleet.migrations().compatible_from(version);
        let finished = Finished {
            state,
            from_version: migrated.map(|migrated| migrated.from),
            reached: migrated.map(|migrated| (migrated.to, compatible_from(migrated.to))),
            database: database.as_deref(),
            error,
        };
        store::finish(pool, self.operation, tenant, self.run, &finished, clock.now()).await
    }

    async fn migrate(&self, tenant: TenantId, sealed: credentials::SealedCredentials) -> Turn {
        let Ok(urls) = credentials::open(&self.fleet.master_keys, tenant, sealed) else {
            let message = "its credential does not open".to_owned();
            return Turn::Failed { code: "sealed_value", message, reached: None };
        };
        let mut outcome = Turn::Skipped { code: "access_denied", message: "it has no credential".to_owned() };
        for url in &urls {
            outcome = match self.migrate_by(url).await {
                Ok(migrated) => return Turn::Done(migrated),
                // The other credential may be the one that works.
                Err(failure) if matches!(failure.error, MigrateError::AccessDenied(_)) => told(failure),
                Err(failure) => return told(failure),
            };
        }
        outcome
    }

    async fn migrate_by(&self, url: &DatabaseUrl) -> Result<Migrated, MigrateFailure> {
        let target = self.input.target_version;
        provisioning::migrate_database(url, self.fleet.migrations(), target, &self.limits).await
    }
}

/// What a failure means for the run: a tenant that is away is not one whose migration fails.
fn told(failure: MigrateFailure) -> Turn {
    let MigrateFailure { error, reached } = failure;
    let message = error.to_string();
    let failed = |code| Turn::Failed { code, message: message.clone(), reached };
    let skipped = |code| Turn::Skipped { code, message: message.clone() };
    tracing::debug!(causes = causes(&error), "migrate tenant database");
    match error {
        MigrateError::Unreachable(_) => skipped("unreachable"),
        MigrateError::AccessDenied(_) => skipped("access_denied"),
        MigrateError::Held => skipped("migration_in_progress"),
        MigrateError::LockTimeout { .. } => failed("lock_timeout"),
        MigrateError::StatementTimeout { .. } => failed("statement_timeout"),
        MigrateError::Altered { .. } => failed("altered_migration"),
        MigrateError::Unknown { .. } => failed("unknown_migration"),
        MigrateError::Refused { .. } => failed("migration_refused"),
        MigrateError::Broken(_) => failed("connection_lost"),
    }
}

fn settle<'a>(_: &'a mut PgConnection, _: &'a StepContext, _: Outcome, _: DateTime<Utc>) -> SettleFuture<'a> {
    Box::pin(async { Ok(()) })
}
