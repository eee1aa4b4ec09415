//! SQL of the standing audit: what the registry says, and `audit_findings`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Filter, Finding, Stored};
use crate::api::fleet_audit::Severity;
use crate::ids::{ClusterId, OperationId, TenantId};

/// A tenant as the registry has it, everything secret still sealed.
#[derive(Debug, Clone)]
pub(super) struct TenantEntry {
    pub(super) id: Uuid,
    pub(super) slug: String,
    pub(super) state: String,
    pub(super) database_mode: String,
    pub(super) deleted_from: Option<String>,
    pub(super) delete_after: Option<DateTime<Utc>>,
    pub(super) cluster_id: Option<Uuid>,
    pub(super) database_name: Option<String>,
    pub(super) owner_role: Option<String>,
    pub(super) login_role: Option<String>,
    pub(super) next_login_role: Option<String>,
    pub(super) retiring_login_role: Option<String>,
    pub(super) url_sealed: Option<Vec<u8>>,
    pub(super) next_url_sealed: Option<Vec<u8>>,
    pub(super) key_versions: Vec<i32>,
    pub(super) wrapped_keys: Vec<Vec<u8>>,
    pub(super) signing_key_ids: Vec<Uuid>,
    pub(super) signing_secrets: Vec<Vec<u8>>,
    pub(super) signing_key_in_use: bool,
    /// Whether an operation is at it.
    pub(super) moving: bool,
}

/// The whole registry in one statement. What is gone comes only where keys of it are left.
pub(super) async fn registry(pool: &PgPool) -> Result<Vec<TenantEntry>, sqlx::Error> {
    sqlx::query_as!(
        TenantEntry,
        r#"WITH keys AS (
             SELECT tenant_id, array_agg(version ORDER BY version) AS versions,
                    array_agg(wrapped_key ORDER BY version) AS wrapped
             FROM wrapped_keys GROUP BY tenant_id
         ), signing AS (
             SELECT tenant_id, array_agg(id ORDER BY id) AS ids, array_agg(secret_sealed ORDER BY id) AS secrets,
                    bool_or(retired_at IS NULL) AS in_use
             FROM signing_keys GROUP BY tenant_id
         )
         SELECT t.id AS "id!", t.slug AS "slug!", t.state AS "state!", t.database_mode AS "database_mode!", t.deleted_from,
                t.delete_after,
                COALESCE(d.cluster_id, t.cluster_id) AS cluster_id, d.database_name AS "database_name?", d.owner_role,
                d.login_role AS "login_role?", d.next_login_role, d.retiring_login_role, d.url_sealed AS "url_sealed?",
                d.next_url_sealed, COALESCE(k.versions, '{}') AS "key_versions!",
                COALESCE(k.wrapped, '{}') AS "wrapped_keys!", COALESCE(s.ids, '{}') AS "signing_key_ids!",
                COALESCE(s.secrets, '{}') AS "signing_secrets!", COALESCE(s.in_use, false) AS "signing_key_in_use!",
                EXISTS (SELECT FROM operations o WHERE o.tenant_id = t.id
                          AND o.state IN ('queued', 'running', 'undoing', 'needs_operator')) AS "moving!"
         FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id
         LEFT JOIN keys k ON k.tenant_id = t.id LEFT JOIN signing s ON s.tenant_id = t.id
         WHERE t.state <> 'deleted' OR d.tenant_id IS NOT NULL OR k.tenant_id IS NOT NULL OR s.tenant_id IS NOT NULL"#
    )
    .fetch_all(pool)
    .await
}

/// A database beside a tenant's own, which an operation makes or is about to drop.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) cluster_id: Uuid,
    pub(super) database_name: String,
    pub(super) owner_role: String,
}

/// Those of restores that are under way, and those that were replaced and are being dropped. A drop that failed is asked
/// for again every few minutes; one asked for before `since` that still has not succeeded is for a person to look at.
pub(super) async fn beside(pool: &PgPool, since: DateTime<Utc>) -> Result<Vec<Beside>, sqlx::Error> {
    sqlx::query_as!(
        Beside,
        r#"SELECT cluster_id AS "cluster_id!", database_name AS "database_name!", owner_role AS "owner_role!"
           FROM restores WHERE settled_at IS NULL
           UNION ALL
           SELECT (input ->> 'cluster_id')::uuid, input ->> 'database', input ->> 'owner_role' FROM operations
           WHERE kind = 'drop_replaced_database' AND input ? 'database'
             AND (state IN ('queued', 'running', 'undoing', 'needs_operator')
                  OR (state = 'failed' AND created_at > $1 AND error_code IS DISTINCT FROM 'input_unreadable'))"#,
        since
    )
    .fetch_all(pool)
    .await
}

/// An operation that is not settled.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) id: Uuid,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) tenant_id: Option<Uuid>,
}

