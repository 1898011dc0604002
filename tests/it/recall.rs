//! Taking back: claims over real agents and a real broker. Complaint 5 of the field is that a cancel races with the receipt,
//! changes only the sender's label, is shown but never applied, and loses its reason; complaint 8 that statuses come again and
//! again, out of turn.

use docaxis_node_agent::mailbox::{DeliveryState, InState, OutState};
use docaxis_node_agent::query::{Box as Which, Recall};
use docaxis_node_agent::{AgentHandle, DispatchView, Draft, Refused};
use docaxis_protocol::about::rel;
use docaxis_protocol::bundle::BundleFiles;
use docaxis_protocol::envelope::Relation;
use docaxis_protocol::{DispatchId, Event, Kind, ReasonCode, StatusCode};

use crate::testnet::{LONGEST_PAUSE, Sent, TestNet, code, codes, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53])];
const WHY: &str = "Ban hành nhầm phụ lục";

fn recall(net: &TestNet, sent: &Sent) -> DispatchId {
    net.block_on(net.agent_of(&sent.from).recall(sent.id, vec![], WHY)).unwrap()
}

/// Where a delivery stands at its sender, and the recall of it.
fn at_sender(view: &DispatchView, who: &str) -> (DeliveryState, Option<Recall>) {
    let deliveries = &view.outgoing.as_ref().unwrap().deliveries;
    let delivery = deliveries.iter().find(|delivery| delivery.recipient == code(who)).unwrap();
    (delivery.state, delivery.recall)
}

/// Waits until the sender's view of a delivery is this.
fn wait_at_sender(net: &TestNet, sent: &Sent, who: &str, expected: (DeliveryState, Option<Recall>)) -> DispatchView {
    let agent = net.agent_of(&sent.from);
    net.until(agent, async || {
        let view = agent.show(sent.id).await.unwrap();
        (at_sender(&view, who) == expected).then_some(view)
    })
}

/// Waits until the recipient's officer sees the recall of this dispatch.
fn wait_asked(net: &TestNet, sent: &Sent, who: &str) -> DispatchView {
    let agent = net.agent_of(who);
    net.until(agent, async || {
        let view = agent.show(sent.id).await.ok()?;
        let asked = view.incoming.iter().any(|row| row.recipient == code(who) && row.recall == Some(Recall::Asked));
        asked.then_some(view)
    })
}

fn refused(result: Result<DispatchId, Refused>) -> ReasonCode {
    result.unwrap_err().code()
}

