//! Connections to the Redis or Valkey that servers share, prepared in one way for all who use one.

use std::time::Duration;

use redis::Client;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use secrecy::{ExposeSecret as _, SecretString};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// What a URL has to be that is none.
const NO_URL: &str = "must be a URL `redis://…` or, with TLS, `rediss://…`";

/// Checks that a URL is one of a Redis. Nobody is asked.
///
/// # Errors
/// If it is none, in words that do not quote it: it may hold a password.
pub fn check(url: &SecretString) -> Result<(), &'static str> {
    Client::open(url.expose_secret()).map(drop).map_err(|_| NO_URL)
}

/// A connection that is opened when it is first used, and again when it was lost. An answer that takes longer than that
/// is not waited for.
///
/// # Errors
/// If the URL is none. It is not quoted, for it may hold a password.
pub fn connection(url: &SecretString, answer: Duration) -> anyhow::Result<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(answer))
        .set_number_of_retries(1)
        .set_max_delay(Duration::from_millis(500));
    let client = Client::open(url.expose_secret()).map_err(|_| anyhow::Error::msg(NO_URL))?;
    // What went wrong may quote the address.
    ConnectionManager::new_lazy_with_config(client, config)
        .map_err(|error| anyhow::anyhow!("prepare Redis: {:?}", error.kind()))
}
