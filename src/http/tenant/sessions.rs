//! `/api/v1/sessions`: the caller's own conversations.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::access::ConversationsOwn;
use crate::api::Problem;
use crate::api::images::ChatImage;
use crate::api::tenant::{ChatMessage, ChatMessagePage, ChatSession, ChatSessionPage};
use crate::app::AppState;
use crate::chat::images::MessageImage;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Page, Path, Query, next_cursor};
use crate::ids::{ChatSessionId, MessageId};

/// The caller's conversations, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/sessions",
    tag = "chat",
    security(("tenant_user" = [])),
    params(Page),
    responses((status = 200, body = ChatSessionPage), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Query(page): Query<Page>,
) -> ApiResult<Json<ChatSessionPage>> {
    let before = page.cursor.map(ChatSessionId::from_uuid);
    let found = state.chat.conversations(&caller, before, page.limit() + 1).await?;
    let mut items: Vec<_> = found
        .into_iter()
        .map(|found| ChatSession {
            id: found.id.as_uuid(),
            title: found.title,
            created_at: found.created_at,
            updated_at: found.updated_at,
        })
        .collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |session| session.id);
    Ok(Json(ChatSessionPage { items, next_cursor }))
}

/// What was said in one of the caller's conversations, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}/messages",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the conversation's id"), Page),
    responses((status = 200, body = ChatMessagePage), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn messages(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Path(id): Path<ChatSessionId>,
    Query(page): Query<Page>,
) -> ApiResult<Json<ChatMessagePage>> {
    let after = page.cursor.map(MessageId::from_uuid);
    let found = state.chat.messages(&caller, id, after, page.limit() + 1).await?;
    let mut items: Vec<_> = found
        .into_iter()
        .map(|found| ChatMessage {
            id: found.id.as_uuid(),
            role: found.role,
            content: found.content,
            state: found.state,
            error_code: found.error_code,
            model: found.model,
            assistant: found.assistant,
            usage: found.usage,
            degraded: found.degraded,
            from_cache: found.from_cache,
            created_at: found.created_at,
            feedback: found.feedback,
            images: found.images.into_iter().map(image).collect(),
        })
        .collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |message| message.id);
    Ok(Json(ChatMessagePage { items, next_cursor }))
}

fn image(found: MessageImage) -> ChatImage {
    ChatImage { id: found.id.as_uuid(), media_type: found.media_type.as_str().to_owned(), bytes: found.bytes }
}

/// Deletes one of the caller's conversations and all that was said in it.
#[utoipa::path(
    delete,
    path = "/api/v1/sessions/{id}",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the conversation's id")),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub async fn delete(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Path(id): Path<ChatSessionId>,
) -> ApiResult<StatusCode> {
    state.chat.delete_conversation(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
