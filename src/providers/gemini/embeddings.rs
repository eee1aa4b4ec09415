//! Embeddings: texts in, vectors out.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Target, resource};
use crate::json;
use crate::providers::client::{ProviderClient, read_body};
use crate::providers::error::ProviderError;
use crate::providers::vectors::{Numbers, most_bytes, one_a_text};
use crate::providers::{EmbeddingRequest, Embeddings};

/// The most texts of one call.
pub(super) const MOST_TEXTS: usize = 100;

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
    values: Numbers,
}

/// The interface does not count tokens here.
pub(super) async fn embed(
    client: &ProviderClient,
    target: &Target,
    request: &EmbeddingRequest,
) -> Result<Embeddings, ProviderError> {
    let EmbeddingRequest { model, input, dimensions } = request;
    if input.is_empty() {
        return Ok(Embeddings::default());
    }
    let url = target.method(model, "batchEmbedContents")?;
    let model = resource(model);
    let requests = input.iter().map(|text| One {
        model: &model,
        content: Content { parts: [Part { text }] },
        output_dimensionality: *dimensions,
    });
    let body = Body { requests: requests.collect() };
    let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
    let response = client.post(&url, &target.headers, Bytes::from(body)).await?;
    let body = read_body(response, most_bytes(input.len()), client.timeouts().between_tokens).await?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| ProviderError::Unavailable(json::place(&error).into()))?;
    let vectors = one_a_text(input.len(), answer.embeddings.into_iter().map(|vector| vector.values))?;
    Ok(Embeddings { vectors, usage: None })
}
