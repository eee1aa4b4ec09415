//! The platform's own database: its pool, its schema, and the notifications that other servers send through it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ids::{OperationId, TenantId};
use crate::secrets::DatabaseUrl;

/// After how long without a notification a listener makes sure that it would hear one.
const QUIET: Duration = Duration::from_secs(5);
/// How long the database may take to answer a listener.
const ANSWER: Duration = Duration::from_secs(3);

/// The migrations of the platform's database.
pub static MIGRATOR: Migrator = sqlx::migrate!("./platform-migrations");

/// A pool for the platform's database. Opens its first connection when it is needed.
pub fn pool(url: &DatabaseUrl, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(url.to_sqlx())
}

/// Brings the schema up to date, that of the job queue included. Safe to run on several servers at once.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    MIGRATOR.run(pool).await?;
    let database = graphile_worker::Database::from(pool.clone());
    graphile_worker::WorkerUtils::new(database, graphile_worker::Schema::default()).migrate().await?;
    Ok(())
}

/// The version of the schema that this server needs.
pub fn required_schema_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The version of the schema that the database has; 0 before the first migration.
pub async fn schema_version(pool: &PgPool) -> Result<i64, sqlx::Error> {
    // Not a checked macro: the table belongs to the migrator and is not there before its first run.
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    if !exists {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT COALESCE(max(version), 0) FROM _sqlx_migrations WHERE success").fetch_one(pool).await
}

/// What a server may hear from the platform's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// A tenant's registry record changed.
    Registry(TenantId),
    /// An operation moved.
    Operation(OperationId),
    /// The models that the owner lends have changed.
    SharedModels,
    /// A server has less than its part of the connections.
    Shares,
    /// A server wants more of the limit with this key, and others have some free.
    Limits(Arc<str>),
    /// The connection was lost for a while: anything may have changed.
    Missed,
}

/// Listens to the platform's database until `stop`, and passes on what it hears. Comes back by itself when the
/// database does.
pub async fn listen(pool: PgPool, sender: broadcast::Sender<Notification>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            result = listen_once(&pool, &sender) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "listen to the platform database");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

async fn listen_once(pool: &PgPool, sender: &broadcast::Sender<Notification>) -> Result<(), sqlx::Error> {
    let connecting = timeout(ANSWER, PgListener::connect_with(pool)).await;
    let mut listener = connecting.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    // By itself it would connect again and say nothing of what it has missed.
    listener.eager_reconnect(false);
    let channels =
        ["freehold_registry", "freehold_operations", "freehold_shares", "freehold_shared_models", "freehold_limits"];
    listener.listen_all(channels).await?;
    // Whatever happened before the LISTEN took effect was not heard.
    let _ = sender.send(Notification::Missed);
    loop {
        let Ok(received) = timeout(QUIET, listener.try_recv()).await else {
            // A line that went silent looks like one on which nothing happens.
            let answer = timeout(ANSWER, sqlx::query("SELECT 1").execute(&mut listener)).await;
            answer.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
            continue;
        };
        let Some(heard) = received? else { return Ok(()) };
        let id = heard.payload().parse().ok();
        let notification = match (heard.channel(), id) {
            ("freehold_registry", Some(id)) => Notification::Registry(TenantId::from_uuid(id)),
            ("freehold_shares", _) => Notification::Shares,
            ("freehold_limits", _) => Notification::Limits(heard.payload().into()),
            ("freehold_shared_models", _) => Notification::SharedModels,
            ("freehold_operations", Some(id)) => Notification::Operation(OperationId::from_uuid(id)),
            _ => continue,
        };
        // Nobody listening within the server is no error.
        let _ = sender.send(notification);
    }
}
