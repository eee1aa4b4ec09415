//! API keys: what a client's programs call the OpenAI-compatible endpoint with.
//!
//! A key's row in the tenant's own database is the authority on whether it is in force. The platform's database only
//! says which tenant a token's hash leads to, for a tenant's database is opened for a proved credential only. So a key is
//! made there first and here last, and revoked here first: a hash without a row is good for nothing, and whoever dies
//! between the two leaves nothing that works.
//!
//! The row is read at most once a second a key, by one request for all that wait; so a revoked key is refused everywhere
//! after a second, and a request with a known key asks no database.

mod store;
pub mod tenant_store;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use dashmap::DashMap;
use sqlx::PgPool;
use tokio_util::task::TaskTracker;

use super::lookups::Lookups;
use super::{AccessError, TenantCaller};
use crate::api::api_keys::ApiKeyScope;
use crate::clock::SharedClock;
use crate::ids::{ApiKeyId, TenantId, UserId};
use crate::secrets::{HashedToken, PlainToken, TokenPrefix};
use crate::telemetry::causes;
use crate::tenant_db::{Client, Directory, TenantDatabases, TenantDb, TenantDbError};

/// How long what a key's row said is taken for true.
const FRESH: Duration = Duration::from_secs(1);
/// How often the use of a key is noted.
const USE_NOTED: TimeDelta = TimeDelta::minutes(1);
/// The most keys a tenant may have in force.
const MOST_KEYS: i64 = 200;
/// The most keys of one page.
const LARGEST_PAGE: usize = 101;
/// When to come back after another request could not read a key's row.
const COME_BACK: Duration = Duration::from_secs(1);

/// Makes, revokes and checks API keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    pool: PgPool,
    directory: Arc<Directory>,
    databases: Arc<TenantDatabases>,
    clock: SharedClock,
    tasks: TaskTracker,
    lookups: Lookups,
    known: Arc<DashMap<HashedToken, Arc<Known>>>,
}

/// An API key, without the key.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// What it is for, in words.
    pub name: String,
    /// The token's last four characters.
    pub hint: String,
    /// What it may be used for.
    pub scopes: Vec<ApiKeyScope>,
    /// Who made it.
    pub created_by: Option<UserId>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// What it is for, in words.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<ApiKeyScope>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A key that somebody presented and that is in force, and the database of its tenant.
#[derive(Debug, Clone)]
pub struct VerifiedApiKey {
    /// The tenant's database.
    pub db: TenantDb,
    key: Arc<InForce>,
}

impl VerifiedApiKey {
    /// The key.
    pub fn id(&self) -> ApiKeyId {
        self.key.id
    }

    /// Whether it may be used for this.
    pub fn allows(&self, scope: ApiKeyScope) -> bool {
        self.key.scopes.contains(&scope)
    }
}

/// What a request has to know of a key that was not revoked.
#[derive(Debug)]
struct InForce {
    id: ApiKeyId,
    scopes: Vec<ApiKeyScope>,
    expires_at: Option<DateTime<Utc>>,
}

/// A key whose row was read.
#[derive(Debug)]
struct Known {
    tenant: TenantId,
    row: Mutex<Reading>,
    /// Held by the one request that reads the row for all.
    turn: tokio::sync::Mutex<()>,
}

/// The last reading of a key's row.
#[derive(Debug, Default)]
struct Reading {
    /// When it was asked for, the revision of the tenant's record it was asked with, and what it said.
    found: Option<(Instant, u64, Arc<InForce>)>,
    /// When it could not be had.
    failed: Option<Instant>,
}

