//! Claims about the order of arrival, over real agents and a real broker.

use std::collections::BTreeMap;

use docaxis_protocol::{DispatchId, Event};

use crate::forwarder::{Forwarder, Way};
use crate::resume::{G23, between, with_forwarder};
use crate::testnet::{Letter, Sent, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const A53: &str = "000.00.01.A53";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53])];
/// Several times what is under way at once.
const MANY: usize = 200;
const LARGE_BYTES: usize = 6 << 20;
/// Takes sixteen seconds to a node whose link passes so many bytes in a second.
const LARGEST_BYTES: usize = 64 << 20;
const SLOW: u64 = 4 << 20;
/// Takes six of them.
const URGENT_BYTES: usize = 24 << 20;
/// Many of them at once over a link that passes so many bytes in a second: none of them stalls, and none ends soon.
const MANY_BYTES: usize = 2 << 20;
const CRAWL: u64 = 384 << 10;

/// Leaves of the acceptances, and of the handovers to one recipient, in the order in which the letters were queued.
fn leaves(net: &TestNet, sent: &[Sent], to: &str) -> [Vec<u64>; 2] {
    let mut found = [vec![], vec![]];
    for one in sent.iter().filter(|one| one.to.iter().any(|code| code == to)) {
        let rows = net.block_on(net.agent_of(&one.from).evidence(one.id)).unwrap();
        let leaf = |event, of: Option<&str>| {
            let mut leaves = rows.iter().filter(|row| row.event == event && row.recipient == of.map(code));
            leaves.next().unwrap_or_else(|| panic!("{event} of {}", one.letter.subject)).leaf
        };
        found[0].push(leaf(Event::SubmissionAcceptance, None));
        found[1].push(leaf(Event::ContentHandover, Some(to)));
    }
    found
}

fn numbered(number: usize) -> Letter {
    letter().about(format!("Số {number}"))
}

#[test]
fn many_small_ones_and_a_large_one_among_them_arrive_in_the_order_in_which_they_were_queued() {
    let mut net = TestNet::start(NODES);
    net.stop_broker();
    let sent: Vec<Sent> = (0..MANY)
        .map(|number| match number {
            20 | 90 => net.send(G22, &[DN], numbered(number).with_part("ban-do.tif", LARGE_BYTES)),
            number if number % 7 == 0 => net.send(G22, &[TC, DN], numbered(number)),
            number if number % 5 == 0 => net.send(G22, &[TC], numbered(number)),
            _ => net.send(G22, &[DN], numbered(number)),
        })
        .collect();
    net.start_broker();
    for one in &sent {
        net.wait_handed_over(one);
    }
    for to in [DN, TC] {
        for leaves in leaves(&net, &sent, to) {
            assert!(leaves.is_sorted(), "{to}: {leaves:?}");
        }
    }
    let inbox: Vec<_> = net.inbox(DN).into_iter().map(|received| received.id).collect();
    let expected: BTreeMap<DispatchId, usize> = sent.iter().enumerate().map(|(n, one)| (one.id, n)).collect();
    assert_eq!(inbox.len(), sent.iter().filter(|one| one.to.contains(&DN.to_owned())).count());
    assert!(inbox.iter().all(|id| expected.contains_key(id)));
}

#[test]
fn an_urgent_one_overtakes_what_the_same_sender_queued_before() {
    let mut net = TestNet::start(NODES);
    net.stop_broker();
    let mut sent: Vec<Sent> = (0..MANY).map(|number| net.send(G22, &[DN], numbered(number))).collect();
    sent.push(net.send(G22, &[DN], Letter { priority: 4, ..numbered(MANY) }));
    net.start_broker();
    for one in &sent {
        net.wait_handed_over(one);
    }
    for mut leaves in leaves(&net, &sent, DN) {
        let urgent = leaves.pop().unwrap();
        assert!(leaves.is_sorted(), "{leaves:?}");
        assert!(leaves.iter().filter(|leaf| **leaf < urgent).count() < MANY / 2, "{urgent} among {leaves:?}");
    }
}

/// An urgent one that is large itself comes in the middle of larger ones, over a link that is slow this way. It leaves them
/// nothing of the link but what was on its way, though there is no more room for what is to be sent than they take.
fn an_urgent_one_passes(net: &TestNet, link: &Forwarder, way: Way) {
    link.slow_down(way, SLOW);
    let large = [G22, G23].map(|from| net.send(from, &[DN], numbered(1).with_part("ban-do.tif", LARGEST_BYTES)));
    link.wait_passed(way, LARGEST_BYTES as u64 / 8);
    let urgent = Letter { priority: 2, ..numbered(2).with_part("cong-dien.pdf", URGENT_BYTES) };
    let urgent = net.send(G22, &[DN], urgent);
    // The way to the exchange, or that from it: how long the other one takes is another matter.
    let queued = link.passed(way);
    net.wait_settled(&urgent);
    let settled = link.passed(way);
    net.wait_handed_over(&urgent);
    let meanwhile = if way == Way::ToBroker { settled - queued } else { link.passed(way) - settled };
    let most = 2 * URGENT_BYTES as u64;
    assert!(meanwhile < most, "{meanwhile} bytes passed meanwhile; evenly shared it is {}", 3 * URGENT_BYTES);
    link.mend();
    large.iter().for_each(|one| drop(net.wait_handed_over(one)));
    let [accepted, handed_over] = leaves(net, &[large[0].clone(), urgent.clone()], DN);
    let overtaken_here = if way == Way::ToBroker { &accepted } else { &handed_over };
    assert!(overtaken_here[1] < overtaken_here[0], "{accepted:?} {handed_over:?}");
    let mut inbox = net.inbox(DN);
    inbox.sort();
    let mut expected = [large[0].received(), large[1].received(), urgent.received()];
    expected.sort();
    assert_eq!(inbox, expected);
}

