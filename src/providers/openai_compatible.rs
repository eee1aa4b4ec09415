//! OpenAI's chat completions and embeddings, as OpenAI and the many servers that imitate it speak them.

mod embeddings;
mod events;
mod request;

use std::borrow::Cow;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret as _;
use url::Url;

use self::events::ChatCompletion;
use self::request::WireRequest;
use super::client::ProviderClient;
use super::error::ProviderError;
use super::quirks::Quirks;
use super::spec::{ProviderSpec, Unusable, append, headers, secret_header};
use super::stream;
use super::{ChatRequest, ChatStream, EmbeddingRequest, Embeddings, ModelProvider};

pub(super) struct OpenAiCompatible {
    client: ProviderClient,
    target: Result<Target, Unusable>,
    quirks: Quirks,
}

/// Everything about a call that its request does not change, made once.
pub(super) struct Target {
    pub(super) places: Places,
    pub(super) headers: HeaderMap,
    /// OpenAI's own newer models refuse `max_tokens`; most imitators know nothing else.
    pub(super) completion_limit: bool,
}

/// Where calls go.
pub(super) enum Places {
    /// All models are at one address.
    Fixed { chat: Url, embeddings: Url },
    /// Each model has its own, below `base`.
    Deployments { base: Url, api_version: String },
}

impl OpenAiCompatible {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Self {
        Self::with_target(Target::new(spec, client), client)
    }

    pub(super) fn with_target(target: Result<Target, Unusable>, client: &ProviderClient) -> Self {
        Self { client: client.clone(), target, quirks: Quirks::default() }
    }

    fn target(&self) -> Result<&Target, ProviderError> {
        self.target.as_ref().map_err(|&unusable| unusable.into())
    }

    async fn start(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let target = self.target()?;
        let url = target.chat(&request.model)?;
        let known = self.quirks.of(&request.model);
        let mut quirk = known;
        let timeouts = self.client.timeouts();
        let limit = if request.whole { timeouts.whole_answer } else { timeouts.first_byte };
        loop {
            let body = WireRequest::new(request, target.completion_limit, quirk)?;
            let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
            match self.client.post_within(limit, &url, &target.headers, Bytes::from(body)).await {
                Ok(response) => {
                    self.quirks.prove(request, known, quirk);
                    return stream::events(&self.client, response, ChatCompletion).await;
                }
                Err(error) => quirk = quirk.after(&error).ok_or(error)?,
            }
        }
    }
}

impl ModelProvider for OpenAiCompatible {
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
        Box::pin(async move { self.start(&request).await })
    }

    fn embed(&self, request: EmbeddingRequest) -> BoxFuture<'_, Result<Embeddings, ProviderError>> {
        Box::pin(async move { embeddings::embed(&self.client, self.target()?, &request).await })
    }
}

impl Target {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Result<Self, Unusable> {
        client.policy().check(&spec.base_url)?;
        let mut headers = headers();
        let key = spec.api_key.expose_secret().trim();
        if !key.is_empty() {
            headers.insert(AUTHORIZATION, secret_header(&format!("Bearer {key}"))?);
        }
        let completion_limit = spec.base_url.host_str() == Some("api.openai.com");
        Ok(Self { places: Places::fixed(&spec.base_url)?, headers, completion_limit })
    }

    pub(super) fn chat(&self, model: &str) -> Result<Cow<'_, Url>, Unusable> {
        match &self.places {
            Places::Fixed { chat, .. } => Ok(Cow::Borrowed(chat)),
            Places::Deployments { base, api_version } => deployment(base, model, &["chat", "completions"], api_version),
        }
    }

    fn embeddings(&self, model: &str) -> Result<Cow<'_, Url>, Unusable> {
        match &self.places {
            Places::Fixed { embeddings, .. } => Ok(Cow::Borrowed(embeddings)),
            Places::Deployments { base, api_version } => deployment(base, model, &["embeddings"], api_version),
        }
    }
}

impl Places {
    pub(super) fn fixed(base: &Url) -> Result<Self, Unusable> {
        Ok(Self::Fixed { chat: append(base, ["chat", "completions"])?, embeddings: append(base, ["embeddings"])? })
    }
}

fn deployment<'a>(base: &Url, model: &str, path: &[&str], api_version: &str) -> Result<Cow<'a, Url>, Unusable> {
    let mut url = append(base, std::iter::once(model).chain(path.iter().copied()))?;
    url.query_pairs_mut().append_pair("api-version", api_version);
    Ok(Cow::Owned(url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ProviderKind;
    use crate::providers::spec::tests::{client, spec};

    fn target(base: &str, key: &str) -> Result<Target, Unusable> {
        Target::new(&spec(ProviderKind::OpenaiCompatible, base, key), &client())
    }

    #[test]
    fn the_path_is_appended_with_or_without_a_slash() {
        for base in ["https://example.com/v1", "https://example.com/v1/"] {
            let target = target(base, "k").unwrap();
            assert_eq!(target.chat("m").unwrap().as_str(), "https://example.com/v1/chat/completions");
            assert_eq!(target.embeddings("m").unwrap().as_str(), "https://example.com/v1/embeddings");
        }
        let bare = target("https://example.com", "k").unwrap();
        assert_eq!(bare.chat("m").unwrap().as_str(), "https://example.com/chat/completions");
    }

    #[test]
    fn keys_are_sensitive_and_must_be_sendable() {
        let target_ok = target("https://example.com/v1", " sk-1\n").unwrap();
        assert_eq!(target_ok.headers[AUTHORIZATION], "Bearer sk-1");
        assert!(target_ok.headers[AUTHORIZATION].is_sensitive());
        assert!(matches!(target("https://example.com/v1", "a\nb"), Err(Unusable::Key(_))));
        assert!(!target("https://example.com/v1", "").unwrap().headers.contains_key(AUTHORIZATION));
    }
}
