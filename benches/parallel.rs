//! What do fifty bodies of 100 MiB at once cost the broker in memory, and how much longer do small dispatches take
//! meanwhile?
//!
//! The broker is a process of its own with its defaults. Every body comes over a link of its own and goes to the next
//! link, where its digest is checked; the clients make the bytes as they go and hold nothing. All the while small
//! dispatches go from one node to another at a steady pace: first alone, then beside the bodies. Beside it, the same over
//! bare QUIC: bodies into files with SHA-256, eight at a time, and small requests to an end that only answers. Nothing is asserted but the
//! digests. Run: `cargo bench --bench parallel [-- BODIES [MIB [QUIET_SECONDS]]]`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
mod large;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod raw;
#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;
#[path = "../tests/it/testnet/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod testnet;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use docaxis_broker::BrokerConfig;
use docaxis_certs::NodeIdentity;
use docaxis_protocol::frame::{Frame, Intake, Need};
use docaxis_protocol::{Digest, DispatchId};
use tokio::task::JoinSet;

use crate::baseline::{percentile, wire};
use crate::large::Large;
use crate::raw::{Letter, RawNode, dial_as};
use crate::testnet::{BROKER, Processes};

const BODIES: u64 = 50;
const MIB: u64 = 100;
const QUIET_SECONDS: u64 = 10;
const SMALL_BYTES: usize = 4 << 10;
const SMALL_PER_S: u32 = 50;
const ANSWER_BYTES: usize = 1 << 10;
/// Bodies under way at once over bare QUIC, whose socket has the kernel's own small buffers: of more, so many packets are
/// lost that connections time out.
const BARE_AT_ONCE: usize = 8;

struct Bench {
    all: Processes,
    bodies: Vec<(Large, Digest)>,
}

/// Milliseconds that each small one took.
#[derive(Default)]
struct Took {
    /// Those that are not handed over yet.
    began: BTreeMap<DispatchId, Instant>,
    to_receipt: Vec<f64>,
    to_handover: Vec<f64>,
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn agency(n: u64) -> String {
    format!("H37.DN.{n:03}")
}

fn name(n: u64) -> String {
    format!("n{n}")
}

impl Bench {
    fn identity(&self, name: &str) -> Arc<NodeIdentity> {
        Arc::new(NodeIdentity::load(&self.all.net.node_data(name).with_file_name("identity")).unwrap())
    }

    async fn link(&self, name: &str) -> Arc<RawNode> {
        Arc::new(RawNode::dial(self.identity(name), self.all.net.broker_config.broker.listen).await)
    }

    /// Small dispatches at a steady pace until told to stop.
    async fn small(&self, stop: &AtomicBool) -> Took {
        let (from, to) = (self.link("g22").await, self.link("h37").await);
        let took: Arc<Mutex<Took>> = Arc::default();
        let mut submitting = JoinSet::new();
        let taking = tokio::spawn(take(to, took.clone()));
        let mut pace = tokio::time::interval(Duration::from_secs(1) / SMALL_PER_S);
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            submitting.spawn(submit(from.clone(), took.clone()));
        }
        while let Some(one) = submitting.join_next().await {
            one.unwrap();
        }
        while !took.lock().unwrap().began.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        taking.abort();
        std::mem::take(&mut *took.lock().unwrap())
    }

    /// All bodies at once, each from its node to the next.
    async fn large(&self) {
        let mut links = Vec::new();
        for n in 0..self.bodies.len() as u64 {
            links.push(self.link(&name(n)).await);
        }
        let mut under_way = JoinSet::new();
        for (n, (large, sha256)) in self.bodies.iter().copied().enumerate() {
            let (from, next) = (links[n].clone(), (n + 1) % links.len());
            let (to, recipient) = (links[next].clone(), agency(next as u64));
            under_way.spawn(async move {
                let letter = letter(&from, (&agency(n as u64), &name(n as u64)), &recipient, &[]);
                let sealed = letter.but(|e| e.parts = vec![large.part(sha256)]).seal(&from);
                large.submit(&from, sealed).await;
                // The only one that this link is ever offered.
                let mut offered = to.offered().await;
                offered.stream.write(&Frame::Need(Need { parts: vec![(0, 0)] })).await;
                assert_eq!(large::receive(&mut offered.stream.recv, large.size).await, sha256);
                let statement = offered.handover(&to);
                offered.answer(&statement).await.unwrap();
            });
        }
        while let Some(done) = under_way.join_next().await {
            done.unwrap();
        }
    }

    /// Small requests at the same pace to an end that only answers.
    async fn small_bare(&self, address: std::net::SocketAddr, stop: &AtomicBool) -> Vec<f64> {
        let (_endpoint, bare) = dial_as(&self.identity("g22"), address).await.unwrap();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / SMALL_PER_S);
        let (request, mut took) = (vec![0x5a; SMALL_BYTES], Vec::new());
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let started = Instant::now();
            wire::exchange(&bare, &request).await;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        took
    }

    async fn large_bare(&self, address: std::net::SocketAddr) {
        for some in self.bodies.chunks(BARE_AT_ONCE) {
            let mut under_way = JoinSet::new();
            for (large, sha256) in some.iter().copied() {
                let (endpoint, bare) = dial_as(&self.identity(&name(large.number)), address).await.unwrap();
                under_way.spawn(async move {
                    large.over_bare_quic(&bare, sha256).await;
                    drop(endpoint);
                });
            }
            while let Some(done) = under_way.join_next().await {
                done.unwrap();
            }
        }
    }
}

