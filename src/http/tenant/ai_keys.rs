//! `/api/v1/ai-keys`: the client's own keys for model providers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::access::{AiKeysRead, AiKeysWrite};
use crate::api::Problem;
use crate::api::tenant::{AiKey, AiKeyList, AiKeyTest, PutAiKeyRequest};
use crate::app::AppState;
use crate::configuration::{self, NewAiKey};
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Path, Valid};

/// All AI keys, without the keys themselves.
#[utoipa::path(
    get,
    path = "/api/v1/ai-keys",
    tag = "configuration",
    security(("tenant_user" = [])),
    responses((status = 200, body = AiKeyList), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<AiKeysRead>,
    State(state): State<AppState>,
) -> ApiResult<Json<AiKeyList>> {
    let keys = state.ai_keys.list(&caller.db).await?;
    Ok(Json(AiKeyList { items: keys.into_iter().map(body).collect() }))
}

/// Sets or replaces an AI key. It is stored sealed and never shown again.
#[utoipa::path(
    put,
    path = "/api/v1/ai-keys/{name}",
    tag = "configuration",
    security(("tenant_user" = [])),
    params(("name" = String, Path, description = "1 to 50 of a-z, 0-9, `-` and `_`")),
    request_body = PutAiKeyRequest,
    responses((status = 200, body = AiKey), (status = 403, body = Problem), (status = 422, body = Problem))
)]
pub async fn put(
    Active { caller, .. }: Active<AiKeysWrite>,
    State(state): State<AppState>,
    Path(name): Path<String>,
    Valid(request): Valid<PutAiKeyRequest>,
) -> ApiResult<Json<AiKey>> {
    let PutAiKeyRequest { provider, base_url, api_key, models, default_model, .. } = request;
    let PutAiKeyRequest { model_aliases, position, enabled, .. } = request;
    let new = NewAiKey { provider, base_url, api_key, models, default_model, model_aliases, position, enabled };
    let stored = state.ai_keys.put(&caller.db, &name, new).await;
    // Also where nobody knows whether it was stored.
    state.chat.configuration_changed(caller.db.record().id);
    Ok(Json(body(stored?)))
}

/// Deletes an AI key.
#[utoipa::path(
    delete,
    path = "/api/v1/ai-keys/{name}",
    tag = "configuration",
    security(("tenant_user" = [])),
    params(("name" = String, Path, description = "the key's name")),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn delete(
    Active { caller, .. }: Active<AiKeysWrite>,
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    let deleted = state.ai_keys.delete(&caller.db, &name).await;
    state.chat.configuration_changed(caller.db.record().id);
    deleted?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries an AI key with one cheap real call. A key that fails is answered with 200 and `ok: false`.
#[utoipa::path(
    post,
    path = "/api/v1/ai-keys/{name}/test",
    tag = "configuration",
    security(("tenant_user" = [])),
    params(("name" = String, Path, description = "the key's name")),
    responses((status = 200, body = AiKeyTest), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn test(
    Active { caller, .. }: Active<AiKeysWrite>,
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> ApiResult<Json<AiKeyTest>> {
    let test = state.ai_keys.test(&caller.db, &name).await?;
    Ok(Json(AiKeyTest {
        ok: test.ok,
        code: test.code.to_owned(),
        message: test.message,
        model: test.model,
        latency_ms: test.latency_ms,
    }))
}

fn body(key: configuration::AiKey) -> AiKey {
    AiKey {
        name: key.name,
        provider: key.provider,
        base_url: key.base_url,
        api_key: key.hint,
        models: key.models,
        default_model: key.default_model,
        model_aliases: key.model_aliases,
        position: key.position,
        enabled: key.enabled,
        updated_at: key.updated_at,
    }
}
