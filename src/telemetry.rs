//! Structured logs: one line an event, with the request's id and tenant, for people or as JSON.
//!
//! What may be logged: ids, slugs, codes, durations. What may not: secrets, message contents, e-mail addresses, SQL
//! parameters. `LOGGING` in `CONTRIBUTING.md` says how to write an event.

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Starts logging to standard error. `RUST_LOG` chooses levels; without it, `info` for Freehold and `warn` for the
/// libraries. Does nothing if logging has been started.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,freehold=info"));
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_logged));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_current_span(true)).try_init(),
    };
    // A second start is a test's; the first stays.
    drop(started);
}

/// An error with all its causes, for the log. Of what a database says only message and code are kept: the rest may
/// quote values.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut all = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let database = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.as_db_error());
        all.push(match database {
            Some(database) => format!("{} ({})", database.message(), database.code().code()),
            None => error.to_string(),
        });
        cause = error.source();
    }
    all.join(": ")
}

/// Libraries that log parameters, statements or headers at their most talkative levels: those levels stay off,
/// whatever `RUST_LOG` says.
const DISCREET: &[&str] = &["tokio_postgres", "postgres_protocol", "sqlx", "hyper", "h2", "rustls", "reqwest"];

fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let library = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !DISCREET.contains(&library)
}
