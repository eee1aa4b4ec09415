//! A Postgres for the whole run, and platforms on it: a database, a server on a free port, a signed-in super admin.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use freehold::app::{self, AppState};
use freehold::clock::{SharedClock, SystemClock};
use freehold::config::Config;
use freehold::operations::Probe;
use freehold::platform_db;
use freehold::provisioning::TenantMigrations;
use freehold_cli::dev::postgres::{EmbeddedPostgres, EmbeddedPostgresOptions};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::fake_model::FakeModel;

/// The master key of every test platform: random, made for this file, used nowhere else.
pub const MASTER_KEYS: &str = "1:5mF0n0v3i8V2yqK4u1rZ0bQx7Wc9TjEeLhAoSdPgN2M=";
/// The same, and a newer one, made likewise.
pub const BOTH_MASTER_KEYS: &str =
    "1:5mF0n0v3i8V2yqK4u1rZ0bQx7Wc9TjEeLhAoSdPgN2M=,2:0d8Xq1mC5bJtY7oGz3sVhR9wKpLeUaNf4yBxIiQkT6c=";
pub const ADMIN_EMAIL: &str = "owner@freehold.example";
pub const PASSWORD: &str = "correct horse battery staple";
/// The name of the migrated database that platforms are cloned from.
const TEMPLATE: &str = "platform_template";

/// The Postgres of this run. It is shut down when the process ends, however that happens.
pub struct Server {
    postgres: EmbeddedPostgres,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();
static CLIENTS_SERVER: OnceCell<Server> = OnceCell::const_new();
static FAKE_MODEL: OnceCell<FakeModel> = OnceCell::const_new();

/// The Postgres of this run, with a migrated template of the platform's database.
pub async fn server() -> &'static Server {
    SERVER
        .get_or_init(|| async {
            let server = start_server().await;
            server.postgres.create_database(TEMPLATE).await.unwrap();
            let url = server.url(TEMPLATE).parse().unwrap();
            let pool = platform_db::pool(&url, 2);
            platform_db::migrate(&pool).await.unwrap();
            // As on a platform that was audited a moment ago. Each would find all other tests' tenants to be strangers.
            let audited = "INSERT INTO scheduled_tasks (name, next_run_at, last_run_at)
                           VALUES ('audit_fleet', now() + interval '1 hour', now())";
            sqlx::query(audited).execute(&pool).await.unwrap();
            pool.close().await;
            execute(&server.url("postgres"), "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC").await;
            server
        })
        .await
}

/// A Postgres that is not the owner's, for databases that clients bring.
pub async fn clients_server() -> &'static Server {
    CLIENTS_SERVER.get_or_init(start_server).await
}

async fn start_server() -> Server {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    // On a runtime of its own: the first test's runtime ends with that test.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.unwrap().block_on(async move {
            let options = EmbeddedPostgresOptions::for_tests(env!("CARGO_MANIFEST_DIR"));
            let postgres = EmbeddedPostgres::start(options).await.expect("start Postgres; run `make setup`");
            sender.send(Server { postgres }).ok().unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.await.unwrap()
}

/// A model server that every test shares; its behaviour is chosen by the model's name.
pub async fn fake_model() -> &'static FakeModel {
    FAKE_MODEL.get_or_init(|| async { FakeModel::start().unwrap() }).await
}

impl Server {
    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// An empty database and the role that owns it, as a client would bring them. Returns the role's URL.
    pub async fn create_clients_database(&self, name: &str) -> String {
        let sql = format!("CREATE ROLE {name} LOGIN PASSWORD 'a-long-random-{name}'");
        execute(&self.url("postgres"), &sql).await;
        execute(&self.url("postgres"), &format!("CREATE DATABASE {name} OWNER {name}")).await;
        self.url_as(name, name)
    }

    /// The URL of a role made by [`Self::create_clients_database`] for a database.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}:a-long-random-{role}@127.0.0.1:{}/{database}", self.postgres.port())
    }

    pub fn port(&self) -> u16 {
        self.postgres.port()
    }

    /// A platform database of its own, migrated. Returns its name.
    pub async fn create_platform_database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("platform_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let url = self.url("postgres");
        // Two clones of one template at once can meet; the second tries again.
        let sql = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}");
        let mut tries = 0;
        while let Err(error) = try_execute(&url, &sql).await {
            tries += 1;
            assert!(tries < 50, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        execute(&url, &format!("REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")).await;
        name
    }
}

/// A connection as somebody, for looking behind the server's back.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn try_execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    connect(url).await?.batch_execute(sql).await
}

pub async fn execute(url: &str, sql: &str) {
    try_execute(url, sql).await.unwrap();
}

