//! How far bodies are on their way, for whoever waits for them: from the caller's files into the agent, and from there to the
//! exchange. In memory alone, and only while it lasts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A transfer under way, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// What is there, what an earlier try left included.
    pub sent: u64,
    pub total: u64,
}

#[derive(Default)]
pub(crate) struct Transfers(Mutex<BTreeMap<String, Arc<Counts>>>);

struct Counts {
    sent: AtomicU64,
    total: u64,
}

impl Transfers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Counts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count under this name, until what is returned is dropped.
    pub fn begin(self: &Arc<Self>, name: String, total: u64) -> Transfer {
        let counts = Arc::new(Counts { sent: AtomicU64::new(0), total });
        self.all().insert(name.clone(), counts.clone());
        Transfer { transfers: self.clone(), name, counts }
    }

    pub fn of(&self, name: &str) -> Option<TransferView> {
        let counts = self.all().get(name)?.clone();
        Some(TransferView { sent: counts.sent.load(Ordering::Relaxed).min(counts.total), total: counts.total })
    }
}

/// A transfer that is counted.
pub(crate) struct Transfer {
    transfers: Arc<Transfers>,
    name: String,
    counts: Arc<Counts>,
}

impl Transfer {
    /// Only so much is still to come: the rest is there already.
    pub fn needs(&self, bytes: u64) {
        self.counts.sent.store(self.counts.total.saturating_sub(bytes), Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.counts.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut all = self.transfers.all();
        // Another one may have begun under the same name.
        if all.get(&self.name).is_some_and(|counts| Arc::ptr_eq(counts, &self.counts)) {
            all.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_seen_while_it_lasts_and_what_was_there_counts() {
        let transfers = Arc::<Transfers>::default();
        let view = |sent| Some(TransferView { sent, total: 100 });
        assert_eq!(transfers.of("a"), None);
        let transfer = transfers.begin("a".into(), 100);
        transfer.add(5);
        assert_eq!((transfers.of("a"), transfers.of("b")), (view(5), None));
        transfer.needs(60);
        transfer.add(1);
        assert_eq!(transfers.of("a"), view(41));
        let again = transfers.begin("a".into(), 100);
        drop(transfer);
        assert_eq!(transfers.of("a"), view(0));
        again.add(1000);
        assert_eq!(transfers.of("a"), view(100), "never more than all");
        drop(again);
        assert_eq!(transfers.of("a"), None);
    }
}
