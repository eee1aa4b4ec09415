//! The events of an answer, each a `GenerateContentResponse` with what is new, and running totals.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::providers::error::ProviderError;
use crate::providers::stream::{Answer, CallPiece, Step, Wire};
use crate::providers::{FinishReason, Usage};

/// What the events so far have said.
#[derive(Default)]
pub(in crate::providers) struct GenerateContent {
    /// Calls come whole, one a part, and many without an id: only their order tells them apart.
    calls: u64,
}

impl Wire for GenerateContent {
    fn read(&mut self, _: Option<&str>, data: &str, answer: &mut Answer) -> Result<Step, ProviderError> {
        let chunk: Chunk<'_> = serde_json::from_str(data).map_err(|error| answer.malformed(&error))?;
        if chunk.error.is_some() {
            return Err(answer.refused(data));
        }
        self.take_in(chunk, answer)?;
        Ok(Step::More)
    }

    /// Without `alt=sse`, which some servers in between drop, the events come as a list.
    fn read_whole(&mut self, json: &str, answer: &mut Answer) -> Result<(), ProviderError> {
        if !json.trim_start().starts_with('[') {
            return self.read(None, json, answer).map(|_| ());
        }
        let chunks: Vec<&RawValue> = serde_json::from_str(json).map_err(|error| answer.malformed(&error))?;
        chunks.into_iter().try_for_each(|chunk| self.read(None, chunk.get(), answer).map(|_| ()))
    }
}

impl GenerateContent {
    fn take_in(&mut self, chunk: Chunk<'_>, answer: &mut Answer) -> Result<(), ProviderError> {
        if let Some(usage) = chunk.usage_metadata.and_then(Counts::whole) {
            answer.usage(usage);
        }
        if chunk.prompt_feedback.and_then(|feedback| feedback.block_reason).is_some() {
            // The filter refused the question: there will be no candidate.
            answer.begin();
            answer.finish(FinishReason::ContentFilter);
        }
        let Some(candidate) = chunk.candidates.into_iter().flatten().next() else { return Ok(()) };
        answer.begin();
        let parts = candidate.content.and_then(|content| content.parts);
        for part in parts.into_iter().flatten() {
            if let Some(text) = part.text {
                if part.thought { answer.reasoning(text)? } else { answer.text(text)? }
            }
            if let Some(call) = part.function_call {
                self.calls += 1;
                answer.call(CallPiece {
                    index: Some(self.calls),
                    id: call.id,
                    name: Some(call.name),
                    arguments: call.args.map_or("", RawValue::get).to_owned(),
                })?;
            }
        }
        match candidate.finish_reason.as_deref() {
            None | Some("" | "FINISH_REASON_UNSPECIFIED") => Ok(()),
            // The model did not answer; it got lost on the way.
            Some("MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "TOO_MANY_TOOL_CALLS" | "MALFORMED_RESPONSE") => {
                Err(answer.broken("the model's tool call was not valid"))
            }
            Some(word) => {
                answer.finish(finish_reason(word));
                Ok(())
            }
        }
    }
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "STOP" => FinishReason::Stop,
        "MAX_TOKENS" => FinishReason::Length,
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<'a> {
    #[serde(default, borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(default)]
    prompt_feedback: Option<Feedback>,
    #[serde(default)]
    usage_metadata: Option<Counts>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(default, borrow)]
    content: Option<Content<'a>>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(default, borrow)]
    parts: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    thought: bool,
    #[serde(default, borrow)]
    function_call: Option<Call<'a>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(default)]
    id: Option<String>,
    name: String,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback {
    #[serde(default)]
    block_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    #[serde(default)]
    prompt_token_count: Option<u64>,
    #[serde(default)]
    candidates_token_count: Option<u64>,
    /// Thinking is billed as output, and is not among the candidates' tokens.
    #[serde(default)]
    thoughts_token_count: Option<u64>,
    /// What the provider's own tools found is billed as input, and is not among the prompt's tokens.
    #[serde(default)]
    tool_use_prompt_token_count: Option<u64>,
    /// Among the prompt's tokens.
    #[serde(default)]
    cached_content_token_count: Option<u64>,
}

