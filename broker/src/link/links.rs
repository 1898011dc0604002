//! The links that are up: one per node. A newer link of a node replaces the older; a revoked peer's link is closed,
//! because an open connection's certificate is not looked at again by TLS.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use docaxis_certs::Trust;
use docaxis_certs::verifier::LinkedPeer;
use docaxis_protocol::NodeId;
use quinn::Connection;

use super::io::code;

#[derive(Default)]
pub struct Links(Mutex<BTreeMap<NodeId, (LinkedPeer, Connection)>>);

impl Links {
    /// Notes a node's new link and closes the one before it.
    pub fn up(&self, node: &NodeId, peer: LinkedPeer, connection: Connection) {
        let old = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), (peer, connection));
        if let Some((_, old)) = old {
            old.close(code::REPLACED.into(), b"replaced by a newer link of the same node");
        }
    }

    /// Forgets a link that ended, unless a newer one has taken its place.
    pub fn down(&self, node: &NodeId, connection: &Connection) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if links.get(node).is_some_and(|(_, current)| current.stable_id() == connection.stable_id()) {
            links.remove(node);
        }
    }

    /// Closes the links of peers that the list in force revokes.
    pub fn close_revoked(&self, trust: &Trust) {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, (peer, connection)) in links.iter() {
            if trust.is_revoked(&peer.serial) {
                tracing::warn!(%node, "its certificate was revoked: the link is closed");
                connection.close(code::REVOKED.into(), b"revoked");
            }
        }
    }

    /// The nodes that are linked, in order.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
