//! The chunks of an answer, or the whole of one that is not streamed.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::providers::error::ProviderError;
use crate::providers::stream::{Answer, CallPiece, Step, Wire};
use crate::providers::{FinishReason, Usage};

/// Chat completion chunks, ended by `[DONE]`.
pub(super) struct ChatCompletion;

impl Wire for ChatCompletion {
    fn read(&mut self, event: Option<&str>, data: &str, answer: &mut Answer) -> Result<Step, ProviderError> {
        if data.trim() == "[DONE]" {
            return Ok(Step::End);
        }
        if event == Some("error") {
            return Err(answer.refused(data));
        }
        read_chunk(data, answer)?;
        Ok(Step::More)
    }

    fn read_whole(&mut self, json: &str, answer: &mut Answer) -> Result<(), ProviderError> {
        read_chunk(json, answer)
    }
}

fn read_chunk(json: &str, answer: &mut Answer) -> Result<(), ProviderError> {
    let chunk: Chunk<'_> = serde_json::from_str(json).map_err(|error| answer.malformed(&error))?;
    if chunk.error.is_some() || chunk.object.is_some_and(|object| object.get() == "\"error\"") {
        return Err(answer.refused(json));
    }
    let usage = chunk.usage.or(chunk.x_groq.and_then(|groq| groq.usage));
    if let Some(usage) = usage.and_then(WireUsage::whole) {
        answer.usage(usage);
    }
    let Some(choice) = chunk.choices else { return Ok(()) };
    answer.begin();
    if let Some(delta) = choice.delta {
        if let Some(text) = delta.reasoning_content.filter(|text| !text.is_empty()).or(delta.reasoning) {
            answer.reasoning(text)?;
        }
        if let Some(Text { text, reasoning }) = delta.content {
            answer.reasoning(reasoning)?;
            answer.text(text)?;
        }
        // What a model says instead of an answer that it refuses to give.
        if let Some(text) = delta.refusal {
            answer.text(text)?;
        }
        for call in delta.tool_calls.into_iter().flatten() {
            answer.call(call.into())?;
        }
    }
    match choice.finish_reason.as_deref() {
        None | Some("") => {}
        Some("error") => return Err(answer.refused(json)),
        Some(word) => answer.finish(finish_reason(word)),
    }
    Ok(())
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "stop" | "eos" | "eos_token" => FinishReason::Stop,
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "content_filter" => FinishReason::ContentFilter,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        _ => FinishReason::Other,
    }
}

/// A chunk of a streamed answer, or the whole of another. Text is read straight into the `String` that is handed
/// on: borrowing it first would only copy it a second time. What is not named here is skipped unread.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    object: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "first_choice")]
    choices: Option<Choice>,
    #[serde(default)]
    usage: Option<WireUsage>,
    /// Where Groq puts it.
    #[serde(default)]
    x_groq: Option<Groq>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Groq {
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default, deserialize_with = "content")]
    content: Option<Text>,
    /// Of DeepSeek, vLLM and llama.cpp.
    #[serde(default)]
    reasoning_content: Option<String>,
    /// Of OpenRouter, Ollama and newer vLLM. Some servers send both, with the same text.
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<WireCall>>,
}

/// The text of a content, and the thinking that Mistral puts there too.
#[derive(Default)]
struct Text {
    text: String,
    reasoning: String,
}

#[derive(Deserialize)]
struct WireCall {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, deserialize_with = "arguments")]
    arguments: String,
}

impl From<WireCall> for CallPiece {
    fn from(call: WireCall) -> Self {
        let (name, arguments) = call.function.map(|function| (function.name, function.arguments)).unwrap_or_default();
        Self { index: call.index, id: call.id, name, arguments }
    }
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokens>,
    /// Where DeepSeek puts them.
    #[serde(default)]
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct PromptTokens {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl WireUsage {
    /// Half a count is no count. An explicit zero is one.
    fn whole(self) -> Option<Usage> {
        let (input_tokens, output_tokens) = (self.prompt_tokens?, self.completion_tokens?);
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let cached_input_tokens = cached.or(self.prompt_cache_hit_tokens).unwrap_or(0);
        Some(Usage { input_tokens, output_tokens, cached_input_tokens, reported: true })
    }
}

/// Reads only the first of the choices, without a list around it: no more than one is ever asked for.
fn first_choice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Choice>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<Choice>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of choices")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let first = seq.next_element()?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_any(First)
}

/// Reads a text, or the parts that one is made of.
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text>, D::Error> {
    struct Content;

    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        thinking: Vec<Thought>,
    }

    #[derive(Deserialize)]
    struct Thought {
        #[serde(default)]
        text: Option<String>,
    }

