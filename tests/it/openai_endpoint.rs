//! The OpenAI-compatible endpoint: its wire format, its refusals, what it costs the ledger, and clients that leave.

use std::time::{Duration, Instant};

use axum::routing::post;
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Answer, Options, Platform, Tenant, announce, connect, fake_model};

/// What the fake's `instant` says begins so.
const BEGINNING: &str = "A freehold is held";

struct Caller {
    platform: Platform,
    tenant: Tenant,
    key: String,
}

impl Caller {
    /// A tenant whose AI key offers these models of the fake, and an API key for it.
    async fn with(slug: &str, models: &[&str]) -> Self {
        Self::on(Platform::start().await, slug, models).await
    }

    async fn on(platform: Platform, slug: &str, models: &[&str]) -> Self {
        let tenant = platform.tenant(slug).await;
        platform.offer(&tenant, models).await;
        let made = platform.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "test" })).await;
        let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
        Self { platform, tenant, key }
    }

    async fn chat(&self, body: Value) -> Answer {
        self.platform.post("/v1/chat/completions", &self.key, body).await
    }

    /// The response of a stream, whose body has not been read.
    async fn open(&self, model: &str) -> reqwest::Response {
        let request = self.platform.client.post(format!("{}/v1/chat/completions", self.platform.url));
        let mut body = ask(model);
        body["stream"] = json!(true);
        request.bearer_auth(&self.key).json(&body).send().await.unwrap()
    }

    /// The calls in the ledger, oldest first: kind, model, state, error, tokens, whether reported, the key's name.
    async fn calls(&self) -> Vec<Value> {
        let database = connect(&self.platform.tenant_database(&self.tenant.slug).await).await.unwrap();
        let sql = "SELECT jsonb_build_object('id', c.id, 'kind', c.kind, 'model', c.model, 'state', c.state,
                   'error_code', c.error_code, 'input_tokens', c.input_tokens, 'output_tokens', c.output_tokens,
                   'usage_reported', c.usage_reported, 'key', k.name)::text
                   FROM model_calls c LEFT JOIN client_api_keys k ON k.id = c.api_key_id ORDER BY c.id";
        let rows = database.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
    }
}

fn ask(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "one two three" }] })
}

fn streamed(model: &str, include_usage: bool) -> Value {
    let mut body = ask(model);
    body["stream"] = json!(true);
    if include_usage {
        body["stream_options"] = json!({ "include_usage": true });
    }
    body
}

/// The data of each event, the last of which may be `[DONE]`; comments are left out, and nothing else is allowed.
#[track_caller]
fn data(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n"), "{text}");
    let blocks = text.trim_end().split("\n\n").filter(|block| !block.starts_with(':'));
    let read = |block: &str| {
        let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("{block}"));
        assert!(!data.contains('\n'), "{data}");
        if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).unwrap() }
    };
    blocks.map(read).collect()
}

