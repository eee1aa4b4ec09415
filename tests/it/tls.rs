//! Postgres over TLS, with certificates made here.
//!
//! The embedded Postgres is built without TLS, so this takes the machine's own. Without it there is nothing to test, and
//! a line in the test's output says so.

use freehold::platform_db;
use freehold::secrets::{self, ConnectError};
use reqwest::StatusCode;
use serde_json::json;

use crate::clusters::provision;
use crate::harness::Platform;
use crate::machine_postgres::{PASSWORD, TlsServer, programs};

/// What somebody is told who was refused, causes included.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_spoken_to_only_with_a_certificate_that_proves_it() {
    let Some(bin) = programs("TLS to Postgres") else { return };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let server = TlsServer::start(&bin).await;
    let right = server.verified("ca.pem");

    // Both drivers, and both really encrypted.
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let url = server.url("postgres", "localhost", &right);
    let (client, _) = secrets::connect(&url).await.unwrap();
    assert!(client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));
    let pool = platform_db::pool(&url, 1);
    assert!(sqlx::query_scalar::<_, bool>(encrypted).fetch_one(&pool).await.unwrap());
    pool.close().await;

    let other = server.verified("other-ca.pem");
    let refused = [
        ("an unknown authority", "localhost", other.as_str(), "UnknownIssuer"),
        ("only the public authorities", "localhost", "sslmode=verify-full", "UnknownIssuer"),
        ("`require` checks as much", "localhost", "sslmode=require", "UnknownIssuer"),
        ("another host name", "127.0.0.1", right.as_str(), "certificate not valid for name"),
        ("no encryption", "localhost", "sslmode=disable", "no encryption"),
    ];
    for (what, host, parameters, reason) in refused {
        let url = server.url("postgres", host, parameters);
        let error = secrets::connect(&url).await.err().unwrap_or_else(|| panic!("{what}: connected"));
        assert!(matches!(error, ConnectError::Postgres(_)), "{what}: {error:?}");
        assert!(causes(&error).contains(reason), "{what}: {}", causes(&error));
        let pool = platform_db::pool(&url, 1);
        let error = sqlx::query("SELECT 1").execute(&pool).await.err().unwrap_or_else(|| panic!("{what}: pool"));
        assert!(causes(&error).contains(reason), "{what}: {}", causes(&error));
    }
    server.process.stop().await.unwrap();
}

/// This server is older than the embedded one, has no extension, and its administrator is no superuser.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_over_tls_provisions_a_tenant() {
    let Some(bin) = programs("TLS to Postgres") else { return };
    let platform = Platform::start().await;
    let server = TlsServer::start(&bin).await;
    let right = server.verified("ca.pem");
    let (superuser, _) = secrets::connect(&server.url("postgres", "localhost", &right)).await.unwrap();
    let sql = format!(
        "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
         CREATE ROLE provisioner LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}';
         GRANT CONNECT ON DATABASE postgres TO provisioner;"
    );
    superuser.batch_execute(&sql).await.unwrap();

    let register = async |host: &str, parameters: &str| {
        let body = json!({ "name": "encrypted", "admin_url": server.text_url("provisioner", host, parameters) });
        platform.post("/platform/v1/clusters", &platform.token, body).await
    };
    for (host, parameters) in
        [("localhost", server.verified("other-ca.pem")), ("127.0.0.1", right.clone()), ("localhost", String::new())]
    {
        let answer = register(host, &parameters).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{host} {parameters}: {}", answer.text);
        assert!(!answer.text.contains(PASSWORD), "{}", answer.text);
    }
    register("localhost", &right).await.expect(StatusCode::CREATED);
    provision(&platform, "encrypted", "behind-tls").await;
    // The tenant's own sessions are encrypted too.
    let sql =
        "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'fh\\_%'";
    let row = superuser.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0);
    assert!(row.get::<_, bool>(1));
    server.process.stop().await.unwrap();
}

/// The client's server is old, encrypted, and trusted by nobody but through the authority that the client gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_own_database_over_tls_is_set_up_and_used() {
    let Some(bin) = programs("TLS to Postgres") else { return };
    let platform = Platform::start().await;
    let server = TlsServer::start(&bin).await;
    let (superuser, _) =
        secrets::connect(&server.url("postgres", "localhost", &server.verified("ca.pem"))).await.unwrap();
    superuser.batch_execute(&format!("CREATE ROLE acme LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    superuser.batch_execute("CREATE DATABASE acme OWNER acme").await.unwrap();
    let url = format!("postgres://acme:{PASSWORD}@localhost:{}/acme?sslmode=verify-full", server.port);
    let mut body = crate::harness::new_tenant("acme");
    body["database"] = json!({ "mode": "own", "url": url });
    let refused = platform.post("/platform/v1/tenants", &platform.token, body.clone()).await;
    assert!(refused.text.contains("certificate_unknown_issuer"), "{}", refused.text);
    body["database"]["ca"] = json!(server.ca());
    let answer = platform.post("/platform/v1/tenants", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let accept = json!({
        "tenant": "acme", "token": answer["admin_invite"]["token"], "password": crate::harness::PASSWORD
    });
    let tokens = platform.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
    let shown = platform.get("/api/v1/database", tokens["access_token"].as_str().unwrap()).await.expect(StatusCode::OK);
    assert_eq!((&shown["sslmode"], &shown["has_ca"]), (&json!("verify-full"), &json!(true)));
    assert!(shown["last_check"]["server_version"].as_str().unwrap().starts_with("15."), "{shown}");
    let sql =
        "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'acme'";
    let row = superuser.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0 && row.get::<_, bool>(1));
    server.process.stop().await.unwrap();
}