async fn submit(from: Arc<RawNode>, took: Arc<Mutex<Took>>) {
    let sealed = letter(&from, ("000.00.00.G22", "g22"), "H37.DN.999", &[&[0x5a; SMALL_BYTES]]).seal(&from);
    let started = Instant::now();
    took.lock().unwrap().began.insert(sealed.id, started);
    assert_eq!(from.submit(&sealed).await.done().intake, Intake::Accepted);
    took.lock().unwrap().to_receipt.push(started.elapsed().as_secs_f64() * 1e3);
}

async fn take(to: Arc<RawNode>, took: Arc<Mutex<Took>>) {
    loop {
        let mut offered = to.offered().await;
        let (to, took) = (to.clone(), took.clone());
        tokio::spawn(async move {
            let statement = offered.handover(&to);
            offered.answer(&statement).await.unwrap();
            let mut took = took.lock().unwrap();
            let began = took.began.remove(&offered.envelope.id).unwrap();
            took.to_handover.push(began.elapsed().as_secs_f64() * 1e3);
        });
    }
}

fn letter(node: &RawNode, from: (&str, &str), to: &str, bodies: &[&[u8]]) -> Letter {
    Letter::new(from, &[to], bodies).but(|envelope| envelope.exchange = node.welcome.origin.clone())
}

/// Runs the small ones on a thread of their own while `beside` lasts.
fn measured<T: Send>(small: impl AsyncFnOnce(&AtomicBool) -> T + Send, beside: impl FnOnce()) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let small = scope.spawn(|| run(small(&stop)));
        let ended = Stop(&stop);
        beside();
        drop(ended);
        small.join().unwrap()
    })
}

/// Stops the small ones also where the large ones failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn row(what: &str, quiet: &[f64], beside: &[f64]) {
    let of = |took: &[f64], hundredths| percentile(took.to_vec(), hundredths);
    println!(
        "{what:24} | {:9.2} | {:9.2} | {:10.2} | {:10.2} | {:.1}",
        of(quiet, 50),
        of(quiet, 99),
        of(beside, 50),
        of(beside, 99),
        of(beside, 99) / of(quiet, 99)
    );
}

fn main() {
    let mut numbers = baseline::numbers().into_iter();
    let (bodies, mib) = (numbers.next().unwrap_or(BODIES), numbers.next().unwrap_or(MIB));
    let quiet_for = Duration::from_secs(numbers.next().unwrap_or(QUIET_SECONDS));
    let folder = baseline::data_folder();
    tempfile::env::override_temp_dir(folder.path()).unwrap();
    let names: Vec<(String, String)> = (0..bodies).map(|n| (name(n), agency(n))).collect();
    let agencies: Vec<[&str; 1]> = names.iter().map(|(_, agency)| [agency.as_str()]).collect();
    let mut nodes: Vec<(&str, &[&str])> = vec![("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.999"])];
    nodes.extend(names.iter().zip(&agencies).map(|((name, _), agencies)| (name.as_str(), agencies.as_slice())));
    let mut all = Processes::prepare(&nodes, |config| config.store = BrokerConfig::new("".into(), "".into()).store);
    all.launch(BROKER);
    let bodies = (0..bodies).map(|number| Large { number, size: mib << 20 });
    let bench = Bench { all, bodies: bodies.map(|large| (large, large.digest())).collect() };
    let total = bench.bodies.len() as f64 * mib as f64;

    let identity = bench.all.net.broker_config.broker.identity.clone();
    let below = folder.path().to_owned();
    let large_bare = baseline::serve(&identity, move |connection| large::keep(connection, below.clone()));
    let small_bare = wire::answering(&identity, SMALL_BYTES, ANSWER_BYTES);
    let quiet_bare = measured(async |stop| bench.small_bare(small_bare, stop).await, || std::thread::sleep(quiet_for));
    let started = Instant::now();
    let beside_bare =
        measured(async |stop| bench.small_bare(small_bare, stop).await, || run(bench.large_bare(large_bare)));
    let bare_s = started.elapsed().as_secs_f64();

    let pid = bench.all.pid(BROKER).to_string();
    let quiet = measured(async |stop| bench.small(stop).await, || std::thread::sleep(quiet_for));
    let before = resident::mib(&pid, "VmRSS");
    resident::forget_the_peak(&pid);
    let started = Instant::now();
    let beside = measured(async |stop| bench.small(stop).await, || run(bench.large()));
    let seconds = started.elapsed().as_secs_f64();
    println!("{} bodies of {mib} MiB, in and out again: {:.0} MiB/s", bench.bodies.len(), total / seconds);
    println!("bare QUIC + SHA-256 + file, in alone: {:.0} MiB/s", total / bare_s);
    println!("broker: {before:.0} MiB resident before, {:.0} MiB at its peak", resident::mib(&pid, "VmHWM"));
    println!(
        "{SMALL_PER_S} a second of {SMALL_BYTES} B, ms | alone p50 | alone p99 | beside p50 | beside p99 | p99 to p99"
    );
    row("to the receipt", &quiet.to_receipt, &beside.to_receipt);
    row("to the recorded handover", &quiet.to_handover, &beside.to_handover);
    row("a bare QUIC request", &quiet_bare, &beside_bare);
}
