//! What servers leave behind that die or give up, and who takes it up: never too early, never twice, never for nothing.

use std::time::Duration;

use freehold::scheduled::TASKS;
use freehold::tenant_db::TenantDb;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Options, Platform, Tenant, connect, execute, fake_model, server};

async fn tenant_db(platform: &Platform, tenant: &Tenant) -> TenantDb {
    let record = platform.state.directory.by_slug(&tenant.slug.parse().unwrap()).await.unwrap().unwrap();
    platform.state.databases.open(record).unwrap()
}

async fn database(platform: &Platform, tenant: &Tenant) -> Client {
    connect(&platform.tenant_database(&tenant.slug).await).await.unwrap()
}

/// Another server on the same database, which has just started.
async fn beside(platform: &Platform) -> Platform {
    Platform::start_with(Options { database: Some(platform.database.clone()), ..Options::default() }).await
}

/// Answers, oldest first: state, content, error.
async fn answers(database: &Client) -> Vec<(String, String, Option<String>)> {
    let sql = "SELECT state, content, error_code FROM chat_messages WHERE role = 'assistant' ORDER BY id";
    database.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// A call that a server left open which nobody knows any more.
const ABANDON: &str = "\
    INSERT INTO model_calls (id, kind, server_id, provider, configuration, model, upstream_model, billed_to, state,
        input_tokens, started_at)
    VALUES (gen_random_uuid(), 'completion', gen_random_uuid(), 'openai_compatible', 'main', 'm', 'm', 'own', 'started', 7,
        now() - interval '40 seconds')";

