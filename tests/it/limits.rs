//! Limits over several servers: rates with the platform's database and with Redis, quotas, features, and what is told.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Options, Platform, Tenant, events, server};
use crate::machine_postgres::not_tested;
use crate::proxy::{Line, Proxy};

/// A Redis of this test's own, in memory.
pub struct Redis {
    process: Child,
    pub url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Starts `redis-server` or `valkey-server`, if the machine has one.
pub async fn redis() -> Option<Redis> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let command = |program: &str| {
        Command::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let Ok(process) = command("redis-server").or_else(|_| command("valkey-server")) else {
        not_tested("limits in Redis", "Redis (apt-get install redis-server)");
        return None;
    };
    let redis = Redis { process, url: format!("redis://127.0.0.1:{port}"), _directory: directory };
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Some(redis);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("Redis does not start");
}

/// Servers over one platform database, and one Redis if there is one.
async fn servers(count: usize, redis: Option<&str>) -> Vec<Platform> {
    let settings: Vec<_> = redis.map(|url| ("REDIS_URL", url)).into_iter().collect();
    let mut servers = vec![Platform::start_with(Options { settings: &settings, ..Options::default() }).await];
    for _ in 1..count {
        let database = Some(servers[0].database.clone());
        servers.push(Platform::start_with(Options { settings: &settings, database, ..Options::default() }).await);
    }
    servers
}

/// Asks something that was not asked before: the same question at once would be one.
async fn ask(server: &Platform, tenant: &Tenant) -> Answer {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let message = format!("hello {}", NUMBER.fetch_add(1, Ordering::Relaxed));
    server.post("/api/v1/chat", &tenant.user.access, json!({ "message": message, "model": "instant" })).await
}

async fn api_key(server: &Platform, tenant: &Tenant) -> String {
    let made = server.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "a program" })).await;
    made.expect(StatusCode::CREATED)["token"].as_str().unwrap().to_owned()
}

