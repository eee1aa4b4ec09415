//! `/v1/chat/completions`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::timeout;

use super::chunks::{completion_id, completion_usage, finish_reason};
use super::error::OpenAiError;
use super::extract::{ApiKeyCaller, ChatScope, RawBody};
use super::request::{self, Asked};
use super::stream::{self, Terms};
use crate::api::limits::VISION;
use crate::api::openai::{
    AssistantMessage, ChatCompletion, ChatCompletionRequest, Choice, ErrorBody, FunctionCall, ToolCall,
};
use crate::app::AppState;
use crate::chat::{CallContext, MeteredStream};
use crate::http::limits::{self, Asker};
use crate::limits::Admission;
use crate::metering::CallKind;
use crate::providers::{ChatEvent, ChatRequest, FinishReason, Usage};

/// How long a stream's status waits for the model's first word: a call that is refused by then is answered with its own
/// status, which clients act on; one that takes longer begins with a heartbeat, before any proxy grows impatient.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// The longest answer that is collected, in bytes: many times what models give, so only one that has run away gets there.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Asks one of the tenant's models, in the form of OpenAI's API. With `stream: true` the answer comes as server-sent
/// events, the last of which is `data: [DONE]`; if it fails midway, the last is `data: {"error": …}`. Comments in
/// between are heartbeats. A client that leaves ends the call.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "openai",
    security(("api_key" = [])),
    request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "the answer, or a stream of `chat.completion.chunk`s", content(
            (ChatCompletion = "application/json"),
            (String = "text/event-stream")
        )),
        (status = 400, description = "a parameter was refused", body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 403, description = "the key lacks the scope, the plan the feature, or the service is suspended", body = ErrorBody),
        (status = 404, description = "no such model", body = ErrorBody),
        (status = 408, description = "the body took too long to arrive", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 429, description = "too many requests, a quota is used up, or the model provider limits requests", body = ErrorBody),
        (status = 502, description = "the model provider failed", body = ErrorBody),
        (status = 409, description = "a stored AI key has to be set again by an admin", body = ErrorBody),
        (status = 503, description = "no model provider answers, or too much is being sent at once", body = ErrorBody),
        (status = 504, description = "the model provider did not answer in time", body = ErrorBody)
    )
)]
pub async fn create(
    ApiKeyCaller { key, .. }: ApiKeyCaller<ChatScope>,
    State(state): State<AppState>,
    RawBody(body, room): RawBody,
) -> Result<Response, OpenAiError> {
    let asked = ChatCompletionRequest::parse(&body)?;
    drop(body);
    let Asked { model, request, stream, include_usage } = request::chat(asked)?;
    let record = key.db.record();
    let plan = limits::terms(&state, record);
    plan.require("api")?;
    if has_images(&request) {
        plan.require(VISION)?;
    }
    let Admission { rate, permit, .. } = limits::admit(&state, record, &plan, Asker::ApiKey(key.id())).await?;
    let created = state.clock.now().timestamp();
    let (api_key_id, kind) = (Some(key.id()), CallKind::Completion);
    let call = CallContext { db: key.db, user_id: None, api_key_id, kind, model: model.clone(), permit, room };
    let mut response = if stream {
        let terms = Terms { model, created, include_usage };
        let mut calling = async move { state.chat.complete(call, request).await }.boxed();
        match timeout(FIRST_WORD, &mut calling).await {
            Ok(Ok(answer)) => stream::speaking(answer, terms),
            Ok(Err(error)) => return Err(OpenAiError::of_chat(error, &terms.model)),
            Err(_) => stream::calling(calling, terms),
        }
    } else {
        let answer = state.chat.complete(call, request).await.map_err(|error| OpenAiError::of_chat(error, &model))?;
        Json(whole(answer, model, created).await?).into_response()
    };
    limits::tell(response.headers_mut(), rate);
    Ok(response)
}

fn has_images(request: &ChatRequest) -> bool {
    request.messages.iter().any(|message| message.content.images().next().is_some())
}

