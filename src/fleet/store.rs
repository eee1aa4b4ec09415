//! SQL of `fleet_migration_tenants`, and what a run reads and notes of the registry.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use super::credentials::SealedCredentials;
use super::migrate::Migration;
use super::{Canary, FleetFinding, FleetPlan, FleetTenantState, Wave};
use crate::api::fleet::{PlannedSkip, PlannedTenant};
use crate::ids::{ClusterId, OperationId, TenantId};
use crate::operations::OperationProgress;

/// How many tenants a plan names.
const NAMED: usize = 200;

/// Whether any tenant in service is behind `target`, or any cluster's template is not of the version `newest`.
pub(super) async fn anything_behind(pool: &PgPool, target: i64, newest: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM chat_instances
                          WHERE state = 'active' AND COALESCE(schema_version, 0) < $1)
               OR EXISTS (SELECT FROM clusters WHERE COALESCE(template_schema_version, 0) < $2) AS "behind!""#,
        target,
        newest
    )
    .fetch_one(pool)
    .await
}

/// What is known of tenants that were named.
pub(super) struct Selected {
    pub(super) unknown: Vec<String>,
    pub(super) behind: bool,
}

pub(super) async fn find_selected(pool: &PgPool, slugs: &[String], target: i64) -> Result<Selected, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT COALESCE(array_agg(wanted.slug) FILTER (WHERE t.id IS NULL), '{}') AS "unknown!",
                COALESCE(bool_or(COALESCE(t.schema_version, 0) < $2) FILTER (WHERE t.id IS NOT NULL), false)
                    AS "behind!"
         FROM unnest($1::text[]) AS wanted (slug)
         LEFT JOIN chat_instances t ON t.slug = wanted.slug AND t.state <> 'deleted'"#,
        slugs,
        target
    )
    .fetch_one(pool)
    .await?;
    Ok(Selected { unknown: row.unknown, behind: row.behind })
}

fn canary_of(canary: Canary) -> (i64, i64) {
    match canary {
        Canary::Count(count) => (i64::from(count), 0),
        Canary::Percent(percent) => (0, i64::from(percent)),
    }
}

