//! Every kind of provider against a fake that is as strict as the published interface: answers, tools, failures, keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use freehold::providers::{
    self, ChatEvent, ChatMessage, ChatRequest, ChatRole, EmbeddingRequest, Embeddings, FinishReason, ModelProvider,
    ProviderClient, ProviderClientOptions, ProviderError, ProviderKind, ProviderSpec, Retries, Timeouts, Tool,
    ToolCall, Usage,
};
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::json;

use crate::fake_providers::{FakeProviders, KEY};
use crate::harness::Platform;

const PROMPT: &str = "the patient's name is Ada";
const KINDS: [ProviderKind; 4] =
    [ProviderKind::Anthropic, ProviderKind::Gemini, ProviderKind::Vertex, ProviderKind::AzureOpenai];

/// Where the fake serves a kind, and the path that its calls begin with.
fn place(kind: ProviderKind) -> (&'static str, &'static str) {
    match kind {
        ProviderKind::Anthropic => ("", "/v1/messages"),
        ProviderKind::Gemini => ("", "/v1beta/models/"),
        ProviderKind::Vertex => ("/v1/projects/acme/locations/europe-west4", "/vertex/"),
        _ => ("", "/openai/"),
    }
}

fn client(allow_private_hosts: bool) -> ProviderClient {
    let options = ProviderClientOptions {
        allow_private_hosts,
        timeouts: Timeouts {
            connect: Duration::from_millis(500),
            first_byte: Duration::from_secs(2),
            whole_answer: Duration::from_secs(2),
            between_tokens: Duration::from_millis(700),
        },
        retries: Retries { base_delay: Duration::from_millis(5), ..Retries::default() },
        ..ProviderClientOptions::default()
    };
    ProviderClient::new(&options).unwrap()
}

fn provider_with(fake: &FakeProviders, kind: ProviderKind, key: &str) -> Arc<dyn ModelProvider> {
    let client = client(true);
    let base_url = fake.url(place(kind).0);
    let spec = client.check_spec(kind, Some(&base_url), &SecretString::from(key)).unwrap();
    providers::build(&spec, &client)
}

fn provider(fake: &FakeProviders, kind: ProviderKind) -> Arc<dyn ModelProvider> {
    let key = if kind == ProviderKind::Vertex { fake.service_account(3600) } else { KEY.to_owned() };
    provider_with(fake, kind, &key)
}

fn request(model: &str) -> ChatRequest {
    ChatRequest {
        model: model.to_owned(),
        messages: vec![ChatMessage::text(ChatRole::System, "be brief"), ChatMessage::text(ChatRole::User, PROMPT)],
        max_tokens: Some(100),
        temperature: Some(1.5),
        ..ChatRequest::default()
    }
}

#[derive(Default)]
struct Heard {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    usage: Option<Usage>,
    end: Option<Result<FinishReason, ProviderError>>,
}

/// Listens to the end, and checks the promises of every event.
async fn hear(provider: &dyn ModelProvider, request: ChatRequest) -> Heard {
    let mut heard = Heard::default();
    let mut answer = match provider.chat(request).await {
        Ok(answer) => answer,
        Err(error) => return Heard { end: Some(Err(error)), ..heard },
    };
    while let Some(event) = answer.next().await {
        assert!(heard.end.is_none(), "nothing follows the end");
        match event {
            Ok(ChatEvent::Delta(text)) => {
                assert!(!text.is_empty());
                heard.text.push_str(&text);
            }
            Ok(ChatEvent::Reasoning(text)) => {
                assert!(!text.is_empty());
                heard.reasoning.push_str(&text);
            }
            Ok(ChatEvent::ToolCall(delta)) => match (delta.id, delta.name) {
                (Some(id), Some(name)) => {
                    assert_eq!(delta.index as usize, heard.calls.len());
                    heard.calls.push(ToolCall { id, name, arguments: delta.arguments });
                }
                (None, None) => heard.calls[delta.index as usize].arguments.push_str(&delta.arguments),
                odd => panic!("id and name come together: {odd:?}"),
            },
            Ok(ChatEvent::Finished { usage, finish_reason }) => {
                heard.usage = usage;
                heard.end = Some(Ok(finish_reason));
            }
            Err(error) => heard.end = Some(Err(error)),
        }
    }
    assert!(heard.end.is_some(), "every answer has an end");
    heard
}

/// The code of a failure, after checking that neither key nor prompt is in anything that could be logged.
fn code_of(heard: Heard, secrets: &[&str]) -> &'static str {
    let Some(Err(error)) = heard.end else { return "" };
    let mut told = format!("{error:?}");
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        told.push_str(&error.to_string());
        cause = error.source();
    }
    for secret in secrets.iter().chain(&[KEY, "Ada", "ya29.", "PRIVATE KEY"]) {
        assert!(!told.contains(secret), "{told}");
    }
    error.code()
}

