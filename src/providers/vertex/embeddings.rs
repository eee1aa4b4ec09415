//! Embeddings: texts in, vectors out.

use bytes::Bytes;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Target, Vertex};
use crate::json;
use crate::providers::client::read_body;
use crate::providers::error::ProviderError;
use crate::providers::{EmbeddingRequest, Embeddings, Usage};

/// The most texts of one call: 250 are allowed, but of no more than 20,000 tokens together.
const BATCH: usize = 50;
/// How many calls are made at once.
const AT_ONCE: usize = 4;
/// Bytes that an answer may have: those of a full batch of the longest vectors.
const MAX_BYTES: usize = 8 * 1024 * 1024;

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
    values: Vec<f32>,
    #[serde(default)]
    statistics: Option<Statistics>,
}

#[derive(Deserialize)]
struct Statistics {
    /// A whole number, which is also written as `3.0`.
    token_count: Option<f64>,
}

pub(super) async fn embed(
    vertex: &Vertex,
    target: &Target,
    request: &EmbeddingRequest,
) -> Result<Embeddings, ProviderError> {
    let url = target.method(&request.model, "predict")?;
    // These take one text at a time.
    let batch = if request.model.contains("gemini-embedding") { 1 } else { BATCH };
    let mut vectors = Vec::with_capacity(request.input.len());
    let mut tokens = Some(0);
    for texts in request.input.chunks(batch * AT_ONCE) {
        let calls = texts.chunks(batch).map(|texts| predict(vertex, target, &url, texts, request.dimensions));
        for vector in try_join_all(calls).await?.into_iter().flatten() {
            tokens = tokens.zip(vector.tokens()).map(|(sum, more)| sum + more);
            vectors.push(vector.values);
        }
    }
    let usage = tokens.filter(|_| !vectors.is_empty()).map(|input_tokens| Usage {
        input_tokens,
        output_tokens: 0,
        cached_input_tokens: 0,
        reported: true,
    });
    Ok(Embeddings { vectors, usage })
}

async fn predict(
    vertex: &Vertex,
    target: &Target,
    url: &Url,
    texts: &[String],
    dimensions: Option<u32>,
) -> Result<Vec<Vector>, ProviderError> {
    let instances = texts.iter().map(|content| Instance { content }).collect();
    let body = Body { instances, parameters: Parameters { output_dimensionality: dimensions } };
    let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
    let response = vertex.post(target, url, Bytes::from(body)).await?;
    let body = read_body(response, MAX_BYTES, vertex.client.timeouts().between_tokens).await?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| ProviderError::Unavailable(json::place(&error).into()))?;
    if answer.predictions.len() != texts.len() {
        return Err(ProviderError::Unavailable("the answer does not have one vector a text".into()));
    }
    Ok(answer.predictions.into_iter().map(|prediction| prediction.embeddings).collect())
}

impl Vector {
    fn tokens(&self) -> Option<u64> {
        let count = self.statistics.as_ref()?.token_count?;
        // No text has so many tokens that the conversion would lose any.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number, checked here")]
        (0.0..1e12).contains(&count).then_some(count as u64)
    }
}
