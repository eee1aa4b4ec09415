//! Rates as several servers keep them, with a clock, a network and a store that are made up: requests at any time,
//! answers that are late or lost, servers that die and start, a store that is away. What is looked at is only which
//! requests were admitted.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::members::{LEASE, MARGIN, Members};
use super::rate_account::{Ask, RateAccount, Settled};
use super::rate_state::{RateState, Verdict};
use super::rates::TICK;

const MINUTE: u64 = 60_000;

/// What one server does, and what of it is under way.
struct Server {
    id: Uuid,
    state: RateState,
    /// When it last said that it is there.
    contact: u64,
    /// What a round will bring, and when: nothing if its answer is lost.
    round: Option<(u64, Ask, Option<Settled>)>,
    /// Whether a round is to come after this one.
    asked: bool,
    next_tick: u64,
}

/// All of them. What happens by chance is drawn from `chance`.
struct World {
    now: u64,
    limit: u32,
    servers: Vec<Server>,
    /// Those that died, and when; and whether others know.
    stopped: BTreeMap<Uuid, (u64, u64)>,
    account: RateAccount,
    /// When it was written last, and after how long the store forgets it: none, if ever.
    written_at: u64,
    forgets_after: Option<u64>,
    store_away: bool,
    latency: u64,
    /// One answer in so many is lost; none if 0.
    lost: u64,
    chance: u64,
    admitted: Vec<u64>,
    names: u128,
}

impl World {
    fn new(limit: u32, servers: usize, latency: u64, lost: u64, chance: u64) -> Self {
        let mut world = Self {
            now: 0,
            limit,
            servers: Vec::new(),
            stopped: BTreeMap::new(),
            account: RateAccount::default(),
            written_at: 0,
            forgets_after: None,
            store_away: false,
            latency,
            lost,
            chance,
            admitted: Vec::new(),
            names: 0,
        };
        for _ in 0..servers {
            world.start();
        }
        world
    }

