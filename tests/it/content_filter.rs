//! The content filter over the wire: what the model says in pieces is masked in whatever leaves the server, and in what is
//! stored. The texts are those of the filter's own tests.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Platform, Tenant, connect, events};

#[path = "../content-filter/marked.rs"]
mod marked;

use marked::{HARMLESS, SENSITIVE};

/// Between texts, so that none says anything of the next.
const BETWEEN: &str = "\n\n~\n\n";

/// The texts of a table, as they come and as they are to go out.
fn texts(table: &str) -> Vec<(String, String)> {
    marked::texts(table).iter().map(|text| marked::marked(text)).collect()
}

/// All of them in one question, and the answer that is to come of it.
fn together(texts: &[(String, String)]) -> (String, String) {
    let join = |side: fn(&(String, String)) -> &str| texts.iter().map(side).collect::<Vec<_>>().join(BETWEEN);
    (join(|text| &text.0), join(|text| &text.1))
}

/// The deltas of a stream.
fn deltas(stream: &str) -> Vec<String> {
    let events = events(stream).into_iter().filter(|(name, data)| name == "message" && data != "[DONE]");
    events
        .map(|(_, data)| serde_json::from_str::<Value>(&data).unwrap()["content"].as_str().unwrap().to_owned())
        .collect()
}

fn everything() -> Value {
    json!({ "card_numbers": true, "email_addresses": true, "phone_numbers": true,
            "patterns": [{ "name": "employee", "pattern": r"\bEMP-\d{6}\b" },
                         { "name": "code name", "pattern": "(?i)project phoenix", "replacement": "the project" }] })
}

