//! What tenants' pages look like, kept in memory, and what a stranger may cost.
//!
//! - A page that is known is served from memory. Its settings are read again when they are older than [`FRESH`], by one
//!   request, while all others get what is there: a tenant's page costs its database one statement in so many seconds,
//!   however often it is opened, and goes on being served while that database is away.
//! - Pages that are not known are read by [`READS`] requests at once in this process, whoever asks for how many: opening
//!   the pages of all tenants does not take the connections from those who chat.
//! - Slugs that are not known are looked up in turn, like those of a sign-in.
//! - At most [`CAPACITY`] pages are kept, of some ten kilobytes each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dashmap::DashMap;
use tokio::sync::{Mutex, Semaphore};

use super::{Page, PageError};
use crate::access::Lookups;
use crate::api::tenant::Settings;
use crate::configuration;
use crate::ids::{Slug, TenantId};
use crate::telemetry::causes;
use crate::tenant_db::{Directory, TenantDatabases, TenantDbError, TenantRecord};

/// How old what is shown may be before it is read again.
const FRESH: Duration = Duration::from_secs(3);
/// How many read at once.
const READS: usize = 8;
/// How long one waits for its turn to read.
const READ_WAIT: Duration = Duration::from_secs(2);
/// Pages that are kept.
const CAPACITY: usize = 2_048;

/// A page and what it was made of.
#[derive(Debug, Clone)]
struct Known {
    version: (i64, DateTime<Utc>),
    read_at: Instant,
    page: Arc<Page>,
}

/// One tenant's place. Whoever holds the lock reads.
#[derive(Debug, Default)]
struct Place {
    known: std::sync::RwLock<Option<Known>>,
    reading: Mutex<()>,
}

impl Place {
    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn keep(&self, known: Known) {
        *self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(known);
    }
}

/// The pages of all tenants.
pub(super) struct Looks {
    directory: Arc<Directory>,
    databases: Arc<TenantDatabases>,
    lookups: Lookups,
    reads: Semaphore,
    places: DashMap<TenantId, Arc<Place>>,
}

impl Looks {
    pub(super) fn new(directory: Arc<Directory>, databases: Arc<TenantDatabases>) -> Self {
        let reads = Semaphore::new(READS);
        Self { directory, databases, lookups: Lookups::default(), reads, places: DashMap::new() }
    }

    /// A tenant's page, made by `make` where it is not known or the settings have changed.
    pub(super) async fn find(
        &self,
        slug: &str,
        make: impl Fn(&str, &Settings) -> Result<Page, PageError>,
    ) -> Result<Option<Arc<Page>>, PageError> {
        let Ok(slug) = slug.parse::<Slug>() else { return Ok(None) };
        let record = self.lookups.run(self.directory.knows_slug(&slug), self.directory.by_slug(&slug)).await?;
        let Some(record) = record else { return Ok(None) };
        match record.in_service() {
            Ok(()) => {}
            Err(TenantDbError::NotActive | TenantDbError::Suspended | TenantDbError::Deleting) => {
                self.places.remove(&record.id);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        let place = self.place(record.id);
        let known = place.known();
        if let Some(known) = &known
            && known.read_at.elapsed() < FRESH
        {
            return Ok(Some(Arc::clone(&known.page)));
        }
        let _reading = match (place.reading.try_lock(), &known) {
            (Ok(reading), _) => reading,
            // Somebody reads already; what is there will do meanwhile.
            (Err(_), Some(known)) => return Ok(Some(Arc::clone(&known.page))),
            (Err(_), None) => place.reading.lock().await,
        };
        // Whoever read while this one waited has read for it, too.
        if let Some(known) = place.known()
            && known.read_at.elapsed() < FRESH
        {
            return Ok(Some(known.page));
        }
        match (self.read(&record, known.as_ref(), make).await, known) {
            (Ok(read), _) => {
                let page = Arc::clone(&read.page);
                place.keep(read);
                Ok(Some(page))
            }
            (Err(error), Some(known)) => {
                tracing::debug!(tenant_id = %record.id, causes = causes(&error), "read a page's settings again");
                // Not again with every request while the database is away.
                place.keep(Known { read_at: Instant::now(), ..known.clone() });
                Ok(Some(known.page))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn read(
        &self,
        record: &Arc<TenantRecord>,
        known: Option<&Known>,
        make: impl Fn(&str, &Settings) -> Result<Page, PageError>,
    ) -> Result<Known, PageError> {
        let Ok(Ok(_permit)) = tokio::time::timeout(READ_WAIT, self.reads.acquire()).await else {
            return Err(TenantDbError::NoConnectionFree { retry_after: Duration::from_secs(1) }.into());
        };
        let db = self.databases.open(Arc::clone(record))?;
        let in_force = configuration::read(&db).await?;
        let version = (in_force.version, in_force.updated_at);
        let page = match known {
            Some(known) if known.version == version => Arc::clone(&known.page),
            _ => Arc::new(make(record.slug.as_str(), &in_force.settings)?),
        };
        Ok(Known { version, read_at: Instant::now(), page })
    }

    fn place(&self, tenant: TenantId) -> Arc<Place> {
        if self.places.len() >= CAPACITY && !self.places.contains_key(&tenant) {
            // Any may go: it costs one statement to make it again.
            let victim = self.places.iter().next().map(|entry| *entry.key());
            if let Some(victim) = victim {
                self.places.remove(&victim);
            }
        }
        Arc::clone(&self.places.entry(tenant).or_default())
    }
}
