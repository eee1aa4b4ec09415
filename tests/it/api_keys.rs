//! API keys: made, listed, used, revoked; what they open, and what they do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use freehold::clock::{Clock, ManualClock, SharedClock};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::harness::{self, Answer, Options, Platform, Tenant, connect};

async fn create(platform: &Platform, tenant: &Tenant, body: Value) -> (Uuid, String) {
    let made = platform.post("/api/v1/api-keys", &tenant.admin.access, body).await.expect(StatusCode::CREATED);
    (made["id"].as_str().unwrap().parse().unwrap(), made["token"].as_str().unwrap().to_owned())
}

async fn list(platform: &Platform, tenant: &Tenant) -> Vec<Value> {
    let page = platform.get("/api/v1/api-keys?limit=100", &tenant.admin.access).await.expect(StatusCode::OK);
    page["items"].as_array().unwrap().clone()
}

async fn revoke(platform: &Platform, tenant: &Tenant, id: Uuid) -> StatusCode {
    let path = format!("/api/v1/api-keys/{id}");
    platform.send(Method::DELETE, &path, &tenant.admin.access, None).await.status
}

/// An error in OpenAI's shape: its status, type and code.
#[track_caller]
fn refusal(answer: &Answer) -> (u16, &str, &str) {
    let error = &answer.body["error"];
    assert!(error["message"].is_string() && error.get("param").is_some(), "{}", answer.text);
    (answer.status.as_u16(), error["type"].as_str().unwrap(), error["code"].as_str().unwrap())
}

const INVALID: (u16, &str, &str) = (401, "invalid_request_error", "invalid_api_key");

