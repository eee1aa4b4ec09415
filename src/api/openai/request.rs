//! What clients ask.

use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::read::{self, Object, RefusedBody};

/// `POST /v1/chat/completions`.
#[derive(Debug, Default, ToSchema)]
pub struct ChatCompletionRequest {
    /// One of the tenant's models.
    #[schema(value_type = String)]
    pub model: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// `true` for server-sent events.
    pub stream: bool,
    /// What a stream holds.
    pub stream_options: Option<StreamOptions>,
    /// Functions the model may call.
    pub tools: Option<Vec<ToolDefinition>>,
    /// `none`, `auto`, `required`, or an object that names a function.
    pub tool_choice: Option<Value>,
    /// Whether several functions may be called at once.
    pub parallel_tool_calls: Option<bool>,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// The most tokens of the answer; the older name.
    pub max_tokens: Option<u32>,
    /// The most tokens of the answer.
    pub max_completion_tokens: Option<u32>,
    /// Where the answer ends.
    pub stop: Option<StopSequences>,
    /// The form of the answer.
    pub response_format: Option<ResponseFormat>,
    /// How many answers; only 1 is supported.
    pub n: Option<u32>,
    /// Not supported.
    pub logprobs: Option<bool>,
    /// Not supported.
    pub top_logprobs: Option<u32>,
    /// Not supported: replaced by `tools`.
    #[schema(value_type = Option<Value>)]
    pub functions: Option<Value>,
    /// Not supported: replaced by `tool_choice`.
    #[schema(value_type = Option<Value>)]
    pub function_call: Option<Value>,
    /// Only `["text"]` is supported.
    pub modalities: Option<Vec<String>>,
    /// Not supported.
    #[schema(value_type = Option<Value>)]
    pub audio: Option<Value>,
    /// Whatever else was sent: for providers that speak this API themselves.
    #[schema(value_type = Object)]
    pub extra: Map<String, Value>,
}

impl ChatCompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// If it has not the shape of such a request.
    pub fn parse(body: &[u8]) -> Result<Self, RefusedBody> {
        read::object(body)
    }
}

impl Object for ChatCompletionRequest {
    fn field<'de, M: MapAccess<'de>>(&mut self, name: String, fields: &mut M) -> Result<(), M::Error> {
        match name.as_str() {
            "model" => self.model = fields.next_value()?,
            "messages" => self.messages = fields.next_value::<Option<_>>()?.unwrap_or_default(),
            "stream" => self.stream = fields.next_value::<Option<_>>()?.unwrap_or_default(),
            "stream_options" => self.stream_options = fields.next_value()?,
            "tools" => self.tools = fields.next_value()?,
            "tool_choice" => self.tool_choice = fields.next_value()?,
            "parallel_tool_calls" => self.parallel_tool_calls = fields.next_value()?,
            "temperature" => self.temperature = fields.next_value()?,
            "top_p" => self.top_p = fields.next_value()?,
            "max_tokens" => self.max_tokens = fields.next_value()?,
            "max_completion_tokens" => self.max_completion_tokens = fields.next_value()?,
            "stop" => self.stop = fields.next_value()?,
            "response_format" => self.response_format = fields.next_value()?,
            "n" => self.n = fields.next_value()?,
            "logprobs" => self.logprobs = fields.next_value()?,
            "top_logprobs" => self.top_logprobs = fields.next_value()?,
            "functions" => self.functions = fields.next_value()?,
            "function_call" => self.function_call = fields.next_value()?,
            "modalities" => self.modalities = fields.next_value()?,
            "audio" => self.audio = fields.next_value()?,
            _ => {
                let value: Value = fields.next_value()?;
                if !value.is_null() {
                    self.extra.insert(name, value);
                }
            }
        }
        Ok(())
    }
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Whether the last chunk says what the answer cost.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// One message of the conversation.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    #[serde(default)]
    pub role: Option<String>,
    /// What is said.
    #[serde(default)]
    pub content: Option<MessageContent>,
    /// Who says it.
    #[serde(default)]
    pub name: Option<String>,
    /// Functions that the model called.
    #[serde(default)]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that this is the result of.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

/// What a message says: a text, or parts.
#[derive(Debug, ToSchema)]
pub enum MessageContent {
    /// A text.
    Text(String),
    /// Texts and images.
    Parts(Vec<MessagePart>),
}

impl<'de> Deserialize<'de> for MessageContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, because the derived way would copy every text once more while it tries one form after the other.
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = MessageContent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of parts")
    }

    fn visit_str<E>(self, text: &str) -> Result<MessageContent, E> {
        Ok(MessageContent::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<MessageContent, E> {
        Ok(MessageContent::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<MessageContent, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(parts)).map(MessageContent::Parts)
    }
}

/// A part of a message.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct MessagePart {
    /// `text` or `image_url`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
    /// What the model had refused to say.
    #[serde(default)]
    pub refusal: Option<String>,
    /// The image.
    #[serde(default)]
    pub image_url: Option<ImageUrl>,
}

