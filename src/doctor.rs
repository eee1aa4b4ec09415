//! `freehold-server doctor`, and the same for super admins: looks at everything the server stands on, and says what to do
//! about what is wrong.
//!
//! It changes nothing, and its report holds no secret.

use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use sqlx::Row;

use crate::api::doctor::{DoctorFinding, DoctorLevel, DoctorReport};
use crate::app::AppState;
use crate::database_check::{self, Purpose, Question, Report, Severity};
use crate::ids::TenantId;
use crate::platform_db;
use crate::secrets::{DatabaseUrl, Sealed};
use crate::tenants::clusters::ClusterRecord;

/// An operation that has waited so long is waiting for a worker that is not there.
const LONG_QUEUED: TimeDelta = TimeDelta::minutes(5);
/// An operation that has worked so long deserves a look.
const LONG_RUNNING: TimeDelta = TimeDelta::hours(1);

/// What is to be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Whether it is a server that serves, whose worker can be asked.
    pub serving: bool,
    /// Whether to look at the clients' own databases too, each from here.
    pub tenants: bool,
}

/// Findings in the making.
#[derive(Default)]
struct Findings(Vec<DoctorFinding>);

impl Findings {
    fn add(&mut self, check: &str, level: DoctorLevel, seen: impl Into<String>, remedy: Option<&str>) {
        self.0.push(DoctorFinding {
            check: check.to_owned(),
            level,
            seen: seen.into(),
            remedy: remedy.map(str::to_owned),
        });
    }

    fn ok(&mut self, check: &str, seen: impl Into<String>) {
        self.add(check, DoctorLevel::Ok, seen, None);
    }

    fn warning(&mut self, check: &str, seen: impl Into<String>, remedy: &str) {
        self.add(check, DoctorLevel::Warning, seen, Some(remedy));
    }

    fn failure(&mut self, check: &str, seen: impl Into<String>, remedy: &str) {
        self.add(check, DoctorLevel::Failure, seen, Some(remedy));
    }

    /// What a check of a database found; its notes only if there is nothing else.
    fn database(&mut self, check: &str, report: &Report) {
        for finding in &report.findings {
            match finding.severity {
                Severity::Problem => self.failure(check, &finding.message, &finding.remedy),
                Severity::Warning => self.warning(check, &finding.message, &finding.remedy),
                Severity::Note => {}
            }
        }
        if let (true, Some(version)) = (report.suitable(), report.server_version()) {
            self.ok(check, format!("PostgreSQL {version} answers"));
        }
    }
}

/// Looks at everything.
pub async fn examine(state: &AppState, scope: Scope) -> DoctorReport {
    let mut findings = Findings::default();
    findings.ok("configuration", "every setting is valid");
    if state.config.public_url.scheme() == "http" && !state.config.listen.ip().is_loopback() {
        findings.warning(
            "public URL",
            "passwords and tokens travel without encryption",
            "put a proxy with TLS in front and set FREEHOLD_PUBLIC_URL to its https address",
        );
    }
    match state.limits.examine_redis().await {
        None => {}
        Some(Ok(())) => findings.ok("Redis", "it answers"),
        // Requests are admitted all the same, each server by the part that it holds.
        Some(Err(fault)) => findings.warning("Redis", fault.to_string(), fault.remedy()),
    }
    let url = &state.config.platform_database_url;
    let report = check(state, url, Purpose::Platform, state.config.platform_pool_size).await;
    findings.database("platform database", &report);
    if report.suitable() {
        match examine_platform(state, scope, &mut findings).await {
            Ok(true) => examine_rest(state, scope, &mut findings).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "examine the platform's database");
                findings.failure(
                    "platform database",
                    "it refused a question about its own tables",
                    "see the server's log; the role of PLATFORM_DATABASE_URL has to own the tables",
                );
            }
        }
    }
    let healthy = findings.0.iter().all(|finding| finding.level != DoctorLevel::Failure);
    DoctorReport { healthy, findings: findings.0 }
}

async fn check(state: &AppState, url: &DatabaseUrl, purpose: Purpose, connections_wanted: u32) -> Report {
    let question = Question { url, purpose, tenant: None, owners_servers: &[], connections_wanted };
    database_check::check(&question, &state.clock).await
}

