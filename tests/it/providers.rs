//! Model providers against a fake that answers well and badly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use freehold::providers::{
    self, ChatEvent, ChatMessage, ChatRequest, ChatRole, FinishReason, ModelProvider, ProviderClient,
    ProviderClientOptions, ProviderError, ProviderKind, ProviderSpec, Retries, Timeouts, Usage,
};
use futures::StreamExt;
use url::Url;

use crate::fake_model::FakeModel;

const KEY: &str = "sk-test-4f0c2a";
const PROMPT: &str = "the patient's name is Ada";

/// Private hosts allowed, waits short.
fn options() -> ProviderClientOptions {
    ProviderClientOptions {
        allow_private_hosts: true,
        timeouts: Timeouts {
            connect: Duration::from_millis(500),
            first_byte: Duration::from_secs(1),
            whole_answer: Duration::from_secs(1),
            between_tokens: Duration::from_millis(700),
        },
        retries: Retries { base_delay: Duration::from_millis(5), ..Retries::default() },
        ..ProviderClientOptions::default()
    }
}

fn provider_at(base_url: &str, options: &ProviderClientOptions) -> anyhow::Result<Arc<dyn ModelProvider>> {
    let client = ProviderClient::new(options)?;
    let base_url: Url = base_url.parse()?;
    let spec = ProviderSpec { provider: ProviderKind::OpenaiCompatible, base_url, api_key: KEY.to_owned().into() };
    Ok(providers::build(&spec, &client))
}

fn request(model: &str) -> ChatRequest {
    ChatRequest {
        model: model.to_owned(),
        messages: vec![ChatMessage::text(ChatRole::System, "be brief"), ChatMessage::text(ChatRole::User, PROMPT)],
        ..ChatRequest::default()
    }
}

struct Heard {
    text: String,
    deltas: usize,
    end: Result<(Option<Usage>, FinishReason), ProviderError>,
}

async fn hear(provider: &dyn ModelProvider, model: &str) -> Heard {
    let mut heard = Heard { text: String::new(), deltas: 0, end: Ok((None, FinishReason::Other)) };
    let mut answer = match provider.chat(request(model)).await {
        Ok(answer) => answer,
        Err(error) => return Heard { end: Err(error), ..heard },
    };
    while let Some(event) = answer.next().await {
        match event {
            Ok(ChatEvent::Delta(text)) => {
                heard.text.push_str(&text);
                heard.deltas += 1;
            }
            Ok(ChatEvent::Reasoning(_) | ChatEvent::ToolCall(_)) => {}
            Ok(ChatEvent::Finished { usage, finish_reason }) => heard.end = Ok((usage, finish_reason)),
            Err(error) => heard.end = Err(error),
        }
    }
    heard
}

/// The code of the error `model` ends with; empty if it ends well. Checks on the way that it tells no secret.
async fn code_of(provider: &dyn ModelProvider, model: &str) -> &'static str {
    let Err(error) = hear(provider, model).await.end else { return "" };
    let mut told = format!("{error} {error:?}");
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    assert!(std::error::Error::source(&error).is_some(), "{model}: the cause is kept");
    while let Some(error) = cause {
        told.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(!told.contains(KEY) && !told.contains("Ada"), "{model}: {told}");
    error.code()
}

#[tokio::test]
async fn a_streamed_answer_arrives_with_its_usage() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    let heard = hear(provider.as_ref(), "echo").await;
    assert_eq!((heard.text.as_str(), heard.deltas), (PROMPT, 5));
    let usage = Usage { input_tokens: 7, output_tokens: 5, cached_input_tokens: 0, reported: true };
    assert_eq!(heard.end.unwrap(), (Some(usage), FinishReason::Stop));

    let calls = fake.calls_with_key(KEY);
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].body["stream"], true);
    assert_eq!(calls[0].body["stream_options"]["include_usage"], true);
    assert_eq!(calls[0].contents(), ["be brief", PROMPT]);
    assert_eq!(fake.calls().len(), 1);
}