/// A directory for the backups of the platform on this database; another process on the same one has the same.
pub fn backup_dir(database_url: &str) -> PathBuf {
    let database = database_url.rsplit('/').next().unwrap().split('?').next().unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backups").join(database);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Where `pg_dump` and `pg_restore` of the embedded Postgres are.
fn client_programs() -> PathBuf {
    freehold_cli::dev::client_programs(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("run `make setup`")
}

/// The configuration of a platform on a database.
pub fn config(database_url: &str, settings: &[(&str, &str)]) -> Config {
    let environment = |name: &str| match settings.iter().find(|(key, _)| *key == name) {
        Some((_, value)) => Some((*value).to_owned()),
        None => match name {
            "PLATFORM_DATABASE_URL" => Some(database_url.to_owned()),
            "FREEHOLD_MASTER_KEYS" => Some(MASTER_KEYS.to_owned()),
            "FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS" => Some("true".to_owned()),
            "FREEHOLD_PLATFORM_POOL_SIZE" => Some("8".to_owned()),
            "FREEHOLD_SHUTDOWN_SECONDS" => Some("5".to_owned()),
            "FREEHOLD_BACKUP_DIR" => Some(backup_dir(database_url).display().to_string()),
            "FREEHOLD_POSTGRES_CLIENT_DIR" => Some(client_programs().display().to_string()),
            _ => None,
        },
    };
    Config::load(Some(std::path::Path::new("/dev/null")), &environment).unwrap()
}

/// A server under test.
pub struct Platform {
    pub state: AppState,
    pub url: String,
    pub database: String,
    pub client: reqwest::Client,
    /// The super admin's token.
    pub token: String,
}

/// How a platform is started.
#[derive(Default)]
pub struct Options<'a> {
    pub settings: &'a [(&'a str, &'a str)],
    pub clock: Option<SharedClock>,
    pub probe: Option<Probe>,
    /// Other tenant migrations than the program's own.
    pub migrations: Option<Arc<TenantMigrations>>,
    /// A platform database that exists; a new one otherwise.
    pub database: Option<String>,
}

impl Platform {
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options<'_>) -> Self {
        let server = server().await;
        let existing = options.database.is_some();
        let database = match options.database {
            Some(database) => database,
            None => server.create_platform_database().await,
        };
        let config = config(&server.url(&database), options.settings);
        let clock = options.clock.unwrap_or_else(SystemClock::shared);
        let migrations = options.migrations.unwrap_or_default();
        let state = AppState::build_with(config, clock, options.probe, migrations).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn({
            let state = state.clone();
            // Its Postgres may be gone before it is, when the run ends.
            async move {
                app::serve(state, listener)
                    .await
                    .unwrap_or_else(|error| announce(&format!("a server ended: {error:#}")));
            }
        });
        let password = SecretString::from(PASSWORD);
        state.super_admins.create(ADMIN_EMAIL, &password).await.unwrap();
        let client = reqwest::Client::new();
        let mut platform = Self { state, url, database, client, token: String::new() };
        let session = platform.state.super_admins.sign_in(ADMIN_EMAIL, &password, None).await.unwrap();
        platform.token = session.token.expose().to_owned();
        if !existing {
            let body = json!({ "name": "local", "admin_url": server.url("postgres") });
            platform.post("/platform/v1/clusters", &platform.token, body).await.expect(StatusCode::CREATED);
        }
        platform
    }

    pub async fn send(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        Answer::read(&format!("{method} {path}"), request.send().await.unwrap()).await
    }

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.send(Method::GET, path, token, None).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.send(Method::POST, path, token, Some(body)).await
    }

    /// Asks for a tenant; returns the answer as it comes.
    pub async fn request_tenant(&self, slug: &str) -> Answer {
        self.post("/platform/v1/tenants", &self.token, new_tenant(slug)).await
    }

    /// Waits until an operation is settled; returns it.
    pub async fn settled(&self, operation: &Value) -> Value {
        let path = format!("/platform/v1/operations/{}", operation["id"].as_str().unwrap());
        for _ in 0..600 {
            let now = self.get(&path, &self.token).await.expect(StatusCode::OK);
            if ["succeeded", "failed", "needs_operator"].contains(&now["state"].as_str().unwrap()) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} was not settled in 30 s");
    }

    /// A provisioned tenant with an admin, a user and the fake model, everybody signed in.
    pub async fn tenant(&self, slug: &str) -> Tenant {
        let answer = self.request_tenant(slug).await.expect(StatusCode::ACCEPTED);
        let operation = self.settled(&answer["operation"]).await;
        assert_eq!(operation["state"], "succeeded", "{operation}");
        // Tests ask more than any plan allows; those of limits set their own.
        self.set_limits(slug, json!({ "requests_per_minute": "unlimited", "requests_per_month": "unlimited" })).await;
        let accept = json!({ "tenant": slug, "token": answer["admin_invite"]["token"], "password": PASSWORD });
        let tokens = self.post("/api/v1/auth/accept-invite", "", accept).await.expect_success();
        let admin = Tokens::from(&tokens);
        let model = fake_model().await;
        let key = format!("key-of-{slug}-{}", Uuid::new_v4().simple());
        let body = json!({
            "provider": "openai_compatible", "base_url": model.base_url(), "api_key": key,
            "models": ["echo", "instant", "slow-500", "cut", "error-400", "error-500", "midway-error", "no-usage", "hang"],
            "default_model": "echo"
        });
        self.send(Method::PUT, "/api/v1/ai-keys/main", &admin.access, Some(body)).await.expect_success();
        let email = format!("user@{slug}.example");
        let body = json!({ "email": email, "name": "User", "role": "user", "password": PASSWORD });
        let created = self.post("/api/v1/users", &admin.access, body).await.expect(StatusCode::CREATED);
        let user = self.login(slug, &email).await;
        Tenant {
            id: answer["tenant"]["id"].as_str().unwrap().parse().unwrap(),
            slug: slug.to_owned(),
            user_email: email,
            user_id: created["id"].as_str().unwrap().to_owned(),
            admin,
            user,
            key,
        }
    }

    /// Sets a tenant's own limits.
    pub async fn set_limits(&self, slug: &str, limits: Value) {
        let path = format!("/platform/v1/tenants/{slug}");
        self.send(Method::PATCH, &path, &self.token, Some(json!({ "limits": limits }))).await.expect(StatusCode::OK);
    }

    /// Lets the tenant's own key of the fake model offer these models; the first is the default one.
    pub async fn offer(&self, tenant: &Tenant, models: &[&str]) {
        let body = json!({
            "provider": "openai_compatible", "base_url": fake_model().await.base_url(), "api_key": tenant.key,
            "models": models, "default_model": models[0]
        });
        self.send(Method::PUT, "/api/v1/ai-keys/main", &tenant.admin.access, Some(body)).await.expect_success();
    }

    /// Changes a tenant's settings as its admin; returns the answer as it comes.
    pub async fn configure(&self, tenant: &Tenant, change: Value) -> Answer {
        self.send(Method::PATCH, "/api/v1/config", &tenant.admin.access, Some(change)).await
    }

    pub async fn login(&self, slug: &str, email: &str) -> Tokens {
        let body = json!({ "tenant": slug, "email": email, "password": PASSWORD });
        Tokens::from(&self.post("/api/v1/auth/login", "", body).await.expect(StatusCode::OK))
    }

    /// The URL of a tenant's database as the administrator.
    pub async fn tenant_database(&self, slug: &str) -> String {
        let tenant = self.get(&format!("/platform/v1/tenants/{slug}"), &self.token).await.expect(StatusCode::OK);
        server().await.url(tenant["database"]["name"].as_str().unwrap())
    }

    /// A connection to this platform's own database.
    pub async fn platform_client(&self) -> tokio_postgres::Client {
        connect(&server().await.url(&self.database)).await.unwrap()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.state.stop.cancel();
    }
}