async fn examine_rest(state: &AppState, scope: Scope, findings: &mut Findings) {
    if let Err(error) = examine_keys(state, findings).await {
        tracing::warn!(%error, "examine keys");
        findings.failure("master keys", "the wrapped keys could not be read", "look at the platform's database");
    }
    examine_master_keys(state, findings).await;
    examine_clusters(state, findings).await;
    if scope.tenants {
        examine_tenants(state, findings).await;
    }
}

/// Returns whether there is a schema to look at further.
async fn examine_platform(state: &AppState, scope: Scope, findings: &mut Findings) -> Result<bool, sqlx::Error> {
    let pool = &state.pool;
    let (schema, required) = (platform_db::schema_version(pool).await?, platform_db::required_schema_version());
    if schema < required {
        let seen = format!("version {schema}, and this server needs {required}");
        findings.failure("platform schema", seen, "run `freehold-server migrate`");
        return Ok(false);
    }
    findings.ok("platform schema", format!("version {schema}"));
    let public: bool = sqlx::query_scalar("SELECT has_database_privilege('public', current_database(), 'CONNECT')")
        .fetch_one(pool)
        .await?;
    if public {
        findings.failure(
            "platform isolation",
            "every role of the server may connect to the platform's database",
            "run REVOKE CONNECT ON DATABASE <platform database> FROM PUBLIC",
        );
    } else {
        findings.ok("platform isolation", "PUBLIC may not connect to the platform's database");
    }
    let now = state.clock.now();
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM super_admins),
                (SELECT count(*) FROM operations WHERE state = 'needs_operator'),
                (SELECT count(*) FROM operations WHERE state = 'queued' AND created_at < $1),
                (SELECT count(*) FROM operations WHERE state IN ('running', 'undoing') AND started_at < $2)",
    )
    .bind(now - LONG_QUEUED)
    .bind(now - LONG_RUNNING)
    .fetch_one(pool)
    .await?;
    let (admins, stuck, queued, running): (i64, i64, i64, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    if admins == 0 {
        let remedy = "run `freehold-server create-admin --email you@example.com --password-file FILE`";
        findings.failure("super admins", "there is none", remedy);
    } else {
        findings.ok("super admins", format!("{admins}"));
    }
    if stuck > 0 {
        let remedy = "see `freehold operation list --state needs_operator`, remove the cause, then retry";
        findings.warning("operations", format!("{stuck} need an operator"), remedy);
    } else {
        findings.ok("operations", "none needs an operator");
    }
    if queued > 0 {
        let seen = format!("{queued} operations have been waiting for a worker for minutes");
        findings.failure("worker", seen, "start a server with FREEHOLD_WORKER_CONCURRENCY above 0");
    }
    if running > 0 {
        let remedy = "see `freehold operation list --state running`; a step that waits says until when";
        findings.warning("operations", format!("{running} have been at work for over an hour"), remedy);
    }
    if scope.serving {
        let wanted = state.config.worker_concurrency > 0;
        match (wanted, state.worker_runs.load(Ordering::Acquire)) {
            (true, true) => findings.ok("worker", "this server carries operations out"),
            (true, false) => {
                findings.failure("worker", "this server's worker has ended", "see the server's log; it tries again");
            }
            (false, _) => findings.ok("worker", "this server carries no operations out, as it is set"),
        }
    }
    Ok(true)
}

async fn examine_keys(state: &AppState, findings: &mut Findings) -> Result<(), sqlx::Error> {
    let rows: Vec<(uuid::Uuid, i32, Vec<u8>, i32)> =
        sqlx::query_as("SELECT tenant_id, version, wrapped_key, master_key_version FROM wrapped_keys")
            .fetch_all(&state.pool)
            .await?;
    let opens = |(tenant, version, wrapped, _): &(uuid::Uuid, i32, Vec<u8>, i32)| {
        let sealed = Sealed::from_bytes(wrapped.clone()).ok();
        let version = u32::try_from(*version).ok();
        sealed.zip(version).is_some_and(|(sealed, version)| {
            state.config.master_keys.unwrap(TenantId::from_uuid(*tenant), version, &sealed).is_ok()
        })
    };
    let closed = rows.iter().filter(|row| !opens(row)).count();
    let versions: std::collections::BTreeSet<i32> = rows.iter().map(|row| row.3).collect();
    let versions = versions.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    if closed > 0 {
        let seen = format!("{closed} of {} data keys do not open; versions {versions} have wrapped them", rows.len());
        let remedy = "FREEHOLD_MASTER_KEYS must hold every version in use; put the missing ones back";
        findings.failure("master keys", seen, remedy);
    } else if rows.is_empty() {
        findings.ok("master keys", "nothing is wrapped yet");
    } else {
        findings.ok("master keys", format!("all {} data keys open; in use: version {versions}", rows.len()));
    }
    Ok(())
}