/// Operations that need somebody, and those that were begun before an instant and are not settled.
pub(super) async fn stuck_operations(pool: &PgPool, before: DateTime<Utc>) -> Result<Vec<Unsettled>, sqlx::Error> {
    sqlx::query_as!(
        Unsettled,
        "SELECT id, kind, state, tenant_id FROM operations
         WHERE state = 'needs_operator' OR (state IN ('queued', 'running', 'undoing') AND created_at < $1)",
        before
    )
    .fetch_all(pool)
    .await
}

/// Notes what was found: new findings get a row, known ones are seen again, and those that are seen no more are
/// resolved, unless they are about something that could not be looked at this time.
pub(super) async fn note(
    connection: &mut PgConnection,
    findings: &[Finding],
    unseen_clusters: &[ClusterId],
    moving_tenants: &[TenantId],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let column = |of: fn(&Finding) -> String| findings.iter().map(of).collect::<Vec<String>>();
    let ids: Vec<Uuid> = findings.iter().map(|_| Uuid::now_v7()).collect();
    let codes = column(|finding| finding.code.to_owned());
    let subjects = column(|finding| finding.subject.clone());
    let severities = column(|finding| finding.severity.as_str().to_owned());
    let details = column(|finding| finding.detail.clone());
    let tenants: Vec<Option<Uuid>> = findings.iter().map(|finding| finding.tenant.map(|id| id.as_uuid())).collect();
    let clusters: Vec<Option<Uuid>> = findings.iter().map(|finding| finding.cluster.map(|id| id.as_uuid())).collect();
    sqlx::query!(
        "INSERT INTO audit_findings AS f (id, code, severity, subject, tenant_id, cluster_id, detail, first_seen, last_seen)
         SELECT DISTINCT ON (found.code, found.subject)
                found.id, found.code, found.severity, found.subject, found.tenant_id, found.cluster_id, found.detail, $8, $8
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::text[])
              AS found (id, code, severity, subject, tenant_id, cluster_id, detail)
         ON CONFLICT (code, subject) WHERE resolved_at IS NULL DO UPDATE
         SET severity = EXCLUDED.severity, tenant_id = EXCLUDED.tenant_id, cluster_id = EXCLUDED.cluster_id,
             detail = EXCLUDED.detail, last_seen = EXCLUDED.last_seen",
        &ids,
        &codes,
        &severities,
        &subjects,
        &tenants as &[Option<Uuid>],
        &clusters as &[Option<Uuid>],
        &details,
        now
    )
    .execute(&mut *connection)
    .await?;
    let unseen: Vec<Uuid> = unseen_clusters.iter().map(ClusterId::as_uuid).collect();
    let moving: Vec<Uuid> = moving_tenants.iter().map(TenantId::as_uuid).collect();
    sqlx::query!(
        "UPDATE audit_findings f SET resolved_at = $5
         WHERE resolved_at IS NULL
           AND NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS found (code, subject)
                           WHERE found.code = f.code AND found.subject = f.subject)
           AND (cluster_id IS NULL OR cluster_id <> ALL ($3)) AND (tenant_id IS NULL OR tenant_id <> ALL ($4))",
        &codes,
        &subjects,
        &unseen,
        &moving,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets findings that were resolved long ago.
pub(super) async fn prune(connection: &mut PgConnection, before: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM audit_findings WHERE resolved_at < $1", before).execute(connection).await?;
    Ok(())
}

/// Findings, oldest first.
pub(super) async fn list(pool: &PgPool, filter: &Filter) -> Result<Vec<Stored>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT f.id, f.code, f.severity, f.subject, t.slug AS "slug?", c.name AS "cluster?", f.detail, f.first_seen,
                f.last_seen, f.resolved_at
         FROM audit_findings f LEFT JOIN chat_instances t ON t.id = f.tenant_id
         LEFT JOIN clusters c ON c.id = f.cluster_id
         WHERE ($1 OR f.resolved_at IS NULL) AND ($2::uuid IS NULL OR f.id > $2)
         ORDER BY f.id LIMIT $3"#,
        filter.resolved,
        filter.after,
        filter.limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Stored {
            id: row.id,
            code: row.code,
            severity: Severity::parse(&row.severity),
            subject: row.subject,
            tenant: row.slug,
            cluster: row.cluster,
            detail: row.detail,
            first_seen: row.first_seen,
            last_seen: row.last_seen,
            resolved_at: row.resolved_at,
        })
        .collect())
}

/// The audit that is under way.
pub(super) async fn under_way(pool: &PgPool, kind: &str) -> Result<Option<OperationId>, sqlx::Error> {
    let found = sqlx::query_scalar!(
        "SELECT id FROM operations WHERE tenant_id IS NULL AND kind = $1 AND state IN ('queued', 'running', 'undoing')",
        kind
    )
    .fetch_optional(pool)
    .await?;
    Ok(found.map(OperationId::from_uuid))
}
