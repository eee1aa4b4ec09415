//! Model providers: one trait, one module for each wire format.
//!
//! What all formats share is done once: calling, with its time-outs, retries and guarded addresses, in `client`; reading
//! an answer, with its bounds and its promises, in `stream`; what a client has to set, in `spec`.
//!
//! Providers know nothing of tenants, conversations or prices. A provider is built from a client's settings and
//! the process's one [`ProviderClient`]; every call streams, and dropping the stream (or the future that makes it)
//! ends the call upstream.

pub mod address;
mod anthropic;
mod azure_openai;
mod client;
mod error;
mod gemini;
mod openai_compatible;
mod quirks;
mod request;
mod spec;
mod stream;
mod vectors;
mod vertex;

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::Serialize;

pub use address::{AddressError, AddressPolicy, validate_base_url};
pub use client::{ProviderClient, ProviderClientError, ProviderClientOptions, Retries, Timeouts};
pub use error::{Cause, ProviderError};
pub use request::{
    ChatEvent, ChatMessage, ChatRequest, ChatRole, Content, EmbeddingRequest, Embeddings, FinishReason, Image,
    ImageSource, Part, ResponseFormat, Tool, ToolCall, ToolCallDelta, ToolChoice, Usage,
};
pub use spec::{ProviderKind, ProviderSpec, SpecError, build};

/// A model provider reached with one client's key.
pub trait ModelProvider: Send + Sync {
    /// Starts an answer. The future resolves when the provider has accepted the call; the stream then yields text
    /// and, last, exactly one [`ChatEvent::Finished`] or one error, after which it ends.
    ///
    /// # Errors
    /// Any [`ProviderError`] but `Interrupted`, which needs delivered text.
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>>;

    /// How many texts of a model one call turns into vectors, at most. Who has more makes several calls.
    fn most_texts(&self, model: &str) -> usize {
        let _ = model;
        usize::MAX
    }

    /// Turns texts into vectors, in one call: no more than [`Self::most_texts`].
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

/// The result of trying a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestVerdict {
    /// Milliseconds from the call to the end of its answer.
    pub latency_ms: u64,
    /// The model that was asked and answered.
    pub model: String,
}

/// What a try may write: as little as possible, and for models that refuse so little, since they think first, what a
/// short thought needs.
const TRIES: [u32; 2] = [1, 2_000];

/// Tries a key with the cheapest real call: listing models would prove neither the model nor the credit.
///
/// # Errors
/// What the call reports; `Timeout` after 30 s, because a person waits for the verdict.
pub async fn test(provider: &dyn ModelProvider, model: &str) -> Result<TestVerdict, ProviderError> {
    let start = Instant::now();
    let calls = async {
        let mut result = Ok(());
        for max_tokens in TRIES {
            result = ping(provider, model, max_tokens).await;
            if !matches!(result, Err(ProviderError::BadRequest(_))) {
                break;
            }
        }
        result
    };
    tokio::time::timeout(Duration::from_secs(30), calls)
        .await
        .map_err(|elapsed| ProviderError::Timeout(elapsed.into()))??;
    let latency_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(TestVerdict { latency_ms, model: model.to_owned() })
}

async fn ping(provider: &dyn ModelProvider, model: &str, max_tokens: u32) -> Result<(), ProviderError> {
    let request = ChatRequest {
        model: model.to_owned(),
        messages: vec![ChatMessage::text(ChatRole::User, "ping")],
        max_tokens: Some(max_tokens),
        ..ChatRequest::default()
    };
    let mut answer = provider.chat(request).await?;
    while let Some(event) = answer.next().await {
        event?;
    }
    Ok(())
}
