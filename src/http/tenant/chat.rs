//! `/api/v1/chat`: a question and its answer, whole or as it comes; answers listened to again, and stopped.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use uuid::Uuid;

use super::answer_stream::stream;
use super::question_body::{LONGEST_TEXT, QuestionBody};
use crate::access::{AiChat, TenantCaller};
use crate::api::Problem;
use crate::api::limits::VISION;
use crate::api::tenant::{ChatDelta, ChatRequest, ChatResponse, Role};
use crate::app::AppState;
use crate::chat::{self, AnswerEnd, Held, Listener, Question};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Active, Caller, Path, Query};
use crate::http::limits::{self, Asker};
use crate::ids::{ChatSessionId, MessageId};
use crate::limits::Rate;
use crate::telemetry::causes;

/// Asks the tenant's model. With `stream: true` the answer comes as server-sent events: `event: started` with
/// `ChatStarted`, `data: {"content": "..."}` for each piece, then `event: done` with `ChatDone` once the answer is
/// stored, then `data: [DONE]`. If the model fails, `event: error` with `ChatError` comes last, and what had arrived is
/// kept. Comments in between are heartbeats. Each event has an `id`: whoever loses the stream gets the rest from
/// `GET /api/v1/chat/{message_id}/events`. Leaving does not stop the answer.
#[utoipa::path(
    post,
    path = "/api/v1/chat",
    tag = "chat",
    security(("tenant_user" = [])),
    request_body(content = ChatRequest, example = json!({ "message": "When do you open on Sunday?", "stream": true })),
    responses(
        (status = 200, description = "the answer, or a stream of it", content(
            (ChatResponse = "application/json"),
            (ChatDelta = "text/event-stream")
        )),
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
pub async fn chat(
    Caller { caller, .. }: Caller<AiChat>,
    State(state): State<AppState>,
    QuestionBody { body: request, room }: QuestionBody<ChatRequest>,
) -> ApiResult<Response> {
    let asked = Asked {
        text: request.message,
        session_id: request.session_id,
        model: request.model,
        assistant: request.assistant,
        images: request.images.0,
        allows_kept: request.cache,
        room: room.clone(),
    };
    let (answer, rate) = ask(&state, &caller, asked).await?;
    // The images are stored. Only the model is yet to see them.
    drop(room);
    let mut response = if request.stream { stream(answer) } else { Json(whole(answer).await?).into_response() };
    limits::tell(response.headers_mut(), rate);
    Ok(response)
}

/// A question, whichever route it came by.
pub(super) struct Asked {
    pub(super) text: String,
    pub(super) session_id: Option<Uuid>,
    pub(super) model: Option<String>,
    pub(super) assistant: Option<String>,
    /// As `data:` URLs.
    pub(super) images: Vec<String>,
    /// Whether an answer may be given that is kept.
    pub(super) allows_kept: bool,
    /// What its body holds of the room for large ones.
    pub(super) room: Option<Arc<Held>>,
}

/// Admits a question and has it answered. Also returns how the nearest limit stands.
pub(super) async fn ask(state: &AppState, caller: &TenantCaller, asked: Asked) -> ApiResult<(Listener, Option<Rate>)> {
    // The body may be larger than this for its images' sake only.
    if asked.text.len() > LONGEST_TEXT {
        return Err(ApiError::body_too_large());
    }
    let (record, asker) = (caller.db.record(), Asker::User(caller.user_id));
    let terms = limits::terms(state, record);
    if !asked.images.is_empty() {
        terms.require(VISION)?;
    }
    let images = chat::images::read(asked.images).await?;
    // Before the tenant's own limits: visitors who are refused must not use up what users may ask.
    let counted = match caller.role {
        Role::Visitor => {
            let visitors = state.pages.visitor_limits(record.slug.as_str()).await?;
            state.tokens.count_question(caller, visitors).await?
        }
        _ => None,
    };
    let asking = async {
        let admission = limits::admit(state, record, &terms, asker).await.map_err(|error| match &counted {
            Some(_) => limits::without_numbers(error),
            None => error.into(),
        })?;
        // Visitors are told of their own questions, and nothing of how much the tenant may ask.
        let (queries_remaining, rate) = match &counted {
            Some(counted) => (Some(counted.remaining.into()), None),
            None => (admission.queries_remaining, admission.rate),
        };
        let question = Question {
            text: asked.text,
            session_id: asked.session_id.map(ChatSessionId::from_uuid),
            model: asked.model,
            assistant: asked.assistant,
            images,
            room: asked.room,
            permit: admission.permit,
            queries_remaining,
            allows_kept: asked.allows_kept,
        };
        Ok((state.chat.ask(caller, question).await?, rate))
    };
    let answered: ApiResult<_> = asking.await;
    // A question that was refused uses nothing.
    if let (Err(_), Some(counted)) = (&answered, &counted)
        && let Err(error) = state.tokens.give_question_back(caller, counted).await
    {
        tracing::debug!(causes = causes(&error), "give a visitor's question back");
    }
    answered
}

/// An answer once it is whole.
pub(super) async fn whole(listener: Listener) -> ApiResult<ChatResponse> {
    let (session_id, message_id) = (listener.session_id().as_uuid(), listener.message_id().as_uuid());
    match listener.whole().await {
        (content, AnswerEnd::Done { model, assistant, usage, stopped, degraded, from_cache, queries_remaining }) => {
            Ok(ChatResponse {
                session_id,
                message_id,
                content,
                model,
                assistant,
                usage,
                stopped,
                degraded,
                from_cache,
                queries_remaining,
            })
        }
        (_, AnswerEnd::Failed { code, message }) => {
            // The tenant went out of service meanwhile: as for any other request of its users from now on.
            let closed = chat::CLOSED.contains(&&*code);
            let status = if closed { StatusCode::FORBIDDEN } else { StatusCode::BAD_GATEWAY };
            Err(ApiError::new(status, "answer_failed", "The answer failed").stored_code(code).detail(message))
        }
        // Only of answers that another server makes, to the same question: it has died, or cannot be followed from here.
        _ => Err(ApiError::new(StatusCode::BAD_GATEWAY, "answer_lost", "The answer failed")
            .detail("The rest of the answer is in the conversation.")),
    }
}

/// Where a stream is resumed.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Resume {
    /// The same as the header, for those who cannot set one. The header counts if there are both.
    pub last_event_id: Option<String>,
}

