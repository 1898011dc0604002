//! Bodies of urgent dispatches before those of others on one link. QUIC sends the bytes of higher priorities first, but only
//! of what has been written; and of what all streams together may have written before the peer takes it, each gets the same.
//! So whoever sends a body lets those of higher priorities write first. To QUIC all bodies are equal then, and behind
//! everything else: what is small passes between any two packets of them, and a body that gets little gets that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

const PRIORITIES: usize = 5;
/// The priority of streams that carry bodies.
pub const BODIES: i32 = -1;
/// A body moves on after so long in any case, by a little: the peer gives up one that stands still.
const AT_MOST: Duration = Duration::from_secs(5);
const A_LITTLE: usize = 1 << 10;

/// How many bodies of each priority are being sent.
#[derive(Debug, Default)]
pub struct Precedence(watch::Sender<[u32; PRIORITIES]>);

/// A body that is being sent.
pub struct Sending {
    of: Arc<Precedence>,
    priority: usize,
}

impl Precedence {
    pub fn begin(self: &Arc<Self>, priority: u8) -> Sending {
        let priority = usize::from(priority).min(PRIORITIES - 1);
        self.0.send_modify(|sending| sending[priority] += 1);
        Sending { of: self.clone(), priority }
    }
}

impl Sending {
    /// Waits until none of a higher priority is being sent, or for as long as the peer may be left without a byte. Says how many
    /// bytes may be written before it is asked again.
    pub async fn turn(&self) -> usize {
        let mut all = self.of.0.subscribe();
        let first = all.wait_for(|sending| sending[self.priority + 1..].iter().all(|count| *count == 0));
        tokio::time::timeout(AT_MOST, first).await.map_or(A_LITTLE, |_| usize::MAX)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.of.0.send_modify(|sending| sending[self.priority] -= 1);
    }
}
