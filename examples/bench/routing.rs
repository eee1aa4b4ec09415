//! Sixty questions over three assistants: how many come to the one they belong to, by rule and by a model, and what that
//! adds to an answer.
//!
//! The questions and the keywords were written apart: the keywords are what an admin would think of, and miss some. The
//! answers themselves come from the fake model, so what a routed question takes longer is the routing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::connections::provision;
use crate::{Bench, report, start_model, text};

/// Each with the assistant it belongs to.
const QUESTIONS: &str = include_str!("routing_questions.tsv");

/// What can be chosen.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The base URL of a model that routes; without one, only rules do.
    #[arg(long)]
    model_url: Option<String>,
    /// Its name.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
}

fn assistants(with_keywords: bool) -> Value {
    let assistant = |name: &str, title: &str, description: &str, keywords: &[&str]| {
        let keywords = if with_keywords { keywords } else { &[] };
        json!({
            "name": name, "title": title, "description": description, "prompt": format!("You help with {name}."),
            "model": "instant", "keywords": keywords
        })
    };
    json!([
        assistant(
            "billing",
            "Billing",
            "Invoices, prices, payments and refunds.",
            &["invoice*", "bill*", "pay*", "price*", "charge*", "refund*", "money", "receipt*", "card*", "bank"],
        ),
        assistant(
            "delivery",
            "Delivery",
            "Orders, parcels, shipping and returns.",
            &[
                "parcel*",
                "package*",
                "deliver*",
                "ship*",
                "order*",
                "courier*",
                "tracking",
                "box",
                "send back",
                "carrier*"
            ],
        ),
        assistant(
            "technical",
            "Technical help",
            "Errors, devices, passwords, apps and installation.",
            &["error*", "app", "password*", "login", "log in", "device*", "connect*", "update*", "install*", "screen"],
        ),
    ])
}

/// How the questions of one way of routing went.
struct Routed {
    right: usize,
    /// Where those of each assistant went.
    went: BTreeMap<(String, String), usize>,
    times: Vec<Duration>,
    wall: Duration,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let questions = QUESTIONS.lines().map(|line| line.split_once('\t').context("a question without an assistant"));
    let questions = questions.collect::<Result<Vec<_>>>()?;
    ensure!(questions.len() == 60, "{} questions", questions.len());
    let tenant = provision(bench, 1).await?.pop().context("a tenant")?;
    bench.use_model(&tenant.token, &start_model(0)?, "instant").await?;
    let off = json!({ "assistants": assistants(true), "routing": { "by": "off" } });
    tell("nobody routes", &ask_all(bench, &tenant.token, off, &questions).await?, questions.len());
    let by_rule = json!({ "assistants": assistants(true), "routing": { "by": "rule" } });
    tell("by rule", &ask_all(bench, &tenant.token, by_rule, &questions).await?, questions.len());
    let Some(url) = &options.model_url else {
        println!("NOT MEASURED by a model: --model-url names none");
        return Ok(());
    };
    let body = json!({
        "provider": "openai_compatible", "base_url": url, "api_key": "bench", "models": [options.model],
        "default_model": options.model
    });
    bench.send(bench.client.put(format!("{}/api/v1/ai-keys/router", bench.url)), &tenant.token, body).await?;
    for (what, keywords) in [("by the model alone", false), ("by the model, then by rule", true)] {
        let routing = json!({ "by": "model", "model": options.model });
        let settings = json!({ "assistants": assistants(keywords), "routing": routing });
        tell(what, &ask_all(bench, &tenant.token, settings, &questions).await?, questions.len());
    }
    let usage = bench.client.get(format!("{}/api/v1/usage?group_by=kind", bench.url)).bearer_auth(&tenant.token);
    let usage: Value = usage.send().await?.error_for_status()?.json().await?;
    for group in usage["items"].as_array().into_iter().flatten() {
        println!(
            "    the ledger: {} calls of the kind {}, {} tokens in, {} out",
            group["calls"], group["key"], group["input_tokens"], group["output_tokens"]
        );
    }
    Ok(())
}

/// Asks every question in a conversation of its own.
async fn ask_all(bench: &Bench, token: &str, settings: Value, questions: &[(&str, &str)]) -> Result<Routed> {
    bench.send(bench.client.patch(format!("{}/api/v1/config", bench.url)), token, settings).await?;
    let mut routed = Routed { right: 0, went: BTreeMap::new(), times: Vec::new(), wall: Duration::ZERO };
    let begun = Instant::now();
    for (expected, question) in questions {
        let asked = Instant::now();
        let answer = bench.post("/api/ai/query", token, json!({ "question": question })).await?;
        routed.times.push(asked.elapsed());
        let went = text(&answer, "assistant").unwrap_or_else(|_| "nobody".to_owned());
        routed.right += usize::from(went == *expected);
        *routed.went.entry(((*expected).to_owned(), went)).or_default() += 1;
    }
    routed.wall = begun.elapsed();
    Ok(routed)
}

fn tell(what: &str, routed: &Routed, of: usize) {
    println!("{what}: {} of {of} questions where they belong", routed.right);
    let went = routed.went.iter().map(|((from, to), count)| format!("{from} to {to} {count}"));
    println!("    {}", went.collect::<Vec<_>>().join(", "));
    report("    an answer", routed.times.clone(), routed.wall);
}
