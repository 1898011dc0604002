//! In which order the outbox goes out: dispatches of one sender to one recipient, in one priority, are accepted by the exchange
//! in the order in which they were queued; urgent ones pass, and what has no recipient in common goes side by side. Pure.
//!
//! What is small is sent while others ahead of it are under way, and tells the exchange behind which. Behind something with
//! large bodies, or something that rests after a failed try, nothing is begun that shares a recipient with it. What rests
//! for long, or has expired, holds nobody up ([`outbox::is_passed_by`](crate::outbox::is_passed_by)).

use std::collections::{BTreeMap, BTreeSet};

use docaxis_protocol::limits::MAX_PRIORITY;
use docaxis_protocol::{AgencyCode, DispatchId, Reason, Timestamp};

use crate::outbox::is_passed_by;

/// Dispatches of one line that are looked at together: those under way, and those that rest or wait for others. While so many
/// do, what the same agency queued behind them waits as well.
pub const MAX_ROWS: usize = 2048;
/// The same in deliveries: circulars have thousands each.
pub const MAX_DELIVERIES: usize = 100_000;
/// The same of all lines: beyond this, each line has the few that none takes from another.
const MAX_ALL: (usize, usize) = (8 * MAX_ROWS, 4 * MAX_DELIVERIES);
const FEW: (usize, usize) = (64, 4_096);
/// Others that a submission may name as ahead of it.
const MAX_BEHIND: usize = docaxis_protocol::limits::MAX_BATCH;
/// How many more may be under way with each step in priority: however long normal ones take, something more urgent finds a
/// place beside them.
const MORE_PLACES: usize = 4;

/// The places for what is under way at once.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// So many are under way at most as long as all are normal.
    pub normal: usize,
    /// Dispatches under way, of whatever priority.
    pub under_way: usize,
}

impl Places {
    /// How many of this priority may be begun.
    pub fn free(self, priority: u8) -> usize {
        (self.normal + MORE_PLACES * usize::from(priority.min(MAX_PRIORITY))).saturating_sub(self.under_way)
    }

    /// The lowest priority of which one may be begun.
    pub fn least(self) -> Option<u8> {
        (0..=MAX_PRIORITY).find(|priority| self.free(*priority) > 0)
    }
}

/// A queued dispatch, as far as its turn depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// Its place in the outbox: grows in the order of queueing.
    pub seq: u64,
    pub id: DispatchId,
    pub sender: AgencyCode,
    pub priority: u8,
    pub recipients: Vec<AgencyCode>,
    /// Its bodies do not go with the envelope.
    pub large: bool,
    /// Dispatches that are to be decided before it is sent: it is about them.
    pub about: Vec<DispatchId>,
    pub attempts: u32,
    pub next_attempt: Timestamp,
    pub trouble: Option<Reason>,
    /// When it expires; read of what was tried in vain, as nothing else rests.
    pub expires: Option<Timestamp>,
}

/// One that is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    pub seq: u64,
    pub id: DispatchId,
    /// Under way, and to be accepted before it.
    pub behind: Vec<DispatchId>,
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// There is evidence about it: it is queued no longer.
    Settled,
    /// It is tried again at this time, if nothing ahead holds it up.
    Postponed { attempts: u32, until: Timestamp, why: Reason, expires: Option<Timestamp> },
    /// Something ahead of it did not come to its end: it is tried again when all that is ahead has.
    PutBack,
}

/// Where a row stands in the outbox: the urgent first, then in the order of queueing.
type At = (u8, u64);

const fn at(priority: u8, seq: u64) -> At {
    (u8::MAX - priority, seq)
}

#[derive(Debug)]
struct Row {
    waits: Waits,
    under_way: bool,
    /// Not beside others any more.
    alone: bool,
    /// Rows that it shares a recipient with and that were queued before it, the last one for each recipient.
    ahead: BTreeSet<At>,
    /// Rows that have this one in `ahead`.
    followers: BTreeSet<At>,
}

