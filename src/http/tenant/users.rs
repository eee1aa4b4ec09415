//! `/api/v1/users`: the client admin's users.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::access::{self, NewUser, UserChanges, UsersRead, UsersWrite};
use crate::api::Problem;
use crate::api::tenant::{CreateUserRequest, Role, UpdateUserRequest, User, UserPage};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Caller, Page, Path, Query, Valid, next_cursor};
use crate::ids::UserId;

/// Users, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/users",
    tag = "users",
    security(("tenant_user" = [])),
    params(Page),
    responses((status = 200, body = UserPage), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<UsersRead>,
    State(state): State<AppState>,
    Query(page): Query<Page>,
) -> ApiResult<Json<UserPage>> {
    let after = page.cursor.map(UserId::from_uuid);
    let users = state.users.list(&caller, after, page.limit() + 1).await?;
    let mut items: Vec<_> = users.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |user| user.id);
    Ok(Json(UserPage { items, next_cursor }))
}

/// One user.
#[utoipa::path(
    get,
    path = "/api/v1/users/{id}",
    tag = "users",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the user's id")),
    responses((status = 200, body = User), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn show(
    Active { caller, .. }: Active<UsersRead>,
    State(state): State<AppState>,
    Path(id): Path<UserId>,
) -> ApiResult<Json<User>> {
    Ok(Json(body(state.users.find(&caller, id).await?)))
}

/// Creates a user. A manager creates users of role `user` only.
#[utoipa::path(
    post,
    path = "/api/v1/users",
    tag = "users",
    security(("tenant_user" = [])),
    request_body = CreateUserRequest,
    responses(
        (status = 201, body = User),
        (status = 403, body = Problem),
        (status = 409, description = "the address is taken", body = Problem),
        (status = 422, body = Problem)
    )
)]
// Whether the caller is still in force is checked in the transaction that creates the user; so below.
pub async fn create(
    Caller { caller, .. }: Caller<UsersWrite>,
    State(state): State<AppState>,
    Valid(request): Valid<CreateUserRequest>,
) -> ApiResult<(StatusCode, Json<User>)> {
    let new = NewUser {
        email: request.email,
        name: request.name,
        role: request.role.unwrap_or(Role::User),
        password: request.password,
    };
    Ok((StatusCode::CREATED, Json(body(state.users.create(&caller, new).await?))))
}

/// Changes a user. A new password, another role and being disabled sign the user out everywhere.
#[utoipa::path(
    patch,
    path = "/api/v1/users/{id}",
    tag = "users",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the user's id")),
    request_body = UpdateUserRequest,
    responses(
        (status = 200, body = User),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "it is the last admin, or the caller's own account", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn update(
    Caller { caller, .. }: Caller<UsersWrite>,
    State(state): State<AppState>,
    Path(id): Path<UserId>,
    Valid(request): Valid<UpdateUserRequest>,
) -> ApiResult<Json<User>> {
    let UpdateUserRequest { name, role, password, disabled } = request;
    let changes = UserChanges { name, role, password, disabled };
    Ok(Json(body(state.users.update(&caller, id, changes).await?)))
}

/// Deletes a user and all their conversations.
#[utoipa::path(
    delete,
    path = "/api/v1/users/{id}",
    tag = "users",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the user's id")),
    responses(
        (status = 204),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "it is the last admin, or the caller's own account", body = Problem)
    )
)]
pub async fn delete(
    Caller { caller, .. }: Caller<UsersWrite>,
    State(state): State<AppState>,
    Path(id): Path<UserId>,
) -> ApiResult<StatusCode> {
    state.users.delete(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn body(user: access::User) -> User {
    User {
        id: user.id.as_uuid(),
        email: user.email,
        name: user.name,
        role: user.role,
        disabled: user.disabled,
        created_at: user.created_at,
    }
}
