//! What every engine must hold to, as claims that run against any of them; and the letters that tests send.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::limits::{DEDUP_AFTER_EXPIRY, MAX_INLINE_BODY_BYTES};
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Event, SealedEnvelope, SealedStatement, SignedEvidence, Timestamp,
};

use super::{
    Acceptance, Accepted, Body, BodySource, Counts, Delivery, DeliveryState, Lane, Record, Recorded, Rejected,
    Rejection, Seq, Store, StoredEvidence, Waiting,
};

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub fn agency(code: &str) -> AgencyCode {
    code.parse().unwrap()
}

pub fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_318_200_000 + ms)
}

pub fn signed(text: String) -> SignedEvidence {
    let digest = Digest::of(text.as_bytes());
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&digest.0);
    SignedEvidence { bytes: text.into_bytes(), signature: RawSignature(signature) }
}

pub fn id(n: u64) -> DispatchId {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&n.to_be_bytes());
    DispatchId::from_parts(at(0), random)
}

/// Letter number `n` from G22 with one small body of its own.
pub fn letter(n: u64, to: &[&str]) -> Acceptance {
    let body = body_of(n, 700);
    let envelope = SealedEnvelope {
        bytes: format!("envelope {n} to {to:?}").into_bytes(),
        signature: RawSignature([7; 64]),
        chain: Chain::from_ders([vec![1; 40]]),
    };
    Acceptance {
        sender: agency("000.00.00.G22"),
        id: id(n),
        node: "g22".parse().unwrap(),
        accepted: at(i64::try_from(n).unwrap()),
        expires: at(1_000_000).plus(Duration::from_secs(n)),
        priority: 0,
        envelope_sha256: envelope.digest(),
        envelope,
        parts: vec![PartDigest { sha256: body.sha256, size: body.bytes.len() as u64 }],
        bodies: vec![body],
        evidence: signed(format!("acceptance {n}")),
        recipients: to.iter().map(|code| (agency(code), None)).collect(),
    }
}

pub fn body_of(n: u64, len: usize) -> Body {
    let bytes: Vec<u8> = n.to_le_bytes().iter().copied().cycle().take(len).collect();
    Body { sha256: Digest::of(&bytes), bytes }
}

pub fn event(seq: u64, to: &str, previous: &SignedEvidence, event: Event, state: DeliveryState) -> Record {
    let text = format!("{event} of {seq} at {to}");
    Record {
        seq,
        recipient: agency(to),
        event,
        time: at(500_000),
        previous: previous.digest(),
        statement: Some(SealedStatement {
            bytes: format!("statement: {text}").into_bytes(),
            signature: RawSignature([9; 64]),
            chain: Chain::from_ders([vec![2; 40]]),
        }),
        evidence: signed(text),
        state,
    }
}

pub fn handover(seq: u64, to: &str, previous: &SignedEvidence) -> Record {
    event(seq, to, previous, Event::ContentHandover, DeliveryState::HandedOver)
}

pub fn rejection(n: u64) -> Rejection {
    let envelope = letter(n, &["H37.DN.001"]).envelope;
    Rejection { sender: agency("000.00.00.G22"), id: id(n), envelope, evidence: signed(format!("rejection {n}")) }
}

fn seq_of(accepted: Accepted) -> u64 {
    match accepted {
        Accepted::New(seq) => seq.0,
        other => panic!("expected a new dispatch, found {other:?}"),
    }
}

