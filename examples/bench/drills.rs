//! The OpenAI-compatible endpoint under what hurts: many open streams, clients that leave, servers that die, long hours.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use rand::RngExt as _;
use reqwest::Client;
use serde_json::json;

use crate::connections::{Tenant, provision};
use crate::upstream::{self, Books, OUTPUT_TOKENS};
use crate::{Bench, connect, report, start_model};

/// A tenant with a key for programs.
struct Caller {
    tenant: Tenant,
    key: String,
}

/// Tenants whose model is the upstream.
async fn callers(bench: &Bench, count: usize, model: &str, name: &str) -> Result<Vec<Caller>> {
    let mut callers = Vec::with_capacity(count);
    for tenant in provision(bench, count).await? {
        bench.use_model(&tenant.token, model, name).await?;
        let key = bench.api_key(&tenant.token).await?;
        callers.push(Caller { tenant, key });
    }
    Ok(callers)
}

fn request(client: &Client, bench: &Bench, key: &str, model: &str, call: i64, stream: bool) -> reqwest::RequestBuilder {
    let body = json!({
        "model": model, "stream": stream, "metadata": { "call": call.to_string() },
        "messages": [{ "role": "user", "content": "hello" }]
    });
    client.post(format!("{}/v1/chat/completions", bench.url)).bearer_auth(key).json(&body)
}

/// Connections to databases of tenants.
async fn tenant_connections(bench: &Bench, callers: &[Caller]) -> Result<i64> {
    let databases: Vec<&str> = callers.iter().map(|caller| caller.tenant.database.as_str()).collect();
    let sql = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE datname = ANY ($1)";
    let row = connect(&bench.postgres).await?.query_one(sql, &[&databases]).await?;
    let busy: i64 = row.get(1);
    println!("    connections to tenants' databases: {} open, {busy} in use", row.get::<_, i64>(0));
    Ok(busy)
}

fn open_files(bench: &Bench) -> usize {
    bench.server.id().and_then(|id| std::fs::read_dir(format!("/proc/{id}/fd")).ok()).map_or(0, Iterator::count)
}

/// Opens many streams of a slow model and looks what they cost.
pub(crate) async fn streams(bench: &Bench, count: usize) -> Result<()> {
    let (model, _) = upstream::start()?;
    let callers = callers(bench, 4, &model, "counted-2000").await?;
    let before = bench.memory_mib().unwrap_or_default();
    let began = Instant::now();
    let mut streams = Vec::with_capacity(count);
    for first in (0..count).step_by(100) {
        let some = (first..count.min(first + 100)).map(|number| {
            let key = &callers[number % callers.len()].key;
            request(&bench.client, bench, key, "counted-2000", 1, true).send()
        });
        for response in futures::future::try_join_all(some).await? {
            streams.push(response.error_for_status()?);
        }
    }
    println!("{count} streams open after {:.1} s", began.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let during = bench.memory_mib().unwrap_or_default();
    println!(
        "    server's resident memory {before:.0} MiB before, {during:.0} MiB now: {:.1} KiB a stream",
        (during - before) * 1024.0 / count as f64
    );
    tenant_connections(bench, &callers).await?;
    // Long enough for idle connections to be closed.
    tokio::time::sleep(Duration::from_secs(20)).await;
    tenant_connections(bench, &callers).await?;
    let ends = streams.into_iter().map(|response| async move { response.text().await });
    let ends = futures::future::join_all(ends).await;
    let whole = ends.iter().flatten().filter(|text| text.ends_with("data: [DONE]\n\n")).count();
    println!("    streams that came to their end: {whole} of {count}");
    ensure!(whole == count, "a stream was cut");
    Ok(())
}

/// Clients leave at any moment; measures until the upstream call is closed.
pub(crate) async fn disconnects(bench: &Bench, count: usize) -> Result<()> {
    let (model, books) = upstream::start()?;
    let callers = Arc::new(callers(bench, 4, &model, "counted-20").await?);
    let next = Arc::new(AtomicI64::new(1));
    let workers = (0..32).map(|_| {
        let (callers, next, client) = (Arc::clone(&callers), Arc::clone(&next), bench.client.clone());
        async move {
            let mut left = Vec::new();
            loop {
                let call = next.fetch_add(1, Ordering::Relaxed);
                if call > count as i64 {
                    return Ok::<_, anyhow::Error>(left);
                }
                let key = &callers[call as usize % callers.len()].key;
                let mut events = request(&client, bench, key, "counted-20", call, true)
                    .send()
                    .await?
                    .error_for_status()?
                    .bytes_stream();
                // After a piece or some, in the middle of the answer.
                for _ in 0..rand::rng().random_range(1..=10) {
                    events.next().await.context("an event")??;
                }
                drop(events);
                left.push((call, Instant::now()));
            }
        }
    });
    let began = Instant::now();
    let left = futures::future::try_join_all(workers).await?.concat();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut times = Vec::with_capacity(left.len());
    let mut open = 0;
    for (call, at) in &left {
        match books.entry(*call).left {
            Some(closed) => times.push(closed.saturating_duration_since(*at)),
            None => open += 1,
        }
    }
    report("from the client's leaving to the end upstream", times, began.elapsed());
    println!("    of {} calls {open} were not closed upstream", left.len());
    states(bench, &callers).await?;
    Ok(())
}

/// What the ledgers hold, by state.
async fn states(bench: &Bench, callers: &[Caller]) -> Result<HashMap<String, i64>> {
    let mut states = HashMap::new();
    for caller in callers {
        let mut url = url::Url::parse(&bench.postgres)?;
        url.set_path(&caller.tenant.database);
        let sql = "SELECT state, count(*) FROM model_calls GROUP BY state";
        for row in connect(url.as_str()).await?.query(sql, &[]).await? {
            *states.entry(row.get(0)).or_default() += row.get::<_, i64>(1);
        }
    }
    println!("    ledger: {states:?}");
    Ok(states)
}

/// Postgres dies as if a process of it had crashed, and recovers by itself.
async fn crash_postgres(bench: &Bench) -> Result<()> {
    // Kept until then: its process ends with it.
    let client = connect(&bench.postgres).await?;
    let victim: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let killed = tokio::process::Command::new("kill").args(["-9", &victim.to_string()]).status().await?;
    ensure!(killed.success(), "kill a process of Postgres");
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Ok(client) = connect(&bench.postgres).await
            && client.query_one("SELECT 1", &[]).await.is_ok()
        {
            return Ok(());
        }
    }
}