#[test]
fn complaint_05_a_recall_withdraws_what_waits_and_asks_for_what_was_handed_over() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[A53, DN], letter().with_part("phu-luc.pdf", 100_000));
    let agent = net.agent("g22");
    net.until(agent, async || {
        let view = agent.show(sent.id).await.unwrap();
        (at_sender(&view, A53).0 == DeliveryState::HandedOver).then_some(())
    });
    let recalled_by = recall(&net, &sent);
    assert_eq!(recall(&net, &sent), recalled_by, "asked again, it is the same recall");
    // Not handed over: withdrawn with the recall's acceptance, and the evidence says by which one and why.
    let view = wait_at_sender(&net, &sent, DN, (DeliveryState::Withdrawn, None));
    let delivery = view.outgoing.unwrap().deliveries.into_iter().find(|one| one.recipient == code(DN)).unwrap();
    let why = delivery.reason.unwrap();
    assert_eq!(why.code, "withdrawn");
    assert!(why.text.contains(WHY) && why.text.contains(&recalled_by.to_string()), "{why}");
    // Handed over: its officer is asked, and told why.
    let asked = wait_asked(&net, &sent, A53);
    let waiting = asked.incoming[0].waiting.clone().unwrap();
    assert!(waiting.why.contains(WHY) && waiting.why.contains("15"), "{}", waiting.why);
    assert_eq!(net.inbox(A53)[0], sent.received(), "it is there until somebody agrees");
    let answered = net.block_on(net.agent("a53").report(sent.id, code(A53), StatusCode::Agreed, "Đã hủy")).unwrap();
    let again = net.block_on(net.agent("a53").report(sent.id, code(A53), StatusCode::Agreed, "")).unwrap();
    assert_eq!(again, answered, "an answer is given once");
    wait_at_sender(&net, &sent, A53, (DeliveryState::HandedOver, Some(Recall::Agreed)));
    // What is known of it stays, its bodies are gone.
    let view = net.block_on(net.agent("a53").show(sent.id)).unwrap();
    assert_eq!((view.subject.as_str(), view.incoming[0].state), (sent.letter.subject.as_str(), InState::Recalled));
    for n in 0..2 {
        let gone = net.block_on(net.agent("a53").part(sent.id, n)).err().expect("the bodies are destroyed");
        assert_eq!(gone.code(), ReasonCode::Withdrawn);
    }
    let parts = net.node_data("a53").join("parts");
    let left: Vec<_> = walk(&parts).into_iter().filter(|path| path.metadata().unwrap().len() == 100_000).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "the file itself");
    // Whoever never had it hears of the recall alone.
    net.start_node("h37");
    let h37 = net.agent("h37");
    let told = net.until(h37, async || h37.show(recalled_by).await.ok());
    assert_eq!(told.kind, Kind::Recall);
    assert_eq!(refused(net.block_on(h37.report(recalled_by, code(DN), StatusCode::Agreed, ""))), ReasonCode::NotFound);
    assert_eq!(net.block_on(h37.show(sent.id)).unwrap_err().code(), ReasonCode::NotFound);
    // It is a recall for whoever gets it as a file, too.
    let bussiness = &told.document["TraceHeaderList"]["Bussiness"];
    assert_eq!((&bussiness["BussinessDocType"], &bussiness["BussinessDocReason"]), (&"1".into(), &WHY.into()));
    // At the sender it is frozen.
    let mut update = Draft::new(code(G22), codes(&[A53]));
    update.kind = Kind::Update;
    update.relates = vec![Relation { rel: rel::UPDATES.into(), dispatch: sent.id, document_id: None }];
    assert_eq!(refused(net.block_on(net.agent("g22").compose(update))), ReasonCode::Withdrawn);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn the_evidence_of_a_withdrawal_verifies_with_the_recall_beside_it() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_settled(&sent);
    let recalled_by = recall(&net, &sent);
    net.wait_proven("g22", sent.id, 3);
    let recall_envelope = net.block_on(net.agent("g22").bundle(recalled_by)).unwrap().envelope;
    for (whose, zip) in
        [("the sender's node", net.bundle_of_node("g22", sent.id)), ("the broker", net.bundle_of_broker(sent.id))]
    {
        let verdict = net.judge(&zip, &sent.received().parts);
        let failures: Vec<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(failures, Vec::<String>::new(), "the bundle of {whose}");
        let states: Vec<&str> = verdict.states.values().map(String::as_str).collect();
        assert_eq!(states, ["ContentHandoverFailure"; 2]);
        let files = BundleFiles::read(&zip).unwrap();
        let cause = files.iter().find(|(name, _)| *name == "cause/envelope.json").unwrap().1;
        assert_eq!(cause, recall_envelope.bytes, "{whose}");
    }
    let events: Vec<Event> = net.events("g22", sent.id).into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, [Event::SubmissionAcceptance, Event::ContentHandoverFailure, Event::ContentHandoverFailure]);
}

#[test]
fn a_dispatch_that_is_still_in_the_outbox_is_recalled_as_soon_as_the_exchange_has_it() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    net.stop_broker();
    let sent = net.send(G22, &[DN], letter());
    let recalled_by = recall(&net, &sent);
    let g22 = net.agent("g22");
    let held = net.until(g22, async || {
        let waiting = g22.show(recalled_by).await.unwrap().outgoing.unwrap().waiting?;
        waiting.next_attempt.is_some().then_some(waiting)
    });
    let says = |what: &str| assert!(held.why.contains(what), "{held:?} does not say {what:?}");
    says(&sent.id.to_string());
    says("of that one: there is no link to the broker");
    net.stop_node("g22");
    net.start_broker();
    net.start_node("g22");
    wait_at_sender(&net, &sent, DN, (DeliveryState::Withdrawn, None));
    net.start_node("h37");
    let h37 = net.agent("h37");
    net.until(h37, async || h37.show(recalled_by).await.ok());
    assert_eq!(net.block_on(h37.show(sent.id)).unwrap_err().code(), ReasonCode::NotFound, "it was never shown");
}

