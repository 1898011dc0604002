//! The order among dispatches of one sender to one recipient, as the broker keeps it.

use docaxis_protocol::frame::{Class, Frame, Refusal, Submit};
use docaxis_protocol::{DispatchId, ReasonCode};

use super::{DN, TC, letter, net};
use crate::net::{TestNet, now};
use crate::raw::{Letter, Offered, RawNode, Sealed, Stream};

const A53: (&str, &str) = ("000.00.01.A53", "a53");
const LARGE: &[u8] = &[7; 100_000];

fn three() -> TestNet {
    net().node(A53.1, &[A53.0])
}

/// A submission on a stream of its own that names those before it. Its answer is still to come.
async fn submitting(node: &RawNode, sealed: &Sealed, behind: &[DispatchId]) -> Stream {
    let mut stream = node.open().await;
    if !behind.is_empty() {
        stream.write(&Frame::Behind(behind.to_vec())).await;
    }
    let inline = sealed.inline();
    stream.write(&Frame::Submit(Submit { envelope: sealed.envelope.clone(), inline: inline.clone() })).await;
    for index in inline {
        stream.raw(&sealed.bodies[usize::from(index)]).await;
    }
    stream
}

async fn accepted(mut stream: Stream) -> u64 {
    match stream.read(Class::Large).await {
        Frame::Done(done) => done.leaf,
        other => panic!("{other:?} where Done was due"),
    }
}

async fn refused(mut stream: Stream) -> ReasonCode {
    match stream.read(Class::Large).await {
        Frame::Refused(refusal) => refusal.reason.known(),
        other => panic!("{other:?} where Refused was due"),
    }
}

