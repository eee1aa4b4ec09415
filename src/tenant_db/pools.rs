//! The connections of all tenants, and the way a request gets one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};

use super::breaker::Trouble;
use super::budget::Terms;
use super::client::Client;
use super::connection::OpenError;
use super::pool::{Attempt, Credential, TenantPool, View};
use super::server::{DatabaseServer, Lease, Outcome, Permit, Refusal, Server};
use super::shares::Shares;
use super::uses::Uses;
use super::{Directory, TenantDbError, TenantRecord};
use crate::ids::TenantId;
use crate::telemetry::causes;

/// How long opening a connection may take, encryption and sign-in included. A database that is reached at all does it
/// in milliseconds; one that is not holds a slot for so long.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the registry may take to say whether there are other credentials.
const REREAD: Duration = Duration::from_secs(1);
/// When to come back after no connection was free in time.
const COME_BACK: Duration = Duration::from_secs(1);
/// When to come back after the database server had no connection left for us.
const SERVER_FULL: Duration = Duration::from_secs(2);

/// How long the share of a client's own server is kept that no pool is on: with it a tenant that comes back has a
/// connection though the platform's database is away just then.
const FORGET: Duration = Duration::from_secs(60 * 60);

/// How many connections there may be, and how long to wait for one.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    /// Connections to one cluster, from all Freehold servers together.
    pub tenant_connections: usize,
    /// Connections to one server of a client's own, from all Freehold servers together.
    pub own_database_connections: usize,
    /// Connections to one tenant's database from this server, unless the tenant's limits say otherwise.
    pub tenant_pool_size: usize,
    /// How long a request waits for a connection.
    pub wait: Duration,
}

/// The connections of all tenants.
pub struct TenantDatabases {
    common: Arc<Common>,
    uses: Uses,
}

/// What all tenants' pools have in common.
pub(super) struct Common {
    pub(super) settings: PoolSettings,
    directory: Arc<Directory>,
    pub(super) pools: DashMap<TenantId, Arc<TenantPool>>,
    pub(super) servers: DashMap<DatabaseServer, Arc<Server>>,
    pub(super) shares: Shares,
}

impl std::fmt::Debug for TenantDatabases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantDatabases").field("pools", &self.common.pools.len()).finish_non_exhaustive()
    }
}

/// One tenant's database, proved by a credential. Cheap to copy; holds no connection. Kept for long it goes on
/// working: each connection is opened with the credentials that are in force at that moment.
#[derive(Clone)]
pub struct TenantDb {
    record: Arc<TenantRecord>,
    pool: Arc<TenantPool>,
    common: Arc<Common>,
}

impl std::fmt::Debug for TenantDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantDb").field("record", &self.record).finish_non_exhaustive()
    }
}

impl TenantDatabases {
    /// No connections yet. `shares` says how many of the budget are this server's.
    pub fn new(settings: PoolSettings, directory: Arc<Directory>, shares: Shares) -> Self {
        let (pools, servers, uses) = (DashMap::new(), DashMap::new(), Uses::new(shares.pool().clone()));
        Self { uses, common: Arc::new(Common { settings, directory, pools, servers, shares }) }
    }

    /// The database of a tenant whose credential was verified. Opens no connection. Of several calls at once, one
    /// makes the pool: the map's entry is locked meanwhile, and making a pool waits for nothing.
    pub fn open(&self, record: Arc<TenantRecord>) -> Result<TenantDb, TenantDbError> {
        record.in_service()?;
        let pool = match self.common.pools.entry(record.id) {
            dashmap::Entry::Occupied(entry) => Arc::clone(entry.get()),
            dashmap::Entry::Vacant(entry) => {
                let server = self.common.server_of(&record).ok_or(TenantDbError::NotActive)?;
                Arc::clone(&entry.insert(TenantPool::new(Arc::clone(&record), server)))
            }
        };
        // Whoever comes with a newer record than the pool knows brings the news.
        if pool.is_behind(&record) {
            self.common.follow(&pool, Some(&record));
        }
        Ok(TenantDb { record, pool, common: Arc::clone(&self.common) })
    }

    /// Puts the record in force. Connections that do not fit it any more, for the tenant went out of service or its
    /// credentials have changed, are closed: idle ones at once, those in use when they come back.
    pub fn follow(&self, id: TenantId, record: Option<&Arc<TenantRecord>>) {
        let pool = self.common.pools.get(&id).map(|pool| Arc::clone(&pool));
        if let Some(pool) = pool {
            self.common.follow(&pool, record);
        }
    }

