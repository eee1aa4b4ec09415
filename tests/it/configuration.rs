//! Settings and AI keys, as a client's admin sees them.

use freehold::{access, chat, configuration, metering};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{Platform, connect, fake_model};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_fits_the_schema() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("statements").await;
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let all = [
        access::tenant_store::STATEMENTS,
        access::api_keys::tenant_store::STATEMENTS,
        access::visitors::tenant_store::STATEMENTS,
        chat::feedback::tenant_store::STATEMENTS,
        chat::images::tenant_store::STATEMENTS,
        chat::kept_answers::tenant_store::STATEMENTS,
        chat::tenant_store::STATEMENTS,
        chat::streams::tenant_store::STATEMENTS,
        configuration::tenant_store::STATEMENTS,
        metering::tenant_store::STATEMENTS,
    ];
    for statement in all.into_iter().flatten() {
        if let Err(error) = database.prepare(statement).await {
            panic!("{statement}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_merged_checked_and_versioned() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("settings").await;
    let first = platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK);
    assert_eq!(first["version"], 1);
    assert!(first["settings"]["system_prompt"].as_str().unwrap().contains("Company settings"));

    let change = json!({ "version": 1, "temperature": 0.7, "features": { "files": true } });
    let second = platform.configure(&tenant, change.clone()).await.expect(StatusCode::OK);
    assert_eq!((&second["version"], &second["settings"]["temperature"]), (&json!(2), &json!(0.7)));
    assert_eq!(second["settings"]["features"]["files"], true);
    assert_eq!(second["settings"]["system_prompt"], first["settings"]["system_prompt"]);
    assert_eq!(platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK), second);

    assert_eq!(platform.configure(&tenant, change).await.expect_problem(StatusCode::CONFLICT), "version_conflict");
    assert_eq!(platform.configure(&tenant, json!({})).await.expect(StatusCode::OK)["version"], 2);

    let cleared = platform.configure(&tenant, json!({ "temperature": null })).await.expect(StatusCode::OK);
    assert_eq!(cleared["settings"]["temperature"], json!(null));
    let refused = platform.configure(&tenant, json!({ "temperature": 3, "max_tokens": 0 })).await;
    let refused = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let mut fields: Vec<_> =
        refused["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["max_tokens", "temperature"]);
    let nul = platform.configure(&tenant, json!({ "system_prompt": "a\u{0}b" })).await;
    assert_eq!(nul.expect(StatusCode::UNPROCESSABLE_ENTITY)["errors"][0]["field"], "system_prompt");
    assert_eq!(platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK)["version"], 3);
    let as_user = platform.get("/api/v1/config", &tenant.user.access).await;
    assert_eq!(as_user.expect_problem(StatusCode::FORBIDDEN), "forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_newer_server_are_read_and_requests_stay_strict() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("newer").await;
    let database = platform.tenant_database("newer").await;
    let newer = "INSERT INTO live_configurations (version, settings, created_at)
                 SELECT 2, jsonb_set(settings || '{\"of_tomorrow\": 1}', '{branding,of_tomorrow}', '2'), now()
                 FROM live_configurations WHERE version = 1";
    crate::harness::execute(&database, newer).await;
    let read = platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK);
    assert_eq!(read["version"], 2);
    let mut branding = read["settings"]["branding"].clone();
    platform.configure(&tenant, json!({ "branding": branding })).await.expect(StatusCode::OK);
    branding["of_tomorrow"] = json!(2);
    for body in [json!({ "branding": branding }), json!({ "of_tomorrow": 1 })] {
        let refused = platform.configure(&tenant, body).await;
        assert_eq!(refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_once_are_all_made_unless_they_name_a_version() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("at-once").await;
    let merged = (0..6).map(|n| platform.configure(&tenant, json!({ "features": { format!("f{n}"): true } })));
    for answer in futures::future::join_all(merged).await {
        answer.expect(StatusCode::OK);
    }
    let config = platform.get("/api/v1/config", &tenant.admin.access).await.expect(StatusCode::OK);
    assert_eq!((config["version"].as_i64(), config["settings"]["features"].as_object().unwrap().len()), (Some(7), 6));
    let named = (0..6).map(|n| platform.configure(&tenant, json!({ "version": 7, "max_tokens": 100 + n })));
    let statuses: Vec<_> = futures::future::join_all(named).await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::OK).count(), 1);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CONFLICT).count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ai_keys_are_kept_sealed_and_shown_masked() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("keys").await;
    let base_url = fake_model().await.base_url();
    let put = async |name: &str, key: &str, models: &[&str]| {
        let body = json!({
            "provider": "openai_compatible", "base_url": base_url, "api_key": key, "models": models,
            "default_model": models[0]
        });
        platform.send(Method::PUT, &format!("/api/v1/ai-keys/{name}"), &tenant.admin.access, Some(body)).await
    };
    let list = async || {
        let list = platform.get("/api/v1/ai-keys", &tenant.admin.access).await;
        assert!(!list.text.contains(&tenant.key));
        list.expect(StatusCode::OK)["items"].as_array().unwrap().clone()
    };
    put("second", "sk-canary-123456789", &["instant"]).await.expect(StatusCode::OK);
    put("third", "short", &["instant"]).await.expect(StatusCode::OK);
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let ids = async || -> Vec<uuid::Uuid> {
        let rows = database.query("SELECT id FROM api_configurations ORDER BY created_at, id", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let before = ids().await;
    // A key that replaces another takes its row and its place.
    put("main", "sk-canary-replaced-wxyz", &["echo"]).await.expect(StatusCode::OK);
    assert_eq!(ids().await, before);
    let shown: Vec<_> = list().await.iter().map(|key| key["api_key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(shown, ["…wxyz", "…6789", "…"]);
    let dump = database.query_one("SELECT string_agg(k::text, ' ') FROM api_configurations k", &[]).await.unwrap();
    let dump: String = dump.get(0);
    assert!(!dump.contains("canary") && !dump.contains(&hex::encode("canary")));

    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    for (name, key, models) in [
        ("Main", "k", &["echo"][..]),
        ("main", "two words", &["echo"]),
        ("main", "k", &["echo", "echo"]),
        ("main", "k", &[" echo"]),
    ] {
        assert_eq!(put(name, key, models).await.expect_problem(unprocessable), "invalid_request");
    }
    for wrong in [
        json!({ "provider": "mystery" }),
        json!({ "default_model": "other" }),
        json!({ "base_url": "ftp://example.com" }),
        json!({ "base_url": "https://user:password@example.com/v1" }),
    ] {
        let mut body = json!({
            "provider": "openai_compatible", "base_url": base_url, "api_key": "k", "models": ["echo"],
            "default_model": "echo"
        });
        body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let answer = platform.send(Method::PUT, "/api/v1/ai-keys/main", &tenant.admin.access, Some(body)).await;
        let problem = answer.expect(unprocessable);
        assert_eq!(problem["errors"][0]["field"], *wrong.as_object().unwrap().keys().next().unwrap());
    }

    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let deleted = platform.send(Method::DELETE, "/api/v1/ai-keys/third", &tenant.admin.access, None).await;
        assert_eq!(deleted.status, status);
    }
    assert_eq!(list().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trying_a_key_gives_a_readable_verdict() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("verdicts").await;
    let base_url = fake_model().await.base_url();
    for (model, base_url, code) in [
        ("instant", base_url.as_str(), "ok"),
        ("error-401", &base_url, "invalid_key"),
        ("no-such-model", &base_url, "model_not_found"),
        ("quota", &base_url, "rate_limited"),
        ("cut", &base_url, "interrupted"),
        ("instant", "http://127.0.0.1:1/v1", "unavailable"),
    ] {
        let body = json!({
            "provider": "openai_compatible", "base_url": base_url, "api_key": tenant.key, "models": [model],
            "default_model": model
        });
        platform.send(Method::PUT, "/api/v1/ai-keys/tried", &tenant.admin.access, Some(body)).await.expect_success();
        let answer = platform.post("/api/v1/ai-keys/tried/test", &tenant.admin.access, json!({})).await;
        assert!(!answer.text.contains(&tenant.key), "{}", answer.text);
        let verdict = answer.expect(StatusCode::OK);
        assert_eq!((&verdict["code"], &verdict["ok"]), (&json!(code), &json!(code == "ok")), "{model}");
        assert_eq!(verdict["model"], model);
    }
    let missing = platform.post("/api/v1/ai-keys/missing/test", &tenant.admin.access, json!({})).await;
    assert_eq!(missing.expect_problem(StatusCode::NOT_FOUND), "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_key_moved_or_altered_does_not_open() {
    let platform = Platform::start().await;
    let (tenant, other) = (platform.tenant("moved").await, platform.tenant("moved-from").await);
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let foreign = connect(&platform.tenant_database(&other.slug).await).await.unwrap();
    let sql = "SELECT id, api_key_sealed FROM api_configurations";
    let (own, theirs) = (database.query_one(sql, &[]).await.unwrap(), foreign.query_one(sql, &[]).await.unwrap());
    let (id, sealed): (uuid::Uuid, Vec<u8>) = (own.get(0), own.get(1));
    let (their_id, their_sealed): (uuid::Uuid, Vec<u8>) = (theirs.get(0), theirs.get(1));
    let mut altered = sealed.clone();
    *altered.last_mut().unwrap() ^= 1;
    platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" })).await.expect(StatusCode::OK);
    let cases = [
        ("altered", id, altered),
        ("another tenant's", id, their_sealed.clone()),
        ("another tenant's, its row's id included", their_id, their_sealed),
        ("another row's", uuid::Uuid::now_v7(), sealed.clone()),
        ("no sealed value", id, b"sk-plain".to_vec()),
    ];
    for (what, id, sealed) in &cases {
        database.execute("UPDATE api_configurations SET id = $1, api_key_sealed = $2", &[id, sealed]).await.unwrap();
        // What nobody told the server it reads within a second.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let answer = platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" })).await;
            if answer.status == StatusCode::CONFLICT {
                assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "ai_key_unusable", "{what}");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{what} is opened");
        }
    }
    database.execute("UPDATE api_configurations SET id = $1, api_key_sealed = $2", &[&id, &sealed]).await.unwrap();
    platform.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" })).await.expect(StatusCode::OK);
}
