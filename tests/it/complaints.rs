//! What users of such exchanges complain about. Each test carries the complaint's number; those that belong to a subject of
//! their own stand there: 2 in `exchange`, 4 in `link::intake` too, 5 in `recall` and `link::recall`, 6 in `memory`, 7 in
//! `damage`, 8 in `recall`, 10 in `partial` too, 14 in the crates `protocol` (`search`) and `certs` (`tests::authority`).

use std::time::Duration;

use docaxis_node_agent::Draft;
use docaxis_node_agent::mailbox::{DeliveryState, OutState};
use docaxis_node_agent::query::{Until, Waited, Waiting};
use docaxis_node_agent::uplink::Whose;
use docaxis_protocol::{DispatchId, Event, Evidence, ReasonCode};

use crate::forwarder::Way;
use crate::resume::with_forwarder;
use crate::testnet::{HANG, TestNet, code, codes, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53])];

/// What became of each delivery of a dispatch, by the evidence at its sender: the last event that is not late.
fn by_evidence(net: &TestNet, id: DispatchId) -> Vec<(String, Event)> {
    let rows = net.block_on(net.agent("g22").evidence(id)).unwrap();
    let mut last = std::collections::BTreeMap::new();
    for row in rows {
        let piece = Evidence::parse(&row.signed.bytes).unwrap();
        if let Some(who) = piece.recipient.filter(|_| !piece.late) {
            last.insert(who.to_string(), piece.event);
        }
    }
    last.into_iter().collect()
}

#[test]
fn complaint_01_where_delivery_failed_there_is_no_receipt_and_both_sides_say_so() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let mut draft = Draft::new(code(G22), codes(&[DN, A53]));
    draft.expires = Some(net.broker().exchange().now().plus(Duration::from_secs(3)));
    let id = net.block_on(net.agent("g22").compose(draft)).unwrap();
    let g22 = net.agent("g22");
    let shown = net.until(g22, async || {
        let shown = g22.show(id).await.unwrap();
        let states: Vec<DeliveryState> = shown.outgoing.as_ref().unwrap().deliveries.iter().map(|d| d.state).collect();
        (states == [DeliveryState::HandedOver, DeliveryState::Failed]).then_some(shown)
    });
    let failed = &shown.outgoing.unwrap().deliveries[1];
    assert_eq!(failed.reason.as_ref().map(|reason| reason.known()), Some(ReasonCode::Expired));
    // The node comes back too late: it is offered nothing, and its officers see nothing.
    net.start_node("h37");
    let later = net.send(G22, &[DN], letter());
    net.wait_handed_over(&later);
    assert_eq!(net.inbox(DN), [later.received()]);
    let outcomes = [(A53.to_owned(), Event::ContentHandover), (DN.to_owned(), Event::ContentHandoverFailure)];
    assert_eq!(by_evidence(&net, id), outcomes, "one outcome for each");
    assert_eq!(net.events("g22", id).len(), 3);
}

#[test]
fn complaint_03_what_is_shown_is_what_the_evidence_says() {
    let mut net = TestNet::start(NODES);
    net.stop_node("a53");
    let sent = net.send(G22, &[DN, TC, A53], letter());
    let g22 = net.agent("g22");
    let states = async || {
        let shown = g22.show(sent.id).await.unwrap().outgoing.unwrap();
        (shown.state, shown.deliveries.iter().map(|delivery| delivery.state).collect::<Vec<_>>())
    };
    use DeliveryState as S;
    let expected = (OutState::Accepted, vec![S::Waiting, S::HandedOver, S::HandedOver]);
    net.until(g22, async || (states().await == expected).then_some(()));
    assert_eq!(by_evidence(&net, sent.id).len(), 2, "whoever has no evidence of it is not shown as having it");
    let h37 = net.agent("h37");
    for who in [DN, TC] {
        net.until(h37, async || {
            let shown = h37.show(sent.id).await.ok()?;
            shown.incoming.iter().any(|row| row.recipient == code(who)).then_some(())
        });
    }
    net.block_on(h37.refuse(sent.id, code(TC), ReasonCode::WrongAddressee.because("nhầm"))).unwrap();
    let expected = (OutState::Accepted, vec![S::Waiting, S::HandedOver, S::Refused]);
    net.until(g22, async || (states().await == expected).then_some(()));
    let evidence = by_evidence(&net, sent.id);
    assert_eq!(evidence, [(DN.to_owned(), Event::ContentHandover), (TC.to_owned(), Event::Refused)]);
    // "Handed over" is not said of the whole as long as it is not true of one.
    let waited = net.block_on(g22.wait(sent.id, Until::Delivered(S::HandedOver), Duration::from_millis(50))).unwrap();
    assert!(matches!(waited, Waited::TimedOut(_)), "{waited:?}");
}