/// The events of one of the caller's answers from the beginning, or those behind `Last-Event-ID`: the same bytes as
/// those of the stream that the question was answered with, but for heartbeats. They come from any server, while the
/// answer is being generated and at any time later. If the server that generated it died, `event: error` with the code
/// `server_stopped` comes behind what was kept.
#[utoipa::path(
    get,
    path = "/api/v1/chat/{message_id}/events",
    tag = "chat",
    security(("tenant_user" = [])),
    params(
        ("message_id" = uuid::Uuid, Path, description = "the answer's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "the `id` of the last event that was received"),
        Resume
    ),
    responses(
        (status = 200, description = "a stream as of `POST /api/v1/chat`", content(
            (ChatDelta = "text/event-stream")
        )),
        (status = 400, body = Problem),
        (status = 403, body = Problem),
        (status = 404, description = "the answer is not the caller's", body = Problem)
    )
)]
pub async fn events(
    Active { caller, .. }: Active<AiChat>,
    State(state): State<AppState>,
    Path(message_id): Path<MessageId>,
    Query(resume): Query<Resume>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let header = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| no_event_id())?),
        None => None,
    };
    let after = match header.or(resume.last_event_id.as_deref()).map(str::trim) {
        None | Some("") => None,
        Some(number) => Some(number.parse::<u64>().map_err(|_| no_event_id())?),
    };
    Ok(stream(state.chat.events(&caller, message_id, after).await?))
}

fn no_event_id() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_last_event_id", "The Last-Event-ID was refused")
        .detail("it is the `id` of an event of this answer, a number")
}

/// Stops one of the caller's answers, wherever it is generated: what has arrived is kept, the message's state is
/// `stopped`, and its streams end with `event: done` and `stopped: true`. At the server that generates it, at once; at
/// another one within a second or two. Nothing happens to an answer that is over, or is being stopped.
#[utoipa::path(
    post,
    path = "/api/v1/chat/{message_id}/stop",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("message_id" = uuid::Uuid, Path, description = "the answer's id")),
    responses(
        (status = 204, description = "it is being stopped, or over"),
        (status = 403, body = Problem),
        (status = 404, description = "the answer is not the caller's", body = Problem)
    )
)]
pub async fn stop(
    Caller { caller, .. }: Caller<AiChat>,
    State(state): State<AppState>,
    Path(message_id): Path<MessageId>,
) -> ApiResult<StatusCode> {
    state.chat.stop(&caller, message_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
