//! The cached registry: which tenants there are, where their databases are and which keys are theirs.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use sqlx::PgPool;
use tokio::time::timeout;

use super::TenantDbError;
use super::schema::{SchemaMismatch, SpokenSchemas};
use super::store::{self, Key, SealedRecord};
use crate::api::platform::{AiMode, TenantLimits, TenantState};
use crate::ids::{ClusterId, SigningKeyId, Slug, TenantId};
use crate::provisioning::TenantMigrations;
use crate::secrets::{DataKey, DatabaseUrl, HashedToken, Location, MasterKeyring, Sealed};

/// How long the platform's database may take to read a record again that is known.
const REREAD: Duration = Duration::from_millis(750);
/// How long it may take to read one that is not.
const READ: Duration = Duration::from_secs(3);
/// How long it is taken to be away after it has not answered. Meanwhile known records serve as they are.
const AWAY: Duration = Duration::from_secs(1);

/// What a server knows of a tenant while it serves it. Holds opened keys, and lives in memory only.
pub struct TenantRecord {
    /// The tenant.
    pub id: TenantId,
    /// Its name in addresses.
    pub slug: Slug,
    /// The company's name.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// The state of its life.
    pub state: TenantState,
    /// The version of its database's schema.
    pub schema_version: Option<i64>,
    /// The cluster its database is on; none for a database of the client's own.
    pub cluster_id: Option<ClusterId>,
    /// What it may use, where that differs from the platform's settings.
    pub limits: TenantLimits,
    /// Whose models answer its questions.
    pub ai_mode: AiMode,
    /// Of two records of a tenant, the one with the higher number was read later.
    pub(super) revision: u64,
    /// Whether this server speaks that version.
    spoken: Result<(), SchemaMismatch>,
    database_url: Option<DatabaseUrl>,
    next_database_url: Option<DatabaseUrl>,
    /// Lowest version first, each with whether it seals already or is only known so far.
    data_keys: Vec<(DataKey, bool)>,
    signing_keys: Vec<SigningKey>,
}

/// A key that signs a tenant's access tokens.
pub struct SigningKey {
    /// The `kid` of the tokens.
    pub id: SigningKeyId,
    /// Signs new tokens.
    pub encoding: jsonwebtoken::EncodingKey,
    /// Checks tokens.
    pub decoding: jsonwebtoken::DecodingKey,
    /// Still checks, but signs no more.
    pub retired: bool,
}

impl fmt::Debug for TenantRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantRecord")
            .field("id", &self.id)
            .field("slug", &self.slug)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TenantRecord {
    /// Of two records of a tenant that this process has read, the one with the higher revision was read later.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the tenant is in service.
    pub fn is_active(&self) -> bool {
        self.state == TenantState::Active
    }

    /// Nothing, if the tenant is in service and this server speaks its database's schema, and otherwise why not.
    pub fn in_service(&self) -> Result<(), TenantDbError> {
        self.in_force()?;
        match self.spoken {
            Ok(()) => Ok(()),
            Err(SchemaMismatch::TooOld) => Err(TenantDbError::SchemaTooOld),
            Err(SchemaMismatch::TooNew) => Err(TenantDbError::SchemaTooNew),
        }
    }

    /// Nothing, if the tenant is in service, whatever its schema: an answer that was begun is stored, though the
    /// database was migrated meanwhile.
    pub(super) fn in_force(&self) -> Result<(), TenantDbError> {
        match self.state {
            TenantState::Active => Ok(()),
            TenantState::Suspended => Err(TenantDbError::Suspended),
            TenantState::Deleting => Err(TenantDbError::Deleting),
            _ => Err(TenantDbError::NotActive),
        }
    }

    /// Where its database is, credentials included.
    pub(super) fn database_url(&self) -> Option<&DatabaseUrl> {
        self.database_url.as_ref()
    }

    /// The credential that is being brought in, while the one in use is being replaced.
    pub(super) fn next_database_url(&self) -> Option<&DatabaseUrl> {
        self.next_database_url.as_ref()
    }

    /// The key that signs new tokens.
    pub fn signing_key(&self) -> Option<&SigningKey> {
        self.signing_keys.iter().rev().find(|key| !key.retired)
    }

    /// The key with this id, if it is one of this tenant's.
    pub fn signing_key_by_id(&self, id: SigningKeyId) -> Option<&SigningKey> {
        self.signing_keys.iter().find(|key| key.id == id)
    }

    /// The data key that seals from now on.
    pub fn data_key(&self) -> Result<&DataKey, TenantDbError> {
        self.data_keys.iter().rev().find(|(_, active)| *active).map(|(key, _)| key).ok_or(TenantDbError::Sealed)
    }

    /// The data key that opens what it sealed.
    pub fn data_key_for(&self, sealed: &Sealed) -> Result<&DataKey, TenantDbError> {
        let mut keys = self.data_keys.iter().map(|(key, _)| key);
        keys.find(|key| key.version() == sealed.key_version()).ok_or(TenantDbError::Sealed)
    }
}

