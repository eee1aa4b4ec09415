//! The OpenAI-compatible endpoint, with its ledger, next to the model alone and to gateways that others run.
//!
//! All speak to the same fake model, and all are asked the same by the same clients, one after the other.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Request;
use serde_json::{Value, json};

use crate::connections::provision;
use crate::{Bench, repeat, resident_mib, start_model};

/// How long measurements wait for each tenant's first connections.
const EACH_TENANT: Duration = Duration::from_millis(20);

/// What can be chosen.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds each measurement takes.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many tenants are asked in turn.
    #[arg(long, default_value_t = 1)]
    pub(crate) tenants: usize,
    /// Another gateway as `name=base URL=process id`; it has to know the model `instant` at `--model-port`.
    #[arg(long)]
    other: Vec<String>,
    /// Where the fake model listens; any free port if 0.
    #[arg(long, default_value_t = 0)]
    model_port: u16,
    /// The processors that clients and model use from now on, as `taskset` takes them. What was started before, server and
    /// Postgres, stays where it is.
    #[arg(long)]
    processors: Option<String>,
}

/// One way to the model.
struct Way {
    name: String,
    url: String,
    headers: Vec<(&'static str, String)>,
    process: Option<u32>,
}

/// The resident memory of a process and of those below it: a proxy may have workers.
fn resident_with_children(process: u32) -> Option<f64> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| resident_with_children(child.parse().ok()?));
    Some(resident_mib(process)? + below.sum::<f64>())
}

impl Way {
    fn request(&self, bench: &Bench, body: &Value) -> Result<Request> {
        let mut request = bench.client.post(format!("{}/chat/completions", self.url)).json(body);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        Ok(request.build()?)
    }
}

/// Runs it.
pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    if let Some(processors) = &options.processors {
        let mut taskset = Command::new("taskset");
        taskset.args(["--all-tasks", "--cpu-list", "--pid", processors]).arg(std::process::id().to_string());
        let moved = taskset.output().context("start taskset")?;
        ensure!(moved.status.success(), "taskset: {}", String::from_utf8_lossy(&moved.stderr));
    }
    let model = start_model(options.model_port)?;
    let tenants = provision(bench, options.tenants).await?;
    let mut ways = vec![Way {
        name: "the model alone".to_owned(),
        url: model.clone(),
        headers: vec![("authorization", "Bearer bench".to_owned())],
        process: None,
    }];
    let mut keys = Vec::with_capacity(tenants.len());
    for tenant in &tenants {
        bench.use_model(&tenant.token, &model, "instant").await?;
        keys.push(bench.api_key(&tenant.token).await?);
    }
    ways.push(Way {
        name: format!("freehold, {} tenants", tenants.len()),
        url: format!("{}/v1", bench.url),
        headers: vec![("authorization", format!("Bearer {}", keys.first().context("a tenant")?))],
        process: bench.server.id(),
    });
    for other in &options.other {
        let mut parts = other.split('=');
        let mut part = || parts.next().map(str::to_owned).context("--other name=url=pid");
        let (name, url, process) = (part()?, part()?, part()?);
        // Portkey is told by headers where to go; the others do not look at them.
        let headers = vec![
            ("authorization", "Bearer bench".to_owned()),
            ("x-portkey-provider", "openai".to_owned()),
            ("x-portkey-custom-host", model.clone()),
        ];
        ways.push(Way { name, url, headers, process: Some(process.parse()?) });
    }
    let time = Duration::from_secs(options.seconds);
    for (stream, form) in [(false, "JSON"), (true, "31 events")] {
        let mut body = json!({ "model": "instant", "messages": [{ "role": "user", "content": "hello" }] });
        if stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        for clients in [1, 16] {
            let mut alone = HashMap::new();
            for way in &ways {
                let mut requests = vec![way.request(bench, &body)?];
                if way.process == bench.server.id() && keys.len() > 1 {
                    requests = keys
                        .iter()
                        .map(|key| {
                            let mut request = way.request(bench, &body)?;
                            request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
                            Ok(request)
                        })
                        .collect::<Result<_>>()?;
                }
                // Warm: connections of each tenant, prepared statements, just-in-time compilers.
                let warm = Duration::from_secs(2).max(EACH_TENANT * u32::try_from(requests.len())?);
                let measured = async {
                    repeat(&bench.client, &requests, clients.max(4), warm).await?;
                    repeat(&bench.client, &requests, clients, time).await
                };
                let (mut times, wall) = match measured.await {
                    Ok(measured) => measured,
                    // What another gateway does is no reason not to measure the rest.
                    Err(error) if way.process != bench.server.id() => {
                        println!("{form:<10} {clients:>2} clients   {:<24} {error:#}", way.name);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                times.sort_unstable();
                let at = |share: f64| {
                    let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
                    times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
                };
                let (median, p99) = (at(0.5), at(0.99));
                let (base_median, base_p99) = *alone.entry(clients).or_insert((median, p99));
                println!(
                    "{form:<10} {clients:>2} clients   {:<24} {:>8.0} a second   median {median:>7.2} (+{:>6.2}) ms   \
                     p99 {p99:>7.2} (+{:>6.2}) ms   {:>5.0} MiB",
                    way.name,
                    times.len() as f64 / wall.as_secs_f64(),
                    median - base_median,
                    p99 - base_p99,
                    way.process.and_then(resident_with_children).unwrap_or_default(),
                );
            }
        }
    }
    Ok(())
}