/// What has been collected of an answer.
#[derive(Default)]
struct Collected {
    content: String,
    reasoning: String,
    tool_calls: Vec<ToolCall>,
    size: usize,
}

impl Collected {
    /// Adds an event; returns how the answer ended, if it did.
    fn add(&mut self, event: ChatEvent) -> Option<(FinishReason, Option<Usage>)> {
        match event {
            ChatEvent::Delta(text) => {
                self.size += text.len();
                self.content.push_str(&text);
            }
            ChatEvent::Reasoning(text) => {
                self.size += text.len();
                self.reasoning.push_str(&text);
            }
            ChatEvent::ToolCall(delta) => {
                self.size += delta.arguments.len();
                let index = usize::try_from(delta.index).unwrap_or(usize::MAX);
                match self.tool_calls.get_mut(index) {
                    Some(call) => call.function.arguments.push_str(&delta.arguments),
                    None => self.tool_calls.push(ToolCall {
                        id: delta.id.unwrap_or_default(),
                        kind: "function".to_owned(),
                        function: FunctionCall { name: delta.name.unwrap_or_default(), arguments: delta.arguments },
                    }),
                }
            }
            ChatEvent::Finished { usage, finish_reason } => return Some((finish_reason, usage)),
        }
        None
    }

    fn message(self) -> AssistantMessage {
        let silent = self.content.is_empty() && !self.tool_calls.is_empty();
        AssistantMessage {
            role: "assistant",
            content: (!silent).then_some(self.content),
            refusal: None,
            reasoning_content: (!self.reasoning.is_empty()).then_some(self.reasoning),
            tool_calls: self.tool_calls,
        }
    }
}

/// Collects an answer.
async fn whole(mut answer: MeteredStream, model: String, created: i64) -> Result<ChatCompletion, OpenAiError> {
    let mut collected = Collected::default();
    while let Some(event) = answer.next().await {
        if let Some((reason, usage)) = collected.add(event?) {
            let finish_reason = finish_reason(reason, !collected.tool_calls.is_empty());
            return Ok(ChatCompletion {
                id: completion_id(answer.call_id),
                object: "chat.completion",
                created,
                model,
                choices: vec![Choice { index: 0, message: collected.message(), logprobs: None, finish_reason }],
                usage: usage.map(completion_usage),
            });
        }
        if collected.size > MAX_ANSWER {
            break;
        }
    }
    Err(OpenAiError::lost())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ToolCallDelta;

    #[test]
    fn an_answer_is_collected_from_its_pieces() {
        let mut collected = Collected::default();
        let call = |index, id: Option<&str>, arguments: &str| {
            ChatEvent::ToolCall(ToolCallDelta {
                index,
                id: id.map(str::to_owned),
                name: id.map(|id| format!("name of {id}")),
                arguments: arguments.to_owned(),
            })
        };
        let usage = Usage { input_tokens: 1, output_tokens: 2, cached_input_tokens: 0, reported: true };
        for event in [call(0, Some("a"), "{\"x\""), call(1, Some("b"), "{}"), call(0, None, ":1}")] {
            assert!(collected.add(event).is_none());
        }
        let end = collected.add(ChatEvent::Finished { usage: Some(usage), finish_reason: FinishReason::ToolCalls });
        assert_eq!(end, Some((FinishReason::ToolCalls, Some(usage))));
        let message = serde_json::to_value(collected.message()).unwrap();
        assert_eq!(message["content"], serde_json::Value::Null);
        assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
        assert_eq!(message["tool_calls"][1]["id"], "b");
        assert_eq!(message.get("reasoning_content"), None);
    }

    #[test]
    fn an_answer_without_a_word_is_an_empty_text() {
        let message = serde_json::to_value(Collected::default().message()).unwrap();
        assert_eq!((&message["content"], message.get("tool_calls")), (&serde_json::json!(""), None));
    }
}
