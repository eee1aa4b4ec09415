//! `freehold dev`, as `make run` starts it: a real model answers two demo clients, everything is there again after a
//! restart, and Ctrl-C leaves no process behind.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::{announce, connect, events};

/// The `freehold` program, which stands beside the server's.
fn freehold() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_freehold-server")).with_file_name("freehold");
    assert!(program.exists(), "{} is not built; run `cargo build --workspace`", program.display());
    program
}

/// A project directory of its own, with the clone's tools.
fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["scripts", ".dev"] {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::os::unix::fs::symlink(target, directory.path().join(name)).unwrap();
    }
    directory
}

/// Puts a browser into the project that writes down what it is to open, and returns where.
fn with_browser(project: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (directory, opened) = (project.join("bin"), project.join("opened"));
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join("xdg-open");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$1\" > {}\n", opened.display())).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    opened
}

struct Stack {
    child: Child,
    info: Value,
    output: PathBuf,
}

impl Stack {
    async fn start(project: &Path, options: &[&str]) -> Self {
        let output = project.join("output");
        let file = std::fs::File::create(&output).unwrap();
        // Programs of the project's own come first.
        let path = std::env::join_paths(
            std::iter::once(project.join("bin")).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        )
        .unwrap();
        let child = Command::new(freehold())
            .arg("dev")
            .args(options)
            .env("PATH", path)
            .current_dir(project)
            .env_remove("PLATFORM_DATABASE_URL")
            .env_remove("FREEHOLD_MODEL_URL")
            // Threads of the model that wait for each other sleep: other tests need the cores.
            .env("OMP_WAIT_POLICY", "passive")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stack = Self { child, info: Value::Null, output };
        let deadline = Instant::now() + Duration::from_secs(150);
        while !stack.printed().contains("paste this line") {
            let ended = stack.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", stack.printed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let file = project.join(".freehold/dev.json");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        stack.info = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        stack
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.info["server_url"].as_str().unwrap())
    }

    async fn token(&self, tenant: &Value) -> String {
        let user = &tenant["user"];
        let body = json!({ "tenant": tenant["slug"], "email": user["email"], "password": user["password"] });
        let answer = Client::new().post(self.url("/api/v1/auth/login")).json(&body).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    /// Ctrl-C; then nothing of the stack answers any more.
    async fn interrupt(mut self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it did not stop: {}", self.printed())).unwrap();
        assert!(Client::new().get(self.url("/api/health")).send().await.is_err(), "the server still answers");
        let database = self.info["platform_database_url"].as_str().unwrap();
        assert!(connect(database).await.is_err(), "Postgres still answers");
        let model = self.info["model_url"].as_str().unwrap();
        assert!(Client::new().get(format!("{model}/models")).send().await.is_err(), "the model server still answers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_two_clients_that_answer_and_keeps_them_over_a_restart() {
    let project = project();
    let stack = Stack::start(project.path(), &[]).await;
    let tenants = stack.info["tenants"].as_array().unwrap().clone();
    assert_eq!(tenants.len(), 2);
    let mut settings = Vec::new();
    for tenant in &tenants {
        let token = stack.token(tenant).await;
        let question = format!("canary-question-for-{}", tenant["slug"].as_str().unwrap());
        let body = json!({ "message": question, "stream": true });
        let request = Client::new().post(stack.url("/api/v1/chat")).bearer_auth(&token).json(&body);
        let answer = request.send().await.unwrap().text().await.unwrap();
        let events = events(&answer);
        let pieces = events.iter().filter(|(name, _)| name == "message").count();
        assert!(pieces > 3, "a real model's answer comes in pieces: {answer}");
        let (name, done) = events.iter().rev().nth(1).unwrap();
        assert_eq!((name.as_str(), events.last().unwrap().1.as_str()), ("done", "[DONE]"), "{answer}");
        let done: Value = serde_json::from_str(done).unwrap();
        assert!(done["usage"]["output_tokens"].as_u64().unwrap() > 0, "{done}");
        let admin = json!({ "user": tenant["admin"], "slug": tenant["slug"] });
        let config = Client::new().get(stack.url("/api/v1/config")).bearer_auth(stack.token(&admin).await);
        let configured = config.send().await.unwrap().json::<Value>().await.unwrap()["settings"].clone();
        // Nothing in it says whose it is, so it is the first assistant's.
        assert_eq!(
            (configured["assistants"].as_array().unwrap().len(), &done["assistant"]),
            (2, &configured["routing"]["default"])
        );
        settings.push(configured);
    }
    assert_ne!(settings[0]["system_prompt"], settings[1]["system_prompt"]);
    assert_ne!(settings[0]["branding"], settings[1]["branding"]);

    // Each conversation is in its client's own database and in no other of the server.
    let platform = stack.info["platform_database_url"].as_str().unwrap().to_owned();
    let registry = connect(&platform).await.unwrap();
    let names = registry.query("SELECT datname FROM pg_database WHERE datallowconn", &[]).await.unwrap();
    for tenant in &tenants {
        let slug = tenant["slug"].as_str().unwrap();
        let sql = "SELECT d.database_name FROM tenant_databases d JOIN chat_instances t ON t.id = d.tenant_id
                   WHERE t.slug = $1";
        let own: String = registry.query_one(sql, &[&slug]).await.unwrap().get(0);
        for row in &names {
            let name: String = row.get(0);
            let mut url = url::Url::parse(&platform).unwrap();
            url.set_path(&name);
            let client = connect(url.as_str()).await.unwrap();
            let there = client.query_one("SELECT to_regclass('chat_messages') IS NOT NULL", &[]).await.unwrap();
            let mut rows = 0_i64;
            if there.get(0) {
                let sql = "SELECT count(*) FROM chat_messages WHERE content LIKE '%canary-question-for-' || $1 || '%'
                           AND role = 'user'";
                rows = client.query_one(sql, &[&slug]).await.unwrap().get(0);
            }
            assert_eq!(rows, i64::from(name == own), "{slug} in {name}");
        }
    }
    drop(registry);
    let (first, again) = (stack.info.clone(), stack.interrupt().await);
    let () = again;

    let began = Instant::now();
    let opened = with_browser(project.path());
    let stack = Stack::start(project.path(), &["--open"]).await;
    announce(&format!("dev stack: the second start took {:.1} s", began.elapsed().as_secs_f64()));
    assert_eq!(stack.info["tenants"], first["tenants"]);
    let page = stack.url(&format!("/c/{}", tenants[0]["slug"].as_str().unwrap()));
    while !stack.printed().contains("Ctrl-C stops") {
        assert!(began.elapsed() < Duration::from_secs(150), "{}", stack.printed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(std::fs::read_to_string(opened).unwrap().trim(), page);
    let page = Client::new().get(page).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let token = stack.token(&tenants[0]).await;
    let sessions = Client::new().get(stack.url("/api/v1/sessions")).bearer_auth(token).send().await.unwrap();
    assert_eq!(sessions.json::<Value>().await.unwrap()["items"].as_array().unwrap().len(), 1);
    stack.interrupt().await;
    let reset = Command::new(freehold()).args(["dev", "--reset", "--yes"]).current_dir(project.path()).output().await;
    assert!(reset.unwrap().status.success());
}
