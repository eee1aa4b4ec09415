//! Managed tenants through the API, next to a bare `CREATE DATABASE ... TEMPLATE`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt;

use crate::{Bench, connect, report};

/// Runs it: so many tenants one after another, and then eight at a time.
pub(crate) async fn run(bench: &Bench, tenants: usize) -> Result<()> {
    bench.provision("warm-up").await?;
    let admin = connect(&bench.postgres).await?;
    let template: String = admin
        .query_one("SELECT datname FROM pg_database WHERE datname ~ '^freehold_template_[0-9]+$'", &[])
        .await?
        .get(0);
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for number in 0..tenants {
        let (_, time) = bench.provision(&format!("serial-{number}")).await?;
        whole.push(time);
        // In turn with the other, so that both meet the same machine.
        let began = Instant::now();
        admin.batch_execute(&format!("CREATE DATABASE bare_{number} TEMPLATE {template}")).await?;
        bare.push(began.elapsed());
    }
    let wall = started.elapsed();
    report("bare CREATE DATABASE ... TEMPLATE", bare, wall);
    report("tenant, request until active, one at a time", whole, wall);
    let started = Instant::now();
    let results: Vec<Result<Duration>> = futures::stream::iter(0..tenants)
        .map(|number| async move { Ok(bench.provision(&format!("eight-{number}")).await?.1) })
        .buffer_unordered(8)
        .collect()
        .await;
    let wall = started.elapsed();
    let failures = results.iter().filter(|result| result.is_err()).count();
    report("tenant, request until active, 8 at a time", results.into_iter().filter_map(Result::ok).collect(), wall);
    println!("failures: {failures}");
    ensure!(failures == 0, "{failures} tenants failed");
    Ok(())
}
