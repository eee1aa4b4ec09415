//! `/platform/v1/connections`.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;

use crate::api::connections::{
    ConnectionShare, Connections, DatabaseServerConnections, OpenBreaker, TenantConnections,
};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::SuperAdmin;
use crate::tenant_db::{DatabaseServer, ServerReport};

/// Tenants that are listed for each database server.
const TOP: usize = 10;

/// The connections to tenants' databases that this server has, and how the budgets are divided over all servers.
#[utoipa::path(
    get,
    path = "/platform/v1/connections",
    tag = "connections",
    security(("super_admin" = [])),
    responses((status = 200, body = Connections))
)]
pub async fn show(_: SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<Connections>> {
    let clusters = state.clusters.list().await?;
    let names: HashMap<_, _> = clusters.into_iter().map(|cluster| (cluster.id, cluster.name)).collect();
    let report = state.databases.report().await?;
    let servers = report.servers.into_iter().map(|server| {
        let cluster = match &server.name {
            DatabaseServer::Cluster(id) => names.get(id).cloned(),
            DatabaseServer::Own(_) => None,
        };
        body(server, cluster)
    });
    let breakers = report.breakers.into_iter().map(|breaker| OpenBreaker {
        tenant_id: breaker.tenant_id.as_uuid(),
        slug: breaker.slug.to_string(),
        database_server: breaker.server.to_string(),
        reason: breaker.reason,
        retry_after_ms: u64::try_from(breaker.retry_after.as_millis()).unwrap_or(u64::MAX),
    });
    Ok(Json(Connections {
        server_id: report.server_id,
        database_servers: servers.collect(),
        breakers: breakers.collect(),
    }))
}

fn body(server: ServerReport, cluster: Option<String>) -> DatabaseServerConnections {
    let mut tenants: Vec<_> = server.tenants;
    tenants.sort_by_key(|tenant| std::cmp::Reverse((tenant.open + tenant.waiting, tenant.open)));
    tenants.truncate(TOP);
    let tenants = tenants.into_iter().map(|tenant| TenantConnections {
        tenant_id: tenant.tenant_id.as_uuid(),
        slug: tenant.slug.map(|slug| slug.to_string()),
        open: tenant.open,
        idle: tenant.idle,
        waiting: tenant.waiting,
    });
    let shares = server.shares.into_iter().map(|share| ConnectionShare {
        server_id: share.server_id,
        granted: share.granted,
        open: share.open,
        beat_at: share.beat_at,
    });
    DatabaseServerConnections {
        name: server.name.to_string(),
        cluster,
        budget: server.budget,
        granted: server.granted,
        open: server.open,
        idle: server.idle,
        waiting: server.waiting,
        tenants: tenants.collect(),
        shares: shares.collect(),
    }
}
