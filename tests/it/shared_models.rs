//! Models that the owner lends to tenants: who is answered by them, what they cost whom, and that their keys stay secret.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Answer, Options, Platform, Tenant, connect, fake_model};

impl Platform {
    async fn lend(&self, name: &str, body: Value) -> Answer {
        self.send(Method::PUT, &format!("/platform/v1/shared-models/{name}"), &self.token, Some(body)).await
    }

    async fn set_ai_mode(&self, tenant: &Tenant, mode: &str) {
        let path = format!("/platform/v1/tenants/{}", tenant.slug);
        let answer = self.send(Method::PATCH, &path, &self.token, Some(json!({ "ai_mode": mode }))).await;
        assert_eq!(answer.expect(StatusCode::OK)["ai_mode"], mode);
    }

    async fn asks(&self, tenant: &Tenant) -> Answer {
        self.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" })).await
    }

    /// Asks until the answer has this status: a server hears of a change a moment after it.
    async fn comes_to_answer(&self, tenant: &Tenant, status: StatusCode) -> Answer {
        for _ in 0..50 {
            let answer = self.asks(tenant).await;
            if answer.status == status {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("within a second it does not come to answer {status}");
    }

    /// The configurations of the tenant's last calls and who pays for them, the last call first.
    async fn billed(&self, tenant: &Tenant, calls: i64) -> Vec<(String, String)> {
        let database = connect(&self.tenant_database(&tenant.slug).await).await.unwrap();
        let sql = "SELECT configuration, billed_to FROM model_calls ORDER BY id DESC LIMIT $1";
        database.query(sql, &[&calls]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

async fn lent(key: &str, models: &[&str]) -> Value {
    json!({
        "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": key, "models": models,
        "default_model": models[0]
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_use_what_is_lent_as_their_mode_says() {
    let first = Platform::start().await;
    let tenant = first.tenant("borrows").await;
    let second = Platform::start_with(Options { database: Some(first.database.clone()), ..Options::default() }).await;
    let key = format!("lent-{}", Uuid::new_v4().simple());
    first.lend("house", lent(&key, &["instant"]).await).await.expect_success();
    first.send(Method::DELETE, "/api/v1/ai-keys/main", &tenant.admin.access, None).await.expect_success();
    let billed =
        |names: &[(&str, &str)]| names.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    // Nothing is lent to whoever is not allowed it.
    for platform in [&first, &second] {
        let refused = platform.asks(&tenant).await.expect_problem(StatusCode::CONFLICT);
        assert_eq!(refused, "ai_key_missing");
    }
    assert!(fake_model().await.calls_with_key(&key).is_empty());
    first.set_ai_mode(&tenant, "shared").await;
    for platform in [&first, &second] {
        let answer = platform.comes_to_answer(&tenant, StatusCode::OK).await;
        assert_eq!(answer.body["model"], "instant");
        assert_eq!(first.billed(&tenant, 1).await, billed(&[("house", "shared")]));
    }
    assert_eq!(fake_model().await.calls_with_key(&key).len(), 2);

    // Behind the tenant's own: it answers where that fails, and each call is billed to whom it belongs.
    let own = json!({
        "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
        "models": ["error-500", "echo"], "model_aliases": { "best": "error-500" }, "default_model": "best"
    });
    first.send(Method::PUT, "/api/v1/ai-keys/main", &tenant.admin.access, Some(own)).await.expect_success();
    let mut house = lent(&key, &["instant"]).await;
    house["model_aliases"] = json!({ "best": "instant" });
    first.lend("house", house).await.expect_success();
    first.set_ai_mode(&tenant, "own_then_shared").await;
    let mut answer = first.asks(&tenant).await.expect(StatusCode::OK);
    for _ in 0..50 {
        if answer["degraded"] == false && answer["model"] == "best" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = first.asks(&tenant).await.expect(StatusCode::OK);
    }
    assert_eq!((&answer["model"], &answer["degraded"]), (&json!("best"), &json!(false)), "{answer}");
    assert_eq!(first.billed(&tenant, 2).await, billed(&[("house", "shared"), ("main", "own")]));

    // What is lent no more is used no more, on any server.
    first.set_ai_mode(&tenant, "shared").await;
    first.comes_to_answer(&tenant, StatusCode::OK).await;
    let path = "/platform/v1/shared-models/house";
    first.send(Method::DELETE, path, &first.token, None).await.expect_success();
    assert_eq!(first.send(Method::DELETE, path, &first.token, None).await.status, StatusCode::NOT_FOUND);
    for platform in [&first, &second] {
        let refused = platform.comes_to_answer(&tenant, StatusCode::CONFLICT).await;
        assert_eq!(refused.body["code"], "ai_key_missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lent_key_is_sealed_and_goes_nowhere_its_owner_did_not_say() {
    let platform = Platform::start().await;
    let key = format!("canary-{}", Uuid::new_v4().simple());
    let set = platform.lend("house", lent(&key, &["instant", "error-401"]).await).await.expect(StatusCode::OK);
    let hint = format!("…{}", &key[key.len() - 4..]);
    assert_eq!((&set["api_key"], &set["position"], &set["enabled"]), (&json!(hint), &json!(0), &json!(true)));
    let second = platform.lend("other", lent("", &["echo"]).await).await.expect(StatusCode::OK);
    assert_eq!(second["position"], 1);
    // Changed without the key, which stays; but not sent elsewhere.
    let change = |more: Value| {
        let mut body = json!({ "provider": "openai_compatible", "models": ["instant"], "default_model": "instant" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let moved = platform.lend("house", change(json!({ "position": 5, "enabled": false }))).await;
    let moved = moved.expect(StatusCode::OK);
    assert_eq!((&moved["position"], &moved["enabled"], &moved["api_key"]), (&json!(5), &json!(false), &json!(hint)));
    for body in [
        change(json!({ "base_url": "https://elsewhere.example/v1" })),
        change(json!({ "provider": "anthropic" })),
        change(json!({ "default_model": "unheard-of" })),
        change(json!({ "model_aliases": { "fast": "unheard-of" } })),
    ] {
        let refused = platform.lend("house", body.clone()).await;
        assert_eq!(refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request", "{body}");
    }
    let new = platform.lend("new", change(json!({}))).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(new["errors"][0]["field"], "api_key");
    let list = platform.get("/platform/v1/shared-models", &platform.token).await;
    assert!(!list.text.contains(&key));
    let names: Vec<_> = list.body["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert_eq!(names, ["other", "house"]);
    // It works, and in the platform's database it is nowhere in the clear.
    let test = platform.post("/platform/v1/shared-models/house/test", &platform.token, json!({})).await;
    assert_eq!(test.expect(StatusCode::OK)["ok"], true);
    let none = platform.post("/platform/v1/shared-models/none/test", &platform.token, json!({})).await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    assert_eq!(fake_model().await.calls_with_key(&key).len(), 1);
    let database = platform.platform_client().await;
    for table in ["shared_models", "audit_events"] {
        let sql = format!("SELECT count(*), count(*) FILTER (WHERE row::text LIKE '%canary-%') FROM {table} AS row");
        let row = database.query_one(&sql, &[]).await.unwrap();
        assert!(row.get::<_, i64>(0) > 0 && row.get::<_, i64>(1) == 0, "{table}");
    }
    let sql = "SELECT position($1::bytea IN api_key_sealed) FROM shared_models WHERE name = 'house'";
    assert_eq!(database.query_one(sql, &[&key.as_bytes()]).await.unwrap().get::<_, i32>(0), 0);
}
