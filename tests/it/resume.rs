//! Streams that are cut are resumed byte for byte, on any server; answers are stopped from any server.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{self, Options, Platform, Tenant, connect, fake_model};

/// A stream of server-sent events, read frame by frame. Heartbeats are left out.
struct Frames {
    bytes: BoxStream<'static, Vec<u8>>,
    rest: String,
}

impl Frames {
    fn new(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.bytes_stream().map(|bytes| bytes.unwrap().to_vec()).boxed();
        Self { bytes, rest: String::new() }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.find("\n\n") {
                let frame: String = self.rest.drain(..end + 2).collect();
                if frame.starts_with(':') {
                    continue;
                }
                return Some(frame);
            }
            let bytes =
                tokio::time::timeout(Duration::from_secs(20), self.bytes.next()).await.expect("a silent stream");
            self.rest.push_str(&String::from_utf8(bytes?).unwrap());
        }
    }

    async fn all(mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        assert!(self.rest.is_empty(), "{}", self.rest);
        frames
    }
}

fn field<'a>(frame: &'a str, name: &str) -> &'a str {
    frame.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

fn data(frame: &str) -> Value {
    serde_json::from_str(field(frame, "data: ")).unwrap()
}

fn text(frames: &[String]) -> String {
    frames
        .iter()
        .filter(|frame| frame.contains("\"content\""))
        .map(|f| data(f)["content"].as_str().unwrap().to_owned())
        .collect()
}

/// A second server on the same database.
async fn second(first: &Platform) -> Platform {
    Platform::start_with(Options { database: Some(first.database.clone()), ..Options::default() }).await
}

async fn with_model(platform: &Platform, slug: &str, model: &str) -> Tenant {
    let tenant = platform.tenant(slug).await;
    platform.offer(&tenant, &[model, "cut", "echo", "error-500"]).await;
    tenant
}

impl Platform {
    async fn asked(&self, tenant: &Tenant, body: Value) -> Frames {
        let request = self.client.post(format!("{}/api/v1/chat", self.url)).bearer_auth(&tenant.user.access);
        Frames::new(request.json(&body).send().await.unwrap())
    }

    async fn resumed(&self, tenant: &Tenant, message: &str, after: Option<&str>) -> Frames {
        let url = format!("{}/api/v1/chat/{message}/events", self.url);
        let mut request = self.client.get(url).bearer_auth(&tenant.user.access);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        Frames::new(request.send().await.unwrap())
    }

    async fn stop(&self, token: &str, message: &str) -> StatusCode {
        let path = format!("/api/v1/chat/{message}/stop");
        self.send(Method::POST, &path, token, None).await.status
    }

