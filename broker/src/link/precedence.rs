//! Bodies of urgent dispatches before those of others on one link. QUIC sends the bytes of higher priorities first, but only
//! of what has been written; and of what all streams together may have written before the peer takes it, each gets the same.
//! So whoever sends a body lets those of higher priorities write first. To QUIC all bodies are equal then, and behind
//! everything else: what is small passes between any two packets of them, and a body that gets little gets that.
//!
//! quinn wakes writers that wait for room in the reverse of their order, and the first one takes it all: of three or more that have
//! much to write, those between the first and the last get nothing. So one body at a time waits for room, a little each, and while
//! an offer or evidence is written only one that would be given up.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Turns, MutexGuard, Notify};
use tokio::time::Instant;

const PRIORITIES: usize = 5;
/// How many bodies of each priority are being sent, and last how many frames.
type Counts = [u32; PRIORITIES + 1];
/// The priority of streams that carry bodies.
pub const BODIES: i32 = -1;
/// A body moves on after so long in any case, by a little, if there is room: the peer gives up one that stands still.
const AT_MOST: Duration = Duration::from_secs(5);
const A_LITTLE: usize = 1 << 10;
/// What a body may write in one turn. Of 64 that share a slow link, each has to move on before its peer gives it up.
const ONE_TURN: usize = 16 << 10;
/// A body for which there is no room leaves its turn to the next one after so long: the peer may not be taking this one.
const LONGEST_TURN: Duration = Duration::from_millis(500);
/// The same until it has written again.
const SHORT_TURN: Duration = Duration::from_millis(100);
/// How long one that is not first leaves the others alone after such a turn.
const REST: Duration = Duration::from_secs(1);

/// The bodies that are being sent on one link.
#[derive(Debug, Default)]
pub struct Precedence {
    sending: Mutex<Counts>,
    /// Wakes in the order of waiting, as a simulation that is to repeat needs it.
    fewer: Notify,
    /// Held by the one that writes.
    turn: Turns<()>,
}

/// A body that is being sent, or a frame before which bodies give way.
pub struct Sending {
    of: Arc<Precedence>,
    priority: usize,
    /// When it wrote last.
    wrote: Mutex<Instant>,
    /// There was no room in its last turn.
    in_vain: AtomicBool,
}

/// The right to write so many bytes of a body, once.
pub struct Turn<'a> {
    pub most: usize,
    body: &'a Sending,
    _held: MutexGuard<'a, ()>,
}

impl Precedence {
    pub fn begin(self: &Arc<Self>, priority: u8) -> Sending {
        self.count(usize::from(priority).min(PRIORITIES - 1))
    }

    /// While an offer or evidence is written: all bodies let it go first. Otherwise it would have no more room than what
    /// they leave, if it is larger than what is acknowledged at a time.
    pub fn frames(self: &Arc<Self>) -> Sending {
        self.count(PRIORITIES)
    }

    fn count(self: &Arc<Self>, priority: usize) -> Sending {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)[priority] += 1;
        Sending { of: self.clone(), priority, wrote: Mutex::new(Instant::now()), in_vain: AtomicBool::new(false) }
    }
}

impl Sending {
    fn is_first(&self) -> bool {
        let sending = self.of.sending.lock().unwrap_or_else(PoisonError::into_inner);
        sending[self.priority + 1..].iter().all(|count| *count == 0)
    }

    async fn until_first(&self) {
        loop {
            let mut fewer = pin!(self.of.fewer.notified());
            fewer.as_mut().enable();
            if self.is_first() {
                return;
            }
            fewer.await;
        }
    }

    /// Waits until it is this body's turn: until none of a higher priority is being sent, or the peer may be left no longer without
    /// a byte, and those that came before have had theirs.
    pub async fn turn(&self) -> Turn<'_> {
        if self.in_vain.load(Ordering::Relaxed) && !self.is_first() {
            tokio::time::sleep(REST).await;
        }
        let due = *self.wrote.lock().unwrap_or_else(PoisonError::into_inner) + AT_MOST;
        loop {
            let _first_or_due = tokio::time::timeout_at(due, self.until_first()).await;
            let held = self.of.turn.lock().await;
            // Another one of a higher priority may have begun meanwhile.
            match self.is_first() {
                true => return Turn { most: ONE_TURN, body: self, _held: held },
                false if Instant::now() >= due => return Turn { most: A_LITTLE, body: self, _held: held },
                false => {}
            }
        }
    }
}

