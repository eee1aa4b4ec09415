//! What a server says of itself, asked from its catalogs in as few round trips as possible.

use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::ids::TenantId;
use crate::provisioning::{INSTANCE_TABLE, tenant_tables};

/// What a server says of itself, of the database and of the role that asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Facts {
    /// For example 170005.
    pub version_number: u32,
    pub(super) in_recovery: bool,
    pub(super) read_only: bool,
    pub(super) encoding: String,
    pub(super) superuser: bool,
    pub(super) may_provision: bool,
    pub(super) create_on_schema: bool,
    pub(super) create_on_database: bool,
    pub(super) current_schema: Option<String>,
    pub(super) vector_available: bool,
    pub(super) vector_installed: bool,
    pub(super) max_connections: i64,
    pub(super) reserved_connections: i64,
    pub(super) used_connections: i64,
    pub(super) role_limit: i64,
    pub(super) role_used: i64,
    pub(super) database_limit: i64,
    pub(super) database_used: i64,
    /// Seconds since 1970, by the server's clock.
    pub(super) clock: f64,
    /// Milliseconds; 0 is none.
    pub(super) statement_timeout: i64,
    pub(super) event_triggers: bool,
    /// Tables of Freehold's names that are there.
    pub(super) tables: Vec<String>,
    /// Those of them that the role may not alter.
    pub(super) tables_of_others: Vec<String>,
    /// Those of them with row security.
    pub(super) tables_with_row_security: Vec<String>,
    pub(super) has_marker: bool,
    /// Tables that only a platform's own database has.
    pub(super) platform_tables: bool,
}

impl Facts {
    /// Whether the database says that it belongs to an instance; whose it is was judged.
    pub fn holds_an_instance(&self) -> bool {
        self.has_marker
    }
}

/// Which tenant the database says it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// It says nothing.
    None,
    /// This one.
    Tenant(TenantId),
    /// There is a table of the marker's name that is none, or cannot be read.
    Unreadable,
}

/// The first column of the first row, as text. A simple query, which no pooler can spoil.
pub(super) async fn text(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// The shortest of three round trips.
pub(super) async fn latency(client: &Client) -> Result<Duration, tokio_postgres::Error> {
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        client.simple_query("").await?;
        shortest = shortest.min(started.elapsed());
    }
    Ok(shortest)
}

/// Asks for everything at once. The catalogs that it reads are open to every role. `None` if what answers cannot be
/// PostgreSQL, whose document it would be.
pub(super) async fn ask(client: &Client) -> Result<Option<Facts>, tokio_postgres::Error> {
    let answer = text(client, &statement()).await?;
    Ok(answer.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The names stand in the statement as they are: they are constants of ours, made of letters and underscores.
fn statement() -> String {
    let names = tenant_tables().into_iter().chain(["_sqlx_migrations"]);
    let names = names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    format!(
        "WITH role AS (SELECT * FROM pg_roles WHERE rolname = current_user),
              ours AS (
                  SELECT c.relname, c.relowner, c.relrowsecurity FROM pg_class c
                  JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = 'public' AND c.relname IN ({names}) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
              )
         SELECT json_build_object(
             'version_number', current_setting('server_version_num')::int,
             'in_recovery', pg_is_in_recovery(),
             'read_only', current_setting('transaction_read_only') = 'on',
             'encoding', (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()),
             'superuser', (SELECT rolsuper FROM role),
             'may_provision', (SELECT rolsuper OR (rolcreatedb AND rolcreaterole) FROM role),
             'create_on_schema', COALESCE(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'), false),
             'create_on_database', has_database_privilege(current_database(), 'CREATE'),
             'current_schema', current_schema(),
             'vector_available', EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector'),
             'vector_installed', EXISTS (SELECT FROM pg_extension WHERE extname = 'vector'),
             'max_connections', current_setting('max_connections')::int,
             'reserved_connections', current_setting('superuser_reserved_connections')::int
                 + COALESCE(current_setting('reserved_connections', true), '0')::int,
             'used_connections', (SELECT COALESCE(sum(numbackends), 0) FROM pg_stat_database),
             'role_limit', (SELECT rolconnlimit FROM role),
             'role_used', (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user),
             'database_limit', (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
             'database_used', (SELECT numbackends FROM pg_stat_database WHERE datname = current_database()),
             'clock', extract(epoch FROM clock_timestamp()),
             'statement_timeout', (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'),
             'event_triggers', EXISTS (SELECT FROM pg_event_trigger WHERE evtenabled <> 'D'
                                       AND evtevent IN ('ddl_command_start', 'ddl_command_end')),
             'tables', (SELECT COALESCE(json_agg(relname ORDER BY relname), '[]') FROM ours),
             'tables_of_others', (SELECT COALESCE(json_agg(relname ORDER BY relname), '[]') FROM ours
                                  WHERE NOT pg_has_role(relowner, 'USAGE')),
             'tables_with_row_security', (SELECT COALESCE(json_agg(relname ORDER BY relname), '[]') FROM ours
                                          WHERE relrowsecurity),
             'has_marker', to_regclass('public.{INSTANCE_TABLE}') IS NOT NULL,
             'platform_tables', to_regclass('public.chat_instances') IS NOT NULL
                 AND to_regclass('public.wrapped_keys') IS NOT NULL
         )::text"
    )
}

/// Reads which tenant the database belongs to.
pub(super) async fn marker(client: &Client) -> Result<Marker, tokio_postgres::Error> {
    let sql = format!("SELECT instance_id::text FROM public.{INSTANCE_TABLE} LIMIT 1");
    match text(client, &sql).await {
        Ok(Some(id)) => Ok(id.parse().map_or(Marker::Unreadable, Marker::Tenant)),
        Ok(None) => Ok(Marker::None),
        Err(error)
            if matches!(
                error.code(),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE | &SqlState::UNDEFINED_COLUMN | &SqlState::UNDEFINED_TABLE)
            ) =>
        {
            Ok(Marker::Unreadable)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
impl Facts {
    /// A database that has nothing wrong with it.
    pub(super) fn faultless() -> Self {
        Self {
            version_number: 170_005,
            in_recovery: false,
            read_only: false,
            encoding: "UTF8".to_owned(),
            superuser: false,
            may_provision: false,
            create_on_schema: true,
            create_on_database: true,
            current_schema: Some("public".to_owned()),
            vector_available: true,
            vector_installed: true,
            max_connections: 100,
            reserved_connections: 3,
            used_connections: 5,
            role_limit: -1,
            role_used: 1,
            database_limit: -1,
            database_used: 1,
            clock: 1_790_000_000.0,
            statement_timeout: 0,
            event_triggers: false,
            tables: Vec::new(),
            tables_of_others: Vec::new(),
            tables_with_row_security: Vec::new(),
            has_marker: false,
            platform_tables: false,
        }
    }
}