/// What would be done: the same choice and order as [`insert_items`].
pub(super) async fn preview(pool: &PgPool, wanted: &Migration, target: i64) -> Result<FleetPlan, sqlx::Error> {
    let (count, percent) = canary_of(wanted.canary);
    let rows = sqlx::query!(
        r#"SELECT t.slug, t.state, t.schema_version,
                row_number() OVER chosen <= GREATEST($4::bigint, ($5::bigint * sum((t.state = 'active')::int) OVER () + 99) / 100)
                    AND t.state = 'active' AS "canary!",
                EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                        AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')) AS "held!",
                count(*) FILTER (WHERE t.state = 'active') OVER () AS "total!"
         FROM chat_instances t
         WHERE t.state <> 'deleted' AND (COALESCE(t.schema_version, 0) < $2 OR $3)
           AND CASE WHEN $1::text[] IS NULL THEN t.state IN ('active', 'suspended', 'requested', 'provisioning', 'deleting')
                        OR (t.state = 'failed' AND EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                            AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')))
                    ELSE t.slug = ANY ($1) END
         WINDOW chosen AS (ORDER BY t.state = 'active' DESC, md5(t.id::text))
         ORDER BY t.state = 'active' DESC, md5(t.id::text)
         LIMIT 10000"#,
        wanted.tenants.as_deref(),
        target,
        wanted.recheck,
        count,
        percent
    )
    .fetch_all(pool)
    .await?;
    let tenants = rows.first().map_or(0, |row| row.total);
    let mut plan = FleetPlan { tenants, first: Vec::new(), migrations: Vec::new(), skipped: Vec::new() };
    for row in rows {
        match super::migrate::reason_to_skip(&row.state, row.held.then_some("another operation")) {
            Some((code, _)) if plan.skipped.len() < NAMED => {
                plan.skipped.push(PlannedSkip { tenant: row.slug, code: code.to_owned() });
            }
            None if plan.first.len() < NAMED => {
                let wave = if row.canary { Wave::Canary } else { Wave::Fleet };
                plan.first.push(PlannedTenant { tenant: row.slug, wave, from_version: row.schema_version });
            }
            _ => {}
        }
    }
    Ok(plan)
}

/// Everything that is not done is to be done again: for the first step, which only a retry repeats after others.
pub(super) async fn reopen(pool: &PgPool, operation: OperationId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE fleet_migration_tenants SET state = 'pending', run_id = NULL, error_code = NULL, error_message = NULL,
                findings = NULL, started_at = NULL, finished_at = NULL
         WHERE operation_id = $1 AND state IN ('running', 'failed', 'skipped')",
        operation.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What a worker that died had in hand is to be done again.
pub(super) async fn release(pool: &PgPool, operation: OperationId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE fleet_migration_tenants SET state = 'pending', run_id = NULL
         WHERE operation_id = $1 AND state = 'running'",
        operation.as_uuid()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes every tenant that is to be migrated and is not noted yet, in one statement. The order is arbitrary and always the
/// same; tenants in service come first, and the first of them are canaries if `first_time`.
pub(super) async fn insert_items(
    pool: &PgPool,
    operation: OperationId,
    wanted: &Migration,
    target: i64,
    first_time: bool,
) -> Result<u64, sqlx::Error> {
    let (count, percent) = if first_time { canary_of(wanted.canary) } else { (0, 0) };
    let inserted = sqlx::query!(
        "INSERT INTO fleet_migration_tenants (operation_id, tenant_id, position, wave, state, from_version)
         SELECT $1, t.id,
                (SELECT COALESCE(max(position), 0) FROM fleet_migration_tenants WHERE operation_id = $1)
                    + row_number() OVER chosen,
                CASE WHEN t.state = 'active' AND row_number() OVER chosen
                          <= GREATEST($5::bigint, ($6::bigint * sum((t.state = 'active')::int) OVER () + 99) / 100)
                     THEN 'canary' ELSE 'fleet' END,
                'pending', t.schema_version
         FROM chat_instances t
         WHERE t.state <> 'deleted' AND (COALESCE(t.schema_version, 0) < $3 OR $4)
           AND CASE WHEN $2::text[] IS NULL THEN t.state IN ('active', 'suspended', 'requested', 'provisioning', 'deleting')
                        OR (t.state = 'failed' AND EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                            AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')))
                    ELSE t.slug = ANY ($2) END
           AND NOT EXISTS (SELECT FROM fleet_migration_tenants f WHERE f.operation_id = $1 AND f.tenant_id = t.id)
         WINDOW chosen AS (ORDER BY t.state = 'active' DESC, md5(t.id::text))",
        operation.as_uuid(),
        wanted.tenants.as_deref(),
        target,
        wanted.recheck,
        count,
        percent
    )
    .execute(pool)
    .await?;
    Ok(inserted.rows_affected())
}

/// Tenants that were still being provisioned when their turn came and are in service now: they are up to date, or are to
/// be migrated after all. Returns how many are to be migrated.
pub(super) async fn reopen_provisioned(pool: &PgPool, operation: OperationId, target: i64) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"WITH moved AS (
             UPDATE fleet_migration_tenants f SET run_id = NULL, error_code = NULL, error_message = NULL,
                    state = CASE WHEN COALESCE(t.schema_version, 0) < $2 THEN 'pending' ELSE 'done' END,
                    to_version = CASE WHEN COALESCE(t.schema_version, 0) < $2 THEN NULL ELSE t.schema_version END
             FROM chat_instances t
             WHERE f.operation_id = $1 AND f.state = 'skipped' AND f.error_code = 'being_provisioned'
               AND t.id = f.tenant_id AND t.state = 'active'
             RETURNING f.state
         )
         SELECT count(*) FILTER (WHERE state = 'pending') AS "pending!" FROM moved"#,
        operation.as_uuid(),
        target
    )
    .fetch_one(pool)
    .await
}

/// Makes so many tenants that have not been touched canaries: others could not be looked at. Returns how many.
pub(super) async fn promote(pool: &PgPool, operation: OperationId, count: i64) -> Result<u64, sqlx::Error> {
    let promoted = sqlx::query!(
        "UPDATE fleet_migration_tenants SET wave = 'canary'
         WHERE operation_id = $1 AND tenant_id IN (
             SELECT tenant_id FROM fleet_migration_tenants
             WHERE operation_id = $1 AND state = 'pending' AND wave = 'fleet' ORDER BY position LIMIT $2)",
        operation.as_uuid(),
        count
    )
    .execute(pool)
    .await?;
    Ok(promoted.rows_affected())
}

/// The next tenants that have not been touched, after a position.
pub(super) async fn next_items(
    pool: &PgPool,
    operation: OperationId,
    canaries: bool,
    after: i32,
    limit: i64,
) -> Result<Vec<(i32, TenantId)>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT position, tenant_id FROM fleet_migration_tenants
         WHERE operation_id = $1 AND state = 'pending' AND position > $2 AND (NOT $3 OR wave = 'canary')
         ORDER BY position LIMIT $4",
        operation.as_uuid(),
        after,
        canaries,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.position, TenantId::from_uuid(row.tenant_id))).collect())
}

