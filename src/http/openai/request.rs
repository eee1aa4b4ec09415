//! From OpenAI's requests to those of no provider.

use std::sync::Arc;

use crate::api::openai::{
    ChatCompletionRequest, EmbeddingInput, Message, MessageContent, MessagePart, ResponseFormat as WireFormat,
    StopSequences, ToolDefinition,
};
use crate::http::openai::error::OpenAiError;
use crate::providers::{
    ChatMessage, ChatRequest, ChatRole, Content, Image, ImageSource, Part, ResponseFormat, Tool, ToolCall, ToolChoice,
};

/// The most texts to embed at once, as at OpenAI.
const MOST_INPUTS: usize = 2_048;
/// The most sequences at which an answer ends, as at OpenAI.
const MOST_STOPS: usize = 4;

/// What was asked, and how it is to be answered.
pub(super) struct Asked {
    /// The model by the name it was asked for.
    pub(super) model: String,
    /// The request, whose model is chosen later.
    pub(super) request: ChatRequest,
    /// Whether the answer is to be streamed.
    pub(super) stream: bool,
    /// Whether the stream is to say what the answer cost.
    pub(super) include_usage: bool,
}

/// The name of the model.
pub(super) fn model(model: Option<String>) -> Result<String, OpenAiError> {
    match model {
        Some(model) if !model.is_empty() => Ok(model),
        _ => Err(missing("model")),
    }
}

/// Translates a request, or says which parameter is refused.
pub(super) fn chat(asked: ChatCompletionRequest) -> Result<Asked, OpenAiError> {
    let model = model(asked.model)?;
    if asked.messages.is_empty() {
        return Err(missing("messages"));
    }
    if asked.n.is_some_and(|n| n != 1) {
        return Err(OpenAiError::invalid(
            "n",
            "unsupported_value",
            "Only one answer at a time is supported: `n` is 1.",
        ));
    }
    let refused = [
        ("logprobs", asked.logprobs == Some(true), "Log probabilities are not supported."),
        ("top_logprobs", asked.top_logprobs.is_some_and(|most| most > 0), "Log probabilities are not supported."),
        ("functions", asked.functions.is_some(), "`functions` is not supported: use `tools`."),
        ("function_call", asked.function_call.is_some(), "`function_call` is not supported: use `tool_choice`."),
        ("audio", asked.audio.is_some(), "Audio is not supported."),
        (
            "modalities",
            asked.modalities.is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")),
            "Only answers of text are supported.",
        ),
    ];
    if let Some((param, _, message)) = refused.into_iter().find(|(_, is_refused, _)| *is_refused) {
        return Err(OpenAiError::unsupported(param, message));
    }
    let max_tokens = asked.max_completion_tokens.or(asked.max_tokens);
    if max_tokens == Some(0) {
        let param = if asked.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
        return Err(OpenAiError::invalid(param, "invalid_value", format!("`{param}` must be at least 1.")));
    }
    let messages = asked.messages.into_iter().enumerate();
    let messages = messages.map(|(index, message)| self::message(index, message)).collect::<Result<_, _>>()?;
    let tools = asked.tools.unwrap_or_default().into_iter().enumerate();
    let tools = tools.map(|(index, definition)| tool(index, definition)).collect::<Result<_, _>>()?;
    let mut extra = asked.extra;
    if let Some(most) = asked.max_completion_tokens {
        // Newer models of OpenAI's refuse the older name, and others do not know the newer one.
        extra.insert("max_completion_tokens".to_owned(), most.into());
    }
    let request = ChatRequest {
        model: String::new(),
        messages,
        tools,
        tool_choice: asked.tool_choice.map(|choice| tool_choice(&choice)).transpose()?,
        parallel_tool_calls: asked.parallel_tool_calls,
        temperature: within("temperature", asked.temperature, 2.0)?,
        top_p: within("top_p", asked.top_p, 1.0)?,
        max_tokens,
        stop: stop(asked.stop)?,
        whole: !asked.stream,
        response_format: asked.response_format.map(response_format).transpose()?,
        extra,
    };
    let include_usage = asked.stream_options.and_then(|options| options.include_usage).unwrap_or_default();
    Ok(Asked { model, request, stream: asked.stream, include_usage })
}

