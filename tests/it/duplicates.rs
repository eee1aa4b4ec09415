//! The same question asked again while it is being answered: one answer, told to everybody who asked.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{self, Options, Platform, Tenant, connect, events, fake_model};
use crate::proxy::{Line, Proxy};

/// A second server on the same database.
async fn second(first: &Platform) -> Platform {
    Platform::start_with(Options { database: Some(first.database.clone()), ..Options::default() }).await
}

async fn with_model(platform: &Platform, slug: &str, models: &[&str]) -> Tenant {
    let tenant = platform.tenant(slug).await;
    platform.offer(&tenant, models).await;
    tenant
}

/// An answer as somebody was told it, in whichever form.
#[derive(Debug)]
struct Told {
    stream: bool,
    status: StatusCode,
    /// The stream without its heartbeats, or the JSON.
    text: String,
    message_id: String,
    session_id: String,
    content: String,
    queries_remaining: Value,
}

async fn ask(platform: &Platform, token: &str, mut body: Value, stream: bool) -> Told {
    body["stream"] = json!(stream);
    let answer = platform.post("/api/v1/chat", token, body).await;
    let text = answer.text.replace(": heartbeat\n\n", "");
    let (last, content) = if stream {
        let events = events(&text);
        let parsed = |data: &str| serde_json::from_str::<Value>(data).unwrap_or_default();
        let deltas = events.iter().filter(|(name, _)| name == "message").map(|(_, data)| parsed(data));
        let content = deltas.filter_map(|delta| delta["content"].as_str().map(str::to_owned)).collect();
        let last = events.iter().find(|(name, _)| name == "done" || name == "error");
        (last.map(|(_, data)| parsed(data)).unwrap_or_default(), content)
    } else {
        (answer.body.clone(), answer.body["content"].as_str().unwrap_or_default().to_owned())
    };
    let id = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
    Told {
        stream,
        status: answer.status,
        message_id: id("message_id"),
        session_id: id("session_id"),
        queries_remaining: last["queries_remaining"].clone(),
        content,
        text,
    }
}

#[track_caller]
fn assert_equal(told: &[Told]) {
    let first = &told[0];
    assert!(!first.message_id.is_empty() && !first.content.is_empty(), "{first:?}");
    for other in told {
        assert_eq!(other.status, StatusCode::OK, "{other:?}");
        assert_eq!((&other.message_id, &other.session_id), (&first.message_id, &first.session_id));
        assert_eq!((&other.content, &other.queries_remaining), (&first.content, &first.queries_remaining));
        let of_its_form = told.iter().find(|told| told.stream == other.stream).unwrap();
        assert_eq!(other.text, of_its_form.text);
    }
}

fn distinct(told: &[Told]) -> usize {
    told.iter().map(|told| &told.message_id).collect::<BTreeSet<_>>().len()
}

/// Asks, and returns the answer's id as soon as it has begun, with its stream.
async fn begin(platform: &Platform, token: &str, message: &str) -> (String, reqwest::Response) {
    let url = format!("{}/api/v1/chat", platform.url);
    let body = json!({ "message": message, "stream": true });
    let mut response = platform.client.post(url).bearer_auth(token).json(&body).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("message_id") {
        text.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().unwrap()));
    }
    let (_, data) = events(&text).remove(0);
    let id = serde_json::from_str::<Value>(&data).unwrap()["message_id"].as_str().unwrap().to_owned();
    (id, response)
}

