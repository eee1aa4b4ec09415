//! The operation `undelete_tenant`: back to what the tenant was before it was deleted, active or suspended.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `unlock_database` | if it was active, the login role in use may sign in | no login role may |
//! | `start_service` | the registry says what it was before | `deleting`, until when as before |

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Life, input, moved_on, store};
use crate::operations::{Definition, Step, StepContext, StepError};
use crate::tenants::TenantError;
use crate::tenants::provision::boxed;

/// What is to be put back if it fails.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) delete_after: DateTime<Utc>,
}

/// The operation.
pub static DEFINITION: Definition<Life> = Definition {
    kind: "undelete_tenant",
    steps: &[
        Step { name: "unlock_database", run: |s, c| boxed(unlock(s, c)), undo: |s, c| boxed(lock(s, c)) },
        Step { name: "start_service", run: |s, c| boxed(start_service(s, c)), undo: |s, c| boxed(stop_service(s, c)) },
    ],
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

async fn unlock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    match (row.state.as_str(), row.deleted_from.as_deref()) {
        ("deleting", Some("active")) | ("active", _) => life.unlock(&row).await,
        ("deleting", Some(_)) | ("suspended" | "waiting_for_client", _) => Ok(()),
        _ => Err(moved_on(&row)),
    }
}

async fn lock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    match row.state.as_str() {
        "suspended" | "deleting" => life.lock(&row).await,
        _ => Ok(()),
    }
}

async fn start_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = life.tenant(&context).await?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    let back = store::undelete(&mut connection, id, life.clock.now()).await.map_err(TenantError::from)?;
    if back { Ok(()) } else { Err(moved_on(&row)) }
}

async fn stop_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, _) = life.tenant(&context).await?;
    let Input { delete_after } = input(&context)?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    let put_back = store::put_deletion_back(&mut connection, id, delete_after, life.clock.now()).await;
    Ok(put_back.map_err(TenantError::from)?)
}