fn missing(param: &'static str) -> OpenAiError {
    OpenAiError::invalid(param, "missing_required_parameter", format!("`{param}` is missing."))
}

fn within(param: &'static str, value: Option<f32>, most: f32) -> Result<Option<f32>, OpenAiError> {
    match value {
        Some(value) if !(0.0..=most).contains(&value) => {
            Err(OpenAiError::invalid(param, "invalid_value", format!("`{param}` must be between 0 and {most}.")))
        }
        value => Ok(value),
    }
}

fn stop(stop: Option<StopSequences>) -> Result<Vec<String>, OpenAiError> {
    let stop = match stop {
        None => Vec::new(),
        Some(StopSequences::One(text)) => vec![text],
        Some(StopSequences::Any(texts)) => texts,
    };
    if stop.len() > MOST_STOPS || stop.iter().any(String::is_empty) {
        let message = format!("`stop` must be at most {MOST_STOPS} texts, none of them empty.");
        return Err(OpenAiError::invalid("stop", "invalid_value", message));
    }
    Ok(stop)
}

fn response_format(format: WireFormat) -> Result<ResponseFormat, OpenAiError> {
    match (format.kind.as_deref(), format.json_schema) {
        (Some("text"), _) => Ok(ResponseFormat::Text),
        (Some("json_object"), _) => Ok(ResponseFormat::JsonObject),
        (Some("json_schema"), Some(schema)) if schema.is_object() => Ok(ResponseFormat::JsonSchema(schema)),
        (Some("json_schema"), _) => Err(OpenAiError::invalid(
            "response_format.json_schema",
            "missing_required_parameter",
            "The schema is missing.",
        )),
        _ => Err(OpenAiError::invalid(
            "response_format.type",
            "invalid_value",
            "`response_format.type` must be `text`, `json_object` or `json_schema`.",
        )),
    }
}

fn tool(index: usize, definition: ToolDefinition) -> Result<Tool, OpenAiError> {
    if definition.kind.as_deref().is_some_and(|kind| kind != "function") {
        let param = format!("tools.[{index}].type");
        return Err(OpenAiError::invalid(param, "unsupported_value", "Only tools of type `function` are supported."));
    }
    let Some(function) = definition.function else {
        let param = format!("tools.[{index}].function");
        return Err(OpenAiError::invalid(param, "missing_required_parameter", "The function is missing."));
    };
    Ok(Tool {
        name: function.name,
        description: function.description,
        parameters: function.parameters,
        strict: function.strict,
    })
}

fn tool_choice(choice: &serde_json::Value) -> Result<ToolChoice, OpenAiError> {
    let named = || choice.get("function")?.get("name")?.as_str();
    match (choice.as_str(), named()) {
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("required"), _) => Ok(ToolChoice::Required),
        (None, Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
        _ => Err(OpenAiError::invalid(
            "tool_choice",
            "invalid_value",
            "`tool_choice` must be `auto`, `none`, `required` or name a function.",
        )),
    }
}

