//! Limits over three replicas: a hot key against a rate, a month's quota with replicas that are killed, and what the
//! limiter adds to a request.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::connections::{Tenant, provision};
use crate::{Bench, RedisOption, connect, load, report, server_binary, start_model};

const MINUTE: Duration = Duration::from_secs(60);
/// How long nobody may have been answered before the quota is taken for used up.
const QUIET: Duration = Duration::from_secs(8);

/// What of the limits is measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// `rate`, `quota` or `latency`.
    drill: String,
    /// A Redis that the replicas share.
    #[command(flatten)]
    pub(crate) redis: RedisOption,
    /// How long the hot key is asked with.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Requests a second.
    #[arg(long, default_value_t = 2000)]
    per_second: u64,
    /// The limit of a minute.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The quota.
    #[arg(long, default_value_t = 1000)]
    quota: u64,
    /// How many ask for it.
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// How often a replica is killed meanwhile.
    #[arg(long, default_value_t = 4)]
    kills: usize,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let store = if options.redis.url.is_some() { "Redis" } else { "Postgres" };
    match options.drill.as_str() {
        "rate" => rate(bench, options, store).await,
        "quota" => quota(bench, options).await,
        "latency" => latency(bench, store).await,
        other => anyhow::bail!("no drill `{other}`: rate, quota, latency"),
    }
}

/// Servers beside the first one.
pub(crate) struct Replicas(Vec<Replica>);

struct Replica {
    url: String,
    port: u16,
    process: Child,
}

fn start(bench: &Bench, port: u16) -> Result<Child> {
    let mut command = Command::new(server_binary());
    command.arg("serve").envs(bench.settings.environment()).env("FREEHOLD_LISTEN", format!("127.0.0.1:{port}"));
    Ok(command.env("FREEHOLD_WORKER_CONCURRENCY", "0").stdin(Stdio::null()).kill_on_drop(true).spawn()?)
}

async fn answers(client: &Client, url: &str) -> Result<()> {
    for _ in 0..400 {
        if client.get(format!("{url}/api/health")).send().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("{url} does not answer")
}

impl Replicas {
    pub(crate) async fn start(bench: &Bench, count: usize) -> Result<Self> {
        let mut replicas = Vec::new();
        for _ in 0..count {
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let url = format!("http://127.0.0.1:{port}");
            replicas.push(Replica { process: start(bench, port)?, url, port });
        }
        for replica in &replicas {
            answers(&bench.client, &replica.url).await?;
        }
        // So that each knows of the others.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(Self(replicas))
    }

    /// Kills one as the kernel would, and starts another in its place.
    async fn kill(&mut self, bench: &Bench, index: usize) -> Result<()> {
        let replica = self.0.get_mut(index).context("a replica")?;
        replica.process.kill().await?;
        replica.process = start(bench, replica.port)?;
        answers(&bench.client, &replica.url).await
    }

    /// Where each answers.
    pub(crate) fn bases(&self) -> Vec<String> {
        self.0.iter().map(|replica| replica.url.clone()).collect()
    }

    fn urls(&self) -> Vec<String> {
        self.0.iter().map(|replica| format!("{}/v1/chat/completions", replica.url)).collect()
    }
}

async fn tenant(bench: &Bench, limits: Value, model: &str) -> Result<(Tenant, String)> {
    let base_url = start_model(0)?;
    let tenant = provision(bench, 1).await?.pop().context("a tenant")?;
    bench.use_model(&tenant.token, &base_url, model).await?;
    let key = bench.api_key(&tenant.token).await?;
    bench.set_limits(&tenant.slug, limits).await?;
    Ok((tenant, key))
}

fn body(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] })
}

