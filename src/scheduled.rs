//! Every periodic task, one list. Each runs once a period, over all servers; see `schedule`.

use chrono::TimeDelta;
use futures::StreamExt as _;

use crate::app::AppState;
use crate::idempotency;
use crate::ids::TenantId;
use crate::schedule::Task;
use crate::telemetry::causes;
use crate::tenants::registry::Filter;

/// Tenants' databases that are looked at together.
const AT_ONCE: usize = 2;
/// Tenants that are read at once.
const PAGE: i64 = 100;

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
        name: "prune_limits",
        period: TimeDelta::hours(1),
        run: |state| {
            Box::pin(async move {
                let pruned = state.limits.prune().await?;
                tracing::debug!(pruned, "prune accounts of limits");
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
    Task {
        name: "settle_abandoned_calls",
        period: TimeDelta::hours(1),
        run: |state| Box::pin(settle_abandoned_calls(state)),
    },
];

/// Settles what dead servers left in the databases of tenants that nobody uses: those that are used settle their own.
/// One that is away is looked at the next time.
async fn settle_abandoned_calls(state: AppState) -> anyhow::Result<()> {
    let mut filter = Filter { state: Some("active".to_owned()), limit: PAGE, ..Filter::default() };
    loop {
        let page = state.registry.list(&filter).await?;
        let Some(last) = page.last() else { return Ok(()) };
        filter.after = Some(last.id);
        let tenants = page.iter().map(|tenant| TenantId::from_uuid(tenant.id));
        futures::stream::iter(tenants).for_each_concurrent(AT_ONCE, |tenant| settle_abandoned(&state, tenant)).await;
        if state.stop.is_cancelled() {
            return Ok(());
        }
    }
}

async fn settle_abandoned(state: &AppState, tenant: TenantId) {
    let known = state.directory.knows_tenant(tenant);
    let looked = async {
        let Some(record) = state.directory.by_id(tenant).await? else { return Ok(0) };
        state.chat.settle_abandoned_unused(&state.databases.open(record)?).await
    };
    if let Err(error) = looked.await {
        tracing::debug!(tenant_id = %tenant, causes = causes(&error), "look for calls of dead servers");
    }
    // The whole fleet's records and keys would otherwise stay in this server's memory.
    if !known {
        state.directory.forget(tenant);
    }
}
