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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it may go on at once.
    async fn may(one: &Sending) -> bool {
        tokio::select! {
            biased;
            most = one.turn() => most == usize::MAX,
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
        let waits = tokio::spawn(async move { (normal.turn().await, normal) });
        tokio::task::yield_now().await;
        drop((urgent, timed));
        let (most, normal) = waits.await.unwrap();
        assert_eq!(most, usize::MAX, "it was woken");
        let _urgent = link.begin(1);
        assert_eq!(normal.turn().await, A_LITTLE, "the peer must not think that it stands still");
    }
}
