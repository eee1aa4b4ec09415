//! `/api/v1/config`: chat settings, branding and feature flags.

use axum::Json;
use axum::extract::State;

use crate::access::{ConfigRead, ConfigWrite};
use crate::api::Problem;
use crate::api::tenant::{Config, UpdateConfigRequest};
use crate::app::AppState;
use crate::configuration::{self, SettingsChange, SettingsVersion};
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Body};

/// The settings in force.
#[utoipa::path(
    get,
    path = "/api/v1/config",
    tag = "configuration",
    security(("tenant_user" = [])),
    responses((status = 200, body = Config), (status = 403, body = Problem))
)]
pub async fn show(Active { caller, .. }: Active<ConfigRead>) -> ApiResult<Json<Config>> {
    Ok(Json(body(configuration::read(&caller.db).await?)))
}

/// Changes settings. Each change is a new version; sent with `version`, it is made to that version or not at all.
#[utoipa::path(
    patch,
    path = "/api/v1/config",
    tag = "configuration",
    security(("tenant_user" = [])),
    request_body = UpdateConfigRequest,
    responses(
        (status = 200, body = Config),
        (status = 403, body = Problem),
        (status = 409, description = "`version` is not in force any more", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn update(
    Active { caller, .. }: Active<ConfigWrite>,
    State(state): State<AppState>,
    Body(request): Body<UpdateConfigRequest>,
) -> ApiResult<Json<Config>> {
    let expected = request.version;
    let change = SettingsChange {
        system_prompt: request.system_prompt,
        models: request.models,
        temperature: request.temperature,
        max_tokens: request.max_tokens,
        history_length: request.history_length,
        max_message_length: request.max_message_length,
        welcome_message: request.welcome_message,
        error_message: request.error_message,
        degraded_message: request.degraded_message,
        branding: request.branding,
        visitors: request.visitors,
        widget: request.widget,
        answer_cache: request.answer_cache,
        assistants: request.assistants,
        routing: request.routing,
        content_filter: request.content_filter,
        features: request.features,
    };
    let changed = configuration::update(&caller.db, expected, &change, caller.user_id, state.clock.now()).await;
    // Also where nobody knows whether it was changed.
    state.chat.configuration_changed(caller.db.record().id);
    Ok(Json(body(changed?)))
}

fn body(in_force: SettingsVersion) -> Config {
    Config { version: in_force.version, settings: in_force.settings, updated_at: in_force.updated_at }
}
