//! A model provider that answers without a model, well or badly as the model's name says.
//!
//! One server serves every test, since nothing about its behaviour is set: a test chooses by the model it asks for
//! and finds its own calls by the key it uses. It depends on nothing of the harness, so that the benchmarks' example
//! can include this file.
//!
//! | model | behaviour |
//! |---|---|
//! | `echo` | repeats the last user message, a word an event |
//! | `pieces-<n>`, `pieces-<n>-cut` | repeats the last user message, `n` characters an event; the connection drops behind it |
//! | `instant` | a fixed answer; as a stream with usage it is 31 events, the first a role and the last `[DONE]` |
//! | `slow-<ms>` | waits, then as `instant` |
//! | `says-<text>` | that text |
//! | `drip-<ms>` | as `instant`, waiting before each event |
//! | `cut` | drops the connection midway |
//! | `truncated` | ends the stream midway as if all were well |
//! | `length` | ends midway with the reason that the answer has its full length |
//! | `exhausted` | the same with a reason that is one of its provider's own |
//! | `stall` | stops midway and says nothing more |
//! | `flood` | 7 MiB, and then nothing more |
//! | `hang` | never answers |
//! | `midway-error` | an error object midway |
//! | `no-done` | ends without `[DONE]` |
//! | `no-usage` | never reports usage |
//! | `json` | ignores `stream` |
//! | `error-<status>`, `error-<status>-after-<s>` | that status, with `Retry-After`; the message repeats key and prompt |
//! | `flaky-<status>-<n>` | that status for the first `n` calls of a key, then as `instant` |
//! | `quota` | 429 for a quota that is used up |
//! | `redirect` | 307 to another path of this server: see [`FakeModel::strays`] |
//!
//! Any other name is an unknown model. A token is a word.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What `instant` says: 27 words, so that role, text, finish reason, usage and `[DONE]` are 31 events.
const FIXED: &str = "A freehold is held by its owner alone and every client here holds its own house with its own \
                     doors keys walls rooms and garden to itself";

/// A running fake. Dropping it stops the server.
pub(crate) struct FakeModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A call that reached the fake.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The `Authorization` header as sent.
    pub(crate) authorization: Option<String>,
    /// The request body.
    pub(crate) body: Value,
}

impl Call {
    /// The model asked for.
    pub(crate) fn model(&self) -> &str {
        self.body.get("model").and_then(Value::as_str).unwrap_or_default()
    }

    /// The content of every message, oldest first.
    pub(crate) fn contents(&self) -> Vec<String> {
        let messages = self.body.get("messages").and_then(Value::as_array);
        messages.into_iter().flatten().filter_map(|message| message.get("content")).map(content_text).collect()
    }
}

