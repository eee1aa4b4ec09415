//! The template database of a cluster: the tenant schema, migrated once and cloned for every tenant.
//!
//! Its name carries the schema's version, and it gets that name last: a database of that name is complete, and one
//! that a killed server left behind under the building name is dropped and built anew.

use std::time::{Duration, Instant};

use postgres_protocol::escape::escape_identifier;
use sqlx::migrate::Migrator;
use sqlx::{ConnectOptions, Connection};
use tokio_postgres::Client;

use super::ProvisioningError;
use crate::secrets::{DatabaseUrl, connect};

/// The migrations of every tenant's database.
pub static TENANT_MIGRATOR: Migrator = sqlx::migrate!("./tenant-migrations");

/// Owns the tables in the template. A role of its own, so that handing everything over to a tenant's owner can be
/// one statement that touches nothing else.
pub(super) const OWNER_ROLE: &str = "freehold_template_owner";
const BUILDING: &str = "freehold_template_building";
/// The advisory lock that keeps two servers from building at once; any number that nobody else uses.
pub(super) const LOCK: i64 = 0x6672_6565_686f_6c64;

/// How long a server waits for another one that builds the template.
const PATIENCE: Duration = Duration::from_secs(60);

/// The version of the tenant schema that this server speaks.
pub fn current_schema_version() -> i64 {
    TENANT_MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

pub(super) fn name() -> String {
    format!("freehold_template_{}", current_schema_version())
}

pub(super) async fn ensure(admin: &Client, url: &DatabaseUrl) -> Result<i64, ProvisioningError> {
    if exists(admin).await? {
        return Ok(current_schema_version());
    }
    // A connection of its own holds the lock: however this ends, a caller who leaves included, the connection goes and
    // the lock with it. A pooled one would take the lock back to the pool.
    let (holder, _) = connect(url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    let give_up = Instant::now() + PATIENCE;
    // Polled, not awaited: a session that waits for a lock holds a snapshot, which others would wait for in turn.
    while !holder.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.get::<_, bool>(0) {
        if Instant::now() > give_up {
            return Err(ProvisioningError::Migration(anyhow::anyhow!("another server builds it, and does not finish")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if !exists(&holder).await? {
        build(&holder, url).await?;
    }
    Ok(current_schema_version())
}

async fn exists(admin: &Client) -> Result<bool, ProvisioningError> {
    let sql = "SELECT current_user::text, pg_has_role($2::name, 'USAGE') FROM pg_database WHERE datname = $1";
    match admin.query_opt(sql, &[&name(), &OWNER_ROLE]).await? {
        None => Ok(false),
        Some(row) if row.get(1) => Ok(true),
        Some(row) => Err(ProvisioningError::Unsuitable(format!(
            "another role built the template on this cluster; let that role or a superuser run GRANT {OWNER_ROLE} TO {}",
            escape_identifier(row.get(0))
        ))),
    }
}

async fn build(admin: &Client, url: &DatabaseUrl) -> Result<(), ProvisioningError> {
    let (owner, building) = (escape_identifier(OWNER_ROLE), escape_identifier(BUILDING));
    admin
        .batch_execute(&format!(
            "DO $do$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{OWNER_ROLE}') THEN
                     CREATE ROLE {owner} NOLOGIN;
                 END IF;
                 IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                     GRANT {owner} TO CURRENT_USER;
                 END IF;
             END $do$"
        ))
        .await?;
    if admin.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&BUILDING]).await?.is_some() {
        // A template cannot be dropped, and a server may have died right after declaring it one.
        admin.batch_execute(&format!("ALTER DATABASE {building} IS_TEMPLATE false")).await?;
        admin.batch_execute(&format!("DROP DATABASE {building} WITH (FORCE)")).await?;
    }
    admin.batch_execute(&format!("CREATE DATABASE {building} TEMPLATE template0 ENCODING 'UTF8'")).await?;
    admin.batch_execute(&format!("REVOKE ALL ON DATABASE {building} FROM PUBLIC")).await?;
    migrate(url).await.map_err(ProvisioningError::Migration)?;
    admin.batch_execute(&format!("ALTER DATABASE {building} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true")).await?;
    let rename = format!("ALTER DATABASE {building} RENAME TO {}", escape_identifier(&name()));
    Ok(admin.batch_execute(&rename).await?)
}

async fn migrate(url: &DatabaseUrl) -> anyhow::Result<()> {
    let options = url.with_database(BUILDING).to_sqlx();
    let mut connection = options.disable_statement_logging().connect().await?;
    let setup = format!(
        "GRANT ALL ON SCHEMA public TO {0}; REVOKE CREATE ON SCHEMA public FROM PUBLIC; SET ROLE {0}",
        escape_identifier(OWNER_ROLE)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(&mut connection).await?;
    // `run` takes anything to acquire a connection from, and its future is for that reason not known to be `Send`.
    TENANT_MIGRATOR.run_direct(None, &mut connection, false).await?;
    connection.close().await?;
    Ok(())
}