async fn models(platform: &Platform, token: &str) -> Answer {
    platform.get("/v1/models", token).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_shown_once_and_works_until_it_is_revoked() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("keys").await;
    let made = platform
        .post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "Nightly report" }))
        .await
        .expect(StatusCode::CREATED);
    let token = made["token"].as_str().unwrap();
    assert!(token.starts_with("fh_") && token.len() == 46, "{token}");
    assert_eq!(made["hint"], format!("…{}", &token[42..]));
    assert_eq!(made["scopes"], json!(["chat", "embeddings", "models"]));
    let id: Uuid = made["id"].as_str().unwrap().parse().unwrap();

    let page = platform.get("/api/v1/api-keys", &tenant.admin.access).await;
    assert!(!page.text.contains(token), "{}", page.text);
    assert_eq!((&page.body["items"][0]["id"], &page.body["items"][0]["name"]), (&made["id"], &json!("Nightly report")));
    assert_eq!(page.body["items"][0]["last_used_at"], Value::Null);

    let answer = models(&platform, token).await.expect(StatusCode::OK);
    assert!(answer["data"].as_array().unwrap().iter().any(|model| model["id"] == "echo"), "{answer}");
    // Noted in nobody's way, so perhaps a moment later.
    let mut left = 100;
    while list(&platform, &tenant).await[0]["last_used_at"].is_null() {
        left -= 1;
        assert!(left > 0, "the use of the key is not noted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    assert_eq!(revoke(&platform, &tenant, id).await, StatusCode::NO_CONTENT);
    assert_eq!(refusal(&models(&platform, token).await), INVALID);
    let revoked = list(&platform, &tenant).await[0]["revoked_at"].clone();
    assert!(revoked.is_string());
    // Once more changes nothing.
    assert_eq!(revoke(&platform, &tenant, id).await, StatusCode::NO_CONTENT);
    assert_eq!(list(&platform, &tenant).await[0]["revoked_at"], revoked);
    assert_eq!(revoke(&platform, &tenant, Uuid::now_v7()).await, StatusCode::NOT_FOUND);
    let registry = platform.platform_client().await;
    let left: i64 = registry.query_one("SELECT count(*) FROM api_key_hashes", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_made_is_refused() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("keys-refused").await;
    for (body, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "a\nb" }), "name"),
        (json!({ "name": "x".repeat(101) }), "name"),
        (json!({ "name": "a", "scopes": [] }), "scopes"),
        (json!({ "name": "a", "expires_at": "2020-01-01T00:00:00Z" }), "expires_at"),
    ] {
        let answer = platform.post("/api/v1/api-keys", &tenant.admin.access, body.clone()).await;
        let refused = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused["errors"][0]["field"], field, "{body}: {refused}");
    }
    for body in [json!({ "name": "a", "scopes": ["admin"] }), json!({ "name": "a", "tenant": "other" }), json!({})] {
        let answer = platform.post("/api/v1/api-keys", &tenant.admin.access, body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    }
    // A user makes none.
    let answer = platform.post("/api/v1/api-keys", &tenant.user.access, json!({ "name": "a" })).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    // As many as there may be.
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "INSERT INTO client_api_keys (id, name, token_hash, hint, scopes, created_at)
               SELECT gen_random_uuid(), 'one of many', sha256(n::text::bytea), '', '{chat}', now()
               FROM generate_series(1, 200) n";
    database.execute(sql, &[]).await.unwrap();
    let answer = platform.post("/api/v1/api-keys", &tenant.admin.access, json!({ "name": "one more" })).await;
    assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "too_many_api_keys");
    // What was begun is undone.
    let registry = platform.platform_client().await;
    let mut left = 100;
    while registry.query_one("SELECT count(*) FROM api_key_hashes", &[]).await.unwrap().get::<_, i64>(0) > 0 {
        left -= 1;
        assert!(left > 0, "a hash is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    database.execute("UPDATE client_api_keys SET revoked_at = now()", &[]).await.unwrap();
    create(&platform, &tenant, json!({ "name": "one more" })).await;
    // Every page of them, once.
    let (mut seen, mut cursor) = (0, String::new());
    loop {
        let path = format!("/api/v1/api-keys?limit=90{cursor}");
        let page = platform.get(&path, &tenant.admin.access).await.expect(StatusCode::OK);
        seen += page["items"].as_array().unwrap().len();
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_does_what_its_scopes_say_and_nothing_else() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("scopes").await;
    let chat = json!({ "model": "instant", "messages": [{ "role": "user", "content": "hello" }] });
    let embed = json!({ "model": "no-such-model", "input": "hello" });
    for scope in ["chat", "embeddings", "models"] {
        let (_, token) = create(&platform, &tenant, json!({ "name": scope, "scopes": [scope, scope] })).await;
        for (route, method, path, body) in [
            ("chat", Method::POST, "/v1/chat/completions", Some(chat.clone())),
            ("embeddings", Method::POST, "/v1/embeddings", Some(embed.clone())),
            ("models", Method::GET, "/v1/models", None),
            ("models", Method::GET, "/v1/models/echo", None),
        ] {
            let answer = platform.send(method, path, &token, body).await;
            if route == scope {
                assert_ne!(answer.status, StatusCode::FORBIDDEN, "{path} with {scope}: {}", answer.text);
            } else {
                let expected = (403, "permission_error", "insufficient_permissions");
                assert_eq!(refusal(&answer), expected, "{path} with {scope}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_expires_and_its_use_is_noted_once_a_minute() {
    let clock = harness::manual_clock();
    let shared: SharedClock = Arc::<ManualClock>::clone(&clock);
    let platform = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = platform.tenant("expiring").await;
    let expires_at = clock.now() + TimeDelta::minutes(10);
    let (_, token) = create(&platform, &tenant, json!({ "name": "short", "expires_at": expires_at })).await;
    let used = async || -> Option<DateTime<Utc>> {
        serde_json::from_value(list(&platform, &tenant).await[0]["last_used_at"].clone()).unwrap()
    };
    let use_and_wait_for = async |expected: DateTime<Utc>| {
        // The row is looked at once a second.
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        models(&platform, &token).await.expect(StatusCode::OK);
        let deadline = Instant::now() + Duration::from_secs(5);
        while used().await != Some(expected) {
            assert!(Instant::now() < deadline, "{:?} is noted, not {expected}", used().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let first = clock.now();
    use_and_wait_for(first).await;
    clock.advance(TimeDelta::seconds(30));
    use_and_wait_for(first).await;
    clock.advance(TimeDelta::seconds(31));
    use_and_wait_for(clock.now()).await;
    clock.set(expires_at - TimeDelta::seconds(1));
    models(&platform, &token).await.expect(StatusCode::OK);
    clock.set(expires_at);
    assert_eq!(refusal(&models(&platform, &token).await), INVALID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_refuses_a_revoked_key_within_a_second_or_so() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("two-servers").await;
    let options = Options { database: Some(platform.database.clone()), ..Options::default() };
    let second = Platform::start_with(options).await;
    let (id, token) = create(&platform, &tenant, json!({ "name": "a" })).await;
    for server in [&platform, &second] {
        models(server, &token).await.expect(StatusCode::OK);
    }
    assert_eq!(revoke(&platform, &tenant, id).await, StatusCode::NO_CONTENT);
    let revoked = Instant::now();
    assert_eq!(refusal(&models(&platform, &token).await), INVALID);
    while models(&second, &token).await.status == StatusCode::OK {
        assert!(revoked.elapsed() < Duration::from_millis(1_500), "the other server still takes the key");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(refusal(&models(&second, &token).await), INVALID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_opens_its_own_tenants_endpoint_and_nothing_else() {
    let platform = Platform::start().await;
    let (ours, other) = (platform.tenant("keys-ours").await, platform.tenant("keys-other").await);
    let only = json!({
        "provider": "openai_compatible", "base_url": harness::fake_model().await.base_url(), "api_key": "k",
        "models": ["instant", "only-of-the-other"], "default_model": "instant"
    });
    platform.send(Method::PUT, "/api/v1/ai-keys/main", &other.admin.access, Some(only)).await.expect_success();
    let (id, token) = create(&platform, &ours, json!({ "name": "ours" })).await;
    let (_, others) = create(&platform, &other, json!({ "name": "the other's" })).await;
    let names = async |token: &str| models(&platform, token).await.text;
    assert!(!names(&token).await.contains("only-of-the-other"));
    assert!(names(&others).await.contains("only-of-the-other"));
    let answer = platform.get("/v1/models/only-of-the-other", &token).await;
    assert_eq!(refusal(&answer), (404, "invalid_request_error", "model_not_found"));
    // Another tenant's admin can neither see nor revoke it.
    assert_eq!(revoke(&platform, &other, id).await, StatusCode::NOT_FOUND);
    assert!(list(&platform, &other).await.iter().all(|key| key["id"] != json!(id)));
    models(&platform, &token).await.expect(StatusCode::OK);
    // It is no access token, and an access token is no key.
    for path in ["/api/v1/me", "/api/v1/api-keys", "/api/v1/sessions", "/platform/v1/tenants", "/api/v1/database"] {
        let answer = platform.get(path, &token).await;
        assert_eq!(answer.expect_problem(StatusCode::UNAUTHORIZED), "unauthenticated", "{path}");
    }
    let cut = &token[..token.len() - 1];
    let changed = format!("fh_{}", "A".repeat(43));
    let longer = format!("{token}A");
    for wrong in [
        &*ours.admin.access,
        &ours.user.access,
        &ours.user.refresh,
        &platform.token,
        cut,
        &changed,
        &longer,
        "fh_",
        "x",
    ] {
        let answer = models(&platform, wrong).await;
        assert_eq!(refusal(&answer), INVALID, "{wrong}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    // Neither database holds a token.
    for url in [platform.tenant_database("keys-ours").await, harness::server().await.url(&platform.database)] {
        let client = connect(&url).await.unwrap();
        for table in ["client_api_keys", "api_key_hashes"] {
            let sql = format!("SELECT count(*) FROM {table} AS t WHERE t::text LIKE $1");
            if let Ok(row) = client.query_one(&sql, &[&format!("%{}%", &token[3..])]).await {
                assert_eq!(row.get::<_, i64>(0), 0, "{table}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_without_a_row_is_good_for_nothing() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("no-row").await;
    // As if its maker had died between the two databases.
    let token = format!("fh_{}", "A".repeat(43));
    let hash = Sha256::digest(&token).to_vec();
    let registry = platform.platform_client().await;
    let sql = "INSERT INTO api_key_hashes (token_hash, tenant_id, api_key_id, created_at) VALUES ($1, $2, $3, now())";
    registry.execute(sql, &[&hash, &tenant.id, &Uuid::now_v7()]).await.unwrap();
    assert_eq!(refusal(&models(&platform, &token).await), INVALID);
    // Nor is a row without a hash.
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let other = format!("fh_{}", "E".repeat(43));
    let sql = "INSERT INTO client_api_keys (id, name, token_hash, hint, scopes, created_at)
               VALUES ($1, 'a', $2, '', '{models}', now())";
    database.execute(sql, &[&Uuid::now_v7(), &Sha256::digest(&other).to_vec()]).await.unwrap();
    assert_eq!(refusal(&models(&platform, &other).await), INVALID);
    // A key whose row goes is refused after a second.
    let (id, token) = create(&platform, &tenant, json!({ "name": "a" })).await;
    models(&platform, &token).await.expect(StatusCode::OK);
    database.execute("DELETE FROM client_api_keys WHERE id = $1", &[&id]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(refusal(&models(&platform, &token).await), INVALID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_a_suspended_tenant_is_told_so_and_works_again_afterwards() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("keys-life").await;
    let (_, token) = create(&platform, &tenant, json!({ "name": "a" })).await;
    models(&platform, &token).await.expect(StatusCode::OK);
    let live = async |what: &str| {
        let path = format!("/platform/v1/tenants/keys-life/{what}");
        let answer = platform.post(&path, &platform.token, json!({})).await.expect(StatusCode::ACCEPTED);
        assert_eq!(platform.settled(&answer["operation"]).await["state"], "succeeded");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    live("suspend").await;
    let answer = models(&platform, &token).await;
    assert_eq!(refusal(&answer), (403, "permission_error", "tenant_suspended"));
    live("resume").await;
    models(&platform, &token).await.expect(StatusCode::OK);
    // Nothing of its keys is left on the platform once it is purged.
    let path = "/platform/v1/tenants/keys-life?confirm=keys-life&grace_days=0";
    let answer = platform.send(Method::DELETE, path, &platform.token, None).await;
    assert!(answer.status.is_success(), "{}", answer.text);
    let registry = platform.platform_client().await;
    let sql = "SELECT count(*) FROM api_key_hashes WHERE tenant_id = $1";
    let deadline = Instant::now() + Duration::from_secs(20);
    while registry.query_one(sql, &[&tenant.id]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(Instant::now() < deadline, "a hash is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The server hears of it within a second. Until then the tenant is being deleted.
    let mut answer = models(&platform, &token).await;
    while refusal(&answer) != INVALID {
        assert_eq!(refusal(&answer), (403, "permission_error", "tenant_deleting"));
        assert!(Instant::now() < deadline, "its key still leads to it");
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = models(&platform, &token).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_work_while_the_platforms_database_is_not_asked() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("unasked").await;
    let (_, token) = create(&platform, &tenant, json!({ "name": "a" })).await;
    models(&platform, &token).await.expect(StatusCode::OK);
    // Whatever asked the platform for this key now would find nothing.
    let registry = platform.platform_client().await;
    registry.execute("DELETE FROM api_key_hashes", &[]).await.unwrap();
    for _ in 0..3 {
        models(&platform, &token).await.expect(StatusCode::OK);
    }
}
