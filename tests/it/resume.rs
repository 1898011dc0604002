//! Transfers of large bodies that break off: they go on at the byte, whichever side or whatever between them failed, and
//! only for the agency that they belong to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_certs::NodeIdentity;
use docaxis_node_agent::TransferView;
use docaxis_node_agent::uplink::LinkState;
use docaxis_protocol::frame::{Class, Frame, Intake, Submit};
use docaxis_protocol::partial::PartialName;

use crate::forwarder::{Forwarder, Way};
use crate::net::{self, code};
use crate::raw::{Letter, RawNode, Sealed, Stream, Submitted};
use crate::testnet::{BROKER, HANG, Processes, Sent, TestNet, letter};

const G22: (&str, &str) = ("g22", "000.00.00.G22");
/// Of the same node.
pub const G23: &str = "000.00.00.G23";
const H37: (&str, &str) = ("h37", "H37.DN.001");
const NODES: &[(&str, &[&str])] = &[(G22.0, &[G22.1, G23]), (H37.0, &[H37.1])];
const MIB: usize = 1 << 20;
const SIZE: usize = 6 * MIB;
/// Where the network is cut in a transfer of that size.
const CUT_AFTER: u64 = 4 * MIB as u64;
/// What may pass for one body that went on where it broke off: headers, and what was under way when the network was cut. One
/// that began anew would take more.
const MOST: u64 = SIZE as u64 + 3 * MIB as u64;

/// An exchange in which one node's way to the broker can be cut. Silence is noticed within a second.
pub fn with_forwarder(node: &str) -> (TestNet, Forwarder) {
    between(NODES, node)
}

/// The same with these nodes.
pub fn between(nodes: &[(&str, &[&str])], node: &str) -> (TestNet, Forwarder) {
    let mut net = TestNet::prepare(nodes);
    let forwarder = Forwarder::to(net.broker_config.broker.listen);
    let address = forwarder.address().to_string();
    net.configure(
        |_| {},
        |config| {
            config.link.keep_alive = Duration::from_millis(200);
            config.link.idle_timeout = Duration::from_secs(1);
            if config.agent.data.parent().is_some_and(|folder| folder.ends_with(node)) {
                config.agent.broker = Some(address.clone());
            }
        },
    );
    net.start_broker();
    for (name, _) in nodes {
        net.start_node(name);
    }
    (net, forwarder)
}

fn send(net: &TestNet) -> Sent {
    net.send(G22.1, &[H37.1], letter().with_part("ban-ve.pdf", SIZE))
}

/// It arrived, and no more passed than if it had never broken off.
fn it_arrived(net: &TestNet, sent: &Sent, forwarder: &Forwarder, way: Way) {
    net.wait_handed_over(sent);
    assert_eq!(net.inbox(H37.1), [sent.received()]);
    let passed = forwarder.passed(way);
    assert!(passed > SIZE as u64 && passed < MOST, "{passed} bytes passed for a body of {SIZE}");
}

/// How far the sender's node says that it is on its way.
fn transfer(net: &TestNet, sent: &Sent) -> Option<TransferView> {
    net.block_on(net.agent(G22.0).show(sent.id)).unwrap().outgoing.unwrap().transfer
}

/// Until the first bytes are on their way.
fn wait_transfer(net: &TestNet, sent: &Sent) -> TransferView {
    let since = Instant::now();
    loop {
        match transfer(net, sent) {
            Some(seen) if seen.sent > 0 => return seen,
            seen => assert!(since.elapsed() < HANG, "{seen:?}"),
        }
    }
}

/// Partial bodies in a folder.
fn partials(folder: &Path) -> Vec<(PathBuf, PartialName)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), path.file_name().unwrap().to_str().unwrap().parse().unwrap())).collect()
}

