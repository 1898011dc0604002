//! Who should look again: one bell per connected node, rung after a commit. A bell only says "look"; the store says
//! what there is, so that a lost or doubled ring does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use docaxis_protocol::{AgencyCode, NodeId};
use tokio::sync::{Notify, watch};

/// The bell of one link.
#[derive(Default)]
pub struct Bell {
    /// Agencies of this node that have something new to be offered.
    recipients: Mutex<BTreeSet<AgencyCode>>,
    offer: Notify,
    resend: Notify,
    evidence: watch::Sender<u64>,
    directory: watch::Sender<u64>,
}

impl Bell {
    /// Waits for, and takes, the agencies for which there is something new.
    pub async fn recipients(&self) -> BTreeSet<AgencyCode> {
        loop {
            let taken = std::mem::take(&mut *self.recipients.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.offer.notified().await;
        }
    }

    /// Waits until this node is to be asked for bodies once more.
    pub async fn resend(&self) {
        self.resend.notified().await;
    }

    /// Changes when there is new evidence about what this node's agencies sent.
    pub fn evidence(&self) -> watch::Receiver<u64> {
        self.evidence.subscribe()
    }

    /// Changes with the directory.
    pub fn directory(&self) -> watch::Receiver<u64> {
        self.directory.subscribe()
    }
}

#[derive(Default)]
pub struct Bells(Mutex<BTreeMap<NodeId, Vec<Arc<Bell>>>>);

impl Bells {
    /// Hangs up a bell for a link of `node`.
    pub fn hang(&self, node: &NodeId) -> Arc<Bell> {
        let bell = Arc::new(Bell::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().push(bell.clone());
        bell
    }

    /// Takes a link's bell down.
    pub fn take_down(&self, node: &NodeId, bell: &Arc<Bell>) {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_node) = bells.get_mut(node) {
            of_node.retain(|other| !Arc::ptr_eq(other, bell));
            if of_node.is_empty() {
                bells.remove(node);
            }
        }
    }

    /// Something waits for `recipient` at `node`.
    pub fn offer(&self, node: &NodeId, recipient: &AgencyCode) {
        for bell in self.of(node) {
            bell.recipients.lock().unwrap_or_else(PoisonError::into_inner).insert(recipient.clone());
            bell.offer.notify_one();
        }
    }

    /// An agency of `node` is to be asked for bodies once more.
    pub fn resend(&self, node: &NodeId) {
        self.of(node).iter().for_each(|bell| bell.resend.notify_one());
    }

    /// There is new evidence for a sender at `node`.
    pub fn evidence(&self, node: &NodeId) {
        self.of(node).iter().for_each(|bell| bell.evidence.send_modify(|rung| *rung += 1));
    }

    /// The directory changed: everybody looks.
    pub fn directory(&self) {
        let all: Vec<Arc<Bell>> =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect();
        all.iter().for_each(|bell| bell.directory.send_modify(|rung| *rung += 1));
    }

    fn of(&self, node: &NodeId) -> Vec<Arc<Bell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned().unwrap_or_default()
    }
}
