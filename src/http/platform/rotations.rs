//! `/platform/v1/rotations`, `/platform/v1/rotation-schedules` and `/platform/v1/master-keys`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Problem;
use crate::api::rotation::{
    MasterKeyList, RotationRequest, RotationResponse, RotationScheduleList, RotationScheduleRequest, SkippedTenant,
};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{SuperAdmin, Valid};
use crate::rotation::requests::Targets;
use crate::rotation::{SkipReason, Skipped};

/// Replaces credentials or keys by new ones, without anybody noticing: one operation a tenant, all in one group.
///
/// For one single tenant whatever is in its way is the answer; of many, those that cannot be are listed as skipped.
#[utoipa::path(
    post,
    path = "/platform/v1/rotations",
    tag = "rotations",
    security(("super_admin" = [])),
    request_body = RotationRequest,
    responses(
        (status = 202, body = RotationResponse),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn create(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<RotationRequest>,
) -> ApiResult<(StatusCode, Json<RotationResponse>)> {
    let targets = Targets::new(request.kind, request.tenants, request.all)?;
    let requested = state.rotations.request(request.kind, &targets, Some(admin.super_admin_id)).await?;
    let response = RotationResponse {
        group_id: requested.group_id,
        operations: requested.operations.iter().map(|id| id.as_uuid()).collect(),
        skipped: requested.skipped.into_iter().map(skipped).collect(),
    };
    Ok((StatusCode::ACCEPTED, Json(response)))
}

fn skipped(skipped: Skipped) -> SkippedTenant {
    let (code, operation_id) = match skipped.reason {
        SkipReason::NotActive => ("tenant_not_active", None),
        SkipReason::NotManaged => ("database_not_managed", None),
        SkipReason::Held { holder, .. } => ("operation_in_progress", Some(holder.as_uuid())),
    };
    SkippedTenant { tenant: skipped.slug, code: code.to_owned(), operation_id }
}

/// The schedules by which credentials and keys are replaced.
#[utoipa::path(
    get,
    path = "/platform/v1/rotation-schedules",
    tag = "rotations",
    security(("super_admin" = [])),
    responses((status = 200, body = RotationScheduleList))
)]
pub async fn schedules(_: SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<RotationScheduleList>> {
    Ok(Json(RotationScheduleList { items: state.rotations.schedules().await? }))
}

/// Sets how often something is replaced, for single tenants or for all that have no schedule of their own.
#[utoipa::path(
    put,
    path = "/platform/v1/rotation-schedules",
    tag = "rotations",
    security(("super_admin" = [])),
    request_body = RotationScheduleRequest,
    responses((status = 200, body = RotationScheduleList), (status = 422, body = Problem))
)]
pub async fn set_schedule(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<RotationScheduleRequest>,
) -> ApiResult<Json<RotationScheduleList>> {
    let targets = Targets::new(request.kind, request.tenants, request.all)?;
    state.rotations.set_schedule(request.kind, &targets, request.schedule, admin.super_admin_id).await?;
    Ok(Json(RotationScheduleList { items: state.rotations.schedules().await? }))
}

/// Which versions of the master key this server holds, and which are in use. Never a key.
#[utoipa::path(
    get,
    path = "/platform/v1/master-keys",
    tag = "rotations",
    security(("super_admin" = [])),
    responses((status = 200, body = MasterKeyList))
)]
pub async fn master_keys(_: SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<MasterKeyList>> {
    Ok(Json(state.rotations.master_keys().await?))
}