    impl<'de> Visitor<'de> for Content {
        type Value = Option<Text>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or its parts")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(Text { text: text.to_owned(), reasoning: String::new() }))
        }

        fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
            Ok(Some(Text { text, reasoning: String::new() }))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut whole = Text::default();
            while let Some(Part { text, thinking }) = seq.next_element()? {
                whole.text.push_str(&text.unwrap_or_default());
                whole.reasoning.extend(thinking.into_iter().filter_map(|thought| thought.text));
            }
            Ok(Some(whole))
        }
    }

    deserializer.deserialize_any(Content)
}

/// Arguments are JSON in a string. Some servers leave out the string.
fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let raw = Option::<&RawValue>::deserialize(deserializer)?.map_or("", RawValue::get);
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw).map_err(serde::de::Error::custom),
        Some(b'{' | b'[') => Ok(raw.to_owned()),
        _ => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::stream::tests::{Heard, read, usage, whole};

    const TEXT: &str =
        "data: {\"choices\":[{\"delta\":{\"content\":\"h\u{e9}\\n\"},\"finish_reason\":null}],\"usage\":null}\n\n";
    const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":0}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn data(chunks: &[&str]) -> String {
        chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
    }

    fn delta(delta: &str) -> String {
        format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#)
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.to_owned(), name.to_owned(), arguments.to_owned())
    }

    #[tokio::test]
    async fn an_answer_reads_the_same_however_it_is_split() {
        let body = format!(": beat\n\n{TEXT}{TEXT}{STOP}{USAGE}{DONE}");
        let text = "h\u{e9}\nh\u{e9}\n".to_owned();
        let expected = Heard { text, usage: usage(3, 0, 0), end: Some(Ok(FinishReason::Stop)), ..Heard::default() };
        for size in 1..=body.len() {
            assert_eq!(read(ChatCompletion, &body, size).await, expected);
        }
        assert_eq!(read(ChatCompletion, &body.replace('\n', "\r\n"), 7).await.end, expected.end);
    }

    #[tokio::test]
    async fn the_end_is_told_honestly() {
        let end = async |body: &str| read(ChatCompletion, body, 1000).await.end.unwrap();
        assert_eq!(end(&format!("{TEXT}{STOP}")).await, Ok(FinishReason::Stop), "no [DONE]");
        assert_eq!(end(&format!("{TEXT}{DONE}")).await, Ok(FinishReason::Unsaid), "no reason");
        for (word, reason) in [
            ("eos_token", FinishReason::Stop),
            ("model_length", FinishReason::Length),
            ("insufficient_system_resource", FinishReason::Other),
        ] {
            let chunk = format!(r#"{{"choices":[{{"finish_reason":"{word}"}}]}}"#);
            assert_eq!(end(&format!("{TEXT}{}", data(&[&chunk]))).await, Ok(reason), "{word}");
        }
        assert_eq!(end(DONE).await, Err("provider_unavailable"));
        assert_eq!(end(TEXT).await, Err("provider_interrupted"));
        assert_eq!(end("").await, Err("provider_unavailable"));
        assert_eq!(end(&format!("{TEXT}data: {{\"cho\n\n")).await, Err("provider_interrupted"));
        assert_eq!(end("data: <html>\n\n").await, Err("provider_unavailable"));
        let error = "data: {\"error\":{\"message\":\"m\",\"code\":429}}\n\n";
        assert_eq!(end(error).await, Err("provider_rate_limited"));
        assert_eq!(end(&format!("{TEXT}{error}")).await, Err("provider_interrupted"));
        assert_eq!(end("event: error\ndata: {\"type\":\"server_error\"}\n\n").await, Err("provider_unavailable"));
        let bare = r#"{"object":"error","message":"m","type":"NotFoundError","code":404}"#;
        assert_eq!(end(&data(&[bare])).await, Err("provider_model_not_found"));
        assert_eq!(end(&data(&[r#"{"choices":[{"finish_reason":"error"}]}"#])).await, Err("provider_unavailable"));
        let thought = delta(r#"{"reasoning_content":"hm"}"#);
        assert_eq!(end(&data(&[&thought])).await, Err("provider_interrupted"), "thinking was delivered");
    }

    #[tokio::test]
    async fn odd_chunks_are_read() {
        let odd = data(&[
            r#"{"choices":null,"prompt_filter_results":[]}"#,
            r#"{"choices":[{"delta":null,"finish_reason":""}],"error":null}"#,
            r#"{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
            r#"{"choices":[{"finish_reason":"max_tokens"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            r#"{"usage":{"prompt_tokens":9}}"#,
            "[DONE] ",
        ]);
        let heard = read(ChatCompletion, &odd, 50).await;
        assert_eq!((heard.text.as_str(), heard.usage), ("a", usage(1, 2, 0)));
        assert_eq!(heard.end, Some(Ok(FinishReason::Length)));
    }

    #[tokio::test]
    async fn every_form_of_usage_is_read() {
        for (form, expected) in [
            (r#"{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}"#, 4),
            (r#"{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_cache_hit_tokens":3}}"#, 3),
            (r#"{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":99}}}"#, 9),
            (r#"{"x_groq":{"id":"r","usage":{"prompt_tokens":9,"completion_tokens":2}}}"#, 0),
        ] {
            let heard = read(ChatCompletion, &format!("{TEXT}{STOP}{}{DONE}", data(&[form])), 64).await;
            assert_eq!(heard.usage, usage(9, 2, expected), "{form}");
        }
        assert_eq!(read(ChatCompletion, &format!("{TEXT}{STOP}{DONE}"), 64).await.usage, None);
    }

    #[tokio::test]
    async fn reasoning_is_apart_from_the_answer() {
        let body = data(&[
            &delta(r#"{"role":"assistant","content":null,"reasoning_content":"one "}"#),
            &delta(r#"{"reasoning":"two ","reasoning_content":"two "}"#),
            &delta(r#"{"content":"","reasoning":"three"}"#),
            &delta(r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":" four"}]}]}"#),
            &delta(r#"{"content":[{"type":"text","text":"the "}]}"#),
            &delta(r#"{"content":"answer"}"#),
        ]);
        let heard = read(ChatCompletion, &format!("{body}{STOP}{DONE}"), 64).await;
        assert_eq!((heard.reasoning.as_str(), heard.text.as_str()), ("one two three four", "the answer"));
        let refused = data(&[&delta(r#"{"refusal":"I cannot help with that."}"#)]);
        assert_eq!(read(ChatCompletion, &format!("{refused}{STOP}"), 64).await.text, "I cannot help with that.");
    }

    #[tokio::test]
    async fn tool_calls_are_told_however_they_come() {
        let body = data(&[
            &delta(r#"{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}"#),
            &delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":"}}]}"#),
            &delta(
                r#"{"tool_calls":[{"index":0,"id":null,"function":{"name":null,"arguments":"1}"}},{"index":0,"id":"b","function":{"name":"g","arguments":{"y":[2]}}}]}"#,
            ),
            &delta(r#"{"tool_calls":[{"id":"c","function":{"name":"h"}}]}"#),
        ]);
        let expected = [call("a", "f", "{\"x\":1}"), call("b", "g", "{\"y\":[2]}"), call("c", "h", "{}")];
        for end in [STOP, "data: {\"choices\":[{\"finish_reason\":\"tool_calls\"}]}\n\n"] {
            let heard = read(ChatCompletion, &format!("{body}{end}{DONE}"), 9).await;
            assert_eq!((heard.calls.as_slice(), heard.end), (&expected[..], Some(Ok(FinishReason::ToolCalls))));
        }
        let nameless = data(&[&delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}"#)]);
        assert_eq!(read(ChatCompletion, &format!("{nameless}{STOP}"), 99).await.end, Some(Err("provider_unavailable")));
    }

    #[test]
    fn an_answer_that_is_not_streamed_is_read_too() {
        let json = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi",
            "reasoning_content":"hm","refusal":null,"tool_calls":[
            {"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
            {"id":"b","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}],
            "usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
        let heard = whole(ChatCompletion, json);
        assert_eq!((heard.text.as_str(), heard.reasoning.as_str()), ("hi", "hm"));
        assert_eq!(heard.calls, [call("a", "f", "{\"x\":1}"), call("b", "f", "{}")]);
        assert_eq!((heard.usage, heard.end), (usage(1, 2, 0), Some(Ok(FinishReason::ToolCalls))));
        assert_eq!(
            whole(ChatCompletion, r#"{"error":{"code":"model_not_found"}}"#).end,
            Some(Err("provider_model_not_found"))
        );
    }

    /// Read byte by byte a long line must not cost its length squared.
    #[tokio::test]
    async fn long_arguments_are_read_once() {
        let piece = delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"aaaaaaaaaaaaaaaa"}}]}"#);
        let first = delta(r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":\""}}]}"#);
        let body = format!("{}{}{STOP}", data(&[&first]), data(&[&piece]).repeat(100_000));
        let start = std::time::Instant::now();
        let heard = read(ChatCompletion, &body, 16 * 1024).await;
        assert_eq!(heard.calls[0].2.len(), 6 + 1_600_000);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