/// Until there is exactly one, with so many bytes by its name.
fn wait_partial(folder: &Path, bytes: u64) -> PathBuf {
    let since = Instant::now();
    loop {
        // It may be renamed while it is looked for.
        if let [(path, name)] = &partials(folder)[..]
            && name.bytes >= bytes
        {
            return path.clone();
        }
        assert!(since.elapsed() < HANG, "{:?}", partials(folder));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_upload_goes_on_after_the_network_was_cut_and_after_the_sender_was_stopped() {
    for stopped in [false, true] {
        let (mut net, forwarder) = with_forwarder(G22.0);
        forwarder.cut_after(Way::ToBroker, CUT_AFTER);
        let sent = send(&net);
        let seen = wait_transfer(&net, &sent);
        assert!(seen.sent <= seen.total && seen.total > SIZE as u64, "{seen:?}");
        forwarder.wait_cut();
        if stopped {
            net.stop_node(G22.0);
        }
        wait_partial(&net.broker_data().join("blobs/partial"), CUT_AFTER / 2);
        forwarder.mend();
        if stopped {
            net.start_node(G22.0);
        }
        it_arrived(&net, &sent, &forwarder, Way::ToBroker);
        assert_eq!(transfer(&net, &sent), None, "it is over");
    }
}

#[test]
fn an_upload_goes_on_after_the_broker_was_restarted() {
    let (mut net, forwarder) = with_forwarder(G22.0);
    forwarder.cut_after(Way::ToBroker, CUT_AFTER);
    let sent = send(&net);
    forwarder.wait_cut();
    net.stop_broker();
    wait_partial(&net.broker_data().join("blobs/partial"), CUT_AFTER / 2);
    forwarder.mend();
    net.start_broker();
    it_arrived(&net, &sent, &forwarder, Way::ToBroker);
}

#[test]
fn a_delivery_goes_on_after_the_network_was_cut_and_after_the_recipient_was_restarted() {
    for stopped in [false, true] {
        let (mut net, forwarder) = with_forwarder(H37.0);
        forwarder.cut_after(Way::ToNode, CUT_AFTER);
        let sent = send(&net);
        forwarder.wait_cut();
        if stopped {
            net.stop_node(H37.0);
        }
        wait_partial(&net.node_data(H37.0).join("parts/partial"), CUT_AFTER / 2);
        forwarder.mend();
        if stopped {
            net.start_node(H37.0);
        }
        it_arrived(&net, &sent, &forwarder, Way::ToNode);
    }
}

/// The first of two large parts had come whole when the line was cut in the second.
fn two_parts_pass_once(node: &'static str, way: Way, folder: impl Fn(&TestNet) -> PathBuf) {
    let (net, forwarder) = with_forwarder(node);
    forwarder.cut_after(way, SIZE as u64 + CUT_AFTER);
    let sent = net.send(G22.1, &[H37.1], letter().with_part("ban-ve.pdf", SIZE).with_part("phu-luc.pdf", SIZE));
    forwarder.wait_cut();
    let folder = folder(&net);
    let since = Instant::now();
    while !partials(&folder).iter().any(|(_, name)| name.bytes == name.key.size)
        || partials(&folder).iter().filter(|(_, name)| name.bytes >= CUT_AFTER / 2).count() < 2
    {
        assert!(since.elapsed() < HANG, "{:?}", partials(&folder));
        std::thread::sleep(Duration::from_millis(1));
    }
    forwarder.mend();
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(H37.1), [sent.received()]);
    let (passed, size) = (forwarder.passed(way), 2 * SIZE as u64);
    assert!(passed > size && passed < size + MOST - SIZE as u64, "{passed} bytes passed for bodies of {size}");
    assert!(partials(&folder).is_empty());
}

#[test]
fn of_several_large_parts_those_that_came_whole_are_not_uploaded_again() {
    two_parts_pass_once(G22.0, Way::ToBroker, |net| net.broker_data().join("blobs/partial"));
}

#[test]
fn of_several_large_parts_those_that_came_whole_are_not_delivered_again() {
    two_parts_pass_once(H37.0, Way::ToNode, |net| net.node_data(H37.0).join("parts/partial"));
}

#[test]
fn a_delivery_of_which_the_kept_part_was_damaged_arrives_whole() {
    let (mut net, forwarder) = with_forwarder(H37.0);
    forwarder.cut_after(Way::ToNode, CUT_AFTER);
    let sent = send(&net);
    forwarder.wait_cut();
    net.stop_node(H37.0);
    flip(&wait_partial(&net.node_data(H37.0).join("parts/partial"), CUT_AFTER / 2), 70_000);
    forwarder.mend();
    net.start_node(H37.0);
    net.wait_handed_over(&sent);
    assert_eq!(net.inbox(H37.1), [sent.received()]);
    let passed = forwarder.passed(Way::ToNode);
    assert!(passed > SIZE as u64 * 3 / 2, "{passed} bytes are fewer than the rest and then all of it");
}

#[test]
fn a_node_whose_address_changes_in_the_middle_of_a_transfer_goes_on_over_the_same_connection() {
    let (net, forwarder) = with_forwarder(G22.0);
    let up = |net: &TestNet| match net.agent(G22.0).link().borrow().clone() {
        LinkState::Up { since, .. } => since,
        other => panic!("{other:?}"),
    };
    let since = up(&net);
    let sent = send(&net);
    forwarder.wait_passed(Way::ToBroker, CUT_AFTER / 2);
    forwarder.move_node();
    it_arrived(&net, &sent, &forwarder, Way::ToBroker);
    assert_eq!(up(&net), since);
}

/// A sealed letter of one large part.
fn large(node: &RawNode, agency: &str, body: &[u8]) -> Sealed {
    let letter = Letter::new((agency, G22.0), &[H37.1], &[body]);
    letter.but(|envelope| envelope.exchange = node.welcome.origin.clone()).seal(node)
}

/// Submits it, says from which byte on it is asked for, and sends so much of it from there.
async fn begin(node: &RawNode, sealed: &Sealed, until: usize) -> (Stream, usize) {
    let mut stream = node.open().await;
    stream.write(&Frame::Submit(Submit { envelope: sealed.envelope.clone(), inline: vec![] })).await;
    let Frame::Need(need) = stream.read(Class::Large).await else { panic!("it asks for the part") };
    let [(0, from)] = need.parts[..] else { panic!("{need:?}") };
    let from = usize::try_from(from).unwrap();
    stream.raw(&sealed.bodies[0][from..until.max(from)]).await;
    (stream, from)
}

/// The same, and ends there; the broker has seen the end when this returns.
async fn break_off(node: &RawNode, sealed: &Sealed, until: usize) -> usize {
    let (mut stream, from) = begin(node, sealed, until).await;
    stream.send.finish().unwrap();
    let Frame::Refused(_) = stream.read(Class::Large).await else { panic!("it is not whole") };
    from
}

fn accepted(submitted: &Submitted) -> bool {
    submitted.answer.as_ref().is_ok_and(|done| done.intake == Intake::Accepted)
}

fn exchange() -> net::Exchange {
    let net = net::TestNet::new().node(G22.0, &[G22.1, G23]).node(H37.0, &[H37.1]);
    net.with(|config| config.partials.sync_every_mib = 1).start()
}

fn body() -> Vec<u8> {
    letter().with_part("ban-ve.pdf", 3 * MIB).parts.pop().unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upload_goes_on_at_the_very_byte_for_its_agency_and_for_no_other() {
    let exchange = exchange();
    let g22 = RawNode::link(&exchange, G22.0).await;
    let body = body();
    let (own, foreign) = (large(&g22, G22.1, &body), large(&g22, G23, &body));
    assert_eq!(break_off(&g22, &own, 1_500_001).await, 0);
    // Another agency, of the same node even, is asked for all of it, and what it sends is not mixed with the other's.
    assert_eq!(break_off(&g22, &foreign, 700_000).await, 0);
    // Another dispatch of the same agency goes on with it too.
    assert_eq!(break_off(&g22, &large(&g22, G22.1, &body), 2_000_002).await, 1_500_001);
    let whole = g22.submit(&own).await;
    assert_eq!((whole.needed.clone(), accepted(&whole)), (Some(vec![(0, 2_000_002)]), true), "{whole:?}");
    let whole = g22.submit(&foreign).await;
    assert_eq!((whole.needed.clone(), accepted(&whole)), (Some(vec![(0, 700_000)]), true), "{whole:?}");
    assert!(partials(&exchange.config.broker.data.join("blobs/partial")).is_empty());
    let h37 = RawNode::link(&exchange, H37.0).await;
    for _ in [&own, &foreign] {
        assert_eq!(h37.take().await.0.bytes(), std::slice::from_ref(&body));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_partial_upload_is_asked_for_anew_and_only_what_came_in_one_go_is_rejected() {
    let exchange = exchange();
    let g22 = RawNode::link(&exchange, G22.0).await;
    let sealed = large(&g22, G22.1, &body());
    break_off(&g22, &sealed, 2_000_000).await;
    let [(path, name)] = &partials(&exchange.config.broker.data.join("blobs/partial"))[..] else {
        panic!("one is kept")
    };
    assert_eq!((name.key.agency.clone(), name.bytes), (code(G22.1), 2_000_000));
    flip(path, 70_000);
    let (mut stream, from) = begin(&g22, &sealed, sealed.bodies[0].len()).await;
    assert_eq!(from, 2_000_000);
    let Frame::Need(again) = stream.read(Class::Large).await else { panic!("it asks once more") };
    assert_eq!(again.parts, [(0, 0)]);
    // What comes now is wrong again, and came in one go.
    let mut wrong = sealed.bodies[0].clone();
    wrong[9] ^= 1;
    stream.raw(&wrong).await;
    let Frame::Done(done) = stream.read(Class::Large).await else { panic!("it is rejected with evidence") };
    assert_eq!(done.intake, Intake::Rejected);
    // And with the right bytes it is accepted.
    let sealed = large(&g22, G22.1, &body());
    break_off(&g22, &sealed, 2_000_000).await;
    flip(&partials(&exchange.config.broker.data.join("blobs/partial"))[0].0, 70_000);
    let whole = g22.submit(&sealed).await;
    assert_eq!((whole.needed.clone(), accepted(&whole)), (Some(vec![(0, 0)]), true), "{whole:?}");
}

#[test]
fn a_broker_that_was_killed_goes_on_at_what_it_had_synced() {
    let mut processes = Processes::prepare(NODES, |config| config.partials.sync_every_mib = 1);
    processes.launch(BROKER);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let identity = NodeIdentity::load(&processes.net.node_data(G22.0).with_file_name("identity")).unwrap();
    let (identity, address) = (Arc::new(identity), processes.net.broker_config.broker.listen);
    let sealed = runtime.block_on(async {
        let g22 = RawNode::dial(identity.clone(), address).await;
        let sealed = large(&g22, G22.1, &body());
        let (_stream, from) = begin(&g22, &sealed, 2 * MIB + 500_000).await;
        assert_eq!(from, 0);
        let partial = processes.net.broker_data().join("blobs/partial");
        tokio::task::spawn_blocking(move || wait_partial(&partial, 2 * MIB as u64)).await.unwrap();
        processes.kill(BROKER);
        sealed
    });
    processes.launch(BROKER);
    runtime.block_on(async {
        let g22 = RawNode::dial(identity, address).await;
        let whole = g22.submit(&sealed).await;
        assert_eq!((whole.needed.clone(), accepted(&whole)), (Some(vec![(0, 2 * MIB as u64)]), true), "{whole:?}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_running_broker_removes_what_is_too_much() {
    let exchange = net::TestNet::new().node(G22.0, &[G22.1]).node(H37.0, &[H37.1]);
    let exchange = exchange.with(|config| config.partials.most_mib = 2).start();
    let g22 = RawNode::link(&exchange, G22.0).await;
    let folder = exchange.config.broker.data.join("blobs/partial");
    let body = body();
    break_off(&g22, &large(&g22, G22.1, &body), 1_000_000).await;
    let first = partials(&folder)[0].clone();
    // Younger by the sweep's time.
    let sweeps = exchange.broker().exchange();
    sweeps.blobs.sweep_partials(first.1.at.plus(Duration::from_secs(1)), false);
    break_off(&g22, &large(&g22, G22.1, &body[1..]), 2_000_000).await;
    let since = Instant::now();
    while partials(&folder).iter().any(|(path, _)| *path == first.0) {
        assert!(since.elapsed() < HANG);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(partials(&folder).len(), 1);
}