impl Row {
    /// What is under way never is: it may be accepted now.
    fn is_passed_by(&self, now: Timestamp) -> bool {
        let waits = &self.waits;
        let expired = waits.expires.is_some_and(|expires| expires <= now);
        !self.under_way && (expired || is_passed_by(waits.attempts, waits.trouble.as_ref()))
    }
}

/// Sender and priority: each is read and bounded for itself, so that no agency waits for another's rows.
pub type Line = (AgencyCode, u8);

/// Sender, priority, recipient.
type Pair = (AgencyCode, u8, AgencyCode);

/// The part of the outbox that is looked at.
#[derive(Debug, Default)]
pub struct Order {
    rows: BTreeMap<At, Row>,
    places: BTreeMap<DispatchId, At>,
    /// The last row for each pair.
    last: BTreeMap<Pair, At>,
    /// Rows that are about a dispatch which is not decided yet.
    awaiting: BTreeMap<DispatchId, BTreeSet<At>>,
    /// Rows and deliveries of each line, and up to where it has been read.
    seen: BTreeMap<Line, Seen>,
    /// Rows and deliveries of all lines.
    all: (usize, usize),
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    rows: usize,
    deliveries: usize,
    upto: u64,
}

impl Order {
    /// Behind which place each line is to be read on; none while enough of it is looked at. A line that is not named here is
    /// read from its beginning.
    pub fn read_from(&self) -> BTreeMap<Line, Option<u64>> {
        let below = |(rows, deliveries), bound: (usize, usize)| rows < bound.0 && deliveries < bound.1;
        let bound = if below(self.all, MAX_ALL) { (MAX_ROWS, MAX_DELIVERIES) } else { FEW };
        let from = |seen: &Seen| below((seen.rows, seen.deliveries), bound).then_some(seen.upto);
        self.seen.iter().map(|(line, seen)| (line.clone(), from(seen))).collect()
    }

    /// The outbox is read from its beginning once more: what was accepted before may have been queued again.
    pub fn read_anew(&mut self) {
        self.seen.values_mut().for_each(|seen| seen.upto = 0);
    }

    pub fn add(&mut self, waits: Waits) {
        let own = at(waits.priority, waits.seq);
        let seen = self.seen.entry((waits.sender.clone(), waits.priority)).or_default();
        seen.upto = seen.upto.max(waits.seq);
        if self.rows.contains_key(&own) {
            return;
        }
        seen.rows += 1;
        seen.deliveries += waits.recipients.len();
        self.all = (self.all.0 + 1, self.all.1 + waits.recipients.len());
        let mut ahead = BTreeSet::new();
        for recipient in &waits.recipients {
            let pair = (waits.sender.clone(), waits.priority, recipient.clone());
            match self.last.get(&pair).copied() {
                // It was queued again, long after its turn: the exchange has its place.
                Some(later) if later > own => {}
                before => {
                    ahead.extend(before);
                    self.last.insert(pair, own);
                }
            }
        }
        for before in &ahead {
            if let Some(row) = self.rows.get_mut(before) {
                row.followers.insert(own);
            }
        }
        for id in &waits.about {
            self.awaiting.entry(*id).or_default().insert(own);
        }
        self.places.insert(waits.id, own);
        self.rows.insert(own, Row { waits, under_way: false, alone: false, ahead, followers: BTreeSet::new() });
    }

    /// Those that may be sent at `now`, as far as there are places, urgent first, then the oldest; from now on they are under way.
    /// Unless the exchange keeps the order among what is under way (`beside`), nothing is sent beside what it has to follow.
    pub fn next(&mut self, now: Timestamp, places: Places, beside: bool) -> Vec<Next> {
        let mut next = Vec::new();
        let Some(least) = places.least() else { return next };
        let all: Vec<At> = self.rows.range(..=at(least, u64::MAX)).map(|(own, _)| *own).collect();
        for own in all {
            if next.len() >= places.free(u8::MAX - own.0) {
                break;
            }
            if let Some(behind) = self.may_go(own, now, beside)
                && let Some(row) = self.rows.get_mut(&own)
            {
                (row.under_way, row.alone) = (true, false);
                next.push(Next { seq: own.1, id: row.waits.id, behind });
            }
        }
        next
    }

