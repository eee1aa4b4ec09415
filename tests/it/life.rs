//! Suspended, resumed, deleted, taken back, and gone for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use freehold::clock::SharedClock;
use freehold::secrets::{Location, MasterKeyring, Sealed};
use freehold::tenant_db::GenericClient;
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{self, Options, PASSWORD, Platform, Tenant, connect, events, server};

fn path(slug: &str, what: &str) -> String {
    format!("/platform/v1/tenants/{slug}/{what}")
}

impl Platform {
    /// Asks for something about a tenant's life and waits until its operation has succeeded.
    async fn live(&self, slug: &str, what: &str) -> Value {
        let body = if what == "suspend" { json!({ "reason": "unpaid" }) } else { json!({}) };
        let answer = self.post(&path(slug, what), &self.token, body).await.expect(StatusCode::ACCEPTED);
        let settled = self.settled(&answer["operation"]).await;
        assert_eq!(settled["state"], "succeeded", "{settled}");
        answer
    }

    async fn delete_tenant(&self, slug: &str, query: &str) -> harness::Answer {
        let path = format!("/platform/v1/tenants/{slug}?confirm={slug}{query}");
        self.send(Method::DELETE, &path, &self.token, None).await
    }

    async fn state_of(&self, slug: &str) -> String {
        let tenant = self.get(&format!("/platform/v1/tenants/{slug}"), &self.token).await.expect(StatusCode::OK);
        tenant["state"].as_str().unwrap().to_owned()
    }
}

