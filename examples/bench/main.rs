//! Measures a release build of the server as a whole process: `provisioning` and `chat`. Run it by
//! `scripts/bench-provisioning` and `scripts/bench-chat`, which start a Postgres for it.
//!
//! Every figure stands beside a baseline of the same run, since machines differ and the same machine varies.

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "it prints figures, and indexing into JSON gives null where there is nothing"
)]

#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "the tests' own")]
#[path = "../../tests/it/proxy.rs"]
mod proxy;

#[allow(dead_code, reason = "the tests' recording and inspection are not needed here")]
#[path = "../../tests/it/fake_model.rs"]
mod fake_model;

mod answers;
mod backup;
mod chat;
mod connections;
mod drills;
mod faults;
mod fleet;
mod gateways;
mod limits;
mod provisioning;
mod rotation;
mod routing;
mod suspension;
mod upstream;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use futures::StreamExt;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Managed tenants through the API, next to a bare `CREATE DATABASE ... TEMPLATE`.
    Provisioning {
        /// How many tenants, one after another, and then eight at a time.
        #[arg(long, default_value_t = 200)]
        tenants: usize,
    },
    /// A tenant's backup and restore, next to bare `pg_dump` and `pg_restore`.
    Backup {
        /// How many mebibytes of messages the tenant has.
        #[arg(long, default_value_t = 100)]
        mebibytes: u32,
    },
    /// Chat turns with an instant model, next to the model alone.
    Chat {
        /// How long each measurement takes, in seconds.
        #[arg(long, default_value_t = 8)]
        seconds: u64,
    },
    /// Many tenants over few connections, next to PgBouncer and to a pool a tenant.
    Connections(connections::Options),
    /// Some tenants' databases refuse, are silent or have another password: what the others notice.
    Faults(faults::Options),
    /// The platform's database is away for a while: chats that fail.
    Outage(faults::OutageOptions),
    /// Migrations of a whole fleet, next to a plain loop of `psql -f`.
    Fleet {
        /// How many tenants.
        #[arg(long, default_value_t = 2000)]
        tenants: usize,
    },
    /// The OpenAI-compatible endpoint next to the model alone and to other gateways.
    Gateways(gateways::Options),
    /// Many open streams: memory, connections held by them.
    Streams {
        /// How many.
        #[arg(long, default_value_t = 5000)]
        streams: usize,
    },
    /// Clients that leave in the middle of an answer: time until the model is left alone.
    Disconnects {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
    },
    /// The upstream's own books next to the ledger, after kills and crashes.
    Ledger {
        /// How many calls.
        #[arg(long, default_value_t = 20_000)]
        calls: usize,
        /// How often the server is killed.
        #[arg(long, default_value_t = 20)]
        kills: usize,
        /// How often Postgres crashes.
        #[arg(long, default_value_t = 3)]
        crashes: usize,
    },
    /// Chat turns with a model that takes half a second, by many clients of some tenants.
    Pipeline {
        /// How many tenants.
        #[arg(long, default_value_t = 10)]
        tenants: usize,
        /// How many clients.
        #[arg(long, default_value_t = 100)]
        clients: usize,
        /// Seconds it takes.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Calls at a steady rate for long: memory, open files and connections at the beginning and at the end.
    Soak {
        /// How long, in minutes.
        #[arg(long, default_value_t = 20)]
        minutes: u64,
        /// Calls a second.
        #[arg(long, default_value_t = 1000)]
        rate: u64,
    },
    /// Not a benchmark: the server that `fleet` starts.
    #[command(hide = true)]
    FleetServer,
    /// The password of every tenant's database replaced under load.
    Credentials {
        /// How many tenants.
        #[arg(long, default_value_t = 500)]
        tenants: usize,
        /// How many clients ask questions meanwhile.
        #[arg(long, default_value_t = 16)]
        clients: usize,
    },
    /// Everything under an old master key wrapped again, with the server killed midway.
    MasterKey {
        /// How many wrapped keys.
        #[arg(long, default_value_t = 100_000)]
        values: usize,
    },
    /// The same question at once, and answers that are given again.
    Answers(answers::Options),
    /// Limits over three replicas.
    Limits(limits::Options),
    /// Questions over three assistants, by rule and by a model.
    Routing(routing::Options),
    /// A tenant is suspended under load: time until the last answer of two servers.
    Suspension {
        /// How often.
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// How many clients each server has.
        #[arg(long, default_value_t = 8)]
        clients: usize,
    },
}

