//! One database server: its budget, and the connections that hold its slots.
//!
//! Every slot is held by a value that gives it back when it is dropped: a [`Lease`] is a connection in use, a
//! [`Permit`] a slot to open one in, a [`Closing`] a connection that is being closed. So a request that is cancelled
//! anywhere leaves nothing behind.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::budget::{Budget, Effects, Grant, Terms, Usage};
use super::client::Session;
use super::connection::Connection;
use super::pool::TenantPool;
use crate::ids::{ClusterId, TenantId};
use crate::secrets::{DatabaseUrl, Host};

/// Which database server a budget is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DatabaseServer {
    /// A cluster of the owner's.
    Cluster(ClusterId),
    /// A server of a client's, by its address.
    Own(String),
}

impl DatabaseServer {
    /// The server a tenant's database is on.
    pub(super) fn of(cluster: Option<ClusterId>, url: &DatabaseUrl) -> Self {
        match (cluster, url.host()) {
            (Some(cluster), _) => Self::Cluster(cluster),
            (None, Host::Tcp(name)) => Self::Own(format!("{}:{}", name.to_ascii_lowercase(), url.port())),
            (None, Host::Socket(directory)) => Self::Own(format!("{}:{}", directory.display(), url.port())),
        }
    }
}

impl fmt::Display for DatabaseServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(id) => write!(f, "cluster:{id}"),
            Self::Own(address) => write!(f, "own:{address}"),
        }
    }
}

/// Why a waiter was sent away.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// The tenant's record has changed: look again.
    Changed,
    /// The breaker has opened.
    CircuitOpen(Duration),
    /// Nobody can connect.
    Failed(String),
}

/// What comes of waiting.
#[derive(Debug)]
pub(super) enum Outcome {
    Ready(Lease),
    Open(Permit),
    Refused(Refusal),
}

struct Waiter {
    pool: Arc<TenantPool>,
    sender: oneshot::Sender<Outcome>,
}

/// A database server and what is open to it.
pub(super) struct Server {
    pub(super) name: DatabaseServer,
    budget: Mutex<Shared>,
}

struct Shared {
    budget: Budget<TenantId, Box<Connection>, Waiter>,
    /// Whether the platform's database has ever said how many connections there may be.
    asked: bool,
    /// When it was first seen without any pool.
    unused_since: Option<Instant>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a server holds at one moment.
#[derive(Debug)]
pub(super) struct Count {
    pub(super) capacity: usize,
    pub(super) open: usize,
    pub(super) idle: usize,
    pub(super) waiting: usize,
    pub(super) tenants: Vec<Usage<TenantId>>,
}

impl Server {
    pub(super) fn new(name: DatabaseServer) -> Arc<Self> {
        Arc::new(Self { name, budget: Mutex::new(Shared { budget: Budget::new(), asked: false, unused_since: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection of the tenant's.
    pub(super) fn take_idle(self: &Arc<Self>, pool: &Arc<TenantPool>) -> Option<Lease> {
        loop {
            let connection = self.lock().budget.take_idle(pool.id)?;
            let lease = Lease::new(self, pool, connection, 0);
            if lease.is_usable() {
                return Some(lease);
            }
        }
    }

    /// Waits for a connection or for leave to open one. Dropping the future gives the place in the queue up.
    pub(super) async fn wait(self: &Arc<Self>, pool: &Arc<TenantPool>, terms: Terms) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        let waiter = Waiter { pool: Arc::clone(pool), sender };
        let (ticket, effects) = self.lock().budget.enter(pool.id, terms, waiter);
        let _place = Place { server: self, tenant: pool.id, ticket };
        self.perform(effects);
        receiver.await.unwrap_or(Outcome::Refused(Refusal::Changed))
    }

    /// Closes a tenant's idle connections and sends its waiters away.
    pub(super) fn retire(self: &Arc<Self>, tenant: TenantId, refusal: &Refusal) {
        let (effects, waiters) = {
            let mut shared = self.lock();
            (shared.budget.retire(tenant), shared.budget.dismiss(tenant))
        };
        self.perform(effects);
        send_away(waiters, refusal);
    }

    /// Sends a tenant's waiters away, unless it has a connection that may still serve them.
    pub(super) fn dismiss_unless_proven(&self, tenant: TenantId, refusal: &Refusal) {
        let waiters = {
            let mut shared = self.lock();
            if shared.budget.is_proven(tenant) { Vec::new() } else { shared.budget.dismiss(tenant) }
        };
        send_away(waiters, refusal);
    }

    /// Closes what nobody has used since `before`.
    pub(super) fn reap(self: &Arc<Self>, before: Instant) {
        let effects = self.lock().budget.reap(before);
        self.perform(effects);
    }

    /// How many connections a tenant has here.
    pub(super) fn slots_of(&self, tenant: TenantId) -> usize {
        self.lock().budget.slots_of(tenant)
    }

    /// Changes how many connections there may be.
    pub(super) fn set_capacity(self: &Arc<Self>, capacity: usize) {
        let effects = {
            let mut shared = self.lock();
            shared.asked = true;
            shared.budget.set_capacity(capacity)
        };
        self.perform(effects);
    }

    /// Whether the platform's database has said how many connections there may be.
    pub(super) fn was_asked_for(&self) -> bool {
        self.lock().asked
    }

    /// A pool is on it, or will be.
    pub(super) fn note_use(&self) {
        self.lock().unused_since = None;
    }

    /// How long no pool has been on it, which whoever asks has just found to be so.
    pub(super) fn unused_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.lock().unused_since.get_or_insert(now))
    }

    /// The capacity, and how many of it are taken.
    pub(super) fn capacity_and_open(&self) -> (usize, usize) {
        let shared = self.lock();
        (shared.budget.capacity(), shared.budget.open())
    }

    /// Everything, for people.
    pub(super) fn count(&self) -> Count {
        let shared = self.lock();
        Count {
            capacity: shared.budget.capacity(),
            open: shared.budget.open(),
            idle: shared.budget.idle(),
            waiting: shared.budget.waiting(),
            tenants: shared.budget.usage(),
        }
    }

    /// Does what a step of the budget asks for. Never under its lock: what is sent to somebody who has left comes back
    /// at once.
    fn perform(self: &Arc<Self>, effects: Effects<TenantId, Box<Connection>, Waiter>) {
        for (tenant, connection) in effects.close {
            let closing = Closing { server: Arc::clone(self), tenant };
            // Without a runtime the process is ending, and its connections with it.
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move {
                    connection.close().await;
                    drop(closing);
                });
            }
        }
        for (tenant, waiter, grant) in effects.grants {
            let outcome = match grant {
                Grant::Ready(connection, handovers) => {
                    Outcome::Ready(Lease::new(self, &waiter.pool, connection, handovers))
                }
                Grant::Open => Outcome::Open(Permit { server: Arc::clone(self), tenant, suspect: None, spent: false }),
            };
            drop(waiter.sender.send(outcome));
        }
    }
}

fn send_away(waiters: Vec<Waiter>, refusal: &Refusal) {
    for waiter in waiters {
        drop(waiter.sender.send(Outcome::Refused(refusal.clone())));
    }
}

/// A place in the queue.
struct Place<'a> {
    server: &'a Arc<Server>,
    tenant: TenantId,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.server.lock().budget.leave(self.tenant, self.ticket);
    }
}

