//! Who may hold a connection: the bookkeeping of one database server's budget.
//!
//! Pure: it opens and closes nothing, waits for nothing and reads no clock. Each method is one atomic step that says
//! what has to be done ([`Effects`]), so the rules can be tested on their own.
//!
//! A **slot** is a connection that the database server may see: one that is being opened, idle, in use, or being
//! closed. A slot is free again only when the connection is known to have ended, so what the server counts never
//! passes the capacity. When a tenant needs a slot and none is free, the connection that has been idle longest makes
//! room. When none is idle either, tenants wait in turn: whoever was served goes to the end, so that one tenant with
//! a hundred waiters does not keep another one's first waiter out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// How often a connection is handed from one waiter of a tenant to the next while other tenants wait for a slot.
/// Handing on is far cheaper than closing and opening, so a turn is worth several requests, and still ends.
const HANDOVERS: u32 = 16;
/// A tenant with connections of its own takes others' idle ones only if so many of its requests wait for each.
const PATIENCE: usize = 4;

/// What a waiter gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grant<C> {
    /// A connection that was open already, and how often it was handed on without a rest.
    Ready(C, u32),
    /// A slot to open one in.
    Open,
}

/// What has to be done after a step.
#[derive(Debug)]
pub(super) struct Effects<K, C, W> {
    /// Waiters that are served.
    pub(super) grants: Vec<(K, W, Grant<C>)>,
    /// Connections to close. Each holds its slot until [`Budget::closed`] is called for it.
    pub(super) close: Vec<(K, C)>,
}

impl<K, C, W> Default for Effects<K, C, W> {
    fn default() -> Self {
        Self { grants: Vec::new(), close: Vec::new() }
    }
}

/// What holds for a tenant when it asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Connections it may have at once.
    pub(super) ceiling: usize,
    /// Whether its last attempt to connect failed: then it gets one attempt at a time, and all such tenants together
    /// get an eighth of the capacity.
    pub(super) suspect: bool,
}

struct Idle<C> {
    sequence: u64,
    since: Instant,
    connection: C,
}

struct Tenant<C, W> {
    terms: Terms,
    opening: usize,
    in_use: usize,
    closing: usize,
    /// Least recently used first.
    idle: VecDeque<Idle<C>>,
    waiters: VecDeque<(u64, W)>,
}

impl<C, W> Tenant<C, W> {
    fn slots(&self) -> usize {
        self.opening + self.in_use + self.closing + self.idle.len()
    }

    /// Whether it has a connection that works.
    fn is_proven(&self) -> bool {
        !self.terms.suspect && self.in_use + self.idle.len() > 0
    }

    /// How many more connections it may open now, whatever the others do. One at a time until one works: a database
    /// that does not answer then holds one slot, and a wrong password is sent once.
    fn openable(&self) -> usize {
        let room = self.terms.ceiling.saturating_sub(self.slots()).min(self.waiters.len());
        if self.is_proven() { room } else { room.min(1_usize.saturating_sub(self.opening)) }
    }

    /// How many of others' idle connections should make room for it.
    fn worth_evicting(&self) -> usize {
        let own = self.in_use + self.opening;
        if own == 0 {
            self.openable()
        } else {
            self.openable().min((self.waiters.len() / PATIENCE).saturating_sub(own))
        }
    }
}

/// A tenant's part of the budget, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage<K> {
    pub(super) key: K,
    /// Connections the server may see.
    pub(super) open: usize,
    pub(super) idle: usize,
    pub(super) waiting: usize,
}

/// The budget of one database server. `K` names a tenant, `C` is a connection, `W` is told to whoever waits.
pub(super) struct Budget<K, C, W> {
    capacity: usize,
    open: usize,
    closing: usize,
    suspects_opening: usize,
    tenants: HashMap<K, Tenant<C, W>>,
    /// All idle connections, least recently used first.
    idle: BTreeMap<u64, K>,
    /// Tenants with waiters, in turn. Each is in it once.
    turns: VecDeque<K>,
    sequence: u64,
}