#[test]
fn complaint_04_a_submission_whose_receipt_was_lost_is_tried_again_and_arrives_once() {
    let (net, link) = with_forwarder("g22");
    link.silence(Way::ToNode);
    let sent = net.send(G22, &[DN], letter());
    let (g22, h37) = (net.agent("g22"), net.agent("h37"));
    net.until(h37, async || h37.show(sent.id).await.ok());
    // It was delivered; its sender hears nothing until its patience has ended, and does not take that for a failure.
    let tried = net.until(g22, async || {
        let out = g22.show(sent.id).await.unwrap().outgoing.unwrap();
        (out.attempts > 0).then_some(out)
    });
    assert_eq!((tried.state, tried.deliveries[0].state), (OutState::Queued, DeliveryState::Waiting));
    link.mend();
    net.wait_handed_over(&sent);
    // What arrives in order behind it would find a second one there.
    let next = net.send(G22, &[DN], letter());
    net.wait_handed_over(&next);
    assert_eq!(net.inbox(DN), [sent.received(), next.received()]);
    for one in [&sent, &next] {
        let events = net.events("g22", one.id);
        assert_eq!(events, [(Event::SubmissionAcceptance, None), (Event::ContentHandover, Some(code(DN)))]);
    }
    assert_eq!(net.broker().exchange().store.counts().leaves, 4, "and no other evidence of anything");
}

#[test]
fn complaint_09_an_arrival_and_its_receipt_are_told_and_nobody_asks_again_and_again() {
    let net = TestNet::start(NODES);
    for node in ["g22", "h37"] {
        net.wait_linked(node);
    }
    // Whoever watches an agent hears of a change, and looks once for each.
    let sent = net.send(G22, &[DN], letter());
    let h37 = net.agent("h37");
    let looks = std::cell::Cell::new(0);
    net.until(h37, async || {
        looks.set(looks.get() + 1);
        h37.show(sent.id).await.ok()
    });
    net.wait_handed_over(&sent);
    assert!(looks.get() < 20, "{} looks for one arrival", looks.get());
    // Nothing more comes when there is nothing more to say: an idle exchange does not poll.
    let (mut at_sender, mut at_recipient) = (net.agent("g22").changes(), h37.changes());
    net.wait_proven("g22", sent.id, 2);
    net.wait_proven("h37", sent.id, 2);
    at_sender.mark_unchanged();
    at_recipient.mark_unchanged();
    let news = net.block_on(async {
        tokio::select! {
            _ = at_sender.changed() => "a change at the sender",
            _ = at_recipient.changed() => "a change at the recipient",
            () = tokio::time::sleep(Duration::from_secs(2)) => "nothing",
        }
    });
    assert_eq!(news, "nothing");
}

#[test]
fn complaint_10_every_state_that_waits_says_why_and_whose_move_it_is() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    net.stop_broker();
    let sent = net.send(G22, &[DN], letter());
    let says = |waiting: Option<Waiting>, why: &str, whose: &[Whose]| {
        let waiting = waiting.expect("it waits");
        assert!(waiting.why.contains(why), "{waiting:?} does not say {why:?}");
        assert!(whose.contains(&waiting.whose_move), "{waiting:?}");
        waiting.next_attempt
    };
    let out = |net: &TestNet| net.block_on(net.agent("g22").show(sent.id)).unwrap().outgoing.unwrap();
    let g22 = net.agent("g22");
    let queued = net.until(g22, async || {
        let out = g22.show(sent.id).await.unwrap().outgoing.unwrap();
        out.waiting.clone().is_some_and(|waiting| waiting.next_attempt.is_some()).then_some(out)
    });
    let next = says(queued.waiting, "no link to the broker", &[Whose::Agent, Whose::Broker]);
    assert!(next.is_some(), "it says when it is tried again");
    net.start_broker();
    net.wait_settled(&sent);
    says(out(&net).deliveries[0].waiting.clone(), "node has not taken it yet", &[Whose::Recipient]);
    net.start_node("h37");
    net.wait_handed_over(&sent);
    says(out(&net).deliveries[0].waiting.clone(), "has not registered or refused", &[Whose::Recipient]);
    let inbox = net.block_on(net.agent("h37").show(sent.id)).unwrap().incoming;
    says(inbox[0].waiting.clone(), "registers it (03) or refuses it (02)", &[Whose::Recipient]);
    // What a node was told last is not shown as what is now, and an answer that cannot be reported says when it can.
    net.stop_broker();
    net.block_on(net.agent("h37").register(sent.id, code(DN))).unwrap();
    let h37 = net.agent("h37");
    let stated = net.until(h37, async || {
        let waiting = h37.show(sent.id).await.unwrap().incoming.remove(0).waiting?;
        waiting.next_attempt.is_some().then_some(waiting)
    });
    says(
        Some(stated),
        "has not recorded the statement Registered yet; there is no link",
        &[Whose::Agent, Whose::Broker],
    );
    let last_heard = net.until(net.agent("g22"), async || {
        let out = net.agent("g22").show(sent.id).await.unwrap().outgoing.unwrap();
        out.deliveries[0].waiting.clone().filter(|waiting| waiting.why.contains("as far as was heard"))
    });
    says(Some(last_heard), "has not registered or refused it yet", &[Whose::Recipient]);
    net.start_broker();
    let registered = net.block_on(net.agent("g22").wait(sent.id, Until::Delivered(DeliveryState::Registered), HANG));
    assert!(matches!(registered.unwrap(), Waited::Reached(_)));
    assert_eq!(out(&net).deliveries[0].waiting, None, "nobody has to move");
}