/// A tenant that was taken in hand.
pub(super) struct Begun {
    pub(super) slug: String,
    pub(super) state: String,
    /// The kind of the operation that holds the tenant.
    pub(super) holder: Option<String>,
    /// The database that the registry names, by which `finish` knows that it is still the same.
    pub(super) database: Option<String>,
    pub(super) credentials: SealedCredentials,
}

/// Takes a tenant in hand, unless somebody else has, and reads how it stands now.
pub(super) async fn begin(
    pool: &PgPool,
    operation: OperationId,
    tenant: TenantId,
    run: Uuid,
    now: DateTime<Utc>,
) -> Result<Option<Begun>, sqlx::Error> {
    let row = sqlx::query!(
        r#"WITH item AS (
             UPDATE fleet_migration_tenants SET state = 'running', run_id = $3, started_at = $4, finished_at = NULL
             WHERE operation_id = $1 AND tenant_id = $2 AND state = 'pending' RETURNING tenant_id
         )
         SELECT t.slug, t.state, d.database_name AS "database?", d.url_sealed AS "url_sealed?", d.next_url_sealed AS "next_url_sealed?",
                ARRAY(SELECT version FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "key_versions!",
                ARRAY(SELECT wrapped_key FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "wrapped_keys!",
                (SELECT o.kind FROM operations o WHERE o.tenant_id = t.id
                 AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')) AS holder
         FROM item JOIN chat_instances t ON t.id = item.tenant_id
         LEFT JOIN tenant_databases d ON d.tenant_id = t.id"#,
        operation.as_uuid(),
        tenant.as_uuid(),
        run,
        now
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Begun {
        slug: row.slug,
        state: row.state,
        holder: row.holder,
        database: row.database,
        credentials: SealedCredentials {
            url: row.url_sealed,
            next_url: row.next_url_sealed,
            wrapped_keys: row.key_versions.into_iter().zip(row.wrapped_keys).collect(),
        },
    }))
}

/// What became of a tenant.
pub(super) struct Finished<'a> {
    pub(super) state: &'a str,
    pub(super) from_version: Option<i64>,
    /// The version found last, and the oldest program that can speak it.
    pub(super) reached: Option<(i64, i64)>,
    /// The database in which it was found.
    pub(super) database: Option<&'a str>,
    pub(super) error: Option<(&'a str, &'a str)>,
}

/// Notes what became of a tenant, and with it the version of its schema in the registry: the database knows it already,
/// so dying before this means that the next run only notes it. A note that comes late, when a restore has put another
/// database in force, says nothing of that one, and leaves the registry as it is.
pub(super) async fn finish(
    pool: &PgPool,
    operation: OperationId,
    tenant: TenantId,
    run: Uuid,
    finished: &Finished<'_>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let (code, message) = finished.error.unzip();
    let (version, compatible_from) = finished.reached.unzip();
    let mut transaction = pool.begin().await?;
    // Held from here on, for a statement of its own: one that waits for a restore to switch would go on with the
    // database as it was when it began to wait.
    sqlx::query!("SELECT id FROM chat_instances WHERE id = $1 FOR NO KEY UPDATE", tenant.as_uuid())
        .fetch_optional(&mut *transaction)
        .await?;
    sqlx::query!(
        "WITH item AS (
             UPDATE fleet_migration_tenants SET state = $4, from_version = COALESCE($5, from_version), to_version = $6,
                    error_code = $8, error_message = $9, finished_at = $10
             WHERE operation_id = $1 AND tenant_id = $2 AND run_id = $3 AND state = 'running' RETURNING tenant_id
         )
         UPDATE chat_instances t SET schema_version = $6, schema_compatible_from = $7 FROM item
         WHERE t.id = item.tenant_id AND $6::bigint IS NOT NULL
           AND EXISTS (SELECT FROM tenant_databases d WHERE d.tenant_id = t.id AND d.database_name = $11)
           AND (t.schema_version, t.schema_compatible_from) IS DISTINCT FROM ($6, $7)",
        operation.as_uuid(),
        tenant.as_uuid(),
        run,
        finished.state,
        finished.from_version,
        version,
        compatible_from,
        code,
        message,
        now,
        finished.database
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// How many tenants are in which state.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) total: i64,
    pub(super) settled: i64,
    pub(super) failed: i64,
    pub(super) canaries_done: i64,
    pub(super) canaries_failed: i64,
}

