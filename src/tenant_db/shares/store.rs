//! SQL of the shares. The clock is the platform database's: servers' own need not agree.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Any number that no other lock of ours has.
const LOCK: i64 = 0x0066_7265_6568_6f6c;

/// A Freehold server's part of a budget as stored.
#[derive(Debug, Clone)]
pub struct Share {
    /// The database server.
    pub database_server: String,
    /// Whose it is.
    pub server_id: Uuid,
    /// What that one may have.
    pub granted: usize,
    /// What it had when it said so last.
    pub open: usize,
    /// When that was.
    pub beat_at: DateTime<Utc>,
}

/// A share to store.
pub(super) struct NewShare {
    pub(super) database_server: String,
    pub(super) granted: usize,
    pub(super) open: usize,
}

/// Lets nobody else look at shares or change them until the transaction ends.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Deletes shares of whoever served at the same place before.
pub(super) async fn delete_predecessors(
    connection: &mut PgConnection,
    name: &str,
    me: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM connection_shares WHERE name = $1 AND server_id <> $2", name, me)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes shares of servers that have said nothing for so long, unless the database has only just started: then
/// nobody could have said anything.
pub(super) async fn delete_silent(connection: &mut PgConnection, silence: Duration) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM connection_shares
         WHERE beat_at < clock_timestamp() - make_interval(secs => $1)
           AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => $1)",
        silence.as_secs_f64()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// All shares.
pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Share>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT database_server, server_id, granted, open, beat_at FROM connection_shares ORDER BY server_id"
    )
    .fetch_all(connection)
    .await?;
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    Ok(rows
        .into_iter()
        .map(|row| Share {
            database_server: row.database_server,
            server_id: row.server_id,
            granted: count(row.granted),
            open: count(row.open),
            beat_at: row.beat_at,
        })
        .collect())
}

/// Stores a server's shares, which are these and no others.
pub(super) async fn put(
    connection: &mut PgConnection,
    me: Uuid,
    name: &str,
    shares: &[NewShare],
) -> Result<(), sqlx::Error> {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let servers: Vec<_> = shares.iter().map(|share| share.database_server.clone()).collect();
    let granted: Vec<_> = shares.iter().map(|share| count(share.granted)).collect();
    let open: Vec<_> = shares.iter().map(|share| count(share.open)).collect();
    sqlx::query!("DELETE FROM connection_shares WHERE server_id = $1 AND NOT database_server = ANY($2)", me, &servers)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "INSERT INTO connection_shares (database_server, server_id, name, granted, open, beat_at)
         SELECT s.database_server, $1, $2, s.granted, s.open, clock_timestamp()
         FROM UNNEST($3::text[], $4::int[], $5::int[]) s (database_server, granted, open)
         ON CONFLICT (database_server, server_id)
         DO UPDATE SET granted = excluded.granted, open = excluded.open, name = excluded.name,
             beat_at = excluded.beat_at",
        me,
        name,
        &servers,
        &granted,
        &open
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Asks the others to say at once what they can spare.
pub(super) async fn notify(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_notify('freehold_shares', '')").fetch_one(connection).await?;
    Ok(())
}

/// Deletes a server's shares, and tells the others.
pub(super) async fn delete(pool: &PgPool, me: Uuid) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction).await?;
    sqlx::query!("DELETE FROM connection_shares WHERE server_id = $1", me).execute(&mut *transaction).await?;
    notify(&mut transaction).await?;
    transaction.commit().await
}
