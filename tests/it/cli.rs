//! The `freehold` command against a real server: what a super admin types, what scripts read.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use freehold_cli::failure::Exit;
use freehold_cli::output::Sinks;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::fleet_migration;
use crate::harness::{ADMIN_EMAIL, PASSWORD, Platform, execute, server};

/// A super admin's terminal.
struct Terminal {
    home: tempfile::TempDir,
}

/// What a command did.
struct Output {
    exit: Exit,
    stdout: String,
    stderr: String,
}

impl Output {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("not one JSON document: {}", self.stdout))
    }
}

impl Terminal {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let config = self.path("config");
        let all = ["freehold", "--config-dir", &config].into_iter().chain(arguments.iter().copied());
        let (sinks, captured) = Sinks::captured();
        let exit = freehold_cli::run(all.map(OsString::from), sinks).await;
        Output { exit, stdout: captured.stdout(), stderr: captured.stderr() }
    }

    async fn signed_in(platform: &Platform) -> Self {
        let terminal = Self::new();
        std::fs::write(terminal.path("password"), PASSWORD).unwrap();
        let file = terminal.path("password");
        let login = ["login", &platform.url, "--email", ADMIN_EMAIL, "--password-file", &file];
        let output = terminal.run(&login).await;
        assert_eq!(output.exit, Exit::Done, "{}", output.stderr);
        assert!(!output.stdout.contains("fhs_") && !output.stderr.contains("fhs_"), "the token is shown");
        terminal
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_created_followed_and_shown() {
    let platform = Platform::start().await;
    let terminal = Terminal::signed_in(&platform).await;
    let stored = std::fs::read_dir(terminal.path("config")).unwrap().map(|entry| entry.unwrap().path());
    let with_token = |path: &std::path::PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains("fhs_"));
    let modes: Vec<u32> = stored.filter(with_token).map(mode).collect();
    assert_eq!(modes, [0o600], "the token is in one file, for its owner only");
    let file = terminal.path("acme.env");
    let create = ["tenant", "create", "acme", "--name", "Acme", "--plan", "pro", "--admin-email", "a@acme.example"];
    let output = terminal.run(&[&create[..], &["--config-file", &file, "--json"]].concat()).await;
    assert_eq!(output.exit, Exit::Done, "{}", output.stderr);
    let created = output.json();
    assert_eq!(created["operation"]["state"], "succeeded", "{created}");
    assert!(output.stderr.contains("apply_template"), "progress goes to standard error: {}", output.stderr);
    assert_eq!(mode(&file), 0o600);
    let written = std::fs::read_to_string(&file).unwrap();
    let invite = written.lines().find_map(|line| line.strip_prefix("ADMIN_INVITE_TOKEN=")).unwrap();
    let invite = invite.trim_matches(['\'', '"']);
    assert!(!output.stdout.contains(invite) && !output.stderr.contains(invite), "the invite is shown unasked");
    let accept = json!({ "tenant": "acme", "token": invite, "password": PASSWORD });
    platform.post("/api/v1/auth/accept-invite", "", accept).await.expect(StatusCode::OK);

    let shown = terminal.run(&["tenant", "show", "acme", "--json"]).await.json();
    assert_eq!((&shown["state"], &shown["plan"]), (&json!("active"), &json!("pro")));
    let listed = terminal.run(&["tenant", "list"]).await;
    assert!(listed.stdout.contains("acme") && listed.stderr.is_empty(), "{} {}", listed.stdout, listed.stderr);
    let changed = terminal.run(&["tenant", "set", "acme", "--plan", "premium", "--json"]).await;
    assert_eq!(changed.exit, Exit::Done, "{}", changed.stderr);
    let id = created["operation"]["id"].as_str().unwrap();
    let followed = terminal.run(&["operation", "follow", id, "--json"]).await;
    assert_eq!((followed.exit, &followed.json()["state"]), (Exit::Done, &json!("succeeded")));
    let again = terminal.run(&["operation", "retry", id, "--json"]).await;
    assert_eq!(again.exit, Exit::Failed);
    assert_eq!(again.json()["error"]["code"], "operation_not_failed");
    let clusters = terminal.run(&["cluster", "list", "--json"]).await;
    assert!(clusters.stdout.contains("\"local\"") && !clusters.stdout.contains("postgres://"), "{}", clusters.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_says_what_to_do_and_exits_accordingly() {
    let platform = Platform::start().await;
    let stranger = Terminal::new();
    let output = stranger.run(&["--server", &platform.url, "tenant", "list", "--json"]).await;
    assert_eq!(output.exit, Exit::Usage, "{}", output.stderr);
    assert!(output.stdout.contains("freehold login"), "{}", output.stdout);
    let output = stranger.run(&["tenant", "create"]).await;
    assert_eq!(output.exit, Exit::Usage);

    let terminal = Terminal::signed_in(&platform).await;
    let output = terminal.run(&["tenant", "show", "nobody", "--json"]).await;
    assert_eq!((output.exit, &output.json()["error"]["code"]), (Exit::Failed, &json!("not_found")));
    let file = terminal.path("x.env");
    let create = ["tenant", "create", "acme", "--name", "x", "--plan", "golden", "--admin-email", "a@x.example"];
    let output = terminal.run(&[&create[..], &["--config-file", &file]].concat()).await;
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.stderr.contains("enterprise, free, premium, pro"), "{}", output.stderr);
    assert!(!Path::new(&file).exists(), "no empty configuration file is left behind");
    // A session that was revoked elsewhere.
    let sessions = platform.get("/platform/v1/sessions", &platform.token).await.expect(StatusCode::OK);
    for session in sessions["items"].as_array().unwrap().iter().filter(|session| session["current"] == false) {
        let path = format!("/platform/v1/sessions/{}", session["id"].as_str().unwrap());
        platform.send(reqwest::Method::DELETE, &path, &platform.token, None).await.expect_success();
    }
    let output = terminal.run(&["tenant", "list"]).await;
    assert_eq!(output.exit, Exit::Usage, "{}", output.stderr);
    assert!(output.stderr.contains("hint: ") && output.stderr.contains("freehold login"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_planned_migrated_and_verified() {
    let platform =
        fleet_migration::moved(&["cli-a", "cli-b", "cli-c"], fleet_migration::and(fleet_migration::THINGS)).await;
    let terminal = Terminal::signed_in(&platform).await;
    let plan = terminal.run(&["migrate", "--all", "--dry-run", "--canary", "50%"]).await;
    assert!(plan.stdout.contains("3 tenants") && plan.stdout.contains("2 of them first"), "{}", plan.stdout);
    let broken = platform.tenant_database("cli-b").await;
    execute(&broken, "CREATE TABLE things ()").await;
    let migrate = ["migrate", "--all", "--on-error", "continue", "--canary", "0"];
    let failed = terminal.run(&migrate).await;
    assert_eq!(failed.exit, Exit::Failed);
    assert!(failed.stdout.contains("2 migrated, 1 failed, 0 skipped"), "{}", failed.stdout);
    assert!(failed.stdout.contains("already exists (42P07)"), "{}", failed.stdout);
    assert!(failed.stderr.contains("hint: freehold operation retry"), "{}", failed.stderr);
    assert!(!failed.stderr.contains("undone"), "{}", failed.stderr);
    execute(&broken, "DROP TABLE things").await;
    let again = terminal.run(&["migrate", "cli-b", "--json"]).await;
    assert_eq!(again.exit, Exit::Done, "{}", again.stdout);
    let events: Vec<Value> = again.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, moves) = events.split_last().unwrap();
    assert_eq!((&report["event"], &report["operation"]["state"]), (&json!("report"), &json!("succeeded")));
    assert!(!moves.is_empty() && moves.iter().all(|event| event["event"] == "operation"));
    let nothing = terminal.run(&["migrate", "--all"]).await;
    assert_eq!(nothing.exit, Exit::Done);
    assert!(nothing.stdout.starts_with("Nothing to do"), "{}", nothing.stdout);
    let well = terminal.run(&["migrate", "--all", "--verify"]).await;
    assert_eq!(well.exit, Exit::Done, "{}", well.stdout);
    assert!(well.stdout.contains("3 as they have to be"), "{}", well.stdout);
    execute(&platform.tenant_database("cli-c").await, "DROP INDEX things_name").await;
    let drifted = terminal.run(&["migrate", "--all", "--verify"]).await;
    assert_eq!(drifted.exit, Exit::Failed);
    assert!(drifted.stdout.contains("index things_name is missing"), "{}", drifted.stdout);
    let status = terminal.run(&["migrate", "--status", "--json"]).await;
    assert_eq!((status.exit, &status.json()["tenants"][0]["tenant"]), (Exit::Failed, &json!("cli-c")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_backed_up_to_a_file_and_comes_back_from_it() {
    let platform = Platform::start().await;
    let terminal = Terminal::signed_in(&platform).await;
    let ours = platform.tenant("cli-backup").await;
    let (key, file) = (terminal.path("key"), terminal.path("ours.fhbackup"));
    let done = async |arguments: &[&str]| {
        let output = terminal.run(arguments).await;
        assert_eq!(output.exit, Exit::Done, "{arguments:?}: {}", output.stderr);
        output
    };
    done(&["backup", "key", "generate", &key]).await;
    assert_eq!(mode(&key), 0o600);
    let secret = std::fs::read_to_string(&key).unwrap();
    let made = done(&["tenant", "backup", "cli-backup", "--key-file", &key, "--output", &file, "--json"]).await;
    assert_eq!((mode(&file), made.json()["backup"]["state"].as_str().unwrap()), (0o600, "complete"));
    assert!(!made.stdout.contains(secret.trim()) && !made.stderr.contains(secret.trim()), "the key is shown");
    let checked = done(&["backup", "verify", &file, "--key-file", &key, "--json"]).await;
    assert_eq!((&checked.json()["slug"], &checked.json()["tenant_id"]), (&json!("cli-backup"), &json!(ours.id)));
    assert!(!checked.stdout.contains("data_keys"), "{}", checked.stdout);
    let listed = done(&["backup", "list", "--tenant", "cli-backup"]).await;
    assert!(listed.stdout.contains("complete") && listed.stdout.contains("key_file"), "{}", listed.stdout);

    // What is wrong is said, with the option that helps.
    let weak = terminal.path("weak");
    std::fs::write(&weak, "too short").unwrap();
    let refused = terminal.run(&["tenant", "backup", "cli-backup", "--passphrase-file", &weak]).await;
    assert!(refused.stderr.contains("at least 12 characters"), "{}", refused.stderr);
    let other = terminal.run(&["backup", "verify", &file, "--passphrase-file", &weak]).await;
    assert!(other.stderr.contains("--key-file"), "{}", other.stderr);
    let mut damaged = std::fs::read(&file).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let broken = terminal.path("broken.fhbackup");
    std::fs::write(&broken, damaged).unwrap();
    let refused = terminal.run(&["tenant", "restore", "--file", &broken, "--key-file", &key, "--json"]).await;
    assert_eq!((refused.exit, refused.json()["error"]["code"].as_str().unwrap()), (Exit::Failed, "backup_damaged"));
    let there = terminal.run(&["tenant", "restore", "--file", &file, "--key-file", &key, "--json"]).await;
    assert_eq!(there.json()["error"]["code"], "tenant_exists");
    let unasked = ["tenant", "restore", "--file", &file, "--key-file", &key, "--replace", "cli-backup"];
    assert_eq!(terminal.run(&unasked).await.exit, Exit::Usage, "replacing asks first");

    crate::backup::purge(&platform, "cli-backup").await;
    done(&["tenant", "restore", "--file", &file, "--key-file", &key]).await;
    platform.login("cli-backup", &ours.user_email).await;
    // The uploaded copies are gone; the platform's own backup stays until it is deleted.
    let listed = done(&["backup", "list", "--json"]).await.json();
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{listed}");
    let id = items[0]["id"].as_str().unwrap();
    done(&["tenant", "restore", "--backup", id, "--key-file", &key, "--replace", "cli-backup", "--yes"]).await;
    platform.login("cli-backup", &ours.user_email).await;
    done(&["backup", "delete", id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_rotated_by_name_for_all_and_by_schedule() {
    let settings = &[("FREEHOLD_ROTATION_GRACE_SECONDS", "0")];
    let platform = Platform::start_with(crate::harness::Options { settings, ..Default::default() }).await;
    let terminal = Terminal::signed_in(&platform).await;
    platform.tenant("turning").await;
    platform.tenant("turning-too").await;
    let one = terminal.run(&["rotate", "database", "turning"]).await;
    assert_eq!(one.exit, Exit::Done, "{}", one.stderr);
    let all = terminal.run(&["rotate", "data-key", "--all", "--json"]).await;
    assert_eq!(all.exit, Exit::Done, "{}", all.stderr);
    assert_eq!((&all.json()["group"]["succeeded"], &all.json()["skipped"]), (&json!(2), &json!([])));
    let held = terminal.run(&["rotate", "signing-key", "turning", "--detach", "--json"]).await;
    assert_eq!(held.json()["operations"].as_array().unwrap().len(), 1);
    let some = terminal.run(&["rotate", "database", "--all"]).await;
    assert_eq!(some.exit, Exit::Done, "{}", some.stderr);
    assert!(some.stdout.contains("1 rotated, 1 left out") && some.stdout.contains("operation_in_progress"));
    let scheduled = terminal.run(&["rotate", "database", "--all", "--schedule", "90d"]).await;
    assert!(scheduled.stdout.contains("every 90 days"), "{}", scheduled.stdout);
    let shown = terminal.run(&["tenant", "show", "turning"]).await;
    assert!(shown.stdout.contains("ROTATION") && shown.stdout.contains("every 90 days"), "{}", shown.stdout);
    let nothing = terminal.run(&["rotate", "master-key", "--json"]).await;
    assert_eq!((nothing.exit, &nothing.json()["error"]["code"]), (Exit::Failed, &json!("nothing_to_rotate")));
    for wrong in [
        &["rotate", "database"][..],
        &["rotate", "master-key", "turning"],
        &["rotate", "database", "--all", "--schedule", "3"],
    ] {
        assert_eq!(terminal.run(wrong).await.exit, Exit::Usage, "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_gets_another_admin_url_from_a_file() {
    let platform = Platform::start().await;
    let terminal = Terminal::signed_in(&platform).await;
    let file = terminal.path("admin-url");
    let url = server().await.url("postgres");
    std::fs::write(&file, format!("{}\n", url.replace("127.0.0.1", "localhost"))).unwrap();
    let unknown = terminal.run(&["cluster", "set", "unknown", "--admin-url-file", &file]).await;
    assert_eq!(unknown.exit, Exit::Failed);
    assert!(unknown.stderr.contains("hint: freehold cluster list"), "{}", unknown.stderr);
    let again = terminal.run(&["cluster", "add", "again", "--admin-url-file", &file]).await;
    assert_eq!(again.exit, Exit::Failed);
    assert!(again.stderr.contains("cluster local") && again.stderr.contains("hint:"), "{}", again.stderr);
    let set = terminal.run(&["cluster", "set", "local", "--admin-url-file", &file, "--json"]).await;
    assert_eq!(set.exit, Exit::Done, "{}", set.stderr);
    assert_eq!(set.json()["host"], "localhost");
}
