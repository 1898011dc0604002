//! What stays when the broker stops and starts, also without its index.

use docaxis_broker::store::{BodySource, Seq};
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::{Done, Intake, Standing};
use docaxis_protocol::{Digest, Event};

use super::{DN, G22, TC, leaves, letter, net};
use crate::net::{Exchange, code};
use crate::raw::{RawNode, Sealed};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_broker_that_was_restarted_knows_its_receipts_and_delivers_what_waits_once() {
    let mut exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[b"one", &[5; 200_000]]).seal(&g22);
    let first = g22.submit(&sealed).await.done();
    exchange.stop_broker();
    exchange.start_broker();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    assert_eq!(g22.submit(&sealed).await.done(), Done { intake: Intake::Already, ..first });
    let (offered, outcome) = h37.take().await;
    assert_eq!((offered.bytes(), outcome.standing), (sealed.bodies, Standing::HandedOver));
    exchange.stop_broker();
    exchange.start_broker();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let next = letter(&[DN], &[b"two"]).seal(&g22);
    g22.submit(&next).await.done();
    assert_eq!(h37.offered().await.envelope.id, next.id, "the first is not offered again");
    assert_eq!(leaves(&exchange), 3);
}

/// Everything that anybody can see of the exchange's store.
fn visible(exchange: &Exchange, sealed: &[Sealed]) -> Vec<String> {
    let store = &exchange.broker().exchange().store;
    let counts = store.counts();
    let mut seen = vec![format!("{counts:?}"), format!("{:?}", store.log_entries(0, 10_000).unwrap())];
    for agency in [G22.0, DN, TC] {
        for lane in store.lanes(&code(agency), 0).unwrap() {
            seen.push(format!("{agency} waiting: {:?}", store.waiting(&code(agency), lane, None, 1000).unwrap()));
        }
        seen.push(format!("{agency} sent: {:?}", store.evidence_for_sender(&code(agency), 0, 1000).unwrap()));
    }
    for leaf in 0..counts.leaves {
        let seq = Seq(leaf);
        seen.push(format!(
            "{leaf}: {:?} {:?} {:?}",
            store.dispatch(seq).unwrap(),
            store.deliveries(seq).unwrap(),
            store.evidence(seq).unwrap()
        ));
    }
    for letter in sealed {
        let (lookup, find) = (store.lookup(&code(G22.0), letter.id).unwrap(), store.find(letter.id).unwrap());
        seen.push(format!("{}: {lookup:?} {find:?}", letter.id));
        for body in &letter.bodies {
            let part = PartDigest { sha256: Digest::of(body), size: body.len() as u64 };
            let held = [G22.0, DN].map(|agency| store.holds(&code(agency), &part).unwrap());
            for seq in &find {
                let bytes = match store.body(*seq, &part).unwrap() {
                    Some(BodySource::Inline(bytes)) => Some(bytes),
                    Some(BodySource::File(path)) => Some(std::fs::read(path).unwrap()),
                    None => None,
                };
                seen.push(format!("{}: {held:?} {:?}", part.sha256, bytes.map(|bytes| Digest::of(&bytes))));
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn deleting_the_index_changes_nothing_that_anybody_can_see() {
    let mut exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let mut sealed = Vec::new();
    // Delivered and registered, delivered in part, waiting, urgent, rejected: one of each.
    for number in 0..6u8 {
        let bodies: [&[u8]; 2] = [&[number; 100], &[number; 100_000]];
        let to: &[&str] = if number == 1 { &[DN, TC] } else { &[DN] };
        sealed.push(letter(to, &bodies).but(|e| e.priority = number % 5).seal(&g22));
    }
    let mut taken = Vec::new();
    for letter in &sealed[..2] {
        g22.submit(letter).await.done();
        let (offered, _) = h37.take().await;
        taken.push((offered.offer.recipient.clone(), letter.id));
        let registered = offered.state(&h37, Event::Registered, &[]);
        h37.report(&[registered]).await.remove(0).unwrap();
    }
    h37.connection.close(0u32.into(), b"gone");
    let mut receipts = Vec::new();
    for letter in &sealed {
        receipts.push(g22.submit(letter).await.done());
    }
    g22.submit(&letter(&["H37.XX.999"], &[]).seal(&g22)).await.done();
    let news = g22.follow(G22.0, 0, 11).await;
    let before = visible(&exchange, &sealed);

    exchange.stop_broker();
    std::fs::remove_dir_all(exchange.config.broker.data.join("index")).unwrap();
    exchange.start_broker();
    let after = visible(&exchange, &sealed);
    for (line, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before, after, "line {line}");
    }
    assert_eq!(before.len(), after.len());
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    for (letter, receipt) in sealed.iter().zip(receipts) {
        let again = g22.submit(letter).await.done();
        assert_eq!(again, Done { intake: Intake::Already, ..receipt });
    }
    assert_eq!(g22.follow(G22.0, 0, 11).await, news);
    // Four letters wait, and the copy for the other recipient of the second.
    let mut delivered = Vec::new();
    for _ in 0..5 {
        let (offered, _) = h37.take().await;
        delivered.push((offered.offer.recipient.clone(), offered.envelope.id));
    }
    delivered.sort();
    let mut expected: Vec<_> = sealed[2..].iter().map(|letter| (code(DN), letter.id)).collect();
    expected.push((if taken[1].0 == code(DN) { code(TC) } else { code(DN) }, sealed[1].id));
    expected.sort();
    assert_eq!(delivered, expected);
}
