//! What one tenant's connections have in common: the record in force, its generation, and the breaker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Trouble, Verdict};
use super::connection::{OpenError, Target};
use super::server::{Refusal, Server};
use super::{TenantDbError, TenantRecord};
use crate::ids::{Slug, TenantId};
use crate::secrets::DatabaseUrl;

/// Which of a record's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential {
    /// The one in use.
    Present,
    /// The one that is being brought in.
    Next,
}

/// A tenant's connections.
#[derive(Debug)]
pub(super) struct TenantPool {
    pub(super) id: TenantId,
    /// Counts changes after which connections that are open must not be used again.
    generation: AtomicU64,
    current: Mutex<Current>,
    breaker: Mutex<Breaker>,
}

struct Current {
    record: Arc<TenantRecord>,
    server: Arc<Server>,
    /// Whether the registry has no such tenant any more.
    gone: bool,
    /// The credential that worked last.
    credential: Credential,
    /// Made from the record's addresses when they are first needed.
    targets: [Option<Arc<Target>>; 2],
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("record", &self.record).finish_non_exhaustive()
    }
}

/// What holds for a tenant at one moment.
pub(super) struct View {
    pub(super) record: Arc<TenantRecord>,
    pub(super) server: Arc<Server>,
    pub(super) credential: Credential,
    generation: u64,
}

impl TenantPool {
    pub(super) fn new(record: Arc<TenantRecord>, server: Arc<Server>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id,
            generation: AtomicU64::new(1),
            current: Mutex::new(Current {
                record,
                server,
                gone: false,
                credential: Credential::Present,
                targets: [None, None],
            }),
            breaker: Mutex::new(Breaker::new()),
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that connections must have to be used.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What holds now, if the tenant is in service.
    pub(super) fn view(&self) -> Result<View, TenantDbError> {
        let current = self.current();
        if current.gone {
            return Err(TenantDbError::NotActive);
        }
        current.record.in_force()?;
        Ok(View {
            record: Arc::clone(&current.record),
            server: Arc::clone(&current.server),
            credential: current.credential,
            generation: self.generation(),
        })
    }

    /// The tenant's name in addresses.
    pub(super) fn slug(&self) -> Slug {
        self.current().record.slug.clone()
    }

    /// The server its connections are on.
    pub(super) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.current().server)
    }

    /// Whether another record than this one is in force.
    pub(super) fn is_behind(&self, record: &TenantRecord) -> bool {
        self.current().record.revision < record.revision
    }

    /// Puts a record in force, unless a newer one is. `server` is where its database is. If connections that are open
    /// do not fit it, the idle ones are closed, and those in use when they come back.
    pub(super) fn follow(
        &self,
        record: Option<&Arc<TenantRecord>>,
        server: impl FnOnce(&TenantRecord) -> Option<Arc<Server>>,
    ) {
        let (before, refusal) = {
            let mut current = self.current();
            let before = Arc::clone(&current.server);
            let Some(record) = record else {
                current.gone = true;
                self.generation.fetch_add(1, Ordering::AcqRel);
                drop(current);
                before.retire(self.id, &Refusal::Changed);
                return;
            };
            if !current.gone && record.revision <= current.record.revision {
                return;
            }
            let old = std::mem::replace(&mut current.record, Arc::clone(record));
            let credentials_changed =
                old.database_url() != record.database_url() || old.next_database_url() != record.next_database_url();
            let fits = !current.gone
                && old.database_url() == record.database_url()
                && old.cluster_id == record.cluster_id
                && old.schema_version == record.schema_version
                && old.is_active() == record.is_active();
            current.gone = false;
            if credentials_changed {
                current.credential = Credential::Present;
                current.targets = [None, None];
                self.breaker().reset();
            }
            if fits {
                return;
            }
            if let Some(server) = server(record) {
                current.server = server;
            }
            current.targets = [None, None];
            self.generation.fetch_add(1, Ordering::AcqRel);
            (before, Refusal::Changed)
        };
        before.retire(self.id, &refusal);
    }

    /// Where to connect to with one of the record's credentials; `None` if it has no such one.
    pub(super) async fn target(&self, view: &View, credential: Credential) -> Result<Option<Arc<Target>>, OpenError> {
        let Some(url) = view.url(credential) else { return Ok(None) };
        let slot = usize::from(credential == Credential::Next);
        let kept = self.current().targets.get(slot).cloned().flatten();
        if let Some(target) = kept.filter(|target| target.generation == view.generation) {
            return Ok(Some(target));
        }
        let managed = view.record.cluster_id.is_some();
        let target = Arc::new(Target::prepare(url, managed, view.generation).await?);
        let mut current = self.current();
        if Arc::ptr_eq(&current.record, &view.record)
            && let Some(kept) = current.targets.get_mut(slot)
        {
            *kept = Some(Arc::clone(&target));
        }
        Ok(Some(target))
    }

    /// Remembers which credential works, so that it is tried first.
    pub(super) fn works(&self, view: &View, credential: Credential) {
        let mut current = self.current();
        if Arc::ptr_eq(&current.record, &view.record) {
            current.credential = credential;
        }
        drop(current);
        self.breaker().reset();
    }

    /// Whether a request may try to connect. What it gets says how it went when it is dropped.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Attempt, TenantDbError> {
        match self.breaker().admit(Instant::now()) {
            Verdict::Refuse { retry_after } => Err(TenantDbError::CircuitOpen { retry_after }),
            Verdict::Pass => Ok(Attempt { pool: Arc::clone(self), probe: false }),
            Verdict::Probe => Ok(Attempt { pool: Arc::clone(self), probe: true }),
        }
    }

    /// Whether the last attempt to connect failed.
    pub(super) fn is_suspicious(&self) -> bool {
        self.breaker().is_suspicious()
    }

    /// Why the breaker is open, and how long it will be.
    pub(super) fn open_breaker(&self) -> Option<(Trouble, Duration)> {
        let breaker = self.breaker();
        breaker.open().zip(breaker.retry_after(Instant::now()))
    }

    /// Notes a failure. Says when to come back if the breaker is open now.
    pub(super) fn failed(&self, trouble: Trouble) -> Option<Duration> {
        let mut breaker = self.breaker();
        breaker.failed(trouble, Instant::now(), rand::random());
        breaker.retry_after(Instant::now())
    }
}

impl View {
    /// The address with one of the record's credentials.
    pub(super) fn url(&self, credential: Credential) -> Option<&DatabaseUrl> {
        match credential {
            Credential::Present => self.record.database_url(),
            Credential::Next => self.record.next_database_url(),
        }
    }
}

/// Leave to try to connect. If it was the only one that the breaker gave, and nothing came of it, another may try.
#[derive(Debug)]
pub(super) struct Attempt {
    pool: Arc<TenantPool>,
    probe: bool,
}

impl Attempt {
    /// Whether it is the only one that an open breaker gives.
    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }

    /// An error if the breaker has opened since leave was given.
    pub(super) fn still_makes_sense(&self) -> Result<(), TenantDbError> {
        match self.pool.open_breaker() {
            Some((_, retry_after)) => Err(TenantDbError::CircuitOpen { retry_after }),
            _ => Ok(()),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.probe {
            // Says nothing if the breaker has heard how it went.
            self.pool.breaker().abandoned(Instant::now());
        }
    }
}