pub fn new_tenant(slug: &str) -> Value {
    json!({
        "slug": slug, "name": format!("Company {slug}"), "plan": "pro", "template": "general",
        "admin_email": format!("admin@{slug}.example"), "database": { "mode": "managed" }
    })
}

/// A signed-in user's tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
}

impl From<&Value> for Tokens {
    fn from(body: &Value) -> Self {
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        Self { access: text("access_token"), refresh: text("refresh_token") }
    }
}

/// A provisioned tenant.
pub struct Tenant {
    pub id: Uuid,
    pub slug: String,
    pub user_email: String,
    pub user_id: String,
    pub admin: Tokens,
    pub user: Tokens,
    /// The AI key, which only the fake model may ever see.
    pub key: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    what: String,
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn read(what: &str, response: reqwest::Response) -> Self {
        let status = response.status();
        let headers = response.headers().clone();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { what: what.to_owned(), status, headers, text, body }
    }

    /// The body, if the status is the expected one.
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, self.text);
        self.body
    }

    #[track_caller]
    pub fn expect_success(self) -> Value {
        assert!(self.status.is_success(), "{}: {} {}", self.what, self.status, self.text);
        self.body
    }

    /// The problem's code, if the status is the expected one.
    #[track_caller]
    pub fn expect_problem(self, status: StatusCode) -> String {
        let body = self.expect(status);
        body["code"].as_str().unwrap_or_else(|| panic!("no problem: {body}")).to_owned()
    }
}

/// The events of a stream of server-sent events: each event's name and data.
pub fn events(text: &str) -> Vec<(String, String)> {
    let mut events = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(data) = field("data:") {
            events.push((field("event:").unwrap_or("message").to_owned(), data.to_owned()));
        }
    }
    events
}

/// Prints a line whether or not the test's output is captured: for counts that a reader of the run wants to see.
pub fn announce(line: &str) {
    use std::io::Write;
    // Not a macro of the `print` family: those are what the test runner captures.
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A clock that a test moves by hand.
pub fn manual_clock() -> Arc<freehold::clock::ManualClock> {
    use freehold::clock::Clock;
    Arc::new(freehold::clock::ManualClock::new(SystemClock.now()))
}
