//! Bodies that the broker's disk lost between acceptance and handover: never delivered, set aside, and brought once more
//! by the sender's node, with real agents and a real broker.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use docaxis_protocol::{Digest, DispatchId, Event};
use serde_json::Value;

use crate::testnet::{HANG, Letter, Sent, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const DN: &str = "H37.DN.001";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN])];
const LARGE: usize = 300_000;

/// A letter with a small body of some length, which the journal holds, and a large one, which is a file.
fn two_parts() -> Letter {
    letter().with_part("phu-luc.pdf", 5_000).with_part("ban-do.tif", LARGE)
}

/// A letter that the exchange has accepted, for a recipient whose node is off.
fn waiting() -> (TestNet, Sent) {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let sent = net.send(G22, &[DN], two_parts());
    net.wait_settled(&sent);
    (net, sent)
}

fn blob(net: &TestNet, body: &[u8]) -> PathBuf {
    let name = Digest::of(body).to_string();
    net.broker_data().join("blobs").join(&name[..2]).join(name)
}

fn flip(file: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Flips a bit of a body where it stands in the journal.
fn flip_in_journal(net: &TestNet, body: &[u8]) {
    let journal = net.broker_data().join("journal");
    for entry in std::fs::read_dir(journal).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(body.len()).position(|window| window == body) {
            return flip(&path, at as u64 + 77);
        }
    }
    panic!("the body is in no journal segment");
}

fn set_aside(net: &TestNet, body: &[u8]) -> Vec<u8> {
    std::fs::read(net.broker_data().join("damaged").join(format!("{}.body", Digest::of(body)))).unwrap()
}

/// The recipient gets what was sent, and the evidence is what it would have been without the damage.
fn delivered_as_if_nothing_had_been(net: &TestNet, sent: &Sent) {
    net.wait_handed_over(sent);
    assert_eq!(net.inbox(DN), [sent.received()]);
    let events = net.events("g22", sent.id);
    assert_eq!(events, [(Event::SubmissionAcceptance, None), (Event::ContentHandover, Some(code(DN)))]);
    net.wait_proven("g22", sent.id, 2);
    let parts = sent.received().parts;
    let verdict = net.judge(&net.bundle_of_broker(sent.id), &parts);
    assert!(verdict.holds(), "{verdict:#?}");
    assert_eq!(net.broker().exchange().store.counts().leaves, 2);
}

