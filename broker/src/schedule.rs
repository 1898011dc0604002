//! Whose turn is it: among the queues of the agencies behind one node, urgent before normal; within a priority the
//! agencies take turns, each in its order of acceptance, so that none starves another. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use docaxis_protocol::AgencyCode;
use docaxis_protocol::limits::MAX_PRIORITY;

use crate::store::{Seq, Waiting};

/// Offers under way at once on one link, as long as all are normal.
const PLACES: usize = 64;
/// How many more there may be with each step in priority: however long normal ones take, something more urgent finds a place
/// beside them.
const MORE_PLACES: usize = 4;

/// A delivery of this priority may be begun while fewer than so many are under way on its link, of whatever priority.
pub fn places(priority: u8) -> usize {
    PLACES + MORE_PLACES * usize::from(priority.min(MAX_PRIORITY))
}

/// The lowest priority of which a delivery may be begun beside so many that are under way.
pub fn least_with_a_place(under_way: usize) -> Option<u8> {
    (0..=MAX_PRIORITY).find(|priority| under_way < places(*priority))
}

/// Picks deliveries out of the heads of several recipients' queues, as many as there are places beside those under way.
///
/// Each queue comes in its own order (urgent first, then order of acceptance). `last` is the agency served last in each
/// priority: the turn goes on behind it.
pub fn next(
    queues: Vec<Vec<Waiting>>,
    under_way: &BTreeSet<(Seq, AgencyCode)>,
    last: &BTreeMap<u8, AgencyCode>,
) -> Vec<Waiting> {
    let mut classes: BTreeMap<u8, BTreeMap<AgencyCode, VecDeque<Waiting>>> = BTreeMap::new();
    for waiting in queues.into_iter().flatten() {
        if !under_way.contains(&(waiting.seq, waiting.recipient.clone())) {
            let class = classes.entry(waiting.priority).or_default();
            class.entry(waiting.recipient.clone()).or_default().push_back(waiting);
        }
    }
    let mut picked = Vec::new();
    for (priority, mut agencies) in classes.into_iter().rev() {
        let mut turn: VecDeque<AgencyCode> = agencies.keys().cloned().collect();
        if let Some(last) = last.get(&priority) {
            let behind = turn.iter().position(|code| code > last).unwrap_or(0);
            turn.rotate_left(behind);
        }
        while under_way.len() + picked.len() < places(priority) {
            let Some(agency) = turn.pop_front() else { break };
            if let Some(waiting) = agencies.get_mut(&agency).and_then(VecDeque::pop_front) {
                picked.push(waiting);
                turn.push_back(agency);
            }
        }
    }
    picked
}

#[cfg(test)]
mod tests {

    use super::*;

    fn queue(code: &str, items: &[(u8, u64)]) -> Vec<Waiting> {
        let recipient: AgencyCode = code.parse().unwrap();
        items.iter().map(|&(priority, seq)| Waiting { recipient: recipient.clone(), priority, seq: Seq(seq) }).collect()
    }

    fn order(picked: &[Waiting]) -> Vec<u64> {
        picked.iter().map(|w| w.seq.0).collect()
    }

    #[test]
    fn urgent_goes_first_and_agencies_take_turns_within_a_priority() {
        let queues = vec![queue("AAA", &[(2, 9), (0, 1), (0, 2), (0, 3)]), queue("BBB", &[(0, 4), (0, 5)])];
        assert_eq!(order(&next(queues, &BTreeSet::new(), &BTreeMap::new())), [9, 1, 4, 2, 5, 3]);
    }

    #[test]
    fn the_turn_goes_on_behind_the_agency_that_was_served_last() {
        let queues = vec![queue("AAA", &[(0, 1), (0, 2)]), queue("BBB", &[(0, 3)]), queue("CCC", &[(0, 4)])];
        let last = BTreeMap::from([(0, "AAA".parse().unwrap()), (1, "BBB".parse().unwrap())]);
        assert_eq!(
            order(&next(queues, &BTreeSet::new(), &last)),
            [3, 4, 1, 2],
            "whoever had an urgent one keeps its turn"
        );
    }

    #[test]
    fn what_is_under_way_is_not_picked_again_and_takes_its_place() {
        let queues = || vec![queue("AAA", &[(0, 1), (0, 2), (0, 3)])];
        let under_way = |count: u64| (0..count).map(|n| (Seq(n * 100 + 1), "AAA".parse().unwrap())).collect();
        assert_eq!(order(&next(queues(), &under_way(63), &BTreeMap::new())), [2]);
        assert!(next(queues(), &under_way(64), &BTreeMap::new()).is_empty());
    }

    #[test]
    fn what_is_more_urgent_finds_places_beside_all_that_may_be_under_way_of_the_rest() {
        let many = |priority: u8| (0..100).map(|n| (priority, n)).collect::<Vec<_>>();
        let mut under_way = BTreeSet::new();
        for priority in 0..=4 {
            let more = next(vec![queue("AAA", &many(0)), queue("BBB", &many(priority))], &under_way, &BTreeMap::new());
            let expected = if priority == 0 { 64 } else { 4 };
            assert_eq!(more.iter().filter(|one| one.priority == priority).count(), expected);
            assert_eq!(more.len(), expected, "normal ones have no more places than they had");
            let first = 1_000 * (1 + u64::from(priority));
            under_way.extend((first..).take(more.len()).map(|n| (Seq(n), "CCC".parse().unwrap())));
            assert_eq!(least_with_a_place(under_way.len()), (priority < 4).then_some(priority + 1));
        }
    }
}
