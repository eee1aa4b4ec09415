//! Migrating and verifying the databases of all tenants, some of them out of order, while they are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use freehold::app::AppState;
use freehold::clock::SystemClock;
use freehold::fleet::migrate::Migration as Wanted;
use freehold::fleet::{Canary, Requested};
use freehold::ids::{OperationId, SuperAdminId};
use freehold::provisioning::{OLDEST_SPOKEN_SCHEMA, TenantMigrations};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Client;

use crate::harness::{self, Options, Platform, connect, execute, server};

pub const NEWEST: i64 = 9001;
/// A real change: a table and an index.
pub const THINGS: &str = "CREATE TABLE things (id uuid PRIMARY KEY, name text NOT NULL); \
                      CREATE INDEX things_name ON things (name);";

fn migration(version: i64, sql: &'static str) -> Migration {
    let no_tx = sql.starts_with("-- no-transaction");
    Migration::new(version, "a change".into(), MigrationType::Simple, sql.into_sql_str(), no_tx)
}

pub fn and(sql: &'static str) -> Arc<TenantMigrations> {
    Arc::new(TenantMigrations::embedded().with_more([migration(NEWEST, sql)]))
}

/// A platform whose tenants are provisioned with the program's own migrations, and which then knows one more.
pub async fn moved(slugs: &[&str], migrations: Arc<TenantMigrations>) -> Platform {
    let before = Platform::start().await;
    let mut operations = Vec::new();
    for slug in slugs {
        operations.push(before.request_tenant(slug).await.expect(StatusCode::ACCEPTED)["operation"].clone());
    }
    for operation in &operations {
        assert_eq!(before.settled(operation).await["state"], "succeeded");
    }
    before.state.stop.cancel();
    let options =
        Options { database: Some(before.database.clone()), migrations: Some(migrations), ..Options::default() };
    Platform::start_with(options).await
}

async fn migrate(platform: &Platform, body: Value) -> Value {
    platform.post("/platform/v1/fleet/migrations", &platform.token, body).await.expect_success()
}

/// Begins a migration and waits for its end.
async fn migrated(platform: &Platform, body: Value) -> Value {
    let begun = migrate(platform, body).await;
    assert_eq!(begun["nothing_to_do"], false, "{begun}");
    platform.settled(&begun["operation"]).await
}

async fn retried(platform: &Platform, operation: &Value) -> Value {
    let path = format!("/platform/v1/operations/{}/retry", operation["id"].as_str().unwrap());
    let again = platform.post(&path, &platform.token, json!({})).await.expect(StatusCode::ACCEPTED);
    platform.settled(&again).await
}

/// What became of each tenant: slug, state, and the code of the error.
async fn outcomes(platform: &Platform, operation: &Value) -> Vec<(String, String, String)> {
    let mut found: Vec<_> = tenants(platform, operation)
        .await
        .iter()
        .map(|tenant| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&tenant["tenant"]), text(&tenant["state"]), text(&tenant["error"]["code"]))
        })
        .collect();
    found.sort();
    found
}

