//! A worker dies at every place of every operation, and the catalogs of Postgres are compared with the registry.
//!
//! The worker is a process of its own, this test binary started again, which kills itself without any clean-up at the
//! given place. Whoever adds an operation to `worker.rs` adds it to [`start_operation`]; its steps are found by
//! themselves.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use freehold::app::AppState;
use freehold::clock::{ManualClock, SystemClock};
use freehold::ids::TenantId;
use freehold::operations::{self, Checkpoint, CheckpointAction, Direction, Moment, Probe, RunError};
use freehold::provisioning::TenantMigrations;
use freehold::secrets::{MasterKeyring, Sealed};
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::backup;
use crate::fleet_migration;
use crate::harness::{self, Options, Platform, announce, connect, server};
use crate::own_database;

mod fleet;
mod life;

/// What happens at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// The worker dies before the step's work.
    Before,
    /// The worker dies after the step's work, before that is noted.
    After,
    /// The work is done twice, and then the worker dies.
    Twice,
    /// The step fails for good after its work.
    Failure,
}

const DIRECTIONS: [Direction; 2] = [Direction::Run, Direction::Undo];
const BLOWS: [Blow; 4] = [Blow::Before, Blow::After, Blow::Twice, Blow::Failure];

/// One case: a place and what happens there.
#[derive(Debug, Clone)]
struct Case {
    kind: &'static str,
    step: &'static str,
    direction: Direction,
    blow: Blow,
    /// The step whose failure starts the undoing, for cases about undoing.
    fails_first: &'static str,
}

impl Case {
    /// A probe that does what the case says; `die` is how its worker dies.
    fn probe(&self, die: fn()) -> Probe {
        let case = self.clone();
        let passes = AtomicU32::new(0);
        Arc::new(move |at: &Checkpoint| {
            let fails_first = case.direction == Direction::Undo
                && at.direction == Direction::Run
                && at.moment == Moment::After
                && at.step == case.fails_first;
            if fails_first {
                return CheckpointAction::Fail;
            }
            if at.kind != case.kind || at.step != case.step || at.direction != case.direction {
                return CheckpointAction::Continue;
            }
            match (case.blow, at.moment) {
                (Blow::Before, Moment::Before) | (Blow::After, Moment::After) => die(),
                (Blow::Twice, Moment::After) if passes.fetch_add(1, Ordering::SeqCst) == 0 => {
                    return CheckpointAction::Repeat;
                }
                (Blow::Twice, Moment::After) => die(),
                (Blow::Failure, Moment::After) => return CheckpointAction::Fail,
                _ => {}
            }
            CheckpointAction::Continue
        })
    }

    /// The case in words, for the process that is to die there.
    fn place(&self) -> String {
        format!("{}/{}/{}/{:?}/{:?}", self.kind, self.step, self.fails_first, self.direction, self.blow)
    }

    /// What [`Self::place`] says. The process has one case, and keeps its words for as long as it lives.
    fn at(place: &'static str) -> Self {
        let [kind, step, fails_first, direction, blow] = place.split('/').collect::<Vec<_>>()[..] else {
            panic!("{place} is no place")
        };
        let direction = DIRECTIONS.into_iter().find(|one| format!("{one:?}") == direction).unwrap();
        let blow = BLOWS.into_iter().find(|one| format!("{one:?}") == blow).unwrap();
        Self { kind, step, direction, blow, fails_first }
    }

    fn dies(&self) -> bool {
        self.blow != Blow::Failure
    }

    /// Whether the case is carried out without `KILL_MATRIX=all`. Work that was done twice before the worker died is
    /// the hardest for whoever comes after: a death after work done once leaves less, and one before the work what
    /// the death after the step before has left. When undoing fails it depends on the step what there is to undo.
    fn is_of_the_sample(&self) -> bool {
        match (self.direction, self.blow) {
            (Direction::Run, blow) => blow == Blow::Twice,
            (Direction::Undo, Blow::Twice) => self.fails_first != self.step,
            (Direction::Undo, blow) => blow == Blow::Failure && self.fails_first == self.step,
        }
    }
}

/// Every case of every operation.
fn cases(kinds: &[(&'static str, Vec<&'static str>)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, steps) in kinds {
        let fails_first = *steps.last().unwrap();
        for step in steps {
            for direction in DIRECTIONS {
                for blow in BLOWS {
                    cases.push(Case { kind, step, direction, blow, fails_first });
                    // And undoing from the step itself: what it is then to take back has not been superseded yet.
                    if direction == Direction::Undo && *step != fails_first {
                        cases.push(Case { kind, step, direction, blow, fails_first: step });
                    }
                }
            }
        }
    }
    cases
}