#[test]
fn an_urgent_one_passes_in_the_middle_of_large_ones_on_its_way_to_the_same_recipient() {
    let (net, link) = with_forwarder("h37");
    an_urgent_one_passes(&net, &link, Way::ToNode);
}

#[test]
fn an_urgent_one_passes_in_the_middle_of_large_ones_on_its_way_to_the_exchange() {
    let (net, link) = with_forwarder("g22");
    an_urgent_one_passes(&net, &link, Way::ToBroker);
}

#[test]
fn an_urgent_one_finds_a_place_beside_as_many_large_ones_as_are_under_way_at_once() {
    let many: Vec<String> = (100..168).map(|number| format!("H37.TC.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nodes: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[&[DN], &many[..]].concat())];
    for (node, way) in [("g22", Way::ToBroker), ("h37", Way::ToNode)] {
        let (mut net, link) = between(nodes, node);
        // Of each pair of agencies one large dispatch is under way at a time. All are there before the first one goes.
        match way {
            Way::ToBroker => net.stop_broker(),
            Way::ToNode => net.stop_node(node),
        }
        let letter = |to: &str| numbered(1).with_part(&format!("{to}.tif"), MANY_BYTES);
        let large: Vec<Sent> = many.iter().map(|to| net.send(G22, &[to], letter(to))).collect();
        link.slow_down(way, CRAWL);
        match way {
            Way::ToBroker => net.start_broker(),
            Way::ToNode => {
                large.iter().for_each(|one| drop(net.wait_settled(one)));
                net.start_node(node);
            }
        }
        // What goes before the bodies of all that are under way, and a little of these.
        link.wait_passed(way, link.passed(way) + 64 * 8 * 1024);
        let before = link.passed(way);
        // To an agency that waits for nothing else, and to one whose large one is still to be begun.
        let urgent = [DN, many[many.len() - 1]]
            .map(|to| net.send(G22, &[to], Letter { priority: 1, ..numbered(2).with_part("cong-dien.pdf", 60 << 10) }));
        urgent.iter().for_each(|one| drop(net.wait_handed_over(one)));
        let meanwhile = link.passed(way) - before;
        // It takes three times as long until one of those is given up, and its place is free.
        assert!(meanwhile < 10 * CRAWL, "{way:?}: {meanwhile} bytes passed meanwhile");
        // Not one of them has to arrive here.
        link.silence(way);
    }
}

#[test]
fn small_ones_between_others_pass_in_the_middle_of_large_ones_that_are_more_urgent() {
    for (node, way) in [("g22", Way::ToBroker), ("h37", Way::ToNode)] {
        let (net, link) = with_forwarder(node);
        link.slow_down(way, SLOW);
        let urgent = || Letter { priority: 2, ..numbered(1).with_part("ban-do.tif", LARGEST_BYTES) };
        let large = [G22, G23].map(|from| net.send(from, &[DN], urgent()));
        link.wait_passed(way, LARGEST_BYTES as u64 / 8);
        // From the node behind the slow link; or to another one, and its evidence comes back over the slow link.
        let (from, to) = if way == Way::ToBroker { (G23, G22) } else { (DN, G22) };
        for number in 2..4 {
            let before = link.passed(way);
            net.wait_handed_over(&net.send(from, &[to], numbered(number)));
            let meanwhile = link.passed(way) - before;
            assert!(meanwhile < LARGEST_BYTES as u64 / 4, "{way:?}: {meanwhile} bytes passed meanwhile");
        }
        link.mend();
        large.iter().for_each(|one| drop(net.wait_handed_over(one)));
    }
}

#[test]
fn what_waited_for_a_recipient_arrives_in_order_when_it_comes_back() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let mut sent = Vec::new();
    for number in 0..MANY / 2 {
        let from = if number % 3 == 0 { A53 } else { G22 };
        let letter = numbered(number);
        sent.push(net.send(
            from,
            &[DN],
            if number == 10 { letter.with_part("ban-do.tif", LARGE_BYTES) } else { letter },
        ));
    }
    for one in &sent {
        net.wait_settled(one);
    }
    net.stop_broker();
    net.start_broker();
    net.start_node("h37");
    for one in &sent {
        net.wait_handed_over(one);
    }
    for from in [G22, A53] {
        let of: Vec<Sent> = sent.iter().filter(|one| one.from == from).cloned().collect();
        for leaves in leaves(&net, &of, DN) {
            assert!(leaves.is_sorted(), "{from}: {leaves:?}");
        }
    }
}

#[test]
fn nobody_waits_behind_all_that_another_sender_has_for_the_same_recipient() {
    let mut net = TestNet::start(NODES);
    net.stop_node("h37");
    let mut sent: Vec<Sent> = (0..MANY).map(|number| net.send(G22, &[DN], numbered(number))).collect();
    for one in &sent {
        net.wait_settled(one);
    }
    let late: Vec<Sent> = (MANY..MANY + 3).map(|number| net.send(A53, &[DN], numbered(number))).collect();
    for one in &late {
        net.wait_settled(one);
    }
    net.start_node("h37");
    sent.extend(late);
    for one in &sent {
        net.wait_handed_over(one);
    }
    let [accepted, mut handed_over] = leaves(&net, &sent, DN);
    assert!(accepted.is_sorted(), "all of the other sender were there before: {accepted:?}");
    for leaf in handed_over.split_off(MANY) {
        let before = handed_over.iter().filter(|other| **other < leaf).count();
        assert!(before < MANY / 2, "{before} of {MANY} went first: {leaf} among {handed_over:?}");
    }
    assert!(handed_over.is_sorted(), "{handed_over:?}");
}
