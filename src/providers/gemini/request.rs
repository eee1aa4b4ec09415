//! The body of a call. Instructions stand apart from the conversation, tools' results name their function, and turns
//! alternate.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::providers::error::ProviderError;
use crate::providers::{ChatMessage, ChatRequest, ChatRole, Content, ImageSource, Part, ResponseFormat, ToolChoice};

/// Newer models refuse a function call without the signature of the thoughts that led to it. These are lost where a
/// call was made by another provider or came back from a client; this word, which Google documents for that case, is
/// taken in their place.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::providers) struct Body<'a> {
    contents: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<Instruction<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<[Functions<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_config: Option<ToolConfig<'a>>,
    generation_config: GenerationConfig<'a>,
}

#[derive(Serialize)]
struct Instruction<'a> {
    parts: Vec<WirePart<'a>>,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: &'static str,
    parts: Vec<WirePart<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WirePart<'a> {
    Text {
        text: &'a str,
    },
    #[serde(rename_all = "camelCase")]
    InlineData {
        inline_data: Blob<'a>,
    },
    #[serde(rename_all = "camelCase")]
    FileData {
        file_data: File<'a>,
    },
    #[serde(rename_all = "camelCase")]
    FunctionCall {
        function_call: Call<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        thought_signature: Option<&'static str>,
    },
    #[serde(rename_all = "camelCase")]
    FunctionResponse {
        function_response: Response<'a>,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blob<'a> {
    mime_type: &'a str,
    data: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    mime_type: &'static str,
    file_uri: &'a str,
}

#[derive(Serialize)]
struct Call<'a> {
    name: &'a str,
    args: &'a RawValue,
}

#[derive(Serialize)]
struct Response<'a> {
    name: &'a str,
    response: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Functions<'a> {
    function_declarations: Vec<Function<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Function<'a> {
    name: &'a str,
    /// It must not be missing.
    description: &'a str,
    /// `parameters` would be a language of its own that knows only part of JSON Schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters_json_schema: Option<Cow<'a, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolConfig<'a> {
    function_calling_config: Calling<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Calling<'a> {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_function_names: Option<[&'a str; 1]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GenerationConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    response_mime_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_json_schema: Option<Cow<'a, Value>>,
}

/// The body of a call.
///
/// # Errors
/// `BadRequest` for what cannot be written in this format.
pub(in crate::providers) fn body(request: &ChatRequest) -> Result<Body<'_>, ProviderError> {
    let mut instructions = Vec::new();
    let mut contents: Vec<Turn<'_>> = Vec::with_capacity(request.messages.len());
    let mut calls = HashMap::new();
    let signature = signs(&request.model).then_some(NO_SIGNATURE);
    for message in &request.messages {
        let role = match message.role {
            ChatRole::System => {
                instructions.extend(said(&message.content));
                continue;
            }
            ChatRole::User | ChatRole::Tool => "user",
            ChatRole::Assistant => "model",
        };
        let parts = if message.role == ChatRole::Tool {
            vec![result(message, &calls)?]
        } else {
            let mut parts = said(&message.content);
            add_calls(message, signature, &mut parts)?;
            calls.extend(message.tool_calls.iter().map(|call| (call.id.as_str(), call.name.as_str())));
            parts
        };
        match contents.last_mut() {
            // As many results have to follow a turn as it had calls.
            Some(last) if last.role == role => last.parts.extend(parts),
            _ if parts.is_empty() => {}
            _ => contents.push(Turn { role, parts }),
        }
    }
    let (response_mime_type, response_json_schema) = format(request.response_format.as_ref())?;
    Ok(Body {
        contents,
        system_instruction: (!instructions.is_empty()).then_some(Instruction { parts: instructions }),
        tools: functions(request),
        tool_config: calling(request),
        generation_config: GenerationConfig {
            temperature: request.temperature,
            top_p: request.top_p,
            max_output_tokens: request.max_tokens,
            stop_sequences: &request.stop,
            response_mime_type,
            response_json_schema,
        },
    })
}

/// Text and images. A part of nothing is refused, so that it is left out.
fn said(content: &Content) -> Vec<WirePart<'_>> {
    let text = |text| (!str::is_empty(text)).then_some(WirePart::Text { text });
    match content {
        Content::Text(said) => text(said).into_iter().collect(),
        Content::Parts(parts) => parts
            .iter()
            .filter_map(|part| match part {
                Part::Text(said) => text(said),
                Part::Image(image) => Some(picture(&image.source)),
            })
            .collect(),
    }
}

