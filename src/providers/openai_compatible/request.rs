//! The body of a call, written straight from the neutral request.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::providers::error::ProviderError;
use crate::providers::quirks::Quirk;
use crate::providers::{
    ChatMessage, ChatRequest, Content, Image, ImageSource, Part, ResponseFormat, Tool, ToolCall, ToolChoice,
};

/// Parameters that are never taken from `extra`: they have a field of their own, or are not the caller's to choose.
const OWN: &[&str] = &[
    "model",
    "messages",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "response_format",
    "n",
];

pub(super) struct WireRequest<'a> {
    request: &'a ChatRequest,
    completion_limit: bool,
    quirk: Quirk,
}

impl<'a> WireRequest<'a> {
    /// # Errors
    /// If the answer would come in a form that is not read.
    pub(super) fn new(request: &'a ChatRequest, completion_limit: bool, quirk: Quirk) -> Result<Self, ProviderError> {
        if ["functions", "function_call"].iter().any(|name| request.extra.contains_key(*name)) {
            return Err(ProviderError::Unsupported("functions are offered as tools".into()));
        }
        let only_text = |modalities: &Value| modalities.as_array().is_some_and(|list| list.iter().all(|m| m == "text"));
        if request.extra.get("modalities").is_some_and(|modalities| !modalities.is_null() && !only_text(modalities)) {
            return Err(ProviderError::Unsupported("answers are text".into()));
        }
        Ok(Self { request, completion_limit: completion_limit != quirk.other_limit, quirk })
    }
}

impl Serialize for WireRequest<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let request = self.request;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model", &request.model)?;
        map.serialize_entry("messages", &Each(&request.messages, WireMessage))?;
        map.serialize_entry("stream", &!request.whole)?;
        if !request.whole {
            map.serialize_entry("stream_options", &StreamOptions { include_usage: true })?;
        }
        if !request.tools.is_empty() {
            map.serialize_entry("tools", &Each(&request.tools, WireTool::new))?;
            // Without tools both are refused.
            if let Some(choice) = &request.tool_choice {
                map.serialize_entry("tool_choice", &WireToolChoice(choice))?;
            }
            entry(&mut map, "parallel_tool_calls", request.parallel_tool_calls.as_ref())?;
        }
        entry(&mut map, "temperature", request.temperature.as_ref().filter(|_| !self.quirk.no_temperature))?;
        entry(&mut map, "top_p", request.top_p.as_ref().filter(|_| !self.quirk.no_top_p))?;
        if self.completion_limit {
            let limit = request.extra.get("max_completion_tokens").and_then(Value::as_u64);
            entry(&mut map, "max_completion_tokens", limit.or(request.max_tokens.map(u64::from)).as_ref())?;
        } else {
            entry(&mut map, "max_tokens", request.max_tokens.as_ref())?;
        }
        if !request.stop.is_empty() {
            map.serialize_entry("stop", &request.stop)?;
        }
        entry(&mut map, "response_format", request.response_format.as_ref().map(WireFormat).as_ref())?;
        for (name, value) in request.extra.iter().filter(|(name, _)| !OWN.contains(&name.as_str())) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn entry<M: SerializeMap, T: Serialize>(map: &mut M, name: &str, value: Option<&T>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, value))
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Writes a list in place rather than collecting a second one.
struct Each<'a, T, F>(&'a [T], F);

impl<'a, T, W: Serialize, F: Fn(&'a T) -> W> Serialize for Each<'a, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            seq.serialize_element(&(self.1)(item))?;
        }
        seq.end()
    }
}

struct WireMessage<'a>(&'a ChatMessage);

