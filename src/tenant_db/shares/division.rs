//! What of a budget is whose. Pure.

use uuid::Uuid;

/// A server's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// What it should have.
    pub(super) fair: usize,
    /// What it may have now: less, while others still hold what they should not.
    pub(super) granted: usize,
}

/// The part of `me`, where each of `others` holds so many. Whatever they hold is theirs until they say otherwise.
///
/// While somebody holds more than a fair part, such as a server that died and is not known to have, those that have less
/// divide the rest equally: whoever comes last is not left with nothing.
pub(super) fn divide(budget: usize, me: Uuid, others: &[(Uuid, usize)]) -> Part {
    let servers = others.len() + 1;
    // What does not divide goes to the first of them, so that all agree on who that is.
    let fair_of = |id: Uuid| {
        let rank = usize::from(me < id) + others.iter().filter(|(other, _)| *other < id).count();
        budget / servers + usize::from(rank < budget % servers)
    };
    let (mut held, mut kept, mut needy, mut rank) = (0, 0, 1, 0);
    for &(other, holds) in others {
        held += holds;
        if holds < fair_of(other) {
            needy += 1;
            rank += usize::from(other < me);
        } else {
            kept += holds;
        }
    }
    let rest = budget.saturating_sub(kept);
    let part_of_rest = rest / needy + usize::from(rank < rest % needy);
    let fair = fair_of(me);
    Part { fair, granted: fair.min(part_of_rest).min(budget.saturating_sub(held)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_server_has_everything() {
        assert_eq!(divide(40, Uuid::from_u128(1), &[]), Part { fair: 40, granted: 40 });
    }

    #[test]
    fn a_newcomer_takes_what_is_free_and_no_more() {
        let (old, new) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(divide(40, new, &[(old, 40)]), Part { fair: 20, granted: 0 });
        assert_eq!(divide(40, old, &[(new, 0)]), Part { fair: 20, granted: 20 });
        assert_eq!(divide(40, new, &[(old, 20)]), Part { fair: 20, granted: 20 });
    }

    #[test]
    fn newcomers_divide_what_a_dead_server_leaves() {
        let [dead, old, first, second, third] = [1, 2, 3, 4, 5].map(Uuid::from_u128);
        let mut held = [(dead, 40), (old, 16), (first, 0), (second, 0), (third, 0)];
        for me in [first, second, third] {
            let others: Vec<_> = held.iter().copied().filter(|(id, _)| *id != me).collect();
            let part = divide(80, me, &others);
            assert_eq!(part, Part { fair: 16, granted: 8 });
            held.iter_mut().filter(|(id, _)| *id == me).for_each(|(_, holds)| *holds = part.granted);
        }
        // Whoever took more before the others came gives some of it.
        assert_eq!(divide(80, first, &[(dead, 40), (old, 16), (second, 8), (third, 0)]).granted, 8);
        assert_eq!(divide(80, first, &[(old, 16), (second, 8), (third, 8)]), Part { fair: 20, granted: 20 });
    }

    #[test]
    fn what_does_not_divide_is_not_lost() {
        let ids = [1, 2, 3].map(Uuid::from_u128);
        let fair: usize = ids
            .iter()
            .map(|me| {
                let others: Vec<_> = ids.iter().filter(|id| *id != me).map(|id| (*id, 0)).collect();
                divide(40, *me, &others).fair
            })
            .sum();
        assert_eq!(fair, 40);
    }

    proptest! {
        /// Servers come, go, and hold on to connections for a while after their share shrank; whatever the order of
        /// their beats, what they hold never adds up to more than the budget, and in the end each has its part.
        #[test]
        fn shares_never_add_up_to_more_than_the_budget(
            budget in 1_usize..100,
            events in prop::collection::vec((0_usize..6, 0_u8..8, any::<prop::sample::Index>()), 1..200),
        ) {
            // Of each server: what it was granted, what it has open, what it said of both.
            let mut servers: Vec<Option<(usize, usize, usize)>> = vec![None; 6];
            let id = |index: usize| Uuid::from_u128(index as u128 + 1);
            let beat = |servers: &mut Vec<Option<(usize, usize, usize)>>, me: usize| {
                let others: Vec<_> = servers.iter().enumerate()
                    .filter(|(index, _)| *index != me)
                    .filter_map(|(index, server)| server.map(|(granted, _, told)| (id(index), granted.max(told))))
                    .collect();
                let part = divide(budget, id(me), &others);
                let open = servers[me].map_or(0, |(_, open, _)| open);
                servers[me] = Some((part.granted, open, open));
            };
            for (me, event, amount) in events {
                match (event, servers[me]) {
                    (0, Some((_, 0, _))) => servers[me] = None,
                    (1..=3, Some((granted, open, told))) if open < granted => {
                        servers[me] = Some((granted, open + 1 + amount.index(granted - open), told));
                    }
                    (4, Some((granted, open, told))) if open > 0 => {
                        servers[me] = Some((granted, amount.index(open), told));
                    }
                    _ => beat(&mut servers, me),
                }
                let open: usize = servers.iter().flatten().map(|(granted, open, _)| (*granted).max(*open)).sum();
                prop_assert!(open <= budget, "{open} of {budget}: {servers:?}");
            }
            for _ in 0..2 {
                for me in 0..servers.len() {
                    if let Some((granted, open, told)) = servers[me] {
                        servers[me] = Some((granted, open.min(granted), told));
                        beat(&mut servers, me);
                        let (granted, open, _) = servers[me].unwrap();
                        servers[me] = Some((granted, open.min(granted), open.min(granted)));
                    }
                }
            }
            let live = servers.iter().flatten().count();
            if live > 0 {
                let all: usize = servers.iter().flatten().map(|(granted, _, _)| granted).sum();
                prop_assert_eq!(all, budget);
            }
        }
    }
}
