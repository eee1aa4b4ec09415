//! The events of a streamed answer, written as bytes: thousands a second, and all alike but for a few words. The part
//! that does not change is made once a stream.

use axum::body::Bytes;
use bytes::{BufMut as _, BytesMut};
use serde::Serialize;

use super::error::OpenAiError;
use crate::api::openai::{CompletionUsage, PromptTokensDetails};
use crate::ids::ModelCallId;
use crate::providers::{ChatEvent, FinishReason, ToolCallDelta, Usage};

/// Room for a few events.
const ROOM: usize = 1_024;

/// Writes the events of one answer.
pub(super) struct Chunks {
    /// `data: {…,"choices":[`, the beginning of every chunk.
    head: Vec<u8>,
    /// Whether the client asked what the answer cost. Only then a chunk says anything of it, if only null.
    include_usage: bool,
    /// Whether the role was told.
    begun: bool,
    tools_called: bool,
    buffer: BytesMut,
}

impl Chunks {
    pub(super) fn new(call: ModelCallId, model: &str, created: i64, include_usage: bool) -> Self {
        let mut head = Vec::with_capacity(160 + model.len());
        head.extend_from_slice(b"data: {\"id\":\"");
        head.extend_from_slice(completion_id(call).as_bytes());
        head.extend_from_slice(b"\",\"object\":\"chat.completion.chunk\",\"created\":");
        head.extend_from_slice(created.to_string().as_bytes());
        head.extend_from_slice(b",\"model\":");
        let mut model_json = BytesMut::new();
        json(&mut model_json, model);
        head.extend_from_slice(&model_json);
        head.extend_from_slice(b",\"choices\":[");
        Self { head, include_usage, begun: false, tools_called: false, buffer: BytesMut::with_capacity(ROOM) }
    }

    /// What is to be sent now.
    pub(super) fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Writes an event. Returns whether it was the last.
    pub(super) fn event(&mut self, event: ChatEvent) -> bool {
        if !self.begun {
            self.begun = true;
            // Null, if the first thing that is said is a call: so OpenAI does.
            let content: &[u8] = if matches!(event, ChatEvent::ToolCall(_)) { b"null" } else { b"\"\"" };
            self.open();
            self.put(b"{\"role\":\"assistant\",\"content\":");
            self.put(content);
            self.put(b"}");
            self.close(None);
        }
        match event {
            ChatEvent::Delta(text) => self.text(b"{\"content\":", &text),
            ChatEvent::Reasoning(text) => self.text(b"{\"reasoning_content\":", &text),
            ChatEvent::ToolCall(delta) => self.tool_call(&delta),
            ChatEvent::Finished { usage, finish_reason } => {
                self.finish(finish_reason, usage);
                return true;
            }
        }
        false
    }

    fn text(&mut self, name: &[u8], text: &str) {
        self.open();
        self.put(name);
        json(&mut self.buffer, text);
        self.put(b"}");
        self.close(None);
    }

    fn tool_call(&mut self, delta: &ToolCallDelta) {
        self.tools_called = true;
        self.open();
        self.put(b"{\"tool_calls\":[{\"index\":");
        json(&mut self.buffer, &delta.index);
        if let Some(id) = &delta.id {
            self.put(b",\"id\":");
            json(&mut self.buffer, id);
            self.put(b",\"type\":\"function\"");
        }
        self.put(b",\"function\":{");
        if let Some(name) = &delta.name {
            self.put(b"\"name\":");
            json(&mut self.buffer, name);
            self.put(b",");
        }
        self.put(b"\"arguments\":");
        json(&mut self.buffer, &delta.arguments);
        self.put(b"}}]}");
        self.close(None);
    }

    fn finish(&mut self, reason: FinishReason, usage: Option<Usage>) {
        self.open();
        self.put(b"{}");
        self.close(Some(finish_reason(reason, self.tools_called)));
        if self.include_usage {
            let head = std::mem::take(&mut self.head);
            self.buffer.extend_from_slice(&head);
            self.put(b"],\"usage\":");
            json(&mut self.buffer, &usage.map(completion_usage));
            self.put(b"}\n\n");
        }
        self.put(b"data: [DONE]\n\n");
    }

    fn open(&mut self) {
        self.buffer.reserve(self.head.len() + ROOM / 4);
        self.buffer.put_slice(&self.head);
        self.buffer.put_slice(b"{\"index\":0,\"delta\":");
    }

    fn close(&mut self, reason: Option<&str>) {
        match reason {
            None => self.put(b",\"logprobs\":null,\"finish_reason\":null}]"),
            Some(reason) => {
                self.put(b",\"logprobs\":null,\"finish_reason\":\"");
                self.put(reason.as_bytes());
                self.put(b"\"}]");
            }
        }
        self.put(if self.include_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" });
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }
}

/// The last event of an answer that failed. No mark follows, so that nobody takes it for whole.
pub(super) fn error(error: &OpenAiError) -> Bytes {
    let mut buffer = BytesMut::from(&b"data: "[..]);
    json(&mut buffer, &error.body());
    buffer.extend_from_slice(b"\n\n");
    buffer.freeze()
}

fn json(buffer: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    // Texts and numbers always become JSON, and the buffer grows as it is needed.
    let written = serde_json::to_writer(buffer.writer(), value);
    debug_assert!(written.is_ok(), "texts and numbers always become JSON");
}

/// The id of an answer: that of its call in the ledger.
pub(super) fn completion_id(call: ModelCallId) -> String {
    format!("chatcmpl-{}", call.as_uuid().simple())
}

/// Why an answer ends, in OpenAI's word. Some servers say that the model had said all it wanted where it called tools,
/// which would end a client's loop too early.
pub(super) fn finish_reason(reason: FinishReason, tools_called: bool) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Unsaid | FinishReason::Other if tools_called => {
            FinishReason::ToolCalls.as_str()
        }
        reason => reason.as_str(),
    }
}

