//! The events of an answer: a message that starts, blocks of content, what became of it, and its end.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::providers::error::ProviderError;
use crate::providers::stream::{Answer, CallPiece, Step, Wire};
use crate::providers::{FinishReason, Usage};

/// What the events so far have said.
#[derive(Default)]
pub(super) struct Messages {
    usage: Counts,
    /// The block of a tool call that is under way: other blocks of input are the provider's own tools, not ours.
    tool: Option<u64>,
}

impl Wire for Messages {
    fn read(&mut self, _: Option<&str>, data: &str, answer: &mut Answer) -> Result<Step, ProviderError> {
        // The name of an event repeats the type in its data.
        let event: Event = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) => return Err(answer.malformed(&error)),
        };
        match event {
            Event::MessageStart { message } => {
                answer.begin();
                self.count(message.usage, answer);
            }
            Event::ContentBlockStart { index, content_block } => self.start_block(index, content_block, answer)?,
            Event::ContentBlockDelta { index, delta } => match delta {
                Delta::TextDelta { text } => answer.text(text)?,
                Delta::ThinkingDelta { thinking } => answer.reasoning(thinking)?,
                Delta::InputJsonDelta { partial_json } if self.tool == Some(index) => {
                    answer.call(CallPiece { index: Some(index), arguments: partial_json, ..CallPiece::default() })?;
                }
                Delta::InputJsonDelta { .. } | Delta::Other => {}
            },
            Event::MessageDelta { delta, usage } => {
                if let Some(reason) = delta.stop_reason {
                    answer.finish(finish_reason(&reason));
                }
                self.count(usage, answer);
            }
            Event::MessageStop => return Ok(Step::End),
            Event::Error => return Err(answer.refused(data)),
            Event::Ping => return Ok(Step::Alive),
            Event::ContentBlockStop | Event::Other => {}
        }
        Ok(Step::More)
    }

    fn read_whole(&mut self, json: &str, answer: &mut Answer) -> Result<(), ProviderError> {
        let message: Message = match serde_json::from_str(json) {
            Ok(message) => message,
            Err(error) => return Err(answer.malformed(&error)),
        };
        if message.r#type != "message" {
            return Err(answer.refused(json));
        }
        answer.begin();
        for (index, block) in (0..).zip(message.content) {
            self.start_block(index, block, answer)?;
        }
        if let Some(reason) = message.stop_reason {
            answer.finish(finish_reason(&reason));
        }
        self.count(message.usage, answer);
        Ok(())
    }
}

impl Messages {
    fn start_block(&mut self, index: u64, block: Block, answer: &mut Answer) -> Result<(), ProviderError> {
        self.tool = None;
        match block {
            Block::Text { text } => answer.text(text),
            Block::Thinking { thinking } => answer.reasoning(thinking),
            Block::ToolUse { id, name, input } => {
                self.tool = Some(index);
                // Of a streamed answer it is always empty, and comes piece by piece behind it.
                let arguments = if input.is_empty() { String::new() } else { Value::Object(input).to_string() };
                answer.call(CallPiece { index: Some(index), id: Some(id), name: Some(name), arguments })
            }
            Block::Other => Ok(()),
        }
    }

    /// Takes in what was counted. Each count is a running total; what is left out has not changed.
    fn count(&mut self, counts: Option<Counts>, answer: &mut Answer) {
        let Some(counts) = counts else { return };
        let counted = &mut self.usage;
        counted.input_tokens = counts.input_tokens.or(counted.input_tokens);
        counted.output_tokens = counts.output_tokens.or(counted.output_tokens);
        counted.cache_read_input_tokens = counts.cache_read_input_tokens.or(counted.cache_read_input_tokens);
        counted.cache_creation_input_tokens =
            counts.cache_creation_input_tokens.or(counted.cache_creation_input_tokens);
        if let (Some(input), Some(output_tokens)) = (counted.input_tokens, counted.output_tokens) {
            let cached = counted.cache_read_input_tokens.unwrap_or(0);
            answer.usage(Usage {
                // Here the tokens of the cache are not among those of the input.
                input_tokens: input
                    .saturating_add(cached)
                    .saturating_add(counted.cache_creation_input_tokens.unwrap_or(0)),
                output_tokens,
                cached_input_tokens: cached,
                reported: true,
            });
        }
    }
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: u64,
        content_block: Block,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    ContentBlockStop,
    MessageDelta {
        #[serde(default)]
        delta: End,
        #[serde(default)]
        usage: Option<Counts>,
    },
    MessageStop,
    Ping,
    Error,
    /// New kinds may be added at any time, and are to be passed over.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: Option<Counts>,
}

/// A whole message.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    content: Vec<Block>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Map<String, Value>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "these are the words of the interface")]
enum Delta {
    TextDelta {
        text: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Default, Deserialize)]
