//! `/v1/embeddings`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::OpenAiError;
use super::extract::{ApiKeyCaller, EmbeddingsScope, RawBody};
use super::request;
use crate::api::openai::{EmbeddingData, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EmbeddingVector, ErrorBody};
use crate::app::AppState;
use crate::chat::CallContext;
use crate::http::limits::{self, Asker};
use crate::metering::CallKind;
use crate::providers;

/// Turns texts into vectors, in the form of OpenAI's API.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    security(("api_key" = [])),
    request_body = EmbeddingRequest,
    responses(
        (status = 200, body = EmbeddingList),
        (status = 400, description = "a parameter was refused", body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 403, description = "the key lacks the scope, the plan the feature, or the service is suspended", body = ErrorBody),
        (status = 404, description = "no such model", body = ErrorBody),
        (status = 408, description = "the body took too long to arrive", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 429, description = "too many requests, a quota is used up, or the model provider limits requests", body = ErrorBody),
        (status = 502, description = "the model provider failed", body = ErrorBody),
        (status = 409, description = "a stored AI key has to be set again by an admin", body = ErrorBody),
        (status = 503, description = "no model provider answers, or too much is being sent at once", body = ErrorBody),
        (status = 504, description = "the model provider did not answer in time", body = ErrorBody)
    )
)]
pub async fn create(
    ApiKeyCaller { key, .. }: ApiKeyCaller<EmbeddingsScope>,
    State(state): State<AppState>,
    RawBody(body, room): RawBody,
) -> Result<Response, OpenAiError> {
    let asked = EmbeddingRequest::parse(&body)?;
    drop(body);
    let model = request::model(asked.model)?;
    let as_base64 = match asked.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "`encoding_format` must be `float` or `base64`.";
            return Err(OpenAiError::invalid("encoding_format", "invalid_value", message));
        }
    };
    if asked.dimensions == Some(0) {
        return Err(OpenAiError::invalid("dimensions", "invalid_value", "`dimensions` must be at least 1."));
    }
    let input = request::inputs(asked.input)?;
    let request = providers::EmbeddingRequest { model: String::new(), input, dimensions: asked.dimensions };
    let record = key.db.record();
    let plan = limits::terms(&state, record);
    plan.require("api")?;
    plan.require("embeddings")?;
    let admission = limits::admit(&state, record, &plan, Asker::ApiKey(key.id())).await?;
    let (api_key_id, kind, permit) = (Some(key.id()), CallKind::Embedding, admission.permit);
    let call = CallContext { db: key.db, user_id: None, api_key_id, kind, model: model.clone(), permit, room };
    let answer = state.chat.embed(call, request).await.map_err(|error| OpenAiError::of_chat(error, &model))?;
    let vectors = answer.embeddings.vectors.into_iter().enumerate();
    let data = vectors.map(|(index, vector)| EmbeddingData {
        object: "embedding",
        index,
        embedding: if as_base64 { EmbeddingVector::Base64(encode(&vector)) } else { EmbeddingVector::Floats(vector) },
    });
    let usage = answer
        .embeddings
        .usage
        .map(|usage| EmbeddingUsage { prompt_tokens: usage.input_tokens, total_tokens: usage.input_tokens });
    let mut response = Json(EmbeddingList { object: "list", data: data.collect(), model, usage }).into_response();
    limits::tell(response.headers_mut(), admission.rate);
    Ok(response)
}

fn encode(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_little_endian_floats_in_base64() {
        assert_eq!(encode(&[1.0, -2.5]), "AACAPwAAIMA=");
    }
}
