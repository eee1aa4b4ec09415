//! Quotas as several servers keep them, with a clock, a network and a store that are made up: answers that take a while, rounds
//! whose end nobody learns, servers that nobody asks for long and that forget. What is looked at is what was answered, and
//! what is on record.

use proptest::prelude::*;
use uuid::Uuid;

use super::members::Members;
use super::quota_account::{Ask, QuotaAccount, Settled};
use super::quota_state::{IDLE, QuotaState, Verdict};

/// How often a server looks after what is in use, in milliseconds.
const TICK: u64 = 200;
/// How long a request that waits comes back, in milliseconds.
const PATIENCE: u64 = 3_000;

struct Server {
    id: Uuid,
    state: Option<QuotaState>,
    /// What a round will bring, and when: nothing if its end is not learned.
    round: Option<(u64, Ask, Option<Settled>)>,
    asked: bool,
    /// When answers under way end, and whether they were answers.
    under_way: Vec<(u64, bool)>,
}

struct World {
    now: u64,
    limit: u64,
    servers: Vec<Server>,
    members: Members,
    account: QuotaAccount,
    latency: u64,
    /// One round in so many is lost; none if 0.
    lost: u64,
    chance: u64,
    answered: u64,
    /// How often the account was settled.
    rounds: u64,
}

impl World {
    fn new(limit: u64, servers: u128, latency: u64, lost: u64, chance: u64) -> Self {
        let ids: Vec<_> = (1..=servers).map(Uuid::from_u128).collect();
        let server = |id: &Uuid| Server { id: *id, state: None, round: None, asked: false, under_way: Vec::new() };
        Self {
            now: 0,
            limit,
            servers: ids.iter().map(server).collect(),
            members: Members::of(&ids),
            account: QuotaAccount::default(),
            latency,
            lost,
            chance,
            answered: 0,
            rounds: 0,
        }
    }