/// An image.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ImageUrl {
    /// Its address, or the image itself as `data:image/png;base64,…`.
    pub url: String,
    /// `low`, `high` or `auto`.
    #[serde(default)]
    pub detail: Option<String>,
}

/// A function that the model called.
#[derive(Debug, Deserialize, serde::Serialize, ToSchema)]
pub struct ToolCall {
    /// The call.
    #[serde(default)]
    pub id: String,
    /// `function`.
    #[serde(default = "function", rename = "type")]
    pub kind: String,
    /// Which function, and with what.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// Which function is called, and with what.
#[derive(Debug, Deserialize, serde::Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// JSON as a text.
    #[serde(default)]
    pub arguments: String,
}

/// Something the model may call.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ToolDefinition {
    /// `function`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The function.
    #[serde(default)]
    pub function: Option<FunctionDefinition>,
}

/// A function the model may call.
#[derive(Debug, Deserialize, ToSchema)]
pub struct FunctionDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: Option<String>,
    /// Its parameters as a JSON schema.
    #[serde(default)]
    pub parameters: Option<Value>,
    /// Whether arguments must fit the schema.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// Where an answer ends: one text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StopSequences {
    /// One text.
    One(String),
    /// Any of these.
    Any(Vec<String>),
}

/// The form of an answer.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The schema, with its name.
    #[serde(default)]
    pub json_schema: Option<Value>,
}

/// `POST /v1/embeddings`.
#[derive(Debug, Default, ToSchema)]
pub struct EmbeddingRequest {
    /// One of the tenant's models.
    #[schema(value_type = String)]
    pub model: Option<String>,
    /// One text or several.
    #[schema(value_type = EmbeddingInput)]
    pub input: Option<EmbeddingInput>,
    /// `float` or `base64`: little-endian 32-bit floats.
    pub encoding_format: Option<String>,
    /// How many numbers a vector has, for models that have a choice.
    pub dimensions: Option<u32>,
}

impl EmbeddingRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// If it has not the shape of such a request.
    pub fn parse(body: &[u8]) -> Result<Self, RefusedBody> {
        read::object(body)
    }
}

impl Object for EmbeddingRequest {
    fn field<'de, M: MapAccess<'de>>(&mut self, name: String, fields: &mut M) -> Result<(), M::Error> {
        match name.as_str() {
            "model" => self.model = fields.next_value()?,
            "input" => self.input = fields.next_value()?,
            "encoding_format" => self.encoding_format = fields.next_value()?,
            "dimensions" => self.dimensions = fields.next_value()?,
            // `user` and whatever else says nothing of the vectors.
            _ => drop(fields.next_value::<serde::de::IgnoredAny>()?),
        }
        Ok(())
    }
}

