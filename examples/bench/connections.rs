//! Many tenants, most of them quiet, over few connections.
//!
//! Three ways to the same databases, with the same tenants asked in the same proportions (Zipf):
//!
//! 1. the server, whose budget is `--connections`: `GET /api/v1/config` over HTTP, which proves a token and reads twice;
//! 2. PgBouncer in session mode with the same cap. It has no cap over all databases; what comes nearest is
//!    `max_user_connections` with one user for all of them, which is how it is run here. A client that keeps its session
//!    keeps the server's connection, so each request connects, asks, and leaves;
//! 3. a pool a tenant without a budget, the usual way: `deadpool` with up to four connections each.
//!
//! The latter two make the two statements of the first directly, without HTTP and tokens.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use rand::RngExt as _;
use serde_json::json;
use tokio::process::Command;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::{Bench, PASSWORD, connect, report, text};

/// What can be chosen.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many tenants.
    #[arg(long, default_value_t = 2000)]
    pub(crate) tenants: usize,
    /// How many connections to Postgres.
    #[arg(long, default_value_t = 40)]
    pub(crate) connections: usize,
    /// How many clients ask at once.
    #[arg(long, default_value_t = 32)]
    pub(crate) clients: usize,
    /// Seconds each way is measured.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// The exponent of the distribution over the tenants.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) zipf: f64,
    /// Leave PgBouncer out.
    #[arg(long)]
    pub(crate) without_pgbouncer: bool,
}

/// A tenant and its admin's token.
pub(crate) struct Tenant {
    pub(crate) slug: String,
    pub(crate) token: String,
    pub(crate) database: String,
}

/// Provisions tenants, eight at a time, and signs their admins in.
pub(crate) async fn provision(bench: &Bench, count: usize) -> Result<Vec<Tenant>> {
    let started = Instant::now();
    let tenants: Vec<Tenant> = futures::stream::iter(0..count)
        .map(|number| async move {
            let slug = format!("tenant-{number}");
            let (invite, _) = bench.provision(&slug).await?;
            let body = json!({ "tenant": slug, "token": invite["token"], "password": PASSWORD });
            let token = text(&bench.post("/api/v1/auth/accept-invite", "", body).await?, "access_token")?;
            Ok::<_, anyhow::Error>(Tenant { slug, token, database: String::new() })
        })
        .buffered(8)
        .try_collect()
        .await?;
    let sql = "SELECT t.slug, d.database_name FROM chat_instances t JOIN tenant_databases d ON d.tenant_id = t.id";
    let rows = connect(&bench.settings.platform).await?.query(sql, &[]).await?;
    let mut databases: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    println!("{count} tenants provisioned and signed in, in {:.0} s", started.elapsed().as_secs_f64());
    tenants
        .into_iter()
        .map(|tenant| {
            let database = databases.remove(&tenant.slug).context("a tenant without a database")?;
            Ok(Tenant { database, ..tenant })
        })
        .collect()
}

/// Chooses tenants so that the n-th is asked 1/n^s as often as the first.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self(weights.collect())
    }

    fn choose(&self) -> usize {
        let point = rand::rng().random::<f64>() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|weight| *weight < point).min(self.0.len().saturating_sub(1))
    }
}