    /// A number below `below`, from a generator that is the same every time.
    fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % below.max(1)
    }

    fn start(&mut self) {
        self.names += 1;
        let tick = TICK.as_millis() as u64;
        let next_tick = self.now + self.draw(tick);
        let (id, state) = (Uuid::from_u128(self.names), RateState::new(self.now));
        self.servers.push(Server { id, state, contact: self.now, round: None, asked: false, next_tick });
    }

    /// A server dies. Its place is taken at once, or it is missed once its lease is over.
    fn die(&mut self, index: usize, place_taken: bool) {
        let dead = self.servers.remove(index);
        let silence = (LEASE + MARGIN).as_millis() as u64;
        let known_at = if place_taken { self.now } else { dead.contact + silence };
        self.stopped.insert(dead.id, (known_at, self.now));
    }

    fn members(&self) -> Members {
        let live: Vec<_> = self.servers.iter().map(|server| server.id).collect();
        let mut members = Members::of(&live);
        for (id, (known_at, _)) in &self.stopped {
            members = if *known_at <= self.now {
                members.with_stopped(*id, *known_at as i64, true)
            } else {
                members.with_known(*id)
            };
        }
        members
    }

    /// A millisecond passes.
    fn pass(&mut self) {
        self.now += 1;
        let (now, away) = (self.now, self.store_away);
        for index in 0..self.servers.len() {
            let alone = self.servers.len() < 2;
            let server = &mut self.servers[index];
            if !away && now.is_multiple_of(2_000) {
                server.contact = now;
            }
            if now >= server.next_tick {
                server.next_tick = now + TICK.as_millis() as u64;
                server.asked |= server.state.is_due(now, alone);
            }
            if let Some((at, ask, settled)) = &server.round
                && *at <= now
            {
                match settled {
                    Some(settled) => server.state.adopt(now, ask, settled),
                    None => server.state.lost(now, ask),
                }
                server.round = None;
            }
            if server.round.is_none() && server.asked {
                self.begin_round(index);
            }
        }
    }

    /// The store settles a round at some time before its answer is there. Rounds of one server do not overtake each other.
    fn begin_round(&mut self, index: usize) {
        let (now, members) = (self.now, self.members());
        let lost = self.lost > 0 && self.draw(self.lost) == 0;
        let happened = !self.store_away && (!lost || self.draw(2) == 0);
        let wait = 1 + self.draw(self.latency);
        let server = &mut self.servers[index];
        server.asked = false;
        let ask = server.state.prepare(now, server.id);
        if self.forgets_after.is_some_and(|after| now > self.written_at + after) {
            self.account = RateAccount::default();
        }
        let settled = happened.then(|| self.account.settle(server.id, &ask, &members, now as i64));
        self.written_at = if happened { now } else { self.written_at };
        let wants_of_others = settled.is_some_and(|settled| settled.missing > 0 && settled.spare_elsewhere > 0);
        let answer = if lost { None } else { settled };
        let server = &mut self.servers[index];
        server.round = Some((now + wait, ask, answer));
        if wants_of_others {
            for other in self.servers.iter_mut() {
                other.state.offer = true;
                other.asked = true;
            }
        }
    }

    /// A request. One that has to wait is asked for again by its caller, as the service does.
    fn request(&mut self, index: usize) -> bool {
        let (now, limit) = (self.now, self.limit);
        let Some(server) = self.servers.get_mut(index) else { return false };
        let in_contact = now < server.contact + LEASE.as_millis() as u64;
        match server.state.take(now, limit, server.id, in_contact) {
            Verdict::Taken(..) => {
                server.state.waiting = 0;
                self.admitted.push(now);
                true
            }
            Verdict::Ask => {
                server.state.waiting = 1;
                server.asked = true;
                false
            }
            Verdict::Refused(_) | Verdict::Unknown => {
                server.state.waiting = 0;
                false
            }
        }
    }

    /// The most requests that were admitted in any sliding minute.
    fn most(&self) -> usize {
        let mut first = 0;
        let mut most = 0;
        for (last, at) in self.admitted.iter().enumerate() {
            while self.admitted[first] + MINUTE <= *at {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }
}

/// What happens in a time.
#[derive(Debug, Clone)]
enum Event {
    /// Requests this often at these servers, in milliseconds.
    Demand {
        every: u64,
        servers: u8,
        time: u64,
    },
    Die {
        server: usize,
        place_taken: bool,
    },
    Start,
    StoreAway(bool),
    Limit(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u64..400, 1_u8..16, 1_000_u64..40_000)
            .prop_map(|(every, servers, time)| Event::Demand { every, servers, time }),
        1 => (0_usize..4, any::<bool>()).prop_map(|(server, place_taken)| Event::Die { server, place_taken }),
        1 => Just(Event::Start),
        1 => any::<bool>().prop_map(Event::StoreAway),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Demand { every, servers, time } => {
            for step in 0..*time {
                world.pass();
                if step % every == 0 {
                    for index in 0..world.servers.len() {
                        if servers & (1 << (index % 8)) != 0 {
                            world.request(index);
                        }
                    }
                }
            }
        }
        Event::Die { server, place_taken } => {
            if *server < world.servers.len() {
                world.die(*server, *place_taken);
                if *place_taken || world.servers.is_empty() {
                    world.start();
                }
            }
        }
        Event::Start => world.start(),
        Event::StoreAway(away) => world.store_away = *away,
        Event::Limit(limit) => world.limit = *limit,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_sliding_minute_is_ever_above_the_limit(
        limit in 1_u32..200, servers in 1_usize..5, latency in 1_u64..600, lost in 0_u64..8, chance: u64,
        events in prop::collection::vec(event(), 1..12),
    ) {
        let mut world = World::new(limit, servers, latency, lost, chance);
        for event in &events {
            happen(&mut world, event);
        }
        prop_assert!(world.most() <= limit as usize, "{} in a minute of {limit}", world.most());
    }

}

proptest! {
    // Each case is many minutes.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn under_constant_demand_at_least_99_percent_is_used(
        limit in prop::sample::select(vec![10_u32, 20, 100, 600]), servers in 1_usize..4, latency in 1_u64..20,
        asked in 1_u8..8, chance: u64,
    ) {
        let mut world = World::new(limit, servers, latency, 0, chance);
        let asked = if asked & ((1 << servers) - 1) == 0 { 1 } else { asked };
        // Long enough for the first burst not to flatter the average.
        let minutes = 10;
        for step in 0..minutes * MINUTE {
            world.pass();
            if step % 3 == 0 {
                for index in 0..servers {
                    if asked & (1 << index) != 0 {
                        world.request(index);
                    }
                }
            }
        }
        let used = world.admitted.len() as f64 / (f64::from(limit) * minutes as f64);
        prop_assert!(used >= 0.99, "{used}");
        prop_assert!(world.most() <= limit as usize);
    }

    #[test]
    fn demand_that_moves_between_servers_finds_what_others_do_not_use(
        limit in prop::sample::select(vec![10_u32, 60, 600]), latency in 1_u64..20, chance: u64,
    ) {
        let mut world = World::new(limit, 3, latency, 0, chance);
        // Each server is asked for five minutes in turn, faster than the limit.
        for index in 0..3 {
            let before = world.admitted.len();
            for step in 0..5 * MINUTE {
                world.pass();
                if step % 5 == 0 {
                    world.request(index);
                }
            }
            let used = (world.admitted.len() - before) as f64 / (f64::from(limit) * 5.0);
            prop_assert!(used >= 0.79, "{used} at server {index}");
        }
        let used = world.admitted.len() as f64 / (f64::from(limit) * 15.0);
        prop_assert!(used >= 0.985 && world.most() <= limit as usize, "{used}");
    }
}

