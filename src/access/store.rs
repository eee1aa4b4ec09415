//! SQL of `super_admins`, `user_sessions` and the platform's `sign_in_attempts`.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;

use super::sign_in_throttle::{Attempt, Subject, WAITS};
use super::super_admins::Session;
use crate::audit::{self, Actor, Event};
use crate::ids::{PlatformSessionId, SuperAdminId};
use crate::secrets::HashedToken;

/// Returns whether the admin is new.
pub(super) async fn insert_admin(
    pool: &PgPool,
    id: SuperAdminId,
    email: &str,
    password_hash: &str,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let inserted = sqlx::query!(
        "INSERT INTO super_admins (id, email, password_hash, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (email) DO NOTHING",
        id.as_uuid(),
        email,
        password_hash,
        now
    )
    .execute(&mut *transaction)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    let event = Event {
        actor: Actor::System,
        action: "super_admin.create",
        tenant_id: None,
        detail: json!({ "super_admin_id": id }),
    };
    audit::record(&mut transaction, &event, now).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Stores another password of an admin's, ends their sessions and forgets failed attempts. Returns how many sessions
/// were ended, if there is such an admin.
pub(super) async fn set_admin_password(
    pool: &PgPool,
    email: &str,
    password_hash: &str,
    subject: Subject,
    now: DateTime<Utc>,
) -> Result<Option<u64>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    // A sign-in with the former password holds the row until its session is stored, and is ended below; one that comes
    // later finds another hash than it verified.
    let changed = sqlx::query_scalar!(
        "UPDATE super_admins SET password_hash = $2 WHERE email = $1 RETURNING id",
        email,
        password_hash
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(id) = changed else { return Ok(None) };
    let ended = sqlx::query!(
        "UPDATE user_sessions SET revoked_at = $2 WHERE super_admin_id = $1 AND revoked_at IS NULL AND expires_at > $2",
        id,
        now
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    sqlx::query!("DELETE FROM sign_in_attempts WHERE subject = $1", subject.as_bytes())
        .execute(&mut *transaction)
        .await?;
    let event = Event {
        actor: Actor::System,
        action: "super_admin.set_password",
        tenant_id: None,
        detail: json!({ "super_admin_id": id, "sessions_ended": ended }),
    };
    audit::record(&mut transaction, &event, now).await?;
    transaction.commit().await?;
    Ok(Some(ended))
}

/// What became of an account that was to be removed.
pub(super) enum Removal {
    Removed,
    Absent,
    Last,
}

/// Removes an admin, and with the account its sessions. The last one only if `last_too`.
pub(super) async fn remove_admin(
    pool: &PgPool,
    email: &str,
    last_too: bool,
    now: DateTime<Utc>,
) -> Result<Removal, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    // All rows, always in the same order: of two who remove the last two at once, one has to see what the other did.
    let all =
        sqlx::query!("SELECT id, email FROM super_admins ORDER BY id FOR UPDATE").fetch_all(&mut *transaction).await?;
    let Some(admin) = all.iter().find(|admin| admin.email == email) else { return Ok(Removal::Absent) };
    if all.len() == 1 && !last_too {
        return Ok(Removal::Last);
    }
    sqlx::query!("DELETE FROM super_admins WHERE id = $1", admin.id).execute(&mut *transaction).await?;
    let event = Event {
        actor: Actor::System,
        action: "super_admin.remove",
        tenant_id: None,
        detail: json!({ "super_admin_id": admin.id }),
    };
    audit::record(&mut transaction, &event, now).await?;
    transaction.commit().await?;
    Ok(Removal::Removed)
}

/// An admin's id and password hash.
pub(super) async fn find_admin(pool: &PgPool, email: &str) -> Result<Option<(SuperAdminId, String)>, sqlx::Error> {
    let row =
        sqlx::query!("SELECT id, password_hash FROM super_admins WHERE email = $1", email).fetch_optional(pool).await?;
    Ok(row.map(|row| (SuperAdminId::from_uuid(row.id), row.password_hash)))
}

/// A session as it is stored.
pub(super) struct StoredSession<'a> {
    pub(super) id: PlatformSessionId,
    pub(super) super_admin_id: SuperAdminId,
    pub(super) token_hash: HashedToken,
    pub(super) user_agent: Option<&'a str>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) expires_at: DateTime<Utc>,
}

/// Stores a session if the password that was checked is still the admin's, and forgets the account's failed attempts.
/// Returns whether it was stored.
pub(super) async fn start_session(
    pool: &PgPool,
    session: &StoredSession<'_>,
    password_hash: &str,
    subject: Subject,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let inserted = sqlx::query!(
        "INSERT INTO user_sessions (id, super_admin_id, token_hash, user_agent, created_at, expires_at)
         SELECT $1, id, $3, $4, $5, $6 FROM super_admins WHERE id = $2 AND password_hash = $7 FOR SHARE",
        session.id.as_uuid(),
        session.super_admin_id.as_uuid(),
        session.token_hash.as_bytes(),
        session.user_agent,
        session.created_at,
        session.expires_at,
        password_hash
    )
    .execute(&mut *transaction)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query!("DELETE FROM sign_in_attempts WHERE subject = $1", subject.as_bytes())
        .execute(&mut *transaction)
        .await?;
    let event = session_event("session.create", session.super_admin_id, session.id);
    audit::record(&mut transaction, &event, session.created_at).await?;
    transaction.commit().await?;
    Ok(true)
}

