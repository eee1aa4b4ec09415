//! `/platform/v1/sessions`: how a super admin signs in and out.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};

use crate::api::Problem;
use crate::api::platform::{CreateSessionRequest, CreateSessionResponse, Session, SessionList};
use crate::app::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, Path, SuperAdmin};

/// Signs a super admin in. The token is shown this once.
#[utoipa::path(
    post,
    path = "/platform/v1/sessions",
    tag = "sessions",
    request_body = CreateSessionRequest,
    responses(
        (status = 201, body = CreateSessionResponse),
        (status = 401, description = "address or password are wrong", body = Problem),
        (status = 429, description = "too many attempts; see `Retry-After`", body = Problem)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    Body(request): Body<CreateSessionRequest>,
) -> ApiResult<(StatusCode, Json<CreateSessionResponse>)> {
    let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let session = state.super_admins.sign_in(&request.email, &request.password, user_agent).await?;
    let answer = CreateSessionResponse {
        token: session.token.expose().to_owned(),
        session_id: session.session_id.as_uuid(),
        expires_at: session.expires_at,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// The caller's sessions in force, newest first.
#[utoipa::path(
    get,
    path = "/platform/v1/sessions",
    tag = "sessions",
    security(("super_admin" = [])),
    responses((status = 200, body = SessionList))
)]
pub async fn list(SuperAdmin(admin): SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<SessionList>> {
    let sessions = state.super_admins.sessions(&admin).await?;
    let items = sessions.into_iter().map(|session| Session {
        id: session.id.as_uuid(),
        email: admin.email.clone(),
        user_agent: session.user_agent,
        created_at: session.created_at,
        expires_at: session.expires_at,
        current: session.id == admin.session_id,
    });
    Ok(Json(SessionList { items: items.collect() }))
}

/// Ends one of the caller's sessions.
#[utoipa::path(
    delete,
    path = "/platform/v1/sessions/{id}",
    tag = "sessions",
    security(("super_admin" = [])),
    params(("id" = String, Path, description = "the session's id, or `current` for that of this request")),
    responses((status = 204), (status = 404, body = Problem))
)]
pub async fn revoke(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    let session = match id.as_str() {
        "current" => admin.session_id,
        id => id.parse().map_err(|_| ApiError::not_found("session"))?,
    };
    state.super_admins.revoke(&admin, session).await?;
    Ok(StatusCode::NO_CONTENT)
}
