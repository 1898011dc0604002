//! Asks a linked node for the leaves that it holds, while the exchange is closed because its data was put back.

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::NodeId;
use docaxis_protocol::frame::{Class, Frame, GivenLeaf};
use docaxis_protocol::limits::MAX_BATCH;
use quinn::Connection;

use super::io::{self, IoError};
use crate::dispatch::Exchange;

/// Before a node that did not answer well is asked again.
const REST: Duration = Duration::from_secs(2);

/// Counts the node among those that can answer for as long as its link is up.
struct Up<'a>(&'a Exchange, &'a NodeId);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.continuity.down(self.1);
    }
}

/// Runs until the connection is gone.
pub async fn run(exchange: Arc<Exchange>, node: NodeId, connection: Connection) {
    exchange.continuity.up(&node);
    let _up = Up(&exchange, &node);
    let mut changed = exchange.continuity.changed();
    loop {
        changed.mark_unchanged();
        if let Some((from, page)) = exchange.continuity.to_ask(&exchange, &node) {
            let pause = match ask(&connection, from).await {
                Ok(leaves) => take(&exchange, &node, page, leaves).await,
                Err(error) => {
                    tracing::warn!(%node, %error, "a node does not give back what it holds; it is asked again");
                    true
                }
            };
            if pause {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(REST) => {}
                    _ = connection.closed() => return,
                }
            }
            continue;
        }
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            _ = connection.closed() => return,
        }
    }
}

async fn ask(connection: &Connection, from: u64) -> Result<Vec<GivenLeaf>, IoError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    io::write(&mut send, &Frame::GiveBack(from)).await?;
    io::finish(&mut send);
    let mut leaves = Vec::new();
    // One frame holds what fits; an empty one ends the answer.
    loop {
        match io::read(&mut recv, Class::Large, "GivenBack").await? {
            Frame::GivenBack(given) if given.is_empty() => return Ok(leaves),
            Frame::GivenBack(given) => leaves.extend(given),
            Frame::Refused(refusal) => return Err(IoError::Refused(refusal.reason)),
            other => return Err(IoError::Unexpected { expected: "GivenBack", found: other.name() }),
        }
        if leaves.len() > MAX_BATCH {
            return Err(IoError::Unexpected { expected: "at most 256 leaves", found: "more" });
        }
    }
}

/// Signatures are checked on a worker. Says whether to pause because that failed.
async fn take(exchange: &Arc<Exchange>, node: &NodeId, page: u64, leaves: Vec<GivenLeaf>) -> bool {
    let (keeper, who) = (exchange.clone(), node.clone());
    let checked = exchange.workers.run(move || keeper.continuity.given(&keeper, &who, page, leaves)).await;
    if let Err(error) = &checked {
        tracing::warn!(%node, %error, "what a node gave back was not looked at");
    }
    checked.is_err()
}
