//! OpenAI's chat completions, as OpenAI and the many servers that imitate it speak them.

mod events;

use std::borrow::Cow;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use reqwest::Response;
use secrecy::ExposeSecret;
use serde::Serialize;
use url::Url;

use self::events::{Answer, Events};
use super::address::AddressError;
use super::client::ProviderClient;
use super::error::ProviderError;
use super::{ChatEvent, ChatMessage, ChatRequest, ChatRole, ChatStream, Content, ModelProvider, ProviderSpec};

/// Largest whole (not streamed) answer that is read, in bytes.
const MAX_JSON_ANSWER: usize = 8 * 1024 * 1024;

pub(super) struct OpenAiCompatible {
    client: ProviderClient,
    target: Result<Target, Unusable>,
}

/// Everything about a call that its request does not change, made once.
struct Target {
    url: Url,
    headers: HeaderMap,
    /// OpenAI's own newer models refuse `max_tokens`; most imitators know nothing else.
    completion_limit: bool,
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the API key has characters that cannot be sent")]
    Key,
}

impl OpenAiCompatible {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Self {
        Self { client: client.clone(), target: Target::new(spec, client) }
    }

    async fn start(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let target = self.target.as_ref().map_err(|&unusable| match unusable {
            Unusable::Address(_) => ProviderError::RefusedAddress(unusable.into()),
            Unusable::Key => ProviderError::InvalidKey(unusable.into()),
        })?;
        let body = WireRequest::new(request, target.completion_limit);
        let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
        let response = self.client.post(&target.url, &target.headers, Bytes::from(body)).await?;
        let between_tokens = self.client.timeouts().between_tokens;
        if is_json(&response) {
            return whole_answer(response, between_tokens).await;
        }
        Ok(Events::new(response.bytes_stream().boxed(), between_tokens).boxed())
    }
}

impl ModelProvider for OpenAiCompatible {
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
        Box::pin(async move { self.start(&request).await })
    }
}

impl Target {
    fn new(spec: &ProviderSpec, client: &ProviderClient) -> Result<Self, Unusable> {
        client.policy().check(&spec.base_url)?;
        let mut url = spec.base_url.clone();
        url.path_segments_mut().map_err(|()| AddressError::NotAUrl)?.pop_if_empty().extend(["chat", "completions"]);
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        let key = spec.api_key.expose_secret().trim();
        if !key.is_empty() {
            let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| Unusable::Key)?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let completion_limit = spec.base_url.host_str() == Some("api.openai.com");
        Ok(Self { url, headers, completion_limit })
    }
}

#[derive(Serialize)]
struct WireRequest<'a> {
    model: &'a str,
    messages: WireMessages<'a>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Writes the messages in place rather than collecting a second list of them.
struct WireMessages<'a>(&'a [ChatMessage]);

#[derive(Serialize)]
struct WireMessage<'a> {
    role: ChatRole,
    content: Cow<'a, str>,
}

impl Serialize for WireMessages<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|m| WireMessage { role: m.role, content: content(&m.content) }))
    }
}

fn content(content: &Content) -> Cow<'_, str> {
    match content {
        Content::Text(text) => Cow::Borrowed(text),
        parts @ Content::Parts(_) => Cow::Owned(parts.texts().collect()),
    }
}

impl<'a> WireRequest<'a> {
    fn new(request: &'a ChatRequest, completion_limit: bool) -> Self {
        Self {
            model: &request.model,
            messages: WireMessages(&request.messages),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: request.temperature,
            max_tokens: request.max_tokens.filter(|_| !completion_limit),
            max_completion_tokens: request.max_tokens.filter(|_| completion_limit),
        }
    }
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| {
        kind.trim_start().get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
    })
}

/// Reads the answer of a server that ignored `stream: true`.
async fn whole_answer(mut response: Response, between: std::time::Duration) -> Result<ChatStream, ProviderError> {
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(between, response.chunk())
            .await
            .map_err(|elapsed| ProviderError::Timeout(elapsed.into()))?
            .map_err(|error| ProviderError::Unavailable(error.without_url().into()))?;
        let Some(chunk) = chunk else { break };
        if body.len() + chunk.len() > MAX_JSON_ANSWER {
            return Err(ProviderError::Unavailable("the answer is larger than allowed".into()));
        }
        body.extend_from_slice(&chunk);
    }
    let body = std::str::from_utf8(&body).map_err(|error| ProviderError::Unavailable(error.into()))?;
    let mut answer = Answer::default();
    let text = answer.read(body)?;
    if !answer.has_choice() {
        return Err(ProviderError::Unavailable("the answer has no choices".into()));
    }
    let events = text.map(ChatEvent::Delta).into_iter().chain([answer.finished()]);
    Ok(futures::stream::iter(events.map(Ok)).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{ProviderClientOptions, ProviderKind};

    fn target(base: &str, key: &str) -> Result<Target, Unusable> {
        let client = ProviderClient::new(&ProviderClientOptions::default()).unwrap();
        let spec = ProviderSpec {
            provider: ProviderKind::OpenaiCompatible,
            base_url: base.parse().unwrap(),
            api_key: key.to_owned().into(),
        };
        Target::new(&spec, &client)
    }

    #[test]
    fn the_path_is_appended_with_or_without_a_slash() {
        for base in ["https://example.com/v1", "https://example.com/v1/"] {
            assert_eq!(target(base, "k").unwrap().url.as_str(), "https://example.com/v1/chat/completions");
        }
        assert_eq!(target("https://example.com", "k").unwrap().url.as_str(), "https://example.com/chat/completions");
    }

    #[test]
    fn keys_are_sensitive_and_must_be_sendable() {
        let target_ok = target("https://example.com/v1", " sk-1\n").unwrap();
        assert_eq!(target_ok.headers[AUTHORIZATION], "Bearer sk-1");
        assert!(target_ok.headers[AUTHORIZATION].is_sensitive());
        assert!(matches!(target("https://example.com/v1", "a\nb"), Err(Unusable::Key)));
        assert!(!target("https://example.com/v1", "").unwrap().headers.contains_key(AUTHORIZATION));
    }

    #[test]
    fn the_request_is_what_openai_documents() {
        let request = ChatRequest {
            model: "m".to_owned(),
            messages: vec![ChatMessage::text(ChatRole::System, "s\"")],
            temperature: Some(0.5),
            max_tokens: Some(7),
            ..ChatRequest::default()
        };
        let json = |openai| serde_json::to_value(WireRequest::new(&request, openai)).unwrap();
        let expected = serde_json::json!({
            "model": "m", "messages": [{"role": "system", "content": "s\""}], "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 0.5, "max_tokens": 7,
        });
        assert_eq!(json(false), expected);
        assert_eq!(json(true)["max_completion_tokens"], 7);
        assert!(json(true).get("max_tokens").is_none());
    }
}