    /// Closes connections that nobody has used for `idle`, and forgets pools without any: an idle tenant costs the
    /// database server nothing.
    pub fn close_idle(&self, idle: Duration) {
        let servers: Vec<_> = self.common.servers.iter().map(|server| Arc::clone(&server)).collect();
        if let Some(before) = Instant::now().checked_sub(idle) {
            for server in &servers {
                server.reap(before);
            }
        }
        // A pool that somebody else knows may still be used, and has to hear of changes.
        self.common.pools.retain(|id, pool| {
            Arc::strong_count(pool) > 1 || pool.server().slots_of(*id) > 0 || pool.open_breaker().is_some()
        });
        drop(servers);
        // The shares of servers that are forgotten here are given back with the next beat. While the platform's
        // database is away nothing is: nobody could be asked for a share again.
        let (now, away) = (Instant::now(), self.common.shares.is_away());
        self.common.servers.retain(|name, server| {
            if Arc::strong_count(server) > 1 || !matches!(name, DatabaseServer::Own(_)) {
                server.note_use();
                return true;
            }
            away || server.unused_for(now) < FORGET
        });
    }

    /// The tenants that have a pool.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.common.pools.iter().map(|entry| *entry.key()).collect()
    }

    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    pub(super) fn uses(&self) -> &Uses {
        &self.uses
    }
}

impl Common {
    fn server_of(&self, record: &TenantRecord) -> Option<Arc<Server>> {
        let name = DatabaseServer::of(record.cluster_id, record.database_url()?);
        let server = Arc::clone(&self.servers.entry(name.clone()).or_insert_with(|| Server::new(name)));
        server.note_use();
        Some(server)
    }

    fn follow(&self, pool: &TenantPool, record: Option<&Arc<TenantRecord>>) {
        pool.follow(record, |record| self.server_of(record));
    }

    /// How many connections all Freehold servers together may have to a database server.
    pub(super) fn budget_of(&self, server: &DatabaseServer) -> usize {
        match server {
            DatabaseServer::Cluster(_) => self.settings.tenant_connections,
            DatabaseServer::Own(_) => self.settings.own_database_connections,
        }
    }
}

impl TenantDb {
    /// The tenant whose database it is, as it was when its credential was verified.
    pub fn record(&self) -> &TenantRecord {
        &self.record
    }

    /// A connection. Give it back before anything slow, above all before a model speaks. While the tenant's breaker is
    /// open this fails at once, for whoever finds the time of a try come as well: nobody waits for the try.
    pub async fn client(&self) -> Result<Client, TenantDbError> {
        let deadline = Instant::now() + self.common.settings.wait;
        loop {
            let view = self.pool.view()?;
            if let Some(lease) = view.server.take_idle(&self.pool) {
                return Ok(Client(lease));
            }
            let attempt = self.pool.admit()?;
            if attempt.is_probe() {
                let retry_after = self.pool.open_breaker().map_or(COME_BACK, |(_, retry_after)| retry_after);
                tokio::spawn(self.clone().probe(view, attempt, deadline));
                return Err(TenantDbError::CircuitOpen { retry_after });
            }
            let lease = match self.wait(&view, deadline).await {
                None => return Err(TenantDbError::NoConnectionFree { retry_after: COME_BACK }),
                Some(Outcome::Ready(lease)) => Some(lease),
                Some(Outcome::Open(permit)) => {
                    attempt.still_makes_sense()?;
                    self.open_apart(permit, attempt).await?
                }
                Some(Outcome::Refused(Refusal::Changed)) => None,
                Some(Outcome::Refused(Refusal::CircuitOpen(retry_after))) => {
                    return Err(TenantDbError::CircuitOpen { retry_after });
                }
                Some(Outcome::Refused(Refusal::Failed(reason))) => {
                    return Err(TenantDbError::Unreachable(anyhow::anyhow!(reason)));
                }
            };
            // The record may have changed while we waited, and the tenant be out of service.
            if let Some(lease) = lease.filter(Lease::is_usable) {
                return Ok(Client(lease));
            }
            if Instant::now() >= deadline {
                return Err(TenantDbError::NoConnectionFree { retry_after: COME_BACK });
            }
        }
    }

    /// Waits for a connection or for leave to open one; none if there was neither in time.
    async fn wait(&self, view: &View, deadline: Instant) -> Option<Outcome> {
        let terms = Terms { ceiling: self.ceiling(&view.record), suspect: self.pool.is_suspicious() };
        let waiting = async {
            self.common.shares.ask_for(&self.common, &view.server).await;
            view.server.wait(&self.pool, terms).await
        };
        timeout_at(deadline.into(), waiting).await.ok()
    }