/// A Redis, of the benchmarks that can do with and without one.
#[derive(Debug, Clone, clap::Args)]
struct RedisOption {
    /// The address of a Redis that the servers share.
    #[arg(long = "redis", value_name = "URL")]
    url: Option<String>,
}

/// The directory of the server's backups, which goes with the benchmark.
fn backup_dir() -> PathBuf {
    std::env::temp_dir().join(format!("freehold-bench-backups-{}", std::process::id()))
}

const PASSWORD: &str = "a password for the benchmark";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if matches!(arguments.what, What::FleetServer) {
        return fleet::serve().await;
    }
    if let What::Answers(options) = &arguments.what
        && options.needs_no_server()
    {
        return answers::bound(options);
    }
    let mut bench = Bench::start_with(&arguments.what).await?;
    let result = match arguments.what {
        What::Connections(options) => connections::run(&bench, &options).await,
        What::Faults(options) => faults::run(&bench, &options).await,
        What::Outage(options) => faults::outage(&bench, &options).await,
        What::Gateways(options) => gateways::run(&bench, &options).await,
        What::Streams { streams } => drills::streams(&bench, streams).await,
        What::Disconnects { clients } => drills::disconnects(&bench, clients).await,
        What::Ledger { calls, kills, crashes } => drills::ledger(&mut bench, calls, kills, crashes).await,
        What::Pipeline { tenants, clients, seconds } => drills::pipeline(&bench, tenants, clients, seconds).await,
        What::Soak { minutes, rate } => drills::soak(&bench, minutes, rate).await,
        What::Provisioning { tenants } => provisioning::run(&bench, tenants).await,
        What::Backup { mebibytes } => backup::run(&bench, mebibytes).await,
        What::Fleet { tenants } => fleet::run(bench, tenants).await,
        What::FleetServer => Ok(()),
        What::Chat { seconds } => chat::run(&bench, Duration::from_secs(seconds)).await,
        What::Credentials { tenants, clients } => rotation::credentials(&bench, tenants, clients).await,
        What::Answers(options) => answers::run(&bench, &options).await,
        What::Limits(options) => limits::run(&bench, &options).await,
        What::Routing(options) => routing::run(&bench, &options).await,
        What::Suspension { rounds, clients } => suspension::run(&bench, rounds, clients).await,
        What::MasterKey { values } => rotation::master_key(&mut bench, values).await,
    };
    drop(std::fs::remove_dir_all(backup_dir()));
    result
}

impl What {
    /// Settings of the server beyond those of all benchmarks.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let connections = match self {
            Self::Connections(options) => options.connections,
            Self::Gateways(options) => options.tenants.max(40),
            _ => 40,
        };
        let mut environment = vec![
            ("FREEHOLD_TENANT_CONNECTIONS", connections.to_string()),
            ("FREEHOLD_ACCESS_TOKEN_MINUTES", "1440".to_owned()),
        ];
        let redis = match self {
            Self::Answers(options) => options.redis.url.as_ref(),
            Self::Limits(options) => options.redis.url.as_ref(),
            _ => None,
        };
        environment.extend(redis.map(|url| ("REDIS_URL", url.clone())));
        environment
    }
}

/// A server on a fresh platform database, with a signed-in super admin.
struct Bench {
    client: Client,
    url: String,
    postgres: String,
    token: String,
    settings: Settings,
    server: Child,
    /// The line between the server and the platform's database, where a benchmark wants to cut it.
    line: proxy::Proxy,
}

