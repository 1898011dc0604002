//! Claims about the whole exchange: real agents and a real broker, from the sending officer to the receiving one.

use std::collections::BTreeSet;
use std::time::Duration;

use docaxis_node_agent::mailbox::{DeliveryState, OutState};
use docaxis_protocol::{DispatchId, Event, Evidence, ReasonCode, limits};
use serde_json::Value;

use crate::testnet::{EventLine, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
/// A ministry, a province's node that hosts two departments, another ministry.
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53])];

/// One acceptance, and one handover for each recipient.
fn accepted_and_handed_over(recipients: &[&str]) -> BTreeSet<EventLine> {
    let handovers = recipients.iter().map(|recipient| (Event::ContentHandover, Some(code(recipient))));
    handovers.chain([(Event::SubmissionAcceptance, None)]).collect()
}

/// The events about a dispatch at its sender's node, none of them twice.
fn events(net: &TestNet, node: &str, id: DispatchId) -> BTreeSet<EventLine> {
    let events = net.events(node, id);
    let set: BTreeSet<EventLine> = events.iter().cloned().collect();
    assert_eq!(set.len(), events.len(), "an event came twice: {events:?}");
    set
}

#[test]
fn a_dispatch_to_two_agencies_is_handed_over_to_both_as_it_was_sent() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN, A53], letter().with_part("phu-luc.pdf", 300_000));
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(DN), [sent.received()]);
    assert_eq!(net.inbox(A53), [sent.received()]);
    assert_eq!(net.inbox(TC), []);
    assert_eq!(net.inbox(G22), []);
    assert_eq!(events(&net, "g22", sent.id), accepted_and_handed_over(&[DN, A53]));
}

#[test]
fn a_recipient_that_was_offline_gets_it_once() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[DN], letter());
    net.wait_settled(&sent);
    net.start_node("h37");
    net.wait_handed_over(&sent);
    net.stop_node("h37");
    net.start_node("h37");
    let next = net.send(G22, &[DN], letter().about("Nhắc việc"));
    net.wait_handed_over(&next);
    assert_eq!(net.inbox(DN), [sent.received(), next.received()]);
    assert_eq!(events(&net, "g22", sent.id), accepted_and_handed_over(&[DN]));
}

#[test]
fn nothing_is_visible_at_the_recipient_before_the_exchange_has_recorded_it() {
    let net = TestNet::start(NODES);
    // The broker refuses statements from the future: so this handover is stated, durable, and never recorded.
    net.put_clock_ahead("h37", limits::MAX_CLOCK_SKEW + Duration::from_secs(60));
    let unrecorded = net.send(G22, &[DN], letter());
    let agent = net.agent("h37");
    let stated = net.until(agent, async || {
        let statements = agent.statements(unrecorded.id).await.unwrap();
        statements.first().map(|statement| (statement.event, statement.recipient.clone()))
    });
    assert_eq!(stated, (Event::ContentHandover, code(DN)));
    net.put_clock_ahead("h37", Duration::ZERO);
    let recorded = net.send(G22, &[DN], letter());
    net.wait_handed_over(&recorded);
    assert_eq!(net.inbox(DN), [recorded.received()]);
    let shown = net.block_on(agent.show(unrecorded.id)).unwrap_err();
    let opened = net.block_on(agent.part(unrecorded.id, 0)).err().expect("the part is not given out");
    let registered = net.block_on(agent.register(unrecorded.id, code(DN))).unwrap_err();
    assert_eq!([shown.code(), opened.code(), registered.code()], [ReasonCode::NotFound; 3]);
    assert_eq!(net.events("g22", unrecorded.id), [(Event::SubmissionAcceptance, None)]);
}

#[test]
fn a_broker_restart_between_acceptance_and_handover_loses_nothing() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[DN, TC], letter().with_part("ban-do.tif", 2_000_000));
    net.wait_settled(&sent);
    net.stop_broker();
    net.start_broker();
    net.start_node("h37");
    net.wait_handed_over(&sent);
    assert_eq!([net.inbox(DN), net.inbox(TC)], [[sent.received()], [sent.received()]]);
    assert_eq!(events(&net, "g22", sent.id), accepted_and_handed_over(&[DN, TC]));
}