fn message(index: usize, message: Message) -> Result<ChatMessage, OpenAiError> {
    let place = |field: &str| format!("messages.[{index}].{field}");
    let refuse = |field: &str, text: &'static str| Err(OpenAiError::invalid(place(field), "invalid_value", text));
    let role = match message.role.as_deref() {
        Some("system" | "developer") => ChatRole::System,
        Some("user") => ChatRole::User,
        Some("assistant") => ChatRole::Assistant,
        Some("tool") => ChatRole::Tool,
        Some(_) => return refuse("role", "A role is `system`, `developer`, `user`, `assistant` or `tool`."),
        None => return Err(OpenAiError::invalid(place("role"), "missing_required_parameter", "The role is missing.")),
    };
    let mut tool_calls = Vec::new();
    for call in message.tool_calls.unwrap_or_default() {
        if call.kind != "function" {
            return refuse("tool_calls", "Only calls of functions are supported.");
        }
        tool_calls.push(ToolCall { id: call.id, name: call.function.name, arguments: call.function.arguments });
    }
    if role == ChatRole::Tool && message.tool_call_id.is_none() {
        let text = "The result of a tool names the call: `tool_call_id`.";
        return Err(OpenAiError::invalid(place("tool_call_id"), "missing_required_parameter", text));
    }
    let content = match message.content {
        Some(MessageContent::Text(text)) => Content::Text(text),
        Some(MessageContent::Parts(parts)) => self::parts(index, parts)?,
        // What a model said while it called tools may be nothing.
        None if role == ChatRole::Assistant => Content::default(),
        None => {
            return Err(OpenAiError::invalid(
                place("content"),
                "missing_required_parameter",
                "The content is missing.",
            ));
        }
    };
    Ok(ChatMessage { role, content, name: message.name, tool_calls, tool_call_id: message.tool_call_id })
}

fn parts(index: usize, parts: Vec<MessagePart>) -> Result<Content, OpenAiError> {
    let mut translated = Vec::with_capacity(parts.len());
    for (number, part) in parts.into_iter().enumerate() {
        translated.push(match (part.kind.as_deref(), part.text, part.refusal, part.image_url) {
            (Some("text"), Some(text), _, _) | (Some("refusal"), _, Some(text), _) => Part::Text(text),
            (Some("image_url"), _, _, Some(image)) => {
                let place = || format!("messages.[{index}].content.[{number}].image_url.url");
                Part::Image(Image { source: image_source(image.url, place)?, detail: image.detail })
            }
            _ => {
                let place = format!("messages.[{index}].content.[{number}]");
                return Err(OpenAiError::invalid(place, "invalid_value", "A part is a `text` or an `image_url`."));
            }
        });
    }
    // Many servers take texts only where no image is, so a text stays one.
    Ok(match <[Part; 1]>::try_from(translated) {
        Ok([Part::Text(text)]) => Content::Text(text),
        Ok([other]) => Content::Parts(vec![other]),
        Err(several) => Content::Parts(several),
    })
}

/// Where an image is. This server fetches none: an address is the provider's to look up, and goes out as it is.
fn image_source(url: String, place: impl Fn() -> String) -> Result<ImageSource, OpenAiError> {
    let refuse = |text: &'static str| Err(OpenAiError::invalid(place(), "invalid_value", text));
    let Some(data) = url.strip_prefix("data:") else {
        return match url.starts_with("https://") {
            true => Ok(ImageSource::Url(url)),
            false => refuse("An image is an `https:` or a `data:` URL."),
        };
    };
    match data.split_once(";base64,") {
        Some((media_type, base64)) if media_type.starts_with("image/") && !base64.is_empty() => {
            Ok(ImageSource::Data { media_type: media_type.to_owned(), base64: Arc::new(base64.to_owned()) })
        }
        _ => refuse("The data of an image is `data:image/…;base64,…`."),
    }
}

/// The texts to embed.
pub(super) fn inputs(input: Option<EmbeddingInput>) -> Result<Vec<String>, OpenAiError> {
    let texts = match input {
        Some(EmbeddingInput::One(text)) => vec![text],
        Some(EmbeddingInput::Many(texts)) => texts,
        Some(EmbeddingInput::Tokens(tokens)) if tokens.is_empty() => Vec::new(),
        Some(EmbeddingInput::Tokens(_) | EmbeddingInput::ManyTokens(_)) => {
            return Err(OpenAiError::invalid(
                "input",
                "unsupported_value",
                "Send texts, not tokens: the model behind this name may count others. (LangChain: \
                 `check_embedding_ctx_length=False`.)",
            ));
        }
        None => return Err(missing("input")),
    };
    if texts.is_empty() || texts.len() > MOST_INPUTS || texts.iter().any(String::is_empty) {
        let message = format!("`input` must be 1 to {MOST_INPUTS} texts, none of them empty.");
        return Err(OpenAiError::invalid("input", "invalid_value", message));
    }
    Ok(texts)
}