type Claim = (&'static str, fn(&Arc<dyn Store>));

/// Every claim, to be run on an empty store each.
pub const CLAIMS: &[Claim] = &[
    ("an accepted dispatch is found again with identical bytes", found_again),
    ("a retry gets the same receipt and other bytes are a conflict", retries),
    ("simultaneous submissions of one id get one receipt", simultaneous),
    ("an id is forgotten a day after it expires", forgotten),
    ("urgent dispatches go first, then in order of acceptance", order),
    ("whoever takes the lanes of a queue in turn waits behind no sender", lanes),
    ("a recipient refused at once has its failure in the log", refused_at_once),
    ("a recall withdraws with its acceptance what still waits, and once", recalls),
    ("a record that follows another head is stale", stale),
    ("what has ended waits no more and expires no more", ended),
    ("dispatches expire oldest first, each waiting recipient once", expiry),
    ("a rejection stands alone", rejections),
    ("an envelope is answered once and for good", answered_once),
    ("the sender's evidence is read from any leaf on", for_sender),
    ("the log has one entry per evidence without a gap", log),
    ("a body is held only by the agency that uploaded it", bodies),
    ("newer notices replace older ones", notices),
    ("four thousand recipients are one submission", many_recipients),
    ("an id may be rejected any number of times", rejected_again_and_again),
    ("a dispatch whose body is missing is not accepted", missing_body),
    ("after closing nothing is accepted", closed),
];

fn found_again(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001", "A53.01"]);
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(Seq(0)));
    let found = store.dispatch(Seq(0)).unwrap().unwrap();
    assert_eq!((found.seq, &found.sender, found.id), (Seq(0), &sent.sender, sent.id));
    assert_eq!((found.accepted, found.expires, found.priority), (sent.accepted, sent.expires, sent.priority));
    assert_eq!((&found.envelope, found.envelope_sha256), (&sent.envelope, sent.envelope_sha256));
    assert_eq!((&found.parts, &found.evidence), (&sent.parts, &sent.evidence));
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), Some(Seq(0)));
    assert_eq!(store.lookup(&agency("A53.01"), sent.id).unwrap(), None);
    assert_eq!(store.find(sent.id).unwrap(), [Seq(0)]);
    assert_eq!(store.dispatch(Seq(1)).unwrap(), None);
    assert_eq!((store.sender(Seq(0)).unwrap(), store.sender(Seq(1)).unwrap()), (Some(found.sender), None));
    let waits = |code: &str| Delivery {
        recipient: agency(code),
        state: DeliveryState::Waiting,
        head: sent.evidence.digest(),
        head_time: sent.accepted,
    };
    assert_eq!(store.deliveries(Seq(0)).unwrap(), [waits("A53.01"), waits("H37.DN.001")]);
    assert_eq!(store.delivery(Seq(0), &agency("A53.01")).unwrap(), Some(waits("A53.01")));
    assert_eq!(store.delivery(Seq(0), &agency("A53.02")).unwrap(), None);
    assert_eq!(store.counts(), Counts { leaves: 1, dispatches: 1, waiting: 2 });
}

fn retries(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001"]);
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(Seq(0)));
    let again = Acceptance { evidence: signed("another".into()), accepted: at(5), ..sent.clone() };
    assert_eq!(wait(store.accept(again)).unwrap(), Accepted::Already(Seq(0), sent.evidence.clone()));
    let other = Acceptance { envelope_sha256: Digest([3; 32]), ..sent.clone() };
    assert_eq!(wait(store.accept(other)).unwrap(), Accepted::Conflict { envelope_sha256: sent.envelope_sha256 });
    let envelope = SealedEnvelope { bytes: b"of another sender".to_vec(), ..sent.envelope.clone() };
    let elsewhere = Acceptance { sender: agency("A53.01"), envelope_sha256: envelope.digest(), envelope, ..sent };
    assert_eq!(wait(store.accept(elsewhere.clone())).unwrap(), Accepted::New(Seq(1)));
    assert_eq!(store.find(elsewhere.id).unwrap(), [Seq(0), Seq(1)]);
    assert_eq!(store.counts(), Counts { leaves: 2, dispatches: 2, waiting: 2 });
}