#[tokio::test]
async fn every_kind_answers_with_its_usage() {
    let fake = FakeProviders::start().await;
    for kind in KINDS {
        let heard = hear(provider(&fake, kind).as_ref(), request("some-text")).await;
        assert_eq!(heard.text, "Hello there", "{kind:?}");
        let thinks = kind != ProviderKind::AzureOpenai;
        assert_eq!(heard.reasoning, if thinks { "They greet." } else { "" }, "{kind:?}");
        assert_eq!(heard.end.unwrap().unwrap(), FinishReason::Stop, "{kind:?}");
        let expected = Usage { input_tokens: 17, output_tokens: 7, cached_input_tokens: 5, reported: true };
        assert_eq!(heard.usage, Some(expected), "{kind:?}");
        let calls = fake.calls(place(kind).1);
        assert_eq!(calls.len(), 1, "{kind:?}");
        assert!(!calls[0].path.contains(KEY), "a URL ends up in logs");
    }
    let filtered = hear(provider(&fake, ProviderKind::Gemini).as_ref(), request("filtered")).await;
    assert_eq!(filtered.end.unwrap().unwrap(), FinishReason::ContentFilter);
}

#[tokio::test]
async fn every_kind_calls_tools_and_takes_their_results() {
    let fake = FakeProviders::start().await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": false});
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        description: Some("d".to_owned()),
        parameters: Some(schema.clone()),
        strict: Some(true),
    };
    for kind in KINDS {
        let provider = provider(&fake, kind);
        let mut request = request("gemini-3-tools");
        request.tools = vec![tool("weather"), tool("now")];
        let heard = hear(provider.as_ref(), request.clone()).await;
        assert_eq!(heard.end.unwrap().unwrap(), FinishReason::ToolCalls, "{kind:?}");
        let told: Vec<_> = heard.calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(told, ["weather", "now"], "{kind:?}");
        let arguments: serde_json::Value = serde_json::from_str(&heard.calls[0].arguments).unwrap();
        assert_eq!((arguments, heard.calls[1].arguments.as_str()), (json!({"city": "Paris"}), "{}"), "{kind:?}");
        assert!(heard.calls[0].id != heard.calls[1].id && !heard.calls[0].id.is_empty());

        // The fake checks that results and calls belong together.
        let result = |call: &ToolCall| ChatMessage {
            tool_call_id: Some(call.id.clone()),
            ..ChatMessage::text(ChatRole::Tool, "sunny")
        };
        let results: Vec<_> = heard.calls.iter().map(result).collect();
        request.messages.push(ChatMessage { tool_calls: heard.calls, ..ChatMessage::text(ChatRole::Assistant, "") });
        request.messages.extend(results);
        request.model = "gemini-3-text".to_owned();
        let heard = hear(provider.as_ref(), request).await;
        assert_eq!(heard.text, "Hello there", "{kind:?}: {:?}", heard.end);
    }
}

#[tokio::test]
async fn every_kinds_failures_have_their_kind_and_keep_their_secrets() {
    let fake = FakeProviders::start().await;
    for kind in KINDS {
        let provider = provider(&fake, kind);
        for (model, code, calls) in [
            ("cut", "provider_interrupted", 1),
            ("midway-error", "provider_interrupted", 1),
            ("stall", "provider_timeout", 1),
            ("overloaded", "provider_unavailable", 3),
            ("flaky", "", 2),
            ("limited", "provider_rate_limited", 1),
            ("nobody", "provider_model_not_found", 1),
            // The token is renewed once before it is believed.
            ("key", "provider_invalid_key", if kind == ProviderKind::Vertex { 2 } else { 1 }),
        ] {
            let before = fake.calls(place(kind).1).len();
            let heard = hear(provider.as_ref(), request(&format!("{}-{model}", kind.as_str()))).await;
            if let Some(Err(ProviderError::RateLimited { retry_after, .. })) = &heard.end {
                assert_eq!(*retry_after, Some(Duration::from_secs(3600)), "{kind:?}");
            }
            if code == "provider_interrupted" {
                assert!(heard.text.starts_with("Hello"), "{kind:?}: what came is delivered");
            }
            assert_eq!(code_of(heard, &[]), code, "{kind:?} {model}");
            assert_eq!(fake.calls(place(kind).1).len() - before, calls, "{kind:?} {model}: calls");
        }
        let mut nonsense = request("text");
        nonsense.messages.clear();
        let heard = hear(provider.as_ref(), nonsense).await;
        assert_eq!(code_of(heard, &[]), "provider_bad_request", "{kind:?}");
        if kind != ProviderKind::Vertex {
            let wrong = provider_with(&fake, kind, "another-key-56789");
            let heard = hear(wrong.as_ref(), request("text")).await;
            assert_eq!(code_of(heard, &["another-key"]), "provider_invalid_key", "{kind:?}");
        }
    }
}