    /// Tries once whether an open breaker may be closed. A connection that comes about is idle afterwards, or with
    /// whoever waits. However this ends, `attempt` goes with it, and says if nothing was tried after all.
    async fn probe(self, view: View, attempt: Attempt, deadline: Instant) {
        if let Some(Outcome::Open(permit)) = self.wait(&view, deadline).await {
            let opening = Opening { common: Arc::clone(&self.common), pool: Arc::clone(&self.pool) };
            // What became of it, the breaker and the log have heard.
            drop(opening.run(permit).await);
        }
        drop(attempt);
    }

    fn ceiling(&self, record: &TenantRecord) -> usize {
        let limit = record.limits.connections.and_then(|limit| usize::try_from(limit).ok());
        limit.unwrap_or(self.common.settings.tenant_pool_size).max(1)
    }

    /// Opens a connection in a task of its own: a request that is given up meanwhile neither wastes the connection nor
    /// keeps its failure from the breaker. Returns none if the record changed under it.
    async fn open_apart(&self, permit: Permit, attempt: Attempt) -> Result<Option<Lease>, TenantDbError> {
        let opening = Opening { common: Arc::clone(&self.common), pool: Arc::clone(&self.pool) };
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let opened = opening.run(permit).await;
            drop(attempt);
            // Nobody there: the connection goes to whoever waits next.
            drop(sender.send(opened));
        });
        match receiver.await {
            Ok(opened) => opened,
            Err(lost) => Err(TenantDbError::Unreachable(lost.into())),
        }
    }
}

struct Opening {
    common: Arc<Common>,
    pool: Arc<TenantPool>,
}

impl Opening {
    async fn run(self, permit: Permit) -> Result<Option<Lease>, TenantDbError> {
        let mut refused = Vec::new();
        let mut last: Option<OpenError> = None;
        // Twice: with what is known, and with what the registry says then.
        for reread in [false, true] {
            if reread {
                self.reread().await;
            }
            let view = self.pool.view()?;
            if !Arc::ptr_eq(&view.server, &permit.server) {
                return Ok(None);
            }
            let other = if view.credential == Credential::Present { Credential::Next } else { Credential::Present };
            for credential in [view.credential, other] {
                let Some(url) = view.url(credential).filter(|url| !refused.contains(*url)).cloned() else { continue };
                let opened = match self.pool.target(&view, credential).await {
                    Ok(Some(target)) => target.open(CONNECT).await,
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                match opened {
                    Ok(connection) => {
                        self.pool.works(&view, credential);
                        return Ok(Some(permit.opened(&self.pool, connection)));
                    }
                    Err(error) if error.is_authentication() => {
                        // In the transition from one credential to the next this is no news; refused by all, it is.
                        tracing::debug!(tenant_id = %self.pool.id, ?credential, "sign in to a tenant's database");
                        refused.push(url);
                        last = Some(error);
                    }
                    Err(error) => return Err(self.fail(permit, error)),
                }
            }
        }
        match last {
            Some(error) => Err(self.fail(permit, error)),
            None => Err(TenantDbError::NotActive),
        }
    }

    /// Reads the tenant's record again: its credentials may have changed, and the news not have come yet.
    async fn reread(&self) {
        // A registry that does not know the tenant says so in its notification; nothing is concluded here.
        if let Ok(Some(record)) = timeout(REREAD, self.common.directory.refresh(self.pool.id)).await {
            self.common.follow(&self.pool, Some(&record));
        }
    }

    fn fail(&self, permit: Permit, error: OpenError) -> TenantDbError {
        let server = Arc::clone(&permit.server);
        let tenant = self.pool.id;
        if error.is_full() {
            // Not this tenant's fault, and no reason to leave it alone: somebody else uses up the server.
            tracing::error!(tenant_id = %tenant, server = %server.name, "a database server has no connection left");
            drop(permit);
            return TenantDbError::NoConnectionFree { retry_after: SERVER_FULL };
        }
        let trouble = if error.is_authentication() { Trouble::Authentication } else { Trouble::Connect };
        let open = self.pool.failed(trouble);
        tracing::warn!(tenant_id = %tenant, ?trouble, open = open.is_some(), causes = causes(&error), "connect to a tenant's database");
        // Whoever waited for the same thing is told the same: one after another they would wait far too long.
        let refusal = match open {
            Some(retry_after) => Refusal::CircuitOpen(retry_after),
            None => Refusal::Failed("another request could not connect".to_owned()),
        };
        permit.failed();
        server.dismiss_unless_proven(tenant, &refusal);
        TenantDbError::Unreachable(error.into())
    }
}