/// Which master keys are in use, and which may be dropped.
async fn examine_master_keys(state: &AppState, findings: &mut Findings) {
    let keys = match state.rotations.master_keys().await {
        Ok(keys) => keys,
        Err(error) => {
            return findings.failure("master keys", error.to_string(), "see the platform's database above");
        }
    };
    for key in keys.items {
        let check = format!("master key {}", key.version);
        let values = format!("{} values are under it", key.values);
        match (key.held, key.version == keys.primary, key.values) {
            (false, ..) => {
                let remedy = "FREEHOLD_MASTER_KEYS must hold every version in use; put it back";
                findings.failure(&check, format!("{values}, and it is not held"), remedy);
            }
            (true, true, _) => findings.ok(&check, format!("{values}; what is new is sealed with it")),
            (true, false, 0) => findings.ok(
                &check,
                "nothing is under it any more: it may be dropped from FREEHOLD_MASTER_KEYS, and kept with older backups",
            ),
            (true, false, _) => {
                let remedy = "run `freehold rotate master-key` once every server holds the newest";
                findings.warning(&check, format!("{values}, though it is not the newest"), remedy);
            }
        }
    }
}

async fn examine_clusters(state: &AppState, findings: &mut Findings) {
    let clusters = match state.clusters.list().await {
        Ok(clusters) => clusters,
        Err(error) => return findings.failure("clusters", error.to_string(), "look at the platform's database"),
    };
    if clusters.is_empty() {
        let remedy = "register one with `freehold cluster add NAME --admin-url-file FILE`";
        findings.warning("clusters", "none is registered; managed tenants need one", remedy);
    }
    for cluster in clusters {
        examine_cluster(state, &cluster, findings).await;
    }
}

async fn examine_cluster(state: &AppState, cluster: &ClusterRecord, findings: &mut Findings) {
    let name = format!("cluster {}", cluster.name);
    let url = state.clusters.admin_url(cluster.id).await.ok();
    let Some(url) = url.and_then(|url| DatabaseUrl::parse(&url).ok()) else {
        let remedy = "FREEHOLD_MASTER_KEYS must hold every version in use";
        return findings.failure(&name, "its sealed URL does not open", remedy);
    };
    let mut report = check(state, &url, Purpose::Cluster, 4).await;
    for finding in report.findings.iter_mut().filter(|finding| finding.code == "password_wrong") {
        let command = format!("freehold cluster set {} --admin-url-file FILE", cluster.name);
        finding.remedy = format!("give the URL with the password that is in force now: {command}");
    }
    findings.database(&name, &report);
    if !report.suitable() {
        return;
    }
    let open_to_all = match state.clusters.open(cluster.id).await {
        Ok(opened) => opened.open_to_public().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match open_to_all {
        Ok(databases) if databases.is_empty() => findings.ok(&name, "PUBLIC may connect to no database that all have"),
        Ok(databases) => {
            let seen = format!("every tenant's role may connect to {}", databases.join(" and "));
            let remedy = format!("run REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC", databases.join(", "));
            findings.failure(&name, seen, &remedy);
        }
        Err(error) => findings.failure(&name, error, "check the rights of the role in its admin URL"),
    }
    let current = state.clusters.migrations().current_version();
    match cluster.template_schema_version {
        Some(version) if version == current => findings.ok(&name, format!("{} tenants", cluster.tenants)),
        version => {
            let version = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
            let seen = format!("its template has schema version {version}, and this server makes {current}");
            findings.warning(&name, seen, "nothing has to be done: the next provisioning builds it anew");
        }
    }
}

async fn examine_tenants(state: &AppState, findings: &mut Findings) {
    match state.own_databases.check_all().await {
        Ok(reports) if reports.is_empty() => findings.ok("clients' own databases", "there are none in service"),
        Ok(reports) => {
            for (slug, report) in reports {
                findings.database(&format!("database of {slug}"), &report);
            }
        }
        Err(error) => findings.failure(
            "clients' own databases",
            error.to_string(),
            "FREEHOLD_MASTER_KEYS must hold every version in use",
        ),
    }
}
