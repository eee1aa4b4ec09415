//! Credentials and keys are replaced while everybody goes on working.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use freehold::app::AppState;
use freehold::clock::{Clock as _, SharedClock, SystemClock};
use freehold::ids::TenantId;
use freehold::operations::{Checkpoint, CheckpointAction, Direction, Moment, Probe, RunError};
use freehold::rotation::SEALED_COLUMNS;
use freehold::secrets::{DataKey, Location, MasterKeyring, Sealed};
use freehold::tenant_db::{database_url_location, next_database_url_location};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{
    self, BOTH_MASTER_KEYS, MASTER_KEYS, Options, PASSWORD, Platform, Tenant, connect, fake_model, manual_clock, server,
};

/// The newer of the two master keys.
const SECOND_KEY: &str = "2:0d8Xq1mC5bJtY7oGz3sVhR9wKpLeUaNf4yBxIiQkT6c=";

impl Platform {
    /// Asks for a rotation; returns the answer.
    async fn rotate(&self, kind: &str, slug: &str) -> Value {
        let body = json!({ "kind": kind, "tenants": [slug] });
        self.post("/platform/v1/rotations", &self.token, body).await.expect(StatusCode::ACCEPTED)
    }

    async fn rotated(&self, kind: &str, slug: &str) {
        let answer = self.rotate(kind, slug).await;
        let settled = self.settled(&json!({ "id": answer["operations"][0] })).await;
        assert_eq!(settled["state"], "succeeded", "{settled}");
    }

    async fn ask_once(&self, tenant: &Tenant) -> (StatusCode, String) {
        let body = json!({ "message": "hello", "model": "instant" });
        let answer = self.post("/api/v1/chat", &tenant.user.access, body).await;
        (answer.status, answer.text)
    }
}

/// Requests of several kinds from several clients, until stopped. Counts those that failed.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(platform: &Platform, tenant: &Tenant) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..4)
            .map(|number| {
                let (stop, sent, client) = (Arc::clone(&stop), Arc::clone(&sent), platform.client.clone());
                let (url, token) = (platform.url.clone(), tenant.user.access.clone());
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::SeqCst) {
                        let request = if number % 2 == 0 {
                            client
                                .post(format!("{url}/api/v1/chat"))
                                .json(&json!({ "message": "hi", "model": "instant" }))
                        } else {
                            client.get(format!("{url}/api/v1/sessions"))
                        };
                        let response = request.bearer_auth(&token).send().await.unwrap();
                        if response.status() != StatusCode::OK {
                            failures.push(format!("{}: {}", response.status(), response.text().await.unwrap()));
                        }
                        sent.fetch_add(1, Ordering::SeqCst);
                        // The load is there to be met by the rotation, not to starve a small machine.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    failures
                })
            })
            .collect();
        Self { stop, sent, clients }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        let sent = self.sent.load(Ordering::SeqCst);
        assert!(sent > 10, "only {sent} requests were sent");
        assert!(failures.is_empty(), "{} of {sent} requests failed: {:?}", failures.len(), failures.first());
    }
}

/// What the platform has of a tenant's credentials, opened.
struct Credentials {
    login_role: String,
    url: String,
    next_url: Option<String>,
    retiring: Option<String>,
}

async fn data_keys(platform: &Platform, tenant: Uuid, keyring: &MasterKeyring) -> Vec<DataKey> {
    let rows = platform
        .platform_client()
        .await
        .query("SELECT version, wrapped_key FROM wrapped_keys WHERE tenant_id = $1 ORDER BY version", &[&tenant])
        .await
        .unwrap();
    let open = |row: &tokio_postgres::Row| {
        let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(1)).unwrap();
        let version = u32::try_from(row.get::<_, i32>(0)).unwrap();
        keyring.unwrap(TenantId::from_uuid(tenant), version, &wrapped).unwrap()
    };
    rows.iter().map(open).collect()
}

async fn credentials(platform: &Platform, tenant: Uuid) -> Credentials {
    let keys = data_keys(platform, tenant, &platform.state.config.master_keys).await;
    let row = platform
        .platform_client()
        .await
        .query_one(
            "SELECT login_role, url_sealed, next_url_sealed, retiring_login_role FROM tenant_databases
             WHERE tenant_id = $1",
            &[&tenant],
        )
        .await
        .unwrap();
    let open = |location: &Location, bytes: Vec<u8>| {
        let sealed = Sealed::from_bytes(bytes).unwrap();
        let key = keys.iter().find(|key| key.version() == sealed.key_version()).unwrap();
        key.open_str(location, &sealed).unwrap().expose_secret().to_owned()
    };
    let id = TenantId::from_uuid(tenant);
    Credentials {
        login_role: row.get(0),
        url: open(&database_url_location(id), row.get(1)),
        next_url: row.get::<_, Option<Vec<u8>>>(2).map(|bytes| open(&next_database_url_location(id), bytes)),
        retiring: row.get(3),
    }
}

