//! Questions that are asked several times at once, answers that are given again, and the memory that these take.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use freehold::answer_cache::{AnswerCache, AnswerKey, KeptAnswer};
use freehold::clock::SystemClock;
use freehold::ids::TenantId;
use futures::StreamExt as _;
use reqwest::Client;
use serde_json::{Value, json};

use crate::connections::provision;
use crate::limits::Replicas;
use crate::upstream::{self, Books};
use crate::{Bench, PASSWORD, RedisOption, repeat, report, resident_mib, text};

/// What of it is measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// `clicks`, `strangers`, `bound` or `speed`.
    drill: String,
    /// A Redis that the servers share.
    #[command(flatten)]
    pub(crate) redis: RedisOption,
    /// How many questions are asked three times at once.
    #[arg(long, default_value_t = 1000)]
    triples: usize,
    /// How many of them at the same time.
    #[arg(long, default_value_t = 10)]
    at_once: usize,
    /// How many tenants, and how many users of one tenant, ask the same at once.
    #[arg(long, default_value_t = 200)]
    strangers: usize,
    /// How many distinct answers are kept.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// How long each measurement of speed takes, in seconds.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

impl Options {
    /// The memory is that of this process.
    pub(crate) fn needs_no_server(&self) -> bool {
        self.drill == "bound"
    }
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    match options.drill.as_str() {
        "clicks" => clicks(bench, options).await,
        "strangers" => strangers(bench, options).await,
        "speed" => speed(bench, options).await,
        other => anyhow::bail!("no drill `{other}`: clicks, strangers, bound, speed"),
    }
}

/// How often the model was asked. Questions of people carry no number, so the books have them under one.
fn asked(books: &Books) -> usize {
    usize::try_from(books.entry(0).asked).unwrap_or(usize::MAX)
}

/// An answer as one of those was told it who asked.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    message_id: String,
    session_id: String,
    content: String,
    from_cache: bool,
}

async fn ask(client: &Client, base: &str, token: &str, question: &str, stream: bool) -> Result<Told> {
    let body = json!({ "message": question, "stream": stream });
    let response = client.post(format!("{base}/api/v1/chat")).bearer_auth(token).json(&body).send().await?;
    let status = response.status();
    let whole = response.text().await?;
    ensure!(status.is_success(), "{status}: {whole}");
    let (mut last, mut content) = (Value::Null, String::new());
    if stream {
        for block in whole.split("\n\n") {
            let Some(data) = block.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
            let data = serde_json::from_str::<Value>(data).unwrap_or_default();
            content.push_str(data["content"].as_str().unwrap_or_default());
            if block.contains("event: done") {
                last = data;
            }
        }
    } else {
        last = serde_json::from_str(&whole)?;
        content.push_str(last["content"].as_str().unwrap_or_default());
    }
    let from_cache = last["from_cache"].as_bool().context("no end")?;
    Ok(Told { message_id: text(&last, "message_id")?, session_id: text(&last, "session_id")?, content, from_cache })
}

async fn configure(bench: &Bench, token: &str, scope: &str) -> Result<()> {
    let settings = json!({ "answer_cache": { "enabled": true, "scope": scope, "minutes": 60 } });
    bench.send(bench.client.patch(format!("{}/api/v1/config", bench.url)), token, settings).await.map(drop)
}

/// Each question three times at once, at three replicas, as JSON and as streams.
async fn clicks(bench: &Bench, options: &Options) -> Result<()> {
    let (model, books) = upstream::start()?;
    let tenant = provision(bench, 1).await?.pop().context("a tenant")?;
    // Some 0.6 s an answer: as long as a model takes, and long enough for three clicks to be at the same time.
    bench.use_model(&tenant.token, &model, "counted-20").await?;
    for servers in [1, 3] {
        let replicas = Replicas::start(bench, servers).await?;
        let bases: Arc<[String]> = replicas.bases().into();
        let before = asked(&books);
        let began = Instant::now();
        let triples = futures::stream::iter(0..options.triples).map(|number| {
            let (client, bases, token) = (bench.client.clone(), Arc::clone(&bases), tenant.token.clone());
            async move {
                let question = format!("question {number} of {servers}");
                let clicks = (0..3).map(|click| {
                    let base = bases.get(click % bases.len()).map(String::as_str).unwrap_or_default();
                    ask(&client, base, &token, &question, (number + click).is_multiple_of(2))
                });
                futures::future::try_join_all(clicks).await
            }
        });
        let mut triples = triples.buffer_unordered(options.at_once);
        let (mut equal, mut answers) = (0, BTreeSet::new());
        while let Some(told) = triples.next().await {
            let told = told?;
            let first = told.first().context("an answer")?;
            equal += usize::from(told.iter().all(|other| other == first) && !first.content.is_empty());
            answers.insert(first.message_id.clone());
        }
        let calls = asked(&books) - before;
        println!(
            "{} questions three times at once over {servers} server(s), JSON and streamed, in {:.0} s",
            options.triples,
            began.elapsed().as_secs_f64()
        );
        println!("    model calls {calls}; told the same three times: {equal}; distinct answers {}", answers.len());
        ensure!(
            calls == options.triples && equal == options.triples && answers.len() == options.triples,
            "a question was answered twice, or not to all"
        );
    }
    Ok(())
}

