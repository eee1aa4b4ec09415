//! Brings one tenant's database up to date, as the tenant itself, while it is in use.
//!
//! What keeps a live tenant from suffering: no statement waits longer than `lock_timeout` for a lock, for everybody who
//! comes after a waiting statement waits with it; none runs longer than `statement_timeout`. A migration that has to run
//! outside a transaction (`CREATE INDEX CONCURRENTLY`) waits for old transactions instead of blocking new ones, and has
//! a bound of its own. Two migrators exclude each other by an advisory lock that is polled: one that waited for it would
//! hold a snapshot, for which the other one's concurrent build would wait in turn, for ever.

use std::time::Duration;

use postgres_protocol::escape::escape_identifier;
use sqlx::migrate::{Migrate, MigrateError as SqlxMigrateError, Migration};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use thiserror::Error;
use tokio::time::Instant;

use super::MIGRATIONS_TABLE;
use super::migrations::TenantMigrations;
use crate::secrets::{CONNECT_TIMEOUT, DatabaseUrl, judge_address};

/// The advisory lock, in the tenant's own database, of whoever migrates it.
const LOCK: i64 = 0x6672_6565_6d69_6772;
/// How often a migrator looks whether the lock is free.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// How long it looks: another one is at it, and the tenant is better left to that.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The pause before the second try; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What is added to a limit that the server keeps, before a clock of ours ends the work: the server may be a client's, and
/// keep to nothing.
const SLACK: Duration = Duration::from_secs(30);

/// How a live tenant is protected.
#[derive(Debug, Clone, Copy)]
pub struct MigrateLimits {
    /// How long a statement waits for a lock; whoever comes after it waits as long.
    pub lock_timeout: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
    /// How long a statement outside a transaction may run, waiting for other transactions included.
    pub concurrent_timeout: Duration,
    /// How often it is tried where a lock was not to be had or the server was not ready.
    pub tries: u32,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was found; 0 for a database without any.
    pub from: i64,
    /// The version it has now.
    pub to: i64,
}

