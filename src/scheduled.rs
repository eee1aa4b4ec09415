//! Every periodic task, one list. Each runs once a period, over all servers; see `schedule`.

use chrono::TimeDelta;
use futures::StreamExt as _;

use crate::app::AppState;
use crate::idempotency;
use crate::ids::TenantId;
use crate::schedule::Task;
use crate::telemetry::causes;

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
                let pruned = state.limits.prune(&state.pool).await?;
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
    Task { name: "settle_abandoned_calls", period: TimeDelta::hours(1), run: |state| Box::pin(sweep_tenants(state)) },
];

/// Settles what dead servers left in the databases of tenants for which calls were made since they were last swept, and
/// removes visitors there whose time is over. Those that are used settle their own meanwhile; one that is away is looked
/// at the next time. Nobody connects to the others.
async fn sweep_tenants(state: AppState) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let tenants = state.databases.to_sweep(after, PAGE).await?;
        let Some((last, _)) = tenants.last() else { return Ok(()) };
        after = Some(*last);
        let sweeps = tenants.into_iter().map(|(tenant, at)| {
            let state = &state;
            async move { sweep(state, tenant).await.then_some((tenant, at)) }
        });
        let swept: Vec<_> = futures::stream::iter(sweeps).buffer_unordered(AT_ONCE).collect().await;
        let swept: Vec<_> = swept.into_iter().flatten().collect();
        state.databases.swept(&swept).await?;
        if state.stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// Whether it was looked at.
async fn sweep(state: &AppState, tenant: TenantId) -> bool {
    let known = state.directory.knows_tenant(tenant);
    let looked = async {
        let Some(record) = state.directory.by_id(tenant).await? else { return Ok(false) };
        let db = state.databases.open(record)?;
        state.chat.settle_abandoned_unused(&db).await?;
        let removed = state.tokens.remove_expired_visitors(&db).await?;
        if removed > 0 {
            tracing::debug!(tenant_id = %tenant, removed, "remove visitors whose time is over");
        }
        anyhow::Ok(true)
    };
    let looked = looked.await.unwrap_or_else(|error| {
        tracing::debug!(tenant_id = %tenant, causes = causes(error.as_ref()), "sweep a tenant's database");
        false
    });
    // The whole fleet's records and keys would otherwise stay in this server's memory.
    if !known {
        state.directory.forget(tenant);
    }
    looked
}
