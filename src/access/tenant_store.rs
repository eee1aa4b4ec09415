//! SQL of a tenant's users, invites, refresh tokens and sign-in attempts.

use chrono::{DateTime, Utc};
use tokio_postgres::{Error, Row};

use super::invites::NewInvite;
use super::sign_in_throttle::{Attempt, Subject, WAITS};
use super::tokens::ActiveUser;
use super::users::User;
use crate::api::tenant::Role;
use crate::ids::{RefreshFamilyId, UserId};
use crate::secrets::HashedToken;
use crate::tenant_db::GenericClient;

/// A user's address, name and role, if the user is enabled and the family of refresh tokens is in force: no row means
/// that an access token, though properly signed, proves nothing any more. `$1` is the user's id, `$2` the family's.
pub const ACTIVE_USER: &str = "\
    SELECT u.email, u.name, u.role FROM client_users u JOIN refresh_families f ON f.user_id = u.id
    WHERE u.id = $1 AND f.id = $2 AND u.disabled_at IS NULL AND f.revoked_at IS NULL";

/// Taken first by everything that changes accounts, which happens rarely: so there is always an admin left, and no two
/// changes can wait for each other. Reading, signing in and chatting go on meanwhile.
const LOCK_ACCOUNTS: &str = "LOCK TABLE client_users IN SHARE ROW EXCLUSIVE MODE";

const LIST_USERS: &str = "\
    SELECT id, email, name, role, disabled_at, created_at, password_hash FROM client_users
    WHERE ($1::uuid IS NULL OR id > $1) AND role <> 'visitor' ORDER BY id LIMIT $2";

const FIND_USER: &str = "\
    SELECT id, email, name, role, disabled_at, created_at, password_hash FROM client_users
    WHERE id = $1 AND role <> 'visitor'";

const FIND_USER_BY_EMAIL: &str = "\
    SELECT id, email, name, role, disabled_at, created_at, password_hash FROM client_users
    WHERE email = $1 AND role <> 'visitor'";

const INSERT_USER: &str = "\
    INSERT INTO client_users (id, email, name, role, password_hash, disabled_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT (email) DO NOTHING";

const UPDATE_USER: &str = "\
    UPDATE client_users SET name = $2, role = $3, password_hash = $4, disabled_at = $5, updated_at = $6 WHERE id = $1";

const DELETE_USER: &str = "DELETE FROM client_users WHERE id = $1";

const ANOTHER_ADMIN: &str = "\
    SELECT EXISTS (SELECT FROM client_users WHERE role = 'admin' AND disabled_at IS NULL AND id <> $1)";

/// Begins a family with its first token, if the user is still as it was when its password was checked.
const START_FAMILY: &str = "\
    WITH family AS (
        INSERT INTO refresh_families (id, user_id, created_at)
        SELECT $1, id, $5 FROM client_users
        WHERE id = $2 AND password_hash = $3 AND role = $4 AND disabled_at IS NULL FOR SHARE
        RETURNING id
    )
    INSERT INTO refresh_tokens (token_hash, family_id, created_at, expires_at)
    SELECT $6, id, $5, $7 FROM family";

/// Families whose last token has expired are of no use to anybody.
const DELETE_EXPIRED_FAMILIES: &str = "\
    DELETE FROM refresh_families f WHERE f.user_id = $1
    AND NOT EXISTS (SELECT FROM refresh_tokens t WHERE t.family_id = f.id AND t.expires_at > $2)";

/// Uses of one family's tokens go one after the other.
const LOCK_FAMILY: &str = "\
    SELECT f.id FROM refresh_families f JOIN refresh_tokens t ON t.family_id = f.id
    WHERE t.token_hash = $1 FOR NO KEY UPDATE OF f";

/// Of all that present the same token, one gets a row.
const USE_REFRESH_TOKEN: &str = "\
    UPDATE refresh_tokens t SET used_at = $2
    FROM refresh_families f JOIN client_users u ON u.id = f.user_id
    WHERE t.token_hash = $1 AND t.used_at IS NULL AND t.expires_at > $2
      AND f.id = t.family_id AND f.revoked_at IS NULL AND u.disabled_at IS NULL
      AND NOT EXISTS (SELECT FROM visitors v WHERE v.user_id = u.id AND v.expires_at <= $2)
    RETURNING f.id, u.id, u.role";

/// The same without using it.
const FIND_REFRESH_TOKEN: &str = "\
    SELECT f.id, u.id, u.role
    FROM refresh_tokens t JOIN refresh_families f ON f.id = t.family_id JOIN client_users u ON u.id = f.user_id
    WHERE t.token_hash = $1 AND t.used_at IS NULL AND t.expires_at > $2
      AND f.revoked_at IS NULL AND u.disabled_at IS NULL
      AND NOT EXISTS (SELECT FROM visitors v WHERE v.user_id = u.id AND v.expires_at <= $2)";

