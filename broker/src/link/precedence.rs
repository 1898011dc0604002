//! Bodies of urgent dispatches before those of others on one link. QUIC sends the bytes of higher priorities first, but only
//! of what has been written; and of what all streams together may have written before the peer takes it, each gets the same.
//! So whoever sends a body lets those of higher priorities write first. To QUIC all bodies are equal then, and behind
//! everything else: what is small passes between any two packets of them, and a body that gets little gets that.
//!
//! quinn wakes writers that wait for room in the reverse of their order, and the first one takes it all: of three or more that have
//! much to write, those between the first and the last get nothing. So one body at a time waits for room, a little each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

const PRIORITIES: usize = 5;
/// The priority of streams that carry bodies.
pub const BODIES: i32 = -1;
/// A body moves on after so long in any case, by a little: the peer gives up one that stands still.
const AT_MOST: Duration = Duration::from_secs(5);
const A_LITTLE: usize = 1 << 10;
/// What a body may write in one turn. Of 64 that share a slow link, each has to move on before its peer gives it up.
const ONE_TURN: usize = 16 << 10;
/// A body for which there is no room leaves its turn to the next one after so long: the peer may not be taking this one.
const LONGEST_TURN: Duration = Duration::from_millis(100);

/// The bodies that are being sent on one link.
#[derive(Debug, Default)]
pub struct Precedence {
    /// How many of each priority.
    sending: watch::Sender<[u32; PRIORITIES]>,
    /// Held by the one that writes.
    turn: Mutex<()>,
}

/// A body that is being sent.
pub struct Sending {
    of: Arc<Precedence>,
    priority: usize,
}

/// The right to write so many bytes of a body, once.
pub struct Turn<'a> {
    pub most: usize,
    _held: MutexGuard<'a, ()>,
}

impl Precedence {
    pub fn begin(self: &Arc<Self>, priority: u8) -> Sending {
        let priority = usize::from(priority).min(PRIORITIES - 1);
        self.sending.send_modify(|sending| sending[priority] += 1);
        Sending { of: self.clone(), priority }
    }
}

impl Sending {
    /// Waits until it is this body's turn: until none of a higher priority is being sent, or the peer may be left no longer without
    /// a byte, and those that came before have had theirs.
    pub async fn turn(&self) -> Turn<'_> {
        let mut all = self.of.sending.subscribe();
        let first = all.wait_for(|sending| sending[self.priority + 1..].iter().all(|count| *count == 0));
        let most = tokio::time::timeout(AT_MOST, first).await.map_or(A_LITTLE, |_| ONE_TURN);
        Turn { most, _held: self.of.turn.lock().await }
    }
}

impl Turn<'_> {
    /// Writes, or gives up the turn: then `write` is dropped, and must not have written anything.
    pub async fn write<T>(self, write: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(LONGEST_TURN, write).await.ok()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.of.sending.send_modify(|sending| sending[self.priority] -= 1);
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
        let _urgent = link.begin(1);
        assert_eq!(normal.turn().await.most, A_LITTLE, "the peer must not think that it stands still");
    }

    #[tokio::test]
    async fn bodies_write_one_at_a_time_in_turn_and_one_that_cannot_keeps_nobody_waiting() {
        let link = Arc::new(Precedence::default());
        let (first, second, stuck) = (link.begin(0), link.begin(0), link.begin(0));
        let (order, mut all) = tokio::sync::mpsc::unbounded_channel();
        let write = async |who: &'static str, one: &Sending| {
            for _ in 0..3 {
                let writing = async {
                    tokio::task::yield_now().await;
                    order.send(who).unwrap();
                };
                one.turn().await.write(writing).await.unwrap();
            }
        };
        // It has the first turn.
        let turn = stuck.turn().await;
        let gave_up = async { assert_eq!(turn.write(std::future::pending::<()>()).await, None) };
        tokio::join!(gave_up, write("first", &first), write("second", &second));
        drop(order);
        let mut written = Vec::new();
        while let Some(who) = all.recv().await {
            written.push(who);
        }
        assert_eq!(written, ["first", "second", "first", "second", "first", "second"]);
    }
}