    /// Behind which others a row may be sent now; none if it may not.
    fn may_go(&self, own: At, now: Timestamp, beside: bool) -> Option<Vec<DispatchId>> {
        let row = self.rows.get(&own)?;
        if row.under_way || row.waits.next_attempt > now || !row.waits.about.is_empty() {
            return None;
        }
        let mut behind = Vec::new();
        for before in self.holding(row, now) {
            let goes_along = beside && !row.alone && before.under_way && !before.waits.large;
            if !goes_along || behind.len() >= MAX_BEHIND {
                return None;
            }
            behind.push(before.waits.id);
        }
        Some(behind)
    }

    /// The rows that a row has to follow: in place of what is passed by, those that stand ahead of it.
    fn holding<'a>(&'a self, row: &'a Row, now: Timestamp) -> Vec<&'a Row> {
        let (mut looked_at, mut holding) = (BTreeSet::new(), Vec::new());
        let mut open: Vec<At> = row.ahead.iter().rev().copied().collect();
        while let Some(next) = open.pop() {
            let Some(before) = self.rows.get(&next).filter(|_| looked_at.insert(next)) else { continue };
            // What is about a dispatch that is passed by cannot be sent, and is passed by with it.
            let passed_by = |id: &DispatchId| self.place(*id).is_some_and(|row| row.is_passed_by(now));
            if before.is_passed_by(now) || before.waits.about.iter().any(passed_by) {
                open.extend(before.ahead.iter().rev());
            } else {
                holding.push(before);
            }
        }
        holding
    }

    fn place(&self, id: DispatchId) -> Option<&Row> {
        self.places.get(&id).and_then(|own| self.rows.get(own))
    }

    pub fn ended(&mut self, id: DispatchId, ended: Ended) {
        let Some(own) = self.places.get(&id).copied() else { return };
        let Some(row) = self.rows.get_mut(&own) else { return };
        row.under_way = false;
        match ended {
            Ended::Settled => self.settled(own),
            Ended::Postponed { attempts, until, why, expires } => {
                row.waits.attempts = attempts;
                row.waits.next_attempt = until;
                row.waits.trouble = Some(why);
                row.waits.expires = expires;
            }
            Ended::PutBack => row.alone = true,
        }
    }

    fn settled(&mut self, own: At) {
        let Some(Row { waits, ahead, followers, .. }) = self.rows.remove(&own) else { return };
        self.places.remove(&waits.id);
        let deliveries = waits.recipients.len();
        if let Some(seen) = self.seen.get_mut(&(waits.sender.clone(), waits.priority)) {
            seen.rows = seen.rows.saturating_sub(1);
            seen.deliveries = seen.deliveries.saturating_sub(deliveries);
        }
        self.all = (self.all.0.saturating_sub(1), self.all.1.saturating_sub(deliveries));
        // Whoever followed it follows what it followed, as far as that is not settled yet.
        let ahead: BTreeSet<At> = ahead.into_iter().filter(|before| self.rows.contains_key(before)).collect();
        for before in &ahead {
            if let Some(row) = self.rows.get_mut(before) {
                row.followers.remove(&own);
                row.followers.extend(&followers);
            }
        }
        for follower in &followers {
            if let Some(row) = self.rows.get_mut(follower) {
                row.ahead.remove(&own);
                row.ahead.extend(&ahead);
            }
        }
        for recipient in waits.recipients {
            let pair = (waits.sender.clone(), waits.priority, recipient);
            if self.last.get(&pair) == Some(&own) {
                match ahead.last() {
                    Some(before) => self.last.insert(pair, *before),
                    None => self.last.remove(&pair),
                };
            }
        }
        for about in self.awaiting.remove(&waits.id).unwrap_or_default() {
            if let Some(row) = self.rows.get_mut(&about) {
                row.waits.about.retain(|id| *id != waits.id);
            }
        }
    }