fn simultaneous(store: &Arc<dyn Store>) {
    let answers = wait(async {
        let tasks: Vec<_> = (0..32u64)
            .map(|n| {
                let store = store.clone();
                let sent = Acceptance { evidence: signed(format!("try {n}")), ..letter(1, &["H37.DN.001"]) };
                tokio::spawn(async move { store.accept(sent).await.unwrap() })
            })
            .collect();
        let mut answers = vec![];
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        answers
    });
    let receipt = store.dispatch(Seq(0)).unwrap().unwrap().evidence;
    let new = answers.iter().filter(|answer| **answer == Accepted::New(Seq(0))).count();
    let again = answers.iter().filter(|answer| **answer == Accepted::Already(Seq(0), receipt.clone())).count();
    assert_eq!((new, again), (1, 31));
    assert_eq!(store.counts().leaves, 1);
}

fn forgotten(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001"]);
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(Seq(0)));
    let until = sent.expires.plus(DEDUP_AFTER_EXPIRY);
    let on_the_day = Acceptance { accepted: until, ..letter(2, &["H37.DN.001"]) };
    assert_eq!(wait(store.accept(on_the_day)).unwrap(), Accepted::New(Seq(1)));
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), Some(Seq(0)));
    let later = Acceptance { accepted: until.plus(Duration::from_millis(1)), ..letter(3, &["H37.DN.001"]) };
    assert_eq!(wait(store.accept(later)).unwrap(), Accepted::New(Seq(2)));
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), None);
    assert_eq!(store.find(sent.id).unwrap(), [Seq(0)]);
}

/// All waiting deliveries of one recipient, lane by lane.
pub fn queue(store: &dyn Store, recipient: &AgencyCode) -> Vec<Waiting> {
    let lanes = store.lanes(recipient, 0).unwrap();
    lanes.into_iter().flat_map(|lane| store.waiting(recipient, lane, None, usize::MAX).unwrap()).collect()
}

fn order(store: &Arc<dyn Store>) {
    for (n, priority) in [(0, 0), (1, 4), (2, 0), (3, 1), (4, 4)] {
        wait(store.accept(Acceptance { priority, ..letter(n, &["H37.DN.001", "H37.DN"]) })).unwrap();
    }
    let (recipient, sender) = (agency("H37.DN.001"), letter(0, &[]).sender);
    let lane = |priority| Lane::of(&sender, priority);
    let of_least = |least| store.lanes(&recipient, least).unwrap();
    assert_eq!(of_least(0), [lane(4), lane(1), lane(0)]);
    assert_eq!((of_least(1), of_least(2)), (vec![lane(4), lane(1)], vec![lane(4)]));
    let seqs = |priority, after: Option<u64>, limit| -> Vec<_> {
        let waiting = store.waiting(&recipient, lane(priority), after.map(Seq), limit).unwrap();
        waiting.into_iter().map(|waiting| (waiting.priority, waiting.seq.0)).collect()
    };
    assert_eq!(seqs(4, None, 10), [(4, 1), (4, 4)]);
    assert_eq!(seqs(0, None, 1), [(0, 0)]);
    assert_eq!(seqs(0, Some(0), 10), [(0, 2)]);
    assert_eq!(seqs(0, Some(2), 10), []);
    assert_eq!(seqs(2, None, 10), []);
    let first = store.waiting(&agency("H37.DN"), lane(4), None, 1).unwrap();
    assert_eq!(first, [Waiting { recipient: agency("H37.DN"), priority: 4, seq: Seq(1) }]);
}

/// Each sender has a lane, the same for all it sends, and most senders have another one than most others.
fn lanes(store: &Arc<dyn Store>) {
    let senders: Vec<AgencyCode> = (0..40).map(|n| agency(&format!("A{n:02}.01"))).collect();
    for (n, sender) in (0..).zip(senders.iter().cycle().take(80)) {
        wait(store.accept(Acceptance { sender: sender.clone(), ..letter(n, &["H37.DN.001"]) })).unwrap();
    }
    let recipient = agency("H37.DN.001");
    let lanes = store.lanes(&recipient, 0).unwrap();
    assert!(lanes.is_sorted() && lanes.len() > 20, "{lanes:?}");
    let mut all = Vec::new();
    for lane in lanes {
        let here = store.waiting(&recipient, lane, None, 99).unwrap();
        assert!(here.is_sorted_by_key(|waiting| waiting.seq), "{here:?}");
        for waiting in here {
            let sender = store.sender(waiting.seq).unwrap().unwrap();
            assert_eq!(Lane::of(&sender, 0), lane, "{sender}");
            all.push(waiting.seq.0);
        }
    }
    all.sort_unstable();
    assert_eq!(all, (0..80).collect::<Vec<_>>());
}