#[test]
fn a_recall_that_is_declined_leaves_the_document_and_may_still_be_agreed_to() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_handed_over(&sent);
    let only_one = net.block_on(net.agent("g22").recall(sent.id, codes(&[DN]), WHY)).unwrap();
    wait_asked(&net, &sent, DN);
    let h37 = net.agent("h37");
    let shown = net.block_on(h37.show(sent.id)).unwrap();
    let of_tc = shown.incoming.iter().find(|row| row.recipient == code(TC)).unwrap();
    assert_eq!(of_tc.recall, None, "the other agency of the node was not asked");
    assert_eq!(refused(net.block_on(h37.report(sent.id, code(TC), StatusCode::Agreed, ""))), ReasonCode::NotFound);
    // By the id of the recall as well as by that of the document.
    net.block_on(h37.report(only_one, code(DN), StatusCode::Declined, "Đã xử lý xong")).unwrap();
    let view = wait_at_sender(&net, &sent, DN, (DeliveryState::HandedOver, Some(Recall::Declined)));
    assert_eq!(at_sender(&view, TC), (DeliveryState::HandedOver, None));
    let said = view.related.iter().find(|related| related.code == Some(StatusCode::Declined)).unwrap();
    assert_eq!((said.text.as_str(), &said.sender), ("Đã xử lý xong", &code(DN)));
    assert!(net.inbox(DN).contains(&sent.received()));
    net.block_on(h37.report(sent.id, code(DN), StatusCode::Agreed, "")).unwrap();
    wait_at_sender(&net, &sent, DN, (DeliveryState::HandedOver, Some(Recall::Agreed)));
    let last = net.block_on(h37.report(sent.id, code(DN), StatusCode::Declined, ""));
    assert_eq!(refused(last), ReasonCode::IdConflict, "what is destroyed cannot be kept");
    // The other agency of the same node keeps its copy of the same bytes.
    let mut kept = net.block_on(h37.part(sent.id, 0)).unwrap();
    assert!(kept.reader.next_chunk().unwrap().is_some());
}

#[test]
fn an_agreement_to_an_update_is_no_answer_to_a_later_recall_and_destroys_nothing() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN], letter());
    net.wait_handed_over(&sent);
    let mut update = Draft::new(code(G22), codes(&[DN]));
    update.kind = Kind::Update;
    update.relates = vec![Relation { rel: rel::UPDATES.into(), dispatch: sent.id, document_id: None }];
    net.block_on(net.agent("g22").compose(update)).unwrap();
    wait_asked(&net, &sent, DN);
    let h37 = net.agent("h37");
    net.block_on(h37.report(sent.id, code(DN), StatusCode::Agreed, "")).unwrap();
    assert!(net.inbox(DN).contains(&sent.received()), "only a recall takes it away");
    recall(&net, &sent);
    wait_asked(&net, &sent, DN);
    wait_at_sender(&net, &sent, DN, (DeliveryState::HandedOver, Some(Recall::Asked)));
    net.block_on(h37.report(sent.id, code(DN), StatusCode::Agreed, "")).unwrap();
    wait_at_sender(&net, &sent, DN, (DeliveryState::HandedOver, Some(Recall::Agreed)));
    assert_eq!(net.block_on(h37.part(sent.id, 0)).err().map(|gone| gone.code()), Some(ReasonCode::Withdrawn));
}

