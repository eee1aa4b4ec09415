//! `/api/v1/assistants`: whom a question may name.

use axum::Json;
use axum::extract::State;

use crate::access::AiChat;
use crate::api::Problem;
use crate::api::assistants::{Assistant, AssistantList};
use crate::api::limits::VISION;
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Active;
use crate::http::limits::terms;

/// The assistants that a question may name: those of the settings that the tenant's plan has the features for.
#[utoipa::path(
    get,
    path = "/api/v1/assistants",
    tag = "chat",
    security(("tenant_user" = [])),
    responses((status = 200, body = AssistantList), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<AiChat>,
    State(state): State<AppState>,
) -> ApiResult<Json<AssistantList>> {
    let context = state.chat.context(&caller.db).await?;
    let terms = terms(&state, caller.db.record());
    let vision = terms.has(VISION);
    let items = context.assistants(&terms).map(|assistant| Assistant {
        name: assistant.name.clone(),
        title: assistant.title.clone(),
        description: assistant.description.clone(),
        accepts_images: assistant.accepts_images && vision,
    });
    Ok(Json(AssistantList { items: items.collect() }))
}
