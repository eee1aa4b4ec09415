//! Google's Gemini API, with an API key. The bodies and events are Vertex AI's as well.

mod embeddings;
pub(super) mod events;
pub(super) mod request;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use secrecy::ExposeSecret as _;
use url::Url;

use self::events::GenerateContent;
use super::client::ProviderClient;
use super::error::ProviderError;
use super::spec::{ProviderSpec, Unusable, append, headers, secret_header, segments};
use super::stream;
use super::{ChatRequest, ChatStream, EmbeddingRequest, Embeddings, ModelProvider};

pub(super) struct Gemini {
    client: ProviderClient,
    target: Result<Target, Unusable>,
}

/// Everything about a call that its request does not change, made once.
pub(super) struct Target {
    /// Up to and including the version.
    base: Url,
    headers: HeaderMap,
}

impl Gemini {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Self {
        Self { client: client.clone(), target: Target::new(spec, client) }
    }

    fn target(&self) -> Result<&Target, ProviderError> {
        self.target.as_ref().map_err(|&unusable| unusable.into())
    }

    async fn start(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let target = self.target()?;
        let body = request::body(request)?;
        let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
        let mut url = target.method(&request.model, "streamGenerateContent")?;
        url.set_query(Some("alt=sse"));
        let response = self.client.post(&url, &target.headers, Bytes::from(body)).await?;
        stream::events(&self.client, response, GenerateContent::default()).await
    }
}

impl ModelProvider for Gemini {
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
        Box::pin(async move { self.start(&request).await })
    }

    fn most_texts(&self, _model: &str) -> usize {
        embeddings::MOST_TEXTS
    }

    fn embed(&self, request: EmbeddingRequest) -> BoxFuture<'_, Result<Embeddings, ProviderError>> {
        Box::pin(async move { embeddings::embed(&self.client, self.target()?, &request).await })
    }
}

impl Target {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Result<Self, Unusable> {
        client.policy().check(&spec.base_url)?;
        let versioned = segments(&spec.base_url).last().is_some_and(|last| last.starts_with("v1"));
        let base = append(&spec.base_url, (!versioned).then_some("v1beta"))?;
        let mut headers = headers();
        // The key could be in the URL as well, where it would end up in logs.
        headers.insert("x-goog-api-key", secret_header(spec.api_key.expose_secret().trim())?);
        Ok(Self { base, headers })
    }

    /// The address of a model's method.
    fn method(&self, model: &str, method: &str) -> Result<Url, Unusable> {
        let model = resource(model);
        let (kind, name) = model.split_once('/').unwrap_or(("models", &model));
        append(&self.base, [kind, &format!("{name}:{method}")])
    }
}

/// A model's full name: tuned models have one of another kind already.
fn resource(model: &str) -> String {
    if model.starts_with("models/") || model.starts_with("tunedModels/") {
        return model.to_owned();
    }
    format!("models/{model}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ProviderKind;
    use crate::providers::spec::tests::{client, spec};

    #[test]
    fn the_model_is_in_the_address_and_the_key_is_not() {
        let at = |base: &str, model: &str| {
            let target = Target::new(&spec(ProviderKind::Gemini, base, "AIza-secret"), &client()).unwrap();
            assert_eq!(target.headers["x-goog-api-key"], "AIza-secret");
            assert!(target.headers["x-goog-api-key"].is_sensitive());
            target.method(model, "streamGenerateContent").unwrap().to_string()
        };
        let host = "https://generativelanguage.googleapis.com";
        let expected = format!("{host}/v1beta/models/gemini-2.5-flash:streamGenerateContent");
        for base in [host.to_owned(), format!("{host}/v1beta"), format!("{host}/v1beta/")] {
            assert_eq!(at(&base, "gemini-2.5-flash"), expected);
            assert_eq!(at(&base, "models/gemini-2.5-flash"), expected);
        }
        assert_eq!(at(host, "tunedModels/x"), format!("{host}/v1beta/tunedModels/x:streamGenerateContent"));
        let sly = at(host, "../../x?key=1#/y");
        assert_eq!(sly, format!("{host}/v1beta/models/..%2F..%2Fx%3Fkey=1%23%2Fy:streamGenerateContent"));
    }
}
