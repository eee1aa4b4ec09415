//! Chat turns with an instant model, next to the model alone.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::{Bench, PASSWORD, load, repeat, report, start_model, text};

/// Runs it, for so long each measurement.
pub(crate) async fn run(bench: &Bench, time: Duration) -> Result<()> {
    let model = start_model(0)?;
    let (invite, _) = bench.provision("chat").await?;
    let body = json!({ "tenant": "chat", "token": invite["token"], "password": PASSWORD });
    let token = text(&bench.post("/api/v1/auth/accept-invite", "", body).await?, "access_token")?;
    bench.use_model(&token, &model, "instant").await?;
    for clients in [1, 16] {
        for stream in [false, true] {
            let form = if stream { "streamed" } else { "JSON" };
            let direct = json!({
                "model": "instant", "stream": stream, "stream_options": stream.then(|| json!({ "include_usage": true })),
                "messages": [{ "role": "user", "content": "hello" }]
            });
            let url = format!("{model}/chat/completions");
            let (times, wall) = load(&bench.client, &url, "bench", &direct, clients, time).await?;
            report(&format!("model alone, {form}, {clients} clients"), times, wall);
            // Questions that are the same at the same time would be one.
            let url = format!("{}/api/v1/chat", bench.url);
            let question = |number| {
                let question = json!({ "message": format!("hello {number}"), "stream": stream });
                bench.client.post(&url).bearer_auth(&token).json(&question).build()
            };
            let questions = (0..4 * clients).map(question).collect::<Result<Vec<_>, _>>()?;
            let (times, wall) = repeat(&bench.client, &questions, clients, time).await?;
            report(&format!("chat turn, {form}, {clients} clients"), times, wall);
        }
    }
    if let Some(memory) = bench.memory_mib() {
        println!("server's resident memory at the end: {memory:.0} MiB");
    }
    Ok(())
}
