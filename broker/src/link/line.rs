//! The offers under way on one link, and which of the waiting deliveries may join them: those of one sender to one
//! recipient, in one priority, are handed over in the order of their acceptance.
//!
//! What is small goes at once and waits for its turn only when its statement is here ([`crate::turns`]). Behind something
//! large, or behind something that was not taken and rests, nothing of the same sender and recipient is begun, and it takes no
//! place among the offers. What was not taken several times over, for a reason of its own, is passed by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use docaxis_protocol::AgencyCode;

use crate::store::{Lane, Seq, StoreError, Waiting};
use crate::turns::{Place, Stage, Turn};

/// Tries after which a delivery holds up those behind it no longer.
pub const TRIES: u32 = 3;
/// Senders of waiting dispatches that are remembered: each costs a read of the store.
const MAX_SENDERS: usize = 32 << 10;
/// Deliveries whose failed tries are counted; beyond that the count begins anew.
const MAX_FAILED: usize = 4 << 10;

pub type Key = (Seq, AgencyCode);
/// Who sent a dispatch, as the store has it.
pub type SenderOf<'a> = &'a dyn Fn(Seq) -> Result<Option<AgencyCode>, StoreError>;
/// Sender, recipient, priority.
type Pair = (AgencyCode, AgencyCode, u8);

#[derive(Debug)]
struct UnderWay {
    pair: Pair,
    /// None if it was passed by: nobody waits for it.
    place: Option<Arc<Place>>,
}

impl UnderWay {
    /// Whether nothing is begun behind it.
    fn holds_up(&self) -> bool {
        self.place.as_ref().is_some_and(|place| matches!(place.stage(), Stage::Slow | Stage::Failed))
    }
}

#[derive(Debug, Default)]
pub struct Line {
    under_way: BTreeMap<Key, UnderWay>,
    pairs: BTreeMap<Pair, BTreeMap<Seq, Arc<Place>>>,
    /// How often each that waits was not taken.
    failed: BTreeMap<Key, u32>,
    senders: BTreeMap<Seq, AgencyCode>,
    /// Of each recipient's queue, up to where nothing may be begun in a lane.
    looked_through: BTreeMap<AgencyCode, BTreeMap<Lane, Blocked>>,
    /// The lane that was served last of each recipient's in a priority.
    served: BTreeMap<(AgencyCode, u8), u8>,
    /// What was not offered when queues were looked through last: its bodies were asked for, or its time was still to come.
    held: BTreeSet<Seq>,
}

/// A place in a lane before which everything is under way or has to wait, and for whom.
#[derive(Debug, Clone, Default)]
pub struct Blocked {
    /// The last one before it.
    pub after: Option<Seq>,
    /// Who sent what those behind have to wait for.
    pub senders: BTreeSet<AgencyCode>,
}

/// How an offer ended, for those behind it and for its own next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It is not offered again soon.
    Done,
    /// The node did not take it, for a reason that may be the dispatch's own.
    NotTaken,
    /// It is offered again when it may, and nothing is wrong with it.
    PutBack,
}

impl Line {
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    pub fn keys(&self) -> BTreeSet<Key> {
        self.under_way.keys().cloned().collect()
    }

    fn sender(&mut self, senders: SenderOf<'_>, seq: Seq) -> Result<AgencyCode, StoreError> {
        if let Some(known) = self.senders.get(&seq) {
            return Ok(known.clone());
        }
        let found = senders(seq)?;
        let found = found.ok_or_else(|| StoreError::Damaged(format!("dispatch {} waits but is gone", seq.0)))?;
        if self.senders.len() >= MAX_SENDERS {
            self.senders.clear();
        }
        self.senders.insert(seq, found.clone());
        Ok(found)
    }

    /// How often it was not taken.
    fn failures(&self, key: &Key) -> u32 {
        self.failed.get(key).copied().unwrap_or(0)
    }

    fn is_passed_by(&self, key: &Key) -> bool {
        self.failures(key) >= TRIES
    }