fn refused_at_once(store: &Arc<dyn Store>) {
    let mut sent = letter(1, &["H37.DN.001", "A53.01", "A53.02"]);
    let failure = signed("failure at A53.01".into());
    sent.recipients[1].1 = Some(failure.clone());
    let seq = seq_of(wait(store.accept(sent.clone())).unwrap());
    let delivery = store.delivery(Seq(seq), &agency("A53.01")).unwrap().unwrap();
    assert_eq!((delivery.state, delivery.head), (DeliveryState::Failed, failure.digest()));
    assert_eq!(queue(store.as_ref(), &agency("A53.01")), []);
    assert_eq!(queue(store.as_ref(), &agency("A53.02")).len(), 1);
    let acceptance = StoredEvidence {
        leaf: seq,
        seq: Seq(seq),
        event: Event::SubmissionAcceptance,
        recipient: None,
        evidence: sent.evidence.clone(),
        statement_chain: None,
    };
    let failed = StoredEvidence {
        leaf: seq + 1,
        seq: Seq(seq),
        event: Event::ContentHandoverFailure,
        recipient: Some(agency("A53.01")),
        evidence: failure.clone(),
        statement_chain: None,
    };
    assert_eq!(store.evidence(Seq(seq)).unwrap(), [acceptance, failed]);
    assert_eq!(store.log_entries(0, 9).unwrap(), [sent.evidence.log_entry(), failure.log_entry()]);
    assert_eq!(store.dispatch(Seq(seq + 1)).unwrap(), None, "a failure is not a dispatch");
    assert_eq!(store.counts(), Counts { leaves: 2, dispatches: 1, waiting: 2 });
}

fn stale(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001"]);
    let seq = seq_of(wait(store.accept(sent.clone())).unwrap());
    let taken = handover(seq, "H37.DN.001", &sent.evidence);
    assert_eq!(wait(store.record(taken.clone())).unwrap(), Recorded::New(1));
    let now = Delivery {
        recipient: agency("H37.DN.001"),
        state: DeliveryState::HandedOver,
        head: taken.evidence.digest(),
        head_time: taken.time,
    };
    let expired = event(seq, "H37.DN.001", &sent.evidence, Event::ContentHandoverFailure, DeliveryState::Expired);
    assert_eq!(wait(store.record(expired.clone())).unwrap(), Recorded::Stale(now.clone()));
    assert_eq!(store.delivery(Seq(seq), &now.recipient).unwrap(), Some(now));
    let stranger = handover(seq, "A53.01", &sent.evidence);
    assert!(wait(store.record(stranger)).is_err(), "there is no such delivery");
    let back = event(seq, "H37.DN.001", &taken.evidence, Event::NoAnswer, DeliveryState::Waiting);
    assert!(wait(store.record(back)).is_err(), "a delivery that ended cannot wait again");
    assert_eq!(store.counts(), Counts { leaves: 2, dispatches: 1, waiting: 0 });
}