/// A slot whose connection is being closed.
struct Closing {
    server: Arc<Server>,
    tenant: TenantId,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let effects = self.server.lock().budget.closed(self.tenant);
        self.server.perform(effects);
    }
}

/// A slot to open a connection in.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) server: Arc<Server>,
    tenant: TenantId,
    /// How the attempt went, if it did not go well; `None` if there was none.
    suspect: Option<bool>,
    /// The slot is a connection's now.
    spent: bool,
}

impl Permit {
    /// The connection came about.
    pub(super) fn opened(mut self, pool: &Arc<TenantPool>, connection: Connection) -> Lease {
        self.spent = true;
        let effects = self.server.lock().budget.opened(self.tenant);
        let lease = Lease::new(&self.server, pool, Box::new(connection), 0);
        self.server.perform(effects);
        lease
    }

    /// It did not, and the next attempts should be careful.
    pub(super) fn failed(mut self) {
        self.suspect = Some(true);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.spent {
            let effects = self.server.lock().budget.not_opened(self.tenant, self.suspect);
            self.server.perform(effects);
        }
    }
}

/// A connection in use.
pub(super) struct Lease {
    server: Arc<Server>,
    pool: Arc<TenantPool>,
    /// There until it is dropped.
    connection: Option<Box<Connection>>,
    handovers: u32,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("tenant", &self.pool.id).finish_non_exhaustive()
    }
}

impl Lease {
    fn new(server: &Arc<Server>, pool: &Arc<TenantPool>, connection: Box<Connection>, handovers: u32) -> Self {
        connection.begin_use();
        Self { server: Arc::clone(server), pool: Arc::clone(pool), connection: Some(connection), handovers }
    }

    /// Whether it works as far as anybody knows, and belongs to the record in force.
    pub(super) fn is_usable(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| is_usable(connection, &self.pool))
    }

    pub(super) fn session(&self) -> &Session {
        match &self.connection {
            Some(connection) => &connection.session,
            None => unreachable!("a lease has its connection until it is dropped"),
        }
    }

    pub(super) fn session_mut(&mut self) -> &mut Session {
        match &mut self.connection {
            Some(connection) => &mut connection.session,
            None => unreachable!("a lease has its connection until it is dropped"),
        }
    }
}

fn is_usable(connection: &Connection, pool: &TenantPool) -> bool {
    !connection.session.is_closed() && !connection.session.is_cut() && connection.generation() == pool.generation()
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        connection.end_use();
        let effects = {
            let mut shared = self.server.lock();
            // Looked at under the lock: a record that changes now finds the connection either idle or on its way out.
            if is_usable(&connection, &self.pool) {
                shared.budget.give_back(self.pool.id, connection, self.handovers, Instant::now())
            } else {
                let mut effects = shared.budget.discard(self.pool.id);
                effects.close.push((self.pool.id, connection));
                effects
            }
        };
        self.server.perform(effects);
    }
}