async fn count(database: &tokio_postgres::Client, of: &str) -> i64 {
    database.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_clicks_at_once_are_one_answer() {
    let platform = Platform::start().await;
    let tenant = with_model(&platform, "three-clicks", &["slow-1500"]).await;
    platform
        .set_limits("three-clicks", json!({ "requests_per_minute": "unlimited", "requests_per_month": 1000 }))
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rounds: usize = 20;
    let clicks = (0..rounds).map(|round| {
        let (platform, token) = (&platform, &tenant.user.access);
        async move {
            let click = |number: usize| {
                let question = json!({ "message": format!("question {round}") });
                ask(platform, token, question, (round + number).is_multiple_of(2))
            };
            join_all((0..3).map(click)).await
        }
    });
    let mut sessions = BTreeSet::new();
    for told in join_all(clicks).await {
        assert_equal(&told);
        sessions.insert(told[0].session_id.clone());
    }
    assert_eq!((sessions.len(), fake_model().await.calls_with_key(&tenant.key).len()), (rounds, rounds));
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let rounds = i64::try_from(rounds).unwrap();
    assert_eq!(count(&database, "chat_sessions").await, rounds);
    assert_eq!(count(&database, "chat_messages").await, 2 * rounds);
    assert_eq!(count(&database, "model_calls").await, rounds);
    assert_eq!(count(&database, "chat_messages WHERE in_flight_key IS NOT NULL").await, 0);
    // Each was one of the month's.
    let mut used = Value::Null;
    for _ in 0..5 {
        let quota = platform.get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
        used = quota["requests_this_month"]["used"].clone();
        if used == rounds {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    assert_eq!(used, rounds);
    // The same words when the answer is there are another question.
    let again = ask(&platform, &tenant.user.access, json!({ "message": "question 0" }), false).await;
    assert!(!sessions.contains(&again.session_id), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clicks_at_two_servers_are_one_answer() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "two-servers", &["drip-40"]).await;
    let second = second(&first).await;
    let token = &tenant.user.access;
    let clicked = async |question: Value| {
        let servers = [&first, &second, &first, &second];
        let clicks =
            servers.iter().enumerate().map(|(number, server)| ask(server, token, question.clone(), number < 2));
        let told = join_all(clicks).await;
        assert_equal(&told);
        told
    };
    for round in 0..4 {
        let begun = clicked(json!({ "message": format!("question {round}") })).await;
        let question = json!({ "message": format!("more of {round}"), "session_id": begun[0].session_id });
        let continued = clicked(question).await;
        assert_eq!(continued[0].session_id, begun[0].session_id);
        assert_ne!(continued[0].message_id, begun[0].message_id);
    }
    assert_eq!(fake_model().await.calls_with_key(&tenant.key).len(), 8);
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    assert_eq!(count(&database, "chat_sessions").await, 4, "none is left empty");
    assert_eq!(count(&database, "chat_messages").await, 16);
    assert_eq!(count(&database, "model_calls").await, 8);
    assert_eq!(count(&database, "chat_messages WHERE in_flight_key IS NOT NULL").await, 0);
    // A failure is the same failure.
    let key = |models: Value| {
        json!({
            "provider": "openai_compatible", "base_url": "http://127.0.0.1:9/v1", "api_key": tenant.key, "models": models,
            "default_model": "cut"
        })
    };
    let mut body = key(json!(["cut"]));
    body["base_url"] = json!(fake_model().await.base_url());
    first.send(Method::PUT, "/api/v1/ai-keys/main", &tenant.admin.access, Some(body)).await.expect_success();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let question = || json!({ "message": "cut", "model": "cut" });
    let told = join_all([&first, &second].map(|server| ask(server, token, question(), false))).await;
    for told in &told {
        assert_eq!(told.status, StatusCode::BAD_GATEWAY, "{told:?}");
        assert!(told.text.contains("provider_interrupted"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_in_anything_is_not_joined() {
    let platform = Platform::start().await;
    let tenant = with_model(&platform, "differs", &["slow-400", "slow-401"]).await;
    let other = with_model(&platform, "differs-too", &["slow-400", "slow-401"]).await;
    let (user, admin) = (&tenant.user.access, &tenant.admin.access);
    let assistants = json!({ "assistants": [{ "name": "orders", "title": "Orders", "prompt": "You know parcels." }] });
    platform.configure(&tenant, assistants).await.expect(StatusCode::OK);
    let begun = ask(&platform, user, json!({ "message": "first" }), false).await;
    let session = &begun.session_id;
    let hello = || json!({ "message": "hello" });
    let asked = [
        (user, hello()),
        (user, json!({ "message": "hello " })),
        (user, json!({ "message": "hello", "model": "slow-400" })),
        (user, json!({ "message": "hello", "model": "slow-401" })),
        (user, json!({ "message": "hello", "session_id": session })),
        (user, json!({ "message": "hello", "assistant": "orders" })),
        (admin, hello()),
        (&other.user.access, hello()),
        (&other.admin.access, hello()),
    ];
    let told = join_all(asked.iter().map(|(token, body)| ask(&platform, token, body.clone(), false))).await;
    assert!(told.iter().all(|told| told.status == StatusCode::OK), "{told:?}");
    assert_eq!(distinct(&told), asked.len());
    // Programs that ask the same twice may want two answers.
    let made = platform.post("/api/v1/api-keys", admin, json!({ "name": "program" })).await;
    let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
    let before = fake_model().await.calls_with_key(&tenant.key).len();
    let call = json!({ "model": "slow-400", "messages": [{ "role": "user", "content": "hello" }] });
    let calls = join_all((0..3).map(|_| platform.post("/v1/chat/completions", &key, call.clone()))).await;
    assert!(calls.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(fake_model().await.calls_with_key(&tenant.key).len() - before, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_answer_is_joined_by_nobody() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "stopped-then-asked", &["hang"]).await;
    let second = second(&first).await;
    let token = tenant.user.access.clone();
    let begin = async |platform: &Platform| begin(platform, &token, "hello").await;
    // Joined as long as it goes on, at either server; and no more from the moment it is stopped, at its own or at the other.
    let mut known = BTreeSet::new();
    let rounds =
        [(&first, &first, &first), (&first, &first, &second), (&first, &second, &first), (&first, &second, &second)];
    for (asked, stopped_at, next_at) in rounds {
        let (id, _listening) = begin(asked).await;
        assert!(known.insert(id.clone()), "it was stopped");
        for platform in [&first, &second] {
            assert_eq!(begin(platform).await.0, id);
        }
        let path = format!("/api/v1/chat/{id}/stop");
        let stopped = stopped_at.send(Method::POST, &path, &token, None).await;
        assert_eq!(stopped.status, StatusCode::NO_CONTENT);
        let (next, _listening) = begin(next_at).await;
        assert_ne!(next, id);
        known.insert(next.clone());
        let path = format!("/api/v1/chat/{next}/stop");
        assert_eq!(next_at.send(Method::POST, &path, &token, None).await.status, StatusCode::NO_CONTENT);
        // Until both are on record.
        let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
        for _ in 0..100 {
            if count(&database, "chat_messages WHERE state = 'generating'").await == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_servers_answer_ends_for_whoever_joined_it_and_the_next_question_is_new() {
    let clock = harness::manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let survivor = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = with_model(&survivor, "joined-and-died", &["hang", "instant"]).await;
    // On a runtime of its own, which ends in the middle of everything.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let database = survivor.database.clone();
    let doomed = runtime.spawn(async move {
        let platform = Platform::start_with(Options { database: Some(database), ..Options::default() }).await;
        let url = platform.url.clone();
        std::mem::forget(platform);
        url
    });
    let url = doomed.await.unwrap();
    let question = json!({ "message": "hello", "stream": true });
    let request = reqwest::Client::new().post(format!("{url}/api/v1/chat")).bearer_auth(&tenant.user.access);
    let mut stream = request.json(&question).send().await.unwrap();
    let mut begun = String::new();
    while !begun.contains("message_id") {
        begun.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    drop(stream);
    runtime.shutdown_background();
    // Nobody knows yet that it has died.
    let joined = ask(&survivor, &tenant.user.access, json!({ "message": "hello" }), true);
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        clock.advance(chrono::TimeDelta::minutes(1));
    };
    let (joined, ()) = tokio::join!(joined, later);
    assert!(begun.contains(&joined.message_id) && !joined.message_id.is_empty(), "{joined:?}");
    assert!(joined.text.contains("server_stopped") && !joined.text.contains("[DONE]"), "{joined:?}");
    let next = ask(&survivor, &tenant.user.access, json!({ "message": "hello", "model": "instant" }), false).await;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    let url = format!("{}/api/v1/chat", survivor.url);
    let fresh = survivor.client.post(url).bearer_auth(&tenant.user.access).json(&question).send();
    let mut fresh = fresh.await.unwrap();
    let mut text = String::new();
    while !text.contains("message_id") {
        text.push_str(&String::from_utf8_lossy(&fresh.chunk().await.unwrap().unwrap()));
    }
    assert!(!text.contains(&joined.message_id), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_of_which_nobody_knows_whether_it_is_stored_is_in_no_retrys_way() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "lost-reply", &["instant"]).await;
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    let (proxy, url) = Proxy::to(&first.database_url(&tenant).await).await;
    first.set_database_url(&tenant, &url, None, true).await;
    let second = second(&first).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let token = &tenant.user.access;
    let question = || json!({ "message": "the lost question" });
    let answering = "chat_messages WHERE role = 'assistant'";
    for (round, again_at) in [&second, &first].into_iter().enumerate() {
        proxy.set(Line::Loses("the lost question"));
        let lost = ask(&first, token, question(), false).await;
        assert_eq!(lost.status, StatusCode::SERVICE_UNAVAILABLE, "{lost:?}");
        proxy.set(Line::Open);
        let stored = i64::try_from(2 * round + 1).unwrap();
        assert_eq!(count(&database, answering).await, stored, "it was stored all the same");
        if round == 0 {
            // Until the first server has heard that it can store again.
            for _ in 0..200 {
                if count(&database, "chat_messages WHERE error_code = 'not_started' AND state = 'failed'").await == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let again = tokio::time::timeout(Duration::from_secs(10), ask(again_at, token, question(), round == 1)).await;
        let again = again.expect("an answer that nobody makes was joined");
        assert_eq!(again.status, StatusCode::OK, "{again:?}");
        assert!(!again.content.is_empty(), "{again:?}");
    }
    for _ in 0..200 {
        if count(&database, "chat_messages WHERE state = 'generating'").await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let states = "SELECT state, error_code FROM chat_messages WHERE role = 'assistant' ORDER BY id";
    let states = database.query(states, &[]).await.unwrap();
    let states: Vec<(&str, Option<&str>)> = states.iter().map(|row| (row.get(0), row.get(1))).collect();
    let (lost, told) = (("failed", Some("not_started")), ("complete", None));
    assert_eq!(states, [lost, told, lost, told]);
    assert_eq!(count(&database, "chat_messages WHERE in_flight_key IS NOT NULL").await, 0);
    // The calls that were not made are on record as that.
    assert_eq!(count(&database, "model_calls WHERE state = 'failed' AND error_code = 'not_started'").await, 2);
    assert_eq!(count(&database, "model_calls").await, 4);
    assert_eq!(fake_model().await.calls_with_key(&tenant.key).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_nobodys_work_is_joined_by_nobody() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "nobodys-work", &["hang"]).await;
    let second = second(&first).await;
    let token = &tenant.user.access;
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    let of = |id: &str, sql: &str| sql.replace("$id", &format!("'{id}'"));
    for (what, change) in [
        ("begun too long ago", "UPDATE chat_messages SET created_at = now() - interval '11 minutes' WHERE id = $id"),
        ("its call was settled apart", "UPDATE model_calls SET state = 'failed' WHERE message_id = $id"),
        (
            "its server runs no more",
            "UPDATE model_calls SET server_id = gen_random_uuid(), started_at = now() - interval '1 minute'
             WHERE message_id = $id;
             UPDATE chat_messages SET created_at = now() - interval '1 minute' WHERE id = $id",
        ),
        (
            "no model was there, and nobody stored that",
            "DELETE FROM model_calls WHERE message_id = $id;
             UPDATE chat_messages SET created_at = now() - interval '1 minute' WHERE id = $id",
        ),
    ] {
        let (id, _listening) = begin(&first, token, what).await;
        assert_eq!(begin(&second, token, what).await.0, id, "{what}: it is somebody's work");
        for _ in 0..100 {
            let others = second.state.databases.other_servers();
            if others.is_some_and(|others| others.contains(&first.state.databases.server_id())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        database.batch_execute(&of(&id, change)).await.unwrap();
        let (next, _listening) = begin(&second, token, what).await;
        assert_ne!(next, id, "{what}");
        // It has taken the other one's place.
        let key = format!("chat_messages WHERE id = '{next}' AND in_flight_key IS NOT NULL");
        assert_eq!(count(&database, &key).await, 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_what_another_server_answers_waits_for_no_routing() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "routed-elsewhere", &["drip-100", "slow-1000"]).await;
    let second = second(&first).await;
    let assistants = ["orders", "billing"].map(|name| json!({ "name": name, "title": name, "prompt": "You know." }));
    let routing = json!({ "by": "model", "model": "slow-1000" });
    first.configure(&tenant, json!({ "assistants": assistants, "routing": routing })).await.expect(StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let token = &tenant.user.access;
    let (id, _listening) = begin(&first, token, "hello").await;
    let clicks = join_all((0..3).map(|_| ask(&second, token, json!({ "message": "hello" }), true))).await;
    assert!(clicks.iter().all(|told| told.message_id == id && told.status == StatusCode::OK), "{clicks:?}");
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    assert_eq!(count(&database, "model_calls WHERE kind = 'routing'").await, 1);
    // Nor is a follow-up routed, whoever gave the first answer.
    let more = json!({ "message": "more", "session_id": clicks[0].session_id });
    assert_eq!(ask(&second, token, more, false).await.status, StatusCode::OK);
    assert_eq!(count(&database, "model_calls WHERE kind = 'routing'").await, 1);
}