    /// Goes on where this lane of a recipient's was looked through before, if that is behind `here`. What was under way then may
    /// hold up those behind it by now.
    pub fn skip(&self, recipient: &AgencyCode, lane: Lane, here: &mut Blocked) {
        let known = self.looked_through.get(recipient).and_then(|lanes| lanes.get(&lane));
        if let Some(known) = known.filter(|known| known.after > here.after) {
            here.after = known.after;
            here.senders.extend(known.senders.iter().cloned());
            for ((seq, to), one) in &self.under_way {
                let here_too = to == recipient && Lane::of(&one.pair.0, one.pair.2) == lane && Some(*seq) <= here.after;
                if here_too && one.holds_up() {
                    here.senders.insert(one.pair.0.clone());
                }
            }
        }
    }

    /// Notes up to where a lane has nothing that may be begun, until an offer out of it ends.
    pub fn note(&mut self, recipient: &AgencyCode, lane: Lane, upto: Blocked) {
        self.looked_through.entry(recipient.clone()).or_default().insert(lane, upto);
    }

    /// How many are under way in each lane of a recipient's.
    pub fn busy(&self, recipient: &AgencyCode) -> BTreeMap<Lane, usize> {
        let mut busy = BTreeMap::new();
        for UnderWay { pair: (sender, to, priority), .. } in self.under_way.values() {
            if to == recipient {
                *busy.entry(Lane::of(sender, *priority)).or_default() += 1;
            }
        }
        busy
    }

    /// Brings a recipient's lanes of one priority, in ascending order, into the order in which it is their turn.
    pub fn in_turn(&self, recipient: &AgencyCode, lanes: &mut [Lane]) {
        let Some(priority) = lanes.first().map(|lane| lane.priority) else { return };
        if let Some(last) = self.served.get(&(recipient.clone(), priority)) {
            lanes.rotate_left(lanes.partition_point(|lane| lane.senders <= *last));
        }
    }

    /// Forgets up to where queues were looked through: what was held in them may be due.
    pub fn look_anew(&mut self) {
        self.looked_through.clear();
    }

    /// What is held now. If something is not any more, queues are looked through anew.
    pub fn hold(&mut self, held: BTreeSet<Seq>) {
        if !self.held.is_subset(&held) {
            self.look_anew();
        }
        self.held = held;
    }

    pub fn is_held(&self, seq: Seq) -> bool {
        self.held.contains(&seq)
    }

    /// Takes out of one lane, in its order, what may not be begun now. `blocked` are the senders of what stands before: it is
    /// carried from page to page of the lane.
    pub fn retain(
        &mut self,
        queue: &mut Vec<Waiting>,
        blocked: &mut BTreeSet<AgencyCode>,
        senders: SenderOf<'_>,
    ) -> Result<(), StoreError> {
        let mut may_begin = Vec::with_capacity(queue.len());
        for waiting in queue.drain(..) {
            let key = (waiting.seq, waiting.recipient.clone());
            match self.under_way.get(&key) {
                Some(one) if one.holds_up() => drop(blocked.insert(one.pair.0.clone())),
                Some(_) => {}
                None => {
                    let is_blocked = !blocked.is_empty() && blocked.contains(&self.sender(senders, waiting.seq)?);
                    if !is_blocked {
                        may_begin.push(waiting);
                    }
                }
            }
        }
        *queue = may_begin;
        Ok(())
    }

    /// Begins an offer, and says how often it was not taken before.
    pub fn begin(&mut self, waiting: &Waiting, senders: SenderOf<'_>) -> Result<(Turn, u32), StoreError> {
        let key = (waiting.seq, waiting.recipient.clone());
        let pair = (self.sender(senders, waiting.seq)?, waiting.recipient.clone(), waiting.priority);
        self.served.insert((pair.1.clone(), pair.2), Lane::of(&pair.0, pair.2).senders);
        let place = Arc::new(Place::default());
        let others = self.pairs.entry(pair.clone()).or_default();
        // Something large or resting that still waits would have held this one back: what is left of such was withdrawn or has
        // expired, and nobody waits for it.
        let in_the_way = |place: &&Arc<Place>| !matches!(place.stage(), Stage::Slow | Stage::Failed);
        let ahead = others.range(..waiting.seq).rev().map(|(_, place)| place).find(in_the_way).cloned();
        let failures = self.failures(&key);
        let place = if self.is_passed_by(&key) {
            None
        } else {
            self.pairs.entry(pair.clone()).or_default().insert(waiting.seq, place.clone());
            Some(place)
        };
        let turn = Turn::new(place.clone().unwrap_or_default(), ahead.into_iter().collect());
        self.under_way.insert(key, UnderWay { pair, place });
        Ok((turn, failures))
    }

