//! `/api/v1/api-keys`: the keys of a client's programs.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::access::{self, ApiKeysRead, ApiKeysWrite, NewApiKey};
use crate::api::Problem;
use crate::api::api_keys::{ApiKey, ApiKeyPage, ApiKeyScope, CreateApiKeyRequest, CreatedApiKey};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Page, Path, Query, Valid, next_cursor};
use crate::ids::ApiKeyId;

/// API keys, oldest first, without the keys themselves.
#[utoipa::path(
    get,
    path = "/api/v1/api-keys",
    tag = "api keys",
    security(("tenant_user" = [])),
    params(Page),
    responses((status = 200, body = ApiKeyPage), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<ApiKeysRead>,
    State(state): State<AppState>,
    Query(page): Query<Page>,
) -> ApiResult<Json<ApiKeyPage>> {
    let after = page.cursor.map(ApiKeyId::from_uuid);
    let keys = state.api_keys.list(&caller, after, page.limit() + 1).await?;
    let mut items: Vec<_> = keys.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |key| key.id);
    Ok(Json(ApiKeyPage { items, next_cursor }))
}

/// Makes an API key for the OpenAI-compatible endpoint under `/v1`. The token is shown this once.
#[utoipa::path(
    post,
    path = "/api/v1/api-keys",
    tag = "api keys",
    security(("tenant_user" = [])),
    request_body = CreateApiKeyRequest,
    responses(
        (status = 201, body = CreatedApiKey),
        (status = 403, body = Problem),
        (status = 409, description = "too many keys are in force", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn create(
    Active { caller, .. }: Active<ApiKeysWrite>,
    State(state): State<AppState>,
    Valid(request): Valid<CreateApiKeyRequest>,
) -> ApiResult<(StatusCode, Json<CreatedApiKey>)> {
    let CreateApiKeyRequest { name, scopes, expires_at } = request;
    let scopes = scopes.unwrap_or_else(|| ApiKeyScope::ALL.to_vec());
    let (key, token) = state.api_keys.create(&caller, NewApiKey { name, scopes, expires_at }).await?;
    let created = CreatedApiKey { key: body(key), token: token.expose().to_owned() };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revokes an API key: within a second no server takes it any more. It stays in the list.
#[utoipa::path(
    delete,
    path = "/api/v1/api-keys/{id}",
    tag = "api keys",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the key's id")),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn revoke(
    Active { caller, .. }: Active<ApiKeysWrite>,
    State(state): State<AppState>,
    Path(id): Path<ApiKeyId>,
) -> ApiResult<StatusCode> {
    state.api_keys.revoke(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn body(key: access::ApiKey) -> ApiKey {
    ApiKey {
        id: key.id.as_uuid(),
        name: key.name,
        hint: key.hint,
        scopes: key.scopes,
        created_by: key.created_by.map(|id| id.as_uuid()),
        created_at: key.created_at,
        expires_at: key.expires_at,
        last_used_at: key.last_used_at,
        revoked_at: key.revoked_at,
    }
}
