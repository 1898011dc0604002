//! Intake: acceptance, repetition, conflict, whose bodies count.

use std::collections::BTreeSet;
use std::sync::Arc;

use docaxis_protocol::frame::{Done, Intake};
use docaxis_protocol::{Digest, Event};

use super::{DN, TC, leaves, letter, link_error, net, read, rejected};
use crate::net::code;
use crate::raw::{Letter, RawNode, Sealed, Submitted};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_small_dispatch_is_accepted_in_one_round_trip_with_evidence_that_verifies() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    assert_eq!(g22.welcome.agencies, [code("000.00.00.G22")]);
    let letter = letter(&[DN, TC], &[b"one", b"two"]);
    let sealed = letter.seal(&g22);
    let Submitted { needed, answer } = g22.submit(&sealed).await;
    let done = answer.unwrap();
    assert_eq!((needed, done.intake, done.leaf), (None, Intake::Accepted, 0));
    let evidence = read(&exchange, &g22, &done.evidence);
    assert_eq!(
        (evidence.event, evidence.dispatch, evidence.envelope_sha256, evidence.sender, evidence.recipients),
        (
            Event::SubmissionAcceptance,
            sealed.id,
            sealed.envelope.digest(),
            code("000.00.00.G22"),
            vec![code(DN), code(TC)]
        )
    );
    let parts: Vec<(Digest, u64)> = evidence.parts.iter().map(|part| (part.sha256, part.size)).collect();
    assert_eq!(parts, [(Digest::of(b"one"), 3), (Digest::of(b"two"), 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn complaint_04_a_repeated_submission_gets_the_same_receipt_bytes_and_no_other_leaf() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[b"one"]).seal(&g22);
    let first = g22.submit(&sealed).await.done();
    let again = g22.submit(&sealed).await.done();
    let without_bodies = g22.submit_inline(&sealed, &[]).await.done();
    let repeated = Done { intake: Intake::Already, ..first };
    assert_eq!([&again, &without_bodies], [&repeated, &repeated]);
    assert_eq!(leaves(&exchange), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_simultaneous_submissions_of_one_id_yield_one_receipt() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    for round in 0..20u8 {
        let sealed = letter(&[DN], &[&[round; 100]]).seal(&g22);
        let (one, other) = tokio::join!(g22.submit(&sealed), g22.submit(&sealed));
        let (one, other) = (one.done(), other.done());
        assert_eq!((one.leaf, &one.evidence), (other.leaf, &other.evidence));
        let intakes = BTreeSet::from([format!("{:?}", one.intake), format!("{:?}", other.intake)]);
        assert_eq!(intakes, BTreeSet::from(["Accepted".to_owned(), "Already".to_owned()]));
        assert_eq!(leaves(&exchange), u64::from(round) + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_same_id_with_other_content_is_refused_and_the_first_stays() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let first = letter(&[DN], &[b"one"]);
    let accepted = g22.submit(&first.seal(&g22)).await.done();
    let other = first.clone().but(|envelope| envelope.recipients = vec![code(TC)]).seal(&g22);
    let submitted = g22.submit(&other).await;
    let done = submitted.clone().done();
    assert_eq!(rejected(&exchange, &g22, submitted), ["id-conflict"]);
    assert_eq!(read(&exchange, &g22, &done.evidence).envelope_sha256, other.envelope.digest());
    let again = g22.submit(&first.seal(&g22)).await.done();
    assert_eq!((again.intake, again.evidence), (Intake::Already, accepted.evidence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_thousand_concurrent_dispatches_keep_each_receipt_with_its_own_digest() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed: Vec<Sealed> = (0..1_000u32).map(|number| letter(&[DN], &[&number.to_be_bytes()]).seal(&g22)).collect();
    let g22 = Arc::new(g22);
    let mut under_way = tokio::task::JoinSet::new();
    for sealed in sealed {
        let g22 = g22.clone();
        under_way.spawn(async move { (g22.submit(&sealed).await.done(), sealed) });
    }
    let mut leaves = BTreeSet::new();
    while let Some(ended) = under_way.join_next().await {
        let (done, sealed) = ended.unwrap();
        let evidence = read(&exchange, &g22, &done.evidence);
        assert_eq!(
            (done.intake, evidence.dispatch, evidence.envelope_sha256, evidence.parts[0].sha256),
            (Intake::Accepted, sealed.id, sealed.envelope.digest(), Digest::of(&sealed.bodies[0]))
        );
        leaves.insert(done.leaf);
    }
    assert_eq!(leaves, (0..1_000).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_may_not_speak_for_an_agency_that_it_does_not_host() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    // Under its own name, under the other node's, and with the other's whole sealed letter in hand.
    let own = letter(&[TC], &[]).but(|e| e.sender.node = "h37".parse().unwrap());
    let bytes = own.envelope.to_bytes().unwrap();
    let borrowed = letter(&[TC], &[]);
    let stolen = borrowed.seal(&g22);
    for sealed in [own.seal_bytes(&h37, DN, bytes), stolen] {
        assert_eq!(link_error(h37.submit(&sealed).await), "not-hosted");
    }
    assert_eq!(leaves(&exchange), 0);
    // Nor may an agency of the same node be named by another's seal.
    let mixed = Letter::new((DN, "h37"), &["000.00.00.G22"], &[]);
    let bytes = mixed.envelope.to_bytes().unwrap();
    assert_eq!(rejected(&exchange, &h37, h37.submit(&mixed.seal_bytes(&h37, TC, bytes)).await), ["bad-seal"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_digest_that_its_sender_never_uploaded_opens_no_body() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let (small, large) = (vec![1; 1000], vec![2; 200_000]);
    let first = letter(&[DN], &[&small, &large]).seal(&g22);
    assert_eq!(g22.submit(&first).await.done().intake, Intake::Accepted);
    // The same agency need not upload the large one again. A small one comes with each dispatch.
    let second = letter(&[DN], &[&small, &large]).seal(&g22);
    assert_eq!(g22.submit_inline(&second, &[0]).await.needed, None);
    let third = letter(&[DN], &[&small, &large]).seal(&g22);
    assert_eq!(g22.submit_inline(&third, &[]).await.needed, Some(vec![(0, 0)]));
    // Another agency, here one of the recipients, is asked for every byte as if nobody had it.
    let foreign = Letter::new((TC, "h37"), &["000.00.00.G22"], &[&small, &large]).seal(&h37);
    let submitted = h37.submit_inline(&foreign, &[]).await;
    assert_eq!(submitted.needed, Some(vec![(0, 0), (1, 0)]));
    assert_eq!(submitted.done().intake, Intake::Accepted);
    // A size that was never uploaded under this digest is asked for too, and found to be a lie.
    let lying = letter(&[DN], &[&small]).but(|e| e.parts[0].size = 999).seal(&g22);
    let submitted = g22.submit_inline(&lying, &[]).await;
    assert_eq!(submitted.needed, Some(vec![(0, 0)]));
    assert_eq!(rejected(&exchange, &g22, submitted), ["digest-mismatch"]);
}