#[test]
fn an_agent_restart_with_a_queued_dispatch_still_sends_it_under_the_same_id() {
    let mut net = TestNet::start(NODES);
    net.stop_broker();
    let sent = net.send(G22, &[DN], letter());
    net.stop_node("g22");
    net.start_node("g22");
    let queued = net.block_on(net.agent("g22").show(sent.id)).unwrap();
    assert_eq!(queued.outgoing.map(|out| out.state), Some(OutState::Queued));
    net.start_broker();
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(DN), [sent.received()]);
}

#[test]
fn a_part_of_20_mib_arrives_byte_identical_at_two_agencies_of_one_node() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN, TC], letter().with_part("ban-ve.pdf", 20 << 20));
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(DN), [sent.received()]);
    assert_eq!(net.inbox(TC), [sent.received()]);
}

#[test]
fn two_agencies_behind_one_node_each_get_what_is_theirs() {
    let net = TestNet::start(NODES);
    let to_both = net.send(G22, &[TC, DN], letter().about("Gửi cả hai sở"));
    let to_one = net.send(A53, &[TC], letter().about("Gửi Sở Tài chính"));
    // The other agency of the same node: it goes through the exchange like any other.
    let between = net.send(TC, &[DN], letter().about("Sở Tài chính gửi Sở Nội vụ"));
    for sent in [&to_both, &to_one, &between] {
        net.wait_handed_over(sent);
    }
    let ids = |agency| net.inbox(agency).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(ids(DN), BTreeSet::from([to_both.received(), between.received()]));
    assert_eq!(ids(TC), BTreeSet::from([to_both.received(), to_one.received()]));
}

#[test]
fn names_and_subjects_in_vietnamese_survive_and_decomposed_ones_are_composed() {
    let net = TestNet::start(NODES);
    let composed = "Tờ trình số 12 – Đề án đẩy mạnh chuyển đổi số.docx";
    let decomposed = "Quye\u{302}\u{301}t đi\u{323}nh.pdf";
    let sent = net.send(G22, &[DN], letter().about("Về đặc khu").with_part(composed, 10).with_part(decomposed, 20));
    net.wait_handed_over(&sent);
    let mut expected = sent.received();
    expected.parts[2].0 = "Quyết định.pdf".into();
    assert_eq!(net.inbox(DN), [expected]);
}

