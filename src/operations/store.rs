//! SQL of `operations` and `operation_steps`.

use chrono::{DateTime, Utc};
use graphile_worker::sql::add_job::types::JobToAdd;
use graphile_worker::sql::task_identifiers;
use graphile_worker::{JobSpec, JobSpecBuilder, Schema};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::{
    NewOperation, OperationError, OperationProgress, OperationRecord, OperationState, StepContext, StepRecord,
    StepState,
};
use crate::api::platform::OperationGroup;
use crate::ids::{OperationId, TenantId};

/// The name of the job that drives operations.
pub(super) const JOB: &str = "run_operation";

/// Stores an operation, its steps and its job. The caller commits them together with the row they belong to.
pub async fn create(
    connection: &mut PgConnection,
    operation: &NewOperation<'_>,
    now: DateTime<Utc>,
) -> Result<(), OperationError> {
    let tenant = operation.tenant_id.map(|id| id.as_uuid());
    let inserted = sqlx::query!(
        "INSERT INTO operations (id, kind, tenant_id, input, state, created_by, created_at, group_id)
         VALUES ($1, $2, $3, $4, 'queued', $5, $6, $7) ON CONFLICT DO NOTHING",
        operation.id.as_uuid(),
        operation.kind,
        tenant,
        operation.input,
        operation.created_by,
        now,
        operation.group_id
    )
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(conflict(connection, tenant, operation.kind).await?);
    }
    let names: Vec<String> = operation.steps.iter().map(|name| (*name).to_owned()).collect();
    sqlx::query!(
        "INSERT INTO operation_steps (operation_id, position, name, state)
         SELECT $1, position::int, name, 'pending' FROM unnest($2::text[]) WITH ORDINALITY AS step (name, position)",
        operation.id.as_uuid(),
        &names
    )
    .execute(&mut *connection)
    .await?;
    enqueue(connection, operation.id).await
}

/// Stores many operations of one shape, such as one a tenant, in a few statements. Returns those that were stored: a
/// tenant that has an operation already is left out.
pub async fn create_many(
    connection: &mut PgConnection,
    operations: &[NewOperation<'_>],
    now: DateTime<Utc>,
) -> Result<Vec<OperationId>, OperationError> {
    let Some(first) = operations.first() else { return Ok(Vec::new()) };
    let ids: Vec<Uuid> = operations.iter().map(|operation| operation.id.as_uuid()).collect();
    let kinds: Vec<String> = operations.iter().map(|operation| operation.kind.to_owned()).collect();
    let tenants: Vec<Option<Uuid>> =
        operations.iter().map(|operation| operation.tenant_id.map(|id| id.as_uuid())).collect();
    let inputs: Vec<serde_json::Value> = operations.iter().map(|operation| operation.input.clone()).collect();
    let created = sqlx::query_scalar!(
        "INSERT INTO operations (id, kind, tenant_id, input, state, created_by, created_at, group_id)
         SELECT id, kind, tenant_id, input, 'queued', $5, $6, $7
         FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::jsonb[]) AS new (id, kind, tenant_id, input)
         ON CONFLICT DO NOTHING RETURNING id",
        &ids,
        &kinds,
        &tenants as &[Option<Uuid>],
        &inputs,
        first.created_by,
        now,
        first.group_id
    )
    .fetch_all(&mut *connection)
    .await?;
    let names: Vec<String> = first.steps.iter().map(|name| (*name).to_owned()).collect();
    sqlx::query!(
        "INSERT INTO operation_steps (operation_id, position, name, state)
         SELECT id, position::int, name, 'pending'
         FROM unnest($1::uuid[]) AS operation (id), unnest($2::text[]) WITH ORDINALITY AS step (name, position)",
        &created,
        &names
    )
    .execute(&mut *connection)
    .await?;
    let created: Vec<OperationId> = created.into_iter().map(OperationId::from_uuid).collect();
    let specs: Vec<JobSpec> = created.iter().map(|id| job_spec(*id, JobSpecBuilder::new())).collect();
    let jobs: Vec<JobToAdd<'_>> = created
        .iter()
        .zip(&specs)
        .map(|(id, spec)| JobToAdd { identifier: JOB, payload: serde_json::json!({ "operation_id": id }), spec })
        .collect();
    let queue = |error| OperationError::Queue(Box::new(error));
    // The library wants to know the name of each job's task, and warns of each that it does not.
    let tasks = task_identifiers::get_tasks_details(&mut *connection, &Schema::default(), vec![JOB.to_owned()])
        .await
        .map_err(queue)?;
    graphile_worker::sql::add_job::batch::add_jobs(connection, &Schema::default(), &jobs, &tasks, false, false)
        .await
        .map_err(queue)?;
    Ok(created)
}

