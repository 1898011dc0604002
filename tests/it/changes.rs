//! Changes to a document that was sent: a replacement stands beside it and both name each other; an update of its recipients'
//! list (edXML ReceiverType 0 and 1) is told to everybody and asked of them, and changes no list by itself: the sender's
//! officer recalls it from those who were removed, and sends it to those who were added.

use docaxis::control::Control;
use docaxis::doc::import_file;
use docaxis_node_agent::gateway::edxml::{self, Attachment, Mode};
use docaxis_node_agent::mailbox::{DeliveryState, InState};
use docaxis_node_agent::query::Recall;
use docaxis_node_agent::{AgentHandle, DispatchView};
use docaxis_protocol::about::rel;
use docaxis_protocol::envelope::Relation;
use docaxis_protocol::{DispatchId, Envelope, Kind, ReasonCode, StatusCode};
use serde_json::{Value, json};

use crate::testnet::{Sent, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53])];
const FIRST: &str = "000.00.00.G22,2026/11/22,2211/VPCP-KSTT";
const SECOND: &str = "000.00.00.G22,2026/11/25,2230/VPCP-KSTT";
const WHY: &str = "Đính chính phụ lục";

/// Imports an edXML file at the sender's node, as its document system would hand it over.
fn import(net: &TestNet, document_id: &str, to: &[&str], bussiness: Value) -> Sent {
    let organs: Vec<Value> = to.iter().map(|code| json!({ "OrganId": code })).collect();
    let header = json!({
        "From": {"OrganId": G22}, "To": organs, "DocumentId": document_id,
        "Code": {"CodeNumber": document_id.rsplit(',').next(), "CodeNotation": "VPCP-KSTT"},
        "PromulgationInfo": {"Place": "Hà Nội", "PromulgationDate": "2026/11/22"},
        "DocumentType": {"Type": "18", "TypeName": "Công văn"}, "Subject": document_id,
        "TraceHeaderList": {"Bussiness": bussiness},
    });
    let attachment = Attachment::new("cong-van.txt", None, format!("Nội dung của {document_id}").into_bytes());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("van-ban.edxml");
    std::fs::write(&file, edxml::export(header.as_object().unwrap(), &[attachment]).unwrap()).unwrap();
    let control = Control::new(&net.node_data("g22").join("control.sock"), "");
    let imported = import_file(&control, &file, Mode::Lenient, false);
    let id = imported.id.unwrap_or_else(|| panic!("{imported:?}"));
    Sent { id, from: G22.into(), to: to.iter().map(|to| (*to).to_owned()).collect(), letter: letter() }
}

/// The same; returns when all have it.
fn deliver(net: &TestNet, document_id: &str, to: &[&str], bussiness: Value) -> Sent {
    let sent = import(net, document_id, to, bussiness);
    net.wait_handed_over(&sent);
    sent
}

fn new_document() -> Value {
    json!({"BussinessDocType": "0", "Paper": "0"})
}

fn show(net: &TestNet, agent: &AgentHandle, id: DispatchId) -> DispatchView {
    net.block_on(agent.show(id)).unwrap()
}

/// What was sent about a dispatch, as one agent has it, and which of its agencies sent it or was sent it.
fn about(view: &DispatchView) -> Vec<(&str, Kind, DispatchId, &str)> {
    let lines = view.related.iter().map(|one| (one.agency.as_str(), one.kind, one.dispatch, one.text.as_str()));
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by_key(|line| line.0);
    lines
}

fn ids(net: &TestNet, agency: &str) -> Vec<DispatchId> {
    net.inbox(agency).into_iter().map(|received| received.id).collect()
}