struct Entry {
    record: Arc<TenantRecord>,
    /// Set when the registry has changed, or may have while nobody listened. A stale record still serves if the
    /// platform's database does not answer.
    stale: AtomicBool,
}

/// The cache of records.
pub struct Directory {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    records: DashMap<TenantId, Arc<Entry>>,
    slugs: DashMap<Slug, TenantId>,
    signing_keys: DashMap<SigningKeyId, TenantId>,
    /// Hashes of API keys that were looked up and found.
    api_keys: DashMap<HashedToken, TenantId>,
    /// Counts what was heard of changes: a record read before one was heard of must not pass for fresh after it.
    changes: AtomicU64,
    reads: AtomicU64,
    /// Until when the platform's database is taken to be away.
    away_until: Mutex<Option<Instant>>,
    /// The schemas this server speaks.
    schemas: SpokenSchemas,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("records", &self.records.len()).finish_non_exhaustive()
    }
}

impl Directory {
    /// An empty cache over the platform's database.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>) -> Self {
        Self {
            pool,
            master_keys,
            records: DashMap::new(),
            slugs: DashMap::new(),
            signing_keys: DashMap::new(),
            api_keys: DashMap::new(),
            changes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            away_until: Mutex::new(None),
            schemas: TenantMigrations::embedded().spoken(),
        }
    }

    /// The same for a server that speaks other schemas than those of the program's own migrations.
    #[must_use]
    pub fn speaking(self, schemas: SpokenSchemas) -> Self {
        Self { schemas, ..self }
    }

    /// The tenant that owns a signing key: the first step of checking a token, whose signature is checked next.
    pub async fn by_signing_key(&self, id: SigningKeyId) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let tenant = self.signing_keys.get(&id).map(|found| *found);
        let record = self.get(tenant, Key::Kid(id.as_uuid())).await?;
        Ok(record.filter(|record| record.signing_key_by_id(id).is_some()))
    }

    /// The tenant that an API key leads to. Whether the key is in force is for that tenant's database to say.
    pub async fn by_api_key(&self, hash: &HashedToken) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let tenant = self.api_keys.get(hash).map(|found| *found);
        let record = self.get(tenant, Key::TokenHash(hash.as_bytes())).await?;
        if let (None, Some(record)) = (tenant, &record) {
            self.api_keys.insert(*hash, record.id);
        }
        Ok(record)
    }

    /// The tenant of a slug, for somebody who is about to sign in.
    pub async fn by_slug(&self, slug: &Slug) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let tenant = self.slugs.get(slug).map(|found| *found);
        let record = self.get(tenant, Key::Slug(slug.as_str())).await?;
        Ok(record.filter(|record| record.slug == *slug))
    }

    /// The tenant a refresh token names; the token itself is checked in that tenant's database.
    pub async fn by_id(&self, id: TenantId) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        self.get(Some(id), Key::Id(id.as_uuid())).await
    }

    /// Whether a signing key is looked up without asking the platform's database first.
    pub fn knows_signing_key(&self, id: SigningKeyId) -> bool {
        self.signing_keys.get(&id).map(|tenant| *tenant).is_some_and(|tenant| self.knows_tenant(tenant))
    }

    /// Whether an API key is looked up without asking the platform's database first.
    pub fn knows_api_key(&self, hash: &HashedToken) -> bool {
        self.api_keys.get(hash).map(|tenant| *tenant).is_some_and(|tenant| self.knows_tenant(tenant))
    }

    /// Forgets where an API key leads, for it is in force no more.
    pub fn forget_api_key(&self, hash: &HashedToken) {
        self.api_keys.remove(hash);
    }

    /// Whether a slug is looked up without asking the platform's database first.
    pub fn knows_slug(&self, slug: &Slug) -> bool {
        self.slugs.get(slug).map(|tenant| *tenant).is_some_and(|tenant| self.knows_tenant(tenant))
    }

    /// Whether a tenant is looked up without asking the platform's database first.
    pub fn knows_tenant(&self, id: TenantId) -> bool {
        self.records.contains_key(&id)
    }

    async fn get(&self, tenant: Option<TenantId>, key: Key<'_>) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let cached = tenant.and_then(|id| self.records.get(&id).map(|entry| Arc::clone(&entry)));
        match cached {
            Some(entry) if !entry.stale.load(Ordering::Acquire) => Ok(Some(Arc::clone(&entry.record))),
            // Nobody waits for a database that is known to be away.
            Some(entry) if self.is_away() => Ok(Some(Arc::clone(&entry.record))),
            Some(entry) => match self.load(Key::Id(entry.record.id.as_uuid()), REREAD).await {
                Ok(record) => Ok(record),
                Err(error) => {
                    tracing::warn!(tenant_id = %entry.record.id, %error, "read registry; serving the cached record");
                    Ok(Some(Arc::clone(&entry.record)))
                }
            },
            None if self.is_away() => Err(TenantDbError::Platform(sqlx::Error::PoolTimedOut)),
            None => self.load(key, READ).await,
        }
    }

    /// Whether the platform's database is taken to be away. When the time is over, one request finds out.
    fn is_away(&self) -> bool {
        let mut until = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match *until {
            None => false,
            Some(moment) if now < moment => true,
            Some(_) => {
                *until = now.checked_add(REREAD + AWAY);
                false
            }
        }
    }

    async fn load(&self, key: Key<'_>, limit: Duration) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let loaded = timeout(limit, self.load_once(key)).await;
        let loaded = loaded.unwrap_or(Err(TenantDbError::Platform(sqlx::Error::PoolTimedOut)));
        let until = match &loaded {
            Err(TenantDbError::Platform(_)) => Instant::now().checked_add(AWAY),
            _ => None,
        };
        *self.away_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        loaded
    }

    async fn load_once(&self, key: Key<'_>) -> Result<Option<Arc<TenantRecord>>, TenantDbError> {
        let changes = self.changes.load(Ordering::Acquire);
        let revision = self.reads.fetch_add(1, Ordering::AcqRel) + 1;
        let Some(sealed) = store::find(&self.pool, key).await? else {
            if let Key::Id(id) = key {
                self.records.remove(&TenantId::from_uuid(id));
            }
            return Ok(None);
        };
        let record = Arc::new(self.open(sealed, revision)?);
        self.slugs.insert(record.slug.clone(), record.id);
        for key in &record.signing_keys {
            self.signing_keys.insert(key.id, record.id);
        }
        let stale = AtomicBool::new(self.changes.load(Ordering::Acquire) != changes);
        let entry = Arc::new(Entry { record: Arc::clone(&record), stale });
        match self.records.entry(record.id) {
            // Somebody who began to read later has been quicker.
            dashmap::Entry::Occupied(known) if known.get().record.revision > revision => {
                return Ok(Some(Arc::clone(&known.get().record)));
            }
            place => drop(place.insert(entry)),
        }
        Ok(Some(record))
    }

    fn open(&self, sealed: SealedRecord, revision: u64) -> Result<TenantRecord, TenantDbError> {
        let id = TenantId::from_uuid(sealed.id);
        let mut data_keys = Vec::new();
        for (version, wrapped, active) in sealed.wrapped_keys {
            let wrapped = Sealed::from_bytes(wrapped).map_err(|_| TenantDbError::Sealed)?;
            let version = u32::try_from(version).map_err(|_| TenantDbError::Sealed)?;
            let key = self.master_keys.unwrap(id, version, &wrapped).map_err(|_| TenantDbError::Sealed)?;
            data_keys.push((key, active));
        }
        let open = |bytes: Vec<u8>, location: &Location| {
            let value = Sealed::from_bytes(bytes).map_err(|_| TenantDbError::Sealed)?;
            let key = data_keys.iter().map(|(key, _)| key).find(|key| key.version() == value.key_version());
            key.ok_or(TenantDbError::Sealed)?.open(location, &value).map_err(|_| TenantDbError::Sealed)
        };
        let open_url = |bytes: Option<Vec<u8>>, location: &Location| {
            let Some(bytes) = bytes else { return Ok(None) };
            let text = open(bytes, location)?;
            let text = std::str::from_utf8(&text).map_err(|_| TenantDbError::Sealed)?;
            text.parse::<DatabaseUrl>().map(Some).map_err(|_| TenantDbError::Sealed)
        };
        let database_url = open_url(sealed.database_url, &database_url_location(id))?;
        let next_database_url = open_url(sealed.next_database_url, &next_database_url_location(id))?;
        let mut signing_keys = Vec::new();
        for (key, secret, retired) in sealed.signing_keys {
            let key = SigningKeyId::from_uuid(key);
            let secret = open(secret, &signing_key_location(id, key))?;
            signing_keys.push(SigningKey {
                id: key,
                encoding: jsonwebtoken::EncodingKey::from_secret(&secret),
                decoding: jsonwebtoken::DecodingKey::from_secret(&secret),
                retired,
            });
        }
        Ok(TenantRecord {
            id,
            slug: sealed.slug.parse().map_err(|_| TenantDbError::Sealed)?,
            name: sealed.name,
            plan: sealed.plan,
            state: TenantState::parse(&sealed.state),
            schema_version: sealed.schema_version,
            spoken: self.schemas.check(sealed.schema_version, sealed.schema_compatible_from),
            cluster_id: sealed.cluster_id.map(ClusterId::from_uuid),
            limits: sealed.limits,
            ai_mode: AiMode::parse(&sealed.ai_mode),
            revision,
            database_url,
            next_database_url,
            data_keys,
            signing_keys,
        })
    }

    /// Reads a changed tenant again, if it is cached. Returns the record that is now in force.
    pub async fn refresh(&self, id: TenantId) -> Option<Arc<TenantRecord>> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let entry = self.records.get(&id).map(|entry| Arc::clone(&entry))?;
        entry.stale.store(true, Ordering::Release);
        match self.load(Key::Id(id.as_uuid()), READ).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(tenant_id = %id, %error, "refresh registry record");
                Some(Arc::clone(&entry.record))
            }
        }
    }

    /// Forgets a tenant that is gone, its opened keys included.
    pub fn forget(&self, id: TenantId) {
        self.records.remove(&id);
        self.slugs.retain(|_, tenant| *tenant != id);
        self.signing_keys.retain(|_, tenant| *tenant != id);
        self.api_keys.retain(|_, tenant| *tenant != id);
    }

    /// The tenants that are remembered here and are gone.
    ///
    /// # Errors
    /// A failure of the platform's database.
    pub async fn gone(&self) -> Result<Vec<TenantId>, TenantDbError> {
        let known: Vec<_> = self.records.iter().map(|entry| entry.key().as_uuid()).collect();
        Ok(store::gone(&self.pool, &known).await?.into_iter().map(TenantId::from_uuid).collect())
    }

    /// A tenant's record as it is now, for what must not be done with an outdated one: unlike all else, this fails
    /// while the platform's database does not answer.
    pub async fn read_again(&self, id: TenantId) -> Result<Arc<TenantRecord>, TenantDbError> {
        self.load(Key::Id(id.as_uuid()), READ).await?.ok_or(TenantDbError::NotActive)
    }

    /// Marks every record as perhaps outdated: notifications may have been missed.
    pub fn mark_all_stale(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        for entry in &self.records {
            entry.stale.store(true, Ordering::Release);
        }
    }
}

/// Where a tenant's database URL is sealed.
pub fn database_url_location(id: TenantId) -> Location {
    Location::tenant(id, "tenant_databases", "url_sealed", id.as_uuid())
}

/// Where the URL is sealed that is being brought in.
pub fn next_database_url_location(id: TenantId) -> Location {
    Location::tenant(id, "tenant_databases", "next_url_sealed", id.as_uuid())
}

/// Where a signing key is sealed.
pub fn signing_key_location(id: TenantId, key: SigningKeyId) -> Location {
    Location::tenant(id, "signing_keys", "secret_sealed", key.as_uuid())
}
