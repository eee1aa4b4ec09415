//! Embeddings: texts in, vectors out.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Target, resource};
use crate::json;
use crate::providers::client::{ProviderClient, read_body};
use crate::providers::error::ProviderError;
use crate::providers::{EmbeddingRequest, Embeddings};

/// The most texts of one call.
const BATCH: usize = 100;
/// Bytes that an answer may have: those of a full batch of the longest vectors.
const MAX_BYTES: usize = 16 * 1024 * 1024;

#[derive(Serialize)]
struct Body<'a> {
    requests: Vec<One<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct One<'a> {
    model: &'a str,
    content: Content<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimensionality: Option<u32>,
}

#[derive(Serialize)]
struct Content<'a> {
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
struct Part<'a> {
    text: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    values: Vec<f32>,
}

/// The interface does not count tokens here.
pub(super) async fn embed(
    client: &ProviderClient,
    target: &Target,
    request: &EmbeddingRequest,
) -> Result<Embeddings, ProviderError> {
    let model = resource(&request.model);
    let url = target.method(&request.model, "batchEmbedContents")?;
    let mut vectors = Vec::with_capacity(request.input.len());
    for texts in request.input.chunks(BATCH) {
        let requests = texts.iter().map(|text| One {
            model: &model,
            content: Content { parts: [Part { text }] },
            output_dimensionality: request.dimensions,
        });
        let body = Body { requests: requests.collect() };
        let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
        let response = client.post(&url, &target.headers, Bytes::from(body)).await?;
        let body = read_body(response, MAX_BYTES, client.timeouts().between_tokens).await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| ProviderError::Unavailable(json::place(&error).into()))?;
        if answer.embeddings.len() != texts.len() {
            return Err(ProviderError::Unavailable("the answer does not have one vector a text".into()));
        }
        vectors.extend(answer.embeddings.into_iter().map(|vector| vector.values));
    }
    Ok(Embeddings { vectors, usage: None })
}
