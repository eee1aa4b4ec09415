//! `GET /api/health`: whether this server can do its work, for load balancers and people.

use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::{Health, HealthCheck, HealthStatus};
use crate::app::AppState;
use crate::platform_db;

/// Checks the platform's database and its schema, and whether the server is stopping. 503 if anything fails.
///
/// Tenants' databases are not checked: one client's outage must not take the server away from the others.
#[utoipa::path(
    get,
    path = "/api/health",
    tag = "health",
    responses((status = 200, body = Health), (status = 503, description = "a check fails", body = Health))
)]
pub async fn health(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let started = Instant::now();
    let schema = platform_db::schema_version(&state.pool).await;
    let latency_ms = started.elapsed().as_secs_f64() * 1000.0;
    let check = |name: &str, ok: bool, latency_ms: f64| HealthCheck {
        name: name.to_owned(),
        status: if ok { HealthStatus::Ok } else { HealthStatus::Failing },
        latency_ms,
    };
    let checks = vec![
        check("platform_database", schema.is_ok(), latency_ms),
        check("schema", schema.is_ok_and(|version| version >= platform_db::required_schema_version()), 0.0),
        check("worker", state.config.worker_concurrency == 0 || state.worker_runs.load(Ordering::Acquire), 0.0),
        check("accepting_requests", !state.stop.is_cancelled(), 0.0),
    ];
    let ok = checks.iter().all(|check| check.status == HealthStatus::Ok);
    let health = Health {
        status: if ok { HealthStatus::Ok } else { HealthStatus::Failing },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        checks,
    };
    (if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}
