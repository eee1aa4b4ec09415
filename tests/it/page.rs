//! The chat page's server side: what strangers see, visitors without an account, the page's own session, feedback. What a
//! browser makes of it is in `tests/browser`.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{self, Answer, Options, PASSWORD, Platform, Tokens, connect};

fn visitors(per_day: u32, each: u32) -> Value {
    json!({ "visitors": { "enabled": true, "questions_per_day": per_day, "questions_per_visitor": each } })
}

async fn visit(platform: &Platform, slug: &str) -> Answer {
    platform.post("/api/v1/auth/visitor", "", json!({ "tenant": slug })).await
}

async fn visitor(platform: &Platform, slug: &str) -> Tokens {
    Tokens::from(&visit(platform, slug).await.expect(StatusCode::OK))
}

async fn ask(platform: &Platform, token: &str, question: &str) -> Answer {
    platform.post("/api/v1/chat", token, json!({ "message": question })).await
}

/// Asks until settings that were just changed are in force: pages know them for a few seconds.
async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    for _ in 0..100 {
        if look().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within ten seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_come_where_they_are_allowed_and_see_their_own_only() {
    let platform = Platform::start().await;
    let (open, closed) = (platform.tenant("visits-open").await, platform.tenant("visits-closed").await);
    platform.configure(&open, visitors(1000, 100)).await.expect(StatusCode::OK);
    // Not allowed, no such tenant, no slug at all: one answer.
    let refusal = |answer: Answer| (answer.status, answer.body["code"].clone(), answer.body["detail"].clone());
    let expected = refusal(visit(&platform, &closed.slug).await);
    assert_eq!((expected.0, &expected.1), (StatusCode::FORBIDDEN, &json!("visitors_not_allowed")));
    for slug in ["nobody-is-here", "", "../x"] {
        assert_eq!(refusal(visit(&platform, slug).await), expected, "{slug}");
    }
    let (one, other) = (visitor(&platform, &open.slug).await, visitor(&platform, &open.slug).await);
    let answer = ask(&platform, &one.access, "canary-of-one").await.expect(StatusCode::OK);
    let me = platform.get("/api/v1/me", &one.access).await.expect(StatusCode::OK);
    assert_eq!((&me["role"], &me["email"]), (&json!("visitor"), &json!("")));
    assert_eq!(me["permissions"], json!(["ai:chat", "conversations:own"]));
    let sessions = platform.get("/api/v1/sessions", &one.access).await.expect(StatusCode::OK);
    assert_eq!(sessions["items"].as_array().unwrap().len(), 1);
    // Nobody else sees it, and the visitor sees nothing of the tenant's.
    for token in [&other.access, &open.user.access, &open.admin.access] {
        let path = format!("/api/v1/sessions/{}/messages", answer["session_id"].as_str().unwrap());
        assert_eq!(platform.get(&path, token).await.status, StatusCode::NOT_FOUND);
    }
    for path in ["/api/v1/users", "/api/v1/config", "/api/v1/ai-keys", "/api/v1/usage", "/api/v1/api-keys"] {
        assert_eq!(platform.get(path, &one.access).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    // A visitor is no account: it is in no list, cannot be changed, and nobody can be made one.
    let id = me["id"].as_str().unwrap();
    let users = platform.get("/api/v1/users", &open.admin.access).await;
    assert!(!users.text.contains(id) && !users.text.contains("visitor"), "{}", users.text);
    for (method, body) in
        [(Method::GET, None), (Method::PATCH, Some(json!({ "role": "admin" }))), (Method::DELETE, None)]
    {
        let answer = platform.send(method, &format!("/api/v1/users/{id}"), &open.admin.access, body).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text);
    }
    let body = json!({ "email": "v@x.example", "role": "visitor", "password": PASSWORD });
    let made = platform.post("/api/v1/users", &open.admin.access, body).await;
    assert_eq!(made.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
    let body = json!({ "role": "visitor" });
    let path = format!("/api/v1/users/{}", open.user_id);
    let changed = platform.send(Method::PATCH, &path, &open.admin.access, Some(body)).await;
    assert_eq!(changed.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
    let login = json!({ "tenant": open.slug, "email": format!("visitor:{id}"), "password": "" });
    assert_eq!(platform.post("/api/v1/auth/login", "", login).await.status, StatusCode::UNAUTHORIZED);
    // Its tokens are renewed like a user's, and stay a visitor's.
    let body = json!({ "refresh_token": one.refresh });
    let renewed = Tokens::from(&platform.post("/api/v1/auth/refresh", "", body).await.expect(StatusCode::OK));
    let me = platform.get("/api/v1/me", &renewed.access).await.expect(StatusCode::OK);
    assert_eq!((&me["role"], &me["id"]), (&json!("visitor"), &json!(id)));
    // Switched off, those who are there ask no more.
    platform.configure(&open, json!({ "visitors": { "enabled": false } })).await.expect(StatusCode::OK);
    until("visitors are refused", async || {
        ask(&platform, &renewed.access, "still?").await.body["code"] == "visitors_not_allowed"
    })
    .await;
    assert_eq!(ask(&platform, &open.user.access, "and I?").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_limits_hold_over_servers_however_many_ask_at_once() {
    let first = Platform::start().await;
    let tenant = first.tenant("visits-limits").await;
    first.configure(&tenant, visitors(30, 12)).await.expect(StatusCode::OK);
    let options = Options { database: Some(first.database.clone()), ..Options::default() };
    let second = Platform::start_with(options).await;
    let servers = [&first, &second];
    let asked = async |token: &str, count: usize| {
        let asks = (0..count).map(|number| ask(servers[number % 2], token, "hello"));
        let answers = futures::future::join_all(asks).await;
        let answered = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
        for answer in answers.iter().filter(|answer| answer.status != StatusCode::OK) {
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", answer.text);
            assert_eq!(answer.body["code"], "visitor_limit_reached");
            assert!(answer.headers.contains_key("retry-after"));
        }
        answered
    };
    let (one, other, third) = (
        visitor(&first, &tenant.slug).await,
        visitor(&second, &tenant.slug).await,
        visitor(&first, &tenant.slug).await,
    );
    assert_eq!(asked(&one.access, 25).await, 12, "each has its own limit");
    assert_eq!(asked(&other.access, 25).await, 12);
    assert_eq!(asked(&third.access, 25).await, 6, "all together have one");
    assert_eq!(asked(&tenant.user.access, 2).await, 2, "users are not counted");
    // And how many come in an hour: three are there.
    let visits = futures::future::join_all((0..40).map(|number| visit(servers[number % 2], &tenant.slug))).await;
    let came = visits.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(came, 17, "twenty in an hour");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_goes_with_all_that_was_said_when_its_time_is_over() {
    let clock = harness::manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let platform = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let tenant = platform.tenant("visits-end").await;
    platform.configure(&tenant, visitors(1000, 100)).await.expect(StatusCode::OK);
    let gone = visitor(&platform, &tenant.slug).await;
    ask(&platform, &gone.access, "canary").await.expect(StatusCode::OK);
    // While the super admin's session lasts.
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    clock.advance(TimeDelta::days(29));
    let body = json!({ "refresh_token": gone.refresh });
    let renewed = Tokens::from(&platform.post("/api/v1/auth/refresh", "", body).await.expect(StatusCode::OK));
    // Renewing does not make a visitor last longer.
    clock.advance(TimeDelta::days(2));
    let body = json!({ "refresh_token": renewed.refresh });
    assert_eq!(platform.post("/api/v1/auth/refresh", "", body).await.status, StatusCode::UNAUTHORIZED);
    visitor(&platform, &tenant.slug).await;
    let count = async |sql: &str| database.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(count("SELECT count(*) FROM client_users WHERE role = 'visitor'").await, 1);
    assert_eq!(count("SELECT count(*) FROM chat_messages").await, 0);
    assert_eq!(count("SELECT count(*) FROM visitor_counts WHERE subject <> 'visitors'").await, 0);
    // What it cost stays in the ledger.
    assert_eq!(count("SELECT count(*) FROM model_calls").await, 1);
    // Where no other visitor comes, a periodic task sees to it. It looks at tenants that it has not looked at lately.
    let task = freehold::scheduled::TASKS.iter().find(|task| task.name == "settle_abandoned_calls").unwrap();
    let sweep = async || {
        platform.platform_client().await.execute("DELETE FROM tenant_uses", &[]).await.unwrap();
        (task.run)(platform.state.clone()).await.unwrap();
        count("SELECT count(*) FROM client_users WHERE role = 'visitor'").await
    };
    assert_eq!(sweep().await, 1, "its time is not over");
    clock.advance(TimeDelta::days(31));
    assert_eq!(sweep().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_a_page_from_memory_and_nothing_but_the_page() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("page-open").await;
    let canary = json!({ "system_prompt": "canary-of-the-prompt", "welcome_message": "Welcome in" });
    platform.configure(&tenant, canary).await.expect(StatusCode::OK);
    let page = platform.get("/c/page-open", "").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text.contains("Welcome in"), "{}", page.text);
    for secret in ["canary-of-the-prompt", &tenant.key, "example", &tenant.id.to_string(), "echo"] {
        assert!(!page.text.contains(secret), "{secret}");
    }
    let header =
        |answer: &Answer, name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let policy = header(&page, "content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self';",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&page, "x-content-type-options").as_deref(), Some("nosniff"));
    assert_eq!(header(&page, "cache-control").as_deref(), Some("no-cache"));
    assert!(header(&platform.get("/api/health", "").await, "x-frame-options").is_some());
    // Its files are kept for ever; a path that names nothing is none.
    let asset = page.text.split("src=\"/assets/").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let file = platform.get(&format!("/assets/{asset}"), "").await;
    assert_eq!(file.status, StatusCode::OK);
    assert!(header(&file, "cache-control").unwrap().contains("immutable"));
    for path in [
        "/assets/x/chat.js",
        "/assets/0000000000000000/none.js",
        "/assets/x/..%2fpage.html",
        "/c/page-open/none",
        "/c/%00",
        "/c/a%20b",
    ] {
        assert_eq!(platform.get(path, "").await.status, StatusCode::NOT_FOUND, "{path}");
    }
    // A page that a server of another version rendered still gets its files, and nobody keeps them under that address.
    let name = asset.split('/').nth(1).unwrap();
    let other = platform.get(&format!("/assets/0123456789abcdef/{name}"), "").await;
    assert_eq!((other.status, &other.text), (StatusCode::OK, &file.text));
    assert_eq!(header(&other, "cache-control").as_deref(), Some("no-store"));
    assert_eq!(header(&other, "content-type"), header(&file, "content-type"));
    // However often it is opened, it is made once.
    let opened = futures::future::join_all((0..300).map(|_| platform.state.pages.find("page-open"))).await;
    let first = opened.first().and_then(|found| found.as_ref().ok().cloned().flatten()).unwrap();
    for found in &opened {
        assert!(Arc::ptr_eq(found.as_ref().unwrap().as_ref().unwrap(), &first));
    }
    platform.configure(&tenant, json!({ "welcome_message": "Another welcome" })).await.expect(StatusCode::OK);
    until("the new text is shown", async || platform.get("/c/page-open", "").await.text.contains("Another")).await;
    // Out of service, it looks like one that never was.
    let unknown = platform.get("/c/page-unknown", "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let german =
        platform.client.get(format!("{}/c/page-unknown", platform.url)).header("accept-language", "fr, de;q=0.8");
    let german = Answer::read("/c/page-unknown", german.send().await.unwrap()).await;
    assert!(german.text.contains("lang=\"de\"") && german.text.contains("Hier gibt es keinen Chat"), "{}", german.text);
    platform.post("/platform/v1/tenants/page-open/suspend", &platform.token, json!({})).await.expect_success();
    until("the page is gone", async || {
        let answer = platform.get("/c/page-open", "").await;
        (answer.status, &answer.text) == (StatusCode::NOT_FOUND, &unknown.text)
    })
    .await;
}

/// What the page sends.
fn page_headers(cookie: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-freehold-page", HeaderValue::from_static("1"));
    headers.insert("sec-fetch-site", HeaderValue::from_static("same-origin"));
    if let Some(cookie) = cookie {
        headers.insert("cookie", HeaderValue::from_str(cookie).unwrap());
    }
    headers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_session_is_a_cookie_that_only_the_page_can_use() {
    let settings = [("FREEHOLD_PUBLIC_URL", "https://chat.example")];
    let platform = Platform::start_with(Options { settings: &settings, ..Options::default() }).await;
    let (tenant, other) = (platform.tenant("page-session").await, platform.tenant("page-other").await);
    let send = async |method: Method, path: &str, headers: HeaderMap, body: Value| {
        let request = platform.client.request(method, format!("{}{path}", platform.url)).headers(headers).json(&body);
        Answer::read(path, request.send().await.unwrap()).await
    };
    let path = format!("/c/{}/session", tenant.slug);
    let body = json!({ "email": tenant.user_email, "password": PASSWORD });
    let signed_in = send(Method::POST, &path, page_headers(None), body.clone()).await;
    let set = signed_in.headers["set-cookie"].to_str().unwrap().to_owned();
    let access = signed_in.expect(StatusCode::OK);
    assert!(access["refresh_token"].is_null(), "no script reads it");
    assert!(set.starts_with("__Secure-freehold_refresh=fhr_"), "{set}");
    for part in ["Path=/c/page-session/session;", "HttpOnly", "SameSite=Strict", "; Secure", "Max-Age="] {
        assert!(set.contains(part), "{part}: {set}");
    }
    let cookie = set.split(';').next().unwrap().to_owned();
    let token = access["access_token"].as_str().unwrap();
    assert_eq!((&access["user_id"], &access["role"]), (&json!(tenant.user_id), &json!("user")));
    assert_eq!(platform.get("/api/v1/me", token).await.status, StatusCode::OK);
    // Another site's page can send the cookie at most, and never this header.
    let mut foreign = page_headers(Some(&cookie));
    foreign.insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
    let mut bare = page_headers(Some(&cookie));
    bare.remove("x-freehold-page");
    for headers in [foreign, bare] {
        for (method, at) in
            [(Method::POST, path.clone()), (Method::POST, format!("{path}/refresh")), (Method::DELETE, path.clone())]
        {
            let answer = send(method, &at, headers.clone(), body.clone()).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{at}");
            assert!(!answer.headers.contains_key("set-cookie"));
        }
    }
    // Used many times at once, it stays good; as a bearer token it is none, and the API does not look at cookies.
    let refresh = async |cookie: Option<&str>| {
        send(Method::POST, &format!("{path}/refresh"), page_headers(cookie), json!({})).await
    };
    for answer in futures::future::join_all((0..10).map(|_| refresh(Some(&cookie)))).await {
        assert!(!answer.headers.contains_key("set-cookie"));
        let renewed = answer.expect(StatusCode::OK);
        assert_eq!((&renewed["user_id"], &renewed["role"]), (&json!(tenant.user_id), &json!("user")));
        let token = renewed["access_token"].as_str().unwrap();
        assert_eq!(platform.get("/api/v1/me", token).await.status, StatusCode::OK);
    }
    let with_cookie = platform.client.get(format!("{}/api/v1/me", platform.url)).header("cookie", &cookie);
    assert_eq!(with_cookie.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    for nothing in [None, Some("__Secure-freehold_refresh="), Some("__Secure-freehold_refresh=fhr_x"), Some("other=1")]
    {
        assert_eq!(refresh(nothing).await.status, StatusCode::UNAUTHORIZED);
    }
    // A visitor is told what is missing; half a sign-in is refused.
    let visitor = send(Method::POST, &path, page_headers(None), json!({ "visitor": true })).await;
    assert_eq!(visitor.expect_problem(StatusCode::FORBIDDEN), "visitors_not_allowed");
    for bad in [json!({}), json!({ "email": "a@b.example" }), json!({ "visitor": true, "email": "a@b.example" })] {
        assert_eq!(send(Method::POST, &path, page_headers(None), bad).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let wrong = json!({ "email": tenant.user_email, "password": "not the password" });
    assert_eq!(send(Method::POST, &path, page_headers(None), wrong).await.status, StatusCode::UNAUTHORIZED);
    let elsewhere = format!("/c/{}/session", other.slug);
    assert_eq!(send(Method::POST, &elsewhere, page_headers(None), body).await.status, StatusCode::UNAUTHORIZED);
    // Signed out, it is good no more, and neither is what it gave.
    let ended = send(Method::DELETE, &path, page_headers(Some(&cookie)), json!({})).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert!(ended.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    let refused = refresh(Some(&cookie)).await;
    assert!(refused.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&platform, token, "hello?").await.status, StatusCode::UNAUTHORIZED);
}

/// The page's session address, as the page itself uses it. Returns the answer and the cookie that is set with it.
async fn page_session(
    platform: &Platform,
    slug: &str,
    rest: &str,
    cookie: Option<&str>,
    body: Value,
) -> (Answer, Option<String>) {
    let path = format!("/c/{slug}/session{rest}");
    let request =
        platform.client.post(format!("{}{path}", platform.url)).headers(page_headers(cookie)).json(&body).send();
    let answer = Answer::read(&path, request.await.unwrap()).await;
    let set = answer.headers.get("set-cookie").and_then(|value| value.to_str().ok());
    let set = set.and_then(|set| set.split(';').next()).map(str::to_owned);
    (answer, set)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_signs_in_replaces_who_was_there() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("page-replaced").await;
    platform.configure(&tenant, visitors(1000, 100)).await.expect(StatusCode::OK);
    let visit = json!({ "visitor": true });
    let mut came = page_session(&platform, &tenant.slug, "", None, visit.clone()).await;
    for _ in 0..100 {
        if came.0.status == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        came = page_session(&platform, &tenant.slug, "", None, visit.clone()).await;
    }
    let (visited, cookie) = (came.0.expect(StatusCode::OK), came.1.unwrap());
    assert_eq!(visited["role"], "visitor");
    let wrong = json!({ "email": tenant.user_email, "password": "not the password" });
    let (refused, set) = page_session(&platform, &tenant.slug, "", Some(&cookie), wrong).await;
    assert_eq!((refused.status, set), (StatusCode::UNAUTHORIZED, None));
    let renew = async |cookie: &str| page_session(&platform, &tenant.slug, "/refresh", Some(cookie), json!({})).await.0;
    let renewed = renew(&cookie).await.expect(StatusCode::OK);
    assert_eq!(renewed["user_id"], visited["user_id"], "a wrong password takes nothing from the visitor");
    let right = json!({ "email": tenant.user_email, "password": PASSWORD });
    let (signed_in, set) = page_session(&platform, &tenant.slug, "", Some(&cookie), right).await;
    assert_eq!(signed_in.expect(StatusCode::OK)["user_id"], json!(tenant.user_id));
    let renewed = renew(&set.unwrap()).await.expect(StatusCode::OK);
    assert_eq!((&renewed["user_id"], &renewed["role"]), (&json!(tenant.user_id), &json!("user")));
    assert_eq!(renew(&cookie).await.status, StatusCode::UNAUTHORIZED, "the visitor's session is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_takes_no_session_and_no_visitors_conversation() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("page-paused").await;
    let body = json!({ "email": tenant.user_email, "password": PASSWORD });
    let (_, cookie) = page_session(&platform, &tenant.slug, "", None, body).await;
    let cookie = cookie.unwrap();
    let frame = json!({ "refresh_token": tenant.user.refresh });
    platform.post("/platform/v1/tenants/page-paused/suspend", &platform.token, json!({})).await.expect_success();
    let renew = async || page_session(&platform, &tenant.slug, "/refresh", Some(&cookie), json!({})).await;
    until("nobody is renewed", async || renew().await.0.status == StatusCode::FORBIDDEN).await;
    let (refused, set) = renew().await;
    assert_eq!((refused.expect_problem(StatusCode::FORBIDDEN), set), ("tenant_not_active".to_owned(), None));
    let refused = platform.post("/api/v1/auth/refresh", "", frame.clone()).await;
    assert_eq!(refused.expect_problem(StatusCode::FORBIDDEN), "tenant_not_active");
    // What names no tenant there is looks the same; what is no token at all is refused as one.
    let nowhere = tenant.user.refresh.replace(&tenant.id.simple().to_string(), &Uuid::now_v7().simple().to_string());
    let refused = platform.post("/api/v1/auth/refresh", "", json!({ "refresh_token": nowhere })).await;
    assert_eq!(refused.expect_problem(StatusCode::FORBIDDEN), "tenant_not_active");
    let nonsense = platform.post("/api/v1/auth/refresh", "", json!({ "refresh_token": "fhr_nonsense" })).await;
    assert_eq!(nonsense.status, StatusCode::UNAUTHORIZED);
    // Once the suspension is carried out.
    until("it is resumed", async || {
        platform.post("/platform/v1/tenants/page-paused/resume", &platform.token, json!({})).await.status.is_success()
    })
    .await;
    until("they are renewed", async || renew().await.0.status == StatusCode::OK).await;
    let renewed = platform.post("/api/v1/auth/refresh", "", frame).await.expect(StatusCode::OK);
    assert_eq!((&renewed["user_id"], &renewed["role"]), (&json!(tenant.user_id), &json!("user")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_is_told_of_its_own_questions_and_a_refused_one_uses_none() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("visits-quota").await;
    platform.configure(&tenant, visitors(1000, 7)).await.expect(StatusCode::OK);
    platform.set_limits(&tenant.slug, json!({ "requests_per_month": 3000, "requests_per_minute": 2 })).await;
    let (one, other) = (visitor(&platform, &tenant.slug).await, visitor(&platform, &tenant.slug).await);
    let answer = ask(&platform, &one.access, "hello").await;
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("x-ratelimit")), "{:?}", answer.headers);
    assert_eq!(answer.expect(StatusCode::OK)["queries_remaining"], 6);
    let quota = async |token: &str| platform.get("/api/v1/quota", token).await.expect(StatusCode::OK);
    let own = quota(&one.access).await;
    let today = &own["questions_today"];
    assert_eq!((&today["limit"], &today["used"], &today["remaining"]), (&json!(7), &json!(1), &json!(6)));
    assert_eq!(own.as_object().unwrap().len(), 1, "{own}");
    assert_eq!(quota(&other.access).await["questions_today"]["used"], 0);
    let users = quota(&tenant.user.access).await;
    assert_eq!((&users["requests_this_month"]["limit"], users.get("questions_today")), (&json!(3000), None));
    assert!(users["plan"].is_string() && users["requests_per_minute"]["limit"] == 2, "{users}");
    // The minute's two are used up: those that are refused are not counted.
    until("the limit is in force", async || {
        let refused = ask(&platform, &one.access, "again").await;
        if refused.status == StatusCode::OK {
            return false;
        }
        assert!(!refused.text.contains("at most") && !refused.headers.contains_key("x-ratelimit-limit-requests"));
        assert!(refused.headers.contains_key("retry-after"), "{}", refused.text);
        refused.expect_problem(StatusCode::TOO_MANY_REQUESTS) == "rate_limit_exceeded"
    })
    .await;
    let before = quota(&one.access).await["questions_today"]["used"].as_i64().unwrap();
    for _ in 0..8 {
        let refused = ask(&platform, &one.access, "and again").await;
        assert_eq!(refused.expect_problem(StatusCode::TOO_MANY_REQUESTS), "rate_limit_exceeded");
    }
    assert_eq!(quota(&one.access).await["questions_today"]["used"], before);
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let all = "SELECT count FROM visitor_counts WHERE subject = 'questions'";
    assert_eq!(i64::from(database.query_one(all, &[]).await.unwrap().get::<_, i32>(0)), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_is_the_askers_own() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("page-feedback").await;
    let answer = ask(&platform, &tenant.user.access, "Does it help?").await.expect(StatusCode::OK);
    let path = format!("/api/v1/messages/{}/feedback", answer["message_id"].as_str().unwrap());
    let put = async |path: &str, token: &str, body: Value| platform.send(Method::PUT, path, token, Some(body)).await;
    let messages = async || {
        let path = format!("/api/v1/sessions/{}/messages", answer["session_id"].as_str().unwrap());
        platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK)["items"].clone()
    };
    let down = json!({ "rating": "down", "comment": "  Too short.  " });
    assert_eq!(put(&path, &tenant.user.access, down).await.status, StatusCode::NO_CONTENT);
    let items = messages().await;
    assert_eq!(items[1]["feedback"], json!({ "rating": "down", "comment": "Too short." }));
    assert!(items[0]["feedback"].is_null());
    assert_eq!(put(&path, &tenant.user.access, json!({ "rating": "up" })).await.status, StatusCode::NO_CONTENT);
    assert_eq!(messages().await[1]["feedback"], json!({ "rating": "up", "comment": null }));
    // Of another's answer, a question, and what is not there.
    let question = format!("/api/v1/messages/{}/feedback", items[0]["id"].as_str().unwrap());
    let nowhere = format!("/api/v1/messages/{}/feedback", Uuid::now_v7());
    for (path, token) in
        [(&path, &tenant.admin.access), (&question, &tenant.user.access), (&nowhere, &tenant.user.access)]
    {
        assert_eq!(put(path, token, json!({ "rating": "up" })).await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(platform.send(Method::DELETE, path, token, None).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    for bad in [
        json!({ "rating": "sideways" }),
        json!({ "rating": "up", "comment": "x".repeat(2001) }),
        json!({ "rating": "up", "comment": "a\u{0}b" }),
        json!({ "rating": "up", "user_id": tenant.user_id }),
    ] {
        assert_eq!(put(&path, &tenant.user.access, bad).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    for _ in 0..2 {
        let gone = platform.send(Method::DELETE, &path, &tenant.user.access, None).await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT);
    }
    assert!(messages().await[1]["feedback"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admins_read_what_users_think_and_not_who_they_are() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("page-thoughts").await;
    let question = format!("What is {}?", "x".repeat(400));
    let mut answers = Vec::new();
    for (text, rating, comment) in
        [("one?", "up", None), ("two?", "down", Some("Too short.")), (&question, "down", Some("Wrong."))]
    {
        let answer = ask(&platform, &tenant.user.access, text).await.expect(StatusCode::OK);
        let path = format!("/api/v1/messages/{}/feedback", answer["message_id"].as_str().unwrap());
        let body = json!({ "rating": rating, "comment": comment });
        platform.send(Method::PUT, &path, &tenant.user.access, Some(body)).await.expect_success();
        answers.push(answer);
    }
    let list = async |query: &str| {
        platform.get(&format!("/api/v1/feedback{query}"), &tenant.admin.access).await.expect(StatusCode::OK)
    };
    let all = list("").await;
    let items = all["items"].as_array().unwrap();
    assert_eq!((items.len(), all.get("next_cursor")), (3, None));
    let seen: Vec<_> = items.iter().map(|item| (&item["message_id"], &item["rating"], &item["comment"])).collect();
    assert_eq!(seen[0], (&answers[2]["message_id"], &json!("down"), &json!("Wrong.")));
    assert_eq!(seen[2], (&answers[0]["message_id"], &json!("up"), &Value::Null));
    assert_eq!(items[0]["question"], question.chars().take(300).collect::<String>());
    assert_eq!((&items[1]["question"], &items[1]["answer"]), (&json!("two?"), &answers[1]["content"]));
    assert!(!all.to_string().contains(&tenant.user_id) && !all.to_string().contains(&tenant.user_email), "{all}");

    let page = list("?rating=down&limit=1").await;
    assert_eq!(page["items"][0]["message_id"], answers[2]["message_id"]);
    let page = list(&format!("?rating=down&limit=1&cursor={}", page["next_cursor"].as_str().unwrap())).await;
    assert_eq!((&page["items"][0]["message_id"], page.get("next_cursor")), (&answers[1]["message_id"], None));
    let refused = platform.get("/api/v1/feedback?rating=sideways", &tenant.admin.access).await;
    assert!(refused.status.is_client_error(), "{}", refused.text);
    // Users have no business with it.
    let user = platform.get("/api/v1/feedback", &tenant.user.access).await;
    assert_eq!(user.status, StatusCode::FORBIDDEN);
}
