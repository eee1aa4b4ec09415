//! A model provider that keeps books of its own, for comparing them with the server's.
//!
//! A request carries its number in `metadata.call`, which is reported as its prompt tokens: so a row of the ledger says
//! by itself which call it is of. `counted` answers at once; `counted-<ms>` waits that long before each event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

/// Tokens of every answer.
pub(crate) const OUTPUT_TOKENS: i64 = 27;

/// What became of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entry {
    /// How often it was asked.
    pub(crate) asked: u32,
    /// Whether its usage was sent.
    pub(crate) reported: bool,
    /// When the caller left before the end.
    pub(crate) left: Option<Instant>,
}

/// The books.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books(Arc<Mutex<HashMap<i64, Entry>>>);

impl Books {
    fn note(&self, call: i64, change: impl FnOnce(&mut Entry)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(call).or_default());
    }

    /// A copy.
    pub(crate) fn entries(&self) -> HashMap<i64, Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of one call.
    pub(crate) fn entry(&self, call: i64) -> Entry {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&call).copied().unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    call: serde_json::Value,
}

/// Notes that the caller has left, unless the answer came to its end.
struct Presence {
    books: Books,
    call: i64,
    done: bool,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if !self.done {
            self.books.note(self.call, |entry| entry.left = Some(Instant::now()));
        }
    }
}

/// Starts it within this process, on threads of its own. Returns its base URL and its books.
pub(crate) fn start() -> Result<(String, Books)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let books = Books::default();
    let app = Router::new().route("/v1/chat/completions", post(chat)).with_state(books.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map(|runtime| {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?.tap_io(|socket: &mut TcpStream| {
                    let _ = socket.set_nodelay(true);
                });
                axum::serve(listener, app).await
            })
        })
    });
    Ok((url, books))
}

async fn chat(State(books): State<Books>, Json(asked): Json<Asked>) -> Response {
    let call = match &asked.metadata.call {
        serde_json::Value::String(text) => text.parse().unwrap_or_default(),
        number => number.as_i64().unwrap_or_default(),
    };
    books.note(call, |entry| entry.asked += 1);
    let pace = asked
        .model
        .strip_prefix("counted-")
        .and_then(|ms| ms.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    let mut presence = Presence { books, call, done: false };
    let usage = json!({
        "prompt_tokens": call, "completion_tokens": OUTPUT_TOKENS, "total_tokens": call + OUTPUT_TOKENS
    });
    if !asked.stream {
        tokio::time::sleep(pace).await;
        presence.books.note(call, |entry| entry.reported = true);
        presence.done = true;
        let message = json!({ "role": "assistant", "content": "word ".repeat(27) });
        return Json(json!({
            "id": "x", "object": "chat.completion", "created": 0, "model": asked.model, "usage": usage,
            "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }]
        }))
        .into_response();
    }
    let chunk = |choices: serde_json::Value, usage: Option<&serde_json::Value>| {
        let chunk = json!({
            "id": "x", "object": "chat.completion.chunk", "created": 0, "model": asked.model, "choices": choices,
            "usage": usage
        });
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let delta = |delta: serde_json::Value, reason: Option<&str>| {
        chunk(json!([{ "index": 0, "delta": delta, "finish_reason": reason }]), None)
    };
    let mut events = vec![delta(json!({ "role": "assistant", "content": "" }), None)];
    events.extend((0..OUTPUT_TOKENS).map(|_| delta(json!({ "content": "word " }), None)));
    events.push(delta(json!({}), Some("stop")));
    events.push(chunk(json!([]), Some(&usage)));
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    let body = futures::stream::unfold((events.into_iter(), presence), move |(mut events, mut presence)| async move {
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        let event = events.next()?;
        match events.len() {
            // The usage goes out with this one.
            1 => presence.books.note(presence.call, |entry| entry.reported = true),
            0 => presence.done = true,
            _ => {}
        }
        Some((Ok::<_, std::convert::Infallible>(event), (events, presence)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}