/// The same question at once from many tenants, and from many users of one, with and without the cache.
async fn strangers(bench: &Bench, options: &Options) -> Result<()> {
    let (model, books) = upstream::start()?;
    let count = options.strangers;
    let tenants = provision(bench, count.max(1)).await?;
    for tenant in &tenants {
        bench.use_model(&tenant.token, &model, "counted-20").await?;
    }
    let all: Vec<String> = tenants.iter().map(|tenant| tenant.token.clone()).collect();
    let shared = async |what: &str, tokens: &[String], expected: usize| {
        let before = asked(&books);
        let asks = tokens.iter().enumerate().map(|(number, token)| {
            ask(&bench.client, &bench.url, token, "When do you open?", number.is_multiple_of(2))
        });
        let told = futures::future::try_join_all(asks).await?;
        let distinct: BTreeSet<_> = told.iter().map(|told| &told.message_id).collect();
        let (joined, from_cache) = (told.len() - distinct.len(), told.iter().filter(|told| told.from_cache).count());
        let calls = asked(&books) - before;
        println!("{what}: {} asked, joined {joined}, from the cache {from_cache}, model calls {calls}", told.len());
        ensure!(joined == 0 && calls + from_cache == told.len(), "an answer was shared");
        ensure!(from_cache == expected, "{from_cache} from the cache instead of {expected}");
        Ok::<_, anyhow::Error>(())
    };
    shared("the same question from every tenant at once", &all, 0).await?;
    for tenant in &tenants {
        configure(bench, &tenant.token, "public").await?;
    }
    shared("the same with public caches", &all, 0).await?;
    shared("the same again, each from its own cache", &all, count).await?;
    let first = tenants.first().context("a tenant")?;
    configure(bench, &first.token, "user").await?;
    let users = futures::stream::iter(0..count).map(|number| async move {
        let email = format!("user-{number}@bench.example");
        let body = json!({ "email": email, "name": "User", "role": "user", "password": PASSWORD });
        bench.post("/api/v1/users", &first.token, body).await?;
        let body = json!({ "tenant": first.slug, "email": email, "password": PASSWORD });
        text(&bench.post("/api/v1/auth/login", "", body).await?, "access_token")
    });
    let users: Vec<Result<String>> = users.buffered(4).collect().await;
    let users = users.into_iter().collect::<Result<Vec<_>>>()?;
    shared("the same question from every user of a tenant at once", &users, 0).await?;
    shared("the same again, each user's own", &users, count).await
}

/// Many distinct answers into a cache: what they are taken to be, and what they are.
pub(crate) fn bound(options: &Options) -> Result<()> {
    let capacity = 32 << 20;
    let resident = || resident_mib(std::process::id()).context("the memory of this process");
    let cache = AnswerCache::in_memory(capacity, SystemClock::shared());
    let tenants: Vec<TenantId> = (0..200).map(|_| TenantId::new()).collect();
    let before = resident()?;
    let (began, mut most, mut most_bytes) = (Instant::now(), before, 0);
    for number in 0..options.keys {
        let mut hash: [u8; 32] = rand::random();
        hash[..8].copy_from_slice(&number.to_be_bytes());
        // As long as answers are: from a word to a few thousand.
        let length = 20 + usize::try_from(number % 97)? * 40;
        let answer = KeptAnswer { content: "a".repeat(length), delta_lengths: vec![4; length / 4] };
        let tenant = tenants[usize::try_from(number)? % tenants.len()];
        cache.put_in_memory(tenant, AnswerKey::new(hash), Arc::new(answer), Duration::from_secs(900));
        if number.is_multiple_of(10_000) {
            most = most.max(resident()?);
            most_bytes = most_bytes.max(cache.size().1);
        }
    }
    let took = began.elapsed();
    let (entries, bytes) = cache.size();
    println!("{} distinct answers into a cache of {} MiB in {:.1} s", options.keys, capacity >> 20, took.as_secs_f64());
    println!("    kept at the end {entries}, taken to be {:.1} MiB", bytes as f64 / 1048576.0);
    println!("    resident memory {before:.1} MiB before, {most:.1} MiB at most, {:.1} MiB at the end", resident()?);
    ensure!(bytes.max(most_bytes) <= capacity, "the bound was passed");
    // What the allocator holds beyond what it gave out is not the cache's.
    ensure!(most - before < 1.25 * 32.0 + 4.0, "it takes more memory than it says");
    Ok(())
}

/// A hit next to a call of a model that takes no time, and of one that takes as long as models do.
async fn speed(bench: &Bench, options: &Options) -> Result<()> {
    let (model, _) = upstream::start()?;
    let tenant = provision(bench, 1).await?.pop().context("a tenant")?;
    let url = format!("{}/api/v1/chat", bench.url);
    let time = Duration::from_secs(options.seconds);
    // Questions that are the same at the same time would be one; so there are more of them than clients.
    let questions = |stream: bool| {
        let question = |number| {
            let body = json!({ "message": format!("question {number}"), "stream": stream });
            bench.client.post(&url).bearer_auth(&tenant.token).json(&body).build()
        };
        (0..64).map(question).collect::<Result<Vec<_>, _>>()
    };
    for (what, name, cached) in [
        ("a model that takes 0.6 s", "counted-20", false),
        ("a model that takes no time", "counted", false),
        ("the same, from the cache", "counted", true),
    ] {
        bench.use_model(&tenant.token, &model, name).await?;
        if cached {
            configure(bench, &tenant.token, "user").await?;
        }
        for stream in [false, true] {
            let (form, requests) = (if stream { "streamed" } else { "JSON" }, questions(stream)?);
            if cached {
                for request in &requests {
                    let request = request.try_clone().context("a request")?;
                    bench.client.execute(request).await?.error_for_status()?.bytes().await?;
                }
            }
            for clients in [1, 16] {
                let (times, wall) = repeat(&bench.client, &requests, clients, time).await?;
                report(&format!("{what}, {form}, {clients} clients"), times, wall);
            }
        }
    }
    Ok(())
}