fn picture(source: &ImageSource) -> WirePart<'_> {
    match (source.data(), source) {
        (Some((mime_type, data)), _) => WirePart::InlineData { inline_data: Blob { mime_type, data } },
        (None, ImageSource::Url(url)) => {
            WirePart::FileData { file_data: File { mime_type: media_type(url), file_uri: url } }
        }
        (None, ImageSource::Data { media_type, base64 }) => {
            WirePart::InlineData { inline_data: Blob { mime_type: media_type, data: base64 } }
        }
    }
}

/// The type of an image by its address, which has to be named with it.
fn media_type(url: &str) -> &'static str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let extension = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "png" => "image/png",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "heic" => "image/heic",
        "heif" => "image/heif",
        _ => "image/jpeg",
    }
}

fn add_calls<'a>(
    message: &'a ChatMessage,
    mut signature: Option<&'static str>,
    parts: &mut Vec<WirePart<'a>>,
) -> Result<(), ProviderError> {
    for call in &message.tool_calls {
        let arguments = call.arguments.trim();
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        let args: &RawValue = serde_json::from_str(arguments)
            .map_err(|_| ProviderError::BadRequest("the arguments of a tool call are not JSON".into()))?;
        if !args.get().starts_with('{') {
            return Err(ProviderError::BadRequest("the arguments of a tool call are not an object".into()));
        }
        let function_call = Call { name: &call.name, args };
        // Of calls made together the first is signed.
        parts.push(WirePart::FunctionCall { function_call, thought_signature: signature.take() });
    }
    Ok(())
}

fn result<'a>(message: &'a ChatMessage, calls: &HashMap<&str, &'a str>) -> Result<WirePart<'a>, ProviderError> {
    let called = message.tool_call_id.as_deref().and_then(|id| calls.get(id).copied());
    let name = called
        .or(message.name.as_deref())
        .ok_or_else(|| ProviderError::BadRequest("a tool's result belongs to no call".into()))?;
    let text: Cow<'_, str> = match &message.content {
        Content::Text(text) => Cow::Borrowed(text),
        parts @ Content::Parts(_) => Cow::Owned(parts.texts().collect()),
    };
    let response = match serde_json::from_str::<Value>(&text) {
        Ok(object @ Value::Object(_)) => object,
        // A response is an object; this is the name Google gives to one that is something else.
        _ => json!({"output": text}),
    };
    Ok(WirePart::FunctionResponse { function_response: Response { name, response } })
}

/// Whether a model wants signatures: those from the third generation on.
fn signs(model: &str) -> bool {
    let generation = model.rsplit('/').next().and_then(|name| name.strip_prefix("gemini-"));
    let digits = generation.map(|name| name.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    digits.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|generation| generation >= 3)
}

fn functions(request: &ChatRequest) -> Option<[Functions<'_>; 1]> {
    let function_declarations: Vec<_> = request
        .tools
        .iter()
        .map(|tool| Function {
            name: &tool.name,
            description: tool.description.as_deref().unwrap_or_default(),
            parameters_json_schema: tool.parameters.as_ref().map(schema),
        })
        .collect();
    (!function_declarations.is_empty()).then_some([Functions { function_declarations }])
}

/// Whether there may be several calls at once cannot be said here.
fn calling(request: &ChatRequest) -> Option<ToolConfig<'_>> {
    if request.tools.is_empty() {
        return None;
    }
    let (mode, allowed_function_names) = match request.tool_choice.as_ref()? {
        ToolChoice::Auto => ("AUTO", None),
        ToolChoice::None => ("NONE", None),
        ToolChoice::Required => ("ANY", None),
        ToolChoice::Named(name) => ("ANY", Some([name.as_str()])),
    };
    Some(ToolConfig { function_calling_config: Calling { mode, allowed_function_names } })
}

/// A schema without the address of its dialect, which many libraries add and the interface does not list.
fn schema(schema: &Value) -> Cow<'_, Value> {
    match schema {
        Value::Object(fields) if fields.contains_key("$schema") => {
            let mut fields = fields.clone();
            fields.remove("$schema");
            Cow::Owned(Value::Object(fields))
        }
        other => Cow::Borrowed(other),
    }
}

type Format<'a> = (Option<&'static str>, Option<Cow<'a, Value>>);

