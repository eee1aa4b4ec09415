//! From `POST /platform/v1/tenants` to a tenant that answers.

use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Options, PASSWORD, Platform, new_tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_tenant_becomes_active_with_the_templates_settings() {
    let platform = Platform::start().await;
    let mut body = new_tenant("harbour-dental");
    body["template"] = json!("clinic");
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    assert_eq!(answer["operation"]["kind"], "provision_tenant");
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    assert!(operation["steps"].as_array().unwrap().iter().all(|step| step["state"] == "done"));
    let tenant = platform.get("/platform/v1/tenants/harbour-dental", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(tenant["state"], "active");
    assert!(tenant["schema_version"].as_i64().unwrap() > 0);
    let accept = json!({
        "tenant": "harbour-dental", "token": answer["admin_invite"]["token"], "password": PASSWORD
    });
    let tokens = platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
    let config = platform.get("/api/v1/config", tokens["access_token"].as_str().unwrap()).await.expect(StatusCode::OK);
    assert!(
        config["settings"]["system_prompt"].as_str().unwrap().contains("Company harbour-dental, a dental practice")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_gives_the_same_tenant_and_the_same_invite() {
    let platform = Platform::start().await;
    let send = async |body: Value| {
        let request = platform.client.post(format!("{}/platform/v1/tenants", platform.url));
        let request = request.bearer_auth(&platform.token).header("idempotency-key", "key-1").json(&body);
        let response = request.send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let both = tokio::join!(send(new_tenant("once")), send(new_tenant("once")));
    for (status, body) in [&both.0, &both.1] {
        assert_eq!(*status, StatusCode::ACCEPTED, "{body}");
        assert_eq!(body["tenant"]["id"], both.0.1["tenant"]["id"]);
        assert_eq!(body["admin_invite"]["token"], both.0.1["admin_invite"]["token"]);
    }
    let (status, body) = send(new_tenant("another")).await;
    assert_eq!((status, &body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused")));
    let stored = platform.platform_client().await;
    let kept = stored.query_one("SELECT encode(response_sealed, 'escape') FROM idempotency_keys", &[]).await.unwrap();
    let token = both.0.1["admin_invite"]["token"].as_str().unwrap();
    assert!(!kept.get::<_, String>(0).contains(token), "the kept answer is sealed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_the_field_and_the_choices() {
    let platform = Platform::start().await;
    let refuse = async |field: &str, value: Value| {
        let mut body = new_tenant("refused");
        body[field] = value;
        let answer = platform.post("/platform/v1/tenants", &platform.token, body).await;
        let problem = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem["code"], "invalid_request", "{problem}");
        problem
    };
    for slug in ["", "ab", "Capital", "has space", "-leading", "trailing-", "admin", "a;drop", "ünïcode", "a--b"] {
        assert_eq!(refuse("slug", json!(slug)).await["errors"][0]["field"], "slug", "{slug}");
    }
    assert_eq!(refuse("admin_email", json!("nobody")).await["errors"][0]["field"], "admin_email");
    let plan = refuse("plan", json!("golden")).await;
    assert_eq!(plan["errors"][0]["message"], "must be one of: enterprise, free, premium, pro");
    refuse("template", json!("castle")).await;
    refuse("database", json!({ "mode": "managed", "cluster": "elsewhere" })).await;
    refuse("unknown", json!(1)).await;
    let answer = platform.send(Method::POST, "/platform/v1/tenants", &platform.token, None).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    platform.request_tenant("taken").await.expect(StatusCode::ACCEPTED);
    assert_eq!(platform.request_tenant("taken").await.expect_problem(StatusCode::CONFLICT), "slug_taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_operation_on_a_tenant_is_refused_and_told_who_holds_it() {
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let answer = platform.request_tenant("held").await.expect(StatusCode::ACCEPTED);
    let holder = answer["operation"]["id"].as_str().unwrap();
    let mut connection = platform.state.pool.acquire().await.unwrap();
    let second = freehold::operations::NewOperation {
        id: freehold::ids::OperationId::new(),
        kind: "provision_tenant",
        tenant_id: Some(answer["tenant"]["id"].as_str().unwrap().parse().unwrap()),
        input: json!({}),
        steps: &["one"],
        created_by: None,
        group_id: None,
    };
    let error = freehold::operations::store::create(&mut connection, &second, platform.state.clock.now()).await;
    assert!(error.unwrap_err().to_string().contains(holder));
    // What is not over cannot be retried.
    let path = format!("/platform/v1/operations/{holder}/retry");
    let answer = platform.send(Method::POST, &path, &platform.token, None).await;
    assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "operation_not_failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_streamed_until_the_operation_is_settled() {
    let platform = Platform::start().await;
    let answer = platform.request_tenant("followed").await.expect(StatusCode::ACCEPTED);
    let path = format!("/platform/v1/operations/{}/events", answer["operation"]["id"].as_str().unwrap());
    let stream = platform.get(&path, &platform.token).await;
    assert_eq!(stream.headers["content-type"], HeaderValue::from_static("text/event-stream"));
    let last = crate::harness::events(&stream.text).pop().unwrap().1;
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_cannot_be_used_is_refused_without_its_password() {
    let platform = Platform::start().await;
    let body = json!({ "name": "bad", "admin_url": "postgres://nobody:canary-password@127.0.0.1:1/postgres" });
    let answer = platform.post("/platform/v1/clusters", &platform.token, body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
    let listed = platform.get("/platform/v1/clusters", &platform.token).await;
    assert!(!listed.text.contains("postgres://"), "{}", listed.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages_that_hold_every_tenant_once() {
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    for number in 0..5 {
        platform.request_tenant(&format!("page-{number}")).await.expect(StatusCode::ACCEPTED);
    }
    let (mut slugs, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/platform/v1/tenants?limit=2&state=requested{cursor}");
        let page = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
        slugs
            .extend(page["items"].as_array().unwrap().iter().map(|tenant| tenant["slug"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(slugs, (0..5).map(|number| format!("page-{number}")).collect::<Vec<_>>());
    let active = platform.get("/platform/v1/tenants?state=active", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(active["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_names_the_address_clients_use() {
    let settings = &[("FREEHOLD_PUBLIC_URL", "https://chat.example/")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let answer = platform.request_tenant("harbour").await.expect(StatusCode::ACCEPTED);
    assert_eq!(answer["admin_invite"]["server_url"], "https://chat.example");
    platform.settled(&answer["operation"]).await;
    let path = "/platform/v1/tenants/harbour/invites";
    let invite = platform.post(path, &platform.token, json!({})).await.expect(StatusCode::CREATED);
    assert_eq!(invite["server_url"], "https://chat.example");
}
