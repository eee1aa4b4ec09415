//! What breaks, and what the others notice: tenants' databases that fail, and a platform's database that is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use freehold::ids::TenantId;
use freehold::secrets::{MasterKeyring, Sealed};
use freehold::tenant_db::database_url_location;
use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::connections::{Tenant, provision};
use crate::proxy::{Line, Proxy};
use crate::{Bench, connect, report, start_model};

/// What can be chosen.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many tenants; every tenth is broken.
    #[arg(long, default_value_t = 200)]
    tenants: usize,
    /// How many clients ask at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seconds each part takes.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// What can be chosen.
#[derive(clap::Args)]
pub(crate) struct OutageOptions {
    /// How many tenants.
    #[arg(long, default_value_t = 50)]
    tenants: usize,
    /// How many clients chat at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seconds the platform's database is away: half of them it refuses, half of them it is silent.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Times of the answers, by the tenant and whether it was a good one.
type Answers = Vec<(usize, bool, Instant, Duration)>;

/// Asks tenants at random, with many clients, for so long.
async fn ask(bench: &Bench, tenants: &Arc<Vec<Tenant>>, clients: usize, time: Duration, chat: bool) -> Result<Answers> {
    ask_some(bench, tenants, clients, time, chat, |_| true).await
}

/// The same, of those tenants only whose number fits.
async fn ask_some(
    bench: &Bench,
    tenants: &Arc<Vec<Tenant>>,
    clients: usize,
    time: Duration,
    chat: bool,
    fits: fn(usize) -> bool,
) -> Result<Answers> {
    let started = Instant::now();
    let workers = (0..clients).map(|worker| {
        let (client, base, tenants) = (bench.client.clone(), bench.url.clone(), Arc::clone(tenants));
        tokio::spawn(async move {
            let mut answers = Vec::new();
            while started.elapsed() < time {
                let number = rand::rng().random_range(0..tenants.len());
                if !fits(number) {
                    continue;
                }
                let request = if chat {
                    // Another one's words would be the same question.
                    client.post(format!("{base}/api/v1/chat")).json(&json!({ "message": format!("hello {worker}") }))
                } else {
                    client.get(format!("{base}/api/v1/config"))
                };
                let began = Instant::now();
                let whole = async {
                    request.bearer_auth(&tenants[number].token).send().await?.error_for_status()?.bytes().await
                };
                let good = whole.await.is_ok();
                answers.push((number, good, began, began.elapsed()));
            }
            answers
        })
    });
    Ok(futures::future::try_join_all(workers).await?.concat())
}

fn is_broken(number: usize) -> bool {
    number.is_multiple_of(10)
}

fn p99(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// Breaks every tenth tenant: a third refuses, a third is silent, a third has another password. As far as the registry
/// knows they are on the same cluster, so they draw on the budget that the others live on.
async fn break_some(bench: &Bench, tenants: &[Tenant]) -> Result<Proxy> {
    let platform = connect(&bench.settings.platform).await?;
    let keys = MasterKeyring::parse(&SecretString::from(bench.settings.master_keys.as_str()))?;
    let refusing = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut kinds = HashMap::<&str, usize>::new();
    let (silent, over_line) = Proxy::to(&bench.postgres).await;
    silent.set(Line::Silent);
    let silent_port = url::Url::parse(&over_line)?.port();
    for (count, tenant) in
        tenants.iter().enumerate().filter(|(number, _)| is_broken(*number)).map(|(_, t)| t).enumerate()
    {
        let sql = "SELECT t.id, d.url_sealed, k.version, k.wrapped_key FROM chat_instances t
                   JOIN tenant_databases d ON d.tenant_id = t.id JOIN wrapped_keys k ON k.tenant_id = t.id
                   WHERE t.slug = $1";
        let row = platform.query_one(sql, &[&tenant.slug]).await?;
        let id = TenantId::from_uuid(row.get::<_, Uuid>(0));
        let key =
            keys.unwrap(id, row.get::<_, i32>(2).cast_unsigned(), &Sealed::from_bytes(row.get::<_, Vec<u8>>(3))?)?;
        let location = database_url_location(id);
        let address = key.open_str(&location, &Sealed::from_bytes(row.get::<_, Vec<u8>>(1))?)?;
        let mut address = url::Url::parse(address.expose_secret())?;
        let kind = match count % 3 {
            0 => {
                address.set_port(Some(refusing)).ok().context("a port")?;
                "refuses"
            }
            1 => {
                address.set_port(silent_port).ok().context("a port")?;
                "is silent"
            }
            _ => {
                address.set_password(Some("not-the-password")).ok().context("a password")?;
                "has another password"
            }
        };
        *kinds.entry(kind).or_default() += 1;
        let sealed = key.seal_str(&location, &SecretString::from(address.as_str())).into_bytes();
        let sql = "UPDATE tenant_databases SET url_sealed = $2 WHERE tenant_id = $1";
        platform.execute(sql, &[&id.as_uuid(), &sealed]).await?;
    }
    println!("broken: {kinds:?}");
    Ok(silent)
}

/// Runs it.
pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let tenants = Arc::new(provision(bench, options.tenants).await?);
    let time = Duration::from_secs(options.seconds);
    let warm = Duration::from_secs(5);
    ask(bench, &tenants, options.clients, warm, false).await?;
    let healthy = |answers: &Answers| -> Vec<Duration> {
        answers.iter().filter(|(number, ..)| !is_broken(*number)).map(|(_, _, _, took)| *took).collect()
    };
    let failed = |answers: &Answers| answers.iter().filter(|(number, good, ..)| !is_broken(*number) && !good).count();
    let before = ask(bench, &tenants, options.clients, time, false).await?;
    report("healthy tenants, nothing broken", healthy(&before), time);
    let silent = break_some(bench, &tenants).await?;
    let began = Instant::now();
    let during = ask(bench, &tenants, options.clients, time, false).await?;
    report("healthy tenants, every tenth broken", healthy(&during), time);
    println!("    healthy tenants' requests that failed: {}", failed(&during));
    let ratio = p99(healthy(&during)) / p99(healthy(&before));
    println!("    ratio of the p99: {ratio:.2}");
    // Half the time is for the breakers to open; a probe a period goes on knocking, and takes as long as it takes.
    let late = |(number, _, at, _): &&(usize, bool, Instant, Duration)| is_broken(*number) && *at > began + time / 2;
    let mut broken: Vec<Duration> = during.iter().filter(late).map(|(_, _, _, took)| *took).collect();
    broken.sort_unstable();
    let within = broken.iter().filter(|took| **took <= Duration::from_millis(10)).count();
    println!("    broken tenants' answers in the second half: {} of {} within 10 ms", within, broken.len());
    report("broken tenants, second half", broken, time / 2);
    // With the processors at their limit an answer waits for its turn; this is what the breaker itself takes.
    let alone = Duration::from_secs(5);
    let answers = ask_some(bench, &tenants, 1, alone, false, is_broken).await?;
    let times: Vec<Duration> = answers.iter().map(|(_, _, _, took)| *took).collect();
    let within = times.iter().filter(|took| **took <= Duration::from_millis(10)).count();
    println!("    broken tenants alone, one client: {within} of {} within 10 ms", times.len());
    report("broken tenants, nobody else", times, alone);
    drop(silent);
    Ok(())
}

/// Runs it: the line to the platform's database is cut, then silent, while tenants chat.
pub(crate) async fn outage(bench: &Bench, options: &OutageOptions) -> Result<()> {
    let model = start_model(0)?;
    let tenants = Arc::new(provision(bench, options.tenants).await?);
    for tenant in tenants.iter() {
        bench.use_model(&tenant.token, &model, "instant").await?;
    }
    let (half, around) = (Duration::from_secs(options.seconds) / 2, Duration::from_secs(10));
    let parts = [
        ("the platform's database is there", Line::Open, around),
        ("it refuses", Line::Cut, half),
        ("it is silent", Line::Silent, half),
        ("it is back", Line::Open, around),
    ];
    let mut failures = 0;
    for (what, line, time) in parts {
        bench.line.set(line);
        let answers = ask(bench, &tenants, options.clients, time, true).await?;
        let failed = answers.iter().filter(|(_, good, ..)| !good).count();
        failures += failed;
        report(&format!("chats while {what}"), answers.iter().map(|(_, _, _, took)| *took).collect(), time);
        println!("    failed: {failed}");
    }
    println!("failed chats: {failures}");
    let mut healthy = Instant::now();
    let waiting = Instant::now();
    while !bench.client.get(format!("{}/api/health", bench.url)).send().await?.status().is_success() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        healthy = Instant::now();
        anyhow::ensure!(waiting.elapsed() < Duration::from_secs(60), "the server does not recover");
    }
    println!("the server is healthy {:.1} s after the last chat", (healthy - waiting).as_secs_f64());
    Ok(())
}