/// Asks for an operation of a kind; returns its id.
async fn start_operation(platform: &Platform, kind: &str, slug: &str) -> Value {
    match kind {
        "provision_tenant" => platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED)["operation"].clone(),
        kind if life::KINDS.contains(&kind) => life::start(platform, kind, slug).await,
        "audit_fleet" => platform
            .post("/platform/v1/fleet/audits", &platform.token, serde_json::json!({}))
            .await
            .expect(StatusCode::ACCEPTED),
        "rotate_database_credential" => rotation(platform, json!({ "kind": "database", "tenants": [slug] })).await,
        "rotate_signing_key" => rotation(platform, json!({ "kind": "signing_key", "tenants": [slug] })).await,
        "rotate_data_key" => rotation(platform, json!({ "kind": "data_key", "tenants": [slug] })).await,
        "rotate_master_key" => {
            wrap_with_the_old_key(platform, slug).await;
            rotation(platform, json!({ "kind": "master_key" })).await
        }
        "backup_tenant" | "restore_tenant" | "drop_replaced_database" => backup::start(platform, kind, slug).await,
        "provision_own_database" => own_database::start(platform, slug).await,
        "migrate_fleet" | "verify_fleet" => fleet::start(platform, kind).await,
        other => panic!("the matrix does not know how to start {other}"),
    }
}

async fn rotation(platform: &Platform, body: Value) -> Value {
    let answer = platform.post("/platform/v1/rotations", &platform.token, body).await.expect(StatusCode::ACCEPTED);
    json!({ "id": answer["operations"][0] })
}

/// Something for a rotation of the master key to do.
async fn wrap_with_the_old_key(platform: &Platform, slug: &str) {
    let registry = platform.platform_client().await;
    let sql = "SELECT w.tenant_id, w.version, w.wrapped_key FROM wrapped_keys w
               JOIN chat_instances t ON t.id = w.tenant_id WHERE t.slug = $1";
    let old = MasterKeyring::parse(&SecretString::from(harness::MASTER_KEYS)).unwrap();
    for row in registry.query(sql, &[&slug]).await.unwrap() {
        let (tenant, version): (uuid::Uuid, i32) = (row.get(0), row.get(1));
        let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(2)).unwrap();
        let id = TenantId::from_uuid(tenant);
        let key = platform.state.config.master_keys.unwrap(id, version.cast_unsigned(), &wrapped).unwrap();
        let sql = "UPDATE wrapped_keys SET wrapped_key = $3, master_key_version = 1
                   WHERE tenant_id = $1 AND version = $2";
        registry.execute(sql, &[&tenant, &version, &old.wrap(id, &key).as_bytes()]).await.unwrap();
    }
}

/// Whether operations of a kind work on a tenant that is in service.
fn needs_tenant(kind: &str) -> bool {
    kind.starts_with("rotate_")
}

/// Settings of every server here: two master keys, so that one can be given up, and no waiting for other servers.
const SETTINGS: &[(&str, &str)] = &[
    ("FREEHOLD_WORKER_CONCURRENCY", "0"),
    ("FREEHOLD_MASTER_KEYS", harness::BOTH_MASTER_KEYS),
    ("FREEHOLD_ROTATION_GRACE_SECONDS", "0"),
];

/// Tenants in service that no case uses at the moment. Making one takes longer than a case.
#[derive(Default)]
struct Prepared {
    free: Mutex<Vec<String>>,
    count: AtomicU32,
    /// The platform has one master-key rotation at a time.
    platform: tokio::sync::Mutex<()>,
}

impl Prepared {
    /// A tenant in service, with an AI key, and an admin who can sign in.
    async fn take(&self, platform: &Platform) -> Result<String, String> {
        if let Some(slug) = self.free.lock().unwrap().pop() {
            return Ok(slug);
        }
        let slug = format!("prepared-{}", self.count.fetch_add(1, Ordering::SeqCst));
        let answer = platform.request_tenant(&slug).await.expect(StatusCode::ACCEPTED);
        run_here(platform, answer["operation"]["id"].as_str().unwrap(), None).await?;
        // Every case asks it a question.
        platform.set_limits(&slug, json!({ "requests_per_minute": "unlimited" })).await;
        let body = json!({ "tenant": slug, "token": answer["admin_invite"]["token"], "password": harness::PASSWORD });
        let tokens = platform.post("/api/v1/auth/accept-invite", "", body).await.expect_success();
        let body = json!({
            "provider": "openai_compatible", "base_url": harness::fake_model().await.base_url(), "api_key": "prepared",
            "models": ["instant"], "default_model": "instant"
        });
        let token = tokens["access_token"].as_str().unwrap();
        platform.send(Method::PUT, "/api/v1/ai-keys/main", token, Some(body)).await.expect_success();
        Ok(slug)
    }
}

