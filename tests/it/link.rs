//! What the broker answers on the link: claims over the real broker, through a client that speaks the link itself.

mod again;
mod faults;
mod handover;
mod intake;
mod merged;
mod order;
mod quota;
mod recall;
mod rejections;
mod restart;
mod retention;

use docaxis_protocol::frame::Intake;
use docaxis_protocol::{Event, Evidence, SignedEvidence};

use crate::net::{Exchange, TestNet};
use crate::raw::{Letter, RawNode, Submitted};

const G22: (&str, &str) = ("000.00.00.G22", "g22");
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";

/// Two nodes: g22 sends for one agency, h37 receives for two.
fn net() -> TestNet {
    TestNet::new().node("g22", &["000.00.00.G22"]).node("h37", &[DN, TC])
}

fn letter(to: &[&str], bodies: &[&[u8]]) -> Letter {
    Letter::new(G22, to, bodies)
}

/// What evidence says, once its signature has been verified under the certified evidence key.
fn read(exchange: &Exchange, node: &RawNode, evidence: &SignedEvidence) -> Evidence {
    let key = exchange.evidence_key(node.welcome.evidence_chain.leaf().unwrap());
    evidence.verify(key.key()).unwrap()
}

/// The code of a link error.
fn link_error(submitted: Submitted) -> String {
    submitted.answer.expect_err("a link error").code
}

/// The codes of a verified SubmissionRejection.
fn rejected(exchange: &Exchange, node: &RawNode, submitted: Submitted) -> Vec<String> {
    let done = submitted.done();
    assert_eq!(done.intake, Intake::Rejected);
    let evidence = read(exchange, node, &done.evidence);
    assert_eq!((evidence.event, evidence.previous), (Event::SubmissionRejection, None));
    evidence.reasons.into_iter().map(|reason| reason.code).collect()
}

fn leaves(exchange: &Exchange) -> u64 {
    exchange.broker().exchange().store.counts().leaves
}
