//! Anthropic, Gemini, Vertex AI and Azure OpenAI without a model: they check requests as strictly as the published
//! interfaces do, and answer with the published forms of events, well or badly as the model's name says.
//!
//! | model ends in | behaviour |
//! |---|---|
//! | `text` | a greeting, with thinking before it where the interface has a form for that |
//! | `tools` | two tool calls |
//! | `cut` | drops the connection midway |
//! | `midway-error` | an error object midway |
//! | `stall` | stops midway and says nothing more |
//! | `filtered` | the provider's filter ends the answer |
//! | `overloaded` | refuses for a moment, always |
//! | `flaky` | refuses for a moment, once |
//! | `limited` | refuses, and asks to wait an hour |
//! | `key` | refuses the key |
//! | `thinker-text` | as `text`, and has no temperature; on Azure the limit has its older name |
//! | anything else | an unknown model |

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::{Value, json};

/// The API key that is good.
pub(crate) const KEY: &str = "key-4f0c2a-secret";

/// A running fake, as long as the test's runtime.
#[derive(Clone)]
pub(crate) struct FakeProviders {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Call>>,
    refused_once: Mutex<HashSet<String>>,
    left: AtomicUsize,
    /// Service accounts by their address, with the public key.
    accounts: Mutex<HashMap<String, Vec<u8>>>,
    tokens: Mutex<Vec<String>>,
    token_lifetime: AtomicUsize,
}

/// A call that reached the fake.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl FakeProviders {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared { token_lifetime: AtomicUsize::new(3600), ..Shared::default() });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .route("/v1/messages", post(anthropic))
            .route("/v1beta/models/{method}", post(gemini))
            .route("/v1/projects/acme/locations/europe-west4/publishers/google/models/{method}", post(vertex))
            .route("/token", post(token))
            .route("/openai/deployments/{deployment}/chat/completions", post(azure))
            .route("/openai/deployments/{deployment}/embeddings", post(azure_embeddings))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every call so far to a path that begins like this, oldest first.
    pub(crate) fn calls(&self, path: &str) -> Vec<Call> {
        self.shared.calls.lock().unwrap().iter().filter(|call| call.path.starts_with(path)).cloned().collect()
    }

    /// Answers that the caller left before their end.
    pub(crate) fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }

    /// The file of a new service account, whose tokens hold this long.
    pub(crate) fn service_account(&self, lifetime: usize) -> String {
        self.shared.token_lifetime.store(lifetime, Ordering::SeqCst);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let email = format!("bot-{}@acme.iam.gserviceaccount.com", uuid::Uuid::now_v7());
        self.shared.accounts.lock().unwrap().insert(email.clone(), key.public_key_raw().to_vec());
        json!({
            "type": "service_account", "project_id": "acme", "private_key_id": "0123456789abcdef",
            "private_key": key.serialize_pem(), "client_email": email, "client_id": "1",
            "token_uri": self.url("/token"), "universe_domain": "googleapis.com",
        })
        .to_string()
    }

    /// Takes back all tokens given so far.
    pub(crate) fn revoke_tokens(&self) {
        self.shared.tokens.lock().unwrap().clear();
    }

    /// Takes back all accounts.
    pub(crate) fn delete_accounts(&self) {
        self.shared.accounts.lock().unwrap().clear();
    }
}

impl Shared {
    fn record(&self, path: String, headers: HeaderMap, body: &[u8]) -> Value {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        self.calls.lock().unwrap().push(Call { path, headers, body: body.clone() });
        body
    }

    fn refuse_once(&self, key: &str) -> bool {
        self.refused_once.lock().unwrap().insert(key.to_owned())
    }
}

type Refusal = fn(StatusCode, &str, &str) -> Response;

/// What all providers refuse alike, each in its own form. `words` are theirs for a bad key, an unknown model, too many
/// requests and too much to do.
fn refused(shared: &Shared, model: &str, with: Refusal, words: [(u16, &str); 4]) -> Option<Response> {
    let known = ["text", "tools", "cut", "midway-error", "stall", "filtered", "overloaded", "flaky", "limited", "key"];
    let [key, unknown, limited, overloaded] = words;
    let (status, word) = match known.into_iter().find(|known| model.ends_with(known)) {
        None => unknown,
        Some("key") => key,
        Some("limited") => limited,
        Some("overloaded") => overloaded,
        Some("flaky") if shared.refuse_once(model) => overloaded,
        Some(_) => return None,
    };
    // Their messages quote keys and prompts.
    Some(with(StatusCode::from_u16(status).unwrap(), word, &format!("{KEY} asked about Ada")))
}