/// What the broker says about why the one delivery waits, once that contains `words`.
fn why(net: &TestNet, id: DispatchId, words: &str) -> String {
    let began = std::time::Instant::now();
    loop {
        let shown: Value = net.broker_control().get(&format!("/v1/dispatches/{id}")).unwrap();
        let why = shown[0]["deliveries"][0]["why"].as_str().unwrap().to_owned();
        if why.contains(words) {
            return why;
        }
        assert!(began.elapsed() < HANG, "{words:?} was expected; it says: {why}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_large_body_that_was_damaged_is_brought_again_and_the_damage_set_aside() {
    let (mut net, sent) = waiting();
    let body = &sent.letter.parts[2].1;
    // In the last chunk, where a recipient would notice only after all the rest.
    flip(&blob(&net, body), LARGE as u64 - 5);
    let damaged = std::fs::read(blob(&net, body)).unwrap();
    net.start_node("h37");
    delivered_as_if_nothing_had_been(&net, &sent);
    assert_eq!(set_aside(&net, body), damaged);
    assert_eq!(&std::fs::read(blob(&net, body)).unwrap(), body, "whole again at the broker");
}

#[test]
fn a_large_body_that_was_cut_short_or_is_gone_is_brought_again() {
    for gone in [false, true] {
        let (mut net, sent) = waiting();
        let file = blob(&net, &sent.letter.parts[2].1);
        if gone {
            std::fs::remove_file(file).unwrap();
        } else {
            std::fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap();
        }
        net.start_node("h37");
        delivered_as_if_nothing_had_been(&net, &sent);
    }
}

#[test]
fn a_small_body_that_was_damaged_in_the_journal_is_brought_again() {
    let (mut net, sent) = waiting();
    let body = &sent.letter.parts[1].1;
    flip_in_journal(&net, body);
    net.start_node("h37");
    delivered_as_if_nothing_had_been(&net, &sent);
    let aside = set_aside(&net, body);
    assert_eq!((aside.len(), aside[77] ^ 0x10), (body.len(), body[77]));
}

#[test]
fn damage_of_bodies_alone_lets_the_broker_start_with_and_without_its_index() {
    for index in [true, false] {
        let (mut net, sent) = waiting();
        net.stop_broker();
        flip_in_journal(&net, &sent.letter.parts[0].1);
        flip_in_journal(&net, &sent.letter.parts[1].1);
        flip(&blob(&net, &sent.letter.parts[2].1), 1);
        if !index {
            std::fs::remove_dir_all(net.broker_data().join("index")).unwrap();
        }
        net.start_broker();
        net.start_node("h37");
        delivered_as_if_nothing_had_been(&net, &sent);
    }
}

#[test]
fn complaint_07_a_body_that_nobody_has_any_more_is_named_and_holds_up_nothing() {
    let (mut net, sent) = waiting();
    let body = &sent.letter.parts[2].1;
    std::fs::remove_file(blob(&net, body)).unwrap();
    let copy = net.node_data("g22").join("parts").join(&Digest::of(body).to_string()[..2]);
    let copy = copy.join(Digest::of(body).to_string());
    let away = net.node_data("g22").join("taken-away");
    std::fs::rename(&copy, &away).unwrap();
    net.start_node("h37");
    let said = why(&net, sent.id, "did not bring it again");
    assert!(said.contains("part 2") && said.contains("g22") && said.contains("not here"), "{said}");
    let other = net.send(G22, &[DN], letter().about("Khác"));
    net.wait_handed_over(&other);
    assert_eq!(net.inbox(DN), [other.received()]);
    net.stop_node("g22");
    // With the copy back, the next link is enough.
    std::fs::rename(&away, &copy).unwrap();
    net.start_node("g22");
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(DN), [other.received(), sent.received()]);
}

/// Flips a bit of a small body where a stopped node's mailbox has it; twice is as it was.
fn flip_in_mailbox(net: &TestNet, node: &str, body: &[u8]) {
    let path = net.node_data(node).join("mailbox.db");
    let bytes = std::fs::read(&path).unwrap();
    // Behind a piece that stands nowhere else: there it can be found again.
    let piece = &body[body.len() / 2..][..50];
    let at = bytes.windows(piece.len()).position(|window| window == piece).expect("the body is in the mailbox");
    flip(&path, (at + piece.len()) as u64);
}

#[test]
fn a_small_body_that_is_damaged_at_its_sender_too_waits_in_words_and_holds_up_nothing() {
    let (mut net, sent) = waiting();
    let body = &sent.letter.parts[1].1;
    flip_in_journal(&net, body);
    net.stop_node("g22");
    flip_in_mailbox(&net, "g22", body);
    net.start_node("g22");
    net.start_node("h37");
    let said = why(&net, sent.id, "did not bring it again");
    assert!(said.contains("part 1") && said.contains("g22") && said.contains("damaged"), "{said}");
    assert!(net.alarms("g22").iter().any(|alarm| alarm.contains("lost here too")), "{:?}", net.alarms("g22"));
    let other = net.send(G22, &[DN], letter().about("Khác"));
    net.wait_handed_over(&other);
    assert_eq!(net.inbox(DN), [other.received()]);
    net.stop_node("g22");
    flip_in_mailbox(&net, "g22", body);
    net.start_node("g22");
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(DN), [other.received(), sent.received()]);
}

#[test]
fn a_sender_that_is_not_linked_is_asked_when_it_links() {
    let (mut net, sent) = waiting();
    std::fs::remove_file(blob(&net, &sent.letter.parts[2].1)).unwrap();
    net.stop_node("g22");
    net.start_node("h37");
    assert!(why(&net, sent.id, "when it is linked").contains("g22"));
    net.start_node("g22");
    delivered_as_if_nothing_had_been(&net, &sent);
}
