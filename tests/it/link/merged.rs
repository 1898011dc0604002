//! A merge while dispatches wait and are under way: from then on they are the successor's, whoever took them before.

use std::collections::BTreeSet;
use std::time::Duration;

use docaxis_protocol::frame::Standing;
use docaxis_protocol::{DispatchId, Event, ReasonCode};

use super::{DN, TC, letter, net, read};
use crate::net::{code, now};
use crate::raw::RawNode;

const A53: &str = "000.00.01.A53";
/// Offers under way to a node at most.
const AT_ONCE: usize = 64;
const WAITING: usize = 70;
/// After an offer that was not taken, its place is free for another.
const MORE_THAN_A_REST: Duration = Duration::from_secs(7);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_a_merge_the_old_node_is_offered_nothing_more_and_its_first_word_comes_too_late() {
    let mut exchange = net().node("a53", &[A53]).start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let mut sent = vec![];
    for _ in 0..WAITING {
        let sealed = letter(&[DN], &[b"one"]).seal(&g22);
        g22.submit(&sealed).await.done();
        sent.push(sealed.id);
    }
    let mut taken = h37.offered().await;
    let mut others = vec![];
    for _ in 0..10 {
        others.push(h37.offered().await);
    }
    exchange.authority.merge_agency(&code(DN), &code(A53), now()).unwrap();
    exchange.publish();
    // Durable there before the merge, and not recorded: the first word is the successor's now.
    let statement = taken.handover(&h37);
    assert_eq!(taken.answer(&statement).await.unwrap_err().code, "not-yours");
    for other in &mut others {
        let refused = other.state(&h37, Event::ContentHandoverFailure, &[ReasonCode::BadSeal.because("x")]);
        assert_eq!(other.answer(&refused).await.unwrap_err().code, "not-yours");
    }
    // Another agency of the node gets its own.
    g22.submit(&letter(&[TC], &[b"two"]).seal(&g22)).await.done();
    let mut refused: BTreeSet<DispatchId> = others.iter().chain([&taken]).map(|offered| offered.envelope.id).collect();
    let (mut own, mut wrong) = (0, vec![]);
    while wrong.is_empty()
        && let Ok(mut offered) = tokio::time::timeout(MORE_THAN_A_REST, h37.offered()).await
    {
        let statement = offered.handover(&h37);
        let outcome = offered.answer(&statement).await;
        if offered.offer.recipient == code(TC) {
            assert_eq!(outcome.unwrap().standing, Standing::HandedOver);
            own += 1;
        } else {
            // What was on its way before the merge may still arrive, and is not recorded.
            assert_eq!(outcome.unwrap_err().code, "not-yours");
            let (id, again) = (offered.envelope.id, !refused.insert(offered.envelope.id));
            wrong.extend((again || sent[AT_ONCE..].contains(&id)).then_some(id));
        }
    }
    // Those offers have ended: none of them comes again, and none that stood behind them comes in their place.
    assert_eq!((own, wrong), (1, vec![]));
    let a53 = RawNode::link(&exchange, "a53").await;
    let mut got = vec![];
    for _ in 0..WAITING {
        let mut offered = a53.offered().await;
        let about = (offered.envelope.id, offered.offer.envelope.digest());
        let mut said = a53.statement(DN, about, Event::ContentHandover, &[]);
        said.acting = Some(code(A53));
        let statement = a53.seal_statement(A53, &said);
        let outcome = offered.answer(&statement).await.unwrap();
        let evidence = read(&exchange, &a53, &outcome.evidence);
        assert_eq!((outcome.standing, evidence.acting), (Standing::HandedOver, Some(code(A53))));
        got.push(offered.envelope.id);
    }
    sent.sort();
    got.sort();
    assert_eq!(got, sent, "each of them once");
}
