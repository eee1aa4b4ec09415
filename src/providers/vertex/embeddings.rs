//! Embeddings: texts in, vectors out.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Target, Vertex};
use crate::json;
use crate::providers::client::read_body;
use crate::providers::error::ProviderError;
use crate::providers::vectors::{Numbers, most_bytes, one_a_text};
use crate::providers::{EmbeddingRequest, Embeddings, Usage};

/// The most texts of one call: 250 are allowed, but of no more than 20,000 tokens together.
const MOST_TEXTS: usize = 50;

#[derive(Serialize)]
struct Body<'a> {
    instances: Vec<Instance<'a>>,
    parameters: Parameters,
}

#[derive(Serialize)]
struct Instance<'a> {
    content: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimensionality: Option<u32>,
}

#[derive(Deserialize)]
struct Answer {
    predictions: Vec<Prediction>,
}

#[derive(Deserialize)]
struct Prediction {
    embeddings: Vector,
}

#[derive(Deserialize)]
struct Vector {
    values: Numbers,
    #[serde(default)]
    statistics: Option<Statistics>,
}

#[derive(Deserialize)]
struct Statistics {
    /// A whole number, which is also written as `3.0`.
    token_count: Option<f64>,
}

/// How many texts of a model one call may have.
pub(super) fn most_texts(model: &str) -> usize {
    // These take one text at a time.
    if model.contains("gemini-embedding") { 1 } else { MOST_TEXTS }
}

pub(super) async fn embed(
    vertex: &Vertex,
    target: &Target,
    request: &EmbeddingRequest,
) -> Result<Embeddings, ProviderError> {
    let EmbeddingRequest { model, input, dimensions } = request;
    if input.is_empty() {
        return Ok(Embeddings::default());
    }
    let url = target.method(model, "predict")?;
    let instances = input.iter().map(|content| Instance { content }).collect();
    let body = Body { instances, parameters: Parameters { output_dimensionality: *dimensions } };
    let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
    let response = vertex.post(target, &url, Bytes::from(body)).await?;
    let body = read_body(response, most_bytes(input.len()), vertex.client.timeouts().between_tokens).await?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| ProviderError::Unavailable(json::place(&error).into()))?;
    let tokens = answer.predictions.iter().map(|prediction| prediction.embeddings.tokens()).sum::<Option<u64>>();
    let vectors = answer.predictions.into_iter().map(|prediction| prediction.embeddings.values);
    let vectors = one_a_text(input.len(), vectors)?;
    let usage =
        tokens.map(|input_tokens| Usage { input_tokens, output_tokens: 0, cached_input_tokens: 0, reported: true });
    Ok(Embeddings { vectors, usage })
}

impl Vector {
    fn tokens(&self) -> Option<u64> {
        let count = self.statistics.as_ref()?.token_count?;
        // No text has so many tokens that the conversion would lose any.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number, checked here")]
        (0.0..1e12).contains(&count).then_some(count as u64)
    }
}