/// Queues the job that drives an operation. Queuing it twice is harmless: the second finds nothing to do.
pub(super) async fn enqueue(connection: &mut PgConnection, id: OperationId) -> Result<(), OperationError> {
    enqueue_spec(connection, id, JobSpecBuilder::new()).await
}

/// Queues it for a later time.
pub(super) async fn enqueue_at(
    connection: &mut PgConnection,
    id: OperationId,
    at: DateTime<Utc>,
) -> Result<(), OperationError> {
    enqueue_spec(connection, id, JobSpecBuilder::new().run_at(at)).await
}

/// The time as the queue reads it.
pub(super) async fn database_time(connection: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(connection).await
}

fn job_spec(id: OperationId, spec: JobSpecBuilder) -> JobSpec {
    // The key keeps restarts from piling up jobs: one that waits is replaced.
    spec.max_attempts(100).job_key(id.to_string()).build()
}

async fn enqueue_spec(
    connection: &mut PgConnection,
    id: OperationId,
    spec: JobSpecBuilder,
) -> Result<(), OperationError> {
    let spec = job_spec(id, spec);
    graphile_worker::sql::add_job::single::add_job(
        connection,
        &Schema::default(),
        JOB,
        serde_json::json!({ "operation_id": id }),
        spec,
        false,
    )
    .await
    .map_err(|error| OperationError::Queue(Box::new(error)))?;
    Ok(())
}

/// Who holds the tenant, or, for an operation on the platform as a whole, its kind.
async fn conflict(
    connection: &mut PgConnection,
    tenant: Option<Uuid>,
    kind: &str,
) -> Result<OperationError, sqlx::Error> {
    let holder = sqlx::query!(
        "SELECT id, kind FROM operations
         WHERE (tenant_id = $1 OR ($1 IS NULL AND tenant_id IS NULL AND kind = $2))
           AND state IN ('queued', 'running', 'undoing', 'needs_operator')",
        tenant,
        kind
    )
    .fetch_optional(connection)
    .await?;
    // Whoever held it may have been settled since; then it is the caller's to try again.
    let holder = holder.ok_or(sqlx::Error::RowNotFound)?;
    Ok(OperationError::Conflict { holder: OperationId::from_uuid(holder.id), kind: holder.kind })
}

/// Queues an operation that failed again, from its first step; one that needs an operator goes on undoing. Returns the
/// tenant it works on. What was done to a tenant that is gone is not done again.
pub async fn retry(connection: &mut PgConnection, id: OperationId) -> Result<Option<TenantId>, OperationError> {
    let row = sqlx::query!(
        r#"SELECT o.state, o.kind, o.tenant_id, COALESCE(t.state = 'deleted', false) AS "gone!"
         FROM operations o LEFT JOIN chat_instances t ON t.id = o.tenant_id WHERE o.id = $1 FOR UPDATE OF o"#,
        id.as_uuid()
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or(OperationError::NotFound)?;
    if row.gone {
        return Err(OperationError::TenantGone);
    }
    match OperationState::parse(&row.state) {
        OperationState::Failed => {
            let newer = sqlx::query!(
                "SELECT id, kind FROM operations
                 WHERE (tenant_id = $1 OR ($1 IS NULL AND tenant_id IS NULL AND kind = $2))
                   AND state IN ('queued', 'running', 'undoing', 'needs_operator') LIMIT 1",
                row.tenant_id,
                row.kind
            )
            .fetch_optional(&mut *connection)
            .await?;
            if let Some(holder) = newer {
                return Err(OperationError::Conflict { holder: OperationId::from_uuid(holder.id), kind: holder.kind });
            }
            // Another may be queued between that look and this change; the index refuses one of the two. Within a
            // savepoint, so that the refused one can still ask who it was.
            let mut savepoint = connection.begin().await?;
            let queued = sqlx::query!(
                "UPDATE operations SET state = 'queued', error_code = NULL, error_message = NULL,
                        progress = NULL, finished_at = NULL
                 WHERE id = $1",
                id.as_uuid()
            )
            .execute(&mut *savepoint)
            .await;
            match queued {
                Ok(_) => savepoint.commit().await?,
                Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                    savepoint.rollback().await?;
                    return Err(conflict(connection, row.tenant_id, &row.kind).await?);
                }
                Err(error) => return Err(error.into()),
            }
            sqlx::query!(
                "UPDATE operation_steps SET state = 'pending', tries = 0, error_message = NULL,
                        started_at = NULL, finished_at = NULL WHERE operation_id = $1",
                id.as_uuid()
            )
            .execute(&mut *connection)
            .await?;
        }
        OperationState::NeedsOperator => {
            sqlx::query!("UPDATE operations SET state = 'undoing', finished_at = NULL WHERE id = $1", id.as_uuid())
                .execute(&mut *connection)
                .await?;
        }
        _ => return Err(OperationError::NotRetryable),
    }
    enqueue(connection, id).await?;
    Ok(row.tenant_id.map(TenantId::from_uuid))
}

