//! Whose turn is it: among the queues of the agencies behind one node, urgent before normal; within a priority the
//! agencies take turns, each in its order of acceptance, so that none starves another. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use docaxis_protocol::AgencyCode;

use crate::store::{Seq, Waiting};

/// Picks at most `room` deliveries out of the heads of several recipients' queues, skipping those under way.
///
/// Each queue comes in its own order (urgent first, then order of acceptance). `last` is the agency served last: the
/// turn goes on behind it.
pub fn next(
    queues: Vec<Vec<Waiting>>,
    under_way: &BTreeSet<(Seq, AgencyCode)>,
    last: Option<&AgencyCode>,
    room: usize,
) -> Vec<Waiting> {
    let mut classes: BTreeMap<u8, BTreeMap<AgencyCode, VecDeque<Waiting>>> = BTreeMap::new();
    for waiting in queues.into_iter().flatten() {
        if !under_way.contains(&(waiting.seq, waiting.recipient.clone())) {
            let class = classes.entry(waiting.priority).or_default();
            class.entry(waiting.recipient.clone()).or_default().push_back(waiting);
        }
    }
    let mut picked = Vec::with_capacity(room);
    for (_, mut agencies) in classes.into_iter().rev() {
        let mut turn: VecDeque<AgencyCode> = agencies.keys().cloned().collect();
        if let Some(last) = last {
            let behind = turn.iter().position(|code| code > last).unwrap_or(0);
            turn.rotate_left(behind);
        }
        while picked.len() < room {
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
        assert_eq!(order(&next(queues, &BTreeSet::new(), None, 10)), [9, 1, 4, 2, 5, 3]);
    }

    #[test]
    fn the_turn_goes_on_behind_the_agency_that_was_served_last() {
        let queues = vec![queue("AAA", &[(0, 1), (0, 2)]), queue("BBB", &[(0, 3)]), queue("CCC", &[(0, 4)])];
        let last = "AAA".parse().unwrap();
        assert_eq!(order(&next(queues, &BTreeSet::new(), Some(&last), 3)), [3, 4, 1]);
    }

    #[test]
    fn what_is_under_way_is_not_picked_again_and_the_room_is_kept() {
        let queues = vec![queue("AAA", &[(0, 1), (0, 2), (0, 3)])];
        let under_way = BTreeSet::from([(Seq(1), "AAA".parse().unwrap())]);
        assert_eq!(order(&next(queues, &under_way, None, 1)), [2]);
    }
}