fn ended(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001", "A53.01"]);
    let seq = seq_of(wait(store.accept(sent.clone())).unwrap());
    let taken = handover(seq, "A53.01", &sent.evidence);
    wait(store.record(taken.clone())).unwrap();
    assert_eq!(queue(store.as_ref(), &agency("A53.01")), []);
    let left = store.expired(sent.expires, 9).unwrap();
    let recipient = agency("H37.DN.001");
    assert_eq!(left, [Waiting { recipient, priority: 0, seq: Seq(seq) }]);
    let registered = event(seq, "A53.01", &taken.evidence, Event::Registered, DeliveryState::Registered);
    wait(store.record(registered.clone())).unwrap();
    wait(store.record(handover(seq, "H37.DN.001", &sent.evidence))).unwrap();
    assert_eq!(store.expired(sent.expires, 9).unwrap(), []);
    let events: Vec<_> = store.evidence(Seq(seq)).unwrap().into_iter().map(|e| (e.leaf, e.event)).collect();
    assert_eq!(
        events,
        [
            (0, Event::SubmissionAcceptance),
            (1, Event::ContentHandover),
            (2, Event::Registered),
            (3, Event::ContentHandover)
        ]
    );
    let stored = store.evidence(Seq(seq)).unwrap().swap_remove(2);
    assert_eq!(stored.statement_chain, registered.statement.map(|statement| statement.chain));
    assert_eq!(stored.evidence, registered.evidence);
}

fn recalls(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001", "A53.01"]);
    let seq = seq_of(wait(store.accept(sent.clone())).unwrap());
    let withdrawal = |code| event(seq, code, &sent.evidence, Event::ContentHandoverFailure, DeliveryState::Withdrawn);
    let both = vec![withdrawal("H37.DN.001"), withdrawal("A53.01")];
    // Handed over between the look at it and the commit.
    wait(store.record(handover(seq, "A53.01", &sent.evidence))).unwrap();
    let recall = letter(2, &["H37.DN.001", "A53.01"]);
    assert_eq!(wait(store.recall(recall.clone(), both.clone())).unwrap(), Accepted::New(Seq(2)));
    let state = |code| store.delivery(Seq(seq), &agency(code)).unwrap().unwrap().state;
    assert_eq!([state("H37.DN.001"), state("A53.01")], [DeliveryState::Withdrawn, DeliveryState::HandedOver]);
    let events: Vec<_> = store.evidence(Seq(seq)).unwrap().iter().map(|piece| (piece.leaf, piece.event)).collect();
    let expected = [(0, Event::SubmissionAcceptance), (1, Event::ContentHandover), (3, Event::ContentHandoverFailure)];
    assert_eq!(events, expected);
    assert_eq!(queue(store.as_ref(), &agency("H37.DN.001")).len(), 1, "the recall alone waits");
    // Once more, or under an id that is taken: nothing is withdrawn by that.
    let other = letter(3, &["H37.DN.001"]);
    let third = seq_of(wait(store.accept(other.clone())).unwrap());
    let late = event(third, "H37.DN.001", &other.evidence, Event::ContentHandoverFailure, DeliveryState::Withdrawn);
    let again = wait(store.recall(recall.clone(), vec![late.clone()])).unwrap();
    assert_eq!(again, Accepted::Already(Seq(2), recall.evidence.clone()));
    let conflict = Acceptance { envelope_sha256: Digest([9; 32]), ..recall };
    assert!(matches!(wait(store.recall(conflict, vec![late])).unwrap(), Accepted::Conflict { .. }));
    assert!(store.delivery(Seq(third), &agency("H37.DN.001")).unwrap().unwrap().state.is_waiting());
    assert_eq!(store.counts(), Counts { leaves: 5, dispatches: 3, waiting: 3 });
}

fn expiry(store: &Arc<dyn Store>) {
    for n in [3, 1, 2] {
        wait(store.accept(letter(n, &["H37.DN.001", "A53.01"]))).unwrap();
    }
    let due = |until: u64, limit| -> Vec<_> {
        let expired = store.expired(letter(until, &[]).expires, limit).unwrap();
        expired.into_iter().map(|waiting| (waiting.seq.0, waiting.recipient.to_string())).collect()
    };
    let two = |seq, code: &str| (seq, code.to_owned());
    assert_eq!(due(0, 9), []);
    assert_eq!(due(1, 9), [two(1, "A53.01"), two(1, "H37.DN.001")]);
    assert_eq!(due(3, 3), [two(1, "A53.01"), two(1, "H37.DN.001"), two(2, "A53.01")]);
    assert_eq!(due(3, 9).len(), 6);
}

