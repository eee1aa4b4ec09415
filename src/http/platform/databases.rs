//! `/platform/v1/database-checks` and `/platform/v1/tenants/{slug}/database-token`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Problem;
use crate::api::database::{CheckDatabaseRequest, DatabaseCheck};
use crate::api::platform::DatabaseToken;
use crate::app::AppState;
use crate::database_check::UrlOrigin;
use crate::http::error::ApiResult;
use crate::http::extract::{Path, SuperAdmin, Valid};
use crate::tenants::database_checks::{GivenDatabase, shown};

/// Looks at a database that a client might bring, from this server. Nothing is stored.
#[utoipa::path(
    post,
    path = "/platform/v1/database-checks",
    tag = "databases",
    security(("super_admin" = [])),
    request_body = CheckDatabaseRequest,
    responses((status = 200, body = DatabaseCheck), (status = 422, body = Problem))
)]
pub async fn check(
    _: SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<CheckDatabaseRequest>,
) -> ApiResult<Json<DatabaseCheck>> {
    let given = GivenDatabase { url: request.url, ca: request.ca };
    Ok(Json(shown(&state.database_checks.try_out(&given, UrlOrigin::Owner, None, None).await?)))
}

/// Makes a new token with which the client gives its database, in the place of any earlier one: for a tenant that waits
/// for its client, or whose credentials have stopped working.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/database-token",
    tag = "databases",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    responses(
        (status = 201, body = DatabaseToken),
        (status = 404, body = Problem),
        (status = 409, description = "the platform manages the tenant's database", body = Problem)
    )
)]
pub async fn issue_token(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
) -> ApiResult<(StatusCode, Json<DatabaseToken>)> {
    let token = state.own_databases.issue_token(&slug, admin.super_admin_id).await?;
    Ok((StatusCode::CREATED, Json(super::tenants::database_token(&state, token))))
}
