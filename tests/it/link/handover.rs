//! From the offer to the recorded handover and beyond: what a recipient states, and what the sender learns.

use std::time::Duration;

use docaxis_protocol::frame::{EvidenceItem, Frame, Standing};
use docaxis_protocol::tlog::note::{KeyKind, VerifierKey};
use docaxis_protocol::tlog::proof::TlogProof;
use docaxis_protocol::{Event, ReasonCode};

use super::{DN, G22, TC, leaves, letter, net, read};
use crate::net::{code, now};
use crate::raw::{RawNode, Sealed};

/// Events of evidence items, in order.
fn events(items: &[EvidenceItem]) -> Vec<Event> {
    items.iter().map(|item| docaxis_protocol::Evidence::parse(&item.evidence.bytes).unwrap().event).collect()
}

fn about(sealed: &Sealed) -> (docaxis_protocol::DispatchId, docaxis_protocol::Digest) {
    (sealed.id, sealed.envelope.digest())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_offer_that_is_taken_becomes_evidence_that_its_sender_receives() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let sealed = letter(&[DN], &[b"one", b"two"]).seal(&g22);
    let accepted = g22.submit(&sealed).await.done();
    let mut offered = h37.offered().await;
    assert_eq!(
        (&offered.offer.recipient, &offered.offer.envelope, &offered.offer.acceptance),
        (&code(DN), &sealed.envelope, &accepted.evidence)
    );
    assert_eq!((offered.offer.acceptance_leaf, offered.bytes()), (accepted.leaf, sealed.bodies.clone()));
    let statement = offered.handover(&h37);
    let outcome = offered.answer(&statement).await.unwrap();
    assert_eq!((outcome.standing, outcome.leaf), (Standing::HandedOver, 1));
    let news = g22.follow(G22.0, 0, 2).await;
    let item = |leaf, evidence, statement_chain| EvidenceItem { sender: code(G22.0), leaf, evidence, statement_chain };
    let handover = item(1, outcome.evidence, Some(statement.chain.clone()));
    assert_eq!(news, [item(0, accepted.evidence.clone(), None), handover.clone()]);
    assert_eq!(g22.follow(G22.0, 1, 1).await, std::slice::from_ref(&handover));
    let evidence = read(&exchange, &g22, &handover.evidence);
    let stated = docaxis_protocol::evidence::StatementInEvidence::new(&statement, &h37.seal_of(DN).0.key.public());
    assert_eq!(
        (evidence.event, evidence.recipient, evidence.previous, evidence.statement),
        (Event::ContentHandover, Some(code(DN)), Some(accepted.evidence.digest()), Some(stated))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_recipient_is_offered_its_own_copy_and_answers_for_itself() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    g22.submit(&letter(&[DN, TC], &[b"one"]).seal(&g22)).await.done();
    let (mut one, mut other) = (h37.offered().await, h37.offered().await);
    let mut offered_to = [one.offer.recipient.clone(), other.offer.recipient.clone()];
    offered_to.sort();
    assert_eq!(offered_to, [code(DN), code(TC)]);
    // A statement for the other recipient does not answer this offer, nor does one about another envelope.
    let crossed = other.handover(&h37);
    assert_eq!(one.answer(&crossed).await.unwrap_err().code, "malformed");
    assert_eq!(other.answer(&crossed).await.unwrap().standing, Standing::HandedOver);
    // What was answered wrongly is offered again after a rest.
    let (again, outcome) = h37.take().await;
    assert_eq!((again.offer.recipient, outcome.standing), (one.offer.recipient, Standing::HandedOver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_delivery_says_why_and_is_not_offered_again() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    g22.submit(&letter(&[DN], &[b"one"]).seal(&g22)).await.done();
    let mut offered = h37.offered().await;
    let why = ReasonCode::BadSeal.because("the seal does not verify here");
    let statement = offered.state(&h37, Event::ContentHandoverFailure, std::slice::from_ref(&why));
    assert_eq!(offered.answer(&statement).await.unwrap().standing, Standing::Failed);
    let news = g22.follow(G22.0, 0, 2).await;
    let evidence = read(&exchange, &g22, &news[1].evidence);
    assert_eq!((evidence.event, evidence.reasons), (Event::ContentHandoverFailure, vec![why]));
    let next = letter(&[DN], &[b"two"]).seal(&g22);
    g22.submit(&next).await.done();
    assert_eq!(h37.offered().await.envelope.id, next.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_lost_recorded_is_asked_for_again_with_the_same_statement_and_gives_the_same_evidence() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    let h37 = RawNode::link(&exchange, "h37").await;
    let mut offered = h37.offered().await;
    let statement = offered.handover(&h37);
    offered.stream.write(&Frame::Handover(statement.clone())).await;
    // The sender sees the handover, so it is recorded; its answer is never read.
    let recorded = g22.follow(G22.0, 1, 1).await.remove(0);
    h37.connection.close(0u32.into(), b"gone");
    let h37 = RawNode::link(&exchange, "h37").await;
    let answers = h37.report(&[statement.clone(), statement]).await;
    for answer in answers {
        let outcome = answer.unwrap();
        assert_eq!((outcome.standing, outcome.leaf, &outcome.evidence), (Standing::HandedOver, 1, &recorded.evidence));
    }
    // Another statement of the same handover finds it done.
    let restated = h37.state(DN, about(&sealed), Event::ContentHandover, &[]);
    assert_eq!(h37.report(&[restated]).await[0].as_ref().unwrap().evidence, recorded.evidence);
    assert_eq!(leaves(&exchange), 2);
    let next = letter(&[DN], &[b"two"]).seal(&g22);
    g22.submit(&next).await.done();
    assert_eq!(h37.offered().await.envelope.id, next.id, "what was handed over is not offered again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_the_recipient_itself_may_state_anything() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let sealed = letter(&[DN], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    h37.take().await;
    let refused = async |node: &RawNode, statement| node.report(&[statement]).await.remove(0).unwrap_err().code;
    // The sender, in its own name and in the recipient's; another agency of the right node; the right node with
    // another agency's seal; and about an envelope that is not the one.
    let own = g22.state(G22.0, about(&sealed), Event::Registered, &[]);
    assert_eq!(refused(&g22, own).await, "not-yours");
    let pretended = g22.statement(DN, about(&sealed), Event::Registered, &[]);
    assert_eq!(refused(&g22, g22.seal_statement(G22.0, &pretended)).await, "not-yours");
    assert_eq!(refused(&h37, h37.state(TC, about(&sealed), Event::Registered, &[])).await, "not-yours");
    let statement = h37.statement(DN, about(&sealed), Event::Registered, &[]);
    assert_eq!(refused(&h37, h37.seal_statement(TC, &statement)).await, "bad-seal");
    let stolen = h37.seal_statement(DN, &statement);
    assert_eq!(refused(&g22, stolen.clone()).await, "not-yours");
    let unknown = (sealed.id, docaxis_protocol::Digest::of(b"another"));
    assert_eq!(refused(&h37, h37.state(DN, unknown, Event::Registered, &[])).await, "not-yours");
    let mut altered = stolen;
    altered.bytes.push(b' ');
    assert_eq!(refused(&h37, altered).await, "bad-seal");
    let early = docaxis_protocol::Statement { time: now().minus(Duration::from_secs(900)), ..statement };
    assert_eq!(refused(&h37, h37.seal_statement(DN, &early)).await, "clock-skew");
    assert_eq!(leaves(&exchange), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn statuses_follow_the_handover_once_each_and_one_answer_excludes_the_other() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let sealed = letter(&[DN, TC], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    let why = ReasonCode::WrongAddressee.because("for another department");
    let registered = h37.state(DN, about(&sealed), Event::Registered, &[]);
    let early = h37.report(std::slice::from_ref(&registered)).await.remove(0);
    assert_eq!(early.unwrap_err().code, "other", "before the handover");
    h37.take().await;
    h37.take().await;
    let refused = h37.state(TC, about(&sealed), Event::Refused, std::slice::from_ref(&why));
    let answers = h37.report(&[registered.clone(), refused.clone(), registered.clone()]).await;
    let standings: Vec<Standing> = answers.iter().map(|answer| answer.as_ref().unwrap().standing).collect();
    assert_eq!(standings, [Standing::Registered, Standing::Refused, Standing::Registered]);
    assert_eq!(answers[0], answers[2]);
    let contrary = h37.state(DN, about(&sealed), Event::Refused, std::slice::from_ref(&why));
    let restated = h37.state(TC, about(&sealed), Event::Registered, &[]);
    for answer in h37.report(&[contrary, restated]).await {
        assert_eq!(answer.unwrap_err().code, "other");
    }
    let news = g22.follow(G22.0, 0, 5).await;
    let expected = [
        Event::SubmissionAcceptance,
        Event::ContentHandover,
        Event::ContentHandover,
        Event::Registered,
        Event::Refused,
    ];
    assert_eq!(events(&news), expected);
    let last = read(&exchange, &g22, &news[4].evidence);
    let before = news[1..3].iter().find(|item| read(&exchange, &g22, &item.evidence).recipient == Some(code(TC)));
    assert_eq!((last.reasons, last.previous), (vec![why], Some(before.unwrap().evidence.digest())));
    assert_eq!(leaves(&exchange), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handover_after_the_expiry_is_on_record_as_late_and_changes_nothing() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[b"one"]).but(|e| e.expires = now().plus(Duration::from_secs(1))).seal(&g22);
    g22.submit(&sealed).await.done();
    let failure = g22.follow(G22.0, 1, 1).await.remove(0);
    let failed = read(&exchange, &g22, &failure.evidence);
    assert_eq!((failed.event, failed.reasons[0].code.as_str()), (Event::ContentHandoverFailure, "expired"));
    let h37 = RawNode::link(&exchange, "h37").await;
    let statement = h37.state(DN, about(&sealed), Event::ContentHandover, &[]);
    for answer in h37.report(&[statement.clone(), statement]).await {
        let outcome = answer.unwrap();
        assert_eq!((outcome.standing, &outcome.evidence), (Standing::Expired, &failure.evidence));
    }
    let late = read(&exchange, &g22, &g22.follow(G22.0, 2, 1).await[0].evidence);
    assert_eq!((late.event, late.late, late.outcome), (Event::ContentHandover, true, Some(failed.id)));
    assert_eq!(leaves(&exchange), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_piece_of_evidence_is_proven_to_be_in_the_log() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    for number in 0..5u8 {
        g22.submit(&letter(&[DN], &[&[number]]).seal(&g22)).await.done();
        h37.take().await;
    }
    let news = g22.follow(G22.0, 0, 10).await;
    let key = exchange.log_key(g22.welcome.log_chain.leaf().unwrap());
    let log = VerifierKey::new(exchange.authority.origin().as_str(), KeyKind::Ed25519, key.key().clone()).unwrap();
    let proofs = g22.proofs(&(0..10).collect::<Vec<_>>()).await;
    for (item, (leaf, proof)) in news.iter().zip(&proofs) {
        let proof = TlogProof::parse(proof).unwrap();
        let shown = proof.verify(&item.evidence.log_entry().0, &log, &[], 0).unwrap();
        assert_eq!((shown.index, shown.size), (item.leaf, 10));
        assert_eq!(item.leaf, *leaf);
        let other = &news[(usize::try_from(*leaf).unwrap() + 1) % 10].evidence;
        assert!(proof.verify(&other.log_entry().0, &log, &[], 0).is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_bodies_are_delivered_byte_for_byte() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let pattern = |size: usize, seed: u8| (0..size).map(|at| (at / 7).to_le_bytes()[0] ^ seed).collect::<Vec<u8>>();
    let bodies = [pattern(5 << 20, 1), pattern(10, 2), pattern(100_000, 3), pattern(64 << 10, 4), Vec::new()];
    let sealed = letter(&[DN], &bodies.each_ref().map(Vec::as_slice)).seal(&g22);
    let submitted = g22.submit(&sealed).await;
    assert_eq!(submitted.needed, Some(vec![(0, 0), (2, 0)]));
    submitted.done();
    let (offered, _) = h37.take().await;
    assert_eq!(offered.offer.inline, [1, 3, 4]);
    assert!(offered.bytes() == bodies);
}
