//! SQL of visitors.

use chrono::{DateTime, Utc};
use tokio_postgres::{Error, Row};

use crate::access::tenant_store::StoredUser;
use crate::tenant_db::{GenericClient, Transaction};

/// Counts one more, unless the limit is reached: then there is no row.
const COUNT: &str = "\
    INSERT INTO visitor_counts AS c (subject, period_start, count) VALUES ($1, $2, 1)
    ON CONFLICT (subject, period_start) DO UPDATE SET count = c.count + 1 WHERE c.count < $3
    RETURNING count";

const UNCOUNT: &str = "\
    UPDATE visitor_counts SET count = count - 1 WHERE subject = $1 AND period_start = $2 AND count > 0";

const COUNTED: &str = "SELECT count FROM visitor_counts WHERE subject = $1 AND period_start = $2";

const INSERT: &str = "\
    WITH visitor AS (
        INSERT INTO client_users (id, email, name, role, password_hash, created_at, updated_at)
        VALUES ($1, $2, $3, 'visitor', $4, $5, $5) RETURNING id
    )
    INSERT INTO visitors (user_id, created_at, expires_at) SELECT id, $5, $6 FROM visitor";

/// Some of those whose time is over, with all that is theirs. Whoever is being removed already is not waited for.
const REMOVE_EXPIRED: &str = "\
    DELETE FROM client_users WHERE role = 'visitor' AND id IN (
        SELECT user_id FROM visitors WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)";

const REMOVE_COUNTS: &str = "DELETE FROM visitor_counts WHERE period_start < $1";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[COUNT, UNCOUNT, COUNTED, INSERT, REMOVE_EXPIRED, REMOVE_COUNTS];

/// What is counted, and how far.
pub(super) struct Count {
    pub(super) subject: String,
    pub(super) period_start: DateTime<Utc>,
    pub(super) limit: u32,
}

/// Counts one more, and returns how many there are then; nothing if the limit is reached.
pub(super) async fn count(transaction: &Transaction<'_>, count: &Count) -> Result<Option<u32>, Error> {
    let statement = transaction.prepare_cached(COUNT).await?;
    let limit = i32::try_from(count.limit).unwrap_or(i32::MAX);
    let row = transaction.query_opt(&statement, &[&count.subject, &count.period_start, &limit]).await?;
    row.map(|row| counted(&row)).transpose()
}

/// Takes one back.
pub(super) async fn uncount(
    transaction: &Transaction<'_>,
    subject: &str,
    period_start: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = transaction.prepare_cached(UNCOUNT).await?;
    transaction.execute(&statement, &[&subject, &period_start]).await?;
    Ok(())
}

/// How many were counted.
pub(super) async fn counted_of(
    client: &impl GenericClient,
    subject: &str,
    period_start: DateTime<Utc>,
) -> Result<u32, Error> {
    let statement = client.prepare_cached(COUNTED).await?;
    let row = client.query_opt(&statement, &[&subject, &period_start]).await?;
    row.map_or(Ok(0), |row| counted(&row))
}

fn counted(row: &Row) -> Result<u32, Error> {
    Ok(u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or(0))
}

/// Stores a visitor.
pub(super) async fn insert(
    transaction: &Transaction<'_>,
    visitor: &StoredUser,
    expires_at: DateTime<Utc>,
) -> Result<(), Error> {
    let StoredUser { id, email, name, password_hash, created_at, .. } = visitor;
    let statement = transaction.prepare_cached(INSERT).await?;
    transaction.execute(&statement, &[id, email, name, password_hash, created_at, &expires_at]).await?;
    Ok(())
}

/// Removes some visitors whose time is over, and counts of long ago. Returns how many visitors it were.
pub(super) async fn remove_expired(
    transaction: &Transaction<'_>,
    now: DateTime<Utc>,
    counts_before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, Error> {
    let statement = transaction.prepare_cached(REMOVE_EXPIRED).await?;
    let removed = transaction.execute(&statement, &[&now, &limit]).await?;
    let statement = transaction.prepare_cached(REMOVE_COUNTS).await?;
    transaction.execute(&statement, &[&counts_before]).await?;
    Ok(removed)
}
