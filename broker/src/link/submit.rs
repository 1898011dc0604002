//! One submission on one stream: `Submit` and its inline bodies, perhaps `Need` and the rest, then `Done`.

use std::sync::Arc;

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::{Done, Frame, Need, Submit};
use docaxis_protocol::limits::MAX_INLINE_BODY_BYTES;
use docaxis_protocol::{DispatchId, NodeId, Reason, ReasonCode};
use quinn::{RecvStream, SendStream};

use super::bodies::{self, BodyError, Received};
use super::io::{self, IoError};
use super::submissions::Submissions;
use crate::blobs::{BlobStore, BlobWriter};
use crate::dispatch::{Admitted, Exchange, ExchangeError, Intake, inline_sizes};

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Body(BodyError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl From<BodyError> for StreamError {
    /// A peer that stalls or ends within a body breaks the protocol as it does within a frame.
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Io(error) => Self::Io(error),
            own => Self::Body(own),
        }
    }
}

pub async fn serve(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    submit: Submit,
    (submissions, behind): (&Submissions, Vec<DispatchId>),
    (send, recv): (&mut SendStream, &mut RecvStream),
) -> Result<(), StreamError> {
    let Submit { envelope: sealed, inline: announced } = submit;
    let envelope = match exchange.read_envelope(&sealed).await? {
        Ok(envelope) => envelope,
        Err(reason) => return Ok(io::refuse(send, reason, exchange.now()).await?),
    };
    let turn = match submissions.enter(&envelope.sender.agency, envelope.id, &behind) {
        Ok(turn) => turn,
        Err(reason) => return Ok(io::refuse(send, reason, exchange.now()).await?),
    };
    let sizes = match inline_sizes(&envelope, &announced) {
        Ok(sizes) => sizes,
        Err(reason) => return Ok(io::refuse(send, reason, exchange.now()).await?),
    };
    let mut inline = Vec::with_capacity(sizes.len());
    for (index, size) in sizes {
        inline.push((index, bodies::receive_small(recv, size).await?));
    }
    docaxis_failpoints::failpoint!("broker.submit.read");
    // Before it costs work: what is behind is checked, signed and queued for commit one after the other, and committed together.
    if turn.wait().await.is_err() {
        let text = "a dispatch that is to be accepted before this one was not; submit both again";
        return Ok(io::refuse(send, ReasonCode::Busy.because(text), exchange.now()).await?);
    }
    let done = match exchange.look(node, envelope, sealed, inline, &turn).await? {
        Intake::Answered(done) => done,
        Intake::Refused(reason) => return Ok(io::refuse(send, reason, exchange.now()).await?),
        Intake::Admitted(admitted) => match collect(exchange, admitted, send, recv).await? {
            Ok(admitted) => {
                docaxis_failpoints::failpoint!("broker.submit.collected");
                exchange.accept(admitted, &turn).await?
            }
            Err((admitted, reason)) if admitted.is_known() => {
                return Ok(io::refuse(send, reason, exchange.now()).await?);
            }
            Err((admitted, reason)) => exchange.reject_admitted(admitted, reason).await?,
        },
    };
    // Whatever it is, it is on record.
    turn.pass();
    answer(send, done).await
}

type Collected = Result<Box<Admitted>, (Box<Admitted>, Reason)>;

/// Asks for the bodies that are missing and takes them in. A second round asks again for those of which what an earlier try
/// left was damaged; then they come whole. Large bodies get their names together, when the last has come: until then they are
/// partial ones, with which the next try goes on if this one breaks off.
async fn collect(
    exchange: &Arc<Exchange>,
    mut admitted: Box<Admitted>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Collected, StreamError> {
    docaxis_failpoints::failpoint!("broker.submit.admitted");
    let to = || bodies::Intake { blobs: &exchange.blobs, space: &exchange.space };
    let mut held = Vec::new();
    while !admitted.missing.is_empty() {
        // Nobody waits any longer for a body of many GiB to be read again, once the peer has given up.
        let missing = tokio::select! {
            biased;
            begun = begin(exchange, &admitted) => begun?,
            _ = send.stopped() => return Err(IoError::Lost("the peer no longer waits for Need".into()).into()),
        };
        let need = Need { parts: missing.iter().map(|one| (one.index, one.offset())).collect() };
        io::write(send, &Frame::Need(need)).await?;
        docaxis_failpoints::failpoint!("broker.submit.needed");
        for Missing { index, part, writer } in missing {
            let Some(writer) = writer else {
                let size = usize::try_from(part.size).unwrap_or(MAX_INLINE_BODY_BYTES);
                let bytes = bodies::receive_small(recv, size).await?;
                match Exchange::take_body(&mut admitted, index, bytes) {
                    Ok(()) => continue,
                    Err(reason) => return Ok(Err((admitted, reason))),
                }
            };
            let more = admitted.missing.len() > 1;
            match bodies::receive(recv, to(), writer, (part.size, more)).await? {
                Received::Durable => Exchange::took_blob(&mut admitted, part.sha256),
                Received::Held(writer) => {
                    held.push(writer);
                    Exchange::took_blob(&mut admitted, part.sha256);
                }
                Received::Again => {}
                Received::Refused(reason) => return Ok(Err((admitted, reason))),
            }
        }
    }
    for writer in held {
        bodies::name(to(), *writer).await?;
    }
    Ok(Ok(admitted))
}

/// A body that must still come.
struct Missing {
    index: u16,
    part: PartDigest,
    /// Where a large one goes; what is in it already is not asked for.
    writer: Option<BlobWriter>,
}

impl Missing {
    fn offset(&self) -> u64 {
        self.writer.as_ref().map_or(0, BlobWriter::written)
    }
}

async fn begin(exchange: &Arc<Exchange>, admitted: &Admitted) -> Result<Vec<Missing>, StreamError> {
    let mut missing = Vec::with_capacity(admitted.missing.len());
    let (sender, earlier_end_by) = (&admitted.envelope.sender.agency, BlobStore::earlier_end_by());
    for (index, part) in admitted.missing.clone() {
        let writer = match part.size > MAX_INLINE_BODY_BYTES as u64 {
            true => Some(bodies::begin(&exchange.blobs, sender, part.clone(), earlier_end_by).await?),
            false => None,
        };
        missing.push(Missing { index, part, writer });
    }
    Ok(missing)
}

async fn answer(send: &mut SendStream, done: Done) -> Result<(), StreamError> {
    docaxis_failpoints::failpoint!("broker.submit.answering");
    io::write(send, &Frame::Done(done)).await?;
    io::finish(send);
    docaxis_failpoints::failpoint!("broker.submit.answered");
    Ok(())
}
