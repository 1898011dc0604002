//! What does one circular to 4,000 recipients cost to accept; how fast do 50,000 waiting dispatches leave for one node, are
//! they in order, and how long does an urgent one take that comes in the middle of them?
//!
//! The broker runs in this process with its defaults and no quotas. Senders and the recipient's node are bare clients which
//! keep nothing on a disk, so that what is measured is the exchange. A dispatch that waits has one part of 4 KiB; the circular
//! has one of 1 MiB. Beside it: the same bytes written with one `fdatasync` for a group, and requests and answers of the same
//! sizes over bare QUIC. Nothing is asserted but that all is accepted and handed over once. Run:
//! `cargo bench --bench queues [-- WAITING [RECIPIENTS]]`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_broker::quota::QuotaSection;
use docaxis_certs::authority::ImportOptions;
use docaxis_protocol::DispatchId;
use docaxis_protocol::frame::{Frame, Intake, Submit};
use quinn::{RecvStream, SendStream};
use tokio::task::JoinSet;

use crate::baseline::{SyncedFile, median, wire};
use crate::net::{Exchange, TestNet, now};
use crate::raw::{Letter, Offered, RawNode, Stream, dial_as};

const WAITING: u64 = 50_000;
const RECIPIENTS: u64 = 4_000;
const CIRCULARS: usize = 9;
const CIRCULAR_BYTES: usize = 1 << 20;
const PART_BYTES: usize = 4 << 10;
/// Submissions in flight while the queue is filled.
const IN_FLIGHT: usize = 64;
/// The most that an offer and what is written about it take, beside the part.
const RECORD_BYTES: usize = PART_BYTES + (4 << 10);
const ANSWER_BYTES: usize = 2 << 10;
const SENDER: (&str, &str) = ("000.00.00.G22", "g22");
const DN: &str = "H37.DN.001";

fn report(what: &str, figure: String) {
    println!("{what:72} | {figure}");
}

fn recipient(n: u64) -> String {
    format!("H{:02}.{:04}", n % 64, n / 64)
}

fn with_a_country(folder: std::path::PathBuf, recipients: u64) -> Exchange {
    let net = TestNet::new().node("g22", &[SENDER.0]).node("h37", &[DN]).with(move |config| {
        let defaults = docaxis_broker::BrokerConfig::new(folder, config.broker.identity.clone());
        config.broker.data = defaults.broker.data;
        config.store = defaults.store;
        config.quota = QuotaSection::unlimited();
    });
    let mut net = net.start();
    let mut list = "organ_id,name,node\n".to_owned();
    (0..recipients).for_each(|n| list += &format!("{},Cơ quan {n},n{}\n", recipient(n), n % 400));
    let imported = net.authority.import_agencies(list.as_bytes(), ImportOptions::default(), now()).unwrap();
    assert_eq!(imported.added as u64, recipients);
    net.publish();
    net
}

/// The sizes of all files below a folder, in bytes.
fn bytes_below(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let size = |entry: std::fs::DirEntry| {
        let data = entry.metadata().unwrap();
        if data.is_dir() { bytes_below(&entry.path()) } else { data.len() }
    };
    entries.map(size).sum()
}

