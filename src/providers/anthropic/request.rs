//! The body of a call. Instructions stand apart from the conversation, tools' results are said by the user, and turns
//! alternate.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::providers::error::ProviderError;
use crate::providers::quirks::Quirk;
use crate::providers::{
    ChatMessage, ChatRequest, ChatRole, Content, ImageSource, Part, ResponseFormat, Tool, ToolCall, ToolChoice,
};

/// Said by the user where a conversation begins with the assistant, which this interface refuses.
const OPENING: &str = "(The conversation begins.)";
/// The interface wants a limit. This is what the smallest of the models that are still served can write.
const DEFAULT_MAX_TOKENS: u32 = 4096;

#[derive(Serialize)]
pub(super) struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    system: String,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<WireTool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text { text: &'a str },
    Image { source: Source<'a> },
    ToolUse { id: Cow<'a, str>, name: &'a str, input: &'a RawValue },
    ToolResult { tool_use_id: Cow<'a, str>, content: Vec<Block<'a>> },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
    Url { url: &'a str },
}

#[derive(Serialize)]
struct WireTool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: Cow<'a, Value>,
}

#[derive(Serialize)]
struct Choice<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    format: Format<'a>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    schema: &'a Value,
}

/// The body of a call.
///
/// # Errors
/// `Unsupported` or `BadRequest` for what cannot be written in this format.
pub(super) fn body(request: &ChatRequest, quirk: Quirk) -> Result<Body<'_>, ProviderError> {
    let temperature = request.temperature.filter(|_| !quirk.no_temperature);
    let mut system = String::new();
    let mut messages: Vec<Message<'_>> = Vec::with_capacity(request.messages.len());
    for message in &request.messages {
        let role = match message.role {
            ChatRole::System => {
                add_instructions(&mut system, &message.content);
                continue;
            }
            ChatRole::User | ChatRole::Tool => "user",
            ChatRole::Assistant => "assistant",
        };
        let blocks = blocks(message)?;
        match messages.last_mut() {
            // Results of calls that were asked for together have to come together, before anything else is said.
            Some(last) if last.role == role => last.content.extend(blocks),
            _ if blocks.is_empty() => {}
            _ => messages.push(Message { role, content: blocks }),
        }
    }
    if messages.first().is_some_and(|first| first.role == "assistant") {
        messages.insert(0, Message { role: "user", content: vec![Block::Text { text: OPENING }] });
    }
    Ok(Body {
        model: &request.model,
        max_tokens: request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
        stream: true,
        system,
        messages,
        // The scale ends at one here, and at two for most others.
        temperature: temperature.map(|temperature| temperature.min(1.0)),
        // Both together are refused.
        top_p: request.top_p.filter(|_| temperature.is_none() && !quirk.no_top_p),
        stop_sequences: &request.stop,
        tools: request.tools.iter().map(WireTool::new).collect(),
        tool_choice: choice(request),
        output_config: format(request.response_format.as_ref())?,
    })
}

fn add_instructions(system: &mut String, content: &Content) {
    for text in content.texts().filter(|text| !text.trim().is_empty()) {
        if !system.is_empty() {
            system.push_str("\n\n");
        }
        system.push_str(text);
    }
}

fn blocks(message: &ChatMessage) -> Result<Vec<Block<'_>>, ProviderError> {
    if message.role == ChatRole::Tool {
        let id = message.tool_call_id.as_deref();
        let id = id.ok_or_else(|| ProviderError::BadRequest("a tool's result does not say of which call".into()))?;
        return Ok(vec![Block::ToolResult { tool_use_id: tool_id(id), content: said(&message.content) }]);
    }
    let mut blocks = said(&message.content);
    for call in &message.tool_calls {
        blocks.push(tool_use(call)?);
    }
    Ok(blocks)
}

/// Text and images. Blocks of white space alone are refused, so that they are left out.
fn said(content: &Content) -> Vec<Block<'_>> {
    let text = |text| (!str::trim(text).is_empty()).then_some(Block::Text { text });
    match content {
        Content::Text(said) => text(said).into_iter().collect(),
        Content::Parts(parts) => parts
            .iter()
            .filter_map(|part| match part {
                Part::Text(said) => text(said),
                Part::Image(image) => Some(Block::Image { source: source(&image.source) }),
            })
            .collect(),
    }
}

fn source(source: &ImageSource) -> Source<'_> {
    match (source.data(), source) {
        (Some((media_type, data)), _) => Source::Base64 { media_type, data },
        (None, ImageSource::Url(url)) => Source::Url { url },
        (None, ImageSource::Data { media_type, base64 }) => Source::Base64 { media_type, data: base64 },
    }
}

