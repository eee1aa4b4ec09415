//! SQL of the limits: the servers, and the accounts. The clock is the platform database's.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgPoolOptions;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::LimitsError;
use super::members::Member;
use crate::secrets::DatabaseUrl;

/// How long servers are remembered that have stopped: longer than anything they held is of interest.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// The connections that limits have of their own, so that neither waits for what else the platform's database is asked for:
/// a round of rates, what others are asked for in it, a round of quotas, a beat.
const CONNECTIONS: u32 = 4;
/// How long one is waited for.
const ACQUIRE: Duration = Duration::from_secs(2);

/// Accounts are locked from reading to writing. A machine that dies or freezes in between says no farewell, and Postgres
/// would keep its locks until the system's keepalive, for hours: all servers would wait. So the database breaks off
/// transactions in which nothing happens, and statements that wait for anybody else's locks, sooner than whoever waits
/// gives up; a connection whose answer nobody waits for any more is free again at once.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '1s'; SET lock_timeout = '1500ms'; \
    SET statement_timeout = '1900ms'; SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; \
    SET tcp_keepalives_count = 3";

/// See [`super::pool`].
pub(super) fn pool(url: &DatabaseUrl) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .after_connect(|connection, _| {
            Box::pin(async move { sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop) })
        })
        .connect_lazy_with(url.to_sqlx())
}

/// Says that a server is there, for the first time if `is_new`. Returns the time and all servers, or nothing if it was taken
/// for stopped, however long ago.
pub(super) async fn beat(
    pool: &PgPool,
    id: Uuid,
    name: &str,
    silence: Duration,
    is_new: bool,
) -> Result<Option<(i64, Vec<Member>)>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let alive = sqlx::query!(
        "INSERT INTO limit_servers (id, name, seen_at)
         SELECT $1, $2, clock_timestamp() WHERE $3 OR EXISTS (SELECT FROM limit_servers WHERE id = $1)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, seen_at = excluded.seen_at
         WHERE limit_servers.stopped_at IS NULL",
        id,
        name,
        is_new
    )
    .execute(&mut *transaction)
    .await?;
    if alive.rows_affected() == 0 {
        return Ok(None);
    }
    // Those whose place this server has taken are gone; those that have been silent for longer than they may use anything
    // have stopped. Rows that another server is at are seen to the next time.
    sqlx::query!(
        "WITH ended AS (
             SELECT id, name = $2 AS is_gone FROM limit_servers
             WHERE id <> $1 AND ((name = $2 AND NOT is_gone)
                OR (stopped_at IS NULL AND seen_at < clock_timestamp() - make_interval(secs => $3)))
             FOR UPDATE SKIP LOCKED
         )
         UPDATE limit_servers s SET stopped_at = COALESCE(s.stopped_at, clock_timestamp()), is_gone = ended.is_gone
         FROM ended WHERE s.id = ended.id",
        id,
        name,
        silence.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "DELETE FROM limit_servers WHERE stopped_at < clock_timestamp() - make_interval(secs => $1)",
        REMEMBERED.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    let rows = sqlx::query!(
        r#"SELECT id, (extract(epoch FROM seen_at) * 1000)::bigint AS "seen_at!",
                (extract(epoch FROM stopped_at) * 1000)::bigint AS stopped_at, is_gone,
                (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS "now!"
         FROM limit_servers"#
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let now = rows.iter().map(|row| row.now).max().unwrap_or_default();
    let members = rows
        .into_iter()
        .map(|row| Member { id: row.id, seen_at: row.seen_at, stopped_at: row.stopped_at, is_gone: row.is_gone })
        .collect();
    Ok(Some((now, members)))
}

/// A server has stopped, and tells no answers any more.
pub(super) async fn leave(pool: &PgPool, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE limit_servers SET stopped_at = COALESCE(stopped_at, clock_timestamp()), is_gone = true WHERE id = $1",
        id
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The accounts that are there of these, locked until the transaction ends. In one order, so that two servers wait for
/// each other in one direction only.
async fn lock_accounts(
    connection: &mut PgConnection,
    keys: &[String],
) -> Result<HashMap<String, serde_json::Value>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT key, account AS "account: Json<serde_json::Value>" FROM limit_accounts WHERE key = ANY ($1)
         ORDER BY key FOR UPDATE"#,
        keys
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.key, row.account.0)).collect())
}

