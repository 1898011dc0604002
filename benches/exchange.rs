//! How many small dispatches a second go all the way, from one agent's outbox through the broker to another agent and
//! its evidence back to the first; and how long does a dispatch of 20 KiB take of a steady stream of them?
//!
//! Broker and two agents run in this process with their defaults, each with its data on the disk that is meant. For the
//! rate, dispatches are queued while the broker is down; the clock runs from the first acceptance until the evidence of
//! the last handover is durable at its sender. For the latency, dispatches are composed at a fixed pace; from
//! acceptance to handover is what the evidence itself says. Beside both: the same bytes over bare QUIC, and written with
//! one `fdatasync`. Run: `cargo bench --bench exchange [-- COUNT [SECONDS [ROUNDS]]]`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod raw;
#[path = "../tests/it/testnet/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod testnet;

use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_broker::BrokerConfig;
use docaxis_broker::quota::QuotaSection;
use docaxis_certs::NodeIdentity;
use docaxis_node_agent::mailbox::EvidenceRow;
use docaxis_node_agent::{AgentConfig, AgentHandle, Draft, DraftPart, Source};
use docaxis_protocol::{DispatchId, Event, PartRole, Timestamp};
use serde_json::json;

use crate::baseline::{SyncedFile, median, percentile, wire};
use crate::net::now;
use crate::raw::dial_as;
use crate::testnet::{TestNet, codes, space};

const COUNT: u64 = 6_000;
const SECONDS: u64 = 30;
const ROUNDS: u64 = 3;
const SMALL_BYTES: usize = 4 << 10;
const STEADY_BYTES: usize = 20 << 10;
const STEADY_PER_S: u32 = 200;
/// Who compose at once; each waits until its own is durable.
const SENDERS: u32 = 4;
/// An envelope, its receipt and their seals, beside the body.
const ENVELOPE_BYTES: usize = 3 << 10;
const ANSWER_BYTES: usize = 1 << 10;
/// As many as the broker commits together when two agents work at their full width.
const GROUP: usize = 64;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const NODES: [(&str, &[&str]); 2] = [("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.001"])];

fn draft(number: u64, bytes: usize) -> Draft {
    let mut draft = Draft::new("000.00.00.G22".parse().unwrap(), codes(&["H37.DN.001"]));
    draft.document = json!({ "Subject": format!("Số {number}"), "secret": false }).as_object().cloned().unwrap();
    let mut body = vec![0x5a; bytes];
    body[..8].copy_from_slice(&number.to_be_bytes());
    let (name, media_type) = ("cong-van.pdf".into(), "application/pdf".into());
    draft.parts = vec![DraftPart { name, media_type, role: PartRole::Document, source: Source::Bytes(body) }];
    draft
}

fn of(rows: &[EvidenceRow], event: Event) -> Option<&EvidenceRow> {
    rows.iter().find(|row| row.event == event)
}