fn format(format: Option<&ResponseFormat>) -> Result<Format<'_>, ProviderError> {
    const JSON: Option<&str> = Some("application/json");
    match format {
        None | Some(ResponseFormat::Text) => Ok((None, None)),
        Some(ResponseFormat::JsonObject) => Ok((JSON, None)),
        Some(ResponseFormat::JsonSchema(json_schema)) => {
            let found = json_schema.get("schema");
            let found = found.ok_or_else(|| ProviderError::BadRequest("the response format has no schema".into()))?;
            Ok((JSON, Some(schema(found))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{Image, Tool, ToolCall};

    fn written(request: &ChatRequest) -> Value {
        let text = serde_json::to_string(&body(request).unwrap_or_else(|error| panic!("{error:?}"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn calls() -> ChatMessage {
        let call = |id: &str, name: &str, arguments: &str| ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        ChatMessage {
            tool_calls: vec![call("a", "f", "{\"x\": 1}"), call("b", "g", "")],
            ..ChatMessage::text(ChatRole::Assistant, "")
        }
    }

    fn result(id: &str, text: &str) -> ChatMessage {
        ChatMessage { tool_call_id: Some(id.to_owned()), ..ChatMessage::text(ChatRole::Tool, text) }
    }

    #[test]
    fn a_plain_request() {
        let request = ChatRequest {
            model: "gemini-2.5-flash".to_owned(),
            messages: vec![
                ChatMessage::text(ChatRole::System, "be brief"),
                ChatMessage::text(ChatRole::User, "hi"),
                ChatMessage::text(ChatRole::Assistant, "hello"),
                ChatMessage::text(ChatRole::User, "why?"),
            ],
            temperature: Some(1.5),
            max_tokens: Some(7),
            ..ChatRequest::default()
        };
        let text = |role: &str, text: &str| json!({"role": role, "parts": [{"text": text}]});
        let expected = json!({
            "contents": [text("user", "hi"), text("model", "hello"), text("user", "why?")],
            "systemInstruction": {"parts": [{"text": "be brief"}]},
            "generationConfig": {"temperature": 1.5, "maxOutputTokens": 7},
        });
        assert_eq!(written(&request), expected);
    }

    #[test]
    fn everything_is_written_as_google_documents_it() {
        let image = |source| Part::Image(Image { source, detail: None });
        let request = ChatRequest {
            model: "gemini-3-pro-preview".to_owned(),
            messages: vec![
                ChatMessage {
                    role: ChatRole::User,
                    content: Content::Parts(vec![
                        image(ImageSource::Data {
                            media_type: "image/png".to_owned(),
                            base64: std::sync::Arc::new("QUJD".to_owned()),
                        }),
                        image(ImageSource::Url("https://example.com/a.PNG?x=.gif".to_owned())),
                        Part::Text("look".to_owned()),
                    ]),
                    ..ChatMessage::default()
                },
                calls(),
                result("b", "plain"),
                result("a", "{\"y\": 2}"),
            ],
            tools: vec![Tool {
                name: "f".to_owned(),
                description: None,
                parameters: Some(json!({"$schema": "x", "type": "object", "additionalProperties": false})),
                strict: None,
            }],
            tool_choice: Some(ToolChoice::Named("f".to_owned())),
            top_p: Some(0.5),
            stop: vec!["END".to_owned()],
            response_format: Some(ResponseFormat::JsonSchema(json!({"name": "n", "schema": {"type": "object"}}))),
            ..ChatRequest::default()
        };
        let expected = json!({
            "contents": [
                {"role": "user", "parts": [
                    {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
                    {"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/a.PNG?x=.gif"}},
                    {"text": "look"},
                ]},
                {"role": "model", "parts": [
                    {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": NO_SIGNATURE},
                    {"functionCall": {"name": "g", "args": {}}},
                ]},
                {"role": "user", "parts": [
                    {"functionResponse": {"name": "g", "response": {"output": "plain"}}},
                    {"functionResponse": {"name": "f", "response": {"y": 2}}},
                ]},
            ],
            "tools": [{"functionDeclarations": [{"name": "f", "description": "",
                "parametersJsonSchema": {"type": "object", "additionalProperties": false}}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
            "generationConfig": {"topP": 0.5, "stopSequences": ["END"], "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object"}},
        });
        assert_eq!(written(&request), expected);
        let older = ChatRequest { model: "gemini-2.5-pro".to_owned(), ..request };
        assert!(!written(&older).to_string().contains("thoughtSignature"));
    }

    #[test]
    fn only_newer_models_want_signatures() {
        for (model, expected) in [
            ("gemini-3-pro", true),
            ("models/gemini-3.1-flash", true),
            ("gemini-10-pro", true),
            ("gemini-2.5-pro", false),
            ("gemini-flash-latest", false),
            ("tunedModels/x", false),
        ] {
            assert_eq!(signs(model), expected, "{model}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let code = |messages| body(&ChatRequest { messages, ..ChatRequest::default() }).map(drop).unwrap_err().code();
        assert_eq!(code(vec![result("a", "1")]), "provider_bad_request");
        let mut broken = calls();
        broken.tool_calls[0].arguments = "[]".to_owned();
        assert_eq!(code(vec![broken.clone()]), "provider_bad_request");
        broken.tool_calls[0].arguments = "{".to_owned();
        assert_eq!(code(vec![broken]), "provider_bad_request");
    }
}
