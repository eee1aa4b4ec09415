//! `/api/ai/query`: a question under the names that some clients have for it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};

use super::chat::{Asked, ask, whole};
use super::question_body::QuestionBody;
use crate::access::AiChat;
use crate::api::Problem;
use crate::api::assistants::{QueryRequest, QueryResponse};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Caller;
use crate::http::limits;

/// The query type that is no particular one.
const GENERAL: &str = "general";

/// Asks the tenant's model, as `POST /api/v1/chat` without `stream`: the same limits hold, and the answer is in the same
/// conversations. `query_type` is the name of an assistant.
#[utoipa::path(
    post,
    path = "/api/ai/query",
    tag = "chat",
    security(("tenant_user" = [])),
    request_body(content = QueryRequest, example = json!({ "question": "When do you open on Sunday?", "query_type": "general" })),
    responses(
        (status = 200, body = QueryResponse),
        (status = 403, description = "not allowed, or the plan does not have the feature that the assistant, or an image, needs", body = Problem),
        (status = 404, description = "the conversation is not the caller's", body = Problem),
        (status = 409, description = "no AI key is set, or none offers a model", body = Problem),
        (status = 408, description = "the body took too long to arrive", body = Problem),
        (status = 413, body = Problem),
        (status = 422, description = "a field was refused, or images are not accepted", body = Problem),
        (status = 429, description = "too many requests within a minute, or the month's quota is used up", body = Problem),
        (status = 503, description = "nobody can say whether a limit is reached, or too many images are being sent", body = Problem),
        (status = 502, description = "the model failed; what had arrived is kept", body = Problem)
    )
)]
// Whether the caller is still in force is checked in the round trip that reads the conversation.
pub async fn query(
    Caller { caller, .. }: Caller<AiChat>,
    State(state): State<AppState>,
    QuestionBody { body: request, room }: QuestionBody<QueryRequest>,
) -> ApiResult<Response> {
    let assistant = match request.query_type {
        Some(name) if name == GENERAL => {
            let context = state.chat.context(&caller.db).await?;
            context.has_assistant(GENERAL).then_some(name)
        }
        named => named,
    };
    let (session_id, images) = (request.session_id, request.images.0);
    let (text, allows_kept) = (request.question, request.cache);
    let asked = Asked { text, session_id, model: None, assistant, images, allows_kept, room: room.clone() };
    let answered = ask(&state, &caller, asked).await;
    drop(room);
    let (answer, rate) =
        answered.map_err(|error| error.rename_field("message", "question").rename_field("assistant", "query_type"))?;
    let answer = whole(answer).await?;
    let body = QueryResponse {
        answer: answer.content,
        queries_remaining: answer.queries_remaining,
        assistant: answer.assistant,
        model: answer.model,
        session_id: answer.session_id,
        message_id: answer.message_id,
        usage: answer.usage,
        stopped: answer.stopped,
        degraded: answer.degraded,
        from_cache: answer.from_cache,
    };
    let mut response = Json(body).into_response();
    limits::tell(response.headers_mut(), rate);
    Ok(response)
}