impl<K: Copy + Eq + Hash, C, W> Budget<K, C, W> {
    /// A budget without any slot yet.
    pub(super) fn new() -> Self {
        Self {
            capacity: 0,
            open: 0,
            closing: 0,
            suspects_opening: 0,
            tenants: HashMap::new(),
            idle: BTreeMap::new(),
            turns: VecDeque::new(),
            sequence: 0,
        }
    }

    /// How many slots there are.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many are taken. May be more than there are for a while after the capacity shrank.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// How many connections are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// How many waiters there are.
    pub(super) fn waiting(&self) -> usize {
        self.turns.iter().filter_map(|key| self.tenants.get(key)).map(|tenant| tenant.waiters.len()).sum()
    }

    /// How many slots a tenant has.
    pub(super) fn slots_of(&self, key: K) -> usize {
        self.tenants.get(&key).map_or(0, Tenant::slots)
    }

    /// Whether a tenant has a connection that works.
    pub(super) fn is_proven(&self, key: K) -> bool {
        self.tenants.get(&key).is_some_and(|tenant| tenant.in_use + tenant.idle.len() > 0)
    }

    /// Each tenant's part.
    pub(super) fn usage(&self) -> Vec<Usage<K>> {
        let usage = |(key, tenant): (&K, &Tenant<C, W>)| Usage {
            key: *key,
            open: tenant.slots(),
            idle: tenant.idle.len(),
            waiting: tenant.waiters.len(),
        };
        self.tenants.iter().map(usage).collect()
    }

    /// Changes the number of slots. What is above it is closed as it becomes idle.
    pub(super) fn set_capacity(&mut self, capacity: usize) -> Effects<K, C, W> {
        self.capacity = capacity;
        self.settle(Effects::default())
    }

    /// Takes the tenant's own idle connection, the one used last, if there is one and nobody waits for it.
    pub(super) fn take_idle(&mut self, key: K) -> Option<C> {
        let tenant = self.tenants.get_mut(&key).filter(|tenant| tenant.waiters.is_empty())?;
        let Idle { sequence, connection, .. } = tenant.idle.pop_back()?;
        tenant.in_use += 1;
        self.idle.remove(&sequence);
        Some(connection)
    }

    /// Asks for a connection. The waiter is told when there is one, perhaps at once; the number is for [`Self::leave`].
    pub(super) fn enter(&mut self, key: K, terms: Terms, waiter: W) -> (u64, Effects<K, C, W>) {
        self.sequence += 1;
        let ticket = self.sequence;
        let tenant = self.tenants.entry(key).or_insert_with(|| Tenant {
            terms,
            opening: 0,
            in_use: 0,
            closing: 0,
            idle: VecDeque::new(),
            waiters: VecDeque::new(),
        });
        self.suspects_opening -= suspects(tenant);
        tenant.terms = terms;
        self.suspects_opening += suspects(tenant);
        if tenant.waiters.is_empty() {
            self.turns.push_back(key);
        }
        tenant.waiters.push_back((ticket, waiter));
        let mut effects = Effects::default();
        self.serve_from_idle(key, &mut effects);
        (ticket, self.settle(effects))
    }