const INSERT_REFRESH_TOKEN: &str = "\
    INSERT INTO refresh_tokens (token_hash, family_id, created_at, expires_at) VALUES ($1, $2, $3, $4)";

const DELETE_EXPIRED_TOKENS: &str = "DELETE FROM refresh_tokens WHERE family_id = $1 AND expires_at <= $2";

const REVOKE_FAMILY_OF_USED_TOKEN: &str = "\
    UPDATE refresh_families SET revoked_at = $2 WHERE revoked_at IS NULL
    AND id = (SELECT family_id FROM refresh_tokens WHERE token_hash = $1 AND used_at IS NOT NULL)";

const REVOKE_FAMILY_OF_TOKEN: &str = "\
    UPDATE refresh_families SET revoked_at = $2 WHERE revoked_at IS NULL
    AND id = (SELECT family_id FROM refresh_tokens WHERE token_hash = $1)";

const REVOKE_FAMILIES_OF_USER: &str = "\
    UPDATE refresh_families SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL";

const INSERT_INVITE: &str = "\
    INSERT INTO user_invites (id, email, role, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT DO NOTHING";

const FIND_INVITE: &str = "\
    SELECT email FROM user_invites WHERE token_hash = $1 AND accepted_at IS NULL AND expires_at > $2";

const ACCEPT_INVITE: &str = "\
    UPDATE user_invites SET accepted_at = $2 WHERE token_hash = $1 AND accepted_at IS NULL AND expires_at > $2
    RETURNING email, role";

const VOID_INVITES: &str = "\
    UPDATE user_invites SET expires_at = $2
    WHERE email = $1 AND accepted_at IS NULL AND expires_at > $2 AND role = ANY ($3)";

/// Inserts nothing and updates nothing while the account is locked. `$4` holds the seconds to wait after each number
/// of failures. The platform's table has the same statement.
const COUNT_ATTEMPT: &str = "\
    INSERT INTO sign_in_attempts AS a (subject, failures, last_attempt) VALUES ($1, 1, $2)
    ON CONFLICT (subject) DO UPDATE
    SET failures = CASE WHEN a.last_attempt < $3 THEN 1 ELSE a.failures + 1 END, last_attempt = $2
    WHERE ($4::int[])[LEAST(a.failures, cardinality($4::int[]))] = 0
       OR a.last_attempt + make_interval(secs => ($4::int[])[LEAST(a.failures, cardinality($4::int[]))]) <= $2";

const FIND_ATTEMPTS: &str = "SELECT failures, last_attempt FROM sign_in_attempts WHERE subject = $1";

const FORGET_ATTEMPTS: &str = "DELETE FROM sign_in_attempts WHERE subject = $1";

const END_FAMILIES: &str = "UPDATE refresh_families SET revoked_at = $1 WHERE revoked_at IS NULL";
const END_INVITES: &str = "UPDATE user_invites SET expires_at = $1 WHERE accepted_at IS NULL AND expires_at > $1";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[
    ACTIVE_USER,
    LOCK_ACCOUNTS,
    LIST_USERS,
    FIND_USER,
    FIND_USER_BY_EMAIL,
    INSERT_USER,
    UPDATE_USER,
    DELETE_USER,
    ANOTHER_ADMIN,
    START_FAMILY,
    DELETE_EXPIRED_FAMILIES,
    LOCK_FAMILY,
    USE_REFRESH_TOKEN,
    FIND_REFRESH_TOKEN,
    INSERT_REFRESH_TOKEN,
    DELETE_EXPIRED_TOKENS,
    REVOKE_FAMILY_OF_USED_TOKEN,
    REVOKE_FAMILY_OF_TOKEN,
    REVOKE_FAMILIES_OF_USER,
    INSERT_INVITE,
    FIND_INVITE,
    ACCEPT_INVITE,
    VOID_INVITES,
    END_FAMILIES,
    END_INVITES,
    COUNT_ATTEMPT,
    FIND_ATTEMPTS,
    FORGET_ATTEMPTS,
];

/// A user as it is stored.
pub(super) struct StoredUser {
    pub(super) id: UserId,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) password_hash: String,
    pub(super) disabled_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

impl StoredUser {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            email: row.try_get("email")?,
            name: row.try_get("name")?,
            role: Role::parse(row.try_get("role")?),
            password_hash: row.try_get("password_hash")?,
            disabled_at: row.try_get("disabled_at")?,
            created_at: row.try_get("created_at")?,
        })
    }

    /// The user without what only sign-in needs.
    pub(super) fn into_user(self) -> User {
        User {
            id: self.id,
            email: self.email,
            name: self.name,
            role: self.role,
            disabled: self.disabled_at.is_some(),
            created_at: self.created_at,
        }
    }
}