/// An account as this server has written it.
#[derive(Debug, Clone)]
pub(super) struct Written<A> {
    pub(super) account: A,
    /// The transaction that wrote the row. Whoever writes it again, even the same, leaves another one there, and none comes
    /// a second time within four billion.
    version: i64,
}

/// What became of an account in an exchange.
#[derive(Debug)]
pub(super) struct Exchanged<A, R> {
    /// What settling it said.
    pub(super) result: R,
    pub(super) written: Written<A>,
    /// Whether another server had written it since this one did last.
    pub(super) is_shared: bool,
}

/// Lets each account be settled while nobody else can change it. Whoever asks next waits for that, so what is read is never
/// older than what was written, whatever became of an answer.
///
/// An account that nobody has written since this server did (`known`, by index) is settled in memory and written by one
/// statement, which does nothing if somebody has. So does one that was given up and comes late: whoever asked after it has
/// written the row. All others are read under a lock and written in one transaction.
pub(super) async fn exchange<A, R>(
    pool: &PgPool,
    keys: &[(String, Uuid)],
    known: Vec<Option<Written<A>>>,
    settle: &(impl Fn(usize, &mut A) -> R + Sync),
) -> Result<Vec<Exchanged<A, R>>, LimitsError>
where
    A: Serialize + DeserializeOwned + Default + Send,
    R: Send,
{
    let mut exchanged = BTreeMap::new();
    let was_known: Vec<bool> = known.iter().map(Option::is_some).collect();
    let settled = known.into_iter().enumerate().filter_map(|(index, written)| {
        let mut written = written?;
        let result = settle(index, &mut written.account);
        Some((index, Exchanged { result, written, is_shared: false }))
    });
    let settled: Vec<_> = settled.collect();
    if !settled.is_empty() {
        let mut versions = replace(pool, keys, &settled).await?;
        for (index, mut one) in settled {
            if let Some(version) = keys.get(index).and_then(|(key, _)| versions.remove(key)) {
                one.written.version = version;
                exchanged.insert(index, one);
            }
        }
    }
    let rest: Vec<usize> = (0..keys.len()).filter(|index| !exchanged.contains_key(index)).collect();
    if !rest.is_empty() {
        let names: Vec<_> = rest.iter().filter_map(|index| keys.get(*index).cloned()).collect();
        let settle = |index: usize, account: &mut A| settle(rest.get(index).copied().unwrap_or(usize::MAX), account);
        for (index, (result, written)) in rest.iter().zip(exchange_locked(pool, &names, &settle).await?) {
            let is_shared = was_known.get(*index).copied().unwrap_or_default();
            exchanged.insert(*index, Exchanged { result, written, is_shared });
        }
    }
    Ok(exchanged.into_values().collect())
}

/// Writes the accounts whose rows are still of the version that is known, and returns their new ones.
async fn replace<A: Serialize, R>(
    pool: &PgPool,
    keys: &[(String, Uuid)],
    settled: &[(usize, Exchanged<A, R>)],
) -> Result<HashMap<String, i64>, LimitsError> {
    let (mut names, mut versions, mut accounts) = (Vec::new(), Vec::new(), Vec::new());
    for (index, one) in settled {
        let Some((key, _)) = keys.get(*index) else { continue };
        names.push(key.clone());
        versions.push(one.written.version);
        accounts.push(Json(serde_json::to_value(&one.written.account).map_err(|_| LimitsError::Unreadable)?));
    }
    // Locked in one order, as above. Whoever waits for a lock looks at the version again.
    let rows = sqlx::query!(
        r#"WITH current AS (
             SELECT a.key, n.account FROM limit_accounts a
             JOIN UNNEST($1::text[], $2::bigint[], $3::jsonb[]) n (key, version, account) ON a.key = n.key
             WHERE a.xmin::text::bigint = n.version ORDER BY a.key FOR UPDATE OF a
         )
         UPDATE limit_accounts a SET account = c.account, updated_at = clock_timestamp()
         FROM current c WHERE a.key = c.key
         RETURNING a.key, a.xmin::text::bigint AS "version!""#,
        &names,
        &versions,
        &accounts as &[Json<serde_json::Value>]
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.key, row.version)).collect())
}

