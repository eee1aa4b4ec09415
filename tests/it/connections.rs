//! One budget of connections: never more than it allows, whoever asks; one tenant's broken database is its own trouble.

use std::time::{Duration, Instant};

use freehold::ids::TenantId;
use freehold::secrets::{DataKey, Sealed};
use freehold::tenant_db::{
    GenericClient as _, TenantDb, TenantDbError, database_url_location, next_database_url_location,
};
use futures::future::join_all;
use reqwest::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::harness::{Answer, Options, Platform, Tenant, announce, connect, execute, server};
use crate::proxy::{Line, Proxy};

/// A platform with few connections, and little patience.
async fn platform(connections: &str, wait: &str) -> Platform {
    let settings = &[("FREEHOLD_TENANT_CONNECTIONS", connections), ("FREEHOLD_TENANT_CONNECTION_WAIT_MS", wait)];
    Platform::start_with(Options { settings, ..Options::default() }).await
}

/// A platform whose own database is reached over a line that can be cut.
async fn platform_over_a_line() -> (Platform, Proxy) {
    let database = server().await.create_platform_database().await;
    let (proxy, url) = Proxy::to(&server().await.url(&database)).await;
    let settings = &[("PLATFORM_DATABASE_URL", url.as_str())];
    let database = Some(database);
    let platform = Platform::start_with(Options { settings, database, ..Options::default() }).await;
    let cluster = json!({ "name": "local", "admin_url": server().await.url("postgres") });
    platform.post("/platform/v1/clusters", &platform.token, cluster).await.expect(StatusCode::CREATED);
    (platform, proxy)
}

impl Platform {
    /// A tenant's database as a request gets it.
    async fn open(&self, tenant: &Tenant) -> Result<TenantDb, TenantDbError> {
        let record = self.state.directory.by_slug(&tenant.slug.parse().unwrap()).await.unwrap().unwrap();
        self.state.databases.open(record)
    }

    async fn data_key(&self, tenant: &Tenant) -> DataKey {
        let sql = "SELECT version, wrapped_key FROM wrapped_keys WHERE tenant_id = $1 ORDER BY version DESC";
        let row = self.platform_client().await.query_one(sql, &[&tenant.id]).await.unwrap();
        let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(1)).unwrap();
        let id = TenantId::from_uuid(tenant.id);
        self.state.config.master_keys.unwrap(id, row.get::<_, i32>(0).cast_unsigned(), &wrapped).unwrap()
    }

    /// The address of the tenant's database, credentials included.
    pub async fn database_url(&self, tenant: &Tenant) -> String {
        let sql = "SELECT url_sealed FROM tenant_databases WHERE tenant_id = $1";
        let row = self.platform_client().await.query_one(sql, &[&tenant.id]).await.unwrap();
        let sealed = Sealed::from_bytes(row.get::<_, Vec<u8>>(0)).unwrap();
        let location = database_url_location(TenantId::from_uuid(tenant.id));
        self.data_key(tenant).await.open_str(&location, &sealed).unwrap().expose_secret().to_owned()
    }

    /// Registers another address for the tenant's database, and the one that is being brought in.
    pub async fn set_database_url(&self, tenant: &Tenant, url: &str, next: Option<&str>, own: bool) {
        let key = self.data_key(tenant).await;
        let id = TenantId::from_uuid(tenant.id);
        let url = key.seal_str(&database_url_location(id), &SecretString::from(url)).into_bytes();
        let next =
            next.map(|next| key.seal_str(&next_database_url_location(id), &SecretString::from(next)).into_bytes());
        let sql = "UPDATE tenant_databases SET url_sealed = $2, next_url_sealed = $3,
                       cluster_id = CASE WHEN $4 THEN NULL ELSE cluster_id END WHERE tenant_id = $1";
        self.platform_client().await.execute(sql, &[&tenant.id, &url, &next, &own]).await.unwrap();
    }

    /// Any request that needs the tenant's database.
    async fn look(&self, tenant: &Tenant) -> Answer {
        self.get("/api/v1/config", &tenant.admin.access).await
    }

    /// Asks until the answer is the expected one: servers hear of changes a moment later.
    #[track_caller]
    fn until(&self, tenant: &Tenant, code: Option<&str>) -> impl Future<Output = Answer> {
        let code = code.map(str::to_owned);
        async move {
            let mut last = String::new();
            for _ in 0..200 {
                let answer = self.look(tenant).await;
                last = format!("{} {}", answer.status, answer.text);
                let now = answer.body["code"].as_str().map(str::to_owned);
                if now == code {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("{} never became {code:?}, but {last}", tenant.slug);
        }
    }

    async fn set_state(&self, tenant: &Tenant, state: &str) {
        let sql = "UPDATE chat_instances SET state = $2 WHERE id = $1";
        self.platform_client().await.execute(sql, &[&tenant.id, &state]).await.unwrap();
    }

    async fn chat(&self, tenant: &Tenant) -> Answer {
        self.post("/api/v1/chat", &tenant.user.access, json!({ "message": "hello" })).await
    }
}

/// The role a tenant signs in with.
fn role(url: &str) -> String {
    url::Url::parse(url).unwrap().username().to_owned()
}

fn with_password(url: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_password(Some(password)).unwrap();
    url.to_string()
}

/// An administrator's connection, to look at what the database server sees.
async fn administrator() -> tokio_postgres::Client {
    connect(&server().await.url("postgres")).await.unwrap()
}

/// How many connections the database server sees of these roles.
async fn seen(admin: &tokio_postgres::Client, roles: &[String]) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY($1)";
    admin.query_one(sql, &[&roles]).await.unwrap().get(0)
}

