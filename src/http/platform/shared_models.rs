//! `/platform/v1/shared-models`: models that the owner lends to tenants.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Problem;
use crate::api::shared_models::{PutSharedModelRequest, SharedModel, SharedModelList};
use crate::api::tenant::AiKeyTest;
use crate::app::AppState;
use crate::audit::Actor;
use crate::http::error::ApiResult;
use crate::http::extract::{Path, SuperAdmin, Valid};
use crate::shared_models::{self, NewSharedModel};

/// All shared models, without their keys. Tenants use them if their `ai_mode` says so.
#[utoipa::path(
    get,
    path = "/platform/v1/shared-models",
    tag = "shared models",
    security(("super_admin" = [])),
    responses((status = 200, body = SharedModelList))
)]
pub async fn list(_: SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<SharedModelList>> {
    let items = state.shared_models.list().await?.into_iter().map(body).collect();
    Ok(Json(SharedModelList { items }))
}

/// Sets or replaces a shared model. Its key is stored sealed and never shown again.
#[utoipa::path(
    put,
    path = "/platform/v1/shared-models/{name}",
    tag = "shared models",
    security(("super_admin" = [])),
    params(("name" = String, Path, description = "1 to 50 of a-z, 0-9, `-` and `_`")),
    request_body = PutSharedModelRequest,
    responses((status = 200, body = SharedModel), (status = 422, body = Problem))
)]
pub async fn put(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(name): Path<String>,
    Valid(request): Valid<PutSharedModelRequest>,
) -> ApiResult<Json<SharedModel>> {
    let new = NewSharedModel {
        provider: request.provider,
        base_url: request.base_url,
        api_key: request.api_key,
        models: request.models,
        model_aliases: request.model_aliases,
        default_model: request.default_model,
        position: request.position,
        enabled: request.enabled,
    };
    let actor = Actor::SuperAdmin(admin.super_admin_id);
    Ok(Json(body(state.shared_models.put(&name, new, actor).await?)))
}

/// Removes a shared model. Tenants that used it are answered by what is left to them.
#[utoipa::path(
    delete,
    path = "/platform/v1/shared-models/{name}",
    tag = "shared models",
    security(("super_admin" = [])),
    params(("name" = String, Path, description = "its name")),
    responses((status = 204), (status = 404, body = Problem))
)]
pub async fn delete(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    state.shared_models.remove(&name, Actor::SuperAdmin(admin.super_admin_id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries a shared model with one cheap real call. One that fails is answered with 200 and `ok: false`.
#[utoipa::path(
    post,
    path = "/platform/v1/shared-models/{name}/test",
    tag = "shared models",
    security(("super_admin" = [])),
    params(("name" = String, Path, description = "its name")),
    responses((status = 200, body = AiKeyTest), (status = 404, body = Problem))
)]
pub async fn test(
    _: SuperAdmin,
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> ApiResult<Json<AiKeyTest>> {
    let test = state.shared_models.test(&name).await?;
    Ok(Json(AiKeyTest {
        ok: test.ok,
        code: test.code.to_owned(),
        message: test.message,
        model: test.model,
        latency_ms: test.latency_ms,
    }))
}

fn body(model: shared_models::SharedModel) -> SharedModel {
    SharedModel {
        name: model.name,
        provider: model.provider,
        base_url: model.base_url,
        api_key: model.hint,
        models: model.models,
        model_aliases: model.model_aliases,
        default_model: model.default_model,
        position: model.position,
        enabled: model.enabled,
        updated_at: model.updated_at,
    }
}
