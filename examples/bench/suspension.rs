//! Suspension seen by two server processes under load: time until the last answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{Bench, PASSWORD, report, text};

/// Suspends and resumes so many times, with so many clients on each of two servers.
pub(crate) async fn run(bench: &Bench, rounds: usize, clients: usize) -> Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    // The later variable wins.
    let address = format!("127.0.0.1:{port}");
    let mut second = bench.settings.command(&["serve"]).env("FREEHOLD_LISTEN", &address).spawn()?;
    let second_url = format!("http://{address}");
    let mut tries = 0;
    while bench.client.get(format!("{second_url}/api/health")).send().await.is_err() {
        tries += 1;
        ensure!(tries < 200, "the second server did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (invite, _) = bench.provision("suspended").await?;
    let body = json!({ "tenant": "suspended", "token": invite["token"], "password": PASSWORD });
    let token = text(&bench.post("/api/v1/auth/accept-invite", "", body).await?, "access_token")?;
    let servers = [bench.url.clone(), second_url];
    let (mut last_answers, mut accepted) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for round in 0..rounds {
        let epoch = Instant::now();
        // Nanoseconds since the epoch of the last good answer of each server.
        let last: [Arc<AtomicU64>; 2] = [Arc::default(), Arc::default()];
        let stop = tokio_util::sync::CancellationToken::new();
        let load = servers.iter().zip(&last).flat_map(|(url, last)| {
            let (client, token, stop) = (&bench.client, &token, &stop);
            (0..clients).map(move |_| {
                let (client, url, token, last, stop) =
                    (client.clone(), format!("{url}/api/v1/me"), token.clone(), Arc::clone(last), stop.clone());
                tokio::spawn(async move {
                    while !stop.is_cancelled() {
                        let answer = client.get(&url).bearer_auth(&token).send().await;
                        match answer.map(|answer| answer.status().as_u16()) {
                            Ok(200) => _ = last.fetch_max(epoch.elapsed().as_nanos() as u64, Ordering::Relaxed),
                            _ => tokio::time::sleep(Duration::from_millis(2)).await,
                        }
                    }
                })
            })
        });
        let load: Vec<_> = load.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asked = epoch.elapsed();
        bench.post("/platform/v1/tenants/suspended/suspend", &bench.token, json!({})).await?;
        accepted.push(epoch.elapsed() - asked);
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.cancel();
        futures::future::join_all(load).await;
        for last in &last {
            let last = Duration::from_nanos(last.load(Ordering::Relaxed));
            ensure!(last > Duration::ZERO, "round {round}: a server never answered");
            last_answers.push(last.saturating_sub(asked));
        }
        resume(bench).await?;
    }
    let wall = started.elapsed();
    report("suspend, request until accepted", accepted, wall);
    let longest = last_answers.iter().max().copied().unwrap_or_default();
    report("suspend, request until the last good answer", last_answers, wall);
    println!("longest of {} on two servers: {:.1} ms", rounds * 2, longest.as_secs_f64() * 1000.0);
    second.kill().await.context("stop the second server")?;
    ensure!(longest < Duration::from_secs(1), "a server answered for more than a second");
    Ok(())
}

/// Resumes it, once its suspension is settled, and waits until that is, too.
async fn resume(bench: &Bench) -> Result<()> {
    for _ in 0..400 {
        let request = bench.client.post(format!("{}/platform/v1/tenants/suspended/resume", bench.url));
        let answer = request.bearer_auth(&bench.token).json(&json!({})).send().await?;
        // 202 while it is under way, 409 while the suspension is, 200 when it is done.
        if answer.status().as_u16() == 200 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("it was not resumed")
}