    /// When the next row may be tried that rests now, if nothing ahead holds it up, or expires and holds up nobody any more.
    pub fn next_at(&self, now: Timestamp) -> Option<Timestamp> {
        let resting = self.rows.values().filter(|row| !row.under_way && row.waits.about.is_empty());
        let times = resting.flat_map(|row| std::iter::once(row.waits.next_attempt).chain(row.waits.expires));
        times.filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::ReasonCode;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(1_000);
    const PLACES: Places = Places { normal: 64, under_way: 0 };

    fn id(n: u64) -> DispatchId {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&n.to_be_bytes());
        DispatchId::from_parts(NOW, random)
    }

    fn small(seq: u64, to: &[&str]) -> Waits {
        Waits {
            seq,
            id: id(seq),
            sender: "000.00.00.G22".parse().unwrap(),
            priority: 0,
            recipients: to.iter().map(|code| format!("000.{code}").parse().unwrap()).collect(),
            large: false,
            about: vec![],
            attempts: 0,
            next_attempt: NOW,
            trouble: None,
            expires: None,
        }
    }

    fn order(rows: impl IntoIterator<Item = Waits>) -> Order {
        let mut order = Order::default();
        rows.into_iter().for_each(|waits| order.add(waits));
        order
    }

    /// What may go, each with what it has to follow.
    fn next(order: &mut Order) -> Vec<(u64, Vec<u64>)> {
        let seq = |found: &DispatchId| (0..100).find(|n| id(*n) == *found).unwrap();
        order.next(NOW, PLACES, true).iter().map(|next| (next.seq, next.behind.iter().map(seq).collect())).collect()
    }

    fn postponed(attempts: u32, code: ReasonCode) -> Ended {
        let until = NOW.plus(std::time::Duration::from_secs(9));
        Ended::Postponed { attempts, until, why: code.because("x"), expires: None }
    }

    #[test]
    fn small_ones_go_at_once_each_behind_the_last_one_to_the_same_recipient() {
        let mut order = order([
            small(1, &["A"]),
            small(2, &["A"]),
            small(3, &["B"]),
            small(4, &["A", "B", "C"]),
            Waits { sender: "000.00.01.A53".parse().unwrap(), ..small(5, &["A"]) },
            Waits { priority: 3, ..small(6, &["A"]) },
        ]);
        let expected = [(6, vec![]), (1, vec![]), (2, vec![1]), (3, vec![]), (4, vec![2, 3]), (5, vec![])];
        assert_eq!(next(&mut order), expected);
        order.ended(id(2), Ended::Settled);
        order.add(small(7, &["A"]));
        assert_eq!(next(&mut order), [(7, vec![4])]);
        order.ended(id(4), Ended::Settled);
        order.add(small(8, &["C", "B"]));
        assert_eq!(next(&mut order), [(8, vec![3])], "4 went behind 3, and 8 behind 4");
    }

    #[test]
    fn what_is_more_urgent_finds_places_beside_all_that_may_be_under_way_of_the_rest() {
        let of = |priority: u8| (1..=9).map(move |n| Waits { priority, ..small(n + 10 * u64::from(priority), &["A"]) });
        let mut order = order(of(0).chain(of(1)).chain(of(4)));
        let mut next = |under_way| {
            let places = Places { normal: 2, under_way };
            order.next(NOW, places, true).iter().map(|next| next.seq).collect::<Vec<_>>()
        };
        assert_eq!(next(17), [41]);
        assert_eq!(next(5), [42, 43, 44, 45, 46, 47, 48, 49]);
        assert_eq!(next(5), [11]);
        assert_eq!(next(0), [12, 13, 14, 15, 16, 17], "and none is left for normal ones");
        assert_eq!(next(0), [18, 19]);
        assert_eq!(next(0), [1, 2]);
        let least = |under_way| Places { normal: 2, under_way }.least();
        assert_eq!([0, 1, 2, 5, 6, 17, 18].map(least), [Some(0), Some(0), Some(1), Some(1), Some(2), Some(4), None]);
    }