#[test]
fn a_limit_is_used_to_its_end_one_by_one_at_servers_in_turn() {
    for limit in [3, 10, 60] {
        let mut world = World::new(limit, 3, 3, 0, 1);
        for number in 0..limit + 3 {
            let index = number as usize % 3;
            let mut admitted = false;
            // As long as a request waits at most.
            for _ in 0..400 {
                if !admitted {
                    admitted = world.request(index);
                }
                world.pass();
            }
            assert_eq!(admitted, number < limit, "request {number} of {limit}");
        }
    }
}

#[test]
fn an_account_is_not_forgotten_while_anything_of_it_is_in_use() {
    let mut world = World::new(600, 2, 5, 0, 3);
    // Of a store that forgets sooner than any does: what is in use is said more often than that.
    world.forgets_after = Some(2 * MINUTE);
    // Neither server ever wants more than it has, so that neither has a reason to ask.
    happen(&mut world, &Event::Demand { every: 1_000, servers: 3, time: 20 * MINUTE });
    happen(&mut world, &Event::Demand { every: 2, servers: 1, time: 2 * MINUTE });
    happen(&mut world, &Event::Demand { every: 2, servers: 3, time: 2 * MINUTE });
    assert!(world.most() <= 600, "{} in a minute of 600", world.most());
}

#[test]
fn a_store_that_lost_its_memory_learns_within_a_minute_what_is_held() {
    let mut world = World::new(600, 2, 5, 0, 3);
    happen(&mut world, &Event::Demand { every: 1_000, servers: 3, time: 3 * MINUTE });
    world.account = RateAccount::default();
    happen(&mut world, &Event::Demand { every: 1_000, servers: 3, time: MINUTE + 1_000 });
    world.admitted.clear();
    happen(&mut world, &Event::Demand { every: 2, servers: 3, time: 3 * MINUTE });
    assert!(world.most() <= 600, "{} in a minute of 600", world.most());
}

#[test]
fn a_limit_that_is_raised_or_lowered_holds() {
    let mut world = World::new(100, 2, 5, 0, 7);
    let demand = Event::Demand { every: 10, servers: 3, time: 2 * MINUTE };
    happen(&mut world, &demand);
    happen(&mut world, &Event::Limit(10));
    // What was admitted before cools.
    happen(&mut world, &Event::Demand { every: 10, servers: 3, time: MINUTE + 2_000 });
    world.admitted.clear();
    happen(&mut world, &demand);
    assert!((9..=10).contains(&world.most()), "{}", world.most());
    happen(&mut world, &Event::Limit(300));
    world.admitted.clear();
    happen(&mut world, &demand);
    assert!((290..=300).contains(&world.most()), "{}", world.most());
}

#[test]
fn a_permit_that_somebody_waits_for_is_not_handed_on_forever() {
    // All at once, at every server, with rounds that take equally long: what each gets it is asked for by the others.
    for chance in [0, 1, 12_345] {
        let mut world = World::new(10, 3, 1, 0, chance);
        happen(&mut world, &Event::Demand { every: 3, servers: 7, time: 2_000 });
        assert_eq!(world.admitted.len(), 10, "{chance}");
    }
}