/// Whether each of the tenant's login roles may sign in, and how many sessions they have.
async fn logins(tenant: &Tenant) -> (Vec<bool>, i64) {
    let like = format!("%{}%", tenant.id.simple().to_string().split_at(20).1);
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let sql = "SELECT rolcanlogin FROM pg_roles WHERE rolname LIKE $1 AND rolname NOT LIKE '%owner' ORDER BY rolname";
    let may = cluster.query(sql, &[&like]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE $1";
    (may, cluster.query_one(sql, &[&like]).await.unwrap().get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_stop_answering_within_a_second_and_resume() {
    let first = Platform::start().await;
    let tenant = first.tenant("seen-by-two").await;
    let options = Options { database: Some(first.database.clone()), ..Options::default() };
    let second = Platform::start_with(options).await;
    // Both serve it, each from its own cache and pool.
    for platform in [&first, &second] {
        platform.get("/api/v1/me", &tenant.user.access).await.expect(StatusCode::OK);
    }
    assert_eq!(logins(&tenant).await.0, [true]);
    let asked = Instant::now();
    let last_answers = futures::future::join_all([&first, &second].map(|platform| {
        let access = tenant.user.access.clone();
        async move {
            let mut last = None;
            while asked.elapsed() < Duration::from_secs(3) {
                let answer = platform.get("/api/v1/me", &access).await;
                match answer.status {
                    StatusCode::OK => last = Some(asked.elapsed()),
                    StatusCode::FORBIDDEN => {
                        assert_eq!(answer.body["code"], "tenant_suspended", "{}", answer.text);
                        return last.unwrap_or_default();
                    }
                    // A statement that was under way when its session was ended.
                    status => assert!(status.is_server_error(), "{status} {}", answer.text),
                }
            }
            panic!("it goes on answering")
        }
    }));
    let suspend = async { first.live("seen-by-two", "suspend").await };
    let (last_answers, suspended) = tokio::join!(last_answers, suspend);
    harness::announce(&format!("suspension: last answers of two servers after {last_answers:?}"));
    assert!(last_answers.iter().all(|last| *last < Duration::from_secs(1)), "{last_answers:?}");
    // The registry says so from the moment the request was accepted.
    assert_eq!(suspended["tenant"]["state"], "suspended");
    assert_eq!(suspended["tenant"]["suspend_reason"], "unpaid");
    assert!(suspended["tenant"]["suspended_at"].is_string());
    assert_eq!(logins(&tenant).await, (vec![false], 0));
    // Asking again changes nothing; nobody signs in, and nobody who is a stranger learns why.
    let again = first.post(&path("seen-by-two", "suspend"), &first.token, json!({})).await.expect(StatusCode::OK);
    assert_eq!(again["operation"], Value::Null);
    let login = json!({ "tenant": "seen-by-two", "email": tenant.user_email, "password": PASSWORD });
    first.post("/api/v1/auth/login", "", login).await.expect_problem(StatusCode::UNAUTHORIZED);
    let invite = first.post(&path("seen-by-two", "invites"), &first.token, json!({})).await;
    assert_eq!(invite.expect_problem(StatusCode::FORBIDDEN), "tenant_suspended");

    second.live("seen-by-two", "resume").await;
    assert_eq!(logins(&tenant).await.0, [true]);
    for platform in [&first, &second] {
        wait_for(platform, &tenant, StatusCode::OK).await;
    }
    let shown = first.get("/platform/v1/tenants/seen-by-two", &first.token).await.expect(StatusCode::OK);
    assert_eq!((&shown["suspended_at"], &shown["suspend_reason"]), (&Value::Null, &Value::Null));
    let again = first.post(&path("seen-by-two", "resume"), &first.token, json!({})).await.expect(StatusCode::OK);
    assert_eq!(again["operation"], Value::Null);
}

/// Waits until a server answers the tenant's user with this status.
async fn wait_for(platform: &Platform, tenant: &Tenant, status: StatusCode) {
    for _ in 0..100 {
        if platform.get("/api/v1/me", &tenant.user.access).await.status == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not come to answer {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_misses_the_news_is_locked_out_of_the_database() {
    let first = Platform::start().await;
    let tenant = first.tenant("news-missed").await;
    let options = Options { database: Some(first.database.clone()), ..Options::default() };
    let deaf = Platform::start_with(options).await;
    deaf.get("/api/v1/me", &tenant.user.access).await.expect(StatusCode::OK);
    // Its task that listens hears nothing any more; the record in its cache stays active.
    deaf.state.stop.cancel();
    let record = deaf.state.directory.by_id(tenant.id.to_string().parse().unwrap()).await.unwrap().unwrap();
    let db = deaf.state.databases.open(record).unwrap();
    drop(db.client().await.unwrap());
    first.live("news-missed", "suspend").await;
    assert_eq!(logins(&tenant).await, (vec![false], 0));
    let answered = match db.client().await {
        Ok(client) => client.query("SELECT 1", &[]).await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered, "a connection is left");
    assert!(db.client().await.is_err(), "and a new one can be had");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_under_way_ends_when_its_tenant_is_suspended() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("mid-answer").await;
    platform.offer(&tenant, &["drip-300"]).await;
    let question = |stream: bool| {
        let words = "one two three four five six seven eight nine ten eleven twelve";
        let body = json!({ "message": format!("{words} {stream}"), "stream": stream });
        platform
            .client
            .post(format!("{}/api/v1/chat", platform.url))
            .bearer_auth(&tenant.user.access)
            .json(&body)
            .send()
    };
    let (streamed, whole) = tokio::join!(question(true), async {
        let suspend = async {
            tokio::time::sleep(Duration::from_millis(900)).await;
            platform.live("mid-answer", "suspend").await
        };
        tokio::join!(question(false), suspend).0
    });
    let begun = Instant::now();
    let mut stream = streamed.unwrap().bytes_stream();
    let mut text = String::new();
    while let Some(bytes) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&bytes.unwrap()));
    }
    assert!(begun.elapsed() < Duration::from_secs(3));
    let (name, data) = events(&text).pop().unwrap();
    assert_eq!(name, "error", "{text}");
    assert!(data.contains("tenant_suspended"), "{data}");
    let whole = whole.unwrap();
    assert_eq!(whole.status(), StatusCode::FORBIDDEN);
    assert_eq!(whole.json::<Value>().await.unwrap()["code"], "tenant_suspended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tenant_comes_back_as_what_it_was_until_it_is_purged() {
    let clock = harness::manual_clock();
    let shared: SharedClock = Arc::<freehold::clock::ManualClock>::clone(&clock);
    let mut platform = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = platform.tenant("comes-back").await;
    // Not without its name.
    let unsure = platform.send(Method::DELETE, "/platform/v1/tenants/comes-back", &platform.token, None).await;
    assert_eq!(unsure.expect(StatusCode::UNPROCESSABLE_ENTITY)["errors"][0]["field"], "confirm");
    let delete = async |platform: &Platform, query: &str| {
        let answer = platform.delete_tenant("comes-back", query).await.expect(StatusCode::ACCEPTED);
        let settled = platform.settled(&answer["operation"]).await;
        assert_eq!(settled["state"], "succeeded", "{settled}");
        answer
    };
    let deleted = delete(&platform, "").await;
    assert_eq!(deleted["tenant"]["state"], "deleting");
    let after: chrono::DateTime<chrono::Utc> =
        serde_json::from_value(deleted["tenant"]["delete_after"].clone()).unwrap();
    assert!((after - freehold::clock::Clock::now(&*clock) - TimeDelta::days(30)).num_minutes().abs() < 1);
    wait_for(&platform, &tenant, StatusCode::FORBIDDEN).await;
    let answer = platform.get("/api/v1/me", &tenant.user.access).await;
    assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "tenant_deleting");
    assert_eq!(logins(&tenant).await, (vec![false], 0));
    assert_eq!(platform.delete_tenant("comes-back", "").await.status, StatusCode::OK);
    for what in ["suspend", "resume"] {
        let refused = platform.post(&path("comes-back", what), &platform.token, json!({})).await;
        assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "wrong_tenant_state");
    }
    platform.live("comes-back", "undelete").await;
    wait_for(&platform, &tenant, StatusCode::OK).await;
    // A suspended one comes back suspended, and locked.
    platform.live("comes-back", "suspend").await;
    delete(&platform, "&grace_days=7").await;
    clock.advance(TimeDelta::days(6));
    platform.token = renewed(&platform).await;
    platform.live("comes-back", "undelete").await;
    assert_eq!(platform.state_of("comes-back").await, "suspended");
    assert_eq!(logins(&tenant).await.0, [false]);
    platform.live("comes-back", "resume").await;
    delete(&platform, "&grace_days=7").await;
    // A week and a moment later the scheduled task removes it.
    clock.advance(TimeDelta::days(7) + TimeDelta::minutes(2));
    platform.token = renewed(&platform).await;
    let mut left = 200;
    while platform.get("/platform/v1/tenants/comes-back", &platform.token).await.status != StatusCode::NOT_FOUND {
        left -= 1;
        assert!(left > 0, "it is not purged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gone(&platform, &tenant).await;
    let listed = platform.get("/platform/v1/tenants?state=deleted", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(listed["items"][0]["slug"], "comes-back");
    assert!(listed["items"][0]["deleted_at"].is_string());
    let answer = platform.post(&path("comes-back", "undelete"), &platform.token, json!({})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

/// A session that begins now: the clock was moved past the end of the one before.
async fn renewed(platform: &Platform) -> String {
    let session = platform.state.super_admins.sign_in(harness::ADMIN_EMAIL, &PASSWORD.into(), None).await.unwrap();
    session.token.expose().to_owned()
}

/// Nothing of a tenant is left but the record of what was.
async fn gone(platform: &Platform, tenant: &Tenant) {
    let like = format!("%{}%", tenant.id.simple().to_string().split_at(20).1);
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let left = "SELECT datname::text FROM pg_database WHERE datname LIKE $1
                UNION SELECT rolname::text FROM pg_roles WHERE rolname LIKE $1";
    let left: Vec<String> = cluster.query(left, &[&like]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(left.is_empty(), "{left:?}");
    let registry = platform.platform_client().await;
    for table in ["wrapped_keys", "tenant_databases", "signing_keys", "api_key_hashes"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant_id = $1");
        assert_eq!(registry.query_one(&sql, &[&tenant.id]).await.unwrap().get::<_, i64>(0), 0, "{table}");
    }
    let sql = "SELECT count(*) FROM idempotency_keys WHERE about = $1";
    assert_eq!(registry.query_one(sql, &[&tenant.id]).await.unwrap().get::<_, i64>(0), 0);
    let sql = "SELECT string_agg(input::text, ' ') FROM operations WHERE tenant_id = $1";
    let inputs: String = registry.query_one(sql, &[&tenant.id]).await.unwrap().get(0);
    assert!(!inputs.contains("invite") && !inputs.contains('@'), "{inputs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slug_used_again_meets_no_trace_of_the_former_and_destroyed_keys_open_no_copy() {
    let platform = Platform::start().await;
    // The invite of the first is kept for its idempotency key.
    let request = platform.client.post(format!("{}/platform/v1/tenants", platform.url)).bearer_auth(&platform.token);
    let kept = request.header("idempotency-key", "once").json(&harness::new_tenant("kept-answer")).send();
    let kept: Value = kept.await.unwrap().json().await.unwrap();
    platform.settled(&kept["operation"]).await;
    let former = platform.tenant("used-again").await;
    let registry = platform.platform_client().await;
    // What is sealed for it, as it lies in every copy that somebody may have made.
    let id = former.id.to_string().parse().unwrap();
    let sql =
        "SELECT d.url_sealed, s.id::text, s.secret_sealed FROM tenant_databases d JOIN signing_keys s USING (tenant_id)
               WHERE d.tenant_id = $1";
    let row = registry.query_one(sql, &[&former.id]).await.unwrap();
    let database = connect(&platform.tenant_database("used-again").await).await.unwrap();
    let ai_key = database.query_one("SELECT id, api_key_sealed FROM api_configurations", &[]).await.unwrap();
    let signing = freehold::tenant_db::signing_key_location(id, row.get::<_, String>(1).parse().unwrap());
    let ai_key_id: uuid::Uuid = ai_key.get(0);
    let copies = [
        (freehold::tenant_db::database_url_location(id), row.get::<_, Vec<u8>>(0)),
        (signing, row.get(2)),
        (Location::tenant(id, "api_configurations", "api_key_sealed", ai_key_id), ai_key.get(1)),
    ];
    // How many of them the keys open that the platform has.
    let opened = async || {
        let master = MasterKeyring::parse(&harness::MASTER_KEYS.to_owned().into()).unwrap();
        let mut opened = 0;
        for row in registry.query("SELECT tenant_id::text, version, wrapped_key FROM wrapped_keys", &[]).await.unwrap()
        {
            let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(2)).unwrap();
            let owner = row.get::<_, String>(0).parse().unwrap();
            let key = master.unwrap(owner, row.get::<_, i32>(1).cast_unsigned(), &wrapped).unwrap();
            opened += copies
                .iter()
                .filter(|(location, copy)| key.open(location, &Sealed::from_bytes(copy.clone()).unwrap()).is_ok())
                .count();
        }
        opened
    };
    assert_eq!(opened().await, 3);
    drop(database);
    for slug in ["used-again", "kept-answer"] {
        let answer = platform.delete_tenant(slug, "&grace_days=0").await.expect(StatusCode::ACCEPTED);
        assert_eq!(answer["operation"]["kind"], "purge_tenant");
        let settled = platform.settled(&answer["operation"]).await;
        assert_eq!(settled["state"], "succeeded", "{settled}");
    }
    gone(&platform, &former).await;
    let kept = Tenant { id: kept["tenant"]["id"].as_str().unwrap().parse().unwrap(), ..tenant_like(&former) };
    gone(&platform, &kept).await;
    // No operation of it is run again.
    let sql = "SELECT id::text FROM operations WHERE tenant_id = $1";
    for row in registry.query(sql, &[&former.id]).await.unwrap() {
        let retry = format!("/platform/v1/operations/{}/retry", row.get::<_, String>(0));
        let refused = platform.send(Method::POST, &retry, &platform.token, None).await;
        assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "tenant_gone");
    }
    // Its users are strangers, at once.
    let me = platform.get("/api/v1/me", &former.user.access).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED, "{}", me.text);
    assert!(platform.state.directory.gone().await.unwrap().is_empty(), "its record is remembered");
    platform.tenant("bystander").await;
    assert_eq!(opened().await, 0);

    let successor = platform.tenant("used-again").await;
    assert_ne!(successor.id, former.id);
    let me = platform.get("/api/v1/me", &successor.user.access).await.expect(StatusCode::OK);
    assert_eq!(me["tenant"]["slug"].as_str().unwrap_or("used-again"), "used-again");
    for token in [&former.user.access, &former.admin.access] {
        assert_eq!(platform.get("/api/v1/me", token).await.status, StatusCode::UNAUTHORIZED);
    }
    let sessions = platform.get("/api/v1/sessions", &successor.user.access).await.expect(StatusCode::OK);
    assert_eq!(sessions["items"], json!([]));
}

fn tenant_like(tenant: &Tenant) -> Tenant {
    Tenant {
        id: tenant.id,
        slug: tenant.slug.clone(),
        user_email: String::new(),
        user_id: String::new(),
        admin: tenant.admin.clone(),
        user: tenant.user.clone(),
        key: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_never_came_to_be_gives_its_slug_back() {
    let probe: freehold::operations::Probe = Arc::new(|at: &freehold::operations::Checkpoint| {
        use freehold::operations::CheckpointAction::{Continue, Fail};
        let is_there = at.step == "create_roles" && at.direction == freehold::operations::Direction::Run;
        if is_there { Fail } else { Continue }
    });
    let platform = Platform::start_with(Options { probe: Some(probe), ..Options::default() }).await;
    let answer = platform.request_tenant("never-was").await.expect(StatusCode::ACCEPTED);
    assert_eq!(platform.settled(&answer["operation"]).await["state"], "failed");
    assert_eq!(platform.request_tenant("never-was").await.expect_problem(StatusCode::CONFLICT), "slug_taken");
    for what in ["suspend", "resume", "undelete"] {
        let refused = platform.post(&path("never-was", what), &platform.token, json!({})).await;
        assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "wrong_tenant_state");
    }
    // There is nothing to wait for.
    let deleted = platform.delete_tenant("never-was", "").await.expect(StatusCode::ACCEPTED);
    assert_eq!(deleted["operation"]["kind"], "purge_tenant");
    assert_eq!(platform.settled(&deleted["operation"]).await["state"], "succeeded");
    platform.request_tenant("never-was").await.expect(StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_comes_second_is_told_who_holds_the_tenant() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("in-turn").await;
    platform.state.stop.cancel();
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let options = Options { settings, database: Some(platform.database.clone()), ..Options::default() };
    let idle = Platform::start_with(options).await;
    let asked = idle.post(&path("in-turn", "suspend"), &idle.token, json!({})).await.expect(StatusCode::ACCEPTED);
    // Nobody works on it, and it is out of service all the same.
    wait_for(&idle, &tenant, StatusCode::FORBIDDEN).await;
    let again = idle.post(&path("in-turn", "suspend"), &idle.token, json!({})).await.expect(StatusCode::ACCEPTED);
    assert_eq!(again["operation"]["id"], asked["operation"]["id"]);
    for what in ["resume", "undelete"] {
        let second = idle.post(&path("in-turn", what), &idle.token, json!({})).await.expect(StatusCode::CONFLICT);
        assert_eq!(
            (&second["code"], &second["operation_id"]),
            (&json!("operation_in_progress"), &asked["operation"]["id"])
        );
    }
    let refused = idle.delete_tenant("in-turn", "").await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "operation_in_progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plan_and_limits_are_changed_checked_cleared_and_recorded() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("limited").await;
    let set = async |body: Value| {
        platform.send(Method::PATCH, "/platform/v1/tenants/limited", &platform.token, Some(body)).await
    };
    let changed = set(json!({ "plan": "premium", "limits": { "connections": 3 } })).await.expect(StatusCode::OK);
    assert_eq!((&changed["plan"], &changed["limits"]["connections"]), (&json!("premium"), &json!(3)));
    let kept = set(json!({ "name": "Limited", "limits": {} })).await.expect(StatusCode::OK);
    assert_eq!(kept["limits"]["connections"], 3);
    for refused in [json!({ "connections": 0 }), json!({ "connections": 100_000 }), json!({ "speed": 1 })] {
        let answer = set(json!({ "limits": refused })).await;
        assert_eq!(answer.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request");
    }
    let cleared = set(json!({ "limits": { "connections": null } })).await.expect(StatusCode::OK);
    // Those of every tenant of these tests.
    let others = json!({ "requests_per_minute": "unlimited", "requests_per_month": "unlimited" });
    assert_eq!(cleared["limits"], others);
    platform.live("limited", "suspend").await;
    let sql = "SELECT action, detail FROM audit_events WHERE tenant_id = $1 AND actor_kind = 'super_admin' ORDER BY id";
    let recorded = platform.platform_client().await.query(sql, &[&tenant.id]).await.unwrap();
    let actions: Vec<&str> = recorded.iter().map(|row| row.get(0)).collect();
    // The first change is that of every tenant of these tests.
    let [created, _, changes @ .., suspended] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!((*created, changes, *suspended), ("tenant.create", &["tenant.update"; 3][..], "tenant.suspend"));
    let detail: Value = recorded[2].get(1);
    assert_eq!((&detail["plan"], &detail["limits"]["connections"]), (&json!("premium"), &json!(3)));
    assert_eq!(recorded[5].get::<_, Value>(1)["reason"], "unpaid");
}

/// A rotation that failed while the tenant was in service lets nobody in when it is retried after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_retried_after_a_suspension_opens_nothing() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("rotated-late").await;
    let registry = platform.platform_client().await;
    let id = uuid::Uuid::now_v7();
    let sql = "INSERT INTO operations (id, kind, tenant_id, input, state, created_at, finished_at)
               VALUES ($1, 'rotate_database_credential', $2, '{}', 'failed', now(), now())";
    registry.execute(sql, &[&id, &tenant.id]).await.unwrap();
    let sql = "INSERT INTO operation_steps (operation_id, position, name, state)
               SELECT $1, position::int, name, 'undone' FROM unnest(ARRAY['write_intent', 'set_password',
                   'test_connection', 'switch', 'grace', 'retire']) WITH ORDINALITY AS step (name, position)";
    registry.execute(sql, &[&id]).await.unwrap();
    platform.live("rotated-late", "suspend").await;
    let retry = format!("/platform/v1/operations/{id}/retry");
    let retry = platform.send(Method::POST, &retry, &platform.token, None).await.expect(StatusCode::ACCEPTED);
    let retried = platform.settled(&retry).await;
    assert_eq!((&retried["state"], &retried["error"]["code"]), (&json!("failed"), &json!("wrong_tenant_state")));
    assert_eq!(logins(&tenant).await, (vec![false], 0));
    platform.live("rotated-late", "resume").await;
    platform.login("rotated-late", &tenant.user_email).await;
}
