//! Bodies that the exchange lost: a damaged or missing body is never offered. Its dispatch waits on, says why, and the
//! sender's node, which keeps its copy until every outcome is known, is asked to bring the body once more.
//!
//! What stands here is forgotten with the process: a lost body is found again when it is read to be offered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::Done;
use docaxis_protocol::{AgencyCode, Digest, DispatchId, NodeId, Reason};

use super::{Admitted, Exchange, ExchangeError};
use crate::store::{Body, Dispatch, Seq, StoreError};

/// Dispatches that are remembered as waiting for a body. Beyond that, one is found again at its next offer.
const MAX_WANTED: usize = 10_000;

/// A dispatch that cannot be offered before its sender has brought bodies once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub sender: AgencyCode,
    pub id: DispatchId,
    /// The lost bodies, by the first index of each in the envelope.
    pub parts: BTreeMap<u16, Digest>,
    /// Why the sender's node did not bring them when it was last asked.
    pub refused: Option<Reason>,
}

#[derive(Default)]
pub struct Repairs(Mutex<BTreeMap<Seq, Wanted>>);

impl Repairs {
    fn wanted(&self) -> MutexGuard<'_, BTreeMap<Seq, Wanted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes lost bodies of a dispatch. False if there is no room to remember it.
    pub fn want(&self, dispatch: &Dispatch, parts: &[(u16, PartDigest)]) -> bool {
        let mut wanted = self.wanted();
        if wanted.len() >= MAX_WANTED && !wanted.contains_key(&dispatch.seq) {
            return false;
        }
        let new = Wanted { sender: dispatch.sender.clone(), id: dispatch.id, parts: BTreeMap::new(), refused: None };
        let entry = wanted.entry(dispatch.seq).or_insert(new);
        entry.parts.extend(parts.iter().map(|(index, part)| (*index, part.sha256)));
        true
    }

    pub fn has(&self, seq: Seq) -> bool {
        self.wanted().contains_key(&seq)
    }

    /// All that wait for a body: not to be offered meanwhile.
    pub fn all(&self) -> BTreeSet<Seq> {
        self.wanted().keys().copied().collect()
    }

    pub fn get(&self, seq: Seq) -> Option<Wanted> {
        self.wanted().get(&seq).cloned()
    }

    /// What is to be asked of the agencies for which `asked` says yes.
    pub fn of(&self, asked: impl Fn(&AgencyCode) -> bool) -> Vec<(Seq, Wanted)> {
        let wanted = self.wanted();
        wanted.iter().filter(|(_, one)| asked(&one.sender)).map(|(seq, one)| (*seq, one.clone())).collect()
    }

    /// The sender's node did not bring what it was asked for.
    pub fn refused(&self, seq: Seq, why: Reason) {
        if let Some(entry) = self.wanted().get_mut(&seq) {
            entry.refused = Some(why);
        }
    }

    /// This dispatch's small bodies are here again, and these large ones, which others may name as well. Returns the
    /// dispatches that now lack none.
    pub fn restored(&self, own: Option<Seq>, small: &[Digest], large: &[Digest]) -> Vec<Seq> {
        let mut whole = Vec::new();
        self.wanted().retain(|seq, entry| {
            let own = own == Some(*seq);
            entry.parts.retain(|_, sha256| !(large.contains(sha256) || own && small.contains(sha256)));
            if entry.parts.is_empty() {
                whole.push(*seq);
            }
            !entry.parts.is_empty()
        });
        whole
    }

    pub fn forget(&self, seq: Seq) {
        self.wanted().remove(&seq);
    }
}

impl Exchange {
    /// The bodies that a waiting dispatch names and that are not here whole, each by its first index.
    pub fn lost_parts(&self, dispatch: &Dispatch) -> Result<Vec<(u16, PartDigest)>, StoreError> {
        let mut lost: BTreeMap<Digest, (u16, PartDigest)> = BTreeMap::new();
        for (index, part) in (0u16..).zip(&dispatch.parts) {
            if !lost.contains_key(&part.sha256) && self.store.body(dispatch.seq, part)?.is_none() {
                lost.insert(part.sha256, (index, part.clone()));
            }
        }
        // Of a dispatch that nobody waits for, the bodies may have been pruned.
        if lost.is_empty() || !self.store.deliveries(dispatch.seq)?.iter().any(|delivery| delivery.state.is_waiting()) {
            return Ok(vec![]);
        }
        let mut lost: Vec<_> = lost.into_values().collect();
        lost.sort_by_key(|(index, _)| *index);
        Ok(lost)
    }