#[test]
fn complaint_02_two_hundred_dispatches_from_several_threads_each_keep_their_own_evidence() {
    let net = TestNet::start(NODES);
    let threads = [(G22, DN), (G22, A53), (A53, TC), (TC, G22)];
    let net = &net;
    let all: Vec<_> = std::thread::scope(|scope| {
        let send = |from, to| {
            move || (0..50).map(|n| net.send(from, &[to], letter().with_part(&format!("{from}-{n}"), 40 * n))).collect()
        };
        let running = threads.map(|(from, to)| scope.spawn::<_, Vec<_>>(send(from, to)));
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for sent in &all {
        net.wait_handed_over(sent);
        let node = net.node_of(&sent.from);
        let rows = net.block_on(net.agent(node).evidence(sent.id)).unwrap();
        let sealed = net.block_on(net.agent(node).bundle(sent.id)).unwrap().envelope.digest();
        let found: BTreeSet<_> = rows
            .iter()
            .map(|row| Evidence::parse(&row.signed.bytes).unwrap())
            .map(|piece| (piece.event, piece.recipient, piece.sender, piece.dispatch, piece.envelope_sha256))
            .collect();
        let expected = accepted_and_handed_over(&[&sent.to[0]]);
        let of_this = |(event, who)| (event, who, code(&sent.from), sent.id, sealed);
        assert_eq!(found, expected.into_iter().map(of_this).collect());
        assert_eq!(rows.len(), 2);
    }
    for (from, to) in threads {
        let sent: BTreeSet<_> = all.iter().filter(|s| s.from == from && s.to == [to]).map(|s| s.received()).collect();
        let got = net.inbox(to);
        assert_eq!((got.len(), got.into_iter().collect::<BTreeSet<_>>()), (50, sent), "{from} to {to}");
    }
}

#[test]
fn the_first_opening_is_recorded_once_before_or_after_the_answer() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_handed_over(&sent);
    let h37 = net.agent("h37");
    for _ in 0..2 {
        net.block_on(h37.open(sent.id, code(DN))).unwrap();
    }
    net.wait_proven("g22", sent.id, 4);
    let view = net.block_on(net.agent("g22").show(sent.id)).unwrap();
    let states: Vec<DeliveryState> = view.outgoing.unwrap().deliveries.iter().map(|one| one.state).collect();
    assert_eq!(states, [DeliveryState::Opened, DeliveryState::HandedOver]);
    net.block_on(h37.register(sent.id, code(DN))).unwrap();
    net.block_on(h37.register(sent.id, code(TC))).unwrap();
    net.wait_proven("g22", sent.id, 6);
    net.block_on(h37.open(sent.id, code(TC))).unwrap();
    net.wait_proven("g22", sent.id, 7);
    let opened = |who| (Event::ContentAccessTracking, Some(code(who)));
    let events = events(&net, "g22", sent.id);
    assert!(events.contains(&opened(DN)) && events.contains(&opened(TC)));
    // The broker takes no second one either, in other words of the recipient.
    for whose in [net.bundle_of_node("g22", sent.id), net.bundle_of_broker(sent.id)] {
        let verdict = net.judge(&whose, &sent.received().parts);
        assert_eq!(verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>(), [""; 0]);
    }
    let returned = net.send(G22, &[DN], letter());
    net.wait_handed_over(&returned);
    net.block_on(h37.refuse(returned.id, code(DN), ReasonCode::Other.because("x"))).unwrap();
    assert!(net.block_on(h37.open(returned.id, code(DN))).is_err(), "what was returned is not opened");
}

#[test]
fn an_appointed_dispatch_waits_for_its_time_lets_others_pass_and_survives_a_restart() {
    let mut net = TestNet::start(NODES);
    let at = net.broker().exchange().now().plus(Duration::from_secs(6));
    let mut draft = docaxis_node_agent::Draft::new(code(G22), vec![code(DN), code(TC)]);
    (draft.priority, draft.not_before) = (4, Some(at));
    let appointed = net.block_on(net.agent("g22").compose(draft)).unwrap();
    let at_once = net.send(G22, &[DN], letter());
    net.wait_handed_over(&at_once);
    let waiting = net.block_on(net.agent("g22").show(appointed)).unwrap().outgoing.unwrap().deliveries;
    for delivery in &waiting {
        let why = delivery.waiting.as_ref().unwrap();
        assert!(why.why.contains("appointed") && why.next_attempt == Some(at), "{why:?}");
    }
    net.stop_broker();
    net.start_broker();
    let g22 = net.agent("g22");
    net.until(g22, async || {
        let deliveries = g22.show(appointed).await.unwrap().outgoing.unwrap().deliveries;
        deliveries.iter().all(|delivery| delivery.state == DeliveryState::HandedOver).then_some(())
    });
    for row in net.block_on(g22.evidence(appointed)).unwrap() {
        assert_eq!(row.time >= at, row.event == Event::ContentHandover, "{} at {}", row.event, row.time);
    }
    // An appointment that it cannot keep is refused.
    let mut never = docaxis_node_agent::Draft::new(code(G22), vec![code(DN)]);
    (never.expires, never.not_before) =
        (Some(at.plus(Duration::from_secs(60))), Some(at.plus(Duration::from_secs(90))));
    let never = net.block_on(g22.compose(never)).unwrap();
    let refused = net.until(g22, async || {
        let out = g22.show(never).await.unwrap().outgoing.unwrap();
        (out.state == OutState::Rejected).then(|| out.reason.unwrap())
    });
    assert_eq!(refused.code, "malformed");
}

#[test]
fn whoever_does_not_answer_in_time_is_on_record_once_and_may_still_answer() {
    let mut net = TestNet::prepare(NODES);
    net.configure(|broker| broker.acceptance.time = "3s".to_owned().try_into().unwrap(), |_| {});
    net.start_broker();
    for node in ["g22", "h37"] {
        net.start_node(node);
    }
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_handed_over(&sent);
    let h37 = net.agent("h37");
    net.block_on(h37.register(sent.id, code(TC))).unwrap();
    // The acceptance, two handovers, one registration, and what was not answered.
    net.wait_proven("g22", sent.id, 5);
    let no_answer = (Event::NoAnswer, Some(code(DN)));
    assert!(events(&net, "g22", sent.id).contains(&no_answer));
    let out = |net: &TestNet| net.block_on(net.agent("g22").show(sent.id)).unwrap().outgoing.unwrap();
    let delivery = |net: &TestNet| out(net).deliveries.remove(0);
    let counted = |net: &TestNet| {
        let view = out(net);
        let counts: Vec<(&str, u64)> = view.counts.iter().map(|count| (count.state, count.count)).collect();
        (counts, view.no_answer, view.deliveries.iter().filter(|delivery| delivery.no_answer.is_some()).count())
    };
    let waiting = delivery(&net);
    assert_eq!(waiting.state, DeliveryState::HandedOver);
    assert_eq!(counted(&net), (vec![("handed-over", 1), ("registered", 1)], 1, 1));
    assert!(waiting.waiting.as_ref().unwrap().why.contains("not registered or refused it in time"), "{waiting:?}");
    // A broker that was restarted looks at them again, and records nothing twice.
    net.stop_broker();
    net.start_broker();
    let next = net.send(G22, &[TC], letter().about("Sau khi khởi động lại"));
    net.wait_proven("g22", next.id, 3);
    net.block_on(net.agent("h37").register(sent.id, code(DN))).unwrap();
    net.wait_proven("g22", sent.id, 6);
    assert_eq!((delivery(&net).state, delivery(&net).waiting), (DeliveryState::Registered, None));
    assert_eq!(counted(&net), (vec![("registered", 2)], 0, 0), "whoever answers late is not looked for any more");
    let verdict = net.judge(&net.bundle_of_broker(sent.id), &sent.received().parts);
    assert_eq!(verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>(), [""; 0]);
}

/// What anyone can ask the broker about these dispatches, apart from who happens to be linked and where the journal is: a
/// stop and a pause write a group of their own.
fn told_by_the_broker(net: &TestNet, ids: &[DispatchId]) -> Vec<Value> {
    let control = net.broker_control();
    let ask =
        |path: String| control.get::<Value>(&path).unwrap_or_else(|failure| panic!("{path}: {}", failure.message));
    let mut told = Vec::new();
    for id in ids {
        let mut shown = ask(format!("/v1/dispatches/{id}"));
        for delivery in shown[0]["deliveries"].as_array_mut().unwrap() {
            delivery.as_object_mut().unwrap().remove("why");
        }
        told.extend([shown, ask(format!("/v1/evidence?dispatch={id}"))]);
    }
    let mut status = ask("/v1/status".into());
    for differs in ["time", "console", "linked", "checkpoint", "journal", "space"] {
        status.as_object_mut().unwrap().remove(differs);
    }
    told.push(status);
    told
}

#[test]
fn deleting_the_index_while_the_broker_is_stopped_changes_nothing_that_a_user_sees() {
    let mut net = TestNet::start(NODES);
    let done = net.send(G22, &[DN], letter().with_part("phu-luc.pdf", 100_000));
    net.wait_handed_over(&done);
    net.block_on(net.agent("h37").register(done.id, code(DN))).unwrap();
    net.wait_proven("g22", done.id, 3);
    net.stop_node("a53");
    let waiting = net.send(G22, &[A53, TC], letter().with_part("ban-do.tif", 500_000));
    net.wait_proven("g22", waiting.id, 2);
    let before = told_by_the_broker(&net, &[done.id, waiting.id]);
    net.stop_broker();
    std::fs::remove_dir_all(net.broker_data().join("index")).unwrap();
    net.start_broker();
    assert_eq!(told_by_the_broker(&net, &[done.id, waiting.id]), before);
    net.start_node("a53");
    net.wait_handed_over(&waiting);
    assert_eq!(net.inbox(A53), [waiting.received()]);
    assert_eq!([net.inbox(DN), net.inbox(TC)], [[done.received()], [waiting.received()]]);
    assert_eq!(events(&net, "g22", waiting.id), accepted_and_handed_over(&[A53, TC]));
}