/// Counts connections to tenants' databases, as Postgres sees them, until it is dropped.
struct Sampler {
    most: Arc<AtomicI64>,
    samples: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Sampler {
    async fn start(bench: &Bench, tenants: &[Tenant]) -> Result<Self> {
        let admin = connect(&bench.postgres).await?;
        let names: Vec<String> = tenants.iter().map(|tenant| tenant.database.clone()).collect();
        let sampler = Self { most: Arc::default(), samples: Arc::default(), stop: Arc::default() };
        let (most, samples, stop) =
            (Arc::clone(&sampler.most), Arc::clone(&sampler.samples), Arc::clone(&sampler.stop));
        tokio::spawn(async move {
            let sql = "SELECT count(*) FROM pg_stat_activity a JOIN unnest($1::text[]) n ON a.datname = n
                       WHERE a.backend_type = 'client backend'";
            while !stop.load(Ordering::Relaxed) {
                if let Ok(row) = admin.query_one(sql, &[&names]).await {
                    most.fetch_max(row.get(0), Ordering::Relaxed);
                    samples.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Ok(sampler)
    }

    fn tell(&self) {
        println!(
            "    connections to tenants' databases: at most {} in {} samples",
            self.most.load(Ordering::Relaxed),
            self.samples.load(Ordering::Relaxed)
        );
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How often Postgres has said that there are too many clients, by its own log.
async fn too_many_clients(bench: &Bench) -> Result<i64> {
    let admin = connect(&bench.postgres).await?;
    let sql = "SELECT count(*) FROM regexp_matches(
                   pg_read_file(current_setting('data_directory') || '/../log'),
                   'too many clients|remaining connection slots', 'g')";
    Ok(admin.query_one(sql, &[]).await?.get(0))
}

/// Asks with many clients, each as soon as its last was answered; prints times, and failures by their text.
async fn measure<F, R>(what: &str, options: &Options, ask: F) -> Result<()>
where
    F: Fn(usize) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send,
{
    let zipf = Arc::new(Zipf::new(options.tenants, options.zipf));
    let ask = Arc::new(ask);
    let (started, time) = (Instant::now(), Duration::from_secs(options.seconds));
    let workers = (0..options.clients).map(|_| {
        let (zipf, ask) = (Arc::clone(&zipf), Arc::clone(&ask));
        tokio::spawn(async move {
            let (mut times, mut failures) = (Vec::new(), HashMap::<String, usize>::new());
            while started.elapsed() < time {
                let began = Instant::now();
                match ask(zipf.choose()).await {
                    Ok(()) => times.push(began.elapsed()),
                    Err(failure) => *failures.entry(failure).or_default() += 1,
                }
            }
            (times, failures)
        })
    });
    let (mut times, mut failures) = (Vec::new(), HashMap::<String, usize>::new());
    for (more, failed) in futures::future::try_join_all(workers).await? {
        times.extend(more);
        for (failure, count) in failed {
            *failures.entry(failure).or_default() += count;
        }
    }
    report(what, times, started.elapsed());
    println!("    failures: {} {failures:?}", failures.values().sum::<usize>());
    Ok(())
}

/// Runs it.
pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let tenants = Arc::new(provision(bench, options.tenants).await?);
    let before = too_many_clients(bench).await?;

    let sampler = Sampler::start(bench, &tenants).await?;
    let (client, url, all) = (bench.client.clone(), format!("{}/api/v1/config", bench.url), Arc::clone(&tenants));
    let ask = move |number: usize| {
        let request = client.get(&url).bearer_auth(&all[number].token);
        async move {
            let response = request.send().await.map_err(|error| error.to_string())?;
            let status = response.status();
            let bytes = response.bytes().await.map_err(|error| error.to_string())?;
            if status.is_success() {
                return Ok(());
            }
            let code = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
            Err(format!("{status} {}", code.map(|body| body["code"].to_string()).unwrap_or_default()))
        }
    };
    measure(&format!("freehold, budget {}", options.connections), options, ask).await?;
    sampler.tell();
    drop(sampler);
    let after = too_many_clients(bench).await?;
    println!("    `too many clients` in Postgres's log: {}", after - before);
    if let Some(memory) = bench.memory_mib() {
        println!("    server's resident memory: {memory:.0} MiB");
    }
    // Its idle connections end, so that the others find the same Postgres.
    tokio::time::sleep(Duration::from_secs(70)).await;

    if !options.without_pgbouncer {
        let pgbouncer = PgBouncer::start(bench, options.connections).await?;
        let before = too_many_clients(bench).await?;
        let sampler = Sampler::start(bench, &tenants).await?;
        let (port, all) = (pgbouncer.port, Arc::clone(&tenants));
        let ask = move |number: usize| {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user("postgres").dbname(&all[number].database);
            async move {
                let (client, connection) = config.connect(NoTls).await.map_err(|error| refusal(&error))?;
                let connection = tokio::spawn(connection);
                let answer = statements(&client).await;
                drop(client);
                drop(connection.await);
                answer
            }
        };
        measure(&format!("PgBouncer, session mode, cap {}", options.connections), options, ask).await?;
        sampler.tell();
        println!("    `too many clients` in Postgres's log: {}", too_many_clients(bench).await? - before);
        drop(pgbouncer);
    }

    let before = too_many_clients(bench).await?;
    let sampler = Sampler::start(bench, &tenants).await?;
    let base: tokio_postgres::Config = bench.postgres.parse()?;
    let pools: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let mut config = base.clone();
            config.dbname(&tenant.database);
            let manager = deadpool_postgres::Manager::new(config, NoTls);
            deadpool_postgres::Pool::builder(manager).max_size(4).build()
        })
        .collect::<Result<_, _>>()?;
    let pools = Arc::new(pools);
    let ask = move |number: usize| {
        let pool = pools[number].clone();
        async move {
            let client = pool.get().await.map_err(|error| match &error {
                deadpool_postgres::PoolError::Backend(error) => refusal(error),
                other => other.to_string(),
            })?;
            statements(&client).await
        }
    };
    measure("a pool a tenant, no budget", options, ask).await?;
    sampler.tell();
    println!("    `too many clients` in Postgres's log: {}", too_many_clients(bench).await? - before);
    Ok(())
}

/// What a request of the first way asks the tenant's database.
async fn statements(client: &tokio_postgres::Client) -> Result<(), String> {
    let user = "SELECT id, email, name, role FROM client_users WHERE disabled_at IS NULL LIMIT 1";
    client.query_opt(user, &[]).await.map_err(|error| refusal(&error))?;
    let settings = "SELECT version, settings, created_at FROM live_configurations ORDER BY version DESC LIMIT 1";
    client.query_opt(settings, &[]).await.map_err(|error| refusal(&error))?;
    Ok(())
}

fn refusal(error: &tokio_postgres::Error) -> String {
    match error.code() {
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => "too many clients".to_owned(),
        Some(code) => code.code().to_owned(),
        None => "no answer".to_owned(),
    }
}

/// A PgBouncer of this run's own.
struct PgBouncer {
    port: u16,
    _process: tokio::process::Child,
    _home: tempfile::TempDir,
}

impl PgBouncer {
    async fn start(bench: &Bench, connections: usize) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("freehold-pgbouncer-").tempdir_in("/tmp")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let postgres = url::Url::parse(&bench.postgres)?;
        let path = home.path().display();
        let file = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
             auth_file = {path}/users.txt\npool_mode = session\nmax_client_conn = 10000\n\
             default_pool_size = {connections}\nmax_user_connections = {connections}\nmax_db_connections = 0\n\
             server_reset_query = DISCARD ALL\nlogfile = {path}/log\nlog_connections = 0\nlog_disconnections = 0\n",
            postgres.port().context("a port")?
        );
        std::fs::write(home.path().join("pgbouncer.ini"), file)?;
        let password = postgres.password().context("a password")?;
        std::fs::write(home.path().join("users.txt"), format!("\"postgres\" \"{password}\"\n"))?;
        // It refuses to run as root; the account that Postgres has in this run will do.
        let root = String::from_utf8(std::process::Command::new("id").arg("-u").output()?.stdout)?.trim() == "0";
        let ini = home.path().join("pgbouncer.ini");
        let mut command = Command::new("pgbouncer");
        if root {
            let given = std::process::Command::new("chown").args(["-R", "postgres"]).arg(home.path()).status()?;
            ensure!(given.success(), "there is no account `postgres` to run PgBouncer as");
            command.args(["-u", "postgres"]);
        }
        let process = command
            .arg(ini)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start PgBouncer: apt-get install pgbouncer, or --without-pgbouncer")?;
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(Self { port, _process: process, _home: home });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(home.path().join("log")).unwrap_or_default();
        anyhow::bail!("PgBouncer does not start: {log}")
    }
}
