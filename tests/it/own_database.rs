//! Databases that clients bring: given at creation or by a token, checked, set up, changed, and left as they were found.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Options, PASSWORD, Platform, clients_server, connect, execute, manual_clock, new_tenant, server};
use crate::kill_matrix::run_here;

/// What the client has in its database before anything of ours is there.
const THEIRS: &str = "CREATE TABLE theirs (id int PRIMARY KEY); INSERT INTO theirs VALUES (1), (2);
                      CREATE VIEW theirs_too AS SELECT * FROM theirs;";

fn own_tenant(slug: &str, database: Value) -> Value {
    let mut body = new_tenant(slug);
    body["database"] = database;
    body
}

/// An empty database on the clients' server, with something of the client's in it; returns its URL.
async fn bring(name: &str) -> String {
    let url = clients_server().await.create_clients_database(name).await;
    execute(&url, THEIRS).await;
    url
}

/// A platform whose clients may give private addresses: there are no others here.
async fn platform() -> Platform {
    let settings = &[("FREEHOLD_ALLOW_PRIVATE_DATABASE_HOSTS", "true")];
    Platform::start_with(Options { settings, ..Options::default() }).await
}

/// Asks for a tenant with a database of its own, for the kill matrix; returns the operation.
pub async fn start(platform: &Platform, slug: &str) -> Value {
    let url = bring(&format!("{}_{}", platform.database, slug.replace('-', "_"))).await;
    let body = own_tenant(slug, json!({ "mode": "own", "url": url }));
    platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED)["operation"].clone()
}

/// Compares what is in a client's database with what the registry says.
pub async fn compare(platform: &Platform, slug: &str, provisioned: bool) -> Result<(), String> {
    let registry = platform.platform_client().await;
    let sql = "SELECT t.state, d.database_name, t.id,
                      (SELECT count(*) FROM wrapped_keys w WHERE w.tenant_id = t.id),
                      (SELECT count(*) FROM signing_keys k WHERE k.tenant_id = t.id)
               FROM chat_instances t JOIN tenant_databases d ON d.tenant_id = t.id WHERE t.slug = $1";
    let row = registry.query_one(sql, &[&slug]).await.unwrap();
    let seen: (String, i64, i64) = (row.get(0), row.get(3), row.get(4));
    // The data key stays with the address that it seals: both were asked for, and a retry needs them.
    let expected = if provisioned { ("active".to_owned(), 1, 1) } else { ("failed".to_owned(), 1, 0) };
    if seen != expected {
        return Err(format!("expected {expected:?} (state, data keys, signing keys), found {seen:?}"));
    }
    let name: String = row.get(1);
    let client = connect(&clients_server().await.url(&name)).await.unwrap();
    let found = everything(&client).await;
    if !provisioned {
        let theirs = "class public.theirs, class public.theirs_pkey, class public.theirs_too";
        return if found == theirs { Ok(()) } else { Err(format!("the client's database has: {found}")) };
    }
    let row_count = "SELECT (SELECT count(*) FROM live_configurations), (SELECT count(*) FROM user_invites),
                            (SELECT count(*) FROM theirs), (SELECT count(*) FROM theirs_too),
                            (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
                             AND pg_get_userbyid(relowner) <> $1), (SELECT instance_id FROM freehold_instance)";
    let counted = client.query_one(row_count, &[&name]).await.unwrap();
    let counts: Vec<i64> = (0..5).map(|at| counted.get(at)).collect();
    if counts != [1, 1, 2, 2, 0] || counted.get::<_, uuid::Uuid>(5) != row.get::<_, uuid::Uuid>(2) {
        return Err(format!("configurations, invites, rows of the client's, relations of another owner: {counts:?}"));
    }
    Ok(())
}