async fn complete(server: &Platform, key: &str, model: &str, stream: bool) -> Answer {
    let body = json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": "hello" }] });
    server.post("/v1/chat/completions", key, body).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

/// Waits until every server has heard of a change of the registry.
async fn heard() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_is_counted_over_all_servers_and_told() {
    minute_over_servers(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_is_counted_over_all_servers_with_redis() {
    let Some(redis) = redis().await else { return };
    minute_over_servers(Some(&redis.url)).await;
    // Nothing of it is in the platform's database then.
}

async fn minute_over_servers(redis: Option<&str>) {
    let servers = servers(3, redis).await;
    let tenant = servers[0].tenant("minutes").await;
    let key = api_key(&servers[0], &tenant).await;
    servers[0].set_limits("minutes", json!({ "requests_per_minute": 10, "requests_per_month": "unlimited" })).await;
    heard().await;
    for number in 0..10 {
        let answer = ask(&servers[number % 3], &tenant).await;
        assert_eq!(answer.status, StatusCode::OK, "request {number}: {}", answer.text);
        assert_eq!(header(&answer, "x-ratelimit-limit-requests"), Some("10"));
        assert!(header(&answer, "x-ratelimit-remaining-requests").is_some());
        assert!(header(&answer, "x-ratelimit-reset-requests").unwrap().starts_with("1m0"), "{:?}", answer.headers);
        assert_eq!(answer.body["queries_remaining"], Value::Null);
    }
    for server in &servers {
        let answer = ask(server, &tenant).await;
        assert_eq!(header(&answer, "x-ratelimit-remaining-requests"), Some("0"));
        let retry_after: u64 = header(&answer, "retry-after").unwrap().parse().unwrap();
        let milliseconds: u64 = header(&answer, "retry-after-ms").unwrap().parse().unwrap();
        assert!((1..=61).contains(&retry_after) && milliseconds <= 61_000, "{:?}", answer.headers);
        assert_eq!(answer.expect_problem(StatusCode::TOO_MANY_REQUESTS), "rate_limit_exceeded");
        let answer = complete(server, &key, "instant", true).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let error = &answer.body["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
        assert!(header(&answer, "retry-after-ms").is_some() && header(&answer, "x-should-retry").is_none());
    }
    // Refusals ask nobody: a thousand of them take a moment.
    let began = Instant::now();
    let refused = join_all((0..200).map(|number| ask(&servers[number % 3], &tenant))).await;
    assert!(refused.iter().all(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let quota = servers[1].get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(quota["requests_per_minute"], json!({ "limit": 10, "remaining": 0 }));
    // A limit that is raised holds on every server.
    servers[0].set_limits("minutes", json!({ "requests_per_minute": 13 })).await;
    heard().await;
    let mut admitted = 0;
    for number in 0..6 {
        admitted += usize::from(ask(&servers[number % 3], &tenant).await.status == StatusCode::OK);
    }
    assert_eq!(admitted, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_once_cannot_slip_through_together() {
    at_once(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_once_cannot_slip_through_together_with_redis() {
    let Some(redis) = redis().await else { return };
    at_once(Some(&redis.url)).await;
}

async fn at_once(redis: Option<&str>) {
    let servers = servers(3, redis).await;
    let tenant = servers[0].tenant("at-once").await;
    servers[0].set_limits("at-once", json!({ "requests_per_minute": 60 })).await;
    heard().await;
    // So that each server knows of the others.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let answers = join_all((0..150).map(|number| ask(&servers[number % 3], &tenant))).await;
    let mut statuses = BTreeMap::<u16, usize>::new();
    for answer in &answers {
        *statuses.entry(answer.status.as_u16()).or_default() += 1;
    }
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let mut admitted = statuses.get(&200).copied().unwrap_or_default();
    // On a busy machine some permits reach a server after its requests have gone. They are there for the next.
    let began = std::time::Instant::now();
    while admitted < 60 && began.elapsed() < Duration::from_secs(20) {
        let answers = join_all(servers.iter().map(|server| ask(server, &tenant))).await;
        admitted += answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    }
    assert_eq!(admitted, 60, "{statuses:?}");
    let more = join_all((0..30).map(|number| ask(&servers[number % 3], &tenant))).await;
    assert!(more.iter().all(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_users_and_keys_count_beside_the_tenants_and_a_refusal_uses_none() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("several").await;
    let key = api_key(&platform, &tenant).await;
    let limits = json!({
        "requests_per_minute": 6, "requests_per_minute_per_user": 2, "requests_per_minute_per_api_key": 3,
        "requests_per_month": 100
    });
    platform.set_limits("several", limits).await;
    heard().await;
    for expected in [200, 200, 429, 429, 429] {
        assert_eq!(ask(&platform, &tenant).await.status.as_u16(), expected);
    }
    for expected in [200, 200, 200, 429, 429] {
        assert_eq!(complete(&platform, &key, "instant", false).await.status.as_u16(), expected);
    }
    // Of six, five are used: those that were refused used none, and none of the month either.
    let admin = platform.post("/api/v1/chat", &tenant.admin.access, json!({ "message": "hello" })).await;
    assert_eq!(admin.status, StatusCode::OK, "{}", admin.text);
    let admin = platform.post("/api/v1/chat", &tenant.admin.access, json!({ "message": "hello" })).await;
    assert_eq!(admin.status, StatusCode::TOO_MANY_REQUESTS);
    let quota = platform.get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(quota["requests_this_month"]["used"], 6, "{quota}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_is_counted_over_all_servers_and_ends_for_good() {
    let servers = servers(3, None).await;
    let tenant = servers[0].tenant("months").await;
    let key = api_key(&servers[0], &tenant).await;
    servers[0].set_limits("months", json!({ "requests_per_month": 30 })).await;
    heard().await;
    let first = ask(&servers[0], &tenant).await;
    assert_eq!(first.body["queries_remaining"], 29, "{}", first.text);
    let shown = servers[1].get("/platform/v1/tenants/months", &servers[1].token).await.expect(StatusCode::OK);
    let month = &shown["requests_this_month"];
    assert_eq!((&month["limit"], &month["used"]), (&json!(30), &json!(1)), "{shown}");
    // Told again by another server, it says the same.
    let body = json!({ "message": "hello", "stream": true, "model": "instant" });
    let streamed = servers[0].post("/api/v1/chat", &tenant.user.access, body).await;
    let told = events(&streamed.text);
    let done: Value = serde_json::from_str(&told.iter().find(|(name, _)| name == "done").unwrap().1).unwrap();
    assert_eq!(done["queries_remaining"], 28, "{done}");
    let path = format!("/api/v1/chat/{}/events", done["message_id"].as_str().unwrap());
    let again = servers[1].get(&path, &tenant.user.access).await;
    let without = |text: &str| text.replace(": heartbeat\n\n", "");
    assert_eq!(without(&again.text), without(&streamed.text));
    // What fails before it has delivered anything is given back; what breaks off is not.
    // Not often enough for the key to be left alone.
    for _ in 0..4 {
        assert_eq!(complete(&servers[1], &key, "error-500", false).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let broken = complete(&servers[1], &key, "midway-error", true).await;
    assert!(
        broken.text.contains("\"content\"") && broken.text.contains("\"error\""),
        "{} {}",
        broken.status,
        broken.text
    );
    let shown = async || servers[2].get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
    let mut quota = shown().await;
    // On record when the end is told, or, on a busy machine, a moment later.
    for _ in 0..5 {
        if quota["requests_this_month"]["used"] == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        quota = shown().await;
    }
    assert_eq!((&quota["plan"], &quota["requests_this_month"]["limit"]), (&json!("pro"), &json!(30)));
    assert_eq!(quota["requests_this_month"]["used"], 3, "{quota}");
    assert_eq!(quota["requests_this_month"]["remaining"], 27, "{quota}");
    assert!(quota["requests_this_month"]["resets_at"].as_str().unwrap().ends_with("-01T00:00:00Z"), "{quota}");
    let answers = join_all((0..60).map(|number| ask(&servers[number % 3], &tenant))).await;
    let answered = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(answered, 27);
    for answer in answers.into_iter().filter(|answer| answer.status != StatusCode::OK) {
        assert_eq!((header(&answer, "x-should-retry"), header(&answer, "retry-after")), (Some("false"), None));
        assert_eq!(answer.expect_problem(StatusCode::TOO_MANY_REQUESTS), "quota_exceeded");
    }
    let refused = complete(&servers[2], &key, "instant", true).await;
    let error = &refused.body["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("insufficient_quota"), &json!("quota_exceeded")));
    assert_eq!((header(&refused, "x-should-retry"), header(&refused, "retry-after")), (Some("false"), None));
    // More of it, and it goes on.
    servers[0].set_limits("months", json!({ "requests_per_month": 31 })).await;
    heard().await;
    assert_eq!(ask(&servers[1], &tenant).await.body["queries_remaining"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_used_is_seen_by_a_server_that_thinks_it_is_alone() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("not-alone").await;
    platform.set_limits("not-alone", json!({ "requests_per_month": 100, "requests_per_minute": "unlimited" })).await;
    heard().await;
    let registry = platform.platform_client().await;
    let used = async || {
        let sql = "SELECT (account->>'used')::bigint FROM limit_accounts WHERE key LIKE 'quota:%'";
        registry.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    for expected in 1..=3 {
        assert_eq!(ask(&platform, &tenant).await.status, StatusCode::OK);
        until(async || used().await == expected).await;
    }
    // As another server would write it, between two of this one's statements.
    let sql =
        "UPDATE limit_accounts SET account = jsonb_set(account, '{used}', to_jsonb((account->>'used')::bigint + 90))
               WHERE key LIKE 'quota:%'";
    assert_eq!(registry.execute(sql, &[]).await.unwrap(), 1);
    for expected in 94..=100 {
        assert_eq!(ask(&platform, &tenant).await.status, StatusCode::OK);
        until(async || used().await == expected).await;
    }
    assert_eq!(ask(&platform, &tenant).await.expect_problem(StatusCode::TOO_MANY_REQUESTS), "quota_exceeded");
    assert_eq!(used().await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_within_a_round_keeps_the_others_waiting_for_a_moment_only() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("frozen").await;
    // So few that none is fetched ahead: each request needs a round.
    platform.set_limits("frozen", json!({ "requests_per_month": 50, "requests_per_minute": "unlimited" })).await;
    heard().await;
    assert_eq!(ask(&platform, &tenant).await.status, StatusCode::OK);
    // Another server, which has locked the account to settle it, and then says nothing more.
    let pool = freehold::limits::pool(&platform.state.config.platform_database_url);
    let mut frozen = pool.begin().await.unwrap();
    let lock = "SELECT key FROM limit_accounts WHERE key LIKE 'quota:%' FOR UPDATE";
    assert_eq!(sqlx::raw_sql(lock).fetch_all(&mut *frozen).await.unwrap().len(), 1);
    let begun = Instant::now();
    assert_eq!(ask(&platform, &tenant).await.expect(StatusCode::OK)["queries_remaining"], 48);
    assert!(begun.elapsed() > Duration::from_millis(500), "it waited for the lock");
    assert!(sqlx::raw_sql(lock).fetch_all(&mut *frozen).await.is_err(), "its transaction was broken off");
}

/// Waits for something that comes to be true within moments.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to be true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_leaves_what_it_held_to_the_others() {
    let servers = servers(2, None).await;
    let tenant = servers[0].tenant("left").await;
    servers[0].set_limits("left", json!({ "requests_per_month": 5000 })).await;
    heard().await;
    for server in &servers {
        assert_eq!(ask(server, &tenant).await.status, StatusCode::OK);
    }
    let client = servers[0].platform_client().await;
    let held = async || -> Value {
        let sql = "SELECT account FROM limit_accounts WHERE key LIKE 'quota:%'";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    assert_eq!(held().await["leases"].as_object().unwrap().len(), 2);
    servers[1].state.stop.cancel();
    let gone = "SELECT count(*) FROM limit_servers WHERE is_gone";
    for _ in 0..100 {
        if client.query_one(gone, &[]).await.unwrap().get::<_, i64>(0) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The next list that the other one reads says so.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    for _ in 0..10 {
        assert_eq!(ask(&servers[0], &tenant).await.status, StatusCode::OK);
    }
    let account = held().await;
    assert_eq!((account["leases"].as_object().unwrap().len(), &account["used"]), (1, &json!(12)), "{account}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_platforms_database_is_away_only_what_is_at_hand_is_used() {
    let database = server().await.create_platform_database().await;
    let (line, url) = Proxy::to(&server().await.url(&database)).await;
    let settings = [("PLATFORM_DATABASE_URL", url.as_str())];
    let near =
        Platform::start_with(Options { settings: &settings, database: Some(database), ..Options::default() }).await;
    let body = json!({ "name": "local", "admin_url": server().await.url("postgres") });
    near.post("/platform/v1/clusters", &near.token, body).await.expect(StatusCode::CREATED);
    let (rates, quota, new) = (near.tenant("rates").await, near.tenant("quota").await, near.tenant("new").await);
    near.set_limits("rates", json!({ "requests_per_minute": 5 })).await;
    near.set_limits("quota", json!({ "requests_per_month": 3000 })).await;
    near.set_limits("new", json!({ "requests_per_minute": 5 })).await;
    heard().await;
    for tenant in [&rates, &quota] {
        assert_eq!(ask(&near, tenant).await.status, StatusCode::OK);
    }
    assert_eq!(near.get("/api/v1/me", &new.user.access).await.status, StatusCode::OK);
    // What is fetched ahead is there.
    heard().await;
    line.set(Line::Cut);
    // Its share of the rate, which is all of it.
    for expected in [200, 200, 200, 200, 429, 429] {
        assert_eq!(ask(&near, &rates).await.status.as_u16(), expected);
    }
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let answer = ask(&near, &quota).await;
        statuses.push(answer.status.as_u16());
        if answer.status != StatusCode::OK {
            assert!(header(&answer, "retry-after").is_some());
            assert_eq!(answer.expect_problem(StatusCode::SERVICE_UNAVAILABLE), "limits_unavailable");
        }
    }
    // A thousandth of 3000 was at hand.
    assert_eq!(statuses, [200, 200, 200, 503, 503, 503]);
    assert_eq!(ask(&near, &new).await.expect_problem(StatusCode::SERVICE_UNAVAILABLE), "limits_unavailable");
    line.set(Line::Open);
    let mut tries = 0;
    while ask(&near, &quota).await.status != StatusCode::OK {
        tries += 1;
        assert!(tries < 100, "the limits do not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What was answered meanwhile is on record by now.
    let shown = near.get("/api/v1/quota", &quota.user.access).await.expect(StatusCode::OK);
    assert_eq!(shown["requests_this_month"]["used"], 5, "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feature_that_the_plan_lacks_is_refused_by_name() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("features").await;
    let key = api_key(&platform, &tenant).await;
    let set = async |body: Value| {
        let path = "/platform/v1/tenants/features";
        let shown = platform.send(Method::PATCH, path, &platform.token, Some(body)).await.expect(StatusCode::OK);
        heard().await;
        shown
    };
    assert_eq!(complete(&platform, &key, "instant", false).await.status, StatusCode::OK);
    set(json!({ "plan": "free" })).await;
    let refused = complete(&platform, &key, "instant", false).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let error = &refused.body["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("permission_error"), &json!("feature_not_in_plan")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`free`") && message.contains("`api`"), "{message}");
    // What is set for the tenant comes before its plan, one by one.
    set(json!({ "limits": { "features": { "api": true } } })).await;
    let shown = set(json!({ "limits": { "features": { "vision": false }, "connections": 4 } })).await;
    assert_eq!(shown["limits"]["features"], json!({ "api": true, "vision": false }));
    assert_eq!(complete(&platform, &key, "instant", false).await.status, StatusCode::OK);
    let image = json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } });
    let body = json!({ "model": "instant", "messages": [{ "role": "user", "content": [image] }] });
    let refused = platform.post("/v1/chat/completions", &key, body.clone()).await;
    assert_eq!(
        (refused.status, &refused.body["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("feature_not_in_plan"))
    );
    let refused = platform.post("/v1/embeddings", &key, json!({ "model": "instant", "input": "x" })).await;
    assert_eq!(
        (refused.status, &refused.body["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("feature_not_in_plan"))
    );
    let shown = set(json!({ "plan": "pro", "limits": { "features": { "api": null, "vision": null } } })).await;
    assert_eq!(shown["limits"].get("features"), None);
    assert_eq!(platform.post("/v1/chat/completions", &key, body).await.status, StatusCode::OK);
    // Nonsense is refused.
    for limits in [json!({ "features": { "telepathy": true } }), json!({ "requests_per_minute": 0 })] {
        let path = "/platform/v1/tenants/features";
        let body = Some(json!({ "limits": limits }));
        let refused = platform.send(Method::PATCH, path, &platform.token, body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_limits_nothing_is_counted() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("unlimited").await;
    let answer = ask(&platform, &tenant).await;
    assert_eq!(header(&answer, "x-ratelimit-limit-requests"), None);
    assert_eq!(answer.expect(StatusCode::OK)["queries_remaining"], Value::Null);
    let quota = platform.get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(quota["requests_per_minute"], json!({ "limit": null, "remaining": null }));
    assert_eq!(quota["requests_this_month"]["used"], Value::Null);
    let client = platform.platform_client().await;
    let count = "SELECT count(*) FROM limit_accounts";
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_is_wrong_with_redis_and_not_the_password() {
    let examine = async |url: &str| {
        let platform = Platform::start_with(Options { settings: &[("REDIS_URL", url)], ..Options::default() }).await;
        let report = platform.get("/platform/v1/doctor", &platform.token).await.expect(StatusCode::OK);
        assert!(!report.to_string().contains("canary-password"), "{report}");
        let finding = report["findings"].as_array().unwrap().iter().find(|found| found["check"] == "Redis").cloned();
        finding.unwrap()
    };
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = examine(&format!("redis://user:canary-password@127.0.0.1:{free}")).await;
    assert_eq!((&away["level"], &away["seen"]), (&json!("warning"), &json!("nobody answers at its address")));
    assert!(away["remedy"].as_str().unwrap().contains("REDIS_URL"), "{away}");
    let Some(redis) = redis().await else { return };
    let well = examine(&redis.url).await;
    assert_eq!((&well["level"], &well["seen"]), (&json!("ok"), &json!("it answers")));
    let wrong = examine(&redis.url.replace("redis://", "redis://:canary-password@")).await;
    assert_eq!((&wrong["level"], &wrong["seen"]), (&json!("warning"), &json!("it refuses the user or password")));
}