/// The most moments within any sliding minute.
fn most(mut moments: Vec<Duration>) -> usize {
    moments.sort_unstable();
    let (mut first, mut most) = (0, 0);
    for (last, at) in moments.iter().enumerate() {
        while moments.get(first).is_some_and(|begin| *begin + MINUTE <= *at) {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// When the tenant's calls began, which is right after they were admitted, by the clock that the replicas share.
async fn begun(bench: &Bench, tenant: &Tenant) -> Result<Vec<Duration>> {
    let mut url = url::Url::parse(&bench.postgres)?;
    url.set_path(&tenant.database);
    let sql = "SELECT (extract(epoch FROM started_at) * 1000000)::int8 FROM model_calls";
    let rows = connect(url.as_str()).await?.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(Duration::from_micros(row.get::<_, i64>(0).try_into()?))).collect()
}

async fn rate(bench: &Bench, options: &Options, store: &str) -> Result<()> {
    let limits = json!({ "requests_per_minute": options.limit, "requests_per_month": "unlimited" });
    let (tenant, key) = tenant(bench, limits, "instant").await?;
    let replicas = Replicas::start(bench, 3).await?;
    let urls = replicas.urls();
    let client = Client::builder().tcp_nodelay(true).build()?;
    let (admitted, refused) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let (other, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let open = Arc::new(tokio::sync::Semaphore::new(1000));
    let began = Instant::now();
    let (mut sent, per_tick) = (0_usize, options.per_second.div_ceil(200));
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while began.elapsed() < Duration::from_secs(options.seconds) {
        ticks.tick().await;
        for _ in 0..per_tick {
            let Ok(permit) = Arc::clone(&open).try_acquire_owned() else {
                late.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let url = urls.get(sent % urls.len()).context("a replica")?;
            sent += 1;
            let request = client.post(url).bearer_auth(&key).json(&body("instant"));
            let (admitted, refused, other) = (Arc::clone(&admitted), Arc::clone(&refused), Arc::clone(&other));
            tokio::spawn(async move {
                let asked = Instant::now();
                let status = match request.send().await {
                    Ok(response) => {
                        let status = response.status();
                        drop(response.bytes().await);
                        Some(status)
                    }
                    Err(_) => None,
                };
                let took = (asked, asked.elapsed());
                match status {
                    Some(StatusCode::OK) => admitted.lock().unwrap_or_else(PoisonError::into_inner).push(took),
                    Some(StatusCode::TOO_MANY_REQUESTS) => {
                        refused.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                    }
                    _ => _ = other.fetch_add(1, Ordering::Relaxed),
                }
                drop(permit);
            });
        }
    }
    let _ = open.acquire_many(1000).await;
    let wall = began.elapsed();
    let admitted = std::mem::take(&mut *admitted.lock().unwrap_or_else(PoisonError::into_inner));
    let refused = std::mem::take(&mut *refused.lock().unwrap_or_else(PoisonError::into_inner));
    let asked_at = admitted.iter().map(|(asked, _)| asked.duration_since(began)).collect();
    let by_asking = most(asked_at);
    let by_beginning = most(begun(bench, &tenant).await?);
    let used = admitted.len() as f64 / wall.as_secs_f64() * 60.0;
    println!(
        "{store}: {sent} requests in {:.0} s over 3 replicas, limit {} a minute",
        wall.as_secs_f64(),
        options.limit
    );
    println!(
        "    admitted {}, refused {}, other answers {}",
        admitted.len(),
        refused.len(),
        other.load(Ordering::Relaxed)
    );
    println!("    not sent because 1000 were open: {}", late.load(Ordering::Relaxed));
    println!(
        "    most in any sliding minute: {by_asking} by when they were asked, {by_beginning} by when their calls began"
    );
    println!("    used a minute, on average: {used:.1}");
    report("    admitted", admitted.into_iter().map(|(_, took)| took).collect(), wall);
    report("    refused", refused.into_iter().map(|(_, took)| took).collect(), wall);
    let limit = usize::try_from(options.limit)?;
    // Each was admitted between the two, a little after the one and a little before the other: what passes the limit is
    // above it in both.
    ensure!(by_asking <= limit || by_beginning <= limit, "a sliding minute is above the limit");
    ensure!(used >= options.limit as f64 * 0.99, "less than 99 % is used");
    Ok(())
}

async fn quota(bench: &Bench, options: &Options) -> Result<()> {
    let limits = json!({ "requests_per_minute": "unlimited", "requests_per_month": options.quota });
    let model = "slow-400";
    let (tenant, key) = tenant(bench, limits, model).await?;
    let mut replicas = Replicas::start(bench, 3).await?;
    let urls: Arc<[String]> = replicas.urls().into();
    let (answered, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (last, over) = (Arc::new(Mutex::new(Instant::now())), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..options.clients)
        .map(|number| {
            let (client, urls, key) = (Client::new(), Arc::clone(&urls), key.clone());
            let (answered, broken) = (Arc::clone(&answered), Arc::clone(&broken));
            let (last, over) = (Arc::clone(&last), Arc::clone(&over));
            tokio::spawn(async move {
                let mut turn = number;
                while !over.load(Ordering::Relaxed) {
                    turn += 1;
                    let Some(url) = urls.get(turn % urls.len()) else { return };
                    let whole = async {
                        let response = client.post(url).bearer_auth(&key).json(&body(model)).send().await?;
                        let status = response.status();
                        response.bytes().await.map(|_| status)
                    };
                    match whole.await {
                        Ok(StatusCode::OK) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                            *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                        }
                        Ok(_) => tokio::time::sleep(Duration::from_millis(300)).await,
                        Err(_) => {
                            broken.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            })
        })
        .collect();
    for kill in 0..options.kills {
        tokio::time::sleep(Duration::from_millis(1300)).await;
        replicas.kill(bench, kill % 3).await?;
    }
    while last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    over.store(true, Ordering::Relaxed);
    futures::future::try_join_all(workers).await?;
    let answered = answered.load(Ordering::Relaxed);
    let shown = bench.client.get(format!("{}/api/v1/quota", bench.url)).bearer_auth(&tenant.token).send().await?;
    let shown: Value = shown.error_for_status()?.json().await?;
    println!(
        "a quota of {}, asked for by {} clients over 3 replicas, {} kills",
        options.quota, options.clients, options.kills
    );
    println!("    answered whole: {answered}; broken off: {}", broken.load(Ordering::Relaxed));
    println!("    on record: {}", shown["requests_this_month"]);
    let quota = usize::try_from(options.quota)?;
    ensure!(answered <= quota, "more than the quota was answered");
    ensure!(answered >= quota - quota / 100, "less than 99 % was answered");
    Ok(())
}

/// The same requests with and without limits that are never reached.
async fn latency(bench: &Bench, store: &str) -> Result<()> {
    let unlimited = json!({ "requests_per_minute": "unlimited", "requests_per_month": "unlimited" });
    let high = json!({ "requests_per_minute": 4_000_000_000_u32, "requests_per_month": 4_000_000_000_u32 });
    let (tenant, key) = tenant(bench, unlimited.clone(), "instant").await?;
    let replicas = Replicas::start(bench, 3).await?;
    let urls = replicas.urls();
    for clients in [1, 8] {
        for (what, limits) in [("without limits", &unlimited), ("with a rate and a quota", &high)] {
            bench.set_limits(&tenant.slug, limits.clone()).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut all = Vec::new();
            let mut wall = Duration::ZERO;
            for url in &urls {
                let time = Duration::from_secs(5);
                let (times, took) = load(&bench.client, url, &key, &body("instant"), clients, time).await?;
                all.extend(times);
                wall += took;
            }
            report(&format!("{store}, {clients} clients, {what}"), all, wall);
        }
    }
    Ok(())
}