fn tool_use(call: &ToolCall) -> Result<Block<'_>, ProviderError> {
    let arguments = call.arguments.trim();
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    let input: &RawValue = serde_json::from_str(arguments)
        .map_err(|_| ProviderError::BadRequest("the arguments of a tool call are not JSON".into()))?;
    if !input.get().starts_with('{') {
        return Err(ProviderError::BadRequest("the arguments of a tool call are not an object".into()));
    }
    Ok(Block::ToolUse { id: tool_id(&call.id), name: &call.name, input })
}

/// The id as this provider accepts it: other providers made it, and some use more characters. Calls and their results
/// are changed alike.
fn tool_id(id: &str) -> Cow<'_, str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if id.chars().all(fits) {
        return Cow::Borrowed(id);
    }
    Cow::Owned(id.chars().map(|c| if fits(c) { c } else { '_' }).collect())
}

impl<'a> WireTool<'a> {
    fn new(tool: &'a Tool) -> Self {
        let no_arguments = || Cow::Owned(serde_json::json!({"type": "object", "properties": {}}));
        Self {
            name: &tool.name,
            description: tool.description.as_deref(),
            input_schema: tool.parameters.as_ref().map_or_else(no_arguments, Cow::Borrowed),
        }
    }
}

fn choice(request: &ChatRequest) -> Option<Choice<'_>> {
    if request.tools.is_empty() {
        return None;
    }
    let one_at_a_time = request.parallel_tool_calls.map(|parallel| !parallel).filter(|one| *one);
    let choice = |r#type, name| Choice { r#type, name, disable_parallel_tool_use: one_at_a_time };
    match &request.tool_choice {
        Some(ToolChoice::None) => Some(Choice { r#type: "none", name: None, disable_parallel_tool_use: None }),
        Some(ToolChoice::Required) => Some(choice("any", None)),
        Some(ToolChoice::Named(name)) => Some(choice("tool", Some(name.as_str()))),
        Some(ToolChoice::Auto) => Some(choice("auto", None)),
        None => one_at_a_time.map(|_| choice("auto", None)),
    }
}

fn format(format: Option<&ResponseFormat>) -> Result<Option<OutputConfig<'_>>, ProviderError> {
    match format {
        None | Some(ResponseFormat::Text) => Ok(None),
        Some(ResponseFormat::JsonObject) => {
            Err(ProviderError::Unsupported("a JSON object needs a schema with this provider".into()))
        }
        Some(ResponseFormat::JsonSchema(json_schema)) => {
            let schema = json_schema.get("schema");
            let schema = schema.ok_or_else(|| ProviderError::BadRequest("the response format has no schema".into()))?;
            Ok(Some(OutputConfig { format: Format { r#type: "json_schema", schema } }))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::providers::Image;

    fn written(request: &ChatRequest) -> Value {
        let text = serde_json::to_string(&body(request, Quirk::default()).unwrap_or_else(|error| panic!("{error:?}")))
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn refused(request: &ChatRequest) -> &'static str {
        body(request, Quirk::default()).map(drop).unwrap_err().code()
    }

    fn calls(arguments: &str) -> ChatMessage {
        let call = |id: &str| ToolCall { id: id.to_owned(), name: "f".to_owned(), arguments: arguments.to_owned() };
        ChatMessage { tool_calls: vec![call("a:0"), call("b")], ..ChatMessage::text(ChatRole::Assistant, " ") }
    }

    fn result(id: &str, text: &str) -> ChatMessage {
        ChatMessage { tool_call_id: Some(id.to_owned()), ..ChatMessage::text(ChatRole::Tool, text) }
    }

    #[test]
    fn a_plain_request() {
        let request = ChatRequest {
            model: "claude".to_owned(),
            messages: vec![
                ChatMessage::text(ChatRole::System, "be brief"),
                ChatMessage::text(ChatRole::User, "hi"),
                ChatMessage::text(ChatRole::System, "and kind"),
                ChatMessage::text(ChatRole::Assistant, ""),
                ChatMessage::text(ChatRole::User, "hello?"),
            ],
            temperature: Some(1.6),
            top_p: Some(0.5),
            ..ChatRequest::default()
        };
        let expected = json!({
            "model": "claude", "max_tokens": 4096, "stream": true, "system": "be brief\n\nand kind",
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "hi"}, {"type": "text", "text": "hello?"},
            ]}],
            "temperature": 1.0,
        });
        assert_eq!(written(&request), expected);
        let top_p = ChatRequest { temperature: None, max_tokens: Some(9), ..request };
        assert_eq!((&written(&top_p)["top_p"], &written(&top_p)["max_tokens"]), (&json!(0.5), &json!(9)));
    }

    #[test]
    fn tools_and_their_results_are_blocks() {
        let image = |source| Part::Image(Image { source, detail: None });
        let request = ChatRequest {
            messages: vec![
                ChatMessage {
                    role: ChatRole::User,
                    content: Content::Parts(vec![
                        Part::Text("look".to_owned()),
                        image(ImageSource::Url("https://example.com/a.png".to_owned())),
                        image(ImageSource::Url("data:image/png;base64,QUJD".to_owned())),
                        image(ImageSource::Data {
                            media_type: "image/gif".to_owned(),
                            base64: std::sync::Arc::new("QQ".to_owned()),
                        }),
                    ]),
                    ..ChatMessage::default()
                },
                calls("{\"x\": 1}"),
                result("a:0", "1"),
                result("b", ""),
                ChatMessage::text(ChatRole::User, "go on"),
            ],
            tools: vec![
                Tool {
                    name: "f".to_owned(),
                    description: Some("d".to_owned()),
                    parameters: Some(json!({"type": "object", "required": ["x"]})),
                    strict: Some(true),
                },
                Tool { name: "g".to_owned(), description: None, parameters: None, strict: None },
            ],
            parallel_tool_calls: Some(false),
            stop: vec!["END".to_owned()],
            response_format: Some(ResponseFormat::JsonSchema(json!({"name": "n", "schema": {"type": "object"}}))),
            ..ChatRequest::default()
        };
        let written = written(&request);
        let tool_use = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {"x": 1}});
        let expected = json!([
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "QQ"}},
            ]},
            {"role": "assistant", "content": [tool_use("a_0"), tool_use("b")]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a_0", "content": [{"type": "text", "text": "1"}]},
                {"type": "tool_result", "tool_use_id": "b", "content": []},
                {"type": "text", "text": "go on"},
            ]},
        ]);
        assert_eq!(written["messages"], expected);
        let tools = json!([
            {"name": "f", "description": "d", "input_schema": {"type": "object", "required": ["x"]}},
            {"name": "g", "input_schema": {"type": "object", "properties": {}}},
        ]);
        assert_eq!(written["tools"], tools);
        assert_eq!(written["tool_choice"], json!({"type": "auto", "disable_parallel_tool_use": true}));
        assert_eq!(written["stop_sequences"], json!(["END"]));
        let format = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
        assert_eq!(written["output_config"], format);
    }

    #[test]
    fn every_choice_of_tools_has_its_word() {
        let tool = Tool { name: "f".to_owned(), description: None, parameters: None, strict: None };
        let chosen = |tool_choice: Option<ToolChoice>| {
            written(&ChatRequest { tools: vec![tool.clone()], tool_choice, ..ChatRequest::default() })["tool_choice"]
                .clone()
        };
        assert_eq!(chosen(None), Value::Null);
        assert_eq!(chosen(Some(ToolChoice::Auto)), json!({"type": "auto"}));
        assert_eq!(chosen(Some(ToolChoice::None)), json!({"type": "none"}));
        assert_eq!(chosen(Some(ToolChoice::Required)), json!({"type": "any"}));
        assert_eq!(chosen(Some(ToolChoice::Named("f".to_owned()))), json!({"type": "tool", "name": "f"}));
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let with = |message| ChatRequest { messages: vec![message], ..ChatRequest::default() };
        assert_eq!(refused(&with(calls("[1]"))), "provider_bad_request");
        assert_eq!(refused(&with(calls("{\"x\":"))), "provider_bad_request");
        assert_eq!(refused(&with(ChatMessage::text(ChatRole::Tool, "42"))), "provider_bad_request");
        let format = |format| ChatRequest { response_format: Some(format), ..ChatRequest::default() };
        assert_eq!(refused(&format(ResponseFormat::JsonObject)), "provider_unsupported");
        assert_eq!(refused(&format(ResponseFormat::JsonSchema(json!({})))), "provider_bad_request");
        assert!(body(&format(ResponseFormat::Text), Quirk::default()).is_ok());
        assert_eq!(written(&with(calls("")))["messages"][1]["content"][0]["input"], json!({}));
    }

    #[test]
    fn the_user_begins() {
        let greeting = ChatMessage::text(ChatRole::Assistant, "Welcome!");
        let messages = vec![greeting, ChatMessage::text(ChatRole::User, "hi")];
        let written = written(&ChatRequest { messages, ..ChatRequest::default() });
        let roles: Vec<_> =
            written["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(written["messages"][0]["content"][0]["text"], OPENING);
    }
}
