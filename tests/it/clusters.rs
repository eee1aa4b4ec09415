//! Clusters whose administrator is no superuser, as managed services have them.

use std::time::Duration;

use freehold::ids::{ClusterId, TenantId};
use freehold::provisioning::{Clusters, DatabaseNames};
use freehold_cli::dev::postgres::{EmbeddedPostgres, EmbeddedPostgresOptions};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{PASSWORD, Platform, connect, execute, new_tenant};

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
async fn a_second_administrator_is_told_which_right_it_needs() {
    let platform = Platform::start().await;
    let postgres = postgres().await;
    let first = administrator(&postgres, "first").await;
    let second = administrator(&postgres, "second").await;
    let register = async |name: &str, url: &str| {
        let body = json!({ "name": name, "admin_url": url });
        platform.post("/platform/v1/clusters", &platform.token, body).await
    };
    register("first", &first).await.expect(StatusCode::CREATED);
    let refused = register("second", &second).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
    let right = "GRANT freehold_template_owner TO \"second\"";
    assert!(refused.body.to_string().contains("GRANT freehold_template_owner TO"), "{}", refused.text);
    execute(&first, right).await;
    register("second", &second).await.expect(StatusCode::CREATED);
    provision(&platform, "second", "of-the-second").await;
    tokio::time::timeout(Duration::from_secs(30), postgres.stop()).await.unwrap().unwrap();
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