fn session_event(action: &'static str, admin: SuperAdminId, session: PlatformSessionId) -> Event<'static> {
    Event { actor: Actor::SuperAdmin(admin), action, tenant_id: None, detail: json!({ "session_id": session }) }
}

/// The session in force that a token belongs to.
pub(super) async fn find_session(
    pool: &PgPool,
    token_hash: &HashedToken,
    now: DateTime<Utc>,
) -> Result<Option<(PlatformSessionId, SuperAdminId, String)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT s.id, s.super_admin_id, a.email FROM user_sessions s JOIN super_admins a ON a.id = s.super_admin_id
         WHERE s.token_hash = $1 AND s.revoked_at IS NULL AND s.expires_at > $2",
        token_hash.as_bytes(),
        now
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (PlatformSessionId::from_uuid(row.id), SuperAdminId::from_uuid(row.super_admin_id), row.email)))
}

/// An admin's sessions in force, newest first.
pub(super) async fn list_sessions(
    pool: &PgPool,
    admin: SuperAdminId,
    now: DateTime<Utc>,
) -> Result<Vec<Session>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT id, user_agent, created_at, expires_at FROM user_sessions
         WHERE super_admin_id = $1 AND revoked_at IS NULL AND expires_at > $2
         ORDER BY created_at DESC, id DESC",
        admin.as_uuid(),
        now
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Session {
            id: PlatformSessionId::from_uuid(row.id),
            user_agent: row.user_agent,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
        .collect())
}

/// Revokes one of an admin's sessions. Returns whether there was such a session in force.
pub(super) async fn revoke_session(
    pool: &PgPool,
    admin: SuperAdminId,
    session: PlatformSessionId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let revoked = sqlx::query!(
        "UPDATE user_sessions SET revoked_at = $3
         WHERE id = $1 AND super_admin_id = $2 AND revoked_at IS NULL AND expires_at > $3",
        session.as_uuid(),
        admin.as_uuid(),
        now
    )
    .execute(&mut *transaction)
    .await?;
    if revoked.rows_affected() == 0 {
        return Ok(false);
    }
    audit::record(&mut transaction, &session_event("session.revoke", admin, session), now).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Counts an attempt unless the account is locked. Returns the count if it was counted.
pub(super) async fn count_attempt(pool: &PgPool, attempt: &Attempt) -> Result<Option<i32>, sqlx::Error> {
    // The same statement as in the tenants' databases: see `tenant_store::COUNT_ATTEMPT`.
    sqlx::query_scalar!(
        "INSERT INTO sign_in_attempts AS a (subject, failures, last_attempt) VALUES ($1, 1, $2)
         ON CONFLICT (subject) DO UPDATE
         SET failures = CASE WHEN a.last_attempt < $3 THEN 1 ELSE a.failures + 1 END, last_attempt = $2
         WHERE ($4::int[])[LEAST(a.failures, cardinality($4::int[]))] = 0
            OR a.last_attempt + make_interval(secs => ($4::int[])[LEAST(a.failures, cardinality($4::int[]))]) <= $2
         RETURNING failures",
        attempt.subject.as_bytes(),
        attempt.now,
        attempt.forget_before,
        &WAITS[..]
    )
    .fetch_optional(pool)
    .await
}

/// Records that somebody keeps guessing at an account, unless `at_most` such events were recorded since `since`.
pub(super) async fn record_guessing(
    pool: &PgPool,
    subject: Subject,
    failures: i32,
    (at_most, since): (i64, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let recorded = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
             SELECT FROM audit_events WHERE actor_kind = 'anonymous' AND at > $1 LIMIT $2
         ) AS recent"#,
        since,
        at_most
    )
    .fetch_one(pool)
    .await?;
    if recorded >= at_most {
        return Ok(());
    }
    let detail = json!({ "address_sha256": hex::encode(subject.as_bytes()), "failures": failures });
    let event = Event { actor: Actor::Anonymous, action: "session.refuse", tenant_id: None, detail };
    audit::record(&mut *pool.acquire().await?, &event, now).await
}

/// Forgets counts that nothing was added to since `before`, which stand against nobody any more.
pub(super) async fn prune_attempts(pool: &PgPool, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let pruned = sqlx::query!("DELETE FROM sign_in_attempts WHERE last_attempt < $1", before).execute(pool).await?;
    Ok(pruned.rows_affected())
}

/// Forgets sessions that ended before `before`.
pub(super) async fn prune_sessions(pool: &PgPool, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let pruned = sqlx::query!("DELETE FROM user_sessions WHERE LEAST(revoked_at, expires_at) < $1", before)
        .execute(pool)
        .await?;
    Ok(pruned.rows_affected())
}

/// Whether a session is in force.
pub(super) async fn is_in_force(
    pool: &PgPool,
    session: PlatformSessionId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM user_sessions WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2
         ) AS "in_force!""#,
        session.as_uuid(),
        now
    )
    .fetch_one(pool)
    .await
}

/// The count that stands against an account, and when it was last raised.
pub(super) async fn find_attempts(
    pool: &PgPool,
    subject: Subject,
) -> Result<Option<(i32, DateTime<Utc>)>, sqlx::Error> {
    let row =
        sqlx::query!("SELECT failures, last_attempt FROM sign_in_attempts WHERE subject = $1", subject.as_bytes())
            .fetch_optional(pool)
            .await?;
    Ok(row.map(|row| (row.failures, row.last_attempt)))
}
