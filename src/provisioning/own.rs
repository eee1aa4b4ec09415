//! Databases that clients bring: claiming one, filling it, and leaving it as it was found.
//!
//! Such a database is the client's, and may hold what the client put there. So its first table is a marker that says
//! which tenant it belongs to and which operation claimed it, and everything here asks that marker first. Whatever is
//! taken back was noted as made by the very operation that takes it back, and never if somebody uses it already.
//!
//! Connections are the driver's own, not sqlx's: they keep to the addresses that the URL allows.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use postgres_protocol::escape::escape_identifier;
use sqlx::migrate::Migration;
use thiserror::Error;
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use super::migrations::{TENANT_MIGRATOR, TenantMigrations};
use crate::ids::{OperationId, TenantId};
use crate::secrets::{ConnectError, DatabaseUrl, connect};

/// The marker. One row: which instance the database belongs to.
pub const INSTANCE_TABLE: &str = "freehold_instance";
/// The migrator's own table; made by the claim, so that everything after it is on record.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";
/// The advisory lock of whoever changes a tenant's schema.
const LOCK: i64 = 0x6672_6565_6d69_6772;
const LOCK_POLL: Duration = Duration::from_millis(100);
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long each of these may take in all. The server's own limits are the client's to change: only a clock of ours ends
/// a statement that a client's server never answers.
const VISIT_LIMIT: Duration = Duration::from_secs(30);
const CLAIM_LIMIT: Duration = Duration::from_secs(90);
const MIGRATE_LIMIT: Duration = Duration::from_secs(900);

/// Why a client's database could not be claimed, filled or left.
#[derive(Debug, Error)]
pub enum OwnDatabaseError {
    /// It does not let us in.
    #[error("the client's database cannot be reached")]
    Unreachable(#[from] ConnectError),
    /// It refused a statement.
    #[error("the client's database refused a statement")]
    Statement(#[from] tokio_postgres::Error),
    /// Somebody else changes its schema.
    #[error("somebody else is changing the database's schema")]
    Held,
    /// It belongs to another tenant, or was claimed for this one at another time.
    #[error("the database belongs to another tenant, or was claimed before")]
    Taken,
    /// It holds tables of our names that we did not make.
    #[error("the database holds tables with names that Freehold uses")]
    ForeignTables,
    /// Somebody has an account in it: it is not ours to clear any more.
    #[error("the database is in use: it holds accounts, and is not cleared")]
    InUse,
    /// It did not answer in time.
    #[error("the client's database did not answer in time")]
    TimedOut,
    /// A migration in it is not the one of that version here.
    #[error("migration {0} was applied in another wording than this program's")]
    Altered(i64),
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, OwnDatabaseError>>,
) -> Result<T, OwnDatabaseError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(OwnDatabaseError::TimedOut))
}

/// What a migration creates, read from its own text. Tables are all that migrations make that is not part of a table.
fn tables_of(migration: &Migration) -> impl Iterator<Item = &str> {
    migration.sql.as_str().lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("CREATE TABLE ")?;
        let rest = rest.strip_prefix("IF NOT EXISTS ").unwrap_or(rest);
        rest.split([' ', '(']).next().filter(|name| !name.is_empty())
    })
}

/// The names of all tables that tenants' databases have, in the order of their creation.
pub fn tenant_tables() -> Vec<&'static str> {
    static TABLES: LazyLock<Vec<&'static str>> = LazyLock::new(|| TENANT_MIGRATOR.iter().flat_map(tables_of).collect());
    TABLES.clone()
}

/// Says of a database that it belongs to a tenant, unless it holds anything that could be taken for ours. Safe to
/// repeat by the same operation.
pub async fn claim(url: &DatabaseUrl, tenant: TenantId, operation: OperationId) -> Result<(), OwnDatabaseError> {
    within(CLAIM_LIMIT, put_claim(url, tenant, operation)).await
}