async fn hand_over(offered: &mut Offered, node: &RawNode) -> u64 {
    offered.fetch_all().await;
    let statement = offered.handover(node);
    offered.answer(&statement).await.unwrap_or_else(|reason| panic!("not recorded: {reason}")).leaf
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_submission_that_comes_before_those_that_it_follows_is_accepted_behind_them() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let [first, second, third] = [b"1", b"2", b"3"].map(|body| letter(&[DN], &[body]).seal(&g22));
    let last = submitting(&g22, &third, &[first.id, second.id]).await;
    let middle = submitting(&g22, &second, &[first.id]).await;
    // Another one passes meanwhile.
    g22.submit(&letter(&[TC], &[b"4"]).seal(&g22)).await.done();
    let begin = submitting(&g22, &first, &[]).await;
    assert_eq!((accepted(begin).await, accepted(middle).await, accepted(last).await), (1, 2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_follows_a_submission_that_failed_is_put_back_and_what_follows_a_rejected_one_is_not() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let [first, second] = [b"1", b"2"].map(|body| letter(&[DN], &[body]).seal(&g22));
    let follower = submitting(&g22, &second, &[first.id]).await;
    let mut cut_short = g22.open().await;
    cut_short.write(&Frame::Submit(Submit { envelope: first.envelope.clone(), inline: vec![0] })).await;
    cut_short.send.reset(0u32.into()).unwrap();
    assert_eq!(refused(follower).await, ReasonCode::Busy);
    let again = submitting(&g22, &first, &[]).await;
    let follower = submitting(&g22, &second, &[first.id]).await;
    assert_eq!((accepted(again).await, accepted(follower).await), (0, 1));

    let unknown = letter(&["H37.XX.009"], &[b"3"]).seal(&g22);
    let next = letter(&[DN], &[b"4"]).seal(&g22);
    let follower = submitting(&g22, &next, &[unknown.id]).await;
    g22.submit(&unknown).await.done();
    assert_eq!(accepted(follower).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handover_waits_for_earlier_ones_of_the_same_sender_and_for_nobody_else() {
    let exchange = three().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let a53 = RawNode::link(&exchange, "a53").await;
    g22.submit(&letter(&[DN], &[b"1"]).seal(&g22)).await.done();
    let mut first = h37.offered().await;
    g22.submit(&letter(&[DN], &[b"2"]).seal(&g22)).await.done();
    let mut second = h37.offered().await;
    // Urgent, to another recipient, of another sender: none of them has to wait.
    g22.submit(&letter(&[DN], &[b"3"]).but(|envelope| envelope.priority = 2).seal(&g22)).await.done();
    assert_eq!(hand_over(&mut h37.offered().await, &h37).await, 3);
    g22.submit(&letter(&[TC], &[b"4"]).seal(&g22)).await.done();
    assert_eq!(hand_over(&mut h37.offered().await, &h37).await, 5);
    a53.submit(&Letter::new(A53, &[DN], &[b"5"]).seal(&a53)).await.done();
    assert_eq!(hand_over(&mut h37.offered().await, &h37).await, 7);
    let leaves = tokio::join!(hand_over(&mut second, &h37), hand_over(&mut first, &h37));
    assert_eq!(leaves, (9, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_begun_behind_a_large_one_of_the_same_sender_and_others_go_on() {
    let exchange = three().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let a53 = RawNode::link(&exchange, "a53").await;
    g22.submit(&letter(&[DN], &[LARGE]).seal(&g22)).await.done();
    let mut large = h37.offered().await;
    let behind = letter(&[DN], &[b"2"]).seal(&g22);
    g22.submit(&behind).await.done();
    let other = Letter::new(A53, &[DN], &[b"3"]).seal(&a53);
    a53.submit(&other).await.done();
    let mut next = h37.offered().await;
    assert_eq!(next.envelope.id, other.id);
    hand_over(&mut next, &h37).await;
    let earlier = hand_over(&mut large, &h37).await;
    let mut next = h37.offered().await;
    assert_eq!(next.envelope.id, behind.id);
    assert!(hand_over(&mut next, &h37).await > earlier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_behind_one_that_was_not_taken_is_put_back_until_that_has_failed_three_times() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let [first, second] = [b"1", b"2"].map(|body| letter(&[DN], &[body]).seal(&g22));
    g22.submit(&first).await.done();
    let mut offered = h37.offered().await;
    g22.submit(&second).await.done();
    let mut behind = h37.offered().await;
    let busy = || Frame::Refused(Refusal::new(ReasonCode::Busy, "later", now()));
    offered.stream.write(&busy()).await;
    let statement = behind.handover(&h37);
    assert_eq!(behind.answer(&statement).await.unwrap_err().known(), ReasonCode::Busy);
    // It is not offered before the other is offered once more, and comes to the same end.
    let mut offered = h37.offered().await;
    assert_eq!(offered.envelope.id, first.id);
    let mut behind = h37.offered().await;
    assert_eq!(behind.envelope.id, second.id);
    offered.stream.write(&busy()).await;
    assert_eq!(behind.answer(&statement).await.unwrap_err().known(), ReasonCode::Busy);
    let mut offered = h37.offered().await;
    let mut behind = h37.offered().await;
    offered.stream.write(&busy()).await;
    behind.answer(&statement).await.unwrap();
    hand_over(&mut h37.offered().await, &h37).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_report_out_of_turn_is_to_be_made_again() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    for body in [b"1", b"2"] {
        g22.submit(&letter(&[DN], &[body]).seal(&g22)).await.done();
    }
    let (first, second) = (h37.offered().await.handover(&h37), h37.offered().await.handover(&h37));
    let answers = h37.report(&[second.clone(), first, second]).await;
    let leaves: Vec<_> = answers.into_iter().map(|answer| answer.map(|outcome| outcome.leaf)).collect();
    let busy = leaves[0].as_ref().unwrap_err().known();
    assert_eq!((busy, &leaves[1..]), (ReasonCode::Busy, &[Ok(2), Ok(3)][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn however_many_stand_behind_a_large_one_of_their_sender_another_sender_s_go_past_them() {
    let exchange = three().with(|config| config.quota = docaxis_broker::quota::QuotaSection::unlimited()).start();
    let (g22, a53) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, A53.1).await);
    g22.submit(&letter(&[DN], &[LARGE]).seal(&g22)).await.done();
    let h37 = RawNode::link(&exchange, "h37").await;
    // It is under way, and nobody takes it.
    let mut large = h37.offered().await;
    for n in 0..2_300u32 {
        g22.submit(&letter(&[DN], &[&n.to_be_bytes()]).seal(&g22)).await.done();
    }
    a53.submit(&Letter::new(A53, &[DN], &[b"past them"]).seal(&a53)).await.done();
    let sender = loop {
        let mut offered = h37.offered().await;
        let sender = offered.envelope.sender.agency.clone();
        if sender.as_str() == A53.0 {
            hand_over(&mut offered, &h37).await;
            break sender;
        }
    };
    assert_eq!(sender.as_str(), A53.0);
    hand_over(&mut large, &h37).await;
}
