//! How operations on tenants' lives are begun, and what they leave.

use super::{expect_state, run_here};
use crate::harness::{Platform, connect, server};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The kinds.
pub(super) const KINDS: &[&str] =
    &["suspend_tenant", "resume_tenant", "delete_tenant", "undelete_tenant", "purge_tenant"];

/// Provisions a tenant, brings it where the operation starts, and asks for that.
pub(super) async fn start(platform: &Platform, kind: &str, slug: &str) -> Value {
    let provision = platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED)["operation"].clone();
    carried_out(platform, &provision).await;
    match kind {
        "suspend_tenant" => ask(platform, slug, "suspend").await,
        "resume_tenant" => {
            carried_out(platform, &ask(platform, slug, "suspend").await).await;
            ask(platform, slug, "resume").await
        }
        "delete_tenant" => ask(platform, slug, "delete").await,
        "undelete_tenant" => {
            carried_out(platform, &ask(platform, slug, "delete").await).await;
            ask(platform, slug, "undelete").await
        }
        _ => ask(platform, slug, "purge").await,
    }
}

async fn carried_out(platform: &Platform, operation: &Value) {
    let id = operation["id"].as_str().unwrap();
    run_here(platform, id, None).await.unwrap();
    expect_state(platform, id, "succeeded").await.unwrap();
}

async fn ask(platform: &Platform, slug: &str, what: &str) -> Value {
    let (method, path) = match what {
        "delete" => (Method::DELETE, format!("/platform/v1/tenants/{slug}?confirm={slug}")),
        "purge" => (Method::DELETE, format!("/platform/v1/tenants/{slug}?confirm={slug}&grace_days=0")),
        what => (Method::POST, format!("/platform/v1/tenants/{slug}/{what}")),
    };
    let answer = platform.send(method, &path, &platform.token, Some(json!({}))).await;
    answer.expect(StatusCode::ACCEPTED)["operation"].clone()
}

/// The state, whether the login role may sign in, and how many data keys, databases and roles there are.
pub(super) async fn compare(platform: &Platform, kind: &str, slug: &str, done: bool) -> Result<(), String> {
    let expected = match (kind, done) {
        ("suspend_tenant", true) | ("resume_tenant", false) => ("suspended", vec![false], 1, 1, 2),
        ("suspend_tenant" | "delete_tenant", false) | ("resume_tenant" | "undelete_tenant", true) => {
            ("active", vec![true], 1, 1, 2)
        }
        ("delete_tenant", true) | ("undelete_tenant", false) => ("deleting", vec![false], 1, 1, 2),
        ("purge_tenant", true) => ("deleted", vec![], 0, 0, 0),
        // It cannot be undone, and goes on when it is retried.
        _ => return unfinished(platform, slug).await,
    };
    let seen = look(platform, slug).await;
    let seen = (seen.0.as_str(), seen.1, seen.2, seen.3, seen.4);
    if seen == expected {
        return Ok(());
    }
    Err(format!("expected {expected:?} (state, logins, data keys, databases, roles), found {seen:?}"))
}

async fn unfinished(platform: &Platform, slug: &str) -> Result<(), String> {
    let (state, logins, ..) = look(platform, slug).await;
    // Nobody gets in, however far it came.
    if state == "deleting" && !logins.contains(&true) { Ok(()) } else { Err(format!("{state}, {logins:?}")) }
}

async fn look(platform: &Platform, slug: &str) -> (String, Vec<bool>, i64, usize, usize) {
    let registry = platform.platform_client().await;
    let sql = "SELECT t.state, right(t.id::text, 12),
                      (SELECT count(*) FROM wrapped_keys w WHERE w.tenant_id = t.id)
               FROM chat_instances t WHERE t.slug = $1";
    let row = registry.query_one(sql, &[&slug]).await.unwrap();
    let like = format!("%{}%", row.get::<_, String>(1));
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let databases = cluster.query("SELECT FROM pg_database WHERE datname LIKE $1", &[&like]).await.unwrap();
    let roles =
        cluster.query("SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname LIKE $1", &[&like]).await.unwrap();
    let logins =
        roles.iter().filter(|row| !row.get::<_, String>(0).ends_with("_owner")).map(|row| row.get(1)).collect();
    (row.get(0), logins, row.get(2), databases.len(), roles.len())
}
