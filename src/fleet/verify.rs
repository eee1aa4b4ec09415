//! The operation `verify_fleet`: every tenant's database compared with what it has to be.
//!
//! The registry is not believed: each database is asked, in one round trip, which migrations it has noted and what its
//! schema looks like. It changes nothing, so there is nothing to undo and repeating it is harmless. Something found is a
//! result, not a failure of the operation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::migrate::{Ticker, note_progress};
use super::store::{self, Unverified, Verified};
use super::{Fleet, FleetFinding, boxed, credentials, nothing, permanent, platform};
use crate::ids::ClusterId;
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError};
use crate::provisioning::{self, Catalog, Differences, Inspection, TenantMigrations};
use crate::secrets::connect;
use crate::telemetry::causes;

/// How many tenants are read and noted at a time.
const PAGE: i64 = 100;
/// How many objects that differ are named.
const NAMED: usize = 30;
/// How long a database may take to say what is in it.
const LIMIT: Duration = Duration::from_secs(60);

/// The operation.
pub static DEFINITION: Definition<Fleet> = Definition {
    kind: "verify_fleet",
    steps: &[
        Step { name: "plan", run: |s, c| boxed(plan(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "verify_tenants", run: |s, c| boxed(verify_tenants(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyInput {
    /// The slugs; all tenants without.
    pub tenants: Option<Vec<String>>,
    /// How many at once, each with a connection of its own.
    pub parallel: u32,
}

fn input(context: &StepContext) -> Result<VerifyInput, StepError> {
    serde_json::from_value(context.input.clone())
        .map_err(|_| permanent("input_unreadable", "the operation's input cannot be read".to_owned()))
}

async fn plan(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    let wanted = input(&context)?;
    store::reopen(&fleet.pool, context.operation_id).await.map_err(platform)?;
    store::insert_verified(&fleet.pool, context.operation_id, wanted.tenants.as_deref()).await.map_err(platform)?;
    note_progress(&fleet, context.operation_id).await
}

/// What databases are compared with.
struct References {
    migrations: Arc<TenantMigrations>,
    /// Each cluster's template: the same text of a definition may be shown otherwise by another version of Postgres.
    catalogs: HashMap<ClusterId, Catalog>,
}

impl References {
    async fn read(fleet: &Fleet) -> Result<Self, StepError> {
        let mut catalogs = HashMap::new();
        let mut trouble = None;
        for record in fleet.clusters.list().await? {
            let read = async {
                let cluster = fleet.clusters.open(record.id).await?;
                Ok::<_, crate::tenants::TenantError>(cluster.template_catalog().await?)
            };
            match read.await {
                Ok(catalog) => drop(catalogs.insert(record.id, catalog)),
                Err(error) => {
                    tracing::warn!(cluster = record.name, causes = causes(&error), "read template's catalog");
                    trouble = Some(error);
                }
            }
        }
        match trouble {
            // Without anything to compare with, a verification would say that all is well.
            Some(error) if catalogs.is_empty() => Err(error.into()),
            _ => Ok(Self { migrations: Arc::clone(fleet.migrations()), catalogs }),
        }
    }

    /// The template of the tenant's own cluster, or, for a database of the client's own, any.
    fn catalog(&self, cluster: Option<ClusterId>) -> Option<&Catalog> {
        cluster.and_then(|cluster| self.catalogs.get(&cluster)).or_else(|| self.catalogs.values().next())
    }
}

async fn verify_tenants(fleet: Arc<Fleet>, context: StepContext) -> Result<(), StepError> {
    let id = context.operation_id;
    let parallel = usize::try_from(input(&context)?.parallel).unwrap_or(1);
    let references = Arc::new(References::read(&fleet).await?);
    let _ticker = Ticker::start(&fleet, id);
    let mut tasks = JoinSet::new();
    let mut under_way = HashMap::new();
    let (mut page, mut after) = (Vec::new().into_iter(), 0);
    let mut verified = Vec::new();
    loop {
        while tasks.len() < parallel {
            let next = match page.next() {
                Some(tenant) => Some(tenant),
                None => {
                    page = store::next_unverified(&fleet.pool, id, after, PAGE).await.map_err(platform)?.into_iter();
                    page.next()
                }
            };
            let Some(tenant) = next else { break };
            after = tenant.position;
            let (fleet, references) = (Arc::clone(&fleet), Arc::clone(&references));
            let begun = (tenant.id, fleet.clock.now());
            let task = tasks.spawn(async move { verify(&fleet, &references, tenant).await });
            under_way.insert(task.id(), begun);
        }
        match tasks.join_next_with_id().await {
            None => break,
            Some(Ok((task, tenant))) => {
                under_way.remove(&task);
                verified.push(tenant);
            }
            // What one database answers must not end the verification of all.
            Some(Err(lost)) => {
                let Some((id, started_at)) = under_way.remove(&lost.id()) else { continue };
                tracing::error!(tenant_id = %id, error = %lost, "verify tenant database");
                let findings = vec![finding("unreadable", "what its database answered could not be read")];
                verified.push(Verified { id, version: None, findings, started_at });
            }
        }
        if verified.len() >= 50 {
            store::note_verified(&fleet.pool, id, &verified, fleet.clock.now()).await.map_err(platform)?;
            verified.clear();
        }
    }
    store::note_verified(&fleet.pool, id, &verified, fleet.clock.now()).await.map_err(platform)?;
    note_progress(&fleet, id).await
}

fn finding(code: &str, message: impl Into<String>) -> FleetFinding {
    FleetFinding { code: code.to_owned(), message: message.into() }
}

async fn verify(fleet: &Fleet, references: &References, tenant: Unverified) -> Verified {
    let started_at = fleet.clock.now();
    let (id, registered, cluster) = (tenant.id, tenant.schema_version, tenant.cluster);
    let mut verified = Verified { id, version: None, findings: Vec::new(), started_at };
    let Ok(urls) = credentials::open(&fleet.master_keys, id, tenant.credentials) else {
        verified.findings.push(finding("sealed_value", "its credential does not open"));
        return verified;
    };
    let mut client = None;
    for url in &urls {
        match connect(url).await {
            Ok((connected, _)) => {
                client = Some(connected);
                break;
            }
            Err(error) => tracing::debug!(tenant_id = %id, causes = causes(&error), "verify tenant database"),
        }
    }
    let Some(client) = client else {
        verified.findings.push(finding("unreachable", "its database does not answer, or not to the stored credential"));
        return verified;
    };
    let inspection = match timeout(LIMIT, provisioning::inspect(&client)).await {
        Ok(Ok(inspection)) => inspection,
        Err(_elapsed) => {
            verified.findings.push(finding("unreadable", "its database did not say in time what is in it"));
            return verified;
        }
        Ok(Err(error)) => {
            tracing::debug!(tenant_id = %id, causes = causes(&error), "verify tenant database");
            let message = "its table of migrations and its catalog could not be read";
            verified.findings.push(finding("unreadable", message));
            return verified;
        }
    };
    verified.version = inspection.applied.iter().map(|applied| applied.version).max();
    verified.findings = compare_migrations(&references.migrations, &inspection, registered);
    let complete = !verified.findings.iter().any(|finding| finding.code.ends_with("_migration"));
    // One that lacks a migration differs from the template anyway: that would say the same twice.
    if let Some(expected) = references.catalog(cluster).filter(|_| complete)
        && expected.digest != inspection.digest
    {
        match timeout(LIMIT, provisioning::read_catalog(&client)).await {
            // In a database of the client's own there may be tables of the client's own.
            Ok(Ok(found)) => verified.findings.extend(drift(&expected.differences(&found), cluster.is_some())),
            Err(_elapsed) => verified.findings.push(finding("unreadable", "its catalog could not be read in time")),
            Ok(Err(error)) => {
                tracing::debug!(tenant_id = %id, causes = causes(&error), "read tenant's catalog");
                verified.findings.push(finding("unreadable", "its catalog could not be read"));
            }
        }
    }
    verified
}

fn compare_migrations(
    migrations: &TenantMigrations,
    inspection: &Inspection,
    registered: Option<i64>,
) -> Vec<FleetFinding> {
    let mut findings = Vec::new();
    for applied in &inspection.applied {
        let version = applied.version;
        match migrations.get(version) {
            None => {
                findings.push(finding("unknown_migration", format!("{version} was applied, and is not known here")));
            }
            Some(ours) if ours.checksum != applied.checksum => {
                findings.push(finding("altered_migration", format!("{version} was applied in another wording")));
            }
            Some(_) if !applied.success => {
                findings.push(finding("altered_migration", format!("{version} is noted as not carried out")));
            }
            Some(_) => {}
        }
    }
    for migration in migrations.iter() {
        if !inspection.applied.iter().any(|applied| applied.version == migration.version) {
            let message = format!("{} ({}) is not applied", migration.version, migration.description);
            findings.push(finding("missing_migration", message));
        }
    }
    let found = inspection.applied.iter().map(|applied| applied.version).max();
    if found != registered {
        let known = |version: Option<i64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        let message = format!("the registry says version {}, the database {}", known(registered), known(found));
        findings.push(finding("registry_differs", message));
    }
    findings
}

fn drift(differences: &Differences, is_managed: bool) -> Vec<FleetFinding> {
    let told = |objects: &[provisioning::SchemaObject], what: &str| {
        objects.iter().map(|object| format!("{} {} {what}", object.kind, object.name)).collect::<Vec<_>>()
    };
    let mut messages = told(&differences.missing, "is missing");
    messages.extend(told(&differences.changed, "is not as the migrations made it"));
    if is_managed {
        messages.extend(told(&differences.extra, "was not made by a migration"));
    }
    let more = messages.len().saturating_sub(NAMED);
    messages.truncate(NAMED);
    if more > 0 {
        messages.push(format!("and {more} more"));
    }
    messages.into_iter().map(|message| finding("schema_drift", message)).collect()
}

fn settle<'a>(_: &'a mut PgConnection, _: &'a StepContext, _: Outcome, _: DateTime<Utc>) -> SettleFuture<'a> {
    Box::pin(async { Ok(()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioning::AppliedMigration;

    #[test]
    fn a_databases_notes_are_compared_with_the_programs_migrations() {
        let migrations = TenantMigrations::embedded();
        let mut applied: Vec<AppliedMigration> = migrations
            .iter()
            .map(|migration| AppliedMigration {
                version: migration.version,
                checksum: migration.checksum.to_vec(),
                success: true,
            })
            .collect();
        let newest = migrations.current_version();
        let codes = |applied: &[AppliedMigration], registered| {
            let inspection = Inspection { applied: applied.to_vec(), digest: String::new() };
            let findings = compare_migrations(&migrations, &inspection, Some(registered));
            findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(codes(&applied, newest).is_empty());
        assert_eq!(codes(&applied, newest - 1), ["registry_differs"]);
        applied[0].checksum = vec![0];
        applied.pop();
        applied.push(AppliedMigration { version: 9001, checksum: vec![], success: true });
        assert_eq!(codes(&applied, 9001), ["altered_migration", "unknown_migration", "missing_migration"]);
    }
}