struct End {
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Counts {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::stream::tests::{Heard, read, usage, whole};

    fn body(events: &[&str]) -> String {
        let name = |data: &str| {
            let value: serde_json::Value = serde_json::from_str(data).unwrap();
            value["type"].as_str().unwrap().to_owned()
        };
        events.iter().map(|data| format!("event: {}\ndata: {data}\n\n", name(data))).collect()
    }

    const START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":3,"cache_read_input_tokens":4,"output_tokens":1,"service_tier":"standard"}}}"#;
    const TEXT: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    const HELLO: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}"#;
    const PING: &str = r#"{"type":"ping"}"#;
    const STOP: &str = r#"{"type":"message_stop"}"#;

    fn end(reason: &str, usage: &str) -> String {
        format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"{reason}","stop_sequence":null}},"usage":{usage}}}"#
        )
    }

    #[tokio::test]
    async fn a_message_as_it_is_published() {
        let first = end("end_turn", r#"{"output_tokens":7}"#);
        let last = end("end_turn", r#"{"input_tokens":null,"output_tokens":15}"#);
        let body = body(&[
            START,
            TEXT,
            PING,
            HELLO,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"something_new","data":[1]}"#,
            &first,
            &last,
            STOP,
        ]);
        let expected = Heard {
            text: "Hello!".to_owned(),
            usage: usage(32, 15, 4),
            end: Some(Ok(FinishReason::Stop)),
            ..Heard::default()
        };
        for size in [1, 7, 64, 100_000] {
            assert_eq!(read(Messages::default(), &body, size).await, expected);
        }
    }

    #[tokio::test]
    async fn thinking_and_tools_as_they_are_published() {
        let last = end("tool_use", r#"{"output_tokens":89}"#);
        let body = body(&[
            START,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me see."}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQB"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"x"}}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"query\":\"x\"}"}}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\"city\": \"Par"}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"is\"}"}}"#,
            r#"{"type":"content_block_stop","index":3}"#,
            r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"toolu_2","name":"now","input":{}}}"#,
            r#"{"type":"content_block_stop","index":4}"#,
            &last,
            STOP,
        ]);
        let heard = read(Messages::default(), &body, 33).await;
        assert_eq!((heard.reasoning.as_str(), heard.text.as_str()), ("Let me see.", ""));
        let call = |id: &str, name: &str, input: &str| (id.to_owned(), name.to_owned(), input.to_owned());
        assert_eq!(heard.calls, [call("toolu_1", "weather", "{\"city\": \"Paris\"}"), call("toolu_2", "now", "{}")]);
        assert_eq!((heard.usage, heard.end), (usage(32, 89, 4), Some(Ok(FinishReason::ToolCalls))));
    }

    #[tokio::test]
    async fn the_end_is_told_honestly() {
        let end_of = async |events: &[&str]| read(Messages::default(), &body(events), 1000).await.end.unwrap();
        let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert_eq!(end_of(&[overloaded]).await, Err("provider_unavailable"));
        assert_eq!(end_of(&[START, overloaded]).await, Err("provider_unavailable"), "nothing was delivered");
        assert_eq!(end_of(&[START, TEXT, HELLO, overloaded]).await, Err("provider_interrupted"));
        let limited = r#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#;
        assert_eq!(end_of(&[START, limited]).await, Err("provider_rate_limited"));
        assert_eq!(end_of(&[START, TEXT, HELLO]).await, Err("provider_interrupted"), "cut");
        assert_eq!(end_of(&[START, PING]).await, Err("provider_unavailable"), "cut");
        let stopped = |reason| end(reason, r#"{"output_tokens":1}"#);
        assert_eq!(end_of(&[START, HELLO, &stopped("max_tokens")]).await, Ok(FinishReason::Length), "without its stop");
        for (reason, expected) in [
            ("stop_sequence", FinishReason::Stop),
            ("model_context_window_exceeded", FinishReason::Length),
            ("refusal", FinishReason::ContentFilter),
            ("pause_turn", FinishReason::Other),
        ] {
            assert_eq!(end_of(&[START, &stopped(reason), STOP]).await, Ok(expected), "{reason}");
        }
        assert_eq!(read(Messages::default(), "data: {\"type\":\n\n", 9).await.end, Some(Err("provider_unavailable")));
    }

    #[test]
    fn a_message_that_is_not_streamed_is_read_too() {
        let json = r#"{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"thinking","thinking":"hm"},
            {"type":"text","text":"hi"},{"type":"tool_use","id":"t","name":"f","input":{"x":1}}],
            "stop_reason":"tool_use","usage":{"input_tokens":2,"output_tokens":3}}"#;
        let heard = whole(Messages::default(), json);
        assert_eq!((heard.text.as_str(), heard.reasoning.as_str()), ("hi", "hm"));
        assert_eq!(heard.calls, [("t".to_owned(), "f".to_owned(), "{\"x\":1}".to_owned())]);
        assert_eq!((heard.usage, heard.end), (usage(2, 3, 0), Some(Ok(FinishReason::ToolCalls))));
        let error = r#"{"type":"error","error":{"type":"not_found_error","message":"model: x"}}"#;
        assert_eq!(whole(Messages::default(), error).end, Some(Err("provider_model_not_found")));
    }
}
