//! The hosted chat page `/c/{slug}`, its files, and what embeds it elsewhere. For browsers: these routes are not in the
//! OpenAPI document, and what they show of a tenant is for everybody.

mod session;

use std::io::Read as _;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use bytes::Bytes;

use super::error::{ApiError, ApiResult};
use crate::app::AppState;
use crate::pages::assets::Asset;
use crate::pages::{PageError, Rendered};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const PERMISSIONS: HeaderValue = HeaderValue::from_static("camera=(), microphone=(), geolocation=(), payment=()");
/// The path of an asset names its content.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// A file in the place of another version's is nobody's to keep.
const NOT_AT_ALL: HeaderValue = HeaderValue::from_static("no-store");
/// The widget's address stays the same, so that sites need not be changed when it is.
const FOR_A_WHILE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// All of them.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/c/{slug}", get(show))
        .route("/c/{slug}/icon.svg", get(icon))
        .route("/c/{slug}/widget.json", get(widget))
        .route("/c/{slug}/session", post(session::create).delete(session::end))
        .route("/c/{slug}/session/refresh", post(session::refresh))
        .route("/assets/{version}/{file}", get(asset))
        .route("/widget.js", get(widget_script))
}

/// How the page is shown.
#[derive(Debug, serde::Deserialize)]
struct Shown {
    /// Anything: it is shown in a frame.
    embedded: Option<String>,
}

/// A tenant's page. One that does not exist and one that is out of service look alike.
async fn show(
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Query(shown): Query<Shown>,
    headers: HeaderMap,
) -> Response {
    match state.pages.find(&slug).await {
        Ok(Some(page)) if shown.embedded.is_some() => html(StatusCode::OK, &page.embedded, &headers),
        Ok(Some(page)) => html(StatusCode::OK, &page.page, &headers),
        Ok(None) => unavailable(&state, StatusCode::NOT_FOUND, None, &headers),
        Err(error) => {
            let error = ApiError::from(error);
            unavailable(&state, error.status(), error.wait(), &headers)
        }
    }
}

/// The page in the place of one that cannot be shown, in the reader's language: whose page it would be is not known, or not told.
fn unavailable(state: &AppState, status: StatusCode, wait: Option<Duration>, headers: &HeaderMap) -> Response {
    let tags = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = match state.pages.unavailable(status != StatusCode::NOT_FOUND, tags) {
        Ok(rendered) => html(status, &rendered, headers),
        Err(error) => return ApiError::from(error).into_response(),
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("accept-language"));
    if let Some(wait) = wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    response
}

fn html(status: StatusCode, rendered: &Rendered, headers: &HeaderMap) -> Response {
    let policy = HeaderValue::from_str(&rendered.policy);
    let mut plain = Vec::new();
    let compressed = accepts_gzip(headers);
    // Hardly anybody cannot read it compressed, so it is kept in that form only.
    if !compressed && flate2::read::GzDecoder::new(&*rendered.compressed).read_to_end(&mut plain).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let mut response = bytes(compressed, rendered.compressed.clone(), plain.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HTML);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("permissions-policy"), PERMISSIONS);
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    match policy {
        Ok(policy) => {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        }
        // Without its policy a page is not shown.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The tenant's sign.
async fn icon(State(state): State<AppState>, Path(slug): Path<String>) -> ApiResult<Response> {
    let page = state.pages.find(&slug).await?.ok_or_else(|| ApiError::not_found("page"))?;
    let mut response = Response::new(Body::from(page.icon.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"));
    headers.insert(header::CACHE_CONTROL, FOR_A_WHILE);
    // Opened by itself, an image is a document.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    Ok(response)
}

/// What the button on a client's own site looks like, for the sites that the client allows and for nobody else.
async fn widget(State(state): State<AppState>, Path(slug): Path<String>, headers: HeaderMap) -> ApiResult<Response> {
    let page = state.pages.find(&slug).await?;
    let origin = headers.get(header::ORIGIN);
    let allowed = page.as_ref().zip(origin).filter(|(page, origin)| {
        origin.to_str().is_ok_and(|origin| page.allowed_origins.iter().any(|allowed| allowed == origin))
    });
    let Some((page, origin)) = allowed else {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", "This site may not embed the chat")
            .detail("an admin adds it to `widget.allowed_origins` in the settings"));
    };
    let mut response = axum::Json(page.widget.clone()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

async fn asset(
    State(state): State<AppState>,
    Path((version, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let (asset, own) = state.pages.assets().file(&version, &file).ok_or_else(|| ApiError::not_found("file"))?;
    Ok(file_response(asset, if own { FOR_EVER } else { NOT_AT_ALL }, &headers))
}

async fn widget_script(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let mut response = file_response(state.pages.assets().widget(), FOR_A_WHILE, &headers);
    // Sites that shut everything foreign out let this in: it is made for them.
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    response.headers_mut().insert(policy, HeaderValue::from_static("cross-origin"));
    response
}

fn file_response(asset: &Asset, caching: HeaderValue, headers: &HeaderMap) -> Response {
    let mut response = bytes(accepts_gzip(headers), asset.compressed.clone(), asset.plain.clone());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(header::CACHE_CONTROL, caching);
    response
}

fn bytes(compressed: bool, gzip: Bytes, plain: Bytes) -> Response {
    let mut response = Response::new(Body::from(if compressed { gzip } else { plain }));
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether a client reads gzip. One that names it to refuse it gets it plain.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let Some(accepted) = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        named && !parts.any(|weight| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

impl From<PageError> for ApiError {
    fn from(error: PageError) -> Self {
        match error {
            PageError::Access(error) => error.into(),
            PageError::TenantDb(error) => error.into(),
            PageError::Configuration(error) => error.into(),
            PageError::Template(_) | PageError::Compress(_) => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_those_who_read_it() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate, br, zstd") && accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(!accepts("gzip;q=0") && !accepts("br") && !accepts("") && !accepts_gzip(&HeaderMap::new()));
    }
}
