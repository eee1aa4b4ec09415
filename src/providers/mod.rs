//! Model providers: one trait, one file for each wire format.
//!
//! Providers know nothing of tenants, conversations or prices. A provider is built from a client's settings and
//! the process's one [`ProviderClient`]; every call streams, and dropping the stream (or the future that makes it)
//! ends the call upstream.

pub mod address;
mod client;
mod error;
mod openai_compatible;
mod request;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

pub use address::{AddressError, AddressPolicy, validate_base_url};
pub use client::{ProviderClient, ProviderClientError, ProviderClientOptions, Retries, Timeouts};
pub use error::{Cause, ProviderError};
pub use request::{
    ChatEvent, ChatMessage, ChatRequest, ChatRole, Content, EmbeddingRequest, Embeddings, FinishReason, Image,
    ImageSource, Part, ResponseFormat, Tool, ToolCall, ToolCallDelta, ToolChoice, Usage,
};

/// A model provider reached with one client's key.
pub trait ModelProvider: Send + Sync {
    /// Starts an answer. The future resolves when the provider has accepted the call; the stream then yields text
    /// and, last, exactly one [`ChatEvent::Finished`] or one error, after which it ends.
    ///
    /// # Errors
    /// Any [`ProviderError`] but `Interrupted`, which needs delivered text.
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>>;

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// [`ProviderError::Unsupported`] where the provider has no such models, and whatever a call reports.
    fn embed(&self, request: EmbeddingRequest) -> BoxFuture<'_, Result<Embeddings, ProviderError>> {
        drop(request);
        Box::pin(async { Err(ProviderError::Unsupported("this provider has no embeddings".into())) })
    }
}

/// The answer as it comes.
pub type ChatStream = BoxStream<'static, Result<ChatEvent, ProviderError>>;

/// The wire formats there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProviderKind {
    /// OpenAI, and every server that speaks its chat completions (vLLM, llama.cpp, Ollama and many more).
    OpenaiCompatible,
}

impl ProviderKind {
    /// The word that is stored and sent, as serde writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenaiCompatible => "openai_compatible",
        }
    }
}

/// A client's settings for one provider. Its `Debug` hides the key.
#[derive(Debug, Clone)]
pub struct ProviderSpec {
    /// Which wire format.
    pub provider: ProviderKind,
    /// Where, up to and including the version: `https://api.openai.com/v1`.
    pub base_url: Url,
    /// The client's own key. An empty one sends no `Authorization` at all, for local servers.
    pub api_key: SecretString,
}

/// Builds a provider. Cheap beside a call but not free: keep the result for as long as the settings hold.
///
/// A refused address or an impossible key is reported by each call rather than here, as the same kinds a call
/// reports anyway.
#[must_use]
pub fn build(spec: &ProviderSpec, client: &ProviderClient) -> Arc<dyn ModelProvider> {
    match spec.provider {
        ProviderKind::OpenaiCompatible => Arc::new(openai_compatible::OpenAiCompatible::new(spec, client)),
    }
}

/// The result of trying a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestVerdict {
    /// Milliseconds from the call to the end of its answer.
    pub latency_ms: u64,
    /// The model that was asked and answered.
    pub model: String,
}

/// Tries a key with the cheapest real call: listing models would prove neither the model nor the credit.
///
/// # Errors
/// What the call reports; `Timeout` after 30 s, because a person waits for the verdict.
pub async fn test(provider: &dyn ModelProvider, model: &str) -> Result<TestVerdict, ProviderError> {
    let request = ChatRequest {
        model: model.to_owned(),
        messages: vec![ChatMessage::text(ChatRole::User, "ping")],
        max_tokens: Some(1),
        ..ChatRequest::default()
    };
    let start = Instant::now();
    let call = async {
        let mut answer = provider.chat(request).await?;
        while let Some(event) = answer.next().await {
            event?;
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), call)
        .await
        .map_err(|elapsed| ProviderError::Timeout(elapsed.into()))??;
    let latency_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(TestVerdict { latency_ms, model: model.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_stored_as_serde_writes_them() {
        let kind = ProviderKind::OpenaiCompatible;
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }

    #[test]
    fn a_spec_does_not_show_its_key() {
        let spec = ProviderSpec {
            provider: ProviderKind::OpenaiCompatible,
            base_url: "https://api.example.com/v1".parse().unwrap(),
            api_key: "sk-secret".to_owned().into(),
        };
        assert!(!format!("{spec:?}").contains("sk-secret"));
    }
}
