//! The owner's own people: their accounts and sessions, in the platform's database.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use sqlx::PgPool;

use super::AccessError;
use super::accounts::{is_plausible_email, normalize_email};
use super::sign_in_throttle::{self, Subject};
use super::store::{self, Removal, StoredSession};
use crate::clock::SharedClock;
use crate::ids::{PlatformSessionId, SuperAdminId};
use crate::secrets::{PasswordHasher, PlainToken, TokenPrefix, check_password_policy};

/// The most characters of a program's name for itself that are kept.
const LONGEST_USER_AGENT: usize = 200;
/// How long a session that has ended is kept, for whoever looks into what happened.
const SESSIONS_KEPT: TimeDelta = TimeDelta::days(30);
/// At most so many records of guessing are made in [`RECORDS_PERIOD`]: the log of what happened must not be flooded.
const MOST_RECORDS: i64 = 100;
/// See [`MOST_RECORDS`].
const RECORDS_PERIOD: TimeDelta = TimeDelta::hours(1);

/// Super admins and their sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SuperAdmins {
    pool: PgPool,
    passwords: PasswordHasher,
    clock: SharedClock,
    session_lifetime: TimeDelta,
}

/// What became of a request for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The account is new.
    New,
    /// There was one already, with this password.
    Exists,
    /// There was one already, and its password is another, which stays as it was.
    ExistsWithAnotherPassword,
}

/// A super admin who presented the token of a session in force.
#[derive(Debug, Clone)]
pub struct SuperAdminSession {
    /// Who it is.
    pub super_admin_id: SuperAdminId,
    /// Their address.
    pub email: String,
    /// The session whose token was presented.
    pub session_id: PlatformSessionId,
}

/// A session that has just begun. The token is shown this once.
#[derive(Debug)]
pub struct NewSession {
    /// The bearer token of further requests.
    pub token: PlainToken,
    /// The session.
    pub session_id: PlatformSessionId,
    /// When the token stops working.
    pub expires_at: DateTime<Utc>,
}

/// A session in force.
#[derive(Debug, Clone)]
pub struct Session {
    /// The session.
    pub id: PlatformSessionId,
    /// The program that signed in, as it named itself.
    pub user_agent: Option<String>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

impl SuperAdmins {
    /// Super admins of the platform whose database this is.
    pub fn new(pool: PgPool, passwords: PasswordHasher, clock: SharedClock, session_lifetime: TimeDelta) -> Self {
        Self { pool, passwords, clock, session_lifetime }
    }

    /// Makes an account unless there is one of this address, which then stays as it is: running it again is safe.
    ///
    /// # Errors
    /// [`AccessError::InvalidEmail`] and [`AccessError::WeakPassword`], or a failure.
    pub async fn create(&self, email: &str, password: &SecretString) -> Result<Created, AccessError> {
        let email = normalize_email(email);
        if !is_plausible_email(&email) {
            return Err(AccessError::InvalidEmail);
        }
        if store::find_admin(&self.pool, &email).await?.is_none() {
            check_password_policy(password, &email)?;
            let hash = self.passwords.hash(password).await?;
            if store::insert_admin(&self.pool, SuperAdminId::new(), &email, &hash, self.clock.now()).await? {
                return Ok(Created::New);
            }
        }
        let (_, hash) = store::find_admin(&self.pool, &email).await?.ok_or(AccessError::NotFound("super admin"))?;
        let same = self.passwords.verify(password, &hash).await?;
        Ok(if same { Created::Exists } else { Created::ExistsWithAnotherPassword })
    }

    /// Gives an account another password, ends its sessions, and forgets what was guessed at it. For whoever has the
    /// platform's database: the former password is not asked for. Returns how many sessions were ended.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] and [`AccessError::WeakPassword`], or a failure.
    pub async fn set_password(&self, email: &str, password: &SecretString) -> Result<u64, AccessError> {
        let email = normalize_email(email);
        check_password_policy(password, &email)?;
        let hash = self.passwords.hash(password).await?;
        let set =
            store::set_admin_password(&self.pool, &email, &hash, Subject::account(&email), self.clock.now()).await?;
        set.ok_or(AccessError::NotFound("super admin"))
    }

    /// Removes an account and its sessions. The last one stays unless `last_too`: without any, nobody can sign in.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] and [`AccessError::LastSuperAdmin`], or a failure.
    pub async fn remove(&self, email: &str, last_too: bool) -> Result<(), AccessError> {
        match store::remove_admin(&self.pool, &normalize_email(email), last_too, self.clock.now()).await? {
            Removal::Removed => Ok(()),
            Removal::Absent => Err(AccessError::NotFound("super admin")),
            Removal::Last => Err(AccessError::LastSuperAdmin),
        }
    }