impl Known {
    fn row(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the row said, if that was a moment ago and in the database that the record leads to now.
    fn fresh(&self, revision: u64) -> Option<Arc<InForce>> {
        let row = self.row();
        let (asked, of, key) = row.found.as_ref()?;
        (*of == revision && asked.elapsed() < FRESH).then(|| Arc::clone(key))
    }
}

impl ApiKeys {
    /// API keys of the tenants of this directory. Notes of keys' uses are among `tasks`.
    pub fn new(
        pool: PgPool,
        directory: Arc<Directory>,
        databases: Arc<TenantDatabases>,
        clock: SharedClock,
        tasks: TaskTracker,
    ) -> Self {
        Self { pool, directory, databases, clock, tasks, lookups: Lookups::default(), known: Arc::default() }
    }

    /// Keys in the order of their ids, from after `after`, at most 101: a page and one more that tells of the next.
    ///
    /// # Errors
    /// A failure of the tenant's database.
    pub async fn list(
        &self,
        caller: &TenantCaller,
        after: Option<ApiKeyId>,
        limit: usize,
    ) -> Result<Vec<ApiKey>, AccessError> {
        let client = caller.db.client().await?;
        let limit = i64::try_from(limit.min(LARGEST_PAGE)).unwrap_or_default();
        Ok(tenant_store::list(&client, after, limit).await?)
    }