/// Runs an operation here, and moves the clock on whenever it has to wait. Stops where the probe panics.
async fn run(platform: &Platform, operation: &Value, settings: &[(&str, &str)], probe: Option<Probe>) -> bool {
    let config = harness::config(&server().await.url(&platform.database), settings);
    let clock = manual_clock();
    let state = AppState::build(config, clock.clone(), probe).unwrap();
    let id = operation.as_str().unwrap().parse().unwrap();
    let engine = Arc::clone(&state.engine);
    let run = tokio::spawn(async move {
        while let Err(error) = engine.run(id).await {
            let RunError::NotBefore(at) = error else { panic!("{error:?}") };
            clock.set(at);
        }
    });
    let ended = run.await.is_ok();
    state.pool.close().await;
    ended
}

/// A probe by which the worker dies before a step, as far as the step can tell.
fn dies_before(step: &'static str) -> Option<Probe> {
    Some(Arc::new(move |at: &Checkpoint| {
        let here = at.step == step && at.direction == Direction::Run && at.moment == Moment::Before;
        assert!(!here, "the worker dies here");
        CheckpointAction::Continue
    }))
}

const NO_WORKER: (&str, &str) = ("FREEHOLD_WORKER_CONCURRENCY", "0");
const GRACE: (&str, &str) = ("FREEHOLD_ROTATION_GRACE_SECONDS", "1");

