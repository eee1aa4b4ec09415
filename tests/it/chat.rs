//! A turn from question to stored answer: what is told, what is kept, and what happens when something fails midway.

use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Platform, Tenant, connect, events, execute, fake_model};

impl Platform {
    async fn ask(&self, tenant: &Tenant, body: Value) -> Value {
        self.post("/api/v1/chat", &tenant.user.access, body).await.expect(StatusCode::OK)
    }

    async fn messages(&self, tenant: &Tenant, session: &Value) -> Vec<Value> {
        let path = format!("/api/v1/sessions/{}/messages", session.as_str().unwrap());
        let page = self.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().clone()
    }

    /// The last message of the user's newest conversation, once it is no longer being generated.
    async fn last_answer(&self, tenant: &Tenant) -> Value {
        for _ in 0..200 {
            let sessions = self.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
            let last = self.messages(tenant, &sessions["items"][0]["id"]).await.pop().unwrap();
            if last["state"] != "generating" {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the answer was not finished in 10 s");
    }

    /// The path of the user's newest conversation, once there is one.
    async fn conversation(&self, tenant: &Tenant) -> String {
        for _ in 0..200 {
            let sessions = self.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
            if let Some(id) = sessions["items"][0]["id"].as_str() {
                return format!("/api/v1/sessions/{id}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no conversation began in 4 s");
    }

    async fn put_key(&self, tenant: &Tenant, name: &str, models: &[&str]) {
        let body = json!({
            "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
            "models": models, "default_model": models[0]
        });
        let path = format!("/api/v1/ai-keys/{name}");
        self.send(Method::PUT, &path, &tenant.admin.access, Some(body)).await.expect_success();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_and_is_kept() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("talk").await;
    let first = platform.ask(&tenant, json!({ "message": "  one\n two \u{0}", "model": "echo" })).await;
    assert_eq!(first["model"], "echo");
    assert_eq!(first["usage"]["reported"], true);
    let session = &first["session_id"];
    platform.ask(&tenant, json!({ "message": "three", "session_id": session })).await;

    let calls = fake_model().await.calls_with_key(&tenant.key);
    let told = calls.last().unwrap().contents();
    assert_eq!(told.len(), 4);
    assert!(told[0].contains("Company talk") && told[0].contains("Your name is "), "{}", told[0]);
    assert_eq!((told[1].trim(), told[3].as_str()), ("one\n two", "three"));

    let messages = platform.messages(&tenant, session).await;
    let seen: Vec<_> = messages.iter().map(|m| (m["role"].as_str().unwrap(), m["state"].as_str().unwrap())).collect();
    assert_eq!(
        seen,
        [("user", "complete"), ("assistant", "complete"), ("user", "complete"), ("assistant", "complete")]
    );
    assert_eq!(messages[1]["id"], first["message_id"]);
    assert_eq!(messages[1]["content"], first["content"]);
    assert_eq!(messages[1]["usage"], first["usage"]);

    // By pages of three: oldest first, nothing twice.
    let path = format!("/api/v1/sessions/{}/messages?limit=3", session.as_str().unwrap());
    let page = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(page["items"].as_array().unwrap()[..], messages[..3]);
    let path = format!("{path}&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(page["items"].as_array().unwrap()[..], messages[3..]);
    assert!(page.get("next_cursor").is_none());

    let second = platform.ask(&tenant, json!({ "message": "another" })).await;
    let sessions = platform.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
    let titles: Vec<_> = sessions["items"].as_array().unwrap().iter().map(|s| s["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["another", "one two"]);
    assert_eq!(sessions["items"][0]["id"], second["session_id"]);

    let path = format!("/api/v1/sessions/{}", session.as_str().unwrap());
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        assert_eq!(platform.send(Method::DELETE, &path, &tenant.user.access, None).await.status, status);
    }
    let gone = json!({ "message": "still there?", "session_id": session });
    let answer = platform.post("/api/v1/chat", &tenant.user.access, gone).await;
    assert_eq!(answer.expect_problem(StatusCode::NOT_FOUND), "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_answer_has_all_its_parts_in_order() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("stream").await;
    let answer =
        platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "a b c", "stream": true })).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    let mut events = events(&answer.text);
    let (name, started) = events.remove(0);
    let started: Value = serde_json::from_str(&started).unwrap();
    assert_eq!(name, "started");
    assert_eq!(events.pop().unwrap(), ("message".to_owned(), "[DONE]".to_owned()));
    let (name, done) = events.pop().unwrap();
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!((name.as_str(), &done["model"]), ("done", &json!("echo")));
    assert_eq!((&started["session_id"], &started["message_id"]), (&done["session_id"], &done["message_id"]));
    assert!(events.len() > 1 && events.iter().all(|(name, _)| name == "message"));
    let text: String = events
        .iter()
        .map(|(_, data)| serde_json::from_str::<Value>(data).unwrap()["content"].as_str().unwrap().to_owned())
        .collect();
    let stored = platform.messages(&tenant, &done["session_id"]).await.pop().unwrap();
    assert_eq!((&stored["content"], &stored["id"]), (&json!(text), &done["message_id"]));
    assert_eq!(stored["usage"], done["usage"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_byte_does_not_wait_for_the_model() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("first-byte").await;
    let body = json!({ "message": "hello", "model": "hang", "stream": true });
    let request = platform.client.post(format!("{}/api/v1/chat", platform.url)).bearer_auth(&tenant.user.access);
    let response = request.json(&body).send().await.unwrap();
    let mut bytes = response.bytes_stream();
    let mut next = async || tokio::time::timeout(Duration::from_secs(4), bytes.next()).await.unwrap().unwrap().unwrap();
    assert!(next().await.starts_with(b"id: 0\nevent: started\ndata: {"));
    assert_eq!(&next().await[..], b": heartbeat\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_leaves_what_arrived() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("fails").await;
    for (model, state, code) in [
        ("cut", "interrupted", "provider_interrupted"),
        ("midway-error", "interrupted", "provider_interrupted"),
        ("error-400", "failed", "provider_bad_request"),
    ] {
        let question = |stream: bool| json!({ "message": "hello", "model": model, "stream": stream });
        let answer = platform.post("/api/v1/chat", &tenant.user.access, question(true)).await;
        let (name, error) = events(&answer.text).pop().unwrap();
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!((name.as_str(), &error["code"]), ("error", &json!(code)), "{model}");
        assert!(!answer.text.contains("[DONE]") && !answer.text.contains("event: done"));
        let messages = platform.messages(&tenant, &error["session_id"]).await;
        let [question_kept, kept] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(question_kept["content"], "hello");
        assert_eq!((&kept["state"], &kept["error_code"]), (&json!(state), &json!(code)), "{model}");
        assert_eq!(kept["id"], error["message_id"]);
        assert_eq!(kept["content"] == "", state == "failed");
        if state == "interrupted" {
            assert_eq!(kept["usage"]["reported"], false);
        }
        let answer = platform.post("/api/v1/chat", &tenant.user.access, question(false)).await;
        assert_eq!(answer.expect_problem(StatusCode::BAD_GATEWAY), code, "{model}");
        assert_eq!(platform.last_answer(&tenant).await["state"], state, "{model}");
    }
    let answer = platform.ask(&tenant, json!({ "message": "hello", "model": "no-usage" })).await;
    assert_eq!(answer["usage"]["reported"], false);
    assert!(answer["usage"]["output_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_loses_nothing() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("leaves").await;
    for stream in [true, false] {
        let body = json!({ "message": "hello", "model": "slow-500", "stream": stream });
        let request = platform.client.post(format!("{}/api/v1/chat", platform.url)).bearer_auth(&tenant.user.access);
        let sent = tokio::time::timeout(Duration::from_millis(200), async {
            let mut response = request.json(&body).send().await.unwrap();
            while response.chunk().await.unwrap().is_some() {}
        });
        assert!(sent.await.is_err(), "the answer was there before the client left");
        let answer = platform.last_answer(&tenant).await;
        assert_eq!((&answer["state"], &answer["usage"]["reported"]), (&json!("complete"), &json!(true)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_held_while_the_model_speaks() {
    let options = crate::harness::Options { settings: &[("FREEHOLD_TENANT_POOL_SIZE", "1")], ..Default::default() };
    let platform = Platform::start_with(options).await;
    let tenant = platform.tenant("one-connection").await;
    let slow = async {
        let started = std::time::Instant::now();
        let question = |number| json!({ "message": format!("hello {number}"), "model": "slow-500" });
        let questions = (0..8).map(|number| platform.ask(&tenant, question(number)));
        futures::future::join_all(questions).await;
        started.elapsed()
    };
    assert!(slow.await < Duration::from_secs(3), "answers waited for each other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_outlives_a_database_that_is_away() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("away").await;
    platform.put_key(&tenant, "main", &["slow-1500"]).await;
    let url = platform.tenant_database(&tenant.slug).await;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let admin = crate::harness::server().await.url("postgres");
    let asked = platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello", "model": "slow-1500" }));
    let outage = async {
        platform.conversation(&tenant).await;
        execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS false")).await;
        execute(&admin, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
            .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS true")).await;
    };
    let (answer, ()) = tokio::join!(asked, outage);
    let answer = answer.expect(StatusCode::OK);
    let stored = platform.last_answer(&tenant).await;
    assert_eq!((&stored["content"], &stored["state"]), (&answer["content"], &json!("complete")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_deleted_meanwhile_is_never_done() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("deleted").await;
    platform.put_key(&tenant, "main", &["slow-1500"]).await;
    let asked = platform.post(
        "/api/v1/chat",
        &tenant.user.access,
        json!({ "message": "hello", "model": "slow-1500", "stream": true }),
    );
    let deleted = async {
        let path = platform.conversation(&tenant).await;
        platform.send(Method::DELETE, &path, &tenant.user.access, None).await.expect_success();
    };
    let (answer, ()) = tokio::join!(asked, deleted);
    let (name, error) = events(&answer.text).pop().unwrap();
    assert!(name == "error" && error.contains("conversation_deleted"), "{name} {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_refused_with_a_reason() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("refusals").await;
    platform
        .configure(&tenant, json!({ "max_message_length": 10, "models": ["instant", "cut"] }))
        .await
        .expect(StatusCode::OK);
    let refused = async |body: Value, status: StatusCode| {
        platform.post("/api/v1/chat", &tenant.user.access, body).await.expect_problem(status)
    };
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    assert_eq!(refused(json!({ "message": " \n\u{0}" }), unprocessable).await, "invalid_request");
    assert_eq!(refused(json!({ "message": "ä".repeat(11) }), unprocessable).await, "invalid_request");
    assert_eq!(refused(json!({ "message": "hi", "model": "echo" }), unprocessable).await, "model_not_allowed");
    let strange = json!({ "message": "hi", "session_id": Uuid::now_v7() });
    assert_eq!(refused(strange, StatusCode::NOT_FOUND).await, "not_found");
    let answer = platform.ask(&tenant, json!({ "message": "ä".repeat(10) })).await;
    assert_eq!(answer["model"], "instant");
    platform.configure(&tenant, json!({ "models": ["unheard-of"] })).await.expect(StatusCode::OK);
    assert_eq!(refused(json!({ "message": "hi" }), StatusCode::CONFLICT).await, "model_missing");
    let path = "/api/v1/ai-keys/main";
    platform.send(Method::DELETE, path, &tenant.admin.access, None).await.expect_success();
    assert_eq!(refused(json!({ "message": "hi" }), StatusCode::CONFLICT).await, "ai_key_missing");

    // Nothing was kept of what was refused.
    let sessions = platform.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(sessions["items"].as_array().unwrap().len(), 1);

    // The token still verifies, and says nothing any more.
    let path = format!("/api/v1/users/{}", tenant.user_id);
    let disabled = Some(json!({ "disabled": true }));
    platform.send(Method::PATCH, &path, &tenant.admin.access, disabled).await.expect_success();
    assert_eq!(refused(json!({ "message": "hi" }), StatusCode::UNAUTHORIZED).await, "unauthenticated");
    assert_eq!(platform.get("/api/v1/sessions", &tenant.user.access).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_server_died_is_shown_as_interrupted() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("died").await;
    let answer = platform.ask(&tenant, json!({ "message": "hello" })).await;
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    for (age, state) in [("1 minute", "generating"), ("11 minutes", "interrupted")] {
        let sql = format!(
            "UPDATE chat_messages SET state = 'generating', created_at = now() - interval '{age}'
             WHERE role = 'assistant'"
        );
        database.batch_execute(&sql).await.unwrap();
        assert_eq!(platform.messages(&tenant, &answer["session_id"]).await[1]["state"], state);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_finishes_its_answers() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("stops").await;
    platform.put_key(&tenant, "main", &["slow-1500"]).await;
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let asked = platform.post(
        "/api/v1/chat",
        &tenant.user.access,
        json!({ "message": "hello", "model": "slow-1500", "stream": true }),
    );
    let stopped = async {
        platform.conversation(&tenant).await;
        platform.state.stop.cancel();
    };
    let (answer, ()) = tokio::join!(asked, stopped);
    assert_eq!(events(&answer.text).pop().unwrap().1, "[DONE]");
    let row = database.query_one("SELECT state FROM chat_messages WHERE role = 'assistant'", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_keys_or_settings_counts_from_the_next_question() {
    let platform = Platform::start().await;
    let (tenant, other) = (platform.tenant("changes").await, platform.tenant("changes-not").await);
    for tenant in [&tenant, &other] {
        platform.ask(tenant, json!({ "message": "warm" })).await;
    }
    platform
        .configure(&tenant, json!({ "system_prompt": "Speak Latin.", "history_length": 0 }))
        .await
        .expect(StatusCode::OK);
    let mut changed = tenant;
    changed.key = format!("key-{}", Uuid::new_v4().simple());
    platform.put_key(&changed, "main", &["instant"]).await;
    let answer = platform.ask(&changed, json!({ "message": "hello" })).await;
    assert_eq!(answer["model"], "instant");
    let calls = fake_model().await.calls_with_key(&changed.key);
    assert_eq!(calls.len(), 1);
    assert!(calls[0].contents()[0].starts_with("Speak Latin."));
    // The other tenant's questions still go out with its own key and instructions.
    platform.ask(&other, json!({ "message": "hello" })).await;
    let calls = fake_model().await.calls_with_key(&other.key);
    assert_eq!(calls.len(), 2);
    assert!(calls[1].contents()[0].contains("Company changes-not"));
}