#[test]
fn a_recipient_that_was_locked_since_does_not_keep_a_recall_from_the_others() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_settled(&sent);
    net.authority.lock_agency(&code(TC), true, net.broker().exchange().now()).unwrap();
    net.publish();
    recall(&net, &sent);
    for who in [DN, TC] {
        wait_at_sender(&net, &sent, who, (DeliveryState::Withdrawn, None));
    }
}

#[test]
fn nobody_but_the_sender_recalls_and_nobody_but_a_recipient_reports() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN], letter());
    net.wait_handed_over(&sent);
    let attempt = |from: &str, kind: Kind, rel: &str, to: &str, status: Option<&str>| {
        let mut draft = Draft::new(code(from), codes(&[to]));
        draft.kind = kind;
        draft.relates = vec![Relation { rel: rel.into(), dispatch: sent.id, document_id: None }];
        draft.status = status.map(|code| docaxis_protocol::envelope::StatusReport {
            code: code.into(),
            description: String::new(),
            time: net.broker().exchange().now(),
        });
        let agent = net.agent_of(from);
        match net.block_on(agent.compose(draft)) {
            Ok(id) => net.until(agent, async || {
                let out = agent.show(id).await.unwrap().outgoing.unwrap();
                (out.state == OutState::Rejected).then(|| out.reason.unwrap().code)
            }),
            Err(refused) => refused.code().as_str().to_owned(),
        }
    };
    assert_eq!(attempt(A53, Kind::Recall, rel::RECALLS, DN, None), "not-yours");
    assert_eq!(attempt(A53, Kind::Replace, rel::REPLACES, DN, None), "not-yours");
    // Past the rules of its own agent nobody sends a status: what is said to be destroyed must be.
    assert_eq!(attempt(A53, Kind::Status, rel::CONCERNS, G22, Some("06")), "malformed");
    assert_eq!(attempt(DN, Kind::Status, rel::CONCERNS, G22, Some("15")), "malformed");
    assert_eq!(attempt(A53, Kind::Status, rel::CONCERNS, DN, Some("13")), "not-yours");
    let mut shown = net.block_on(net.agent("h37").show(sent.id)).unwrap();
    shown.related.retain(|related| related.state != OutState::Rejected.as_str());
    assert_eq!((shown.related, net.inbox(DN)), (vec![], vec![sent.received()]));
}

#[test]
fn a_document_that_was_sent_before_under_the_same_number_is_warned_of_at_both_ends() {
    let net = TestNet::start(NODES);
    let g22 = net.agent("g22");
    let numbered = |subject: &str, refuse: bool| {
        let mut draft = Draft::new(code(G22), codes(&[DN]));
        let document = serde_json::json!({"Subject": subject, "Code": {"CodeNumber": "12", "CodeNotation": "VPCP-TH"}});
        draft.document = document.as_object().cloned().unwrap();
        draft.unless_sent_before = refuse;
        net.block_on(g22.compose(draft))
    };
    let first = numbered("lần một", true).unwrap();
    let refused = numbered("lần hai", true).unwrap_err();
    assert_eq!(refused.code(), ReasonCode::DuplicateDocument);
    assert!(refused.to_string().contains(&first.to_string()), "{refused}");
    let second = numbered("lần hai", false).unwrap();
    // What nobody was sent does not count: this one the exchange rejects.
    let mut rejected = Draft::new(code(G22), codes(&[DN]));
    let document = serde_json::json!({"Subject": "x", "DocumentId": "ID-1"});
    rejected.document = document.as_object().cloned().unwrap();
    let mut corrected = rejected.clone();
    corrected.unless_sent_before = true;
    let at = net.broker().exchange().now();
    (rejected.expires, rejected.not_before) =
        (Some(at.plus(std::time::Duration::from_secs(60))), Some(at.plus(std::time::Duration::from_secs(90))));
    let id = net.block_on(g22.compose(rejected)).unwrap();
    net.until(g22, async || (g22.show(id).await.unwrap().outgoing.unwrap().state == OutState::Rejected).then_some(()));
    net.block_on(g22.compose(corrected)).unwrap();
    let (at_sender, h37) = (net.block_on(g22.show(second)).unwrap(), net.agent("h37"));
    assert_eq!(at_sender.same_document, [first]);
    let received = net.until(h37, async || h37.show(second).await.ok().filter(|shown| !shown.same_document.is_empty()));
    assert_eq!(received.same_document, [first]);
}