/// What a server is started with.
struct Settings {
    /// The platform's database.
    platform: String,
    /// The same, as the server is told: perhaps over a line that can be cut.
    reached_by: String,
    port: u16,
    master_keys: String,
    more: Vec<(&'static str, String)>,
}

impl Settings {
    /// As the server's environment.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("PLATFORM_DATABASE_URL", self.reached_by.clone()),
            ("FREEHOLD_MASTER_KEYS", self.master_keys.clone()),
            ("FREEHOLD_LISTEN", format!("127.0.0.1:{}", self.port)),
            ("FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS", "true".to_owned()),
            ("FREEHOLD_WORKER_CONCURRENCY", "8".to_owned()),
            ("FREEHOLD_BACKUP_DIR", backup_dir().display().to_string()),
            ("FREEHOLD_TENANT_POOL_SIZE", "16".to_owned()),
            ("FREEHOLD_BACKUP_DIR", backup_dir().display().to_string()),
            ("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned())),
        ];
        environment.extend(self.more.iter().cloned());
        environment
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(server_binary());
        command.args(arguments).envs(self.environment()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

/// A master key that nobody knows.
fn random_key() -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, rand::random::<[u8; 32]>())
}

impl Bench {
    async fn start_with(what: &What) -> Result<Self> {
        let postgres = std::env::var("DATABASE_URL").context("DATABASE_URL names an administrator's database")?;
        let admin = connect(&postgres).await?;
        admin.batch_execute("DROP DATABASE IF EXISTS freehold_bench WITH (FORCE)").await?;
        admin.batch_execute("CREATE DATABASE freehold_bench").await?;
        let mut platform = url::Url::parse(&postgres)?;
        platform.set_path("freehold_bench");
        let platform = platform.to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        std::fs::create_dir_all(backup_dir())?;
        let (line, over_line) = proxy::Proxy::to(&platform).await;
        let reached_by = if matches!(what, What::Outage(_)) { over_line } else { platform.clone() };
        let master_keys = format!("1:{}", random_key());
        let settings = Settings { platform: platform.clone(), reached_by, port, master_keys, more: what.environment() };
        let command = |arguments: &[&str]| settings.command(arguments);
        ensure!(command(&["migrate"]).status().await.context("build with --release first")?.success(), "migrate");
        let file = std::env::temp_dir().join(format!("freehold-bench-{}", std::process::id()));
        std::fs::write(&file, PASSWORD)?;
        let path = file.to_string_lossy().into_owned();
        let created = command(&["create-admin", "--email", "owner@bench.example", "--password-file", &path]).status();
        ensure!(created.await?.success(), "create-admin");
        std::fs::remove_file(&file)?;
        let server = command(&["serve"]).spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        let client = Client::builder().tcp_nodelay(true).build()?;
        let mut bench = Self { client, url, postgres, token: String::new(), settings, server, line };
        bench.answers().await?;
        let body = json!({ "email": "owner@bench.example", "password": PASSWORD });
        bench.token = text(&bench.post("/platform/v1/sessions", "", body).await?, "token")?;
        let body = json!({ "name": "local", "admin_url": bench.postgres });
        bench.post("/platform/v1/clusters", &bench.token, body).await?;
        Ok(bench)
    }