    /// Begins a session.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] whichever of address and password is wrong, [`AccessError::TooManyAttempts`]
    /// whether or not the account exists, or a failure.
    pub async fn sign_in(
        &self,
        email: &str,
        password: &SecretString,
        user_agent: Option<&str>,
    ) -> Result<NewSession, AccessError> {
        let email = normalize_email(email);
        if !is_plausible_email(&email) {
            self.passwords.verify_absent(password).await?;
            return Err(AccessError::Unauthenticated);
        }
        let subject = Subject::account(&email);
        let failures = sign_in_throttle::admit(&self.pool, subject, self.clock.now()).await?;
        let Some((super_admin_id, hash)) = store::find_admin(&self.pool, &email).await? else {
            self.passwords.verify_absent(password).await?;
            return self.refuse(subject, failures).await;
        };
        if !self.passwords.verify(password, &hash).await? {
            return self.refuse(subject, failures).await;
        }
        let token = PlainToken::generate(TokenPrefix::SuperAdminSession)?;
        let user_agent = user_agent.map(|text| text.chars().take(LONGEST_USER_AGENT).collect::<String>());
        let now = self.clock.now();
        let session = StoredSession {
            id: PlatformSessionId::new(),
            super_admin_id,
            token_hash: token.hash(),
            user_agent: user_agent.as_deref(),
            created_at: now,
            expires_at: now + self.session_lifetime,
        };
        if !store::start_session(&self.pool, &session, &hash, subject).await? {
            return Err(AccessError::Unauthenticated);
        }
        Ok(NewSession { token, session_id: session.id, expires_at: session.expires_at })
    }

    /// Who presents this token. One query, by the token's hash.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] if it is no token of a session in force, or a failure.
    pub async fn authenticate(&self, token: &str) -> Result<SuperAdminSession, AccessError> {
        let token =
            PlainToken::parse(TokenPrefix::SuperAdminSession, token).map_err(|_| AccessError::Unauthenticated)?;
        let found = store::find_session(&self.pool, &token.hash(), self.clock.now()).await?;
        let (session_id, super_admin_id, email) = found.ok_or(AccessError::Unauthenticated)?;
        Ok(SuperAdminSession { super_admin_id, email, session_id })
    }

    /// Refuses a sign-in. From where guessing is slowed it is recorded, whether or not there is such an account:
    /// neither the answer nor the time it takes may tell. Slowing bounds the records about one address, and a bound
    /// over all holds however many addresses are tried.
    async fn refuse(&self, subject: Subject, failures: i32) -> Result<NewSession, AccessError> {
        if sign_in_throttle::is_engaged(failures) {
            let now = self.clock.now();
            store::record_guessing(&self.pool, subject, failures, (MOST_RECORDS, now - RECORDS_PERIOD), now).await?;
        }
        Err(AccessError::Unauthenticated)
    }

    /// Whether a session that was in force still is, for answers that last.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn is_in_force(&self, session: PlatformSessionId) -> Result<bool, AccessError> {
        Ok(store::is_in_force(&self.pool, session, self.clock.now()).await?)
    }

    /// Forgets what no longer counts: sessions that ended long ago, and counts of failed attempts that stand against
    /// nobody. Returns how many of each.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn prune(&self) -> Result<(u64, u64), AccessError> {
        let now = self.clock.now();
        let sessions = store::prune_sessions(&self.pool, now - SESSIONS_KEPT).await?;
        let attempts = store::prune_attempts(&self.pool, now - sign_in_throttle::FORGOTTEN_AFTER).await?;
        Ok((sessions, attempts))
    }

    /// The caller's own sessions in force, newest first.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn sessions(&self, caller: &SuperAdminSession) -> Result<Vec<Session>, AccessError> {
        Ok(store::list_sessions(&self.pool, caller.super_admin_id, self.clock.now()).await?)
    }

    /// Ends one of the caller's own sessions.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if it is not the caller's or not in force, or a failure.
    pub async fn revoke(&self, caller: &SuperAdminSession, session: PlatformSessionId) -> Result<(), AccessError> {
        let revoked = store::revoke_session(&self.pool, caller.super_admin_id, session, self.clock.now()).await?;
        if revoked { Ok(()) } else { Err(AccessError::NotFound("session")) }
    }
}