    /// A waiter has given up. Says nothing of one that was served already.
    pub(super) fn leave(&mut self, key: K, ticket: u64) {
        if let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.waiters.retain(|(other, _)| *other != ticket);
        }
        self.tidy(key);
    }

    /// Takes all waiters of a tenant out of the queue, so that they can be told why.
    pub(super) fn dismiss(&mut self, key: K) -> Vec<W> {
        let waiters = self.tenants.get_mut(&key).map(|tenant| std::mem::take(&mut tenant.waiters));
        self.tidy(key);
        waiters.into_iter().flatten().map(|(_, waiter)| waiter).collect()
    }

    /// A connection came about in a slot given by [`Grant::Open`]; it is in use.
    pub(super) fn opened(&mut self, key: K) -> Effects<K, C, W> {
        if let Some(tenant) = self.tenants.get_mut(&key) {
            self.suspects_opening -= suspects(tenant);
            tenant.terms.suspect = false;
            tenant.opening = tenant.opening.saturating_sub(1);
            tenant.in_use += 1;
        }
        self.settle(Effects::default())
    }

    /// None came about: the slot is free again. `suspect` says so if it was tried and failed.
    pub(super) fn not_opened(&mut self, key: K, suspect: Option<bool>) -> Effects<K, C, W> {
        if let Some(tenant) = self.tenants.get_mut(&key) {
            self.suspects_opening -= suspects(tenant);
            tenant.opening = tenant.opening.saturating_sub(1);
            tenant.terms.suspect = suspect.unwrap_or(tenant.terms.suspect);
            self.suspects_opening += suspects(tenant);
            self.open = self.open.saturating_sub(1);
        }
        self.tidy(key);
        self.settle(Effects::default())
    }

    /// A connection in use comes back and may be used again. `handovers` is the number it was granted with.
    pub(super) fn give_back(&mut self, key: K, connection: C, handovers: u32, now: Instant) -> Effects<K, C, W> {
        let mut effects = Effects::default();
        let over = self.open.saturating_sub(self.closing) > self.capacity;
        let tired = handovers >= HANDOVERS && self.turns.iter().any(|other| *other != key && self.may_open(*other));
        let Some(tenant) = self.tenants.get_mut(&key) else { return effects };
        tenant.in_use = tenant.in_use.saturating_sub(1);
        // After its ceiling was lowered a tenant gives back what is above it.
        let over = over || tenant.slots() - tenant.closing >= tenant.terms.ceiling.max(1);
        if over || (tired && !tenant.waiters.is_empty()) {
            tenant.closing += 1;
            self.closing += 1;
            effects.close.push((key, connection));
        } else if let Some((_, waiter)) = tenant.waiters.pop_front() {
            tenant.in_use += 1;
            effects.grants.push((key, waiter, Grant::Ready(connection, handovers.saturating_add(1))));
            self.turn_taken(key);
        } else {
            self.sequence += 1;
            tenant.idle.push_back(Idle { sequence: self.sequence, since: now, connection });
            self.idle.insert(self.sequence, key);
        }
        self.settle(effects)
    }

    /// A connection in use will not be used again. Its slot is free when [`Self::closed`] says so.
    pub(super) fn discard(&mut self, key: K) -> Effects<K, C, W> {
        if let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.in_use = tenant.in_use.saturating_sub(1);
            tenant.closing += 1;
            self.closing += 1;
        }
        self.settle(Effects::default())
    }

    /// A connection that was to be closed has ended.
    pub(super) fn closed(&mut self, key: K) -> Effects<K, C, W> {
        if let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.closing = tenant.closing.saturating_sub(1);
            self.closing = self.closing.saturating_sub(1);
            self.open = self.open.saturating_sub(1);
        }
        self.tidy(key);
        self.settle(Effects::default())
    }

    /// All idle connections of a tenant are to be closed.
    pub(super) fn retire(&mut self, key: K) -> Effects<K, C, W> {
        let mut effects = Effects::default();
        while let Some(sequence) =
            self.tenants.get(&key).and_then(|tenant| tenant.idle.front()).map(|idle| idle.sequence)
        {
            self.evict(sequence, &mut effects);
        }
        effects
    }

    /// Idle connections that nobody has used since `before` are to be closed.
    pub(super) fn reap(&mut self, before: Instant) -> Effects<K, C, W> {
        let mut effects = Effects::default();
        while let Some((sequence, key)) = self.idle.first_key_value().map(|(sequence, key)| (*sequence, *key)) {
            let since = self.tenants.get(&key).and_then(|tenant| tenant.idle.front()).map(|idle| idle.since);
            if since.is_some_and(|since| since >= before) {
                break;
            }
            self.evict(sequence, &mut effects);
        }
        effects
    }

    fn may_open(&self, key: K) -> bool {
        self.tenants.get(&key).is_some_and(|tenant| {
            tenant.openable() > 0 && (!tenant.terms.suspect || self.suspects_opening < self.suspects_allowed())
        })
    }

    fn suspects_allowed(&self) -> usize {
        (self.capacity / 8).max(1)
    }

    /// An idle connection of the tenant's own serves its next waiter.
    fn serve_from_idle(&mut self, key: K, effects: &mut Effects<K, C, W>) {
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        while !tenant.waiters.is_empty()
            && let Some(Idle { sequence, connection, .. }) = tenant.idle.pop_back()
        {
            self.idle.remove(&sequence);
            tenant.in_use += 1;
            if let Some((_, waiter)) = tenant.waiters.pop_front() {
                effects.grants.push((key, waiter, Grant::Ready(connection, 0)));
            }
        }
        self.tidy(key);
    }

    /// Gives free slots away in turn, and makes room where somebody may open and there is none.
    fn settle(&mut self, mut effects: Effects<K, C, W>) -> Effects<K, C, W> {
        while self.open < self.capacity {
            let Some(key) = self.turns.iter().copied().find(|key| self.may_open(*key)) else { break };
            let Some(tenant) = self.tenants.get_mut(&key) else { break };
            let Some((_, waiter)) = tenant.waiters.pop_front() else { break };
            self.suspects_opening -= suspects(tenant);
            tenant.opening += 1;
            self.suspects_opening += suspects(tenant);
            self.open += 1;
            effects.grants.push((key, waiter, Grant::Open));
            self.turn_taken(key);
        }
        if self.idle.is_empty() {
            return effects;
        }
        let (mut wanted, mut suspects) = (0, self.suspects_allowed().saturating_sub(self.suspects_opening));
        for tenant in self.turns.iter().filter_map(|key| self.tenants.get(key)) {
            if wanted >= self.capacity {
                break;
            }
            if !tenant.terms.suspect {
                wanted += tenant.worth_evicting();
            } else if suspects > 0 {
                let one = tenant.worth_evicting().min(1);
                suspects -= one;
                wanted += one;
            }
        }
        while self.open.saturating_sub(self.closing) + wanted > self.capacity {
            let Some(sequence) = self.idle.keys().next().copied() else { break };
            self.evict(sequence, &mut effects);
        }
        effects
    }

    fn evict(&mut self, sequence: u64, effects: &mut Effects<K, C, W>) {
        let Some(key) = self.idle.remove(&sequence) else { return };
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        // The tenant's least recently used is its first, as it is in the list of all.
        if let Some(idle) = tenant.idle.pop_front() {
            tenant.closing += 1;
            self.closing += 1;
            effects.close.push((key, idle.connection));
        }
    }

    /// A tenant was served: it goes to the end of the turns, or out of them if nobody of it waits.
    fn turn_taken(&mut self, key: K) {
        self.turns.retain(|other| *other != key);
        if self.tenants.get(&key).is_some_and(|tenant| !tenant.waiters.is_empty()) {
            self.turns.push_back(key);
        }
    }

    /// Forgets what a tenant no longer has.
    fn tidy(&mut self, key: K) {
        let Some(tenant) = self.tenants.get(&key) else { return };
        if tenant.waiters.is_empty() {
            self.turns.retain(|other| *other != key);
            if tenant.slots() == 0 {
                self.tenants.remove(&key);
            }
        }
    }
}

/// How many of a tenant's attempts count against the limit of all suspects.
fn suspects<C, W>(tenant: &Tenant<C, W>) -> usize {
    if tenant.terms.suspect { tenant.opening } else { 0 }
}

#[cfg(test)]
mod tests;