    #[test]
    fn without_an_order_at_the_exchange_one_of_a_pair_is_under_way() {
        let mut order = order([small(1, &["A"]), small(2, &["A", "B"]), small(3, &["C"])]);
        let mut go = || order.next(NOW, PLACES, false).iter().map(|next| next.seq).collect::<Vec<_>>();
        assert_eq!((go(), go()), (vec![1, 3], vec![]));
        order.ended(id(1), Ended::Settled);
        assert_eq!(order.next(NOW, PLACES, false).len(), 1);
    }

    #[test]
    fn nothing_to_the_same_recipient_is_begun_behind_a_large_one_and_the_rest_goes_on() {
        let mut order = order([
            Waits { large: true, ..small(1, &["A", "B"]) },
            small(2, &["B"]),
            small(3, &["B", "C"]),
            small(4, &["C"]),
        ]);
        assert_eq!(next(&mut order), [(1, vec![])], "and 4 waits for 3");
        order.add(small(5, &["D"]));
        assert_eq!(next(&mut order), [(5, vec![])]);
        order.ended(id(1), Ended::Settled);
        assert_eq!(next(&mut order), [(2, vec![]), (3, vec![2]), (4, vec![3])]);
    }

    #[test]
    fn what_rests_holds_those_behind_until_it_is_tried_again_or_is_passed_by() {
        let mut order = order([small(1, &["A"]), small(2, &["A"])]);
        next(&mut order);
        order.ended(id(1), postponed(9, ReasonCode::Busy));
        order.ended(id(2), Ended::PutBack);
        assert_eq!(next(&mut order), []);
        let later = order.next_at(NOW).unwrap();
        assert_eq!(
            order.next(later, PLACES, true).len(),
            1,
            "the second waits for the first alone, once it was put back"
        );
        order.ended(id(1), postponed(10, ReasonCode::Busy));
        assert_eq!(next(&mut order), [(2, vec![])]);
        order.add(small(3, &["A"]));
        assert_eq!(next(&mut order), [(3, vec![2])]);
    }

    #[test]
    fn what_is_passed_by_leaves_those_behind_to_what_stands_ahead_of_it() {
        let mut order = order([small(1, &["A"]), small(2, &["A"]), small(3, &["A"])]);
        next(&mut order);
        order.ended(id(3), Ended::PutBack);
        order.ended(id(2), postponed(1, ReasonCode::DigestMismatch));
        order.ended(id(1), postponed(9, ReasonCode::DiskFull));
        assert_eq!(next(&mut order), []);
        order.ended(id(1), Ended::Settled);
        assert_eq!(next(&mut order), [(3, vec![])]);
    }

    #[test]
    fn what_is_about_another_goes_when_that_is_decided_and_holds_up_those_behind_it() {
        let recall = Waits { about: vec![id(1)], ..small(2, &["A"]) };
        let mut order = order([small(1, &["A"]), recall, small(3, &["A"])]);
        assert_eq!(next(&mut order), [(1, vec![])]);
        order.ended(id(1), Ended::Settled);
        assert_eq!(next(&mut order), [(2, vec![]), (3, vec![2])]);

        let recall = Waits { about: vec![id(1)], ..small(2, &["A"]) };
        let mut order = super::tests::order([small(1, &["A"]), recall, small(3, &["A"])]);
        next(&mut order);
        order.ended(id(1), postponed(1, ReasonCode::DigestMismatch));
        assert_eq!(next(&mut order), [(3, vec![])], "neither is the recall's to hold up");
    }

