//! Anthropic's Messages API.

mod events;
mod request;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret as _;
use url::Url;

use self::events::Messages;
use super::client::ProviderClient;
use super::error::ProviderError;
use super::quirks::Quirks;
use super::spec::{ProviderSpec, Unusable, append, headers, secret_header, segments};
use super::stream;
use super::{ChatRequest, ChatStream, ModelProvider};

/// The version of the interface, which is a date and has been this one since there are messages.
const VERSION: &str = "2023-06-01";

pub(super) struct Anthropic {
    client: ProviderClient,
    target: Result<Target, Unusable>,
    quirks: Quirks,
}

/// Everything about a call that its request does not change, made once.
pub(super) struct Target {
    url: Url,
    headers: HeaderMap,
}

impl Anthropic {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Self {
        Self { client: client.clone(), target: Target::new(spec, client), quirks: Quirks::default() }
    }

    async fn start(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let target = self.target.as_ref().map_err(|&unusable| ProviderError::from(unusable))?;
        let known = self.quirks.of(&request.model);
        let mut quirk = known;
        loop {
            let body = request::body(request, quirk)?;
            let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
            match self.client.post(&target.url, &target.headers, Bytes::from(body)).await {
                Ok(response) => {
                    self.quirks.prove(request, known, quirk);
                    return stream::events(&self.client, response, Messages::default()).await;
                }
                Err(error) => quirk = quirk.after(&error).ok_or(error)?,
            }
        }
    }
}

impl ModelProvider for Anthropic {
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
        Box::pin(async move { self.start(&request).await })
    }
}

impl Target {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Result<Self, Unusable> {
        client.policy().check(&spec.base_url)?;
        let versioned = segments(&spec.base_url).last() == Some(&"v1");
        let path: &[&str] = if versioned { &["messages"] } else { &["v1", "messages"] };
        let mut headers = headers();
        headers.insert("x-api-key", secret_header(spec.api_key.expose_secret().trim())?);
        headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
        Ok(Self { url: append(&spec.base_url, path.iter().copied())?, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ProviderKind;
    use crate::providers::spec::tests::{client, spec};

    #[test]
    fn the_address_is_the_same_with_and_without_its_version() {
        for base in ["https://api.anthropic.com", "https://api.anthropic.com/v1", "https://api.anthropic.com/v1/"] {
            let target = Target::new(&spec(ProviderKind::Anthropic, base, "sk-ant-1"), &client()).unwrap();
            assert_eq!(target.url.as_str(), "https://api.anthropic.com/v1/messages");
            assert_eq!(target.headers["x-api-key"], "sk-ant-1");
            assert!(target.headers["x-api-key"].is_sensitive() && !target.headers.contains_key("authorization"));
            assert_eq!(target.headers["anthropic-version"], "2023-06-01");
        }
    }
}
