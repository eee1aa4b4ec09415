//! The template database of a cluster: the tenant schema, migrated once and cloned for every tenant.
//!
//! Its name carries the schema's version, and it gets that name last: a database of that name is complete, and one
//! that a killed server left behind under the building name is dropped and built anew.

use std::time::{Duration, Instant};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use sqlx::migrate::Migrate;
use sqlx::{ConnectOptions, Connection};
use tokio_postgres::Client;

use super::catalog::{self, Catalog};
use super::migrations::TenantMigrations;
use super::{MIGRATIONS_TABLE, ProvisioningError};
use crate::secrets::{DatabaseUrl, connect};

/// Owns the tables in the template. A role of its own, so that handing everything over to a tenant's owner can be
/// one statement that touches nothing else.
pub(super) const OWNER_ROLE: &str = "freehold_template_owner";
const BUILDING: &str = "freehold_template_building";
/// A clone of the template to read its catalog from: nobody may connect to the template itself.
const READING: &str = "freehold_template_reading";
/// The advisory lock that keeps two servers from building at once; any number that nobody else uses.
pub(super) const LOCK: i64 = 0x6672_6565_686f_6c64;

/// How long a server waits for another one that builds the template.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection of its own that holds the lock: however this ends, a caller who leaves included, the connection goes and
/// the lock with it. A pooled one would take the lock back to the pool.
async fn lock(url: &DatabaseUrl) -> Result<Client, ProvisioningError> {
    let (holder, _) = connect(url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    let give_up = Instant::now() + PATIENCE;
    // Polled, not awaited: a session that waits for a lock holds a snapshot, which others would wait for in turn.
    while !holder.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.get::<_, bool>(0) {
        if Instant::now() > give_up {
            return Err(ProvisioningError::Migration(anyhow::anyhow!("another server builds it, and does not finish")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(holder)
}

pub(super) async fn ensure(
    admin: &Client,
    url: &DatabaseUrl,
    migrations: &TenantMigrations,
) -> Result<i64, ProvisioningError> {
    let name = migrations.template_name();
    if !exists(admin, &name).await? {
        let holder = lock(url).await?;
        if !exists(&holder, &name).await? {
            build(&holder, url, migrations).await?;
        }
    }
    Ok(migrations.current_version())
}

/// What the template's catalog holds: what a tenant's has to hold as well.
pub(super) async fn catalog(
    admin: &Client,
    url: &DatabaseUrl,
    migrations: &TenantMigrations,
) -> Result<Catalog, ProvisioningError> {
    ensure(admin, url, migrations).await?;
    if let Some(kept) = kept_catalog(admin, &migrations.template_name()).await? {
        return Ok(kept);
    }
    // Built by an earlier program, or by a server that has been upgraded since.
    let holder = lock(url).await?;
    let reading = escape_identifier(READING);
    // One that a killed server left behind is of no use: it may be of another version.
    holder.batch_execute(&format!("DROP DATABASE IF EXISTS {reading} WITH (FORCE)")).await?;
    let template = escape_identifier(&migrations.template_name());
    // PUBLIC has to stay out of the clone as well, and a new database lets it in.
    holder.batch_execute(&format!("CREATE DATABASE {reading} TEMPLATE {template} ALLOW_CONNECTIONS false")).await?;
    holder.batch_execute(&format!("REVOKE ALL ON DATABASE {reading} FROM PUBLIC")).await?;
    holder.batch_execute(&format!("ALTER DATABASE {reading} ALLOW_CONNECTIONS true")).await?;
    let read = async {
        let (client, _) =
            connect(&url.with_database(READING)).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
        Ok(catalog::read(&client).await?)
    };
    let read: Result<Catalog, ProvisioningError> = read.await;
    holder.batch_execute(&format!("DROP DATABASE IF EXISTS {reading} WITH (FORCE)")).await?;
    let read = read?;
    // Only the template's owner may; another administrator of the cluster reads it anew each time.
    if let Err(error) = keep_catalog(&holder, &migrations.template_name(), &read).await {
        tracing::debug!(%error, "keep the template's catalog");
    }
    Ok(read)
}

/// The catalog that was kept when the template was built, as the database's comment: nobody may connect to it to read it,
/// and removing a clone waits for a checkpoint.
async fn kept_catalog(admin: &Client, name: &str) -> Result<Option<Catalog>, ProvisioningError> {
    let sql = "SELECT shobj_description(oid, 'pg_database'), current_setting('server_version_num')::int4
               FROM pg_database WHERE datname = $1";
    let row = admin.query_one(sql, &[&name]).await?;
    let (text, version): (Option<String>, i32) = (row.get(0), row.get(1));
    Ok(text.and_then(|text| Catalog::from_text(&text, version)))
}

async fn keep_catalog(admin: &Client, name: &str, catalog: &Catalog) -> Result<(), ProvisioningError> {
    let version: i32 = admin.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.get(0);
    let Some(text) = catalog.to_text(version) else { return Ok(()) };
    let comment = format!("COMMENT ON DATABASE {} IS {}", escape_identifier(name), escape_literal(&text));
    Ok(admin.batch_execute(&comment).await?)
}

async fn exists(admin: &Client, name: &str) -> Result<bool, ProvisioningError> {
    let sql = "SELECT current_user::text, pg_has_role($2::name, 'USAGE') FROM pg_database WHERE datname = $1";
    match admin.query_opt(sql, &[&name, &OWNER_ROLE]).await? {
        None => Ok(false),
        Some(row) if row.get(1) => Ok(true),
        Some(row) => Err(ProvisioningError::Unsuitable(format!(
            "another role built the template on this cluster; let that role or a superuser run GRANT {OWNER_ROLE} TO {}",
            escape_identifier(row.get(0))
        ))),
    }
}

async fn build(admin: &Client, url: &DatabaseUrl, migrations: &TenantMigrations) -> Result<(), ProvisioningError> {
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
    migrate(url, migrations).await.map_err(ProvisioningError::Migration)?;
    let (client, _) =
        connect(&url.with_database(BUILDING)).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    let catalog = catalog::read(&client).await?;
    drop(client);
    keep_catalog(admin, BUILDING, &catalog).await?;
    admin.batch_execute(&format!("ALTER DATABASE {building} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true")).await?;
    let rename = format!("ALTER DATABASE {building} RENAME TO {}", escape_identifier(&migrations.template_name()));
    Ok(admin.batch_execute(&rename).await?)
}

async fn migrate(url: &DatabaseUrl, migrations: &TenantMigrations) -> anyhow::Result<()> {
    let options = url.with_database(BUILDING).to_sqlx();
    let mut connection = options.disable_statement_logging().connect().await?;
    let setup = format!(
        "GRANT ALL ON SCHEMA public TO {0}; REVOKE CREATE ON SCHEMA public FROM PUBLIC; SET ROLE {0}",
        escape_identifier(OWNER_ROLE)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(&mut connection).await?;
    // Nobody else knows this database: there is nothing to lock and nobody to be careful of.
    connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
    for migration in migrations.iter() {
        connection.apply(MIGRATIONS_TABLE, migration).await?;
    }
    connection.close().await?;
    Ok(())
}
