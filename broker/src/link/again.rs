//! Gives a node whose mailbox was restored from a backup again what was handed over to it since: as offers like any
//! other, answered with the evidence of then. What the exchange no longer has is listed.

use std::sync::Arc;

use docaxis_protocol::NodeId;
use docaxis_protocol::frame::{Frame, Gone, GoneItem};
use quinn::{Connection, SendStream};

use super::io::{self, IoError};
use super::precedence::Precedence;
use super::push::{self, Offered};
use super::submit::StreamError;
use crate::dispatch::{Again, Exchange, ExchangeError};

/// Leaves looked through for one answer: bounds its length and the time that it takes.
const LEAVES_AT_ONCE: usize = 512;

/// One page: offers what was handed over at the leaves from `from` on, then says up to where it went and what is gone.
pub async fn serve(
    exchange: &Arc<Exchange>,
    (node, connection, precedence): (&NodeId, &Connection, &Arc<Precedence>),
    from: u64,
    send: &mut SendStream,
) -> Result<(), StreamError> {
    if let Some(reason) = exchange.continuity.refusal() {
        // What is not taken back yet cannot be offered: an answer now would end the node's asking too early.
        return Ok(io::refuse(send, reason, exchange.now()).await?);
    }
    let (reader, who) = (exchange.clone(), node.clone());
    let page = exchange.workers.run(move || reader.handed_over_since(&who, from, LEAVES_AT_ONCE));
    let (upto, again) = page.await.map_err(ExchangeError::from)??;
    let mut items = Vec::new();
    for Again { leaf, seq, recipient, time, dispatch, sender } in again {
        let (reader, who) = (exchange.clone(), recipient.clone());
        let offering = exchange.workers.run(move || reader.offering_again(seq, &who));
        if let Some(offering) = offering.await.map_err(ExchangeError::from)?? {
            match push::again(exchange, (node, connection, precedence), offering).await {
                // What was handed over before is not early.
                Ok(Offered::Recorded | Offered::NoLongerDue | Offered::NotYetItsTurn | Offered::NotYet { .. }) => {
                    continue;
                }
                Ok(Offered::BodiesLost { .. }) => {}
                // The same answer would come every time, and what stands behind it would never be offered.
                Err(StreamError::Io(IoError::Refused(reason))) if !reason.known().text().retryable => {
                    tracing::warn!(%node, %dispatch, %recipient, %reason, "what was lost with a restore is not taken again");
                }
                Err(error) => return Err(error),
            }
        }
        items.push(GoneItem { leaf, recipient, sender, dispatch, time });
    }
    io::write(send, &Frame::Gone(Gone { upto, items })).await?;
    io::finish(send);
    Ok(())
}