/// Why a database could not be migrated. Whatever was applied before stays, and is noted in the database.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// It does not answer.
    #[error("the database does not answer")]
    Unreachable(#[source] anyhow::Error),
    /// It does not let the tenant's own role in.
    #[error("the database does not accept the tenant's credential")]
    AccessDenied(#[source] anyhow::Error),
    /// Another migrator works on it.
    #[error("another migrator works on the database")]
    Held,
    /// A lock could not be had in time, often enough.
    #[error("migration {version} could not get a lock in time: the tenant's own work holds it")]
    LockTimeout {
        /// The migration.
        version: i64,
    },
    /// A statement ran too long.
    #[error("migration {version} ran longer than it may")]
    StatementTimeout {
        /// The migration.
        version: i64,
    },
    /// A migration that is applied there is not the one of that version here.
    #[error("migration {version} was applied in another wording than this program's")]
    Altered {
        /// The migration.
        version: i64,
    },
    /// A migration that is applied there is not known here.
    #[error("migration {version} was applied, and this program does not know it")]
    Unknown {
        /// The migration.
        version: i64,
    },
    /// A migration was refused; the message is the database's, without its detail, which quotes values.
    #[error("migration {version} was refused: {message} ({code})")]
    Refused {
        /// The migration.
        version: i64,
        /// The SQLSTATE.
        code: String,
        /// What the database said.
        message: String,
    },
    /// The connection was lost, or the migrator's own table could not be read.
    #[error("the database went away, or its table of migrations could not be read")]
    Broken(#[source] anyhow::Error),
}

/// Why a database could not be migrated, and how far it has come nevertheless.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct MigrateFailure {
    /// Why.
    #[source]
    pub error: MigrateError,
    /// How far; nothing if its version could not be read.
    pub reached: Option<Migrated>,
}

/// What a failed try means.
enum Trouble {
    /// It may go better a moment later.
    Passing(MigrateError),
    Lasting(MigrateError),
}

/// The highest version that a database has noted.
pub async fn found_schema_version(client: &tokio_postgres::Client) -> Result<Option<i64>, tokio_postgres::Error> {
    Ok(client.query_one("SELECT max(version) FROM public._sqlx_migrations", &[]).await?.get(0))
}

/// Brings a database to version `target`. Does nothing if it is there; safe to repeat whatever happened before.
pub async fn migrate_database(
    url: &DatabaseUrl,
    migrations: &TenantMigrations,
    target: i64,
    limits: &MigrateLimits,
) -> Result<Migrated, MigrateFailure> {
    let mut pause = FIRST_PAUSE;
    let mut tries = 0;
    let mut reached: Option<Migrated> = None;
    loop {
        tries += 1;
        let error = match try_once(url, migrations, target, limits, &mut reached).await {
            Ok(()) => return Ok(reached.unwrap_or(Migrated { from: target, to: target })),
            Err(Trouble::Passing(error)) if tries < limits.tries => error,
            Err(Trouble::Passing(error) | Trouble::Lasting(error)) => return Err(MigrateFailure { error, reached }),
        };
        tracing::debug!(%error, tries, "migrate tenant database");
        // Not all at the same moment again: tries that lose against each other would go on losing.
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn try_once(
    url: &DatabaseUrl,
    migrations: &TenantMigrations,
    target: i64,
    limits: &MigrateLimits,
    reached: &mut Option<Migrated>,
) -> Result<(), Trouble> {
    judge_address(url).await.map_err(|error| Trouble::Lasting(MigrateError::Unreachable(error.into())))?;
    let options = url.with_application_name("freehold-migrate").to_sqlx().disable_statement_logging();
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
    let mut connection = connecting
        .map_err(|_| Trouble::Lasting(MigrateError::Unreachable(anyhow::anyhow!("no answer in time"))))?
        .map_err(connect_trouble)?;
    // The lock goes with the connection, which is closed however this ends.
    within(LOCK_PATIENCE + SLACK, lock(&mut connection)).await?;
    let result = apply_pending(&mut connection, migrations, target, limits, reached).await;
    // Politely, so that the lock is free before the next one looks.
    drop(tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await);
    result
}

async fn within(limit: Duration, work: impl Future<Output = Result<(), Trouble>>) -> Result<(), Trouble> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silent()))
}

fn silent() -> Trouble {
    Trouble::Lasting(MigrateError::Broken(anyhow::anyhow!("no answer in time")))
}

/// How long a migration may take by our own clock: each of its statements may use up what the server grants it.
fn patience(migration: &Migration, limits: &MigrateLimits) -> Duration {
    let statements = u32::try_from(migration.sql.as_str().matches(';').count()).unwrap_or(u32::MAX).max(1);
    let each = if migration.no_tx { limits.concurrent_timeout } else { limits.statement_timeout };
    // An index that was left invalid is dropped first.
    each.saturating_mul(statements.saturating_add(2)).saturating_add(SLACK)
}

