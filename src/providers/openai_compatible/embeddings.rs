//! Embeddings: texts in, vectors out, in one answer that is not streamed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::Target;
use crate::json;
use crate::providers::client::{ProviderClient, read_body};
use crate::providers::error::ProviderError;
use crate::providers::vectors::{Numbers, most_bytes};
use crate::providers::{EmbeddingRequest, Embeddings, Usage};

#[derive(Serialize)]
struct WireRequest<'a> {
    model: &'a str,
    input: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
    encoding_format: &'static str,
}

pub(super) async fn embed(
    client: &ProviderClient,
    target: &Target,
    request: &EmbeddingRequest,
) -> Result<Embeddings, ProviderError> {
    if request.input.is_empty() {
        return Ok(Embeddings::default());
    }
    let EmbeddingRequest { model, input, dimensions } = request;
    // Not every server knows Base64, which would be shorter.
    let body = WireRequest { model, input, dimensions: *dimensions, encoding_format: "float" };
    let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
    let url = target.embeddings(model)?;
    let response = client.post(&url, &target.headers, Bytes::from(body)).await?;
    let body = read_body(response, most_bytes(input.len()), client.timeouts().between_tokens).await?;
    let answer: WireAnswer =
        serde_json::from_slice(&body).map_err(|error| ProviderError::Unavailable(json::place(&error).into()))?;
    answer.into_embeddings(input.len())
}

#[derive(Deserialize)]
struct WireAnswer {
    data: Vec<WireVector>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireVector {
    #[serde(default)]
    index: Option<usize>,
    embedding: Encoded,
}

/// Numbers, or their bytes in Base64 from servers that send nothing else.
enum Encoded {
    Plain(Numbers),
    Base64(String),
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand: the derived way keeps every number as a value of 32 bytes while it tries one form after the other.
        deserializer.deserialize_any(EncodedVisitor)
    }
}

struct EncodedVisitor;

impl<'de> Visitor<'de> for EncodedVisitor {
    type Value = Encoded;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, or their bytes in Base64")
    }

    fn visit_str<E>(self, text: &str) -> Result<Encoded, E> {
        Ok(Encoded::Base64(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Encoded, A::Error> {
        Numbers::read(list).map(Encoded::Plain)
    }
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
}

impl WireAnswer {
    /// The vectors in the order of the texts: each text has one, and only one.
    fn into_embeddings(self, texts: usize) -> Result<Embeddings, ProviderError> {
        let odd = || ProviderError::Unavailable("the answer does not have one vector a text".into());
        let mut vectors = vec![Vec::new(); texts];
        for (position, vector) in self.data.into_iter().enumerate() {
            let place = vectors.get_mut(vector.index.unwrap_or(position)).ok_or_else(odd)?;
            if !place.is_empty() {
                return Err(odd());
            }
            *place = vector.embedding.into_vector().ok_or_else(odd)?;
        }
        if vectors.iter().any(Vec::is_empty) {
            return Err(odd());
        }
        let usage = self.usage.and_then(|usage| usage.prompt_tokens).map(|input_tokens| Usage {
            input_tokens,
            output_tokens: 0,
            cached_input_tokens: 0,
            reported: true,
        });
        Ok(Embeddings { vectors, usage })
    }
}

impl Encoded {
    fn into_vector(self) -> Option<Vec<f32>> {
        match self {
            Self::Plain(Numbers(numbers)) => Some(numbers),
            Self::Base64(text) => {
                let bytes = BASE64_STANDARD.decode(text).ok()?;
                let (numbers, rest) = bytes.as_chunks::<4>();
                rest.is_empty().then(|| numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, texts: usize) -> Result<Embeddings, &'static str> {
        let answer: WireAnswer = serde_json::from_str(json).unwrap();
        answer.into_embeddings(texts).map_err(|error| error.code())
    }

    #[test]
    fn vectors_come_in_the_order_of_the_texts() {
        let json = r#"{"object":"list","data":[{"index":1,"embedding":"AACAPwAAAMA="},{"index":0,"embedding":[0.5,-1]}],
            "model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}"#;
        let embeddings = read(json, 2).unwrap();
        assert_eq!(embeddings.vectors, [[0.5, -1.0], [1.0, -2.0]]);
        assert_eq!(embeddings.usage.unwrap().input_tokens, 5);
    }

    #[test]
    fn each_text_has_one_vector() {
        for json in [
            r#"{"data":[{"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":[1]},{"embedding":[1]}]}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":[]}]}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":"AAA="}]}"#,
        ] {
            assert_eq!(read(json, 2).map(drop), Err("provider_unavailable"), "{json}");
        }
    }
}