/// A family that is to begin, and its first token.
pub(super) struct NewFamily {
    pub(super) id: RefreshFamilyId,
    pub(super) token_hash: HashedToken,
    pub(super) created_at: DateTime<Utc>,
    pub(super) expires_at: DateTime<Utc>,
}

/// Whose refresh token was used.
pub(super) struct UsedToken {
    pub(super) family_id: RefreshFamilyId,
    pub(super) user_id: UserId,
    pub(super) role: Role,
}

pub(super) async fn active_user(
    client: &impl GenericClient,
    user: UserId,
    family: RefreshFamilyId,
) -> Result<Option<ActiveUser>, Error> {
    let statement = client.prepare_cached(ACTIVE_USER).await?;
    client.query_opt(&statement, &[&user, &family]).await?.map(|row| ActiveUser::from_row(&row)).transpose()
}

pub(super) async fn lock_accounts(client: &impl GenericClient) -> Result<(), Error> {
    client.batch_execute(LOCK_ACCOUNTS).await
}

pub(super) async fn list_users(
    client: &impl GenericClient,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<User>, Error> {
    let statement = client.prepare_cached(LIST_USERS).await?;
    let rows = client.query(&statement, &[&after, &limit]).await?;
    rows.iter().map(|row| StoredUser::read(row).map(StoredUser::into_user)).collect()
}

pub(super) async fn find_user(client: &impl GenericClient, id: UserId) -> Result<Option<StoredUser>, Error> {
    let statement = client.prepare_cached(FIND_USER).await?;
    client.query_opt(&statement, &[&id]).await?.map(|row| StoredUser::read(&row)).transpose()
}

pub(super) async fn find_user_by_email(client: &impl GenericClient, email: &str) -> Result<Option<StoredUser>, Error> {
    let statement = client.prepare_cached(FIND_USER_BY_EMAIL).await?;
    client.query_opt(&statement, &[&email]).await?.map(|row| StoredUser::read(&row)).transpose()
}

/// Returns false if the address is taken.
pub(super) async fn insert_user(client: &impl GenericClient, user: &StoredUser) -> Result<bool, Error> {
    let StoredUser { id, email, name, role, password_hash, disabled_at, created_at } = user;
    let statement = client.prepare_cached(INSERT_USER).await?;
    let inserted =
        client.execute(&statement, &[id, email, name, &role.as_str(), password_hash, disabled_at, created_at]).await?;
    Ok(inserted == 1)
}

pub(super) async fn update_user(
    client: &impl GenericClient,
    user: &StoredUser,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let StoredUser { id, name, role, password_hash, disabled_at, .. } = user;
    let statement = client.prepare_cached(UPDATE_USER).await?;
    client.execute(&statement, &[id, name, &role.as_str(), password_hash, disabled_at, &now]).await?;
    Ok(())
}

pub(super) async fn delete_user(client: &impl GenericClient, id: UserId) -> Result<(), Error> {
    let statement = client.prepare_cached(DELETE_USER).await?;
    client.execute(&statement, &[&id]).await?;
    Ok(())
}

/// Whether there is an admin other than this user who can sign in.
pub(super) async fn another_admin(client: &impl GenericClient, than: UserId) -> Result<bool, Error> {
    let statement = client.prepare_cached(ANOTHER_ADMIN).await?;
    client.query_one(&statement, &[&than]).await?.try_get(0)
}

/// Returns false if the user has changed since `user` was read.
pub(super) async fn start_family(
    client: &impl GenericClient,
    user: &StoredUser,
    family: &NewFamily,
) -> Result<bool, Error> {
    let NewFamily { id, token_hash, created_at, expires_at } = family;
    let statement = client.prepare_cached(DELETE_EXPIRED_FAMILIES).await?;
    client.execute(&statement, &[&user.id, created_at]).await?;
    let statement = client.prepare_cached(START_FAMILY).await?;
    let started = client
        .execute(
            &statement,
            &[id, &user.id, &user.password_hash, &user.role.as_str(), created_at, token_hash, expires_at],
        )
        .await?;
    Ok(started == 1)
}

/// Marks a token as used, if it may be: once, in time, by an enabled user, in a family in force.
pub(super) async fn use_refresh_token(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<Option<UsedToken>, Error> {
    let statement = client.prepare_cached(LOCK_FAMILY).await?;
    client.query_opt(&statement, &[token]).await?;
    let statement = client.prepare_cached(USE_REFRESH_TOKEN).await?;
    let Some(row) = client.query_opt(&statement, &[token, &now]).await? else { return Ok(None) };
    Ok(Some(UsedToken { family_id: row.try_get(0)?, user_id: row.try_get(1)?, role: Role::parse(row.try_get(2)?) }))
}

/// Whose a token is, if it may be used.
pub(super) async fn find_refresh_token(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<Option<UsedToken>, Error> {
    let statement = client.prepare_cached(FIND_REFRESH_TOKEN).await?;
    let Some(row) = client.query_opt(&statement, &[token, &now]).await? else { return Ok(None) };
    Ok(Some(UsedToken { family_id: row.try_get(0)?, user_id: row.try_get(1)?, role: Role::parse(row.try_get(2)?) }))
}

/// Adds the token that takes the place of a used one, and drops what has expired.
pub(super) async fn continue_family(client: &impl GenericClient, family: &NewFamily) -> Result<(), Error> {
    let NewFamily { id, token_hash, created_at, expires_at } = family;
    let statement = client.prepare_cached(DELETE_EXPIRED_TOKENS).await?;
    client.execute(&statement, &[id, created_at]).await?;
    let statement = client.prepare_cached(INSERT_REFRESH_TOKEN).await?;
    client.execute(&statement, &[token_hash, id, created_at, expires_at]).await?;
    Ok(())
}

/// Revokes the family of a token that was used before. Returns whether there was one in force.
pub(super) async fn revoke_family_of_used_token(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<bool, Error> {
    let statement = client.prepare_cached(REVOKE_FAMILY_OF_USED_TOKEN).await?;
    Ok(client.execute(&statement, &[token, &now]).await? > 0)
}

/// Revokes the family of a token, used or not.
pub(super) async fn revoke_family_of_token(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = client.prepare_cached(REVOKE_FAMILY_OF_TOKEN).await?;
    client.execute(&statement, &[token, &now]).await?;
    Ok(())
}

/// Signs a user out everywhere.
pub(super) async fn revoke_families_of_user(
    client: &impl GenericClient,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = client.prepare_cached(REVOKE_FAMILIES_OF_USER).await?;
    client.execute(&statement, &[&user, &now]).await?;
    Ok(())
}

pub(super) async fn insert_invite(client: &impl GenericClient, invite: &NewInvite<'_>) -> Result<(), Error> {
    let NewInvite { id, email, role, token_hash, created_at, expires_at } = invite;
    client.execute(INSERT_INVITE, &[id, email, &role.as_str(), token_hash, created_at, expires_at]).await?;
    Ok(())
}

/// The address that an invite in force was made for.
pub(super) async fn find_invite(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<Option<String>, Error> {
    let statement = client.prepare_cached(FIND_INVITE).await?;
    client.query_opt(&statement, &[token, &now]).await?.map(|row| row.try_get(0)).transpose()
}

/// Uses an invite up. Returns its address and role, or nothing if it is not in force.
pub(super) async fn accept_invite(
    client: &impl GenericClient,
    token: &HashedToken,
    now: DateTime<Utc>,
) -> Result<Option<(String, Role)>, Error> {
    let statement = client.prepare_cached(ACCEPT_INVITE).await?;
    let Some(row) = client.query_opt(&statement, &[token, &now]).await? else { return Ok(None) };
    Ok(Some((row.try_get(0)?, Role::parse(row.try_get(1)?))))
}

/// Makes an address's open invites to these roles worthless.
pub(super) async fn void_invites(
    client: &impl GenericClient,
    email: &str,
    roles: &[Role],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = client.prepare_cached(VOID_INVITES).await?;
    let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    client.execute(&statement, &[&email, &now, &roles]).await?;
    Ok(())
}

/// Counts an attempt unless the account is locked. Returns whether it was counted.
pub(super) async fn count_attempt(client: &impl GenericClient, attempt: &Attempt) -> Result<bool, Error> {
    let statement = client.prepare_cached(COUNT_ATTEMPT).await?;
    let counted = client
        .execute(&statement, &[&attempt.subject.as_bytes(), &attempt.now, &attempt.forget_before, &WAITS.as_slice()])
        .await?;
    Ok(counted == 1)
}

/// The count that stands against an account, and when it was last raised.
pub(super) async fn find_attempts(
    client: &impl GenericClient,
    subject: Subject,
) -> Result<Option<(i32, DateTime<Utc>)>, Error> {
    let statement = client.prepare_cached(FIND_ATTEMPTS).await?;
    let Some(row) = client.query_opt(&statement, &[&subject.as_bytes()]).await? else { return Ok(None) };
    Ok(Some((row.try_get(0)?, row.try_get(1)?)))
}

pub(super) async fn forget_attempts(client: &impl GenericClient, subject: Subject) -> Result<(), Error> {
    let statement = client.prepare_cached(FORGET_ATTEMPTS).await?;
    client.execute(&statement, &[&subject.as_bytes()]).await?;
    Ok(())
}

/// Ends every session and every open invite.
pub(super) async fn end_sessions_and_invites(
    client: &impl tokio_postgres::GenericClient,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    client.execute(END_FAMILIES, &[&now]).await?;
    client.execute(END_INVITES, &[&now]).await?;
    Ok(())
}
