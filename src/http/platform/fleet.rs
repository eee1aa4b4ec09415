//! `/platform/v1/fleet`: work on all tenants at once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations;
use crate::api::Problem;
use crate::api::fleet::{
    CreateFleetMigrationRequest, CreateFleetVerificationRequest, FleetMigration, FleetTenant, FleetTenantError,
    FleetTenantPage, FleetTenantState,
};
use crate::api::platform::Operation;
use crate::app::AppState;
use crate::fleet::migrate::Migration;
use crate::fleet::verify::VerifyInput;
use crate::fleet::{self, Requested, TenantFilter, TenantOutcome};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Page, Path, Query, SuperAdmin, Valid, next_cursor};
use crate::ids::OperationId;

/// Migrates the databases of tenants that are behind. With nothing to do it answers so at once.
#[utoipa::path(
    post,
    path = "/platform/v1/fleet/migrations",
    tag = "fleet",
    security(("super_admin" = [])),
    request_body = CreateFleetMigrationRequest,
    responses(
        (status = 200, description = "nothing to do, or only a plan was asked for", body = FleetMigration),
        (status = 202, description = "the operation was begun", body = FleetMigration),
        (status = 409, description = "another migration of the fleet is under way", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn migrate(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<CreateFleetMigrationRequest>,
) -> ApiResult<(StatusCode, Json<FleetMigration>)> {
    let plan_only = request.plan_only;
    let wanted = wanted(request)?;
    let target_version = state.fleet.target(wanted.target_version)?;
    let mut answer = FleetMigration { nothing_to_do: false, target_version, operation: None, plan: None };
    if plan_only {
        answer.plan = state.fleet.plan(&wanted).await?;
        answer.nothing_to_do = answer.plan.is_none();
        return Ok((StatusCode::OK, Json(answer)));
    }
    match state.fleet.migrate(&wanted, admin.super_admin_id).await? {
        Requested::NothingToDo => {
            answer.nothing_to_do = true;
            Ok((StatusCode::OK, Json(answer)))
        }
        Requested::Operation(id) => {
            answer.operation = Some(operations::find(&state, id).await?);
            Ok((StatusCode::ACCEPTED, Json(answer)))
        }
    }
}

/// Compares the databases of tenants with what they have to be, and changes nothing.
#[utoipa::path(
    post,
    path = "/platform/v1/fleet/verifications",
    tag = "fleet",
    security(("super_admin" = [])),
    request_body = CreateFleetVerificationRequest,
    responses(
        (status = 202, body = Operation),
        (status = 409, description = "another verification is under way", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn verify(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<CreateFleetVerificationRequest>,
) -> ApiResult<(StatusCode, Json<Operation>)> {
    let default = Migration::default();
    let wanted =
        VerifyInput { tenants: selection(request.tenants)?, parallel: request.parallel.unwrap_or(default.parallel) };
    let id = state.fleet.verify(&wanted, admin.super_admin_id).await?;
    Ok((StatusCode::ACCEPTED, Json(operations::find(&state, id).await?)))
}

/// Which tenants of a run to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only in this state.
    state: Option<FleetTenantState>,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// What became of each tenant in a migration or verification, in the order they were taken.
#[utoipa::path(
    get,
    path = "/platform/v1/fleet/migrations/{operation_id}/tenants",
    tag = "fleet",
    security(("super_admin" = [])),
    params(("operation_id" = uuid::Uuid, Path, description = "the operation's id"), Filter),
    responses((status = 200, body = FleetTenantPage), (status = 404, body = Problem))
)]
pub async fn tenants(
    _: SuperAdmin,
    State(state): State<AppState>,
    Path(operation): Path<OperationId>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<FleetTenantPage>> {
    operations::find(&state, operation).await?;
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let wanted = TenantFilter { operation, state: filter.state, after: page.cursor, limit: page.limit() as i64 + 1 };
    let mut items: Vec<_> = state.fleet.tenants(&wanted).await?.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |tenant| tenant.tenant_id);
    Ok(Json(FleetTenantPage { items, next_cursor }))
}

fn selection(tenants: Option<Vec<String>>) -> ApiResult<Option<Vec<String>>> {
    if tenants.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::invalid("tenants", "must name a tenant; leave it out for all"));
    }
    Ok(tenants)
}

fn wanted(request: CreateFleetMigrationRequest) -> ApiResult<Migration> {
    let default = Migration::default();
    Ok(Migration {
        tenants: selection(request.tenants)?,
        canary: request.canary.unwrap_or(default.canary),
        parallel: request.parallel.unwrap_or(default.parallel),
        on_error: request.on_error.unwrap_or(default.on_error),
        max_failures: request.max_failures,
        target_version: request.target_version,
        recheck: request.recheck,
        lock_timeout_ms: request.lock_timeout_ms.unwrap_or(default.lock_timeout_ms),
        statement_timeout_ms: request.statement_timeout_ms.unwrap_or(default.statement_timeout_ms),
        concurrent_timeout_ms: request.concurrent_timeout_ms.unwrap_or(default.concurrent_timeout_ms),
    })
}

fn body(outcome: TenantOutcome) -> FleetTenant {
    let error = outcome.error.map(|(code, message)| {
        let hint = fleet::hint(&code).replace("SLUG", &outcome.slug);
        FleetTenantError { code, message, hint }
    });
    FleetTenant {
        tenant_id: outcome.tenant_id,
        tenant: outcome.slug,
        wave: outcome.wave,
        state: outcome.state,
        from_version: outcome.from_version,
        to_version: outcome.to_version,
        error,
        findings: outcome.findings,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
    }
}