/// Calls, half of them streamed, a fifth left by the client at any byte, while servers are killed and Postgres crashes;
/// then the upstream's books are compared with ours.
pub(crate) async fn ledger(bench: &mut Bench, count: usize, kills: usize, crashes: usize) -> Result<()> {
    let (model, books) = upstream::start()?;
    let callers = Arc::new(callers(bench, 4, &model, "counted").await?);
    let (next, finished, failed) =
        (Arc::new(AtomicI64::new(1)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let url = bench.url.clone();
    let began = Instant::now();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let (callers, next, finished, failed) =
                (Arc::clone(&callers), Arc::clone(&next), Arc::clone(&finished), Arc::clone(&failed));
            let (client, url) = (bench.client.clone(), url.clone());
            tokio::spawn(async move {
                loop {
                    let call = next.fetch_add(1, Ordering::Relaxed);
                    if call > count as i64 {
                        return;
                    }
                    let key = &callers[call as usize % callers.len()].key;
                    let body = json!({
                        "model": "counted", "stream": call % 2 == 0, "metadata": { "call": call.to_string() },
                        "messages": [{ "role": "user", "content": "hello" }]
                    });
                    let request = client.post(format!("{url}/v1/chat/completions")).bearer_auth(key).json(&body);
                    let most = if call % 5 == 0 { rand::rng().random_range(0..6000) } else { usize::MAX };
                    let answer = async {
                        let mut bytes = request.send().await?.error_for_status()?.bytes_stream();
                        let mut read = 0;
                        while read < most
                            && let Some(piece) = bytes.next().await
                        {
                            read += piece?.len();
                        }
                        Ok::<_, reqwest::Error>(())
                    };
                    match answer.await {
                        Ok(()) => _ = finished.fetch_add(1, Ordering::Relaxed),
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            // The server is away: each call is made once, and there have to be some left for the next kill.
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
            })
        })
        .collect();
    let events = kills + crashes;
    for event in 0..events {
        let due = count * (event + 1) / (events + 1);
        while next.load(Ordering::Relaxed) < due as i64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if crashes > 0 && (event + 1) % (events / crashes).max(1) == 0 {
            crash_postgres(bench).await?;
        } else {
            let keys = bench.settings.master_keys.clone();
            bench.restart(keys).await?;
        }
    }
    for worker in workers {
        worker.await?;
    }
    println!(
        "{count} calls in {:.0} s with {kills} kills of the server and {crashes} crashes of Postgres: {} answered or left, {} failed",
        began.elapsed().as_secs_f64(),
        finished.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed)
    );
    let settling = Instant::now();
    loop {
        // Reading the usage settles what dead servers have left.
        for caller in callers.iter() {
            let request = bench.client.get(format!("{}/api/v1/usage", bench.url)).bearer_auth(&caller.tenant.token);
            request.send().await?.error_for_status()?;
        }
        let left = states(bench, &callers).await?.get("started").copied().unwrap_or_default();
        if left == 0 {
            break;
        }
        ensure!(settling.elapsed() < Duration::from_secs(180), "{left} calls are not settled");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    println!("all settled after {:.0} s", settling.elapsed().as_secs_f64());
    compare(bench, &callers, &books).await
}

async fn compare(bench: &Bench, callers: &[Caller], books: &Books) -> Result<()> {
    let entries = books.entries();
    let (mut rows, mut reported, mut wrong, mut doubled) = (0_usize, HashSet::new(), 0, 0);
    for caller in callers {
        let mut url = url::Url::parse(&bench.postgres)?;
        url.set_path(&caller.tenant.database);
        let sql = "SELECT usage_reported, input_tokens, output_tokens FROM model_calls";
        for row in connect(url.as_str()).await?.query(sql, &[]).await? {
            rows += 1;
            if row.get::<_, Option<bool>>(0) == Some(true) {
                let call: i64 = row.get::<_, Option<i64>>(1).unwrap_or_default();
                doubled += usize::from(!reported.insert(call));
                let known = entries.get(&call).is_some_and(|entry| entry.reported);
                wrong += usize::from(!known || row.get::<_, Option<i64>>(2) != Some(OUTPUT_TOKENS));
            }
        }
    }
    let asked: u32 = entries.values().map(|entry| entry.asked).sum();
    let told = entries.values().filter(|entry| entry.reported).count();
    println!(
        "upstream's books: {asked} calls, {told} with usage; the ledger: {rows} rows, {} with usage",
        reported.len()
    );
    println!("    calls upstream without a row: {}", (asked as usize).saturating_sub(rows));
    println!("    rows of one call twice: {doubled}; with other tokens than upstream's: {wrong}");
    println!(
        "    usage told upstream that an interrupted or left call estimates instead: {}",
        told.saturating_sub(reported.len())
    );
    ensure!(asked as usize <= rows && doubled == 0 && wrong == 0, "the books differ");
    Ok(())
}

/// The full pipeline with a model that takes half a second: many connections over some tenants.
pub(crate) async fn pipeline(bench: &Bench, tenants: usize, clients: usize, seconds: u64) -> Result<()> {
    let model = start_model(0)?;
    let callers = Arc::new(callers(bench, tenants, &model, "slow-500").await?);
    let time = Duration::from_secs(seconds);
    let (began, failed) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let workers = (0..clients).map(|number| {
        let (callers, failed, client) = (Arc::clone(&callers), Arc::clone(&failed), bench.client.clone());
        let url = format!("{}/api/v1/chat", bench.url);
        async move {
            let mut times = Vec::new();
            while began.elapsed() < time {
                let started = Instant::now();
                let token = &callers[number % callers.len()].tenant.token;
                // Another one's words would be the same question.
                let question = json!({ "message": format!("hello {number}") });
                let answer = client.post(&url).bearer_auth(token).json(&question).send().await;
                let whole = async { answer?.error_for_status()?.bytes().await };
                match whole.await {
                    Ok(_) => times.push(started.elapsed()),
                    Err(_) => _ = failed.fetch_add(1, Ordering::Relaxed),
                }
            }
            times
        }
    });
    let mut times = futures::future::join_all(workers).await.concat();
    times.sort_unstable();
    let p95 = times.get(times.len() * 95 / 100).copied().unwrap_or_default();
    let failed = failed.load(Ordering::Relaxed);
    report(&format!("chat turns, {clients} connections over {tenants} tenants"), times, time);
    println!("    p95 {:.1} ms, errors {failed}", p95.as_secs_f64() * 1000.0);
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

/// Calls at a steady rate for long, and what the server holds before and after.
pub(crate) async fn soak(bench: &Bench, minutes: u64, rate: u64) -> Result<()> {
    let (model, _) = upstream::start()?;
    let callers = Arc::new(callers(bench, 20, &model, "counted").await?);
    let hold = async |what: &str| -> Result<()> {
        println!(
            "{what}: resident memory {:.1} MiB, open files {}",
            bench.memory_mib().unwrap_or_default(),
            open_files(bench)
        );
        tenant_connections(bench, &callers).await?;
        Ok(())
    };
    let (next, failed, done) =
        (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let end = Duration::from_secs(minutes * 60);
    let workers: Vec<_> = (0..32)
        .map(|_| {
            let (callers, next, failed, done, client) =
                (Arc::clone(&callers), Arc::clone(&next), Arc::clone(&failed), Arc::clone(&done), bench.client.clone());
            let url = format!("{}/v1/chat/completions", bench.url);
            tokio::spawn(async move {
                loop {
                    let call = next.fetch_add(1, Ordering::Relaxed);
                    let due = Duration::from_nanos(call.unsigned_abs() * 1_000_000_000 / rate);
                    if due > end {
                        return;
                    }
                    tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
                    let body = json!({
                        "model": "counted", "stream": call % 2 == 0, "messages": [{ "role": "user", "content": "hello" }]
                    });
                    let key = &callers[call.unsigned_abs() as usize % callers.len()].key;
                    let answer = client.post(&url).bearer_auth(key).json(&body).send().await;
                    let whole = async { answer?.error_for_status()?.bytes().await };
                    let count = if whole.await.is_ok() { &done } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(20)).await;
    hold("after 20 s").await?;
    tokio::time::sleep(end.saturating_sub(began.elapsed()) / 2).await;
    hold("half way").await?;
    for worker in workers {
        worker.await?;
    }
    hold("at the end").await?;
    println!(
        "{} calls in {} min, asked for {rate} a second; failed: {}",
        done.load(Ordering::Relaxed),
        minutes,
        failed.load(Ordering::Relaxed)
    );
    Ok(())
}