async fn circulars(net: &Exchange, g22: &RawNode, recipients: u64) {
    let to: Vec<String> = (0..recipients).map(recipient).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let (mut many, mut one) = (Vec::new(), Vec::new());
    for n in 0..CIRCULARS {
        for (to, took) in [(&to[..], &mut many), (&to[..1], &mut one)] {
            let mut body = vec![0x5a; CIRCULAR_BYTES];
            body[..8].copy_from_slice(&((n * 2 + to.len() % 2) as u64).to_be_bytes());
            let sealed = Letter::new(SENDER, to, &[&body]).seal(g22);
            let started = Instant::now();
            assert_eq!(g22.submit(&sealed).await.done().intake, Intake::Accepted);
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    report(
        &format!("a part of 1 MiB to {recipients} recipients accepted, median of {CIRCULARS}"),
        format!("{:.0} ms", median(many)),
    );
    report("the same to one recipient", format!("{:.0} ms", median(one)));
    let blobs = bytes_below(&net.config.broker.data.join("blobs"));
    report(&format!("bodies kept of {} dispatches of 1 MiB each", 2 * CIRCULARS), format!("{} MiB", blobs >> 20));
}

fn submission(node: &RawNode, number: u64, priority: u8) -> (DispatchId, Vec<u8>) {
    let mut body = vec![0x5a; PART_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    let letter = Letter::new(SENDER, &[DN], &[&body]).but(|envelope| envelope.priority = priority);
    let sealed = letter.seal(node);
    let id = sealed.id;
    let mut bytes = Frame::Submit(Submit { envelope: sealed.envelope, inline: vec![0] }).encode().unwrap();
    bytes.extend_from_slice(&body);
    (id, bytes)
}

async fn fill(g22: &RawNode, count: u64) {
    let mut from = 0;
    while from < count {
        let some = (count - from).min(5_000);
        let requests: Vec<_> = (from..from + some).map(|n| submission(g22, n, 0).1).collect();
        let (_, answers) = wire::rate(&g22.connection, Arc::new(requests), IN_FLIGHT).await;
        for answer in answers {
            let Frame::Done(done) = Frame::decode(&answer).unwrap() else { panic!("not Done") };
            assert_eq!(done.intake, Intake::Accepted);
        }
        from += some;
    }
}

/// One that was handed over: its place in the queue, the handover's leaf, and when it was recorded.
struct Taken {
    id: DispatchId,
    accepted: u64,
    leaf: u64,
    at: Instant,
}

async fn take(node: Arc<RawNode>, (send, recv): (SendStream, RecvStream)) -> Taken {
    let mut offered = Offered::read(Stream { send, recv }).await;
    offered.fetch_all().await;
    let statement = offered.handover(&node);
    let outcome = offered.answer(&statement).await.unwrap_or_else(|reason| panic!("not recorded: {reason}"));
    let (id, accepted) = (offered.envelope.id, offered.offer.acceptance_leaf);
    Taken { id, accepted, leaf: outcome.leaf, at: Instant::now() }
}

/// Takes all that waits; in the middle of it an urgent dispatch is sent.
async fn drain(net: &Exchange, g22: &RawNode, count: u64) {
    let h37 = Arc::new(RawNode::link(net, "h37").await);
    let started = Instant::now();
    let (mut taking, mut taken, mut urgent) = (JoinSet::new(), Vec::new(), None);
    while (taken.len() as u64) < count + 1 {
        tokio::select! {
            opened = h37.connection.accept_bi() => drop(taking.spawn_local(take(h37.clone(), opened.unwrap()))),
            Some(done) = taking.join_next() => taken.push(done.unwrap()),
        }
        if urgent.is_none() && taken.len() as u64 >= count / 2 {
            let (id, bytes) = submission(g22, count, 2);
            let answer = wire::exchange(&g22.connection, &bytes).await;
            assert!(matches!(Frame::decode(&answer).unwrap(), Frame::Done(done) if done.intake == Intake::Accepted));
            urgent = Some((id, Instant::now()));
        }
    }
    let took = taken.iter().map(|one| one.at).max().unwrap() - started;
    report(
        &format!("{count} waiting handed over to one node, a second"),
        format!("{:.0}", count as f64 / took.as_secs_f64()),
    );
    let (id, accepted) = urgent.unwrap();
    let recorded = taken.iter().find(|one| one.id == id).unwrap().at;
    report(
        "an urgent one in the middle, from its acceptance to its handover",
        format!("{:.0} ms", (recorded - accepted).as_secs_f64() * 1e3),
    );
    taken.retain(|one| one.id != id);
    taken.sort_by_key(|one| one.leaf);
    let overtaken = taken.windows(2).filter(|two| two[0].accepted > two[1].accepted).count();
    report("of the others, handed over before one that was accepted earlier", format!("{overtaken}"));
}

fn main() {
    let mut numbers = baseline::numbers().into_iter();
    let (waiting, recipients) = (numbers.next().unwrap_or(WAITING), numbers.next().unwrap_or(RECIPIENTS));
    let folder = baseline::data_folder();
    let net = with_a_country(folder.path().join("broker"), recipients);
    let disk = SyncedFile::create(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let g22 = RawNode::link(&net, "g22").await;
        circulars(&net, &g22, recipients).await;
        fill(&g22, waiting).await;
        drain(&net, &g22, waiting).await;
        let synced = disk.records_per_s(RECORD_BYTES, IN_FLIGHT, Duration::from_secs(1));
        report(
            &format!("fdatasync of {RECORD_BYTES} bytes in groups of {IN_FLIGHT}, records a second"),
            format!("{synced:.0}"),
        );
        let address = wire::answering(&net.config.broker.identity, RECORD_BYTES, ANSWER_BYTES);
        let (_endpoint, bare) = dial_as(&g22.identity, address).await.unwrap();
        let requests = Arc::new(vec![vec![0x5a; RECORD_BYTES]; 8_000]);
        report("QUIC alone, requests a second", format!("{:.0}", wire::rate(&bare, requests, IN_FLIGHT).await.0));
    });
    drop(runtime);
}
