//! What is asked of a model, and how it answers, in no provider's format.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What to ask.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The provider's own name of the model.
    pub model: String,
    /// The conversation, oldest first.
    pub messages: Vec<ChatMessage>,
    /// Tools that the model may ask to be called.
    pub tools: Vec<Tool>,
    /// Whether it may or must; the provider's default if `None`.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may ask for several calls at once; the provider's default if `None`.
    pub parallel_tool_calls: Option<bool>,
    /// Sampling temperature; the provider's default if `None`.
    pub temperature: Option<f32>,
    /// Nucleus sampling; the provider's default if `None`.
    pub top_p: Option<f32>,
    /// Most tokens to generate; the provider's default if `None`.
    pub max_tokens: Option<u32>,
    /// Texts at which the answer ends.
    pub stop: Vec<String>,
    /// Whether nobody hears the answer before it is whole. Providers that can are then asked for it in one piece, which
    /// costs both sides a fraction of a stream; it is told as a stream all the same, of few events.
    pub whole: bool,
    /// The form of the answer; free text if `None`.
    pub response_format: Option<ResponseFormat>,
    /// Further parameters of OpenAI's API, for providers that speak it. Others do not get them.
    pub extra: serde_json::Map<String, Value>,
}

/// One message of the conversation.
#[derive(Debug, Clone, Default)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: Content,
    /// The name of who speaks, where several have the same role.
    pub name: Option<String>,
    /// Tools that the assistant asked to be called.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's result: the call that it answers.
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message that is text and nothing else.
    #[must_use]
    pub fn text(role: ChatRole, content: impl Into<String>) -> Self {
        Self { role, content: Content::Text(content.into()), ..Self::default() }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatRole {
    /// Instructions of the application.
    #[default]
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
    /// A tool, with its result.
    Tool,
}

/// What is said in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text.
    Text(String),
    /// Text and images, in their order.
    Parts(Vec<Part>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Content {
    /// The text in it; images count as none.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (one, parts) = match self {
            Self::Text(text) => (Some(text.as_str()), &[][..]),
            Self::Parts(parts) => (None, parts.as_slice()),
        };
        one.into_iter().chain(parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) => None,
        }))
    }

    /// The images in it.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        let parts = match self {
            Self::Text(_) => &[][..],
            Self::Parts(parts) => parts.as_slice(),
        };
        parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Image(image) => Some(image),
        })
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image.
    Image(Image),
}

/// An image to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub source: ImageSource,
    /// How closely to look, in OpenAI's words (`low`, `high`, `auto`).
    pub detail: Option<String>,
}

/// Where an image is.
#[derive(Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// At an address that the provider fetches; this server never does.
    Url(String),
    /// In the request itself.
    Data {
        /// Such as `image/png`.
        media_type: String,
        /// The bytes in Base64, which may be megabytes: a request that is kept for the next provider shares them.
        base64: Arc<String>,
    },
}

/// What an image shows is nobody's business, and neither is its address.
impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(_) => f.write_str("Url"),
            Self::Data { media_type, base64 } => write!(f, "Data({media_type}, {} characters)", base64.len()),
        }
    }
}

impl ImageSource {
    /// Media type and Base64 of an image that is in the request itself, also as a `data:` URL.
    pub(super) fn data(&self) -> Option<(&str, &str)> {
        match self {
            Self::Data { media_type, base64 } => Some((media_type, base64)),
            Self::Url(url) => {
                let (head, base64) = url.strip_prefix("data:")?.split_once(',')?;
                let head = head.strip_suffix(";base64")?;
                // Parameters may follow the type.
                Some((head.split(';').next().unwrap_or_default(), base64))
            }
        }
    }
}

/// A tool that the model may ask to be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it is good for.
    pub description: Option<String>,
    /// The JSON Schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema to the letter.
    pub strict: Option<bool>,
}

/// Whether tools may or must be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON of a schema: the value of `json_schema` in OpenAI's API, with `name` and `schema`.
    JsonSchema(Value),
}

/// A tool that the model asked to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Names the call in the answer to it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments as the model wrote them, which should be JSON and need not be.
    pub arguments: String,
}

/// A step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatEvent {
    /// More text, never empty.
    Delta(String),
    /// What the model says of its thinking, never empty. It is no part of the answer.
    Reasoning(String),
    /// More of a tool call.
    ToolCall(ToolCallDelta),
    /// The end of a whole answer.
    Finished {
        /// Tokens the provider counted; `None` if it did not say, which is not the same as zero.
        usage: Option<Usage>,
        /// Why the answer ends here.
        finish_reason: FinishReason,
    },
}

/// More of a tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Counts the calls of this answer from 0, without gaps, whatever the provider says.
    pub index: u32,
    /// Given with the first delta of an index, and only there.
    pub id: Option<String>,
    /// Given with the first delta of an index, and only there.
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// Tokens of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Those of the prompt that the provider had in its cache.
    pub cached_input_tokens: u64,
    /// Whether the provider counted them (always so for usage made here) or somebody estimated.
    pub reported: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model had said what it wanted.
    Stop,
    /// `max_tokens` or the model's own limit was reached.
    Length,
    /// The provider's filter removed the rest.
    ContentFilter,
    /// The model wants a tool to be called.
    ToolCalls,
    /// The provider gave no reason. Some servers never do.
    Unsaid,
    /// The provider gave a reason that nobody here knows; the answer may be cut.
    Other,
}

impl FinishReason {
    /// The word OpenAI's clients know. `Unsaid` and `Other` are told as `stop`, since they know no word for them.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop | Self::Unsaid | Self::Other => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Texts to turn into vectors.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingRequest {
    /// The provider's own name of the model.
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
    /// How long the vectors are to be; the model's own length if `None`.
    pub dimensions: Option<u32>,
}

/// Vectors, in the order of the texts.
#[derive(Debug, Clone, Default)]
pub struct Embeddings {
    /// One a text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens the provider counted; `None` if it did not say.
    pub usage: Option<Usage>,
}
