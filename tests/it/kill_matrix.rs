//! A worker dies at every place of every operation, and the catalogs of Postgres are compared with the registry.
//!
//! The worker is a process of its own, this test binary started again, which kills itself without any clean-up at the
//! given place. Whoever adds an operation to `worker.rs` adds it to [`start_operation`]; its steps are found by
//! themselves.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use freehold::app::AppState;
use freehold::clock::SystemClock;
use freehold::operations::{self, Checkpoint, CheckpointAction, Direction, Moment, Probe};
use freehold::provisioning::TenantMigrations;
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::fleet_migration;
use crate::harness::{self, Options, Platform, announce, connect, server};

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

    fn dies(&self) -> bool {
        self.blow != Blow::Failure
    }
}

/// Every case of every operation.
fn cases(kinds: &[(&'static str, Vec<&'static str>)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, steps) in kinds {
        let fails_first = *steps.last().unwrap();
        for step in steps {
            for direction in [Direction::Run, Direction::Undo] {
                for blow in [Blow::Before, Blow::After, Blow::Twice, Blow::Failure] {
                    cases.push(Case { kind, step, direction, blow, fails_first });
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
        "migrate_fleet" | "verify_fleet" => start_on_the_fleet(platform, kind, slug).await,
        other => panic!("the matrix does not know how to start {other}"),
    }
}

/// The migrations of the servers that come, when a fleet is moved.
fn migrations() -> Arc<TenantMigrations> {
    fleet_migration::and(fleet_migration::THINGS)
}

/// The tenants of a case about the fleet.
fn fleet_of(slug: &str) -> [String; 2] {
    [format!("{slug}-a"), format!("{slug}-b")]
}

/// Two tenants that are behind, and a run over them.
async fn start_on_the_fleet(platform: &Platform, kind: &str, slug: &str) -> Value {
    let slugs = fleet_of(slug);
    for slug in &slugs {
        let operation = platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED)["operation"].clone();
        run_here(platform, operation["id"].as_str().unwrap(), None).await.unwrap();
        fleet_migration::take_back(platform, slug).await;
    }
    let tenants = serde_json::json!({ "tenants": slugs });
    let begun = match kind {
        "migrate_fleet" => platform.post("/platform/v1/fleet/migrations", &platform.token, tenants).await,
        _ => platform.post("/platform/v1/fleet/verifications", &platform.token, tenants).await,
    };
    let begun = begun.expect(StatusCode::ACCEPTED);
    if kind == "migrate_fleet" { begun["operation"].clone() } else { begun }
}

/// A run over the fleet leaves each tenant as it was or as it has to be, never in between, and the registry never ahead
/// of a database. Only a verification that is done has looked at all.
async fn compare_fleet(platform: &Platform, kind: &str, id: &str, slug: &str, succeeded: bool) -> Result<(), String> {
    for slug in fleet_of(slug) {
        compare(platform, &slug, true).await?;
        let (registered, noted, there) = fleet_migration::versions(platform, &slug).await;
        let newest = fleet_migration::NEWEST;
        let whole = there == (noted == newest) && registered <= noted;
        if !whole || (kind == "migrate_fleet" && succeeded && registered != newest) {
            return Err(format!("{slug}: registry {registered}, database {noted}, its table is there: {there}"));
        }
        if kind == "verify_fleet" && there {
            return Err(format!("{slug}: a verification changed it"));
        }
    }
    let registry = platform.platform_client().await;
    let sql = "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'pending'), count(*)
               FROM fleet_migration_tenants WHERE operation_id = $1";
    let row = registry.query_one(sql, &[&id.parse::<uuid::Uuid>().unwrap()]).await.unwrap();
    let counts: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if succeeded && counts != (0, 0, 2) {
        return Err(format!("running, pending, all: {counts:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_death_at_any_step_of_any_operation_leaves_an_orphan() {
    // This platform carries nothing out: its operations are for the workers that die and those that come after.
    let database = Platform::start().await.database.clone();
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Arc::new(
        Platform::start_with(Options {
            settings,
            database: Some(database),
            migrations: Some(migrations()),
            ..Options::default()
        })
        .await,
    );
    let cases = cases(&platform.state.engine.kinds());
    let count = cases.len();
    let outcomes: Vec<Option<String>> = futures::stream::iter(cases.into_iter().enumerate())
        .map(|(number, case)| {
            let platform = Arc::clone(&platform);
            async move { run_case(&platform, number, &case).await.err().map(|error| format!("{case:?}: {error}")) }
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let failures: Vec<String> = outcomes.into_iter().flatten().collect();
    let orphans = orphans(&platform).await;
    announce(&format!("kill matrix: {count} cases, {} failed, {} orphans", failures.len(), orphans.len()));
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(orphans.is_empty(), "{orphans:#?}");
}

async fn run_case(platform: &Platform, number: usize, case: &Case) -> Result<(), String> {
    let slug = format!("case-{number}");
    // Of runs over the fleet there is one at a time.
    static FLEET: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let on_the_fleet = case.kind.ends_with("_fleet");
    let _alone = if on_the_fleet { Some(FLEET.lock().await) } else { None };
    let operation = start_operation(platform, case.kind, &slug).await;
    let id = operation["id"].as_str().unwrap();
    let compare = async |succeeded: bool| {
        if life::KINDS.contains(&case.kind) {
            life::compare(platform, case.kind, &slug, succeeded).await
        } else if case.kind == "audit_fleet" {
            // It changes nothing but its findings.
            Ok(())
        } else if on_the_fleet {
            compare_fleet(platform, case.kind, id, &slug, succeeded).await
        } else {
            compare(platform, &slug, succeeded).await
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
    if undone {
        // What was undone can be done again, from the same row.
        let path = format!("/platform/v1/operations/{id}/retry");
        platform.send(Method::POST, &path, &platform.token, None).await.expect(StatusCode::ACCEPTED);
        run_here(platform, id, None).await?;
        expect_state(platform, id, "succeeded").await?;
        compare(true).await?;
    }
    Ok(())
}

/// Carries the operation out in this process, as a server that comes after would.
async fn run_here(platform: &Platform, id: &str, probe: Option<Probe>) -> Result<(), String> {
    let config = harness::config(&server().await.url(&platform.database), &[]);
    let state = AppState::build_with(config, SystemClock::shared(), probe, migrations()).unwrap();
    let result = state.engine.run(id.parse().unwrap()).await.map_err(|error| error.to_string());
    state.pool.close().await;
    result
}

async fn expect_state(platform: &Platform, id: &str, expected: &str) -> Result<(), String> {
    let now = platform.get(&format!("/platform/v1/operations/{id}"), &platform.token).await.expect(StatusCode::OK);
    if now["state"] == expected { Ok(()) } else { Err(format!("expected {expected}, found {now}")) }
}

/// Compares what Postgres has of a tenant with what the registry says.
async fn compare(platform: &Platform, slug: &str, provisioned: bool) -> Result<(), String> {
    let registry = platform.platform_client().await;
    let sql = "SELECT t.state, d.database_name, d.owner_role, d.login_role,
                      (SELECT count(*) FROM wrapped_keys w WHERE w.tenant_id = t.id),
                      (SELECT count(*) FROM signing_keys k WHERE k.tenant_id = t.id), right(t.id::text, 12)
               FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id WHERE t.slug = $1";
    let row = registry.query_one(sql, &[&slug]).await.unwrap();
    let (state, wrapped, signing): (String, i64, i64) = (row.get(0), row.get(4), row.get(5));
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    let like = format!("%{}%", row.get::<_, String>(6));
    let databases = cluster.query("SELECT datname FROM pg_database WHERE datname LIKE $1", &[&like]).await.unwrap();
    let roles = cluster.query("SELECT rolname FROM pg_roles WHERE rolname LIKE $1", &[&like]).await.unwrap();
    let seen = (state.as_str(), wrapped, signing, databases.len(), roles.len());
    let expected = if provisioned { ("active", 1, 1, 1, 2) } else { ("failed", 0, 0, 0, 0) };
    if seen != expected {
        return Err(format!(
            "expected {expected:?} (state, data keys, signing keys, databases, roles), found {seen:?}"
        ));
    }
    if !provisioned {
        return Ok(());
    }
    let (database, owner, login): (String, String, String) = (row.get(1), row.get(2), row.get(3));
    let grants = cluster
        .query_one(
            "SELECT pg_get_userbyid(datdba) = $2, has_database_privilege('public', datname, 'CONNECT'),
                    has_database_privilege($3, datname, 'CONNECT'), datallowconn,
                    (SELECT rolcanlogin FROM pg_roles WHERE rolname = $2),
                    (SELECT rolcanlogin FROM pg_roles WHERE rolname = $3)
             FROM pg_database WHERE datname = $1",
            &[&database, &owner, &login],
        )
        .await
        .unwrap();
    let grants: Vec<bool> = (0..6).map(|at| grants.get(at)).collect();
    if grants != [true, false, true, true, false, true] {
        return Err(format!("owner, public, login, open, owner logs in, login logs in: {grants:?}"));
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
             FROM chat_instances t LEFT JOIN tenant_databases d ON d.tenant_id = t.id",
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
    let strangers = there.iter().filter(ours).filter(|name| !known.contains(*name));
    strangers.chain(known.iter().filter(|name| !there.contains(*name))).cloned().collect()
}

/// Starts a worker that dies as the case says; returns whether it did.
async fn child(platform: &Platform, operation: &str, case: &Case) -> bool {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    let place = format!("{}/{}/{}/{:?}/{:?}", case.kind, case.step, case.fails_first, case.direction, case.blow);
    let output = command
        .args(["--exact", "kill_matrix::a_worker_that_dies", "--ignored", "--nocapture"])
        .env("FREEHOLD_TEST_DATABASE", server().await.url(&platform.database))
        .env("FREEHOLD_TEST_OPERATION", operation)
        .env("FREEHOLD_TEST_PLACE", place)
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
    let place = std::env::var("FREEHOLD_TEST_PLACE").unwrap();
    let place: Vec<&str> = place.split('/').collect();
    let config = harness::config(&database, &[]);
    let probe_of = |kinds: &[(&'static str, Vec<&'static str>)]| {
        let case = cases(kinds).into_iter().find(|case| {
            [case.kind, case.step, case.fails_first, &format!("{:?}", case.direction), &format!("{:?}", case.blow)]
                == place[..]
        });
        case.unwrap().probe(die)
    };
    let kinds = AppState::build(harness::config(&database, &[]), SystemClock::shared(), None).unwrap().engine.kinds();
    let state = AppState::build_with(config, SystemClock::shared(), Some(probe_of(&kinds)), migrations()).unwrap();
    let run = state.engine.run(operation.parse().unwrap()).await;
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
        compare(&platform, &format!("random-{number}"), true).await.unwrap();
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
    compare(&platform, "raced-for", true).await.unwrap();
}