#[test]
fn complaint_08_statuses_follow_the_registration_once_each_never_go_back_and_are_not_sent_again_later() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN, TC], letter());
    net.wait_handed_over(&sent);
    let h37 = net.agent("h37");
    let report = |code_: StatusCode| net.block_on(h37.report(sent.id, code(DN), code_, "chuyên viên"));
    assert_eq!(refused(report(StatusCode::InProcess)), ReasonCode::NotYours, "before it is registered");
    let reached = |who: &str, state: InState| {
        net.until(h37, async || {
            let incoming = h37.show(sent.id).await.unwrap().incoming;
            incoming.iter().any(|row| row.recipient == code(who) && row.state == state).then_some(())
        })
    };
    net.block_on(h37.register(sent.id, code(DN))).unwrap();
    reached(DN, InState::Registered);
    // What was refused has ended: nothing is said of it any more.
    net.block_on(h37.refuse(sent.id, code(TC), ReasonCode::WrongAddressee.because("nhầm"))).unwrap();
    reached(TC, InState::Refused);
    let of_refused = h37.report(sent.id, code(TC), StatusCode::Finished, "");
    assert_eq!(refused(net.block_on(of_refused)), ReasonCode::NotYours);
    let (assigned, finished) = (report(StatusCode::Assigned).unwrap(), report(StatusCode::Finished).unwrap());
    assert_eq!(report(StatusCode::Assigned).unwrap(), assigned, "said again, it is not sent again");
    assert_eq!(report(StatusCode::Finished).unwrap(), finished);
    assert_eq!(refused(report(StatusCode::InProcess)), ReasonCode::IdConflict, "it does not go back");
    let g22 = net.agent("g22");
    let view = net.until(g22, async || {
        let view = g22.show(sent.id).await.unwrap();
        (view.related.len() == 2).then_some(view)
    });
    let codes: Vec<_> = view.related.iter().map(|related| related.code.unwrap()).collect();
    assert_eq!(codes, [StatusCode::Assigned, StatusCode::Finished]);
    assert_eq!(view.outgoing.unwrap().deliveries[0].progress, Some(StatusCode::Finished));
    // A status is handed over, and asks for no answer of its own.
    let status = net.block_on(g22.show(assigned)).unwrap();
    assert_eq!((status.kind, status.incoming[0].waiting.clone()), (Kind::Status, None));
    let registered = net.block_on(g22.register(assigned, code(G22))).unwrap_err();
    assert_eq!(registered.code(), ReasonCode::Malformed);
    let events: Vec<Event> = net.events("h37", assigned).into_iter().map(|(event, _)| event).collect();
    assert_eq!(events.first(), Some(&Event::SubmissionAcceptance));
    // Nor does time add anything: neither a status again, nor another one about what has ended.
    for (id, pieces) in [(sent.id, 5), (assigned, 2), (finished, 2)] {
        net.wait_proven("h37", id, pieces);
        net.wait_proven("g22", id, pieces);
    }
    let said = || {
        let leaves = net.broker().exchange().store.counts().leaves;
        let list = |agent: &AgentHandle, which| net.block_on(agent.list(which, None, None)).unwrap();
        (leaves, list(h37, Which::Out), list(g22, Which::In), net.block_on(g22.show(sent.id)).unwrap().related)
    };
    let (before, mut at_sender, mut at_recipient) = (said(), g22.changes(), h37.changes());
    at_sender.mark_unchanged();
    at_recipient.mark_unchanged();
    std::thread::sleep(8 * LONGEST_PAUSE);
    assert_eq!(said(), before);
    let moved = [&at_sender, &at_recipient].map(|changes| changes.has_changed().unwrap());
    assert_eq!(moved, [false, false], "nothing was even tried again");
}
