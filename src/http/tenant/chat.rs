//! `/api/v1/chat`: a question and its answer, whole or as it comes.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use crate::access::AiChat;
use crate::api::Problem;
use crate::api::tenant::{ChatDelta, ChatDone, ChatError, ChatRequest, ChatResponse};
use crate::app::AppState;
use crate::chat::{self, Answer, AnswerEvent, Question};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, Caller};
use crate::ids::{ChatSessionId, MessageId};

/// How often a silent stream says that it is alive. Proxies cut one that says nothing for half a minute or so.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// Asks the tenant's model. With `stream: true` the answer comes as server-sent events: `data: {"content": "..."}` for
/// each piece, then `event: done` with `ChatDone` once the answer is stored, then `data: [DONE]`. If the model fails,
/// `event: error` with `ChatError` comes last, and what had arrived is kept. Comments in between are heartbeats.
#[utoipa::path(
    post,
    path = "/api/v1/chat",
    tag = "chat",
    security(("tenant_user" = [])),
    request_body = ChatRequest,
    responses(
        (status = 200, description = "the answer, or a stream of it", content(
            (ChatResponse = "application/json"),
            (ChatDelta = "text/event-stream")
        )),
        (status = 403, body = Problem),
        (status = 404, description = "the conversation is not the caller's", body = Problem),
        (status = 409, description = "no AI key is set, or none offers a model", body = Problem),
        (status = 422, body = Problem),
        (status = 502, description = "the model failed; what had arrived is kept", body = Problem)
    )
)]
// Whether the caller is still in force is checked in the round trip that reads the conversation.
pub async fn chat(
    Caller { caller, .. }: Caller<AiChat>,
    State(state): State<AppState>,
    Body(request): Body<ChatRequest>,
) -> ApiResult<Response> {
    let question = Question {
        text: request.message,
        session_id: request.session_id.map(ChatSessionId::from_uuid),
        model: request.model,
    };
    let answer = state.chat.ask(&caller, question).await?;
    if request.stream { Ok(stream(answer)) } else { whole(answer).await.map(|body| Json(body).into_response()) }
}

async fn whole(mut answer: Answer) -> ApiResult<ChatResponse> {
    let mut content = String::new();
    while let Some(event) = answer.events.recv().await {
        match event {
            AnswerEvent::Delta(text) => content.push_str(&text),
            AnswerEvent::Done { usage, degraded } => {
                return Ok(ChatResponse {
                    session_id: answer.session_id.as_uuid(),
                    message_id: answer.message_id.as_uuid(),
                    content,
                    model: answer.model,
                    usage,
                    degraded,
                });
            }
            AnswerEvent::Failed { code, message } => {
                // The tenant went out of service meanwhile: as for any other request of its users from now on.
                let status = if chat::CLOSED.contains(&code) { StatusCode::FORBIDDEN } else { StatusCode::BAD_GATEWAY };
                return Err(ApiError::new(status, code, "The answer failed").detail(message));
            }
        }
    }
    Err(ApiError::new(StatusCode::BAD_GATEWAY, LOST, "The answer failed").detail(LOST_DETAIL))
}

/// The answer's task ended without a word, or gave this listener up as too slow.
const LOST: &str = "answer_lost";
const LOST_DETAIL: &str = "The rest of the answer is in the conversation.";

fn stream(answer: Answer) -> Response {
    let mut response = Sse::new(events(answer)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would show the whole answer at its end.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// What is left to send.
enum Rest {
    /// Whatever the answer does next.
    Answer(mpsc::Receiver<AnswerEvent>),
    /// The mark of a stream that ended well.
    Mark,
    Nothing,
}

struct Sender {
    session_id: ChatSessionId,
    message_id: MessageId,
    model: String,
    rest: Rest,
    heartbeat: Interval,
}

fn events(answer: Answer) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    // The first tick comes at once, so the first byte does not wait for the model.
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Answer { session_id, message_id, model, events } = answer;
    let sender = Sender { session_id, message_id, model, rest: Rest::Answer(events), heartbeat };
    futures::stream::unfold(sender, async |mut sender| {
        let event = sender.next().await?;
        Some((Ok(event), sender))
    })
}

impl Sender {
    async fn next(&mut self) -> Option<Event> {
        let events = match &mut self.rest {
            Rest::Answer(events) => events,
            Rest::Mark => {
                self.rest = Rest::Nothing;
                return Some(Event::default().data("[DONE]"));
            }
            Rest::Nothing => return None,
        };
        let event = tokio::select! {
            biased;
            _ = self.heartbeat.tick() => return Some(Event::default().comment("heartbeat")),
            event = events.recv() => event,
        };
        self.heartbeat.reset();
        Some(match event {
            Some(AnswerEvent::Delta(content)) => json(Event::default(), &ChatDelta { content }),
            Some(AnswerEvent::Done { usage, degraded }) => {
                self.rest = Rest::Mark;
                let done = ChatDone {
                    session_id: self.session_id.as_uuid(),
                    message_id: self.message_id.as_uuid(),
                    model: std::mem::take(&mut self.model),
                    usage,
                    degraded,
                };
                json(Event::default().event("done"), &done)
            }
            Some(AnswerEvent::Failed { code, message }) => self.failed(code, message),
            None => self.failed(LOST, LOST_DETAIL.to_owned()),
        })
    }

    /// The last event of a stream that failed: no mark follows, so that nobody takes it for whole.
    fn failed(&mut self, code: &str, message: String) -> Event {
        self.rest = Rest::Nothing;
        let error = ChatError {
            session_id: self.session_id.as_uuid(),
            message_id: self.message_id.as_uuid(),
            code: code.to_owned(),
            message,
        };
        json(Event::default().event("error"), &error)
    }
}

fn json(event: Event, data: &impl Serialize) -> Event {
    // These types always become JSON: they are texts and numbers.
    event.json_data(data).unwrap_or_else(|_| Event::default().comment("unreadable"))
}
