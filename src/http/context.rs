//! What every request has: an id, a span in the log, and headers that every answer carries.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use uuid::Uuid;

tokio::task_local! {
    static REQUEST_ID: Arc<str>;
}

const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the request that this task answers; for tasks that answer none, a new one.
pub fn request_id() -> String {
    REQUEST_ID.try_with(|id| id.to_string()).unwrap_or_else(|_| Uuid::now_v7().to_string())
}

/// Gives the request an id of our own (a client's would let it write into the log), logs its end, and sets headers
/// that keep browsers from guessing types, framing pages or storing answers.
pub async fn middleware(request: Request, next: Next) -> Response {
    let id: Arc<str> = Uuid::now_v7().to_string().into();
    // The path only: a query may hold what should not be logged.
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        method = %request.method(),
        path = request.uri().path(),
        tenant = tracing::field::Empty,
        status = tracing::field::Empty
    );
    let started = std::time::Instant::now();
    let answer = async {
        let response = next.run(request).await;
        tracing::Span::current().record("status", response.status().as_u16());
        tracing::info!(latency_ms = started.elapsed().as_millis() as u64, "answer");
        response
    };
    let mut response = REQUEST_ID.scope(Arc::clone(&id), answer.instrument(span)).await;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A policy of its own says more exactly who may frame a page.
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