fn text_of(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[track_caller]
fn refusal(answer: &Answer) -> (u16, String, String) {
    let error = &answer.body["error"];
    assert!(error["message"].is_string() && error.get("param").is_some(), "{}", answer.text);
    assert!(answer.headers.contains_key("x-request-id"), "{:?}", answer.headers);
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (answer.status.as_u16(), text("type"), text("code"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_answer_has_openais_shape_and_a_row_in_the_ledger() {
    let caller = Caller::with("whole", &["echo", "no-usage"]).await;
    let answer = caller.chat(ask("echo")).await;
    assert!(answer.headers.contains_key("x-request-id"));
    let answer = answer.expect(StatusCode::OK);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("echo")));
    assert_eq!(
        answer["choices"],
        json!([{ "index": 0, "logprobs": null, "finish_reason": "stop",
                 "message": { "role": "assistant", "content": "one two three", "refusal": null } }])
    );
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(3), &json!(3), &json!(6))
    );
    // What nobody reported is estimated, the same for the client as in the ledger.
    let estimated = caller.chat(ask("no-usage")).await.expect(StatusCode::OK);
    let calls = caller.calls().await;
    assert_eq!(calls.len(), 2, "{calls:?}");
    let id = calls[0]["id"].as_str().unwrap().replace('-', "");
    assert_eq!(answer["id"], format!("chatcmpl-{id}"));
    assert_eq!(
        calls[0],
        json!({ "id": calls[0]["id"], "kind": "completion", "model": "echo", "state": "succeeded", "error_code": null,
                "input_tokens": 3, "output_tokens": 3, "usage_reported": true, "key": "test" })
    );
    assert_eq!(calls[1]["usage_reported"], false);
    assert_eq!(calls[1]["output_tokens"], estimated["usage"]["completion_tokens"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_what_openais_clients_expect() {
    let caller = Caller::with("streamed", &["instant", "no-usage", "json"]).await;
    for model in ["instant", "json"] {
        let answer = caller.chat(streamed(model, false)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(answer.headers["cache-control"], "no-cache");
        assert_eq!(answer.headers["x-accel-buffering"], "no");
        let events = data(&answer.text);
        assert_eq!(events.last().unwrap(), "[DONE]");
        let chunks = &events[..events.len() - 1];
        assert!(text_of(chunks).starts_with(BEGINNING), "{}", answer.text);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["model"] == model));
        assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
        assert!(!answer.text.contains("\nid:") && !answer.text.contains("event:"), "{}", answer.text);
    }
    for model in ["instant", "no-usage"] {
        let answer = caller.chat(streamed(model, true)).await;
        let events = data(&answer.text);
        let [chunks @ .., usage, _] = events.as_slice() else { panic!("{}", answer.text) };
        assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
        assert_eq!(usage["choices"], json!([]));
        assert!(usage["usage"]["total_tokens"].as_u64().unwrap() > 0, "{usage}");
    }
    // Whoever asked, the upstream is always asked.
    let calls = fake_model().await.calls_with_key(&caller.tenant.key);
    assert!(calls.iter().all(|call| call.body["stream_options"]["include_usage"] == true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_model_is_answered_with_heartbeats() {
    let caller = Caller::with("silent", &["slow-3500", "slow-100"]).await;
    let response = caller.open("slow-3500").await;
    assert_eq!(response.status(), StatusCode::OK);
    let text = response.text().await.unwrap();
    assert!(text.starts_with(": heartbeat\n\ndata: "), "{text}");
    assert!(text_of(&data(&text)[..27]).starts_with(BEGINNING));
    assert_eq!(data(&text).last().unwrap(), "[DONE]");
    let text = caller.open("slow-100").await.text().await.unwrap();
    assert!(text.starts_with("data: "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_status_type_and_code() {
    let models = [
        "instant",
        "error-400",
        "error-401",
        "error-404",
        "error-500",
        "error-429-after-9",
        "quota",
        "redirect",
        "cut",
    ];
    let caller = Caller::with("refused", &models).await;
    let mut cases = 0;
    // What providers answer, streamed and not.
    for (model, status, kind, code) in [
        ("unknown", 404, "invalid_request_error", "model_not_found"),
        ("error-400", 400, "invalid_request_error", "provider_bad_request"),
        ("error-404", 404, "invalid_request_error", "model_not_found"),
        ("error-401", 502, "server_error", "provider_invalid_key"),
        ("error-500", 503, "server_error", "provider_unavailable"),
        ("error-429-after-9", 429, "requests", "rate_limit_exceeded"),
        ("quota", 429, "insufficient_quota", "insufficient_quota"),
        ("redirect", 502, "server_error", "provider_address_refused"),
    ] {
        for stream in [false, true] {
            let mut body = ask(model);
            body["stream"] = json!(stream);
            // A breaker that opens for one failure says nothing of the next; each case has its own time.
            let answer = caller.chat(body).await;
            let refused = refusal(&answer);
            if refused.2 == "models_unavailable" {
                assert_eq!(refused.0, 503);
                assert!(answer.headers.contains_key("retry-after"));
                continue;
            }
            assert_eq!(refused, (status, kind.to_owned(), code.to_owned()), "{model}: {}", answer.text);
            assert!(!answer.text.contains(&caller.tenant.key) && !answer.text.contains("one two"), "{}", answer.text);
            if model == "error-429-after-9" {
                assert_eq!(
                    (&answer.headers["retry-after"], &answer.headers["retry-after-ms"]),
                    (&"9".parse().unwrap(), &"9000".parse().unwrap())
                );
            }
            if ["quota", "error-401", "redirect"].contains(&model) {
                assert_eq!(answer.headers["x-should-retry"], "false");
            }
            cases += 1;
        }
    }
    // What is asked wrongly.
    let user = json!([{ "role": "user", "content": "a" }]);
    let with = |name: &str, value: Value| {
        let mut body = ask("instant");
        body[name] = value;
        body
    };
    let image =
        |url: &str| json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": url } }] }]);
    for (body, param, code) in [
        (json!({ "messages": user }), "model", "missing_required_parameter"),
        (json!({ "model": "instant" }), "messages", "missing_required_parameter"),
        (with("messages", json!([])), "messages", "missing_required_parameter"),
        (with("messages", json!("hello")), "messages", "invalid_type"),
        (with("messages", json!([{ "content": "a" }])), "messages.[0].role", "missing_required_parameter"),
        (with("messages", json!([{ "role": "king", "content": "a" }])), "messages.[0].role", "invalid_value"),
        (with("messages", json!([{ "role": "user" }])), "messages.[0].content", "missing_required_parameter"),
        (
            with("messages", json!([{ "role": "tool", "content": "a" }])),
            "messages.[0].tool_call_id",
            "missing_required_parameter",
        ),
        (
            with("messages", json!([{ "role": "user", "content": [{ "type": "input_audio" }] }])),
            "messages.[0].content.[0]",
            "invalid_value",
        ),
        (with("messages", image("file:///etc/passwd")), "messages.[0].content.[0].image_url.url", "invalid_value"),
        (
            with("messages", image("http://example.com/a.png")),
            "messages.[0].content.[0].image_url.url",
            "invalid_value",
        ),
        (
            with("messages", image("data:text/html;base64,AAAA")),
            "messages.[0].content.[0].image_url.url",
            "invalid_value",
        ),
        (with("n", json!(2)), "n", "unsupported_value"),
        (with("logprobs", json!(true)), "logprobs", "unsupported_parameter"),
        (with("top_logprobs", json!(3)), "top_logprobs", "unsupported_parameter"),
        (with("functions", json!([])), "functions", "unsupported_parameter"),
        (with("modalities", json!(["audio"])), "modalities", "unsupported_parameter"),
        (with("temperature", json!(2.5)), "temperature", "invalid_value"),
        (with("top_p", json!(-1)), "top_p", "invalid_value"),
        (with("max_tokens", json!(0)), "max_tokens", "invalid_value"),
        (with("stop", json!(["a", "b", "c", "d", "e"])), "stop", "invalid_value"),
        (with("tools", json!([{ "type": "web_search" }])), "tools.[0].type", "unsupported_value"),
        (with("tools", json!([{ "type": "function" }])), "tools.[0].function", "missing_required_parameter"),
        (with("tool_choice", json!("maybe")), "tool_choice", "invalid_value"),
        (with("response_format", json!({ "type": "yaml" })), "response_format.type", "invalid_value"),
        (
            with("response_format", json!({ "type": "json_schema" })),
            "response_format.json_schema",
            "missing_required_parameter",
        ),
    ] {
        let answer = caller.chat(body).await;
        assert_eq!(refusal(&answer), (400, "invalid_request_error".to_owned(), code.to_owned()), "{}", answer.text);
        assert_eq!(answer.body["error"]["param"], param, "{}", answer.text);
        cases += 1;
    }
    for (input, param) in [
        (json!([1, 2]), "input"),
        (json!([[1]]), "input"),
        (json!([]), "input"),
        (json!(""), "input"),
        (json!({}), "input"),
    ] {
        let answer =
            caller.platform.post("/v1/embeddings", &caller.key, json!({ "model": "instant", "input": input })).await;
        assert_eq!(
            (answer.status, &answer.body["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{}",
            answer.text
        );
        cases += 1;
    }
    // What is no request at all.
    let raw = async |method: Method, path: &str, body: Vec<u8>| {
        let request = caller.platform.client.request(method, format!("{}{path}", caller.platform.url));
        Answer::read(path, request.bearer_auth(&caller.key).body(body).send().await.unwrap()).await
    };
    let completions = "/v1/chat/completions";
    for (answer, status, code) in [
        (raw(Method::POST, completions, b"{\"model\"".to_vec()).await, 400, "invalid_json"),
        (raw(Method::POST, completions, b"[]".to_vec()).await, 400, "invalid_json"),
        (raw(Method::POST, completions, vec![b' '; 16 * 1024 * 1024 + 1]).await, 413, "body_too_large"),
        (raw(Method::GET, completions, Vec::new()).await, 405, "method_not_allowed"),
        (raw(Method::POST, "/v1/completions", b"{}".to_vec()).await, 404, "unknown_url"),
        (raw(Method::GET, "/v1/models/none", Vec::new()).await, 404, "model_not_found"),
        (raw(Method::GET, "/v1/models/none/of/these", Vec::new()).await, 404, "model_not_found"),
    ] {
        assert_eq!(refusal(&answer), (status, "invalid_request_error".to_owned(), code.to_owned()), "{}", answer.text);
        cases += 1;
    }
    let nobody = caller.platform.post(completions, "", ask("instant")).await;
    assert_eq!(refusal(&nobody).2, "invalid_api_key");
    announce(&format!("openai endpoint: {} refusals", cases + 1));
    // An error that is no fault of the provider's opens no breaker: it still answers.
    let deadline = Instant::now() + Duration::from_secs(40);
    while caller.chat(ask("instant")).await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "it does not answer any more");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_an_error_and_never_looks_whole() {
    let caller = Caller::with("broken", &["cut", "midway-error", "truncated"]).await;
    for model in ["cut", "midway-error", "truncated"] {
        let answer = caller.chat(streamed(model, true)).await;
        assert_eq!(answer.status, StatusCode::OK);
        let events = data(&answer.text);
        let [chunks @ .., last] = events.as_slice() else { panic!("{}", answer.text) };
        assert!(text_of(chunks).starts_with(BEGINNING), "{}", answer.text);
        assert_eq!(last["error"]["type"], "server_error", "{last}");
        assert!(last["error"]["code"].is_string() && last["error"]["message"].is_string(), "{last}");
        assert!(!answer.text.contains("[DONE]") && !answer.text.contains("fell over"), "{}", answer.text);
        let whole = caller.chat(ask(model)).await;
        assert!([502, 503].contains(&refusal(&whole).0), "{model}: {}", whole.text);
    }
    let calls = caller.calls().await;
    assert_eq!(calls.len(), 6);
    assert!(calls.iter().all(|call| call["state"] != "succeeded"), "{calls:?}");
    // Of one that was asked for in one piece nothing had arrived, and nothing is known.
    let estimated = calls.iter().filter(|call| call["output_tokens"].as_i64() > Some(0));
    assert_eq!(estimated.count(), 3, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_ends_the_call() {
    let settings = &[("FREEHOLD_CLIENT_STALL_SECONDS", "2")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let caller = Caller::on(platform, "not-reading", &["flood"]).await;
    let address = caller.platform.url.strip_prefix("http://").unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(address.parse().unwrap()).await.unwrap();
    let body = streamed("flood", false).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        caller.key,
        body.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    // The beginning of it; the rest stays where it is, and the connection open.
    assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
    let (fake, stopped) = (fake_model().await, Instant::now());
    while fake.cancelled_with_key(&caller.tenant.key) == 0 {
        assert!(stopped.elapsed() < Duration::from_secs(15), "the call goes on for nobody");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(stopped.elapsed() > Duration::from_secs(1), "it was given no time");
    let mut left = 100;
    while caller.calls().await[0]["state"] != "cancelled" {
        left -= 1;
        assert!(left > 0, "{:?}", caller.calls().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_ends_the_call() {
    let caller = Caller::with("leaving", &["drip-40", "hang", "drip-41"]).await;
    let mut times = Vec::new();
    let fake = fake_model().await;
    let wait_for = async |cancelled: usize| {
        let left = Instant::now();
        while fake.cancelled_with_key(&caller.tenant.key) < cancelled {
            assert!(left.elapsed() < Duration::from_secs(2), "the call goes on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        left.elapsed()
    };
    for number in 0..5 {
        let response = caller.open("drip-40").await;
        let mut body = response.bytes_stream();
        for _ in 0..number {
            body.next().await.unwrap().unwrap();
        }
        drop(body);
        times.push(wait_for(number + 1).await);
    }
    // Before its first word, and one that is not streamed.
    for (number, body) in [streamed("hang", false), ask("hang"), ask("drip-41")].into_iter().enumerate() {
        let request = caller.platform.client.post(format!("{}/v1/chat/completions", caller.platform.url));
        let sent = request.bearer_auth(&caller.key).json(&body).send();
        assert!(tokio::time::timeout(Duration::from_millis(300), sent).await.is_err());
        times.push(wait_for(6 + number).await);
    }
    let slowest = times.iter().max().unwrap();
    announce(&format!("openai endpoint: the upstream call ended {slowest:?} after the client left, at most"));
    // Generous, for many tests run at once.
    assert!(*slowest < Duration::from_millis(1_000), "{times:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let calls = caller.calls().await;
        assert_eq!(calls.len(), 8, "{calls:?}");
        if calls.iter().all(|call| call["state"] == "cancelled") {
            break;
        }
        assert!(Instant::now() < deadline, "{calls:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_ends_streams_with_an_error() {
    let caller = Caller::with("suspended-streams", &["drip-100"]).await;
    let response = caller.open("drip-100").await;
    let reading = tokio::spawn(response.text());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let path = "/platform/v1/tenants/suspended-streams/suspend";
    caller.platform.post(path, &caller.platform.token, json!({})).await.expect(StatusCode::ACCEPTED);
    let text = reading.await.unwrap().unwrap();
    let events = data(&text);
    assert_eq!(events.last().unwrap()["error"]["code"], "tenant_suspended", "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_come_as_numbers_and_in_base64() {
    let embed = async |axum::Json(asked): axum::Json<Value>| {
        let texts = asked["input"].as_array().unwrap().iter().enumerate();
        // Out of order, as it is allowed.
        let mut data: Vec<Value> = texts
            .map(|(index, text)| json!({ "object": "embedding", "index": index, "embedding": [text.as_str().unwrap().len(), 0.5] }))
            .collect();
        data.reverse();
        axum::Json(
            json!({ "object": "list", "data": data, "model": asked["model"], "usage": { "prompt_tokens": 4, "total_tokens": 4 } }),
        )
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, axum::Router::new().route("/v1/embeddings", post(embed))).into_future());
    let caller = Caller::with("vectors", &["instant"]).await;
    let body = json!({
        "provider": "openai_compatible", "base_url": format!("http://{address}/v1"), "api_key": "k",
        "models": ["vectors"], "default_model": "vectors"
    });
    let platform = &caller.platform;
    platform.send(Method::PUT, "/api/v1/ai-keys/other", &caller.tenant.admin.access, Some(body)).await.expect_success();
    let ask = json!({ "model": "vectors", "input": ["a", "four"], "user": "u" });
    let answer = platform.post("/v1/embeddings", &caller.key, ask).await.expect(StatusCode::OK);
    assert_eq!(
        answer,
        json!({ "object": "list", "model": "vectors", "usage": { "prompt_tokens": 4, "total_tokens": 4 }, "data": [
            { "object": "embedding", "index": 0, "embedding": [1.0, 0.5] },
            { "object": "embedding", "index": 1, "embedding": [4.0, 0.5] },
        ] })
    );
    let ask = json!({ "model": "vectors", "input": "a", "encoding_format": "base64" });
    let answer = platform.post("/v1/embeddings", &caller.key, ask).await.expect(StatusCode::OK);
    assert_eq!(answer["data"][0]["embedding"], "AACAPwAAAD8=");
    let calls = caller.calls().await;
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call["kind"] == "embedding" && call["input_tokens"] == 4 && call["key"] == "test"));
}
