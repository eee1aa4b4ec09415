//! `GET /api/v1/me`.

use axum::Json;
use axum::extract::State;

use crate::access::ConversationsOwn;
use crate::api::tenant::{Me, Role};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Caller;

/// Who the token belongs to and what it allows.
#[utoipa::path(
    get,
    path = "/api/v1/me",
    tag = "auth",
    security(("tenant_user" = [])),
    responses((status = 200, body = Me))
)]
// Every role may see its own conversations; whoever may not even do that has nothing to ask here.
pub async fn me(Caller { caller, .. }: Caller<ConversationsOwn>, State(state): State<AppState>) -> ApiResult<Json<Me>> {
    let user = state.tokens.confirm_active(&caller).await?;
    // A visitor's row has an address that is none, so that there is one; it is nobody's to see.
    let email = if user.role == Role::Visitor { String::new() } else { user.email };
    Ok(Json(Me {
        id: caller.user_id.as_uuid(),
        tenant: caller.db.record().slug.to_string(),
        email,
        name: user.name,
        role: user.role,
        permissions: caller.permissions.entries().to_vec(),
    }))
}
