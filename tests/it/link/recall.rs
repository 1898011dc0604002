//! A recall against a handover, on the link itself: exactly one wins, and the evidence says which.

use docaxis_protocol::about::rel;
use docaxis_protocol::envelope::{Relation, StatusReport};
use docaxis_protocol::frame::{Intake, Standing};
use docaxis_protocol::{DispatchId, Event, Kind};

use super::{DN, G22, TC, letter, net, read};
use crate::net::code;
use crate::raw::{Letter, RawNode};

fn recall(of: DispatchId, to: &[&str]) -> Letter {
    letter(to, &[]).but(|envelope| {
        envelope.kind = Kind::Recall;
        envelope.relates = vec![Relation { rel: rel::RECALLS.into(), dispatch: of, document_id: None }];
        let why = serde_json::json!({"BussinessDocType": "1", "BussinessDocReason": "nhầm"});
        envelope.document.insert("Bussiness".into(), why);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handover_stated_after_the_recall_is_told_that_it_was_withdrawn() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let sealed = letter(&[DN], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    let mut offered = h37.offered().await;
    let recall = recall(sealed.id, &[DN]).seal(&g22);
    let accepted = g22.submit(&recall).await.done();
    assert_eq!(accepted.intake, Intake::Accepted);
    let statement = offered.handover(&h37);
    let outcome = offered.answer(&statement).await.unwrap();
    assert_eq!(outcome.standing, Standing::Withdrawn);
    let evidence = read(&exchange, &h37, &outcome.evidence);
    let cause = evidence.cause.unwrap();
    assert_eq!((evidence.event, cause.dispatch), (Event::ContentHandoverFailure, recall.id));
    assert_eq!((cause.envelope_sha256, evidence.reasons[0].code.as_str()), (recall.envelope.digest(), "withdrawn"));
    // Withdrawn with the recall's acceptance: the leaf behind it. The late statement is on record as well.
    assert_eq!(outcome.leaf, accepted.leaf + 1);
    let news = g22.follow(G22.0, 0, 4).await;
    let late = read(&exchange, &g22, &news[3].evidence);
    assert_eq!((late.event, late.late, late.outcome), (Event::ContentHandover, true, Some(evidence.id)));
    // The recall itself is offered as any dispatch; a retry of it changes nothing.
    let (offer, outcome) = h37.take().await;
    assert_eq!((offer.offer.envelope, outcome.standing), (recall.envelope.clone(), Standing::HandedOver));
    let again = g22.submit(&recall).await.done();
    assert_eq!((again.intake, again.leaf, again.evidence), (Intake::Already, accepted.leaf, accepted.evidence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_status_is_taken_from_a_recipient_that_has_the_document_and_for_its_sender_alone() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let sealed = letter(&[DN], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    let status = |from: &str, to: &str| {
        Letter::new((from, "h37"), &[to], &[]).but(|envelope| {
            envelope.kind = Kind::Status;
            envelope.relates = vec![Relation { rel: rel::CONCERNS.into(), dispatch: sealed.id, document_id: None }];
            let time = envelope.created;
            envelope.status = Some(StatusReport { code: "05".into(), description: String::new(), time });
        })
    };
    let early = h37.submit(&status(DN, G22.0).seal(&h37)).await;
    assert_eq!(super::rejected(&exchange, &h37, early), ["not-yours"], "before it has it");
    h37.take().await;
    let stranger = h37.submit(&status(TC, G22.0).seal(&h37)).await;
    assert_eq!(super::rejected(&exchange, &h37, stranger), ["not-yours"]);
    let elsewhere = h37.submit(&status(DN, TC).seal(&h37)).await;
    assert_eq!(super::rejected(&exchange, &h37, elsewhere), ["wrong-addressee"]);
    assert_eq!(h37.submit(&status(DN, G22.0).seal(&h37)).await.done().intake, Intake::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn complaint_05_of_a_recall_and_a_handover_at_the_same_moment_exactly_one_wins() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let mut won = [0, 0];
    const ROUNDS: u64 = 40;
    for round in 0..ROUNDS {
        let sealed = letter(&[DN], &[b"one"]).seal(&g22);
        let accepted = g22.submit(&sealed).await.done();
        let mut offered = h37.offered().await;
        let (statement, recall) = (offered.handover(&h37), recall(sealed.id, &[DN]).seal(&g22));
        // First the recall is there before anything is stated, at last nothing is recalled before the handover is recorded.
        let (outcome, recalled) = match round {
            0 => {
                let recalled = g22.submit(&recall).await;
                (offered.answer(&statement).await.unwrap(), recalled)
            }
            _ if round == ROUNDS - 1 => (offered.answer(&statement).await.unwrap(), g22.submit(&recall).await),
            _ => tokio::join!(async { offered.answer(&statement).await.unwrap() }, async {
                tokio::time::sleep(std::time::Duration::from_micros(100 * round)).await;
                g22.submit(&recall).await
            }),
        };
        assert_eq!(recalled.done().intake, Intake::Accepted);
        let evidence = g22.follow(G22.0, accepted.leaf, 3).await;
        let evidence = evidence.iter().map(|item| read(&exchange, &g22, &item.evidence));
        let outcomes: Vec<Event> = evidence
            .filter(|piece| piece.dispatch == sealed.id && !piece.late && piece.recipient == Some(code(DN)))
            .map(|piece| piece.event)
            .collect();
        let (expected, winner) = match outcome.standing {
            Standing::HandedOver => (Event::ContentHandover, 0),
            Standing::Withdrawn => (Event::ContentHandoverFailure, 1),
            other => panic!("{other:?}"),
        };
        assert_eq!(outcomes, [expected], "round {round}");
        won[winner] += 1;
        h37.take().await;
    }
    assert!(won.iter().all(|times| *times > 0), "one of them won always: {won:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_recall_from_some_leaves_the_others_their_letter_and_outlives_a_restart() {
    let mut exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN, TC], &[b"one"]).seal(&g22);
    g22.submit(&sealed).await.done();
    g22.submit(&recall(sealed.id, &[DN]).seal(&g22)).await.done();
    // Not sent to it, or sent by another agency: rejected, and nothing is withdrawn.
    let stranger = g22.submit(&recall(sealed.id, &[TC, "000.00.00.G22"]).seal(&g22)).await;
    assert_eq!(super::rejected(&exchange, &g22, stranger), ["wrong-addressee"]);
    drop(g22);
    exchange.stop_broker();
    exchange.start_broker();
    let h37 = RawNode::link(&exchange, "h37").await;
    let mut taken = vec![];
    for _ in 0..2 {
        let (offered, outcome) = h37.take().await;
        assert_eq!(outcome.standing, Standing::HandedOver);
        taken.push((offered.offer.recipient, offered.offer.envelope == sealed.envelope));
    }
    taken.sort();
    assert_eq!(taken, [(code(DN), false), (code(TC), true)]);
}
