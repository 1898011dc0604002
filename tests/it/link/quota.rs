//! Quotas: whoever is over one is told to come again, nothing of it is stored or signed, and nobody else feels it.

use docaxis_broker::quota::Limits;
use docaxis_protocol::frame::{Class, Frame, Intake, Submit};

use super::{DN, leaves, letter, link_error, net};
use crate::raw::RawNode;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_submits_more_than_its_share_is_put_off_without_evidence_and_others_are_not() {
    let agency = Limits { dispatches_per_minute: 2, ..Limits::default() };
    let exchange = net().with(move |config| config.quota.agency = agency).start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed: Vec<_> = (0..3u8).map(|n| letter(&[DN], &[&[n]]).seal(&g22)).collect();
    for sealed in &sealed[..2] {
        assert_eq!(g22.submit(sealed).await.done().intake, Intake::Accepted);
    }
    let before = leaves(&exchange);
    assert_eq!(link_error(g22.submit(&sealed[2]).await), "over-quota");
    assert_eq!(leaves(&exchange), before, "it will be taken later: nothing is over");
    // What was answered before is answered again, whatever the quota.
    assert_eq!(g22.submit(&sealed[0]).await.done().intake, Intake::Already);
    let h37 = RawNode::link(&exchange, "h37").await;
    let theirs = crate::raw::Letter::new((DN, "h37"), &["000.00.00.G22"], &[b"answer"]).seal(&h37);
    assert_eq!(h37.submit(&theirs).await.done().intake, Intake::Accepted);
    assert_eq!(exchange.broker().exchange().quotas.turned_away(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_that_are_being_uploaded_count_until_they_are_here_or_given_up() {
    let node = Limits { in_flight_mib: 1, ..Limits::default() };
    let exchange = net().with(move |config| config.quota.node = node).start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let [first, second] = [1u8, 2].map(|n| letter(&[DN], &[&vec![n; MIB]]).seal(&g22));
    let mut begun = g22.open().await;
    begun.write(&Frame::Submit(Submit { envelope: first.envelope.clone(), inline: vec![] })).await;
    assert_eq!(begun.read(Class::Large).await.name(), "Need");
    assert_eq!(link_error(g22.submit(&second).await), "over-quota");
    drop(begun);
    let mut tries = 0;
    let answer = loop {
        let mut stream = g22.open().await;
        stream.write(&Frame::Submit(Submit { envelope: second.envelope.clone(), inline: vec![] })).await;
        let answer = stream.read(Class::Large).await;
        tries += 1;
        if !matches!(&answer, Frame::Refused(_)) || tries == 1_000 {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(answer.name(), "Need", "the upload that was given up counts no longer");
}