#[tokio::test]
async fn what_a_model_does_not_have_is_learned_once() {
    let fake = FakeProviders::start().await;
    for (kind, refusals) in [(ProviderKind::Anthropic, 1), (ProviderKind::AzureOpenai, 2)] {
        let provider = provider(&fake, kind);
        for calls in [refusals + 1, refusals + 2] {
            let heard = hear(provider.as_ref(), request("thinker-text")).await;
            assert_eq!(heard.text, "Hello there", "{kind:?}: {:?}", heard.end);
            assert_eq!(fake.calls(place(kind).1).len(), calls, "{kind:?}");
        }
        let body = fake.calls(place(kind).1).pop().unwrap().body;
        assert_eq!((body.get("temperature"), &body["max_tokens"]), (None, &json!(100)), "{kind:?}");
        // Other models keep theirs.
        hear(provider.as_ref(), request("text")).await;
        let body = fake.calls(place(kind).1).pop().unwrap().body;
        assert!(body.get("temperature").is_some(), "{kind:?}");
    }
}

#[tokio::test]
async fn leaving_ends_the_call_of_every_kind() {
    let fake = FakeProviders::start().await;
    for (left, kind) in (0..).zip(KINDS) {
        let mut answer = provider(&fake, kind).chat(request("stall")).await.unwrap();
        assert!(answer.next().await.unwrap().is_ok());
        assert_eq!(fake.left(), left);
        drop(answer);
        let start = Instant::now();
        while fake.left() == left {
            assert!(start.elapsed() < Duration::from_secs(2), "{kind:?}: the call goes on upstream");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_service_account_gets_one_token_for_many_calls() {
    let fake = FakeProviders::start().await;
    let tokens = || fake.calls("/token").len();
    let vertex = provider(&fake, ProviderKind::Vertex);
    let all = (0..10).map(|_| hear(vertex.as_ref(), request("text")));
    for heard in futures::future::join_all(all).await {
        assert_eq!(heard.text, "Hello there", "{:?}", heard.end);
    }
    assert_eq!(tokens(), 1);
    let call = fake.calls("/vertex/").pop().unwrap();
    assert!(call.headers["authorization"].to_str().unwrap().starts_with("Bearer ya29."));

    // One that was revoked before its time is replaced, once.
    fake.revoke_tokens();
    assert_eq!(hear(vertex.as_ref(), request("text")).await.text, "Hello there");
    assert_eq!(tokens(), 2);

    // An account that is no more.
    fake.revoke_tokens();
    fake.delete_accounts();
    let all = (0..5).map(|_| hear(vertex.as_ref(), request("text")));
    for heard in futures::future::join_all(all).await {
        assert_eq!(code_of(heard, &[]), "provider_invalid_key");
    }
    assert_eq!(tokens(), 3, "those who waited share the failure");

    // A token that is about to end is not used.
    let short = provider_with(&fake, ProviderKind::Vertex, &fake.service_account(60));
    for _ in 0..2 {
        assert_eq!(hear(short.as_ref(), request("text")).await.text, "Hello there");
    }
    assert_eq!(tokens(), 5);
}

#[tokio::test]
async fn embeddings_come_in_the_order_of_their_texts() {
    let fake = FakeProviders::start().await;
    let input: Vec<String> = (0..230).map(|n| "x".repeat(n % 7 + 1)).collect();
    let embed = async |kind, model: &str, input: &[String]| {
        let (provider, mut made) = (provider(&fake, kind), None::<Embeddings>);
        for texts in input.chunks(provider.most_texts(model).min(input.len().max(1))) {
            let request = EmbeddingRequest { model: model.to_owned(), input: texts.to_vec(), dimensions: Some(2) };
            let more = provider.embed(request).await?;
            match &mut made {
                Some(made) => made.append(more)?,
                None => made = Some(more),
            }
        }
        Ok::<_, ProviderError>(made.unwrap_or_default())
    };
    for (kind, model, calls, counted) in [
        (ProviderKind::Gemini, "gemini-embedding-001", 3, None),
        (ProviderKind::Vertex, "text-embedding-005", 5, Some(460)),
        (ProviderKind::Vertex, "gemini-embedding-001", 230, Some(460)),
        (ProviderKind::AzureOpenai, "deployed", 1, Some(460)),
    ] {
        let before = fake.calls(place(kind).1).len();
        let embeddings = embed(kind, model, &input).await.unwrap();
        let lengths: Vec<_> = embeddings.vectors.iter().map(|vector| vector[0] as usize).collect();
        assert_eq!(lengths, input.iter().map(String::len).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!(embeddings.usage.map(|usage| usage.input_tokens), counted, "{kind:?}");
        assert_eq!(fake.calls(place(kind).1).len() - before, calls, "{kind:?}");
        assert!(embed(kind, model, &[]).await.unwrap().vectors.is_empty());
    }
    let error = embed(ProviderKind::Anthropic, "claude", &input).await.unwrap_err();
    assert_eq!(error.code(), "provider_unsupported");
}

#[tokio::test]
async fn no_kind_leads_to_inner_addresses() {
    let fake = FakeProviders::start().await;
    let strict = client(false);
    for kind in KINDS {
        let key = if kind == ProviderKind::Vertex { fake.service_account(3600) } else { KEY.to_owned() };
        let base_url = fake.url(place(kind).0);
        let api_key = SecretString::from(key);
        assert_eq!(strict.check_spec(kind, Some(&base_url), &api_key).unwrap_err().field, "base_url");
        // What was saved while the owner still allowed it.
        let spec = ProviderSpec { provider: kind, base_url: base_url.parse().unwrap(), api_key };
        let heard = hear(providers::build(&spec, &strict).as_ref(), request("text")).await;
        assert_eq!(code_of(heard, &[]), "provider_address_refused", "{kind:?}");
    }
    // The address for tokens is the client's own choice as well.
    let base_url = "https://europe-west4-aiplatform.googleapis.com";
    let api_key = SecretString::from(fake.service_account(3600));
    let error = strict.check_spec(ProviderKind::Vertex, Some(base_url), &api_key).unwrap_err();
    assert_eq!(error.field, "api_key");
    assert!(fake.calls("").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_sets_keys_of_every_kind_and_they_answer() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("kinds").await;
    let fake = FakeProviders::start().await;
    let account = fake.service_account(3600);
    let admin = &tenant.admin.access;
    for kind in KINDS {
        let key = if kind == ProviderKind::Vertex { account.as_str() } else { KEY };
        let (name, model) = (kind.as_str(), format!("{}-text", kind.as_str()));
        let path = format!("/api/v1/ai-keys/{name}");
        let body = |base_url: &str, key: &str| json!({"provider": name, "base_url": base_url, "api_key": key, "models": [model], "default_model": model});
        for (base_url, key, field) in [
            ("http://", key, "base_url"),
            ("ftp://example.com", key, "base_url"),
            (fake.url(place(kind).0).as_str(), "", "api_key"),
        ] {
            let refused = platform.send(Method::PUT, &path, admin, Some(body(base_url, key))).await;
            let problem = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
            assert_eq!(problem["errors"][0]["field"], field, "{kind:?} {base_url}");
        }
        let set = platform.send(Method::PUT, &path, admin, Some(body(&fake.url(place(kind).0), key))).await;
        assert!(!set.text.contains("PRIVATE") && !set.text.contains(KEY), "{}", set.text);
        let set = set.expect(StatusCode::OK);
        assert_eq!(set["api_key"], if kind == ProviderKind::Vertex { "…cdef" } else { "…cret" });
        let verdict = platform.post(&format!("{path}/test"), admin, json!({})).await.expect(StatusCode::OK);
        assert_eq!((&verdict["code"], &verdict["model"]), (&json!("ok"), &json!(model)), "{kind:?}: {verdict}");
        let question = json!({"message": "Hi", "model": model, "stream": false});
        let answer = platform.post("/api/v1/chat", &tenant.user.access, question).await.expect(StatusCode::OK);
        assert_eq!(
            answer["message"]["content"].as_str().or(answer["content"].as_str()),
            Some("Hello there"),
            "{answer}"
        );
    }
    let named = platform.get("/api/v1/ai-keys", admin).await;
    assert!(!named.text.contains("PRIVATE") && !named.text.contains(KEY));
    let unknown = json!({"provider": "openai", "api_key": "k", "models": ["m"], "default_model": "m"});
    let refused = platform.send(Method::PUT, "/api/v1/ai-keys/x", admin, Some(unknown)).await;
    let problem = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem["errors"][0]["message"].as_str().unwrap().contains("`azure_openai`"), "{problem}");
    // Two of them need no address.
    let without = json!({"provider": "anthropic", "api_key": "k-0123456789", "models": ["m"], "default_model": "m"});
    let set = platform.send(Method::PUT, "/api/v1/ai-keys/x", admin, Some(without)).await.expect(StatusCode::OK);
    assert_eq!(set["base_url"], "https://api.anthropic.com/");
}