pub(super) fn completion_usage(usage: Usage) -> CompletionUsage {
    CompletionUsage {
        prompt_tokens: usage.input_tokens,
        completion_tokens: usage.output_tokens,
        total_tokens: usage.input_tokens.saturating_add(usage.output_tokens),
        prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_input_tokens },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const USAGE: Usage = Usage { input_tokens: 7, output_tokens: 3, cached_input_tokens: 2, reported: true };

    fn written(include_usage: bool, events: Vec<ChatEvent>) -> Vec<Value> {
        let mut chunks = Chunks::new(ModelCallId::new(), "a \"name\"", 17, include_usage);
        let mut last = false;
        for event in events {
            assert!(!last);
            last = chunks.event(event);
        }
        let text = String::from_utf8(chunks.take().to_vec()).unwrap();
        assert_eq!(chunks.len(), 0);
        assert!(text.ends_with("\n\n"), "{text}");
        let mut events = Vec::new();
        for event in text.trim_end().split("\n\n") {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event}"));
            events.push(if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).unwrap() });
        }
        events
    }

    fn end(finish_reason: FinishReason) -> ChatEvent {
        ChatEvent::Finished { usage: Some(USAGE), finish_reason }
    }

    #[test]
    fn a_text_is_told_in_openais_chunks() {
        let text = "Zeile\n\"zwei\" \u{1} \u{2028} 🙂 </script>";
        let events = written(false, vec![ChatEvent::Delta(text.to_owned()), end(FinishReason::Length)]);
        assert_eq!(events.len(), 4);
        for chunk in &events[..3] {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert_eq!((&chunk["model"], &chunk["created"]), (&json!("a \"name\""), &json!(17)));
            assert!(chunk["id"].as_str().unwrap().starts_with("chatcmpl-"));
            assert_eq!(chunk["choices"][0]["index"], 0);
            // Nobody asked for it.
            assert_eq!(chunk.get("usage"), None);
        }
        assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
        assert_eq!(events[1]["choices"][0]["delta"], json!({ "content": text }));
        assert_eq!(events[1]["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(events[2]["choices"][0]["delta"], json!({}));
        assert_eq!(events[2]["choices"][0]["finish_reason"], "length");
        assert_eq!(events[3], "[DONE]");
    }

    #[test]
    fn usage_is_told_to_whoever_asked_in_a_chunk_without_choices() {
        let events = written(true, vec![ChatEvent::Delta("a".to_owned()), end(FinishReason::Stop)]);
        assert_eq!(events.len(), 5);
        for chunk in &events[..3] {
            assert_eq!(chunk.get("usage"), Some(&Value::Null));
        }
        assert_eq!(events[3]["choices"], json!([]));
        assert_eq!(
            events[3]["usage"],
            json!({ "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                    "prompt_tokens_details": { "cached_tokens": 2 } })
        );
        assert_eq!(events[4], "[DONE]");
    }

    #[test]
    fn calls_have_an_index_and_end_for_their_sake() {
        let delta = |index, id: Option<&str>, arguments: &str| {
            let name = id.map(|_| "look_up".to_owned());
            ChatEvent::ToolCall(ToolCallDelta {
                index,
                id: id.map(str::to_owned),
                name,
                arguments: arguments.to_owned(),
            })
        };
        let events = written(
            false,
            vec![
                delta(0, Some("call_1"), ""),
                delta(0, None, "{\"a\":1}"),
                delta(1, Some("call_2"), "{}"),
                end(FinishReason::Stop),
            ],
        );
        let delta = |at: usize| events[at]["choices"][0]["delta"].clone();
        assert_eq!(delta(0), json!({ "role": "assistant", "content": null }));
        assert_eq!(
            delta(1),
            json!({ "tool_calls": [{ "index": 0, "id": "call_1", "type": "function",
                                     "function": { "name": "look_up", "arguments": "" } }] })
        );
        assert_eq!(delta(2), json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{\"a\":1}" } }] }));
        assert_eq!(delta(3)["tool_calls"][0]["index"], 1);
        assert_eq!(events[4]["choices"][0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn thinking_is_no_part_of_the_answer() {
        let events = written(false, vec![ChatEvent::Reasoning("hm".to_owned()), end(FinishReason::Stop)]);
        assert_eq!(events[1]["choices"][0]["delta"], json!({ "reasoning_content": "hm" }));
    }

    #[test]
    fn an_error_is_an_event_of_its_own() {
        let bytes = error(&OpenAiError::lost());
        let text = std::str::from_utf8(&bytes).unwrap();
        let data: Value = serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((&data["error"]["type"], &data["error"]["code"]), (&json!("server_error"), &json!("answer_lost")));
        assert!(text.ends_with("}\n\n"));
    }
}