    /// Waits until the server answers.
    async fn answers(&self) -> Result<()> {
        let mut tries = 0;
        while self.client.get(format!("{}/api/health", self.url)).send().await.is_err() {
            tries += 1;
            ensure!(tries < 200, "the server did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kills the server as the kernel would, without a word, and starts one with these master keys.
    async fn restart(&mut self, master_keys: String) -> Result<()> {
        self.server.kill().await?;
        self.settings.master_keys = master_keys;
        self.server = self.settings.command(&["serve"]).spawn()?;
        self.answers().await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> Result<Value> {
        self.send(self.client.post(format!("{}{path}", self.url)), token, body).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, token: &str, body: Value) -> Result<Value> {
        let response = request.bearer_auth(token).json(&body).send().await?;
        let status = response.status();
        let answer = response.json().await?;
        ensure!(status.is_success(), "{status}: {answer}");
        Ok(answer)
    }

    /// Provisions a tenant; returns its invite and how long it took from the request until the event `succeeded`.
    async fn provision(&self, slug: &str) -> Result<(Value, Duration)> {
        let started = Instant::now();
        let body = json!({
            "slug": slug, "name": slug, "plan": "pro", "template": "general", "admin_email": "admin@bench.example",
            "database": { "mode": "managed" }
        });
        let answer = self.post("/platform/v1/tenants", &self.token, body).await?;
        let id = text(&answer["operation"], "id")?;
        self.succeeded(&id).await.with_context(|| format!("provision {slug}"))?;
        let elapsed = started.elapsed();
        // Benchmarks ask more than any plan allows; that of limits sets its own.
        let unlimited = json!({ "requests_per_minute": "unlimited", "requests_per_month": "unlimited" });
        self.set_limits(slug, unlimited).await?;
        Ok((answer["admin_invite"].clone(), elapsed))
    }

    /// Sets a tenant's own limits.
    async fn set_limits(&self, slug: &str, limits: Value) -> Result<()> {
        let request = self.client.patch(format!("{}/platform/v1/tenants/{slug}", self.url));
        self.send(request, &self.token, json!({ "limits": limits })).await.map(drop)
    }

    /// Waits until an operation has succeeded.
    async fn succeeded(&self, id: &str) -> Result<()> {
        let url = format!("{}/platform/v1/operations/{id}/events", self.url);
        let mut events = self.client.get(url).bearer_auth(&self.token).send().await?.bytes_stream();
        let mut seen = String::new();
        while let Some(bytes) = events.next().await {
            seen.push_str(&String::from_utf8_lossy(&bytes?));
            if seen.contains("\"state\":\"succeeded\"") {
                return Ok(());
            }
        }
        anyhow::bail!("the operation did not succeed: {seen}")
    }

    /// Gives the tenant of this admin's token a model at this base URL.
    async fn use_model(&self, token: &str, base_url: &str, model: &str) -> Result<()> {
        let body = json!({
            "provider": "openai_compatible", "base_url": base_url, "api_key": "bench", "models": [model],
            "default_model": model
        });
        self.send(self.client.put(format!("{}/api/v1/ai-keys/bench", self.url)), token, body).await.map(drop)
    }

    /// A key for programs of the tenant of this admin's token.
    async fn api_key(&self, token: &str) -> Result<String> {
        let body = json!({ "name": "bench", "scopes": ["chat"] });
        text(&self.post("/api/v1/api-keys", token, body).await?, "token")
    }

    fn memory_mib(&self) -> Option<f64> {
        resident_mib(self.server.id()?)
    }
}

/// The resident memory of a process.
fn resident_mib(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// The server that stands beside this program's own directory: of the same build, debug or release.
fn server_binary() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().and_then(Path::parent).unwrap_or(Path::new("target/release")).join("freehold-server")
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn text(value: &Value, field: &str) -> Result<String> {
    value[field].as_str().map(str::to_owned).with_context(|| format!("no `{field}`"))
}

/// Starts the fake model within this process, on threads of its own, on this port or a free one. Returns its base URL.
fn start_model(port: u16) -> Result<String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    let model = format!("http://{}/v1", listener.local_addr()?);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map(|runtime| {
            runtime.block_on(async { fake_model::serve(tokio::net::TcpListener::from_std(listener)?).await })
        })
    });
    Ok(model)
}

/// Prints a line of figures.
fn report(what: &str, mut times: Vec<Duration>, wall: Duration) {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    println!(
        "{what:<44} n {:>6}   median {:>8.2} ms   p99 {:>8.2} ms   {:>8.1} a second",
        times.len(),
        ms(at(0.5)),
        ms(at(0.99)),
        times.len() as f64 / wall.as_secs_f64()
    );
}

/// Sends the same request from many clients, each as soon as its last was answered whole.
async fn load(
    client: &Client,
    url: &str,
    token: &str,
    body: &Value,
    clients: usize,
    time: Duration,
) -> Result<(Vec<Duration>, Duration)> {
    let request = client.post(url).bearer_auth(token).json(body).build()?;
    repeat(client, &[request], clients, time).await
}

/// The same, of requests that are given whole and sent in turn.
async fn repeat(
    client: &Client,
    requests: &[reqwest::Request],
    clients: usize,
    time: Duration,
) -> Result<(Vec<Duration>, Duration)> {
    let failed = Arc::new(AtomicUsize::new(0));
    let why = Arc::new(OnceLock::new());
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    // Their bodies are in memory, so they can be cloned.
    let requests: Arc<[reqwest::Request]> = requests.iter().filter_map(reqwest::Request::try_clone).collect();
    let workers = (0..clients).map(|_| {
        let (client, requests) = (client.clone(), Arc::clone(&requests));
        let (next, failed, why) = (Arc::clone(&next), Arc::clone(&failed), Arc::clone(&why));
        tokio::spawn(async move {
            let mut times = Vec::new();
            while started.elapsed() < time {
                let began = Instant::now();
                let turn = next.fetch_add(1, Ordering::Relaxed) % requests.len();
                let Some(request) = requests.get(turn).and_then(reqwest::Request::try_clone) else { break };
                let whole = async { client.execute(request).await?.error_for_status()?.bytes().await };
                match whole.await {
                    Ok(_) => times.push(began.elapsed()),
                    Err(error) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        why.get_or_init(|| anyhow::Error::from(error));
                    }
                }
            }
            times
        })
    });
    let times = futures::future::try_join_all(workers).await?.concat();
    let failed = failed.load(Ordering::Relaxed);
    if let Some(why) = why.get() {
        bail!("{failed} of {} requests failed, one of them: {why:#}", failed + times.len());
    }
    Ok((times, started.elapsed()))
}