    async fn message(&self, tenant: &Tenant, started: &Value) -> Value {
        let path = format!("/api/v1/sessions/{}/messages", started["session_id"].as_str().unwrap());
        let page = self.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().iter().find(|m| m["id"] == started["message_id"]).unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_after_any_event_is_resumed_byte_for_byte_on_any_server() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "cut-anywhere", "instant").await;
    let second = second(&first).await;
    let mut cuts = 0;
    for (question, model, last) in [
        ("hello", "instant", "data: [DONE]"),
        ("zwölf \"Boxkämpfer\"\njagen 👋\u{1f3fd} Viktor", "echo", "data: [DONE]"),
        ("hello", "cut", "provider_interrupted"),
        // No model is there: the tenant's own message stands in, and is told again as that.
        ("hello", "error-500", "data: [DONE]"),
    ] {
        let whole =
            first.asked(&tenant, json!({ "message": question, "model": model, "stream": true })).await.all().await;
        assert!(whole.len() > 3 && whole.last().unwrap().contains(last), "{whole:?}");
        for (number, frame) in whole.iter().enumerate() {
            assert_eq!(field(frame, "id: "), number.to_string());
        }
        assert_eq!(field(&whole[0], "event: "), "started");
        let started = data(&whole[0]);
        let message = started["message_id"].as_str().unwrap();
        assert_eq!(first.message(&tenant, &started).await["content"], json!(text(&whole)));
        for platform in [&first, &second] {
            assert_eq!(platform.resumed(&tenant, message, None).await.all().await, whole);
            for (number, frame) in whole.iter().enumerate() {
                let rest = platform.resumed(&tenant, message, Some(field(frame, "id: "))).await.all().await;
                assert_eq!(rest, whole[number + 1..], "{model} after {number}");
                cuts += 1;
            }
        }
        // The number in the query; one that is none.
        let path = format!("/api/v1/chat/{message}/events?last_event_id=");
        let rest = second.get(&format!("{path}2"), &tenant.user.access).await;
        assert_eq!(rest.text, whole[3..].concat());
        let refused = second.get(&format!("{path}two"), &tenant.user.access).await;
        assert_eq!(refused.expect_problem(StatusCode::BAD_REQUEST), "invalid_last_event_id");
        // An answer from before its deltas were kept is one delta.
        let database = connect(&first.tenant_database("cut-anywhere").await).await.unwrap();
        database.batch_execute("UPDATE chat_messages SET delta_lengths = NULL").await.unwrap();
        let old = second.resumed(&tenant, message, None).await.all().await;
        assert!(old.len() <= whole.len().min(4));
        assert_eq!(text(&old), text(&whole));
    }
    harness::announce(&format!("resume: {cuts} cuts, each resumed with the same bytes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_resumed_again_and_again_while_the_answer_is_generated() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "while-generating", "drip-120").await;
    let second = second(&first).await;
    let mut begun = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let started = begun.next().await.unwrap();
    drop(begun);
    let message = data(&started)["message_id"].as_str().unwrap().to_owned();
    // One listens at each server from the beginning; one changes servers after each event.
    let at = |platform: &Platform| {
        let (url, token) = (format!("{}/api/v1/chat/{message}/events", platform.url), tenant.user.access.clone());
        let request = platform.client.get(url).bearer_auth(token);
        tokio::spawn(async move { Frames::new(request.send().await.unwrap()).all().await })
    };
    let listeners = [at(&first), at(&second)];
    let mut changing = vec![started];
    while !changing.last().unwrap().contains("[DONE]") {
        let platform = if changing.len() % 2 == 0 { &first } else { &second };
        let last = field(changing.last().unwrap(), "id: ").to_owned();
        let mut stream = platform.resumed(&tenant, &message, Some(&last)).await;
        changing.push(stream.next().await.expect("more, for there was no end"));
    }
    for listener in listeners {
        assert_eq!(listener.await.unwrap(), changing);
    }
    let stored = second.message(&tenant, &data(&changing[0])).await;
    assert_eq!((&stored["state"], &stored["content"]), (&json!("complete"), &json!(text(&changing))));
    // What was written down meanwhile is gone.
    let database = connect(&first.tenant_database("while-generating").await).await.unwrap();
    let parts: i64 = database.query_one("SELECT count(*) FROM chat_answer_parts", &[]).await.unwrap().get(0);
    assert_eq!(parts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_wrote_down_before_it_died_is_told_by_another() {
    let clock = harness::manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let survivor = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = with_model(&survivor, "server-died", "drip-150").await;
    // On a runtime of its own, which ends in the middle of everything.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let database = survivor.database.clone();
    let doomed = runtime.spawn(async move {
        let options = Options { database: Some(database), ..Options::default() };
        let platform = Platform::start_with(options).await;
        let url = platform.url.clone();
        std::mem::forget(platform);
        url
    });
    let url = doomed.await.unwrap();
    let request = reqwest::Client::new().post(format!("{url}/api/v1/chat")).bearer_auth(&tenant.user.access);
    let mut stream = Frames::new(request.json(&json!({ "message": "hello", "stream": true })).send().await.unwrap());
    let mut told = Vec::new();
    while told.len() < 17 {
        told.push(stream.next().await.unwrap());
    }
    drop(stream);
    runtime.shutdown_background();
    let message = data(&told[0])["message_id"].as_str().unwrap().to_owned();
    let mut again = survivor.resumed(&tenant, &message, None).await;
    let mut kept = Vec::new();
    for _ in 0..8 {
        kept.push(again.next().await.unwrap());
    }
    assert_eq!(kept, told[..8]);
    // A while later it is known to be dead, and what it had written down becomes the message.
    clock.advance(chrono::TimeDelta::minutes(1));
    kept.extend(again.all().await);
    let last = kept.pop().unwrap();
    assert_eq!((field(&last, "event: "), &data(&last)["code"]), ("error", &json!("server_stopped")));
    assert_eq!(kept, told[..kept.len()], "what was kept is a beginning of what was told");
    let message_kept = survivor.message(&tenant, &data(&told[0])).await;
    assert_eq!((&message_kept["state"], &message_kept["content"]), (&json!("interrupted"), &json!(text(&kept))));
    let database = connect(&survivor.tenant_database("server-died").await).await.unwrap();
    let parts: i64 = database.query_one("SELECT count(*) FROM chat_answer_parts", &[]).await.unwrap().get(0);
    assert_eq!(parts, 0);
    // Whoever has heard more than was kept learns that it is over, too.
    let rest = survivor.resumed(&tenant, &message, Some("16")).await.all().await;
    assert_eq!((rest.len(), field(&rest[0], "id: "), field(&rest[0], "event: ")), (1, "17", "error"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_follow_one_answer_cost_one_reader() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "followers", "drip-250").await;
    let second = second(&first).await;
    let mut stream = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let started = stream.next().await.unwrap();
    let message = data(&started)["message_id"].as_str().unwrap().to_owned();
    let url = first.tenant_database("followers").await;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let cluster = connect(&harness::server().await.url("postgres")).await.unwrap();
    let statements = async || {
        // What a session has done, Postgres tells a moment later.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1";
        cluster.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0)
    };
    let before = statements().await;
    let mut followers = Vec::new();
    for _ in 0..20 {
        let followed = second.resumed(&tenant, &message, None).await;
        followers.push(tokio::spawn(followed.all()));
    }
    let mut whole = vec![started];
    whole.extend(stream.all().await);
    for follower in followers {
        assert_eq!(follower.await.unwrap(), whole);
    }
    // Some seven seconds: a look every 0.3 s, and what the first server writes down every second.
    let looked = statements().await - before;
    harness::announce(&format!("resume: 20 followers of one answer cost {looked} transactions"));
    assert!(looked < 120, "{looked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_too_often_gives_up_the_first_place() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "places", "hang").await;
    let second = second(&first).await;
    let mut stream = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let message = data(&stream.next().await.unwrap())["message_id"].as_str().unwrap().to_owned();
    for platform in [&first, &second] {
        let mut listeners = Vec::new();
        for _ in 0..33 {
            let mut listener = platform.resumed(&tenant, &message, None).await;
            listener.next().await.unwrap();
            listeners.push(listener);
        }
        let ended = listeners.remove(0);
        // Without a word: whoever wants the rest asks again.
        assert!(ended.all().await.is_empty());
        for mut listener in listeners {
            let next = tokio::time::timeout(Duration::from_millis(5), listener.next()).await;
            assert!(next.is_err(), "the others go on");
        }
    }
    assert_eq!(first.stop(&tenant.user.access, &message).await, StatusCode::NO_CONTENT);
    assert!(stream.all().await[0].contains("\"stopped\":true"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_stopped_at_its_own_server_and_at_another_one() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "stopped", "drip-200").await;
    let second = second(&first).await;
    for (platform, within) in [(&first, Duration::from_millis(500)), (&second, Duration::from_millis(3500))] {
        let mut stream = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
        let mut frames = Vec::new();
        while frames.len() < 4 {
            frames.push(stream.next().await.unwrap());
        }
        let started = data(&frames[0]);
        let message = started["message_id"].as_str().unwrap();
        let cancelled = fake_model().await.cancelled_with_key(&tenant.key);
        let asked = Instant::now();
        for _ in 0..2 {
            assert_eq!(platform.stop(&tenant.user.access, message).await, StatusCode::NO_CONTENT);
        }
        frames.extend(stream.all().await);
        assert!(asked.elapsed() < within, "{:?}", asked.elapsed());
        let [.., done, mark] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!((field(done, "event: "), &data(done)["stopped"]), ("done", &json!(true)));
        assert_eq!(data(done)["usage"]["reported"], false);
        assert_eq!(field(mark, "data: "), "[DONE]");
        let stored = first.message(&tenant, &started).await;
        assert_eq!((&stored["state"], &stored["error_code"]), (&json!("stopped"), &Value::Null));
        assert_eq!(stored["content"], json!(text(&frames)));
        assert!(text(&frames).split_whitespace().count() < 27);
        assert!(hears_of_it(&tenant, cancelled).await, "the model was told, too");
        for platform in [&first, &second] {
            assert_eq!(platform.stop(&tenant.user.access, message).await, StatusCode::NO_CONTENT, "it is over");
            assert_eq!(platform.resumed(&tenant, message, None).await.all().await, frames);
        }
    }
    // The conversation goes on with what arrived.
    let sessions = first.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
    let body = json!({ "message": "go on", "model": "echo", "session_id": sessions["items"][0]["id"] });
    first.post("/api/v1/chat", &tenant.user.access, body).await.expect(StatusCode::OK);
    assert_eq!(fake_model().await.calls_with_key(&tenant.key).last().unwrap().contents().len(), 4);
}

/// Whether the model hears of an end that comes from here, after so many before.
async fn hears_of_it(tenant: &Tenant, before: usize) -> bool {
    for _ in 0..100 {
        if fake_model().await.cancelled_with_key(&tenant.key) > before {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_that_is_deleted_ends_its_answer_at_whichever_server() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "deleted-midway", "drip-200").await;
    let second = second(&first).await;
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    for (number, platform) in [&first, &second].into_iter().enumerate() {
        let mut stream = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
        let started = data(&stream.next().await.unwrap());
        let cancelled = fake_model().await.cancelled_with_key(&tenant.key);
        let path = format!("/api/v1/sessions/{}", started["session_id"].as_str().unwrap());
        let deleted = platform.send(Method::DELETE, &path, &tenant.user.access, None).await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT, "{}", deleted.text);
        let rest = stream.all().await;
        let error = rest.last().unwrap();
        assert_eq!((field(error, "event: "), &data(error)["code"]), ("error", &json!("conversation_deleted")));
        assert!(text(&rest).split_whitespace().count() < 27, "it was not told to its end");
        assert!(hears_of_it(&tenant, cancelled).await, "nobody pays for the rest of it");
        // What was used until then is on record.
        let sql = "SELECT count(*) FILTER (WHERE state = 'cancelled'), count(*) FROM model_calls";
        let row = database.query_one(sql, &[]).await.unwrap();
        let calls = i64::try_from(number + 1).unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (calls, calls));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_stopped_before_its_first_word() {
    let platform = Platform::start().await;
    let tenant = with_model(&platform, "no-word-yet", "hang").await;
    let mut stream = platform.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let started = data(&stream.next().await.unwrap());
    let message = started["message_id"].as_str().unwrap();
    assert_eq!(platform.stop(&tenant.user.access, message).await, StatusCode::NO_CONTENT);
    let rest = stream.all().await;
    assert_eq!((rest.len(), &data(&rest[0])["usage"]["output_tokens"]), (2, &json!(0)));
    assert_eq!(platform.message(&tenant, &started).await["state"], "stopped");
    // Without a stream it is an answer like any other, and says so.
    let whole = platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" }));
    let stop = async {
        let database = connect(&platform.tenant_database("no-word-yet").await).await.unwrap();
        let sql = "SELECT id FROM chat_messages WHERE state = 'generating'";
        loop {
            if let Some(row) = database.query_opt(sql, &[]).await.unwrap() {
                let id: Uuid = row.get(0);
                return platform.stop(&tenant.user.access, &id.to_string()).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (whole, stopped) = tokio::join!(whole, stop);
    assert_eq!(stopped, StatusCode::NO_CONTENT);
    let whole = whole.expect(StatusCode::OK);
    assert_eq!((&whole["stopped"], &whole["content"]), (&json!(true), &json!("")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_users_answer_does_not_exist() {
    let first = Platform::start().await;
    let (tenant, other) = (with_model(&first, "answers-ours", "hang").await, first.tenant("answers-other").await);
    let second = second(&first).await;
    // One that is finished, and one that is being generated at the first server.
    let finished = json!({ "message": "hello", "model": "echo", "stream": true });
    let finished = first.asked(&tenant, finished).await.all().await;
    let finished = data(&finished[0])["message_id"].as_str().unwrap().to_owned();
    let mut open = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let generating = data(&open.next().await.unwrap())["message_id"].as_str().unwrap().to_owned();
    let database = connect(&first.tenant_database("answers-ours").await).await.unwrap();
    let sql = "SELECT id FROM chat_messages WHERE role = 'user' LIMIT 1";
    let question: Uuid = database.query_one(sql, &[]).await.unwrap().get(0);
    let nowhere = Uuid::now_v7().to_string();
    let mut refused = 0;
    for platform in [&first, &second] {
        for (token, message) in [
            (&tenant.admin.access, &finished),
            (&tenant.admin.access, &generating),
            (&other.user.access, &finished),
            (&other.user.access, &generating),
            (&tenant.user.access, &nowhere),
            (&tenant.user.access, &question.to_string()),
        ] {
            let answer = platform.get(&format!("/api/v1/chat/{message}/events"), token).await;
            assert_eq!(answer.expect_problem(StatusCode::NOT_FOUND), "not_found");
            assert_eq!(platform.stop(token, message).await, StatusCode::NOT_FOUND);
            refused += 2;
        }
    }
    harness::announce(&format!("resume: {refused} requests for others' answers refused"));
    assert_eq!(first.stop(&tenant.user.access, &generating).await, StatusCode::NO_CONTENT);
    assert!(open.all().await[0].contains("\"stopped\":true"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_answer_ends_with_its_conversation_and_with_its_tenant() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "followed", "hang").await;
    let second = second(&first).await;
    let mut ends = Vec::new();
    for what in ["delete", "suspend"] {
        let mut open = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
        let started = data(&open.next().await.unwrap());
        let followed = second.resumed(&tenant, started["message_id"].as_str().unwrap(), Some("0")).await;
        if what == "delete" {
            let path = format!("/api/v1/sessions/{}", started["session_id"].as_str().unwrap());
            first.send(Method::DELETE, &path, &tenant.user.access, None).await.expect_success();
        } else {
            let body = json!({ "reason": "unpaid" });
            first.post("/platform/v1/tenants/followed/suspend", &first.token, body).await.expect_success();
        }
        ends.push(data(followed.all().await.last().unwrap())["code"].clone());
    }
    assert_eq!(ends, ["conversation_deleted", "tenant_suspended"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_hold_no_connection() {
    let settings = &[("FREEHOLD_TENANT_POOL_SIZE", "1")];
    let first = Platform::start_with(Options { settings, ..Options::default() }).await;
    let tenant = with_model(&first, "many-streams", "hang").await;
    let options = Options { settings, database: Some(first.database.clone()), ..Options::default() };
    let second = Platform::start_with(options).await;
    let mut open = Vec::new();
    for number in 0..25 {
        let mut stream = first.asked(&tenant, json!({ "message": format!("hello {number}"), "stream": true })).await;
        let message = data(&stream.next().await.unwrap())["message_id"].as_str().unwrap().to_owned();
        open.push(second.resumed(&tenant, &message, Some("0")).await);
        open.push(stream);
    }
    let url = first.tenant_database("many-streams").await;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let cluster = connect(&harness::server().await.url("postgres")).await.unwrap();
    // Looks at the database are short: nearly always nobody is at one, and then nothing is held.
    let (mut held, mut busy) = (Vec::new(), 0);
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for platform in [&first, &second] {
            platform.state.databases.close_idle(Duration::ZERO);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let sql = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE datname = $1";
        let row = cluster.query_one(sql, &[&name]).await.unwrap();
        held.push(row.get::<_, i64>(0));
        busy += row.get::<_, i64>(1);
    }
    held.sort_unstable();
    harness::announce(&format!("resume: connections with 50 open streams {held:?}, busy {busy}"));
    assert_eq!(held[held.len() / 4], 0, "{held:?}");
    assert!(held.iter().all(|held| *held <= 2), "{held:?}");
    first.get("/api/v1/sessions", &tenant.user.access).await.expect(StatusCode::OK);
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_follows_hears_of_a_part_that_has_grown() {
    let first = Platform::start().await;
    let tenant = with_model(&first, "grown", "hang").await;
    let second = second(&first).await;
    let database = connect(&first.tenant_database(&tenant.slug).await).await.unwrap();
    let mut asked = first.asked(&tenant, json!({ "message": "hello", "stream": true })).await;
    let started = data(&asked.next().await.unwrap());
    let message: Uuid = started["message_id"].as_str().unwrap().parse().unwrap();
    // A statement wrote the beginning down, and whoever sent it did not hear so: it is written again with what came since.
    let write = "INSERT INTO chat_answer_parts VALUES ($1, $2, $3, $4)
                 ON CONFLICT (message_id, first_event) DO UPDATE
                 SET content = excluded.content, delta_lengths = excluded.delta_lengths";
    let part = async |first_event: i32, content: &str| {
        let lengths = vec![1_u8; content.len()];
        database.execute(write, &[&message, &first_event, &content, &lengths]).await.unwrap();
    };
    part(1, "abcde").await;
    let mut followed = second.resumed(&tenant, &message.to_string(), None).await;
    let mut told = Vec::new();
    while told.len() < 6 {
        told.push(followed.next().await.unwrap());
    }
    assert_eq!(text(&told), "abcde");
    part(1, "abcdefghijkl").await;
    part(13, "mn").await;
    while told.len() < 15 {
        told.push(followed.next().await.unwrap());
    }
    assert_eq!(text(&told), "abcdefghijklmn");
    for (number, frame) in told.iter().enumerate() {
        assert_eq!(field(frame, "id: "), number.to_string());
    }
    assert_eq!(first.stop(&tenant.user.access, &message.to_string()).await, StatusCode::NO_CONTENT);
}