impl Serialize for WireMessage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &message.role)?;
        match &message.content {
            // An assistant that only called tools has said nothing.
            Content::Text(text) if text.is_empty() && !message.tool_calls.is_empty() => {
                map.serialize_entry("content", &Value::Null)?;
            }
            Content::Text(text) => map.serialize_entry("content", text)?,
            Content::Parts(parts) => map.serialize_entry("content", &Each(parts, WirePart::new))?,
        }
        entry(&mut map, "name", message.name.as_ref())?;
        if !message.tool_calls.is_empty() {
            map.serialize_entry("tool_calls", &Each(&message.tool_calls, WireCall::new))?;
        }
        entry(&mut map, "tool_call_id", message.tool_call_id.as_ref())?;
        map.end()
    }
}

#[derive(Serialize)]
struct WireCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: WireFunctionCall<'a>,
}

#[derive(Serialize)]
struct WireFunctionCall<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> WireCall<'a> {
    fn new(call: &'a ToolCall) -> Self {
        let function = WireFunctionCall { name: &call.name, arguments: &call.arguments };
        Self { id: &call.id, r#type: "function", function }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WirePart<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: WireImage<'a> },
}

#[derive(Serialize)]
struct WireImage<'a> {
    url: ImageAddress<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl<'a> WirePart<'a> {
    fn new(part: &'a Part) -> Self {
        match part {
            Part::Text(text) => Self::Text { text },
            Part::Image(Image { source, detail }) => {
                Self::ImageUrl { image_url: WireImage { url: ImageAddress(source), detail: detail.as_deref() } }
            }
        }
    }
}

struct ImageAddress<'a>(&'a ImageSource);

impl Serialize for ImageAddress<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ImageSource::Url(url) => serializer.serialize_str(url),
            ImageSource::Data { media_type, base64 } => {
                serializer.collect_str(&format_args!("data:{media_type};base64,{base64}"))
            }
        }
    }
}

#[derive(Serialize)]
struct WireTool<'a> {
    r#type: &'static str,
    function: WireFunction<'a>,
}

#[derive(Serialize)]
struct WireFunction<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl<'a> WireTool<'a> {
    fn new(tool: &'a Tool) -> Self {
        let function = WireFunction {
            name: &tool.name,
            description: tool.description.as_deref(),
            parameters: tool.parameters.as_ref(),
            strict: tool.strict,
        };
        Self { r#type: "function", function }
    }
}

struct WireToolChoice<'a>(&'a ToolChoice);

impl Serialize for WireToolChoice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Function<'a> {
            r#type: &'static str,
            function: Name<'a>,
        }
        #[derive(Serialize)]
        struct Name<'a> {
            name: &'a str,
        }
        match self.0 {
            ToolChoice::Auto => serializer.serialize_str("auto"),
            ToolChoice::None => serializer.serialize_str("none"),
            ToolChoice::Required => serializer.serialize_str("required"),
            ToolChoice::Named(name) => Function { r#type: "function", function: Name { name } }.serialize(serializer),
        }
    }
}

struct WireFormat<'a>(&'a ResponseFormat);