    pub fn end(&mut self, key: &Key, ended: Ended) {
        if let Some(one) = self.under_way.remove(key) {
            // Nobody in another lane waited for it.
            if let Some(lanes) = self.looked_through.get_mut(&key.1) {
                lanes.remove(&Lane::of(&one.pair.0, one.pair.2));
            }
            if let Some(others) = self.pairs.get_mut(&one.pair) {
                others.remove(&key.0);
                if others.is_empty() {
                    self.pairs.remove(&one.pair);
                }
            }
        }
        match ended {
            Ended::Done => {
                self.failed.remove(key);
                self.senders.remove(&key.0);
            }
            Ended::NotTaken => {
                if self.failed.len() >= MAX_FAILED {
                    self.failed.clear();
                }
                *self.failed.entry(key.clone()).or_default() += 1;
            }
            Ended::PutBack => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Even ones are of one sender, odd ones of another.
    fn sender(seq: Seq) -> Result<Option<AgencyCode>, StoreError> {
        Ok(Some(if seq.0.is_multiple_of(2) { "000.00.00.G22" } else { "000.00.01.A53" }.parse().unwrap()))
    }

    fn waiting(seq: u64) -> Waiting {
        Waiting { recipient: "H37.DN.001".parse().unwrap(), priority: 0, seq: Seq(seq) }
    }

    fn key(seq: u64) -> Key {
        (Seq(seq), waiting(seq).recipient)
    }

    fn begin(line: &mut Line, seq: u64) -> Turn {
        line.begin(&waiting(seq), &sender).unwrap().0
    }

    /// Which of these may be begun.
    fn retained(line: &mut Line, seqs: &[u64]) -> Vec<u64> {
        let mut queue = seqs.iter().map(|seq| waiting(*seq)).collect();
        line.retain(&mut queue, &mut BTreeSet::new(), &sender).unwrap();
        queue.iter().map(|waiting| waiting.seq.0).collect()
    }

    #[tokio::test]
    async fn behind_a_large_one_the_other_senders_alone_go_on() {
        let mut line = Line::default();
        let large = begin(&mut line, 2);
        assert_eq!(retained(&mut line, &[2, 3, 4]), [3, 4], "nobody knows yet how large it is");
        large.begin(false).await.unwrap();
        assert_eq!(retained(&mut line, &[2, 3, 4, 5]), [3, 5]);
        line.end(&key(2), Ended::Done);
        assert_eq!(retained(&mut line, &[3, 4, 5]), [3, 4, 5]);
    }

    #[tokio::test]
    async fn one_that_was_not_taken_is_passed_by_after_so_many_tries_and_until_then_holds_up_its_own() {
        let mut line = Line::default();
        for tries in 0..TRIES {
            let turn = begin(&mut line, 2);
            assert_eq!(line.failures(&key(2)), tries);
            turn.fail();
            assert_eq!(retained(&mut line, &[2, 3, 4]), [3]);
            line.end(&key(2), Ended::NotTaken);
        }
        let again = begin(&mut line, 2);
        again.begin(false).await.unwrap();
        assert_eq!(retained(&mut line, &[2, 4]), [4]);
        assert_eq!(begin(&mut line, 4).wait().await, Ok(()), "nor is it waited for");
        line.end(&key(2), Ended::Done);
        assert_eq!(line.failures(&key(2)), 0);
    }

    #[tokio::test]
    async fn what_was_withdrawn_while_it_was_under_way_holds_up_nobody_who_begins_then() {
        let mut line = Line::default();
        let withdrawn = begin(&mut line, 2);
        withdrawn.begin(false).await.unwrap();
        assert_eq!(retained(&mut line, &[4]), [4], "the queue has it no longer");
        let next = begin(&mut line, 4);
        assert_eq!((next.begin(true).await, next.wait().await), (Ok(()), Ok(())));
    }

    #[test]
    fn the_lanes_of_a_recipient_take_turns_in_each_priority_for_itself() {
        let mut line = Line::default();
        let lanes =
            |senders: &[u8]| -> Vec<Lane> { senders.iter().map(|&senders| Lane { priority: 0, senders }).collect() };
        let (even, odd) = [0, 1].map(|n| Lane::of(&sender(Seq(n)).unwrap().unwrap(), 0)).into();
        let mut both = [even, odd];
        both.sort();
        let in_turn = |line: &Line, all: &[Lane]| {
            let mut all = all.to_vec();
            line.in_turn(&waiting(0).recipient, &mut all);
            all
        };
        assert_eq!(in_turn(&line, &both), both, "nobody was served yet");
        begin(&mut line, 0);
        assert_eq!(in_turn(&line, &both), [odd, even]);
        begin(&mut line, 1);
        assert_eq!(in_turn(&line, &both), [even, odd]);
        let last = odd.senders;
        assert_eq!(in_turn(&line, &lanes(&[last - 1, last + 1])), lanes(&[last + 1, last - 1]));
        assert_eq!(
            in_turn(&line, &lanes(&[last - 2, last - 1])),
            lanes(&[last - 2, last - 1]),
            "behind the last comes the first"
        );
        assert_eq!(line.busy(&waiting(0).recipient), BTreeMap::from([(even, 1), (odd, 1)]));
        let other = [Lane { priority: 3, ..both[0] }, Lane { priority: 3, ..both[1] }];
        assert_eq!(in_turn(&line, &other), other);
    }

    #[tokio::test]
    async fn a_lane_that_was_looked_through_is_so_until_one_of_its_own_ends_or_one_that_was_held_may_go() {
        let mut line = Line::default();
        let (recipient, lane) = (waiting(0).recipient, Lane::of(&sender(Seq(0)).unwrap().unwrap(), 0));
        let reached = |line: &Line| {
            let mut here = Blocked { after: Some(Seq(2)), ..Blocked::default() };
            line.skip(&recipient, lane, &mut here);
            (here.after, here.senders.len())
        };
        let (first, _other) = (begin(&mut line, 0), begin(&mut line, 1));
        line.hold(BTreeSet::from([Seq(6), Seq(8)]));
        line.note(&recipient, lane, Blocked { after: Some(Seq(40)), ..Blocked::default() });
        assert_eq!(reached(&line), (Some(Seq(40)), 0));
        // It turns out to be large after the lane was looked through behind it.
        first.begin(false).await.unwrap();
        assert_eq!(reached(&line), (Some(Seq(40)), 1));
        line.end(&key(1), Ended::Done);
        line.hold(BTreeSet::from([Seq(6), Seq(8), Seq(9)]));
        assert_eq!(reached(&line), (Some(Seq(40)), 1), "nothing in this lane has changed");
        line.hold(BTreeSet::from([Seq(6), Seq(9)]));
        assert_eq!(reached(&line), (Some(Seq(2)), 0), "one may go");
        line.note(&recipient, lane, Blocked { after: Some(Seq(40)), ..Blocked::default() });
        line.end(&key(0), Ended::Done);
        assert_eq!(reached(&line), (Some(Seq(2)), 0));
    }

    #[tokio::test]
    async fn each_waits_for_the_nearest_of_its_sender_ahead_of_it() {
        let mut line = Line::default();
        let turns = [2, 3, 4].map(|seq| begin(&mut line, seq));
        turns[2].pass();
        // One that was held until now stands ahead of them, and behind nobody.
        assert_eq!(
            (begin(&mut line, 0).wait().await, turns[0].wait().await, turns[1].wait().await),
            (Ok(()), Ok(()), Ok(()))
        );
        // The nearest one passed without waiting for the one before it, which has to pass as well.
        turns[0].pass();
        let last = begin(&mut line, 6);
        assert_eq!(last.wait().await, Ok(()));
        last.pass();
        assert_eq!((line.len(), line.keys().len()), (5, 5));
    }
}