#[test]
fn a_replacement_and_what_it_replaces_name_each_other_at_both_ends_and_the_evidence_of_both_verifies() {
    let net = TestNet::start(NODES);
    let old = deliver(&net, FIRST, &[DN, A53], new_document());
    let bussiness = json!({
        "BussinessDocType": "3", "BussinessDocReason": WHY, "Paper": "0",
        "ReplacementInfoList": {"ReplacementInfo": [{"DocumentId": FIRST, "OrganIdList": {"OrganId": [DN, A53]}}]},
    });
    let new = deliver(&net, SECOND, &[DN, A53], bussiness);
    let replaces = Relation { rel: rel::REPLACES.into(), dispatch: old.id, document_id: Some(FIRST.into()) };
    for (node, who) in [("g22", G22), ("h37", DN), ("a53", A53)] {
        let (replaced, replacement) = (show(&net, net.agent(node), old.id), show(&net, net.agent(node), new.id));
        assert_eq!((replaced.kind, replaced.relates.clone()), (Kind::New, vec![]), "{node}");
        assert_eq!(about(&replaced), [(who, Kind::Replace, new.id, WHY)], "{node}");
        assert_eq!((replacement.kind, replacement.relates.clone()), (Kind::Replace, vec![replaces.clone()]), "{node}");
        assert_eq!(about(&replacement), [], "{node}");
    }
    // It stands beside the other one, and takes nothing away.
    for who in [DN, A53] {
        assert_eq!(ids(&net, who), [old.id, new.id], "{who}");
    }
    for (sent, of) in [(&old, 0), (&new, 1)] {
        net.wait_proven("g22", sent.id, 3);
        let parts = &net.inbox(DN)[of].parts;
        for (whose, zip) in
            [("the sender's node", net.bundle_of_node("g22", sent.id)), ("the broker", net.bundle_of_broker(sent.id))]
        {
            let verdict = net.judge(&zip, parts);
            let failures: Vec<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
            assert_eq!(failures, Vec::<String>::new(), "{whose}'s bundle of {}", sent.id);
            let states: Vec<&str> = verdict.states.values().map(String::as_str).collect();
            assert_eq!(states, ["ContentHandover"; 2], "{whose}");
        }
    }
    // What it replaces is under the sender's seal.
    let sealed = net.block_on(net.agent("g22").bundle(new.id)).unwrap().envelope;
    assert_eq!(Envelope::parse(&sealed.bytes).unwrap().relates, [replaces]);
}

#[test]
fn an_update_that_removes_one_recipient_and_adds_another_is_told_to_all_and_the_officer_recalls_and_sends() {
    let net = TestNet::start(NODES);
    let original = deliver(&net, FIRST, &[DN, A53], new_document());
    let list = json!({"Receiver": [
        {"OrganId": A53, "ReceiverType": "0"}, {"OrganId": TC, "ReceiverType": "1"},
    ]});
    let bussiness = json!({
        "BussinessDocType": "2", "BussinessDocReason": WHY, "Paper": "0", "DocumentId": FIRST,
        "BussinessDocumentInfo": {"DocumentInfo": "0", "DocumentReceiver": "1", "ReceiverList": list},
    });
    let update = deliver(&net, SECOND, &[DN, A53, TC], bussiness);
    let updates = Relation { rel: rel::UPDATES.into(), dispatch: original.id, document_id: Some(FIRST.into()) };
    for (node, agencies) in [("g22", &[G22][..]), ("h37", &[DN, TC]), ("a53", &[A53])] {
        let told = show(&net, net.agent(node), update.id);
        assert_eq!((told.kind, told.relates.clone()), (Kind::Update, vec![updates.clone()]), "{node}");
        assert_eq!(
            told.document["TraceHeaderList"]["Bussiness"]["BussinessDocumentInfo"]["ReceiverList"], list,
            "{node}"
        );
        let expected: Vec<_> = agencies.iter().map(|who| (*who, Kind::Update, update.id, WHY)).collect();
        assert_eq!(about(&show(&net, net.agent(node), original.id)), expected, "{node}");
    }
    // Nobody's list has changed by it: who had the document has it, who had it not has it not, and nobody is asked for it back.
    let (g22, a53) = (net.agent("g22"), net.agent("a53"));
    let deliveries = |view: DispatchView| -> Vec<_> {
        let deliveries = view.outgoing.unwrap().deliveries.into_iter();
        deliveries.map(|one| (one.recipient.to_string(), one.state, one.recall)).collect()
    };
    let as_before =
        [(A53.to_owned(), DeliveryState::HandedOver, None), (DN.to_owned(), DeliveryState::HandedOver, None)];
    assert_eq!(deliveries(show(&net, g22, original.id)), as_before);
    assert_eq!(
        [ids(&net, A53), ids(&net, DN), ids(&net, TC)],
        [vec![original.id, update.id], vec![original.id, update.id], vec![update.id]]
    );
    // Those who have the document are asked whether they agree; the removed one does, and keeps it as yet.
    let asked = show(&net, a53, original.id).incoming.remove(0);
    assert_eq!(asked.recall, Some(Recall::Asked));
    let why = asked.waiting.unwrap().why;
    assert!(why.contains("for an update") && why.contains(WHY), "{why}");
    net.block_on(a53.report(update.id, code(A53), StatusCode::Agreed, "")).unwrap();
    let of_added = net.block_on(net.agent("h37").report(update.id, code(TC), StatusCode::Agreed, "")).unwrap_err();
    assert_eq!(of_added.code(), ReasonCode::NotFound, "it has nothing that was updated");
    net.until(g22, async || {
        let related = g22.show(original.id).await.unwrap().related;
        related.iter().any(|one| one.code == Some(StatusCode::Agreed) && one.sender == code(A53)).then_some(())
    });
    assert_eq!(deliveries(show(&net, g22, original.id)), as_before);
    assert_eq!(ids(&net, A53), [original.id, update.id]);
    // The officer's two further steps.
    net.block_on(g22.recall(original.id, vec![code(A53)], WHY)).unwrap();
    let sent = net.send(G22, &[TC], letter());
    net.until(a53, async || {
        (a53.show(original.id).await.unwrap().incoming[0].recall == Some(Recall::Asked)).then_some(())
    });
    // What is said of the update does not answer the recall that came after it.
    let late = net.block_on(a53.report(update.id, code(A53), StatusCode::Agreed, "")).unwrap_err();
    assert_eq!(late.code(), ReasonCode::IdConflict);
    assert_eq!(show(&net, a53, original.id).incoming[0].state, InState::Visible);
    net.block_on(a53.report(original.id, code(A53), StatusCode::Agreed, "")).unwrap();
    let after = [
        (A53.to_owned(), DeliveryState::HandedOver, Some(Recall::Agreed)),
        (DN.to_owned(), DeliveryState::HandedOver, None),
    ];
    net.until(g22, async || (deliveries(g22.show(original.id).await.unwrap()) == after).then_some(()));
    assert_eq!(show(&net, a53, original.id).incoming[0].state, InState::Recalled);
    net.wait_handed_over(&sent);
    assert_eq!((ids(&net, DN), ids(&net, TC)), (vec![original.id, update.id], vec![update.id, sent.id]));
}