#[tokio::test]
async fn lenient_where_the_answer_is_whole() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    for (model, reported) in
        [("instant", true), ("no-done", true), ("no-usage", false), ("json", true), ("slow-50", true)]
    {
        let heard = hear(provider.as_ref(), model).await;
        let (usage, reason) = heard.end.unwrap();
        assert!(heard.text.starts_with("A freehold is held"), "{model}");
        assert_eq!((usage.is_some(), reason), (reported, FinishReason::Stop), "{model}");
    }
}

#[tokio::test]
async fn every_failure_has_its_kind_and_keeps_its_secrets() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    for (model, code, calls) in [
        ("error-401", "provider_invalid_key", 1),
        ("error-403", "provider_invalid_key", 1),
        ("error-402", "provider_invalid_key", 1),
        ("error-404", "provider_model_not_found", 1),
        ("nobody", "provider_model_not_found", 1),
        ("error-400", "provider_bad_request", 1),
        ("error-422", "provider_bad_request", 1),
        ("error-413", "provider_bad_request", 1),
        ("error-500", "provider_unavailable", 1),
        ("error-504", "provider_timeout", 1),
        ("error-502", "provider_unavailable", 3),
        ("error-503", "provider_unavailable", 3),
        ("error-429", "provider_rate_limited", 3),
        ("quota", "provider_rate_limited", 1),
        ("hang", "provider_timeout", 1),
        ("stall", "provider_timeout", 1),
        ("cut", "provider_interrupted", 1),
        ("truncated", "provider_interrupted", 1),
        ("midway-error", "provider_interrupted", 1),
        ("redirect", "provider_address_refused", 1),
        ("flaky-503-2", "", 3),
        ("flaky-429-1", "", 2),
        ("flaky-500-1", "provider_unavailable", 1),
    ] {
        let before = fake.calls().len();
        assert_eq!(code_of(provider.as_ref(), model).await, code, "{model}");
        assert_eq!(fake.calls().len() - before, calls, "{model}: calls");
    }
    assert_eq!(fake.strays(), 0, "the redirect was not followed");
}

#[tokio::test]
async fn text_before_a_cut_is_delivered() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    for model in ["cut", "truncated", "stall", "midway-error"] {
        assert_eq!(hear(provider.as_ref(), model).await.deltas, 13, "{model}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_within_bounds() {
    let fake = FakeModel::start().unwrap();
    let mut options = options();
    options.retries.max = 1;
    let provider = provider_at(&fake.base_url(), &options).unwrap();
    let start = Instant::now();
    let error = hear(provider.as_ref(), "error-429-after-1").await.end.unwrap_err();
    assert!(start.elapsed() >= Duration::from_secs(1), "waited as asked");
    assert!(matches!(error, ProviderError::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() == 1));
    assert_eq!(fake.calls().len(), 2);

    let start = Instant::now();
    let error = hear(provider.as_ref(), "error-429-after-3600").await.end.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "an hour is the caller's to wait");
    assert!(matches!(error, ProviderError::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() == 3600));
    assert_eq!(fake.calls().len(), 3);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let provider = provider_at(&format!("http://127.0.0.1:{port}/v1"), &options()).unwrap();
    assert_eq!(code_of(provider.as_ref(), "instant").await, "provider_unavailable");
}

#[tokio::test]
async fn failed_connections_are_tried_again() {
    // Nobody listens at first; the fake's port is taken over by a server before the retries are used up.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut options = options();
    options.retries.base_delay = Duration::from_millis(200);
    let provider = provider_at(&format!("http://{address}/v1"), &options).unwrap();
    let server = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        crate::fake_model::serve(listener).await
    });
    assert!(hear(provider.as_ref(), "instant").await.end.is_ok());
    server.abort();
}