    #[test]
    fn so_much_is_looked_at_and_room_is_made_by_what_is_settled() {
        let rows = u64::try_from(MAX_ROWS).unwrap();
        let mut order = order((1..=rows).map(|seq| small(seq, &["A"])));
        let from = |order: &Order, priority| order.read_from().get(&(small(1, &[]).sender, priority)).copied();
        assert_eq!((from(&order, 0), from(&order, 4)), (Some(None), None));
        order.ended(id(1), Ended::Settled);
        assert_eq!(from(&order, 0), Some(Some(rows)));
        // What was accepted long ago and is queued again waits for nobody, and nobody for it.
        order.read_anew();
        assert_eq!(from(&order, 0), Some(Some(0)));
        order.add(small(1, &["A"]));
        let two = Places { normal: 2, under_way: 0 };
        assert_eq!(order.next(NOW, two, true).iter().map(|next| next.behind.len()).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn when_all_lines_together_are_many_each_still_has_its_few() {
        let of = |n: usize| -> AgencyCode { format!("000.00.{n:02}.G22").parse().unwrap() };
        let rows = u64::try_from(MAX_ROWS).unwrap();
        let lines = (0..8).flat_map(|n| (1..=rows).map(move |seq| (n, seq)));
        let mut order = order(lines.map(|(n, seq)| Waits { sender: of(n), ..small(seq * 10 + n as u64, &["A"]) }));
        assert!(order.read_from().values().all(Option::is_none));
        for seq in 0..64 {
            assert!(order.read_from().get(&(of(9), 0)).is_none_or(Option::is_some));
            order.add(Waits { sender: of(9), ..small(100_000 + seq, &["A"]) });
        }
        assert_eq!(order.read_from()[&(of(9), 0)], None);
        order.ended(id(100_000), Ended::Settled);
        assert_eq!(order.read_from()[&(of(9), 0)], Some(100_063));
    }

    #[test]
    fn what_the_exchange_has_no_room_for_holds_those_behind_for_so_many_tries_or_until_it_expires() {
        for code in [ReasonCode::OverQuota, ReasonCode::DiskFull] {
            let mut order = order([small(1, &["A"]), small(2, &["A"])]);
            next(&mut order);
            order.ended(id(2), Ended::PutBack);
            order.ended(id(1), postponed(9, code));
            assert_eq!(next(&mut order), []);
            order.ended(id(1), postponed(10, code));
            assert_eq!(next(&mut order), [(2, vec![])]);
        }
        let mut order = order([small(1, &["A"]), small(2, &["A"])]);
        next(&mut order);
        order.ended(id(2), Ended::PutBack);
        let (until, expires) =
            (NOW.plus(std::time::Duration::from_secs(9)), NOW.plus(std::time::Duration::from_secs(5)));
        let why = ReasonCode::OverQuota.because("x");
        order.ended(id(1), Ended::Postponed { attempts: 1, until, why, expires: Some(expires) });
        assert_eq!((next(&mut order), order.next_at(NOW)), (vec![], Some(expires)));
        assert_eq!(order.next(expires, PLACES, true).iter().map(|next| next.seq).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_is_passed_by_while_it_rests_is_followed_while_it_is_under_way() {
        let rested = Waits { attempts: 10, trouble: Some(ReasonCode::Busy.because("x")), ..small(1, &["A"]) };
        let mut order = order([rested, small(2, &["A"])]);
        assert_eq!(next(&mut order), [(1, vec![]), (2, vec![1])]);
        order.ended(id(2), Ended::PutBack);
        assert_eq!(next(&mut order), []);
        order.ended(id(1), postponed(11, ReasonCode::Busy));
        assert_eq!(next(&mut order), [(2, vec![])]);
    }

    #[test]
    fn a_circular_is_as_cheap_to_look_past_as_a_letter() {
        let everybody: Vec<String> = (0..4_000).map(|n| format!("X{n}")).collect();
        let everybody: Vec<&str> = everybody.iter().map(String::as_str).collect();
        let mut order = order([small(1, &everybody), small(2, &["X7"]), small(3, &everybody), small(4, &["X3999"])]);
        assert_eq!(next(&mut order), [(1, vec![]), (2, vec![1]), (3, vec![1, 2]), (4, vec![3])]);
        for n in 1..=4 {
            order.ended(id(n), Ended::Settled);
        }
        assert_eq!((order.last.len(), order.rows.len(), order.places.len()), (0, 0, 0));
    }
}