fn rejections(store: &Arc<dyn Store>) {
    let refused = Rejection { id: id(1), ..rejection(7) };
    assert_eq!(wait(store.reject(Rejection { id: id(1), ..rejection(8) })).unwrap(), Rejected::New(0));
    assert_eq!(wait(store.reject(refused.clone())).unwrap(), Rejected::New(1));
    let sent = letter(1, &["H37.DN.001"]);
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(Seq(2)));
    assert_eq!(store.find(sent.id).unwrap(), [Seq(0), Seq(1), Seq(2)]);
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), Some(Seq(2)));
    let found = store.dispatch(Seq(1)).unwrap().unwrap();
    assert_eq!((found.id, found.envelope, found.evidence), (refused.id, refused.envelope, refused.evidence.clone()));
    assert_eq!(store.deliveries(Seq(0)).unwrap(), []);
    let stored = StoredEvidence {
        leaf: 1,
        seq: Seq(1),
        event: Event::SubmissionRejection,
        recipient: None,
        evidence: refused.evidence,
        statement_chain: None,
    };
    assert_eq!(store.evidence(Seq(1)).unwrap(), [stored]);
    assert_eq!(store.counts(), Counts { leaves: 3, dispatches: 1, waiting: 1 });
}

fn for_sender(store: &Arc<dyn Store>) {
    let mut expected = vec![];
    for n in 0..5 {
        let sent = letter(n, &["H37.DN.001"]);
        expected.push(seq_of(wait(store.accept(sent.clone())).unwrap()));
        let theirs = Acceptance { sender: agency("A53.01"), ..letter(n, &["H37.DN.001"]) };
        wait(store.accept(theirs)).unwrap();
        match wait(store.record(handover(expected[expected.len() - 1], "H37.DN.001", &sent.evidence))).unwrap() {
            Recorded::New(leaf) => expected.push(leaf),
            other => panic!("{other:?}"),
        }
    }
    let leaves = |from, limit| -> Vec<_> {
        let found = store.evidence_for_sender(&agency("000.00.00.G22"), from, limit).unwrap();
        found.into_iter().map(|evidence| evidence.leaf).collect()
    };
    assert_eq!(leaves(0, 99), expected);
    assert_eq!(leaves(expected[3], 2), expected[3..5]);
    assert_eq!(leaves(expected[3] + 1, 2), expected[4..6]);
}

fn log(store: &Arc<dyn Store>) {
    let mut committed = store.committed();
    assert_eq!(*committed.borrow_and_update(), 0);
    let mut expected = vec![];
    for n in 0..7 {
        let sent = letter(n, &["H37.DN.001"]);
        wait(store.accept(sent.clone())).unwrap();
        expected.push(sent.evidence.log_entry());
    }
    assert_eq!(store.log_entries(0, 99).unwrap(), expected);
    assert_eq!(store.log_entries(5, 99).unwrap(), expected[5..]);
    assert_eq!(store.log_entries(2, 3).unwrap(), expected[2..5]);
    wait(committed.wait_for(|size| *size == 7)).unwrap();
}