impl Turn<'_> {
    /// Writes, or gives up the turn: then `write` is dropped, and must not have written anything.
    pub async fn write<T>(self, write: impl Future<Output = T>) -> Option<T> {
        let Sending { wrote, in_vain, .. } = self.body;
        let longest = if in_vain.load(Ordering::Relaxed) { SHORT_TURN } else { LONGEST_TURN };
        let written = tokio::time::timeout(longest, write).await.ok();
        if written.is_some() {
            *wrote.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        in_vain.store(written.is_none(), Ordering::Relaxed);
        written
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let left = {
            let mut sending = self.of.sending.lock().unwrap_or_else(PoisonError::into_inner);
            sending[self.priority] -= 1;
            sending[self.priority]
        };
        if left == 0 {
            self.of.fewer.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it may go on at once.
    async fn may(one: &Sending) -> bool {
        tokio::select! {
            biased;
            turn = one.turn() => turn.most == ONE_TURN,
            () = tokio::task::yield_now() => false,
        }
    }

    #[tokio::test]
    async fn a_body_waits_for_more_urgent_ones_and_for_no_others() {
        let link = Arc::new(Precedence::default());
        let (normal, other, highest) = (link.begin(0), link.begin(0), link.begin(u8::MAX));
        assert_eq!((may(&normal).await, may(&highest).await), (false, true));
        drop(highest);
        assert!(may(&normal).await && may(&other).await, "nobody waits for its equals");
        let urgent = link.begin(2);
        let timed = link.begin(4);
        drop(other);
        assert_eq!((may(&normal).await, may(&urgent).await, may(&timed).await), (false, false, true));
        let waits = tokio::spawn(async move {
            let most = normal.turn().await.most;
            (most, normal)
        });
        tokio::task::yield_now().await;
        drop((urgent, timed));
        let (most, normal) = waits.await.unwrap();
        assert_eq!(most, ONE_TURN, "it was woken");
        let urgent = link.begin(1);
        let turn = normal.turn().await;
        assert_eq!(turn.most, A_LITTLE, "the peer must not think that it stands still");
        assert_eq!(turn.write(std::future::pending::<()>()).await, None);
        let turn = tokio::time::timeout(AT_MOST / 2, normal.turn()).await;
        assert_eq!(turn.map(|turn| turn.most), Ok(A_LITTLE), "it does not wait once more for having found no room");
        normal.turn().await.write(async {}).await.unwrap();
        assert!(!may(&normal).await);
        drop(urgent);
        assert!(may(&normal).await);
        let frame = link.frames();
        assert!(!may(&normal).await && !may(&link.begin(u8::MAX)).await);
        drop(frame);
        assert!(may(&normal).await);
    }

    #[tokio::test]
    async fn bodies_write_one_at_a_time_in_turn_and_one_that_cannot_keeps_nobody_waiting() {
        let link = Arc::new(Precedence::default());
        let (first, second, stuck) = (link.begin(0), link.begin(0), link.begin(0));
        let (order, mut all) = tokio::sync::mpsc::unbounded_channel();
        let inside = AtomicBool::new(false);
        let write = async |who: &'static str, one: &Sending| {
            for _ in 0..3 {
                let writing = async {
                    assert!(!inside.swap(true, Ordering::Relaxed), "two at a time");
                    tokio::task::yield_now().await;
                    order.send(who).unwrap();
                    inside.store(false, Ordering::Relaxed);
                };
                one.turn().await.write(writing).await.unwrap();
            }
        };
        // It has the first turn.
        let turn = stuck.turn().await;
        let gave_up = async {
            assert_eq!(turn.write(std::future::pending::<()>()).await, None);
            order.send("gave up").unwrap();
        };
        tokio::join!(gave_up, write("first", &first), write("second", &second));
        drop(order);
        let mut written = Vec::new();
        while let Some(who) = all.recv().await {
            written.push(who);
        }
        assert_eq!(written, ["gave up", "first", "second", "first", "second", "first", "second"]);
    }
    #[tokio::test]
    async fn a_body_moves_on_also_if_another_one_has_the_turn_whenever_both_are_first() {
        let link = Arc::new(Precedence::default());
        let (first, second) = (link.begin(0), link.begin(0));
        let ahead = async {
            loop {
                let frame = link.frames();
                tokio::time::sleep(AT_MOST / 10).await;
                drop(frame);
                // Whoever is woken finds the next one.
                tokio::task::yield_now().await;
            }
        };
        let all_gaps = async {
            loop {
                first.turn().await.write(tokio::time::sleep(Duration::from_millis(10))).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            () = ahead => {}
            () = all_gaps => {}
            turn = tokio::time::timeout(2 * AT_MOST, second.turn()) => assert_eq!(turn.expect("it is its turn").most, A_LITTLE),
        }
    }
}
