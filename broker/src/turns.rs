//! Who has to wait for whom among what goes on at once and must come out in order: submissions, and offers, of one sender
//! to one recipient. Nothing here is durable: what was put back is tried again, in order.
//!
//! Everybody has a [`Turn`] with a place of its own and the places ahead of it. What is small goes on beside what is ahead
//! of it and waits only right before the committer; the committer keeps the order in which it is asked, so that many still
//! share one commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// How long one waits for what is ahead of it. After that it is put back, so that it takes no room from others.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not known yet how much there is of it.
    Open,
    /// It is small and under way.
    Begun,
    /// It takes longer than anybody shall wait for it here.
    Slow,
    /// It did not come to its end and is tried again: what is behind it is put back.
    Failed,
    /// Nobody has to wait for it: the committer has it, or it does not come.
    Passed,
}

/// The place of one.
#[derive(Debug)]
pub struct Place {
    stage: Mutex<Stage>,
    moved: Notify,
    /// Of one that passed without having waited: whom those behind have to wait for in its place.
    instead: OnceLock<Vec<Arc<Self>>>,
}

impl Default for Place {
    fn default() -> Self {
        Self { stage: Mutex::new(Stage::Open), moved: Notify::new(), instead: OnceLock::new() }
    }
}

impl Place {
    pub fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to a later stage; never back.
    fn advance(&self, to: Stage) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        // What failed or was passed is over: the next try has a place of its own.
        if *stage < to && *stage < Stage::Failed {
            *stage = to;
            drop(stage);
            self.moved.notify_waiters();
        }
    }

    /// Waits until the stage is one that `enough` accepts.
    async fn until(&self, enough: impl Fn(Stage) -> bool) -> Stage {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let stage = self.stage();
            if enough(stage) {
                return stage;
            }
            moved.await;
        }
    }
}

/// Those of these places that have not passed, and in place of each that has passed without waiting, whom it left. Never
/// more than are under way at once, so that no chain of places grows.
fn standing(places: &[Arc<Place>]) -> Vec<Arc<Place>> {
    let (mut open, mut standing) = (places.to_vec(), Vec::<Arc<Place>>::new());
    while let Some(place) = open.pop() {
        if place.stage() == Stage::Passed {
            open.extend(place.instead.get().into_iter().flatten().cloned());
        } else if !standing.iter().any(|known| Arc::ptr_eq(known, &place)) {
            standing.push(place);
        }
    }
    standing
}

/// What is ahead takes too long, or is tried again first: whoever is told so is to be tried again behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutBack;

/// One's place, and the places ahead. Dropped before it has passed, it has failed.
#[derive(Debug)]
pub struct Turn {
    own: Arc<Place>,
    ahead: Vec<Arc<Place>>,
    /// Whether all ahead have passed.
    waited: AtomicBool,
    put_back: AtomicBool,
    patience: Duration,
}

impl Turn {
    pub const fn new(own: Arc<Place>, ahead: Vec<Arc<Place>>) -> Self {
        let (waited, put_back) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { own, ahead, waited, put_back, patience: PATIENCE }
    }

    /// Whether it was told to be tried again behind another.
    pub fn is_put_back(&self) -> bool {
        self.put_back.load(Ordering::Relaxed)
    }

    fn put_back(&self) -> PutBack {
        self.put_back.store(true, Ordering::Relaxed);
        PutBack
    }

    /// Waits until everybody ahead has come so far; then no stage may be `bad`.
    async fn all(&self, far: impl Fn(Stage) -> bool, bad: impl Fn(Stage) -> bool) -> Result<(), PutBack> {
        let mut open = self.ahead.clone();
        while let Some(place) = open.pop() {
            if bad(place.until(&far).await) {
                return Err(PutBack);
            }
            open.extend(place.instead.get().into_iter().flatten().cloned());
        }
        Ok(())
    }

    /// Waits until it is known of all ahead whether they are small, and says the same of this one.
    pub async fn begin(&self, small: bool) -> Result<(), PutBack> {
        let all = self.all(|stage| stage != Stage::Open, |stage| matches!(stage, Stage::Slow | Stage::Failed));
        let begun = tokio::time::timeout(self.patience, all).await.unwrap_or(Err(PutBack));
        begun.map_err(|PutBack| self.put_back())?;
        self.own.advance(if small { Stage::Begun } else { Stage::Slow });
        Ok(())
    }