async fn seen_becomes(admin: &tokio_postgres::Client, roles: &[String], expected: i64, within: Duration) {
    let started = Instant::now();
    while seen(admin, roles).await != expected {
        assert!(started.elapsed() < within, "{} connections are still there", seen(admin, roles).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_budget_holds_under_a_storm_of_tenants() {
    let platform = platform("3", "20000").await;
    let mut tenants = Vec::new();
    for number in 0..8 {
        tenants.push(platform.tenant(&format!("storm-{number}")).await);
    }
    let mut roles = Vec::new();
    for tenant in &tenants {
        roles.push(role(&platform.database_url(tenant).await));
    }
    let admin = administrator().await;
    let requests = tenants.iter().enumerate().flat_map(|(number, tenant)| {
        // The first one alone asks for as much as all others.
        let count = if number == 0 { 140 } else { 20 };
        (0..count).map(move |_| tenant)
    });
    let storm = join_all(requests.map(|tenant| platform.look(tenant)));
    tokio::pin!(storm);
    let (mut most, mut samples) = (0, 0);
    let answers = loop {
        tokio::select! {
            answers = &mut storm => break answers,
            now = seen(&admin, &roles) => {
                most = most.max(now);
                samples += 1;
            }
        }
    };
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    announce(&format!(
        "connections: {} requests of {} tenants over a budget of 3; at most {most} seen in {samples} samples",
        answers.len(),
        tenants.len()
    ));
    assert!((1..=3).contains(&most), "{most} connections were seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_was_idle_longest_makes_room() {
    let platform = platform("2", "2000").await;
    let tenants = [platform.tenant("room-a").await, platform.tenant("room-b").await, platform.tenant("room-c").await];
    let mut roles = Vec::new();
    for tenant in &tenants {
        roles.push(role(&platform.database_url(tenant).await));
    }
    for number in [1, 0, 2] {
        platform.look(&tenants[number]).await.expect(StatusCode::OK);
    }
    let admin = administrator().await;
    assert_eq!(seen(&admin, &roles[1..2]).await, 0);
    assert_eq!(seen(&admin, &[roles[0].clone(), roles[2].clone()]).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_when_to_come_back() {
    let platform = platform("1", "300").await;
    let (ours, other) = (platform.tenant("waits-not").await, platform.tenant("waits").await);
    let held = platform.open(&ours).await.unwrap().client().await.unwrap();
    let started = Instant::now();
    let answer = platform.look(&other).await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(answer.expect_problem(StatusCode::SERVICE_UNAVAILABLE), "tenant_database_busy");
    drop(held);
    platform.look(&other).await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_a_ceiling_of_its_own() {
    let platform = platform("4", "300").await;
    let (ours, other) = (platform.tenant("ceiling").await, platform.tenant("ceiling-not").await);
    let sql = "UPDATE chat_instances SET limits = '{\"connections\": 1}' WHERE id = $1";
    platform.platform_client().await.execute(sql, &[&ours.id]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let db = platform.open(&ours).await.unwrap();
    let held = db.client().await.unwrap();
    assert!(matches!(db.client().await, Err(TenantDbError::NoConnectionFree { .. })));
    platform.look(&other).await.expect(StatusCode::OK);
    drop(held);
    drop(db.client().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_down_is_left_alone_and_found_again() {
    let platform = Platform::start().await;
    let (broken, healthy) = (platform.tenant("breaker").await, platform.tenant("breaker-not").await);
    let (proxy, url) = Proxy::to(&platform.database_url(&broken).await).await;
    platform.set_database_url(&broken, &url, None, true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    platform.look(&broken).await.expect(StatusCode::OK);
    proxy.set(Line::Cut);
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let started = Instant::now();
        let answer = platform.look(&broken).await;
        fastest = fastest.min(started.elapsed());
        assert!(answer.headers.contains_key("retry-after"));
        assert_eq!(answer.expect_problem(StatusCode::SERVICE_UNAVAILABLE), "tenant_database_unavailable");
        platform.look(&healthy).await.expect(StatusCode::OK);
    }
    let report = platform.get("/platform/v1/connections", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(report["breakers"][0]["slug"], "breaker", "{report}");
    assert_eq!(report["breakers"][0]["reason"], "connect");
    let db = platform.open(&broken).await.unwrap();
    // At once. Of some, the quickest: other tests keep this machine busy.
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let started = Instant::now();
        assert!(matches!(db.client().await, Err(TenantDbError::CircuitOpen { .. })));
        quickest = quickest.min(started.elapsed());
    }
    assert!(quickest < Duration::from_millis(10), "{quickest:?}");
    proxy.set(Line::Open);
    platform.until(&broken, None).await;
    let report = platform.get("/platform/v1/connections", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(report["breakers"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_answers_nothing_costs_the_others_nothing() {
    let platform = platform("4", "5000").await;
    let (broken, healthy) = (platform.tenant("silent").await, platform.tenant("silent-not").await);
    let (proxy, url) = Proxy::to(&platform.database_url(&broken).await).await;
    // On the same cluster as far as the registry knows, so that it has the same budget.
    platform.set_database_url(&broken, &url, None, false).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.set(Line::Silent);
    let knocking = join_all((0..20).map(|_| platform.look(&broken)));
    let working = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let started = Instant::now();
            platform.look(&healthy).await.expect(StatusCode::OK);
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let (answers, slowest) = tokio::join!(knocking, working);
    assert!(slowest < Duration::from_millis(1000), "{slowest:?}");
    for answer in answers {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    }
    let db = platform.open(&broken).await.unwrap();
    while !matches!(db.client().await, Err(TenantDbError::CircuitOpen { .. })) {}
    // From now on nobody waits, though each try takes seconds.
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(5) {
        let started = Instant::now();
        assert!(matches!(db.client().await, Err(TenantDbError::CircuitOpen { .. })));
        slowest = slowest.max(started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    proxy.set(Line::Open);
    let opened = Instant::now();
    while let Err(error) = db.client().await {
        assert!(opened.elapsed() < Duration::from_secs(15), "it was not found again: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_not_tried_again_and_again() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("refused").await;
    let url = platform.database_url(&tenant).await;
    let (role, admin) = (role(&url), administrator().await);
    admin.batch_execute(&format!("ALTER ROLE \"{role}\" PASSWORD 'another-one'")).await.unwrap();
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", &[&role]).await.unwrap();
    let db = platform.open(&tenant).await.unwrap();
    let mut last = None;
    for _ in 0..40 {
        last = db.client().await.err();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match last {
        Some(TenantDbError::CircuitOpen { retry_after }) => assert!(retry_after > Duration::from_secs(10)),
        other => panic!("{other:?}"),
    }
    let report = platform.get("/platform/v1/connections", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(report["breakers"][0]["reason"], "authentication", "{report}");
    // News of another password is believed at once.
    platform.set_database_url(&tenant, &with_password(&url, "another-one"), None, false).await;
    platform.until(&tenant, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_stored_though_the_credentials_changed_meanwhile() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("rotated").await;
    platform.offer(&tenant, &["slow-1500"]).await;
    let url = platform.database_url(&tenant).await;
    let (role, admin) = (role(&url), administrator().await);
    let rotate = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        admin.batch_execute(&format!("ALTER ROLE \"{role}\" PASSWORD 'the-next-one'")).await.unwrap();
        platform.set_database_url(&tenant, &with_password(&url, "the-next-one"), None, false).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
        admin.execute(sql, &[&role]).await.unwrap();
    };
    let (answer, ()) = tokio::join!(platform.chat(&tenant), rotate);
    let answer = answer.expect(StatusCode::OK);
    let path = format!("/api/v1/sessions/{}/messages", answer["session_id"].as_str().unwrap());
    let messages = platform.get(&path, &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(messages["items"][1]["state"], "complete", "{messages}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_middle_of_a_rotation_either_credential_serves() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("midway").await;
    let url = platform.database_url(&tenant).await;
    let (role, admin) = (role(&url), administrator().await);
    // As a server finds it after whoever rotated has died: the password is the next one, the registry not yet.
    admin.batch_execute(&format!("ALTER ROLE \"{role}\" PASSWORD 'brought-in'")).await.unwrap();
    platform.set_database_url(&tenant, &url, Some(&with_password(&url, "brought-in")), false).await;
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", &[&role]).await.unwrap();
    platform.until(&tenant, None).await;
    for _ in 0..10 {
        platform.look(&tenant).await.expect(StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_leaves_nothing_on_its_connection() {
    let platform = platform("1", "5000").await;
    let tenant = platform.tenant("given-up").await;
    let url = platform.database_url(&tenant).await;
    let db = platform.open(&tenant).await.unwrap();
    let admin = administrator().await;
    // In the middle of a statement.
    {
        let client = db.client().await.unwrap();
        let cut = tokio::time::timeout(Duration::from_millis(200), client.batch_execute("SELECT pg_sleep(20)")).await;
        assert!(cut.is_err());
    }
    let started = Instant::now();
    let client = db.client().await.unwrap();
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(seen(&admin, &[role(&url)]).await, 1);
    drop(client);
    // In the middle of a transaction.
    {
        let mut client = db.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        transaction.execute("CREATE TEMPORARY TABLE left_behind (n int)", &[]).await.unwrap();
    }
    let client = db.client().await.unwrap();
    assert!(client.query_opt("SELECT 1 FROM pg_class WHERE relname = 'left_behind'", &[]).await.unwrap().is_none());
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state LIKE 'idle in transaction%'";
    assert_eq!(admin.query_one(sql, &[&role(&url)]).await.unwrap().get::<_, i64>(0), 0);
    // Waiting in the queue, and while the connection is opened.
    for microseconds in [50, 500, 2000, 5000] {
        let waiting = tokio::time::timeout(Duration::from_micros(microseconds), db.client());
        assert!(waiting.await.is_err());
    }
    client.discard();
    for microseconds in (0..40).map(|n| n * 250) {
        drop(tokio::time::timeout(Duration::from_micros(microseconds), db.client()).await);
    }
    drop(db.client().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenants_connections_end() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("suspends").await;
    let roles = [role(&platform.database_url(&tenant).await)];
    let admin = administrator().await;
    let db = platform.open(&tenant).await.unwrap();
    let held = db.client().await.unwrap();
    platform.look(&tenant).await.expect(StatusCode::OK);
    platform.set_state(&tenant, "suspended").await;
    // What is idle ends at once, what is in use when it comes back.
    seen_becomes(&admin, &roles, 1, Duration::from_secs(2)).await;
    assert!(matches!(db.client().await, Err(TenantDbError::Suspended)));
    assert!(matches!(platform.open(&tenant).await, Err(TenantDbError::Suspended)));
    assert_eq!(held.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    drop(held);
    seen_becomes(&admin, &roles, 0, Duration::from_secs(2)).await;
    platform.set_state(&tenant, "active").await;
    platform.until(&tenant, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_not_spoken_is_said_to_be() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("schemas").await;
    for (version, code) in [("999", "tenant_schema_too_new"), ("0", "tenant_schema_too_old")] {
        let sql = format!(
            "UPDATE chat_instances SET schema_version = {version}, schema_compatible_from = {version}
             WHERE slug = 'schemas'"
        );
        platform.platform_client().await.batch_execute(&sql).await.unwrap();
        platform.until(&tenant, Some(code)).await;
    }
}

/// What the platform's database and the servers say of the shares: the sum of what may be open, and each server's own.
async fn shares(platform: &Platform) -> Value {
    platform.get("/platform/v1/connections", &platform.token).await.expect(StatusCode::OK)["database_servers"][0]
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_share_one_budget_and_never_pass_it() {
    let settings = &[("FREEHOLD_TENANT_CONNECTIONS", "6")];
    let first = Platform::start_with(Options { settings, ..Options::default() }).await;
    let mut tenants = Vec::new();
    for number in 0..4 {
        tenants.push(first.tenant(&format!("shared-{number}")).await);
    }
    let mut roles = Vec::new();
    for tenant in &tenants {
        roles.push(role(&first.database_url(tenant).await));
    }
    assert_eq!(shares(&first).await["granted"], 6, "one server has everything");
    let admin = administrator().await;
    // The first server holds all it may when the second one comes.
    let mut held = Vec::new();
    for number in 0..6 {
        held.push(first.open(&tenants[number % 4]).await.unwrap().client().await.unwrap());
    }
    let database = Some(first.database.clone());
    let second = Platform::start_with(Options { settings, database, ..Options::default() }).await;
    let asked = async { join_all(tenants.iter().cycle().take(40).map(|tenant| second.look(tenant))).await };
    let given_back = async {
        for client in held {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(client);
        }
    };
    let watched = async {
        let mut most = 0;
        for _ in 0..200 {
            most = most.max(seen(&admin, &roles).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        most
    };
    let (answers, (), most) = tokio::join!(asked, given_back, watched);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{:?}", answers[0]);
    assert!(most <= 6, "{most} connections were seen");
    for server in [&first, &second] {
        let mut granted = Value::Null;
        for _ in 0..100 {
            granted = shares(server).await["granted"].clone();
            if granted == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(granted, 3);
    }
    // Who stops gives it back.
    second.state.stop.cancel();
    let started = Instant::now();
    while shares(&first).await["granted"] != 6 {
        assert!(started.elapsed() < Duration::from_secs(12), "{}", shares(&first).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tenants_go_on_while_the_platforms_database_is_away() {
    let (platform, proxy) = platform_over_a_line().await;
    let tenant = platform.tenant("goes-on").await;
    platform.offer(&tenant, &["instant"]).await;
    for line in [Line::Cut, Line::Silent] {
        proxy.set(line);
        // The worst moment: everything known may be outdated, and nobody can be asked.
        platform.state.directory.mark_all_stale();
        let mut times = Vec::new();
        for _ in 0..30 {
            let started = Instant::now();
            platform.chat(&tenant).await.expect(StatusCode::OK);
            times.push(started.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        times.sort_unstable();
        announce(&format!("platform's database {line:?}: 30 chats, median {:?}, slowest {:?}", times[15], times[29]));
        assert!(times[29] < Duration::from_secs(2), "{:?}", times[29]);
        // So a load balancer must not take the server away; people are told all the same.
        let health = platform.get("/api/health", "").await.expect(StatusCode::OK);
        assert_eq!((&health["status"], &health["checks"][0]["status"]), (&json!("degraded"), &json!("failing")));
        proxy.set(Line::Open);
        let started = Instant::now();
        while platform.get("/platform/v1/tenants/goes-on", &platform.token).await.status != StatusCode::OK {
            assert!(started.elapsed() < Duration::from_secs(10), "it did not come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // News is heard again.
        platform.set_state(&tenant, "suspended").await;
        platform.until(&tenant, Some("tenant_suspended")).await;
        platform.set_state(&tenant, "active").await;
        platform.until(&tenant, None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_clients_own_server_is_remembered_while_the_platforms_database_is_away() {
    let (platform, proxy) = platform_over_a_line().await;
    let tenant = platform.tenant("comes-back").await;
    let url = platform.database_url(&tenant).await;
    platform.set_database_url(&tenant, &url, None, true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    platform.look(&tenant).await.expect(StatusCode::OK);
    proxy.set(Line::Cut);
    // Twice: the first closes the connections, the second finds nothing left of them.
    for _ in 0..2 {
        platform.state.databases.close_idle(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(platform.state.databases.tenants().is_empty());
    let started = Instant::now();
    platform.look(&tenant).await.expect(StatusCode::OK);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    proxy.set(Line::Open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_end_and_nothing_opens_new_ones() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("idle").await;
    let roles = [role(&platform.database_url(&tenant).await)];
    let admin = administrator().await;
    platform.look(&tenant).await.expect(StatusCode::OK);
    assert!(seen(&admin, &roles).await > 0);
    platform.state.databases.close_idle(Duration::ZERO);
    seen_becomes(&admin, &roles, 0, Duration::from_secs(2)).await;
    execute(&server().await.url("postgres"), "SELECT pg_sleep(1)").await;
    assert_eq!(seen(&admin, &roles).await, 0);
}