impl Counts {
    pub(super) fn progress(self) -> OperationProgress {
        OperationProgress {
            done: self.settled.cast_unsigned(),
            failed: self.failed.cast_unsigned(),
            total: self.total.cast_unsigned(),
        }
    }
}

pub(super) async fn counts(pool: &PgPool, operation: OperationId) -> Result<Counts, sqlx::Error> {
    sqlx::query_as!(
        Counts,
        r#"SELECT count(*) AS "total!", count(*) FILTER (WHERE state IN ('done', 'failed', 'skipped')) AS "settled!",
                count(*) FILTER (WHERE state = 'failed') AS "failed!",
                count(*) FILTER (WHERE state = 'done' AND wave = 'canary') AS "canaries_done!",
                count(*) FILTER (WHERE state = 'failed' AND wave = 'canary') AS "canaries_failed!"
         FROM fleet_migration_tenants WHERE operation_id = $1"#,
        operation.as_uuid()
    )
    .fetch_one(pool)
    .await
}

/// Notes every tenant that is to be verified: those whose databases are there.
pub(super) async fn insert_verified(
    pool: &PgPool,
    operation: OperationId,
    slugs: Option<&[String]>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO fleet_migration_tenants (operation_id, tenant_id, position, wave, state, from_version)
         SELECT $1, t.id, row_number() OVER (ORDER BY t.id), 'fleet', 'pending', t.schema_version
         FROM chat_instances t
         WHERE t.state IN ('active', 'suspended') AND ($2::text[] IS NULL OR t.slug = ANY ($2))
         ON CONFLICT DO NOTHING",
        operation.as_uuid(),
        slugs
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A tenant to be verified.
pub(super) struct Unverified {
    pub(super) position: i32,
    pub(super) id: TenantId,
    pub(super) schema_version: Option<i64>,
    /// None for a database of the client's own.
    pub(super) cluster: Option<ClusterId>,
    pub(super) credentials: SealedCredentials,
}

pub(super) async fn next_unverified(
    pool: &PgPool,
    operation: OperationId,
    after: i32,
    limit: i64,
) -> Result<Vec<Unverified>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT f.position, t.id, t.schema_version, d.cluster_id AS "cluster_id?", d.url_sealed AS "url_sealed?",
                d.next_url_sealed AS "next_url_sealed?",
                ARRAY(SELECT version FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "key_versions!",
                ARRAY(SELECT wrapped_key FROM wrapped_keys w WHERE w.tenant_id = t.id ORDER BY version)
                    AS "wrapped_keys!"
         FROM fleet_migration_tenants f JOIN chat_instances t ON t.id = f.tenant_id
         LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         WHERE f.operation_id = $1 AND f.state = 'pending' AND f.position > $2
         ORDER BY f.position LIMIT $3"#,
        operation.as_uuid(),
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Unverified {
            position: row.position,
            id: TenantId::from_uuid(row.id),
            schema_version: row.schema_version,
            cluster: row.cluster_id.map(ClusterId::from_uuid),
            credentials: SealedCredentials {
                url: row.url_sealed,
                next_url: row.next_url_sealed,
                wrapped_keys: row.key_versions.into_iter().zip(row.wrapped_keys).collect(),
            },
        })
        .collect())
}

/// What a verification found of a tenant.
pub(super) struct Verified {
    pub(super) id: TenantId,
    pub(super) version: Option<i64>,
    pub(super) findings: Vec<FleetFinding>,
    pub(super) started_at: DateTime<Utc>,
}

