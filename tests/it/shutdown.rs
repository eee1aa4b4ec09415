//! A server that stops lets answers end, and ends those that take too long with what has arrived.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;

use crate::harness::{Options, Platform, Tenant, connect, events};

/// A tenant whose model takes its time, and the text of a streamed answer whose server is told to stop after the first
/// words.
async fn stopped_in_mid_answer(platform: &Platform, slug: &str, model: &str) -> (Tenant, String) {
    let tenant = platform.tenant(slug).await;
    platform.offer(&tenant, &[model]).await;
    let request = platform.client.post(format!("{}/api/v1/chat", platform.url)).bearer_auth(&tenant.user.access);
    let body = json!({ "message": "one two three four five six seven eight", "stream": true });
    let mut stream = request.json(&body).send().await.unwrap().bytes_stream();
    let mut text = String::new();
    while let Some(bytes) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&bytes.unwrap()));
        if text.contains("content") {
            platform.state.stop.cancel();
        }
    }
    (tenant, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_under_way_ends_properly_and_nothing_new_is_accepted() {
    let platform = Platform::start().await;
    let (_, text) = stopped_in_mid_answer(&platform, "ends-well", "drip-50").await;
    assert_eq!(events(&text).last().unwrap().1, "[DONE]", "{text}");
    let again = reqwest::Client::new().get(format!("{}/api/health", platform.url)).send().await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_too_long_is_kept_as_far_as_it_came() {
    let settings = &[("FREEHOLD_SHUTDOWN_SECONDS", "1")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    // Looked up first: the server that is asked will be gone.
    let (tenant, text) = stopped_in_mid_answer(&platform, "ends-early", "drip-2000").await;
    let (name, data) = events(&text).pop().unwrap();
    assert_eq!(name, "error", "{text}");
    assert!(data.contains("server_stopped"), "{data}");
    let again = Platform::start_with(Options { database: Some(platform.database.clone()), ..Options::default() }).await;
    let database = connect(&again.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "SELECT state, length(content) > 0 FROM chat_messages WHERE role = 'assistant'";
    for _ in 0..100 {
        let row = database.query_one(sql, &[]).await.unwrap();
        if row.get::<_, &str>(0) != "generating" {
            assert_eq!((row.get(0), row.get(1)), ("interrupted", true));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the answer was not stored");
}
