//! The operation `suspend_tenant`: out of service, everywhere and at once.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `stop_service` | the registry says `suspended`; the trigger tells every server | `active`, if this operation suspended it |
//! | `lock_database` | no login role may sign in, no session is left | the role in use may sign in |

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Life, input, moved_on, store};
use crate::operations::{Definition, Step, StepContext, StepError};
use crate::tenants::TenantError;
use crate::tenants::provision::boxed;

/// What was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) reason: Option<String>,
}

/// The operation.
pub static DEFINITION: Definition<Life> = Definition {
    kind: "suspend_tenant",
    steps: &[
        Step { name: "stop_service", run: |s, c| boxed(stop_service(s, c)), undo: |s, c| boxed(start_service(s, c)) },
        Step { name: "lock_database", run: |s, c| boxed(lock(s, c)), undo: |s, c| boxed(unlock(s, c)) },
    ],
    // The steps themselves move the tenant; an operation that needs an operator leaves it out of service.
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

async fn stop_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, row) = life.tenant(&context).await?;
    let Input { reason } = input(&context)?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    let suspended =
        store::suspend(&mut connection, id, context.operation_id, reason.as_deref(), life.clock.now()).await;
    if suspended.map_err(TenantError::from)? { Ok(()) } else { Err(moved_on(&row)) }
}

async fn start_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, _) = life.tenant(&context).await?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    let taken_back = store::take_suspension_back(&mut connection, id, context.operation_id, life.clock.now()).await;
    Ok(taken_back.map_err(TenantError::from)?)
}

async fn lock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    life.lock(&row).await
}

async fn unlock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    // A suspension that somebody else made meanwhile, or a deletion, keeps its lock.
    match row.state.as_str() {
        "active" => life.unlock(&row).await,
        "suspended" if row.suspended_by == Some(context.operation_id.as_uuid()) => life.unlock(&row).await,
        _ => Ok(()),
    }
}