/// Notes what was found, for many tenants at once.
pub(super) async fn note_verified(
    pool: &PgPool,
    operation: OperationId,
    verified: &[Verified],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let first = |verified: &Verified, part: fn(&FleetFinding) -> &String| verified.findings.first().map(part).cloned();
    let ids: Vec<Uuid> = verified.iter().map(|tenant| tenant.id.as_uuid()).collect();
    let versions: Vec<Option<i64>> = verified.iter().map(|tenant| tenant.version).collect();
    let codes: Vec<Option<String>> = verified.iter().map(|tenant| first(tenant, |finding| &finding.code)).collect();
    let messages: Vec<Option<String>> =
        verified.iter().map(|tenant| first(tenant, |finding| &finding.message)).collect();
    let findings: Vec<serde_json::Value> = verified.iter().map(|tenant| serde_json::json!(tenant.findings)).collect();
    let begun: Vec<DateTime<Utc>> = verified.iter().map(|tenant| tenant.started_at).collect();
    sqlx::query!(
        "UPDATE fleet_migration_tenants f SET to_version = found.version, error_code = found.code,
                error_message = found.message, findings = found.findings, started_at = found.started_at,
                finished_at = $8, state = CASE WHEN found.code IS NULL THEN 'done' ELSE 'failed' END
         FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::jsonb[], $7::timestamptz[])
              AS found (id, version, code, message, findings, started_at)
         WHERE f.operation_id = $1 AND f.tenant_id = found.id AND f.state = 'pending'",
        operation.as_uuid(),
        &ids,
        &versions as &[Option<i64>],
        &codes as &[Option<String>],
        &messages as &[Option<String>],
        &findings,
        &begun,
        now
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Which tenants of a run to list.
#[derive(Debug, Clone)]
pub struct TenantFilter {
    /// The run.
    pub operation: OperationId,
    /// Only in this state.
    pub state: Option<FleetTenantState>,
    /// Only after this one.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: i64,
}

/// What became of a tenant in a run.
#[derive(Debug, Clone)]
pub struct TenantOutcome {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Its slug.
    pub slug: String,
    /// When its turn was.
    pub wave: Wave,
    /// How far the run is with it.
    pub state: FleetTenantState,
    /// The version it had.
    pub from_version: Option<i64>,
    /// The version it has.
    pub to_version: Option<i64>,
    /// Why it failed or was skipped: a stable code and what happened.
    pub error: Option<(String, String)>,
    /// What a verification found.
    pub findings: Vec<FleetFinding>,
    /// When it was begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub finished_at: Option<DateTime<Utc>>,
}

pub(super) async fn list(pool: &PgPool, filter: &TenantFilter) -> Result<Vec<TenantOutcome>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT f.tenant_id, t.slug, f.wave, f.state, f.from_version, f.to_version, f.error_code, f.error_message,
                f.findings AS "findings: Json<Vec<FleetFinding>>", f.started_at, f.finished_at
         FROM fleet_migration_tenants f JOIN chat_instances t ON t.id = f.tenant_id
         WHERE f.operation_id = $1 AND ($2::text IS NULL OR f.state = $2)
           AND ($3::uuid IS NULL OR f.position > (SELECT position FROM fleet_migration_tenants
                                                  WHERE operation_id = $1 AND tenant_id = $3))
         ORDER BY f.position LIMIT $4"#,
        filter.operation.as_uuid(),
        filter.state.map(state_name),
        filter.after,
        filter.limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| TenantOutcome {
            tenant_id: row.tenant_id,
            slug: row.slug,
            wave: if row.wave == "canary" { Wave::Canary } else { Wave::Fleet },
            state: parse_state(&row.state),
            from_version: row.from_version,
            to_version: row.to_version,
            error: row.error_code.zip(row.error_message),
            findings: row.findings.map(|findings| findings.0).unwrap_or_default(),
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
        .collect())
}

fn state_name(state: FleetTenantState) -> &'static str {
    match state {
        FleetTenantState::Pending => "pending",
        FleetTenantState::Running => "running",
        FleetTenantState::Done => "done",
        FleetTenantState::Failed => "failed",
        FleetTenantState::Skipped => "skipped",
    }
}

/// The column's CHECK knows the same names.
fn parse_state(text: &str) -> FleetTenantState {
    match text {
        "pending" => FleetTenantState::Pending,
        "running" => FleetTenantState::Running,
        "done" => FleetTenantState::Done,
        "failed" => FleetTenantState::Failed,
        _ => FleetTenantState::Skipped,
    }
}
