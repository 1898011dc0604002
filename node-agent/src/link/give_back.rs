//! Gives the evidence that this node holds back to an exchange whose data was put back from an older copy. It is the
//! exchange's own evidence, and envelopes that it had: nothing in the answer is new to it.

use std::sync::atomic::Ordering;

use docaxis_protocol::frame::{Frame, GivenLeaf};
use docaxis_protocol::limits::{MAX_BATCH, MAX_LARGE_FRAME_BYTES};

use super::LinkError;
use super::io::Stream;
use super::session::Session;

pub async fn run(session: &Session, mut stream: Stream, from: u64) -> Result<(), LinkError> {
    let shared = &session.shared;
    let (leaves, damaged) = shared.mailbox.give_back(from, MAX_BATCH, shared.env.now()).await?;
    for error in damaged {
        shared.alarm(format!("evidence cannot be given back to the exchange that lost it: {error}"));
    }
    tracing::warn!(from, leaves = leaves.len(), "the exchange was put back to an older copy and asks for its evidence");
    for frame in frames(leaves) {
        stream.write(&Frame::GivenBack(frame)).await?;
    }
    stream.write(&Frame::GivenBack(Vec::new())).await?;
    stream.finish();
    shared.changed();
    shared.queued_again.store(true, Ordering::Relaxed);
    shared.outbox.notify_one();
    Ok(())
}

/// As many leaves in each frame as fit.
fn frames(leaves: Vec<GivenLeaf>) -> Vec<Vec<GivenLeaf>> {
    let mut frames: Vec<Vec<GivenLeaf>> = Vec::new();
    let mut bytes = MAX_LARGE_FRAME_BYTES;
    for leaf in leaves {
        let chain = |chain: &docaxis_protocol::envelope::Chain| chain.0.iter().map(|c| c.0.len() + 16).sum::<usize>();
        let envelope = leaf.envelope.as_ref().map_or(0, |e| e.bytes.len() + chain(&e.chain) + 128);
        let beside = leaf.statement_chain.as_ref().map_or(0, chain) + leaf.proof.as_ref().map_or(0, String::len);
        let size = leaf.evidence.bytes.len() + envelope + beside + 256;
        if bytes + size > MAX_LARGE_FRAME_BYTES - 1024 {
            frames.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(frame) = frames.last_mut() {
            frame.push(leaf);
        }
    }
    frames
}