/// A platform whose operations are carried out only by [`run`], with a tenant that was made before.
async fn without_worker(slug: &str) -> (Platform, Tenant) {
    let platform = Platform::start().await;
    let tenant = platform.tenant(slug).await;
    platform.state.stop.cancel();
    let options = Options { settings: &[NO_WORKER], database: Some(platform.database.clone()), ..Options::default() };
    (Platform::start_with(options).await, tenant)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_password_is_replaced_while_requests_go_on() {
    let platform = Platform::start_with(Options { settings: &[GRACE], ..Options::default() }).await;
    let tenant = platform.tenant("rotating").await;
    let before = credentials(&platform, tenant.id).await;
    connect(&before.url).await.unwrap();
    let load = Load::start(&platform, &tenant);
    platform.rotated("database", &tenant.slug).await;
    let between = credentials(&platform, tenant.id).await;
    platform.rotated("database", &tenant.slug).await;
    load.stop().await;
    let after = credentials(&platform, tenant.id).await;
    // The two roles took turns; each password but the last is gone for good.
    assert_ne!(before.login_role, between.login_role);
    assert_eq!(before.login_role, after.login_role);
    assert!(before.url != after.url && after.next_url.is_none() && after.retiring.is_none());
    for old in [&before.url, &between.url] {
        let error = connect(old).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains("password authentication failed"), "{error:?}");
    }
    let client = connect(&after.url).await.unwrap();
    let roles = client
        .query_one(
            "SELECT current_user, array_agg(rolname::text) FILTER (WHERE rolcanlogin) FROM pg_roles
             WHERE rolname LIKE current_database() || '\\_%'",
            &[],
        )
        .await
        .unwrap();
    assert!(roles.get::<_, String>(0).ends_with("_owner"));
    assert_eq!(roles.get::<_, Vec<String>>(1), [after.login_role]);
    // The record of it, without a secret.
    let show = platform.get("/platform/v1/tenants/rotating", &platform.token).await.expect(StatusCode::OK);
    assert!(show["rotations"][1]["last_at"].is_string() && show["rotations"][1]["kind"] == "database", "{show}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_midway_leaves_credentials_that_work_and_another_goes_on() {
    let (platform, tenant) = without_worker("dying").await;
    let before = credentials(&platform, tenant.id).await;
    let answer = platform.rotate("database", &tenant.slug).await;
    assert!(!run(&platform, &answer["operations"][0], &[], dies_before("test_connection")).await);
    let midway = credentials(&platform, tenant.id).await;
    let next = midway.next_url.unwrap();
    assert_eq!(midway.url, before.url);
    connect(&before.url).await.unwrap();
    connect(&next).await.unwrap();
    assert!(!run(&platform, &answer["operations"][0], &[], dies_before("retire")).await);
    let switched = credentials(&platform, tenant.id).await;
    // The password that was written down first is the one in use: none was lost.
    assert_eq!((switched.url.as_str(), switched.retiring), (next.as_str(), Some(before.login_role)));
    connect(&before.url).await.unwrap();
    assert!(run(&platform, &answer["operations"][0], &[], None).await);
    connect(&next).await.unwrap();
    assert!(connect(&before.url).await.is_err());
    assert_eq!(platform.ask_once(&tenant).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_fails_leaves_the_old_password_and_nothing_else() {
    let (platform, tenant) = without_worker("failing").await;
    let before = credentials(&platform, tenant.id).await;
    for step in ["write_intent", "set_password", "test_connection"] {
        let answer = platform.rotate("database", &tenant.slug).await;
        let fails: Probe = Arc::new(move |at: &Checkpoint| {
            let here = at.step == step && at.direction == Direction::Run && at.moment == Moment::After;
            if here { CheckpointAction::Fail } else { CheckpointAction::Continue }
        });
        assert!(run(&platform, &answer["operations"][0], &[], Some(fails)).await);
        let after = credentials(&platform, tenant.id).await;
        assert_eq!((&after.url, after.next_url, after.retiring), (&before.url, None, None), "{step}");
        let client = connect(&after.url).await.unwrap();
        let sql = "SELECT count(*) FROM pg_roles WHERE rolname LIKE current_database() || '\\__' AND rolcanlogin";
        assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1, "{step}");
    }
}

/// An AI key's row as a server would have sealed it that knows only this data key.
async fn put_ai_key_under(platform: &Platform, tenant: &Tenant, name: &str, key: &DataKey) {
    let id = Uuid::now_v7();
    let location = Location::tenant(TenantId::from_uuid(tenant.id), "api_configurations", "api_key_sealed", id);
    let sealed = key.seal_str(&location, &SecretString::from(tenant.key.as_str())).into_bytes();
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "INSERT INTO api_configurations
                   (id, name, provider, base_url, api_key_sealed, api_key_hint, models, default_model, created_at, updated_at)
               VALUES ($1, $2, 'openai_compatible', $3, $4, '', '{late-model}', 'late-model', now(), now())";
    database.execute(sql, &[&id, &name, &fake_model().await.base_url(), &sealed]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_key_is_replaced_and_a_late_writer_loses_nothing() {
    let (platform, tenant) = without_worker("sealed").await;
    let keyring = MasterKeyring::parse(&SecretString::from(MASTER_KEYS)).unwrap();
    let old = data_keys(&platform, tenant.id, &keyring).await.pop().unwrap();
    let load = Load::start(&platform, &tenant);
    let answer = platform.rotate("data_key", &tenant.slug).await;
    let operation = &answer["operations"][0];
    // Known to every server before it seals.
    assert!(!run(&platform, operation, &[], dies_before("activate_key")).await);
    put_ai_key_under(&platform, &tenant, "before", &old).await;
    assert!(!run(&platform, operation, &[], dies_before("delete_old_keys")).await);
    let keys = data_keys(&platform, tenant.id, &keyring).await;
    assert_eq!(keys.iter().map(DataKey::version).collect::<Vec<_>>(), [1, 2]);
    // A server that has heard of nothing stores an AI key now, between the pass and the deletion.
    put_ai_key_under(&platform, &tenant, "late", &old).await;
    assert!(run(&platform, operation, &[], None).await);
    load.stop().await;
    let keys = data_keys(&platform, tenant.id, &keyring).await;
    assert_eq!(keys.iter().map(DataKey::version).collect::<Vec<_>>(), [2]);
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let rows = database.query("SELECT name, id, api_key_sealed FROM api_configurations", &[]).await.unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        let (name, id): (String, Uuid) = (row.get(0), row.get(1));
        let location = Location::tenant(TenantId::from_uuid(tenant.id), "api_configurations", "api_key_sealed", id);
        let sealed = Sealed::from_bytes(row.get::<_, Vec<u8>>(2)).unwrap();
        assert_eq!(keys[0].open_str(&location, &sealed).unwrap().expose_secret(), tenant.key, "{name}");
        assert!(old.open(&location, &sealed).is_err(), "{name}");
    }
    // What was sealed before opens, and what is sealed now is under the new key.
    assert_eq!(platform.ask_once(&tenant).await.0, StatusCode::OK);
    platform.login(&tenant.slug, &tenant.user_email).await;
    let body = json!({
        "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
        "models": ["echo"], "default_model": "echo"
    });
    platform.send(Method::PUT, "/api/v1/ai-keys/new", &tenant.admin.access, Some(body)).await.expect_success();
    let sql = "SELECT count(*) FROM api_configurations WHERE get_byte(api_key_sealed, 4) <> 2";
    assert_eq!(database.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// Whoever stores an AI key asks which key seals, even where the cached record does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_missed_the_news_seals_with_the_key_in_force() {
    let (platform, tenant) = without_worker("unheard").await;
    let answer = platform.rotate("data_key", &tenant.slug).await;
    let config = harness::config(&server().await.url(&platform.database), &[NO_WORKER]);
    // A server that listens to nothing: its records stay as they were read first.
    let deaf = AppState::build(config, SystemClock::shared(), None).unwrap();
    let record = deaf.directory.by_slug(&tenant.slug.parse().unwrap()).await.unwrap().unwrap();
    assert!(!run(&platform, &answer["operations"][0], &[], dies_before("reseal")).await);
    let db = deaf.databases.open(record).unwrap();
    let new = freehold::configuration::NewAiKey {
        provider: "openai_compatible".to_owned(),
        base_url: Some(fake_model().await.base_url()),
        api_key: SecretString::from("unheard"),
        models: vec!["m".to_owned()],
        default_model: "m".to_owned(),
        model_aliases: std::collections::BTreeMap::new(),
        position: None,
        enabled: None,
    };
    deaf.ai_keys.put(&db, "unheard", new).await.unwrap();
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "SELECT get_byte(api_key_sealed, 4) FROM api_configurations WHERE name = 'unheard'";
    assert_eq!(database.query_one(sql, &[]).await.unwrap().get::<_, i32>(0), 2);
    assert!(run(&platform, &answer["operations"][0], &[], None).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_replaced_signing_key_are_good_until_they_expire() {
    let first = Platform::start().await;
    let tenant = first.tenant("signing").await;
    first.state.stop.cancel();
    let clock = manual_clock();
    let shared: SharedClock = clock.clone();
    let options = Options {
        settings: &[NO_WORKER],
        clock: Some(shared),
        database: Some(first.database.clone()),
        ..Options::default()
    };
    let platform = Platform::start_with(options).await;
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let old = platform.login(&tenant.slug, &tenant.user_email).await;
    let answer = platform.rotate("signing_key", &tenant.slug).await;
    let id = answer["operations"][0].as_str().unwrap().parse().unwrap();
    let engine = &platform.state.engine;
    assert!(matches!(engine.run(id).await, Err(RunError::NotBefore(_))));
    // At once, on a server that hears of it.
    let new = loop {
        let new = platform.login(&tenant.slug, &tenant.user_email).await;
        if kid(&new.access) != kid(&old.access) {
            break new;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for token in [&old.access, &new.access] {
        platform.get("/api/v1/me", token).await.expect(StatusCode::OK);
    }
    clock.advance(TimeDelta::minutes(14));
    assert!(matches!(engine.run(id).await, Err(RunError::NotBefore(_))));
    platform.get("/api/v1/me", &old.access).await.expect(StatusCode::OK);
    clock.advance(TimeDelta::minutes(4));
    engine.run(id).await.unwrap();
    platform.get("/api/v1/me", &old.access).await.expect(StatusCode::UNAUTHORIZED);
    let sql = "SELECT count(*), count(retired_at) FROM signing_keys WHERE tenant_id = $1";
    let row = platform.platform_client().await.query_one(sql, &[&tenant.id]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 0));
    // Whoever was signed in stays so.
    let body = json!({ "refresh_token": old.refresh });
    platform.post("/api/v1/auth/refresh", "", body).await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_master_key_rotation_the_old_key_is_needed_no_more() {
    let first = Platform::start().await;
    let tenants = [first.tenant("wrapped-one").await, first.tenant("wrapped-two").await];
    let database = first.database.clone();
    // With an answer kept under the old key.
    let request = || {
        let request = first.client.post(format!("{}/platform/v1/tenants", first.url)).bearer_auth(&first.token);
        request.header("Idempotency-Key", "kept").json(&harness::new_tenant("wrapped-three"))
    };
    let kept: Value = request().send().await.unwrap().json().await.unwrap();
    first.settled(&kept["operation"]).await;
    let refused = first.post("/platform/v1/rotations", &first.token, json!({ "kind": "master_key" })).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "nothing_to_rotate");
    first.state.stop.cancel();

    let settings = &[NO_WORKER, ("FREEHOLD_MASTER_KEYS", BOTH_MASTER_KEYS)];
    let both = Platform::start_with(Options { settings, database: Some(database.clone()), ..Options::default() }).await;
    let load = Load::start(&both, &tenants[0]);
    let answer = both.post("/platform/v1/rotations", &both.token, json!({ "kind": "master_key" })).await;
    let answer = answer.expect(StatusCode::ACCEPTED);
    let operation = &answer["operations"][0];
    // Killed midway, then by one that lacks the key, then done.
    assert!(!run(&both, operation, settings, dies_before("reseal_cluster_urls")).await);
    assert!(run(&both, operation, settings, None).await);
    load.stop().await;
    let list = both.get("/platform/v1/master-keys", &both.token).await.expect(StatusCode::OK);
    assert_eq!((&list["primary"], &list["items"][0]["values"]), (&json!(2), &json!(0)), "{list}");
    assert!(list["items"][1]["values"].as_u64().unwrap() >= 4, "{list}");
    both.state.stop.cancel();

    let settings = &[("FREEHOLD_MASTER_KEYS", SECOND_KEY)];
    let only_new =
        Platform::start_with(Options { settings, database: Some(database.clone()), ..Options::default() }).await;
    for tenant in &tenants {
        assert_eq!(only_new.ask_once(tenant).await.0, StatusCode::OK);
    }
    only_new.tenant("wrapped-four").await;
    let again = only_new.client.post(format!("{}/platform/v1/tenants", only_new.url)).bearer_auth(&only_new.token);
    let again = again.header("Idempotency-Key", "kept").json(&harness::new_tenant("wrapped-three"));
    let again: Value = again.send().await.unwrap().json().await.unwrap();
    assert_eq!(again["admin_invite"]["token"], kept["admin_invite"]["token"]);
    only_new.state.stop.cancel();

    let options = Options { settings: &[NO_WORKER], database: Some(database), ..Options::default() };
    let only_old = Platform::start_with(options).await;
    assert_ne!(only_old.ask_once(&tenants[0]).await.0, StatusCode::OK);
    let refused = only_old.post("/platform/v1/rotations", &only_old.token, json!({ "kind": "master_key" })).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "master_key_missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_begins_rotations_when_their_time_has_come() {
    let clock = manual_clock();
    let shared: SharedClock = clock.clone();
    let options = Options { settings: &[NO_WORKER], clock: Some(shared), ..Options::default() };
    let platform = Platform::start_with(options).await;
    let mut slugs = Vec::new();
    for slug in ["due-one", "due-two", "left-out"] {
        let answer = platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED);
        assert!(run(&platform, &answer["operation"]["id"], &[], None).await);
        slugs.push(slug);
    }
    let put = async |body: Value| {
        platform.send(Method::PUT, "/platform/v1/rotation-schedules", &platform.token, Some(body)).await
    };
    put(json!({ "kind": "database", "all": true, "schedule": { "every_days": 90 } })).await.expect(StatusCode::OK);
    let set = put(json!({ "kind": "database", "tenants": ["left-out"], "schedule": "off" })).await;
    assert_eq!(set.expect(StatusCode::OK)["items"].as_array().unwrap().len(), 2);
    for body in [
        json!({ "kind": "master_key", "all": true, "schedule": { "every_days": 90 } }),
        json!({ "kind": "database", "all": true, "schedule": { "every_days": 0 } }),
        json!({ "kind": "database", "tenants": ["nobody-there"], "schedule": "off" }),
    ] {
        put(body).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let next = async |slug: &str| {
        let show = platform.get(&format!("/platform/v1/tenants/{slug}"), &platform.token).await.expect(StatusCode::OK);
        let rotations = show["rotations"].as_array().unwrap().clone();
        rotations.into_iter().find(|rotation| rotation["kind"] == "database").unwrap()
    };
    let plan = next("due-one").await;
    let at: chrono::DateTime<chrono::Utc> = plan["next_at"].as_str().unwrap().parse().unwrap();
    let days = (at - clock.now()).num_days();
    assert!((82..=90).contains(&days) && plan["last_at"].is_null(), "{plan}");
    assert_ne!(plan["next_at"], next("due-two").await["next_at"], "every tenant has its own time");
    assert!(next("left-out").await["next_at"].is_null());

    assert_eq!(platform.state.rotations.begin_due().await.unwrap(), 0);
    clock.advance(TimeDelta::days(91));
    assert_eq!(platform.state.rotations.begin_due().await.unwrap(), 2);
    assert_eq!(platform.state.rotations.begin_due().await.unwrap(), 0, "each is asked for once");
    let path = "/platform/v1/operations?limit=2";
    let listed = platform.state.super_admins.sign_in(harness::ADMIN_EMAIL, &SecretString::from(PASSWORD), None).await;
    let token = listed.unwrap().token.expose().to_owned();
    let listed = platform.get(path, &token).await.expect(StatusCode::OK);
    for operation in listed["items"].as_array().unwrap() {
        assert_eq!(operation["kind"], "rotate_database_credential");
        platform.state.engine.run(operation["id"].as_str().unwrap().parse().unwrap()).await.unwrap_err();
        clock.advance(TimeDelta::minutes(1));
        platform.state.engine.run(operation["id"].as_str().unwrap().parse().unwrap()).await.unwrap();
    }
    assert_eq!(platform.state.rotations.begin_due().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_tenants_those_that_cannot_be_are_told_with_the_reason() {
    let platform = Platform::start_with(Options { settings: &[NO_WORKER], ..Options::default() }).await;
    for slug in ["many-one", "many-two", "many-three"] {
        let answer = platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED);
        assert!(run(&platform, &answer["operation"]["id"], &[], None).await);
    }
    platform.request_tenant("not-yet").await.expect(StatusCode::ACCEPTED);
    let held = platform.rotate("signing_key", "many-two").await;
    let own = "UPDATE chat_instances SET database_mode = 'own' WHERE slug = 'many-three'";
    platform.platform_client().await.batch_execute(own).await.unwrap();
    let body = json!({ "kind": "database", "all": true });
    let answer = platform.post("/platform/v1/rotations", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    assert_eq!(answer["operations"].as_array().unwrap().len(), 1);
    let skipped: BTreeSet<(String, String)> = answer["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skipped| (skipped["tenant"].to_string(), skipped["code"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [
        ("\"many-two\"", "operation_in_progress"),
        ("\"many-three\"", "database_not_managed"),
        ("\"not-yet\"", "tenant_not_active"),
    ];
    assert_eq!(skipped, expected.map(|(slug, code)| (slug.to_owned(), code.to_owned())).into());
    let holder = answer["skipped"].as_array().unwrap().iter().find(|skipped| skipped["tenant"] == "many-two").unwrap();
    assert_eq!(holder["operation_id"], held["operations"][0]);
    // For one tenant the reason is the answer.
    for (slug, code) in [
        ("many-two", "operation_in_progress"),
        ("many-three", "database_not_managed"),
        ("not-yet", "tenant_not_active"),
    ] {
        let body = json!({ "kind": "database", "tenants": [slug] });
        let refused = platform.post("/platform/v1/rotations", &platform.token, body).await;
        assert_eq!(refused.expect_problem(StatusCode::CONFLICT), code);
    }
    for body in [
        json!({ "kind": "database" }),
        json!({ "kind": "database", "tenants": ["nobody-there"] }),
        json!({ "kind": "database", "tenants": ["many-one"], "all": true }),
        json!({ "kind": "master_key", "all": true }),
    ] {
        let refused = platform.post("/platform/v1/rotations", &platform.token, body).await;
        refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }
    // No input holds anything but ids and numbers.
    let sql = "SELECT input::text FROM operations WHERE kind LIKE 'rotate%'";
    for row in platform.platform_client().await.query(sql, &[]).await.unwrap() {
        assert!(row.get::<_, String>(0).len() < 80);
    }
}

/// Whoever adds a column for sealed values adds it to the rotations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sealed_column_is_rotated() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("columns").await;
    let sql = "SELECT table_name || '.' || column_name FROM information_schema.columns
               WHERE table_schema = 'public' AND data_type = 'bytea'
                 AND (column_name LIKE '%sealed%' OR column_name LIKE '%wrapped%')";
    let mut there = BTreeSet::new();
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    for client in [platform.platform_client().await, database] {
        there.extend(client.query(sql, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)));
    }
    let known: BTreeSet<String> = SEALED_COLUMNS.iter().map(|(table, column, _)| format!("{table}.{column}")).collect();
    assert_eq!(there, known);
}
