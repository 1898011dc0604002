//! Bodies of urgent dispatches before those of others on one link. QUIC sends the bytes of higher priorities first, but only
//! of what has been written; and of what all streams together may have written before the peer takes it, each gets the same.
//! So whoever sends a body lets those of higher priorities write first. To QUIC all bodies are equal then, and behind
//! everything else: what is small passes between any two packets of them, and a body that gets little gets that.
//!
//! quinn wakes writers that wait for room in the reverse of their order, and the first one takes it all: of three or more that have
//! much to write, those between the first and the last get nothing. So one body at a time waits for room, a little each.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Turns, MutexGuard, Notify};

const PRIORITIES: usize = 5;
/// How many bodies of each priority are being sent.
type Counts = [u32; PRIORITIES];
/// The priority of streams that carry bodies.
pub const BODIES: i32 = -1;
/// A body moves on after so long in any case, by a little: the peer gives up one that stands still.
const AT_MOST: Duration = Duration::from_secs(5);
const A_LITTLE: usize = 1 << 10;
/// What a body may write in one turn. Of 64 that share a slow link, each has to move on before its peer gives it up.
const ONE_TURN: usize = 16 << 10;
/// A body for which there is no room leaves its turn to the next one after so long: the peer may not be taking this one. On a
/// slow link there is room for anybody less often than one would think: the agent hears of it by half a megabyte.
const LONGEST_TURN: Duration = Duration::from_millis(500);

/// The bodies that are being sent on one link.
#[derive(Debug, Default)]
pub struct Precedence {
    sending: Mutex<Counts>,
    /// Wakes in the order of waiting, as a simulation that is to repeat needs it.
    fewer: Notify,
    /// Held by the one that writes.
    turn: Turns<()>,
}

/// A body that is being sent.
pub struct Sending {
    of: Arc<Precedence>,
    priority: usize,
    /// It has let others write for so long that the peer may be left no longer without a byte.
    due: AtomicBool,
}

/// The right to write so many bytes of a body, once.
pub struct Turn<'a> {
    pub most: usize,
    body: &'a Sending,
    _held: MutexGuard<'a, ()>,
}

impl Precedence {
    pub fn begin(self: &Arc<Self>, priority: u8) -> Sending {
        let priority = usize::from(priority).min(PRIORITIES - 1);
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)[priority] += 1;
        Sending { of: self.clone(), priority, due: AtomicBool::new(false) }
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
        loop {
            if !self.due.load(Ordering::Relaxed) {
                let late = tokio::time::timeout(AT_MOST, self.until_first()).await.is_err();
                self.due.store(late, Ordering::Relaxed);
            }
            let held = self.of.turn.lock().await;
            let most = if self.is_first() { ONE_TURN } else { A_LITTLE };
            // Another one of a higher priority may have begun meanwhile.
            if most == ONE_TURN || self.due.load(Ordering::Relaxed) {
                return Turn { most, body: self, _held: held };
            }
        }
    }
}

impl Turn<'_> {
    /// Writes, or gives up the turn: then `write` is dropped, and must not have written anything.
    pub async fn write<T>(self, write: impl Future<Output = T>) -> Option<T> {
        let written = tokio::time::timeout(LONGEST_TURN, write).await.ok();
        if written.is_some() {
            self.body.due.store(false, Ordering::Relaxed);
        }
        written
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.of.sending.lock().unwrap_or_else(PoisonError::into_inner)[self.priority] -= 1;
        self.of.fewer.notify_waiters();
    }
}
