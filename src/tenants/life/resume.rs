//! The operation `resume_tenant`: the reverse of `suspend_tenant`, in reverse order.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `unlock_database` | the login role in use may sign in | no login role may |
//! | `start_service` | the registry says `active` | `suspended`, since when and why as before |

use std::sync::Arc;

use super::store::{self, Suspension};
use super::{Life, input, moved_on};
use crate::operations::{Definition, Step, StepContext, StepError};
use crate::tenants::TenantError;
use crate::tenants::provision::boxed;

/// The operation.
pub static DEFINITION: Definition<Life> = Definition {
    kind: "resume_tenant",
    steps: &[
        Step { name: "unlock_database", run: |s, c| boxed(unlock(s, c)), undo: |s, c| boxed(lock(s, c)) },
        Step { name: "start_service", run: |s, c| boxed(start_service(s, c)), undo: |s, c| boxed(stop_service(s, c)) },
    ],
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

async fn unlock(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (_, row) = life.tenant(&context).await?;
    match row.state.as_str() {
        "suspended" | "active" => life.unlock(&row).await,
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
    let resumed = store::resume(&mut connection, id, life.clock.now()).await.map_err(TenantError::from)?;
    if resumed { Ok(()) } else { Err(moved_on(&row)) }
}

async fn stop_service(life: Arc<Life>, context: StepContext) -> Result<(), StepError> {
    let (id, _) = life.tenant(&context).await?;
    let was: Suspension = input(&context)?;
    let mut connection = life.pool.acquire().await.map_err(TenantError::from)?;
    Ok(store::put_suspension_back(&mut connection, id, &was, life.clock.now()).await.map_err(TenantError::from)?)
}
