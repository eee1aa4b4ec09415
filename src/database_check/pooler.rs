//! Whether a pooler shares the server's sessions out between clients, transaction by transaction.
//!
//! Freehold keeps prepared statements and settings in a session, so it needs one to itself. Names and ports prove
//! nothing; what proves it is one session of the server under two connections of ours.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::connecting::Session;
use super::facts::text;
use super::{Finding, problem};
use crate::secrets::{DatabaseUrl, Host};

/// How long the second connection, and each question through it, may take. A pooler with a single session of the
/// server lets one of the two wait.
const PATIENCE: Duration = Duration::from_secs(2);

const SESSION: &str = "SELECT pg_backend_pid()::text";

/// Finds out by holding a transaction open on a second connection: where sessions are shared out, it is given the
/// session that the first one just used, and the first one gets another or has to wait.
pub(super) async fn shares_sessions(session: &Session) -> Result<bool, tokio_postgres::Error> {
    let first = &session.client;
    let before = text(first, SESSION).await?;
    // No second connection is a matter of their number, which is judged elsewhere.
    let Some(second) = session.another(PATIENCE).await else { return Ok(false) };
    let held = match timeout(PATIENCE, hold(&second)).await {
        // Not even a transaction: the pooler shares out statement by statement.
        Ok(Err(_)) => return Ok(true),
        Ok(Ok(held)) => held,
        Err(_elapsed) => return Ok(true),
    };
    let after = match timeout(PATIENCE, text(first, SESSION)).await {
        Ok(after) => after?,
        Err(_elapsed) => return Ok(true),
    };
    let _ = timeout(PATIENCE, second.simple_query("ROLLBACK")).await;
    Ok(held == before || after != before)
}

async fn hold(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    client.simple_query("BEGIN").await?;
    text(client, SESSION).await
}

/// What to do about it, by whose pooler it looks like.
pub(super) fn finding(url: &DatabaseUrl) -> Finding {
    let host = match url.host() {
        Host::Tcp(host) => host.to_ascii_lowercase(),
        Host::Socket(_) => String::new(),
    };
    let remedy = if host.ends_with(".supabase.com") || host.ends_with(".supabase.co") {
        "take Supabase's address for session mode or the direct one: port 5432 rather than 6543"
    } else if host.contains("-pooler.") {
        "take the direct address: the host without `-pooler`"
    } else {
        "give the direct address of the database, or a pooler's port in session mode (pool_mode = session)"
    };
    problem(
        "transaction_pooler",
        "a pooler hands the server's sessions out for single transactions, and prepared statements would get lost",
        remedy,
    )
}
