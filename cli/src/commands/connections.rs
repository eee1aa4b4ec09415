//! `freehold connections`.

use freehold::api::connections::{BreakerReason, Connections};

use super::Context;
use crate::failure::Failure;
use crate::output::table;

const CONNECTIONS: [&str; 3] = ["platform", "v1", "connections"];

/// Carries out the command.
pub async fn run(context: &Context<'_>) -> Result<(), Failure> {
    let connections: Connections = context.client()?.get(&CONNECTIONS, &[]).await?;
    context.output.data(&connections, || shown(&connections))
}

fn shown(connections: &Connections) -> String {
    let rows: Vec<Vec<String>> = connections
        .database_servers
        .iter()
        .map(|server| {
            vec![
                server.cluster.clone().unwrap_or_else(|| server.name.clone()),
                server.budget.to_string(),
                server.shares.len().to_string(),
                server.granted.to_string(),
                server.open.to_string(),
                server.idle.to_string(),
                server.waiting.to_string(),
            ]
        })
        .collect();
    let mut text = table(
        &["database server", "budget", "servers", "granted", "open", "idle", "waiting"],
        &rows,
        "The server that answered has no connection to a tenant's database.",
    );
    let rows: Vec<Vec<String>> = connections
        .database_servers
        .iter()
        .flat_map(|server| &server.tenants)
        .map(|tenant| {
            let name = tenant.slug.clone().unwrap_or_else(|| tenant.tenant_id.to_string());
            vec![name, tenant.open.to_string(), tenant.idle.to_string(), tenant.waiting.to_string()]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(&["tenant", "open", "idle", "waiting"], &rows, ""));
    }
    let rows: Vec<Vec<String>> = connections
        .breakers
        .iter()
        .map(|breaker| {
            let reason = match breaker.reason {
                BreakerReason::Connect => "does not answer",
                BreakerReason::Authentication => "refuses the credentials",
            };
            let wait = format!("{:.1} s", std::time::Duration::from_millis(breaker.retry_after_ms).as_secs_f64());
            vec![breaker.slug.clone(), breaker.database_server.clone(), reason.to_owned(), wait]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(&["left alone", "database server", "it", "tried again in"], &rows, ""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_is_open_and_what_is_left_alone() {
        let connections = serde_json::json!({
            "server_id": "0198a1b2-0000-7000-8000-000000000000",
            "database_servers": [{
                "name": "cluster:0198a1b2-0000-7000-8000-000000000001", "cluster": "local", "budget": 80, "granted": 40,
                "open": 7, "idle": 5, "waiting": 0, "shares": [],
                "tenants": [{ "tenant_id": "0198a1b2-0000-7000-8000-000000000002", "slug": "acme", "open": 7, "idle": 5,
                    "waiting": 0 }]
            }],
            "breakers": [{ "tenant_id": "0198a1b2-0000-7000-8000-000000000003", "slug": "broken",
                "database_server": "own:db.example:5432", "reason": "authentication", "retry_after_ms": 1500 }]
        });
        let text = shown(&serde_json::from_value(connections).unwrap());
        for expected in ["local", "80", "40", "acme", "broken", "refuses the credentials", "1.5 s"] {
            assert!(text.contains(expected), "{expected} is missing: {text}");
        }
    }
}