/// What to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingInput {
    /// One text.
    One(String),
    /// Several.
    Many(Vec<String>),
    /// A text as the numbers of a tokenizer: not supported.
    Tokens(Vec<u32>),
    /// Several of these: not supported.
    ManyTokens(Vec<Vec<u32>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<ChatCompletionRequest, RefusedBody> {
        ChatCompletionRequest::parse(body.as_bytes())
    }

    #[test]
    fn a_request_is_read_and_what_is_unknown_is_kept() {
        let request = parse(
            r#"{"model":"m","messages":[{"role":"user","content":"Hé\n\"","unknown":1},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"u"}}]},
                {"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function",
                 "function":{"name":"f","arguments":"{}"}}]}],
                "stream":null,"stop":["a","b"],"temperature":0.5,"max_tokens":7,"seed":5,"user":null,
                "metadata":{"a":[1]}}"#,
        )
        .unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert!(matches!(&request.messages[0].content, Some(MessageContent::Text(text)) if text == "Hé\n\""));
        assert!(matches!(&request.messages[1].content, Some(MessageContent::Parts(parts)) if parts.len() == 2));
        assert!(request.messages[2].content.is_none());
        assert_eq!(request.messages[2].tool_calls.as_ref().unwrap()[0].function.name, "f");
        assert!(!request.stream);
        assert!(matches!(&request.stop, Some(StopSequences::Any(stop)) if stop.len() == 2));
        assert_eq!((request.temperature, request.max_tokens), (Some(0.5), Some(7)));
        assert_eq!(Value::Object(request.extra), serde_json::json!({ "seed": 5, "metadata": { "a": [1] } }));
    }

    #[test]
    fn what_is_refused_is_named_and_not_quoted() {
        let wrong = |field: &str| Err::<(), _>(RefusedBody::WrongType(field.to_owned()));
        let many = format!(r#"{{"model":"m","messages":[{}{{}}]}}"#, "{},".repeat(100_000));
        for (body, expected) in [
            ("", Err(RefusedBody::NotJson)),
            (many.as_str(), Err(RefusedBody::TooManyElements)),
            ("{\"model\":", Err(RefusedBody::NotJson)),
            ("{\"model\":\"m\"} x", Err(RefusedBody::NotJson)),
            ("{\"model\" \"m\"}", Err(RefusedBody::NotJson)),
            ("[]", Err(RefusedBody::NotAnObject)),
            ("\"text\"", Err(RefusedBody::NotAnObject)),
            ("null", Err(RefusedBody::NotAnObject)),
            (r#"{"model":7}"#, wrong("model")),
            (r#"{"messages":"secret"}"#, wrong("messages")),
            (r#"{"messages":[{"content":7}]}"#, wrong("messages")),
            (r#"{"stream":"yes"}"#, wrong("stream")),
            (r#"{"model":"m","temperature":"hot"}"#, wrong("temperature")),
            (r#"{"max_tokens":-1}"#, wrong("max_tokens")),
            (r#"{"tools":[{"function":{}}]}"#, wrong("tools")),
        ] {
            assert_eq!(parse(body).map(drop), expected, "{body}");
        }
    }

    #[test]
    fn what_to_embed_is_texts_or_numbers() {
        let input = |input: &str| EmbeddingRequest::parse(format!(r#"{{"input":{input},"user":"u"}}"#).as_bytes());
        assert!(matches!(input("\"a\"").unwrap().input, Some(EmbeddingInput::One(_))));
        assert!(matches!(input(r#"["a","b"]"#).unwrap().input, Some(EmbeddingInput::Many(_))));
        assert!(matches!(input("[1,2]").unwrap().input, Some(EmbeddingInput::Tokens(_))));
        assert!(matches!(input("[[1],[2]]").unwrap().input, Some(EmbeddingInput::ManyTokens(_))));
        assert_eq!(input("{}").unwrap_err(), RefusedBody::WrongType("input".to_owned()));
    }
}
