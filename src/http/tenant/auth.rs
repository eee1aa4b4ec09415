//! `/api/v1/auth`: how a tenant's user comes by tokens. The only routes whose requests name a tenant.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret;

use crate::access::SignedIn;
use crate::api::Problem;
use crate::api::tenant::{AcceptInviteRequest, LoginRequest, RefreshRequest, TokenResponse, VisitRequest};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Body, Valid};

/// Accepts an invite: sets the password and signs in. The token works once.
///
/// For somebody who is a user already it sets a new password, enables the account and ends all its sessions; it may
/// raise the role to the invite's.
#[utoipa::path(
    post,
    path = "/api/v1/auth/accept-invite",
    tag = "auth",
    request_body = AcceptInviteRequest,
    responses(
        (status = 200, body = TokenResponse),
        (status = 401, description = "the invite is not valid, or not any more", body = Problem),
        (status = 422, description = "the password is not accepted", body = Problem)
    )
)]
pub async fn accept_invite(
    State(state): State<AppState>,
    Valid(request): Valid<AcceptInviteRequest>,
) -> ApiResult<Json<TokenResponse>> {
    let AcceptInviteRequest { tenant, token, password, name } = request;
    let signed_in = state.tokens.accept_invite(&tenant, &token, &password, name.as_deref()).await?;
    Ok(Json(body(&signed_in)))
}

/// Signs a user in. The answer to a wrong tenant, address or password is the same.
#[utoipa::path(
    post,
    path = "/api/v1/auth/login",
    tag = "auth",
    request_body = LoginRequest,
    responses(
        (status = 200, body = TokenResponse),
        (status = 401, description = "tenant, address or password are wrong", body = Problem),
        (status = 429, description = "too many attempts; see `Retry-After`", body = Problem)
    )
)]
pub async fn login(
    State(state): State<AppState>,
    Valid(request): Valid<LoginRequest>,
) -> ApiResult<Json<TokenResponse>> {
    let signed_in = state.tokens.login(&request.tenant, &request.email, &request.password).await?;
    Ok(Json(body(&signed_in)))
}

/// Lets somebody chat without an account, where the tenant's settings allow it. Such a visitor has conversations of its
/// own, and goes with them when its tokens end for good. Unknown tenants, and those that allow no visitors, are answered
/// alike.
#[utoipa::path(
    post,
    path = "/api/v1/auth/visitor",
    tag = "auth",
    request_body = VisitRequest,
    responses(
        (status = 200, body = TokenResponse),
        (status = 403, description = "an account is needed", body = Problem),
        (status = 429, description = "too many visitors came within the hour; see `Retry-After`", body = Problem)
    )
)]
pub async fn visit(
    State(state): State<AppState>,
    Valid(request): Valid<VisitRequest>,
) -> ApiResult<Json<TokenResponse>> {
    let limits = state.pages.visitor_limits(&request.tenant).await?;
    Ok(Json(body(&state.tokens.visit(&request.tenant, limits).await?)))
}

/// Exchanges a refresh token for new tokens. Each works once: when a used one comes back, every token that came from
/// the same sign-in is revoked.
#[utoipa::path(
    post,
    path = "/api/v1/auth/refresh",
    tag = "auth",
    request_body = RefreshRequest,
    responses(
        (status = 200, body = TokenResponse),
        (status = 401, description = "the token is not in force", body = Problem),
        (status = 403, description = "the service is not active: the token may be good again when it is", body = Problem)
    )
)]
pub async fn refresh(
    State(state): State<AppState>,
    Body(request): Body<RefreshRequest>,
) -> ApiResult<Json<TokenResponse>> {
    Ok(Json(body(&state.tokens.refresh(&request.refresh_token).await?)))
}

/// Signs out: revokes every token that came from the same sign-in.
#[utoipa::path(
    post,
    path = "/api/v1/auth/logout",
    tag = "auth",
    request_body = RefreshRequest,
    responses((status = 204, description = "signed out, or was not signed in"))
)]
pub async fn logout(State(state): State<AppState>, Body(request): Body<RefreshRequest>) -> ApiResult<StatusCode> {
    state.tokens.logout(&request.refresh_token).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn body(signed_in: &SignedIn) -> TokenResponse {
    let SignedIn { access, refresh_token } = signed_in;
    TokenResponse {
        access_token: access.token.expose_secret().to_owned(),
        refresh_token: refresh_token.expose().to_owned(),
        token_type: "Bearer".to_owned(),
        expires_in: access.expires_in.num_seconds(),
        user_id: access.user_id.as_uuid(),
        role: access.role,
    }
}
