//! `/api/v1/images`: the images that the caller's questions came with.

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::access::ConversationsOwn;
use crate::api::Problem;
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::{Active, Path};
use crate::ids::ImageId;

/// What somebody has sent must be nothing but an image to any browser, wherever it is opened: no other type is guessed, and nothing in it
/// runs. It may be kept by the browser of whoever may see it, and is asked for again with another token.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
    (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600")),
    (header::VARY, HeaderValue::from_static("authorization")),
];

/// An image that came with one of the caller's questions, as it was sent.
#[utoipa::path(
    get,
    path = "/api/v1/images/{id}",
    tag = "chat",
    security(("tenant_user" = [])),
    params(("id" = uuid::Uuid, Path, description = "the image's id")),
    responses(
        (status = 200, description = "its bytes, with its own media type", content(
            (Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/webp"), (Vec<u8> = "image/gif")
        )),
        (status = 403, body = Problem),
        (status = 404, description = "the image is not the caller's", body = Problem)
    )
)]
pub async fn show(
    Active { caller, .. }: Active<ConversationsOwn>,
    State(state): State<AppState>,
    Path(id): Path<ImageId>,
) -> ApiResult<Response> {
    let image = state.chat.image(&caller, id).await?;
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(image.media_type.as_str()))];
    Ok((HEADERS, content_type, image.content).into_response())
}