    /// Waits until all ahead have passed. Whom it has to wait for too long counts as slow from then on.
    pub async fn wait(&self) -> Result<(), PutBack> {
        let all = self.all(|stage| stage >= Stage::Slow, |stage| stage != Stage::Passed);
        let waited = tokio::time::timeout(self.patience, all).await.unwrap_or_else(|_| {
            standing(&self.ahead).iter().for_each(|place| place.advance(Stage::Slow));
            Err(PutBack)
        });
        self.waited.fetch_or(waited.is_ok(), Ordering::Relaxed);
        waited.map_err(|PutBack| self.put_back())
    }

    /// Lets those behind go: to wait for whoever is ahead of this one, unless it has waited for them itself.
    pub fn pass(&self) {
        if !self.waited.load(Ordering::Relaxed) && self.own.stage() != Stage::Passed {
            // Before those behind are told. Only the first time counts.
            let _earlier = self.own.instead.set(standing(&self.ahead));
        }
        self.own.advance(Stage::Passed);
    }

    /// Is tried again later, before those behind.
    pub fn fail(&self) {
        self.own.advance(Stage::Failed);
    }
}

impl Default for Turn {
    /// With nothing ahead.
    fn default() -> Self {
        Self::new(Arc::default(), vec![])
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.fail();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` turns, each behind the one before.
    fn line(count: usize) -> Vec<Turn> {
        let places: Vec<Arc<Place>> = (0..count).map(|_| Arc::default()).collect();
        let ahead = std::iter::once(vec![]).chain(places.iter().map(|place| vec![place.clone()]));
        places.iter().cloned().zip(ahead).map(|(own, ahead)| Turn::new(own, ahead)).collect()
    }

    async fn is_waiting(turn: &Turn) -> bool {
        tokio::select! { biased; _ = turn.wait() => false, () = std::future::ready(()) => true }
    }

    #[tokio::test]
    async fn one_waits_until_the_one_ahead_has_passed_and_not_longer() {
        let [first, second] = <[_; 2]>::try_from(line(2)).unwrap();
        assert_eq!((first.begin(true).await, second.begin(true).await), (Ok(()), Ok(())));
        assert!(is_waiting(&second).await);
        let (waited, ()) = tokio::join!(second.wait(), async { first.pass() });
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn nobody_begins_behind_what_is_slow_and_all_behind_what_failed_are_put_back() {
        let turns = line(3);
        assert_eq!(turns[0].begin(false).await, Ok(()));
        assert_eq!(turns[1].begin(true).await, Err(PutBack));
        let mut turns = line(3).into_iter();
        let (first, second, third) = (turns.next().unwrap(), turns.next().unwrap(), turns.next().unwrap());
        for turn in [&first, &second, &third] {
            assert_eq!(turn.begin(true).await, Ok(()));
        }
        drop(first);
        assert_eq!(second.wait().await, Err(PutBack));
        drop(second);
        assert_eq!(third.wait().await, Err(PutBack));
    }

    #[tokio::test]
    async fn whom_others_waited_for_in_vain_is_slow_from_then_on_and_may_still_pass() {
        let mut turns = line(2);
        turns[1].patience = Duration::from_millis(1);
        assert_eq!(turns[0].begin(true).await, Ok(()));
        assert_eq!((turns[1].wait().await, turns[0].own.stage()), (Err(PutBack), Stage::Slow));
        turns[0].pass();
        assert_eq!((turns[1].wait().await, turns[0].own.stage()), (Ok(()), Stage::Passed));
        assert!(turns[1].is_put_back());
    }

    #[test]
    fn however_many_pass_behind_one_another_no_chain_of_them_grows() {
        let first = Turn::default();
        let mut ahead = first.own.clone();
        for _ in 0..200_000 {
            let turn = Turn::new(Arc::default(), vec![ahead]);
            turn.pass();
            ahead = turn.own.clone();
        }
        let newest = [ahead];
        let left = standing(&newest);
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &first.own));
        assert_eq!(Arc::strong_count(&first.own), 3, "its turn, the newest place, and `left`");
    }

    #[tokio::test]
    async fn who_passes_without_waiting_leaves_those_behind_to_whoever_is_ahead() {
        let turns = line(4);
        // As what was withdrawn, or does not come for a reason of its own.
        turns[1].pass();
        turns[2].pass();
        assert!(is_waiting(&turns[3]).await);
        turns[0].pass();
        assert_eq!(turns[3].wait().await, Ok(()));
        let turns = line(3);
        turns[1].pass();
        assert_eq!(turns[0].begin(false).await, Ok(()));
        assert_eq!(turns[2].begin(true).await, Err(PutBack));
        turns[0].fail();
        assert_eq!(turns[2].wait().await, Err(PutBack));
    }
}