#[test]
fn complaint_05_the_reason_of_a_recall_reaches_officer_and_evidence_also_when_it_comes_as_a_file() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = import(&net, FIRST, &[DN, A53], new_document());
    let (g22, a53) = (net.agent("g22"), net.agent("a53"));
    net.until(a53, async || a53.show(sent.id).await.ok());
    let bussiness = json!({"BussinessDocType": "1", "BussinessDocReason": WHY, "Paper": "0"});
    let recall = import(&net, FIRST, &[DN, A53], bussiness);
    let why = net.until(a53, async || {
        let asked = a53.show(sent.id).await.unwrap().incoming.remove(0);
        asked.waiting.filter(|_| asked.recall == Some(Recall::Asked)).map(|waiting| waiting.why)
    });
    assert!(why.contains("to have it back") && why.contains(WHY), "{why}");
    let withdrawn = net.until(g22, async || {
        let mut deliveries = g22.show(sent.id).await.unwrap().outgoing.unwrap().deliveries;
        deliveries.remove(1).reason.filter(|reason| reason.code == "withdrawn")
    });
    assert!(withdrawn.text.contains(WHY) && withdrawn.text.contains(&recall.id.to_string()), "{withdrawn}");
}

#[test]
fn an_update_that_is_asked_back_itself_is_given_back_under_its_own_id() {
    let net = TestNet::start(NODES);
    let original = deliver(&net, FIRST, &[A53], new_document());
    let bussiness = json!({
        "BussinessDocType": "2", "BussinessDocReason": WHY, "Paper": "0", "DocumentId": FIRST,
        "BussinessDocumentInfo": {"DocumentInfo": "1", "DocumentReceiver": "0"},
    });
    let update = deliver(&net, SECOND, &[A53], bussiness);
    net.block_on(net.agent("g22").recall(update.id, vec![], WHY)).unwrap();
    let a53 = net.agent("a53");
    net.until(a53, async || {
        (a53.show(update.id).await.unwrap().incoming[0].recall == Some(Recall::Asked)).then_some(())
    });
    net.block_on(a53.report(update.id, code(A53), StatusCode::Agreed, "")).unwrap();
    let state = |id| show(&net, a53, id).incoming[0].state;
    assert_eq!((state(original.id), state(update.id)), (InState::Visible, InState::Recalled));
    let asked = show(&net, a53, original.id).incoming.remove(0).recall;
    assert_eq!(asked, Some(Recall::Asked), "the update has not been answered by it");
}