/// Everything in a database that does not come with every database, by name.
async fn everything(client: &tokio_postgres::Client) -> String {
    let sql = "SELECT COALESCE(string_agg(what, ', ' ORDER BY what), '') FROM (
                   SELECT 'class ' || n.nspname || '.' || c.relname AS what FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                   UNION ALL SELECT 'function ' || n.nspname || '.' || p.proname FROM pg_proc p
                   JOIN pg_namespace n ON n.oid = p.pronamespace
                   UNION ALL SELECT 'schema x.' || nspname FROM pg_namespace WHERE nspname <> 'public'
               ) AS all_of_it
               WHERE what !~ '^[a-z]+ (x\\.)?(pg_|information_schema)'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_lives_in_the_database_that_the_owner_was_given() {
    let platform = platform().await;
    let url = bring("given_at_once").await;
    let body = own_tenant("given-at-once", json!({ "mode": "own", "url": url }));
    let path = "/platform/v1/tenants";
    let send = async |body: &Value| {
        let request = platform.client.post(format!("{}{path}", platform.url)).bearer_auth(&platform.token);
        let answer = request.header("idempotency-key", "given-at-once").json(body).send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    let (status, answer) = send(&body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert!(!answer.to_string().contains("a-long-random"), "{answer}");
    assert_eq!(answer["database_check"]["suitable"], true);
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!((&operation["kind"], &operation["state"]), (&json!("provision_own_database"), &json!("succeeded")));
    compare(&platform, "given-at-once", true).await.unwrap();
    // The same request again is the same tenant, although its database is taken by now; another address is another.
    let (_, again) = send(&body).await;
    assert_eq!(again["admin_invite"]["token"], answer["admin_invite"]["token"]);
    let mut other = body.clone();
    other["database"]["url"] = json!(format!("{url}?application_name=x"));
    assert_eq!(send(&other).await.1["code"], "idempotency_key_reused");
    let taken = own_tenant("second", json!({ "mode": "own", "url": url }));
    let refused = platform.post(path, &platform.token, taken).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!((&refused["code"], code(&refused)), (&json!("database_unsuitable"), "database_of_another_tenant"));

    let accept = json!({
        "tenant": "given-at-once", "token": answer["admin_invite"]["token"], "password": PASSWORD
    });
    let tokens = platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
    let admin = tokens["access_token"].as_str().unwrap();
    let shown = platform.get("/api/v1/database", admin).await;
    assert!(!shown.text.contains("a-long-random"), "{}", shown.text);
    let shown = shown.expect(StatusCode::OK);
    assert_eq!((&shown["name"], &shown["role"]), (&json!("given_at_once"), &json!("given_at_once")));
    assert_eq!((&shown["sslmode"], &shown["state"]), (&json!("disable"), &json!("active")));
    assert!(shown["last_check"]["server_version"].as_str().unwrap().starts_with("18."), "{shown}");
    // The platform's database and its log of operations hold no address in the clear.
    let registry = platform.platform_client().await;
    let sql = "SELECT (SELECT string_agg(o::text, ' ') FROM operations o) || (SELECT string_agg(r::text, ' ') FROM
               own_database_requests r) || (SELECT string_agg(d::text, ' ') FROM tenant_databases d)
               || (SELECT string_agg(a::text, ' ') FROM audit_events a)";
    let stored: String = registry.query_one(sql, &[]).await.unwrap().get(0);
    assert!(!stored.contains("a-long-random") && !stored.contains(&hex::encode("a-long-random")), "{stored}");
    // A tenant whose database the platform manages has none to give.
    let managed = platform.tenant("managed").await;
    let refused = platform.get("/api/v1/database", &managed.admin.access).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "database_managed");
    let path = "/platform/v1/tenants/managed/database-token";
    let refused = platform.post(path, &platform.token, json!({})).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "database_managed");
}

