//! Dispatches of which some recipients cannot be reached: refused whole, or, if the sender chose so, sent to the others.

use std::collections::BTreeMap;

use docaxis_certs::authority::Agency;
use docaxis_node_agent::mailbox::DeliveryState;
use docaxis_node_agent::{Draft, DraftPart, Source};
use docaxis_protocol::{DispatchId, Event, PartRole};

use crate::testnet::{TestNet, code, codes};

const G22: &str = "000.00.00.G22";
const DN: &str = "H37.DN.001";
const LOCKED: &str = "H37.DN.009";
const NOWHERE: &str = "H99.DN.001";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN])];

fn draft(to: &[&str], partial: bool) -> Draft {
    let mut draft = Draft::new(code(G22), codes(to));
    draft.partial = partial;
    draft.parts = vec![DraftPart {
        name: "cong-van.pdf".into(),
        media_type: "application/pdf".into(),
        role: PartRole::Document,
        source: Source::Bytes(b"%PDF-1.7 one page".to_vec()),
    }];
    draft
}

/// An exchange with an agency that is locked.
fn with_a_locked_agency() -> TestNet {
    let mut net = TestNet::start(NODES);
    let now = net.broker().exchange().now();
    net.authority.add_agency(&Agency::new(code(LOCKED), "Sở bị khóa"), now).unwrap();
    net.authority.lock_agency(&code(LOCKED), true, now).unwrap();
    net.publish();
    let agent = net.agent("g22");
    net.until(agent, async || {
        agent.agencies(LOCKED).await.unwrap().first().is_some_and(|row| row.locked).then_some(())
    });
    net
}

/// Each recipient's state and reason, once none waits any longer.
fn ends(net: &TestNet, id: DispatchId) -> BTreeMap<String, (DeliveryState, Option<String>)> {
    let agent = net.agent("g22");
    net.until(agent, async || {
        let deliveries = agent.show(id).await.unwrap().outgoing.unwrap().deliveries;
        let waits = deliveries.is_empty() || deliveries.iter().any(|one| one.state == DeliveryState::Waiting);
        let end = |one: docaxis_node_agent::query::DeliveryView| {
            (one.recipient.to_string(), (one.state, one.reason.map(|reason| reason.code)))
        };
        (!waits).then(|| deliveries.into_iter().map(end).collect())
    })
}

#[test]
fn complaint_10_a_partial_dispatch_reaches_whom_it_can_and_says_of_each_other_why_not() {
    let net = with_a_locked_agency();
    let id = net.block_on(net.agent("g22").compose(draft(&[NOWHERE, DN, LOCKED], true))).unwrap();
    let failed = |code: &str| (DeliveryState::Failed, Some(code.to_owned()));
    let expected = BTreeMap::from([
        (NOWHERE.to_owned(), failed("unknown-recipient")),
        (DN.to_owned(), (DeliveryState::HandedOver, None)),
        (LOCKED.to_owned(), failed("recipient-locked")),
    ]);
    assert_eq!(ends(&net, id), expected);
    net.wait_proven("g22", id, 4);
    let failure = |who| (Event::ContentHandoverFailure, Some(code(who)));
    let events = net.events("g22", id);
    assert_eq!(events[..3], [(Event::SubmissionAcceptance, None), failure(NOWHERE), failure(LOCKED)]);
    assert_eq!(events[3], (Event::ContentHandover, Some(code(DN))));
    for zip in [net.bundle_of_node("g22", id), net.bundle_of_broker(id)] {
        let verdict = net.judge(&zip, &net.inbox(DN)[0].parts);
        assert!(
            verdict.holds(),
            "{:?}",
            verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>()
        );
        assert_eq!(verdict.states[NOWHERE], "ContentHandoverFailure");
    }
    // Nothing waits that can never arrive.
    assert_eq!(net.broker().exchange().store.counts().waiting, 0);
}

#[test]
fn one_recipient_who_cannot_be_reached_keeps_a_dispatch_back_unless_the_sender_chose_otherwise() {
    let net = with_a_locked_agency();
    for (who, why) in [(NOWHERE, "unknown-recipient"), (LOCKED, "recipient-locked")] {
        let refused = net.block_on(net.agent("g22").compose(draft(&[DN, who], false))).unwrap_err();
        assert_eq!((refused.code().as_str(), refused.to_string().contains(who)), (why, true), "{refused}");
        // Nobody would have it.
        let id = net.block_on(net.agent("g22").compose(draft(&[who], true))).unwrap();
        let agent = net.agent("g22");
        let rejected = net.until(agent, async || agent.show(id).await.unwrap().outgoing.unwrap().reason);
        assert_eq!((rejected.code.as_str(), rejected.text.contains(who)), (why, true), "{rejected}");
    }
    assert_eq!(net.inbox(DN), []);
}
