//! Answers that are given again: to whom, for how long, and what makes them be forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{self, Answer, Options, Platform, Tenant, connect, events, fake_model};
use crate::limits::redis;

/// What the fake model says.
const SAID: &str = "A freehold is held by its owner alone";

async fn put_key(platform: &Platform, tenant: &Tenant) {
    platform.offer(tenant, &["instant", "echo", "cut", "length", "exhausted", "error-500", "no-usage"]).await;
}

/// A tenant whose answers are kept for five minutes.
async fn keeping(platform: &Platform, slug: &str, scope: &str) -> Tenant {
    let tenant = platform.tenant(slug).await;
    put_key(platform, &tenant).await;
    platform
        .configure(&tenant, json!({ "answer_cache": { "enabled": true, "scope": scope, "minutes": 5 } }))
        .await
        .expect(StatusCode::OK);
    tenant
}

async fn send(platform: &Platform, token: &str, body: Value) -> Answer {
    platform.post("/api/v1/chat", token, body).await
}

/// Asks, and says whether the answer was one that was kept.
#[track_caller]
fn is_kept(answer: Answer) -> bool {
    answer.expect(StatusCode::OK)["from_cache"].as_bool().unwrap()
}

async fn kept(platform: &Platform, tenant: &Tenant, body: Value) -> bool {
    is_kept(send(platform, &tenant.user.access, body).await)
}

async fn calls(tenant: &Tenant) -> usize {
    fake_model().await.calls_with_key(&tenant.key).len()
}

fn hello() -> Value {
    json!({ "message": "hello" })
}

