//! `/api/v1/messages/{message_id}/feedback`: what users think of their answers; `/api/v1/feedback`: the same for those who
//! look after the answers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::access::{ConversationsOwn, FeedbackRead};
use crate::api::Problem;
use crate::api::tenant::{FeedbackRequest, MessageFeedback, RatedAnswer, RatedAnswerPage, Rating};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Page, Path, Query, Valid, next_cursor};
use crate::ids::MessageId;

/// Which feedback to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only with this rating.
    rating: Option<Rating>,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// What users think of their answers, the newest answer first, with the beginning of question and answer. Whose they are
/// is not said.
#[utoipa::path(
    get,
    path = "/api/v1/feedback",
    tag = "chat",
    security(("tenant_user" = [])),
    params(Filter),
    responses((status = 200, body = RatedAnswerPage), (status = 403, body = Problem))
)]
pub async fn list(
    Active { caller, .. }: Active<FeedbackRead>,
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<RatedAnswerPage>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let before = page.cursor.map(MessageId::from_uuid);
    let found = state.chat.rated_answers(&caller, filter.rating, before, page.limit() + 1).await?;
    let mut items: Vec<_> = found
        .into_iter()
        .map(|found| RatedAnswer {
            message_id: found.message_id.as_uuid(),
            rating: found.feedback.rating,
            comment: found.feedback.comment,
            question: found.question,
            answer: found.answer,
            model: found.model,
            updated_at: found.updated_at,
        })
        .collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |answer| answer.message_id);
    Ok(Json(RatedAnswerPage { items, next_cursor }))
}

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
