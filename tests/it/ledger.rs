//! The ledger: a row for every model call, there before the provider is asked and settled whatever happens.

use std::time::Duration;

use freehold::chat::{CallContext, CallError, ChatError, MeteredStream};
use freehold::limits::Permit;
use freehold::metering::CallKind;
use freehold::providers::{ChatEvent, ChatMessage, ChatRequest, ChatRole, EmbeddingRequest, Usage};
use freehold::tenant_db::TenantDb;
use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_providers::{FakeProviders, KEY};
use crate::harness::{Options, Platform, Tenant, connect, events, execute, fake_model, server};

/// A call as it stands in the tenant's database.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    kind: String,
    ai_key: String,
    model: String,
    upstream_model: String,
    state: String,
    error_code: Option<String>,
    tokens: (Option<i64>, Option<i64>, Option<bool>),
    message_id: Option<Uuid>,
}

impl Platform {
    async fn tenant_db(&self, tenant: &Tenant) -> TenantDb {
        let record = self.state.directory.by_slug(&tenant.slug.parse().unwrap()).await.unwrap().unwrap();
        self.state.databases.open(record).unwrap()
    }

    async fn ledger(&self, tenant: &Tenant) -> Client {
        connect(&self.tenant_database(&tenant.slug).await).await.unwrap()
    }

    async fn put_model(&self, tenant: &Tenant, name: &str, alias: &str, model: &str, more: Value) {
        let mut body = json!({
            "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
            "models": [model], "default_model": alias, "model_aliases": { alias: model }
        });
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        let path = format!("/api/v1/ai-keys/{name}");
        self.send(Method::PUT, &path, &tenant.admin.access, Some(body)).await.expect_success();
    }

    async fn chat_with(&self, tenant: &Tenant, model: &str) -> crate::harness::Answer {
        self.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello there", "model": model })).await
    }

    async fn complete(&self, db: &TenantDb, model: &str) -> Result<MeteredStream, ChatError> {
        let context = CallContext {
            permit: Permit::default(),
            room: None,
            db: db.clone(),
            user_id: None,
            api_key_id: None,
            kind: CallKind::Completion,
            model: model.to_owned(),
        };
        let messages = vec![ChatMessage::text(ChatRole::User, "one two three four")];
        self.state.chat.complete(context, ChatRequest { messages, ..ChatRequest::default() }).await
    }
}

/// All calls, oldest first.
async fn rows(ledger: &Client) -> Vec<Row> {
    let sql = "SELECT kind, configuration, model, upstream_model, state, error_code, input_tokens, output_tokens,
               usage_reported, message_id FROM model_calls ORDER BY id";
    let found = ledger.query(sql, &[]).await.unwrap();
    let row = |row: &tokio_postgres::Row| Row {
        kind: row.get(0),
        ai_key: row.get(1),
        model: row.get(2),
        upstream_model: row.get(3),
        state: row.get(4),
        error_code: row.get(5),
        tokens: (row.get(6), row.get(7), row.get(8)),
        message_id: row.get(9),
    };
    found.iter().map(row).collect()
}

