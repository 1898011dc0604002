//! Bad submissions: each is refused with a coded reason, nothing of it is stored, and everything else flows on.

use std::time::Duration;

use docaxis_protocol::frame::{Frame, Intake};
use docaxis_protocol::limits::MAX_ENVELOPE_BYTES;

use super::{DN, TC, leaves, letter, link_error, net, read, rejected};
use crate::net::{code, now};
use crate::raw::{Letter, RawNode, Stream, dial_as, hello};

const LOCKED: &str = "000.00.99.H99";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_broken_rule_gets_evidence_of_its_own_reason_and_the_next_letter_is_accepted() {
    let mut exchange = net().agency(LOCKED).with(|config| config.broker.max_part_bytes = 1_000_000).start();
    exchange.authority.lock_agency(&code(LOCKED), true, now()).unwrap();
    exchange.publish();
    let g22 = RawNode::link(&exchange, "g22").await;
    let plain = || letter(&[DN], &[b"body"]);
    let cases: Vec<(&str, Letter)> = vec![
        ("unknown-recipient", letter(&[DN, "H37.XX.999"], &[b"body"])),
        ("recipient-locked", letter(&[LOCKED], &[b"body"])),
        ("duplicate-recipient", letter(&[DN, TC, DN], &[b"body"])),
        ("secret-refused", plain().but(|e| drop(e.document.insert("secret".into(), true.into())))),
        ("too-large", plain().but(|e| e.parts[0].size = 1_000_001)),
        ("too-many-parts", plain().but(|e| e.parts = vec![e.parts[0].clone(); 101])),
        ("unsafe-name", plain().but(|e| e.parts[0].name = "../../etc/passwd".into())),
        ("not-yet-supported", plain().but(|e| e.encryption = Some("age".into()))),
        (
            "expired",
            plain().but(|e| {
                e.created = now().minus(Duration::from_secs(120));
                e.expires = now().minus(Duration::from_secs(60));
            }),
        ),
    ];
    for (expected, bad) in cases {
        let sealed = bad.seal(&g22);
        let submitted = g22.submit_inline(&sealed, &[]).await;
        assert_eq!(submitted.needed, None, "{expected}");
        let done = submitted.clone().done();
        assert_eq!(rejected(&exchange, &g22, submitted), [expected]);
        let evidence = read(&exchange, &g22, &done.evidence);
        assert_eq!((evidence.dispatch, evidence.recipients), (sealed.id, bad.envelope.recipients), "{expected}");
        assert_eq!(g22.submit(&plain().seal(&g22)).await.done().intake, Intake::Accepted, "after {expected}");
    }
    assert_eq!(exchange.broker().exchange().store.counts().dispatches, 9, "only the good ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rejection_whose_answer_was_lost_is_given_again_even_if_the_dispatch_would_be_accepted_by_now() {
    let mut exchange = net().agency(LOCKED).start();
    let lock = |exchange: &mut crate::net::Exchange, locked| {
        exchange.authority.lock_agency(&code(LOCKED), locked, now()).unwrap();
        exchange.publish();
    };
    lock(&mut exchange, true);
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN, LOCKED], &[b"body"]).seal(&g22);
    let first = g22.submit(&sealed).await;
    assert_eq!(rejected(&exchange, &g22, first.clone()), ["recipient-locked"]);
    lock(&mut exchange, false);
    let (one, other) = tokio::join!(g22.submit(&sealed), g22.submit_inline(&sealed, &[]));
    assert_eq!([one.done(), other.done()], [first.clone().done(), first.clone().done()]);
    drop(g22);
    exchange.stop_broker();
    exchange.start_broker();
    let g22 = RawNode::link(&exchange, "g22").await;
    assert_eq!(g22.submit(&sealed).await.done(), first.done());
    let anew = letter(&[DN, TC], &[b"body"]).seal(&g22);
    assert_eq!(g22.submit(&anew).await.done().intake, Intake::Accepted);
    assert_eq!((leaves(&exchange), exchange.broker().exchange().store.counts().dispatches), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_cannot_be_evidence_is_refused_on_the_link_alone() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let plain = letter(&[DN], &[]);
    let sealed = |bytes: Vec<u8>| plain.seal_bytes(&g22, "000.00.00.G22", bytes);
    let text = String::from_utf8(plain.envelope.to_bytes().unwrap()).unwrap();
    let twice = text.replacen("{\"type\"", "{\"priority\":4,\"type\"", 1);
    let other_exchange = plain.clone().but(|e| e.exchange = "docaxis.example/other".parse().unwrap());
    let ahead = plain.clone().but(|e| {
        e.created = now().plus(Duration::from_secs(400));
        e.expires = e.created.plus(Duration::from_secs(400));
    });
    let cases = [
        ("malformed", sealed(twice.into_bytes())),
        ("malformed", sealed(text.replace("docaxis/envelope@1", "docaxis/envelope@9").into_bytes())),
        ("malformed", sealed(b"no JSON".to_vec())),
        ("malformed", sealed(Vec::new())),
        ("malformed", other_exchange.seal(&g22)),
        ("too-large", sealed(text.replace("\"salt\"", &format!("{}\"salt\"", " ".repeat(MAX_ENVELOPE_BYTES))).into())),
        ("clock-skew", ahead.seal(&g22)),
    ];
    for (expected, bad) in cases {
        let said = format!("{:.60}", String::from_utf8_lossy(&bad.envelope.bytes));
        assert_eq!(link_error(g22.submit(&bad).await), expected, "{said}");
    }
    assert_eq!(leaves(&exchange), 0);
    assert_eq!(g22.submit(&plain.seal(&g22)).await.done().intake, Intake::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_part_whose_digest_or_size_lies_is_rejected_and_leaves_nothing() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    for size in [100, 70_000, 1_000_000] {
        let honest = letter(&[DN], &[&vec![1; size]]);
        let mut other_bytes = honest.clone();
        other_bytes.bodies[0][size / 2] ^= 1;
        let mut longer = honest.clone();
        longer.bodies[0].push(0);
        longer.envelope.parts[0].size += 1;
        for lying in [other_bytes, longer] {
            let submitted = g22.submit(&lying.seal(&g22)).await;
            assert_eq!(rejected(&exchange, &g22, submitted), ["digest-mismatch"], "{size}");
        }
        // What was rejected stays so: two pieces of evidence that contradict each other would prove nothing.
        let again = g22.submit_inline(&honest.seal(&g22), &[]).await;
        assert_eq!((again.needed.clone(), rejected(&exchange, &g22, again)), (None, vec!["digest-mismatch".into()]));
        // Of another envelope with these bodies none counts as held.
        let submitted = g22.submit_inline(&letter(&[DN], &[&vec![1; size]]).seal(&g22), &[]).await;
        assert_eq!(submitted.needed, Some(vec![(0, 0)]), "{size}");
        assert_eq!(submitted.done().intake, Intake::Accepted, "{size}");
    }
    let incoming = exchange.config.broker.data.join("blobs").join("incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_with_a_wrong_clock_is_told_the_exchanges_time() {
    let exchange = net().start();
    let skewed = [now().minus(Duration::from_secs(400)), now().plus(Duration::from_secs(400))];
    for time in skewed {
        let (_endpoint, connection) = dial_as(&exchange.identity("g22"), exchange.address()).await.unwrap();
        match Stream::open(&connection).await.ask(&hello(time)).await {
            Frame::Refused(refusal) => {
                assert_eq!(refusal.reason.code, "clock-skew");
                assert!(refusal.time.since(now()).max(now().since(refusal.time)) < Duration::from_secs(60));
            }
            other => panic!("{other:?} in answer to Hello"),
        }
    }
    RawNode::link(&exchange, "g22").await.ping().await;
}
