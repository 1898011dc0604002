//! What a node whose mailbox was restored is offered again, and what it is told of the rest.

use std::os::unix::fs::FileExt as _;

use docaxis_protocol::frame::{Class, Frame, Gone, Need, Refusal};
use docaxis_protocol::{Digest, DispatchId, ReasonCode};

use super::{DN, letter, net};
use crate::net::now;
use crate::raw::{RawNode, Sealed, Stream};

/// The code with which a stream of bodies that are lost is reset.
const BODY_LOST: u64 = 8;

/// Asks for everything that was handed over, as after a restore.
async fn restored(h37: &RawNode) -> Stream {
    let mut stream = h37.open().await;
    stream.write(&Frame::Restored(0)).await;
    let _gone = stream.send.finish();
    stream
}

/// How far the page went, and the dispatches that are named as gone.
async fn gone(mut page: Stream) -> (u64, Vec<DispatchId>) {
    match page.read(Class::Large).await {
        Frame::Gone(Gone { upto, items }) => (upto, items.into_iter().map(|item| item.dispatch).collect()),
        other => panic!("{other:?} in answer to Restored"),
    }
}

/// Submits and takes letters with one body each.
async fn handed_over(g22: &RawNode, h37: &RawNode, bodies: [&[u8]; 2]) -> [Sealed; 2] {
    let sealed = bodies.map(|body| letter(&[DN], &[body]).seal(g22));
    for one in &sealed {
        g22.submit(one).await.done();
        h37.take().await;
    }
    sealed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_turns_out_damaged_while_it_is_offered_again_is_named_as_gone() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let [damaged, whole] = handed_over(&g22, &h37, [&[8; 300_000], b"two"]).await;
    let name = Digest::of(&damaged.bodies[0]).to_string();
    let file = exchange.config.broker.data.join("blobs").join(&name[..2]).join(name);
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(&[9], 299_995).unwrap();
    let page = restored(&h37).await;
    let mut offered = h37.offered().await;
    assert_eq!(offered.envelope.id, damaged.id);
    offered.stream.write(&Frame::Need(Need { parts: vec![(0, 0)] })).await;
    assert_eq!(offered.stream.rest().await, Err(BODY_LOST));
    assert_eq!(h37.take().await.0.envelope.id, whole.id, "the page goes on");
    assert_eq!(gone(page).await, (4, vec![damaged.id]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_offer_that_is_refused_for_good_is_named_as_gone_and_the_page_goes_on() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let [refused, taken] = handed_over(&g22, &h37, [b"one", b"two"]).await;
    let page = restored(&h37).await;
    let mut offered = h37.offered().await;
    offered.stream.write(&Frame::Refused(Refusal::new(ReasonCode::BadSeal, "not today", now()))).await;
    assert_eq!(h37.take().await.0.envelope.id, taken.id);
    assert_eq!(gone(page).await, (4, vec![refused.id]));
    // What may go better next time ends the page, and is offered again with the next.
    let mut page = restored(&h37).await;
    let mut offered = h37.offered().await;
    offered.stream.write(&Frame::Refused(Refusal::new(ReasonCode::DiskFull, "later", now()))).await;
    assert!(page.try_read(Class::Large).await.is_err());
    let page = restored(&h37).await;
    assert_eq!(h37.take().await.0.envelope.id, refused.id);
    assert_eq!(h37.take().await.0.envelope.id, taken.id);
    assert_eq!(gone(page).await, (4, vec![]));
}
