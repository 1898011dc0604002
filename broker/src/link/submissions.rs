//! The submissions of one link that are under way, and which of them are to be accepted behind which: a node says so with
//! `Behind`. Streams come in any order, so one may name another that has not come yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use docaxis_protocol::limits::MAX_BATCH;
use docaxis_protocol::{AgencyCode, DispatchId, Reason, ReasonCode};

use crate::turns::{Place, Stage, Turn};

/// Submissions that are remembered, those under way among them: a link has no more than a few hundred streams. One that
/// is named and not remembered is waited for like one that is still to come.
const MAX_REMEMBERED: usize = 4096;

type Key = (AgencyCode, DispatchId);

#[derive(Debug, Default)]
pub struct Submissions(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    places: BTreeMap<Key, Arc<Place>>,
    /// In the order in which they were first named.
    oldest: VecDeque<Key>,
}

impl Remembered {
    fn place(&mut self, key: Key) -> Arc<Place> {
        if let Some(place) = self.places.get(&key) {
            return place.clone();
        }
        if self.oldest.len() >= MAX_REMEMBERED
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.places.remove(&oldest);
        }
        self.oldest.push_back(key.clone());
        self.places.entry(key).or_default().clone()
    }
}

impl Submissions {
    /// The turn of a submission that has come, behind these others of the same sender.
    pub fn enter(&self, sender: &AgencyCode, id: DispatchId, behind: &[DispatchId]) -> Result<Turn, Reason> {
        if behind.len() > MAX_BATCH {
            let text = format!("a submission behind {} others; the limit is {MAX_BATCH}", behind.len());
            return Err(ReasonCode::Malformed.because(text));
        }
        if behind.contains(&id) {
            return Err(ReasonCode::Malformed.because("a submission behind itself"));
        }
        let key = |id: DispatchId| (sender.clone(), id);
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = key(id);
        // One that was tried before is tried anew.
        if let Some(place) = remembered.places.get_mut(&own)
            && place.stage() != Stage::Open
        {
            *place = Arc::default();
        }
        let own = remembered.place(own);
        Ok(Turn::new(own, behind.iter().map(|id| remembered.place(key(*id))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::Timestamp;

    use super::*;
    use crate::turns::PutBack;

    fn id(n: u8) -> DispatchId {
        DispatchId::from_parts(Timestamp::from_unix_ms(1_000), [n; 10])
    }

    fn enter(submissions: &Submissions, n: u8, behind: &[DispatchId]) -> Result<Turn, Reason> {
        submissions.enter(&"000.00.00.G22".parse().unwrap(), id(n), behind)
    }

    #[tokio::test]
    async fn one_that_comes_before_what_it_stands_behind_waits_for_it() {
        let submissions = Submissions::default();
        let second = enter(&submissions, 2, &[id(1)]).unwrap();
        let first = enter(&submissions, 1, &[]).unwrap();
        let (waited, ()) = tokio::join!(second.wait(), async { first.pass() });
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn what_failed_puts_back_whoever_stands_behind_it_until_it_comes_again() {
        let submissions = Submissions::default();
        drop(enter(&submissions, 1, &[]).unwrap());
        assert_eq!(enter(&submissions, 2, &[id(1)]).unwrap().wait().await, Err(PutBack));
        enter(&submissions, 1, &[]).unwrap().pass();
        assert_eq!(enter(&submissions, 2, &[id(1)]).unwrap().wait().await, Ok(()));
    }

    #[test]
    fn nobody_stands_behind_itself_or_behind_more_than_a_link_carries() {
        let refused =
            |behind: &[DispatchId]| enter(&Submissions::default(), 1, behind).err().map(|reason| reason.known());
        assert_eq!(refused(&[id(1)]), Some(ReasonCode::Malformed));
        assert_eq!(refused(&vec![id(2); MAX_BATCH + 1]), Some(ReasonCode::Malformed));
        assert_eq!(refused(&vec![id(2); MAX_BATCH]), None);
    }
}
