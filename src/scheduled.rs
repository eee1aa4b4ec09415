//! Every periodic task, one list. Each runs once a period, over all servers; see `schedule`.

use chrono::TimeDelta;

use crate::app::AppState;
use crate::idempotency;
use crate::schedule::Task;

/// The tasks.
pub static TASKS: &[Task<AppState>] = &[
    Task {
        name: "prune_idempotency_keys",
        period: TimeDelta::hours(1),
        run: |state| Box::pin(async move { Ok(idempotency::prune(&state.pool, state.clock.now()).await?) }),
    },
    Task {
        name: "prune_backup_uploads",
        period: TimeDelta::hours(1),
        run: |state| Box::pin(async move { Ok(state.backups.prune_uploads().await?) }),
    },
    Task {
        name: "drop_replaced_databases",
        period: TimeDelta::minutes(5),
        run: |state| {
            Box::pin(async move {
                let asked = state.backups.retry_drops().await?;
                if asked > 0 {
                    tracing::info!(asked, "drop replaced databases that could not be dropped");
                }
                Ok(())
            })
        },
    },
    Task {
        name: "prune_sign_ins",
        period: TimeDelta::hours(1),
        run: |state| {
            Box::pin(async move {
                let (sessions, attempts) = state.super_admins.prune().await?;
                tracing::debug!(sessions, attempts, "prune sign-ins");
                Ok(())
            })
        },
    },
    Task {
        name: "audit_fleet",
        period: TimeDelta::hours(1),
        run: |state| {
            Box::pin(async move {
                state.fleet_audit.begin(None).await?;
                Ok(())
            })
        },
    },
    Task {
        name: "purge_deleted_tenants",
        period: TimeDelta::minutes(1),
        run: |state| {
            Box::pin(async move {
                let begun = state.life.purge_due().await?;
                if begun > 0 {
                    tracing::info!(begun, "purge deleted tenants");
                }
                Ok(())
            })
        },
    },
    Task {
        name: "begin_due_rotations",
        period: TimeDelta::minutes(1),
        run: |state| {
            Box::pin(async move {
                let begun = state.rotations.begin_due().await?;
                if begun > 0 {
                    tracing::info!(begun, "begin scheduled rotations");
                }
                Ok(())
            })
        },
    },
    Task {
        name: "forget_retired_signing_keys",
        period: TimeDelta::hours(1),
        run: |state| Box::pin(async move { Ok(state.rotator.forget_retired_signing_keys().await.map(drop)?) }),
    },
];
