//! Bodies of the OpenAI-compatible endpoint, in the shapes of OpenAI's own API.
//!
//! Unlike everywhere else unknown fields are no error: clients of that API send what their version of it knows.
//! Requests are read field by field, without a detour over a tree of values, for they may be megabytes long.

mod read;
mod request;
mod response;

pub use read::RefusedBody;
pub use request::{
    ChatCompletionRequest, EmbeddingInput, EmbeddingRequest, FunctionCall, FunctionDefinition, ImageUrl, Message,
    MessageContent, MessagePart, ResponseFormat, StopSequences, StreamOptions, ToolCall, ToolDefinition,
};
pub use response::{
    AssistantMessage, ChatCompletion, Choice, CompletionUsage, EmbeddingData, EmbeddingList, EmbeddingUsage,
    EmbeddingVector, ErrorBody, ErrorObject, Model, ModelList, PromptTokensDetails,
};
