//! `/api/v1/database`: the client's own database.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Problem;
use crate::api::database::{CheckDatabaseRequest, DatabaseCheck, OwnDatabase, PutDatabaseRequest, PutDatabaseResponse};
use crate::app::AppState;
use crate::database_check::UrlOrigin;
use crate::http::error::ApiResult;
use crate::http::extract::{DatabaseGiver, Valid};
use crate::tenants::database_checks::GivenDatabase;
use crate::tenants::own_database::Giver;

/// Where the client's own database is, and what the last check of it found. Never a credential.
#[utoipa::path(
    get,
    path = "/api/v1/database",
    tag = "database",
    security(("tenant_user" = []), ("database_token" = [])),
    responses(
        (status = 200, body = OwnDatabase),
        (status = 403, body = Problem),
        (status = 409, description = "the platform manages the database", body = Problem)
    )
)]
pub async fn show(giver: DatabaseGiver, State(state): State<AppState>) -> ApiResult<Json<OwnDatabase>> {
    Ok(Json(state.own_databases.show(giver.tenant_id).await?))
}

/// Gives the tenant its database, or new credentials for the database in service. It is checked first, and nothing is
/// stored where the check finds a problem. A database that is given for the first time is set up by an operation.
#[utoipa::path(
    put,
    path = "/api/v1/database",
    tag = "database",
    security(("tenant_user" = []), ("database_token" = [])),
    request_body = PutDatabaseRequest,
    responses(
        (status = 200, description = "the new credentials are in use", body = PutDatabaseResponse),
        (status = 202, description = "the database is being set up", body = PutDatabaseResponse),
        (status = 403, body = Problem),
        (status = 409, body = Problem),
        (status = 422, description = "`database_unsuitable`, with the findings", body = Problem)
    )
)]
pub async fn put(
    giver: DatabaseGiver,
    State(state): State<AppState>,
    Valid(request): Valid<PutDatabaseRequest>,
) -> ApiResult<(StatusCode, Json<PutDatabaseResponse>)> {
    let given = GivenDatabase { url: request.url, ca: request.ca };
    let by = Giver { actor: giver.actor, origin: UrlOrigin::Client };
    let accepted = state.own_databases.give(giver.tenant_id, &given, by).await?;
    let status = if accepted.operation_id.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    let answer = PutDatabaseResponse {
        database: state.own_databases.show(giver.tenant_id).await?,
        check: accepted.check,
        operation_id: accepted.operation_id.map(|id| id.as_uuid()),
    };
    Ok((status, Json(answer)))
}

/// Looks at a database and says what would be found. Nothing is stored.
#[utoipa::path(
    post,
    path = "/api/v1/database/check",
    tag = "database",
    security(("tenant_user" = []), ("database_token" = [])),
    request_body = CheckDatabaseRequest,
    responses(
        (status = 200, body = DatabaseCheck),
        (status = 403, body = Problem),
        (status = 409, description = "the platform manages the database", body = Problem)
    )
)]
pub async fn check(
    giver: DatabaseGiver,
    State(state): State<AppState>,
    Valid(request): Valid<CheckDatabaseRequest>,
) -> ApiResult<Json<DatabaseCheck>> {
    let given = GivenDatabase { url: request.url, ca: request.ca };
    Ok(Json(state.own_databases.try_out(giver.tenant_id, &given, UrlOrigin::Client).await?))
}