impl Counts {
    /// What is zero is left out. Without the prompt's tokens nothing was counted.
    fn whole(self) -> Option<Usage> {
        Some(Usage {
            input_tokens: self.prompt_token_count?.saturating_add(self.tool_use_prompt_token_count.unwrap_or(0)),
            output_tokens: self
                .candidates_token_count
                .unwrap_or(0)
                .saturating_add(self.thoughts_token_count.unwrap_or(0)),
            cached_input_tokens: self.cached_content_token_count.unwrap_or(0),
            reported: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::stream::tests::{Heard, read, usage, whole};

    fn body(chunks: &[&str]) -> String {
        chunks.iter().map(|chunk| format!("data: {chunk}\r\n\r\n")).collect()
    }

    const HELLO: &str = r#"{"candidates":[{"content":{"parts":[{"text":"Hello"}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":8,"totalTokenCount":8},"modelVersion":"gemini-2.5-flash","responseId":"r"}"#;
    const END: &str = r#"{"candidates":[{"content":{"parts":[{"text":" there"}],"role":"model"},"finishReason":"STOP","index":0,"safetyRatings":[{"category":"HARM_CATEGORY_HARASSMENT","probability":"NEGLIGIBLE"}]}],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":5,"thoughtsTokenCount":21,"cachedContentTokenCount":3,"toolUsePromptTokenCount":2,"totalTokenCount":36}}"#;

    fn ended(reason: &str) -> String {
        format!(
            r#"{{"candidates":[{{"finishReason":"{reason}","index":0}}],"usageMetadata":{{"promptTokenCount":8}}}}"#
        )
    }

    #[tokio::test]
    async fn an_answer_as_it_is_published() {
        let thought = r#"{"candidates":[{"content":{"parts":[{"text":"Hm.","thought":true},{"text":"","thoughtSignature":"CpQ="}],"role":"model"}}]}"#;
        let body = body(&[thought, HELLO, END]);
        let expected = Heard {
            text: "Hello there".to_owned(),
            reasoning: "Hm.".to_owned(),
            usage: usage(10, 26, 3),
            end: Some(Ok(FinishReason::Stop)),
            ..Heard::default()
        };
        for size in [1, 13, 100_000] {
            assert_eq!(read(GenerateContent::default(), &body, size).await, expected);
        }
    }

    #[tokio::test]
    async fn function_calls_as_they_are_published() {
        let two = r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"weather","args":{"city":"Paris"}},"thoughtSignature":"CpQ="},{"functionCall":{"name":"weather","args":{"city":"Rome"}}}],"role":"model"},"index":0}]}"#;
        let third = r#"{"candidates":[{"content":{"parts":[{"functionCall":{"id":"fc_1","name":"now"}}],"role":"model"},"finishReason":"STOP"}]}"#;
        let heard = read(GenerateContent::default(), &body(&[two, third]), 50).await;
        let told: Vec<_> = heard.calls.iter().map(|(_, name, args)| (name.as_str(), args.as_str())).collect();
        assert_eq!(told, [("weather", r#"{"city":"Paris"}"#), ("weather", r#"{"city":"Rome"}"#), ("now", "{}")]);
        assert!(heard.calls[0].0.starts_with("call_") && heard.calls[0].0 != heard.calls[1].0);
        assert_eq!((heard.calls[2].0.as_str(), heard.end), ("fc_1", Some(Ok(FinishReason::ToolCalls))));
    }

    #[tokio::test]
    async fn the_end_is_told_honestly() {
        let end_of = async |chunks: &[&str]| read(GenerateContent::default(), &body(chunks), 1000).await.end.unwrap();
        for (reason, expected) in [
            ("STOP", FinishReason::Stop),
            ("MAX_TOKENS", FinishReason::Length),
            ("SAFETY", FinishReason::ContentFilter),
            ("PROHIBITED_CONTENT", FinishReason::ContentFilter),
            ("LANGUAGE", FinishReason::Other),
        ] {
            assert_eq!(end_of(&[HELLO, &ended(reason)]).await, Ok(expected), "{reason}");
        }
        let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4}}"#;
        let heard = read(GenerateContent::default(), &body(&[blocked]), 1000).await;
        assert_eq!((heard.usage, heard.end), (usage(4, 0, 0), Some(Ok(FinishReason::ContentFilter))));
        assert_eq!(end_of(&[&ended("MALFORMED_FUNCTION_CALL")]).await, Err("provider_unavailable"));
        assert_eq!(end_of(&[HELLO, &ended("MALFORMED_FUNCTION_CALL")]).await, Err("provider_interrupted"));
        assert_eq!(end_of(&[HELLO]).await, Err("provider_interrupted"), "cut");
        assert_eq!(end_of(&[]).await, Err("provider_unavailable"));
        let error = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
        assert_eq!(end_of(&[error]).await, Err("provider_unavailable"));
        assert_eq!(end_of(&[HELLO, error]).await, Err("provider_interrupted"));
        let limited = r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}"#;
        assert_eq!(end_of(&[limited]).await, Err("provider_rate_limited"));
    }

    #[test]
    fn an_answer_that_is_not_streamed_is_read_too() {
        for json in [format!("[{HELLO},\n{END}]"), format!(" [{END}]"), END.to_owned()] {
            let heard = whole(GenerateContent::default(), &json);
            assert!(heard.text.ends_with(" there"));
            assert_eq!((heard.usage, heard.end), (usage(10, 26, 3), Some(Ok(FinishReason::Stop))));
        }
        let error = r#"[{"error":{"code":404,"status":"NOT_FOUND"}}]"#;
        assert_eq!(whole(GenerateContent::default(), error).end, Some(Err("provider_model_not_found")));
    }
}