/// All calls, once none is under way.
async fn settled(ledger: &Client) -> Vec<Row> {
    for _ in 0..300 {
        let rows = rows(ledger).await;
        if !rows.is_empty() && rows.iter().all(|row| row.state != "started") {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not settled in 6 s: {:?}", rows(ledger).await);
}

fn states(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.state.as_str()).collect()
}

/// The text of an answer and its usage.
async fn collect(mut stream: MeteredStream) -> Result<(String, Usage), CallError> {
    let mut text = String::new();
    while let Some(event) = stream.next().await {
        match event? {
            ChatEvent::Delta(delta) => text.push_str(&delta),
            ChatEvent::Finished { usage, .. } => {
                assert!(stream.next().await.is_none());
                return Ok((text, usage.expect("a usage")));
            }
            _ => {}
        }
    }
    panic!("the stream ended without an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_there_before_the_provider_is_asked() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("row-first").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let looked = async |calls: usize| {
        while fake_model().await.calls_with_key(&tenant.key).len() < calls {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rows(&ledger).await.pop().unwrap()
    };
    // In a conversation.
    let (answer, row) = tokio::join!(platform.chat_with(&tenant, "slow-500"), looked(1));
    let answer = answer.expect(StatusCode::OK);
    assert_eq!((row.state.as_str(), row.kind.as_str()), ("started", "chat"));
    // While it is under way the prompt is estimated.
    assert!(row.tokens.0.unwrap() > 0 && row.tokens.1.is_none());
    let row = rows(&ledger).await.pop().unwrap();
    let usage = &answer["usage"];
    assert_eq!(row.state, "succeeded");
    assert_eq!(row.tokens, (usage["input_tokens"].as_i64(), usage["output_tokens"].as_i64(), Some(true)));
    assert_eq!(row.message_id.unwrap().to_string(), answer["message_id"].as_str().unwrap());
    let user: Uuid = ledger.query_one("SELECT user_id FROM model_calls", &[]).await.unwrap().get(0);
    assert_eq!(user.to_string(), tenant.user_id);

    // For a program.
    let completion = async {
        let stream = platform.complete(&db, "slow-500").await.unwrap();
        let id = stream.call_id;
        (id, collect(stream).await.unwrap())
    };
    let ((id, (text, usage)), row) = tokio::join!(completion, looked(2));
    assert_eq!((row.state.as_str(), row.kind.as_str()), ("started", "completion"));
    assert_eq!(text.split_whitespace().count(), 27);
    // Settled before the end was told, and nothing is rounded.
    let sql =
        "SELECT state, input_tokens, output_tokens, usage_reported, first_token_ms, latency_ms, settled_at IS NULL,
               cost_micros FROM model_calls WHERE id = $1";
    let row = ledger.query_one(sql, &[&id]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get(1), row.get(2), row.get(3)), ("succeeded", 4i64, 27i64, true));
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.reported), (4, 27, true));
    let (first, latency): (i32, i32) = (row.get(4), row.get(5));
    assert!((500..=latency).contains(&first), "{first} {latency}");
    assert_eq!((row.get::<_, bool>(6), row.get::<_, Option<i64>>(7)), (false, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_report_tokens_are_estimated_and_marked() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("estimated").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let (text, usage) = collect(platform.complete(&db, "no-usage").await.unwrap()).await.unwrap();
    assert_eq!((usage.input_tokens, usage.reported), (4, false));
    assert_eq!(usage.output_tokens, u64::try_from(text.len() / 4).unwrap());
    let answer = platform.chat_with(&tenant, "no-usage").await.expect(StatusCode::OK);
    let rows = settled(&ledger).await;
    assert_eq!(rows[0].tokens, (Some(4), Some(i64::try_from(usage.output_tokens).unwrap()), Some(false)));
    let usage = &answer["usage"];
    assert_eq!(rows[1].tokens, (usage["input_tokens"].as_i64(), usage["output_tokens"].as_i64(), Some(false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_key_fails_the_next_one_answers_and_each_attempt_has_a_row() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("fallback").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    platform.put_model(&tenant, "second", "smart", "instant", json!({ "position": 2 })).await;
    platform.put_model(&tenant, "off", "smart", "hang", json!({ "position": 1, "enabled": false })).await;
    platform.put_model(&tenant, "main", "smart", "error-500", json!({})).await;
    let keys = platform.get("/api/v1/ai-keys", &tenant.admin.access).await.expect(StatusCode::OK);
    let order: Vec<_> = keys["items"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap()).collect();
    assert_eq!(order, ["main", "off", "second"]);

    let answer = platform.chat_with(&tenant, "smart").await.expect(StatusCode::OK);
    assert_eq!((&answer["model"], &answer["degraded"]), (&json!("smart"), &json!(false)));
    let first = settled(&ledger).await;
    let seen: Vec<_> =
        first.iter().map(|row| (row.ai_key.as_str(), row.state.as_str(), row.upstream_model.as_str())).collect();
    assert_eq!(seen, [("main", "failed", "error-500"), ("second", "succeeded", "instant")]);
    assert_eq!(first[0].error_code.as_deref(), Some("provider_unavailable"));
    assert_eq!(first[0].tokens, (None, None, None));
    assert!(first.iter().all(|row| row.model == "smart" && row.message_id == first[0].message_id));

    let stream = platform.complete(&db, "smart").await.unwrap();
    assert_eq!((&*stream.model, &*stream.upstream_model, &*stream.configuration), ("smart", "instant", "second"));
    collect(stream).await.unwrap();
    assert_eq!(states(&settled(&ledger).await)[2..], ["failed", "succeeded"]);

    // What is wrong with the request stays wrong, and what was delivered is not said again.
    platform.put_model(&tenant, "main", "smart", "error-400", json!({})).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let refused = platform.complete(&db, "smart").await.unwrap_err();
    assert!(
        matches!(&refused, ChatError::Call(CallError::Provider(error)) if error.code() == "provider_bad_request"),
        "{refused:?}"
    );
    platform.put_model(&tenant, "main", "smart", "cut", json!({})).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let cut = collect(platform.complete(&db, "smart").await.unwrap()).await.unwrap_err();
    assert_eq!(cut.code(), "provider_interrupted");
    let rows = settled(&ledger).await;
    assert_eq!(states(&rows)[4..], ["failed", "failed"]);
    assert_eq!(rows[5].tokens.2, Some(false), "what arrived was used: {:?}", rows[5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_down_the_tenants_own_message_stands_in() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("all-down").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let change = json!({ "degraded_message": "Call us: 555." });
    platform.configure(&tenant, change).await.expect(StatusCode::OK);
    let answer = platform.chat_with(&tenant, "error-500").await.expect(StatusCode::OK);
    assert_eq!((&answer["content"], &answer["degraded"]), (&json!("Call us: 555."), &json!(true)));
    let path = format!("/api/v1/sessions/{}/messages", answer["session_id"].as_str().unwrap());
    let messages = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
    let kept = &messages["items"][1];
    assert_eq!((&kept["state"], &kept["degraded"]), (&json!("complete"), &json!(true)));
    assert_eq!((&kept["content"], &kept["error_code"]), (&json!("Call us: 555."), &json!("provider_unavailable")));

    // The model is not told of it.
    let question = json!({ "message": "again", "model": "echo", "session_id": answer["session_id"] });
    platform.post("/api/v1/chat", &tenant.user.access, question).await.expect(StatusCode::OK);
    let told = fake_model().await.calls_with_key(&tenant.key).pop().unwrap().contents();
    assert!(!told.iter().any(|text| text.contains("555")), "{told:?}");

    // After some more in a row the key is left alone, and makes no more rows.
    let body = json!({ "message": "hello", "model": "error-500", "stream": true });
    let mut last = String::new();
    for _ in 0..8 {
        last = platform.post("/api/v1/chat", &tenant.user.access, body.clone()).await.text;
    }
    let events = events(&last);
    assert!(events[1].1.contains("Call us: 555.") && events[2].1.contains("\"degraded\":true"), "{last}");
    assert_eq!(settled(&ledger).await.len(), 7, "five failures in a row after a success");
    let down = platform.complete(&db, "error-500").await.unwrap_err();
    assert!(matches!(down, ChatError::Call(CallError::AllDown { .. })), "{down:?}");
    assert_eq!(rows(&ledger).await.len(), 7);
    // A trial after a while, which answers.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    platform.chat_with(&tenant, "echo").await.expect(StatusCode::OK);
    assert_eq!(states(&rows(&ledger).await)[7..], ["succeeded"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_ends_the_call_upstream_and_it_is_settled() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("leaver").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    platform.put_model(&tenant, "drip", "drip", "drip-50", json!({})).await;
    // After two words.
    let mut stream = platform.complete(&db, "drip").await.unwrap();
    let mut heard = 0;
    for _ in 0..2 {
        if let ChatEvent::Delta(text) = stream.next().await.unwrap().unwrap() {
            heard += text.len();
        }
    }
    drop(stream);
    let rows = settled(&ledger).await;
    assert_eq!((rows[0].state.as_str(), rows[0].error_code.as_deref()), ("cancelled", Some("caller_left")));
    assert_eq!(rows[0].tokens, (Some(4), Some(i64::try_from(heard / 4).unwrap()), Some(false)));
    // Before the first.
    let given_up = tokio::time::timeout(Duration::from_millis(300), platform.complete(&db, "hang")).await;
    assert!(given_up.is_err());
    assert_eq!(states(&settled(&ledger).await), ["cancelled", "cancelled"]);
    for _ in 0..100 {
        if fake_model().await.cancelled_with_key(&tenant.key) == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fake_model().await.cancelled_with_key(&tenant.key), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_servers_call_is_settled_by_another_once_and_the_owners_word_is_the_last() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("dead-server").await;
    let ledger = platform.ledger(&tenant).await;
    platform.put_model(&tenant, "main", "slow", "slow-9000", json!({})).await;
    // Another server on the same platform, whose calls and answers these are.
    let database = Some(platform.database.clone());
    let other = Platform::start_with(Options { database, ..Options::default() }).await;
    let usage = async || platform.get("/api/v1/usage", &tenant.admin.access).await.expect(StatusCode::OK);
    let meanwhile = async {
        while rows(&ledger).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let old = "UPDATE model_calls SET started_at = started_at - interval '40 seconds'";
        ledger.batch_execute(old).await.unwrap();
        // Its server runs, so it is left alone.
        tokio::time::sleep(Duration::from_millis(500)).await;
        platform.state.chat.settle_abandoned(&platform.tenant_db(&tenant).await).await.unwrap();
        assert_eq!(states(&rows(&ledger).await), ["started"]);
        // It is said to be of one that does not.
        ledger.execute("UPDATE model_calls SET server_id = $1", &[&Uuid::now_v7()]).await.unwrap();
        let fresh =
            Platform::start_with(Options { database: Some(platform.database.clone()), ..Options::default() }).await;
        let db = fresh.tenant_db(&tenant).await;
        drop(db.client().await.unwrap());
        assert_eq!(fresh.state.chat.settle_abandoned(&db).await.unwrap(), 1);
        let row = rows(&ledger).await.pop().unwrap();
        assert_eq!((row.state.as_str(), row.error_code.as_deref()), ("interrupted", Some("server_stopped")));
        assert_eq!((row.tokens.1, row.tokens.2), (Some(0), Some(false)));
        assert!(row.tokens.0.unwrap() > 0);
        let message = "SELECT state, error_code FROM chat_messages WHERE role = 'assistant'";
        let message = ledger.query_one(message, &[]).await.unwrap();
        assert_eq!((message.get::<_, &str>(0), message.get::<_, &str>(1)), ("failed", "server_stopped"));
        // Looking again finds nothing.
        let again =
            Platform::start_with(Options { database: Some(platform.database.clone()), ..Options::default() }).await;
        assert_eq!(again.state.chat.settle_abandoned(&again.tenant_db(&tenant).await).await.unwrap(), 0);
        let report = usage().await;
        assert_eq!((&report["total"]["interrupted"], &report["total"]["estimated"]), (&json!(1), &json!(1)));
    };
    let (answer, ()) = tokio::join!(other.chat_with(&tenant, "slow"), meanwhile);
    let answer = answer.expect(StatusCode::OK);
    let rows = rows(&ledger).await;
    assert_eq!(states(&rows), ["succeeded"]);
    assert_eq!(rows[0].tokens.1, answer["usage"]["output_tokens"].as_i64());
    let message = ledger.query_one("SELECT state FROM chat_messages WHERE role = 'assistant'", &[]).await.unwrap();
    assert_eq!(message.get::<_, &str>(0), "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_outlives_a_database_that_is_away() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("ledger-away").await;
    let db = platform.tenant_db(&tenant).await;
    platform.put_model(&tenant, "main", "slow", "slow-1500", json!({})).await;
    let url = platform.tenant_database(&tenant.slug).await;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let admin = server().await.url("postgres");
    let outage = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS false")).await;
        execute(&admin, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
            .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Nobody is called whose row cannot be written.
        let calls = fake_model().await.calls_with_key(&tenant.key).len();
        assert!(platform.complete(&db, "slow").await.is_err());
        assert_eq!(fake_model().await.calls_with_key(&tenant.key).len(), calls);
        execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS true")).await;
    };
    let completion = async { collect(platform.complete(&db, "slow").await.unwrap()).await.unwrap() };
    let ((_, usage), ()) = tokio::join!(completion, outage);
    let ledger = platform.ledger(&tenant).await;
    let rows = settled(&ledger).await;
    assert_eq!(states(&rows), ["succeeded"]);
    assert_eq!(rows[0].tokens, (Some(4), Some(i64::try_from(usage.output_tokens).unwrap()), Some(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_made_at_once_share_a_connection_and_each_has_its_row() {
    let options = Options { settings: &[("FREEHOLD_TENANT_POOL_SIZE", "1")], ..Options::default() };
    let platform = Platform::start_with(options).await;
    let tenant = platform.tenant("at-once").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let calls = (0..200).map(|_| async { collect(platform.complete(&db, "instant").await.unwrap()).await.unwrap() });
    futures::future::join_all(calls).await;
    let rows = rows(&ledger).await;
    assert_eq!(rows.len(), 200);
    assert!(
        rows.iter().all(|row| row.state == "succeeded" && row.tokens == (Some(4), Some(27), Some(true))),
        "{rows:?}"
    );
    // A commit begins or settles many of them.
    let sql = "SELECT count(DISTINCT xmin::text) FROM model_calls";
    let commits: i64 = ledger.query_one(sql, &[]).await.unwrap().get(0);
    assert!(commits < 190, "{commits} commits settled 200 calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_sums_up_and_is_the_admins_to_see() {
    let directory = tempfile::tempdir().unwrap();
    let prices = "currency = \"EUR\"\n[[prices]]\nmodel = \"instant\"\nvalid_from = \"2020-01-01\"\n\
                  input = 1_000_000_000\noutput = 2_000_000_000\n";
    std::fs::write(directory.path().join("prices.toml"), prices).unwrap();
    let settings = [("FREEHOLD_TEMPLATES_DIR", directory.path().to_str().unwrap())];
    let platform = Platform::start_with(Options { settings: &settings, ..Options::default() }).await;
    let tenant = platform.tenant("sums").await;
    let db = platform.tenant_db(&tenant).await;
    for _ in 0..2 {
        collect(platform.complete(&db, "instant").await.unwrap()).await.unwrap();
    }
    platform.chat_with(&tenant, "echo").await.expect(StatusCode::OK);
    let usage = async |query: &str| platform.get(&format!("/api/v1/usage{query}"), &tenant.admin.access).await;
    let report = usage("?group_by=model").await.expect(StatusCode::OK);
    let items = report["items"].as_array().unwrap();
    let keys: Vec<_> = items.iter().map(|item| item["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["echo", "instant"]);
    // Four tokens in and 27 out, at a thousandth and two of a euro each, twice.
    assert_eq!(items[1]["cost_micros"], json!({ "EUR": 2 * (4 * 1_000 + 27 * 2_000) }));
    assert_eq!((&items[1]["input_tokens"], &items[1]["output_tokens"]), (&json!(8), &json!(54)));
    assert_eq!((&items[0]["unpriced"], &items[0]["cost_micros"]), (&json!(1), &json!({})));
    let total = &report["total"];
    assert_eq!((&total["calls"], &total["succeeded"], &total["unpriced"]), (&json!(3), &json!(3), &json!(1)));
    for (group_by, expected) in [("kind", 2), ("user", 2), ("api_key", 1), ("day", 1)] {
        let report = usage(&format!("?group_by={group_by}")).await.expect(StatusCode::OK);
        assert_eq!(report["items"].as_array().unwrap().len(), expected, "{report}");
        assert_eq!(report["total"], *total);
    }
    let past = usage("?from=2020-01-01T00:00:00Z&to=2020-12-01T00:00:00Z").await.expect(StatusCode::OK);
    assert_eq!(past["total"]["calls"], 0);
    let refused = usage("?from=2020-01-01T00:00:00Z").await;
    assert_eq!(refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request");
    let as_user = platform.get("/api/v1/usage", &tenant.user.access).await;
    assert_eq!(as_user.expect_problem(StatusCode::FORBIDDEN), "forbidden");

    let page = platform.get("/api/v1/usage/calls?limit=2", &tenant.admin.access).await.expect(StatusCode::OK);
    let seen = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|call| call["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(seen(&page), ["chat", "completion"]);
    let path = format!("/api/v1/usage/calls?cursor={}", page["next_cursor"].as_str().unwrap());
    let page = platform.get(&path, &tenant.admin.access).await.expect(StatusCode::OK);
    assert_eq!(seen(&page), ["completion"]);
    let call = &page["items"][0];
    assert_eq!((&call["cost_micros"], &call["currency"]), (&json!(58_000), &json!("EUR")));
    assert_eq!(
        (&call["ai_key"], &call["billed_to"], &call["usage_reported"]),
        (&json!("main"), &json!("own"), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_ends_completions_and_settles_them() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("suspended-calls").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    platform.put_model(&tenant, "drip", "drip", "drip-200", json!({})).await;
    let stream = platform.complete(&db, "drip").await.unwrap();
    platform.state.chat.follow(tenant.id.to_string().parse().unwrap(), None);
    let ended = collect(stream).await.unwrap_err();
    assert!(matches!(ended, CallError::Closed("tenant_not_active")), "{ended:?}");
    let rows = settled(&ledger).await;
    assert_eq!((rows[0].state.as_str(), rows[0].error_code.as_deref()), ("interrupted", Some("tenant_not_active")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_nobody_uses_is_settled_by_the_periodic_task() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("unused").await;
    let ledger = platform.ledger(&tenant).await;
    let sql = "INSERT INTO model_calls (id, kind, server_id, provider, configuration, model, upstream_model, billed_to,
                   state, input_tokens, started_at)
               SELECT gen_random_uuid(), 'completion', gen_random_uuid(), 'openai_compatible', 'main', 'm', 'm', 'own',
                   'started', 7, now() - age FROM unnest('{10 seconds, 40 seconds}'::interval[]) age";
    ledger.batch_execute(sql).await.unwrap();
    // The platform's own server may have swept it before there was anything to find.
    platform.platform_client().await.execute("DELETE FROM tenant_uses", &[]).await.unwrap();
    let database = Some(platform.database.clone());
    let fresh = Platform::start_with(Options { database, ..Options::default() }).await;
    let task = freehold::scheduled::TASKS.iter().find(|task| task.name == "settle_abandoned_calls").unwrap();
    (task.run)(fresh.state.clone()).await.unwrap();
    let rows = rows(&ledger).await;
    let mut states = states(&rows);
    states.sort_unstable();
    assert_eq!(states, ["interrupted", "started"]);
    let settled = rows.iter().find(|row| row.state == "interrupted").unwrap();
    assert_eq!(settled.tokens, (Some(7), Some(0), Some(false)));
    assert!(!fresh.state.directory.knows_tenant(tenant.id.to_string().parse().unwrap()));
}

/// A call for embeddings of the model `vectors`, for nobody in particular.
fn of_vectors(db: TenantDb) -> CallContext {
    CallContext {
        db,
        user_id: None,
        api_key_id: None,
        kind: CallKind::Embedding,
        model: "vectors".to_owned(),
        permit: Permit::default(),
        room: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_have_rows_and_fall_back_too() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("embeds").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let fake = FakeProviders::start().await;
    // The first key's server has no embeddings at all.
    platform.put_model(&tenant, "main", "vectors", "instant", json!({})).await;
    let azure = json!({ "provider": "azure_openai", "base_url": fake.url(""), "api_key": KEY });
    platform.put_model(&tenant, "azure", "vectors", "deployed", azure).await;
    let context = of_vectors(db);
    let request =
        EmbeddingRequest { input: vec!["ab".to_owned(), "c".to_owned()], dimensions: Some(2), ..Default::default() };
    let made = platform.state.chat.embed(context, request).await.unwrap();
    assert_eq!((made.embeddings.vectors.len(), &*made.model), (2, "vectors"));
    let usage = made.embeddings.usage.unwrap();
    assert!(usage.reported);
    let rows = rows(&ledger).await;
    let seen: Vec<_> = rows.iter().map(|row| (row.kind.as_str(), row.ai_key.as_str(), row.state.as_str())).collect();
    assert_eq!(seen, [("embedding", "main", "failed"), ("embedding", "azure", "succeeded")]);
    assert_eq!(rows[1].tokens, (Some(i64::try_from(usage.input_tokens).unwrap()), Some(0), Some(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_texts_than_a_provider_takes_at_once_are_a_row_for_each_call() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("embeds-many").await;
    let (db, ledger) = (platform.tenant_db(&tenant).await, platform.ledger(&tenant).await);
    let fake = FakeProviders::start().await;
    // The first key's server has no embeddings at all; the second takes fifty at once.
    platform.put_model(&tenant, "main", "vectors", "instant", json!({})).await;
    let vertex = json!({ "provider": "vertex", "base_url": fake.url("/v1/projects/acme/locations/europe-west4"),
                         "api_key": fake.service_account(3600) });
    platform.put_model(&tenant, "vertex", "vectors", "text-embedding-005", vertex).await;
    let input: Vec<String> = (0..130).map(|n| "x".repeat(n % 7 + 1)).collect();
    let expected: Vec<_> = input.iter().map(String::len).collect();
    let context = of_vectors(db);
    let request = EmbeddingRequest { input, ..EmbeddingRequest::default() };
    let made = platform.state.chat.embed(context, request).await.unwrap();
    let lengths: Vec<_> = made.embeddings.vectors.iter().map(|vector| vector[0] as usize).collect();
    assert_eq!(lengths, expected);
    // Two tokens a text.
    assert_eq!(made.embeddings.usage.map(|usage| (usage.input_tokens, usage.reported)), Some((260, true)));
    let rows = rows(&ledger).await;
    let mut seen: Vec<_> = rows.iter().map(|row| (row.ai_key.as_str(), row.state.as_str(), row.tokens.0)).collect();
    seen.sort_unstable();
    let vertex = |tokens| ("vertex", "succeeded", Some(tokens));
    assert_eq!(seen, [("main", "failed", None), vertex(60), vertex(100), vertex(100)]);
}
