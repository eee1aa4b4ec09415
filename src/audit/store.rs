//! SQL of `audit_events`.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Event;

pub(super) async fn insert(
    connection: &mut PgConnection,
    id: Uuid,
    actor_kind: &str,
    actor_id: Option<Uuid>,
    event: &Event<'_>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO audit_events (id, at, actor_kind, actor_id, action, tenant_id, detail)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        id,
        now,
        actor_kind,
        actor_id,
        event.action,
        event.tenant_id.map(|id| id.as_uuid()),
        event.detail
    )
    .execute(connection)
    .await?;
    Ok(())
}
