//! SQL of `scheduled_tasks`.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

/// Takes the tasks that are due and moves them on by their periods. A task that was never seen is due at once.
pub(super) async fn take_due(
    pool: &PgPool,
    names: &[String],
    periods_in_seconds: &[f64],
    now: DateTime<Utc>,
) -> Result<Vec<String>, sqlx::Error> {
    // The look comes first, because a statement that only reads writes nothing to the log, and mostly nothing is due.
    sqlx::query_scalar!(
        r#"WITH wanted AS (
             SELECT name, make_interval(secs => seconds) AS period
             FROM unnest($1::text[], $2::float8[]) AS task (name, seconds)
             WHERE NOT EXISTS (SELECT FROM scheduled_tasks s WHERE s.name = task.name AND s.next_run_at > $3)
         )
         INSERT INTO scheduled_tasks AS s (name, next_run_at, last_run_at)
         SELECT name, $3::timestamptz + period, $3 FROM wanted
         ON CONFLICT (name) DO UPDATE SET next_run_at = EXCLUDED.next_run_at, last_run_at = EXCLUDED.last_run_at
         WHERE s.next_run_at <= $3
         RETURNING name"#,
        names,
        periods_in_seconds,
        now
    )
    .fetch_all(pool)
    .await
}
