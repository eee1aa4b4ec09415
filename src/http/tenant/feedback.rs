//! `/api/v1/messages/{message_id}/feedback`: what users think of their answers.

use axum::extract::State;
use axum::http::StatusCode;

use crate::access::ConversationsOwn;
use crate::api::Problem;
use crate::api::tenant::{FeedbackRequest, MessageFeedback};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Path, Valid};
use crate::ids::MessageId;

/// Says whether one of the caller's answers helped. Said again, it takes the former's place.
#[utoipa::path(
    put,
    path = "/api/v1/messages/{message_id}/feedback",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("message_id" = uuid::Uuid, Path, description = "the answer's id")),
    request_body = FeedbackRequest,
    responses(
        (status = 204, description = "stored"),
        (status = 403, body = Problem),
        (status = 404, description = "the answer is not the caller's", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn put(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Path(message_id): Path<MessageId>,
    Valid(request): Valid<FeedbackRequest>,
) -> ApiResult<StatusCode> {
    let comment = request.comment.map(|comment| comment.trim().to_owned()).filter(|comment| !comment.is_empty());
    let feedback = MessageFeedback { rating: request.rating, comment };
    state.chat.rate(&caller, message_id, &feedback).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes it back.
#[utoipa::path(
    delete,
    path = "/api/v1/messages/{message_id}/feedback",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("message_id" = uuid::Uuid, Path, description = "the answer's id")),
    responses(
        (status = 204, description = "there is none any more"),
        (status = 403, body = Problem),
        (status = 404, description = "the answer is not the caller's", body = Problem)
    )
)]
pub async fn delete(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Path(message_id): Path<MessageId>,
) -> ApiResult<StatusCode> {
    state.chat.unrate(&caller, message_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