impl Serialize for WireFormat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            ResponseFormat::Text => map.serialize_entry("type", "text")?,
            ResponseFormat::JsonObject => map.serialize_entry("type", "json_object")?,
            ResponseFormat::JsonSchema(schema) => {
                map.serialize_entry("type", "json_schema")?;
                map.serialize_entry("json_schema", schema)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::providers::ChatRole;

    fn body(request: &ChatRequest, completion_limit: bool) -> Value {
        // Through text, as it is sent: `Value` would widen the numbers.
        let text =
            serde_json::to_string(&WireRequest::new(request, completion_limit, Quirk::default()).unwrap()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_plain_request_has_nothing_it_was_not_asked_for() {
        let request = ChatRequest {
            model: "m".to_owned(),
            messages: vec![ChatMessage::text(ChatRole::System, "s\"")],
            temperature: Some(0.7),
            max_tokens: Some(7),
            ..ChatRequest::default()
        };
        let expected = json!({
            "model": "m", "messages": [{"role": "system", "content": "s\""}], "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 0.7, "max_tokens": 7,
        });
        assert_eq!(body(&request, false), expected);
        assert_eq!(body(&request, true)["max_completion_tokens"], 7);
        assert!(body(&request, true).get("max_tokens").is_none());
    }

    #[test]
    fn an_answer_that_nobody_hears_before_its_end_is_not_streamed() {
        let request = ChatRequest { model: "m".to_owned(), whole: true, ..ChatRequest::default() };
        assert_eq!(body(&request, false), json!({ "model": "m", "messages": [], "stream": false }));
    }

    #[test]
    fn everything_is_written_as_openai_documents_it() {
        let image = |source| Part::Image(Image { source, detail: Some("low".to_owned()) });
        let data =
            ImageSource::Data { media_type: "image/png".to_owned(), base64: std::sync::Arc::new("QUJD".to_owned()) };
        let request = ChatRequest {
            model: "m".to_owned(),
            messages: vec![
                ChatMessage {
                    role: ChatRole::User,
                    content: Content::Parts(vec![
                        Part::Text("look".to_owned()),
                        image(ImageSource::Url("https://example.com/a.png".to_owned())),
                        Part::Image(Image { source: data, detail: None }),
                    ]),
                    name: Some("ada".to_owned()),
                    ..ChatMessage::default()
                },
                ChatMessage {
                    role: ChatRole::Assistant,
                    tool_calls: vec![ToolCall {
                        id: "call_1".to_owned(),
                        name: "f".to_owned(),
                        arguments: "{}".to_owned(),
                    }],
                    ..ChatMessage::default()
                },
                ChatMessage { tool_call_id: Some("call_1".to_owned()), ..ChatMessage::text(ChatRole::Tool, "42") },
            ],
            tools: vec![Tool {
                name: "f".to_owned(),
                description: Some("d".to_owned()),
                parameters: Some(json!({"type": "object"})),
                strict: Some(true),
            }],
            tool_choice: Some(ToolChoice::Named("f".to_owned())),
            parallel_tool_calls: Some(false),
            top_p: Some(0.1),
            stop: vec!["END".to_owned()],
            response_format: Some(ResponseFormat::JsonSchema(json!({"name": "n", "schema": {}}))),
            extra: json!({"seed": 7, "model": "other", "stream": false, "n": 3, "max_completion_tokens": 9})
                .as_object()
                .cloned()
                .unwrap(),
            ..ChatRequest::default()
        };
        let expected = json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true},
            "messages": [
                {"role": "user", "name": "ada", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                ]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ]},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            ],
            "tools": [{"type": "function", "function": {
                "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true,
            }}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": false, "top_p": 0.1, "stop": ["END"], "seed": 7,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            "max_completion_tokens": 9,
        });
        assert_eq!(body(&request, true), expected);
        let quirk = Quirk { no_temperature: true, no_top_p: true, other_limit: true };
        let text = serde_json::to_string(&WireRequest::new(&request, true, quirk).unwrap()).unwrap();
        assert!(!text.contains("top_p") && !text.contains("max_completion_tokens"));
        let without_tools = ChatRequest { tools: vec![], ..request };
        assert!(body(&without_tools, false).get("tool_choice").is_none());
        assert!(body(&without_tools, false).get("max_completion_tokens").is_none());
    }

    #[test]
    fn what_would_not_be_read_is_not_asked_for() {
        let refused = |extra: Value| {
            let extra = extra.as_object().cloned().unwrap();
            let request = ChatRequest { extra, ..ChatRequest::default() };
            WireRequest::new(&request, true, Quirk::default()).map(drop).map_err(|error| error.code())
        };
        assert_eq!(refused(json!({"functions": []})), Err("provider_unsupported"));
        assert_eq!(refused(json!({"modalities": ["text", "audio"]})), Err("provider_unsupported"));
        assert_eq!(refused(json!({"modalities": ["text"], "seed": 1})), Ok(()));
    }
}
