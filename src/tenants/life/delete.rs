//! The operation `delete_tenant`: out of service, and marked to be purged when its grace is over.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `stop_service` | the registry says `deleting`, until when, and what it was before | what it was before |
//! | `lock_database` | no login role may sign in, no session is left | if it was active, the role in use may |
//!
//! Nothing is removed yet: `undelete_tenant` takes all of it back.

use std::sync::Arc;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{Life, input, moved_on, store};
use crate::operations::{Definition, Step, StepContext, StepError};
use crate::tenants::TenantError;
use crate::tenants::provision::boxed;

/// What was asked for. A duration, not an instant: a retry after weeks must not find the grace over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) grace_seconds: i64,
}

/// The operation.
pub static DEFINITION: Definition<Life> = Definition {
    kind: "delete_tenant",
    steps: &[
        Step { name: "stop_service", run: |s, c| boxed(stop_service(s, c)), undo: |s, c| boxed(start_service(s, c)) },
        Step { name: "lock_database", run: |s, c| boxed(lock(s, c)), undo: |s, c| boxed(unlock(s, c)) },
    ],
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

async fn stop_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = life.tenant(&context).await?;
    let Input { grace_seconds } = input(&context)?;
    if row.state == "failed" {
        return Err(moved_on(&row));
    }
    let now = life.clock.now();
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    let after = now + TimeDelta::seconds(grace_seconds);
    let deleting = store::delete(&mut connection, id, after, now).await.map_err(TenantError::from)?;
    if deleting { Ok(()) } else { Err(moved_on(&row)) }
}

async fn start_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = life.tenant(&context).await?;
    if row.state != "deleting" {
        return Ok(());
    }
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    store::undelete(&mut connection, id, life.clock.now()).await.map_err(TenantError::from)?;
    Ok(())
}

async fn lock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    life.lock(&row).await
}

async fn unlock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    // Undoing begins here, so the registry still says what it was.
    match (row.state.as_str(), row.deleted_from.as_deref()) {
        ("deleting", Some("active")) | ("active", _) => life.unlock(&row).await,
        _ => Ok(()),
    }
}