    /// Bodies of this dispatch turned out lost: it waits, and its sender is asked. False if it must be found again.
    pub fn ask_sender(&self, dispatch: &Dispatch, parts: &[(u16, PartDigest)]) -> bool {
        let noted = self.repairs.want(dispatch, parts);
        let parts: Vec<u16> = parts.iter().map(|(index, _)| *index).collect();
        tracing::error!(dispatch = %dispatch.id, sender = %dispatch.sender, ?parts,
            "bodies are damaged or missing: the dispatch waits, and its sender's node is asked for them");
        if let Some(node) = self.with_directory(|directory| directory.node_of(&dispatch.sender).cloned()) {
            self.bells.resend(&node);
        }
        noted
    }

    /// What `node` is to be asked for. What has come to an end meanwhile, or is whole again, is dropped.
    pub async fn wanted_from(self: &Arc<Self>, node: &NodeId) -> Result<Vec<(Seq, Wanted)>, ExchangeError> {
        let noted = self.repairs.of(|agency| self.hosts(node, agency));
        if noted.is_empty() {
            return Ok(noted);
        }
        let exchange = self.clone();
        let look = move || {
            let mut wanted = Vec::new();
            for (seq, mut entry) in noted {
                let lost = match exchange.store.dispatch(seq)? {
                    Some(dispatch) => exchange.lost_parts(&dispatch)?,
                    None => vec![],
                };
                if lost.is_empty() {
                    exchange.repairs.forget(seq);
                    exchange.ring_waiting(seq)?;
                } else {
                    entry.parts = lost.into_iter().map(|(index, part)| (index, part.sha256)).collect();
                    wanted.push((seq, entry));
                }
            }
            Ok::<_, ExchangeError>(wanted)
        };
        self.workers.run(look).await?
    }

    /// Takes in the bodies that were brought once more, and answers with the receipt of then.
    pub(super) async fn restore(
        self: &Arc<Self>,
        admitted: Admitted,
        lost: Vec<Digest>,
        done: Done,
    ) -> Result<Done, ExchangeError> {
        let bodies: Vec<Body> = admitted.bodies.into_iter().map(|(sha256, bytes)| Body { sha256, bytes }).collect();
        let seq = Seq(done.leaf);
        let (small, large) = lost.into_iter().partition(|sha256| bodies.iter().any(|body| body.sha256 == *sha256));
        if !bodies.is_empty() {
            self.store.restore(seq, bodies).await?;
        }
        tracing::info!(dispatch = %admitted.envelope.id, "lost bodies were brought once more");
        self.bodies_are_here(Some(seq), small, large).await?;
        self.ring_recipients(admitted.envelope.recipients.iter());
        Ok(done)
    }

    /// Lets dispatches be offered again that waited for these bodies.
    pub(super) async fn bodies_are_here(
        self: &Arc<Self>,
        own: Option<Seq>,
        small: Vec<Digest>,
        large: Vec<Digest>,
    ) -> Result<(), ExchangeError> {
        let whole = self.repairs.restored(own, &small, &large);
        if whole.is_empty() {
            return Ok(());
        }
        let exchange = self.clone();
        self.workers.run(move || whole.into_iter().try_for_each(|seq| exchange.ring_waiting(seq))).await??;
        Ok(())
    }

    /// Of a dispatch for which nobody waits any more, no body is wanted.
    pub(super) fn forget_if_over(&self, seq: Seq) -> Result<(), StoreError> {
        if self.repairs.get(seq).is_some() && !self.store.deliveries(seq)?.iter().any(|one| one.state.is_waiting()) {
            self.repairs.forget(seq);
        }
        Ok(())
    }

    pub(super) fn ring_waiting(&self, seq: Seq) -> Result<(), ExchangeError> {
        let deliveries = self.store.deliveries(seq)?;
        self.ring_recipients(deliveries.iter().filter(|one| one.state.is_waiting()).map(|one| &one.recipient));
        Ok(())
    }

    /// Why a dispatch cannot be offered and whose move it is, if a body is what is missing.
    pub fn why_lost(&self, seq: Seq) -> Option<String> {
        let Wanted { sender, parts, refused, .. } = self.repairs.get(seq)?;
        let parts = parts.keys().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let lost = format!("the body of part {parts} was damaged or lost at the exchange");
        let node = self.with_directory(|directory| directory.node_of(&sender).cloned());
        Some(match (node, refused) {
            (None, _) => format!(
                "{lost}, and no node acts for its sender {sender} any more; it waits until the dispatch expires, and the \
                 sender's successor sends it anew"
            ),
            (Some(node), Some(why)) => {
                format!("{lost}, and the sender's node {node} did not bring it again: {why}; it is asked again")
            }
            (Some(node), None) if self.links.nodes().contains(&node) => {
                format!("{lost}; the sender's node {node} is being asked for it")
            }
            (Some(node), None) => format!("{lost}; the sender's node {node} is asked for it when it is linked"),
        })
    }
}