async fn tenants(platform: &Platform, operation: &Value) -> Vec<Value> {
    let path = format!("/platform/v1/fleet/migrations/{}/tenants?limit=3", operation["id"].as_str().unwrap());
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = platform.get(&format!("{path}{cursor}"), &platform.token).await.expect(StatusCode::OK);
        found.extend(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

async fn version(platform: &Platform, slug: &str) -> Option<i64> {
    let row = platform.get(&format!("/platform/v1/tenants/{slug}"), &platform.token).await.expect(StatusCode::OK);
    row["schema_version"].as_i64()
}

async fn database(platform: &Platform, slug: &str) -> Client {
    connect(&platform.tenant_database(slug).await).await.unwrap()
}

async fn has_things(platform: &Platform, slug: &str) -> bool {
    let client = database(platform, slug).await;
    client.query_one("SELECT to_regclass('things_name') IS NOT NULL", &[]).await.unwrap().get(0)
}

/// Makes a tenant what it was before [`THINGS`].
pub async fn take_back(platform: &Platform, slug: &str) {
    let sql = format!("DROP TABLE IF EXISTS things; DELETE FROM _sqlx_migrations WHERE version = {NEWEST}");
    execute(&platform.tenant_database(slug).await, &sql).await;
    let sql = format!("UPDATE chat_instances SET schema_version = {} WHERE slug = '{slug}'", own());
    platform.platform_client().await.batch_execute(&sql).await.unwrap();
}

/// A tenant's version by the registry and by its database, and whether [`THINGS`] are there.
pub async fn versions(platform: &Platform, slug: &str) -> (i64, i64, bool) {
    let client = database(platform, slug).await;
    let noted = client.query_one("SELECT max(version) FROM _sqlx_migrations", &[]).await.unwrap().get(0);
    (version(platform, slug).await.unwrap(), noted, has_things(platform, slug).await)
}

/// The program's own version.
fn own() -> i64 {
    TenantMigrations::embedded().current_version()
}

/// Stands between a client and Postgres, and counts the statements that the client has carried out.
async fn counting(url: &str) -> (String, Arc<AtomicUsize>) {
    let target = url::Url::parse(url).unwrap();
    let address = (target.host_str().unwrap().to_owned(), target.port().unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut through = target;
    through.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    through.set_host(Some("127.0.0.1")).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(address.clone()).await.unwrap();
            let ((mut ask, mut tell), (mut answers, mut asks)) = (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tell).await });
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                // The first message has no type; each after it has one, and then its length.
                let mut has_type = false;
                loop {
                    let kind = if has_type { ask.read_u8().await? } else { 0 };
                    let length = ask.read_u32().await?;
                    let mut body = vec![0; length as usize - 4];
                    ask.read_exact(&mut body).await?;
                    if kind == b'Q' || kind == b'E' {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    if has_type {
                        asks.write_u8(kind).await?;
                    }
                    asks.write_u32(length).await?;
                    asks.write_all(&body).await?;
                    has_type = true;
                }
                #[expect(unreachable_code, reason = "it says what type the errors above have")]
                std::io::Result::Ok(())
            });
        }
    });
    (through.to_string(), count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_to_do_is_one_query_whatever_the_fleets_size() {
    let platform = Platform::start().await;
    let sql = format!(
        "INSERT INTO chat_instances (id, slug, name, plan, template, admin_email, database_mode, state, schema_version,
                                     created_at, updated_at)
         SELECT gen_random_uuid(), 'tenant-' || n, 'n', 'pro', 'general', 'a@b.example', 'own', 'active', {}, now(), now()
         FROM generate_series(1, 3000) n;
         UPDATE chat_instances SET state = 'suspended', schema_version = 1 WHERE slug = 'tenant-7'",
        own()
    );
    platform.platform_client().await.batch_execute(&sql).await.unwrap();
    let answer = migrate(&platform, json!({})).await;
    assert_eq!((&answer["nothing_to_do"], &answer["operation"]), (&json!(true), &Value::Null));
    let (url, statements) = counting(&server().await.url(&platform.database)).await;
    let state = AppState::build(harness::config(&url, &[]), SystemClock::shared(), None).unwrap();
    // Opening a connection takes statements of its own.
    sqlx::query("SELECT 1").execute(&state.pool).await.unwrap();
    let before = statements.load(Ordering::SeqCst);
    assert!(before > 0);
    let answer = state.fleet.migrate(&Wanted::default(), SuperAdminId::new()).await.unwrap();
    assert!(matches!(answer, Requested::NothingToDo));
    assert_eq!(statements.load(Ordering::SeqCst) - before, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_canary_stops_and_a_retry_touches_only_the_rest() {
    let slugs = ["can-a", "can-b", "can-c", "can-d", "can-e"];
    let platform = moved(&slugs, and(THINGS)).await;
    let plan = migrate(&platform, json!({ "plan_only": true, "canary": { "percent": 30 } })).await;
    assert_eq!(plan["plan"]["tenants"], 5, "{plan}");
    assert_eq!(plan["plan"]["migrations"][0]["version"], NEWEST);
    let first = plan["plan"]["first"].as_array().unwrap();
    let canaries: Vec<&str> = first
        .iter()
        .filter(|tenant| tenant["wave"] == "canary")
        .map(|tenant| tenant["tenant"].as_str().unwrap())
        .collect();
    assert_eq!(canaries.len(), 2);
    let url = platform.tenant_database(canaries[0]).await;
    execute(&url, "CREATE TABLE things ()").await;

    let stopped = migrated(&platform, json!({ "canary": { "percent": 30 }, "parallel": 1 })).await;
    assert_eq!(
        (&stopped["state"], &stopped["error"]["code"]),
        (&json!("failed"), &json!("canary_failed")),
        "{stopped}"
    );
    let touched = outcomes(&platform, &stopped).await;
    assert_eq!(touched.iter().filter(|(_, state, _)| state == "pending").count(), 4, "{touched:?}");
    assert!(touched.contains(&(canaries[0].to_owned(), "failed".to_owned(), "migration_refused".to_owned())));
    for slug in slugs {
        assert_eq!(version(&platform, slug).await, Some(own()), "{slug}");
    }

    // Put right, but one further on is not: the run goes on and reports it.
    execute(&url, "DROP TABLE things").await;
    let last = first.last().unwrap()["tenant"].as_str().unwrap();
    let poisoned = platform.tenant_database(last).await;
    execute(&poisoned, "CREATE TABLE things ()").await;
    let body = json!({ "canary": { "percent": 30 }, "on_error": "continue" });
    let failed = migrated(&platform, body).await;
    assert_eq!(failed["error"]["code"], "tenants_failed", "{failed}");
    assert_eq!(failed["progress"], json!({ "done": 5, "failed": 1, "total": 5 }));
    let before = tenants(&platform, &failed).await;
    execute(&poisoned, "DROP TABLE things").await;
    let done = retried(&platform, &failed).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    let after = tenants(&platform, &failed).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["tenant"] != last, before["finished_at"] == after["finished_at"], "{before} {after}");
    }
    for slug in slugs {
        assert_eq!(version(&platform, slug).await, Some(NEWEST), "{slug}");
        assert!(has_things(&platform, slug).await, "{slug}");
    }
    assert_eq!(migrate(&platform, json!({})).await["nothing_to_do"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_failures_stop_the_run() {
    let slugs = ["max-a", "max-b", "max-c", "max-d"];
    let platform = moved(&slugs, and(THINGS)).await;
    for slug in slugs {
        execute(&platform.tenant_database(slug).await, "CREATE TABLE things ()").await;
    }
    let body = json!({ "canary": { "count": 0 }, "parallel": 1, "max_failures": 2 });
    let stopped = migrated(&platform, body).await;
    assert_eq!(stopped["error"]["code"], "tenants_failed", "{stopped}");
    let states: Vec<String> = outcomes(&platform, &stopped).await.into_iter().map(|(_, state, _)| state).collect();
    assert_eq!(states.iter().filter(|state| *state == "failed").count(), 2, "{states:?}");
    assert_eq!(states.iter().filter(|state| *state == "pending").count(), 2, "{states:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_are_away_are_reported_and_do_not_stop_the_others() {
    let slugs = ["way-asked", "way-busy", "way-down", "way-gone", "way-locked", "way-paused", "way-well"];
    let platform = moved(&slugs, and(THINGS)).await;
    let registry = platform.platform_client().await;
    let set = |slug: &str, state: &str| format!("UPDATE chat_instances SET state = '{state}' WHERE slug = '{slug}';");
    let sql = set("way-asked", "provisioning") + &set("way-gone", "deleting") + &set("way-paused", "suspended");
    registry.batch_execute(&sql).await.unwrap();
    let sql = "INSERT INTO operations (id, kind, tenant_id, input, state, created_at)
               SELECT gen_random_uuid(), 'a_test', id, '{}', 'needs_operator', now()
               FROM chat_instances WHERE slug = 'way-busy'";
    registry.batch_execute(sql).await.unwrap();
    let name = |url: &str| url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let admin = connect(&server().await.url("postgres")).await.unwrap();
    let down = name(&platform.tenant_database("way-down").await);
    admin.batch_execute(&format!("ALTER DATABASE {down} ALLOW_CONNECTIONS false")).await.unwrap();
    let locked = name(&platform.tenant_database("way-locked").await);
    admin.batch_execute(&format!("ALTER ROLE {locked}_a PASSWORD 'another'")).await.unwrap();

    let settled = migrated(&platform, json!({ "canary": { "count": 2 } })).await;
    assert_eq!(settled["state"], "succeeded", "{settled}");
    let found = outcomes(&platform, &settled).await;
    let expected = [
        ("way-asked", "skipped", "being_provisioned"),
        ("way-busy", "skipped", "operation_in_progress"),
        ("way-down", "skipped", "access_denied"),
        ("way-gone", "skipped", "tenant_deleting"),
        ("way-locked", "skipped", "access_denied"),
        ("way-paused", "skipped", "tenant_suspended"),
        ("way-well", "done", ""),
    ];
    let expected = expected.map(|(slug, state, code)| (slug.to_owned(), state.to_owned(), code.to_owned()));
    assert_eq!(found, expected);
    let paused =
        tenants(&platform, &settled).await.into_iter().find(|tenant| tenant["tenant"] == "way-paused").unwrap();
    assert!(paused["error"]["hint"].as_str().unwrap().contains("freehold tenant resume way-paused"), "{paused}");
    let hints: Vec<Value> =
        tenants(&platform, &settled).await.into_iter().map(|tenant| tenant["error"]["hint"].clone()).collect();
    assert!(hints.iter().all(|hint| hint.is_null() || hint.as_str().is_some_and(|hint| hint.len() > 10)), "{hints:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_runs_the_second_is_told_of_the_first() {
    let platform = moved(&["two-a"], and(THINGS)).await;
    platform.state.stop.cancel();
    let options = Options {
        settings: &[("FREEHOLD_WORKER_CONCURRENCY", "0")],
        database: Some(platform.database.clone()),
        migrations: Some(and(THINGS)),
        ..Options::default()
    };
    let platform = Platform::start_with(options).await;
    let first = migrate(&platform, json!({})).await;
    let second = platform.post("/platform/v1/fleet/migrations", &platform.token, json!({})).await;
    let problem = second.expect(StatusCode::CONFLICT);
    assert_eq!(problem["code"], "operation_in_progress");
    assert_eq!(problem["operation_id"], first["operation"]["id"]);
    let unknown = json!({ "tenants": ["two-a", "nobody"] });
    let answer = platform.post("/platform/v1/fleet/migrations", &platform.token, unknown).await;
    assert!(answer.text.contains("nobody"), "{}", answer.text);
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// Waits until a condition holds in a database. Others may be building templates, one at a time, and a run waits for them.
async fn until(client: &Client, sql: &str) {
    for _ in 0..800 {
        if client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come about: {sql}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_concurrently_beside_open_transactions_and_again_after_a_kill() {
    let sql = "-- no-transaction\n\
               CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_model ON chat_messages (model)";
    let platform = moved(&["con-a"], and(sql)).await;
    let open = database(&platform, "con-a").await;
    let watch = database(&platform, "con-a").await;
    open.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM chat_messages").await.unwrap();
    // A lock time-out that short would end the wait for the open transaction, if it counted there.
    let begun = migrate(&platform, json!({ "lock_timeout_ms": 100, "statement_timeout_ms": 800 })).await;
    let invalid =
        "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('messages_model') AND NOT indisvalid)";
    until(&watch, invalid).await;
    // Writers are not held up by it.
    let insert = "INSERT INTO sign_in_attempts VALUES ('\\x00', 1, now())";
    watch.batch_execute(insert).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'freehold-migrate' AND datname = current_database()";
    watch.batch_execute(kill).await.unwrap();
    until(
        &watch,
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'freehold-migrate'
                   AND datname = current_database()",
    )
    .await;
    open.batch_execute("COMMIT").await.unwrap();
    let settled = platform.settled(&begun["operation"]).await;
    assert_eq!(settled["state"], "succeeded", "{settled} {:?}", outcomes(&platform, &settled).await);
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'messages_model'::regclass";
    assert!(watch.query_one(valid, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(version(&platform, "con-a").await, Some(NEWEST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_costs_live_queries_no_more_than_the_time_out() {
    let platform = moved(&["loc-a"], and("ALTER TABLE chat_messages ADD COLUMN mood text")).await;
    let open = database(&platform, "loc-a").await;
    open.batch_execute("BEGIN; SELECT * FROM chat_messages").await.unwrap();
    let begun = migrate(&platform, json!({ "lock_timeout_ms": 200 })).await;
    let live = database(&platform, "loc-a").await;
    let path = format!("/platform/v1/operations/{}", begun["operation"]["id"].as_str().unwrap());
    let mut worst = Duration::ZERO;
    let settled = loop {
        let started = Instant::now();
        live.batch_execute("SELECT count(*) FROM chat_messages").await.unwrap();
        worst = worst.max(started.elapsed());
        let now = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
        if now["finished_at"].is_string() {
            break now;
        }
    };
    assert_eq!(outcomes(&platform, &settled).await[0].2, "lock_timeout");
    assert!(worst > Duration::from_millis(50), "the lock was never waited for: {worst:?}");
    assert!(worst < Duration::from_millis(1500), "{worst:?}");
    open.batch_execute("COMMIT").await.unwrap();
    assert_eq!(retried(&platform, &settled).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_runs_too_long_is_ended() {
    let platform = moved(&["slo-a"], and("SELECT pg_sleep(20)")).await;
    let settled = migrated(&platform, json!({ "statement_timeout_ms": 100 })).await;
    assert_eq!(outcomes(&platform, &settled).await[0].2, "statement_timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_provisioned_meanwhile_end_up_current() {
    let platform = moved(&["new-a", "new-b", "new-c"], and(THINGS)).await;
    let registry = platform.platform_client().await;
    // One whose clone was made from the old template by a server that died, and one that is in the middle of it.
    let row = registry
        .query_one(
            "SELECT id FROM operations WHERE tenant_id = (SELECT id FROM chat_instances WHERE slug = 'new-b')",
            &[],
        )
        .await
        .unwrap();
    // Periodic tasks queue operations of their own meanwhile.
    let sql = format!(
        "UPDATE operations SET state = 'queued' WHERE id = '{id}';
         UPDATE operation_steps SET state = 'pending' WHERE position > 3 AND operation_id = '{id}';
         UPDATE chat_instances SET state = 'provisioning', schema_version = NULL WHERE slug IN ('new-b', 'new-c')",
        id = row.get::<_, uuid::Uuid>(0)
    );
    registry.batch_execute(&sql).await.unwrap();
    let id: uuid::Uuid = row.get(0);
    platform.state.engine.run(OperationId::from_uuid(id)).await.unwrap();
    assert_eq!(version(&platform, "new-b").await, Some(NEWEST));
    assert!(has_things(&platform, "new-b").await);
    // The other one comes into service, behind, while the run waits for another tenant.
    let url = platform.tenant_database("new-a").await;
    let hold = connect(&url).await.unwrap();
    hold.batch_execute("SELECT pg_advisory_lock(7382074225515390834)").await.unwrap();
    let begun = migrate(&platform, json!({ "canary": { "count": 0 }, "parallel": 2 })).await;
    until(&registry, "SELECT EXISTS (SELECT FROM fleet_migration_tenants WHERE error_code = 'being_provisioned')")
        .await;
    let sql = format!("UPDATE chat_instances SET state = 'active', schema_version = {} WHERE slug = 'new-c'", own());
    registry.batch_execute(&sql).await.unwrap();
    drop(hold);
    let settled = platform.settled(&begun["operation"]).await;
    assert_eq!(settled["state"], "succeeded", "{settled}");
    for slug in ["new-a", "new-c"] {
        assert_eq!(version(&platform, slug).await, Some(NEWEST), "{slug}");
        assert!(has_things(&platform, slug).await, "{slug}");
    }
    // And one asked for now is a clone of the new template.
    let operation = platform.request_tenant("new-d").await.expect(StatusCode::ACCEPTED)["operation"].clone();
    assert_eq!(platform.settled(&operation).await["state"], "succeeded");
    assert_eq!(version(&platform, "new-d").await, Some(NEWEST));
    assert!(has_things(&platform, "new-d").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_ahead_of_the_registry_is_only_noted() {
    let platform = moved(&["ahe-a"], and(THINGS)).await;
    let first = migrated(&platform, json!({})).await;
    assert_eq!(first["state"], "succeeded", "{first}");
    // As if the worker had died between the database and the registry.
    let sql = format!("UPDATE chat_instances SET schema_version = {}", own());
    platform.platform_client().await.batch_execute(&sql).await.unwrap();
    let second = migrated(&platform, json!({ "tenants": ["ahe-a"] })).await;
    let tenant = tenants(&platform, &second).await.remove(0);
    assert_eq!((&tenant["state"], &tenant["from_version"]), (&json!("done"), &json!(NEWEST)));
    assert_eq!(version(&platform, "ahe-a").await, Some(NEWEST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_finds_what_was_done_by_hand_and_names_it() {
    let slugs = ["ver-alter", "ver-down", "ver-drift", "ver-miss", "ver-well"];
    let platform = moved(&slugs, Arc::default()).await;
    execute(
        &platform.tenant_database("ver-drift").await,
        "ALTER TABLE client_users ADD COLUMN nickname text; DROP INDEX chat_messages_session; CREATE TABLE notes ();
         ALTER TABLE chat_messages ALTER COLUMN model SET NOT NULL",
    )
    .await;
    let url = platform.tenant_database("ver-alter").await;
    execute(&url, "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 2").await;
    let newest = format!("DELETE FROM _sqlx_migrations WHERE version = {}", own());
    execute(&platform.tenant_database("ver-miss").await, &newest).await;
    let down = platform.tenant_database("ver-down").await;
    let name = down.rsplit('/').next().unwrap().split('?').next().unwrap();
    let admin = connect(&server().await.url("postgres")).await.unwrap();
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    // As if the template had been built by an earlier program, which did not keep its catalog.
    let forget = format!("COMMENT ON DATABASE freehold_template_{} IS NULL", own());
    admin.batch_execute(&forget).await.unwrap();
    let begun = platform.post("/platform/v1/fleet/verifications", &platform.token, json!({})).await;
    let settled = platform.settled(&begun.expect(StatusCode::ACCEPTED)).await;
    assert_eq!(settled["state"], "succeeded", "{settled}");
    assert_eq!(settled["progress"], json!({ "done": 5, "failed": 4, "total": 5 }));
    let tenants = tenants(&platform, &settled).await;
    let findings = |slug: &str| {
        let tenant = tenants.iter().find(|tenant| tenant["tenant"] == slug).unwrap();
        let findings = tenant["findings"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        findings.iter().map(|finding| (text(&finding["code"]), text(&finding["message"]))).collect::<Vec<_>>()
    };
    assert_eq!(findings("ver-well"), []);
    let drift: Vec<String> =
        findings("ver-drift").into_iter().map(|(code, message)| format!("{code}: {message}")).collect();
    assert_eq!(
        drift,
        [
            "schema_drift: index chat_messages_session is missing",
            "schema_drift: column chat_messages.model is not as the migrations made it",
            "schema_drift: column client_users.nickname was not made by a migration",
            "schema_drift: table notes was not made by a migration",
        ]
    );
    let codes = |slug| findings(slug).into_iter().map(|(code, _)| code).collect::<Vec<_>>();
    assert_eq!(codes("ver-alter"), ["altered_migration"]);
    assert_eq!(codes("ver-miss"), ["missing_migration", "registry_differs"]);
    assert_eq!(codes("ver-down"), ["unreachable"]);
    let leftovers = "SELECT count(*) FROM pg_database WHERE datname = 'freehold_template_reading'";
    assert_eq!(admin.query_one(leftovers, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_cannot_be_spoken_is_answered_with_its_code() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("schema-acme").await;
    let registry = platform.platform_client().await;
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let oldest = format!("{OLDEST_SPOKEN_SCHEMA}, schema_compatible_from = 0");
    let too_old = format!("{}, schema_compatible_from = 0", OLDEST_SPOKEN_SCHEMA - 1);
    let cases = [
        (too_old.as_str(), unavailable, "tenant_schema_too_old"),
        ("99, schema_compatible_from = 99", unavailable, "tenant_schema_too_new"),
        ("99, schema_compatible_from = NULL", unavailable, "tenant_schema_too_new"),
        ("99, schema_compatible_from = 3", StatusCode::OK, ""),
        ("NULL, schema_compatible_from = 0", unavailable, "tenant_schema_too_old"),
        (oldest.as_str(), StatusCode::OK, ""),
    ];
    for (values, status, code) in cases {
        let sql = format!("UPDATE chat_instances SET schema_version = {values} WHERE slug = 'schema-acme'");
        registry.batch_execute(&sql).await.unwrap();
        let mut tries = 0;
        loop {
            let answer = platform.get("/api/v1/me", &tenant.user.access).await;
            if answer.status == status && answer.body["code"].as_str().unwrap_or_default() == code {
                break;
            }
            tries += 1;
            assert!(tries < 60, "{values}: {} {}", answer.status, answer.text);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Workers that are killed anywhere while they have several tenants in hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_in_the_middle_of_tenants_lose_none() {
    let slugs: Vec<String> = (0..12).map(|number| format!("kill-{number}")).collect();
    let slugs: Vec<&str> = slugs.iter().map(String::as_str).collect();
    // Slow enough to be killed in it, and half of it outside a transaction.
    let more = [
        migration(9001, "CREATE TABLE things (id uuid PRIMARY KEY, name text NOT NULL); SELECT pg_sleep(0.2)"),
        migration(9002, "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS things_name ON things (name)"),
    ];
    let migrations = Arc::new(TenantMigrations::embedded().with_more(more));
    let platform = moved(&slugs, Arc::clone(&migrations)).await;
    platform.state.stop.cancel();
    let options = Options {
        settings: &[("FREEHOLD_WORKER_CONCURRENCY", "0")],
        database: Some(platform.database.clone()),
        migrations: Some(Arc::clone(&migrations)),
        ..Options::default()
    };
    let platform = Platform::start_with(options).await;
    let begun = migrate(&platform, json!({ "parallel": 3, "canary": { "count": 2 } })).await;
    let id: OperationId = begun["operation"]["id"].as_str().unwrap().parse().unwrap();
    let watch = connect(&server().await.url("postgres")).await.unwrap();
    let mut kills = 0;
    loop {
        let config = harness::config(&server().await.url(&platform.database), &[]);
        let state = AppState::build_with(config, SystemClock::shared(), None, Arc::clone(&migrations)).unwrap();
        // Dropped in the middle, a worker leaves what a killed one leaves: its connections break, nothing is noted.
        let run = state.engine.run(id);
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(350 + 40 * kills), run).await {
            ended.unwrap();
            break;
        }
        kills += 1;
        let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE application_name = 'freehold-migrate' AND datname LIKE 'fh_kill_%'";
        watch.query_one(kill, &[]).await.unwrap();
        assert!(kills < 60, "it does not come to an end");
    }
    harness::announce(&format!("fleet migration: {kills} kills in the middle of tenants"));
    let settled = platform.settled(&begun["operation"]).await;
    assert_eq!(settled["state"], "succeeded", "{settled} {:?}", outcomes(&platform, &settled).await);
    for slug in slugs {
        assert_eq!(version(&platform, slug).await, Some(9002), "{slug}");
        let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'things_name'::regclass";
        assert!(database(&platform, slug).await.query_one(valid, &[]).await.unwrap().get::<_, bool>(0), "{slug}");
    }
}

#[test]
fn canaries_are_counted_as_the_api_says() {
    let read = |text: &str| serde_json::from_str::<Canary>(text).unwrap();
    assert_eq!((read("{\"count\": 5}"), read("{\"percent\": 10}")), (Canary::Count(5), Canary::Percent(10)));
}