#[tokio::test]
async fn leaving_ends_the_call_upstream() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    let mut answer = provider.chat(request("drip-50")).await.unwrap();
    assert!(answer.next().await.unwrap().is_ok());
    assert_eq!(fake.cancelled_with_key(KEY), 0);
    drop(answer);
    let left = Instant::now();
    while fake.cancelled_with_key(KEY) == 0 {
        assert!(left.elapsed() < Duration::from_secs(2), "the call goes on upstream");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    // Before the first byte too.
    let call = tokio::time::timeout(Duration::from_millis(50), provider.chat(request("hang"))).await;
    assert!(call.is_err());
    let left = Instant::now();
    while fake.cancelled_with_key(KEY) == 1 {
        assert!(left.elapsed() < Duration::from_secs(2), "the call goes on upstream");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    for _ in 0..20 {
        for model in ["instant", "echo", "json", "error-400"] {
            // Read as chat does: not a poll further than the end.
            if let Ok(mut answer) = provider.chat(request(model)).await {
                while let Some(Ok(ChatEvent::Delta(_))) = answer.next().await {}
            }
            // The end of the body may be a moment behind its last event.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // Here the body ends only 10 ms behind `[DONE]`.
    for _ in 0..2 {
        let mut answer = provider.chat(request("drip-10")).await.unwrap();
        while let Some(Ok(ChatEvent::Delta(_))) = answer.next().await {}
        drop(answer);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    hear(provider.as_ref(), "instant").await.end.unwrap();
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused() {
    let fake = FakeModel::start().unwrap();
    let port = fake.address().port();
    let strict = ProviderClientOptions { allow_private_hosts: false, ..options() };
    // Names are judged by what they resolve to, literals at once, plain HTTP always.
    for base in [
        format!("https://localhost:{port}/v1"),
        format!("https://LOCALHOST:{port}/v1"),
        format!("https://127.0.0.1:{port}/v1"),
        format!("https://[::1]:{port}/v1"),
        format!("https://[::ffff:127.0.0.1]:{port}/v1"),
        format!("https://2130706433:{port}/v1"),
        format!("http://localhost:{port}/v1"),
        fake.base_url(),
    ] {
        let provider = provider_at(&base, &strict).unwrap();
        assert_eq!(code_of(provider.as_ref(), "instant").await, "provider_address_refused", "{base}");
    }
    assert_eq!(fake.connections(), 0);

    let listed = ProviderClientOptions { allowed_hosts: vec!["localhost".to_owned()], ..strict };
    let provider = provider_at(&format!("http://localhost:{port}/v1"), &listed).unwrap();
    assert_eq!(code_of(provider.as_ref(), "instant").await, "");
    let provider = provider_at(&fake.base_url(), &listed).unwrap();
    assert_eq!(code_of(provider.as_ref(), "instant").await, "provider_address_refused");
}

#[tokio::test]
async fn a_key_is_tried_with_one_cheap_call() {
    let fake = FakeModel::start().unwrap();
    let provider = provider_at(&fake.base_url(), &options()).unwrap();
    let verdict = providers::test(provider.as_ref(), "slow-30").await.unwrap();
    assert_eq!(verdict.model, "slow-30");
    assert!(verdict.latency_ms >= 30);
    let calls = fake.calls();
    assert_eq!((calls.len(), calls[0].model()), (1, "slow-30"));
    assert_eq!(calls[0].body["max_tokens"], 1);
    let error = providers::test(provider.as_ref(), "error-401").await.unwrap_err();
    assert_eq!(error.code(), "provider_invalid_key");
    assert_eq!(fake.calls().len(), 2);

    // Models that think first refuse to write one token, and get a second chance.
    let verdict = providers::test(provider.as_ref(), "flaky-400-1").await.unwrap();
    assert_eq!(verdict.model, "flaky-400-1");
    assert_eq!(fake.calls().last().unwrap().body["max_tokens"], 2000);
    let error = providers::test(provider.as_ref(), "error-400").await.unwrap_err();
    assert_eq!((error.code(), fake.calls().len()), ("provider_bad_request", 6));
}