async fn put_claim(url: &DatabaseUrl, tenant: TenantId, operation: OperationId) -> Result<(), OwnDatabaseError> {
    let mut client = open(url).await?;
    let transaction = client.transaction().await?;
    match claimed_by(&transaction).await? {
        Some(found) if found == (tenant.as_uuid(), operation.as_uuid()) => return Ok(()),
        Some(_) => return Err(OwnDatabaseError::Taken),
        None => {}
    }
    let mut names = tenant_tables();
    names.extend([MIGRATIONS_TABLE, "chat_instances", "wrapped_keys"]);
    let sql = "SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY ($1) LIMIT 1";
    if transaction.query_opt(sql, &[&names]).await?.is_some() {
        return Err(OwnDatabaseError::ForeignTables);
    }
    let marker = format!(
        "CREATE TABLE {INSTANCE_TABLE} (
             only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
             instance_id uuid NOT NULL,
             claimed_by  uuid NOT NULL,
             claimed_at  timestamptz NOT NULL DEFAULT now()
         );
         COMMENT ON TABLE {INSTANCE_TABLE} IS 'Freehold: which instance this database belongs to. Do not change.';
         CREATE TABLE {MIGRATIONS_TABLE} (
             version        bigint PRIMARY KEY,
             description    text NOT NULL,
             installed_on   timestamptz NOT NULL DEFAULT now(),
             success        boolean NOT NULL,
             checksum       bytea NOT NULL,
             execution_time bigint NOT NULL
         );"
    );
    transaction.batch_execute(&marker).await?;
    let insert = format!("INSERT INTO {INSTANCE_TABLE} (instance_id, claimed_by) VALUES ($1, $2)");
    transaction.execute(&insert, &[&tenant.as_uuid(), &operation.as_uuid()]).await?;
    Ok(transaction.commit().await?)
}

/// Brings a claimed database to the current schema; returns its version. Safe to repeat.
pub async fn migrate(
    url: &DatabaseUrl,
    tenant: TenantId,
    migrations: &TenantMigrations,
) -> Result<i64, OwnDatabaseError> {
    within(MIGRATE_LIMIT, apply_migrations(url, tenant, migrations)).await
}

async fn apply_migrations(
    url: &DatabaseUrl,
    tenant: TenantId,
    migrations: &TenantMigrations,
) -> Result<i64, OwnDatabaseError> {
    let mut client = open(url).await?;
    if claimed_by(&client).await?.map(|(instance, _)| instance) != Some(tenant.as_uuid()) {
        return Err(OwnDatabaseError::Taken);
    }
    let sql = format!("SELECT version, checksum FROM {MIGRATIONS_TABLE} WHERE success");
    let applied = client.query(&sql, &[]).await?;
    for migration in migrations.iter() {
        let found = applied.iter().find(|row| row.try_get(0).is_ok_and(|version: i64| version == migration.version));
        match found {
            Some(row) if row.try_get::<_, &[u8]>(1)? == &*migration.checksum => continue,
            Some(_) => return Err(OwnDatabaseError::Altered(migration.version)),
            None => {}
        }
        let started = Instant::now();
        if migration.no_tx {
            // Only indexes of tables that are noted already are built like this, and they go with their tables.
            client.batch_execute(migration.sql.as_str()).await?;
        }
        let transaction = client.transaction().await?;
        if !migration.no_tx {
            transaction.batch_execute(migration.sql.as_str()).await?;
        }
        // Noted with the work, in one transaction: what is not on record was not made by us.
        let note = format!(
            "INSERT INTO {MIGRATIONS_TABLE} (version, description, success, checksum, execution_time)
             VALUES ($1, $2, true, $3, $4)"
        );
        let nanoseconds = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let description: &str = &migration.description;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&migration.version, &description, &&*migration.checksum, &nanoseconds];
        transaction.execute(&note, &values).await?;
        transaction.commit().await?;
    }
    Ok(migrations.current_version())
}

/// Takes back what an operation made, and nothing else: the database is then as it was found. Safe to repeat, and safe
/// where nothing was made.
pub async fn give_back(
    url: &DatabaseUrl,
    tenant: TenantId,
    operation: OperationId,
    migrations: &TenantMigrations,
) -> Result<(), OwnDatabaseError> {
    within(CLAIM_LIMIT, take_back(url, tenant, operation, migrations)).await
}

