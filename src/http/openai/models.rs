//! `/v1/models`: the models that a tenant's settings and AI keys offer, by the tenant's own names.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use super::error::OpenAiError;
use super::extract::{ApiKeyCaller, ModelsScope};
use crate::api::openai::{ErrorBody, Model, ModelList};
use crate::app::AppState;
use crate::chat::ModelEntry;

/// The models that may be asked, in the order of the AI keys.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    security(("api_key" = [])),
    responses((status = 200, body = ModelList), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody))
)]
pub async fn list(
    ApiKeyCaller { key, .. }: ApiKeyCaller<ModelsScope>,
    State(state): State<AppState>,
) -> Result<Json<ModelList>, OpenAiError> {
    let context = state.chat.context(&key.db).await.map_err(|error| OpenAiError::of_chat(error, ""))?;
    Ok(Json(ModelList { object: "list", data: context.models().map(body).collect() }))
}

/// One model.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "openai",
    security(("api_key" = [])),
    params(("model" = String, Path, description = "the model's name")),
    responses(
        (status = 200, body = Model),
        (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn retrieve(
    caller: ApiKeyCaller<ModelsScope>,
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, OpenAiError> {
    let Ok(Path(name)) = name else { return Err(OpenAiError::unknown_url()) };
    find(caller, &state, name).await
}

/// The same for a name with slashes that a client put into the path as it is, as in `/v1/models/meta-llama/Llama-3.1-8B`. The
/// document has no way to say that a part of a path may be several.
pub async fn retrieve_with_slashes(
    caller: ApiKeyCaller<ModelsScope>,
    State(state): State<AppState>,
    name: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Model>, OpenAiError> {
    let Ok(Path((first, rest))) = name else { return Err(OpenAiError::unknown_url()) };
    find(caller, &state, format!("{first}/{rest}")).await
}

async fn find(
    ApiKeyCaller { key, .. }: ApiKeyCaller<ModelsScope>,
    state: &AppState,
    name: String,
) -> Result<Json<Model>, OpenAiError> {
    let context = state.chat.context(&key.db).await.map_err(|error| OpenAiError::of_chat(error, &name))?;
    let model = context.model(&name).ok_or_else(|| OpenAiError::model_not_found(&name))?;
    Ok(Json(body(model)))
}

fn body(model: &ModelEntry) -> Model {
    Model {
        id: model.name.to_string(),
        object: "model",
        created: model.since.timestamp(),
        owned_by: model.configuration.to_string(),
    }
}