    /// Makes a key. Its token is known to nobody but the caller.
    ///
    /// # Errors
    /// [`AccessError::ExpiryPast`], [`AccessError::TooManyApiKeys`], or a failure, after which there is no key.
    pub async fn create(&self, caller: &TenantCaller, new: NewApiKey) -> Result<(ApiKey, PlainToken), AccessError> {
        let now = self.clock.now();
        if new.expires_at.is_some_and(|at| at <= now) {
            return Err(AccessError::ExpiryPast);
        }
        let mut scopes = new.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        let token = PlainToken::generate(TokenPrefix::ApiKey)?;
        let key = ApiKey {
            id: ApiKeyId::new(),
            name: new.name,
            hint: token.hint(),
            scopes,
            created_by: Some(caller.user_id),
            created_at: now,
            expires_at: new.expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        let (hash, tenant) = (token.hash(), caller.db.record().id);
        let undo = Undo { keys: self, hash, tenant, armed: true };
        store::insert(&self.pool, &hash, tenant, key.id, now).await?;
        let client = caller.db.client().await?;
        if !tenant_store::insert(&client, &key, &hash, MOST_KEYS).await? {
            return Err(AccessError::TooManyApiKeys { limit: MOST_KEYS });
        }
        undo.disarm();
        Ok((key, token))
    }

    /// Revokes a key; one that is revoked stays so.
    ///
    /// # Errors
    /// [`AccessError::NotFound`], or a failure.
    pub async fn revoke(&self, caller: &TenantCaller, id: ApiKeyId) -> Result<(), AccessError> {
        let client = caller.db.client().await?;
        let hash = tenant_store::revoke(&client, id, self.clock.now()).await?;
        drop(client);
        let hash = hash.ok_or(AccessError::NotFound("API key"))?;
        self.forget(&hash);
        // It is in force no more. That the platform forgets the way to it is tidiness, and repeated with the revocation.
        if let Err(error) = store::delete(&self.pool, &hash, caller.db.record().id).await {
            tracing::warn!(api_key_id = %id, causes = causes(&error), "forget where a revoked API key leads");
        }
        Ok(())
    }

    /// Whose key this token is. Asks no database if the tenant is known and the key was looked at a moment ago.
    ///
    /// # Errors
    /// [`AccessError::Unauthenticated`] if the token proves nothing, or its key was revoked or has expired;
    /// [`AccessError::TenantNotActive`] and others if its tenant is out of service; or a failure.
    pub async fn verify(&self, token: &str) -> Result<VerifiedApiKey, AccessError> {
        let token = PlainToken::parse(TokenPrefix::ApiKey, token).map_err(|_| AccessError::Unauthenticated)?;
        let hash = token.hash();
        let lookup = self.directory.by_api_key(&hash);
        let record = self.lookups.run(self.directory.knows_api_key(&hash), lookup).await?;
        // The hash is known, so the token is one that we made: its holder may learn that the tenant is out of service.
        let db = self.databases.open(record.ok_or(AccessError::Unauthenticated)?)?;
        let Some(key) = self.row(&db, hash).await? else {
            self.forget(&hash);
            return Err(AccessError::Unauthenticated);
        };
        if key.expires_at.is_some_and(|at| at <= self.clock.now()) {
            return Err(AccessError::Unauthenticated);
        }
        Ok(VerifiedApiKey { db, key })
    }

    /// Forgets the keys of a tenant that is gone.
    pub fn forget_tenant(&self, tenant: TenantId) {
        self.known.retain(|_, known| known.tenant != tenant);
    }

    fn forget(&self, hash: &HashedToken) {
        self.known.remove(hash);
        self.directory.forget_api_key(hash);
    }

    /// What the key's row says, none if there is no such key or it was revoked.
    async fn row(&self, db: &TenantDb, hash: HashedToken) -> Result<Option<Arc<InForce>>, AccessError> {
        let (tenant, revision) = (db.record().id, db.record().revision());
        let known = self.known.get(&hash).map(|known| Arc::clone(&known));
        let known = known.unwrap_or_else(|| {
            let new = || Arc::new(Known { tenant, row: Mutex::default(), turn: tokio::sync::Mutex::default() });
            Arc::clone(&self.known.entry(hash).or_insert_with(new))
        });
        if let Some(key) = known.fresh(revision) {
            return Ok(Some(key));
        }
        let arrived = Instant::now();
        let _turn = known.turn.lock().await;
        if let Some(key) = known.fresh(revision) {
            return Ok(Some(key));
        }
        // Whoever waited for a database that does not answer does not wait for it a second time.
        if known.row().failed.is_some_and(|failed| failed >= arrived) {
            return Err(TenantDbError::CircuitOpen { retry_after: COME_BACK }.into());
        }
        // Counted from before the question: what is changed while it is under way may be missing in the answer.
        let asked = Instant::now();
        let found = async {
            let client = db.client().await?;
            let found = tenant_store::find(&client, &hash).await?;
            Ok::<_, AccessError>((client, found))
        };
        let (client, found) = match found.await {
            Ok(found) => found,
            Err(error) => {
                known.row().failed = Some(Instant::now());
                return Err(error);
            }
        };
        let Some((key, last_used_at)) = found else { return Ok(None) };
        let key = Arc::new(key);
        known.row().found = Some((asked, revision, Arc::clone(&key)));
        self.note_use(client, &key, last_used_at);
        Ok(Some(key))
    }

    /// Notes the use of a key, if that was not done within the last minute, in nobody's way.
    fn note_use(&self, client: Client, key: &InForce, last_used_at: Option<DateTime<Utc>>) {
        let (id, now) = (key.id, self.clock.now());
        let before = now - USE_NOTED;
        if key.expires_at.is_some_and(|at| at <= now) || last_used_at.is_some_and(|at| at > before) {
            return;
        }
        self.tasks.spawn(async move {
            if let Err(error) = tenant_store::note_use(&client, id, now, before).await {
                tracing::warn!(api_key_id = %id, causes = causes(&error), "note the use of an API key");
            }
        });
    }
}

/// Takes the platform's part of a key back, unless the tenant's part was stored: also if whoever asked leaves between
/// the two. If the tenant's part was stored after all, the key is listed and works nowhere.
struct Undo<'a> {
    keys: &'a ApiKeys,
    hash: HashedToken,
    tenant: TenantId,
    armed: bool,
}

impl Undo<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (pool, hash, tenant) = (self.keys.pool.clone(), self.hash, self.tenant);
        self.keys.tasks.spawn(async move {
            if let Err(error) = store::delete(&pool, &hash, tenant).await {
                tracing::warn!(tenant_id = %tenant, causes = causes(&error), "undo an API key");
            }
        });
    }
}