fn bodies(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001"]);
    let part = sent.parts[0].clone();
    assert_eq!(store.body(Seq(0), &part).unwrap(), None);
    wait(store.accept(sent.clone())).unwrap();
    let whole = Some(BodySource::Inline(sent.bodies[0].bytes.clone()));
    assert_eq!(store.body(Seq(0), &part).unwrap(), whole);
    assert_eq!(store.body(Seq(1), &part).unwrap(), None, "not of another dispatch");
    let other_size = PartDigest { size: part.size + 1, ..part.clone() };
    assert_eq!(store.body(Seq(0), &other_size).unwrap(), None);
    // A small body comes with each dispatch that names it.
    assert!(!store.holds(&sent.sender, &part).unwrap());
    let bare = Acceptance { bodies: vec![], parts: sent.parts.clone(), ..letter(2, &["H37.DN.001"]) };
    assert!(wait(store.accept(bare.clone())).is_err());
    let again = Acceptance { bodies: sent.bodies.clone(), ..bare };
    assert_eq!(wait(store.accept(again)).unwrap(), Accepted::New(Seq(1)));
    assert_eq!(store.body(Seq(1), &part).unwrap(), whole);
    // Several, one of them empty and one named twice.
    let bodies = vec![body_of(7, 3_000), body_of(8, 0), body_of(9, MAX_INLINE_BODY_BYTES)];
    let parts =
        [2, 1, 0, 2].map(|n: usize| PartDigest { sha256: bodies[n].sha256, size: bodies[n].bytes.len() as u64 });
    let several = Acceptance { bodies: bodies.clone(), parts: parts.to_vec(), ..letter(3, &["H37.DN.001"]) };
    assert_eq!(wait(store.accept(several)).unwrap(), Accepted::New(Seq(2)));
    for (part, n) in parts.iter().zip([2, 1, 0, 2]) {
        assert_eq!(store.body(Seq(2), part).unwrap(), Some(BodySource::Inline(bodies[n].bytes.clone())));
    }
    // Brought once more: of a dispatch that there is.
    wait(store.restore(Seq(2), vec![bodies[2].clone()])).unwrap();
    assert_eq!(store.body(Seq(2), &parts[0]).unwrap(), Some(BodySource::Inline(bodies[2].bytes.clone())));
    assert!(wait(store.restore(Seq(9), vec![bodies[2].clone()])).is_err());
}

fn notices(store: &Arc<dyn Store>) {
    let list = |items: &[(&str, &str)]| -> Vec<(String, Vec<u8>)> {
        items.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.as_bytes().to_vec())).collect()
    };
    assert_eq!(store.notices().unwrap(), []);
    wait(store.put_notices(list(&[("crl/nodes", "1"), ("agency/H37", "a"), ("agency/A53", "b")]))).unwrap();
    wait(store.put_notices(list(&[("crl/nodes", "2"), ("crl/nodes", "3")]))).unwrap();
    let large = "x".repeat(100_000);
    wait(store.put_notices(list(&[("agency/A53", &large)]))).unwrap();
    assert_eq!(store.notices().unwrap(), list(&[("agency/A53", &large), ("agency/H37", "a"), ("crl/nodes", "3")]));
}

fn many_recipients(store: &Arc<dyn Store>) {
    let codes: Vec<String> = (0..4_000).map(|n| format!("H37.{n:04}")).collect();
    let codes: Vec<&str> = codes.iter().map(String::as_str).collect();
    let sent = letter(1, &codes);
    let seq = seq_of(wait(store.accept(sent.clone())).unwrap());
    assert_eq!(store.counts(), Counts { leaves: 1, dispatches: 1, waiting: 4_000 });
    assert_eq!(store.deliveries(Seq(seq)).unwrap().len(), 4_000);
    for code in ["H37.0000", "H37.3999"] {
        assert_eq!(queue(store.as_ref(), &agency(code)).len(), 1, "{code}");
    }
    wait(store.record(handover(seq, "H37.3999", &sent.evidence))).unwrap();
    let left = store.expired(sent.expires, 9_999).unwrap();
    assert_eq!((left.len(), &left[3_998].recipient), (3_999, &agency("H37.3998")));
    assert_eq!(store.counts(), Counts { leaves: 2, dispatches: 1, waiting: 3_999 });
}

