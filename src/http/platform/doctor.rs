//! `/platform/v1/doctor`.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::doctor::DoctorReport;
use crate::app::AppState;
use crate::doctor::{self, Scope};
use crate::http::error::ApiResult;
use crate::http::extract::{Query, SuperAdmin};

/// What to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Whether to look at the clients' own databases too. Each takes up to some 20 seconds if it does not answer.
    tenants: Option<bool>,
}

/// Looks at everything this server stands on, and says what to do about what is wrong.
#[utoipa::path(
    get,
    path = "/platform/v1/doctor",
    tag = "platform",
    security(("super_admin" = [])),
    params(Wanted),
    responses((status = 200, body = DoctorReport))
)]
pub async fn examine(
    _: SuperAdmin,
    State(state): State<AppState>,
    Query(wanted): Query<Wanted>,
) -> ApiResult<Json<DoctorReport>> {
    let scope = Scope { serving: true, tenants: wanted.tenants.unwrap_or(false) };
    Ok(Json(doctor::examine(&state, scope).await))
}
