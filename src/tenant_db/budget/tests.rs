use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const TERMS: Terms = Terms { ceiling: 4, suspect: false };

/// A budget with numbers for connections and waiters, and a note of who has what.
struct World {
    budget: Budget<u8, u32, u32>,
    now: Instant,
    next: u32,
    /// Waiters that were neither served nor left.
    waiting: HashMap<u32, (u8, u64)>,
    opening: Vec<u8>,
    in_use: Vec<(u8, u32, u32)>,
    closing: Vec<u8>,
    served: Vec<u8>,
    /// What the database server sees: every connection that was opened and has not ended.
    seen: HashSet<u32>,
}

impl World {
    fn new(capacity: usize) -> Self {
        let mut budget = Budget::new();
        drop(budget.set_capacity(capacity));
        Self {
            budget,
            now: Instant::now(),
            next: 0,
            waiting: HashMap::new(),
            opening: Vec::new(),
            in_use: Vec::new(),
            closing: Vec::new(),
            served: Vec::new(),
            seen: HashSet::new(),
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn perform(&mut self, effects: Effects<u8, u32, u32>) {
        for (key, waiter, grant) in effects.grants {
            assert_eq!(
                self.waiting.remove(&waiter).map(|(of, _)| of),
                Some(key),
                "somebody is served who does not wait"
            );
            self.served.push(key);
            match grant {
                Grant::Open => self.opening.push(key),
                Grant::Ready(connection, handovers) => self.in_use.push((key, connection, handovers)),
            }
        }
        for (key, connection) in effects.close {
            assert!(self.seen.contains(&connection), "what is closed was open");
            // Until it has ended the server sees it; which one ends is told by the tenant alone.
            self.seen.remove(&connection);
            self.closing.push(key);
        }
    }

    fn ask(&mut self, key: u8, terms: Terms) {
        if let Some(connection) = self.budget.take_idle(key) {
            self.served.push(key);
            self.in_use.push((key, connection, 0));
            return;
        }
        let waiter = self.number();
        // Noted before: it may be served at once.
        self.waiting.insert(waiter, (key, 0));
        let (ticket, effects) = self.budget.enter(key, terms, waiter);
        if let Some(noted) = self.waiting.get_mut(&waiter) {
            noted.1 = ticket;
        }
        self.perform(effects);
    }

    fn open_one(&mut self, index: usize, works: bool) {
        let key = self.opening.remove(index);
        let effects = if works {
            let connection = self.number();
            self.seen.insert(connection);
            self.in_use.push((key, connection, 0));
            self.budget.opened(key)
        } else {
            self.budget.not_opened(key, Some(true))
        };
        self.perform(effects);
    }

    fn give_back(&mut self, index: usize) {
        let (key, connection, handovers) = self.in_use.remove(index);
        self.now += Duration::from_millis(1);
        let effects = self.budget.give_back(key, connection, handovers, self.now);
        self.perform(effects);
    }

    fn discard(&mut self, index: usize) {
        let (key, connection, _) = self.in_use.remove(index);
        let effects = self.budget.discard(key);
        self.seen.remove(&connection);
        self.closing.push(key);
        self.perform(effects);
    }

    fn end_one(&mut self, index: usize) {
        let key = self.closing.remove(index);
        let effects = self.budget.closed(key);
        self.perform(effects);
    }

    /// Lets everything that is under way come to its end.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if !self.closing.is_empty() {
                self.end_one(0);
            } else if !self.opening.is_empty() {
                self.open_one(0, true);
            } else if !self.in_use.is_empty() {
                self.give_back(0);
            } else {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// What the server may see at most.
    fn slots(&self) -> usize {
        self.opening.len() + self.seen.len() + self.closing.len()
    }
}

#[test]
fn the_connection_that_was_idle_longest_makes_room() {
    let mut world = World::new(2);
    for key in [1, 2] {
        world.ask(key, TERMS);
        world.open_one(0, true);
        world.give_back(0);
    }
    // The first tenant's is used again, so the second's has been idle longer.
    world.ask(1, TERMS);
    world.give_back(0);
    world.ask(3, TERMS);
    assert_eq!((world.closing.as_slice(), world.opening.len()), ([2].as_slice(), 0));
    world.end_one(0);
    assert_eq!(world.opening, [3]);
}

#[test]
fn a_slot_is_free_only_when_its_connection_has_ended() {
    let mut world = World::new(1);
    world.ask(1, TERMS);
    world.open_one(0, true);
    world.discard(0);
    world.ask(2, TERMS);
    assert!(world.opening.is_empty());
    world.end_one(0);
    assert_eq!(world.opening, [2]);
}

#[test]
fn a_tenant_with_many_waiters_does_not_keep_others_out() {
    let mut world = World::new(1);
    for _ in 0..100 {
        world.ask(1, TERMS);
    }
    world.open_one(0, true);
    world.ask(2, TERMS);
    for _ in 0..1000 {
        if world.served.contains(&2) {
            break;
        }
        if !world.closing.is_empty() {
            world.end_one(0);
        } else if !world.opening.is_empty() {
            world.open_one(0, true);
        } else {
            world.give_back(0);
        }
    }
    let before = world.served.iter().position(|key| *key == 2).unwrap();
    assert!(before <= HANDOVERS as usize + 2, "{before} of the first tenant's came before");
}

#[test]
fn a_ceiling_holds_and_waiters_of_others_are_not_stuck_behind_it() {
    let mut world = World::new(10);
    world.ask(1, TERMS);
    world.open_one(0, true);
    for _ in 0..20 {
        world.ask(1, TERMS);
    }
    assert_eq!(world.budget.slots_of(1), 4);
    world.ask(2, TERMS);
    assert!(world.opening.contains(&2));
}

#[test]
fn until_one_connection_works_there_is_one_attempt() {
    let mut world = World::new(10);
    for _ in 0..5 {
        world.ask(1, TERMS);
    }
    assert_eq!(world.opening, [1]);
    world.open_one(0, true);
    assert_eq!(world.opening.len(), 3);
}

#[test]
fn tenants_whose_databases_fail_share_an_eighth() {
    let mut world = World::new(16);
    for key in 0..100 {
        world.ask(key, Terms { suspect: true, ..TERMS });
    }
    assert_eq!(world.opening.len(), 2);
    world.ask(200, TERMS);
    assert!(world.opening.contains(&200));
}

#[test]
fn a_smaller_capacity_closes_what_comes_back() {
    let mut world = World::new(4);
    for key in 0..4 {
        world.ask(key, TERMS);
        world.open_one(0, true);
    }
    world.give_back(0);
    let effects = world.budget.set_capacity(2);
    world.perform(effects);
    assert_eq!(world.closing.len(), 1);
    world.give_back(0);
    assert_eq!(world.closing.len(), 2);
    world.give_back(0);
    assert_eq!((world.closing.len(), world.budget.idle()), (2, 1));
}

#[test]
fn idle_connections_end_by_themselves() {
    let mut world = World::new(4);
    world.ask(1, TERMS);
    world.open_one(0, true);
    world.give_back(0);
    let effects = world.budget.reap(world.now);
    assert!(effects.close.is_empty());
    let effects = world.budget.reap(world.now + Duration::from_millis(1));
    world.perform(effects);
    world.end_one(0);
    assert_eq!((world.budget.open(), world.budget.usage().len()), (0, 0));
}

proptest! {
    /// Whatever happens in whatever order: never more slots than there are, and whoever neither left nor was served
    /// is served in the end.
    #[test]
    fn the_budget_holds_and_no_waiter_is_lost(
        capacity in 1_usize..7,
        ceiling in 1_usize..5,
        events in prop::collection::vec((0_u8..12, 0_u8..6, any::<prop::sample::Index>()), 1..300),
    ) {
        let mut world = World::new(capacity);
        let terms = Terms { ceiling, suspect: false };
        for (event, key, index) in events {
            match event {
                0..=3 => world.ask(key, terms),
                4 => world.ask(key, Terms { suspect: true, ..terms }),
                5 | 6 if !world.opening.is_empty() => {
                    let index = index.index(world.opening.len());
                    world.open_one(index, event == 5);
                }
                7 | 8 if !world.in_use.is_empty() => {
                    let index = index.index(world.in_use.len());
                    if event == 7 { world.give_back(index) } else { world.discard(index) }
                }
                9 if !world.closing.is_empty() => {
                    let index = index.index(world.closing.len());
                    world.end_one(index);
                }
                10 => {
                    let found = world.waiting.iter().find(|(_, (of, _))| *of == key).map(|(id, (_, ticket))| (*id, *ticket));
                    if let Some((id, ticket)) = found {
                        world.waiting.remove(&id);
                        world.budget.leave(key, ticket);
                    }
                }
                11 => {
                    let effects = if index.index(2) == 0 { world.budget.retire(key) } else { world.budget.reap(world.now) };
                    world.perform(effects);
                }
                _ => {}
            }
            prop_assert_eq!(world.budget.open(), world.slots());
            prop_assert!(world.slots() <= capacity, "{} of {capacity}", world.slots());
            prop_assert_eq!(world.budget.waiting(), world.waiting.len());
            for key in 0..6 {
                prop_assert!(world.budget.slots_of(key) <= ceiling.max(1));
            }
        }
        world.finish();
        prop_assert!(world.waiting.is_empty(), "lost: {:?}", world.waiting);
        let effects = world.budget.reap(world.now + Duration::from_secs(1));
        world.perform(effects);
        world.finish();
        prop_assert_eq!(world.budget.open(), 0);
        prop_assert_eq!(world.budget.suspects_opening, 0);
        prop_assert!(world.budget.tenants.is_empty());
    }
}