/// The stream's frames behind the first, which names the conversation, up to the last piece of text.
fn pieces(text: &str) -> Vec<String> {
    events(text)
        .into_iter()
        .filter(|(name, data)| name == "message" && data != "[DONE]")
        .map(|(_, data)| data)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_given_again_and_reads_the_same_for_ever() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "given-again", "user").await;
    platform.set_limits("given-again", json!({ "requests_per_month": 100, "requests_per_minute": "unlimited" })).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let token = &tenant.user.access;
    let first = send(&platform, token, hello()).await.expect(StatusCode::OK);
    assert_eq!((&first["from_cache"], &first["queries_remaining"]), (&json!(false), &json!(99)));
    let second = send(&platform, token, hello()).await.expect(StatusCode::OK);
    assert_eq!((&second["from_cache"], &second["content"]), (&json!(true), &first["content"]));
    assert_eq!((&second["model"], &second["queries_remaining"]), (&first["model"], &json!(98)), "it is a query");
    assert_eq!(second["usage"], json!({ "input_tokens": 0, "output_tokens": 0, "reported": true }));
    assert_ne!(second["message_id"], first["message_id"]);
    assert_ne!(second["session_id"], first["session_id"]);
    // As a stream, in the pieces in which the first was told; and again from what is stored.
    let told = async |id: &Value| {
        let path = format!("/api/v1/chat/{}/events", id.as_str().unwrap());
        platform.get(&path, token).await.text.replace(": heartbeat\n\n", "")
    };
    let streamed = send(&platform, token, json!({ "message": "hello", "stream": true })).await;
    let streamed = streamed.text.replace(": heartbeat\n\n", "");
    let pieces_of_first = pieces(&told(&first["message_id"]).await);
    assert!(pieces_of_first.len() > 20, "{pieces_of_first:?}");
    assert_eq!(pieces(&streamed), pieces_of_first);
    let events = events(&streamed);
    let done: Value = serde_json::from_str(&events.iter().find(|(name, _)| name == "done").unwrap().1).unwrap();
    assert_eq!((&done["from_cache"], &done["queries_remaining"]), (&json!(true), &json!(97)), "{done}");
    assert_eq!((events[0].0.as_str(), events.last().unwrap().1.as_str()), ("started", "[DONE]"));
    assert_eq!(told(&done["message_id"]).await, streamed);
    assert_eq!(calls(&tenant).await, 1);
    // It is a message like any other.
    let path = format!("/api/v1/sessions/{}/messages", second["session_id"].as_str().unwrap());
    let page = platform.get(&path, token).await.expect(StatusCode::OK);
    let [question, answer] = page["items"].as_array().unwrap().as_slice() else { panic!("{page}") };
    assert_eq!((&question["content"], &question["from_cache"]), (&json!("hello"), &json!(false)));
    assert_eq!((&answer["content"], &answer["from_cache"]), (&first["content"], &json!(true)));
    assert_eq!((&answer["state"], &answer["id"]), (&json!("complete"), &second["message_id"]));
    // The ledger says that nobody was asked.
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "SELECT cached, state, input_tokens, output_tokens, cost_micros, message_id::text, upstream_model
               FROM model_calls ORDER BY id";
    let rows = database.query(sql, &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, bool>(0)).collect::<Vec<_>>(), [false, true, true]);
    let row = &rows[1];
    assert_eq!(row.get::<_, &str>(1), "succeeded");
    let numbers = (row.get::<_, Option<i64>>(2), row.get::<_, Option<i64>>(3), row.get::<_, Option<i64>>(4));
    assert_eq!(numbers, (Some(0), Some(0), Some(0)));
    assert_eq!((row.get::<_, &str>(5), row.get::<_, &str>(6)), (second["message_id"].as_str().unwrap(), "instant"));
    // A conversation that begins with one goes on.
    let more = json!({ "message": "more", "session_id": second["session_id"] });
    assert!(!kept(&platform, &tenant, more).await);
    assert_eq!(fake_model().await.calls_with_key(&tenant.key).last().unwrap().contents().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_shapes_an_answer_makes_another_question_of_it() {
    let clock = harness::manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    // Tokens last longer than the time that goes by.
    let settings = &[("FREEHOLD_ACCESS_TOKEN_MINUTES", "60")];
    let platform = Platform::start_with(Options { settings, clock: Some(shared), ..Options::default() }).await;
    let tenant = keeping(&platform, "shapes", "user").await;
    let ask = async |body: Value| kept(&platform, &tenant, body).await;
    // Asked anew after a change, and kept from then on.
    let changed = async |what: &str| {
        assert!(!ask(hello()).await, "{what}");
        assert!(ask(hello()).await, "{what}: it is not kept");
    };
    changed("the first").await;
    for (what, change) in [
        ("prompt", json!({ "system_prompt": "You are brief." })),
        ("temperature", json!({ "temperature": 0.5 })),
        ("most tokens", json!({ "max_tokens": 100 })),
        ("a text", json!({ "welcome_message": "Good day" })),
        ("a switch", json!({ "features": { "files": true } })),
        ("back again", json!({ "system_prompt": "" })),
        ("how long", json!({ "answer_cache": { "enabled": true, "scope": "user", "minutes": 10 } })),
    ] {
        platform.configure(&tenant, change).await.expect(StatusCode::OK);
        changed(what).await;
    }
    put_key(&platform, &tenant).await;
    changed("the same AI key, set again").await;
    let second = json!({
        "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
        "models": ["instant"], "default_model": "instant"
    });
    platform.send(Method::PUT, "/api/v1/ai-keys/more", &tenant.admin.access, Some(second)).await.expect_success();
    changed("one more AI key").await;
    // Other words, another model, a conversation in which something was said before.
    assert!(!ask(json!({ "message": "Hello" })).await);
    assert!(!ask(json!({ "message": "hello", "model": "echo" })).await);
    assert!(ask(json!({ "message": "hello", "model": "instant" })).await, "the default by its name is the same");
    let begun = send(&platform, &tenant.user.access, json!({ "message": "one" })).await.expect(StatusCode::OK);
    let go_on = |begun: &Value| json!({ "message": "hello", "session_id": begun["session_id"] });
    assert!(!ask(go_on(&begun)).await, "it has a history");
    assert!(!ask(go_on(&begun)).await, "it has another one by now");
    // The same said before is the same history.
    let again = send(&platform, &tenant.user.access, json!({ "message": "one" })).await.expect(StatusCode::OK);
    assert!(again["from_cache"].as_bool().unwrap() && ask(go_on(&again)).await);
    // Its time is over.
    clock.advance(TimeDelta::minutes(9));
    assert!(ask(hello()).await);
    clock.advance(TimeDelta::minutes(2));
    changed("after eleven minutes").await;
    // Assistants have answers of their own, each for its own time.
    let assistants = json!({
        "assistants": [
            { "name": "orders", "title": "Orders", "prompt": "You know parcels." },
            { "name": "billing", "title": "Invoices", "prompt": "You know parcels." }
        ],
        "answer_cache": { "enabled": true, "minutes": 10, "minutes_by_assistant": { "orders": 5 } }
    });
    platform.configure(&tenant, assistants).await.expect(StatusCode::OK);
    let to = |assistant: &str| json!({ "message": "hello", "assistant": assistant });
    for assistant in ["orders", "billing"] {
        assert!(!ask(to(assistant)).await && ask(to(assistant)).await, "{assistant}");
    }
    let query = json!({ "question": "hello", "query_type": "billing" });
    let queried = platform.post("/api/ai/query", &tenant.user.access, query).await.expect(StatusCode::OK);
    assert_eq!((&queried["from_cache"], &queried["assistant"]), (&json!(true), &json!("billing")), "{queried}");
    let path = format!("/api/v1/sessions/{}/messages", queried["session_id"].as_str().unwrap());
    let page = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!((&page["items"][1]["assistant"], &page["items"][1]["from_cache"]), (&json!("billing"), &json!(true)));
    clock.advance(TimeDelta::minutes(6));
    assert!(ask(to("billing")).await && !ask(to("orders")).await);
    // Switched off, nothing is given again.
    platform.configure(&tenant, json!({ "answer_cache": { "enabled": false } })).await.expect(StatusCode::OK);
    assert!(!ask(hello()).await && !ask(hello()).await);
    for (settings, field) in [
        (json!({ "enabled": true, "minutes": 4 }), "answer_cache.minutes"),
        (json!({ "enabled": true, "minutes": 61 }), "answer_cache.minutes"),
        (json!({ "minutes_by_assistant": { "nobody": 5 } }), "answer_cache.minutes_by_assistant"),
    ] {
        let refused = platform.configure(&tenant, json!({ "answer_cache": settings })).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
        assert_eq!(refused.body["errors"][0]["field"], field, "{}", refused.text);
    }
    for settings in [json!({ "hours": 1 }), json!({ "scope": "everybody" })] {
        let refused = platform.configure(&tenant, json!({ "answer_cache": settings })).await;
        assert!(refused.status.is_client_error(), "{}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_its_users_own_unless_the_settings_say_otherwise_and_never_another_tenants() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "own-answers", "user").await;
    let other = keeping(&platform, "other-answers", "public").await;
    let (user, admin) = (&tenant.user.access, &tenant.admin.access);
    let ask = async |token: &str| is_kept(send(&platform, token, hello()).await);
    assert!(!ask(user).await && ask(user).await);
    assert!(!ask(admin).await && ask(admin).await, "somebody else's");
    let public = json!({ "answer_cache": { "enabled": true, "scope": "public", "minutes": 5 } });
    platform.configure(&tenant, public).await.expect(StatusCode::OK);
    assert!(!ask(user).await && ask(admin).await && ask(user).await);
    assert!(!ask(&other.user.access).await && ask(&other.admin.access).await);
    assert_eq!((calls(&tenant).await, calls(&other).await), (3, 1));
    // Programs are never answered so.
    let made = platform.post("/api/v1/api-keys", admin, json!({ "name": "program" })).await;
    let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
    let call = json!({ "model": "instant", "messages": [{ "role": "user", "content": "hello" }] });
    for _ in 0..2 {
        platform.post("/v1/chat/completions", &key, call.clone()).await.expect(StatusCode::OK);
    }
    assert_eq!(calls(&tenant).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_whole_is_not_kept() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "not-whole", "user").await;
    for model in ["cut", "cut", "error-500", "error-500"] {
        let answer = send(&platform, &tenant.user.access, json!({ "message": "hello", "model": model })).await;
        match model {
            "cut" => assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text),
            _ => {
                let answer = answer.expect(StatusCode::OK);
                assert_eq!((&answer["degraded"], &answer["from_cache"]), (&json!(true), &json!(false)), "{answer}");
            }
        }
    }
    // Whoever asks for a longer one, or hopes for more luck, is not given half a sentence again.
    for model in ["length", "length", "exhausted", "exhausted"] {
        assert!(!kept(&platform, &tenant, json!({ "message": "hello", "model": model })).await, "{model}");
    }
    // An answer whose tokens the provider did not count is as good as any.
    let uncounted = json!({ "message": "hello", "model": "no-usage" });
    assert!(!kept(&platform, &tenant, uncounted.clone()).await && kept(&platform, &tenant, uncounted).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_masked_is_kept_masked() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "kept-masked", "user").await;
    let question = json!({ "message": "write to ada@mail.example please", "model": "echo" });
    let asked = async || send(&platform, &tenant.user.access, question.clone()).await.expect(StatusCode::OK);
    assert!(asked().await["content"].as_str().unwrap().contains("ada@mail.example"));
    platform.configure(&tenant, json!({ "content_filter": { "email_addresses": true } })).await.expect(StatusCode::OK);
    let (first, second) = (asked().await, asked().await);
    assert_eq!((&first["from_cache"], &second["from_cache"]), (&json!(false), &json!(true)));
    assert_eq!((&second["content"], second["content"].as_str().unwrap().contains("ada@")), (&first["content"], false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_of_a_tenant_that_was_suspended() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "was-suspended", "user").await;
    let other = keeping(&platform, "was-not", "user").await;
    for tenant in [&tenant, &other] {
        assert!(!kept(&platform, tenant, hello()).await && kept(&platform, tenant, hello()).await);
    }
    for what in ["suspend", "resume"] {
        let path = format!("/platform/v1/tenants/{}/{what}", tenant.slug);
        let body = if what == "suspend" { json!({ "reason": "unpaid" }) } else { json!({}) };
        let asked = platform.post(&path, &platform.token, body).await.expect(StatusCode::ACCEPTED);
        assert_eq!(platform.settled(&asked["operation"]).await["state"], "succeeded");
        if what == "suspend" {
            let refused = send(&platform, &tenant.user.access, hello()).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text);
        }
    }
    let again = async || send(&platform, &tenant.user.access, hello()).await;
    let mut answer = again().await;
    for _ in 0..50 {
        if answer.status == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = again().await;
    }
    assert!(!is_kept(answer));
    assert!(kept(&platform, &other, hello()).await);
}

/// Every answer that Redis keeps: its name, its value, and for how many milliseconds.
async fn in_redis(url: &str) -> Vec<(String, Vec<u8>, i64)> {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let names: Vec<String> = redis::cmd("KEYS").arg("freehold:answer:*").query_async(&mut connection).await.unwrap();
    let mut found = Vec::new();
    for name in names {
        let value: Vec<u8> = redis::cmd("GET").arg(&name).query_async(&mut connection).await.unwrap();
        let lasts: i64 = redis::cmd("PTTL").arg(&name).query_async(&mut connection).await.unwrap();
        found.push((name, value, lasts));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_answers_through_redis_which_cannot_read_them() {
    let Some(store) = redis().await else { return };
    let settings = [("REDIS_URL", store.url.as_str())];
    let first = Platform::start_with(Options { settings: &settings, ..Options::default() }).await;
    let tenant = keeping(&first, "shared-answers", "user").await;
    let server = async || {
        let database = Some(first.database.clone());
        Platform::start_with(Options { settings: &settings, database, ..Options::default() }).await
    };
    let second = server().await;
    assert!(!kept(&first, &tenant, json!({ "message": "the canary question" })).await);
    let mut found = in_redis(&store.url).await;
    for _ in 0..100 {
        if !found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        found = in_redis(&store.url).await;
    }
    let [(name, value, lasts)] = found.as_slice() else { panic!("{} answers", found.len()) };
    assert!((1..=300_000).contains(lasts), "{lasts}");
    for secret in [SAID, "freehold is held", "canary", tenant.slug.as_str()] {
        let here = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!here(value) && !here(name.as_bytes()), "{secret}");
    }
    // Another server gives it, in the same pieces.
    let answer = send(&second, &tenant.user.access, json!({ "message": "the canary question" })).await;
    let answer = answer.expect(StatusCode::OK);
    assert!(answer["from_cache"].as_bool().unwrap() && answer["content"].as_str().unwrap().starts_with(SAID));
    assert_eq!(calls(&tenant).await, 1);
    // Changed in any byte, it is none.
    let client = redis::Client::open(store.url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut changed = value.clone();
    *changed.last_mut().unwrap() ^= 1;
    let () = redis::cmd("SET").arg(name).arg(&changed).query_async(&mut connection).await.unwrap();
    let third = server().await;
    assert!(!kept(&third, &tenant, json!({ "message": "the canary question" })).await);
    assert_eq!(calls(&tenant).await, 2);
    // Away, it costs nobody more than a moment, and what is in memory is there.
    drop(store);
    for server in [&first, &second, &third] {
        assert!(kept(server, &tenant, json!({ "message": "the canary question" })).await);
        // The quickest, for others may keep the machine busy.
        let mut quickest = Duration::MAX;
        for number in 0..3 {
            let began = Instant::now();
            assert!(!kept(server, &tenant, json!({ "message": format!("away {number}"), "model": "echo" })).await);
            quickest = quickest.min(began.elapsed());
        }
        assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_clicks_at_once_are_one_answer_from_the_cache_too() {
    let platform = Arc::new(Platform::start().await);
    let tenant = keeping(&platform, "clicked-again", "user").await;
    assert!(!kept(&platform, &tenant, hello()).await);
    let clicks = (0..3).map(|_| send(&platform, &tenant.user.access, hello()));
    for answer in futures::future::join_all(clicks).await {
        let answer = answer.expect(StatusCode::OK);
        assert!(answer["from_cache"].as_bool().unwrap() && answer["content"].as_str().unwrap().starts_with(SAID));
    }
    assert_eq!(calls(&tenant).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_out_of_the_limits_redis_where_that_is_said() {
    let Some(store) = redis().await else { return };
    let bytes = ("FREEHOLD_ANSWER_CACHE_BYTES", "0");
    for (own, is_kept) in [(("FREEHOLD_ANSWER_CACHE_REDIS_URL", "off"), true), (bytes, false)] {
        let settings = [("REDIS_URL", store.url.as_str()), own];
        let platform = Platform::start_with(Options { settings: &settings, ..Options::default() }).await;
        let tenant = keeping(&platform, "kept-apart", "user").await;
        assert!(!kept(&platform, &tenant, hello()).await);
        assert_eq!(kept(&platform, &tenant, hello()).await, is_kept, "{own:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(in_redis(&store.url).await.is_empty(), "{own:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_a_new_answer_gets_one_and_it_is_kept_from_then_on() {
    let platform = Platform::start().await;
    let tenant = keeping(&platform, "new-answer", "user").await;
    let new = || json!({ "message": "hello", "cache": false });
    assert!(!kept(&platform, &tenant, new()).await);
    assert!(kept(&platform, &tenant, hello()).await);
    assert!(!kept(&platform, &tenant, new()).await);
    assert!(kept(&platform, &tenant, json!({ "message": "hello", "cache": true })).await);
    assert_eq!(calls(&tenant).await, 2);
    let query = json!({ "question": "hello", "cache": false });
    let queried = platform.post("/api/ai/query", &tenant.user.access, query).await.expect(StatusCode::OK);
    assert_eq!((&queried["from_cache"], calls(&tenant).await), (&json!(false), 3));
}