/// Operations that are not settled, oldest first: what a starting server has to look after.
pub(super) async fn unsettled(pool: &PgPool) -> Result<Vec<OperationId>, sqlx::Error> {
    let rows =
        sqlx::query_scalar!("SELECT id FROM operations WHERE state IN ('queued', 'running', 'undoing') ORDER BY id")
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().map(OperationId::from_uuid).collect())
}

/// What a worker learns when it takes an operation over.
pub(super) struct Taken {
    pub(super) kind: String,
    pub(super) undoing: bool,
    pub(super) attempt: i32,
    pub(super) context: StepContext,
    pub(super) steps: Vec<(i32, String, StepState)>,
}

/// Takes an operation over, unless it is settled. From here on the former worker's notes are refused.
pub(super) async fn take(
    connection: &mut PgConnection,
    id: OperationId,
    now: DateTime<Utc>,
) -> Result<Option<Taken>, sqlx::Error> {
    let Some(row) = sqlx::query!(
        "UPDATE operations SET attempt = attempt + 1, started_at = COALESCE(started_at, $2),
                state = CASE state WHEN 'queued' THEN 'running' ELSE state END
         WHERE id = $1 AND state IN ('queued', 'running', 'undoing')
         RETURNING kind, tenant_id, input, state, attempt",
        id.as_uuid(),
        now
    )
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok(None);
    };
    let steps = sqlx::query!(
        "SELECT position, name, state FROM operation_steps WHERE operation_id = $1 ORDER BY position",
        id.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(Some(Taken {
        kind: row.kind,
        undoing: row.state == "undoing",
        attempt: row.attempt,
        context: StepContext { operation_id: id, tenant_id: row.tenant_id.map(TenantId::from_uuid), input: row.input },
        steps: steps.into_iter().map(|step| (step.position, step.name, StepState::parse(&step.state))).collect(),
    }))
}

/// Notes that a step is begun, and in the same statement that the one before it is over. Returns whether this worker
/// still holds the operation.
pub(super) async fn note_step(
    connection: &mut PgConnection,
    id: OperationId,
    attempt: i32,
    finished: Option<(i32, &str)>,
    begun: Option<(i32, &str)>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let (finished_position, finished_state) = finished.unzip();
    let (begun_position, begun_state) = begun.unzip();
    let held = sqlx::query_scalar!(
        r#"WITH holder AS (
             SELECT id FROM operations WHERE id = $1 AND attempt = $2 FOR UPDATE
         ), noted AS (
             UPDATE operation_steps SET
                 state = CASE position WHEN $3 THEN $4 ELSE $6 END,
                 tries = tries + CASE position WHEN $5 THEN 1 ELSE 0 END,
                 started_at = CASE position WHEN $5 THEN $7 ELSE started_at END,
                 finished_at = CASE position WHEN $3 THEN $7 ELSE NULL END
             FROM holder
             WHERE operation_id = holder.id AND position IN ($3, $5)
         )
         SELECT count(*) AS "held!" FROM holder"#,
        id.as_uuid(),
        attempt,
        finished_position,
        finished_state,
        begun_position,
        begun_state,
        now
    )
    .fetch_one(connection)
    .await?;
    Ok(held == 1)
}

