//! `GET /api/health`: whether this server can do its work, for load balancers and people.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::time::timeout;

use crate::api::{Health, HealthCheck, HealthStatus};
use crate::app::AppState;
use crate::platform_db;

/// How long the platform's database may take to answer. Probes of load balancers give up after a few seconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Checks the platform's database and its schema, the worker, and whether the server is stopping. 503 if tenants are not
/// served: it is stopping, or the schema is too old. While the platform's database does not answer, or the worker does
/// not run, tenants are served all the same: then it is 200 with `degraded`, for a load balancer must not take
/// every server away at once.
///
/// Tenants' databases are not checked: one client's outage must not take the server away from the others.
#[utoipa::path(
    get,
    path = "/api/health",
    tag = "health",
    responses(
        (status = 200, description = "tenants are served; `degraded` if something else fails", body = Health),
        (status = 503, description = "tenants are not served", body = Health)
    )
)]
pub async fn health(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let started = Instant::now();
    let schema = timeout(PATIENCE, platform_db::schema_version(&state.pool)).await.ok().and_then(Result::ok);
    let latency_ms = started.elapsed().as_secs_f64() * 1000.0;
    let check = |name: &str, ok: bool, latency_ms: f64| HealthCheck {
        name: name.to_owned(),
        status: if ok { HealthStatus::Ok } else { HealthStatus::Failing },
        latency_ms,
    };
    let checks = vec![
        check("platform_database", schema.is_some(), latency_ms),
        check("schema", schema.is_none_or(|version| version >= platform_db::required_schema_version()), 0.0),
        check("worker", state.config.worker_concurrency == 0 || state.worker_runs.load(Ordering::Acquire), 0.0),
        check("accepting_requests", !state.stop.is_cancelled(), 0.0),
    ];
    let fails = |names: &[&str]| {
        checks.iter().any(|check| check.status != HealthStatus::Ok && names.contains(&check.name.as_str()))
    };
    let (code, status) = if fails(&["schema", "accepting_requests"]) {
        (StatusCode::SERVICE_UNAVAILABLE, HealthStatus::Failing)
    } else if fails(&["platform_database", "worker"]) {
        (StatusCode::OK, HealthStatus::Degraded)
    } else {
        (StatusCode::OK, HealthStatus::Ok)
    };
    (code, Json(Health { status, version: env!("CARGO_PKG_VERSION").to_owned(), checks }))
}
