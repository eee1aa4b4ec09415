//! Clusters whose administrator is no superuser, as managed services have them.

use std::time::Duration;

use freehold::ids::{ClusterId, TenantId};
use freehold::provisioning::{Clusters, DatabaseNames};
use freehold_cli::dev::postgres::{EmbeddedPostgres, EmbeddedPostgresOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Options, PASSWORD, Platform, connect, execute, new_tenant, server};

/// A server of its own: the one that the tests share has a template that its superuser built.
async fn postgres() -> EmbeddedPostgres {
    let options = EmbeddedPostgresOptions::for_tests(env!("CARGO_MANIFEST_DIR"));
    EmbeddedPostgres::start(options).await.expect("start Postgres; run `make setup`")
}

/// Makes a role that may create databases and roles and no more; returns its URL.
async fn administrator(postgres: &EmbeddedPostgres, name: &str) -> String {
    let sql = format!(
        "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
         CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD 'of-{name}';
         GRANT CONNECT ON DATABASE postgres TO {name};"
    );
    execute(&postgres.url("postgres"), &sql).await;
    format!("postgres://{name}:of-{name}@127.0.0.1:{}/postgres", postgres.port())
}

/// Provisions a tenant on a cluster of that name and signs its admin in; returns the registered tenant.
pub async fn provision(platform: &Platform, cluster: &str, slug: &str) -> Value {
    let mut body = new_tenant(slug);
    body["database"]["cluster"] = json!(cluster);
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let accept = json!({ "tenant": slug, "token": answer["admin_invite"]["token"], "password": PASSWORD });
    platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
    platform.login(slug, &format!("admin@{slug}.example")).await;
    platform.get(&format!("/platform/v1/tenants/{slug}"), &platform.token).await.expect(StatusCode::OK)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_who_is_no_superuser_makes_and_removes_tenants() {
    let platform = Platform::start().await;
    let postgres = postgres().await;
    let url = administrator(&postgres, "provisioner").await;
    let body = json!({ "name": "managed-service", "admin_url": url });
    platform.post("/platform/v1/clusters", &platform.token, body).await.expect(StatusCode::CREATED);
    let tenant = provision(&platform, "managed-service", "plain").await;

    // All of it belongs to the tenant's owner role.
    let id: TenantId = tenant["id"].as_str().unwrap().parse().unwrap();
    let names = DatabaseNames::new(&"plain".parse().unwrap(), id);
    assert_eq!(tenant["database"]["name"], json!(names.database));
    let behind = connect(&postgres.url(&names.database)).await.unwrap();
    let owners = behind
        .query_one(
            "SELECT string_agg(DISTINCT relowner::regrole::text, ','), count(*) FROM pg_class
             WHERE relnamespace = 'public'::regnamespace",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(owners.get::<_, String>(0), names.owner_role);
    assert!(owners.get::<_, i64>(1) > 5);
    drop(behind);

    // And it goes again, although the tenant's own sessions are open: the server keeps a pool.
    let clusters = Clusters::default();
    let cluster = clusters.open(ClusterId::new(), &url.parse().unwrap()).unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
    let superuser = connect(&postgres.url("postgres")).await.unwrap();
    let open: i64 = superuser.query_one(sessions, &[&names.login_role]).await.unwrap().get(0);
    assert!(open > 0, "there is a session to end");
    cluster.drop_database(&names).await.unwrap();
    cluster.drop_roles(&names).await.unwrap();
    let left = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'fh\\_%'";
    assert_eq!(superuser.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_administrator_is_told_which_rights_it_needs_and_takes_over() {
    let platform = Platform::start().await;
    let postgres = postgres().await;
    let first = administrator(&postgres, "first").await;
    let second = administrator(&postgres, "second").await;
    register(&platform, "managed", &first).await.expect(StatusCode::CREATED);
    provision(&platform, "managed", "of-the-first").await;
    let superuser = postgres.url("postgres");
    for right in ["GRANT freehold_template_owner TO \"second\"", "GRANT \"first\" TO \"second\""] {
        let refused = set(&platform, "managed", &second).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
        let needed = right.split('"').next().unwrap();
        let needed = if needed == "GRANT " { "GRANT <the former administrator> TO" } else { needed.trim_end() };
        assert!(refused.text.contains(needed), "{needed}: {}", refused.text);
        execute(&superuser, right).await;
    }
    set(&platform, "managed", &second).await.expect(StatusCode::OK);
    // The former is not needed for anything that it made.
    execute(&superuser, "ALTER ROLE first NOLOGIN").await;
    provision(&platform, "managed", "of-the-second").await;
    let path = "/platform/v1/tenants/of-the-first?confirm=of-the-first&grace_days=0";
    let deleted = platform.send(Method::DELETE, path, &platform.token, None).await.expect_success();
    assert_eq!(platform.settled(&deleted["operation"]).await["state"], "succeeded");
    tokio::time::timeout(Duration::from_secs(30), postgres.stop()).await.unwrap().unwrap();
}

async fn register(platform: &Platform, name: &str, url: &str) -> Answer {
    let body = json!({ "name": name, "admin_url": url });
    platform.post("/platform/v1/clusters", &platform.token, body).await
}

async fn set(platform: &Platform, name: &str, url: &str) -> Answer {
    let path = format!("/platform/v1/clusters/{name}");
    platform.send(Method::PUT, &path, &platform.token, Some(json!({ "admin_url": url }))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_is_one_cluster() {
    let platform = Platform::start().await;
    let postgres = postgres().await;
    let url = postgres.url("postgres");
    let elsewhere = url.replace("127.0.0.1", "localhost");
    assert_ne!(url, elsewhere);
    // Of two at once, one.
    let (one, other) = tokio::join!(register(&platform, "one", &url), register(&platform, "other", &elsewhere));
    let (first, refused) = if one.status == StatusCode::CREATED { ("one", other) } else { ("other", one) };
    let another = register(&platform, "another", &elsewhere).await;
    for refused in [refused, another] {
        assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.text);
        assert_eq!(refused.body["code"], "cluster_registered_as");
        assert!(refused.body["detail"].as_str().unwrap().contains(&format!("cluster {first};")), "{}", refused.text);
    }
    let listed = platform.get("/platform/v1/clusters", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed}");
    // Nor where the registry did not know what the server is called.
    platform.platform_client().await.batch_execute("UPDATE clusters SET system_identifier = NULL").await.unwrap();
    register(&platform, "another", &elsewhere).await.expect(StatusCode::CONFLICT);
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_password_was_changed_gets_the_new_one_and_every_server_uses_it() {
    let platform = Platform::start().await;
    let beside =
        Platform::start_with(Options { database: Some(platform.database.clone()), ..Options::default() }).await;
    let postgres = postgres().await;
    let url = administrator(&postgres, "changing").await;
    register(&platform, "managed", &url).await.expect(StatusCode::CREATED);
    provision(&platform, "managed", "before").await;
    let id = beside.state.clusters.list().await.unwrap().into_iter().find(|cluster| cluster.name == "managed").unwrap();
    let asked = async || beside.state.clusters.open(id.id).await.unwrap().system_identifier().await;
    asked().await.unwrap();

    let superuser = postgres.url("postgres");
    execute(&superuser, "ALTER ROLE changing PASSWORD 'canary-of-the-provider'").await;
    execute(&superuser, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'").await;
    let report = platform.get("/platform/v1/doctor", &platform.token).await.expect(StatusCode::OK);
    assert!(report.to_string().contains("freehold cluster set managed --admin-url-file FILE"), "{report}");

    let changed = url.replace("of-changing", "canary-of-the-provider");
    set(&platform, "unknown", &changed).await.expect(StatusCode::NOT_FOUND);
    let refused = set(&platform, "managed", &url).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
    assert!(refused.text.contains("password_wrong"), "{}", refused.text);
    let another = set(&platform, "managed", &server().await.url("postgres")).await;
    assert_eq!((another.status, &another.body["code"]), (StatusCode::CONFLICT, &json!("cluster_is_another_server")));
    let answer = set(&platform, "managed", &changed).await;
    assert!(answer.status == StatusCode::OK && !answer.text.contains("canary"), "{}", answer.text);
    assert_eq!(answer.body["name"], "managed");

    asked().await.unwrap();
    provision(&platform, "managed", "after").await;
    let sql = "SELECT detail::text FROM audit_events WHERE action = 'cluster.set'";
    let noted: String = platform.platform_client().await.query_one(sql, &[]).await.unwrap().get(0);
    assert!(noted.contains("managed") && !noted.contains("canary"), "{noted}");
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_the_rights_is_refused() {
    let platform = Platform::start().await;
    let postgres = postgres().await;
    execute(&postgres.url("postgres"), "CREATE ROLE weak LOGIN CREATEDB PASSWORD 'weak'").await;
    let url = format!("postgres://weak:weak@127.0.0.1:{}/postgres", postgres.port());
    let body = json!({ "name": "weak", "admin_url": url });
    let answer = platform.post("/platform/v1/clusters", &platform.token, body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    assert!(answer.text.contains("CREATEROLE"), "{}", answer.text);
    postgres.stop().await.unwrap();
}
