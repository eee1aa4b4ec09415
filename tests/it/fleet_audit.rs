//! The standing audit finds what was planted, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use freehold::ids::ClusterId;
use freehold::secrets::{Location, MasterKeyring};
use freehold::tenants::clusters::admin_url_location;
use freehold_cli::dev::postgres::{EmbeddedPostgres, EmbeddedPostgresOptions};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{self, Platform, announce, connect, execute, new_tenant};

/// A platform with a cluster of its own beside the one that all tests share, whose other tenants it does not know.
struct Fleet {
    platform: Platform,
    postgres: EmbeddedPostgres,
    /// As the superuser of that cluster.
    cluster: Client,
    registry: Client,
}

/// What the registry says of a tenant.
struct Names {
    database: String,
    owner: String,
    login: String,
}

impl Fleet {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let options = EmbeddedPostgresOptions::for_tests(env!("CARGO_MANIFEST_DIR"));
        let postgres = EmbeddedPostgres::start(options).await.unwrap();
        let body = json!({ "name": "audited", "admin_url": postgres.url("postgres") });
        platform.post("/platform/v1/clusters", &platform.token, body).await.expect(StatusCode::CREATED);
        let cluster = connect(&postgres.url("postgres")).await.unwrap();
        let registry = platform.platform_client().await;
        Self { platform, postgres, cluster, registry }
    }

    async fn tenant(&self, slug: &str) -> Names {
        let mut body = new_tenant(slug);
        body["database"]["cluster"] = json!("audited");
        let answer = self.platform.post("/platform/v1/tenants", &self.platform.token, body).await;
        let answer = answer.expect(StatusCode::ACCEPTED);
        assert_eq!(self.platform.settled(&answer["operation"]).await["state"], "succeeded");
        let sql = "SELECT database_name, owner_role, login_role FROM tenant_databases d
                   JOIN chat_instances t ON t.id = d.tenant_id WHERE t.slug = $1";
        let row = self.registry.query_one(sql, &[&slug]).await.unwrap();
        Names { database: row.get(0), owner: row.get(1), login: row.get(2) }
    }

    /// Audits, and returns what is found of the cluster of our own and of tenants: code, subject, severity.
    async fn audit(&self) -> BTreeSet<(String, String, String)> {
        // The first may have begun before what this test did.
        for _ in 0..2 {
            let begun = self.platform.post("/platform/v1/fleet/audits", &self.platform.token, json!({})).await;
            let settled = self.platform.settled(&begun.expect(StatusCode::ACCEPTED)).await;
            assert_eq!(settled["state"], "succeeded", "{settled}");
        }
        let ours = self.findings("").await.into_iter().filter(|item| item["cluster"] != "local");
        let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        ours.map(|item| (text(&item, "code"), text(&item, "subject"), text(&item, "severity"))).collect()
    }

    /// All pages of findings. The cluster that all tests share adds its own, as many as there are other tests.
    async fn findings(&self, query: &str) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/platform/v1/fleet/findings?limit=100{query}{cursor}");
            let page = self.platform.get(&path, &self.platform.token).await.expect(StatusCode::OK);
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }

    /// Everything that an audit could remove.
    async fn inventory(&self) -> Vec<String> {
        let there = "SELECT datname::text FROM pg_database UNION ALL SELECT rolname::text || rolcanlogin FROM pg_roles
                     ORDER BY 1";
        let mut all: Vec<String> = self.cluster.query(there, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        for table in ["chat_instances", "tenant_databases", "wrapped_keys", "signing_keys", "clusters"] {
            let sql = format!("SELECT '{table}' || md5(string_agg(r::text, '' ORDER BY r::text)) FROM {table} r");
            all.push(self.registry.query_one(&sql, &[]).await.unwrap().get(0));
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_fleet_has_no_findings() {
    let fleet = Fleet::start().await;
    for slug in ["clean-active", "clean-suspended", "clean-deleting", "clean-gone"] {
        fleet.tenant(slug).await;
    }
    let (platform, token) = (&fleet.platform, &fleet.platform.token);
    let suspend =
        platform.post("/platform/v1/tenants/clean-suspended/suspend", token, json!({})).await.expect_success();
    platform.settled(&suspend["operation"]).await;
    for (slug, grace) in [("clean-deleting", 30), ("clean-gone", 0)] {
        let path = format!("/platform/v1/tenants/{slug}?confirm={slug}&grace_days={grace}");
        let deleted = platform.send(reqwest::Method::DELETE, &path, token, None).await.expect_success();
        assert_eq!(platform.settled(&deleted["operation"]).await["state"], "succeeded");
    }
    assert_eq!(fleet.audit().await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_server_that_was_registered_twice_nothing_of_a_tenants_is_an_orphan() {
    let fleet = Fleet::start().await;
    fleet.tenant("registered-once").await;
    // As it could be done before registering compared servers.
    let id = ClusterId::new();
    let url = fleet.postgres.url("postgres").into();
    let sealed = fleet.platform.state.config.master_keys.seal_platform(&admin_url_location(id), &url);
    let sql = "INSERT INTO clusters (id, name, host, port, admin_url_sealed, created_at)
               SELECT $1, 'twice', 'localhost', port, $2, created_at FROM clusters WHERE name = 'audited'";
    fleet.registry.execute(sql, &[&id.as_uuid(), &sealed.as_bytes()]).await.unwrap();
    let found = fleet.audit().await;
    let expected = ("cluster_registered_twice", "cluster twice", "warning");
    let expected = (expected.0.to_owned(), expected.1.to_owned(), expected.2.to_owned());
    assert_eq!(found, BTreeSet::from([expected]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_come_and_go_meanwhile_are_no_findings() {
    let fleet = Fleet::start().await;
    let coming_and_going = async {
        for number in 0..6 {
            let slug = format!("passing-{number}");
            fleet.tenant(&slug).await;
            let path = format!("/platform/v1/tenants/{slug}?confirm={slug}&grace_days=0");
            let token = &fleet.platform.token;
            let deleted = fleet.platform.send(reqwest::Method::DELETE, &path, token, None).await.expect_success();
            fleet.platform.settled(&deleted["operation"]).await;
        }
    };
    tokio::pin!(coming_and_going);
    let mut audits = 0;
    loop {
        tokio::select! {
            () = &mut coming_and_going => break,
            found = fleet.audit() => {
                audits += 1;
                assert_eq!(found, BTreeSet::new());
            }
        }
    }
    announce(&format!("fleet audit: {audits} pairs of audits while tenants came and went, no finding"));
    assert!(audits > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_orphan_and_stranger_is_found_and_nothing_is_deleted() {
    let fleet = Fleet::start().await;
    let mut names = BTreeMap::new();
    for slug in
        ["granted", "unlocked", "locked", "lost", "keyless", "foreign-key", "tampered", "halted", "remains", "taken"]
    {
        names.insert(slug, fleet.tenant(slug).await);
    }
    let (platform, token) = (&fleet.platform, &fleet.platform.token);
    let suspend = platform.post("/platform/v1/tenants/unlocked/suspend", token, json!({})).await.expect_success();
    platform.settled(&suspend["operation"]).await;
    let on_cluster = [
        "CREATE DATABASE fh_orphan".to_owned(),
        "CREATE ROLE fh_stranger LOGIN CREATEDB".to_owned(),
        "CREATE DATABASE freehold_template_building".to_owned(),
        "CREATE DATABASE freehold_template_0".to_owned(),
        "GRANT CONNECT ON DATABASE postgres TO PUBLIC".to_owned(),
        format!("ALTER ROLE {} LOGIN", names["granted"].owner),
        format!("GRANT {} TO fh_stranger", names["granted"].owner),
        format!("GRANT CONNECT ON DATABASE {} TO fh_stranger, PUBLIC", names["granted"].database),
        format!("ALTER ROLE {} LOGIN", names["unlocked"].login),
        format!("ALTER ROLE {} NOLOGIN", names["locked"].login),
        format!("DROP DATABASE {} WITH (FORCE)", names["lost"].database),
        format!("DROP ROLE {}", names["lost"].login),
        format!("ALTER DATABASE {} OWNER TO postgres", names["taken"].database),
        format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", names["taken"].database),
    ];
    for sql in &on_cluster {
        execute(&fleet.postgres.url("postgres"), sql).await;
    }
    let of = |slug: &str| format!("(SELECT id FROM chat_instances WHERE slug = '{slug}')");
    let in_registry = [
        format!("DELETE FROM wrapped_keys WHERE tenant_id = {}", of("keyless")),
        // The version of the key that sealed it stands in bytes 1 to 4.
        format!(
            "UPDATE wrapped_keys SET wrapped_key = set_byte(wrapped_key, 4, 77) WHERE tenant_id = {}",
            of("foreign-key")
        ),
        format!(
            "UPDATE tenant_databases SET url_sealed = set_byte(url_sealed, 30, get_byte(url_sealed, 30) # 1)
             WHERE tenant_id = {}",
            of("tampered")
        ),
        format!("DELETE FROM signing_keys WHERE tenant_id = {}", of("tampered")),
        "UPDATE chat_instances SET state = 'provisioning' WHERE slug = 'halted'".to_owned(),
        "UPDATE chat_instances SET state = 'deleted' WHERE slug = 'remains'".to_owned(),
        "INSERT INTO operations (id, kind, input, state, created_at) VALUES
             ('018f0000-0000-7000-8000-000000000001', 'of_old', '{}', 'needs_operator', now()),
             ('018f0000-0000-7000-8000-000000000002', 'slow', '{}', 'running', now() - interval '2 hours'),
             ('018f0000-0000-7000-8000-000000000003', 'fresh', '{}', 'running', now())"
            .to_owned(),
    ];
    for sql in &in_registry {
        fleet.registry.batch_execute(sql).await.unwrap();
    }
    // Two clusters that cannot be looked at: nobody listens there, and the other's URL was sealed for the first.
    let master = MasterKeyring::parse(&harness::MASTER_KEYS.to_owned().into()).unwrap();
    let nowhere = "postgres://a:b@127.0.0.1:1/postgres".to_owned().into();
    let (away, closed) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    let sealed = master.seal_platform(&Location::platform("clusters", "admin_url_sealed", away), &nowhere);
    for (id, name) in [(away, "away"), (closed, "closed")] {
        let sql = "INSERT INTO clusters (id, name, host, port, admin_url_sealed, created_at)
                   VALUES ($1, $2, '127.0.0.1', 1, $3, now())";
        fleet.registry.execute(sql, &[&id, &name, &sealed.as_bytes()]).await.unwrap();
    }
    let before = fleet.inventory().await;
    let found = fleet.audit().await;
    assert_eq!(fleet.inventory().await, before, "the audit changed something");
    let (problem, warning) = ("problem", "warning");
    let remains = &names["remains"];
    let expected: BTreeSet<(String, String, String)> = [
        ("orphan_database", "database fh_orphan on cluster audited".to_owned(), problem),
        ("orphan_role", "role fh_stranger on cluster audited".to_owned(), problem),
        ("role_powers", "role fh_stranger on cluster audited".to_owned(), problem),
        ("template_leftover", "database freehold_template_building on cluster audited".to_owned(), warning),
        ("template_old", "database freehold_template_0 on cluster audited".to_owned(), warning),
        ("public_may_connect", "database postgres on cluster audited".to_owned(), problem),
        ("owner_may_login", "tenant granted".to_owned(), problem),
        ("role_memberships", "tenant granted".to_owned(), problem),
        ("strangers_may_connect", "tenant granted".to_owned(), problem),
        ("login_enabled", "tenant unlocked".to_owned(), problem),
        ("login_locked", "tenant locked".to_owned(), problem),
        ("database_missing", "tenant lost".to_owned(), problem),
        ("role_missing", "tenant lost".to_owned(), problem),
        ("database_owner", "tenant taken".to_owned(), problem),
        ("database_closed", "tenant taken".to_owned(), problem),
        ("data_key_missing", "tenant keyless".to_owned(), problem),
        ("master_key_unknown", "tenant foreign-key".to_owned(), problem),
        ("sealed_value_unreadable", "tenant tampered".to_owned(), problem),
        ("signing_key_missing", "tenant tampered".to_owned(), problem),
        ("tenant_stuck", "tenant halted".to_owned(), problem),
        ("keys_left", "tenant remains".to_owned(), problem),
        ("operation_stuck", "operation 018f0000-0000-7000-8000-000000000001 (of_old)".to_owned(), problem),
        ("operation_stuck", "operation 018f0000-0000-7000-8000-000000000002 (slow)".to_owned(), warning),
        ("cluster_unreachable", "cluster away".to_owned(), problem),
        ("sealed_value_unreadable", "cluster closed".to_owned(), problem),
    ]
    .map(|(code, subject, severity)| (code.to_owned(), subject, severity.to_owned()))
    .into();
    assert!(!remains.database.is_empty());
    let (missed, more): (Vec<_>, Vec<_>) =
        (expected.difference(&found).collect(), found.difference(&expected).collect());
    assert!(missed.is_empty() && more.is_empty(), "missed {missed:#?}, not planted {more:#?}");
    announce(&format!("fleet audit: {} planted findings, all found, nothing else", expected.len()));

    // What was put right is resolved, and stays as a record; what could not be looked at is not.
    execute(&fleet.postgres.url("postgres"), "DROP DATABASE fh_orphan").await;
    let left = fleet.audit().await;
    assert_eq!(expected.difference(&left).map(|(code, ..)| code.as_str()).collect::<Vec<_>>(), ["orphan_database"]);
    let all = fleet.findings("&resolved=true").await;
    let resolved = all.iter().find(|item| item["code"] == "orphan_database" && item["cluster"] == "audited");
    assert!(resolved.unwrap()["resolved_at"].is_string());
}