fn streamed(shared: &Arc<Shared>, model: &str, events: Vec<String>) -> Response {
    struct Presence(Arc<Shared>, bool);
    impl Drop for Presence {
        fn drop(&mut self) {
            if !self.1 {
                self.0.left.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    let (stall, cut) = (model.ends_with("stall"), model.ends_with("cut"));
    let presence = Presence(Arc::clone(shared), false);
    let body = futures::stream::unfold((events.into_iter(), presence), move |(mut events, mut presence)| async move {
        if let Some(event) = events.next() {
            presence.1 = events.len() == 0 && !stall;
            return Some((Ok(event), (events, presence)));
        }
        if stall {
            std::future::pending::<()>().await;
        }
        if cut {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Some((Err(std::io::Error::other("cut")), (events, presence)));
        }
        None
    });
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(body.boxed())).into_response()
}

fn is_cut_short(model: &str) -> bool {
    ["cut", "midway-error", "stall"].iter().any(|end| model.ends_with(end))
}

// ---------------------------------------------------------------------------------------------------- Anthropic

fn anthropic_refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, "3600".parse().unwrap());
    }
    response
}

async fn anthropic(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: bytes::Bytes) -> Response {
    let body = shared.record("/v1/messages".to_owned(), headers.clone(), &body);
    let invalid = |why: &str| anthropic_refusal(StatusCode::BAD_REQUEST, "invalid_request_error", why);
    if headers.get("x-api-key").is_none_or(|key| key != KEY) || headers.contains_key("authorization") {
        return anthropic_refusal(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if headers.get("anthropic-version").is_none_or(|version| version != "2023-06-01") {
        return invalid("anthropic-version: header is required");
    }
    if let Err(why) = check_messages(&body) {
        return invalid(why);
    }
    let model = body["model"].as_str().unwrap_or_default();
    let words =
        [(403, "permission_error"), (404, "not_found_error"), (429, "rate_limit_error"), (529, "overloaded_error")];
    if let Some(refusal) = refused(&shared, model, anthropic_refusal, words) {
        return refusal;
    }
    let mut events = vec![json!({"type": "message_start", "message": {"id": "msg_1", "type": "message",
        "role": "assistant", "model": model, "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 5, "output_tokens": 1}}})];
    let mut block = |index: u64, content_block: Value, deltas: &[Value]| {
        events.push(json!({"type": "content_block_start", "index": index, "content_block": content_block}));
        events.push(json!({"type": "ping"}));
        events.extend(deltas.iter().map(|d| json!({"type": "content_block_delta", "index": index, "delta": d})));
        events.push(json!({"type": "content_block_stop", "index": index}));
    };
    let mut reason = "end_turn";
    if model.ends_with("tools") {
        reason = "tool_use";
        let json_delta = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
        block(
            0,
            json!({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}),
            &[json_delta(""), json_delta("{\"city\":"), json_delta(" \"Paris\"}")],
        );
        block(1, json!({"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}), &[]);
    } else {
        let thinking = [
            json!({"type": "thinking_delta", "thinking": "They greet."}),
            json!({"type": "signature_delta", "signature": "EqQBCg"}),
        ];
        block(0, json!({"type": "thinking", "thinking": "", "signature": ""}), &thinking);
        let text = ["Hello", " there"].map(|text| json!({"type": "text_delta", "text": text}));
        block(1, json!({"type": "text", "text": ""}), &text);
    }
    if model.ends_with("midway-error") {
        events.push(json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}));
    }
    if model.ends_with("filtered") {
        reason = "refusal";
    }
    if !is_cut_short(model) {
        let delta = json!({"stop_reason": reason, "stop_sequence": null});
        events.push(json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}));
        events.push(json!({"type": "message_stop"}));
    }
    let text = |event: Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
    streamed(&shared, model, events.into_iter().map(text).collect())
}

fn check_messages(body: &Value) -> Result<(), &'static str> {
    let fields = ["model", "max_tokens", "stream", "system", "messages", "temperature", "top_p", "stop_sequences"];
    let more = ["tools", "tool_choice", "output_config"];
    let object = body.as_object().ok_or("not an object")?;
    if object.keys().any(|key| !fields.contains(&key.as_str()) && !more.contains(&key.as_str())) {
        return Err("extra inputs are not permitted");
    }
    body["max_tokens"].as_u64().ok_or("max_tokens: field required")?;
    if body["temperature"].as_f64().is_some_and(|temperature| temperature > 1.0) {
        return Err("temperature: range 0..1");
    }
    let messages = body["messages"].as_array().filter(|list| !list.is_empty()).ok_or("messages: field required")?;
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let role = if index % 2 == 0 { "user" } else { "assistant" };
        if message["role"] != role {
            return Err("messages: roles must alternate");
        }
        let blocks = message["content"].as_array().filter(|blocks| !blocks.is_empty()).ok_or("content is empty")?;
        let of = |kind: &str, field: &str| {
            let found = blocks.iter().filter(|block| block["type"] == kind);
            found.filter_map(|block| block[field].as_str()).collect::<Vec<_>>()
        };
        if of("text", "text").iter().any(|text| text.trim().is_empty()) {
            return Err("text content blocks must contain non-whitespace text");
        }
        if of("tool_result", "tool_use_id") != open {
            return Err("each tool_use block must have a tool_result block in the next message");
        }
        open = blocks.iter().filter(|block| block["type"] == "tool_use").filter_map(|b| b["id"].as_str()).collect();
        if blocks.iter().any(|block| block["type"] == "tool_use" && !block["input"].is_object()) {
            return Err("input should be a valid dictionary");
        }
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------- Gemini and Vertex AI

fn google_refusal(status: StatusCode, word: &str, message: &str) -> Response {
    let details = match word {
        "API_KEY_INVALID" => json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": word}]),
        "RESOURCE_EXHAUSTED" => {
            json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3600s"}])
        }
        _ => json!([]),
    };
    let word = if word == "API_KEY_INVALID" { "INVALID_ARGUMENT" } else { word };
    let body = json!({"error": {"code": status.as_u16(), "message": message, "status": word, "details": details}});
    (status, Json(body)).into_response()
}

async fn gemini(
    State(shared): State<Arc<Shared>>,
    Path(method): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> Response {
    let path = format!("/v1beta/models/{method}?{}", query.as_deref().unwrap_or_default());
    let body = shared.record(path, headers.clone(), &body);
    if headers.get("x-goog-api-key").is_none_or(|key| key != KEY) {
        return google_refusal(StatusCode::BAD_REQUEST, "API_KEY_INVALID", "API key not valid.");
    }
    if let Some(model) = method.strip_suffix(":batchEmbedContents") {
        let requests = body["requests"].as_array().cloned().unwrap_or_default();
        if requests.len() > 100 || requests.iter().any(|one| one["model"] != format!("models/{model}")) {
            return google_refusal(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", "requests");
        }
        let vector = |one: &Value| {
            let text = one["content"]["parts"][0]["text"].as_str().unwrap_or_default();
            json!({"values": [text.len(), one["outputDimensionality"].as_f64().unwrap_or(-1.0)]})
        };
        return Json(json!({"embeddings": requests.iter().map(vector).collect::<Vec<_>>()})).into_response();
    }
    generate(&shared, &method, query.as_deref(), &body)
}

async fn vertex(
    State(shared): State<Arc<Shared>>,
    Path(method): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> Response {
    let body = shared.record(format!("/vertex/{method}"), headers.clone(), &body);
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = bearer.strip_prefix("Bearer ").unwrap_or_default();
    if !shared.tokens.lock().unwrap().iter().any(|known| known == token) {
        return google_refusal(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "invalid authentication credentials");
    }
    if method.ends_with(":predict") {
        let instances = body["instances"].as_array().cloned().unwrap_or_default();
        let vector = |one: &Value| {
            let text = one["content"].as_str().unwrap_or_default();
            json!({"embeddings": {"values": [text.len()], "statistics": {"truncated": false, "token_count": 2.0}}})
        };
        return Json(json!({"predictions": instances.iter().map(vector).collect::<Vec<_>>()})).into_response();
    }
    generate(&shared, &method, query.as_deref(), &body)
}

fn generate(shared: &Arc<Shared>, method: &str, query: Option<&str>, body: &Value) -> Response {
    let invalid = |why: &str| google_refusal(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", why);
    let Some(model) = method.strip_suffix(":streamGenerateContent").filter(|_| query == Some("alt=sse")) else {
        return invalid("the method");
    };
    if let Err(why) = check_contents(body) {
        return invalid(why);
    }
    let words = [(403, "PERMISSION_DENIED"), (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE")];
    if let Some(refusal) = refused(shared, model, google_refusal, words) {
        return refusal;
    }
    let mut usage = json!({"promptTokenCount": 17, "totalTokenCount": 17});
    let chunk = |parts: Value, reason: Option<&str>, usage: &Value| {
        let mut candidate = json!({"content": {"parts": parts, "role": "model"}, "index": 0});
        if let Some(reason) = reason {
            candidate["finishReason"] = json!(reason);
            candidate["safetyRatings"] = json!([{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}]);
        }
        let chunk =
            json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "r"});
        format!("data: {chunk}\r\n\r\n")
    };
    let whole = json!({"promptTokenCount": 17, "candidatesTokenCount": 4, "thoughtsTokenCount": 3,
        "cachedContentTokenCount": 5, "totalTokenCount": 24});
    let mut events = Vec::new();
    if model.ends_with("tools") {
        let first =
            json!([{"functionCall": {"name": "weather", "args": {"city": "Paris"}}, "thoughtSignature": "CpQB"}]);
        events.push(chunk(first, None, &usage));
        events.push(chunk(json!([{"functionCall": {"name": "now", "args": {}}}]), Some("STOP"), &whole));
        return streamed(shared, model, events);
    }
    events.push(chunk(json!([{"text": "They greet.", "thought": true}]), None, &usage));
    usage["candidatesTokenCount"] = json!(1);
    events.push(chunk(json!([{"text": "Hello"}]), None, &usage));
    if model.ends_with("midway-error") {
        let error = json!({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}});
        events.push(format!("data: {error}\r\n\r\n"));
    }
    if !is_cut_short(model) {
        let reason = if model.ends_with("filtered") { "SAFETY" } else { "STOP" };
        events.push(chunk(json!([{"text": " there"}]), Some(reason), &whole));
    }
    streamed(shared, model, events)
}

fn check_contents(body: &Value) -> Result<(), &'static str> {
    let fields = ["contents", "systemInstruction", "tools", "toolConfig", "generationConfig"];
    let object = body.as_object().ok_or("not an object")?;
    if object.keys().any(|key| !fields.contains(&key.as_str())) {
        return Err("unknown name: cannot find field");
    }
    let contents = body["contents"].as_array().filter(|list| !list.is_empty()).ok_or("contents is not specified")?;
    let mut open = 0;
    for content in contents {
        if content["role"] != "user" && content["role"] != "model" {
            return Err("please use a valid role: user, model");
        }
        let parts = content["parts"].as_array().filter(|parts| !parts.is_empty()).ok_or("contents.parts is empty")?;
        let count = |field: &str| parts.iter().filter(|part| part.get(field).is_some_and(Value::is_object)).count();
        if count("functionResponse") != open {
            return Err("the number of function response parts is not that of the function call parts");
        }
        open = count("functionCall");
    }
    Ok(())
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response {
    shared.calls.lock().unwrap().push(Call { path: "/token".to_owned(), headers, body: Value::Null });
    let refused = || {
        let body = json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."});
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    };
    let form: HashMap<_, _> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    if form.get("grant_type").is_none_or(|kind| kind != "urn:ietf:params:oauth:grant-type:jwt-bearer") {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "unsupported_grant_type"}))).into_response();
    }
    let assertion = form.get("assertion").cloned().unwrap_or_default();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.validate_aud = false;
    let claims = assertion.split('.').nth(1).unwrap_or_default();
    let claims = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, claims).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    let Some(key) = shared.accounts.lock().unwrap().get(claims["iss"].as_str().unwrap_or_default()).cloned() else {
        return refused();
    };
    let key = jsonwebtoken::DecodingKey::from_rsa_der(&key);
    let scope = "https://www.googleapis.com/auth/cloud-platform";
    if jsonwebtoken::decode::<Value>(&assertion, &key, &validation).is_err() || claims["scope"] != scope {
        return refused();
    }
    let token = format!("ya29.{}", uuid::Uuid::now_v7());
    shared.tokens.lock().unwrap().push(token.clone());
    let expires_in = shared.token_lifetime.load(Ordering::SeqCst);
    Json(json!({"access_token": token, "expires_in": expires_in, "token_type": "Bearer"})).into_response()
}

// --------------------------------------------------------------------------------------------------- Azure OpenAI

fn azure_refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let mut response = (status, Json(json!({"error": {"code": code, "message": message}}))).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, "3600".parse().unwrap());
    }
    response
}

