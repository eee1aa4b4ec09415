//! What is in a tenant's database, counted and compared without knowing what it means.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::ProvisioningError;
use super::migrate::found_schema_version;
use super::own::INSTANCE_TABLE;
use crate::backup_archive::TableChecksum;

/// How values are written as text, whatever the server's, the database's or the role's settings: two databases with the
/// same rows must give the same checksums.
const PLAIN_TEXT: &str = "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres';
     SET LOCAL TimeZone = 'UTC'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex';
     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

/// A look at a tenant's database that does not move while others write. It lasts as long as the client's transaction.
#[derive(Debug)]
pub struct Snapshot {
    /// By this name another session sees the same.
    pub name: String,
    /// The server's version, for example 180006.
    pub server_version: i32,
    /// The version of the tenant schema.
    pub schema_version: i64,
    /// Schemas that are none of ours.
    pub foreign_schemas: Vec<String>,
    /// The tables and their checksums.
    pub tables: Vec<TableChecksum>,
}

impl Snapshot {
    /// Takes one on a connection that is used for nothing else; drop that when it is needed no more. It has to be one
    /// of the tenant's own role: rows written as text may run what the tenant made.
    pub async fn take(client: &Client) -> Result<Self, ProvisioningError> {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        client.batch_execute(PLAIN_TEXT).await?;
        let name = client.query_one("SELECT pg_export_snapshot()", &[]).await?.get(0);
        let foreign = "SELECT nspname::text FROM pg_namespace
                       WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('public', 'information_schema')";
        Ok(Self {
            name,
            server_version: server_version(client).await?,
            schema_version: found_schema_version(client).await?.unwrap_or(0),
            foreign_schemas: client.query(foreign, &[]).await?.iter().map(|row| row.get(0)).collect(),
            tables: sums(client).await?,
        })
    }
}

/// The server's version, for example 180006.
pub async fn server_version(client: &Client) -> Result<i32, ProvisioningError> {
    Ok(client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.get(0))
}

/// A checksum over all rows of each table, whatever their order.
pub async fn checksums(client: &Client) -> Result<Vec<TableChecksum>, ProvisioningError> {
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    client.batch_execute(PLAIN_TEXT).await?;
    let tables = sums(client).await?;
    client.batch_execute("COMMIT").await?;
    Ok(tables)
}

async fn sums(client: &Client) -> Result<Vec<TableChecksum>, ProvisioningError> {
    let sql = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
                 AND relname <> $1 ORDER BY relname COLLATE \"C\"";
    let mut tables = Vec::new();
    // A marker in a client's own database says whose that is, and would be wrong anywhere else.
    for row in client.query(sql, &[&INSTANCE_TABLE]).await? {
        let table: String = row.get(0);
        // The first eight bytes of each row's SHA-256, summed. MD5 would be refused where FIPS rules.
        let sql = format!(
            "SELECT count(*), COALESCE(sum(('x' || encode(substr(sha256(convert_to(freehold_row::text, 'UTF8')), 1, 8),
                        'hex'))::bit(64)::bigint::numeric), 0)::text
             FROM public.{} AS freehold_row",
            escape_identifier(&table)
        );
        let sum = client.query_one(&sql, &[]).await?;
        tables.push(TableChecksum { table, rows: sum.get(0), checksum: sum.get(1) });
    }
    Ok(tables)
}