impl FakeModel {
    /// Starts on a free loopback port. It has a thread and a runtime of its own, so that it outlives the runtime of
    /// the test that happens to start it.
    pub(crate) fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { recording: true, ..Shared::default() });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("fake-model".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = serve_shared(listener, served) => {}
                    _ = stopped => {}
                }
            });
            // Hanging answers must not keep the process.
            runtime.shutdown_background();
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>/v1`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every chat call so far, oldest first.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    /// The chat calls made with this key (sent as a bearer token).
    pub(crate) fn calls_with_key(&self, key: &str) -> Vec<Call> {
        let bearer = format!("Bearer {key}");
        let calls = lock(&self.shared.calls);
        calls.iter().filter(|call| call.authorization.as_deref() == Some(&bearer)).cloned().collect()
    }

    /// Answers with this key that the caller left before their end.
    pub(crate) fn cancelled_with_key(&self, key: &str) -> usize {
        let bearer = format!("Bearer {key}");
        lock(&self.shared.cancelled).iter().filter(|authorization| **authorization == bearer).count()
    }

    /// Requests to a path that is not served, such as the target of `redirect`.
    pub(crate) fn strays(&self) -> usize {
        self.shared.strays.load(Ordering::SeqCst)
    }

    /// TCP connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves on the current runtime for ever and records nothing: for benchmarks.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    serve_shared(listener, Arc::default()).await
}

async fn serve_shared(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let app = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .fallback(stray)
        // Questions come with images.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(&shared));
    let listener = listener.tap_io(move |socket: &mut TcpStream| {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        // Without this a token waits for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

#[derive(Default)]
struct Shared {
    recording: bool,
    calls: Mutex<Vec<Call>>,
    /// The `Authorization` of each answer that was left.
    cancelled: Mutex<Vec<String>>,
    /// Calls left to fail, by authorization and model.
    flaky: Mutex<HashMap<(String, String), u32>>,
    strays: AtomicUsize,
    connections: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Asked {
    fn last_user_message(&self) -> String {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        last.map(|message| content_text(&message.content)).unwrap_or_default()
    }

    fn prompt_tokens(&self) -> usize {
        self.messages.iter().map(|message| content_text(&message.content).split_whitespace().count()).sum()
    }
}

/// The text of a content that is a string or a list of parts.
fn content_text(content: &Value) -> String {
    match content {
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

/// Notices that the caller has left: it is dropped either way, but `done` only at the end of the answer.
struct Presence {
    shared: Arc<Shared>,
    authorization: String,
    done: bool,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if !self.done && self.shared.recording {
            lock(&self.shared.cancelled).push(std::mem::take(&mut self.authorization));
        }
    }
}

async fn models() -> Json<Value> {
    let model = |id: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": "fake"});
    Json(json!({"object": "list", "data": [model("echo"), model("instant")]}))
}

async fn stray(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.strays.fetch_add(1, Ordering::SeqCst);
    StatusCode::NOT_FOUND
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Ok(asked) = serde_json::from_slice::<Asked>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "not a chat completion request", None);
    };
    if shared.recording {
        let body = serde_json::from_slice(&body).unwrap_or_default();
        lock(&shared.calls).push(Call { authorization: authorization.clone(), body });
    }
    let authorization = authorization.unwrap_or_default();
    let mut presence = Presence { shared, authorization, done: false };
    let answer = behave(&asked, &presence).await;
    match answer {
        Answer::Now(response) => {
            presence.done = true;
            response
        }
        Answer::Json(json, wait) => {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            presence.done = true;
            Json(json).into_response()
        }
        Answer::Stream(events, pace, ending) => {
            let kind = if asked.stream { "text/event-stream" } else { "application/json" };
            streamed(kind, events, pace, ending, presence)
        }
    }
}

enum Answer {
    Now(Response),
    /// After so long.
    Json(Value, Duration),
    Stream(Vec<Bytes>, Duration, Ending),
}

#[derive(Clone, Copy)]
enum Ending {
    Clean,
    Cut,
    Stall,
}

async fn behave(asked: &Asked, presence: &Presence) -> Answer {
    let model = asked.model.as_str();
    let number = |prefix: &str| model.strip_prefix(prefix).and_then(|rest| rest.parse::<u64>().ok());
    let fixed = || Words::new(asked, FIXED);
    if let Some(milliseconds) = number("slow-") {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        return fixed().answer();
    }
    if let Some(milliseconds) = number("drip-") {
        return fixed().answer_with(Duration::from_millis(milliseconds), Ending::Clean);
    }
    if let Some(text) = model.strip_prefix("says-") {
        return Words::new(asked, text).answer();
    }
    if let Some(rest) = model.strip_prefix("pieces-") {
        let (size, ending) = rest.strip_suffix("-cut").map_or((rest, Ending::Clean), |size| (size, Ending::Cut));
        let mut words = Words::new(asked, "");
        let text: Vec<char> = asked.last_user_message().chars().collect();
        words.words = text.chunks(size.parse().unwrap_or(1).max(1)).map(|piece| piece.iter().collect()).collect();
        words.broken = matches!(ending, Ending::Cut);
        return words.answer_with(Duration::ZERO, ending);
    }
    if let Some(rest) = model.strip_prefix("error-") {
        let (status, after) = rest.split_once("-after-").map_or((rest, None), |(status, after)| (status, Some(after)));
        let message = format!("failed with {}: {}", presence.authorization, asked.last_user_message());
        return Answer::Now(refusal(status_of(status), &message, after));
    }
    if let Some(rest) = model.strip_prefix("flaky-") {
        let (status, times) = rest.split_once('-').unwrap_or((rest, "1"));
        let key = (presence.authorization.clone(), model.to_owned());
        let mut flaky = lock(&presence.shared.flaky);
        let left = flaky.entry(key).or_insert_with(|| times.parse().unwrap_or(1));
        if *left > 0 {
            *left -= 1;
            return Answer::Now(refusal(status_of(status), "try again", None));
        }
        return fixed().answer();
    }
    match model {
        "echo" => Words::new(asked, &asked.last_user_message()).answer(),
        "instant" => fixed().answer(),
        "cut" => fixed().half().answer_with(Duration::ZERO, Ending::Cut),
        "stall" => fixed().half().answer_with(Duration::ZERO, Ending::Stall),
        "truncated" => fixed().half().answer(),
        "length" => Words { broken: false, finish_reason: "length", ..fixed().half() }.answer(),
        "exhausted" => {
            Words { broken: false, finish_reason: "insufficient_system_resource", ..fixed().half() }.answer()
        }
        // More than any buffer on the way takes, and then nothing.
        "flood" => Words { words: vec!["x".repeat(64 * 1024); 112], broken: true, ..fixed() }
            .answer_with(Duration::ZERO, Ending::Stall),
        "hang" => std::future::pending().await,
        "midway-error" => {
            let mut words = fixed().half();
            words.after = vec![error_event()];
            words.answer()
        }
        "no-done" => Words { done: false, ..fixed() }.answer(),
        "no-usage" => Words { usage: false, ..fixed() }.answer(),
        "json" => Answer::Json(fixed().whole(), Duration::ZERO),
        "quota" => {
            let error = json!({"message": "no credit", "type": "insufficient_quota", "code": "insufficient_quota"});
            Answer::Now((StatusCode::TOO_MANY_REQUESTS, Json(json!({"error": error}))).into_response())
        }
        "redirect" => {
            let to = [(header::LOCATION, "/elsewhere/chat/completions")];
            Answer::Now((StatusCode::TEMPORARY_REDIRECT, to).into_response())
        }
        _ => Answer::Now(refusal(StatusCode::NOT_FOUND, "no such model", None)),
    }
}

fn status_of(text: &str) -> StatusCode {
    text.parse().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// An error in OpenAI's shape, with the words it uses for the status.
fn refusal(status: StatusCode, message: &str, retry_after: Option<&str>) -> Response {
    let (kind, code) = match status.as_u16() {
        401 => ("invalid_request_error", json!("invalid_api_key")),
        404 => ("invalid_request_error", json!("model_not_found")),
        429 => ("requests", json!("rate_limit_exceeded")),
        400..=499 => ("invalid_request_error", Value::Null),
        _ => ("server_error", Value::Null),
    };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let mut response = (status, Json(body)).into_response();
    if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// An answer before it is either streamed or not.
struct Words<'a> {
    asked: &'a Asked,
    words: Vec<String>,
    /// Instead of finish reason, usage and `[DONE]`, if the answer breaks off.
    after: Vec<Bytes>,
    broken: bool,
    usage: bool,
    done: bool,
    finish_reason: &'static str,
}

impl<'a> Words<'a> {
    fn new(asked: &'a Asked, text: &str) -> Self {
        let words = text.split_inclusive(char::is_whitespace).map(str::to_owned).collect();
        Self { asked, words, after: Vec::new(), broken: false, usage: true, done: true, finish_reason: "stop" }
    }

    fn half(mut self) -> Self {
        self.words.truncate(self.words.len() / 2);
        self.broken = true;
        self
    }

    fn answer(self) -> Answer {
        self.answer_with(Duration::ZERO, Ending::Clean)
    }

    fn answer_with(self, pace: Duration, ending: Ending) -> Answer {
        if self.asked.stream {
            return Answer::Stream(self.events(), pace, ending);
        }
        match (ending, self.broken) {
            // It takes as long as the stream would.
            (Ending::Clean, false) => Answer::Json(self.whole(), pace * u32::try_from(self.words.len()).unwrap_or(1)),
            _ => {
                let json = self.whole().to_string();
                let half = json.get(..json.len() / 2).unwrap_or_default();
                Answer::Stream(vec![Bytes::copy_from_slice(half.as_bytes())], pace, ending)
            }
        }
    }

    fn counts(&self) -> Value {
        let (input, output) = (self.asked.prompt_tokens(), self.words.len());
        json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
    }

    fn whole(&self) -> Value {
        let message = json!({"role": "assistant", "content": self.words.concat(), "refusal": null});
        let mut whole = json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": self.asked.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": self.finish_reason}],
        });
        if let (true, Some(whole)) = (self.usage, whole.as_object_mut()) {
            whole.insert("usage".to_owned(), self.counts());
        }
        whole
    }

    fn events(mut self) -> Vec<Bytes> {
        // Formatted by hand but for the words: the benchmarks' upstream must not be what they measure.
        let model = json!(self.asked.model);
        let with_usage = self.asked.stream_options.as_ref().is_some_and(|options| options.include_usage);
        let null_usage = if with_usage { r#","usage":null"# } else { "" };
        let event = |choices: &str, usage: &str| {
            Bytes::from(format!(
                "data: {{\"id\":\"chatcmpl-fake\",\"object\":\"chat.completion.chunk\",\"created\":0,\
                 \"model\":{model},\"choices\":[{choices}]{usage}}}\n\n"
            ))
        };
        let choice = |delta: &str, reason: &str| {
            event(&format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}"#), null_usage)
        };
        let mut events = Vec::with_capacity(self.words.len() + 4);
        events.push(choice(r#"{"role":"assistant","content":""}"#, "null"));
        events.extend(self.words.iter().map(|word| choice(&format!(r#"{{"content":{}}}"#, json!(word)), "null")));
        events.append(&mut self.after);
        if self.broken {
            return events;
        }
        events.push(choice("{}", &json!(self.finish_reason).to_string()));
        if with_usage && self.usage {
            events.push(event("", &format!(r#","usage":{}"#, self.counts())));
        }
        if self.done {
            events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        }
        events
    }
}

fn error_event() -> Bytes {
    Bytes::from_static(
        b"data: {\"error\":{\"message\":\"the model fell over\",\"type\":\"server_error\",\"code\":null}}\n\n",
    )
}

fn streamed(kind: &'static str, events: Vec<Bytes>, pace: Duration, ending: Ending, presence: Presence) -> Response {
    let body = stream::unfold((events.into_iter(), presence), move |(mut events, mut presence)| async move {
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        if let Some(event) = events.next() {
            // The end of the answer is behind its last event: a caller may leave once it has that.
            presence.done = events.len() == 0 && matches!(ending, Ending::Clean);
            return Some((Ok(event), (events, presence)));
        }
        match ending {
            Ending::Clean => None,
            Ending::Cut => {
                // What was written so far has to leave first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                presence.done = true;
                Some((Err(io::Error::other("cut")), (events, presence)))
            }
            Ending::Stall => std::future::pending::<Option<(_, _)>>().await,
        }
    });
    let kind = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    (kind, Body::from_stream(body)).into_response()
}
