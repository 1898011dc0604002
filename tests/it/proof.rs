//! Claims about evidence: what reaches the sender verifies without us, what strangers say does not become evidence,
//! and what was altered is found.

use std::collections::BTreeMap;
use std::io::Write as _;

use docaxis_broker::dispatch::Way;
use docaxis_protocol::bundle::{BundleFiles, Verdict};
use docaxis_protocol::{Event, ReasonCode, SealedStatement, Statement, statement};

use crate::testnet::{Sent, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN]), ("a53", &[A53])];

/// A dispatch that one recipient registered and the other refused; the sender's node has all of the evidence.
fn registered_and_refused(net: &TestNet) -> Sent {
    let sent = net.send(G22, &[DN, A53], letter().with_part("phu-luc.pdf", 100_000));
    net.wait_handed_over(&sent);
    net.block_on(net.agent("h37").register(sent.id, code(DN))).unwrap();
    let reason = ReasonCode::WrongAddressee.because("Không thuộc thẩm quyền");
    net.block_on(net.agent("a53").refuse(sent.id, code(A53), reason)).unwrap();
    net.wait_proven("g22", sent.id, 5);
    sent
}

fn failures(verdict: &Verdict) -> Vec<String> {
    verdict.failures().map(|(name, failure)| format!("{name}: {failure}")).collect()
}

#[test]
fn registered_and_refused_reach_the_sender_with_evidence_that_verifies() {
    let net = TestNet::start(NODES);
    let sent = registered_and_refused(&net);
    let states = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(who, state)| ((*who).into(), (*state).into())).collect()
    };
    let whole = states(&[(DN, "Registered"), (A53, "Refused")]);
    net.wait_proven("h37", sent.id, 3);
    let bundles = [
        ("the sender's node", net.bundle_of_node("g22", sent.id), whole.clone()),
        ("the broker", net.bundle_of_broker(sent.id), whole),
        ("a recipient's node", net.bundle_of_node("h37", sent.id), states(&[(DN, "Registered")])),
    ];
    for (whose, zip, expected) in bundles {
        let verdict = net.judge(&zip, &sent.received().parts);
        assert_eq!((failures(&verdict), &verdict.states), (vec![], &expected), "the bundle of {whose}");
        assert!(verdict.holds());
    }
}

#[test]
fn an_altered_byte_in_an_exported_bundle_is_found() {
    let net = TestNet::start(NODES);
    let sent = registered_and_refused(&net);
    let (zip, parts) = (net.bundle_of_node("g22", sent.id), sent.received().parts);
    let files: Vec<(String, Vec<u8>)> =
        BundleFiles::read(&zip).unwrap().iter().map(|(name, bytes)| (name.into(), bytes.to_vec())).collect();
    assert!(net.judge(&zipped(&files), &parts).holds(), "unaltered and packed again");
    // The first three are for people; the directory's certificate proves successions, of which there is none here.
    let proves = |name: &str| !matches!(name, "index.html" | "VERIFY.txt" | "policy.txt" | "keys/directory.pem");
    let mut unfound = Vec::new();
    for at in (0..files.len()).filter(|at| proves(&files[*at].0)) {
        for share in [1, 2, 3] {
            let mut altered = files.clone();
            let byte = alter(&mut altered[at].1, share);
            if net.judge(&zipped(&altered), &parts).holds() {
                unfound.push((altered[at].0.clone(), byte));
            }
        }
    }
    assert_eq!(unfound, []);
}

/// Changes one byte at about a quarter, half or three quarters; in text, one that is a letter or digit.
fn alter(bytes: &mut [u8], quarter: usize) -> usize {
    let from = bytes.len() * quarter / 4;
    let text = std::str::from_utf8(bytes).is_ok();
    let at = (from..bytes.len()).find(|at| !text || bytes[*at].is_ascii_alphanumeric()).unwrap_or(from);
    bytes[at] ^= 1;
    at
}

fn zipped(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn a_stranger_may_not_report_a_status() {
    let net = TestNet::start(NODES);
    let sent = net.send(G22, &[DN], letter());
    net.wait_handed_over(&sent);
    let before = net.wait_proven("g22", sent.id, 2);
    let envelope_sha256 = net.block_on(net.agent("g22").bundle(sent.id)).unwrap().envelope.digest();
    let identity = net.identity("a53");
    let seal = &identity.seals[&code(A53)];
    let exchange = net.broker().exchange();
    // Its own agency's word about another's dispatch, and another agency's word under its own seal.
    let report = |node: &str, recipient: &str| {
        let said = Statement {
            kind_of_bytes: statement::TYPE.into(),
            exchange: identity.origin.clone(),
            event: Event::Registered,
            dispatch: sent.id,
            envelope_sha256,
            recipient: code(recipient),
            time: exchange.now(),
            reasons: vec![],
            acting: None,
        };
        let sealed = SealedStatement::seal(&said, &seal.key, seal.chain.clone()).unwrap();
        net.block_on(exchange.state(&node.parse().unwrap(), sealed, Way::Reported)).unwrap().unwrap_err().known()
    };
    let answers = [report("a53", A53), report("a53", DN), report("h37", DN)];
    assert_eq!(answers, [ReasonCode::NotYours, ReasonCode::NotYours, ReasonCode::BadSeal]);
    let registered = net.block_on(net.agent("a53").register(sent.id, code(A53))).unwrap_err();
    assert_eq!(registered.code(), ReasonCode::NotFound);
    let next = net.send(G22, &[DN], letter());
    net.wait_handed_over(&next);
    let after = net.wait_proven("g22", sent.id, 2);
    assert_eq!(
        after.iter().map(|row| row.leaf).collect::<Vec<_>>(),
        before.iter().map(|row| row.leaf).collect::<Vec<_>>()
    );
    assert_eq!(exchange.store.counts().leaves, 4, "two dispatches, each accepted and handed over once");
}