    /// A number below `below`, from a generator that is the same every time.
    fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % below.max(1)
    }

    /// A millisecond passes.
    fn pass(&mut self) {
        self.now += 1;
        let now = self.now;
        for index in 0..self.servers.len() {
            let server = &mut self.servers[index];
            let Some(state) = &mut server.state else { continue };
            let ended = |(at, _): &mut (u64, bool)| *at <= now;
            for (_, is_answer) in server.under_way.extract_if(.., ended) {
                if is_answer {
                    state.settle();
                    self.answered += 1;
                    server.asked = true;
                } else {
                    state.give_back();
                }
            }
            if let Some((_, ask, settled)) = server.round.take_if(|(at, ..)| *at <= now) {
                match settled {
                    Some(settled) => state.adopt(now, &ask, &settled),
                    None => state.lost(now),
                }
            }
            if now.is_multiple_of(TICK) {
                if server.round.is_none() && state.is_forgettable(now) {
                    server.state = None;
                    continue;
                }
                server.asked |= state.is_due(now);
            }
            if server.round.is_none() && server.asked {
                self.begin_round(index);
            }
        }
    }

    fn begin_round(&mut self, index: usize) {
        let lost = self.lost > 0 && self.draw(self.lost) == 0;
        let happened = !lost || self.draw(2) == 0;
        let wait = 1 + self.draw(self.latency);
        let (now, server) = (self.now, &mut self.servers[index]);
        server.asked = false;
        let Some(state) = &mut server.state else { return };
        let ask = state.prepare(now, server.id);
        self.rounds += 1;
        let settled = happened.then(|| self.account.settle(server.id, &ask, &self.members, now as i64));
        server.round = Some((now + wait, ask, settled.filter(|_| !lost)));
    }

    /// A request, which waits if it has to, and takes so long if it is let in. Whether it was.
    fn request(&mut self, index: usize, takes: u64, is_answer: bool) -> bool {
        let give_up = self.now + PATIENCE;
        let mut waits = false;
        loop {
            let (now, limit, server) = (self.now, self.limit, &mut self.servers[index]);
            let state = server.state.get_or_insert_with(|| QuotaState::new(now));
            state.waiting -= u64::from(std::mem::take(&mut waits));
            match state.reserve(now, limit, server.id, true) {
                Verdict::Known(reserved) => {
                    server.asked |= reserved.ask_ahead;
                    server.under_way.push((now + takes, is_answer));
                    return true;
                }
                Verdict::Exceeded => return false,
                Verdict::Unknown => {}
                Verdict::Ask => server.asked = true,
            }
            if now > give_up {
                return false;
            }
            state.waiting += 1;
            waits = true;
            self.pass();
        }
    }

    fn passes(&mut self, milliseconds: u64) {
        (0..milliseconds).for_each(|_| self.pass());
    }

    /// For so long nobody asks. Only what is under way when it begins is looked at in every millisecond of it.
    fn rest(&mut self) {
        self.passes(PATIENCE);
        self.now += IDLE;
        self.passes(PATIENCE);
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// So many requests at a server, one every so many milliseconds, that take so long.
    Ask { server: usize, requests: u64, every: u64, takes: u64, fails: bool },
    /// Nobody asks for longer than servers remember.
    Rest,
    /// Somebody looks at how the month stands.
    Look { server: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_usize..4, 1_u64..60, 0_u64..50, 0_u64..2_000, any::<bool>())
            .prop_map(|(server, requests, every, takes, fails)| Event::Ask { server, requests, every, takes, fails }),
        3 => Just(Event::Rest),
        1 => (0_usize..4).prop_map(|server| Event::Look { server }),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Ask { server, requests, every, takes, fails } => {
            for number in 0..requests {
                let is_answer = !(fails && number % 3 == 0);
                world.request(server % world.servers.len(), takes, is_answer);
                world.passes(every);
            }
        }
        Event::Rest => world.rest(),
        Event::Look { server } => {
            let (now, limit, index) = (world.now, world.limit, server % world.servers.len());
            let server = &mut world.servers[index];
            let state = server.state.get_or_insert_with(|| QuotaState::new(now));
            server.asked |= state.status(now, limit) == Verdict::Ask;
            world.passes(100);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_month_answers_its_limit_and_every_answer_is_on_record_once(
        limit in 1_u64..2_000, servers in 1_u128..5, latency in 1_u64..40, lost in 0_u64..8, chance: u64,
        events in prop::collection::vec(event(), 1..16),
    ) {
        let mut world = World::new(limit, servers, latency, lost, chance);
        for event in &events {
            happen(&mut world, event);
            prop_assert!(world.answered <= limit, "{} of {limit}", world.answered);
        }
        world.lost = 0;
        world.passes(10_000);
        prop_assert_eq!(world.account.used, world.answered);
        // What is left is there for whoever asks, but for a hundredth that others may hold.
        let mut refused = 0;
        while refused < 2 {
            refused += u64::from(!world.request(0, 0, true));
            world.passes(2_000);
        }
        prop_assert!(world.answered <= limit && world.answered >= limit - limit / 100, "{} of {limit}", world.answered);
        prop_assert_eq!(world.account.used, world.answered);
    }
}

#[test]
fn a_server_that_was_not_asked_for_long_counts_on_where_it_was() {
    let mut world = World::new(500, 1, 3, 0, 1);
    for _ in 0..8 {
        for _ in 0..100 {
            world.request(0, 5, true);
        }
        world.rest();
        assert!(world.servers[0].state.is_none(), "it has forgotten");
    }
    assert_eq!((world.answered, world.account.used), (500, 500));
}

#[test]
fn what_nobody_uses_is_given_back_once_and_then_nothing_is_written() {
    let mut world = World::new(100_000, 2, 3, 0, 1);
    world.request(0, 0, true);
    world.passes(1_000);
    let held: u64 = world.account.leases.values().map(|lease| lease.granted - lease.settled).sum();
    assert_eq!(held, 100, "a thousandth, ahead of need");
    world.rest();
    let rounds = world.rounds;
    let held: u64 = world.account.leases.values().map(|lease| lease.granted - lease.settled).sum();
    assert_eq!(held, 0);
    world.rest();
    world.rest();
    assert_eq!(world.rounds, rounds);
}