async fn take_back(
    url: &DatabaseUrl,
    tenant: TenantId,
    operation: OperationId,
    migrations: &TenantMigrations,
) -> Result<(), OwnDatabaseError> {
    let mut client = open(url).await?;
    let transaction = client.transaction().await?;
    if claimed_by(&transaction).await? != Some((tenant.as_uuid(), operation.as_uuid())) {
        return Ok(());
    }
    let versions = transaction.query(&format!("SELECT version FROM {MIGRATIONS_TABLE}"), &[]).await?;
    let versions = versions.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    let noted = migrations.iter().filter(|migration| versions.contains(&migration.version));
    let mut tables: Vec<&str> = noted.flat_map(tables_of).collect();
    if tables.contains(&"client_users")
        && transaction.query_opt("SELECT FROM client_users LIMIT 1", &[]).await?.is_some()
    {
        return Err(OwnDatabaseError::InUse);
    }
    tables.extend([MIGRATIONS_TABLE, INSTANCE_TABLE]);
    // Without CASCADE: what a client has built on them is not ours to drop, and makes this fail.
    let tables: Vec<String> = tables.into_iter().map(escape_identifier).collect();
    transaction.batch_execute(&format!("DROP TABLE {}", tables.join(", "))).await?;
    Ok(transaction.commit().await?)
}

/// Leaves a client's database to the client: the marker goes, so that it can be given to a tenant again once it has
/// been emptied; the data stays, for it is the client's. Safe to repeat.
pub async fn release(url: &DatabaseUrl, tenant: TenantId) -> Result<(), OwnDatabaseError> {
    within(VISIT_LIMIT, remove_marker(url, tenant)).await
}

async fn remove_marker(url: &DatabaseUrl, tenant: TenantId) -> Result<(), OwnDatabaseError> {
    let mut client = open(url).await?;
    let transaction = client.transaction().await?;
    if claimed_by(&transaction).await?.map(|(instance, _)| instance) == Some(tenant.as_uuid()) {
        transaction.batch_execute(&format!("DROP TABLE {INSTANCE_TABLE}")).await?;
    }
    Ok(transaction.commit().await?)
}

/// What tells one database from a copy of it: the server's identifier, if it tells it, and the database's number.
pub async fn identity(url: &DatabaseUrl) -> Result<(Option<String>, u32), OwnDatabaseError> {
    within(VISIT_LIMIT, read_identity(url)).await
}

async fn read_identity(url: &DatabaseUrl) -> Result<(Option<String>, u32), OwnDatabaseError> {
    let (client, _) = connect(url).await?;
    let oid: u32 =
        client.query_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[]).await?.try_get(0)?;
    // A managed service may keep the identifier to itself.
    let identifier = client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await;
    Ok((identifier.ok().and_then(|row| row.try_get(0).ok()), oid))
}

/// A connection of its own that holds the lock; both end together.
async fn open(url: &DatabaseUrl) -> Result<Client, OwnDatabaseError> {
    let (client, _) = connect(&url.with_application_name("freehold-migrate")).await?;
    client.batch_execute("SET search_path = public; SET lock_timeout = '10s'; SET statement_timeout = '60s'").await?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    // Polled, not awaited: a session that waits for a lock holds a snapshot, which others would wait for in turn.
    while !client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.try_get::<_, bool>(0)? {
        if Instant::now() > give_up {
            return Err(OwnDatabaseError::Held);
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(client)
}

/// The instance and the operation that the marker names, if there is a marker.
async fn claimed_by(client: &impl GenericClient) -> Result<Option<(Uuid, Uuid)>, OwnDatabaseError> {
    let exists = format!("SELECT FROM pg_class WHERE oid = to_regclass('public.{INSTANCE_TABLE}')");
    if client.query_opt(&exists, &[]).await?.is_none() {
        return Ok(None);
    }
    let row = client.query_opt(&format!("SELECT instance_id, claimed_by FROM {INSTANCE_TABLE}"), &[]).await;
    match row {
        Ok(row) => Ok(row.map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?),
        // A table of that name that is no marker of ours.
        Err(error) if error.as_db_error().is_some() => Err(OwnDatabaseError::ForeignTables),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_read_from_the_migrations() {
        let tables = tenant_tables();
        for name in ["client_users", "refresh_tokens", "live_configurations", "chat_messages"] {
            assert!(tables.contains(&name), "{name}");
        }
        assert!(tables.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{tables:?}");
    }
}