/// Whether a tenant that is in service serves: somebody signs in and is answered.
async fn serves(platform: &Platform, slug: &str) -> Result<(), String> {
    let mut last = String::new();
    // The server may not have heard of the end of the operation yet.
    for _ in 0..20 {
        let email = format!("admin@{slug}.example");
        let body = json!({ "tenant": slug, "email": email, "password": harness::PASSWORD });
        let tokens = platform.post("/api/v1/auth/login", "", body).await;
        let answer = match tokens.body["access_token"].as_str() {
            Some(token) => platform.post("/api/v1/chat", token, json!({ "message": "hello" })).await,
            None => tokens,
        };
        if answer.status == StatusCode::OK {
            return Ok(());
        }
        last = answer.text;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{slug} does not serve: {last}"))
}

/// The migrations of the servers that come, when a fleet is moved.
fn migrations() -> Arc<TenantMigrations> {
    fleet_migration::and(fleet_migration::THINGS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_death_at_any_step_of_any_operation_leaves_an_orphan() {
    // This platform carries nothing out: its operations are for the workers that die and those that come after.
    let database = Platform::start().await.database.clone();
    let options =
        Options { settings: SETTINGS, database: Some(database), migrations: Some(migrations()), ..Options::default() };
    let platform = Arc::new(Platform::start_with(options).await);
    let prepared = Arc::new(Prepared::default());
    let mut cases = cases(&platform.state.engine.kinds());
    // For whoever works on one operation.
    if let Ok(kind) = std::env::var("KILL_MATRIX_KIND") {
        cases.retain(|case| case.kind == kind);
    }
    let all = cases.len();
    if std::env::var("KILL_MATRIX").as_deref() != Ok("all") {
        cases.retain(Case::is_of_the_sample);
    }
    let count = cases.len();
    let outcomes: Vec<Option<String>> = futures::stream::iter(cases.into_iter().enumerate())
        .map(|(number, case)| {
            let (platform, prepared) = (Arc::clone(&platform), Arc::clone(&prepared));
            async move {
                run_case(&platform, &prepared, number, &case).await.err().map(|error| format!("{case:?}: {error}"))
            }
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let failures: Vec<String> = outcomes.into_iter().flatten().collect();
    let mut orphans = orphans(&platform).await;
    orphans.extend(backup::leftovers(&platform).await);
    announce(&format!("kill matrix: {count} of {all} cases, {} failed, {} orphans", failures.len(), orphans.len()));
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(orphans.is_empty(), "{orphans:#?}");
}

async fn run_case(platform: &Platform, prepared: &Prepared, number: usize, case: &Case) -> Result<(), String> {
    // Of operations on the platform as a whole there is one at a time.
    let on_the_fleet = case.kind.ends_with("_fleet");
    let on_the_platform = on_the_fleet || case.kind == "rotate_master_key";
    let alone = if on_the_platform { Some(prepared.platform.lock().await) } else { None };
    let slug = if needs_tenant(case.kind) { prepared.take(platform).await? } else { format!("case-{number}") };
    let operation = start_operation(platform, case.kind, &slug).await;
    let id = operation["id"].as_str().unwrap();
    let compare = async |succeeded: bool| {
        if life::KINDS.contains(&case.kind) {
            life::compare(platform, case.kind, &slug, succeeded).await
        } else if case.kind == "audit_fleet" {
            // It changes nothing but its findings.
            Ok(())
        } else if on_the_fleet {
            fleet::compare(platform, case.kind, id, succeeded).await
        } else {
            let end = match (succeeded, needs_tenant(case.kind)) {
                (true, _) => End::Done,
                // The tenant is in service however these end.
                (false, _) if backup::serves_anyway(case.kind) => End::Done,
                (false, true) => End::StillServing,
                (false, false) => End::Gone,
            };
            compare(platform, &slug, end).await
        }
    };
    if case.dies() {
        let died = child(platform, id, case).await;
        if !died {
            return Err("the worker did not die where it should".to_owned());
        }
    } else {
        run_here(platform, id, Some(case.probe(|| {}))).await?;
    }
    if case.direction == Direction::Undo && case.blow == Blow::Failure {
        expect_state(platform, id, "needs_operator").await?;
        let path = format!("/platform/v1/operations/{id}/retry");
        platform.send(Method::POST, &path, &platform.token, None).await.expect(StatusCode::ACCEPTED);
    }
    // Another worker comes, and nothing goes wrong this time.
    run_here(platform, id, None).await?;
    let undone = case.direction == Direction::Undo || case.blow == Blow::Failure;
    expect_state(platform, id, if undone { "failed" } else { "succeeded" }).await?;
    compare(!undone).await?;
    if needs_tenant(case.kind) {
        serves(platform, &slug).await?;
    }
    if undone {
        // What was undone can be done again, from the same row; or, where that has forgotten a key, from a new one.
        let again = match backup::ask_again(platform, case.kind, &slug).await {
            Some(operation) => operation["id"].as_str().unwrap().to_owned(),
            None => {
                let path = format!("/platform/v1/operations/{id}/retry");
                platform.send(Method::POST, &path, &platform.token, None).await.expect(StatusCode::ACCEPTED);
                id.to_owned()
            }
        };
        run_here(platform, &again, None).await?;
        expect_state(platform, &again, "succeeded").await?;
        compare(true).await?;
    }
    if needs_tenant(case.kind) {
        serves(platform, &slug).await?;
        prepared.free.lock().unwrap().push(slug);
    }
    drop(alone);
    Ok(())
}

/// Carries the operation out in this process, as a server that comes after would.
pub async fn run_here(platform: &Platform, id: &str, probe: Option<Probe>) -> Result<(), String> {
    let config = harness::config(&server().await.url(&platform.database), SETTINGS);
    let clock = harness::manual_clock();
    let state = AppState::build_with(config, clock.clone(), probe, migrations()).unwrap();
    let result = run_without_waiting(&state, &clock, id).await.map_err(|error| error.to_string());
    state.pool.close().await;
    result
}

/// Runs an operation; where it has to wait, the clock is moved on.
async fn run_without_waiting(state: &AppState, clock: &ManualClock, id: &str) -> Result<(), RunError> {
    let id = id.parse().unwrap();
    loop {
        match state.engine.run(id).await {
            Err(RunError::NotBefore(at)) => clock.set(at),
            other => return other,
        }
    }
}

/// What an operation left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was done.
    Done,
    /// It was undone, and the tenant it worked on was in service before.
    StillServing,
    /// It was undone, and with it the tenant.
    Gone,
}

async fn expect_state(platform: &Platform, id: &str, expected: &str) -> Result<(), String> {
    let now = platform.get(&format!("/platform/v1/operations/{id}"), &platform.token).await.expect(StatusCode::OK);
    if now["state"] == expected { Ok(()) } else { Err(format!("expected {expected}, found {now}")) }
}

/// Compares what Postgres has of a tenant with what the registry says.
async fn compare(platform: &Platform, slug: &str, end: End) -> Result<(), String> {
    let registry = platform.platform_client().await;
    let own = "SELECT FROM chat_instances WHERE slug = $1 AND database_mode = 'own'";
    if registry.query_opt(own, &[&slug]).await.unwrap().is_some() {
        return own_database::compare(platform, slug, end == End::Done).await;
    }
    let sql = "SELECT t.state, d.database_name, d.owner_role, d.login_role,
                      (SELECT count(*) FROM wrapped_keys w WHERE w.tenant_id = t.id),
                      (SELECT count(*) FROM signing_keys k WHERE k.tenant_id = t.id), right(t.id::text, 12),
                      (SELECT count(*) FROM signing_keys k WHERE k.tenant_id = t.id AND k.retired_at IS NULL),
                      num_nonnulls(d.next_login_role, d.next_url_sealed, d.retiring_login_role)
               FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id WHERE t.slug = $1";
    let row = registry.query_one(sql, &[&slug]).await.unwrap();
    let (state, wrapped, signing): (String, i64, i64) = (row.get(0), row.get(4), row.get(5));
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let like = format!("%{}%", row.get::<_, String>(6));
    let databases = cluster.query("SELECT datname FROM pg_database WHERE datname LIKE $1", &[&like]).await.unwrap();
    let roles = cluster.query("SELECT rolname FROM pg_roles WHERE rolname LIKE $1", &[&like]).await.unwrap();
    // Once a credential was replaced, the other login role is there as well, shut out.
    let roles = roles.len() - usize::from(roles.len() == 3);
    // A rotation that is undone may leave an older key beside the one in use: what it sealed or signed stays good.
    let left = if end == End::StillServing { 2 } else { 1 };
    let seen = (state.as_str(), wrapped, signing, databases.len(), roles);
    let matches = match end {
        // A tenant that was to come back from a backup is as gone as it was.
        End::Gone => ["failed", "deleted"].contains(&seen.0) && (seen.1, seen.2, seen.3, seen.4) == (0, 0, 0, 0),
        End::Done | End::StillServing => {
            (state.as_str(), databases.len(), roles) == ("active", 1, 2)
                && (1..=left).contains(&wrapped)
                && (1..=left).contains(&signing)
        }
    };
    if !matches {
        return Err(format!("{end:?}: state, data keys, signing keys, databases, roles: {seen:?}"));
    }
    if end == End::Gone {
        return Ok(());
    }
    let (signers, unfinished): (i64, i32) = (row.get(7), row.get(8));
    if (signers, unfinished) != (1, 0) {
        return Err(format!("keys that sign, marks of a rotation: {:?}", (signers, unfinished)));
    }
    let (database, owner, login): (String, String, String) = (row.get(1), row.get(2), row.get(3));
    let grants = cluster
        .query_one(
            "SELECT pg_get_userbyid(datdba) = $2, has_database_privilege('public', datname, 'CONNECT'),
                    has_database_privilege($3, datname, 'CONNECT'), datallowconn,
                    (SELECT rolcanlogin FROM pg_roles WHERE rolname = $2),
                    (SELECT rolcanlogin FROM pg_roles WHERE rolname = $3),
                    (SELECT count(*) = 1 FROM pg_roles WHERE rolname ~ ('^' || $1 || '_') AND rolcanlogin),
                    (SELECT count(*) = 1 FROM pg_roles WHERE rolname ~ ('^' || $1 || '_[ab]$')
                     AND has_database_privilege(rolname, $1, 'CONNECT'))
             FROM pg_database WHERE datname = $1",
            &[&database, &owner, &login],
        )
        .await
        .unwrap();
    let grants: Vec<bool> = (0..8).map(|at| grants.get(at)).collect();
    if grants != [true, false, true, true, false, true, true, true] {
        return Err(format!(
            "owner, public, login, open, owner logs in, login logs in, nobody else logs in, nobody else connects: {grants:?}"
        ));
    }
    let tenant = connect(&server().await.url(&database)).await.unwrap();
    let sql = "SELECT (SELECT count(*) FROM live_configurations), (SELECT count(*) FROM user_invites),
                      (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname = 'public' AND c.relkind = 'r' AND pg_get_userbyid(c.relowner) <> $1)";
    let row = tenant.query_one(sql, &[&owner]).await.unwrap();
    let rows: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if rows != (1, 1, 0) {
        return Err(format!("configurations, invites, tables of another owner: {rows:?}"));
    }
    Ok(())
}

/// Databases and roles of this platform's tenants that its registry does not know, and the other way round.
async fn orphans(platform: &Platform) -> Vec<String> {
    let registry = platform.platform_client().await;
    let rows = registry
        .query(
            "SELECT d.database_name, d.owner_role, d.login_role, right(t.id::text, 12)
             FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id
             WHERE t.database_mode = 'managed'",
            &[],
        )
        .await
        .unwrap();
    let known: BTreeSet<String> =
        rows.iter().flat_map(|row| (0..3).filter_map(|at| row.get::<_, Option<String>>(at))).collect();
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let names = "SELECT datname AS name FROM pg_database UNION SELECT rolname FROM pg_roles";
    let there: BTreeSet<String> = cluster.query(names, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let ours = |name: &&String| rows.iter().any(|row| name.contains(&row.get::<_, String>(3)));
    // The other of the two login roles is there once a credential was replaced.
    let alternate =
        |name: &String| ["_a", "_b"].iter().any(|end| name.strip_suffix(end).is_some_and(|base| known.contains(base)));
    let strangers = there.iter().filter(ours).filter(|name| !known.contains(*name) && !alternate(name));
    strangers.chain(known.iter().filter(|name| !there.contains(*name))).cloned().collect()
}

/// Starts a worker that dies as the case says; returns whether it did.
async fn child(platform: &Platform, operation: &str, case: &Case) -> bool {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", "kill_matrix::a_worker_that_dies", "--ignored", "--nocapture"])
        .env("FREEHOLD_TEST_DATABASE", server().await.url(&platform.database))
        .env("FREEHOLD_TEST_OPERATION", operation)
        .env("FREEHOLD_TEST_PLACE", case.place())
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.unwrap().unwrap();
    output.status.code().is_none()
}

fn die() {
    std::process::abort();
}

/// Not a test by itself: the process that [`child`] starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the kill matrix as a process of its own"]
async fn a_worker_that_dies() {
    let Ok(database) = std::env::var("FREEHOLD_TEST_DATABASE") else { return };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let operation = std::env::var("FREEHOLD_TEST_OPERATION").unwrap();
    let case = Case::at(std::env::var("FREEHOLD_TEST_PLACE").unwrap().leak());
    let config = harness::config(&database, SETTINGS);
    let clock = harness::manual_clock();
    let state = AppState::build_with(config, clock.clone(), Some(case.probe(die)), migrations()).unwrap();
    let run = run_without_waiting(&state, &clock, &operation).await;
    panic!("the worker lived on: {run:?}");
}

/// A worker that is killed from outside, at no particular place, while eight operations are under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_at_random_leave_nothing_behind() {
    let platform = Platform::start().await;
    platform.state.stop.cancel();
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let options = Options { settings, database: Some(platform.database.clone()), ..Options::default() };
    let platform = Platform::start_with(options).await;
    let mut operations = Vec::new();
    for number in 0..8 {
        operations.push(start_operation(&platform, "provision_tenant", &format!("random-{number}")).await);
    }
    let database = server().await.url(&platform.database);
    let (mut kills, mut left, mut pause) = (0, operations.len(), 100);
    while left > 0 {
        let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_matrix::a_worker_that_is_killed", "--ignored", "--nocapture"])
            .env("FREEHOLD_TEST_DATABASE", &database)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The worker says when it begins; only from then on the pause counts.
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(worker.stdout.take().unwrap()));
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("begins") {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        worker.kill().await.unwrap();
        kills += 1;
        let mut unsettled = 0;
        for operation in &operations {
            let path = format!("/platform/v1/operations/{}", operation["id"].as_str().unwrap());
            let now = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
            unsettled += usize::from(now["state"] != "succeeded");
        }
        // A round in which nothing was finished was too short for this machine; one with progress was long enough.
        pause = if unsettled < left { 100 } else { pause + 50 };
        left = unsettled;
        assert!(kills < 300, "{left} operations are not done after {kills} kills");
    }
    for number in 0..8 {
        compare(&platform, &format!("random-{number}"), End::Done).await.unwrap();
    }
    let orphans = orphans(&platform).await;
    announce(&format!("random kills: {kills}, orphans {}", orphans.len()));
    assert!(orphans.is_empty(), "{orphans:?}");
}

/// Not a test by itself: the worker of [`workers_killed_at_random_leave_nothing_behind`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by another test as a process of its own"]
async fn a_worker_that_is_killed() {
    let Ok(database) = std::env::var("FREEHOLD_TEST_DATABASE") else { return };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let state = AppState::build(harness::config(&database, &[]), SystemClock::shared(), None).unwrap();
    println!("begins");
    operations::recover(&state.pool).await.unwrap();
    operations::start_worker(Arc::clone(&state.engine), 4, state.stop.clone(), Duration::ZERO).await.unwrap();
}

/// Of two workers that race for one operation, one carries it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_is_carried_out_by_one_of_many_workers() {
    let platform = Platform::start().await;
    platform.state.stop.cancel();
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let probe: Probe = Arc::new(move |at: &Checkpoint| {
        if at.moment == Moment::Before && at.step == "create_database" {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        CheckpointAction::Continue
    });
    let options =
        Options { settings, probe: Some(probe), database: Some(platform.database.clone()), ..Options::default() };
    let platform = Platform::start_with(options).await;
    let operation = start_operation(&platform, "provision_tenant", "raced-for").await;
    let id = operation["id"].as_str().unwrap().parse().unwrap();
    let engine = &platform.state.engine;
    let all = futures::future::join_all((0..4).map(|_| engine.run(id))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    compare(&platform, "raced-for", End::Done).await.unwrap();
}