impl Platform {
    /// A tenant with these models of the fake, and an API key for it.
    async fn filtered(&self, slug: &str, models: &[&str], filter: Value) -> (Tenant, String) {
        let tenant = self.tenant(slug).await;
        self.offer(&tenant, models).await;
        let made = self.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "test" })).await;
        let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
        let change = json!({ "content_filter": filter, "max_message_length": 20_000 });
        self.configure(&tenant, change).await.expect(StatusCode::OK);
        (tenant, key)
    }

    /// The answer in one piece, and the conversation.
    async fn said(&self, tenant: &Tenant, model: &str, text: &str) -> (String, String) {
        let body = json!({ "message": text, "model": model });
        let answer = self.post("/api/v1/chat", &tenant.user.access, body).await.expect(StatusCode::OK);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        (text("content"), text("session_id"))
    }

    /// The answer as a stream: its text, and how many deltas it had.
    async fn streamed(&self, tenant: &Tenant, model: &str, text: &str) -> (String, usize) {
        let body = json!({ "message": text, "model": model, "stream": true });
        let answer = self.post("/api/v1/chat", &tenant.user.access, body).await;
        assert_eq!(answer.status, StatusCode::OK);
        let deltas = deltas(&answer.text);
        assert!(deltas.iter().all(|delta| !delta.is_empty()), "nothing is told of what is held");
        (deltas.concat(), deltas.len())
    }

    /// The answer of the endpoint for programs.
    async fn completed(&self, key: &str, model: &str, text: &str, stream: bool) -> String {
        let body = json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": text }] });
        let answer = self.post("/v1/chat/completions", key, body).await;
        if !stream {
            let answer = answer.expect(StatusCode::OK);
            return answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        }
        assert_eq!(answer.status, StatusCode::OK);
        let data =
            answer.text.split("\n\n").filter_map(|event| event.strip_prefix("data: ").filter(|data| *data != "[DONE]"));
        let chunks = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_model_says_in_pieces_is_masked_everywhere() {
    let platform = Platform::start().await;
    let models = ["pieces-1", "pieces-3", "pieces-7", "echo"];
    let (tenant, key) = platform.filtered("masked", &models, everything()).await;
    for (table, what) in [(SENSITIVE, "let through"), (HARMLESS, "altered")] {
        let texts = texts(table);
        assert!(texts.len() >= 200);
        let (question, answer) = together(&texts);
        for model in ["pieces-1", "pieces-3", "pieces-7", "echo"] {
            let (streamed, deltas) = platform.streamed(&tenant, model, &question).await;
            assert_eq!(streamed, answer, "{what} in a stream of {model}");
            assert!(deltas > texts.len(), "it flows: {deltas}");
            assert_eq!(platform.completed(&key, model, &question, true).await, answer, "{what} under /v1 by {model}");
        }
        let (whole, session) = platform.said(&tenant, "pieces-3", &question).await;
        assert_eq!(whole, answer, "{what} in one piece");
        assert_eq!(
            platform.completed(&key, "pieces-3", &question, false).await,
            answer,
            "{what} under /v1 in one piece"
        );
        // What is stored is what was told; the question is the user's own.
        let path = format!("/api/v1/sessions/{session}/messages");
        let messages = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
        assert_eq!(
            (&messages["items"][0]["content"], &messages["items"][1]["content"]),
            (&json!(question), &json!(answer))
        );
    }
    let own = "EMP-123456 leads Project Phoenix.";
    assert_eq!(platform.said(&tenant, "pieces-3", own).await.0, "[employee] leads the project.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_tells_and_stores_nothing_that_is_masked() {
    let platform = Platform::start().await;
    let (tenant, key) = platform.filtered("broken", &["pieces-3-cut"], everything()).await;
    let question = "My card is 4111 1111 1111 1111";
    let answer =
        platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": question, "stream": true })).await;
    let told = deltas(&answer.text).concat();
    assert_eq!(told, "My card is [card number]");
    assert!(answer.text.contains("event: error"), "{}", answer.text);
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "SELECT content FROM chat_messages WHERE role = 'assistant'";
    assert_eq!(database.query_one(sql, &[]).await.unwrap().get::<_, String>(0), told);
    let streamed = platform.completed(&key, "pieces-3-cut", question, true);
    // An error ends the stream; what comes before it is masked.
    let streamed = tokio::time::timeout(Duration::from_secs(30), streamed).await.unwrap();
    assert_eq!(streamed, "My card is [card number]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_masked_unless_it_is_switched_on_and_what_cannot_be_a_filter_is_refused() {
    let platform = Platform::start().await;
    let (tenant, key) = platform.filtered("plain", &["pieces-3"], json!({})).await;
    let text = "4111 1111 1111 1111, anna@example.com, +49 30 901820";
    assert_eq!(platform.said(&tenant, "pieces-3", text).await.0, text);
    assert_eq!(platform.completed(&key, "pieces-3", text, true).await, text);

    let change = async |filter: Value| platform.configure(&tenant, json!({ "content_filter": filter })).await;
    let pattern = |name: &str, pattern: &str| json!({ "patterns": [{ "name": name, "pattern": pattern }] });
    for (filter, why) in [
        (pattern("a", "x*"), "empty"),
        (pattern("a", "x+"), "256"),
        (pattern("a", "("), "unclosed"),
        (pattern("a", r"\w{256}"), "too large"),
        (pattern("[a]", "x"), "name"),
        (pattern("", "x"), "name"),
        (json!({ "patterns": vec![json!({ "name": "a", "pattern": "x" }); 2] }), "two patterns"),
        (
            json!({ "patterns": (0..8).map(|n| json!({ "name": n.to_string(), "pattern": r"(?s-u:[\x01-\x7f]){1,250}A" }))
                .collect::<Vec<_>>() }),
            "too much work",
        ),
        (
            json!({ "patterns": (0..21).map(|n| json!({ "name": n.to_string(), "pattern": "x" })).collect::<Vec<_>>() }),
            "20",
        ),
        (json!({ "patterns": [{ "name": "a", "pattern": "x", "replacement": "" }] }), "replacement"),
        (json!({ "card_number": true }), "card_number"),
        (json!({ "patterns": [{ "name": "a", "pattern": "x", "flags": "i" }] }), "flags"),
    ] {
        let answer = change(filter.clone()).await;
        assert!(answer.text.contains(why), "{filter}: {}", answer.text);
        answer.expect_problem(StatusCode::UNPROCESSABLE_ENTITY);
    }

    // Each switch for itself, and at once.
    change(json!({ "email_addresses": true })).await.expect(StatusCode::OK);
    let masked = "4111 1111 1111 1111, [e-mail address], +49 30 901820";
    assert_eq!(platform.said(&tenant, "pieces-3", text).await.0, masked);
    let config = platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK);
    assert_eq!(config["settings"]["content_filter"]["email_addresses"], true);
    assert_eq!(config["settings"]["content_filter"]["card_numbers"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_and_given_again_is_masked_and_never_from_before_the_filter() {
    let platform = Platform::start().await;
    let (tenant, _) = platform.filtered("kept", &["pieces-3"], json!({})).await;
    platform.configure(&tenant, json!({ "answer_cache": { "enabled": true } })).await.expect(StatusCode::OK);
    let ask = async || {
        let body = json!({ "message": "Write to anna@example.com." });
        let answer = platform.post("/api/v1/chat", &tenant.user.access, body).await.expect(StatusCode::OK);
        (answer["content"].as_str().unwrap().to_owned(), answer["from_cache"].as_bool().unwrap())
    };
    let plain = "Write to anna@example.com.".to_owned();
    assert_eq!((ask().await, ask().await), ((plain.clone(), false), (plain, true)));
    platform.configure(&tenant, json!({ "content_filter": everything() })).await.expect(StatusCode::OK);
    let masked = "Write to [e-mail address].".to_owned();
    assert_eq!((ask().await, ask().await), ((masked.clone(), false), (masked, true)));
}