/// Whatever was answered to an envelope first is answered to it for good, and nothing else is signed.
fn answered_once(store: &Arc<dyn Store>) {
    let sent = letter(1, &["H37.DN.001"]);
    let refused = rejection(2);
    let late = |n: u64, text: &str| Rejection { evidence: signed(text.into()), ..rejection(n) };
    // Two tries of each under way at once, which would be answered differently by now.
    let first = (store.accept(sent.clone()), store.reject(late(1, "too late for it")));
    let second = (store.reject(refused.clone()), store.accept(letter(2, &["H37.DN.001"])));
    assert_eq!(wait(first.0).unwrap(), Accepted::New(Seq(0)));
    assert_eq!(wait(first.1).unwrap(), Rejected::Already(Seq(0), sent.evidence.clone()));
    assert_eq!(wait(second.0).unwrap(), Rejected::New(1));
    assert_eq!(wait(second.1).unwrap(), Accepted::Already(Seq(1), refused.evidence.clone()));
    // And one after the other, however much time has passed.
    let until = sent.expires.plus(DEDUP_AFTER_EXPIRY).plus(Duration::from_millis(1));
    let later = Acceptance { accepted: until, ..letter(3, &["H37.DN.001"]) };
    assert_eq!(wait(store.accept(later)).unwrap(), Accepted::New(Seq(2)));
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), None);
    assert_eq!(wait(store.reject(late(1, "a year later"))).unwrap(), Rejected::Already(Seq(0), sent.evidence.clone()));
    let other_receipt = || Acceptance { evidence: signed("another receipt".into()), ..sent.clone() };
    let again = [store.accept(other_receipt()), store.accept(other_receipt())].map(|answer| wait(answer).unwrap());
    assert!(again.iter().all(|answer| *answer == Accepted::Already(Seq(0), sent.evidence.clone())), "{again:?}");
    let again = wait(store.reject(late(2, "once more"))).unwrap();
    assert_eq!(again, Rejected::Already(Seq(1), refused.evidence.clone()));
    let again = wait(store.accept(letter(2, &["H37.DN.001"]))).unwrap();
    assert_eq!(again, Accepted::Already(Seq(1), refused.evidence.clone()));
    let answered =
        |id, envelope: &SealedEnvelope| store.answered(id, envelope.digest()).unwrap().map(|found| found.seq);
    assert_eq!(answered(sent.id, &sent.envelope), Some(Seq(0)));
    assert_eq!(answered(refused.id, &refused.envelope), Some(Seq(1)));
    assert_eq!(answered(sent.id, &refused.envelope), None);
    assert_eq!(store.counts().leaves, 3);
}

fn rejected_again_and_again(store: &Arc<dyn Store>) {
    const TIMES: u64 = 400;
    wait(store.accept(letter(1, &["H37.DN.001"]))).unwrap();
    let other = |n| Rejection { id: id(1), ..rejection(n + 2) };
    let answers: Vec<_> = (0..TIMES).map(|n| store.reject(other(n))).collect();
    let leaves: Vec<Rejected> = answers.into_iter().map(|answer| wait(answer).unwrap()).collect();
    assert_eq!(leaves, (1..=TIMES).map(Rejected::New).collect::<Vec<_>>());
    // It is still the accepted one's, and others are as well accepted as before.
    assert_eq!(store.find(id(1)).unwrap(), (0..=TIMES).map(Seq).collect::<Vec<_>>());
    assert_eq!(store.lookup(&agency("000.00.00.G22"), id(1)).unwrap(), Some(Seq(0)));
    assert!(matches!(wait(store.accept(letter(1, &["H37.DN.001"]))).unwrap(), Accepted::Already(Seq(0), _)));
    assert_eq!(wait(store.accept(letter(2, &["H37.DN.001"]))).unwrap(), Accepted::New(Seq(TIMES + 1)));
}

fn missing_body(store: &Arc<dyn Store>) {
    let part = PartDigest { sha256: Digest([5; 32]), size: 1 << 20 };
    let sent = Acceptance { parts: vec![part], bodies: vec![], ..letter(1, &["H37.DN.001"]) };
    assert!(wait(store.accept(sent.clone())).is_err());
    assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), None);
    assert_eq!(store.counts(), Counts::default());
    assert_eq!(wait(store.accept(letter(2, &["H37.DN.001"]))).unwrap(), Accepted::New(Seq(0)));
}

fn closed(store: &Arc<dyn Store>) {
    wait(store.accept(letter(1, &["H37.DN.001"]))).unwrap();
    wait(store.close()).unwrap();
    assert!(matches!(wait(store.accept(letter(2, &["H37.DN.001"]))), Err(super::StoreError::Closed)));
    wait(store.close()).unwrap();
}
