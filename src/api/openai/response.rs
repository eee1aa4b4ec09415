//! What clients are answered.

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::request::ToolCall;

/// The answer of `POST /v1/chat/completions` without streaming.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-` and the id of the call in the ledger.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// When it was asked, in seconds since 1970.
    pub created: i64,
    /// The model by the name it was asked for.
    pub model: String,
    /// The answer.
    pub choices: Vec<Choice>,
    /// What it cost.
    pub usage: Option<CompletionUsage>,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Choice {
    /// 0.
    pub index: u32,
    /// What the model says.
    pub message: AssistantMessage,
    /// Always null.
    #[schema(value_type = Option<serde_json::Value>)]
    pub logprobs: Option<()>,
    /// `stop`, `length`, `tool_calls` or `content_filter`.
    pub finish_reason: &'static str,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null if there are only calls.
    pub content: Option<String>,
    /// Always null.
    #[schema(value_type = Option<serde_json::Value>)]
    pub refusal: Option<()>,
    /// What the model said of its thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Functions that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// What an answer cost, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompletionUsage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// What is known of the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is known of a prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that the provider had cached.
    pub cached_tokens: u64,
}

/// The answer of `GET /v1/models`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The tenant's models.
    pub data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When its AI key was set, in seconds since 1970.
    pub created: i64,
    /// The name of the AI key that offers it.
    pub owned_by: String,
}

/// The answer of `POST /v1/embeddings`.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    /// The vectors, in the order of the texts.
    pub data: Vec<EmbeddingData>,
    /// The model by the name it was asked for.
    pub model: String,
    /// What it cost.
    pub usage: Option<EmbeddingUsage>,
}

/// One text's vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingData {
    /// `embedding`.
    pub object: &'static str,
    /// Which text it is of.
    pub index: usize,
    /// The vector.
    #[schema(value_type = Vec<f32>)]
    pub embedding: EmbeddingVector,
}

/// A vector in the form that was asked for.
#[derive(Debug)]
pub enum EmbeddingVector {
    /// Numbers.
    Floats(Vec<f32>),
    /// Little-endian 32-bit floats in base64.
    Base64(String),
}

impl Serialize for EmbeddingVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Floats(numbers) => numbers.serialize(serializer),
            Self::Base64(text) => text.serialize(serializer),
        }
    }
}

/// What embedding cost, in tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Tokens of the texts.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

/// An error in OpenAI's shape.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The kind, such as `invalid_request_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that was refused.
    pub param: Option<String>,
    /// A stable code.
    pub code: &'static str,
}