/// The acceptance and the handover of each, when both are at the sender.
async fn both(agent: &AgentHandle, ids: &[DispatchId]) -> Vec<(EvidenceRow, EvidenceRow)> {
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        loop {
            let rows = agent.evidence(*id).await.unwrap();
            if let (Some(accepted), Some(handed)) =
                (of(&rows, Event::SubmissionAcceptance), of(&rows, Event::ContentHandover))
            {
                found.push((accepted.clone(), handed.clone()));
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    found
}

fn ms(from: Timestamp, to: Timestamp) -> f64 {
    (to.unix_ms() - from.unix_ms()) as f64
}

/// Dispatches a second from the first acceptance to the last evidence at the sender.
fn all_the_way(net: &mut TestNet, from: u64, count: u64) -> f64 {
    net.stop_broker();
    let ids = run(async {
        let mut ids = Vec::new();
        for number in from..from + count {
            ids.push(net.agent("g22").compose(draft(number, SMALL_BYTES)).await.unwrap());
        }
        ids
    });
    net.start_broker();
    let found = run(both(net.agent("g22"), &ids));
    let first = found.iter().map(|(accepted, _)| accepted.time).min().unwrap();
    let last = found.iter().map(|(_, handed)| handed.stored).max().unwrap();
    count as f64 * 1e3 / ms(first, last)
}

struct Steady {
    /// From the call that queues it to the acceptance.
    to_acceptance: Vec<f64>,
    /// From the acceptance to the handover, as the exchange has signed them.
    to_handover: Vec<f64>,
    /// From the handover until its evidence is durable at the sender.
    back: Vec<f64>,
    /// From the call that queues it until its evidence is durable at the sender.
    to_evidence: Vec<f64>,
}

/// Dispatches at a fixed pace, whether or not the earlier ones have arrived.
fn steady(net: &TestNet, from: u64, seconds: u64) -> Steady {
    let agent = net.agent("g22");
    let period = Duration::from_secs(1) / STEADY_PER_S;
    let one_sender = |sender: u32| {
        run(async move {
            let mut pace = tokio::time::interval_at((Instant::now() + period * sender).into(), period * SENDERS);
            let mut sent = Vec::new();
            for at in (u64::from(sender)..seconds * u64::from(STEADY_PER_S)).step_by(SENDERS as usize) {
                pace.tick().await;
                let asked = now();
                sent.push((asked, agent.compose(draft(from + at, STEADY_BYTES)).await.unwrap()));
            }
            sent
        })
    };
    let sent: Vec<_> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|sender| scope.spawn(move || one_sender(sender))).collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    let (asked, ids): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
    let found = run(both(agent, &ids));
    Steady {
        to_acceptance: asked.iter().zip(&found).map(|(asked, (accepted, _))| ms(*asked, accepted.time)).collect(),
        back: found.iter().map(|(_, handed)| ms(handed.time, handed.stored)).collect(),
        to_handover: found.iter().map(|(accepted, handed)| ms(accepted.time, handed.time)).collect(),
        to_evidence: asked.iter().zip(&found).map(|(asked, (_, handed))| ms(*asked, handed.stored)).collect(),
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What QUIC alone gives for the same sizes: requests a second, and milliseconds of each that goes alone.
fn bare_quic(net: &TestNet) -> (f64, Vec<f64>) {
    let identity = NodeIdentity::load(&net.node_data("g22").with_file_name("identity")).unwrap();
    let request = |bytes: usize| vec![0x5a; ENVELOPE_BYTES + bytes];
    let serve = |bytes| wire::answering(&net.broker_config.broker.identity, request(bytes).len(), ANSWER_BYTES);
    let (small, steady) = (serve(SMALL_BYTES), serve(STEADY_BYTES));
    run(async {
        let (_endpoint, bare) = dial_as(&identity, small).await.unwrap();
        let (per_s, _) = wire::rate(&bare, Arc::new(vec![request(SMALL_BYTES); 8_000]), GROUP).await;
        let (_endpoint, bare) = dial_as(&identity, steady).await.unwrap();
        let (request, mut took) = (request(STEADY_BYTES), Vec::new());
        for _ in 0..1_000 {
            let started = Instant::now();
            wire::exchange(&bare, &request).await;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        (per_s, took)
    })
}

fn main() {
    let mut numbers = baseline::numbers().into_iter();
    let (count, seconds) = (numbers.next().unwrap_or(COUNT), numbers.next().unwrap_or(SECONDS));
    let rounds = numbers.next().unwrap_or(ROUNDS);
    let folder = baseline::data_folder();
    tempfile::env::override_temp_dir(folder.path()).unwrap();
    let disk = SyncedFile::create(folder.path());
    let mut net = TestNet::prepare(&NODES);
    net.configure(
        |broker| {
            broker.store = BrokerConfig::new("".into(), "".into()).store;
            broker.quota = QuotaSection::unlimited();
        },
        |node| *node = AgentConfig { space: space(), ..AgentConfig::at(&node.agent.data, &node.agent.identity) },
    );
    net.start_broker();
    NODES.iter().for_each(|(name, _)| net.start_node(name));

    println!("all the way, parts of {SMALL_BYTES} B, {count} dispatches a round:");
    println!("dispatches/s | fdatasync, records/s in groups of {GROUP} | QUIC, requests/s at {GROUP} | to each");
    let (mut all, mut synced, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    let mut quic_ms = Vec::new();
    let mut number = 0;
    for _ in 0..rounds {
        let (per_s, took) = bare_quic(&net);
        asked.push(per_s);
        quic_ms.extend(took);
        synced.push(disk.records_per_s(ENVELOPE_BYTES + SMALL_BYTES, GROUP, Duration::from_secs(1)));
        let per_s = all_the_way(&mut net, number, count);
        number += count;
        println!("  one round: {per_s:.0}");
        all.push(per_s);
    }
    let (all, synced, asked) = (median(all), median(synced), median(asked));
    println!("{all:12.0} | {synced:40.0} | {asked:26.0} | {:.3} and {:.3}", all / synced, all / asked);

    println!("{STEADY_PER_S} a second of {STEADY_BYTES} B for {seconds} s, milliseconds:");
    let fsync_ms = disk.latencies_ms(ENVELOPE_BYTES + STEADY_BYTES, 1_000);
    let Steady { to_acceptance, to_handover, back, to_evidence } = steady(&net, number, seconds);
    println!("                                      |    p50 |    p99 |    max");
    for (what, took) in [
        ("asked for to accepted", to_acceptance),
        ("accepted to handed over", to_handover),
        ("handed over to evidence at the sender", back),
        ("asked for to evidence at the sender", to_evidence),
        ("one fdatasync", fsync_ms),
        ("one QUIC request", quic_ms),
    ] {
        let [half, most, max] = [50, 99, 100].map(|of| percentile(took.clone(), of));
        println!("{what:37} | {half:6.2} | {most:6.2} | {max:6.2}");
    }
}