async fn azure(
    State(shared): State<Arc<Shared>>,
    Path(deployment): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> Response {
    let query = query.unwrap_or_default();
    let body = shared.record(format!("/openai/{deployment}?{query}"), headers.clone(), &body);
    if headers.get("api-key").is_none_or(|key| key != KEY) || headers.contains_key("authorization") {
        return azure_refusal(StatusCode::UNAUTHORIZED, "401", "Access denied due to invalid subscription key.");
    }
    if !query.starts_with("api-version=20") {
        return azure_refusal(StatusCode::NOT_FOUND, "404", "Resource not found");
    }
    let thinker = deployment.ends_with("thinker-text");
    let unfit = |code: Value, param: Value, message: &str| {
        let error = json!({"message": message, "type": "invalid_request_error", "param": param, "code": code});
        (StatusCode::BAD_REQUEST, Json(json!({"error": error}))).into_response()
    };
    if thinker && body.get("max_completion_tokens").is_some() {
        return unfit(Value::Null, Value::Null, "Unrecognized request argument supplied: max_completion_tokens");
    }
    if thinker && body.get("temperature").is_some() {
        return unfit(json!("unsupported_value"), json!("temperature"), "Only the default (1) value is supported.");
    }
    if body["messages"].as_array().is_none_or(Vec::is_empty) || (body.get("max_tokens").is_some() && !thinker) {
        return azure_refusal(StatusCode::BAD_REQUEST, "invalid", "the request");
    }
    let words = [(401, "401"), (404, "DeploymentNotFound"), (429, "429"), (503, "InternalServerError")];
    if let Some(refusal) = refused(&shared, &deployment, azure_refusal, words) {
        return refusal;
    }
    let event = |choices: Value, usage: Value| {
        let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "gpt-4o",
            "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let choice = |delta: Value, reason: Value| {
        json!([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": null, "content_filter_results":
            {"hate": {"filtered": false, "severity": "safe"}}}])
    };
    let filter = json!({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results":
        [{"prompt_index": 0, "content_filter_results": {"jailbreak": {"filtered": false, "detected": false}}}]});
    let mut events = vec![format!("data: {filter}\n\n")];
    events.push(event(choice(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null), Value::Null));
    let mut reason = "stop";
    if deployment.ends_with("tools") {
        reason = "tool_calls";
        let call = |call: Value| event(choice(json!({"tool_calls": [call]}), Value::Null), Value::Null);
        let function = |index: u64, id: &str, name: &str| json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}});
        events.push(call(function(0, "call_1", "weather")));
        events.push(call(json!({"index": 0, "function": {"arguments": "{\"city\": \"Paris\"}"}})));
        events.push(call(function(1, "call_2", "now")));
    } else {
        let texts = ["Hello", " there"].map(|text| event(choice(json!({"content": text}), Value::Null), Value::Null));
        events.extend(texts);
    }
    if deployment.ends_with("midway-error") {
        let error = json!({"error": {"message": "The server had an error", "type": "server_error", "code": null}});
        events.push(format!("data: {error}\n\n"));
    }
    if deployment.ends_with("filtered") {
        reason = "content_filter";
    }
    if !is_cut_short(&deployment) {
        events.push(event(choice(json!({}), json!(reason)), Value::Null));
        if body["stream_options"]["include_usage"] == true {
            let usage = json!({"prompt_tokens": 17, "completion_tokens": 7, "total_tokens": 24,
                "prompt_tokens_details": {"cached_tokens": 5}});
            events.push(event(json!([]), usage));
        }
        events.push("data: [DONE]\n\n".to_owned());
    }
    streamed(&shared, &deployment, events)
}

async fn azure_embeddings(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: bytes::Bytes) -> Response {
    let body = shared.record("/openai/embeddings".to_owned(), headers, &body);
    let texts = body["input"].as_array().cloned().unwrap_or_default();
    let vector = |(index, text): (usize, &Value)| json!({"object": "embedding", "index": index, "embedding": [text.as_str().unwrap_or_default().len()]});
    let data: Vec<_> = texts.iter().enumerate().map(vector).rev().collect();
    let usage = json!({"prompt_tokens": 2 * texts.len(), "total_tokens": 2 * texts.len()});
    Json(json!({"object": "list", "data": data, "model": "m", "usage": usage})).into_response()
}
