//! `/platform/v1/tenants/{slug}`: suspending, resuming, deleting, taking back.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::TimeDelta;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{operations, tenants};
use crate::api::Problem;
use crate::api::platform::{SuspendTenantRequest, TenantOperation};
use crate::app::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Path, Query, SuperAdmin, Valid};
use crate::tenants::life::Asked;

/// How long a deleted tenant can be taken back, if nothing else is said.
const GRACE_DAYS: u32 = 30;
/// The longest grace, in days.
const LONGEST_GRACE_DAYS: u32 = 3650;

/// Takes a tenant out of service, on every server at once.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/suspend",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    request_body = SuspendTenantRequest,
    responses(
        (status = 202, body = TenantOperation),
        (status = 200, description = "it is suspended already", body = TenantOperation),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn suspend(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Valid(request): Valid<SuspendTenantRequest>,
) -> ApiResult<(StatusCode, Json<TenantOperation>)> {
    let asked = state.life.suspend(&slug, request.reason.as_deref(), admin.super_admin_id).await?;
    answer(&state, &slug, asked).await
}

/// Puts a suspended tenant back into service.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/resume",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    responses(
        (status = 202, body = TenantOperation),
        (status = 200, description = "it is active already", body = TenantOperation),
        (status = 404, body = Problem),
        (status = 409, body = Problem)
    )
)]
pub async fn resume(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
) -> ApiResult<(StatusCode, Json<TenantOperation>)> {
    let asked = state.life.resume(&slug, admin.super_admin_id).await?;
    answer(&state, &slug, asked).await
}

/// What a deletion has to say.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// The tenant's slug once more: nobody deletes one by a slip.
    confirm: Option<String>,
    /// For how many days it can be taken back, 0 to 3650; 30 when left out. 0 removes it at once, and for good.
    grace_days: Option<u32>,
}

/// Takes a tenant out of service, and removes its database, roles and keys for good when its grace is over. A tenant
/// whose provisioning failed is removed at once.
#[utoipa::path(
    delete,
    path = "/platform/v1/tenants/{slug}",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug"), Deletion),
    responses(
        (status = 202, body = TenantOperation),
        (status = 200, description = "it is being deleted already", body = TenantOperation),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn delete(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Query(deletion): Query<Deletion>,
) -> ApiResult<(StatusCode, Json<TenantOperation>)> {
    if deletion.confirm.as_ref() != Some(&slug) {
        return Err(ApiError::invalid("confirm", "must be the tenant's slug"));
    }
    let days = deletion.grace_days.unwrap_or(GRACE_DAYS);
    if days > LONGEST_GRACE_DAYS {
        return Err(ApiError::invalid("grace_days", format!("must be at most {LONGEST_GRACE_DAYS}")));
    }
    let asked = state.life.delete(&slug, TimeDelta::days(i64::from(days)), admin.super_admin_id).await?;
    answer(&state, &slug, asked).await
}

/// Takes a deletion back: the tenant is again what it was before.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/undelete",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    responses(
        (status = 202, body = TenantOperation),
        (status = 200, description = "it is not being deleted", body = TenantOperation),
        (status = 404, body = Problem),
        (status = 409, body = Problem)
    )
)]
pub async fn undelete(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
) -> ApiResult<(StatusCode, Json<TenantOperation>)> {
    let asked = state.life.undelete(&slug, admin.super_admin_id).await?;
    answer(&state, &slug, asked).await
}

async fn answer(state: &AppState, slug: &str, asked: Asked) -> ApiResult<(StatusCode, Json<TenantOperation>)> {
    let tenant = tenants::body(state.registry.find(slug).await?);
    Ok(match asked {
        Asked::AlreadySo => (StatusCode::OK, Json(TenantOperation { tenant, operation: None })),
        Asked::Operation(id) => {
            let operation = Some(operations::find(state, id).await?);
            (StatusCode::ACCEPTED, Json(TenantOperation { tenant, operation }))
        }
    })
}