/// Notes why a step did not succeed. Kept for the operator even when a later try goes well.
pub(super) async fn note_step_error(
    connection: &mut PgConnection,
    id: OperationId,
    position: i32,
    message: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE operation_steps SET error_message = $3 WHERE operation_id = $1 AND position = $2",
        id.as_uuid(),
        position,
        message
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves the operation itself to a state. Returns whether this worker still holds it.
pub(super) async fn note_state(
    connection: &mut PgConnection,
    id: OperationId,
    attempt: i32,
    state: OperationState,
    error: Option<(&str, &str)>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let (code, message) = error.unzip();
    let noted = sqlx::query!(
        "UPDATE operations SET state = $3, error_code = COALESCE($4, error_code),
                error_message = COALESCE($5, error_message),
                finished_at = CASE WHEN $6 THEN $7::timestamptz END
         WHERE id = $1 AND attempt = $2",
        id.as_uuid(),
        attempt,
        state.as_str(),
        code,
        message,
        state.is_settled(),
        now
    )
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Which operations to list.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Only this one.
    pub id: Option<OperationId>,
    /// Only this tenant's.
    pub tenant_slug: Option<String>,
    /// Only in this state.
    pub state: Option<OperationState>,
    /// Only of this group.
    pub group_id: Option<Uuid>,
    /// Only older than this one.
    pub before: Option<OperationId>,
    /// At most so many.
    pub limit: i64,
}

/// Operations with their steps, newest first.
pub async fn list(pool: &PgPool, filter: &Filter) -> Result<Vec<OperationRecord>, sqlx::Error> {
    let operations = sqlx::query!(
        r#"SELECT o.id, o.kind, o.tenant_id, t.slug AS "slug?", o.state, o.error_code, o.error_message,
                o.created_at, o.started_at, o.finished_at, o.group_id,
                o.progress AS "progress: Json<OperationProgress>"
         FROM operations o LEFT JOIN chat_instances t ON t.id = o.tenant_id
         WHERE ($1::uuid IS NULL OR o.id = $1) AND ($2::text IS NULL OR t.slug = $2)
           AND ($3::text IS NULL OR o.state = $3) AND ($4::uuid IS NULL OR o.id < $4)
           AND ($6::uuid IS NULL OR o.group_id = $6)
         ORDER BY o.id DESC LIMIT $5"#,
        filter.id.map(|id| id.as_uuid()),
        filter.tenant_slug,
        filter.state.map(OperationState::as_str),
        filter.before.map(|id| id.as_uuid()),
        filter.limit,
        filter.group_id
    )
    .fetch_all(pool)
    .await?;
    let ids: Vec<Uuid> = operations.iter().map(|row| row.id).collect();
    let steps = sqlx::query!(
        "SELECT operation_id, name, state, tries, started_at, finished_at FROM operation_steps
         WHERE operation_id = ANY ($1) ORDER BY operation_id, position",
        &ids
    )
    .fetch_all(pool)
    .await?;
    Ok(operations
        .into_iter()
        .map(|row| OperationRecord {
            id: OperationId::from_uuid(row.id),
            kind: row.kind,
            tenant_id: row.tenant_id.map(TenantId::from_uuid),
            tenant_slug: row.slug,
            state: OperationState::parse(&row.state),
            progress: row.progress.map(|progress| progress.0),
            group_id: row.group_id,
            error_code: row.error_code,
            error_message: row.error_message,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            steps: steps
                .iter()
                .filter(|step| step.operation_id == row.id)
                .map(|step| StepRecord {
                    name: step.name.clone(),
                    state: StepState::parse(&step.state),
                    tries: step.tries,
                    started_at: step.started_at,
                    finished_at: step.finished_at,
                })
                .collect(),
        })
        .collect())
}

/// One operation.
pub async fn find(pool: &PgPool, id: OperationId) -> Result<Option<OperationRecord>, sqlx::Error> {
    Ok(list(pool, &Filter { id: Some(id), limit: 1, ..Filter::default() }).await?.pop())
}

/// Notes how far a long step is, for those who follow it.
pub async fn note_progress(pool: &PgPool, id: OperationId, progress: &OperationProgress) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE operations SET progress = $2 WHERE id = $1", id.as_uuid(), Json(progress) as _)
        .execute(pool)
        .await?;
    Ok(())
}

/// A group's operations, counted by state; nothing when there is no such group.
pub async fn group(pool: &PgPool, id: Uuid) -> Result<Option<OperationGroup>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "total!", count(*) FILTER (WHERE state = 'queued') AS "queued!",
                count(*) FILTER (WHERE state IN ('running', 'undoing')) AS "running!",
                count(*) FILTER (WHERE state = 'succeeded') AS "succeeded!",
                count(*) FILTER (WHERE state = 'failed') AS "failed!",
                count(*) FILTER (WHERE state = 'needs_operator') AS "needs_operator!"
         FROM operations WHERE group_id = $1"#,
        id
    )
    .fetch_one(pool)
    .await?;
    let count = i64::cast_unsigned;
    Ok((row.total > 0).then(|| OperationGroup {
        id,
        total: count(row.total),
        queued: count(row.queued),
        running: count(row.running),
        succeeded: count(row.succeeded),
        failed: count(row.failed),
        needs_operator: count(row.needs_operator),
    }))
}