/// The code of the first finding of a refusal.
fn code(refused: &Value) -> &str {
    let finding = &refused["findings"][0];
    assert!(!finding["remedy"].as_str().unwrap().is_empty(), "{refused}");
    finding["code"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_waits_for_its_client_who_gives_the_database_with_a_token() {
    let platform = platform().await;
    let body = own_tenant("waits", json!({ "mode": "own" }));
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    assert_eq!((&answer["tenant"]["state"], &answer["operation"]), (&json!("waiting_for_client"), &Value::Null));
    let token = answer["database_token"]["token"].as_str().unwrap();
    assert!(token.starts_with("fhd_"));
    // Only its hash is kept.
    let registry = platform.platform_client().await;
    let stored: String =
        registry.query_one("SELECT string_agg(r::text, ' ') FROM own_database_requests r", &[]).await.unwrap().get(0);
    assert!(!stored.contains(token));

    // Nothing else works: nobody can sign in, and the token opens nothing but the database's own routes.
    let accept = json!({ "tenant": "waits", "token": answer["admin_invite"]["token"], "password": PASSWORD });
    assert!(platform.post("/api/v1/auth/accept-invite", "", accept.clone()).await.status.is_client_error());
    let paths = ["/api/v1/me", "/api/v1/config", "/api/v1/users", "/api/v1/ai-keys", "/api/v1/sessions"];
    for path in paths.into_iter().chain(["/platform/v1/tenants", "/platform/v1/doctor", "/platform/v1/operations"]) {
        assert_eq!(platform.get(path, token).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let body = json!({ "message": "hello" });
    assert_eq!(platform.post("/api/v1/chat", token, body).await.status, StatusCode::UNAUTHORIZED);
    let forged = format!("fhd_{}", "A".repeat(43));
    let invite = answer["admin_invite"]["token"].as_str().unwrap();
    for wrong in [forged.as_str(), "fhd_", invite, &platform.token, &token[..40]] {
        assert_eq!(platform.get("/api/v1/database", wrong).await.status, StatusCode::UNAUTHORIZED);
    }

    // A dry run stores nothing, nor does what is refused.
    let check = async |url: &str| {
        platform.post("/api/v1/database/check", token, json!({ "url": url })).await.expect(StatusCode::OK)
    };
    let url = bring("waited_for").await;
    let wrong = url.replace("random-waited", "random-wanted");
    assert_eq!(check(&wrong).await["findings"][0]["code"], "password_wrong");
    assert_eq!(check(&url).await["suitable"], true);
    let give =
        async |url: &str| platform.send(Method::PUT, "/api/v1/database", token, Some(json!({ "url": url }))).await;
    let refused = give(&wrong).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!((&refused["code"], code(&refused)), (&json!("database_unsuitable"), "password_wrong"));
    let shown = platform.get("/api/v1/database", token).await.expect(StatusCode::OK);
    assert_eq!((&shown["state"], &shown["host"]), (&json!("waiting_for_client"), &Value::Null));
    // The owner's own servers are no client's: not by the platform's address, and not by a cluster's.
    let server = server().await;
    for database in [platform.database.as_str(), "postgres", "no_such_database"] {
        let refused = give(&server.url(database)).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused["findings"].as_array().unwrap().len(), 2, "{refused}");
        assert_eq!(code(&refused), "platform_database", "{database}");
    }

    let accepted = give(&url).await.expect(StatusCode::ACCEPTED);
    let operation = platform.settled(&json!({ "id": accepted["operation_id"] })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    compare(&platform, "waits", true).await.unwrap();
    // The token is used up; the invite works now.
    assert_eq!(platform.get("/api/v1/database", token).await.status, StatusCode::UNAUTHORIZED);
    platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_does_not_send_the_server_to_inner_doors() {
    let platform = Platform::start().await;
    let body = own_tenant("inner", json!({ "mode": "own" }));
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    let token = answer["database_token"]["token"].as_str().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let url = format!("postgres://u:long-and-random@{host}:{port}/d");
        for (method, path) in [(Method::POST, "/api/v1/database/check"), (Method::PUT, "/api/v1/database")] {
            let answer = platform.send(method, path, token, Some(json!({ "url": url }))).await;
            let codes: Vec<&str> =
                answer.body["findings"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
            assert!(codes.contains(&"address_not_public"), "{host}: {}", answer.text);
        }
    }
    // Neither by a socket, nor by a file that the server would read.
    for (url, code) in [
        ("postgres://u:long-and-random@/d?host=/run/postgresql", "url_socket"),
        ("postgres://u:long-and-random@h/d?sslrootcert=/etc/passwd", "url_certificate_file"),
        // Nor by a name that leads elsewhere once it was judged: without a certificate, anything could answer there.
        ("postgres://u:long-and-random@db.example/d?sslmode=disable", "encryption_required"),
    ] {
        let answer = platform.post("/api/v1/database/check", token, json!({ "url": url })).await;
        assert!(answer.text.contains(code), "{}", answer.text);
    }
    let knocked = tokio::time::timeout(std::time::Duration::from_millis(100), listener.accept()).await;
    assert!(knocked.is_err(), "somebody was knocked on");
    // The owner may: it is the owner's network.
    let url = bring("of_the_owners_network").await;
    let body = json!({ "url": url });
    let check = platform.post("/platform/v1/database-checks", &platform.token, body).await.expect(StatusCode::OK);
    assert_eq!(check["suitable"], true, "{check}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_credentials_are_taken_for_the_same_database_only() {
    // The owner gave the address, so that new credentials for the very same place are no new place.
    let platform = Platform::start().await;
    let url = bring("changes").await;
    let body = own_tenant("changes", json!({ "mode": "own", "url": url }));
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    assert_eq!(platform.settled(&answer["operation"]).await["state"], "succeeded");
    let accept = json!({ "tenant": "changes", "token": answer["admin_invite"]["token"], "password": PASSWORD });
    let tokens = platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
    let admin = tokens["access_token"].as_str().unwrap().to_owned();
    let give = async |token: &str, url: &str| {
        platform.send(Method::PUT, "/api/v1/database", token, Some(json!({ "url": url }))).await
    };
    let postgres = clients_server().await;

    // Another database, and a copy of this one while it still answers.
    let other = bring("changes_other").await;
    let refused = give(&admin, &other).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.to_string().contains("different_database"), "{refused}");
    execute(&postgres.url("postgres"), "CREATE DATABASE changes_copy OWNER changes").await;
    let copy = postgres.url_as("changes", "changes_copy");
    let tenant = answer["tenant"]["id"].as_str().unwrap();
    let marker = format!(
        "CREATE TABLE freehold_instance AS SELECT true AS only_row, '{tenant}'::uuid AS instance_id, \
         gen_random_uuid() AS claimed_by, now() AS claimed_at"
    );
    execute(&copy, &marker).await;
    let refused = give(&admin, &copy).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.to_string().contains("a copy"), "{refused}");

    // A second role, while the first still works; then the first is shut off.
    execute(
        &postgres.url("postgres"),
        "CREATE ROLE changes_b LOGIN IN ROLE changes PASSWORD 'a-long-random-changes_b'",
    )
    .await;
    let second = postgres.url_as("changes_b", "changes");
    let accepted = give(&admin, &second).await.expect(StatusCode::OK);
    assert_eq!((&accepted["database"]["role"], &accepted["operation_id"]), (&json!("changes_b"), &Value::Null));
    execute(&postgres.url("postgres"), "ALTER ROLE changes NOLOGIN").await;
    let me = platform.get("/api/v1/me", &admin).await;
    assert_eq!(me.status, StatusCode::OK, "{}", me.text);

    // The credentials were changed at the provider first, and nobody of the client's can sign in: the owner helps.
    execute(&postgres.url("postgres"), "ALTER ROLE changes_b PASSWORD 'a-third-random-one'").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'changes%'";
    execute(&postgres.url("postgres"), end).await;
    let login = json!({ "tenant": "changes", "email": "admin@changes.example", "password": PASSWORD });
    let answer = platform.post("/api/v1/auth/login", "", login.clone()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    let doctor = platform.get("/platform/v1/doctor?tenants=true", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(doctor["healthy"], false);
    let found = doctor["findings"].as_array().unwrap().iter().find(|found| found["check"] == "database of changes");
    assert!(found.unwrap()["remedy"].as_str().unwrap().contains("password"), "{doctor}");
    let path = "/platform/v1/tenants/changes/database-token";
    let token = platform.post(path, &platform.token, json!({})).await.expect(StatusCode::CREATED);
    let token = token["token"].as_str().unwrap();
    let third = second.replace("a-long-random-changes_b", "a-third-random-one");
    give(token, &third).await.expect(StatusCode::OK);
    assert_eq!(give(token, &third).await.status, StatusCode::UNAUTHORIZED, "the token is used up");
    let mut answer = platform.post("/api/v1/auth/login", "", login.clone()).await;
    for _ in 0..100 {
        if answer.status == StatusCode::OK {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        answer = platform.post("/api/v1/auth/login", "", login.clone()).await;
    }
    let user = answer.expect(StatusCode::OK);
    // A user who is no admin has no say in it.
    let body = json!({ "email": "user@changes.example", "name": "User", "role": "user", "password": PASSWORD });
    let admin = user["access_token"].as_str().unwrap();
    platform.post("/api/v1/users", admin, body).await.expect(StatusCode::CREATED);
    let user = platform.login("changes", "user@changes.example").await;
    assert_eq!(platform.get("/api/v1/database", &user.access).await.status, StatusCode::FORBIDDEN);
    assert_eq!(give(&user.access, &third).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_could_not_be_set_up_is_left_as_it_was_and_another_can_be_given() {
    let settings = &[("FREEHOLD_ALLOW_PRIVATE_DATABASE_HOSTS", "true"), ("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let body = own_tenant("second-try", json!({ "mode": "own" }));
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    let token = answer["database_token"]["token"].as_str().unwrap().to_owned();
    let give =
        async |url: &str| platform.send(Method::PUT, "/api/v1/database", &token, Some(json!({ "url": url }))).await;
    let url = bring("second_try").await;
    let accepted = give(&url).await.expect(StatusCode::ACCEPTED);
    let operation = accepted["operation_id"].as_str().unwrap();
    // While it is under way, no other can be given.
    let refused = give(&url).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "operation_in_progress");
    // The client's own program comes in between.
    execute(&url, "CREATE TABLE chat_messages (theirs int)").await;
    run_here(&platform, operation, None).await.unwrap();
    let path = format!("/platform/v1/operations/{operation}");
    let failed = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("foreign_tables")), "{failed}");
    execute(&url, "DROP TABLE chat_messages").await;
    compare(&platform, "second-try", false).await.unwrap();

    let other = bring("second_try_other").await;
    let accepted = give(&other).await.expect(StatusCode::ACCEPTED);
    assert_eq!(accepted["operation_id"].as_str(), Some(operation), "the same operation goes on with it");
    run_here(&platform, operation, None).await.unwrap();
    compare(&platform, "second-try", true).await.unwrap();
    assert_eq!(platform.get("/api/v1/database", &token).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_use_is_not_cleared() {
    let settings = &[("FREEHOLD_ALLOW_PRIVATE_DATABASE_HOSTS", "true"), ("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let operation = start(&platform, "in-use").await;
    let id = operation["id"].as_str().unwrap();
    run_here(&platform, id, None).await.unwrap();
    // The platform's database comes back from a copy of a moment ago, and somebody has an account by now.
    let name = format!("{}_in_use", platform.database);
    let insert = "INSERT INTO client_users (id, email, name, role, password_hash, created_at, updated_at)
                  VALUES (gen_random_uuid(), 'a@b.example', 'A', 'admin', 'x', now(), now())";
    execute(&clients_server().await.url(&name), insert).await;
    let registry = platform.platform_client().await;
    let back =
        "UPDATE operations SET state = 'undoing', finished_at = NULL; UPDATE chat_instances SET state = 'provisioning'";
    registry.batch_execute(back).await.unwrap();
    run_here(&platform, id, None).await.unwrap();
    let path = format!("/platform/v1/operations/{id}");
    let stuck = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
    assert_eq!(stuck["state"], "needs_operator", "{stuck}");
    let client = connect(&clients_server().await.url(&name)).await.unwrap();
    let users: i64 = client.query_one("SELECT count(*) FROM client_users", &[]).await.unwrap().get(0);
    assert_eq!(users, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_token_expires_and_is_replaced() {
    let clock = manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let platform = Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await;
    let body = own_tenant("expires", json!({ "mode": "own" }));
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    let first = answer["database_token"]["token"].as_str().unwrap().to_owned();
    platform.get("/api/v1/database", &first).await.expect(StatusCode::OK);
    let path = "/platform/v1/tenants/expires/database-token";
    let second = platform.post(path, &platform.token, json!({})).await.expect(StatusCode::CREATED);
    assert_eq!(platform.get("/api/v1/database", &first).await.status, StatusCode::UNAUTHORIZED);
    let second = second["token"].as_str().unwrap();
    platform.get("/api/v1/database", second).await.expect(StatusCode::OK);
    clock.advance(chrono::TimeDelta::days(8));
    assert_eq!(platform.get("/api/v1/database", second).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_what_is_wrong_with_a_remedy() {
    let clock = manual_clock();
    let shared: freehold::clock::SharedClock = clock.clone();
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0"), ("FREEHOLD_SESSION_HOURS", "720")];
    let platform = Platform::start_with(Options { settings, clock: Some(shared), ..Options::default() }).await;
    let examine = async || platform.get("/platform/v1/doctor", &platform.token).await.expect(StatusCode::OK);
    let report = examine().await;
    assert_eq!(report["healthy"], true, "{report}");
    let checks: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|found| found["check"].as_str().unwrap()).collect();
    for check in ["platform database", "platform schema", "platform isolation", "master keys", "cluster local"] {
        assert!(checks.contains(&check), "{checks:?}");
    }
    // Nobody carries out what was asked for; and the clocks of database and server are apart.
    platform.request_tenant("unattended").await.expect(StatusCode::ACCEPTED);
    clock.advance(chrono::TimeDelta::minutes(10));
    let report = examine().await;
    assert_eq!(report["healthy"], false, "{report}");
    let text = report.to_string();
    assert!(text.contains("FREEHOLD_WORKER_CONCURRENCY") && text.contains("NTP"), "{text}");
    for found in report["findings"].as_array().unwrap() {
        assert!(found["level"] == "ok" || found["remedy"].is_string(), "{found}");
    }
}
