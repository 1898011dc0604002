//! Asks a sender's node for bodies that the exchange lost, one dispatch at a time, and takes them in as a repeated
//! submission. What is not brought is asked for again later, and at the node's next link.

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::frame::{Class, Frame, Resend};
use docaxis_protocol::{NodeId, ReasonCode};
use quinn::Connection;

use super::io::{self, IoError};
use super::submissions::Submissions;
use super::submit::{self, StreamError};
use crate::bells::Bell;
use crate::dispatch::{Exchange, Wanted};
use crate::store::Seq;

/// How long a node that did not bring a body is left alone.
const AGAIN: Duration = Duration::from_secs(60);

/// Runs until the connection is gone.
pub async fn run(exchange: Arc<Exchange>, node: NodeId, connection: Connection, bell: Arc<Bell>) {
    // A refusal of an earlier link may have been repaired since.
    let mut ask_all = true;
    let mut round = tokio::time::interval_at(tokio::time::Instant::now() + AGAIN, AGAIN);
    loop {
        match exchange.wanted_from(&node).await {
            Ok(wanted) => {
                for (seq, wanted) in wanted.into_iter().filter(|(_, one)| ask_all || one.refused.is_none()) {
                    ask(&exchange, &node, &connection, seq, wanted).await;
                }
            }
            Err(error) => tracing::error!(%node, %error, "what the node is to be asked for cannot be told"),
        }
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            () = bell.resend() => ask_all = false,
            _ = round.tick() => ask_all = true,
        }
    }
}

async fn ask(exchange: &Arc<Exchange>, node: &NodeId, connection: &Connection, seq: Seq, wanted: Wanted) {
    let id = wanted.id;
    let failed = match converse(exchange, node, connection, wanted).await {
        Ok(()) if exchange.repairs.get(seq).is_none() => return,
        Ok(()) => ReasonCode::Other.because("the node submitted something else"),
        Err(StreamError::Io(IoError::Refused(reason))) => reason,
        Err(error) => ReasonCode::Busy.because(error.to_string()),
    };
    tracing::warn!(%node, dispatch = %id, reason = %failed, "the sender's node did not bring lost bodies again");
    exchange.repairs.refused(seq, failed);
}

async fn converse(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    connection: &Connection,
    wanted: Wanted,
) -> Result<(), StreamError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    let Wanted { sender, id, parts, .. } = wanted;
    let resend = Resend { sender, dispatch: id, parts: parts.into_keys().collect() };
    io::write(&mut send, &Frame::Resend(resend)).await?;
    match io::read(&mut recv, Class::Large, "Submit").await? {
        // It was accepted in its turn: nobody waits for it.
        Frame::Submit(submit) => {
            let order = (&Submissions::default(), vec![]);
            submit::serve(exchange, node, submit, order, (&mut send, &mut recv)).await
        }
        Frame::Refused(refusal) => Err(IoError::Refused(refusal.reason).into()),
        other => Err(IoError::Unexpected { expected: "Submit or Refused", found: other.name() }.into()),
    }
}
