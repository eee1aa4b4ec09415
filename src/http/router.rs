//! Every route, on one page. The path of each stands in its handler's annotation, and here above it.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as OpenApiDocument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use super::docs::{self, Document};
use super::error::ApiError;
use super::openai::error::OpenAiError;
use super::{context, health, openai, page, platform, tenant};
use crate::app::AppState;

/// Bodies are small: the largest is a configuration with a system prompt. Questions with images have a limit of their own, and so has
/// an uploaded backup, which is streamed past this.
const BODY_LIMIT: usize = 256 * 1024;

fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        // /api/health
        .routes(routes!(health::health))
        // /platform/v1/sessions, /platform/v1/sessions/{id}
        .routes(routes!(platform::sessions::create, platform::sessions::list))
        .routes(routes!(platform::sessions::revoke))
        // /platform/v1/tenants, /platform/v1/tenants/{slug}, /platform/v1/tenants/{slug}/invites
        .routes(routes!(platform::tenants::create, platform::tenants::list))
        .routes(routes!(platform::tenants::show, platform::tenants::update, platform::lives::delete))
        .routes(routes!(platform::tenants::invite))
        // /platform/v1/tenants/{slug}/backups, /platform/v1/backups, /platform/v1/backups/{id}, .../content, .../restore
        .routes(routes!(platform::backups::create))
        .routes(routes!(platform::backups::list))
        .routes(routes!(platform::backups::upload))
        .routes(routes!(platform::backups::show, platform::backups::delete))
        .routes(routes!(platform::backups::content))
        .routes(routes!(platform::backups::restore))
        // /platform/v1/fleet/audits, /platform/v1/fleet/findings
        .routes(routes!(platform::audits::create))
        .routes(routes!(platform::audits::findings))
        // /platform/v1/tenants/{slug}/suspend, .../resume, .../undelete
        .routes(routes!(platform::lives::suspend))
        .routes(routes!(platform::lives::resume))
        .routes(routes!(platform::lives::undelete))
        // /platform/v1/shared-models, /platform/v1/shared-models/{name}, .../test
        .routes(routes!(platform::shared_models::list))
        .routes(routes!(platform::shared_models::put, platform::shared_models::delete))
        .routes(routes!(platform::shared_models::test))
        // /platform/v1/operations, /platform/v1/operations/{id}, .../events, .../retry
        .routes(routes!(platform::operations::list))
        .routes(routes!(platform::operations::show))
        .routes(routes!(platform::operations::events))
        .routes(routes!(platform::operations::retry))
        // /platform/v1/operation-groups/{id}
        .routes(routes!(platform::operations::group))
        // /platform/v1/rotations, /platform/v1/rotation-schedules, /platform/v1/master-keys
        .routes(routes!(platform::rotations::create))
        .routes(routes!(platform::rotations::schedules, platform::rotations::set_schedule))
        .routes(routes!(platform::rotations::master_keys))
        // /platform/v1/clusters
        .routes(routes!(platform::clusters::create, platform::clusters::list))
        .routes(routes!(platform::clusters::update))
        // /platform/v1/connections
        .routes(routes!(platform::connections::show))
        // /platform/v1/doctor
        .routes(routes!(platform::doctor::examine))
        // /platform/v1/database-checks, /platform/v1/tenants/{slug}/database-token
        .routes(routes!(platform::databases::check))
        .routes(routes!(platform::databases::issue_token))
        // /platform/v1/fleet/migrations, .../migrations/{operation_id}/tenants, /platform/v1/fleet/verifications
        .routes(routes!(platform::fleet::migrate))
        .routes(routes!(platform::fleet::tenants))
        .routes(routes!(platform::fleet::verify))
        // /api/v1/auth/...
        .routes(routes!(tenant::auth::accept_invite))
        .routes(routes!(tenant::auth::login))
        .routes(routes!(tenant::auth::visit))
        .routes(routes!(tenant::auth::refresh))
        .routes(routes!(tenant::auth::logout))
        // /api/v1/me
        .routes(routes!(tenant::me::me))
        // /api/v1/config
        .routes(routes!(tenant::config::show, tenant::config::update))
        // /api/v1/database, /api/v1/database/check
        .routes(routes!(tenant::database::show, tenant::database::put))
        .routes(routes!(tenant::database::check))
        // /api/v1/ai-keys, /api/v1/ai-keys/{name}, /api/v1/ai-keys/{name}/test
        .routes(routes!(tenant::ai_keys::list))
        .routes(routes!(tenant::ai_keys::put, tenant::ai_keys::delete))
        .routes(routes!(tenant::ai_keys::test))
        // /api/v1/api-keys, /api/v1/api-keys/{id}
        .routes(routes!(tenant::api_keys::list, tenant::api_keys::create))
        .routes(routes!(tenant::api_keys::revoke))
        // /api/v1/quota
        .routes(routes!(tenant::quota::show))
        // /api/v1/usage, /api/v1/usage/calls
        .routes(routes!(tenant::usage::show))
        .routes(routes!(tenant::usage::calls))
        // /api/v1/users, /api/v1/users/{id}
        .routes(routes!(tenant::users::list, tenant::users::create))
        .routes(routes!(tenant::users::show, tenant::users::update, tenant::users::delete))
        // /api/v1/chat, /api/ai/query
        .merge(tenant::question_routes())
        // /api/v1/chat/{message_id}/events, /api/v1/chat/{message_id}/stop
        .routes(routes!(tenant::chat::events))
        .routes(routes!(tenant::chat::stop))
        // /api/v1/images/{id}
        .routes(routes!(tenant::images::show))
        // /api/v1/assistants
        .routes(routes!(tenant::assistants::list))
        // /api/v1/sessions, /api/v1/sessions/{id}, /api/v1/sessions/{id}/messages
        .routes(routes!(tenant::sessions::list))
        .routes(routes!(tenant::sessions::delete))
        .routes(routes!(tenant::sessions::messages))
        // /api/v1/messages/{message_id}/feedback
        .routes(routes!(tenant::feedback::put, tenant::feedback::delete))
        .routes(routes!(tenant::feedback::list))
        // /v1/...: OpenAI's API
        .merge(openai::routes())
}

/// The OpenAPI document of all routes.
pub fn openapi() -> OpenApiDocument {
    let mut document = routes().into_openapi();
    docs::complete(&mut document);
    document
}

/// The whole HTTP interface.
pub fn router(state: AppState) -> Router {
    let (routes, mut document) = routes().split_for_parts();
    docs::complete(&mut document);
    routes
        // /c/{slug}, /assets/{hash}/{file}, /widget.js: for browsers, and so not in the document
        .merge(page::routes())
        .route("/", get(async || axum::response::Redirect::temporary("/docs")))
        .fallback(async |uri: Uri| match of_openai(&uri) {
            true => OpenAiError::unknown_url().into_response(),
            false => ApiError::not_found("route").into_response(),
        })
        .method_not_allowed_fallback(async |uri: Uri| match of_openai(&uri) {
            true => OpenAiError::method_not_allowed().into_response(),
            false => ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Not a method of this route")
                .into_response(),
        })
        .with_state(state)
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(context::middleware))
}

/// Whether an error at this address is to have OpenAI's shape.
fn of_openai(uri: &Uri) -> bool {
    uri.path().starts_with(openai::PREFIX)
}

/// A panic is a defect, and still must not cost more than its own request.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let place = panic.downcast_ref::<&str>().copied().unwrap_or("a panic");
    tracing::error!(panic = place, "a handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side").into_response()
}