async fn open_calls(database: &Client) -> i64 {
    database.query_one("SELECT count(*) FROM model_calls WHERE state = 'started'", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_open_call_does_not_stay_generating_for_ever() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("orphans").await;
    let running = beside(&platform).await;
    drop(tenant_db(&running, &tenant).await.client().await.unwrap());
    let database = database(&platform, &tenant).await;
    for _ in 0..4 {
        platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hi" })).await.expect(StatusCode::OK);
    }
    // The first was written down in part and its call settled apart; of the second there never was a call; the third is
    // young; the call of the fourth goes on at a server that runs.
    let sql = "SELECT id FROM chat_messages WHERE role = 'assistant' ORDER BY id";
    let ids: Vec<Uuid> = database.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let sql = "UPDATE chat_messages SET state = 'generating', content = '', delta_lengths = NULL, finished_at = NULL,
               created_at = now() - age FROM unnest($1::uuid[], $2::text[]::interval[]) o (id, age)
               WHERE chat_messages.id = o.id";
    database.execute(sql, &[&ids, &vec!["1 minute", "1 minute", "10 seconds", "11 minutes"]]).await.unwrap();
    let sql = "INSERT INTO chat_answer_parts VALUES ($1, 1, 'Once', '\\x04'), ($1, 2, ' upon', '\\x05')";
    database.execute(sql, &[&ids[0]]).await.unwrap();
    database.execute("DELETE FROM model_calls WHERE message_id = $1", &[&ids[1]]).await.unwrap();
    let sql = "UPDATE model_calls SET state = 'started', server_id = $2, started_at = now() - interval '11 minutes'
               WHERE message_id = $1";
    database.execute(sql, &[&ids[3], &running.state.databases.server_id()]).await.unwrap();
    let fresh = beside(&platform).await;
    let db = tenant_db(&fresh, &tenant).await;
    drop(db.client().await.unwrap());
    assert_eq!(fresh.state.chat.settle_abandoned(&db).await.unwrap(), 0, "no call was open that is nobody's");
    let code = Some("server_stopped".to_owned());
    let expected = [
        ("interrupted".to_owned(), "Once upon".to_owned(), code.clone()),
        ("failed".to_owned(), String::new(), code),
        ("generating".to_owned(), String::new(), None),
        ("generating".to_owned(), String::new(), None),
    ];
    assert_eq!(answers(&database).await, expected);
    let parts: i64 = database.query_one("SELECT count(*) FROM chat_answer_parts", &[]).await.unwrap().get(0);
    assert_eq!(parts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_could_not_be_stored_in_time_is_stored_later_as_what_was_told() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("stored-later").await;
    platform.offer(&tenant, &["slow-1500"]).await;
    let url = platform.tenant_database(&tenant.slug).await;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let admin = server().await.url("postgres");
    let outage = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS false")).await;
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        execute(&admin, &end).await;
    };
    let question = json!({ "message": "hello", "stream": true });
    let (told, ()) = tokio::join!(platform.post("/api/v1/chat", &tenant.user.access, question), outage);
    assert!(told.text.contains("event: error") && told.text.contains("answer_not_stored"), "{}", told.text);
    execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS true")).await;
    let database = database(&platform, &tenant).await;
    let mut left = 120;
    while answers(&database).await[0].0 == "generating" {
        left -= 1;
        assert!(left > 0, "it is not stored");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (state, content, code) = answers(&database).await.pop().unwrap();
    assert_eq!((state.as_str(), code.as_deref()), ("interrupted", Some("answer_not_stored")));
    assert_eq!(content.split_whitespace().count(), 27, "nothing of it is lost");
    // Its call was settled with it, once, with what the provider reported.
    let sql = "SELECT state, output_tokens, usage_reported FROM model_calls";
    let calls = database.query(sql, &[]).await.unwrap();
    let [call] = &calls[..] else { panic!("{} calls", calls.len()) };
    assert_eq!((call.get(0), call.get(1), call.get(2)), ("succeeded", 27_i64, true));
    // Another server tells it byte for byte as it was told.
    let message = database.query_one("SELECT id FROM chat_messages WHERE role = 'assistant'", &[]).await.unwrap();
    let path = format!("/api/v1/chat/{}/events", message.get::<_, Uuid>(0));
    let again = beside(&platform).await.get(&path, &tenant.user.access).await;
    let frames = |text: &str| -> Vec<String> {
        text.split_inclusive("\n\n").filter(|frame| !frame.starts_with(':')).map(str::to_owned).collect()
    };
    assert_eq!(frames(&again.text), frames(&told.text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_just_started_takes_nobody_for_dead() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("just-started").await;
    let database = database(&platform, &tenant).await;
    // A server that makes a call has been cut off from the platform's database, and that is back just now.
    let (registry, cut_off) = (platform.platform_client().await, Uuid::now_v7());
    // A Postgres that has itself just started is known to have heard nobody: that is not what is tested here.
    let just_started = "SELECT pg_postmaster_start_time() > clock_timestamp() - interval '16 seconds'";
    while registry.query_one(just_started, &[]).await.unwrap().get(0) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let fresh = beside(&platform).await;
    let sql = "INSERT INTO connection_shares (database_server, server_id, name, granted, open, beat_at)
               SELECT database_server, $1, 'elsewhere', 0, 0, now() - interval '1 minute' FROM connection_shares LIMIT 1";
    assert_eq!(registry.execute(sql, &[&cut_off]).await.unwrap(), 1);
    platform.state.stop.cancel();
    database.batch_execute(ABANDON).await.unwrap();
    database.execute("UPDATE model_calls SET server_id = $1", &[&cut_off]).await.unwrap();
    let db = tenant_db(&fresh, &tenant).await;
    drop(db.client().await.unwrap());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(fresh.state.databases.other_servers().unwrap().contains(&cut_off));
    assert_eq!(fresh.state.chat.settle_abandoned(&db).await.unwrap(), 0);
    assert_eq!(open_calls(&database).await, 1);
    // It had the time to say that it is there, and did not.
    let mut left = 60;
    while fresh.state.databases.other_servers().unwrap().contains(&cut_off) {
        left -= 1;
        assert!(left > 0, "it is never taken for dead");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(fresh.state.chat.settle_abandoned(&db).await.unwrap(), 1);
    assert_eq!(open_calls(&database).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_nobody_used_since_it_was_swept_is_left_alone() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("swept").await;
    let (database, registry) = (database(&platform, &tenant).await, platform.platform_client().await);
    let sweep = async || {
        database.batch_execute(ABANDON).await.unwrap();
        let fresh = beside(&platform).await;
        let task = TASKS.iter().find(|task| task.name == "settle_abandoned_calls").unwrap();
        (task.run)(fresh.state.clone()).await.unwrap();
        let swept = open_calls(&database).await == 0;
        assert!(swept || fresh.state.databases.tenants().is_empty());
        database.batch_execute("DELETE FROM model_calls").await.unwrap();
        swept
    };
    // The platform's own server may have swept it just now.
    registry.execute("DELETE FROM tenant_uses", &[]).await.unwrap();
    assert!(sweep().await, "nobody knows what was before");
    assert!(!sweep().await && !sweep().await, "nothing was since");
    // A call is made, and its server says so beside it.
    platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hi" })).await.expect(StatusCode::OK);
    let used = "SELECT used_at IS NOT NULL FROM tenant_uses WHERE tenant_id = $1";
    let mut left = 100;
    while !registry.query_one(used, &[&tenant.id]).await.unwrap().get::<_, bool>(0) {
        left -= 1;
        assert!(left > 0, "its use is not noted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sweep().await && sweep().await, "a call may still go on that was begun then");
    let change = async |sql: &str| registry.execute(sql, &[&tenant.id]).await.unwrap();
    change("UPDATE tenant_uses SET used_at = used_at - interval '3 hours' WHERE tenant_id = $1").await;
    assert!(!sweep().await, "and not for ever");
    change("UPDATE tenant_uses SET swept_at = swept_at - interval '8 days' WHERE tenant_id = $1").await;
    assert!(sweep().await, "once a week all the same");
    // What cannot be looked at is not taken for swept.
    change("UPDATE tenant_uses SET used_at = now() WHERE tenant_id = $1").await;
    let swept = "SELECT jsonb_build_object('at', swept_at)::text FROM tenant_uses WHERE tenant_id = $1";
    let swept = async || -> Value {
        serde_json::from_str(registry.query_one(swept, &[&tenant.id]).await.unwrap().get(0)).unwrap()
    };
    let before = swept().await;
    let name = platform.tenant_database(&tenant.slug).await;
    let name = name.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let admin = server().await.url("postgres");
    execute(&admin, &format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS false")).await;
    assert!(!{
        let fresh = beside(&platform).await;
        let task = TASKS.iter().find(|task| task.name == "settle_abandoned_calls").unwrap();
        (task.run)(fresh.state.clone()).await.unwrap();
        swept().await != before
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_way_when_their_tenant_is_suspended_are_settled_once() {
    let platform = Platform::start().await;
    let other = beside(&platform).await;
    let tenant = platform.tenant("suspended-midway").await;
    platform.offer(&tenant, &["drip-300"]).await;
    let made = platform.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "program" })).await;
    let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
    let database = database(&platform, &tenant).await;
    // A conversation and a program's call on each of two servers.
    let question = |words: &str| json!({ "message": words, "stream": true });
    let call = json!({ "model": "drip-300", "stream": true, "messages": [{ "role": "user", "content": "hello" }] });
    let asked = async {
        tokio::join!(
            platform.post("/api/v1/chat", &tenant.user.access, question("hello")),
            other.post("/api/v1/chat", &tenant.user.access, question("hello again")),
            platform.post("/v1/chat/completions", &key, call.clone()),
            other.post("/v1/chat/completions", &key, call.clone()),
        )
    };
    let suspension = async {
        let mut left = 200;
        while open_calls(&database).await < 4 {
            left -= 1;
            assert!(left > 0, "not all have begun");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        let body = json!({ "reason": "unpaid" });
        let path = format!("/platform/v1/tenants/{}/suspend", tenant.slug);
        let asked = platform.post(&path, &platform.token, body).await.expect(StatusCode::ACCEPTED);
        assert_eq!(platform.settled(&asked["operation"]).await["state"], "succeeded");
    };
    let ((first, second, third, fourth), ()) = tokio::join!(asked, suspension);
    for answer in [first, second, third, fourth] {
        assert!(answer.text.contains("tenant_suspended") && !answer.text.contains("[DONE]"), "{}", answer.text);
    }
    // Whatever could not be written while everybody was locked out is written once the tenant is back.
    let path = format!("/platform/v1/tenants/{}/resume", tenant.slug);
    let asked = platform.post(&path, &platform.token, json!({})).await.expect(StatusCode::ACCEPTED);
    assert_eq!(platform.settled(&asked["operation"]).await["state"], "succeeded");
    let mut left = 200;
    while open_calls(&database).await > 0 {
        left -= 1;
        assert!(left > 0, "not all are settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // And stays as it is when somebody looks for what was left.
    for server in [&platform, &beside(&platform).await] {
        server.state.chat.settle_abandoned(&tenant_db(server, &tenant).await).await.unwrap();
    }
    // How the answers ended was written while there were connections; else somebody takes them up once they are old enough.
    let mut left = 60;
    while answers(&database).await.iter().any(|(state, ..)| state == "generating") {
        left -= 1;
        assert!(left > 0, "not all answers have ended");
        platform.state.chat.settle_abandoned(&tenant_db(&platform, &tenant).await).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for (state, content, code) in answers(&database).await {
        let code = code.unwrap();
        assert!(state == "interrupted" && !content.is_empty(), "{state} {code} {content}");
        assert!(["tenant_suspended", "server_stopped"].contains(&code.as_str()), "{code}");
    }
    let sql = "SELECT state, error_code, usage_reported, output_tokens > 0 FROM model_calls";
    let rows = database.query(sql, &[]).await.unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let seen: (&str, &str, bool, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(seen, ("interrupted", "tenant_suspended", false, true));
    }
    let fake = fake_model().await;
    assert_eq!(fake.calls_with_key(&tenant.key).len(), 4, "nobody was asked twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_died_with_its_server_is_estimated_by_what_it_had_delivered() {
    let clock = crate::harness::manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let survivor = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = survivor.tenant("died-midway").await;
    survivor.offer(&tenant, &["drip-200"]).await;
    let made = survivor.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "program" })).await;
    let key = made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned();
    // On a runtime of its own, which ends in the middle of everything.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let database_name = survivor.database.clone();
    let doomed = runtime.spawn(async move {
        let options = Options { database: Some(database_name), ..Options::default() };
        let platform = Platform::start_with(options).await;
        let url = platform.url.clone();
        std::mem::forget(platform);
        url
    });
    let url = format!("{}/v1/chat/completions", doomed.await.unwrap());
    let call = json!({ "model": "drip-200", "stream": true, "messages": [{ "role": "user", "content": "hello" }] });
    let mut response = reqwest::Client::new().post(url).bearer_auth(&key).json(&call).send().await.unwrap();
    let database = database(&survivor, &tenant).await;
    // Twice it is noted; the second time it is more.
    let sql = "SELECT COALESCE(output_tokens, 0) FROM model_calls WHERE state = 'started'";
    let (mut told, mut noted) = (String::new(), vec![0_i64]);
    while noted.len() < 3 {
        told.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().expect("an answer under way")));
        let tokens = database.query_one(sql, &[]).await.unwrap().get(0);
        if noted.last() != Some(&tokens) {
            noted.push(tokens);
        }
    }
    runtime.shutdown_background();
    let characters: usize = told
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::len))
        .sum();
    clock.advance(chrono::TimeDelta::minutes(61));
    let db = tenant_db(&survivor, &tenant).await;
    // Its periodic task may have looked a moment ago, and nobody looks again for a few seconds.
    let mut left = 100;
    while open_calls(&database).await > 0 {
        left -= 1;
        assert!(left > 0, "it is never settled");
        survivor.state.chat.settle_abandoned(&db).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let row = database.query_one("SELECT state, output_tokens, usage_reported FROM model_calls", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i64>(1), row.get(2)), ("interrupted", noted[2], false));
    assert!(noted[1] > 0 && noted[2] > noted[1] && noted[2] <= i64::try_from(characters / 4).unwrap(), "{noted:?}");
}