async fn lock(connection: &mut PgConnection) -> Result<(), Trouble> {
    // A database that is being dropped or moved must not keep us; nor a machine that died without a farewell the lock.
    let setup = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
                 SET search_path = public; SET statement_timeout = 30000";
    sqlx::raw_sql(setup).execute(&mut *connection).await.map_err(broken)?;
    // If we die in the middle of a long statement, the server notices and gives the lock back. Not every platform can.
    drop(sqlx::raw_sql("SET client_connection_check_interval = 2000").execute(&mut *connection).await);
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *connection)
            .await
            .map_err(broken)?;
        if locked {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(Trouble::Lasting(MigrateError::Held));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn apply_pending(
    connection: &mut PgConnection,
    migrations: &TenantMigrations,
    target: i64,
    limits: &MigrateLimits,
    reached: &mut Option<Migrated>,
) -> Result<(), Trouble> {
    let broken = |error: SqlxMigrateError| Trouble::Passing(MigrateError::Broken(error.into()));
    let reading = async {
        connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
        connection.list_applied_migrations(MIGRATIONS_TABLE).await
    };
    let applied = tokio::time::timeout(SLACK * 2, reading).await.map_err(|_| silent())?.map_err(broken)?;
    let version = applied.iter().map(|applied| applied.version).max().unwrap_or(0);
    let reached = reached.get_or_insert(Migrated { from: version, to: version });
    reached.to = version;
    for applied in &applied {
        match migrations.get(applied.version) {
            None => return Err(Trouble::Lasting(MigrateError::Unknown { version: applied.version })),
            Some(ours) if ours.checksum != applied.checksum => {
                return Err(Trouble::Lasting(MigrateError::Altered { version: applied.version }));
            }
            Some(_) => {}
        }
    }
    for migration in migrations.iter().filter(|migration| migration.version <= target) {
        if applied.iter().any(|applied| applied.version == migration.version) {
            continue;
        }
        within(patience(migration, limits), apply(connection, migration, limits)).await?;
        reached.to = reached.to.max(migration.version);
    }
    Ok(())
}

async fn apply(connection: &mut PgConnection, migration: &Migration, limits: &MigrateLimits) -> Result<(), Trouble> {
    let refused = |error| refused(migration.version, error);
    if migration.no_tx {
        drop_invalid_indexes(connection, migration, limits).await.map_err(refused)?;
    }
    // Outside a transaction, waiting for a lock is waiting for old transactions, and holds nobody up.
    let (lock, statement) = if migration.no_tx {
        (Duration::ZERO, limits.concurrent_timeout)
    } else {
        (limits.lock_timeout, limits.statement_timeout)
    };
    set_timeouts(connection, lock, statement).await.map_err(refused)?;
    connection.apply(MIGRATIONS_TABLE, migration).await.map(drop).map_err(|error| match error {
        SqlxMigrateError::Execute(error) | SqlxMigrateError::ExecuteMigration(error, _) => refused(error),
        other => Trouble::Passing(MigrateError::Broken(other.into())),
    })
}

async fn set_timeouts(connection: &mut PgConnection, lock: Duration, statement: Duration) -> Result<(), sqlx::Error> {
    let sql = format!("SET lock_timeout = {}; SET statement_timeout = {}", lock.as_millis(), statement.as_millis());
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// A concurrent build that was killed leaves an index that costs every write and helps no query, under the name that the
/// repeated build needs. Only what the migration itself names is dropped, and nothing that somebody is building now.
async fn drop_invalid_indexes(
    connection: &mut PgConnection,
    migration: &Migration,
    limits: &MigrateLimits,
) -> Result<(), sqlx::Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relnamespace = 'public'::regnamespace
           AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)",
    )
    .fetch_all(&mut *connection)
    .await?;
    for name in names.iter().filter(|name| migration.sql.as_str().contains(name.as_str())) {
        tracing::info!(index = name, version = migration.version, "drop invalid index");
        set_timeouts(connection, Duration::ZERO, limits.concurrent_timeout).await?;
        let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS public.{}", escape_identifier(name));
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
    }
    Ok(())
}

fn connect_trouble(error: sqlx::Error) -> Trouble {
    match code(&error).as_deref() {
        // Starting up or shutting down, or every connection of the server is taken: a moment later it may do.
        Some("57P03" | "53300" | "57P01") => Trouble::Passing(MigrateError::Unreachable(error.into())),
        Some(_) => Trouble::Lasting(MigrateError::AccessDenied(error.into())),
        None => Trouble::Lasting(MigrateError::Unreachable(error.into())),
    }
}

fn broken(error: sqlx::Error) -> Trouble {
    Trouble::Passing(MigrateError::Broken(error.into()))
}

fn refused(version: i64, error: sqlx::Error) -> Trouble {
    let Some(database) = error.as_database_error() else { return broken(error) };
    let code = database.code().unwrap_or_default().into_owned();
    match code.as_str() {
        // A lock was not to be had, or only against another one: the transaction is undone, and may come again.
        "55P03" | "40P01" | "40001" => Trouble::Passing(MigrateError::LockTimeout { version }),
        "57P01" | "57P02" | "57P03" => broken(error),
        "57014" => Trouble::Lasting(MigrateError::StatementTimeout { version }),
        _ => {
            let message = database.message().chars().take(300).collect();
            Trouble::Lasting(MigrateError::Refused { version, code, message })
        }
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