async fn exchange_locked<A, R>(
    pool: &PgPool,
    keys: &[(String, Uuid)],
    settle: &(impl Fn(usize, &mut A) -> R + Sync),
) -> Result<Vec<(R, Written<A>)>, LimitsError>
where
    A: Serialize + DeserializeOwned + Default + Send,
    R: Send,
{
    let mut transaction = pool.begin().await?;
    let names: Vec<String> = keys.iter().map(|(key, _)| key.clone()).collect();
    let mut found = lock_accounts(&mut transaction, &names).await?;
    let mut missing: Vec<(String, Uuid)> = keys.iter().filter(|(key, _)| !found.contains_key(key)).cloned().collect();
    if !missing.is_empty() {
        missing.sort_unstable();
        let (new, tenants): (Vec<String>, Vec<Uuid>) = missing.into_iter().unzip();
        sqlx::query!(
            "INSERT INTO limit_accounts (key, tenant_id, account, updated_at)
             SELECT n.key, n.tenant_id, 'null', clock_timestamp() FROM UNNEST($1::text[], $2::uuid[]) n (key, tenant_id)
             ORDER BY n.key ON CONFLICT (key) DO NOTHING",
            &new,
            &tenants
        )
        .execute(&mut *transaction)
        .await?;
        // Another server may have made it a moment ago.
        found.extend(lock_accounts(&mut transaction, &new).await?);
    }
    let (mut settled, mut accounts) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
    for (index, (key, _)) in keys.iter().enumerate() {
        let mut account = match found.remove(key) {
            None | Some(serde_json::Value::Null) => A::default(),
            Some(value) => serde_json::from_value(value).map_err(|_| LimitsError::Unreadable)?,
        };
        let result = settle(index, &mut account);
        accounts.push(Json(serde_json::to_value(&account).map_err(|_| LimitsError::Unreadable)?));
        settled.push((result, account));
    }
    let rows = sqlx::query!(
        r#"UPDATE limit_accounts a SET account = n.account, updated_at = clock_timestamp()
         FROM UNNEST($1::text[], $2::jsonb[]) n (key, account) WHERE a.key = n.key
         RETURNING a.key, a.xmin::text::bigint AS "version!""#,
        &names,
        &accounts as &[Json<serde_json::Value>]
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let versions: HashMap<String, i64> = rows.into_iter().map(|row| (row.key, row.version)).collect();
    let written = |(key, account): (&String, A)| Written { account, version: versions.get(key).copied().unwrap_or(-1) };
    Ok(names.iter().zip(settled).map(|(key, (result, account))| (result, written((key, account)))).collect())
}

/// Asks the servers that hold permits of this limit to give what they have free.
pub(super) async fn notify(pool: &PgPool, key: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_notify('freehold_limits', $1)", key).fetch_one(pool).await?;
    Ok(())
}

/// Forgets accounts that nobody holds anything of, and those of months long gone.
pub(super) async fn prune(pool: &PgPool, oldest_month: &str) -> Result<u64, sqlx::Error> {
    let pruned = sqlx::query!(
        "DELETE FROM limit_accounts
         WHERE (key LIKE 'rate:%' AND updated_at < clock_timestamp() - interval '1 day')
            OR (key LIKE 'quota:%' AND right(key, 7) < $1)",
        oldest_month
    )
    .execute(pool)
    .await?;
    Ok(pruned.rows_affected())
}

/// Forgets the accounts of a tenant that is gone.
pub(super) async fn forget(pool: &PgPool, tenant: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM limit_accounts WHERE tenant_id = $1", tenant).execute(pool).await?;
    Ok(())
}
