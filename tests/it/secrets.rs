//! Planted secrets are looked for where they must not be: in the server's log at its most talkative, in answers, in a
//! dump of both databases. And a server with a bad secret does not start.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::{ADMIN_EMAIL, PASSWORD, announce, connect, events, fake_model, new_tenant, server};

const SERVER: &str = env!("CARGO_BIN_EXE_freehold-server");

/// A server as a process of its own, whose log is kept.
struct Process {
    child: Child,
    url: String,
    log: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Process {
    async fn start(database_url: &str, master_keys: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = directory.path().join("log");
        let password = directory.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(SERVER);
            let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
            command
                .args(arguments)
                .current_dir(directory.path())
                .env("PLATFORM_DATABASE_URL", database_url)
                .env("FREEHOLD_MASTER_KEYS", master_keys)
                .env("FREEHOLD_LISTEN", format!("127.0.0.1:{port}"))
                .env("FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS", "true")
                .env("FREEHOLD_LOG_FORMAT", "json")
                .env("RUST_LOG", "trace")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(file)
                .kill_on_drop(true);
            command
        };
        let path = password.to_str().unwrap();
        let admin = command(&["create-admin", "--email", ADMIN_EMAIL, "--password-file", path]).status().await;
        assert!(admin.unwrap().success());
        let child = command(&["serve"]).spawn().unwrap();
        let process = Self { child, url: format!("http://127.0.0.1:{port}"), log, _directory: directory };
        for _ in 0..600 {
            if reqwest::get(format!("{}/api/health", process.url))
                .await
                .is_ok_and(|health| health.status().is_success())
            {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server did not start: {}", std::fs::read_to_string(&process.log).unwrap());
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: Value) -> (StatusCode, Value, String) {
        let request = reqwest::Client::new().request(method, format!("{}{path}", self.url)).json(&body);
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null), text)
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> Value {
        let (status, answer, text) = self.send(Method::POST, path, token, body).await;
        assert!(status.is_success(), "POST {path}: {status} {text}");
        answer
    }
}

/// Every value of every column of every table of a database, as text.
async fn dump(url: &str) -> String {
    let client = connect(url).await.unwrap();
    let tables = "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
                  WHERE schemaname NOT IN ('pg_catalog', 'information_schema')";
    let mut text = String::new();
    for row in client.query(tables, &[]).await.unwrap() {
        let sql = format!("SELECT row_to_json(t)::text FROM {} AS t", row.get::<_, String>(0));
        for row in client.query(&sql, &[]).await.unwrap() {
            text.push_str(&row.get::<_, String>(0));
            text.push('\n');
        }
    }
    text
}

/// The forms in which a secret may lie about: as it is, in base64, and in hex as Postgres prints bytes.
fn forms(secret: &str) -> Vec<String> {
    vec![secret.to_owned(), STANDARD.encode(secret), secret.bytes().map(|byte| format!("{byte:02x}")).collect()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_secrets_are_in_no_log_and_no_dump() {
    let postgres = server().await;
    let database = postgres.create_platform_database().await;
    let master = rand::random::<[u8; 32]>();
    let master_keys = format!("1:{}", STANDARD.encode(master));
    let process = Process::start(&postgres.url(&database), &master_keys).await;
    let session =
        process.post("/platform/v1/sessions", "", json!({ "email": ADMIN_EMAIL, "password": PASSWORD })).await;
    let owner = session["token"].as_str().unwrap().to_owned();
    let admin_url = postgres.url("postgres");
    process.post("/platform/v1/clusters", &owner, json!({ "name": "local", "admin_url": admin_url })).await;
    let created = process.post("/platform/v1/tenants", &owner, new_tenant("planted")).await;
    let path = format!("/platform/v1/operations/{}/events", created["operation"]["id"].as_str().unwrap());
    let (_, _, progress) = process.send(Method::GET, &path, &owner, Value::Null).await;
    assert!(progress.contains("succeeded"), "{progress}");
    let invite = created["admin_invite"]["token"].as_str().unwrap().to_owned();
    let client_password = "canary-password-of-the-client";
    let accept = json!({ "tenant": "planted", "token": invite, "password": client_password });
    let tokens = process.post("/api/v1/auth/accept-invite", "", accept).await;
    let token = |name: &str| tokens[name].as_str().unwrap().to_owned();
    let api_key = "canary-key-sk-0123456789abcdef";
    let key = json!({
        "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": api_key,
        "models": ["echo", "error-500", "error-401"], "default_model": "echo"
    });
    let (status, _, shown) = process.send(Method::PUT, "/api/v1/ai-keys/main", &token("access_token"), key).await;
    assert!(status.is_success() && !shown.contains(api_key), "{shown}");
    let question = "canary-question-of-a-user";
    for model in ["echo", "error-500", "error-401"] {
        let body = json!({ "message": question, "model": model, "stream": true });
        let (_, _, answer) = process.send(Method::POST, "/api/v1/chat", &token("access_token"), body).await;
        assert!(!events(&answer).is_empty() && !answer.contains(api_key), "{answer}");
    }
    let programs_key = process.post("/api/v1/api-keys", &token("access_token"), json!({ "name": "a program's" })).await;
    let programs_key = programs_key["token"].as_str().unwrap().to_owned();
    for (model, stream) in [("echo", true), ("echo", false), ("error-500", true), ("error-401", false)] {
        let messages = json!([{ "role": "user", "content": question }]);
        let body = json!({ "model": model, "stream": stream, "messages": messages });
        let (_, _, answer) = process.send(Method::POST, "/v1/chat/completions", &programs_key, body).await;
        assert!(!answer.is_empty() && !answer.contains(api_key) && !answer.contains(&programs_key), "{answer}");
    }
    let guessed = format!("fh_{}", "canary7".repeat(6) + "A");
    let (status, _, answer) = process.send(Method::GET, "/v1/models", &guessed, Value::Null).await;
    assert!(status == StatusCode::UNAUTHORIZED && !answer.contains(&guessed), "{answer}");
    // Sign-ins that fail, bodies that are refused: errors are where secrets like to turn up.
    let wrong = "canary-wrong-password";
    for body in [
        json!({ "tenant": "planted", "email": "admin@planted.example", "password": wrong }),
        json!({ "tenant": "planted", "email": "admin@planted.example", "password": [wrong] }),
        json!({ "tenant": "planted", "email": { "x": wrong }, "password": wrong }),
    ] {
        let (status, _, answer) = process.send(Method::POST, "/api/v1/auth/login", "", body).await;
        assert!(status.is_client_error() && !answer.contains(wrong), "{answer}");
    }
    let body = json!({ "name": "bad", "admin_url": "postgres://a:canary-admin-url@127.0.0.1:1/x?sslmode=nonsense" });
    let (status, _, answer) = process.send(Method::POST, "/platform/v1/clusters", &owner, body).await;
    assert!(status.is_client_error() && !answer.contains("canary-admin-url"), "{answer}");
    let (access, refresh) = (token("access_token"), token("refresh_token"));
    process.post("/api/v1/auth/refresh", "", json!({ "refresh_token": refresh })).await;

    let registry = connect(&postgres.url(&database)).await.unwrap();
    let row = registry.query_one("SELECT database_name FROM tenant_databases", &[]).await.unwrap();
    let tenant_dump = dump(&postgres.url(row.get(0))).await;
    let platform_dump = dump(&postgres.url(&database)).await;
    let log = std::fs::read_to_string(&process.log).unwrap();
    assert!(log.contains("settle operation") && log.contains("TRACE"), "the log is at its most talkative: {log}");
    let superuser_password = url::Url::parse(&admin_url).unwrap().password().unwrap().to_owned();
    let secrets = [
        ("the AI key", api_key),
        ("the program's API key", &programs_key),
        ("a guessed API key", &guessed),
        ("the owner's password", PASSWORD),
        ("the client's password", client_password),
        ("a wrong password", wrong),
        ("a refused URL's password", "canary-admin-url"),
        ("the cluster's password", &superuser_password),
        ("the owner's session token", &owner),
        ("the invite", &invite),
        ("the access token", &access),
        ("the refresh token", &refresh),
        ("the master key", master_keys.get(2..).unwrap()),
    ];
    for (name, secret) in secrets {
        for form in forms(secret) {
            assert!(!log.contains(&form), "{name} is in the log: {}", place(&log, &form));
            assert!(!platform_dump.contains(&form), "{name} is in the platform's database");
            assert!(!tenant_dump.contains(&form), "{name} is in the tenant's database");
        }
    }
    assert!(!log.contains(question), "what a user asked is in the log: {}", place(&log, question));
    assert!(!log.contains("admin@planted.example"), "an address is in the log: {}", place(&log, "admin@planted"));
    let hex: String = master.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(![&log, &platform_dump, &tenant_dump].iter().any(|text| text.contains(&hex)), "the master key in hex");
    announce(&format!("secrets: {} planted, in 3 forms, looked for in 3 places", secrets.len()));
    drop(process.child);
}

fn place<'a>(log: &'a str, secret: &str) -> &'a str {
    log.lines().find(|line| line.contains(secret)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_weak_or_well_known_master_key_refuses_to_start() {
    let run = async |keys: Option<&str>| {
        let mut command = Command::new(SERVER);
        command.arg("serve").current_dir(std::env::temp_dir()).env_remove("FREEHOLD_MASTER_KEYS");
        command.env("PLATFORM_DATABASE_URL", "postgres://a:b@127.0.0.1:1/c");
        if let Some(keys) = keys {
            command.env("FREEHOLD_MASTER_KEYS", keys);
        }
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let zeros = STANDARD.encode([0_u8; 32]);
    let counting = STANDARD.encode((0..32).collect::<Vec<u8>>());
    let text = STANDARD.encode("a-password-of-thirty-two-letters");
    let cases = [
        None,
        Some("nonsense".to_owned()),
        Some(format!("1:{zeros}")),
        Some(format!("1:{counting}")),
        Some(format!("1:{text}")),
        Some(format!("0:{}", STANDARD.encode(rand::random::<[u8; 32]>()))),
        Some(format!("1:{}", STANDARD.encode(rand::random::<[u8; 16]>()))),
    ];
    for keys in cases {
        let (code, message) = run(keys.as_deref()).await;
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains("FREEHOLD_MASTER_KEYS") && message.contains("openssl rand -base64 32"), "{message}");
        let secret = keys.as_deref().and_then(|keys| keys.split_once(':')).map_or("?", |(_, secret)| secret);
        assert!(!message.contains(secret), "{message}");
    }
}
